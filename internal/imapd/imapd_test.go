package imapd

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

// talk sends all input and gives every line that comes back. The service takes passwords in clear.
func talk(t testing.TB, input string) []string {
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
	return talkAt(t, home, input)
}

// talkAt is talk with a user whose home is another.
func talkAt(t testing.TB, home, input string) []string {
	t.Helper()
	data := t.TempDir()
	if err := errors.Join(os.Mkdir(data+"/control", 0o700), os.WriteFile(data+"/control/secure_auth", []byte("0\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	snapshot, err := settings.Load(data)
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Service: "imapd.1", Hostname: "h.test", Settings: func() *settings.View { return snapshot.View("imapd.1") }, Auth: anybody.Anybody{Home: home, Quota: "10240S,10C"},
		Trace: trace.Discard, Logger: slog.New(slog.DiscardHandler), Now: time.Now, NewSessionID: func() string { return "s" }})
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
	got := strings.Join(talk(t, "a LOGIN u {1+}\r\np\r\nb LIST \"\" *\r\nc SELECT inbox\r\nd FETCH 1:* (UID FLAGS RFC822.SIZE)\r\ne UID FETCH 2 BODY.PEEK[TEXT]<1.4>\r\n"+
		"f STORE 1 +FLAGS (\\Deleted)\r\ng SEARCH UNDELETED\r\nh EXPUNGE\r\ni FETCH 1 ENVELOPE\r\nj BOGUS\r\nk LOGOUT\r\n"), "\n")
	for _, want := range []string{
		"a OK [CAPABILITY", `* LIST () "." INBOX`, "* 2 EXISTS", "[UIDNEXT 3]", "* 1 FETCH (UID 1 FLAGS () RFC822.SIZE 26)", "* 2 FETCH (UID 2 FLAGS () RFC822.SIZE 26)",
		"* 2 FETCH (BODY[TEXT]<1> {4}\nbody UID 2)", `* 1 FETCH (FLAGS (\Deleted))`, "* SEARCH 2\n", "* 1 EXPUNGE", "i BAD", "j BAD", "* BYE", "k OK",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

// TestHomeThatIsMissing: a user whose folder is not there yet finds it empty, and mail that comes; one without a home reads nobody's.
func TestHomeThatIsMissing(t *testing.T) {
	home := t.TempDir() + "/new/user"
	got := strings.Join(talkAt(t, home, "a LOGIN u p\r\nb SELECT inbox\r\nc STATUS inbox (MESSAGES)\r\nd LOGOUT\r\n"), "\n")
	if !strings.Contains(got, "* 0 EXISTS") || !strings.Contains(got, "b OK") || !strings.Contains(got, "(MESSAGES 0)") {
		t.Error(got)
	}
	if info, err := os.Stat(home + "/Maildir/new"); err != nil || !info.IsDir() {
		t.Error(err)
	}
	t.Chdir(t.TempDir())
	if err := maildir.Create("Maildir"); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(talkAt(t, "", "a LOGIN u p\r\nb SELECT inbox\r\n"), "\n"); !strings.Contains(got, "b NO [SERVERBUG]") {
		t.Error(got)
	}
}

// TestQuota tells use and limit, and what EXPUNGE frees; one line in maildirsize for all.
func TestQuota(t *testing.T) {
	got := strings.Join(talk(t, "a LOGIN u p\r\nb GETQUOTAROOT inbox\r\nc GETQUOTA \"User quota\"\r\nd GETQUOTA x\r\ne SETQUOTA \"\" (STORAGE 5)\r\nf GETQUOTAROOT Sent\r\ng GETQUOTA\r\n"+
		"h SELECT INBOX\r\ni STORE 1:2 +FLAGS (\\Deleted)\r\nj STATUS INBOX (DELETED DELETED-STORAGE)\r\nk EXPUNGE\r\nl GETQUOTA \"User quota\"\r\nm LOGOUT\r\n"), "\n")
	for _, want := range []string{
		"QUOTA=RES-STORAGE", "* QUOTAROOT INBOX \"User quota\"\n* QUOTA \"User quota\" (STORAGE 1 10 MESSAGE 2 10)\nb OK", "(STORAGE 1 10 MESSAGE 2 10)\nc OK",
		"d NO [NONEXISTENT]", "e NO [NOPERM]", "f NO [NONEXISTENT]", "g BAD", "* STATUS INBOX (DELETED 2 DELETED-STORAGE 52)", "* 2 EXPUNGE\n* 1 EXPUNGE\nk OK",
		"(STORAGE 0 10 MESSAGE 0 10)\nl OK",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

// TestAuthenticate: the replies to exchanges that go wrong, and to one that goes well.
func TestAuthenticate(t *testing.T) {
	got := talk(t, "a AUTHENTICATE PLAIN\r\n*\r\nb AUTHENTICATE PLAIN !!\r\nc AUTHENTICATE PLAIN =\r\nd AUTHENTICATE NTLM\r\ne AUTHENTICATE CRAM-MD5\r\n"+
		"f AUTHENTICATE PLAIN\r\n"+strings.Repeat("A", 13000)+"\r\ng AUTHENTICATE LOGIN\r\ndQ==\r\ncA==\r\nh AUTHENTICATE PLAIN x\r\ni LOGOUT\r\n")
	want := []string{"* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL- QUOTA QUOTA=RES-STORAGE QUOTA=RES-MESSAGE AUTH=PLAIN AUTH=LOGIN AUTH=OAUTHBEARER AUTH=XOAUTH2] h.test Indigo ready", "+ ", "a BAD cancelled", "b BAD malformed base64", "c BAD malformed response",
		"d NO [CANNOT] unknown mechanism", "e NO [CANNOT] unknown mechanism", "+ ", "f BAD authentication exchange line is too long", "+ VXNlcm5hbWU6", "+ UGFzc3dvcmQ6", "g OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL- QUOTA QUOTA=RES-STORAGE QUOTA=RES-MESSAGE AUTH=PLAIN AUTH=LOGIN AUTH=OAUTHBEARER AUTH=XOAUTH2] logged in",
		"h BAD unknown command, or SELECT first", "* BYE logging out", "i OK done"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestTokens: initial responses and continuations of tokens of 8 KiB, and what a token is refused with; other commands have no such long lines.
func TestTokens(t *testing.T) {
	say := func(token string) string {
		return base64.StdEncoding.EncodeToString([]byte("n,a=u@d.test,\x01auth=Bearer " + token + "\x01\x01"))
	}
	long := strings.Repeat("x", 8192)
	got := talk(t, "a AUTHENTICATE OAUTHBEARER "+say("old")+"\r\nAQ==\r\nb AUTHENTICATE OAUTHBEARER "+say(strings.Repeat("x", 9300))+"\r\nc NOOP "+strings.Repeat("x", maxLine)+"\r\n"+
		"d authenticate oauthbearer "+say(long)+"\r\ne LOGOUT\r\n")
	want := []string{"+ " + base64.StdEncoding.EncodeToString([]byte(`{"status":"invalid_token"}`)), "a NO [AUTHENTICATIONFAILED] authorization failed (#5.7.8)",
		"* BAD line too long", "* BAD line too long", "d OK [CAPABILITY", "* BYE logging out", "e OK done"}
	for i, line := range got[1:] {
		if i >= len(want) || !strings.HasPrefix(line, want[i]) {
			t.Fatalf("got:\n%s\nwant:\n%s", strings.Join(got[1:], "\n"), strings.Join(want, "\n"))
		}
	}
	got = talk(t, "a AUTHENTICATE OAUTHBEARER "+say("old")+"\r\n*\r\nb LOGOUT\r\n")
	if len(got) != 5 || !strings.HasPrefix(got[2], "a NO [AUTHENTICATIONFAILED]") {
		t.Errorf("cancelled: %q", got)
	}
	got = talk(t, "a AUTHENTICATE OAUTHBEARER\r\n"+say(long)+"\r\nb LOGOUT\r\n")
	if len(got) != 5 || got[1] != "+ " || !strings.HasPrefix(got[2], "a OK") {
		t.Errorf("by continuation: %q", got)
	}
}

func FuzzSession(f *testing.F) {
	f.Add("a LOGIN u p\r\nb SELECT INBOX\r\nc FETCH 1:* (FLAGS BODY[]<0.10>)\r\nd UID STORE 1 -FLAGS (\\Seen)\r\n")
	f.Add("a AUTHENTICATE PLAIN AHUAcA==\r\nb STATUS INBOX (UIDNEXT)\r\nc LOGIN {3}\r\nabc d\r\n")
	f.Fuzz(func(t *testing.T, input string) {
		lines := talk(t, input+"\r\n*\r\nz LOGOUT\r\nz LOGOUT\r\n")
		if len(lines) == 0 || !strings.HasPrefix(lines[0], "* OK") {
			t.Fatalf("%q", lines)
		}
	})
}
