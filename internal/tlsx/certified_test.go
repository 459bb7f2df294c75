package tlsx_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/indigomail/indigo/internal/lab"
	"github.com/indigomail/indigo/internal/tlsx"
)

func authority(t *testing.T) *lab.Authority {
	t.Helper()
	a, err := lab.NewAuthority(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issued(t *testing.T, a *lab.Authority, valid time.Duration, names ...string) tls.Certificate {
	t.Helper()
	c, err := a.Issue(valid, names...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func chain(t *testing.T, c tls.Certificate) (all []*x509.Certificate) {
	t.Helper()
	for _, der := range c.Certificate {
		one, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, one)
	}
	return all
}

// TestJudge: which certificates of clients an authority and its list of revoked ones vouch for, and why not.
func TestJudge(t *testing.T) {
	ours, theirs := authority(t), authority(t)
	good, revoked := issued(t, ours, time.Hour, "joe@here.test", "Relay.Here.test"), issued(t, ours, time.Hour, "joe@here.test")
	list := func(a *lab.Authority, valid time.Duration, certificates ...tls.Certificate) []byte {
		b, err := a.Revoke(valid, certificates...)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	der, _ := pem.Decode(list(ours, time.Hour, revoked))
	foreign := foreignList(t)
	for _, tc := range []struct {
		name        string
		ca, crl     []byte
		certificate tls.Certificate
		// want is what Err begins with, "" for none; wrong what the error of reading has.
		want, wrong string
	}{
		{"good", ours.PEM(), nil, good, "", ""},
		{"revoked, but nobody looks", ours.PEM(), nil, revoked, "", ""},
		{"revoked", ours.PEM(), list(ours, time.Hour, revoked), revoked, "it is revoked", ""},
		{"revoked, list in DER", ours.PEM(), der.Bytes, revoked, "it is revoked", ""},
		{"not revoked", ours.PEM(), list(ours, time.Hour, revoked), good, "", ""},
		{"list that is out of date", ours.PEM(), list(ours, -time.Minute), good, "the list of revoked certificates of its authority is out of date", "ended at"},
		{"revoked by a list that is out of date", ours.PEM(), list(ours, -time.Minute, revoked), revoked, "it is revoked", "ended at"},
		{"list of another authority of its name", ours.PEM(), list(theirs, time.Hour), good, "the authorities for certificates of clients cannot be read", "is not signed by it"},
		{"list of another authority of its name besides", ours.PEM(), slices.Concat(list(ours, time.Hour, revoked), list(theirs, time.Hour)), revoked, "it is revoked", ""},
		{"list of another authority", ours.PEM(), foreign, good, "there is no list of revoked certificates of its authority", ""},
		{"list that was not written to its end", ours.PEM(), slices.Concat(list(ours, time.Hour), list(ours, time.Hour)[:200]), good, "the authorities for certificates of clients cannot be read", "2 lists begin in it, and 1 can be read"},
		{"lists of both", slices.Concat(ours.PEM(), theirs.PEM()), slices.Concat(list(theirs, time.Hour), list(ours, time.Hour, revoked)), good, "", ""},
		{"list that is none", ours.PEM(), []byte("nonsense"), good, "the authorities for certificates of clients cannot be read", "it holds no list"},
		{"authority that is none", []byte("nonsense"), nil, good, "the authorities for certificates of clients cannot be read", "holds no certificate in PEM"},
		{"expired", ours.PEM(), nil, issued(t, ours, -time.Minute, "joe@here.test"), "it has expired at ", ""},
		{"another authority", theirs.PEM(), nil, good, "no authority that is trusted here has signed it", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			ca, crl := filepath.Join(dir, "ca.pem"), ""
			if err := os.WriteFile(ca, tc.ca, 0o600); err != nil {
				t.Fatal(err)
			}
			if tc.crl != nil {
				crl = filepath.Join(dir, "crl.pem")
				if err := os.WriteFile(crl, tc.crl, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			a, err := tlsx.ReadAuthorities(ca, crl, time.Now())
			if (err == nil) != (tc.wrong == "") || err != nil && !strings.Contains(err.Error(), tc.wrong) {
				t.Errorf("reading: %v, want %q", err, tc.wrong)
			}
			c, chains := a.Judge(chain(t, tc.certificate), time.Now())
			got := ""
			if c.Err != nil {
				got = c.Err.Error()
			}
			if (got == "") != (tc.want == "") || !strings.HasPrefix(got, tc.want) || (len(chains) > 0) != (tc.want == "") {
				t.Errorf("%q with %d chains, want %q", got, len(chains), tc.want)
			}
			if !slices.Contains(c.Names, "joe@here.test") || len(c.Fingerprints) != 2 {
				t.Errorf("%+v", c)
			}
		})
	}
	if c, _ := (*tlsx.Authorities)(nil).Judge(chain(t, good), time.Now()); c == nil || c.Err == nil || !slices.Equal(c.Names, []string{"joe@here.test", "relay.here.test"}) {
		t.Errorf("%+v", c)
	}
	if c, _ := (*tlsx.Authorities)(nil).Judge(nil, time.Now()); c != nil {
		t.Errorf("%+v", c)
	}
}

// foreignList gives a list of an authority with another name than the lab's have.
func foreignList(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issuer := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "foreign"}, SubjectKeyId: []byte{1}, KeyUsage: x509.KeyUsageCRLSign}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), NextUpdate: time.Now().Add(time.Hour)}, issuer, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// TestRevocationsAreReadAgain: a list that changes on the disk is in force for the next certificate, without a reload; one that is no good, or gone, is
// told once, and leaves what was read before, over a reload too.
func TestRevocationsAreReadAgain(t *testing.T) {
	ours := authority(t)
	one, two := issued(t, ours, time.Hour, "one@here.test"), issued(t, ours, time.Hour, "two@here.test")
	list := func(valid time.Duration, certificates ...tls.Certificate) []byte {
		b, err := ours.Revoke(valid, certificates...)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, named := range []bool{false, true} {
		dir := t.TempDir()
		file := filepath.Join(dir, "clientcrl.pem")
		var options tlsx.Options
		if named {
			file = filepath.Join(dir, "lists.pem")
			options.ClientCRL = file
		}
		// write puts the file in the place of the one that is there; in does so in the same file.
		write := func(name string, text []byte) {
			t.Helper()
			if err := os.WriteFile(name+".new", text, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(name+".new", name); err != nil {
				t.Fatal(err)
			}
		}
		in := func(text []byte) {
			t.Helper()
			if err := os.WriteFile(file, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(filepath.Join(dir, "clientca.pem"), ours.PEM())
		if named {
			write(file, list(time.Hour))
		}
		if err := tlsx.SelfSigned(filepath.Join(dir, "servercert.pem"), []string{"here.test"}, time.Now()); err != nil {
			t.Fatal(err)
		}
		store, err := tlsx.NewStore(filepath.Join(dir, "servercert.pem"))
		if err != nil {
			t.Fatal(err)
		}
		var told []string
		store.Lists = func(file string, err error) {
			if err == nil {
				told = append(told, "read")
			} else {
				told = append(told, err.Error())
			}
		}
		want := func(what string, c tls.Certificate, want string, news ...string) {
			t.Helper()
			told = nil
			for range 3 {
				got := ""
				if client := store.Judge(options, chain(t, c), time.Now()); client.Err != nil {
					got = client.Err.Error()
				}
				if !strings.HasPrefix(got, want) || want == "" && got != "" {
					t.Errorf("%s, by name %v: %q, want %q", what, named, got, want)
				}
			}
			if len(told) != len(news) {
				t.Errorf("%s, by name %v: told %q, want %q", what, named, told, news)
				return
			}
			for i := range news {
				if !strings.Contains(told[i], news[i]) {
					t.Errorf("%s, by name %v: told %q, want %q", what, named, told, news)
				}
			}
		}
		want("no list, or one without it", one, "")
		write(file, list(time.Hour, one))
		want("renewed", one, "it is revoked", "read")
		want("renewed, another", two, "")
		whole := list(time.Hour, two)
		in(whole[:len(whole)/2])
		want("half of it", one, "it is revoked", "it holds no list")
		want("half of it, another", two, "")
		if err := store.Reload(); err != nil {
			t.Fatal(err)
		}
		if err := store.Try(options); err == nil || !strings.Contains(err.Error(), "it holds no list") {
			t.Errorf("a reload with half of it: %v", err)
		}
		want("half of it, after a reload", one, "it is revoked")
		want("half of it, after a reload, another", two, "")
		in(whole)
		want("all of it", two, "it is revoked", "read")
		want("all of it, another", one, "")
		in(nil)
		want("empty", two, "it is revoked", "it holds no list")
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		want("gone", two, "it is revoked", "no such file")
		want("gone, another", one, "")
		// A service with other options, which nobody came to before, is no reload.
		other := options
		other.Minimum = tls.VersionTLS13
		if client := store.Judge(other, chain(t, two), time.Now()); client.Err == nil || client.Err.Error() != "it is revoked" {
			t.Errorf("gone, by another service: %v", client.Err)
		}
		write(file, list(-time.Minute, two))
		want("ended", one, "the list of revoked certificates of its authority is out of date", "read")
		want("ended, a revoked one", two, "it is revoked")
		write(file, list(time.Hour, one, two))
		told = nil
		if store.Look(); !slices.Equal(told, []string{"read"}) {
			t.Errorf("by a look: %q", told)
		}
		want("looked at", one, "it is revoked")
		// What is gone at a reload is meant to be, unless the settings name it.
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if err := store.Reload(); err != nil {
			t.Fatal(err)
		}
		if named {
			want("gone before a reload", one, "it is revoked")
			if err := store.Try(options); err == nil || !strings.Contains(err.Error(), "no such file") {
				t.Errorf("gone before a reload: %v", err)
			}
		} else {
			want("gone before a reload", one, "", "is gone: no certificate counts as revoked")
		}
	}
}

// TestNamesInSubjects: emailAddress of the subject is a name, as qmail's TLS has it; what cannot be a name is none, nor what could pass for a fingerprint, nor CN.
func TestNamesInSubjects(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	mail := func(value string) pkix.AttributeTypeAndValue {
		return pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, Value: value}
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(7), NotAfter: time.Now().Add(time.Hour), EmailAddresses: []string{"b@here.test"},
		Subject:  pkix.Name{CommonName: "boss@here.test", ExtraNames: []pkix.AttributeTypeAndValue{mail("A@Here.test"), mail("b@here.test"), mail("x\x00@here.test"), mail("no address"), mail("SHA256:00@here.test")}},
		DNSNames: []string{"sha256:" + strings.Repeat("0", 64)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := (*tlsx.Authorities)(nil).Judge(chain(t, tls.Certificate{Certificate: [][]byte{der}}), time.Now())
	if !slices.Equal(c.Names, []string{"b@here.test", "a@here.test"}) || strings.ContainsAny(c.Subject, "\x00\n") {
		t.Errorf("%q %q", c.Names, c.Subject)
	}
	template.Subject = pkix.Name{CommonName: strings.Repeat("long\n", 10000)}
	if der, err = x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key); err != nil {
		t.Fatal(err)
	}
	if c, _ := (*tlsx.Authorities)(nil).Judge(chain(t, tls.Certificate{Certificate: [][]byte{der}}), time.Now()); len(c.Subject) > 310 || strings.Contains(c.Subject, "\n") {
		t.Errorf("%d bytes of subject: %q", len(c.Subject), c.Subject)
	}
}

// TestNamesBeyondConstraints: an authority that may speak for one domain's addresses alone (RFC 5280 section 4.2.1.10) gives nobody another's, whatever
// part of a certificate it writes the address into, and in whatever letters.
func TestNamesBeyondConstraints(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(template, parent *x509.Certificate) *x509.Certificate {
		t.Helper()
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	serial := int64(0)
	authority := func(name string, parent *x509.Certificate, permitted, excluded []string) *x509.Certificate {
		t.Helper()
		serial++
		template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageCertSign, PermittedEmailAddresses: permitted, ExcludedEmailAddresses: excluded}
		if parent == nil {
			parent = template
		}
		return sign(template, parent)
	}
	mail := func(value string) pkix.Name {
		return pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, Value: value}}}
	}
	root := authority("root", nil, nil, nil)
	free, bound, notThis := authority("free", root, nil, nil), authority("tenant", root, []string{"tenant.test"}, nil), authority("all but one", root, nil, []string{"here.test"})
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	authorities, err := tlsx.ReadAuthorities(file, "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		by   *x509.Certificate
		leaf x509.Certificate
		want []string
	}{
		{"subject", free, x509.Certificate{Subject: mail("Joe@here.test")}, []string{"joe@here.test"}},
		{"subject, bound", bound, x509.Certificate{Subject: mail("joe@here.test")}, nil},
		{"subject, all but one", notThis, x509.Certificate{Subject: mail("joe@here.test")}, nil},
		{"alternative, bound", bound, x509.Certificate{EmailAddresses: []string{"ann@tenant.test"}, Subject: mail("joe@here.test")}, []string{"ann@tenant.test"}},
		{"as a host, bound", bound, x509.Certificate{DNSNames: []string{"joe@here.test", "mail.tenant.test"}}, []string{"mail.tenant.test"}},
		{"as a host, free", free, x509.Certificate{DNSNames: []string{"joe@here.test"}}, nil},
		{"host as an address", free, x509.Certificate{EmailAddresses: []string{"relay.here.test"}}, nil},
		{"letters that lower case makes ASCII of", free, x509.Certificate{Subject: mail("mi\u212ae@here.test")}, nil},
	} {
		tc.leaf.SerialNumber = big.NewInt(9)
		c, chains := authorities.Judge([]*x509.Certificate{sign(&tc.leaf, tc.by), tc.by}, time.Now())
		if c.Err != nil || len(chains) == 0 {
			t.Errorf("%s: %v", tc.name, c.Err)
		}
		if !slices.Equal(c.Names, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, c.Names, tc.want)
		}
	}
}

// TestManyNames: a stranger's certificate with as many names as a handshake can carry costs nothing to speak of.
func TestManyNames(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(7), NotAfter: time.Now().Add(time.Hour)}
	for i := range 30000 {
		template.DNSNames = append(template.DNSNames, "x"+strconv.Itoa(i))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	shown := chain(t, tls.Certificate{Certificate: [][]byte{der}})
	began := time.Now()
	c, _ := (*tlsx.Authorities)(nil).Judge(shown, time.Now())
	if took := time.Since(began); took > 100*time.Millisecond || len(c.Names) > 100 {
		t.Errorf("%d names of %d bytes after %v", len(c.Names), len(der), took)
	}
}

func TestFingerprint(t *testing.T) {
	digits := strings.Repeat("0aF", 21) + "1"
	for _, s := range []string{"sha256:" + digits, "SHA256:" + tlsx.Colons(digits)} {
		if got, err := tlsx.Fingerprint(s); got != strings.ToLower(digits) || err != nil {
			t.Errorf("%s: %q %v", s, got, err)
		}
	}
	for _, s := range []string{"", digits, "sha256:", "sha256:" + digits[1:], "sha256:" + digits[1:] + "x", "sha1:" + digits} {
		if got, err := tlsx.Fingerprint(s); err == nil {
			t.Errorf("%s: %q", s, got)
		}
	}
}

// TestAsking: who is asked for a certificate, and what a resumed session makes of one that was taken back meanwhile.
func TestAsking(t *testing.T) {
	ours := authority(t)
	dir := t.TempDir()
	write := func(name string, text []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := tlsx.SelfSigned(filepath.Join(dir, "servercert.pem"), []string{"here.test"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	store, err := tlsx.NewStore(filepath.Join(dir, "servercert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	var options tlsx.Options
	config := store.ServerConfig(func() tlsx.Options { return options })
	mine := issued(t, ours, time.Hour, "joe@here.test")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, file := range []string{"clientca.pem", "clientcrl.pem"} {
			_ = os.Remove(filepath.Join(dir, file))
		}
		asked := 0
		client := &tls.Config{InsecureSkipVerify: true, MaxVersion: version, ServerName: "here.test", ClientSessionCache: tls.NewLRUClientSessionCache(4),
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { asked++; return &mine, nil }}
		meet := func() tlsx.Handshake {
			t.Helper()
			if err := store.Reload(); err != nil {
				t.Fatal(err)
			}
			// Both ends of a resumed handshake write at a time: a pipe would hold them up.
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			b, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			a, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			server, known := tlsx.Server(a, config)
			ended := make(chan error, 1)
			go func() {
				defer b.Close()
				c := tls.Client(b, client)
				// The ticket of TLS 1.3 comes behind the handshake.
				_, err := bufio.NewReader(c).ReadString('\n')
				ended <- err
			}()
			if err := server.HandshakeContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := server.Write([]byte("hello\n")); err != nil {
				t.Fatal(err)
			}
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			return known()
		}
		options.Ask = false
		if h := meet(); h.Client != nil || asked != 0 {
			t.Errorf("%x: asked without a reason: %+v", version, h.Client)
		}
		options.Ask = true
		client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
		if h := meet(); h.Client == nil || h.Client.Err == nil || asked != 1 || len(h.State.VerifiedChains) > 0 {
			t.Errorf("%x: without an authority: %+v", version, h.Client)
		}
		write("clientca.pem", ours.PEM())
		client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
		if h := meet(); h.Client == nil || h.Client.Err != nil || len(h.State.VerifiedChains) == 0 || h.State.DidResume {
			t.Errorf("%x: with an authority: %+v", version, h)
		}
		if h := meet(); h.Client == nil || h.Client.Err != nil || len(h.State.VerifiedChains) == 0 || !h.State.DidResume {
			t.Errorf("%x: resumed: %+v", version, h)
		}
		revoked, err := ours.Revoke(time.Hour, mine)
		if err != nil {
			t.Fatal(err)
		}
		write("clientcrl.pem", revoked)
		if h := meet(); h.Client == nil || h.Client.Err == nil || h.Client.Err.Error() != "it is revoked" || len(h.State.VerifiedChains) > 0 || !h.State.DidResume {
			t.Errorf("%x: resumed, and revoked meanwhile: %+v", version, h.Client)
		}
	}
}

// FuzzJudge: what any client may show names it in one short line, and with names that stand for nothing else.
func FuzzJudge(f *testing.F) {
	a, err := lab.NewAuthority(time.Now)
	if err != nil {
		f.Fatal(err)
	}
	for _, names := range [][]string{{"joe@here.test"}, {"relay.here.test", "192.0.2.1"}, {strings.Repeat("a", 300) + "@here.test"}, {}} {
		c, err := a.Issue(time.Hour, names...)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(c.Certificate[0])
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		c, chains := (*tlsx.Authorities)(nil).Judge([]*x509.Certificate{leaf}, time.Now())
		if c.Err == nil || chains != nil || len(c.Fingerprints) != 2 || len(c.Subject) > 310 || strings.IndexFunc(c.Subject, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 {
			t.Errorf("%+v", c)
		}
		for _, name := range c.Names {
			if name != strings.ToLower(name) || strings.ContainsAny(name, " \r\n\x00") {
				t.Errorf("name %q", name)
			}
			if _, err := tlsx.Fingerprint(name); err == nil && strings.HasPrefix(name, "sha256:") {
				t.Errorf("name %q passes for a fingerprint", name)
			}
		}
	})
}
