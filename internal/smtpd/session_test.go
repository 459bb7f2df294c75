package smtpd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/queue"
)

// open gets a client up to the reply to DATA.
func open(k *client) {
	k.t.Helper()
	k.want("220")
	k.do("EHLO c.example", "250")
	again(k)
}

func again(k *client) {
	k.t.Helper()
	k.do("MAIL FROM:<x@far.example>", "250")
	k.do("RCPT TO:<ann@here.example>", "250")
	k.do("DATA", "354")
}

func TestEnvelopeAndReceived(t *testing.T) {
	f := start(t, nil, nil)
	k := f.dial(t)
	k.want("220")
	k.do("EHLO c.example", "250")
	k.do("MAIL FROM:<x@far.example> RET=full ENVID=q BODY=8bitmime", "250")
	k.do("RCPT TO:<ann@here.example> NOTIFY=delay ORCPT=rfc822;a@b", "250")
	k.do("RCPT TO:<Postmaster>", "250")
	k.do("DATA", "354")
	k.send("Message-ID:\r\n <a@b>\r\nSubject: s\r\n\r\n..dot\r\n.\r\n")
	k.want("250 2.0.0 ok 1666373676 qp 37166")
	m := f.queue.taken()[0]
	want := "Received: indimail-mta smtpd 37166 (HELO c.example) (127.0.0.1)\r\n by mx.here.example with ESMTP;\r\n Fri, 21 Oct 2022 23:04:36 +0530\r\n" +
		"Message-ID:\r\n <a@b>\r\nSubject: s\r\n\r\n.dot\r\n"
	if m.content != want {
		t.Errorf("content %q, want %q", m.content, want)
	}
	if m.Sender != (addr.Address{Local: "x", Domain: "far.example"}) || m.MessageID != "a@b" || m.Body != "8BITMIME" || m.Return != "FULL" || m.EnvID != "q" {
		t.Errorf("envelope %+v", m.Envelope)
	}
	if len(m.Recipients) != 2 || m.Recipients[0] != (queue.Recipient{Address: addr.Address{Local: "ann", Domain: "here.example"}, Notify: "DELAY", Orcpt: "rfc822;a@b"}) ||
		m.Recipients[1].Address != (addr.Address{Local: "Postmaster", Domain: "here.example"}) {
		t.Errorf("recipients %+v", m.Recipients)
	}
	if o := m.Origin; o.Service != "smtpd.25" || o.Session != "s1" || o.Client != "127.0.0.1" || o.PID != 77 || o.User != "" {
		t.Errorf("origin %+v", o)
	}
	// A second message of the connection keeps nothing of the first.
	k.do("MAIL FROM:<>", "250")
	k.do("RCPT TO:<bob@here.example>", "250")
	k.do("DATA", "354")
	k.do(".", "250 2.0.0 ok 1666373676 qp 37167")
	if m := f.queue.taken()[1]; !m.Sender.IsNull() || len(m.Recipients) != 1 || m.MessageID != "" || m.Body != "" || m.EnvID != "" || m.Return != "" {
		t.Errorf("second envelope %+v", m.Envelope)
	}
}

func TestReceivedOfAUser(t *testing.T) {
	f := start(t, nil, func(c *Config) { c.Submission, c.ImplicitTLS = true, true })
	k := f.dial(t)
	k.startTLS()
	k.want("220")
	k.do("EHLO c.example", "250")
	k.do("AUTH PLAIN "+b64("\x00ann@here.example\x00"+password), "235")
	again(k)
	k.send("hello\r\n.\r\n")
	k.want("250")
	m := f.queue.taken()[0]
	if !strings.HasPrefix(m.content, "Received: indimail-mta smtpd 37166 (HELO c.example) (ann@here.example@127.0.0.1)\r\n by mx.here.example with ESMTPSA (TLSv1.3 TLS_AES_") {
		t.Errorf("content %q", m.content)
	}
	// The text without header got one of its own.
	_, rest, _ := strings.Cut(m.content, "+0530\r\n")
	if !strings.HasPrefix(rest, "Date: Fri, 21 Oct 2022 23:04:36 +0530\r\nMessage-ID: <") || !strings.HasSuffix(rest, "@mx.here.example>\r\n\r\nhello\r\n") {
		t.Errorf("content %q", m.content)
	}
	if m.Origin.User != "ann@here.example" || !strings.HasSuffix(m.MessageID, "@mx.here.example") {
		t.Errorf("envelope %+v", m.Envelope)
	}
}

