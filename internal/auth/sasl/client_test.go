package sasl

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/xdg-go/scram"
)

func TestNewClient(t *testing.T) {
	for mechanism, c := range map[string]Credentials{
		"PLAIN": {User: "u"}, "CRAM-MD5": {Password: "p"}, "OAUTHBEARER": {User: "u", Password: "p"}, "NTLM": {User: "u", Password: "p"},
		"SCRAM-SHA-256-PLUS": {User: "u", Password: "p"}, "SCRAM-SHA-1": {User: "u"}, "SCRAM-SHA-512": {User: "u", Password: "\x07"}, "plain": {User: "u", Password: "p"},
	} {
		if _, err := NewClient(mechanism, c); err == nil || strings.Contains(err.Error(), "\x07") {
			t.Errorf("%s: %v", mechanism, err)
		}
	}
	for _, c := range vectors[struct {
		Prohibited []struct{ String string } `json:"prohibited_by_saslprep"`
	}](t, "scram.json").Prohibited {
		if _, err := Keys("SCRAM-SHA-1", c.String, scram.KeyFactors{Salt: "x", Iters: 1}); err == nil {
			t.Errorf("%q is prepared", c.String)
		}
		if _, err := NewClient("SCRAM-SHA-1", Credentials{User: "u", Password: c.String}); err == nil {
			t.Errorf("%q is prepared", c.String)
		}
	}
}

// TestClientsDistrust: what a server may not say.
func TestClientsDistrust(t *testing.T) {
	first := func(mechanism string, challenges ...string) error {
		c, err := NewClient(mechanism, Credentials{User: "u", Password: "p", Host: "h", Service: "smtp"})
		if err != nil {
			t.Fatal(err)
		}
		if m, ok := c.(*scramClient); ok {
			m.nonce = "client"
		}
		if _, err := c.Next(nil); err != nil {
			t.Fatal(err)
		}
		for _, s := range challenges {
			if _, err := c.Next([]byte(s)); err != nil {
				return err
			}
		}
		return c.Finish()
	}
	salt := base64.StdEncoding.EncodeToString([]byte("salt"))
	for _, challenge := range []string{
		"", "r=client,s=" + salt + ",i=4096", "r=other,s=" + salt + ",i=4096", "r=clientx,s=" + salt + ",i=4095", "r=clientx,s=" + salt + ",i=0", "r=clientx,s=" + salt + ",i=-1",
		"r=clientx,s=" + salt + ",i=99999999", "r=clientx,s=!,i=4096", "r=clientx,s=,i=4096", "r=clientx,s=" + salt, "m=x,r=clientx,s=" + salt + ",i=4096", strings.Repeat("r", maxMessage+1),
	} {
		if err := first("SCRAM-SHA-256", challenge); err == nil || errors.Is(err, ErrServer) {
			t.Errorf("SCRAM %.40q: %v", challenge, err)
		}
	}
	for _, last := range []string{"v=AAAA", "v=", "e=other-error", "x"} {
		if err := first("SCRAM-SHA-256", "r=clientx,s="+salt+",i=4096", last); !errors.Is(err, ErrServer) {
			t.Errorf("SCRAM %q: %v", last, err)
		}
	}
	const digest = `realm="h",nonce="n",qop="auth",charset=utf-8,algorithm=md5-sess`
	for _, challenge := range []string{"", "realm", `nonce="",algorithm=md5-sess`, `nonce="n",algorithm=md5`, `nonce="n",qop="auth-conf",algorithm=md5-sess`, digest + `,nonce="m"`, `nonce="n`} {
		if err := first("DIGEST-MD5", challenge); err == nil || errors.Is(err, ErrServer) {
			t.Errorf("DIGEST %q: %v", challenge, err)
		}
	}
	for _, last := range []string{"", "rspauth=00", "rspauth=" + strings.Repeat("0", 32)} {
		if err := first("DIGEST-MD5", digest, last); !errors.Is(err, ErrServer) {
			t.Errorf("DIGEST %q: %v", last, err)
		}
	}
	for mechanism, challenges := range map[string][]string{"SCRAM-SHA-1": nil, "DIGEST-MD5": nil, "CRAM-MD5": nil, "LOGIN": nil, "PLAIN": {"again"}} {
		if err := first(mechanism, challenges...); err == nil {
			t.Errorf("%s: content too early", mechanism)
		}
	}
}

// FuzzClients: no challenge makes a client fall or be content.
func FuzzClients(f *testing.F) {
	f.Add([]byte("r=clientx,s=c2FsdA==,i=4096"), []byte("v=AAAA"))
	f.Add([]byte(`realm="h",nonce="n",qop="auth",charset=utf-8,algorithm=md5-sess`), []byte("rspauth=00"))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		for _, mechanism := range []string{"SCRAM-SHA-1", "DIGEST-MD5"} {
			c, err := NewClient(mechanism, Credentials{User: "u", Password: "p", Salted: []byte("salted"), Host: "h", Service: "smtp"})
			if err != nil {
				t.Fatal(err)
			}
			for _, challenge := range [][]byte{nil, first, second} {
				if _, err := c.Next(challenge); err != nil {
					break
				}
			}
			if c.Finish() == nil {
				t.Fatalf("%s is content with %q %q", mechanism, first, second)
			}
		}
	})
}
