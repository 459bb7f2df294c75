package sasl

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/xdg-go/scram"
)

// users is a Store with clear text passwords; "down" cannot be asked about, "denied" is not let in.
type users map[string]Secrets

var errDown = errors.New("down")

func (u users) Authenticate(ctx context.Context, user, password string) error {
	if u[user].Clear == "" || u[user].Clear != password {
		return failed("wrong password")
	}
	return u.Admit(ctx, user)
}

func (u users) Secrets(_ context.Context, user string) (Secrets, error) {
	if user == "down" {
		return Secrets{}, errDown
	}
	return u[user], nil
}

func (u users) Admit(_ context.Context, user string) error {
	if _, ok := u[user]; !ok || user == "denied" {
		return failed("not let in")
	}
	return nil
}

func (users) Decoy(_ context.Context, user string) []byte {
	return []byte("key " + strings.ToLower(user))
}

func isFailed(err error) bool { return err != nil && strings.HasPrefix(err.Error(), "535 5.7.8 ") }

func TestPlainAndLogin(t *testing.T) {
	none := []byte(nil)
	bad := errors.New("535")
	for _, c := range []struct {
		name, mechanism string
		responses       [][]byte
		err             error
	}{
		{"plain", "PLAIN", [][]byte{[]byte("\x00u\x00p")}, nil},
		{"plain without initial response", "PLAIN", [][]byte{none, []byte("\x00u\x00p")}, nil},
		{"plain as itself", "PLAIN", [][]byte{[]byte("u\x00u\x00p")}, nil},
		{"plain as another", "PLAIN", [][]byte{[]byte("x\x00u\x00p")}, bad},
		{"plain wrong", "PLAIN", [][]byte{[]byte("\x00u\x00q")}, bad},
		{"plain denied", "PLAIN", [][]byte{[]byte("\x00denied\x00p")}, bad},
		{"plain short", "PLAIN", [][]byte{[]byte("u\x00p")}, ErrMalformed},
		{"plain empty", "PLAIN", [][]byte{{}}, ErrMalformed},
		{"plain long", "PLAIN", [][]byte{[]byte("\x00u\x00" + strings.Repeat("p", maxMessage))}, ErrMalformed},
		{"too long for all", "PLAIN", [][]byte{[]byte("\x00u\x00" + strings.Repeat("p", MaxResponse))}, ErrMalformed},
		{"login", "LOGIN", [][]byte{none, []byte("u"), []byte("p")}, nil},
		{"login with initial response", "LOGIN", [][]byte{[]byte("u"), []byte("p")}, nil},
		{"login wrong", "LOGIN", [][]byte{none, []byte("u"), []byte("x")}, bad},
		{"login long", "LOGIN", [][]byte{[]byte(strings.Repeat("u", maxName+1))}, ErrMalformed},
		{"cram with initial response", "CRAM-MD5", [][]byte{[]byte("u x")}, ErrMalformed},
		{"cram without a space", "CRAM-MD5", [][]byte{none, []byte("u")}, ErrMalformed},
		{"cram not hexadecimal", "CRAM-MD5", [][]byte{none, []byte("u xy")}, ErrMalformed},
		{"cram short", "CRAM-MD5", [][]byte{none, []byte("u ab")}, bad},
		{"cram empty", "CRAM-MD5", [][]byte{none, []byte("u ")}, bad},
		{"digest with initial response", "DIGEST-MD5", [][]byte{[]byte("x")}, ErrMalformed},
	} {
		s := New(c.mechanism, Config{Store: users{"u": {Clear: "p"}, "denied": {Clear: "p"}}, Host: "mx.test", Service: "smtp"})
		for i, r := range c.responses {
			_, done, err := s.Next(t.Context(), r)
			last := i == len(c.responses)-1
			fits := errors.Is(err, c.err) || c.err == bad && isFailed(err)
			if done != last || last && !fits || !last && err != nil {
				t.Errorf("%s: step %d: done %v, %v", c.name, i, done, err)
			}
		}
		if _, done, err := s.Next(t.Context(), c.responses[len(c.responses)-1]); !done || !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: goes on after its end: %v", c.name, err)
		}
	}
}

func TestNew(t *testing.T) {
	for _, name := range []string{"", "plain", "EXTERNAL", "ANONYMOUS", "OAUTHBEARER", "XOAUTH2", "SCRAM-SHA-224", "NTLM"} {
		if New(name, Config{Store: users{}}) != nil {
			t.Errorf("%q begins", name)
		}
	}
}

