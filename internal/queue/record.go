package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/bounce"
	"github.com/indigomail/indigo/internal/mailerr"
)

// ParseID reads an ID as String wrote it.
func ParseID(s string) (ID, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("queue id %q: not a number", s)
	}
	return ID(n), nil
}

// Kinds of record in the log.
const (
	// kindMessage: birth, content size, state of each recipient, envelope, and the content unless it lies in big/.
	kindMessage = 1
	// kindResult: what became of some recipients.
	kindResult = 2
	// kindFinished: nothing is left to do for the message.
	kindFinished = 3
	// kindHold: one byte, 1 when an operator holds the message, 0 when he lets it go.
	kindHold = 4
	// kindTold: which notices need not be told any more; and whether the sender was warned of a delay.
	kindTold = 5
)

// status of a recipient.
type status byte

const (
	waiting status = iota
	succeeded
	failed
)

var errRecord = errors.New("malformed record")

// encoder appends the parts of a payload; decoder reads them with bounds.
type encoder []byte

func (e *encoder) uint(n uint64)   { *e = binary.AppendUvarint(*e, n) }
func (e *encoder) int(n int64)     { *e = binary.AppendVarint(*e, n) }
func (e *encoder) text(s string)   { e.uint(uint64(len(s))); *e = append(*e, s...) }
func (e *encoder) bool(b bool)     { *e = append(*e, map[bool]byte{true: 1}[b]) }
func (e *encoder) status(s status) { *e = append(*e, byte(s)) }

type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uint() uint64 {
	n, size := binary.Uvarint(d.b)
	return advance(d, n, size)
}

func (d *decoder) int() int64 {
	n, size := binary.Varint(d.b)
	return advance(d, n, size)
}

func advance[T uint64 | int64](d *decoder, n T, size int) T {
	if size <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[size:]
	return n
}

func (d *decoder) text() string {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.bad = true
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

// count reads a number of things of which each takes at least one byte.
func (d *decoder) count() int {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return 0
	}
	return int(n)
}

// head is a message record without its content.
type head struct {
	birth    int64 // Unix nanoseconds
	size     int64
	big      bool
	held     bool
	warned   bool
	statuses []status
	notices  []notice
	envelope Envelope
}

// notice is what the sender is still to be told of a recipient.
type notice struct {
	index          int
	action         bounce.Action
	code           int
	enhanced, text string
}

// actions are in the order of their numbers in the log.
func actions() []bounce.Action {
	return []bounce.Action{bounce.Failed, bounce.Delayed, bounce.Delivered, bounce.Relayed}
}

func (h *head) encode() []byte {
	e := make(encoder, 0, 512)
	e.int(h.birth)
	e.uint(uint64(h.size))
	e.bool(h.big)
	e.bool(h.held)
	e.bool(h.warned)
	v := &h.envelope
	for _, s := range []string{v.Sender.Local, v.Sender.Domain, v.Origin.Service, v.Origin.Session, v.Origin.Client, v.Origin.User, v.MessageID, v.Body, v.EnvID, v.Return} {
		e.text(s)
	}
	e.int(int64(v.Origin.UID))
	e.int(int64(v.Origin.PID))
	e.bool(v.UTF8)
	e.uint(uint64(len(v.Recipients)))
	for i, r := range v.Recipients {
		e.status(h.statuses[i])
		for _, s := range []string{r.Address.Local, r.Address.Domain, r.Notify, r.Orcpt} {
			e.text(s)
		}
	}
	encodeNotices(&e, h.notices)
	return e
}

func encodeNotices(e *encoder, notices []notice) {
	e.uint(uint64(len(notices)))
	for _, n := range notices {
		e.uint(uint64(n.index))
		e.uint(uint64(slices.Index(actions(), n.action)))
		e.uint(uint64(n.code))
		e.text(n.enhanced)
		e.text(n.text)
	}
}

func (d *decoder) notices(recipients int) []notice {
	var notices []notice
	for range d.count() {
		n := notice{index: int(d.uint())}
		action := d.uint()
		n.code, n.enhanced, n.text = int(d.uint()), d.text(), d.text()
		if d.bad || n.index < 0 || n.index >= recipients || action >= uint64(len(actions())) {
			d.bad = true
			return nil
		}
		n.action = actions()[action]
		notices = append(notices, n)
	}
	return notices
}

// decodeHead reads a message record's payload; rest is the content, or nothing when it lies in big/ or was not read.
func decodeHead(b []byte) (h *head, rest []byte, err error) {
	d := &decoder{b: b}
	h = &head{birth: d.int(), size: int64(d.uint()), big: d.byte() == 1, held: d.byte() == 1, warned: d.byte() == 1}
	v := &h.envelope
	for _, s := range []*string{&v.Sender.Local, &v.Sender.Domain, &v.Origin.Service, &v.Origin.Session, &v.Origin.Client, &v.Origin.User, &v.MessageID, &v.Body, &v.EnvID, &v.Return} {
		*s = d.text()
	}
	v.Origin.UID, v.Origin.PID = int(d.int()), int(d.int())
	v.UTF8 = d.byte() == 1
	n := d.count()
	for range n {
		s := status(d.byte())
		r := Recipient{Address: addr.Address{Local: d.text(), Domain: d.text()}, Notify: d.text(), Orcpt: d.text()}
		if d.bad || s > failed {
			return nil, nil, errRecord
		}
		h.statuses = append(h.statuses, s)
		v.Recipients = append(v.Recipients, r)
	}
	h.notices = d.notices(n)
	if d.bad || n == 0 || h.size < 0 {
		return nil, nil, errRecord
	}
	return h, d.b, nil
}

// result is what a result record tells of one recipient.
type result struct {
	index  int
	status status
	// next is when a waiting recipient is tried again, in Unix nanoseconds.
	next int64
}

func encodeResults(results []result, notices []notice) []byte {
	e := make(encoder, 0, 64)
	e.uint(uint64(len(results)))
	for _, r := range results {
		e.uint(uint64(r.index))
		e.status(r.status)
		e.int(r.next)
	}
	encodeNotices(&e, notices)
	return e
}

func decodeResults(b []byte, recipients int) ([]result, []notice, error) {
	d := &decoder{b: b}
	var results []result
	for range d.count() {
		r := result{index: int(d.uint()), status: status(d.byte()), next: d.int()}
		if d.bad || r.index < 0 || r.index >= recipients || r.status > failed {
			return nil, nil, errRecord
		}
		results = append(results, r)
	}
	notices := d.notices(recipients)
	if d.bad || len(d.b) != 0 {
		return nil, nil, errRecord
	}
	return results, notices, nil
}

// encodeTold names the recipients whose notices need not be told any more, by their positions; decodeTold reads them.
func encodeTold(recipients []int, warned bool) []byte {
	e := make(encoder, 0, 16)
	e.uint(uint64(len(recipients)))
	e.bool(warned)
	for _, i := range recipients {
		e.uint(uint64(i))
	}
	return e
}

func decodeTold(b []byte) (told []int, warned bool, err error) {
	d := &decoder{b: b}
	n := d.uint()
	warned = d.byte() == 1
	for range min(n, uint64(len(d.b))) {
		told = append(told, int(d.uint()))
	}
	if d.bad || len(d.b) != 0 || uint64(len(told)) != n {
		return nil, false, errRecord
	}
	return told, warned, nil
}

// newNotice is that of a failure.
func newNotice(index int, e *mailerr.Error, text string) notice {
	return notice{index: index, action: bounce.Failed, code: e.Code, enhanced: e.Enhanced.String(), text: text}
}
