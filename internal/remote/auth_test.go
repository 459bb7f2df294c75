package remote

import (
	"bufio"
	"bytes"
	"context"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/lab"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
)

const relayZone = `
relay.test. A 192.0.2.1
other.test. A 192.0.2.2
far.test. A 192.0.2.3
`

// viewOf gives the queue's view of control files, and of variables of the service queue, which have names in capitals.
func viewOf(t *testing.T, files map[string]string) *settings.View {
	t.Helper()
	return viewIn(t, t.TempDir(), files)
}

// viewIn is viewOf in the data directory dir.
func viewIn(t *testing.T, dir string, files map[string]string) *settings.View {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, "control", name)
		if strings.ToUpper(name) == name {
			path = filepath.Join(dir, "services", "queue", "variables", name)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := settings.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s.View("queue")
}

// security makes a peer's ways to be spoken to, and a file with the authority of its certificate.
func security(t *testing.T) (ways map[string]*tls.Config, ca string) {
	t.Helper()
	authority, err := lab.NewAuthority(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := authority.Issue(time.Hour, "relay.test")
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{certificate}}
	ca = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, authority.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	return map[string]*tls.Config{"clear": nil, "starttls": config, "tls": config}, ca
}

// TestMechanismsAtRelays: every mechanism of a client, in clear, over STARTTLS and over TLS from the first byte, with the right
// password and a wrong one; nothing secret in log, reply and dialogue.
func TestMechanismsAtRelays(t *testing.T) {
	ways, ca := security(t)
	for how, config := range ways {
		for _, mechanism := range sasl.Names() {
			if mechanism == "EXTERNAL" {
				continue
			}
			for _, password := range []string{"pa=ss:w0rd", "wr0ng-secret"} {
				t.Run(how+" "+mechanism+" "+password, func(t *testing.T) {
					var log bytes.Buffer
					route := ":relay.test:587 me@relay.test " + password + " AUTH_SMTP=" + mechanism
					if how == "tls" {
						route += ",SMTPS=1"
					}
					i := newInternetWith(t, relayZone, viewOf(t, map[string]string{"smtproutes": route, "remote_tls_ca": ca}), slog.NewTextHandler(&log, nil))
					defer i.Close()
					p := &lab.Peer{Name: "relay.test", TLS: config, Implicit: how == "tls", Users: map[string]string{"me@relay.test": "pa=ss:w0rd"}, Mechanisms: []string{mechanism}}
					i.network.Listen("192.0.2.1:587", p.Serve)
					r := i.Deliver(t.Context(), job("far.test", "u"))[0]
					able := how != "clear" || !sasl.NeedsTLS(mechanism) && !strings.HasSuffix(mechanism, "-PLUS")
					mails := p.Mails()
					switch {
					case able && password == "pa=ss:w0rd":
						if r.Err != nil || len(mails) != 1 || mails[0].User != "me@relay.test" {
							t.Errorf("%v %+v\n%s", r.Err, mails, strings.Join(r.Dialogue, "\n"))
						}
					case able:
						if r.Err == nil || r.Err.Code != 454 || len(mails) > 0 || strings.Count(strings.Join(p.Lines(), "\n"), "AUTH ") != 1 {
							t.Errorf("%v %+v\n%s\n%s", r.Err, mails, strings.Join(r.Dialogue, "\n"), strings.Join(p.Lines(), "\n"))
						}
						if !strings.Contains(log.String(), "refuses the login of user me@relay.test: put right user and password in control/smtproutes:1") {
							t.Errorf("log: %s", &log)
						}
					default:
						if r.Err == nil || r.Err.Code != 451 || len(mails) > 0 || strings.Contains(strings.Join(p.Lines(), "\n"), "AUTH ") {
							t.Errorf("%v %+v\n%s", r.Err, mails, strings.Join(p.Lines(), "\n"))
						}
					}
					said := log.String() + r.Text + strings.Join(r.Dialogue, "\n")
					if r.Err != nil {
						said += r.Err.Error()
					}
					for _, secret := range []string{password, encode([]byte(password)), encode([]byte("\x00me@relay.test\x00" + password))} {
						if strings.Contains(said, secret) {
							t.Errorf("%q is shown:\n%s", secret, said)
						}
					}
				})
			}
		}
	}
}

