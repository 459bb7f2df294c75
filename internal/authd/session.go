package authd

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/dovecot"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/trace"
)

const (
	// handshakeTime is how long a peer may take to say who it is.
	handshakeTime = 30 * time.Second
	// idleTime is how long a connection may say nothing: Postfix keeps one open for as long as its process lives.
	idleTime = time.Hour
	// writeTime is how long a peer may take to read its answers.
	writeTime = 30 * time.Second
	// stepTime bounds one step of an exchange: the sources of passwords have limits of their own below it.
	stepTime = 2 * time.Minute
	// exchangeTime is how long a peer's client may take for all of them.
	exchangeTime = 10 * time.Minute
	// maxExchanges bounds those of one connection that are not over, maxLookups the look-ups that run.
	maxExchanges = 100
	maxLookups   = 10
)

// peer is a connection: lines are read by one goroutine and written by any.
type peer struct {
	*Server
	conn    net.Conn
	in      *bufio.Reader
	writing sync.Mutex
	// working counts the goroutines that answer.
	working sync.WaitGroup
	// greeted: it has said its version; known: its process. old: its version is 1.0.
	greeted, known, old bool
}

func (s *Server) newPeer(conn net.Conn) *peer {
	return &peer{Server: s, conn: conn, in: bufio.NewReaderSize(conn, dovecot.MaxLine)}
}

// say writes lines; when that fails the connection is over.
func (p *peer) say(lines []byte) {
	p.writing.Lock()
	defer p.writing.Unlock()
	_ = p.conn.SetWriteDeadline(time.Now().Add(writeTime))
	if _, err := p.conn.Write(lines); err != nil {
		p.conn.Close()
	}
}

// read gives the fields of the next line.
func (p *peer) read() ([]string, error) {
	limit := idleTime
	if !p.known {
		limit = handshakeTime
	}
	p.mu.Lock()
	closing := p.closing
	if !closing {
		_ = p.conn.SetReadDeadline(time.Now().Add(limit))
	}
	p.mu.Unlock()
	line, err := p.in.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	return dovecot.Parse(string(line)), nil
}

// handshake takes what a peer says of itself; done tells that the line was that.
func (p *peer) handshake(fields []string) (done bool, err error) {
	switch {
	case fields[0] == "VERSION":
		if len(fields) < 2 || fields[1] != dovecot.Major {
			return true, fmt.Errorf("it speaks another version of the protocol: %q", fields[1:])
		}
		p.greeted, p.old = true, len(fields) < 3 || fields[2] == "0"
		return true, nil
	case !p.greeted:
		return true, errors.New("it did not begin with VERSION")
	case fields[0] == "CPID":
		p.known = true
		return true, nil
	}
	return false, nil
}

// do answers in a goroutine of its own, which the connection waits for.
func (p *peer) do(answer func()) {
	p.working.Go(func() {
		defer func() {
			if fault := recover(); fault != nil {
				p.config.Logger.Error(fmt.Sprintf("%s: an answer ended by a fault: %v\n%s", Service, fault, debug.Stack()))
				p.conn.Close()
			}
		}()
		answer()
	})
}

// client is a peer that asks about passwords.
type client struct {
	*peer
	ctx context.Context

	mu        sync.Mutex
	exchanges map[string]*exchange
}

// exchange is one login.
type exchange struct {
	id, mechanism, session string
	kind                   string
	remote                 netip.Addr
	*auth.Exchange
	began time.Time
	// busy is true while a step runs; no response may come then.
	busy bool
}

// passwords is a connection of Dovecot's auth-client protocol.
func (s *Server) passwords(ctx context.Context, conn net.Conn, connection uint) {
	ctx, gone := context.WithCancel(ctx)
	defer gone()
	c := &client{peer: s.newPeer(conn), ctx: ctx, exchanges: map[string]*exchange{}}
	var cookie [16]byte
	rand.Read(cookie[:])
	hello := dovecot.Append(nil, "VERSION", dovecot.Major, dovecot.Minor)
	for _, name := range c.connection("", "", netip.Addr{}, netip.Addr{}).Offer(ctx) {
		hello = dovecot.Append(hello, append([]string{"MECH", name}, properties(name)...)...)
	}
	hello = dovecot.Append(hello, "SPID", strconv.Itoa(s.config.PID))
	hello = dovecot.Append(hello, "CUID", strconv.FormatUint(uint64(connection), 10))
	hello = dovecot.Append(hello, "COOKIE", hex.EncodeToString(cookie[:]))
	c.say(dovecot.Append(hello, "DONE"))
	defer c.working.Wait()
	for {
		fields, err := c.read()
		if errors.Is(err, bufio.ErrBufferFull) {
			err = fmt.Errorf("a line has more than %d bytes", dovecot.MaxLine)
		} else if errors.Is(err, io.EOF) {
			// Nobody waits for what is being checked.
			gone()
			return
		} else if err != nil {
			return
		}
		if err == nil {
			err = c.command(fields)
		}
		if err != nil {
			s.config.Logger.Warn(fmt.Sprintf("%s: a connection is closed: %v", Service, err))
			gone()
			return
		}
	}
}

