package settings

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/cdb"
)

// Route is a line of smtproutes (wiki 2748-2761): domain:relay[:port[:penalty[:tolerance]]], then behind blanks what to log
// in with, and then settings of deliveries by this route as in rules, NAME=value,NAME=value. What to log in with is a user and
// a password, or an entry of remote_auth: /s that of the sender, /r that of the recipient, /KEY that of KEY.
type Route struct {
	// Domain is what the route is for, in lower case: a domain, with a dot before it all below it, "" all, "!@" bounces.
	Domain string
	// Host is the relay, a name or an address, "" for the domain's own MX. Port is "25" when the line has none.
	Host, Port string
	// Penalty and Tolerance are MIN_PENALTY and MAX_TOLERANCE of the route; -1 when the line has none.
	Penalty, Tolerance time.Duration
	// Key is "/s", "/r" or "/KEY", "" when there is none.
	Key string
	Login
}

// Login is what a delivery logs in with at a relay. The zero value means that there is nothing.
type Login struct {
	User, Password string
	// TokenFile is the file of an OAuth token in the password's place, which is "token:FILE" then; "" for none. A relative one is of the data
	// directory.
	TokenFile string
	// Where is the file and line that it stands in; nothing else of it is set.
	Where   Source
	assigns []assignment
}

// ForLogin gives the view for deliveries that use l: with the settings that stand behind it.
func (v *View) ForLogin(l Login) *View {
	if len(l.assigns) == 0 {
		return v
	}
	if v == nil {
		v = &View{}
	}
	return v.with(l.assigns)
}

// standsAt notes where l stands, in a file and line.
func (l *Login) standsAt(file string, line int) {
	l.Where = Source{File: file, Line: line}
	l.assigns = slices.Clone(l.assigns)
	for i := range l.assigns {
		source := &l.assigns[i].value.source
		source.Layer, source.File, source.Line = "route", file, line
	}
}

// Logins gives what deliveries may log in with, and the settings that stand with it: of routes, of remote_auth and its constant database, and of
// SMTPROUTE in rules.
func (v *View) Logins() (all []Login) {
	routes := append(slices.Clone(SMTPRoutes.Get(v)), SMTPRoute.Get(v))
	for _, a := range v.ruled() {
		if route, ok := a.value.parsed.(*Route); ok && route != nil && a.setting == SMTPRoute.Setting {
			one := *route
			one.standsAt(a.value.source.File, a.value.source.Line)
			routes = append(routes, &one)
		}
	}
	for _, r := range routes {
		if r == nil {
			continue
		}
		login := r.Login
		if login.Where.File == "" {
			source := v.Source(SMTPRoute.Setting)
			login.standsAt(source.File, source.Line)
		}
		all = append(all, login)
	}
	if c := RemoteAuth.Get(v); c != nil {
		for _, key := range slices.Sorted(maps.Keys(c.text)) {
			all = append(all, c.text[key])
		}
		for _, s := range c.starts {
			all = append(all, s.login)
		}
		for e, err := range c.entries() {
			if written, there := c.inText(e.key, e.wild); err == nil && e.err == nil && (!there || !e.login.same(written)) {
				all = append(all, e.login)
			}
		}
	}
	return all
}

// ruled gives what rules of v's deliveries set.
func (v *View) ruled() (all []assignment) {
	for _, file := range []Key[*Rules]{FromdRules, RcptRules} {
		if r := file.Get(v); r != nil {
			for _, one := range r.rules {
				all = append(all, one.assigns...)
			}
		}
	}
	return all
}

// Places gives each value of s that deliveries may meet, and where it stands: v's own, and those of rules, routes and
// remote_auth.
func (v *View) Places(s *Setting, each func(where Source)) {
	if v.IsSet(s) {
		each(v.Source(s))
	}
	for _, a := range v.ruled() {
		if a.setting == s && !a.value.source.Unset {
			each(a.value.source)
		}
	}
	for _, login := range v.Logins() {
		for _, a := range login.assigns {
			if a.setting == s && !a.value.source.Unset {
				each(a.value.source)
			}
		}
	}
}

