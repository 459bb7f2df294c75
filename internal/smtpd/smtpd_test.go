package smtpd

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
)

// memory is a queue that keeps what was committed.
type memory struct {
	mu       sync.Mutex
	messages []string
	full     bool
}

type draft struct {
	m *memory
	bytes.Buffer
}

func (m *memory) Begin(context.Context, int64) (queue.Submission, error) {
	if m.full {
		return nil, mailerr.New(452, mailerr.Enhanced{4, 3, 1}, "insufficient system storage (#4.3.1)")
	}
	return &draft{m: m}, nil
}

func (d *draft) ID() queue.ID { return 7 }
func (d *draft) Abort()       {}
func (d *draft) Commit(_ context.Context, e queue.Envelope) error {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	var to []string
	for _, r := range e.Recipients {
		to = append(to, r.Address.String())
	}
	d.m.messages = append(d.m.messages, e.Sender.String()+" > "+strings.Join(to, ",")+"\n"+d.String())
	return nil
}

type people struct{}

func (people) Domain(_ context.Context, name string) (directory.Domain, error) {
	if name != "here.test" {
		return directory.Domain{}, directory.ErrNoDomain
	}
	return directory.Domain{Name: name}, nil
}

func (p people) User(ctx context.Context, a addr.Address) (directory.User, error) {
	if _, err := p.Domain(ctx, strings.ToLower(a.Domain)); err != nil {
		return directory.User{}, err
	}
	if a.Local != "u" {
		return directory.User{}, directory.ErrNoUser
	}
	return directory.User{Name: "u", Domain: "here.test"}, nil
}

func (people) Verify(_ context.Context, a auth.Attempt) (auth.Identity, error) {
	if a.User == "u" && a.Password == "p" {
		return auth.Identity{Address: addr.Address{Local: "u", Domain: "here.test"}}, nil
	}
	return auth.Identity{}, mailerr.New(535, mailerr.Enhanced{5, 7, 8}, "authorization failed (#5.7.8)")
}

func newServer(q queue.Submitter) *Server {
	return New(Config{
		Service: "smtpd.25", Hostname: "here.test", Settings: func() *settings.View { return nil }, Policy: policy.New(policy.Config{Directory: people{}}),
		Queue: q, Auth: noSecrets{people{}}, Trace: trace.Discard, Logger: slog.New(slog.DiscardHandler), Now: time.Now, NewSessionID: func() string { return "s" },
	})
}

// talk sends all input at once and gives every reply line.
func talk(t testing.TB, s *Server, input string) []string {
	t.Helper()
	conn := &script{in: strings.NewReader(input)}
	s.Handle(context.Background(), conn)
	return conn.lines()
}

// script is a connection whose other side has said everything already.
type script struct {
	net.Conn
	in  *strings.Reader
	out bytes.Buffer
}

func (s *script) Read(p []byte) (int, error)       { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error)      { return s.out.Write(p) }
func (s *script) Close() error                     { return nil }
func (s *script) LocalAddr() net.Addr              { return nil }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 9} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// lines gives what the server said.
func (s *script) lines() []string {
	return strings.Split(strings.TrimSuffix(strings.ReplaceAll(s.out.String(), "\r\n", "\n"), "\n"), "\n")
}

