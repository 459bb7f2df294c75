// Package imapd is a door: IMAP4rev1 (RFC 3501), so far only what curl and Python's imaplib need to list and fetch INBOX.
// It must not know how mail came into a Maildir.
package imapd

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/door"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/tlsx"
	"github.com/indigomail/indigo/internal/trace"
	"github.com/indigomail/indigo/internal/wire"
)

// Config is what a Server needs.
type Config struct {
	Service, Hostname string
	ImplicitTLS       bool
	TLS               *tls.Config
	Settings          func() *settings.View
	Auth              auth.Authority
	Trace             trace.Recorder
	Logger            *slog.Logger
	Now               func() time.Time
	NewSessionID      func() string
}

// Server is one IMAP service.
type Server struct {
	config   Config
	listener *door.Listener
}

// New makes a Server.
func New(config Config) *Server {
	s := &Server{config: config}
	s.listener = door.New(door.Config{Service: config.Service, Settings: config.Settings, Logger: config.Logger, Handle: s.Handle,
		Refuse: "* BYE too many connections, try again later\r\n"})
	return s
}

// Serve accepts connections until Shutdown.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { return s.listener.Serve(ctx, l) }

// Connections tells how many are open.
func (s *Server) Connections() int { return s.listener.Connections() }

// Shutdown ends all sessions.
func (s *Server) Shutdown(ctx context.Context) { s.listener.Shutdown(ctx) }

const (
	maxLine    = 8192
	maxLiteral = 64 << 10
	maxBad     = 20
)

type session struct {
	*Server
	ctx    context.Context
	conn   net.Conn
	in     *wire.Reader
	out    *bufio.Writer
	view   *settings.View
	id     string
	client string
	// tls is nil in clear; certificate is the one that was shown to the client.
	tls         *tls.ConnectionState
	certificate *x509.Certificate
	user        string
	home        string
	quota       maildir.Quota
	bad         int
	logins      auth.Tries
	end         bool
	box         *mailbox
}

// Handle serves one connection.
func (s *Server) Handle(ctx context.Context, conn net.Conn) {
	c := &session{Server: s, ctx: ctx, conn: conn, in: wire.NewReader(conn, 16<<10), out: bufio.NewWriterSize(conn, 32<<10),
		view: door.View(s.config.Settings(), conn), id: s.config.NewSessionID(), client: door.Peer(conn).Addr().String()}
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	c.record("connect", "accept", "")
	if !s.config.ImplicitTLS || c.startTLS() {
		c.serve()
	}
	_ = c.out.Flush() // the client may be gone
	tlsx.Goodbye(c.conn)
	c.record("close", "", "")
}

func (c *session) record(kind, verdict, input string) { c.recordOf(c.user, kind, verdict, input) }

// recordOf records what is about a user who is not logged in.
func (c *session) recordOf(user, kind, verdict, input string) {
	c.config.Trace.Record(trace.Event{Time: c.config.Now(), Kind: kind, Session: c.id, Service: c.config.Service, Client: c.client, User: user, Verdict: verdict, Input: input})
}

func (c *session) serve() {
	fmt.Fprintf(c.out, "* OK [CAPABILITY %s] %s Indigo ready\r\n", c.capabilities(), c.config.Hostname)
	for !c.end {
		tag, words, err := c.readCommand()
		var bad *badCommand
		switch {
		case errors.As(err, &bad):
			c.wrong(tag, bad.text)
		case err != nil:
			if c.ctx.Err() != nil {
				c.out.WriteString("* BYE this system is shutting down\r\n")
				c.conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
			}
			return
		default:
			c.command(tag, words)
		}
	}
}

// connection is what a login may depend on.
func (c *session) connection() *auth.Connection {
	return &auth.Connection{
		Authority: c.config.Auth, Service: c.config.Service, Protocol: "imap", Host: c.config.Hostname, Client: door.Peer(c.conn).Addr(), Local: door.Local(c.conn),
		Settings: c.view, TLS: c.tls, Certificate: c.certificate,
	}
}

