// Package oauth is knowledge: it finds out whose an OAuth 2.0 token is by asking its issuer (OpenID Connect Discovery 1.0, RFC 7519,
// RFC 7662), and gets tokens for logging in elsewhere (RFC 6749 section 6). It must not know users, doors, nor where settings are.
package oauth

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

const (
	// MaxToken is the longest token in bytes: what a line of 12288 octets (RFC 4954 section 4) holds in base64.
	MaxToken = 9216
	// maxBody bounds what an issuer answers.
	maxBody = 1 << 20
	// maxAnswers bounds the answers that are remembered of one issuer.
	maxAnswers = 10000
	// maxIssuers bounds the configurations whose keys and answers are kept; the one that was asked for least lately makes room.
	maxIssuers = 1000
	// keysLife is how long an issuer's keys are believed without a new look, keysAge how long it is not asked again, however many tokens name a
	// key that it does not have, keysWait the same for tokens by a key that is known.
	keysLife = time.Hour
	keysAge  = 5 * time.Second
	keysWait = time.Minute
)

// Config says whose tokens are taken. Lists are words with blanks between them.
type Config struct {
	// Issuer is the URL that tokens have as "iss".
	Issuer string
	// Audiences are those one of which a token must be meant for ("aud"), Clients those one of which it must have been given to ("azp" or
	// "client_id"); "" for any, but not both.
	Audiences, Clients string
	// Claim names the user; Scopes must all be in the token.
	Claim, Scopes string
	// Domain is that of a name without one, "" to leave it so.
	Domain string
	// Skew is how far the issuer's clock may be off.
	Skew time.Duration
	// Introspection is the URL that is asked about every token, as ClientID with Secret; without it tokens are JWTs that the issuer signed.
	Introspection, ClientID, Secret string
	// CA is a file of authorities in PEM for the issuer's certificate, "" for the system's.
	CA string
	// Timeout bounds all that is asked about one token; Remember how long an answer of Introspection is believed.
	Timeout, Remember time.Duration
	// Loopback allows http:// at loopback addresses.
	Loopback bool
}

// Check tells what is wrong with a configuration, without asking anybody. Its errors name settings.
func (c Config) Check() error {
	if err := checkURL(c.Issuer, c.Loopback); err != nil {
		return fmt.Errorf("OAUTH_ISSUER: %w", err)
	}
	if strings.TrimSpace(c.Audiences+c.Clients) == "" {
		return errors.New("neither OAUTH_AUDIENCE nor OAUTH_CLIENTS is set: whoever gets a user's token for another service could log in with it")
	}
	if c.Introspection != "" {
		if err := checkURL(c.Introspection, c.Loopback); err != nil {
			return fmt.Errorf("OAUTH_INTROSPECTION: %w", err)
		}
		if c.ClientID == "" || c.Secret == "" {
			return errors.New("OAUTH_INTROSPECTION needs OAUTH_INTROSPECTION_ID and OAUTH_INTROSPECTION_SECRET_FILE")
		}
	}
	_, err := authorities(c.CA)
	return err
}

// Configuration is the URL of the issuer's own description (OpenID Connect Discovery 1.0 section 4).
func (c Config) Configuration() string {
	return strings.TrimSuffix(c.Issuer, "/") + "/.well-known/openid-configuration"
}

// Refusal is a token that is not good; every other error of User means that nobody can tell now.
type Refusal struct {
	// Scope tells that it is good but for a scope that it lacks.
	Scope bool
	why   string
}

func (r *Refusal) Error() string { return "token refused: " + r.why }

// Refuse makes a Refusal, for who chooses the issuer.
func Refuse(format string, a ...any) error { return refuse(format, a...) }

func refuse(format string, a ...any) error { return &Refusal{why: clip(fmt.Sprintf(format, a...))} }

// clip makes what others said fit into a line of a log.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}

// Issuers keep what is known of issuers, for one process. Safe for concurrent use.
type Issuers struct {
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Now  func() time.Time
	// Running bounds how many tokens are looked at at once: a place is taken by a send. One that waits for its issuer has none, so that
	// an issuer that is slow holds up nobody else's; as many as Running has places may ask one issuer at a time.
	Running chan struct{}
	// Logger is told by Report.
	Logger *slog.Logger

	mu     sync.Mutex
	all    map[Config]*issuer
	warned time.Time
}

// Report logs what keeps tokens from being looked at, at most once a minute: each login would say the same.
func (s *Issuers) Report(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.Now(); now.Sub(s.warned) >= time.Minute {
		s.warned = now
		s.Logger.Warn("logins by OAuth tokens get a temporary error: " + err.Error())
	}
}