func TestDialogues(t *testing.T) {
	mail := "EHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<u@here.test>\r\nDATA\r\n"
	for _, c := range []struct {
		name, input, replies string
		messages             int
		full                 bool
	}{
		{name: "one message, pipelined", input: mail + "Subject: x\r\n\r\n..y\r\n.\r\nQUIT\r\n", replies: "220 250 250 250 354 250 221", messages: 1},
		{name: "two messages", input: mail + "x\r\n.\r\n" + strings.TrimPrefix(mail, "EHLO x\r\n") + "x\r\n.\r\nQUIT\r\n", replies: "220 250 250 250 354 250 250 250 354 250 221", messages: 2},
		{name: "order", input: "MAIL FROM:<>\r\nRCPT TO:<u@here.test>\r\nDATA\r\nEHLO x\r\nDATA\r\nMAIL FROM:<>\r\nMAIL FROM:<>\r\nDATA\r\nQUIT\r\n", replies: "220 503 503 503 250 503 250 503 503 221"},
		{name: "recipients", input: "HELO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<nobody@here.test>\r\nRCPT TO:<x@there.test>\r\nRCPT TO:<>\r\nRCPT TO:<U@HERE.test>\r\nRCPT TO:<postmaster>\r\nQUIT\r\n", replies: "220 250 250 550 550 501 550 550 221"},
		{name: "parameters", input: "EHLO x\r\nMAIL FROM:<> SIZE=99999999\r\nMAIL FROM:<> SIZE=x\r\nMAIL FROM:<> BODY=9BIT\r\nMAIL FROM:<> X=1\r\nMAIL FROM:<>SIZE=1\r\nMAIL FROM:<a\r\nQUIT\r\n", replies: "220 250 552 501 501 555 501 501 221"},
		{name: "unknown", input: "XYZZY\r\nETRN x\r\nEXPN x\r\nHELP\r\nNOOP\r\nVRFY u\r\nRSET\r\nSTARTTLS\r\nQUIT\r\n", replies: "220 500 502 502 214 250 252 250 454 221"},
		{name: "bare LF line", input: "NOOP\nNOOP\r\nQUIT\r\n", replies: "220 500 250 221"},
		{name: "long line", input: strings.Repeat("x", 5000) + "\r\nQUIT\r\n", replies: "220 500 221"},
		{name: "smuggling LF.LF", input: mail + "x\n.\nMAIL FROM:<evil@b.test>\r\n.\r\nQUIT\r\n", replies: "220 250 250 250 354 550 221"},
		{name: "smuggling LF.CRLF", input: mail + "x\n.\r\nMAIL FROM:<evil@b.test>\r\n.\r\nQUIT\r\n", replies: "220 250 250 250 354 550 221"},
		{name: "smuggling CR.CR", input: mail + "x\r.\rMAIL FROM:<evil@b.test>\r\n.\r\nQUIT\r\n", replies: "220 250 250 250 354 550 221"},
		{name: "loop", input: mail + strings.Repeat("Received: x\r\n", 101) + "\r\n.\r\nQUIT\r\n", replies: "220 250 250 250 354 554 221"},
		{name: "full disk", input: mail + "QUIT\r\n", replies: "220 250 250 250 452 221", full: true},
		{name: "auth in clear", input: "EHLO x\r\nAUTH PLAIN AHUAcA==\r\nQUIT\r\n", replies: "220 250 538 221"},
		{name: "too many errors", input: strings.Repeat("X\r\n", 30), replies: "220" + strings.Repeat(" 500", 20) + " 421"},
	} {
		m := &memory{full: c.full}
		var codes []string
		for _, line := range talk(t, newServer(m), c.input) {
			if len(line) > 3 && line[3] == ' ' {
				codes = append(codes, line[:3])
			}
		}
		if got := strings.Join(codes, " "); got != c.replies {
			t.Errorf("%s: %s, want %s", c.name, got, c.replies)
		}
		if len(m.messages) != c.messages {
			t.Errorf("%s: %d messages", c.name, len(m.messages))
		}
	}
}

func TestContentIsKept(t *testing.T) {
	m := &memory{}
	talk(t, newServer(m), "EHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<u@here.test>\r\nDATA\r\nSubject: x\r\n\r\n..y\r\nz\r\n.\r\nQUIT\r\n")
	if len(m.messages) != 1 || !strings.HasPrefix(m.messages[0], "a@b.test > u@here.test\nReceived: indimail-mta smtpd 7 (HELO x) (") ||
		!strings.HasSuffix(m.messages[0], "\r\nSubject: x\r\n\r\n.y\r\nz\r\n") {
		t.Errorf("%q", m.messages)
	}
}

func (people) DomainRoom(context.Context, string, maildir.Use) (bool, error) { return true, nil }

func (people) Denied(context.Context, directory.User, directory.Flags) (string, error) {
	return "", nil
}

func (people) Aliases(context.Context, addr.Address) ([]string, error) {
	return nil, directory.ErrNoAlias
}
