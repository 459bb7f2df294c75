package auth

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
)

// columns is what pw_passwd and scram hold together: what locks the account, the hash, SCRAM's keys, and the password itself, in clear or sealed.
type columns struct{ lock, hash, keys, clear, sealed string }

// splitColumns takes both columns apart; kept is false when they keep no password beside a hash, or what they keep is malformed.
func splitColumns(passwd, scram string) (c columns, kept bool, err error) {
	c.hash = strings.TrimLeft(passwd, "!*")
	c.lock = passwd[:len(passwd)-len(c.hash)]
	part := scram
	switch {
	case besideHash(c.hash) && scram != "":
		if _, kept, _ := splitColumns(passwd, ""); kept {
			return c, false, errors.New("both columns, pw_passwd and scram, keep a password: set it anew")
		}
	case besideHash(c.hash):
		part, c.hash = cutHash(c.hash)
	case c.hash == "":
		part, c.hash = cutHash(scram)
	}
	var s Stored
	if _, err := s.parseKept(part, false); err != nil {
		return c, false, nil
	}
	c.keys, c.clear, c.sealed = keptPattern.FindString(part), s.Clear, s.Sealed
	return c, c.clear != "" || c.sealed != "", nil
}

// join gives the columns with the password sealed when it is, or else in the wiki's forms.
func (c columns) join() (passwd, scram string, err error) {
	passwd = c.lock + c.hash
	switch {
	case c.sealed != "" && c.keys != "":
		scram = c.keys + ":" + c.sealed
	case c.sealed != "":
		scram = c.sealed
	case c.keys == "":
		scram = "{CRAM}" + c.clear
	default:
		m := keptPattern.FindStringSubmatch(c.keys)
		salt, _ := base64.StdEncoding.DecodeString(m[3])
		iterations, _ := strconv.Atoi(m[2])
		_, salted, err := scramKeys(m[1], c.clear, string(salt), iterations)
		if err != nil {
			return "", "", err
		}
		scram = c.keys + ":" + hex.EncodeToString(salted) + ":" + c.clear
	}
	if len(passwd) > passwdWidth || len(scram) > scramWidth {
		return "", "", fmt.Errorf("what is to be kept needs %d bytes of the column pw_passwd and %d of scram, which have %d and %d: keep less, or a shorter password", len(passwd), len(scram), passwdWidth, scramWidth)
	}
	return passwd, scram, nil
}

// joinIf is join, or what was there before when nothing is to change; nothing with an error.
func (c columns) joinIf(changed bool, passwd, scram string, err error) (string, string, error) {
	switch {
	case err != nil:
		return "", "", err
	case !changed:
		return passwd, scram, nil
	}
	return c.join()
}

// KeepsPassword tells whether the columns keep a password itself beside a hash, in clear or encrypted. One that stands alone in pw_passwd is none.
func KeepsPassword(passwd, scram string) bool {
	_, kept, err := splitColumns(passwd, scram)
	return kept || err != nil
}

// Encrypt gives the columns pw_passwd and scram with the password that they keep encrypted by the first key. What is so already comes back as it is,
// if it can be decrypted; so does what keeps none. ErrKey, and ErrNoKeys without a file.
func (k *Keyring) Encrypt(user addr.Address, passwd, scram string) (string, string, error) {
	c, kept, err := splitColumns(passwd, scram)
	if err != nil || !kept {
		return passwd, scram, err
	}
	if c.sealed != "" {
		if c.clear, err = k.Open(user, c.sealed); err != nil {
			return "", "", err
		}
		if ids, err := k.IDs(); err != nil || len(ids) > 0 && ids[0] == SealedWith(c.sealed) {
			return passwd, scram, err
		}
	}
	if c.sealed, err = k.seal(user, c.clear); err != nil {
		return "", "", err
	}
	return c.join()
}

// opened takes the columns apart and decrypts the password, which sealed tells was encrypted.
func (k *Keyring) opened(user addr.Address, passwd, scram string) (c columns, kept, sealed bool, err error) {
	if c, kept, err = splitColumns(passwd, scram); err != nil || !kept || c.sealed == "" {
		return c, kept, false, err
	}
	c.clear, err = k.Open(user, c.sealed)
	c.sealed = ""
	return c, true, true, err
}

