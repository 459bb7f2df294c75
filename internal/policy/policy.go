// Package policy is a station: it answers a door's questions at connect, HELO, AUTH, MAIL, RCPT, DATA and end of data.
// Every answer names the check that gave it, what the check was given, and the setting and layer behind it, so that
// the door can record it whole. It must not know the wire.
package policy

import (
	"context"
	"crypto/tls"
	"net/netip"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/tlsx"
)

// Session is what a door knows of a connection so far.
type Session struct {
	// ID is the trace's name for the connection.
	ID string
	// Service is the service's name, for example "smtpd.25"; Submission is true on 587 and 465.
	Service    string
	Submission bool
	Client     netip.AddrPort
	Local      netip.AddrPort
	// TLS is nil without TLS.
	TLS *tls.ConnectionState
	// ClientCertificate is the one that the client showed, nil when it showed none.
	ClientCertificate *tlsx.Client
	// CertifiedBy is the entry of TLSCLIENTS by which the certificate let the client relay, "" when it did not. Mail and Rcpt set it.
	CertifiedBy string
	// Helo is the argument of HELO or EHLO.
	Helo string
	// User is the authenticated user's address in full, "" without AUTH.
	User string
	// Host is the client's host name, which leads back to its address; "" when it has none, or nothing asked for it.
	Host string
	// RelayEntry is the entry of RELAYCLIENTS or RELAYDOMAINS that the client matched at connect, "" when none did, and
	// RelaySetting the setting. Connect sets them.
	RelayEntry   string
	RelaySetting *settings.Setting
	// Held is a refusal of the sender that waits for the recipients, since some are taken from anybody. Mail sets it.
	Held *Verdict
	// Size is what the sender of the message now says it has, 0 when it does not. Mail sets it.
	Size int64
	// Settings is this session's view; an overlay may replace it.
	Settings *settings.View
}

// Action is what the door has to do.
type Action uint8

// What a door does with a verdict: go on, answer with the temporary or the permanent refusal in Verdict.Err, or answer
// as if it accepted and then forget what it was given.
const (
	Accept Action = iota
	Defer
	Reject
	Discard
)

// String gives the trace's word for a: "accept", "defer", "reject" or "discard".
func (a Action) String() string { return [...]string{"accept", "defer", "reject", "discard"}[a] }

// Verdict is the answer to one question.
type Verdict struct {
	Action Action
	// Err is the reply for Defer and Reject; nil otherwise.
	Err *mailerr.Error
	// Check is the check that decided ("relay", "local-user", "relayclients" …), Input what it was given.
	Check, Input string
	// Setting and Layer are the setting that decided and where its value came from; "" when none did.
	Setting, Layer string
}

// Policy answers the questions of an SMTP door. Implementations are safe for concurrent use.
type Policy interface {
	// Connect is asked first; it may set the fields of s that depend on the client's address alone.
	Connect(ctx context.Context, s *Session) Verdict
	Helo(ctx context.Context, s *Session, name string) Verdict
	// AuthAllowed tells whether AUTH may be tried now, before any mechanism is looked at.
	AuthAllowed(ctx context.Context, s *Session) Verdict
	Mail(ctx context.Context, s *Session, from addr.Address, size int64) Verdict
	Rcpt(ctx context.Context, s *Session, from, to addr.Address, accepted int) Verdict
	Data(ctx context.Context, s *Session, from addr.Address, to []addr.Address) Verdict
	// EndOfData sees the header (up to and without the empty line) of the received message.
	EndOfData(ctx context.Context, s *Session, from addr.Address, to []addr.Address, header []byte, size int64) Verdict
}
