// Package bounce is vocabulary: what a mail system tells a sender of the fate of a message, as a delivery status notification
// (multipart/report, RFC 3462, RFC 3464, RFC 6533) or in qmail's form (QSBMF), with a text for people in qmail's words. It must
// not know why a delivery failed, or whom to tell.
package bounce

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/message"
)

// Action is what became of a recipient (RFC 3464 section 2.3.3).
type Action string

// The actions. Relayed means that a host has taken the message that will not tell the sender more.
const (
	Failed    Action = "failed"
	Delayed   Action = "delayed"
	Delivered Action = "delivered"
	Relayed   Action = "relayed"
)

// Outcome is what became of one recipient.
type Outcome struct {
	Action    Action
	Recipient addr.Address
	// Orcpt is the ORCPT parameter as it came: a type, ";", and an address in xtext (RFC 3461 section 4.2).
	Orcpt string
	// Code and Enhanced are the reply's, 0 and "" when there was none.
	Code     int
	Enhanced string
	// Text is what the deliverer said.
	Text string
	// RetryUntil is when a delayed recipient is given up.
	RetryUntil time.Time
}

// Format is how a report is written.
type Format string

// The formats of the setting BOUNCE_FORMAT.
const (
	DSN   Format = "dsn"
	QSBMF Format = "qsbmf"
)

// Report is a notice to be written.
type Report struct {
	Format Format
	// Host is this system, ID the report's queue id.
	Host, ID string
	From, To addr.Address
	// Subject is that of a report of failures; "" means "failure notice".
	Subject string
	// Double says that this reports a bounce that bounced, to the postmaster.
	Double       bool
	Arrived, Now time.Time
	// Sender and EnvID are the envelope's.
	Sender   addr.Address
	EnvID    string
	Outcomes []Outcome
	// Original is the message in wire form; HeaderOnly gives back its header only.
	Original   io.Reader
	HeaderOnly bool
	// UTF8 is set for a message that needs SMTPUTF8 (RFC 6533).
	UTF8 bool
}

// MessageID gives the Message-ID without angle brackets.
func (r *Report) MessageID() string { return r.ID + ".bounce@" + r.Host }

// kind is the action that the report is about: the worst.
func (r *Report) kind() Action {
	for _, a := range []Action{Failed, Delayed, Relayed} {
		if slices.ContainsFunc(r.Outcomes, func(o Outcome) bool { return o.Action == a }) {
			return a
		}
	}
	return Delivered
}

func (r *Report) subject() string {
	switch r.kind() {
	case Failed:
		if r.Subject != "" {
			return safe(r.Subject, " ")
		}
		return "failure notice"
	case Delayed:
		return "delay notice"
	}
	return "success notice"
}

// maxBouncedFields bounds the X-Bounced-Address fields.
const maxBouncedFields = 50

// Write writes the report in wire form.
func (r *Report) Write(to io.Writer) error {
	w := &writer{Writer: bufio.NewWriterSize(to, 32<<10)}
	w.line("Received: indimail-mta queue %s by host %s (invoked for bounce);\r\n %s", r.ID, r.Host, message.Date822(r.Now))
	w.line("Date: %s", message.Date822(r.Now))
	w.line("From: %s", r.From)
	w.line("To: %s", r.To)
	w.line("Subject: %s", r.subject())
	w.line("Message-ID: <%s>", r.MessageID())
	w.line("Auto-Submitted: auto-replied")
	n := 0
	for _, o := range r.Outcomes {
		if n++; o.Action == Failed && n <= maxBouncedFields {
			w.line("X-Bounced-Address: %s", o.Recipient)
		}
	}
	if r.Format == QSBMF {
		r.qsbmf(w)
	} else {
		r.dsn(w)
	}
	return w.finish()
}

// writer remembers the first error.
type writer struct {
	*bufio.Writer
	err error
}

func (w *writer) line(format string, args ...any) { fmt.Fprintf(w, format+"\r\n", args...) }

func (w *writer) finish() error {
	if w.err != nil {
		return w.err
	}
	return w.Flush()
}

// text writes what people read.
func (r *Report) text(w *writer) {
	w.line("Hi. This is the Indigo program at %s.", r.Host)
	switch kind := r.kind(); {
	case r.Double:
		w.line("I tried to deliver a bounce message to this address, but the bounce bounced!\r\n")
	case kind == Failed:
		w.line("I'm afraid I wasn't able to deliver your message to the following addresses.")
		w.line("This is a permanent error; I've given up. Sorry it didn't work out.\r\n")
	case kind == Delayed:
		w.line("I haven't been able to deliver your message to the following addresses yet.")
		w.line("This is only a warning: YOU DO NOT NEED TO SEND YOUR MESSAGE AGAIN. I'll keep trying.\r\n")
	default:
		w.line("You asked to be told: your message has gone to the following addresses.\r\n")
	}
	for _, o := range r.Outcomes {
		w.line("<%s>:", o.Recipient)
		switch o.Action {
		case Delivered:
			w.line("It was delivered.")
		case Relayed:
			w.line("Another host has taken it, which will not tell you more.")
		case Delayed:
			w.line("I'll give up on %s.", message.Date822(o.RetryUntil))
		}
		if text := safe(o.Text, "\r\n"); text != "" {
			w.line("%s", text)
		}
		w.line("")
	}
}

