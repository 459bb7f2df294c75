package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/tlsx"
)

// Verdicts of a Finding.
const (
	Good  = "ok"
	Note  = "note"
	Warn  = "warn"
	Wrong = "wrong"
)

// Finding is one thing found out.
type Finding struct {
	What string `json:"what"`
	// Verdict is one of the four; Wrong is what has to be mended.
	Verdict string `json:"verdict"`
	Text    string `json:"text"`
	// Do says what to do about it, "" for nothing.
	Do string `json:"do,omitempty"`
}

// Certificate is what the server showed.
type Certificate struct {
	Names   []string  `json:"names"`
	Issuer  string    `json:"issuer"`
	Expires time.Time `json:"expires"`
	// SHA256 is the fingerprint, as openssl x509 -fingerprint -sha256 and REMOTE_TLS_FINGERPRINT have it.
	SHA256 string `json:"sha256"`
	// Verified tells whether the chain leads to an authority that is trusted here, and fits the name; Why not says why not.
	Verified bool   `json:"verified"`
	WhyNot   string `json:"why_not,omitempty"`
}

// Report is what a server is like.
type Report struct {
	Address    string   `json:"address"`
	Banner     string   `json:"banner"`
	Extensions []string `json:"extensions"`
	// AuthClear and AuthTLS are the mechanisms offered before and inside TLS.
	AuthClear   []string     `json:"auth_clear"`
	AuthTLS     []string     `json:"auth_tls"`
	TLSVersions []string     `json:"tls_versions"`
	Certificate *Certificate `json:"certificate,omitempty"`
	Relay       []RelayCheck `json:"relay"`
	Findings    []Finding    `json:"findings"`
}

func (r *Report) add(what, verdict, text, do string) {
	r.Findings = append(r.Findings, Finding{what, verdict, text, do})
}

// Wrong tells whether something has to be mended.
func (r *Report) Wrong() bool {
	return slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Verdict == Wrong })
}

// Options are what Probe has to know beside the target.
type Options struct {
	// Now judges certificates.
	Now time.Time
	// Users says that users log in at this port, as they do at 465 and 587: there a certificate must be good and AUTH must be offered.
	Users bool
	// Relay asks for whom the server relays.
	Relay bool
}

// Probe finds out what a server of SMTP is like, from where it is asked. The error says that there was no talk at all. The certificate is judged,
// but a bad one does not end the talk.
func Probe(ctx context.Context, t Target, o Options) (*Report, error) {
	r := &Report{Address: t.Address, Extensions: []string{}, AuthClear: []string{}, AuthTLS: []string{}, TLSVersions: []string{}, Relay: []RelayCheck{}}
	roots, name := t.TLS.RootCAs, t.TLS.ServerName
	t.TLS = t.TLS.Clone()
	t.TLS.InsecureSkipVerify = true
	c, err := open(ctx, t)
	if err != nil {
		return r, err
	}
	defer func() { c.Close() }()
	r.Banner = c.Banner
	r.judgeBanner()
	if err := c.Hello(ctx); err != nil {
		r.add("EHLO", Wrong, err.Error(), "a server of today knows EHLO (RFC 5321 section 2.2.1)")
		return r, nil
	}
	ip := remoteIP(c)
	r.extensions(c)
	if c.State == nil {
		r.AuthClear = append(r.AuthClear, c.Offered()...)
		r.judgeClear()
		_, offered := c.Can("STARTTLS")
		switch {
		case !offered && t.Mode == StartTLS:
			r.add("STARTTLS", Wrong, "not offered", "give the server a certificate and switch STARTTLS on; in Indigo: servercert.pem in DATA/certs")
		case !offered:
			r.add("STARTTLS", Warn, "not offered: all that is said can be read on the way", "give the server a certificate and switch STARTTLS on")
		case t.Mode == Plain:
			r.add("STARTTLS", Note, "offered, and not tried with --plain", "")
		default:
			if err := c.StartTLS(ctx); err != nil {
				r.add("STARTTLS", Wrong, err.Error(), "look at the server's certificate, key and versions of TLS")
				return r, nil
			}
			r.add("STARTTLS", Good, "offered, and works", "")
		}
	}
	if c.State != nil {
		r.AuthTLS = append(r.AuthTLS, c.Offered()...)
		r.judgeCertificate(c.State, roots, name, o)
		r.versions(ctx, t, c.State.Version)
	}
	r.judgeAuth(o)
	if o.Relay {
		r.relay(ctx, t, c, name, ip)
	}
	return r, nil
}

