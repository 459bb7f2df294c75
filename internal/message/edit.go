package message

import (
	"errors"
	"fmt"
	"io"
	"net/mail"
	"slices"
	"strings"
	"time"
)

// Edit changes the header of a message and leaves every other byte as it is.
type Edit struct {
	bytes       []byte
	header      Span
	top, bottom []byte
	removed     []Span
}

// NewEdit begins an edit of the message with these bytes.
func NewEdit(b []byte) *Edit {
	return &Edit{bytes: b, header: Span{0, HeaderEnd(b)}}
}

// Insert puts a field, made by NewField, in front of the header, and of what was inserted before.
func (e *Edit) Insert(field []byte) { e.top = append(slices.Clone(field), e.top...) }

// Append puts a field behind the header's last.
func (e *Edit) Append(field []byte) { e.bottom = append(e.bottom, field...) }

// Remove takes a field away, which Fields or Parse found in the message.
func (e *Edit) Remove(f Field) {
	if s := (Span{f.Offset, f.Offset + len(f.Raw)}); s.From >= 0 && s.To <= e.header.To && s.Len() > 0 {
		e.removed = append(e.removed, s)
	}
}

// Pieces gives the message after the edit; what was not changed is shared with the message before.
func (e *Edit) Pieces() [][]byte {
	pieces := [][]byte{e.top}
	slices.SortFunc(e.removed, func(a, b Span) int { return a.From - b.From })
	at := 0
	for _, s := range e.removed {
		if s.From >= at {
			pieces = append(pieces, e.bytes[at:s.From])
			at = s.To
		}
	}
	rest := e.bytes[at:]
	if len(e.bottom) > 0 {
		last := e.bytes[at:e.header.To]
		pieces = append(pieces, last)
		if len(last) > 0 && last[len(last)-1] != '\n' {
			// A header that the message's end cut short.
			pieces = append(pieces, []byte("\r\n"))
		}
		pieces = append(pieces, e.bottom)
		rest = e.bytes[e.header.To:]
	}
	pieces = append(pieces, rest)
	return slices.DeleteFunc(pieces, func(p []byte) bool { return len(p) == 0 })
}

// WriteTo writes the message after the edit.
func (e *Edit) WriteTo(w io.Writer) (n int64, err error) {
	for _, p := range e.Pieces() {
		m, err := w.Write(p)
		n += int64(m)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// foldAt is where lines should end (RFC 5322 section 2.1.1), lineLimit where they must.
const (
	foldAt    = 78
	lineLimit = 998
)

// NewField makes a field with its CRLF, folded at white space where a line would be longer than 78 bytes. It fails for a
// name that is none, for a value with CR, LF or NUL (which could forge another field), and when there is no place to fold
// within 998 bytes.
func NewField(name, value string) ([]byte, error) {
	if name == "" || strings.IndexFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ':' }) >= 0 {
		return nil, fmt.Errorf("header field name %q: must be printable ASCII without a colon", name)
	}
	if strings.ContainsAny(value, "\r\n\x00") {
		return nil, fmt.Errorf("header field %s: the value has a line end or NUL in it", name)
	}
	b := append([]byte(name), ':')
	line := len(b)
	for word := range strings.SplitAfterSeq(" "+value, " ") {
		// A word takes the blank before it with it.
		word = strings.TrimSuffix(word, " ")
		if line > len(name)+1 && line+1+len(word) > foldAt && word != "" {
			b = append(b, "\r\n"...)
			line = 0
		}
		if word != "" || line > len(name)+1 {
			b = append(append(b, ' '), word...)
			line += 1 + len(word)
		}
		if line > lineLimit {
			return nil, fmt.Errorf("header field %s: a word of %d bytes cannot be folded", name, len(word))
		}
	}
	return append(b, "\r\n"...), nil
}

// ParseDate reads the date of a Date or Received field (RFC 5322 section 3.3), with the obsolete forms, and some that mail
// programs make although no standard has them.
func ParseDate(s string) (time.Time, error) {
	s = stripComments(s)
	if t, err := mail.ParseDate(s); err == nil {
		return t, nil
	}
	s = strings.Join(strings.Fields(s), " ")
	for _, layout := range []string{
		"Mon, 2 Jan 2006 15:04:05", "2 Jan 2006 15:04:05", "Mon, 2 Jan 2006 15:04", "Mon Jan 2 15:04:05 2006", "Mon Jan 2 15:04:05 -0700 2006",
		"Mon Jan 2 15:04:05 MST 2006", "Mon, 2 Jan 06 15:04:05 -0700", "Mon 2 Jan 2006 15:04:05 -0700", "Mon, 2-Jan-06 15:04:05 MST",
		"Monday, 2 January 2006 15:04:05 -0700", time.RFC3339,
	} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errors.New("not a date of RFC 5322: " + s)
}
