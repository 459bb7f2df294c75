package auth

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/mailerr"
)

func TestLDAPTemplates(t *testing.T) {
	for _, c := range []struct {
		template, local string
		escape          func(string) string
		want            string
	}{
		{"(&(uid=%u)(dc=%h))", "ann", ldap.EscapeFilter, "(&(uid=ann)(dc=x.test))"},
		{"%e 100%%", "ann", ldap.EscapeFilter, "ann@x.test 100%"},
		{"(uid=%u)", "*", ldap.EscapeFilter, `(uid=\2a)`},
		{"(uid=%u)", "a)(uid=*", ldap.EscapeFilter, `(uid=a\29\28uid=\2a)`},
		{"(uid=%u)", "%h", ldap.EscapeFilter, "(uid=%h)"},
		{"uid=%u,dc=x", "a,dc=y+b", ldap.EscapeDN, `uid=a\,dc=y\+b,dc=x`},
		{"uid=%u", " #a ", ldap.EscapeDN, `uid=\ #a\ `},
	} {
		if got, err := fill(c.template, addr.Address{Local: c.local, Domain: "x.test"}, c.escape); got != c.want || err != nil {
			t.Errorf("%s, %q: %q, want %q: %v", c.template, c.local, got, c.want, err)
		}
	}
	for _, template := range []string{"%x", "a%"} {
		if got, err := fill(template, addr.Address{Local: "a", Domain: "b"}, ldap.EscapeDN); err == nil {
			t.Errorf("%s: %q", template, got)
		}
	}
}

