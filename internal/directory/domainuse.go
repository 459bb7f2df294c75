package directory

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/maildir"
)

const (
	// domainUseLife is how long a domain's sum is believed. It is longer where adding up takes long, so that it never costs more than
	// the twentieth part of a processor.
	domainUseLife = time.Minute
	domainUseRest = 20
)

// domainUses are what domains with limits hold. To add up a domain reads every user's maildirsize, some 8 µs each, which no delivery can
// wait for; so a sum is kept for a minute, and what this process delivers meanwhile is added. What others add or remove is seen then:
// a domain may pass its limit by what its other hosts deliver within a minute.
type domainUses struct {
	mu       sync.Mutex
	byDomain map[string]*domainUse
}

type domainUse struct {
	// adding has one place, for who adds up.
	adding chan struct{}

	mu    sync.Mutex
	held  maildir.Use
	until time.Time
	known bool
}

func (d *domainUses) of(domain string) *domainUse {
	d.mu.Lock()
	defer d.mu.Unlock()
	u := d.byDomain[domain]
	if u == nil {
		u = &domainUse{adding: make(chan struct{}, 1)}
		if d.byDomain == nil {
			d.byDomain = map[string]*domainUse{}
		}
		d.byDomain[domain] = u
	}
	return u
}

// DomainRoom tells whether a message fits into what the limits diskquota and maxmsgcount leave of its domain; nothing is asked for a
// domain without them. It is exact to what other hosts delivered within the last minute.
func (s *Store) DomainRoom(ctx context.Context, domain string, message maildir.Use) (bool, error) {
	limits, err := s.Limits(ctx, domain)
	if err != nil {
		return false, err
	}
	q := maildir.Quota{Bytes: max(limits.DiskQuota, 0), Messages: max(limits.MaxMessages, 0)}
	if !q.Limited() {
		return true, nil
	}
	held, err := s.DomainUse(ctx, domain)
	return err == nil && q.Fits(held.Plus(message)), err
}

// DomainGrew tells of a delivery to a user of the domain, so that the sum is right for this process before it is added up again.
func (s *Store) DomainGrew(domain string, by maildir.Use) {
	s.uses.mu.Lock()
	u := s.uses.byDomain[strings.ToLower(domain)]
	s.uses.mu.Unlock()
	if u != nil { // else nobody has asked
		u.mu.Lock()
		u.held = u.held.Plus(by)
		u.mu.Unlock()
	}
}

// DomainUse gives what the Maildirs of a domain's users hold, as it was at most a minute ago; while it is added up anew by one, the others
// get the last sum.
func (s *Store) DomainUse(ctx context.Context, domain string) (maildir.Use, error) {
	u := s.uses.of(strings.ToLower(domain))
	held, known, fresh := u.last(s.config.Now())
	if fresh {
		return held, nil
	}
	select {
	case u.adding <- struct{}{}:
	default:
		if known {
			return held, nil
		}
		select {
		case u.adding <- struct{}{}:
		case <-ctx.Done():
			return held, ctx.Err()
		}
	}
	defer func() { <-u.adding }()
	if held, known, fresh = u.last(s.config.Now()); fresh {
		return held, nil // added up while we waited
	}
	began := s.config.Now()
	sum, err := s.addUp(ctx, domain)
	if err != nil && !known {
		return held, fmt.Errorf("add up the mailboxes of %s: %w", domain, err)
	}
	if err != nil {
		sum = held // the last sum does until the database is back
	}
	now := s.config.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.held, u.known, u.until = sum, true, now.Add(max(domainUseLife, domainUseRest*now.Sub(began)))
	return sum, nil
}

func (u *domainUse) last(now time.Time) (held maildir.Use, known, fresh bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.held, u.known, u.known && now.Before(u.until)
}

// addUp reads every user's maildirsize. Who has none gets one, so that the messages are counted only once.
func (s *Store) addUp(ctx context.Context, domain string) (sum maildir.Use, err error) {
	for after := ""; ; {
		users, err := s.Users(ctx, domain, after, 1000)
		if err != nil {
			return sum, err
		}
		for _, user := range users {
			after = user.Name
			if user.Dir == "" {
				continue
			}
			// A malformed quota is nobody's here either.
			q, _ := maildir.ParseQuota(user.Quota)
			// One mailbox that cannot be read must not stop the domain's mail.
			if held, err := maildir.Tally(filepath.Join(user.Dir, "Maildir"), q); err == nil {
				sum = sum.Plus(held)
			}
		}
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		if len(users) < 1000 {
			return sum, nil
		}
	}
}
