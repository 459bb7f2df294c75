package tlsx

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/wire"
)

// Client is what a client's certificate says of it.
type Client struct {
	// Subject names it to people.
	Subject string
	// Names are its mail addresses (rfc822Name, and emailAddress of the subject where no authority of its chain is bound to some addresses) and
	// host names (dNSName), of ASCII alone and in lower case, the first hundred. They mean nothing while Err is set.
	Names []string
	// Fingerprints are SHA-256 of the certificate and of its public key, as Fingerprint gives them.
	Fingerprints []string
	// Err tells why no authority vouches for it; nil when one does.
	Err error
}

// Unverified is why an authority does not vouch for a certificate, in words that anybody may see; Cause is for the log.
type Unverified struct {
	Text  string
	Cause error
}

func (e *Unverified) Error() string {
	if e.Cause == nil {
		return e.Text
	}
	return e.Text + ": " + printable(e.Cause.Error())
}

// printable keeps what a stranger's certificate says from forging lines, or filling the log.
func printable(s string) string {
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return wire.Printable(s)
}

func (e *Unverified) Unwrap() error { return e.Cause }

// Authorities are those whose word counts for clients' certificates, with their lists of revoked ones.
type Authorities struct {
	pool *x509.CertPool
	// revoked are nil where no list is wanted; else each authority of a chain, but a root, must have a current one.
	revoked *revocations
	// err says that clientca.pem cannot be read: nobody is trusted.
	err error
}

// ReadAuthorities reads clientca.pem and, where crl is not "", the lists of revoked certificates (wiki 2066, 2067), in PEM or one in DER.
// The error says that a file is no good, or a list out of date; what was read may be used all the same, and trusts nobody by what is missing.
// The lists are read again when their file has changed.
func ReadAuthorities(ca, crl string, now time.Time) (*Authorities, error) {
	var r *revocations
	if crl != "" {
		r = &revocations{file: crl}
	}
	return readAuthorities(ca, r, now)
}

func readAuthorities(ca string, r *revocations, now time.Time) (*Authorities, error) {
	a := &Authorities{pool: x509.NewCertPool(), revoked: r}
	text, err := os.ReadFile(ca)
	if err == nil && !a.pool.AppendCertsFromPEM(text) {
		err = fmt.Errorf("%s holds no certificate in PEM", ca)
	}
	if err != nil {
		a.err = fmt.Errorf("client authorities: %w", err)
		return a, a.err
	}
	all := certificatesIn(text)
	if err = ended(all, now); err != nil {
		err = fmt.Errorf("client authorities: %s: %w", ca, err)
	}
	if r == nil {
		return a, err
	}
	if listErr := r.begin(all); listErr != nil {
		return a, listErr
	}
	if err != nil {
		return a, err
	}
	lists, err := r.lists()
	for _, l := range lists {
		if stale(l, now) {
			return a, fmt.Errorf("%w: %s: the list of %s ended at %s: no certificate of that authority is taken; get a new one", ErrRevocations, r.file, l.Issuer, l.NextUpdate.UTC().Format(time.RFC3339))
		}
	}
	return a, err
}

// certificatesIn gives the certificates in PEM.
func certificatesIn(text []byte) (all []*x509.Certificate) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && block.Type == "CERTIFICATE" {
			all = append(all, c)
		}
	}
	return all
}

