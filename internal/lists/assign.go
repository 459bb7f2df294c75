package lists

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/indigomail/indigo/internal/cdb"
)

// Assignment is a line of the text that cdb-database reads: "=address:value:" for one address, "+start:value:" for all
// addresses that begin with start (wiki 392).
type Assignment struct {
	Line    int
	Address string
	Wild    bool
	Value   string
}

// ParseAssignments reads the text, which must end with a line of a single dot. Every malformed line is named in the error.
func ParseAssignments(text string) ([]Assignment, error) {
	var all []Assignment
	var wrong []error
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, " \t\r\n")
		switch {
		case line == ".":
			return all, errors.Join(wrong...)
		case line == "" || line[0] == '#':
			continue
		}
		address, value, ok := strings.Cut(line[1:], ":")
		if line[0] != '=' && line[0] != '+' || !ok || !strings.HasSuffix(value, ":") || strings.ContainsRune(line, 0) {
			wrong = append(wrong, fmt.Errorf("line %d: %q is neither of the form =address:value: nor +start:value: with its colons", n, line))
			continue
		}
		all = append(all, Assignment{n, strings.ToLower(address), line[0] == '+', strings.TrimSuffix(value, ":")})
	}
	return nil, errors.Join(append(wrong, fmt.Errorf("line %d: the last line must be a single dot", max(n, 1)))...)
}

// WriteAssignments writes them as a constant database in the form of qmail's users/cdb: the key of an address ends with a
// NUL, that of a start does not, and the empty key holds the last characters of all starts. Who may read it says mode.
func WriteAssignments(name string, mode os.FileMode, all []Assignment) error {
	w, err := cdb.Create(name, mode)
	if err != nil {
		return err
	}
	var ends []byte
	for _, a := range all {
		key := "!" + a.Address
		if !a.Wild {
			key += "\x00"
		} else if n := len(a.Address); n > 0 && bytes.IndexByte(ends, a.Address[n-1]) < 0 {
			ends = append(ends, a.Address[n-1])
		}
		if err := w.Add([]byte(key), []byte(a.Value)); err != nil {
			w.Abort()
			return err
		}
	}
	if err := w.Add(nil, ends); err != nil {
		w.Abort()
		return err
	}
	return w.Commit()
}

// Assigned looks an address up in a file of assignments, a text or with .cdb at its end a constant database: the address
// itself, then the longest start.
func Assigned(file, address string) (value string, found bool, err error) {
	address = strings.ToLower(address)
	if strings.HasSuffix(file, ".cdb") {
		r, err := cdb.Open(file)
		if err != nil {
			return "", false, err
		}
		if v, found, err := r.Get([]byte("!" + address + "\x00")); found || err != nil {
			return string(v), found, err
		}
		ends, _, err := r.Get(nil)
		for n := len(address); n >= 0 && err == nil; n-- {
			if n > 0 && n < len(address) && bytes.IndexByte(ends, address[n-1]) < 0 {
				continue
			}
			var v []byte
			if v, found, err = r.Get([]byte("!" + address[:n])); found {
				return string(v), true, nil
			}
		}
		return "", false, err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", false, err
	}
	all, err := ParseAssignments(string(text))
	if err != nil {
		return "", false, fmt.Errorf("%s: %w", file, err)
	}
	best := -1
	for _, a := range all {
		switch {
		case !a.Wild && a.Address == address:
			return a.Value, true, nil
		case a.Wild && strings.HasPrefix(address, a.Address) && len(a.Address) > best:
			best, value, found = len(a.Address), a.Value, true
		}
	}
	return value, found, nil
}
