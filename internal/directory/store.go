package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/maildir"
)

// Config says where a Store keeps its data.
type Config struct {
	// DSN is the database: mysql://USER:PASSWORD@HOST:PORT/DATABASE, with ?socket=PATH and &tls=true, skip-verify or false;
	// postgres://…; sqlite:FILE; "" for the SQLite file Path.
	DSN string
	// Path is the SQLite file, MailRoot the directory of the domains' directories.
	Path, MailRoot string
	// BasePath is the setting BASE_PATH, Host the host's name in the table fstab.
	BasePath, Host string
	Now            func() time.Time
	// Who is written down with each change (Changes); at most 32 bytes count.
	Who string
	// HardQuota is the quota of a new user whose domain has no default; "" means NOQUOTA.
	HardQuota string
	// Secrets guards the passwords that are kept themselves; required, but for commands that write none (Copy, Migrate, Inspect).
	Secrets Secrets
	// Listen keeps a connection for the notices of other hosts' changes, which PostgreSQL gives; for processes that stay.
	Listen bool
	// Changed is told of each change that was committed to a server, to pass it on to other hosts, and must not wait; Closing is called when the
	// Store closes. Nil is not called.
	Changed, Closing func()
}

// Store is the directory on SQLite, MariaDB or MySQL, or PostgreSQL. It is safe for concurrent use, and several processes
// and hosts may have it open.
type Store struct {
	config Config
	engine engine
	// write and read are the same for a server.
	write, read *sql.DB
	cache       cache
	uses        domainUses
	// listening is what startListening runs.
	listening     sync.WaitGroup
	stopListening context.CancelFunc
}

// Open opens the database, makes its tables if there are none, and brings them up to date. ErrForeign for IndiMail's own
// that nobody has let Indigo change.
func Open(ctx context.Context, config Config) (*Store, error) {
	if config.Secrets == nil {
		return nil, errors.New("the directory is opened without what guards kept passwords")
	}
	src, err := parseDSN(config.DSN, config.Path)
	if err != nil {
		return nil, err
	}
	s := &Store{config: config, engine: src.engine}
	if s.write, s.read, err = src.open(); err != nil {
		return nil, err
	}
	// The pool that writes has one connection, which the migrations would hold while they need another.
	if err = migrate(ctx, s.read, s.engine, config.MailRoot, false); err == nil && s.engine == sqLite {
		if err = os.Chmod(src.path, 0o600); err == nil {
			err = s.cache.watchSQLite(ctx, s.read)
		}
	} else if err == nil {
		s.cache.watchServer(s.read)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("%s: %w", src.where, src.full(err))
	}
	s.cache.now = config.Now
	if config.Listen && s.engine == postgreSQL {
		s.startListening(src.dsn)
	}
	return s, nil
}

// Close closes the database.
func (s *Store) Close() error {
	if s.config.Closing != nil {
		s.config.Closing()
	}
	if s.stopListening != nil {
		s.stopListening()
		s.listening.Wait()
	}
	s.cache.close()
	return errors.Join(s.read.Close(), s.write.Close())
}

// Limits of IndiMail's columns.
const (
	maxName   = 40
	maxDomain = 67
)

// validName checks that a name can be a directory's name and nothing more. There are people by the name of O'Brien: an apostrophe may stand in it.
func validName(name string, limit int) error {
	if name == "" || len(name) > limit || name[0] == '.' || name[0] == '-' {
		return fmt.Errorf("name %q: must have 1 to %d bytes and not begin with a dot or hyphen", name, limit)
	}
	for _, r := range name {
		if r <= ' ' || r == 0x7f || strings.ContainsRune(`/\:,"<>()[];*?|&$`+"`", r) {
			return fmt.Errorf("name %q: must not hold %q", name, r)
		}
	}
	return nil
}

