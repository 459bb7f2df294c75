package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/queue"
)

// homes is a directory whose users are ann and bob, with homes under one folder.
type homes string

func (h homes) User(_ context.Context, a addr.Address) (directory.User, error) {
	switch strings.ToLower(a.Local) {
	case "ann", "bob":
		return directory.User{Name: a.Local, Domain: a.Domain, Dir: filepath.Join(string(h), a.Local)}, nil
	case "staff":
		return directory.User{Name: a.Local, Domain: a.Domain, Gecos: "MailGroup all", Dir: filepath.Join(string(h), a.Local)}, nil
	case "broken":
		return directory.User{}, errors.New("database is gone")
	case "asleep":
		return directory.User{}, directory.ErrInactive
	}
	return directory.User{}, directory.ErrNoUser
}

// DomainRoom and DomainGrew know no limits.
func (h homes) DomainRoom(context.Context, string, maildir.Use) (bool, error) { return true, nil }
func (h homes) DomainGrew(string, maildir.Use)                                {}

type text struct{ *strings.Reader }

func (t text) Size() int64 { return t.Reader.Size() }

func delivery(id queue.ID, body string, to ...string) *queue.Delivery {
	d := &queue.Delivery{
		ID: id, Birth: time.Unix(1700000000, 0), Content: text{strings.NewReader(body)},
		Envelope: &queue.Envelope{Sender: addr.Address{Local: "sender", Domain: "example.net"}},
	}
	for i, u := range to {
		r := queue.Recipient{Address: addr.Address{Local: u, Domain: "example.org"}}
		d.Recipients = append(d.Recipients, r)
		d.Index = append(d.Index, i)
	}
	d.Envelope.Recipients = d.Recipients
	return d
}

func station(t testing.TB, home string, sync func(*os.File) error) *Deliverer {
	t.Helper()
	d := New(Config{Directory: homes(home), Hostname: "mx.example.org", Sync: sync})
	t.Cleanup(func() { d.Close() })
	return d
}

func one(t *testing.T, d *Deliverer, dl *queue.Delivery) queue.Result {
	t.Helper()
	rs := d.Deliver(t.Context(), dl)
	if len(rs) != len(dl.Recipients) {
		t.Fatalf("%d results for %d recipients", len(rs), len(dl.Recipients))
	}
	return rs[0]
}

// stored gives name and content of every message of the user.
func stored(t *testing.T, home, user string) map[string]string {
	t.Helper()
	path := filepath.Join(home, user, "Maildir")
	list, err := maildir.List(path)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for _, e := range list {
		b, err := os.ReadFile(e.File)
		if err != nil {
			t.Fatal(err)
		}
		m[filepath.Base(e.File)] = string(b)
	}
	if left, _ := os.ReadDir(filepath.Join(path, "tmp")); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
	return m
}

const mail = "Subject: hello\r\n\r\nbody\r\n"
const kept = "Return-Path: <sender@example.net>\nDelivered-To: ann@example.org\nSubject: hello\n\nbody\n"

func TestDeliver(t *testing.T) {
	home := t.TempDir()
	d := station(t, home, nil)
	if r := one(t, d, delivery(7, mail, "ann")); r.Err != nil || r.Text != "did 1+0+0" {
		t.Fatalf("%+v", r)
	}
	name := fmt.Sprintf("1700000000.Q7R0.mx.example.org,S=%d,W=%d", len(kept), len(kept)+5)
	got := stored(t, home, "ann")
	if len(got) != 1 || got[name] != kept {
		t.Fatalf("got %q, want %s", got, name)
	}
	st, err := os.Stat(filepath.Join(home, "ann/Maildir/new", name))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatal(st.Mode(), err)
	}
}

func TestResults(t *testing.T) {
	home := t.TempDir()
	d := station(t, home, nil)
	looped := "Received: x\r\ndelivered-to:  Ann@EXAMPLE.org \r\n\r\n"
	notLooped := "Subject: x\r\n\r\nDelivered-To: ann@example.org\r\n"
	for _, tc := range []struct {
		user, body, want string
	}{
		{"ann", mail, ""},
		{"nobody", mail, "550 5.1.1 Sorry, no mailbox here by that name. (#5.1.1)"},
		{"asleep", mail, "550 5.2.1 Sorry, this mailbox is inactive. (#5.2.1)"},
		{"broken", mail, "451 4.3.0 Unable to look the user up. (#4.3.0)"},
		{"ann", looped, "554 5.4.6 This message is looping: it already has my Delivered-To line. (#5.4.6)"},
		{"ann", notLooped, ""},
		{"bob", looped, ""},
		{"ann", "", ""},
	} {
		r := one(t, d, delivery(queue.ID(rand.Uint64()), tc.body, tc.user))
		got := ""
		if r.Err != nil {
			got = r.Err.Reply()
		}
		if got != tc.want {
			t.Errorf("%s %q: %q, want %q", tc.user, tc.body, got, tc.want)
		}
	}
}