// User gives the name of the user that a token names by the claim of c. The token's claims are nobody's secret, but the token is: it is in no
// error.
func (s *Issuers) User(ctx context.Context, c Config, token string) (string, error) {
	one, err := s.issuer(c)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	select {
	case s.Running <- struct{}{}:
		defer func() { <-s.Running }()
	case <-ctx.Done():
		return "", fmt.Errorf("too many tokens at once: %w", ctx.Err())
	}
	if token == "" || len(token) > MaxToken {
		return "", refuse("it has %d bytes; from 1 to %d are taken", len(token), MaxToken)
	}
	// It is not shown to who has nothing to do with it, nor is anybody asked for keys. Google has names with and without https:// for itself.
	if said, ok := Peek(token); ok && said.Issuer() != "" && said.Issuer() != c.Issuer && "https://"+said.Issuer() != c.Issuer {
		return "", refuse("its issuer is %q, not %q", said.Issuer(), c.Issuer)
	}
	if c.Introspection != "" {
		return one.introspected(ctx, token, s.Running)
	}
	return one.signed(ctx, token, s.Running)
}

// Unverified is what a token says of itself: good for nothing but to choose who is asked whether it is true.
type Unverified struct{ said claims }

// Peek reads a JWT without a look at its signature; ok is false for what is none.
func Peek(token string) (u Unverified, ok bool) {
	parts := strings.Split(token, ".")
	if len(token) > MaxToken || len(parts) != 3 {
		return u, false
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	return u, err == nil && json.Unmarshal(text, &u.said) == nil && u.said != nil
}

// Issuer gives who the token says has issued it, Text another claim; "" where it has none.
func (u Unverified) Issuer() string { return u.said.text("iss") }

// Text is Issuer's counterpart.
func (u Unverified) Text(claim string) string { return u.said.text(claim) }

func (s *Issuers) issuer(c Config) (*issuer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.all[c]; one != nil {
		one.used = s.Now()
		return one, nil
	}
	if err := c.Check(); err != nil {
		return nil, err
	}
	client, err := newClient(s.Dial, c.CA, c.Loopback)
	if err != nil {
		return nil, err
	}
	if len(s.all) >= maxIssuers {
		var oldest *issuer
		for _, one := range s.all {
			if oldest == nil || one.used.Before(oldest.used) {
				oldest = one
			}
		}
		oldest.client.Load().CloseIdleConnections()
		delete(s.all, oldest.config)
	}
	if s.all == nil {
		s.all = map[Config]*issuer{}
	}
	one := &issuer{config: c, used: s.Now(), now: s.Now, asking: make(chan struct{}, 1), questions: make(chan struct{}, cap(s.Running)), answers: map[[sha256.Size]byte]answer{}}
	one.client.Store(client)
	s.all[c] = one
	return one, nil
}

// Reload reads files of authorities again, and forgets what introspection said. Keys stay: the issuer may be down.
func (s *Issuers) Reload() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, one := range s.all {
		// A file that is not whole is reported by Check.
		if client, err := newClient(s.Dial, c.CA, c.Loopback); err == nil {
			one.client.Swap(client).CloseIdleConnections()
		}
		one.mu.Lock()
		clear(one.answers)
		one.mu.Unlock()
	}
}

// Close closes connections and forgets all.
func (s *Issuers) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop()
}

func (s *Issuers) drop() {
	for _, one := range s.all {
		one.client.Load().CloseIdleConnections()
	}
	clear(s.all)
}

// issuer is what is known of one.
type issuer struct {
	config Config
	now    func() time.Time
	client atomic.Pointer[http.Client]
	// used is when a token of its came last; Issuers.mu is held for it.
	used time.Time
	// questions bounds how many are asked of its introspection at once.
	questions chan struct{}

	// asking is held by who asks for the keys; the fields below it are its.
	asking chan struct{}
	// keysURL is where the keys are, as was discovered.
	keysURL    string
	discovered time.Time
	// asked is when the issuer was asked last, trouble what came of it.
	asked   time.Time
	trouble error

	mu sync.Mutex
	// keys are those that were fetched last; who knows the key of his token waits for nobody.
	keys    []jose.JSONWebKey
	fetched time.Time
	answers map[[sha256.Size]byte]answer
}

// signed finds the user of a JWT, which has a place in running.
func (s *issuer) signed(ctx context.Context, token string, running chan struct{}) (string, error) {
	// The form of RFC 7515 section 7.1; go-jose would take JSON, too.
	if strings.Count(token, ".") != 2 || strings.ContainsAny(token, "{}\"") {
		return "", refuse("it is no signed JWT, and OAUTH_INTROSPECTION is not set to ask about others")
	}
	keys := &keySet{issuer: s, running: running}
	verifier := oidc.NewVerifier(s.config.Issuer, keys, &oidc.Config{
		// Who it is for and until when are looked at by judge, for tokens of both kinds alike.
		SkipClientIDCheck: true, SkipExpiryCheck: true, SupportedSigningAlgs: algorithmNames(),
	})
	verified, err := verifier.Verify(ctx, token)
	switch {
	case keys.trouble != nil:
		return "", keys.trouble
	case err != nil:
		return "", refuse("%v", err)
	}
	var c claims
	if err := verified.Claims(&c); err != nil {
		return "", refuse("%v", err)
	}
	if _, ok := c["exp"]; !ok {
		return "", refuse("it has no exp: it would be good for ever")
	}
	// go-oidc has looked at "iss", of which Google has a second form.
	delete(c, "iss")
	name, _, err := s.config.judge(c, s.now())
	return name, err
}

