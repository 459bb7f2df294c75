package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/indigomail/indigo/internal/addr"
)

// LDAP is a Verifier that asks an LDAP server (wiki 3000): it searches the user's entry and binds as it with the password, or binds at
// once as the entry whose name it makes.
type LDAP struct {
	// Pool keeps its connections.
	Pool *LDAPPool
	// URLs are the servers, ldap://HOST:PORT, ldaps://HOST:PORT and ldapi:///PATH, tried in this order until one answers.
	URLs []string
	// StartTLS goes over to TLS at ldap URLs, before anything is said; CA is the file of authorities for both kinds, "" the system's.
	StartTLS bool
	CA       string
	// BindDN and BindPassword are whom to search as; "" is anonymous.
	BindDN, BindPassword string
	// Base, Scope ("sub", "one", "base" or "children") and Filter are the search. In Filter %e stands for the address, %u for what is before
	// the @, %h for what is behind it, %% for %.
	Base, Scope, Filter string
	// UserDN is the name of a user's entry, with the same letters; "" is for a search.
	UserDN string
	// Mail is the attribute that has the user's address; "" is for the name that the client gave. Home, UID and GID are those for LDAPUser; "" is for none.
	Mail, Home, UID, GID string
	// DefaultDomain completes a name without a domain.
	DefaultDomain string
	// Time bounds a question.
	Time time.Duration
	// Running bounds how many run at once: a place is taken by a send; nil bounds none.
	Running chan struct{}
}

// LDAPUser is who an LDAP server let in; UID and GID are -1 when nothing is said of them.
type LDAPUser struct {
	Identity
	UID, GID int
}

// scopes are the scopes of a search by their names.
var scopes = map[string]int{"base": ldap.ScopeBaseObject, "one": ldap.ScopeSingleLevel, "sub": ldap.ScopeWholeSubtree, "children": ldap.ScopeChildren}

// Check tells what is wrong with the configuration, without asking anybody.
func (l *LDAP) Check() error {
	if len(l.URLs) == 0 {
		return errors.New("no server is named: set LDAP_URL")
	}
	for _, text := range l.URLs {
		if _, err := parseLDAPURL(text); err != nil {
			return err
		}
	}
	if l.UserDN != "" {
		dn, err := fill(l.UserDN, addr.Address{Local: "a", Domain: "b"}, ldap.EscapeDN)
		if err == nil {
			_, err = ldap.ParseDN(dn)
		}
		if err != nil {
			return fmt.Errorf("LDAP_USER_DN: %w", err)
		}
		return nil
	}
	filter, err := fill(l.Filter, addr.Address{Local: "a", Domain: "b"}, ldap.EscapeFilter)
	if err == nil {
		_, err = ldap.CompileFilter(filter)
	}
	if err != nil {
		return fmt.Errorf("LDAP_FILTER: %w", err)
	}
	if _, err := ldap.ParseDN(l.Base); err != nil {
		return fmt.Errorf("LDAP_BASE: %w", err)
	}
	if _, ok := scopes[l.Scope]; !ok {
		return fmt.Errorf("LDAP_SCOPE: no scope %q", l.Scope)
	}
	return nil
}

// Encrypted tells whether passwords never go over a network as they are.
func (l *LDAP) Encrypted() bool {
	return l.StartTLS || !slices.ContainsFunc(l.URLs, func(u string) bool { return strings.HasPrefix(u, "ldap://") })
}

// fill puts a user's name into a template, escaped: no letter of it may mean anything there.
func fill(template string, user addr.Address, escape func(string) string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(template); i++ {
		if template[i] != '%' {
			b.WriteByte(template[i])
			continue
		}
		i++
		switch {
		case i == len(template):
			return "", errors.New("% is its last letter")
		case template[i] == '%':
			b.WriteByte('%')
		case template[i] == 'e':
			b.WriteString(escape(user.Local + "@" + user.Domain))
		case template[i] == 'u':
			b.WriteString(escape(user.Local))
		case template[i] == 'h':
			b.WriteString(escape(user.Domain))
		default:
			return "", fmt.Errorf("%%%c stands for nothing: there are %%e, %%u, %%h and %%%%", template[i])
		}
	}
	return b.String(), nil
}

// Verify implements Verifier.
func (l *LDAP) Verify(ctx context.Context, a Attempt) (Identity, error) {
	user, err := l.Ask(ctx, a)
	return user.Identity, err
}

