package directory

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/redis"
	"github.com/indigomail/indigo/test/redisserver"
)

// TestToldByRedis: on MariaDB, another host's changes are seen at once when it tells of them, without the clock that the looks at the version go
// by; and while nobody can tell, by that clock.
func TestToldByRedis(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	bus := redisserver.For(t, redisserver.Config{})
	dsn, dir := server(t, "mariadb").DSN(), t.TempDir()
	now := time.Now()
	var s *Store
	link := func(heard map[string]func(string), changed func(bool)) *redis.Link {
		l := redis.New(redis.Config{Dial: new(net.Dialer).DialContext, Now: time.Now, Logger: slog.New(slog.DiscardHandler), Heard: heard, Changed: changed}, redis.Options{Network: "unix", Address: bus.Socket, Prefix: "test:"})
		t.Cleanup(l.Close)
		return l
	}
	hears := link(map[string]func(string){"directory": func(string) { s.Recheck() }}, func(up bool) { s.OthersTell(up) })
	tells := link(nil, nil)
	// The clock stands still.
	var err error
	s, err = Open(ctx, Config{DSN: dsn, Path: filepath.Join(dir, "db"), MailRoot: filepath.Join(dir, "domains"), Now: func() time.Time { return now }, Secrets: asGiven{}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	other, err := Open(ctx, Config{DSN: dsn, Path: filepath.Join(dir, "db"), MailRoot: filepath.Join(dir, "domains"), Now: time.Now, Secrets: asGiven{}, Changed: func() { tells.Announce("directory", "other") }})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	until := func(what string, holds func() bool) (took time.Duration) {
		t.Helper()
		began := time.Now()
		for !holds() {
			select {
			case <-ctx.Done():
				t.Fatal("in vain: ", what)
			case <-time.After(100 * time.Microsecond):
			}
		}
		return time.Since(began)
	}
	hears.Start()
	tells.Start()
	until("it hears", func() bool { return s.CacheStats().Listening && tells.Up() })
	if err := other.AddDomain(ctx, "example.org"); err != nil {
		t.Fatal(err)
	}
	seen := func(name string) func() bool {
		a := addr.Address{Local: name, Domain: "example.org"}
		return func() bool {
			_, err := s.User(ctx, a)
			if err != nil && !errors.Is(err, ErrNoUser) && !errors.Is(err, ErrNoDomain) {
				t.Fatal(err)
			}
			return err == nil
		}
	}
	change := func(name string) {
		t.Helper()
		seen(name)()
		if err := other.AddUser(ctx, NewUser{Name: name, Domain: "example.org", Password: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a", "b", "c"} {
		change(name)
		t.Logf("%s seen after %v", name, until(name, seen(name)))
	}
	bus.Kill()
	until("nobody tells", func() bool { return !s.CacheStats().Listening && !tells.Up() })
	seen("d")()
	change("d")
	if seen("d")() {
		t.Error("d is seen although nobody told and the clock stands still")
	}
	now = now.Add(checkServer)
	until("d", seen("d"))
	if err := bus.Again(ctx); err != nil {
		t.Fatal(err)
	}
	until("it hears again", func() bool { return s.CacheStats().Listening && tells.Up() })
	change("e")
	t.Logf("e seen after %v", until("e", seen("e")))
}
