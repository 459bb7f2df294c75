package sasl

import (
	"encoding/base64"
	"strings"
	"testing"
	"unicode"
)

// TestExplain: examples of the RFCs, by mechanism and by form alone; no secret is shown.
func TestExplain(t *testing.T) {
	for _, c := range []struct {
		mechanism string
		challenge bool
		step      int
		message   string
		// want are texts of the explanation, mask what must be marked as secret.
		want, mask string
	}{
		{"PLAIN", false, 0, "\x00tim\x00tanstaaftanstaaf", "PLAIN name and password|authcid tim", "tanstaaftanstaaf"},                            // RFC 4616
		{"", false, -1, "Ursel\x00Kurt\x00xipj3plmq", "PLAIN name and password|authzid Ursel|authcid Kurt", "xipj3plmq"},                         // RFC 4616
		{"PLAIN", false, 0, "user:password", "PLAIN malformed", "user:password"},                                                                 // a common mistake
		{"LOGIN", true, 0, "Username:", "LOGIN prompt", ""},                                                                                      //
		{"", true, -1, "Password:", "LOGIN prompt|the password is asked for", ""},                                                                //
		{"LOGIN", false, 0, "smtpusername", "LOGIN name|name smtpusername", ""},                                                                  // seed 004
		{"LOGIN", false, 1, "smtppassword@realm", "LOGIN password", "smtppassword@realm"},                                                        // seed 004
		{"", false, -1, "postmaster@example.com", "text", "postmaster@example.com"},                                                              // may be either
		{"CRAM-MD5", true, 0, "<1896.697170952@postoffice.reston.mci.net>", "CRAM-MD5 challenge", ""},                                            // RFC 2195
		{"", false, -1, "tim b913a602c7eda7a495b4e6e7334d3890", "CRAM-MD5 answer to the challenge|name tim", "b913a602c7eda7a495b4e6e7334d3890"}, // RFC 2195
		{"CRAM-SHA1", false, 0, "tim b913a602c7eda7a495b4e6e7334d3890", "has 32 digits where CRAM-SHA1 has 40", "b913a602c7eda7a495b4e6e7334d3890"},
		{"", true, -1, `realm="elwood.innosoft.com",nonce="OA6MG9tEQGm2hh",qop="auth",algorithm=md5-sess,charset=utf-8`, "DIGEST-MD5 challenge|realm elwood.innosoft.com", ""}, // RFC 2831
		{"", false, -1, `charset=utf-8,username="chris",realm="elwood.innosoft.com",nonce="OA6MG9tEQGm2hh",nc=00000001,cnonce="OA6MHXh6VqTrRk",digest-uri="imap/elwood.innosoft.com",response=d388dad90d4bbd760a152321f2143af7,qop=auth`,
			"DIGEST-MD5 answer to the challenge|username chris|digest-uri imap/elwood.innosoft.com", "d388dad90d4bbd760a152321f2143af7"},
		{"", true, -1, "rspauth=ea40f60335c427b5527b84dbabcdfffd", "DIGEST-MD5 the server's proof", "ea40f60335c427b5527b84dbabcdfffd"},
		{"", false, -1, "n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL", "SCRAM client's first message|n user|r fyko+d2lbbFgONRv9qkxdawL|binds to nothing", ""}, // RFC 5802
		{"", true, -1, "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096", "SCRAM server's first message|salt of 12 octets|i 4096", ""},
		{"", false, -1, "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=", "SCRAM client's final message|c n,,", "v0X8v3Bz2T0CJGbJQyF0X+HI4Ts="},
		{"", true, -1, "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=", "SCRAM server's final message", "rmF9pqV8S7suAoZWja4dJRkFsKQ="},
		{"SCRAM-SHA-1", true, 1, "r=a,s=QSXCR+Q6sek8bf92,i=100", "fewer than 4096", ""},
		{"SCRAM-SHA-256", false, 0, "y,a=zoe=3Dx,n=user=2Cname,r=x", "authzid zoe=x|n user,name|somebody hid it", ""},
		{"SCRAM-SHA-256", false, 0, "hello", "malformed", "hello"},
		{"", false, -1, "n,a=user@example.com,\x01host=server.example.com\x01port=143\x01auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01", "OAUTHBEARER token|host server.example.com|gs2-header n,a=user@example.com,", "Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="}, // RFC 7628
		{"", true, -1, `{"status":"invalid_token","scope":"example_scope"}`, "refusal|status invalid_token|scope example_scope", ""},
		{"", false, -1, "user=a@b\x01auth=Bearer zzz\x01\x01", "XOAUTH2 token|user a@b", "Bearer zzz"},
		{"", false, -1, "n,a=a@b,\x01auth=Bearer eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIiwiZXhwIjoxNzYzNzQ0NDAwfQ.c2lnbmF0dXJl\x01\x01", `header {"alg":"RS256"}|claims {"sub":"a","exp":1763744400}|expires at 2025-11-21T17:00:00Z`, "c2lnbmF0dXJl"}, // RFC 7519
		{"EXTERNAL", false, 0, "a@b", "EXTERNAL whom to act for|name a@b", ""},
		{"PLAIN", true, 0, "", "go ahead", ""},
	} {
		m := Explain(c.mechanism, c.challenge, c.step, []byte(c.message))
		text := m.Mechanism + " " + m.Kind
		for _, p := range m.Parts {
			text += "\n" + p.Name + " " + p.Shown() + " " + p.Means
		}
		for want := range strings.SplitSeq(c.want, "|") {
			if !strings.Contains(text, want) {
				t.Errorf("%q: no %q in %s", c.message, want, text)
			}
		}
		if m.Secret() != (c.mask != "") || c.mask != "" && strings.Contains(text, c.mask) {
			t.Errorf("%q: %+v", c.message, m)
		}
	}
}

