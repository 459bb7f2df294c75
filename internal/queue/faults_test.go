package queue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/queue/seglog"
)

// rot fails writes, and removals, when told to.
func rot(dir string) *faulty { return &faulty{Disk: seglog.Folder(filepath.Join(dir, "log"))} }

func (f *faulty) fail(write, remove error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.write, f.remove = write, remove
}

// Remove fails for the first segment.
func (f *faulty) Remove(name string) error {
	return f.gone(name, func() error { return f.Disk.Remove(name) })
}

// Rename fails for the first segment.
func (f *faulty) Rename(from, to string) error {
	return f.gone(from, func() error { return f.Disk.Rename(from, to) })
}

func (f *faulty) gone(name string, do func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.remove != nil && name == "0000000000000001.seg" {
		return f.remove
	}
	return do()
}

// TestEditWhileCompacted: a message that is edited between the copying of its record and the copy's being on the disk keeps the
// record of the edit, whether that could be written or not; and no segment is given up in which another message lives.
func TestEditWhileCompacted(t *testing.T) {
	for _, broken := range []bool{false, true} {
		t.Run(fmt.Sprintf("broken=%v", broken), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				disk := rot(dir)
				c := testConfig(dir, &sink{}, &sink{do: later})
				c.LogDisk, c.SegmentSize = disk, 4<<10
				q := open(t, c)
				for _, to := range []string{"edited@far.test", "stays@far.test"} {
					if err := submit(t, q, "Subject: x\r\n\r\n", "s@local.test", to); err != nil {
						t.Fatal(err)
					}
				}
				synctest.Wait()
				m := q.messages[1]
				copied, err := q.copyRecord(m)
				if err != nil || len(copied) == 0 {
					t.Fatal(copied, err)
				}
				at, err := copied[0].Wait()
				if err != nil {
					t.Fatal(err)
				}
				if broken {
					disk.fail(errors.New("input/output error"), nil)
				}
				err = q.Edit(1, func(e *Envelope) error {
					e.Recipients[0].Address, _ = addr.Parse("now@far.test")
					return nil
				})
				if broken == (err == nil) {
					t.Fatal(err)
				}
				disk.fail(nil, nil)
				if q.settle(m, at) {
					t.Error("the copy of the entry that an edit replaced counts")
				}
				// New segments are begun, and what is dead in the first may go.
				for range 10 {
					if err := submit(t, q, strings.Repeat("x", 1000), "s@local.test", "u@local.test"); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					q.clean()
				}
				want := []string{"now@far.test", "stays@far.test"}
				if broken {
					want[0] = "edited@far.test"
				}
				for _, when := range []string{"before", "after"} {
					var left []string
					for _, l := range list(t, q) {
						left = append(left, l.Recipients...)
					}
					if !slices.Equal(left, want) {
						t.Errorf("%s a restart: left are %v, want %v", when, left, want)
					}
					for _, m := range q.messages {
						if _, _, release, err := q.load(m); err != nil {
							t.Errorf("%s a restart: %v", when, err)
						} else {
							release()
						}
					}
					q.Shutdown(t.Context())
					q = open(t, c)
				}
				q.Shutdown(t.Context())
			})
		})
	}
}

