package auth

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/mailerr"
)

// Accounts is the Authority over the directory: a Password for what the client sends as it is, and what challenges need beside.
type Accounts struct {
	*Password
	forms func(context.Context) (directory.Forms, error)
	key   []byte
	guard *Guard
}

// NewAccounts makes Accounts; guard counts their failed logins. key is what Decoy's secrets are made of: whoever has it can find out which names are of users.
func NewAccounts(p *Password, forms func(context.Context) (directory.Forms, error), key []byte, guard *Guard) *Accounts {
	return &Accounts{p, forms, key, guard}
}

// LoadKey reads the key for NewAccounts from a file of hexadecimal digits, and makes it on the first call: it must stay the same, for a
// salt that changes is that of nobody.
func LoadKey(file string) ([]byte, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		key := make([]byte, 32)
		rand.Read(key)
		if err := os.WriteFile(file+".new", []byte(hex.EncodeToString(key)+"\n"), 0o600); err != nil {
			return nil, err
		}
		return key, os.Rename(file+".new", file)
	}
	if err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) < 16 {
		return nil, fmt.Errorf("%s: want at least 32 hexadecimal digits; remove the file to have it made anew", file)
	}
	return key, nil
}

// account gives the name that failures for it are counted under, all spellings as one, also by other names of its domain; "" where the client
// gave none. While the directory cannot answer it is the name as it was given.
func (a *Accounts) account(ctx context.Context, attempt Attempt) string {
	if attempt.User == "" {
		return ""
	}
	address, err := a.Whom(ctx, attempt)
	if address == (addr.Address{}) && err != nil {
		return strings.ToLower(cut(attempt.User))
	}
	return strings.ToLower(cut(address.Key()))
}

// Before is Authority's.
func (a *Accounts) Before(ctx context.Context, attempt Attempt) (known bool, err error) {
	return a.guard.before(ctx, attempt, a.account(ctx, attempt))
}

// After is Authority's.
func (a *Accounts) After(ctx context.Context, attempt Attempt, identity Identity, err error) {
	a.guard.after(ctx, attempt, attempt.Known, a.account(ctx, attempt), identity, err)
}

// Unlock is Guard's, for an account by any name of its domain.
func (a *Accounts) Unlock(ctx context.Context, name string) int {
	n := a.guard.Unlock(ctx, name)
	if account := a.account(ctx, Attempt{User: name}); strings.Contains(name, "@") && account != strings.ToLower(name) {
		n += a.guard.Unlock(ctx, account)
	}
	return n
}

// Identify is Authority's.
func (a *Accounts) Identify(ctx context.Context, attempt Attempt) (Identity, error) {
	user, err := a.find(ctx, attempt)
	if err != nil {
		return Identity{}, err
	}
	if _, err := ParseStored(user.Password, user.Scram); errors.Is(err, ErrNoPassword) {
		// Who is locked is so for certificates and tokens too.
		return Identity{}, errFailed.Because(err)
	}
	return Identity{Address: user.Address(), Home: user.Dir, Quota: user.Quota}, nil
}

// Tokens is Authority's: nobody is known here who could judge them.
func (a *Accounts) Tokens() bool { return false }

// Token is Authority's.
func (a *Accounts) Token(context.Context, Attempt) (Identity, error) {
	return Identity{}, Refused(errors.New("no tokens are taken here: no issuer is set (OAUTH_ISSUER)"))
}

// AdmitNamed lets in the user whom a token names, if the name that the client gave, when it gave one, means the same user.
func (a *Accounts) AdmitNamed(ctx context.Context, attempt Attempt, name string) (Identity, error) {
	named := attempt
	// The token does not know which address of this host the client came to.
	named.User, named.Password, named.Local = name, "", netip.Addr{}
	if attempt.User == "" {
		if _, err := a.Before(ctx, named); err != nil {
			return Identity{}, err
		}
	}
	identity, err := a.Identify(ctx, named)
	if err != nil {
		return Identity{}, namedError(name, err)
	}
	if attempt.User != "" {
		meant, err := a.Identify(ctx, attempt)
		if err != nil {
			return Identity{}, err
		}
		if meant.Address.Key() != identity.Address.Key() {
			return Identity{}, errFailed.Because(fmt.Errorf("the token is that of %s, not of %s", identity.Address, meant.Address))
		}
	}
	return identity, a.Admit(ctx, identity, attempt)
}

// namedError adds whom a token names to a refusal.
func namedError(name string, err error) error {
	if refusal := mailerr.From(err); refusal.Code == errFailed.Code {
		return refusal.Because(fmt.Errorf("the token names %s: %w", name, cmp.Or(refusal.Cause, errors.New(refusal.Text))))
	}
	return err
}

// Decoy is Authority's. A user has the same salt by all names of his domain, so that who is none must have it, too.
func (a *Accounts) Decoy(ctx context.Context, attempt Attempt) []byte {
	mac := hmac.New(sha256.New, a.key)
	mac.Write([]byte(a.account(ctx, attempt)))
	return mac.Sum(nil)
}

// Forms is Authority's.
func (a *Accounts) Forms(ctx context.Context) (directory.Forms, error) { return a.forms(ctx) }
