package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// appLetters are those of app passwords: without those that are taken for another. 20 of them have 90 random bits.
const (
	appLetters = "abcdefghjkmnpqrstuvwxyz"
	appLength  = 20
)

// NewAppPassword makes up an app password, four groups of five letters, and gives the hash that is stored.
//
// The hash is a plain SHA-256. Slow hashes make up for passwords that people choose; nobody tries 2^90. So an attempt to log in costs one fast
// sum and a look-up however many app passwords a user has, and a renamed user keeps them.
func NewAppPassword() (password, hash string) {
	var letters []byte
	for len(letters) < appLength {
		var random [32]byte
		rand.Read(random[:])
		for _, b := range random {
			// Whole multiples only, so that every letter is as likely.
			if int(b) < 256/len(appLetters)*len(appLetters) && len(letters) < appLength {
				letters = append(letters, appLetters[int(b)%len(appLetters)])
			}
		}
	}
	password = fmt.Sprintf("%s-%s-%s-%s", letters[:5], letters[5:10], letters[10:15], letters[15:])
	hash, _ = appPasswordHash(password)
	return password, hash
}

// appPasswordHash gives the hash of what may be an app password: hyphens, blanks and case do not count. ok is false for what cannot be one.
func appPasswordHash(password string) (hash string, ok bool) {
	if len(password) > 2*appLength {
		return "", false
	}
	letters := strings.ToLower(strings.NewReplacer("-", "", " ", "").Replace(password))
	if len(letters) != appLength || strings.Trim(letters, appLetters) != "" {
		return "", false
	}
	sum := sha256.Sum256([]byte("indigo app password " + letters))
	return hex.EncodeToString(sum[:]), true
}
