// Package maildir is vocabulary: Maildir folders on disk, readable at any time by Dovecot and Courier. Messages lie in
// them with LF line ends; their names tell their sizes (S= on disk, W= with CRLF). It must not know whose they are.
package maildir

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/indigomail/indigo/internal/wire"
)

// Create makes a Maildir; one that exists is no error.
func Create(path string) error {
	for _, sub := range []string{"cur", "new", "tmp"} {
		if err := os.MkdirAll(filepath.Join(path, sub), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// Find looks for a message by the part of its name before the flags, in new and cur, and gives its file and size on disk.
func Find(path, name string) (file string, size int64, found bool) {
	candidate := filepath.Join(path, "new", name)
	if info, err := os.Stat(candidate); err == nil {
		return candidate, info.Size(), true
	}
	entries, err := os.ReadDir(filepath.Join(path, "cur"))
	if err != nil {
		return "", 0, false
	}
	for _, e := range entries {
		if base, _, _ := strings.Cut(e.Name(), ":"); base == name {
			if info, err := e.Info(); err == nil {
				return filepath.Join(path, "cur", e.Name()), info.Size(), true
			}
		}
	}
	return "", 0, false
}

// Message is one message of a folder as it was when the folder was read.
type Message struct {
	// File is the path, Base the name without flags, Flags the letters behind ":2,".
	File, Base, Flags string
	// New is true while it lies in new.
	New bool
	// Size is the message's size with CRLF line ends, -1 when the name does not tell it.
	Size int64
}

// List reads a folder: every message in new and cur in the order of their names, which is the order of arrival.
func List(path string) ([]Message, error) {
	var messages []Message
	for _, sub := range []string{"cur", "new"} {
		entries, err := os.ReadDir(filepath.Join(path, sub))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") || e.IsDir() {
				continue
			}
			base, flags, _ := strings.Cut(e.Name(), ":2,")
			m := Message{File: filepath.Join(path, sub, e.Name()), Base: base, Flags: flags, New: sub == "new", Size: -1}
			for field := range strings.SplitSeq(base, ",") {
				if text, ok := strings.CutPrefix(field, "W="); ok {
					if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 {
						m.Size = n
					}
				}
			}
			messages = append(messages, m)
		}
	}
	slices.SortFunc(messages, func(a, b Message) int { return strings.Compare(a.Base, b.Base) })
	return messages, nil
}

// Read gives a message in wire form. A name that changed meanwhile, because flags were set, is found again.
func (m *Message) Read() ([]byte, error) {
	b, err := os.ReadFile(m.File)
	if errors.Is(err, fs.ErrNotExist) {
		if file, _, ok := Find(filepath.Dir(filepath.Dir(m.File)), m.Base); ok {
			m.File = file
			b, err = os.ReadFile(file)
		}
	}
	if err != nil {
		return nil, err
	}
	out := wire.AppendCRLF(make([]byte, 0, len(b)+bytes.Count(b, []byte("\n"))+2), b)
	if len(out) > 0 && !bytes.HasSuffix(out, []byte("\n")) {
		out = append(out, "\r\n"...)
	}
	m.Size = int64(len(out))
	return out, nil
}

// WireSize gives the size with CRLF line ends, from the name or else by reading.
func (m *Message) WireSize() (int64, error) {
	if m.Size < 0 {
		if _, err := m.Read(); err != nil {
			return 0, err
		}
	}
	return m.Size, nil
}

// SetFlags gives the message these flag letters, sorted and once each, and moves it to cur.
func (m *Message) SetFlags(flags string) error {
	letters := []byte(flags)
	slices.Sort(letters)
	flags = string(slices.Compact(letters))
	target := filepath.Join(filepath.Dir(filepath.Dir(m.File)), "cur", m.Base+":2,"+flags)
	if target == m.File {
		return nil
	}
	if err := os.Rename(m.File, target); err != nil {
		return err
	}
	m.File, m.Flags, m.New = target, flags, false
	return nil
}

// Remove deletes the message, as Expunge does.
func (m *Message) Remove() error { return Expunge(m)[0] }
