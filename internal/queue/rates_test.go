package queue

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestHeldMailObeysANewLimit: mail that was held when a limit was set obeys it when it is let go.
func TestHeldMailObeysANewLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote := &sink{do: later}
		q := open(t, testConfig(t.TempDir(), &sink{}, remote))
		for range 3 {
			if err := submit(t, q, "x", "s@x.test", "u@far.test"); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		act := func(a Action) {
			t.Helper()
			if n, err := q.Act(t.Context(), a, Filter{}, false, nil); n != 3 || err != nil {
				t.Fatal(n, err)
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
		}
		act(Hold)
		act(RetryNow)
		if err := q.rates[0].Set("far.test", "1/3600", 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(cleanEvery)
		synctest.Wait()
		before := len(remote.all())
		act(Release)
		if n := len(remote.all()) - before; n != 1 {
			t.Errorf("%d attempts at once, of which the limit allows 1", n)
		}
		q.Shutdown(t.Context())
	})
}

func TestEvaluate(t *testing.T) {
	for text, want := range map[string]float64{"50/3600": 50.0 / 3600, "5": 5, "1 / ( 2 + 2 )": .25, "2*3-1": 5, "0.5": .5, "8/2/2": 2} {
		if got, err := evaluate(text); err != nil || got != want {
			t.Errorf("%s: %v %v, want %v", text, got, err, want)
		}
	}
	for _, bad := range []string{"", "0", "-1", "1/0", "0/0", "a", "1/", "(1", "1)", "1 2/", "1e400", "1..2", strings.Repeat("1", 101)} {
		if got, err := evaluate(bad); err == nil {
			t.Errorf("%s gives %v", bad, got)
		}
	}
}

