package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/test/instance"
)

// turned starts a part-time-host for an isp-server; its domain's mail waits there: etrn.dom by the host's address, atrn.dom for who may fetch it.
func turned(t *testing.T, isp *instance.Instance) (host *instance.Instance) {
	t.Helper()
	host = up(t, "--domain", "etrn.dom")
	command(t, host, "domain", "alias", "add", "atrn.dom", "etrn.dom")
	_, port, err := net.SplitHostPort(host.Address("smtpd.25"))
	if err != nil {
		t.Fatal(err)
	}
	command(t, isp, "settings", "set", "ETRN_PORT", port)
	command(t, isp, "domain", "add", "etrn.dom", "--etrn-client", "127.0.0.1")
	command(t, isp, "domain", "add", "atrn.dom", "--etrn")
	command(t, isp, "service", "add", "smtpd.366")
	command(t, isp, "reload")
	return host
}

// serviceAddress gives where a service that came with a reload listens.
func serviceAddress(t *testing.T, in *instance.Instance, name string) (host, port string) {
	t.Helper()
	var services []struct{ Name, Address string }
	if err := indigo.JSON(within(t, waiting), &services, "service", "list", "--json", "--data", in.Ready.Data); err != nil {
		t.Fatal(err)
	}
	for _, s := range services {
		if s.Name == name {
			host, port, err := net.SplitHostPort(s.Address)
			if err != nil {
				t.Fatal(err)
			}
			return host, port
		}
	}
	t.Fatalf("no service %s in %+v", name, services)
	return "", ""
}

