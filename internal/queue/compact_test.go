package queue

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/queue/seglog"
)

// TestCompaction lets most messages of a log go and a few stay: the log shrinks, also while it runs, and what stays keeps
// its content, its state and its schedule through moves and restarts.
func TestCompaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		stay := &sink{do: func(d *Delivery) *mailerr.Error { return mailerr.New(451, mailerr.Enhanced{4, 0, 0}, "later") }}
		q := open(t, testConfig(dir, &sink{}, stay))
		body := strings.Repeat("0123456789abcde\r\n", 100<<10/17)
		kept := map[string]bool{}
		for n := range 3000 {
			to := []string{"u@local.test"}
			if n%100 == 7 {
				to = append(to, "r@far.test")
				kept[fmt.Sprint(n)] = true
			}
			if err := submit(t, q, fmt.Sprintf("Subject: %d\r\n\r\n%s", n, body), "s@local.test", to...); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		before := q.Stats()
		if before.Messages != len(kept) || q.log.Newest() < 5 {
			t.Fatalf("%+v, want %d messages", before, len(kept))
		}
		next := map[string]time.Time{}
		for _, l := range list(t, q) {
			next[l.ID] = l.Next
		}
		// Time passes; the queue cleans up by itself.
		time.Sleep(2 * cleanEvery)
		synctest.Wait()
		after := q.Stats()
		if live := int64(len(kept)*len(body)) + seglog.SegmentSize; after.LogBytes > 2*live || after.Messages != len(kept) {
			t.Errorf("%d bytes for %d messages, before %d bytes", after.LogBytes, after.Messages, before.LogBytes)
		}
		for range 2 {
			q.Shutdown(t.Context())
			q = open(t, testConfig(dir, &sink{}, stay))
			for _, l := range list(t, q) {
				if fmt.Sprint(l.Recipients) != "[r@far.test]" || !l.Next.Equal(next[l.ID]) {
					t.Errorf("%+v, next attempt before %v", l, next[l.ID])
				}
			}
			if n := q.Stats().Messages; n != len(kept) {
				t.Errorf("%d messages, want %d", n, len(kept))
			}
		}
		q.Shutdown(t.Context())
		// And all of it can still be delivered.
		last := &sink{}
		q = open(t, testConfig(dir, &sink{}, last))
		q.RetryAll()
		synctest.Wait()
		for _, text := range last.body {
			subject, _, _ := strings.Cut(strings.TrimPrefix(text, "Subject: "), "\r\n")
			if !kept[subject] || !strings.HasSuffix(text, body) {
				t.Errorf("message %q is not what was sent", subject)
			}
			delete(kept, subject)
		}
		if len(kept) > 0 {
			t.Errorf("not delivered: %v", kept)
		}
		q.Shutdown(t.Context())
	})
}

// TestDiskBound: whatever is sent and delivered, the log's files never take more than twice the bytes of what lives, one
// segment, and one more while the log is busy; also while deliveries hang.
func TestDiskBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const segment = 1 << 20
		dir := t.TempDir()
		hang := &blocker{make(chan struct{})}
		c := testConfig(dir, &sink{do: func(d *Delivery) *mailerr.Error {
			if strings.HasPrefix(d.Recipients[0].Address.Local, "later") {
				return mailerr.New(451, mailerr.Enhanced{4, 0, 0}, "later")
			}
			return nil
		}}, hang)
		c.SegmentSize = segment
		q := open(t, c)
		random := rand.New(rand.NewPCG(1, 2))
		worst := 0.0
		check := func(idle bool) {
			t.Helper()
			synctest.Wait()
			if !idle {
				q.clean()
			}
			var live int64
			q.mu.Lock()
			for _, m := range q.messages {
				live += int64(m.length) + 200
			}
			q.mu.Unlock()
			bound := 2*live + segment + 64<<10
			if !idle {
				bound += segment
			}
			used := onDisk(t, filepath.Join(dir, "log"))
			if used > bound {
				sizes, newest := q.log.Sizes()
				t.Errorf("%d bytes on disk for %d of living messages: segments %v, the newest %d", used, live, sizes, newest)
			}
			worst = max(worst, float64(used)/float64(bound))
		}
		body := strings.Repeat("0123456789abcde\r\n", 2000)
		for n := range 1500 {
			to := fmt.Sprintf("u%d@local.test", n)
			switch random.IntN(20) {
			case 0:
				to = fmt.Sprintf("later%d@local.test", n)
			case 1:
				to = fmt.Sprintf("u@hang%d.test", random.IntN(3))
			}
			if err := submit(t, q, body[:random.IntN(len(body))], "s@x.test", to); err != nil {
				t.Fatal(err)
			}
			if n%50 == 0 {
				time.Sleep(time.Minute)
				check(false)
			}
			if n == 1000 {
				if _, err := q.Act(t.Context(), Delete, Filter{Recipient: "later*"}, false, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
		time.Sleep(2 * spareFor)
		check(false)
		close(hang.open)
		time.Sleep(2 * spareFor)
		check(false)
		// Everything ends at last, and nothing is left but the segment that is being written.
		q.RetryAll()
		time.Sleep(10 * 24 * time.Hour)
		check(true)
		t.Logf("at most %.2f of the bound", worst)
		q.Shutdown(t.Context())
	})
}

