package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/settings"
)

// Authority is what doors log users in with; *Accounts is one. Its refusals are those of Verifier.
type Authority interface {
	Verifier
	// Before tells whether a login may be tried at all, and whether its client is known for the account; the error has ErrLocked in it. One
	// with a password that may is under way until After, which is told what came of it, and may take its time.
	Before(ctx context.Context, a Attempt) (known bool, err error)
	After(ctx context.Context, a Attempt, identity Identity, err error)
	// Secrets gives what is kept for challenge and response; 535 for a user who is unknown or has nothing of that kind.
	Secrets(ctx context.Context, a Attempt) (Identity, sasl.Secrets, error)
	// Identify gives who the attempt's name means, without a look at the password.
	Identify(ctx context.Context, a Attempt) (Identity, error)
	// Admit tells whether one is let in who has proved to be the user.
	Admit(ctx context.Context, identity Identity, a Attempt) error
	// Tokens tells whether OAuth 2.0 tokens are taken. Token lets in whom the attempt's password, which is one, names; its error may be a
	// *sasl.TokenRefusal.
	Tokens() bool
	Token(ctx context.Context, a Attempt) (Identity, error)
	// Decoy gives a secret made of whom the attempt's name means alone, the same for all spellings of it; see sasl.Store.
	Decoy(ctx context.Context, a Attempt) []byte
	// Forms tells what is kept of any user.
	Forms(ctx context.Context) (directory.Forms, error)
}

// ErrMechanism is the mechanism that is unknown or not offered, ErrEncryption the one that would be over TLS.
var (
	ErrMechanism  = errors.New("no such mechanism")
	ErrEncryption = errors.New("the mechanism needs TLS")
)

// Connection is what a login may depend on: who is at the other end, and how.
type Connection struct {
	Authority Authority
	// Service is the service's name, Protocol "smtp", "imap" or "pop", Host this system's name.
	Service, Protocol, Host string
	// Client is the client's address, Local the one of this host that it connected to.
	Client, Local netip.Addr
	Settings      *settings.View
	// TLS is nil in clear; Certificate is the one that this side showed, nil when that is not known.
	TLS         *tls.ConnectionState
	Certificate *x509.Certificate
}

// Terms gives what hangs on at this moment which mechanisms are offered. It asks the directory too; when that cannot answer, only what needs nothing
// of it is offered.
func (c *Connection) Terms(ctx context.Context) Terms {
	t := Terms{
		SecureAuth: settings.SecureAuth.Get(c.Settings), ForceTLS: settings.ForceTLS.Get(c.Settings), EnableCRAM: settings.EnableCRAM.Get(c.Settings),
		External: settings.AuthExternal.Get(c.Settings), TLS: c.TLS != nil, Bindable: len(sasl.Bindings(c.TLS, c.Certificate)) > 0,
		Certified: len(sasl.Addresses(c.TLS)) > 0, Tokens: c.Authority.Tokens(), Anonymous: c.anonymous() != "",
		Disabled: func(name string) bool {
			key, ok := settings.DisableMechanism[name]
			return ok && key.Get(c.Settings)
		},
	}
	if forms, err := c.Authority.Forms(ctx); err == nil {
		t.Clear, t.SCRAM = forms.Clear, forms.SCRAM
	}
	return t
}

// anonymous gives the user as whom anybody may log in, "" for none. It is never one of SMTP's, where a login lets mail through to anywhere.
func (c *Connection) anonymous() string {
	if c.Protocol != "imap" && c.Protocol != "pop" {
		return ""
	}
	return settings.AuthAnonymous.Get(c.Settings)
}

// Offer gives the mechanisms to announce.
func (c *Connection) Offer(ctx context.Context) []string { return Offer(c.Terms(ctx)) }

// Passwords tells whether a password may come as it is by the protocol's own commands, LOGIN and USER.
func (c *Connection) Passwords() bool {
	return c.TLS != nil || !settings.SecureAuth.Get(c.Settings) && !settings.ForceTLS.Get(c.Settings)
}

// APOP tells whether to offer POP3's APOP.
func (c *Connection) APOP(ctx context.Context) bool {
	t := c.Terms(ctx)
	return !settings.DisableAPOP.Get(c.Settings) && (t.Clear || t.EnableCRAM) && (t.TLS || !t.ForceTLS)
}

// Begin begins an exchange by a mechanism in upper case: ErrEncryption when it would be offered over TLS, ErrMechanism when it is
// not offered.
func (c *Connection) Begin(ctx context.Context, mechanism string) (*Exchange, error) {
	t := c.Terms(ctx)
	offered := Offer(t)
	if !slices.Contains(offered, mechanism) {
		if t.TLS, t.Bindable = true, true; c.TLS == nil && slices.Contains(Offer(t), mechanism) {
			return nil, ErrEncryption
		}
		return nil, ErrMechanism
	}
	e := &Exchange{connection: c, mechanism: mechanism}
	e.Server = sasl.New(mechanism, sasl.Config{
		Store: e, Host: c.Host, Service: c.Protocol, TLS: c.TLS, Certificate: c.Certificate, Offered: offered, Token: e.token,
		Anonymous: e.anonymous, KeysOnly: t.keysOnly(),
	})
	if e.Server == nil {
		return nil, ErrMechanism
	}
	return e, nil
}

