package sasl

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/indigomail/indigo/internal/wire"
)

// Part is a piece of a message, for people. Secret tells that Text is a password, or something that passwords can be guessed with.
type Part struct {
	Name   string `json:"name"`
	Text   string `json:"text,omitempty"`
	Means  string `json:"means,omitempty"`
	Secret bool   `json:"secret,omitempty"`
}

// Shown gives the text, or a word in the place of a secret.
func (p Part) Shown() string {
	if p.Secret && p.Text != "" {
		return "(hidden)"
	}
	return p.Text
}

// Message is what a message was found to be.
type Message struct {
	// Mechanism is "" when the form does not tell.
	Mechanism string `json:"mechanism,omitempty"`
	// Kind says in words which message of the mechanism it is.
	Kind  string `json:"kind"`
	Parts []Part `json:"parts,omitempty"`
}

// Secret tells whether some part is secret.
func (m Message) Secret() bool {
	return slices.ContainsFunc(m.Parts, func(p Part) bool { return p.Secret })
}

// Explain tells what a message says. mechanism is in upper case, "" when it is not known: then the form must tell. step counts the client's
// messages of the exchange from 0, which only LOGIN needs, and is -1 when it is not known. challenge tells that the server sent it.
func Explain(mechanism string, challenge bool, step int, message []byte) Message {
	m := explain(mechanism, challenge, step, string(message))
	m.forTerminal()
	return m
}

// forTerminal is the one place that takes from all parts what a terminal would obey: names and meanings hold what was captured as much as
// texts do, and what is decoded (JSON, base64, =2C) can hold what the message did not.
func (m *Message) forTerminal() {
	for i, p := range m.Parts {
		m.Parts[i].Name, m.Parts[i].Text, m.Parts[i].Means = printable(p.Name), printable(p.Text), printable(p.Means)
	}
}

func explain(mechanism string, challenge bool, step int, s string) Message {
	if mechanism == "" {
		mechanism, challenge = guess(s, challenge)
	}
	m := Message{Mechanism: mechanism}
	unfit := func(want string) Message {
		m.Kind, m.Parts = "malformed", []Part{{Name: "text", Text: s, Means: want, Secret: !challenge}}
		return m
	}
	switch {
	case s == "":
		m.Kind = "empty"
		if challenge {
			m.Kind = "go ahead: the client speaks first"
		}
	case mechanism == "PLAIN" && !challenge:
		parts := strings.Split(s, "\x00")
		m.Kind = "name and password"
		if len(parts) != 3 {
			return unfit(fmt.Sprintf("PLAIN is AUTHZID NUL NAME NUL PASSWORD (RFC 4616); this has %d NUL", len(parts)-1))
		}
		who := "whom to act for: none, so the name itself"
		if parts[0] != "" {
			who = "whom to act for"
		}
		m.Parts = []Part{{Name: "authzid", Text: parts[0], Means: who}, {Name: "authcid", Text: parts[1], Means: "the name"}, {Name: "password", Text: parts[2], Secret: true}}
	case mechanism == "LOGIN":
		m.explainLogin(s, challenge, step)
	case mechanism == "EXTERNAL" || mechanism == "ANONYMOUS":
		m.Kind = map[string]string{"EXTERNAL": "whom to act for", "ANONYMOUS": "what the client says about itself"}[mechanism]
		m.Parts = []Part{{Name: "name", Text: s}}
	case mechanism == "OAUTHBEARER" || mechanism == "XOAUTH2":
		m.explainToken(s, challenge)
	case mechanism == "DIGEST-MD5":
		if !m.explainDigest(s, challenge) {
			return unfit("want NAME=VALUE pairs with commas between (RFC 2831)")
		}
	case strings.HasPrefix(mechanism, "CRAM") && challenge:
		m.Kind, m.Parts = "challenge", []Part{{Name: "challenge", Text: s, Means: "what the client must answer with a keyed sum of"}}
	case strings.HasPrefix(mechanism, "CRAM"):
		i := strings.LastIndexByte(s, ' ')
		if i < 0 {
			return unfit("want NAME, a space and a sum in hexadecimal (RFC 2195)")
		}
		m.Kind, m.Parts = "answer to the challenge", []Part{{Name: "name", Text: s[:i]}, {Name: "digest", Text: s[i+1:], Means: "the challenge's sum, keyed with the password: passwords can be tried on it", Secret: true}}
		if h := cramHash(mechanism); h != nil && len(s)-i-1 != 2*h().Size() {
			m.Parts[1].Means = fmt.Sprintf("has %d digits where %s has %d", len(s)-i-1, mechanism, 2*h().Size())
		}
	case strings.HasPrefix(mechanism, "SCRAM"):
		if !m.explainSCRAM(s) {
			return unfit("want NAME=VALUE fields with commas between, as in RFC 5802 section 5.1")
		}
	default:
		m.Kind = "text"
		m.Parts = []Part{{Name: "text", Text: s, Means: "LOGIN's name or password, or of a mechanism that is not known here", Secret: !challenge}}
	}
	return m
}

