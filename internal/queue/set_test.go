package queue

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/settings"
)

// openSet opens a set whose settings are read from the files in control.
func openSet(t testing.TB, dir string, local, remote Deliverer, control map[string]string, place func(*Envelope, *Recipient) string) *Set {
	t.Helper()
	snapshot := settingsOf(t, dir, control)
	c := testConfig(filepath.Join(dir, "queue"), local, remote)
	c.Settings = func() *settings.View { return snapshot.View("queue") }
	s, err := OpenSet(t.Context(), SetConfig{Config: c, Place: place, View: func(name string) *settings.View { return snapshot.View("queue." + name) }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func settingsOf(t testing.TB, dir string, control map[string]string) *settings.Snapshot {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "control"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range control {
		if err := os.WriteFile(filepath.Join(dir, "control", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	snapshot, err := settings.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return snapshot
}

func submitTo(t testing.TB, s Submitter, content, from string, to ...string) error {
	t.Helper()
	submission, err := s.Begin(t.Context(), 0)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(submission, content); err != nil {
		submission.Abort()
		return err
	}
	return submission.Commit(t.Context(), envelope(t, from, to...))
}

func envelope(t testing.TB, from string, to ...string) (env Envelope) {
	t.Helper()
	var err error
	if from != "" {
		if env.Sender, err = addr.Parse(from); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range to {
		parsed, err := addr.Parse(a)
		if err != nil {
			t.Fatal(err)
		}
		env.Recipients = append(env.Recipients, Recipient{Address: parsed})
	}
	return env
}

// slow places far.test's mail in a queue named side.
func slow(_ *Envelope, r *Recipient) string {
	if r.Address.Domain == "far.test" {
		return "side"
	}
	return ""
}

// TestSplit: a message's recipients go to the queues that they belong in, each once, small and large; ids are unique.
func TestSplit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, local, remote := t.TempDir(), &sink{do: later}, &sink{do: later}
		control := map[string]string{"queuecount": "3"}
		s := openSet(t, dir, local, remote, control, slow)
		if err := submitTo(t, s, "x", "s@x.test", "u@far.test"); err == nil {
			t.Fatal("taken for a queue that is not there")
		}
		if err := s.Make(t.Context(), "side"); err != nil {
			t.Fatal(err)
		}
		for _, bad := range []string{"slowq", "side", "queue9", "../x", ".x", "", "a b"} {
			if err := s.Make(t.Context(), bad); err == nil {
				t.Errorf("made queue %q", bad)
			}
		}
		big := strings.Repeat("0123456789abcde\r\n", 20000)
		for range 5 {
			for _, body := range []string{"small", big} {
				if err := submitTo(t, s, body, "s@x.test", "a@local.test", "b@far.test", "c@far.test"); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := submitTo(t, s, big, "s@x.test", "only@far.test"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			synctest.Wait()
			byQueue, seen := map[string]int{}, map[string]bool{}
			err := s.Each(t.Context(), Filter{}, func(l Listed) error {
				if seen[l.ID] {
					t.Errorf("id %s twice", l.ID)
				}
				seen[l.ID] = true
				byQueue[l.Queue] += len(l.Recipients)
				if far := strings.Contains(fmt.Sprint(l.Recipients), "far.test"); far != (l.Queue == "side") {
					t.Errorf("%+v", l)
				}
				return nil
			})
			if err != nil || byQueue["side"] != 21 || byQueue["queue1"]+byQueue["queue2"]+byQueue["queue3"] != 10 {
				t.Errorf("%v, %v", byQueue, err)
			}
			for _, name := range []string{"queue1", "queue2", "queue3"} {
				if byQueue[name] < 2 {
					t.Errorf("spread: %v", byQueue)
				}
			}
			s.Shutdown(t.Context())
			s = openSet(t, dir, local, remote, control, slow)
		}
		for _, body := range slices.Concat(local.body, remote.body) {
			if body != "small" && body != big {
				t.Fatalf("content of %d bytes", len(body))
			}
		}
		// All of it can be moved to another queue.
		if n, err := s.Move(t.Context(), Filter{Queue: "side"}, "queue2", false, nil); n != 11 || err != nil {
			t.Error(n, err)
		}
		// What was moved is tried at once. Who is asked for meanwhile is being tried already, and is not tried again.
		synctest.Wait()
		local.mu.Lock()
		remote.mu.Lock()
		local.do, remote.do = nil, nil
		local.seen, remote.seen = nil, nil
		local.mu.Unlock()
		remote.mu.Unlock()
		if _, err := s.Act(t.Context(), RetryNow, Filter{}, false, nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if l, r := len(local.all()), len(remote.all()); l != 10 || r != 21 {
			t.Errorf("%d local and %d remote recipients were delivered", l, r)
		}
		s.Shutdown(t.Context())
	})
}

// blocker delivers when it is let go.
type blocker struct{ open chan struct{} }

func (b *blocker) Deliver(ctx context.Context, d *Delivery) []Result {
	select {
	case <-b.open:
	case <-ctx.Done():
	}
	return make([]Result, len(d.Recipients))
}

// TestDynamicQueues: load opens queues up to QUEUE_MAX; calm closes them again, and none before it is empty.
func TestDynamicQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote := &blocker{open: make(chan struct{})}
		dir := t.TempDir()
		s := openSet(t, dir, &sink{}, remote, map[string]string{"queuecount": "1", "queuemax": "3", "queueload": "20", "concurrencyremote": "10", "concurrencylocal": "10"}, nil)
		names := func() (names []string) {
			for _, q := range s.Stats() {
				names = append(names, q.Queue)
			}
			return names
		}
		for n := range 100 {
			if err := submitTo(t, s, "x", "s@x.test", fmt.Sprintf("u@far%d.test", n)); err != nil {
				t.Fatal(err)
			}
			if n%20 == 0 {
				time.Sleep(watchEvery)
				synctest.Wait()
			}
		}
		if got := fmt.Sprint(names()); got != "[queue1 queue2 queue3 slowq]" {
			t.Errorf("under load: %s", got)
		}
		for _, q := range s.Stats()[:3] {
			if q.Messages < 10 {
				t.Errorf("%+v", q)
			}
		}
		close(remote.open)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if got := fmt.Sprint(names()); got != "[queue1 slowq]" {
			t.Errorf("when calm: %s", got)
		}
		if _, err := os.Stat(filepath.Join(dir, "queue", "queue3")); err == nil {
			t.Error("queue3 is still there")
		}
		s.Shutdown(t.Context())
	})
}

// TestFewerQueues: a queue beyond QUEUE_COUNT with mail in it is worked off, gets none, and goes.
func TestFewerQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := openSet(t, dir, &sink{}, &sink{do: later}, map[string]string{"queuecount": "4"}, nil)
		for n := range 8 {
			if err := submitTo(t, s, "x", "s@x.test", fmt.Sprintf("u@far%d.test", n)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		s.Shutdown(t.Context())
		remote := &sink{}
		s = openSet(t, dir, &sink{}, remote, map[string]string{"queuecount": "2"}, nil)
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(remote.all()) != 8 || len(s.Stats()) != 3 {
			t.Errorf("%d delivered, %+v", len(remote.all()), s.Stats())
		}
		s.Shutdown(t.Context())
	})
}
