package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/redis"
	"github.com/indigomail/indigo/test/redisserver"
)

// sharing is a host: a Guard on a Link, with a clock that the test moves.
type sharing struct {
	*Guard
	link *redis.Link
}

// clock is set by the test.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newSharing(t *testing.T, s *redisserver.Server, name string, limits func(string) Limits, c *clock) *sharing {
	t.Helper()
	var g *Guard
	log := slog.New(slog.DiscardHandler)
	now := time.Now
	if c != nil {
		now = c.Now
	}
	heard := map[string]func(string){ClearedChannel: func(text string) { g.Cleared(text) }}
	// One whose clock is handed in is compared with another, to which no server can be too slow.
	patience := time.Duration(100)
	if c == nil {
		patience = 1
		// A clock that leaps would be ahead of the message.
		heard[LockedChannel] = func(text string) { g.Locked(text) }
	}
	link := redis.New(redis.Config{
		Dial: new(net.Dialer).DialContext, Now: time.Now, Logger: log, Host: name, Scripts: SharedScripts(),
		Joined:  func(ctx context.Context, c *redis.Conn, again bool) error { return g.Join(ctx, c, again) },
		Heard:   heard,
		Changed: func(up bool) { g.SharedChanged(up) }, Patience: patience,
	}, redis.Options{Network: "tcp", Address: "127.0.0.1:" + s.Port, Prefix: "test:"})
	g = NewGuard(GuardConfig{Limits: limits, Now: now, Logger: log, Key: []byte("the same on all hosts"), Shared: link})
	g.ownClock = c != nil
	link.Start()
	t.Cleanup(link.Close)
	h := &sharing{g, link}
	h.await(t, name+" is connected", link.Up)
	return h
}

func (h *sharing) await(t *testing.T, what string, holds func() bool) {
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

// has tells whether something counts for a name, or with "" any, in this host's memory.
func (h *sharing) has(name string) (found bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, one := range h.both("", "", Limits{}) {
		one.table.all(func(k string, f *failures) {
			if (name == "" || k == name) && (f.level > 0 || !f.until.IsZero()) {
				found = true
			}
		})
	}
	return found
}

// cleared counts what this host heard of clearing, and did.
func (h *sharing) cleared() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.clearings
}

// asks tells whether a question is asked, and not left out for now.
func (h *sharing) asks(t *testing.T) bool {
	_, ok := h.askList(t.Context(), h.config.Limits("all"), h.config.Now())
	return ok
}

func (h *sharing) flush(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	h.link.Flush(ctx)
	if ctx.Err() != nil {
		t.Fatal("what was told is not done")
	}
}

// begun is a login under way.
type begun struct {
	host    int
	attempt Attempt
	known   bool
}

