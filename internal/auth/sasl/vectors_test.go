package sasl

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xdg-go/scram"
)

func vectors[T any](t testing.TB, file string) T {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestCRAMVectors: RFC 2195 section 2 and others, by server and client.
func TestCRAMVectors(t *testing.T) {
	file := vectors[struct {
		Vectors []struct{ Mechanism, User, Password, Challenge, Response string }
	}](t, "cram.json")
	for i, v := range file.Vectors {
		c := &cram{config: Config{Store: users{v.User: {Clear: v.Password}}}, hash: cramHash(v.Mechanism), challenge: v.Challenge}
		_, next, err := c.answer(t.Context(), []byte(v.Response))
		// An empty password is none to us.
		if next != nil || (err == nil) != (v.Password != "") {
			t.Errorf("%d: %+v: %v", i, v, err)
		}
		wrong := []byte(v.Response)
		wrong[len(wrong)-1] ^= 1
		if _, _, err := c.answer(t.Context(), wrong); err == nil {
			t.Errorf("%d: a wrong response is right", i)
		}
		client := &cramClient{c: Credentials{User: v.User, Password: v.Password}, mechanism: v.Mechanism}
		if got, err := client.Next([]byte(v.Challenge)); string(got) != v.Response || err != nil {
			t.Errorf("%d: client: %q %v", i, got, err)
		}
	}
}

// TestDigestVectors: RFC 2831 section 4 and others.
func TestDigestVectors(t *testing.T) {
	file := vectors[struct {
		Vectors []struct {
			User, Realm, Password, Nonce, Cnonce, NC, QOP, Authzid, Response, Rspauth string
			URI                                                                       string `json:"digest_uri"`
		}
	}](t, "digest-md5.json")
	for i, v := range file.Vectors {
		a := digestAnswer{user: v.User, realm: v.Realm, nonce: v.Nonce, cnonce: v.Cnonce, count: v.NC, qop: v.QOP, uri: v.URI, authzid: v.Authzid}
		response, rspauth := hex.EncodeToString(a.sum(v.Password, "AUTHENTICATE:")), hex.EncodeToString(a.sum(v.Password, ":"))
		if response != v.Response || rspauth != v.Rspauth {
			t.Errorf("%d: %+v: %s %s", i, v, response, rspauth)
		}
	}
}

func TestDigestServer(t *testing.T) {
	store := users{"chris": {Clear: "secret"}, "chris@elsewhere.test": {Clear: "secret"}, "jörg": {Clear: "sécret"}}
	// change is what a response has otherwise than the RFC's.
	for _, c := range []struct {
		from, to, user, password string
		ok                       bool
	}{
		{"", "", "chris", "secret", true},
		{`realm="elwood.innosoft.com"`, `realm="Elwood.Innosoft.COM"`, "chris", "secret", true},
		{`realm="elwood.innosoft.com"`, `realm="elsewhere.test"`, "chris", "secret", true},
		{`realm="elwood.innosoft.com"`, `realm="nowhere.test"`, "chris", "secret", false},
		{`username="chris"`, `username="chris@elsewhere.test"`, "chris@elsewhere.test", "secret", true},
		{`username="chris"`, `username="jörg"`, "jörg", "sécret", true},
		{`username="chris"`, `username="j` + "\xf6" + `rg"`, "jörg", "sécret", false},
		{`charset=utf-8,username="chris"`, `username="j` + "\xf6" + `rg"`, "jörg", "sécret", true},
		{`charset=utf-8`, `charset=latin1`, "chris", "secret", false},
		{"qop=auth,", "", "chris", "secret", true},
		{"qop=auth", "qop=auth-int", "chris", "secret", false},
		{"nc=00000001", "nc=00000002", "chris", "secret", false},
		{`nonce="OA6MG9tEQGm2hh"`, `nonce="other"`, "chris", "secret", false},
		{`cnonce="OA6MHXh6VqTrRk"`, `cnonce=""`, "chris", "secret", false},
		{"imap/", "smtp/", "chris", "secret", false},
		{"nc=", `authzid="chris",nc=`, "chris", "secret", true},
		{"nc=", `authzid="other",nc=`, "chris", "secret", false},
		{"nc=", `nc=00000001,nc=`, "chris", "secret", false},
		{"", "", "chris", "Secret", false},
	} {
		d := &digest{config: Config{Store: store, Host: "elwood.innosoft.com", Service: "imap"}, nonce: "OA6MG9tEQGm2hh"}
		message := strings.Replace(`charset=utf-8,username="chris",realm="elwood.innosoft.com",nonce="OA6MG9tEQGm2hh",nc=00000001,cnonce="OA6MHXh6VqTrRk",digest-uri="imap/elwood.innosoft.com",response=X,qop=auth,`, c.from, c.to, 1)
		if c.from != "" && !strings.Contains(message, c.to) {
			t.Fatal(c.from)
		}
		given := map[string]string{}
		_ = directives(message, func(k, v string) error { given[k] = v; return nil })
		a := digestAnswer{user: c.user, realm: given["realm"], nonce: given["nonce"], cnonce: given["cnonce"], count: given["nc"], qop: "auth", uri: given["digest-uri"], authzid: given["authzid"]}
		if given["qop"] != "" {
			a.qop = given["qop"]
		}
		message = strings.Replace(message, "response=X", fmt.Sprintf("response=%x", a.sum(c.password, "AUTHENTICATE:")), 1)
		challenge, next, err := d.answer(t.Context(), []byte(message))
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", message, err)
		}
		if err == nil {
			if _, _, err := next(t.Context(), nil); err != nil || string(challenge) != fmt.Sprintf("rspauth=%x", a.sum(c.password, ":")) {
				t.Errorf("%s: %s %v", message, challenge, err)
			}
		}
	}
}

