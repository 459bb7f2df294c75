// Package tlsx is knowledge: certificates and TLS settings of this system. It must not know which protocol runs inside.
package tlsx

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"strings"
	"time"
)

// SelfSigned writes a new ECDSA key and a certificate for hosts (names and addresses), good for ten years, to file.
func SelfSigned(file string, hosts []string, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: hosts[0]},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, IsCA: true,
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	for _, block := range []*pem.Block{{Type: "CERTIFICATE", Bytes: der}, {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := pem.Encode(&b, block); err != nil {
			return err
		}
	}
	if err := os.WriteFile(file+".new", b.Bytes(), 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// Describe gives version, cipher suite and key length, as in "TLSv1.3 TLS_AES_256_GCM_SHA384 bits=256".
func Describe(s *tls.ConnectionState) string {
	suite := tls.CipherSuiteName(s.CipherSuite)
	bits := "128"
	if strings.Contains(suite, "AES_256") || strings.Contains(suite, "CHACHA20") {
		bits = "256"
	}
	return strings.ReplaceAll(tls.VersionName(s.Version), "TLS ", "TLSv") + " " + suite + " bits=" + bits
}

// served is a connection that remembers what a Store chose for it.
type served struct {
	net.Conn
	certificate *tls.Certificate
	authorities *Authorities
}

// Handshake is what a server knows when a handshake is over.
type Handshake struct {
	State tls.ConnectionState
	// Certificate was shown to the client: logins can be bound to it (RFC 5929 section 4). It is nil when none was shown, as in a
	// resumed session, and when it came from elsewhere than a Store.
	Certificate *x509.Certificate
	// Client is the client's own certificate, also in a resumed session, judged by what a Store has now; nil when it showed none.
	Client *Client
}

// Server is tls.Server, and gives besides what is known when the handshake is over. A client's certificate that is not verified is no
// reason to end the connection: VerifiedChains is empty then, and Client says why.
func Server(conn net.Conn, config *tls.Config) (*tls.Conn, func() Handshake) {
	s := &served{Conn: conn}
	secured := tls.Server(s, config)
	return secured, func() Handshake {
		h := Handshake{State: secured.ConnectionState()}
		if s.authorities != nil || len(h.State.VerifiedChains) == 0 {
			h.Client, h.State.VerifiedChains = s.authorities.Judge(h.State.PeerCertificates, time.Now())
		}
		if s.certificate == nil || len(s.certificate.Certificate) == 0 {
			return h
		}
		if h.Certificate = s.certificate.Leaf; h.Certificate == nil {
			h.Certificate, _ = x509.ParseCertificate(s.certificate.Certificate[0]) // what is malformed can bind nothing
		}
		return h
	}
}
