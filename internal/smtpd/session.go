package smtpd

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/door"
	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
	"github.com/indigomail/indigo/internal/wire"
)

const (
	maxCommand  = 2048
	maxAuthLine = 12288 // RFC 4954 section 4
	maxBad      = 20
	maxLogins   = 3
	// maxData bounds the time of one message's data, whatever the client trickles.
	maxData = time.Hour
)

// session is one connection.
type session struct {
	*Server
	policy.Session
	ctx    context.Context
	conn   net.Conn
	in     *wire.Reader
	out    *bufio.Writer
	esmtp  bool
	logins int
	bad    int
	end    bool

	// idle guards the deadline that interrupts waiting for a command when the door closes.
	idle struct {
		sync.Mutex
		waiting, closing bool
	}

	// transaction
	inMail    bool
	from      addr.Address
	to        []queue.Recipient
	size      int64
	body      string
	utf8      bool
	ret       string
	envid     string
	beganMail time.Time
}

// Handle serves one connection.
func (s *Server) Handle(ctx context.Context, conn net.Conn) {
	c := &session{Server: s, ctx: ctx, conn: conn, in: wire.NewReader(conn, 16<<10), out: bufio.NewWriterSize(conn, 4<<10)}
	c.Session = policy.Session{ID: s.config.NewSessionID(), Service: s.config.Service, Submission: s.config.Submission, Client: door.Peer(conn), Settings: s.config.Settings()}
	stop := context.AfterFunc(ctx, c.interrupt)
	defer stop()
	c.serve()
	// Nothing can be done if the last reply cannot be written.
	_ = c.out.Flush()
	conn.Close()
}

