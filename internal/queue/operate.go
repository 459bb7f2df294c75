package queue

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/queue/seglog"
	"github.com/indigomail/indigo/internal/trace"
)

// Filter chooses messages. Its zero value chooses all; of the fields that are set, each must hold.
type Filter struct {
	// Queue is the name of a queue of a Set.
	Queue string
	IDs   []ID
	// Sender and Recipient are patterns for an address as it is written, in any case: "*" for any text, "?" for one
	// character, "[ab]" for one of some. Sender "<>" chooses bounces. A Recipient is one that is left.
	Sender, Recipient string
	// Domain is the domain of a recipient that is left.
	Domain string
	// User is a pattern for the authenticated user that sent it.
	User string
	// Older and Younger are ages, Larger and Smaller sizes in bytes; 0 means any.
	Older, Younger  time.Duration
	Larger, Smaller int64
	// Held chooses messages that are held, Failed those of which an attempt has failed.
	Held, Failed bool
}

// All tells whether f chooses every message.
func (f *Filter) All() bool {
	return len(f.IDs) == 0 && !f.Held && !f.Failed && f.Older == 0 && f.Younger == 0 && !f.readsHead()
}

// readsHead tells whether the message's record must be read to decide.
func (f *Filter) readsHead() bool {
	return f.Sender != "" || f.Recipient != "" || f.Domain != "" || f.User != "" || f.Larger > 0 || f.Smaller > 0
}

// check reports a malformed pattern.
func (f *Filter) check() error {
	for _, p := range []string{f.Sender, f.Recipient, f.User} {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("pattern %q: %w", p, err)
		}
	}
	return nil
}

func match(pattern, address string) bool {
	if pattern == "<>" {
		return address == ""
	}
	// path.Match treats "/" apart, which may stand in a local part.
	clean := strings.NewReplacer("/", "\x00").Replace
	ok, err := path.Match(clean(strings.ToLower(pattern)), clean(strings.ToLower(address)))
	return err == nil && ok
}

// quick decides by what memory has; called with mu held.
func (f *Filter) quick(m *message, now time.Time) bool {
	age := time.Duration(now.UnixNano() - m.birth)
	return (len(f.IDs) == 0 || slices.Contains(f.IDs, m.id)) && (!f.Held || m.held) && (!f.Failed || m.rare != nil) &&
		(f.Older == 0 || age > f.Older) && (f.Younger == 0 || age < f.Younger)
}

// full decides by the record. statuses are those in memory.
func (f *Filter) full(h *head) bool {
	if f.Larger > 0 && h.size <= f.Larger || f.Smaller > 0 && h.size >= f.Smaller || f.Sender != "" && !match(f.Sender, h.envelope.Sender.String()) {
		return false
	}
	if f.User != "" && !match(f.User, h.envelope.Origin.User) {
		return false
	}
	if f.Recipient == "" && f.Domain == "" {
		return true
	}
	for i := range h.envelope.Recipients {
		if h.statuses[i] == waiting && f.recipient(h, i) {
			return true
		}
	}
	return false
}

// recipient tells whether f chooses one of the recipients.
func (f *Filter) recipient(h *head, i int) bool {
	a := h.envelope.Recipients[i].Address
	return (f.Recipient == "" || match(f.Recipient, a.String())) && (f.Domain == "" || strings.EqualFold(f.Domain, a.Domain))
}

// Listed is one message of a list.
type Listed struct {
	ID         string    `json:"id"`
	Queue      string    `json:"queue,omitempty"`
	Sender     string    `json:"sender"`
	Recipients []string  `json:"recipients"`
	Birth      time.Time `json:"birth"`
	// Next is the next attempt; zero when one is due or running, or the message is held.
	Next     time.Time `json:"next,omitzero"`
	LastText string    `json:"last_result,omitempty"`
	Size     int64     `json:"size"`
	Held     bool      `json:"held,omitempty"`
	Running  int       `json:"running,omitempty"`
}

