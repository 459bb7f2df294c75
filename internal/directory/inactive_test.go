package directory

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

// TestInactive: whoever is marked inactive is nobody but keeps name, home and mail, and is back as he was.
func TestInactive(t *testing.T) { onEngines(t, testInactive) }

func testInactive(t *testing.T, dsn string) {
	now := time.Now()
	clock := func() time.Time { now = now.Add(time.Microsecond); return now }
	dir := t.TempDir()
	s, other := openOn(t, dsn, dir, clock), openOn(t, dsn, dir, clock)
	ctx := t.Context()
	furnish(t, s)
	ann := address(t, "Ann@A.test") // by an alias of the domain
	was, err := s.User(ctx, ann)
	if err != nil {
		t.Fatal(err)
	}
	write(t, was.Dir+"/Maildir/new/1.x", "mail")
	if err := s.DeactivateUser(ctx, address(t, "postmaster@d.test")); err == nil {
		t.Error("postmaster is inactive")
	}
	if err := s.DeactivateUser(ctx, address(t, "nobody@d.test")); !errors.Is(err, ErrNoUser) || errors.Is(err, ErrInactive) {
		t.Error(err)
	}
	if _, err := other.User(ctx, ann); err != nil {
		t.Fatal(err)
	}
	if err := s.DeactivateUser(ctx, ann); err != nil {
		t.Fatal(err)
	}
	if err := s.DeactivateUser(ctx, ann); !errors.Is(err, ErrInactive) {
		t.Error(err)
	}
	now = now.Add(checkServer)
	for _, store := range []*Store{s, other} {
		if _, err := store.User(ctx, ann); !errors.Is(err, ErrInactive) || !errors.Is(err, ErrNoUser) {
			t.Error(err)
		}
	}
	is, err := s.InactiveUser(ctx, ann)
	if err != nil || !is.Inactive || is.Password != was.Password || is.GID != was.GID || is.Dir != was.Dir || !is.Changed.Equal(was.Changed) {
		t.Errorf("%+v, was %+v: %v", is, was, err)
	}
	if all, err := s.InactiveUsers(ctx, "d.test"); err != nil || len(all) != 1 || all[0].Name != "ann" || !all[0].Inactive {
		t.Errorf("%+v %v", all, err)
	}
	if _, err := s.InactiveUser(ctx, address(t, "bob@d.test")); !errors.Is(err, ErrNoUser) {
		t.Error(err)
	}
	// The name and the home are taken.
	if err := s.AddUser(ctx, NewUser{Name: "ANN", Domain: "d.test"}); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "indigo user activate") {
		t.Error(err)
	}
	if err := s.RenameUser(ctx, address(t, "bob@d.test"), address(t, "ann@d.test")); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	if _, _, err := s.MoveUser(ctx, address(t, "bob@d.test"), was.Dir); err == nil {
		t.Error("bob has ann's home")
	}
	if lines, err := s.Aliases(ctx, ann); err != nil || len(lines) != 1 {
		t.Errorf("%q %v", lines, err)
	}
	// She comes back, if the domain has room.
	if err := s.SetLimits(ctx, "d.test", func(l *Limits) error { l.MaxUsers = 2; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.ActivateUser(ctx, ann); err == nil || !strings.Contains(err.Error(), "maxpopaccounts") {
		t.Error(err)
	}
	if err := s.SetLimits(ctx, "d.test", func(l *Limits) error { l.MaxUsers = -1; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.ActivateUser(ctx, ann); err != nil {
		t.Fatal(err)
	}
	if u, err := s.User(ctx, ann); err != nil || u != was {
		t.Errorf("%+v, was %+v: %v", u, was, err)
	}
	if err := s.ActivateUser(ctx, ann); !errors.Is(err, ErrNoUser) {
		t.Error(err)
	}
	var stamps []string
	logins, err := s.LastAuth(ctx, was.Address())
	for _, l := range logins {
		stamps = append(stamps, l.Service)
	}
	if text := strings.Join(stamps, " "); err != nil || !strings.Contains(text, "ACTI") || !strings.Contains(text, "INAC") {
		t.Errorf("%q %v", stamps, err)
	}
	// A row that IndiMail left in both tables: the active one counts.
	s.row(t, "indibak", "pw_name", "bob", "pw_domain", "d.test", "pw_passwd", "old", "pw_gecos", "", "pw_dir", "/nowhere")
	if u, err := s.User(ctx, address(t, "bob@d.test")); err != nil || u.Password != "h" {
		t.Errorf("%+v %v", u, err)
	}
	if err := s.DeactivateUser(ctx, address(t, "bob@d.test")); err != nil {
		t.Error(err)
	}
	if u, err := s.InactiveUser(ctx, address(t, "bob@d.test")); err != nil || u.Password != "h" {
		t.Errorf("%+v %v", u, err)
	}
	if n, err := s.AddUsers(ctx, []NewUser{{Name: "eve", Domain: "d.test", Inactive: true}, {Name: "ann", Domain: "d.test", Inactive: true}}); err != nil || n != 1 {
		t.Errorf("%d %v", n, err)
	}
	if u, err := s.InactiveUser(ctx, address(t, "eve@d.test")); err != nil || RecordOf(u).Flags != "INACTIVE" {
		t.Errorf("%+v %v", u, err)
	}
	if _, err := s.User(ctx, ann); err != nil {
		t.Error(err)
	}
	// Removed and given back, alone and with the domain, he is inactive as before.
	gone := func() {
		t.Helper()
		if _, err := s.InactiveUser(ctx, address(t, "bob@d.test")); !errors.Is(err, ErrNoUser) && !errors.Is(err, ErrNoDomain) {
			t.Error(err)
		}
	}
	bob, err := s.InactiveUser(ctx, address(t, "bob@d.test"))
	if err != nil {
		t.Fatal(err)
	}
	back := func(name string) {
		t.Helper()
		removed, err := s.FindTrash(name)
		if err == nil {
			err = s.RestoreTrash(ctx, removed)
		}
		if err != nil {
			t.Fatal(err)
		}
		u, err := s.InactiveUser(ctx, address(t, "bob@d.test"))
		if u.Changed.Sub(bob.Changed).Abs() < time.Second {
			// The trash keeps whole seconds.
			u.Changed = bob.Changed
		}
		if err != nil || u != bob {
			t.Errorf("%+v, was %+v: %v", u, bob, err)
		}
		if _, err := os.Stat(bob.Dir); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.RemoveUser(ctx, bob.Address()); err != nil {
		t.Fatal(err)
	}
	gone()
	if _, err := os.Stat(bob.Dir); err == nil {
		t.Error("his home is there")
	}
	back("bob@d.test")
	if _, err := s.RemoveDomain(ctx, "d.test"); err != nil {
		t.Fatal(err)
	}
	gone()
	if removed, err := s.FindTrash("d.test"); err != nil || removed.Users != 4 {
		t.Errorf("%+v %v", removed, err)
	}
	back("d.test")
	if _, err := s.User(ctx, addr.Address{Local: "bob", Domain: "gone.test"}); !errors.Is(err, ErrNoDomain) {
		t.Error(err)
	}
}
