package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/probe"
	"github.com/indigomail/indigo/test/postfix"
)

// TestPostfixDovecot: the seed's Postfix with Dovecot's SASL, and its TLS for AUTH only, asked by `indigo auth test` and `indigo probe`; Dovecot's IMAP too.
func TestPostfixDovecot(t *testing.T) {
	need(t, "dovecot", "openssl")
	if why := postfix.Missing(); why != "" {
		missing(t, why)
	}
	if out, err := exec.Command("dovecot", "--version").Output(); err != nil || !strings.HasPrefix(string(out), "2.3.") {
		missing(t, fmt.Sprintf("Dovecot %s: the configuration is of version 2.3", strings.TrimSpace(string(out))))
	}
	dir := folder(t)
	users, socket, cert, key := filepath.Join(dir, "users"), filepath.Join(dir, "auth"), filepath.Join(dir, "postfix.pem"), filepath.Join(dir, "postfix.key")
	if err := os.WriteFile(users, []byte("ann@postfix.test:{PLAIN}"+password+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, out := peer(t, "openssl", "req", "-new", "-x509", "-days", "3650", "-nodes", "-subj", "/CN=mx.postfix.test", "-addext", "subjectAltName=DNS:mx.postfix.test", "-out", cert, "-keyout", key); code != 0 {
		t.Fatal(out)
	}
	imap := dovecot(t, fmt.Sprintf(`auth_mechanisms = plain login cram-md5 digest-md5 scram-sha-1 scram-sha-256
passdb {
  driver = passwd-file
  args = username_format=%%u %s
}
userdb {
  driver = static
  args = uid=%d gid=%d home=%s/home
}
service auth {
  unix_listener %s {
    mode = 0666
  }
}
`, users, mailOwner, mailOwner, dir, socket))
	start := func(settings ...string) *postfix.Instance {
		t.Helper()
		return startPostfix(t, postfix.Config{Dir: folder(t), Port: freePort(t), Users: []string{"ann@postfix.test"}, Settings: append([]string{
			"myhostname = mx.postfix.test", "smtpd_sasl_type = dovecot", "smtpd_sasl_path = " + socket, "smtpd_sasl_auth_enable = yes", "broken_sasl_auth_clients = yes",
		}, settings...)})
	}
	closed := []string{"mynetworks = 192.0.2.0/24", "smtpd_recipient_restrictions = permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination"}
	file := passwordFile(t)
	test := func(wantCode int, want string, args ...string) {
		t.Helper()
		r, err := indigo.Run(within(t, time.Minute), append([]string{"auth", "test", "ann@postfix.test", "--password-file", file}, args...)...)
		if err != nil || r.Code != wantCode || !strings.Contains(strings.Join(strings.Fields(r.Out+r.Err), " "), want) {
			t.Errorf("%v: %v, exit code %d, no %q\n%s%s", args, err, r.Code, want, r.Out, r.Err)
		}
	}
	report := func(address string, args ...string) (r probe.Report, code int) {
		t.Helper()
		result, err := indigo.Run(within(t, time.Minute), append([]string{"probe", address, "--json", "--ca", cert, "--tls-name", "mx.postfix.test"}, args...)...)
		if err == nil {
			err = json.Unmarshal([]byte(result.Out), &r)
		}
		if err != nil {
			t.Fatalf("%v: %s", err, result.Err)
		}
		return r, result.Code
	}
	verdicts := func(r probe.Report) string {
		var b strings.Builder
		for _, f := range r.Findings {
			fmt.Fprintf(&b, "%s %s: %s\n", f.Verdict, f.What, f.Text)
		}
		return b.String()
	}

	// The seed's first step: AUTH that works, with no security.
	p := start(append(closed, "smtpd_tls_security_level = none")...)
	for _, mechanism := range []string{"PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256"} {
		test(0, mechanism+" works", "--server", p.Address(), "--plain", "--mech", mechanism)
		test(0, mechanism+" works", "--server", imap, "--protocol", "imap", "--plain", "--mech", mechanism)
	}
	test(0, "S: 235 2.7.0 Authentication successful logged in", "--server", p.Address(), "--plain", "--mech", "PLAIN")
	test(2, "does not offer STARTTLS", "--server", p.Address())
	if r, code := report(p.Address()); code != 1 || !strings.Contains(verdicts(r), "wrong AUTH in clear: ") || !strings.Contains(verdicts(r), "wrong STARTTLS: not offered") || !strings.Contains(verdicts(r), "ok relay: closed") {
		t.Errorf("exit code %d\n%s", code, verdicts(r))
	}
	// The second: TLS for AUTH only.
	p = start(append(closed, "smtpd_tls_security_level = may", "smtpd_tls_auth_only = yes", "smtpd_tls_cert_file = "+cert, "smtpd_tls_key_file = "+key)...)
	test(1, "PLAIN fails 503 5.5.1", "--server", p.Address(), "--plain", "--mech", "PLAIN")
	test(0, "PLAIN works", "--server", p.Address(), "--ca", cert, "--tls-name", "mx.postfix.test", "--mech", "PLAIN")
	test(0, "SCRAM-SHA-256 works", "--server", p.Address(), "--ca", cert, "--tls-name", "mx.postfix.test", "--mech", "all")
	test(2, "certificate", "--server", p.Address(), "--tls-name", "mx.postfix.test")
	if r, code := report(p.Address(), "--users"); code != 0 || len(r.AuthClear) != 0 || len(r.AuthTLS) < 6 || r.Certificate == nil || !r.Certificate.Verified || len(r.Relay) != 19 {
		t.Errorf("exit code %d\n%s", code, verdicts(r))
	}
	// A wrong password.
	if err := os.WriteFile(file, []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	test(1, "535 5.7.8", "--server", p.Address(), "--insecure", "--mech", "PLAIN")
	test(1, "[AUTHENTICATIONFAILED]", "--server", imap, "--protocol", "imap", "--plain", "--mech", "PLAIN")
	// An open relay: the package has this host's addresses in mynetworks.
	p = start("smtpd_tls_security_level = may", "smtpd_tls_cert_file = "+cert, "smtpd_tls_key_file = "+key)
	if r, code := report(p.Address()); code != 1 || !strings.Contains(verdicts(r), "wrong relay: open to this client") {
		t.Errorf("exit code %d\n%s", code, verdicts(r))
	}
}
