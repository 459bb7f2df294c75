package redis

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/indigomail/indigo/test/redisserver"
)

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for !holds() {
		if time.Now().After(end) {
			t.Fatal("in vain: ", what)
		}
		select {
		case <-t.Context().Done():
		case <-time.After(time.Millisecond):
		}
	}
}

// text is a log that may be written and read at once.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *text) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *text) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

var echo = NewScript(`return {ARGV[1], ARGV[2]}`)
var bad = NewScript(`return redis.call('HGET', 'a')`)

func config(log *text) Config {
	return Config{Dial: new(net.Dialer).DialContext, Now: time.Now, Logger: slog.New(slog.NewTextHandler(log, nil)), Host: "here", Scripts: []*Script{echo, bad}}
}

func begin(t *testing.T, c Config, o Options) *Link {
	t.Helper()
	o.Prefix = "p:"
	l := New(c, o)
	l.Start()
	t.Cleanup(l.Close)
	return l
}

// TestWays: by TCP, TLS and a Unix socket, with and without user and password, with no more rights than the documentation asks for; and what
// is said of each that does not work, which has nothing of the password in it.
func TestWays(t *testing.T) {
	const rules = "~p:* &p:* -@all +auth +ping +select +script|load +evalsha +publish +subscribe +time +zadd +zrangebyscore +zremrangebyscore +expire"
	plain, locked, secure := redisserver.For(t, redisserver.Config{}), redisserver.For(t, redisserver.Config{User: "indigo", Password: "pass/word", Rules: rules}), redisserver.For(t, redisserver.Config{TLS: true, Password: "secret"})
	ca, err := os.ReadFile(secure.CA)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		o    Options
		why  string
	}{
		{"tcp", Options{Network: "tcp", Address: "127.0.0.1:" + plain.Port}, ""},
		{"unix", Options{Network: "unix", Address: plain.Socket, DB: 3}, ""},
		{"user", Options{Network: "tcp", Address: "127.0.0.1:" + locked.Port, User: "indigo", Password: "pass/word"}, ""},
		{"wrong password", Options{Network: "tcp", Address: "127.0.0.1:" + locked.Port, User: "indigo", Password: "hunter2"}, "WRONGPASS"},
		{"no password", Options{Network: "tcp", Address: "127.0.0.1:" + locked.Port}, "NOAUTH"},
		{"other prefix", Options{Network: "tcp", Address: "127.0.0.1:" + locked.Port, User: "indigo", Password: "pass/word", Prefix: "q:"}, "NOPERM"},
		{"tls", Options{Network: "tcp", Address: "127.0.0.1:" + secure.Port, Password: "secret", TLS: true, CA: string(ca)}, ""},
		{"tls, other authorities", Options{Network: "tcp", Address: "127.0.0.1:" + secure.Port, Password: "secret", TLS: true}, "certificate"},
		{"no tls", Options{Network: "tcp", Address: "127.0.0.1:" + secure.Port, Password: "secret"}, "the server closed the connection"},
		{"nobody", Options{Network: "tcp", Address: "127.0.0.1:1"}, "refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := &text{}
			conf := config(log)
			heard := make(chan string, 10)
			conf.Heard = map[string]func(string){"news": func(text string) { heard <- text }}
			if c.o.Prefix == "" {
				c.o.Prefix = "p:"
			}
			l := New(conf, c.o)
			l.Start()
			defer l.Close()
			if c.why != "" {
				until(t, "it is said why", func() bool { return strings.Contains(l.Stats().Error, c.why) })
				if _, err := l.Ask(t.Context(), echo, "x"); !errors.Is(err, ErrDown) {
					t.Error(err)
				}
				if s := l.Stats(); s.Up || s.Skipped == 0 || strings.Contains(log.String()+fmt.Sprint(s), "hunter2") || strings.Contains(log.String(), "secret") {
					t.Errorf("%+v\n%s", s, log.String())
				}
				return
			}
			until(t, "it is up", l.Up)
			got, err := l.Ask(t.Context(), echo, "a\r\nb\x00")
			if err != nil || len(got) != 2 || got[0] != "p:" || got[1] != "a\r\nb\x00" {
				t.Errorf("%q %v", got, err)
			}
			l.Announce("news", "of all")
			select {
			case got := <-heard:
				if got != "of all" {
					t.Errorf("heard %q", got)
				}
			case <-time.After(10 * time.Second):
				t.Error("nothing heard")
			}
			if s := l.Status(t.Context()); !s.Up || s.Server != c.o.Address || strings.Join(s.Hosts, " ") != "here" || s.Answered != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestDown: what the server does wrong takes the Link down at once, nobody waits for it, the log says it once, and it comes back by itself.
func TestDown(t *testing.T) {
	server := redisserver.For(t, redisserver.Config{})
	log := &text{}
	l := begin(t, config(log), Options{Network: "tcp", Address: "127.0.0.1:" + server.Port})
	until(t, "it is up", l.Up)
	// An error of the server's.
	if _, err := l.Ask(t.Context(), bad); err == nil {
		t.Error("no error")
	}
	until(t, "it is down", func() bool { return !l.Up() })
	until(t, "it is up again", l.Up)
	// A server that is stopped: found out by the sign of life, without a question.
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	until(t, "it is seen", func() bool { return !l.Up() })
	t.Logf("a server that is stopped is seen after %v", time.Since(began))
	began = time.Now()
	for range 10000 {
		if _, err := l.Ask(t.Context(), echo, "x"); !errors.Is(err, ErrDown) {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > time.Minute { // and more than half an hour if each were asked
		t.Errorf("10,000 questions took %v", took)
	}
	if err := server.Continue(); err != nil {
		t.Fatal(err)
	}
	until(t, "it is up again", l.Up)
	// By a question.
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	if _, err := l.Ask(t.Context(), echo, "x"); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > AskTime+10*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	if _, err := l.Ask(t.Context(), echo, "x"); !errors.Is(err, ErrDown) {
		t.Error(err)
	}
	// One that goes on in time was never down.
	since := l.Stats().Since
	if err := server.Continue(); err != nil {
		t.Fatal(err)
	}
	until(t, "it is asked again", func() bool { _, err := l.Ask(t.Context(), echo, "x"); return err == nil })
	if !l.Stats().Since.Equal(since) {
		t.Error("it was down")
	}
	server.Kill()
	until(t, "it is down", func() bool { return !l.Up() })
	// What was announced meanwhile is said when it is back.
	heard := make(chan string, 100)
	l.Announce("news", "lost")
	l.Announce("news", "last")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conf := config(&text{})
	conf.Host, conf.Heard = "there", map[string]func(string){"news": func(text string) { heard <- text }}
	if err := server.Again(ctx); err != nil {
		t.Fatal(err)
	}
	until(t, "it is up again", l.Up)
	l.Flush(ctx)
	other := begin(t, conf, Options{Network: "tcp", Address: "127.0.0.1:" + server.Port})
	until(t, "the other is up", other.Up)
	l.Announce("news", "now")
	l.Flush(ctx)
	select {
	case got := <-heard:
		if got != "now" && got != "last" {
			t.Errorf("heard %q", got)
		}
	case <-ctx.Done():
		t.Error("nothing heard")
	}
	if got := strings.Join(l.Status(ctx).Hosts, " "); got != "here there" {
		t.Errorf("the hosts are %s", got)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 3 {
		t.Errorf("%d warnings:\n%s", n, log.String())
	}
	// Off, and on again, as a reload does it.
	l.Use(Options{})
	until(t, "it is off", func() bool { return !l.Up() && !l.Set() && l.Stats().Server == "" })
	l.Use(Options{Network: "unix", Address: server.Socket, Prefix: "p:"})
	until(t, "it is on", l.Up)
}

// TestReadOnly: a server that lets nothing be written is none.
func TestReadOnly(t *testing.T) {
	server := redisserver.For(t, redisserver.Config{Lines: []string{"replicaof 127.0.0.1 1"}})
	l := begin(t, config(&text{}), Options{Network: "tcp", Address: "127.0.0.1:" + server.Port})
	until(t, "it is said why", func() bool {
		s := l.Stats()
		return !s.Up && strings.Contains(s.Error, "READONLY") || strings.Contains(s.Error, "MASTERDOWN")
	})
	full := redisserver.For(t, redisserver.Config{Lines: []string{"maxmemory 1", "maxmemory-policy noeviction"}})
	l = begin(t, config(&text{}), Options{Network: "tcp", Address: "127.0.0.1:" + full.Port})
	until(t, "it is said why", func() bool { return strings.Contains(l.Stats().Error, "OOM") })
}

// TestRude: a peer that speaks no Redis, or answers without an end, is down and eats no memory.
func TestRude(t *testing.T) {
	for _, answer := range []string{"HTTP/1.1 400 Bad Request\r\n\r\n", "*1000000000\r\n", "$2000000000\r\n", strings.Repeat("*1\r\n", 1000), strings.Repeat("*16000\r\n$1\r\nx\r\n", 100000), "+OK\r\n+OK\r\n+OK\r\n", ""} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var serving sync.WaitGroup
		serving.Go(func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(conn, answer)
				conn.Close()
			}
		})
		u := url.URL{Host: listener.Addr().String()}
		l := begin(t, config(&text{}), Options{Network: "tcp", Address: u.Host})
		until(t, "it is down", func() bool { s := l.Stats(); return s.Error != "" && s.Error != "not connected yet" })
		if l.Up() {
			t.Errorf("%q is taken for a server", answer)
		}
		l.Close()
		listener.Close()
		serving.Wait()
	}
}

// TestEcho: a server that repeats what it was told, as Redis does with commands that it does not know, puts no password into logs.
func TestEcho(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(conn, "-ERR unknown command 'AUTH', with args beginning with: 'hunter2'\x1b[2J\r\n")
			// Until the client hangs up.
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		}
	})
	var log text
	l := begin(t, config(&log), Options{Network: "tcp", Address: listener.Addr().String(), Password: "hunter2"})
	until(t, "it is said why", func() bool { return strings.Contains(l.Stats().Error, "unknown command") })
	all := l.Stats().Error + log.String()
	l.Close()
	listener.Close()
	serving.Wait()
	if strings.Contains(all, "hunter2") || strings.Contains(all, "\x1b") {
		t.Errorf("%q", all)
	}
}
