package queue

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/mailerr"
)

func later(*Delivery) *mailerr.Error {
	return mailerr.New(451, mailerr.Enhanced{4, 0, 0}, "not now")
}

func ids(t testing.TB, q *Queue, f Filter) (found []string) {
	t.Helper()
	if err := q.Each(t.Context(), f, func(l Listed) error { found = append(found, l.ID); return nil }); err != nil {
		t.Error(err)
	}
	return found
}

func TestFilter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := open(t, testConfig(t.TempDir(), &sink{}, &sink{do: later}))
		defer q.Shutdown(t.Context())
		for _, m := range []struct{ from, to, body string }{
			{"a@one.test", "x@far.test", "small"},
			{"b@two.test", "y@far.test", strings.Repeat("large ", 1000)},
			{"", "z@other.test", "a bounce"},
			{"A/b@one.test", "X@Far.test", "old"},
		} {
			if err := submit(t, q, m.body, m.from, m.to); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
		}
		synctest.Wait()
		if _, err := q.Act(t.Context(), Hold, Filter{IDs: []ID{2}}, false, nil); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			f    Filter
			want string
		}{
			{Filter{}, "[1 2 3 4]"},
			{Filter{IDs: []ID{4, 2, 77}}, "[2 4]"},
			{Filter{Sender: "*@ONE.test"}, "[1 4]"},
			{Filter{Sender: "<>"}, "[3]"},
			{Filter{Sender: "?@two.test"}, "[2]"},
			{Filter{Recipient: "[xy]@far.test"}, "[1 2 4]"},
			{Filter{Domain: "FAR.TEST", Larger: 5000}, "[2]"},
			{Filter{Domain: "far.test", Smaller: 5}, "[4]"},
			{Filter{Older: 150 * time.Minute}, "[1 2]"},
			{Filter{Younger: 150 * time.Minute, Failed: true}, "[3 4]"},
			{Filter{Held: true}, "[2]"},
			{Filter{Domain: "nowhere.test"}, "[]"},
		} {
			if got := fmt.Sprint(ids(t, q, c.f)); got != c.want {
				t.Errorf("%+v: %s, want %s", c.f, got, c.want)
			}
		}
		if err := q.Each(t.Context(), Filter{Sender: "["}, nil); err == nil {
			t.Error("a malformed pattern was taken")
		}
	})
}

// TestHold: what is held is not tried, also after a restart, until it is released.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, remote := t.TempDir(), &sink{do: later}
		q := open(t, testConfig(dir, &sink{}, remote))
		for n := range 3 {
			if err := submit(t, q, fmt.Sprint(n), "s@x.test", fmt.Sprintf("u%d@far.test", n)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n, err := q.Act(t.Context(), Hold, Filter{Recipient: "u1@*"}, false, nil); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		for range 2 {
			time.Sleep(time.Hour)
			synctest.Wait()
			if n := count(remote.all(), "u1@far.test"); n != 1 {
				t.Errorf("%d attempts for the held one", n)
			}
			if s := q.Stats(); s.Held != 1 {
				t.Errorf("%+v", s)
			}
			q.Shutdown(t.Context())
			q = open(t, testConfig(dir, &sink{}, remote))
		}
		if n := count(remote.all(), "u0@far.test"); n < 3 {
			t.Errorf("%d attempts for another", n)
		}
		remote.mu.Lock()
		remote.do = nil
		remote.mu.Unlock()
		if n, err := q.Act(t.Context(), Release, Filter{Held: true}, false, nil); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		synctest.Wait()
		if n := count(remote.all(), "u1@far.test"); n != 2 {
			t.Errorf("%d attempts after the release", n)
		}
		q.Shutdown(t.Context())
	})
}

func count(all []string, one string) (n int) {
	for _, s := range all {
		if s == one {
			n++
		}
	}
	return n
}

func TestBounceAndDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, local := t.TempDir(), &sink{}
		q := open(t, testConfig(dir, local, &sink{do: later}))
		for n := range 4 {
			if err := submit(t, q, "Subject: x\r\n\r\n", "s@local.test", fmt.Sprintf("u%d@far.test", n)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n, err := q.Act(t.Context(), Bounce, Filter{Recipient: "u0@*"}, true, nil); n != 1 || err != nil || q.Stats().Messages != 4 {
			t.Fatal("dry run:", n, err)
		}
		if n, err := q.Act(t.Context(), Bounce, Filter{Recipient: "u0@*"}, false, nil); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if n, err := q.Act(t.Context(), Delete, Filter{Recipient: "u[12]@*"}, false, nil); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		synctest.Wait()
		if got := local.all(); len(got) != 1 || got[0] != "s@local.test" || !strings.Contains(local.body[0], "gave this message up") {
			t.Errorf("bounces: %v", local.body)
		}
		for range 2 {
			if got := fmt.Sprint(ids(t, q, Filter{})); got != "[4]" {
				t.Errorf("left: %s", got)
			}
			q.Shutdown(t.Context())
			q = open(t, testConfig(dir, local, &sink{do: later}))
			synctest.Wait()
		}
		q.Shutdown(t.Context())
	})
}

