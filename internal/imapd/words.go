package imapd

import (
	"strconv"
	"strings"
)

// word is an atom, a quoted string, a literal or a parenthesis. Atoms keep their brackets, as in BODY.PEEK[HEADER]<0.10>.
type word struct {
	text   string
	quoted bool
}

// splitter takes a command apart, line by line between its literals.
type splitter struct {
	words []word
	total int
	bad   bool
}

func (p *splitter) tag() string {
	if len(p.words) > 0 && !p.words[0].quoted {
		return strings.Map(func(r rune) rune {
			if r <= ' ' || r >= 0x7f || strings.ContainsRune(`(){%*"\+`, r) {
				return -1
			}
			return r
		}, p.words[0].text)
	}
	return ""
}

func (p *splitter) literal(b []byte) {
	p.words = append(p.words, word{string(b), true})
	p.total += len(b)
}

// split adds the words of a line; ok is false if the command is malformed.
func (p *splitter) split(s string) (words []word, ok bool) {
	for i := 0; i < len(s); {
		switch s[i] {
		case ' ':
			i++
		case '(', ')':
			p.words = append(p.words, word{text: s[i : i+1]})
			i++
		case '"':
			var b strings.Builder
			for i++; ; i++ {
				if i >= len(s) {
					p.bad = true
					break
				}
				if s[i] == '"' {
					i++
					break
				}
				if s[i] == '\\' && i+1 < len(s) {
					i++
				}
				b.WriteByte(s[i])
			}
			p.words = append(p.words, word{b.String(), true})
		default:
			start, depth := i, 0
			for ; i < len(s); i++ {
				if s[i] == '[' {
					depth++
				}
				if s[i] == ']' && depth > 0 {
					depth--
				}
				if depth == 0 && strings.IndexByte(" ()\"", s[i]) >= 0 {
					break
				}
			}
			if i == start {
				i++
			}
			p.words = append(p.words, word{text: s[start:i]})
		}
	}
	return p.words, !p.bad
}

// literalSize reads "{N}" or "{N+}" at a line's end.
func literalSize(line string) (size int, plus, ok bool) {
	open := strings.LastIndexByte(line, '{')
	if open < 0 || !strings.HasSuffix(line, "}") {
		return 0, false, false
	}
	text, plus := strings.CutSuffix(line[open+1:len(line)-1], "+")
	n, err := strconv.ParseUint(text, 10, 31)
	return int(n), plus, err == nil
}

// numbers reads a sequence set (RFC 3501 section 9), "*" being last, and tells whether a number is in it.
func numbers(set string, last uint32) (func(uint32) bool, bool) {
	type span struct{ lo, hi uint32 }
	var spans []span
	for part := range strings.SplitSeq(set, ",") {
		from, to, isRange := strings.Cut(part, ":")
		read := func(s string) (uint32, bool) {
			if s == "*" {
				return last, true
			}
			n, err := strconv.ParseUint(s, 10, 32)
			return uint32(n), err == nil && n > 0
		}
		lo, ok := read(from)
		hi := lo
		if isRange && ok {
			hi, ok = read(to)
		}
		if !ok || len(spans) > 10000 {
			return nil, false
		}
		spans = append(spans, span{min(lo, hi), max(lo, hi)})
	}
	return func(n uint32) bool {
		for _, s := range spans {
			if n >= s.lo && n <= s.hi {
				return true
			}
		}
		return false
	}, true
}
