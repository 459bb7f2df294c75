package e2e

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/remote"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/tlsx"
	"github.com/indigomail/indigo/test/instance"
	"github.com/indigomail/indigo/test/postfix"
)

// stripped is a connection on which somebody takes STARTTLS out of what the server offers.
type stripped struct{ net.Conn }

func (s stripped) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	copy(p, bytes.ReplaceAll(p[:n], []byte("STARTTLS"), []byte("XSTRIPPD")))
	return n, err
}

type letter struct{ *bytes.Reader }

func (l letter) Size() int64 { return l.Reader.Size() }

// sendBy delivers one message to a recipient by the code of the queue's service, by a line of smtproutes; the relay is verified by the certificates in ca.
func sendBy(t *testing.T, ca, route, to string, strip bool) queue.Result {
	t.Helper()
	return sendWith(t, "", ca, route, to, strip)
}

// sendWith is sendBy with a directory of certificates.
func sendWith(t *testing.T, certs, ca, route, to string, strip bool) queue.Result {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "control"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"smtproutes": route, "remote_tls_ca": ca} {
		if err := os.WriteFile(filepath.Join(dir, "control", name), []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	snapshot, err := settings.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	dialer := &net.Dialer{}
	d, err := remote.New(remote.Config{
		Settings: func() *settings.View { return snapshot.View("queue") }, Hostname: func() string { return "near.test" }, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
		Certificates: func() string { return certs },
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if strip && err == nil {
				conn = stripped{conn}
			}
			return conn, err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	rcpt, err := addr.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	return d.Deliver(within(t, time.Minute), &queue.Delivery{
		Host: rcpt.Domain, Envelope: &queue.Envelope{Sender: addr.Address{Local: "alice", Domain: "near.test"}}, Recipients: []queue.Recipient{{Address: rcpt}},
		Content: letter{bytes.NewReader([]byte("Subject: by " + route[strings.LastIndex(route, " ")+1:] + "\r\n\r\ntext\r\n"))},
	})[0]
}

// securities are the ways to reach a server: by STARTTLS that somebody has taken out, by STARTTLS, and by TLS from the first byte.
var securities = []string{"clear", "starttls", "tls"}

// passwordMechanisms are those of SASL that a password is enough for.
func passwordMechanisms() []string {
	return slices.DeleteFunc(sasl.Names(), func(m string) bool { return m == "EXTERNAL" || strings.Contains(m, "OA") })
}

// offers tells whether a server offered a mechanism in a dialogue.
func offers(dialogue []string, mechanism string) bool {
	return slices.ContainsFunc(dialogue, func(line string) bool {
		_, list, found := strings.Cut(line, "AUTH ")
		return found && strings.HasPrefix(line, "< 250") && slices.Contains(strings.Fields(list), mechanism)
	})
}

// grid gives what came of mechanisms and securities at a server as rows of Markdown: neighbours with the same in one.
func grid(server string, mechanisms []string, cells map[string]string) string {
	var b strings.Builder
	var names []string
	row := ""
	for _, m := range append(slices.Clone(mechanisms), "") {
		this := cells[m+" clear"] + " | " + cells[m+" starttls"] + " | " + cells[m+" tls"]
		if len(names) > 0 && (m == "" || this != row) {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", server, strings.Join(names, ", "), row)
			names = nil
		}
		names, row = append(names, m), this
	}
	return b.String()
}

// TestSendingThroughPostfix logs in at Debian's postfix with Dovecot's SASL by each mechanism that Dovecot has.
func TestSendingThroughPostfix(t *testing.T) {
	need(t, "dovecot")
	if why := postfix.Missing(); why != "" {
		missing(t, why)
	}
	mechanisms := []string{"SCRAM-SHA-256", "SCRAM-SHA-1", "DIGEST-MD5", "CRAM-MD5", "PLAIN", "LOGIN"}
	in := up(t)
	dir, peerDir := folder(t), folder(t)
	pem, err := os.ReadFile(filepath.Join(in.Ready.Data, "certs", "servercert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	certificate := filepath.Join(dir, "cert.pem")
	if err := os.WriteFile(certificate, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	name := func(mechanism, security string) string { return strings.ToLower(mechanism) + "." + security }
	var users strings.Builder
	for _, m := range mechanisms {
		for _, s := range securities {
			fmt.Fprintf(&users, "%s:{PLAIN}sekret\n", name(m, s))
		}
	}
	passwd := filepath.Join(dir, "users")
	if err := os.WriteFile(passwd, []byte(users.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "sasl")
	dovecot(t, fmt.Sprintf(`auth_mechanisms = %s
passdb {
  driver = passwd-file
  args = scheme=PLAIN username_format=%%u %s
}
userdb {
  driver = static
  args = uid=65534 gid=65534 home=/nonexistent
}
service auth {
  unix_listener %s {
    mode = 0666
  }
}
`, strings.ToLower(strings.Join(mechanisms, " ")), passwd, socket))
	implicit := freePort(t)
	p := startPostfix(t, postfix.Config{
		Dir: peerDir, Port: freePort(t), Users: []string{"bob@postfix.test"},
		Services: []string{fmt.Sprintf("127.0.0.1:%d inet n - n - 200 smtpd -o smtpd_tls_wrappermode=yes", implicit)},
		Settings: []string{
			"smtpd_sasl_auth_enable = yes", "smtpd_sasl_type = dovecot", "smtpd_sasl_path = " + socket, "smtpd_sasl_security_options = noanonymous",
			"smtpd_tls_security_level = may", "smtpd_tls_cert_file = " + certificate, "smtpd_tls_key_file = " + certificate, "smtpd_recipient_restrictions = permit_sasl_authenticated, reject",
			"mynetworks = 192.0.2.1/32",
		},
	})
	route := func(mechanism, security, password string) string {
		_, port, _ := net.SplitHostPort(p.Address())
		more := ""
		if security == "tls" {
			port, more = fmt.Sprint(implicit), ",SMTPS=1"
		}
		return fmt.Sprintf(":[127.0.0.1]:%s %s %s AUTH_SMTP=%s%s", port, name(mechanism, security), password, mechanism, more)
	}
	cells := map[string]string{}
	all := passwordMechanisms()
	for _, m := range all {
		for _, s := range securities {
			cell := m + " " + s
			want := "logged in"
			if !slices.Contains(mechanisms, m) {
				want = "not offered"
			} else if s == "clear" && sasl.NeedsTLS(m) {
				want = "not tried"
			}
			r := sendBy(t, certificate, route(m, s, "sekret"), "bob@postfix.test", s == "clear")
			switch {
			case r.Err != nil && !offers(r.Dialogue, m):
				cells[cell] = "not offered"
			case r.Err == nil:
				err := instance.Await(within(t, waiting), "postfix names the mechanism", func() (bool, error) {
					return strings.Contains(p.Log(), "sasl_method="+m+", sasl_username="+name(m, s)), nil
				})
				if err != nil {
					t.Errorf("%s: %v", cell, err)
				}
				cells[cell] = "logged in"
			case !strings.Contains(strings.Join(r.Dialogue, "\n"), "> AUTH"):
				cells[cell] = "not tried"
			default:
				cells[cell] = "failed"
			}
			if cells[cell] != want {
				t.Errorf("%s: %v\n%s", cell, r.Err, strings.Join(r.Dialogue, "\n"))
			}
			if want == "logged in" {
				if r := sendBy(t, certificate, route(m, s, "wrong"), "bob@postfix.test", s == "clear"); r.Err == nil || r.Err.Code != 454 || !strings.Contains(r.Err.Text, "Remote host said: 535 5.7.8") {
					t.Errorf("%s, wrong password: %v\n%s", cell, r.Err, strings.Join(r.Dialogue, "\n"))
				}
			}
		}
	}
	table := grid("Postfix with Dovecot 2.3", all, cells)
	t.Log("\n" + table)
	documented(t, table)
	// Without AUTH_SMTP it is the strongest.
	strongest := strings.TrimSuffix(route("PLAIN", "starttls", "sekret"), " AUTH_SMTP=PLAIN")
	if r := sendBy(t, certificate, strongest, "bob@postfix.test", false); r.Err != nil || !strings.Contains(strings.Join(r.Dialogue, "\n"), "> AUTH SCRAM-SHA-256 (hidden)") {
		t.Errorf("the strongest: %v\n%s", r.Err, strings.Join(r.Dialogue, "\n"))
	}
	// PLAIN in clear, where that is allowed; and no login, which postfix refuses.
	if r := sendBy(t, certificate, route("PLAIN", "clear", "sekret")+",REMOTE_PLAIN_AUTH=1", "bob@postfix.test", true); r.Err != nil {
		t.Errorf("PLAIN in clear: %v\n%s", r.Err, strings.Join(r.Dialogue, "\n"))
	}
	if r := sendBy(t, certificate, ":[127.0.0.1]:"+fmt.Sprint(implicit)+":0:0 /none", "bob@postfix.test", false); r.Err == nil || !r.Err.Temporary() {
		t.Errorf("an entry that is not there: %v", r.Err)
	}
}

// TestSendingThroughIndigo logs in at another instance by every mechanism, with channel binding, too.
func TestSendingThroughIndigo(t *testing.T) {
	far := up(t)
	ca := filepath.Join(far.Ready.Data, "certs", "servercert.pem")
	importSASLUsers(t, far)
	mechanisms := passwordMechanisms()
	route := func(mechanism, security, password string) string {
		_, port, _ := net.SplitHostPort(far.Address(map[string]string{"clear": "smtpd.587", "starttls": "smtpd.587", "tls": "smtpd.465"}[security]))
		more := ""
		if security == "tls" {
			more = ",SMTPS=1"
		}
		return fmt.Sprintf(":[127.0.0.1]:%s both@indigo.test %s AUTH_SMTP=%s%s", port, password, mechanism, more)
	}
	cells := map[string]string{}
	for _, m := range mechanisms {
		for _, s := range securities {
			cell, want := m+" "+s, "logged in"
			if s == "clear" && (sasl.NeedsTLS(m) || strings.HasSuffix(m, "-PLUS")) {
				want = "not tried"
			}
			r := sendBy(t, ca, route(m, s, "supersecret"), "alice@indigo.test", s == "clear")
			switch {
			case r.Err == nil:
				cells[cell] = "logged in"
			case !strings.Contains(strings.Join(r.Dialogue, "\n"), "> AUTH"):
				cells[cell] = "not tried"
			default:
				cells[cell] = "failed"
			}
			if cells[cell] != want || r.Err == nil && !strings.Contains(strings.Join(r.Dialogue, "\n"), "> AUTH "+m) {
				t.Errorf("%s: %v\n%s", cell, r.Err, strings.Join(r.Dialogue, "\n"))
			}
			if want == "logged in" {
				if r := sendBy(t, ca, route(m, s, "wrong"), "alice@indigo.test", s == "clear"); r.Err == nil || r.Err.Code != 454 || !strings.Contains(r.Err.Text, "535 5.7.8") {
					t.Errorf("%s, wrong password: %v\n%s", cell, r.Err, strings.Join(r.Dialogue, "\n"))
				}
			}
		}
	}
	table := grid("Indigo", mechanisms, cells)
	t.Log("\n" + table)
	documented(t, table)
	// The wiki's salted password (2786).
	const salted = "a8bac1a24c7aa2725630c9ab6813a631b366c79c6bc959bf344d3af8e685a375"
	if r := sendBy(t, ca, route("SCRAM-SHA-256", "starttls", salted)+",SALTED_PASSWORD=1", "alice@indigo.test", false); r.Err != nil {
		t.Errorf("salted password: %v\n%s", r.Err, strings.Join(r.Dialogue, "\n"))
	}
	if r := sendBy(t, ca, strings.TrimSuffix(route("PLAIN", "starttls", "supersecret"), " AUTH_SMTP=PLAIN"), "alice@indigo.test", false); r.Err != nil || !slices.Contains(r.Dialogue, "> AUTH SCRAM-SHA-512-PLUS (hidden)") {
		t.Errorf("the strongest: %v\n%s", r.Err, strings.Join(r.Dialogue, "\n"))
	}
}

// TestSendingByCertificate: Debian's postfix relays for a certificate that it knows by its fingerprint (permit_tls_clientcerts), and for no other; Indigo shows
// clientcert.pem to it, and judges its certificate by tlshosts.
func TestSendingByCertificate(t *testing.T) {
	if why := postfix.Missing(); why != "" {
		missing(t, why)
	}
	dir, peerDir := folder(t), folder(t)
	certs := filepath.Join(dir, "certs")
	if err := os.MkdirAll(filepath.Join(certs, "tlshosts"), 0o700); err != nil {
		t.Fatal(err)
	}
	pairs := map[string]string{"postfix": filepath.Join(dir, "postfix.pem"), "listed": filepath.Join(certs, "listed.pem"), "other": filepath.Join(certs, "other.pem")}
	for name, file := range pairs {
		if err := tlsx.SelfSigned(file, []string{name + ".test", "127.0.0.1"}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tlsx.ReadPair(pairs["listed"])
	if err != nil {
		t.Fatal(err)
	}
	known := filepath.Join(dir, "clients")
	if err := os.WriteFile(known, []byte(strings.ToUpper(tlsx.Colons(tlsx.Fingerprints(pair.Leaf)[0]))+" near\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := startPostfix(t, postfix.Config{
		Dir: peerDir, Port: freePort(t), Users: []string{"bob@postfix.test"},
		Settings: []string{
			"smtpd_tls_security_level = may", "smtpd_tls_cert_file = " + pairs["postfix"], "smtpd_tls_key_file = " + pairs["postfix"], "smtpd_tls_ask_ccert = yes",
			"smtpd_tls_fingerprint_digest = sha256", "relay_clientcerts = texthash:" + known, "smtpd_recipient_restrictions = permit_tls_clientcerts, reject", "mynetworks = 192.0.2.1/32",
		},
	})
	for _, tc := range []struct{ name, own, host, want, shown string }{
		{"listed", "listed", "", "", ""},
		{"other", "other", "", "554 5.7.1", ""},
		{"none", "", "", "554 5.7.1", ""},
		{"listed, and the server's is the right one", "listed", "postfix", "", "certificate verified for 127.0.0.1"},
		{"listed, and the server's is not", "listed", "other", "451 4.7.5", "certificate not verified"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for to, from := range map[string]string{"clientcert.pem": tc.own, "tlshosts/127.0.0.1.pem": tc.host} {
				file := filepath.Join(certs, to)
				_ = os.Remove(file)
				if from == "" {
					continue
				}
				if err := os.Link(pairs[from], file); err != nil {
					t.Fatal(err)
				}
			}
			r := sendWith(t, certs, "", ":"+p.Address(), "bob@postfix.test", false)
			got := ""
			if r.Err != nil {
				got = r.Err.Reply()
			}
			if !strings.HasPrefix(got, tc.want) || tc.want == "" && got != "" || !strings.Contains(strings.Join(r.Dialogue, "\n"), tc.shown) {
				t.Errorf("%q, want %q\n%s", got, tc.want, strings.Join(r.Dialogue, "\n"))
			}
		})
	}
}
