package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
)

// LoginQuestion is about a user who cannot log in.
type LoginQuestion struct {
	// User is the name as the mail program gives it, Service the door, for example "imapd.993".
	User, Service string
	// Client is where the user comes from, Local the address of this host that the program connects to; both may be missing.
	Client, Local netip.Addr
	// Password is checked unless it is "".
	Password string
	// Token is an OAuth token, which is checked unless it is "": its issuer is asked.
	Token string
}

// PasswordSource is one of the sources of passwords of a service.
type PasswordSource struct {
	// Word is how the settings name it, Kind "directory", "system", "pam", "ldap", "dovecot", "program" or "none".
	Word string `json:"word"`
	Kind string `json:"kind"`
	// Knows tells that the user is there, Found what was found.
	Knows bool   `json:"knows"`
	Found string `json:"found"`
}

// LoginWay is a mechanism as one user sees it.
type LoginWay struct {
	Mechanism string `json:"mechanism"`
	// Fits tells that what is stored of the user's password is enough for it; Why why not.
	Fits bool   `json:"fits"`
	Why  string `json:"why,omitempty"`
	// Clear and TLS tell whether it is offered without and inside TLS.
	Clear bool `json:"offered_clear"`
	TLS   bool `json:"offered_tls"`
}

// LoginAnswer tells all that decides about a user's logins.
type LoginAnswer struct {
	User    string `json:"user"`
	Service string `json:"service"`
	// Address is whom the name means, Steps how that was found out.
	Address string           `json:"address,omitempty"`
	Steps   []string         `json:"steps"`
	Sources []PasswordSource `json:"sources"`
	// Chain says which setting names the sources.
	Chain string     `json:"chain"`
	Forms []string   `json:"password_forms"`
	Ways  []LoginWay `json:"mechanisms"`
	Flags []string   `json:"flags"`
	// Denied tells what keeps the user from the service, "" for nothing.
	Denied         string                  `json:"denied,omitempty"`
	DomainExpiry   time.Time               `json:"domain_expiry,omitzero"`
	PasswordExpiry time.Time               `json:"password_expiry,omitzero"`
	Logins         []directory.Login       `json:"last_logins"`
	AppPasswords   []directory.AppPassword `json:"app_passwords"`
	// Failures are the latest refused logins that the trace has, the latest last.
	Failures []trace.Event `json:"failures"`
	// Password is what became of the password, "" when none was given.
	Password string `json:"password,omitempty"`
	// Token is what became of the token, "" when none was given.
	Token string `json:"token,omitempty"`
	// Can tells whether a mail program could log in; Verdict says it in words.
	Can     bool   `json:"can"`
	Verdict string `json:"verdict"`
}

// Bounds of what is told of failures.
const (
	failureTime = 7 * 24 * time.Hour
	maxFailures = 10
)