// algorithmNames are those of keys that have a public half: neither "none" nor HMAC, whose key is the secret of both sides.
func algorithmNames() []string {
	return []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA}
}

// claims are what an issuer says of a token.
type claims map[string]json.RawMessage

// text gives a claim that is a text; "" when it is none.
func (c claims) text(name string) (s string) {
	if json.Unmarshal(c[name], &s) != nil {
		return ""
	}
	return s
}

// words gives a claim that is one text or a list of them.
func (c claims) words(name string) (all []string) {
	if s := c.text(name); s != "" {
		return []string{s}
	}
	if json.Unmarshal(c[name], &all) != nil {
		return nil
	}
	return all
}

// time gives a claim that is a NumericDate (RFC 7519 section 2); there is false without it.
func (c claims) time(name string) (at time.Time, there bool, err error) {
	raw, ok := c[name]
	if !ok || string(raw) == "null" {
		return at, false, nil
	}
	var seconds float64
	if err := json.Unmarshal(raw, &seconds); err != nil || math.IsNaN(seconds) || seconds < 0 || seconds > 1<<40 {
		return at, true, refuse("its %s is no time", name)
	}
	return time.Unix(int64(seconds), 0), true, nil
}

// judge tells whose the token is of which these are the claims, and until when at most; the error is a Refusal.
func (c Config) judge(said claims, now time.Time) (name string, until time.Time, err error) {
	expires, limited, err := said.time("exp")
	begins, later, err2 := said.time("nbf")
	switch {
	case err != nil || err2 != nil:
		return "", until, errors.Join(err, err2)
	case limited && !now.Before(expires.Add(c.Skew)):
		return "", until, refuse("it expired at %s", expires.UTC().Format(time.RFC3339))
	case later && now.Before(begins.Add(-c.Skew)):
		return "", until, refuse("it is not good before %s", begins.UTC().Format(time.RFC3339))
	}
	if limited {
		until = expires.Add(c.Skew)
	}
	if _, there := said["iss"]; there && said.text("iss") != c.Issuer {
		return "", until, refuse("its issuer is %q, not %q", said.text("iss"), c.Issuer)
	}
	if _, bound := said["cnf"]; bound {
		// RFC 7800: it is for who has a key, and nobody here can ask for the proof.
		return "", until, refuse("it is bound to a key, so that it is no bearer's token")
	}
	if wanted := strings.Fields(c.Audiences); len(wanted) > 0 && !meet(said.words("aud"), wanted) {
		return "", until, refuse("its audience is %q, none of OAUTH_AUDIENCE", said.words("aud"))
	}
	// Several names of one thing: azp is OpenID Connect's, client_id that of RFC 8693 and 7662, appid Microsoft's of version 1.
	client := slices.Concat(said.words("azp"), said.words("client_id"), said.words("appid"))
	if wanted := strings.Fields(c.Clients); len(wanted) > 0 {
		if len(client) == 0 || slices.ContainsFunc(client, func(id string) bool { return !slices.Contains(wanted, id) }) {
			return "", until, refuse("it was given to the client %q, none of OAUTH_CLIENTS", client)
		}
	}
	var scopes []string
	for _, s := range slices.Concat(said.words("scope"), said.words("scp")) {
		scopes = append(scopes, strings.Fields(s)...)
	}
	for scope := range strings.FieldsSeq(c.Scopes) {
		if !slices.Contains(scopes, scope) {
			return "", until, &Refusal{Scope: true, why: clip(fmt.Sprintf("it lacks the scope %s; it has %q", scope, scopes))}
		}
	}
	name = c.complete(said.text(c.Claim))
	switch {
	case name == "":
		return "", until, refuse("it has no claim %q that names its user; there are %s", c.Claim, strings.Join(said.names(), ", "))
	case len(name) > 512 || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return "", until, refuse("its claim %q is no name: %q", c.Claim, name)
	}
	if raw, there := said["email_verified"]; c.Claim == "email" && there && !slices.Contains([]string{"true", `"true"`}, string(raw)) {
		// Where people may register themselves, anybody can say that this is his address.
		return "", until, refuse("the issuer has not verified that %s is its user's address", name)
	}
	return name, until, nil
}

// complete gives a name without a domain that of the configuration.
func (c Config) complete(name string) string {
	if name == "" || c.Domain == "" || strings.Contains(name, "@") {
		return name
	}
	return name + "@" + c.Domain
}

func (c claims) names() (all []string) {
	for name := range c {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

func meet(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}
