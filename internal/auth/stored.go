package auth

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/xdg-go/scram"

	"github.com/indigomail/indigo/internal/auth/sasl"
)

// ErrNoPassword says that nothing is stored that a password could be compared with: an empty column, or one that begins with ! or *,
// as locked accounts do.
var ErrNoPassword = errors.New("no password is set, or it is locked")

// Stored is what the columns pw_passwd and scram say of a user's password (wiki 2543-2727).
type Stored struct {
	// Method names the one-way form as -h and PASSWORD_HASH do, or as its prefix in braces; "" when there is none.
	Method string
	// Clear is the password itself, "" when it is not kept. Bare tells that it stands alone in pw_passwd, the wiki's first method (2590).
	Clear string
	Bare  bool
	// Sealed is the password itself as a Keyring encrypted it, "" when it is not kept so; unseal gives Clear.
	Sealed string
	// SCRAM has the kept keys by their mechanism's name.
	SCRAM map[string]scram.StoredCredentials

	hash *hashed
}

// scramHashes are the mechanisms whose keys are kept.
func scramHashes() map[string]scram.HashGeneratorFcn {
	return map[string]scram.HashGeneratorFcn{"SCRAM-SHA-1": scram.SHA1, "SCRAM-SHA-256": scram.SHA256, "SCRAM-SHA-512": scram.SHA512}
}

// IterationBounds are the least and most iterations of SCRAM keys: RFC 7677 section 4 wants 4096 at least, and a client has to work all of
// them out. Keys from elsewhere are taken with fewer.
const (
	leastIterations = 4096
	mostIterations  = 1_000_000
)

// ParseStored reads both columns. IndiMail writes keys of SCRAM, and what {CRAM} keeps, in the column scram, and the hash in pw_passwd; its
// forms with a comma between them, as vuserinfo shows them, may stand whole in either. What could be read is given beside an error, so that
// a malformed column scram does not lock a user out. Errors never repeat a form.
func ParseStored(passwd, kept string) (Stored, error) {
	var s Stored
	var faults []error
	if kept != "" {
		rest, err := s.parseKept(kept, passwd == "")
		if err != nil {
			faults = append(faults, fmt.Errorf("column scram: %w", err))
		}
		if passwd == "" {
			passwd = rest
		}
	}
	if besideHash(passwd) {
		rest, err := s.parseKept(passwd, true)
		if err != nil {
			faults = append(faults, err)
		}
		passwd = rest
	}
	switch {
	case passwd == "" && s.besides():
	case passwd == "" || passwd[0] == '!' || passwd[0] == '*':
		faults = append(faults, ErrNoPassword)
		// What is locked is so for every mechanism.
		return Stored{}, errors.Join(faults...)
	case passwd[0] != '$' && passwd[0] != '{':
		if s.besides() {
			faults = append(faults, errors.New("pw_passwd has no stored form that is known"))
			break
		}
		s.Clear, s.Bare = passwd, true
	default:
		h, err := parseHashed(passwd)
		if err != nil {
			faults = append(faults, err)
			break
		}
		s.hash, s.Method = h, h.method
	}
	return s, errors.Join(faults...)
}

// besideHash tells whether a form is one that is kept beside a hash.
func besideHash(form string) bool {
	return strings.HasPrefix(form, "{CRAM}") || strings.HasPrefix(form, "{SCRAM-") || strings.HasPrefix(form, sealedPrefix)
}

func (s Stored) besides() bool { return s.Clear != "" || s.Sealed != "" || len(s.SCRAM) > 0 }

var keptPattern = regexp.MustCompile(`^\{(SCRAM-SHA-1|SCRAM-SHA-256|SCRAM-SHA-512)\}([0-9]{1,7}),([A-Za-z0-9+/=]{1,128}),([A-Za-z0-9+/=]{28,88}),([A-Za-z0-9+/=]{28,88})`)

