package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/bounce"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/queue/seglog"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
)

// Config is what a Queue is made of.
type Config struct {
	Dir string
	// Name stands in the log when it is not "".
	Name string
	// IDs numbers the messages; nil means numbers of its own, in DIR/ids.
	IDs *IDs
	// Rates are limits that this queue shares with others; its own are in DIR/ratelimit.
	Rates *Rates
	// Bounces takes the queue's own messages; nil means the queue itself.
	Bounces Submitter
	// BounceDoor gives the way through a program of BOUNCEQUEUE; nil means that there is none.
	BounceDoor func(program string) Submitter
	// Processor runs a program of BOUNCEPROCESSOR for a report; keep false means that the report must not be queued.
	Processor func(ctx context.Context, program string, r *bounce.Report) (keep bool, err error)
	// Host is this system's name, for bounces.
	Host          string
	Settings      func() *settings.View
	Router        Router
	Local, Remote Deliverer
	Trace         trace.Recorder
	Logger        *slog.Logger
	Now           func() time.Time
	// UID and PID stand in the log line "info msg" of bounces.
	UID, PID int
	// Idle queues deliver nothing: for looking and mending while no daemon runs.
	Idle bool
	// SegmentSize is that of the log's segments; 0 means the usual.
	SegmentSize int64
	// LogDisk replaces DIR/log in tests.
	LogDisk seglog.Disk
}

const (
	// bigContent is from what size on content lies in a file of its own rather than in memory and the log.
	bigContent = 256 << 10
)

// Queue is one queue directory with its scheduler. It implements Submitter.
type Queue struct {
	config Config
	log    *seglog.Log
	lock   *os.File
	rates  []*Rates
	// rateVersions are those that the schedule was made for; only tick uses them.
	rateVersions []int
	ids          *IDs
	space        struct {
		sync.Mutex
		checked time.Time
		low     bool
	}

	// gate is held for reading from the writing of a message to its entry in messages, so that clean, which holds it for
	// writing, never takes its segment for empty.
	gate sync.RWMutex

	mu       sync.Mutex
	messages map[ID]*message
	live     map[uint32]*segmentUse
	// unread are messages that a replay could not read; empty afterwards.
	unread map[ID]seglog.Position
	// recipients counts those that are not done, of all messages.
	recipients int
	scheduler
	closing bool
	buffers sync.Pool
	// work counts deliveries, bounces and the goroutines of the queue.
	work       sync.WaitGroup
	cancelWork context.CancelFunc
	workCtx    context.Context
}

// segmentUse tells what lives in a segment.
type segmentUse struct {
	// ids holds every message that lives here, and some that moved or ended: lives takes those off that it meets.
	ids []ID
	// bytes is what the living take; it decides when to compact, never what may go.
	bytes int64
}

// message is what memory keeps of a queued message: with its job and its places in the maps and the heap about 220 bytes,
// because a million of them must fit beside everything else. Times are Unix nanoseconds.
type message struct {
	id    ID
	birth int64
	// segment, offset and length are the record's position; see at.
	segment, offset, length uint32
	// left counts the recipients that are not done, running the deliveries under way.
	left, running int32
	// repeat: an attempt may have been made whose result was lost. finished: nothing is left to do.
	// held: an operator keeps it back. warned: the sender knows that it is late.
	// moving: another queue is taking it over.
	repeat, finished, held, warned, moving bool
	// big: the content lies in a file of its own.
	big bool
	// lined counts the jobs in lanes: of what is due, when none is left and nothing runs, a round is over.
	lined      int32
	recipients []recipient
	// rare is what only messages have that met trouble.
	rare *rarity
	// one and job spare most messages two allocations.
	one [1]recipient
	job job
}

type rarity struct {
	notices  []notice
	lastText string
}

func (m *message) at() seglog.Position {
	return seglog.Position{Segment: uint64(m.segment), Offset: int64(m.offset), Length: int(m.length)}
}

func (m *message) put(p seglog.Position) {
	m.segment, m.offset, m.length = uint32(p.Segment), uint32(p.Offset), uint32(p.Length)
}

// kept tells whether nothing may be delivered now.
func (m *message) kept() bool { return m.held || m.moving }

func (m *message) notices() []notice {
	if m.rare == nil {
		return nil
	}
	return m.rare.notices
}

func (m *message) trouble() *rarity {
	if m.rare == nil {
		m.rare = &rarity{}
	}
	return m.rare
}

