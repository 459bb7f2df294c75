package seglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// A segment file is a header and records, everything little-endian and at multiples of 8 bytes.
//
//	header  magic[8] number[8] salt[8] crc32c[4] zero[4]
//	record  crc32c[4] length[4] salt[8] id[8] kind[1] zero[3] head[4] payload[length] zero[0-7]
//
// The first head bytes of the payload are the part that replay needs. A hint file holds them, so that a start need not
// read what is only delivered:
//
//	hint    magic[8] number[8] salt[8] entries crc32c[4]
//	entry   kind[1] uvarint(id) uvarint(offset) uvarint(length) uvarint(head) payload[head]
//
// A record's checksum covers all of it but itself, and its offset in the file. The salt is drawn for each segment. Both are
// there because a file is used again for a later segment, so that behind its last record lie records of an earlier one, and
// because payloads are what strangers mail: bytes that look like a record count as one only where the log put them. Every write ends with a header of zeros, over which the next one
// goes: the end of what was written.
const (
	magic      = "INDIGOQ\x02"
	hintMagic  = "INDIGOH\x02"
	headerSize = 32
	align      = 8
	// kindCut, written by the log itself, says that an earlier segment counts only up to an offset.
	kindCut = 255
)

var (
	table   = crc32.MakeTable(crc32.Castagnoli)
	endMark [headerSize]byte
)

func padded(n int) int { return (n + align - 1) / align * align }

// appendHeader appends a segment's header.
func appendHeader(b []byte, number, salt uint64) []byte {
	start := len(b)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint64(b, number)
	b = binary.LittleEndian.AppendUint64(b, salt)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], table))
	return append(b, 0, 0, 0, 0)
}

// parseHeader gives a segment's salt. When the header is damaged, the first record tells it.
func parseHeader(b []byte, number uint64) (salt uint64, ok bool) {
	if len(b) < headerSize {
		return 0, false
	}
	if binary.LittleEndian.Uint32(b[24:]) == crc32.Checksum(b[:24], table) {
		return binary.LittleEndian.Uint64(b[16:]), string(b[:8]) == magic && binary.LittleEndian.Uint64(b[8:]) == number
	}
	if len(b) < 2*headerSize {
		return 0, false
	}
	salt = binary.LittleEndian.Uint64(b[headerSize+8:])
	_, _, ok = parse(b[headerSize:], salt, headerSize)
	return salt, ok
}

// otherVersion tells whether b is a segment of another version of the format.
func otherVersion(b []byte) bool {
	return len(b) >= headerSize && string(b[:7]) == magic[:7] && b[7] != magic[7] &&
		binary.LittleEndian.Uint32(b[24:]) == crc32.Checksum(b[:24], table)
}

// newRecord makes a record but for its salt and checksum, which seal sets when its segment is known.
// The record lies in buffer if that has the room.
func newRecord(buffer []byte, kind byte, id uint64, head []byte, rest ...[]byte) []byte {
	length := len(head)
	for _, p := range rest {
		length += len(p)
	}
	whole := padded(headerSize + length)
	if cap(buffer) < whole {
		buffer = make([]byte, whole)
	}
	b := buffer[:headerSize]
	clear(b)
	binary.LittleEndian.PutUint32(b[4:], uint32(length))
	binary.LittleEndian.PutUint64(b[16:], id)
	b[24] = kind
	binary.LittleEndian.PutUint32(b[28:], uint32(len(head)))
	b = append(b, head...)
	for _, p := range rest {
		b = append(b, p...)
	}
	end := len(b)
	b = b[:whole]
	clear(b[end:])
	return b
}

// seal sets a record's salt and checksum.
func seal(b []byte, salt uint64, offset int64) {
	binary.LittleEndian.PutUint64(b[8:], salt)
	length := int(binary.LittleEndian.Uint32(b[4:]))
	binary.LittleEndian.PutUint32(b, checksum(b[4:headerSize+length], offset))
}

func checksum(b []byte, offset int64) uint32 {
	var at [8]byte
	binary.LittleEndian.PutUint64(at[:], uint64(offset))
	return crc32.Update(crc32.Checksum(at[:], table), table, b)
}

