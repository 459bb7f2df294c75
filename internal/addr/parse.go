package addr

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"
)

// Limits of RFC 5321 section 4.5.3.1, in octets.
const (
	maxLocal = 64
	// maxMailbox is RFC 5321 section 4.5.3.1.3 without the angle brackets.
	maxMailbox = 254
	maxDomain  = 255
	maxPath    = 256
)

// Options says what a path may hold.
type Options struct {
	// UTF8 allows UTF-8 in local part and domain (RFC 6531).
	UTF8 bool
}

// ParsePath parses the path "<...>" that s begins with (RFC 5321 section 4.1.2) and gives what follows it. A source
// route is accepted and dropped (RFC 5321 appendix C). "<>" gives the null address, "<postmaster>" an address without a
// domain; whether these are allowed is the caller's to say.
func ParsePath(s string, o Options) (a Address, rest string, err error) {
	if !strings.HasPrefix(s, "<") {
		return Address{}, "", errors.New("path must begin with <")
	}
	p := parser{s: s, i: 1, o: o}
	if p.take('>') {
		return Address{}, s[2:], nil
	}
	if p.peek() == '@' {
		for {
			if !p.take('@') {
				return Address{}, "", errors.New("malformed source route")
			}
			if _, err := p.domain(); err != nil {
				return Address{}, "", err
			}
			if p.take(':') {
				break
			}
			if !p.take(',') {
				return Address{}, "", errors.New("malformed source route")
			}
		}
	}
	mailbox := p.i
	a, err = p.mailbox()
	if err != nil {
		return Address{}, "", err
	}
	if p.i-mailbox+2 > maxPath {
		return Address{}, "", fmt.Errorf("path longer than %d octets", maxPath)
	}
	if !p.take('>') {
		return Address{}, "", errors.New("path must end with >")
	}
	return a, s[p.i:], nil
}

// Parse parses a bare mailbox, local@domain, with UTF-8 allowed; for command lines and files.
func Parse(s string) (Address, error) {
	p := parser{s: s, o: Options{UTF8: true}}
	a, err := p.mailbox()
	if err == nil && p.i != len(s) {
		err = fmt.Errorf("unexpected %q", s[p.i:])
	}
	if err == nil && a.Domain == "" {
		err = errors.New("no @domain")
	}
	if err != nil {
		return Address{}, fmt.Errorf("address %q: %w", s, err)
	}
	return a, nil
}

// ValidDomain checks that s is a domain name (not an address literal): labels of letters, digits and hyphens, or of
// UTF-8 letters, at most 63 octets each and 255 together.
func ValidDomain(s string) error {
	p := parser{s: s, o: Options{UTF8: true}}
	if strings.HasPrefix(s, "[") {
		return errors.New("an address literal is no domain name")
	}
	if _, err := p.domain(); err != nil {
		return err
	}
	if p.i != len(s) {
		return fmt.Errorf("a domain name cannot hold %q", s[p.i:])
	}
	return nil
}

type parser struct {
	s string
	i int
	o Options
}

func (p *parser) peek() byte {
	if p.i < len(p.s) {
		return p.s[p.i]
	}
	return 0
}

func (p *parser) take(c byte) bool {
	if p.i < len(p.s) && p.s[p.i] == c {
		p.i++
		return true
	}
	return false
}

func (p *parser) mailbox() (a Address, err error) {
	start := p.i
	if a.Local, err = p.local(); err != nil {
		return Address{}, err
	}
	if !p.take('@') {
		if strings.EqualFold(a.Local, "postmaster") {
			return a, nil
		}
		if p.i < len(p.s) && p.s[p.i] != '>' {
			c, _ := utf8.DecodeRuneInString(p.s[p.i:])
			return Address{}, fmt.Errorf("a local part without quotes cannot hold %q", c)
		}
		return Address{}, errors.New("no @domain")
	}
	a.Domain, err = p.domain()
	if err == nil && p.i-start > maxMailbox {
		err = fmt.Errorf("address longer than %d octets", maxMailbox)
	}
	return a, err
}

