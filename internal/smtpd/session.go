package smtpd

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"strconv"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/tlsx"
	"github.com/indigomail/indigo/internal/trace"
	"github.com/indigomail/indigo/internal/wire"
)

// What a client may do to us, beyond what settings say.
const (
	// maxCommand bounds a command line with its CRLF: the 512 octets of RFC 5321 and what the extensions add.
	maxCommand = 2000
	// maxAuth bounds a line of an AUTH exchange (RFC 4954 section 4).
	maxAuth = 12288
	// maxMistakes bounds the commands that were malformed, unknown or out of sequence.
	maxMistakes = 20
	// handshakeTime bounds a TLS handshake, dataTime one message's data, however steadily they trickle.
	handshakeTime = time.Minute
	dataTime      = time.Hour
)

// session is one connection. Everything but link's guarded part belongs to its goroutine.
type session struct {
	policy.Session
	server *Server
	ctx    context.Context
	cancel context.CancelFunc
	// raw is the connection below TLS; closing it ends everything.
	raw  net.Conn
	link link
	// certificate is the one of this system that was shown to the client; nil in clear and in a resumed TLS session.
	certificate *x509.Certificate
	in          *wire.Reader
	// client is the address of the client for the trace, "" when it has none.
	client string
	began  time.Time
	esmtp  bool
	// rehearsed is set when nobody is at the other end; see Rehearse.
	rehearsed bool
	// letIn is set when the client was greeted and not refused.
	letIn bool
	// ended is set when the session is over, with the reason.
	ended bool
	why   string
	// mistakes and refused count up to their limits, messages those that were accepted.
	mistakes, refused, messages int
	logins                      auth.Tries

	mail transaction
	// addresses are the addresses of mail.to, for the policy.
	addresses []addr.Address
}

// transaction is what MAIL begins.
type transaction struct {
	mailCommand
	open  bool
	began time.Time
	to    []queue.Recipient
	// settings are those for the sender.
	settings *settings.View
	// forgotten is true when the policy discards the whole message; dropped counts recipients that it discarded.
	forgotten bool
	dropped   int
}

// begin sets what is known before the first byte.
func (c *session) begin() {
	c.began = c.server.config.Now()
	if c.Client.IsValid() {
		c.client = c.Client.Addr().String()
	}
	c.link.timeout = settings.TimeoutSMTPD.Get(c.Settings)
}

// serve is the dialogue.
func (c *session) serve(b *buffers) {
	c.in, c.link.out = b.in, b.out
	c.in.Reset(&c.link)
	c.link.out.Reset(c.raw)
	c.converse()
	c.link.farewell()
	c.close(c.why)
	if c.server.config.Turn != nil && c.letIn && !c.rehearsed && c.Client.IsValid() && settings.AutoTurn.Get(c.Settings) {
		c.server.config.Turn.Connected(c.Settings, c.ID, c.Client.Addr())
	}
}

func (c *session) converse() {
	if c.server.config.ImplicitTLS && !c.handshake() {
		return
	}
	if !c.admit() || !c.greetDelay() {
		return
	}
	v := c.server.config.Policy.Connect(c.ctx, &c.Session)
	greeting := replyGreeting(c.server.config.Hostname, settings.SMTPGreeting.Get(c.Settings))
	c.say(c.decide(trace.Event{Kind: "connect"}, v, greeting))
	if refuses(v) {
		// RFC 5321 section 3.1 lets a 554 client ask for nothing but QUIT; not to wait for it is what all do.
		c.end("refused at connect")
	}
	c.letIn = !c.ended
	for !c.ended {
		line, err := c.in.ReadLine(maxAuth)
		switch {
		case err == nil:
			c.command(line)
		case errors.Is(err, wire.ErrLineTooLong):
			c.mistake(replyLongLine)
		case errors.Is(err, wire.ErrBareNewline):
			c.mistake(replyBareLine)
		default:
			c.lost(err)
		}
	}
}

// lost ends the session after a read error, with a last word where the client can hear it.
func (c *session) lost(err error) {
	switch {
	case errors.Is(err, errClosing):
		c.say(replyShutdown)
		c.end("shutdown")
	case errors.Is(err, errTimeout):
		c.say(replyTimeout)
		c.end("timeout")
	default:
		c.end("connection lost")
	}
}

// end ends the session after the current command; the first reason stays.
func (c *session) end(why string) {
	if !c.ended {
		c.ended, c.why = true, why
	}
}

// say queues a reply; it is sent when the session next waits for the client.
func (c *session) say(r *reply) {
	// A write error comes back at the next read.
	_, _ = c.link.out.WriteString(r.wire)
	if r.code == 421 {
		c.end("421")
	}
}

