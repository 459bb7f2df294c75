package imapd

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/indigomail/indigo/internal/maildir"
)

// inMailbox runs a command of the selected state.
func (c *session) inMailbox(tag, verb string, args []word) {
	byUID := false
	if verb == "UID" && len(args) > 0 {
		byUID = true
		verb, args = strings.ToUpper(args[0].text), args[1:]
	}
	switch verb {
	case "CHECK":
		c.box.refresh(c)
		c.say(tag, "OK", "done")
	case "CLOSE", "UNSELECT":
		if verb == "CLOSE" && !c.box.readOnly {
			c.expunge(false)
		}
		c.box = nil
		c.say(tag, "OK", "done")
	case "EXPUNGE":
		if c.box.readOnly {
			c.say(tag, "NO", "[READ-ONLY] mailbox is read-only")
			return
		}
		c.expunge(true)
		c.say(tag, "OK", "done")
	case "SEARCH":
		c.search(tag, args, byUID)
	case "FETCH", "STORE":
		if len(args) < 2 {
			c.say(tag, "BAD", "%s needs a set and items", verb)
			return
		}
		chosen, ok := c.choose(args[0].text, byUID)
		if !ok {
			c.say(tag, "BAD", "malformed set of messages")
			return
		}
		if verb == "FETCH" {
			c.fetch(tag, chosen, args[1:], byUID)
		} else {
			c.store(tag, chosen, args[1:], byUID)
		}
	default:
		c.say(tag, "BAD", "unknown command")
	}
}

// choose gives the indexes of the messages in a set.
func (c *session) choose(set string, byUID bool) ([]int, bool) {
	last := uint32(len(c.box.messages))
	if byUID && last > 0 {
		last = c.box.messages[last-1].uid
	}
	in, ok := numbers(set, last)
	if !ok {
		return nil, false
	}
	var chosen []int
	for i, m := range c.box.messages {
		n := uint32(i + 1)
		if byUID {
			n = m.uid
		}
		if in(n) {
			chosen = append(chosen, i)
		}
	}
	return chosen, true
}

func (c *session) expunge(tell bool) {
	var indexes []int
	var gone []*maildir.Message
	for i := len(c.box.messages) - 1; i >= 0; i-- {
		if m := &c.box.messages[i]; strings.Contains(m.Flags, "T") {
			indexes, gone = append(indexes, i), append(gone, &m.Message)
		}
	}
	removed := make(map[int]bool, len(indexes))
	for k, err := range maildir.Expunge(gone...) {
		if i := indexes[k]; err == nil {
			removed[i] = true
			if tell {
				fmt.Fprintf(c.out, "* %d EXPUNGE\r\n", i+1)
			}
		}
	}
	i := -1
	c.box.messages = slices.DeleteFunc(c.box.messages, func(numbered) bool { i++; return removed[i] })
}

func (c *session) search(tag string, args []word, byUID bool) {
	fits := func(numbered) bool { return true }
	for _, a := range args {
		before := fits
		var key func(numbered) bool
		has := func(l string) func(numbered) bool {
			return func(m numbered) bool { return strings.Contains(m.Flags, l) }
		}
		not := func(f func(numbered) bool) func(numbered) bool { return func(m numbered) bool { return !f(m) } }
		switch strings.ToUpper(a.text) {
		case "ALL":
			continue
		case "SEEN":
			key = has("S")
		case "UNSEEN":
			key = not(has("S"))
		case "DELETED":
			key = has("T")
		case "UNDELETED":
			key = not(has("T"))
		case "FLAGGED":
			key = has("F")
		case "ANSWERED":
			key = has("R")
		default:
			c.say(tag, "BAD", "this search key is not known yet")
			return
		}
		fits = func(m numbered) bool { return before(m) && key(m) }
	}
	c.out.WriteString("* SEARCH")
	for i, m := range c.box.messages {
		if fits(m) {
			n := uint32(i + 1)
			if byUID {
				n = m.uid
			}
			c.out.WriteString(" " + strconv.FormatUint(uint64(n), 10))
		}
	}
	c.out.WriteString("\r\n")
	c.say(tag, "OK", "done")
}

func (c *session) store(tag string, chosen []int, args []word, byUID bool) {
	action := strings.ToUpper(args[0].text)
	action, silent := strings.CutSuffix(action, ".SILENT")
	var letters string
	for _, w := range args[1:] {
		if w.text == "(" || w.text == ")" {
			continue
		}
		// A keyword is let pass: a later version will keep it.
		if l, ok := letter(w.text); ok {
			letters += string(l)
		}
	}
	if c.box.readOnly {
		c.say(tag, "NO", "[READ-ONLY] mailbox is read-only")
		return
	}
	for _, i := range chosen {
		m := &c.box.messages[i]
		next := letters
		switch action {
		case "+FLAGS":
			next = m.Flags + letters
		case "-FLAGS":
			next = strings.Map(func(r rune) rune {
				if strings.ContainsRune(letters, r) {
					return -1
				}
				return r
			}, m.Flags)
		case "FLAGS":
		default:
			c.say(tag, "BAD", "unknown store item")
			return
		}
		if err := m.SetFlags(next); err != nil {
			c.say(tag, "NO", "flags of message %d cannot be set now", i+1)
			return
		}
		if !silent {
			c.tellFlags(i, byUID)
		}
	}
	c.say(tag, "OK", "done")
}

