package auth

import (
	"cmp"
	"crypto/pbkdf2"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/xdg-go/scram"
	"github.com/xdg-go/stringprep"
)

// The widths of the columns pw_passwd and scram.
const (
	passwdWidth = 128
	scramWidth  = 255
)

// Form says how a new password is stored.
type Form struct {
	// Hash is a method of ParseMethod's. "" means ARGON2ID; but SHA512 where SCRAM keys or the password itself stand beside it: they
	// are easier to guess against than any hash, and IndiMail on the same database reads SHA512 and not argon2id.
	Hash string
	// SCRAM names the mechanism whose keys are kept, "" for none. One is all that the column scram has room for.
	SCRAM string
	// Salt is the salt of SCRAM's keys; nil makes up 12 bytes, as IndiMail does.
	Salt []byte
	// Iterations are those of SCRAM's keys; 0 means 4096, IndiMail's number and the least of RFC 7677 section 4.
	Iterations int
	// KeepClear keeps the password itself, which CRAM, DIGEST-MD5 and APOP need. Store gives it in clear; the directory has it encrypted
	// before it is written (Keyring).
	KeepClear bool
	// Encrypt is true where it is encrypted: a form with one in clear is weaker then.
	Encrypt bool
}

func (f Form) method() string {
	if f.Hash != "" {
		return f.Hash
	}
	if f.SCRAM != "" || f.KeepClear {
		return "SHA512"
	}
	return "ARGON2ID"
}

// ParseSCRAM reads what -m takes: SCRAM-SHA-1, SCRAM-SHA-256 or SCRAM-SHA-512 in any case; "" stays "".
func ParseSCRAM(word string) (string, error) {
	name := strings.ToUpper(word)
	if _, known := scramHashes()[name]; !known && word != "" {
		return "", fmt.Errorf("no keys for %q; there are SCRAM-SHA-1, SCRAM-SHA-256 and SCRAM-SHA-512", word)
	}
	return name, nil
}

// Check tells what is wrong with f before a password is asked for.
func (f Form) Check() error {
	if _, err := ParseMethod(f.Hash); err != nil {
		return err
	}
	if _, err := ParseSCRAM(f.SCRAM); err != nil {
		return err
	}
	switch {
	case f.SCRAM == "" && (f.Salt != nil || f.Iterations != 0):
		return errors.New("a salt and iterations are for the keys of SCRAM, and none were asked for")
	case f.Iterations != 0 && (f.Iterations < leastIterations || f.Iterations > mostIterations):
		return fmt.Errorf("%d iterations; there must be %d to %d", f.Iterations, leastIterations, mostIterations)
	case f.Salt != nil && (len(f.Salt) < 8 || len(f.Salt) > 32):
		return errors.New("a salt of SCRAM's has 8 to 32 bytes")
	}
	return nil
}

// Store gives what the columns pw_passwd and scram are to hold of a new password.
func (f Form) Store(password string) (passwd, kept string, err error) {
	if err := errors.Join(ValidPassword(password), f.Check()); err != nil {
		return "", "", err
	}
	if f.KeepClear && strings.TrimRight(password, " ") != password {
		// Databases cut blanks off the end of a CHAR.
		return "", "", errors.New("a password that is kept itself must not end with a blank")
	}
	if passwd, err = Crypt(f.method(), password, "", cryptRounds); err != nil {
		return "", "", err
	}
	switch {
	case f.SCRAM != "":
		salt := f.Salt
		if salt == nil {
			salt = make([]byte, 12)
			rand.Read(salt)
		}
		iterations := cmp.Or(f.Iterations, leastIterations)
		keys, salted, err := scramKeys(f.SCRAM, password, string(salt), iterations)
		if err != nil {
			return "", "", err
		}
		code := base64.StdEncoding.EncodeToString
		kept = "{" + f.SCRAM + "}" + strconv.Itoa(iterations) + "," + code(salt) + "," + code(keys.StoredKey) + "," + code(keys.ServerKey)
		if f.KeepClear {
			kept += ":" + hex.EncodeToString(salted) + ":" + password
		}
	case f.KeepClear:
		kept = "{CRAM}" + password
	}
	if len(passwd) > passwdWidth || len(kept) > scramWidth {
		return "", "", fmt.Errorf("what is to be kept needs %d bytes of the column pw_passwd and %d of scram, which have %d and %d: keep less, or a shorter password", len(passwd), len(kept), passwdWidth, scramWidth)
	}
	return passwd, kept, nil
}

// HashPassword gives the form in which a password is stored where nothing else is asked for: argon2id with 19 MiB and two passes.
func HashPassword(password string) (string, error) {
	passwd, _, err := Form{}.Store(password)
	return passwd, err
}

// ValidPassword tells what keeps a password from being stored in any form.
func ValidPassword(password string) error {
	if password == "" || len(password) > maxPassword || strings.ContainsAny(password, "\x00\r\n") {
		return fmt.Errorf("a password must have 1 to %d bytes and no NUL or line end", maxPassword)
	}
	return nil
}

// names tells people what f stores.
func (f Form) names() []string {
	names := []string{f.method()}
	if f.SCRAM != "" {
		names = append(names, f.SCRAM)
	}
	return names
}

// weaker tells that a stored form is to be replaced by f: its hash is easier to guess against, or it lacks keys that f has.
func (f Form) weaker(s Stored) bool {
	want := f.method()
	if s.hash == nil || f.Encrypt && s.Clear != "" && s.Sealed == "" {
		return true
	}
	if a, b := strength(s.Method), strength(want); a != b {
		if a < b {
			return true
		}
	} else if s.Method == want && s.hash.cost < costOf(want) {
		return true
	}
	if f.SCRAM == "" {
		return false
	}
	_, has := s.SCRAM[f.SCRAM]
	return !has
}

// renewing gives the form that takes the place of s: what s keeps is kept on.
func (f Form) renewing(s Stored) Form {
	f.KeepClear = s.Clear != "" || s.Sealed != ""
	for name, keys := range s.SCRAM {
		if f.SCRAM == "" {
			f.SCRAM = name
		}
		f.Iterations = max(f.Iterations, min(keys.Iters, mostIterations))
	}
	if f.SCRAM != "" {
		f.Iterations = max(f.Iterations, leastIterations)
	}
	return f
}

// scramKeys works out the keys of RFC 5802 section 3, and the salted password, which IndiMail keeps beside a password in clear text. A
// password that SASLprep refuses is taken as it is, which is what clients do that have no SASLprep.
func scramKeys(mechanism, password, salt string, iterations int) (keys scram.StoredCredentials, salted []byte, err error) {
	newHash, known := scramHashes()[mechanism]
	if !known {
		return keys, nil, fmt.Errorf("no keys for %q", mechanism)
	}
	if prepared, err := stringprep.SASLprep.Prepare(password); err == nil {
		password = prepared
	}
	client, err := newHash.NewClientUnprepped("", password, "")
	if err != nil {
		return keys, nil, err
	}
	if keys, err = client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: salt, Iters: iterations}); err != nil {
		return keys, nil, fmt.Errorf("keys of %s: %w", mechanism, err)
	}
	salted, err = pbkdf2.Key(newHash, password, []byte(salt), iterations, newHash().Size())
	return keys, salted, err
}
