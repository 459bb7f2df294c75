package settings

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
)

// matcher finds which of many patterns match a subject. Patterns without wildcards, with one "*" at an end, and of the form
// *text* are looked up or compared; only the rest are tried one after another.
type matcher struct {
	exact          map[string][]int32
	suffix, prefix map[string][]int32
	// suffixes and prefixes are the lengths in the maps.
	suffixes, prefixes []int
	rest               []general
}

// general is a pattern that must be tried.
type general struct {
	index   int32
	matches func(string) bool
}

// separator keeps path.Match, which treats "/" apart, from doing so.
var separator = strings.NewReplacer("/", "\x00")

// fold gives the form in which subjects and patterns are compared.
func fold(s string) string { return separator.Replace(strings.ToLower(s)) }

func newMatcher() *matcher {
	return &matcher{exact: map[string][]int32{}, suffix: map[string][]int32{}, prefix: map[string][]int32{}}
}

// addWild adds a pattern in which "*" stands for any text, "?" for one character and "[ab]" for one of some.
func (m *matcher) addWild(pattern string, index int32) error {
	p := fold(pattern)
	if _, err := path.Match(p, ""); err != nil {
		return fmt.Errorf("pattern %q: %w", pattern, err)
	}
	const wild = `*?[\`
	switch {
	case p == "<>":
		m.exact[""] = append(m.exact[""], index)
	case !strings.ContainsAny(p, wild):
		m.exact[p] = append(m.exact[p], index)
	case p[0] == '*' && !strings.ContainsAny(p[1:], wild):
		m.addEnd(m.suffix, &m.suffixes, p[1:], index)
	case p[len(p)-1] == '*' && !strings.ContainsAny(p[:len(p)-1], wild):
		m.addEnd(m.prefix, &m.prefixes, p[:len(p)-1], index)
	case len(p) > 1 && p[0] == '*' && p[len(p)-1] == '*' && !strings.ContainsAny(p[1:len(p)-1], wild):
		inner := p[1 : len(p)-1]
		m.rest = append(m.rest, general{index, func(s string) bool { return strings.Contains(s, inner) }})
	default:
		m.rest = append(m.rest, general{index, func(s string) bool { ok, err := path.Match(p, s); return ok && err == nil }})
	}
	return nil
}

func (m *matcher) addEnd(into map[string][]int32, lengths *[]int, text string, index int32) {
	into[text] = append(into[text], index)
	if !slices.Contains(*lengths, len(text)) {
		*lengths = append(*lengths, len(text))
	}
}

// addRegexp adds a regular expression (RE2's, which has what POSIX's extended ones have but back references), in any case;
// it matches anywhere in the subject unless it has anchors, as regexec(3) does.
func (m *matcher) addRegexp(pattern string, index int32) error {
	body, head := strings.CutPrefix(pattern, "^")
	body, tail := strings.CutSuffix(body, "$")
	// Most expressions in such files are addresses with an anchor and dots that are escaped; those need no machine.
	plain := strings.ReplaceAll(body, `\.`, "")
	if !strings.ContainsAny(plain, `\.*+?()[]{}|^$`) && plain != "" {
		literal := fold(strings.ReplaceAll(body, `\.`, "."))
		switch {
		case head && tail:
			m.exact[literal] = append(m.exact[literal], index)
		case head:
			m.addEnd(m.prefix, &m.prefixes, literal, index)
		case tail:
			m.addEnd(m.suffix, &m.suffixes, literal, index)
		default:
			m.rest = append(m.rest, general{index, func(s string) bool { return strings.Contains(s, literal) }})
		}
		return nil
	}
	e, err := regexp.Compile("(?is)" + pattern)
	if err != nil {
		return fmt.Errorf("regular expression %q: %w", pattern, err)
	}
	m.rest = append(m.rest, general{index, func(s string) bool { return e.MatchString(strings.ReplaceAll(s, "\x00", "/")) }})
	return nil
}

// match gives the indices of the patterns that match, in the order of the patterns.
func (m *matcher) match(subject string) []int32 {
	s := fold(subject)
	var found []int32
	found = append(found, m.exact[s]...)
	for _, n := range m.suffixes {
		if n <= len(s) {
			found = append(found, m.suffix[s[len(s)-n:]]...)
		}
	}
	for _, n := range m.prefixes {
		if n <= len(s) {
			found = append(found, m.prefix[s[:n]]...)
		}
	}
	for _, g := range m.rest {
		if g.matches(s) {
			found = append(found, g.index)
		}
	}
	if len(found) > 1 {
		slices.Sort(found)
		// "*" alone is both a suffix and a prefix of everything, but stands in one map only.
		found = slices.Compact(found)
	}
	return found
}

// patternSet is patterns in both readings: wildcards, and regular expressions for where QREGEX is set.
type patternSet struct {
	patterns []numbered
	wild     *matcher
	// expressions is made when the first thing in the snapshot sets QREGEX; nil before.
	expressions atomic.Pointer[matcher]
}

func newPatternSet(patterns []numbered) (*patternSet, faults) {
	p := &patternSet{patterns: patterns, wild: newMatcher()}
	var wrong faults
	for i, one := range patterns {
		if err := p.wild.addWild(one.text, int32(i)); err != nil {
			wrong = append(wrong, fault{one.line, err.Error()})
		}
	}
	return p, wrong
}

// compile makes the patterns ready to be read as regular expressions.
func (p *patternSet) compile() (wrong faults) {
	m := newMatcher()
	for i, one := range p.patterns {
		if err := m.addRegexp(one.text, int32(i)); err != nil {
			wrong = append(wrong, fault{one.line, err.Error()})
		}
	}
	p.expressions.Store(m)
	return wrong
}

// match gives the indices of the patterns that match subject; asRegexp is QREGEX.
func (p *patternSet) match(subject string, asRegexp bool) []int32 {
	if asRegexp {
		if e := p.expressions.Load(); e != nil {
			return e.match(subject)
		}
	}
	return p.wild.match(subject)
}
