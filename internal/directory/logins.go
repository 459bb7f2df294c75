package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

// Login is a row of IndiMail's table lastauth: the last time that a user logged in to a service, or that something else was done.
type Login struct {
	// Service is "smtp", "imap" or "pop3", other programs' further words, or one of notLogins.
	Service string    `json:"service"`
	IP      string    `json:"ip"`
	At      time.Time `json:"at"`
}

// notLogins are IndiMail's words for what is no log-in: the user was added, the password changed, the account switched on and off.
func notLogins() []any { return []any{"add", "pass", "ACTI", "INAC"} }

// LastLogins gives a user's last log-in to each service, the latest first. A user who never logged in has none, and so has one who is
// not there.
func (s *Store) LastLogins(ctx context.Context, a addr.Address) ([]Login, error) {
	all, err := s.LastAuth(ctx, a)
	return slices.DeleteFunc(all, func(l Login) bool { return slices.Contains(notLogins(), any(l.Service)) }), err
}

// LastAuth gives all that lastauth has of a user, the latest first.
func (s *Store) LastAuth(ctx context.Context, a addr.Address) (logins []Login, err error) {
	err = s.retried(ctx, func() error {
		logins = nil
		rows, err := s.read.QueryContext(ctx, s.engine.rebind("SELECT service, remote_ip, "+s.engine.name("timestamp")+" FROM lastauth WHERE "+s.engine.name("user")+" = ? AND domain = ? ORDER BY "+
			s.engine.name("timestamp")+" DESC, service"), strings.ToLower(a.Local), strings.ToLower(a.Domain))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var l Login
			if err := rows.Scan(&l.Service, &l.IP, &l.At); err != nil {
				return err
			}
			logins = append(logins, l)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("look up log-ins: %w", err)
	}
	return logins, nil
}

const (
	// loginsEvery is the time between two writes of log-ins, maxLogins how many wait for one, loginsTime how long one may take.
	loginsEvery = time.Second
	maxLogins   = 10000
	loginsTime  = 5 * time.Second
)

// Logins writes down who logged in, in batches: at most one transaction a second. A log-in never waits for it. What cannot be written is
// lost, with one line in the log.
type Logins struct {
	store *Store
	log   *slog.Logger
	stop  chan struct{}
	done  chan struct{}

	mu      sync.Mutex
	waiting map[loginKey]login
	// mechanisms and relays wait for the same writes, by their columns' values; relayed is what is known of the table relay.
	mechanisms map[usedKey]time.Time
	relays     map[relayKey]time.Time
	relayed    map[netip.Addr]relayed
	lost       int
}

type loginKey struct{ user, domain, service string }

type login struct {
	ip    string
	gecos string
	at    time.Time
}

// NewLogins starts to write; Close it before the Store.
func NewLogins(s *Store, log *slog.Logger) *Logins {
	l := &Logins{store: s, log: log, stop: make(chan struct{}), done: make(chan struct{}), waiting: map[loginKey]login{},
		mechanisms: map[usedKey]time.Time{}, relays: map[relayKey]time.Time{}, relayed: map[netip.Addr]relayed{}}
	go l.run()
	return l
}

// Close writes what waits, and ends.
func (l *Logins) Close() {
	close(l.stop)
	<-l.done
}

// LoggedIn says how a user logged in.
type LoggedIn struct {
	// Service is the name of a service, imapd.143.
	Service   string
	Client    netip.Addr
	Mechanism string
	TLS       bool
	// Relay is true when the client may relay for a while because of it (POP before SMTP).
	Relay bool
}

// Saw notes a log-in.
func (l *Logins) Saw(u User, in LoggedIn) {
	kind, _, _ := strings.Cut(in.Service, ".")
	word := cut(strings.TrimSuffix(kind, "d"), 10)
	key := loginKey{u.Name, u.Domain, word}
	ip := ""
	client := in.Client.Unmap().WithZone("")
	if client.IsValid() {
		ip = client.String()
	}
	now := l.store.config.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.waiting[key]; !known && len(l.waiting) >= maxLogins {
		l.lost++
		return
	}
	l.waiting[key] = login{ip: ip, gecos: cut(u.Gecos, maxGecos), at: now}
	if in.Mechanism != "" {
		l.mechanisms[usedKey{u.Name, u.Domain, cut(word, 8), cut(in.Mechanism, 24), in.TLS}] = now
	}
	if in.Relay && ip != "" {
		l.relays[relayKey{strings.ToLower(u.Address().String()), ip}] = now
		l.knowRelay(client, relayed{at: now, asked: now})
	}
}

func (l *Logins) run() {
	defer close(l.done)
	tick := time.NewTicker(loginsEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.write()
		case <-l.stop:
			l.write()
			return
		}
	}
}

func (l *Logins) write() {
	l.mu.Lock()
	batch, mechanisms, relays, lost := l.waiting, l.mechanisms, l.relays, l.lost
	if len(batch) > 0 {
		l.waiting, l.mechanisms, l.relays = map[loginKey]login{}, map[usedKey]time.Time{}, map[relayKey]time.Time{}
	}
	l.lost = 0
	l.mu.Unlock()
	if len(batch) > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), loginsTime)
		defer cancel()
		if err := l.store.writeLogins(ctx, batch, mechanisms, relays); err != nil {
			l.log.Warn("times of log-ins are lost: the directory takes none", "count", len(batch)+lost, "error", err)
			return
		}
	}
	if lost > 0 {
		l.log.Warn("times of log-ins are lost: too many in a second", "count", lost)
	}
}

