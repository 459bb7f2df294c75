package directory

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

// cache keeps what was found, and what is not there. Own writes clear it at once; writes of other processes do so within
// checkEvery, by SQLite's data_version.
type cache struct {
	now   func() time.Time
	watch *sql.Conn

	mu      sync.Mutex
	checked time.Time
	version int64
	// generation counts the clearings: an answer from before one must not be kept after it.
	generation uint64
	users      answers[addr.Address, User]
	domains    answers[string, Domain]
}

const (
	checkEvery = 20 * time.Millisecond
	maxCached  = 10000
)

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
	c.users, c.domains = answers[addr.Address, User]{}, answers[string, Domain]{}
}

// fresh is called with mu held.
func (c *cache) fresh(ctx context.Context) {
	now := c.now()
	if d := now.Sub(c.checked); d >= 0 && d < checkEvery {
		return
	}
	var version int64
	if err := c.watch.QueryRowContext(ctx, "PRAGMA data_version").Scan(&version); err != nil || version != c.version {
		c.forget()
	}
	c.checked, c.version = now, version
}

// lookUp gives the answer that is kept for key, or asks. A failure to ask is not kept.
func lookUp[K comparable, V any](ctx context.Context, c *cache, kept *answers[K, V], key K, ask func() (V, error)) (V, error) {
	c.mu.Lock()
	c.fresh(ctx)
	v, found := kept.found[key]
	err, missing := kept.missing[key]
	generation := c.generation
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
	case errors.Is(err, ErrNoUser), errors.Is(err, ErrNoDomain):
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