// talk lets client and server speak with each other; the server's error, or else the client's.
func talk(t testing.TB, server Server, client Client) error {
	t.Helper()
	response, err := client.Next(nil)
	for range 10 {
		if err != nil {
			return err
		}
		challenge, done, failure := server.Next(t.Context(), response)
		if done {
			if failure != nil {
				return failure
			}
			return client.Finish()
		}
		response, err = client.Next(challenge)
	}
	t.Fatal("no end")
	return nil
}

// TestBothSides: each mechanism, right and wrong.
func TestBothSides(t *testing.T) {
	store := users{
		"ann@here.test": {Clear: "p=ä,ss word"}, "bob@here.test": {}, "denied": {Clear: "pw"}, "a=b,c": {Clear: "pw"}, "bare": {Clear: "pw"},
		"jörg@here.test": {Clear: "\u2168"},
	}
	config := Config{
		Store: store, Host: "mx.here.test", Service: "imap",
		Token: func(ctx context.Context, user, token string) error {
			if token != "good" {
				return failed("bad token")
			}
			return store.Admit(ctx, user)
		},
		Anonymous: func(context.Context, string) error { return nil },
	}
	for _, mechanism := range append(Names(), "ANONYMOUS") {
		if mechanism == "EXTERNAL" || strings.HasSuffix(mechanism, "-PLUS") {
			continue
		}
		token := strings.Contains(mechanism, "OA")
		for _, c := range []struct {
			user, password, token, as string
			ok                        bool
		}{
			{"ann@here.test", "p=ä,ss word", "good", "", true},
			{"ann@here.test", "p=ä,ss word", "good", "ann@here.test", true},
			{"ann@here.test", "wrong", "bad", "", false},
			{"ann@here.test", "p=ä,ss word", "good", "bob@here.test", false},
			{"bob@here.test", "pw", "bad", "", false},
			{"nobody@here.test", "pw", "good", "", false},
			{"denied", "pw", "good", "", false},
			{"bare", "pw", "good", "", true},
			{"a=b,c", "pw", "good", "", true},
			{"jörg@here.test", "\u2168", "good", "", true},
		} {
			if c.as == "bob@here.test" && (token || mechanism == "LOGIN" || strings.HasPrefix(mechanism, "CRAM")) {
				continue // they have no authorization identity
			}
			client, err := NewClient(mechanism, Credentials{User: c.user, Password: c.password, Token: c.token, Authorization: c.as, Host: "mx.here.test", Service: "imap"})
			if err != nil {
				t.Fatal(err)
			}
			err = talk(t, New(mechanism, config), client)
			if want := c.ok || mechanism == "ANONYMOUS"; (err == nil) != want || err != nil && !isFailed(err) {
				t.Errorf("%s %s %s as %q: %v", mechanism, c.user, c.password, c.as, err)
			}
		}
		if mechanism == "PLAIN" || mechanism == "LOGIN" || token || mechanism == "ANONYMOUS" {
			continue
		}
		client, err := NewClient(mechanism, Credentials{User: "down", Password: "pw", Host: "h", Service: "imap"})
		if err != nil {
			t.Fatal(err)
		}
		if err := talk(t, New(mechanism, config), client); !errors.Is(err, errDown) {
			t.Errorf("%s: a store that cannot be asked: %v", mechanism, err)
		}
	}
}

// TestTokenRefusals: what a client is told of a token that is refused (RFC 7628 section 3.2.2), and that it may answer what it likes; what is
// temporary is no matter of the token.
func TestTokenRefusals(t *testing.T) {
	refused := func(scope bool) error {
		return &TokenRefusal{Scope: scope, Scopes: "mail", Configuration: "https://i.test/c", Err: failed("it is old")}
	}
	bearer, google := "n,a=u,\x01auth=Bearer t\x01\x01", "user=u\x01auth=Bearer t\x01\x01"
	for _, c := range []struct {
		mechanism, first string
		err              error
		want             string
	}{
		{"OAUTHBEARER", bearer, refused(false), `{"status":"invalid_token","scope":"mail","openid-configuration":"https://i.test/c"}`},
		{"OAUTHBEARER", bearer, refused(true), `{"status":"insufficient_scope","scope":"mail","openid-configuration":"https://i.test/c"}`},
		{"OAUTHBEARER", bearer, failed("no"), `{"status":"invalid_token"}`},
		{"XOAUTH2", google, refused(false), `{"status":"401","schemes":"bearer","scope":"mail","openid-configuration":"https://i.test/c"}`},
		{"XOAUTH2", google, refused(true), `{"status":"403","schemes":"bearer","scope":"mail","openid-configuration":"https://i.test/c"}`},
		{"OAUTHBEARER", bearer, errDown, ""},
		{"XOAUTH2", google, errDown, ""},
	} {
		for _, answer := range []string{"\x01", "", "x"} {
			s := New(c.mechanism, Config{Token: func(context.Context, string, string) error { return c.err }})
			challenge, done, err := s.Next(t.Context(), []byte(c.first))
			if c.want != "" {
				if done || err != nil {
					t.Fatalf("%s: no challenge: %v", c.mechanism, err)
				}
				_, done, err = s.Next(t.Context(), []byte(answer))
			}
			if string(challenge) != c.want || !done || !errors.Is(err, c.err) {
				t.Errorf("%s, %v: %s, %v, %v", c.mechanism, c.err, challenge, done, err)
			}
		}
	}
}

