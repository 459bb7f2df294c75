package directory

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

func address(t testing.TB, text string) addr.Address {
	t.Helper()
	a, err := addr.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// row writes a row as another program does.
func (s *Store) row(t testing.TB, table string, pairs ...any) {
	t.Helper()
	var names []string
	var values []any
	for i := 0; i < len(pairs); i += 2 {
		names, values = append(names, pairs[i].(string)), append(values, pairs[i+1])
	}
	if _, err := s.write.ExecContext(t.Context(), s.engine.insert(table, names...), values...); err != nil {
		t.Fatal(err)
	}
}

// column gives a column's values in order.
func (s *Store) column(t testing.TB, query string) string {
	t.Helper()
	rows, err := s.read.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var one string
		if err := rows.Scan(&one); err != nil {
			t.Fatal(err)
		}
		all = append(all, one)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// furnish gives ann@d.test rows in every table that names a user.
func furnish(t testing.TB, s *Store) time.Time {
	t.Helper()
	ctx := t.Context()
	at := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	if err := errors.Join(s.AddDomain(ctx, "d.test"), s.AddDomain(ctx, "e.test")); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"postmaster@d.test", "ann@d.test", "bob@d.test", "ann@e.test"} {
		if err := s.AddUser(ctx, NewUser{Name: address(t, a).Local, Domain: address(t, a).Domain, Password: "h", Gecos: a, Flags: NoPOP, Scram: "s"}); err != nil {
			t.Fatal(err)
		}
	}
	s.row(t, "lastauth", "user", "ann", "domain", "d.test", "service", "imap", "remote_ip", "192.0.2.1", "quota", 0, "gecos", "", "timestamp", at.Format(stampForm))
	s.row(t, "lastauth", "user", "eve", "domain", "d.test", "service", "imap", "remote_ip", "192.0.2.9", "quota", 0, "gecos", "")
	s.row(t, "userquota", "user", "ann", "domain", "d.test", "quota", 7)
	s.row(t, "atrn_map", "pw_name", "ann", "pw_domain", "d.test", "domain_list", "d.test")
	s.row(t, "vfilter", "emailid", "ann@d.test", "filter_no", 1, "filter_name", "f", "header_name", 1, "comparision", 0, "keyword", "k", "destination", "Spam", "bounce_action", "0", "mailing_list", 0)
	s.row(t, "mailing_list", "emailid", "ann@d.test", "filter_no", 1, "mailing_list", "l@x.test")
	s.row(t, "bulkmail", "emailid", "ann@d.test", "filename", "f")
	s.row(t, "relay", "email", "ann@d.test", "ipaddr", "192.0.2.1", "timestamp", 1)
	s.row(t, "valias", "alias", "ann", "domain", "d.test", "valias_line", "&elsewhere@x.test")
	s.row(t, "valias", "alias", "sales", "domain", "d.test", "valias_line", "&Ann@d.test")
	s.row(t, "valias", "alias", "sales", "domain", "d.test", "valias_line", "&joann@d.test")
	s.row(t, "valias", "alias", "other", "domain", "e.test", "valias_line", "ann@d.test")
	s.row(t, "vlimits", "domain", "d.test", "defaultquota", 5)
	s.row(t, "aliasdomain", "alias", "a.test", "domain", "d.test")
	s.row(t, "ip_alias_map", "ipaddr", "192.0.2.7", "domain", "d.test")
	return at
}

func (s *Store) everything(t testing.TB) string {
	var b strings.Builder
	for _, query := range []string{
		"SELECT concat(pw_name, '@', pw_domain) FROM indimail", "SELECT concat(%user, '@', domain) FROM lastauth", "SELECT concat(%user, '@', domain) FROM userquota", "SELECT concat(pw_name, '@', pw_domain, '/', domain_list) FROM atrn_map",
		"SELECT emailid FROM vfilter", "SELECT emailid FROM mailing_list", "SELECT emailid FROM bulkmail", "SELECT email FROM relay", "SELECT concat(alias, '@', domain, valias_line) FROM valias",
		"SELECT domain FROM vlimits", "SELECT concat(alias, '=', domain) FROM aliasdomain", "SELECT domain FROM ip_alias_map", "SELECT domain FROM indigo_domain",
	} {
		if s.engine == mySQL {
			query = strings.ReplaceAll(query, "%user", "`user`")
		}
		b.WriteString(s.column(t, strings.ReplaceAll(query, "%user", `"user"`)) + "\n")
	}
	return b.String()
}

func TestRename(t *testing.T) { onEngines(t, testRename) }

func testRename(t *testing.T, dsn string) {
	s := openOn(t, dsn, t.TempDir(), time.Now)
	ctx := t.Context()
	at := furnish(t, s)
	before := s.everything(t)
	u, err := s.User(ctx, address(t, "ann@d.test"))
	if err != nil {
		t.Fatal(err)
	}
	rename := func(from, to string) error { return s.RenameUser(ctx, address(t, from), address(t, to)) }
	for _, c := range []struct {
		from, to string
		want     error
	}{
		{"ann@d.test", "bob@d.test", ErrExists}, {"ann@d.test", "sales@d.test", ErrExists}, {"nobody@d.test", "x@d.test", ErrNoUser}, {"ann@d.test", "x@nowhere.test", ErrNoDomain},
		{"ann@d.test", "ANN@d.test", nil}, {"postmaster@d.test", "x@d.test", nil}, {"ann@d.test", "-x@d.test", nil},
	} {
		if err := rename(c.from, c.to); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s to %s: %v", c.from, c.to, err)
		}
	}
	if got := s.everything(t); got != before {
		t.Errorf("refused, and changed:\n%s", got)
	}
	if err := rename("Ann@d.test", "Eve@d.test"); err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer("&Ann@d.test", "&eve@d.test", "joann@d.test", "joann@d.test", "ann@e.test", "ann@e.test", "ann@d.test", "eve@d.test", "eve@d.test ann@d.test", "eve@d.test").Replace(before)
	sorted := func(text string) string {
		lines := strings.Split(text, "\n")
		for i, line := range lines {
			words := strings.Fields(line)
			slices.Sort(words)
			lines[i] = strings.Join(slices.Compact(words), " ")
		}
		return strings.Join(lines, "\n")
	}
	if got := sorted(s.everything(t)); got != sorted(want) {
		t.Errorf("%s, want\n%s", got, sorted(want))
	}
	got, err := s.User(ctx, address(t, "eve@d.test"))
	if err != nil || got.Dir != u.Dir || got.Password != "h" || got.GID != int(NoPOP) || !got.Changed.Equal(u.Changed) {
		t.Errorf("%+v %v, before %+v", got, err, u)
	}
	// The log-in keeps its time; what a former eve left is gone.
	if l, err := s.LastLogins(ctx, got.Address()); err != nil || len(l) != 1 || l[0].IP != "192.0.2.1" || !l[0].At.Equal(at) {
		t.Errorf("%+v %v", l, err)
	}
	if _, err := s.User(ctx, u.Address()); !errors.Is(err, ErrNoUser) {
		t.Error(err)
	}
	// The same again is no error; a new ann gets a home of her own, and the flags and aliases of nobody.
	if err := rename("ann@d.test", "eve@d.test"); err != nil {
		t.Error(err)
	}
	if err := s.AddUser(ctx, NewUser{Name: "ann", Domain: "d.test"}); err != nil {
		t.Fatal(err)
	}
	if again, err := s.User(ctx, u.Address()); err != nil || again.Dir != u.Dir+".1" {
		t.Errorf("%+v %v", again, err)
	}
	if err := rename("ann@d.test", "eve@d.test"); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	if _, err := s.RemoveUser(ctx, u.Address()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(u.Dir, "Maildir", "new")); err != nil {
		t.Error(err)
	}
	// And back: all is as before, but for what nobody had.
	if err := rename("eve@d.test", "ann@d.test"); err != nil {
		t.Fatal(err)
	}
	before = strings.ReplaceAll(strings.ReplaceAll(before, " eve@d.test", ""), "&Ann", "&ann")
	if got := s.everything(t); got != before {
		t.Errorf("%s, want\n%s", got, before)
	}
	changes, _, err := s.Changes(ctx, "ann", "d.test", 0, 1)
	if err != nil || changes[0].What != "user renamed from eve@d.test" {
		t.Errorf("%v %v", changes, err)
	}

	// To another domain, which may have no more.
	if err := s.SetLimits(ctx, "e.test", func(l *Limits) error { l.MaxUsers = 1; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := rename("ann@d.test", "zoe@e.test"); err == nil || !strings.Contains(err.Error(), "its most") {
		t.Error(err)
	}
	if got := s.everything(t); strings.ReplaceAll(got, "d.test e.test\n", "d.test\n") != strings.ReplaceAll(before, "d.test e.test\n", "d.test\n") {
		t.Errorf("refused, and changed:\n%s", got)
	}
	if err := s.ClearLimits(ctx, "e.test"); err != nil {
		t.Fatal(err)
	}
	if err := rename("ann@d.test", "zoe@e.test"); err != nil {
		t.Fatal(err)
	}
	if got := s.column(t, "SELECT valias_line FROM valias"); !strings.Contains(got, "&zoe@e.test") || !strings.Contains(got, " zoe@e.test") || strings.Contains(got, " ann@d.test") {
		t.Error(got)
	}
	// The domain that her home is in does not go to the trash with it.
	if _, err := s.RemoveDomain(ctx, "d.test"); err == nil || !strings.Contains(err.Error(), "zoe@e.test") {
		t.Error(err)
	}
	if _, err := s.Domain(ctx, "d.test"); err != nil {
		t.Error(err)
	}
	if _, _, err := s.MoveUser(ctx, address(t, "zoe@e.test"), ""); err != nil {
		t.Fatal(err)
	}
	if z, err := s.User(ctx, address(t, "zoe@e.test")); err != nil || !strings.HasSuffix(z.Dir, "/domains/e.test/zoe") {
		t.Errorf("%+v %v", z, err)
	}
	if _, err := s.RemoveDomain(ctx, "d.test"); err != nil {
		t.Error(err)
	}
}

func TestRenameDomain(t *testing.T) { onEngines(t, testRenameDomain) }

func testRenameDomain(t *testing.T, dsn string) {
	s := openOn(t, dsn, t.TempDir(), time.Now)
	ctx := t.Context()
	at := furnish(t, s)
	before := s.everything(t)
	for _, c := range [][2]string{{"d.test", "e.test"}, {"d.test", "a.test"}, {"nowhere.test", "x.test"}, {"d.test", "x y"}, {"d.test", "d.test"}} {
		if err := s.RenameDomain(ctx, c[0], c[1]); err == nil {
			t.Errorf("%v", c)
		}
	}
	if got := s.everything(t); got != before {
		t.Errorf("refused, and changed:\n%s", got)
	}
	if err := s.RenameDomain(ctx, "D.test", "New.test"); err != nil {
		t.Fatal(err)
	}
	got := s.everything(t)
	if strings.Contains(strings.ToLower(got), "d.test") || strings.Count(got, "new.test") != strings.Count(strings.ToLower(before), "d.test") {
		t.Errorf("%s, before\n%s", got, before)
	}
	u, err := s.User(ctx, address(t, "ann@new.test"))
	if err != nil || !strings.HasSuffix(u.Dir, "/d.test/ann") {
		t.Errorf("%+v %v", u, err)
	}
	if l, err := s.LastLogins(ctx, u.Address()); err != nil || len(l) != 1 || !l[0].At.Equal(at) {
		t.Errorf("%+v %v", l, err)
	}
	// A new domain of the old name has a directory of its own.
	if err := errors.Join(s.AddDomain(ctx, "d.test"), s.AddUser(ctx, NewUser{Name: "ann", Domain: "d.test"})); err != nil {
		t.Fatal(err)
	}
	if n, err := s.User(ctx, address(t, "ann@d.test")); err != nil || n.Dir == u.Dir {
		t.Errorf("%+v %v", n, err)
	}
	if _, err := s.RemoveDomain(ctx, "d.test"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(u.Dir); err != nil {
		t.Error(err)
	}
	// An alias of a domain; and back.
	if err := s.RenameDomain(ctx, "A.test", "b.test"); err != nil {
		t.Fatal(err)
	}
	if got := s.column(t, "SELECT concat(alias, '=', domain) FROM aliasdomain"); got != "b.test=new.test" {
		t.Error(got)
	}
	if err := errors.Join(s.RenameDomain(ctx, "b.test", "a.test"), s.RenameDomain(ctx, "new.test", "d.test")); err != nil {
		t.Fatal(err)
	}
	if got := s.everything(t); got != before {
		t.Errorf("%s, want\n%s", got, before)
	}
	var changes []Change
	if changes, _, err = s.Changes(ctx, "", "d.test", 0, 1); err != nil || changes[0].What != "domain renamed from new.test" {
		t.Errorf("%v %v", changes, err)
	}
}

// TestSettle looks at what removals stand on: how long an answer from before a change may be used.
func TestSettle(t *testing.T) {
	s := open(t, t.TempDir(), time.Now)
	begun := time.Now()
	if err := s.settle(t.Context()); err != nil || time.Since(begun) < s.cache.every {
		t.Error(err, time.Since(begun))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s.settle(ctx) == nil {
		t.Error("waited for nothing")
	}
}