func (c *session) capabilities() string {
	s := "IMAP4rev1 SASL-IR LITERAL- QUOTA QUOTA=RES-STORAGE QUOTA=RES-MESSAGE"
	if c.tls == nil && c.config.TLS != nil {
		s += " STARTTLS"
	}
	connection := c.connection()
	for _, m := range connection.Offer(c.ctx) {
		s += " AUTH=" + m
	}
	if !connection.Passwords() {
		s += " LOGINDISABLED"
	}
	return s
}

type badCommand struct{ text string }

func (b *badCommand) Error() string { return b.text }

// readCommand reads a command with its literals and splits it into words.
func (c *session) readCommand() (tag string, words []word, err error) {
	p := &splitter{}
	for {
		line, err := c.readLine(maxAuth)
		if err == nil && len(line)+2 > maxLine && !authenticates(line) {
			err = wire.ErrLineTooLong
		}
		if err == wire.ErrLineTooLong || err == wire.ErrBareNewline {
			return p.tag(), nil, &badCommand{err.Error()}
		}
		if err != nil {
			return "", nil, err
		}
		size, plus, literal := literalSize(line)
		if !literal {
			words, ok := p.split(line)
			if !ok || len(words) < 2 {
				return p.tag(), nil, &badCommand{"malformed command"}
			}
			return words[0].text, words[1:], nil
		}
		p.split(line[:strings.LastIndexByte(line, '{')])
		if size > maxLiteral || p.total+size > maxLiteral {
			if plus {
				// What the client sends anyhow cannot be skipped safely.
				c.end = true
			}
			return p.tag(), nil, &badCommand{"literal too large"}
		}
		if !plus {
			c.out.WriteString("+ go ahead\r\n")
			if err := c.out.Flush(); err != nil {
				return "", nil, err
			}
		}
		b := make([]byte, size)
		if _, err := io.ReadFull(c.in, b); err != nil {
			return "", nil, err
		}
		p.literal(b)
	}
}

// authenticates tells whether a line is AUTHENTICATE, whose initial response may be a long token (RFC 4959).
func authenticates(line string) bool {
	_, rest, _ := strings.Cut(line, " ")
	verb, _, _ := strings.Cut(rest, " ")
	return strings.EqualFold(verb, "AUTHENTICATE")
}

func (c *session) readLine(limit int) (string, error) {
	if c.in.Buffered() == 0 {
		if err := c.out.Flush(); err != nil {
			return "", err
		}
		if c.ctx.Err() == nil {
			c.conn.SetDeadline(time.Now().Add(settings.TimeoutIMAP.Get(c.view)))
		}
	}
	line, err := c.in.ReadLine(limit)
	return string(line), err
}

func (c *session) startTLS() bool {
	c.in.Discard()
	conn, handshake := tlsx.Server(c.conn, c.config.TLS)
	ctx, cancel := context.WithTimeout(c.ctx, 30*time.Second)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		c.record("tls", "failure", err.Error())
		c.end = true
		return false
	}
	done := handshake()
	c.conn, c.tls, c.certificate = conn, &done.State, done.Certificate
	c.in.Reset(conn)
	c.out.Reset(conn)
	return true
}

// wrong answers what is malformed, and bears it only so often.
func (c *session) wrong(tag, text string) {
	if c.bad++; c.bad > maxBad && !c.end {
		c.end = true
		c.out.WriteString("* BYE too many errors\r\n")
	}
	if tag == "" {
		tag = "*"
	}
	fmt.Fprintf(c.out, "%s BAD %s\r\n", tag, text)
}

// say ends a command.
func (c *session) say(tag, status, format string, args ...any) {
	fmt.Fprintf(c.out, "%s %s %s\r\n", tag, status, fmt.Sprintf(format, args...))
}