// refuses tells whether a door must not go on.
func refuses(v policy.Verdict) bool { return v.Action == policy.Defer || v.Action == policy.Reject }

// decide is the only place where a decision becomes a reply: it records the verdict and gives the reply that says it.
// r is the reply when v accepts or discards, and also when v refuses without an Err, as the door's own refusals do.
func (c *session) decide(e trace.Event, v policy.Verdict, r *reply) *reply {
	if refuses(v) {
		switch {
		case v.Err != nil:
			r = fromError(v.Err)
		case r.code < 400:
			r = replyFault
		}
	}
	e.Time, e.Session, e.Service, e.Client = c.server.config.Now(), c.ID, c.Service, c.client
	if e.User == "" {
		e.User = c.User
	}
	if e.From == "" && c.mail.open {
		e.From = c.mail.from.String()
	}
	e.Verdict, e.Check, e.Input, e.Setting, e.Layer = v.Action.String(), v.Check, v.Input, v.Setting, v.Layer
	if v.Err != nil && v.Err.Cause != nil {
		if e.Input != "" {
			e.Input += ": "
		}
		e.Input += v.Err.Cause.Error()
	}
	e.Reply = r.trace()
	c.server.config.Trace.Record(e)
	return r
}

// refuse records and says a refusal of the door's own, and counts it as a mistake of the client.
func (c *session) refuse(kind, check, input string, r *reply) {
	v := policy.Verdict{Action: policy.Reject, Check: check, Input: input}
	if r.code < 500 {
		v.Action = policy.Defer
	}
	c.mistake(c.decide(trace.Event{Kind: kind}, v, r))
}

// mistake says r and counts it; the last one that is borne is the end. Unknown commands come here directly: they decide
// nothing, and the record of the session's end tells their number.
func (c *session) mistake(r *reply) {
	c.say(r)
	if c.mistakes++; c.mistakes >= maxMistakes && !c.ended {
		c.say(replyManyErrors)
		c.why = "too many errors"
	}
}

// close records the end of the session.
func (c *session) close(why string) {
	now := c.server.config.Now()
	input := "messages " + strconv.Itoa(c.messages)
	if c.mistakes > 0 {
		input += ", mistakes " + strconv.Itoa(c.mistakes)
	}
	if c.refused > 0 {
		input += ", refused recipients " + strconv.Itoa(c.refused)
	}
	c.server.config.Trace.Record(trace.Event{
		Time: now, Kind: "close", Session: c.ID, Service: c.Service, Client: c.client, User: c.User,
		Check: why, Input: input, Took: now.Sub(c.began),
	})
}

// command obeys one line.
func (c *session) command(line []byte) {
	v, args := parseVerb(line)
	if len(line)+2 > maxCommand && v != verbAuth {
		c.mistake(replyLongLine)
		return
	}
	if len(args) > 0 && (v == verbData || v == verbRset || v == verbQuit || v == verbStartTLS) {
		c.mistake(replyNoArguments)
		return
	}
	if c.server.config.ODMR && !v.ofODMR() {
		c.mistake(replyUnsupported)
		return
	}
	switch v {
	case verbHelo, verbEhlo:
		c.helo(args, v == verbEhlo)
	case verbMail:
		c.from(string(args))
	case verbRcpt:
		c.rcpt(string(args))
	case verbData:
		c.data()
	case verbRset:
		c.reset()
		c.say(replyOK)
	case verbNoop:
		c.say(replyOK)
	case verbVrfy:
		c.say(replyVerify)
	case verbHelp:
		c.say(c.help())
	case verbQuit:
		c.say(replyBye(c.server.config.Hostname))
		c.end("quit")
	case verbStartTLS:
		c.startTLS()
	case verbAuth:
		c.auth(string(args))
	case verbEtrn:
		c.etrn(string(args))
	case verbAtrn:
		c.atrn(string(args))
	case verbUnsupported:
		c.mistake(replyUnsupported)
	default:
		c.mistake(replyUnknown)
	}
}

// reset forgets the transaction. Recipients are not reused: the queue may still hold them.
func (c *session) reset() {
	c.mail = transaction{}
	c.addresses = c.addresses[:0]
	c.link.busy = false
	c.Settings = c.view()
	c.link.timeout = settings.TimeoutSMTPD.Get(c.Settings)
}

// view gives the settings of the session as they are in force now: the service's, with those of the tcp rules for the
// client and of auth.envrules for its user over them.
func (c *session) view() *settings.View {
	v, _, err := c.server.config.Settings().ForClient(c.Client.Addr(), c.Host)
	if err != nil {
		// A damaged file: the client was let in by it at connect, and what it sets is closed by default.
		c.server.config.Logger.Warn(c.Service+": tcp rules: "+err.Error(), "session", c.ID)
	}
	if c.User != "" {
		v = v.ForUser(c.User)
	}
	return v
}

