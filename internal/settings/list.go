package settings

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/indigomail/indigo/internal/cdb"
)

// List is a control file of entries that are looked up whole: a text, a constant database NAME.cdb and a table of SQL that
// NAME.sql describes, all of which may be there (wiki 2963-2980). Look them up in this order: InCDB, SQL, InText. It never
// changes; it is safe for concurrent use.
type List struct {
	// File is the text's name, relative to the data directory.
	File string
	// SQL is the table, nil without NAME.sql.
	SQL *Table

	cdb  *cdb.Reader
	text *textSet
}

// Table describes a table of SQL, as the one line of NAME.sql does: host:user:password:database:table, or a URL
// (sqlite:FILE, mysql://user:password@host/database, postgres://…) with the table behind a blank.
type Table struct {
	// File is NAME.sql, relative to the data directory.
	File string
	// Driver is "mysql", "sqlite" or "postgres"; the other fields are the driver's.
	Driver, Host, User, Password, Database, Name string
}

// Empty tells that nothing can be found in l. A nil List is empty.
func (l *List) Empty() bool {
	return l == nil || l.cdb == nil && l.SQL == nil && (l.text == nil || l.text.count == 0)
}

// InCDB looks a key up in the constant database; keys are in lower case.
func (l *List) InCDB(key string) (bool, error) {
	if l.cdb == nil {
		return false, nil
	}
	found, err := l.cdb.Has([]byte(key))
	if err != nil {
		return false, fmt.Errorf("%s.cdb: %w", l.File, err)
	}
	return found, nil
}

// CDB gives the value of a key in the constant database; keys are in lower case.
func (l *List) CDB(key string) (value string, found bool, err error) {
	if l.cdb == nil {
		return "", false, nil
	}
	v, found, err := l.cdb.Get([]byte(key))
	if err != nil {
		return "", false, fmt.Errorf("%s.cdb: %w", l.File, err)
	}
	return string(v), found, nil
}

// InText looks a key up in the text; keys are in lower case.
func (l *List) InText(key string) bool { return l.text != nil && l.text.has(key) }

// maxTable bounds NAME.sql.
const maxTable = 4096

// parseList reads the text; the loader adds what lies beside it.
func parseList(l *loader, s string) (*List, error) {
	if l == nil {
		return &List{text: newTextSet(s)}, nil
	}
	list := &List{File: l.file, text: newTextSet(s)}
	name := filepath.Join(l.dir, l.file)
	if filepath.IsAbs(l.file) {
		name = l.file
	}
	var err error
	if list.cdb, err = cdb.Open(name + ".cdb"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("constant database (make it again by `qmail-cdb %s`): %w", filepath.Base(name), err)
	}
	line, err := readValue(name+".sql", false)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if info, err := os.Stat(name + ".sql"); err == nil && info.Mode().Perm()&0o007 != 0 {
			l.warn(l.file+".sql", 1, "everybody can read the password in it: `chmod o= %s.sql`", name)
		}
		if list.SQL, err = ParseTable(line); err != nil {
			return nil, problemIn{l.file + ".sql", 1, err.Error()}
		}
		list.SQL.File = l.file + ".sql"
	}
	return list, nil
}

// ParseTable reads the line of NAME.sql; see Table.
func ParseTable(line string) (*Table, error) {
	const form = "not of the form host:user:password:database:table, or URL table"
	if len(line) > maxTable {
		return nil, errors.New("longer than 4096 bytes")
	}
	t := &Table{Driver: "mysql"}
	if url, table, ok := strings.Cut(line, " "); ok && strings.Contains(url, ":") {
		scheme, rest, _ := strings.Cut(url, ":")
		t.Name = strings.TrimSpace(table)
		switch scheme {
		case "sqlite":
			t.Driver, t.Database = "sqlite", rest
		case "mysql", "mariadb":
			t.Driver, t.Database = "mysql", url
		case "postgres", "postgresql":
			t.Driver, t.Database = "postgres", url
		default:
			return nil, errors.New(form)
		}
	} else {
		parts := strings.Split(line, ":")
		if len(parts) < 5 {
			return nil, errors.New(form)
		}
		// A password may have colons.
		n := len(parts)
		t.Host, t.User, t.Password, t.Database, t.Name = parts[0], parts[1], strings.Join(parts[2:n-2], ":"), parts[n-2], parts[n-1]
	}
	if t.Name == "" || strings.Trim(t.Name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
		return nil, fmt.Errorf("the table's name %q is not of letters, digits and _", t.Name)
	}
	if t.Database == "" {
		return nil, errors.New(form)
	}
	return t, nil
}

// textSet is a set of lines in one piece of memory: a million entries cost their own length and eight bytes each.
type textSet struct {
	data  string
	seed  maphash.Seed
	slots []uint32
	count int
}

func newTextSet(s string) *textSet {
	t := &textSet{seed: maphash.MakeSeed()}
	lines := significant(s)
	size := 1
	for size < 2*len(lines) {
		size *= 2
	}
	t.slots = make([]uint32, size)
	var data strings.Builder
	data.Grow(len(s) + 1)
	// Offset 0 stands for an empty slot.
	data.WriteByte('\n')
	starts := make([]uint32, 0, len(lines))
	for _, line := range lines {
		starts = append(starts, uint32(data.Len()))
		data.WriteString(strings.ToLower(line.text))
		data.WriteByte('\n')
	}
	t.data = data.String()
	for _, start := range starts {
		entry := t.entry(start)
		i := maphash.String(t.seed, entry) & uint64(size-1)
		for t.slots[i] != 0 && t.entry(t.slots[i]) != entry {
			i = (i + 1) & uint64(size-1)
		}
		if t.slots[i] == 0 {
			t.slots[i] = start
			t.count++
		}
	}
	return t
}

func (t *textSet) entry(start uint32) string {
	rest := t.data[start:]
	return rest[:strings.IndexByte(rest, '\n')]
}

func (t *textSet) has(key string) bool {
	mask := uint64(len(t.slots) - 1)
	for i := maphash.String(t.seed, key) & mask; t.slots[i] != 0; i = (i + 1) & mask {
		start := t.slots[i]
		if end := int(start) + len(key); end < len(t.data) && t.data[end] == '\n' && t.data[start:end] == key {
			return true
		}
	}
	return false
}
