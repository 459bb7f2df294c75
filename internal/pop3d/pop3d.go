// Package pop3d is a door: the POP3 server (RFC 1939, 2449, 2595, 5034). It must not know how mail came into a Maildir.
package pop3d

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
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

// Server is one POP3 service.
type Server struct {
	config   Config
	listener *door.Listener
	mu       sync.Mutex
	// locked holds the Maildirs that a session has open (RFC 1939 section 4 wants one at a time).
	locked map[string]bool
}

// New makes a Server.
func New(config Config) *Server {
	s := &Server{config: config, locked: map[string]bool{}}
	s.listener = door.New(door.Config{Service: config.Service, Settings: config.Settings, Logger: config.Logger, Handle: s.Handle,
		Refuse: "-ERR [SYS/TEMP] too many connections, try again later\r\n"})
	return s
}

// Serve accepts connections until Shutdown.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { return s.listener.Serve(ctx, l) }

// Connections tells how many are open.
func (s *Server) Connections() int { return s.listener.Connections() }

// Shutdown ends all sessions; what they marked as deleted stays.
func (s *Server) Shutdown(ctx context.Context) { s.listener.Shutdown(ctx) }

const (
	maxLine = 512
	maxBad  = 20
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
	// timestamp is the one in the greeting, for APOP; "" when that is not offered.
	timestamp string
	user      string
	bad       int
	logins    auth.Tries
	end       bool

	path     string
	messages []maildir.Message
	deleted  map[int]bool
	released bool
}

// Handle serves one connection.
func (s *Server) Handle(ctx context.Context, conn net.Conn) {
	c := &session{Server: s, ctx: ctx, conn: conn, in: wire.NewReader(conn, 16<<10), out: bufio.NewWriterSize(conn, 16<<10),
		view: door.View(s.config.Settings(), conn), id: s.config.NewSessionID(), client: door.Peer(conn).Addr().String(), deleted: map[int]bool{}}
	// POP3 has no word for a server that goes: the connection ends, and deletions did not happen.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c.record("connect", "accept", "")
	if !s.config.ImplicitTLS || c.startTLS() {
		c.serve()
	}
	c.release()
	_ = c.out.Flush() // the client may be gone
	tlsx.Goodbye(c.conn)
	c.record("close", "", "")
}

// release opens the Maildir for the next session. It comes before the last reply: a client that has read it may log in again at once.
func (c *session) release() {
	if c.path == "" || c.released {
		return
	}
	c.released = true
	c.mu.Lock()
	delete(c.locked, c.path)
	c.mu.Unlock()
}

func (c *session) record(kind, verdict, input string) {
	user := c.user
	if c.path == "" {
		user = ""
	}
	c.recordOf(user, kind, verdict, input)
}

// recordOf records what is about a user who is not logged in.
func (c *session) recordOf(user, kind, verdict, input string) {
	c.config.Trace.Record(trace.Event{Time: c.config.Now(), Kind: kind, Session: c.id, Service: c.config.Service, Client: c.client, User: user, Verdict: verdict, Input: input})
}

func (c *session) ok(format string, args ...any)  { fmt.Fprintf(c.out, "+OK "+format+"\r\n", args...) }
func (c *session) err(format string, args ...any) { fmt.Fprintf(c.out, "-ERR "+format+"\r\n", args...) }

func (c *session) wrong(format string, args ...any) {
	if c.bad++; c.bad > maxBad {
		c.end = true
	}
	c.err(format, args...)
}

func (c *session) readLine(limit int) (string, error) {
	if c.in.Buffered() == 0 {
		if err := c.out.Flush(); err != nil {
			return "", err
		}
		if c.ctx.Err() == nil {
			c.conn.SetDeadline(time.Now().Add(settings.TimeoutPOP3.Get(c.view)))
		}
	}
	line, err := c.in.ReadLine(limit)
	return string(line), err
}

func (c *session) serve() {
	if c.connection().APOP(c.ctx) {
		c.timestamp = sasl.Timestamp(c.config.Hostname)
		c.ok("%s Indigo POP3 ready %s", c.config.Hostname, c.timestamp)
	} else {
		c.ok("%s Indigo POP3 ready", c.config.Hostname)
	}
	for !c.end {
		line, err := c.readLine(maxAuth)
		if err == nil && len(line)+2 > maxLine && !(len(line) > 4 && strings.EqualFold(line[:5], "AUTH ")) {
			// RFC 5034 has clients send a long response by itself, and not all do.
			err = wire.ErrLineTooLong
		}
		switch err {
		case nil:
			c.command(line)
		case wire.ErrLineTooLong, wire.ErrBareNewline:
			c.wrong("%v", err)
		default:
			return
		}
	}
}

