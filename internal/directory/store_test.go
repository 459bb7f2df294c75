package directory

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

func open(t testing.TB, dir string, now func() time.Time) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: filepath.Join(dir, "db"), MailRoot: filepath.Join(dir, "domains"), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestUsersAndDomains(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	clock := func() time.Time { return now }
	s, other := open(t, dir, clock), open(t, dir, clock)
	ctx := t.Context()
	a := addr.Address{Local: "Alice", Domain: "Example.org"}
	if _, err := s.User(ctx, a); !errors.Is(err, ErrNoDomain) {
		t.Fatal(err)
	}
	if err := s.AddDomain(ctx, "Example.org"); err != nil {
		t.Fatal(err)
	}
	if err := s.AddDomain(ctx, "example.org"); !errors.Is(err, ErrExists) {
		t.Fatal(err)
	}
	if _, err := s.User(ctx, a); !errors.Is(err, ErrNoUser) {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "../x", "a/b", ".x", "a\x00", "a b", "a:b"} {
		if err := s.AddUser(ctx, NewUser{Name: bad, Domain: "example.org"}); err == nil {
			t.Errorf("user %q was added", bad)
		}
	}
	if err := s.AddUser(ctx, NewUser{Name: "alice", Domain: "example.org", Password: "h1", Gecos: "Alice"}); err != nil {
		t.Fatal(err)
	}
	u, err := s.User(ctx, a)
	if err != nil || u.Password != "h1" || u.Dir != filepath.Join(dir, "domains", "example.org", "alice") || u.Quota != "NOQUOTA" {
		t.Fatalf("%+v %v", u, err)
	}
	if _, err := os.Stat(filepath.Join(u.Dir, "Maildir", "tmp")); err != nil {
		t.Error(err)
	}
	// What another process writes is seen when the cache has been checked again.
	if err := other.SetPassword(ctx, a, "h2"); err != nil {
		t.Fatal(err)
	}
	now = now.Add(checkEvery)
	if u, err := s.User(ctx, a); err != nil || u.Password != "h2" {
		t.Errorf("%+v %v", u, err)
	}
	list, err := s.Users(ctx, "example.org", "", 10)
	if err != nil || len(list) != 1 {
		t.Errorf("%v %v", list, err)
	}
	trash, err := s.RemoveUser(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(trash, "Maildir", "new")); err != nil {
		t.Error(err)
	}
	if _, err := s.User(ctx, a); !errors.Is(err, ErrNoUser) {
		t.Error(err)
	}
	if _, err := s.RemoveDomain(ctx, "example.org"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Domain(ctx, "example.org"); !errors.Is(err, ErrNoDomain) {
		t.Error(err)
	}
}

// TestWhatIsNotThereIsRemembered, but not once somebody has added it: here at once, by another process very soon.
func TestWhatIsNotThereIsRemembered(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	clock := func() time.Time { return now }
	s, other := open(t, dir, clock), open(t, dir, clock)
	ctx := t.Context()
	bob, ann := addr.Address{Local: "bob", Domain: "d.test"}, addr.Address{Local: "ann", Domain: "d.test"}
	missing := func(a addr.Address) bool {
		t.Helper()
		_, err := s.User(ctx, a)
		if err != nil && !errors.Is(err, ErrNoUser) && !errors.Is(err, ErrNoDomain) {
			t.Fatal(err)
		}
		return err != nil
	}
	if !missing(bob) || !missing(ann) {
		t.Fatal("nobody is there yet")
	}
	if err := errors.Join(s.AddDomain(ctx, "d.test"), s.AddUser(ctx, NewUser{Name: "bob", Domain: "d.test"})); err != nil {
		t.Fatal(err)
	}
	if missing(bob) || !missing(ann) {
		t.Error("bob is there, ann is not")
	}
	if err := other.AddUser(ctx, NewUser{Name: "ann", Domain: "d.test"}); err != nil {
		t.Fatal(err)
	}
	now = now.Add(checkEvery)
	if missing(ann) {
		t.Error("another process added ann")
	}
	missing(bob)
	// A flood of names that are not there leaves those that are in the cache, and does not grow without bound.
	for n := range maxCached + 10 {
		missing(addr.Address{Local: strconv.Itoa(n), Domain: "d.test"})
	}
	if found, none := len(s.cache.users.found), len(s.cache.users.missing); found != 2 || none > maxCached {
		t.Errorf("%d and %d in the cache", found, none)
	}
}

func TestDatabaseFailureIsNotNoUser(t *testing.T) {
	s := open(t, t.TempDir(), time.Now)
	s.read.Close()
	if _, err := s.User(t.Context(), addr.Address{Local: "a", Domain: "b"}); err == nil || errors.Is(err, ErrNoUser) || errors.Is(err, ErrNoDomain) {
		t.Fatalf("a closed database says %v", err)
	}
}

func BenchmarkUserCached(b *testing.B) {
	s := open(b, b.TempDir(), time.Now)
	if err := errors.Join(s.AddDomain(b.Context(), "d.example"), s.AddUser(b.Context(), NewUser{Name: "u", Domain: "d.example"})); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.User(b.Context(), addr.Address{Local: "u", Domain: "d.example"}); err != nil {
			b.Fatal(err)
		}
	}
}
