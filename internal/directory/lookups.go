package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"

	"github.com/indigomail/indigo/internal/addr"
)

// upsert gives the statement that adds a row, or where its key is there, the first keys columns, overwrites the others and its time.
func (e engine) upsert(table string, keys int, columns ...string) string {
	return e.upserts(1, table, keys, columns...)
}

// upserts does so for so many rows.
func (e engine) upserts(rows int, table string, keys int, columns ...string) string {
	marks := "(" + strings.TrimSuffix(strings.Repeat("?, ", len(columns)), ", ") + "), "
	statement := "INSERT INTO " + e.name(table) + " (" + e.names(columns) + ") VALUES " + strings.TrimSuffix(strings.Repeat(marks, rows), ", ")
	value := "excluded.%s"
	if e == mySQL {
		statement, value = statement+" ON DUPLICATE KEY UPDATE ", "VALUES(%s)"
	} else {
		statement += " ON CONFLICT (" + e.names(columns[:keys]) + ") DO UPDATE SET "
	}
	for _, c := range columns[keys:] {
		statement += e.name(c) + " = " + fmt.Sprintf(value, e.name(c)) + ", "
	}
	return e.rebind(statement + e.name("timestamp") + " = CURRENT_TIMESTAMP")
}

// stamp keeps in lastauth when a user was added ("add") or the password changed ("pass"), as IndiMail does (wiki 2522-2528). Only
// programs of this host make such changes.
func (s *Store) stamp(ctx context.Context, tx *sql.Tx, service string, users ...User) error {
	// Many in one statement: an import adds a thousand at once.
	const most = 100
	for part := range slices.Chunk(users, most) {
		var values []any
		for _, u := range part {
			values = append(values, u.Name, u.Domain, service, "127.0.0.1", 0, u.Gecos)
		}
		if _, err := tx.ExecContext(ctx, s.engine.upserts(len(part), "lastauth", 3, "user", "domain", "service", "remote_ip", "quota", "gecos"), values...); err != nil {
			return fmt.Errorf("keep the time of the change: %w", err)
		}
	}
	return nil
}

// RelayAllowed tells whether an address logged in from ip since a time, by the table relay (POP before SMTP).
func (s *Store) RelayAllowed(ctx context.Context, a addr.Address, ip string, since time.Time) (bool, error) {
	var n int
	err := s.read.QueryRowContext(ctx, s.engine.rebind("SELECT count(*) FROM relay WHERE email = ? AND ipaddr = ? AND "+s.engine.name("timestamp")+" >= ?"), strings.ToLower(a.String()), ip, since.Unix()).Scan(&n)
	return n > 0, err
}