// TestSmuggling: the end of data is CRLF.CRLF and nothing else.
func TestSmuggling(t *testing.T) {
	smuggled := "MAIL FROM:<evil@far.example>\r\nRCPT TO:<bob@here.example>\r\nDATA\r\nevil\r\n"
	for name, end := range map[string]string{
		"LF.LF": "\n.\n", "LF.CRLF": "\n.\r\n", "CR.CR": "\r.\r", "CRLF.LF": "\r\n.\n", "CRLF.CR": "\r\n.\r", "CR.CRLF": "\r.\r\n",
		"CRCRLF.CRCRLF": "\r\r\n.\r\r\n", "LF.CR": "\n.\r", "NUL": "\r\n\x00.\r\n", "bare LF": "\n", "bare CR": "\r",
	} {
		for _, mode := range []string{"reject", "accept"} {
			f := start(t, map[string]string{"barenewline": mode}, nil)
			k := f.dial(t)
			open(k)
			k.send("Subject: x\r\n\r\ntext" + end + smuggled + "\r\n.\r\n")
			r := k.reply()
			messages := f.queue.taken()
			if mode == "accept" || name == "NUL" {
				if !strings.HasPrefix(r, "250 ") || len(messages) != 1 || !strings.Contains(messages[0].content, "evil@far.example") {
					t.Errorf("%s, %s: %q, %d messages", name, mode, r, len(messages))
				}
				if b := []byte(messages[0].content); bytes.Count(b, []byte("\n")) != bytes.Count(b, []byte("\r\n")) || bytes.Count(b, []byte("\r")) != bytes.Count(b, []byte("\r\n")) {
					t.Errorf("%s: a bare CR or LF got into the queue: %q", name, b)
				}
			} else if !strings.HasPrefix(r, "550 5.6.11") || len(messages) != 0 {
				t.Errorf("%s: %q, %d messages", name, r, len(messages))
			}
			// The dialogue is still in step.
			k.do("NOOP", "250 2.0.0")
			k.do("QUIT", "221")
			k.gone()
		}
	}
}

// TestStartTLSInjection: what is sent in clear behind STARTTLS is never obeyed (CVE-2011-0411).
func TestStartTLSInjection(t *testing.T) {
	f := start(t, map[string]string{"secure_auth": "0"}, nil)
	k := f.dial(t)
	k.want("220")
	k.do("EHLO c.example", "250")
	k.do("AUTH PLAIN "+b64("\x00ann@here.example\x00"+password), "235")
	k.do("MAIL FROM:<x@far.example>", "250")
	k.send("STARTTLS\r\nEHLO evil.example\r\nMAIL FROM:<evil@far.example>\r\n")
	k.want("220 2.0.0")
	k.startTLS()
	// Neither the injected commands nor what was said in clear counts.
	k.do("RCPT TO:<ann@here.example>", "503 5.5.1")
	k.do("MAIL FROM:<x@far.example>", "503 5.5.1 HELO")
	k.do("EHLO c.example", "250")
	k.do("MAIL FROM:<x@far.example>", "250")
	k.do("RCPT TO:<y@far.example>", "550 5.7.1")
	if !strings.Contains(f.log.String(), "in clear behind STARTTLS") {
		t.Errorf("log: %s", f.log)
	}
}

// countingConn counts the server's writes.
type countingConn struct {
	net.Conn
	writes chan<- int
}

func (c countingConn) Write(p []byte) (int, error) {
	c.writes <- len(p)
	return c.Conn.Write(p)
}

// oneConn is a listener that accepts the connections given to it.
type oneConn struct {
	conns  chan net.Conn
	closed chan struct{}
}

func newListener(conns ...net.Conn) *oneConn {
	l := &oneConn{make(chan net.Conn, 16), make(chan struct{})}
	for _, c := range conns {
		l.conns <- c
	}
	return l
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *oneConn) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

