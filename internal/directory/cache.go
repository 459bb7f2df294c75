package directory

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

// cache keeps what was found, and what is not there. Own writes clear it at once; writes of other processes and hosts do so
// within the time between two looks at the database's version. A server that is down leaves what is kept in force for
// staleTime, so that mail goes on for those who were asked for lately.
type cache struct {
	now func() time.Time
	// version gives a number that changes with each write; every is the time between two looks.
	version func(ctx context.Context) (int64, error)
	every   time.Duration
	stale   time.Duration
	watch   *sql.Conn

	mu      sync.Mutex
	checked time.Time
	// good is the last look that got an answer.
	good time.Time
	last int64
	// begun is when the cache was last empty.
	begun time.Time
	// generation counts the clearings: an answer from before one must not be kept after it.
	generation uint64
	users      answers[addr.Address, User]
	domains    answers[string, Domain]
	limits     answers[string, Limits]
	apps       answers[addr.Address, []AppPassword]
	aliases    answers[addr.Address, []string]
	forms      formsKept

	// searching is held by the one search for forms that goes on; mu is never held when it is taken.
	searching sync.Mutex
	stats     CacheStats
	// listening: PostgreSQL's notices come; told: others tell by another way.
	listening, told bool
}

// CacheStats counts what the directory's cache did since it was opened.
type CacheStats struct {
	// Hits were answered from the cache, Negative of them with "no such user" or "no such domain"; Misses asked the database.
	Hits     uint64 `json:"hits"`
	Negative uint64 `json:"negative_hits"`
	Misses   uint64 `json:"misses"`
	// Clearings are how often it forgot everything: own writes, those of others, and foreignTime.
	Clearings uint64 `json:"clearings"`
	// Failures are looks at the database's version without an answer.
	Failures uint64 `json:"failed_checks"`
	// Users, Domains, Limits and Apps (app passwords of a user) are kept now, Missing of names that are not there.
	Users   int `json:"users"`
	Domains int `json:"domains"`
	Limits  int `json:"limits"`
	Apps    int `json:"app_passwords"`
	Missing int `json:"missing"`
	// Listening is true while other hosts' changes are told and not only looked for.
	Listening bool `json:"listening"`
	// Stale is true while the database does not answer and what is kept goes on; Age is how long ago it answered last.
	Stale bool          `json:"stale"`
	Age   time.Duration `json:"checked_ago_ns"`
}

// CacheStats tells how the cache fares.
func (s *Store) CacheStats() CacheStats {
	c := &s.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.stats
	v.Users, v.Domains, v.Limits = len(c.users.found), len(c.domains.found), len(c.limits.found)
	v.Apps = len(c.apps.found)
	v.Missing = len(c.users.missing) + len(c.domains.missing) + len(c.limits.missing)
	v.Listening = c.listening || c.told && c.stale > 0
	if !c.good.IsZero() {
		v.Age = max(0, c.now().Sub(c.good))
		v.Stale = c.checked.After(c.good)
	}
	return v
}

const (
	// checkFile and checkServer are the times between two looks at a file's and at a server's version.
	checkFile   = 20 * time.Millisecond
	checkServer = 200 * time.Millisecond
	// checkTime bounds a look: every look-up of a user waits for it.
	checkTime = 2 * time.Second
	staleTime = 10 * time.Minute
	maxCached = 10000
)

// watchSQLite looks at data_version, which is a connection's own.
func (c *cache) watchSQLite(ctx context.Context, db *sql.DB) (err error) {
	c.watch, err = db.Conn(ctx)
	c.every = checkFile
	c.version = func(ctx context.Context) (version int64, err error) {
		return version, c.watch.QueryRowContext(ctx, "PRAGMA data_version").Scan(&version)
	}
	return err
}

// watchServer looks at the counter that every write of Indigo's moves. Writes of other programs are seen when an entry is
// older than foreignTime.
func (c *cache) watchServer(db *sql.DB) {
	c.every, c.stale = checkServer, staleTime
	c.version = func(ctx context.Context) (version int64, err error) {
		ctx, cancel := context.WithTimeout(ctx, checkTime)
		defer cancel()
		return version, db.QueryRowContext(ctx, "SELECT version FROM indigo_change").Scan(&version)
	}
}

// foreignTime is how long answers of a server are kept that other programs may write to as well.
const foreignTime = 30 * time.Second

func (c *cache) close() {
	if c.watch != nil {
		c.watch.Close()
	}
}

// answers are kept apart, so that a stranger who asks for many names that are not there does not push out those that are.
type answers[K comparable, V any] struct {
	found   map[K]V
	missing map[K]error
}

func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget()
}

// forget is called with mu held.
func (c *cache) forget() {
	c.generation++
	c.stats.Clearings++
	c.users, c.domains, c.limits = answers[addr.Address, User]{}, answers[string, Domain]{}, answers[string, Limits]{}
	c.apps = answers[addr.Address, []AppPassword]{}
	c.aliases = answers[addr.Address, []string]{}
}

// fresh is called with mu held.
func (c *cache) fresh(ctx context.Context) {
	now := c.now()
	if d := now.Sub(c.checked); d >= 0 && d < c.every {
		return
	}
	version, err := c.version(ctx)
	if err != nil {
		c.stats.Failures++
	}
	switch {
	case err != nil && c.stale > 0 && now.Sub(c.good) < c.stale:
		// The server is down: what is kept goes on.
	case err != nil || version != c.last:
		c.forget()
		c.begun = now
	case c.stale > 0 && now.Sub(c.begun) > foreignTime:
		c.forget()
		c.begun = now
	}
	if err == nil {
		c.good, c.last = now, version
	}
	c.checked = now
}

// lookUp gives the answer that is kept for key, or asks. A failure to ask is not kept.
func lookUp[K comparable, V any](ctx context.Context, c *cache, kept *answers[K, V], key K, ask func() (V, error)) (V, error) {
	c.mu.Lock()
	c.fresh(ctx)
	v, found := kept.found[key]
	err, missing := kept.missing[key]
	generation := c.generation
	switch {
	case found:
		c.stats.Hits++
	case missing:
		c.stats.Hits, c.stats.Negative = c.stats.Hits+1, c.stats.Negative+1
	default:
		c.stats.Misses++
	}
	c.mu.Unlock()
	if found || missing {
		return v, err
	}
	v, err = ask()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case generation != c.generation:
	case err == nil:
		keep(&kept.found, key, v)
	case errors.Is(err, ErrNoUser), errors.Is(err, ErrNoDomain), errors.Is(err, ErrNoAlias):
		keep(&kept.missing, key, err)
	}
	return v, err
}

func keep[K comparable, V any](m *map[K]V, key K, v V) {
	if *m == nil || len(*m) >= maxCached {
		*m = map[K]V{}
	}
	(*m)[key] = v
}
