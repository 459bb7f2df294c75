package message

import (
	"bytes"
	"strings"
)

// Span is the bytes [From, To) of a message.
type Span struct{ From, To int }

// Len is the number of bytes.
func (s Span) Len() int { return s.To - s.From }

// Limits bound what Parse does with hostile bytes. What lies beyond a limit is still covered by the spans, but not taken
// apart. A zero field means the value in DefaultLimits.
type Limits struct {
	// Depth is how deep parts may lie in parts, Parts how many there may be in all, Fields how many fields one header.
	Depth, Parts, Fields int
}

// DefaultLimits are far beyond what mail programs make.
var DefaultLimits = Limits{Depth: 50, Parts: 10000, Fields: 10000}

// Kind is what is wrong with a message.
type Kind string

// The defects that Parse and the readers of fields find.
const (
	// NotAField is a line in a header that is neither a field nor a continuation; the header goes on.
	NotAField Kind = "a line of the header is no field"
	// NoHeaderEnd: the header ends at a boundary or at the end of all, without the empty line (RFC 5322 section 2.1).
	NoHeaderEnd Kind = "no empty line behind the header"
	// BadContentType: the field does not follow RFC 2045 section 5.1; text/plain was assumed.
	BadContentType Kind = "malformed Content-Type"
	// NoBoundary: a multipart without a boundary parameter (RFC 2046 section 5.1.1); it was not taken apart.
	NoBoundary Kind = "multipart without a boundary"
	// NoParts: a multipart in which its boundary never stands.
	NoParts Kind = "multipart without parts"
	// NotClosed: a multipart without its closing boundary.
	NotClosed Kind = "multipart without an end"
	// BadEncoding: a transfer encoding that is unknown, or one that multiparts and messages must not have (RFC 2045
	// section 6.4).
	BadEncoding Kind = "bad Content-Transfer-Encoding"
	// TooDeep, TooManyParts, TooManyFields: a limit was reached.
	TooDeep       Kind = "parts too deep in parts"
	TooManyParts  Kind = "too many parts"
	TooManyFields Kind = "too many header fields"
)

// Defect is something wrong, and the offset of the byte where it was seen.
type Defect struct {
	Kind   Kind
	Offset int
}

// Part is a message or a body part (RFC 2045, RFC 2046). Its bytes are a header, an empty line and a body.
type Part struct {
	// Header is the fields with their line ends, without the empty line behind them. Body is what is behind that line,
	// without the line end that belongs to the boundary after it.
	Header, Body Span
	Fields       []Field
	// Type is the media type, in lower case, with its parameters: "text/plain" when the field is missing or malformed, or
	// "message/rfc822" in a multipart/digest.
	Type Value
	// Encoding is the transfer encoding in lower case, "7bit" when the field is missing.
	Encoding string
	// Lines counts the line ends of the body.
	Lines int
	// Parts are the body parts of a multipart, or the one message in a message/rfc822.
	Parts []*Part
}

// Field gives the first field of a name, in any case, and whether there is one.
func (p *Part) Field(name string) (Field, bool) {
	for _, f := range p.Fields {
		if f.Is(name) {
			return f, true
		}
	}
	return Field{}, false
}

// IsMultipart tells whether the part was taken apart as a multipart.
func (p *Part) IsMultipart() bool { return strings.HasPrefix(p.Type.Main, "multipart/") }

// Message is a message taken apart. It shares the bytes that it was made from.
type Message struct {
	Bytes []byte
	*Part
	Defects []Defect
}

// Parse takes a message apart. It never fails: what cannot be understood becomes a defect and is covered by the spans
// around it. Line ends may be CRLF, LF or mixed. The time it takes grows with the length and the depth of the message.
func Parse(b []byte, limits Limits) *Message {
	if limits.Depth == 0 {
		limits.Depth = DefaultLimits.Depth
	}
	if limits.Parts == 0 {
		limits.Parts = DefaultLimits.Parts
	}
	if limits.Fields == 0 {
		limits.Fields = DefaultLimits.Fields
	}
	p := &partParser{m: &Message{Bytes: b}, limits: limits}
	p.m.Part, _ = p.part(0, "text/plain", 0)
	return p.m
}

type partParser struct {
	m      *Message
	limits Limits
	parts  int
	// open are the boundaries of the multiparts around.
	open []string
}

func (p *partParser) defect(k Kind, offset int) {
	// One of a kind for each thousand bytes of message is plenty.
	if len(p.m.Defects) < 100+len(p.m.Bytes)/1000 {
		p.m.Defects = append(p.m.Defects, Defect{k, offset})
	}
}

// stop is a boundary line that ended something: at which it starts, next where the line after it starts, level which of
// the open boundaries it is (-1: the message ends instead), closing whether it is the last of its multipart.
type stop struct {
	at, next, level int
	closing         bool
}

// boundary looks whether a boundary line starts at i.
func (p *partParser) boundary(i int) (stop, bool) {
	b := p.m.Bytes[i:]
	if len(p.open) == 0 || len(b) < 2 || b[0] != '-' || b[1] != '-' {
		return stop{}, false
	}
	end := bytes.IndexByte(b, '\n')
	next := i + end + 1
	if end < 0 {
		end, next = len(b), len(p.m.Bytes)
	}
	line := bytes.TrimRight(b[2:end], " \t\r")
	for level := len(p.open) - 1; level >= 0; level-- {
		rest, ok := bytes.CutPrefix(line, []byte(p.open[level]))
		if ok && (len(rest) == 0 || string(rest) == "--") {
			return stop{i, next, level, len(rest) > 0}, true
		}
	}
	return stop{}, false
}

