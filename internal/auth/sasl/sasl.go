// Package sasl is knowledge: the frame of SASL (RFC 4422) and its mechanisms, for every door. It must not know the wire
// that carries challenge and response, nor where passwords are kept.
package sasl

import (
	"bytes"
	"context"
	"errors"
)

// ErrMalformed says that a response does not have the mechanism's form.
var ErrMalformed = errors.New("malformed SASL response")

// Authenticate checks a name and a password.
type Authenticate func(ctx context.Context, user, password string) error

// Server is one exchange. Next takes the client's response, nil when there was no initial one, and gives the challenge to
// send; done means that the exchange is over: successfully when err is nil.
type Server interface {
	Next(ctx context.Context, response []byte) (challenge []byte, done bool, err error)
}

// Names gives the mechanisms in the order in which they are announced.
func Names() []string { return []string{"PLAIN", "LOGIN"} }

// New begins an exchange; nil for an unknown mechanism. mechanism is in upper case.
func New(mechanism string, authenticate Authenticate) Server {
	switch mechanism {
	case "PLAIN":
		return &plain{authenticate}
	case "LOGIN":
		return &login{authenticate: authenticate}
	}
	return nil
}

// plain is RFC 4616.
type plain struct{ authenticate Authenticate }

func (p *plain) Next(ctx context.Context, response []byte) ([]byte, bool, error) {
	if response == nil {
		return []byte{}, false, nil
	}
	parts := bytes.Split(response, []byte{0})
	// Nobody may act for another user, so an authorization identity must name the same one.
	if len(parts) != 3 || len(parts[1]) == 0 || len(parts[0]) > 0 && !bytes.Equal(parts[0], parts[1]) {
		return nil, true, ErrMalformed
	}
	return nil, true, p.authenticate(ctx, string(parts[1]), string(parts[2]))
}

// login is the LOGIN mechanism of draft-murchison-sasl-login.
type login struct {
	authenticate Authenticate
	step         int
	user         string
}

func (l *login) Next(ctx context.Context, response []byte) ([]byte, bool, error) {
	switch {
	case l.step == 0 && response == nil:
		l.step = 1
		return []byte("Username:"), false, nil
	case l.step <= 1:
		l.step, l.user = 2, string(response)
		return []byte("Password:"), false, nil
	}
	return nil, true, l.authenticate(ctx, l.user, string(response))
}
