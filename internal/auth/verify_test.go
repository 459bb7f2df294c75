package auth

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/mailerr"
)

// users is a directory in memory: stored forms by address.
type users map[string]string

func (u users) AppPasswords(context.Context, addr.Address) ([]directory.AppPassword, error) {
	return nil, nil
}
func (u users) AppPasswordUsed(context.Context, addr.Address, string) error { return nil }
func (u users) RenewPassword(context.Context, directory.User, string, string, string) (bool, error) {
	return false, nil
}

func (u users) InactiveUser(context.Context, addr.Address) (directory.User, error) {
	return directory.User{}, directory.ErrNoUser
}
func (u users) ActivateUser(context.Context, addr.Address) error { return directory.ErrNoUser }

func (users) Domain(_ context.Context, name string) (directory.Domain, error) {
	return directory.Domain{Name: strings.ToLower(name)}, nil
}

func (u users) User(_ context.Context, a addr.Address) (directory.User, error) {
	if a.Local == "broken" {
		return directory.User{}, errors.New("database is gone")
	}
	hash, ok := u[a.Key()]
	if !ok {
		return directory.User{}, directory.ErrNoUser
	}
	return directory.User{Name: a.Local, Domain: a.Domain, Password: hash}, nil
}

// ofExample gives a default domain.
func ofExample() string { return "d.example" }

func TestVerify(t *testing.T) {
	hash, err := HashPassword("secret")
	if err != nil || len(hash) > 128 {
		t.Fatalf("%q %v", hash, err)
	}
	now := time.Now()
	v, err := NewVerifier(Config{DefaultDomain: ofExample, Now: func() time.Time { return now }, Directory: users{
		"argon@d.example": hash,
		// made by openssl passwd -6 / -5 / -1 with the password "secret"
		"sha512@d.example": "$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1",
		"sha256@d.example": "$5$saltsalt$0IyaXrmV7.sGNS6tirgqHLqX/G.FBvgkYA.lpPdS5sA",
		"md5@d.example":    "$1$saltsalt$9xy1btjgzLYfb7hivXtC//",
		"plain@d.example":  "$plaintext$secret",
		"clear@d.example":  "secret",
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	code := func(user, password string) int {
		_, err := v.Verify(t.Context(), Attempt{User: user, Password: password})
		if err == nil {
			return 235
		}
		return mailerr.From(err).Code
	}
	for _, c := range []struct {
		user, password string
		code           int
	}{
		{"argon@d.example", "secret", 235}, {"argon", "secret", 235}, {"ARGON@D.example", "secret", 235},
		{"sha512@d.example", "secret", 235}, {"sha256@d.example", "secret", 235}, {"md5@d.example", "secret", 235},
		{"sha512@d.example", "wrong", 535}, {"argon@d.example", "wrong", 535}, {"argon@d.example", "", 535}, {"nobody@d.example", "secret", 535},
		{"plain@d.example", "secret", 535}, {"clear@d.example", "secret", 535}, {"broken@d.example", "secret", 454},
		{"a\x00b", "x", 535},
	} {
		if got := code(c.user, c.password); got != c.code {
			t.Errorf("%q %q: %d, want %d", c.user, c.password, got, c.code)
		}
	}
	token := v.IssueToken("argon@d.example", time.Minute)
	if got := code("argon@d.example", token); got != 235 {
		t.Errorf("token: %d", got)
	}
	if got := code("clear@d.example", token); got != 535 {
		t.Errorf("token of another: %d", got)
	}
	now = now.Add(2 * time.Minute)
	if got := code("argon@d.example", token); got != 535 {
		t.Errorf("old token: %d", got)
	}
}

// TestDomainOf: a bare name belongs to the domain of the address that the client connected to.
func TestDomainOf(t *testing.T) {
	hash, err := HashPassword("secret")
	if err != nil {
		t.Fatal(err)
	}
	mapped, failing := netip.MustParseAddr("192.0.2.17"), netip.MustParseAddr("192.0.2.18")
	v, err := NewVerifier(Config{DefaultDomain: ofExample, Now: time.Now, Directory: users{"a@d.example": hash, "b@m.example": hash},
		DomainOf: func(_ context.Context, local netip.Addr) (string, error) {
			switch local {
			case mapped:
				return "m.example", nil
			case failing:
				return "", errors.New("down")
			}
			return "", nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		user  string
		local netip.Addr
		code  int
	}{
		{"b", mapped, 235}, {"b", netip.MustParseAddr("::ffff:192.0.2.17"), 235}, {"a", mapped, 535}, {"a@d.example", mapped, 235},
		{"a", netip.MustParseAddr("192.0.2.1"), 235}, {"b", netip.MustParseAddr("192.0.2.1"), 535}, {"a", netip.Addr{}, 235},
		{"a", failing, 454}, {"a@d.example", failing, 235},
	} {
		code := 235
		if _, err := v.Verify(t.Context(), Attempt{User: c.user, Password: "secret", Local: c.local}); err != nil {
			code = mailerr.From(err).Code
		}
		if code != c.code {
			t.Errorf("%s on %s: %d, want %d", c.user, c.local, code, c.code)
		}
	}
}
