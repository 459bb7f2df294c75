// Package settings is knowledge: the one table of everything an operator can set, and the layers that give each
// setting its value for a service, a client, a sender and a recipient. It is the only package that reads the environment or
// the control directory. It must not know what a setting is used for.
package settings

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Setting describes one row of the registry. Rows are made by the constructors in this file and never change.
type Setting struct {
	// Name is IndiMail's environment variable, for example "DATABYTES".
	Name string
	// File is the control file that holds it, relative to the control directory; "" when there is none.
	File string
	// Type is what the value must be, in words for people: "bool", "int", "size in bytes", "seconds", "text", "list",
	// "patterns", "rules".
	Type string
	// Default is the value when no layer sets it, in the same text form as in a file.
	Default string
	// Unset is the value when a layer unsets it, by an empty variables file or by a rule; nearly always the default.
	Unset string
	// Services names the kinds of service that read it: "smtpd", "pop3d", "imapd", "queue", "inject", or "all".
	Services []string
	// Rules names the rules that may change it: "smtp" stands for from.envrules and auth.envrules, "filter", "remote" and
	// "local" for fromd.envrules and rcpt.envrules, "inject" for domainqueue, "bounce" for bounce.envrules (wiki 2282-2290), "oauth" for oauth.envrules, "route"
	// for what stands last in a route and in an entry of remote_auth.
	Rules []string
	// Help is one line: what it does, its unit, its limits.
	Help string
	// Wiki is the line of the IndiMail wiki that describes it; 0 when the setting is Indigo's own.
	Wiki int
	// Pending is true when nothing reads it yet; setting it gives a warning.
	Pending bool
	// Secret marks a value that is never printed.
	Secret bool
	// AtStart is true when it is read at a start alone, and a reload does not take it over; its help says so.
	AtStart bool

	index int
	// inFile is true when a control file holds the value itself, over many lines, and a variable only names the control
	// file, as BADMAILFROM=badmailfrom does in IndiMail.
	inFile                     bool
	parsedDefault, parsedUnset any
	// check parses a text and reports what is wrong with it: an error, or faults with line numbers.
	check func(l *loader, text string) (any, error)
}

// Key is a setting with its Go type. Get is the only way to read a value.
type Key[T any] struct{ *Setting }

// Get gives the value in force in v. A nil view gives the default. It never fails: malformed values were refused, with
// file and line, when the snapshot was loaded.
func (k Key[T]) Get(v *View) T {
	if v != nil {
		if set := v.find(k.Setting); set != nil {
			return set.parsed.(T)
		}
	}
	return k.parsedDefault.(T)
}

// fault is one thing wrong at a line of a text; line counts from 1.
type fault struct {
	line int
	text string
}

// faults is what check gives for a text of many lines.
type faults []fault

func (f faults) Error() string {
	var lines []string
	for _, one := range f {
		lines = append(lines, fmt.Sprintf("line %d: %s", one.line, one.text))
	}
	return strings.Join(lines, "\n")
}

func parseText(s string) (string, error) { return s, nil }

// parseBool takes the words for yes and no. A variable that is set to nothing counts as yes, since IndiMail's programs only
// look whether it is set (SMTPS= in wiki 424).
func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "", "1", "yes", "on", "true":
		return true, nil
	case "0", "no", "off", "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is not one of 1, yes, on, true, 0, no, off, false", s)
}

func parseInt(lo, hi int) func(string) (int, error) {
	return func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if err != nil || n < lo || n > hi {
			return 0, fmt.Errorf("%q is not a whole number from %d to %d", s, lo, hi)
		}
		return n, nil
	}
}

func parseSeconds(lo, hi int) func(string) (time.Duration, error) {
	n := parseInt(lo, hi)
	return func(s string) (time.Duration, error) {
		v, err := n(s)
		return time.Duration(v) * time.Second, err
	}
}

func parseOneOf(allowed []string) func(string) (string, error) {
	return func(s string) (string, error) {
		if !slices.Contains(allowed, s) {
			return "", fmt.Errorf("%q is not one of %s", s, strings.Join(allowed, ", "))
		}
		return s, nil
	}
}

// parseLines gives the lines without comments, blanks and surrounding space.
func parseLines(s string) ([]string, error) {
	var lines []string
	for _, line := range significant(s) {
		lines = append(lines, line.text)
	}
	return lines, nil
}

// numbered is a line with its number.
type numbered struct {
	line int
	text string
}

// significant gives the lines that are neither blank nor comments, trimmed and with their numbers.
func significant(s string) (lines []numbered) {
	n := 0
	for line := range strings.Lines(s) {
		n++
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			lines = append(lines, numbered{n, line})
		}
	}
	return lines
}

