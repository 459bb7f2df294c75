package oauth

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	fake "github.com/indigomail/indigo/test/issuer"
)

// fixture is an issuer and who asks it, at a time that the test sets.
type fixture struct {
	*fake.Issuer
	*Issuers
	config Config
	mu     sync.Mutex
	now    time.Time
}

func (f *fixture) pass(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = f.now.Add(d)
}

func (f *fixture) clock() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func start(t *testing.T) *fixture {
	t.Helper()
	i, err := fake.Start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.Close)
	f := &fixture{Issuer: i, now: time.Now().Truncate(time.Second)}
	i.Now = f.clock
	f.Issuers = &Issuers{Dial: new(net.Dialer).DialContext, Now: f.clock, Running: make(chan struct{}, 4)}
	t.Cleanup(f.Issuers.Close)
	f.config = Config{Issuer: i.URL, Audiences: "mail post", Claim: "email", Scopes: "mail", Skew: time.Minute, CA: i.CA, Timeout: 10 * time.Second, Remember: time.Minute}
	return f
}

// says gives the user of a token, or what is wrong: "temporary: …" when that is not the token.
func (f *fixture) says(t *testing.T, c Config, token string) string {
	t.Helper()
	name, err := f.User(t.Context(), c, token)
	var refused *Refusal
	switch {
	case err != nil && strings.Contains(err.Error(), token) && token != "":
		t.Errorf("the token is in the error: %v", err)
		return ""
	case errors.As(err, &refused) && refused.Scope:
		return "scope: " + err.Error()
	case errors.As(err, &refused):
		return err.Error()
	case err != nil:
		return "temporary: " + err.Error()
	}
	return name
}

func (f *fixture) want(t *testing.T, c Config, token, want string) {
	t.Helper()
	if got := f.says(t, c, token); !strings.Contains(got, want) {
		t.Errorf("%s, not %q", got, want)
	}
}

