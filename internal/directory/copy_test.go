package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

// TestCopy carries a directory from SQLite over MariaDB and PostgreSQL back to SQLite: every row arrives, with what only
// some engines find hard: words of the grammar as columns, NULL and empty text, letters beyond ASCII, times, big numbers.
func TestCopy(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	first := Config{Path: dir + "/first.db", MailRoot: dir + "/domains", Now: time.Now, Secrets: asGiven{}}
	s, err := Open(ctx, first)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AddDomain(ctx, "d.test"); err != nil {
		t.Fatal(err)
	}
	for i := range 2500 {
		err := s.transactionRow(ctx, "indimail", []string{"pw_name", "pw_domain", "pw_passwd", "pw_uid", "pw_gid", "pw_gecos", "pw_dir", "pw_shell", "scram"},
			fmt.Sprintf("u%04d", i), "d.test", "$argon2id$…", i%2, nil, "Jürgen Ørsted", nil, "", "{SCRAM-SHA-1}x")
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		table   string
		columns []string
		values  []any
	}{
		{"userquota", []string{"user", "domain", "quota"}, []any{"u0001", "d.test", int64(1) << 50}},
		{"vlog", []string{"user", "domain", "message", "error"}, []any{"u0001", "d.test", "it's \"quoted\"; -- no comment \\", 7}},
		{"valias", []string{"alias", "domain", "valias_line"}, []any{"a", "d.test", "|/bin/program 'x'"}},
		{"lastauth", []string{"user", "domain", "service", "remote_ip", "quota", "gecos", "timestamp"}, []any{"u", "d.test", "imap", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", 0, "", time.Date(2021, 3, 28, 2, 30, 0, 0, time.UTC)}},
		{"vlimits", []string{"domain", "disable_pop", "defaultquota"}, []any{"d.test", 1, 52428800}},
	} {
		if err := s.transactionRow(ctx, row.table, row.columns, row.values...); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	configs := []Config{first}
	for _, kind := range []string{"mariadb", "postgres"} {
		configs = append(configs, Config{DSN: server(t, kind).DSN(), MailRoot: first.MailRoot, Now: time.Now, Secrets: asGiven{}})
	}
	configs = append(configs, Config{Path: dir + "/last.db", MailRoot: first.MailRoot, Now: time.Now, Secrets: asGiven{}})
	for i := 1; i < len(configs); i++ {
		told := int64(0)
		err := Copy(ctx, configs[i-1], configs[i], func(table string, copied, of int64) {
			if table == "indimail" {
				told = copied
				if of != 2500 {
					t.Errorf("indimail has %d rows", of)
				}
			}
		})
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		if told != 2500 {
			t.Errorf("step %d: told of %d rows", i, told)
		}
		// A second copy would double everything.
		if err := Copy(ctx, configs[i-1], configs[i], nil); err == nil || !strings.Contains(err.Error(), "needs an empty database") {
			t.Errorf("step %d again: %v", i, err)
		}
	}
	if info, err := os.Stat(dir + "/last.db"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the copy, which holds passwords, is %v: %v", info.Mode(), err)
	}
	last, err := Open(ctx, configs[len(configs)-1])
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	u, err := last.User(ctx, addr.Address{Local: "u2499", Domain: "d.test"})
	if err != nil || u.Gecos != "Jürgen Ørsted" || u.UID != 1 || u.Scram != "{SCRAM-SHA-1}x" {
		t.Errorf("%+v %v", u, err)
	}
	var at time.Time
	if err := last.read.QueryRowContext(ctx, "SELECT timestamp FROM lastauth").Scan(&at); err != nil || !at.Equal(time.Date(2021, 3, 28, 2, 30, 0, 0, time.UTC)) {
		t.Errorf("time %v %v", at, err)
	}
	if err := Copy(ctx, first, first, nil); err == nil {
		t.Error("a database was copied onto itself")
	}
	// What was copied may be written to: counters go on behind it.
	for _, config := range configs[1:] {
		s, err := Open(ctx, config)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.transactionRow(ctx, "vlog", []string{"user"}, "u2"), s.AddUser(ctx, NewUser{Name: "new", Domain: "d.test"})); err != nil {
			t.Error(err)
		}
		s.Close()
	}
}

// transactionRow adds a row of any table.
func (s *Store) transactionRow(ctx context.Context, table string, columns []string, values ...any) error {
	return s.transaction(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, s.engine.insert(table, columns...), values...)
		return err
	})
}