// TestSharedModel: two hosts that share their counts decide as one that has them in memory, step by step: refusals, delays, repeated wrong
// passwords, locks, who is known, checks at once, clearing and the passing of time.
func TestSharedModel(t *testing.T) {
	server := redisserver.For(t, redisserver.Config{})
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 7))
		if _, err := server.Do(t.Context(), "FLUSHALL"); err != nil {
			t.Fatal(err)
		}
		limits := Limits{Client: random.IntN(6), Account: random.IntN(8), Time: time.Duration(1+random.IntN(1800)) * time.Second, Delay: 8 * time.Second}
		// Some go slowly, and some have few passwords.
		slow, passwords := 4*(1+random.Int64N(50)), 5+random.IntN(60)
		give := func(string) Limits { return limits }
		c := &clock{now: time.Now().Truncate(time.Microsecond)}
		one := NewGuard(GuardConfig{Limits: give, Now: c.Now, Logger: slog.New(slog.DiscardHandler)})
		hosts := []*sharing{newSharing(t, server, "a", give, c), newSharing(t, server, "b", give, c)}
		var under []begun
		for step := range 600 {
			if random.IntN(3) == 0 {
				c.add(time.Duration(random.Int64N(int64(limits.Time)/slow)) / 1000 * 1000)
			}
			if random.IntN(100) == 0 {
				c.add(limits.Time + time.Duration(random.IntN(7200))*time.Second)
			}
			what := fmt.Sprintf("seed %d step %d %+v", seed, step, limits)
			i := random.IntN(2)
			h := hosts[i]
			a := Attempt{User: fmt.Sprintf("u%d@d.example", random.IntN(4)), Password: fmt.Sprint("p", random.IntN(passwords)), Client: netip.AddrFrom4([4]byte{192, 0, 2, byte(random.IntN(4))}), Service: "imapd.143"}
			if random.IntN(5) == 0 {
				a.Password = ""
			}
			// A token need not say whose it is.
			if random.IntN(6) == 0 {
				a.User = ""
			}
			switch random.IntN(20) {
			case 0:
				name := []string{"", a.User, a.Client.String()}[random.IntN(3)]
				other := hosts[1-i]
				before := other.cleared()
				if got, want := h.Unlock(t.Context(), name), one.Unlock(t.Context(), name); got != want {
					t.Fatalf("%s: %d cleared, want %d", what, got, want)
				}
				other.await(t, what+": the other host hears of it", func() bool { return other.cleared() > before })
			case 1:
				got, want := h.Locks(t.Context(), true), one.Locks(t.Context(), true)
				round := func(all []Lock) (text []string) {
					for _, l := range all {
						text = append(text, fmt.Sprintf("%s %s %d %d %v %v", l.By, l.Name, l.Failures, l.Refused, l.Since.Round(time.Millisecond).UTC(), l.Until.Round(time.Millisecond).UTC()))
					}
					slices.Sort(text)
					return text
				}
				if !slices.Equal(round(got), round(want)) {
					t.Fatalf("%s: locks\n%s\nwant\n%s", what, strings.Join(round(got), "\n"), strings.Join(round(want), "\n"))
				}
			default:
				if len(under) > 0 && random.IntN(2) == 0 {
					b := under[0]
					under = under[1:]
					h := hosts[b.host]
					address, _ := addr.Parse(cmp.Or(b.attempt.User, "u1@d.example"))
					err := error(errFailed.Because(errors.New("wrong password")))
					switch random.IntN(8) {
					case 0:
						err = nil
					case 1:
						err = errUnavailable.Because(errors.New("no directory"))
					}
					got := h.count(t.Context(), b.attempt, b.known, b.attempt.User, Identity{Address: address}, err)
					want := one.count(t.Context(), b.attempt, b.known, b.attempt.User, Identity{Address: address}, err)
					h.flush(t)
					if got != want {
						t.Fatalf("%s: %+v %v: waits %v, want %v", what, b, err, got, want)
					}
					continue
				}
				known, err := h.before(t.Context(), a, a.User)
				wantKnown, wantErr := one.before(t.Context(), a, a.User)
				if known != wantKnown || fmt.Sprint(err) != fmt.Sprint(wantErr) || err != nil && errors.Unwrap(err).Error() != errors.Unwrap(wantErr).Error() {
					t.Fatalf("%s: %s from %s: %v %v, want %v %v", what, a.User, a.Client, known, err, wantKnown, wantErr)
				}
				if err == nil {
					under = append(under, begun{i, a, known})
				}
			}
		}
		s := one.Stats()
		got := hosts[0].Stats()
		more := hosts[1].Stats()
		if s.Failed != got.Failed+more.Failed || s.Refused != got.Refused+more.Refused || s.Locks != got.Locks+more.Locks || s.Repeated != got.Repeated+more.Repeated {
			t.Errorf("seed %d: %+v and %+v, want %+v", seed, got, more, s)
		}
		for _, h := range hosts {
			if l := h.link.Stats(); l.Failed+l.Skipped > 0 {
				t.Errorf("seed %d: %+v", seed, l)
			}
			h.link.Close()
		}
		if testing.Verbose() {
			t.Logf("seed %d: %+v %+v", seed, limits, s)
		}
	}
	// Nothing stays for ever.
	keys, err := server.Do(t.Context(), "KEYS", "*")
	if err != nil || keys == "" {
		t.Fatal(keys, err)
	}
	for key := range strings.SplitSeq(keys, "\n") {
		if left, err := server.Do(t.Context(), "PTTL", key); err != nil || strings.HasPrefix(left, "-") {
			t.Errorf("%s lives for %s, %v", key, left, err)
		}
	}
}

