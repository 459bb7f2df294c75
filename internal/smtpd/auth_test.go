package smtpd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"math/big"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xdg-go/scram"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/auth/sasl"
)

// offered gives the mechanisms of a reply to EHLO.
func offered(ehlo string) []string {
	for line := range strings.SplitSeq(ehlo, "\r\n") {
		if list, ok := strings.CutPrefix(line[4:], "AUTH "); ok {
			return strings.Fields(list)
		}
	}
	return nil
}

// authenticate logs in by a mechanism, and gives the last reply.
func (c *client) authenticate(t *testing.T, mechanism string, credentials sasl.Credentials) string {
	t.Helper()
	credentials.Host, credentials.Service = "mx.here.example", "smtp"
	exchange, err := sasl.NewClient(mechanism, credentials)
	if err != nil {
		t.Fatal(err)
	}
	response, err := exchange.Next(nil)
	if err != nil {
		t.Fatal(err)
	}
	line := "AUTH " + mechanism
	if response != nil {
		line += " " + base64.StdEncoding.EncodeToString(response)
	}
	for {
		c.send(line + "\r\n")
		r := c.reply()
		text, ok := strings.CutPrefix(r, "334 ")
		if !ok {
			if strings.HasPrefix(r, "235 ") {
				if err := exchange.Finish(); err != nil {
					t.Errorf("%s: %v", mechanism, err)
				}
			}
			return r
		}
		challenge, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		if response, err = exchange.Next(challenge); err != nil {
			t.Fatal(err)
		}
		line = base64.StdEncoding.EncodeToString(response)
	}
}

// TestMechanisms logs in by every mechanism in clear and over TLS 1.2 and 1.3, with each channel binding; a wrong password, an
// unknown user and another connection's binding all get the same reply.
func TestMechanisms(t *testing.T) {
	x := start(t, map[string]string{"secure_auth": "0"}, func(c *Config) { c.Auth = inClear{noSecrets{oneUser{}}} })
	for _, version := range []uint16{0, tls.VersionTLS12, tls.VersionTLS13} {
		dial := func() (*client, []string, []scram.ChannelBinding) {
			c := x.dial(t)
			c.want("220")
			ehlo := c.do("EHLO x", "250")
			if version == 0 {
				return c, offered(ehlo), nil
			}
			c.do("STARTTLS", "220")
			conn := tls.Client(c.conn, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version, ServerName: "mx.here.example"})
			if err := conn.Handshake(); err != nil {
				t.Fatal(err)
			}
			c = newClient(t, conn)
			state := conn.ConnectionState()
			return c, offered(c.do("EHLO x", "250")), sasl.Bindings(&state, state.PeerCertificates[0])
		}
		_, mechanisms, bindings := dial()
		want := "DIGEST-MD5 CRAM-SHA512 CRAM-SHA384 CRAM-SHA256 CRAM-SHA224 CRAM-SHA1 CRAM-RIPEMD CRAM-MD5 PLAIN LOGIN"
		if version == 0 {
			want = "SCRAM-SHA-512 SCRAM-SHA-256 SCRAM-SHA-1 " + want
		} else {
			want = "SCRAM-SHA-512-PLUS SCRAM-SHA-256-PLUS SCRAM-SHA-1-PLUS SCRAM-SHA-512 SCRAM-SHA-256 SCRAM-SHA-1 " + want
		}
		if got := strings.Join(mechanisms, " "); got != want {
			t.Errorf("TLS %x: %s", version, got)
		}
		if n := map[uint16]int{0: 0, tls.VersionTLS12: 3, tls.VersionTLS13: 2}[version]; len(bindings) != n {
			t.Errorf("TLS %x: bindings %v", version, bindings)
		} else if first := map[uint16]scram.ChannelBindingType{tls.VersionTLS12: scram.ChannelBindingTLSUnique, tls.VersionTLS13: scram.ChannelBindingTLSExporter}[version]; n > 0 && bindings[0].Type != first {
			t.Errorf("TLS %x: a client takes %s, want %s", version, bindings[0].Type, first)
		}
		for _, mechanism := range mechanisms {
			plus := strings.HasSuffix(mechanism, "-PLUS")
			for i := range max(1, len(bindings)) {
				if i > 0 && !plus {
					continue
				}
				for _, try := range []struct{ user, password, reply string }{
					{"ann@here.example", password, "235 2.7.0 "},
					{"ann@here.example", "wrong", "535 5.7.8 authorization failed (#5.7.8)"},
					{"nobody@here.example", password, "535 5.7.8 authorization failed (#5.7.8)"},
					{"down", password, "454 4.7.0 "},
				} {
					c, offers, bound := dial()
					credentials := sasl.Credentials{User: try.user, Password: try.password, Offered: offers, Bindings: bound}
					if plus {
						credentials.Bindings = bound[i:]
					}
					if r := c.authenticate(t, mechanism, credentials); !strings.HasPrefix(r, try.reply) {
						t.Errorf("TLS %x %s %s: %q", version, mechanism, try.user, r)
					}
				}
				if plus {
					c, offers, bound := dial()
					bound[i].Data[0] ^= 1
					if r := c.authenticate(t, mechanism, sasl.Credentials{User: "ann@here.example", Password: password, Offered: offers, Bindings: bound[i:]}); !strings.HasPrefix(r, "535 5.7.8 authorization failed (#5.7.8)") {
						t.Errorf("TLS %x %s bound to another connection: %q", version, mechanism, r)
					}
				}
			}
			if base := mechanism + "-PLUS"; version != 0 && strings.HasPrefix(mechanism, "SCRAM") && !plus {
				// Who hides -PLUS from the client makes it say that it saw none.
				c, _, bound := dial()
				if r := c.authenticate(t, mechanism, sasl.Credentials{User: "ann@here.example", Password: password, Bindings: bound}); !strings.HasPrefix(r, "535 5.7.8 authorization failed (#5.7.8)") {
					t.Errorf("TLS %x: %s hidden: %q", version, base, r)
				}
			}
		}
	}
	for _, e := range x.trace.all() {
		if strings.Contains(e.Input+e.Reply+e.User, password) {
			t.Errorf("a password in the trace: %+v", e)
		}
	}
}

