// Package auth is knowledge: it checks a user's password against the directory's stored form, with a bound on how many
// checks run at once. It must not know which door asks.
package auth

import (
	"context"
	"net/netip"

	"github.com/indigomail/indigo/internal/addr"
)

// Attempt is one try to log in.
type Attempt struct {
	// User is the name as the client gave it; a bare name belongs to the domain of Local, or else to the default domain.
	User string
	// Password is what the client sent as it is: for OAUTHBEARER and XOAUTH2 the token; "" where it proved something else.
	Password string
	// Local is the address of this host that the client connected to.
	Local netip.Addr
	// Service is the door's name, smtpd.587: a user's flags and an app password's services are judged by it. Client and Mechanism are for
	// the trace and for limits.
	Service   string
	Client    netip.Addr
	Mechanism string
	// TLS is true inside TLS.
	TLS bool
	// Known is true when the client logged in lately to the same account: such logins go before others.
	Known bool
	// EnableCRAM is the door's setting ENABLE_CRAM: passwords that stand alone in pw_passwd serve CRAM (wiki 2591).
	EnableCRAM bool
	// HashSecret lets a client's challenge be answered with the hash of pw_passwd as the password (wiki 2653).
	HashSecret bool
}

// Identity is who logged in.
type Identity struct {
	Address addr.Address
	// Home is the user's directory; mail is in Home/Maildir.
	Home string
	// Quota is the user's, as the directory has it; "" without one.
	Quota string
}

// Verifier checks passwords. A wrong password or an unknown user is the *mailerr.Error 535 5.7.8, the same for both and
// in the same time; a directory that cannot answer is 454 4.7.0.
type Verifier interface {
	Verify(ctx context.Context, a Attempt) (Identity, error)
}