// stampForm is how a time is given to every engine, in UTC.
const stampForm = "2006-01-02 15:04:05"

// writeLogins does without transaction: nothing that the cache keeps is changed.
func (s *Store) writeLogins(ctx context.Context, batch map[loginKey]login, mechanisms map[usedKey]time.Time, relays map[relayKey]time.Time) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	columns := []string{"user", "domain", "service", "remote_ip", "quota", "gecos", "timestamp"}
	conflict := ` ON CONFLICT ("user", domain, service) DO UPDATE SET remote_ip = excluded.remote_ip, gecos = excluded.gecos, "timestamp" = excluded."timestamp"`
	if s.engine == mySQL {
		conflict = " ON DUPLICATE KEY UPDATE remote_ip = VALUES(remote_ip), gecos = VALUES(gecos), `timestamp` = VALUES(`timestamp`)"
	}
	statement, err := tx.PrepareContext(ctx, s.engine.rebind("INSERT INTO lastauth ("+s.engine.names(columns)+") VALUES (?, ?, ?, ?, 0, ?, ?)"+conflict))
	if err != nil {
		return err
	}
	defer statement.Close()
	for k, one := range batch {
		if _, err := statement.ExecContext(ctx, k.user, k.domain, k.service, one.ip, one.gecos, one.at.UTC().Format(stampForm)); err != nil {
			return err
		}
	}
	if err := errors.Join(s.writeMechanisms(ctx, tx, mechanisms), s.writeRelays(ctx, tx, relays)); err != nil {
		return err
	}
	return tx.Commit()
}

// SeenLogin is one that lastauth has.
type SeenLogin struct {
	User, Domain string
	Client       netip.Addr
	At           time.Time
}

// EachLogin calls each with the latest log-ins since a time, the latest first, at most limit of them.
func (s *Store) EachLogin(ctx context.Context, since time.Time, limit int, each func(SeenLogin)) error {
	at := s.engine.name("timestamp")
	rows, err := s.read.QueryContext(ctx, s.engine.rebind("SELECT "+s.engine.name("user")+", domain, remote_ip, "+at+" FROM lastauth WHERE "+at+" >= ? AND service NOT IN (?, ?, ?, ?) ORDER BY "+at+" DESC LIMIT ?"),
		append(append([]any{since.UTC().Format(stampForm)}, notLogins()...), limit)...)
	if err != nil {
		return fmt.Errorf("look up log-ins: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var l SeenLogin
		var ip string
		if err := rows.Scan(&l.User, &l.Domain, &ip, &l.At); err != nil {
			return err
		}
		if l.Client, err = netip.ParseAddr(ip); err == nil {
			each(l)
		}
	}
	return rows.Err()
}

// Idle is a user who has not logged in for a time.
type Idle struct {
	User User
	// Last is the last log-in, or when the row of a user who never did was last changed.
	Last  time.Time
	Never bool
}

// Inactive calls each with the users of a domain who have not logged in since, and whose row is not younger than that; with "" those of
// all domains. postmaster is never among them.
func (s *Store) Inactive(ctx context.Context, domain string, since time.Time, each func(Idle) error) error {
	domains := []Domain{{Name: domain}}
	if domain == "" {
		var err error
		if domains, err = s.Domains(ctx); err != nil {
			return err
		}
	}
	for _, d := range domains {
		for after := ""; ; {
			users, err := s.Users(ctx, d.Name, after, 1000)
			if err != nil {
				return err
			}
			if len(users) == 0 {
				break
			}
			last, err := s.lastSeen(ctx, users[0].Domain, users[0].Name, users[len(users)-1].Name)
			if err != nil {
				return err
			}
			for _, u := range users {
				after = u.Name
				seen, known := last[u.Name]
				if !known {
					seen = u.Changed
				}
				if u.Name == "postmaster" || !seen.Before(since) {
					continue
				}
				if err := each(Idle{User: u, Last: seen, Never: !known}); err != nil {
					return err
				}
			}
			if len(users) < 1000 {
				break
			}
		}
	}
	return nil
}

// lastSeen gives the last log-ins of the users of a domain whose names lie between two.
func (s *Store) lastSeen(ctx context.Context, domain, from, to string) (map[string]time.Time, error) {
	user := s.engine.name("user")
	rows, err := s.read.QueryContext(ctx, s.engine.rebind("SELECT "+user+", "+s.engine.name("timestamp")+" FROM lastauth WHERE domain = ? AND "+user+" >= ? AND "+user+" <= ? AND service NOT IN (?, ?, ?, ?)"), append([]any{domain, from, to}, notLogins()...)...)
	if err != nil {
		return nil, fmt.Errorf("look up log-ins: %w", err)
	}
	defer rows.Close()
	last := map[string]time.Time{}
	for rows.Next() {
		var name string
		var at sql.NullTime
		if err := rows.Scan(&name, &at); err != nil {
			return nil, err
		}
		if at.Valid && at.Time.After(last[name]) {
			last[name] = at.Time
		}
	}
	return last, rows.Err()
}