// TestWordGivenTwice: when the log cannot be written, an operator is told that his word may not last; given again when the disk is
// well it does, and a notice that memory had is not lost.
func TestWordGivenTwice(t *testing.T) {
	for _, action := range []Action{Delete, Bounce} {
		t.Run(string(action), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				disk, hang := rot(dir), &blocker{make(chan struct{})}
				c := testConfig(dir, &byName{}, hang)
				// Most of the log is this message, so that it is not compacted, which would write its state again.
				c.LogDisk, c.SegmentSize = disk, 4<<10
				q := open(t, c)
				if err := submit(t, q, strings.Repeat("x", 3000), "s@local.test", "bad@local.test", "u@far.test"); err != nil {
					t.Fatal(err)
				}
				synctest.Wait() // one recipient has failed, and the other's delivery hangs, so that nobody is told yet
				disk.fail(errors.New("input/output error"), nil)
				if _, err := q.Act(t.Context(), action, Filter{IDs: []ID{1}}, false, nil); err == nil {
					t.Fatal("no error though the log was not written")
				}
				disk.fail(nil, nil)
				// What the failed write left behind is cut off by the next.
				if err := submit(t, q, "Subject: y\r\n\r\n", "s@local.test", "other@local.test"); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				for range 2 {
					if n, err := q.Act(t.Context(), action, Filter{IDs: []ID{1}}, false, nil); n != 1 || err != nil {
						t.Fatal(n, err)
					}
				}
				// The power goes before the delivery ends: what is on the disk is all that a start finds.
				after := t.TempDir()
				if err := os.CopyFS(filepath.Join(after, "log"), os.DirFS(filepath.Join(dir, "log"))); err != nil {
					t.Fatal(err)
				}
				local, remote := &sink{}, &sink{}
				again := open(t, testConfig(after, local, remote))
				synctest.Wait()
				var told []string
				for _, body := range local.body {
					for line := range strings.Lines(body) {
						if address, ok := strings.CutPrefix(line, "X-Bounced-Address: "); ok {
							told = append(told, strings.TrimSpace(address))
						}
					}
				}
				want := map[Action][]string{Bounce: {"bad@local.test", "u@far.test"}}[action]
				if len(remote.all()) != 0 || !slices.Equal(told, want) || again.Stats().Messages != 0 {
					t.Errorf("after the crash delivered %v, told of %v, %d left", remote.all(), told, again.Stats().Messages)
				}
				again.Shutdown(t.Context())
				close(hang.open)
				synctest.Wait()
				q.Shutdown(t.Context())
			})
		})
	}
}

// TestToldByName: what the log says of notices that were told holds for these alone, also when the log lacks one of them.
func TestToldByName(t *testing.T) {
	dir := t.TempDir()
	disk := rot(dir)
	c := testConfig(dir, &sink{}, &sink{})
	c.LogDisk, c.Idle = disk, true
	q := open(t, c)
	if err := submit(t, q, "Subject: x\r\n\r\n", "s@local.test", "a@far.test", "b@far.test"); err != nil {
		t.Fatal(err)
	}
	m := q.messages[1]
	fails := func(i int) {
		q.mu.Lock()
		q.record(m, []result{{index: i, status: failed}}, []notice{newNotice(i, errGivenUp, "no")})
		q.mu.Unlock()
		// What is in line is written when a later record is.
		q.log.Enqueue(kindHold, 1, true, []byte{0}).Wait()
	}
	disk.fail(errors.New("input/output error"), nil)
	fails(0)
	disk.fail(nil, nil)
	q.mu.Lock()
	first := slices.Clone(m.notices())
	q.mu.Unlock()
	fails(1)
	q.mu.Lock()
	pending := q.tellNoMore(m, []int{first[0].index}, false, true)
	q.mu.Unlock()
	if _, err := pending.Wait(); err != nil {
		t.Fatal(err)
	}
	q.Shutdown(t.Context())
	q = open(t, c)
	defer q.Shutdown(t.Context())
	if got := q.messages[1].notices(); len(got) != 1 || got[0].index != 1 {
		t.Errorf("left to tell: %+v, want that of the second recipient", got)
	}
}

// TestDropInOrder: a segment whose file cannot be removed stays, and all behind it, whose records say what of it has ended; and they
// go when it can.
func TestDropInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		disk := rot(dir)
		c := testConfig(dir, &sink{}, &sink{})
		c.LogDisk, c.SegmentSize = disk, 4<<10
		q := open(t, c)
		files := func() int {
			found, err := filepath.Glob(filepath.Join(dir, "log", "*.seg"))
			if err != nil {
				t.Fatal(err)
			}
			return len(found)
		}
		disk.fail(nil, errors.New("operation not permitted"))
		for range 20 {
			if err := submit(t, q, strings.Repeat("x", 1500), "s@local.test", "u@local.test"); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			q.clean()
		}
		before := files()
		if sizes, _ := q.log.Sizes(); before < 5 || len(sizes) != before {
			t.Errorf("%d files, of which the log knows %d", before, len(sizes))
		}
		disk.fail(nil, nil)
		q.clean()
		if n := files(); n > 1 {
			t.Errorf("%d files when they can be removed", n)
		}
		if err := submit(t, q, "x", "s@local.test", "u@local.test"); err != nil {
			t.Error(mailerr.From(err))
		}
		synctest.Wait()
		q.Shutdown(t.Context())
	})
}