// TestWhatRelaysDo: what a server may do with a login, and what becomes of the mail.
func TestWhatRelaysDo(t *testing.T) {
	ways, ca := security(t)
	config := ways["starttls"]
	salted := "a8bac1a24c7aa2725630c9ab6813a631b366c79c6bc959bf344d3af8e685a375"
	plain := "AUTH PLAIN " + encode([]byte("\x00me\x00secret"))
	const route = ":relay.test:587 me secret"
	for _, tc := range []struct {
		name  string
		files map[string]string
		peer  *lab.Peer
		// want is "ok", or the beginning of the reply; shown stands in the dialogue.
		want, shown string
		// auth are the commands and responses from AUTH on, where they are known beforehand.
		auth []string
	}{
		{"strongest first", nil, &lab.Peer{TLS: config, Mechanisms: []string{"PLAIN", "CRAM-MD5", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"}}, "ok", "by SCRAM-SHA-256-PLUS", nil},
		{"strongest first in clear", nil, &lab.Peer{Mechanisms: []string{"PLAIN", "CRAM-MD5", "SCRAM-SHA-256-PLUS"}}, "ok", "by CRAM-MD5", nil},
		{"the one that AUTH_SMTP names", map[string]string{"AUTH_SMTP": "CRAM-MD5"}, &lab.Peer{TLS: config, Mechanisms: []string{"PLAIN", "CRAM-MD5", "SCRAM-SHA-256"}}, "ok", "by CRAM-MD5", nil},
		{"the stronger of those that AUTH_SMTP names", map[string]string{"AUTH_SMTP": "plain, cram-md5"}, &lab.Peer{TLS: config, Mechanisms: []string{"PLAIN", "CRAM-MD5", "SCRAM-SHA-256"}}, "ok", "by CRAM-MD5", nil},
		{"AUTH_SMTP names what is not offered", map[string]string{"AUTH_SMTP": "CRAM-MD5"}, &lab.Peer{TLS: config}, "451 4.7.0", "the server offers PLAIN, AUTH_SMTP and SALTED_PASSWORD leave CRAM-MD5, no other", nil},
		{"one is switched off", map[string]string{"DISABLE_SCRAM_SHA256": "1"}, &lab.Peer{TLS: config, Mechanisms: []string{"PLAIN", "SCRAM-SHA-256"}}, "ok", "by PLAIN", []string{plain}},
		{"no AUTH", nil, &lab.Peer{TLS: config, AuthTLS: true, Script: map[string]string{"STARTTLS": "454 4.7.0 not now"}}, "451 4.7.0", "the server offers no AUTH; is it the port for users", nil},
		{"AUTH after STARTTLS only", nil, &lab.Peer{TLS: config, AuthTLS: true}, "ok", "by PLAIN", []string{plain}},
		{"announced as AUTH= only", nil, &lab.Peer{Mechanisms: []string{"CRAM-MD5"}, Script: map[string]string{"EHLO": "250-relay.test\r\n250 AUTH=LOGIN CRAM-MD5"}}, "ok", "by CRAM-MD5", nil},
		{"PLAIN in clear", nil, &lab.Peer{}, "451 4.7.0", "without TLS the server offers only PLAIN", nil},
		{"PLAIN in clear is allowed", map[string]string{"remote_plain_auth": "1"}, &lab.Peer{}, "ok", "by PLAIN", []string{plain}},
		{"SECURE_AUTH goes first", map[string]string{"remote_plain_auth": "1", "SECURE_AUTH": "1"}, &lab.Peer{}, "451 4.7.0", "unless SECURE_AUTH is set to 1", nil},
		{"SECURE_AUTH=0 alone allows nothing", map[string]string{"secure_auth": "0"}, &lab.Peer{}, "451 4.7.0", "without TLS", nil},
		{"SECURE_AUTH of a route", map[string]string{"remote_plain_auth": "1", "smtproutes": route + " SECURE_AUTH=1"}, &lab.Peer{}, "451 4.7.0", "without TLS", nil},
		{"504 for what was offered", nil, &lab.Peer{TLS: config, Mechanisms: []string{"SCRAM-SHA-256", "CRAM-MD5", "PLAIN"}, Script: map[string]string{"AUTH SCRAM-SHA-256": "504 5.5.4 no", "AUTH CRAM-MD5": "534 5.7.9 too weak"}},
			"ok", "! CRAM-MD5: the server said 534", nil},
		{"504 for all", nil, &lab.Peer{TLS: config, Script: map[string]string{"AUTH PLAIN": "504 5.5.4 no"}}, "451 4.7.0", "of which PLAIN cannot be used", []string{plain}},
		{"535 ends it", nil, &lab.Peer{TLS: config, Mechanisms: []string{"CRAM-MD5", "PLAIN"}, Script: map[string]string{"AUTH CRAM-MD5": "535 5.7.8 no, me c2VjcmV0 secret"}}, "454 4.7.8", "name another mechanism by AUTH_SMTP", []string{"AUTH CRAM-MD5"}},
		{"535 may bounce", map[string]string{"remote_auth_failure": "bounce"}, &lab.Peer{TLS: config, Script: map[string]string{"AUTH PLAIN": "535 5.7.8 no"}}, "535 5.7.8", "", []string{plain}},
		{"535 may bounce, 530 not", map[string]string{"remote_auth_failure": "bounce"}, &lab.Peer{TLS: config, Script: map[string]string{"AUTH PLAIN": "530 5.7.0 no"}}, "454 4.7.8", "", []string{plain}},
		{"454 is temporary", nil, &lab.Peer{TLS: config, Script: map[string]string{"AUTH PLAIN": "454 4.7.0 later"}}, "454 4.7.0", "", []string{plain}},
		{"250 is no success", nil, &lab.Peer{TLS: config, Script: map[string]string{"AUTH PLAIN": "250 fine"}}, "454 4.7.8", "", []string{plain}},
		{"no initial response", nil, &lab.Peer{TLS: config, Script: map[string]string{"AUTH PLAIN": "501 5.5.2 no"}}, "451 4.7.0", "PLAIN: the server said 501", []string{plain, "AUTH PLAIN"}},
		{"server that closes", nil, &lab.Peer{TLS: config, Script: map[string]string{"AUTH PLAIN": lab.Cut}}, "451 4.4.2", "unexpected EOF", []string{plain}},
		{"server that closes after 535", nil, &lab.Peer{TLS: config, Script: map[string]string{"AUTH PLAIN": "421 4.7.0 bye"}}, "421 4.7.0", "", []string{plain}},
		{"wrong signature", nil, &lab.Peer{TLS: config, Mechanisms: []string{"SCRAM-SHA-256", "PLAIN"}, Meddle: func(m string, challenge []byte) []byte {
			if bytes.HasPrefix(challenge, []byte("v=")) {
				return []byte("v=" + encode(make([]byte, 32)))
			}
			return challenge
		}}, "451 4.7.8", "somebody else may answer", nil},
		{"235 without a signature", nil, &lab.Peer{TLS: config, Mechanisms: []string{"SCRAM-SHA-256", "PLAIN"}, Script: map[string]string{"AUTH SCRAM-SHA-256": "235 2.7.0 welcome"}}, "451 4.7.8", "somebody else may answer", nil},
		{"235 before LOGIN has the password", nil, &lab.Peer{TLS: config, Mechanisms: []string{"LOGIN"}, Script: map[string]string{"AUTH LOGIN": "235 2.7.0 welcome"}}, "451 4.7.8", "", []string{"AUTH LOGIN"}},
		{"challenge that is none", nil, &lab.Peer{TLS: config, Mechanisms: []string{"CRAM-MD5", "PLAIN"}, Script: map[string]string{"AUTH CRAM-MD5": "334 {nonsense}"}}, "ok", "! CRAM-MD5: the challenge is not base64", nil},
		{"challenge of two lines", nil, &lab.Peer{TLS: config, Mechanisms: []string{"CRAM-MD5", "PLAIN"}, Script: map[string]string{"AUTH CRAM-MD5": "334-PDE+\r\n334 PDI+"}}, "ok", "! CRAM-MD5: the challenge is not base64", nil},
		{"challenge that is too long for SCRAM", nil, &lab.Peer{TLS: config, Mechanisms: []string{"SCRAM-SHA-256", "PLAIN"}, Script: map[string]string{"AUTH SCRAM-SHA-256": "334 " + strings.Repeat("cj14", 2500)}}, "ok", "! SCRAM-SHA-256: malformed", nil},
		{"challenge that is too long for a line", nil, &lab.Peer{TLS: config, Mechanisms: []string{"SCRAM-SHA-256", "PLAIN"}, Script: map[string]string{"AUTH SCRAM-SHA-256": "334 " + strings.Repeat("cj14", 20000)}}, "451 4.4.2", "", nil},
		{"too few iterations", nil, &lab.Peer{TLS: config, Mechanisms: []string{"SCRAM-SHA-256", "PLAIN"}, Meddle: func(m string, challenge []byte) []byte {
			return bytes.Replace(challenge, []byte("i=4096"), []byte("i=1"), 1)
		}}, "ok", "! SCRAM-SHA-256: the server asks for 1 iterations", nil},
		{"salted password that is none", map[string]string{"SALTED_PASSWORD": "1"}, &lab.Peer{TLS: config, Mechanisms: []string{"SCRAM-SHA-256"}}, "451 4.7.0", "SALTED_PASSWORD is set", nil},
		{"salted password is never a password", map[string]string{"smtproutes": ":relay.test:587 me " + salted + " SALTED_PASSWORD=1"}, &lab.Peer{TLS: config, Mechanisms: []string{"PLAIN", "CRAM-MD5", "SCRAM-SHA-1"}}, "451 4.7.0", "leave SCRAM-SHA-256, SCRAM-SHA-256-PLUS", nil},
		{"relay that repeats the password later", nil, &lab.Peer{TLS: config, Script: map[string]string{"MAIL": "550 5.7.1 secret is a bad password"}}, "550 5.7.1 192.0.2.1 does not like the sender. Remote host said: 550 5.7.1 (hidden)", "", []string{plain}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			files := map[string]string{"smtproutes": route, "remote_tls_ca": ca}
			for name, text := range tc.files {
				files[name] = text
			}
			i := newInternetWith(t, relayZone, viewOf(t, files), slog.DiscardHandler)
			defer i.Close()
			p := tc.peer
			p.Name, p.Users = "relay.test", map[string]string{"me": "secret"}
			i.network.Listen("192.0.2.1:587", p.Serve)
			r := i.Deliver(t.Context(), job("far.test", "u"))[0]
			got, dialogue := "ok", strings.Join(r.Dialogue, "\n")
			if r.Err != nil {
				got = r.Err.Reply()
			}
			if !strings.HasPrefix(got, tc.want) || !strings.Contains(dialogue, tc.shown) {
				t.Errorf("%s, want %s\n%s", got, tc.want, dialogue)
			}
			if strings.Contains(got+dialogue, "secret") || strings.Contains(got+dialogue, "c2VjcmV0") {
				t.Errorf("the password is shown:\n%s\n%s", got, dialogue)
			}
			lines := p.Lines()
			if n := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "AUTH") }); tc.auth != nil && (n < 0 || !slices.Equal(lines[n:n+len(tc.auth)], tc.auth)) {
				t.Errorf("%q, want %q", lines, tc.auth)
			} else if strings.HasPrefix(tc.want, "4") && tc.want != "454 4.7.8" && slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "MAIL") }) {
				t.Errorf("mail went on without a login: %q", lines)
			}
			if (len(p.Mails()) == 1 && p.Mails()[0].User == "me") != (tc.want == "ok") {
				t.Errorf("%+v", p.Mails())
			}
		})
	}
}

