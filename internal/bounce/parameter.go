package bounce

import (
	"fmt"
	"strings"
)

// ValidNotify checks the value of NOTIFY: "NEVER", or a list of "SUCCESS", "FAILURE" and "DELAY", in any case (RFC 3461 section
// 4.1).
func ValidNotify(s string) bool {
	if strings.EqualFold(s, "NEVER") {
		return true
	}
	if len(s) > len("SUCCESS,FAILURE,DELAY") {
		return false
	}
	for word := range strings.SplitSeq(s, ",") {
		if !strings.EqualFold(word, "SUCCESS") && !strings.EqualFold(word, "FAILURE") && !strings.EqualFold(word, "DELAY") {
			return false
		}
	}
	return true
}

// ValidEnvID checks the value of ENVID: 1 to 100 bytes of xtext (RFC 3461 section 4.4).
func ValidEnvID(s string) bool { return s != "" && len(s) <= 100 && ValidXtext(s) }

// ValidOrcpt checks the value of ORCPT: a type, ";" and an address in xtext, at most 500 bytes (RFC 3461 section 4.2). With utf8
// the address may be in the UTF-8 form of RFC 6533 section 3.
func ValidOrcpt(s string, utf8 bool) bool {
	kind, text, found := strings.Cut(s, ";")
	if !found || kind == "" || text == "" || len(s) > 500 {
		return false
	}
	for _, c := range kind {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	for i := range len(text) {
		if c := text[i]; c <= ' ' || c == 0x7f || c >= 0x80 && !utf8 {
			return false
		}
	}
	return utf8 && strings.EqualFold(kind, "utf-8") || ValidXtext(text)
}

// ValidXtext checks RFC 3461 section 4: printable ASCII without "=", in which each "+" begins two hexadecimal digits in upper
// case.
func ValidXtext(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c <= ' ' || c >= 0x7f || c == '=':
			return false
		case c == '+':
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return false
			}
			i += 2
		}
	}
	return true
}

func isHex(c byte) bool { return c >= '0' && c <= '9' || c >= 'A' && c <= 'F' }

// Xtext encodes a text as RFC 3461 section 4 wants it.
func Xtext(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '+' || c == '=' {
			fmt.Fprintf(&b, "+%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
