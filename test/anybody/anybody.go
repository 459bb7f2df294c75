// Package anybody is for tests of doors: an auth.Authority that lets everybody in.
package anybody

import (
	"context"
	"errors"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/directory"
)

// Anybody lets everybody in as u@d.test, by any password and by tokens of x alone; kept passwords are p.
type Anybody struct {
	// Home is the user's, Quota in Maildir++'s form.
	Home, Quota string
}

// Verify takes every password.
func (a Anybody) Verify(context.Context, auth.Attempt) (auth.Identity, error) {
	return auth.Identity{Address: addr.Address{Local: "u", Domain: "d.test"}, Home: a.Home, Quota: a.Quota}, nil
}

// Tokens is true.
func (Anybody) Tokens() bool { return true }

// Token refuses what is not of x alone, with a challenge.
func (a Anybody) Token(ctx context.Context, attempt auth.Attempt) (auth.Identity, error) {
	if strings.Trim(attempt.Password, "x") != "" {
		return auth.Identity{}, auth.Refused(errors.New("token expired"))
	}
	return a.Verify(ctx, attempt)
}

// Identify knows every name.
func (a Anybody) Identify(ctx context.Context, attempt auth.Attempt) (auth.Identity, error) {
	return a.Verify(ctx, attempt)
}

// Secrets has p for everybody.
func (Anybody) Secrets(context.Context, auth.Attempt) (auth.Identity, sasl.Secrets, error) {
	return auth.Identity{}, sasl.Secrets{Clear: "p"}, nil
}

// Admit lets in.
func (Anybody) Admit(context.Context, auth.Identity, auth.Attempt) error { return nil }

// Before refuses nobody.
func (Anybody) Before(context.Context, auth.Attempt) (bool, error) { return false, nil }

// After counts nothing.
func (Anybody) After(context.Context, auth.Attempt, auth.Identity, error) {}

// Decoy gives the name.
func (Anybody) Decoy(_ context.Context, a auth.Attempt) []byte { return []byte(a.User) }

// Forms has none.
func (Anybody) Forms(context.Context) (directory.Forms, error) { return directory.Forms{}, nil }
