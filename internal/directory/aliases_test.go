package directory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

func at(s string) addr.Address {
	a, err := addr.Parse(s)
	if err != nil {
		panic(err)
	}
	return a
}

func TestAliases(t *testing.T) { onEngines(t, testAliases) }

func testAliases(t *testing.T, dsn string) {
	dir := t.TempDir()
	now := time.Now()
	clock := func() time.Time { return now }
	s, other := openOn(t, dsn, dir, clock), openOn(t, dsn, dir, clock)
	ctx := t.Context()
	if _, err := s.Aliases(ctx, at("info@example.org")); !errors.Is(err, ErrNoDomain) {
		t.Fatal(err)
	}
	for _, name := range []string{"example.org", "other.test"} {
		if err := s.AddDomain(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"ann", "bob"} {
		if err := s.AddUser(ctx, NewUser{Name: name, Domain: "example.org"}); err != nil {
			t.Fatal(err)
		}
	}
	has := func(a string, want ...string) {
		t.Helper()
		now = now.Add(checkServer)
		for _, store := range []*Store{s, other} {
			if lines, err := store.Aliases(ctx, at(a)); !slices.Equal(lines, want) || (want == nil) != errors.Is(err, ErrNoAlias) || want != nil && err != nil {
				t.Errorf("%s: %q %v, want %q", a, lines, err, want)
			}
		}
	}
	add := func(a string, lines ...string) {
		t.Helper()
		if err := other.AddAlias(ctx, at(a), lines...); err != nil {
			t.Error(err)
		}
	}
	has("Info@example.org")
	add("Info@Example.org", "&ann@example.org", " bob ", "|/usr/local/bin/myfilter \"$SENDER\"", "./info/Maildir/")
	has("info@EXAMPLE.org", "&ann@example.org", "./info/Maildir/", "bob", "|/usr/local/bin/myfilter \"$SENDER\"")
	for _, c := range []struct{ a, line, want string }{
		{"info@example.org", "&ann@example.org", "already exists"},
		{"info@nowhere.test", "&ann@example.org", "no such domain"},
		{"info@example.org", "", "empty"}, {"info@example.org", "|", "no command"}, {"info@example.org", "&a b", "is no &user@domain"},
		{"info@example.org", "|a\nb", "line ends"}, {"info@example.org", "|" + strings.Repeat("x", 190), "190 bytes"},
		{"info@example.org", "/etc/Maildir/", "inside of the domain's directory"}, {"info@example.org", "./../other.test/Maildir/", "inside of the domain's directory"},
		{"info@example.org", "./", "inside of the domain's directory"}, {"info@example.org", "./mbox", "mbox"},
		{"a/b@example.org", "&ann", "must not hold"}, {strings.Repeat("x", 41) + "@example.org", "&ann", "1 to 40"},
		{"self@example.org", "&Self@example.org", "would loop"},
	} {
		if err := s.AddAlias(ctx, at(c.a), c.line); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %q: %v, want %s", c.a, c.line, err, c.want)
		}
	}
	// The home of a user may lie elsewhere.
	if _, err := s.change(ctx, "", "", "", "UPDATE indimail SET pw_dir = '/home/mail/T2Zsym/example.org/bob' WHERE pw_name = 'bob'"); err != nil {
		t.Fatal(err)
	}
	for path, good := range map[string]bool{
		"/home/mail/T2Zsym/example.org/bob/Maildir/": true, "/home/mail/T2Zsym/example.org/bob/Maildir/.Virus/": true, "/home/mail/T2Zsym/example.org/bob/Maildir/../../x/": false,
		"/etc/bob/Maildir/": false, "/home/mail/T2Zsym/example.org/ann/Maildir/": false,
	} {
		if err := s.AddAlias(ctx, at("elsewhere@example.org"), path); (err == nil) != good {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := s.RemoveAlias(ctx, at("elsewhere@example.org")); err != nil {
		t.Error(err)
	}
	// All lines or none.
	if err := s.AddAlias(ctx, at("two@example.org"), "&ann", "&ann"); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	has("two@example.org")

	// Loops are seen through other aliases and domains; an address of a user may name itself.
	add("a@example.org", "&b@other.test")
	add("b@other.test", "&c@example.org")
	if err := s.AddAlias(ctx, at("c@example.org"), "&a@example.org"); err == nil || !strings.Contains(err.Error(), "would loop") {
		t.Error(err)
	}
	add("ann@example.org", "&ann@example.org", "&far@elsewhere.test")
	if err := s.AddAlias(ctx, at("*@example.org"), "&nobody@example.org"); err == nil || !strings.Contains(err.Error(), "would loop") {
		t.Error(err)
	}
	add("*@example.org", "&ann@example.org")
	has("*@example.org", "&ann@example.org")
	// What the wiki has (2533-2536): the same name of the default domain.
	add("spam@example.org", "&spam")

	// A line in the place of another; and away.
	if err := s.ChangeAlias(ctx, at("info@example.org"), "bob", "&bob@example.org"); err != nil {
		t.Error(err)
	}
	if err := s.ChangeAlias(ctx, at("info@example.org"), "bob", "&bob"); !errors.Is(err, ErrNoAlias) {
		t.Error(err)
	}
	if err := s.ChangeAlias(ctx, at("info@example.org"), "&bob@example.org", "&ann@example.org"); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	has("info@example.org", "&ann@example.org", "&bob@example.org", "./info/Maildir/", "|/usr/local/bin/myfilter \"$SENDER\"")
	if to, err := s.AliasesTo(ctx, at("Ann@example.org"), 10); err != nil || fmt.Sprint(to) != "[{* example.org &ann@example.org} {ann example.org &ann@example.org} {info example.org &ann@example.org}]" {
		t.Errorf("%v %v", to, err)
	}
	var all []Alias
	for after := (Alias{}); ; after = all[len(all)-1] {
		page, err := s.AliasList(ctx, "example.org", after, 2)
		if err != nil {
			t.Fatal(err)
		}
		if all = append(all, page...); len(page) < 2 {
			break
		}
	}
	if whole, err := s.AliasList(ctx, "example.org", Alias{}, 100); err != nil || !slices.Equal(all, whole) || len(all) != 9 {
		t.Errorf("%v, then %v %v", whole, all, err)
	}
	if gone, err := s.RemoveAlias(ctx, at("info@example.org"), "./info/Maildir/"); err != nil || len(gone) != 1 {
		t.Error(gone, err)
	}
	if _, err := s.RemoveAlias(ctx, at("info@example.org"), "./info/Maildir/"); !errors.Is(err, ErrNoAlias) {
		t.Error(err)
	}
	if gone, err := s.RemoveAlias(ctx, at("info@example.org")); err != nil || len(gone) != 3 {
		t.Error(gone, err)
	}
	has("info@example.org")

	// Those of a user go with him, those of a domain with it.
	if _, err := s.RemoveUser(ctx, at("ann@example.org")); err != nil {
		t.Error(err)
	}
	has("ann@example.org")
	if _, err := s.RemoveDomain(ctx, "example.org"); err != nil {
		t.Error(err)
	}
	if err := s.AddDomain(ctx, "example.org"); err != nil {
		t.Error(err)
	}
	has("a@example.org")
	has("b@other.test", "&c@example.org")
	if changes, _, err := s.Changes(ctx, "info", "example.org", 0, 1); err != nil || len(changes) != 1 || !strings.HasPrefix(changes[0].What, "alias line removed: ") {
		t.Error(changes, err)
	}
}

func TestAliasLimits(t *testing.T) { onEngines(t, testAliasLimits) }

func testAliasLimits(t *testing.T, dsn string) {
	dir := t.TempDir()
	now := time.Now()
	clock := func() time.Time { return now }
	stores := []*Store{openOn(t, dsn, dir, clock), openOn(t, dsn, dir, clock)}
	s := stores[0]
	ctx := t.Context()
	if err := s.AddDomain(ctx, "example.org"); err != nil {
		t.Fatal(err)
	}
	if err := s.SetLimits(ctx, "example.org", func(l *Limits) error { l.MaxAliases, l.MaxForwards = 3, 2; return nil }); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ a, line, want string }{
		{"a@example.org", "&far@elsewhere.test", ""}, {"b@example.org", "|true", ""}, {"a@example.org", "|true", ""}, {"b@example.org", "far@elsewhere.test", ""},
		{"c@example.org", "&far@elsewhere.test", "2 aliases that send on"}, {"c@example.org", "# nobody", ""}, {"d@example.org", "|true", "3 aliases: `indigo limit set example.org maxaliases=N`"},
	} {
		err := s.AddAlias(ctx, at(c.a), c.line)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v, want %q", c.a, c.line, err, c.want)
		}
	}
	if err := s.ChangeAlias(ctx, at("c@example.org"), "# nobody", "&far@elsewhere.test"); err == nil {
		t.Error("a change passed the limit")
	}
	// Two who add at once do not both take the last place.
	if err := s.SetLimits(ctx, "example.org", func(l *Limits) error { l.MaxAliases, l.MaxForwards = 4, -1; return nil }); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var added [2]error
	for i, store := range stores {
		wg.Go(func() {
			added[i] = store.AddAlias(context.WithoutCancel(ctx), addr.Address{Local: fmt.Sprint("x", i), Domain: "example.org"}, "|true")
		})
	}
	wg.Wait()
	if (added[0] == nil) == (added[1] == nil) {
		t.Error(added)
	}
}

