package auth

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"regexp"
	"strconv"
	"strings"

	"github.com/go-crypt/crypt/algorithm"
	"github.com/go-crypt/crypt/algorithm/argon2"
	"github.com/go-crypt/crypt/algorithm/bcrypt"
	"github.com/go-crypt/crypt/algorithm/md5crypt"
	"github.com/go-crypt/crypt/algorithm/scrypt"
	"github.com/go-crypt/crypt/algorithm/shacrypt"
)

// maxPassword bounds a password in octets.
const maxPassword = 1024

// What one check of a stored form may cost: a form from elsewhere could ask for all memory, or for hours.
const (
	maxHashMemory = 256 << 20
	maxHashRounds = 5_000_000
	maxHashPasses = 64
	maxBcryptCost = 15
)

// hashed is a one-way form that a password can be compared with.
type hashed struct {
	// method is the name that -h and PASSWORD_HASH have for it.
	method string
	// cost orders two of the same method: rounds, or memory times passes.
	cost    int
	matches func(password string) bool
}

// strength orders methods by what a guess costs who has stolen the database.
func strength(method string) int {
	switch method {
	case "SHA256", "SHA512":
		return 1
	case "BCRYPT":
		return 2
	case "YESCRYPT", "ARGON2I", "ARGON2ID":
		return 3
	}
	return 0
}

// cryptForm is one of crypt(3)'s forms. Its pattern is stricter than the library's, which takes any text for salt and key.
type cryptForm struct {
	prefix, method string
	pattern        *regexp.Regexp
	decode         func(string) (algorithm.Digest, error)
	// cost reads the pattern's groups; an error says that it is out of bounds.
	cost func(groups []string) (int, error)
}

func bounded(what, text string, most int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n > most {
		return 0, fmt.Errorf("%s of %s; at most %d are worked out here", what, text, most)
	}
	return n, nil
}

func rounds(groups []string) (int, error) {
	if groups[1] == "" {
		return 5000, nil
	}
	return bounded("rounds", groups[1], maxHashRounds)
}

func argon2Cost(groups []string) (int, error) {
	memory, err := bounded("memory in KiB", groups[1], maxHashMemory>>10)
	if err != nil {
		return 0, err
	}
	passes, err := bounded("passes", groups[2], maxHashPasses)
	if err != nil || memory < 8 || passes < 1 {
		return 0, errors.Join(err, errors.New("memory or passes out of bounds"))
	}
	return memory * passes, nil
}

// yescryptCost reads the two letters of a setting: the logarithm of the number of blocks and the blocks' size, less one.
func yescryptCost(groups []string) (int, error) {
	const letters = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	n, r := strings.IndexByte(letters, groups[1][0])+1, strings.IndexByte(letters, groups[1][1])+1
	if n < 1 || n > 24 || r < 1 || int64(r)<<7<<n > maxHashMemory {
		return 0, errors.New("more memory than is used here")
	}
	return r << 7 << n, nil
}

// The table is made once and never changes.
var cryptForms = []cryptForm{
	{"$argon2id$", "ARGON2ID", regexp.MustCompile(`^\$argon2id\$v=19\$m=([0-9]{1,7}),t=([0-9]{1,3}),p=[1-9][0-9]?\$[A-Za-z0-9+/]{11,64}\$[A-Za-z0-9+/]{22,128}$`), argon2.DecodeVariant(argon2.VariantID), argon2Cost},
	{"$argon2i$", "ARGON2I", regexp.MustCompile(`^\$argon2i\$v=19\$m=([0-9]{1,7}),t=([0-9]{1,3}),p=[1-9][0-9]?\$[A-Za-z0-9+/]{11,64}\$[A-Za-z0-9+/]{22,128}$`), argon2.DecodeVariant(argon2.VariantI), argon2Cost},
	// Not $2x$: its faulty arithmetic is not the library's.
	{"$2", "BCRYPT", regexp.MustCompile(`^\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}$`), bcrypt.DecodeVariant(bcrypt.VariantStandard), func(g []string) (int, error) { return bounded("cost", g[1], maxBcryptCost) }},
	{"$y$", "YESCRYPT", regexp.MustCompile(`^\$y\$j([./0-9A-Z]{2})\$[./A-Za-z0-9]{4,86}\$[./A-Za-z0-9]{43}$`), scrypt.DecodeVariant(scrypt.VariantYescrypt), yescryptCost},
	{"$6$", "SHA512", regexp.MustCompile(`^\$6\$(?:rounds=([0-9]{4,9})\$)?[^$,:\n\x00]{0,16}\$[./A-Za-z0-9]{86}$`), shacrypt.DecodeVariant(shacrypt.VariantSHA512), rounds},
	{"$5$", "SHA256", regexp.MustCompile(`^\$5\$(?:rounds=([0-9]{4,9})\$)?[^$,:\n\x00]{0,16}\$[./A-Za-z0-9]{43}$`), shacrypt.DecodeVariant(shacrypt.VariantSHA256), rounds},
	{"$1$", "MD5", regexp.MustCompile(`^\$1\$[^$,:\n\x00]{0,8}\$[./A-Za-z0-9]{22}$`), md5crypt.DecodeVariant(md5crypt.VariantStandard), func([]string) (int, error) { return 1000, nil }},
}

