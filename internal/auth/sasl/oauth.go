package sasl

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"github.com/indigomail/indigo/internal/mailerr"
)

// TokenRefusal is an error of Config.Token that says what the client is told beside (RFC 7628 section 3.2.2).
type TokenRefusal struct {
	// Scope tells that the token is good but for its scopes.
	Scope bool
	// Scopes are those that are wanted, Configuration the URL of the issuer's description; "" for none.
	Scopes, Configuration string
	// Err is what the exchange ends with.
	Err error
}

func (r *TokenRefusal) Error() string { return r.Err.Error() }

func (r *TokenRefusal) Unwrap() error { return r.Err }

// challenge gives what the client is told. XOAUTH2 has statuses of HTTP.
func (r *TokenRefusal) challenge(numeric bool) []byte {
	said := struct {
		Status        string `json:"status"`
		Schemes       string `json:"schemes,omitempty"`
		Scope         string `json:"scope,omitempty"`
		Configuration string `json:"openid-configuration,omitempty"`
	}{"invalid_token", "", r.Scopes, r.Configuration}
	switch {
	case numeric && r.Scope:
		said.Status, said.Schemes = "403", "bearer"
	case numeric:
		said.Status, said.Schemes = "401", "bearer"
	case r.Scope:
		said.Status = "insufficient_scope"
	}
	text, _ := json.Marshal(said) // texts can always be
	return text
}

// bearer is OAUTHBEARER (RFC 7628) or XOAUTH2, by parse.
func bearer(c Config, parse func(string) (user, token string, ok bool), numeric bool) step {
	return ask(func(ctx context.Context, response []byte) ([]byte, step, error) {
		user, token, ok := parse(string(response))
		if !ok || user != "" && !validName(user) {
			return nil, nil, ErrMalformed
		}
		err := c.Token(ctx, user, token)
		if err == nil || mailerr.From(err).Temporary() {
			return nil, nil, err
		}
		// The client learns what is wrong with the token by a challenge, which it answers with nothing in particular.
		var refused *TokenRefusal
		if !errors.As(err, &refused) {
			refused = &TokenRefusal{Err: err}
		}
		return refused.challenge(numeric), func(context.Context, []byte) ([]byte, step, error) { return nil, nil, err }, nil
	})
}

// parseOAuthBearer reads a GS2 header and what follows it, each part with ^A behind it (RFC 7628 section 3.1).
func parseOAuthBearer(s string) (user, token string, ok bool) {
	header, rest, ok := strings.Cut(s, "\x01")
	parts := strings.Split(header, ",")
	// There is no form of it that binds to the channel.
	if !ok || len(parts) != 3 || parts[0] != "n" && parts[0] != "y" || parts[2] != "" {
		return "", "", false
	}
	if parts[1] != "" {
		name, isName := strings.CutPrefix(parts[1], "a=")
		if user, ok = decodeName(name); !isName || !ok || user == "" {
			return "", "", false
		}
	}
	token, ok = pairs(rest, nil)
	return user, token, ok
}

// parseXOAuth2 reads user=NAME^Aauth=Bearer TOKEN^A^A, which Google's documentation describes.
func parseXOAuth2(s string) (user, token string, ok bool) {
	token, ok = pairs(s, &user)
	return user, token, ok && user != ""
}

// pairs reads KEY=VALUE^A… up to an empty one, and gives the token of the pair auth, of the type Bearer.
func pairs(s string, user *string) (token string, ok bool) {
	s, ok = strings.CutSuffix(s, "\x01\x01")
	if !ok {
		return "", false
	}
	for pair := range strings.SplitSeq(s, "\x01") {
		key, value, _ := strings.Cut(pair, "=")
		switch {
		case key == "auth" && token == "":
			kind, rest, _ := strings.Cut(value, " ")
			if token = strings.TrimLeft(rest, " "); !strings.EqualFold(kind, "Bearer") {
				return "", false
			}
		case key == "auth", key == "":
			return "", false
		case key == "user" && user != nil:
			*user = value
		}
	}
	valid := strings.IndexFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
	return token, token != "" && valid
}

// decodeName reads a saslname (RFC 5802 section 5.1), encodeName writes one.
func decodeName(s string) (string, bool) {
	for i := 0; i < len(s); i++ {
		if s[i] == '=' && !strings.HasPrefix(s[i:], "=2C") && !strings.HasPrefix(s[i:], "=3D") {
			return "", false
		}
	}
	return strings.NewReplacer("=2C", ",", "=3D", "=").Replace(s), !strings.Contains(s, ",")
}

func encodeName(s string) string { return strings.NewReplacer("=", "=3D", ",", "=2C").Replace(s) }
