package policy

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/lists"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/tlsx"
)

// Directory is what Standard asks about domains, users and aliases. All fail with directory.ErrNoDomain or directory.ErrNoUser
// when there is none; any other error means that the directory cannot answer now.
type Directory interface {
	Domain(ctx context.Context, name string) (directory.Domain, error)
	User(ctx context.Context, a addr.Address) (directory.User, error)
	// Aliases gives the lines of an address that is an alias; it may fail with directory.ErrNoAlias too.
	Aliases(ctx context.Context, a addr.Address) (lines []string, err error)
	// Denied tells what keeps a user from what a flag stands for; "" when nothing does.
	Denied(ctx context.Context, u directory.User, flag directory.Flags) (why string, err error)
	// DomainRoom tells whether a message fits into the domain's limits.
	DomainRoom(ctx context.Context, domain string, message maildir.Use) (bool, error)
}

// Lists looks keys up in a control file that may be a text, a constant database or a table of SQL; see lists.Finder.
type Lists interface {
	Find(ctx context.Context, l *settings.List, keys ...string) (lists.Hit, error)
}

// Config is what a Standard stands on.
type Config struct {
	Directory Directory
	// Lists is what looks into lists; nil looks into texts and constant databases only.
	Lists Lists
	// Relays tells whether somebody logged in by POP3 or IMAP from an address, no longer than within ago; nil knows of nobody.
	Relays func(ctx context.Context, client netip.Addr, within time.Duration) (bool, error)
}

// Standard is the policy of a host that takes mail for its own users from anybody, and relays only for authenticated
// users and for the clients and senders that settings name (wiki 2820-2857). It keeps no state of its own; safe for
// concurrent use.
type Standard struct{ config Config }

// New returns a Standard.
func New(config Config) *Standard {
	if config.Lists == nil {
		config.Lists = (*lists.Finder)(nil)
	}
	return &Standard{config}
}

// The refusals of Standard, as the clients see them. They never change: a copy is made to add a cause.
var (
	errAuthFirst  = mailerr.New(530, mailerr.Enhanced{5, 7, 0}, "authentication required (#5.7.0)")
	errNoTLS      = mailerr.New(538, mailerr.Enhanced{5, 7, 11}, "encryption required for this authentication mechanism (#5.7.11)")
	errSender     = mailerr.New(553, mailerr.Enhanced{5, 1, 7}, "sorry, the domain of your envelope sender is malformed (#5.1.7)")
	errSize       = mailerr.New(552, mailerr.Enhanced{5, 3, 4}, "sorry, that message size exceeds my databytes limit (#5.3.4)")
	errRecipients = mailerr.New(452, mailerr.Enhanced{4, 5, 3}, "sorry, too many recipients (#4.5.3)")
	errNoMailbox  = mailerr.New(550, mailerr.Enhanced{5, 1, 1}, "sorry, no mailbox here by that name (#5.1.1)")
	errNoMembers  = mailerr.New(550, mailerr.Enhanced{5, 2, 4}, "sorry, this group has no members (#5.2.4)")
	errInactive   = mailerr.New(550, mailerr.Enhanced{5, 2, 1}, "sorry, this mailbox is inactive (#5.2.1)")
	errDisabled   = mailerr.New(550, mailerr.Enhanced{5, 2, 1}, "sorry, this mailbox takes no mail (#5.2.1)")
	errDirectory  = mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "sorry, the user directory cannot be asked now (#4.3.0)")
	errRelay      = mailerr.New(550, mailerr.Enhanced{5, 7, 1}, "sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)")
	errBadIP      = mailerr.New(421, mailerr.Enhanced{4, 7, 1}, "sorry, your IP is temporarily denied (#4.7.1)")
	errBadHost    = mailerr.New(421, mailerr.Enhanced{4, 7, 1}, "sorry, your host is temporarily denied (#4.7.1)")
	errBadHelo    = mailerr.New(550, mailerr.Enhanced{5, 7, 1}, "sorry, your HELO/EHLO greeting has been denied (#5.7.1)")
	errHeloFQDN   = mailerr.New(550, mailerr.Enhanced{5, 7, 1}, "sorry, your HELO/EHLO greeting is no fully qualified domain name (#5.7.1)")
	errBadSender  = mailerr.New(553, mailerr.Enhanced{5, 7, 1}, "sorry, your envelope sender is in my badmailfrom list (#5.7.1)")
	errBadRcpt    = mailerr.New(553, mailerr.Enhanced{5, 7, 1}, "sorry, this recipient is in my badrcptto list (#5.7.1)")
	errLists      = mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "sorry, a list of this system cannot be asked now (#4.3.0)")
	errNoRelay    = mailerr.New(550, mailerr.Enhanced{5, 7, 1}, "sorry, you may send to users of this system only (#5.7.1)")
	errFull       = mailerr.New(552, mailerr.Enhanced{5, 2, 2}, "sorry, the mailbox is full (#5.2.2)")
	errFullNow    = mailerr.New(452, mailerr.Enhanced{4, 2, 2}, "sorry, the mailbox is full now (#4.2.2)")
	errHops       = mailerr.New(554, mailerr.Enhanced{5, 4, 6}, "too many hops, this message is looping (#5.4.6)")
)