// Each gives every message that f chooses, in the order of the ids, until use returns an error, which it passes on. Messages
// that come or end meanwhile may or may not be among them.
func (q *Queue) Each(ctx context.Context, f Filter, use func(Listed) error) error {
	return q.each(ctx, f, func(m *message, h *head) error {
		l := Listed{ID: m.id.String(), Queue: q.config.Name, Sender: h.envelope.Sender.String(), Birth: time.Unix(0, m.birth), Size: h.size, Recipients: []string{}}
		q.mu.Lock()
		l.Held, l.Running = m.held, int(m.running)
		if m.rare != nil {
			l.LastText = m.rare.lastText
		}
		for i, r := range m.recipients {
			if r.status != waiting {
				continue
			}
			l.Recipients = append(l.Recipients, h.envelope.Recipients[i].Address.String())
			if next := time.Unix(0, r.next); r.next != 0 && !m.kept() && (l.Next.IsZero() || next.Before(l.Next)) {
				l.Next = next
			}
		}
		q.mu.Unlock()
		return use(l)
	})
}

// each gives messages with their heads, whose statuses are brought up to date.
func (q *Queue) each(ctx context.Context, f Filter, use func(*message, *head) error) error {
	if err := f.check(); err != nil {
		return err
	}
	now := q.config.Now()
	q.mu.Lock()
	chosen := make([]*message, 0, min(len(q.messages), 1024))
	if len(f.IDs) > 0 {
		for _, id := range f.IDs {
			if m := q.messages[id]; m != nil && f.quick(m, now) {
				chosen = append(chosen, m)
			}
		}
	} else {
		for _, m := range q.messages {
			if f.quick(m, now) {
				chosen = append(chosen, m)
			}
		}
	}
	q.mu.Unlock()
	slices.SortFunc(chosen, func(a, b *message) int { return cmp.Compare(a.id, b.id) })
	for _, m := range chosen {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := q.loadHead(m)
		if err != nil {
			q.mu.Lock()
			_, queued := q.messages[m.id]
			q.mu.Unlock()
			if queued {
				return fmt.Errorf("message %s: %w", m.id, err)
			}
			continue // it ended meanwhile
		}
		if f.full(h) {
			if err := use(m, h); err != nil {
				return err
			}
		}
	}
	return nil
}

// loadHead reads a message's record up to its content.
func (q *Queue) loadHead(m *message) (*head, error) {
	buffer := q.buffer()
	defer q.release(buffer)
	payload, err := q.read(m, func(p seglog.Position) ([]byte, error) { return q.log.ReadHead(uint64(m.id), p, buffer) })
	if err != nil {
		return nil, err
	}
	h, _, err := decodeHead(payload)
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, r := range m.recipients {
		h.statuses[i] = r.status
	}
	return h, nil
}

// Detail is all that is known of a message.
type Detail struct {
	Listed
	Envelope   Envelope          `json:"envelope"`
	Deliveries []RecipientDetail `json:"deliveries"`
	// Big tells that the content lies in a file of its own.
	Big bool `json:"big,omitempty"`
}

// RecipientDetail is the state of one recipient: "waiting", "done" or "failed", its next attempt, and why it failed.
type RecipientDetail struct {
	Address string `json:"address"`
	// Channel is "local" or "remote", "" when it is not known yet.
	Channel string    `json:"channel,omitempty"`
	State   string    `json:"state"`
	Next    time.Time `json:"next,omitzero"`
	Text    string    `json:"text,omitempty"`
}

// ErrNoMessage says that there is no message with an id in the queue.
var ErrNoMessage = mailerr.New(550, mailerr.Enhanced{5, 0, 0}, "no such message in the queue")

