package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/settings"
)

// way is what settings say of a delivery: those of the queue, with rules for a sender or a recipient over them, and with those of
// a route and its credentials over these.
type way struct {
	view *settings.View
	// route is nil where the DNS decides; setting is what gave it.
	route   *settings.Route
	setting *settings.Setting
	// login has no User when there is nothing to log in with.
	login settings.Login
	// token is what login's file of a token gave, once a connection is needed.
	token string
	// helo is the name in EHLO; local the address of this host that connections come from, not valid for any.
	helo  string
	local netip.Addr
	// withoutTLS tells what says that mail for the domain goes without STARTTLS; "" when nothing does.
	withoutTLS string
	// each tells that another recipient may have another login.
	each bool
}

// errExposed says that credentials lie open.
var errExposed = errors.New("they are not used")

// wayFor gives the way to host; the error is for the operator.
func (d *Deliverer) wayFor(ctx context.Context, view *settings.View, host string, from, to addr.Address) (way, error) {
	w := way{view: view}
	null := from.IsNull() || from.Domain == "[]"
	if one := settings.SMTPRoute.Get(view); one != nil {
		w.route, w.setting = findRoute([]*settings.Route{one}, host, null), settings.SMTPRoute.Setting
	}
	if w.route == nil {
		w.route, w.setting = findRoute(settings.SMTPRoutes.Get(view), host, null), settings.SMTPRoutes.Setting
	}
	if r := w.route; r != nil && r.Host == "" {
		// The domain's own MX, which nobody logs in at.
		if w.route = nil; r.User == "" && r.Key == "" {
			w.view = view.ForLogin(r.Login)
			w.login.Where = r.Where
		}
	}
	if w.route != nil {
		w.view = view.ForLogin(w.route.Login)
		if w.login = w.route.Login; w.login.Where.File == "" {
			source := view.Source(w.setting)
			w.login.Where = settings.Source{File: source.File, Line: source.Line}
		}
		if w.login.User == "" {
			if err := w.lookUp(from, to); err != nil {
				return w, err
			}
		}
	}
	err := d.dress(&w)
	if err == nil {
		w.withoutTLS, err = d.withoutTLS(ctx, view, host)
	}
	return w, err
}

// dress adds the name in EHLO and the address that connections come from.
func (d *Deliverer) dress(w *way) (err error) {
	w.helo = settings.HeloHost.Get(w.view)
	if w.helo == "" {
		w.helo = d.config.Hostname()
	}
	if local := settings.OutgoingIP.Get(w.view); local != "" {
		if w.local, err = netip.ParseAddr(local); err != nil {
			return fmt.Errorf("OUTGOINGIP %q of %s: %w", local, w.view.Source(settings.OutgoingIP.Setting), err)
		}
	}
	return nil
}

// lookUp finds what to log in with in remote_auth: where the route says so for the sender or the recipient, and else for the relay.
func (w *way) lookUp(from, to addr.Address) error {
	credentials := settings.RemoteAuth.Get(w.view)
	whose := func(a addr.Address) []string { return []string{a.String(), "@" + a.Domain} }
	var keys []string
	switch w.route.Key {
	case "":
	case "/s":
		keys = whose(from)
	case "/r":
		keys, w.each = whose(to), true
	default:
		keys = []string{w.route.Key[1:]}
	}
	if w.route.Key == "" || w.each || w.route.Key == "/s" {
		keys = append(keys, w.route.Host)
	}
	login, found, err := credentials.Find(keys...)
	switch {
	case err != nil:
		return err
	case !found && len(keys) == 1 && w.route.Key != "":
		return fmt.Errorf("the route of %s names the entry %s of remote_auth, and there is none", w.login.Where, keys[0])
	case !found:
		return nil
	}
	if err := credentials.Safe(); err != nil {
		return fmt.Errorf("%s: %w: %w", login.Where, err, errExposed)
	}
	w.view, w.login = w.view.ForLogin(login), login
	return nil
}

