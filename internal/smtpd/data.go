package smtpd

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/message"
	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/tlsx"
	"github.com/indigomail/indigo/internal/trace"
	"github.com/indigomail/indigo/internal/wire"
)

func describeTLS(s *tls.ConnectionState) string { return tlsx.Describe(s) }

// maxHeader is how much of a message is looked at for its header.
const maxHeader = 256 << 10

// data is DATA: the message goes straight into a submission, its header is looked at on the way.
func (c *session) data(args string) {
	switch {
	case args != "":
		c.wrong(replySyntax)
		return
	case !c.inMail:
		c.wrong(replyMailFirst)
		return
	case len(c.to) == 0:
		c.wrong(replyRcptFirst)
		return
	}
	recipients := make([]addr.Address, len(c.to))
	for i, r := range c.to {
		recipients[i] = r.Address
	}
	if v := c.config.Policy.Data(c.ctx, &c.Session, c.from, recipients); v.Action != policy.Accept {
		c.answer(trace.Event{Kind: "data"}, v, reply{})
		return
	}
	submission, err := c.config.Queue.Begin(c.ctx, c.size)
	if err != nil {
		c.failed(err)
		return
	}
	c.say(replyGoAhead)
	if c.out.Flush() != nil {
		submission.Abort()
		c.end = true
		return
	}
	c.busy()
	// A failure comes back at the next Write; the client sends its message in any case and is read to its end.
	_, _ = submission.Write([]byte(c.received(submission.ID())))
	w := &headerWriter{submission: submission, complete: c.Submission, host: c.config.Hostname, now: c.config.Now}
	limit := int64(settings.DataBytes.Get(c.Settings))
	c.in.From(&slowReader{c: c, until: time.Now().Add(maxData)})
	size, err := c.in.ReadData(w, wire.DataOptions{Limit: limit, AcceptBare: settings.BareNewline.Get(c.Settings) == "accept"})
	c.in.From(c.conn)
	defer c.reset()
	if err == nil {
		err = w.flush()
	}
	if err != nil {
		submission.Abort()
		var refused *mailerr.Error
		switch {
		case errors.Is(err, wire.ErrTooLarge):
			c.refuse("data", "size", fmt.Sprint(size), replyTooLarge)
		case errors.Is(err, wire.ErrBareNewline):
			c.record(trace.Event{Kind: "data", Verdict: "reject", Check: "bare-newline", Setting: settings.BareNewline.Name,
				Layer: c.Settings.Source(settings.BareNewline.Setting).String(), Reply: strings.TrimSpace(replyBareNewline.String())})
			c.say(replyBareNewline)
		case errors.As(err, &refused):
			c.failed(err)
		case errors.Is(err, os.ErrDeadlineExceeded):
			c.say(replyTimeout)
			c.end = true
		default:
			c.record(trace.Event{Kind: "data", Verdict: "defer", Check: "connection", Input: err.Error()})
			c.end = true
		}
		return
	}
	v := c.config.Policy.EndOfData(c.ctx, &c.Session, c.from, recipients, w.header, size)
	if v.Action == policy.Defer || v.Action == policy.Reject {
		submission.Abort()
		c.answer(trace.Event{Kind: "data", Bytes: size}, v, reply{})
		return
	}
	id := submission.ID()
	accepted := reply{250, "2.0.0", fmt.Sprintf("ok %d qp %s", c.config.Now().Unix(), id)}
	if v.Action == policy.Discard {
		submission.Abort()
		c.answer(trace.Event{Kind: "data", Bytes: size}, v, accepted)
		return
	}
	client := ""
	if c.Client.IsValid() {
		client = c.Client.Addr().String()
	}
	err = submission.Commit(c.ctx, queue.Envelope{
		Sender: c.from, Recipients: c.to, MessageID: w.messageID, Body: c.body, UTF8: c.utf8, EnvID: c.envid, Return: c.ret,
		Origin: queue.Origin{Service: c.Service, Session: c.ID, Client: client, User: c.User, UID: os.Getuid(), PID: c.config.PID},
	})
	if err != nil {
		c.failed(err)
		return
	}
	c.answer(trace.Event{Kind: "data", Queue: id.String(), MessageID: w.messageID, Bytes: size, Took: c.config.Now().Sub(c.beganMail)}, v, accepted)
}

