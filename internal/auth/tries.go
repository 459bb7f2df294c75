package auth

const (
	// maxSame bounds failed logins of a connection by one mechanism, maxTries by all together.
	maxSame  = 3
	maxTries = 20
)

// Tries counts the failed logins of one connection; the zero value has none. How often an address or account may fail is the Guard's to say: this
// bounds what one connection costs, and lets a client with the right password come down the list of what is offered to the mechanism that its user
// has a stored form for.
type Tries struct {
	by  map[string]int
	all int
}

// Failed counts one by a mechanism, and tells whether they were enough: three by the same or twenty together, more than there are mechanisms.
func (t *Tries) Failed(mechanism string) (enough bool) {
	if t.by == nil {
		t.by = map[string]int{}
	}
	t.by[mechanism]++
	t.all++
	return t.by[mechanism] >= maxSame || t.all >= maxTries
}
