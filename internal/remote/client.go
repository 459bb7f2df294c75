package remote

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/wire"
)

const (
	maxReplyLine  = 2048
	maxReplyLines = 100
	// dataEnd is how long a host may take to accept a message (RFC 5321 section 4.5.3.2.6).
	dataEnd     = 10 * time.Minute
	maxDialogue = 60
)

var errTLS = errors.New("TLS failed")

// client is one SMTP connection as its client.
type client struct {
	conn       net.Conn
	in         *wire.Reader
	out        *bufio.Writer
	target     target
	timeout    time.Duration
	extensions map[string]string
	tls        bool
	dialogue   []string
	// demands are what is wanted of TLS, login that a password is to be shown. verified tells that the certificate is what is demanded,
	// unverified why it is not, wayOut what the operator can do about that.
	demands            demands
	login, verified    bool
	unverified, wayOut string
	now                func() time.Time
	// secrets are texts that must not be shown.
	secrets  []string
	messages int
	usable   bool
	since    time.Time
}

func newClient(conn net.Conn, t target, timeout time.Duration, buffer int) *client {
	return &client{conn: conn, in: wire.NewReader(conn, buffer), out: bufio.NewWriterSize(conn, 16<<10), target: t, timeout: timeout, usable: true}
}

func (c *client) offers(keyword string) bool { _, ok := c.extensions[keyword]; return ok }

// note keeps a line of the dialogue for the trace.
func (c *client) note(prefix, line string) {
	if len(c.dialogue) < maxDialogue {
		c.dialogue = append(c.dialogue, prefix+line[:min(len(line), 300)])
	}
}

// put sends a command; shown is what the trace may see of it.
func (c *client) put(command, shown string) {
	c.note("> ", shown)
	c.out.WriteString(command + "\r\n")
}

// serverReply is a reply of the other side.
type serverReply struct {
	code  int
	lines []string
}

func (r serverReply) text() string { return strings.Join(r.lines, " ") }

// fail makes a refusal of the other side an error with its own codes.
func (r serverReply) fail(c *client, what string) *mailerr.Error {
	code := r.code
	if code < 400 || code > 599 {
		code = 451
	}
	e := mailerr.Newf(code, mailerr.Enhanced{code / 100, 0, 0}, "%s %s.\nRemote host said: %d %s", c.target.ip(), what, r.code, r.text())
	var class, subject, detail int
	if n, _ := fmt.Sscanf(r.text(), "%d.%d.%d", &class, &subject, &detail); n == 3 && class == code/100 && subject >= 0 && subject < 1000 && detail >= 0 && detail < 1000 {
		e.Enhanced = mailerr.Enhanced{class, subject, detail}
	}
	return e
}

func (t target) ip() string {
	host, _, err := net.SplitHostPort(t.address)
	if err != nil {
		return t.address
	}
	return host
}

// get reads a reply.
func (c *client) get(timeout time.Duration) (r serverReply, err error) {
	defer func() {
		if err != nil {
			c.usable = false
			c.note("! ", err.Error())
		}
	}()
	if err := c.out.Flush(); err != nil {
		return r, err
	}
	c.conn.SetReadDeadline(time.Now().Add(timeout))
	limit := maxReplyLine
	if c.secrets != nil {
		limit = maxAuthLine
	}
	for range maxReplyLines {
		line, err := c.in.ReadLine(limit)
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return r, err
		}
		code, text, last, ok := parseReply(string(line))
		if !ok || len(r.lines) > 0 && code != r.code {
			return r, fmt.Errorf("malformed reply %q", c.censor(string(line[:min(len(line), maxReplyLine)])))
		}
		r.code = code
		if code != 334 {
			text = c.censor(text)
		}
		r.lines = append(r.lines, text)
		if last {
			shown := r.text()
			if code == 334 {
				shown = "(challenge)"
			}
			c.note("< ", strconv.Itoa(r.code)+" "+shown)
			return r, nil
		}
	}
	return r, errors.New("reply has too many lines")
}

// parseReply reads a reply line (RFC 5321 section 4.2).
func parseReply(line string) (code int, text string, last, ok bool) {
	if len(line) < 3 {
		return 0, "", false, false
	}
	code, err := strconv.Atoi(line[:3])
	if err != nil || code < 200 || code > 599 {
		return 0, "", false, false
	}
	last = true
	if len(line) > 3 {
		if line[3] != ' ' && line[3] != '-' {
			return 0, "", false, false
		}
		last, text = line[3] == ' ', line[4:]
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, text)
	return code, text, last, true
}

