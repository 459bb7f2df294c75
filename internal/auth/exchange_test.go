package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/mailerr"
)

// people has users by their addresses.
type people map[string]directory.User

func (p people) User(_ context.Context, a addr.Address) (directory.User, error) {
	if a.Local == "broken" {
		return directory.User{}, errors.New("database is gone")
	}
	u, ok := p[a.Key()]
	if !ok {
		return u, directory.ErrNoUser
	}
	u.Name, u.Domain = a.Local, a.Domain
	return u, nil
}

func (people) AppPasswords(context.Context, addr.Address) ([]directory.AppPassword, error) {
	return nil, nil
}
func (people) InactiveUser(context.Context, addr.Address) (directory.User, error) {
	return directory.User{}, directory.ErrNoUser
}
func (people) ActivateUser(context.Context, addr.Address) error            { return directory.ErrNoUser }
func (people) AppPasswordUsed(context.Context, addr.Address, string) error { return nil }
func (people) RenewPassword(context.Context, directory.User, string, string, string) (bool, error) {
	return false, nil
}

// The wiki's stored forms (2627, 2667, 2700).
func wikiPeople() people {
	return people{
		"cram@d.example":  {Password: "{CRAM}pass3,$5$fbazeA/UC3RmSK15$V/GiMhfTuhRz1aUJv8QQvFt1qmFZrKgfw/4lK7d5KW0"},
		"scram@d.example": {Password: "{SCRAM-SHA-256}4096,HWvKDMG1R9hSSt/e,thk3p9gV604V9A2chgmW/ovPgucUtFRhHJgfeWi2pJ4=,IvIc99nIBYdKFqW+ZTz1Ioz5nIxWXJDegzPlkq41tic=,$5$7.Jwtq6QiQaLsguq$RXUJkrI5PUhtqGa4jKGbLPZaLmJiGdpqXhe68qtqyE/"},
		"both@d.example": {Scram: "{SCRAM-SHA-256}4096,fIne4ExD9h3vufYZ,k9LD3a/7yk3u7o5tVPTRR4IYHqgd7khpwbKLzvNGnos=,LCuD6/yMc5cjmCMrBAj+es27icwu5eoI5Drqmh4P+mQ=:a8bac1a24c7aa2725630c9ab6813a631b366c79c6bc959bf344d3af8e685a375:supersecret",
			Password: "$5$j59A2PxyHYy5q5OE$wzif22gTmb3SPhbtQN6Z9jzvNB5JA54He8pN.midpu7"},
		"plain@d.example": {Password: "$5$saltsalt$0IyaXrmV7.sGNS6tirgqHLqX/G.FBvgkYA.lpPdS5sA"},
		"off@d.example":   {Password: "{CRAM}pass3,$5$fbazeA/UC3RmSK15$V/GiMhfTuhRz1aUJv8QQvFt1qmFZrKgfw/4lK7d5KW0"},
		"odd@d.example":   {Scram: "{SCRAM-SHA-256}x,!,,", Password: "{CRAM"},
	}
}

