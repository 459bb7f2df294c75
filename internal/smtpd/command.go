package smtpd

import (
	"bytes"
	"math"
	"strconv"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/bounce"
)

// verb is a command.
type verb uint8

const (
	verbUnknown verb = iota
	verbUnsupported
	verbHelo
	verbEhlo
	verbMail
	verbRcpt
	verbData
	verbRset
	verbNoop
	verbVrfy
	verbHelp
	verbQuit
	verbStartTLS
	verbAuth
	verbEtrn
	verbAtrn
)

// parseVerb splits a command line into its verb and the arguments behind one space, without the white space at the end
// that RFC 5321 section 4.1.1 wants tolerated. args is a part of line.
func parseVerb(line []byte) (v verb, args []byte) {
	line = bytes.TrimRight(line, " \t")
	word, args, _ := bytes.Cut(line, []byte(" "))
	var upper [8]byte
	if len(word) > len(upper) {
		return verbUnknown, args
	}
	for i, c := range word {
		if c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		upper[i] = c
	}
	switch string(upper[:len(word)]) {
	case "HELO":
		v = verbHelo
	case "EHLO":
		v = verbEhlo
	case "MAIL":
		v = verbMail
	case "RCPT":
		v = verbRcpt
	case "DATA":
		v = verbData
	case "RSET":
		v = verbRset
	case "NOOP":
		v = verbNoop
	case "VRFY":
		v = verbVrfy
	case "HELP":
		v = verbHelp
	case "QUIT":
		v = verbQuit
	case "STARTTLS":
		v = verbStartTLS
	case "AUTH":
		v = verbAuth
	case "ETRN":
		v = verbEtrn
	case "ATRN":
		v = verbAtrn
	case "EXPN", "TURN", "SEND", "SOML", "SAML", "BDAT", "BURL":
		v = verbUnsupported
	}
	return v, args
}

// parseHelo gives the host name of HELO or EHLO; ok is false when there is none, or when it could do harm in a header or
// a log. RFC 5321 section 4.1.4 forbids refusing a name for being no name.
func parseHelo(args []byte) (name string, ok bool) {
	word, _, _ := bytes.Cut(bytes.TrimLeft(args, " "), []byte(" "))
	if len(word) == 0 || len(word) > 255 {
		return "", false
	}
	for _, c := range word {
		if c < 0x21 || c > 0x7e {
			return "", false
		}
	}
	return string(word), true
}

// mailCommand is MAIL with its parameters.
type mailCommand struct {
	from addr.Address
	// size is SIZE (RFC 1870), 0 without it.
	size int64
	// body is BODY (RFC 6152), "" without it.
	body string
	utf8 bool
	// ret and envid are RET and ENVID (RFC 3461), "" without them.
	ret, envid string
}

// rcptCommand is RCPT with its parameters (RFC 3461).
type rcptCommand struct {
	to            addr.Address
	notify, orcpt string
}

// parsePath reads the keyword ("FROM:" or "TO:"), in any case and with spaces behind it, which many clients send, and the
// path. what is the input that refused is about.
func parsePath(s, keyword string, syntax, bad *reply) (a addr.Address, rest string, refused *reply, what string) {
	if len(s) < len(keyword) || !strings.EqualFold(s[:len(keyword)], keyword) {
		return a, "", syntax, ""
	}
	a, rest, err := addr.ParsePath(strings.TrimLeft(s[len(keyword):], " "), addr.Options{UTF8: true})
	if err != nil {
		return a, "", bad, err.Error()
	}
	if rest != "" && rest[0] != ' ' {
		return a, "", bad, "text behind the path"
	}
	return a, rest, nil, ""
}

