package settings

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/indigomail/indigo/internal/maildir"
)

// valid adds a check to a setting of one line; the empty text passes.
func valid(check func(string) error) option {
	return func(s *Setting) {
		parse := s.check
		s.check = func(l *loader, text string) (any, error) {
			if text != "" {
				if err := check(text); err != nil {
					return nil, err
				}
			}
			return parse(l, text)
		}
	}
}

// etrnHost takes a host name, or queue:NAME.
func etrnHost(s string) error { return hostName(strings.TrimPrefix(s, "queue:")) }

// hostName takes a name of labels, as RFC 1123 section 2.1 has them, also with underscores, which are in use.
func hostName(s string) error {
	if len(s) > 253 {
		return fmt.Errorf("%.40q… is longer than 253 bytes", s)
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("%q is no host name", s)
		}
		for _, c := range label {
			if c < 0x80 && c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
				return fmt.Errorf("%q is no host name: it has %q in it", s, c)
			}
		}
	}
	return nil
}

// userAddress takes a local part and a domain.
func userAddress(s string) error {
	local, domain, ok := strings.Cut(s, "@")
	if !ok || local == "" || hostName(domain) != nil {
		return fmt.Errorf("%q is not of the form user@domain", s)
	}
	return nil
}

// ipAddress takes an IPv4 or IPv6 address.
func ipAddress(s string) error {
	if _, err := netip.ParseAddr(s); err != nil {
		return fmt.Errorf("%q is no IP address", s)
	}
	return nil
}

// listenAddress takes an address, or a host name, which is looked up at the start.
func listenAddress(s string) error {
	if ipAddress(s) == nil {
		return nil
	}
	if strings.Trim(s, "0123456789.") == "" || hostName(s) != nil {
		return fmt.Errorf("%q is neither an IP address nor a host name", s)
	}
	return nil
}

// clientNetwork takes what relayclients has: an address, a prefix of whole bytes with a dot, or a network, and a colon.
func clientNetwork(s string) error {
	entry := s
	if checkAddress(entry) == nil && entry != "" && entry[0] != '=' {
		return nil
	}
	entry, colon := strings.CutSuffix(s, ":")
	if !colon || checkAddress(entry) != nil || entry == "" || entry[0] == '=' {
		return fmt.Errorf("%q is no address, prefix of whole bytes with a dot at its end, or network in CIDR form, with a colon behind it", s)
	}
	return nil
}

// Networks gives what AUTH_EXEMPT has.
func Networks(s string) (all []netip.Prefix, err error) {
	if s == "none" {
		return nil, nil
	}
	for word := range strings.FieldsSeq(s) {
		network, err := netip.ParsePrefix(word)
		if address, notNetwork := netip.ParseAddr(word); notNetwork == nil {
			network, err = netip.PrefixFrom(address, address.BitLen()), nil
		}
		if err != nil {
			return nil, fmt.Errorf("%q is no address or network in CIDR form", word)
		}
		all = append(all, network.Masked())
	}
	return all, nil
}

func networks(s string) error {
	_, err := Networks(s)
	return err
}

// domainEntry takes what relaydomains has: a host name or .domain, and a colon.
func domainEntry(s string) error {
	return hostName(strings.TrimPrefix(strings.TrimSuffix(s, ":"), "."))
}

// nameServer takes an address, or an address and port.
func nameServer(s string) error {
	if ipAddress(s) == nil {
		return nil
	}
	if _, err := netip.ParseAddrPort(s); err != nil {
		return fmt.Errorf("%q is no address or address:port", s)
	}
	return nil
}

// inside takes a path that does not lead out of the data directory, or an absolute one.
func inside(s string) error {
	if !filepath.IsAbs(s) && !filepath.IsLocal(s) {
		return fmt.Errorf("%q leads out of the data directory", s)
	}
	return nil
}

// userGroup takes user or user:group.
func userGroup(s string) error {
	user, group, ok := strings.Cut(s, ":")
	if user == "" || ok && group == "" || strings.ContainsAny(s, " /") || strings.Count(s, ":") > 1 {
		return fmt.Errorf("%q is not of the form user or user:group", s)
	}
	return nil
}

// fingerprints takes sha256:HEX with blanks between several, with or without colons between the bytes.
func fingerprints(s string) error {
	for _, one := range strings.Fields(strings.ToLower(s)) {
		digits, ok := strings.CutPrefix(one, "sha256:")
		if digits = strings.ReplaceAll(digits, ":", ""); !ok || len(digits) != 64 || strings.Trim(digits, "0123456789abcdef") != "" {
			return fmt.Errorf("%q is no fingerprint: sha256: and 64 digits in hexadecimal, as `openssl x509 -noout -fingerprint -sha256` prints them", one)
		}
	}
	return nil
}

// absolutePath takes a path from the root.
func absolutePath(s string) error {
	if !filepath.IsAbs(s) {
		return fmt.Errorf("%q does not begin with /", s)
	}
	return nil
}

// httpsURL takes an https URL.
func httpsURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("%q is no https URL", s)
	}
	return nil
}

// webURL takes a URL whose text is as the server at it has it, with neither query nor fragment.
func webURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return fmt.Errorf("%q is no URL of the form https://HOST/PATH", s)
	}
	return nil
}

// oneWord takes a text without blanks.
func oneWord(s string) error {
	if strings.ContainsAny(s, " \t") {
		return fmt.Errorf("%q has a blank in it", s)
	}
	return nil
}