// Show gives all that is known of a message. ErrNoMessage if there is none.
func (q *Queue) Show(ctx context.Context, id ID) (d Detail, err error) {
	err = ErrNoMessage
	failure := q.Each(ctx, Filter{IDs: []ID{id}}, func(l Listed) error { d.Listed, err = l, nil; return nil })
	if failure != nil || err != nil {
		return d, cmp.Or(failure, err)
	}
	return d, q.each(ctx, Filter{IDs: []ID{id}}, func(m *message, h *head) error {
		d.Envelope, d.Big = h.envelope, h.big
		channels := make([]string, len(h.envelope.Recipients))
		for i, r := range h.envelope.Recipients {
			// A hint for people: routing may change until the next attempt.
			if to, err := q.config.Router.Route(ctx, r.Address); err == nil {
				channels[i] = to.Channel.String()
			}
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		for i, r := range m.recipients {
			one := RecipientDetail{Address: h.envelope.Recipients[i].Address.String(), Channel: channels[i], State: [...]string{"waiting", "done", "failed"}[r.status]}
			if r.status == waiting && r.next != 0 {
				one.Next = time.Unix(0, r.next)
			}
			for _, f := range m.notices() {
				if f.index == i {
					one.Text = f.text
				}
			}
			d.Deliveries = append(d.Deliveries, one)
		}
		return nil
	})
}

// Cat writes a message's content, with CRLF line ends.
func (q *Queue) Cat(id ID, w io.Writer) error {
	q.mu.Lock()
	m := q.messages[id]
	q.mu.Unlock()
	if m == nil {
		return ErrNoMessage
	}
	_, c, release, err := q.load(m)
	if err != nil {
		return err
	}
	defer release()
	_, err = io.Copy(w, io.NewSectionReader(c, 0, c.Size()))
	return err
}

// Action is what an operator does to messages.
type Action string

// The actions of operators.
const (
	// RetryNow makes messages due.
	RetryNow Action = "retry"
	// Hold keeps messages from being delivered; deliveries under way end. Release lets them go on, at once.
	Hold    Action = "hold"
	Release Action = "release"
	// Bounce gives up: the sender gets a report of the recipients that are left. Delete takes them away without a word to
	// anybody. When the filter chooses recipients or a domain, both do so only to these; the message's others stay.
	Bounce Action = "bounce"
	Delete Action = "delete"
)

// Act does something to every message that f chooses and gives their number; with dry, only the number. done, if not nil, is
// called for each.
func (q *Queue) Act(ctx context.Context, a Action, f Filter, dry bool, done func(ID)) (n int, err error) {
	switch a {
	case RetryNow, Hold, Release, Bounce, Delete:
	default:
		return 0, fmt.Errorf("queue: no action %q", a)
	}
	if f.All() && a == RetryNow && !dry && done == nil {
		return q.RetryAll(), nil
	}
	var waits []seglog.Pending
	hasten := map[*message]bool{}
	err = q.each(ctx, f, func(m *message, h *head) error {
		if !dry {
			more, acted := q.act(a, m, func(i int) bool { return f.recipient(h, i) }, hasten)
			if !acted {
				return nil
			}
			waits = append(waits, more...)
		}
		n++
		if done != nil {
			done(m.id)
		}
		return nil
	})
	if len(hasten) > 0 {
		q.mu.Lock()
		q.hasten(func(j *job) bool { return hasten[j.m] })
		q.mu.Unlock()
	}
	for _, w := range waits {
		if _, e := w.Wait(); e != nil && err == nil {
			err = storageError(e)
		}
	}
	return n, err
}

// act does it to one message, unless that is over, or about to be another queue's; Bounce and Delete to those of its recipients that are meant.
func (q *Queue) act(a Action, m *message, meant func(int) bool, hasten map[*message]bool) (waits []seglog.Pending, acted bool) {
	q.mu.Lock()
	if _, queued := q.messages[m.id]; !queued || m.finished || m.moving {
		q.mu.Unlock()
		return nil, false
	}
	e := trace.Event{Time: q.config.Now(), Kind: string(a), Queue: m.id.String(), Check: "operator", Verdict: "success"}
	over := false
	switch a {
	case RetryNow:
		hasten[m] = true
	case Hold, Release:
		if m.held = a == Hold; !m.held {
			hasten[m] = true
			q.unpark(m)
		}
		waits = append(waits, q.log.Enqueue(kindHold, uint64(m.id), true, []byte{boolByte(m.held)}))
	case Bounce, Delete:
		// Jobs that wait for their time shall find now that there is nothing to do.
		hasten[m] = true
		// done are those that an earlier word may have ended without the log: a write that failed, and that the operator repeats.
		var done, results []result
		var failures []notice
		for i, r := range m.recipients {
			if !meant(i) {
				continue
			}
			if r.status != waiting {
				done = append(done, result{index: i, status: r.status})
				continue
			}
			if a == Delete {
				results = append(results, result{index: i, status: succeeded})
				continue
			}
			results = append(results, result{index: i, status: failed})
			failures = append(failures, newNotice(i, errGivenUp, errGivenUp.Text))
		}
		if a == Delete && int(m.left) == len(results) && m.rare != nil {
			all := make([]int, len(m.recipients))
			for i := range all {
				all[i] = i
			}
			waits = append(waits, q.tellNoMore(m, all, false, true))
		}
		if int(m.left) == len(results) {
			m.held = false
		}
		q.apply(m, results, failures)
		if results = append(done, results...); len(results) > 0 {
			told := slices.DeleteFunc(slices.Clone(m.notices()), func(n notice) bool { return !meant(n.index) })
			waits = append(waits, q.log.Enqueue(kindResult, uint64(m.id), true, encodeResults(results, told)))
		}
		q.unpark(m)
		if m.left == 0 && m.running == 0 {
			m.finished, over = true, true
		}
	}
	q.dispatch()
	q.mu.Unlock()
	q.signal()
	q.config.Trace.Record(e)
	if over {
		q.conclude(m)
	}
	return waits, true
}

var errGivenUp = mailerr.New(554, mailerr.Enhanced{5, 0, 0}, "The administrator of this system gave this message up. (#5.0.0)")

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// park keeps a held message's job aside; called with mu held.
func (q *Queue) park(j *job) {
	q.parked[j.m] = append(q.parked[j.m], j)
}

// unpark makes the jobs of a message due that was held; called with mu held.
func (q *Queue) unpark(m *message) {
	for _, j := range q.parked[m] {
		j.due = 0
		heap.Push(&q.later, j)
	}
	delete(q.parked, m)
}

// HostStats is one destination with mail waiting.
type HostStats struct {
	Queue   string `json:"queue,omitempty"`
	Channel string `json:"channel"`
	Host    string `json:"host"`
	// Jobs counts the deliveries that are planned, Ready those that are due, Running those under way.
	Jobs    int `json:"jobs"`
	Ready   int `json:"ready"`
	Running int `json:"running"`
}

// Hosts gives every destination that has been routed to and has mail waiting, the busiest first.
func (q *Queue) Hosts() []HostStats {
	q.mu.Lock()
	hosts := []HostStats{}
	for c := range q.lanes {
		for _, d := range q.lanes[c].hosts {
			hosts = append(hosts, HostStats{q.config.Name, Channel(c).String(), d.name, d.refs, d.jobs.len(), d.running})
		}
	}
	q.mu.Unlock()
	sortHosts(hosts)
	return hosts
}

func sortHosts(hosts []HostStats) {
	slices.SortFunc(hosts, func(a, b HostStats) int {
		return cmp.Or(cmp.Compare(b.Jobs, a.Jobs), cmp.Compare(a.Channel, b.Channel), cmp.Compare(a.Host, b.Host))
	})
}

// Shape counts recipients that are left by domain and age, like qshape.
type Shape struct {
	// Limits are the ages, each of which bounds a column; the last column has what is older.
	Limits  []time.Duration `json:"limits_ns"`
	Domains []ShapeRow      `json:"domains"`
}

// ShapeRow is one domain of a Shape.
type ShapeRow struct {
	Domain string `json:"domain"`
	Total  int    `json:"total"`
	Counts []int  `json:"counts"`
}

// shapeLimits gives the ages, like qshape's: 5 minutes and its doubles.
func shapeLimits() (limits []time.Duration) {
	for limit := 5 * time.Minute; limit <= 1280*time.Minute; limit *= 2 {
		limits = append(limits, limit)
	}
	return limits
}

// newShape puts rows in order, the longest first.
func newShape(rows map[string]*ShapeRow) Shape {
	s := Shape{Limits: shapeLimits(), Domains: []ShapeRow{}}
	for _, r := range rows {
		s.Domains = append(s.Domains, *r)
	}
	slices.SortFunc(s.Domains, func(a, b ShapeRow) int {
		return cmp.Or(cmp.Compare(b.Total, a.Total), cmp.Compare(a.Domain, b.Domain))
	})
	return s
}

// shape looks at every message that f chooses and counts the recipients that are left by their domains; with senders,
// messages by the sender's domain.
func (q *Queue) shape(ctx context.Context, f Filter, senders bool, rows map[string]*ShapeRow) error {
	limits := shapeLimits()
	now := q.config.Now()
	return q.each(ctx, f, func(m *message, h *head) error {
		age := time.Duration(now.UnixNano() - m.birth)
		column, _ := slices.BinarySearch(limits, age)
		count := func(domain string) {
			domain = strings.ToLower(domain)
			r := rows[domain]
			if r == nil {
				r = &ShapeRow{Domain: domain, Counts: make([]int, len(limits)+1)}
				rows[domain] = r
			}
			r.Total++
			r.Counts[column]++
		}
		if senders {
			count(h.envelope.Sender.Domain)
			return nil
		}
		for i, r := range h.envelope.Recipients {
			if h.statuses[i] == waiting {
				count(r.Address.Domain)
			}
		}
		return nil
	})
}
