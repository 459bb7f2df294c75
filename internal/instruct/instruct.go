// Package instruct is vocabulary: lines of delivery instructions, as dot-qmail files and IndiMail's table valias have them
// (wiki 964-975). It must not know who gives them, or how they are carried out.
package instruct

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/indigomail/indigo/internal/addr"
)

// Kind is what an instruction wants done.
type Kind uint8

// The kinds: a message is sent on, given to a command of the shell, stored in a Maildir or in a file of mbox form, or
// nothing is done.
const (
	Forward Kind = iota
	Program
	Maildir
	Mbox
	Comment
)

// Instruction is one line, understood.
type Instruction struct {
	Kind Kind
	// Address is where a Forward goes. Its domain is "" when the line names none, which means the host's default
	// domain.
	Address addr.Address
	// Text is a Program's command, or the path of a Maildir, with the slash at its end, or of an Mbox.
	Text string
}

// Parse reads a line without its line end: "&user@domain", "user@domain" or "&user" is a Forward, "|command" a Program,
// "/path/" or "./path/" a Maildir, the same without the last slash an Mbox, "#…" and a blank line a Comment. Blanks around it do
// not count. dot-qmail's lines with "?" and "%" are an error.
func Parse(line string) (Instruction, error) {
	if strings.ContainsAny(line, "\x00\r\n") || !utf8.ValidString(line) {
		return Instruction{}, errors.New("a line of delivery instructions must be UTF-8 without NUL and line ends")
	}
	text := strings.Trim(line, " \t")
	if text == "" {
		return Instruction{Kind: Comment}, nil
	}
	switch text[0] {
	case '#':
		return Instruction{Kind: Comment, Text: text}, nil
	case '|':
		command := strings.Trim(text[1:], " \t")
		if command == "" {
			return Instruction{}, errors.New("no command behind |")
		}
		return Instruction{Kind: Program, Text: command}, nil
	case '/', '.':
		if text[0] == '.' && !strings.HasPrefix(text, "./") {
			return Instruction{}, fmt.Errorf("%q: a path must begin with / or ./", text)
		}
		if strings.HasSuffix(text, "/") {
			return Instruction{Kind: Maildir, Text: text}, nil
		}
		return Instruction{Kind: Mbox, Text: text}, nil
	case '?', '%':
		return Instruction{}, fmt.Errorf("%q: lines with %c are not understood", text, text[0])
	}
	to := strings.Trim(strings.TrimPrefix(text, "&"), " \t")
	complete := to
	if !strings.Contains(to, "@") {
		complete += "@domain.invalid"
	}
	a, err := addr.Parse(complete)
	if err != nil {
		return Instruction{}, fmt.Errorf("%q is no &user@domain, |command or /maildir/: %w", text, err)
	}
	if complete != to {
		a.Domain = ""
	}
	return Instruction{Kind: Forward, Address: a}, nil
}
