package directory

import (
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

func TestAppPasswords(t *testing.T) { onEngines(t, testAppPasswords) }

func testAppPasswords(t *testing.T, dsn string) {
	dir := t.TempDir()
	now := time.Now().Truncate(time.Second)
	clock := func() time.Time { return now }
	s, other := openOn(t, dsn, dir, clock), openOn(t, dsn, dir, clock)
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.AddDomain(ctx, "example.org"))
	a := addr.Address{Local: "Alice", Domain: "Example.ORG"}
	if _, err := s.AppPasswords(ctx, a); !errors.Is(err, ErrNoUser) {
		t.Error(err)
	}
	add := func(name string, services ...string) error {
		return other.AddAppPassword(ctx, a, AppPassword{Name: name, Hash: strings.Repeat("0", 63) + name[:1], Services: services})
	}
	if err := add("phone"); !errors.Is(err, ErrNoUser) {
		t.Error(err)
	}
	must(s.AddUser(ctx, NewUser{Name: "alice", Domain: "example.org", Password: "x"}))
	now = now.Add(time.Second)
	must(add("Phone"))
	must(add("scanner", "smtp"))
	if err := add("PHONE"); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	if err := add("tv", "web"); err == nil {
		t.Error("a service that is none")
	}
	if err := add("a b"); err == nil {
		t.Error("a name with a blank")
	}
	now = now.Add(time.Second)
	names := func() (names []string) {
		t.Helper()
		all, err := s.AppPasswords(ctx, a)
		must(err)
		for _, p := range all {
			names = append(names, fmt.Sprint(p.Name, p.Services, p.Allows("imap"), p.Allows("smtp"), !p.Used.IsZero()))
		}
		return names
	}
	if got := names(); !slices.Equal(got, []string{"phone[] true true false", "scanner[smtp] false true false"}) {
		t.Error(got)
	}
	must(s.AppPasswordUsed(ctx, a, "phone"))
	if got := names(); got[0] != "phone[] true true true" {
		t.Error(got)
	}
	must(other.RevokeAppPassword(ctx, a, "Phone"))
	if err := other.RevokeAppPassword(ctx, a, "phone"); !errors.Is(err, ErrNoAppPassword) {
		t.Error(err)
	}
	now = now.Add(time.Second)
	if got := names(); len(got) != 1 {
		t.Error(got)
	}
	for i := 0; ; i++ {
		if err := add(fmt.Sprintf("%c%d", 'a'+i%26, i)); err != nil {
			if i != maxAppPasswords-1 {
				t.Errorf("%d were added: %v", i, err)
			}
			break
		}
	}
	changes, _, err := s.Changes(ctx, "alice", "example.org", 0, 100)
	must(err)
	var what []string
	for _, c := range changes {
		what = append(what, c.What)
	}
	if !slices.Contains(what, "app password phone revoked") || !slices.Contains(what, "app password scanner added") {
		t.Error(what)
	}
	// They go with their user, and with the domain.
	_, err = s.RemoveUser(ctx, a)
	must(err)
	must(s.AddUser(ctx, NewUser{Name: "alice", Domain: "example.org", Password: "x"}))
	if got := names(); len(got) != 0 {
		t.Error(got)
	}
	must(add("phone"))
	_, err = s.RemoveDomain(ctx, "example.org")
	must(err)
	must(s.AddDomain(ctx, "example.org"))
	must(s.AddUser(ctx, NewUser{Name: "alice", Domain: "example.org", Password: "x"}))
	now = now.Add(time.Second)
	if got := names(); len(got) != 0 {
		t.Error(got)
	}
}

func TestStoredColumns(t *testing.T) { onEngines(t, testStoredColumns) }

