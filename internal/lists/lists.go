// Package lists is knowledge: it looks entries up in the control files that may be texts, constant databases and tables of
// SQL (wiki 2963-2980), and holds the connections to the databases. It must not know what a list is for.
package lists

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib" // registers the driver "pgx"
	_ "modernc.org/sqlite"             // registers the driver "sqlite"

	"github.com/indigomail/indigo/internal/settings"
)

// queryTime bounds a question to a database, the connection included.
const queryTime = 5 * time.Second

// Hit tells where a key was found.
type Hit struct {
	Found bool
	// Key is the key that was found, Where the file: control/badmailfrom.cdb, control/badmailfrom.sql or control/badmailfrom.
	Key, Where string
}

// Finder looks keys up. It is safe for concurrent use; a nil Finder looks into texts and constant databases only, and
// fails for lists with a table of SQL.
type Finder struct {
	// dir is what SQLite files are relative to.
	dir string

	mu     sync.Mutex
	closed bool
	open   map[settings.Table]*table
}

type table struct {
	*settings.Table
	db *sql.DB
}

// New makes a Finder for a data directory. Close ends it.
func New(dir string) *Finder { return &Finder{dir: dir, open: map[settings.Table]*table{}} }

// Close closes the connections; questions that come later fail.
func (f *Finder) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, t := range f.open {
		t.db.Close()
	}
	f.open = nil
}

// Find looks for the first of keys, which are in lower case, that l has: in its constant database, then in its table of
// SQL, then in its text. An error means that this could not be found out: the caller must answer "try again later".
func (f *Finder) Find(ctx context.Context, l *settings.List, keys ...string) (Hit, error) {
	if l.Empty() {
		return Hit{}, nil
	}
	for _, key := range keys {
		found, err := l.InCDB(key)
		if err != nil {
			return Hit{}, err
		}
		if found {
			return Hit{true, key, l.File + ".cdb"}, nil
		}
	}
	if l.SQL != nil {
		key, err := f.ask(ctx, l.SQL, keys)
		if err != nil {
			return Hit{}, fmt.Errorf("%s: %w", l.SQL.File, err)
		}
		if key != "" {
			return Hit{true, key, l.SQL.File}, nil
		}
	}
	for _, key := range keys {
		if l.InText(key) {
			return Hit{true, key, l.File}, nil
		}
	}
	return Hit{}, nil
}

// ask looks for any of keys in a table; a table that is not there is made, as IndiMail does.
func (f *Finder) ask(ctx context.Context, where *settings.Table, keys []string) (string, error) {
	if len(keys) == 0 {
		return "", nil
	}
	t, err := f.table(where)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	found, err := t.ask(ctx, keys)
	if missing(err) {
		if err = t.create(ctx); err == nil {
			return "", nil
		}
	}
	return found, err
}

func (t *table) ask(ctx context.Context, keys []string) (string, error) {
	marks := make([]string, len(keys))
	arguments := make([]any, len(keys))
	for i, key := range keys {
		marks[i], arguments[i] = "?", key
		if t.Driver == "postgres" {
			marks[i] = fmt.Sprintf("$%d", i+1)
		}
	}
	// The table's name was checked when the file was read.
	row := t.db.QueryRowContext(ctx, "SELECT email FROM "+t.Name+" WHERE email IN ("+strings.Join(marks, ",")+") LIMIT 1", arguments...)
	var found string
	err := row.Scan(&found)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return found, err
}

// create makes the table of wiki 2969.
func (t *table) create(ctx context.Context) error {
	statement := "CREATE TABLE IF NOT EXISTS " + t.Name + " (email CHAR(64) NOT NULL, timestamp TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (email)"
	if t.Driver == "mysql" {
		statement += ", INDEX timestamp (timestamp)"
	}
	_, err := t.db.ExecContext(ctx, statement+")")
	return err
}

// missing tells whether err says that there is no such table.
func missing(err error) bool {
	var my *mysql.MySQLError
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return false
	case errors.As(err, &my):
		return my.Number == 1146
	case errors.As(err, &pg):
		return pg.Code == "42P01"
	}
	return strings.Contains(err.Error(), "no such table")
}

func (f *Finder) table(where *settings.Table) (*table, error) {
	if f == nil {
		return nil, errors.New("no connection to databases here")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, errors.New("shutting down")
	}
	if t := f.open[*where]; t != nil {
		return t, nil
	}
	driver, dsn, err := source(f.dir, where)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(8)
	db.SetConnMaxIdleTime(time.Minute)
	t := &table{where, db}
	f.open[*where] = t
	return t, nil
}

// source gives what database/sql opens.
func source(dir string, t *settings.Table) (driver, dsn string, err error) {
	switch t.Driver {
	case "sqlite":
		file := t.Database
		if !filepath.IsAbs(file) {
			file = filepath.Join(dir, file)
		}
		return "sqlite", "file:" + (&url.URL{Path: file}).EscapedPath() + "?_pragma=busy_timeout(5000)", nil
	case "postgres":
		return "pgx", t.Database, nil
	}
	config := mysql.NewConfig()
	config.User, config.Passwd, config.DBName, config.Addr, config.Net = t.User, t.Password, t.Database, t.Host, "tcp"
	if t.Host == "" {
		u, err := url.Parse(t.Database)
		if err != nil {
			return "", "", errors.New("not a URL of the form mysql://user:password@host/database")
		}
		config.User, config.DBName, config.Addr = u.User.Username(), strings.TrimPrefix(u.Path, "/"), u.Host
		config.Passwd, _ = u.User.Password()
		if socket := u.Query().Get("socket"); socket != "" {
			config.Addr = socket
		}
	}
	switch {
	case strings.HasPrefix(config.Addr, "/"):
		config.Net = "unix"
	case !strings.Contains(config.Addr, ":"):
		config.Addr = net.JoinHostPort(config.Addr, "3306")
	}
	if config.Net == "tcp" {
		config.TLSConfig = "preferred"
	}
	config.Timeout = queryTime
	// What the driver has to say of idle connections comes back as errors where it matters.
	config.Logger = &mysql.NopLogger{}
	return "mysql", config.FormatDSN(), nil
}

// Create makes the table that a file NAME.sql describes, and adds entries to it; those that are there stay. It is what
// qmail-sql does (wiki 2978). It gives the number of entries that it was handed.
func (f *Finder) Create(ctx context.Context, where *settings.Table, entries []string) (int, error) {
	t, err := f.table(where)
	if err != nil {
		return 0, err
	}
	if err := t.create(ctx); err != nil {
		return 0, err
	}
	statement := map[string]string{
		"mysql": "INSERT IGNORE INTO %s (email) VALUES (?)", "sqlite": "INSERT OR IGNORE INTO %s (email) VALUES (?)",
		"postgres": "INSERT INTO %s (email) VALUES ($1) ON CONFLICT DO NOTHING",
	}[t.Driver]
	tx, err := t.db.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	for _, e := range entries {
		if _, err := tx.ExecContext(ctx, fmt.Sprintf(statement, t.Name), strings.ToLower(e)); err != nil {
			return 0, fmt.Errorf("%q: %w", e, err)
		}
	}
	return len(entries), tx.Commit()
}