func (c *session) command(tag string, words []word) {
	verb, args := strings.ToUpper(words[0].text), words[1:]
	switch verb {
	case "CAPABILITY":
		c.out.WriteString("* CAPABILITY " + c.capabilities() + "\r\n")
		c.say(tag, "OK", "done")
		return
	case "NOOP":
		if c.box != nil {
			c.box.refresh(c)
		}
		c.say(tag, "OK", "done")
		return
	case "LOGOUT":
		c.out.WriteString("* BYE logging out\r\n")
		c.say(tag, "OK", "done")
		c.end = true
		return
	case "STARTTLS":
		if c.tls != nil || c.config.TLS == nil || c.user != "" {
			c.say(tag, "BAD", "TLS is active or not available")
			return
		}
		c.say(tag, "OK", "begin TLS")
		if c.out.Flush() != nil || !c.startTLS() {
			c.end = true
		}
		return
	}
	if c.user == "" {
		switch verb {
		case "LOGIN":
			if len(args) != 2 {
				c.say(tag, "BAD", "LOGIN needs a user and a password")
			} else if connection := c.connection(); !connection.Passwords() {
				c.say(tag, "NO", needsTLS)
			} else {
				exchange, err := connection.CheckPassword(c.ctx, "LOGIN", args[0].text, args[1].text)
				c.login(tag, "LOGIN", exchange, err)
			}
		case "AUTHENTICATE":
			c.authenticate(tag, args)
		default:
			c.say(tag, "NO", "log in first")
		}
		return
	}
	switch verb {
	case "LIST", "LSUB":
		c.list(tag, verb, args)
	case "GETQUOTA", "GETQUOTAROOT", "SETQUOTA":
		c.tellQuota(tag, verb, args)
	case "SELECT", "EXAMINE", "STATUS":
		if len(args) == 0 || !strings.EqualFold(args[0].text, "INBOX") {
			c.say(tag, "NO", "[NONEXISTENT] so far there is only INBOX")
			return
		}
		box, err := openMailbox(filepath.Join(c.home, "Maildir"))
		if err != nil {
			c.config.Logger.Warn(fmt.Sprintf("%s: %s: %v", c.config.Service, c.home, err))
			c.say(tag, "NO", "[SERVERBUG] mailbox cannot be read now")
			return
		}
		if verb == "STATUS" {
			c.status(tag, box, args)
			return
		}
		c.box = box
		c.box.readOnly = verb == "EXAMINE"
		c.selected(tag)
	default:
		if c.box == nil {
			c.say(tag, "BAD", "unknown command, or SELECT first")
			return
		}
		c.inMailbox(tag, verb, args)
	}
}

const needsTLS = "[PRIVACYREQUIRED] encryption required, use STARTTLS first"

// maxAuth bounds a line of AUTHENTICATE, as SMTP's (RFC 4954 section 4).
const maxAuth = 12288

func (c *session) authenticate(tag string, args []word) {
	if len(args) == 0 || len(args) > 2 {
		c.say(tag, "BAD", "AUTHENTICATE needs a mechanism")
		return
	}
	name := strings.ToUpper(args[0].text)
	exchange, err := c.connection().Begin(c.ctx, name)
	switch {
	case errors.Is(err, auth.ErrEncryption):
		c.say(tag, "NO", needsTLS)
		return
	case err != nil:
		c.say(tag, "NO", "[CANNOT] unknown mechanism")
		return
	}
	var response []byte
	text, has := "", len(args) == 2
	if has {
		text = args[1].text
	}
	for {
		if has {
			if response, err = base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "=")); err != nil {
				c.wrong(tag, "malformed base64")
				return
			}
			if response == nil {
				response = []byte{}
			}
		}
		challenge, done, err := exchange.Next(c.ctx, response)
		if done {
			c.login(tag, name, exchange, err)
			return
		}
		c.out.WriteString("+ " + base64.StdEncoding.EncodeToString(challenge) + "\r\n")
		switch text, err = c.readLine(maxAuth); {
		case errors.Is(err, wire.ErrLineTooLong):
			c.wrong(tag, "authentication exchange line is too long")
			return
		case err != nil || text == "*":
			c.end = err != nil
			if exchange.Refused != nil {
				c.login(tag, name, exchange, exchange.Refused)
				return
			}
			c.wrong(tag, "cancelled")
			return
		}
		has = true
	}
}