// NewDomain is a domain to be added.
type NewDomain struct {
	Name string
	// Dir is the domain's directory, an absolute path; "" stands for one in the mail root.
	Dir string
	// Base is where homes of its users go in Dir's place, as BASE_PATH does; "" for there.
	Base string
	// PerLevel is the most homes in one directory; 0 stands for 100.
	PerLevel int
	// Autoturn names a directory beside the mail root in whose Maildir all of the domain's mail waits until its host fetches it: "" for none,
	// the domain's own name, or the address of that host, which several domains may share (wiki 1590-1700).
	Autoturn string
}

func isAddress(text string) bool {
	_, err := netip.ParseAddr(text)
	return err == nil
}

// autoturnRoot holds a directory for each host, or domain, whose mail waits for it; waits tells whether dir is one.
func (s *Store) autoturnRoot() string {
	return filepath.Join(filepath.Dir(s.config.MailRoot), "autoturn")
}

func (s *Store) waits(dir string) bool { return filepath.Dir(filepath.Clean(dir)) == s.autoturnRoot() }

// SharedByHost tells whether a directory in which mail waits is that of a host's address, which the domains of that host share.
func SharedByHost(dir string) bool {
	return isAddress(strings.ReplaceAll(filepath.Base(dir), "_", ":"))
}

// AddDomain adds a virtual domain and makes its directory. ErrExists if it is there already.
func (s *Store) AddDomain(ctx context.Context, name string) error {
	return s.MakeDomain(ctx, NewDomain{Name: name})
}

// MakeDomain is AddDomain with a choice of where homes go.
func (s *Store) MakeDomain(ctx context.Context, n NewDomain) error {
	name := addr.FoldDomain(n.Name)
	if err := errors.Join(validName(name, maxDomain), addr.ValidDomain(name)); err != nil {
		return fmt.Errorf("domain: %w", err)
	}
	if n.PerLevel < 0 {
		return fmt.Errorf("domain %s: %d homes in a directory", name, n.PerLevel)
	}
	if n.Autoturn != "" {
		if err := validName(n.Autoturn, maxDomain); err != nil && !isAddress(n.Autoturn) {
			return fmt.Errorf("domain %s: %w", name, err)
		}
		n.Dir = filepath.Join(s.autoturnRoot(), strings.ToLower(n.Autoturn))
	}
	for _, dir := range []string{n.Dir, n.Base} {
		if err := validDir(dir); dir != "" && err != nil {
			return fmt.Errorf("domain %s: %w", name, err)
		}
	}
	err := s.transaction(ctx, func(tx *sql.Tx) error {
		if err := s.nameIsFree(ctx, tx, name); err != nil {
			return err
		}
		var err error
		dir := filepath.Clean(n.Dir)
		if n.Dir == "" {
			// A domain that was renamed keeps its directory.
			if dir, err = s.freeDir(ctx, tx, filepath.Join(s.config.MailRoot, name), "", ""); err != nil {
				return err
			}
		} else if s.waits(dir) && !SharedByHost(dir) {
			// So does one whose mail waits: its mail is not for who gets the name later.
			if dir, err = s.freeDir(ctx, tx, dir, "", ""); err != nil {
				return err
			}
		} else if user, err := s.userOf(ctx, tx, dir, "", ""); err != nil || user != "" && n.Autoturn == "" {
			return errors.Join(err, fmt.Errorf("the directory %s is that of %s", dir, user))
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if n.Autoturn != "" {
			if err := maildir.Create(filepath.Join(dir, "Maildir")); err != nil {
				return err
			}
			if err := s.insertLine(ctx, tx, anyone, name, "./Maildir/"); err != nil {
				return err
			}
		}
		result, err := tx.ExecContext(ctx, s.engine.insert("indigo_domain", "domain", "dir", "base_path", "users_per_level"), name, dir, n.Base, n.PerLevel)
		if err != nil {
			return err
		}
		if added, err := result.RowsAffected(); err != nil || added == 0 {
			return errors.Join(err, ErrExists)
		}
		return s.record(ctx, tx, "", name, "domain added")
	})
	if err != nil {
		return fmt.Errorf("domain %s: %w", name, err)
	}
	return nil
}

// change runs a statement that writes, writes down who did it, and lets the caches of other hosts know. Where nothing changes nothing is
// written down.
func (s *Store) change(ctx context.Context, user, domain, what, statement string, args ...any) (n int64, err error) {
	return s.changeAnd(ctx, func(*sql.Tx) error { return nil }, user, domain, what, statement, args...)
}

// changeAnd is change, and what more belongs to it.
func (s *Store) changeAnd(ctx context.Context, more func(*sql.Tx) error, user, domain, what, statement string, args ...any) (n int64, err error) {
	err = s.transaction(ctx, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, s.engine.rebind(statement), args...)
		if err != nil {
			return err
		}
		if n, err = result.RowsAffected(); err != nil || n == 0 {
			return err
		}
		return errors.Join(more(tx), s.record(ctx, tx, user, domain, what))
	})
	return n, err
}

