// Package sasl is knowledge: the frame of SASL (RFC 4422) and its mechanisms, for servers and for clients. It must not know
// the wire that carries challenge and response, nor where passwords are kept.
package sasl

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/indigomail/indigo/internal/mailerr"
)

const (
	// MaxResponse bounds a response in octets: what a line of 12288 octets (RFC 4954 section 4) holds in base64.
	MaxResponse = 12288 / 4 * 3
	// maxMessage bounds the responses of all mechanisms but those that carry tokens.
	maxMessage = 4096
	// maxName bounds the name of a user in octets.
	maxName = 1024
)

// ErrMalformed says that a response does not have the mechanism's form.
var ErrMalformed = errors.New("malformed SASL response")

// errFailed is the one reply to all failed logins.
var errFailed = mailerr.New(535, mailerr.Enhanced{5, 7, 8}, "authorization failed (#5.7.8)")

// Failed gives the error for a login that failed, for whatever cause: the client sees 535 5.7.8, the same for all.
func Failed(cause error) error { return errFailed.Because(cause) }

func failed(cause string) error { return Failed(errors.New(cause)) }

// Store is what the mechanisms ask about users. Its errors are replies: Failed's, or a temporary one.
type Store interface {
	// Authenticate checks a password that the client sent.
	Authenticate(ctx context.Context, user, password string) error
	// Secrets gives what is kept of a user beyond a hash. One who is unknown has none, and that is no error.
	Secrets(ctx context.Context, user string) (Secrets, error)
	// Admit is asked in Authenticate's place about a user who has proved to be himself without sending a password.
	Admit(ctx context.Context, user string) error
	// Decoy gives a secret made of the user's name and of nothing else, the same for all spellings of one name. The salts of
	// users without kept keys are made of it.
	Decoy(ctx context.Context, user string) []byte
}

// Config is what exchanges stand on, at one connection. Store is required.
type Config struct {
	Store Store
	// Host is this system's name: DIGEST-MD5's realm. Service is "smtp", "imap" or "pop", which DIGEST-MD5's client signs.
	Host, Service string
	// TLS is nil in clear, Certificate the one that this side showed, nil when that is not known.
	TLS         *tls.ConnectionState
	Certificate *x509.Certificate
	// Offered are the mechanisms that the client was told of: a SCRAM client that saw no -PLUS where there was one was
	// deceived (RFC 5802 section 6).
	Offered []string
	// KeysOnly tells that of nobody the password itself is kept. Otherwise SCRAM derives keys for everybody, since the time that it takes would
	// tell of whom it is.
	KeysOnly bool
	// Token lets in whom a token names; user is the name that the client gave, "" for none. Its error may be a *TokenRefusal. Without Token
	// there is neither OAUTHBEARER nor XOAUTH2.
	Token func(ctx context.Context, user, token string) error
	// Anonymous lets anybody in; trace is what he says about himself (RFC 4505). Without it there is no ANONYMOUS.
	Anonymous func(ctx context.Context, trace string) error
}

// Server is one exchange. Next takes the client's response, nil when there was no initial one, and gives the challenge to
// send; done means that the exchange is over: successfully when err is nil. It is not safe for concurrent use.
type Server interface {
	Next(ctx context.Context, response []byte) (challenge []byte, done bool, err error)
}

// Names gives all mechanisms, the strongest first, except ANONYMOUS.
func Names() []string {
	return []string{
		"SCRAM-SHA-512-PLUS", "SCRAM-SHA-256-PLUS", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-512", "SCRAM-SHA-256", "SCRAM-SHA-1", "DIGEST-MD5",
		"CRAM-SHA512", "CRAM-SHA384", "CRAM-SHA256", "CRAM-SHA224", "CRAM-SHA1", "CRAM-RIPEMD", "CRAM-MD5",
		"PLAIN", "LOGIN", "OAUTHBEARER", "XOAUTH2", "EXTERNAL",
	}
}

// New begins an exchange; nil for a mechanism that is unknown or that c does not allow. mechanism is in upper case.
func New(mechanism string, c Config) Server {
	var step step
	switch {
	case mechanism == "PLAIN":
		step = plain(c.Store)
	case mechanism == "LOGIN":
		step = login(c.Store)
	case mechanism == "EXTERNAL" && len(Addresses(c.TLS)) > 0:
		step = external(c.Store, Addresses(c.TLS))
	case mechanism == "ANONYMOUS" && c.Anonymous != nil:
		step = anonymous(c.Anonymous)
	case mechanism == "OAUTHBEARER" && c.Token != nil:
		step = bearer(c, parseOAuthBearer, false)
	case mechanism == "XOAUTH2" && c.Token != nil:
		step = bearer(c, parseXOAuth2, true)
	case mechanism == "DIGEST-MD5":
		step = (&digest{config: c, nonce: nonce()}).first
	case cramHash(mechanism) != nil:
		step = (&cram{config: c, hash: cramHash(mechanism), challenge: Timestamp(c.Host)}).first
	case scramHash(mechanism) != nil:
		step = (&scramServer{config: c, mechanism: mechanism, nonce: nonce}).first
	default:
		return nil
	}
	return &exchange{step: step}
}

// step is what an exchange does with the next response: it gives a challenge and the next step, or no step at its end.
type step func(ctx context.Context, response []byte) (challenge []byte, next step, err error)

// exchange goes from step to step.
type exchange struct{ step step }

func (e *exchange) Next(ctx context.Context, response []byte) ([]byte, bool, error) {
	if e.step == nil || len(response) > MaxResponse {
		e.step = nil
		return nil, true, ErrMalformed
	}
	challenge, next, err := e.step(ctx, response)
	if e.step = next; err != nil {
		e.step = nil
	}
	return challenge, e.step == nil, err
}

// ask is a first step that has the client speak first, with an initial response or without (RFC 4422 section 5).
func ask(then step) step {
	return func(ctx context.Context, response []byte) ([]byte, step, error) {
		if response == nil {
			return []byte{}, then, nil
		}
		return then(ctx, response)
	}
}

// last is the step after the server's last word: the client has nothing to add.
func last(store Store, user string) step {
	return func(ctx context.Context, response []byte) ([]byte, step, error) {
		if len(response) > 0 {
			return nil, nil, ErrMalformed
		}
		return nil, nil, store.Admit(ctx, user)
	}
}

// validName tells whether user can be the name of a user.
func validName(user string) bool {
	return user != "" && len(user) <= maxName && utf8.ValidString(user) && !strings.ContainsAny(user, "\x00\r\n")
}