// knownForms is what errors name.
const knownForms = "known are $argon2id$, $argon2i$, $2b$ (also $2a$ and $2y$), $y$, $6$, $5$ and $1$, these behind {CRYPT} and Dovecot's names for them, {SSHA}, {SSHA256}, {SSHA512}, {SHA}, {SHA256}, {SHA512}, {CRAM} and {SCRAM-SHA-1}, {SCRAM-SHA-256}, {SCRAM-SHA-512}"

var schemePattern = regexp.MustCompile(`^\{([A-Za-z0-9.-]{1,20})\}`)

// parseHashed reads a one-way form. Errors never repeat it.
func parseHashed(stored string) (*hashed, error) {
	if m := schemePattern.FindStringSubmatch(stored); m != nil {
		return parseScheme(strings.ToUpper(m[1]), stored[len(m[0]):])
	}
	for _, form := range cryptForms {
		if !strings.HasPrefix(stored, form.prefix) {
			continue
		}
		groups := form.pattern.FindStringSubmatch(stored)
		if groups == nil {
			break
		}
		cost, err := form.cost(groups)
		if err != nil {
			return nil, fmt.Errorf("the stored form %s…: %w", form.prefix, err)
		}
		digest, err := form.decode(stored)
		if err != nil {
			// The library's error may repeat what it was given.
			return nil, fmt.Errorf("the stored form %s… is malformed", form.prefix)
		}
		return &hashed{method: form.method, cost: cost, matches: digest.Match}, nil
	}
	if id, _, ok := strings.Cut(strings.TrimPrefix(stored, "$"), "$"); ok && stored[0] == '$' && len(id) < 12 && strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789") == "" {
		return nil, fmt.Errorf("the stored form $%s$… is not known or is malformed; %s", id, knownForms)
	}
	return nil, errors.New("no stored form that is known; " + knownForms)
}

// parseScheme reads what other systems, Dovecot's and LDAP's, put a name in braces before.
func parseScheme(scheme, rest string) (*hashed, error) {
	salted := func(newHash func() hash.Hash, salt bool) (*hashed, error) {
		raw, err := base64.StdEncoding.DecodeString(rest)
		size := newHash().Size()
		if err != nil || len(raw) < size || len(raw) > size+64 || (len(raw) > size) != salt {
			return nil, fmt.Errorf("the stored form {%s} is malformed", scheme)
		}
		return &hashed{method: scheme, cost: 1, matches: func(password string) bool {
			h := newHash()
			h.Write([]byte(password))
			h.Write(raw[size:])
			return subtle.ConstantTimeCompare(h.Sum(nil), raw[:size]) == 1
		}}, nil
	}
	switch scheme {
	case "CRYPT", "MD5-CRYPT", "SHA256-CRYPT", "SHA512-CRYPT", "BLF-CRYPT", "ARGON2I", "ARGON2ID":
		if !strings.HasPrefix(rest, "$") {
			return nil, fmt.Errorf("the stored form {%s} has no hash that is known behind it; %s", scheme, knownForms)
		}
		return parseHashed(rest)
	case "SSHA":
		return salted(sha1.New, true)
	case "SSHA256":
		return salted(sha256.New, true)
	case "SSHA512":
		return salted(sha512.New, true)
	case "SHA", "SHA1":
		return salted(sha1.New, false)
	case "SHA256":
		return salted(sha256.New, false)
	case "SHA512":
		return salted(sha512.New, false)
	case "PLAIN", "CLEAR", "CLEARTEXT":
		return nil, fmt.Errorf("{%s} is the password itself: set it, or import it in the column cleartext, and it is hashed; {CRAM} keeps it for CRAM", scheme)
	}
	return nil, fmt.Errorf("the stored form {%s} is not known; %s", scheme, knownForms)
}

