package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/test/instance"
)

// mariadb is a server of the test's own, on a free port of the loopback.
type mariadb struct {
	dir, port string
	cmd       *exec.Cmd
}

// account gives the options that make a server work as root started it.
func account() []string {
	if os.Geteuid() != 0 {
		return nil
	}
	if _, err := user.Lookup("mysql"); err == nil {
		return []string{"--user=mysql"}
	}
	return []string{"--user=root"}
}

func startMariaDB(t *testing.T) *mariadb {
	t.Helper()
	need(t, "mariadbd", "mariadb-install-db", "mariadb")
	m := &mariadb{dir: folder(t)}
	if err := os.Chmod(m.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, m.port, _ = net.SplitHostPort(l.Addr().String())
	l.Close()
	install := exec.Command("mariadb-install-db", append([]string{"--no-defaults", "--datadir=" + filepath.Join(m.dir, "data"), "--auth-root-authentication-method=normal", "--skip-test-db"}, account()...)...)
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("mariadb-install-db: %v\n%s", err, out)
	}
	m.start(t)
	t.Cleanup(m.stop)
	return m
}

func (m *mariadb) start(t *testing.T) {
	t.Helper()
	m.cmd = exec.Command("mariadbd", append([]string{
		"--no-defaults", "--datadir=" + filepath.Join(m.dir, "data"), "--socket=" + filepath.Join(m.dir, "socket"), "--pid-file=" + filepath.Join(m.dir, "pid"),
		"--bind-address=127.0.0.1", "--port=" + m.port, "--innodb-buffer-pool-size=32M",
	}, account()...)...)
	log, err := os.OpenFile(filepath.Join(m.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	m.cmd.Stdout, m.cmd.Stderr = log, log
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	err = instance.Await(within(t, time.Minute), "mariadbd", func() (bool, error) {
		return exec.Command("mariadb", "--no-defaults", "--socket="+filepath.Join(m.dir, "socket"), "-uroot", "-e", "select 1").Run() == nil, nil
	})
	if err != nil {
		text, _ := os.ReadFile(filepath.Join(m.dir, "log"))
		t.Fatalf("%v\n%s", err, text)
	}
}

// stop ends it at once, as a crash would.
func (m *mariadb) stop() {
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
}

// query runs statements as root.
func (m *mariadb) query(t *testing.T, statements string) string {
	t.Helper()
	out, err := exec.Command("mariadb", "--no-defaults", "--socket="+filepath.Join(m.dir, "socket"), "-uroot", "-N", "-e", statements).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", statements, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestListInMariaDB keeps badmailfrom in a table (wiki 2964-2978): qmail-sql makes it out of the text, entries that are
// inserted count at once, a server that is down makes senders wait, and its return needs nobody's help.
func TestListInMariaDB(t *testing.T) {
	m := startMariaDB(t)
	m.query(t, "create database indimail; create user indimail@'127.0.0.1' identified by 'abcdefgh'; grant all on indimail.* to indimail@'127.0.0.1'")
	in := up(t)
	control := filepath.Join(in.Ready.Data, "control")
	if err := os.WriteFile(filepath.Join(control, "badmailfrom"), []byte("Text@Example.org\n# comment\n@text.test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The wiki's line has a host; ours has a port too, and so takes the URL form afterwards.
	line := fmt.Sprintf("mysql://indimail:abcdefgh@127.0.0.1:%s/indimail bmf", m.port)
	run := exec.Command(string(indigo), "qmail-sql", "-s", "127.0.0.1", "-u", "indimail", "-p", "abcdefgh", "-d", "indimail", "-t", "bmf", "badmailfrom")
	run.Env = append(os.Environ(), "INDIGO_DATA="+in.Ready.Data)
	if out, err := run.CombinedOutput(); err == nil {
		t.Fatalf("qmail-sql reached a server on port 3306: %s", out)
	}
	socket := filepath.Join(m.dir, "socket")
	m.query(t, "create user indimail@localhost identified by 'abcdefgh'; grant all on indimail.* to indimail@localhost")
	run = exec.Command(string(indigo), "qmail-sql", "-s", socket, "-u", "indimail", "-p", "abcdefgh", "-d", "indimail", "-t", "bmf", "badmailfrom")
	run.Env = append(os.Environ(), "INDIGO_DATA="+in.Ready.Data)
	if out, err := run.CombinedOutput(); err != nil || !strings.Contains(string(out), "these 2 entries") {
		t.Fatalf("qmail-sql: %v: %s", err, out)
	}
	if got := m.query(t, "select group_concat(email order by email) from indimail.bmf"); got != "@text.test,text@example.org" {
		t.Errorf("the table has %q", got)
	}
	if err := os.WriteFile(filepath.Join(control, "badmailfrom.sql"), []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(control, "badmailfrom")); err != nil {
		t.Fatal(err)
	}
	command(t, in, "reload")
	mail := func(from string) string {
		conn, err := (&net.Dialer{Timeout: waiting}).DialContext(context.Background(), "tcp", in.Address("smtpd.25"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(waiting))
		fmt.Fprintf(conn, "HELO c.test\r\nMAIL FROM:<%s>\r\nQUIT\r\n", from)
		var lines []string
		b := make([]byte, 4096)
		text := ""
		for {
			n, err := conn.Read(b)
			text += string(b[:n])
			if err != nil {
				break
			}
		}
		if lines = strings.Split(text, "\r\n"); len(lines) < 3 {
			t.Fatalf("said %q", text)
		}
		return lines[2][:3]
	}
	for from, want := range map[string]string{"text@example.org": "553", "x@text.test": "553", "sql@example.org": "250"} {
		if got := mail(from); got != want {
			t.Errorf("%s: %s, want %s", from, got, want)
		}
	}
	m.query(t, "insert into indimail.bmf (email) values ('sql@example.org')")
	if got := mail("sql@example.org"); got != "553" {
		t.Errorf("an entry that was inserted: %s", got)
	}
	m.stop()
	if got := mail("sql@example.org"); got != "451" {
		t.Errorf("while the server is down: %s", got)
	}
	if got := mail("anybody@example.org"); got != "451" {
		t.Errorf("while the server is down: %s", got)
	}
	m.start(t)
	if got := mail("sql@example.org"); got != "553" {
		t.Errorf("when the server is back: %s", got)
	}
	if got := mail("anybody@example.org"); got != "250" {
		t.Errorf("when the server is back: %s", got)
	}
	m.query(t, "drop table indimail.bmf")
	if got := mail("anybody@example.org"); got != "250" {
		t.Errorf("with a table that had to be made: %s", got)
	}
}