// TestManInTheMiddle: whoever ends TLS and begins it again gets no login by -PLUS, and no password, then or afterwards.
func TestManInTheMiddle(t *testing.T) {
	ours, ca := security(t)
	theirs, _ := security(t)
	own, other := ours["tls"], theirs["tls"]
	for _, mechanisms := range [][]string{{"SCRAM-SHA-256-PLUS", "PLAIN"}, {"SCRAM-SHA-256", "PLAIN"}, {"PLAIN", "LOGIN"}} {
		t.Run(mechanisms[0], func(t *testing.T) {
			i := newInternetWith(t, relayZone, viewOf(t, map[string]string{"smtproutes": ":relay.test:465 me secret", "remote_tls_ca": ca}), slog.DiscardHandler)
			defer i.Close()
			p := &lab.Peer{Name: "relay.test", TLS: own, Implicit: true, Users: map[string]string{"me": "secret"}, Mechanisms: []string{"SCRAM-SHA-256-PLUS", "PLAIN"}}
			i.network.Listen("192.0.2.1:465", func(c net.Conn) {
				near, far := net.Pipe()
				go p.Serve(far)
				front, back := tls.Server(c, other), tls.Client(near, &tls.Config{InsecureSkipVerify: true})
				go func() {
					io.Copy(back, front)
					back.Close()
				}()
				// The middle may also hide what is bound.
				in := bufio.NewReader(back)
				for {
					line, err := in.ReadString('\n')
					if err != nil {
						break
					}
					if strings.Contains(line, "AUTH ") {
						line = line[:4] + "AUTH " + strings.Join(mechanisms, " ") + "\r\n"
					}
					io.WriteString(front, line)
				}
				front.Close()
			})
			r := i.Deliver(t.Context(), job("far.test", "u"))[0]
			said := strings.Join(p.Lines(), "\n")
			if mechanisms[0] == "PLAIN" {
				if r.Err == nil || r.Err.Code != 451 || len(p.Mails()) > 0 || strings.Contains(said, "AUTH") {
					t.Errorf("%v\n%s\n%s", r.Err, said, strings.Join(r.Dialogue, "\n"))
				}
			} else if r.Err == nil || r.Err.Code != 454 || len(p.Mails()) > 0 || strings.Contains(said, "AUTH PLAIN") || !strings.Contains(said, "AUTH "+mechanisms[0]) {
				t.Errorf("%v\n%s\n%s", r.Err, said, strings.Join(r.Dialogue, "\n"))
			}
		})
	}
}