// TestBounceOfSomeRecipients: only those that the filter chooses are given up.
func TestBounceOfSomeRecipients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote := &sink{do: later}
		q := open(t, testConfig(t.TempDir(), &sink{}, remote))
		if err := submit(t, q, "Subject: x\r\n\r\n", "s@local.test", "a@one.test", "b@two.test", "c@three.test"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for action, domain := range map[Action]string{Bounce: "one.test", Delete: "two.test"} {
			if n, err := q.Act(t.Context(), action, Filter{Domain: domain}, false, nil); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
		synctest.Wait()
		if got := list(t, q); len(got) != 1 || fmt.Sprint(got[0].Recipients) != "[c@three.test]" {
			t.Errorf("%+v", got)
		}
		d, err := q.Show(t.Context(), 1)
		if err != nil || d.Deliveries[0].State != "failed" || d.Deliveries[1].State != "done" || d.Deliveries[2].State != "waiting" {
			t.Errorf("%+v, %v", d.Deliveries, err)
		}
		q.Shutdown(t.Context())
	})
}

// TestEdit: another recipient in the place of one that is left, in the running queue and after a restart.
func TestEdit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, local, remote := t.TempDir(), &sink{}, &sink{do: later}
		q := open(t, testConfig(dir, local, remote))
		body := strings.Repeat("0123456789abcde\r\n", 20000) // lies in a file of its own
		if err := submit(t, q, body, "s@x.test", "a@local.test", "b@far.test", "c@far.test"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		to := func(old, now string) func(*Envelope) error {
			return func(e *Envelope) error {
				for i, r := range e.Recipients {
					if r.Address.String() == old {
						e.Recipients[i].Address, _ = addr.Parse(now)
						return nil
					}
				}
				return ErrNoMessage
			}
		}
		if err := q.Edit(1, to("b@far.test", "new@local.test")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := local.all(); !slices.Equal(got, []string{"a@local.test", "new@local.test"}) || local.body[1] != body {
			t.Errorf("delivered %v", got)
		}
		if err := q.Edit(1, to("nobody@far.test", "new@local.test")); err == nil {
			t.Error("an edit of a recipient that is not there")
		}
		if err := q.Edit(99, nil); err == nil {
			t.Error("an edit of a message that is not there")
		}
		q.Shutdown(t.Context())
		q = open(t, testConfig(dir, local, &sink{}))
		if got := fmt.Sprint(list(t, q)[0].Recipients); got != "[c@far.test]" {
			t.Errorf("left %s", got)
		}
		q.RetryAll()
		synctest.Wait()
		if n := q.Stats().Messages; n != 0 {
			t.Errorf("%d messages left", n)
		}
		q.Shutdown(t.Context())
	})
}

func TestHostsAndShape(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openSet(t, t.TempDir(), &sink{}, &sink{do: later}, nil, nil)
		for _, to := range []string{"a@far.test", "b@far.test", "c@other.test"} {
			if err := submitTo(t, s, "x", "s@x.test", to); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		time.Sleep(12 * time.Minute)
		shape, err := s.Shape(t.Context(), Filter{}, false)
		if err != nil || len(shape.Domains) != 2 || shape.Domains[0].Domain != "far.test" || shape.Domains[0].Counts[2] != 2 {
			t.Errorf("%+v, %v", shape, err)
		}
		if hosts := s.Hosts(); len(hosts) != 2 || hosts[0].Host != "far.test" || hosts[0].Jobs != 2 {
			t.Errorf("%+v", hosts)
		}
		s.Shutdown(t.Context())
	})
}

// TestExport carries every message to another set, with age, state and failures.
func TestExport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openSet(t, t.TempDir(), &sink{}, &sink{do: later}, nil, nil)
		big := strings.Repeat("0123456789abcde\r\n", 20000)
		for n, body := range []string{"one", big} {
			if err := submitTo(t, s, body, "s@local.test", "done@local.test", fmt.Sprintf("u%d@far.test", n)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		time.Sleep(time.Hour)
		local, remote := &sink{}, &sink{}
		other := openSet(t, t.TempDir(), local, remote, nil, nil)
		err := s.Export(t.Context(), Filter{}, func(e Exported, c Content) error {
			var b bytes.Buffer
			if _, err := io.Copy(&b, io.NewSectionReader(c, 0, c.Size())); err != nil {
				return err
			}
			return other.Import(e, "", bytes.NewReader(b.Bytes()))
		})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := remote.all(); fmt.Sprint(got) != "[u0@far.test u1@far.test]" && fmt.Sprint(got) != "[u1@far.test u0@far.test]" {
			t.Errorf("delivered %v", got)
		}
		for _, body := range remote.body {
			if body != "one" && body != big {
				t.Errorf("%d bytes of content", len(body))
			}
		}
		if len(local.all()) != 0 {
			t.Errorf("delivered again: %v", local.all())
		}
		if n, err := other.Check(t.Context(), Filter{}, nil, func(f Fault) { t.Error(f) }); n != 0 || err != nil {
			t.Error(n, err)
		}
		if n, err := s.Check(t.Context(), Filter{}, nil, func(f Fault) { t.Error(f) }); n != 2 || err != nil {
			t.Error(n, err)
		}
		other.Shutdown(t.Context())
		s.Shutdown(t.Context())
	})
}
