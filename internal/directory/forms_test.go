package directory

import (
	"reflect"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

func TestForms(t *testing.T) { onEngines(t, testForms) }

func testForms(t *testing.T, dsn string) {
	dir := t.TempDir()
	now := time.Now()
	clock := func() time.Time { return now }
	s, other := openOn(t, dsn, dir, clock), openOn(t, dsn, dir, clock)
	ctx := t.Context()
	want := func(want Forms) {
		t.Helper()
		now = now.Add(checkServer)
		if got, err := s.Forms(ctx); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v %v, want %+v", got, err, want)
		}
	}
	add := func(name, password, scram string) {
		t.Helper()
		if err := other.AddUser(ctx, NewUser{Name: name, Domain: "example.org", Password: password, Scram: scram}); err != nil {
			t.Fatal(err)
		}
	}
	want(Forms{})
	if err := s.AddDomain(ctx, "example.org"); err != nil {
		t.Fatal(err)
	}
	add("a", "$6$x", "")
	want(Forms{})
	add("b", "$6$x", "{SCRAM-SHA-1}4096,c2FsdA==,a,b")
	want(Forms{SCRAM: []string{"SCRAM-SHA-1"}})
	add("c", "{SCRAM-SHA-256}4096,c2FsdA==,a,b,$5$x", "")
	want(Forms{SCRAM: []string{"SCRAM-SHA-1", "SCRAM-SHA-256"}})
	add("d", "{CRAM}pass3,$5$x", "")
	want(Forms{Clear: true, SCRAM: []string{"SCRAM-SHA-1", "SCRAM-SHA-256"}})
	for _, name := range []string{"c", "d"} {
		if err := other.SetPassword(ctx, addr.Address{Local: name, Domain: "example.org"}, "$6$y", ""); err != nil {
			t.Fatal(err)
		}
	}
	want(Forms{SCRAM: []string{"SCRAM-SHA-1"}})
	add("e", "$6$x", "{SCRAM-SHA-512}4096,c2FsdA==,a,b:00ff:secret")
	want(Forms{Clear: true, SCRAM: []string{"SCRAM-SHA-1", "SCRAM-SHA-512"}})
	// When the database is gone, what was found goes on.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	want(Forms{Clear: true, SCRAM: []string{"SCRAM-SHA-1", "SCRAM-SHA-512"}})
}
