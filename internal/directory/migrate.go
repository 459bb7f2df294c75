package directory

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pressly/goose/v3"
	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/addr"
)

//go:embed migrations/*.sql
var migrations embed.FS

// ErrForeign says that a database has tables of IndiMail's that Indigo has not seen yet, so that nothing is changed unasked.
var ErrForeign = errors.New("a database of IndiMail's that Indigo has not changed yet: `indigo db status` prints what it would change, `indigo db migrate` does it")

// lockTime is how long a migration waits for one that another host runs.
const lockTime = time.Minute

// exists tells whether a table is there, and names its columns.
func columnsOf(ctx context.Context, db *sql.DB, e engine, table string) (columns []string, there bool, err error) {
	query := map[engine]string{
		sqLite:     "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?",
		mySQL:      "SELECT count(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?",
		postgreSQL: "SELECT count(*) FROM information_schema.tables WHERE table_schema = current_schema() AND table_name = $1",
	}[e]
	n := 0
	if err := db.QueryRowContext(ctx, query, table).Scan(&n); err != nil || n == 0 {
		return nil, false, err
	}
	statement, args := "SELECT * FROM "+e.name(table)+" WHERE 1 = 0", []any{}
	if e == postgreSQL {
		// Asked again on the same connection when a migration has added a column, PostgreSQL refuses the statement for its new result. Names
		// are the values of one column, which stays.
		statement, args = "SELECT column_name FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = $1 ORDER BY ordinal_position", []any{table}
	}
	rows, err := db.QueryContext(ctx, statement, args...)
	if err != nil {
		return nil, true, err
	}
	defer rows.Close()
	if e == postgreSQL {
		for rows.Next() {
			var name string
			if err := rows.Scan(&name); err != nil {
				return nil, true, err
			}
			columns = append(columns, name)
		}
		return columns, true, rows.Err()
	}
	columns, err = rows.Columns()
	return columns, true, errors.Join(err, rows.Err())
}

// versionTable is where the migrations that ran are written down.
const versionTable = "goose_db_version"

// plan gives the statements that bring the tables up to date, in order; none when they are.
func plan(ctx context.Context, db *sql.DB, e engine) (statements []string, err error) {
	for _, t := range Schema() {
		columns, there, err := columnsOf(ctx, db, e, t.Name)
		if err != nil {
			return nil, err
		}
		if !there {
			statements = append(statements, e.create(t)...)
			continue
		}
		for _, c := range t.Columns {
			if slices.Contains(columns, c.Name) {
				continue
			}
			// Rows that are there need a value.
			if !c.Null && c.Default == "" && c.Kind != "stamp" {
				c.Default = map[string]string{"char": "''"}[c.Kind]
				if c.Default == "" {
					c.Default = "0"
				}
			}
			if c.Kind == "stamp" && e == sqLite {
				// SQLite adds no column whose default is not constant.
				c = Column{Name: c.Name, Kind: "char", Size: 32, Null: true}
			}
			statements = append(statements, "ALTER TABLE "+e.name(t.Name)+" ADD COLUMN "+e.name(c.Name)+" "+e.sqlType(c))
		}
		if t.Name != "indimail" && t.Name != "indibak" {
			continue
		}
		key, err := homesKey(ctx, db, e, t.Name)
		if err != nil {
			return nil, err
		}
		statements = append(statements, key...)
	}
	return statements, nil
}

// homesKey gives the statement that makes the key on pw_dir of a table of users that is there, none when it has one: whose a home is would be
// looked for in the whole table.
func homesKey(ctx context.Context, db *sql.DB, e engine, table string) (statements []string, err error) {
	name := table + "_pw_dir"
	// MySQL has no CREATE INDEX IF NOT EXISTS, and names the keys of its own tables itself.
	query, arg := map[engine]string{
		sqLite:     "SELECT count(*) FROM sqlite_master WHERE type = 'index' AND name = ?",
		mySQL:      "SELECT count(*) FROM information_schema.statistics WHERE table_schema = DATABASE() AND table_name = ? AND column_name = 'pw_dir' AND seq_in_index = 1",
		postgreSQL: "SELECT count(*) FROM pg_indexes WHERE schemaname = current_schema() AND indexname = $1",
	}[e], name
	if e == mySQL {
		arg = table
	}
	there := 0
	if err := db.QueryRowContext(ctx, query, arg).Scan(&there); err != nil || there > 0 {
		return nil, err
	}
	return []string{"CREATE INDEX " + e.name(name) + " ON " + e.name(table) + " (" + e.name("pw_dir") + ")"}, nil
}

