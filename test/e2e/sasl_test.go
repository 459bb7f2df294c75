package e2e

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/test/instance"
)

// The wiki's users: one with keys, clear text and a hash (2700), one with keys and a hash (2667). Both have the password supersecret.
const saslUsers = `address,password,scram
both@indigo.test,$5$j59A2PxyHYy5q5OE$wzif22gTmb3SPhbtQN6Z9jzvNB5JA54He8pN.midpu7,"{SCRAM-SHA-256}4096,fIne4ExD9h3vufYZ,k9LD3a/7yk3u7o5tVPTRR4IYHqgd7khpwbKLzvNGnos=,LCuD6/yMc5cjmCMrBAj+es27icwu5eoI5Drqmh4P+mQ=:a8bac1a24c7aa2725630c9ab6813a631b366c79c6bc959bf344d3af8e685a375:supersecret"
keys@indigo.test,$5$7.Jwtq6QiQaLsguq$RXUJkrI5PUhtqGa4jKGbLPZaLmJiGdpqXhe68qtqyE/,"{SCRAM-SHA-256}4096,HWvKDMG1R9hSSt/e,thk3p9gV604V9A2chgmW/ovPgucUtFRhHJgfeWi2pJ4=,IvIc99nIBYdKFqW+ZTz1Ioz5nIxWXJDegzPlkq41tic="
`

func importSASLUsers(t *testing.T, in *instance.Instance) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "users.csv")
	if err := os.WriteFile(file, []byte(saslUsers), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, in, "user", "import", file)
}

// TestGSASL logs the wiki's users in by GNU SASL: each mechanism, in clear and over STARTTLS, with channel binding and without, over
// SMTP and IMAP; and those who must not get in.
func TestGSASL(t *testing.T) {
	need(t, "gsasl")
	in := up(t)
	importSASLUsers(t, in)
	ca := filepath.Join(in.Ready.Data, "certs", "servercert.pem")
	run := func(protocol, security, mechanism, user, password string) (bool, string) {
		service := map[string]string{"smtp": "smtpd.587", "imap": "imapd.143"}[protocol]
		args := []string{"--" + protocol, "--connect", in.Address(service), "--hostname", "indigo.test", "--authentication-id", user + "@indigo.test", "--password", password, "--mechanism", mechanism}
		switch security {
		case "clear":
			args = append(args, "--no-starttls")
		case "unbound":
			args = append(args, "--x509-ca-file="+ca, "--no-cb")
		default:
			args = append(args, "--x509-ca-file="+ca)
			if security == "TLS 1.2" {
				args = append(args, "--priority=NORMAL:-VERS-ALL:+VERS-TLS1.2")
			}
		}
		code, out := peer(t, "gsasl", args...)
		return code == 0 && strings.Contains(out, "Client authentication finished"), out
	}
	const wrong = "wrong"
	for _, protocol := range []string{"smtp", "imap"} {
		for _, c := range []struct {
			security, mechanism, user, password string
			ok                                  bool
		}{
			{"clear", "CRAM-MD5", "both", "supersecret", true},
			{"clear", "CRAM-MD5", "both", wrong, false},
			{"clear", "CRAM-MD5", "keys", "supersecret", false}, // no clear text is kept
			{"clear", "DIGEST-MD5", "both", "supersecret", true},
			{"clear", "DIGEST-MD5", "both", wrong, false},
			{"clear", "SCRAM-SHA-256", "keys", "supersecret", true},
			{"clear", "SCRAM-SHA-256", "both", "supersecret", true},
			{"clear", "SCRAM-SHA-256", "alice", password, false}, // only a hash is kept
			{"clear", "SCRAM-SHA-256", "nobody", "supersecret", false},
			{"clear", "SCRAM-SHA-1", "both", "supersecret", true}, // derived of the clear text
			{"clear", "PLAIN", "both", "supersecret", false},
			{"clear", "LOGIN", "both", "supersecret", false},
			{"TLS", "PLAIN", "both", "supersecret", true},
			{"TLS", "PLAIN", "alice", password, true},
			{"TLS", "LOGIN", "keys", "supersecret", true},
			{"TLS", "CRAM-MD5", "both", "supersecret", true},
			{"TLS", "DIGEST-MD5", "both", "supersecret", true},
			{"unbound", "SCRAM-SHA-256", "keys", "supersecret", true},
			{"unbound", "SCRAM-SHA-1", "both", "supersecret", true},
			{"TLS", "SCRAM-SHA-256-PLUS", "keys", "supersecret", true},
			{"TLS", "SCRAM-SHA-256-PLUS", "keys", wrong, false},
			{"TLS", "SCRAM-SHA-1-PLUS", "both", "supersecret", true},
			{"TLS 1.2", "SCRAM-SHA-256-PLUS", "keys", "supersecret", true},
			{"TLS 1.2", "SCRAM-SHA-256-PLUS", "keys", wrong, false},
		} {
			if ok, out := run(protocol, c.security, c.mechanism, c.user, c.password); ok != c.ok {
				t.Errorf("%s %s %s %s: in: %v\n%s", protocol, c.security, c.mechanism, c.user, ok, out)
			}
		}
	}
}