// parse gives the record at b's start, which lies at offset in its file, and its size; ok is false when there is none. Bytes without the salt cost no
// checksum, so crafted lengths cannot make recovery slow.
func parse(b []byte, salt uint64, offset int64) (r Record, size int, ok bool) {
	if len(b) < headerSize || binary.LittleEndian.Uint64(b[8:]) != salt {
		return r, 0, false
	}
	length := int(binary.LittleEndian.Uint32(b[4:]))
	r.Kind = b[24]
	head := int(binary.LittleEndian.Uint32(b[28:]))
	if r.Kind == 0 || length > len(b)-headerSize || head > length || b[25]|b[26]|b[27] != 0 {
		return r, 0, false
	}
	end := headerSize + length
	if checksum(b[4:end], offset) != binary.LittleEndian.Uint32(b) {
		return r, 0, false
	}
	r.ID = binary.LittleEndian.Uint64(b[16:])
	r.Payload, r.head = b[headerSize:end], head
	return r, min(padded(end), len(b)), true
}

// appendEntry appends a record to a hint.
func appendEntry(b []byte, r Record) []byte {
	b = append(b, r.Kind)
	b = binary.AppendUvarint(b, r.ID)
	b = binary.AppendUvarint(b, uint64(r.Position.Offset))
	b = binary.AppendUvarint(b, uint64(r.Position.Length))
	b = binary.AppendUvarint(b, uint64(r.head))
	return append(b, r.Payload[:r.head]...)
}

func newHint(number, salt uint64) []byte {
	b := binary.LittleEndian.AppendUint64([]byte(hintMagic), number)
	return binary.LittleEndian.AppendUint64(b, salt)
}

func sealHint(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, table))
}

var errHint = errors.New("malformed hint")

// readHint gives every record of a hint, with its head as payload. An error before the first use means that the hint is
// not this segment's, or torn, and is no loss.
func readHint(b []byte, number, salt uint64, use func(Record) error) error {
	want := newHint(number, salt)
	if len(b) < len(want)+4 || !bytes.Equal(b[:len(want)], want) {
		return errHint
	}
	end := len(b) - 4
	if crc32.Checksum(b[:end], table) != binary.LittleEndian.Uint32(b[end:]) {
		return errHint
	}
	for b = b[len(want):end]; len(b) > 0; {
		r := Record{Kind: b[0]}
		b = b[1:]
		var fields [4]uint64
		for i := range fields {
			n, size := binary.Uvarint(b)
			if size <= 0 {
				return errHint
			}
			fields[i], b = n, b[size:]
		}
		if fields[3] > uint64(len(b)) {
			return errHint
		}
		r.ID, r.Position = fields[0], Position{number, int64(fields[1]), int(fields[2])}
		r.Payload, b = b[:fields[3]], b[fields[3]:]
		if err := use(r); err != nil {
			return err
		}
	}
	return nil
}

// scan gives every record of the segment b. Bytes between records that are no record are damage, told to damaged. Behind
// the last record lie the end mark and what an earlier use of the file left; anything else in the end mark's place is what
// a crash tore: a write that nobody was promised, or a promise that the disk did not keep, so it is told too.
func scan(b []byte, number, salt uint64, use func(Record) error, damaged func(offset, length int)) error {
	offset, bad := headerSize, -1
	for offset < len(b) {
		r, size, ok := parse(b[offset:], salt, int64(offset))
		if !ok {
			if bad < 0 {
				bad = offset
			}
			offset += align
			continue
		}
		if bad >= 0 {
			damaged(bad, offset-bad)
			bad = -1
		}
		r.Position = Position{number, int64(offset + headerSize), len(r.Payload)}
		if err := use(r); err != nil {
			return err
		}
		offset += size
	}
	if bad >= 0 {
		if torn := tornLength(b[bad:], salt); torn > 0 {
			damaged(bad, torn)
		}
	}
	return nil
}

// mostTorn is how much is set aside of a torn write that does not say how long it was.
const mostTorn = 64 << 10

func tornLength(b []byte, salt uint64) int {
	mark := b[:min(len(b), headerSize)]
	if bytes.Equal(mark, endMark[:len(mark)]) {
		return 0
	}
	if len(b) >= headerSize && binary.LittleEndian.Uint64(b[8:]) == salt {
		return min(len(b), headerSize+int(binary.LittleEndian.Uint32(b[4:])))
	}
	return min(len(b), mostTorn)
}
