// Package dovecot is vocabulary: the lines of the protocol by which Dovecot's parts, Postfix and Exim ask for passwords and
// users (Dovecot's auth-client protocol, version 1.1). It must not know who asks or who answers.
package dovecot

import "strings"

const (
	// Major and Minor are the version that is spoken; another Major is another protocol.
	Major, Minor = "1", "1"
	// MaxLine bounds a line in bytes with its end: a response of 12288 octets in base64 (RFC 4954 section 4), and the parameters before it.
	MaxLine = 16 << 10
)

// escapes are the bytes that cannot stand in a field, with what stands behind \001 in their place.
var escapes = strings.NewReplacer("\x00", "\x010", "\x01", "\x011", "\t", "\x01t", "\r", "\x01r", "\n", "\x01n")

// Append writes a line of fields behind b.
func Append(b []byte, fields ...string) []byte {
	for i, field := range fields {
		if i > 0 {
			b = append(b, '\t')
		}
		b = append(b, escapes.Replace(field)...)
	}
	return append(b, '\n')
}

// Parse gives the fields of a line, with or without its end. Any line has a meaning: a byte behind \001 that stands for nothing
// stands for itself.
func Parse(line string) []string {
	fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
	for i, field := range fields {
		if strings.Contains(field, "\x01") {
			fields[i] = unescape(field)
		}
	}
	return fields
}

func unescape(field string) string {
	var b strings.Builder
	for i := 0; i < len(field); i++ {
		c := field[i]
		if c == 1 && i+1 < len(field) {
			i++
			switch c = field[i]; c {
			case '0':
				c = 0
			case '1':
				c = 1
			case 't':
				c = '\t'
			case 'r':
				c = '\r'
			case 'n':
				c = '\n'
			}
		}
		b.WriteByte(c)
	}
	return b.String()
}

// Parameter gives the value of the first field NAME=VALUE, and whether there is one; NAME alone has the value "".
func Parameter(fields []string, name string) (value string, ok bool) {
	for _, field := range fields {
		if key, value, _ := strings.Cut(field, "="); key == name {
			return value, true
		}
	}
	return "", false
}