// refuse gives the verdict that e stands for: Defer for a 4xx, Reject for a 5xx.
func refuse(check, input string, e *mailerr.Error) Verdict {
	action := Reject
	if e.Temporary() {
		action = Defer
	}
	return Verdict{Action: action, Err: e, Check: check, Input: input}
}

// by adds the setting behind v and the layer that its value came from.
func (v Verdict) by(s *Session, setting *settings.Setting) Verdict {
	v.Setting, v.Layer = setting.Name, s.Settings.Source(setting).String()
	return v
}

// Complete gives a with the default domain in the place of a missing one: "postmaster" is the only address that may
// lack it (RFC 5321 section 4.1.1.3). The null address stays as it is.
func Complete(a addr.Address, v *settings.View) addr.Address {
	if a.IsNull() || a.Domain != "" {
		return a
	}
	if a.Domain = settings.DefaultDomain.Get(v); a.Domain == "" {
		a.Domain = settings.Me.Get(v)
	}
	return a
}

// Connect refuses the clients in badip and badhost (421 4.7.1), and finds out whether the client may relay.
func (p *Standard) Connect(ctx context.Context, s *Session) Verdict {
	ip := s.Client.Addr().WithZone("").String()
	if named(s, settings.BadIPCheck, settings.BadIP) {
		if v, refused := p.listed(ctx, s, settings.BadIP, errBadIP.Saying("sorry, your IP ("+ip+") is temporarily denied (#4.7.1)"), "badip", ipKeys(ip)...); refused {
			return v
		}
	}
	if s.Host != "" && named(s, settings.BadHostCheck, settings.BadHost) {
		if v, refused := p.listed(ctx, s, settings.BadHost, errBadHost, "badhost", domainKeys(s.Host)...); refused {
			return v
		}
	}
	s.RelayEntry, s.RelaySetting = RelayEntry(settings.RelayClients.Get(s.Settings), s.Client.Addr()), settings.RelayClients.Setting
	if s.RelayEntry == "" && s.Host != "" {
		s.RelayEntry, s.RelaySetting = relayDomain(settings.RelayDomains.Get(s.Settings), s.Host), settings.RelayDomains.Setting
	}
	if s.RelayEntry == "" {
		return Verdict{Check: "connect"}
	}
	return Verdict{Check: strings.ToLower(s.RelaySetting.Name), Input: s.RelayEntry}.by(s, s.RelaySetting)
}

// NeedsHost tells whether the client's host name decides anything, so that it must be looked up.
func NeedsHost(v *settings.View) bool {
	return len(settings.RelayDomains.Get(v)) > 0 || settings.BadHostCheck.Get(v) || named(&Session{Settings: v}, settings.BadHostCheck, settings.BadHost)
}

// named tells whether a list is in use that must be switched on: by its own switch, or by a variable that names the file.
func named(s *Session, check settings.Key[bool], list settings.Key[*settings.List]) bool {
	return check.Get(s.Settings) || s.Settings.IsSet(list.Setting) && s.Settings.Source(list.Setting).Layer != "control file"
}

