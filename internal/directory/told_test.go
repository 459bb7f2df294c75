package directory

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

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
	w := hearing{t, ctx, s, other}
	hears.Start()
	tells.Start()
	w.until("it hears", func() bool { return s.CacheStats().Listening && tells.Up() })
	if err := other.AddDomain(ctx, "example.org"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
		w.change(name)
	}
	bus.Kill()
	w.until("nobody tells", func() bool { return !s.CacheStats().Listening && !tells.Up() })
	w.add("d")
	if w.sees("d") {
		t.Error("d is seen although nobody told and the clock stands still")
	}
	now = now.Add(checkServer)
	w.until("d", func() bool { return w.sees("d") })
	if err := bus.Again(ctx); err != nil {
		t.Fatal(err)
	}
	w.until("it hears again", func() bool { return s.CacheStats().Listening && tells.Up() })
	w.change("e")
}
