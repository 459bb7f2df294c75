package directory

import (
	"context"
	"fmt"
	"time"
)

// Forms tells which forms of passwords beside hashes some user has: what the doors may offer hangs on it.
type Forms struct {
	// Clear is true when somebody's password is kept itself beside its hash, in clear (wiki 2627, 2700) or encrypted.
	Clear bool
	// SCRAM names the mechanisms for which somebody has keys, without -PLUS.
	SCRAM []string
}

// formsKept is what is known of the forms, since when, and how long it took to find out.
type formsKept struct {
	known      bool
	forms      Forms
	generation uint64
	at         time.Time
	took       time.Duration
}

// formsPause is how many times as long as a search for the forms takes the next one waits: all rows are read. One that takes less than
// formsQuick may be repeated at once.
const (
	formsPause = 100
	formsQuick = 100 * time.Millisecond
	// formsTime bounds a search.
	formsTime = 10 * time.Second
)

// Forms reads all users, or gives what it found lately: where the reading takes long, changes are seen after a hundred
// times as long.
func (s *Store) Forms(ctx context.Context) (Forms, error) {
	c := &s.cache
	last := func() formsKept {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.fresh(ctx)
		k := c.forms
		k.known = k.known && (k.generation == c.generation || k.took > formsQuick && c.now().Sub(k.at) < formsPause*k.took)
		k.generation = c.generation
		return k
	}
	k := last()
	if k.known {
		return k.forms, nil
	}
	if !c.searching.TryLock() {
		if !k.at.IsZero() {
			return k.forms, nil
		}
		c.searching.Lock()
	}
	defer c.searching.Unlock()
	if k = last(); k.known {
		return k.forms, nil
	}
	began := c.now()
	statement, names := "SELECT ", []string{"SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-512"}
	has := func(patterns ...string) {
		statement += "coalesce(max(CASE WHEN "
		for i, p := range patterns {
			if i > 0 {
				statement += " OR "
			}
			statement += fmt.Sprintf("pw_passwd LIKE '%s' OR coalesce(scram, '') LIKE '%[1]s'", p)
		}
		statement += " THEN 1 ELSE 0 END), 0), "
	}
	has("{CRAM}%", "{SCRAM-%:%:%", "{SEALED}%", "{SCRAM-%:{SEALED}%")
	for _, name := range names {
		has("{" + name + "}%")
	}
	found := make([]int, 1+len(names))
	searched, cancel := context.WithTimeout(ctx, formsTime)
	defer cancel()
	err := s.retried(searched, func() error {
		return s.read.QueryRowContext(searched, s.engine.rebind(statement[:len(statement)-2]+" FROM indimail")).Scan(&found[0], &found[1], &found[2], &found[3])
	})
	now := c.now()
	next := formsKept{known: true, generation: k.generation, at: now, took: now.Sub(began)}
	if err != nil {
		// What was found before stays, for a while without another try: a client waits for this.
		next.forms, next.took = k.forms, max(next.took, formsQuick+1)
	} else {
		next.forms.Clear = found[0] == 1
		for i, name := range names {
			if found[1+i] == 1 {
				next.forms.SCRAM = append(next.forms.SCRAM, name)
			}
		}
	}
	c.mu.Lock()
	c.forms = next
	c.mu.Unlock()
	if err != nil && k.at.IsZero() {
		return Forms{}, fmt.Errorf("look for forms of passwords: %w", err)
	}
	return next.forms, nil
}