func TestAliasDomains(t *testing.T) { onEngines(t, testAliasDomains) }

func testAliasDomains(t *testing.T, dsn string) {
	dir := t.TempDir()
	now := time.Now()
	clock := func() time.Time { return now }
	s, other := openOn(t, dsn, dir, clock), openOn(t, dsn, dir, clock)
	ctx := t.Context()
	for _, name := range []string{"example.org", "second.test"} {
		if err := s.AddDomain(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.AddUser(ctx, NewUser{Name: "ann", Domain: "example.org"}); err != nil {
		t.Fatal(err)
	}
	if _, err := other.User(ctx, at("ann@example.net")); !errors.Is(err, ErrNoDomain) {
		t.Fatal(err)
	}
	if err := s.AddAliasDomain(ctx, "Example.NET", "Example.org"); err != nil {
		t.Fatal(err)
	}
	now = now.Add(checkServer)
	for _, store := range []*Store{s, other} {
		if d, err := store.Domain(ctx, "example.NET"); err != nil || d.Name != "example.org" || !strings.HasSuffix(d.Dir, "/example.org") {
			t.Errorf("%+v %v", d, err)
		}
		if u, err := store.User(ctx, at("Ann@Example.net")); err != nil || u.Address().String() != "ann@example.org" {
			t.Errorf("%+v %v", u, err)
		}
		if _, err := store.User(ctx, at("bob@example.net")); !errors.Is(err, ErrNoUser) {
			t.Error(err)
		}
	}
	for _, c := range []struct{ alias, domain, want string }{
		{"example.net", "second.test", "already exists"}, {"second.test", "example.org", "already exists"}, {"example.org", "example.org", "already exists"},
		{"third.test", "example.net", "itself an alias of example.org"}, {"third.test", "nowhere.test", "no such domain"}, {"a b", "example.org", "alias domain"},
		{"../x", "example.org", "alias domain"},
	} {
		if err := s.AddAliasDomain(ctx, c.alias, c.domain); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s of %s: %v, want %s", c.alias, c.domain, err, c.want)
		}
	}
	if err := s.AddDomain(ctx, "example.net"); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "example.org") {
		t.Error(err)
	}
	// What is added by the other name is the domain's.
	if err := s.AddUser(ctx, NewUser{Name: "bob", Domain: "example.net"}); err != nil {
		t.Error(err)
	}
	if err := s.AddAlias(ctx, at("info@example.net"), "ann@example.com"); err != nil {
		t.Error(err)
	}
	if err := s.SetLimits(ctx, "example.net", func(l *Limits) error { l.MaxUsers = 7; return nil }); err != nil {
		t.Error(err)
	}
	if u, err := s.User(ctx, at("bob@example.org")); err != nil || u.Domain != "example.org" {
		t.Errorf("%+v %v", u, err)
	}
	if lines, err := s.Aliases(ctx, at("info@example.org")); err != nil || len(lines) != 1 {
		t.Error(lines, err)
	}
	if l, err := s.Limits(ctx, "example.net"); err != nil || l.MaxUsers != 7 {
		t.Error(l, err)
	}
	if err := s.AddAppPassword(ctx, at("bob@example.net"), AppPassword{Name: "phone", Hash: "x"}); err != nil {
		t.Error(err)
	}
	for _, a := range []string{"bob@example.net", "bob@example.org"} {
		if all, err := s.AppPasswords(ctx, at(a)); err != nil || len(all) != 1 {
			t.Error(a, all, err)
		}
	}
	if users, err := s.Users(ctx, "example.net", "", 10); err != nil || len(users) != 2 {
		t.Error(users, err)
	}
	if err := s.AddAliasDomain(ctx, "example.com", "example.org"); err != nil {
		t.Error(err)
	}
	if to, err := s.AliasesTo(ctx, at("ann@example.net"), 10); err != nil || len(to) != 1 {
		t.Error(to, err)
	}
	if all, err := s.AliasDomains(ctx, ""); err != nil || fmt.Sprint(all) != "[{example.com example.org} {example.net example.org}]" {
		t.Error(all, err)
	}
	// The name goes, the domain stays; with the domain go its names.
	if trash, err := s.RemoveDomain(ctx, "example.net"); err != nil || trash != "" {
		t.Error(trash, err)
	}
	if _, err := s.Domain(ctx, "example.net"); !errors.Is(err, ErrNoDomain) {
		t.Error(err)
	}
	if _, err := s.User(ctx, at("ann@example.org")); err != nil {
		t.Error(err)
	}
	if err := s.RemoveAliasDomain(ctx, "example.org"); err == nil || !strings.Contains(err.Error(), "no alias") {
		t.Error(err)
	}
	if _, err := s.RemoveDomain(ctx, "example.org"); err != nil {
		t.Error(err)
	}
	if err := s.AddDomain(ctx, "example.com"); err != nil {
		t.Error(err)
	}
}
