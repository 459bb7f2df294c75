package local

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/queue"
)

type home string

func (h home) User(_ context.Context, a addr.Address) (directory.User, error) {
	if a.Local != "u" {
		return directory.User{}, directory.ErrNoUser
	}
	return directory.User{Name: "u", Domain: "d.test", Dir: string(h)}, nil
}

type content struct{ *bytes.Reader }

func (c content) Size() int64 { return c.Reader.Size() }

func delivery(text string, to ...string) *queue.Delivery {
	d := &queue.Delivery{ID: 7, Birth: time.Unix(100, 0), Content: content{bytes.NewReader([]byte(text))},
		Envelope: &queue.Envelope{Sender: addr.Address{Local: "s", Domain: "x.test"}}}
	for i, a := range to {
		d.Index = append(d.Index, i)
		d.Recipients = append(d.Recipients, queue.Recipient{Address: addr.Address{Local: a, Domain: "d.test"}})
	}
	return d
}

func newTest(t testing.TB) (*Deliverer, string) {
	dir := t.TempDir()
	d, err := New(Config{Directory: home(dir), MailRoot: dir, Hostname: "h.test", DefaultDomain: "d.test", Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d, filepath.Join(dir, "Maildir")
}

func TestDeliver(t *testing.T) {
	d, path := newTest(t)
	r := d.Deliver(t.Context(), delivery("Subject: x\r\n\r\nbody", "u", "nobody"))
	if r[0].Err != nil || r[0].Text != "did 1+0+0" || r[1].Err == nil || r[1].Err.Code != 550 {
		t.Fatalf("%+v", r)
	}
	list, err := maildir.List(path)
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	want := "Return-Path: <s@x.test>\nDelivered-To: u@d.test\nSubject: x\n\nbody\n"
	b, _ := os.ReadFile(list[0].File)
	if string(b) != want || filepath.Base(list[0].File) != fmt.Sprintf("100.Q7R0.h.test,S=%d,W=%d", len(want), len(want)+5) {
		t.Errorf("%s: %q", list[0].File, b)
	}
	if info, _ := os.Stat(list[0].File); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	got, err := list[0].Read()
	if err != nil || int64(len(got)) != int64(len(want)+5) || !bytes.HasSuffix(got, []byte("\r\n\r\nbody\r\n")) {
		t.Errorf("%q %v", got, err)
	}
	if r := d.Deliver(t.Context(), delivery("delivered-to: U@d.test\r\n\r\n", "u")); r[0].Err == nil || r[0].Err.Code != 554 {
		t.Errorf("a loop: %+v", r)
	}
}

// TestRepeat delivers again after a crash: a whole file is left alone wherever it is, a torn one is replaced.
func TestRepeat(t *testing.T) {
	d, path := newTest(t)
	again := func() {
		t.Helper()
		job := delivery("Subject: x\r\n\r\n"+strings.Repeat("y\r\n", 100), "u")
		job.Repeat = true
		if r := d.Deliver(t.Context(), job); r[0].Err != nil {
			t.Fatal(r[0].Err)
		}
		list, err := maildir.List(path)
		if err != nil || len(list) != 1 {
			t.Fatalf("%d messages, %v", len(list), err)
		}
		if b, _ := os.ReadFile(list[0].File); !strings.HasSuffix(string(b), "y\ny\n") {
			t.Fatalf("torn: %q", b)
		}
	}
	again()
	again()
	list, _ := maildir.List(path)
	if err := list[0].SetFlags("S"); err != nil {
		t.Fatal(err)
	}
	again()
	list, _ = maildir.List(path)
	if list[0].Flags != "S" {
		t.Error("the flags were lost")
	}
	if err := os.Truncate(list[0].File, 10); err != nil {
		t.Fatal(err)
	}
	again()
}

func BenchmarkDeliver(b *testing.B) {
	d, _ := newTest(b)
	text := strings.Repeat("0123456789abcde\r\n", 4096/17)
	b.SetParallelism(60)
	b.RunParallel(func(pb *testing.PB) {
		for n := uint64(time.Now().UnixNano()); pb.Next(); n++ {
			job := delivery(text, "u")
			job.ID = queue.ID(n)
			if r := d.Deliver(b.Context(), job); r[0].Err != nil {
				b.Error(r[0].Err)
			}
		}
	})
}