// attempt is a whole login at a host; its delay is not waited for.
func (h *sharing) attempt(t *testing.T, client, user, password string) (code int, took time.Duration) {
	t.Helper()
	a := Attempt{User: user, Password: password, Client: netip.MustParseAddr(client), Service: "imapd.143"}
	began := time.Now()
	known, err := h.before(t.Context(), a, user)
	if err != nil {
		return 454, time.Since(began)
	}
	address, _ := addr.Parse(user)
	code = 235
	if password != "right" {
		code, err = 535, errFailed.Because(errors.New("wrong password"))
	}
	h.count(t.Context(), a, known, user, Identity{Address: address}, err)
	return code, time.Since(began)
}

func threeFive(string) Limits { return Limits{Client: 3, Account: 5, Time: 15 * time.Minute} }

// TestSharedOutage: a server that dies, or stops answering, changes nothing of what is locked, holds up nobody for longer than is said, and
// gets back what it forgot; what is cleared meanwhile at one host is cleared at all.
func TestSharedOutage(t *testing.T) {
	server := redisserver.For(t, redisserver.Config{})
	a, b := newSharing(t, server, "a", threeFive, nil), newSharing(t, server, "b", threeFive, nil)
	wrong := 0
	lock := func(h *sharing, client, user string) {
		t.Helper()
		for range 3 {
			wrong++
			if code, _ := h.attempt(t, client, user, fmt.Sprint("wrong", wrong)); code != 535 {
				t.Fatalf("%s from %s: %d", user, client, code)
			}
		}
	}
	want := func(h *sharing, client, user string, code int) {
		t.Helper()
		if got, took := h.attempt(t, client, user, "right"); got != code || took > 10*time.Second {
			t.Fatalf("%s from %s: %d after %v, want %d", user, client, got, took, code)
		}
	}
	want(a, "192.0.2.100", "known@d.example", 235)
	a.flush(t)
	lock(a, "192.0.2.1", "x@d.example")
	want(b, "192.0.2.1", "y@d.example", 454)
	// Two more failures lock the account everywhere, but for whom another host knows.
	lock(b, "192.0.2.2", "known@d.example")
	for i := range 2 {
		if code, _ := a.attempt(t, "192.0.2.3", "known@d.example", fmt.Sprint("bad", i)); code != 535 {
			t.Fatal(code)
		}
	}
	want(b, "192.0.2.9", "known@d.example", 454)
	want(b, "192.0.2.100", "known@d.example", 235)

	// What one has locked, the other knows without a question.
	lock(a, "192.0.2.7", "l@d.example")
	b.await(t, "b hears of the lock", func() bool { return b.has("192.0.2.7") })
	server.Kill()
	want(b, "192.0.2.7", "m@d.example", 454)
	for _, h := range []*sharing{a, b} {
		h.await(t, "it is seen that the server is dead", func() bool { return !h.link.Up() })
	}
	want(a, "192.0.2.1", "y@d.example", 454)
	want(b, "192.0.2.1", "y@d.example", 454)
	want(a, "192.0.2.5", "z@d.example", 235)
	// Each counts by itself.
	lock(a, "192.0.2.6", "z@d.example")
	want(a, "192.0.2.6", "v@d.example", 454)
	want(b, "192.0.2.6", "v@d.example", 235)
	// b has seen this lock, and so knows of it; it is cleared here.
	if n := b.Unlock(t.Context(), "192.0.2.1"); n != 1 {
		t.Errorf("%d cleared", n)
	}
	want(b, "192.0.2.1", "w@d.example", 235)
	want(a, "192.0.2.1", "v@d.example", 454)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := server.Again(ctx); err != nil {
		t.Fatal(err)
	}
	for _, h := range []*sharing{a, b} {
		h.await(t, "it is up again", h.link.Up)
	}
	// The server knew nothing: what is locked came from the hosts, and what b cleared is.
	want(b, "192.0.2.6", "u@d.example", 454)
	a.await(t, "a hears what b cleared", func() bool { return !a.has("192.0.2.1") })
	want(a, "192.0.2.1", "u@d.example", 235)
	want(b, "192.0.2.2", "u@d.example", 454)
	names := func(h *sharing) (all []string) {
		for _, l := range h.Locks(t.Context(), false) {
			all = append(all, l.Name)
		}
		slices.Sort(all)
		return all
	}
	if got, other := names(a), names(b); !slices.Equal(got, other) || strings.Join(got, " ") != "192.0.2.2 192.0.2.6 192.0.2.7 known@d.example" {
		t.Errorf("%v, %v", got, other)
	}
	// Cleared at a while b cannot hear it: b hears it when it is back, and does not bring the lock back.
	old := a.link
	b.link.Use(redis.Options{Network: "tcp", Address: "127.0.0.1:1", Prefix: "test:"})
	b.await(t, "b is away", func() bool { return !b.link.Up() })
	if n := a.Unlock(t.Context(), "192.0.2.6"); n != 1 || !old.Up() {
		t.Errorf("%d cleared", n)
	}
	b.link.Use(redis.Options{Network: "tcp", Address: "127.0.0.1:" + server.Port, Prefix: "test:"})
	b.await(t, "b is back", b.link.Up)
	want(b, "192.0.2.6", "u@d.example", 235)
	want(a, "192.0.2.6", "t@d.example", 235)

	// A server that says nothing at all: one login may wait for it, and none after.
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	began, most, logins := time.Now(), time.Duration(0), 0
	for time.Since(began) < time.Second {
		_, took := a.attempt(t, fmt.Sprintf("198.51.100.%d", logins%250), fmt.Sprintf("n%d@d.example", logins), "wrong")
		logins++
		most = max(most, took)
	}
	t.Logf("%d logins beside a server that is stopped, the slowest took %v", logins, most)
	// If each waited there would be four.
	if logins < 50 {
		t.Errorf("%d logins, the slowest took %v", logins, most)
	}
	a.await(t, "it is down", func() bool { return !a.link.Up() })
	want(a, "192.0.2.2", "u@d.example", 454)
	if err := server.Continue(); err != nil {
		t.Fatal(err)
	}
	a.await(t, "it is up again", a.link.Up)
	if s := a.link.Stats(); s.Error != "" || s.Failed == 0 {
		t.Errorf("%+v", s)
	}
}