// TestContinuedExchange: an exchange that is begun by one client and ended by another with the same nonce (RFC 5802 section 5, RFC 7677 section 3,
// RFC 2831 section 4).
func TestContinuedExchange(t *testing.T) {
	for _, c := range []struct {
		mechanism  string
		who        Credentials
		challenges []string
		want       string
	}{
		{"SCRAM-SHA-1", Credentials{User: "user", Password: "pencil", Nonce: "fyko+d2lbbFgONRv9qkxdawL"}, []string{"r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096"},
			"c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts="},
		{"SCRAM-SHA-256", Credentials{User: "user", Password: "pencil", Nonce: "rOprNGfwEbeRWgbNEkqO"}, []string{"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"},
			"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="},
		{"DIGEST-MD5", Credentials{User: "chris", Password: "secret", Nonce: "OA6MHXh6VqTrRk", Host: "elwood.innosoft.com", Service: "imap"},
			[]string{`realm="elwood.innosoft.com",nonce="OA6MG9tEQGm2hh",qop="auth",algorithm=md5-sess,charset=utf-8`}, "response=d388dad90d4bbd760a152321f2143af7"},
	} {
		client, err := NewClient(c.mechanism, c.who)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Next(nil)
		for _, challenge := range c.challenges {
			if err == nil {
				response, err = client.Next([]byte(challenge))
			}
		}
		if err != nil || !strings.Contains(string(response), c.want) {
			t.Errorf("%s: %q %v", c.mechanism, response, err)
		}
	}
}

// FuzzExplain: whatever was captured, nothing that a terminal would obey comes out, and no secret by Shown.
func FuzzExplain(f *testing.F) {
	for _, s := range []string{"AHRpbQBzZWNyZXQ=", "biwsbj11c2VyLHI9ZnlrbytkMmxiYkZnT05SdjlxaHhkYXdM", "cnNwYXV0aD0w", "cj1hLHM9IyxpPTE=", "eyJzdGF0dXMiOjF9"} {
		raw, _ := base64.StdEncoding.DecodeString(s)
		f.Add("", false, 0, raw)
		f.Add("SCRAM-SHA-1", true, 1, raw)
	}
	f.Fuzz(func(t *testing.T, mechanism string, challenge bool, step int, message []byte) {
		for _, p := range Explain(strings.ToUpper(mechanism), challenge, step, message).Parts {
			if strings.ContainsFunc(p.Name+p.Text+p.Means, unicode.IsControl) {
				t.Errorf("%q", p.Name+p.Text+p.Means)
			}
			if p.Secret && p.Text != "" && p.Shown() != "(hidden)" {
				t.Errorf("%+v is shown", p)
			}
		}
	})
}
