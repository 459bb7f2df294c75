package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"
)

const (
	// maxIdle bounds the connections to LDAP servers that are kept, for all servers and uses; idleLDAP is how long one is.
	maxIdle  = 8
	idleLDAP = 2 * time.Minute
	// maxLDAPAnswer bounds what a server may send for one question.
	maxLDAPAnswer = 4 << 20
)

// ldapUse is what a connection is for: one that was bound as a user is never searched by.
type ldapUse int

const (
	toSearch ldapUse = iota
	toBind
)

// LDAPPool keeps connections to LDAP servers. Close ends it.
type LDAPPool struct {
	// Dial opens a connection.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Now  func() time.Time

	mu     sync.Mutex
	idle   []*ldapConn
	closed bool
}

type ldapConn struct {
	*ldap.Conn
	link  *ldapLink
	key   string
	use   ldapUse
	since time.Time
}

// ldapLink is the wire below TLS: what comes over it is counted for each question.
type ldapLink struct {
	net.Conn
	mu   sync.Mutex
	left int
}

var errLDAPAnswer = fmt.Errorf("the server sent more than %d bytes", maxLDAPAnswer)

func (l *ldapLink) Read(p []byte) (int, error) {
	l.mu.Lock()
	left := l.left
	l.mu.Unlock()
	if left <= 0 {
		return 0, errLDAPAnswer
	}
	n, err := l.Conn.Read(p[:min(len(p), left)])
	l.mu.Lock()
	l.left -= n
	l.mu.Unlock()
	return n, err
}

// begin gives a question its limits, which end ends.
func (l *ldapLink) begin(ctx context.Context) (end func()) {
	l.mu.Lock()
	l.left = maxLDAPAnswer
	l.mu.Unlock()
	if deadline, ok := ctx.Deadline(); ok {
		_ = l.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = l.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if stop() {
			_ = l.SetDeadline(time.Time{})
		}
	}
}

// do runs a question at a connection: one that was kept, and when that turns out to be dead or there is none, a new one.
func (p *LDAPPool) do(ctx context.Context, l *LDAP, use ldapUse, question func(*ldap.Conn) error) error {
	for {
		c := p.take(l.key(use), use)
		kept := c != nil
		if c == nil {
			var err error
			if c, err = p.open(ctx, l, use); err != nil {
				return err
			}
		}
		end := c.link.begin(ctx)
		err := question(c.Conn)
		end()
		if resultOf(err) != notOurs {
			p.give(c)
			return err
		}
		c.Close()
		if !kept || ctx.Err() != nil {
			return err
		}
	}
}

// take gives a connection that was kept; nil when there is none.
func (p *LDAPPool) take(key string, use ldapUse) (found *ldapConn) {
	var old []*ldapConn
	p.mu.Lock()
	kept := p.idle[:0]
	for _, c := range p.idle {
		switch {
		case p.Now().Sub(c.since) > idleLDAP || c.IsClosing():
			old = append(old, c)
		case found == nil && c.key == key && c.use == use:
			found = c
		default:
			kept = append(kept, c)
		}
	}
	clear(p.idle[len(kept):])
	p.idle = kept
	p.mu.Unlock()
	for _, c := range old {
		c.Close()
	}
	return found
}

// give keeps a connection for the next question.
func (p *LDAPPool) give(c *ldapConn) {
	c.since = p.Now()
	p.mu.Lock()
	drop := c
	if !p.closed {
		drop = nil
		if p.idle = append(p.idle, c); len(p.idle) > maxIdle {
			drop, p.idle = p.idle[0], append(p.idle[:0], p.idle[1:]...)
		}
	}
	p.mu.Unlock()
	if drop != nil {
		drop.Close()
	}
}

// Close closes what is kept; connections in use are closed when their questions end.
func (p *LDAPPool) Close() {
	p.mu.Lock()
	all := p.idle
	p.idle, p.closed = nil, true
	p.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
}

// open makes a connection to the first server that answers. Each has its share of the time.
func (p *LDAPPool) open(ctx context.Context, l *LDAP, use ldapUse) (*ldapConn, error) {
	var faults []error
	for i, text := range l.URLs {
		deadline, ok := ctx.Deadline()
		one, cancel := context.WithCancel(ctx)
		if ok {
			cancel()
			one, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(l.URLs)-i))
		}
		c, err := p.connect(one, l, text, use)
		cancel()
		if err == nil {
			return c, nil
		}
		faults = append(faults, fmt.Errorf("LDAP server %s: %w", text, err))
	}
	return nil, errors.Join(faults...)
}

func (p *LDAPPool) connect(ctx context.Context, l *LDAP, text string, use ldapUse) (*ldapConn, error) {
	u, err := parseLDAPURL(text)
	if err != nil {
		return nil, err
	}
	raw, err := p.Dial(ctx, u.network, u.address)
	if err != nil {
		return nil, err
	}
	link := &ldapLink{Conn: raw}
	end := link.begin(ctx)
	defer end()
	config := &tls.Config{ServerName: u.host}
	if l.CA != "" {
		text, err := os.ReadFile(l.CA)
		if config.RootCAs = x509.NewCertPool(); err == nil && !config.RootCAs.AppendCertsFromPEM(text) {
			err = fmt.Errorf("%s has no certificates in PEM", l.CA)
		}
		if err != nil {
			raw.Close()
			return nil, fmt.Errorf("LDAP_CA: %w", err)
		}
	}
	var wire net.Conn = link
	if u.tls {
		over := tls.Client(link, config)
		if err := over.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		wire = over
	}
	c := &ldapConn{Conn: ldap.NewConn(wire, u.tls), link: link, key: l.key(use), use: use}
	c.Debug = false
	c.Start()
	if l.StartTLS && u.network == "tcp" && !u.tls {
		err = c.StartTLS(config)
	}
	if err == nil && use == toSearch && l.BindDN != "" {
		if err = c.Bind(l.BindDN, l.BindPassword); err != nil {
			err = fmt.Errorf("LDAP_BIND_DN, %s, is not let in: %w", l.BindDN, err)
		}
	}
	if err != nil {
		c.Close()
		// What a server says of LDAP_BIND_DN is not what it says of the user.
		return nil, errors.New(err.Error())
	}
	return c, nil
}
