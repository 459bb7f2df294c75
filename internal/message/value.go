package message

import (
	"strconv"
	"strings"
)

// Value is a field's value with parameters: Content-Type, Content-Disposition (RFC 2045 section 5.1, RFC 2183).
type Value struct {
	// Main is what stands before the first semicolon, in lower case.
	Main   string
	Params []Param
}

// Param is one parameter: its name in lower case, and its value with RFC 2231's continuations and character sets undone.
type Param struct{ Name, Value string }

// Param gives the first parameter of a name, and whether there is one.
func (v Value) Param(name string) (string, bool) {
	for _, p := range v.Params {
		if p.Name == name {
			return p.Value, true
		}
	}
	return "", false
}

// maxParams bounds the parameters of one field.
const maxParams = 200

// ParseValue reads a value with parameters, as much as can be understood of it.
func ParseValue(s string) Value {
	r := valueReader{s: s}
	v := Value{Main: strings.ToLower(strings.TrimSpace(stripComments(r.until(";"))))}
	var raw []Param
	for r.i < len(r.s) && len(raw) < maxParams {
		r.i++ // the semicolon
		r.space()
		name := strings.ToLower(strings.TrimSpace(r.until("=;")))
		if r.i >= len(r.s) || r.s[r.i] != '=' {
			continue
		}
		r.i++
		r.space()
		value := r.value()
		r.until(";")
		if name != "" {
			raw = append(raw, Param{name, value})
		}
	}
	v.Params = joinParams(raw)
	return v
}

// joinParams puts RFC 2231's pieces together: name*0, name*1, … and name*0*, name*1*, … or name*.
func joinParams(raw []Param) []Param {
	var params []Param
	type piece struct {
		text    string
		encoded bool
	}
	pieces := map[string]map[int]piece{}
	for _, p := range raw {
		name, encoded := strings.CutSuffix(p.Name, "*")
		base, index, numbered := strings.Cut(name, "*")
		n, err := strconv.Atoi(index)
		if numbered && (err != nil || n < 0 || n >= maxParams) || !numbered && !encoded {
			params = append(params, p)
			continue
		}
		if pieces[base] == nil {
			pieces[base] = map[int]piece{}
			params = append(params, Param{Name: base, Value: "*"}) // keeps the place
		}
		if _, again := pieces[base][n]; !again {
			pieces[base][n] = piece{p.Value, encoded}
		}
	}
	for i, p := range params {
		parts, ok := pieces[p.Name]
		if !ok || p.Value != "*" {
			continue
		}
		var text strings.Builder
		charset := ""
		for n := 0; ; n++ {
			part, ok := parts[n]
			if !ok {
				break
			}
			if !part.encoded {
				text.WriteString(part.text)
				continue
			}
			if n == 0 {
				if fields := strings.SplitN(part.text, "'", 3); len(fields) == 3 {
					charset, part.text = fields[0], fields[2]
				}
			}
			text.WriteString(percentDecode(part.text))
		}
		params[i].Value = toUTF8(charset, text.String())
	}
	return params
}

func percentDecode(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// valueReader goes through a value and knows quoted strings and comments.
type valueReader struct {
	s string
	i int
}

func (r *valueReader) space() {
	for r.i < len(r.s) && (r.s[r.i] == ' ' || r.s[r.i] == '\t') {
		r.i++
	}
}

// until goes on to the first of the bytes outside quotes and comments, and gives what it passed.
func (r *valueReader) until(stops string) string {
	from := r.i
	for r.i < len(r.s) && strings.IndexByte(stops, r.s[r.i]) < 0 {
		switch r.s[r.i] {
		case '"':
			r.quoted()
		case '(':
			r.comment()
		default:
			r.i++
		}
	}
	return r.s[from:r.i]
}

// value reads a token or a quoted string.
func (r *valueReader) value() string {
	if r.i < len(r.s) && r.s[r.i] == '"' {
		return r.quoted()
	}
	from := r.i
	for r.i < len(r.s) && strings.IndexByte("; \t(", r.s[r.i]) < 0 {
		r.i++
	}
	return r.s[from:r.i]
}

func (r *valueReader) quoted() string {
	var b strings.Builder
	for r.i++; r.i < len(r.s) && r.s[r.i] != '"'; r.i++ {
		if r.s[r.i] == '\\' && r.i+1 < len(r.s) {
			r.i++
		}
		b.WriteByte(r.s[r.i])
	}
	r.i = min(r.i+1, len(r.s))
	return b.String()
}

func (r *valueReader) comment() {
	depth := 0
	for ; r.i < len(r.s); r.i++ {
		switch r.s[r.i] {
		case '\\':
			r.i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				r.i++
				return
			}
		}
	}
	r.i = min(r.i, len(r.s))
}

// stripComments removes comments (RFC 5322 section 3.2.2) and the space around.
func stripComments(s string) string {
	if !strings.Contains(s, "(") {
		return strings.TrimSpace(s)
	}
	var b strings.Builder
	r := valueReader{s: s}
	for r.i < len(r.s) {
		switch r.s[r.i] {
		case '(':
			r.comment()
		case '"':
			from := r.i
			r.quoted()
			b.WriteString(r.s[from:r.i])
		default:
			b.WriteByte(r.s[r.i])
			r.i++
		}
	}
	return strings.TrimSpace(b.String())
}

// isToken tells whether s is a token of RFC 2045 section 5.1.
func isToken(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`()<>@,;:\"/[]?=`, c) >= 0 {
			return false
		}
	}
	return s != ""
}