// transaction runs what writes; the cache forgets, and other hosts' do.
func (s *Store) transaction(ctx context.Context, run func(*sql.Tx) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	defer s.cache.clear()
	if err := run(tx); err != nil {
		return err
	}
	if s.engine == postgreSQL {
		// It goes out with the commit.
		if _, err := tx.ExecContext(ctx, "NOTIFY "+channel); err != nil {
			return err
		}
	}
	if s.engine != sqLite {
		// SQLite counts its changes itself.
		if _, err := tx.ExecContext(ctx, "UPDATE indigo_change SET version = version + 1"); err != nil {
			return err
		}
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	if s.engine != sqLite && s.config.Changed != nil {
		s.config.Changed()
	}
	return nil
}

// Domain finds a domain by its name, or that of one of its aliases, in any case and as a name beyond ASCII is written. ErrNoDomain if there is none.
func (s *Store) Domain(ctx context.Context, name string) (Domain, error) {
	name = addr.FoldDomain(name)
	return lookUp(ctx, &s.cache, &s.cache.domains, name, func() (Domain, error) {
		var d Domain
		err := s.retried(ctx, func() error {
			return s.read.QueryRowContext(ctx, s.engine.rebind("SELECT domain, dir FROM indigo_domain WHERE domain = ? UNION ALL "+
				"SELECT d.domain, d.dir FROM aliasdomain a JOIN indigo_domain d ON d.domain = a.domain WHERE a.alias = ?"), name, name).Scan(&d.Name, &d.Dir)
		})
		if errors.Is(err, sql.ErrNoRows) {
			return Domain{}, ErrNoDomain
		}
		if err != nil {
			return Domain{}, fmt.Errorf("look up domain: %w", err)
		}
		return d, nil
	})
}

// retried runs a question, and again when a server did not answer: a connection that idled through its restart is found
// dead only when it is used.
func (s *Store) retried(ctx context.Context, ask func() error) error {
	err := ask()
	for range 2 {
		if err == nil || errors.Is(err, sql.ErrNoRows) || s.engine == sqLite || ctx.Err() != nil {
			return err
		}
		err = ask()
	}
	return err
}

// Domains gives all domains in the order of their names.
func (s *Store) Domains(ctx context.Context) ([]Domain, error) {
	rows, err := s.read.QueryContext(ctx, "SELECT domain, dir FROM indigo_domain ORDER BY domain")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var domains []Domain
	for rows.Next() {
		var d Domain
		if err := rows.Scan(&d.Name, &d.Dir); err != nil {
			return nil, err
		}
		domains = append(domains, d)
	}
	return domains, rows.Err()
}

// DomainsBelow gives a domain and those below it whose directories lie below root, in the order of their names, up to limit.
func (s *Store) DomainsBelow(ctx context.Context, name, root string, limit int) ([]Domain, error) {
	name = addr.FoldDomain(name)
	rows, err := s.read.QueryContext(ctx, s.engine.rebind("SELECT domain, dir FROM indigo_domain WHERE (domain = ? OR domain LIKE ? ESCAPE '!') AND dir LIKE ? ESCAPE '!' ORDER BY domain"), name, "%."+likeText(name), likeText(root)+"/%")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var below []Domain
	for len(below) < limit && rows.Next() {
		var d Domain
		if err := rows.Scan(&d.Name, &d.Dir); err != nil {
			return nil, err
		}
		below = append(below, d)
	}
	return below, rows.Err()
}

const userColumns = `SELECT pw_name, pw_domain, pw_passwd, coalesce(pw_uid, 0), coalesce(pw_gid, 0), pw_gecos, coalesce(pw_dir, ''),
	coalesce(pw_shell, ''), coalesce(scram, ''), timestamp FROM indimail `

func scanUser(scan func(...any) error) (User, error) {
	var u User
	err := scan(&u.Name, &u.Domain, &u.Password, &u.UID, &u.GID, &u.Gecos, &u.Dir, &u.Quota, &u.Scram, &u.Changed)
	return u, err
}

// User finds a user by an address in his domain or in one of its aliases; case does not count. ErrNoDomain or ErrNoUser if there is none,
// ErrInactive if he is marked so.
func (s *Store) User(ctx context.Context, a addr.Address) (User, error) {
	key := addr.Address{Local: strings.ToLower(a.Local), Domain: addr.FoldDomain(a.Domain)}
	return lookUp(ctx, &s.cache, &s.cache.users, key, func() (User, error) {
		var u User
		err := s.retried(ctx, func() (err error) {
			u, err = scanUser(s.read.QueryRowContext(ctx, s.engine.rebind(userColumns+"WHERE pw_name = ? AND pw_domain = ?"), key.Local, key.Domain).Scan)
			return err
		})
		if errors.Is(err, sql.ErrNoRows) {
			d, err := s.Domain(ctx, key.Domain)
			if err != nil {
				return User{}, err
			}
			if d.Name != key.Domain {
				return s.User(ctx, addr.Address{Local: key.Local, Domain: d.Name})
			}
			if _, err := s.InactiveUser(ctx, key); err == nil {
				return User{}, ErrInactive
			} else if !errors.Is(err, ErrNoUser) {
				return User{}, fmt.Errorf("look up user: %w", err)
			}
			return User{}, ErrNoUser
		}
		if err != nil {
			return User{}, fmt.Errorf("look up user: %w", err)
		}
		return u, nil
	})
}

// Users gives the users of a domain in the order of their names, at most limit that come after the name after.
func (s *Store) Users(ctx context.Context, domain, after string, limit int) ([]User, error) {
	d, err := s.Domain(ctx, domain)
	if err != nil {
		return nil, fmt.Errorf("domain %s: %w", domain, err)
	}
	where, values := "pw_domain = ?", []any{d.Name, after, limit}
	if s.engine == mySQL {
		// MariaDB takes an index's first column alone for an equality, and goes through the domain from its beginning: with 1,000,000 users a
		// page took 160 ms. For a range it takes both columns; SQLite does the opposite.
		where, values = "pw_domain >= ? AND pw_domain <= ?", append([]any{d.Name}, values...)
	}
	rows, err := s.read.QueryContext(ctx, s.engine.rebind(userColumns+"WHERE "+where+" AND pw_name > ? ORDER BY pw_domain, pw_name LIMIT ?"), values...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var users []User
	for rows.Next() {
		u, err := scanUser(rows.Scan)
		if err != nil {
			return nil, err
		}
		users = append(users, u)
	}
	return users, rows.Err()
}

// SetPassword stores the forms of a user's new password; scram is "" for none (auth.Form). ErrNoUser, ErrNoDomain.
func (s *Store) SetPassword(ctx context.Context, a addr.Address, passwd, scram string) error {
	u, err := s.User(ctx, a)
	if err != nil {
		return err
	}
	if passwd, scram, err = s.guard(ctx, u.Address(), passwd, scram); err != nil {
		return err
	}
	stamp := func(tx *sql.Tx) error { return s.stamp(ctx, tx, "pass", u) }
	_, err = s.changeAnd(ctx, stamp, u.Name, u.Domain, "password set", "UPDATE indimail SET pw_passwd = ?, scram = ?, timestamp = CURRENT_TIMESTAMP WHERE pw_name = ? AND pw_domain = ?",
		passwd, null(scram), u.Name, u.Domain)
	return err
}
