package sasl

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"math"
	"math/big"

	//lint:ignore SA1019 CRAM-RIPEMD is made of nothing else.
	"golang.org/x/crypto/ripemd160"
)

// nonce gives what no other exchange has: 130 random bits as letters and digits.
func nonce() string { return rand.Text() }

// Timestamp gives what CRAM's challenge and POP3's greeting must hold for APOP: a Message-ID that no other has (RFC 2195
// section 2, RFC 1939 section 7).
func Timestamp(host string) string {
	number := func() *big.Int {
		n, err := rand.Int(rand.Reader, big.NewInt(math.MaxInt64))
		if err != nil {
			panic(err) // crypto/rand's reader never fails
		}
		return n
	}
	return fmt.Sprintf("<%d.%d@%s>", number(), number(), host)
}

// cramHash gives the hash of a mechanism of the CRAM family; nil for others.
func cramHash(mechanism string) func() hash.Hash {
	switch mechanism {
	case "CRAM-MD5":
		return md5.New
	case "CRAM-SHA1":
		return sha1.New
	case "CRAM-SHA224":
		return sha256.New224
	case "CRAM-SHA256":
		return sha256.New
	case "CRAM-SHA384":
		return sha512.New384
	case "CRAM-SHA512":
		return sha512.New
	case "CRAM-RIPEMD":
		return ripemd160.New
	}
	return nil
}

// cram is CRAM-MD5 (RFC 2195), and IndiMail's mechanisms with another hash in MD5's place.
type cram struct {
	config    Config
	hash      func() hash.Hash
	challenge string
}

func (c *cram) first(_ context.Context, response []byte) ([]byte, step, error) {
	// The server begins: an initial response answers no challenge.
	if response != nil {
		return nil, nil, ErrMalformed
	}
	return []byte(c.challenge), c.answer, nil
}

func (c *cram) answer(ctx context.Context, response []byte) ([]byte, step, error) {
	// A name may have spaces.
	i := bytes.LastIndexByte(response, ' ')
	if i < 0 || len(response) > maxMessage || !validName(string(response[:i])) {
		return nil, nil, ErrMalformed
	}
	user := string(response[:i])
	given, err := hex.DecodeString(string(response[i+1:]))
	if err != nil {
		return nil, nil, ErrMalformed
	}
	password, ok, err := keptPassword(ctx, c.config.Store, user)
	if err != nil {
		return nil, nil, err
	}
	if equal := hmac.Equal(given, keyed(c.hash, password, c.challenge)); !equal || !ok {
		return nil, nil, failed("wrong response to the challenge, or no clear text password is kept")
	}
	return nil, nil, c.config.Store.Admit(ctx, user)
}

// keptPassword gives the kept password, and one that nobody can know for those without: what follows takes the same time for all.
func keptPassword(ctx context.Context, store Store, user string) (password string, kept bool, err error) {
	secrets, err := store.Secrets(ctx, user)
	if err != nil || secrets.Clear != "" {
		return secrets.Clear, err == nil, err
	}
	return nonce(), false, nil
}

func keyed(h func() hash.Hash, key, message string) []byte {
	mac := hmac.New(h, []byte(key))
	mac.Write([]byte(message))
	return mac.Sum(nil)
}

// APOP checks the digest of POP3's APOP (RFC 1939 section 7); timestamp is the one of the greeting.
func APOP(ctx context.Context, store Store, timestamp, user, digest string) error {
	given, err := hex.DecodeString(digest)
	if err != nil || !validName(user) {
		return ErrMalformed
	}
	password, ok, err := keptPassword(ctx, store, user)
	if err != nil {
		return err
	}
	sum := md5.Sum([]byte(timestamp + password))
	if equal := hmac.Equal(given, sum[:]); !equal || !ok {
		return failed("wrong digest, or no clear text password is kept")
	}
	return store.Admit(ctx, user)
}
