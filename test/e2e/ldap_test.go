package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/indigomail/indigo/test/instance"
)

// slapd is a private OpenLDAP server on loopback.
type slapd struct {
	dir         string
	port, tls   int
	ca          string
	cmd         *exec.Cmd
	out         bytes.Buffer
	conf, ldapi string
}

// slapdEntries are its users: their passwords are "ldap's", but reader's.
const slapdEntries = `dn: dc=indigo,dc=test
objectClass: dcObject
objectClass: organization
o: Indigo
dc: indigo

dn: cn=reader,dc=indigo,dc=test
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: reader
userPassword: reader's

dn: ou=people,dc=indigo,dc=test
objectClass: organizationalUnit
ou: people

dn: ou=others,dc=indigo,dc=test
objectClass: organizationalUnit
ou: others
`

func slapdEntry(dn, uid, mail string) string {
	return fmt.Sprintf("\ndn: %s\nobjectClass: inetOrgPerson\nobjectClass: posixAccount\nobjectClass: dcObject\ncn: x\nsn: x\ndc: indigo.test\nuid: %s\nmail: %s\nuidNumber: 4001\ngidNumber: 4002\nhomeDirectory: /\nuserPassword: ldap's\n", dn, uid, mail)
}

// startSlapd starts the slapd of the host with a database of the test's.
func startSlapd(t *testing.T) *slapd {
	t.Helper()
	need(t, "slapd", "slapadd")
	s := &slapd{dir: folder(t), port: freePort(t), tls: freePort(t)}
	s.ca, s.conf, s.ldapi = filepath.Join(s.dir, "ca.pem"), filepath.Join(s.dir, "slapd.conf"), filepath.Join(s.dir, "ldapi")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	people := ",ou=people,dc=indigo,dc=test"
	entries := slapdEntries + slapdEntry("uid=ann"+people, "ann", "ann@indigo.test") + slapdEntry("uid=alice"+people, "alice", "alice@indigo.test") +
		slapdEntry("uid=nosmtp"+people, "nosmtp", "nosmtp@indigo.test") + slapdEntry(`uid=o\+b`+people, "o+b", "o+b@indigo.test") +
		slapdEntry("uid=twin"+people, "twin", "twin@indigo.test") + slapdEntry("uid=twin,ou=others,dc=indigo,dc=test", "twin", "twin@indigo.test")
	for name, text := range map[string]string{
		s.ca:                              string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		filepath.Join(s.dir, "key.pem"):   string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})),
		filepath.Join(s.dir, "data.ldif"): entries,
		s.conf: fmt.Sprintf(`include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/nis.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile %[1]s/pid
argsfile %[1]s/args
TLSCACertificateFile %[1]s/ca.pem
TLSCertificateFile %[1]s/ca.pem
TLSCertificateKeyFile %[1]s/key.pem
database mdb
suffix dc=indigo,dc=test
directory %[1]s/db
access to attrs=userPassword by anonymous auth by * none
access to * by dn="cn=reader,dc=indigo,dc=test" read by self read by * none
`, s.dir),
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(s.dir, "db"), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("slapadd", "-f", s.conf, "-l", filepath.Join(s.dir, "data.ldif")).CombinedOutput(); err != nil {
		t.Fatalf("slapadd: %v: %s", err, out)
	}
	s.start(t)
	t.Cleanup(func() {
		s.stop()
		if t.Failed() {
			t.Logf("slapd: %s", s.out.String())
		}
	})
	return s
}

