package settings

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/indigomail/indigo/internal/cdb"
)

// TCPRules is the rules of a service by the client's address and host name, as tcprules and tcpserver have them (wiki 2318-
// 2363, 2823-2840): allow or deny, and settings. The first of these that has a rule decides: user@address, user@=host,
// address, =host, the address's network (the longest prefix first: a CIDR network, or whole bytes with a dot at the end),
// the host's domain behind "=." (the longest first), "=" for a client with a host name, and the empty address. A client
// that no rule is for is let in. The user is what an ident server would say; Indigo asks none.
type TCPRules struct {
	// File is where the rules come from, relative to the data directory.
	File string
	// NeedsHost is true when some rule is for a host name, so that the client's must be looked up.
	NeedsHost bool

	rules map[string]*tcpRule
	cdb   *cdb.Reader
	// lengths are the CIDR prefix lengths in use, longest first, for IPv4 and IPv6.
	lengths4, lengths6 []int
	loader             *loader
}

// tcpRule is one rule.
type tcpRule struct {
	line        int
	deny        bool
	assigns     []assignment
	environment []string
}

// TCPVerdict is what rules say of a client.
type TCPVerdict struct {
	// Deny is true when the client must be sent away without a word.
	Deny bool
	// Rule is the address of the rule that decided, Where its file and line; "" when none did.
	Rule, Where string
	rule        *tcpRule
}

// TCPRule is a rule in the form in which it is written to a constant database.
type TCPRule struct {
	Line    int
	Address string
	// Data is "D\0" for deny, and "+NAME=value\0" for each variable.
	Data string
}

// errNoAction is for a rule with neither allow nor deny.
var errNoAction = errors.New("not of the form address:allow or address:deny, with ,NAME=\"value\" behind it")

// ParseTCPRules reads the text form. Every malformed line is named in the error, with its number. An address with a range
// in its last number, 1.2.3.4-7, becomes one rule for each.
func ParseTCPRules(text string) ([]TCPRule, error) {
	var all []TCPRule
	var wrong faults
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, " \t\r\n")
		if line == "" || line[0] == '#' {
			continue
		}
		address, instructions, found := cutAddress(line)
		if !found {
			wrong = append(wrong, fault{n, errNoAction.Error()})
			continue
		}
		data, err := parseInstructions(instructions)
		if err == nil {
			err = checkAddress(address)
		}
		if err != nil {
			wrong = append(wrong, fault{n, err.Error()})
			continue
		}
		for _, one := range expandRange(address) {
			all = append(all, TCPRule{n, one, data})
		}
	}
	if wrong != nil {
		return nil, wrong
	}
	return all, nil
}

// cutAddress splits at the colon before allow or deny: an IPv6 address has colons itself.
func cutAddress(line string) (address, instructions string, ok bool) {
	for i := range len(line) {
		if line[i] == ':' && (strings.HasPrefix(line[i+1:], "allow") || strings.HasPrefix(line[i+1:], "deny")) {
			return line[:i], line[i+1:], true
		}
	}
	return "", "", false
}

func parseInstructions(s string) (data string, err error) {
	rest, deny := strings.CutPrefix(s, "deny")
	if deny {
		data = "D\x00"
	} else if rest, ok := strings.CutPrefix(s, "allow"); ok {
		s = rest
	}
	if deny {
		s = rest
	}
	for s != "" {
		if s[0] != ',' {
			return "", fmt.Errorf("%q in the place of a comma", s)
		}
		name, quoted, ok := strings.Cut(s[1:], "=")
		if !ok || name == "" || quoted == "" || strings.ContainsAny(name, " \t,\"") {
			return "", fmt.Errorf("%q is not of the form NAME=\"value\"", s[1:])
		}
		// Any character may quote; the wiki's page shows typographic quotes.
		quoted = strings.NewReplacer("”", `"`, "“", `"`).Replace(quoted)
		value, after, ok := strings.Cut(quoted[1:], quoted[:1])
		if !ok {
			return "", fmt.Errorf("the value of %s does not end with %q as it begins", name, quoted[:1])
		}
		data += "+" + name + "=" + value + "\x00"
		s = after
	}
	return data, nil
}

// checkAddress finds out whether a can match anybody.
func checkAddress(a string) error {
	if _, after, ok := strings.Cut(a, "@"); ok {
		a = after
	}
	if a == "" || a[0] == '=' {
		return nil
	}
	if strings.Contains(a, "/") {
		if p, err := netip.ParsePrefix(a); err != nil || p.Masked() != p {
			return fmt.Errorf("%q is no network in CIDR form, with the bits of the host zero", a)
		}
		return nil
	}
	if _, err := netip.ParseAddr(a); err == nil {
		return nil
	}
	parts := strings.Split(strings.TrimSuffix(a, "."), ".")
	if strings.Contains(a, ":") || len(parts) > 4 || len(parts) == 4 == strings.HasSuffix(a, ".") {
		return fmt.Errorf("%q is no address, prefix of whole bytes with a dot at its end, network in CIDR form, or host name behind =", a)
	}
	for i, part := range parts {
		low, high, ranged := strings.Cut(part, "-")
		for _, end := range []string{low, high} {
			if n, err := strconv.Atoi(end); (end != "" || !ranged && end == low) && (err != nil || n < 0 || n > 255) || ranged && (end == "" || i < len(parts)-1) {
				return fmt.Errorf("%q: %q is no byte, or range of bytes at the end", a, part)
			}
		}
		if from, err := strconv.Atoi(low); ranged && err == nil {
			if to, err := strconv.Atoi(high); err == nil && from > to {
				return fmt.Errorf("%q: the range %s ends before it begins", a, part)
			}
		}
	}
	return nil
}

