package directory

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// channel is where PostgreSQL tells of changes: a notice comes with the commit of each.
	channel = "indigo_change"
	// listenTime bounds a wait for notices; then the connection is tried.
	listenTime = time.Minute
	// listenAgain and listenMost are the shortest and longest times between two tries to connect.
	listenAgain = time.Second
	listenMost  = 30 * time.Second
)

// startListening keeps a connection for the notices of other hosts' changes, so that the cache looks at the version at once and not
// when its time has come. The looks go on: a notice that is lost, or a pool in between that passes none on, costs only time.
func (s *Store) startListening(dsn string) {
	ctx, cancel := context.WithCancel(context.Background())
	s.stopListening = cancel
	s.listening.Go(func() {
		for wait := listenAgain; ctx.Err() == nil; wait = min(2*wait, listenMost) {
			if s.listen(ctx, dsn) {
				wait = listenAgain
			}
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
		}
	})
}

// listen passes notices on until the connection ends; heard is true if there was one.
func (s *Store) listen(ctx context.Context, dsn string) (heard bool) {
	within := func(d time.Duration, do func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		return do(ctx)
	}
	var conn *pgx.Conn
	err := within(connectTime, func(ctx context.Context) (err error) {
		if conn, err = pgx.Connect(ctx, dsn); err != nil {
			return err
		}
		_, err = conn.Exec(ctx, "LISTEN "+channel)
		return err
	})
	if conn != nil {
		defer within(connectTime, func(ctx context.Context) error { return conn.Close(context.WithoutCancel(ctx)) })
	}
	if err != nil {
		return false
	}
	s.cache.hears(true)
	defer s.cache.hears(false)
	for ctx.Err() == nil {
		err := within(listenTime, func(ctx context.Context) error {
			_, err := conn.WaitForNotification(ctx)
			return err
		})
		switch {
		case err == nil:
			s.cache.recheck()
		case errors.Is(err, context.DeadlineExceeded):
			if within(connectTime, conn.Ping) != nil {
				return true
			}
		default:
			return true
		}
	}
	return true
}

// hears tells whether notices come; what was said while they did not is looked for.
func (c *cache) hears(on bool) {
	c.mu.Lock()
	c.listening = on
	c.mu.Unlock()
	c.recheck()
}

// OthersTell says whether other hosts tell of their changes (Config.Changed) by some way outside of the database, and so calls Recheck.
func (s *Store) OthersTell(on bool) {
	s.cache.mu.Lock()
	s.cache.told = on
	s.cache.mu.Unlock()
	s.cache.recheck()
}

// Recheck says that another host may have changed something: the next look-up looks at the database's version, and what is kept is
// forgotten if that has moved.
func (s *Store) Recheck() { s.cache.recheck() }

// recheck makes the next look-up look at the version.
func (c *cache) recheck() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.checked = time.Time{}
}
