// Package seglog is a station's ground: an append-only, checksummed log in segment files with group commit. All that wait
// share one write and one fdatasync. It must not know what its records mean.
package seglog

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// SegmentSize is where a segment ends: the batch that reaches it is its last.
	SegmentSize = 32 << 20
	// syncIdle is how long a record that nobody waits for may stay unsynced.
	syncIdle = 200 * time.Millisecond
	// ahead is how much of a new file is filled with zeros at a time before records go there.
	ahead = 1 << 20
	// mostKept is how big a record's buffer may be to be used again.
	mostKept = 64 << 10
	// spareName is a file that was a segment and waits to be one again.
	spareName = "spare"
)

// Position is where a record's payload lies.
type Position struct {
	Segment uint64
	Offset  int64
	Length  int
}

// Record is one record as replayed. Payload, its head at least, is good only during the call.
type Record struct {
	Kind     byte
	ID       uint64
	Payload  []byte
	Position Position
	head     int
}

// Config says where a log is and whom it tells.
type Config struct {
	// Disk is where the log lies.
	Disk Disk
	// SegmentSize is where a segment ends; 0 means the constant of this name.
	SegmentSize int64
	// Damaged is given bytes that are no record although they should be; they are good only during the call.
	Damaged func(segment uint64, offset int64, bytes []byte)
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
	// torn is the cut that the next segment must begin with.
	torn  *cut
	zeros []byte
	hint  []byte

	// buffers are those of records that were written.
	buffers sync.Pool

	// newest is the segment that was begun last; under mu.
	newest uint64
	// spare tells that there is a file to be used again; under mu.
	spare bool
	// taking: the spare's name is being given or taken; under mu.
	taking bool
}

type segment struct {
	number uint64
	salt   uint64
	file   File
	size   int64
	// filled is up to where the file holds bytes, of zeros or of an earlier use: what is written there changes no
	// metadata, so that a sync is one write to the disk and not a commit of the file system's journal as well.
	filled int64
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
	buffer   *[]byte
	sync     bool
	position Position
	err      error
	done     chan struct{}
}

// Open replays the log on config.Disk through replay, in the order of writing, and makes it ready. New records always go
// into a new segment.
func Open(config Config, replay func(Record) error) (*Log, error) {
	if config.SegmentSize == 0 {
		config.SegmentSize = SegmentSize
	}
	names, err := config.Disk.List()
	if err != nil {
		return nil, err
	}
	l := &Log{config: config, segments: map[uint64]*segment{}, wake: make(chan struct{}, 1), next: 1}
	for _, name := range names {
		var n uint64
		switch {
		case name == spareName:
			l.spare = true
			continue
		case len(name) != len(segmentName(0)):
			continue
		}
		if _, err := fmt.Sscanf(name, "%016x.seg", &n); err != nil || name != segmentName(n) {
			continue
		}
		f, err := config.Disk.Open(name)
		if err != nil {
			l.closeFiles()
			return nil, err
		}
		l.segments[n] = &segment{number: n, file: f}
		l.next = max(l.next, n+1)
	}
	if err := l.replay(replay); err != nil {
		l.closeFiles()
		return nil, err
	}
	l.done.Go(l.commit)
	return l, nil
}

// replay reads all segments, each whole. A cut stands in a later segment than the one that it cuts, so that the cuts are
// collected first: each stands at the head of its segment.
func (l *Log) replay(use func(Record) error) error {
	numbers := slices.Sorted(maps.Keys(l.segments))
	cuts := map[uint64]int64{}
	head := make([]byte, 4<<10)
	for _, n := range numbers {
		head = head[:cap(head)]
		read, err := l.segments[n].file.ReadAt(head, 0)
		if err != nil && err != io.EOF {
			return fmt.Errorf("segment %016x: %w", n, err)
		}
		head = head[:read]
		salt, ok := parseHeader(head, n)
		if !ok {
			continue
		}
		for offset := headerSize; offset < len(head); {
			r, size, ok := parse(head[offset:], salt, int64(offset))
			if !ok || r.Kind != kindCut {
				break
			}
			if len(r.Payload) == 8 {
				cuts[r.ID] = int64(binary.LittleEndian.Uint64(r.Payload))
			}
			offset += size
		}
	}
	for _, n := range numbers {
		cut, isCut := cuts[n]
		if err := l.replaySegment(l.segments[n], cut, isCut, use); err != nil {
			return fmt.Errorf("segment %016x: %w", n, err)
		}
	}
	return nil
}