// TestSharedFlood: 10,000 wrong logins at once at two hosts let no more through than the limits say, within a bounded number of questions at a
// time, and what the server keeps is bounded.
func TestSharedFlood(t *testing.T) {
	server := redisserver.For(t, redisserver.Config{})
	limits := func(string) Limits { return Limits{Client: 10, Account: 30, Time: time.Hour} }
	a, b := newSharing(t, server, "a", limits, nil), newSharing(t, server, "b", limits, nil)
	var all sync.WaitGroup
	var mu sync.Mutex
	codes, most := map[int]int{}, time.Duration(0)
	for i := range 10000 {
		all.Go(func() {
			h := []*sharing{a, b}[i%2]
			code, took := h.attempt(t, fmt.Sprintf("192.0.2.%d", i%100), fmt.Sprintf("u%d@d.example", i), fmt.Sprint("guess", i))
			mu.Lock()
			defer mu.Unlock()
			codes[code]++
			most = max(most, took)
		})
	}
	all.Wait()
	a.await(t, "it is up", func() bool { return a.asks(t) && b.asks(t) })
	t.Logf("%v, the slowest took %v; %+v", codes, most, a.link.Stats())
	// Of each address between 10 and 20, which were under way at once, failed.
	if codes[535] < 1000 || codes[535] > 2000 || len(a.Locks(t.Context(), false)) < 100 {
		t.Errorf("%v", codes)
	}
	for i := range 25000 {
		a.attempt(t, fmt.Sprintf("10.1.%d.%d", i/250, i%250), fmt.Sprintf("v%d@d.example", i), "guess")
	}
	for _, index := range []string{"test:clients", "test:accounts"} {
		if n, err := server.Do(t.Context(), "ZCARD", index); err != nil || len(n) > 5 || n > "20000" && len(n) == 5 {
			t.Errorf("%s has %s, %v", index, n, err)
		}
	}
	memory, err := server.Do(t.Context(), "INFO", "memory")
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(memory[strings.Index(memory, "used_memory_dataset:"):], "\r")
	t.Logf("the server has %s", line)
	// A busy machine has the server doubted now and then, and this host's own list is another.
	var locks []Lock
	a.await(t, "the server gives its list", func() bool {
		found, ok := a.askList(t.Context(), limits(""), time.Now())
		locks = slices.DeleteFunc(found, func(l Lock) bool { return l.Until.IsZero() })
		return ok
	})
	if len(locks) != 100 {
		t.Errorf("%d locks survived", len(locks))
	}
}

