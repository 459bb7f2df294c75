// Package bounce is vocabulary: delivery status notifications as multipart/report (RFC 3462, 3464), with a text for people
// in qmail's words. It must not know why a delivery failed.
package bounce

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/message"
)

// Failure is a recipient that did not get the message.
type Failure struct {
	Recipient addr.Address
	Orcpt     string
	Code      int
	Enhanced  string
	Text      string
}

// Report is a bounce to be written.
type Report struct {
	// Host is this system, ID the bounce's queue id.
	Host, ID string
	From, To addr.Address
	// Double says that this reports a bounce that bounced, to the postmaster.
	Double       bool
	Arrived, Now time.Time
	EnvID        string
	Failures     []Failure
	// Original is the message in wire form; HeaderOnly gives back its header only.
	Original   io.Reader
	HeaderOnly bool
	UTF8       bool
}

// MessageID gives the Message-ID without angle brackets.
func (r *Report) MessageID() string { return r.ID + ".bounce@" + r.Host }

// Write writes the report in wire form.
func (r *Report) Write(to io.Writer) error {
	w := bufio.NewWriterSize(to, 32<<10)
	boundary := fmt.Sprintf("=_indigo_%s_%d", r.ID, r.Now.UnixNano())
	line := func(format string, args ...any) { fmt.Fprintf(w, format+"\r\n", args...) }
	line("Received: indigo queue %s by host %s (invoked for bounce);\r\n %s", r.ID, r.Host, message.Date822(r.Now))
	line("Date: %s", message.Date822(r.Now))
	line("From: %s", r.From)
	line("To: %s", r.To)
	line("Subject: failure notice")
	line("Message-ID: <%s>", r.MessageID())
	line("Auto-Submitted: auto-replied")
	line("MIME-Version: 1.0")
	line("Content-Type: multipart/report; report-type=delivery-status;\r\n boundary=\"%s\"", boundary)
	line("")
	line("--%s", boundary)
	line("Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n")
	line("Hi. This is the Indigo program at %s.", r.Host)
	if r.Double {
		line("I tried to deliver a bounce message to this address, but the bounce bounced!\r\n")
	} else {
		line("I'm afraid I wasn't able to deliver your message to the following addresses.")
		line("This is a permanent error; I've given up. Sorry it didn't work out.\r\n")
	}
	for _, f := range r.Failures {
		line("<%s>:\r\n%s\r\n", f.Recipient, safe(f.Text, "\r\n"))
	}
	what := "message"
	if r.HeaderOnly {
		what = "message's header"
	}
	line("--- Below the report is a copy of the %s.\r\n", what)
	line("--%s", boundary)
	line("Content-Type: message/delivery-status\r\n")
	line("Reporting-MTA: dns; %s", r.Host)
	if r.EnvID != "" {
		line("Original-Envelope-Id: %s", safe(r.EnvID, " "))
	}
	line("Arrival-Date: %s", message.Date822(r.Arrived))
	for _, f := range r.Failures {
		line("")
		if f.Orcpt != "" {
			line("Original-Recipient: %s", safe(f.Orcpt, " "))
		}
		line("Final-Recipient: rfc822; %s", f.Recipient)
		line("Action: failed")
		status := f.Enhanced
		if !strings.HasPrefix(status, "5") {
			// What was temporary has become permanent by its age (RFC 3463 section 3.5).
			status = "5.4.7"
			if f.Code >= 500 {
				status = "5.0.0"
			}
		}
		line("Status: %s", status)
		line("Diagnostic-Code: smtp; %s", safe(f.Text, " "))
	}
	line("\r\n--%s", boundary)
	kind := "message/rfc822"
	if r.HeaderOnly {
		kind = "text/rfc822-headers"
	}
	line("Content-Type: %s\r\nContent-Transfer-Encoding: 8bit\r\n", kind)
	if err := r.copyOriginal(w); err != nil {
		return err
	}
	line("\r\n--%s--", boundary)
	return w.Flush()
}

func (r *Report) copyOriginal(w *bufio.Writer) error {
	if !r.HeaderOnly {
		_, err := io.Copy(w, r.Original)
		return err
	}
	const most = 64 << 10
	header, err := io.ReadAll(io.LimitReader(r.Original, most))
	if err != nil {
		return err
	}
	_, err = w.Write(header[:message.HeaderEnd(header)])
	return err
}

// safe makes a peer's text lines of at most 900 bytes without control bytes; lines are joined by join.
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
