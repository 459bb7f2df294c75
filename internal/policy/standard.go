package policy

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/message"
	"github.com/indigomail/indigo/internal/settings"
)

// Config is what Standard asks.
type Config struct {
	Directory interface {
		Domain(ctx context.Context, name string) (directory.Domain, error)
		User(ctx context.Context, a addr.Address) (directory.User, error)
	}
}

// Standard is the policy of a host that takes mail for its own users from anybody and relays for its own users and listed
// networks only.
type Standard struct{ config Config }

// New makes a Standard.
func New(config Config) *Standard { return &Standard{config} }

// by notes the setting behind a verdict.
func by(v Verdict, s *Session, setting *settings.Setting) Verdict {
	v.Setting, v.Layer = setting.Name, s.Settings.Source(setting).String()
	return v
}

func reject(check, input string, e *mailerr.Error) Verdict {
	v := Verdict{Action: Reject, Err: e, Check: check, Input: input}
	if e.Temporary() {
		v.Action = Defer
	}
	return v
}

// Connect accepts everybody: limits on connections are the door's.
func (p *Standard) Connect(context.Context, *Session) Verdict { return Verdict{Check: "connect"} }

// Helo accepts every name that the door could parse.
func (p *Standard) Helo(_ context.Context, _ *Session, name string) Verdict {
	return Verdict{Check: "helo", Input: name}
}

// AuthAllowed refuses AUTH in clear while SECURE_AUTH is set.
func (p *Standard) AuthAllowed(_ context.Context, s *Session) Verdict {
	v := Verdict{Check: "secure-auth"}
	if s.TLS == nil && settings.SecureAuth.Get(s.Settings) {
		v = reject("secure-auth", "no TLS", mailerr.New(538, mailerr.Enhanced{5, 7, 11}, "encryption required for authentication, use STARTTLS first (#5.7.11)"))
	}
	return by(v, s, settings.SecureAuth.Setting)
}

// Mail wants AUTH or a listed network on submission ports.
func (p *Standard) Mail(_ context.Context, s *Session, from addr.Address, _ int64) Verdict {
	if s.Submission && s.User == "" && !RelayClient(s) {
		return by(reject("submission", s.Client.Addr().String(), mailerr.New(530, mailerr.Enhanced{5, 7, 0}, "authentication required (#5.7.0)")), s, settings.RelayClients.Setting)
	}
	return Verdict{Check: "sender", Input: from.String()}
}

// Rcpt accepts users of this host, and any recipient of an authenticated or listed client.
func (p *Standard) Rcpt(ctx context.Context, s *Session, _, to addr.Address, accepted int) Verdict {
	if limit := settings.MaxRecipients.Get(s.Settings); accepted >= limit {
		return by(reject("recipients", strconv.Itoa(accepted), mailerr.New(452, mailerr.Enhanced{4, 5, 3}, "too many recipients (#4.5.3)")), s, settings.MaxRecipients.Setting)
	}
	me := settings.Me.Get(s.Settings)
	if to.Domain == "" || strings.EqualFold(to.Domain, me) {
		if to.Domain = settings.DefaultDomain.Get(s.Settings); to.Domain == "" {
			to.Domain = me
		}
	}
	_, err := p.config.Directory.User(ctx, to)
	switch {
	case err == nil:
		return Verdict{Check: "local-user", Input: to.String()}
	case errors.Is(err, directory.ErrNoUser):
		return reject("local-user", to.String(), mailerr.New(550, mailerr.Enhanced{5, 1, 1}, "sorry, no mailbox here by that name (#5.1.1)"))
	case !errors.Is(err, directory.ErrNoDomain):
		return reject("local-user", to.String(), mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "unable to look up the recipient now (#4.3.0)").Because(err))
	case s.User != "":
		return Verdict{Check: "relay", Input: "user " + s.User}
	case RelayClient(s):
		return by(Verdict{Check: "relay", Input: s.Client.Addr().String()}, s, settings.RelayClients.Setting)
	}
	return by(reject("relay", s.Client.Addr().String(), mailerr.New(550, mailerr.Enhanced{5, 7, 1}, "sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)")), s, settings.RelayClients.Setting)
}

// Data accepts.
func (p *Standard) Data(context.Context, *Session, addr.Address, []addr.Address) Verdict {
	return Verdict{Check: "data"}
}

// EndOfData refuses a message that has been through too many hosts.
func (p *Standard) EndOfData(_ context.Context, s *Session, _ addr.Address, _ []addr.Address, header []byte, _ int64) Verdict {
	hops := 0
	for _, f := range message.Fields(header) {
		if f.Is("Received") || f.Is("Delivered-To") {
			hops++
		}
	}
	if hops > settings.MaxHops.Get(s.Settings) {
		return by(reject("hops", strconv.Itoa(hops), mailerr.New(554, mailerr.Enhanced{5, 4, 6}, "too many hops, this message is looping (#5.4.6)")), s, settings.MaxHops.Setting)
	}
	return Verdict{Check: "hops", Input: strconv.Itoa(hops)}
}

// RelayClient tells whether the session's client is in RELAYCLIENTS: an address, a prefix that ends in a dot or colon
// ("192.168.1.:", wiki 2834) or a CIDR network a line, each with a final colon.
func RelayClient(s *Session) bool {
	ip := s.Client.Addr().Unmap()
	text := ip.String()
	for _, line := range settings.RelayClients.Get(s.Settings) {
		entry := strings.TrimSuffix(line, ":")
		if entry == text || strings.HasSuffix(entry, ".") && strings.HasPrefix(text, entry) {
			return true
		}
		if network, err := netip.ParsePrefix(entry); err == nil && network.Contains(ip) {
			return true
		}
	}
	return false
}