// passwordHash takes the names and numbers of hashes; package auth, which this one must not know, has the same.
func passwordHash(s string) error {
	switch strings.ToUpper(s) {
	case "ARGON2ID", "BCRYPT", "SHA512", "SHA-512", "3", "SHA256", "SHA-256", "2", "MD5", "1":
		return nil
	case "DES", "0":
		return errors.New("DES is not made any more; SHA512 or ARGON2ID")
	}
	return fmt.Errorf("%q is none of ARGON2ID, BCRYPT, SHA512, SHA256 and MD5", s)
}

// quota takes a Maildir++ quota.
func quota(s string) error {
	_, err := maildir.ParseQuota(s)
	return err
}

// percentages takes whole numbers from 1 to 100.
func percentages(s string) error {
	for word := range strings.FieldsSeq(s) {
		if n, err := strconv.Atoi(word); err != nil || n < 1 || n > 100 {
			return fmt.Errorf("%q is not a whole number from 1 to 100", word)
		}
	}
	return nil
}

// socketPath takes a path that fits sockaddr_un with a suffix of four bytes.
func socketPath(s string) error {
	if len(s) > 100 {
		return fmt.Errorf("%q is longer than 100 bytes, which a Unix socket cannot have", s)
	}
	return nil
}

// fileMode takes the nine bits of a file's mode in octal.
func fileMode(s string) error {
	if n, err := strconv.ParseUint(s, 8, 32); err != nil || n > 0o777 {
		return fmt.Errorf("%q is no mode in octal, as 0660 is", s)
	}
	return nil
}

// pamService takes the name of a file in /etc/pam.d.
func pamService(s string) error {
	if strings.ContainsAny(s, "/ ") || s[0] == '.' || len(s) > 64 {
		return fmt.Errorf("%q is no name of a PAM service", s)
	}
	return nil
}

// SplitDomains gives the domains, in lower case, of a list with commas or blanks between them.
func SplitDomains(list string) []string {
	return strings.FieldsFunc(strings.ToLower(list), func(r rune) bool { return r == ',' || r == ' ' || r == '\t' })
}

// atrnLine takes user@domain:domain,domain.
func atrnLine(s string) error {
	user, list, _ := strings.Cut(s, ":")
	local, domain, _ := strings.Cut(user, "@")
	domains := SplitDomains(list)
	if local == "" || domain == "" || len(domains) == 0 {
		return fmt.Errorf("%q is not of the form user@domain:domain", s)
	}
	for _, name := range append(domains, domain) {
		if err := hostName(name); err != nil {
			return err
		}
	}
	return nil
}

// RedisServer is what REDIS_URL says.
type RedisServer struct {
	// Network is "tcp" or "unix", Address host:port or a path; "" for no server.
	Network, Address string
	User, Password   string
	// DB is the database's number, TLS whether it is rediss://.
	DB  int
	TLS bool
}

// Redis reads redis://USER:PASSWORD@HOST:PORT/DB, rediss:// for TLS, and unix://USER:PASSWORD@/PATH?db=DB; valkey:// and valkeys:// are the
// same as the first two. The errors quote nothing: of a malformed URL any part may be of the password.
func Redis(text string) (r RedisServer, err error) {
	if text == "" {
		return r, nil
	}
	const form = "want redis://USER:PASSWORD@HOST:PORT/DATABASE, rediss://… for TLS, or unix://USER:PASSWORD@/PATH?db=DATABASE, with all but letters, digits and -._~ of user and password as %XX"
	u, err := url.Parse(text)
	if err != nil {
		// The error would quote the password.
		return r, errors.New("is no URL: " + form)
	}
	r.User = u.User.Username()
	r.Password, _ = u.User.Password()
	if r.User != "" && r.Password == "" {
		return r, errors.New("has a user without a password: " + form)
	}
	database := strings.TrimPrefix(u.Path, "/")
	options := u.Query()
	switch u.Scheme {
	case "redis", "valkey", "rediss", "valkeys":
		r.TLS = u.Scheme == "rediss" || u.Scheme == "valkeys"
		port := u.Port()
		if port == "" {
			port = "6379"
		}
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return r, errors.New("has a port that is none: " + form)
		}
		if err := listenAddress(u.Hostname()); u.Hostname() == "" || err != nil {
			return r, errors.New("names neither an IP address nor a host name: " + form)
		}
		r.Network, r.Address = "tcp", net.JoinHostPort(u.Hostname(), port)
	case "unix":
		if u.Host != "" || len(u.Path) < 2 {
			return r, errors.New("names no socket by its absolute path: " + form)
		}
		if socketPath(u.Path) != nil {
			return r, errors.New("names a socket by more than 100 bytes: " + form)
		}
		r.Network, r.Address = "unix", u.Path
		database = options.Get("db")
		options.Del("db")
	default:
		return r, errors.New("does not begin with redis://, rediss:// or unix://: " + form)
	}
	if len(options) > 0 || u.Fragment != "" {
		return r, errors.New("has what is not understood behind ? or #: " + form)
	}
	if database != "" {
		if r.DB, err = strconv.Atoi(database); err != nil || r.DB < 0 || r.DB > 1<<16 {
			return r, errors.New("has a database that is no number: " + form)
		}
	}
	return r, nil
}

func redisURL(s string) error {
	_, err := Redis(s)
	return err
}

// redisPrefix takes what may begin the names of keys.
func redisPrefix(s string) error {
	if len(s) > 64 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:_-") != "" {
		return fmt.Errorf("%q is no prefix: at most 64 letters, digits, dots, colons, hyphens and underscores", s)
	}
	return nil
}
