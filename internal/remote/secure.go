package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/tlsx"
)

// demands are what a delivery wants of TLS with one server.
type demands struct {
	// tries begins STARTTLS where it is offered; wanted sends nothing without TLS.
	tries, wanted bool
	// strict sends nothing to a server whose certificate is not what demand says; careful shows it no password.
	strict, careful bool
	demand          tlsx.Demand
	// by tells where it was said, for people.
	by string
}

// String tells people.
func (s demands) String() string {
	certificate := "a certificate that is verified for " + s.demand.Name
	if len(s.demand.Fingerprints) > 0 {
		certificate = "a certificate with the fingerprint"
	}
	switch {
	case s.strict:
		return "TLS only, with " + certificate + " (" + s.by + ")"
	case s.wanted:
		return "TLS only, with any certificate (" + s.by + ")"
	case !s.tries:
		return "no STARTTLS (" + s.by + ")"
	case s.careful:
		return "a password only to " + certificate + " (" + s.by + ")"
	}
	return "TLS with any certificate, or none (" + s.by + ")"
}

// errTLSFiles says that what settings name for TLS cannot be used.
var errTLSFiles = errors.New("mail waits until that is put right")

// withoutTLS tells what says that mail for a domain goes without STARTTLS, "" when nothing does: notlshosts of the control files (wiki 2098),
// and the file of that name in the directory notlshosts beside the certificates (wiki 2105).
func (d *Deliverer) withoutTLS(ctx context.Context, view *settings.View, domain string) (string, error) {
	if l := settings.NoTLSHosts.Get(view); !l.Empty() {
		keys := []string{strings.ToLower(domain)}
		for i := range domain {
			if domain[i] == '.' {
				keys = append(keys, keys[0][i:])
			}
		}
		hit, err := d.config.Lists.Find(ctx, l, keys...)
		if err != nil {
			return "", fmt.Errorf("%w: %w", err, errTLSFiles)
		}
		if hit.Found {
			return hit.Key + " in " + hit.Where, nil
		}
	}
	file, err := d.certificateFile("notlshosts", domain)
	return file, err
}

// certificateFile gives a file in a directory beside the certificates, "" when it is not there.
func (d *Deliverer) certificateFile(dir, name string) (string, error) {
	name = strings.ToLower(name)
	if d.config.Certificates == nil || name == "" || name[0] == '.' || strings.ContainsAny(name, "/\\\x00") {
		return "", nil
	}
	certificates := d.config.Certificates()
	if certificates == "" {
		return "", nil
	}
	file := filepath.Join(certificates, dir, name)
	switch _, err := os.Stat(file); {
	case err == nil:
		return file, nil
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	default:
		return "", fmt.Errorf("%w: %w", err, errTLSFiles)
	}
}

// path makes the name of a file of a setting absolute.
func (d *Deliverer) path(file string) string {
	if file == "" || filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(d.config.Data, file)
}

// source tells where a setting stands; one that stands behind a password has the login's place.
func (w way) source(s *settings.Setting) string {
	if where := w.view.Source(s).String(); where != "" {
		return where
	}
	return w.login.Where.String()
}

