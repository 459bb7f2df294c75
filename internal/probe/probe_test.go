package probe

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/indigomail/indigo/internal/auth/sasl"
)

// scripted is a server that says greeting, and to each line what answer gives for it; "" closes.
func scripted(t *testing.T, greeting string, answer func(string) string) Target {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		var talks sync.WaitGroup
		defer talks.Wait()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			talks.Go(func() {
				_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
				_, _ = conn.Write([]byte(greeting))
				for in := bufio.NewScanner(conn); in.Scan(); {
					reply := answer(in.Text())
					if reply == "" {
						break
					}
					_, _ = conn.Write([]byte(reply + "\r\n"))
				}
				conn.Close()
			})
		}
	}()
	return Target{Address: l.Addr().String(), Protocol: "smtp", Mode: Plain, TLS: &tls.Config{ServerName: "mx.test"}, Helo: "c.test", Dial: (&net.Dialer{}).DialContext, Timeout: 5 * time.Second}
}

// answers gives the first whose prefix a line has; what is not there is 250.
func answers(pairs ...string) func(string) string {
	return func(line string) string {
		for i := 0; i < len(pairs); i += 2 {
			if strings.HasPrefix(line, pairs[i]) {
				return pairs[i+1]
			}
		}
		if line == "QUIT" {
			return ""
		}
		return "250 ok"
	}
}

// TestOddServers: what servers do that Debian has none of.
func TestOddServers(t *testing.T) {
	for _, c := range []struct {
		name, greeting, want string
		answer               func(string) string
	}{
		{"no EHLO", "220 mx.test\r\n", "wrong EHLO", answers("EHLO", "500 what")},
		{"no host name", "220 hello\r\n", "warn banner", answers("EHLO", "250 mx.test", "RCPT", "550 no")},
		{"takes all", "220 mx.test\r\n", "wrong relay", answers("EHLO", "250 mx.test")},
		{"takes %", "220 mx.test\r\n", "wrong odd addresses: <probe%example.org@mx.test>", answers("EHLO", "250 mx.test", "RCPT TO:<probe%", "250 ok", "RCPT", "550 5.7.1 no")},
		{"takes any name", "220 mx.test\r\n", "note odd addresses", answers("EHLO", "250 mx.test", "RCPT TO:<probe%", "250 ok", "RCPT TO:<probe-", "250 ok", "RCPT", "550 5.7.1 no")},
		{"closes on a question", "220 mx.test\r\n", "warn relay: not all could be asked", answers("EHLO", "250 mx.test", "RCPT TO:<probe%", "", "RCPT", "550 5.7.1 no")},
		{"no codes", "220 mx.test\r\n", "note enhanced codes", answers("EHLO", "250 mx.test", "RCPT", "550 no")},
		{"AUTH in clear", "220 mx.test\r\n", "wrong AUTH in clear: PLAIN", answers("EHLO", "250-mx.test\r\n250 AUTH PLAIN", "RCPT", "550 no")},
	} {
		r, err := Probe(t.Context(), scripted(t, c.greeting, c.answer), Options{Now: time.Now(), Relay: true})
		text := ""
		for _, f := range r.Findings {
			text += f.Verdict + " " + f.What + ": " + f.Text + "\n"
		}
		if err != nil || !strings.Contains(text, c.want) {
			t.Errorf("%s: %v, no %q\n%s", c.name, err, c.want, text)
		}
	}
	for name, greeting := range map[string]string{"no SMTP": "+OK\r\n", "a long line": "220 " + strings.Repeat("x", 2*maxLine) + "\r\n", "lines without end": strings.Repeat("220-x\r\n", 2*maxLines), "busy": "421 later\r\n"} {
		if _, err := Probe(t.Context(), scripted(t, greeting, answers()), Options{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestServersThatLie: a login that is none, and challenges that are none.
func TestServersThatLie(t *testing.T) {
	who := sasl.Credentials{User: "u", Password: "p"}
	for name, answer := range map[string]func(string) string{
		"in without a proof":  answers("EHLO", "250-mx.test\r\n250 AUTH SCRAM-SHA-256", "AUTH", "235 in"),
		"not base64":          answers("EHLO", "250-mx.test\r\n250 AUTH SCRAM-SHA-256", "AUTH", "334 !!", "*", "501 ok"),
		"challenges for ever": answers("EHLO", "250-mx.test\r\n250 AUTH SCRAM-SHA-256", "", "334 "),
	} {
		all, err := Logins(t.Context(), scripted(t, "220 mx.test\r\n", answer), "SCRAM-SHA-256", who)
		if err != nil || len(all) != 1 || all[0].Works || all[0].Why == "" {
			t.Errorf("%s: %+v %v", name, all, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Connect(ctx, scripted(t, "220 mx.test\r\n", answers())); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// FuzzCaptured: whatever was captured, what is masked does not show what is secret.
func FuzzCaptured(f *testing.F) {
	for _, s := range []string{"C: AUTH PLAIN AHRpbQBzZWNyZXQ=", "a1 LOGIN tim secret", "PASS secret", " -> AUTH LOGIN\n<-  334 UGFzc3dvcmQ6\n -> dGlt\n -> c2VjcmV0", "APOP tim 0123", "334 !", "AUTH", "S: 334"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, session string) {
		var r Reader
		for line := range strings.Lines(session) {
			l := r.Captured(line)
			masked := l.Masked()
			for shown := range strings.SplitSeq(masked.Text, "(hidden)") {
				if l.secret != "" && strings.Contains(shown, l.secret) {
					t.Errorf("%q is shown in %q", l.secret, masked.Text)
				}
			}
			if m := masked.Message; m != nil {
				for _, p := range m.Parts {
					if p.Secret && p.Text != "" && p.Text != "(hidden)" || strings.ContainsFunc(p.Text, unicode.IsControl) {
						t.Errorf("%+v", p)
					}
				}
			}
		}
	})
}
