package directory

import (
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"github.com/pressly/goose/v3"
	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite" // the driver "sqlite"
)

// engine is a database of a kind.
type engine int

const (
	sqLite engine = iota
	mySQL
	postgreSQL
)

// String gives the engine's name as people have it.
func (e engine) String() string { return [...]string{"SQLite", "MariaDB", "PostgreSQL"}[e] }

func (e engine) dialect() goose.Dialect {
	return [...]goose.Dialect{goose.DialectSQLite3, goose.DialectMySQL, goose.DialectPostgres}[e]
}

// rebind gives a statement with the engine's marks in the place of "?".
func (e engine) rebind(statement string) string {
	if e != postgreSQL {
		return statement
	}
	var b strings.Builder
	n := 0
	for _, c := range statement {
		if c == '?' {
			n++
			b.WriteString("$" + strconv.Itoa(n))
			continue
		}
		b.WriteRune(c)
	}
	return b.String()
}

// insert gives the statement that adds a row unless its key is there.
func (e engine) insert(table string, columns ...string) string {
	marks := strings.TrimSuffix(strings.Repeat("?, ", len(columns)), ", ")
	verb, end := "INSERT", " ON CONFLICT DO NOTHING"
	if e == mySQL {
		verb, end = "INSERT IGNORE", ""
	}
	return e.rebind(verb + " INTO " + e.name(table) + " (" + e.names(columns) + ") VALUES (" + marks + ")" + end)
}

// connectTime bounds a connection to a server.
const connectTime = 5 * time.Second

// source is where a database is.
type source struct {
	engine engine
	driver string
	// dsn is what database/sql opens; it may hold a password.
	dsn string
	// path is SQLite's file; where tells people where it is, without secrets.
	path, where string
}

// parseDSN reads mysql://USER:PASSWORD@HOST:PORT/DATABASE, with ?socket=PATH and &tls=true, skip-verify or preferred;
// postgres://… as libpq has it; sqlite:FILE; or "" for the file path.
func parseDSN(dsn, path string) (source, error) {
	if dsn == "" {
		return sqliteSource(path), nil
	}
	if file, ok := strings.CutPrefix(dsn, "sqlite:"); ok {
		if !filepath.IsAbs(file) {
			file = filepath.Join(filepath.Dir(path), file)
		}
		return sqliteSource(file), nil
	}
	u, err := url.Parse(dsn)
	if err != nil {
		// The error would quote the password.
		return source{}, errors.New("the database's URL is malformed")
	}
	switch u.Scheme {
	case "postgres", "postgresql":
		// Times are kept without a zone; they must be the same for every client.
		if query := u.Query(); !query.Has("timezone") {
			query.Set("timezone", "UTC")
			u.RawQuery = query.Encode()
		}
		return source{engine: postgreSQL, driver: "pgx", dsn: u.String(), where: "postgres://" + u.Host + u.Path}, nil
	case "mysql", "mariadb":
		c := mysql.NewConfig()
		c.User = u.User.Username()
		c.Passwd, _ = u.User.Password()
		c.DBName = strings.TrimPrefix(u.Path, "/")
		c.Net, c.Addr = "tcp", u.Host
		if socket := u.Query().Get("socket"); socket != "" {
			c.Net, c.Addr = "unix", socket
		} else if u.Port() == "" {
			c.Addr = net.JoinHostPort(u.Hostname(), "3306")
		}
		if c.TLSConfig = u.Query().Get("tls"); c.TLSConfig == "" && c.Net == "tcp" {
			c.TLSConfig = "preferred"
		}
		if c.DBName == "" {
			return source{}, errors.New("the database's URL names no database: mysql://USER:PASSWORD@HOST/DATABASE")
		}
		// One round trip in the place of three, to prepare, execute and close (measured: 233 µs became 135).
		c.InterpolateParams = true
		c.ParseTime, c.ClientFoundRows, c.Timeout, c.ReadTimeout, c.WriteTimeout = true, true, connectTime, time.Minute, time.Minute
		// What the driver has to say of idle connections comes back as errors where it matters.
		c.Logger = &mysql.NopLogger{}
		c.Params = map[string]string{"time_zone": "'+00:00'"}
		return source{engine: mySQL, driver: "mysql", dsn: c.FormatDSN(), where: "mysql://" + c.Addr + "/" + c.DBName}, nil
	}
	return source{}, errors.New("the database's URL must begin with sqlite:, mysql:// or postgres://")
}

