package e2e

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/test/instance"
)

// saslConn is a client's connection that speaks SASL as its protocol has it.
type saslConn struct {
	t        *testing.T
	protocol string
	conn     net.Conn
	in       *bufio.Reader
	offered  []string
	state    *tls.ConnectionState
}

func (c *saslConn) line() string {
	c.t.Helper()
	s, err := c.in.ReadString('\n')
	if err != nil {
		c.t.Fatalf("%s: %v after %q", c.protocol, err, s)
	}
	return strings.TrimRight(s, "\r\n")
}

func (c *saslConn) send(format string, args ...any) { fmt.Fprintf(c.conn, format+"\r\n", args...) }

// until reads lines to the one that ends a reply.
func (c *saslConn) until(end func(string) bool) (all []string) {
	for {
		s := c.line()
		if all = append(all, s); end(s) {
			return all
		}
	}
}

// secure goes over to TLS.
func (c *saslConn) secure() {
	c.t.Helper()
	conn := tls.Client(c.conn, &tls.Config{InsecureSkipVerify: true})
	if err := conn.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	state := conn.ConnectionState()
	c.conn, c.in, c.state = conn, bufio.NewReader(conn), &state
}

// ask learns what is offered.
func (c *saslConn) ask() {
	var mechanisms []string
	switch c.protocol {
	case "smtp":
		c.send("EHLO x")
		for _, s := range c.until(func(s string) bool { return s[3] == ' ' }) {
			if list, ok := strings.CutPrefix(s[4:], "AUTH "); ok {
				mechanisms = strings.Fields(list)
			}
		}
	case "imap":
		c.send("c CAPABILITY")
		for word := range strings.FieldsSeq(c.until(func(s string) bool { return strings.HasPrefix(s, "c ") })[0]) {
			if name, ok := strings.CutPrefix(word, "AUTH="); ok {
				mechanisms = append(mechanisms, name)
			}
		}
	case "pop":
		c.send("CAPA")
		for _, s := range c.until(func(s string) bool { return s == "." }) {
			if list, ok := strings.CutPrefix(s, "SASL "); ok {
				mechanisms = strings.Fields(list)
			}
		}
	}
	c.offered = mechanisms
}

// dialSASL opens a connection: "clear", "starttls" or "tls".
func dialSASL(t *testing.T, in *instance.Instance, protocol, security string) *saslConn {
	t.Helper()
	service := map[string]string{"smtp": "smtpd.587", "imap": "imapd.143", "pop": "pop3d.110"}[protocol]
	if security == "tls" {
		service = map[string]string{"smtp": "smtpd.465", "imap": "imapd.993", "pop": "pop3d.995"}[protocol]
	}
	conn, err := net.Dial("tcp", in.Address(service))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(waiting)); err != nil {
		t.Fatal(err)
	}
	c := &saslConn{t: t, protocol: protocol, conn: conn, in: bufio.NewReader(conn)}
	if security == "tls" {
		c.secure()
	}
	c.line()
	if security == "starttls" {
		c.ask()
		c.send("%s", map[string]string{"smtp": "STARTTLS", "imap": "s STARTTLS", "pop": "STLS"}[protocol])
		c.line()
		c.secure()
	}
	c.ask()
	return c
}

// login runs an exchange to its end.
func (c *saslConn) login(mechanism string, credentials sasl.Credentials) (ok bool, last string) {
	c.t.Helper()
	credentials.Host, credentials.Service, credentials.Offered = "mail.indigo.test", c.protocol, c.offered
	if c.state != nil {
		credentials.Bindings = sasl.Bindings(c.state, c.state.PeerCertificates[0])
	}
	client, err := sasl.NewClient(mechanism, credentials)
	if err != nil {
		c.t.Fatal(err)
	}
	response, err := client.Next(nil)
	if err != nil {
		c.t.Fatal(err)
	}
	line := map[string]string{"smtp": "AUTH ", "imap": "a AUTHENTICATE ", "pop": "AUTH "}[c.protocol] + mechanism
	if response != nil {
		line += " " + base64.StdEncoding.EncodeToString(response)
	}
	for {
		c.send("%s", line)
		s := c.line()
		text, more := strings.CutPrefix(s, map[string]string{"smtp": "334 ", "imap": "+ ", "pop": "+ "}[c.protocol])
		if !more {
			ok = strings.HasPrefix(s, map[string]string{"smtp": "235 ", "imap": "a OK", "pop": "+OK"}[c.protocol])
			if ok {
				if err := client.Finish(); err != nil {
					c.t.Errorf("%s %s: %v", c.protocol, mechanism, err)
				}
			}
			return ok, s
		}
		challenge, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			c.t.Fatal(err)
		}
		if response, err = client.Next(challenge); err != nil {
			c.t.Fatalf("%s %s: %v", c.protocol, mechanism, err)
		}
		line = base64.StdEncoding.EncodeToString(response)
	}
}

// quit waits for the connection's end: POP3 lets one session have a mailbox.
func (c *saslConn) quit() {
	c.t.Helper()
	c.send("%s", map[string]string{"smtp": "QUIT", "imap": "q LOGOUT", "pop": "QUIT"}[c.protocol])
	if _, err := io.Copy(io.Discard, c.in); err != nil {
		c.t.Error(err)
	}
}