// What new hashes cost. 100,000 rounds of SHA512 take a processor some 25 ms, argon2id's two passes over 19 MiB and bcrypt twice to four times that.
const (
	argon2Memory = 19456
	argon2Passes = 2
	bcryptCost   = 11
	cryptRounds  = 100000
	// CryptRounds is what crypt(3) does unless told otherwise, and leaves out of the form.
	CryptRounds = 5000
)

// costOf gives the cost of new hashes, in the measure of hashed.cost.
func costOf(method string) int {
	return map[string]int{"ARGON2ID": argon2Memory * argon2Passes, "BCRYPT": bcryptCost, "SHA512": cryptRounds, "SHA256": cryptRounds, "MD5": 1000}[method]
}

// ParseMethod reads what -h and PASSWORD_HASH take: IndiMail's words and numbers (MD5 or 1, SHA-256 or SHA256 or 2, SHA-512 or
// SHA512 or 3), BCRYPT and ARGON2ID; "" stays "".
func ParseMethod(word string) (string, error) {
	switch w := strings.ToUpper(word); w {
	case "", "BCRYPT", "ARGON2ID", "MD5", "SHA256", "SHA512":
		return w, nil
	case "1":
		return "MD5", nil
	case "2", "SHA-256":
		return "SHA256", nil
	case "3", "SHA-512":
		return "SHA512", nil
	case "0", "DES":
		return "", errors.New("DES is not made: it counts eight letters of a password, and every one of its keys can be tried; SHA512 and ARGON2ID are there")
	}
	return "", fmt.Errorf("no way to hash %q; there are ARGON2ID, BCRYPT, SHA512, SHA256 and MD5", word)
}

// Crypt gives a password's form of crypt(3) by a method of ParseMethod's. salt "" makes one up; one that is given is for MD5, SHA256
// and SHA512 only. rounds count for SHA256 and SHA512.
func Crypt(method, password, salt string, rounds int) (string, error) {
	if strings.Trim(salt, "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") != "" {
		return "", errors.New("a salt has the letters a-z, A-Z, 0-9, dot and slash")
	}
	if most := map[string]int{"MD5": 8, "SHA256": 16, "SHA512": 16}[method]; len(salt) > most {
		return "", fmt.Errorf("a salt for %s has at most %d letters", method, most)
	}
	type hasher interface {
		Hash(password string) (algorithm.Digest, error)
		HashWithSalt(password string, salt []byte) (algorithm.Digest, error)
	}
	var h hasher
	var err error
	switch method {
	case "ARGON2ID":
		h, err = argon2.New(argon2.WithVariantID(), argon2.WithM(argon2Memory), argon2.WithT(argon2Passes), argon2.WithP(1), argon2.WithS(16), argon2.WithK(32))
	case "BCRYPT":
		if len(password) > 72 {
			return "", errors.New("bcrypt counts 72 bytes of a password, and this one has more: another hash takes it")
		}
		h, err = bcrypt.New(bcrypt.WithVariant(bcrypt.VariantStandard), bcrypt.WithCost(bcryptCost))
	case "SHA256":
		h, err = shacrypt.New(shacrypt.WithVariant(shacrypt.VariantSHA256), shacrypt.WithIterations(rounds))
	case "SHA512":
		h, err = shacrypt.New(shacrypt.WithVariant(shacrypt.VariantSHA512), shacrypt.WithIterations(rounds))
	case "MD5":
		h, err = md5crypt.New(md5crypt.WithVariant(md5crypt.VariantStandard), md5crypt.WithSaltLength(8))
	default:
		return "", fmt.Errorf("no way to hash %q", method)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", method, err)
	}
	var digest algorithm.Digest
	if salt == "" {
		digest, err = h.Hash(password)
	} else {
		digest, err = h.HashWithSalt(password, []byte(salt))
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", method, err)
	}
	return digest.Encode(), nil
}