func TestPipelining(t *testing.T) {
	f := newFixture(t, nil, nil)
	ours, theirs := net.Pipe()
	writes := make(chan int, 100)
	l := newListener(countingConn{theirs, writes})
	served := make(chan error, 1)
	go func() { served <- f.Serve(t.Context(), l) }()
	k := newClient(t, ours)
	k.want("220")
	k.do("EHLO c.example", "250")
	for len(writes) > 0 {
		<-writes
	}
	k.send("RSET\r\nMAIL FROM:<x@far.example>\r\nRCPT TO:<ann@here.example>\r\nRCPT TO:<nobody@here.example>\r\nRCPT TO:<bob@here.example>\r\nDATA\r\n")
	for _, want := range []string{"250 2.0.0", "250 2.1.0", "250 2.1.5", "550 5.1.1", "250 2.1.5", "354"} {
		k.want(want)
	}
	if n := len(writes); n != 1 {
		t.Errorf("a pipelined group was answered with %d writes", n)
	}
	// The message and the next group in one go.
	k.send("text\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<ann@here.example>\r\nDATA\r\n")
	for _, want := range []string{"250 2.0.0 ok", "250 2.1.0", "250 2.1.5", "354"} {
		k.want(want)
	}
	k.send(".\r\nQUIT\r\n")
	k.want("250")
	k.want("221")
	k.gone()
	if n := len(writes); n != 3 {
		t.Errorf("three groups were answered with %d writes", n)
	}
	if m := f.queue.taken(); len(m) != 2 || len(m[0].Recipients) != 2 {
		t.Errorf("queued %+v", m)
	}
	f.Shutdown(t.Context())
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestQueueFaults: no 250 without a Commit, and the session goes on.
func TestQueueFaults(t *testing.T) {
	full := mailerr.New(452, mailerr.Enhanced{4, 3, 1}, "insufficient system storage (#4.3.1)")
	long := strings.Repeat(strings.Repeat("x", 70)+"\r\n", 2000)
	for _, c := range []struct {
		name string
		set  func(*fakeQueue)
		want string
		// aborted is how many submissions have to be aborted.
		aborted int
	}{
		{"full at commit", func(q *fakeQueue) { q.commit = full }, "452 4.3.1 insufficient system storage", 0},
		{"full at write", func(q *fakeQueue) { q.write, q.room = full, 50000 }, "452 4.3.1", 1},
		{"unknown at commit", func(q *fakeQueue) { q.commit = errors.New("/secret/path: bad") }, "451 4.3.0", 0},
		{"unknown at write", func(q *fakeQueue) { q.write = errors.New("/secret/path: bad") }, "451 4.3.0", 1},
	} {
		f := start(t, nil, nil)
		f.queue.set(c.set)
		k := f.dial(t)
		open(k)
		k.send(long + ".\r\n")
		if r := k.want(c.want); strings.Contains(r, "secret") {
			t.Errorf("%s: the client sees %q", c.name, r)
		}
		if f.queue.aborts() != c.aborted || len(f.queue.taken()) != 0 {
			t.Errorf("%s: %d aborted, %d taken", c.name, f.queue.aborts(), len(f.queue.taken()))
		}
		if !strings.Contains(f.log.String(), "not queued") {
			t.Errorf("%s: not logged", c.name)
		}
		// Space returns.
		f.queue.set(func(q *fakeQueue) { q.commit, q.write = nil, nil })
		again(k)
		k.send("x\r\n.\r\n")
		k.want("250 2.0.0 ok")
	}
	f := start(t, nil, nil)
	f.queue.set(func(q *fakeQueue) { q.begin = full })
	k := f.dial(t)
	k.want("220")
	k.do("HELO x", "250")
	k.do("MAIL FROM:<>", "250")
	k.do("RCPT TO:<ann@here.example>", "250")
	k.do("DATA", "452 4.3.1")
	f.queue.set(func(q *fakeQueue) { q.begin = nil })
	k.do("DATA", "354")
	k.do(".", "250")
}

// TestFence: a fault in one session ends that session only.
func TestFence(t *testing.T) {
	f := start(t, nil, nil)
	f.queue.set(func(q *fakeQueue) { q.panics = true })
	k := f.dial(t)
	open(k)
	k.send(strings.Repeat("x", 70000) + "\r\n.\r\n")
	k.gone()
	f.queue.set(func(q *fakeQueue) { q.panics = false })
	k = f.dial(t)
	open(k)
	k.send("x\r\n.\r\n")
	k.want("250")
	if f.queue.aborts() != 1 || !strings.Contains(f.log.String(), "queue on fire") {
		t.Errorf("%d aborted, log %s", f.queue.aborts(), f.log)
	}
}

// TestCutWithinData: nothing is queued when the client goes before CRLF.CRLF.
func TestCutWithinData(t *testing.T) {
	f := start(t, nil, nil)
	k := f.dial(t)
	open(k)
	k.send("x\r\n.")
	k.conn.Close()
	f.Shutdown(t.Context())
	if f.queue.aborts() != 1 || len(f.queue.taken()) != 0 {
		t.Errorf("%d aborted, %d taken", f.queue.aborts(), len(f.queue.taken()))
	}
}

func TestLimitsOfConnections(t *testing.T) {
	for _, c := range []struct{ file, want, setting string }{
		{"maxdaemons", "421 4.3.2", "MAXDAEMONS"}, {"maxperip", "421 4.7.0", "MAXPERIP"},
	} {
		f := start(t, map[string]string{c.file: "2"}, nil)
		first := f.dial(t)
		first.want("220")
		f.dial(t).want("220")
		third := f.dial(t)
		third.want(c.want)
		third.gone()
		found := false
		for _, e := range f.trace.all() {
			found = found || e.Kind == "connect" && e.Verdict == "defer" && e.Setting == c.setting && strings.HasSuffix(e.Layer, c.file+":1") && e.Client == "127.0.0.1"
		}
		if !found {
			t.Errorf("%s: trace %+v", c.file, f.trace.all())
		}
	}
}

// served runs a server and one client over a pipe in a bubble, so that time costs none.
func served(t *testing.T, control map[string]string, play func(*fixture, *client)) {
	// The certificate is made outside the bubble.
	testTLS()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, control, func(c *Config) { c.Now = time.Now })
		ours, theirs := net.Pipe()
		l := newListener(theirs)
		done := make(chan error, 1)
		go func() { done <- f.Serve(context.Background(), l) }()
		play(f, newClient(t, ours))
		f.Shutdown(t.Context())
		if err := <-done; err != nil {
			t.Error(err)
		}
		ours.Close()
	})
}