func (c *client) died(err error) *mailerr.Error {
	return mailerr.Newf(451, mailerr.Enhanced{4, 4, 2}, "Connected to %s but connection died. (#4.4.2)", c.target.ip()).Because(err)
}

// hello reads the greeting and says EHLO, or HELO to a host that does not know it.
func (c *client) hello(name string) *mailerr.Error {
	r, err := c.get(c.timeout)
	if err != nil {
		return c.died(err)
	}
	if r.code != 220 {
		e := r.fail(c, "does not like me")
		if e.Code >= 500 {
			// RFC 5321 section 3.8: another host may like us, and this one another day.
			e.Code, e.Enhanced = 451, mailerr.Enhanced{4, 3, 0}
		}
		return e
	}
	return c.ehlo(name)
}

func (c *client) ehlo(name string) *mailerr.Error {
	c.put("EHLO "+name, "EHLO "+name)
	r, err := c.get(c.timeout)
	if err == nil && r.code != 250 {
		c.put("HELO "+name, "HELO "+name)
		r, err = c.get(c.timeout)
		r.lines = r.lines[:min(1, len(r.lines))]
	}
	if err != nil {
		return c.died(err)
	}
	if r.code != 250 {
		return r.fail(c, "failed after I sent HELO")
	}
	c.extensions = map[string]string{}
	for _, line := range r.lines[1:] {
		keyword, args, _ := strings.Cut(line, " ")
		c.extensions[strings.ToUpper(keyword)] = args
	}
	return nil
}

func (c *client) startTLS(ctx context.Context, name string, config *tls.Config) *mailerr.Error {
	c.put("STARTTLS", "STARTTLS")
	r, err := c.get(c.timeout)
	if err != nil {
		return c.died(errors.Join(errTLS, err))
	}
	if r.code != 220 {
		// The connection goes on in clear, unless TLS is wanted.
		return nil
	}
	// What came behind the 220 in clear was not said by the TLS peer.
	c.in.Discard()
	if e := c.handshake(ctx, config); e != nil {
		return e
	}
	return c.ehlo(name)
}

// handshake goes over to TLS.
func (c *client) handshake(ctx context.Context, config *tls.Config) *mailerr.Error {
	conn := tls.Client(c.conn, config)
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return c.died(errors.Join(errTLS, err))
	}
	c.conn, c.tls = conn, true
	c.in.Reset(conn)
	c.out.Reset(conn)
	state := conn.ConnectionState()
	c.note("* ", tls.VersionName(state.Version)+" "+tls.CipherSuiteName(state.CipherSuite))
	return c.judge(state, c.now())
}

func (c *client) quit() {
	c.conn.SetDeadline(time.Now().Add(time.Second))
	c.out.WriteString("QUIT\r\n")
	_ = c.out.Flush() // the connection is closed in any case
	c.conn.Close()
}

