package wire

import (
	"strings"
	"unicode"
)

// Printable gives s in one line and without what a terminal would obey or hide, for what others wrote: a tab is a blank, and whatever else is not
// printable, or no UTF-8, is a question mark.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
