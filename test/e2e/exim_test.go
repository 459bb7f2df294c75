package e2e

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/test/instance"
)

// What test/peers has unpacked and built: Debian's package would take Postfix's away.
const (
	debianExim = "/var/cache/indigo-peers/exim4/usr/sbin/exim4"
	gsaslExim  = "/var/cache/indigo-peers/exim-gsasl/exim"
)

// eximConfig is an Exim that listens in clear, with STARTTLS, and with TLS from the first byte.
type eximConfig struct {
	program string
	// main and authenticators are what its configuration has besides; DIR in them is its folder.
	main, authenticators string
	// files are written into its folder, for its own user alone.
	files map[string]string
	// sasl is set where SASL's configuration is among them.
	sasl bool
}

// exim is a running one.
type exim struct {
	t                      *testing.T
	dir, address, implicit string
}

func needExim(t *testing.T, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "Exim can be started by root only")
	}
	need(t, programs...)
	if _, err := user.Lookup("Debian-exim"); err != nil {
		missing(t, "there is no user Debian-exim")
	}
}

// eximOwner is whom Exim becomes when it gives up root.
func eximOwner(t *testing.T) (uid, gid int) {
	t.Helper()
	owner, err := user.Lookup("Debian-exim")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ = strconv.Atoi(owner.Uid)
	gid, _ = strconv.Atoi(owner.Gid)
	return uid, gid
}