func (c *session) tellFlags(i int, byUID bool) {
	m := c.box.messages[i]
	uid := ""
	if byUID {
		uid = fmt.Sprintf(" UID %d", m.uid)
	}
	fmt.Fprintf(c.out, "* %d FETCH (FLAGS (%s)%s)\r\n", i+1, flags(m.Flags), uid)
}

// fetch answers FETCH for FLAGS, UID, RFC822.SIZE, INTERNALDATE, RFC822, RFC822.HEADER, RFC822.TEXT, BODY[], BODY[HEADER],
// BODY[TEXT], their .PEEK forms and partial fetches.
func (c *session) fetch(tag string, chosen []int, items []word, byUID bool) {
	var names []string
	for _, w := range items {
		switch name := strings.ToUpper(w.text); name {
		case "(", ")":
		case "FAST":
			names = append(names, "FLAGS", "INTERNALDATE", "RFC822.SIZE")
		default:
			names = append(names, name)
		}
	}
	if byUID && !slices.Contains(names, "UID") {
		names = append(names, "UID")
	}
	for _, i := range chosen {
		m := &c.box.messages[i]
		var content []byte
		read := func() error {
			if content != nil {
				return nil
			}
			var err error
			content, err = m.Read()
			return err
		}
		fmt.Fprintf(c.out, "* %d FETCH (", i+1)
		seen := false
		for k, name := range names {
			if k > 0 {
				c.out.WriteByte(' ')
			}
			switch name {
			case "FLAGS":
				fmt.Fprintf(c.out, "FLAGS (%s)", flags(m.Flags))
				continue
			case "UID":
				fmt.Fprintf(c.out, "UID %d", m.uid)
				continue
			case "RFC822.SIZE":
				size, err := m.WireSize()
				if err != nil {
					c.gone(tag, i)
					return
				}
				fmt.Fprintf(c.out, "RFC822.SIZE %d", size)
				continue
			case "INTERNALDATE":
				info, err := os.Stat(m.File)
				if err != nil {
					c.gone(tag, i)
					return
				}
				fmt.Fprintf(c.out, `INTERNALDATE "%s"`, info.ModTime().Format("_2-Jan-2006 15:04:05 -0700"))
				continue
			}
			section, label, peek, from, count, ok := bodySection(name)
			if !ok {
				// The answer is broken off; the client must not take it for whole.
				c.out.WriteString("NIL)\r\n")
				c.say(tag, "BAD", "the item %s is not known yet", strconv.Quote(name))
				return
			}
			if err := read(); err != nil {
				c.gone(tag, i)
				return
			}
			part := content
			header := bytes.Index(content, []byte("\r\n\r\n")) + 4
			if header < 4 {
				header = len(content)
			}
			switch section {
			case "HEADER":
				part = content[:header]
			case "TEXT":
				part = content[header:]
			}
			if from >= 0 {
				part = part[min(from, len(part)):]
				part = part[:min(count, len(part))]
			}
			fmt.Fprintf(c.out, "%s {%d}\r\n", label, len(part))
			c.out.Write(part)
			seen = seen || !peek
		}
		c.out.WriteString(")\r\n")
		if seen && !c.box.readOnly && !strings.Contains(m.Flags, "S") && m.SetFlags(m.Flags+"S") == nil {
			c.tellFlags(i, byUID)
		}
	}
	c.say(tag, "OK", "done")
}

// gone ends a FETCH whose message cannot be read; the connection is closed because a response was begun.
func (c *session) gone(tag string, i int) {
	c.out.WriteString("NIL)\r\n")
	c.say(tag, "NO", "message %d cannot be read now", i+1)
}

// bodySection reads the name of a fetch item that gives bytes.
func bodySection(name string) (section, label string, peek bool, from, count int, ok bool) {
	from = -1
	switch name {
	case "RFC822":
		return "", name, false, from, 0, true
	case "RFC822.HEADER":
		return "HEADER", name, true, from, 0, true
	case "RFC822.TEXT":
		return "TEXT", name, false, from, 0, true
	}
	rest, isBody := strings.CutPrefix(name, "BODY")
	rest, peek = strings.CutPrefix(rest, ".PEEK")
	section, partial, closed := strings.Cut(strings.TrimPrefix(rest, "["), "]")
	if !isBody || !strings.HasPrefix(rest, "[") || !closed || section != "" && section != "HEADER" && section != "TEXT" {
		return "", "", false, 0, 0, false
	}
	label = "BODY[" + section + "]"
	if partial != "" {
		a, b, dot := strings.Cut(strings.Trim(partial, "<>"), ".")
		var err1, err2 error
		from, err1 = strconv.Atoi(a)
		count, err2 = strconv.Atoi(b)
		if !dot || err1 != nil || err2 != nil || from < 0 || count < 0 {
			return "", "", false, 0, 0, false
		}
		label += "<" + a + ">"
	}
	return section, label, peek, from, count, true
}