func TestAPOPVector(t *testing.T) {
	file := vectors[struct {
		Vectors []struct{ Banner, Password, Digest string }
	}](t, "apop.json")
	for _, v := range file.Vectors {
		store := users{"mrose": {Clear: v.Password}}
		if err := APOP(t.Context(), store, v.Banner, "mrose", v.Digest); err != nil {
			t.Error(err)
		}
		if err := APOP(t.Context(), store, v.Banner, "mrose", strings.Repeat("0", 32)); !isFailed(err) {
			t.Error(err)
		}
		if err := APOP(t.Context(), store, v.Banner, "nobody", v.Digest); !isFailed(err) {
			t.Error(err)
		}
	}
}

type scramVector struct {
	Name, Mechanism, User, Password, Salt                      string
	Iterations                                                 int
	ClientFirst                                                string `json:"client_first"`
	ServerFirst                                                string `json:"server_first"`
	ClientFinal                                                string `json:"client_final"`
	ServerFinal                                                string `json:"server_final"`
	Binding                                                    string `json:"channel_binding_data"`
	SaltedPassword, StoredKey, ServerKey, PasswordAfterPrepare string
}

func scramVectors(t testing.TB) (all []scramVector) {
	file := vectors[struct{ Vectors []map[string]any }](t, "scram.json")
	raw := vectors[struct{ Vectors []scramVector }](t, "scram.json").Vectors
	for i, v := range raw {
		get := func(key string) string { s, _ := file.Vectors[i][key].(string); return s }
		v.SaltedPassword, v.StoredKey, v.ServerKey = get("salted_password"), get("stored_key"), get("server_key")
		// SHA-224 and SHA-384 have no registered mechanism.
		if scramHash(v.Mechanism) != nil {
			all = append(all, v)
		}
	}
	return all
}

func field(message, key string) string {
	for part := range strings.SplitSeq(message, ",") {
		if value, ok := strings.CutPrefix(part, key+"="); ok {
			return value
		}
	}
	return ""
}