func TestTimeouts(t *testing.T) {
	control := map[string]string{"timeoutsmtpd": "60"}
	served(t, control, func(f *fixture, k *client) {
		k.want("220")
		began := time.Now()
		k.want("421 4.4.2")
		k.gone()
		if took := time.Since(began); took != time.Minute {
			t.Errorf("idle for %v", took)
		}
	})
	served(t, control, func(f *fixture, k *client) {
		open(k)
		began := time.Now()
		k.send("Subject: x\r\n")
		time.Sleep(50 * time.Second)
		k.send("\r\n")
		k.want("421 4.4.2")
		k.gone()
		if took := time.Since(began); took != 110*time.Second {
			t.Errorf("ended after %v", took)
		}
		synctest.Wait()
		if f.queue.aborts() != 1 {
			t.Errorf("%d aborted", f.queue.aborts())
		}
	})
	// Trickling does not keep it for ever.
	served(t, control, func(f *fixture, k *client) {
		open(k)
		began := time.Now()
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				if _, err := io.WriteString(k.conn, "x"); err != nil {
					return
				}
				time.Sleep(30 * time.Second)
			}
		}()
		k.want("421 4.4.2")
		if took := time.Since(began); took != dataTime {
			t.Errorf("ended after %v", took)
		}
		k.gone()
		<-stopped
	})
}

func TestShutdown(t *testing.T) {
	// An idle session goes at once.
	served(t, nil, func(f *fixture, k *client) {
		k.want("220")
		go f.Shutdown(context.Background())
		began := time.Now()
		k.want("421 4.3.2")
		k.gone()
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v", took)
		}
	})
	// A transaction is finished, and durable.
	served(t, nil, func(f *fixture, k *client) {
		open(k)
		go f.Shutdown(context.Background())
		synctest.Wait()
		time.Sleep(time.Minute)
		k.send("x\r\n.\r\n")
		k.want("250 2.0.0 ok")
		k.want("421 4.3.2")
		k.gone()
		if len(f.queue.taken()) != 1 {
			t.Error("not queued")
		}
	})
	// But not for ever.
	served(t, nil, func(f *fixture, k *client) {
		open(k)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		began := time.Now()
		f.Shutdown(ctx)
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("took %v", took)
		}
		k.gone()
		if len(f.queue.taken()) != 0 || f.queue.aborts() != 1 {
			t.Error("a cut message was queued")
		}
	})
}

// answers is a policy with an answer for each question.
type answers struct {
	policy.Policy
	rcpt, mail, data, end, connect policy.Verdict
}

