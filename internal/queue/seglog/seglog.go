// Package seglog is a station's ground: an append-only, checksummed log in segment files with group commit. All that wait
// share one write and one fdatasync. It must not know what its records mean.
package seglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// File is what the log needs of an open segment; tests put faults into it.
type File interface {
	io.ReaderAt
	io.WriterAt
	Datasync() error
	Truncate(size int64) error
	Close() error
}

// Opener opens or creates a segment file and makes a new one's directory entry durable.
type Opener func(path string, create bool) (File, error)

type osFile struct{ *os.File }

func (f osFile) Datasync() error { return unix.Fdatasync(int(f.Fd())) }

// OpenOS is the Opener on the real file system. A new segment's blocks are reserved, so that a commit need not allocate.
func OpenOS(path string, create bool) (File, error) {
	if !create {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		return osFile{f}, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	// A file system that cannot reserve still works.
	_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, SegmentSize)
	dir, err := os.Open(filepath.Dir(path))
	if err == nil {
		err = dir.Sync()
		dir.Close()
	}
	if err != nil {
		f.Close()
		os.Remove(path)
		return nil, err
	}
	return osFile{f}, nil
}

const (
	// SegmentSize is where a segment ends: the batch that reaches it is its last.
	SegmentSize = 32 << 20
	magic       = "INDIGOQ\x01"
	headerSize  = 20
	align       = 8
	// kindCut, written by the log itself, says that an earlier segment counts only up to an offset.
	kindCut = 255
	// syncIdle is how long a record that nobody waits for may stay unsynced.
	syncIdle = 200 * time.Millisecond
)

var table = crc32.MakeTable(crc32.Castagnoli)

// Position is where a record's payload lies.
type Position struct {
	Segment uint64
	Offset  int64
	Length  int
}

// Record is one record as replayed. Payload is good only during the call.
type Record struct {
	Kind     byte
	ID       uint64
	Payload  []byte
	Position Position
}

// Config says where a log is and whom it tells.
type Config struct {
	Dir  string
	Open Opener // nil means OpenOS
	// Damaged is told of bytes that are no record although they should be: they were copied to the file.
	Damaged func(segment uint64, offset int64, length int64, file string)
}

// Log is an open log; safe for concurrent use.
type Log struct {
	config Config

	mu       sync.Mutex
	segments map[uint64]*segment
	waiting  []*request
	closed   bool
	wake     chan struct{}
	done     sync.WaitGroup

	// owned by the committer
	current *segment
	next    uint64
	unsync  bool
	cuts    []cut
}

type segment struct {
	number uint64
	file   File
	size   int64
	// readers counts the reads under way; dropped asks for the file to be closed after them.
	readers int
	dropped bool
}

type cut struct {
	segment uint64
	offset  int64
}

type request struct {
	record   []byte
	id       uint64
	kind     byte
	sync     bool
	position Position
	err      error
	done     chan struct{}
}

// Open replays the log in config.Dir through replay, in the order of writing, and makes it ready. New records always go
// into a new segment.
func Open(config Config, replay func(Record) error) (*Log, error) {
	if config.Open == nil {
		config.Open = OpenOS
	}
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, err
	}
	names, err := filepath.Glob(filepath.Join(config.Dir, "*.seg"))
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	l := &Log{config: config, segments: map[uint64]*segment{}, wake: make(chan struct{}, 1), next: 1}
	var numbers []uint64
	for _, name := range names {
		var n uint64
		if _, err := fmt.Sscanf(filepath.Base(name), "%016x.seg", &n); err != nil {
			continue
		}
		f, err := config.Open(name, false)
		if err != nil {
			l.closeFiles()
			return nil, err
		}
		l.segments[n] = &segment{number: n, file: f}
		numbers = append(numbers, n)
		l.next = n + 1
	}
	// A cut stands in a later segment than the one that it cuts.
	cuts := map[uint64]int64{}
	data := func(n uint64) ([]byte, error) { return l.load(l.segments[n]) }
	for pass := range 2 {
		for _, n := range numbers {
			b, err := data(n)
			if err != nil {
				l.closeFiles()
				return nil, fmt.Errorf("segment %016x: %w", n, err)
			}
			if offset, ok := cuts[n]; ok && pass == 1 && offset < int64(len(b)) {
				b = b[:offset]
			}
			err = l.scan(n, b, pass == 1, func(r Record) error {
				if r.Kind == kindCut {
					if len(r.Payload) == 8 {
						cuts[r.ID] = int64(binary.LittleEndian.Uint64(r.Payload))
					}
					return nil
				}
				if pass == 0 {
					return nil
				}
				return replay(r)
			})
			if err != nil {
				l.closeFiles()
				return nil, err
			}
			l.segments[n].size = int64(len(b))
		}
	}
	l.done.Go(l.commit)
	return l, nil
}

func (l *Log) closeFiles() {
	for _, s := range l.segments {
		s.file.Close()
	}
}

