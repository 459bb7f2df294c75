package smtpd

import (
	"context"
	"encoding/base64"
	"strings"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/trace"
	"github.com/indigomail/indigo/internal/wire"
)

func mechanisms() []string { return sasl.Names() }

// authenticate is AUTH (RFC 4954).
func (c *session) authenticate(args string) {
	switch {
	case c.config.Auth == nil:
		c.wrong(replyUnsupported)
		return
	case c.Helo == "":
		c.wrong(replyHeloFirst)
		return
	case c.User != "":
		c.wrong(replyAuthTwice)
		return
	case c.inMail:
		c.wrong(replyAuthInMail)
		return
	}
	name, initial, hasInitial := strings.Cut(args, " ")
	name = strings.ToUpper(name)
	if v := c.config.Policy.AuthAllowed(c.ctx, &c.Session); v.Action != policy.Accept {
		c.bad++
		c.answer(trace.Event{Kind: "auth"}, v, reply{})
		return
	}
	began := c.config.Now()
	var user string
	mechanism := sasl.New(name, func(ctx context.Context, name0, password string) error {
		attempt := auth.Attempt{User: name0, Password: password, Service: c.Service, Client: c.Client.Addr(), Mechanism: name}
		user = name0
		identity, err := c.config.Auth.Verify(ctx, attempt)
		if err == nil {
			user = identity.Address.String()
		}
		return err
	})
	if mechanism == nil {
		c.wrong(replyAuthUnknown)
		return
	}
	var response []byte
	var err error
	if hasInitial {
		if response, err = decodeInitial(initial); err != nil {
			c.wrong(replyAuthBase64)
			return
		}
	}
	for {
		challenge, done, err := mechanism.Next(c.ctx, response)
		if done {
			c.authenticated(name, user, err, trace.Event{Kind: "auth", Took: c.config.Now().Sub(began)})
			return
		}
		c.out.WriteString("334 " + base64.StdEncoding.EncodeToString(challenge) + "\r\n")
		line, err := c.readLine(maxAuthLine)
		switch {
		case err == wire.ErrLineTooLong:
			c.wrong(replyAuthTooLong)
			return
		case err == wire.ErrBareNewline:
			c.wrong(replyBareLine)
			return
		case err != nil:
			c.end = true
			return
		case line == "*":
			c.wrong(replyAuthCancel)
			return
		}
		if response, err = base64.StdEncoding.DecodeString(line); err != nil {
			c.wrong(replyAuthBase64)
			return
		}
	}
}

// decodeInitial reads an initial response; "=" stands for an empty one (RFC 4954 section 4).
func decodeInitial(s string) ([]byte, error) {
	if s == "=" {
		return []byte{}, nil
	}
	return base64.StdEncoding.DecodeString(s)
}

func (c *session) authenticated(mechanism, user string, err error, e trace.Event) {
	e.Input, e.Check = mechanism+" "+user, "password"
	r := replyAuthOK
	e.Verdict = "accept"
	switch {
	case err == sasl.ErrMalformed:
		r = replyAuthBase64
	case err != nil:
		r = fromError(mailerr.From(err))
		if c.logins++; c.logins >= maxLogins && r.code == 535 {
			c.end = true
		}
	default:
		c.User = user
	}
	if err != nil {
		e.Verdict = "reject"
		e.Input += ": " + err.Error()
		c.bad++
	}
	e.Reply = strings.TrimSpace(r.String())
	c.record(e)
	c.say(r)
	if c.end {
		c.say(replyAuthTooOften)
	}
}