// failed answers that the message is not in the queue.
func (c *session) failed(err error) {
	e := mailerr.From(err)
	c.record(trace.Event{Kind: "data", Verdict: "defer", Check: "queue", Input: err.Error(), Reply: e.Reply()})
	c.config.Logger.Warn(fmt.Sprintf("%s: message from %s not queued: %v", c.Service, c.Client.Addr(), err))
	c.say(fromError(e))
}

// received gives this hop's Received field.
func (c *session) received(id queue.ID) string {
	with := "SMTP"
	if c.esmtp {
		with = "ESMTP"
		if c.utf8 {
			with = "UTF8SMTP"
		}
		if c.TLS != nil {
			with += "S"
		}
		if c.User != "" {
			with += "A"
		}
	}
	r := message.Received{Program: "smtpd", ID: id.String(), Helo: c.Helo, User: c.User, Host: c.config.Hostname, With: with, Time: c.config.Now()}
	if c.Client.IsValid() {
		r.Client = c.Client.Addr().String()
	}
	if c.TLS != nil {
		r.TLS = tlsx.Describe(c.TLS)
	}
	return r.String()
}

// headerWriter hands content on and keeps the header for the policy. For users' mail it adds a missing Date and
// Message-ID (RFC 6409 section 8).
type headerWriter struct {
	submission queue.Submission
	complete   bool
	host       string
	now        func() time.Time

	header []byte
	// line is where the header's last, unfinished line begins.
	line      int
	ended     bool
	messageID string
}

func (w *headerWriter) Write(p []byte) (int, error) {
	if w.ended {
		return w.submission.Write(p)
	}
	w.header = append(w.header, p...)
	for {
		i := bytes.IndexByte(w.header[w.line:], '\n')
		if i < 0 {
			break
		}
		if i <= 1 {
			return len(p), w.flush()
		}
		w.line += i + 1
	}
	if len(w.header) > maxHeader {
		return len(p), w.flush()
	}
	return len(p), nil
}

// flush writes the header, completed, and whatever came behind it.
func (w *headerWriter) flush() error {
	if w.ended {
		return nil
	}
	w.ended = true
	all := w.header
	w.header = all[:message.HeaderEnd(all)]
	hasDate := false
	for _, f := range message.Fields(w.header) {
		switch {
		case f.Is("Date"):
			hasDate = true
		case f.Is("Message-ID") && w.messageID == "":
			w.messageID = strings.Trim(f.Value(), "<> ")
		}
	}
	var added string
	if w.complete {
		if !hasDate {
			added += "Date: " + message.Date822(w.now()) + "\r\n"
		}
		if w.messageID == "" {
			w.messageID = rand.Text() + "@" + w.host
			added += "Message-ID: <" + w.messageID + ">\r\n"
		}
	}
	if len(w.messageID) > 250 {
		w.messageID = w.messageID[:250]
	}
	if _, err := w.submission.Write([]byte(added)); err != nil {
		return err
	}
	_, err := w.submission.Write(all)
	return err
}

// slowReader renews the deadline while data come in, up to a bound for all of them.
type slowReader struct {
	c     *session
	until time.Time
}

func (s *slowReader) Read(p []byte) (int, error) {
	deadline := time.Now().Add(settings.TimeoutSMTPD.Get(s.c.Settings))
	if deadline.After(s.until) {
		deadline = s.until
	}
	s.c.conn.SetReadDeadline(deadline)
	return s.c.conn.Read(p)
}