// TestSharedSecrets: nothing that the server keeps or is sent has a password in it, or tells who logs in from where.
func TestSharedSecrets(t *testing.T) {
	server := redisserver.For(t, redisserver.Config{})
	a := newSharing(t, server, "a", threeFive, nil)
	a.attempt(t, "192.0.2.1", "ann@d.example", "right")
	a.attempt(t, "192.0.2.2", "bob@d.example", "hunter2")
	a.flush(t)
	keys, err := server.Do(t.Context(), "KEYS", "*")
	if err != nil {
		t.Fatal(err)
	}
	all := keys
	for key := range strings.SplitSeq(keys, "\n") {
		kind, _ := server.Do(t.Context(), "TYPE", key)
		read := map[string][]string{"hash": {"HGETALL", key}, "zset": {"ZRANGE", key, "0", "-1", "WITHSCORES"}}[kind]
		text, err := server.Do(t.Context(), read...)
		if err != nil {
			t.Fatal(key, kind, err)
		}
		all += "\n" + text
	}
	for _, secret := range []string{"hunter2", "right", "ann@", "192.0.2.1"} {
		if strings.Contains(all, secret) {
			t.Errorf("the server has %q:\n%s", secret, all)
		}
	}
	if !strings.Contains(all, "bob@d.example") || !strings.Contains(all, "192.0.2.2") {
		t.Errorf("the server does not have what failed:\n%s", all)
	}
}

// TestSharedNonsense: a server on which somebody else wrote, or that answers with what is none of ours, leaves each host to itself.
func TestSharedNonsense(t *testing.T) {
	server := redisserver.For(t, redisserver.Config{})
	a := newSharing(t, server, "a", threeFive, nil)
	for _, command := range [][]string{
		{"SET", "test:client:192.0.2.1", "nonsense"}, {"HSET", "test:client:192.0.2.2", "level", "nan", "last", "0", "ends", "0"},
		{"HSET", "test:client:192.0.2.3", "level", "x", "last", "0", "ends", "0"}, {"HSET", "test:client:192.0.2.4", "level", "1e300", "last", "99999999999999999999"},
		{"HSET", "test:client:192.0.2.5", "ends", "9000000000000000", "last", "1"},
	} {
		if _, err := server.Do(t.Context(), command...); err != nil {
			t.Fatal(err)
		}
		client := command[1][len("test:client:"):]
		if code, took := a.attempt(t, client, "u@d.example", fmt.Sprint("wrong", client)); code != 535 && client != "192.0.2.5" || took > 5*time.Second {
			t.Errorf("%v: %d after %v", command, code, took)
		}
		a.await(t, "it is up", a.link.Up)
	}
	// No lock lasts longer than one may, whatever the server says.
	server.Kill()
	a.await(t, "it is down", func() bool { return !a.link.Up() })
	for _, l := range a.Locks(t.Context(), false) {
		if time.Until(l.Until) > maxLockTime {
			t.Errorf("%+v", l)
		}
	}
}