// listed looks for keys in a list; refused is true when one is there, or when that cannot be found out.
func (p *Standard) listed(ctx context.Context, s *Session, list settings.Key[*settings.List], e *mailerr.Error, check string, keys ...string) (v Verdict, refused bool) {
	l := list.Get(s.Settings)
	if l.Empty() {
		return Verdict{}, false
	}
	hit, err := p.config.Lists.Find(ctx, l, keys...)
	switch {
	case err != nil:
		return refuse(check, keys[0], errLists.Because(err)).by(s, list.Setting), true
	case hit.Found:
		v = refuse(check, hit.Key, e).by(s, list.Setting)
		v.Layer = hit.Where
		return v, true
	}
	return Verdict{}, false
}

// ipKeys gives an address and its prefixes of whole bytes, the longest first.
func ipKeys(ip string) []string {
	keys := []string{ip}
	for i := len(ip) - 1; i > 0; i-- {
		if ip[i] == '.' {
			keys = append(keys, ip[:i+1])
		}
	}
	return keys
}

// domainKeys gives a domain and its .suffixes, the longest first.
func domainKeys(domain string) []string {
	domain = strings.ToLower(domain)
	keys := []string{domain}
	for i := range len(domain) {
		if domain[i] == '.' {
			keys = append(keys, domain[i:])
		}
	}
	return keys
}

// addressKeys gives what a list of addresses may have for a: the address and its @domain.
func addressKeys(a addr.Address) []string {
	key := a.Key()
	if a.Domain == "" {
		return []string{key}
	}
	return []string{key, "@" + strings.ToLower(a.Domain)}
}

// Helo refuses the names in badhelo, and with ENFORCE_FQDN_HELO names without a dot: 550 5.7.1.
func (p *Standard) Helo(ctx context.Context, s *Session, name string) Verdict {
	if named(s, settings.BadHeloCheck, settings.BadHelo) {
		if v, refused := p.listed(ctx, s, settings.BadHelo, errBadHelo, "badhelo", domainKeys(name)...); refused {
			return v
		}
	}
	if settings.FQDNHelo.Get(s.Settings) && !strings.Contains(strings.Trim(name, "."), ".") && !strings.HasPrefix(name, "[") {
		return refuse("helo-fqdn", name, errHeloFQDN).by(s, settings.FQDNHelo.Setting)
	}
	return Verdict{Check: "helo", Input: name}
}

// AuthAllowed refuses AUTH without TLS while FORCE_TLS is set: 538 5.7.11. SECURE_AUTH is about single mechanisms; see auth.Offer.
func (p *Standard) AuthAllowed(_ context.Context, s *Session) Verdict {
	if s.TLS == nil && settings.ForceTLS.Get(s.Settings) {
		return refuse("force-tls", "no TLS", errNoTLS).by(s, settings.ForceTLS.Setting)
	}
	return Verdict{Check: "force-tls"}
}