// guess finds mechanism and direction by the form.
func guess(s string, challenge bool) (string, bool) {
	lower := strings.ToLower(s)
	switch {
	case strings.HasPrefix(lower, "username:"), strings.HasPrefix(lower, "user name"), strings.HasPrefix(lower, "password:"), lower == "password\x00":
		return "LOGIN", true
	case strings.HasPrefix(s, "user=") && strings.Contains(s, "\x01auth="):
		return "XOAUTH2", false
	case strings.Contains(s, "\x01auth="):
		return "OAUTHBEARER", false
	case strings.HasPrefix(s, "{"):
		return "OAUTHBEARER", true
	case strings.Count(s, "\x00") == 2:
		return "PLAIN", false
	case strings.HasPrefix(s, "n,"), strings.HasPrefix(s, "y,"), strings.HasPrefix(s, "p=") && strings.Contains(s, ",r="), strings.HasPrefix(s, "c=") && strings.Contains(s, ",r="):
		return "SCRAM", false
	case strings.HasPrefix(s, "r=") && strings.Contains(s, ",s="), strings.HasPrefix(s, "v="), strings.HasPrefix(s, "e="):
		return "SCRAM", true
	case strings.HasPrefix(s, "rspauth="):
		return "DIGEST-MD5", true
	case strings.Contains(s, "nonce="):
		return "DIGEST-MD5", !strings.Contains(s, "response=")
	case strings.HasPrefix(s, "<") && strings.HasSuffix(s, ">"):
		return "CRAM", true
	}
	if i := strings.LastIndexByte(s, ' '); i > 0 {
		if _, err := hex.DecodeString(s[i+1:]); err == nil {
			if name := map[int]string{32: "CRAM-MD5", 40: "CRAM", 56: "CRAM-SHA224", 64: "CRAM-SHA256", 96: "CRAM-SHA384", 128: "CRAM-SHA512"}[len(s)-i-1]; name != "" {
				return name, false
			}
		}
	}
	return "", challenge
}

func (m *Message) explainLogin(s string, challenge bool, step int) {
	switch lower := strings.ToLower(s); {
	case challenge && strings.HasPrefix(lower, "user"):
		m.Kind, m.Parts = "prompt", []Part{{Name: "prompt", Text: s, Means: "the name is asked for"}}
	case challenge && strings.HasPrefix(lower, "pass"):
		m.Kind, m.Parts = "prompt", []Part{{Name: "prompt", Text: s, Means: "the password is asked for"}}
	case challenge:
		m.Kind, m.Parts = "prompt", []Part{{Name: "prompt", Text: s, Means: "LOGIN's clients take the first prompt for the name's, the second for the password's"}}
	case step == 0:
		m.Kind, m.Parts = "name", []Part{{Name: "name", Text: s}}
	default:
		m.Kind, m.Parts = "password", []Part{{Name: "password", Text: s, Secret: true}}
	}
}

func (m *Message) explainToken(s string, challenge bool) {
	if challenge {
		m.Kind = "refusal: the client answers it with an empty line, or ^A"
		var fields map[string]any
		if json.Unmarshal([]byte(s), &fields) != nil {
			m.Parts = []Part{{Name: "text", Text: s}}
			return
		}
		for _, name := range []string{"status", "schemes", "scope", "openid-configuration"} {
			if v, ok := fields[name]; ok {
				m.Parts = append(m.Parts, Part{Name: name, Text: fmt.Sprint(v)})
			}
		}
		return
	}
	m.Kind = "token"
	for i, pair := range strings.Split(s, "\x01") {
		name, value, _ := strings.Cut(pair, "=")
		switch {
		case pair == "":
		case i == 0 && m.Mechanism == "OAUTHBEARER":
			m.Parts = append(m.Parts, Part{Name: "gs2-header", Text: pair, Means: "n: no channel binding; a= is whom to act for"})
		default:
			m.Parts = append(m.Parts, Part{Name: name, Text: value, Secret: name == "auth"})
			if name == "auth" {
				m.explainJWT(value)
			}
		}
	}
}

// ExplainToken tells what is in a token that stands alone, and false when it is no JWT.
func ExplainToken(s string) (Message, bool) {
	m := Message{Kind: "token", Parts: []Part{{Name: "token", Text: s, Secret: true}}}
	m.explainJWT("Bearer " + s)
	m.forTerminal()
	return m, len(m.Parts) > 1
}

// explainJWT tells what is in a token that is a JWT (RFC 7519): all of it but the signature, without which it is good for nothing.
func (m *Message) explainJWT(value string) {
	_, token, _ := strings.Cut(value, " ")
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return
	}
	for i, name := range []string{"header", "claims"} {
		text, err := base64.RawURLEncoding.DecodeString(parts[i])
		var said map[string]any
		if err != nil || json.Unmarshal(text, &said) != nil {
			return
		}
		p := Part{Name: name, Text: string(text), Means: "of the JWT"}
		if exp, ok := said["exp"].(float64); ok && name == "claims" && exp > 0 && exp < 1<<40 {
			p.Means += ", which expires at " + time.Unix(int64(exp), 0).UTC().Format(time.RFC3339)
		}
		m.Parts = append(m.Parts, p)
	}
}

