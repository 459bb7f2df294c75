package authd

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/dovecot"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
)

// people is a Verifier of one kind of service.
type people string

func (kind people) Verify(ctx context.Context, a auth.Attempt) (auth.Identity, error) {
	switch {
	case a.User == "slow@here.test":
		<-ctx.Done()
		return auth.Identity{}, auth.Unavailable(ctx.Err())
	case a.User == "down@here.test":
		return auth.Identity{}, auth.Unavailable(errors.New("the directory is down"))
	case a.Service != string(kind) || a.Password != "secret" || a.User != "ann" && a.User != "ann@here.test":
		return auth.Identity{}, auth.Refused(errors.New("wrong password"))
	}
	return auth.Identity{Address: addr.Address{Local: "ann", Domain: "here.test"}, Home: "/mail/ann"}, nil
}

// recorder keeps the trace.
type recorder struct {
	mu     sync.Mutex
	events []trace.Event
}

func (r *recorder) Record(e trace.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func (people) Secrets(_ context.Context, a auth.Attempt) (auth.Identity, sasl.Secrets, error) {
	if a.User != "ann@here.test" {
		return auth.Identity{}, sasl.Secrets{}, auth.Refused(errors.New("nobody"))
	}
	return auth.Identity{}, sasl.Secrets{Clear: "secret"}, nil
}

func (people) Tokens() bool { return false }
func (people) Token(context.Context, auth.Attempt) (auth.Identity, error) {
	panic("no tokens are taken")
}

func (people) Identify(_ context.Context, a auth.Attempt) (auth.Identity, error) {
	return auth.Identity{Address: addr.Address{Local: "ann", Domain: "here.test"}}, nil
}
func (people) Admit(context.Context, auth.Identity, auth.Attempt) error  { return nil }
func (people) Before(context.Context, auth.Attempt) (bool, error)        { return false, nil }
func (people) After(context.Context, auth.Attempt, auth.Identity, error) {}
func (people) Decoy(_ context.Context, a auth.Attempt) []byte            { return []byte(a.User) }
func (people) Forms(context.Context) (directory.Forms, error) {
	return directory.Forms{Clear: true}, nil
}

type fixture struct {
	*Server
	trace *recorder
	log   *written
}

// written is what was logged.
type written struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (w *written) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(p)
}

// take gives it and forgets it.
func (w *written) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.text.Reset()
	return w.text.String()
}

func newFixture() fixture {
	f := fixture{trace: &recorder{}, log: &written{}}
	n := 0
	f.Server = New(Config{
		Settings: func() *settings.View { return nil }, Auth: func(kind string) auth.Authority { return people(kind) }, Hostname: "mx.here.test",
		User: func(_ context.Context, name string) (User, error) {
			switch name {
			case "ann@here.test":
				return User{name, "/mail/a\tnn", 555, 556}, nil
			case "down@here.test":
				return User{}, errors.New("the directory is down")
			}
			return User{}, ErrNoUser
		},
		Trace: f.trace, Logger: slog.New(slog.NewTextHandler(f.log, nil)), Now: time.Now, PID: 77,
		NewSessionID: func() string { n++; return fmt.Sprint("s", n) },
	})
	return f
}

// pipes is a listener whose connections are made in memory.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	ended chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.ended:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.ended) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "auth", Net: "unix"} }

// asker is a peer.
type asker struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func (f fixture) listen(t *testing.T, serve func(context.Context, net.Listener) error) func() *asker {
	t.Helper()
	l := &pipes{conns: make(chan net.Conn), ended: make(chan struct{})}
	go func() {
		if err := serve(context.Background(), l); err != nil {
			t.Error(err)
		}
	}()
	return func() *asker {
		ours, theirs := net.Pipe()
		l.conns <- theirs
		return &asker{t, ours, bufio.NewReader(ours)}
	}
}

