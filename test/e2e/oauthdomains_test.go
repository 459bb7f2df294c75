package e2e

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/test/instance"
	"github.com/indigomail/indigo/test/issuer"
)

// namelessToken logs in at imapd.993 by a token alone, and gives the reply.
func namelessToken(t *testing.T, in *instance.Instance, token string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", in.Address("imapd.993"), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "a AUTHENTICATE OAUTHBEARER %s\r\n", base64.StdEncoding.EncodeToString([]byte("n,,\x01auth=Bearer "+token+"\x01\x01")))
	replies := bufio.NewScanner(conn)
	for replies.Scan() {
		switch line := replies.Text(); {
		case strings.HasPrefix(line, "+ "):
			fmt.Fprint(conn, "AQ==\r\n")
		case strings.HasPrefix(line, "a "):
			return line
		}
	}
	t.Fatal("no reply: ", replies.Err())
	return ""
}

// TestTokensByDomain: the issuer of one domain vouches for nobody of another, whatever the client says and however it leaves out to say it.
func TestTokensByDomain(t *testing.T) {
	need(t, "curl")
	in := up(t)
	house, a, b, stranger := startIssuer(t), startIssuer(t), startIssuer(t), startIssuer(t)
	for _, domain := range []string{"a.test", "b.test"} {
		command(t, in, "domain", "add", domain)
	}
	command(t, in, "domain", "alias", "add", "also-a.test", "a.test")
	const alice, ann, alias, ben = "alice@indigo.test", "ann@a.test", "ann@also-a.test", "ben@b.test"
	for _, user := range []string{ann, "alice@a.test", ben, "ann@b.test"} {
		command(t, in, "user", "add", user, "--password-file", passwordFile(t))
	}
	command(t, in, "settings", "set", "AUTH_LOCK_CLIENT", "0")
	command(t, in, "settings", "set", "AUTH_LOCK_ACCOUNT", "0")
	command(t, in, "settings", "set", "AUTH_DELAY", "0")
	doors := []string{"smtpd.587", "imapd.143", "pop3d.995"}
	asked := func() (n int) {
		for _, i := range []*issuer.Issuer{house, a, b, stranger} {
			n += i.Requests(issuer.Discovery) + i.Requests(issuer.Keys) + i.Requests(issuer.Introspection)
		}
		return n
	}
	rules := func(lines ...string) {
		t.Helper()
		control(t, in, "oauth.envrules", strings.Join(lines, "\n")+"\n")
		command(t, in, "check")
		command(t, in, "reload")
	}
	lets := func(what, user, token string, want bool) {
		t.Helper()
		for n, door := range doors {
			mechanism := []string{"OAUTHBEARER", "XOAUTH2"}[n%2]
			if ok, out := tryToken(t, in, door, mechanism, user, token); ok != want {
				t.Errorf("%s, %s by %s: %v\n%s", what, door, mechanism, ok, out)
			}
		}
	}
	nameless := func(what, token string, want bool) {
		t.Helper()
		if reply := namelessToken(t, in, token); strings.HasPrefix(reply, "a OK") != want || !want && !strings.HasPrefix(reply, "a NO [AUTHENTICATIONFAILED]") {
			t.Errorf("%s, without a name: %s", what, reply)
		}
	}
	// untold has something refused without a question to any issuer.
	untold := func(what, user, token string) {
		t.Helper()
		before := asked()
		if user == "" {
			nameless(what, token, false)
		} else {
			lets(what, user, token, false)
		}
		if n := asked() - before; n != 0 {
			t.Errorf("%s: %d questions to issuers", what, n)
		}
	}
	if ok, out := tryToken(t, in, "smtpd.587", "XOAUTH2", ann, a.Token(ann, nil)); ok || !strings.Contains(out, "504 5.5.4") {
		t.Errorf("no issuer at all:\n%s", out)
	}

	// A line that is not whole, and one without effect, are told by their place.
	control(t, in, "oauth.envrules", "# companies\na.test:OAUTH_ISSUER="+a.URL+"\nb.test:OAUTH_SCOPE=mail\n")
	r, err := indigo.Run(within(t, time.Minute), "check", "--data", in.Ready.Data)
	if err != nil || r.Code == 0 || !strings.Contains(r.Out, "control/oauth.envrules:2: error: OAUTHRULES: a.test: neither OAUTH_AUDIENCE") ||
		!strings.Contains(r.Out, "control/oauth.envrules:3: warning: OAUTHRULES: b.test: no issuer is set for it") {
		t.Errorf("%v %d\n%s", err, r.Code, r.Out+r.Err)
	}

	lineA := fmt.Sprintf("a.test:OAUTH_ISSUER=%s,OAUTH_AUDIENCE=mail,OAUTH_CA=%s", a.URL, a.CA)
	lineB := fmt.Sprintf("b.test:OAUTH_ISSUER=%s,OAUTH_AUDIENCE=mail,OAUTH_CA=%s", b.URL, b.CA)
	// Domains have their own, the service has none.
	rules("# companies", lineA, lineB)
	crossed := func(service string) {
		t.Helper()
		ca := filepath.Join(in.Ready.Data, "certs", "servercert.pem")
		for _, protocol := range []string{"smtp", "imap"} {
			for user, token := range map[string]string{ann: a.Token(ann, nil), ben: b.Token(ben, nil)} {
				at := attemptAt(t, in, mailClient{protocol: protocol}, "OAUTHBEARER", "starttls", token, user)
				if ok, out := curlLogin(t, in, protocol, ca)(at); !ok {
					t.Errorf("%s, curl, %s, %s:\n%s", service, protocol, user, out)
				}
			}
			at := attemptAt(t, in, mailClient{protocol: protocol}, "OAUTHBEARER", "starttls", a.Token(ben, nil), ben)
			if ok, out := curlLogin(t, in, protocol, ca)(at); ok {
				t.Errorf("%s, curl, %s: a's issuer logs in %s:\n%s", service, protocol, ben, out)
			}
		}
		lets("a's token", ann, a.Token(ann, nil), true)
		lets("a's token by the alias domain", alias, a.Token(ann, nil), true)
		lets("a's token that names the alias domain", ann, a.Token(alias, nil), true)
		lets("b's token", ben, b.Token(ben, nil), true)
		lets("a's token for another user of a", ann, a.Token("alice@a.test", nil), false)
		lets("a's token that names b's user, by a's name", ann, a.Token(ben, nil), false)
		lets("a's token that names the house's user, by a's name", ann, a.Token(alice, nil), false)
		for name, foreign := range map[string]*issuer.Issuer{"a's": a, "house's": house, "stranger's": stranger} {
			untold(name+" token for ben", ben, foreign.Token(ben, nil))
		}
		for name, foreign := range map[string]*issuer.Issuer{"b's": b, "house's": house, "stranger's": stranger} {
			untold(name+" token for ann", ann, foreign.Token(ann, nil))
			untold(name+" token for ann by the alias domain", alias, foreign.Token(alias, nil))
			untold(name+" token for ann", "", foreign.Token(ann, nil))
			untold(name+" token for ann by the alias domain", "", foreign.Token(alias, nil))
		}
		untold("a's token for the house's user", alice, a.Token(alice, nil))
		untold("a's token for the house's user", "", a.Token(alice, nil))
		untold("a's token for nobody", "", a.Token("nobody@nowhere.test", nil))
		untold("what is no JWT", "", "opaque")
		untold("a token of no issuer", "", a.Token(ann, map[string]any{"iss": nil}))
		nameless("a's token", a.Token(ann, nil), true)
		nameless("a's token that names the alias domain", a.Token(alias, nil), true)
		nameless("b's token", b.Token(ben, nil), true)
		nameless("b's token for a user whom there is not", b.Token("nobody@b.test", nil), false)
		forged := strings.Split(a.Token(ann, nil), ".")
		forged[1] = strings.Split(a.Token("alice@a.test", nil), ".")[1]
		nameless("a's token with other claims", strings.Join(forged, "."), false)
	}
	crossed("no issuer for all")
	untold("the house's token", alice, house.Token(alice, nil))
	untold("the house's token", "", house.Token(alice, nil))
	if ok, out := tryToken(t, in, "smtpd.587", "OAUTHBEARER", ben, a.Token(ben, nil)); ok || !strings.Contains(out, b.URL+issuer.Discovery) || strings.Contains(out, a.URL+issuer.Discovery) {
		t.Errorf("ben is not told of his own issuer alone:\n%s", out)
	}

	// And one for all others, whose introspection, for whose tokens alone it is, would say yes to all.
	trust(t, in, house)
	crossed("an issuer for all")
	lets("the house's token", alice, house.Token(alice, nil), true)
	nameless("the house's token", house.Token(alice, nil), true)
	for _, s := range [][]string{{"OAUTH_INTROSPECTION", house.URL + issuer.Introspection}, {"OAUTH_INTROSPECTION_ID", issuer.Client}, {"OAUTH_INTROSPECTION_SECRET_FILE", written(t, issuer.Secret)}} {
		command(t, in, "settings", "set", s[0], s[1])
	}
	command(t, in, "reload")
	lets("an opaque token of the house", alice, house.Opaque(alice, nil), true)
	untold("an opaque token of the house for ann", ann, house.Opaque(ann, map[string]any{"iss": nil}))
	untold("an opaque token of the house", "", house.Opaque(alice, nil))
	untold("a's token for the house's user", alice, a.Token(alice, nil))
	lets("a's token where the house has introspection", ann, a.Token(ann, nil), true)
	for _, name := range []string{"OAUTH_INTROSPECTION", "OAUTH_INTROSPECTION_ID", "OAUTH_INTROSPECTION_SECRET_FILE"} {
		command(t, in, "settings", "unset", name)
	}

	// A domain with introspection, and names without a domain; one that takes no tokens at all; one with another audience of the house's issuer.
	secret := filepath.Join(in.Ready.Data, "control", "b.secret")
	if err := os.WriteFile(secret, []byte(issuer.Secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	rules("a.test:OAUTH_ISSUER=", fmt.Sprintf("%s,OAUTH_CLAIM=sub,OAUTH_DOMAIN=b.test,OAUTH_INTROSPECTION=%s,OAUTH_INTROSPECTION_ID=%s,OAUTH_INTROSPECTION_SECRET_FILE=%s", lineB, b.URL+issuer.Introspection, issuer.Client, secret))
	for who, i := range map[string]*issuer.Issuer{"a's": a, "the house's": house} {
		untold(who+" token for a domain that takes none", ann, i.Token(ann, nil))
		untold(who+" token for a domain that takes none", "", i.Token(ann, nil))
	}
	lets("an opaque token of b's", ben, b.Opaque("x", map[string]any{"sub": "ben"}), true)
	lets("an opaque token of b's for another", "ann@b.test", b.Opaque("x", map[string]any{"sub": "ben"}), false)
	lets("an opaque token of b's that names another domain", ben, b.Opaque("x", map[string]any{"sub": alice}), false)
	nameless("a token of b's with half a name, which its introspection does not know", b.Token("x", map[string]any{"sub": "ben"}), false)
	// What introspection says is not what the token says of itself, by which the issuer was chosen.
	for name, want := range map[string]bool{"ben": true, alice: false, ann: false, alias: false} {
		b.Answer(func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == issuer.Introspection {
				fmt.Fprintf(w, `{"active":true,"aud":"mail","sub":%q}`, name)
			}
			return r.URL.Path == issuer.Introspection
		})
		nameless("b's introspection names "+name, b.Token("x", map[string]any{"sub": "ben", "jti": name}), want)
	}
	b.Answer(nil)
	rules(lineA, "b.test:OAUTH_AUDIENCE=shop")
	lets("the house's token for b", ben, house.Token(ben, map[string]any{"aud": "shop"}), true)
	nameless("the house's token for b", house.Token(ben, map[string]any{"aud": "shop"}), true)
	lets("the house's token for others", ben, house.Token(ben, nil), false)
	lets("the house's token for b by another's name", alice, house.Token(alice, map[string]any{"aud": "shop"}), false)

	// What tells of it.
	why := func(user, token string) (int, string) {
		r, err := indigo.Run(within(t, time.Minute), "auth", "why", user, "--service", "imapd.993", "--token-file", written(t, token), "--data", in.Ready.Data)
		if err != nil {
			t.Fatal(err)
		}
		return r.Code, r.Out
	}
	if code, out := why(alias, a.Token(ann, nil)); code != 0 || !strings.Contains(out, "with a token of "+a.URL+" whose claim email is the address, by control/oauth.envrules:1") {
		t.Errorf("%d\n%s", code, out)
	}
	if code, out := why(ann, a.Token(ben, nil)); code != 1 || !strings.Contains(out, "it names ben@b.test, and is of "+a.URL+", which does not vouch for users of b.test") {
		t.Errorf("%d\n%s", code, out)
	}
	if out := command(t, in, "settings", "explain", "OAUTH_ISSUER", "--service", "imapd.993", "--user", ann); !strings.Contains(out, a.URL) || !strings.Contains(out, "oauth.envrules:1") {
		t.Errorf("%s", out)
	}
	if out := command(t, in, "settings", "explain", "OAUTH_SCOPE", "--service", "imapd.993", "--user", ann); !strings.Contains(out, "oauth.envrules:1") {
		t.Errorf("the scope of the house's issuer is not taken back:\n%s", out)
	}
	control(t, in, "oauth.envrules", "also-a.test:OAUTH_ISSUER="+a.URL+",OAUTH_AUDIENCE=mail\n")
	if _, out := why(alias, a.Token(ann, nil)); !strings.Contains(out, "control/oauth.envrules:1 is for the name also-a.test: tokens go by the rules for a.test alone") {
		t.Errorf("%s", out)
	}

	// To undo it.
	if err := os.Remove(filepath.Join(in.Ready.Data, "control", "oauth.envrules")); err != nil {
		t.Fatal(err)
	}
	command(t, in, "settings", "unset", "OAUTH_ISSUER")
	command(t, in, "reload")
	if ok, out := tryToken(t, in, "smtpd.587", "XOAUTH2", ann, a.Token(ann, nil)); ok || !strings.Contains(out, "504 5.5.4") {
		t.Errorf("undone:\n%s", out)
	}
}
