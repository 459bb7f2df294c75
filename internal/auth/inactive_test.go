package auth

import (
	"errors"
	"testing"

	"github.com/indigomail/indigo/internal/directory"
)

// TestInactive: the right password at POP3 or IMAP activates who is marked inactive, whatever the mechanism; nothing else does.
func TestInactive(t *testing.T) {
	s, p := opened(t, Form{Hash: "ARGON2ID"})
	defer s.Close()
	defer p.Close()
	ctx := t.Context()
	asleep := func(want bool, after string) {
		t.Helper()
		if _, err := s.User(ctx, user); errors.Is(err, directory.ErrInactive) != want {
			t.Errorf("after %s: %v", after, err)
		}
	}
	sleep := func() {
		t.Helper()
		if err := s.DeactivateUser(ctx, user); err != nil {
			t.Fatal(err)
		}
	}
	// A login that is remembered opens nothing.
	if err := verify(p, "supersecret", "imapd.143"); err != nil {
		t.Fatal(err)
	}
	sleep()
	if err := verify(p, "supersecret", "smtpd.587"); code(err) != 535 {
		t.Error(err)
	}
	asleep(true, "SMTP")
	if err := verify(p, "wrong", "imapd.143"); code(err) != 535 {
		t.Error(err)
	}
	asleep(true, "a wrong password")
	if err := s.SetLimits(ctx, "d.example", func(l *directory.Limits) error { l.Disabled = directory.NoPOP; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := verify(p, "supersecret", "pop3d.110"); code(err) != 535 {
		t.Error(err)
	}
	asleep(true, "a service that is switched off")
	if err := verify(p, "supersecret", "imapd.143"); err != nil {
		t.Error(err)
	}
	asleep(false, "IMAP")
	// An app password is a password.
	secret, hash := NewAppPassword()
	if err := s.AddAppPassword(ctx, user, directory.AppPassword{Name: "phone", Hash: hash}); err != nil {
		t.Fatal(err)
	}
	sleep()
	if err := verify(p, secret, "imapd.143"); err != nil {
		t.Error(err)
	}
	asleep(false, "IMAP with an app password")
	// Challenge and response end with Admit.
	sleep()
	if err := p.Admit(ctx, Identity{Address: user}, Attempt{User: "a@d.example", Service: "smtpd.587"}); code(err) != 535 {
		t.Error(err)
	}
	asleep(true, "Admit at SMTP")
	if err := p.Admit(ctx, Identity{Address: user}, Attempt{User: "a@d.example", Service: "imapd.993"}); err != nil {
		t.Error(err)
	}
	asleep(false, "Admit at IMAP")
}
