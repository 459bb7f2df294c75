package settings

import (
	"slices"
	"strings"
	"testing"
)

// TestForTokens: what is said of one issuer holds for no other, in whatever order and layer it is said.
func TestForTokens(t *testing.T) {
	files := map[string]string{
		"control/oauthissuer": "https://house.test\n", "control/oauthaudience": "house\n", "control/oauthintrospection": "https://house.test/ask\n", "control/oauthclaim": "upn\n", "control/oauthskew": "7\n", "control/oauthca": "/ca.pem\n",
		"control/oauth.envrules": `# companies
*.example:OAUTH_SCOPE=all,OAUTH_TIMEOUT=3
a.example:OAUTH_AUDIENCE=mail other,OAUTH_ISSUER=https://a.test
b.example:OAUTH_ISSUER=
c.example:OAUTH_AUDIENCE=mail-c
*.d.example:OAUTH_ISSUER=https://d.test,OAUTH_CLIENTS=x
x.d.example:OAUTH_CLAIM=sub
y.d.example:OAUTH_ISSUER=https://y.test
[ef].test:OAUTH_ISSUER=https://ef.test
`,
	}
	s := load(t, files)
	v := s.View("imapd.143")
	for domain, want := range map[string]string{
		"other.test":  "https://house.test house  upn https://house.test/ask /ca.pem 7s 10s",
		"a.example":   "https://a.test mail other  email   7s 3s",
		"A.Example":   "https://a.test mail other  email   7s 3s",
		"b.example":   "   email   7s 3s",
		"c.example":   "https://house.test mail-c all upn https://house.test/ask /ca.pem 7s 3s",
		"x.d.example": "https://d.test   sub   7s 3s",
		"z.d.example": "https://d.test   email   7s 3s",
		"y.d.example": "https://y.test   email   7s 3s",
		"e.test":      "https://ef.test   email   7s 10s",
		"":            "https://house.test house  upn https://house.test/ask /ca.pem 7s 10s",
	} {
		o := v.ForTokens(domain)
		got := strings.Join([]string{OAuthIssuer.Get(o), OAuthAudience.Get(o), OAuthScope.Get(o), OAuthClaim.Get(o), OAuthIntrospection.Get(o), OAuthCA.Get(o), OAuthSkew.Get(o).String(), OAuthTimeout.Get(o).String()}, " ")
		if got != want {
			t.Errorf("%s: %q, want %q", domain, got, want)
		}
	}
	if where := v.ForTokens("a.example").Source(OAuthIntrospection.Setting); where.String() != "control/oauth.envrules:3" || !where.Unset {
		t.Error(where)
	}
	var lines []string
	for _, r := range v.TokenRules() {
		lines = append(lines, r.Pattern+" "+r.Where.String()+" "+OAuthIssuer.Get(r.View)+" "+OAuthScope.Get(r.View))
	}
	want := []string{
		"*.example control/oauth.envrules:2 https://house.test all", "a.example control/oauth.envrules:3 https://a.test ", "b.example control/oauth.envrules:4  ", "c.example control/oauth.envrules:5 https://house.test all",
		"*.d.example control/oauth.envrules:6 https://d.test ", "x.d.example control/oauth.envrules:7 https://d.test ", "y.d.example control/oauth.envrules:8 https://y.test ", "[ef].test control/oauth.envrules:9 https://ef.test ",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("%q", lines)
	}
	if got := TokenValues(v, OAuthIssuer); strings.Join(got, " ") != "https://house.test https://a.test  https://d.test https://y.test https://ef.test" {
		t.Errorf("%q", got)
	}
	if got := TokenValues(v, OAuthClaim); strings.Join(got, " ") != "upn email sub" {
		t.Errorf("%q", got)
	}
	var nothing *View
	if nothing.ForTokens("a.example") != nil || len(nothing.TokenRules()) != 0 || !slices.Equal(TokenValues(nothing, OAuthClaim), []string{"email"}) {
		t.Error("a nil view")
	}
	files["control/oauth.envrules"] = "a.example:OAUTH_ISSUER=x\nb.example:RELAYCLIENT=1\n"
	if _, err := Load(lay(t, files)); err == nil || !strings.Contains(err.Error(), "control/oauth.envrules:1") || !strings.Contains(err.Error(), "RELAYCLIENT cannot be set by this file") {
		t.Error(err)
	}
}
