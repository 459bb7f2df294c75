package tlsx

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func selfSigned(t *testing.T, file string, hosts ...string) {
	t.Helper()
	if err := SelfSigned(file, hosts, time.Now()); err != nil {
		t.Fatal(err)
	}
}

// handshake does one over a pipe, and gives what both ends came to.
func handshake(t *testing.T, server, client *tls.Config) (s, c tls.ConnectionState, err error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	for _, conn := range []net.Conn{a, b} {
		conn.SetDeadline(time.Now().Add(10 * time.Second))
	}
	serving, known := Server(a, server)
	ended := make(chan error, 1)
	go func() {
		err := serving.HandshakeContext(t.Context())
		if err != nil {
			a.Close()
		}
		ended <- err
	}()
	asking := tls.Client(b, client)
	if err := asking.HandshakeContext(t.Context()); err != nil {
		b.Close()
		<-ended
		return s, c, err
	}
	// A pipe holds nothing: what the server still has to say must be read.
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		io.Copy(io.Discard, asking)
	}()
	defer func() {
		b.Close()
		<-heard
	}()
	// With TLS 1.3 the server refuses a client's certificate behind the client's handshake.
	if err := <-ended; err != nil {
		return s, c, err
	}
	return known().State, asking.ConnectionState(), nil
}

func names(c tls.ConnectionState) string { return strings.Join(c.PeerCertificates[0].DNSNames, " ") }

func TestNames(t *testing.T) {
	dir := t.TempDir()
	selfSigned(t, filepath.Join(dir, "servercert.pem"), "mail.example.org")
	selfSigned(t, filepath.Join(dir, "another.pem"), "mx.example.net", "smtp.example.net")
	selfSigned(t, filepath.Join(dir, "clientcert.pem"), "client.example.org")
	store, err := NewStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	config := store.ServerConfig(func() Options { return Options{} })
	for asked, want := range map[string]string{
		"mail.example.org": "mail.example.org", "smtp.example.net": "mx.example.net smtp.example.net", "unknown.example": "mail.example.org", "": "mail.example.org",
		"client.example.org": "mail.example.org",
	} {
		_, c, err := handshake(t, config, &tls.Config{ServerName: asked, InsecureSkipVerify: true})
		if err != nil || names(c) != want {
			t.Errorf("%q: %v %v", asked, err, c.PeerCertificates)
		}
	}
	// A new file counts after a reload, without a restart; a damaged one changes nothing.
	selfSigned(t, filepath.Join(dir, "servercert.pem"), "new.example.org")
	if _, c, _ := handshake(t, config, &tls.Config{InsecureSkipVerify: true}); names(c) != "mail.example.org" {
		t.Errorf("before the reload: %s", names(c))
	}
	if err := store.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, c, _ := handshake(t, config, &tls.Config{InsecureSkipVerify: true}); names(c) != "new.example.org" {
		t.Errorf("after the reload: %s", names(c))
	}
	if err := os.WriteFile(filepath.Join(dir, "another.pem"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := store.Reload(); err == nil || !strings.Contains(err.Error(), "another.pem") {
		t.Errorf("a damaged file: %v", err)
	}
	if _, c, _ := handshake(t, config, &tls.Config{ServerName: "mx.example.net", InsecureSkipVerify: true}); names(c) != "mx.example.net smtp.example.net" {
		t.Errorf("after a reload that failed: %s", names(c))
	}
	if _, err := NewStore(t.TempDir()); err == nil {
		t.Error("an empty directory was taken")
	}
}

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "cert.pem")
	selfSigned(t, file, "mail.example.org")
	store, err := NewStore(file)
	if err != nil {
		t.Fatal(err)
	}
	var options Options
	config := store.ServerConfig(func() Options { return options })
	try := func(client *tls.Config) (tls.ConnectionState, error) {
		client.InsecureSkipVerify = true
		s, _, err := handshake(t, config, client)
		return s, err
	}
	if _, err := try(&tls.Config{MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 was taken")
	}
	options.Minimum = Version("TLSv1_1")
	if s, err := try(&tls.Config{MinVersion: tls.VersionTLS11, MaxVersion: tls.VersionTLS11}); err != nil || s.Version != tls.VersionTLS11 {
		t.Errorf("TLSv1_1: %v", err)
	}
	options.Minimum = Version("TLSv1_3")
	if _, err := try(&tls.Config{MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLSv1_3: TLS 1.2 was taken")
	}
	options = Options{}
	options.Suites, _ = ParseSuites("ECDHE-ECDSA-AES256-GCM-SHA384")
	if s, err := try(&tls.Config{MaxVersion: tls.VersionTLS12}); err != nil || tls.CipherSuiteName(s.CipherSuite) != "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384" {
		t.Errorf("suite %s, %v", tls.CipherSuiteName(s.CipherSuite), err)
	}
	if _, err := try(&tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}}); err == nil {
		t.Error("a suite that is not in the list was taken")
	}
}

func TestClientCertificates(t *testing.T) {
	dir := t.TempDir()
	selfSigned(t, filepath.Join(dir, "servercert.pem"), "mail.example.org")
	authority, key := authorityFor(t)
	pemOf := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Raw})
	if err := os.WriteFile(filepath.Join(dir, "clientca.pem"), pemOf, 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := NewStore(filepath.Join(dir, "servercert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	config := store.ServerConfig(func() Options { return Options{} })
	own := issue(t, authority, key)
	s, _, err := handshake(t, config, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{own}})
	if err != nil || len(s.VerifiedChains) != 1 || s.PeerCertificates[0].EmailAddresses[0] != "me@example.org" {
		t.Errorf("a client's certificate: %v %v", err, s.VerifiedChains)
	}
	if s, _, err = handshake(t, config, &tls.Config{InsecureSkipVerify: true}); err != nil || len(s.VerifiedChains) != 0 {
		t.Errorf("no certificate: %v", err)
	}
	other, otherKey := authorityFor(t)
	stranger := issue(t, other, otherKey)
	s, _, err = handshake(t, config, &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &stranger, nil }})
	if err != nil || len(s.VerifiedChains) != 0 || len(s.PeerCertificates) != 1 {
		t.Errorf("a stranger's certificate: %v %v", err, s.VerifiedChains)
	}
	if err := store.Try(Options{ClientCA: filepath.Join(dir, "nothing.pem")}); err == nil {
		t.Error("authorities that are not there were taken")
	}
}

func authorityFor(t *testing.T) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, key
}

func issue(t *testing.T, authority *x509.Certificate, by *ecdsa.PrivateKey) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "me"}, EmailAddresses: []string{"me@example.org"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, authority, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestParseSuites(t *testing.T) {
	suites, unmapped := ParseSuites("ALL:!aNULL:ECDHE-RSA-AES128-GCM-SHA256,TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 DHE-RSA-AES128-SHA:TLS_AES_128_GCM_SHA256")
	if len(suites) != 2 || suites[0] != tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 || strings.Join(unmapped, " ") != "ALL !aNULL DHE-RSA-AES128-SHA TLS_AES_128_GCM_SHA256" {
		t.Errorf("%v %v", suites, unmapped)
	}
	for name := range openSSL {
		if suites, unmapped := ParseSuites(name); len(suites) != 1 || unmapped != nil {
			t.Errorf("%s: %v %v", name, suites, unmapped)
		}
	}
}