// CheckAPOP is POP3's APOP; timestamp is the one of the greeting.
func (c *Connection) CheckAPOP(ctx context.Context, timestamp, user, digest string) (*Exchange, error) {
	e := &Exchange{connection: c, mechanism: "APOP"}
	err := sasl.APOP(ctx, e, timestamp, user, digest)
	e.over(ctx, err)
	return e, err
}

// CheckPassword is Verify for the protocol's own commands.
func (c *Connection) CheckPassword(ctx context.Context, command, user, password string) (*Exchange, error) {
	e := &Exchange{connection: c, mechanism: command + " command"}
	return e, e.Authenticate(ctx, user, password)
}

// Exchange is a SASL exchange and what comes of it.
type Exchange struct {
	sasl.Server
	connection *Connection
	mechanism  string
	// known is what Before said; told is set when After has been.
	known, told bool
	// User is the name as the client gave it, once it has; Identity is who logged in, once the exchange has succeeded.
	User     string
	Identity Identity
	// Trace is what an anonymous client says about itself (RFC 4505): nobody knows whether it is true.
	Trace string
	// Refused is why a token is not taken, once the client has been told by a challenge: what it says to that, if it stays, changes nothing.
	Refused error
}

// Next is sasl.Server's, with the count of failed logins around it.
func (e *Exchange) Next(ctx context.Context, response []byte) (challenge []byte, done bool, err error) {
	if e.User != "" && !e.told {
		// Other connections may have failed since the challenge.
		if _, err := e.connection.Authority.Before(ctx, e.attempt(e.User, "")); err != nil {
			return nil, true, err
		}
	}
	challenge, done, err = e.Server.Next(ctx, response)
	if done {
		e.over(ctx, err)
	}
	return challenge, done, err
}

// over tells what came of an exchange without a password.
func (e *Exchange) over(ctx context.Context, err error) {
	if e.User == "" || e.told {
		return
	}
	e.told = true
	if e.mechanism == "ANONYMOUS" && err == nil {
		// Who is nobody in particular is not to be known for one who may guess that user's password without an end.
		return
	}
	e.connection.Authority.After(ctx, e.attempt(e.User, ""), e.Identity, err)
}

func (e *Exchange) attempt(user, password string) Attempt {
	e.User = user
	cram := settings.EnableCRAM.Get(e.connection.Settings)
	return Attempt{User: user, Password: password, Service: e.connection.Service, Client: e.connection.Client, Local: e.connection.Local, Mechanism: e.mechanism,
		TLS: e.connection.TLS != nil, Known: e.known, EnableCRAM: cram, HashSecret: cram && settings.HashSecret.Get(e.connection.Settings) && !strings.HasPrefix(e.mechanism, "SCRAM-")}
}

// Authenticate is sasl.Store's.
func (e *Exchange) Authenticate(ctx context.Context, user, password string) (err error) {
	attempt := e.attempt(user, password)
	if attempt.Known, err = e.connection.Authority.Before(ctx, attempt); err != nil {
		return err
	}
	e.told = true
	defer func() { e.connection.Authority.After(ctx, attempt, e.Identity, err) }()
	e.Identity, err = e.connection.Authority.Verify(ctx, attempt)
	return err
}

// token is sasl.Config's. The guard takes a token for a password: the same bad one counts once.
func (e *Exchange) token(ctx context.Context, user, token string) (err error) {
	attempt := e.attempt(user, token)
	if attempt.Known, err = e.connection.Authority.Before(ctx, attempt); err != nil {
		return err
	}
	e.told = true
	defer func() { e.connection.Authority.After(ctx, attempt, e.Identity, err) }()
	identity, err := e.connection.Authority.Token(ctx, attempt)
	if err != nil {
		e.Refused = err
		return err
	}
	e.Identity, e.User = identity, identity.Address.String()
	return nil
}

// anonymous is sasl.Config's.
func (e *Exchange) anonymous(ctx context.Context, trace string) error {
	e.Trace = trace
	return e.Admit(ctx, e.connection.anonymous())
}

// Admit is sasl.Store's.
func (e *Exchange) Admit(ctx context.Context, user string) error {
	attempt := e.attempt(user, "")
	var err error
	if attempt.Known, err = e.connection.Authority.Before(ctx, attempt); err != nil {
		return err
	}
	identity, err := e.connection.Authority.Identify(ctx, attempt)
	if err == nil {
		err = e.connection.Authority.Admit(ctx, identity, attempt)
	}
	if err == nil {
		e.Identity = identity
	}
	return err
}

// Secrets is sasl.Store's: one who has none is no error there.
func (e *Exchange) Secrets(ctx context.Context, user string) (sasl.Secrets, error) {
	attempt := e.attempt(user, "")
	var err error
	if e.known, err = e.connection.Authority.Before(ctx, attempt); err != nil {
		return sasl.Secrets{}, err
	}
	_, secrets, err := e.connection.Authority.Secrets(ctx, attempt)
	if err != nil && !mailerr.From(err).Temporary() {
		return sasl.Secrets{}, nil
	}
	return secrets, err
}

// Decoy is sasl.Store's.
func (e *Exchange) Decoy(ctx context.Context, user string) []byte {
	return e.connection.Authority.Decoy(ctx, e.attempt(user, ""))
}