// full says so where err is likely to be for want of room: SQLite calls that an I/O error when it makes its files for shared memory, of 32 KiB.
func (s source) full(err error) error {
	var disk unix.Statfs_t
	if s.engine == sqLite && unix.Statfs(filepath.Dir(s.path), &disk) == nil && disk.Bavail*uint64(disk.Bsize) < 64<<10 {
		return fmt.Errorf("%w: its file system is full; make room first", err)
	}
	return err
}

func sqliteSource(path string) source {
	return source{
		engine: sqLite, driver: "sqlite", path: path, where: path,
		dsn: "file:" + (&url.URL{Path: path}).EscapedPath() + "?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)",
	}
}

// HostMySQL makes a DSN of the line of control/host.mysql: host:user:password:socket or host:user:password:port, and behind
// either :ssl, :nossl, or nothing (wiki 4114-4118). database is "indimail" when empty.
func HostMySQL(line, database string) (string, error) {
	parts := strings.Split(strings.TrimSpace(line), ":")
	use := ""
	if n := len(parts); n > 0 {
		switch parts[n-1] {
		case "ssl":
			use, parts = "skip-verify", parts[:n-1]
		case "nossl":
			use, parts = "false", parts[:n-1]
		}
	}
	if len(parts) < 4 || parts[0] == "" || parts[1] == "" {
		return "", errors.New("host.mysql is not of the form host:user:password:socket or host:user:password:port, with :ssl or :nossl behind it")
	}
	if database == "" {
		database = "indimail"
	}
	n := len(parts)
	host, user, password, last := parts[0], parts[1], strings.Join(parts[2:n-1], ":"), parts[n-1]
	u := url.URL{Scheme: "mysql", User: url.UserPassword(user, password), Host: host, Path: "/" + database}
	query := url.Values{}
	if strings.HasPrefix(last, "/") {
		query.Set("socket", last)
	} else {
		port, err := strconv.Atoi(last)
		if err != nil || port < 1 || port > 65535 {
			return "", fmt.Errorf("host.mysql: %q is neither a socket's path nor a port", last)
		}
		u.Host = net.JoinHostPort(host, last)
	}
	if use != "" {
		query.Set("tls", use)
	}
	u.RawQuery = query.Encode()
	return u.String(), nil
}

// open opens the pools: for SQLite one connection that writes, since it takes one writer at a time and waiting in Go is
// fairer than its busy time-out.
func (s source) open() (write, read *sql.DB, err error) {
	if s.engine != sqLite {
		db, err := sql.Open(s.driver, s.dsn)
		if err != nil {
			return nil, nil, err
		}
		db.SetMaxOpenConns(16)
		db.SetMaxIdleConns(8)
		db.SetConnMaxIdleTime(5 * time.Minute)
		return db, db, nil
	}
	// It holds passwords; that it cannot be made, or is there, is told when it is opened.
	if f, err := os.OpenFile(s.path, os.O_CREATE|os.O_EXCL, 0o600); err == nil {
		f.Close()
	}
	pool := func(options string, connections int) (*sql.DB, error) {
		db, err := sql.Open(s.driver, s.dsn+options)
		if err == nil {
			db.SetMaxOpenConns(connections)
			db.SetMaxIdleConns(connections)
		}
		return db, err
	}
	if write, err = pool("&_txlock=immediate", 1); err != nil {
		return nil, nil, err
	}
	if read, err = pool("", 4); err != nil {
		write.Close()
		return nil, nil, err
	}
	return write, read, nil
}