func (a *asker) say(format string, args ...any) {
	a.t.Helper()
	if _, err := fmt.Fprintf(a.conn, format, args...); err != nil {
		a.t.Error(err)
	}
}

// hear gives the next line, "" at the end.
func (a *asker) hear() string {
	line, err := a.in.ReadString('\n')
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(line, "\n")
}

func (a *asker) greeting() (lines []string) {
	for {
		line := a.hear()
		lines = append(lines, line)
		if line == "DONE" || line == "" {
			return lines
		}
	}
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestPasswords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		dial := f.listen(t, f.ServePasswords)
		a := dial()
		hello := a.greeting()
		for _, want := range []string{"VERSION\t1\t1", "MECH\tPLAIN\tplaintext", "MECH\tLOGIN\tplaintext", "MECH\tCRAM-MD5\tdictionary\tactive", "MECH\tSCRAM-SHA-256\tmutual-auth", "SPID\t77", "CUID\t1", "DONE"} {
			if !strings.Contains("\n"+strings.Join(hello, "\n")+"\n", "\n"+want+"\n") {
				t.Errorf("no %q in %q", want, hello)
			}
		}
		a.say("VERSION\t1\t2\nCPID\t99\nWHATEVER\t1\n")
		for _, c := range []struct{ said, answer string }{
			{"AUTH\t1\tPLAIN\tservice=smtp\trip=192.0.2.1\tsecured\tresp=" + b64("\x00ann\x00secret"), "OK\t1\tuser=ann@here.test"},
			{"AUTH\t2\tplain\tservice=imap\tresp=" + b64("\x00ann@here.test\x00wrong"), "FAIL\t2\tuser=ann@here.test\treason=authorization failed (#5.7.8)"},
			{"AUTH\t3\tPLAIN\tservice=xmpp\tresp=" + b64("\x00ann\x00secret"), "OK\t3\tuser=ann@here.test"},
			{"AUTH\t4\tPLAIN\tservice=smtp\tresp=" + b64("\x00down@here.test\x00secret"), "FAIL\t4\tuser=down@here.test\ttemp\tcode=temp_fail\treason=temporary authentication failure (#4.7.0)"},
			{"AUTH\t5\tPLAIN\tservice=smtp\tresp=%%", "FAIL\t5\tcode=invalid_base64\treason=malformed base64"},
			{"AUTH\t6\tPLAIN\tservice=smtp\tresp=" + b64("ann"), "FAIL\t6\treason=malformed SASL response"},
			{"AUTH\t7\tNTLM\tservice=smtp", "FAIL\t7\tcode=mech_invalid\treason=no such mechanism"},
			{"AUTH\t8\tPLAIN\tservice=smtp", "CONT\t8\t"},
			{"CONT\t8\t" + b64("\x00ann\x00secret"), "OK\t8\tuser=ann@here.test"},
			{"AUTH\t9\tLOGIN\tservice=smtp", "CONT\t9\t" + b64("Username:")},
			{"CONT\t9\t" + b64("ann"), "CONT\t9\t" + b64("Password:")},
			{"CONT\t9\t" + b64("secret"), "OK\t9\tuser=ann@here.test"},
			{"CONT\t9\t" + b64("secret"), "FAIL\t9\ttemp\tcode=temp_fail\treason=the exchange is over"},
			{"AUTH\t12\tLOGIN\tservice=smtp\tresp=", "CONT\t12\t" + b64("Username:")},
			{"AUTH\t10\tLOGIN\tservice=smtp", "CONT\t10\t" + b64("Username:")},
			{"CONT\t10\t!", "FAIL\t10\tcode=invalid_base64\treason=malformed base64"},
			// What a client calls himself makes no further parameter.
			{"AUTH\t11\tPLAIN\tservice=smtp\tresp=" + b64("\x00a\tuser=root\n\x00secret"), "FAIL\t11\tuser=a\x01tuser=root\x01n\treason=authorization failed (#5.7.8)"},
		} {
			a.say("%s\n", strings.ReplaceAll(c.said, "%%", "%"))
			if got := a.hear(); got != c.answer {
				t.Errorf("%s: %q, want %q", c.said, got, c.answer)
			}
		}
		// By challenge and response.
		for i, c := range []struct{ password, answer string }{{"secret", "OK\t%d\tuser=ann@here.test"}, {"wrong", "FAIL\t%d\tuser=ann@here.test\treason=authorization failed (#5.7.8)"}} {
			id := 30 + i
			a.say("AUTH\t%d\tCRAM-MD5\tservice=smtp\tresp=\n", id)
			challenge, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(a.hear(), fmt.Sprintf("CONT\t%d\t", id)))
			if err != nil || !strings.HasSuffix(string(challenge), "@mx.here.test>") {
				t.Errorf("challenge %q: %v", challenge, err)
			}
			mac := hmac.New(md5.New, []byte(c.password))
			mac.Write(challenge)
			a.say("CONT\t%d\t%s\n", id, b64(fmt.Sprintf("ann@here.test %x", mac.Sum(nil))))
			if got, want := a.hear(), fmt.Sprintf(c.answer, id); got != want {
				t.Errorf("CRAM-MD5 with %s: %q, want %q", c.password, got, want)
			}
		}
		// Logins of one connection do not wait for each other.
		a.say("AUTH\t20\tPLAIN\tservice=smtp\tresp=%s\n", b64("\x00slow@here.test\x00x"))
		a.say("AUTH\t21\tPLAIN\tservice=smtp\tresp=%s\n", b64("\x00ann\x00secret"))
		if got := a.hear(); got != "OK\t21\tuser=ann@here.test" {
			t.Errorf("beside a slow one: %q", got)
		}
		began := time.Now()
		if got := a.hear(); !strings.HasPrefix(got, "FAIL\t20\tuser=slow@here.test\ttemp\t") || time.Since(began) != stepTime {
			t.Errorf("the slow one: %q after %v", got, time.Since(began))
		}
		// One that was given up is not answered.
		a.say("AUTH\t22\tPLAIN\tservice=smtp\tresp=%s\nCANCEL\t22\nAUTH\t23\tPLAIN\tservice=smtp\tresp=%s\n", b64("\x00slow@here.test\x00x"), b64("\x00ann\x00secret"))
		if got := a.hear(); got != "OK\t23\tuser=ann@here.test" {
			t.Errorf("after CANCEL: %q", got)
		}
		time.Sleep(stepTime)
		a.say("AUTH\t24\tPLAIN\tservice=smtp\tresp=%s\n", b64("\x00ann\x00secret"))
		if got := a.hear(); got != "OK\t24\tuser=ann@here.test" {
			t.Errorf("after CANCEL: %q", got)
		}
		f.Shutdown(t.Context())
		if a.hear() != "" || f.Connections() != 0 {
			t.Error("the connection is still open")
		}
		e := f.trace.events[0]
		if e.Client != "192.0.2.1" || e.User != "ann@here.test" || e.Verdict != "accept" || e.Kind != "auth" || e.Service != "auth" || e.Input != "PLAIN smtpd" || e.Session != "s1" {
			t.Errorf("the trace has %+v", e)
		}
		if text := fmt.Sprint(f.trace.events); strings.Contains(text, "secret") || !strings.Contains(text, "defer") {
			t.Errorf("the trace has %s", text)
		}
	})
}

