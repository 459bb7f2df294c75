// Package probe is a station for operators: it asks a mail server from outside what it offers, who can log in and for whom it relays, and reads
// what others captured of such a talk. It never sends DATA. It must not know whether the server is Indigo.
package probe

import (
	"encoding/base64"
	"strings"
	"unicode"

	"github.com/indigomail/indigo/internal/auth/sasl"
)

// Line is a line of a dialogue with what it means.
type Line struct {
	// From is "C" for the client's, "S" for the server's, "" for what is no part of it.
	From string `json:"from,omitempty"`
	Text string `json:"text"`
	// Means is for people, "" where there is nothing to say.
	Means string `json:"means,omitempty"`
	// Message is what a line has of SASL.
	Message *sasl.Message `json:"message,omitempty"`

	// secret is what Masked takes out of Text.
	secret string
}

// Masked gives the line without passwords and what they can be guessed with.
func (l Line) Masked() Line {
	if l.secret != "" {
		l.Text = strings.ReplaceAll(l.Text, l.secret, "(hidden)")
	}
	if l.Message != nil {
		m := *l.Message
		m.Parts = nil
		for _, p := range l.Message.Parts {
			p.Text = p.Shown()
			m.Parts = append(m.Parts, p)
		}
		l.Message = &m
	}
	return l
}

// Reader explains the lines of a dialogue in their order. Its zero value is ready.
type Reader struct {
	mechanism string
	// step counts the client's messages of the exchange.
	step int
	// within is set from AUTH to the reply that ends the exchange.
	within bool
}

// prefixes are what programs put before a line: our own and the wiki's, those of swaks, and of people.
var prefixes = [...]struct{ text, from string }{
	{"C: ", "C"}, {"S: ", "S"}, {"c: ", "C"}, {"s: ", "S"}, {"C:", "C"}, {"S:", "S"}, {" -> ", "C"}, {"<-  ", "S"}, {" ~> ", "C"}, {"<~  ", "S"}, {"<** ", "S"}, {"<~* ", "S"},
	{"--> ", "C"}, {"<-- ", "S"}, {">>> ", "C"}, {"<<< ", "S"}, {"> ", "C"}, {"< ", "S"},
}

// Captured explains a line of a captured dialogue: who said it is told by a prefix (C: and S:, or those of swaks), or else by its form.
func (r *Reader) Captured(line string) Line {
	line = strings.TrimRight(line, "\r\n")
	for _, p := range prefixes {
		if text, ok := strings.CutPrefix(line, p.text); ok {
			return r.Line(p.from, text)
		}
	}
	text := strings.TrimLeft(line, " \t")
	switch {
	case isReply(text), text == "+", strings.HasPrefix(text, "+ "), strings.HasPrefix(text, "+OK"), strings.HasPrefix(text, "-ERR"), strings.HasPrefix(text, "* "), taggedReply(text):
		return r.Line("S", text)
	case command(text) != "":
		return r.Line("C", text)
	case r.within:
		return r.Line("C", strings.TrimSpace(text))
	}
	if _, ok := decode(text); ok && text != "" && !strings.Contains(text, " ") && len(text) >= 8 {
		return r.Line("", text)
	}
	token := strings.TrimSpace(text)
	if m, ok := sasl.ExplainToken(token); ok {
		return Line{Text: token, Message: &m, secret: token}
	}
	return Line{Text: line}
}

// isReply tells whether a line is a reply of SMTP.
func isReply(s string) bool {
	if len(s) < 3 || s[0] < '2' || s[0] > '5' || s[1] < '0' || s[1] > '9' || s[2] < '0' || s[2] > '9' {
		return false
	}
	return len(s) == 3 || s[3] == ' ' || s[3] == '-'
}

// taggedReply tells whether a line is the reply of IMAP to a command.
func taggedReply(s string) bool {
	words := strings.Fields(s)
	return len(words) > 1 && (words[1] == "OK" || words[1] == "NO" || words[1] == "BAD")
}

// command gives a client's command in upper case, without IMAP's tag; "" for what is none.
func command(s string) string {
	words := strings.Fields(s)
	for _, word := range words[:min(2, len(words))] {
		switch v := strings.ToUpper(word); v {
		case "AUTH", "AUTHENTICATE", "EHLO", "HELO", "LHLO", "STARTTLS", "STLS", "CAPA", "CAPABILITY", "USER", "PASS", "APOP", "QUIT", "LOGOUT", "RSET", "NOOP", "DATA":
			return v
		case "LOGIN":
			// IMAP's; the mechanism stands behind AUTH.
			if len(words) > 2 {
				return v
			}
		case "MAIL", "RCPT":
			return v
		}
	}
	return ""
}