// send makes one transaction. elsewhere tells that nothing was accepted and another connection or host may do better.
func (c *client) send(ctx context.Context, job *queue.Delivery) (results []queue.Result, elsewhere bool) {
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	reused := c.messages > 0
	c.messages++
	if reused {
		c.dialogue = []string{"* connection used again: " + c.target.String()}
	} else {
		c.dialogue = append([]string{"* " + c.target.String()}, c.dialogue...)
	}
	if job.Envelope.UTF8 && !c.offers("SMTPUTF8") {
		return all(job, mailerr.Newf(553, mailerr.Enhanced{5, 6, 7}, "%s does not take internationalized mail. (#5.6.7)", c.target.ip()), c.dialogue), false
	}
	if limit, err := strconv.ParseInt(c.extensions["SIZE"], 10, 64); err == nil && limit > 0 && job.Content.Size() > limit {
		return all(job, mailerr.Newf(552, mailerr.Enhanced{5, 3, 4}, "%s takes messages of up to %d bytes only. (#5.3.4)", c.target.ip(), limit), c.dialogue), false
	}
	mail := "MAIL FROM:<" + job.Envelope.Sender.String() + ">"
	if job.Envelope.Sender.Domain == "[]" {
		mail = "MAIL FROM:<>" // a double bounce leaves as a bounce
	}
	if c.offers("SIZE") {
		mail += " SIZE=" + strconv.FormatInt(job.Content.Size(), 10)
	}
	if job.Envelope.Body != "" && c.offers("8BITMIME") {
		mail += " BODY=" + job.Envelope.Body
	}
	if job.Envelope.UTF8 {
		mail += " SMTPUTF8"
	}
	dsn := c.offers("DSN")
	if dsn && job.Envelope.Return != "" {
		mail += " RET=" + job.Envelope.Return
	}
	if dsn && job.Envelope.EnvID != "" {
		mail += " ENVID=" + job.Envelope.EnvID
	}
	commands := []string{mail}
	for _, r := range job.Recipients {
		command := "RCPT TO:<" + r.Address.String() + ">"
		if dsn && r.Notify != "" {
			command += " NOTIFY=" + r.Notify
		}
		if dsn && r.Orcpt != "" {
			command += " ORCPT=" + r.Orcpt
		}
		commands = append(commands, command)
	}
	commands = append(commands, "DATA")
	c.conn.SetWriteDeadline(time.Now().Add(c.timeout))
	pipelining := c.offers("PIPELINING")
	if pipelining {
		for _, command := range commands {
			c.put(command, command)
		}
	}
	results = make([]queue.Result, len(job.Recipients))
	accepted := 0
	for i, command := range commands {
		if !pipelining {
			if i == len(commands)-1 && accepted == 0 {
				c.reset()
				return c.finish(results), false
			}
			c.put(command, command)
		}
		r, err := c.get(c.timeout)
		if err != nil {
			// An idle connection that the other side had closed says nothing about the host.
			return all(job, c.died(err), c.dialogue), i == 0
		}
		switch {
		case i == 0:
			if r.code/100 != 2 {
				e := r.fail(c, "does not like the sender")
				if c.usable = r.code != 421; c.usable && pipelining {
					c.drain(len(commands) - 1)
				}
				return all(job, e, c.dialogue), e.Temporary() && r.code == 421
			}
		case i < len(commands)-1:
			if r.code/100 == 2 {
				accepted++
			} else {
				results[i-1].Err = r.fail(c, "does not like recipient")
			}
		case r.code != 354 || accepted == 0:
			if r.code == 354 {
				// RFC 2920 section 3.1: a host that wants data for nobody gets none.
				c.usable = false
			}
			e := r.fail(c, "failed on DATA command")
			c.reset()
			if accepted == 0 {
				return c.finish(results), false
			}
			return c.rest(results, e), false
		}
	}
	if err := c.content(job.Content); err != nil {
		c.usable = false
		c.note("! ", err.Error())
		return c.rest(results, c.died(err)), false
	}
	r, err := c.get(max(c.timeout, dataEnd))
	if err != nil {
		e := c.died(err)
		e.Text = strings.Replace(e.Text, " (#4.4.2)", " Possible duplicate! (#4.4.2)", 1)
		return c.rest(results, e), false
	}
	if r.code/100 != 2 {
		return c.rest(results, r.fail(c, "failed after I sent the message")), false
	}
	for i := range results {
		if results[i].Err == nil {
			results[i].Handed = dsn
			results[i].Text = fmt.Sprintf("%s accepted message.\nRemote host said: %d %s", c.target.ip(), r.code, r.text())
		}
	}
	return c.finish(results), false
}

// reset ends a transaction that came to nothing: within it, the host would refuse the next message's MAIL (RFC 5321 section 4.1.4).
func (c *client) reset() {
	if !c.usable {
		return
	}
	c.put("RSET", "RSET")
	r, err := c.get(c.timeout)
	c.usable = err == nil && r.code/100 == 2
}

// drain reads the replies to the n commands behind a MAIL that was refused, the last of which is DATA. A host that wants data all the same gets none
// (RFC 2920 section 3.1), and nothing more.
func (c *client) drain(n int) {
	for range n {
		r, err := c.get(c.timeout)
		if c.usable = err == nil && r.code != 354 && r.code != 421; !c.usable {
			return
		}
	}
	c.reset()
}

// content sends the message; the deadline moves with what is written.
func (c *client) content(content queue.Content) error {
	w := &movingWriter{c}
	c.out.Flush()
	c.out.Reset(w)
	err := wire.WriteDotStuffed(c.out, io.NewSectionReader(content, 0, content.Size()))
	if err == nil {
		err = c.out.Flush()
	}
	c.out.Reset(c.conn)
	return err
}

type movingWriter struct{ c *client }

func (m *movingWriter) Write(p []byte) (int, error) {
	m.c.conn.SetWriteDeadline(time.Now().Add(m.c.timeout))
	return m.c.conn.Write(p)
}

// rest gives an error to all recipients that were accepted.
func (c *client) rest(results []queue.Result, e *mailerr.Error) []queue.Result {
	for i := range results {
		if results[i].Err == nil {
			results[i].Err = e
		}
	}
	return c.finish(results)
}

func (c *client) finish(results []queue.Result) []queue.Result {
	for i := range results {
		results[i].Dialogue = c.dialogue
		if results[i].Err != nil {
			results[i].Text = results[i].Err.Text
		}
	}
	return results
}