// parseRoutes reads smtproutes.
func parseRoutes(l *loader, s string) ([]*Route, error) {
	var all []*Route
	var wrong faults
	secrets := false
	for _, line := range significant(s) {
		r, err := parseRoute(l, line.text)
		if err != nil {
			wrong = append(wrong, fault{line.line, err.Error()})
			continue
		}
		if l != nil {
			r.standsAt(l.file, line.line)
			secrets = secrets || r.Password != ""
		}
		all = append(all, r)
	}
	if wrong != nil {
		return nil, wrong
	}
	if secrets && l.file != "" {
		if err := exposed(l.path(l.file)); err != nil {
			l.warn(l.file, 1, "%v", err)
		}
	}
	return all, nil
}

// parseOneRoute reads SMTPROUTE; nil means that it is not set.
func parseOneRoute(l *loader, s string) (*Route, error) {
	if s == "" {
		return nil, nil
	}
	return parseRoute(l, s)
}

// parseRoute reads a line of smtproutes, or what SMTPROUTE has. Errors never quote what may be a password.
func parseRoute(l *loader, line string) (*Route, error) {
	domain, rest, ok := strings.Cut(line, ":")
	if !ok || strings.ContainsAny(domain, " \t") {
		return nil, errors.New("a route has the form domain:relay:port:penalty:tolerance, and user, password and settings behind blanks")
	}
	r := &Route{Domain: strings.ToLower(domain), Port: "25", Penalty: -1, Tolerance: -1}
	if name := strings.TrimPrefix(domain, "."); name != "" && domain != "!@" {
		if err := hostName(name); err != nil {
			return nil, err
		}
	}
	words, environment := firstWords(rest, 3)
	if len(words) > 1 && strings.HasPrefix(words[1], "/") {
		r.Key = words[1]
		words, environment = firstWords(rest, 2)
	} else if alone := slices.IndexFunc(words[:min(len(words), 2)], l.beginsSettings); alone >= 0 {
		words, environment = firstWords(rest, alone)
		if strings.ContainsAny(environment, " \t") {
			return nil, errors.New("settings without a login have no blanks; with one they stand behind the password")
		}
	}
	switch {
	case len(words) == 0:
		return r, l.parseLogin(&r.Login, environment)
	case r.Key == "/":
		return nil, errors.New("behind the / stands s for the sender, r for the recipient, or the key of an entry of remote_auth")
	case len(words) == 2 && r.Key == "":
		return nil, fmt.Errorf("a route has a user without a password; without a login may stand NAME=value,NAME=value of %s", strings.Join(l.registry.namesFor([]string{"route"}), ", "))
	case len(words) == 3 && r.Key == "":
		r.User, r.Password = words[1], words[2]
	}
	if err := r.relay(words[0]); err != nil {
		return nil, err
	}
	return r, l.parseLogin(&r.Login, environment)
}

// beginsSettings tells whether a word of a route begins with NAME= of a setting that routes may have.
func (l *loader) beginsSettings(word string) bool {
	name, _, ok := strings.Cut(word, "=")
	return ok && l.registry.names[name] != nil && mayChange(l.registry.names[name], []string{"route"})
}

// relay reads relay[:port[:penalty[:tolerance]]], in which the relay may be an address in brackets.
func (r *Route) relay(s string) error {
	ports := ""
	if address, bracket := strings.CutPrefix(s, "["); bracket {
		host, after, closed := strings.Cut(address, "]")
		host = strings.TrimPrefix(host, "IPv6:")
		if !closed || ipAddress(host) != nil || after != "" && after[0] != ':' {
			return fmt.Errorf("%q is no address in brackets", s)
		}
		r.Host, ports = host, strings.TrimPrefix(after, ":")
	} else {
		r.Host, ports, _ = strings.Cut(s, ":")
		if r.Host != "" && ipAddress(r.Host) != nil {
			if err := hostName(r.Host); err != nil {
				return err
			}
		}
	}
	parts := strings.Split(ports, ":")
	if len(parts) > 3 {
		return errors.New("more than port, penalty and tolerance stands behind the relay; an IPv6 address stands in brackets")
	}
	if parts[0] != "" {
		if n, err := strconv.ParseUint(parts[0], 10, 16); err != nil || n == 0 {
			return fmt.Errorf("%q is no port", parts[0])
		}
		r.Port = parts[0]
	}
	for i, into := range []*time.Duration{&r.Penalty, &r.Tolerance} {
		if i+1 >= len(parts) || parts[i+1] == "" {
			continue
		}
		n, err := parseInt(0, 31536000)(parts[i+1])
		if err != nil {
			return errors.New("penalty and tolerance are whole numbers of seconds, up to a year")
		}
		*into = time.Duration(n) * time.Second
	}
	return nil
}