// TestSCRAMKeys: whom kept keys or the password itself let in, and that nobody else is, whether keys are derived for everybody or not.
func TestSCRAMKeys(t *testing.T) {
	kept, err := Keys("SCRAM-SHA-256", "p", scram.KeyFactors{Salt: "saltsaltsalt", Iters: Iterations})
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]scram.StoredCredentials{"SCRAM-SHA-256": kept}
	store := users{"keys": {SCRAM: keys}, "clear": {Clear: "p"}, "both": {Clear: "other", SCRAM: keys}, "bell": {Clear: "\a"}, "none": {}}
	for _, only := range []bool{false, true} {
		for _, c := range []struct {
			mechanism, user, password string
			in                        bool
		}{
			{"SCRAM-SHA-256", "keys", "p", true}, {"SCRAM-SHA-256", "keys", "q", false}, {"SCRAM-SHA-1", "keys", "p", false},
			{"SCRAM-SHA-256", "clear", "p", true}, {"SCRAM-SHA-1", "clear", "p", true}, {"SCRAM-SHA-1", "clear", "q", false},
			{"SCRAM-SHA-256", "both", "p", true}, {"SCRAM-SHA-512", "both", "other", true}, {"SCRAM-SHA-256", "both", "other", false},
			{"SCRAM-SHA-256", "bell", "p", false}, {"SCRAM-SHA-256", "none", "p", false}, {"SCRAM-SHA-256", "nobody", "p", false},
		} {
			client, err := NewClient(c.mechanism, Credentials{User: c.user, Password: c.password})
			if err != nil {
				t.Fatal(err)
			}
			err = talk(t, New(c.mechanism, Config{Store: store, KeysOnly: only}), client)
			if c.in != (err == nil) || err != nil && !isFailed(err) {
				t.Errorf("%s of %s by %q, keys only %v: %v", c.mechanism, c.user, c.password, only, err)
			}
		}
	}
}

func TestChoose(t *testing.T) {
	all := Names()
	for _, c := range []struct {
		offered, wanted      string
		tls, bindable, clear bool
		want                 string
	}{
		{"PLAIN LOGIN CRAM-MD5", "", false, false, false, "CRAM-MD5"},
		{"PLAIN LOGIN", "", false, false, false, ""},
		{"PLAIN LOGIN", "", false, false, true, "PLAIN"},
		{"LOGIN PLAIN", "", true, true, false, "PLAIN"},
		{"login", "", true, true, false, "LOGIN"},
		{"*", "", true, true, false, "SCRAM-SHA-512-PLUS"},
		{"*", "", true, false, false, "SCRAM-SHA-512"},
		{"*", "CRAM-MD5 CRAM-SHA256", true, false, false, "CRAM-SHA256"},
		{"OAUTHBEARER EXTERNAL", "", true, true, true, ""},
		{"OAUTHBEARER EXTERNAL", "OAUTHBEARER", true, true, true, "OAUTHBEARER"},
		{"NTLM", "", true, true, true, ""},
	} {
		offered, wanted := strings.Fields(c.offered), []string(nil)
		if c.offered == "*" {
			offered = all
		}
		if c.wanted != "" {
			wanted = strings.Fields(c.wanted)
		}
		if got, ok := Choose(offered, wanted, c.tls, c.bindable, c.clear); got != c.want || ok != (got != "") {
			t.Errorf("%s of %s: %q", c.wanted, c.offered, got)
		}
	}
}