// Decrypt gives the columns with the password in clear, in the wiki's forms (2627, 2700).
func (k *Keyring) Decrypt(user addr.Address, passwd, scram string) (string, string, error) {
	c, _, sealed, err := k.opened(user, passwd, scram)
	return c.joinIf(sealed, passwd, scram, err)
}

// Reveal gives the columns as Decrypt does, and with what is kept in scram whichever it was in, so that two can be compared.
func (k *Keyring) Reveal(user addr.Address, passwd, scram string) (string, string, error) {
	c, kept, _, err := k.opened(user, passwd, scram)
	return c.joinIf(kept, passwd, scram, err)
}

// Move gives the columns of a user who gets another address, which an encrypted password is bound to.
func (k *Keyring) Move(from, to addr.Address, passwd, scram string) (string, string, error) {
	c, kept, err := splitColumns(passwd, scram)
	if err != nil || !kept || c.sealed == "" {
		return passwd, scram, err
	}
	if c.clear, err = k.Open(from, c.sealed); err == nil {
		c.sealed, err = k.seal(to, c.clear)
	}
	if err != nil {
		return "", "", err
	}
	return c.join()
}

// Forget gives the columns without the password that they keep; left is false when nothing would be left to log in with.
func Forget(passwd, scram string) (newPasswd, newScram string, left bool) {
	c, kept, err := splitColumns(passwd, scram)
	if err != nil {
		// Both columns keep one.
		passwd, _, _ = Forget(passwd, "")
		return Forget(passwd, scram)
	}
	if !kept {
		return passwd, scram, true
	}
	return c.lock + c.hash, c.keys, c.hash != "" || c.keys != ""
}

// WithoutSecrets gives the columns without anything that could be a password: as Forget, and without one that stands alone in pw_passwd, and what is
// malformed.
func WithoutSecrets(passwd, scram string) (newPasswd, newScram string) {
	passwd, scram, _ = Forget(passwd, scram)
	hash := strings.TrimLeft(passwd, "!*")
	if s, err := ParseStored(hash, ""); s.Bare || err != nil {
		passwd = passwd[:len(passwd)-len(hash)]
	}
	if s, err := ParseStored("", scram); err != nil || s.Bare || s.Clear != "" {
		scram = ""
	}
	return passwd, scram
}

// Secrets is the directory's Secrets: what is written keeps passwords as the settings say. All fields are required.
type Secrets struct {
	Keys *Keyring
	// Clear tells whether passwords are kept in clear, by PASSWORD_SECRETS.
	Clear func() (bool, error)
	// Used tells whether the directory has passwords that are encrypted already: no key is made then, for it must be somewhere.
	Used func(ctx context.Context) (bool, error)
}

// Guard implements directory.Secrets.
func (s *Secrets) Guard(ctx context.Context, user addr.Address, passwd, scram string) (string, string, error) {
	if !KeepsPassword(passwd, scram) {
		return passwd, scram, nil
	}
	clear, err := s.Clear()
	if err != nil {
		return "", "", err
	}
	if clear {
		return s.Keys.Decrypt(user, passwd, scram)
	}
	newPasswd, newScram, err := s.Keys.Encrypt(user, passwd, scram)
	if !errors.Is(err, ErrNoKeys) {
		return newPasswd, newScram, err
	}
	used, usedErr := s.Used(ctx)
	if usedErr != nil {
		return "", "", usedErr
	}
	if used {
		return "", "", fmt.Errorf("%w: the directory has passwords that are encrypted already, so the file is on another host or in a backup: copy it (PASSWORD_KEYS)", err)
	}
	if err := s.Keys.Create(); err != nil {
		return "", "", err
	}
	return s.Keys.Encrypt(user, passwd, scram)
}

// Restore implements directory.Secrets.
func (s *Secrets) Restore(ctx context.Context, user addr.Address, passwd, scram string) (string, string, error) {
	if c, kept, err := splitColumns(passwd, scram); err != nil || !kept || c.sealed != "" {
		return passwd, scram, nil
	}
	return s.Guard(ctx, user, passwd, scram)
}

// Move implements directory.Secrets.
func (s *Secrets) Move(from, to addr.Address, passwd, scram string) (string, string, error) {
	return s.Keys.Move(from, to, passwd, scram)
}