// TestSigned: JWTs that are good and all that may be wrong with one.
func TestSigned(t *testing.T) {
	f := start(t)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	otherRSA, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(f.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	key := func(alg jose.SignatureAlgorithm, k any, id string) jose.SigningKey {
		return jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: k, KeyID: id}}
	}
	claims := f.Claims("ann@here.test", nil)
	at := func(d time.Duration) int64 { return f.clock().Add(d).Unix() }
	with := func(changes map[string]any) string { return f.Token("ann@here.test", changes) }
	good := with(nil)
	for name, c := range map[string]struct{ token, want string }{
		"good":                        {good, "ann@here.test"},
		"one audience as text":        {with(map[string]any{"aud": "post"}), "ann@here.test"},
		"scopes of Microsoft":         {with(map[string]any{"scope": nil, "scp": "a mail"}), "ann@here.test"},
		"scopes as a list":            {with(map[string]any{"scope": []string{"a", "mail"}}), "ann@here.test"},
		"address verified":            {with(map[string]any{"email_verified": true}), "ann@here.test"},
		"expired within the skew":     {with(map[string]any{"exp": at(-59 * time.Second)}), "ann@here.test"},
		"not yet, within the skew":    {with(map[string]any{"nbf": at(time.Minute)}), "ann@here.test"},
		"fractions of a second":       {with(map[string]any{"exp": float64(at(time.Hour)) + 0.5}), "ann@here.test"},
		"audience":                    {with(map[string]any{"aud": "shop"}), `audience is ["shop"]`},
		"no audience":                 {with(map[string]any{"aud": nil}), "audience is []"},
		"issuer":                      {with(map[string]any{"iss": "https://evil.test"}), "its issuer is"},
		"issuer with a slash":         {with(map[string]any{"iss": f.URL + "/"}), "its issuer is"},
		"expired":                     {with(map[string]any{"exp": at(-time.Minute)}), "it expired at"},
		"not yet":                     {with(map[string]any{"nbf": at(time.Minute + time.Second)}), "not good before"},
		"no end":                      {with(map[string]any{"exp": nil}), "no exp"},
		"end is no time":              {with(map[string]any{"exp": "tomorrow"}), "refused"},
		"end beyond all time":         {with(map[string]any{"exp": 1e300}), "refused"},
		"no scope":                    {with(map[string]any{"scope": "openid"}), "scope: token refused: it lacks the scope mail"},
		"no claim":                    {with(map[string]any{"email": nil}), `no claim "email" that names its user; there are aud, azp, exp`},
		"claim is a list":             {with(map[string]any{"email": []string{"ann@here.test"}}), "no claim"},
		"claim with a line end":       {with(map[string]any{"email": "ann@here.test\r\nx"}), "is no name"},
		"claim without an end":        {with(map[string]any{"email": strings.Repeat("a", 513)}), "is no name"},
		"address not verified":        {with(map[string]any{"email_verified": false}), "has not verified"},
		"address verified by a text":  {with(map[string]any{"email_verified": "true"}), "ann@here.test"},
		"address verified by nothing": {with(map[string]any{"email_verified": 1}), "has not verified"},
		"bound to a key":              {with(map[string]any{"cnf": map[string]string{"jkt": "x"}}), "bound to a key"},
		"alg none":                    {fake.Unsigned(claims), "refused"},
		"alg none with a signature":   {fake.Unsigned(claims) + good[strings.LastIndex(good, ".")+1:], "refused"},
		"HS256 by the public key":     {fake.Sign(key(jose.HS256, public, "key1"), "JWT", claims), "refused"},
		"HS256 by the PEM":            {fake.Sign(key(jose.HS256, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), "key1"), "JWT", claims), "refused"},
		"other key":                   {fake.Sign(key(jose.ES256, other, "key1"), "JWT", claims), "signature is wrong"},
		"other key of another kind":   {fake.Sign(key(jose.RS256, otherRSA, "key1"), "JWT", claims), `no key "key1" for RS256`},
		"unknown key":                 {fake.Sign(key(jose.ES256, other, "key9"), "JWT", claims), `no key "key9"`},
		"a key without a name":        {fake.Sign(key(jose.ES256, other, ""), "JWT", claims), "signature is wrong"},
		"a log-out token":             {fake.Sign(key(jose.ES256, other, "key1"), "logout+jwt", claims), `type is "logout+jwt"`},
		"claims changed":              {strings.Split(good, ".")[0] + "." + strings.Split(with(map[string]any{"email": "bob@here.test"}), ".")[1] + "." + strings.Split(good, ".")[2], "signature is wrong"},
		"not a JWT":                   {"mysterious", "no signed JWT"},
		"three parts of nothing":      {"..", "refused"},
		"JSON in the compact's place": {`{"payload":"a.b.c"}`, "no signed JWT"},
		"empty":                       {"", "0 bytes"},
		"long":                        {strings.Repeat("a.", MaxToken), "18432 bytes"},
	} {
		t.Run(name, func(t *testing.T) { f.want(t, f.config, c.token, c.want) })
	}
	if n := f.Requests(fake.Keys); n != 1 {
		t.Errorf("the keys were fetched %d times within %s", n, keysAge)
	}
	if long := with(map[string]any{"x": strings.Repeat("x", 6000)}); len(long) < 8192 || f.says(t, f.config, long) != "ann@here.test" {
		t.Errorf("a token of %d bytes is refused", len(long))
	}
}

