package sasl

import (
	"context"
	"crypto/hmac"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"strings"
)

// digest is DIGEST-MD5 (RFC 2831) without security layers and without subsequent authentication.
type digest struct {
	config Config
	nonce  string
}

// maxDirectives bounds the pairs of a DIGEST-MD5 message.
const maxDirectives = 32

func (d *digest) first(_ context.Context, response []byte) ([]byte, step, error) {
	// An initial response would be subsequent authentication, or nothing.
	if len(response) > 0 {
		return nil, nil, ErrMalformed
	}
	return fmt.Appendf(nil, `realm=%s,nonce=%s,qop="auth",charset=utf-8,algorithm=md5-sess`, quote(d.config.Host), quote(d.nonce)), d.answer, nil
}

func (d *digest) answer(ctx context.Context, response []byte) ([]byte, step, error) {
	if len(response) > maxMessage {
		return nil, nil, ErrMalformed
	}
	given := map[string]string{}
	if err := directives(string(response), func(key, value string) error {
		if _, twice := given[key]; twice {
			return ErrMalformed
		}
		given[key] = value
		return nil
	}); err != nil {
		return nil, nil, err
	}
	a := digestAnswer{
		user: given["username"], realm: given["realm"], nonce: given["nonce"], cnonce: given["cnonce"], count: given["nc"],
		qop: given["qop"], uri: given["digest-uri"], authzid: given["authzid"],
	}
	switch given["charset"] {
	case "utf-8":
	case "":
		a.user, a.realm = fromLatin1(a.user), fromLatin1(a.realm)
	default:
		return nil, nil, ErrMalformed
	}
	if a.qop == "" {
		a.qop = "auth"
	}
	user := d.account(a)
	proof, err := hex.DecodeString(given["response"])
	kind, _, _ := strings.Cut(a.uri, "/")
	switch {
	case err != nil || len(proof) != md5.Size || !validName(user) || a.nonce == "" || a.cnonce == "":
		return nil, nil, ErrMalformed
	case a.nonce != d.nonce || a.count != "00000001":
		return nil, nil, failed("the nonce is not the one that was sent, or was used")
	case a.qop != "auth":
		return nil, nil, failed("a security layer was asked for")
	case !strings.EqualFold(kind, d.config.Service):
		return nil, nil, failed("digest-uri is for another service")
	case a.authzid != "" && a.authzid != a.user && a.authzid != user:
		return nil, nil, failed("the authorization identity is another user")
	}
	password, ok, err := keptPassword(ctx, d.config.Store, user)
	if err != nil {
		return nil, nil, err
	}
	if equal := hmac.Equal(proof, a.sum(password, "AUTHENTICATE:")); !equal || !ok {
		return nil, nil, failed("wrong response to the challenge, or no clear text password is kept")
	}
	return []byte("rspauth=" + hex.EncodeToString(a.sum(password, ":"))), last(d.config.Store, user), nil
}

// account gives the user that name and realm mean: user@realm may stand in the name, and this system's own name, or none,
// is the realm of those who belong to the default domain.
func (d *digest) account(a digestAnswer) string {
	if strings.Contains(a.user, "@") || a.realm == "" || strings.EqualFold(a.realm, d.config.Host) {
		return a.user
	}
	return a.user + "@" + a.realm
}

// digestAnswer is what response and rspauth are made of (RFC 2831 section 2.1.2.1).
type digestAnswer struct {
	user, realm, nonce, cnonce, count, qop, uri, authzid string
}

// sum gives response with "AUTHENTICATE:" and rspauth with ":".
func (a digestAnswer) sum(password, method string) []byte {
	secret := md5.Sum([]byte(toLatin1(a.user) + ":" + toLatin1(a.realm) + ":" + toLatin1(password)))
	a1 := string(secret[:]) + ":" + a.nonce + ":" + a.cnonce
	if a.authzid != "" {
		a1 += ":" + a.authzid
	}
	a2 := method + a.uri
	if a.qop != "auth" {
		a2 += ":00000000000000000000000000000000"
	}
	hexed := func(s string) string {
		sum := md5.Sum([]byte(s))
		return hex.EncodeToString(sum[:])
	}
	sum := md5.Sum([]byte(hexed(a1) + ":" + a.nonce + ":" + a.count + ":" + a.cnonce + ":" + a.qop + ":" + hexed(a2)))
	return sum[:]
}

// toLatin1 gives s in ISO 8859-1 if that has all its characters: so it is hashed.
func toLatin1(s string) string {
	b := make([]byte, 0, len(s))
	for _, r := range s {
		if r > 0xff {
			return s
		}
		b = append(b, byte(r))
	}
	return string(b)
}

func fromLatin1(s string) string {
	runes := make([]rune, len(s))
	for i := range len(s) {
		runes[i] = rune(s[i])
	}
	return string(runes)
}

// quote gives s as a quoted string.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// directives gives each pair of a comma-separated list (RFC 2831 section 7.1), its name in lower case.
func directives(s string, each func(key, value string) error) error {
	for n := 0; ; n++ {
		if s = strings.TrimLeft(s, ", \t\r\n"); s == "" {
			return nil
		}
		key, rest, ok := strings.Cut(s, "=")
		if key = strings.ToLower(strings.TrimRight(key, " \t")); !ok || key == "" || strings.ContainsAny(key, "\", \t") || n == maxDirectives {
			return ErrMalformed
		}
		rest = strings.TrimLeft(rest, " \t")
		var value string
		if strings.HasPrefix(rest, `"`) {
			if value, rest, ok = unquote(rest[1:]); !ok {
				return ErrMalformed
			}
		} else {
			end := strings.IndexAny(rest, ", \t")
			if end < 0 {
				end = len(rest)
			}
			value, rest = rest[:end], rest[end:]
		}
		if s = strings.TrimLeft(rest, " \t"); s != "" && s[0] != ',' {
			return ErrMalformed
		}
		if err := each(key, value); err != nil {
			return err
		}
	}
}

// unquote reads a quoted string behind its first quote.
func unquote(s string) (value, rest string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}
