package smtpd

import (
	"encoding/base64"
	"errors"
	"strings"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
	"github.com/indigomail/indigo/internal/wire"
)

// auth is AUTH (RFC 4954). Neither responses nor passwords get into the trace or the log.
func (c *session) auth(args string) {
	config := &c.server.config
	switch {
	case config.Auth == nil:
		c.refuse("auth", "mechanism", "", replyUnsupported)
		return
	case c.Helo == "":
		c.refuse("auth", "sequence", "", replyHeloFirst)
		return
	case c.User != "":
		c.refuse("auth", "sequence", "", replyAuthTwice)
		return
	case c.mail.open:
		c.refuse("auth", "sequence", "", replyAuthInMail)
		return
	}
	if v := config.Policy.AuthAllowed(c.ctx, &c.Session); refuses(v) {
		c.mistake(c.decide(trace.Event{Kind: "auth"}, v, replyFault))
		return
	}
	name, initial, hasInitial := strings.Cut(args, " ")
	name = strings.ToUpper(name)
	began := config.Now()
	connection := c.connection()
	exchange, err := connection.Begin(c.ctx, name)
	switch {
	case errors.Is(err, auth.ErrEncryption):
		setting := settings.SecureAuth.Setting
		v := policy.Verdict{Action: policy.Reject, Check: "secure-auth", Input: name, Setting: setting.Name, Layer: c.Settings.Source(setting).String()}
		c.mistake(c.decide(trace.Event{Kind: "auth"}, v, replyAuthTLS))
		return
	case err != nil:
		// What was given as a mechanism may be part of a password; it is not recorded.
		c.refuse("auth", "mechanism", "", replyAuthUnknown)
		return
	}
	var response []byte
	if hasInitial {
		var ok bool
		if response, ok = decode(strings.TrimSpace(initial)); !ok {
			c.refuse("auth", "base64", name, replyAuthSyntax)
			return
		}
	}
	over := func(user string, err error) {
		c.loggedIn(trace.Event{Kind: "auth", User: user, Took: config.Now().Sub(began)}, name, user, err)
	}
	for {
		challenge, done, err := exchange.Next(c.ctx, response)
		if done {
			user := exchange.User
			if err == nil {
				user = exchange.Identity.Address.String()
			}
			over(user, err)
			return
		}
		c.say(replyChallenge(base64.StdEncoding.EncodeToString(challenge)))
		line, err := c.in.ReadLine(maxAuth)
		switch {
		case err == nil:
		case errors.Is(err, wire.ErrLineTooLong):
			c.refuse("auth", "syntax", name, replyAuthLong)
			return
		case errors.Is(err, wire.ErrBareNewline):
			c.refuse("auth", "syntax", name, replyBareLine)
			return
		default:
			if exchange.Refused != nil {
				over(exchange.User, exchange.Refused)
			}
			c.lost(err)
			return
		}
		if len(line) == 1 && line[0] == '*' {
			if exchange.Refused != nil {
				over(exchange.User, exchange.Refused)
				return
			}
			c.refuse("auth", "cancelled", name, replyAuthCancel)
			return
		}
		var ok bool
		if response, ok = decode(string(line)); !ok {
			c.refuse("auth", "base64", name, replyAuthSyntax)
			return
		}
	}
}

// connection is what a login may depend on.
func (c *session) connection() *auth.Connection {
	return &auth.Connection{
		Authority: c.server.config.Auth, Service: c.Service, Protocol: "smtp", Host: c.server.config.Hostname, Client: c.Client.Addr(), Local: c.Local.Addr(),
		Settings: c.Settings, TLS: c.TLS, Certificate: c.certificate,
	}
}

// decode reads a response in base64; "=" is the empty one (RFC 4954 section 4). It is never nil when ok, for nil stands
// for a missing one.
func decode(s string) (response []byte, ok bool) {
	if s == "=" || s == "" {
		return []byte{}, true
	}
	// The decoder skips line ends, but a line holds none.
	response, err := base64.StdEncoding.DecodeString(s)
	return response, err == nil
}

// loggedIn ends the exchange.
func (c *session) loggedIn(e trace.Event, mechanism, user string, err error) {
	switch {
	case err == nil && user != "":
		c.say(c.decide(e, policy.Verdict{Check: "password", Input: mechanism}, replyAuthOK))
		c.User = user
		c.Settings = c.view()
		return
	case errors.Is(err, sasl.ErrMalformed):
		c.refuse("auth", "syntax", mechanism, replyAuthSyntax)
		return
	}
	v := failed("password", err)
	if err == nil {
		// An identity without an address is nobody's: a fault, not a login.
		v = policy.Verdict{Action: policy.Defer, Err: mailerr.From(errors.New("the verifier gave an empty identity")), Check: "password"}
	}
	locked := errors.Is(err, auth.ErrLocked)
	if locked {
		v.Check = "auth-lock"
	}
	v.Input = mechanism
	c.say(c.decide(e, v, replyFault))
	if v.Action == policy.Reject || locked {
		if c.logins.Failed(mechanism) && !c.ended {
			c.say(replyManyLogins)
			c.why = "too many failed logins"
		}
	}
}
