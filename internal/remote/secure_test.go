package remote

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/lab"
	"github.com/indigomail/indigo/internal/tlsx"
)

// oldStyle makes a certificate whose name stands in the subject alone, and is its own authority.
func oldStyle(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(9), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestSecurityOfRelays: to which servers mail and passwords go, by each setting and each of qmail's files, and what the operator is told.
func TestSecurityOfRelays(t *testing.T) {
	authority, err := lab.NewAuthority(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := lab.NewAuthority(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(a *lab.Authority, valid time.Duration, names ...string) *tls.Config {
		c, err := a.Issue(valid, names...)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{Certificates: []tls.Certificate{c}}
	}
	good, expired, other, foreign := issue(authority, time.Hour, "relay.test"), issue(authority, -time.Minute, "relay.test"), issue(authority, time.Hour, "other.test"), issue(stranger, time.Hour, "relay.test")
	old := &tls.Config{Certificates: []tls.Certificate{oldStyle(t, "relay.test")}}
	oldOther := &tls.Config{Certificates: []tls.Certificate{oldStyle(t, "other.test")}}
	prints := func(c *tls.Config) []string {
		leaf, err := x509.ParseCertificate(c.Certificates[0].Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return tlsx.Fingerprints(leaf)
	}
	text := func(c *tls.Config) string {
		b, err := lab.Files(c.Certificates[0])
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	withAuthority := func(more map[string]string) map[string]string {
		all := map[string]string{"remote_tls_ca": "certs/relays.pem", "certs/relays.pem": string(authority.PEM())}
		for name, value := range more {
			all[name] = value
		}
		return all
	}
	set := func(pairs ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	const unverified, noTLS = "451 4.7.5 ", "451 4.7.0 "
	scram := []string{"SCRAM-SHA-256", "PLAIN"}
	for _, tc := range []struct {
		name string
		// files are control files, and with a slash others of the data directory; options stand behind the route's password.
		files      map[string]string
		options    string
		server     *tls.Config
		mechanisms []string
		// want is "tls", "clear" or the beginning of the deferral; shown stands in the dialogue.
		want, shown string
	}{
		{"verified", withAuthority(nil), "", good, nil, "tls", "certificate verified for relay.test"},
		{"no authority", nil, "", good, nil, unverified, "no authority that is trusted here has signed it"},
		{"another authority", withAuthority(nil), "", foreign, nil, unverified, "REMOTE_TLS_FINGERPRINT=sha256:" + prints(foreign)[0]},
		{"expired", withAuthority(nil), "", expired, nil, unverified, "it has expired at "},
		{"another name", withAuthority(nil), "", other, nil, unverified, "it is not for relay.test"},
		{"another name that is wanted", withAuthority(nil), "REMOTE_TLS_NAME=other.test", other, nil, "tls", "certificate verified for other.test"},
		{"no name but in the subject", set("remote_tls_ca", "certs/ca.pem", "certs/ca.pem", text(old)), "", old, nil, unverified, "! "},
		{"SCRAM shows no password", withAuthority(nil), "", foreign, scram, "tls", "by SCRAM-SHA-256"},
		{"SCRAM, but only verified", withAuthority(nil), "REMOTE_TLS=verify", foreign, scram, unverified, "wanted is TLS only, with a certificate that is verified for relay.test (REMOTE_TLS=verify, control/smtproutes:1"},
		{"a password without care", nil, "REMOTE_TLS=may", expired, nil, "tls", "by PLAIN"},
		{"a password, encrypted", nil, "REMOTE_TLS=encrypt", expired, nil, "tls", "by PLAIN"},
		{"a password in clear is allowed: to a stranger too", nil, "REMOTE_PLAIN_AUTH=1", foreign, nil, "tls", "by PLAIN"},
		{"encrypted, without STARTTLS", nil, "REMOTE_TLS=encrypt", nil, scram, "451 4.7.4 ", "TLS is wanted by REMOTE_TLS=encrypt, control/smtproutes:1"},
		{"encrypted, and STARTTLS fails", nil, "REMOTE_TLS=encrypt", &tls.Config{}, scram, "451 4.4.2 ", "TLS failed"},
		{"none", withAuthority(nil), "REMOTE_TLS=none", good, nil, noTLS, "would show the password"},
		{"none, with SCRAM", withAuthority(nil), "REMOTE_TLS=none", good, scram, "clear", "by SCRAM-SHA-256"},
		{"fingerprint", nil, "REMOTE_TLS_FINGERPRINT=sha256:" + prints(expired)[0], expired, nil, "tls", "certificate has the fingerprint"},
		{"fingerprint as openssl prints it", nil, "REMOTE_TLS_FINGERPRINT=SHA256:" + strings.ToUpper(tlsx.Colons(prints(foreign)[0])), foreign, nil, "tls", "certificate has the fingerprint"},
		{"fingerprint of the key, the second of two", nil, "REMOTE_TLS_FINGERPRINT=sha256:" + prints(good)[0] + " sha256:" + prints(foreign)[1], foreign, nil, "tls", "certificate has the fingerprint"},
		{"another fingerprint, whoever signed", withAuthority(nil), "REMOTE_TLS_FINGERPRINT=sha256:" + prints(foreign)[0], good, scram, unverified, "its fingerprint is another, sha256:" + prints(good)[0]},
		{"another fingerprint of the key", nil, "REMOTE_TLS_FINGERPRINT=sha256:" + prints(foreign)[1], good, scram, unverified, "its fingerprint is another"},
		{"fingerprint, without STARTTLS", nil, "REMOTE_TLS_FINGERPRINT=sha256:" + prints(good)[0], nil, scram, "451 4.7.4 ", "REMOTE_TLS_FINGERPRINT"},
		{"authorities that are not there", set("remote_tls_ca", "certs/nothing.pem"), "", good, nil, unverified, "REMOTE_TLS_CA of control/remote_tls_ca:1: open "},
		{"authorities that are none", set("remote_tls_ca", "control/me", "me", "here.test"), "", good, nil, unverified, "holds no certificate in PEM"},
		{"tlshosts", set("certs/tlshosts/relay.test.pem", string(authority.PEM())), "", good, nil, "tls", "certificate verified for relay.test"},
		{"tlshosts goes before REMOTE_TLS", set("certs/tlshosts/relay.test.pem", string(authority.PEM())), "REMOTE_TLS=none", foreign, scram, unverified, "tlshosts/relay.test.pem"},
		{"tlshosts trusts nobody else", withAuthority(set("certs/tlshosts/relay.test.pem", string(stranger.PEM()))), "", good, scram, unverified, "no authority that is trusted"},
		{"tlshosts, without STARTTLS", set("certs/tlshosts/relay.test.pem", string(authority.PEM())), "", nil, scram, "451 4.7.4 ", "tlshosts/relay.test.pem"},
		{"tlshosts, the name in the subject", set("certs/tlshosts/relay.test.pem", text(old)), "", old, nil, "tls", "certificate verified"},
		{"tlshosts, another name in the subject", set("certs/tlshosts/relay.test.pem", text(oldOther)), "", oldOther, nil, unverified, "it is not for relay.test"},
		{"tlshosts of another", set("certs/tlshosts/other.test.pem", string(authority.PEM())), "", foreign, scram, "tls", ""},
		{"tlshosts that is no certificate", set("certs/tlshosts/relay.test.pem", "nonsense"), "", good, scram, unverified, "holds no certificate in PEM"},
		{"exhaustivelist", withAuthority(set("certs/tlshosts/exhaustivelist", "")), "", good, scram, "clear", "by SCRAM-SHA-256"},
		{"exhaustivelist and tlshosts", set("certs/tlshosts/exhaustivelist", "", "certs/tlshosts/relay.test.pem", string(authority.PEM())), "", good, nil, "tls", "verified"},
		{"notlshosts by the server", withAuthority(set("certs/notlshosts/relay.test", "")), "", good, scram, "clear", ""},
		{"notlshosts by the recipient", withAuthority(set("certs/notlshosts/far.test", "")), "", good, scram, "clear", ""},
		{"notlshosts, and a password", withAuthority(set("certs/notlshosts/far.test", "")), "", good, nil, noTLS, "would show the password"},
		{"notlshosts of another", withAuthority(set("certs/notlshosts/near.test", "")), "", good, nil, "tls", ""},
		{"notlshosts and tlshosts", set("certs/notlshosts/relay.test", "", "certs/tlshosts/relay.test.pem", string(authority.PEM())), "", good, nil, "tls", "verified"},
		{"control/notlshosts", withAuthority(set("notlshosts", "far.test")), "", good, scram, "clear", ""},
		{"control/notlshosts, all below", withAuthority(set("notlshosts", ".test")), "", good, scram, "clear", ""},
		{"control/notlshosts of another", withAuthority(set("notlshosts", "near.test")), "", good, scram, "tls", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, control := t.TempDir(), map[string]string{"smtproutes": ":relay.test:587 me secret " + tc.options}
			for name, value := range tc.files {
				if !strings.Contains(name, "/") {
					control[name] = value
					continue
				}
				file := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(value), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var log bytes.Buffer
			i := newInternetWith(t, relayZone, viewIn(t, dir, control), slog.NewTextHandler(&log, nil))
			defer i.Close()
			i.config.Data, i.config.Certificates = dir, func() string { return filepath.Join(dir, "certs") }
			p := &lab.Peer{Name: "relay.test", TLS: tc.server, Users: map[string]string{"me": "secret"}, Mechanisms: tc.mechanisms}
			i.network.Listen("192.0.2.1:587", p.Serve)
			for range 2 {
				r := i.Deliver(t.Context(), job("far.test", "u"))[0]
				got, dialogue := "nothing", strings.Join(r.Dialogue, "\n")
				if r.Err != nil {
					got = r.Err.Reply()
				} else if mails := p.Mails(); len(mails) > 0 && mails[len(mails)-1].TLS {
					got = "tls"
				} else if len(mails) > 0 {
					got = "clear"
				}
				if !strings.HasPrefix(got, tc.want) || !strings.Contains(dialogue, tc.shown) && r.Dialogue[0] != "* connection used again: relay.test (192.0.2.1:587)" {
					t.Errorf("%s, want %s and %q\n%s", got, tc.want, tc.shown, dialogue)
				}
				if strings.HasPrefix(tc.want, "451") && (len(p.Mails()) > 0 || strings.Contains(strings.Join(p.Lines(), "\n"), "AUTH PLAIN")) {
					t.Errorf("something was sent: %q", p.Lines())
				}
			}
			if n := strings.Count(log.String(), "level=WARN"); (n == 1) != (tc.want == unverified) {
				t.Errorf("%d warnings: %s", n, &log)
			}
			way, e := i.Way(t.Context(), "far.test", job("far.test", "u").Envelope.Sender, job("far.test", "u").Recipients[0].Address)
			if e != nil || len(way.Hosts) != 1 || !strings.HasPrefix(way.Hosts[0], "relay.test (192.0.2.1:587)") {
				t.Errorf("%+v %v", way, e)
			}
		})
	}
}

// TestSecurityOfConnections: a connection that is open for one domain is not used for another whose mail wants something else of TLS.
func TestSecurityOfConnections(t *testing.T) {
	ways, _ := security(t)
	dir := t.TempDir()
	i := newInternetWith(t, relayZone, viewIn(t, dir, map[string]string{"smtproutes": ":relay.test:587", "notlshosts": "far.test", "rcpt.envrules": "*@other.test:REMOTE_TLS=encrypt"}), slog.DiscardHandler)
	defer i.Close()
	p := &lab.Peer{Name: "relay.test", TLS: ways["starttls"]}
	i.network.Listen("192.0.2.1:587", p.Serve)
	for _, domain := range []string{"far.test", "near.test", "other.test", "far.test", "near.test", "other.test"} {
		if got := i.send(t, domain); got != "ok" {
			t.Fatalf("%s: %s", domain, got)
		}
	}
	var got []bool
	for _, m := range p.Mails() {
		got = append(got, m.TLS)
	}
	if !slices.Equal(got, []bool{false, true, true, false, true, true}) || p.Connections() != 3 {
		t.Errorf("%v over %d connections", got, p.Connections())
	}
}

// TestRouteWithoutLogin: settings of a route that has nothing to log in with, and of a line without a relay, which leaves the domain to its MX.
func TestRouteWithoutLogin(t *testing.T) {
	authority, err := lab.NewAuthority(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := authority.Issue(time.Hour, "relay.test", "mx1.far.test")
	if err != nil {
		t.Fatal(err)
	}
	const verified = " REMOTE_TLS=verify,REMOTE_TLS_CA=ca.pem"
	for _, tc := range []struct{ route, at, want string }{
		{":relay.test:587", "192.0.2.1:587", "ok"},
		{":relay.test:587 REMOTE_TLS=verify", "192.0.2.1:587", "451 4.7.5 "},
		{":relay.test:587" + verified, "192.0.2.1:587", "ok"},
		{":relay.test:587" + verified + ",REMOTE_TLS_NAME=other.test", "192.0.2.1:587", "451 4.7.5 "},
		{"far.test:" + verified + ",REMOTE_TLS_NAME=relay.test", "192.0.2.2:25", "ok"},
		{"far.test: REMOTE_TLS=verify", "192.0.2.2:25", "451 4.7.5 "},
		{"far.test::25 me secret REMOTE_TLS=verify", "192.0.2.2:25", "ok"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "ca.pem"), authority.PEM(), 0o600); err != nil {
			t.Fatal(err)
		}
		i := newInternetWith(t, relayZone+"far.test. MX 10 mx1.far.test.\nmx1.far.test. A 192.0.2.2\n", viewIn(t, dir, map[string]string{"smtproutes": tc.route}), slog.DiscardHandler)
		i.config.Data = dir
		p := &lab.Peer{Name: "relay.test", TLS: &tls.Config{Certificates: []tls.Certificate{certificate}}}
		i.network.Listen(tc.at, p.Serve)
		r := i.Deliver(t.Context(), job("far.test", "u"))[0]
		got := "ok"
		if r.Err != nil {
			got = r.Err.Reply()
		}
		if !strings.HasPrefix(got, tc.want) {
			t.Errorf("%s: %s, want %s\n%s", tc.route, got, tc.want, strings.Join(r.Dialogue, "\n"))
		}
		if said := strings.Join(r.Dialogue, "\n"); r.Err != nil && !strings.Contains(said, "control/smtproutes:1") {
			t.Errorf("%s: the line is not told\n%s", tc.route, said)
		}
		i.Close()
	}
}

// TestOwnCertificate: deliveries show clientcert.pem, or what CLIENTCERT names, to servers that ask; a key that everybody may read is not used.
func TestOwnCertificate(t *testing.T) {
	authority, err := lab.NewAuthority(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	server, err := authority.Issue(time.Hour, "relay.test")
	if err != nil {
		t.Fatal(err)
	}
	mine, err := authority.Issue(time.Hour, "here.test")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := lab.Files(mine)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, file, options string
		mode                os.FileMode
		content             []byte
		want                string
	}{
		{"clientcert.pem", "certs/clientcert.pem", "", 0o600, pair, "here.test"},
		{"CLIENTCERT", "certs/me.pem", " x y CLIENTCERT=certs/me.pem", 0o600, pair, "here.test"},
		{"none", "certs/else.pem", "", 0o600, pair, ""},
		{"everybody may read it", "certs/clientcert.pem", "", 0o644, pair, "451 4.7.5 "},
		{"nonsense", "certs/clientcert.pem", "", 0o600, []byte("nonsense"), "451 4.7.5 "},
		{"not there", "certs/else.pem", " x y CLIENTCERT=certs/me.pem", 0o600, pair, "451 4.7.5 "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, tc.file)
			if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, tc.content, tc.mode); err != nil {
				t.Fatal(err)
			}
			i := newInternetWith(t, relayZone, viewIn(t, dir, map[string]string{"smtproutes": ":relay.test:587" + tc.options, "REMOTE_TLS": "may"}), slog.DiscardHandler)
			defer i.Close()
			i.config.Data, i.config.Certificates = dir, func() string { return filepath.Join(dir, "certs") }
			shown := make(chan string, 9)
			config := &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequestClientCert, VerifyConnection: func(s tls.ConnectionState) error {
				name := ""
				if len(s.PeerCertificates) > 0 {
					name = s.PeerCertificates[0].DNSNames[0]
				}
				shown <- name
				return nil
			}}
			p := &lab.Peer{Name: "relay.test", TLS: config, Users: map[string]string{"x": "y"}}
			i.network.Listen("192.0.2.1:587", p.Serve)
			got := i.send(t, "far.test")
			if got == "ok" {
				got = <-shown
			}
			if !strings.HasPrefix(got, tc.want) || tc.want == "" && got != "" {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}
