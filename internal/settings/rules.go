package settings

import (
	"fmt"
	"slices"
	"strings"
)

// Rules is a rules file: lines "pattern:VAR=value,VAR=,…" that set or unset settings for what the pattern matches (wiki
// 2265-2295). A pattern is a whole address or domain, in any case, in which "*" stands for any text, "?" for one character
// and "[ab]" for one of some; "<>" or nothing stands for the null sender. Where QREGEX is set it is a regular expression.
// "\," stands for a comma in a value. Every rule that matches is obeyed, a later one wins.
type Rules struct {
	rules    []rule
	patterns *patternSet
}

type rule struct {
	line    int
	assigns []assignment
}

// assignment sets a setting, or with unset unsets it.
type assignment struct {
	setting *Setting
	value   value
}

// Len gives the number of rules; a nil Rules has none.
func (r *Rules) Len() int {
	if r == nil {
		return 0
	}
	return len(r.rules)
}

// mayChange tells whether rules of one of classes may change s; see Setting.Rules.
func mayChange(s *Setting, classes []string) bool {
	return slices.ContainsFunc(s.Rules, func(one string) bool { return slices.Contains(classes, one) })
}

// parseRules reads the lines, of which those may set only what some of classes may change.
func parseRules(l *loader, s string, classes []string) (*Rules, error) {
	r := &Rules{}
	var wrong faults
	var patterns []numbered
	for _, line := range significant(s) {
		// l is nil for the default only, which has no lines.
		fail := func(format string, a ...any) { wrong = append(wrong, fault{line.line, fmt.Sprintf(format, a...)}) }
		// Behind a pattern stands a name and "=", so that the pattern may have colons.
		end := -1
		for i := range len(line.text) {
			if line.text[i] == ':' && strings.Contains(line.text[i:], "=") {
				end = i
				break
			}
		}
		if end < 0 {
			fail("%s is not of the form pattern:NAME=value,NAME=value", quoted(line.text))
			continue
		}
		pattern := line.text[:end]
		if pattern == "" {
			pattern = "<>"
		}
		one := rule{line: line.line}
		one.assigns = l.assignments(line.text[end+1:], classes, fail)
		for _, a := range one.assigns {
			l.noteUse(a.setting, a.value, l.file, line.line)
		}
		r.rules = append(r.rules, one)
		patterns = append(patterns, numbered{line.line, pattern})
	}
	set, bad := newPatternSet(patterns)
	r.patterns = set
	if l != nil {
		l.sets = append(l.sets, loadedSet{l.file, set})
		for i := range r.rules {
			for j := range r.rules[i].assigns {
				source := &r.rules[i].assigns[j].value.source
				source.Layer, source.File, source.Line = "rule", l.file, r.rules[i].line
			}
		}
	}
	if wrong = append(wrong, bad...); wrong != nil {
		slices.SortStableFunc(wrong, func(a, b fault) int { return a.line - b.line })
		return nil, wrong
	}
	return r, nil
}

// assignments reads NAME=value,NAME=value of settings that some of classes may change. fail is told what is wrong.
func (l *loader) assignments(text string, classes []string, fail func(format string, a ...any)) (all []assignment) {
	var before *Setting
	for _, word := range splitAssignments(text) {
		name, text, ok := strings.Cut(word, "=")
		if !ok {
			if before != nil && before.Secret {
				fail("what stands behind a comma in %s is not of the form NAME=value; a comma in a value is \\,", before.Name)
			} else {
				fail("%s is not of the form NAME=value", quoted(word))
			}
			continue
		}
		setting := l.registry.names[name]
		before = setting
		switch {
		case setting == nil:
			fail("no setting %s; the nearest is %s", name, nearest(name, l.registry.namesFor(classes)))
			continue
		case !mayChange(setting, classes):
			fail("%s cannot be set by this file, which may set %s", name, strings.Join(l.registry.namesFor(classes), ", "))
			continue
		}
		a := assignment{setting: setting, value: value{parsed: setting.parsedUnset, source: Source{Value: setting.Unset, Unset: true}}}
		if text != "" {
			parsed, err := l.parse(setting, text)
			if err != nil {
				fail("%s: %v (%s)", name, err, setting.Help)
				continue
			}
			a.value = value{parsed: parsed, source: Source{Value: text}}
		}
		all = append(all, a)
	}
	return all
}

// quoted quotes a faulty text, unless a password may stand in it.
func quoted(s string) string {
	if strings.Contains(s, "SMTPROUTE") {
		return "this line"
	}
	return fmt.Sprintf("%q", s)
}

// splitAssignments splits at commas that no backslash precedes.
func splitAssignments(s string) (words []string) {
	var word strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && s[i+1] == ',':
			word.WriteByte(',')
			i++
		case s[i] == ',':
			words = append(words, word.String())
			word.Reset()
		default:
			word.WriteByte(s[i])
		}
	}
	return append(words, word.String())
}

// namesFor gives the names that some of classes may change, in the order of the alphabet.
func (r *registry) namesFor(classes []string) (names []string) {
	for _, s := range r.all {
		if mayChange(s, classes) {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	return names
}

// lookup gives what the rules that match subject set.
func (r *Rules) lookup(subject string, asRegexp bool) (assigns []assignment) {
	if r.Len() == 0 {
		return nil
	}
	for _, i := range r.patterns.match(subject, asRegexp) {
		assigns = append(assigns, r.rules[i].assigns...)
	}
	return assigns
}

// Patterns is a control file of patterns, as badmailfrompatterns: wildcards, or regular expressions where QREGEX is set. A
// pattern behind "!" takes back what an earlier one matched.
type Patterns struct {
	set *patternSet
	not []bool
}

func parsePatterns(l *loader, s string) (*Patterns, error) {
	p := &Patterns{}
	var patterns []numbered
	for _, line := range significant(s) {
		body, not := strings.CutPrefix(line.text, "!")
		patterns = append(patterns, numbered{line.line, body})
		p.not = append(p.not, not)
	}
	set, wrong := newPatternSet(patterns)
	p.set = set
	if l != nil {
		l.sets = append(l.sets, loadedSet{l.file, set})
	}
	if wrong != nil {
		return nil, wrong
	}
	return p, nil
}

// Len gives the number of patterns; a nil Patterns has none.
func (p *Patterns) Len() int {
	if p == nil || p.set == nil {
		return 0
	}
	return len(p.set.patterns)
}

// Match tells whether subject matches, and the number of the line that decided. v says by QREGEX how to read the patterns.
func (p *Patterns) Match(v *View, subject string) (line int, ok bool) {
	if p.Len() == 0 {
		return 0, false
	}
	for _, i := range p.set.match(subject, QRegex.Get(v)) {
		line, ok = p.set.patterns[i].line, !p.not[i]
	}
	return line, ok
}
