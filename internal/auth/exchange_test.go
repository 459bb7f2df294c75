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
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/settings"
)

// people has users by their addresses.
type people map[string]directory.User

func (p people) User(_ context.Context, a addr.Address) (directory.User, error) {
	if a.Local == "broken" {
		return directory.User{}, errors.New("database is gone")
	}
	if strings.EqualFold(a.Domain, "alias.example") {
		a.Domain = "d.example"
	}
	u, ok := p[a.Key()]
	if !ok {
		return u, directory.ErrNoUser
	}
	u.Name, u.Domain = a.Local, a.Domain
	return u, nil
}

// Domain knows d.example, and alias.example as another name of it.
func (people) Domain(_ context.Context, name string) (directory.Domain, error) {
	switch strings.ToLower(name) {
	case "d.example", "alias.example":
		return directory.Domain{Name: "d.example"}, nil
	case "broken.example":
		return directory.Domain{}, errors.New("database is gone")
	}
	return directory.Domain{}, directory.ErrNoDomain
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
	p, err := NewVerifier(Config{DefaultDomain: ofExample, Now: time.Now, Directory: wikiPeople(),
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
	return loginFrom(t, a, netip.Addr{}, mechanism, c)
}

func loginFrom(t *testing.T, a *Accounts, from netip.Addr, mechanism string, c sasl.Credentials) (string, *Exchange) {
	t.Helper()
	connection := &Connection{Authority: a, Client: from, Service: "smtpd.587", Protocol: "smtp", Host: "mx.d.example", TLS: &tls.ConnectionState{}}
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
			return mailerr.From(failure).Reply(), exchange
		}
		if done {
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
	// By another name of the domain a user's salt is the same, so is that of nobody.
	for _, name := range []string{"nobody", "cram", "scram"} {
		if first(name) != first(name+"@alias.example") {
			t.Errorf("%s has another salt at the alias domain", name)
		}
	}
	if first("nobody") == first("nobody@other.example") {
		t.Error("an unknown domain is taken for another")
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
	reply, _ := loginFrom(t, a, netip.MustParseAddr(from), mechanism, c)
	return reply
}

// TestKeysOnlyAtTheDoor: what a door begins derives keys for nobody while nobody's password is kept, and for everybody, also for a name that
// nobody has, once one is. A derivation takes 4096 rounds of PBKDF2, thousands of times the rest.
func TestKeysOnlyAtTheDoor(t *testing.T) {
	s, p := opened(t, Form{})
	defer s.Close()
	defer p.Close()
	guard := NewGuard(GuardConfig{Limits: func(string) Limits { return Limits{} }, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	door := &Connection{Authority: NewAccounts(p, s.Forms, []byte("0123456789abcdef"), guard), Service: "smtpd.587", Protocol: "smtp", Host: "mx.d.example", TLS: &tls.ConnectionState{}}
	keep := func(form string) {
		t.Helper()
		passwd, kept := SplitStored(form)
		if err := s.SetPassword(t.Context(), user, passwd, kept); err != nil {
			t.Fatal(err)
		}
	}
	// quickest gives the least time of 20 challenges: other work on the machine makes some slower, and none quicker.
	quickest := func(name string) time.Duration {
		t.Helper()
		least := time.Hour
		for range 20 {
			e, err := door.Begin(t.Context(), "SCRAM-SHA-256")
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if challenge, done, err := e.Next(t.Context(), []byte("n,,n="+name+",r=rOprNGfwEbeRWgbNEkqO")); err != nil || done || len(challenge) == 0 {
				t.Fatal(err)
			}
			least = min(least, time.Since(began))
		}
		return least
	}
	keep(wikiSCRAM)
	quickest("a")
	for _, name := range []string{"a", "nobody"} {
		keep(wikiSCRAM)
		without := quickest(name)
		keep(wikiBoth)
		if with := quickest(name); with < 4*without {
			t.Errorf("%s: a challenge takes %s while nobody's password is kept, and %s with one: the derivation is not left out, or never made", name, without, with)
		}
	}
}

// TestKeptEncrypted: who is kept encrypted logs in by all that a password in clear serves, and without the key by the rest.
func TestKeptEncrypted(t *testing.T) {
	const wrong = "535 5.7.8 authorization failed (#5.7.8)"
	const later = "454 4.7.0 temporary authentication failure (#4.7.0)"
	k, lost := keyring(t), keyring(t)
	seal := func(name, form string) directory.User {
		t.Helper()
		passwd, scram, err := k.Encrypt(addr.Address{Local: name, Domain: "d.example"}, form, "")
		if err != nil || strings.Contains(passwd+scram, "pass3") || strings.Contains(passwd+scram, "supersecret") {
			t.Fatal(passwd, scram, err)
		}
		return directory.User{Password: passwd, Scram: scram}
	}
	everybody := people{"cram@d.example": seal("cram", wikiCRAM), "both@d.example": seal("both", wikiBoth), "alone@d.example": seal("alone", "{CRAM}pass3"), "hash@d.example": {Password: wikiCrypt}}
	everybody["stolen@d.example"] = everybody["cram@d.example"]
	for name, c := range map[string]struct {
		keys *Keyring
		// want are replies by user and mechanism, "" for success, where they differ from those with the key.
		want map[string]string
	}{
		"with the key": {k, nil},
		"without it": {lost, map[string]string{"cram CRAM-MD5": later, "cram DIGEST-MD5": later, "cram SCRAM-SHA-1": later, "both CRAM-MD5": later, "both DIGEST-MD5": later, "both SCRAM-SHA-1": later,
			"alone CRAM-MD5": later, "alone DIGEST-MD5": later, "alone SCRAM-SHA-1": later, "alone PLAIN": later, "alone SCRAM-SHA-256": later, "cram SCRAM-SHA-256": later}},
	} {
		p, err := NewVerifier(Config{DefaultDomain: ofExample, Now: time.Now, Directory: everybody, Keys: c.keys})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		forms := func(context.Context) (directory.Forms, error) {
			return directory.Forms{Clear: true, SCRAM: []string{"SCRAM-SHA-256"}}, nil
		}
		guard := NewGuard(GuardConfig{Limits: func(string) Limits { return Limits{} }, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
		a := NewAccounts(p, forms, []byte("0123456789abcdef"), guard)
		for user, password := range map[string]string{"cram": "pass3", "both": "supersecret", "alone": "pass3", "hash": "supersecret"} {
			for _, mechanism := range []string{"PLAIN", "CRAM-MD5", "DIGEST-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256"} {
				want := c.want[user+" "+mechanism]
				if user == "hash" && mechanism != "PLAIN" {
					want = wrong
				}
				credentials := sasl.Credentials{User: user, Password: password}
				if got, _ := login(t, a, mechanism, credentials); got != want {
					t.Errorf("%s: %s by %s: %q, want %q", name, user, mechanism, got, want)
				}
				if want == "" {
					credentials.Password += "x"
					if got, _ := login(t, a, mechanism, credentials); got != wrong {
						t.Errorf("%s: %s by %s with a wrong password: %q", name, user, mechanism, got)
					}
				}
			}
		}
		// Another user's row: the hash fits, as it is no secret of the row's, and the kept password does not.
		if got, _ := login(t, a, "CRAM-MD5", sasl.Credentials{User: "stolen", Password: "pass3"}); got != later {
			t.Errorf("%s: %q with another user's kept password", name, got)
		}
	}
}

// TestHashSecret: a client may give the stored hash as its password, by challenges of CRAM, DIGEST-MD5 and APOP alone, and only where it is
// asked for (wiki 2653).
func TestHashSecret(t *testing.T) {
	a := accounts(t)
	hash := wikiPeople()["plain@d.example"].Password
	whole := wikiPeople()["scram@d.example"].Password
	_, inWhole := cutHash(whole)
	for _, c := range []struct {
		user, secret, mechanism string
		asked, want             bool
	}{
		{"plain", hash, "CRAM-MD5", true, true}, {"plain", hash, "CRAM-MD5", false, false}, {"plain", "secret", "CRAM-MD5", true, false},
		{"scram", inWhole, "CRAM-SHA256", true, true}, {"cram", "pass3", "CRAM-MD5", true, true}, {"cram", hash, "CRAM-MD5", true, false}, {"odd", "{CRAM", "CRAM-MD5", true, false},
	} {
		attempt := Attempt{User: c.user, Mechanism: c.mechanism, EnableCRAM: true, HashSecret: c.asked}
		_, secrets, err := a.Secrets(t.Context(), attempt)
		if got := err == nil && secrets.Clear == c.secret; got != c.want {
			t.Errorf("%+v: %q %v", c, secrets.Clear, err)
		}
	}
	// The hash is no password by PLAIN, and no key of SCRAM's.
	if got, _ := login(t, a, "PLAIN", sasl.Credentials{User: "plain", Password: hash}); got == "" {
		t.Error("PLAIN takes the hash")
	}
	for mechanism, want := range map[string]bool{"CRAM-MD5": true, "DIGEST-MD5": true, "APOP": true, "SCRAM-SHA-1": false, "SCRAM-SHA-256-PLUS": false} {
		for _, set := range [][]string{{"enable_cram", "enable_cram_hash"}, {"enable_cram"}, {"enable_cram_hash"}, nil} {
			e := &Exchange{connection: &Connection{Authority: a, Service: "smtpd.587", Settings: switched(t, set...)}, mechanism: mechanism}
			if got := e.attempt("plain", "").HashSecret; got != (want && len(set) == 2) {
				t.Errorf("%s with %v: %v", mechanism, set, got)
			}
		}
	}
}

// switched gives the settings of a door where files of control are 1.
func switched(t *testing.T, files ...string) *settings.View {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "control"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if err := os.WriteFile(filepath.Join(dir, "control", name), []byte("1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	snapshot, _ := settings.Inspect(dir)
	return snapshot.View("smtpd.587")
}

// bearers are Accounts that know tokens: what stands behind "for " is whom one names.
type bearers struct{ *Accounts }

func (bearers) Tokens() bool { return true }

func (b bearers) Token(ctx context.Context, a Attempt) (Identity, error) {
	name, ok := strings.CutPrefix(a.Password, "for-")
	switch {
	case a.Password == "down":
		return Identity{}, Unavailable(errors.New("the issuer is down"))
	case !ok:
		return Identity{}, &sasl.TokenRefusal{Err: Refused(errors.New("expired"))}
	}
	return b.AdmitNamed(ctx, a, name)
}

// TestTokens: whom a token lets in, by either mechanism, and how failures are counted.
func TestTokens(t *testing.T) {
	const wrong = "535 5.7.8 authorization failed (#5.7.8)"
	var log strings.Builder
	limits := Limits{Client: 3, Account: 5, Time: time.Minute}
	a := accounts(t)
	// renew forgets all failures.
	renew := func() {
		a.guard = NewGuard(GuardConfig{Limits: func(string) Limits { return limits }, Now: time.Now, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	}
	say := func(user, token string) (string, *Exchange) {
		t.Helper()
		c := &Connection{Authority: bearers{a}, Service: "smtpd.587", Protocol: "smtp", Host: "mx.d.example", TLS: &tls.ConnectionState{}, Client: netip.MustParseAddr("192.0.2.7")}
		e, err := c.Begin(t.Context(), "OAUTHBEARER")
		if err != nil {
			t.Fatal(err)
		}
		if user != "" {
			user = "a=" + user
		}
		_, done, err := e.Next(t.Context(), []byte("n,"+user+",\x01auth=Bearer "+token+"\x01\x01"))
		if !done {
			if err != nil {
				t.Fatal(err)
			}
			_, done, err = e.Next(t.Context(), []byte{1})
		}
		if !done {
			t.Fatal("no end")
		}
		if err != nil {
			return mailerr.From(err).Reply(), e
		}
		return "", e
	}
	for _, c := range []struct{ user, token, want string }{
		{"plain@d.example", "for-plain@d.example", ""},
		{"plain", "for-PLAIN@D.example", ""},
		{"", "for-plain@d.example", ""},
		{"plain@d.example", "for-plain", ""},
		{"scram@d.example", "for-plain@d.example", wrong},
		{"plain@other.example", "for-plain@d.example", wrong},
		{"plain@d.example", "for-nobody@d.example", wrong},
		{"nobody@d.example", "for-nobody@d.example", wrong},
		{"plain@d.example", "for-@", wrong},
		{"plain@d.example", "old", wrong},
		{"", "old", wrong},
		{"off@d.example", "for-off@d.example", "535 5.7.8 this service is switched off for your account (#5.7.8)"},
		{"broken@d.example", "for-broken@d.example", "454 4.7.0 temporary authentication failure (#4.7.0)"},
		{"plain@d.example", "down", "454 4.7.0 temporary authentication failure (#4.7.0)"},
	} {
		renew()
		got, e := say(c.user, c.token)
		if got != c.want || got == "" && e.Identity.Address.Key() != "plain@d.example" {
			t.Errorf("%s by %s: %q, %v", c.user, c.token, got, e.Identity.Address)
		}
	}
	if strings.Contains(log.String(), "for-") || !strings.Contains(log.String(), "OAUTHBEARER") {
		t.Errorf("the log has a token: %s", log.String())
	}
	const locked = "454 4.7.0 too many failed logins, try again later (#4.7.0)"
	renew()
	for range 10 {
		if got, _ := say("plain", "old"); got != wrong {
			t.Errorf("the same bad token: %s", got)
		}
	}
	for n := range 2 {
		if got, _ := say("plain", strings.Repeat("x", n+1)); got != wrong {
			t.Errorf("another bad token, which is the last that is looked at: %s", got)
		}
	}
	if got, _ := say("plain", "for-plain"); got != locked {
		t.Errorf("%s", got)
	}
	// Where no user is given, no account is locked for all; but the one that the token names is as closed as by its name.
	limits.Client, limits.Account = 0, 2
	renew()
	for n := range 5 {
		if got, _ := say("", strings.Repeat("x", n+1)); got != wrong {
			t.Errorf("%s", got)
		}
	}
	if all := a.guard.Locks(t.Context(), true); len(all) != 1 || all[0].By != "client" {
		t.Errorf("%+v", all)
	}
	for n := range 2 {
		say("plain", strings.Repeat("y", n+1))
	}
	if got, _ := say("", "for-plain@d.example"); got != locked {
		t.Errorf("a token of a locked account: %s", got)
	}
	// Who got in without a name is known for his own account alone.
	renew()
	if got, _ := say("", "for-plain@d.example"); got != "" {
		t.Error(got)
	}
	if known, _ := a.guard.before(t.Context(), Attempt{Client: netip.MustParseAddr("192.0.2.7")}, ""); known {
		t.Error("nobody is known")
	}
	if known, _ := a.guard.before(t.Context(), Attempt{Client: netip.MustParseAddr("192.0.2.7")}, "plain@d.example"); !known {
		t.Error("the user is not known")
	}
}

// TestAnonymousIsNotKnown: who was let in as nobody in particular has proved nothing, and guesses that user's password no longer than others may.
func TestAnonymousIsNotKnown(t *testing.T) {
	a := accounts(t)
	a.guard = NewGuard(GuardConfig{Limits: func(string) Limits { return Limits{Client: 3, Account: 100, Time: time.Hour} }, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "control"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "control", "auth_anonymous"), []byte("plain@d.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	snapshot, _ := settings.Inspect(dir)
	client := netip.MustParseAddr("192.0.2.7")
	c := &Connection{Authority: a, Service: "imapd.143", Protocol: "imap", Host: "mx.d.example", TLS: &tls.ConnectionState{}, Client: client, Settings: snapshot.View("imapd.143")}
	e, err := c.Begin(t.Context(), "ANONYMOUS")
	if err != nil {
		t.Fatal(err)
	}
	if _, done, err := e.Next(t.Context(), []byte("visitor")); !done || err != nil || e.Identity.Address.Key() != "plain@d.example" {
		t.Fatal(done, err, e.Identity)
	}
	if known, err := a.guard.before(t.Context(), Attempt{Client: client}, "plain@d.example"); known || err != nil {
		t.Errorf("known %v, %v", known, err)
	}
}

// TestNamesOfDomains: an account has one count, one lock and one set of known addresses by all names of its domain; an unknown domain is as it is
// written, and so is every one while the directory is down.
func TestNamesOfDomains(t *testing.T) {
	a := accounts(t)
	limits := Limits{Account: 3, Time: time.Hour}
	now := time.Now()
	a.guard = NewGuard(GuardConfig{Limits: func(string) Limits { return limits }, Now: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler)})
	from := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, n}) }
	const wrong, locked = "535 5.7.8 authorization failed (#5.7.8)", "454 4.7.0 too many failed logins, try again later (#4.7.0)"
	for n, c := range []struct{ user, password, want string }{
		{"plain@alias.example", "secret", ""}, {"plain@alias.example", "one", wrong}, {"Plain@d.example", "two", wrong}, {"plain", "two", wrong}, {"plain@Alias.example", "three", wrong},
		{"plain@d.example", "secret", locked}, {"plain", "secret", locked}, {"plain@alias.example", "secret", locked}, {"plain@alias.example", "four", locked},
		{"plain@other.example", "one", wrong}, {"plain@other.example", "two", wrong}, {"nobody@alias.example", "one", wrong}, {"nobody@alias.example", "two", wrong},
		{"nobody@d.example", "three", wrong}, {"nobody@d.example", "four", locked}, {"nobody@alias.example", "five", locked},
	} {
		if got, _ := loginFrom(t, a, from(byte(n+1)), "PLAIN", sasl.Credentials{User: c.user, Password: c.password}); got != c.want {
			t.Errorf("%d: %s with %s: %q", n, c.user, c.password, got)
		}
	}
	// Who is known by one name is so by another.
	if got, _ := loginFrom(t, a, from(1), "PLAIN", sasl.Credentials{User: "plain@d.example", Password: "secret"}); got != "" {
		t.Error(got)
	}
	var names []string
	for _, l := range a.guard.Locks(t.Context(), true) {
		if l.By == "account" {
			names = append(names, l.Name)
		}
	}
	if slices.Sort(names); !slices.Equal(names, []string{"nobody@d.example", "plain@d.example", "plain@other.example"}) {
		t.Error(names)
	}
	if n := a.Unlock(t.Context(), "PLAIN@alias.example"); n != 1 {
		t.Error(n)
	}
	if got, _ := loginFrom(t, a, from(50), "PLAIN", sasl.Credentials{User: "plain", Password: "secret"}); got != "" {
		t.Error(got)
	}
	for user, want := range map[string]string{"Plain@Broken.example": "plain@broken.example", "plain@nowhere.example": "plain@nowhere.example", "a b": "a b"} {
		if got := a.account(t.Context(), Attempt{User: user}); got != want {
			t.Errorf("%s is counted as %q", user, got)
		}
	}
}