// TestLongInitialResponse: what does not fit into a command line waits for the server's challenge (RFC 4954 section 4).
func TestLongInitialResponse(t *testing.T) {
	token := strings.Repeat("t", 2000)
	ways, ca := security(t)
	i := newInternetWith(t, relayZone, viewOf(t, map[string]string{"smtproutes": ":relay.test:587 me " + token + " AUTH_SMTP=XOAUTH2", "remote_tls_ca": ca}), slog.DiscardHandler)
	defer i.Close()
	p := &lab.Peer{Name: "relay.test", TLS: ways["starttls"], Users: map[string]string{"me": token}, Mechanisms: []string{"XOAUTH2"}}
	i.network.Listen("192.0.2.1:587", p.Serve)
	if r := i.Deliver(t.Context(), job("far.test", "u"))[0]; r.Err != nil || !slices.Contains(p.Lines(), "AUTH XOAUTH2") || len(p.Mails()) != 1 {
		t.Errorf("%v %q", r.Err, r.Dialogue)
	}
}

// tokens give what stands in them by the file, and count whom a server did not take.
type tokens struct {
	of     map[string]string
	forgot []string
}

func (f *tokens) Token(_ context.Context, file string) (string, error) {
	if token := f.of[file]; token != "" {
		return token, nil
	}
	return "", errors.New(file + ": nothing to be had")
}

