package auth

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/mailerr"
)

// opened gives a directory with the user a@d.example, and a verifier over it that replaces weak forms by form.
func opened(t *testing.T, form Form) (*directory.Store, *Password) {
	t.Helper()
	return openedWith(t, form, atRest(t))
}

func openedWith(t *testing.T, form Form, guard *Secrets) (*directory.Store, *Password) {
	t.Helper()
	dir := t.TempDir()
	s, err := directory.Open(context.Background(), directory.Config{Path: dir + "/db", MailRoot: dir + "/domains", Now: time.Now, Who: "indigo", Secrets: guard})
	if err == nil {
		err = s.AddDomain(t.Context(), "d.example")
	}
	if err == nil {
		err = s.AddUser(t.Context(), directory.NewUser{Name: "a", Domain: "d.example", Password: wikiCrypt})
	}
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewVerifier(Config{Directory: s, Keys: guard.Keys, Denied: s.Denied, Renew: func() (Form, bool) { return form, true }, DefaultDomain: ofExample, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return s, p
}

func code(err error) int {
	if err == nil {
		return 235
	}
	return mailerr.From(err).Code
}

var user = addr.Address{Local: "a", Domain: "d.example"}

func TestRenew(t *testing.T) {
	s, p := opened(t, Form{SCRAM: "SCRAM-SHA-256"})
	defer s.Close()
	ctx := t.Context()
	if err := verify(p, "wrong", "imapd.143"); code(err) != 535 {
		t.Error(err)
	}
	if err := verify(p, "supersecret", "imapd.143"); err != nil {
		t.Fatal(err)
	}
	// What waits is done in the order in which it came.
	done := make(chan struct{})
	p.later <- func(context.Context) { close(done) }
	<-done
	u, err := s.User(ctx, user)
	stored, parseErr := ParseStored(u.Password, u.Scram)
	if err != nil || parseErr != nil || strings.Join(stored.Forms(), " ") != "SHA512 SCRAM-SHA-256" || !stored.matches("supersecret") {
		t.Errorf("%+v %v %v", u, err, parseErr)
	}
	if err := verify(p, "supersecret", "imapd.143"); err != nil {
		t.Error(err)
	}
	done = make(chan struct{})
	p.later <- func(context.Context) { close(done) }
	<-done
	changes, _, err := s.Changes(ctx, "a", "d.example", 0, 10)
	if err != nil || len(changes) != 2 || changes[0].What != "password's form renewed at a login: SHA512 SCRAM-SHA-256" {
		t.Errorf("%+v %v", changes, err)
	}
	// A password that is changed while a renewal waits stays; so does the login that it came from.
	if err := s.SetPassword(ctx, user, wikiCrypt, ""); err != nil {
		t.Fatal(err)
	}
	hold := make(chan struct{})
	p.later <- func(context.Context) { <-hold }
	if err := verify(p, "supersecret", "imapd.143"); err != nil {
		t.Fatal(err)
	}
	changed, err := HashPassword("another")
	if err == nil {
		err = s.SetPassword(ctx, user, changed, "")
	}
	if err != nil {
		t.Fatal(err)
	}
	close(hold)
	done = make(chan struct{})
	p.later <- func(context.Context) { close(done) }
	<-done
	if u, err := s.User(ctx, user); err != nil || u.Password != changed || u.Scram != "" {
		t.Errorf("%+v %v", u, err)
	}
	// A login never waits for what is full. What waits is done at the end.
	if err := s.SetPassword(ctx, user, wikiCrypt, ""); err != nil {
		t.Fatal(err)
	}
	hold = make(chan struct{})
	p.later <- func(context.Context) { <-hold }
	for range maxLater + 2 {
		if err := verify(p, "supersecret", "imapd.143"); err != nil {
			t.Fatal(err)
		}
	}
	close(hold)
	p.Close()
	if u, err := s.User(ctx, user); err != nil || u.Scram == "" {
		t.Errorf("%+v %v", u, err)
	}
}

func verify(p *Password, password, service string) error {
	_, err := p.Verify(context.Background(), Attempt{User: "a", Password: password, Service: service})
	return err
}

func TestAppPasswordLogin(t *testing.T) {
	s, p := opened(t, Form{})
	defer s.Close()
	defer p.Close()
	ctx := t.Context()
	all, allHash := NewAppPassword()
	smtp, smtpHash := NewAppPassword()
	if len(all) != 23 || all == smtp {
		t.Error(all, smtp)
	}
	for _, one := range []directory.AppPassword{{Name: "phone", Hash: allHash}, {Name: "scanner", Hash: smtpHash, Services: []string{"smtp"}}} {
		if err := s.AddAppPassword(ctx, user, one); err != nil {
			t.Fatal(err)
		}
	}
	other, _ := NewAppPassword()
	for _, c := range []struct {
		password, service string
		code              int
	}{
		{all, "imapd.143", 235}, {all, "pop3d.110", 235}, {all, "smtpd.587", 235}, {strings.ToUpper(strings.ReplaceAll(all, "-", " ")), "imapd.143", 235}, {strings.ReplaceAll(all, "-", ""), "imapd.143", 235},
		{smtp, "smtpd.587", 235}, {smtp, "imapd.143", 535}, {other, "smtpd.587", 535}, {allHash, "imapd.143", 535}, {all[1:], "imapd.143", 535}, {"supersecret", "imapd.143", 235},
	} {
		if got := code(verify(p, c.password, c.service)); got != c.code {
			t.Errorf("%s %s: %d, want %d", c.password, c.service, got, c.code)
		}
	}
	done := make(chan struct{})
	p.later <- func(context.Context) { close(done) }
	<-done
	if list, err := s.AppPasswords(ctx, user); err != nil || list[0].Used.IsZero() {
		t.Errorf("%+v %v", list, err)
	}
	if err := s.SetFlags(ctx, user, directory.NoIMAP, 0); err != nil {
		t.Fatal(err)
	}
	if got := code(verify(p, all, "imapd.143")); got != 535 {
		t.Errorf("switched off: %d", got)
	}
	u, err := s.User(ctx, user)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		stored string
		code   int
	}{{"!" + u.Password, 535}, {"*", 535}, {"", 235}, {u.Password, 235}} {
		if err := s.SetPassword(ctx, user, c.stored, ""); err != nil {
			t.Fatal(err)
		}
		if got := code(verify(p, all, "smtpd.587")); got != c.code {
			t.Errorf("stored form %.5q: %d, want %d", c.stored, got, c.code)
		}
	}
	if err := s.RevokeAppPassword(ctx, user, "phone"); err != nil {
		t.Fatal(err)
	}
	if got := code(verify(p, all, "smtpd.587")); got != 535 {
		t.Errorf("revoked: %d", got)
	}
}

func TestSecrets(t *testing.T) {
	s, p := opened(t, Form{})
	defer s.Close()
	defer p.Close()
	ctx := t.Context()
	for _, c := range []struct {
		form       string
		enable     bool
		clear      string
		mechanisms int
		code       int
	}{
		{wikiCrypt, true, "", 0, 535}, {wikiCRAM, false, "pass3", 0, 235}, {wikiSCRAM, false, "", 1, 235}, {wikiBoth, false, "supersecret", 1, 235},
		{"supersecret", false, "", 0, 535}, {"supersecret", true, "supersecret", 0, 235}, {"!supersecret", true, "", 0, 535},
	} {
		passwd, kept := SplitStored(c.form)
		if err := s.SetPassword(ctx, user, passwd, kept); err != nil {
			t.Fatal(err)
		}
		identity, secrets, err := p.Secrets(ctx, Attempt{User: "A", EnableCRAM: c.enable})
		if code(err) != c.code || secrets.Clear != c.clear || len(secrets.SCRAM) != c.mechanisms || err == nil && identity.Address != user {
			t.Errorf("%s: %+v %+v %v", c.form, identity, secrets, err)
		}
	}
	if _, _, err := p.Secrets(ctx, Attempt{User: "nobody"}); code(err) != 535 {
		t.Error(err)
	}
	in := Attempt{User: "a", Service: "pop3d.110"}
	if err := p.Admit(ctx, Identity{Address: user}, in); err != nil {
		t.Error(err)
	}
	if err := s.SetFlags(ctx, user, directory.NoPOP, 0); err != nil {
		t.Fatal(err)
	}
	if err := p.Admit(ctx, Identity{Address: user}, in); code(err) != 535 {
		t.Error(err)
	}
}

func TestPolicy(t *testing.T) {
	bad := func(_ context.Context, password string) (bool, error) { return password == "qwertyuiop", nil }
	alice := addr.Address{Local: "Alice", Domain: "example.org"}
	for _, c := range []struct {
		password string
		refused  bool
	}{
		{"alice", true}, {"ALICE", true}, {"Alice2027!", true}, {"alice@example.org", true}, {"example.org", true}, {"QwertyUiop", true}, {"short", true}, {"é€üöäß", true},
		{"supersecret", false}, {"alice in wonderland", false}, {"2027-2027", false},
	} {
		err := (Policy{MinLength: 7, Bad: bad}).Check(t.Context(), alice, c.password)
		if (err != nil) != c.refused {
			t.Errorf("%q: %v", c.password, err)
		}
		if err != nil && strings.Contains(err.Error(), c.password) {
			t.Errorf("the error repeats it: %v", err)
		}
	}
	if err := (Policy{}).Check(t.Context(), alice, "x"); err != nil {
		t.Error(err)
	}
}

// TestCloseWaits: what runs too long when the verifier is closed is given the end of its context, and waited for; the rest is left out.
func TestCloseWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := NewVerifier(Config{Directory: users{}, Now: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		ended, another := false, false
		p.later <- func(ctx context.Context) {
			<-ctx.Done()
			ended = true
		}
		p.later <- func(context.Context) { another = true }
		p.Close()
		if !ended || another {
			t.Error("not waited for")
		}
	})
}

