package e2e

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/indigomail/indigo/internal/lab"
	"github.com/indigomail/indigo/internal/tlsx"
	"github.com/indigomail/indigo/test/instance"
)

// names answers questions for the addresses and host names of the table, over UDP, and gives its address.
func names(t *testing.T, hosts map[string]string) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Rcode = dns.RcodeNameError
		for host, ip := range hosts {
			reverse, _ := dns.ReverseAddr(ip)
			var text string
			switch {
			case q.Question[0].Name == reverse && q.Question[0].Qtype == dns.TypePTR:
				text = reverse + " 60 IN PTR " + host + "."
			case strings.EqualFold(q.Question[0].Name, host+".") && q.Question[0].Qtype == dns.TypeA:
				text = host + ". 60 IN A " + ip
			default:
				continue
			}
			if rr, err := dns.NewRR(text); err == nil {
				m.Rcode, m.Answer = dns.RcodeSuccess, append(m.Answer, rr)
			}
		}
		_ = w.WriteMsg(m)
	})}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.Shutdown(); conn.Close(); <-ended })
	return conn.LocalAddr().String()
}

// relaySession has a real session from an address, with a login over TLS unless user is "", and with a certificate unless that is nil, and gives the
// reply that decided about the recipient: the first refusal, or that to RCPT; "closed" when the server said nothing.
func relaySession(t *testing.T, in *instance.Instance, ip, user string, certificate *tls.Certificate, from, to string) string {
	t.Helper()
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 0)), Timeout: 10 * time.Second}
	conn, err := dialer.Dial("tcp", in.Address("smtpd.25"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	say := func(line string) string {
		if line != "" {
			fmt.Fprintf(conn, "%s\r\n", line)
		}
		for {
			l, err := r.ReadString('\n')
			if err != nil {
				return "closed"
			}
			if l = strings.TrimRight(l, "\r\n"); len(l) < 4 || l[3] != '-' {
				return l
			}
		}
	}
	lines := []string{"", "EHLO client.example"}
	if user != "" || certificate != nil {
		lines = append(lines, "STARTTLS", "EHLO client.example")
	}
	if user != "" {
		lines = append(lines, "AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00"+user+"\x00"+password)))
	}
	for _, line := range append(lines, "MAIL FROM:<"+from+">", "RCPT TO:<"+to+">") {
		reply := say(line)
		if strings.HasPrefix(line, "RCPT") || reply[0] != '2' {
			return reply
		}
		if line == "STARTTLS" {
			config := &tls.Config{InsecureSkipVerify: true}
			if certificate != nil {
				// Whatever authorities the server names.
				config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
			}
			secure := tls.Client(conn, config)
			if err := secure.Handshake(); err != nil {
				t.Fatal(err)
			}
			conn, r = secure, bufio.NewReader(secure)
		}
	}
	return ""
}