// shortensOne tells whether "::" stands for a single group, which RFC 5321 section 4.1.3 does not allow.
func shortensOne(ip string) bool {
	if !strings.Contains(ip, "::") {
		return false
	}
	groups := len(strings.FieldsFunc(ip, func(r rune) bool { return r == ':' }))
	if strings.Contains(ip, ".") {
		groups++ // the IPv4 form takes two
	}
	return groups > 6
}

// local reads a dot-string or a quoted string and gives it without its quoting.
func (p *parser) local() (string, error) {
	var local string
	first := p.i
	if p.take('"') {
		var b strings.Builder
		for {
			if p.i >= len(p.s) {
				return "", errors.New("quoted local part has no end")
			}
			c := p.s[p.i]
			p.i++
			if c == '"' {
				break
			}
			if c == '\\' {
				if p.i >= len(p.s) {
					return "", errors.New("quoted local part has no end")
				}
				if c = p.s[p.i]; c >= utf8.RuneSelf {
					return "", errors.New("malformed quoted pair")
				}
				p.i++
			}
			if c < ' ' || c == 0x7f || c >= utf8.RuneSelf && !p.o.UTF8 {
				return "", errors.New("control or non-ASCII byte in local part")
			}
			b.WriteByte(c)
		}
		if local = b.String(); local == "" {
			return "", errors.New("empty local part")
		}
	} else {
		start := p.i
		for p.i < len(p.s) && (isAtext(p.s[p.i]) || p.s[p.i] == '.' || p.s[p.i] >= utf8.RuneSelf && p.o.UTF8) {
			p.i++
		}
		local = p.s[start:p.i]
		if local == "" {
			return "", errors.New("empty local part")
		}
		if local[0] == '.' || local[len(local)-1] == '.' || strings.Contains(local, "..") {
			return "", errors.New("misplaced dot in local part")
		}
	}
	// The limit counts what is on the wire, quotes included.
	if p.i-first > maxLocal {
		return "", fmt.Errorf("local part longer than %d octets", maxLocal)
	}
	if !utf8.ValidString(local) {
		return "", errors.New("local part is not UTF-8")
	}
	return local, nil
}

func (p *parser) domain() (string, error) {
	start := p.i
	if p.take('[') {
		end := strings.IndexByte(p.s[p.i:], ']')
		if end < 0 {
			return "", errors.New("address literal has no end")
		}
		literal := p.s[p.i : p.i+end]
		p.i += end + 1
		v6, isV6 := cutPrefixFold(literal, "IPv6:")
		ip, err := netip.ParseAddr(v6)
		if err != nil || ip.Zone() != "" || ip.Is4() == isV6 || isV6 && shortensOne(v6) {
			return "", errors.New("malformed address literal")
		}
		return p.s[start:p.i], nil
	}
	for p.i < len(p.s) {
		label := p.i
		for p.i < len(p.s) && (isLetDig(p.s[p.i]) || p.s[p.i] == '-' || p.s[p.i] == '_' || p.s[p.i] >= utf8.RuneSelf && p.o.UTF8) {
			p.i++
		}
		l := p.s[label:p.i]
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return "", errors.New("malformed domain name")
		}
		if !p.take('.') {
			break
		}
		if p.i == len(p.s) {
			return "", errors.New("malformed domain name")
		}
	}
	domain := p.s[start:p.i]
	if domain == "" || !utf8.ValidString(domain) {
		return "", errors.New("malformed domain name")
	}
	// A name beyond ASCII means what it stands for in the DNS.
	if !isASCII(domain) {
		var err error
		if domain, err = toASCII(domain); err != nil {
			return "", err
		}
	}
	if len(domain) > maxDomain {
		return "", errors.New("malformed domain name")
	}
	return domain, nil
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix) {
		return s[len(prefix):], true
	}
	return s, false
}

func isLetDig(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func isAtext(c byte) bool {
	return isLetDig(c) || c != 0 && strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) >= 0
}