// bringUpToDate makes the tables and columns that are missing.
func bringUpToDate(ctx context.Context, db *sql.DB, e engine) error {
	statements, err := plan(ctx, db, e)
	if err != nil {
		return err
	}
	for _, one := range statements {
		if _, err := db.ExecContext(ctx, one); err != nil {
			return fmt.Errorf("%s: %w", one, err)
		}
	}
	return nil
}

// foreign tells whether the database has users, and no trace of a migration.
func foreign(ctx context.Context, db *sql.DB, e engine) (bool, error) {
	_, ours, err := columnsOf(ctx, db, e, versionTable)
	if err != nil || ours {
		return false, err
	}
	_, theirs, err := columnsOf(ctx, db, e, "indimail")
	return theirs, err
}

// migrate brings the tables up to date; adopt lets it change IndiMail's own, whose domains without homes are to have them in mailRoot. It may run twice, and from two hosts at once.
func migrate(ctx context.Context, db *sql.DB, e engine, mailRoot string, adopt bool) error {
	release, err := lockDatabase(ctx, db, e)
	if err != nil {
		return err
	}
	defer release()
	strange, err := foreign(ctx, db, e)
	if err != nil {
		return err
	}
	if strange && !adopt {
		return ErrForeign
	}
	rest := goose.NewGoMigration(2, &goose.GoFunc{RunDB: func(ctx context.Context, db *sql.DB) error {
		if err := bringUpToDate(ctx, db, e); err != nil {
			return err
		}
		if _, err := db.ExecContext(ctx, e.insert("indigo_change", "id", "version"), 1, 1); err != nil {
			return err
		}
		return adoptDomains(ctx, db, e, mailRoot)
	}}, nil)
	appPasswords := goose.NewGoMigration(3, &goose.GoFunc{RunDB: func(ctx context.Context, db *sql.DB) error {
		if err := bringUpToDate(ctx, db, e); err != nil || strange {
			// No row of IndiMail's is changed.
			return err
		}
		// IndiMail takes an empty column scram, which Indigo wrote before, for one with keys.
		_, err := db.ExecContext(ctx, "UPDATE indimail SET scram = NULL, timestamp = timestamp WHERE scram = ''")
		return err
	}}, nil)
	// What the places of homes need: columns of indigo_domain, the table indigo_moved, and a key on pw_dir.
	homes := goose.NewGoMigration(4, &goose.GoFunc{RunDB: func(ctx context.Context, db *sql.DB) error { return bringUpToDate(ctx, db, e) }}, nil)
	mechanisms := goose.NewGoMigration(5, &goose.GoFunc{RunDB: func(ctx context.Context, db *sql.DB) error { return bringUpToDate(ctx, db, e) }}, nil)
	options := []goose.ProviderOption{goose.WithGoMigrations(rest, appPasswords, homes, mechanisms)}
	var scripts fs.FS
	if e == sqLite {
		if scripts, err = fs.Sub(migrations, "migrations"); err != nil {
			return err
		}
	} else {
		// The first one is SQLite's own; its tables are among the rest.
		first := goose.NewGoMigration(1, &goose.GoFunc{RunDB: func(context.Context, *sql.DB) error { return nil }}, nil)
		options = []goose.ProviderOption{goose.WithGoMigrations(first, rest, appPasswords, homes, mechanisms)}
	}
	provider, err := goose.NewProvider(e.dialect(), db, scripts, options...)
	if err != nil {
		return err
	}
	_, err = provider.Up(ctx)
	return err
}