// bearers let in tokens of x alone.
type bearers struct{ noSecrets }

func (bearers) Tokens() bool { return true }
func (bearers) Token(_ context.Context, a auth.Attempt) (auth.Identity, error) {
	if strings.Trim(a.Password, "x") != "" {
		return auth.Identity{}, auth.Refused(errors.New("token expired"))
	}
	return auth.Identity{Address: addr.Address{Local: "ann", Domain: "here.example"}}, nil
}

// TestTokens: tokens of 8 KiB behind AUTH, beyond a command line's length, and after a challenge; and that a refusal is in the trace, even of a
// client that goes away when it has heard why, or cancels.
func TestTokens(t *testing.T) {
	x := start(t, map[string]string{"secure_auth": "0"}, func(c *Config) { c.Auth = bearers{noSecrets{oneUser{}}} })
	say := func(token string) string {
		return base64.StdEncoding.EncodeToString([]byte("user=ann@here.example\x01auth=Bearer " + token + "\x01\x01"))
	}
	open := func() *client {
		c := x.dial(t)
		c.want("220")
		c.do("EHLO x", "250")
		return c
	}
	long := say(strings.Repeat("x", 8192))
	open().do("AUTH XOAUTH2 "+long, "235 2.7.0")
	c := open()
	c.do("AUTH XOAUTH2", "334 ")
	c.do(long, "235 2.7.0")
	c = open()
	c.do("AUTH XOAUTH2 "+say(strings.Repeat("x", 9300)), "500 ")
	const why = "334 eyJzdGF0dXMiOiI0MDEi"
	c.do("AUTH XOAUTH2 "+say("old"), why)
	c.do("", "535 5.7.8 authorization failed")
	c.do("AUTH XOAUTH2 "+say("old"), why)
	c.do("*", "535 5.7.8 authorization failed")
	c = open()
	c.do("AUTH XOAUTH2 "+say("old"), why)
	c.conn.Close()
	refused := func() (n int) {
		for _, e := range x.trace.all() {
			if e.Kind == "auth" && e.Verdict == "reject" && strings.Contains(e.Input, "token expired") && e.User == "ann@here.example" {
				n++
			}
		}
		return n
	}
	for limit := time.Now().Add(10 * time.Second); refused() < 3 && time.Now().Before(limit); {
		runtime.Gosched()
	}
	if n := refused(); n != 3 {
		t.Errorf("%d refusals are in the trace: %+v", n, x.trace.all())
	}
}