// demands finds out what w wants of TLS with a server. The errors are for the operator.
func (d *Deliverer) demands(t target, w way) (s demands, err error) {
	level := settings.RemoteTLS.Get(w.view)
	s = demands{tries: level != "none", wanted: level == "verify" || level == "encrypt", strict: level == "verify", careful: level == "login" || level == "verify",
		demand: tlsx.Demand{Name: t.name}, by: "REMOTE_TLS=" + level + ", " + w.source(settings.RemoteTLS.Setting)}
	if name := settings.RemoteTLSName.Get(w.view); name != "" {
		s.demand.Name = name
	}
	if file := settings.RemoteTLSCA.Get(w.view); file != "" {
		if s.demand.Roots, err = tlsx.ReadRoots(d.path(file)); err != nil {
			return s, fmt.Errorf("REMOTE_TLS_CA of %s: %w: %w", w.source(settings.RemoteTLSCA.Setting), err, errTLSFiles)
		}
	}
	if pins := strings.Fields(settings.RemoteTLSPin.Get(w.view)); len(pins) > 0 {
		for _, pin := range pins {
			f, err := tlsx.Fingerprint(pin)
			if err != nil {
				return s, fmt.Errorf("REMOTE_TLS_FINGERPRINT: %w: %w", err, errTLSFiles)
			}
			s.demand.Fingerprints = append(s.demand.Fingerprints, f)
		}
		s.tries, s.wanted, s.strict, s.careful, s.by = true, true, true, true, "REMOTE_TLS_FINGERPRINT, "+w.source(settings.RemoteTLSPin.Setting)
		return s, nil
	}
	// The files of qmail's TLS, by the server's name and the recipient's domain (wiki 2101-2105).
	file, err := d.certificateFile("tlshosts", t.name+".pem")
	if err != nil {
		return s, err
	}
	if file != "" {
		s = demands{tries: true, wanted: true, strict: true, careful: true, demand: tlsx.Demand{Name: t.name, CommonName: true}, by: file}
		if s.demand.Roots, err = tlsx.ReadRoots(file); err != nil {
			return s, fmt.Errorf("%w: %w", err, errTLSFiles)
		}
		return s, nil
	}
	without := w.withoutTLS
	if without == "" {
		if without, err = d.certificateFile("notlshosts", t.name); err != nil {
			return s, err
		}
	}
	if without == "" {
		if without, err = d.certificateFile("tlshosts", "exhaustivelist"); err != nil {
			return s, err
		}
	}
	if without != "" {
		s.tries, s.wanted, s.strict, s.by = false, false, false, without
	}
	return s, nil
}

// tlsConfig gives the configuration for a server. Its certificate is judged after the handshake, so that opportunistic TLS takes any.
func (d *Deliverer) tlsConfig(s demands, w way) (*tls.Config, error) {
	c := &tls.Config{ServerName: s.demand.Name, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}
	file := d.path(settings.ClientCert.Get(w.view))
	if file == "" {
		var err error
		if file, err = d.certificateFile("", "clientcert.pem"); err != nil || file == "" {
			return c, err
		}
	}
	own, err := tlsx.ReadPair(file)
	if err != nil {
		return nil, fmt.Errorf("certificate that deliveries show: %w: %w", err, errTLSFiles)
	}
	// Servers name authorities for users' certificates, too: the one that there is is shown to whoever asks.
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
	return c, nil
}

// judge looks at the server's certificate, where that decides anything; the error is for a connection that must not be used.
func (c *client) judge(state tls.ConnectionState, now time.Time) *mailerr.Error {
	s := c.demands
	if !s.strict && !(s.careful && c.login) {
		return nil
	}
	if err := s.demand.Verify(state.PeerCertificates, now); err != nil {
		c.unverified = err.Error()
	} else if c.verified = true; len(s.demand.Fingerprints) > 0 {
		c.note("* ", "certificate has the fingerprint")
	} else {
		c.note("* ", "certificate verified for "+s.demand.Name)
	}
	if c.verified {
		return nil
	}
	c.note("! ", "certificate not verified: "+c.unverified)
	if !s.strict {
		return nil
	}
	c.usable = false
	c.showWayOut(state)
	return mailerr.Newf(451, mailerr.Enhanced{4, 7, 5}, "The certificate of %s is not verified: %s. (#4.7.5)", c.target, c.unverified)
}

// showWayOut tells the operator what he can do about a certificate.
func (c *client) showWayOut(state tls.ConnectionState) {
	shown := ""
	if len(state.PeerCertificates) > 0 {
		shown = tlsx.Fingerprints(state.PeerCertificates[0])[0]
	}
	c.wayOut = fmt.Sprintf("REMOTE_TLS_CA=FILE names authorities, REMOTE_TLS_NAME=HOST another name; REMOTE_TLS_FINGERPRINT=sha256:%s takes this one, if it is surely the server's; REMOTE_TLS=encrypt takes any, and shows it the password", shown)
	c.note("! ", "wanted is "+c.demands.String())
	c.note("! ", c.wayOut)
}

// insecure is the deferral of mail that must not go without TLS.
func (c *client) insecure() *mailerr.Error {
	c.note("! ", "TLS is wanted by "+c.demands.by)
	return mailerr.Newf(451, mailerr.Enhanced{4, 7, 4}, "TLS is wanted, and %s does not offer it. (#4.7.4)", c.target)
}