// host is how the server calls itself, by its greeting or its answer to EHLO.
func host(c *Conn, name string) string {
	for _, l := range []string{c.Banner, c.Lines[0]} {
		if f := strings.Fields(strings.TrimLeft(l, "0123456789- ")); len(f) > 0 && strings.Contains(f[0], ".") {
			return strings.Trim(f[0], ".")
		}
	}
	return name
}

func remoteIP(c *Conn) netip.Addr {
	a, err := netip.ParseAddrPort(c.conn.RemoteAddr().String())
	if err != nil {
		return netip.IPv4Unspecified()
	}
	return a.Addr()
}

func (r *Report) judgeBanner() {
	words := strings.Fields(r.Banner)
	switch {
	case len(words) < 2 || !strings.Contains(words[1], "."):
		r.add("banner", Warn, r.Banner+": no host name in it", "let the greeting begin with the host's full name (RFC 5321 section 4.2)")
	default:
		r.add("banner", Good, r.Banner, "")
	}
}

func (r *Report) extensions(c *Conn) {
	for _, l := range c.Lines[1:] {
		if len(l) > 4 {
			r.Extensions = append(r.Extensions, l[4:])
		}
	}
	r.add("EHLO", Good, strings.Join(r.Extensions, ", "), "")
	if _, ok := c.Can("ENHANCEDSTATUSCODES"); ok {
		r.add("enhanced codes", Good, "announced", "")
	} else {
		r.add("enhanced codes", Warn, "not announced: senders' bounces tell less of the cause", "a server of today has ENHANCEDSTATUSCODES (RFC 2034)")
	}
}

func (r *Report) judgeClear() {
	var shown []string
	for _, m := range r.AuthClear {
		if sasl.NeedsTLS(m) {
			shown = append(shown, m)
		}
	}
	switch {
	case len(shown) > 0:
		r.add("AUTH in clear", Wrong, strings.Join(shown, " ")+" before TLS: passwords can be read on the way",
			"offer them inside TLS only; in Indigo SECURE_AUTH=1 (the default), in Postfix smtpd_tls_auth_only=yes")
	case len(r.AuthClear) > 0:
		r.add("AUTH in clear", Note, strings.Join(r.AuthClear, " ")+": they do not show the password, but guesses can be tried on what is heard", "FORCE_TLS=1 in Indigo keeps them for TLS")
	default:
		r.add("AUTH in clear", Good, "none", "")
	}
}

func (r *Report) judgeAuth(o Options) {
	switch {
	case len(r.AuthTLS) > 0:
		r.add("AUTH in TLS", Good, strings.Join(r.AuthTLS, " "), "")
	case o.Users && len(r.AuthClear) == 0:
		r.add("AUTH in TLS", Wrong, "no way to log in is offered at a port for users", "switch AUTH on; in Indigo it is off where no source of passwords is set (AUTHMODULES)")
	default:
		r.add("AUTH in TLS", Note, "none: nobody logs in here", "")
	}
}

func (r *Report) judgeCertificate(state *tls.ConnectionState, roots *x509.CertPool, name string, o Options) {
	leaf := state.PeerCertificates[0]
	cert := &Certificate{Names: []string{}, Issuer: leaf.Issuer.String(), Expires: leaf.NotAfter, SHA256: tlsx.Fingerprints(leaf)[0]}
	cert.Names = append(cert.Names, leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		cert.Names = append(cert.Names, ip.String())
	}
	if len(cert.Names) == 0 && leaf.Subject.CommonName != "" {
		cert.Names = append(cert.Names, leaf.Subject.CommonName+" (CN alone, which no client looks at)")
	}
	r.Certificate = cert
	between := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between, CurrentTime: o.Now})
	verdict := Warn
	if o.Users {
		verdict = Wrong
	}
	text := fmt.Sprintf("for %s, by %s, to %s, sha256:%s", strings.Join(cert.Names, " "), cert.Issuer, cert.Expires.UTC().Format(time.DateOnly), cert.SHA256)
	var unknown x509.UnknownAuthorityError
	var hostname x509.HostnameError
	switch {
	case o.Now.After(leaf.NotAfter):
		cert.WhyNot = "it has expired"
		r.add("certificate", Wrong, text+": it has expired", "get a new one; in Indigo put it in DATA/certs/servercert.pem and call `indigo reload`")
	case o.Now.Before(leaf.NotBefore):
		cert.WhyNot = "it is not valid yet"
		r.add("certificate", Wrong, text+": it is not valid yet", "look at the clocks of both hosts")
	case errors.As(err, &hostname):
		cert.WhyNot = err.Error()
		r.add("certificate", verdict, text+": it is not for "+name, "clients must use a name that is in it, or it needs theirs")
	case errors.As(err, &unknown) && leaf.CheckSignatureFrom(leaf) == nil || errors.As(err, &unknown) && leaf.Issuer.String() == leaf.Subject.String():
		cert.WhyNot = "it is self-signed"
		r.add("certificate", verdict, text+": it is self-signed", "mail programs will warn of it: get one from an authority; in Indigo by ACME")
	case err != nil:
		cert.WhyNot = err.Error()
		r.add("certificate", verdict, text+": "+err.Error(), "an authority that clients trust, and all certificates between, must be in what the server shows")
	default:
		cert.Verified = true
		if left := leaf.NotAfter.Sub(o.Now); left < 14*24*time.Hour {
			r.add("certificate", Warn, fmt.Sprintf("%s: %d days are left", text, int(left.Hours()/24)), "see that it is renewed in time")
			return
		}
		r.add("certificate", Good, text+": verified for "+name, "")
	}
}