// parseKept reads {CRAM}CLEAR, a sealed password, and {SCRAM-SHA-…}ITERATIONS,SALT,STOREDKEY,SERVERKEY with :HEX:CLEAR, a colon and a sealed password, or nothing behind it; with whole a hash may stand behind a comma,
// which is given back.
func (s *Stored) parseKept(form string, whole bool) (hash string, err error) {
	if whole {
		form, hash = cutHash(form)
	}
	if clear, ok := strings.CutPrefix(form, "{CRAM}"); ok {
		if clear == "" {
			return hash, errors.New("{CRAM} has no password behind it")
		}
		s.Clear = clear
		return hash, nil
	}
	if strings.HasPrefix(form, sealedPrefix) {
		if _, _, err := parseSealed(form); err != nil {
			return hash, err
		}
		s.Sealed = form
		return hash, nil
	}
	m := keptPattern.FindStringSubmatch(form)
	if m == nil {
		return hash, errors.New("neither {CRAM}, {SEALED} nor {SCRAM-SHA-1}, {SCRAM-SHA-256} or {SCRAM-SHA-512} with iterations, salt and two keys behind it")
	}
	name := m[1]
	iterations, _ := strconv.Atoi(m[2])
	if iterations < 1 || iterations > mostIterations {
		return hash, fmt.Errorf("{%s} with %s iterations; 1 to %d are taken", name, m[2], mostIterations)
	}
	size := scramHashes()[name]().Size()
	salt, saltErr := base64.StdEncoding.DecodeString(m[3])
	stored, storedErr := base64.StdEncoding.DecodeString(m[4])
	server, serverErr := base64.StdEncoding.DecodeString(m[5])
	if errors.Join(saltErr, storedErr, serverErr) != nil || len(stored) != size || len(server) != size {
		return hash, fmt.Errorf("{%s} with a salt or keys that are malformed", name)
	}
	clear, sealed := "", ""
	if rest := form[len(m[0]):]; strings.HasPrefix(rest, ":"+sealedPrefix) {
		sealed = rest[1:]
		if _, _, err := parseSealed(sealed); err != nil {
			return hash, fmt.Errorf("{%s} with %w", name, err)
		}
	} else if rest != "" {
		salted, text, ok := strings.Cut(strings.TrimPrefix(rest, ":"), ":")
		if raw, err := hex.DecodeString(salted); rest[0] != ':' || !ok || err != nil || len(raw) != size || text == "" {
			return hash, fmt.Errorf("{%s} with something other than :SALTED:PASSWORD behind its keys", name)
		}
		clear = text
	}
	s.SCRAM = map[string]scram.StoredCredentials{name: {KeyFactors: scram.KeyFactors{Salt: string(salt), Iters: iterations}, StoredKey: stored, ServerKey: server}}
	s.Clear, s.Sealed = clear, sealed
	return hash, nil
}

// cutHash cuts a form at the last comma that a hash stands behind: the password before it may have commas, and argon2id's form has.
func cutHash(form string) (rest, hash string) {
	for _, begin := range []string{",$", ",{"} {
		if i := strings.LastIndex(form, begin); i >= 0 {
			if _, err := parseHashed(form[i+1:]); err == nil {
				return form[:i], form[i+1:]
			}
		}
	}
	return form, ""
}

// SplitStored gives the columns for a form as -e of IndiMail's programs takes it: what is kept beside a hash goes to scram, where IndiMail looks
// for it, and pw_passwd is char(128).
func SplitStored(form string) (passwd, kept string) {
	if besideHash(form) {
		kept, passwd = cutHash(form)
		return passwd, kept
	}
	return form, ""
}

// CheckStored tells what keeps the columns' forms from being used; a password alone in pw_passwd is a fault here.
func CheckStored(passwd, kept string) error {
	s, err := ParseStored(passwd, kept)
	if err == nil && s.Bare {
		err = errors.New("the password is in no form that is known; " + knownForms)
	}
	return err
}

// Forms names what is stored, for people: the hash, mechanisms of SCRAM, CLEAR when the password itself is kept, ENCRYPTED when it is so with a
// key.
func (s Stored) Forms() (names []string) {
	if s.Method != "" {
		names = append(names, s.Method)
	}
	for name := range s.SCRAM {
		names = append(names, name)
	}
	slices.Sort(names[min(1, len(names)):])
	switch {
	case s.Sealed != "":
		names = append(names, "ENCRYPTED")
	case s.Clear != "":
		names = append(names, "CLEAR")
	}
	return names
}

// Usable tells whether some password that a client sends as it is can fit.
func (s Stored) Usable() bool { return s.hash != nil || !s.Bare && s.besides() }

// matches compares a password that a client sent: with the hash, or else with the kept password, or else with keys of SCRAM. It never fits a
// bare password (wiki 2591): who sees the database by accident must not have logins, and ENABLE_CRAM is what asks for that risk.
func (s Stored) matches(password string) bool {
	switch {
	case s.hash != nil:
		return s.hash.matches(password)
	case s.Clear != "" && !s.Bare:
		return Same(s.Clear, password)
	}
	for name, kept := range s.SCRAM {
		made, _, err := scramKeys(name, password, kept.Salt, kept.Iters)
		if err == nil && subtle.ConstantTimeCompare(made.StoredKey, kept.StoredKey) == 1 {
			return true
		}
	}
	return false
}

// desForm is what crypt(3) makes by DES: a salt and 64 bits, whose last letter stands for four of them.
var desForm = regexp.MustCompile(`^[./0-9A-Za-z]{12}[.26AEIMQUYcgkosw]$`)

// MaybeDES tells whether what stands alone in pw_passwd has the form of DES, as users of an old IndiMail have it. It may be a password that looks
// so, but is never taken for one: who has seen the hash would have the login.
func (s Stored) MaybeDES() bool { return s.Bare && desForm.MatchString(s.Clear) }

// Secrets gives what mechanisms of challenge and response need. bare is ENABLE_CRAM: it gives a password that stands alone in pw_passwd too, but
// for what may be a hash by DES.
func (s Stored) Secrets(bare bool) sasl.Secrets {
	secrets := sasl.Secrets{Clear: s.Clear, SCRAM: s.SCRAM}
	if s.Bare && !bare || s.MaybeDES() {
		secrets.Clear = ""
	}
	return secrets
}

// Same compares two secrets by their sums: the time of a plain comparison tells a length.
func Same(a, b string) bool {
	one, two := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(one[:], two[:]) == 1
}