// texts gives the one column of a question's rows.
func (s *Store) texts(ctx context.Context, question string, args ...any) ([]string, error) {
	rows, err := s.read.QueryContext(ctx, s.engine.rebind(question), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := []string{}
	for rows.Next() {
		var one string
		if err := rows.Scan(&one); err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

// AliasLines gives the lines of the table valias for an address; none is no error.
func (s *Store) AliasLines(ctx context.Context, a addr.Address) ([]string, error) {
	return s.texts(ctx, "SELECT valias_line FROM valias WHERE alias = ? AND domain = ? ORDER BY valias_line", strings.ToLower(a.Local), strings.ToLower(a.Domain))
}

// aliasDomainsOf gives the other names of a domain.
func (s *Store) aliasDomainsOf(ctx context.Context, domain string) ([]string, error) {
	return s.texts(ctx, "SELECT alias FROM aliasdomain WHERE domain = ? ORDER BY alias", domain)
}

// RealDomain gives the domain that a name stands for: itself, or what it is an alias of. ErrNoDomain.
func (s *Store) RealDomain(ctx context.Context, name string) (string, error) {
	d, err := s.Domain(ctx, name)
	if !errors.Is(err, ErrNoDomain) {
		return d.Name, err
	}
	names, err := s.texts(ctx, "SELECT coalesce(domain, '') FROM aliasdomain WHERE alias = ?", addr.FoldDomain(name))
	if err != nil {
		return "", err
	}
	if len(names) == 0 {
		return "", ErrNoDomain
	}
	d, err = s.Domain(ctx, names[0])
	return d.Name, err
}

// DomainInfo is what the directory knows of a domain.
type DomainInfo struct {
	Name         string    `json:"domain"`
	Dir          string    `json:"dir"`
	Users        int64     `json:"users"`
	AliasDomains []string  `json:"alias_domains"`
	Created      time.Time `json:"created"`
	// Limited is true when the domain has a row in vlimits; Limits are NoLimits otherwise.
	Limited bool   `json:"limited"`
	Limits  Limits `json:"limits"`
}

// DomainInfo looks a domain up, also by an alias. ErrNoDomain.
func (s *Store) DomainInfo(ctx context.Context, name string) (info DomainInfo, err error) {
	if info.Name, err = s.RealDomain(ctx, name); err != nil {
		return info, fmt.Errorf("domain %s: %w", name, err)
	}
	var limited int
	err = s.read.QueryRowContext(ctx, s.engine.rebind(`SELECT dir, created, (SELECT count(*) FROM indimail WHERE pw_domain = ?), (SELECT count(*) FROM vlimits WHERE domain = ?)
		FROM indigo_domain WHERE domain = ?`), info.Name, info.Name, info.Name).Scan(&info.Dir, &info.Created, &info.Users, &limited)
	if err != nil {
		return info, fmt.Errorf("domain %s: %w", name, err)
	}
	info.Limited = limited > 0
	if info.AliasDomains, err = s.aliasDomainsOf(ctx, info.Name); err != nil {
		return info, err
	}
	info.Limits, err = s.Limits(ctx, info.Name)
	return info, err
}

// HomeCount is a directory with how many users' homes lie in it.
type HomeCount struct {
	Dir   string `json:"dir"`
	Users int    `json:"users"`
}

// HomeCounts gives the directories that hold the homes of a domain's users, in the order in which they are met.
func (s *Store) HomeCounts(ctx context.Context, domain string) (counts []HomeCount, err error) {
	at := map[string]int{}
	for after := ""; ; {
		users, err := s.Users(ctx, domain, after, 1000)
		if err != nil {
			return nil, err
		}
		for _, u := range users {
			after = u.Name
			dir := filepath.Dir(u.Dir)
			i, known := at[dir]
			if !known {
				i, at[dir] = len(counts), len(counts)
				counts = append(counts, HomeCount{Dir: dir})
			}
			counts[i].Users++
		}
		if len(users) < 1000 {
			return counts, nil
		}
	}
}

// IPDomain maps an address of this host to a domain: a login without a domain on that address belongs to it (table ip_alias_map).
type IPDomain struct {
	IP     string `json:"ip"`
	Domain string `json:"domain"`
}

// IPDomains gives the whole map in the order of the addresses.
func (s *Store) IPDomains(ctx context.Context) ([]IPDomain, error) {
	rows, err := s.read.QueryContext(ctx, "SELECT ipaddr, coalesce(domain, '') FROM ip_alias_map ORDER BY ipaddr")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := []IPDomain{}
	for rows.Next() {
		var m IPDomain
		if err := rows.Scan(&m.IP, &m.Domain); err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, rows.Err()
}

// DomainOfIP gives the domain that an address of this host is mapped to, "" for none.
func (s *Store) DomainOfIP(ctx context.Context, ip netip.Addr) (domain string, err error) {
	err = s.retried(ctx, func() error {
		return s.read.QueryRowContext(ctx, s.engine.rebind("SELECT coalesce(domain, '') FROM ip_alias_map WHERE ipaddr = ?"), ip.Unmap().WithZone("").String()).Scan(&domain)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return domain, err
}

// MapIP maps an address to a domain, in the place of the one it was mapped to. ErrNoDomain.
func (s *Store) MapIP(ctx context.Context, ip netip.Addr, domain string) error {
	d, err := s.Domain(ctx, domain)
	if err != nil {
		return fmt.Errorf("domain %s: %w", domain, err)
	}
	address := ip.Unmap().WithZone("").String()
	_, err = s.change(ctx, "", d.Name, "address "+address+" mapped", s.engine.upsert("ip_alias_map", 1, "ipaddr", "domain"), address, d.Name)
	return err
}

// UnmapIP takes the mapping of an address to a domain away, with "" whatever domain it is; none is an error.
func (s *Store) UnmapIP(ctx context.Context, ip netip.Addr, domain string) error {
	address := ip.Unmap().WithZone("").String()
	statement, args := "DELETE FROM ip_alias_map WHERE ipaddr = ?", []any{address}
	if domain = addr.FoldDomain(domain); domain != "" {
		statement, args = statement+" AND domain = ?", append(args, domain)
	}
	n, err := s.change(ctx, "", domain, "address "+address+" unmapped", statement, args...)
	if err == nil && n == 0 {
		err = fmt.Errorf("%s is not mapped to %s", address, domainOrAny(domain))
	}
	return err
}

func domainOrAny(domain string) string {
	if domain == "" {
		return "a domain"
	}
	return domain
}

// Server is the database that the directory is in; no password is in it.
type Server struct {
	Engine string `json:"engine"`
	// Host and Port, or Socket, or for SQLite Path say where it is.
	Host     string `json:"host,omitempty"`
	Port     string `json:"port,omitempty"`
	Socket   string `json:"socket,omitempty"`
	Path     string `json:"path,omitempty"`
	Database string `json:"database,omitempty"`
	User     string `json:"user,omitempty"`
	Version  string `json:"version"`
	// Cipher is that of TLS, "" without.
	Cipher   string    `json:"tls_cipher,omitempty"`
	TimeZone string    `json:"time_zone"`
	Time     time.Time `json:"time"`
	// Connections are all of the server, of all programs, Most the most that it takes; 0 for SQLite.
	Connections int64 `json:"connections"`
	Most        int64 `json:"max_connections"`
}

// Server asks the database what it is.
func (s *Store) Server(ctx context.Context) (v Server, err error) {
	src, err := parseDSN(s.config.DSN, s.config.Path)
	if err != nil {
		return v, err
	}
	v = Server{Engine: s.engine.String(), Path: src.path, TimeZone: "UTC"}
	ask := func(question string, into ...any) {
		if err == nil {
			if err = s.read.QueryRowContext(ctx, question).Scan(into...); err != nil {
				err = fmt.Errorf("%s: %w", src.where, err)
			}
		}
	}
	var now string
	switch s.engine {
	case sqLite:
		ask("SELECT sqlite_version(), strftime('%Y-%m-%d %H:%M:%S', 'now')", &v.Version, &now)
	case mySQL:
		c, err := mysql.ParseDSN(src.dsn)
		if err != nil {
			return v, errors.New("the database's URL is malformed")
		}
		v.User, v.Database = c.User, c.DBName
		if c.Net == "unix" {
			v.Host, v.Socket = "localhost", c.Addr
		} else {
			v.Host, v.Port, _ = net.SplitHostPort(c.Addr)
		}
		return v, s.serverMySQL(ctx, &v)
	case postgreSQL:
		c, err := pgx.ParseConfig(src.dsn)
		if err != nil {
			return v, errors.New("the database's URL is malformed")
		}
		v.User, v.Database, v.Host, v.Port = c.User, c.Database, c.Host, strconv.Itoa(int(c.Port))
		if strings.HasPrefix(c.Host, "/") {
			v.Host, v.Socket = "localhost", c.Host
		}
		return v, s.serverPostgreSQL(ctx, &v)
	}
	if err == nil {
		v.Time, err = time.Parse(time.DateTime, now)
	}
	return v, err
}

func (s *Store) serverMySQL(ctx context.Context, v *Server) error {
	var name string
	if err := s.read.QueryRowContext(ctx, "SELECT VERSION(), @@system_time_zone, UTC_TIMESTAMP(), @@max_connections").Scan(&v.Version, &v.TimeZone, &v.Time, &v.Most); err != nil {
		return err
	}
	if err := s.read.QueryRowContext(ctx, "SHOW GLOBAL STATUS LIKE 'Threads_connected'").Scan(&name, &v.Connections); err != nil {
		return err
	}
	return s.read.QueryRowContext(ctx, "SHOW SESSION STATUS LIKE 'Ssl_cipher'").Scan(&name, &v.Cipher)
}

func (s *Store) serverPostgreSQL(ctx context.Context, v *Server) error {
	err := s.read.QueryRowContext(ctx, `SELECT current_setting('server_version'), coalesce((SELECT reset_val FROM pg_settings WHERE name = 'log_timezone'), ''), now(),
		current_setting('max_connections')::bigint, (SELECT count(*) FROM pg_stat_activity)`).Scan(&v.Version, &v.TimeZone, &v.Time, &v.Most, &v.Connections)
	if err != nil {
		return err
	}
	return s.read.QueryRowContext(ctx, "SELECT coalesce((SELECT cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()), '')").Scan(&v.Cipher)
}

// ClusterServer is a row of IndiMail's table dbinfo: where the users of a domain of a cluster are kept. Indigo keeps the rows and asks none
// of the servers.
type ClusterServer struct {
	Server, MDAHost string
	Port            int
	Database, User  string
}

// ClusterServers gives a domain's rows of dbinfo, in the order of servers; no domain needs to be there.
func (s *Store) ClusterServers(ctx context.Context, domain string) (all []ClusterServer, err error) {
	rows, err := s.read.QueryContext(ctx, s.engine.rebind("SELECT server, mdahost, port, dbname, "+s.engine.name("user")+" FROM dbinfo WHERE domain = ? ORDER BY server, mdahost"), addr.FoldDomain(domain))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var one ClusterServer
		if err := rows.Scan(&one.Server, &one.MDAHost, &one.Port, &one.Database, &one.User); err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}