// firstWords gives up to n words, and what stands behind them.
func firstWords(s string, n int) (words []string, rest string) {
	for rest = strings.TrimSpace(s); rest != "" && len(words) < n; {
		end := strings.IndexAny(rest, " \t")
		if end < 0 {
			end = len(rest)
		}
		words = append(words, rest[:end])
		rest = strings.TrimSpace(rest[end:])
	}
	return words, rest
}

// parseLogin adds the settings behind a password, and checks what they make of it.
func (l *loader) parseLogin(login *Login, environment string) error {
	if file, ok := strings.CutPrefix(login.Password, "token:"); ok {
		if err := inside(file); err != nil || file == "" {
			return errors.New("behind token: stands a file of the data directory, or one with its whole path")
		}
		login.TokenFile, login.Password = file, ""
	}
	if environment != "" {
		// Where a password has a blank, its end stands here: it must not be shown.
		for _, word := range splitAssignments(environment) {
			name, _, ok := strings.Cut(word, "=")
			if s := l.registry.names[name]; !ok || s == nil || !mayChange(s, []string{"route"}) {
				return fmt.Errorf("behind the password, which has no blanks, may stand NAME=value,NAME=value of %s", strings.Join(l.registry.namesFor([]string{"route"}), ", "))
			}
		}
		var wrong []error
		login.assigns = l.assignments(environment, []string{"route"}, func(format string, a ...any) { wrong = append(wrong, fmt.Errorf(format, a...)) })
		if len(wrong) > 0 {
			return wrong[0]
		}
	}
	for _, a := range login.assigns {
		if a.setting == SaltedPassword.Setting && a.value.parsed == true && login.TokenFile != "" {
			return errors.New("SALTED_PASSWORD is set, and there is a token in the password's place")
		}
		if a.setting == SaltedPassword.Setting && a.value.parsed == true && login.Password != "" && !IsSalted(login.Password) {
			return errors.New("a salted password has 40, 64 or 128 digits in hexadecimal, by the mechanism: SCRAM-SHA-1, -256 or -512")
		}
	}
	return nil
}

// IsSalted tells whether s can be SCRAM's SaltedPassword in hexadecimal.
func IsSalted(s string) bool {
	return (len(s) == 40 || len(s) == 64 || len(s) == 128) && strings.Trim(s, "0123456789abcdefABCDEF") == ""
}

// Credentials is remote_auth (wiki 2789-2801): what deliveries log in with, by keys; as a text and as a constant database that
// cdb-database makes of it. A key is an address, @domain, or a relay as its route names it. A line is key:user password, with
// settings behind it as in a route; or, as in IndiMail, =key:user password: and +start:user password: for all keys that begin with
// start; a line with a single dot ends the text. It never changes; it is safe for concurrent use.
type Credentials struct {
	// File is the text's name, relative to the data directory.
	File string

	path   string
	loader *loader
	cdb    *cdb.Reader
	text   map[string]Login
	starts []start
}

type start struct {
	key   string
	login Login
}

const badCredential = "not of the form key:user password settings, nor as in IndiMail =key:user password settings: with its two colons"

func parseCredentials(l *loader, s string) (*Credentials, error) {
	c := &Credentials{loader: l, text: map[string]Login{}}
	var wrong faults
	for _, line := range significant(s) {
		if line.text == "." {
			break
		}
		fail := func(text string) { wrong = append(wrong, fault{line.line, text}) }
		text, wild, ok := line.text, line.text[0] == '+', true
		if text[0] == '=' || wild {
			if text, ok = strings.CutSuffix(text[1:], ":"); !ok {
				fail(badCredential)
				continue
			}
		}
		key, value, ok := strings.Cut(text, ":")
		if strings.HasPrefix(text, "[") {
			key, value, ok = strings.Cut(text[1:], "]:")
		}
		login, err := l.credential(value)
		switch {
		case !ok || key == "" && !wild || strings.ContainsAny(key, " \t"):
			fail(badCredential)
			continue
		case err != nil:
			fail(err.Error())
			continue
		}
		key = strings.ToLower(key)
		login.standsAt(l.file, line.line)
		if _, twice := c.text[key]; wild {
			c.starts = append(c.starts, start{key, login})
		} else if !twice {
			c.text[key] = login
		}
	}
	if wrong != nil {
		return nil, wrong
	}
	if l == nil || l.file == "" {
		return c, nil
	}
	c.File, c.path = l.file, l.path(l.file)
	for _, suffix := range []string{"", ".cdb"} {
		if err := exposed(c.path + suffix); err != nil {
			return nil, problemIn{l.file + suffix, 1, err.Error()}
		}
	}
	if exists(c.path + ".cdb") {
		var err error
		if c.cdb, err = cdb.Open(c.path + ".cdb"); err != nil {
			return nil, problemIn{l.file + ".cdb", 1, fmt.Sprintf("%v: make it again by `indigo cdb-database %s`, or remove it", err, filepath.Base(c.path))}
		}
		l.warnStale(l.file, c.path)
	}
	return c, nil
}