func (f *tokens) Forget(file string) { f.forgot = append(f.forgot, file) }

// TestTokenFiles: logins by the token of a file, by no other mechanisms than those for tokens, and what becomes of mail without one.
func TestTokenFiles(t *testing.T) {
	ways, ca := security(t)
	config := ways["starttls"]
	const route = ":relay.test:587 me token:control/t"
	for _, tc := range []struct {
		name, route string
		peer        *lab.Peer
		want, shown string
		forgot      bool
	}{
		{"the better one", route, &lab.Peer{TLS: config, Mechanisms: []string{"PLAIN", "SCRAM-SHA-256", "XOAUTH2", "OAUTHBEARER"}}, "ok", "by OAUTHBEARER", false},
		{"the only one", route, &lab.Peer{TLS: config, Mechanisms: []string{"PLAIN", "XOAUTH2"}}, "ok", "by XOAUTH2", false},
		{"AUTH_SMTP", route + " AUTH_SMTP=PLAIN XOAUTH2", &lab.Peer{TLS: config, Mechanisms: []string{"PLAIN", "XOAUTH2", "OAUTHBEARER"}}, "ok", "by XOAUTH2", false},
		{"switched off", route + " DISABLE_OAUTHBEARER=1", &lab.Peer{TLS: config, Mechanisms: []string{"XOAUTH2", "OAUTHBEARER"}}, "ok", "by XOAUTH2", false},
		{"none is offered", route, &lab.Peer{TLS: config, Mechanisms: []string{"PLAIN", "CRAM-MD5"}}, "451 4.7.0", "for the token in the password's place there are OAUTHBEARER, XOAUTH2, no other", false},
		{"not in clear", route, &lab.Peer{Mechanisms: []string{"XOAUTH2"}}, "451 4.7.0", "without TLS the server offers only XOAUTH2", false},
		{"refused", route, &lab.Peer{TLS: config, Users: map[string]string{"me": "other"}, Mechanisms: []string{"OAUTHBEARER"}}, "454 4.7.8", `what the server says of the token: "{\"status\":\"invalid_token\"}"`, true},
		{"no token", ":relay.test:587 me token:control/u", &lab.Peer{TLS: config, Mechanisms: []string{"XOAUTH2"}}, "451 4.7.0", "no token to log in at relay.test with, of user me in control/smtproutes:1: control/u: nothing to be had", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var log bytes.Buffer
			i := newInternetWith(t, relayZone, viewOf(t, map[string]string{"smtproutes": tc.route, "remote_tls_ca": ca}), slog.NewTextHandler(&log, nil))
			defer i.Close()
			source := &tokens{of: map[string]string{"control/t": "tok.en-of-me"}}
			i.config.Tokens = source
			if tc.peer.Name = "relay.test"; tc.peer.Users == nil {
				tc.peer.Users = map[string]string{"me": "tok.en-of-me"}
			}
			i.network.Listen("192.0.2.1:587", tc.peer.Serve)
			r := i.Deliver(t.Context(), job("far.test", "u"))[0]
			got, said := "ok", strings.Join(r.Dialogue, "\n")
			if r.Err != nil {
				got = r.Err.Reply()
				said += r.Err.Error()
			}
			if !strings.HasPrefix(got, tc.want) || !strings.Contains(said, tc.shown) || (len(source.forgot) > 0) != tc.forgot {
				t.Errorf("%s, forgot %v\n%s", got, source.forgot, said)
			}
			if said += log.String() + r.Text; strings.Contains(said, "tok.en-of-me") || strings.Contains(said, encode([]byte("tok.en-of-me"))) {
				t.Errorf("the token is shown:\n%s", said)
			}
		})
	}
	i := newInternetWith(t, relayZone, viewOf(t, map[string]string{"smtproutes": route}), slog.DiscardHandler)
	defer i.Close()
	if r := i.Deliver(t.Context(), job("far.test", "u"))[0]; r.Err == nil || r.Err.Code != 451 {
		t.Errorf("where no tokens can be had: %v", r.Err)
	}
}

