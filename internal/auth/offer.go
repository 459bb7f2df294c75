package auth

import (
	"slices"
	"strings"

	"github.com/indigomail/indigo/internal/auth/sasl"
)

// Terms are what hangs on at one moment of a connection which mechanisms may be used.
type Terms struct {
	// SecureAuth, ForceTLS, EnableCRAM and External are the settings; Disabled tells what is switched off alone.
	SecureAuth, ForceTLS, EnableCRAM, External bool
	Disabled                                   func(mechanism string) bool
	// TLS is true inside TLS, Bindable when a login can be bound to it, Certified when the client showed a verified certificate
	// with a mail address.
	TLS, Bindable, Certified bool
	// Anonymous is true where anybody is let in as a user that AUTH_ANONYMOUS names.
	Anonymous bool
	// Tokens is true when somebody can tell whose a token is.
	Tokens bool
	// Clear is true when a user's password is kept in clear, SCRAM has the mechanisms for which a user has keys, without -PLUS.
	Clear bool
	SCRAM []string
}

// Offer gives the mechanisms that may be used on these terms, the strongest first. What no user could log in by is left out: a
// client that takes the strongest has no second try.
func Offer(t Terms) []string {
	return slices.DeleteFunc(append(sasl.Names(), "ANONYMOUS"), func(name string) bool {
		base, plus := strings.CutSuffix(name, "-PLUS")
		switch {
		case t.Disabled != nil && t.Disabled(name), t.ForceTLS && !t.TLS, t.SecureAuth && !t.TLS && sasl.NeedsTLS(name), plus && !t.Bindable:
			return true
		case name == "EXTERNAL":
			return !t.External || !t.Certified
		case name == "ANONYMOUS":
			return !t.Anonymous
		case name == "OAUTHBEARER", name == "XOAUTH2":
			return !t.Tokens
		case strings.HasPrefix(name, "CRAM-"), name == "DIGEST-MD5":
			return !t.Clear && !t.EnableCRAM
		case strings.HasPrefix(name, "SCRAM-"):
			return !t.Clear && !slices.Contains(t.SCRAM, base)
		}
		return false
	})
}

// keysOnly tells that of nobody the password itself can be used; see sasl.Config.
func (t Terms) keysOnly() bool { return !t.Clear && !t.EnableCRAM }
