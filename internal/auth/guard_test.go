package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/mailerr"
)

// gate is a Guard in front of users whose passwords are all "right".
type gate struct {
	*Guard
	limits Limits
	log    bytes.Buffer
	// checked counts looks at a password.
	checked int
}

func newGate(limits Limits) *gate {
	g := &gate{limits: limits}
	g.Guard = NewGuard(GuardConfig{Limits: func(string) Limits { return g.limits }, Now: time.Now, Logger: slog.New(slog.NewTextHandler(&g.log, nil))})
	return g
}

var usual = Limits{Client: 10, Account: 30, Time: 15 * time.Minute, Delay: 8 * time.Second, Exempt: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}

// login gives the reply's code, and how long it was kept back.
func (g *gate) login(ctx context.Context, client, user, password string) (code int, waited time.Duration) {
	began := time.Now()
	a := Attempt{User: user, Password: password, Client: netip.MustParseAddr(client), Service: "imapd.143", Mechanism: "PLAIN"}
	known, err := g.before(ctx, a, user)
	if err != nil {
		return mailerr.From(err).Code, time.Since(began)
	}
	g.checked++
	address, _ := addr.Parse(user)
	if password != "right" {
		err = errFailed.Because(errors.New("wrong password"))
	}
	g.after(ctx, a, known, user, Identity{Address: address}, err)
	if err != nil {
		return 535, time.Since(began)
	}
	return 235, time.Since(began)
}

// TestBackOff: the replies to failures come ever later, then logins are refused for a while, also the right password; the log says so.
func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, ctx := newGate(usual), t.Context()
		for i, seconds := range []int{0, 1, 2, 4, 8, 8, 8, 8, 8, 8} {
			if code, waited := g.login(ctx, "192.0.2.1", fmt.Sprintf("u%d@d.example", i), "guess"); code != 535 || waited != time.Duration(seconds)*time.Second {
				t.Errorf("failure %d: %d after %v", i+1, code, waited)
			}
		}
		locked := time.Now()
		for range 3 {
			if code, waited := g.login(ctx, "192.0.2.1", "u@d.example", "right"); code != 454 || waited != 0 {
				t.Fatalf("locked: %d after %v", code, waited)
			}
		}
		if code, _ := g.login(ctx, "192.0.2.2", "u@d.example", "right"); code != 235 || g.checked != 11 {
			t.Errorf("another address: %d, %d checked", code, g.checked)
		}
		locks := g.Locks(t.Context(), false)
		if len(locks) != 1 || locks[0].By != "client" || locks[0].Name != "192.0.2.1" || locks[0].Refused != 3 || !locks[0].Until.After(locked.Add(14*time.Minute)) {
			t.Errorf("%+v", locks)
		}
		for _, want := range []string{`msg="login failed" client=192.0.2.1 service=imapd.143 mechanism=PLAIN user=u0@d.example`, `msg="logins locked" by=client seconds=900 name=192.0.2.1`} {
			if !strings.Contains(g.log.String(), want) {
				t.Errorf("the log has no %s:\n%s", want, g.log.String())
			}
		}
		time.Sleep(usual.Time)
		if code, _ := g.login(ctx, "192.0.2.1", "u@d.example", "right"); code != 235 {
			t.Errorf("after the lock: %d", code)
		}
		if code, waited := g.login(ctx, "192.0.2.1", "x@d.example", "guess"); code != 535 || waited != 0 {
			t.Errorf("all is forgotten: %d after %v", code, waited)
		}
	})
}

