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
)

// mailOwner is the uid and gid of the mail, nobody's: Dovecot serves no mail of root's.
const mailOwner = 65534

// dovecot starts the Dovecot of the host with an authentication of the test's, on a free port, and gives its IMAP address.
func dovecot(t *testing.T, authentication string) string {
	t.Helper()
	dir := folder(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(address)
	conf := filepath.Join(dir, "dovecot.conf")
	text := fmt.Sprintf(`base_dir = %[1]s/run
state_dir = %[1]s/state
log_path = %[1]s/log
auth_verbose = yes
protocols = imap
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
mail_location = maildir:~/Maildir
first_valid_uid = 1
auth_failure_delay = 0
service imap-login {
  inet_listener imap {
    port = %[2]s
  }
  inet_listener imaps {
    port = 0
  }
}
service anvil {
  # Failures of one client slow the next ones down: here all have one address.
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
%[3]s`, dir, port, authentication)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("dovecot", "-F", "-c", conf)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("Dovecot: %s\n%s", out.String(), log)
		}
	})
	err = instance.Await(within(t, waiting), "Dovecot", func() (bool, error) {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// TestDovecot lets Debian's Dovecot serve our users' Maildirs while Indigo delivers to them: by the wiki's SQL (3497-3560), by SQL for all of our
// stored forms, and by vchkpass (3563-3580).
func TestDovecot(t *testing.T) {
	need(t, "dovecot", "curl")
	if os.Geteuid() != 0 {
		missing(t, "Dovecot serves the mail of several users only as root")
	}
	if _, err := os.Stat("/usr/lib/dovecot/modules/auth/libdriver_mysql.so"); err != nil {
		missing(t, "dovecot-mysql is not installed")
	}
	if out, err := exec.Command("dovecot", "--version").Output(); err != nil || !strings.HasPrefix(string(out), "2.3.") {
		missing(t, fmt.Sprintf("Dovecot %s: checkpassword and the wiki's configuration are of version 2.3", strings.TrimSpace(string(out))))
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
	// The stored forms of "secret" are openssl's: passwd -1, -5, -6.
	for name, stored := range map[string]string{
		"md5":    "$1$saltsalt$9xy1btjgzLYfb7hivXtC//",
		"sha256": "$5$saltsalt$0IyaXrmV7.sGNS6tirgqHLqX/G.FBvgkYA.lpPdS5sA",
		"sha512": "$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1",
		"noimap": "$1$saltsalt$9xy1btjgzLYfb7hivXtC//", "over": "$1$saltsalt$9xy1btjgzLYfb7hivXtC//",
	} {
		run := exec.Command(string(indigo), "vadduser", "-e", name+"@indigo.test", stored)
		run.Env = append(os.Environ(), "INDIGO_DATA="+data)
		if out, err := run.CombinedOutput(); err != nil {
			t.Fatalf("vadduser: %v: %s", err, out)
		}
	}
	run := exec.Command(string(indigo), "vadduser", "argon@indigo.test", "secret")
	run.Env = append(os.Environ(), "INDIGO_DATA="+data)
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("vadduser: %v: %s", err, out)
	}
	command(t, in, "user", "flags", "noimap@indigo.test", "--set", "NO_IMAP")
	command(t, in, "user", "flags", "over@indigo.test", "--set", "V_OVERRIDE")
	if err := os.Chmod(filepath.Dir(string(indigo)), 0o755); err != nil {
		t.Fatal(err)
	}
	control(t, in, "runas", "nobody\n")
	err := filepath.WalkDir(data, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, mailOwner, mailOwner)
	})
	if err != nil {
		t.Fatal(err)
	}
	in = again(t, data)
	all := []string{"md5", "sha256", "sha512", "argon", "noimap", "over"}
	for _, name := range all {
		if err := send(t, in.Address("smtpd.25"), "x@example.org", []string{name + "@indigo.test"}, "Subject: for "+name+"\n\ntext\n"); err != nil {
			t.Fatal(err)
		}
	}
	delivered := func() (bool, error) { mail, err := instance.Mail(data); return len(mail) >= len(all), err }
	if err := instance.Await(within(t, waiting), "the mail", delivered); err != nil {
		t.Fatal(err)
	}
	sql := func(scheme, query string) string {
		file := filepath.Join(folder(t), "dovecot-sql.conf")
		text := fmt.Sprintf(`driver = mysql
default_pass_scheme = %s
connect = host=%s user=indimail password=%s dbname=indimail
user_query = SELECT pw_name,%[4]d as uid, %[4]d as gid, pw_dir as home FROM indimail WHERE pw_name = '%%n' AND pw_domain = '%%d'
password_query = %[5]s
`, scheme, db.Socket, db.Password, mailOwner, query)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll("passdb {\n  driver = sql\n  args = FILE\n}\nuserdb {\n  driver = prefetch\n}\nuserdb {\n  driver = sql\n  args = FILE\n}\n", "FILE", file)
	}
	const (
		simple = `SELECT pw_passwd as password FROM indimail WHERE pw_name = '%n' AND pw_domain = '%d'`
		limits = `select pw_passwd as password FROM indimail LEFT JOIN vlimits ON indimail.pw_domain=vlimits.domain WHERE pw_name='%n' and pw_domain='%d' and ( !(pw_gid & 8) and ('%r'!='127.0.0.1' or !(pw_gid & 4)) and ( '%r'!='127.0.0.1' or COALESCE(disable_webmail,0)!=1) and COALESCE(disable_imap,0)!=1);`
		exempt = `select pw_passwd as password FROM indimail LEFT JOIN vlimits ON indimail.pw_domain=vlimits.domain WHERE pw_name='%n' and pw_domain='%d' and !(pw_gid & 8) and ('%r'!='127.0.0.1' or !(pw_gid & 4)) and ( ('%r'!='127.0.0.1' or COALESCE(disable_webmail,0)!=1) and COALESCE(disable_imap,0)!=1 or (pw_gid & 8192) );`
		// forms is docs/users.md's: it tells Dovecot of the forms that crypt(3) does not have.
		forms = `SELECT IF(pw_passwd LIKE '$argon2id$%%', CONCAT('{ARGON2ID}', pw_passwd), pw_passwd) AS password FROM indimail WHERE pw_name = '%n' AND pw_domain = '%d'`
	)
	vchkpass := filepath.Join(folder(t), "vchkpass")
	if err := os.Symlink(string(indigo), vchkpass); err != nil {
		t.Fatal(err)
	}
	checked := fmt.Sprintf("passdb {\n  driver = checkpassword\n  args = /usr/bin/env INDIGO_DATA=%s %s\n}\nuserdb {\n  driver = prefetch\n}\nservice auth {\n  user = root\n  vsz_limit = 0\n}\n", data, vchkpass)
	for _, c := range []struct {
		name, authentication string
		domain               string
		in, out              []string
	}{
		{"the wiki's SQL", sql("MD5", simple), "", []string{"md5", "noimap"}, nil},
		{"the wiki's SQL with flags", sql("MD5", limits), "", []string{"md5"}, []string{"noimap"}},
		{"the wiki's SQL with limits", sql("MD5", limits), "NO_IMAP", nil, []string{"md5", "over"}},
		{"the wiki's SQL with limits and exemption", sql("MD5", exempt), "NO_IMAP", []string{"over"}, []string{"md5", "noimap"}},
		{"SQL for every form", sql("CRYPT", forms), "", []string{"md5", "sha256", "sha512", "argon"}, nil},
		{"vchkpass", checked, "", []string{"md5", "sha256", "sha512", "argon"}, []string{"noimap"}},
		{"vchkpass with limits", checked, "NO_IMAP", []string{"over"}, []string{"md5", "noimap"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.domain != "" {
				command(t, in, "limit", "set", "indigo.test", c.domain+"=1")
				defer command(t, in, "limit", "clear", "indigo.test", "--yes")
			}
			address := dovecot(t, c.authentication)
			read := func(name, password string) (int, string) {
				return peer(t, "curl", "-sS", "-m", "30", "--url", "imap://"+address+"/INBOX;MAILINDEX=1", "-u", name+"@indigo.test:"+password)
			}
			for _, name := range c.in {
				if code, out := read(name, "secret"); code != 0 || !strings.Contains(out, "Subject: for "+name) {
					t.Errorf("%s: exit code %d: %s", name, code, out)
				}
				if code, out := read(name, "wrong"); code != 67 {
					t.Errorf("%s with a wrong password: exit code %d: %s", name, code, out)
				}
			}
			for _, name := range append(c.out, "nobody") {
				if code, out := read(name, "secret"); code != 67 {
					t.Errorf("%s: exit code %d: %s", name, code, out)
				}
			}
			if c.authentication == checked && !strings.Contains(in.Log(), `login failed client="127.0.0.1" service="imapd" mechanism="checkpassword"`) {
				t.Errorf("the running instance was not asked: %s", in.Log())
			}
		})
	}
}