// ended tells of authorities that have expired without another of the same name that has not.
func ended(all []*x509.Certificate, now time.Time) error {
	last := map[string]*x509.Certificate{}
	for _, c := range all {
		if other := last[string(c.RawSubject)]; other == nil || c.NotAfter.After(other.NotAfter) {
			last[string(c.RawSubject)] = c
		}
	}
	for _, name := range slices.Sorted(maps.Keys(last)) {
		if c := last[name]; now.After(c.NotAfter) {
			return fmt.Errorf("%s has expired at %s: no certificate of that authority is taken; get a new one", printable(c.Subject.String()), c.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// Judge tells what is to be made of the certificate that a client showed, its own first; nil when it showed none. A nil Authorities trusts
// nobody. chains lead to a trusted authority; there are none while Err is set.
func (a *Authorities) Judge(shown []*x509.Certificate, now time.Time) (c *Client, chains [][]*x509.Certificate) {
	if len(shown) == 0 {
		return nil, nil
	}
	leaf := shown[0]
	c = &Client{Subject: printable(leaf.Subject.String()), Names: namesIn(leaf, true), Fingerprints: Fingerprints(leaf)}
	if c.Subject == "" && len(c.Names) > 0 {
		c.Subject = printable(c.Names[0])
	}
	if a == nil {
		c.Err = &Unverified{Text: "this system knows no authority for certificates of clients"}
		return c, nil
	}
	lists, err := a.revoked.lists()
	switch err = cmp.Or(a.err, err); {
	case err != nil:
		c.Err = &Unverified{"the authorities for certificates of clients cannot be read", err}
	default:
		all, err := leaf.Verify(x509.VerifyOptions{Roots: a.pool, Intermediates: between(shown), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if err != nil {
			c.Err = unverified(leaf, err, now)
			return c, nil
		}
		for _, chain := range all {
			if err = revoked(lists, chain, now); err == nil {
				chains = append(chains, chain)
			}
		}
		if chains == nil {
			c.Err = err
		} else if !slices.ContainsFunc(chains, free) {
			c.Names = namesIn(leaf, false)
		}
	}
	return c, chains
}

// free tells whether the authorities of a chain may speak for any mail address. Where not, x509 has seen to the alternative names, but not to the
// subject (RFC 5280 section 4.2.1.10).
func free(chain []*x509.Certificate) bool {
	return !slices.ContainsFunc(chain[1:], func(c *x509.Certificate) bool {
		return len(c.PermittedEmailAddresses)+len(c.ExcludedEmailAddresses) > 0
	})
}

// between gives what was shown behind a certificate.
func between(shown []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range shown[1:] {
		pool.AddCert(c)
	}
	return pool
}

// unverified says in words why a certificate was not verified.
func unverified(leaf *x509.Certificate, err error, now time.Time) *Unverified {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	switch {
	case now.After(leaf.NotAfter):
		return &Unverified{Text: "it has expired at " + leaf.NotAfter.UTC().Format(time.RFC3339)}
	case now.Before(leaf.NotBefore):
		return &Unverified{Text: "it is not valid before " + leaf.NotBefore.UTC().Format(time.RFC3339)}
	case errors.As(err, &host):
		return &Unverified{Text: "it is not for " + host.Host}
	case errors.As(err, &unknown):
		return &Unverified{Text: "no authority that is trusted here has signed it"}
	}
	return &Unverified{"its chain is not good", err}
}

// revoked asks the lists of the authorities of a chain.
func revoked(lists []*x509.RevocationList, chain []*x509.Certificate, now time.Time) error {
	if lists == nil {
		return nil
	}
	for i, c := range chain[:len(chain)-1] {
		asked, current := false, false
		for _, l := range lists {
			if !bytes.Equal(l.RawIssuer, chain[i+1].RawSubject) || l.CheckSignatureFrom(chain[i+1]) != nil {
				continue
			}
			asked, current = true, current || !stale(l, now)
			for _, r := range l.RevokedCertificateEntries {
				if r.SerialNumber.Cmp(c.SerialNumber) == 0 {
					return &Unverified{Text: "it is revoked"}
				}
			}
		}
		switch {
		case !asked:
			return &Unverified{Text: "there is no list of revoked certificates of its authority"}
		case !current:
			return &Unverified{Text: "the list of revoked certificates of its authority is out of date"}
		}
	}
	return nil
}

// maxNames bounds the names of a certificate that are looked at, which may be a stranger's.
const maxNames = 100

// emailAddress is the attribute of subjects that mail addresses stood in before there were alternative names (PKCS #9).
var emailAddress = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}

// namesIn gives the mail addresses and host names of a certificate in lower case, each once; those of the subject only if wanted. An address that
// stands as a host name, or the other way round, is none: constraints for one kind do not hold for the other.
func namesIn(c *x509.Certificate, subject bool) (all []string) {
	add := func(name string, address bool) {
		// Some letters beyond ASCII become others' in lower case.
		if len(all) >= maxNames || strings.Contains(name, "@") != address || strings.IndexFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f }) >= 0 {
			return
		}
		name = strings.ToLower(name)
		for _, n := range all {
			if n == name {
				return
			}
		}
		// A name is never to be taken for a fingerprint.
		if name != "" && !strings.HasPrefix(name, "sha256:") {
			all = append(all, name)
		}
	}
	for _, n := range c.EmailAddresses {
		add(n, true)
	}
	for _, n := range c.Subject.Names {
		if value, ok := n.Value.(string); ok && subject && n.Type.Equal(emailAddress) {
			add(value, true)
		}
	}
	for _, n := range c.DNSNames {
		add(n, false)
	}
	return all
}

// Fingerprints gives SHA-256 of a certificate and of its public key (SubjectPublicKeyInfo), as 64 digits in hexadecimal.
func Fingerprints(c *x509.Certificate) []string {
	whole, key := sha256.Sum256(c.Raw), sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return []string{hex.EncodeToString(whole[:]), hex.EncodeToString(key[:])}
}

// Fingerprint reads sha256:HEX, with or without colons between the bytes as openssl prints it, as Fingerprints has it.
func Fingerprint(s string) (string, error) {
	digits, ok := strings.CutPrefix(strings.ToLower(s), "sha256:")
	digits = strings.ReplaceAll(digits, ":", "")
	if b, err := hex.DecodeString(digits); !ok || err != nil || len(b) != sha256.Size {
		return "", fmt.Errorf("%q is no fingerprint: sha256: and 64 digits in hexadecimal, as `openssl x509 -noout -fingerprint -sha256` prints them", s)
	}
	return digits, nil
}

// Colons gives a fingerprint as openssl prints it, in lower case.
func Colons(fingerprint string) string {
	var b strings.Builder
	for i := 0; i+1 < len(fingerprint); i += 2 {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(fingerprint[i : i+2])
	}
	return b.String()
}

// Demand is what a client wants of a server's certificate.
type Demand struct {
	// Name is the host name or address that it must be for (RFC 9525).
	Name string
	// Roots are the authorities that count, nil for the system's.
	Roots *x509.CertPool
	// CommonName takes the subject's CN where there are no alternative names (wiki 2101).
	CommonName bool
	// Fingerprints, if there are any, count in the place of name, dates and authorities.
	Fingerprints []string
}

// Verify tells why the certificate that a server showed, its own first, is not what d demands; the error is an *Unverified.
func (d Demand) Verify(shown []*x509.Certificate, now time.Time) error {
	if len(shown) == 0 {
		return &Unverified{Text: "it showed none"}
	}
	leaf := shown[0]
	if len(d.Fingerprints) > 0 {
		for _, has := range Fingerprints(leaf) {
			for _, wanted := range d.Fingerprints {
				if has == wanted {
					return nil
				}
			}
		}
		return &Unverified{Text: "its fingerprint is another, sha256:" + Fingerprints(leaf)[0]}
	}
	o := x509.VerifyOptions{DNSName: d.Name, Roots: d.Roots, Intermediates: between(shown), CurrentTime: now}
	if d.CommonName && len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses)+len(leaf.URIs) == 0 {
		if !strings.EqualFold(leaf.Subject.CommonName, d.Name) {
			return &Unverified{Text: "it is not for " + d.Name}
		}
		o.DNSName = ""
	}
	if _, err := leaf.Verify(o); err != nil {
		return unverified(leaf, err, now)
	}
	return nil
}

// ReadRoots reads the authorities in PEM that servers are verified by.
func ReadRoots(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", file)
	}
	return pool, nil
}

// ReadPair reads a certificate, its chain and its key. A key that everybody may read is not taken.
func ReadPair(file string) (tls.Certificate, error) {
	if info, err := os.Stat(file); err == nil && info.Mode().Perm()&0o007 != 0 {
		return tls.Certificate{}, fmt.Errorf("everybody can read or change the key in %s: `chmod o= %s`", file, file)
	}
	c, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		return c, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}
