package auth

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/mailerr"
)

// Users is what the verifier needs of the directory; see directory.Store.
type Users interface {
	User(ctx context.Context, a addr.Address) (directory.User, error)
	// Domain finds a domain by any of its names.
	Domain(ctx context.Context, name string) (directory.Domain, error)
	// InactiveUser finds whom User answers with directory.ErrInactive; ActivateUser makes one of the others of him.
	InactiveUser(ctx context.Context, a addr.Address) (directory.User, error)
	ActivateUser(ctx context.Context, a addr.Address) error
	AppPasswords(ctx context.Context, a addr.Address) ([]directory.AppPassword, error)
	AppPasswordUsed(ctx context.Context, a addr.Address, name string) error
	RenewPassword(ctx context.Context, u directory.User, passwd, scram, what string) (renewed bool, err error)
}

// Config says how a Password verifier works.
type Config struct {
	Directory Users
	// Denied tells what keeps a user from a service, "" when nothing does; nil asks nobody.
	Denied func(ctx context.Context, u directory.User, service directory.Flags) (why string, err error)
	// Renew gives the form that weaker ones are replaced by when their users log in, and whether they are; nil replaces none.
	Renew func() (form Form, wanted bool)
	// Saw is told of each log-in that succeeded; nil tells nobody. It must not wait.
	Saw func(u directory.User, a Attempt)
	// DomainOf gives the domain that an address of this host is mapped to, "" for none; nil knows of none.
	DomainOf func(ctx context.Context, local netip.Addr) (string, error)
	// Keys decrypt passwords that are kept encrypted; with nil none can be.
	Keys *Keyring
	// DefaultDomain gives what completes a name without a domain, now; it may change while this runs.
	DefaultDomain func() string
	// Workers bounds how many hashes are computed at once, because an argon2id hash takes 19 MiB; 0 means one a CPU.
	Workers int
	Now     func() time.Time
	// Logger is told what goes wrong behind a login's back; nil tells nobody.
	Logger *slog.Logger
}

// Password is the Verifier over the directory's stored forms (ParseStored) and app passwords. Close ends it.
type Password struct {
	config Config
	turns  *turns
	floor  floor
	// dummy is what a password for an unknown user is checked against, so that both take the same time.
	dummy Stored

	// later is what is done when a login is over: forms renewed, uses of app passwords written down.
	later   chan func(context.Context)
	closing chan struct{}
	cancel  context.CancelFunc
	done    sync.WaitGroup

	mu     sync.Mutex
	tokens map[string]token
}

type token struct {
	secret string
	until  time.Time
}

const (
	// maxLater bounds what waits; what comes on top is left out, and done at another login.
	maxLater = 64
	// laterTime bounds one such piece of work.
	laterTime = 30 * time.Second
	// closeTime bounds all that waits at the end.
	closeTime = 5 * time.Second
	// usedEvery is how exactly the last use of an app password is written down.
	usedEvery = time.Hour
)

// nobodysKeys have the form of those that are kept, and are no password's.
var nobodysKeys = "{SCRAM-SHA-256}4096,c2l4dGVlbiBieXRlcyBvaw==" + strings.Repeat(","+strings.Repeat("A", 43)+"=", 2)

var errFailed = mailerr.New(535, mailerr.Enhanced{5, 7, 8}, "authorization failed (#5.7.8)")
var errDenied = mailerr.New(535, mailerr.Enhanced{5, 7, 8}, "this service is switched off for your account (#5.7.8)")
var errOtherService = mailerr.New(535, mailerr.Enhanced{5, 7, 8}, "this app password is for other services (#5.7.8)")
var errUnavailable = mailerr.New(454, mailerr.Enhanced{4, 7, 0}, "temporary authentication failure (#4.7.0)")

// NewVerifier makes a Password.
func NewVerifier(config Config) (*Password, error) {
	began := config.Now()
	stored, err := HashPassword(rand.Text())
	took := config.Now().Sub(began)
	if err != nil {
		return nil, err
	}
	dummy, err := ParseStored(stored, "")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Password{
		config: config, dummy: dummy, turns: newTurns(cmp.Or(config.Workers, runtime.NumCPU())),
		later: make(chan func(context.Context), maxLater), closing: make(chan struct{}), cancel: cancel, tokens: map[string]token{},
	}
	p.floor.saw(config.Now(), took)
	p.done.Go(func() { p.work(ctx) })
	return p, nil
}

// Close has what waits done, for at most closeTime, and waits for it. It is called once, when the doors are closed.
func (p *Password) Close() {
	end := time.AfterFunc(closeTime, p.cancel)
	defer end.Stop()
	close(p.closing)
	p.done.Wait()
	p.cancel()
}