// TestClients: whom a token was given to; all names of it must agree.
func TestClients(t *testing.T) {
	f := start(t)
	f.config.Audiences, f.config.Clients = "", "phone desk"
	for _, c := range []struct {
		changes map[string]any
		want    string
	}{
		{nil, "ann@here.test"},
		{map[string]any{"azp": nil, "client_id": "desk"}, "ann@here.test"},
		{map[string]any{"azp": nil, "appid": "desk"}, "ann@here.test"},
		{map[string]any{"azp": "shop"}, `client ["shop"]`},
		{map[string]any{"client_id": "shop"}, `client ["phone" "shop"]`},
		{map[string]any{"azp": nil}, "client []"},
	} {
		f.want(t, f.config, f.Token("ann@here.test", c.changes), c.want)
	}
	f.config.Claim = "preferred_username"
	f.want(t, f.config, f.Token("x@y.test", map[string]any{"preferred_username": "ann", "email_verified": false}), "ann")
}

// TestRotation: new keys are found, and old ones that are published no more are good no longer than keysLife.
func TestRotation(t *testing.T) {
	f := start(t)
	old := f.Token("ann@here.test", map[string]any{"exp": f.clock().Add(10 * time.Hour).Unix()})
	f.want(t, f.config, old, "ann@here.test")
	f.Rotate()
	fresh := f.Token("bob@here.test", nil)
	f.want(t, f.config, fresh, `no key "key2"`) // the issuer was asked a moment ago
	f.pass(keysAge)
	f.want(t, f.config, fresh, "bob@here.test")
	f.want(t, f.config, old, `no key "key1"`)
	if n := f.Requests(fake.Keys); n != 2 {
		t.Errorf("the keys were fetched %d times", n)
	}
	// Without a new name, too.
	f.pass(keysLife)
	f.Rotate()
	f.want(t, f.config, fresh, `no key "key2"`)
}

// TestDown: the issuer's failures are no refusals, it is asked again, and keys that are known stay good.
func TestDown(t *testing.T) {
	f := start(t)
	token := f.Token("ann@here.test", map[string]any{"exp": f.clock().Add(10 * time.Hour).Unix()})
	f.Answer(fake.Down)
	f.want(t, f.config, token, "temporary: the issuer's description "+f.URL+fake.Discovery+": 503")
	f.Answer(nil)
	f.want(t, f.config, token, "temporary: ") // asked a moment ago
	f.pass(keysAge)
	f.want(t, f.config, token, "ann@here.test")
	f.Answer(fake.Down)
	f.pass(keysLife)
	f.want(t, f.config, token, "ann@here.test")
	n := f.Requests(fake.Discovery)
	f.want(t, f.config, token, "ann@here.test")
	if again := f.Requests(fake.Discovery); again != n {
		t.Errorf("an issuer that is down is asked for each token")
	}
	f.pass(keysAge)
	f.Issuers.Close()
	f.want(t, f.config, token, "temporary: ")
	for name, answer := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"no JSON": func(w http.ResponseWriter, _ *http.Request) bool { fmt.Fprint(w, "<html>"); return true },
		"without an end": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Write(bytes.Repeat([]byte(" "), 2<<20))
			return true
		},
		"sends on": func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "/x", http.StatusFound)
			return true
		},
		"another issuer": func(w http.ResponseWriter, _ *http.Request) bool {
			fmt.Fprint(w, `{"issuer":"https://evil.test"}`)
			return true
		},
		"keys by http": func(w http.ResponseWriter, _ *http.Request) bool {
			fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":"http://127.0.0.1/"}`, f.URL)
			return true
		},
		"keys from elsewhere": func(w http.ResponseWriter, _ *http.Request) bool {
			fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":"file:///etc/passwd"}`, f.URL)
			return true
		},
		"no keys": func(w http.ResponseWriter, r *http.Request) bool {
			fmt.Fprint(w, `{"keys":[]}`)
			return r.URL.Path == fake.Keys
		},
	} {
		f.Answer(func(w http.ResponseWriter, r *http.Request) bool {
			if name == "no keys" && r.URL.Path != fake.Keys {
				return false
			}
			return answer(w, r)
		})
		f.Issuers.Close()
		if got := f.says(t, f.config, token); !strings.HasPrefix(got, "temporary: ") || len(got) > 500 {
			t.Errorf("%s: %s", name, got)
		}
	}
	f.Issuer.Close()
	f.Issuers.Close()
	f.want(t, f.config, token, "temporary: ")
}