// onDisk gives the bytes that a folder's files take, spare space too.
func onDisk(t *testing.T, dir string) (total int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		total += max(info.Size(), info.Sys().(*syscall.Stat_t).Blocks*512)
	}
	return total
}

// waits delivers nothing until its context ends, as a peer that stalls.
type waits struct{}

func (waits) Deliver(ctx context.Context, d *Delivery) []Result {
	<-ctx.Done()
	return []Result{{Err: mailerr.New(451, mailerr.Enhanced{4, 3, 2}, "shutting down")}}
}

// TestAttemptCutByShutdownDoesNotCount: the next start makes it again at once.
func TestAttemptCutByShutdownDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		q := open(t, testConfig(dir, waits{}, &sink{}))
		if err := submit(t, q, "Subject: x\r\n\r\n", "s@x.test", "u@local.test"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		q.Shutdown(ctx)
		local := &sink{}
		q = open(t, testConfig(dir, local, &sink{}))
		synctest.Wait()
		if len(local.all()) != 1 {
			t.Errorf("delivered %v, queued %+v", local.all(), list(t, q))
		}
		q.Shutdown(t.Context())
	})
}

// movesWhileTold takes a notice the second time, and compacts the message that it is about meanwhile.
type movesWhileTold struct {
	q      *Queue
	begun  int
	copied bool
}

func (w *movesWhileTold) Begin(context.Context, int64) (Submission, error) {
	if w.begun++; w.begun == 1 {
		return nil, errors.New("not now")
	}
	w.q.mu.Lock()
	var all []*message
	for _, m := range w.q.messages {
		all = append(all, m)
	}
	w.q.mu.Unlock()
	w.copied = w.q.move(all)
	return nowhere{}, nil
}

// TestNoCopyOfWhatEnds: a message that is about to end, after a notice that had to be tried again or at a start, is not written again: behind the
// record of its end the copy would bring it back at the next start, without its content.
func TestNoCopyOfWhatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		notices := &movesWhileTold{}
		c := testConfig(dir, &sink{}, &byName{})
		c.Bounces = notices
		q := open(t, c)
		notices.q = q
		if err := submit(t, q, "Subject: large\r\n\r\n"+strings.Repeat("0123456789\r\n", 40000), "plain@local.test", "bad@far.test"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if notices.begun != 1 || q.Stats().Messages != 1 {
			t.Fatalf("%d notices, %d messages", notices.begun, q.Stats().Messages)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if notices.begun != 2 || notices.copied {
			t.Errorf("%d notices; copied while it ended: %v", notices.begun, notices.copied)
		}
		q.Shutdown(t.Context())
		q = open(t, c)
		if n := q.Stats().Messages; n != 0 {
			t.Errorf("%d messages came back", n)
		}
		q.Shutdown(t.Context())
	})
}
