package auth

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/indigomail/indigo/internal/addr"
)

// Policy says which new passwords are refused.
type Policy struct {
	// MinLength is the least number of letters; 0 means none.
	MinLength int
	// Bad tells whether a list of bad passwords has one, which it is given in lower case; nil means that there is no list.
	Bad func(ctx context.Context, password string) (bool, error)
}

// ErrPolicy marks a refusal by a Policy, which an administrator may pass over.
var ErrPolicy = errors.New("the password is refused")

// Check judges a new password of user's. ErrPolicy; another error says that it could not be judged, or can never be stored.
func (p Policy) Check(ctx context.Context, user addr.Address, password string) error {
	if err := ValidPassword(password); err != nil {
		return err
	}
	if n := utf8.RuneCountInString(password); n < p.MinLength {
		return fmt.Errorf("%w: it has %d letters, and the setting PASSWORD_MIN_LENGTH wants %d", ErrPolicy, n, p.MinLength)
	}
	lower := strings.ToLower(password)
	// alice, Alice1 and alice2027! are the first that are tried.
	name := strings.TrimRight(lower, "0123456789!.-_")
	local, domain := strings.ToLower(user.Local), strings.ToLower(user.Domain)
	for _, own := range []string{local, domain, local + "@" + domain} {
		if own != "" && (lower == own || name == own) {
			return fmt.Errorf("%w: it is made of the user's own name or domain", ErrPolicy)
		}
	}
	if p.Bad == nil {
		return nil
	}
	bad, err := p.Bad(ctx, lower)
	if err != nil {
		return fmt.Errorf("the list of bad passwords cannot be asked: %w", err)
	}
	if bad {
		return fmt.Errorf("%w: it is in the list of bad passwords, BADPASSWORDS", ErrPolicy)
	}
	return nil
}