// Mail refuses strangers on a submission service and where REQUIREAUTH or authdomains want a login (530 5.7.0), a declared
// size above DATABYTES (552 5.3.4), a sender whose domain can be no domain (553 5.1.7), and those in badmailfrom (553 5.7.1;
// at RCPT where goodrcptto takes some recipients from anybody). It throws away what blackholedsender names. A user may send
// under any address.
func (p *Standard) Mail(ctx context.Context, s *Session, from addr.Address, size int64) Verdict {
	s.Held, s.Size = nil, size
	if s.User == "" {
		if settings.RequireAuth.Get(s.Settings) {
			return refuse("require-auth", from.String(), errAuthFirst).by(s, settings.RequireAuth.Setting)
		}
		if s.Submission && !p.mayRelay(s) {
			hit, err := p.certified(ctx, s)
			if err != nil {
				return refuse("submission", s.ClientCertificate.Subject, errLists.Because(err)).by(s, settings.TLSClients.Setting)
			}
			if !hit.Found && !p.loggedIn(ctx, s) {
				return refuse("submission", s.Client.Addr().String(), errAuthFirst).by(s, settings.RelayClients.Setting)
			}
		}
		if from.Domain != "" {
			if v, refused := p.listed(ctx, s, settings.AuthDomains, errAuthFirst, "authdomains", "@"+strings.ToLower(from.Domain)); refused {
				return v
			}
		}
	}
	if limit := int64(settings.DataBytes.Get(s.Settings)); limit > 0 && size > limit {
		return refuse("size", strconv.FormatInt(size, 10), errSize).by(s, settings.DataBytes.Setting)
	}
	if !plausibleDomain(from) {
		return refuse("sender-domain", from.Domain, errSender)
	}
	if from.IsNull() {
		return Verdict{Check: "sender"}
	}
	keys := addressKeys(from)
	if v, refused := p.listed(ctx, s, settings.BlackholedSender, errBadSender, "blackholedsender", keys...); refused {
		if v.Action == Reject {
			v.Action, v.Err = Discard, nil
		}
		return v
	}
	v, refused := p.listed(ctx, s, settings.BadMailFrom, errBadSender, "badmailfrom", keys...)
	if line, ok := settings.BadMailFromPatterns.Get(s.Settings).Match(s.Settings, from.String()); ok && !refused {
		v, refused = refuse("badmailfrompatterns", "line "+strconv.Itoa(line), errBadSender).by(s, settings.BadMailFromPatterns.Setting), true
	}
	if refused && p.someAreGood(s) {
		s.Held = &v
		return Verdict{Check: v.Check, Input: v.Input, Setting: v.Setting, Layer: v.Layer}
	}
	if refused {
		return v
	}
	return Verdict{Check: "sender"}
}

// someAreGood tells whether there may be recipients that are taken from anybody.
func (p *Standard) someAreGood(s *Session) bool {
	return !settings.GoodRcptTo.Get(s.Settings).Empty() || settings.GoodRcptPatterns.Get(s.Settings).Len() > 0
}

// mayRelay tells whether the client may relay by its address or name.
func (p *Standard) mayRelay(s *Session) bool {
	return s.RelayEntry != "" || settings.RelayClient.Get(s.Settings)
}

// loggedIn tells whether somebody logged in by POP3 or IMAP from the client's address lately (CHECKRELAY, wiki 2841-2846), which is then its
// RelayEntry. A directory that cannot answer is asked again.
func (p *Standard) loggedIn(ctx context.Context, s *Session) bool {
	ok, err := p.askLogin(ctx, s)
	return ok && err == nil
}

func (p *Standard) askLogin(ctx context.Context, s *Session) (bool, error) {
	minutes := settings.RelayClearMinutes.Get(s.Settings)
	if !settings.CheckRelay.Get(s.Settings) || minutes == 0 || p.config.Relays == nil || !s.Client.IsValid() {
		return false, nil
	}
	ok, err := p.config.Relays(ctx, s.Client.Addr(), time.Duration(minutes)*time.Minute)
	if ok && err == nil {
		s.RelayEntry, s.RelaySetting = "logged in by POP3 or IMAP", settings.CheckRelay.Setting
	}
	return ok, err
}

// Rcpt accepts existing users and aliases of local domains from anybody and every other address from clients that may relay. It
// answers 452 4.5.3 beyond MAXRECIPIENTS, 550 5.1.1 for an unknown user, 552 5.2.2 (by OVERQUOTA 452 4.2.2) for a full mailbox, 451 4.3.0 while the directory or a list cannot
// answer, 553 5.7.1 for what badrcptto names, and 550 5.7.1 for relaying. It throws away what blackholedrcpt names.
func (p *Standard) Rcpt(ctx context.Context, s *Session, from, to addr.Address, accepted int) Verdict {
	if accepted >= settings.MaxRecipients.Get(s.Settings) {
		return refuse("recipients", strconv.Itoa(accepted), errRecipients).by(s, settings.MaxRecipients.Setting)
	}
	to = Complete(to, s.Settings)
	if v, decided := p.rcptLists(ctx, s, to); decided {
		return v
	}
	u, err := p.config.Directory.User(ctx, to)
	inactive := errors.Is(err, directory.ErrInactive)
	if errors.Is(err, directory.ErrNoUser) {
		// Whether the domain is local decides between "no such user" and relaying.
		if _, err = p.config.Directory.Domain(ctx, to.Domain); err == nil {
			return p.alias(ctx, to, inactive)
		}
	}
	switch {
	case err == nil && directory.Flags(u.GID)&directory.BounceMail != 0:
		return refuse("local-user", to.String()+" "+directory.BounceMail.Names()[0], errDisabled)
	case err == nil && u.IsGroup():
		return p.group(ctx, to)
	case err == nil:
		return p.room(ctx, s, u)
	case !errors.Is(err, directory.ErrNoDomain):
		return refuse("local-user", to.String(), errDirectory.Because(err))
	}
	return p.relay(ctx, s, from, to)
}

