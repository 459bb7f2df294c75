package directory

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

func TestATRN(t *testing.T) { onEngines(t, testATRN) }

func testATRN(t *testing.T, dsn string) {
	s := openOn(t, dsn, t.TempDir(), time.Now)
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.MakeDomain(ctx, NewDomain{Name: "one.dom", Autoturn: "one.dom"}))
	must(s.MakeDomain(ctx, NewDomain{Name: "two.dom", Autoturn: "192.0.2.7"}))
	for _, name := range []string{"up.one.dom", "x.up.one.dom", "a_one.dom"} {
		must(s.MakeDomain(ctx, NewDomain{Name: name, Autoturn: name}))
	}
	must(s.AddDomain(ctx, "users.one.dom"))
	root := filepath.Join(filepath.Dir(s.config.MailRoot), "autoturn")
	for _, c := range []struct {
		name  string
		limit int
		want  string
	}{
		{"One.dom", 10, "one.dom up.one.dom x.up.one.dom"}, {"dom", 10, "a_one.dom one.dom two.dom up.one.dom x.up.one.dom"}, {"dom", 2, "a_one.dom one.dom"}, {"ne.dom", 10, ""}, {"_.dom", 10, ""},
		{"users.one.dom", 10, ""},
	} {
		below, err := s.DomainsBelow(ctx, c.name, root, c.limit)
		var names []string
		for _, d := range below {
			names = append(names, d.Name)
		}
		if got := strings.Join(names, " "); got != c.want || err != nil {
			t.Errorf("below %s: %s, want %s, %v", c.name, got, c.want, err)
		}
	}
	odmr := addr.Address{Local: "ODMR", Domain: "Localhost"}
	has := func(want ...string) {
		t.Helper()
		got, err := s.ATRNDomains(ctx, odmr)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q, want %q, %v", got, want, err)
		}
	}
	has()
	must(s.GrantATRN(ctx, odmr, "One.dom"))
	must(s.GrantATRN(ctx, odmr, "two.dom"))
	has("one.dom", "two.dom")
	if err := s.GrantATRN(ctx, odmr, "one.dom"); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	if err := s.GrantATRN(ctx, odmr, "no.dom"); !errors.Is(err, ErrNoDomain) {
		t.Error(err)
	}
	other := addr.Address{Local: "other", Domain: "one.dom"}
	must(s.GrantATRN(ctx, other, "two.dom"))
	if all, err := s.ATRNGrants(ctx, "", "two.dom"); err != nil || len(all) != 2 || all[0] != (ATRNGrant{"odmr@localhost", "two.dom"}) || all[1] != (ATRNGrant{"other@one.dom", "two.dom"}) {
		t.Error(all, err)
	}
	must(s.RevokeATRN(ctx, odmr, "TWO.dom"))
	if s.RevokeATRN(ctx, odmr, "two.dom") == nil {
		t.Error("revoked twice")
	}
	has("one.dom")
	// A row of somebody else's with several domains.
	_, err := s.write.ExecContext(ctx, s.engine.rebind("INSERT INTO atrn_map (pw_name, pw_domain, domain_list) VALUES (?, ?, ?)"), "odmr", "localhost", "x.dom,two.dom")
	must(err)
	has("one.dom", "x.dom", "two.dom")
	must(s.RevokeATRN(ctx, odmr, "two.dom"))
	has("one.dom", "x.dom")
	// A grant goes with the domain, of whomever it is, and comes back with it; and it goes by the domain's new name.
	trash, err := s.RemoveDomain(ctx, "one.dom")
	must(err)
	has("x.dom")
	if all, err := s.ATRNGrants(ctx, other.String(), ""); err != nil || len(all) != 0 {
		t.Error(all, err)
	}
	removed, err := s.FindTrash(trash[len(s.trashRoot())+1:])
	must(err)
	must(s.RestoreTrash(ctx, removed))
	has("one.dom", "x.dom")
	must(s.RenameDomain(ctx, "one.dom", "new.dom"))
	has("new.dom", "x.dom")
}

func TestAutoturnPlaces(t *testing.T) { onEngines(t, testAutoturnPlaces) }

// testAutoturnPlaces renames, removes and restores domains whose mail waits: none gets another's, and the mail comes back where it was.
func testAutoturnPlaces(t *testing.T, dsn string) {
	dir := t.TempDir()
	s := openOn(t, dsn, dir, time.Now)
	ctx := t.Context()
	place := func(name string) string {
		t.Helper()
		d, err := s.Domain(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		return d.Dir
	}
	if err := errors.Join(s.MakeDomain(ctx, NewDomain{Name: "old.dom", Autoturn: "old.dom"}), s.RenameDomain(ctx, "old.dom", "new.dom"), s.MakeDomain(ctx, NewDomain{Name: "old.dom", Autoturn: "old.dom"})); err != nil {
		t.Fatal(err)
	}
	if was, is := place("new.dom"), place("old.dom"); was == is || filepath.Dir(was) != filepath.Dir(is) {
		t.Errorf("new.dom in %s, old.dom in %s", was, is)
	}
	if err := errors.Join(s.MakeDomain(ctx, NewDomain{Name: "s1.dom", Autoturn: "192.0.2.9"}), s.MakeDomain(ctx, NewDomain{Name: "s2.dom", Autoturn: "192.0.2.9"})); err != nil {
		t.Fatal(err)
	}
	shared := place("s1.dom")
	mail := filepath.Join("Maildir", "new", "1.mail")
	if err := os.WriteFile(filepath.Join(shared, mail), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"s1.dom", "s2.dom"} {
		if _, err := s.RemoveDomain(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"s1.dom", "s2.dom"} {
		removed, err := s.FindTrash(name)
		if err == nil {
			err = s.RestoreTrash(ctx, removed)
		}
		if err != nil || place(name) != shared {
			t.Errorf("%s came back in %s, not %s: %v", name, place(name), shared, err)
		}
		// What comes in before the other one is back stays too.
		if err := errors.Join(os.MkdirAll(filepath.Join(shared, "Maildir", "new"), 0o700), os.WriteFile(filepath.Join(shared, "Maildir", "new", name), []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"1.mail", "s1.dom", "s2.dom"} {
		if _, err := os.Stat(filepath.Join(shared, "Maildir", "new", name)); err != nil {
			t.Error(err)
		}
	}
}