// Ask is Verify, with what the server says of the user's numbers.
func (l *LDAP) Ask(ctx context.Context, a Attempt) (LDAPUser, error) {
	// A bind without a password would be anonymous, and succeed (RFC 4513 section 5.1.2).
	if !ValidCredentials(a.User, a.Password) {
		return LDAPUser{}, errFailed.Because(errors.New("name or password malformed"))
	}
	user := LDAPUser{UID: -1, GID: -1}
	err := l.question(ctx, a.User, func(ctx context.Context, address addr.Address) error {
		user.Address = address
		if l.UserDN != "" {
			return l.direct(ctx, &user, a.Password)
		}
		return l.searched(ctx, &user, a.Password)
	})
	if err != nil {
		return LDAPUser{}, err
	}
	return user, nil
}

// Find gives the name of a user's entry without asking for a password. With UserDN only a bind tells whether there is one: "" then.
func (l *LDAP) Find(ctx context.Context, name string) (dn string, err error) {
	if l.UserDN != "" {
		return "", nil
	}
	err = l.question(ctx, name, func(ctx context.Context, address addr.Address) error {
		entry, err := l.search(ctx, address)
		if err == nil {
			dn = entry.DN
		}
		return err
	})
	return dn, err
}

// question runs ask with the address that a name means, within the bounds of time and number.
func (l *LDAP) question(ctx context.Context, name string, ask func(context.Context, addr.Address) error) error {
	if !strings.Contains(name, "@") {
		name += "@" + l.DefaultDomain
	}
	address, err := addr.Parse(name)
	if err != nil {
		return errFailed.Because(fmt.Errorf("name malformed: %w", err))
	}
	ctx, cancel := context.WithTimeout(ctx, l.Time)
	defer cancel()
	if l.Running != nil {
		select {
		case l.Running <- struct{}{}:
			defer func() { <-l.Running }()
		case <-ctx.Done():
			return errUnavailable.Because(ctx.Err())
		}
	}
	return ask(ctx, address)
}

// direct binds as the entry that UserDN names.
func (l *LDAP) direct(ctx context.Context, user *LDAPUser, password string) error {
	dn, err := fill(l.UserDN, user.Address, ldap.EscapeDN)
	if err != nil {
		return errUnavailable.Because(err)
	}
	var entry *ldap.Entry
	err = l.Pool.do(ctx, l, toBind, func(c *ldap.Conn) error {
		if err := c.Bind(dn, password); err != nil {
			return err
		}
		if len(l.attributes()) == 0 {
			return nil
		}
		found, err := c.Search(ldap.NewSearchRequest(dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 1, l.seconds(), false, "(objectClass=*)", l.attributes(), nil))
		if err == nil && len(found.Entries) == 1 {
			entry = found.Entries[0]
		} else if err == nil || resultOf(err) != notOurs {
			err = fmt.Errorf("%s may not read its own entry: %w", dn, cmp.Or(err, errors.New("nothing was found")))
		}
		return err
	})
	if err := l.judge(err, dn); err != nil {
		return err
	}
	return l.read(user, entry)
}

// searched finds the entry, and binds as it at a connection of its own, so that the one for searches stays who it is.
func (l *LDAP) searched(ctx context.Context, user *LDAPUser, password string) error {
	entry, err := l.search(ctx, user.Address)
	if err != nil {
		return err
	}
	err = l.Pool.do(ctx, l, toBind, func(c *ldap.Conn) error { return c.Bind(entry.DN, password) })
	if err := l.judge(err, entry.DN); err != nil {
		return err
	}
	return l.read(user, entry)
}

// search finds the one entry of a user.
func (l *LDAP) search(ctx context.Context, user addr.Address) (*ldap.Entry, error) {
	filter, err := fill(l.Filter, user, ldap.EscapeFilter)
	if err != nil {
		return nil, errUnavailable.Because(err)
	}
	attributes := l.attributes()
	if len(attributes) == 0 {
		attributes = []string{"1.1"}
	}
	var entries []*ldap.Entry
	err = l.Pool.do(ctx, l, toSearch, func(c *ldap.Conn) error {
		found, err := c.Search(ldap.NewSearchRequest(l.Base, scopes[l.Scope], ldap.NeverDerefAliases, 2, l.seconds(), false, filter, attributes, nil))
		if found != nil {
			entries = found.Entries
		}
		if resultOf(err) == ldap.LDAPResultSizeLimitExceeded {
			return nil
		}
		return err
	})
	switch {
	case resultOf(err) == ldap.LDAPResultNoSuchObject:
		return nil, errUnavailable.Because(fmt.Errorf("LDAP search: there is no entry %q, which LDAP_BASE names, or LDAP_BIND_DN may not see it: %w", l.Base, err))
	case err != nil:
		return nil, errUnavailable.Because(fmt.Errorf("LDAP search: %w", err))
	case len(entries) == 0 || entries[0].DN == "":
		return nil, errFailed.Because(fmt.Errorf("LDAP: no entry fits %s", filter))
	case len(entries) > 1:
		return nil, errFailed.Because(fmt.Errorf("LDAP: several entries fit %s, so that nobody knows who it is", filter))
	}
	return entries[0], nil
}