// startExim starts an Exim that takes mail of those who have logged in, and keeps it in its queue.
func startExim(t *testing.T, c eximConfig) *exim {
	t.Helper()
	x := &exim{t: t, dir: folder(t)}
	uid, gid := eximOwner(t)
	plain, implicit := freePort(t), freePort(t)
	x.address, x.implicit = net.JoinHostPort("127.0.0.1", fmt.Sprint(plain)), net.JoinHostPort("127.0.0.1", fmt.Sprint(implicit))
	for _, name := range []string{"spool", "log"} {
		if err := os.Mkdir(filepath.Join(x.dir, name), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range c.files {
		if err := os.WriteFile(filepath.Join(x.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(x.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.Chown(filepath.Join(x.dir, e.Name()), uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	text := strings.ReplaceAll(fmt.Sprintf(`primary_hostname = mx.exim.test
exim_path = %s
spool_directory = DIR/spool
log_file_path = DIR/log/%%s
pid_file_path = DIR/spool/pid
log_selector = +tls_cipher +smtp_mailauth
local_interfaces = 127.0.0.1
daemon_smtp_ports = %d : %d
tls_on_connect_ports = %[3]d
keep_environment = SASL_CONF_PATH
deliver_drop_privilege
queue_only
acl_smtp_rcpt = rcpt
%[4]s
begin acl
rcpt:
  accept authenticated = *
  deny message = log in first
begin authenticators
%[5]s
`, c.program, plain, implicit, c.main, c.authenticators), "DIR", x.dir)
	conf := filepath.Join(x.dir, "conf")
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(c.program, "-C", conf, "-bdf")
	if c.sasl {
		cmd.Env = append(os.Environ(), "SASL_CONF_PATH="+x.dir)
	}
	out, err := os.Create(filepath.Join(x.dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	// Those that it starts are in its group, and end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("Exim's log:\n%s", x.log())
		}
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
	})
	err = instance.Await(within(t, waiting), "Exim listens", func() (bool, error) {
		conn, err := net.Dial("tcp", x.implicit)
		if err != nil {
			return false, nil
		}
		return true, conn.Close()
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, x.log())
	}
	return x
}

// log is what it has written.
func (x *exim) log() string {
	var all strings.Builder
	for _, name := range []string{"out", "log/main", "log/panic"} {
		text, err := os.ReadFile(filepath.Join(x.dir, name))
		if err == nil {
			all.Write(text)
		}
	}
	return all.String()
}

// eximTLS is the main part of the configuration that lets it do TLS with the certificate of an instance.
func eximTLS(t *testing.T, in *instance.Instance) (main string, files map[string]string) {
	t.Helper()
	pem, err := os.ReadFile(filepath.Join(in.Ready.Data, "certs", "servercert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return "tls_advertise_hosts = *\ntls_certificate = DIR/cert.pem\ntls_privatekey = DIR/cert.pem\n", map[string]string{"cert.pem": string(pem)}
}

// eximName is a mechanism's name as one of an authenticator.
func eximName(mechanism string) string {
	return strings.ReplaceAll(strings.ToLower(mechanism), "-", "_")
}

// ownAuthenticators are Exim's own, for the user alice.
const ownAuthenticators = `plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${if and{{eq{$auth2}{alice}}{eq{$auth3}{sekret}}}}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${if and{{eq{$auth1}{alice}}{eq{$auth2}{sekret}}}}
  server_set_id = $auth1
cram_md5:
  driver = cram_md5
  public_name = CRAM-MD5
  server_secret = ${if eq{$auth1}{alice}{sekret}fail}
  server_set_id = $auth1
`

// TestSendingThroughExim logs in at Debian's Exim, which has some mechanisms of its own and others by Cyrus SASL, and at one that has SCRAM by GNU
// SASL, with channel binding.
func TestSendingThroughExim(t *testing.T) {
	needExim(t, "saslpasswd2", debianExim, gsaslExim)
	in := up(t)
	main, files := eximTLS(t, in)
	cyrus := []string{"SCRAM-SHA-512", "SCRAM-SHA-256", "SCRAM-SHA-1", "DIGEST-MD5"}
	authenticators := ownAuthenticators
	for _, m := range cyrus {
		authenticators += fmt.Sprintf("%s:\n  driver = cyrus_sasl\n  public_name = %s\n  server_set_id = $auth1\n", eximName(m), m)
	}
	passwords := filepath.Join(folder(t), "sasldb")
	cmd := exec.Command("saslpasswd2", "-p", "-c", "-f", passwords, "-u", "mx.exim.test", "alice")
	cmd.Stdin = strings.NewReader("sekret\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("saslpasswd2: %v: %s", err, out)
	}
	if uid, gid := eximOwner(t); os.Chown(passwords, uid, gid) != nil {
		t.Fatal("Exim does not get its passwords")
	}
	files["exim.conf"] = "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: " + passwords + "\nmech_list: " + strings.Join(cyrus, " ") + "\n"
	debian := startExim(t, eximConfig{program: debianExim, main: main, authenticators: authenticators, files: files, sasl: true})
	_, files = eximTLS(t, in)
	gnu := []string{"SCRAM-SHA-256-PLUS", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-1"}
	authenticators = ""
	for _, m := range gnu {
		authenticators += fmt.Sprintf("%s:\n  driver = gsasl\n  public_name = %s\n  server_password = ${if eq{$auth1}{alice}{sekret}fail}\n  server_condition = true\n  server_set_id = $auth1\n  server_channelbinding = %t\n",
			eximName(m), m, strings.HasSuffix(m, "-PLUS"))
	}
	gsasl := startExim(t, eximConfig{program: gsaslExim, main: main + "tls_require_ciphers = NORMAL:-VERS-TLS1.3\n", authenticators: authenticators, files: files})
	newest := startExim(t, eximConfig{program: gsaslExim, main: main, authenticators: authenticators, files: files})

	route := func(x *exim, mechanism, security, password string) string {
		address, more := x.address, ""
		if security == "tls" {
			address, more = x.implicit, ",SMTPS=1"
		}
		_, port, _ := net.SplitHostPort(address)
		return fmt.Sprintf(":[127.0.0.1]:%s alice %s AUTH_SMTP=%s%s", port, password, mechanism, more)
	}
	deliver := func(route string, strip bool) queue.Result {
		return sendBy(t, filepath.Join(in.Ready.Data, "certs", "servercert.pem"), route, "bob@exim.test", strip)
	}
	var table strings.Builder
	table.WriteString("| server | mechanism | without TLS | STARTTLS | TLS |\n|---|---|---|---|---|\n")
	for _, server := range []struct {
		name       string
		x          *exim
		mechanisms []string
	}{
		{"Exim of Debian with Cyrus SASL", debian, append(cyrus, "CRAM-MD5", "PLAIN", "LOGIN")}, {"Exim with GNU SASL, TLS 1.2", gsasl, gnu}, {"Exim with GNU SASL, TLS 1.3", newest, gnu},
	} {
		cells := map[string]string{}
		for _, m := range server.mechanisms {
			for _, s := range securities {
				cell, want := m+" "+s, "logged in"
				if s == "clear" && (sasl.NeedsTLS(m) || strings.HasSuffix(m, "-PLUS")) {
					want = "not tried"
				} else if server.x == newest && strings.HasSuffix(m, "-PLUS") {
					want = "failed"
				}
				before := len(server.x.log())
				r := deliver(route(server.x, m, s, "sekret"), s == "clear")
				switch {
				case r.Err == nil:
					cells[cell] = "logged in"
					err := instance.Await(within(t, waiting), "Exim names the mechanism", func() (bool, error) {
						return strings.Contains(server.x.log()[before:], " A="+eximName(m)+":alice"), nil
					})
					if err != nil {
						t.Errorf("%s: %v", cell, err)
					}
				case !strings.Contains(strings.Join(r.Dialogue, "\n"), "> AUTH"):
					cells[cell] = "not tried"
				default:
					cells[cell] = "failed"
				}
				if cells[cell] != want {
					t.Errorf("%s, %s: %v\n%s", server.name, cell, r.Err, strings.Join(r.Dialogue, "\n"))
				}
				if want == "logged in" {
					if r := deliver(route(server.x, m, s, "wrong"), s == "clear"); r.Err == nil || r.Err.Code != 454 || !strings.Contains(r.Err.Text, "Remote host said: 535 ") {
						t.Errorf("%s, %s, wrong password: %v\n%s", server.name, cell, r.Err, strings.Join(r.Dialogue, "\n"))
					}
				}
			}
		}
		table.WriteString(grid(server.name, server.mechanisms, cells))
	}
	t.Log("\n" + table.String())
	documented(t, table.String())
}

// TestExternalAtExim logs in by the certificate that deliveries show; without one Exim offers nothing.
func TestExternalAtExim(t *testing.T) {
	needExim(t, debianExim)
	in := up(t)
	main, files := eximTLS(t, in)
	authority := filepath.Join(t.TempDir(), "ca.pem")
	own := clientCertificate(t, authority, []string{"alice@near.test"})["alice@near.test"]
	text, err := os.ReadFile(authority)
	if err != nil {
		t.Fatal(err)
	}
	files["ca.pem"] = string(text)
	x := startExim(t, eximConfig{program: debianExim, files: files, main: main + "tls_try_verify_hosts = *\ntls_verify_certificates = DIR/ca.pem\n", authenticators: `external:
  driver = external
  public_name = EXTERNAL
  server_advertise_condition = ${if eq{$tls_in_certificate_verified}{1}}
  server_param2 = ${certextract {subj_altname,mail,>:}{$tls_in_peercert}}
  server_condition = ${if def:auth2}
  server_set_id = $auth2
`})
	for _, way := range []string{x.address, x.implicit} {
		_, port, _ := net.SplitHostPort(way)
		for _, certificate := range []string{own, ""} {
			route := fmt.Sprintf(":[127.0.0.1]:%s alice@near.test none AUTH_SMTP=EXTERNAL,SMTPS=%d", port, map[bool]int{true: 1}[way == x.implicit])
			if certificate != "" {
				route += ",CLIENTCERT=" + certificate
			}
			r := sendBy(t, filepath.Join(in.Ready.Data, "certs", "servercert.pem"), route, "bob@exim.test", false)
			if said := strings.Contains(strings.Join(r.Dialogue, "\n"), "> AUTH EXTERNAL"); said != (certificate != "") || (r.Err == nil) != said {
				t.Errorf("%s: %v\n%s", route, r.Err, strings.Join(r.Dialogue, "\n"))
			}
		}
	}
	if n := strings.Count(x.log(), " A=external:alice@near.test "); n != 2 {
		t.Errorf("%d logins:\n%s", n, x.log())
	}
}

// eximCannot is what Exim's client does not begin with GNU SASL 2: SCRAM without -PLUS where there is something to bind to.
func eximCannot(mechanism, security string) bool {
	return strings.HasPrefix(mechanism, "SCRAM-") && !strings.HasSuffix(mechanism, "-PLUS") && security != "clear"
}

// eximLogin sends by Exim: Debian's, or for SCRAM the one with GNU SASL, which binds to TLS 1.2 only. Where it may choose it takes what its
// configuration names first, here CRAM-MD5.
func eximLogin(t *testing.T) func(attempt) (bool, string) {
	uid, gid := eximOwner(t)
	return func(a attempt) (bool, string) {
		program, dir := debianExim, folder(t)
		authenticators := func(mechanism string) string {
			switch {
			case mechanism == "PLAIN":
				return fmt.Sprintf("plain:\n  driver = plaintext\n  public_name = PLAIN\n  client_send = ^%s^%s\n", a.user, a.password)
			case mechanism == "LOGIN":
				return fmt.Sprintf("login:\n  driver = plaintext\n  public_name = LOGIN\n  client_send = : %s : %s\n", a.user, a.password)
			case mechanism == "CRAM-MD5":
				return fmt.Sprintf("cram_md5:\n  driver = cram_md5\n  public_name = CRAM-MD5\n  client_name = %s\n  client_secret = %s\n", a.user, a.password)
			case mechanism == "EXTERNAL":
				return "external:\n  driver = external\n  public_name = EXTERNAL\n  client_send = " + a.user + "\n"
			}
			program = gsaslExim
			if settings.IsSalted(a.password) {
				return fmt.Sprintf("%s:\n  driver = gsasl\n  public_name = %s\n  client_username = %s\n  client_password = not this\n  client_spassword = %s\n", eximName(mechanism), mechanism, a.user, a.password)
			}
			return fmt.Sprintf("%s:\n  driver = gsasl\n  public_name = %s\n  client_username = %s\n  client_password = %s\n  client_channelbinding = %t\n", eximName(mechanism), mechanism, a.user, a.password, strings.HasSuffix(mechanism, "-PLUS"))
		}
		wanted := authenticators(a.mechanism)
		if a.mechanism == "" {
			program, wanted = debianExim, authenticators("CRAM-MD5")+authenticators("PLAIN")
		}
		how := map[string]string{"clear": "hosts_avoid_tls = *", "starttls": "hosts_require_tls = *", "tls": "protocol = smtps"}[a.security]
		if strings.HasSuffix(a.mechanism, "-PLUS") {
			how += "\n  tls_require_ciphers = NORMAL:-VERS-TLS1.3"
		}
		for _, name := range []string{"spool", "log"} {
			if err := os.Mkdir(filepath.Join(dir, name), 0o750); err != nil {
				t.Fatal(err)
			}
		}
		if a.certificate != "" {
			text, err := os.ReadFile(a.certificate)
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, "client.pem"), text, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			how += fmt.Sprintf("\n  tls_certificate = %[1]s/client.pem\n  tls_privatekey = %[1]s/client.pem", dir)
		}
		conf := filepath.Join(dir, "conf")
		text := fmt.Sprintf("primary_hostname = mx.exim.test\nexim_path = %[1]s\nspool_directory = %[2]s/spool\nlog_file_path = %[2]s/log/%%s\nkeep_environment =\nqualify_domain = exim.test\n"+
			"begin authenticators\n%[3]s\nbegin routers\nall:\n  driver = manualroute\n  route_list = * %[4]s byname\n  self = send\n  transport = out\nbegin transports\nout:\n  driver = smtp\n  port = %[5]s\n  allow_localhost\n  hosts_require_auth = *\n  tls_verify_hosts =\n  tls_try_verify_hosts =\n  %[6]s\n",
			program, dir, wanted, a.host, a.port, how)
		if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || path == dir {
				return err
			}
			if path == conf {
				return nil
			}
			return os.Chown(path, uid, gid)
		}); err != nil {
			t.Fatal(err)
		}
		_, out := peer(t, "sh", "-c", fmt.Sprintf("printf 'Subject: by Exim\\n\\ntext\\n' | %s -C %s -v -odf -f %s alice@indigo.test", program, conf, a.user))
		log, _ := os.ReadFile(filepath.Join(dir, "log", "main"))
		return strings.Contains(string(log), " => alice@indigo.test") && strings.Contains(string(log), " A="), out + string(log)
	}
}

// TestSaltedPassword: the wiki's user both (2700) logs in by his salted password, which GNU SASL's library takes as what it is where Exim hands it over.
// GNU SASL's own program takes it for a password like any other (2741), whatever the server: what it sends is the proof of the 64 digits.
func TestSaltedPassword(t *testing.T) {
	needExim(t, "gsasl", gsaslExim)
	in := up(t)
	importSASLUsers(t, in)
	const salted = "a8bac1a24c7aa2725630c9ab6813a631b366c79c6bc959bf344d3af8e685a375"
	login, me := eximLogin(t), mailClient{protocol: "smtp"}
	for _, c := range []struct {
		secret string
		ok     bool
	}{{salted, true}, {strings.Replace(salted, "a", "b", 1), false}, {"supersecret", true}} {
		if ok, out := login(attemptAt(t, in, me, "SCRAM-SHA-256", "clear", c.secret, "both@indigo.test")); ok != c.ok {
			t.Errorf("%s: in: %v\n%s", c.secret, ok, out)
		}
	}
	_, out := peer(t, "gsasl", "--smtp", "--connect", in.Address("smtpd.587"), "--no-starttls", "--hostname", "indigo.test", "-a", "both@indigo.test", "--password", salted, "--mechanism", "SCRAM-SHA-256")
	var messages []string
	for _, line := range strings.Split(out, "\n") {
		text, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(strings.TrimSpace(line), "334 "))
		if err == nil && strings.Contains(string(text), "r=") {
			messages = append(messages, string(text))
		}
	}
	if len(messages) != 3 || !strings.Contains(out, "535 5.7.8") {
		t.Fatalf("the dialogue of gsasl:\n%s", out)
	}
	first, second := strings.TrimPrefix(messages[0], "n,,"), messages[1]
	last, proof, _ := strings.Cut(messages[2], ",p=")
	said := []byte(first + "," + second + "," + last)
	salt, err := base64.StdEncoding.DecodeString("fIne4ExD9h3vufYZ")
	if err != nil {
		t.Fatal(err)
	}
	key, err := pbkdf2.Key(sha256.New, salted, salt, 4096, sha256.Size)
	if err != nil {
		t.Fatal(err)
	}
	mac := func(key, text []byte) []byte {
		m := hmac.New(sha256.New, key)
		m.Write(text)
		return m.Sum(nil)
	}
	client := mac(key, []byte("Client Key"))
	stored := sha256.Sum256(client)
	want := mac(stored[:], said)
	subtle.XORBytes(want, want, client)
	if base64.StdEncoding.EncodeToString(want) != proof {
		t.Errorf("gsasl sent the proof %s, and that of the digits is %x", proof, want)
	}
}

// TestPasswordsForExim has Debian's Exim ask a serving process for passwords, with the authenticators that docs/dovecot.md names.
func TestPasswordsForExim(t *testing.T) {
	needExim(t, "swaks", "gsasl", debianExim)
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "dovecot.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, authenticators, ok := strings.Cut(string(doc), "```\nbegin authenticators\n")
	authenticators, _, _ = strings.Cut(authenticators, "```")
	if !ok {
		t.Fatal("docs/dovecot.md has no authenticators")
	}
	db := server(t, "mariadb")
	data := filepath.Join(folder(t), "data")
	if err := os.MkdirAll(filepath.Join(data, "control"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "control", "directorydsn"), []byte(db.DSN()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	in := again(t, data, "--user", "alice", "--password-file", passwordFile(t))
	stop(t, in)
	socket := filepath.Join(folder(t), "auth")
	control(t, in, "dovecotauthsocket", socket+"\n")
	control(t, in, "dovecotsocketowner", "Debian-exim:Debian-exim\n")
	in = again(t, data)
	for _, name := range []string{"nosmtp", "later"} {
		command(t, in, "user", "add", name+"@indigo.test", "--password-file", passwordFile(t))
	}
	command(t, in, "user", "flags", "nosmtp@indigo.test", "--set", "NO_SMTP")
	command(t, in, "user", "add", "clear@indigo.test", "--password-file", passwordFile(t), "--keep-clear")
	main, files := eximTLS(t, in)
	x := startExim(t, eximConfig{program: debianExim, main: main, authenticators: strings.ReplaceAll(authenticators, "/var/lib/indigo/public/auth", socket), files: files})
	try := func(mechanism, user, password, want string) {
		t.Helper()
		if code, text := swaksAuth(t, x.address, mechanism, user, password); code != want {
			t.Errorf("%s %s %s: %s, want %s: %s", mechanism, user, password, code, want, text)
		}
	}
	for _, mechanism := range []string{"PLAIN", "LOGIN"} {
		try(mechanism, "alice@indigo.test", password, "235")
		try(mechanism, "alice", password, "235")
		try(mechanism, "alice@indigo.test", "wrong", "535")
		try(mechanism, "nobody@indigo.test", password, "535")
		try(mechanism, "nosmtp@indigo.test", password, "535")
	}
	for _, mechanism := range []string{"CRAM-MD5", "DIGEST-MD5"} {
		try(mechanism, "clear@indigo.test", password, "235")
		try(mechanism, "clear@indigo.test", "wrong", "535")
		try(mechanism, "alice@indigo.test", password, "535")
	}
	for _, secret := range []string{password, "wrong"} {
		code, out := peer(t, "gsasl", "--smtp", "--connect", x.address, "--no-starttls", "--no-cb", "--hostname", "mx.exim.test", "--mechanism", "SCRAM-SHA-256", "-a", "clear@indigo.test", "--password", secret)
		if in := code == 0 && strings.Contains(out, "Client authentication finished"); in != (secret == password) {
			t.Errorf("SCRAM-SHA-256 with password %q: in: %v\n%s", secret, in, out)
		}
	}
	// Without TLS no password goes.
	if _, out := peer(t, "swaks", "--server", x.address, "--auth", "PLAIN", "--auth-user", "alice", "--auth-password", password, "--quit-after", "AUTH"); !strings.Contains(out, "AUTH CRAM-MD5 DIGEST-MD5 SCRAM-SHA-256") {
		t.Errorf("without TLS: %s", out)
	}
	// Who logged in may relay, and Exim writes down who it was.
	code, out := peer(t, "swaks", "--server", x.address, "--tls", "--auth", "PLAIN", "--auth-user", "alice", "--auth-password", password, "--from", "alice@indigo.test", "--to", "bob@exim.test")
	if code != 0 || !strings.Contains(x.log(), " A=plain:alice@indigo.test") {
		t.Errorf("mail by Exim: %d: %s", code, out)
	}
	if story := command(t, in, "explain", "nosmtp@indigo.test"); !strings.Contains(story, "switched off") {
		t.Errorf("the story of a login: %s", story)
	}
	// While the directory is down, nobody is told that the password is wrong.
	db.Kill()
	try("PLAIN", "later@indigo.test", password, "435")
	if err := db.Again(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	try("PLAIN", "later@indigo.test", password, "235")
	// Nor while Indigo is.
	stop(t, in)
	try("PLAIN", "alice@indigo.test", password, "435")
}