// TestSaltedPassword logs in by what SCRAM makes of the password (wiki 2786), at a server whose salt and count fit.
func TestSaltedPassword(t *testing.T) {
	var salt string
	var count int
	p := &lab.Peer{Name: "relay.test", Users: map[string]string{"me": "secret"}, Mechanisms: []string{"SCRAM-SHA-256", "CRAM-MD5"}, Meddle: func(m string, challenge []byte) []byte {
		if fields := strings.Split(string(challenge), ","); len(fields) == 3 {
			salt = strings.TrimPrefix(fields[1], "s=")
			fmt.Sscanf(fields[2], "i=%d", &count)
		}
		return challenge
	}}
	send := func(route string) *queue.Result {
		i := newInternetWith(t, relayZone, viewOf(t, map[string]string{"smtproutes": route}), slog.DiscardHandler)
		defer i.Close()
		i.network.Listen("192.0.2.1:25", p.Serve)
		r := i.Deliver(t.Context(), job("far.test", "u"))[0]
		return &r
	}
	if r := send(":relay.test me secret"); r.Err != nil {
		t.Fatal(r.Err)
	}
	raw, err := base64.StdEncoding.DecodeString(salt)
	if err != nil {
		t.Fatal(err)
	}
	salted, err := pbkdf2.Key(sha256.New, "secret", raw, count, sha256.Size)
	if err != nil {
		t.Fatal(err)
	}
	if r := send(fmt.Sprintf(":relay.test me %x SALTED_PASSWORD=1", salted)); r.Err != nil || !strings.Contains(strings.Join(r.Dialogue, "\n"), "by SCRAM-SHA-256") {
		t.Errorf("%v %q", r.Err, r.Dialogue)
	}
}