// credential reads "user password settings".
func (l *loader) credential(value string) (Login, error) {
	words, environment := firstWords(value, 2)
	if len(words) < 2 {
		return Login{}, errors.New(badCredential)
	}
	login := Login{User: words[0], Password: words[1]}
	err := l.parseLogin(&login, environment)
	return login, err
}

// exposed tells that everybody can read a file that holds passwords.
func exposed(path string) error {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o007 != 0 {
		return fmt.Errorf("everybody can read or change the passwords in it: `chmod o= %s`", path)
	}
	return nil
}

// Safe tells that nobody but the owner and the group may read the files, as they are now; the error says what to do. What everybody
// may read must not be used.
func (c *Credentials) Safe() error {
	if c == nil || c.path == "" {
		return nil
	}
	return errors.Join(exposed(c.path), exposed(c.path+".cdb"))
}

// Find looks for the first of keys that there is: each in the constant database, then in the text. A nil Credentials has
// none. The error is for a constant database that is broken, or an entry of it that is malformed.
func (c *Credentials) Find(keys ...string) (login Login, found bool, err error) {
	if c == nil {
		return Login{}, false, nil
	}
	for _, key := range keys {
		key = strings.ToLower(key)
		if c.cdb != nil {
			value, found, err := c.inCDB(key)
			if err == nil && found {
				login, err = c.loader.credential(value)
				login.Where.File = c.File + ".cdb"
			}
			if found || err != nil {
				if err != nil {
					err = fmt.Errorf("%s.cdb: %w", c.File, err)
				}
				return login, err == nil, err
			}
		}
		if login, found = c.text[key]; found {
			return login, true, nil
		}
		longest := -1
		for _, s := range c.starts {
			if strings.HasPrefix(key, s.key) && len(s.key) > longest {
				longest, login, found = len(s.key), s.login, true
			}
		}
		if found {
			return login, true, nil
		}
	}
	return Login{}, false, nil
}

// inCDB looks a key up in the form of qmail's users/cdb.
func (c *Credentials) inCDB(key string) (value string, found bool, err error) {
	v, found, err := c.cdb.Get([]byte("!" + key + "\x00"))
	for n := len(key); n >= 0 && !found && err == nil; n-- {
		v, found, err = c.cdb.Get([]byte("!" + key[:n]))
	}
	return string(v), found, err
}

// mechanismList takes the names of SASL mechanisms for AUTH_SMTP; package sasl, which this one must not know, has the same.
func mechanismList(s string) error {
	for _, name := range Mechanisms(s) {
		known := name == "EXTERNAL"
		for _, m := range switchable() {
			known = known || m[0] == name
		}
		if !known {
			return fmt.Errorf("%q is no mechanism that deliveries can log in by; 1 stands for all, several stand with blanks between them", name)
		}
	}
	return nil
}

// Mechanisms gives the mechanisms that a value of AUTH_SMTP names, in upper case; nil stands for all.
func Mechanisms(s string) (names []string) {
	for _, name := range strings.FieldsFunc(strings.ToUpper(s), func(c rune) bool { return c == ' ' || c == ',' || c == '\t' }) {
		// qmail-remote's manual has the second spelling, too.
		if name = strings.Replace(name, "SCRAM-SHA256", "SCRAM-SHA-256", 1); name != "1" {
			names = append(names, name)
		}
	}
	return names
}