// TestKnown: who logged in lately from an address is never refused there, whoever else fails from it or elsewhere.
func TestKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, ctx := newGate(usual), t.Context()
		g.Remember("Ann@d.example", netip.MustParseAddr("2001:db8::1"), time.Now().Add(-29*24*time.Hour))
		g.Remember("old@d.example", netip.MustParseAddr("2001:db8::1"), time.Now().Add(-31*24*time.Hour))
		g.login(ctx, "192.0.2.9", "ann@d.example", "right")
		for i := range 80 {
			g.login(ctx, fmt.Sprintf("198.51.100.%d", i), "ann@d.example", fmt.Sprint("guess", i))
			g.login(ctx, "2001:db8::ffff", fmt.Sprintf("x%d@d.example", i), "guess")
		}
		for _, c := range []struct {
			client, user string
			code         int
		}{
			{"192.0.2.9", "ann@d.example", 235}, {"::ffff:192.0.2.9", "ann@d.example", 235}, {"2001:db8::abcd", "ann@d.example", 235},
			{"2001:db8::1", "old@d.example", 454}, {"2001:db8:0:1::1", "old@d.example", 235}, {"203.0.113.1", "ann@d.example", 454},
		} {
			if code, _ := g.login(ctx, c.client, c.user, "right"); code != c.code {
				t.Errorf("%s from %s: %d", c.user, c.client, code)
			}
		}
		// Wrong passwords of a known one are kept back, and never refused.
		for i := range 20 {
			if code, waited := g.login(ctx, "192.0.2.9", "ann@d.example", fmt.Sprint("typo", i)); code != 535 || i > 5 && waited != usual.Delay {
				t.Fatalf("typo %d: %d after %v", i, code, waited)
			}
		}
		if n := g.Unlock(t.Context(), "2001:db8::5"); n != 1 {
			t.Errorf("%d cleared", n)
		}
		if code, _ := g.login(ctx, "2001:db8::1", "old@d.example", "right"); code != 235 {
			t.Error(code)
		}
		if g.Unlock(t.Context(), ""); len(g.Locks(t.Context(), true)) != 0 {
			t.Errorf("%+v", g.Locks(t.Context(), true))
		}
	})
}

// TestOldPassword: a telephone that goes on trying an old password counts once, and locks nobody out.
func TestOldPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, ctx := newGate(usual), t.Context()
		for range 500 {
			if code, waited := g.login(ctx, "192.0.2.1", "ann@d.example", "old"); code != 535 || waited > time.Second {
				t.Fatalf("%d after %v", code, waited)
			}
		}
		if code, _ := g.login(ctx, "192.0.2.1", "ann@d.example", "right"); code != 235 || g.Stats().Repeated != 499 {
			t.Errorf("%d %+v", code, g.Stats())
		}
	})
}

// TestExempt: failures of exempt networks do not count, and with limits of 0 nothing is refused or kept back.
func TestExempt(t *testing.T) {
	for _, c := range []struct {
		limits Limits
		client string
	}{{usual, "127.0.0.5"}, {Limits{Time: time.Minute}, "192.0.2.1"}} {
		synctest.Test(t, func(t *testing.T) {
			g := newGate(c.limits)
			for i := range 100 {
				if code, waited := g.login(t.Context(), c.client, "u@d.example", fmt.Sprint(i)); code != 535 || waited != 0 {
					t.Fatalf("%s %d: %d after %v", c.client, i, code, waited)
				}
			}
		})
	}
}

// TestAtOnce: guesses that come all at once are not all let in before the first has failed.
func TestAtOnce(t *testing.T) {
	g := newGate(usual)
	in := 0
	for i := range 500 {
		a := Attempt{User: fmt.Sprintf("u%d@d.example", i), Password: "guess", Client: netip.MustParseAddr("192.0.2.1"), Service: "imapd.143"}
		if _, err := g.before(t.Context(), a, a.User); err == nil {
			in++
		}
	}
	if in != 2*usual.Client {
		t.Errorf("%d let in", in)
	}
}