// expandRange makes 1.2.3.4-7 and 1.2.3-5. into the addresses that they stand for.
func expandRange(a string) []string {
	user, rest, at := strings.Cut(a, "@")
	if !at {
		user, rest = "", a
	}
	low, high, ok := strings.Cut(rest, "-")
	if !ok || strings.HasPrefix(rest, "=") {
		return []string{a}
	}
	dot := strings.LastIndex(low, ".")
	head, dotted := low[:dot+1], ""
	if h, found := strings.CutSuffix(high, "."); found {
		high, dotted = h, "."
	}
	from, err := strconv.Atoi(low[dot+1:])
	to, err2 := strconv.Atoi(high)
	if err != nil || err2 != nil {
		return []string{a}
	}
	if at {
		head = user + "@" + head
	}
	var all []string
	for n := from; n <= to; n++ {
		all = append(all, head+strconv.Itoa(n)+dotted)
	}
	return all
}

// cidrKey is the key of a constant database that holds the CIDR lengths in use, one byte each, IPv4's and IPv6's (plus 128).
// No client's address is equal to it, so that other programs never see it.
const cidrKey = "/"

// WriteTCPRules writes the rules as a constant database that tcpserver reads too (CIDR networks only we do).
func WriteTCPRules(name string, rules []TCPRule) error {
	w, err := cdb.Create(name, 0o644)
	if err != nil {
		return err
	}
	var lengths []byte
	for _, r := range rules {
		if err := w.Add([]byte(r.Address), []byte(r.Data)); err != nil {
			w.Abort()
			return err
		}
		if p, err := netip.ParsePrefix(r.Address); err == nil {
			b := byte(p.Bits())
			if p.Addr().Is6() {
				b += 128
			}
			if !slices.Contains(lengths, b) {
				lengths = append(lengths, b)
			}
		}
	}
	if lengths != nil {
		if err := w.Add([]byte(cidrKey), lengths); err != nil {
			w.Abort()
			return err
		}
	}
	return w.Commit()
}

// setLengths takes the prefix lengths in the form of cidrKey's value.
func (t *TCPRules) setLengths(lengths []byte) {
	for _, b := range lengths {
		if b >= 128 && b < 255 {
			t.lengths6 = append(t.lengths6, int(b-128))
		} else if b <= 32 {
			t.lengths4 = append(t.lengths4, int(b))
		}
	}
	descend := func(a, b int) int { return b - a }
	slices.SortFunc(t.lengths4, descend)
	slices.SortFunc(t.lengths6, descend)
}

// get finds the rule for an address.
func (t *TCPRules) get(address string) (*tcpRule, error) {
	if t.cdb == nil {
		return t.rules[address], nil
	}
	data, found, err := t.cdb.Get([]byte(address))
	if err != nil || !found {
		return nil, err
	}
	r := t.loader.tcpRule(TCPRule{0, address, string(data)}, nil)
	for i := range r.assigns {
		r.assigns[i].value.source.File = t.File
	}
	return r, nil
}

// Lookup gives the verdict on a client; host is its host name, "" when it has none or it was not looked up. A nil TCPRules
// lets everybody in. It fails when the constant database is damaged.
func (t *TCPRules) Lookup(ip netip.Addr, host string) (TCPVerdict, error) {
	if t == nil {
		return TCPVerdict{}, nil
	}
	ip = ip.Unmap().WithZone("")
	text, host := ip.String(), strings.ToLower(strings.TrimSuffix(host, "."))
	try := func(address string) (TCPVerdict, bool, error) {
		r, err := t.get(address)
		if err != nil || r == nil {
			return TCPVerdict{}, false, err
		}
		where := t.File
		if r.line > 0 {
			where += ":" + strconv.Itoa(r.line)
		}
		return TCPVerdict{Deny: r.deny, Rule: address, Where: where, rule: r}, true, nil
	}
	addresses := []string{text}
	if host != "" {
		addresses = append(addresses, "="+host)
	}
	lengths := t.lengths6
	if ip.Is4() {
		lengths = t.lengths4
	}
	// Both forms of networks, the longest first.
	type network struct {
		bits int
		name string
	}
	var networks []network
	for _, bits := range lengths {
		if p, err := ip.Prefix(bits); err == nil {
			networks = append(networks, network{bits, p.String()})
		}
	}
	if ip.Is4() {
		for i := len(text) - 1; i > 0; i-- {
			if text[i] == '.' {
				networks = append(networks, network{8 * strings.Count(text[:i+1], "."), text[:i+1]})
			}
		}
		slices.SortStableFunc(networks, func(a, b network) int { return b.bits - a.bits })
	}
	for _, n := range networks {
		addresses = append(addresses, n.name)
	}
	if host != "" {
		for i := range len(host) {
			if host[i] == '.' {
				addresses = append(addresses, "="+host[i:])
			}
		}
		addresses = append(addresses, "=")
	}
	for _, a := range append(addresses, "") {
		if v, found, err := try(a); found || err != nil {
			return v, err
		}
	}
	return TCPVerdict{}, nil
}

