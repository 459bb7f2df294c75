package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/bounce"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/queue/seglog"
	"github.com/indigomail/indigo/internal/trace"
)

var errBusy = mailerr.New(450, mailerr.Enhanced{4, 3, 0}, "the message is being delivered now; try again in a moment")

// Edit writes a message's envelope again as change made it, and routes the recipients that are left anew: at once, unless the
// message is held. change may alter addresses, but not the number of recipients. With nil it is only routed again. ErrNoMessage
// if there is none; an error while a delivery is under way.
func (q *Queue) Edit(id ID, change func(*Envelope) error) error {
	q.mu.Lock()
	m := q.messages[id]
	q.mu.Unlock()
	if m == nil {
		return ErrNoMessage
	}
	buffer := new([]byte)
	payload, err := q.read(m, func(p seglog.Position) ([]byte, error) { return q.log.Read(uint64(id), p, buffer) })
	if err != nil {
		return fmt.Errorf("message %s: %w", id, err)
	}
	h, rest, err := decodeHead(payload)
	if err != nil {
		return fmt.Errorf("message %s: %w", id, err)
	}
	before := h.envelope
	before.Recipients = slices.Clone(before.Recipients)
	if change != nil {
		if err := change(&h.envelope); err != nil {
			return err
		}
		if len(h.envelope.Recipients) != len(before.Recipients) {
			return errors.New("queue: an edit must keep the number of recipients")
		}
	}
	edited, err := q.rewrite(m, h, before, rest)
	if edited != nil {
		// Outside the gate: routing may end the message, and its bounce passes the gate itself.
		q.schedule(edited, &h.envelope, -1)
	}
	if err != nil {
		return err
	}
	kind := "edit"
	if change == nil {
		kind = "reroute"
	}
	q.config.Trace.Record(trace.Event{Time: q.config.Now(), Kind: kind, Queue: id.String(), Check: "operator", Verdict: "success"})
	return nil
}

// rewrite writes a message again with another head and puts a new entry in the old one's place; nil when there was no place. If
// the write fails, the new entry has the old envelope.
func (q *Queue) rewrite(m *message, h *head, before Envelope, rest []byte) (edited *message, err error) {
	id := m.id
	q.gate.RLock()
	defer q.gate.RUnlock()
	q.mu.Lock()
	if q.messages[id] != m || m.finished {
		q.mu.Unlock()
		return nil, ErrNoMessage
	}
	if m.running > 0 {
		q.mu.Unlock()
		return nil, errBusy
	}
	for i, r := range m.recipients {
		h.statuses[i] = r.status
	}
	h.notices, h.held, h.warned = m.notices(), m.held, m.warned
	// From here on the old entry's jobs find nothing to do.
	m.finished = true
	q.unuse(m)
	for i := range m.recipients {
		m.recipients[i].status = succeeded
	}
	m.left = 0
	q.unpark(m)
	pending := q.log.Enqueue(kindMessage, uint64(id), true, h.encode(), rest)
	q.mu.Unlock()
	position, err := pending.Wait()
	if err != nil {
		// The old record is still the one that counts.
		h.envelope, position = before, m.at()
	}
	edited = h.message(id, position)
	edited.repeat = m.repeat
	q.mu.Lock()
	q.messages[id] = edited
	q.use(edited)
	q.hasten(func(j *job) bool { return j.m == m })
	q.mu.Unlock()
	return edited, storageErrorOrNil(err)
}

// EditRecipient puts another address in the place of one that is left.
func (s *Set) EditRecipient(id ID, old, now addr.Address) error {
	m, err := s.find(id)
	if err != nil {
		return err
	}
	return m.Edit(id, func(e *Envelope) error {
		for i, r := range e.Recipients {
			if r.Address.Key() == old.Key() {
				// ORCPT names what the sender wrote (RFC 3461 section 5.2.4).
				if e.Recipients[i].Address = now; r.Orcpt == "" {
					e.Recipients[i].Orcpt = "rfc822;" + old.String()
				}
				return nil
			}
		}
		return fmt.Errorf("message %s has no recipient %s", id, old)
	})
}

// Reroute asks the Router again where the recipients of every message that f chooses go, and tells how many messages that
// were. Those that are being delivered are left alone.
func (s *Set) Reroute(ctx context.Context, f Filter, dry bool, done func(ID)) (n int, err error) {
	return s.onEach(ctx, f, dry, done, func(m *member, id ID) error { return m.Edit(id, nil) })
}