// interrupt ends the waiting for a command; a transaction goes on.
func (c *session) interrupt() {
	c.idle.Lock()
	defer c.idle.Unlock()
	c.idle.closing = true
	if c.idle.waiting {
		c.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// await sets the deadline for the client's next bytes; inside a transaction a closing door waits too.
func (c *session) await() (closing bool) {
	c.idle.Lock()
	defer c.idle.Unlock()
	c.idle.waiting = !c.inMail
	if c.idle.closing && c.idle.waiting {
		return true
	}
	c.conn.SetReadDeadline(time.Now().Add(settings.TimeoutSMTPD.Get(c.Settings)))
	return false
}

func (c *session) busy() {
	c.idle.Lock()
	c.idle.waiting = false
	c.idle.Unlock()
}

// record writes an event of this session to the trace.
func (c *session) record(e trace.Event) {
	e.Time, e.Session, e.Service = c.config.Now(), c.ID, c.Service
	if c.Client.IsValid() {
		e.Client = c.Client.Addr().String()
	}
	e.User = c.User
	if c.inMail && e.From == "" {
		e.From = c.from.String()
	}
	c.config.Trace.Record(e)
}

// say answers, and answer records and answers: the one place where a decision becomes a reply.
func (c *session) say(r reply) {
	c.out.WriteString(r.String())
	if r.code == 421 {
		c.end = true
	}
}

func (c *session) answer(e trace.Event, v policy.Verdict, accepted reply) bool {
	r := accepted
	if v.Action == policy.Defer || v.Action == policy.Reject {
		r = fromError(v.Err)
		if v.Err.Cause != nil {
			e.Input += " " + v.Err.Cause.Error()
		}
	}
	e.Verdict, e.Check, e.Setting, e.Layer = v.Action.String(), v.Check, v.Setting, v.Layer
	e.Input = strings.TrimSpace(v.Input + e.Input)
	if r.code != 0 {
		e.Reply = strings.TrimSpace(r.String())
	}
	c.record(e)
	if r.code != 0 {
		c.say(r)
	}
	return v.Action == policy.Accept || v.Action == policy.Discard
}

// refuse records and sends a reply of the door itself.
func (c *session) refuse(kind, check, input string, r reply) {
	c.record(trace.Event{Kind: kind, Verdict: "reject", Check: check, Input: input, Reply: strings.TrimSpace(r.String())})
	c.say(r)
}

func (c *session) serve() {
	defer c.record(trace.Event{Kind: "close"})
	if c.config.ImplicitTLS && !c.startTLS() {
		return
	}
	v := c.config.Policy.Connect(c.ctx, &c.Session)
	greeting := settings.SMTPGreeting.Get(c.Settings)
	if greeting == "" {
		greeting = c.config.Hostname + " ESMTP Indigo"
	}
	if !c.answer(trace.Event{Kind: "connect"}, v, reply{220, "", greeting}) {
		return
	}
	for !c.end {
		line, err := c.readLine(maxCommand)
		switch {
		case err == nil:
			c.command(line)
		case errors.Is(err, wire.ErrLineTooLong):
			c.wrong(replyLongLine)
		case errors.Is(err, wire.ErrBareNewline):
			c.wrong(replyBareLine)
		default:
			return
		}
	}
}

// readLine waits for a line. Replies are sent when nothing more is buffered, so that a pipelined group is answered with
// one write.
func (c *session) readLine(limit int) (string, error) {
	closing := false
	if c.in.Buffered() == 0 {
		if err := c.out.Flush(); err != nil {
			return "", err
		}
		closing = c.await()
	}
	if closing {
		c.say(replyShutdown)
		return "", context.Canceled
	}
	line, err := c.in.ReadLine(limit)
	c.busy()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if c.ctx.Err() != nil {
			c.say(replyShutdown)
		} else {
			c.say(replyTimeout)
		}
		c.conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
	}
	return string(line), err
}

// wrong counts a mistake of the client.
func (c *session) wrong(r reply) {
	if c.bad++; c.bad > maxBad {
		r = replyTooBad
	}
	c.say(r)
}

func (c *session) command(line string) {
	c.conn.SetWriteDeadline(time.Now().Add(settings.TimeoutSMTPD.Get(c.Settings)))
	verb, rest, _ := strings.Cut(line, " ")
	switch strings.ToUpper(verb) {
	case "HELO":
		c.helo(rest, false)
	case "EHLO":
		c.helo(rest, true)
	case "MAIL":
		c.mail(rest)
	case "RCPT":
		c.rcpt(rest)
	case "DATA":
		c.data(rest)
	case "RSET":
		c.reset()
		c.say(replyOK)
	case "NOOP":
		c.say(replyOK)
	case "VRFY":
		c.say(replyVerify)
	case "HELP":
		c.say(replyHelp)
	case "QUIT":
		c.say(reply{replyBye.code, replyBye.enhanced, c.config.Hostname + " " + replyBye.text})
		c.end = true
	case "STARTTLS":
		c.startTLSCommand(rest)
	case "AUTH":
		c.authenticate(rest)
	case "EXPN", "ETRN", "TURN", "SEND", "SOML", "SAML", "BDAT":
		c.wrong(replyUnsupported)
	default:
		c.wrong(replyUnknown)
	}
}

func (c *session) reset() {
	c.inMail, c.from, c.to, c.size, c.body, c.utf8, c.ret, c.envid = false, addr.Address{}, nil, 0, "", false, "", ""
	// A session sees new settings between messages, never within one.
	c.Settings = c.config.Settings()
}

func (c *session) helo(name string, esmtp bool) {
	name = strings.TrimSpace(name)
	if name == "" || len(name) > 255 {
		c.wrong(replySyntax)
		return
	}
	c.reset()
	c.Helo, c.esmtp = name, esmtp
	v := c.config.Policy.Helo(c.ctx, &c.Session, name)
	if !esmtp {
		c.answer(trace.Event{Kind: "helo"}, v, reply{250, "", c.config.Hostname})
		return
	}
	if !c.answer(trace.Event{Kind: "helo"}, v, reply{}) {
		return
	}
	lines := []string{c.config.Hostname, "PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"}
	lines = append(lines, "SIZE "+strconv.Itoa(settings.DataBytes.Get(c.Settings)))
	if c.TLS == nil && c.config.TLS != nil {
		lines = append(lines, "STARTTLS")
	}
	if c.config.Auth != nil && c.User == "" && c.config.Policy.AuthAllowed(c.ctx, &c.Session).Action == policy.Accept {
		lines = append(lines, "AUTH "+strings.Join(mechanisms(), " "))
	}
	for i, l := range lines {
		dash := "-"
		if i == len(lines)-1 {
			dash = " "
		}
		c.out.WriteString("250" + dash + l + "\r\n")
	}
}

// cutFold removes a prefix of any case.
func cutFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return strings.TrimLeft(s[len(prefix):], " "), true
}

// parameters gives NAME=VALUE pairs, names in upper case; ok is false for a malformed or repeated one.
func parameters(s string) (map[string]string, bool) {
	p := map[string]string{}
	if s != "" && s[0] != ' ' {
		return nil, false
	}
	for field := range strings.FieldsSeq(s) {
		name, value, _ := strings.Cut(field, "=")
		name = strings.ToUpper(name)
		if _, twice := p[name]; twice || name == "" {
			return nil, false
		}
		p[name] = value
	}
	return p, true
}

