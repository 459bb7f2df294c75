package oauth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

// checkURL takes https URLs, and with loopback http ones of this host.
func checkURL(text string, loopback bool) error {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return err
	case u.Host == "" || u.User != nil || u.Fragment != "" || u.Opaque != "":
		return fmt.Errorf("%q is no URL of the form https://HOST/PATH", text)
	}
	return checkScheme(u, loopback)
}

func checkScheme(u *url.URL, loopback bool) error {
	ip, err := netip.ParseAddr(u.Hostname())
	local := u.Hostname() == "localhost" || err == nil && ip.IsLoopback()
	switch {
	case u.Scheme == "https", u.Scheme == "http" && local && loopback:
		return nil
	case u.Scheme == "http" && local:
		return fmt.Errorf("%s://%s is not https; OAUTH_LOOPBACK=1 allows that at this host", u.Scheme, u.Host)
	}
	return fmt.Errorf("%s://%s is not https: anybody on the way could say whose a token is", u.Scheme, u.Host)
}

// authorities reads a file of them; nil for "", which means the system's.
func authorities(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("OAUTH_CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("OAUTH_CA: there is no certificate in PEM in %s", file)
	}
	return pool, nil
}

// newClient makes a client that speaks to issuers alone as it may: TLS, no redirects, short answers, no proxy.
func newClient(dial func(ctx context.Context, network, address string) (net.Conn, error), ca string, loopback bool) (*http.Client, error) {
	pool, err := authorities(ca)
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Transport: limited{loopback, &http.Transport{
			DialContext: dial, TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
			MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute, TLSHandshakeTimeout: 30 * time.Second, MaxResponseHeaderBytes: 64 << 10,
		}},
		CheckRedirect: func(r *http.Request, _ []*http.Request) error {
			return fmt.Errorf("the issuer sends on to %s, and nobody follows: name that URL", r.URL.Redacted())
		},
	}, nil
}

// limited lets only https through, and of an answer only so much.
type limited struct {
	loopback bool
	under    *http.Transport
}

func (l limited) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := checkScheme(r.URL, l.loopback); err != nil {
		return nil, err
	}
	response, err := l.under.RoundTrip(r)
	if err == nil {
		response.Body = &body{response.Body, maxBody}
	}
	return response, err
}

// CloseIdleConnections is what http.Client calls.
func (l limited) CloseIdleConnections() { l.under.CloseIdleConnections() }

// body gives left bytes and then an error.
type body struct {
	io.ReadCloser
	left int
}

func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, fmt.Errorf("an answer has more than %d bytes", maxBody)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// refresh gets the issuer's keys, unless it was asked a short time ago: known tells that the token at hand can wait. The error is of the last
// time. asking must be held.
func (s *issuer) refresh(ctx context.Context, known bool) error {
	wait := keysAge
	if known {
		wait = keysWait
	}
	if !s.asked.IsZero() && s.now().Sub(s.asked) < wait {
		return s.trouble
	}
	// What one client breaks off is not to be missing for others.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.Timeout)
	defer cancel()
	var keys []jose.JSONWebKey
	if s.trouble = s.discover(ctx); s.trouble == nil {
		keys, s.trouble = s.fetch(ctx)
	}
	if s.asked = s.now(); s.trouble == nil {
		s.mu.Lock()
		s.keys, s.fetched = keys, s.asked
		s.mu.Unlock()
	}
	return s.trouble
}

// discover finds out where the keys are.
func (s *issuer) discover(ctx context.Context) error {
	now := s.now()
	if s.keysURL != "" && now.Sub(s.discovered) < keysLife {
		return nil
	}
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, s.client.Load()), s.config.Issuer)
	var found struct {
		Keys string `json:"jwks_uri"`
	}
	if err == nil {
		err = provider.Claims(&found)
	}
	if err == nil {
		err = checkURL(found.Keys, s.config.Loopback)
	}
	if err != nil {
		return errors.New(clip(fmt.Sprintf("the issuer's description %s: %v", s.config.Configuration(), unnamed(err))))
	}
	s.keysURL, s.discovered = found.Keys, now
	return nil
}