// adoptDomains makes the list of domains out of the users that are there: IndiMail keeps it in a file of its own. A domain whose users have no
// homes gets a directory in mailRoot, and what is no domain's name, which would be a path, is none.
func adoptDomains(ctx context.Context, db *sql.DB, e engine, mailRoot string) error {
	rows, err := db.QueryContext(ctx, "SELECT pw_domain, coalesce(min(CASE WHEN pw_dir LIKE '/%' THEN pw_dir END), '') FROM indimail GROUP BY pw_domain")
	if err != nil {
		return err
	}
	found := map[string]string{}
	for rows.Next() {
		var domain, dir string
		if err := rows.Scan(&domain, &dir); err != nil {
			rows.Close()
			return err
		}
		switch {
		case addr.ValidDomain(strings.ToLower(domain)) != nil:
		case dir == "":
			found[domain] = filepath.Join(mailRoot, strings.ToLower(domain))
		default:
			found[domain] = filepath.Dir(dir)
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for domain, dir := range found {
		if _, err := db.ExecContext(ctx, e.insert("indigo_domain", "domain", "dir"), domain, dir); err != nil {
			return err
		}
	}
	return nil
}

// lockDatabase keeps other hosts from migrating meanwhile. SQLite's own locks are enough.
func lockDatabase(ctx context.Context, db *sql.DB, e engine) (release func(), err error) {
	if e == sqLite {
		return func() {}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lockTime)
	conn, err := db.Conn(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	got := 1
	if e == mySQL {
		err = conn.QueryRowContext(ctx, "SELECT coalesce(GET_LOCK('indigo_migrate', ?), 0)", int(lockTime.Seconds())).Scan(&got)
	} else {
		_, err = conn.ExecContext(ctx, "SELECT pg_advisory_lock(4912346)")
	}
	if err == nil && got != 1 {
		err = errors.New("another host migrates the database")
	}
	if err != nil {
		conn.Close()
		cancel()
		return nil, err
	}
	return func() {
		defer cancel()
		defer conn.Close()
		if e == mySQL {
			conn.ExecContext(context.WithoutCancel(ctx), "SELECT RELEASE_LOCK('indigo_migrate')")
		} else {
			conn.ExecContext(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock(4912346)")
		}
	}, nil
}

// Status is what a database is.
type Status struct {
	Engine string `json:"engine"`
	// Where is its place, without secrets.
	Where string `json:"where"`
	// Foreign is true for IndiMail's database that has not been changed yet.
	Foreign bool `json:"foreign"`
	// Changes are the statements that a migration would run.
	Changes []string `json:"changes"`
	// Rows counts each table's.
	Rows map[string]int64 `json:"rows"`
}

// Inspect tells what a database is and what a migration would change; nothing is changed.
func Inspect(ctx context.Context, config Config) (*Status, error) {
	src, err := parseDSN(config.DSN, config.Path)
	if err != nil {
		return nil, err
	}
	write, read, err := src.open()
	if err != nil {
		return nil, err
	}
	defer write.Close()
	defer read.Close()
	s := &Status{Engine: src.engine.String(), Where: src.where, Rows: map[string]int64{}}
	if s.Foreign, err = foreign(ctx, read, src.engine); err != nil {
		return nil, fmt.Errorf("%s: %w", src.where, err)
	}
	if s.Changes, err = plan(ctx, read, src.engine); err != nil {
		return nil, fmt.Errorf("%s: %w", src.where, err)
	}
	for _, t := range Schema() {
		_, there, err := columnsOf(ctx, read, src.engine, t.Name)
		if err != nil {
			return nil, err
		}
		if !there {
			continue
		}
		var n int64
		if err := read.QueryRowContext(ctx, "SELECT count(*) FROM "+src.engine.name(t.Name)).Scan(&n); err != nil {
			return nil, err
		}
		s.Rows[t.Name] = n
	}
	return s, nil
}

// Ready tells whether Open would change nothing; the error says what it would, or why it cannot be told. Nothing is changed.
func Ready(ctx context.Context, config Config) error {
	src, err := parseDSN(config.DSN, config.Path)
	if err != nil {
		return err
	}
	if src.engine == sqLite {
		// To open it would make it.
		if _, err := os.Stat(src.path); err != nil {
			return err
		}
	}
	return src.with(func(read *sql.DB) error {
		changes, err := plan(ctx, read, src.engine)
		if err == nil && len(changes) > 0 {
			err = errors.New("its tables are to be brought up to date first: the next start does that, but for IndiMail's, of which `indigo db status` tells")
		}
		return err
	})
}

// Openable gives the error that Open would fail with, nil when it would not. Nothing is changed, and no file is made.
func Openable(ctx context.Context, config Config) error {
	src, err := parseDSN(config.DSN, config.Path)
	if err != nil {
		return err
	}
	if src.engine == sqLite {
		switch _, err := os.Stat(src.path); {
		case errors.Is(err, fs.ErrNotExist):
			// Open makes it.
			if err := unix.Access(filepath.Dir(src.path), unix.W_OK|unix.X_OK); err != nil {
				return fmt.Errorf("%s cannot be made: %w", src.path, err)
			}
			return nil
		case err != nil:
			return err
		}
	}
	return src.with(func(read *sql.DB) error {
		strange, err := foreign(ctx, read, src.engine)
		if err == nil && strange {
			err = ErrForeign
		}
		return err
	})
}

// Migrate brings a database's tables up to date, also IndiMail's own that Indigo has not seen.
func Migrate(ctx context.Context, config Config) error {
	src, err := parseDSN(config.DSN, config.Path)
	if err != nil {
		return err
	}
	return src.with(func(read *sql.DB) error { return migrate(ctx, read, src.engine, config.MailRoot, true) })
}

// with opens a database while do works on it; an error says where it is.
func (s source) with(do func(read *sql.DB) error) error {
	write, read, err := s.open()
	if err != nil {
		return err
	}
	defer write.Close()
	defer read.Close()
	if err := do(read); err != nil {
		return fmt.Errorf("%s: %w", s.where, err)
	}
	return nil
}
