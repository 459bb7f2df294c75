package maildir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Scan lists the messages in new and cur of the Maildir at path, oldest first, in an order that stays the same as long
// as the messages do. A missing Maildir has no messages.
func Scan(path string) ([]Entry, error) {
	var list []Entry
	seen := map[string]int{}
	// New first: a message that another program moves to cur meanwhile is then seen twice, and not missed.
	for _, sub := range []string{"new", "cur"} {
		names, err := readNames(filepath.Join(path, sub))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		list = slices.Grow(list, len(names))
		for _, name := range names {
			if name == "" || name[0] == '.' || name[0] == ':' {
				continue
			}
			e := Parse(sub, name)
			if at, dup := seen[e.Base()]; dup {
				list[at] = e
				continue
			}
			seen[e.Base()] = len(list)
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b Entry) int { return compareNames(a.Base(), b.Base()) })
	return list, nil
}

// Message is an open message file.
type Message struct {
	*os.File
	// Entry is the file's name of now; another program may have renamed it since the scan.
	Entry Entry
}

// Open opens the file of e, also after another program has changed its flags. A message that is gone is
// fs.ErrNotExist.
func Open(path string, e Entry) (*Message, error) {
	for attempt := 0; ; attempt++ {
		f, err := os.OpenFile(filepath.Join(path, e.Sub, e.Name), os.O_RDONLY, 0)
		if err == nil {
			return regular(f, e)
		}
		if !errors.Is(err, fs.ErrNotExist) || attempt > 2 {
			return nil, err
		}
		if e, err = locate(path, e); err != nil {
			return nil, err
		}
	}
}

func regular(f *os.File, e Entry) (*Message, error) {
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", e.Name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Message{File: f, Entry: e}, nil
}

// locate finds the name that the message of e has now.
func locate(path string, e Entry) (Entry, error) {
	base := e.Base()
	for _, sub := range []string{"new", "cur"} {
		names, err := readNames(filepath.Join(path, sub))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Entry{}, err
		}
		for _, name := range names {
			if name == base || strings.HasPrefix(name, base) && name[len(base)] == ':' {
				return Parse(sub, name), nil
			}
		}
	}
	return Entry{}, &fs.PathError{Op: "find", Path: base, Err: fs.ErrNotExist}
}

// WireSize gives the size in bytes that the message has with CRLF line ends: what the name says, or else what counting
// says.
func WireSize(path string, e Entry) (int64, error) {
	if e.WireSize >= 0 {
		return e.WireSize, nil
	}
	m, err := Open(path, e)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	return CountWire(m)
}

// CountWire reads r to its end and gives its size with CRLF line ends.
func CountWire(r io.Reader) (int64, error) {
	buf := make([]byte, 64<<10)
	var size int64
	var last byte
	for {
		n, err := r.Read(buf)
		if n > 0 {
			size += int64(n) + countLF(buf[:n], last)
			last = buf[n-1]
		}
		if err == io.EOF {
			return size, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// SetFlags gives the message of e exactly these flag letters; it moves from new to cur. The entry with the new name
// comes back. A message that is gone is fs.ErrNotExist.
func SetFlags(path string, e Entry, flags string) (Entry, error) {
	for attempt := 0; ; attempt++ {
		next := e
		next.Sub, next.Flags = "cur", normalFlags(flags)
		next.Name = e.Base() + ":2," + next.Flags
		if next.Name == e.Name && next.Sub == e.Sub {
			return next, nil
		}
		err := os.Rename(filepath.Join(path, e.Sub, e.Name), filepath.Join(path, "cur", next.Name))
		if err == nil {
			return next, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || attempt > 2 {
			return e, err
		}
		if e, err = locate(path, e); err != nil {
			return e, err
		}
	}
}

// Remove unlinks the message of e, also after another program has changed its flags; one that is gone already is no
// error.
func Remove(path string, e Entry) error {
	for attempt := 0; ; attempt++ {
		err := os.Remove(filepath.Join(path, e.Sub, e.Name))
		if err == nil || !errors.Is(err, fs.ErrNotExist) || attempt > 2 {
			return err
		}
		if e, err = locate(path, e); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