// FuzzLDAPTemplates: whatever a user calls himself, a filter keeps its form and a DN its number of parts.
func FuzzLDAPTemplates(f *testing.F) {
	f.Add("ann", "x.test")
	f.Add("a)(uid=*", "*")
	f.Add(`a\`, ",dc=x")
	f.Add(" #\x00+;<>\"", "=")
	f.Fuzz(func(t *testing.T, local, domain string) {
		user := addr.Address{Local: local, Domain: domain}
		filter, err := fill("(&(uid=%u)(mail=%e))", user, ldap.EscapeFilter)
		if err != nil {
			t.Fatal(err)
		}
		packet, err := ldap.CompileFilter(filter)
		if err != nil {
			t.Fatalf("%q: %v", filter, err)
		}
		if len(packet.Children) != 2 {
			t.Fatalf("%q has %d parts", filter, len(packet.Children))
		}
		for _, part := range packet.Children {
			if part.Tag != ldap.FilterEqualityMatch {
				t.Fatalf("%q: a part has the tag %d", filter, part.Tag)
			}
		}
		if local == "" || domain == "" {
			return
		}
		text, err := fill("uid=%u,ou=%h,dc=test", user, ldap.EscapeDN)
		if err != nil {
			t.Fatal(err)
		}
		dn, err := ldap.ParseDN(text)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if len(dn.RDNs) != 3 || len(dn.RDNs[0].Attributes) != 1 || len(dn.RDNs[1].Attributes) != 1 {
			t.Fatalf("%q has other parts: %v", text, dn)
		}
	})
}

func TestLDAPCheck(t *testing.T) {
	good := LDAP{URLs: []string{"ldap://a.test", "ldaps://[::1]:1636", "ldapi:///run/x", "ldapi://%2Frun%2Fx", "ldapi://"}, Base: "dc=x", Scope: "sub", Filter: "(uid=%u)"}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*LDAP){
		"LDAP_URL": func(l *LDAP) { l.URLs = nil }, `"http://a.test"`: func(l *LDAP) { l.URLs = []string{"http://a.test"} },
		`"ldap://a.test/dc=x"`: func(l *LDAP) { l.URLs = []string{"ldap://a.test/dc=x"} }, `"ldapi://x"`: func(l *LDAP) { l.URLs = []string{"ldapi://x"} },
		"LDAP_FILTER": func(l *LDAP) { l.Filter = "(uid=%u" }, "%n": func(l *LDAP) { l.Filter = "(uid=%n)" }, "LDAP_BASE": func(l *LDAP) { l.Base = "x" },
		"LDAP_SCOPE": func(l *LDAP) { l.Scope = "all" }, "LDAP_USER_DN": func(l *LDAP) { l.UserDN = "%u" },
	} {
		l := good
		change(&l)
		if err := l.Check(); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, c := range []struct {
		urls      string
		starttls  bool
		encrypted bool
	}{{"ldap://a.test", false, false}, {"ldap://a.test", true, true}, {"ldaps://a.test ldapi:///x", false, true}, {"ldaps://a.test ldap://b.test", false, false}} {
		l := LDAP{URLs: strings.Fields(c.urls), StartTLS: c.starttls}
		if l.Encrypted() != c.encrypted {
			t.Errorf("%s: %v", c.urls, l.Encrypted())
		}
	}
}

// TestLDAPRudeServers: a server that says nothing, ends, or never ends, makes no wrong password. Real ones are in test/e2e.
func TestLDAPRudeServers(t *testing.T) {
	for name, serve := range map[string]func(net.Conn){
		"silent": func(c net.Conn) { c.Read(make([]byte, 1<<10)); c.Read(make([]byte, 1)) },
		"gone":   func(c net.Conn) { c.Close() },
		"noise": func(c net.Conn) {
			c.Read(make([]byte, 1<<10))
			c.Write([]byte("HTTP/1.0 400 Bad Request\r\n\r\n"))
			c.Close()
		},
		"endless": func(c net.Conn) {
			c.Read(make([]byte, 1<<10))
			// A sequence of two gigabytes.
			c.Write([]byte{0x30, 0x84, 0x7f, 0xff, 0xff, 0xff, 0x04, 0x84, 0x7f, 0xff, 0xff, 0x00})
			for block := make([]byte, 64<<10); ; {
				if _, err := c.Write(block); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var ended []chan struct{}
			pool := &LDAPPool{Now: time.Now, Dial: func(context.Context, string, string) (net.Conn, error) {
				ours, theirs := net.Pipe()
				end := make(chan struct{})
				ended = append(ended, end)
				go func() { serve(theirs); theirs.Close(); close(end) }()
				return ours, nil
			}}
			l := &LDAP{Pool: pool, URLs: []string{"ldap://a.test"}, Base: "dc=x", Scope: "sub", Filter: "(uid=%u)", DefaultDomain: "x.test", Time: 300 * time.Millisecond}
			if name == "endless" {
				l.Time = 30 * time.Second
			}
			if _, err := l.Verify(t.Context(), Attempt{User: "ann", Password: "secret"}); mailerr.From(err).Code != 454 {
				t.Error(err)
			} else if name == "endless" && !strings.Contains(err.Error(), errLDAPAnswer.Error()) && !errors.Is(err, errLDAPAnswer) {
				t.Error(err)
			}
			pool.Close()
			for _, end := range ended {
				<-end
			}
		})
	}
	pool := &LDAPPool{Now: time.Now, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("down") }}
	l := &LDAP{Pool: pool, URLs: []string{"ldap://a.test", "ldap://b.test"}, Base: "dc=x", Scope: "sub", Filter: "(uid=%u)", DefaultDomain: "x.test", Time: time.Second}
	_, err := l.Verify(t.Context(), Attempt{User: "ann", Password: "secret"})
	if mailerr.From(err).Code != 454 || !strings.Contains(err.Error(), "ldap://b.test: down") {
		t.Error(err)
	}
	// Without a password a server would let anybody in.
	for _, a := range []Attempt{{User: "ann"}, {Password: "secret"}, {User: "a b", Password: "secret"}, {User: "ann", Password: "a\x00"}} {
		if _, err := l.Verify(t.Context(), a); mailerr.From(err).Code != 535 {
			t.Errorf("%+v: %v", a, err)
		}
	}
}
