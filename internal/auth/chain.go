package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/indigomail/indigo/internal/mailerr"
)

// errSwitchedOff is the cause of a refusal in spite of the right password.
var errSwitchedOff = errors.New("switched off")

// Chain asks sources of passwords in turn, the first that knows name and password wins (wiki 2994-3039). A user whose
// password was right and who may not use the service is asked for no further.
type Chain []Verifier

// Verify implements Verifier. A source that cannot answer makes the answer temporary when no later one knows the password:
// it might have been the one. A refusal has the causes of all of them.
func (c Chain) Verify(ctx context.Context, a Attempt) (Identity, error) {
	var refused, unsure, why error
	for _, source := range c {
		identity, err := source.Verify(ctx, a)
		if err == nil {
			return identity, nil
		}
		var e *mailerr.Error
		switch {
		case errors.Is(err, errSwitchedOff):
			return Identity{}, err
		case errors.As(err, &e) && e.Code == errFailed.Code:
			cause := cmp.Or[error](e.Cause, e)
			if why != nil {
				cause = fmt.Errorf("%w; %w", why, cause)
			}
			why, refused = cause, e.Because(cause)
		default:
			unsure = err
		}
	}
	switch {
	case unsure != nil:
		return Identity{}, unsure
	case refused != nil:
		return Identity{}, refused
	}
	return Identity{}, errUnavailable.Because(errors.New("no source of passwords is set"))
}

// Refused gives the answer to a wrong password or an unknown user, Unavailable that of a source that cannot say; the cause is for the log.
func Refused(cause error) error { return errFailed.Because(cause) }

// Unavailable is Refused's counterpart.
func Unavailable(cause error) error { return errUnavailable.Because(cause) }

// SwitchedOff tells whether an error of a Verifier is a refusal in spite of the right password.
func SwitchedOff(err error) bool { return errors.Is(err, errSwitchedOff) }

// ValidCredentials tells whether name and password have a length and form that any source could take.
func ValidCredentials(name, password string) bool {
	return name != "" && password != "" && len(name)+len(password) <= maxPassword && !strings.ContainsRune(name+password, 0)
}
