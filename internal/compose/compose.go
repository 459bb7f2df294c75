// Package compose is vocabulary: it completes the header of a message that a person or a program of this host wrote, as
// qmail-inject does: addresses in full, the fields that are missing, those that must not leave, and who the recipients are. It
// must not know how a message is queued.
package compose

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/message"
)

// Names are the hosts and domains that complete addresses (qmail-inject's control files of the same names).
type Names struct {
	// DefaultHost is what an address without a host gets, DefaultDomain a host without a dot, PlusDomain a host that ends in
	// "+". IDHost stands in Message-IDs.
	DefaultHost   string `json:"defaulthost"`
	DefaultDomain string `json:"defaultdomain"`
	PlusDomain    string `json:"plusdomain"`
	IDHost        string `json:"idhost"`
}

// Complete gives an address as it would stand on another host.
func (n Names) Complete(local, domain string) addr.Address {
	if domain == "" {
		domain = n.DefaultHost
	}
	switch {
	case strings.HasPrefix(domain, "["):
	case strings.HasSuffix(domain, "+"):
		domain = strings.TrimSuffix(domain, "+") + "." + n.PlusDomain
	case !strings.Contains(domain, ".") && n.DefaultDomain != "":
		domain += "." + n.DefaultDomain
	}
	return addr.Address{Local: local, Domain: domain}
}

// Which recipients count.
type Recipients int

const (
	// ArgumentsElseHeader is qmail-inject's -A, its default: the arguments, or the header when there are none.
	ArgumentsElseHeader Recipients = iota
	// ArgumentsOnly is -a, HeaderOnly -h, Both -H.
	ArgumentsOnly
	HeaderOnly
	Both
)

// Options say how to compose.
type Options struct {
	Names
	Recipients Recipients
	Arguments  []string
	// User is the writer's mailbox for a From field that is missing, Name the writer's name.
	User addr.Address
	Name string
	// Sender is the envelope sender; the null address is a sender too. SenderSet tells that it was given.
	Sender    addr.Address
	SenderSet bool
	// CommentName writes "user@host (Name)"; DropFrom and DropMessageID replace these fields; ReturnPathSender takes the
	// sender from the Return-Path field (qmail-inject's flags c, f, i, s).
	CommentName, DropFrom, DropMessageID, ReturnPathSender bool
	// VERP puts "-" and the time and process into the sender; VERPEach the mark by which each recipient gets an own sender
	// (flags m and r).
	VERP, VERPEach bool
	// Lists are the addresses of mailing lists: a message to one gets a Mail-Followup-To field (QMAILMFTFILE).
	Lists []string
	Now   time.Time
	PID   int
}

// Composed is the result.
type Composed struct {
	// Header is in wire form, without the empty line; Body starts behind it in what was given.
	Header     []byte
	Body       []byte
	Sender     addr.Address
	Recipients []addr.Address
}

// ErrNoRecipients says that nobody is to get the message.
var ErrNoRecipients = errors.New("no recipients")

// Compose completes a message in wire form. Malformed addresses among the recipients are errors, all of them at once; what
// else is malformed stays as it is.
func Compose(b []byte, o Options) (*Composed, error) {
	end := message.HeaderEnd(b)
	fields := message.Fields(b[:end])
	c := &composer{Options: o, has: map[string]bool{}}
	for _, f := range fields {
		if strings.HasPrefix(strings.ToLower(string(f.Name)), "resent-") {
			c.resent = true
		}
	}
	for _, f := range fields {
		c.field(f)
	}
	body := b[end:]
	switch {
	case strings.HasPrefix(string(body), "\r\n"):
		body = body[2:]
	}
	c.arguments()
	c.sender()
	c.missing()
	if len(c.faults) > 0 {
		return nil, errors.Join(c.faults...)
	}
	if len(c.recipients) == 0 {
		return nil, ErrNoRecipients
	}
	return &Composed{Header: c.out, Body: body, Sender: c.Options.Sender, Recipients: c.recipients}, nil
}

type composer struct {
	Options
	out        []byte
	resent     bool
	has        map[string]bool
	recipients []addr.Address
	followers  []string
	faults     []error
}

// addressFields have addresses that are completed.
func addressFields() []string {
	return []string{"from", "sender", "reply-to", "to", "cc", "bcc", "apparently-to", "return-receipt-to", "errors-to", "mail-followup-to", "mail-reply-to",
		"resent-from", "resent-sender", "resent-reply-to", "resent-to", "resent-cc", "resent-bcc"}
}

func (c *composer) field(f message.Field) {
	name := strings.ToLower(string(f.Name))
	if name == "" {
		// No field: a line such as mbox's "From ". It would end the header for some readers.
		return
	}
	switch name {
	case "return-path":
		if list, ok := message.ParseUnqualified(f.Value()); ok && c.ReturnPathSender && !c.SenderSet && len(list) == 1 {
			c.Sender, c.SenderSet = c.Complete(list[0].Local, list[0].Domain), true
		}
		return
	case "content-length":
		return
	case "from", "resent-from":
		if c.DropFrom && (name == "resent-from") == c.resent {
			return
		}
	case "message-id", "resent-message-id":
		if c.DropMessageID && (name == "resent-message-id") == c.resent {
			return
		}
	}
	c.has[name] = true
	if !slices.Contains(addressFields(), name) {
		c.out = append(c.out, f.Raw...)
		return
	}
	list, ok := message.ParseUnqualified(f.Value())
	value, changed := c.rewrite(list)
	if c.isRecipient(name) && (c.Options.Recipients == HeaderOnly || c.Options.Recipients == Both || c.Options.Recipients == ArgumentsElseHeader && len(c.Arguments) == 0) {
		if !ok {
			c.faults = append(c.faults, fmt.Errorf("field %s: %q is no list of addresses", f.Name, f.Value()))
		}
		for _, m := range list {
			if m.Local != "" {
				c.add(c.Complete(m.Local, m.Domain))
			}
		}
	}
	if name == "to" || name == "cc" {
		for _, m := range list {
			if m.Local != "" {
				c.followers = append(c.followers, c.Complete(m.Local, m.Domain).String())
			}
		}
	}
	switch {
	case name == "bcc" || name == "resent-bcc":
	case !ok || !changed:
		c.out = append(c.out, f.Raw...)
	default:
		c.write(string(f.Name), value)
	}
}