// TestSCRAMVectors: RFC 5802 section 5, RFC 7677 section 3 and others, by server and client, with the password, with kept keys and
// with the salted password.
func TestSCRAMVectors(t *testing.T) {
	n := 0
	for _, v := range scramVectors(t) {
		n++
		salt, err := base64.StdEncoding.DecodeString(v.Salt)
		if err != nil {
			t.Fatal(err)
		}
		base := strings.TrimSuffix(v.Mechanism, "-PLUS")
		keys, err := Keys(base, v.Password, scram.KeyFactors{Salt: string(salt), Iters: v.Iterations})
		if err != nil || base64.StdEncoding.EncodeToString(keys.StoredKey) != v.StoredKey || base64.StdEncoding.EncodeToString(keys.ServerKey) != v.ServerKey {
			t.Errorf("%s: keys differ: %v", v.Name, err)
		}
		clientNonce, both := field(v.ClientFirst, "r"), field(v.ServerFirst, "r")
		user, _ := decodeName(field(v.ClientFirst, "n"))
		store := users{user: {SCRAM: map[string]scram.StoredCredentials{base: keys}}}
		header := v.ClientFirst[:strings.Index(v.ClientFirst, "n="+field(v.ClientFirst, "n"))]
		authzid := field(header, "a")
		binding := scram.ChannelBinding{Type: scram.ChannelBindingType(field(header, "p"))}
		if binding.Data, err = hex.DecodeString(v.Binding); err != nil {
			t.Fatal(err)
		}

		s := &scramServer{config: Config{Store: store}, mechanism: v.Mechanism, nonce: func() string { return strings.TrimPrefix(both, clientNonce) }}
		var next step
		var challenge []byte
		if binding.Type == "" {
			if challenge, next, err = s.first(t.Context(), []byte(v.ClientFirst)); err != nil || string(challenge) != v.ServerFirst {
				t.Errorf("%s: server first %q, %v", v.Name, challenge, err)
				continue
			}
			challenge, next, err = next(t.Context(), []byte(v.ClientFinal))
			switch {
			case authzid != "" && authzid != user:
				if !isFailed(err) {
					t.Errorf("%s: acts for another: %v", v.Name, err)
				}
			case err != nil || string(challenge) != v.ServerFinal:
				t.Errorf("%s: server final %q, %v", v.Name, challenge, err)
			default:
				if _, next, err = next(t.Context(), []byte{}); err != nil || next != nil {
					t.Errorf("%s: %v", v.Name, err)
				}
			}
		}

		salted, err := hex.DecodeString(v.SaltedPassword)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []Credentials{{User: user, Password: v.Password, Authorization: authzid}, {User: user, Salted: salted, Authorization: authzid}} {
			if v.Iterations < Iterations && c.Salted == nil {
				continue // it refuses
			}
			if binding.Type != "" {
				c.Bindings = []scram.ChannelBinding{binding}
			}
			client, err := newSCRAMClient(v.Mechanism, c)
			if err != nil {
				t.Errorf("%s: %v", v.Name, err)
				continue
			}
			m := client.(*scramClient)
			m.nonce = clientNonce
			if strings.HasPrefix(v.ClientFirst, "y,") {
				m.header = "y" + m.header[1:]
			}
			first, err1 := m.Next(nil)
			final, err2 := m.Next([]byte(v.ServerFirst))
			if err := m.Finish(); !errors.Is(err, ErrServer) {
				t.Errorf("%s: content with a server that proves nothing: %v", v.Name, err)
			}
			_, err3 := m.Next([]byte(v.ServerFinal))
			if string(first) != v.ClientFirst || string(final) != v.ClientFinal || errors.Join(err1, err2, err3, m.Finish()) != nil {
				t.Errorf("%s: client: %q %q %v %v %v", v.Name, first, final, err1, err2, err3)
			}
		}
	}
	if n < 30 {
		t.Errorf("only %d vectors", n)
	}
}

// begin makes a server that has had this first message.
func begin(t *testing.T, c Config, mechanism, first string) (*scramServer, step, string, error) {
	s := &scramServer{config: c, mechanism: mechanism, nonce: func() string { return "server" }}
	challenge, next, err := s.first(t.Context(), []byte(first))
	return s, next, string(challenge), err
}

func TestSCRAMRefusals(t *testing.T) {
	c := Config{Store: users{"u": {Clear: "pw"}}, Offered: []string{"SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"}, TLS: &tls.ConnectionState{}}
	for _, first := range []string{"", "n", "n,,", "n,,n=u", "x,,n=u,r=c", "n,,m=1,n=u,r=c", "n,,n=u=,r=c", "n,,n=,r=c", "n,,n=u,r=" + strings.Repeat("c", maxMessage), "n,x,n=u,r=c", "n,,n=\xff,r=c"} {
		if _, _, _, err := begin(t, c, "SCRAM-SHA-256", first); !errors.Is(err, ErrMalformed) {
			t.Errorf("%.40q: %v", first, err)
		}
	}
	for mechanism, first := range map[string]string{
		"SCRAM-SHA-256":      "y,,n=u,r=c",              // PLUS was offered
		"SCRAM-SHA-1":        "p=tls-exporter,,n=u,r=c", // not PLUS
		"SCRAM-SHA-256-PLUS": "n,,n=u,r=c",
		"SCRAM-SHA-1-PLUS":   "p=tls-unique,,n=u,r=c", // this connection has none
	} {
		if _, _, _, err := begin(t, c, mechanism, first); !isFailed(err) {
			t.Errorf("%s %s: %v", mechanism, first, err)
		}
	}
	c.Offered = nil
	if _, _, _, err := begin(t, c, "SCRAM-SHA-256", "y,,n=u,r=c"); err != nil {
		t.Errorf("y where no PLUS was offered: %v", err)
	}
	for _, final := range []string{"", "c=biws,r=cserver", "c=biws,r=cserver,p=", "c=biws,r=cserver,p=AAAA", "c=biws,r=cserver,p=!", "c=biws,r=other,p=AAAA", "c=eSws,r=cserver,p=AAAA", "c=biws,r=cserver,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="} {
		_, next, _, err := begin(t, c, "SCRAM-SHA-256", "n,,n=u,r=c")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := next(t.Context(), []byte(final)); !isFailed(err) && !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v", final, err)
		}
	}
}