// relayCertificates makes an authority of clients' certificates for an instance, with a list of what it took back, and tlsclients with two names and a
// fingerprint; and certificates by what they are, with their files.
func relayCertificates(t *testing.T, in *instance.Instance) (certificates map[string]*tls.Certificate, files map[string]string) {
	t.Helper()
	certificates, files = map[string]*tls.Certificate{}, map[string]string{}
	dir := folder(t)
	authorities := map[string]*lab.Authority{}
	for _, name := range []string{"ours", "theirs"} {
		a, err := lab.NewAuthority(time.Now)
		if err != nil {
			t.Fatal(err)
		}
		authorities[name] = a
	}
	for name, c := range map[string]struct {
		by    string
		valid time.Duration
		names []string
	}{
		"listed": {"ours", time.Hour, []string{"far-joe@far.test"}}, "listed host": {"ours", time.Hour, []string{"relay1.far.test"}}, "not listed": {"ours", time.Hour, []string{"ann@far.test"}},
		"expired": {"ours", -time.Minute, []string{"far-joe@far.test"}}, "revoked": {"ours", time.Hour, []string{"far-joe@far.test"}},
		"of another authority": {"theirs", time.Hour, []string{"far-joe@far.test"}}, "fingerprint": {"theirs", -time.Minute, []string{"any@far.test"}},
	} {
		issued, err := authorities[c.by].Issue(c.valid, c.names...)
		if err != nil {
			t.Fatal(err)
		}
		text, err := lab.Files(issued)
		if err != nil {
			t.Fatal(err)
		}
		certificates[name], files[name] = &issued, filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".pem")
		if err := os.WriteFile(files[name], text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	revoked, err := authorities["ours"].Revoke(time.Hour, *certificates["revoked"])
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"clientca.pem": authorities["ours"].PEM(), "clientcrl.pem": revoked} {
		if err := os.WriteFile(filepath.Join(in.Ready.Data, "certs", name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	leaf, err := x509.ParseCertificate(certificates["fingerprint"].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	control(t, in, "tlsclients", "far-joe@far.test\nrelay1.far.test\nsha256:"+tlsx.Fingerprints(leaf)[0]+"\n")
	return certificates, files
}

// TestRelayMatrix: who may send to whom (wiki 2820-2857). Each client says the same to the running instance and asks `indigo relay test`: the answers
// must be the same, and those of the table.
func TestRelayMatrix(t *testing.T) {
	in := up(t)
	for _, args := range [][]string{
		{"user", "add", "bob@indigo.test", "--password-file", passwordFile(t)}, {"user", "flags", "bob@indigo.test", "--set", "NO_RELAY"},
		{"user", "add", "carol@indigo.test", "--password-file", passwordFile(t)}, {"user", "flags", "carol@indigo.test", "--set", "NO_SMTP"},
		{"alias", "add", "team@indigo.test", "&alice@indigo.test"},
	} {
		command(t, in, args...)
	}
	control(t, in, "relayclients", "10.1.1.:\n127.0.2.:\n")
	control(t, in, "relaydomains", ".heaven.test:\n")
	control(t, in, "relaymailfrom", "boss@indigo.test\n@trusted.test\n")
	control(t, in, "rcpthosts", "indigo.test\nbackup.test\n")
	control(t, in, "dnsservers", names(t, map[string]string{"mx.heaven.test": "127.0.4.1", "mx.elsewhere.test": "127.0.4.2"})+"\n")
	if err := os.MkdirAll(filepath.Join(in.Ready.Data, "tcp"), 0o755); err != nil {
		t.Fatal(err)
	}
	rules := "127.0.3.:allow,RELAYCLIENT=\"\"\n127.0.5.:allow,REQUIREAUTH=\"1\"\n127.0.6.:allow,RELAYCLIENT=\"\",AUTH_ALL=\"1\"\n127.0.7.:allow,RELAYCLIENT=\"\",NORELAY=\"1\"\n127.0.8.:deny\n:allow\n"
	if err := os.WriteFile(filepath.Join(in.Ready.Data, "tcp", "tcp.smtp"), []byte(rules), 0o644); err != nil {
		t.Fatal(err)
	}
	certificates, files := relayCertificates(t, in)
	command(t, in, "settings", "set", "SECURE_AUTH", "0", "--service", "pop3d.110")
	command(t, in, "settings", "set", "CHECKRELAY", "1", "--service", "pop3d.110")
	command(t, in, "settings", "set", "CHECKRELAY", "1", "--service", "smtpd.25")
	stop(t, in)
	in = again(t, in.Ready.Data)
	if replies, err := popLogins(in.Address("pop3d.110"), "127.0.9.1", [2]string{"alice@indigo.test", password}); err != nil || !strings.HasPrefix(replies[0], "+OK") {
		t.Fatal(replies, err)
	}
	if err := instance.Await(within(t, waiting), "the login stands in the table relay", func() (bool, error) {
		r, err := indigo.Run(within(t, time.Minute), "relay", "test", "--from", "joe@far.test", "--to", "ann@away.test", "--ip", "127.0.9.1", "--data", in.Ready.Data)
		return err == nil && r.Code == 0, err
	}); err != nil {
		t.Fatal(err)
	}

	// relays is the reply to a remote recipient; all, when it is not "", the reply to every one; by and where are what decides about a remote one.
	// certificate is the kind of relayCertificates that the client shows.
	clients := []struct{ name, ip, from, user, relays, all, by, where, certificate string }{
		{"stranger", "127.0.1.1", "joe@far.test", "", "550 5.7.1", "", "RELAYCLIENTS", "control/relayclients", ""},
		{"bounce from a stranger", "127.0.1.1", "", "", "550 5.7.1", "", "RELAYCLIENTS", "control/relayclients", ""},
		{"stranger as local user", "127.0.1.1", "alice@indigo.test", "", "550 5.7.1", "", "RELAYCLIENTS", "control/relayclients", ""},
		{"relayclients", "127.0.2.9", "joe@far.test", "", "250 2.1.5", "", "RELAYCLIENTS", "control/relayclients:2", ""},
		{"tcp.smtp RELAYCLIENT", "127.0.3.1", "joe@far.test", "", "250 2.1.5", "", "RELAYCLIENT", "tcp/tcp.smtp:1", ""},
		{"relaydomains", "127.0.4.1", "joe@far.test", "", "250 2.1.5", "", "RELAYDOMAINS", "control/relaydomains:1", ""},
		{"another host name", "127.0.4.2", "joe@far.test", "", "550 5.7.1", "", "RELAYCLIENTS", "control/relayclients", ""},
		{"relaymailfrom", "127.0.1.1", "boss@indigo.test", "", "250 2.1.5", "", "RELAYMAILFROM", "control/relaymailfrom:1", ""},
		{"relaymailfrom @domain", "127.0.1.1", "any@trusted.test", "", "250 2.1.5", "", "RELAYMAILFROM", "control/relaymailfrom:2", ""},
		{"AUTH", "127.0.1.1", "alice@indigo.test", "alice@indigo.test", "250 2.1.5", "", "", "", ""},
		{"AUTH with NO_RELAY", "127.0.1.1", "bob@indigo.test", "bob@indigo.test", "550 5.7.1", "", "", "", ""},
		{"AUTH with NO_RELAY from relayclients", "127.0.2.9", "bob@indigo.test", "bob@indigo.test", "550 5.7.1", "", "", "", ""},
		{"AUTH with NO_SMTP", "127.0.1.1", "carol@indigo.test", "carol@indigo.test", "535 5.7.8", "535 5.7.8", "", "", ""},
		{"REQUIREAUTH", "127.0.5.1", "joe@far.test", "", "530 5.7.0", "530 5.7.0", "REQUIREAUTH", "tcp/tcp.smtp:2", ""},
		{"REQUIREAUTH, AUTH", "127.0.5.1", "alice@indigo.test", "alice@indigo.test", "250 2.1.5", "", "", "", ""},
		{"AUTH_ALL", "127.0.6.1", "joe@far.test", "", "530 5.7.0", "", "AUTH_ALL", "tcp/tcp.smtp:3", ""},
		{"AUTH_ALL, AUTH", "127.0.6.1", "alice@indigo.test", "alice@indigo.test", "250 2.1.5", "", "", "", ""},
		{"NORELAY", "127.0.7.1", "joe@far.test", "", "550 5.7.1", "", "NORELAY", "tcp/tcp.smtp:4", ""},
		{"NORELAY, AUTH", "127.0.7.1", "alice@indigo.test", "alice@indigo.test", "550 5.7.1", "", "NORELAY", "tcp/tcp.smtp:4", ""},
		{"POP before SMTP", "127.0.9.1", "joe@far.test", "", "250 2.1.5", "", "CHECKRELAY", "services/smtpd.25/variables/CHECKRELAY:1", ""},
		{"POP before SMTP, another address", "127.0.9.2", "joe@far.test", "", "550 5.7.1", "", "RELAYCLIENTS", "control/relayclients", ""},
		{"certificate", "127.0.1.1", "joe@far.test", "", "250 2.1.5", "", "TLSCLIENTS", "control/tlsclients:1", "listed"},
		{"certificate, bounce", "127.0.1.1", "", "", "250 2.1.5", "", "TLSCLIENTS", "control/tlsclients:1", "listed"},
		{"certificate of a host", "127.0.1.1", "joe@far.test", "", "250 2.1.5", "", "TLSCLIENTS", "control/tlsclients:2", "listed host"},
		{"certificate by its fingerprint", "127.0.1.1", "joe@far.test", "", "250 2.1.5", "", "TLSCLIENTS", "control/tlsclients:3", "fingerprint"},
		{"certificate that is not listed", "127.0.1.1", "joe@far.test", "", "550 5.7.1", "", "TLSCLIENTS", "control/tlsclients", "not listed"},
		{"certificate of another authority", "127.0.1.1", "joe@far.test", "", "550 5.7.1", "", "TLSCLIENTS", "control/tlsclients", "of another authority"},
		{"expired certificate", "127.0.1.1", "joe@far.test", "", "550 5.7.1", "", "TLSCLIENTS", "control/tlsclients", "expired"},
		{"revoked certificate", "127.0.1.1", "joe@far.test", "", "550 5.7.1", "", "TLSCLIENTS", "control/tlsclients", "revoked"},
		{"revoked certificate from relayclients", "127.0.2.9", "joe@far.test", "", "250 2.1.5", "", "RELAYCLIENTS", "control/relayclients:2", "revoked"},
		{"certificate, AUTH with NO_RELAY", "127.0.1.1", "bob@indigo.test", "bob@indigo.test", "550 5.7.1", "", "", "", "listed"},
		{"certificate, REQUIREAUTH", "127.0.5.1", "joe@far.test", "", "530 5.7.0", "530 5.7.0", "REQUIREAUTH", "tcp/tcp.smtp:2", "listed"},
		{"certificate, AUTH_ALL", "127.0.6.1", "joe@far.test", "", "530 5.7.0", "", "AUTH_ALL", "tcp/tcp.smtp:3", "listed"},
		{"certificate, NORELAY", "127.0.7.1", "joe@far.test", "", "550 5.7.1", "", "NORELAY", "tcp/tcp.smtp:4", "listed"},
		{"denied", "127.0.8.1", "joe@far.test", "", "closed", "closed", "TCPRULES", "tcp/tcp.smtp:5", ""},
	}
	// reply "" stands for the client's own for remote recipients.
	recipients := []struct{ to, reply string }{
		{"alice@indigo.test", "250 2.1.5"}, {"ALICE@INDIGO.TEST", "250 2.1.5"}, {"nobody@indigo.test", "550 5.1.1"}, {"team@indigo.test", "250 2.1.5"}, {"postmaster", "250 2.1.5"},
		{"ann@backup.test", "250 2.1.5"}, {"ann@away.test", ""},
		// What old servers sent on: here these are names of nobody, or the remote address that they are (RFC 5321 appendix C).
		{"ann%away.test@indigo.test", "550 5.1.1"}, {`"ann@away.test"@indigo.test`, "550 5.1.1"}, {"away.test!ann@indigo.test", "550 5.1.1"},
		{"@indigo.test:ann@away.test", ""}, {"ann%away.test", "501 5.1.3"}, {"ann@away.test@indigo.test", "501 5.1.3"}, {`"ann@away.test"`, "501 5.1.3"}, {"away.test!ann", "501 5.1.3"},
		{"ann%other.test@away.test", ""}, {"ann@[192.0.2.1]", ""},
	}
	type answer struct {
		Allowed                           bool
		Relay                             bool
		Stage, Setting, Where, Reply, Why string
	}
	for _, c := range clients {
		t.Run(c.name, func(t *testing.T) {
			for _, r := range recipients {
				want := r.reply
				if want == "" {
					want = c.relays
				}
				if c.all != "" {
					want = c.all
				}
				real := relaySession(t, in, c.ip, c.user, certificates[c.certificate], c.from, r.to)
				if !strings.HasPrefix(real, want) {
					t.Errorf("session to %s: %s, want %s", r.to, real, want)
				}
				result, err := indigo.Run(within(t, time.Minute), "relay", "test", "--json", "--from", c.from, "--to", r.to, "--ip", c.ip, "--user", c.user, "--tls-client-cert", files[c.certificate], "--data", in.Ready.Data)
				var a answer
				if err == nil {
					err = json.Unmarshal([]byte(result.Out), &a)
				}
				if err != nil {
					t.Fatalf("%v: %s", err, result.Err)
				}
				allowed := strings.HasPrefix(real, "250")
				same := a.Reply == real || c.user != "" && a.Stage == "auth" && strings.HasPrefix(real, a.Reply) || real == "closed" && a.Stage == "connect"
				if a.Allowed != allowed || !same || (result.Code == 0) != allowed || a.Why == "" {
					t.Errorf("to %s: the session says %q, the command %+v, exit code %d", r.to, real, a, result.Code)
				}
				if r.to == "ann@away.test" && (a.Setting != c.by || a.Where != c.where) {
					t.Errorf("decided by %s (%s), want %s (%s): %s", a.Setting, a.Where, c.by, c.where, a.Why)
				}
			}
		})
	}
}
