package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/bounce"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/queue/seglog"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
)

// sink is a Deliverer that does what do says and remembers each delivery.
type sink struct {
	mu   sync.Mutex
	do   func(d *Delivery) *mailerr.Error
	seen []string
	at   []time.Time
	body []string
}

func (s *sink) Deliver(_ context.Context, d *Delivery) []Result {
	b, err := io.ReadAll(io.NewSectionReader(d.Content, 0, d.Content.Size()))
	results := make([]Result, len(d.Recipients))
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, r := range d.Recipients {
		s.seen = append(s.seen, r.Address.String())
		s.at = append(s.at, time.Now())
		s.body = append(s.body, string(b))
		if err != nil {
			results[i].Err = mailerr.From(err)
		} else if s.do != nil {
			results[i].Err = s.do(d)
		}
	}
	return results
}

func (s *sink) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.seen...)
}

type byDomain struct{}

func (byDomain) Route(_ context.Context, a addr.Address) (Destination, error) {
	if strings.HasSuffix(a.Domain, "local.test") {
		return Destination{Channel: Local}, nil
	}
	return Destination{Channel: Remote, Host: a.Domain}, nil
}

func testConfig(dir string, local, remote Deliverer) Config {
	return Config{Dir: dir, Host: "local.test", Settings: func() *settings.View { return nil }, Router: byDomain{}, Local: local, Remote: remote,
		Trace: trace.Discard, Logger: slog.New(slog.DiscardHandler), Now: time.Now}
}

func open(t testing.TB, c Config) *Queue {
	t.Helper()
	q, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func submit(t testing.TB, q *Queue, content, from string, to ...string) error {
	t.Helper()
	return submitTo(t, q, content, from, to...)
}

// list gives every message of a queue.
func list(t testing.TB, q *Queue) (all []Listed) {
	t.Helper()
	if err := q.Each(t.Context(), Filter{}, func(l Listed) error { all = append(all, l); return nil }); err != nil {
		t.Error(err)
	}
	return all
}

// TestRetrySchedule runs a week of deferrals and compares the attempts with the wiki's tables (lines 213-371).
func TestRetrySchedule(t *testing.T) {
	for _, c := range []struct {
		channel Channel
		to      string
		skip    int
	}{{Local, "u@local.test", 10}, {Remote, "u@far.test", 20}} {
		synctest.Test(t, func(t *testing.T) {
			deferring := &sink{do: func(d *Delivery) *mailerr.Error {
				if d.Envelope.Sender.IsNull() {
					return nil
				}
				return mailerr.New(451, mailerr.Enhanced{4, 0, 0}, "not now")
			}}
			bounces := &sink{}
			config := testConfig(t.TempDir(), deferring, bounces)
			if c.channel == Remote {
				config.Local, config.Remote = bounces, deferring
			}
			q := open(t, config)
			birth := time.Now()
			from := "s@far.test"
			if c.channel == Remote {
				from = "s@local.test"
			}
			if err := submit(t, q, "Subject: x\r\n\r\n", from, c.to); err != nil {
				t.Fatal(err)
			}
			time.Sleep(8 * 24 * time.Hour)
			synctest.Wait()
			q.Shutdown(t.Context())
			if len(bounces.seen) != 2 || bounces.seen[1] != from || !strings.Contains(bounces.body[1], "this message has been in the queue too long") ||
				!strings.Contains(bounces.body[0], "Subject: delay notice") {
				t.Errorf("%s: bounces %v", c.channel, bounces.seen)
			}
			last := 0
			for n, at := range deferring.at {
				want := n * c.skip * n * c.skip
				// The queue looks at whole milliseconds and more; the schedule is in seconds.
				if got := int(at.Sub(birth).Seconds()); got != want {
					t.Fatalf("%s: attempt %d after %d s, want %d", c.channel, n, got, want)
				}
				last = want
			}
			if last < 604800 || len(deferring.at) < 39 {
				t.Errorf("%s: %d attempts, the last after %d s", c.channel, len(deferring.at), last)
			}
		})
	}
}

func TestBouncesAndDoubleBounces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failing := func(*Delivery) *mailerr.Error { return mailerr.New(550, mailerr.Enhanced{5, 1, 1}, "no such user") }
		local, remote := &sink{}, &sink{do: failing}
		q := open(t, testConfig(t.TempDir(), local, remote))
		if err := submit(t, q, "Subject: x\r\n\r\nbody\r\n", "s@far.test", "u@local.test", "a@far.test", "b@far.test"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		// The bounce to s@far.test fails too; the double bounce reaches the postmaster here.
		if got := strings.Join(local.all(), " "); got != "u@local.test postmaster@local.test" {
			t.Errorf("local %s", got)
		}
		if got := strings.Join(remote.all(), " "); got != "a@far.test b@far.test s@far.test" {
			t.Errorf("remote %s", got)
		}
		if !strings.Contains(local.body[1], "the bounce bounced") {
			t.Error(local.body[1])
		}
		if n := q.Stats().Messages; n != 0 {
			t.Errorf("%d messages left", n)
		}
		// And where that fails, it ends.
		local.do = failing
		if err := submit(t, q, "Subject: x\r\n\r\n", "", "u@local.test"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := q.Stats().Messages; n != 0 {
			t.Errorf("%d messages left", n)
		}
		q.Shutdown(t.Context())
	})
}