// qsbmf writes the body in qmail-send's bounce message format.
func (r *Report) qsbmf(w *writer) {
	w.line("")
	r.text(w)
	what := "the message"
	if r.HeaderOnly {
		what = "the header of the message"
	}
	w.line("--- Below this line is a copy of %s.\r\n", what)
	w.line("Return-Path: <%s>", r.Sender)
	r.copyOriginal(w)
}

// dsn writes the body as multipart/report.
func (r *Report) dsn(w *writer) {
	boundary := fmt.Sprintf("=_indigo_%s_%d", r.ID, r.Now.UnixNano())
	w.line("MIME-Version: 1.0")
	w.line("Content-Type: multipart/report; report-type=delivery-status;\r\n boundary=\"%s\"", boundary)
	w.line("\r\n--%s", boundary)
	w.line("Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n")
	r.text(w)
	what := "message"
	if r.HeaderOnly {
		what = "message's header"
	}
	w.line("--- Below the report is a copy of the %s.\r\n", what)
	w.line("--%s", boundary)
	status := "message/delivery-status"
	if r.UTF8 {
		status = "message/global-delivery-status\r\nContent-Transfer-Encoding: 8bit"
	}
	w.line("Content-Type: %s\r\n", status)
	w.line("Reporting-MTA: dns; %s", r.Host)
	if r.EnvID != "" {
		// As the sender wrote it, without the encoding of its way here (RFC 3464 section 2.2.1).
		w.line("Original-Envelope-Id: %s", safe(fromXtext(r.EnvID), " "))
	}
	w.line("Arrival-Date: %s", message.Date822(r.Arrived))
	for _, o := range r.Outcomes {
		w.line("")
		r.outcome(w, o)
	}
	w.line("\r\n--%s", boundary)
	kind := map[bool]map[bool]string{
		false: {false: "message/rfc822", true: "text/rfc822-headers"},
		true:  {false: "message/global", true: "message/global-headers"},
	}[r.UTF8][r.HeaderOnly]
	w.line("Content-Type: %s\r\nContent-Transfer-Encoding: 8bit\r\n", kind)
	r.copyOriginal(w)
	w.line("\r\n--%s--", boundary)
}

// outcome writes the fields of one recipient (RFC 3464 section 2.3).
func (r *Report) outcome(w *writer, o Outcome) {
	if o.Orcpt != "" {
		kind, text, _ := strings.Cut(o.Orcpt, ";")
		w.line("Original-Recipient: %s;%s", safe(kind, " "), safe(fromXtext(text), " "))
	}
	kind := "rfc822"
	if strings.ContainsFunc(o.Recipient.String(), func(c rune) bool { return c >= 0x80 }) {
		kind = "utf-8"
	}
	w.line("Final-Recipient: %s; %s", kind, o.Recipient)
	w.line("Action: %s", o.Action)
	w.line("Status: %s", o.status())
	if text := safe(o.Text, "\r\n "); text != "" {
		switch {
		case o.Code > 0 && (o.Action == Failed || o.Action == Delayed):
			w.line("Diagnostic-Code: smtp; %d %s", o.Code, text)
		case o.Action != Delivered:
			w.line("Diagnostic-Code: x-qmail; %s", text)
		}
	}
	if o.Action == Delayed && !o.RetryUntil.IsZero() {
		w.line("Will-Retry-Until: %s", message.Date822(o.RetryUntil))
	}
	w.line("Last-Attempt-Date: %s", message.Date822(r.Now))
}

// status is the enhanced code, of the class that the action asks for (RFC 3464 section 2.3.4).
func (o *Outcome) status() string {
	class := map[Action]string{Failed: "5", Delayed: "4", Delivered: "2", Relayed: "2"}[o.Action]
	switch {
	case strings.HasPrefix(o.Enhanced, class+"."):
		return o.Enhanced
	case o.Action == Failed && (o.Code/100 == 4 || strings.HasPrefix(o.Enhanced, "4.")):
		// What was temporary has become permanent by its age (RFC 3463 section 3.5).
		return "5.4.7"
	}
	return class + ".0.0"
}

// fromXtext undoes the encoding of RFC 3461 section 4; what is malformed stays as it is.
func fromXtext(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		var c byte
		if s[i] == '+' && i+2 < len(s) {
			if _, err := fmt.Sscanf(s[i+1:i+3], "%02X", &c); err == nil {
				b.WriteByte(c)
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func (r *Report) copyOriginal(w *writer) {
	if !r.HeaderOnly {
		if _, err := io.Copy(w, r.Original); err != nil {
			w.err = err
		}
		return
	}
	const most = 64 << 10
	header, err := io.ReadAll(io.LimitReader(r.Original, most))
	if err != nil {
		w.err = err
		return
	}
	// A failure to write shows at Flush.
	_, _ = w.Write(header[:message.HeaderEnd(header)])
}

// safe makes a text lines of at most 900 bytes without control bytes; lines are joined by join.
func safe(text, join string) string {
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\r' || r == '\n' })
	for i, l := range lines {
		l = strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return '?'
			}
			return r
		}, l)
		lines[i] = l[:min(len(l), 900)]
	}
	return strings.Join(lines, join)
}
