// Package acme is knowledge: it gets certificates from an authority by ACME (RFC 8555), with the challenges HTTP-01 and
// TLS-ALPN-01, and renews them in time. It must not know which services use them.
package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/caddyserver/certmagic"
)

// Config is what a Manager stands on.
type Config struct {
	// Dir keeps the account, keys and certificates; only its owner may read it.
	Dir    string
	Logger *slog.Logger
}

// Order says for whom certificates are got, from whom, and where the challenges are answered.
type Order struct {
	// Hosts get a certificate each.
	Hosts []string
	// Directory is the authority's URL; "" means Let's Encrypt's.
	Directory string
	// Email is where the authority writes to, "" for nowhere.
	Email string
	// Roots is a file of authorities in PEM that the ACME server's own certificate is verified by; "" means the system's.
	Roots string
	// HTTPAddress and ALPNAddress are where the doors for the challenges listen, "" for none; one is needed.
	HTTPAddress, ALPNAddress string
}

// Manager gets and renews certificates. It is safe for concurrent use. Close ends it.
type Manager struct {
	config Config
	cache  *certmagic.Cache
	magic  *certmagic.Config
	// ctx ends what is under way.
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	issuer *certmagic.ACMEIssuer
	order  Order
	hosts  []string
}

// alpn is the protocol of TLS-ALPN-01 (RFC 8737).
const alpn = "acme-tls/1"

// New makes a Manager; nothing is asked before Manage.
func New(config Config) *Manager {
	m := &Manager{config: config}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	logger := newLogger(config.Logger)
	m.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return m.magic, nil },
		Logger:           logger,
	})
	m.magic = certmagic.New(m.cache, certmagic.Config{
		Storage: &certmagic.FileStorage{Path: config.Dir}, Logger: logger,
		// Let's Encrypt has ended OCSP; a mail client asks for no staple.
		OCSP: certmagic.OCSPConfig{DisableStapling: true},
	})
	return m
}

// Manage gets certificates for an order's hosts in the background, and renews them from then on; those of hosts that are no
// longer named are given up. What goes wrong is logged and tried again. The order that is in force changes nothing.
func (m *Manager) Manage(order Order) error {
	m.mu.Lock()
	same := m.issuer != nil && fmt.Sprint(m.order) == fmt.Sprint(order)
	m.mu.Unlock()
	if same {
		return nil
	}
	hosts, httpAddress, alpnAddress := order.Hosts, order.HTTPAddress, order.ALPNAddress
	if len(hosts) > 0 && httpAddress == "" && alpnAddress == "" {
		return errors.New("ACME needs a door for its challenges: `indigo service add acme.80`, or acme.443")
	}
	template := certmagic.ACMEIssuer{
		CA: order.Directory, Email: order.Email, Agreed: true, Logger: newLogger(m.config.Logger),
		DisableHTTPChallenge: httpAddress == "", DisableTLSALPNChallenge: alpnAddress == "", DisableDistributedSolvers: true,
	}
	if template.CA == "" {
		template.CA = certmagic.LetsEncryptProductionCA
	}
	if order.Roots != "" {
		pem, err := os.ReadFile(order.Roots)
		if err != nil {
			return fmt.Errorf("ACME: %w", err)
		}
		template.TrustedRoots = x509.NewCertPool()
		if !template.TrustedRoots.AppendCertsFromPEM(pem) {
			return fmt.Errorf("ACME: %s holds no certificate in PEM", order.Roots)
		}
	}
	// The library finds its ports taken, by our doors, and leaves the answers to them.
	for _, one := range []struct {
		address string
		port    *int
	}{{httpAddress, &template.AltHTTPPort}, {alpnAddress, &template.AltTLSALPNPort}} {
		if one.address == "" {
			continue
		}
		host, port, err := net.SplitHostPort(one.address)
		if err != nil {
			return err
		}
		if *one.port, err = strconv.Atoi(port); err != nil {
			return err
		}
		if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
			template.ListenHost = host
		}
	}
	issuer := certmagic.NewACMEIssuer(m.magic, template)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.issuer, m.order = issuer, order
	m.magic.Issuers = []certmagic.Issuer{issuer}
	var gone []certmagic.SubjectIssuer
	for _, old := range m.hosts {
		if !contains(hosts, old) {
			gone = append(gone, certmagic.SubjectIssuer{Subject: old})
		}
	}
	if gone != nil {
		m.cache.RemoveManaged(gone)
	}
	m.hosts = nil
	for _, h := range hosts {
		m.hosts = append(m.hosts, strings.ToLower(h))
	}
	if len(m.hosts) == 0 {
		return nil
	}
	return m.magic.ManageAsync(m.ctx, m.hosts)
}

func contains(hosts []string, host string) bool {
	for _, h := range hosts {
		if strings.EqualFold(h, host) {
			return true
		}
	}
	return false
}

// Certificate gives the certificate for what a client asked for: for the first host when it names none. Nil without an
// error means that there is none here, or none yet.
func (m *Manager) Certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	m.mu.Lock()
	hosts := m.hosts
	m.mu.Unlock()
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	if name == "" && len(hosts) > 0 {
		name = hosts[0]
	}
	if !contains(hosts, name) {
		return nil, nil
	}
	for _, c := range m.cache.AllMatchingCertificates(name) {
		if !c.Expired() {
			return &c.Certificate, nil
		}
	}
	return nil, nil
}

// ServeHTTP answers HTTP-01 challenges, and nothing else.
func (m *Manager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	issuer := m.issuer
	m.mu.Unlock()
	if issuer != nil && issuer.HandleHTTPChallenge(w, r) {
		return
	}
	http.NotFound(w, r)
}

// ChallengeConfig gives the TLS settings of a door that answers TLS-ALPN-01 challenges, and nothing else.
func (m *Manager) ChallengeConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{alpn},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if !contains(hello.SupportedProtos, alpn) {
				return nil, errors.New("only ACME's challenges are answered here")
			}
			return m.magic.GetCertificate(hello)
		},
	}
}

// Close ends renewals and what is under way.
func (m *Manager) Close() {
	m.cancel()
	m.cache.Stop()
}