// replaySegment gives a segment's records, from its hint if there is a good one, else by reading all of it; then it writes
// the hint that was missing.
func (l *Log) replaySegment(s *segment, cut int64, isCut bool, use func(Record) error) error {
	skipCuts := func(r Record) error {
		if r.Kind == kindCut {
			return nil
		}
		return use(r)
	}
	head := make([]byte, headerSize)
	if n, err := s.file.ReadAt(head, 0); err == nil && !isCut {
		if salt, ok := parseHeader(head[:n], s.number); ok {
			if hint, size := l.loadHint(s); hint != nil {
				s.salt, s.size, s.filled = salt, size, size
				used := false
				err := readHint(hint, s.number, salt, func(r Record) error { used = true; return skipCuts(r) })
				if err == nil || used {
					return err
				}
			}
		}
	}
	b, err := load(s.file, l.config.SegmentSize)
	if err != nil {
		return err
	}
	if otherVersion(b) {
		return fmt.Errorf("it is of version %d of the format, and this program knows version %d", b[7], magic[7])
	}
	s.size, s.filled = int64(len(b)), int64(len(b))
	if isCut && cut < int64(len(b)) {
		b = b[:cut]
	}
	salt, ok := parseHeader(b, s.number)
	if !ok {
		// A crash before the header was synced leaves this; nothing was written behind it then.
		if slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) {
			l.damaged(s.number, 0, b)
		}
		return nil
	}
	s.salt = salt
	whole := !isCut
	hint := newHint(s.number, salt)
	err = scan(b, s.number, salt, func(r Record) error {
		hint = appendEntry(hint, r)
		return skipCuts(r)
	}, func(offset, length int) {
		whole = false
		l.damaged(s.number, int64(offset), b[offset:offset+length])
	})
	if err == nil && whole {
		l.writeHint(s.number, hint)
	}
	return err
}

func hintName(n uint64) string { return fmt.Sprintf("%016x.hint", n) }

// loadHint gives a segment's hint, nil when there is none, and the size of the segment.
func (l *Log) loadHint(s *segment) (hint []byte, size int64) {
	f, err := l.config.Disk.Open(hintName(s.number))
	if err != nil {
		return nil, 0
	}
	defer f.Close()
	if size, err = s.file.Size(); err != nil {
		return nil, 0
	}
	length, err := f.Size()
	if err == nil {
		hint, err = load(f, max(length, 1))
	}
	if err != nil {
		return nil, 0
	}
	return hint, size
}

// writeHint writes a segment's hint. It is not synced and its failure does not matter: a hint that is torn or missing is
// made again at the next start.
func (l *Log) writeHint(n uint64, hint []byte) {
	_ = l.config.Disk.Remove(hintName(n))
	f, err := l.config.Disk.Create(hintName(n), 0)
	if err != nil {
		return
	}
	_, _ = f.WriteAt(sealHint(hint), 0)
	_ = f.Close()
}

func (l *Log) damaged(n uint64, offset int64, b []byte) {
	if l.config.Damaged != nil {
		l.config.Damaged(n, offset, b)
	}
}

func (l *Log) closeFiles() {
	for _, s := range l.segments {
		s.file.Close()
	}
}

// load reads a file whole; size is about what it has.
func load(f File, size int64) ([]byte, error) {
	b := make([]byte, 0, size+size/8+1)
	for {
		if len(b) == cap(b) {
			b = slices.Grow(b, int(size))
		}
		n, err := f.ReadAt(b[len(b):cap(b)], int64(len(b)))
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// ErrClosed says that the log was closed.
var ErrClosed = errors.New("log is closed")

// Pending is a record on its way into the log.
type Pending struct{ r *request }

// Enqueue puts a record in line; records reach the log in the order of the calls. The payload, which is head and rest, is
// copied; of head alone a replay can be sure. With sync, Wait returns after the record is on stable storage; without, it is synced with the next that is, or 200 ms later.
func (l *Log) Enqueue(kind byte, id uint64, sync bool, head []byte, rest ...[]byte) Pending {
	buffer, _ := l.buffers.Get().(*[]byte)
	if buffer == nil {
		buffer = new([]byte)
	}
	*buffer = newRecord(*buffer, kind, id, head, rest...)
	r := &request{record: *buffer, buffer: buffer, sync: sync, done: make(chan struct{})}
	r.position.Length = len(head)
	for _, p := range rest {
		r.position.Length += len(p)
	}
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
			seal(r.record, l.current.salt, base+int64(len(buffer)))
			r.position.Segment = l.current.number
			r.position.Offset = base + int64(len(buffer)) + headerSize
			buffer = append(buffer, r.record...)
			sync = sync || r.sync
		}
		written := len(buffer)
		buffer = append(buffer, endMark[:]...)
		if end := base + int64(len(buffer)); end > l.current.filled {
			l.fill(end)
		}
		if _, err = l.current.file.WriteAt(buffer, base); err == nil {
			l.unsync = true
			// Not before: filling goes on from here, and must never go over records.
			l.current.filled = max(l.current.filled, base+int64(len(buffer)))
		}
		buffer = buffer[:written]
	}
	if err == nil && sync && l.current != nil && !skipSync {
		err = l.current.file.Datasync()
		l.unsync = l.unsync && err != nil
	}
	if err != nil {
		l.abandon()
	} else if l.current != nil {
		for _, r := range batch {
			l.hint = appendRecordEntry(l.hint, r)
		}
		l.mu.Lock()
		l.current.size += int64(len(buffer))
		l.mu.Unlock()
		if l.current.size >= l.config.SegmentSize {
			// What is not synced must not be left behind in a segment that nobody syncs again.
			if l.unsync {
				if l.current.file.Datasync() == nil {
					l.unsync = false
				}
			}
			if !l.unsync {
				l.writeHint(l.current.number, l.hint)
			}
			l.current = nil
		}
	}
	for _, r := range batch {
		r.err = err
		r.record = nil
		if cap(*r.buffer) <= mostKept {
			l.buffers.Put(r.buffer)
		}
		r.buffer = nil
		close(r.done)
	}
	return buffer
}

