package sasl

import "github.com/xdg-go/scram"

// Secrets is what a user's stored forms allow beyond the comparison of a password that the client sends.
type Secrets struct {
	// Clear is the password itself, which CRAM, DIGEST-MD5 and APOP cannot do without; "" when it is not kept.
	Clear string
	// SCRAM has the kept keys by the mechanism's name, "SCRAM-SHA-1", "SCRAM-SHA-256" or "SCRAM-SHA-512" (RFC 5802 section 3).
	SCRAM map[string]scram.StoredCredentials
}