// onEach calls use for every message that f chooses; messages that are busy or have ended meanwhile are passed over.
func (s *Set) onEach(ctx context.Context, f Filter, dry bool, done func(ID), use func(*member, ID) error) (n int, err error) {
	queues, err := s.chosen(&f)
	if err != nil {
		return 0, err
	}
	for _, q := range queues {
		err := q.each(ctx, f, func(m *message, _ *head) error {
			if !dry {
				if err := use(q, m.id); errors.Is(err, errBusy) || errors.Is(err, ErrNoMessage) {
					return nil
				} else if err != nil {
					return err
				}
			}
			n++
			if done != nil {
				done(m.id)
			}
			return nil
		})
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Move puts every message that f chooses into another queue, under a new id, and tells how many that were. Those that are
// being delivered are left alone.
func (s *Set) Move(ctx context.Context, f Filter, queue string, dry bool, done func(ID)) (n int, err error) {
	to, err := s.enterNamed(queue)
	if err != nil {
		return 0, err
	}
	defer s.leave(to)
	return s.onEach(ctx, f, dry, done, func(from *member, id ID) error {
		if from == to {
			return ErrNoMessage
		}
		return from.handOver(id, to.Queue)
	})
}

// handOver makes a message another queue's. A crash between the two leaves it in both.
func (q *Queue) handOver(id ID, to *Queue) error {
	q.mu.Lock()
	m := q.messages[id]
	switch {
	case m == nil || m.finished:
		q.mu.Unlock()
		return ErrNoMessage
	case m.running > 0:
		q.mu.Unlock()
		return errBusy
	}
	// Nothing else may begin to work on it.
	m.running++
	m.moving = true
	q.mu.Unlock()
	h, c, release, err := q.load(m)
	if err == nil {
		q.mu.Lock()
		for i, r := range m.recipients {
			h.statuses[i] = r.status
		}
		h.notices, h.held, h.warned = slices.Clone(m.notices()), m.held, m.warned
		q.mu.Unlock()
		err = to.insert(h, c)
		release()
	}
	q.mu.Lock()
	m.running--
	m.moving = false
	if err != nil {
		q.unpark(m)
		q.mu.Unlock()
		q.signal()
		return err
	}
	m.finished = true
	q.recipients -= int(m.left)
	for i := range m.recipients {
		m.recipients[i].status = succeeded
	}
	m.left = 0
	q.unpark(m)
	q.hasten(func(j *job) bool { return j.m == m })
	q.mu.Unlock()
	q.finish(m, h.big)
	return nil
}

// insert takes a message as it stood elsewhere, under a new id.
func (q *Queue) insert(h *head, c io.ReaderAt) error {
	s, err := q.begin(h.size)
	if err != nil {
		return err
	}
	if _, err := io.Copy(s, io.NewSectionReader(c, 0, h.size)); err != nil {
		s.Abort()
		return storageError(err)
	}
	return s.commitHead(h)
}

// commitHead is Commit for a message that has a past.
func (s *submission) commitHead(h *head) error {
	copied := *h
	copied.big = s.big != nil
	err := s.err
	if err == nil && s.big != nil {
		err = s.syncBig()
	}
	if err == nil {
		err = s.enter(&copied)
	}
	s.done(err)
	return err
}

// Fault is something that Check found.
type Fault struct {
	Queue string `json:"queue,omitempty"`
	// ID is the message, "" for a file that belongs to none.
	ID   string `json:"id,omitempty"`
	File string `json:"file,omitempty"`
	Text string `json:"text"`
}

// Check reads every message whole, with its checksums, and tells what is wrong; checked is called for each message.
func (s *Set) Check(ctx context.Context, f Filter, checked func(), found func(Fault)) (n int, err error) {
	queues, err := s.chosen(&f)
	if err != nil {
		return 0, err
	}
	for _, q := range queues {
		q.mu.Lock()
		all := make([]*message, 0, len(q.messages))
		for _, m := range q.messages {
			all = append(all, m)
		}
		q.mu.Unlock()
		for _, m := range all {
			if err := ctx.Err(); err != nil {
				return n, err
			}
			n++
			_, _, release, err := q.load(m)
			switch {
			case err == nil:
				release()
			default:
				q.mu.Lock()
				_, queued := q.messages[m.id]
				q.mu.Unlock()
				if queued {
					found(Fault{Queue: q.config.Name, ID: m.id.String(), Text: err.Error()})
				}
			}
			if checked != nil {
				checked()
			}
		}
		damaged, _ := os.ReadDir(filepath.Join(q.config.Dir, "damaged"))
		for _, e := range damaged {
			found(Fault{Queue: q.config.Name, File: filepath.Join(q.config.Dir, "damaged", e.Name()),
				Text: "bytes of the log that were no record: what a crash tore (then nobody was told that it was accepted), damage, or a message of another version: the log says which"})
		}
	}
	return n, nil
}

// Exported is a message as it is carried from one Indigo to another, without its content.
type Exported struct {
	ID       string    `json:"id"`
	Birth    time.Time `json:"birth"`
	Size     int64     `json:"size"`
	Held     bool      `json:"held,omitempty"`
	Envelope Envelope  `json:"envelope"`
	// States has "waiting", "done" or "failed" for each recipient of the envelope.
	States   []string          `json:"states"`
	Failures []ExportedFailure `json:"failures,omitempty"`
}

// ExportedFailure is a recipient that failed, or was delivered, and of which the sender is still to be told.
type ExportedFailure struct {
	Recipient int           `json:"recipient"`
	Action    bounce.Action `json:"action"`
	Code      int           `json:"code"`
	Enhanced  string        `json:"enhanced"`
	Text      string        `json:"text"`
}

func stateNames() []string { return []string{"waiting", "done", "failed"} }

// Export gives every message that f chooses with its content.
func (s *Set) Export(ctx context.Context, f Filter, use func(Exported, Content) error) error {
	queues, err := s.chosen(&f)
	if err != nil {
		return err
	}
	for _, q := range queues {
		err := q.each(ctx, f, func(m *message, _ *head) error {
			h, c, release, err := q.load(m)
			if err != nil {
				return fmt.Errorf("message %s: %w", m.id, err)
			}
			defer release()
			e := Exported{ID: m.id.String(), Birth: time.Unix(0, h.birth).UTC(), Size: h.size, Envelope: h.envelope}
			q.mu.Lock()
			e.Held = m.held
			for _, r := range m.recipients {
				e.States = append(e.States, stateNames()[r.status])
			}
			for _, f := range m.notices() {
				e.Failures = append(e.Failures, ExportedFailure{f.index, f.action, f.code, f.enhanced, f.text})
			}
			q.mu.Unlock()
			return use(e, c)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Import takes in a message that Export gave, or that came from another mail system, with its age and its state; it gets a new
// id. content is in wire form. The message is durable when it returns nil.
func (s *Set) Import(e Exported, queue string, content io.ReaderAt) error {
	if err := e.Envelope.Check(); err != nil {
		return fmt.Errorf("message %s: %w", e.ID, err)
	}
	to, err := s.importInto(queue)
	if err != nil {
		return err
	}
	defer s.leave(to)
	h := &head{birth: e.Birth.UnixNano(), size: e.Size, held: e.Held, envelope: e.Envelope, statuses: make([]status, len(e.States))}
	if len(e.States) != len(e.Envelope.Recipients) || len(e.States) == 0 {
		return fmt.Errorf("message %s: %d states for %d recipients", e.ID, len(e.States), len(e.Envelope.Recipients))
	}
	for i, name := range e.States {
		n := slices.Index(stateNames(), name)
		if n < 0 {
			return fmt.Errorf("message %s: %q is no state", e.ID, name)
		}
		h.statuses[i] = status(n)
	}
	for _, f := range e.Failures {
		if f.Recipient < 0 || f.Recipient >= len(e.States) || !slices.Contains(actions(), f.Action) {
			return fmt.Errorf("message %s: %s of recipient %d of %d", e.ID, f.Action, f.Recipient, len(e.States))
		}
		h.notices = append(h.notices, notice{f.Recipient, f.Action, f.Code, f.Enhanced, f.Text})
	}
	return to.insert(h, content)
}

func (s *Set) importInto(queue string) (*member, error) {
	if queue != "" {
		return s.enterNamed(queue)
	}
	if m := s.enter(nil); m != nil {
		return m, nil
	}
	return nil, errNoSpace
}