// versions tries each version of TLS by itself; had is the one that is known.
func (r *Report) versions(ctx context.Context, t Target, had uint16) {
	var old []string
	for _, v := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
		one := t
		one.Say, one.TLS = nil, t.TLS.Clone()
		one.TLS.MinVersion, one.TLS.MaxVersion = v, v
		if v != had {
			if one.Mode == Plain {
				one.Mode = StartTLS
			}
			c, err := Connect(ctx, one)
			if err != nil {
				continue
			}
			c.Close()
		}
		r.TLSVersions = append(r.TLSVersions, tls.VersionName(v))
		if v < tls.VersionTLS12 {
			old = append(old, tls.VersionName(v))
		}
	}
	text := strings.Join(r.TLSVersions, ", ")
	switch {
	case len(old) > 0:
		r.add("TLS versions", Warn, text+": "+strings.Join(old, " and ")+" is broken (RFC 8996)", "let the server begin at TLS 1.2")
	case !slices.Contains(r.TLSVersions, "TLS 1.3"):
		r.add("TLS versions", Note, text, "TLS 1.3 is missing")
	default:
		r.add("TLS versions", Good, text, "")
	}
}

// relay asks for whom the server relays.
func (r *Report) relay(ctx context.Context, t Target, c *Conn, name string, ip netip.Addr) {
	me := host(c, name)
	if t.Mode == StartTLS && c.State == nil {
		t.Mode = Plain
	}
	checks, anyName, err := askRelay(ctx, t, me, ip)
	r.Relay = append(r.Relay, checks...)
	if err != nil {
		r.add("relay", Warn, "not all could be asked: "+err.Error(), "ask again later, or from another address")
	}
	var open, odd []string
	codes := false
	for _, q := range checks {
		codes = codes || len(q.Reply) > 4 && !q.Accepted && enhanced(q.Reply)
		switch {
		case q.Accepted && !q.Odd:
			open = append(open, "<"+q.From+">")
		case q.Accepted:
			odd = append(odd, "<"+q.To+">")
		}
	}
	switch {
	case len(open) > 0:
		r.add("relay", Wrong, fmt.Sprintf("open to this client: mail to <%s@%s> is taken from %s", outsideUser, outsideHost, strings.Join(open, ", ")),
			"take this client's address out of what may relay (in Indigo `indigo relay test` names the setting), unless it is meant to relay: then ask from outside")
	case err == nil || len(checks) > 0:
		r.add("relay", Good, fmt.Sprintf("closed to this client: %d of %d questions about others' domains were refused", len(checks)-len(odd), len(checks)), "")
	}
	switch {
	case len(odd) > 0 && anyName:
		r.add("odd addresses", Note, strings.Join(odd, ", ")+" are taken, as any name at "+me+" is", "see that the mailbox for all names sends nothing on")
	case len(odd) > 0:
		r.add("odd addresses", Wrong, strings.Join(odd, ", ")+" are taken: the server may send them on to "+outsideHost, "refuse %, ! and quoted addresses in local parts; in Postfix allow_percent_hack, swap_bangpath and resolve_dequoted_address")
	}
	if len(checks) > 0 && len(open) < len(checks) && !codes {
		r.add("enhanced codes", Note, "refusals carry none, as in \""+checks[0].Reply+"\"", "")
	}
}

// enhanced tells whether a reply has an enhanced code behind its code.
func enhanced(reply string) bool {
	words := strings.Fields(reply[min(4, len(reply)):])
	return len(words) > 0 && strings.Count(words[0], ".") == 2 && (words[0][0] == '2' || words[0][0] == '4' || words[0][0] == '5')
}