// TestRecovery reopens a queue whose daemon did not shut down: what was done stays done, the rest is tried again.
func TestRecovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		deferring := &sink{do: func(d *Delivery) *mailerr.Error { return mailerr.New(451, mailerr.Enhanced{4, 0, 0}, "later") }}
		local := &sink{}
		q := open(t, testConfig(dir, local, deferring))
		big := strings.Repeat("0123456789abcde\r\n", bigContent/16)
		for _, content := range []string{"Subject: small\r\n\r\n", big} {
			if err := submit(t, q, content, "s@local.test", "u@local.test", "r@far.test"); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		first := list(t, q)
		q.Shutdown(t.Context())

		again, remote := &sink{}, &sink{}
		q = open(t, testConfig(dir, again, remote))
		synctest.Wait()
		if len(remote.all()) != 0 {
			t.Error("the schedule was forgotten")
		}
		if list := list(t, q); len(list) != 2 || fmt.Sprint(list[0].Recipients) != "[r@far.test]" || list[0].ID != first[0].ID || !list[0].Next.Equal(first[0].Next) {
			t.Errorf("%+v, before %+v", list, first)
		}
		q.RetryAll()
		synctest.Wait()
		if got := fmt.Sprint(remote.all(), again.all()); got != "[r@far.test r@far.test] []" {
			t.Error(got)
		}
		for _, b := range remote.body {
			if b != big && b != "Subject: small\r\n\r\n" {
				t.Errorf("content of %d bytes differs", len(b))
			}
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "big", "*")); len(left) != 0 {
			t.Errorf("left over: %v", left)
		}
		// Ids are never used twice.
		s, err := q.begin(0)
		if err != nil || s.id <= 2 {
			t.Errorf("id %d, %v", s.id, err)
		}
		s.Abort()
		q.Shutdown(t.Context())
	})
}

// faulty is a file layer that fails on demand.
type faulty struct {
	seglog.Disk
	mu     sync.Mutex
	write  error
	sync   error
	remove error
}

func (f *faulty) Open(name string) (seglog.File, error) {
	inner, err := f.Disk.Open(name)
	return &faultyFile{inner, f}, err
}

func (f *faulty) Create(name string, room int64) (seglog.File, error) {
	inner, err := f.Disk.Create(name, room)
	return &faultyFile{inner, f}, err
}

type faultyFile struct {
	seglog.File
	f *faulty
}

func (f *faultyFile) WriteAt(b []byte, at int64) (int, error) {
	f.f.mu.Lock()
	defer f.f.mu.Unlock()
	if f.f.write != nil {
		// A short write leaves half of the batch behind.
		n, _ := f.File.WriteAt(b[:len(b)/2], at)
		return n, f.f.write
	}
	return f.File.WriteAt(b, at)
}

func (f *faultyFile) Datasync() error {
	f.f.mu.Lock()
	defer f.f.mu.Unlock()
	return errors.Join(f.f.sync, f.File.Datasync())
}

func (f *faultyFile) Truncate(int64) error { return errors.New("no") }

func TestWriteErrorsAreNotAcknowledgedAndPass(t *testing.T) {
	dir := t.TempDir()
	f := &faulty{Disk: seglog.Folder(filepath.Join(dir, "log"))}
	held := func(c Config) Config {
		c.LogDisk = f
		// Nothing is delivered: the router does not answer.
		c.Router = silent{}
		return c
	}
	q := open(t, held(testConfig(dir, &sink{}, &sink{})))
	want := map[string]bool{}
	try := func(name string, code int) {
		t.Helper()
		err := submit(t, q, "Subject: "+name+"\r\n\r\n", "s@x.test", "u@local.test")
		if code == 250 {
			want[name] = true
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		} else if err == nil || mailerr.From(err).Code != code {
			t.Fatalf("%s: %v, want %d", name, err, code)
		}
	}
	set := func(write, sync error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.write, f.sync = write, sync
	}
	try("one", 250)
	set(unix.ENOSPC, nil)
	try("two", 452)
	set(nil, nil)
	try("three", 250)
	set(nil, unix.EIO)
	try("four", 451)
	set(nil, nil)
	try("five", 250)
	q.Shutdown(t.Context())

	q = open(t, held(testConfig(dir, &sink{}, &sink{})))
	defer q.Shutdown(t.Context())
	got := map[string]bool{}
	for _, m := range q.messages {
		_, c, release, err := q.load(m)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(io.NewSectionReader(c, 0, c.Size()))
		release()
		got[strings.TrimSpace(strings.TrimPrefix(string(b), "Subject: "))] = true
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("after recovery %v, acknowledged %v", got, want)
	}
}

type silent struct{}

func (silent) Route(context.Context, addr.Address) (Destination, error) {
	return Destination{}, errors.New("no answer")
}

func FuzzDecodeHead(f *testing.F) {
	h := head{birth: 1, size: 3, statuses: []status{waiting, failed}, notices: []notice{{1, bounce.Failed, 550, "5.1.1", "no"}},
		envelope: Envelope{Sender: addr.Address{Local: "a", Domain: "b"}, Recipients: make([]Recipient, 2)}}
	f.Add(append(h.encode(), "abc"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, rest, err := decodeHead(b)
		if err != nil {
			return
		}
		again, rest2, err := decodeHead(append(h.encode(), rest...))
		if err != nil || !bytes.Equal(rest, rest2) || fmt.Sprint(again) != fmt.Sprint(h) {
			t.Fatalf("%v %+v %+v", err, h, again)
		}
	})
}

func BenchmarkCommit(b *testing.B) {
	for _, sessions := range []int{1, 20, 100} {
		b.Run(fmt.Sprint(sessions), func(b *testing.B) {
			c := testConfig(b.TempDir(), &sink{}, &sink{})
			c.Router = silent{}
			q := open(b, c)
			defer q.Shutdown(b.Context())
			content := strings.Repeat("0123456789abcde\r\n", 4096/16)
			b.SetParallelism(sessions / 2)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := submit(b, q, content, "s@x.test", "u@local.test"); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