// TestRemoteAuth: which entry of remote_auth a delivery logs in with, and where.
func TestRemoteAuth(t *testing.T) {
	const entries = "s@here.test:sender spw\nu@far.test:rcpt rpw\n@far.test:far fpw\nrelay.test:relay lpw\nnamed:name npw AUTH_SMTP=CRAM-MD5"
	for _, tc := range []struct{ name, route, sender, to, want string }{
		{"for the relay", ":relay.test", "s@here.test", "u@far.test", "relay"},
		{"for the sender", ":relay.test:25 /s", "s@here.test", "u@far.test", "sender"},
		{"for another sender the relay's", ":relay.test:25 /s", "x@here.test", "u@far.test", "relay"},
		{"for the null sender the relay's", ":relay.test:25 /s", "", "u@far.test", "relay"},
		{"for a sender's domain", ":relay.test:25 /s", "x@far.test", "u@far.test", "far"},
		{"for two recipients", ":relay.test:25 /r", "s@here.test", "u@far.test x@far.test", "rcpt far"},
		{"a named one", ":relay.test:25 /named", "s@here.test", "u@far.test", "name"},
		{"one that is not there", ":relay.test:25 /gone", "s@here.test", "u@far.test", "451 4.3.5"},
		{"without one there is no login", ":other.test", "s@here.test", "u@far.test", "nobody"},
		{"without a route there is none", "elsewhere.test:relay.test", "s@here.test", "u@far.test", "nobody"},
		{"bounces", ":relay.test u p\n!@:other.test", "", "u@far.test", "nobody"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			i := newInternetWith(t, relayZone, viewOf(t, map[string]string{"smtproutes": tc.route, "remote_auth": entries, "remote_plain_auth": "1"}), slog.DiscardHandler)
			defer i.Close()
			p := &lab.Peer{Name: "relay.test", Users: map[string]string{"sender": "spw", "rcpt": "rpw", "far": "fpw", "relay": "lpw", "name": "npw"}, Mechanisms: []string{"CRAM-MD5", "PLAIN"}}
			for _, address := range []string{"192.0.2.1:25", "192.0.2.2:25", "192.0.2.3:25"} {
				i.network.Listen(address, p.Serve)
			}
			d := job("far.test")
			d.Envelope.Sender = addr.Address{}
			if local, domain, ok := strings.Cut(tc.sender, "@"); ok {
				d.Envelope.Sender = addr.Address{Local: local, Domain: domain}
			}
			for to := range strings.FieldsSeq(tc.to) {
				local, domain, _ := strings.Cut(to, "@")
				d.Recipients = append(d.Recipients, queue.Recipient{Address: addr.Address{Local: local, Domain: domain}})
			}
			var got []string
			for _, r := range i.Deliver(t.Context(), d) {
				if r.Err != nil {
					got = []string{r.Err.Reply()}
				}
			}
			for _, m := range p.Mails() {
				if m.User == "" {
					m.User = "nobody"
				}
				got = append(got, m.User)
			}
			if g := strings.Join(got, " "); g != tc.want && !strings.HasPrefix(g, tc.want+" ") {
				t.Errorf("%s, want %s", g, tc.want)
			}
		})
	}
}

