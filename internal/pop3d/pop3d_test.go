package pop3d

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
	"github.com/indigomail/indigo/test/anybody"
)

// talk sends all input and gives every line that comes back.
func talk(t testing.TB, input string) []string {
	t.Helper()
	conn := &script{in: strings.NewReader(input)}
	server(t).Handle(context.Background(), conn)
	return conn.lines()
}

// server has a user with two messages. The service takes passwords in clear.
func server(t testing.TB) *Server {
	t.Helper()
	home := t.TempDir()
	if err := maildir.Create(home + "/Maildir"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"1.a,S=22,W=26", "2.b"} {
		if err := os.WriteFile(home+"/Maildir/new/"+name, []byte("Subject: "+name[:3]+"\n\n.body\nx\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return serverOf(t, home)
}

// serverOf lets anybody in, with this home.
func serverOf(t testing.TB, home string) *Server {
	t.Helper()
	data := t.TempDir()
	if err := errors.Join(os.Mkdir(data+"/control", 0o700), os.WriteFile(data+"/control/secure_auth", []byte("0\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	snapshot, err := settings.Load(data)
	if err != nil {
		t.Fatal(err)
	}
	return New(Config{Service: "pop3d.1", Hostname: "h.test", Settings: func() *settings.View { return snapshot.View("pop3d.1") }, Auth: anybody.Anybody{Home: home},
		Trace: trace.Discard, Logger: slog.New(slog.DiscardHandler), Now: time.Now, NewSessionID: func() string { return "s" }})
}

// script is a connection whose other side has said everything already.
type script struct {
	net.Conn
	in  *strings.Reader
	out bytes.Buffer
	// onWrite is called, if set, with what the server is about to say.
	onWrite func([]byte)
}

func (s *script) Read(p []byte) (int, error) { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error) {
	if s.onWrite != nil {
		s.onWrite(p)
	}
	return s.out.Write(p)
}

func (s *script) Close() error                     { return nil }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 9} }
func (s *script) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 8} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// lines gives what the server said.
func (s *script) lines() []string {
	return strings.Split(strings.TrimSuffix(strings.ReplaceAll(s.out.String(), "\r\n", "\n"), "\n"), "\n")
}

func TestDialogue(t *testing.T) {
	got := strings.Join(talk(t, "STAT\r\nUSER u\r\nPASS p\r\nSTAT\r\nUIDL\r\nTOP 1 1\r\nDELE 1\r\nLIST\r\nRETR 1\r\nRSET\r\nLIST 2\r\nXYZ\r\nRETR 9\r\nQUIT\r\n"), "\n")
	want := "+OK h.test Indigo POP3 ready\n-ERR log in first\n+OK now PASS\n+OK 2 messages\n+OK 2 52\n+OK \n1 1.a\n2 2.b\n.\n" +
		"+OK 23 octets\nSubject: 1.a\n\n..body\n.\n+OK deleted\n+OK \n2 26\n.\n-ERR no such message\n+OK \n+OK 2 26\n-ERR unknown command\n-ERR no such message\n+OK bye"
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestAuth: the replies to exchanges that go wrong, and to one that goes well.
func TestAuth(t *testing.T) {
	got := talk(t, "CAPA\r\nAUTH PLAIN\r\n*\r\nAUTH PLAIN !!\r\nAUTH PLAIN =\r\nAUTH NTLM\r\nAPOP u x\r\nAUTH PLAIN\r\n"+strings.Repeat("A", 13000)+"\r\nAUTH LOGIN\r\ndQ==\r\ncA==\r\nQUIT\r\n")
	want := []string{"+OK h.test Indigo POP3 ready", "+OK capabilities follow", "TOP", "UIDL", "RESP-CODES", "PIPELINING", "AUTH-RESP-CODE", "USER", "SASL PLAIN LOGIN OAUTHBEARER XOAUTH2", "IMPLEMENTATION Indigo", ".",
		"+ ", "-ERR cancelled", "-ERR malformed base64", "-ERR malformed response", "-ERR unknown mechanism", "-ERR no timestamp for APOP", "+ ", "-ERR authentication exchange line is too long",
		"+ VXNlcm5hbWU6", "+ UGFzc3dvcmQ6", "+OK 2 messages", "+OK bye"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestNoHome: a user without a home is not given what lies in another place: the directory that the process works in.
func TestNoHome(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := maildir.Create("Maildir"); err != nil {
		t.Fatal(err)
	}
	conn := &script{in: strings.NewReader("USER u\r\nPASS p\r\nSTAT\r\n")}
	serverOf(t, "").Handle(context.Background(), conn)
	if got := strings.Join(conn.lines(), "\n"); !strings.Contains(got, "-ERR [SYS/TEMP]") || !strings.Contains(got, "-ERR log in first") {
		t.Error(got)
	}
}

// TestQuitFreesMailbox: whoever has read the reply to QUIT can log in again at once.
func TestQuitFreesMailbox(t *testing.T) {
	s, again := server(t), &script{in: strings.NewReader("USER u\r\nPASS p\r\n")}
	first := &script{in: strings.NewReader("USER u\r\nPASS p\r\nQUIT\r\n"), onWrite: func(reply []byte) {
		if bytes.Contains(reply, []byte("bye")) {
			s.Handle(context.Background(), again)
		}
	}}
	s.Handle(context.Background(), first)
	if got := again.lines(); got[len(got)-1] != "+OK 2 messages" {
		t.Errorf("%q", got)
	}
}

// TestTokens: initial responses, which not all clients keep within 255 octets, and continuations of tokens of 8 KiB, and what a token is refused
// with; other commands have no such long lines.
func TestTokens(t *testing.T) {
	say := func(token string) string {
		return base64.StdEncoding.EncodeToString([]byte("user=u@d.test\x01auth=Bearer " + token + "\x01\x01"))
	}
	long := strings.Repeat("x", 8192)
	got := talk(t, "AUTH XOAUTH2 "+say("old")+"\r\n\r\nAUTH XOAUTH2 "+say(strings.Repeat("x", 9300))+"\r\nNOOP "+strings.Repeat("x", maxLine)+"\r\nAUTH XOAUTH2 "+say(long)+"\r\nQUIT\r\n")
	want := []string{"+ " + base64.StdEncoding.EncodeToString([]byte(`{"status":"401","schemes":"bearer"}`)), "-ERR [AUTH] authorization failed (#5.7.8)", "-ERR line too long", "-ERR line too long", "+OK 2 messages", "+OK bye"}
	if strings.Join(got[1:], "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got[1:], "\n"), strings.Join(want, "\n"))
	}
	got = talk(t, "AUTH XOAUTH2 "+say("old")+"\r\n*\r\nQUIT\r\n")
	if len(got) != 4 || got[2] != "-ERR [AUTH] authorization failed (#5.7.8)" {
		t.Errorf("cancelled: %q", got)
	}
	got = talk(t, "auth xoauth2\r\n"+say(long)+"\r\nQUIT\r\n")
	if strings.Join(got[1:], "\n") != "+ \n+OK 2 messages\n+OK bye" {
		t.Errorf("by continuation: %q", got)
	}
}

func FuzzSession(f *testing.F) {
	f.Add("USER u\r\nPASS p\r\nSTAT\r\nTOP 1 0\r\nLIST 2\r\nDELE 1\r\n")
	f.Add("AUTH PLAIN AHUAcA==\r\nCAPA\r\nUIDL 1\r\n")
	f.Fuzz(func(t *testing.T, input string) {
		lines := talk(t, input+"\r\n*\r\nQUIT\r\nQUIT\r\n")
		if len(lines) == 0 || !strings.HasPrefix(lines[0], "+OK") {
			t.Fatalf("%q", lines)
		}
	})
}