// digestMeanings are the directives of RFC 2831 section 2.1.
func digestMeanings() map[string]string {
	return map[string]string{
		"realm": "where the name belongs to", "nonce": "the server's random text", "qop": "auth: the login alone; auth-int, auth-conf: layers that Indigo has not",
		"charset": "of name and password", "algorithm": "md5-sess is the only one", "maxbuf": "octets of a message under a layer", "cipher": "of auth-conf", "stale": "the nonce was old",
		"username": "the name", "cnonce": "the client's random text", "nc": "how often the nonce was used", "digest-uri": "the service that is meant: another host's would be a stolen answer",
		"authzid": "whom to act for", "response": "the sum over all of it and the password: passwords can be tried on it", "rspauth": "the server's proof that it knows the password",
	}
}

func (m *Message) explainDigest(s string, challenge bool) bool {
	m.Kind = map[bool]string{true: "challenge", false: "answer to the challenge"}[challenge]
	meanings := digestMeanings()
	err := directives(s, func(key, value string) error {
		if key == "rspauth" {
			m.Kind = "the server's proof"
		}
		m.Parts = append(m.Parts, Part{Name: key, Text: value, Means: meanings[key], Secret: key == "response" || key == "rspauth"})
		return nil
	})
	return err == nil && len(m.Parts) > 0
}

// explainSCRAM tells the four messages of RFC 5802 section 5 apart by their first letters.
func (m *Message) explainSCRAM(s string) bool {
	fields := strings.Split(s, ",")
	part := func(name, text, means string, secret bool) {
		m.Parts = append(m.Parts, Part{Name: name, Text: text, Means: means, Secret: secret})
	}
	switch {
	case strings.HasPrefix(s, "n,"), strings.HasPrefix(s, "y,"), strings.HasPrefix(s, "p="):
		if len(fields) < 4 {
			return false
		}
		m.Kind = "client's first message"
		part("channel binding", fields[0], bindingMeaning(fields[0]), false)
		if fields[1] != "" {
			name, _ := decodeName(strings.TrimPrefix(fields[1], "a="))
			part("authzid", name, "whom to act for", false)
		}
		fields = fields[2:]
	case strings.HasPrefix(s, "c="):
		m.Kind = "client's final message"
	case strings.HasPrefix(s, "r="):
		m.Kind = "server's first message"
	case strings.HasPrefix(s, "v="), strings.HasPrefix(s, "e="):
		m.Kind = "server's final message"
	default:
		return false
	}
	for _, field := range fields {
		name, value, ok := strings.Cut(field, "=")
		if !ok {
			return false
		}
		switch name {
		case "n":
			user, valid := decodeName(value)
			if !valid {
				return false
			}
			part("n", user, "the name", false)
		case "r":
			means := "the client's nonce"
			if m.Kind != "client's first message" {
				means = "the client's nonce with the server's behind it"
			}
			part("r", value, means, false)
		case "s":
			salt, err := base64.StdEncoding.DecodeString(value)
			means := fmt.Sprintf("salt of %d octets", len(salt))
			if err != nil {
				means = "salt, which is not base64"
			}
			part("s", value, means, false)
		case "i":
			means := "iterations"
			if n, err := strconv.Atoi(value); err != nil || n < Iterations {
				means = fmt.Sprintf("iterations: fewer than %d, the least of RFC 7677: Indigo's client refuses it", Iterations)
			}
			part("i", value, means, false)
		case "c":
			header, err := base64.StdEncoding.DecodeString(value)
			if err != nil {
				return false
			}
			text, bound := string(header), 0
			if i := bytes.Index(header, []byte(",,")); i >= 0 {
				text, bound = string(header[:i+2]), len(header)-i-2
			}
			part("c", text, fmt.Sprintf("what the client said of channel binding, and %d octets of it", bound), false)
		case "p":
			part("p", value, "the client's proof: passwords can be tried on it", true)
		case "v":
			part("v", value, "the server's signature: it knows the password too", true)
		case "e":
			part("e", value, "why the server refuses", false)
		case "m":
			part("m", value, "an extension that must be understood: none is", false)
		default:
			part(name, value, "an extension", false)
		}
	}
	return true
}

func bindingMeaning(flag string) string {
	switch kind, bound := strings.CutPrefix(flag, "p="); {
	case bound:
		return "bound to this connection by " + kind
	case flag == "y":
		return "the client could bind, and was told of no -PLUS: a server that has -PLUS refuses, somebody hid it"
	}
	return "the client binds to nothing"
}

// printable gives s without what a terminal would obey; octets that are no UTF-8 are shown by their numbers.
func printable(s string) string {
	if !utf8.ValidString(s) {
		return strconv.QuoteToASCII(s)
	}
	return wire.Printable(s)
}
