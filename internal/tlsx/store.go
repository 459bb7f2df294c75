package tlsx

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Store holds the certificates of one PEM file with chain and key, or of all files *.pem of a directory, and reads them
// again on demand. A client that names a host (SNI) gets the certificate for it, or else the first: servercert.pem in a
// directory.
type Store struct {
	path    string
	current atomic.Pointer[loaded]
	// Also, when set, is asked first: for certificates that come from elsewhere than files. It must not change once a
	// handshake may come.
	Also func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Lists, when set, is told when a file of revoked certificates was read again because it changed, and, once, when it became no good: what was
	// read before stays in force then. As with Also.
	Lists func(file string, err error)
	mu    sync.Mutex
	// revoked are the files of revoked certificates by their names, behind that of the authorities; mu guards it. They outlive a reload.
	revoked map[[2]string]*revocations
}

// loaded is what the files held at one moment, with the configurations made of it.
type loaded struct {
	certificates []*tls.Certificate
	// files are where they stand, one for each.
	files   []string
	mu      sync.Mutex
	configs map[string]configured
	// store has Also.
	store *Store
	// fallback is clientca.pem beside the certificates, "" when there is none; fallbackCRL is clientcrl.pem, there or not.
	fallback, fallbackCRL string
}

// configured is a configuration with the authorities that clients' certificates are judged by, nil for none. err says what is wrong with
// their files: TLS goes on, and trusts no certificate.
type configured struct {
	*tls.Config
	authorities *Authorities
	err         error
}

// Options are what a service sets of TLS.
type Options struct {
	// Minimum is the least version, 0 for TLS 1.2; Suites are the cipher suites of TLS 1.2 and older, nil for Go's choice.
	Minimum uint16
	Suites  []uint16
	// ClientCA is the file of the authorities that client certificates are verified by; "" means clientca.pem beside the
	// certificate if there is one. Without any, no client certificate is asked for unless Ask is set. A client may always have none.
	ClientCA string
	// ClientCRL is the file of lists of revoked client certificates; "" means clientcrl.pem beside the certificate if there is one.
	ClientCRL string
	// Ask asks for client certificates without authorities too: they may be known by their fingerprints.
	Ask bool
}

// NewStore reads path.
func NewStore(path string) (*Store, error) {
	s := &Store{path: path}
	return s, s.Reload()
}

// Reload reads the files again; on an error all stays as it was.
func (s *Store) Reload() error {
	l := &loaded{configs: map[string]configured{}, store: s}
	files := []string{s.path}
	dir := filepath.Dir(s.path)
	if info, err := os.Stat(s.path); err == nil && info.IsDir() {
		dir = s.path
		if files, err = filepath.Glob(filepath.Join(s.path, "*.pem")); err != nil {
			return err
		}
		files = slices.DeleteFunc(files, func(f string) bool { return strings.HasPrefix(filepath.Base(f), "client") })
		slices.SortStableFunc(files, func(a, b string) int { return first(b) - first(a) })
		if len(files) == 0 {
			return fmt.Errorf("%s: no files *.pem with a certificate and its key", s.path)
		}
	}
	var faults []error
	for _, file := range files {
		c, err := tls.LoadX509KeyPair(file, file)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", file, err))
			continue
		}
		l.certificates, l.files = append(l.certificates, &c), append(l.files, file)
	}
	if faults != nil {
		return errors.Join(faults...)
	}
	if file := filepath.Join(dir, "clientca.pem"); exists(file) {
		l.fallback = file
	}
	l.fallbackCRL = filepath.Join(dir, "clientcrl.pem")
	s.current.Store(l)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.revoked {
		r.mu.Lock()
		r.idle = true
		r.mu.Unlock()
	}
	return nil
}

// Expired says of each certificate that is not valid any more, or not yet, what clients make of it: nothing here stops because of it.
func (s *Store) Expired(now time.Time) (said []string) {
	l := s.current.Load()
	if l == nil {
		return nil
	}
	for i, c := range l.certificates {
		const then = "clients refuse it; put a new one there, then `indigo reload`"
		switch file := l.files[i]; {
		case c.Leaf == nil:
		case now.After(c.Leaf.NotAfter):
			said = append(said, fmt.Sprintf("%s: the certificate has expired at %s: %s", file, c.Leaf.NotAfter.UTC().Format(time.RFC3339), then))
		case now.Before(c.Leaf.NotBefore):
			said = append(said, fmt.Sprintf("%s: the certificate is valid from %s only: %s", file, c.Leaf.NotBefore.UTC().Format(time.RFC3339), then))
		}
	}
	return said
}

// first sorts servercert.pem to the front.
func first(file string) int {
	if filepath.Base(file) == "servercert.pem" {
		return 1
	}
	return 0
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return !errors.Is(err, fs.ErrNotExist)
}

// ServerConfig gives a server's TLS settings: the certificates and the options as they are at each handshake.
func (s *Store) ServerConfig(options func() Options) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			c := s.current.Load().config(options())
			if conn, ok := hello.Conn.(*served); ok {
				conn.authorities = c.authorities
			}
			return c.Config, nil
		},
	}
}

// Try makes the configuration that options give, to find out what is wrong with them.
func (s *Store) Try(o Options) error {
	l := s.current.Load()
	if l == nil {
		return nil
	}
	return l.config(o).err
}

// Asks tells whether clients are asked for certificates.
func (s *Store) Asks(o Options) bool {
	l := s.current.Load()
	return l != nil && l.config(o).ClientAuth != tls.NoClientCert
}