// TestSCRAMUnknown: one who is unknown looks like one whose clear text is kept, each time.
func TestSCRAMUnknown(t *testing.T) {
	c := Config{Store: users{"u": {Clear: "pw"}, "none": {}}}
	for _, mechanism := range []string{"SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		seen := map[string]bool{}
		for _, user := range []string{"u", "none", "nobody"} {
			_, next, first, err := begin(t, c, mechanism, "n,,n="+user+",r=c")
			_, _, again, err2 := begin(t, c, mechanism, "n,,n="+strings.ToUpper(user[:1])+user[1:]+",r=c")
			if err != nil || err2 != nil || user != "u" && first != again || seen[first] || len(first) != len("r=cserver,s=AAAAAAAAAAAAAAAA,i=4096") || !strings.HasSuffix(first, ",i=4096") {
				t.Errorf("%s: %q %q %v %v", user, first, again, err, err2)
			}
			seen[first] = true
			if _, _, err := next(t.Context(), []byte("c=biws,r=cserver,p="+base64.StdEncoding.EncodeToString(make([]byte, scramHash(mechanism)().Size())))); !isFailed(err) {
				t.Error(err)
			}
		}
	}
}

func fuzzServer(f *testing.F, mechanism string, seeds ...string) {
	for _, s := range seeds {
		f.Add([]byte(s), []byte("x"))
	}
	c := Config{Store: users{"u": {Clear: "pw"}}, Host: "h", Service: "imap", Token: func(context.Context, string, string) error { return failed("no") }}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		s := New(mechanism, c)
		for _, r := range [][]byte{first, second, {}, {}, {}} {
			if _, done, err := s.Next(t.Context(), r); done {
				if err == nil && (mechanism != "PLAIN" || string(first) != "\x00u\x00pw" && string(first) != "u\x00u\x00pw") && (mechanism != "LOGIN" || string(first) != "u" || string(second) != "pw") {
					t.Fatalf("%q %q log in", first, second)
				}
				return
			}
		}
		t.Fatal("no end")
	})
}

func FuzzPlain(f *testing.F) { fuzzServer(f, "PLAIN", "\x00u\x00p", "\x00\x00", "u\x00u\x00pw") }
func FuzzLogin(f *testing.F) { fuzzServer(f, "LOGIN", "u", "") }
func FuzzSCRAM(f *testing.F) {
	fuzzServer(f, "SCRAM-SHA-1", "n,,n=u,r=c", "y,a=u,n=u,r=c", "n,,n=a=2Cb,r=c,x=y")
}
func FuzzOAuth(f *testing.F) {
	fuzzServer(f, "OAUTHBEARER", "n,a=u@h,\x01host=h\x01auth=Bearer t\x01\x01", "n,,\x01\x01")
}
func FuzzXOAuth2(f *testing.F) { fuzzServer(f, "XOAUTH2", "user=u\x01auth=Bearer t\x01\x01") }

// The two whose server speaks first.
func FuzzAnswers(f *testing.F) {
	for _, s := range []string{"u 00", "u  ", `username="u",realm="h",nonce="n",nc=00000001,cnonce="c",digest-uri="imap/h",response=d388dad90d4bbd760a152321f2143af7,qop=auth`, `a="\`} {
		f.Add([]byte(s))
	}
	c := Config{Store: users{"u": {Clear: "pw"}}, Host: "h", Service: "imap"}
	f.Fuzz(func(t *testing.T, answer []byte) {
		for _, mechanism := range []string{"CRAM-MD5", "DIGEST-MD5"} {
			s := New(mechanism, c)
			if _, done, err := s.Next(t.Context(), nil); done || err != nil {
				t.Fatal(err)
			}
			if _, done, err := s.Next(t.Context(), answer); !done || err == nil {
				t.Fatalf("%q logs in", answer)
			}
		}
	})
}
