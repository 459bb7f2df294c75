package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/smtp"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/test/database"
	"github.com/indigomail/indigo/test/instance"
)

// server starts a database server, or skips.
func server(t *testing.T, kind string) *database.Server {
	t.Helper()
	s, err := database.Start(within(t, time.Minute), kind)
	if errors.Is(err, database.ErrMissing) {
		missing(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Remove)
	return s
}

// TestListInMariaDB keeps badmailfrom in a table (wiki 2964-2978): qmail-sql makes it out of the text, entries that are
// inserted count at once, a server that is down makes senders wait, and its return needs nobody's help.
func TestListInMariaDB(t *testing.T) {
	m := server(t, "mariadb")
	query := func(statements string) string {
		t.Helper()
		out, err := m.Query(within(t, waiting), "", statements)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	in := up(t)
	control := filepath.Join(in.Ready.Data, "control")
	if err := os.WriteFile(filepath.Join(control, "badmailfrom"), []byte("Text@Example.org\n# comment\n@text.test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The wiki's line has a host; ours has a port too, and so takes the URL form afterwards.
	line := fmt.Sprintf("mysql://indimail:abcdefgh@127.0.0.1:%s/indimail bmf", m.Port)
	run := exec.Command(string(indigo), "qmail-sql", "-s", "127.0.0.1", "-u", "indimail", "-p", "abcdefgh", "-d", "indimail", "-t", "bmf", "badmailfrom")
	run.Env = append(os.Environ(), "INDIGO_DATA="+in.Ready.Data)
	if out, err := run.CombinedOutput(); err == nil {
		t.Fatalf("qmail-sql reached a server on port 3306: %s", out)
	}
	run = exec.Command(string(indigo), "qmail-sql", "-s", m.Socket, "-u", "indimail", "-p", "abcdefgh", "-d", "indimail", "-t", "bmf", "badmailfrom")
	run.Env = append(os.Environ(), "INDIGO_DATA="+in.Ready.Data)
	if out, err := run.CombinedOutput(); err != nil || !strings.Contains(string(out), "these 2 entries") {
		t.Fatalf("qmail-sql: %v: %s", err, out)
	}
	if got := query("select group_concat(email order by email) from indimail.bmf"); got != "@text.test,text@example.org" {
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
	query("insert into indimail.bmf (email) values ('sql@example.org')")
	if got := mail("sql@example.org"); got != "553" {
		t.Errorf("an entry that was inserted: %s", got)
	}
	m.Kill()
	if got := mail("sql@example.org"); got != "451" {
		t.Errorf("while the server is down: %s", got)
	}
	if got := mail("anybody@example.org"); got != "451" {
		t.Errorf("while the server is down: %s", got)
	}
	if err := m.Again(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	if got := mail("sql@example.org"); got != "553" {
		t.Errorf("when the server is back: %s", got)
	}
	if got := mail("anybody@example.org"); got != "250" {
		t.Errorf("when the server is back: %s", got)
	}
	query("drop table indimail.bmf")
	if got := mail("anybody@example.org"); got != "250" {
		t.Errorf("with a table that had to be made: %s", got)
	}
}

// TestDirectoryOnServers runs an instance whose users are in MariaDB and in PostgreSQL, and ends the server in the middle of
// a load: clients hear of nothing worse than "try again later", every message that was taken is delivered, and nobody has to
// do anything when the server is back.
func TestDirectoryOnServers(t *testing.T) {
	for _, kind := range []string{"mariadb", "postgres"} {
		t.Run(kind, func(t *testing.T) {
			db := server(t, kind)
			data := filepath.Join(folder(t), "data")
			if err := os.MkdirAll(filepath.Join(data, "control"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(data, "control", "directorydsn"), []byte(db.DSN()+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			in := again(t, data, "--user", "alice", "--password-file", passwordFile(t))
			try(t, in)
			out, err := db.Query(within(t, waiting), "indimail", "SELECT count(*) FROM indimail WHERE pw_domain = 'indigo.test'")
			if err != nil || strings.TrimSpace(out) != "2" {
				t.Fatalf("users in the database: %q %v", out, err)
			}
			if _, err := os.Stat(filepath.Join(data, "indimail.db")); err == nil {
				t.Error("there is a SQLite file too")
			}
			if story := command(t, in, "db", "status"); strings.Contains(story, db.Password) {
				t.Errorf("the password is shown:\n%s", story)
			}
			before, err := instance.Mail(data)
			if err != nil {
				t.Fatal(err)
			}
			accepted, later := 0, 0
			send := func(to string) {
				c, err := smtp.Dial(in.Address("smtpd.25"))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				step := func(err error) bool {
					var reply *textproto.Error
					switch {
					case err == nil:
						return true
					case errors.As(err, &reply) && reply.Code/100 == 4:
						later++
					default:
						t.Errorf("to %s: %v", to, err)
					}
					return false
				}
				if !step(c.Mail("x@example.org")) || !step(c.Rcpt(to)) {
					return
				}
				w, err := c.Data()
				if !step(err) {
					return
				}
				fmt.Fprintf(w, "Subject: load\r\n\r\ntext\r\n")
				if step(w.Close()) {
					accepted++
				}
			}
			for i := range 300 {
				if i == 100 {
					db.Kill()
				}
				if i == 200 {
					if err := db.Again(within(t, time.Minute)); err != nil {
						t.Fatal(err)
					}
				}
				send("alice@indigo.test")
				if i%10 == 0 {
					// Nobody has asked for this one: while the server is down it cannot be told whether there is such a user.
					to := fmt.Sprintf("stranger%d@indigo.test", i)
					if i >= 100 && i < 200 {
						send(to)
					}
				}
			}
			if later == 0 || accepted < 200 {
				t.Errorf("%d accepted, %d put off", accepted, later)
			}
			err = instance.Await(within(t, time.Minute), "every accepted message", func() (bool, error) {
				mail, err := instance.Mail(data)
				return len(mail) == len(before)+accepted, err
			})
			if err != nil {
				mail, _ := instance.Mail(data)
				t.Errorf("%v: %d of %d", err, len(mail)-len(before), accepted)
			}
			t.Logf("%d accepted, %d put off", accepted, later)
			try(t, in)
		})
	}
}