// judge tells what the end of a bind means.
func (l *LDAP) judge(err error, dn string) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("LDAP bind as %s: %w", dn, err)
	switch resultOf(err) {
	case ldap.LDAPResultInvalidCredentials, ldap.LDAPResultInappropriateAuthentication, ldap.LDAPResultConstraintViolation, ldap.LDAPResultUnwillingToPerform,
		ldap.LDAPResultInsufficientAccessRights, ldap.LDAPResultNoSuchObject, ldap.LDAPResultInvalidDNSyntax:
		return errFailed.Because(err)
	}
	return errUnavailable.Because(err)
}

// notOurs is the result of an error that no server gave.
const notOurs = 1 << 15

// resultOf gives the server's result; notOurs when the error is another, 0 when there is none.
func resultOf(err error) uint16 {
	if err == nil {
		return ldap.LDAPResultSuccess
	}
	var e *ldap.Error
	if errors.As(err, &e) && e.ResultCode < ldap.ErrorNetwork {
		return e.ResultCode
	}
	return notOurs
}

// attributes gives those that are read.
func (l *LDAP) attributes() (names []string) {
	for _, name := range []string{l.Mail, l.Home, l.UID, l.GID} {
		if name != "" {
			names = append(names, name)
		}
	}
	return names
}

// seconds is the limit that the server is told.
func (l *LDAP) seconds() int { return max(1, int(l.Time/time.Second)) }

// read takes what the entry says of its user.
func (l *LDAP) read(user *LDAPUser, entry *ldap.Entry) error {
	if entry == nil {
		return nil
	}
	if l.Mail != "" {
		var err error
		if user.Address, err = addr.Parse(entry.GetAttributeValue(l.Mail)); err != nil {
			return errUnavailable.Because(fmt.Errorf("LDAP: the attribute %s of %s is no address: %w", l.Mail, entry.DN, err))
		}
	}
	if l.Home != "" {
		user.Home = entry.GetAttributeValue(l.Home)
	}
	for name, number := range map[string]*int{l.UID: &user.UID, l.GID: &user.GID} {
		if name == "" {
			continue
		}
		n, err := strconv.ParseUint(entry.GetAttributeValue(name), 10, 31)
		if err != nil {
			return errUnavailable.Because(fmt.Errorf("LDAP: the attribute %s of %s is no number", name, entry.DN))
		}
		*number = int(n)
	}
	return nil
}

// ldapURL is where a server is.
type ldapURL struct {
	network, address, host string
	tls                    bool
}

// parseLDAPURL takes ldap://HOST:PORT, ldaps://HOST:PORT, and ldapi:// with a path, as it is or encoded as in a host.
func parseLDAPURL(text string) (ldapURL, error) {
	if path, ok := strings.CutPrefix(text, "ldapi://"); ok {
		path, err := url.PathUnescape(path)
		if path = cmp.Or(strings.TrimRight(path, "/"), "/run/slapd/ldapi"); err != nil || path[0] != '/' {
			return ldapURL{}, fmt.Errorf("LDAP_URL: %q: ldapi:// needs the path of a socket", text)
		}
		return ldapURL{network: "unix", address: path, host: "localhost"}, nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return ldapURL{}, fmt.Errorf("LDAP_URL: %w", err)
	}
	port := map[string]string{"ldap": "389", "ldaps": "636"}[u.Scheme]
	if port == "" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return ldapURL{}, fmt.Errorf("LDAP_URL: %q is not of the form ldap://HOST:PORT, ldaps://HOST:PORT or ldapi:///PATH", text)
	}
	return ldapURL{"tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port)), u.Hostname(), u.Scheme == "ldaps"}, nil
}

// key tells servers and searching users apart.
func (l *LDAP) key(use ldapUse) string {
	parts := append(slices.Clone(l.URLs), strconv.FormatBool(l.StartTLS), l.CA)
	if use == toSearch {
		parts = append(parts, l.BindDN, l.BindPassword)
	}
	return strings.Join(parts, "\x00")
}