func (s *slapd) start(t *testing.T) {
	t.Helper()
	s.cmd = exec.Command("slapd", "-d", "0", "-f", s.conf, "-h", fmt.Sprintf("ldap://127.0.0.1:%d ldaps://127.0.0.1:%d ldapi://%s", s.port, s.tls, url.QueryEscape(s.ldapi)))
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	s.cmd.Stdout, s.cmd.Stderr = &s.out, &s.out
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	err := instance.Await(within(t, waiting), "slapd", func() (bool, error) {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", s.tls), time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (s *slapd) stop() {
	if s.cmd != nil {
		s.cmd.Process.Signal(syscall.SIGTERM)
		s.cmd.Wait()
		s.cmd = nil
	}
}

// whyLogin compares what `indigo auth why` says of a login with what it should.
func whyLogin(t *testing.T, program instance.Program, in *instance.Instance, service, user, password string, can bool, verdict string) {
	t.Helper()
	args := []string{"auth", "why", user, "--service", service, "--data", in.Ready.Data, "--json"}
	if password != "" {
		file := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--password-file", file)
	}
	result, err := program.Run(within(t, time.Minute), args...)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Can     bool
		Verdict string
	}
	if err := json.Unmarshal([]byte(result.Out), &answer); err != nil {
		t.Fatalf("auth why: %v: %s%s", err, result.Out, result.Err)
	}
	if answer.Can != can || (result.Code == 0) != can || !strings.Contains(answer.Verdict, verdict) {
		t.Errorf("auth why %s at %s with %q: %t, exit code %d: %s; want %t: %s", user, service, password, answer.Can, result.Code, answer.Verdict, can, verdict)
	}
}

// TestPasswordsOfLDAP logs in users whom OpenLDAP's server knows (wiki 3000).
func TestPasswordsOfLDAP(t *testing.T) {
	need(t, "swaks", "curl")
	server := startSlapd(t)
	in := up(t)
	command(t, in, "user", "add", "nosmtp@indigo.test", "--password-file", passwordFile(t))
	command(t, in, "user", "flags", "nosmtp@indigo.test", "--set", "NO_SMTP")
	secret := filepath.Join(folder(t), "reader")
	if err := os.WriteFile(secret, []byte("reader's\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	plain, tls := fmt.Sprintf("ldap://127.0.0.1:%d", server.port), fmt.Sprintf("ldaps://127.0.0.1:%d", server.tls)
	set := func(settings map[string]string) {
		t.Helper()
		for name, value := range settings {
			if value == "" {
				os.Remove(filepath.Join(in.Ready.Data, "control", name))
				continue
			}
			control(t, in, name, value+"\n")
		}
		command(t, in, "reload")
	}
	login := func(user, password string) (code, text string) {
		t.Helper()
		return swaksAuth(t, in.Address("smtpd.587"), "PLAIN", user, password)
	}
	want := func(where, user, password, want string) {
		t.Helper()
		if code, text := login(user, password); code != want {
			t.Errorf("%s: %s %s: %s, want %s: %s", where, user, password, code, want, text)
		}
	}
	set(map[string]string{
		"authmodules": "/usr/sbin/ldap-checkpwd vchkpass", "ldapurl": plain, "ldapbase": "dc=indigo,dc=test", "ldapbinddn": "cn=reader,dc=indigo,dc=test",
		"ldapbindpasswdfile": secret,
	})
	checked := func() string {
		result, err := indigo.Run(within(t, time.Minute), "check", "--data", in.Ready.Data)
		if err != nil {
			t.Fatal(err)
		}
		return result.Out + result.Err
	}
	if out := checked(); !strings.Contains(out, "others may read or change") {
		t.Errorf("check of a password that everybody may read: %s", out)
	}
	want("a password that everybody may read", "ann@indigo.test", "ldap's", "454")
	if err := os.Chmod(secret, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := checked(); !strings.Contains(out, "sent in clear") || strings.Contains(out, "AUTHMODULES") {
		t.Errorf("check: %s", out)
	}
	for _, c := range []struct{ user, password, code string }{
		{"ann@indigo.test", "ldap's", "235"}, {"ann", "ldap's", "235"}, {"ann@indigo.test", "wrong", "535"}, {"nobody@indigo.test", "ldap's", "535"},
		{"ann@other.test", "ldap's", "535"}, {"alice@indigo.test", "ldap's", "235"}, {"alice@indigo.test", password, "235"}, {"nosmtp@indigo.test", "ldap's", "535"},
		{"twin@indigo.test", "ldap's", "535"}, {"o+b@indigo.test", "ldap's", "235"},
		{"a*@indigo.test", "ldap's", "535"}, {"*@indigo.test", "ldap's", "535"}, {`"ann)(uid=*"@indigo.test`, "ldap's", "535"}, {"reader@indigo.test", "reader's", "535"},
	} {
		want("search", c.user, c.password, c.code)
	}
	// What `indigo auth why` says is what the door does.
	for _, c := range []struct {
		service, user, password string
		can                     bool
		verdict                 string
	}{
		{"smtpd.587", "ann@indigo.test", "ldap's", true, "can log in, over TLS by PLAIN, LOGIN;"},
		{"smtpd.587", "ann@indigo.test", "", true, "can log in, over TLS by PLAIN, LOGIN;"},
		{"smtpd.587", "ann@indigo.test", "wrong", false, `LDAP bind as uid=ann,ou=people,dc=indigo,dc=test: LDAP Result Code 49 "Invalid Credentials": ; no such user`},
		{"smtpd.587", "nobody@indigo.test", "ldap's", false, "LDAP: no entry fits "},
		{"smtpd.587", "nobody@indigo.test", "", false, "; there is no user nobody in indigo.test"},
		{"smtpd.587", "twin@indigo.test", "", false, "LDAP: several entries fit "},
		{"smtpd.587", "alice@indigo.test", "ldap's", true, "can log in, over TLS by PLAIN, LOGIN;"},
		{"smtpd.587", "alice@indigo.test", password, true, "can log in, over TLS by PLAIN, LOGIN;"},
		{"smtpd.587", "nosmtp@indigo.test", "ldap's", false, "NO_SMTP is set for the user"},
		{"imapd.993", "alice@indigo.test", "ldap's", true, "can log in"},
		{"imapd.993", "ann@indigo.test", "ldap's", false, "there is no mailbox, and no other source names one"},
		{"imapd.993", "ann@indigo.test", "", false, "there is no mailbox, and no other source names one"},
	} {
		whyLogin(t, indigo, in, c.service, c.user, c.password, c.can, c.verdict)
	}
	// A mailbox of the directory by the password of the LDAP server; who has none, has none.
	for user, want := range map[string]int{"alice@indigo.test": 0, "ann@indigo.test": 67} {
		code, out := peer(t, "curl", "-sS", "-m", "30", "-k", "--url", "imaps://"+in.Address("imapd.993")+"/", "-u", user+":ldap's")
		if code != want || want == 0 && !strings.Contains(out, "INBOX") {
			t.Errorf("IMAP: %s: %d: %s", user, code, out)
		}
	}
	// The server goes and comes back; what was kept of connections to it does not matter.
	command(t, in, "user", "add", "o+b@indigo.test", "--password-file", passwordFile(t))
	run := exec.Command(string(indigo), "vpasswd", "-e", "o+b@indigo.test", "!$1$saltsalt$9xy1btjgzLYfb7hivXtC//")
	run.Env = append(os.Environ(), "INDIGO_DATA="+in.Ready.Data)
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("vpasswd: %v: %s", err, out)
	}
	want("locked in the directory", "o+b@indigo.test", "ldap's", "535")
	for _, given := range []string{"ldap's", ""} {
		whyLogin(t, indigo, in, "smtpd.587", "o+b@indigo.test", given, false, "the directory keeps o+b@indigo.test out, of other sources too")
	}
	command(t, in, "user", "remove", "o+b@indigo.test", "--yes")
	server.stop()
	want("without a server", "ann@indigo.test", "ldap's", "454")
	// The log has the first cause of each minute.
	if !strings.Contains(in.Log(), `a source of passwords cannot say, so that logins get a temporary error sources="/usr/sbin/ldap-checkpwd vchkpass" error="LDAP_BIND_PASSWD_FILE: others may read`) {
		t.Errorf("the log does not say why logins get a temporary error:\n%s", in.Log())
	}
	want("without a server", "alice@indigo.test", password, "235")
	whyLogin(t, indigo, in, "smtpd.587", "ann@indigo.test", "ldap's", false, "454 4.7.0 temporary authentication failure (#4.7.0): LDAP search: LDAP server ldap://127.0.0.1")
	whyLogin(t, indigo, in, "smtpd.587", "ann@indigo.test", "", true, "can log in if /usr/sbin/ldap-checkpwd knows the user")
	whyLogin(t, indigo, in, "smtpd.587", "ann@indigo.test", "", true, "; /usr/sbin/ldap-checkpwd cannot be asked now")
	whyLogin(t, indigo, in, "smtpd.587", "alice@indigo.test", password, true, "can log in, over TLS by PLAIN, LOGIN;")
	server.start(t)
	want("with it again", "ann@indigo.test", "ldap's", "235")
	// TLS in both forms and the socket, and servers in turn.
	set(map[string]string{"ldapurl": tls})
	want("unknown authority", "ann@indigo.test", "ldap's", "454")
	set(map[string]string{"ldapca": server.ca})
	want("ldaps", "ann@indigo.test", "ldap's", "235")
	if out := checked(); strings.Contains(out, "LDAP") {
		t.Errorf("check: %s", out)
	}
	set(map[string]string{"ldapurl": plain, "ldapstarttls": "1"})
	want("StartTLS", "ann@indigo.test", "ldap's", "235")
	want("StartTLS", "ann@indigo.test", "wrong", "535")
	set(map[string]string{"ldapca": ""})
	want("StartTLS with an unknown authority", "ann@indigo.test", "ldap's", "454")
	set(map[string]string{"ldapurl": fmt.Sprintf("ldap://127.0.0.1:%d ldapi://%s", freePort(t), server.ldapi), "ldapstarttls": ""})
	want("ldapi, the second", "ann@indigo.test", "ldap's", "235")
	// LDAP_BIND_DN is refused: nobody's password is wrong.
	if err := os.WriteFile(secret, []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	want("LDAP_BIND_DN with a wrong password", "ann@indigo.test", "ldap's", "454")
	// An address of the entry's, and binding without a search, which needs no reader.
	set(map[string]string{"ldapbinddn": "", "ldapbindpasswdfile": "", "ldapuserdn": "uid=%u,ou=people,dc=indigo,dc=test", "ldapfieldmail": "mail"})
	for _, c := range []struct{ user, password, code string }{
		{"ann@other.test", "ldap's", "235"}, {"ann", "wrong", "535"}, {"o+b", "ldap's", "235"}, {"nobody", "ldap's", "535"}, {"ann,ou=people@x.test", "ldap's", "535"},
	} {
		want("LDAP_USER_DN", c.user, c.password, c.code)
	}
	whyLogin(t, indigo, in, "smtpd.587", "ann", "", true, "can log in if /usr/sbin/ldap-checkpwd knows the user, over TLS by PLAIN, LOGIN;")
	whyLogin(t, indigo, in, "smtpd.587", "nobody", "ldap's", false, "LDAP bind as uid=nobody,ou=people,dc=indigo,dc=test")
	if story := command(t, in, "explain", "ann@indigo.test"); !strings.Contains(story, "auth") {
		t.Errorf("nobody logged in as ann@indigo.test: %s", story)
	}
	// The program for others, with what IndiMail's takes.
	check := func(user, password string, environment ...string) (code int, out string) {
		t.Helper()
		cmd := exec.Command(string(indigo), "ldap-checkpwd", "sh", "-c", "echo $USER $HOME $(id -u) $(id -g)")
		cmd.Env = append(os.Environ(), append(environment, "INDIGO_DATA=/nonexistent")...)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(w, "%s\x00%s\x00\x00", user, password)
		w.Close()
		cmd.ExtraFiles = []*os.File{r}
		text, err := cmd.CombinedOutput()
		r.Close()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), string(text)
	}
	indimail := []string{
		"LDAP_HOST=127.0.0.1", fmt.Sprintf("LDAP_PORT=%d", server.port), "LDAP_BASE=dc=indigo,dc=test", "LDAP_BIND_DN=cn=reader,dc=indigo,dc=test", "LDAP_BIND_PASSWD=reader's",
		"LDAP_FIELD_HOME=homeDirectory", "LDAP_FIELD_UID=uidNumber", "LDAP_FIELD_GID=gidNumber",
	}
	who := "ann@indigo.test / 4001 4002\n"
	if os.Geteuid() != 0 {
		who = fmt.Sprintf("ann@indigo.test / %d %d\n", os.Geteuid(), os.Getegid())
	}
	for _, c := range []struct {
		user, password string
		environment    []string
		code           int
		out            string
	}{
		{"ann@indigo.test", "ldap's", indimail, 0, who}, {"ann@indigo.test", "wrong", indimail, 1, ""}, {"nobody@indigo.test", "x", indimail, 1, ""},
		{"ann@indigo.test", "ldap's", append(indimail, "LDAP_SCOPE=all"), 111, "LDAP_SCOPE"}, {"ann@indigo.test", "ldap's", append(indimail, fmt.Sprintf("LDAP_PORT=%d", freePort(t))), 111, "refused"},
		{"ann@indigo.test", "ldap's", nil, 111, "LDAP_URL"},
	} {
		if code, out := check(c.user, c.password, c.environment...); code != c.code || !strings.Contains(out, c.out) {
			t.Errorf("ldap-checkpwd: %s %s %q: %d %q, want %d %q", c.user, c.password, c.environment, code, out, c.code, c.out)
		}
	}
	countsFailures(t, in, string(indigo), "ldap-checkpwd", "ann@indigo.test", "ldap's", indimail...)
}