// find looks for the next boundary line from i on, which is the start of a line.
func (p *partParser) find(i int) stop {
	b := p.m.Bytes
	for len(p.open) > 0 && i < len(b) {
		if s, ok := p.boundary(i); ok {
			return s
		}
		j := bytes.Index(b[i:], []byte("\n--"))
		if j < 0 {
			break
		}
		i += j + 1
	}
	return stop{at: len(b), next: len(b), level: -1}
}

// before gives the end of what a boundary line at s.at ends, which began at from: the line end before it is the boundary's.
func (p *partParser) before(s stop, from int) int {
	end := s.at
	if s.level >= 0 {
		if end > from && p.m.Bytes[end-1] == '\n' {
			end--
		}
		if end > from && p.m.Bytes[end-1] == '\r' {
			end--
		}
	}
	return max(end, from)
}

// part takes a part apart that starts at i and gives what ended it.
func (p *partParser) part(i int, assumed string, depth int) (*Part, stop) {
	p.parts++
	part := &Part{}
	s, ended := p.header(part, i)
	p.contentType(part, assumed)
	if f, ok := part.Field("Content-Transfer-Encoding"); ok {
		part.Encoding = strings.ToLower(stripComments(f.Value()))
	}
	if part.Encoding == "" {
		part.Encoding = "7bit"
	}
	if !ended {
		s = p.body(part, depth)
	}
	part.Body.To = max(p.before(s, part.Body.From), part.Body.From)
	if n := len(part.Parts); n > 0 {
		// The empty line behind a header may be the line end before a boundary as well.
		part.Body.To = max(part.Body.To, part.Parts[n-1].Body.To)
	}
	part.Lines = bytes.Count(p.m.Bytes[part.Body.From:part.Body.To], []byte("\n"))
	return part, s
}

// header reads the fields of a part that starts at i; ended tells that the part ends with its header.
func (p *partParser) header(part *Part, i int) (s stop, ended bool) {
	b := p.m.Bytes
	start := i
	part.Header.From = i
	finish := func(end, body int) {
		part.Header.To, part.Body = end, Span{body, body}
		for _, f := range Fields(b[start:end]) {
			if len(part.Fields) == p.limits.Fields {
				p.defect(TooManyFields, start+f.Offset)
				break
			}
			f.Offset += start
			if f.Name == nil {
				p.defect(NotAField, f.Offset)
			}
			part.Fields = append(part.Fields, f)
		}
	}
	for i < len(b) {
		if b[i] == '\n' {
			finish(i, i+1)
			return stop{}, false
		}
		if b[i] == '\r' && i+1 < len(b) && b[i+1] == '\n' {
			finish(i, i+2)
			return stop{}, false
		}
		if s, ok := p.boundary(i); ok {
			end := p.before(s, start)
			finish(end, end)
			p.defect(NoHeaderEnd, i)
			return s, true
		}
		j := bytes.IndexByte(b[i:], '\n')
		if j < 0 {
			break
		}
		i += j + 1
	}
	finish(len(b), len(b))
	if len(b) > start {
		p.defect(NoHeaderEnd, len(b))
	}
	return stop{at: len(b), next: len(b), level: -1}, true
}

func (p *partParser) contentType(part *Part, assumed string) {
	part.Type = Value{Main: assumed}
	f, ok := part.Field("Content-Type")
	if !ok {
		return
	}
	v := ParseValue(f.Value())
	kind, sub, ok := strings.Cut(v.Main, "/")
	if !ok || !isToken(kind) || !isToken(sub) {
		p.defect(BadContentType, f.Offset)
		part.Type.Main = "text/plain"
		return
	}
	part.Type = v
}

// body finds the end of a part's body and takes apart what is in it.
func (p *partParser) body(part *Part, depth int) stop {
	multipart, inner := strings.HasPrefix(part.Type.Main, "multipart/"), part.Type.Main == "message/rfc822" || part.Type.Main == "message/global"
	if !multipart && !inner {
		return p.find(part.Body.From)
	}
	switch part.Encoding {
	case "7bit", "8bit", "binary":
	default:
		p.defect(BadEncoding, part.Header.From)
		if inner {
			return p.find(part.Body.From)
		}
	}
	if depth >= p.limits.Depth {
		p.defect(TooDeep, part.Body.From)
		return p.find(part.Body.From)
	}
	if inner {
		if p.parts >= p.limits.Parts {
			p.defect(TooManyParts, part.Body.From)
			return p.find(part.Body.From)
		}
		child, s := p.part(part.Body.From, "text/plain", depth+1)
		part.Parts = []*Part{child}
		return s
	}
	boundary, _ := part.Type.Param("boundary")
	boundary = strings.TrimRight(boundary, " \t")
	if boundary == "" {
		p.defect(NoBoundary, part.Header.From)
		return p.find(part.Body.From)
	}
	return p.multipart(part, boundary, depth)
}

func (p *partParser) multipart(part *Part, boundary string, depth int) stop {
	level := len(p.open)
	p.open = append(p.open, boundary)
	assumed := "text/plain"
	if part.Type.Main == "multipart/digest" {
		assumed = "message/rfc822"
	}
	s := p.find(part.Body.From)
	if s.level != level {
		p.defect(NoParts, part.Body.From)
	}
	for s.level == level && !s.closing {
		if p.parts >= p.limits.Parts {
			p.defect(TooManyParts, s.at)
			// The rest is passed over up to what ends this multipart.
			for s.level == level && !s.closing {
				s = p.find(s.next)
			}
			break
		}
		var child *Part
		child, s = p.part(s.next, assumed, depth+1)
		part.Parts = append(part.Parts, child)
	}
	p.open = p.open[:level]
	switch {
	case s.level == level:
		// The epilogue belongs to the body.
		return p.find(s.next)
	case len(part.Parts) > 0:
		p.defect(NotClosed, s.at)
	}
	return s
}
