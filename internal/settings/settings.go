// Package settings is knowledge: the one table of everything an operator can set, and the layers that give each
// setting its value for a service. It is the only package that reads the environment or the control directory. It
// must not know what a setting is used for.
package settings

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Setting describes one row of the registry. Rows are made by the constructors in table.go and never change.
type Setting struct {
	// Name is IndiMail's environment variable, for example "DATABYTES".
	Name string
	// File is the control file that holds it, relative to the control directory; "" when there is none.
	File string
	// Type is what the value must be, in words for people: "bool", "int", "size in bytes", "seconds", "text", "list".
	Type string
	// Default is the value when no layer sets it, in the same text form as in a file.
	Default string
	// Services names the kinds of service that read it: "smtpd", "pop3d", "imapd", "queue", or "all".
	Services []string
	// Help is one line: what it does, its unit, its limits.
	Help string
	// Wiki is the line of the IndiMail wiki that describes it; 0 when the setting is Indigo's own.
	Wiki int
	// check parses a value and reports what is wrong with it.
	check func(string) (any, error)
}

// Key is a setting with its Go type. Get is the only way to read a value.
type Key[T any] struct {
	*Setting
	parse func(string) (T, error)
}

// Get gives the value in force in v. A nil view gives the default. It never fails: malformed values were refused, with
// file and line, when the snapshot was loaded.
func (k Key[T]) Get(v *View) T {
	if v != nil {
		if set, ok := v.values[k.Setting]; ok {
			return set.parsed.(T)
		}
	}
	value, err := k.parse(k.Default)
	if err != nil {
		panic("settings: default of " + k.Name + ": " + err.Error())
	}
	return value
}

func parseText(s string) (string, error) { return s, nil }

func parseBool(s string) (bool, error) { return s != "" && s != "0", nil }

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

// parseList gives the lines without comments, blanks and surrounding space.
func parseList(s string) ([]string, error) {
	var lines []string
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			lines = append(lines, line)
		}
	}
	return lines, nil
}

func row[T any](name, file, kind, def, services, help string, wiki int, parse func(string) (T, error)) Key[T] {
	return Key[T]{&Setting{
		Name: name, File: file, Type: kind, Default: def, Services: strings.Split(services, ","), Help: help, Wiki: wiki,
		check: func(s string) (any, error) { return parse(s) },
	}, parse}
}