// properties are what a mechanism is to those who choose among them.
func properties(mechanism string) []string {
	switch {
	case sasl.NeedsTLS(mechanism):
		return []string{"plaintext"}
	case strings.HasPrefix(mechanism, "CRAM-"):
		return []string{"dictionary", "active"}
	case mechanism == "DIGEST-MD5":
		return []string{"dictionary", "active", "mutual-auth"}
	case strings.HasPrefix(mechanism, "SCRAM-"):
		return []string{"mutual-auth"}
	}
	return nil
}

// connection is what a login may depend on. Whether the client has TLS is the peer's to judge, which knows what the mechanisms show: here all are
// offered that need no look into it.
func (c *client) connection(kind, protocol string, remote, local netip.Addr) *auth.Connection {
	return &auth.Connection{
		Authority: c.config.Auth(kind), Service: kind, Protocol: protocol, Host: c.config.Hostname, Client: remote, Local: local,
		Settings: c.config.Settings(), TLS: &tls.ConnectionState{},
	}
}

// command does what a line says; an error ends the connection.
func (c *client) command(fields []string) error {
	if done, err := c.handshake(fields); done {
		return err
	}
	if !c.known {
		return errors.New("it did not say CPID before its first question")
	}
	switch fields[0] {
	case "AUTH", "CONT":
		if len(fields) < 3 {
			return fmt.Errorf("%s came without what belongs to it", fields[0])
		}
	case "CANCEL":
		if len(fields) > 1 {
			c.forget(fields[1])
		}
		return nil
	default:
		// What later versions say is passed over.
		return nil
	}
	if _, err := strconv.ParseUint(fields[1], 10, 32); err != nil {
		return fmt.Errorf("%s came with a malformed id", fields[0])
	}
	if fields[0] == "AUTH" {
		return c.begin(fields[1], strings.ToUpper(fields[2]), fields[3:])
	}
	return c.more(fields[1], fields[2])
}

// kinds are the kinds of service by the names that Dovecot has for them.
var kinds = map[string]string{"smtp": "smtpd", "submission": "smtpd", "imap": "imapd", "pop3": "pop3d"}

// begin is AUTH.
func (c *client) begin(id, mechanism string, parameters []string) error {
	service, ok := dovecot.Parameter(parameters, "service")
	if !ok {
		return errors.New("AUTH came without a service")
	}
	x := &exchange{id: id, mechanism: mechanism, kind: kinds[service], session: c.config.NewSessionID(), began: c.config.Now(), busy: true}
	address := func(name string) netip.Addr {
		text, _ := dovecot.Parameter(parameters, name)
		// What is no address is of no use, and no reason to refuse.
		a, _ := netip.ParseAddr(text)
		return a.Unmap()
	}
	x.remote = address("rip")
	protocol := map[string]string{"imapd": "imap", "pop3d": "pop"}[x.kind]
	var err error
	if x.Exchange, err = c.connection(x.kind, cmp.Or(protocol, "smtp"), x.remote, address("lip")).Begin(c.ctx, mechanism); err != nil {
		c.say(dovecot.Append(nil, "FAIL", id, "code=mech_invalid", "reason="+err.Error()))
		return nil
	}
	var response []byte
	// Exim gives an empty one where its client gave none.
	if text, _ := dovecot.Parameter(parameters, "resp"); text != "" {
		var ok bool
		if response, ok = decode(text); !ok {
			c.say(dovecot.Append(nil, "FAIL", id, "code=invalid_base64", "reason=malformed base64"))
			return nil
		}
	}
	c.mu.Lock()
	for id, old := range c.exchanges {
		if !old.busy && x.began.Sub(old.began) > exchangeTime {
			delete(c.exchanges, id)
		}
	}
	taken, full := c.exchanges[id] != nil, len(c.exchanges) >= maxExchanges
	if !taken && !full {
		c.exchanges[id] = x
	}
	c.mu.Unlock()
	switch {
	case taken:
		return errors.New("AUTH came with the id of an exchange that is not over")
	case full:
		c.say(dovecot.Append(nil, "FAIL", id, "temp", "code=temp_fail", "reason=too many exchanges at once"))
		return nil
	}
	c.do(func() { c.step(x, response) })
	return nil
}

// decode gives a response in base64, never nil.
func decode(text string) (response []byte, ok bool) {
	response, err := base64.StdEncoding.DecodeString(text)
	if response == nil {
		response = []byte{}
	}
	return response, err == nil
}

