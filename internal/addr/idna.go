package addr

import (
	"errors"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// FoldDomain gives the form under which equal domain names are found: lower case, and A-labels ("xn--…", RFC 5890) in the place of labels beyond ASCII,
// as they stand in the DNS. What is no domain name is only folded to lower case.
func FoldDomain(s string) string {
	if isASCII(s) {
		return strings.ToLower(s)
	}
	if folded, err := toASCII(s); err == nil {
		return strings.ToLower(folded)
	}
	return strings.ToLower(s)
}

// toASCII gives a domain name with A-labels. Labels beyond ASCII are folded as UTS 46 has it, where ß and ς stay what they are (RFC 5894 section 7.2);
// the others stay as they are, for names with an underscore are in use.
func toASCII(domain string) (string, error) {
	// Each character costs an A-label one octet at least, and UTF-8 four at most: what is longer would be too long in any case.
	if len(domain) > 4*maxDomain {
		return "", errors.New("malformed domain name")
	}
	labels := strings.Split(domain, ".")
	for i, l := range labels {
		if isASCII(l) {
			continue
		}
		folded, err := idna.Lookup.ToASCII(l)
		if err != nil || folded == "" || len(folded) > 63 {
			return "", errors.New("malformed domain name")
		}
		labels[i] = folded
	}
	return strings.Join(labels, "."), nil
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0
}