// TestRenewKept: what is kept itself is encrypted when its form is renewed at a login, and stays so, with the key that is the first by then.
func TestRenewKept(t *testing.T) {
	for _, c := range []struct {
		name, form, password string
		encrypt              bool
		// want is what the form must have then, if it was in clear, and if it was encrypted.
		want [2]string
	}{
		// SHA256 is not weaker than SHA512: it is the password in clear that has the form renewed.
		{"to be encrypted", wikiCRAM, "pass3", true, [2]string{"SHA512 ENCRYPTED", "SHA256 ENCRYPTED"}},
		{"with keys, to be encrypted", wikiBoth, "supersecret", true, [2]string{"SHA512 SCRAM-SHA-256 ENCRYPTED", "SHA256 SCRAM-SHA-256 ENCRYPTED"}},
		{"left as it is", wikiCRAM, "pass3", false, [2]string{"SHA256 CLEAR", "SHA256 ENCRYPTED"}},
		{"weak, to be encrypted", "{CRAM}secret,$1$saltsalt$9xy1btjgzLYfb7hivXtC//", "secret", true, [2]string{"SHA512 ENCRYPTED", "SHA512 ENCRYPTED"}},
		{"weak, in clear", "{CRAM}secret,$1$saltsalt$9xy1btjgzLYfb7hivXtC//", "secret", false, [2]string{"SHA512 CLEAR", "SHA512 CLEAR"}},
		{"nothing kept", wikiCrypt, "supersecret", true, [2]string{"ARGON2ID", "ARGON2ID"}},
	} {
		for before, want := range c.want {
			guard := atRest(t)
			clear := before == 0
			guard.Clear = func() (bool, error) { return clear, nil }
			s, p := openedWith(t, Form{Encrypt: c.encrypt}, guard)
			passwd, kept := SplitStored(c.form)
			if err := s.SetPassword(t.Context(), user, passwd, kept); err != nil {
				t.Fatal(err)
			}
			clear = !c.encrypt
			if err := verify(p, c.password, "imapd.143"); err != nil {
				t.Fatal(c.name, err)
			}
			p.Close()
			u, err := s.User(t.Context(), user)
			stored, parseErr := ParseStored(u.Password, u.Scram)
			if err != nil || parseErr != nil || strings.Join(stored.Forms(), " ") != want || !stored.matches(c.password) {
				t.Errorf("%s: %v, want %s: %v %v", c.name, stored.Forms(), want, err, parseErr)
			}
			if stored.Sealed != "" {
				if got, err := guard.Keys.Open(user, stored.Sealed); err != nil || got != c.password {
					t.Errorf("%s: %q %v", c.name, got, err)
				}
			}
			s.Close()
		}
	}
}

// TestNothingKept: no setting has a password itself kept; only who asks for it does.
func TestNothingKept(t *testing.T) {
	for _, form := range []Form{{}, {Encrypt: true}, {SCRAM: "SCRAM-SHA-256"}, {SCRAM: "SCRAM-SHA-1", Encrypt: true}, {Hash: "SHA512"}} {
		passwd, kept, err := form.Store("supersecret")
		if err != nil || KeepsPassword(passwd, kept) || strings.Contains(passwd+kept, "supersecret") {
			t.Errorf("%+v: %q %q %v", form, passwd, kept, err)
		}
		// Nor does a form that is renewed gain one.
		s, err := ParseStored(wikiSCRAM, "")
		if err != nil || form.renewing(s).KeepClear {
			t.Errorf("%+v: renewed with the password: %v", form, err)
		}
	}
}
