// Package issuer is for tests: an issuer of OAuth 2.0 tokens as OpenID Connect has it, over TLS on loopback, with discovery, keys that change,
// introspection and a token endpoint. It must not know anything of Indigo.
package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Client and Secret are who may ask about tokens and renew them.
const (
	Client = "indigo+test"
	Secret = "s3cret:of+the/client"
)

// Paths of the issuer.
const (
	Discovery     = "/.well-known/openid-configuration"
	Keys          = "/keys"
	Introspection = "/introspect"
	TokenEndpoint = "/token"
)

// Issuer is one. Its fields are set at once; Close ends it.
type Issuer struct {
	// URL is what tokens name, CA a file with the authority of its certificate.
	URL, CA string
	// Now is what tokens are dated by.
	Now func() time.Time

	server *httptest.Server
	mu     sync.Mutex
	// keys are what is published, the last one signs.
	keys   []jose.JSONWebKey
	number int
	// opaque are the tokens that introspection knows, refresh the refresh tokens that are good, with the claims of what they get.
	opaque  map[string]map[string]any
	refresh map[string]map[string]any
	// renews tells that each refresh token is good once.
	renews   bool
	answer   func(w http.ResponseWriter, r *http.Request) (done bool)
	requests map[string]int
}

// Start starts an issuer; the file of its authority is put into dir.
func Start(dir string) (*Issuer, error) {
	i := &Issuer{Now: time.Now, opaque: map[string]map[string]any{}, refresh: map[string]map[string]any{}, requests: map[string]int{}}
	i.server = httptest.NewUnstartedServer(i)
	i.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	i.server.StartTLS()
	i.URL, i.CA = i.server.URL, filepath.Join(dir, "issuer-ca.pem")
	i.Rotate()
	return i, os.WriteFile(i.CA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.server.Certificate().Raw}), 0o644)
}

// Close ends it.
func (i *Issuer) Close() { i.server.Close() }

// Rotate makes a new key, which signs from now on, and forgets all others.
func (i *Issuer) Rotate() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.number++
	i.keys = []jose.JSONWebKey{{Key: key, KeyID: fmt.Sprintf("key%d", i.number), Algorithm: string(jose.ES256), Use: "sig"}}
}

// Publish adds a key, which need not be one that signs.
func (i *Issuer) Publish(key jose.JSONWebKey) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = append([]jose.JSONWebKey{key}, i.keys...)
}

// Answer has answer asked before each request; nil asks nobody.
func (i *Issuer) Answer(answer func(w http.ResponseWriter, r *http.Request) (done bool)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.answer = answer
}

// Down is for Answer: everything fails.
func Down(w http.ResponseWriter, _ *http.Request) bool {
	http.Error(w, "down", http.StatusServiceUnavailable)
	return true
}

// Requests tells how often a path was asked for.
func (i *Issuer) Requests(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.requests[path]
}

// Claims are those of a token for "mail", of address, good for an hour; changes go over them, nil removes one.
func (i *Issuer) Claims(address string, changes map[string]any) map[string]any {
	now := i.Now()
	claims := map[string]any{
		"iss": i.URL, "aud": []string{"mail", "other"}, "azp": "phone", "sub": "1", "email": address, "scope": "openid mail",
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	return claims
}

// Token signs claims by the key of now.
func (i *Issuer) Token(address string, changes map[string]any) string {
	i.mu.Lock()
	key := i.keys[len(i.keys)-1]
	i.mu.Unlock()
	return Sign(jose.SigningKey{Algorithm: jose.ES256, Key: key}, "JWT", i.Claims(address, changes))
}

// Sign makes a JWT.
func Sign(key jose.SigningKey, kind string, claims map[string]any) string {
	signer, err := jose.NewSigner(key, (&jose.SignerOptions{}).WithType(jose.ContentType(kind)))
	if err != nil {
		panic(err)
	}
	text, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	signed, err := signer.Sign(text)
	if err != nil {
		panic(err)
	}
	compact, err := signed.CompactSerialize()
	if err != nil {
		panic(err)
	}
	return compact
}

// Unsigned makes a JWT of "alg":"none".
func Unsigned(claims map[string]any) string {
	text, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString(text) + "."
}

// PublicKey gives the key that signs, as everybody may read it.
func (i *Issuer) PublicKey() crypto.PublicKey {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keys[len(i.keys)-1].Public().Key
}

// Opaque makes a token that only introspection tells something of.
func (i *Issuer) Opaque(address string, changes map[string]any) string {
	token := rand.Text()
	claims := i.Claims(address, map[string]any{"active": true, "token_type": "Bearer", "client_id": "phone", "azp": nil})
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	i.mu.Lock()
	defer i.mu.Unlock()
	i.opaque[token] = claims
	return token
}

// Revoke ends an opaque token.
func (i *Issuer) Revoke(token string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.opaque, token)
}

// Refresh makes a refresh token for tokens of address; once tells that each is good once, and gets another.
func (i *Issuer) Refresh(address string, once bool) string {
	token := rand.Text()
	claims := i.Claims(address, nil)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.refresh[token], i.renews = claims, once
	return token
}

// ServeHTTP is http.Handler's.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.requests[r.URL.Path]++
	answer := i.answer
	i.mu.Unlock()
	if answer != nil && answer(w, r) {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	say := func(answer any) {
		w.Header().Set("Content-Type", "application/json")
		// The client may be gone.
		_ = json.NewEncoder(w).Encode(answer)
	}
	switch r.URL.Path {
	case Discovery:
		say(map[string]any{
			"issuer": i.URL, "jwks_uri": i.URL + Keys, "introspection_endpoint": i.URL + Introspection, "token_endpoint": i.URL + TokenEndpoint,
			"authorization_endpoint": i.URL + "/authorize", "id_token_signing_alg_values_supported": []string{"RS256"},
		})
	case Keys:
		var set jose.JSONWebKeySet
		for _, k := range i.keys {
			if public := k.Public(); public.Key != nil {
				k = public
			}
			set.Keys = append(set.Keys, k)
		}
		say(set)
	case Introspection:
		if !authorized(r) {
			http.Error(w, "who?", http.StatusUnauthorized)
			return
		}
		if claims := i.opaque[r.PostFormValue("token")]; claims != nil {
			say(claims)
			return
		}
		say(map[string]any{"active": false})
	case TokenEndpoint:
		i.renew(w, r, say)
	default:
		http.NotFound(w, r)
	}
}

func authorized(r *http.Request) bool {
	id, secret, ok := r.BasicAuth()
	// RFC 6749 section 2.3.1.
	return ok && id == url.QueryEscape(Client) && secret == url.QueryEscape(Secret)
}

func (i *Issuer) renew(w http.ResponseWriter, r *http.Request, say func(any)) {
	token := r.PostFormValue("refresh_token")
	claims := i.refresh[token]
	if !authorized(r) || claims == nil || r.PostFormValue("grant_type") != "refresh_token" {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		say(map[string]any{"error": "invalid_grant", "error_description": "no such token"})
		return
	}
	key := i.keys[len(i.keys)-1]
	answer := map[string]any{"access_token": Sign(jose.SigningKey{Algorithm: jose.ES256, Key: key}, "JWT", claims), "token_type": "Bearer", "expires_in": 3600}
	if i.renews {
		delete(i.refresh, token)
		next := rand.Text()
		i.refresh[next], answer["refresh_token"] = claims, next
	}
	say(answer)
}