func testStoredColumns(t *testing.T, dsn string) {
	s := openOn(t, dsn, t.TempDir(), time.Now)
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.AddDomain(ctx, "example.org"))
	a := addr.Address{Local: "alice", Domain: "example.org"}
	must(s.AddUser(ctx, NewUser{Name: "alice", Domain: "example.org", Password: "old"}))
	columns := func(passwd, scram string) {
		t.Helper()
		var p string
		var k sql.NullString
		must(s.read.QueryRow("SELECT pw_passwd, scram FROM indimail").Scan(&p, &k))
		// IndiMail takes a column that is not NULL for keys.
		if p != passwd || k.String != scram || k.Valid != (scram != "") {
			t.Errorf("%q %+v, want %q %q", p, k, passwd, scram)
		}
	}
	columns("old", "")
	must(s.SetPassword(ctx, a, "new", "keys"))
	columns("new", "keys")
	u, err := s.User(ctx, a)
	must(err)
	renewed, err := s.RenewPassword(ctx, u, "renewed", "keys2", "renewed")
	if must(err); !renewed {
		t.Error("not renewed")
	}
	columns("renewed", "keys2")
	// The row is another one since u was read.
	for _, stale := range []User{u, {Name: "alice", Domain: "example.org", Password: "renewed"}, {Name: "nobody", Domain: "example.org"}} {
		renewed, err := s.RenewPassword(ctx, stale, "again", "", "renewed")
		if must(err); renewed {
			t.Errorf("%+v was renewed", stale)
		}
	}
	columns("renewed", "keys2")
	if err := s.SetPassword(ctx, a, strings.Repeat("x", 129), ""); err == nil {
		t.Error("129 bytes")
	}
	// Many at once: each is done or not by itself.
	must(s.AddUser(ctx, NewUser{Name: "bob", Domain: "example.org", Password: "b1"}))
	must(s.AddUser(ctx, NewUser{Name: "carl", Domain: "example.org", Password: "c1"}))
	u, err = s.User(ctx, a)
	must(err)
	bob, err := s.User(ctx, addr.Address{Local: "bob", Domain: "example.org"})
	must(err)
	changes, _, err := s.Changes(ctx, "", "example.org", 0, 100)
	must(err)
	left, err := s.RenewPasswords(ctx, []Renewal{{u, "many", "keys3"}, {User{Name: "carl", Domain: "example.org", Password: "other"}, "c2", ""}, {bob, strings.Repeat("x", 129), ""}, {bob, "b2", ""}}, "renewed")
	must(err)
	if left[0] != nil || !errors.Is(left[1], ErrChanged) || left[2] == nil || errors.Is(left[2], ErrChanged) || left[3] != nil {
		t.Error(left)
	}
	for name, want := range map[string]string{"alice": "many keys3", "bob": "b2 ", "carl": "c1 "} {
		if u, err := s.User(ctx, addr.Address{Local: name, Domain: "example.org"}); err != nil || u.Password+" "+u.Scram != want {
			t.Errorf("%s has %q %q, %v", name, u.Password, u.Scram, err)
		}
	}
	if after, _, err := s.Changes(ctx, "", "example.org", 0, 100); err != nil || len(after) != len(changes)+2 || after[0].What != "renewed" {
		t.Errorf("%+v %v", after, err)
	}
	_, err = s.write.ExecContext(ctx, "DELETE FROM indimail WHERE pw_name <> 'alice'")
	must(err)
	// A new hash takes keys of the password before along.
	must(s.UpdateUser(ctx, NewUser{Name: "alice", Domain: "example.org", Password: "third"}))
	columns("third", "")
	must(s.SetPassword(ctx, a, "fourth", ""))
	columns("fourth", "")
}

// TestMigrationToAppPasswords: a database of the version before gets the table, and loses empty columns scram.
func TestMigrationToAppPasswords(t *testing.T) { onEngines(t, testMigrationToAppPasswords) }

func testMigrationToAppPasswords(t *testing.T, dsn string) {
	dir := t.TempDir()
	ctx := t.Context()
	s := openOn(t, dsn, dir, time.Now)
	for _, statement := range []string{
		"DROP TABLE indigo_app_password", "DELETE FROM goose_db_version WHERE version_id >= 3",
		"INSERT INTO indimail (pw_name, pw_domain, pw_passwd, pw_gecos, scram) VALUES ('a', 'example.org', 'x', '', ''), ('b', 'example.org', 'x', '', 'keys')",
	} {
		if _, err := s.write.ExecContext(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	s = openOn(t, dsn, filepath.Clean(dir), time.Now)
	var n, keys int
	if err := s.read.QueryRowContext(ctx, "SELECT count(*), count(scram) FROM indimail").Scan(&n, &keys); err != nil || n != 2 || keys != 1 {
		t.Errorf("%d rows, %d with keys: %v", n, keys, err)
	}
	if err := s.read.QueryRowContext(ctx, "SELECT count(*) FROM indigo_app_password").Scan(&n); err != nil || n != 0 {
		t.Error(n, err)
	}
}
