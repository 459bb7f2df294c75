package dnsx_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/indigomail/indigo/internal/dnsx"
	"github.com/indigomail/indigo/internal/lab"
)

const zone = `
mail.test.        60 MX 20 b.mail.test.
mail.test.        60 MX 10 A.Mail.test.
a.mail.test.      60 A 192.0.2.1
a.mail.test.      60 AAAA 2001:db8::1
b.mail.test.      60 AAAA 2001:db8::2
null.test.        60 MX 0 .
alias.test.       60 CNAME mail.test.
deep.alias.test.  60 CNAME alias.test.
text.test.        60 TXT "v=one " "two"
1.2.0.192.in-addr.arpa. 60 PTR A.mail.test.
*.wild.test.      60 MX 5 a.mail.test.
cname.test.       60 CNAME nowhere.test.
short.test.       2 A 192.0.2.7
fail.test.        60 A 192.0.2.8
`

func zones(t *testing.T) *lab.Zones {
	t.Helper()
	z, err := lab.NewZones(zone)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// TestLookUps asks a name server over real UDP and TCP on loopback.
func TestLookUps(t *testing.T) {
	z := zones(t)
	z.SetMood("fail.test", lab.ServerFailure)
	z.SetMood("text.test", lab.Truncated)
	z.SetMood("confused.test", lab.Confused)
	address, stop, err := z.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	c, err := dnsx.New(dnsx.Config{Servers: []string{address}, Dial: (&net.Dialer{}).DialContext, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	mx := func(name string) string { m, _, err := c.MX(ctx, name); return tell(m, err) }
	addrs := func(name string) string { a, _, err := c.Addrs(ctx, name); return tell(a, err) }
	for _, tc := range []struct{ what, got, want string }{
		{"MX", mx("Mail.Test"), "[{10 a.mail.test} {20 b.mail.test}] or the other order"},
		{"MX by alias", mx("deep.alias.test"), "[{10 a.mail.test} {20 b.mail.test}] or the other order"},
		{"null MX", mx("null.test"), "[{0 }]"},
		{"MX by wildcard", mx("x.y.wild.test"), "[{5 a.mail.test}]"},
		{"no such name", mx("nothing.test"), "not found"},
		{"name without MX", mx("a.mail.test"), "not found"},
		{"name with names below", mx("test"), "not found"},
		{"alias to nowhere", mx("cname.test"), "not found"},
		{"both families", addrs("a.mail.test"), "[192.0.2.1 2001:db8::1]"},
		{"IPv6 only", addrs("b.mail.test"), "[2001:db8::2]"},
		{"no such host", addrs("nothing.test"), "not found"},
		{"server failure", addrs("fail.test"), "temporary"},
		{"an answer to another question", addrs("confused.test"), "temporary"},
		{"localhost", addrs("localhost"), "[127.0.0.1 ::1]"},
		{"TXT over TCP", func() string { s, _, err := c.TXT(ctx, "text.test"); return tell(s, err) }(), "[v=one two]"},
		{"PTR", func() string { s, err := c.PTR(ctx, netip.MustParseAddr("192.0.2.1")); return tell(s, err) }(), "[a.mail.test]"},
		{"no PTR", func() string { s, err := c.PTR(ctx, netip.MustParseAddr("192.0.2.9")); return tell(s, err) }(), "not found"},
	} {
		got := tc.got
		if strings.HasPrefix(tc.want, "[{10") {
			if got == "[{20 b.mail.test} {10 a.mail.test}]" || got == "[{10 a.mail.test} {20 b.mail.test}]" {
				continue
			}
		}
		if got != tc.want {
			t.Errorf("%s: %s, want %s", tc.what, got, tc.want)
		}
	}
}

func tell[T any](v T, err error) string {
	switch {
	case err == nil:
		return fmt.Sprint(v)
	case dnsx.IsNotFound(err):
		return "not found"
	}
	return "temporary"
}

// world gives a client over the lab's network with these name servers.
func world(t *testing.T, servers map[string]func(net.Conn)) (*dnsx.Client, *lab.Network) {
	t.Helper()
	network := &lab.Network{}
	var names []string
	for name, serve := range servers {
		names = append(names, name)
		if serve != nil {
			network.Listen(name, serve)
		} else {
			network.Silence(name)
		}
	}
	slices.Sort(names)
	c, err := dnsx.New(dnsx.Config{Servers: names, Dial: network.DialContext, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return c, network
}

// TestCache: an answer is good for its time to live, and what is not there is remembered for a minute.
func TestCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := zones(t)
		c, _ := world(t, map[string]func(net.Conn){"192.0.2.53:53": z.Serve})
		ask := func(want int) {
			t.Helper()
			_, _, _ = c.MX(t.Context(), "mail.test")
			_, _, _ = c.MX(t.Context(), "nothing.test")
			if n := len(z.Asked()); n != want {
				t.Errorf("%d questions, want %d: %v", n, want, z.Asked())
			}
		}
		ask(2)
		ask(2)
		time.Sleep(59 * time.Second)
		ask(2)
		time.Sleep(2 * time.Second)
		ask(4)
	})
}

// TestOtherServerAnswers: a server that is silent, refuses or fails costs time, not the answer; when all fail, it is a
// temporary error within a bounded time, and a failure is not remembered.
func TestOtherServerAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, bad := zones(t), zones(t)
		bad.SetMood("mail.test", lab.ServerFailure)
		c, network := world(t, map[string]func(net.Conn){"192.0.2.51:53": nil, "192.0.2.52:53": bad.Serve, "192.0.2.53:53": good.Serve})
		begun := time.Now()
		if _, _, err := c.MX(t.Context(), "mail.test"); err != nil || time.Since(begun) > 10*time.Second {
			t.Errorf("%v after %s", err, time.Since(begun))
		}
		network.Listen("192.0.2.53:53", nil)
		if _, _, err := c.Addrs(t.Context(), "fail.test"); err != nil {
			t.Errorf("the second server knows it: %v", err)
		}
		bad.SetMood("b.mail.test", lab.Silent)
		begun = time.Now()
		if _, _, err := c.MX(t.Context(), "b.mail.test"); err == nil || dnsx.IsNotFound(err) || time.Since(begun) > 30*time.Second {
			t.Errorf("%v after %s", err, time.Since(begun))
		}
		bad.SetMood("b.mail.test", lab.Truthful)
		if got := func() string { a, _, err := c.Addrs(t.Context(), "b.mail.test"); return tell(a, err) }(); got != "[2001:db8::2]" {
			t.Error(got)
		}
		// A caller that gives up is not kept.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun = time.Now()
		if _, _, err := c.MX(ctx, "other.test"); err == nil || time.Since(begun) > 2*time.Second {
			t.Errorf("%v after %s", err, time.Since(begun))
		}
	})
}

// TestMany: an answer with more addresses than anybody needs is cut.
func TestMany(t *testing.T) {
	z := zones(t)
	var text strings.Builder
	for n := range 300 {
		fmt.Fprintf(&text, "many.test. 60 A 198.51.%d.%d\nmany.test. 60 MX %d h%d.test.\n", n/250, n%250+1, n, n)
	}
	if err := z.Add(text.String()); err != nil {
		t.Fatal(err)
	}
	c, _ := world(t, map[string]func(net.Conn){"192.0.2.53:53": z.Serve})
	a, _, err := c.Addrs(t.Context(), "many.test")
	m, _, err2 := c.MX(t.Context(), "many.test")
	if err != nil || err2 != nil || len(a) != 64 || len(m) != 64 {
		t.Errorf("%d addresses %v, %d MX %v", len(a), err, len(m), err2)
	}
}
