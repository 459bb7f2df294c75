// Package cdb is vocabulary: D. J. Bernstein's constant database, read from a mapped file and written whole. The format
// is that of cdb-0.75: 32-bit little-endian offsets, 256 hash tables, at most 4 GB. It must not know what is looked up.
package cdb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ErrFormat is for a file that is no constant database, or a damaged one.
var ErrFormat = errors.New("not a constant database, or a damaged one")

const (
	tables     = 256
	headerSize = tables * 8
)

// Hash gives cdb's hash of a key.
func Hash(key []byte) uint32 {
	h := uint32(5381)
	for _, c := range key {
		h = (h << 5) + h ^ uint32(c)
	}
	return h
}

// Reader answers look-ups in one file as it was when it was opened, also after the file's name was given to another one.
// It is safe for concurrent use. The mapping goes away when the Reader is no longer reachable. What look-ups give is a
// copy.
//
// A file must be replaced by renaming, as Write and cdbmake do; one that is cut short in place while it is mapped would
// end the process.
type Reader struct {
	data []byte
}

// Open maps the file name.
func Open(name string) (*Reader, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() < headerSize || info.Size() > 1<<32 {
		return nil, fmt.Errorf("%s: %w", name, ErrFormat)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, &os.PathError{Op: "mmap", Path: name, Err: err}
	}
	r := &Reader{data: data}
	runtime.AddCleanup(r, func(data []byte) { unix.Munmap(data) }, data)
	if err := r.checkHeader(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

// checkHeader finds out whether every table lies in the file, so that a look-up in a foreign file fails at once.
func (r *Reader) checkHeader() error {
	for i := range tables {
		pos, slots := r.table(i)
		if uint64(pos)+uint64(slots)*8 > uint64(len(r.data)) || slots > 0 && pos < headerSize {
			return ErrFormat
		}
	}
	return nil
}

// table gives a hash table's offset and number of slots.
func (r *Reader) table(i int) (pos, slots uint32) {
	return binary.LittleEndian.Uint32(r.data[i*8:]), binary.LittleEndian.Uint32(r.data[i*8+4:])
}

// record gives the key and the value at pos.
func (r *Reader) record(pos uint32) (key, value []byte, err error) {
	if uint64(pos)+8 > uint64(len(r.data)) || pos < headerSize {
		return nil, nil, ErrFormat
	}
	kl, vl := binary.LittleEndian.Uint32(r.data[pos:]), binary.LittleEndian.Uint32(r.data[pos+4:])
	end := uint64(pos) + 8 + uint64(kl) + uint64(vl)
	if end > uint64(len(r.data)) {
		return nil, nil, ErrFormat
	}
	body := r.data[pos+8 : end]
	return body[:kl], body[kl:], nil
}

// find gives the value of the n-th record with key, counted from 0. The value is a part of the mapping.
func (r *Reader) find(key []byte, n int) (value []byte, found bool, err error) {
	h := Hash(key)
	pos, slots := r.table(int(h & 0xff))
	if slots == 0 {
		return nil, false, nil
	}
	slot := h >> 8 % slots
	for range slots {
		at := pos + slot*8
		stored, record := binary.LittleEndian.Uint32(r.data[at:]), binary.LittleEndian.Uint32(r.data[at+4:])
		if record == 0 {
			return nil, false, nil
		}
		if stored == h {
			k, v, err := r.record(record)
			if err != nil {
				return nil, false, err
			}
			if bytes.Equal(k, key) {
				if n == 0 {
					return v, true, nil
				}
				n--
			}
		}
		if slot++; slot == slots {
			slot = 0
		}
	}
	return nil, false, nil
}

// Get gives the value of the first record with key; ErrFormat when the file is damaged there.
func (r *Reader) Get(key []byte) (value []byte, found bool, err error) { return r.GetN(key, 0) }

// GetN gives the value of the n-th record with key, counted from 0.
func (r *Reader) GetN(key []byte, n int) (value []byte, found bool, err error) {
	defer runtime.KeepAlive(r)
	v, found, err := r.find(key, n)
	return bytes.Clone(v), found, err
}

// Has tells whether there is a record with key. It allocates nothing.
func (r *Reader) Has(key []byte) (bool, error) {
	defer runtime.KeepAlive(r)
	_, found, err := r.find(key, 0)
	return found, err
}

// All gives every record in the order they were written, as copies. It ends with an error in the place of a record when
// the file is damaged.
func (r *Reader) All() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		defer runtime.KeepAlive(r)
		// The records end where the first hash table begins; without one there are none.
		end := uint32(0)
		for i := range tables {
			if pos, slots := r.table(i); slots > 0 && (end == 0 || pos < end) {
				end = pos
			}
		}
		for pos := uint32(headerSize); pos < end; {
			k, v, err := r.record(pos)
			if err == nil && pos+8+uint32(len(k))+uint32(len(v)) > end {
				err = ErrFormat
			}
			if err != nil {
				yield(Record{}, err)
				return
			}
			if !yield(Record{bytes.Clone(k), bytes.Clone(v)}, nil) {
				return
			}
			pos += 8 + uint32(len(k)) + uint32(len(v))
		}
	}
}

// Record is one entry.
type Record struct{ Key, Value []byte }
