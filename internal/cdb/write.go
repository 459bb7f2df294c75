package cdb

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Writer makes a database in a new file, which takes the place of the old one at Commit, whole and durably. It is not
// safe for concurrent use.
type Writer struct {
	name    string
	file    *os.File
	out     *bufio.Writer
	pos     uint64
	entries [tables][]entry
	err     error
}

type entry struct{ hash, pos uint32 }

// errTooBig is for more than the format's 32-bit offsets can hold.
var errTooBig = errors.New("more than 4 GB do not fit into a constant database")

// Create begins a database that will have the name name, and the permissions perm whatever the umask is. End with Commit
// or Abort.
func Create(name string, perm os.FileMode) (*Writer, error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".new*")
	if err != nil {
		return nil, err
	}
	w := &Writer{name: name, file: f, out: bufio.NewWriterSize(f, 1<<16), pos: headerSize}
	w.err = f.Chmod(perm)
	w.write(make([]byte, headerSize))
	return w, nil
}

func (w *Writer) write(b []byte) {
	if w.err == nil {
		_, w.err = w.out.Write(b)
	}
}

// Add adds a record. Several records may have one key; look-ups find the first.
func (w *Writer) Add(key, value []byte) error {
	end := w.pos + 8 + uint64(len(key)) + uint64(len(value))
	if end > 1<<32-1 && w.err == nil {
		w.err = errTooBig
	}
	if w.err != nil {
		return w.err
	}
	var lengths [8]byte
	binary.LittleEndian.PutUint32(lengths[:], uint32(len(key)))
	binary.LittleEndian.PutUint32(lengths[4:], uint32(len(value)))
	w.write(lengths[:])
	w.write(key)
	w.write(value)
	h := Hash(key)
	w.entries[h&0xff] = append(w.entries[h&0xff], entry{h, uint32(w.pos)})
	w.pos = end
	return w.err
}

// Commit writes the hash tables, syncs the file and puts it in the place of the old one. On an error the old one stays.
func (w *Writer) Commit() error {
	var header [headerSize]byte
	for i, entries := range &w.entries {
		slots := 2 * len(entries)
		if w.pos+uint64(slots)*8 > 1<<32-1 && w.err == nil {
			w.err = errTooBig
		}
		binary.LittleEndian.PutUint32(header[i*8:], uint32(w.pos))
		binary.LittleEndian.PutUint32(header[i*8+4:], uint32(slots))
		table := make([]byte, slots*8)
		for _, e := range entries {
			slot := int(e.hash>>8) % slots
			for binary.LittleEndian.Uint32(table[slot*8+4:]) != 0 {
				slot = (slot + 1) % slots
			}
			binary.LittleEndian.PutUint32(table[slot*8:], e.hash)
			binary.LittleEndian.PutUint32(table[slot*8+4:], e.pos)
		}
		w.write(table)
		w.pos += uint64(len(table))
	}
	if w.err == nil {
		w.err = w.out.Flush()
	}
	if w.err == nil {
		_, w.err = w.file.WriteAt(header[:], 0)
	}
	if w.err == nil {
		w.err = w.file.Sync()
	}
	if err := w.file.Close(); w.err == nil {
		w.err = err
	}
	if w.err == nil {
		w.err = os.Rename(w.file.Name(), w.name)
	}
	if w.err != nil {
		os.Remove(w.file.Name())
		return fmt.Errorf("writing %s: %w", w.name, w.err)
	}
	d, err := os.Open(filepath.Dir(w.name))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Abort leaves the old database as it is.
func (w *Writer) Abort() {
	w.file.Close()
	os.Remove(w.file.Name())
}