// TestAnonymous: mail programs that ask for a login to send by never get one that anybody may have, whatever they call their service.
func TestAnonymous(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "control"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "control", "auth_anonymous"), []byte("ann@here.test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	snapshot, _ := settings.Inspect(dir)
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.config.Settings = func() *settings.View { return snapshot.View(Service) }
		a := f.listen(t, f.ServePasswords)()
		if hello := strings.Join(a.greeting(), "\n"); strings.Contains(hello, "ANONYMOUS") {
			t.Error(hello)
		}
		a.say("VERSION\t1\t2\nCPID\t99\n")
		for i, service := range []string{"smtp", "submission", "xmpp", "SMTP", "", "imap"} {
			a.say("AUTH\t%d\tANONYMOUS\tservice=%s\tresp=%s\n", i, service, b64("visitor"))
			if answer := a.hear(); strings.HasPrefix(answer, "OK") != (service == "imap") {
				t.Errorf("%s: %s", service, answer)
			}
		}
		a.conn.Close()
		f.Shutdown(t.Context())
	})
}

// TestRudePeers: what is not the protocol ends the connection, and is logged.
func TestRudePeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		dial := f.listen(t, f.ServePasswords)
		const polite = "VERSION\t1\t1\nCPID\t1\n"
		slow := "AUTH\t1\tPLAIN\tservice=smtp\tresp=" + b64("\x00slow@here.test\x00x") + "\n"
		for _, c := range []struct{ said, logged string }{
			{"AUTH\t1\tPLAIN\tservice=smtp\n", "did not begin with VERSION"},
			{"VERSION\t2\t0\n", "another version"},
			{"VERSION\n", "another version"},
			{"VERSION\t1\t1\nAUTH\t1\tPLAIN\tservice=smtp\n", "did not say CPID"},
			{polite + "AUTH\t1\n", "without what belongs to it"},
			{polite + "AUTH\tx\tPLAIN\tservice=smtp\n", "malformed id"},
			{polite + "AUTH\t1\tPLAIN\n", "without a service"},
			{polite + slow + slow, "not over"},
			{polite + slow + "CONT\t1\t\n", "before the answer"},
			{polite + strings.Repeat("x", dovecot.MaxLine+1), "more than 16384 bytes"},
		} {
			f.log.take()
			a := dial()
			a.greeting()
			a.conn.Write([]byte(c.said))
			for a.hear() != "" {
				// What was asked before may be answered.
			}
			if got := f.log.take(); !strings.Contains(got, c.logged) {
				t.Errorf("%.60q: logged %q", c.said, got)
			}
		}
		// Who says nothing does not stay.
		a := dial()
		a.greeting()
		began := time.Now()
		if got := a.hear(); got != "" || time.Since(began) != handshakeTime {
			t.Errorf("a silent peer: %q after %v", got, time.Since(began))
		}
		a = dial()
		a.greeting()
		a.say(polite)
		began = time.Now()
		if got := a.hear(); got != "" || time.Since(began) != idleTime {
			t.Errorf("an idle peer: %q after %v", got, time.Since(began))
		}
		// Exchanges that are never ended do not fill a connection for ever.
		a = dial()
		a.greeting()
		a.say(polite)
		for i := range maxExchanges + 1 {
			a.say("AUTH\t%d\tLOGIN\tservice=smtp\n", i)
			if got := a.hear(); strings.HasPrefix(got, "CONT") != (i < maxExchanges) {
				t.Errorf("exchange %d: %q", i, got)
			}
		}
		time.Sleep(exchangeTime + time.Second)
		a.say("AUTH\t1000\tLOGIN\tservice=smtp\n")
		if got := a.hear(); !strings.HasPrefix(got, "CONT") {
			t.Errorf("after the others' time: %q", got)
		}
		// A check that takes its time is cut when the time for the end is over.
		a.say("AUTH\t1001\tPLAIN\tservice=smtp\tresp=%s\n", b64("\x00slow@here.test\x00x"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		f.Shutdown(ctx)
		if took := time.Since(began); took != time.Second {
			t.Errorf("Shutdown took %v", took)
		}
	})
}

