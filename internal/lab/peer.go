package lab

import (
	"bufio"
	"context"
	"crypto/tls"
	"net"
	"strings"
	"sync"
	"time"
)

// Peer is an SMTP server that takes everything, but for what its script says. Safe for concurrent use; set the exported
// fields before the first connection.
type Peer struct {
	// Name stands in the greeting.
	Name string
	// Script has the reply at a stage, without the last CRLF, instead of the usual one: "greeting", "EHLO", "HELO",
	// "STARTTLS", "AUTH", "AUTH MECHANISM" (instead of the first challenge), "MAIL", "RCPT", "DATA", "end" (the reply to the content), "RSET", "QUIT". It may be anything: a
	// lie, half a line, a thousand lines. Cut, Stall and Swallow are special.
	Script map[string]string
	// Rcpt gives the reply to one recipient; "" means Script's or "250".
	Rcpt func(address string) string
	// TLS, if set, is offered by STARTTLS. Implicit makes every connection begin with TLS.
	TLS      *tls.Config
	Implicit bool
	// Users are offered AUTH: name to password; by Mechanisms, nil for PLAIN. With AuthTLS that is so over TLS only.
	Users      map[string]string
	Mechanisms []string
	AuthTLS    bool
	// Meddle, if set, gives what is sent in a challenge's place.
	Meddle func(mechanism string, challenge []byte) []byte
	// Extensions are further lines of the reply to EHLO.
	Extensions []string

	mu    sync.Mutex
	mails []Mail
	lines []string
	conns int
}

// What a script can say instead of a reply.
const (
	// Cut closes the connection without a word.
	Cut = "\x00cut"
	// Stall says nothing more and waits for the client to give up.
	Stall = "\x00stall"
	// Swallow gives no reply but goes on reading.
	Swallow = "\x00swallow"
)

// Mail is a message that a Peer has taken.
type Mail struct {
	Helo, User string
	From       string
	To         []string
	// Data is the content without dot-stuffing, with its line ends as they came.
	Data string
	TLS  bool
	// Connection counts the peer's connections from 1.
	Connection int
	At         time.Time
}

// Mails gives what was taken so far.
func (p *Peer) Mails() []Mail {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Mail(nil), p.mails...)
}

// Lines gives every command so far.
func (p *Peer) Lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.lines...)
}

// Connections counts them.
func (p *Peer) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conns
}

// Listen serves on a loopback address until stop is called; "127.0.0.1:0" takes a free port.
func (p *Peer) Listen(address string) (listening string, stop func(), err error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer context.AfterFunc(ctx, func() { c.Close() })()
				p.Serve(c)
			})
		}
	})
	return l.Addr().String(), func() {
		cancel()
		l.Close()
		serving.Wait()
	}, nil
}

// dialogue is one connection.
type dialogue struct {
	p    *Peer
	conn net.Conn
	r    *bufio.Reader
	mail Mail
	tls  bool
}

// Serve speaks with one client and closes the connection.
func (p *Peer) Serve(c net.Conn) {
	p.mu.Lock()
	p.conns++
	d := &dialogue{p: p, conn: c, mail: Mail{Connection: p.conns}}
	p.mu.Unlock()
	defer func() { d.conn.Close() }()
	if p.Implicit {
		d.conn, d.tls = tls.Server(c, p.TLS), true
	}
	d.r = bufio.NewReader(d.conn)
	if !d.say("greeting", "220 "+p.Name+" ESMTP lab") {
		return
	}
	for {
		line, err := d.r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		p.mu.Lock()
		p.lines = append(p.lines, line)
		p.mu.Unlock()
		verb, argument, _ := strings.Cut(line, " ")
		if !d.command(strings.ToUpper(verb), argument) {
			return
		}
	}
}

