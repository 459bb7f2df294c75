package settings

import (
	"slices"
	"strings"
)

// ForTokens gives the view for OAuth tokens of a domain's users by oauth.envrules. Where a rule names an issuer, or none by OAUTH_ISSUER=, nothing
// that was said before of another one holds: what one vouches for is never judged by the audience, claim or introspection of another.
func (v *View) ForTokens(domain string) *View {
	if v == nil {
		return nil
	}
	r := OAuthRules.Get(v)
	if r.Len() == 0 {
		return v
	}
	return v.with(r.tokens(r.patterns.match(domain, QRegex.Get(v))))
}

// tokens gives what the rules of these indices set, in the order of the file.
func (r *Rules) tokens(indices []int32) (assigns []assignment) {
	for _, i := range indices {
		one := r.rules[i].assigns
		if n := slices.IndexFunc(one, func(a assignment) bool { return a.setting == OAuthIssuer.Setting }); n >= 0 {
			where := one[n].value.source
			for name := range strings.FieldsSeq(issuersOwn) {
				s := byName(name)
				assigns = append(assigns, assignment{s, value{s.parsedUnset, Source{Layer: where.Layer, File: where.File, Line: where.Line, Value: s.Unset, Unset: true}}})
			}
		}
		assigns = append(assigns, one...)
	}
	return assigns
}

// TokenRule is a line of oauth.envrules.
type TokenRule struct {
	Pattern string
	// View is what holds for the pattern's own text, as for a domain; for a pattern that does not match itself, by its line alone.
	View *View
	// Where has the file and line, and no value.
	Where Source
}

// TokenRules gives the lines of oauth.envrules.
func (v *View) TokenRules() (all []TokenRule) {
	r := OAuthRules.Get(v)
	for i := range r.Len() {
		one := TokenRule{Pattern: r.patterns.patterns[i].text, Where: Source{Layer: "rule", Line: r.rules[i].line}}
		if len(r.rules[i].assigns) > 0 {
			one.Where.File = r.rules[i].assigns[0].value.source.File
		}
		indices := r.patterns.match(one.Pattern, QRegex.Get(v))
		if !slices.Contains(indices, int32(i)) {
			indices = []int32{int32(i)}
		}
		one.View = v.with(r.tokens(indices))
		all = append(all, one)
	}
	return all
}

// TokenValues gives the different values of a setting that tokens of any domain may meet: v's own, and those of oauth.envrules.
func TokenValues(v *View, key Key[string]) []string {
	all := []string{key.Get(v)}
	r := OAuthRules.Get(v)
	for i := range r.Len() {
		for _, a := range r.tokens([]int32{int32(i)}) {
			if text := a.value.parsed; a.setting == key.Setting && !slices.Contains(all, text.(string)) {
				all = append(all, text.(string))
			}
		}
	}
	return all
}
