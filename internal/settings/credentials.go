package settings

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// maxNamed is how many entries of a constant database are named one by one.
const maxNamed = 20

// entry is one of the constant database: of key, or with wild of all keys that begin with it. login means nothing while err is set.
type entry struct {
	key   string
	wild  bool
	login Login
	err   error
}

// entries gives those of the constant database, each key once; one that no look-up asks for has errNeverAsked. It ends with an error in the place of
// an entry where the file is damaged.
func (c *Credentials) entries() iter.Seq2[entry, error] {
	return func(yield func(entry, error) bool) {
		if c == nil || c.cdb == nil {
			return
		}
		seen := map[string]bool{}
		for record, err := range c.cdb.All() {
			if err != nil {
				yield(entry{}, err)
				return
			}
			if len(record.Key) == 0 || seen[string(record.Key)] {
				continue
			}
			seen[string(record.Key)] = true
			value, found, err := c.cdb.Get(record.Key)
			if err == nil && (!found || !bytes.Equal(value, record.Value)) {
				err = fmt.Errorf("the entry of %q is not found by its key", record.Key)
			}
			if err != nil {
				yield(entry{}, err)
				return
			}
			one := entry{}
			key, ours := strings.CutPrefix(string(record.Key), "!")
			one.key, one.wild = strings.CutSuffix(key, "\x00")
			one.wild = !one.wild
			if one.login, one.err = c.loader.credential(string(value)); one.err == nil {
				one.login.standsAt(c.File+".cdb", 1)
			}
			if !ours || one.key != strings.ToLower(one.key) || one.key == "" && !one.wild {
				one.err = errNeverAsked
			}
			if !yield(one, nil) {
				return
			}
		}
	}
}

var errNeverAsked = errors.New("a key that nothing asks for")

// inText gives what the text says of an entry's key, and the line; the first of several counts.
func (c *Credentials) inText(key string, wild bool) (login Login, found bool) {
	if !wild {
		login, found = c.text[key]
		return login, found
	}
	for _, s := range c.starts {
		if s.key == key {
			return s.login, true
		}
	}
	return Login{}, false
}

// same tells whether two logins are the same, wherever they stand.
func (l Login) same(other Login) bool {
	if l.User != other.User || l.Password != other.Password || l.TokenFile != other.TokenFile || len(l.assigns) != len(other.assigns) {
		return false
	}
	for i, a := range l.assigns {
		b := other.assigns[i]
		if a.setting != b.setting || a.value.source.Value != b.value.source.Value || a.value.source.Unset != b.value.source.Unset {
			return false
		}
	}
	return true
}

// Check reads every entry of the constant database, which a load does not, and compares it with the text. What is wrong makes mail wait; a warning
// is about an entry that is not in force, or is not meant to be. A nil Credentials has nothing.
func (c *Credentials) Check() (wrong, warnings Problems) {
	if c == nil || c.path == "" {
		return nil, nil
	}
	// At a load that was an error: it has come since.
	if err := c.Safe(); err != nil {
		wrong = append(wrong, Problem{c.File, 1, "REMOTE_AUTH: " + err.Error()})
	}
	if c.cdb == nil {
		return wrong, nil
	}
	file, hasText := c.File+".cdb", exists(c.path)
	mend := "make it again by `indigo cdb-database " + filepath.Base(c.path) + "`"
	say := func(all *Problems, file string, line int, format string, a ...any) {
		*all = append(*all, Problem{file, line, "REMOTE_AUTH: " + fmt.Sprintf(format, a...)})
	}
	malformed, unasked, removed := 0, 0, []string{}
	for e, err := range c.entries() {
		written, there := c.inText(e.key, e.wild)
		name := e.key
		if e.wild {
			name += "*"
		}
		switch {
		case err != nil:
			say(&wrong, file, 1, "%v: %s, or remove it; mail that needs it waits", err, mend)
			return wrong, warnings
		case e.err == errNeverAsked:
			unasked++
		case e.err != nil:
			if malformed++; malformed <= maxNamed {
				say(&wrong, file, 1, "the entry of %q: %v: mail that needs it waits", name, e.err)
			}
		case there && e.wild && !e.login.same(written):
			say(&warnings, c.File, written.Where.Line, "%s has another entry for %q, which is in force: %s", file, name, mend)
		case !there && hasText:
			removed = append(removed, fmt.Sprintf("%q", name))
		}
	}
	if malformed > maxNamed {
		say(&wrong, file, 1, "%d more entries like these", malformed-maxNamed)
	}
	if n := len(removed); n > 0 {
		more := ""
		if n > maxNamed {
			removed, more = removed[:maxNamed], fmt.Sprintf(" and %d more", n-maxNamed)
		}
		say(&warnings, file, 1, "has entries that %s has not, and they are in force: %s%s; %s", c.File, strings.Join(removed, ", "), more, mend)
	}
	if unasked > 0 {
		say(&warnings, file, 1, "%d keys are of another form than `indigo cdb-database` gives them: nothing finds them", unasked)
	}
	for _, key := range slices.Sorted(maps.Keys(c.text)) {
		value, found, err := c.inCDB(key)
		if !found || err != nil {
			continue
		}
		if inForce, err := c.loader.credential(value); err == nil && !inForce.same(c.text[key]) {
			say(&warnings, c.File, c.text[key].Where.Line, "%s has another entry for %q, which is in force: %s", file, key, mend)
		}
	}
	return wrong, warnings
}