// say gives a stage's reply; false ends the connection.
func (d *dialogue) say(stage, usual string) bool {
	text, scripted := d.p.Script[stage]
	if !scripted {
		text = usual
	}
	switch text {
	case Cut:
		return false
	case Stall:
		for {
			if _, err := d.r.ReadByte(); err != nil {
				return false
			}
		}
	case Swallow:
		return true
	}
	if _, err := d.conn.Write([]byte(text + "\r\n")); err != nil {
		return false
	}
	// A scripted 221 or 421 means what it says.
	return !strings.HasPrefix(text, "421") && !(scripted && strings.HasPrefix(text, "221"))
}

// refused tells whether a stage's script refuses, so that the usual effect does not follow.
func (d *dialogue) refused(stage string) bool {
	text, scripted := d.p.Script[stage]
	return scripted && !strings.HasPrefix(text, "2") && !strings.HasPrefix(text, "3")
}

func (d *dialogue) command(verb, argument string) bool {
	switch verb {
	case "EHLO", "HELO":
		d.mail.Helo = argument
		usual := "250 " + d.p.Name
		if verb == "EHLO" {
			lines := append([]string{d.p.Name, "8BITMIME", "PIPELINING", "ENHANCEDSTATUSCODES"}, d.p.Extensions...)
			if d.p.TLS != nil && !d.tls {
				lines = append(lines, "STARTTLS")
			}
			if d.p.Users != nil && (d.tls || !d.p.AuthTLS) {
				lines = append(lines, "AUTH "+strings.Join(d.p.mechanisms(), " "))
			}
			usual = "250-" + strings.Join(lines[:len(lines)-1], "\r\n250-") + "\r\n250 " + lines[len(lines)-1]
		}
		return d.say(verb, usual)
	case "STARTTLS":
		if d.p.TLS == nil {
			return d.say(verb, "502 5.5.1 no TLS here")
		}
		if !d.say(verb, "220 2.0.0 ready") || d.refused(verb) {
			return !d.refused(verb) || d.p.Script[verb] != Cut
		}
		d.conn, d.tls = tls.Server(d.conn, d.p.TLS), true
		d.r = bufio.NewReader(d.conn)
		return true
	case "AUTH":
		return d.auth(argument)
	case "MAIL":
		if !d.refused(verb) {
			d.mail.From, d.mail.To = path(argument), nil
		}
		return d.say(verb, "250 2.1.0 ok")
	case "RCPT":
		usual, to := "250 2.1.5 ok", path(argument)
		if d.p.Rcpt != nil {
			if text := d.p.Rcpt(to); text != "" {
				usual = text
			}
		}
		if _, scripted := d.p.Script[verb]; strings.HasPrefix(usual, "2") && !d.refused(verb) || scripted && !d.refused(verb) {
			d.mail.To = append(d.mail.To, to)
		}
		return d.say(verb, usual)
	case "DATA":
		if len(d.mail.To) == 0 {
			return d.say(verb, "503 5.5.1 no recipients")
		}
		if !d.say(verb, "354 go ahead") {
			return false
		}
		if d.refused(verb) {
			return true
		}
		return d.data()
	case "RSET":
		d.mail.From, d.mail.To = "", nil
		return d.say(verb, "250 2.0.0 ok")
	case "NOOP":
		return d.say(verb, "250 2.0.0 ok")
	case "QUIT":
		d.say(verb, "221 2.0.0 bye")
		return false
	}
	return d.say(verb, "500 5.5.2 what?")
}

func (d *dialogue) data() bool {
	var text strings.Builder
	for {
		line, err := d.r.ReadString('\n')
		if err != nil {
			return false
		}
		if line == ".\r\n" {
			break
		}
		text.WriteString(strings.TrimPrefix(line, "."))
	}
	if !d.refused("end") {
		m := d.mail
		m.Data, m.TLS, m.At = text.String(), d.tls, time.Now()
		d.p.mu.Lock()
		d.p.mails = append(d.p.mails, m)
		d.p.mu.Unlock()
	}
	d.mail.From, d.mail.To = "", nil
	return d.say("end", "250 2.0.0 taken")
}

// path gives the address of "FROM:<a@b> SIZE=1".
func path(argument string) string {
	_, rest, _ := strings.Cut(argument, "<")
	address, _, _ := strings.Cut(rest, ">")
	return address
}