// TestSameName: a key that has another's name is found when the keys are old, and bad signatures do not have the issuer asked.
func TestSameName(t *testing.T) {
	f := start(t)
	named := func(address string, key *ecdsa.PrivateKey) string {
		f.Publish(jose.JSONWebKey{Key: key.Public(), KeyID: "same", Algorithm: string(jose.ES256), Use: "sig"})
		return fake.Sign(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "same"}}, "JWT", f.Claims(address, map[string]any{"exp": f.clock().Add(10 * time.Hour).Unix()}))
	}
	make := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	f.want(t, f.config, named("ann@here.test", make()), "ann@here.test")
	f.Rotate()
	fresh := named("bob@here.test", make())
	n := f.Requests(fake.Keys)
	f.pass(keysAge)
	f.want(t, f.config, fresh, "its signature is wrong")
	if again := f.Requests(fake.Keys); again != n {
		t.Errorf("the keys were fetched %d times for a bad signature", again-n)
	}
	f.pass(keysLife)
	f.want(t, f.config, fresh, "bob@here.test")
}

// TestSlow: an issuer that does not answer costs no more than the time limit.
func TestSlow(t *testing.T) {
	f := start(t)
	done := make(chan struct{})
	f.Answer(func(http.ResponseWriter, *http.Request) bool { <-done; return true })
	defer close(done)
	f.config.Timeout = 50 * time.Millisecond
	began := time.Now()
	f.want(t, f.config, f.Token("ann@here.test", nil), "temporary: ")
	f.config.Introspection, f.config.ClientID, f.config.Secret = f.URL+fake.Introspection, fake.Client, fake.Secret
	f.want(t, f.config, "opaque", "temporary: ")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}

// TestUnknownKeyWhileSlow: who has a key that is known waits for nobody whose key is not.
func TestUnknownKeyWhileSlow(t *testing.T) {
	f := start(t)
	good := f.Token("ann@here.test", nil)
	f.want(t, f.config, good, "ann@here.test")
	f.pass(keysAge)
	f.Rotate()
	fresh := f.Token("bob@here.test", nil)
	asked, answer := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.Answer(func(http.ResponseWriter, *http.Request) bool {
		once.Do(func() { close(asked) })
		<-answer
		return false
	})
	var wait sync.WaitGroup
	wait.Go(func() { f.want(t, f.config, fresh, "bob@here.test") })
	<-asked
	f.want(t, f.config, good, "ann@here.test")
	close(answer)
	wait.Wait()
}

// TestPlacesWhileSlow: tokens that wait for an issuer that does not answer leave their places to those whose keys are known.
func TestPlacesWhileSlow(t *testing.T) {
	f := start(t)
	good := f.Token("ann@here.test", nil)
	f.want(t, f.config, good, "ann@here.test")
	f.pass(keysAge)
	f.Rotate()
	fresh := f.Token("bob@here.test", nil)
	answer := make(chan struct{})
	f.Answer(func(http.ResponseWriter, *http.Request) bool { <-answer; return false })
	var wait sync.WaitGroup
	began := make(chan struct{}, 3*cap(f.Running))
	for range cap(began) {
		wait.Go(func() {
			began <- struct{}{}
			f.want(t, f.config, fresh, "bob@here.test")
		})
	}
	for range cap(began) {
		<-began
	}
	for range 100 {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		name, err := f.User(ctx, f.config, good)
		cancel()
		if name != "ann@here.test" {
			t.Error(name, err)
			break
		}
	}
	close(answer)
	wait.Wait()
}