// failsLate fails for good, once it is let go.
type failsLate struct{ blocker }

func (f *failsLate) Deliver(ctx context.Context, d *Delivery) []Result {
	results := f.blocker.Deliver(ctx, d)
	for i := range results {
		results[i].Err = mailerr.New(550, mailerr.Enhanced{5, 1, 1}, "no such user")
	}
	return results
}

// TestDeletedWhileDelivered: nobody is told of a message that was deleted, also when the delivery that ran then fails; and of one
// that was given up, once.
func TestDeletedWhileDelivered(t *testing.T) {
	for action, want := range map[Action]int{Delete: 0, Bounce: 1} {
		synctest.Test(t, func(t *testing.T) {
			local, remote := &sink{}, &failsLate{blocker{make(chan struct{})}}
			q := open(t, testConfig(t.TempDir(), local, remote))
			if err := submit(t, q, "Subject: x\r\n\r\n", "s@local.test", "u@far.test"); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if n, err := q.Act(t.Context(), action, Filter{IDs: []ID{1}}, false, nil); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			close(remote.open)
			synctest.Wait()
			told := 0
			for _, body := range local.body {
				told += strings.Count(body, "X-Bounced-Address: u@far.test")
			}
			if told != want || q.Stats().Messages != 0 {
				t.Errorf("%s: told %d times, want %d; %d messages left", action, told, want, q.Stats().Messages)
			}
			q.Shutdown(t.Context())
		})
	}
}

// TestEndNotWritten: when the end of a large message cannot be written, its content stays, for the message comes back at the next
// start; there it ends, and nothing is left of it. The two others wait.
func TestEndNotWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		disk, hang := rot(dir), &blocker{make(chan struct{})}
		c := testConfig(dir, &sink{do: later}, hang)
		c.LogDisk, c.SegmentSize = disk, 4<<10
		q := open(t, c)
		if err := submit(t, q, strings.Repeat("0123456789abcde\r\n", 20000), "s@local.test", "u@far.test"); err != nil {
			t.Fatal(err)
		}
		// This one keeps the segment from being given up.
		if err := submit(t, q, strings.Repeat("x", 3000), "s@local.test", "stays@local.test"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		disk.fail(errors.New("input/output error"), nil)
		close(hang.open)
		synctest.Wait()
		if n := q.Stats().Messages; n != 1 {
			t.Fatalf("%d messages", n)
		}
		disk.fail(nil, nil)
		// What the failed writes left behind is cut off by the next.
		if err := submit(t, q, "Subject: y\r\n\r\n", "s@local.test", "other@local.test"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		q.Shutdown(t.Context())
		again := &sink{}
		q = open(t, testConfig(dir, &sink{}, again))
		synctest.Wait()
		left, err := filepath.Glob(filepath.Join(dir, "big", "*"))
		if n := q.Stats().Messages; n != 2 || len(left) != 0 || err != nil || len(again.all()) != 1 {
			t.Errorf("%d messages, files %v, delivered again: %v", n, left, again.all())
		}
		q.Shutdown(t.Context())
	})
}

// stalls is a disk whose new files wait to be made.
type stalls struct {
	seglog.Disk
	open chan struct{}
}

func (s *stalls) Create(name string, room int64) (seglog.File, error) {
	<-s.open
	return s.Disk.Create(name, room)
}

