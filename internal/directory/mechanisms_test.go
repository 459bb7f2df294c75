package directory

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

func TestMechanisms(t *testing.T) { onEngines(t, testMechanisms) }

// testMechanisms: each pair of protocol and mechanism has its last use, and a user who is removed takes them along.
func testMechanisms(t *testing.T, dsn string) {
	now := time.Now().Truncate(time.Second)
	s := openOn(t, dsn, t.TempDir(), func() time.Time { return now })
	ctx := t.Context()
	for _, d := range []string{"d.test", "e.test"} {
		if err := s.AddDomain(ctx, d); err != nil {
			t.Fatal(err)
		}
		if err := s.AddUser(ctx, NewUser{Name: "ann", Domain: d}); err != nil {
			t.Fatal(err)
		}
	}
	saw := func(domain string, in ...LoggedIn) {
		u, err := s.User(ctx, addr.Address{Local: "ann", Domain: domain})
		if err != nil {
			t.Fatal(err)
		}
		l := NewLogins(s, slog.New(slog.DiscardHandler))
		for _, one := range in {
			l.Saw(u, one)
		}
		l.Close()
	}
	saw("d.test", LoggedIn{Service: "smtpd.587", Mechanism: "PLAIN", TLS: true}, LoggedIn{Service: "smtpd.587", Mechanism: "CRAM-MD5"}, LoggedIn{Service: "imapd.143"})
	now = now.Add(time.Hour)
	saw("d.test", LoggedIn{Service: "smtpd.25", Mechanism: "PLAIN", TLS: true})
	saw("e.test", LoggedIn{Service: "pop3d.110", Mechanism: "APOP"})
	list := func(domain string) (all []UsedMechanism) {
		if err := s.Mechanisms(ctx, domain, func(u UsedMechanism) error { all = append(all, u); return nil }); err != nil {
			t.Fatal(err)
		}
		return all
	}
	now = now.UTC()
	want := []UsedMechanism{
		{"ann", "d.test", "smtp", "CRAM-MD5", false, now.Add(-time.Hour)}, {"ann", "d.test", "smtp", "PLAIN", true, now}, {"ann", "e.test", "pop3", "APOP", false, now},
	}
	if got := list(""); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	if got := list("E.test"); !slices.Equal(got, want[2:]) {
		t.Errorf("%+v", got)
	}
	// The database's clock is not the test's.
	if since, err := s.MechanismsSince(ctx); err != nil || time.Since(since).Abs() > 26*time.Hour {
		t.Errorf("%v %v", since, err)
	}
	if _, err := s.RemoveUser(ctx, addr.Address{Local: "ann", Domain: "d.test"}); err != nil {
		t.Fatal(err)
	}
	if got := list(""); !slices.Equal(got, want[2:]) {
		t.Errorf("after the removal: %+v", got)
	}
}

func TestRelays(t *testing.T) { onEngines(t, testRelays) }

// testRelays: a login opens its address at once, the table does for other hosts, and both only for a while.
func testRelays(t *testing.T, dsn string) {
	now := time.Now().Truncate(time.Second)
	s := openOn(t, dsn, t.TempDir(), func() time.Time { return now })
	ctx := t.Context()
	u := User{Name: "Ann", Domain: "d.test"}
	here, other := NewLogins(s, slog.New(slog.DiscardHandler)), NewLogins(s, slog.New(slog.DiscardHandler))
	defer other.Close()
	one, two := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::2")
	ask := func(l *Logins, client netip.Addr, want bool) {
		t.Helper()
		if ok, err := l.Relays(ctx, client, time.Hour); err != nil || ok != want {
			t.Errorf("%v %v", ok, err)
		}
	}
	ask(here, one, false)
	here.Saw(u, LoggedIn{Service: "pop3d.110", Client: netip.MustParseAddr("::ffff:192.0.2.1"), Relay: true})
	here.Saw(u, LoggedIn{Service: "pop3d.110", Client: two})
	ask(here, one, true)
	ask(here, two, false)
	here.Close()
	ask(other, one, true)
	ask(other, two, false)
	if ok, err := s.RelayAllowed(ctx, addr.Address{Local: "ann", Domain: "d.test"}, "192.0.2.1", now.Add(-time.Hour)); err != nil || !ok {
		t.Errorf("%v %v", ok, err)
	}
	now = now.Add(time.Hour)
	ask(other, one, true)
	now = now.Add(time.Second)
	ask(other, one, false)
	// What is taken out of the table is obeyed within a minute.
	s.row(t, "relay", "email", "bob@d.test", "ipaddr", two.String(), "timestamp", now.Unix())
	ask(other, two, true)
	if _, err := s.ClearRelay(ctx, now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	ask(other, two, true)
	now = now.Add(time.Minute)
	ask(other, two, false)
}
