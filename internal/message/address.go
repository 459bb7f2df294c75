package message

import (
	"strings"
)

// Mailbox is one entry of an address field (RFC 5322 section 3.4). A group comes as its start, with only Group set, its
// members, and its end, with nothing set, which is how IMAP's ENVELOPE tells it (RFC 9051 section 7.5.2).
type Mailbox struct {
	// Name is the display name, as written but without quotes; see DecodeText.
	Name string
	// Local and Domain are the address; Domain is empty when there is none.
	Local, Domain string
	// Group is the name of the group that starts here.
	Group string
}

// IsGroupEnd tells whether this entry ends a group.
func (m Mailbox) IsGroupEnd() bool { return m == Mailbox{} }

// maxMailboxes bounds the entries of one field.
const maxMailboxes = 10000

// ParseAddresses reads a list of mailboxes and groups. What is malformed is read as well as can be; ok is false then.
func ParseAddresses(s string) (list []Mailbox, ok bool) {
	r := addressReader{valueReader: valueReader{s: s}}
	return r.list()
}

// ParseUnqualified is ParseAddresses for what people and programs of this host write: a local part alone is an address too,
// with an empty Domain.
func ParseUnqualified(s string) (list []Mailbox, ok bool) {
	r := addressReader{valueReader: valueReader{s: s}, unqualified: true}
	return r.list()
}

func (r *addressReader) list() (list []Mailbox, ok bool) {
	ok = true
	inGroup := false
	for len(list) < maxMailboxes {
		r.cfws()
		if r.i >= len(r.s) {
			break
		}
		switch r.s[r.i] {
		case ',':
			r.i++
			continue
		case ';':
			r.i++
			if inGroup {
				list = append(list, Mailbox{})
			} else {
				ok = false
			}
			inGroup = false
			continue
		}
		m, group, good := r.entry()
		ok = ok && good
		switch {
		case group && inGroup:
			ok = false
		case group:
			inGroup = true
			list = append(list, Mailbox{Group: m.Name})
		case m != Mailbox{}:
			list = append(list, m)
		}
	}
	if inGroup {
		list, ok = append(list, Mailbox{}), false
	}
	return list, ok && r.i >= len(r.s)
}

// addressReader reads words: atoms, quoted strings, and the specials between them.
type addressReader struct {
	valueReader
	// comment is the last one that was passed over: an old form of the display name.
	comment string
	// unqualified allows a local part without a domain.
	unqualified bool
}

// cfws passes over comments and white space (RFC 5322 section 3.2.2).
func (r *addressReader) cfws() {
	for r.i < len(r.s) {
		switch c := r.s[r.i]; {
		case c == ' ' || c == '\t' || c == '\r' || c == '\n':
			r.i++
		case c == '(':
			from := r.i
			r.valueReader.comment()
			r.comment = strings.TrimSpace(strings.TrimSuffix(strings.TrimPrefix(r.s[from:r.i], "("), ")"))
		default:
			return
		}
	}
}

const specials = "()<>[]:;@\\,\""

// entry reads one mailbox or the start of a group.
func (r *addressReader) entry() (m Mailbox, group, ok bool) {
	ok = true
	r.comment = ""
	// The words up to the first special tell a name or a local part; which, the special says.
	var words, joined strings.Builder
	gap := false
	for {
		before := r.i
		r.cfws()
		gap = gap || r.i > before
		if r.i >= len(r.s) {
			break
		}
		var word string
		if c := r.s[r.i]; c == '"' {
			word = r.quoted()
		} else if strings.IndexByte(specials, c) >= 0 {
			break
		} else {
			from := r.i
			for r.i < len(r.s) && r.s[r.i] > ' ' && strings.IndexByte(specials, r.s[r.i]) < 0 {
				r.i++
			}
			if r.i == from {
				// A control character stands for itself.
				r.i++
			}
			word = r.s[from:r.i]
		}
		if gap && words.Len() > 0 {
			words.WriteByte(' ')
		}
		gap = false
		words.WriteString(word)
		joined.WriteString(word)
	}
	// Two words are no local part.
	alone := joined.Len() == 0 || r.unqualified && joined.Len() == words.Len()
	if r.i >= len(r.s) {
		return Mailbox{Name: r.comment, Local: joined.String()}, false, alone
	}
	switch r.s[r.i] {
	case ':':
		r.i++
		return Mailbox{Name: words.String()}, true, true
	case '<':
		r.i++
		m, ok = r.route()
		m.Name = words.String()
		return m, false, ok
	case '@':
		r.i++
		m.Local = joined.String()
		m.Domain, ok = r.domain()
		r.cfws()
		m.Name = r.comment
		if r.i < len(r.s) && r.s[r.i] == '<' {
			// "a@b <a@b>": an unquoted address as display name.
			r.i++
			name := m.Local + "@" + m.Domain
			m, _ = r.route()
			m.Name = name
			return m, false, false
		}
		return m, false, ok && m.Local != ""
	case ',', ';':
		return Mailbox{Name: r.comment, Local: joined.String()}, false, alone
	}
	// Any other special has no place here.
	r.i++
	return Mailbox{Local: joined.String()}, false, false
}

// route reads what stands in angle brackets; an old source route is passed over.
func (r *addressReader) route() (m Mailbox, ok bool) {
	ok = true
	r.cfws()
	if r.i < len(r.s) && r.s[r.i] == '@' {
		r.until(":>")
		if r.i < len(r.s) && r.s[r.i] == ':' {
			r.i++
		}
	}
	var local strings.Builder
	for {
		r.cfws()
		if r.i >= len(r.s) {
			return Mailbox{Local: local.String()}, false
		}
		switch c := r.s[r.i]; {
		case c == '>':
			r.i++
			m.Local = local.String()
			return m, r.unqualified && m.Local != ""
		case c == '@':
			r.i++
			m.Local = local.String()
			if m.Domain, ok = r.domain(); m.Local == "" {
				ok = false
			}
			r.cfws()
			if r.i < len(r.s) && r.s[r.i] == '>' {
				r.i++
				return m, ok
			}
			r.until(">,")
			if r.i < len(r.s) && r.s[r.i] == '>' {
				r.i++
			}
			return m, false
		case c == '"':
			local.WriteString(r.quoted())
		default:
			local.WriteByte(c)
			r.i++
		}
	}
}

// domain reads a domain or an address literal.
func (r *addressReader) domain() (string, bool) {
	var b strings.Builder
	for {
		r.cfws()
		if r.i >= len(r.s) {
			return b.String(), b.Len() > 0
		}
		c := r.s[r.i]
		if c == '[' && b.Len() == 0 {
			from := r.i
			r.until("]>,;")
			if r.i < len(r.s) && r.s[r.i] == ']' {
				r.i++
				return r.s[from:r.i], true
			}
			return r.s[from:r.i], false
		}
		if strings.IndexByte(specials, c) >= 0 {
			return b.String(), b.Len() > 0
		}
		b.WriteByte(c)
		r.i++
	}
}

// MessageIDs gives the message identifiers of a Message-ID, In-Reply-To or References field (RFC 5322 section 3.6.4), with
// their angle brackets.
func MessageIDs(s string) []string {
	var ids []string
	for len(ids) < maxMailboxes {
		from := strings.IndexByte(s, '<')
		if from < 0 {
			break
		}
		s = s[from:]
		to := strings.IndexByte(s, '>')
		if to < 0 {
			break
		}
		if id := s[:to+1]; len(id) > 2 && !strings.ContainsAny(id[1:], "< \t\r\n") {
			ids = append(ids, id)
		}
		s = s[to+1:]
	}
	return ids
}