func TestFormatRate(t *testing.T) {
	// Numbers of the wiki's transcripts (lines 1511, 1521, 1549-1565).
	for want, v := range map[string]float64{"0.0138888888": 50.0 / 3600, "0.0013888888": 5.0 / 3600, "0.0002298473": 70.0 / 304550, "0.0000000000": 0,
		"0.0909090936": float64(float32(1.0 / 11)), "0.0399999991": float64(float32(1.0 / 25)), "0.0027739251": float64(float32(2.0 / 721))} {
		if got := FormatRate(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
}

// lines is a log handler that keeps the rate events as slowq-send words them.
type rateLines struct {
	mu    sync.Mutex
	begin time.Time
	lines []string
}

func (*rateLines) Enabled(context.Context, slog.Level) bool { return true }
func (h *rateLines) WithAttrs([]slog.Attr) slog.Handler     { return h }
func (h *rateLines) WithGroup(string) slog.Handler          { return h }
func (h *rateLines) Handle(_ context.Context, r slog.Record) error {
	a := map[string]string{}
	r.Attrs(func(attr slog.Attr) bool { a[attr.Key] = attr.Value.String(); return true })
	if r.Message != logRate && r.Message != logExceeded {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = append(h.lines, fmt.Sprintf("%ds %s %s msg %s: %s [%s/%s/%s] %s", int(time.Since(h.begin).Seconds()), a["in"], a["name"], a["id"], r.Message, a["count"], a["rate"], a["limit"], a["secs"]))
	return nil
}

// TestSlowqTranscript replays the wiki's log of slowq (lines 1536-1568): three messages, 5 in an hour.
func TestSlowqTranscript(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, local := t.TempDir(), &sink{}
		log := &rateLines{begin: time.Now()}
		snapshot := settingsOf(t, dir, nil)
		_ = snapshot
		c := testConfig(filepath.Join(dir, "slowq"), local, &sink{})
		c.Name, c.Logger = "slowq", slog.New(log)
		q := open(t, c)
		if err := q.rates[0].Set("argos.local.test", "5/3600", 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(6 * time.Second)
		send := func() {
			if err := submit(t, q, "x", "s@x.test", "mbhangui@argos.local.test"); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		send()
		time.Sleep(5 * time.Second)
		send()
		time.Sleep(14 * time.Second)
		send()
		if s := q.Stats(); s.Delayed != 2 {
			t.Errorf("%+v", s)
		}
		// A restart in between changes nothing.
		q.Shutdown(t.Context())
		q = open(t, c)
		time.Sleep(time.Hour)
		synctest.Wait()
		q.Shutdown(t.Context())
		want := `6s slowq argos.local.test msg 1: rate [1/0.0000000000/0.0013888888] 6
11s slowq argos.local.test msg 2: rate exceeded [2/0.0909090936/0.0013888888] 709
25s slowq argos.local.test msg 3: rate exceeded [2/0.0399999991/0.0013888888] 695
25s slowq argos.local.test msg 2: rate exceeded [2/0.0399999991/0.0013888888] 695
25s slowq argos.local.test msg 3: rate exceeded [2/0.0399999991/0.0013888888] 695
720s slowq argos.local.test msg 2: rate [2/0.0013888889/0.0013888888] 0
720s slowq argos.local.test msg 3: rate exceeded [3/0.0027777778/0.0013888888] 720
1440s slowq argos.local.test msg 3: rate [3/0.0013888889/0.0013888888] 0`
		if got := strings.Join(log.lines, "\n"); got != want && got != swapped(want) {
			t.Errorf("log:\n%s\nwant:\n%s", got, want)
		}
		if len(local.all()) != 3 {
			t.Errorf("delivered %v", local.all())
		}
	})
}

// swapped exchanges what a restart may do in either order.
func swapped(text string) string {
	l := strings.Split(text, "\n")
	l[3], l[4] = l[4], l[3]
	for i := 5; i < len(l); i++ {
		l[i] = strings.NewReplacer("msg 2", "msg 3", "msg 3", "msg 2").Replace(l[i])
	}
	return strings.Join(l, "\n")
}

// TestRates: bursts, limits for each sender and user, over several queues, and what comes when a limit changes.
func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, remote := t.TempDir(), &sink{}
		s := openSet(t, dir, &sink{}, remote, map[string]string{"queuecount": "3"}, nil)
		for _, r := range []struct {
			name, expression string
			burst            int
		}{{"slow.test", "10/3600", 5}, {"sender:*", "24/86400", 3}, {"user:vip@x.test", "1000", 1000}, {"user:*", "1/60", 2}} {
			if err := s.SetRate("", r.name, r.expression, r.burst); err != nil {
				t.Fatal(err)
			}
		}
		for _, bad := range [][2]string{{"", "1"}, {"a b", "1"}, {"x.test", "zero"}, {"other:x", "1"}, {"../x", "1"}} {
			if err := s.SetRate("", bad[0], bad[1], 1); err == nil {
				t.Errorf("set %q", bad)
			}
		}
		time.Sleep(10 * time.Second)
		give := func(n int, from, user, to string) {
			for range n {
				submission, err := s.Begin(t.Context(), 0)
				if err != nil {
					t.Fatal(err)
				}
				env := envelope(t, from, to)
				env.Origin.User = user
				if err := submission.Commit(t.Context(), env); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
		}
		give(20, "", "", "bounce@slow.test")
		if n := count(remote.all(), "bounce@slow.test"); n != 5 {
			t.Errorf("%d at once", n)
		}
		time.Sleep(time.Hour + time.Second)
		synctest.Wait()
		if n := count(remote.all(), "bounce@slow.test"); n != 15 {
			t.Errorf("%d after an hour", n)
		}
		for _, from := range []string{"one@x.test", "two@x.test"} {
			give(10, from, "", from)
			if n := count(remote.all(), from); n != 3 {
				t.Errorf("%d of sender %s at once", n, from)
			}
		}
		give(10, "", "vip@x.test", "vip@far.test")
		give(10, "", "other@x.test", "other@far.test")
		if v, o := count(remote.all(), "vip@far.test"), count(remote.all(), "other@far.test"); v != 10 || o != 2 {
			t.Errorf("%d by vip, %d by other", v, o)
		}
		// A message with many recipients counts for each of them.
		if err := submitTo(t, s, "x", "many@x.test", "a@m.test", "b@m.test", "c@m.test", "d@m.test", "e@m.test"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := strings.Count(fmt.Sprint(remote.all()), "@m.test"); n != 3 {
			t.Errorf("%d of 5 recipients at once", n)
		}
		// Without its limit all goes at once, also what waits.
		if err := s.RemoveRate("", "sender:*"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := strings.Count(fmt.Sprint(remote.all()), "@m.test"); n != 5 || count(remote.all(), "one@x.test") != 10 {
			t.Errorf("without limit: %v", remote.all())
		}
		if err := s.RemoveRate("", "sender:*"); err == nil {
			t.Error("removed twice")
		}
		s.Shutdown(t.Context())
	})
}

// TestRatesAreBounded: made-up senders fill no memory.
func TestRatesAreBounded(t *testing.T) {
	r, err := OpenRates(t.TempDir(), "", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Set("sender:*", "1/3600", 1); err != nil {
		t.Fatal(err)
	}
	for n := range 3 * maxLimits {
		r.take([]string{fmt.Sprintf("sender:s%d@x.test", n)})
	}
	if n := len(r.All()); n != maxLimits {
		t.Errorf("%d limits", n)
	}
	if _, full := r.take([]string{"sender:*"}); full != "" {
		t.Error("the limit for all is gone or used up")
	}
}

// TestNewLimitHoldsForWaitingMail: a limit that is set while mail waits for its next attempt, also by hand in its file.
func TestNewLimitHoldsForWaitingMail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, remote := t.TempDir(), &sink{do: later}
		q := open(t, testConfig(dir, &sink{}, remote))
		for n := range 10 {
			if err := submit(t, q, "x", "s@x.test", fmt.Sprintf("u%d@far.test", n)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if err := os.MkdirAll(filepath.Join(dir, "ratelimit"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "ratelimit", "far.test"), []byte("1/100 burst 2\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		remote.mu.Lock()
		remote.do, remote.seen = nil, nil
		remote.mu.Unlock()
		time.Sleep(401 * time.Second)
		synctest.Wait()
		if n := len(remote.all()); n < 2 || n > 6 {
			t.Errorf("%d deliveries", n)
		}
		time.Sleep(1000 * time.Second)
		synctest.Wait()
		if n := len(remote.all()); n != 10 {
			t.Errorf("%d deliveries at the end", n)
		}
		q.Shutdown(t.Context())
	})
}
