package seglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func fill(t testing.TB, l *Log, from, to uint64, size int) (positions []Position) {
	t.Helper()
	var pending []Pending
	for id := from; id < to; id++ {
		pending = append(pending, l.Enqueue(1, id, true, content(id, size)[:size/3], content(id, size)[size/3:]))
	}
	for _, p := range pending {
		position, err := p.Wait()
		if err != nil {
			t.Fatal(err)
		}
		positions = append(positions, position)
	}
	return positions
}

func content(id uint64, size int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("%08d", id)), size/8+1)[:size]
}

func replayed(t testing.TB, d Disk, damaged func(uint64, int64, []byte)) (ids []uint64, l *Log) {
	t.Helper()
	l, err := Open(Config{Disk: d, SegmentSize: 64 << 10, Damaged: damaged}, func(r Record) error {
		if !bytes.HasPrefix(content(r.ID, 4000), r.Payload) {
			t.Errorf("record %d has other bytes", r.ID)
		}
		ids = append(ids, r.ID)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids, l
}

func upTo(n uint64) (ids []uint64) {
	for id := uint64(1); id < n; id++ {
		ids = append(ids, id)
	}
	return ids
}

// TestFolderKeepsAndReads runs on a real file system: records come back in order, can be read in place, and a dropped
// segment's file is used again without its old records coming back.
func TestFolderKeepsAndReads(t *testing.T) {
	disk := Folder(t.TempDir())
	none, l := replayed(t, disk, nil)
	if none != nil {
		t.Fatal(none)
	}
	positions := fill(t, l, 1, 100, 3001)
	if b, err := l.Read(42, positions[41], new([]byte)); err != nil || !bytes.Equal(b, content(42, 3001)) {
		t.Errorf("%q %v", b, err)
	}
	if _, err := l.Read(41, positions[41], new([]byte)); !errors.Is(err, ErrDamaged) {
		t.Errorf("another record's id: %v", err)
	}
	l.Close()

	damaged := func(segment uint64, offset int64, b []byte) {
		t.Errorf("damage in segment %d at %d: %d bytes", segment, offset, len(b))
	}
	ids, l := replayed(t, disk, damaged)
	if !slices.Equal(ids, upTo(100)) {
		t.Fatal(ids)
	}
	oldest := positions[0].Segment
	if err := l.Drop(oldest); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Read(1, positions[0], new([]byte)); err == nil {
		t.Error("a dropped segment can be read")
	}
	if names, _ := disk.List(); !slices.Contains(names, spareName) {
		t.Errorf("the file is not kept: %v", names)
	}
	// One short record in it; the rest of the file is from before.
	fill(t, l, 100, 101, 100)
	if names, _ := disk.List(); slices.Contains(names, spareName) {
		t.Errorf("the file is not used again: %v", names)
	}
	l.Close()
	ids, l = replayed(t, disk, damaged)
	l.Close()
	if want := upTo(101); !slices.Equal(ids, want[len(want)-len(ids):]) || ids[0] == 1 {
		t.Error(ids)
	}
}

// TestDamage changes a log on the disk: what is whole comes back, the rest is shown, and nothing is passed over in silence.
func TestDamage(t *testing.T) {
	const size = 500
	record := padded(headerSize + size)
	for _, tc := range []struct {
		name   string
		change func(b []byte) []byte
		gone   []uint64
		shown  int
	}{
		{"nothing", func(b []byte) []byte { return b }, nil, 0},
		{"one byte of a content", func(b []byte) []byte { b[headerSize+4*record+100] ^= 1; return b }, []uint64{5}, record},
		{"a length", func(b []byte) []byte { b[headerSize+4*record+7] = 0xff; return b }, []uint64{5}, record},
		{"zeros over two records", func(b []byte) []byte { clear(b[headerSize+2*record : headerSize+4*record]); return b }, []uint64{3, 4}, 2 * record},
		{"the header", func(b []byte) []byte { clear(b[:headerSize]); return b }, nil, 0},
		{"header and first record", func(b []byte) []byte { clear(b[:headerSize+8]); return b }, []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9}, -1},
		{"torn in the last", func(b []byte) []byte { return b[:headerSize+8*record+100] }, []uint64{9}, 100},
		{"the last one's content", func(b []byte) []byte { b[headerSize+8*record+200] ^= 1; return b }, []uint64{9}, headerSize + size},
		{"cut after the header", func(b []byte) []byte { return b[:headerSize] }, []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9}, 0},
		{"empty", func(b []byte) []byte { return nil }, []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := NewFaultDisk(rand.New(rand.NewPCG(1, 1)))
			_, l := replayed(t, d, nil)
			fill(t, l, 1, 10, size)
			l.Close()
			n := d.dir[segmentName(1)]
			whole := len(n.data)
			n.data = tc.change(n.data)
			// Without its hint: with it only the heads are read, and contents when they are needed.
			delete(d.dir, hintName(1))
			shown := 0
			ids, l := replayed(t, d, func(_ uint64, _ int64, b []byte) { shown += len(b) })
			l.Close()
			want := slices.DeleteFunc(upTo(10), func(id uint64) bool { return slices.Contains(tc.gone, id) })
			if tc.shown == -1 {
				tc.shown = whole
			}
			if !slices.Equal(ids, want) || shown != tc.shown {
				t.Errorf("records %v, want %v; %d bytes shown, want %d", ids, want, shown, tc.shown)
			}
		})
	}
}

func TestOtherVersionIsRefused(t *testing.T) {
	d := NewFaultDisk(rand.New(rand.NewPCG(1, 1)))
	_, l := replayed(t, d, nil)
	fill(t, l, 1, 3, 10)
	l.Close()
	b := d.dir[segmentName(1)].data
	b[7]++
	binary.LittleEndian.PutUint32(b[24:], crc32.Checksum(b[:24], table))
	if _, err := Open(Config{Disk: d}, func(Record) error { return nil }); err == nil || !strings.Contains(err.Error(), "version 3") {
		t.Error(err)
	}
}

// FuzzScan gives any bytes as a segment: reading ends, stays inside, and gives back only whole records.
func FuzzScan(f *testing.F) {
	segment := appendHeader(nil, 1, 7)
	for id := range uint64(3) {
		r := newRecord(nil, byte(1+id), id, content(id, 20))
		seal(r, 7, int64(len(segment)))
		segment = append(segment, r...)
	}
	f.Add(segment)
	f.Add(segment[:len(segment)-20])
	f.Add(append(slices.Clone(segment), endMark[:]...))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		salt, ok := parseHeader(b, 1)
		if !ok {
			return
		}
		seen, bad := 0, 0
		err := scan(b, 1, salt, func(r Record) error {
			seen += padded(headerSize + len(r.Payload))
			if r.Position.Offset+int64(len(r.Payload)) > int64(len(b)) || !bytes.Equal(r.Payload, b[r.Position.Offset:][:len(r.Payload)]) {
				t.Errorf("%+v is outside", r.Position)
			}
			return nil
		}, func(offset, length int) {
			bad += length
			if offset < headerSize || length <= 0 || offset+length > len(b) {
				t.Errorf("damage at %d of %d bytes is outside", offset, length)
			}
		})
		if err != nil || seen+bad > len(b)+align {
			t.Errorf("%d and %d of %d bytes, %v", seen, bad, len(b), err)
		}
	})
}