func (c *session) command(line string) {
	verb, args, _ := strings.Cut(line, " ")
	verb = strings.ToUpper(verb)
	switch verb {
	case "QUIT":
		c.quit()
		return
	case "CAPA":
		c.capabilities()
		return
	case "NOOP":
		if c.path != "" {
			c.ok("")
			return
		}
	}
	if c.path == "" {
		switch verb {
		case "STLS":
			c.stls()
		case "USER":
			if c.passwords() {
				c.user = args
				c.ok("now PASS")
			}
		case "PASS":
			if c.user == "" {
				c.wrong("USER first")
			} else if c.passwords() {
				exchange, err := c.connection().CheckPassword(c.ctx, "USER", c.user, args)
				c.login("USER", exchange, err)
			}
		case "APOP":
			c.apop(args)
		case "AUTH":
			c.authenticate(args)
		default:
			c.wrong("log in first")
		}
		return
	}
	switch verb {
	case "STAT":
		n, total := 0, int64(0)
		for i := range c.messages {
			if size, err := c.messages[i].WireSize(); err == nil && !c.deleted[i] {
				n, total = n+1, total+size
			}
		}
		c.ok("%d %d", n, total)
	case "LIST":
		c.list(args, func(i int) string { size, _ := c.messages[i].WireSize(); return strconv.FormatInt(size, 10) })
	case "UIDL":
		c.list(args, func(i int) string { return uidl(c.messages[i].Base) })
	case "RETR":
		if i, ok := c.number(args); ok {
			c.send(i, -1)
		}
	case "TOP":
		number, count, _ := strings.Cut(args, " ")
		lines, err := strconv.Atoi(count)
		if err != nil || lines < 0 {
			c.wrong("TOP needs a message and a number of lines")
		} else if i, ok := c.number(number); ok {
			c.send(i, lines)
		}
	case "DELE":
		if i, ok := c.number(args); ok {
			c.deleted[i] = true
			c.ok("deleted")
		}
	case "RSET":
		clear(c.deleted)
		c.ok("")
	default:
		c.wrong("unknown command")
	}
}

// uidl makes a unique id of a name (RFC 1939 section 7: 1 to 70 printable characters); sizes are no part of identity.
func uidl(base string) string {
	base, _, _ = strings.Cut(base, ",")
	base = strings.Map(func(r rune) rune {
		if r <= ' ' || r >= 0x7f {
			return '_'
		}
		return r
	}, base)
	return base[max(0, len(base)-70):]
}

// connection is what a login may depend on.
func (c *session) connection() *auth.Connection {
	return &auth.Connection{
		Authority: c.config.Auth, Service: c.config.Service, Protocol: "pop", Host: c.config.Hostname, Client: door.Peer(c.conn).Addr(), Local: door.Local(c.conn),
		Settings: c.view, TLS: c.tls, Certificate: c.certificate,
	}
}

const needsTLS = "[AUTH] encryption required, use STLS first"

// passwords tells whether USER and PASS may be used; it answers itself when they may not.
func (c *session) passwords() bool {
	if c.connection().Passwords() {
		return true
	}
	c.wrong(needsTLS)
	return false
}

// apop is APOP (RFC 1939 section 7). The greeting's timestamp is for one attempt.
func (c *session) apop(args string) {
	user, digest, ok := strings.Cut(args, " ")
	switch {
	case c.timestamp == "":
		c.wrong("no timestamp for APOP")
	case !ok:
		c.wrong("APOP needs a user and a digest")
	default:
		exchange, err := c.connection().CheckAPOP(c.ctx, c.timestamp, user, digest)
		c.timestamp = ""
		c.login("APOP", exchange, err)
	}
}

func (c *session) capabilities() {
	c.ok("capabilities follow")
	list := []string{"TOP", "UIDL", "RESP-CODES", "PIPELINING", "AUTH-RESP-CODE"}
	if c.tls == nil && c.config.TLS != nil {
		list = append(list, "STLS")
	}
	connection := c.connection()
	if connection.Passwords() {
		list = append(list, "USER")
	}
	if mechanisms := connection.Offer(c.ctx); len(mechanisms) > 0 {
		list = append(list, "SASL "+strings.Join(mechanisms, " "))
	}
	list = append(list, "IMPLEMENTATION Indigo", ".")
	c.out.WriteString(strings.Join(list, "\r\n") + "\r\n")
}

func (c *session) stls() {
	if c.tls != nil || c.config.TLS == nil {
		c.wrong("TLS is active or not available")
		return
	}
	c.ok("begin TLS")
	if c.out.Flush() != nil || !c.startTLS() {
		c.end = true
	}
	c.user = ""
}

func (c *session) startTLS() bool {
	c.in.Discard()
	conn, handshake := tlsx.Server(c.conn, c.config.TLS)
	ctx, cancel := context.WithTimeout(c.ctx, 30*time.Second)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		c.record("tls", "failure", err.Error())
		return false
	}
	done := handshake()
	c.conn, c.tls, c.certificate = conn, &done.State, done.Certificate
	c.in.Reset(conn)
	c.out.Reset(conn)
	return true
}

// maxAuth bounds a line of AUTH, as SMTP's (RFC 4954 section 4).
const maxAuth = 12288