// decode reads base64 as SASL's profiles have it: "=" is empty.
func decode(s string) ([]byte, bool) {
	if s == "=" {
		return []byte{}, true
	}
	b, err := base64.StdEncoding.DecodeString(s)
	return b, err == nil
}

// Line explains a line that the client ("C"), the server ("S") or nobody knows who ("") said.
func (r *Reader) Line(from, text string) Line {
	switch from {
	case "S":
		return r.server(text)
	case "C":
		return r.client(text)
	}
	l := Line{Text: text}
	if raw, ok := decode(text); ok {
		m := sasl.Explain("", false, -1, raw)
		l.Message = &m
		if m.Secret() {
			l.secret = text
		}
	}
	return l
}

func (r *Reader) client(text string) Line {
	l := Line{From: "C", Text: text}
	if c := command(text); c != "" && !(r.within && c != "AUTH" && c != "AUTHENTICATE") {
		return r.command(l, c)
	}
	if !r.within {
		l.Message = nil
		if raw, ok := decode(text); ok && len(text) >= 8 && !strings.ContainsAny(text, " :") {
			m := sasl.Explain("", false, -1, raw)
			l.Message = &m
			if m.Secret() {
				l.secret = text
			}
		}
		return l
	}
	if text == "*" {
		l.Means = "the client gives the exchange up"
		return l
	}
	return r.respond(l, text)
}

// respond explains what the client says in an exchange.
func (r *Reader) respond(l Line, text string) Line {
	raw, ok := decode(text)
	if !ok {
		l.Means, l.secret = "not base64: the server will refuse it (501 5.5.2)", text
		return l
	}
	m := sasl.Explain(r.mechanism, false, r.step, raw)
	l.Message = &m
	if r.step++; m.Secret() && text != "" && text != "=" {
		l.secret = text
	}
	return l
}

func (r *Reader) command(l Line, name string) Line {
	words := strings.Fields(l.Text)
	at := 0
	for i, w := range words {
		if strings.EqualFold(w, name) {
			at = i
			break
		}
	}
	rest := words[at+1:]
	switch name {
	case "AUTH", "AUTHENTICATE":
		if len(rest) == 0 {
			return l
		}
		r.mechanism, r.step, r.within = strings.ToUpper(rest[0]), 0, true
		l.Means = "log in by " + r.mechanism
		if sasl.NeedsTLS(r.mechanism) {
			l.Means += ", which shows the password to whoever listens, unless TLS is around it"
		}
		if len(rest) > 1 {
			l = r.respond(l, rest[1])
		}
	case "PASS":
		if len(rest) > 0 {
			l.secret = behind(l.Text, at+1)
		}
		l.Means = "the password as it is"
	case "APOP":
		if len(rest) > 1 {
			l.secret = rest[len(rest)-1]
		}
		l.Means = "the greeting's sum with the password: passwords can be tried on it"
	case "LOGIN":
		if len(rest) > 1 {
			l.secret = behind(l.Text, at+2)
		}
		l.Means = "name and password as they are"
	case "STARTTLS", "STLS":
		l.Means = "ask for TLS"
	}
	return l
}

// behind gives what stands behind the first n words of text, blanks and all: a password may have some.
func behind(text string, n int) string {
	for range n {
		text = strings.TrimLeftFunc(text, unicode.IsSpace)
		text = text[len(text)-len(strings.TrimLeftFunc(text, func(r rune) bool { return !unicode.IsSpace(r) })):]
	}
	return strings.TrimSpace(text)
}

func (r *Reader) server(text string) Line {
	l := Line{From: "S", Text: text}
	challenge, is := strings.CutPrefix(text, "334")
	if !is {
		if challenge, is = strings.CutPrefix(text, "+"); is && challenge != "" && challenge[0] != ' ' {
			is = false
		}
	} else if challenge != "" && challenge[0] != ' ' {
		is = false
	}
	if is {
		blob := strings.TrimSpace(challenge)
		raw, ok := decode(blob)
		if !ok {
			l.Means = "a challenge that is not base64"
			return l
		}
		m := sasl.Explain(r.mechanism, true, r.step, raw)
		l.Message = &m
		if m.Secret() && blob != "" {
			l.secret = blob
		}
		return l
	}
	l.Means = Meaning(text)
	if r.within && (isReply(text) || taggedReply(text) || strings.HasPrefix(text, "+OK") || strings.HasPrefix(text, "-ERR")) {
		r.within = false
	}
	return l
}