// more is CONT.
func (c *client) more(id, text string) error {
	c.mu.Lock()
	x := c.exchanges[id]
	busy := x != nil && x.busy
	if x != nil {
		x.busy = true
	}
	c.mu.Unlock()
	switch {
	case x == nil:
		// It may have been given up while the client typed.
		c.say(dovecot.Append(nil, "FAIL", id, "temp", "code=temp_fail", "reason=the exchange is over"))
		return nil
	case busy:
		return errors.New("CONT came before the answer to what was sent before")
	}
	response, ok := decode(text)
	if !ok {
		c.forget(id)
		c.say(dovecot.Append(nil, "FAIL", id, "code=invalid_base64", "reason=malformed base64"))
		return nil
	}
	c.do(func() { c.step(x, response) })
	return nil
}

func (c *client) forget(id string) {
	c.mu.Lock()
	delete(c.exchanges, id)
	c.mu.Unlock()
}

// step takes a response and answers.
func (c *client) step(x *exchange, response []byte) {
	ctx, cancel := context.WithTimeout(c.ctx, stepTime)
	defer cancel()
	challenge, done, err := x.Next(ctx, response)
	if !done {
		c.mu.Lock()
		x.busy = false
		c.mu.Unlock()
		c.say(dovecot.Append(nil, "CONT", x.id, base64.StdEncoding.EncodeToString(challenge)))
		return
	}
	c.mu.Lock()
	cancelled := c.exchanges[x.id] != x
	if !cancelled {
		delete(c.exchanges, x.id)
	}
	c.mu.Unlock()
	user := x.User
	if err == nil {
		user = x.Identity.Address.String()
	}
	e := trace.Event{
		Time: c.config.Now(), Kind: "auth", Session: x.session, Service: Service, User: user, Check: "password",
		Input: strings.TrimSpace(x.mechanism + " " + x.kind), Verdict: "accept",
	}
	e.Took = e.Time.Sub(x.began)
	if x.remote.IsValid() {
		e.Client = x.remote.String()
	}
	answer := dovecot.Append(nil, "OK", x.id, "user="+user)
	if err != nil {
		answer = refusal(&e, x, err)
	}
	c.config.Trace.Record(e)
	switch {
	case cancelled:
	case e.Verdict == "defer" && c.old:
		// Postfix takes every FAIL for a wrong password, and a lost connection for what it is.
		c.conn.Close()
	default:
		c.say(answer)
	}
}

// refusal gives the answer to a login that failed, and writes into e why.
func refusal(e *trace.Event, x *exchange, err error) []byte {
	fields := []string{"FAIL", x.id}
	if x.User != "" {
		fields = append(fields, "user="+x.User)
	}
	if errors.Is(err, sasl.ErrMalformed) {
		e.Verdict, e.Reply = "reject", err.Error()
		return dovecot.Append(nil, append(fields, "reason="+err.Error())...)
	}
	failure := mailerr.From(err)
	e.Verdict, e.Reply = "reject", failure.Reply()
	e.Input += ": " + err.Error()
	switch {
	case failure.Temporary():
		e.Verdict = "defer"
		fields = append(fields, "temp", "code=temp_fail")
	case auth.SwitchedOff(err):
		fields = append(fields, "user_disabled", "code=user_disabled")
	}
	return dovecot.Append(nil, append(fields, "reason="+failure.Text)...)
}

// users is a connection of Dovecot's auth-master protocol, as its delivery agents speak it: USER alone.
func (s *Server) users(ctx context.Context, conn net.Conn, _ uint) {
	p := s.newPeer(conn)
	// Nobody says CPID here.
	p.known = true
	p.say(dovecot.Append(dovecot.Append(nil, "VERSION", dovecot.Major, dovecot.Minor), "SPID", strconv.Itoa(s.config.PID)))
	places := make(chan struct{}, maxLookups)
	defer p.working.Wait()
	for {
		fields, err := p.read()
		if err != nil {
			return
		}
		done, err := p.handshake(fields)
		if err != nil {
			s.config.Logger.Warn(fmt.Sprintf("%s: a connection is closed: %v", Service, err))
			return
		}
		if done || len(fields) < 2 {
			continue
		}
		if fields[0] != "USER" || len(fields) < 3 {
			p.say(dovecot.Append(nil, "FAIL", fields[1], "reason=only USER is answered here"))
			continue
		}
		// A full house makes the peer wait.
		places <- struct{}{}
		p.do(func() {
			defer func() { <-places }()
			p.lookUp(ctx, fields[1], fields[2])
		})
	}
}

// lookUp answers USER.
func (p *peer) lookUp(ctx context.Context, id, name string) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	u, err := p.config.User(ctx, name)
	switch {
	case errors.Is(err, ErrNoUser):
		p.say(dovecot.Append(nil, "NOTFOUND", id))
	case err != nil:
		p.config.Logger.Warn(fmt.Sprintf("%s: user %q: %v", Service, name, err))
		p.say(dovecot.Append(nil, "FAIL", id, "reason=the directory cannot be asked now", "temp", "code=temp_fail"))
	default:
		p.say(dovecot.Append(nil, "USER", id, u.Name, "uid="+strconv.Itoa(u.UID), "gid="+strconv.Itoa(u.GID), "home="+u.Home, "mail=maildir:~/Maildir"))
	}
}