// TestSeveralRecipients shows that they share one sync and fail apart.
func TestSeveralRecipients(t *testing.T) {
	home := t.TempDir()
	var syncs atomic.Int32
	d := station(t, home, func(*os.File) error { syncs.Add(1); return nil })
	rs := d.Deliver(t.Context(), delivery(1, mail, "ann", "nobody", "bob", "ann"))
	if rs[0].Err != nil || rs[1].Err == nil || rs[2].Err != nil || rs[3].Err != nil {
		t.Fatalf("%+v", rs)
	}
	if n := syncs.Load(); n != 1 {
		t.Errorf("%d syncs", n)
	}
	if a, b := stored(t, home, "ann"), stored(t, home, "bob"); len(a) != 2 || len(b) != 1 {
		t.Error(a, b)
	}
}

// TestRepeat is the crash: the earlier attempt's file is there, whole or short, in new or in cur, with or without flags.
func TestRepeat(t *testing.T) {
	full := fmt.Sprintf("1700000000.Q7R0.mx.example.org,S=%d,W=%d", len(kept), len(kept)+5)
	for _, tc := range []struct{ name, file, content string }{
		{"nothing", "", ""},
		{"whole in new", "new/" + full, kept},
		{"whole in cur", "cur/" + full + ":2,S", kept},
		{"short in new", "new/" + full, kept[:20]},
		{"empty in cur", "cur/" + full + ":2,", ""},
		{"short in tmp", "tmp/1700000000.Q7R0.mx.example.org", kept[:9]},
		{"whole under the old host name", "new/" + strings.Replace(full, "mx", "old", 1), kept},
	} {
		for _, known := range []bool{true, false} {
			t.Run(fmt.Sprint(tc.name, known), func(t *testing.T) {
				home := t.TempDir()
				path := filepath.Join(home, "ann/Maildir")
				if err := maildir.Create(path); err != nil {
					t.Fatal(err)
				}
				if tc.file != "" {
					if err := os.WriteFile(filepath.Join(path, tc.file), []byte(tc.content), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				synced := false
				d := station(t, home, func(*os.File) error { synced = true; return nil })
				dl := delivery(7, mail, "ann")
				dl.Repeat = known
				if !known && !strings.HasPrefix(tc.file, "new/"+full) {
					t.Skip("only a name that is taken is seen without the queue's word")
				}
				if r := one(t, d, dl); r.Err != nil {
					t.Fatal(r.Err)
				}
				got := stored(t, home, "ann")
				if len(got) != 1 {
					t.Fatalf("%d copies: %q", len(got), got)
				}
				for _, c := range got {
					if c != kept {
						t.Errorf("%q", c)
					}
				}
				if !synced {
					t.Error("success without a sync")
				}
			})
		}
	}
}

// TestNeverBeforeSync holds the sync back and sees that the delivery waits, and that those who come meanwhile share the
// next one.
func TestNeverBeforeSync(t *testing.T) {
	home := t.TempDir()
	begun, let := make(chan int, 100), make(chan error)
	n := 0
	d := station(t, home, func(*os.File) error { n++; begun <- n; return <-let })
	results := make(chan queue.Result, 50)
	var wg sync.WaitGroup
	start := func(id queue.ID) {
		wg.Go(func() { results <- d.Deliver(context.Background(), delivery(id, mail, "ann"))[0] })
	}
	start(1)
	<-begun
	for id := queue.ID(2); id <= 50; id++ {
		start(id)
	}
	select {
	case r := <-results:
		t.Fatalf("a result before the sync: %+v", r)
	default:
	}
	syncs := 0
	for done := 0; done < 50; {
		select {
		case let <- nil:
			syncs++
		case r := <-results:
			done++
			if r.Err != nil {
				t.Error(r.Err)
			}
		}
	}
	wg.Wait()
	if syncs > 50 || syncs < 2 {
		t.Errorf("%d syncs", syncs)
	}
	if got := stored(t, home, "ann"); len(got) != 50 {
		t.Errorf("%d messages", len(got))
	}
}

func TestFaults(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{unix.ENOSPC, "452 4.3.1"},
		{unix.EDQUOT, "452 4.2.2"},
		{unix.EIO, "451 4.3.0"},
	} {
		home := t.TempDir()
		fail := true
		d := station(t, home, func(*os.File) error {
			if fail {
				return fmt.Errorf("syncfs: %w", tc.err)
			}
			return nil
		})
		dl := delivery(1, mail, "ann")
		if r := one(t, d, dl); r.Err == nil || !strings.HasPrefix(r.Err.Reply(), tc.want) {
			t.Errorf("%v: %+v", tc.err, r)
		}
		if got := stored(t, home, "ann"); len(got) != 0 {
			t.Errorf("%v: a file that may not be on disk stays: %q", tc.err, got)
		}
		fail = false
		dl.Attempt = 1
		if r := one(t, d, dl); r.Err != nil {
			t.Error(r.Err)
		}
		if got := stored(t, home, "ann"); len(got) != 1 {
			t.Error(got)
		}
	}
}

// TestMaildirReplaced moves and removes the Maildir between deliveries: the cache of open folders must notice.
func TestMaildirReplaced(t *testing.T) {
	home := t.TempDir()
	d := station(t, home, nil)
	path := filepath.Join(home, "ann/Maildir")
	for i, change := range []func() error{
		func() error { return nil },
		func() error { return os.Rename(path, path+".old") },
		func() error { return os.RemoveAll(path) },
		func() error { return os.RemoveAll(filepath.Join(path, "tmp")) },
		func() error { return os.RemoveAll(filepath.Join(path, "new")) },
		func() error { return os.Chmod(filepath.Join(path, "cur"), 0o700) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		before := len(stored(t, home, "ann"))
		if r := one(t, d, delivery(queue.ID(i+1), mail, "ann")); r.Err != nil {
			t.Fatalf("change %d: %v", i, r.Err)
		}
		if after := len(stored(t, home, "ann")); after != before+1 {
			t.Fatalf("change %d: %d messages, then %d", i, before, after)
		}
	}
}

// TestBigMessage is byte-exact over many pieces, with line ends on every border.
func TestBigMessage(t *testing.T) {
	var b bytes.Buffer
	b.WriteString("Subject: big\r\n\r\n")
	rnd := rand.New(rand.NewPCG(1, 2))
	for b.Len() < 20<<20 {
		line := make([]byte, rnd.IntN(120))
		for i := range line {
			line[i] = byte(' ' + rnd.IntN(95))
		}
		b.Write(line)
		b.WriteString("\r\n")
	}
	for _, body := range []string{
		b.String(),
		strings.Repeat("\r\n", 300<<10),
		"x" + strings.Repeat("\r\n", 300<<10),
		strings.Repeat("y", chunk-1) + "\r\nend\r\n",
		strings.Repeat("y", chunk-1) + "\r",
		strings.Repeat("y", chunk),
	} {
		home := t.TempDir()
		d := station(t, home, nil)
		dl := delivery(1, body, "ann", "bob")
		for range 2 {
			for _, r := range d.Deliver(t.Context(), dl) {
				if r.Err != nil {
					t.Fatal(r.Err)
				}
			}
			dl.Repeat = true
		}
		for _, user := range []string{"ann", "bob"} {
			path := filepath.Join(home, user, "Maildir")
			list, err := maildir.List(path)
			if err != nil || len(list) != 1 {
				t.Fatal(list, err)
			}
			if !strings.HasSuffix(body, "\n") {
				// What the reader adds is not in the file.
				file, err := os.ReadFile(list[0].File)
				if err != nil || len(file) == 0 || file[len(file)-1] == '\n' {
					t.Errorf("the file ends with a line end that was not in the message, %v", err)
				}
				continue
			}
			size := list[0].Size
			wire, err := list[0].Read()
			if err != nil {
				t.Fatal(err)
			}
			want := "Return-Path: <sender@example.net>\r\nDelivered-To: " + user + "@example.org\r\n" + body
			if string(wire) != want {
				t.Errorf("%s: %d bytes, want %d", user, len(wire), len(want))
			}
			if size != int64(len(want)) {
				t.Errorf("W=%d, want %d", size, len(want))
			}
		}
	}
}

func TestShutdown(t *testing.T) {
	d := station(t, t.TempDir(), nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r := d.Deliver(ctx, delivery(1, mail, "ann"))[0]; r.Err == nil || !r.Err.Temporary() {
		t.Errorf("%+v", r)
	}
	d.Close()
	if r := d.Deliver(t.Context(), delivery(1, mail, "ann"))[0]; r.Err == nil || !r.Err.Temporary() {
		t.Errorf("%+v", r)
	}
}

// BenchmarkDeliver delivers 4 KiB messages to one Maildir, 120 at a time, as the queue does.
func BenchmarkDeliver(b *testing.B) { benchmarkDeliver(b, station(b, b.TempDir(), nil)) }

// BenchmarkDeliverQuota is the same for a user with a quota; the mailbox only grows, so that counting it anew every 600 messages costs most.
func BenchmarkDeliverQuota(b *testing.B) {
	benchmarkDeliver(b, limitedStation(b, limited{home: b.TempDir(), quota: "1000000000000S"}, nil, syncfs))
}

func benchmarkDeliver(b *testing.B, d *Deliverer) {
	body := "Subject: x\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 56)
	var id atomic.Uint64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range 120 {
		wg.Go(func() {
			for {
				n := id.Add(1)
				if n > uint64(b.N) {
					return
				}
				if r := d.Deliver(b.Context(), delivery(queue.ID(n), body, "ann"))[0]; r.Err != nil {
					b.Error(r.Err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}
