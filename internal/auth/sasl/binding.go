package sasl

import (
	"crypto"
	_ "crypto/sha256" // for crypto.Hash.New
	_ "crypto/sha512"
	"crypto/tls"
	"crypto/x509"

	"github.com/xdg-go/scram"
)

// Bindings gives what a login over this connection can be bound to, the one to take first: tls-unique below TLS 1.3, which every server with -PLUS
// must know (RFC 5802 section 6.1), tls-exporter (RFC 9266), tls-server-end-point (RFC 5929). certificate is the server's, nil when it is not known.
// There are none in clear, and but the last without the extended master secret (RFC 7627), which alone makes the first two safe.
func Bindings(state *tls.ConnectionState, certificate *x509.Certificate) (all []scram.ChannelBinding) {
	if state == nil || !state.HandshakeComplete {
		return nil
	}
	if exporter, err := scram.NewTLSExporterBinding(state); err == nil {
		if len(state.TLSUnique) > 0 {
			all = append(all, scram.NewTLSUniqueBinding(state.TLSUnique))
		}
		all = append(all, exporter)
	}
	if certificate != nil {
		if h := endPointHash(certificate.SignatureAlgorithm); h != 0 {
			sum := h.New()
			sum.Write(certificate.Raw)
			all = append(all, scram.ChannelBinding{Type: scram.ChannelBindingTLSServerEndpoint, Data: sum.Sum(nil)})
		}
	}
	return all
}

// endPointHash gives the hash of RFC 5929 section 4.1; 0 for signatures that have none of their own.
func endPointHash(a x509.SignatureAlgorithm) crypto.Hash {
	switch a {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1, x509.SHA256WithRSA, x509.SHA256WithRSAPSS, x509.ECDSAWithSHA256, x509.DSAWithSHA256:
		return crypto.SHA256
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		return crypto.SHA384
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		return crypto.SHA512
	}
	return 0
}