// TestOldPeers: Postfix, which speaks version 1.0, takes every FAIL for a wrong password; a lost connection it does not.
func TestOldPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		dial := f.listen(t, f.ServePasswords)
		for said, want := range map[string]string{
			"\x00ann\x00secret": "OK\t1\tuser=ann@here.test", "\x00ann\x00wrong": "FAIL\t1\tuser=ann\treason=authorization failed (#5.7.8)", "\x00down@here.test\x00secret": "",
		} {
			a := dial()
			a.greeting()
			a.say("VERSION\t1\t0\nCPID\t1\nAUTH\t1\tPLAIN\tservice=smtp\tnologin\tresp=%s\n", b64(said))
			if got := a.hear(); got != want {
				t.Errorf("%q: %q, want %q", said, got, want)
			}
			a.conn.Close()
		}
		f.Shutdown(t.Context())
	})
}

func TestUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		a := f.listen(t, f.ServeUsers)()
		if hello := a.hear() + "|" + a.hear(); hello != "VERSION\t1\t1|SPID\t77" {
			t.Errorf("greeting %q", hello)
		}
		a.say("VERSION\t1\t0\n")
		for _, c := range []struct{ said, answer string }{
			{"USER\t1\tann@here.test\tservice=lda", "USER\t1\tann@here.test\tuid=555\tgid=556\thome=/mail/a\x01tnn\tmail=maildir:~/Maildir"},
			{"USER\t2\tbob@here.test\tservice=lda", "NOTFOUND\t2"},
			{"USER\t3\tdown@here.test", "FAIL\t3\treason=the directory cannot be asked now\ttemp\tcode=temp_fail"},
			{"LIST\t4\tservice=doveadm", "FAIL\t4\treason=only USER is answered here"},
			{"PASS\t5\tann@here.test", "FAIL\t5\treason=only USER is answered here"},
		} {
			a.say("%s\n", c.said)
			if got := a.hear(); got != c.answer {
				t.Errorf("%s: %q, want %q", c.said, got, c.answer)
			}
		}
		f.Shutdown(t.Context())
		if a.hear() != "" {
			t.Error("the connection is still open")
		}
	})
}