// WhyLogin tells why a user can log in or cannot, by the settings and the directory as they are on the disk, with or without a running instance.
func WhyLogin(ctx context.Context, data, who string, q LoginQuestion) (*LoginAnswer, error) {
	if !Exists(data) {
		return nil, fmt.Errorf("%s is not an Indigo data directory: make one with `indigo up --data %s`", data, data)
	}
	snapshot, err := settings.Load(data)
	if err != nil {
		return nil, err
	}
	q.Service = settings.ServiceName(q.Service)
	kind := kindOf(q.Service)
	if doors := slices.DeleteFunc(instances(snapshot), func(name string) bool { return !asksPasswords(kindOf(name)) }); !slices.Contains(doors, q.Service) {
		return nil, fmt.Errorf("service %q lets nobody log in: one of %s", q.Service, strings.Join(doors, ", "))
	}
	store, verifier, err := OpenVerifier(ctx, data, who, true)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	defer verifier.Close()
	house := &House{config: Config{Data: data}, verifier: verifier, passwordPrograms: make(chan struct{}, maxPrograms), passwordServers: make(chan struct{}, maxServers)}
	house.settings.Store(snapshot)
	house.ldap = &auth.LDAPPool{Dial: new(net.Dialer).DialContext, Now: time.Now}
	defer house.ldap.Close()
	house.tokens = newIssuers(slog.New(slog.DiscardHandler))
	defer house.tokens.Close()
	view := snapshot.View(q.Service)
	w := &whyLogin{
		q: q, store: store, all: snapshot.View("all"), house: house, view: view,
		answer: &LoginAnswer{User: q.User, Service: q.Service, Steps: []string{}, Sources: []PasswordSource{}, Forms: []string{}, Ways: []LoginWay{}, Flags: []string{},
			Logins: []directory.Login{}, AppPasswords: []directory.AppPassword{}, Failures: []trace.Event{}},
	}
	if q.Client.IsValid() {
		own, verdict, err := view.ForClient(q.Client, "")
		if err != nil {
			return nil, err
		}
		if verdict.Deny {
			w.denied = fmt.Sprintf("the tcp rules send %s away: rule %q at %s", q.Client, verdict.Rule, verdict.Where)
		}
		w.view = own
	}
	if err := w.resolve(ctx); err != nil {
		return nil, err
	}
	w.sources(ctx)
	// A question counts no failures: the running instance's are its own.
	guard := auth.NewGuard(auth.GuardConfig{Limits: func(string) auth.Limits { return auth.Limits{} }, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	house.accounts = auth.NewAccounts(verifier, store.Forms, []byte("only terms are asked for"), guard)
	connection := &auth.Connection{
		Authority: authority{house.accounts, sources{house, kind, func() *settings.View { return w.view }}},
		Service:   q.Service, Protocol: map[string]string{"smtpd": "smtp", "imapd": "imap", "pop3d": "pop"}[kind], Host: settings.Me.Get(w.all), Settings: w.view,
	}
	w.ways(ctx, kind, connection)
	if err := w.history(ctx, data); err != nil {
		return nil, err
	}
	if q.Password != "" {
		w.check(ctx, connection)
	}
	if q.Token != "" {
		w.checkToken(ctx, connection)
	}
	w.conclude()
	return w.answer, nil
}

// whyLogin is one question being answered.
type whyLogin struct {
	q      LoginQuestion
	store  *directory.Store
	house  *House
	all    *settings.View
	view   *settings.View
	answer *LoginAnswer

	user   directory.User
	known  bool
	stored auth.Stored
	// unreadable says why a password that is kept encrypted cannot be decrypted.
	unreadable error
	// missing says why the directory does not know the user, locked what is wrong with the stored form, denied what else is in the way.
	missing, locked, denied string
	// noPassword tells that the user is locked in the directory.
	noPassword bool
	// right is set when the password that was given fits.
	right bool
	// badToken is set when the token that was given does not.
	badToken bool
	// open are the sources that may know the user and say so only when they get a password, down those that cannot be asked now; homes is
	// set when a source but the directory may name a mailbox.
	open, down []string
	homes      bool
}

func (w *whyLogin) step(format string, args ...any) {
	w.answer.Steps = append(w.answer.Steps, fmt.Sprintf(format, args...))
}

// resolve finds whom the name means.
func (w *whyLogin) resolve(ctx context.Context) error {
	name := w.q.User
	if !strings.Contains(name, "@") {
		domain, how := defaultDomain(w.all), "the default domain (DEFAULT_DOMAIN, or else ME)"
		if w.q.Local.IsValid() {
			mapped, err := w.store.DomainOfIP(ctx, w.q.Local)
			if err != nil {
				return err
			}
			if mapped != "" {
				domain, how = mapped, "what the address "+w.q.Local.String()+" of this host is mapped to"
			}
		}
		w.step("%s has no domain: %s is %s", name, domain, how)
		name += "@" + domain
	}
	a, err := addr.Parse(name)
	if err != nil {
		w.missing = "the name is malformed: " + err.Error()
		return nil
	}
	real, err := w.store.RealDomain(ctx, a.Domain)
	switch {
	case errors.Is(err, directory.ErrNoDomain):
		w.missing = "there is no domain " + a.Domain + " here"
		return nil
	case err != nil:
		return err
	case !strings.EqualFold(real, a.Domain):
		w.step("%s is another name of the domain %s", a.Domain, real)
		own, others := w.view.ForTokens(real).Source(settings.OAuthIssuer.Setting), w.view.ForTokens(a.Domain).Source(settings.OAuthIssuer.Setting)
		if own != others && others.Layer == "rule" {
			w.step("%s is for the name %s: tokens go by the rules for %s alone", others, a.Domain, real)
		}
	}
	w.user, err = w.store.User(ctx, a)
	if kind := kindOf(w.q.Service); errors.Is(err, directory.ErrInactive) && (kind == "pop3d" || kind == "imapd") {
		w.step("%s is marked inactive; a login at this service activates", a)
		w.user, err = w.store.InactiveUser(ctx, a)
	}
	switch {
	case errors.Is(err, directory.ErrInactive):
		w.missing = "the user is marked inactive: a login by POP3 or IMAP, or `indigo user activate " + a.String() + "`, undoes that"
		return nil
	case errors.Is(err, directory.ErrNoUser):
		w.missing = "there is no user " + a.Local + " in " + real
		if lines, err := w.store.AliasLines(ctx, addr.Address{Local: a.Local, Domain: real}); err == nil && len(lines) > 0 {
			w.missing += "; " + a.Local + " is an alias there, to " + strings.Join(lines, ", ") + ": nobody logs in by an alias"
		}
		return nil
	case err != nil:
		return err
	}
	w.known, w.answer.Address = true, w.user.Address().String()
	w.stored, err = auth.ParseStored(w.user.Password, w.user.Scram)
	if w.stored.Sealed != "" {
		w.stored.Clear, w.unreadable = PasswordKeys(w.house.config.Data, w.all).Open(w.user.Address(), w.stored.Sealed)
	}
	if err != nil {
		w.locked, w.noPassword = err.Error(), errors.Is(err, auth.ErrNoPassword)
	}
	w.answer.Forms = append(w.answer.Forms, w.stored.Forms()...)
	w.answer.Flags = append(w.answer.Flags, directory.Flags(w.user.GID).Names()...)
	limits, err := w.store.Limits(ctx, w.user.Domain)
	if err != nil {
		return err
	}
	if limits.DomainExpiry > 0 {
		w.answer.DomainExpiry = time.Unix(limits.DomainExpiry, 0)
	}
	if limits.PasswordExpiry > 0 {
		w.answer.PasswordExpiry = time.Unix(limits.PasswordExpiry, 0)
	}
	if flag := map[string]directory.Flags{"pop3d": directory.NoPOP, "imapd": directory.NoIMAP, "smtpd": directory.NoSMTP}[kindOf(w.q.Service)]; flag != 0 {
		if w.answer.Denied, err = w.store.Denied(ctx, w.user, flag); err != nil {
			return err
		}
	}
	all, err := w.store.AppPasswords(ctx, w.user.Address())
	w.answer.AppPasswords = append(w.answer.AppPasswords, all...)
	return err
}

// sources walks the chain.
func (w *whyLogin) sources(ctx context.Context) {
	kind := kindOf(w.q.Service)
	alone := func(s *PasswordSource, who string, home bool) {
		s.Found = "only " + who + " knows its users: give --password-file to have it asked"
		if w.q.Password != "" {
			s.Found = "only " + who + " knows its users: it is asked, see the password"
		}
		w.open, w.homes = append(w.open, s.Word), w.homes || home
	}
	words, from := moduleWords(kind, w.view)
	w.answer.Chain = from.Name + " (" + w.view.Source(from).String() + ")"
	for _, word := range words {
		s := PasswordSource{Word: word}
		switch {
		case isDirectory(word):
			s.Kind, s.Knows, s.Found = "directory", w.known, w.missing
			if w.known {
				s.Found = "user " + w.answer.Address + ", " + w.formText()
			}
		case isSystem(word):
			s.Kind = "system"
			s.Knows, s.Found = systemUser(w.q.User, settings.Me.Get(w.all))
		case isPAM(word):
			s.Kind, s.Found = "pam", "PAM is asked by the serving process alone, which must have been started as root"
			w.open, w.homes = append(w.open, word), true
		case isLDAP(word):
			s.Kind = "ldap"
			source, err := w.house.ldapSource(w.view)
			if err != nil {
				s.Kind, s.Found = "none", err.Error()
				break
			}
			dn, err := source.Find(ctx, w.q.User)
			switch {
			case err == nil && dn == "":
				alone(&s, "the LDAP server", source.Home != "")
			case err == nil:
				s.Knows, s.Found = true, "entry "+dn
				w.homes = w.homes || source.Home != ""
			case mailerr.From(err).Temporary():
				s.Found = err.Error()
				w.open, w.down, w.homes = append(w.open, word), append(w.down, word), w.homes || source.Home != ""
			default:
				s.Found = cmp.Or(errors.Unwrap(err), err).Error()
			}
		case isDovecot(word):
			s.Kind = "dovecot"
			alone(&s, "that Dovecot", false)
			if info, err := os.Stat(dovecotSocket(word)); err != nil || info.Mode().Type() != fs.ModeSocket {
				s.Found = "there is no socket now, or this user may not see it: logins get a temporary error where no other source knows the password"
				w.down = append(w.down, word)
			}
		case later(word):
			s.Kind, s.Found = "none", "it is not here, and Indigo has nothing for it: passed over"
		default:
			s.Kind = "program"
			if err := programThere(word); err != nil {
				s.Kind, s.Found = "none", err.Error()
				break
			}
			alone(&s, "the program", true)
		}
		w.answer.Sources = append(w.answer.Sources, s)
	}
}

// formText says what is stored.
func (w *whyLogin) formText() string {
	switch {
	case w.locked != "" && len(w.answer.Forms) == 0:
		return "stored: " + w.locked
	case w.stored.MaybeDES():
		return "stored: what has the form of a hash by DES, which lets nobody in: `indigo user passwd` sets a password"
	case w.stored.Bare:
		return "stored: the password alone, which is for challenge and response where ENABLE_CRAM is set"
	}
	text := "stored: " + strings.Join(w.answer.Forms, ", ")
	if w.locked != "" {
		text += " (and " + w.locked + ")"
	}
	return text
}

func systemUser(name, host string) (bool, string) {
	name, domain, full := strings.Cut(name, "@")
	if full && !strings.EqualFold(domain, host) {
		return false, "users of the host have bare names, or end in @" + host
	}
	user, refused, err := (auth.System{Now: time.Now}).Find(name)
	switch {
	case err != nil:
		return false, err.Error()
	case refused != nil:
		return false, refused.Error()
	}
	return true, fmt.Sprintf("user %s of the host (uid %d, home %s); the serving process must have been started as root to ask, and only it sees whether the account is locked or has expired", user.Name, user.UID, user.Home)
}

func (w *whyLogin) has(kind string) bool {
	return slices.ContainsFunc(w.answer.Sources, func(s PasswordSource) bool { return s.Kind == kind })
}

// elsewhere tells whether a source other than the directory knows the user, or may.
func (w *whyLogin) elsewhere() bool {
	return len(w.open) > 0 || slices.ContainsFunc(w.answer.Sources, func(s PasswordSource) bool { return s.Kind != "directory" && s.Knows })
}

// closed tells what keeps a user of any source but the host's out whatever the password is, "" for nothing.
func (w *whyLogin) closed() string {
	system := slices.ContainsFunc(w.answer.Sources, func(s PasswordSource) bool { return s.Kind == "system" && s.Knows })
	kind := kindOf(w.q.Service)
	switch {
	case system:
	case w.known && w.noPassword && w.elsewhere() && !(w.has("directory") && len(w.answer.AppPasswords) > 0):
		return w.locked + ": the directory keeps " + w.answer.Address + " out, of other sources too"
	case !w.known && !w.homes && w.elsewhere() && (kind == "pop3d" || kind == "imapd"):
		return w.missing + ", so that there is no mailbox, and no other source names one"
	}
	return ""
}

// ways tells of each mechanism whether the user's stored form is enough, and where it is offered.
func (w *whyLogin) ways(ctx context.Context, kind string, c *auth.Connection) {
	terms := c.Terms(ctx)
	clear := auth.Offer(terms)
	inside := terms
	inside.TLS, inside.Bindable = true, true
	secure := auth.Offer(inside)
	secrets := w.stored.Secrets(settings.EnableCRAM.Get(w.view))
	password := func() (bool, string) {
		switch {
		case w.closed() != "":
			return false, w.closed()
		case w.elsewhere():
			return true, ""
		case !w.has("directory"):
			return false, "no source of passwords knows the user"
		case !w.known:
			return false, w.missing
		case w.stored.Usable() || len(w.answer.AppPasswords) > 0:
			return true, ""
		case w.stored.MaybeDES():
			return false, "what is stored has the form of a hash by DES"
		case w.stored.Bare:
			return false, "the password stands alone in pw_passwd: `vpasswd -C` keeps it beside a hash"
		}
		return false, w.locked
	}
	challenge := func(scram string) (bool, string) {
		switch {
		case !w.has("directory"):
			return false, "it asks the directory alone, which is none of the sources"
		case !w.known:
			return false, w.missing
		case secrets.Clear != "" || scram != "" && secrets.SCRAM[scram].Salt != "":
			return true, ""
		case w.unreadable != nil:
			return false, "the password is kept encrypted, and that cannot be decrypted: " + w.unreadable.Error()
		case scram == "" && w.stored.Method != "" && settings.EnableCRAM.Get(w.view) && settings.HashSecret.Get(w.view):
			return true, "the client's password must be the hash in pw_passwd (ENABLE_CRAM_HASH)"
		case w.stored.MaybeDES():
			return false, "what is stored has the form of a hash by DES"
		case w.stored.Bare:
			return false, "the password stands alone in pw_passwd, and ENABLE_CRAM is not set"
		case scram != "":
			return false, "no keys for " + scram + " are kept: `indigo user passwd --scram " + scram + "`"
		}
		return false, "the password itself is not kept, which it needs: `indigo user passwd --keep-clear`"
	}
	for _, name := range sasl.Names() {
		way := LoginWay{Mechanism: name, Clear: slices.Contains(clear, name), TLS: slices.Contains(secure, name)}
		switch {
		case name == "PLAIN" || name == "LOGIN":
			way.Fits, way.Why = password()
		case name == "EXTERNAL":
			// Whether the certificate is good is not known before a client shows one.
			way.TLS = settings.AuthExternal.Get(w.view)
			way.Fits, way.Why = w.external()
		case name == "OAUTHBEARER" || name == "XOAUTH2":
			way.Fits, way.Why = w.token()
		case strings.HasPrefix(name, "SCRAM-"):
			way.Fits, way.Why = challenge(strings.TrimSuffix(name, "-PLUS"))
		default:
			way.Fits, way.Why = challenge("")
		}
		if key, ok := settings.DisableMechanism[name]; ok && key.Get(w.view) {
			way.Why = strings.TrimPrefix(way.Why+"; switched off by "+key.Name+" ("+w.view.Source(key.Setting).String()+")", "; ")
		}
		w.answer.Ways = append(w.answer.Ways, way)
	}
	if kind == "pop3d" || kind == "imapd" {
		way := LoginWay{Mechanism: map[string]string{"pop3d": "USER", "imapd": "LOGIN-COMMAND"}[kind], Clear: c.Passwords(), TLS: true}
		way.Fits, way.Why = password()
		w.answer.Ways = append(w.answer.Ways, way)
	}
	if kind == "pop3d" {
		way := LoginWay{Mechanism: "APOP", Clear: c.APOP(ctx), TLS: !settings.DisableAPOP.Get(w.view) && (terms.Clear || terms.EnableCRAM)}
		way.Fits, way.Why = challenge("")
		w.answer.Ways = append(w.answer.Ways, way)
	}
}

// named tells whether a user whom something else than a password names would be let in.
func (w *whyLogin) named() (bool, string) {
	switch {
	case !w.has("directory"):
		return false, "it asks the directory alone, which is none of the sources"
	case !w.known:
		return false, w.missing
	case w.noPassword:
		return false, w.locked
	}
	return true, ""
}

// external tells whether a certificate of the user would do.
func (w *whyLogin) external() (bool, string) {
	if !settings.AuthExternal.Get(w.view) {
		return false, "needs a client certificate with the address (AUTH_EXTERNAL)"
	}
	if fits, why := w.named(); !fits {
		return false, why
	}
	return true, "with a certificate by an authority of CLIENTCA that has the address"
}

// token tells whether a token of the user would do.
func (w *whyLogin) token() (bool, string) {
	view := w.view
	if w.user.Domain != "" {
		view = view.ForTokens(w.user.Domain)
	}
	issuer, where := settings.OAuthIssuer.Get(view), view.Source(settings.OAuthIssuer.Setting)
	switch {
	case issuer == "" && !anyIssuer(w.view):
		return false, "needs a token, and no issuer is set (OAUTH_ISSUER)"
	case issuer == "" && where.Unset:
		return false, "needs a token, and " + where.String() + " takes none for " + w.user.Domain
	case issuer == "" && w.known:
		return false, "needs a token, and no issuer is set for " + w.user.Domain + " (OAUTH_ISSUER, oauth.envrules)"
	}
	if fits, why := w.named(); !fits {
		return false, why
	}
	if _, err := tokenConfig(view); err != nil {
		return false, err.Error()
	}
	why := "with a token of " + issuer + " whose claim " + settings.OAuthClaim.Get(view) + " is the address"
	if where.Layer == "rule" {
		why += ", by " + where.String()
	}
	return true, why
}

// history adds the last logins and the latest failures.
func (w *whyLogin) history(ctx context.Context, data string) error {
	if w.known {
		logins, err := w.store.LastLogins(ctx, w.user.Address())
		if err != nil {
			return err
		}
		w.answer.Logins = append(w.answer.Logins, logins...)
	}
	names := []string{w.q.User}
	if w.known && !strings.EqualFold(w.answer.Address, w.q.User) {
		names = append(names, w.answer.Address)
	}
	if w.known && w.user.Domain == defaultDomain(w.all) && w.user.Name != w.q.User {
		names = append(names, w.user.Name)
	}
	var all []trace.Event
	for _, name := range names {
		events, err := trace.Search(ctx, filepath.Join(data, "trace"), trace.Query{Address: name, Since: time.Now().Add(-failureTime), Stories: 200})
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, e := range events {
			if e.Kind == "auth" && (e.Verdict == "reject" || e.Verdict == "defer") && (e.User == "" || strings.EqualFold(e.User, name)) {
				all = append(all, e)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b trace.Event) int { return a.Time.Compare(b.Time) })
	w.answer.Failures = append(w.answer.Failures, all[max(0, len(all)-maxFailures):]...)
	return nil
}

// check asks the sources about the password, as the door does for PLAIN.
func (w *whyLogin) check(ctx context.Context, c *auth.Connection) {
	_, err := c.Authority.Verify(ctx, auth.Attempt{
		User: w.q.User, Password: w.q.Password, Service: w.q.Service, Client: w.q.Client, Local: w.q.Local, Mechanism: "PLAIN", EnableCRAM: settings.EnableCRAM.Get(w.view),
	})
	switch {
	case err == nil:
		w.right, w.answer.Password = true, "right"
	case w.stored.Bare && auth.Same(w.stored.Clear, w.q.Password):
		w.right, w.answer.Password = true, "right, for challenge and response alone"
	default:
		w.answer.Password = "refused: " + err.Error()
	}
}

// checkToken asks about the token, as the door does for OAUTHBEARER.
func (w *whyLogin) checkToken(ctx context.Context, c *auth.Connection) {
	_, err := c.Authority.Token(ctx, auth.Attempt{
		User: w.q.User, Password: w.q.Token, Service: w.q.Service, Client: w.q.Client, Local: w.q.Local, Mechanism: "OAUTHBEARER",
	})
	if w.answer.Token = "good"; err != nil {
		w.answer.Token, w.badToken = "refused: "+err.Error(), true
	}
}

// conclude says it all in a sentence.
func (w *whyLogin) conclude() {
	a := w.answer
	sure := slices.ContainsFunc(a.Sources, func(s PasswordSource) bool { return s.Knows })
	knows := sure || len(w.open) > 0
	var clear, secure []string
	for _, way := range a.Ways {
		if way.Fits && way.Clear {
			clear = append(clear, way.Mechanism)
		}
		if way.Fits && way.TLS {
			secure = append(secure, way.Mechanism)
		}
	}
	switch {
	case w.denied != "":
		a.Verdict = "cannot log in: " + w.denied
	case !knows && len(a.Sources) == 1 && w.has("directory"):
		a.Verdict = "cannot log in: " + w.missing
	case !knows:
		var found []string
		for _, s := range a.Sources {
			found = append(found, s.Found)
		}
		a.Verdict = "cannot log in: no source of passwords (" + a.Chain + ") knows the user: " + strings.Join(found, "; ")
	case w.closed() != "" && (w.q.Password == "" || !w.right):
		a.Verdict = "cannot log in at " + a.Service + ": " + w.closed()
	case a.Denied != "":
		a.Verdict = "cannot log in at " + a.Service + ": " + a.Denied
	case len(secure) == 0 && len(clear) == 0:
		a.Verdict = "cannot log in: no mechanism that is offered works with what is stored (" + w.formText() + ")"
	case w.q.Password != "" && !w.right:
		a.Verdict = "cannot log in with this password: " + a.Password
		var unasked []string
		for _, s := range a.Sources {
			if s.Kind == "pam" || s.Kind == "system" && s.Knows {
				unasked = append(unasked, s.Word)
			}
		}
		if len(unasked) > 0 {
			a.Verdict = "may be able to log in: the others say " + a.Password + "; but " + strings.Join(unasked, ", ") + " was not asked, which only the serving process may do"
		}
	case w.badToken:
		a.Verdict = "cannot log in with this token: " + a.Token
	default:
		a.Can = true
		a.Verdict = "can log in"
		if !sure && !w.right {
			a.Verdict = "can log in if " + strings.Join(w.open, " or ") + " knows the user"
		}
		a.Verdict += ", over TLS by " + strings.Join(secure, ", ")
		if len(clear) > 0 {
			a.Verdict += "; in clear by " + strings.Join(clear, ", ")
		} else {
			a.Verdict += "; in clear not at all, so a mail program set to \"no encryption\" fails"
		}
		if i := slices.IndexFunc(a.Ways, func(way LoginWay) bool { return way.TLS }); !a.Ways[i].Fits {
			// RFC 4422 has clients take the strongest, and many try no other.
			a.Verdict += "; a program that takes the strongest that is offered, " + a.Ways[i].Mechanism + ", fails: " + a.Ways[i].Why
		}
		if len(w.down) > 0 && !w.right {
			a.Verdict += "; " + strings.Join(w.down, " and ") + " cannot be asked now"
		}
		if w.q.Password == "" && w.q.Token == "" {
			a.Verdict += " (the password itself was not checked: --password-file)"
		}
	}
}