// parseMail reads the arguments of MAIL. refused is nil when they are well-formed, else the reply, with what for the
// trace.
func parseMail(args string) (m mailCommand, refused *reply, what string) {
	var rest string
	if m.from, rest, refused, what = parsePath(args, "FROM:", replyMailSyntax, replyBadSender); refused != nil {
		return m, refused, what
	}
	path := args[:len(args)-len(rest)]
	const (
		size = 1 << iota
		body
		utf8
		ret
		envid
		auth
	)
	seen := 0
	for rest = strings.TrimLeft(rest, " "); rest != ""; {
		name, value, hasValue, more, ok := nextParameter(rest, false)
		if !ok {
			return m, replyParamSyntax, ""
		}
		rest = more
		bit := 0
		switch {
		case strings.EqualFold(name, "SIZE"):
			bit = size
			m.size, ok = parseSize(value)
		case strings.EqualFold(name, "BODY"):
			bit = body
			switch {
			case strings.EqualFold(value, "7BIT"):
				m.body = "7BIT"
			case strings.EqualFold(value, "8BITMIME"):
				m.body = "8BITMIME"
			default:
				ok = false
			}
		case strings.EqualFold(name, "SMTPUTF8"):
			bit = utf8
			m.utf8, ok = true, !hasValue
		case strings.EqualFold(name, "RET"):
			bit = ret
			switch {
			case strings.EqualFold(value, "FULL"):
				m.ret = "FULL"
			case strings.EqualFold(value, "HDRS"):
				m.ret = "HDRS"
			default:
				ok = false
			}
		case strings.EqualFold(name, "ENVID"):
			bit = envid
			m.envid, ok = value, bounce.ValidEnvID(value)
		case strings.EqualFold(name, "AUTH"):
			// RFC 4954 section 5: who vouches for whom is noted by nobody here.
			bit = auth
			ok = value == "<>" || len(value) > 0 && len(value) <= 500 && bounce.ValidXtext(value)
		default:
			return m, replyParameter, name
		}
		if !ok || seen&bit != 0 {
			return m, replyParamSyntax, name
		}
		seen |= bit
	}
	if !m.utf8 && !isASCII(path) {
		return m, replyNeedsUTF8, ""
	}
	return m, nil, ""
}

// parseRcpt reads the arguments of RCPT, as parseMail does; utf8 is that of the transaction.
func parseRcpt(args string, utf8 bool) (r rcptCommand, refused *reply, what string) {
	var rest string
	if r.to, rest, refused, what = parsePath(args, "TO:", replyRcptSyntax, replyBadAddress); refused != nil {
		return r, refused, what
	}
	if r.to.IsNull() {
		return r, replyBadAddress, "null address"
	}
	if !utf8 && !isASCII(args[:len(args)-len(rest)]) {
		return r, replyNeedsUTF8, ""
	}
	for rest = strings.TrimLeft(rest, " "); rest != ""; {
		name, value, _, more, ok := nextParameter(rest, utf8)
		if !ok {
			return r, replyParamSyntax, ""
		}
		rest = more
		switch {
		case strings.EqualFold(name, "NOTIFY"):
			ok = r.notify == "" && bounce.ValidNotify(value)
			r.notify = strings.ToUpper(value)
		case strings.EqualFold(name, "ORCPT"):
			// RFC 3461 section 4.2: addr-type ";" xtext; with RFC 6533 section 3, UTF-8.
			ok = r.orcpt == "" && bounce.ValidOrcpt(value, utf8)
			r.orcpt = value
		default:
			return r, replyParameter, name
		}
		if !ok {
			return r, replyParamSyntax, name
		}
	}
	return r, nil, ""
}

// nextParameter cuts NAME or NAME=VALUE (RFC 5321 section 4.1.2, esmtp-param) and the spaces behind it from s, which
// begins with none.
func nextParameter(s string, utf8 bool) (name, value string, hasValue bool, rest string, ok bool) {
	word, rest, _ := strings.Cut(s, " ")
	rest = strings.TrimLeft(rest, " ")
	name, value, hasValue = strings.Cut(word, "=")
	if name == "" || hasValue && value == "" {
		return "", "", false, "", false
	}
	for i := range len(name) {
		if c := name[i]; !isAlnum(c) && (c != '-' || i == 0) {
			return "", "", false, "", false
		}
	}
	for i := range len(value) {
		if c := value[i]; c < 0x21 || c == 0x7f || c > 0x7f && !utf8 {
			return "", "", false, "", false
		}
	}
	return name, value, hasValue, rest, true
}

// parseSize reads SIZE's 1*20DIGIT; what is beyond an int64 is more than anybody takes and becomes the greatest.
func parseSize(s string) (n int64, ok bool) {
	if len(s) == 0 || len(s) > 20 {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		n = math.MaxInt64
	}
	return n, true
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
