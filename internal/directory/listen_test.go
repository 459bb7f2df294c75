package directory

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

// hearing is a host that is to see what another changes.
type hearing struct {
	*testing.T
	ctx   context.Context
	s     *Store
	other *Store
}

// until waits for what holds soon.
func (h hearing) until(what string, holds func() bool) (took time.Duration) {
	h.Helper()
	began := time.Now()
	for !holds() {
		select {
		case <-h.ctx.Done():
			h.Fatal("in vain: ", what)
		case <-time.After(100 * time.Microsecond):
		}
	}
	return time.Since(began)
}

// sees tells whether the host knows of a user.
func (h hearing) sees(name string) bool {
	_, err := h.s.User(h.ctx, addr.Address{Local: name, Domain: "example.org"})
	if err != nil && !errors.Is(err, ErrNoUser) && !errors.Is(err, ErrNoDomain) {
		h.Fatal(err)
	}
	return err == nil
}

// add has the other add a user whom the host remembers as missing.
func (h hearing) add(name string) {
	h.Helper()
	h.sees(name)
	if err := h.other.AddUser(h.ctx, NewUser{Name: name, Domain: "example.org", Password: "x"}); err != nil {
		h.Fatal(err)
	}
}

// change is add, and waits until the host sees it.
func (h hearing) change(name string) {
	h.Helper()
	h.add(name)
	h.Logf("%s seen after %v", name, h.until(name, func() bool { return h.sees(name) }))
}

// TestListen: another host's changes are seen at once, without the clock that the looks at the version go by; and again after the
// connection was lost.
func TestListen(t *testing.T) {
	dsn, dir := server(t, "postgres").DSN(), t.TempDir()
	still := time.Now()
	s, err := Open(t.Context(), Config{DSN: dsn, Path: filepath.Join(dir, "db"), MailRoot: filepath.Join(dir, "domains"), Now: func() time.Time { return still }, Listen: true, Secrets: asGiven{}})
	if err != nil {
		t.Fatal(err)
	}
	other := openOn(t, dsn, dir, time.Now)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	w := hearing{t, ctx, s, other}
	w.until("it listens", func() bool { return s.CacheStats().Listening })
	if err := other.AddDomain(ctx, "example.org"); err != nil {
		t.Fatal(err)
	}
	w.change("a")
	w.change("b")
	var n int
	if err := other.read.QueryRowContext(ctx, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'").Scan(&n); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	w.until("the connection is lost", func() bool { return !s.CacheStats().Listening })
	w.until("it listens again", func() bool { return s.CacheStats().Listening })
	w.change("c")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	w.until("nobody listens", func() bool {
		if err := other.read.QueryRowContext(ctx, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n == 0
	})
}
