package directory

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

func TestLimits(t *testing.T) { onEngines(t, testLimits) }

func testLimits(t *testing.T, dsn string) {
	dir := t.TempDir()
	now := time.Now()
	clock := func() time.Time { return now }
	s, other := openOn(t, dsn, dir, clock), openOn(t, dsn, dir, clock)
	ctx := t.Context()
	if _, err := s.Limits(ctx, "example.org"); err == nil {
		t.Error("limits of no domain")
	}
	if err := s.AddDomain(ctx, "example.org"); err != nil {
		t.Fatal(err)
	}
	a, b := addr.Address{Local: "a", Domain: "example.org"}, addr.Address{Local: "b", Domain: "example.org"}
	add := func(a addr.Address) error {
		return s.AddUser(ctx, NewUser{Name: a.Local, Domain: a.Domain, Password: "x"})
	}
	if err := add(a); err != nil {
		t.Fatal(err)
	}
	if l, err := s.Limits(ctx, "Example.org"); err != nil || l != NoLimits() {
		t.Fatalf("%+v %v", l, err)
	}
	set := func(change func(*Limits)) {
		t.Helper()
		// By another process, as a rule.
		if err := other.SetLimits(ctx, "Example.ORG", func(l *Limits) error { change(l); return nil }); err != nil {
			t.Fatal(err)
		}
		now = now.Add(checkServer)
	}
	denied := func(a addr.Address, flag Flags, want string) {
		t.Helper()
		u, err := s.User(ctx, a)
		if err != nil {
			t.Fatal(err)
		}
		if why, err := s.Denied(ctx, u, flag); err != nil || why != want {
			t.Errorf("%s %v: %q %v, want %q", a, flag.Names(), why, err, want)
		}
	}
	// All that is written is read.
	want := Limits{
		DomainExpiry: 1, PasswordExpiry: 2, MaxUsers: 3, MaxAliases: 4, MaxForwards: 5, MaxResponders: 6, MaxLists: 7, DiskQuota: 8, MaxMessages: 9,
		DefaultQuota: 10, DefaultMessages: 11, Disabled: DomainFlags(), PermAccount: 1, PermAlias: 2, PermForward: 3, PermResponder: 4, PermList: 511, PermQuota: 6, PermDefaultQuota: 3,
	}
	set(func(l *Limits) { *l = want })
	if l, err := s.Limits(ctx, "example.org"); err != nil || l != want {
		t.Errorf("%+v %v", l, err)
	}
	set(func(l *Limits) { *l = NoLimits() })
	if l, err := s.Limits(ctx, "example.org"); err != nil || l != NoLimits() {
		t.Errorf("%+v %v", l, err)
	}
	// A new user has the domain's default quota; more than the most are not added.
	set(func(l *Limits) { l.DefaultQuota, l.MaxUsers = 52428800, 2 })
	if err := add(b); err != nil {
		t.Fatal(err)
	}
	if u, err := s.User(ctx, b); err != nil || u.Quota != "52428800" {
		t.Errorf("%+v %v", u, err)
	}
	if err := add(addr.Address{Local: "c", Domain: "example.org"}); err == nil {
		t.Error("a third user of two")
	}
	if _, err := os.Lstat(filepath.Join(s.config.MailRoot, "example.org", "c")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the home of who was not added is there: %v", err)
	}
	// The domain's flags hold for all but who overrides them; a user's own hold for him.
	denied(a, NoPOP, "")
	set(func(l *Limits) { l.Disabled = NoPOP })
	denied(a, NoPOP, "NO_POP is set for the domain")
	denied(a, NoIMAP, "")
	flags := func(set, clear Flags) {
		t.Helper()
		if err := s.SetFlags(ctx, a, set, clear); err != nil {
			t.Fatal(err)
		}
	}
	flags(Override|NoIMAP, 0)
	denied(a, NoPOP, "")
	denied(a, NoIMAP, "NO_IMAP is set for the user")
	denied(b, NoPOP, "NO_POP is set for the domain")
	flags(0, NoIMAP)
	denied(a, NoIMAP, "")
	flags(0, Override)
	denied(a, NoPOP, "NO_POP is set for the domain")
	// Expiry.
	set(func(l *Limits) { l.Disabled, l.PasswordExpiry = 0, now.Unix()+1000 })
	denied(a, NoPOP, "")
	now = now.Add(1001 * time.Second)
	denied(a, NoPOP, "the domain's passwords have expired")
	set(func(l *Limits) { l.DomainExpiry = now.Unix() - 1 })
	flags(Override, 0)
	denied(a, NoPOP, "the domain has expired")
	if err := s.ClearLimits(ctx, "example.org"); err != nil {
		t.Fatal(err)
	}
	denied(a, NoPOP, "")
	// A domain that is made again has none of its old limits.
	set(func(l *Limits) { l.Disabled = NoPOP })
	if _, err := s.RemoveDomain(ctx, "example.org"); err != nil {
		t.Fatal(err)
	}
	if err := s.AddDomain(ctx, "example.org"); err != nil {
		t.Fatal(err)
	}
	if l, err := s.Limits(ctx, "example.org"); err != nil || l != NoLimits() {
		t.Errorf("%+v %v", l, err)
	}
}