// findRoute finds the route for a domain: that of bounces for one, then the exact name, then the longest suffix.
func findRoute(routes []*settings.Route, domain string, bounce bool) (found *settings.Route) {
	best := -1
	for _, r := range routes {
		rank := -1
		switch {
		case r.Domain == "!@":
			if bounce && r.Host != "" {
				return r
			}
		case r.Domain == domain:
			rank = len(r.Domain) + 1000
		case r.Domain == "" || r.Domain[0] == '.' && strings.HasSuffix(domain, r.Domain):
			rank = len(r.Domain)
		}
		if rank > best {
			best, found = rank, r
		}
	}
	return found
}

// implicit tells that the connection begins with TLS.
func (w way) implicit() bool {
	return w.route != nil && (w.route.Port == "465" || settings.SMTPS.Get(w.view))
}

// clear tells that a password may be sent without TLS.
func (w way) clear() bool {
	secure := w.view.IsSet(settings.SecureAuth.Setting) && settings.SecureAuth.Get(w.view)
	return settings.PermitPlainAuth.Get(w.view) && !secure
}

// mechanisms are what AUTH_SMTP and DISABLE_… leave, nil for all; what a salted password does not fit is left out.
func (w way) mechanisms() (wanted []string) {
	wanted = settings.Mechanisms(settings.AuthSMTP.Get(w.view))
	if w.login.TokenFile != "" {
		if wanted == nil {
			wanted = sasl.Names()
		}
		return slices.DeleteFunc(wanted, func(m string) bool { return m != "OAUTHBEARER" && m != "XOAUTH2" })
	}
	if settings.SaltedPassword.Get(w.view) {
		fits := "SCRAM-SHA-" + map[int]string{40: "1", 64: "256", 128: "512"}[len(w.login.Password)]
		if wanted == nil {
			wanted = []string{fits, fits + "-PLUS"}
		}
		wanted = slices.DeleteFunc(wanted, func(m string) bool { return strings.TrimSuffix(m, "-PLUS") != fits })
		if wanted == nil {
			wanted = []string{}
		}
	}
	return wanted
}

// patience is how long a host may not answer, and then is left alone; without ok the times grow.
func (w way) patience() (penalty, tolerance time.Duration, ok bool) {
	penalty, tolerance = time.Duration(settings.MinPenalty.Get(w.view))*time.Second, settings.MaxTolerance.Get(w.view)
	if w.route != nil && w.route.Penalty >= 0 {
		penalty = w.route.Penalty
	}
	if w.route != nil && w.route.Tolerance >= 0 {
		tolerance = w.route.Tolerance
	}
	return penalty, tolerance, penalty >= 0
}

// key names the connections that will do for w. It holds the password, and is never shown.
func (w way) key(host string) string {
	words := []string{host}
	if w.route != nil {
		words = []string{"route", w.route.Host, w.route.Port, strconv.FormatBool(w.implicit()), w.login.User, w.login.Password, w.login.TokenFile, strconv.FormatBool(w.clear()),
			strings.Join(w.mechanisms(), ","), strconv.FormatBool(settings.SaltedPassword.Get(w.view)), strings.Join(w.disabled(), ","), settings.RemoteAuthFailure.Get(w.view)}
	}
	for _, tls := range []settings.Key[string]{settings.RemoteTLS, settings.RemoteTLSCA, settings.RemoteTLSName, settings.RemoteTLSPin, settings.ClientCert} {
		words = append(words, tls.Get(w.view))
	}
	return strings.Join(append(words, w.withoutTLS, w.helo, w.local.String()), " ")
}

// disabled are the mechanisms that DISABLE_… switches off.
func (w way) disabled() (names []string) {
	for name, disable := range settings.DisableMechanism {
		if disable.Get(w.view) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// String tells people the relay, and who logs in there.
func (w way) String() string {
	if w.route == nil {
		return ""
	}
	s := net.JoinHostPort(w.route.Host, w.route.Port)
	if w.login.User != "" {
		s += " as user " + w.login.User
	}
	return s
}