// room accepts a user whose mailbox has room for the message, as far as its size is known: a sender who hears it here is spared
// the bounce, and so are those whose addresses are forged.
func (p *Standard) room(ctx context.Context, s *Session, u directory.User) Verdict {
	if !settings.CheckQuota.Get(s.Settings) {
		return Verdict{Check: "local-user"}
	}
	// On disk a message is smaller: a line, of 40 bytes in the mean or more, ends in LF and not in CRLF. The delivery knows better.
	size := s.Size - s.Size/40
	fits, err := p.config.Directory.DomainRoom(ctx, u.Domain, maildir.Use{Bytes: size, Messages: 1})
	if err != nil {
		return refuse("quota", u.Address().String(), errDirectory.Because(err))
	}
	q, err := maildir.ParseQuota(u.Quota)
	if fits && (err != nil || u.Dir == "" || maildir.Room(filepath.Join(u.Dir, "Maildir"), q, size)) {
		return Verdict{Check: "local-user"}
	}
	// Mail for a user who is an alias too goes where its lines say.
	_, err = p.config.Directory.Aliases(ctx, u.Address())
	switch {
	case err == nil:
		return Verdict{Check: "local-alias", Input: u.Address().String()}
	case !errors.Is(err, directory.ErrNoAlias):
		return refuse("quota", u.Address().String(), errDirectory.Because(err))
	}
	e := errFull
	if settings.OverQuota.Get(s.Settings) == "defer" && (q.Bytes == 0 || size <= q.Bytes) {
		e = errFullNow
	}
	return refuse("quota", u.Address().String()+" "+q.String(), e).by(s, settings.CheckQuota.Setting)
}

// alias decides on a recipient in a domain of the directory that is no user: by the lines of its own, or those of *@domain.
func (p *Standard) alias(ctx context.Context, to addr.Address, inactive bool) Verdict {
	for _, a := range [...]addr.Address{to, directory.CatchAll(to.Domain)} {
		if inactive && a != to {
			// He is somebody all the same, whose mail is not for who gets everybody's.
			return refuse("local-user", to.String()+" marked inactive", errInactive)
		}
		_, err := p.config.Directory.Aliases(ctx, a)
		switch {
		case err == nil:
			return Verdict{Check: "local-alias", Input: a.String()}
		case !errors.Is(err, directory.ErrNoAlias):
			return refuse("local-alias", a.String(), errDirectory.Because(err))
		}
	}
	return refuse("local-user", to.String(), errNoMailbox)
}

// group decides on a recipient that is a group: without lines it would be for nobody.
func (p *Standard) group(ctx context.Context, to addr.Address) Verdict {
	_, err := p.config.Directory.Aliases(ctx, to)
	switch {
	case err == nil:
		return Verdict{Check: "local-group"}
	case errors.Is(err, directory.ErrNoAlias):
		return refuse("local-group", to.String(), errNoMembers)
	}
	return refuse("local-group", to.String(), errDirectory.Because(err))
}