// FuzzPeers: whatever a peer says, the connection ends when it does, and nothing that was not asked for lets anybody in.
func FuzzPeers(f *testing.F) {
	for _, said := range []string{
		"AUTH\t1\tPLAIN\tservice=smtp\tresp=AGFubgBzZWNyZXQ=\n", "AUTH\t1\tLOGIN\tservice=smtp\nCONT\t1\tYW5u\nCONT\t1\tc2VjcmV0\n", "AUTH\t1\tDIGEST-MD5\tservice=imap\nCONT\t1\t\nCANCEL\t1\n",
		"AUTH\t1\tSCRAM-SHA-256\tservice=pop3\tresp=biwsbj1hbm5AaGVyZS50ZXN0LHI9eA==\n", "VERSION\t1\nAUTH\n\n\t\t\nCONT\t9\t!\n",
	} {
		f.Add(said)
	}
	f.Fuzz(func(t *testing.T, said string) {
		if strings.Contains(said, "slow") {
			return
		}
		for _, serve := range []func(*Server) func(context.Context, net.Conn, uint){func(s *Server) func(context.Context, net.Conn, uint) { return s.passwords }, func(s *Server) func(context.Context, net.Conn, uint) { return s.users }} {
			x := newFixture()
			ours, theirs := net.Pipe()
			ended := make(chan struct{})
			go func() { serve(x.Server)(context.Background(), theirs, 1); theirs.Close(); close(ended) }()
			heard := make(chan string)
			go func() { text, _ := io.ReadAll(ours); heard <- string(text) }()
			ours.SetWriteDeadline(time.Now().Add(10 * time.Second))
			io.WriteString(ours, "VERSION\t1\t1\nCPID\t1\n"+said)
			ours.Close()
			<-ended
			if text := <-heard; strings.Contains(text, "\nOK\t") && !strings.Contains(said, "AUTH\t") {
				t.Errorf("%q: %q", said, text)
			}
		}
	})
}