func (p *Password) work(ctx context.Context) {
	do := func(run func(context.Context)) {
		one, cancel := context.WithTimeout(ctx, laterTime)
		defer cancel()
		if one.Err() == nil {
			run(one)
		}
	}
	for closing := false; !closing; {
		select {
		case run := <-p.later:
			do(run)
		case <-p.closing:
			closing = true
		}
	}
	for {
		select {
		case run := <-p.later:
			do(run)
		default:
			return
		}
	}
}

// afterwards has something done when the login is over, never in its way.
func (p *Password) afterwards(run func(context.Context)) {
	select {
	case p.later <- run:
	default:
	}
}

func (p *Password) warn(text string, user directory.User, err error) {
	if p.config.Logger != nil {
		p.config.Logger.Warn(text, "user", user.Address().String(), "error", err)
	}
}

// find gives the user whom the name that a client gave means.
func (p *Password) find(ctx context.Context, a Attempt) (directory.User, error) {
	name, err := p.complete(ctx, a)
	if err != nil {
		return directory.User{}, errUnavailable.Because(err)
	}
	address, err := addr.Parse(name)
	if err != nil {
		return directory.User{}, errFailed.Because(fmt.Errorf("name malformed: %w", err))
	}
	user, err := p.config.Directory.User(ctx, address)
	if errors.Is(err, directory.ErrInactive) && wakes(a.Service) {
		// admit activates him.
		user, err = p.config.Directory.InactiveUser(ctx, address)
	}
	if errors.Is(err, directory.ErrNoUser) || errors.Is(err, directory.ErrNoDomain) {
		return user, errFailed.Because(err)
	}
	if err != nil {
		return user, errUnavailable.Because(err)
	}
	return user, nil
}

// wakes tells whether a login at a service activates who is marked inactive: it is IndiMail's POP3 and IMAP that do.
func wakes(service string) bool { return kindOf(service) == "pop3d" || kindOf(service) == "imapd" }

// Verify checks a password; see Verifier. All wrong ones take the same time from the moment that a worker is free, whatever form is
// stored, so that nobody can tell by it which users there are.
func (p *Password) Verify(ctx context.Context, a Attempt) (Identity, error) {
	began := p.config.Now()
	var waited time.Duration
	identity, err := p.verify(ctx, a, &waited)
	if err == nil || mailerr.From(err).Code != errFailed.Code || errors.Is(err, errSwitchedOff) {
		return identity, err
	}
	// The last nap is as long for all: a processor takes the longer to wake, the longer it slept.
	least := p.floor.least(p.config.Now())
	for _, until := range []time.Duration{least - least/8, least} {
		nap(ctx, until-(p.config.Now().Sub(began)-waited))
	}
	return Identity{}, err
}