// Judge tells what would be made of a certificate that a client shows; see Authorities.Judge. NewStore must have succeeded.
func (s *Store) Judge(o Options, shown []*x509.Certificate, now time.Time) *Client {
	client, _ := s.current.Load().config(o).authorities.Judge(shown, now)
	return client
}

// config gives the configuration for options; one for each, since it holds the keys of session tickets.
func (l *loaded) config(o Options) configured {
	if o.ClientCA == "" {
		o.ClientCA = l.fallback
	}
	optional := o.ClientCRL == ""
	if optional {
		o.ClientCRL = l.fallbackCRL
	}
	key := fmt.Sprint(o, optional)
	l.mu.Lock()
	defer l.mu.Unlock()
	if c, ok := l.configs[key]; ok {
		return c
	}
	var authorities *Authorities
	var err error
	c := &tls.Config{MinVersion: tls.VersionTLS12, CipherSuites: o.Suites, GetCertificate: l.certificate}
	if o.Minimum != 0 {
		c.MinVersion = o.Minimum
	}
	if o.Ask {
		c.ClientAuth = tls.RequestClientCert
	}
	if o.ClientCA != "" {
		// crypto/tls would end the connection of who shows another certificate, which may be meant for other servers.
		authorities, err = readAuthorities(o.ClientCA, l.store.revocations(o, optional), time.Now())
		c.ClientCAs, c.ClientAuth = authorities.pool, tls.RequestClientCert
	}
	l.configs[key] = configured{c, authorities, err}
	return l.configs[key]
}

// revocations gives the lists for authorities: as they were before a reload, for when the file has become no good.
func (s *Store) revocations(o Options, optional bool) *revocations {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.revoked == nil {
		s.revoked = map[[2]string]*revocations{}
	}
	key := [2]string{o.ClientCA, o.ClientCRL}
	r := s.revoked[key]
	if r == nil || r.optional != optional {
		r = &revocations{file: o.ClientCRL, optional: optional, noticed: func(file string, err error) {
			if s.Lists != nil {
				s.Lists(file, err)
			}
		}}
		s.revoked[key] = r
	}
	return r
}

// Look reads files of revoked certificates that have changed; without it they are read when a client shows a certificate.
func (s *Store) Look() {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.revoked))
	s.mu.Unlock()
	for _, r := range all {
		r.mu.Lock()
		idle := r.idle
		r.mu.Unlock()
		if !idle {
			_, _ = r.lists() // Lists is told
		}
	}
}

// certificate chooses for a client: by Also, then the first file that is for the name that it asks for and that it can
// use, or else the first. crypto/tls's own choice would not ask Also for clients that name nothing.
func (l *loaded) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	c, err := l.choose(hello)
	if s, ok := hello.Conn.(*served); ok {
		s.certificate = c
	}
	return c, err
}

func (l *loaded) choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if also := l.store.Also; also != nil {
		if c, err := also(hello); c != nil || err != nil {
			return c, err
		}
	}
	if len(l.certificates) > 1 {
		for _, c := range l.certificates {
			if hello.SupportsCertificate(c) == nil {
				return c, nil
			}
		}
	}
	return l.certificates[0], nil
}

// Version gives the version for a name of tlsservermethod (wiki 2062).
func Version(name string) uint16 {
	switch name {
	case "TLSv1":
		return tls.VersionTLS10
	case "TLSv1_1":
		return tls.VersionTLS11
	case "TLSv1_3":
		return tls.VersionTLS13
	}
	return tls.VersionTLS12
}

// openSSL maps OpenSSL's names of cipher suites to IANA's, for those that Go has.
var openSSL = map[string]string{
	"ECDHE-ECDSA-AES128-GCM-SHA256": "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384": "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
	"ECDHE-RSA-AES128-GCM-SHA256": "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "ECDHE-RSA-AES256-GCM-SHA384": "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
	"ECDHE-ECDSA-CHACHA20-POLY1305": "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-RSA-CHACHA20-POLY1305": "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
	"ECDHE-ECDSA-AES128-SHA": "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", "ECDHE-ECDSA-AES256-SHA": "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
	"ECDHE-RSA-AES128-SHA": "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", "ECDHE-RSA-AES256-SHA": "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
	"ECDHE-ECDSA-AES128-SHA256": "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256", "ECDHE-RSA-AES128-SHA256": "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
	"AES128-GCM-SHA256": "TLS_RSA_WITH_AES_128_GCM_SHA256", "AES256-GCM-SHA384": "TLS_RSA_WITH_AES_256_GCM_SHA384",
	"AES128-SHA": "TLS_RSA_WITH_AES_128_CBC_SHA", "AES256-SHA": "TLS_RSA_WITH_AES_256_CBC_SHA", "AES128-SHA256": "TLS_RSA_WITH_AES_128_CBC_SHA256",
}

// ParseSuites reads a list of cipher suites with colons, commas or blanks between, by OpenSSL's or IANA's names. What Go
// cannot do comes back in unmapped: words for groups, exclusions, suites that Go lacks, and those of TLS 1.3, which Go does
// not let choose. suites is nil when nothing is left.
func ParseSuites(list string) (suites []uint16, unmapped []string) {
	known := map[string]uint16{}
	for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		if slices.Min(s.SupportedVersions) < tls.VersionTLS13 {
			known[s.Name] = s.ID
		}
	}
	for _, name := range strings.FieldsFunc(list, func(r rune) bool { return strings.ContainsRune(":, ", r) }) {
		iana := name
		if mapped := openSSL[name]; mapped != "" {
			iana = mapped
		}
		if id, ok := known[iana]; ok {
			suites = append(suites, id)
		} else {
			unmapped = append(unmapped, name)
		}
	}
	return suites, unmapped
}
