package smtpd

import (
	"errors"
	"os"
	"strconv"
	"time"

	"github.com/indigomail/indigo/internal/message"
	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/tlsx"
	"github.com/indigomail/indigo/internal/trace"
	"github.com/indigomail/indigo/internal/wire"
)

// data is DATA. The content goes into the submission as it comes; 250 is said only after Commit said that it is on disk.
func (c *session) data() {
	config := &c.server.config
	switch {
	case !c.mail.open:
		c.refuse("data", "sequence", "", replyMailFirst)
		return
	case len(c.mail.to) == 0 && c.mail.dropped == 0:
		c.refuse("data", "sequence", "", replyRcptFirst)
		return
	}
	v := config.Policy.Data(c.ctx, &c.Session, c.mail.from, c.addresses)
	if refuses(v) {
		c.mistake(c.decide(trace.Event{Kind: "data"}, v, replyFault))
		return
	}
	forgotten := c.mail.forgotten || v.Action == policy.Discard || len(c.mail.to) == 0
	way := config.Queue
	if config.Through != nil {
		way = config.Through(c.Settings)
	}
	submission, err := way.Begin(c.ctx, c.mail.size)
	if err != nil {
		c.notQueued(err)
		return
	}
	id := submission.ID()
	done := false
	s := c.server.sinks.Get().(*sink)
	defer func() {
		// Also when a fault unwinds this session: exactly one of Commit and Abort.
		if !done {
			submission.Abort()
		}
		s.release()
		c.server.sinks.Put(s)
	}()
	s.begin(submission, c.received(id), config)

	c.say(replyGoAhead)
	options := wire.DataOptions{
		Limit:      int64(settings.DataBytes.Get(c.Settings)),
		AcceptBare: settings.BareNewline.Get(c.Settings) == "accept",
	}
	c.link.until = time.Now().Add(dataTime)
	size, err := c.in.ReadData(s, options)
	c.link.until = time.Time{}
	if err == nil {
		err = s.finish()
	}
	if err != nil {
		c.dataFailed(err, size)
		return
	}

	v = config.Policy.EndOfData(c.ctx, &c.Session, c.mail.from, c.addresses, s.header(), size)
	e := trace.Event{Kind: "data", MessageID: s.messageID, Bytes: size}
	if refuses(v) {
		c.mistake(c.decide(e, v, replyFault))
		c.reset()
		return
	}
	if forgotten || v.Action == policy.Discard {
		v.Action = policy.Discard
		e.Took = config.Now().Sub(c.mail.began)
		c.say(c.decide(e, v, replyQueued(config.Now(), id)))
		c.reset()
		return
	}
	done = true
	if err := submission.Commit(c.ctx, c.envelope(s.messageID)); err != nil {
		c.notQueued(err)
		c.reset()
		return
	}
	c.messages++
	now := config.Now()
	e.Queue, e.Took = id.String(), now.Sub(c.mail.began)
	c.say(c.decide(e, v, replyQueued(now, id)))
	c.reset()
}

func (c *session) envelope(messageID string) queue.Envelope {
	return queue.Envelope{
		Sender: c.mail.from, Recipients: c.mail.to, MessageID: messageID,
		Body: c.mail.body, UTF8: c.mail.utf8, EnvID: c.mail.envid, Return: c.mail.ret, Settings: c.mail.settings,
		Origin: queue.Origin{
			Service: c.Service, Session: c.ID, Client: c.client, User: c.User, UID: os.Getuid(), PID: c.server.config.PID,
		},
	}
}

// dataFailed answers for data that did not get into the submission whole, and forgets the transaction.
func (c *session) dataFailed(err error, size int64) {
	e := trace.Event{Kind: "data", Bytes: size}
	switch {
	case errors.Is(err, wire.ErrTooLarge):
		c.mistake(c.decide(e, c.bySetting("size", "more than "+strconv.Itoa(settings.DataBytes.Get(c.Settings)), settings.DataBytes.Setting), replyTooLarge))
	case errors.Is(err, wire.ErrBareNewline):
		c.mistake(c.decide(e, c.bySetting("bare-newline", "", settings.BareNewline.Setting), replyBareNewline))
	case errors.Is(err, errWrite):
		c.notQueued(err)
	case errors.Is(err, errTimeout):
		v := policy.Verdict{Action: policy.Defer, Check: "timeout"}
		if c.ctx.Err() == nil {
			v = c.bySetting("timeout", "", settings.TimeoutSMTPD.Setting)
			v.Action = policy.Defer
		}
		c.say(c.decide(e, v, replyTimeout))
		c.end("timeout within data")
	default:
		// The client is gone; no reply will reach it.
		c.decide(e, policy.Verdict{Action: policy.Defer, Check: "connection", Input: err.Error()}, &reply{code: 451})
		c.end("connection lost within data")
	}
	c.reset()
}

func (c *session) bySetting(check, input string, setting *settings.Setting) policy.Verdict {
	return policy.Verdict{
		Action: policy.Reject, Check: check, Input: input, Setting: setting.Name, Layer: c.Settings.Source(setting).String(),
	}
}

// notQueued answers that the queue did not take the message. It is logged too: the operator has to know of a full disk.
func (c *session) notQueued(err error) {
	v := failed("queue", err)
	r := c.decide(trace.Event{Kind: "data"}, v, replyFault)
	c.server.config.Logger.Warn(c.Service+": a message was not queued", "session", c.ID, "client", c.client, "error", err)
	c.say(r)
}

// received gives the Received field of this hop (RFC 5321 section 4.4, RFC 3848, wiki 147-171).
func (c *session) received(id queue.ID) string {
	with := "SMTP"
	if c.esmtp {
		with = "ESMTP"
	}
	if c.mail.utf8 {
		with = "UTF8SMTP"
	}
	secured := ""
	if c.TLS != nil {
		with += "S"
		secured = tlsx.Describe(c.TLS)
	}
	if c.User != "" {
		with += "A"
	}
	field := message.Received{
		Program: "smtpd", ID: id.String(), Helo: c.Helo, User: c.User, Client: c.client,
		Host: c.server.config.Hostname, With: with, TLS: secured, Certificate: c.CertifiedBy, Time: c.server.config.Now(),
	}
	if settings.HideHost.Get(c.Settings) {
		field.Helo, field.User, field.Client, field.Certificate = "", "", "", ""
	}
	return field.String()
}
