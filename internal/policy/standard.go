package policy

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/settings"
)

// Directory is what Standard asks about domains and users. Both fail with directory.ErrNoDomain or directory.ErrNoUser
// when there is none; any other error means that the directory cannot answer now.
type Directory interface {
	Domain(ctx context.Context, name string) (directory.Domain, error)
	User(ctx context.Context, a addr.Address) (directory.User, error)
}

// Config is what a Standard stands on.
type Config struct {
	Directory Directory
}

// Standard is the policy of a host that takes mail for its own users from anybody, and relays only for authenticated
// users and for the networks in RELAYCLIENTS (wiki 2820-2857). It keeps no state of its own; safe for concurrent use.
type Standard struct{ config Config }

// New returns a Standard.
func New(config Config) *Standard { return &Standard{config} }

// The refusals of Standard, as the clients see them. They never change: a copy is made to add a cause.
var (
	errAuthFirst  = mailerr.New(530, mailerr.Enhanced{5, 7, 0}, "authentication required (#5.7.0)")
	errNoTLS      = mailerr.New(538, mailerr.Enhanced{5, 7, 11}, "encryption required for this authentication mechanism (#5.7.11)")
	errSender     = mailerr.New(553, mailerr.Enhanced{5, 1, 7}, "sorry, the domain of your envelope sender is malformed (#5.1.7)")
	errSize       = mailerr.New(552, mailerr.Enhanced{5, 3, 4}, "sorry, that message size exceeds my databytes limit (#5.3.4)")
	errRecipients = mailerr.New(452, mailerr.Enhanced{4, 5, 3}, "sorry, too many recipients (#4.5.3)")
	errNoMailbox  = mailerr.New(550, mailerr.Enhanced{5, 1, 1}, "sorry, no mailbox here by that name (#5.1.1)")
	errDirectory  = mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "sorry, the user directory cannot be asked now (#4.3.0)")
	errRelay      = mailerr.New(550, mailerr.Enhanced{5, 7, 1}, "sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)")
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

// Connect accepts everybody (limits on connections are the door's) and finds out whether the client is in RELAYCLIENTS.
func (p *Standard) Connect(_ context.Context, s *Session) Verdict {
	s.RelayEntry = RelayEntry(settings.RelayClients.Get(s.Settings), s.Client.Addr())
	if s.RelayEntry == "" {
		return Verdict{Check: "connect"}
	}
	return Verdict{Check: "relayclients", Input: s.RelayEntry}.by(s, settings.RelayClients.Setting)
}

// Helo accepts every name that the door takes.
func (p *Standard) Helo(_ context.Context, _ *Session, name string) Verdict {
	return Verdict{Check: "helo", Input: name}
}

// AuthAllowed refuses AUTH without TLS while SECURE_AUTH is set: 538 5.7.11.
func (p *Standard) AuthAllowed(_ context.Context, s *Session) Verdict {
	if s.TLS == nil && settings.SecureAuth.Get(s.Settings) {
		return refuse("secure-auth", "no TLS", errNoTLS).by(s, settings.SecureAuth.Setting)
	}
	return Verdict{Check: "secure-auth"}
}

// Mail refuses strangers on a submission service (530 5.7.0), a declared size above DATABYTES (552 5.3.4) and a sender
// whose domain can be no domain (553 5.1.7). A user may send under any address.
func (p *Standard) Mail(_ context.Context, s *Session, from addr.Address, size int64) Verdict {
	if s.Submission && s.User == "" && s.RelayEntry == "" {
		return refuse("submission", s.Client.Addr().String(), errAuthFirst).by(s, settings.RelayClients.Setting)
	}
	if limit := int64(settings.DataBytes.Get(s.Settings)); limit > 0 && size > limit {
		return refuse("size", strconv.FormatInt(size, 10), errSize).by(s, settings.DataBytes.Setting)
	}
	if !plausibleDomain(from) {
		return refuse("sender-domain", from.Domain, errSender)
	}
	return Verdict{Check: "sender"}
}

// Rcpt accepts existing users of local domains from anybody and every other address from clients that may relay. It
// answers 452 4.5.3 beyond MAXRECIPIENTS, 550 5.1.1 for an unknown user, 451 4.3.0 while the directory cannot answer,
// and 550 5.7.1 for relaying.
func (p *Standard) Rcpt(ctx context.Context, s *Session, _, to addr.Address, accepted int) Verdict {
	if accepted >= settings.MaxRecipients.Get(s.Settings) {
		return refuse("recipients", strconv.Itoa(accepted), errRecipients).by(s, settings.MaxRecipients.Setting)
	}
	to = Complete(to, s.Settings)
	_, err := p.config.Directory.User(ctx, to)
	if errors.Is(err, directory.ErrNoUser) {
		// Whether the domain is local decides between "no such user" and relaying.
		if _, err = p.config.Directory.Domain(ctx, to.Domain); err == nil {
			return refuse("local-user", to.String(), errNoMailbox)
		}
	}
	switch {
	case err == nil:
		return Verdict{Check: "local-user"}
	case !errors.Is(err, directory.ErrNoDomain):
		return refuse("local-user", to.String(), errDirectory.Because(err))
	case s.User != "":
		return Verdict{Check: "relay", Input: "user " + s.User}
	case s.RelayEntry != "":
		return Verdict{Check: "relay", Input: "client " + s.RelayEntry}.by(s, settings.RelayClients.Setting)
	}
	return refuse("relay", s.Client.Addr().String(), errRelay).by(s, settings.RelayClients.Setting)
}

// Data accepts.
func (p *Standard) Data(context.Context, *Session, addr.Address, []addr.Address) Verdict {
	return Verdict{Check: "data"}
}

// EndOfData refuses a message that came through more than MAXHOPS hosts and deliveries: 554 5.4.6.
func (p *Standard) EndOfData(_ context.Context, s *Session, _ addr.Address, _ []addr.Address, header []byte, _ int64) Verdict {
	if n := hops(header); n > settings.MaxHops.Get(s.Settings) {
		return refuse("hops", strconv.Itoa(n), errHops).by(s, settings.MaxHops.Setting)
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
