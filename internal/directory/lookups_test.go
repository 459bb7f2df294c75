package directory

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

func TestLookups(t *testing.T) { onEngines(t, testLookups) }

func testLookups(t *testing.T, dsn string) {
	s := openOn(t, dsn, t.TempDir(), time.Now)
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	exec := func(statement string, args ...any) {
		t.Helper()
		_, err := s.write.ExecContext(ctx, s.engine.rebind(statement), args...)
		must(err)
	}
	must(s.AddDomain(ctx, "example.org"))
	must(s.AddDomain(ctx, "other.test"))
	a := addr.Address{Local: "a", Domain: "example.org"}
	must(s.AddUser(ctx, NewUser{Name: "A", Domain: "Example.org", Password: "x", Gecos: "An A"}))

	// When the user was added and the password changed; the second change takes the first one's place.
	services := func() (names []string) {
		t.Helper()
		logins, err := s.LastAuth(ctx, a)
		must(err)
		for _, l := range logins {
			if d := time.Since(l.At); l.IP != "127.0.0.1" || d < -2*time.Second || d > 2*time.Minute {
				t.Errorf("%+v, %v ago", l, d)
			}
			names = append(names, l.Service)
		}
		slices.Sort(names)
		return names
	}
	if got := services(); !slices.Equal(got, []string{"add"}) {
		t.Error(got)
	}
	must(s.SetPassword(ctx, a, "y", ""))
	must(s.SetPassword(ctx, a, "z", ""))
	must(s.UpdateUser(ctx, NewUser{Name: "a", Domain: "example.org", Gecos: "B"}))
	must(s.UpdateUser(ctx, NewUser{Name: "a", Domain: "example.org", Password: "z2"}))
	if got := services(); !slices.Equal(got, []string{"add", "pass"}) {
		t.Error(got)
	}

	// POP before SMTP.
	now := time.Now()
	exec("INSERT INTO relay (email, ipaddr, "+s.engine.name("timestamp")+") VALUES (?, ?, ?)", "a@example.org", "192.0.2.1", now.Add(-time.Minute).Unix())
	for _, tc := range []struct {
		ip    string
		since time.Duration
		want  bool
	}{{"192.0.2.1", time.Hour, true}, {"192.0.2.1", time.Second, false}, {"192.0.2.2", time.Hour, false}} {
		if got, err := s.RelayAllowed(ctx, a, tc.ip, now.Add(-tc.since)); err != nil || got != tc.want {
			t.Errorf("%+v: %v %v", tc, got, err)
		}
	}

	// Aliases and other names.
	exec("INSERT INTO valias (alias, domain, valias_line) VALUES (?, ?, ?)", "team", "example.org", "&a@example.org")
	exec("INSERT INTO aliasdomain (alias, domain) VALUES (?, ?)", "alias.test", "example.org")
	if lines, err := s.AliasLines(ctx, addr.Address{Local: "Team", Domain: "example.org"}); err != nil || !slices.Equal(lines, []string{"&a@example.org"}) {
		t.Error(lines, err)
	}
	must(s.SetLimits(ctx, "example.org", func(l *Limits) error { l.MaxUsers = 9; return nil }))
	for _, name := range []string{"example.org", "Alias.test"} {
		info, err := s.DomainInfo(ctx, name)
		if err != nil || info.Name != "example.org" || info.Users != 1 || !info.Limited || info.Limits.MaxUsers != 9 || !slices.Equal(info.AliasDomains, []string{"alias.test"}) {
			t.Errorf("%+v %v", info, err)
		}
	}
	if info, err := s.DomainInfo(ctx, "other.test"); err != nil || info.Limited || info.Users != 0 || len(info.AliasDomains) != 0 {
		t.Errorf("%+v %v", info, err)
	}
	if _, err := s.DomainInfo(ctx, "nowhere.test"); !errors.Is(err, ErrNoDomain) {
		t.Error(err)
	}
	if counts, err := s.HomeCounts(ctx, "example.org"); err != nil || len(counts) != 1 || counts[0].Users != 1 || !strings.HasSuffix(counts[0].Dir, "/example.org") {
		t.Error(counts, err)
	}

	// Addresses to domains: in any writing of the address.
	must(s.MapIP(ctx, netip.MustParseAddr("::ffff:192.0.2.17"), "other.test"))
	must(s.MapIP(ctx, netip.MustParseAddr("2001:db8::1"), "other.test"))
	must(s.MapIP(ctx, netip.MustParseAddr("192.0.2.17"), "Example.org"))
	if all, err := s.IPDomains(ctx); err != nil || fmt.Sprint(all) != "[{192.0.2.17 example.org} {2001:db8::1 other.test}]" {
		t.Error(all, err)
	}
	for ip, want := range map[string]string{"192.0.2.17": "example.org", "::ffff:192.0.2.17": "example.org", "2001:0db8::1": "other.test", "192.0.2.18": ""} {
		if got, err := s.DomainOfIP(ctx, netip.MustParseAddr(ip)); err != nil || got != want {
			t.Errorf("%s: %q %v", ip, got, err)
		}
	}
	if err := s.MapIP(ctx, netip.MustParseAddr("192.0.2.1"), "nowhere.test"); !errors.Is(err, ErrNoDomain) {
		t.Error(err)
	}
	if err := s.UnmapIP(ctx, netip.MustParseAddr("192.0.2.17"), "other.test"); err == nil {
		t.Error("took away what is not there")
	}
	must(s.UnmapIP(ctx, netip.MustParseAddr("192.0.2.17"), "example.org"))

	v, err := s.Server(ctx)
	if err != nil || v.Version == "" || time.Since(v.Time).Abs() > time.Minute {
		t.Errorf("%+v %v", v, err)
	}
	if s.engine != sqLite && (v.Host != "127.0.0.1" || v.Port == "" || v.User != "indimail" || v.Database != "indimail" || v.Connections < 1 || v.Most < v.Connections || v.TimeZone == "") {
		t.Errorf("%+v", v)
	}
	if s.engine == sqLite && v.Path == "" {
		t.Errorf("%+v", v)
	}
}