func accounts(t *testing.T) *Accounts {
	t.Helper()
	p, err := NewVerifier(Config{DefaultDomain: "d.example", Now: time.Now, Directory: wikiPeople(),
		Denied: func(_ context.Context, u directory.User, _ directory.Flags) (string, error) {
			if u.Name == "off" {
				return "NO_SMTP", nil
			}
			return "", nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	forms := func(context.Context) (directory.Forms, error) {
		return directory.Forms{Clear: true, SCRAM: []string{"SCRAM-SHA-256"}}, nil
	}
	guard := NewGuard(GuardConfig{Limits: func(string) Limits { return Limits{} }, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	return NewAccounts(p, forms, []byte("0123456789abcdef"), guard)
}

// login runs an exchange, and gives the reply's text, "" for success.
func login(t *testing.T, a *Accounts, mechanism string, c sasl.Credentials) (string, *Exchange) {
	t.Helper()
	connection := &Connection{Authority: a, Service: "smtpd.587", Protocol: "smtp", Host: "mx.d.example", TLS: &tls.ConnectionState{}}
	c.Host, c.Service = "mx.d.example", "smtp"
	exchange, err := connection.Begin(t.Context(), mechanism)
	if err != nil {
		t.Fatal(err)
	}
	client, err := sasl.NewClient(mechanism, c)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Next(nil)
	for err == nil {
		challenge, done, failure := exchange.Next(t.Context(), response)
		if done {
			if failure != nil {
				return mailerr.From(failure).Reply(), exchange
			}
			return "", exchange
		}
		response, err = client.Next(challenge)
	}
	return err.Error(), exchange
}

// TestWikiUsers: what the wiki's users can log in by.
func TestWikiUsers(t *testing.T) {
	a := accounts(t)
	const wrong = "535 5.7.8 authorization failed (#5.7.8)"
	salted := "a8bac1a24c7aa2725630c9ab6813a631b366c79c6bc959bf344d3af8e685a375"
	for _, c := range []struct{ user, password, mechanisms, want string }{
		{"cram", "pass3", "CRAM-MD5 CRAM-SHA512 DIGEST-MD5 SCRAM-SHA-1 SCRAM-SHA-256 SCRAM-SHA-512", ""},
		{"scram", "supersecret", "SCRAM-SHA-256", ""},
		{"SCRAM@D.example", "supersecret", "SCRAM-SHA-256", ""},
		{"scram", "supersecret", "SCRAM-SHA-1 CRAM-MD5 DIGEST-MD5", wrong},
		{"both@d.example", "supersecret", "SCRAM-SHA-1 SCRAM-SHA-256 CRAM-MD5 CRAM-RIPEMD DIGEST-MD5 PLAIN LOGIN", ""},
		{"both@d.example", "Supersecret", "SCRAM-SHA-1 SCRAM-SHA-256 CRAM-MD5 CRAM-RIPEMD DIGEST-MD5 PLAIN LOGIN", wrong},
		{"plain", "secret", "PLAIN LOGIN", ""},
		{"plain", "secret", "SCRAM-SHA-256 CRAM-MD5 DIGEST-MD5", wrong},
		{"odd", "secret", "SCRAM-SHA-256 CRAM-MD5 DIGEST-MD5 PLAIN", wrong},
		{"nobody", "secret", "SCRAM-SHA-256 CRAM-MD5 DIGEST-MD5 PLAIN LOGIN", wrong},
		{"off", "pass3", "SCRAM-SHA-256 CRAM-MD5 DIGEST-MD5", "535 5.7.8 this service is switched off for your account (#5.7.8)"},
		{"off", "pass4", "SCRAM-SHA-256 CRAM-MD5 DIGEST-MD5", wrong},
		{"broken", "x", "SCRAM-SHA-256 CRAM-MD5 DIGEST-MD5 PLAIN LOGIN", "454 4.7.0 temporary authentication failure (#4.7.0)"},
	} {
		for mechanism := range strings.FieldsSeq(c.mechanisms) {
			got, exchange := login(t, a, mechanism, sasl.Credentials{User: c.user, Password: c.password})
			if got != c.want {
				t.Errorf("%s %s: %q", c.user, mechanism, got)
			}
			name, _, _ := strings.Cut(strings.ToLower(c.user), "@")
			if c.want == "" && !strings.EqualFold(exchange.Identity.Address.String(), name+"@d.example") || c.want != "" && exchange.Identity != (Identity{}) || exchange.User != c.user {
				t.Errorf("%s %s: %+v", c.user, mechanism, exchange)
			}
		}
	}
	if got, _ := login(t, a, "SCRAM-SHA-256", sasl.Credentials{User: "both", Salted: []byte("\xa8\xba\xc1\xa2\x4c\x7a\xa2\x72\x56\x30\xc9\xab\x68\x13\xa6\x31\xb3\x66\xc7\x9c\x6b\xc9\x59\xbf\x34\x4d\x3a\xf8\xe6\x85\xa3\x75")}); got != "" {
		t.Errorf("salted password %s: %s", salted, got)
	}
}

// TestDecoys: all spellings of a name have one salt, and other keys others.
func TestDecoys(t *testing.T) {
	a := accounts(t)
	first := func(name string) string {
		c := &Connection{Authority: a, Host: "mx", Protocol: "smtp"}
		e, err := c.Begin(t.Context(), "SCRAM-SHA-256")
		if err != nil {
			t.Fatal(err)
		}
		challenge, _, err := e.Next(t.Context(), []byte("n,,n="+name+",r=x"))
		if err != nil {
			t.Fatal(err)
		}
		_, salt, _ := strings.Cut(string(challenge), ",s=")
		return salt
	}
	if first("nobody") != first("NoBody@D.example") || first("nobody") == first("nobody2") || len(first("nobody")) != len(first("scram")) {
		t.Error(first("nobody"), first("NoBody@D.example"), first("scram"))
	}
	before := first("nobody")
	a.key = []byte("another key entirely")
	if first("nobody") == before {
		t.Error("the key does not count")
	}
}

func TestOffer(t *testing.T) {
	const cram = "DIGEST-MD5 CRAM-SHA512 CRAM-SHA384 CRAM-SHA256 CRAM-SHA224 CRAM-SHA1 CRAM-RIPEMD CRAM-MD5"
	for _, c := range []struct {
		name  string
		terms Terms
		want  string
	}{
		{"hashes only, in clear", Terms{SecureAuth: true}, ""},
		{"hashes only, over TLS", Terms{SecureAuth: true, TLS: true, Bindable: true}, "PLAIN LOGIN"},
		{"passwords in clear", Terms{}, "PLAIN LOGIN"},
		{"FORCE_TLS", Terms{ForceTLS: true, Clear: true, EnableCRAM: true}, ""},
		{"keys", Terms{SecureAuth: true, SCRAM: []string{"SCRAM-SHA-256"}}, "SCRAM-SHA-256"},
		{"keys over TLS", Terms{SecureAuth: true, TLS: true, Bindable: true, SCRAM: []string{"SCRAM-SHA-1"}}, "SCRAM-SHA-1-PLUS SCRAM-SHA-1 PLAIN LOGIN"},
		{"keys over TLS that cannot be bound to", Terms{TLS: true, SCRAM: []string{"SCRAM-SHA-1"}}, "SCRAM-SHA-1 PLAIN LOGIN"},
		{"ENABLE_CRAM", Terms{SecureAuth: true, EnableCRAM: true}, cram},
		{"clear", Terms{SecureAuth: true, Clear: true}, "SCRAM-SHA-512 SCRAM-SHA-256 SCRAM-SHA-1 " + cram},
		{"switched off", Terms{TLS: true, Clear: true, Disabled: func(m string) bool { return strings.Contains(m, "SHA") || m == "LOGIN" }}, "DIGEST-MD5 CRAM-RIPEMD CRAM-MD5 PLAIN"},
		{"tokens", Terms{TLS: true, Tokens: true}, "PLAIN LOGIN OAUTHBEARER XOAUTH2"},
		{"tokens in clear", Terms{SecureAuth: true, Tokens: true}, ""},
		{"certificate that is not asked for", Terms{TLS: true, Certified: true}, "PLAIN LOGIN"},
		{"certificate", Terms{TLS: true, Certified: true, External: true}, "PLAIN LOGIN EXTERNAL"},
		{"no certificate", Terms{TLS: true, External: true}, "PLAIN LOGIN"},
	} {
		if got := strings.Join(Offer(c.terms), " "); got != c.want {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}

// TestKeysOnly: SCRAM leaves out deriving keys only while nobody has a password that it would have to be done for.
func TestKeysOnly(t *testing.T) {
	for _, c := range []struct {
		terms Terms
		want  bool
	}{
		{Terms{SCRAM: []string{"SCRAM-SHA-1"}}, true}, {Terms{Clear: true, SCRAM: []string{"SCRAM-SHA-1"}}, false}, {Terms{EnableCRAM: true}, false},
	} {
		if got := c.terms.keysOnly(); got != c.want {
			t.Errorf("%+v: %v", c.terms, got)
		}
	}
}

func TestExternal(t *testing.T) {
	leaf := &x509.Certificate{EmailAddresses: []string{"Plain@d.example", "off@d.example"}}
	for response, want := range map[string]string{
		"": "", "plain@D.example": "", "off@d.example": "535 5.7.8 this service is switched off for your account (#5.7.8)", "both@d.example": "535 5.7.8 authorization failed (#5.7.8)",
	} {
		s := sasl.New("EXTERNAL", sasl.Config{
			Store: &Exchange{connection: &Connection{Authority: accounts(t), Service: "smtpd.587"}},
			TLS:   &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{leaf}}},
		})
		_, done, err := s.Next(t.Context(), []byte(response))
		if !done || want == "" && err != nil || want != "" && (err == nil || mailerr.From(err).Reply() != want) {
			t.Errorf("%q: %v", response, err)
		}
	}
}

// TestFailures: an exchange that fails and a wrong password look the same.
func TestFailures(t *testing.T) {
	if a, b := sasl.Failed(nil).Error(), errFailed.Error(); a != b {
		t.Errorf("%q %q", a, b)
	}
}

func TestLoadKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "authkey")
	a, err := LoadKey(file)
	b, err2 := LoadKey(file)
	if err != nil || err2 != nil || string(a) != string(b) || len(a) != 32 {
		t.Fatal(err, err2, base64.StdEncoding.EncodeToString(a))
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
	if err := os.WriteFile(file, []byte("abc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(file); err == nil {
		t.Error("a short key is taken")
	}
}

// TestGuardedExchanges: failures by whatever mechanism count together, a lock holds for all of them, also for an exchange that began before it, and
// who proved to be himself by one is known for all.
func TestGuardedExchanges(t *testing.T) {
	a := accounts(t)
	a.guard = NewGuard(GuardConfig{Limits: func(string) Limits { return Limits{Client: 4, Account: 100, Time: time.Hour} }, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	try := func(client, mechanism, password string) string {
		t.Helper()
		return guarded(t, a, client, mechanism, sasl.Credentials{User: "both", Password: password})
	}
	if got := try("192.0.2.1", "SCRAM-SHA-256", "supersecret"); got != "" {
		t.Fatal(got)
	}
	connection := &Connection{Authority: a, Client: netip.MustParseAddr("192.0.2.2"), Service: "smtpd.587", Protocol: "smtp", Host: "mx", TLS: &tls.ConnectionState{}}
	begun, err := connection.Begin(t.Context(), "SCRAM-SHA-256")
	if err != nil {
		t.Fatal(err)
	}
	client, err := sasl.NewClient("SCRAM-SHA-256", sasl.Credentials{User: "both", Password: "supersecret"})
	if err != nil {
		t.Fatal(err)
	}
	first, _ := client.Next(nil)
	challenge, done, err := begun.Next(t.Context(), first)
	if done || err != nil {
		t.Fatal(err)
	}
	for _, mechanism := range []string{"CRAM-MD5", "SCRAM-SHA-256", "DIGEST-MD5", "PLAIN"} {
		if got := try("192.0.2.2", mechanism, "guess"); !strings.HasPrefix(got, "535") && !strings.Contains(got, "fail") {
			t.Errorf("%s: %q", mechanism, got)
		}
	}
	for _, mechanism := range []string{"CRAM-MD5", "SCRAM-SHA-256", "DIGEST-MD5", "PLAIN", "LOGIN"} {
		if got := try("192.0.2.2", mechanism, "supersecret"); !strings.HasPrefix(got, "454 4.7.0 too many failed logins") {
			t.Errorf("%s while locked: %q", mechanism, got)
		}
		if got := try("192.0.2.1", mechanism, "supersecret"); got != "" {
			t.Errorf("%s from where she is known: %q", mechanism, got)
		}
	}
	last, err := client.Next(challenge)
	if err != nil {
		t.Fatal(err)
	}
	if _, done, err := begun.Next(t.Context(), last); !done || !errors.Is(err, ErrLocked) {
		t.Errorf("begun before the lock: %v %v", done, err)
	}
	apop, err := connection.CheckAPOP(t.Context(), "<1@mx>", "both", "0123456789abcdef0123456789abcdef")
	if !errors.Is(err, ErrLocked) || apop.Identity != (Identity{}) {
		t.Errorf("APOP: %v", err)
	}
}

// guarded is login from an address.
func guarded(t *testing.T, a *Accounts, from, mechanism string, c sasl.Credentials) string {
	t.Helper()
	connection := &Connection{Authority: a, Client: netip.MustParseAddr(from), Service: "smtpd.587", Protocol: "smtp", Host: "mx.d.example", TLS: &tls.ConnectionState{}}
	c.Host, c.Service = "mx.d.example", "smtp"
	exchange, err := connection.Begin(t.Context(), mechanism)
	if err != nil {
		t.Fatal(err)
	}
	client, err := sasl.NewClient(mechanism, c)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Next(nil)
	for err == nil {
		challenge, done, failure := exchange.Next(t.Context(), response)
		if failure != nil {
			return mailerr.From(failure).Reply()
		}
		if done {
			return ""
		}
		response, err = client.Next(challenge)
	}
	return err.Error()
}