// TestRealms: the name with its realm in it, in a realm of its own, and without either.
func TestRealms(t *testing.T) {
	need(t, "gsasl")
	in := up(t)
	importSASLUsers(t, in)
	for _, c := range []struct {
		user, realm string
		ok          bool
	}{
		{"both@indigo.test", "mail.indigo.test", true}, {"both", "mail.indigo.test", true}, {"both", "indigo.test", true}, {"both@indigo.test", "elsewhere.test", true},
		{"both", "elsewhere.test", false},
	} {
		code, out := peer(t, "gsasl", "--smtp", "--connect", in.Address("smtpd.587"), "--no-starttls", "--hostname", "mail.indigo.test", "--mechanism", "DIGEST-MD5",
			"--authentication-id", c.user, "--realm", c.realm, "--password", "supersecret")
		if (code == 0) != c.ok {
			t.Errorf("%s in %s: exit code %d\n%s", c.user, c.realm, code, out)
		}
	}
}

// TestSASLClients logs in with swaks, curl and Python, over STARTTLS, TLS from the first byte and in clear.
func TestSASLClients(t *testing.T) {
	need(t, "swaks", "curl", "python3")
	if code, _ := peer(t, "perl", "-MAuthen::SASL", "-e", "1"); code != 0 {
		missing(t, "swaks has no Authen::SASL")
	}
	in := up(t)
	importSASLUsers(t, in)
	host := func(service string) (string, string) {
		host, port, err := net.SplitHostPort(in.Address(service))
		if err != nil {
			t.Fatal(err)
		}
		return host, port
	}
	for _, mechanism := range []string{"CRAM-MD5", "CRAM-SHA1", "DIGEST-MD5"} {
		for _, security := range [][]string{{"smtpd.587"}, {"smtpd.587", "--tls"}, {"smtpd.465", "--tls-on-connect"}} {
			address, port := host(security[0])
			args := append([]string{"--server", address, "--port", port, "--quit-after", "AUTH", "--auth", mechanism, "--auth-user", "both@indigo.test", "--timeout", "20"}, security[1:]...)
			if _, out := peer(t, "swaks", append(args, "--auth-password", "supersecret")...); !strings.Contains(out, "235 2.7.0") {
				t.Errorf("swaks %s %v: %s", mechanism, security, out)
			}
			if _, out := peer(t, "swaks", append(args, "--auth-password", "wrong")...); !strings.Contains(out, "535 5.7.8") {
				t.Errorf("swaks %s %v, wrong password: %s", mechanism, security, out)
			}
		}
	}
	ca := filepath.Join(in.Ready.Data, "certs", "servercert.pem")
	for _, mechanism := range []string{"CRAM-MD5", "DIGEST-MD5", "PLAIN", "LOGIN", "+APOP"} {
		for service, scheme := range map[string]string{"imapd.143": "imap", "imapd.993": "imaps", "pop3d.110": "pop3", "pop3d.995": "pop3s", "smtpd.587": "smtp", "smtpd.465": "smtps"} {
			if mechanism == "+APOP" && !strings.HasPrefix(scheme, "pop3") {
				continue
			}
			for _, security := range []string{"--ssl-reqd", ""} {
				secret := mechanism == "PLAIN" || mechanism == "LOGIN"
				if security == "" && (strings.HasSuffix(scheme, "s") || secret) {
					continue
				}
				for password, want := range map[string]bool{"supersecret": true, "wrong": false} {
					args := []string{"--silent", "--show-error", "--verbose", "--max-time", "20", "--cacert", ca, "--user", "both@indigo.test:" + password, "--login-options", "AUTH=" + mechanism, scheme + "://" + in.Address(service) + "/"}
					if security != "" {
						args = append(args, security)
					}
					if strings.HasPrefix(scheme, "smtp") {
						args = append(args, "--request", "NOOP")
					}
					if code, out := peer(t, "curl", args...); (code == 0) != want {
						t.Errorf("curl %s %s %s: exit code %d\n%s", mechanism, scheme, security, code, out)
					}
				}
			}
		}
	}
	script := filepath.Join("..", "testdata", "sasl.py")
	if code, out := peer(t, "python3", script, in.Address("smtpd.587"), in.Address("smtpd.465"), in.Address("imapd.143"), in.Address("pop3d.110"), ca); code != 0 {
		t.Errorf("python: exit code %d\n%s", code, out)
	}
}

