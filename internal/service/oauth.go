package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/auth/oauth"
	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/settings"
)

// maxTokens bounds how many tokens are looked at at once, for all services.
const maxTokens = 64

// tokenConfig gives whose tokens a service takes; the error says what is wrong with the settings or the files that they name.
func tokenConfig(v *settings.View) (oauth.Config, error) {
	c := oauth.Config{
		Issuer: settings.OAuthIssuer.Get(v), Audiences: settings.OAuthAudience.Get(v), Clients: settings.OAuthClients.Get(v), Claim: settings.OAuthClaim.Get(v),
		Scopes: settings.OAuthScope.Get(v), Domain: settings.OAuthDomain.Get(v), Skew: settings.OAuthSkew.Get(v), Introspection: settings.OAuthIntrospection.Get(v),
		ClientID: settings.OAuthIntrospectionID.Get(v), CA: settings.OAuthCA.Get(v), Timeout: settings.OAuthTimeout.Get(v),
		Remember: settings.OAuthRemember.Get(v), Loopback: settings.OAuthLoopback.Get(v),
	}
	if file := settings.OAuthIntrospectionSecret.Get(v); file != "" && c.Introspection != "" {
		text, err := oauth.ReadSecret(file, maxSecret)
		if err != nil {
			return c, fmt.Errorf("OAUTH_INTROSPECTION_SECRET_FILE: %w", err)
		}
		if c.Secret, _, _ = strings.Cut(string(text), "\n"); c.Secret == "" {
			return c, fmt.Errorf("OAUTH_INTROSPECTION_SECRET_FILE: the first line of %s is empty", file)
		}
	}
	return c, c.Check()
}

func newIssuers(logger *slog.Logger) *oauth.Issuers {
	return &oauth.Issuers{Dial: new(net.Dialer).DialContext, Now: time.Now, Running: make(chan struct{}, maxTokens), Logger: logger}
}

// Tokens implements auth.Authority: they are taken where there is an issuer for any domain.
func (a authority) Tokens() bool { return anyIssuer(a.sources.view()) && a.usesDirectory() }

func anyIssuer(v *settings.View) bool {
	return slices.ContainsFunc(settings.TokenValues(v, settings.OAuthIssuer), func(issuer string) bool { return issuer != "" })
}

// issuerOf gives whose tokens log in users of a domain, by its real name. The error is a Refusal where there is none.
func issuerOf(v *settings.View, domain string) (oauth.Config, error) {
	v = v.ForTokens(domain)
	if settings.OAuthIssuer.Get(v) == "" {
		return oauth.Config{}, oauth.Refuse("no issuer is set for %s (OAUTH_ISSUER, oauth.envrules)", domain)
	}
	return tokenConfig(v)
}

// issuer chooses who is asked about a token: the issuer of whom the client says that it is for, or, where it says nothing, of whom the token says that.
// A token that is no JWT says nothing: then there must be no more than one issuer.
func (a authority) issuer(ctx context.Context, v *settings.View, attempt auth.Attempt) (oauth.Config, error) {
	if attempt.User != "" {
		whom, err := a.Whom(ctx, attempt)
		if err != nil {
			return oauth.Config{}, err
		}
		return issuerOf(v, whom.Domain)
	}
	if settings.OAuthRules.Get(v).Len() == 0 {
		return tokenConfig(v)
	}
	said, ok := oauth.Peek(attempt.Password)
	if !ok || said.Issuer() == "" {
		return oauth.Config{}, oauth.Refuse("the client gives no name, and the token does not say who issued it: domains have issuers of their own (oauth.envrules)")
	}
	var found []oauth.Config
	for _, claim := range settings.TokenValues(v, settings.OAuthClaim) {
		name := said.Text(claim)
		full := strings.Contains(name, "@")
		domains := []string{""}
		if !full {
			domains = settings.TokenValues(v, settings.OAuthDomain)
		}
		for _, domain := range domains {
			c, may, err := a.candidate(ctx, v, said.Issuer(), claim, name, domain, full)
			if err != nil {
				return oauth.Config{}, err
			}
			if may && !slices.Contains(found, c) {
				found = append(found, c)
			}
		}
	}
	if len(found) != 1 {
		return oauth.Config{}, oauth.Refuse("the client gives no name, and of the issuers here %d are %q and may vouch for whom the token names", len(found), said.Issuer())
	}
	return found[0], nil
}

// candidate gives the issuer of whom a token names, if that is the one that the token says, and takes the name from this claim. One that is not
// full, without a domain, is of domain.
func (a authority) candidate(ctx context.Context, v *settings.View, issuer, claim, name, domain string, full bool) (c oauth.Config, may bool, err error) {
	if name == "" {
		return c, false, nil
	}
	if domain != "" {
		name += "@" + domain
	}
	whom, err := a.Whom(ctx, auth.Attempt{User: name})
	if err != nil {
		if mailerr.From(err).Temporary() {
			return c, false, err
		}
		return c, false, nil
	}
	own := v.ForTokens(whom.Domain)
	if settings.OAuthIssuer.Get(own) != issuer || settings.OAuthClaim.Get(own) != claim || !full && settings.OAuthDomain.Get(own) != domain {
		return c, false, nil
	}
	c, err = tokenConfig(own)
	return c, err == nil, err
}