// TestReload: the file of authorities is read again, answers are asked for again, and keys stay while the issuer is down.
func TestReload(t *testing.T) {
	f := start(t)
	good := f.Token("ann@here.test", nil)
	trusted, err := os.ReadFile(f.CA)
	if err != nil {
		t.Fatal(err)
	}
	certificate := func(text []byte) {
		t.Helper()
		if err := os.WriteFile(f.CA, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Of an authority that has signed nothing here.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{SerialNumber: big.NewInt(1)}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	f.want(t, f.config, good, "temporary: ")
	certificate(trusted)
	f.pass(keysAge)
	f.want(t, f.config, good, "temporary: ")
	f.Reload()
	f.pass(keysAge)
	f.want(t, f.config, good, "ann@here.test")
	f.Answer(fake.Down)
	f.Reload()
	f.want(t, f.config, good, "ann@here.test")
	f.Answer(nil)
	c := f.config
	c.Introspection, c.ClientID, c.Secret = f.URL+fake.Introspection, fake.Client, fake.Secret
	opaque := f.Opaque("ann@here.test", nil)
	f.want(t, c, opaque, "ann@here.test")
	f.Revoke(opaque)
	f.want(t, c, opaque, "ann@here.test")
	f.Reload()
	f.want(t, c, opaque, "not active")
}

// TestUntrusted: neither another authority's certificate nor clear text.
func TestUntrusted(t *testing.T) {
	f := start(t)
	c := f.config
	c.CA = ""
	f.want(t, c, f.Token("ann@here.test", nil), "temporary: ")
	for name, change := range map[string]func(*Config){
		"http":               func(c *Config) { c.Issuer = "http://id.example.org" },
		"OAUTH_LOOPBACK=1":   func(c *Config) { c.Issuer = "http://127.0.0.1:1" },
		"not https":          func(c *Config) { c.Issuer = "http://id.example.org"; c.Loopback = true },
		"no URL":             func(c *Config) { c.Issuer = "https:" },
		"OAUTH_AUDIENCE":     func(c *Config) { c.Audiences = " " },
		"_SECRET_FILE":       func(c *Config) { c.Introspection = c.Issuer },
		"not https: anybody": func(c *Config) { c.Introspection = "http://192.0.2.1/" },
		"no certificate":     func(c *Config) { c.CA = "oauth_test.go" },
		"no such file":       func(c *Config) { c.CA = "nothing" },
	} {
		c := f.config
		change(&c)
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), name) && name != "http" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, url := range []string{"http://127.0.0.1:1", "http://[::1]:1/x", "http://localhost"} {
		c := f.config
		if c.Issuer, c.Loopback = url, true; c.Check() != nil {
			t.Errorf("%s: %v", url, c.Check())
		}
	}
}

// TestKeysOfAllKinds: a key that is no public one for signatures is of no use, and does not make others useless.
func TestKeysOfAllKinds(t *testing.T) {
	f := start(t)
	f.Publish(jose.JSONWebKey{Key: []byte("everybody can read this secret.."), KeyID: "shared", Algorithm: string(jose.HS256)})
	f.want(t, f.config, f.Token("ann@here.test", nil), "ann@here.test")
	stolen := fake.Sign(jose.SigningKey{Algorithm: jose.HS256, Key: jose.JSONWebKey{Key: []byte("everybody can read this secret.."), KeyID: "shared"}}, "JWT", f.Claims("ann@here.test", nil))
	f.want(t, f.config, stolen, "token refused")
	keys, err := parseKeys([]byte(`{"keys":[{"kty":"new"},{"kty":"EC","crv":"P-256","x":"!"},{"kty":"RSA","use":"enc","n":"AQAB","e":"AQAB"},{"kty":"OKP","crv":"Ed25519","kid":"e","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`))
	if err != nil || len(keys) != 1 || keys[0].KeyID != "e" {
		t.Errorf("%v %v", keys, err)
	}
}

// TestIntrospection: opaque tokens, and how long an answer is believed.
func TestIntrospection(t *testing.T) {
	f := start(t)
	c := f.config
	c.Introspection, c.ClientID, c.Secret = f.URL+fake.Introspection, fake.Client, fake.Secret
	with := func(changes map[string]any) string { return f.Opaque("ann@here.test", changes) }
	for name, one := range map[string]struct{ token, want string }{
		"good":            {with(nil), "ann@here.test"},
		"without an end":  {with(map[string]any{"exp": nil}), "ann@here.test"},
		"unknown":         {"nobody's", "not active"},
		"not active":      {with(map[string]any{"active": false}), "not active"},
		"active, a text":  {with(map[string]any{"active": "true"}), "not active"},
		"another type":    {with(map[string]any{"token_type": "DPoP"}), `it is a "DPoP"`},
		"another issuer":  {with(map[string]any{"iss": "https://evil.test"}), "issuer is"},
		"audience":        {with(map[string]any{"aud": "shop"}), "audience is"},
		"expired":         {with(map[string]any{"exp": 1}), "it expired"},
		"scope":           {with(map[string]any{"scope": ""}), "scope: "},
		"nobody is named": {with(map[string]any{"email": nil}), "no claim"},
	} {
		t.Run(name, func(t *testing.T) { f.want(t, c, one.token, one.want) })
	}
	token := with(nil)
	f.want(t, c, token, "ann@here.test")
	n := f.Requests(fake.Introspection)
	f.want(t, c, token, "ann@here.test")
	f.Revoke(token)
	f.pass(c.Remember - time.Second)
	f.want(t, c, token, "ann@here.test")
	if again := f.Requests(fake.Introspection); again != n {
		t.Errorf("the same token is asked about again")
	}
	f.pass(time.Second)
	f.want(t, c, token, "not active")
	// Never longer than the token's own end.
	c.Skew = 0
	short := with(map[string]any{"exp": f.clock().Add(10 * time.Second).Unix()})
	f.want(t, c, short, "ann@here.test")
	f.pass(10 * time.Second)
	f.want(t, c, short, "it expired")
	// A failure is not remembered, and says nothing of the token.
	token = with(nil)
	f.Answer(fake.Down)
	f.want(t, c, token, "temporary: ")
	f.Answer(func(w http.ResponseWriter, _ *http.Request) bool { fmt.Fprint(w, "null"); return true })
	f.want(t, c, token, "temporary: ")
	f.Answer(nil)
	f.want(t, c, token, "ann@here.test")
	c.Secret = "wrong"
	f.want(t, c, token, "temporary: the issuer's introspection "+c.Introspection+": 401")
}

// TestRemembered bounds what is remembered of tokens and of issuers.
func TestRemembered(t *testing.T) {
	f := start(t)
	c := f.config
	c.Introspection, c.ClientID, c.Secret = f.URL+fake.Introspection, fake.Client, fake.Secret
	one, err := f.issuer(c)
	if err != nil {
		t.Fatal(err)
	}
	for n := range maxAnswers {
		one.answers[[32]byte{byte(n), byte(n >> 8)}] = answer{until: f.clock().Add(time.Duration(n%2) * time.Minute)}
	}
	f.want(t, c, f.Opaque("ann@here.test", nil), "ann@here.test")
	if len(one.answers) != maxAnswers/2+1 {
		t.Errorf("%d answers are kept, not those that are good", len(one.answers))
	}
	for n := range 2 * maxIssuers {
		c.Claim = fmt.Sprint("claim", n)
		if _, err := f.issuer(c); err != nil || len(f.all) > maxIssuers {
			t.Fatalf("%d issuers, %v", len(f.all), err)
		}
	}
}

// TestReport: one line a minute.
func TestReport(t *testing.T) {
	var log bytes.Buffer
	f := start(t)
	f.Logger = slog.New(slog.NewTextHandler(&log, nil))
	for range 3 {
		f.Report(errors.New("the issuer is down"))
	}
	f.pass(time.Minute)
	f.Report(errors.New("the issuer is down"))
	if n := strings.Count(log.String(), "the issuer is down"); n != 2 {
		t.Errorf("%d lines", n)
	}
}

// TestRunning: no more tokens are looked at at once than may be.
func TestRunning(t *testing.T) {
	f := start(t)
	for range cap(f.Running) {
		f.Running <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.User(ctx, f.config, f.Token("ann@here.test", nil)); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Error(err)
	}
}

// FuzzClaims gives arbitrary answers of an issuer: a name comes out of those alone that are an object with all that is wanted.
func FuzzClaims(f *testing.F) {
	now := time.Unix(1700000000, 0)
	for _, s := range []string{
		`{"active":true,"iss":"https://i.test","aud":"mail","exp":1700000100,"email":"ann@here.test","scope":"mail"}`,
		`{"active":true,"aud":["mail"],"exp":1e3,"email":"a"}`, `{"active":true,"nbf":-1}`, `{"active":"true"}`, `null`, `[]`, `{"active":true,"scp":[1],"aud":{}}`,
		`{"active":true,"aud":"mail","email":"ann@here.test","scope":"mail","cnf":null}`, `{"active":true,"email_verified":0,"aud":"mail","email":"x","scope":"mail"}`,
	} {
		f.Add([]byte(s))
	}
	c := Config{Issuer: "https://i.test", Audiences: "mail", Scopes: "mail", Claim: "email", Skew: time.Minute}
	f.Fuzz(func(t *testing.T, text []byte) {
		_, _ = parseKeys(text)
		var said claims
		if json.Unmarshal(text, &said) != nil {
			return
		}
		name, limit, err := c.introspect(said, now)
		var refused *Refusal
		switch {
		case err != nil && (!errors.As(err, &refused) || name != "" || len(err.Error()) > 700):
			t.Fatalf("%q %v", name, err)
		case err == nil && (name == "" || strings.ContainsAny(name, " \r\n\x00") || !slices.Contains(said.words("aud"), "mail") || !limit.IsZero() && !limit.After(now)):
			t.Fatalf("%q until %s of %q", name, limit, text)
		}
	})
}

// grants gives Grants over the fixture's clock, and a function that writes their file.
func grants(t *testing.T, f *fixture) (*Grants, string, func(refresh, secret string)) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	return &Grants{Dial: new(net.Dialer).DialContext, Now: f.clock}, file, func(refresh, secret string) {
		text := fmt.Sprintf("# of the tests\ntoken_endpoint %s%s\nclient_id %s\nclient_secret %s\nrefresh_token %s\nca %s\n", f.URL, fake.TokenEndpoint, fake.Client, secret, refresh, f.CA)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestGrants: a token is kept as long as it is good, renewed a minute before its end, and again when a server did not take it.
func TestGrants(t *testing.T) {
	f := start(t)
	g, file, write := grants(t, f)
	get := func() string {
		t.Helper()
		token, err := g.Token(t.Context(), file)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	write(f.Refresh("ann@here.test", false), fake.Secret)
	first := get()
	if f.says(t, f.config, first) != "ann@here.test" || get() != first || f.Requests(fake.TokenEndpoint) != 1 {
		t.Errorf("%q, asked for %d times", first, f.Requests(fake.TokenEndpoint))
	}
	// The end is told in seconds from the issuer's now, which is the real one.
	f.pass(time.Hour - renewBefore - 10*time.Second)
	if get(); f.Requests(fake.TokenEndpoint) != 1 {
		t.Error("renewed too early")
	}
	f.pass(20 * time.Second)
	if get(); f.Requests(fake.TokenEndpoint) != 2 {
		t.Error("not renewed before its end")
	}
	f.Issuers.Close()
	g.Forget(file)
	if get(); f.Requests(fake.TokenEndpoint) != 3 {
		t.Error("a token that was not taken is used again")
	}
}

// TestOnce: where each refresh token is good once, the next stands in the file before the token is used, and the rest of the file stays.
func TestOnce(t *testing.T) {
	f := start(t)
	g, file, write := grants(t, f)
	write(f.Refresh("ann@here.test", true), fake.Secret)
	before, _ := os.ReadFile(file)
	for range 3 {
		if _, err := g.Token(t.Context(), file); err != nil {
			t.Fatal(err)
		}
		after, err := os.ReadFile(file)
		if err != nil || bytes.Equal(before, after) || strings.Count(string(after), "\n") != strings.Count(string(before), "\n") || !bytes.HasPrefix(after, []byte("# of the tests\n")) {
			t.Errorf("%v\n%s", err, after)
		}
		if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
			t.Errorf("%v %v", info, err)
		}
		before = after
		g = &Grants{Dial: g.Dial, Now: g.Now} // another process
	}
	if all, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".*")); len(all) > 0 {
		t.Errorf("%q are left", all)
	}
	// Many deliveries at once use it once.
	n := f.Requests(fake.TokenEndpoint)
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			if _, err := g.Token(t.Context(), file); err != nil {
				t.Error(err)
			}
		})
	}
	if wait.Wait(); f.Requests(fake.TokenEndpoint) != n+1 {
		t.Errorf("%d requests", f.Requests(fake.TokenEndpoint)-n)
	}
}

