package directory

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

func TestLogins(t *testing.T) { onEngines(t, testLogins) }

func testLogins(t *testing.T, dsn string) {
	now := time.Now().Truncate(time.Second)
	s := openOn(t, dsn, t.TempDir(), func() time.Time { return now })
	ctx := t.Context()
	if err := s.AddDomain(ctx, "d.test"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"postmaster", "ann", "bob", "eve"} {
		if err := s.AddUser(ctx, NewUser{Name: name, Domain: "d.test", Gecos: "G"}); err != nil {
			t.Fatal(err)
		}
	}
	ann := addr.Address{Local: "Ann", Domain: "D.test"}
	u, err := s.User(ctx, ann)
	if err != nil {
		t.Fatal(err)
	}
	if l, err := s.LastLogins(ctx, ann); err != nil || len(l) != 0 {
		t.Fatalf("%v %v", l, err)
	}
	saw := func(run func(l *Logins)) {
		l := NewLogins(s, slog.New(slog.DiscardHandler))
		run(l)
		l.Close()
	}
	saw(func(l *Logins) {
		l.Saw(u, LoggedIn{Service: "imapd.143", Client: netip.MustParseAddr("::ffff:192.0.2.1")})
		l.Saw(u, LoggedIn{Service: "imapd.143", Client: netip.MustParseAddr("192.0.2.2")})
	})
	now = now.Add(time.Hour)
	saw(func(l *Logins) { l.Saw(u, LoggedIn{Service: "pop3d.995", Client: netip.MustParseAddr("2001:db8::1")}) })
	got, err := s.LastLogins(ctx, ann)
	if err != nil || len(got) != 2 {
		t.Fatalf("%v %v", got, err)
	}
	if got[0].Service != "pop3" || got[0].IP != "2001:db8::1" || !got[0].At.Equal(now) {
		t.Errorf("%+v", got[0])
	}
	if got[1].Service != "imap" || got[1].IP != "192.0.2.2" || !got[1].At.Equal(now.Add(-time.Hour)) {
		t.Errorf("%+v", got[1])
	}
	// A later one takes the place of the one before.
	now = now.Add(time.Hour)
	saw(func(l *Logins) { l.Saw(u, LoggedIn{Service: "imapd.993", Client: netip.MustParseAddr("192.0.2.3")}) })
	if got, err = s.LastLogins(ctx, ann); err != nil || len(got) != 2 || got[0].Service != "imap" || got[0].IP != "192.0.2.3" || !got[0].At.Equal(now) {
		t.Errorf("%+v %v", got, err)
	}
	// bob and eve never logged in and were added too long ago; postmaster is not named.
	idle := func(domain string, since time.Time) (names []string) {
		err := s.Inactive(ctx, domain, since, func(i Idle) error {
			names = append(names, i.User.Name)
			if i.Never != (i.User.Name != "ann") {
				t.Errorf("%+v", i)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		return names
	}
	if got := idle("d.test", now.Add(-30*time.Minute)); !slices.Equal(got, []string{"bob", "eve"}) {
		t.Errorf("%v", got)
	}
	if got := idle("", now.Add(time.Second)); !slices.Equal(got, []string{"ann", "bob", "eve"}) {
		t.Errorf("%v", got)
	}
	if got := idle("", now.Add(-3*time.Hour)); got != nil {
		t.Errorf("%v", got)
	}
	if err := s.Inactive(ctx, "nowhere.test", now, nil); !errors.Is(err, ErrNoDomain) {
		t.Error(err)
	}
}

// TestLoginsLost: a database that is down costs one line in the log and no more; memory is bounded.
func TestLoginsLost(t *testing.T) {
	s := open(t, t.TempDir(), time.Now)
	var out strings.Builder
	l := NewLogins(s, slog.New(slog.NewTextHandler(&out, nil)))
	s.write.Close()
	for i := range maxLogins + 5 {
		l.Saw(User{Name: string(rune(i)), Domain: "d"}, LoggedIn{Service: "imapd.143", Client: netip.Addr{}})
	}
	l.Close()
	if strings.Count(out.String(), "\n") != 1 || !strings.Contains(out.String(), "count=10005") {
		t.Errorf("%s", out.String())
	}
}