// newMessage makes a message with its recipients, none of them done.
func newMessage(id ID, birth int64, recipients int) *message {
	m := &message{id: id, birth: birth, left: int32(recipients)}
	if recipients == 1 {
		m.recipients = m.one[:]
	} else {
		m.recipients = make([]recipient, recipients)
	}
	return m
}

// message makes what memory keeps of a message with this head.
func (h *head) message(id ID, position seglog.Position) *message {
	m := newMessage(id, h.birth, len(h.statuses))
	m.put(position)
	m.held, m.warned, m.big = h.held, h.warned, h.big
	for i, s := range h.statuses {
		if m.recipients[i].status = s; s != waiting {
			m.left--
		}
	}
	if len(h.notices) > 0 {
		m.trouble().notices = h.notices
	}
	return m
}

type recipient struct {
	next   int64
	status status
}

var (
	errNoSpace  = mailerr.New(452, mailerr.Enhanced{4, 3, 1}, "insufficient system storage (#4.3.1)")
	errTrouble  = mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "unable to queue the message now (#4.3.0)")
	errShutdown = mailerr.New(421, mailerr.Enhanced{4, 3, 2}, "this system is shutting down (#4.3.2)")
)

func storageError(err error) error {
	var known *mailerr.Error
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return errNoSpace.Because(err)
	}
	return errTrouble.Because(err)
}