// vouches tells whether an issuer may say that somebody is the user of this name: it must be that of his domain.
func (a authority) vouches(ctx context.Context, v *settings.View, c oauth.Config, name string) error {
	if settings.OAuthRules.Get(v).Len() == 0 {
		return nil
	}
	whom, err := a.Whom(ctx, auth.Attempt{User: name})
	if err != nil {
		return err
	}
	own, err := issuerOf(v, whom.Domain)
	if own == c && err == nil {
		return nil
	}
	return oauth.Refuse("it names %s, and is of %s, which does not vouch for users of %s", name, c.Issuer, whom.Domain)
}

// Token implements auth.Authority.
func (a authority) Token(ctx context.Context, attempt auth.Attempt) (auth.Identity, error) {
	if !a.Tokens() {
		return a.Accounts.Token(ctx, attempt)
	}
	// One view for all of it: a reload must not come in between.
	view := a.sources.view()
	config, err := a.issuer(ctx, view, attempt)
	name := ""
	if err == nil {
		name, err = a.sources.h.tokens.User(ctx, config, attempt.Password)
	}
	if err == nil {
		err = a.vouches(ctx, view, config, name)
	}
	var refused *oauth.Refusal
	var reply *mailerr.Error
	switch {
	case errors.As(err, &reply) && !reply.Temporary():
	case errors.As(err, &refused):
		err = auth.Refused(err)
	case err != nil:
		if !errors.Is(ctx.Err(), context.Canceled) {
			a.sources.h.tokens.Report(err)
		}
		return auth.Identity{}, auth.Unavailable(err)
	}
	var identity auth.Identity
	if err == nil {
		identity, err = a.AdmitNamed(ctx, attempt, name)
	}
	if err != nil {
		told := &sasl.TokenRefusal{Scope: refused != nil && refused.Scope, Scopes: config.Scopes, Err: err}
		if config.Issuer != "" {
			told.Configuration = config.Configuration()
		}
		return auth.Identity{}, told
	}
	return identity, nil
}

// relayTokens are the tokens of routes, whose files may be relative to the data directory.
type relayTokens struct {
	*oauth.Grants
	data string
}

func newRelayTokens(data string, logger *slog.Logger) relayTokens {
	return relayTokens{&oauth.Grants{Dial: new(net.Dialer).DialContext, Now: time.Now, Logger: logger}, data}
}

func (r relayTokens) path(file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(r.data, file)
}

// Token implements remote.TokenSource.
func (r relayTokens) Token(ctx context.Context, file string) (string, error) {
	return r.Grants.Token(ctx, r.path(file))
}

// Forget implements remote.TokenSource.
func (r relayTokens) Forget(file string) { r.Grants.Forget(r.path(file)) }

// idleTokens tells which lines of oauth.envrules have no effect.
func idleTokens(v *settings.View, kind string, idle func(settings.Source, *settings.Setting, string, ...any)) {
	for _, rule := range v.TokenRules() {
		if asksPasswords(kind) && settings.OAuthIssuer.Get(rule.View) == "" && settings.OAuthIssuer.Get(v) == "" && !rule.View.Source(settings.OAuthIssuer.Setting).Unset {
			idle(rule.Where, settings.OAuthRules.Setting, "%s: no issuer is set for it, neither here nor by OAUTH_ISSUER: its users log in by no token", rule.Pattern)
		}
	}
}

// checkTokens tells what is wrong with the settings for tokens of a service, and with the files of tokens that routes name.
func checkTokens(data string, v *settings.View, kind string, wrong func(settings.Source, *settings.Setting, error)) {
	if asksPasswords(kind) && settings.OAuthIssuer.Get(v) != "" {
		if _, err := tokenConfig(v); err != nil {
			wrong(v.Source(settings.OAuthIssuer.Setting), settings.OAuthIssuer.Setting, err)
		}
	}
	for _, rule := range v.TokenRules() {
		if !asksPasswords(kind) || settings.OAuthIssuer.Get(rule.View) == "" {
			continue
		}
		if _, err := tokenConfig(rule.View); err != nil {
			wrong(rule.Where, settings.OAuthRules.Setting, fmt.Errorf("%s: %w", rule.Pattern, err))
		}
	}
	if kind != "queue" {
		return
	}
	for _, login := range v.Logins() {
		if login.TokenFile == "" {
			continue
		}
		if err := oauth.CheckGrant(relayTokens{data: data}.path(login.TokenFile)); err != nil {
			wrong(login.Where, settings.RemoteAuth.Setting, err)
		}
	}
}
