package inject

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/netstring"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
)

// keeper is a queue that keeps what is committed.
type keeper struct {
	mu      sync.Mutex
	taken   []queue.Envelope
	content []string
	aborted int
	refuse  error
}

func (k *keeper) Begin(context.Context, int64) (queue.Submission, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.refuse != nil {
		return nil, k.refuse
	}
	return &kept{k: k}, nil
}

type kept struct {
	bytes.Buffer
	k *keeper
}

func (s *kept) ID() queue.ID { return 7 }
func (s *kept) Abort() {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	s.k.aborted++
}
func (s *kept) Commit(_ context.Context, env queue.Envelope) error {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	s.k.taken = append(s.k.taken, env)
	s.k.content = append(s.k.content, s.String())
	return nil
}

func testServer(k queue.Submitter, dir string) *Server {
	_, _, pickup := Layout(dir)
	return New(Config{Pickup: pickup, Hostname: "here.test", Queue: k, Settings: func() *settings.View { return nil },
		Trace: trace.Discard, Logger: slog.New(slog.DiscardHandler), Now: time.Now, UID: os.Getuid() + 1})
}

// stream is what a client writes.
func stream(t testing.TB, content string, r any) []byte {
	t.Helper()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := writeStream(&b, strings.NewReader(content), text); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func request(to ...string) Request {
	r := Request{Program: "sendmail"}
	r.Envelope.Sender = addr.Address{Local: "s", Domain: "x.test"}
	for _, a := range to {
		r.Envelope.Recipients = append(r.Envelope.Recipients, queue.Recipient{Address: addr.Address{Local: a, Domain: "y.test"}})
	}
	return r
}

func TestTake(t *testing.T) {
	good := request("u")
	withOrigin := request("u")
	withOrigin.Envelope.Origin = queue.Origin{Service: "smtpd.25", Client: "192.0.2.1", UID: 3}
	forged := request("u")
	forged.Envelope.Recipients[0].Orcpt = "rfc822;x\r\nDATA"
	null := request("u")
	null.Envelope.Recipients[0].Address = addr.Address{}
	looping := strings.Repeat("Received: x\n", 101) + "\n"
	for name, tc := range map[string]struct {
		stream []byte
		code   int
		want   string
	}{
		"LF":              {stream(t, "Subject: x\n\nline\nlast", good), 0, "Subject: x\r\n\r\nline\r\nlast\r\n"},
		"CRLF and CR":     {stream(t, "Subject: x\r\n\r\na\rb\r\n", good), 0, "Subject: x\r\n\r\na\r\nb\r\n"},
		"long":            {stream(t, "\n"+strings.Repeat("0123456789abcde\n", 20000), good), 0, "\r\n" + strings.Repeat("0123456789abcde\r\n", 20000)},
		"empty":           {stream(t, "", good), 0, ""},
		"a lie of origin": {stream(t, "\n", withOrigin), 0, "\r\n"},
		"nobody":          {stream(t, "x\n", request()), 554, ""},
		"null recipient":  {stream(t, "x\n", null), 553, ""},
		"forged ORCPT":    {stream(t, "x\n", forged), 553, ""},
		"loop":            {stream(t, looping, good), 554, ""},
		"too large":       {stream(t, strings.Repeat("x", 53<<20), good), 552, ""},
		"no netstring":    {[]byte("hello"), 554, ""},
		"huge netstring":  {[]byte("99999999:"), 554, ""},
		"cut in content":  {[]byte("5:ab"), 451, ""},
		"cut before end":  {[]byte("2:ab,"), 451, ""},
		"cut in request":  {[]byte("2:ab,0:,100:{"), 451, ""},
		"no JSON":         {[]byte("2:ab,0:,2:xx,"), 554, ""},
		"nothing":         {nil, 451, ""},
	} {
		k := &keeper{}
		_, err := testServer(k, t.TempDir()).take(t.Context(), bytes.NewReader(tc.stream), os.Getuid(), 99)
		code := 0
		if e := mailerr.From(err); e != nil {
			code = e.Code
		}
		if code != tc.code {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if code != 0 {
			if len(k.taken) != 0 || k.aborted != 1 {
				t.Errorf("%s: %d taken, %d aborted", name, len(k.taken), k.aborted)
			}
			continue
		}
		received, content, _ := strings.Cut(k.content[0], "\r\n ")
		_, content, _ = strings.Cut(content, "\r\n")
		if want := fmt.Sprintf("Received: indimail-mta queue 99 by host here.test (invoked by uid %d);", os.Getuid()); received != want || content != tc.want {
			t.Errorf("%s: %.80q, %.200q", name, received, content)
		}
		if o := k.taken[0].Origin; o.Service != "sendmail" || o.UID != os.Getuid() || o.Client != "" {
			t.Errorf("%s: origin %+v", name, o)
		}
	}
	// The daemon's own user speaks for a door.
	k := &keeper{}
	s := testServer(k, t.TempDir())
	s.config.UID = os.Getuid()
	if _, err := s.take(t.Context(), bytes.NewReader(stream(t, "\n", withOrigin)), os.Getuid(), 99); err != nil || k.taken[0].Origin.Client != "192.0.2.1" {
		t.Errorf("%+v, %v", k.taken, err)
	}
}

// TestClient goes through a real socket, a refusal, and pickup when nobody listens.
func TestClient(t *testing.T) {
	dir := t.TempDir()
	c := NewClient(dir)
	if _, err := c.Submit(t.Context(), strings.NewReader("x"), request("u")); !errors.Is(err, ErrNoPlace) || ExitCode(err) != ExitHome {
		t.Errorf("nothing there: %v", err)
	}
	public, socket, pickup := Layout(dir)
	if err := os.MkdirAll(pickup, 0o700); err != nil {
		t.Fatal(err)
	}
	name, err := c.Submit(t.Context(), strings.NewReader("Subject: later\n\nx"), request("later"))
	if _, e := os.Stat(filepath.Join(pickup, name)); err != nil || e != nil {
		t.Fatal(name, err, e)
	}
	k := &keeper{}
	s := testServer(k, dir)
	t.Chdir(public)
	l, err := net.Listen("unix", filepath.Base(socket))
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := s.Serve(context.WithoutCancel(t.Context()), l); err != nil {
			t.Error(err)
		}
	})
	s.PickupNow(t.Context())
	if len(k.taken) != 1 || !strings.Contains(k.content[0], "Subject: later\r\n\r\nx\r\n") {
		t.Fatalf("from pickup: %q", k.content)
	}
	if left, _ := os.ReadDir(pickup); len(left) != 0 {
		t.Errorf("%d files left in pickup", len(left))
	}
	if id, err := c.Submit(t.Context(), strings.NewReader("x"), request("u", "v")); id != "7" || err != nil {
		t.Error(id, err)
	}
	k.mu.Lock()
	k.refuse = mailerr.New(452, mailerr.Enhanced{4, 3, 1}, "insufficient system storage (#4.3.1)")
	k.mu.Unlock()
	// The refusal comes while the message is still being sent.
	_, err = c.Submit(t.Context(), strings.NewReader(strings.Repeat("long\n", 1<<20)), request("u"))
	if e := mailerr.From(err); e == nil || e.Code != 452 || e.Enhanced.String() != "4.3.1" || ExitCode(err) != ExitWrite {
		t.Errorf("refusal: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.Shutdown(ctx)
	serving.Wait()
}

func TestEnvelope(t *testing.T) {
	env := request("a", "b").Envelope
	got, err := DecodeEnvelope(bytes.NewReader(EncodeEnvelope(env)))
	if err != nil || fmt.Sprint(got.Sender, got.Recipients) != fmt.Sprint(env.Sender, env.Recipients) {
		t.Errorf("%+v, %v", got, err)
	}
	for in, want := range map[string]error{"": ErrEnvelope, "F\x00\x00": ErrEnvelope, "Fa@b.test\x00T\x00\x00": ErrEnvelope, "Tx@y.test\x00\x00": ErrEnvelope,
		"F\x00Tx y@z\x00\x00": ErrAddress, "Fx y@z\x00Ta@b.test\x00\x00": ErrAddress, "F\x00Ta@b.test\x00": ErrEnvelope, "F\x00Xa@b.test\x00\x00": ErrEnvelope} {
		if _, err := DecodeEnvelope(strings.NewReader(in)); !errors.Is(err, want) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func FuzzTake(f *testing.F) {
	f.Add(stream(f, "Subject: x\n\nbody\r\nmore\r", request("u")))
	f.Add([]byte("2:ab,0:,2:{},"))
	f.Add([]byte("0:,59:{\"envelope\":{\"sender\":\"\",\"recipients\":[{\"address\":\"a@b\"}]}},"))
	f.Add(netstring.Append(nil, "no"))
	f.Fuzz(func(t *testing.T, b []byte) {
		k := &keeper{}
		_, err := testServer(k, t.TempDir()).take(t.Context(), bytes.NewReader(b), 1, 2)
		if len(k.taken)+k.aborted != 1 || (err == nil) != (len(k.taken) == 1) {
			t.Fatalf("%d taken, %d aborted, %v", len(k.taken), k.aborted, err)
		}
		for _, c := range k.content {
			if rest := strings.ReplaceAll(c, "\r\n", ""); strings.ContainsAny(rest, "\r\n") {
				t.Errorf("not in wire form: %q", c)
			}
		}
		for _, env := range k.taken {
			if err := env.Check(); err != nil {
				t.Error(err)
			}
		}
	})
}

func FuzzDecodeEnvelope(f *testing.F) {
	f.Add([]byte("Fs@x.test\x00Ta@b.test\x00Tc@d.test\x00\x00"))
	f.Add([]byte("F\x00T\"a b\"@[192.0.2.1]\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		env, err := DecodeEnvelope(bytes.NewReader(b))
		if err != nil {
			return
		}
		if again, err := DecodeEnvelope(bytes.NewReader(EncodeEnvelope(env))); err != nil || fmt.Sprint(again) != fmt.Sprint(env) {
			t.Fatalf("%+v, %v", again, err)
		}
	})
}