// Open opens a queue directory, made if there is none, replays its log and starts delivering. A directory that another
// process has open is refused.
func Open(ctx context.Context, config Config) (*Queue, error) {
	if err := os.MkdirAll(filepath.Join(config.Dir, "big"), 0o700); err != nil {
		return nil, err
	}
	q := &Queue{config: config, messages: map[ID]*message{}, live: map[uint32]*segmentUse{}, unread: map[ID]seglog.Position{}}
	var err error
	if q.lock, err = os.OpenFile(filepath.Join(config.Dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(q.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		q.lock.Close()
		return nil, fmt.Errorf("queue %s is in use by another process: %w", config.Dir, err)
	}
	logDir := filepath.Join(config.Dir, "log")
	own, err := OpenRates(filepath.Join(config.Dir, "ratelimit"), config.Name, config.Now)
	if err != nil {
		q.lock.Close()
		return nil, fmt.Errorf("queue %s: %w", config.Dir, err)
	}
	if q.rates = []*Rates{own}; config.Rates != nil {
		q.rates = append(q.rates, config.Rates)
	}
	q.rateVersions = make([]int, len(q.rates))
	for i, r := range q.rates {
		if q.rateVersions[i], err = r.upkeep(); err != nil {
			q.lock.Close()
			return nil, fmt.Errorf("queue %s: %w", config.Dir, err)
		}
	}
	disk := config.LogDisk
	if disk == nil {
		disk = seglog.Folder(logDir)
	}
	if q.ids = config.IDs; q.ids == nil {
		q.ids, err = OpenIDs(config.Dir)
	}
	if err == nil {
		err = os.MkdirAll(logDir, 0o700)
	}
	if err == nil {
		q.log, err = seglog.Open(seglog.Config{Disk: disk, SegmentSize: config.SegmentSize, Damaged: q.setAside}, q.replay)
	}
	if err != nil {
		if q.log != nil {
			q.log.Close()
		}
		q.lock.Close()
		return nil, fmt.Errorf("queue %s: %w", config.Dir, err)
	}
	for id, at := range q.unread {
		if err := q.setMessageAside(id, at); err != nil {
			q.log.Close()
			q.lock.Close()
			return nil, fmt.Errorf("queue %s: %w", config.Dir, err)
		}
	}
	q.unread = nil
	q.workCtx, q.cancelWork = context.WithCancel(context.WithoutCancel(ctx))
	q.removeOrphans()
	q.start()
	return q, nil
}

// setAside keeps bytes of the log that should be records and are none.
func (q *Queue) setAside(segment uint64, offset int64, b []byte) {
	_ = q.keepAside(segment, offset, b, "no record: what a crash tore, or damage")
}

// setMessageAside keeps the record of a message that this version cannot read, though it is what was written, for the segment may go;
// and the content of a large one, which would be nobody's.
func (q *Queue) setMessageAside(id ID, at seglog.Position) error {
	buffer := new([]byte)
	payload, err := q.log.Read(uint64(id), at, buffer)
	if err != nil {
		return fmt.Errorf("message %s: %w", id, err)
	}
	if err := q.keepAside(at.Segment, at.Offset, payload, "a message, "+id.String()+", that this version of Indigo cannot read"); err != nil {
		return err
	}
	err = os.Rename(q.bigPath(id), q.asidePath(at.Segment, at.Offset)+".content")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (q *Queue) asidePath(segment uint64, offset int64) string {
	return filepath.Join(q.config.Dir, "damaged", fmt.Sprintf("%016x-%d", segment, offset))
}

// keepAside writes bytes of the log to a file for the operator, and says so in the log.
func (q *Queue) keepAside(segment uint64, offset int64, b []byte, why string) error {
	name := q.asidePath(segment, offset)
	err := os.MkdirAll(filepath.Dir(name), 0o700)
	if err == nil {
		err = os.WriteFile(name, b, 0o600)
	}
	what := fmt.Sprintf("queue: %d bytes of segment %016x at %d are %s", len(b), segment, offset, why)
	if err != nil {
		q.config.Logger.Error(what + "; they could not be set aside: " + err.Error())
		return fmt.Errorf("%d bytes of segment %016x could not be set aside: %w", len(b), segment, err)
	}
	q.config.Logger.Warn(what + "; kept in " + name)
	return nil
}

// replay takes one record of the log.
func (q *Queue) replay(r seglog.Record) error {
	id := ID(r.ID)
	q.ids.saw(r.ID + 1)
	switch r.Kind {
	case kindMessage:
		h, _, err := decodeHead(r.Payload)
		if err != nil {
			q.unread[id] = r.Position
			return nil
		}
		delete(q.unread, id)
		old := q.messages[id]
		m := h.message(id, r.Position)
		m.repeat = true
		if old != nil {
			for i := range min(len(m.recipients), len(old.recipients)) {
				m.recipients[i].next = old.recipients[i].next
			}
			q.unuse(old)
		}
		q.messages[id] = m
		q.use(m)
	case kindResult:
		m := q.messages[id]
		if m == nil {
			return nil
		}
		results, failures, err := decodeResults(r.Payload, len(m.recipients))
		if err != nil {
			q.config.Logger.Warn(fmt.Sprintf("queue: result of message %s: %v", id, err))
			return nil
		}
		q.apply(m, results, failures)
	case kindHold:
		if m := q.messages[id]; m != nil && len(r.Payload) == 1 {
			m.held = r.Payload[0] == 1
		}
	case kindTold:
		if m := q.messages[id]; m != nil {
			if told, warned, err := decodeTold(r.Payload); err == nil {
				m.told(told, warned)
			}
		}
	case kindFinished:
		delete(q.unread, id)
		if m := q.messages[id]; m != nil {
			q.unuse(m)
			delete(q.messages, id)
		}
	}
	return nil
}

// apply takes results into the state, and the notices that go with them. A recipient that is done stays done, and nothing more is
// told of him: an operator ended him while a delivery ran, or gave his word twice.
func (q *Queue) apply(m *message, results []result, failures []notice) {
	for _, f := range failures {
		if m.recipients[f.index].status == waiting {
			m.trouble().notices = append(m.notices(), f)
		}
	}
	for _, r := range results {
		rec := &m.recipients[r.index]
		if rec.status != waiting {
			continue
		}
		rec.status, rec.next = r.status, r.next
		if r.status != waiting {
			m.left--
			q.recipients--
		}
	}
}

// use counts a message where its record lies; unuse takes it back.
func (q *Queue) use(m *message) {
	u := q.live[m.segment]
	if u == nil {
		u = &segmentUse{}
		q.live[m.segment] = u
	}
	u.ids = append(u.ids, m.id)
	u.bytes += int64(m.length)
	q.recipients += int(m.left)
}

func (q *Queue) unuse(m *message) {
	if u := q.live[m.segment]; u != nil {
		u.bytes -= int64(m.length)
	}
	q.recipients -= int(m.left)
}

// lives tells whether a message lives in a segment. It asks the messages themselves: a count that was once wrong would cost one
// its record. Nobody comes to live in a segment but by use, so who is found gone need not be looked at again. Called with mu held.
func (q *Queue) lives(segment uint64) bool {
	u := q.live[uint32(segment)]
	for u != nil && len(u.ids) > 0 {
		if m := q.messages[u.ids[0]]; m != nil && uint64(m.segment) == segment {
			return true
		}
		u.ids = u.ids[1:]
	}
	return false
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (q *Queue) bigPath(id ID) string { return filepath.Join(q.config.Dir, "big", id.String()) }

// removeOrphans removes big contents whose message was never committed or is finished.
func (q *Queue) removeOrphans() {
	entries, err := os.ReadDir(filepath.Join(q.config.Dir, "big"))
	if err != nil {
		return
	}
	for _, e := range entries {
		id, err := ParseID(e.Name())
		if _, queued := q.messages[id]; err == nil && !queued {
			os.Remove(q.bigPath(id))
		}
	}
}

// lowSpace tells whether less than MIN_FREE is left; it asks the file system once a second.
func (q *Queue) lowSpace() bool {
	q.space.Lock()
	defer q.space.Unlock()
	now := q.config.Now()
	if d := now.Sub(q.space.checked); d < 0 || d > time.Second {
		var s unix.Statfs_t
		if unix.Statfs(q.config.Dir, &s) == nil {
			q.space.low = int64(s.Bavail)*s.Bsize < int64(settings.MinFree.Get(q.config.Settings()))
		}
		q.space.checked = now
	}
	return q.space.low
}

// Begin starts a submission; see Submitter.
func (q *Queue) Begin(_ context.Context, sizeHint int64) (Submission, error) {
	q.mu.Lock()
	closing := q.closing
	q.mu.Unlock()
	if closing {
		return nil, errShutdown
	}
	if q.lowSpace() {
		return nil, errNoSpace.Because(errors.New("less than MIN_FREE left"))
	}
	return q.begin(sizeHint)
}

func (q *Queue) begin(sizeHint int64) (*submission, error) {
	id, err := q.ids.take()
	if err != nil {
		return nil, storageError(err)
	}
	s := &submission{q: q, id: id, buffer: q.buffer()}
	if want := int(min(sizeHint+1024, bigContent)); cap(*s.buffer) < want {
		*s.buffer = make([]byte, 0, want)
	}
	s.content = (*s.buffer)[:0]
	return s, nil
}

// mostKept is how big a buffer may be to be used again.
const mostKept = 64 << 10

// buffer gives one that was used before, or an empty one.
func (q *Queue) buffer() *[]byte {
	if b, ok := q.buffers.Get().(*[]byte); ok {
		return b
	}
	return new([]byte)
}

// release gives a buffer back.
func (q *Queue) release(b *[]byte) {
	if cap(*b) <= mostKept {
		q.buffers.Put(b)
	}
}

type submission struct {
	q       *Queue
	id      ID
	buffer  *[]byte
	content []byte
	big     *os.File
	size    int64
	err     error
}

func (s *submission) ID() ID { return s.id }

func (s *submission) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	s.size += int64(len(p))
	if s.big == nil && s.size <= bigContent {
		s.content = append(s.content, p...)
		return len(p), nil
	}
	if s.big == nil {
		if s.big, s.err = os.OpenFile(s.q.bigPath(s.id), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); s.err == nil {
			_, s.err = s.big.Write(s.content)
		}
		s.content = nil
	}
	if s.err == nil {
		_, s.err = s.big.Write(p)
	}
	if s.err != nil {
		s.err = storageError(s.err)
		return 0, s.err
	}
	return len(p), nil
}

func (s *submission) Abort() {
	if s.big != nil {
		s.big.Close()
		os.Remove(s.q.bigPath(s.id))
	}
}

// Commit makes the message durable and hands it to the scheduler.
func (s *submission) Commit(_ context.Context, env Envelope) error {
	err := s.commit(env)
	s.done(err)
	return err
}

// done gives back what a submission held after its commit.
func (s *submission) done(err error) {
	if s.content != nil {
		*s.buffer = s.content
		s.content = nil
		s.q.release(s.buffer)
	}
	if err != nil {
		s.Abort()
	} else if s.big != nil {
		s.big.Close()
	}
}

func (s *submission) commit(env Envelope) error {
	if s.err != nil {
		return s.err
	}
	q := s.q
	if len(env.Recipients) == 0 {
		return errTrouble.Because(errors.New("no recipients"))
	}
	if s.big != nil {
		if err := s.syncBig(); err != nil {
			return err
		}
	}
	h := head{birth: q.config.Now().UnixNano(), size: s.size, big: s.big != nil, statuses: make([]status, len(env.Recipients)), envelope: env}
	return s.enter(&h)
}

// syncBig makes the content's file durable, with its directory entry: the record that names it must never be there without.
func (s *submission) syncBig() error {
	err := s.big.Sync()
	if err == nil {
		err = syncDir(filepath.Join(s.q.config.Dir, "big"))
	}
	return storageErrorOrNil(err)
}

// enter writes the message's record, and hands it to the scheduler.
func (s *submission) enter(h *head) error {
	q, env := s.q, &h.envelope
	began := q.config.Now()
	q.gate.RLock()
	position, err := q.log.Enqueue(kindMessage, uint64(s.id), true, h.encode(), s.content).Wait()
	if err != nil {
		q.gate.RUnlock()
		return storageError(err)
	}
	m := h.message(s.id, position)
	q.mu.Lock()
	q.messages[s.id] = m
	q.use(m)
	q.mu.Unlock()
	q.gate.RUnlock()
	q.event(logNew, idAttr(s.id))
	q.event(logInfo, idAttr(s.id), slog.Int64("bytes", s.size), slog.String("from", env.Sender.String()), slog.Int("qp", env.Origin.PID), slog.Int("uid", env.Origin.UID))
	q.config.Trace.Record(trace.Event{Time: began, Kind: "queued", Session: env.Origin.Session, Queue: s.id.String(), MessageID: env.MessageID,
		Service: env.Origin.Service, From: env.Sender.String(), Bytes: s.size, Took: q.config.Now().Sub(began)})
	// The message is durable: whatever happens to routing now is the scheduler's, not the client's.
	q.schedule(m, env, s.size)
	return nil
}

// content is a queued message's bytes, read from the log or open in their own file.
type content struct {
	io.ReaderAt
	size int64
}

func (c content) Size() int64 { return c.size }

// read reads at a message's position, again if it was moved meanwhile.
func (q *Queue) read(m *message, at func(seglog.Position) ([]byte, error)) ([]byte, error) {
	for {
		q.mu.Lock()
		position := m.at()
		q.mu.Unlock()
		payload, err := at(position)
		if !errors.Is(err, seglog.ErrGone) {
			return payload, err
		}
		q.mu.Lock()
		moved := m.at() != position
		q.mu.Unlock()
		if !moved {
			return nil, err
		}
	}
}

// load reads a message's head and gives its content. release must be called when the content is no longer needed.
func (q *Queue) load(m *message) (h *head, c Content, release func(), err error) {
	buffer := q.buffer()
	payload, err := q.read(m, func(p seglog.Position) ([]byte, error) { return q.log.Read(uint64(m.id), p, buffer) })
	if err != nil {
		return nil, nil, nil, err
	}
	h, rest, err := decodeHead(payload)
	if err != nil {
		return nil, nil, nil, err
	}
	if !h.big {
		if h.size != int64(len(rest)) {
			return nil, nil, nil, fmt.Errorf("%w: %d bytes of content, not %d", errRecord, len(rest), h.size)
		}
		// The payload was read whole; its content needs no second read.
		return h, content{bytes.NewReader(rest), h.size}, func() { q.release(buffer) }, nil
	}
	f, err := os.Open(q.bigPath(m.id))
	if err != nil {
		return nil, nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Size() != h.size {
		err = fmt.Errorf("%s has %d bytes, not %d", f.Name(), info.Size(), h.size)
	}
	if err != nil {
		f.Close()
		return nil, nil, nil, err
	}
	return h, content{f, h.size}, func() { f.Close() }, nil
}

// finish removes a message for which nothing is left to do.
func (q *Queue) finish(m *message, big bool) {
	if _, err := q.log.Enqueue(kindFinished, uint64(m.id), big, nil).Wait(); err != nil {
		// The message comes back at the next start, and needs its content then.
		q.config.Logger.Warn(fmt.Sprintf("queue: end of message %s: %v; it comes back at the next start", m.id, err))
	} else if big {
		os.Remove(q.bigPath(m.id))
	}
	q.mu.Lock()
	m.finished = true
	if q.messages[m.id] == m {
		q.unuse(m)
		delete(q.messages, m.id)
	}
	q.mu.Unlock()
	q.event(logEnd, idAttr(m.id))
	q.config.Trace.Record(trace.Event{Time: q.config.Now(), Kind: "end", Queue: m.id.String()})
}

// Shutdown takes no more messages, waits for the deliveries under way until ctx ends, then cancels them, and closes the
// log. Undelivered messages stay in it.
func (q *Queue) Shutdown(ctx context.Context) {
	q.mu.Lock()
	q.closing = true
	q.mu.Unlock()
	q.signal()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		q.work.Wait()
	}()
	select {
	case <-finished:
	case <-ctx.Done():
	}
	q.cancelWork()
	<-finished
	for _, r := range q.rates {
		if err := r.save(); err != nil {
			q.config.Logger.Error(err.Error())
		}
	}
	q.log.Close()
	q.lock.Close()
}