func nap(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (p *Password) verify(ctx context.Context, a Attempt, waited *time.Duration) (Identity, error) {
	// Who cannot be right costs a hash too.
	refuse := func(cause error) (Identity, error) {
		if mailerr.From(cause).Code != errFailed.Code {
			return Identity{}, cause
		}
		if _, err := p.match(ctx, a.Known, p.dummy, "no password", waited); err != nil {
			return Identity{}, err
		}
		return Identity{}, cause
	}
	if a.Password == "" || len(a.Password) > maxPassword || strings.ContainsRune(a.Password, 0) {
		return refuse(errFailed.Because(errors.New("password malformed")))
	}
	user, err := p.find(ctx, a)
	if err != nil {
		return refuse(err)
	}
	identity := Identity{Address: user.Address(), Home: user.Dir, Quota: user.Quota}
	if !user.Inactive && p.tokenFits(user.Address().Key(), a.Password) {
		return identity, nil
	}
	if locked(user) {
		// App passwords are locked with the account, as certificates are.
		return refuse(errFailed.Because(fmt.Errorf("%s: %w", user.Address(), ErrNoPassword)))
	}
	if fits, err := p.appPasswordFits(ctx, user, a); fits || err != nil {
		if err == nil {
			err = p.admit(ctx, user, a)
		}
		if err != nil {
			return Identity{}, err
		}
		return identity, nil
	}
	stored, err := ParseStored(user.Password, user.Scram)
	if stored.hash == nil && len(stored.SCRAM) == 0 && stored.Sealed != "" {
		if err := p.Unseal(user, &stored); err != nil {
			return Identity{}, err
		}
	}
	if !stored.Usable() {
		return refuse(errFailed.Because(fmt.Errorf("stored form of %s: %w", user.Address(), cmp.Or(err, errBare))))
	}
	ok, err := p.match(ctx, a.Known, stored, a.Password, waited)
	if err != nil {
		return Identity{}, err
	}
	if !ok {
		return Identity{}, errFailed.Because(errors.New("wrong password"))
	}
	if err := p.admit(ctx, user, a); err != nil {
		return Identity{}, err
	}
	p.renew(user, stored, a.Password)
	return identity, nil
}

// locked tells whether an account is switched off as in shadow(5), by ! or * before its stored form.
func locked(user directory.User) bool {
	return strings.HasPrefix(user.Password, "!") || strings.HasPrefix(user.Password, "*")
}

var errBare = errors.New("it is the password itself, which is for challenge and response only (ENABLE_CRAM)")

// Unseal decrypts a password that is kept encrypted. When it cannot be decrypted, it is the server's fault and nobody's wrong password: 454.
func (p *Password) Unseal(user directory.User, s *Stored) error {
	if s.Sealed == "" {
		return nil
	}
	var err error
	if s.Clear, err = p.config.Keys.Open(user.Address(), s.Sealed); err != nil {
		p.warn("a kept password cannot be decrypted, and challenges cannot be checked with it (indigo auth secrets status)", user, err)
		return errUnavailable.Because(err)
	}
	return nil
}

// Secrets gives who a user is and what is kept of the password for mechanisms of challenge and response; nothing is checked. An unknown user
// is a 535 as Verify's, which the mechanism must hide behind secrets of its own making. When the exchange has succeeded, ask Admit.
func (p *Password) Secrets(ctx context.Context, a Attempt) (Identity, sasl.Secrets, error) {
	user, err := p.find(ctx, a)
	if err != nil || user.Scram == "" {
		// Who has no keys costs the reading of some too.
		_, _ = ParseStored("", nobodysKeys)
	}
	if err != nil {
		return Identity{}, sasl.Secrets{}, err
	}
	stored, err := ParseStored(user.Password, user.Scram)
	// Kept keys go before the password: without its key they are as good as ever.
	if _, keys := stored.SCRAM[strings.TrimSuffix(a.Mechanism, "-PLUS")]; !keys {
		if err := p.Unseal(user, &stored); err != nil {
			return Identity{}, sasl.Secrets{}, err
		}
	}
	secrets := stored.Secrets(a.EnableCRAM)
	if a.HashSecret && secrets.Clear == "" && (stored.hash != nil || stored.MaybeDES()) {
		secrets.Clear = user.Password
		if besideHash(user.Password) {
			_, secrets.Clear = cutHash(user.Password)
		}
	}
	if secrets.Clear == "" && len(secrets.SCRAM) == 0 {
		return Identity{}, sasl.Secrets{}, errFailed.Because(cmp.Or(err, errors.New("nothing is kept of the password that challenge and response could use")))
	}
	return Identity{Address: user.Address(), Home: user.Dir, Quota: user.Quota}, secrets, nil
}

// Admit tells whether flags and limits let a user in who has proved to be one by challenge and response; the errors are Verify's.
func (p *Password) Admit(ctx context.Context, identity Identity, a Attempt) error {
	user, err := p.find(ctx, Attempt{User: identity.Address.String(), Service: a.Service})
	if err != nil {
		return err
	}
	return p.admit(ctx, user, a)
}

// admit lets in whose password was right, unless something keeps him from the service.
func (p *Password) admit(ctx context.Context, user directory.User, a Attempt) error {
	err := p.denied(ctx, user, a.Service)
	if err == nil && user.Inactive {
		if err = p.config.Directory.ActivateUser(ctx, user.Address()); errors.Is(err, directory.ErrNoUser) {
			// Another login of his was quicker.
			_, err = p.config.Directory.User(ctx, user.Address())
		}
		if err != nil {
			return errUnavailable.Because(fmt.Errorf("activating %s: %w", user.Address(), err))
		}
	}
	if err == nil && p.config.Saw != nil {
		p.config.Saw(user, a)
	}
	return err
}

// complete gives the name with its domain.
func (p *Password) complete(ctx context.Context, a Attempt) (string, error) {
	if strings.Contains(a.User, "@") {
		return a.User, nil
	}
	domain := ""
	if p.config.DomainOf != nil && a.Local.IsValid() {
		var err error
		if domain, err = p.config.DomainOf(ctx, a.Local.Unmap()); err != nil {
			return "", fmt.Errorf("domain of the address %s: %w", a.Local, err)
		}
	}
	return a.User + "@" + cmp.Or(domain, p.config.DefaultDomain()), nil
}

// Whom gives whom the name of an attempt means, whether there is such a user or not: a domain that the directory knows has its real name, any
// other is as it is written. The errors are Verify's.
func (p *Password) Whom(ctx context.Context, a Attempt) (addr.Address, error) {
	name, err := p.complete(ctx, a)
	if err != nil {
		return addr.Address{}, errUnavailable.Because(err)
	}
	address, err := addr.Parse(name)
	if err != nil {
		return addr.Address{}, errFailed.Because(fmt.Errorf("name malformed: %w", err))
	}
	domain, err := p.config.Directory.Domain(ctx, address.Domain)
	switch {
	case err == nil:
		address.Domain = domain.Name
	case !errors.Is(err, directory.ErrNoDomain):
		return address, errUnavailable.Because(err)
	}
	return address, nil
}

// denied is asked when the password was right: who has it may know why it is not enough.
func (p *Password) denied(ctx context.Context, user directory.User, service string) error {
	kind := kindOf(service)
	flag := map[string]directory.Flags{"pop3d": directory.NoPOP, "imapd": directory.NoIMAP, "smtpd": directory.NoSMTP}[kind]
	if p.config.Denied == nil || flag == 0 {
		return nil
	}
	why, err := p.config.Denied(ctx, user, flag)
	if err != nil {
		return errUnavailable.Because(err)
	}
	if why != "" {
		return errDenied.Because(fmt.Errorf("%w: %s", errSwitchedOff, why))
	}
	return nil
}

// appPasswordFits tells whether an app password was given. What does not look like one costs nothing.
func (p *Password) appPasswordFits(ctx context.Context, user directory.User, a Attempt) (bool, error) {
	hash, ok := appPasswordHash(a.Password)
	if !ok {
		return false, nil
	}
	all, err := p.config.Directory.AppPasswords(ctx, user.Address())
	if err != nil {
		return false, errUnavailable.Because(err)
	}
	for _, one := range all {
		if subtle.ConstantTimeCompare([]byte(one.Hash), []byte(hash)) != 1 {
			continue
		}
		kind := kindOf(a.Service)
		if !one.Allows(strings.TrimSuffix(kind, "d")) {
			return false, errOtherService.Because(fmt.Errorf("%w: app password %s is for %s", errSwitchedOff, one.Name, strings.Join(one.Services, ", ")))
		}
		if p.config.Now().Sub(one.Used) >= usedEvery {
			p.afterwards(func(ctx context.Context) {
				if err := p.config.Directory.AppPasswordUsed(ctx, user.Address(), one.Name); err != nil {
					p.warn("the use of an app password was not written down", user, err)
				}
			})
		}
		return true, nil
	}
	return false, nil
}

// renew has a weaker stored form replaced by what Renew gives.
func (p *Password) renew(user directory.User, stored Stored, password string) {
	if p.config.Renew == nil {
		return
	}
	form, wanted := p.config.Renew()
	form = form.renewing(stored)
	if !wanted || !form.weaker(stored) {
		return
	}
	p.afterwards(func(ctx context.Context) {
		passwd, kept, err := p.store(ctx, form, password)
		if err == nil {
			_, err = p.config.Directory.RenewPassword(ctx, user, passwd, kept, fmt.Sprintf("password's form renewed at a login: %s", strings.Join(form.names(), " ")))
		}
		if err != nil {
			p.warn("a password's stored form was not renewed", user, err)
		}
	})
}

func (p *Password) store(ctx context.Context, form Form, password string) (passwd, kept string, err error) {
	release, err := p.slot(ctx, false)
	if err != nil {
		return "", "", err
	}
	defer release()
	return form.Store(password)
}

// slot waits for one of the workers.
func (p *Password) slot(ctx context.Context, known bool) (release func(), err error) {
	if release, err = p.turns.take(ctx, known); err != nil {
		return nil, errUnavailable.Because(err)
	}
	return release, nil
}

// match tells whether a password is that of a stored form; it adds how long it waited for a worker.
func (p *Password) match(ctx context.Context, known bool, stored Stored, password string, waited *time.Duration) (bool, error) {
	began := p.config.Now()
	release, err := p.slot(ctx, known)
	if err != nil {
		return false, err
	}
	defer release()
	now := p.config.Now()
	*waited += now.Sub(began)
	ok := stored.matches(password)
	p.floor.saw(now, p.config.Now().Sub(now))
	return ok, nil
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

// Matches tells whether a password is that of a stored form. An error means that the form is unknown.
func Matches(stored, password string) (bool, error) {
	s, err := ParseStored(stored, "")
	if err != nil {
		return false, err
	}
	return s.matches(password), nil
}
