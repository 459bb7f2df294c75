package addr

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// FoldDomain gives the form under which equal domain names are found: lower case, and A-labels ("xn--…", RFC 5890) in the place of labels beyond ASCII,
// as they stand in the DNS. What is no domain name is only folded to lower case.
func FoldDomain(s string) string {
	if folded, err := toASCII(strings.ToLower(s)); err == nil {
		return folded
	}
	return strings.ToLower(s)
}

// toASCII gives a domain name with A-labels. Labels are folded as UTS 46 has it, by lower case and NFKC; ß and ς stay what they are (RFC 5894 section 7.2).
func toASCII(domain string) (string, error) {
	labels := strings.Split(domain, ".")
	for i, l := range labels {
		if ascii(l) {
			continue
		}
		folded := norm.NFKC.String(strings.ToLower(norm.NFKC.String(l)))
		for _, r := range folded {
			if r < utf8.RuneSelf && !isLetDig(byte(r)) && r != '-' || r >= utf8.RuneSelf && !unicode.In(r, unicode.L, unicode.M, unicode.N) && r != '·' && r != '\u200c' && r != '\u200d' {
				return "", errors.New("malformed domain name")
			}
		}
		if !ascii(folded) {
			folded = "xn--" + punycode([]rune(folded))
		}
		if labels[i] = folded; len(folded) > 63 {
			return "", errors.New("malformed domain name")
		}
	}
	return strings.Join(labels, "."), nil
}

func ascii(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0
}

// punycode encodes a label (RFC 3492 section 6.3); it has at most 63 octets, so that nothing overflows.
func punycode(label []rune) string {
	const base, tMin, tMax, skew, damp = 36, 1, 26, 38, 700
	var out []byte
	for _, r := range label {
		if r < utf8.RuneSelf {
			out = append(out, byte(r))
		}
	}
	basic := len(out)
	if basic > 0 {
		out = append(out, '-')
	}
	code, delta, bias := rune(utf8.RuneSelf), 0, 72
	for done := basic; done < len(label); code++ {
		next := rune(utf8.MaxRune)
		for _, r := range label {
			if r >= code {
				next = min(next, r)
			}
		}
		delta += int(next-code) * (done + 1)
		code = next
		for _, r := range label {
			if r < code {
				delta++
			}
			if r != code {
				continue
			}
			q := delta
			for k := base; ; k += base {
				t := min(max(k-bias, tMin), tMax)
				if q < t {
					break
				}
				out = append(out, digit(t+(q-t)%(base-t)))
				q = (q - t) / (base - t)
			}
			out = append(out, digit(q))
			// The bias is adapted (section 6.1).
			if done == basic {
				delta /= damp
			} else {
				delta /= 2
			}
			delta += delta / (done + 1)
			k := 0
			for ; delta > (base-tMin)*tMax/2; k += base {
				delta /= base - tMin
			}
			bias = k + (base-tMin+1)*delta/(delta+skew)
			delta = 0
			done++
		}
		delta++
	}
	return string(out)
}

func digit(n int) byte { return "abcdefghijklmnopqrstuvwxyz0123456789"[n] }