// TestChanges: each change is written down with who made it, in its transaction; what changed nothing is not.
func TestChanges(t *testing.T) { onEngines(t, testChanges) }

func testChanges(t *testing.T, dsn string) {
	s := openOn(t, dsn, t.TempDir(), time.Now)
	s.config.Who = "a name that is longer than ä column is wide"
	ctx := t.Context()
	a := addr.Address{Local: "a", Domain: "example.org"}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.AddDomain(ctx, "example.org"))
	if s.AddDomain(ctx, "example.org") == nil {
		t.Error("added twice")
	}
	must(s.AddUser(ctx, NewUser{Name: "a", Domain: "example.org", Password: "$6$secret"}))
	must(s.SetPassword(ctx, a, "$6$another-secret", ""))
	must(s.UpdateUser(ctx, NewUser{Name: "a", Domain: "example.org", Quota: "5S", Gecos: strings.Repeat("ä", 24), Password: "$6$a-third"}))
	must(s.SetFlags(ctx, a, NoPOP|NoIMAP, NoSMTP))
	must(s.SetLimits(ctx, "example.org", func(l *Limits) error { l.DefaultQuota, l.Disabled = 5, NoPOP; return nil }))
	if s.SetLimits(ctx, "example.org", func(l *Limits) error { l.DefaultQuota = 7; return errors.New("no") }) == nil {
		t.Error("no error")
	}
	must(s.ClearLimits(ctx, "example.org"))
	must(s.ClearLimits(ctx, "example.org"))
	_, err := s.RemoveUser(ctx, a)
	must(err)
	_, err = s.RemoveDomain(ctx, "example.org")
	must(err)
	var got []string
	for before, more := int64(0), true; more; {
		changes, next, err := s.Changes(ctx, "", "Example.ORG", before, 3)
		must(err)
		for _, c := range changes {
			got = append(got, c.User+"@"+c.Domain+" "+c.What)
			if c.Who != "a name that is longer than ä co" && c.Who != "a name that is longer than ä col" {
				t.Errorf("by %q", c.Who)
			}
			if age := time.Since(c.Time); age < -time.Minute || age > time.Minute {
				t.Errorf("at %v", c.Time)
			}
		}
		before, more = next, len(changes) == 3
	}
	want := []string{
		"@example.org domain removed with its users", "a@example.org user removed", "@example.org limits cleared", "@example.org limits set: defaultquota=5 NO_POP=1",
		"a@example.org flags set: NO_POP NO_IMAP; flags cleared: NO_SMTP", "a@example.org password set, name " + strings.Repeat("ä", 24) + ", quota 5S",
		"a@example.org password set", "a@example.org user added", "@example.org domain added",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if changes, _, err := s.Changes(ctx, "A", "example.org", 0, 10); err != nil || len(changes) != 5 {
		t.Errorf("%v %v", changes, err)
	}
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		text  string
		width int
		want  string
	}{{"abc", 3, "abc"}, {"abcd", 3, "abc"}, {"aäb", 2, "a"}, {"ää", 3, "ä"}, {"\xff\xff", 1, ""}} {
		if got := cut(c.text, c.width); got != c.want {
			t.Errorf("%q to %d: %q, want %q", c.text, c.width, got, c.want)
		}
	}
}
