package smtpd

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/indigomail/indigo/internal/message"
	"github.com/indigomail/indigo/internal/queue"
)

const (
	// maxHeader is how much of a header the policy sees.
	maxHeader = 64 << 10
	// sinkBuffer is how much goes to the submission in one write.
	sinkBuffer = 32 << 10
	// maxMessageID bounds the Message-ID in trace and envelope.
	maxMessageID = 250
)

// errWrite marks that the submission, not the client, failed.
var errWrite = errors.New("write to the queue")

// sink takes the content of one message in wire form: it keeps the header for the policy, completes it on a submission
// service, and hands all on in large writes. Sinks are used again and again, so that a message costs no new buffers.
type sink struct {
	submission queue.Submission
	config     *Config
	messageID  string

	// head is the header so far, with whatever came in the same write behind it; headerEnd is its length, without the
	// empty line, once ended.
	head      []byte
	headerEnd int
	ended     bool
	// out is what the submission does not have yet.
	out []byte
}

// begin makes the sink ready for a message; trace is the text that goes before it.
func (s *sink) begin(submission queue.Submission, trace string, config *Config) {
	s.submission, s.config = submission, config
	if s.out == nil {
		s.out = make([]byte, 0, sinkBuffer)
	}
	s.out = append(s.out, trace...)
}

// release forgets the message.
func (s *sink) release() {
	if cap(s.head) > 2*maxHeader {
		s.head = nil
	}
	*s = sink{head: s.head[:0], out: s.out[:0]}
}

// header gives the header's fields, without the empty line; at most about maxHeader of it.
func (s *sink) header() []byte { return s.head[:s.headerEnd] }

// Write takes the next content.
func (s *sink) Write(p []byte) (int, error) {
	if s.ended {
		return len(p), s.put(p)
	}
	from := max(0, len(s.head)-3)
	s.head = append(s.head, p...)
	if bytes.HasPrefix(s.head, []byte("\r\n")) {
		return len(p), s.endHeader(0)
	}
	if i := bytes.Index(s.head[from:], []byte("\r\n\r\n")); i >= 0 {
		return len(p), s.endHeader(from + i + 2)
	}
	if len(s.head) > maxHeader {
		return len(p), s.endHeader(len(s.head))
	}
	return len(p), nil
}

// finish hands on what is left.
func (s *sink) finish() error {
	if !s.ended {
		if err := s.endHeader(len(s.head)); err != nil {
			return err
		}
	}
	return s.flush()
}

// endHeader looks through the header, whose end is known now, and hands it on.
func (s *sink) endHeader(end int) error {
	s.ended, s.headerEnd = true, end
	// A header cut at maxHeader may have these fields further on; it is then left alone.
	whole := end <= maxHeader
	header := s.head[:end]
	hasDate := false
	for rest := header; len(rest) > 0; {
		field := rest[:fieldEnd(rest)]
		rest = rest[len(field):]
		switch {
		case s.messageID == "" && isField(field, "message-id"):
			s.messageID = messageID(field)
		case isField(field, "date"):
			hasDate = true
		}
	}
	if s.config.Submission && whole {
		if err := s.complete(header, hasDate); err != nil {
			return err
		}
	}
	return s.put(s.head)
}

// complete adds what a user's program left out (RFC 6409 section 8).
func (s *sink) complete(header []byte, hasDate bool) error {
	added := ""
	if !hasDate {
		added = "Date: " + message.Date822(s.config.Now()) + "\r\n"
	}
	if s.messageID == "" {
		s.messageID = strings.ToLower(rand.Text()) + "@" + s.config.Hostname
		added += "Message-ID: <" + s.messageID + ">\r\n"
	}
	if added != "" && len(header) > 0 && !startsWithField(header) {
		// A text without any header: it must not look like a field, or the continuation of one.
		added += "\r\n"
	}
	return s.put([]byte(added))
}

// put hands p on, in large pieces.
func (s *sink) put(p []byte) error {
	if len(s.out)+len(p) <= cap(s.out) {
		s.out = append(s.out, p...)
		return nil
	}
	if err := s.flush(); err != nil {
		return err
	}
	if len(p) < cap(s.out) {
		s.out = append(s.out, p...)
		return nil
	}
	return s.write(p)
}

func (s *sink) flush() error {
	if len(s.out) == 0 {
		return nil
	}
	err := s.write(s.out)
	s.out = s.out[:0]
	return err
}

func (s *sink) write(p []byte) error {
	if _, err := s.submission.Write(p); err != nil {
		return fmt.Errorf("%w: %w", errWrite, err)
	}
	return nil
}

// fieldEnd gives the length of the first field of b, with its continuation lines.
func fieldEnd(b []byte) int {
	for i := 0; ; {
		j := bytes.IndexByte(b[i:], '\n')
		if j < 0 {
			return len(b)
		}
		if i += j + 1; i == len(b) || b[i] != ' ' && b[i] != '\t' {
			return i
		}
	}
}

// isField tells whether field has this name, which is in lower case.
func isField(field []byte, name string) bool {
	if len(field) <= len(name) || field[0]|0x20 != name[0] {
		return false
	}
	found, rest := field[:len(name)], field[len(name):]
	return bytes.EqualFold(found, []byte(name)) && bytes.HasPrefix(bytes.TrimLeft(rest, " \t"), []byte(":"))
}

// startsWithField tells whether b begins with the name of a field and a colon (RFC 5322 section 2.2).
func startsWithField(b []byte) bool {
	name, _, found := bytes.Cut(b[:fieldEnd(b)], []byte(":"))
	name = bytes.TrimRight(name, " \t")
	if !found || len(name) == 0 {
		return false
	}
	for _, c := range name {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

// messageID gives the value of a Message-ID field without brackets, within printable ASCII and maxMessageID.
func messageID(field []byte) string {
	_, value, _ := bytes.Cut(field, []byte(":"))
	value = bytes.TrimSpace(value)
	value = bytes.TrimSuffix(bytes.TrimPrefix(value, []byte("<")), []byte(">"))
	value = value[:min(len(value), maxMessageID)]
	for _, c := range value {
		if c <= ' ' || c > '~' {
			return string(bytes.Map(printable, value))
		}
	}
	return string(value)
}