// unnamed takes the URL out of an error, before which it stands already.
func unnamed(err error) error {
	var question *url.Error
	if errors.As(err, &question) {
		return question.Err
	}
	return err
}

// fetch asks the issuer for its keys.
func (s *issuer) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	fail := func(err error) ([]jose.JSONWebKey, error) {
		return nil, errors.New(clip(fmt.Sprintf("the issuer's keys %s: %v", s.keysURL, err)))
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.keysURL, nil)
	if err != nil {
		return fail(err)
	}
	response, err := s.client.Load().Do(request)
	if err != nil {
		return fail(unnamed(err))
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fail(errors.New(response.Status))
	}
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return fail(err)
	}
	return parseKeys(text)
}

// parseKeys reads a JWK set (RFC 7517 section 5), in which keys of unknown kinds are passed over. Only public keys for signatures are kept: with
// a symmetric one everybody who can read the set could sign.
func parseKeys(text []byte) (keys []jose.JSONWebKey, err error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, errors.New(clip(fmt.Sprintf("the issuer's keys are no JWK set: %v", err)))
	}
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if json.Unmarshal(raw, &key) == nil && key.Valid() && key.IsPublic() && key.Use != "enc" {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("the issuer has no key that signs")
	}
	return keys, nil
}

// keySet is oidc.KeySet for one token. trouble is set when the keys could not be had, which says nothing of the token.
type keySet struct {
	issuer *issuer
	// running is where the token has a place; see Issuers.
	running chan struct{}
	trouble error
}

// VerifySignature implements oidc.KeySet. The issuer is asked again when it may have new keys.
func (k *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	s := k.issuer
	var algorithms []jose.SignatureAlgorithm
	for _, name := range algorithmNames() {
		algorithms = append(algorithms, jose.SignatureAlgorithm(name))
	}
	signed, err := jose.ParseSigned(token, algorithms)
	if err != nil {
		return nil, err
	}
	header := signed.Signatures[0].Protected
	if kind, _ := header.ExtraHeaders["typ"].(string); !slices.Contains([]string{"", "jwt", "at+jwt", "application/at+jwt"}, strings.ToLower(kind)) {
		// RFC 8725 section 3.11: what was signed for something else is no access token.
		return nil, fmt.Errorf("its type is %q", kind)
	}
	payload, known, fresh := s.verify(signed)
	switch {
	case payload != nil && fresh:
		return payload, nil
	case payload == nil && known && fresh && header.KeyID != "":
		return nil, errors.New("its signature is wrong")
	}
	if err := k.renew(ctx, payload != nil); err != nil && payload == nil {
		k.trouble = err
		return nil, err
	}
	if payload, known, _ = s.verify(signed); payload != nil {
		return payload, nil
	}
	if known {
		return nil, errors.New("its signature is wrong")
	}
	return nil, fmt.Errorf("the issuer has no key %q for %s", header.KeyID, header.Algorithm)
}

// renew looks for newer keys. With known the keys of before are good as long as there are no others, and nobody waits for who asks already.
func (k *keySet) renew(ctx context.Context, known bool) error {
	s := k.issuer
	// Who needs nothing of the issuer is not to wait for those who do.
	<-k.running
	defer func() { k.running <- struct{}{} }()
	if known {
		select {
		case s.asking <- struct{}{}:
		default:
			return nil
		}
	} else {
		select {
		case s.asking <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("the issuer does not answer: %w", ctx.Err())
		}
	}
	defer func() { <-s.asking }()
	return s.refresh(ctx, known)
}

// verify gives what is signed, nil when that is by none of the keys; known tells that there are some that could be its, fresh that they were looked
// at lately.
func (s *issuer) verify(signed *jose.JSONWebSignature) (payload []byte, known, fresh bool) {
	s.mu.Lock()
	keys := s.keys
	fresh = s.now().Sub(s.fetched) < keysLife
	s.mu.Unlock()
	header := signed.Signatures[0].Protected
	for _, key := range keys {
		if header.KeyID != "" && key.KeyID != header.KeyID || key.Algorithm != "" && key.Algorithm != header.Algorithm {
			continue
		}
		known = true
		if payload, err := signed.Verify(&key); err == nil {
			return payload, true, fresh
		}
	}
	return nil, known, fresh
}
