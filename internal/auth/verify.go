package auth

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/go-crypt/crypt"
	"github.com/go-crypt/crypt/algorithm"
	"github.com/go-crypt/crypt/algorithm/argon2"
	"github.com/go-crypt/crypt/algorithm/bcrypt"
	"github.com/go-crypt/crypt/algorithm/md5crypt"
	"github.com/go-crypt/crypt/algorithm/shacrypt"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/mailerr"
)

// maxPassword bounds a password in octets.
const maxPassword = 1024

// Users is what the verifier needs of the directory.
type Users interface {
	User(ctx context.Context, a addr.Address) (directory.User, error)
}

// Config says how a Password verifier works.
type Config struct {
	Directory Users
	// Denied tells what keeps a user from a service, "" when nothing does; nil asks nobody.
	Denied func(ctx context.Context, u directory.User, service directory.Flags) (why string, err error)
	// DefaultDomain completes a name without a domain.
	DefaultDomain string
	// Workers bounds how many hashes are computed at once, because an argon2id hash takes 19 MiB; 0 means one a CPU.
	Workers int
	Now     func() time.Time
}

// Password is the Verifier over the directory's stored forms: $argon2id$, $2a$ $2b$ $2y$ (bcrypt), $6$, $5$, $1$.
type Password struct {
	config  Config
	decoder *crypt.Decoder
	workers chan struct{}
	// dummy is what a password for an unknown user is checked against, so that both take the same time.
	dummy algorithm.Digest

	mu     sync.Mutex
	tokens map[string]token
}

type token struct {
	secret string
	until  time.Time
}

var errFailed = mailerr.New(535, mailerr.Enhanced{5, 7, 8}, "authorization failed (#5.7.8)")
var errDenied = mailerr.New(535, mailerr.Enhanced{5, 7, 8}, "this service is switched off for your account (#5.7.8)")
var errUnavailable = mailerr.New(454, mailerr.Enhanced{4, 7, 0}, "temporary authentication failure (#4.7.0)")

// newDecoder knows the forms in which passwords are stored.
func newDecoder() (*crypt.Decoder, error) {
	d := crypt.NewDecoder()
	// One by one: the library's collection of all decoders also takes $plaintext$.
	for _, register := range []func(algorithm.DecoderRegister) error{
		argon2.RegisterDecoder, bcrypt.RegisterDecoder, md5crypt.RegisterDecoder, shacrypt.RegisterDecoder,
	} {
		if err := register(d); err != nil {
			return nil, fmt.Errorf("password decoders: %w", err)
		}
	}
	return d, nil
}

// StoredForms gives a check of stored passwords: whether NewVerifier's verifier can compare a password with one.
func StoredForms() (check func(stored string) error, err error) {
	d, err := newDecoder()
	return func(stored string) error {
		if _, err := d.Decode(stored); err != nil {
			// The library's error may repeat what it was given.
			return errors.New("the password is in no form that is known: it must begin with $argon2id$, $2b$, $6$, $5$ or $1$")
		}
		return nil
	}, err
}

// NewVerifier makes a Password.
func NewVerifier(config Config) (*Password, error) {
	p := &Password{config: config, tokens: map[string]token{}}
	p.workers = make(chan struct{}, cmp.Or(config.Workers, runtime.NumCPU()))
	var err error
	if p.decoder, err = newDecoder(); err != nil {
		return nil, err
	}
	stored, err := HashPassword(rand.Text())
	if err != nil {
		return nil, err
	}
	p.dummy, err = p.decoder.Decode(stored)
	return p, err
}

