package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/test/instance"
	"github.com/indigomail/indigo/test/issuer"
	"github.com/indigomail/indigo/test/postfix"
)

// startIssuer starts an issuer of tokens whose certificate's authority every user may read.
func startIssuer(t *testing.T) *issuer.Issuer {
	t.Helper()
	i, err := issuer.Start(folder(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.Close)
	return i
}

// trust has an instance take an issuer's tokens.
func trust(t *testing.T, in *instance.Instance, i *issuer.Issuer) {
	t.Helper()
	for _, s := range [][]string{{"OAUTH_ISSUER", i.URL}, {"OAUTH_AUDIENCE", "mail"}, {"OAUTH_SCOPE", "mail"}, {"OAUTH_CA", i.CA}} {
		command(t, in, "settings", "set", s[0], s[1])
	}
	command(t, in, "reload")
}

// written puts a text into a file that only its owner may read.
func written(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(name, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// tryToken logs in by a token with indigo's own client, and gives what that printed.
func tryToken(t *testing.T, in *instance.Instance, service, mechanism, user, token string) (bool, string) {
	t.Helper()
	kind, _, _ := strings.Cut(service, ".")
	args := []string{"auth", "test", user, "--server", in.Address(service), "--protocol", map[string]string{"smtpd": "smtp", "imapd": "imap", "pop3d": "pop3"}[kind],
		"--insecure", "--mech", mechanism, "--token-file", written(t, token)}
	if strings.HasSuffix(service, ".465") || strings.HasSuffix(service, "99") || strings.HasSuffix(service, ".993") || strings.HasSuffix(service, ".995") {
		args = append(args, "--tls")
	}
	r, err := indigo.Run(within(t, time.Minute), args...)
	if err != nil {
		t.Fatal(err)
	}
	return r.Code == 0, r.Out + r.Err
}

// TestTokens logs in with an issuer's tokens at every door, and looks at what is said of those that are refused.
func TestTokens(t *testing.T) {
	need(t, "curl")
	i, in := startIssuer(t), up(t)
	command(t, in, "user", "add", "bob@indigo.test", "--password-file", passwordFile(t))
	const alice = "alice@indigo.test"
	doors := []string{"smtpd.587", "smtpd.465", "imapd.143", "imapd.993", "pop3d.110", "pop3d.995"}
	if ok, out := tryToken(t, in, "smtpd.587", "OAUTHBEARER", alice, i.Token(alice, nil)); ok || !strings.Contains(out, "504 5.5.4") {
		t.Errorf("without an issuer:\n%s", out)
	}
	// What is not whole is an error of `check`, and no reason to refuse a token.
	command(t, in, "settings", "set", "OAUTH_ISSUER", i.URL)
	r, err := indigo.Run(within(t, time.Minute), "check", "--data", in.Ready.Data)
	if err != nil || r.Code == 0 || !strings.Contains(r.Out+r.Err, "OAUTH_AUDIENCE") {
		t.Errorf("%v %d %s", err, r.Code, r.Out+r.Err)
	}
	command(t, in, "reload")
	if ok, out := tryToken(t, in, "smtpd.587", "OAUTHBEARER", alice, i.Token(alice, nil)); ok || !strings.Contains(out, "454 4.7.0 temporary") {
		t.Errorf("with half an issuer:\n%s", out)
	}
	trust(t, in, i)
	command(t, in, "check")
	good := i.Token(alice, nil)
	long := i.Token(alice, map[string]any{"padding": strings.Repeat("x", 6000)})
	if len(long) < 8192 {
		t.Fatalf("the long token has %d bytes", len(long))
	}
	ca := filepath.Join(in.Ready.Data, "certs", "servercert.pem")
	for _, door := range doors {
		for _, m := range []string{"OAUTHBEARER", "XOAUTH2"} {
			for _, token := range []string{good, long} {
				if ok, out := tryToken(t, in, door, m, alice, token); !ok || strings.Contains(out, token[len(token)-40:]) {
					t.Errorf("%s by %s, token of %d bytes:\n%s", door, m, len(token), out)
				}
			}
		}
	}
	// The same by a program of others, which sends the long token as it sends short ones.
	for _, protocol := range []string{"smtp", "imap", "pop3"} {
		for _, m := range []string{"OAUTHBEARER", "XOAUTH2"} {
			a := attemptAt(t, in, mailClient{protocol: protocol}, m, "starttls", long, alice)
			if ok, out := curlLogin(t, in, protocol, ca)(a); !ok {
				t.Errorf("curl, %s by %s:\n%s", protocol, m, out)
			}
		}
	}
	refused := map[string]string{
		i.Token("bob@indigo.test", nil):                                          `"status":"invalid_token"`,
		i.Token(alice, map[string]any{"aud": "shop"}):                            `"status":"invalid_token"`,
		i.Token(alice, map[string]any{"iss": "https://evil.test"}):               `"status":"invalid_token"`,
		i.Token(alice, map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}): `"status":"invalid_token"`,
		i.Token(alice, map[string]any{"nbf": time.Now().Add(time.Hour).Unix()}):  `"status":"invalid_token"`,
		i.Token(alice, map[string]any{"scope": "openid"}):                        `"status":"insufficient_scope"`,
		issuer.Unsigned(i.Claims(alice, nil)):                                    `"status":"invalid_token"`,
		good[:strings.LastIndex(good, ".")+1] + strings.Repeat("A", 86):          `"status":"invalid_token"`,
		"opaque": `"status":"invalid_token"`,
	}
	for token, want := range refused {
		ok, out := tryToken(t, in, "smtpd.587", "OAUTHBEARER", alice, token)
		status := strings.Trim(strings.TrimPrefix(want, `"status":`), `"`)
		if ok || !strings.Contains(out, "535 5.7.8 authorization failed") || !strings.Contains(out, status) || !strings.Contains(out, i.URL+issuer.Discovery) {
			t.Errorf("%.60s…\n%s", token, out)
		}
	}
	if ok, out := tryToken(t, in, "imapd.143", "XOAUTH2", "nobody@indigo.test", i.Token("nobody@indigo.test", nil)); ok || !strings.Contains(out, "NO [AUTHENTICATIONFAILED]") || !strings.Contains(out, "401") {
		t.Errorf("an unknown user:\n%s", out)
	}
	if ok, out := tryToken(t, in, "pop3d.110", "XOAUTH2", alice, "opaque"); ok || !strings.Contains(out, "-ERR [AUTH]") {
		t.Errorf("POP3:\n%s", out)
	}
	// What the directory says of a user and his domain goes for tokens, too.
	command(t, in, "limit", "set", "indigo.test", "NO_POP=1")
	if ok, out := tryToken(t, in, "pop3d.110", "OAUTHBEARER", alice, good); ok || !strings.Contains(out, "switched off") {
		t.Errorf("NO_POP:\n%s", out)
	}
	if ok, out := tryToken(t, in, "smtpd.587", "OAUTHBEARER", alice, good); !ok {
		t.Errorf("NO_POP, SMTP:\n%s", out)
	}
	command(t, in, "limit", "set", "indigo.test", "NO_POP=0", "domain_expiry=2020-01-01")
	if ok, out := tryToken(t, in, "smtpd.587", "OAUTHBEARER", alice, good); ok || !strings.Contains(out, "switched off") {
		t.Errorf("a domain that has expired:\n%s", out)
	}
	command(t, in, "limit", "clear", "indigo.test", "--yes")
	// An issuer that is down says nothing of a token.
	for _, s := range [][]string{{"OAUTH_INTROSPECTION", i.URL + issuer.Introspection}, {"OAUTH_INTROSPECTION_ID", issuer.Client}, {"OAUTH_INTROSPECTION_SECRET_FILE", written(t, issuer.Secret)}, {"OAUTH_CACHE", "0"}} {
		command(t, in, "settings", "set", s[0], s[1])
	}
	command(t, in, "reload")
	opaque := i.Opaque(alice, nil)
	for _, door := range doors {
		if ok, out := tryToken(t, in, door, "XOAUTH2", alice, opaque); !ok {
			t.Errorf("%s by introspection:\n%s", door, out)
		}
	}
	i.Answer(issuer.Down)
	for door, want := range map[string]string{"smtpd.587": "454 4.7.0", "imapd.143": "NO [UNAVAILABLE]", "pop3d.110": "-ERR [SYS/TEMP]"} {
		if ok, out := tryToken(t, in, door, "OAUTHBEARER", alice, opaque); ok || !strings.Contains(out, want) {
			t.Errorf("%s with an issuer that is down:\n%s", door, out)
		}
	}
	if log := in.Log(); strings.Count(log, "logins by OAuth tokens get a temporary error") != 1 {
		t.Errorf("the log does not say once that tokens cannot be judged:\n%s", log)
	}
	i.Answer(nil)
	if ok, out := tryToken(t, in, "smtpd.587", "OAUTHBEARER", alice, opaque); !ok {
		t.Errorf("with an issuer that is back:\n%s", out)
	}
	for _, name := range []string{"OAUTH_INTROSPECTION", "OAUTH_INTROSPECTION_ID", "OAUTH_INTROSPECTION_SECRET_FILE", "OAUTH_CACHE"} {
		command(t, in, "settings", "unset", name)
	}
	command(t, in, "reload")
	reports(t, in, i)
	// None of it shows a token: neither log, trace nor directory.
	err = filepath.WalkDir(in.Ready.Data, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		for _, token := range []string{good, long, opaque} {
			if strings.Contains(string(text)+in.Log(), token[len(token)-26:]) {
				t.Errorf("a token is in %s, or in the log", path)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	command(t, in, "settings", "set", "DISABLE_XOAUTH2", "1", "--service", "smtpd.587")
	command(t, in, "reload")
	if ok, out := tryToken(t, in, "smtpd.587", "XOAUTH2", alice, good); ok || !strings.Contains(out, "504") {
		t.Errorf("DISABLE_XOAUTH2:\n%s", out)
	}
	if ok, out := tryToken(t, in, "smtpd.587", "OAUTHBEARER", alice, good); !ok {
		t.Errorf("DISABLE_XOAUTH2 and OAUTHBEARER:\n%s", out)
	}
	// And undone.
	command(t, in, "settings", "unset", "OAUTH_ISSUER")
	command(t, in, "reload")
	if ok, _ := tryToken(t, in, "smtpd.587", "OAUTHBEARER", alice, good); ok {
		t.Error("a token is taken after OAUTH_ISSUER is unset")
	}
}

// reports looks at what `auth report` and `auth why` know of tokens.
func reports(t *testing.T, in *instance.Instance, i *issuer.Issuer) {
	t.Helper()
	const alice = "alice@indigo.test"
	err := instance.Await(within(t, waiting), "the report has both mechanisms", func() (bool, error) {
		var report struct {
			Users []struct{ User, Protocol, Mechanism string }
		}
		found := map[string]bool{}
		if err := json.Unmarshal([]byte(command(t, in, "auth", "report", "--json")), &report); err != nil {
			return false, err
		}
		for _, u := range report.Users {
			found[u.User+" "+u.Protocol+" "+u.Mechanism] = true
		}
		return found["alice smtp OAUTHBEARER"] && found["alice imap XOAUTH2"] && found["alice pop3 XOAUTH2"], nil
	})
	if err != nil {
		t.Error(err)
	}
	why := func(token string) (int, string) {
		r, err := indigo.Run(within(t, time.Minute), "auth", "why", alice, "--service", "imapd.993", "--token-file", written(t, token), "--data", in.Ready.Data)
		if err != nil {
			t.Fatal(err)
		}
		return r.Code, r.Out
	}
	code, out := why(i.Token(alice, nil))
	for _, want := range []string{"token      : good", "OAUTHBEARER", "with a token of " + i.URL + " whose claim email is the address", "last login"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("no %q: %d\n%s", want, code, out)
		}
	}
	if !strings.Contains(out, "failure") || !strings.Contains(out, "no signed JWT") {
		t.Errorf("the failures are not told:\n%s", out)
	}
	code, out = why(i.Token(alice, map[string]any{"aud": "shop"}))
	if code != 1 || !strings.Contains(out, `cannot log in with this token: refused`) || !strings.Contains(out, `its audience is ["shop"], none of OAUTH_AUDIENCE`) {
		t.Errorf("%d\n%s", code, out)
	}
}

// TestTokensForRelays sends through a server that takes nothing but tokens: one of a file, then those that a refresh_token gets.
func TestTokensForRelays(t *testing.T) {
	i, far, near := startIssuer(t), up(t, "--domain", "far.test"), up(t)
	trust(t, far, i)
	for _, name := range []string{"DISABLE_AUTH_PLAIN", "DISABLE_AUTH_LOGIN"} {
		command(t, far, "settings", "set", name, "1", "--service", "smtpd.587")
	}
	command(t, far, "reload")
	_, port, _ := strings.Cut(far.Address("smtpd.587"), ":")
	control(t, near, "smtproutes", "far.test:[127.0.0.1]:"+port+" alice@far.test token:control/far.token\n")
	r, err := indigo.Run(within(t, time.Minute), "check", "--data", near.Ready.Data)
	if err != nil || r.Code == 0 || !strings.Contains(r.Out+r.Err, "far.token") {
		t.Errorf("the file of the token is not there: %v %d %s", err, r.Code, r.Out+r.Err)
	}
	mail := func(subject string) {
		t.Helper()
		if err := send(t, near.Address("smtpd.25"), "alice@indigo.test", []string{"alice@far.test"}, "Subject: "+subject+"\n\ntext\n"); err != nil {
			t.Fatal(err)
		}
	}
	token := i.Token("alice@far.test", nil)
	control(t, near, "far.token", token+"\n")
	command(t, near, "settings", "set", "RELAYCLIENTS", "127.0.0.1:")
	command(t, near, "settings", "set", "REMOTE_TLS_CA", filepath.Join(far.Ready.Data, "certs", "servercert.pem"))
	command(t, near, "reload")
	command(t, near, "check")
	mail("with a token")
	awaitMail(t, far, "Subject: with a token")
	if out := command(t, near, "explain", "alice@far.test"); !strings.Contains(out, "by OAUTHBEARER") || strings.Contains(out, token) || !strings.Contains(out, "AUTH OAUTHBEARER (hidden)") && !strings.Contains(out, "(hidden)") {
		t.Errorf("%s", out)
	}
	// One that is refused waits, and the trace has what the server said of it.
	control(t, near, "smtproutes", "far.test:[127.0.0.1]:"+port+" alice@far.test token:control/far.token AUTH_SMTP=XOAUTH2\n")
	control(t, near, "far.token", i.Token("alice@far.test", map[string]any{"scope": "none"})+"\n")
	command(t, near, "reload")
	mail("with the wrong token")
	explained := ""
	err = instance.Await(within(t, waiting), "the token is refused", func() (bool, error) {
		explained = command(t, near, "explain", "alice@far.test")
		return strings.Contains(explained, "the token is of the file control/far.token"), nil
	})
	if err != nil || !strings.Contains(explained, `\"status\":\"403\"`) {
		t.Errorf("%v\n%s", err, explained)
	}
	// What renews it: the refresh token is good once, and the next one is written down.
	refresh := i.Refresh("alice@far.test", true)
	text := fmt.Sprintf("token_endpoint %s%s\nclient_id %s\nclient_secret %s\nrefresh_token %s\nca %s\n", i.URL, issuer.TokenEndpoint, issuer.Client, issuer.Secret, refresh, i.CA)
	control(t, near, "far.token", text)
	command(t, near, "check")
	command(t, near, "queue", "dead", "--forget", "all")
	command(t, near, "queue", "retry", "--all")
	awaitMail(t, far, "Subject: with the wrong token")
	after, err := os.ReadFile(filepath.Join(near.Ready.Data, "control", "far.token"))
	if err != nil || strings.Contains(string(after), refresh) || !strings.Contains(string(after), "refresh_token ") || i.Requests(issuer.TokenEndpoint) != 1 {
		t.Errorf("%v, %d requests\n%s", err, i.Requests(issuer.TokenEndpoint), after)
	}
}

// TestTokensWithPostfix: deliveries log in by tokens at a Postfix whose Dovecot asks the issuer; and users log in by tokens at a Postfix that asks Indigo.
func TestTokensWithPostfix(t *testing.T) {
	need(t, "dovecot", "curl")
	if why := postfix.Missing(); why != "" {
		missing(t, why)
	}
	if out, err := exec.Command("dovecot", "--version").Output(); err != nil || !strings.HasPrefix(string(out), "2.3.") {
		missing(t, fmt.Sprintf("Dovecot %s: the configuration is of version 2.3", strings.TrimSpace(string(out))))
	}
	i, in := startIssuer(t), up(t)
	dir := folder(t)
	certificate := filepath.Join(dir, "cert.pem")
	pem, err := os.ReadFile(filepath.Join(in.Ready.Data, "certs", "servercert.pem"))
	if err == nil {
		err = os.WriteFile(certificate, pem, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	start := func(socket string) *postfix.Instance {
		t.Helper()
		return startPostfix(t, postfix.Config{Dir: folder(t), Port: freePort(t), Users: []string{"bob@postfix.test"}, Settings: []string{
			"smtpd_sasl_auth_enable = yes", "smtpd_sasl_type = dovecot", "smtpd_sasl_path = " + socket, "smtpd_sasl_security_options = noanonymous", "smtpd_tls_security_level = may",
			"smtpd_tls_cert_file = " + certificate, "smtpd_tls_key_file = " + certificate, "smtpd_recipient_restrictions = permit_sasl_authenticated, reject", "mynetworks = 192.0.2.1/32",
		}})
	}
	// Dovecot asks as programs ask for a user's own data: with the token itself.
	i.Answer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/userinfo" {
			return false
		}
		if r.Header.Get("Authorization") != "Bearer tok.en-of-bob" {
			http.Error(w, "who?", http.StatusUnauthorized)
			return true
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"email":"bob@postfix.test"}`)
		return true
	})
	socket, passdb := filepath.Join(dir, "sasl"), filepath.Join(dir, "oauth2.conf")
	text := fmt.Sprintf("introspection_mode = auth\nintrospection_url = %s/userinfo\nusername_attribute = email\ntls_ca_cert_file = %s\n", i.URL, i.CA)
	if err := os.WriteFile(passdb, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	dovecot(t, fmt.Sprintf(`auth_mechanisms = xoauth2 oauthbearer
passdb {
  driver = oauth2
  mechanisms = xoauth2 oauthbearer
  args = %s
}
userdb {
  driver = static
  args = uid=65534 gid=65534 home=/nonexistent
}
service auth {
  unix_listener %s {
    mode = 0666
  }
}
`, passdb, socket))
	p := start(socket)
	_, port, _ := strings.Cut(p.Address(), ":")
	for _, m := range []string{"OAUTHBEARER", "XOAUTH2"} {
		route := ":[127.0.0.1]:" + port + " bob@postfix.test %s AUTH_SMTP=" + m
		if r := sendBy(t, certificate, fmt.Sprintf(route, "tok.en-of-bob"), "bob@postfix.test", false); r.Err != nil {
			t.Errorf("%s: %v\n%s", m, r.Err, strings.Join(r.Dialogue, "\n"))
		}
		r := sendBy(t, certificate, fmt.Sprintf(route, "wr.ong"), "bob@postfix.test", false)
		said := strings.Join(r.Dialogue, "\n")
		if r.Err == nil || r.Err.Code != 454 || strings.Contains(said, "wr.ong") {
			t.Errorf("%s by a wrong token: %v\n%s", m, r.Err, said)
		}
	}
	// The other way round.
	i.Answer(nil)
	trust(t, in, i)
	stop(t, in)
	socket = filepath.Join(dir, "indigo")
	control(t, in, "dovecotauthsocket", socket+"\n")
	control(t, in, "dovecotsocketmode", "0666\n")
	in = again(t, in.Ready.Data)
	p = start(socket)
	host, port, _ := strings.Cut(p.Address(), ":")
	for _, c := range []struct {
		audience string
		in       bool
	}{{"mail", true}, {"shop", false}} {
		token := i.Token("alice@indigo.test", map[string]any{"aud": c.audience})
		a := attempt{mechanism: "OAUTHBEARER", security: "starttls", password: token, user: "alice@indigo.test", host: host, port: port}
		if ok, out := curlLogin(t, in, "smtp", certificate)(a); ok != c.in || !c.in && !strings.Contains(out, "535 5.7.8") {
			t.Errorf("a token for %s at a Postfix that asks Indigo: %v\n%s\n%s", c.audience, ok, out, in.Log())
		}
	}
}