// admit finds out the client's host name where something asks for it, and obeys the tcp rules: it sends a client away that
// they deny, without a word, as tcpserver does.
func (c *session) admit() bool {
	base := c.server.config.Settings()
	rules := base.TCPRules()
	if c.server.config.HostName != nil && (rules != nil && rules.NeedsHost || policy.NeedsHost(base)) {
		c.Host = c.server.config.HostName(c.ctx, c.Client.Addr())
	}
	_, verdict, err := base.ForClient(c.Client.Addr(), c.Host)
	if err != nil {
		v := policy.Verdict{Action: policy.Defer, Check: "tcprules", Input: err.Error()}
		c.say(c.decide(trace.Event{Kind: "connect"}, v, replyFault))
		c.end("tcp rules damaged")
		return false
	}
	if verdict.Deny {
		v := policy.Verdict{Action: policy.Reject, Check: "tcprules", Input: verdict.Rule, Setting: settings.TCPRulesFile.Name, Layer: verdict.Where}
		c.decide(trace.Event{Kind: "connect"}, v, &reply{code: 554})
		c.end("denied by tcp rules")
		return false
	}
	c.Settings = c.view()
	c.link.timeout = settings.TimeoutSMTPD.Get(c.Settings)
	return true
}

// greetDelay waits GREETDELAY before the greeting; a client that cannot wait for it is sent away (RFC 5321 section 3.1).
func (c *session) greetDelay() bool {
	delay := settings.GreetDelay.Get(c.Settings)
	if delay <= 0 || c.rehearsed {
		return true
	}
	timeout := c.link.timeout
	c.link.timeout = delay
	err := c.in.Wait()
	c.link.timeout = timeout
	switch {
	case errors.Is(err, errTimeout):
		return true
	case err != nil:
		c.lost(err)
		return false
	}
	v := policy.Verdict{Action: policy.Reject, Check: "greet-delay"}
	v.Setting, v.Layer = settings.GreetDelay.Name, c.Settings.Source(settings.GreetDelay.Setting).String()
	c.say(c.decide(trace.Event{Kind: "connect"}, v, replyEarly))
	c.end("talked before the greeting")
	return false
}

// tarpit waits TARPITDELAY before the reply to a recipient beyond TARPITCOUNT.
func (c *session) tarpit() {
	count := settings.TarpitCount.Get(c.Settings)
	if count == 0 || c.rehearsed || len(c.mail.to)+c.mail.dropped < count {
		return
	}
	timer := time.NewTimer(settings.TarpitDelay.Get(c.Settings))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.ctx.Done():
	}
}

func (c *session) helo(args []byte, extended bool) {
	name, ok := parseHelo(args)
	if !ok {
		c.refuse("helo", "syntax", "", replyHeloSyntax)
		return
	}
	c.reset()
	before := c.Helo
	c.Helo = name
	v := c.server.config.Policy.Helo(c.ctx, &c.Session, name)
	r := replyHelo(c.server.config.Hostname)
	if extended && !refuses(v) {
		r = c.extensions()
	}
	if r = c.decide(trace.Event{Kind: "helo"}, v, r); refuses(v) {
		c.Helo = before
		c.mistake(r)
		return
	}
	c.esmtp = extended
	c.say(r)
}

// extensions gives the reply to EHLO. AUTH is not even named where it may not be used.
func (c *session) extensions() *reply {
	config := &c.server.config
	var mechanisms []string
	if config.Auth != nil && c.User == "" && !refuses(config.Policy.AuthAllowed(c.ctx, &c.Session)) {
		mechanisms = c.connection().Offer(c.ctx)
	}
	e := extensions{startTLS: config.TLS != nil && c.TLS == nil, mechanisms: mechanisms, oldAuth: settings.OldAuth.Get(c.Settings)}
	if !config.ODMR {
		e.mail, e.size, e.etrn = true, settings.DataBytes.Get(c.Settings), c.offersETRN()
	}
	return replyEhlo(config.Hostname, e)
}

// from is MAIL.
func (c *session) from(args string) {
	switch {
	case c.Helo == "":
		c.refuse("mail", "sequence", "", replyHeloFirst)
		return
	case c.mail.open:
		c.refuse("mail", "sequence", "", replyNested)
		return
	}
	m, refused, what := parseMail(args)
	if refused != nil {
		c.refuse("mail", "syntax", what, refused)
		return
	}
	m.from = policy.Complete(m.from, c.Settings)
	c.Settings = c.view().ForSender(m.from)
	v := c.server.config.Policy.Mail(c.ctx, &c.Session, m.from, m.size)
	r := c.decide(trace.Event{Kind: "mail", From: m.from.String(), Bytes: m.size}, v, replySender)
	if refuses(v) {
		c.mistake(r)
		c.Settings = c.view()
		return
	}
	c.say(r)
	c.mail = transaction{mailCommand: m, open: true, settings: c.Settings, began: c.server.config.Now(), forgotten: v.Action == policy.Discard}
	c.link.busy = true
}

