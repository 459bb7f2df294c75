package e2e

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/indigomail/indigo/test/instance"
	"github.com/indigomail/indigo/test/postfix"
)

// swaksAuth logs in by swaks, over STARTTLS, and gives the code of the reply.
func swaksAuth(t *testing.T, address, mechanism, user, password string) (code, text string) {
	t.Helper()
	_, out := peer(t, "swaks", "--server", address, "--tls", "--auth", mechanism, "--auth-user", user, "--auth-password", password, "--quit-after", "AUTH")
	for line := range strings.Lines(out) {
		for _, code := range []string{"235", "535", "454", "435"} {
			if strings.HasPrefix(line, "<~  "+code) || strings.HasPrefix(line, "<~* "+code) {
				return code, line
			}
		}
	}
	return "", out
}

// TestPasswordsForOthers has Debian's postfix and Dovecot ask a serving process, which has given root up, for passwords and
// users at the sockets of Dovecot's protocol that its parent has made.
func TestPasswordsForOthers(t *testing.T) {
	need(t, "swaks", "doveadm")
	if why := postfix.Missing(); why != "" {
		missing(t, why)
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
	for _, name := range []string{"nosmtp", "later", "clear"} {
		command(t, in, "user", "add", name+"@indigo.test", "--password-file", passwordFile(t))
	}
	command(t, in, "user", "flags", "nosmtp@indigo.test", "--set", "NO_SMTP")

	// Postfix first: its directory for sockets is there when it has run.
	port := freePort(t)
	place := folder(t)
	certificate := filepath.Join(place, "cert.pem")
	text, err := os.ReadFile(filepath.Join(data, "certs", "servercert.pem"))
	if err == nil {
		err = os.WriteFile(certificate, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	p := startPostfix(t, postfix.Config{
		Dir: place, Port: port, Users: []string{"bob@postfix.test"}, Settings: []string{
			"smtpd_sasl_type = dovecot", "smtpd_sasl_path = private/auth", "smtpd_sasl_auth_enable = yes",
			"smtpd_tls_security_level = may", "smtpd_tls_auth_only = yes", "smtpd_tls_cert_file = " + certificate, "smtpd_tls_key_file = " + certificate,
			"smtpd_relay_restrictions = permit_sasl_authenticated, reject",
		},
	})
	socket, userdb := filepath.Join(place, "spool", "private", "auth"), filepath.Join(place, "userdb")
	control(t, in, "runas", "nobody\n")
	control(t, in, "dovecotauthsocket", socket+"\n")
	control(t, in, "dovecotuserdbsocket", userdb+"\n")
	control(t, in, "dovecotsocketowner", "postfix:postfix\n")
	err = filepath.WalkDir(data, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, mailOwner, mailOwner)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(string(indigo)), 0o755); err != nil {
		t.Fatal(err)
	}
	// One that is left over is replaced.
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	result, err := indigo.Run(within(t, time.Minute), "up", "--data", data)
	if err != nil || result.Code == 0 || !strings.Contains(result.Out+result.Err, "another program answers at "+socket) {
		t.Errorf("where another program answers: %v %d %s%s", err, result.Code, result.Out, result.Err)
	}
	left.Close()
	if out := command(t, in, "check"); strings.Contains(out, "DOVECOT") {
		t.Errorf("check: %s", out)
	}
	if in, err = instance.Up(within(t, time.Minute), indigo, data); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			t.Logf("end of the log:\n%s", in.Log())
		}
	}()
	// Root makes the key of kept passwords while the services, which are not root, run.
	command(t, in, "user", "passwd", "clear@indigo.test", "--password-file", passwordFile(t), "--keep-clear")
	info, err := os.Stat(filepath.Join(data, "password.keys"))
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t); info.Mode().Perm() != 0o600 || owner.Uid != mailOwner {
		t.Errorf("the file of keys has mode %v and uid %d", info.Mode(), owner.Uid)
	}
	if info, err = os.Stat(socket); err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t); info.Mode().Perm() != 0o660 || owner.Uid == mailOwner || owner.Uid == 0 {
		t.Errorf("the socket has mode %v and uid %d", info.Mode(), owner.Uid)
	}
	try := func(who, address, user, password, want, says string) {
		t.Helper()
		for _, mechanism := range []string{"PLAIN", "LOGIN"} {
			if code, text := swaksAuth(t, address, mechanism, user, password); code != want || !strings.Contains(text, says) {
				t.Errorf("%s: %s %s %s: %s, want %s: %s", who, mechanism, user, password, code, want, text)
			}
		}
	}
	for _, c := range []struct{ user, password, code, says string }{
		{"alice@indigo.test", password, "235", ""}, {"alice", password, "235", ""}, {"alice@indigo.test", "wrong", "535", "authorization failed"},
		{"nobody@indigo.test", password, "535", "authorization failed"}, {"nosmtp@indigo.test", password, "535", "switched off"},
	} {
		try("postfix", p.Address(), c.user, c.password, c.code, c.says)
	}
	// By the mechanisms that the directory's stored forms allow.
	for _, mechanism := range []string{"CRAM-MD5", "DIGEST-MD5"} {
		if code, text := swaksAuth(t, p.Address(), mechanism, "clear@indigo.test", password); code != "235" {
			t.Errorf("postfix: %s: %s: %s", mechanism, code, text)
		}
		if code, text := swaksAuth(t, p.Address(), mechanism, "clear@indigo.test", "wrong"); code != "535" {
			t.Errorf("postfix: %s with a wrong password: %s: %s", mechanism, code, text)
		}
	}
	// Who logged in may relay, and postfix writes down who it was.
	code, out := peer(t, "swaks", "--server", p.Address(), "--tls", "--auth", "PLAIN", "--auth-user", "alice", "--auth-password", password, "--from", "alice@indigo.test", "--to", "bob@postfix.test")
	if code != 0 || !strings.Contains(p.Log(), "sasl_username=alice@indigo.test") {
		t.Errorf("mail by postfix: %d: %s", code, out)
	}
	if story := command(t, in, "explain", "nosmtp@indigo.test"); !strings.Contains(story, "switched off") {
		t.Errorf("the story of a login: %s", story)
	}
	if out := command(t, in, "service", "list"); !strings.Contains(out, "auth") {
		t.Errorf("service list: %s", out)
	}

	// Dovecot's own programs.
	conf := filepath.Join(folder(t), "dovecot.conf")
	text = []byte(fmt.Sprintf("base_dir = %s/run\nlog_path = /dev/stderr\nssl = no\nfirst_valid_uid = 1\nauth_socket_path = %s\nmail_location = maildir:~/Maildir\n", filepath.Dir(conf), userdb))
	if err := os.WriteFile(conf, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if code, out := peer(t, "doveadm", "-c", conf, "auth", "test", "-a", socket, "-x", "service=imap", "nosmtp@indigo.test", password); code != 0 || !strings.Contains(out, "user=nosmtp@indigo.test") {
		t.Errorf("doveadm auth test: %d: %s", code, out)
	}
	if code, out := peer(t, "doveadm", "-c", conf, "auth", "test", "-a", socket, "-x", "service=imap", "alice@indigo.test", "wrong"); code == 0 {
		t.Errorf("doveadm auth test of a wrong password: %s", out)
	}
	home := filepath.Join(data, "domains", "indigo.test", "alice")
	if code, out := peer(t, "doveadm", "-c", conf, "user", "-a", userdb, "alice@indigo.test"); code != 0 || !strings.Contains(out, home) || !strings.Contains(out, fmt.Sprint(mailOwner)) {
		t.Errorf("doveadm user: %d: %s", code, out)
	}
	if code, out := peer(t, "doveadm", "-c", conf, "user", "-a", userdb, "nobody@indigo.test"); code != 67 {
		t.Errorf("doveadm user of one who is not there: %d: %s", code, out)
	}
	lda := exec.Command("/usr/lib/dovecot/dovecot-lda", "-c", conf, "-d", "alice@indigo.test")
	lda.Stdin = strings.NewReader("Subject: by Dovecot\n\ntext\n")
	if out, err := lda.CombinedOutput(); err != nil {
		t.Errorf("dovecot-lda: %v: %s", err, out)
	}
	if mail, err := filepath.Glob(filepath.Join(home, "Maildir", "new", "*")); err != nil || len(mail) != 1 {
		t.Errorf("dovecot-lda delivered %q, %v", mail, err)
	}

	// While the directory is down, nobody is told that the password is wrong.
	db.Kill()
	try("postfix", p.Address(), "later@indigo.test", password, "454", "")
	if code, out := peer(t, "doveadm", "-c", conf, "user", "-a", userdb, "later@indigo.test"); code != 75 {
		t.Errorf("doveadm user while the directory is down: %d: %s", code, out)
	}
	if err := db.Again(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	try("postfix", p.Address(), "later@indigo.test", password, "235", "")
	if err := in.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the socket is still there")
	}
}
