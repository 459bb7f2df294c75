package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/indigomail/indigo/test/instance"
)

// pebble is Let's Encrypt's test authority, on free ports of the loopback.
type pebble struct {
	directory, roots string
	log              string
}

// startPebble starts an authority that looks hosts up as 127.0.0.1 and connects to these ports of them.
func startPebble(t *testing.T, httpPort, tlsPort string) *pebble {
	t.Helper()
	dir := folder(t)
	program := filepath.Join(dir, "pebble")
	build := exec.Command("go", "build", "-modfile", "tools/go.mod", "-o", program, "github.com/letsencrypt/pebble/v2/cmd/pebble")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		missing(t, fmt.Sprintf("pebble cannot be built: %v: %s", err, out))
	}
	// Pebble asks over TCP.
	questions, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	names := &dns.Server{Listener: questions, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			rr, err := dns.NewRR(q.Question[0].Name + " 60 IN A 127.0.0.1")
			if err == nil {
				m.Answer = append(m.Answer, rr)
			}
		}
		w.WriteMsg(m)
	})}
	go names.ActivateAndServe()
	t.Cleanup(func() { names.Shutdown() })
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	p := &pebble{roots: filepath.Join(dir, "roots.pem"), log: filepath.Join(dir, "log")}
	for name, block := range map[string]*pem.Block{"roots.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	number := func(port string) int {
		n := 0
		fmt.Sscan(port, &n)
		return n
	}
	listen := freePort(t)
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": fmt.Sprintf("127.0.0.1:%d", listen), "managementListenAddress": fmt.Sprintf("127.0.0.1:%d", freePort(t)),
		"certificate": p.roots, "privateKey": filepath.Join(dir, "key.pem"), "httpPort": number(httpPort), "tlsPort": number(tlsPort),
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, "-config", filepath.Join(dir, "config.json"), "-dnsserver", questions.Addr().String())
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	p.directory = fmt.Sprintf("https://localhost:%d/dir", listen)
	err = instance.Await(within(t, waiting), "pebble", func() (bool, error) {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", listen), time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// certificate gives what a service shows to a client that asks for a host.
func certificate(ctx context.Context, address, host string) (*x509.Certificate, error) {
	d := tls.Dialer{Config: &tls.Config{ServerName: host, InsecureSkipVerify: true}}
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// TestACME gets certificates from a real ACME server by each challenge alone: they are shown by every service without a
// restart, other names keep the old certificate, and after a restart they are there at once.
func TestACME(t *testing.T) {
	for _, challenge := range []string{"acme.80", "acme.443"} {
		t.Run(challenge, func(t *testing.T) {
			in := up(t)
			command(t, in, "service", "add", challenge)
			var services []struct{ Name, Address string }
			if err := json.Unmarshal([]byte(command(t, in, "service", "list", "--json")), &services); err != nil {
				t.Fatal(err)
			}
			port := ""
			for _, s := range services {
				if s.Name == challenge {
					_, port, _ = net.SplitHostPort(s.Address)
				}
			}
			ca := startPebble(t, port, port)
			command(t, in, "settings", "set", "ACME_DIRECTORY", ca.directory)
			command(t, in, "settings", "set", "ACME_ROOTS", ca.roots)
			command(t, in, "settings", "set", "ACME_EMAIL", "postmaster@example.test")
			command(t, in, "settings", "set", "ACME_HOSTS", "mail.example.test\nimap.example.test")
			command(t, in, "reload")
			ctx := within(t, time.Minute)
			for service, host := range map[string]string{"smtpd.465": "mail.example.test", "imapd.993": "imap.example.test", "pop3d.995": "mail.example.test"} {
				err := instance.Await(ctx, "the certificate for "+host, func() (bool, error) {
					c, err := certificate(ctx, in.Address(service), host)
					return err == nil && strings.Contains(c.Issuer.CommonName, "Pebble"), err
				})
				if err != nil {
					text, _ := os.ReadFile(ca.log)
					t.Fatalf("%v\n%s\n%s", err, in.Log(), text)
				}
				c, err := certificate(ctx, in.Address(service), host)
				if err != nil || c.VerifyHostname(host) != nil {
					t.Errorf("%s: %v for %v", service, err, c.DNSNames)
				}
			}
			if c, err := certificate(ctx, in.Address("smtpd.465"), "other.example.test"); err != nil || strings.Contains(c.Issuer.CommonName, "Pebble") {
				t.Errorf("another name: %v %v", err, c.Issuer)
			}
			if c, err := certificate(ctx, in.Address("smtpd.465"), ""); err != nil || c.VerifyHostname("mail.example.test") != nil {
				t.Errorf("no name: %v %v", err, c.DNSNames)
			}
			info, err := os.Stat(filepath.Join(in.Ready.Data, "certs", "acme"))
			if err != nil || info.Mode().Perm()&0o077 != 0 {
				t.Errorf("certs/acme: %v %v", info, err)
			}
			stop(t, in)
			in2 := again(t, in.Ready.Data)
			err = instance.Await(ctx, "the certificate after a restart", func() (bool, error) {
				c, err := certificate(ctx, in2.Address("smtpd.465"), "mail.example.test")
				return err == nil && strings.Contains(c.Issuer.CommonName, "Pebble"), err
			})
			if err != nil {
				t.Error(err)
			}
			try(t, in2)
		})
	}
}