func (l *Log) load(s *segment) ([]byte, error) {
	var b []byte
	for chunk := make([]byte, 1<<20); ; {
		n, err := s.file.ReadAt(chunk, int64(len(b)))
		b = append(b, chunk[:n]...)
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// parse gives the record at b's start, and its size; ok is false when there is none.
func parse(b []byte) (r Record, size int, ok bool) {
	if len(b) < headerSize {
		return r, 0, false
	}
	length := int(binary.LittleEndian.Uint32(b[4:]))
	r.Kind = b[8]
	if r.Kind == 0 || length > len(b)-headerSize || b[9]|b[10]|b[11] != 0 {
		return r, 0, false
	}
	end := headerSize + length
	if crc32.Checksum(b[4:end], table) != binary.LittleEndian.Uint32(b) {
		return r, 0, false
	}
	r.ID = binary.LittleEndian.Uint64(b[12:])
	r.Payload = b[headerSize:end]
	return r, (end + align - 1) / align * align, true
}

// scan gives every record of a segment. Bytes that are no record are passed over up to the next one; unless they are all
// zero they are set aside in a file. Behind the last record they are what a crash tore.
func (l *Log) scan(n uint64, b []byte, setAside bool, use func(Record) error) error {
	offset := len(magic)
	if len(b) < len(magic) || string(b[:len(magic)]) != magic {
		if len(b) >= len(magic) && setAside {
			return fmt.Errorf("segment %016x: not a segment of this version", n)
		}
		offset = 0
	}
	for bad := -1; ; {
		r, size, ok := Record{}, 0, false
		if offset < len(b) {
			r, size, ok = parse(b[offset:])
		}
		if ok || offset >= len(b) {
			if bad >= 0 && setAside {
				l.setAside(n, int64(bad), b[bad:min(offset, len(b))])
			}
			bad = -1
		}
		if offset >= len(b) {
			return nil
		}
		if !ok {
			if bad < 0 {
				bad = offset
			}
			offset += align
			continue
		}
		r.Position = Position{n, int64(offset + headerSize), len(r.Payload)}
		if err := use(r); err != nil {
			return err
		}
		offset += size
	}
}

func (l *Log) setAside(n uint64, offset int64, b []byte) {
	if !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) {
		return
	}
	dir := filepath.Join(l.config.Dir, "damaged")
	name := filepath.Join(dir, fmt.Sprintf("%016x-%d", n, offset))
	if os.MkdirAll(dir, 0o700) == nil {
		_ = os.WriteFile(name, b, 0o600)
	}
	if l.config.Damaged != nil {
		l.config.Damaged(n, offset, int64(len(b)), name)
	}
}

// ErrClosed says that the log was closed.
var ErrClosed = errors.New("log is closed")

// Pending is a record on its way into the log.
type Pending struct{ r *request }

// Enqueue puts a record in line; records reach the log in the order of the calls. The payload's parts are copied. With
// sync, Wait returns after the record is on stable storage; without, it is synced with the next that is, or 200 ms later.
func (l *Log) Enqueue(kind byte, id uint64, sync bool, payload ...[]byte) Pending {
	length := 0
	for _, p := range payload {
		length += len(p)
	}
	r := &request{id: id, kind: kind, sync: sync, done: make(chan struct{})}
	r.record = make([]byte, headerSize, (headerSize+length+align-1)/align*align)
	for _, p := range payload {
		r.record = append(r.record, p...)
	}
	binary.LittleEndian.PutUint32(r.record[4:], uint32(length))
	r.record[8] = kind
	binary.LittleEndian.PutUint64(r.record[12:], id)
	binary.LittleEndian.PutUint32(r.record, crc32.Checksum(r.record[4:], table))
	r.position.Length = length
	r.record = r.record[:cap(r.record)]
	r.record = r.record[:(headerSize+length+align-1)/align*align]

	l.mu.Lock()
	if l.closed {
		r.err = ErrClosed
		close(r.done)
	} else {
		l.waiting = append(l.waiting, r)
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return Pending{r}
}

// Wait waits until the record is in the log, and synced if that was asked for.
func (p Pending) Wait() (Position, error) {
	<-p.r.done
	return p.r.position, p.r.err
}

// commit is the one goroutine that writes. While a sync runs, the next batch collects.
func (l *Log) commit() {
	idle := time.NewTimer(time.Hour)
	idle.Stop()
	defer idle.Stop()
	var batch []*request
	var buffer []byte
	for {
		var timeout bool
		select {
		case <-l.wake:
		case <-idle.C:
			timeout = true
		}
		l.mu.Lock()
		batch, l.waiting = l.waiting, batch[:0]
		closed := l.closed
		l.mu.Unlock()
		buffer = l.writeBatch(batch, buffer[:0], timeout || closed)
		clear(batch)
		if l.unsync {
			idle.Reset(syncIdle)
		} else {
			idle.Stop()
		}
		if closed {
			l.mu.Lock()
			empty := len(l.waiting) == 0
			l.mu.Unlock()
			if empty {
				return
			}
			select {
			case l.wake <- struct{}{}:
			default:
			}
		}
	}
}

// writeBatch appends a batch with one write and at most one sync, and answers every request.
func (l *Log) writeBatch(batch []*request, buffer []byte, forceSync bool) []byte {
	sync := forceSync && l.unsync
	var err error
	if len(batch) > 0 && l.current == nil {
		err = l.rotate()
	}
	if err == nil && len(batch) > 0 {
		base := l.current.size
		for _, r := range batch {
			r.position.Segment = l.current.number
			r.position.Offset = base + int64(len(buffer)) + headerSize
			buffer = append(buffer, r.record...)
			sync = sync || r.sync
		}
		if _, err = l.current.file.WriteAt(buffer, base); err == nil {
			l.unsync = true
		}
	}
	if err == nil && sync && l.current != nil {
		err = l.current.file.Datasync()
		l.unsync = l.unsync && err != nil
	}
	if err != nil {
		l.abandon()
	} else if l.current != nil {
		l.mu.Lock()
		l.current.size += int64(len(buffer))
		l.mu.Unlock()
		if l.current.size >= SegmentSize {
			// What is not synced must not be left behind in a segment that nobody syncs again.
			if l.unsync {
				if l.current.file.Datasync() == nil {
					l.unsync = false
				}
			}
			l.current = nil
		}
	}
	for _, r := range batch {
		r.err = err
		r.record = nil
		close(r.done)
	}
	return buffer
}

// abandon gives up the current segment after a failed write or sync: what the kernel holds of it is not known, so nothing
// is appended to it any more, and what the failed batch left behind is cut off: by truncation if that works, and by a cut
// record at the head of the next segment in any case.
func (l *Log) abandon() {
	l.unsync = false
	if l.current == nil {
		return
	}
	l.cuts = append(l.cuts, cut{l.current.number, l.current.size})
	_ = l.current.file.Truncate(l.current.size)
	l.current = nil
}

// rotate begins a new segment.
func (l *Log) rotate() error {
	number := l.next
	l.next++
	path := l.path(number)
	f, err := l.config.Open(path, true)
	if err != nil {
		return err
	}
	head := []byte(magic)
	for _, c := range l.cuts {
		record := make([]byte, headerSize+8, headerSize+8+align)
		binary.LittleEndian.PutUint32(record[4:], 8)
		record[8] = kindCut
		binary.LittleEndian.PutUint64(record[12:], c.segment)
		binary.LittleEndian.PutUint64(record[headerSize:], uint64(c.offset))
		binary.LittleEndian.PutUint32(record, crc32.Checksum(record[4:], table))
		head = append(head, append(record, make([]byte, (align-len(record)%align)%align)...)...)
	}
	_, err = f.WriteAt(head, 0)
	if err == nil {
		err = f.Datasync()
	}
	if err != nil {
		f.Close()
		os.Remove(path)
		return err
	}
	s := &segment{number: number, file: f, size: int64(len(head))}
	l.mu.Lock()
	l.segments[number] = s
	l.mu.Unlock()
	l.current = s
	return nil
}

func (l *Log) path(n uint64) string { return filepath.Join(l.config.Dir, fmt.Sprintf("%016x.seg", n)) }

// ReadAt reads from the payload at p, like io.ReaderAt.
func (l *Log) ReadAt(b []byte, p Position, offset int64) (int, error) {
	if offset >= int64(p.Length) {
		return 0, io.EOF
	}
	l.mu.Lock()
	s := l.segments[p.Segment]
	if s != nil {
		s.readers++
	}
	l.mu.Unlock()
	if s == nil {
		return 0, fmt.Errorf("segment %016x is gone", p.Segment)
	}
	short := int64(len(b)) > int64(p.Length)-offset
	if short {
		b = b[:int64(p.Length)-offset]
	}
	n, err := s.file.ReadAt(b, p.Offset+offset)
	if err == nil && short {
		err = io.EOF
	}
	l.mu.Lock()
	s.readers--
	closing := s.dropped && s.readers == 0
	l.mu.Unlock()
	if closing {
		s.file.Close()
	}
	return n, err
}

// Sizes gives the bytes of every segment, the one being written included, and which one that is (0 for none).
func (l *Log) Sizes() (sizes map[uint64]int64, newest uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sizes = make(map[uint64]int64, len(l.segments))
	for n, s := range l.segments {
		sizes[n] = s.size
		newest = max(newest, n)
	}
	return sizes, newest
}

// Drop removes a segment. The caller knows that nothing in it, and nothing in an older one, matters any more.
func (l *Log) Drop(n uint64) error {
	l.mu.Lock()
	s := l.segments[n]
	delete(l.segments, n)
	var closing bool
	if s != nil {
		s.dropped = true
		closing = s.readers == 0
	}
	l.mu.Unlock()
	if s == nil {
		return nil
	}
	if closing {
		s.file.Close()
	}
	return os.Remove(l.path(n))
}

// Close syncs and closes the log.
func (l *Log) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	l.done.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closeFiles()
}