func (a answers) Connect(context.Context, *policy.Session) policy.Verdict { return a.connect }
func (a answers) Mail(context.Context, *policy.Session, addr.Address, int64) policy.Verdict {
	return a.mail
}
func (a answers) Rcpt(context.Context, *policy.Session, addr.Address, addr.Address, int) policy.Verdict {
	return a.rcpt
}
func (a answers) Data(context.Context, *policy.Session, addr.Address, []addr.Address) policy.Verdict {
	return a.data
}
func (a answers) EndOfData(context.Context, *policy.Session, addr.Address, []addr.Address, []byte, int64) policy.Verdict {
	return a.end
}

func TestVerdicts(t *testing.T) {
	discard := policy.Verdict{Action: policy.Discard}
	for name, a := range map[string]answers{
		"mail": {mail: discard}, "rcpt": {rcpt: discard}, "data": {data: discard}, "end": {end: discard},
	} {
		f := start(t, nil, func(c *Config) { a.Policy = c.Policy; c.Policy = a })
		k := f.dial(t)
		open(k)
		k.send("x\r\n.\r\n")
		k.want("250 2.0.0 ok")
		if len(f.queue.taken()) != 0 || f.queue.aborts() != 1 {
			t.Errorf("%s: %d taken, %d aborted", name, len(f.queue.taken()), f.queue.aborts())
		}
	}
	// A refusal of several lines, and one that forgot its reply: neither may look like success.
	lines := policy.Verdict{Action: policy.Reject, Err: mailerr.New(550, mailerr.Enhanced{5, 7, 1}, "one\ntwo\r\nthrée")}
	f := start(t, nil, func(c *Config) {
		c.Policy = answers{Policy: c.Policy, mail: lines, connect: policy.Verdict{}}
	})
	k := f.dial(t)
	k.want("220")
	k.do("HELO x", "250")
	if r := k.do("MAIL FROM:<>", "550-"); r != "550-5.7.1 one\r\n550-5.7.1 two\r\n550 5.7.1 thr?e" {
		t.Errorf("reply %q", r)
	}
	k.do("RCPT TO:<ann@here.example>", "503")
	f = start(t, nil, func(c *Config) { c.Policy = answers{Policy: c.Policy, end: policy.Verdict{Action: policy.Reject}} })
	k = f.dial(t)
	open(k)
	k.do(".", "451 4.3.0")
	f = start(t, nil, func(c *Config) { c.Policy = answers{connect: lines} })
	k = f.dial(t)
	k.want("550-5.7.1 one")
	k.gone()
}

// TestTrace: each decision is there once, with all that explain needs.
func TestTrace(t *testing.T) {
	f := start(t, map[string]string{"secure_auth": "0"}, nil)
	k := f.dial(t)
	k.want("220")
	k.do("EHLO c.example", "250")
	k.do("AUTH PLAIN "+b64("\x00ann@here.example\x00wrong"), "535")
	k.do("MAIL FROM:<x@far.example>", "250")
	k.do("RCPT TO:<y@far.example>", "550")
	k.do("RCPT TO:<ann@here.example>", "250")
	k.do("NOOP", "250")
	k.do("FOO", "500")
	k.do("DATA", "354")
	k.send("Message-ID: <m@d>\r\n\r\n.\r\n")
	k.want("250")
	k.do("QUIT", "221")
	k.gone()
	f.Shutdown(t.Context())
	var got []string
	for _, e := range f.trace.all() {
		if e.Time.IsZero() || e.Session != "s1" || e.Service != "smtpd.25" || e.Client != "127.0.0.1" {
			t.Errorf("event %+v", e)
		}
		code, _, _ := strings.Cut(e.Reply, " ")
		got = append(got, strings.Join([]string{e.Kind, e.Verdict, e.Check, e.User, e.From, e.To, e.Setting, e.Layer, e.Queue, e.MessageID, code}, "|"))
	}
	want := []string{
		"connect|accept|connect||||||||220",
		"helo|accept|helo||||||||250-mx.here.example",
		"auth|reject|password|ann@here.example|||||||535",
		"mail|accept|sender||x@far.example||||||250",
		"rcpt|reject|relay||x@far.example|y@far.example|RELAYCLIENTS|default|||550",
		"rcpt|accept|local-user||x@far.example|ann@here.example|||||250",
		"data|accept|hops||x@far.example||||37166|m@d|250",
		"close||quit||||||||",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("trace:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
