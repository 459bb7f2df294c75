package directory

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/test/database"
)

func open(t testing.TB, dir string, now func() time.Time) *Store {
	t.Helper()
	return openOn(t, "", dir, now)
}

// asGiven guards nothing.
type asGiven struct{}

func (asGiven) Guard(_ context.Context, _ addr.Address, passwd, scram string) (string, string, error) {
	return passwd, scram, nil
}

func (asGiven) Restore(_ context.Context, _ addr.Address, passwd, scram string) (string, string, error) {
	return passwd, scram, nil
}

func (asGiven) Move(_, _ addr.Address, passwd, scram string) (string, string, error) {
	return passwd, scram, nil
}

func openOn(t testing.TB, dsn, dir string, now func() time.Time) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{DSN: dsn, Path: filepath.Join(dir, "db"), MailRoot: filepath.Join(dir, "domains"), Now: now, Secrets: asGiven{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// onEngines runs a test on SQLite and on a server of each kind that is installed; every test gets a database of its own.
func onEngines(t *testing.T, test func(t *testing.T, dsn string)) {
	t.Run("sqlite", func(t *testing.T) { test(t, "") })
	for _, kind := range []string{"mariadb", "postgres"} {
		t.Run(kind, func(t *testing.T) { test(t, server(t, kind).DSN()) })
	}
}

func server(t testing.TB, kind string) *database.Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := database.Start(ctx, kind)
	if errors.Is(err, database.ErrMissing) && os.Getenv("INDIGO_REQUIRE_PEERS") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Remove)
	return s
}

func TestUsersAndDomains(t *testing.T) { onEngines(t, testUsersAndDomains) }