// TestAuthOffers: what is announced hangs on the directory, on the settings and on TLS.
func TestAuthOffers(t *testing.T) {
	in := up(t)
	offers := func(service string) (inClear, overTLS string) {
		t.Helper()
		ehlo := func(conn net.Conn) string {
			fmt.Fprintf(conn, "EHLO x\r\n")
			return firstAuth(readReply(t, conn))
		}
		conn, err := net.Dial("tcp", in.Address(service))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		readReply(t, conn)
		inClear = ehlo(conn)
		fmt.Fprintf(conn, "STARTTLS\r\n")
		readReply(t, conn)
		secret := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
		return inClear, ehlo(secret)
	}
	want := func(when, inClear, overTLS string) {
		t.Helper()
		// What is kept is searched for anew some time after a change.
		deadline := time.Now().Add(waiting)
		a, b := offers("smtpd.587")
		for (a != inClear || b != overTLS) && time.Now().Before(deadline) {
			a, b = offers("smtpd.587")
		}
		if a != inClear || b != overTLS {
			t.Fatalf("%s: in clear %q, over TLS %q", when, a, b)
		}
	}
	const cram = "DIGEST-MD5 CRAM-SHA512 CRAM-SHA384 CRAM-SHA256 CRAM-SHA224 CRAM-SHA1 CRAM-RIPEMD CRAM-MD5"
	want("hashes only", "", "PLAIN LOGIN")
	importSASLUsers(t, in)
	const all = "SCRAM-SHA-512 SCRAM-SHA-256 SCRAM-SHA-1 " + cram
	want("clear text", all, "SCRAM-SHA-512-PLUS SCRAM-SHA-256-PLUS SCRAM-SHA-1-PLUS "+all+" PLAIN LOGIN")
	command(t, in, "user", "remove", "both@indigo.test", "--yes")
	want("keys", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN LOGIN")
	control(t, in, "enable_cram", "1\n")
	for _, name := range []string{"DISABLE_AUTH_CRAM_SHA512", "DISABLE_DIGEST_MD5", "DISABLE_LOGIN", "DISABLE_SCRAM_SHA256_PLUS"} {
		command(t, in, "settings", "set", name, "1", "--service", "smtpd.587")
	}
	command(t, in, "reload")
	less := strings.NewReplacer("CRAM-SHA512 ", "", "DIGEST-MD5 ", "").Replace(cram)
	want("settings", "SCRAM-SHA-256 "+less, "SCRAM-SHA-256 "+less+" PLAIN")
	control(t, in, "force_tls", "1\n")
	command(t, in, "reload")
	want("FORCE_TLS", "", "SCRAM-SHA-256 "+less+" PLAIN")
}

// readReply reads an SMTP reply of a server that says nothing behind it.
func readReply(t *testing.T, conn net.Conn) string {
	t.Helper()
	var all []byte
	b := make([]byte, 1)
	for start := 0; ; {
		if _, err := conn.Read(b); err != nil {
			t.Fatalf("%q: %v", all, err)
		}
		if all = append(all, b[0]); b[0] == '\n' {
			if all[start+3] != '-' {
				return string(all)
			}
			start = len(all)
		}
	}
}

// firstAuth gives the mechanisms in a reply to EHLO.
func firstAuth(reply string) string {
	for line := range strings.SplitSeq(reply, "\r\n") {
		if len(line) > 4 {
			if list, ok := strings.CutPrefix(line[4:], "AUTH "); ok {
				return list
			}
		}
	}
	return ""
}
