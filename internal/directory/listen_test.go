package directory

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

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
	until := func(what string, holds func() bool) (took time.Duration) {
		t.Helper()
		began := time.Now()
		for !holds() {
			select {
			case <-ctx.Done():
				t.Fatal("in vain: ", what)
			case <-time.After(time.Millisecond):
			}
		}
		return time.Since(began)
	}
	until("it listens", func() bool { return s.CacheStats().Listening })
	if err := other.AddDomain(ctx, "example.org"); err != nil {
		t.Fatal(err)
	}
	seen := func(name string) func() bool {
		a := addr.Address{Local: name, Domain: "example.org"}
		return func() bool {
			_, err := s.User(ctx, a)
			if err != nil && !errors.Is(err, ErrNoUser) && !errors.Is(err, ErrNoDomain) {
				t.Fatal(err)
			}
			return err == nil
		}
	}
	change := func(name string) {
		t.Helper()
		seen(name)()
		if err := other.AddUser(ctx, NewUser{Name: name, Domain: "example.org", Password: "x"}); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s seen after %v", name, until(name, seen(name)))
	}
	change("a")
	change("b")
	var n int
	if err := other.read.QueryRowContext(ctx, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'").Scan(&n); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	until("the connection is lost", func() bool { return !s.CacheStats().Listening })
	until("it listens again", func() bool { return s.CacheStats().Listening })
	change("c")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	until("nobody listens", func() bool {
		if err := other.read.QueryRowContext(ctx, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n == 0
	})
}