func (c *session) rcpt(args string) {
	if !c.mail.open {
		c.refuse("rcpt", "sequence", "", replyMailFirst)
		return
	}
	m, refused, what := parseRcpt(args, c.mail.utf8)
	if refused != nil {
		c.refuse("rcpt", "syntax", what, refused)
		return
	}
	m.to = policy.Complete(m.to, c.Settings)
	v := c.server.config.Policy.Rcpt(c.ctx, &c.Session, c.mail.from, m.to, len(c.mail.to)+c.mail.dropped)
	c.tarpit()
	c.say(c.decide(trace.Event{Kind: "rcpt", To: m.to.String()}, v, replyRecipient))
	switch v.Action {
	case policy.Accept:
		// domainqueue: what it sets holds for the rest of the transaction; the queue itself is each recipient's own.
		c.Settings = c.Settings.ForDomain(m.to.Domain)
		c.mail.to = append(c.mail.to, queue.Recipient{Address: m.to, Notify: m.notify, Orcpt: m.orcpt})
		c.addresses = append(c.addresses, m.to)
	case policy.Discard:
		c.mail.dropped++
	default:
		// Honest clients meet unknown users too, so that these are not mistakes; but there is an end to it.
		if c.refused++; c.refused >= settings.MaxRcptErrors.Get(c.Settings) && !c.ended {
			c.say(replyManyErrors)
			c.why = "too many refused recipients"
		}
	}
}

// startTLS is STARTTLS (RFC 3207).
func (c *session) startTLS() {
	switch {
	case c.TLS != nil:
		c.refuse("tls", "sequence", "", replyActiveTLS)
		return
	case c.server.config.TLS == nil:
		c.refuse("tls", "certificate", "", replyNoTLS)
		return
	}
	// What came behind STARTTLS in clear may be a stranger's, put there to be obeyed inside TLS (RFC 3207 section 6).
	discarded := c.in.Buffered()
	c.in.Discard()
	c.say(replyReadyTLS)
	c.link.farewell()
	if !c.handshake() {
		return
	}
	if discarded > 0 {
		c.server.config.Logger.Warn(c.Service+": discarded what was sent in clear behind STARTTLS", "session", c.ID, "client", c.client, "bytes", discarded)
	}
	// RFC 3207 section 4.2: what was learned before TLS is forgotten.
	c.reset()
	c.Helo, c.User, c.esmtp = "", "", false
}

// handshake goes over to TLS; when it fails the session is over.
func (c *session) handshake() bool {
	began := c.server.config.Now()
	conn, handshake := tlsx.Server(c.raw, c.server.config.TLS)
	ctx, cancel := context.WithTimeout(c.ctx, min(handshakeTime, c.link.timeout))
	defer cancel()
	// Deadlines of the dialogue in clear end here; the context's takes their place.
	_ = c.raw.SetDeadline(time.Time{})
	if err := conn.HandshakeContext(ctx); err != nil {
		c.decide(trace.Event{Kind: "tls", Took: c.server.config.Now().Sub(began)},
			policy.Verdict{Action: policy.Reject, Check: "handshake", Input: err.Error()}, &reply{code: 500})
		c.end("TLS handshake failed")
		return false
	}
	done := handshake()
	c.TLS, c.certificate, c.ClientCertificate = &done.State, done.Certificate, done.Client
	c.link.setConn(conn)
	c.in.Reset(&c.link)
	c.decide(trace.Event{Kind: "tls", Took: c.server.config.Now().Sub(began)},
		policy.Verdict{Check: "handshake", Input: tlsx.Describe(c.TLS) + certified(c.ClientCertificate)}, &reply{code: 220})
	return true
}

// certified tells of a client's certificate behind what is said of TLS; "" when there is none.
func certified(c *tlsx.Client) string {
	switch {
	case c == nil:
		return ""
	case c.Err != nil:
		return ", client certificate " + c.Subject + " not verified: " + c.Err.Error()
	}
	return ", client certificate " + c.Subject + " verified"
}

// failed gives the verdict on an error of a station behind the door.
func failed(check string, err error) policy.Verdict {
	e := mailerr.From(err)
	v := policy.Verdict{Action: policy.Reject, Err: e, Check: check}
	if e.Temporary() {
		v.Action = policy.Defer
	}
	return v
}
