// Package addr is vocabulary: mail addresses as RFC 5321 section 4.1.2 and RFC 6531 write them, and qmail's extension
// addresses. It must not know which addresses exist.
package addr

import "strings"

// Address is a mailbox: a local part without its quoting, and a domain as written (a host name or an address
// literal with its brackets; a name beyond ASCII in A-labels, RFC 5890). The zero value is the null address, "<>", the sender of bounces. A local part
// without a domain is allowed only for "postmaster" (RFC 5321 section 4.1.1.3).
type Address struct {
	Local  string
	Domain string
}

// IsNull tells whether a is the null address.
func (a Address) IsNull() bool { return a.Local == "" && a.Domain == "" }

// String gives the address as it stands between the angle brackets, the local part quoted where the grammar needs it;
// "" for the null address.
func (a Address) String() string {
	if a.IsNull() {
		return ""
	}
	local := a.Local
	if needsQuotes(local) {
		local = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(local) + `"`
	}
	if a.Domain == "" {
		return local
	}
	return local + "@" + a.Domain
}

// needsQuotes tells whether a local part is no dot-string.
func needsQuotes(local string) bool {
	p := parser{s: local, o: Options{UTF8: true}}
	if strings.HasPrefix(local, `"`) {
		return true
	}
	_, err := p.local()
	return err != nil || p.i != len(local)
}

// Key gives the form under which equal addresses are found: local part and domain folded to lower case. Indigo, like
// qmail-local and IndiMail's directory, compares local parts without regard to case.
func (a Address) Key() string { return strings.ToLower(a.String()) }

// Extension splits the local part at the first delimiter, as qmail does with "-": user and extension.
func (a Address) Extension(delimiter byte) (user, extension string) {
	user, extension, _ = strings.Cut(a.Local, string(delimiter))
	return user, extension
}

// MarshalText gives the address as String does.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads what MarshalText wrote: an address, "" for the null one, or qmail's "#@[]" of double bounces.
func (a *Address) UnmarshalText(text []byte) error {
	switch s := string(text); s {
	case "":
		*a = Address{}
	case "#@[]":
		*a = Address{Local: "#", Domain: "[]"}
	default:
		parsed, err := Parse(s)
		if err != nil {
			return err
		}
		*a = parsed
	}
	return nil
}