// eachLine makes a parser of many lines out of a check of one.
func eachLine(check func(line string) error) func(string) ([]string, error) {
	return func(s string) ([]string, error) {
		var all []string
		var wrong faults
		for _, line := range significant(s) {
			if err := check(line.text); err != nil {
				wrong = append(wrong, fault{line.line, err.Error()})
			}
			all = append(all, line.text)
		}
		if wrong != nil {
			return nil, wrong
		}
		return all, nil
	}
}

// option changes a row that is being made.
type option func(*Setting)

// unset says what unsetting means when it is not the default.
func unset(value string) option { return func(s *Setting) { s.Unset = value } }

func secret(s *Setting) { s.Secret = true }

func pending(s *Setting) { s.Pending = true }

func atStart(s *Setting) {
	s.AtStart = true
	s.Help += "; read at start"
}

// row makes a row; it panics when the default is malformed, which a test would find.
func row[T any](name, file, kind, def, services, help string, wiki int, parse func(*loader, string) (T, error), options []option) Key[T] {
	s := &Setting{
		Name: name, File: file, Type: kind, Default: def, Unset: def, Services: strings.Split(services, ","), Help: help, Wiki: wiki,
		check: func(l *loader, text string) (any, error) { return parse(l, text) },
	}
	for _, o := range options {
		o(s)
	}
	var err, err2 error
	s.parsedDefault, err = s.check(nil, s.Default)
	s.parsedUnset, err2 = s.check(nil, s.Unset)
	if err = errors.Join(err, err2); err != nil {
		panic("settings: default of " + name + ": " + err.Error())
	}
	return Key[T]{s}
}

// plain makes a parser that needs nothing but the text.
func plain[T any](parse func(string) (T, error)) func(*loader, string) (T, error) {
	return func(_ *loader, s string) (T, error) { return parse(s) }
}

func text(name, file, def, services, help string, wiki int, options ...option) Key[string] {
	return row(name, file, "text", def, services, help, wiki, plain(parseText), options)
}

func boolean(name, file, def, services, help string, wiki int, options ...option) Key[bool] {
	return row(name, file, "bool", def, services, help, wiki, plain(parseBool), options)
}

func number(name, file, def string, lo, hi int, services, help string, wiki int, options ...option) Key[int] {
	return row(name, file, "int", def, services, help, wiki, plain(parseInt(lo, hi)), options)
}

func size(name, file, def, services, help string, wiki int, options ...option) Key[int] {
	return row(name, file, "size in bytes", def, services, help, wiki, plain(parseInt(0, 1<<62)), options)
}

func seconds(name, file, def string, lo, hi int, services, help string, wiki int, options ...option) Key[time.Duration] {
	return row(name, file, "seconds", def, services, help, wiki, plain(parseSeconds(lo, hi)), options)
}

func oneOf(name, file, def string, allowed []string, services, help string, wiki int, options ...option) Key[string] {
	return row(name, file, "one of "+strings.Join(allowed, ", "), def, services, help, wiki, plain(parseOneOf(allowed)), options)
}

// lines is a control file of several lines; check is asked of each, nil takes all.
func lines(name, file, services, help string, wiki int, check func(string) error, options ...option) Key[[]string] {
	parse := parseLines
	if check != nil {
		parse = eachLine(check)
	}
	k := row(name, file, "lines", "", services, help, wiki, plain(parse), options)
	k.inFile = true
	return k
}

// routes is a control file of routes.
func routes(name, file, services, help string, wiki int) Key[[]*Route] {
	k := row(name, file, "lines", "", services, help, wiki, parseRoutes, []option{secret})
	k.inFile = true
	return k
}

// credentials is a control file of names and passwords that may also be a constant database.
func credentials(name, file, services, help string, wiki int) Key[*Credentials] {
	k := row(name, file, "credentials", "", services, help, wiki, parseCredentials, []option{secret})
	k.inFile = true
	return k
}

// list is a control file that may also be a constant database or a table of SQL.
func list(name, file, services, help string, wiki int, options ...option) Key[*List] {
	k := row(name, file, "list", "", services, help, wiki, parseList, options)
	k.inFile = true
	return k
}

// patternList is a control file of patterns.
func patternList(name, file, services, help string, wiki int, options ...option) Key[*Patterns] {
	k := row(name, file, "patterns", "", services, help, wiki, parsePatterns, options)
	k.inFile = true
	return k
}

// ruleList is a rules file; class is the kind of rules in it.
func ruleList(name, file, services, help string, wiki int, classes ...string) Key[*Rules] {
	k := row(name, file, "rules", "", services, help, wiki, func(l *loader, s string) (*Rules, error) { return parseRules(l, s, classes) }, nil)
	k.inFile = true
	return k
}