// waitingMail counts the files of a directory of autoturn.
func waitingMail(t *testing.T, in *instance.Instance, box string) int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(in.Ready.Data, "autoturn", box, "Maildir", "new", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

func awaitWaiting(t *testing.T, in *instance.Instance, box string, n int) {
	t.Helper()
	err := instance.Await(within(t, waiting), fmt.Sprintf("%d messages wait in %s", n, box), func() (bool, error) { return waitingMail(t, in, box) == n, nil })
	if err != nil {
		t.Fatalf("%v\n%s", err, in.Log())
	}
}

// TestFetchmailTurn fetches with Debian's fetchmail, as the wiki shows (wiki 1780-1852): by ODMR over the connection that it makes, in clear and over
// STARTTLS, and by ETRN, after which the mail comes by another.
func TestFetchmailTurn(t *testing.T) {
	need(t, "fetchmail")
	isp := up(t)
	host := turned(t, isp)
	importSASLUsers(t, isp)
	hostSMTP := strings.Replace(host.Address("smtpd.25"), ":", "/", 1)
	dir := t.TempDir()
	fetch := func(service, rest string) (int, string) {
		t.Helper()
		where, port := serviceAddress(t, isp, service)
		conf := filepath.Join(dir, "fetchmailrc")
		text := fmt.Sprintf("poll %s service %s timeout 20 interval 1 no dns %s\n", where, port, rest)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return peer(t, "env", "HOME="+dir, "FETCHMAILHOME="+dir, "fetchmail", "-v", "-v", "-f", conf, "--nodetach", "--nosyslog", "--pidfile", filepath.Join(dir, "pid"), "--idfile", filepath.Join(dir, "ids"))
	}
	odmr := func(tls string) (int, string) {
		t.Helper()
		return fetch("smtpd.366", "proto ODMR auth cram-md5 user 'both@indigo.test' there with password 'supersecret' "+tls+" smtphost "+hostSMTP+" fetchdomains atrn.dom")
	}
	clear := "sslproto ''"
	// Without a grant, and then without mail.
	if code, out := odmr(clear); code == 0 || !strings.Contains(out, "450 4.7.0") {
		t.Fatalf("without a grant: %d\n%s", code, out)
	}
	command(t, isp, "turn", "grant", "atrn.dom", "both@indigo.test")
	if code, out := odmr(clear); !strings.Contains(out, "You have no mail") || !strings.Contains(out, "453 4.3.0 No message waiting for node(s) <atrn.dom> (#4.3.0)") {
		t.Fatalf("without mail: %d\n%s", code, out)
	}
	for i, tls := range []string{clear, "sslproto 'TLS1.2+' sslcertck sslcertfile '" + filepath.Join(isp.Ready.Data, "certs", "servercert.pem") + "' sslcommonname 'mail.indigo.test'"} {
		for n := range 3 {
			subject := fmt.Sprintf("Subject: odmr %d %d\n\n.dot\ntext\n", i, n)
			if err := send(t, isp.Address("smtpd.25"), "joe@far.test", []string{"alice@atrn.dom"}, subject); err != nil {
				t.Fatal(err)
			}
		}
		awaitWaiting(t, isp, "atrn.dom", 3)
		if code, out := odmr(tls); code != 0 || !strings.Contains(out, "OK now reversing the connection") {
			t.Fatalf("%s: %d\n%s\n%s", tls, code, out, isp.Log())
		}
		for n := range 3 {
			letter := awaitMail(t, host, fmt.Sprintf("Subject: odmr %d %d\n", i, n))
			if !strings.HasPrefix(letter, "Return-Path: <joe@far.test>\n") || strings.Count(letter, "Delivered-To:") != 1 || !strings.Contains(letter, "\n.dot\n") {
				t.Errorf("%q", letter)
			}
		}
		awaitWaiting(t, isp, "atrn.dom", 0)
	}
	if err := send(t, isp.Address("smtpd.25"), "joe@far.test", []string{"alice@etrn.dom"}, "Subject: by etrn\n\ntext\n"); err != nil {
		t.Fatal(err)
	}
	awaitWaiting(t, isp, "127.0.0.1", 1)
	if code, out := fetch("smtpd.25", "proto ETRN fetchdomains etrn.dom"); code != 0 || !strings.Contains(out, "250 2.0.0 OK, queueing for node <etrn.dom> started") {
		t.Fatalf("ETRN: %d\n%s", code, out)
	}
	awaitMail(t, host, "Subject: by etrn\n")
	awaitWaiting(t, isp, "127.0.0.1", 0)
	if code, out := fetch("smtpd.25", "proto ETRN fetchdomains indigo.test"); code == 0 || !strings.Contains(out, "459 4.7.0") {
		t.Errorf("a domain of others: %d\n%s", code, out)
	}
}

// TestTurnSurvivesKill kills the isp-server without warning while it hands mail over: nothing is lost, and at most the message that was on its way
// comes twice.
func TestTurnSurvivesKill(t *testing.T) {
	isp, err := instance.Up(within(t, time.Minute), indigo, filepath.Join(folder(t), "data"), "--user", "alice", "--password-file", passwordFile(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func(killed *instance.Instance) { killed.Kill() }(isp)
	host := turned(t, isp)
	const n = 150
	for i := range n {
		if err := send(t, isp.Address("smtpd.25"), "joe@far.test", []string{"alice@etrn.dom"}, fmt.Sprintf("Subject: kill %d\n\ntext\n", i)); err != nil {
			t.Fatal(err)
		}
	}
	awaitWaiting(t, isp, "127.0.0.1", n)
	where := isp.Address("smtpd.25")
	etrn := func(address string) {
		t.Helper()
		conn, err := net.DialTimeout("tcp", address, waiting)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(waiting))
		fmt.Fprint(conn, "ETRN etrn.dom\r\nQUIT\r\n")
		all := make([]byte, 4096)
		for read := 0; ; {
			m, err := conn.Read(all[read:])
			if read += m; err != nil {
				if !strings.Contains(string(all[:read]), "250 2.0.0 OK, queueing") {
					t.Fatalf("%q", all[:read])
				}
				return
			}
		}
	}
	received := func() (subjects []string) {
		t.Helper()
		files, err := instance.Mail(host.Ready.Data)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			text, err := os.ReadFile(name)
			if err != nil {
				continue // it is on its way from tmp to new
			}
			for line := range strings.Lines(string(text)) {
				if strings.HasPrefix(line, "Subject: kill ") {
					subjects = append(subjects, line)
				}
			}
		}
		return subjects
	}
	etrn(where)
	if err := instance.Await(within(t, waiting), "some are taken", func() (bool, error) { return len(received()) >= 10, nil }); err != nil {
		t.Fatal(err)
	}
	isp.Kill()
	left := waitingMail(t, isp, "127.0.0.1")
	if left == 0 || left == n {
		t.Fatalf("killed when %d of %d were left: too late or too early to tell anything", left, n)
	}
	isp = again(t, isp.Ready.Data)
	etrn(isp.Address("smtpd.25"))
	awaitWaiting(t, isp, "127.0.0.1", 0)
	var subjects []string
	if err := instance.Await(within(t, waiting), "all are delivered", func() (bool, error) {
		subjects = received()
		slices.Sort(subjects)
		return len(slices.Compact(slices.Clone(subjects))) == n, nil
	}); err != nil {
		t.Fatalf("%v: %d", err, len(subjects))
	}
	if len(subjects) > n+1 {
		t.Errorf("%d of %d messages came twice", len(subjects)-n, n)
	}
}
