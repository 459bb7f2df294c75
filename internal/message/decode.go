package message

import (
	"encoding/base64"
	"io"
	"mime"
	"strings"

	"golang.org/x/text/encoding/htmlindex"
)

// Decode undoes a transfer encoding (RFC 2045 section 6) as far as that can be done: ok is false when b did not follow the
// encoding, or the encoding is not known and out is b itself.
func Decode(encoding string, b []byte) (out []byte, ok bool) {
	switch strings.ToLower(encoding) {
	case "", "7bit", "8bit", "binary":
		return b, true
	case "base64":
		return decodeBase64(b)
	case "quoted-printable":
		return decodeQuotedPrintable(b)
	}
	return b, false
}

// decodeBase64 passes over bytes that do not belong, as RFC 2045 section 6.8 asks; padding ends the text.
func decodeBase64(b []byte) (out []byte, ok bool) {
	clean := make([]byte, 0, len(b))
	ok = true
	for i, c := range b {
		switch {
		case c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '+', c == '/':
			clean = append(clean, c)
			continue
		case c == '\r', c == '\n', c == ' ', c == '\t':
			continue
		case c == '=':
			for _, c := range b[i:] {
				if c > ' ' && c != '=' {
					ok = false
				}
			}
		default:
			ok = false
			continue
		}
		break
	}
	if len(clean)%4 == 1 {
		clean, ok = clean[:len(clean)-1], false
	}
	out = make([]byte, base64.RawStdEncoding.DecodedLen(len(clean)))
	n, err := base64.RawStdEncoding.Decode(out, clean)
	return out[:n], ok && err == nil
}

func decodeQuotedPrintable(b []byte) (out []byte, ok bool) {
	out = make([]byte, 0, len(b))
	ok = true
	for len(b) > 0 {
		line, end := b, []byte(nil)
		for i, c := range b {
			if c == '\n' {
				line, end = b[:i], b[i:i+1]
				if i > 0 && b[i-1] == '\r' {
					line, end = b[:i-1], b[i-1:i+1]
				}
				break
			}
		}
		b = b[len(line)+len(end):]
		// White space at the end of a line was added on the way.
		for len(line) > 0 && (line[len(line)-1] == ' ' || line[len(line)-1] == '\t') {
			line = line[:len(line)-1]
		}
		soft := len(line) > 0 && line[len(line)-1] == '='
		if soft {
			line = line[:len(line)-1]
		}
		for i := 0; i < len(line); i++ {
			if line[i] == '=' {
				if i+2 < len(line) {
					hi, lo := hex(line[i+1]), hex(line[i+2])
					if hi >= 0 && lo >= 0 {
						out = append(out, byte(hi<<4|lo))
						i += 2
						continue
					}
				}
				ok = false
			}
			out = append(out, line[i])
		}
		if !soft {
			out = append(out, end...)
		}
	}
	return out, ok
}

func hex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}

// toUTF8 gives s, which is in a character set, as UTF-8; in one that is not known, as it is, with what is no UTF-8 replaced.
func toUTF8(charset, s string) string {
	if charset != "" {
		if enc, err := htmlindex.Get(charset); err == nil {
			if text, err := enc.NewDecoder().String(s); err == nil {
				return text
			}
		}
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// DecodeText gives the text of an unstructured value for people: RFC 2047's encoded words are decoded. Never for anything
// that a program decides by.
func DecodeText(s string) string {
	d := mime.WordDecoder{CharsetReader: func(charset string, input io.Reader) (io.Reader, error) {
		b, err := io.ReadAll(input)
		return strings.NewReader(toUTF8(charset, string(b))), err
	}}
	text, err := d.DecodeHeader(s)
	if err != nil {
		text = s
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}