// TestResumed: in a resumed session no certificate is shown, so that its end point cannot be bound to; the rest can.
func TestResumed(t *testing.T) {
	x := start(t, nil, func(c *Config) { c.Auth = inClear{noSecrets{oneUser{}}} })
	config := &tls.Config{InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(4), ServerName: "mx.here.example"}
	for _, resumed := range []bool{false, true} {
		c := x.dial(t)
		c.want("220")
		c.do("EHLO x", "250")
		c.do("STARTTLS", "220")
		conn := tls.Client(c.conn, config)
		if err := conn.Handshake(); err != nil {
			t.Fatal(err)
		}
		c = newClient(t, conn)
		state := conn.ConnectionState()
		if state.DidResume != resumed {
			t.Fatalf("resumed: %v", state.DidResume)
		}
		c.do("EHLO x", "250")
		bindings := sasl.Bindings(&state, state.PeerCertificates[0])
		if r := c.authenticate(t, "SCRAM-SHA-256-PLUS", sasl.Credentials{User: "ann@here.example", Password: password, Bindings: bindings}); !strings.HasPrefix(r, "235") {
			t.Errorf("tls-exporter, resumed %v: %s", resumed, r)
		}
	}
}

// authority issues certificates for clients.
type authority struct {
	leaf *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (a *authority) issue(t *testing.T, addresses ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), EmailAddresses: addresses,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	parent, signer := template, key
	if a.leaf != nil {
		parent, signer = a.leaf, a.key
	} else {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if a.leaf == nil {
		a.leaf, a.key = leaf, key
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestExternal: a verified certificate with a mail address logs its user in, where the operator wants that.
func TestExternal(t *testing.T) {
	var ours, strange authority
	ours.issue(t)
	strange.issue(t)
	pool := x509.NewCertPool()
	pool.AddCert(ours.leaf)
	server, err := testTLS().GetConfigForClient(&tls.ClientHelloInfo{})
	if err != nil {
		t.Fatal(err)
	}
	server = server.Clone()
	server.ClientCAs, server.ClientAuth = pool, tls.VerifyClientCertIfGiven
	for _, c := range []struct {
		name, on    string
		certificate []tls.Certificate
		response    string
		offered     bool
		reply       string
	}{
		{"right", "1", []tls.Certificate{ours.issue(t, "ann@here.example")}, "=", true, "235 2.7.0"},
		{"named", "1", []tls.Certificate{ours.issue(t, "bob@here.example", "ann@here.example")}, b64("ann@here.example"), true, "235 2.7.0"},
		{"another", "1", []tls.Certificate{ours.issue(t, "ann@here.example")}, b64("bob@here.example"), true, "535 5.7.8 authorization failed (#5.7.8)"},
		{"off", "0", []tls.Certificate{ours.issue(t, "ann@here.example")}, "=", false, "504 5.5.4"},
		{"no address", "1", []tls.Certificate{ours.issue(t)}, "=", false, "504 5.5.4"},
		{"no certificate", "1", nil, "=", false, "504 5.5.4"},
	} {
		x := start(t, map[string]string{"auth_external": c.on}, func(config *Config) {
			config.TLS, config.Auth = server, inClear{noSecrets{oneUser{}}}
		})
		k := x.dial(t)
		k.want("220")
		k.do("EHLO x", "250")
		k.do("STARTTLS", "220")
		conn := tls.Client(k.conn, &tls.Config{InsecureSkipVerify: true, Certificates: c.certificate})
		if err := conn.Handshake(); err != nil {
			t.Fatal(err)
		}
		k = newClient(t, conn)
		if got := slices.Contains(offered(k.do("EHLO x", "250")), "EXTERNAL"); got != c.offered {
			t.Errorf("%s: offered: %v", c.name, got)
		}
		k.do("AUTH EXTERNAL "+c.response, c.reply)
	}
	// A certificate of another authority ends the handshake, so that it never comes to AUTH.
	x := start(t, map[string]string{"auth_external": "1"}, func(config *Config) { config.TLS = server })
	k := x.dial(t)
	k.want("220")
	k.do("EHLO x", "250")
	k.do("STARTTLS", "220")
	certificate := strange.issue(t, "ann@here.example")
	conn := tls.Client(k.conn, &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }})
	if err := conn.Handshake(); err == nil {
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("a stranger's certificate is taken")
		}
	}
}

// TestOldAuth: AUTH= for old clients, where that is set.
func TestOldAuth(t *testing.T) {
	for value, want := range map[string]string{"0": "250 AUTH PLAIN LOGIN", "1": "250-AUTH PLAIN LOGIN\r\n250 AUTH=PLAIN LOGIN"} {
		x := start(t, map[string]string{"secure_auth": "0", "broken_sasl_auth_clients": value}, nil)
		k := x.dial(t)
		k.want("220")
		if r := k.do("EHLO x", "250"); !strings.HasSuffix(r, want) {
			t.Errorf("%s: %s", value, r)
		}
	}
}
