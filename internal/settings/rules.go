package settings

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Rules is a rules file: lines "pattern:VAR=value,VAR=,…" that set or unset settings for what the pattern matches (wiki
// 2265-2295). A pattern is a whole address or domain, in any case, in which "*" stands for any text, "?" for one character
// and "[ab]" for one of some.
type Rules []Rule

// Rule is one line.
type Rule struct {
	Pattern string
	Assign  []Assignment
}

// Assignment sets a setting to a value, or unsets it when the value is empty.
type Assignment struct{ Name, Value string }

// separator keeps path.Match, which treats "/" apart, from doing so.
var separator = strings.NewReplacer("/", "\x00")

// parseRules reads the lines, of which those may set only what is allowed.
func parseRules(allowed ...string) func(string) (Rules, error) {
	return func(s string) (Rules, error) {
		lines, err := parseList(s)
		if err != nil {
			return nil, err
		}
		rules := make(Rules, 0, len(lines))
		for _, line := range lines {
			// Behind a pattern stands a name and "=", so that the pattern may have colons.
			end := -1
			for i := range len(line) {
				if line[i] == ':' && strings.Contains(line[i:], "=") {
					end = i
					break
				}
			}
			if end < 1 {
				return nil, fmt.Errorf("line %q is not of the form pattern:NAME=value,NAME=value", line)
			}
			r := Rule{Pattern: separator.Replace(strings.ToLower(line[:end]))}
			if _, err := path.Match(r.Pattern, ""); err != nil {
				return nil, fmt.Errorf("pattern %q: %w", line[:end], err)
			}
			for one := range strings.SplitSeq(line[end+1:], ",") {
				name, value, ok := strings.Cut(one, "=")
				if !ok || !slices.Contains(allowed, name) {
					return nil, fmt.Errorf("%q in line %q: this file may set only %s", one, line, strings.Join(allowed, ", "))
				}
				r.Assign = append(r.Assign, Assignment{name, value})
			}
			rules = append(rules, r)
		}
		return rules, nil
	}
}

// Lookup gives what the first rule that matches subject and assigns name assigns.
func (r Rules) Lookup(subject, name string) (value string, ok bool) {
	if len(r) == 0 {
		return "", false
	}
	subject = separator.Replace(strings.ToLower(subject))
	for _, rule := range r {
		if matched, err := path.Match(rule.Pattern, subject); err != nil || !matched {
			continue
		}
		for _, a := range rule.Assign {
			if a.Name == name {
				return a.Value, true
			}
		}
	}
	return "", false
}

func ruleList(name, file, services, help string, wiki int, allowed ...string) Key[Rules] {
	return row(name, file, "list", "", services, help, wiki, parseRules(allowed...))
}