// tcpRule makes a rule out of its stored form; problems are reported with the line when report is not nil.
func (l *loader) tcpRule(r TCPRule, report func(line int, format string, a ...any)) *tcpRule {
	rule := &tcpRule{line: r.Line}
	data := r.Data
	for data != "" {
		instruction, rest, _ := strings.Cut(data, "\x00")
		data = rest
		if strings.HasPrefix(instruction, "D") {
			rule.deny = true
		}
		one, ok := strings.CutPrefix(instruction, "+")
		if !ok {
			continue
		}
		name, text, _ := strings.Cut(one, "=")
		setting := byName(name)
		if setting == nil {
			rule.environment = append(rule.environment, one)
			continue
		}
		parsed, err := l.parse(setting, text)
		if err != nil {
			if report != nil {
				report(r.Line, "%s: %v (%s)", name, err, setting.Help)
			}
			continue
		}
		v := value{parsed: parsed, source: Source{Layer: "tcp rule", Value: text}}
		rule.assigns = append(rule.assigns, assignment{setting, v})
	}
	return rule
}

// loadTCPRules reads NAME.cdb, or else NAME, of the directory tcp.
func (l *loader) loadTCPRules(name string) *TCPRules {
	file := filepath.Join("tcp", name)
	if filepath.IsAbs(name) {
		file = name
	}
	path := l.path(file)
	t := &TCPRules{File: file, loader: l}
	report := func(line int, format string, a ...any) { l.fail(t.File, line, format, a...) }
	var rules []TCPRule
	base, isCDB := strings.CutSuffix(path, ".cdb")
	database, err := cdb.Open(base + ".cdb")
	switch {
	case err == nil:
		t.cdb = database
		if !isCDB {
			t.File += ".cdb"
			l.warnStale(file, path)
		}
		lengths, _, _ := database.Get([]byte(cidrKey))
		t.setLengths(lengths)
		for record, err := range database.All() {
			if err != nil {
				report(1, "%v; make it again by `indigo tcprules`", err)
				return nil
			}
			if string(record.Key) != cidrKey {
				rules = append(rules, TCPRule{0, string(record.Key), string(record.Value)})
			}
		}
	case !errors.Is(err, fs.ErrNotExist):
		l.fail(file+".cdb", 1, "%v; make it again by `tcprules`", err)
		return nil
	case isCDB:
		return nil
	default:
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			rules, err = ParseTCPRules(string(content))
		}
		if err != nil {
			l.failWith(file, err)
			return nil
		}
		var lengths []byte
		t.rules = map[string]*tcpRule{}
		for _, r := range rules {
			if p, err := netip.ParsePrefix(r.Address); err == nil {
				b := byte(p.Bits())
				if p.Addr().Is6() {
					b += 128
				}
				if !slices.Contains(lengths, b) {
					lengths = append(lengths, b)
				}
			}
		}
		t.setLengths(lengths)
	}
	for _, r := range rules {
		if strings.Contains(r.Address, "=") {
			t.NeedsHost = true
		}
		rule := l.tcpRule(r, report)
		for i := range rule.assigns {
			source := &rule.assigns[i].value.source
			source.File, source.Line = t.File, r.Line
			l.noteUse(rule.assigns[i].setting, rule.assigns[i].value, t.File, r.Line)
		}
		// The first of several rules for one address decides, as in a constant database.
		if t.rules != nil && t.rules[r.Address] == nil {
			t.rules[r.Address] = rule
		}
	}
	return t
}

// warnStale warns of a text that was changed after its constant database was made.
func (l *loader) warnStale(file, path string) {
	source, err := os.Stat(path)
	made, err2 := os.Stat(path + ".cdb")
	if err == nil && err2 == nil && source.ModTime().After(made.ModTime()) {
		l.warn(file, 1, "is newer than %s.cdb, which is in force: make it again", file)
	}
}

// OpenTCPRules opens rules by themselves: the constant database name, or a text when the name does not end with .cdb.
func OpenTCPRules(name string) (*TCPRules, error) {
	absolute, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(absolute); err != nil {
		return nil, err
	}
	l := newLoader("")
	t := l.loadTCPRules(absolute)
	if l.problems != nil {
		return nil, l.problems
	}
	return t, nil
}

// Variables gives what the rule sets, as NAME=value.
func (v TCPVerdict) Variables() (all []string) {
	if v.rule == nil {
		return nil
	}
	for _, a := range v.rule.assigns {
		all = append(all, a.setting.Name+"="+a.value.source.Value)
	}
	return append(all, v.rule.environment...)
}