// rcptLists asks the lists of recipients; decided is false when none has a word to say.
func (p *Standard) rcptLists(ctx context.Context, s *Session, to addr.Address) (v Verdict, decided bool) {
	keys, v2 := addressKeys(to), s.Settings
	throw := func(v Verdict) Verdict {
		if v.Action == Reject {
			v.Action, v.Err = Discard, nil
		}
		return v
	}
	if v, found := p.listed(ctx, s, settings.BlackholeRcpt, errBadRcpt, "blackholedrcpt", keys...); found {
		return throw(v), true
	}
	if line, ok := settings.BlackholeRcptPatterns.Get(v2).Match(v2, to.String()); ok {
		return throw(refuse("blackholercptpatterns", "line "+strconv.Itoa(line), errBadRcpt).by(s, settings.BlackholeRcptPatterns.Setting)), true
	}
	v, good := p.listed(ctx, s, settings.GoodRcptTo, errBadRcpt, "goodrcptto", keys...)
	if good && v.Action == Defer {
		return v, true
	}
	if !good {
		_, good = settings.GoodRcptPatterns.Get(v2).Match(v2, to.String())
	}
	if good {
		return Verdict{}, false
	}
	if s.Held != nil {
		return *s.Held, true
	}
	if v, found := p.listed(ctx, s, settings.BadRcptTo, errBadRcpt, "badrcptto", keys...); found {
		return v, true
	}
	if line, ok := settings.BadRcptPatterns.Get(v2).Match(v2, to.String()); ok {
		return refuse("badrcptpatterns", "line "+strconv.Itoa(line), errBadRcpt).by(s, settings.BadRcptPatterns.Setting), true
	}
	return Verdict{}, false
}

// relay decides on a recipient in a domain that is not the directory's.
func (p *Standard) relay(ctx context.Context, s *Session, from, to addr.Address) Verdict {
	// rcpthosts: what this host takes mail for, to send it on, as a secondary MX does.
	l := settings.RcptHosts.Get(s.Settings)
	hit, err := p.config.Lists.Find(ctx, l, domainKeys(to.Domain)...)
	switch {
	case err != nil:
		return refuse("rcpthosts", to.Domain, errLists.Because(err)).by(s, settings.RcptHosts.Setting)
	case hit.Found:
		return Verdict{Check: "rcpthosts", Input: hit.Key, Setting: settings.RcptHosts.Name, Layer: hit.Where}
	case settings.NoRelay.Get(s.Settings):
		return refuse("relay", to.Domain, errNoRelay).by(s, settings.NoRelay.Setting)
	case s.User != "":
		return p.userRelays(ctx, s)
	case settings.AuthAll.Get(s.Settings):
		return refuse("relay", s.Client.Addr().String(), errAuthFirst).by(s, settings.AuthAll.Setting)
	case settings.RelayClient.Get(s.Settings):
		return Verdict{Check: "relay", Input: "client " + s.Client.Addr().String()}.by(s, settings.RelayClient.Setting)
	case s.RelayEntry != "":
		return Verdict{Check: "relay", Input: "client " + s.RelayEntry}.by(s, s.RelaySetting)
	}
	switch hit, err := p.certified(ctx, s); {
	case err != nil:
		return refuse("relay", s.ClientCertificate.Subject, errLists.Because(err)).by(s, settings.TLSClients.Setting)
	case hit.Found:
		return Verdict{Check: "relay", Input: "certificate " + hit.Key, Setting: settings.TLSClients.Name, Layer: hit.Where}
	}
	switch ok, err := p.askLogin(ctx, s); {
	case err != nil:
		return refuse("relay", s.Client.Addr().String(), errDirectory.Because(err)).by(s, settings.CheckRelay.Setting)
	case ok:
		return Verdict{Check: "relay", Input: "client " + s.RelayEntry}.by(s, s.RelaySetting)
	}
	if !from.IsNull() {
		l := settings.RelayMailFrom.Get(s.Settings)
		hit, err := p.config.Lists.Find(ctx, l, addressKeys(from)...)
		switch {
		case err != nil:
			return refuse("relay", from.String(), errLists.Because(err)).by(s, settings.RelayMailFrom.Setting)
		case hit.Found:
			return Verdict{Check: "relay", Input: "sender " + hit.Key, Setting: settings.RelayMailFrom.Name, Layer: hit.Where}
		}
	}
	if c := s.ClientCertificate; c != nil && !settings.TLSClients.Get(s.Settings).Empty() {
		// Who shows a certificate may wonder why it does not help.
		why := "my list of clients does not name it"
		var e *tlsx.Unverified
		if errors.As(c.Err, &e) {
			why = e.Text
		}
		return refuse("relay", "certificate "+c.Subject+": "+why, errRelay.Saying("sorry, that domain isn't in my list of allowed rcpthosts, and your certificate does not let you relay: "+why+" (#5.7.1)")).
			by(s, settings.TLSClients.Setting)
	}
	return refuse("relay", s.Client.Addr().String(), errRelay).by(s, settings.RelayClients.Setting)
}