// TestMoveIsLeftAlone: while another queue takes a message over, no word of an operator begins to deliver it here or ends it behind
// the other's back, and what compaction writes of it is not a message that somebody holds.
func TestMoveIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from, to, remote := t.TempDir(), t.TempDir(), &sink{}
		c := testConfig(from, &sink{}, remote)
		c.Router = &unready{}
		q := open(t, c)
		if err := submit(t, q, "Subject: x\r\n\r\n", "s@local.test", "u@far.test"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		slow := &stalls{seglog.Folder(filepath.Join(to, "log")), make(chan struct{})}
		there := testConfig(to, &sink{}, &sink{})
		// It delivers nothing, for its cleaning would wait for the gate, in which time stands still here.
		there.LogDisk, there.Idle = slow, true
		other := open(t, there)
		moved := make(chan error, 1)
		go func() { moved <- q.handOver(1, other) }()
		synctest.Wait()
		for _, a := range []Action{Hold, Release, RetryNow, Delete, Bounce} {
			if n, err := q.Act(t.Context(), a, Filter{IDs: []ID{1}}, false, nil); n != 0 || err != nil {
				t.Errorf("%s did something to a message that is being moved: %d, %v", a, n, err)
			}
		}
		time.Sleep(2 * routeRetry)
		synctest.Wait()
		if got := remote.all(); len(got) != 0 {
			t.Errorf("delivered %v while it was moved", got)
		}
		if !q.move([]*message{q.messages[1]}) {
			t.Error("not compacted")
		}
		// A crash here leaves the message in the old queue alone, and on its way.
		after := t.TempDir()
		if err := os.CopyFS(filepath.Join(after, "log"), os.DirFS(filepath.Join(from, "log"))); err != nil {
			t.Fatal(err)
		}
		late := &sink{}
		again := open(t, testConfig(after, &sink{}, late))
		synctest.Wait()
		if got := late.all(); len(got) != 1 {
			t.Errorf("after a crash delivered %v", got)
		}
		again.Shutdown(t.Context())
		close(slow.open)
		if err := <-moved; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if a, b := q.Stats().Messages, other.Stats().Messages; a != 0 || b != 1 {
			t.Errorf("%d messages here, %d there", a, b)
		}
		q.Shutdown(t.Context())
		other.Shutdown(t.Context())
	})
}

// unready has no answer the first time.
type unready struct {
	byDomain
	asked atomic.Int32
}

func (u *unready) Route(ctx context.Context, a addr.Address) (Destination, error) {
	if u.asked.Add(1) == 1 {
		return Destination{}, errors.New("no answer")
	}
	return u.byDomain.Route(ctx, a)
}

// TestUnreadableMessageIsKept: a record that is whole, but of which this version makes no message, as one of another version may be,
// is set aside before its segment goes, with its content; unless it has ended.
func TestUnreadableMessageIsKept(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "log"), 0o700); err != nil {
		t.Fatal(err)
	}
	log, err := seglog.Open(seglog.Config{Disk: seglog.Folder(filepath.Join(dir, "log"))}, func(seglog.Record) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	for id := range uint64(2) {
		if _, err := log.Enqueue(kindMessage, id+1, true, []byte("\xff\xff of another version"), []byte("precious content")).Wait(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := log.Enqueue(kindFinished, 2, true, nil).Wait(); err != nil {
		t.Fatal(err)
	}
	log.Close()
	// The content of a large one lies beside the log.
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "big"), 0o700), os.WriteFile(filepath.Join(dir, "big", "1"), []byte("large content"), 0o600)); err != nil {
		t.Fatal(err)
	}
	c := testConfig(dir, &sink{}, &sink{})
	c.Idle = true
	for range 2 {
		q := open(t, c)
		files, _ := filepath.Glob(filepath.Join(dir, "damaged", "*"))
		if len(files) != 2 || q.Stats().Messages != 0 {
			t.Fatalf("files %v, %d messages", files, q.Stats().Messages)
		}
		for i, want := range []string{"precious content", "large content"} {
			if b, err := os.ReadFile(files[i]); err != nil || !strings.HasSuffix(string(b), want) {
				t.Errorf("%s: %q, %v", files[i], b, err)
			}
		}
		q.Shutdown(t.Context())
	}
}