// Verify checks a password; see Verifier.
func (p *Password) Verify(ctx context.Context, a Attempt) (Identity, error) {
	name := a.User
	if !strings.Contains(name, "@") {
		name += "@" + p.config.DefaultDomain
	}
	address, err := addr.Parse(name)
	if err != nil || a.Password == "" || len(a.Password) > maxPassword || strings.ContainsRune(a.Password, 0) {
		return Identity{}, p.refuse(ctx, fmt.Errorf("name or password malformed: %v", err))
	}
	user, err := p.config.Directory.User(ctx, address)
	if errors.Is(err, directory.ErrNoUser) || errors.Is(err, directory.ErrNoDomain) {
		return Identity{}, p.refuse(ctx, err)
	}
	if err != nil {
		return Identity{}, errUnavailable.Because(err)
	}
	identity := Identity{Address: user.Address(), Home: user.Dir}
	if p.tokenFits(address.Key(), a.Password) {
		return identity, nil
	}
	digest, err := p.decoder.Decode(user.Password)
	if err != nil {
		return Identity{}, p.refuse(ctx, fmt.Errorf("stored form of %s: %w", address, err))
	}
	ok, err := p.match(ctx, digest, a.Password)
	if err != nil {
		return Identity{}, err
	}
	if !ok {
		return Identity{}, errFailed.Because(errors.New("wrong password"))
	}
	if err := p.denied(ctx, user, a.Service); err != nil {
		return Identity{}, err
	}
	return identity, nil
}

// denied is asked when the password was right: who has it may know why it is not enough.
func (p *Password) denied(ctx context.Context, user directory.User, service string) error {
	kind, _, _ := strings.Cut(service, ".")
	flag := map[string]directory.Flags{"pop3d": directory.NoPOP, "imapd": directory.NoIMAP, "smtpd": directory.NoSMTP}[kind]
	if p.config.Denied == nil || flag == 0 {
		return nil
	}
	why, err := p.config.Denied(ctx, user, flag)
	if err != nil {
		return errUnavailable.Because(err)
	}
	if why != "" {
		return errDenied.Because(errors.New(why))
	}
	return nil
}

// refuse takes as long as a wrong password does.
func (p *Password) refuse(ctx context.Context, cause error) error {
	if _, err := p.match(ctx, p.dummy, "no password"); err != nil {
		return err
	}
	return errFailed.Because(cause)
}

func (p *Password) match(ctx context.Context, digest algorithm.Digest, password string) (bool, error) {
	select {
	case p.workers <- struct{}{}:
	case <-ctx.Done():
		return false, errUnavailable.Because(ctx.Err())
	}
	defer func() { <-p.workers }()
	return digest.Match(password), nil
}

// IssueToken gives a made-up password that works for user until ttl has passed, for `indigo try`. It lives in memory
// only.
func (p *Password) IssueToken(user string, ttl time.Duration) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.config.Now()
	for name, t := range p.tokens {
		if now.After(t.until) {
			delete(p.tokens, name)
		}
	}
	t := token{rand.Text(), now.Add(ttl)}
	p.tokens[strings.ToLower(user)] = t
	return t.secret
}

func (p *Password) tokenFits(user, password string) bool {
	p.mu.Lock()
	t, ok := p.tokens[user]
	p.mu.Unlock()
	return ok && p.config.Now().Before(t.until) && subtle.ConstantTimeCompare([]byte(t.secret), []byte(password)) == 1
}

// ValidPassword tells what keeps a password from being stored.
func ValidPassword(password string) error {
	if password == "" || len(password) > maxPassword || strings.ContainsAny(password, "\x00\r\n") {
		return fmt.Errorf("a password must have 1 to %d bytes and no NUL or line end", maxPassword)
	}
	return nil
}

// HashPassword gives the form in which a new password is stored: argon2id with 19 MiB and two passes, which fits the
// column pw_passwd.
func HashPassword(password string) (string, error) {
	if err := ValidPassword(password); err != nil {
		return "", err
	}
	h, err := argon2.New(argon2.WithVariantID(), argon2.WithM(19456), argon2.WithT(2), argon2.WithP(1), argon2.WithS(16), argon2.WithK(32))
	if err != nil {
		return "", err
	}
	digest, err := h.Hash(password)
	if err != nil {
		return "", err
	}
	return digest.Encode(), nil
}