// login ends an exchange that went well or did not.
func (c *session) login(tag, mechanism string, exchange *auth.Exchange, err error) {
	switch {
	case errors.Is(err, sasl.ErrMalformed):
		c.wrong(tag, "malformed response")
		return
	case err != nil:
		c.recordOf(exchange.User, "auth", "reject", mechanism+" "+exchange.User+": "+err.Error())
		code := "AUTHENTICATIONFAILED"
		if mailerr.From(err).Temporary() {
			code = "UNAVAILABLE"
		}
		if errors.Is(err, auth.ErrLocked) {
			code = "LIMIT"
		}
		if c.logins.Failed(mechanism) {
			c.end = true
		}
		c.say(tag, "NO", "[%s] %s", code, mailerr.From(err).Text)
		return
	}
	c.user, c.home = exchange.Identity.Address.String(), exchange.Identity.Home
	if c.quota, err = maildir.ParseQuota(exchange.Identity.Quota); err != nil {
		c.config.Logger.Warn(fmt.Sprintf("%s: %s: %v", c.config.Service, c.user, err))
	}
	c.record("auth", "accept", strings.TrimSpace(mechanism+" "+exchange.Trace))
	c.say(tag, "OK", "[CAPABILITY %s] logged in", c.capabilities())
}

func (c *session) list(tag, verb string, args []word) {
	if len(args) != 2 {
		c.say(tag, "BAD", "%s needs a reference and a pattern", verb)
		return
	}
	pattern := strings.ToUpper(args[0].text + args[1].text)
	switch {
	case args[1].text == "":
		c.out.WriteString("* " + verb + ` (\Noselect) "." ""` + "\r\n")
	case strings.ContainsAny(pattern, "*%") && strings.HasPrefix("INBOX", strings.TrimRight(pattern, "*%")), pattern == "INBOX":
		c.out.WriteString("* " + verb + ` () "." INBOX` + "\r\n")
	}
	c.say(tag, "OK", "done")
}

func (c *session) status(tag string, box *mailbox, args []word) {
	var b strings.Builder
	for _, w := range args[1:] {
		n := -1
		switch strings.ToUpper(w.text) {
		case "MESSAGES":
			n = len(box.messages)
		case "RECENT":
			n = 0
		case "UNSEEN":
			n = box.unseen()
		case "UIDNEXT":
			n = int(box.uids.next)
		case "UIDVALIDITY":
			n = int(box.uids.validity)
		case "DELETED", "DELETED-STORAGE":
			messages, size := box.deleted()
			if n = messages; len(w.text) > len("DELETED") {
				n = int(size)
			}
		case "(", ")":
			continue
		}
		if n < 0 {
			c.say(tag, "BAD", "unknown status item")
			return
		}
		b.WriteString(" " + strings.ToUpper(w.text) + " " + strconv.Itoa(n))
	}
	fmt.Fprintf(c.out, "* STATUS INBOX (%s)\r\n", strings.TrimPrefix(b.String(), " "))
	c.say(tag, "OK", "done")
}

func (c *session) selected(tag string) {
	fmt.Fprintf(c.out, "* FLAGS (%s)\r\n* %d EXISTS\r\n* 0 RECENT\r\n* OK [UIDVALIDITY %d] UIDs are stable\r\n* OK [UIDNEXT %d] next\r\n",
		allFlags, len(c.box.messages), c.box.uids.validity, c.box.uids.next)
	if c.box.readOnly {
		c.out.WriteString("* OK [PERMANENTFLAGS ()] read-only\r\n")
		c.say(tag, "OK", "[READ-ONLY] selected")
		return
	}
	fmt.Fprintf(c.out, "* OK [PERMANENTFLAGS (%s)] kept\r\n", allFlags)
	c.say(tag, "OK", "[READ-WRITE] selected")
}