// isRecipient tells whether a field names recipients: of the resending, if there is one.
func (c *composer) isRecipient(name string) bool {
	if c.resent {
		return name == "resent-to" || name == "resent-cc" || name == "resent-bcc"
	}
	return name == "to" || name == "cc" || name == "bcc" || name == "apparently-to"
}

// rewrite gives the list with addresses in full; changed tells whether that is another text.
func (c *composer) rewrite(list []message.Mailbox) (value string, changed bool) {
	var b strings.Builder
	inGroup, first := false, true
	comma := func() {
		if !first {
			b.WriteString(", ")
		}
		first = false
	}
	for _, m := range list {
		switch {
		case m.Group != "":
			comma()
			b.WriteString(phrase(m.Group) + ":")
			inGroup, first = true, true
		case m.IsGroupEnd():
			if inGroup {
				b.WriteString(";")
			}
			inGroup, first = false, false
		default:
			if first && inGroup {
				b.WriteString(" ")
			}
			comma()
			a := c.Complete(m.Local, m.Domain)
			changed = changed || a.Domain != m.Domain
			if m.Name == "" {
				b.WriteString(a.String())
			} else {
				b.WriteString(phrase(m.Name) + " <" + a.String() + ">")
			}
		}
	}
	return b.String(), changed
}

// phrase quotes a name where the grammar needs it (RFC 5322 section 3.2.5).
func phrase(s string) string {
	atoms := !strings.HasPrefix(s, " ") && !strings.HasSuffix(s, " ")
	for _, c := range s {
		if !(c == ' ' || c >= 0x80 || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("!#$%&'*+-/=?^_`{|}~", c)) {
			atoms = false
		}
	}
	if atoms || s == "" {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

func (c *composer) add(a addr.Address) {
	parsed, err := addr.Parse(a.String())
	if err != nil {
		c.faults = append(c.faults, fmt.Errorf("recipient %q: %w", a.String(), err))
		return
	}
	if !slices.ContainsFunc(c.recipients, func(b addr.Address) bool { return b.Key() == parsed.Key() }) {
		c.recipients = append(c.recipients, parsed)
	}
}

func (c *composer) arguments() {
	if c.Options.Recipients == HeaderOnly {
		return
	}
	for _, arg := range c.Arguments {
		list, ok := message.ParseUnqualified(arg)
		if !ok || len(list) == 0 {
			c.faults = append(c.faults, fmt.Errorf("recipient %q is no address", arg))
		}
		for _, m := range list {
			if m.Local != "" {
				c.add(c.Complete(m.Local, m.Domain))
			}
		}
	}
}

func (c *composer) sender() {
	if !c.SenderSet {
		c.Sender = c.User
	}
	if c.Sender.IsNull() {
		return
	}
	if c.VERP {
		c.Sender.Local += fmt.Sprintf("-%d.%d", c.Now.Unix(), c.PID)
	}
	if c.VERPEach {
		c.Sender.Local += "-"
		c.Sender.Domain += "-@[]"
	}
}

// missing adds the fields that a message must have.
func (c *composer) missing() {
	prefix, lower := "", ""
	if c.resent {
		prefix, lower = "Resent-", "resent-"
	}
	if !c.has[lower+"date"] {
		c.write(prefix+"Date", message.Date822(c.Now))
	}
	if !c.has[lower+"message-id"] {
		c.write(prefix+"Message-ID", fmt.Sprintf("<%s.%d.qmail@%s>", c.Now.UTC().Format("20060102150405.000000000"), c.PID, c.IDHost))
	}
	if !c.has[lower+"from"] {
		value := c.User.String()
		switch {
		case c.Name == "":
		case c.CommentName:
			value += " (" + strings.NewReplacer(`\`, `\\`, "(", `\(`, ")", `\)`).Replace(c.Name) + ")"
		default:
			value = phrase(c.Name) + " <" + value + ">"
		}
		c.write(prefix+"From", value)
	}
	if c.resent {
		if !c.has["resent-to"] && !c.has["resent-cc"] {
			c.write("Resent-Cc", "recipient list not shown: ;")
		}
	} else if !c.has["to"] && !c.has["cc"] {
		c.write("Cc", "recipient list not shown: ;")
	}
	if !c.has["mail-followup-to"] && slices.ContainsFunc(c.followers, c.isList) {
		slices.Sort(c.followers)
		c.write("Mail-Followup-To", strings.Join(slices.Compact(c.followers), ", "))
	}
}

func (c *composer) isList(address string) bool {
	return slices.ContainsFunc(c.Lists, func(l string) bool { return strings.EqualFold(l, address) })
}

func (c *composer) write(name, value string) {
	field, err := message.NewField(name, value)
	if err != nil {
		c.faults = append(c.faults, err)
		return
	}
	c.out = append(c.out, field...)
}