// TestSASLMatrix: every kind of user by every mechanism, over SMTP, IMAP and POP3, in clear, over STARTTLS and over TLS from the first byte.
func TestSASLMatrix(t *testing.T) {
	in := up(t)
	importSASLUsers(t, in)
	failed := map[string]string{"smtp": "535 5.7.8 authorization failed (#5.7.8)", "imap": "a NO [AUTHENTICATIONFAILED] authorization failed (#5.7.8)", "pop": "-ERR [AUTH] authorization failed (#5.7.8)"}
	for _, protocol := range []string{"smtp", "imap", "pop"} {
		for _, security := range []string{"clear", "starttls", "tls"} {
			for _, mechanism := range sasl.Names() {
				if mechanism == "EXTERNAL" || strings.Contains(mechanism, "OA") {
					continue
				}
				_, plus := strings.CutSuffix(mechanism, "-PLUS")
				if want := security != "clear" || !plus && !sasl.NeedsTLS(mechanism); slices.Contains(dialSASL(t, in, protocol, security).offered, mechanism) != want {
					t.Errorf("%s %s: %s is offered: %v", protocol, security, mechanism, !want)
					continue
				} else if !want {
					continue
				}
				for _, c := range []struct {
					user, password string
					ok             bool
				}{
					{"both@indigo.test", "supersecret", true},
					{"both@indigo.test", "wrong", false},
					{"keys@indigo.test", "supersecret", strings.HasPrefix(mechanism, "SCRAM-SHA-256") || sasl.NeedsTLS(mechanism)},
					{"alice@indigo.test", password, sasl.NeedsTLS(mechanism)},
					{"nobody@indigo.test", "supersecret", false},
				} {
					conn := dialSASL(t, in, protocol, security)
					ok, last := conn.login(mechanism, sasl.Credentials{User: c.user, Password: c.password})
					conn.quit()
					if ok != c.ok || !ok && last != failed[protocol] {
						t.Errorf("%s %s %s %s %s: %s", protocol, security, mechanism, c.user, c.password, last)
					}
				}
			}
		}
	}
	// The wiki's salted password (2761, 2789), which qmail-remote takes with SALTED_PASSWORD.
	salted := []byte("\xa8\xba\xc1\xa2\x4c\x7a\xa2\x72\x56\x30\xc9\xab\x68\x13\xa6\x31\xb3\x66\xc7\x9c\x6b\xc9\x59\xbf\x34\x4d\x3a\xf8\xe6\x85\xa3\x75")
	if ok, last := dialSASL(t, in, "smtp", "tls").login("SCRAM-SHA-256-PLUS", sasl.Credentials{User: "both@indigo.test", Salted: salted}); !ok {
		t.Errorf("salted password: %s", last)
	}
}

// TestPasswordsForSASL: what IndiMail's options store is what the mechanisms find (wiki 2588-2654).
func TestPasswordsForSASL(t *testing.T) {
	in := up(t)
	want := func(mechanism string, want bool) {
		t.Helper()
		// The instance sees a change within a tenth of a second.
		deadline := time.Now().Add(waiting)
		for {
			conn := dialSASL(t, in, "smtp", "tls")
			ok, last := false, "not offered"
			if slices.Contains(conn.offered, mechanism) {
				ok, last = conn.login(mechanism, sasl.Credentials{User: "alice@indigo.test", Password: password})
			}
			conn.quit()
			if ok == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %s", mechanism, last)
			}
		}
	}
	file := passwordFile(t)
	set := func(options ...string) {
		command(t, in, append([]string{"user", "passwd", "alice@indigo.test", "--password-file", file, "--force"}, options...)...)
	}
	set("--keep-clear")
	for _, mechanism := range []string{"CRAM-MD5", "CRAM-RIPEMD", "DIGEST-MD5", "SCRAM-SHA-512-PLUS", "PLAIN", "LOGIN"} {
		want(mechanism, true)
	}
	set("--scram", "SCRAM-SHA-1")
	want("SCRAM-SHA-1-PLUS", true)
	want("CRAM-MD5", false)
	want("SCRAM-SHA-256", false)
	want("PLAIN", true)
	set("--keep-clear", "--scram", "SCRAM-SHA-256")
	for _, mechanism := range []string{"CRAM-SHA512", "SCRAM-SHA-256-PLUS", "SCRAM-SHA-1", "PLAIN"} {
		want(mechanism, true)
	}
	set("--stored")
	want("CRAM-MD5", false)
	control(t, in, "enable_cram", "1\n")
	command(t, in, "reload")
	want("CRAM-MD5", true)
	want("DIGEST-MD5", true)
	want("PLAIN", false)
	// A service that does not ask the directory takes none of its users, by whatever mechanism.
	set("--keep-clear")
	want("SCRAM-SHA-256", true)
	control(t, in, "authmodules", "sys-checkpwd\n")
	command(t, in, "reload")
	want("SCRAM-SHA-256", false)
	want("CRAM-MD5", false)
}