// TestOpenCredentials: an entry of a file that everybody can read meanwhile is not used.
func TestOpenCredentials(t *testing.T) {
	var log bytes.Buffer
	dir := t.TempDir()
	view := viewIn(t, dir, map[string]string{"smtproutes": ":relay.test", "remote_auth": "relay.test:me secret"})
	i := newInternetWith(t, relayZone, view, slog.NewTextHandler(&log, nil))
	defer i.Close()
	p := &lab.Peer{Users: map[string]string{"me": "secret"}, Mechanisms: []string{"CRAM-MD5"}}
	i.network.Listen("192.0.2.1:25", p.Serve)
	if got := i.send(t, "far.test"); got != "ok" {
		t.Fatal(got)
	}
	if err := os.Chmod(filepath.Join(dir, "control", "remote_auth"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := i.send(t, "far.test")
	if !strings.HasPrefix(got, "451 4.7.0") || !strings.Contains(log.String(), "chmod o=") || strings.Contains(log.String(), "secret") {
		t.Errorf("%s\n%s", got, &log)
	}
}

// TestRefusedLogins: a refused login is not tried again with every message, but at once when something has changed.
func TestRefusedLogins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		view := viewOf(t, map[string]string{"smtproutes": ":relay.test me wrong", "remote_plain_auth": "1"})
		i := newInternetWith(t, relayZone, nil, slog.DiscardHandler)
		i.Deliverer.config.Settings = func() *settings.View { return view }
		p := &lab.Peer{Users: map[string]string{"me": "secret"}}
		i.network.Listen("192.0.2.1:25", p.Serve)
		for range 5 {
			if got := i.send(t, "far.test"); !strings.HasPrefix(got, "454 4.7.8 192.0.2.1 rejected my credentials. Remote host said: 535") {
				t.Error(got)
			}
		}
		if p.Connections() != 1 {
			t.Errorf("%d connections", p.Connections())
		}
		time.Sleep(refusedFor)
		i.send(t, "far.test")
		if p.Connections() != 2 {
			t.Errorf("%d connections", p.Connections())
		}
		if n := i.Forget(""); n != 1 {
			t.Errorf("%d forgotten", n)
		}
		i.send(t, "far.test")
		if p.Connections() != 3 {
			t.Errorf("%d connections", p.Connections())
		}
		view = viewOf(t, map[string]string{"smtproutes": ":relay.test me secret", "remote_plain_auth": "1"})
		if got := i.send(t, "far.test"); got != "ok" {
			t.Error(got)
		}
		i.Close()
		i.network.Wait()
	})
}

// TestPenalty: a route's penalty and tolerance, in the place of times that grow.
func TestPenalty(t *testing.T) {
	for _, tc := range []struct {
		files map[string]string
		// dials after each pause, counted from the beginning.
		pauses []time.Duration
		dials  []int
	}{
		{map[string]string{"smtproutes": ":relay.test:25:600:120"}, []time.Duration{0, time.Minute, time.Minute, time.Minute, 9*time.Minute - time.Second, time.Second}, []int{1, 2, 3, 3, 3, 4}},
		{map[string]string{"smtproutes": ":relay.test:25:0"}, []time.Duration{0, 0, 0}, []int{1, 2, 3}},
		{map[string]string{"smtproutes": ":relay.test:25:600:0"}, []time.Duration{0, time.Minute, 9 * time.Minute}, []int{1, 1, 2}},
		{map[string]string{"smtproutes": ":relay.test", "MIN_PENALTY": "600", "MAX_TOLERANCE": "30"}, []time.Duration{0, time.Minute, 9 * time.Minute, time.Minute}, []int{1, 2, 2, 3}},
		{map[string]string{"smtproutes": ":relay.test"}, []time.Duration{0, 30 * time.Second, 30 * time.Second}, []int{1, 1, 2}},
	} {
		synctest.Test(t, func(t *testing.T) {
			i := newInternetWith(t, relayZone, viewOf(t, tc.files), slog.DiscardHandler)
			i.network.Listen("192.0.2.1:25", nil)
			for n, pause := range tc.pauses {
				time.Sleep(pause)
				i.send(t, "far.test")
				if got := len(i.mx()); got != tc.dials[n] {
					t.Errorf("%v: attempt %d: %d dials, want %d", tc.files, n, got, tc.dials[n])
				}
			}
			i.Close()
			i.network.Wait()
		})
	}
}

// TestMechanismNames: AUTH_SMTP takes what a client can log in by.
func TestMechanismNames(t *testing.T) {
	for _, name := range sasl.Names() {
		if name == "EXTERNAL" {
			continue
		}
		view := viewOf(t, map[string]string{"AUTH_SMTP": strings.ToLower(name)})
		if got := settings.Mechanisms(settings.AuthSMTP.Get(view)); !slices.Equal(got, []string{name}) {
			t.Errorf("%s: %v", name, got)
		}
	}
}