func testUsersAndDomains(t *testing.T, dsn string) {
	dir := t.TempDir()
	now := time.Now()
	clock := func() time.Time { return now }
	s, other := openOn(t, dsn, dir, clock), openOn(t, dsn, dir, clock)
	ctx := t.Context()
	a := addr.Address{Local: "Alice", Domain: "Example.org"}
	if _, err := s.User(ctx, a); !errors.Is(err, ErrNoDomain) {
		t.Fatal(err)
	}
	if err := s.AddDomain(ctx, "Example.org"); err != nil {
		t.Fatal(err)
	}
	if err := s.AddDomain(ctx, "example.org"); !errors.Is(err, ErrExists) {
		t.Fatal(err)
	}
	if _, err := s.User(ctx, a); !errors.Is(err, ErrNoUser) {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "../x", "a/b", ".x", "a\x00", "a b", "a:b"} {
		if err := s.AddUser(ctx, NewUser{Name: bad, Domain: "example.org"}); err == nil {
			t.Errorf("user %q was added", bad)
		}
	}
	if err := s.AddUser(ctx, NewUser{Name: "alice", Domain: "example.org", Password: "h1", Gecos: "Alice"}); err != nil {
		t.Fatal(err)
	}
	u, err := s.User(ctx, a)
	if err != nil || u.Password != "h1" || u.Dir != filepath.Join(dir, "domains", "example.org", "alice") || u.Quota != "NOQUOTA" {
		t.Fatalf("%+v %v", u, err)
	}
	if _, err := os.Stat(filepath.Join(u.Dir, "Maildir", "tmp")); err != nil {
		t.Error(err)
	}
	// What another process writes is seen when the cache has been checked again.
	if err := other.SetPassword(ctx, a, "h2", ""); err != nil {
		t.Fatal(err)
	}
	now = now.Add(checkServer)
	if u, err := s.User(ctx, a); err != nil || u.Password != "h2" {
		t.Errorf("%+v %v", u, err)
	}
	list, err := s.Users(ctx, "example.org", "", 10)
	if err != nil || len(list) != 1 {
		t.Errorf("%v %v", list, err)
	}
	trash, err := s.RemoveUser(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(trash, "mail", "Maildir", "new")); err != nil {
		t.Error(err)
	}
	if _, err := s.User(ctx, a); !errors.Is(err, ErrNoUser) {
		t.Error(err)
	}
	if _, err := s.RemoveDomain(ctx, "example.org"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Domain(ctx, "example.org"); !errors.Is(err, ErrNoDomain) {
		t.Error(err)
	}
}

// TestMigrations: twice, from several at once, and over tables of IndiMail's that are there, which keep their rows.
func TestMigrations(t *testing.T) {
	for _, kind := range []string{"mariadb", "postgres"} {
		t.Run(kind, func(t *testing.T) {
			db := server(t, kind)
			ctx := t.Context()
			config := Config{DSN: db.DSN(), MailRoot: t.TempDir(), Now: time.Now, Secrets: asGiven{}}
			// IndiMail's table before it had the column scram, with a user.
			stamp := "timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL"
			dsn, err := parseDSN(config.DSN, "")
			if err != nil {
				t.Fatal(err)
			}
			own, _, err := dsn.open()
			if err != nil {
				t.Fatal(err)
			}
			defer own.Close()
			for _, statement := range []string{
				"CREATE TABLE indimail (pw_name char(40) not null, pw_domain char(67) not null, pw_passwd char(128) not null, pw_uid int, pw_gid int, pw_gecos char(48) not null, pw_dir char(156), pw_shell char(30), " + stamp + ", primary key (pw_name, pw_domain))",
				"INSERT INTO indimail (pw_name, pw_domain, pw_passwd, pw_uid, pw_gid, pw_gecos, pw_dir, pw_shell) VALUES ('testuser01', 'example.com', '$1$x', 1, 0, 'Test', '/home/mail/T2Zsym/example.com/testuser01', '524288000')",
				// Rows without a home, as IndiMail has them too, tell nothing of where homes are; and a domain is no path.
				"INSERT INTO indimail (pw_name, pw_domain, pw_passwd, pw_gecos, pw_dir) VALUES ('a', 'example.com', '', '', ''), ('b', 'example.com', '', '', NULL), ('postmaster', 'homeless.test', '', '', NULL), ('root', '..', '', '', '/etc')",
			} {
				if kind == "postgres" {
					// Its CHAR would give back blanks.
					statement = strings.ReplaceAll(statement, " char(", " varchar(")
				}
				if _, err := own.ExecContext(ctx, statement); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := Open(ctx, config); !errors.Is(err, ErrForeign) {
				t.Fatalf("a foreign database was opened: %v", err)
			}
			if err := Openable(ctx, config); !errors.Is(err, ErrForeign) {
				t.Errorf("a foreign database can be opened: %v", err)
			}
			status, err := Inspect(ctx, config)
			if err != nil || !status.Foreign || status.Rows["indimail"] != 5 || strings.Contains(status.Where, "abcdefgh") {
				t.Fatalf("%+v %v", status, err)
			}
			if changes := strings.Join(status.Changes, "\n"); !strings.Contains(changes, "ADD COLUMN") || !strings.Contains(changes, "scram") || !strings.Contains(changes, "vlimits") || !strings.Contains(changes, "indimail_pw_dir") {
				t.Errorf("changes:\n%s", changes)
			}
			var at sync.WaitGroup
			for range 4 {
				at.Go(func() {
					if err := Migrate(ctx, config); err != nil {
						t.Error(err)
					}
				})
			}
			at.Wait()
			if err := Openable(ctx, config); err != nil {
				t.Errorf("after the migration: %v", err)
			}
			s := openOn(t, config.DSN, t.TempDir(), time.Now)
			if d, err := s.Domain(ctx, "homeless.test"); err != nil || d.Dir != filepath.Join(config.MailRoot, "homeless.test") {
				t.Errorf("%+v %v", d, err)
			}
			if d, err := s.Domain(ctx, ".."); err == nil {
				t.Errorf("a domain %+v", d)
			}
			u, err := s.User(ctx, addr.Address{Local: "testuser01", Domain: "example.com"})
			if err != nil || u.Dir != "/home/mail/T2Zsym/example.com/testuser01" || u.Quota != "524288000" {
				t.Errorf("%+v %v", u, err)
			}
			if d, err := s.Domain(ctx, "example.com"); err != nil || d.Dir != "/home/mail/T2Zsym/example.com" {
				t.Errorf("%+v %v", d, err)
			}
			if status, err = Inspect(ctx, config); err != nil || status.Foreign || len(status.Changes) > 0 {
				t.Errorf("%+v %v", status, err)
			}
		})
	}
}

// TestServerDown ends the server in the middle: what was asked for lately is still known, what was not is a failure that
// is not "no such user", and when the server is back all is well without anybody's help.
func TestServerDown(t *testing.T) {
	for _, kind := range []string{"mariadb", "postgres"} {
		t.Run(kind, func(t *testing.T) {
			db := server(t, kind)
			ctx, dir := t.Context(), t.TempDir()
			s := openOn(t, db.DSN(), dir, time.Now)
			if err := errors.Join(s.AddDomain(ctx, "d.test"), s.AddUser(ctx, NewUser{Name: "ann", Domain: "d.test"}), s.AddUser(ctx, NewUser{Name: "bob", Domain: "d.test"})); err != nil {
				t.Fatal(err)
			}
			ann, bob := addr.Address{Local: "ann", Domain: "d.test"}, addr.Address{Local: "bob", Domain: "d.test"}
			if _, err := s.User(ctx, ann); err != nil {
				t.Fatal(err)
			}
			db.Kill()
			if _, err := s.User(ctx, ann); err != nil {
				t.Errorf("who was known is forgotten: %v", err)
			}
			if _, err := s.User(ctx, bob); err == nil || errors.Is(err, ErrNoUser) || errors.Is(err, ErrNoDomain) {
				t.Errorf("who was not asked for: %v", err)
			}
			if err := s.AddUser(ctx, NewUser{Name: "eve", Domain: "d.test"}); err == nil {
				t.Error("a user was added without a server")
			}
			again, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			if err := db.Again(again); err != nil {
				t.Fatal(err)
			}
			if _, err := s.User(ctx, bob); err != nil {
				t.Errorf("when the server is back: %v", err)
			}
		})
	}
}

func TestHostMySQL(t *testing.T) {
	for line, want := range map[string]string{
		"localhost:indimail:abcdefgh:/var/run/mysqld/mysqld.sock":     "mysql://indimail:abcdefgh@localhost/indimail?socket=%2Fvar%2Frun%2Fmysqld%2Fmysqld.sock",
		"db.example.org:indimail:abcdefgh:3306":                       "mysql://indimail:abcdefgh@db.example.org:3306/indimail",
		"db.example.org:indimail:abc:defgh:3306:ssl":                  "mysql://indimail:abc%3Adefgh@db.example.org:3306/indimail?tls=skip-verify",
		"localhost:indimail:abcdefgh:/run/mysqld/mysqld.sock:nossl\n": "mysql://indimail:abcdefgh@localhost/indimail?socket=%2Frun%2Fmysqld%2Fmysqld.sock&tls=false",
	} {
		if got, err := HostMySQL(line, ""); err != nil || got != want {
			t.Errorf("%q: %q %v", line, got, err)
		}
	}
	for _, bad := range []string{"", "localhost", "localhost:indimail:abcdefgh", "h:u:p:port", "h:u:p:99999", ":u:p:3306"} {
		if _, err := HostMySQL(bad, ""); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	for _, bad := range []string{"oracle://x", "mysql://u:secretword@h", "mysql://u:secretword@h:port:x/d", "x"} {
		_, err := parseDSN(bad, "p")
		if err == nil || strings.Contains(err.Error(), "secretword") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestWhatIsNotThereIsRemembered, but not once somebody has added it: here at once, by another process very soon.
func TestWhatIsNotThereIsRemembered(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	clock := func() time.Time { return now }
	s, other := open(t, dir, clock), open(t, dir, clock)
	ctx := t.Context()
	bob, ann := addr.Address{Local: "bob", Domain: "d.test"}, addr.Address{Local: "ann", Domain: "d.test"}
	missing := func(a addr.Address) bool {
		t.Helper()
		_, err := s.User(ctx, a)
		if err != nil && !errors.Is(err, ErrNoUser) && !errors.Is(err, ErrNoDomain) {
			t.Fatal(err)
		}
		return err != nil
	}
	if !missing(bob) || !missing(ann) {
		t.Fatal("nobody is there yet")
	}
	if err := errors.Join(s.AddDomain(ctx, "d.test"), s.AddUser(ctx, NewUser{Name: "bob", Domain: "d.test"})); err != nil {
		t.Fatal(err)
	}
	if missing(bob) || !missing(ann) {
		t.Error("bob is there, ann is not")
	}
	if err := other.AddUser(ctx, NewUser{Name: "ann", Domain: "d.test"}); err != nil {
		t.Fatal(err)
	}
	now = now.Add(checkFile)
	if missing(ann) {
		t.Error("another process added ann")
	}
	missing(bob)
	// A flood of names that are not there leaves those that are in the cache, and does not grow without bound.
	for n := range maxCached + 10 {
		missing(addr.Address{Local: strconv.Itoa(n), Domain: "d.test"})
	}
	if found, none := len(s.cache.users.found), len(s.cache.users.missing); found != 2 || none > maxCached {
		t.Errorf("%d and %d in the cache", found, none)
	}
}

func TestDatabaseFailureIsNotNoUser(t *testing.T) {
	s := open(t, t.TempDir(), time.Now)
	s.read.Close()
	if _, err := s.User(t.Context(), addr.Address{Local: "a", Domain: "b"}); err == nil || errors.Is(err, ErrNoUser) || errors.Is(err, ErrNoDomain) {
		t.Fatalf("a closed database says %v", err)
	}
}
