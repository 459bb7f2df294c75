package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/auth/oauth"
	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/settings"
)

// maxTokens bounds how many tokens are looked at at once, for all services.
const maxTokens = 64

// tokenConfig gives whose tokens a service takes; the error says what is wrong with the settings or the files that they name.
func tokenConfig(v *settings.View) (oauth.Config, error) {
	c := oauth.Config{
		Issuer: settings.OAuthIssuer.Get(v), Audiences: settings.OAuthAudience.Get(v), Clients: settings.OAuthClients.Get(v), Claim: settings.OAuthClaim.Get(v),
		Scopes: settings.OAuthScope.Get(v), Skew: settings.OAuthSkew.Get(v), Introspection: settings.OAuthIntrospection.Get(v),
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

// Tokens implements auth.Authority.
func (a authority) Tokens() bool {
	return settings.OAuthIssuer.Get(a.sources.view()) != "" && a.usesDirectory()
}

// Token implements auth.Authority.
func (a authority) Token(ctx context.Context, attempt auth.Attempt) (auth.Identity, error) {
	if !a.Tokens() {
		return a.Accounts.Token(ctx, attempt)
	}
	config, err := tokenConfig(a.sources.view())
	name := ""
	if err == nil {
		name, err = a.sources.h.tokens.User(ctx, config, attempt.Password)
	}
	var refused *oauth.Refusal
	switch {
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
		return auth.Identity{}, &sasl.TokenRefusal{Scope: refused != nil && refused.Scope, Scopes: config.Scopes, Configuration: config.Configuration(), Err: err}
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

// checkTokens tells what is wrong with the settings for tokens of a service, and with the files of tokens that routes name.
func checkTokens(data string, v *settings.View, kind string, wrong func(settings.Source, *settings.Setting, error)) {
	if asksPasswords(kind) && settings.OAuthIssuer.Get(v) != "" {
		if _, err := tokenConfig(v); err != nil {
			wrong(v.Source(settings.OAuthIssuer.Setting), settings.OAuthIssuer.Setting, err)
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
