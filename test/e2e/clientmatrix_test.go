package e2e

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/test/instance"
	"github.com/indigomail/indigo/test/postfix"
)

// attempt is one log-in by a program.
type attempt struct {
	mechanism, security, password string // the mechanism is "" where the program chooses
	user                          string // the address
	service, host, port           string
	certificate                   string // of the client, with its key, for EXTERNAL
}

// mailClient is a program that logs in over one protocol.
type mailClient struct {
	name, protocol string
	// mechanisms are those that its authors name.
	mechanisms []string
	// cannot tells what it cannot do of that over a security; nil: nothing.
	cannot func(mechanism, security string) bool
	login  func(attempt) (in bool, out string)
}

// refusedToken begins the challenge that tells what is wrong with a token; curl goes away at XOAUTH2's.
const refusedToken = "eyJzdGF0dXMiOiI0MDEi"

// isToken tells whether the password of an attempt is a token.
func isToken(mechanism string) bool { return mechanism == "OAUTHBEARER" || mechanism == "XOAUTH2" }

// commands are the ways of logging in that are not of SASL.
var commands = []string{"APOP", "USER command", "LOGIN command"}

// clientCertificate makes an authority for an instance's clients, and certificates of the addresses by it.
func clientCertificate(t *testing.T, authority string, addresses []string) map[string]string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, blocks ...*pem.Block) string {
		var all []byte
		for _, b := range blocks {
			all = append(all, pem.EncodeToMemory(b)...)
		}
		if err := os.WriteFile(name, all, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "clients"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, root, root, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	write(authority, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	files := map[string]string{}
	for i, address := range addresses {
		leaf := &x509.Certificate{SerialNumber: big.NewInt(int64(i) + 2), Subject: pkix.Name{CommonName: address}, NotBefore: root.NotBefore, NotAfter: root.NotAfter, EmailAddresses: []string{address}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		der, err := x509.CreateCertificate(rand.Reader, leaf, root, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		files[address] = write(filepath.Join(t.TempDir(), "client.pem"), &pem.Block{Type: "CERTIFICATE", Bytes: der}, &pem.Block{Type: "PRIVATE KEY", Bytes: private})
	}
	return files
}

// needClients skips where one of them is missing.
func needClients(t *testing.T) {
	t.Helper()
	needExim(t, "msmtp", "fetchmail", "gsasl", "swaks", "curl", "python3", debianExim, gsaslExim)
	if why := postfix.Missing(); why != "" {
		missing(t, why)
	}
	if found, _ := filepath.Glob("/usr/lib/*/sasl2/libscram.so"); len(found) == 0 {
		missing(t, "postfix has no SCRAM (Debian package libsasl2-modules)")
	}
	if code, _ := peer(t, "perl", "-MAuthen::SASL", "-e", "1"); code != 0 {
		missing(t, "swaks has no Authen::SASL")
	}
}

// attemptAt is one at the instance's service for the client's protocol: "clear", "starttls" or "tls".
func attemptAt(t *testing.T, in *instance.Instance, c mailClient, mechanism, security, password, user string) attempt {
	t.Helper()
	service := map[string]string{"smtp": "smtpd.587", "imap": "imapd.143", "pop3": "pop3d.110"}[c.protocol]
	if security == "tls" {
		service = map[string]string{"smtp": "smtpd.465", "imap": "imapd.993", "pop3": "pop3d.995"}[c.protocol]
	}
	host, port, err := net.SplitHostPort(in.Address(service))
	if err != nil {
		t.Fatal(err)
	}
	return attempt{mechanism: mechanism, security: security, password: password, user: user, service: service, host: host, port: port}
}

// mailClients are the programs. Postfix gets its login from postfixLogin, once it is known what it will be asked.
func mailClients(t *testing.T, in *instance.Instance) []mailClient {
	t.Helper()
	ca := filepath.Join(in.Ready.Data, "certs", "servercert.pem")
	dir := t.TempDir()
	script := filepath.Join("..", "testdata", "login.py")
	// GNU SASL's own program does not begin with TLS.
	begins := func(_, security string) bool { return security == "tls" }
	return []mailClient{
		{"msmtp", "smtp", []string{"PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256", "OAUTHBEARER", "XOAUTH2", "EXTERNAL"}, nil, func(a attempt) (bool, string) {
			auth := cmp.Or(strings.ToLower(a.mechanism), "on")
			tls := fmt.Sprintf("tls on\ntls_trust_file %s\ntls_starttls %s\n", ca, map[string]string{"starttls": "on", "tls": "off"}[a.security])
			if a.security == "clear" {
				tls = "tls off\n"
			}
			if a.certificate != "" {
				tls += fmt.Sprintf("tls_cert_file %[1]s\ntls_key_file %[1]s\n", a.certificate)
			}
			conf := filepath.Join(dir, "msmtprc")
			secret := "password " + a.password
			if isToken(a.mechanism) {
				// As people have it, from what gets them tokens.
				if err := os.WriteFile(filepath.Join(dir, "msmtptoken"), []byte(a.password), 0o600); err != nil {
					t.Fatal(err)
				}
				secret = "passwordeval cat " + filepath.Join(dir, "msmtptoken")
			}
			text := fmt.Sprintf("account default\nhost %s\nport %s\nfrom %s\nauth %s\nuser %s\n%s\n%s", a.host, a.port, a.user, auth, a.user, secret, tls)
			if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			letter := filepath.Join(dir, "letter")
			if err := os.WriteFile(letter, []byte("Subject: by msmtp\n\ntext\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			code, out := peer(t, "sh", "-c", fmt.Sprintf("msmtp --debug -C %s alice@indigo.test <%s", conf, letter))
			return code == 0, out
		}},
		{"gsasl", "smtp", gsaslMechanisms, begins, gsaslLogin(t, "smtp", ca)},
		{"gsasl", "imap", gsaslMechanisms, begins, gsaslLogin(t, "imap", ca)},
		{"swaks", "smtp", []string{"PLAIN", "LOGIN", "CRAM-MD5", "CRAM-SHA1", "DIGEST-MD5"}, nil, func(a attempt) (bool, string) {
			args := []string{"--server", a.host, "--port", a.port, "--quit-after", "AUTH", "--auth", cmp.Or(a.mechanism, "ANY"), "--auth-user", a.user, "--auth-password", a.password, "--timeout", "20"}
			if a.security != "clear" {
				args = append(args, map[string]string{"starttls": "--tls", "tls": "--tls-on-connect"}[a.security])
			}
			code, out := peer(t, "swaks", args...)
			return code == 0 && strings.Contains(out, "235 2.7.0"), out
		}},
		{"curl", "smtp", []string{"PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "OAUTHBEARER", "XOAUTH2", "EXTERNAL"}, nil, curlLogin(t, in, "smtp", ca)},
		{"curl", "imap", []string{"PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "OAUTHBEARER", "XOAUTH2", "EXTERNAL"}, nil, curlLogin(t, in, "imap", ca)},
		{"curl", "pop3", []string{"PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "OAUTHBEARER", "XOAUTH2", "EXTERNAL", "APOP"}, nil, curlLogin(t, in, "pop3", ca)},
		{"Python", "smtp", []string{"PLAIN", "LOGIN", "CRAM-MD5"}, nil, pythonLogin(t, "smtp", script, ca)},
		{"Python", "imap", []string{"PLAIN", "CRAM-MD5", "LOGIN command"}, nil, pythonLogin(t, "imap", script, ca)},
		{"Python", "pop3", []string{"APOP", "USER command"}, nil, pythonLogin(t, "pop3", script, ca)},
		{"fetchmail", "imap", []string{"CRAM-MD5", "EXTERNAL", "LOGIN command"}, nil, fetchmailLogin(t, "imap", ca)},
		{"fetchmail", "pop3", []string{"APOP", "CRAM-MD5", "USER command"}, nil, fetchmailLogin(t, "pop3", ca)},
		{"Exim", "smtp", []string{"PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256-PLUS", "EXTERNAL"}, eximCannot, eximLogin(t)},
		{"postfix", "smtp", []string{"PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-512"}, nil, nil},
	}
}

// TestClientMatrix logs in with programs that people have, by each mechanism that they and we speak, in clear, over STARTTLS and over TLS, once by
// the right and once by a wrong password or token, and prints what came of it as docs/auth.md has it. What is said of a mechanism is what the server
// wrote down of the login, too.
func TestClientMatrix(t *testing.T) {
	needClients(t)
	in := up(t)
	dir := t.TempDir()
	clients := mailClients(t, in)
	_, columns, _ := strings.Cut(strings.SplitN(saslUsers, "\n", 3)[1], ",")
	users := "address,password,scram\n"
	var addresses []string
	address := func(c mailClient) string { return strings.ToLower(c.name) + "@indigo.test" }
	for _, c := range clients {
		if !slices.Contains(addresses, address(c)) {
			addresses = append(addresses, address(c))
			users += address(c) + "," + columns + "\n"
		}
	}
	file := filepath.Join(dir, "users.csv")
	if err := os.WriteFile(file, []byte(users), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, in, "user", "import", file)
	certificates := clientCertificate(t, filepath.Join(in.Ready.Data, "certs", "clientca.pem"), addresses)
	command(t, in, "settings", "set", "AUTH_EXTERNAL", "1")
	tokens := startIssuer(t)
	trust(t, in, tokens)
	if err := send(t, in.Address("smtpd.25"), "joe@far.test", []string{"fetchmail@indigo.test"}, "Subject: to be fetched\n\ntext\n"); err != nil {
		t.Fatal(err)
	}
	awaitMail(t, in, "to be fetched")
	var mechanisms []string
	for _, m := range append(sasl.Names(), "EXTERNAL") {
		if !slices.Contains(mechanisms, m) {
			mechanisms = append(mechanisms, m)
		}
	}
	mechanisms = append(mechanisms, commands...)
	needsTLS := func(m string) bool {
		return sasl.NeedsTLS(m) || strings.HasSuffix(m, "-PLUS") || m == "EXTERNAL" || strings.HasSuffix(m, " command")
	}
	try := func(c mailClient, m, s, password string) attempt {
		a := attemptAt(t, in, c, m, s, password, address(c))
		switch {
		case m == "EXTERNAL" && password == "supersecret":
			a.certificate = certificates[a.user]
		case isToken(m) && slices.Contains(c.mechanisms, m):
			// The wrong one is for something else.
			a.password = tokens.Token(a.user, map[string]any{"aud": map[string]string{"supersecret": "mail", "wrong": "shop"}[password]})
		}
		return a
	}
	var attempts []attempt
	for _, m := range mechanisms {
		for _, s := range securities {
			attempts = append(attempts, try(clients[len(clients)-1], m, s, "supersecret"), try(clients[len(clients)-1], m, s, "wrong"))
		}
	}
	clients[len(clients)-1].login = postfixLogin(t, attempts)
	type use struct {
		User, Protocol, Mechanism string
		TLS                       bool
	}
	var wanted []use
	var table strings.Builder
	table.WriteString("| client | mechanism | without TLS | STARTTLS | TLS |\n|---|---|---|---|---|\n")
	for _, c := range clients {
		var rows []string // mechanisms, and behind the first tab what came of them
		for _, m := range mechanisms {
			if slices.Contains(commands, m) && (m == "LOGIN command" && c.protocol != "imap" || m != "LOGIN command" && c.protocol != "pop3") {
				continue
			}
			if !slices.Contains(c.mechanisms, m) {
				// The program is asked all the same where it lets itself be asked: what cannot be must fail.
				if c.name != "Python" && c.name != "fetchmail" && !slices.Contains(commands, m) {
					if in, out := c.login(try(c, m, "starttls", "supersecret")); in {
						t.Errorf("%s %s can %s\n%s", c.name, c.protocol, m, out)
					}
				}
				continue
			}
			var cells []string
			for _, s := range securities {
				if c.cannot != nil && c.cannot(m, s) {
					cells = append(cells, "client cannot")
					continue
				}
				want := s != "clear" || !needsTLS(m)
				in, out := c.login(try(c, m, s, "supersecret"))
				if in != want {
					t.Errorf("%s %s %s %s: in: %v\n%s", c.name, c.protocol, m, s, in, out)
				}
				cell := "refused as it should be"
				switch {
				case in:
					cell = "works"
					u := use{strings.ToLower(c.name), c.protocol, m, s != "clear"}
					if !slices.Contains(wanted, u) {
						wanted = append(wanted, u)
					}
				case want:
					cell = "FAILS"
				}
				cells = append(cells, cell)
				if want {
					if in, out := c.login(try(c, m, s, "wrong")); in || m != "EXTERNAL" && !strings.Contains(out, "authorization failed (#5.7.8)") && (m != "XOAUTH2" || !strings.Contains(out, refusedToken)) {
						t.Errorf("%s %s %s %s, wrong password: in: %v\n%s", c.name, c.protocol, m, s, in, out)
					}
				}
			}
			row := strings.Join(cells, " | ")
			if last := len(rows) - 1; last >= 0 && strings.HasSuffix(rows[last], "\t"+row) {
				rows[last] = strings.TrimSuffix(rows[last], "\t"+row) + ", " + m + "\t" + row
			} else {
				rows = append(rows, m+"\t"+row)
			}
		}
		for _, row := range append(rows, "others\tclient cannot | client cannot | client cannot") {
			fmt.Fprintf(&table, "| %s, %s | %s |\n", c.name, strings.ToUpper(c.protocol), strings.ReplaceAll(row, "\t", " | "))
		}
	}
	t.Log("\n" + table.String())
	documented(t, table.String())
	var lost []use
	err := instance.Await(within(t, waiting), "the server has all logins", func() (bool, error) {
		var report struct{ Users []use }
		if err := json.Unmarshal([]byte(command(t, in, "auth", "report", "--json")), &report); err != nil {
			return false, err
		}
		lost = slices.DeleteFunc(slices.Clone(wanted), func(u use) bool { return slices.Contains(report.Users, u) })
		return len(lost) == 0, nil
	})
	if err != nil {
		t.Errorf("%v: the server knows nothing of %v\n%s", err, lost, command(t, in, "auth", "report"))
	}
}

// TestClientChoice lets the programs choose themselves, over STARTTLS: what they take of all that is offered, and whether a user with a hash
// alone gets in then.
func TestClientChoice(t *testing.T) {
	needClients(t)
	in := up(t)
	lines := strings.Split(saslUsers, "\n")
	_, columns, _ := strings.Cut(lines[1], ",")
	hash, _, _ := strings.Cut(columns, ",")
	clients := slices.DeleteFunc(mailClients(t, in), func(c mailClient) bool { return c.name == "Python" && c.protocol != "smtp" })
	users, known := lines[0]+"\n", map[string]bool{}
	address := func(kind string, c mailClient) string { return kind + strings.ToLower(c.name) + "@indigo.test" }
	for _, c := range clients {
		if !known[c.name] {
			known[c.name] = true
			users += address("all", c) + "," + columns + "\n" + address("hash", c) + "," + hash + ",\n"
		}
	}
	file := filepath.Join(t.TempDir(), "users.csv")
	if err := os.WriteFile(file, []byte(users), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, in, "user", "import", file)
	for _, kind := range []string{"all", "hash"} {
		if err := send(t, in.Address("smtpd.25"), "joe@far.test", []string{kind + "fetchmail@indigo.test"}, "Subject: to be fetched by "+kind+"\n\nto be fetched\n"); err != nil {
			t.Fatal(err)
		}
		awaitMail(t, in, "to be fetched by "+kind)
	}
	last := &clients[len(clients)-1]
	at := func(kind string, c mailClient) attempt {
		return attemptAt(t, in, c, "", "starttls", "supersecret", address(kind, c))
	}
	last.login = postfixLogin(t, []attempt{at("all", *last), at("hash", *last)})
	var table strings.Builder
	table.WriteString("| client | takes | a user with a hash alone |\n|---|---|---|\n")
	for _, c := range clients {
		ok, out := c.login(at("all", c))
		if !ok {
			t.Errorf("%s %s: not in\n%s", c.name, c.protocol, out)
			continue
		}
		took := ""
		err := instance.Await(within(t, waiting), "the server has the login", func() (bool, error) {
			var report struct {
				Users []struct{ User, Protocol, Mechanism string }
			}
			if err := json.Unmarshal([]byte(command(t, in, "auth", "report", "--json")), &report); err != nil {
				return false, err
			}
			for _, u := range report.Users {
				if u.User == "all"+strings.ToLower(c.name) && u.Protocol == c.protocol {
					took = u.Mechanism
				}
			}
			return took != "", nil
		})
		if err != nil {
			t.Errorf("%s %s: %v", c.name, c.protocol, err)
		}
		became := "does not get in"
		if ok, out := c.login(at("hash", c)); ok {
			became = "gets in"
		} else {
			t.Logf("%s %s: %s", c.name, c.protocol, out)
		}
		fmt.Fprintf(&table, "| %s, %s | %s | %s |\n", c.name, strings.ToUpper(c.protocol), took, became)
	}
	t.Log("\n" + table.String())
	documented(t, table.String())
}

// TestDownTheList has swaks go through what is offered, for a user of whom a hash alone is kept, where failures of this host count: it comes to LOGIN with
// its fourth try. A wrong password gets in by none, and all that it was tried with is counted.
func TestDownTheList(t *testing.T) {
	need(t, "swaks")
	if code, _ := peer(t, "perl", "-MAuthen::SASL", "-e", "1"); code != 0 {
		missing(t, "swaks has no Authen::SASL")
	}
	in := up(t)
	importSASLUsers(t, in)
	command(t, in, "settings", "set", "AUTH_EXEMPT", "none")
	command(t, in, "reload")
	try := func(secret string) string {
		_, out := peer(t, "swaks", "--server", in.Address("smtpd.587"), "--tls", "--auth-user", "alice@indigo.test", "--auth-password", secret, "--quit-after", "AUTH", "--timeout", "20")
		return out
	}
	out := try("wrong")
	if n := strings.Count(out, "<~* 535 5.7.8"); n != 5 || strings.Contains(out, "235 2.7.0") {
		t.Errorf("a wrong password failed %d times:\n%s", n, out)
	}
	if locks := command(t, in, "auth", "locks", "list", "--all"); !strings.Contains(locks, "alice@indigo.test") {
		t.Errorf("what was counted: %s", locks)
	}
	command(t, in, "auth", "locks", "clear", "--all")
	if out := try(password); strings.Count(out, "<~* 535 5.7.8") != 3 || !strings.Contains(out, "AUTH LOGIN") || !strings.Contains(out, "235 2.7.0") {
		t.Errorf("the right password:\n%s", out)
	}
}

var gsaslMechanisms = []string{"PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256-PLUS", "EXTERNAL"}

func gsaslLogin(t *testing.T, protocol, ca string) func(attempt) (bool, string) {
	return func(a attempt) (bool, string) {
		args := []string{"--" + protocol, "--connect", net.JoinHostPort(a.host, a.port), "--hostname", "indigo.test", "--authentication-id", a.user, "--password", a.password}
		if a.mechanism != "" {
			args = append(args, "--mechanism", a.mechanism)
		}
		switch {
		case a.security == "clear":
			args = append(args, "--no-starttls")
		default:
			args = append(args, "--x509-ca-file="+ca)
		}
		if strings.HasPrefix(a.mechanism, "SCRAM-") && !strings.HasSuffix(a.mechanism, "-PLUS") {
			args = append(args, "--no-cb")
		}
		if a.mechanism == "EXTERNAL" {
			args = append(args, "--authorization-id", "")
		}
		if a.certificate != "" {
			args = append(args, "--x509-cert-file="+a.certificate, "--x509-key-file="+a.certificate)
		}
		code, out := peer(t, "gsasl", args...)
		return code == 0 && strings.Contains(out, "Client authentication finished"), out
	}
}

func curlLogin(t *testing.T, in *instance.Instance, protocol, ca string) func(attempt) (bool, string) {
	return func(a attempt) (bool, string) {
		scheme, mechanism := protocol, a.mechanism
		if a.security == "tls" {
			scheme += "s"
		}
		if mechanism == "APOP" {
			mechanism = "+APOP"
		}
		args := []string{"--silent", "--show-error", "--verbose", "--max-time", "20", "--cacert", ca, "--user", a.user + ":" + a.password, "--login-options", "AUTH=" + cmp.Or(mechanism, "*"), scheme + "://" + net.JoinHostPort(a.host, a.port) + "/"}
		if a.mechanism == "EXTERNAL" {
			args[8] = a.user + ":"
		}
		if a.mechanism == "XOAUTH2" {
			// Where both are offered, curl takes the other, whatever it is told.
			command(t, in, "settings", "set", "DISABLE_OAUTHBEARER", "1", "--service", a.service)
			command(t, in, "reload")
			defer func() {
				command(t, in, "settings", "unset", "DISABLE_OAUTHBEARER", "--service", a.service)
				command(t, in, "reload")
			}()
		}
		if isToken(a.mechanism) {
			args[8] = a.user
			args = append(args, "--oauth2-bearer", a.password)
		}
		if a.security != "clear" {
			args = append(args, "--ssl-reqd")
		}
		if a.certificate != "" {
			args = append(args, "--cert", a.certificate, "--key", a.certificate)
		}
		if protocol == "smtp" {
			args = append(args, "--request", "NOOP")
		}
		code, out := peer(t, "curl", args...)
		return code == 0, out
	}
}

func pythonLogin(t *testing.T, protocol, script, ca string) func(attempt) (bool, string) {
	return func(a attempt) (bool, string) {
		code, out := peer(t, "python3", script, protocol, a.security, a.mechanism, a.host, a.port, ca, a.user, a.password)
		return code == 0, out
	}
}

// fetchmailLogin fetches the user's one message and leaves it there.
func fetchmailLogin(t *testing.T, protocol, ca string) func(attempt) (bool, string) {
	dir := t.TempDir()
	return func(a attempt) (bool, string) {
		proto, auth := protocol, map[string]string{"CRAM-MD5": "cram-md5", "EXTERNAL": "external"}[a.mechanism]
		switch {
		case a.mechanism == "":
			auth = "any"
		case auth == "":
			auth = "password"
		}
		if a.mechanism == "APOP" {
			proto, auth = "apop", "any"
		}
		tls := "sslproto ''"
		if a.security != "clear" {
			tls = "sslproto 'TLS1.2+' sslcertck sslcertfile '" + ca + "' sslcommonname 'mail.indigo.test'"
		}
		if a.security == "tls" {
			tls += " ssl"
		}
		if a.certificate != "" {
			tls += " sslcert '" + a.certificate + "' sslkey '" + a.certificate + "'"
		}
		box, conf := filepath.Join(dir, "box"), filepath.Join(dir, "fetchmailrc")
		os.Remove(box)
		text := fmt.Sprintf("poll %s proto %s service %s auth %s timeout 20 user '%s' password '%s' %s keep fetchall mda 'cat >%s'\n", a.host, proto, a.port, auth, a.user, a.password, tls, box)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		code, out := peer(t, "env", "HOME="+dir, "FETCHMAILHOME="+dir, "fetchmail", "-v", "-v", "-f", conf, "--nodetach", "--nosyslog", "--pidfile", filepath.Join(dir, "pid"), "--idfile", filepath.Join(dir, "ids"))
		letter, _ := os.ReadFile(box)
		return code == 0 && strings.Contains(string(letter), "to be fetched"), out
	}
}

// postfixLogin starts a postfix that has a transport for each attempt, which the sender's name chooses.
func postfixLogin(t *testing.T, attempts []attempt) func(attempt) (bool, string) {
	t.Helper()
	name := func(a attempt) string {
		user, _, _ := strings.Cut(a.user, "@")
		return strings.ToLower(user + "-" + a.mechanism + "-" + a.security + "-" + a.password)
	}
	var services, senders []string
	for _, a := range attempts {
		if strings.ContainsRune(a.mechanism, ' ') {
			continue
		}
		level, wrapper := "encrypt", "no"
		switch a.security {
		case "clear":
			level = "none"
		case "tls":
			wrapper = "yes"
		}
		services = append(services, fmt.Sprintf("%s unix - - n - - smtp -o syslog_name=postfix/%[1]s -o smtp_sasl_auth_enable=yes -o smtp_sasl_mechanism_filter=%s -o smtp_sasl_password_maps=static:%s:%s"+
			" -o smtp_sasl_security_options=noanonymous -o smtp_sasl_tls_security_options=noanonymous -o smtp_tls_security_level=%s -o smtp_tls_wrappermode=%s",
			name(a), strings.ToLower(a.mechanism), a.user, a.password, level, wrapper))
		senders = append(senders, fmt.Sprintf("%s@postfix.test=%[1]s:[%s]:%s", name(a), a.host, a.port))
	}
	dir := folder(t)
	p := startPostfix(t, postfix.Config{
		Dir: dir, Port: freePort(t), Users: []string{"bob@postfix.test"}, Services: services,
		Settings: []string{"sender_dependent_default_transport_maps = inline:{" + strings.Join(senders, ", ") + "}", "smtpd_recipient_restrictions = permit_mynetworks, reject"},
	})
	return func(a attempt) (bool, string) {
		if err := send(t, p.Address(), name(a)+"@postfix.test", []string{"alice@indigo.test"}, "Subject: by postfix\n\ntext\n"); err != nil {
			t.Fatal(err)
		}
		var in bool
		var out string
		err := instance.Await(within(t, waiting), "postfix says what became of "+name(a), func() (bool, error) {
			text, err := os.ReadFile(filepath.Join(dir, "log"))
			if err != nil {
				return false, err
			}
			out = ""
			for line := range strings.SplitSeq(string(text), "\n") {
				if strings.Contains(line, "postfix/"+name(a)+"/") {
					out += line + "\n"
				}
			}
			in = strings.Contains(out, "status=sent")
			return strings.Contains(out, "status="), nil
		})
		if err != nil {
			t.Fatalf("%v\n%s", err, p.Log())
		}
		return in, out
	}
}

// documented compares a table with the one of docs/auth.md, which is of Debian 12's programs.
func documented(t *testing.T, table string) {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "auth.md"))
	if err != nil {
		t.Fatal(err)
	}
	release, _ := os.ReadFile("/etc/debian_version")
	switch {
	case strings.Contains(string(doc), table):
	case strings.HasPrefix(string(release), "12."):
		t.Error("docs/auth.md has another table")
	default:
		t.Logf("docs/auth.md has another table, of Debian 12; this is %q", release)
	}
}