// TestGrantFailures: what the issuer says, without a secret, and not asked again for each message; then what is wrong with files.
func TestGrantFailures(t *testing.T) {
	f := start(t)
	g, file, write := grants(t, f)
	write("wrong-token", fake.Secret)
	for range 2 {
		if _, err := g.Token(t.Context(), file); err == nil || !strings.Contains(err.Error(), "invalid_grant no such token") || strings.Contains(err.Error(), "wrong-token") {
			t.Error(err)
		}
	}
	n := f.Requests(fake.TokenEndpoint)
	write(f.Refresh("ann@here.test", false), fake.Secret)
	if _, err := g.Token(t.Context(), file); err != nil {
		t.Errorf("a file that was put right: %v", err)
	}
	f.Answer(fake.Down)
	f.pass(2 * time.Hour)
	for range 2 {
		if _, err := g.Token(t.Context(), file); err == nil || !strings.Contains(err.Error(), "503") {
			t.Error(err)
		}
	}
	f.Answer(nil)
	f.pass(grantRetry)
	if _, err := g.Token(t.Context(), file); err != nil {
		t.Errorf("an issuer that is back: %v", err)
	}
	if n == 0 {
		t.Error("nobody was asked")
	}
	for text, want := range map[string]string{
		"":                           "neither a token nor token_endpoint",
		"# x\n\n":                    "neither a token nor token_endpoint",
		"a b\n":                      "line 1: want",
		"tok\nother\n":               "line 2: want",
		"tok\nclient_id x\n":         "line 2: want",
		"client_id x\ntok\n":         "line 2: want",
		"client_id x\nclient_id y\n": "line 2: client_id stands there twice",
		"client_id x\ntoken_endpoint https://i.test/\n":                      "nor refresh_token",
		"client_id x\nrefresh_token y\ntoken_endpoint http://127.0.0.1/\n":   "not https",
		"client_id x\nrefresh_token y\ntoken_endpoint https://u:p@i.test/\n": "no URL",
		"tok\x01en\n":                       "no word",
		strings.Repeat("t", maxTokenFile+1): "more than",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Token(t.Context(), file); err == nil || !strings.Contains(err.Error(), want) || CheckGrant(file) == nil {
			t.Errorf("%.40q: %v", text, err)
		}
	}
	if err := os.WriteFile(file, []byte("# a token alone\ntok.en\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if token, err := g.Token(t.Context(), file); token != "tok.en" || err != nil || CheckGrant(file) != nil {
		t.Errorf("%q %v", token, err)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Token(t.Context(), file); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Error(err)
	}
	if _, err := g.Token(t.Context(), file+"x"); err == nil {
		t.Error("a file that is not there")
	}
}