// certified looks for the client's certificate in tlsclients (wiki 2064): for its names, if an authority vouches for it, and for its fingerprints,
// which are sha256:HEX there.
func (p *Standard) certified(ctx context.Context, s *Session) (lists.Hit, error) {
	c := s.ClientCertificate
	if c == nil {
		return lists.Hit{}, nil
	}
	var keys []string
	if c.Err == nil {
		keys = append(keys, c.Names...)
	}
	for _, f := range c.Fingerprints {
		keys = append(keys, "sha256:"+f, "sha256:"+tlsx.Colons(f))
	}
	hit, err := p.config.Lists.Find(ctx, settings.TLSClients.Get(s.Settings), keys...)
	if err == nil {
		s.CertifiedBy = hit.Key
	}
	return hit, err
}

// userRelays decides on an authenticated user who sends to others than local users: NO_RELAY may keep him from it.
func (p *Standard) userRelays(ctx context.Context, s *Session) Verdict {
	a, err := addr.Parse(s.User)
	if err != nil {
		return Verdict{Check: "relay", Input: "user " + s.User}
	}
	u, err := p.config.Directory.User(ctx, a)
	var why string
	if err == nil {
		why, err = p.config.Directory.Denied(ctx, u, directory.NoRelay)
	}
	switch {
	case errors.Is(err, directory.ErrNoUser), errors.Is(err, directory.ErrNoDomain):
		// Removed since he logged in, or known to another verifier than the directory.
	case err != nil:
		return refuse("relay", "user "+s.User, errDirectory.Because(err))
	case why != "":
		return refuse("relay", "user "+s.User+": "+why, errNoRelay)
	}
	return Verdict{Check: "relay", Input: "user " + s.User}
}

// Data accepts.
func (p *Standard) Data(context.Context, *Session, addr.Address, []addr.Address) Verdict {
	return Verdict{Check: "data"}
}

// EndOfData refuses a message that came through more than MAXHOPS hosts and deliveries: 554 5.4.6; and one to a single user whose mailbox
// has no room for it, if MAIL gave no size, or too small a one: 552 5.2.2.
func (p *Standard) EndOfData(ctx context.Context, s *Session, _ addr.Address, to []addr.Address, header []byte, size int64) Verdict {
	if n := hops(header); n > settings.MaxHops.Get(s.Settings) {
		return refuse("hops", strconv.Itoa(n), errHops).by(s, settings.MaxHops.Setting)
	}
	if len(to) == 1 && size > s.Size {
		s.Size = size
		if u, err := p.config.Directory.User(ctx, Complete(to[0], s.Settings)); err == nil { // else it was accepted as no user
			if v := p.room(ctx, s, u); v.Action != Accept {
				return v
			}
		}
	}
	return Verdict{Check: "hops"}
}

// hops counts the Received and Delivered-To fields. It allocates nothing: it runs for every message.
func hops(header []byte) int {
	n := 0
	for len(header) > 0 {
		if hasFold(header, "received:") || hasFold(header, "delivered-to:") {
			n++
		}
		i := 0
		for i < len(header) && header[i] != '\n' {
			i++
		}
		header = header[min(i+1, len(header)):]
	}
	return n
}

// hasFold tells whether b begins with prefix, which is in lower case.
func hasFold(b []byte, prefix string) bool {
	if len(b) < len(prefix) {
		return false
	}
	for i := range len(prefix) {
		c := b[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != prefix[i] {
			return false
		}
	}
	return true
}

// plausibleDomain tells whether a bounce to from could have an address: labels of at most 63 octets, none empty.
func plausibleDomain(from addr.Address) bool {
	if from.Domain == "" || from.Domain[0] == '[' {
		// The null sender, "postmaster", or an address literal, which the address parser has checked.
		return true
	}
	for label := range strings.SplitSeq(from.Domain, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
	}
	return len(from.Domain) <= 255
}
