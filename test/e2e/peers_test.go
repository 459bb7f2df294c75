package e2e

import (
	"encoding/json"
	"fmt"
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

// TestSwaks sends with Debian's swaks: every mechanism over both kinds of TLS, a wrong password, and a relay attempt.
func TestSwaks(t *testing.T) {
	need(t, "swaks")
	in := up(t)
	run := func(service string, args ...string) (int, string) {
		host, port, err := net.SplitHostPort(in.Address(service))
		if err != nil {
			t.Fatal(err)
		}
		return peer(t, "swaks", append([]string{"--server", host, "--port", port, "--helo", "client.test", "--timeout", "20"}, args...)...)
	}
	for _, mechanism := range []string{"PLAIN", "LOGIN"} {
		for service, security := range map[string]string{"smtpd.587": "--tls", "smtpd.465": "--tls-on-connect", "smtpd.25": "--tls"} {
			t.Run(mechanism+" "+service, func(t *testing.T) {
				auth := []string{security, "--auth", mechanism, "--auth-user", "alice@indigo.test", "--from", "alice@indigo.test"}
				subject := "swaks " + mechanism + " " + service
				code, out := run(service, append(auth, "--auth-password", password, "--to", "alice@indigo.test", "--header", "Subject: "+subject)...)
				if code != 0 {
					t.Fatalf("swaks: exit code %d\n%s", code, out)
				}
				mail := awaitMail(t, in, subject)
				for _, field := range []string{"Return-Path: <alice@indigo.test>", "Delivered-To: alice@indigo.test", "Received: "} {
					if !strings.Contains(mail, field) {
						t.Errorf("the message has no %q:\n%s", field, mail)
					}
				}
				_, out = run(service, append(auth, "--auth-password", "wrong", "--to", "alice@indigo.test")...)
				if !strings.Contains(out, "535 5.7.8") {
					t.Errorf("wrong password: no 535 5.7.8\n%s", out)
				}
			})
		}
	}
	t.Run("relay", func(t *testing.T) {
		_, out := run("smtpd.25", "--from", "peer@elsewhere.test", "--to", "someone@remote.test")
		if !strings.Contains(out, "550 5.7.1") && !strings.Contains(out, "553 5.7.1") {
			t.Errorf("relay without AUTH: neither 550 nor 553 5.7.1\n%s", out)
		}
		_, out = run("smtpd.587", "--tls", "--from", "alice@indigo.test", "--to", "alice@indigo.test")
		if !strings.Contains(out, "530 5.7.0") {
			t.Errorf("submission without AUTH: no 530 5.7.0\n%s", out)
		}
	})
	t.Run("no TLS", func(t *testing.T) {
		_, out := run("smtpd.587", "--auth", "PLAIN", "--auth-user", "alice@indigo.test", "--auth-password", password, "--to", "alice@indigo.test")
		if strings.Contains(out, "235 ") {
			t.Errorf("AUTH without TLS was accepted\n%s", out)
		}
	})
}

// TestPythonRoundTrip sends 20 MB with smtplib and reads it back with poplib and imaplib, byte for byte.
func TestPythonRoundTrip(t *testing.T) {
	need(t, "python3")
	in := up(t)
	ready, err := json.Marshal(in.Ready)
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join("..", "testdata", "roundtrip.py")
	for _, size := range []string{"20000000", "1"} {
		if code, out := peer(t, "python3", script, string(ready), size); code != 0 {
			t.Errorf("%s bytes: exit code %d\n%s", size, code, out)
		}
	}
}

// TestCurl lists and fetches INBOX with curl.
func TestCurl(t *testing.T) {
	need(t, "curl")
	in := up(t)
	if err := send(t, in.Address("smtpd.25"), "peer@elsewhere.test", []string{"alice@indigo.test"}, "Subject: for curl\n\nhello curl\n"); err != nil {
		t.Fatal(err)
	}
	awaitMail(t, in, "for curl")
	user := []string{"--silent", "--show-error", "--user", "alice@indigo.test:" + password, "--cacert", filepath.Join(in.Ready.Data, "certs", "servercert.pem")}
	for _, url := range []string{
		"imaps://" + in.Address("imapd.993") + "/INBOX;MAILINDEX=1",
		"imap://" + in.Address("imapd.143") + "/INBOX;MAILINDEX=1",
		"pop3s://" + in.Address("pop3d.995") + "/1",
		"pop3://" + in.Address("pop3d.110") + "/1",
	} {
		if code, out := peer(t, "curl", append(user, "--ssl-reqd", url)...); code != 0 || !strings.Contains(out, "hello curl") {
			t.Errorf("curl %s: exit code %d\n%s", url, code, out)
		}
	}
	if code, out := peer(t, "curl", append(user, "imaps://"+in.Address("imapd.993")+"/")...); code != 0 || !strings.Contains(out, "INBOX") {
		t.Errorf("curl lists no INBOX: exit code %d\n%s", code, out)
	}
}

// TestOpenssl speaks to the ports with TLS from the first byte, and by STARTTLS.
func TestOpenssl(t *testing.T) {
	need(t, "openssl")
	in := up(t)
	ca := filepath.Join(in.Ready.Data, "certs", "servercert.pem")
	for service, how := range map[string][]string{
		"smtpd.25": {"-starttls", "smtp"}, "smtpd.587": {"-starttls", "smtp"}, "smtpd.465": nil,
		"pop3d.110": {"-starttls", "pop3"}, "pop3d.995": nil,
		"imapd.143": {"-starttls", "imap"}, "imapd.993": nil,
	} {
		args := append([]string{"s_client", "-connect", in.Address(service), "-CAfile", ca, "-verify_return_error", "-brief"}, how...)
		if code, out := peer(t, "openssl", args...); code != 0 || !strings.Contains(out, "Verification: OK") {
			t.Errorf("%s: openssl s_client: exit code %d\n%s", service, code, out)
		}
	}
}

// TestPostfix has Debian's postfix as the remote peer, both ways:
//
//	alice@indigo.test --submission--> Indigo --smtproutes--> postfix: bob@postfix.test
//	bob@postfix.test --SMTP--> postfix --transport_maps--> Indigo: alice@indigo.test
func TestPostfix(t *testing.T) {
	if why := postfix.Missing(); why != "" {
		missing(t, why)
	}
	in := up(t)
	_, indigoPort, err := net.SplitHostPort(in.Address("smtpd.25"))
	if err != nil {
		t.Fatal(err)
	}
	p := startPostfix(t, postfix.Config{
		Dir: folder(t), Port: freePort(t), Users: []string{"bob@postfix.test"},
		Transport: map[string]string{"indigo.test": "smtp:[127.0.0.1]:" + indigoPort},
	})
	control(t, in, "smtproutes", "postfix.test:"+p.Address()+"\n")
	control(t, in, "relayclients", "127.0.0.1:\n")
	if err := in.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	const body = "\n.dots\n..\nend\n"

	t.Run("to postfix", func(t *testing.T) {
		err := instance.Await(within(t, waiting), "Indigo takes mail for postfix", func() (bool, error) {
			return send(t, in.Address("smtpd.25"), "alice@indigo.test", []string{"bob@postfix.test"}, "Subject: to postfix\n"+body) == nil, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		var delivered string
		err = instance.Await(within(t, waiting), "postfix has delivered", func() (bool, error) {
			delivered = read(p.Mailbox("bob@postfix.test"))
			return delivered != "", nil
		})
		if err != nil {
			t.Fatalf("%v\n%s", err, command(t, in, "queue", "list", "--json"))
		}
		if !strings.HasSuffix(delivered, body) {
			t.Errorf("postfix delivered:\n%s", delivered)
		}
		awaitEmpty(t, in)
		if story := command(t, in, "explain", "bob@postfix.test"); !strings.Contains(story, "250 2.0.0") {
			t.Errorf("the story does not hold postfix's reply:\n%s", story)
		}
	})
	t.Run("from postfix", func(t *testing.T) {
		if err := send(t, p.Address(), "bob@postfix.test", []string{"alice@indigo.test"}, "Subject: from postfix\n"+body); err != nil {
			t.Fatal(err)
		}
		mail := awaitMail(t, in, "from postfix")
		if !strings.HasSuffix(mail, body) || !strings.Contains(mail, "by postfix.test (Postfix)") {
			t.Errorf("Indigo delivered:\n%s", mail)
		}
	})
	t.Run("bounce", func(t *testing.T) {
		// postfix refuses the recipient for good, so alice gets the message back.
		if err := send(t, in.Address("smtpd.25"), "alice@indigo.test", []string{"nobody@postfix.test"}, "Subject: to nobody\n"+body); err != nil {
			t.Fatal(err)
		}
		if mail := awaitMail(t, in, "nobody@postfix.test"); !strings.Contains(mail, "Return-Path: <>") || !strings.Contains(mail, "550") {
			t.Errorf("the bounce:\n%s", mail)
		}
	})
}

func awaitEmpty(t *testing.T, in *instance.Instance) {
	t.Helper()
	ctx := within(t, waiting)
	err := instance.Await(ctx, "the queue is empty", func() (bool, error) {
		n, err := in.Stats(ctx)
		return n == 0, err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// read gives the content of the first file in a folder, "" when there is none.
func read(dir string) string {
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(files) == 0 {
		return ""
	}
	text, _ := os.ReadFile(files[0])
	return string(text)
}

// TestReloadUnderLoad reads the settings again and again, with 10,000 rules and a badmailfrom of 1,000,000 entries that
// changes between, while postfix's smtp-source sends as fast as it can: no connection is dropped, no message lost.
func TestReloadUnderLoad(t *testing.T) {
	need(t, "smtp-source")
	in := up(t)
	control := filepath.Join(in.Ready.Data, "control")
	var rules, spammers strings.Builder
	for i := range 10000 {
		fmt.Fprintf(&rules, "user%d@example.org:DATABYTES=%d,MAXRECIPIENTS=%d\n", i, i+1000, i+1)
	}
	for i := range 1000000 {
		fmt.Fprintf(&spammers, "spam%d@example%d.com\n", i, i%1000)
	}
	for name, text := range map[string]string{"from.envrules": rules.String(), "badmailfrom": spammers.String()} {
		if err := os.WriteFile(filepath.Join(control, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	command(t, in, "list", "build", "badmailfrom")
	command(t, in, "settings", "set", "MAXPERIP", "1000")
	command(t, in, "reload")
	const messages = 12000
	ctx := within(t, 3*time.Minute)
	load := exec.CommandContext(ctx, "smtp-source", "-s", "20", "-m", fmt.Sprint(messages), "-f", "user7@example.org", "-t", "alice@indigo.test", "inet:"+in.Address("smtpd.25"))
	var said strings.Builder
	load.Stdout, load.Stderr = &said, &said
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- load.Wait() }()
	reloads := 0
	for running := true; running; {
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("smtp-source: %v: %s", err, said.String())
			}
			running = false
		default:
			command(t, in, "settings", "set", "MAXHOPS", fmt.Sprint(50+reloads%10))
			if reloads%3 == 0 {
				command(t, in, "list", "build", "badmailfrom")
			}
			command(t, in, "reload")
			reloads++
		}
	}
	if said.Len() > 0 {
		t.Errorf("smtp-source says: %s", said.String())
	}
	t.Logf("%d reloads", reloads)
	if reloads < 3 {
		t.Errorf("only %d reloads while the load ran", reloads)
	}
	err := instance.Await(ctx, "all messages delivered", func() (bool, error) {
		mail, err := instance.Mail(in.Ready.Data)
		return len(mail) >= messages, err
	})
	if err != nil {
		t.Error(err)
	}
	if mail, _ := instance.Mail(in.Ready.Data); len(mail) != messages {
		t.Errorf("%d messages delivered, want %d", len(mail), messages)
	}
}