func (c *session) mail(args string) {
	switch {
	case c.Helo == "":
		c.wrong(replyHeloFirst)
		return
	case c.inMail:
		c.wrong(replyNested)
		return
	}
	rest, ok := cutFold(args, "FROM:")
	if !ok {
		c.wrong(replySyntax)
		return
	}
	from, rest, err := addr.ParsePath(rest, addr.Options{UTF8: true})
	if err != nil {
		c.bad++
		c.refuse("mail", "syntax", err.Error(), replyBadSender)
		return
	}
	params, ok := parameters(rest)
	if !ok {
		c.wrong(replySyntax)
		return
	}
	var size int64
	for name, value := range params {
		switch name {
		case "SIZE":
			if size, err = strconv.ParseInt(value, 10, 63); err != nil || size < 0 {
				c.wrong(replySyntax)
				return
			}
		case "BODY":
			if value = strings.ToUpper(value); value != "7BIT" && value != "8BITMIME" {
				c.wrong(replySyntax)
				return
			}
			c.body = value
		case "SMTPUTF8":
			c.utf8 = true
		case "AUTH":
			// RFC 4954 section 5: taken, but nobody is trusted to vouch for another.
		case "RET":
			c.ret = strings.ToUpper(value)
		case "ENVID":
			c.envid = value
		default:
			c.wrong(replyParameter)
			return
		}
	}
	if limit := int64(settings.DataBytes.Get(c.Settings)); limit > 0 && size > limit {
		c.refuse("mail", "size", strconv.FormatInt(size, 10), replyTooLarge)
		return
	}
	v := c.config.Policy.Mail(c.ctx, &c.Session, from, size)
	if c.answer(trace.Event{Kind: "mail", From: from.String()}, v, replySender) {
		c.inMail, c.from, c.size, c.beganMail = true, from, size, c.config.Now()
	}
}

func (c *session) rcpt(args string) {
	if !c.inMail {
		c.wrong(replyMailFirst)
		return
	}
	rest, ok := cutFold(args, "TO:")
	if !ok {
		c.wrong(replySyntax)
		return
	}
	to, rest, err := addr.ParsePath(rest, addr.Options{UTF8: true})
	if err != nil || to.IsNull() {
		c.bad++
		c.refuse("rcpt", "syntax", fmt.Sprint(err), replyBadAddress)
		return
	}
	params, ok := parameters(rest)
	if !ok {
		c.wrong(replySyntax)
		return
	}
	r := queue.Recipient{Address: to}
	for name, value := range params {
		switch name {
		case "NOTIFY":
			r.Notify = strings.ToUpper(value)
		case "ORCPT":
			r.Orcpt = value
		default:
			c.wrong(replyParameter)
			return
		}
	}
	v := c.config.Policy.Rcpt(c.ctx, &c.Session, c.from, to, len(c.to))
	if c.answer(trace.Event{Kind: "rcpt", To: to.String()}, v, replyRecipient) && v.Action != policy.Discard {
		c.to = append(c.to, r)
	} else if v.Action == policy.Reject {
		c.bad++
	}
}

func (c *session) startTLSCommand(args string) {
	switch {
	case args != "":
		c.wrong(replySyntax)
	case c.TLS != nil:
		c.wrong(replyAlreadyTLS)
	case c.config.TLS == nil:
		c.say(replyNoTLS)
	default:
		c.say(replyReadyTLS)
		if c.out.Flush() != nil || !c.startTLS() {
			c.end = true
			return
		}
		// RFC 3207 section 4.2: all that was learned before is forgotten.
		c.reset()
		c.Helo, c.User = "", ""
	}
}

func (c *session) startTLS() bool {
	began := c.config.Now()
	// What a man in the middle pipelined in clear must not count as said inside TLS.
	c.in.Discard()
	conn := tls.Server(c.conn, c.config.TLS)
	ctx, cancel := context.WithTimeout(c.ctx, 30*time.Second)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		c.record(trace.Event{Kind: "tls", Verdict: "failure", Input: err.Error()})
		c.end = true
		return false
	}
	state := conn.ConnectionState()
	c.TLS = &state
	c.idle.Lock()
	c.conn = conn
	c.idle.Unlock()
	c.in.Reset(conn)
	c.out.Reset(conn)
	c.record(trace.Event{Kind: "tls", Verdict: "success", Input: describeTLS(&state), Took: c.config.Now().Sub(began)})
	return true
}
