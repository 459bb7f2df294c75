package service

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/settings"
)

// TestCreateOnDatabase makes a data directory on a database that others use already: the users who are there keep their passwords. In a
// database of the directory's own they are what a Create that was cut short left, and get the one that is told.
func TestCreateOnDatabase(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	stored := func(data, name string) string {
		t.Helper()
		s, err := OpenDirectory(ctx, data, "test")
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		u, err := s.User(ctx, addr.Address{Local: name, Domain: "d.test"})
		if err != nil {
			t.Fatal(err)
		}
		return u.Password
	}
	create := func(data, user string) *Created {
		t.Helper()
		c, err := Create(ctx, NewHouse{Data: filepath.Join(dir, data), Domain: "d.test", User: user, Hostname: "mail.d.test", Listen: "127.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	create("one", "alice")
	alice, postmaster := stored(one, "alice"), stored(one, "postmaster")
	if err := os.MkdirAll(filepath.Join(two, "control"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := settings.Set(two, "DIRECTORY_DSN", "", "sqlite:"+filepath.Join(one, databaseName)); err != nil {
		t.Fatal(err)
	}
	if c := create("two", "alice"); c.Password != "" {
		t.Errorf("a password was made for %s, who has one", c.User)
	}
	if stored(one, "alice") != alice || stored(one, "postmaster") != postmaster {
		t.Error("users who were there have another password")
	}
	if err := os.Remove(filepath.Join(two, "control", "me")); err != nil {
		t.Fatal(err)
	}
	if c := create("two", "bob"); c.Password == "" {
		t.Error("bob, who is new, has no password")
	}
	if err := os.Remove(filepath.Join(one, "control", "me")); err != nil {
		t.Fatal(err)
	}
	if c := create("one", "alice"); c.Password == "" || stored(one, "alice") == alice {
		t.Error("alice's password is known to nobody")
	}
}