func appendRecordEntry(hint []byte, r *request) []byte {
	b := r.record
	head := int(binary.LittleEndian.Uint32(b[28:]))
	return appendEntry(hint, Record{Kind: b[24], ID: binary.LittleEndian.Uint64(b[16:]), Payload: b[headerSize : headerSize+head], Position: r.position, head: head})
}

// abandon gives up the current segment after a failed write or sync: what the kernel holds of it is not known, so nothing
// is appended to it any more, and what the failed batch left behind is cut off: by truncation if that works, and by a cut
// record at the head of the next segment in any case.
func (l *Log) abandon() {
	l.unsync = false
	if l.current == nil {
		return
	}
	l.torn = &cut{l.current.number, l.current.size}
	_ = l.current.file.Truncate(l.current.size)
	// Nor is the file used again.
	l.current.filled = 0
	l.current = nil
}

// fill writes zeros from where the file ends until end lies before them. Failing is no fault: it only costs time later.
func (l *Log) fill(end int64) {
	if l.zeros == nil {
		l.zeros = make([]byte, min(ahead, l.config.SegmentSize))
	}
	s := l.current
	// The last batch of a segment may go beyond its size; nothing comes behind it.
	for s.filled < min(end, l.config.SegmentSize) {
		zeros := l.zeros[:min(int64(len(l.zeros)), l.config.SegmentSize-s.filled)]
		if _, err := s.file.WriteAt(zeros, s.filled); err != nil {
			return
		}
		s.filled += int64(len(zeros))
	}
}

// rotate begins a new segment, in a file that was one before if there is such.
func (l *Log) rotate() error {
	var salt [8]byte
	_, _ = rand.Read(salt[:]) // never fails
	s := &segment{number: l.next, salt: binary.LittleEndian.Uint64(salt[:])}
	l.next++
	name := segmentName(s.number)
	head := appendHeader(nil, s.number, s.salt)
	if c := l.torn; c != nil {
		record := newRecord(nil, kindCut, c.segment, binary.LittleEndian.AppendUint64(nil, uint64(c.offset)))
		seal(record, s.salt, int64(len(head)))
		head = append(head, record...)
	}
	s.size = int64(len(head))
	head = append(head, endMark[:]...)
	var err error
	written := name
	l.mu.Lock()
	spare := l.spare
	l.spare = false
	l.taking = l.taking || spare
	l.mu.Unlock()
	if spare {
		defer func() {
			l.mu.Lock()
			l.taking = false
			l.mu.Unlock()
		}()
		written = spareName
		s.filled = l.config.SegmentSize
		// Not under its old name, should a crash undo its renaming.
		if err = l.config.Disk.Sync(); err == nil {
			s.file, err = l.config.Disk.Open(spareName)
		}
	} else {
		s.file, err = l.config.Disk.Create(name, l.config.SegmentSize)
		s.filled = int64(len(head))
	}
	if err != nil {
		return err
	}
	_, err = s.file.WriteAt(head, 0)
	if err == nil {
		err = s.file.Datasync()
	}
	// The old content of a spare must never be read as a segment's: it gets its name after its new header.
	if err == nil && spare {
		written = name
		err = l.config.Disk.Rename(spareName, name)
	}
	if err == nil {
		err = l.config.Disk.Sync()
	}
	if err != nil {
		s.file.Close()
		_ = l.config.Disk.Remove(written)
		return err
	}
	l.mu.Lock()
	l.segments[s.number] = s
	l.newest = s.number
	l.mu.Unlock()
	l.current, l.torn = s, nil
	l.hint = append(l.hint[:0], newHint(s.number, s.salt)...)
	return nil
}

func segmentName(n uint64) string { return fmt.Sprintf("%016x.seg", n) }