// authenticate is AUTH (RFC 5034).
func (c *session) authenticate(args string) {
	name, initial, has := strings.Cut(args, " ")
	name = strings.ToUpper(name)
	exchange, err := c.connection().Begin(c.ctx, name)
	switch {
	case errors.Is(err, auth.ErrEncryption):
		c.wrong(needsTLS)
		return
	case err != nil:
		c.wrong("unknown mechanism")
		return
	}
	var response []byte
	for {
		if has {
			if response, err = base64.StdEncoding.DecodeString(strings.TrimPrefix(initial, "=")); err != nil {
				c.wrong("malformed base64")
				return
			}
			if response == nil {
				response = []byte{}
			}
		}
		challenge, done, err := exchange.Next(c.ctx, response)
		if done {
			c.login(name, exchange, err)
			return
		}
		c.out.WriteString("+ " + base64.StdEncoding.EncodeToString(challenge) + "\r\n")
		switch initial, err = c.readLine(maxAuth); {
		case errors.Is(err, wire.ErrLineTooLong):
			c.wrong("authentication exchange line is too long")
			return
		case err != nil || initial == "*":
			c.end = err != nil
			if exchange.Refused != nil {
				c.login(name, exchange, exchange.Refused)
				return
			}
			c.wrong("cancelled")
			return
		}
		has = true
	}
}

// login ends an exchange that went well or did not.
func (c *session) login(mechanism string, exchange *auth.Exchange, err error) {
	switch {
	case errors.Is(err, sasl.ErrMalformed):
		c.wrong("malformed response")
		return
	case err != nil:
		c.recordOf(exchange.User, "auth", "reject", mechanism+" "+exchange.User+": "+err.Error())
		code := "[AUTH]"
		if mailerr.From(err).Temporary() {
			code = "[SYS/TEMP]"
		}
		if c.logins.Failed(mechanism) {
			c.end = true
		}
		c.err("%s %s", code, mailerr.From(err).Text)
		return
	}
	identity := exchange.Identity
	path := filepath.Join(identity.Home, "Maildir")
	if !filepath.IsAbs(path) {
		c.config.Logger.Warn(fmt.Sprintf("%s: user %s has no home", c.config.Service, identity.Address))
		c.recordOf(identity.Address.String(), "auth", "reject", mechanism+" "+exchange.User+": the user has no home")
		c.err("[SYS/TEMP] mailbox cannot be read now")
		return
	}
	c.mu.Lock()
	taken := c.locked[path]
	c.locked[path] = true
	c.mu.Unlock()
	if taken {
		c.err("[IN-USE] another POP3 session has this mailbox open")
		return
	}
	messages, err := maildir.List(path)
	if err != nil {
		c.mu.Lock()
		delete(c.locked, path)
		c.mu.Unlock()
		c.config.Logger.Warn(fmt.Sprintf("%s: %s: %v", c.config.Service, path, err))
		c.err("[SYS/TEMP] mailbox cannot be read now")
		return
	}
	c.path, c.messages, c.user = path, messages, identity.Address.String()
	c.record("auth", "accept", strings.TrimSpace(mechanism+" "+exchange.Trace))
	c.ok("%d messages", len(messages))
}

// number reads a message number; it answers itself when there is no such message.
func (c *session) number(s string) (int, bool) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > len(c.messages) || c.deleted[n-1] {
		c.wrong("no such message")
		return 0, false
	}
	return n - 1, true
}

func (c *session) list(args string, what func(int) string) {
	if args != "" {
		if i, ok := c.number(args); ok {
			c.ok("%d %s", i+1, what(i))
		}
		return
	}
	c.ok("")
	for i := range c.messages {
		if !c.deleted[i] {
			fmt.Fprintf(c.out, "%d %s\r\n", i+1, what(i))
		}
	}
	c.out.WriteString(".\r\n")
}

// send sends a message, or its header and some lines when lines is not negative.
func (c *session) send(i, lines int) {
	content, err := c.messages[i].Read()
	if err != nil {
		c.err("[SYS/TEMP] message cannot be read now")
		return
	}
	if lines >= 0 {
		end := bytes.Index(content, []byte("\r\n\r\n"))
		if end >= 0 {
			end += 4
			for range lines {
				j := bytes.IndexByte(content[end:], '\n')
				if j < 0 {
					break
				}
				end += j + 1
			}
			content = content[:end]
		}
	}
	c.ok("%d octets", len(content))
	if wire.WriteDotStuffed(c.out, bytes.NewReader(content)) != nil {
		c.end = true
	}
}

func (c *session) quit() {
	failed := 0
	var gone []*maildir.Message
	for i := range c.deleted {
		gone = append(gone, &c.messages[i])
	}
	for _, err := range maildir.Expunge(gone...) {
		if err != nil {
			failed++
		}
	}
	c.end = true
	c.release()
	if failed > 0 {
		c.err("[SYS/TEMP] %d deleted messages not removed", failed)
		return
	}
	c.ok("bye")
}