// TestTenThousand: 10,000 wrong logins at once from a hundred addresses get the replies and locks that are stated, what waits is bounded,
// and the memory is; 200,000 more from as many addresses do not let it grow.
func TestTenThousand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(usual)
		g.config.Logger = slog.New(slog.DiscardHandler)
		var mu sync.Mutex
		codes, most := map[int]int{}, time.Duration(0)
		var all sync.WaitGroup
		for i := range 10000 {
			all.Go(func() {
				a := Attempt{User: fmt.Sprintf("u%d@d.example", i/2), Password: fmt.Sprint("guess", i), Client: netip.AddrFrom4([4]byte{192, 0, 2, byte(i % 100)}), Service: "imapd.143"}
				began := time.Now()
				known, err := g.before(t.Context(), a, a.User)
				if err == nil {
					err = errFailed
					g.after(t.Context(), a, known, a.User, Identity{}, err)
				}
				mu.Lock()
				defer mu.Unlock()
				codes[mailerr.From(err).Code]++
				most = max(most, time.Since(began))
			})
		}
		synctest.Wait()
		if s := g.Stats(); s.Delayed > maxDelays {
			t.Errorf("%+v", s)
		}
		all.Wait()
		// Of each address between 10 and 20, which were under way at once, failed.
		if codes[535] < 1000 || codes[535] > 2000 || codes[535]+codes[454] != 10000 || most > usual.Delay || len(g.Locks(t.Context(), false)) != 100 {
			t.Errorf("%v, at most %v, %d locks", codes, most, len(g.Locks(t.Context(), false)))
		}
	})
	g := newGate(Limits{Client: 10, Account: 30, Time: time.Hour})
	g.config.Logger = slog.New(slog.DiscardHandler)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for i := range 200000 {
		g.login(t.Context(), fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), fmt.Sprintf("u%d@d.example", i), "guess")
		g.Remember(fmt.Sprintf("u%d@d.example", i), netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), time.Now())
	}
	s, grown := g.Stats(), int64(heap())-int64(before)
	runtime.KeepAlive(g)
	if s.Clients > 2*maxFailing || s.Accounts > 2*maxFailing || s.Known > 2*maxKnown || grown > 28<<20 {
		t.Errorf("%+v, %d bytes", s, grown)
	}
	t.Logf("%+v, %d bytes", s, grown)
}

// TestLocksSurvive: a flood of other names does not wash a lock away.
func TestLocksSurvive(t *testing.T) {
	g := newGate(Limits{Client: 2, Account: 30, Time: time.Hour})
	g.config.Logger = slog.New(slog.DiscardHandler)
	for i := range 3 * maxFailing {
		if i < 2 {
			g.login(t.Context(), "192.0.2.1", "u@d.example", fmt.Sprint(i))
		}
		g.login(t.Context(), fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), fmt.Sprintf("u%d@d.example", i), "guess")
	}
	if code, _ := g.login(t.Context(), "192.0.2.1", "u@d.example", "right"); code != 454 {
		t.Error(code)
	}
}

// TestTurns: known users go before strangers, who have all workers but one and are not forgotten.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(3)
		var held []func()
		var all sync.WaitGroup
		var mu sync.Mutex
		var order []string
		want := func(name string, known bool) {
			all.Go(func() {
				release, err := turns.take(t.Context(), known)
				if err != nil {
					t.Error(name, err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, name)
				held = append(held, release)
			})
			synctest.Wait()
		}
		next := func() {
			mu.Lock()
			release := held[0]
			held = held[1:]
			mu.Unlock()
			release()
			synctest.Wait()
		}
		for i := range 4 {
			want(fmt.Sprint("s", i), false)
		}
		for i := range 12 {
			want(fmt.Sprint("k", i), true)
		}
		for len(held) > 0 {
			next()
		}
		all.Wait()
		if got := strings.Join(order, " "); got != "s0 s1 k0 k1 k2 k3 k4 k5 k6 k7 k8 s2 k9 k10 k11 s3" {
			t.Error(got)
		}
		// Who waits is bounded, and none for ever.
		release, err := turns.take(t.Context(), true)
		if err != nil {
			t.Fatal(err)
		}
		more := newTurns(1)
		if _, err := more.take(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		failed := 0
		for range maxWaiting + 50 {
			all.Go(func() {
				if _, err := more.take(t.Context(), false); err != nil {
					mu.Lock()
					defer mu.Unlock()
					failed++
				}
			})
		}
		synctest.Wait()
		mu.Lock()
		if failed != 50 {
			t.Errorf("%d refused at once", failed)
		}
		mu.Unlock()
		all.Wait()
		if failed != maxWaiting+50 || more.waiting[1].Len() != 0 {
			t.Errorf("%d refused, %d wait", failed, more.waiting[1].Len())
		}
		release()
	})
}