// ErrDamaged says that a record is not what was written.
var ErrDamaged = errors.New("the record's checksum is wrong")

// headGuess is how much ReadHead reads at first.
const headGuess = 2 << 10

// ReadHead gives the head of the record at p, in buffer. It is not checked against damage, since that takes reading all.
func (l *Log) ReadHead(id uint64, p Position, buffer *[]byte) ([]byte, error) {
	want := headerSize + min(p.Length, headGuess)
	for {
		b, _, err := l.readAt(p, want, buffer)
		if err != nil {
			return nil, err
		}
		head := int(binary.LittleEndian.Uint32(b[28:]))
		switch {
		case binary.LittleEndian.Uint64(b[16:]) != id || int(binary.LittleEndian.Uint32(b[4:])) != p.Length || head > p.Length:
			return nil, fmt.Errorf("segment %016x at %d: %w", p.Segment, p.Offset, ErrDamaged)
		case headerSize+head <= len(b):
			return b[headerSize : headerSize+head], nil
		}
		want = headerSize + head
	}
}

// Read gives the payload of the record at p, checked. It lies in buffer, which grows if need be.
func (l *Log) Read(id uint64, p Position, buffer *[]byte) ([]byte, error) {
	// The segment may be dropped while this reads; what was read is good all the same.
	b, salt, err := l.readAt(p, headerSize+p.Length, buffer)
	if err != nil {
		return nil, err
	}
	if r, _, ok := parse(b, salt, p.Offset-headerSize); ok && r.ID == id && len(r.Payload) == p.Length {
		return r.Payload, nil
	}
	return nil, fmt.Errorf("segment %016x at %d: %w", p.Segment, p.Offset, ErrDamaged)
}

// ErrGone says that a position is in a segment that was dropped: what was there may have been moved.
var ErrGone = errors.New("the segment is gone")

// readAt reads the first bytes of the record at p, and gives its segment's salt.
func (l *Log) readAt(p Position, size int, buffer *[]byte) (b []byte, salt uint64, err error) {
	l.mu.Lock()
	s := l.segments[p.Segment]
	if s != nil {
		s.readers++
	}
	l.mu.Unlock()
	if s == nil {
		return nil, 0, fmt.Errorf("segment %016x: %w", p.Segment, ErrGone)
	}
	if cap(*buffer) < size {
		*buffer = make([]byte, size)
	}
	b = (*buffer)[:size]
	_, err = s.file.ReadAt(b, p.Offset-headerSize)
	l.mu.Lock()
	s.readers--
	closing := s.dropped && s.readers == 0
	l.mu.Unlock()
	if closing {
		s.file.Close()
	}
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, 0, fmt.Errorf("segment %016x at %d: %w", p.Segment, p.Offset, err)
	}
	return b, s.salt, nil
}

// Sizes gives the bytes on disk of every segment, the one being written included, and which one that is (0 for none).
func (l *Log) Sizes() (sizes map[uint64]int64, newest uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sizes = make(map[uint64]int64, len(l.segments))
	for n, s := range l.segments {
		// Space that is set aside is taken too.
		sizes[n] = max(s.size, l.config.SegmentSize)
		newest = max(newest, n)
	}
	return sizes, newest
}

// Newest gives the number of the segment that was begun last, 0 for none.
func (l *Log) Newest() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.newest
}

// DropSpare removes the file that waits to be used again, if there is one: a log that is not written needs none.
func (l *Log) DropSpare() error {
	l.mu.Lock()
	spare := l.spare
	l.spare = false
	l.mu.Unlock()
	if !spare {
		return nil
	}
	return l.config.Disk.Remove(spareName)
}

// Drop removes a segment, or keeps its file to be used again. The caller knows that nothing in it, and nothing in an older
// one, matters any more. After an error the segment is still one of Sizes, to be dropped again before those behind it.
func (l *Log) Drop(n uint64) error {
	l.mu.Lock()
	s := l.segments[n]
	delete(l.segments, n)
	var closing, keep bool
	if s != nil {
		s.dropped = true
		closing = s.readers == 0
		// Who still reads would read what comes next.
		// Until rotate has given the spare another name, that name is not free.
		keep = closing && !l.spare && !l.taking && s.filled >= l.config.SegmentSize
		l.taking = l.taking || keep
	}
	l.mu.Unlock()
	if s == nil {
		return nil
	}
	if closing {
		s.file.Close()
	}
	_ = l.config.Disk.Remove(hintName(n))
	var err error
	if keep {
		err = l.config.Disk.Rename(segmentName(n), spareName)
	} else {
		err = l.config.Disk.Remove(segmentName(n))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if keep {
		l.spare, l.taking = err == nil, false
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// Its file is there still, and a start would read it.
		l.segments[n] = s
		return err
	}
	return nil
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