// TestSharedForgedKnown: who reads the questions to the server and writes what he likes makes no address known from which nobody logged in, nor one
// for longer than a login does.
func TestSharedForgedKnown(t *testing.T) {
	server := redisserver.For(t, redisserver.Config{})
	a := newSharing(t, server, "a", threeFive, nil)
	before := func(user, client string) (known bool) {
		t.Helper()
		known, err := a.before(t.Context(), Attempt{User: user, Client: netip.MustParseAddr(client), Service: "imapd.143"}, user)
		if err != nil {
			t.Fatal(err)
		}
		return known
	}
	for i, more := range []string{"", "0000000000000000"} {
		client := fmt.Sprint("192.0.2.", i+1)
		key, member := a.pair("ann@d.example", client)
		if _, err := server.Do(t.Context(), "ZADD", "test:known:"+key, fmt.Sprint(time.Now().Unix()), member+more); err != nil {
			t.Fatal(err)
		}
		if before("ann@d.example", client) {
			t.Errorf("known by what somebody wrote: %q", more)
		}
	}
	// What a login left is brought back, for as long as one lasts.
	a.attempt(t, "192.0.2.9", "bob@d.example", "right")
	a.flush(t)
	b := newSharing(t, server, "b", threeFive, nil)
	key, _ := a.pair("bob@d.example", "192.0.2.9")
	text, err := server.Do(t.Context(), "ZRANGE", "test:known:"+key, "0", "-1")
	if err != nil || text == "" {
		t.Fatal(text, err)
	}
	if _, err := server.Do(t.Context(), "ZADD", "test:known:"+key, "99999999999", text); err != nil {
		t.Fatal(err)
	}
	attempt := Attempt{User: "bob@d.example", Client: netip.MustParseAddr("192.0.2.9"), Service: "imapd.143"}
	if known, err := b.before(t.Context(), attempt, attempt.User); !known || err != nil {
		t.Errorf("known %v, %v", known, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if at, _ := b.known.get(b.hash("bob@d.example", "192.0.2.9")); at > time.Now().Unix() {
		t.Errorf("known from %d on", at)
	}
}

// TestSharedEndlessList: a server that gives one page after the other is asked for no more than there may be.
func TestSharedEndlessList(t *testing.T) {
	g := NewGuard(GuardConfig{Limits: threeFive, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	pages, entries := 0, 0
	err := g.eachShared(threeFive("all"), func(...string) ([]string, error) {
		if pages++; pages > 1000 {
			return nil, errors.New("it is asked without an end")
		}
		return slices.Repeat([]string{"192.0.2.1", "1", "0", "0", "0"}, listBatch), nil
	}, func(string, string, state) { entries++ })
	if err != nil || entries > 4*maxFailing+2*listBatch {
		t.Errorf("%d entries of %d pages: %v", entries, pages, err)
	}
}

// TestSharedBehind: what the server could not be told because it is in doubt just now is not taken for told: other hosts would not know the lock.
func TestSharedBehind(t *testing.T) {
	link := redis.New(redis.Config{Now: time.Now, Logger: slog.New(slog.DiscardHandler)}, redis.Options{Network: "tcp", Address: "192.0.2.1:6379"})
	g := NewGuard(GuardConfig{Limits: threeFive, Now: time.Now, Logger: slog.New(slog.DiscardHandler), Shared: link})
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.entry(g.clients, "192.0.2.7", time.Now())
	f.level, f.untold = 2, true
	g.tellBehind("192.0.2.7", "u@d.example", [2]bool{true, false}, threeFive("all"), time.Now())
	if !f.untold {
		t.Error("nobody was told")
	}
}