func TestAdmins(t *testing.T) { onEngines(t, testAdmins) }

func testAdmins(t *testing.T, dsn string) {
	s := openOn(t, dsn, t.TempDir(), time.Now)
	ctx := t.Context()
	fails := func(err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	fails(s.AddAdmin(ctx, "carol", "hash"), nil)
	fails(s.AddAdmin(ctx, "carol", "other"), ErrExists)
	fails(s.SetAdminPassword(ctx, "nobody", "x"), ErrNoAdmin)
	fails(s.LockAdmin(ctx, "nobody", true), ErrNoAdmin)
	fails(s.Grant(ctx, Privilege{"nobody", "vuserinfo", "*"}), ErrNoAdmin)
	if s.AddAdmin(ctx, "a/b", "x") == nil || s.Grant(ctx, Privilege{"carol", strings.Repeat("x", 65), "*"}) == nil {
		t.Error("took what does not fit")
	}
	stored := func() (string, bool) {
		t.Helper()
		hash, locked, err := s.AdminPassword(ctx, "carol")
		fails(err, nil)
		return hash, locked
	}
	if hash, locked := stored(); hash != "hash" || locked {
		t.Error(hash, locked)
	}
	fails(s.LockAdmin(ctx, "carol", true), nil)
	fails(s.LockAdmin(ctx, "carol", true), nil)
	if _, locked := stored(); !locked {
		t.Error("not locked")
	}
	fails(s.SetAdminPassword(ctx, "carol", "new"), nil)
	if hash, locked := stored(); hash != "new" || locked {
		t.Error(hash, locked)
	}
	fails(s.Grant(ctx, Privilege{"carol", "vuserinfo", "*"}), nil)
	fails(s.Grant(ctx, Privilege{"carol", "vuserinfo", "-q *"}), nil)
	fails(s.Grant(ctx, Privilege{"carol", "vadduser", "*"}), nil)
	if all, err := s.Privileges(ctx, "carol"); err != nil || fmt.Sprint(all) != "[{carol vadduser *} {carol vuserinfo -q *}]" {
		t.Error(all, err)
	}
	if n, err := s.Revoke(ctx, "carol", "vadduser"); err != nil || n != 1 {
		t.Error(n, err)
	}
	fails(s.RemoveAdmin(ctx, "carol"), nil)
	if all, err := s.Privileges(ctx, ""); err != nil || len(all) != 0 {
		t.Error(all, err)
	}
	if _, err := s.Admins(ctx, "carol"); !errors.Is(err, ErrNoAdmin) {
		t.Error(err)
	}
	changes, _, err := s.Changes(ctx, "carol", "", 0, 100)
	if err != nil || len(changes) < 6 || strings.Contains(fmt.Sprint(changes), "hash") {
		t.Error(changes, err)
	}
}

func TestCacheStats(t *testing.T) {
	s := openOn(t, "", t.TempDir(), time.Now)
	ctx := context.Background()
	if err := s.AddDomain(ctx, "example.org"); err != nil {
		t.Fatal(err)
	}
	before := s.CacheStats()
	for range 3 {
		s.Domain(ctx, "example.org")
		s.Domain(ctx, "nowhere.test")
	}
	v := s.CacheStats()
	if v.Misses-before.Misses != 2 || v.Hits-before.Hits != 4 || v.Negative-before.Negative != 2 || v.Domains != 1 || v.Missing != 1 || v.Stale {
		t.Errorf("%+v after %+v", v, before)
	}
	if err := s.AddDomain(ctx, "other.test"); err != nil {
		t.Fatal(err)
	}
	if w := s.CacheStats(); w.Clearings <= v.Clearings || w.Domains != 0 || w.Missing != 0 {
		t.Errorf("%+v after %+v", w, v)
	}
}
