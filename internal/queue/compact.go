package queue

import (
	"errors"
	"fmt"
	"slices"

	"github.com/indigomail/indigo/internal/queue/seglog"
)

// clean drops segments in which nothing lives, oldest first (a record of what ended must outlive the message that it
// ends), and moves the living out of the oldest when the log has grown to more than twice what lives in it.
func (q *Queue) clean() {
	for {
		q.gate.Lock()
		sizes, newest := q.log.Sizes()
		q.mu.Lock()
		numbers := make([]uint64, 0, len(sizes))
		var total, living int64
		for n, size := range sizes {
			if n != newest {
				numbers = append(numbers, n)
				total += size
			}
			if u := q.live[uint32(n)]; u != nil {
				living += u.bytes
			}
		}
		slices.Sort(numbers)
		dropped := 0
		for _, n := range numbers {
			if q.lives(n) {
				break
			}
			delete(q.live, uint32(n))
			dropped++
			total -= sizes[n]
		}
		var move []*message
		if rest := numbers[dropped:]; len(rest) > 0 && total > 2*living {
			for _, id := range q.live[uint32(rest[0])].ids {
				m := q.messages[id]
				if m == nil || uint64(m.segment) != rest[0] {
					continue
				}
				move = append(move, m)
			}
		}
		q.mu.Unlock()
		q.gate.Unlock()
		for _, n := range numbers[:dropped] {
			if err := q.log.Drop(n); err != nil {
				// None behind it may go before it: a record of what ended must outlive what it ends.
				q.config.Logger.Warn(fmt.Sprintf("queue: segment %016x: %v", n, err))
				return
			}
		}
		if len(move) == 0 || !q.move(move) {
			return
		}
	}
}

// moveAtOnce is how many messages share a commit when they are moved.
const moveAtOnce = 256

// move writes messages again at the log's end; false if any of them had to stay.
func (q *Queue) move(messages []*message) bool {
	whole := true
	for chunk := range slices.Chunk(messages, moveAtOnce) {
		type moved struct {
			m       *message
			pending []seglog.Pending
		}
		var under []moved
		for _, m := range chunk {
			pending, err := q.copyRecord(m)
			if err != nil {
				q.config.Logger.Warn(fmt.Sprintf("queue: compaction: message %s: %v", m.id, err))
			}
			if pending == nil {
				whole = false
				continue
			}
			under = append(under, moved{m, pending})
		}
		for _, w := range under {
			position, err := w.pending[0].Wait()
			for _, p := range w.pending[1:] {
				_, e := p.Wait()
				err = errors.Join(err, e)
			}
			if err != nil {
				q.config.Logger.Warn(fmt.Sprintf("queue: compaction: %v", err))
				return false
			}
			whole = q.settle(w.m, position) && whole
		}
	}
	return whole
}

// settle makes a copy of a message's record the one that counts; false if the message has ended or is ending, or an edit has put
// another entry in its place, or is about to: that one knows where its own record lies.
func (q *Queue) settle(m *message, at seglog.Position) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.messages[m.id] != m || m.finished {
		return false
	}
	q.unuse(m)
	m.put(at)
	q.use(m)
	return true
}

// copyRecord puts a message's record in line again, with its state; nil when the message has ended. A delivery may be under way:
// it has read what it needs, and its results come behind the copy.
func (q *Queue) copyRecord(m *message) ([]seglog.Pending, error) {
	buffer := new([]byte)
	payload, err := q.read(m, func(p seglog.Position) ([]byte, error) { return q.log.Read(uint64(m.id), p, buffer) })
	if err != nil {
		return nil, err
	}
	h, rest, err := decodeHead(payload)
	if err != nil {
		return nil, err
	}
	// State and record go in line under one lock, so that no result can come between them.
	q.mu.Lock()
	defer q.mu.Unlock()
	if m.finished {
		return nil, nil
	}
	var later []result
	for i, r := range m.recipients {
		h.statuses[i] = r.status
		if r.status == waiting && r.next != 0 {
			later = append(later, result{index: i, next: r.next})
		}
	}
	h.notices, h.held, h.warned = m.notices(), m.held, m.warned
	pending := []seglog.Pending{q.log.Enqueue(kindMessage, uint64(m.id), true, h.encode(), rest)}
	if later != nil {
		pending = append(pending, q.log.Enqueue(kindResult, uint64(m.id), true, encodeResults(later, nil)))
	}
	return pending, nil
}
