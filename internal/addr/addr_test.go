package addr

import "testing"

func TestParsePath(t *testing.T) {
	for _, c := range []struct {
		in, local, domain, rest string
		utf8, bad               bool
	}{
		{in: "<>", rest: ""},
		{in: "<> SIZE=1", rest: " SIZE=1"},
		{in: "<a@b>", local: "a", domain: "b"},
		{in: "<a.b+c@d.example> X=1", local: "a.b+c", domain: "d.example", rest: " X=1"},
		{in: "<@x.example,@y.example:a@b>", local: "a", domain: "b"},
		{in: `<"a@b"@c>`, local: "a@b", domain: "c"},
		{in: `<"a\"b\\"@c>`, local: `a"b\`, domain: "c"},
		{in: "<postmaster>", local: "postmaster"},
		{in: "<a@[127.0.0.1]>", local: "a", domain: "[127.0.0.1]"},
		{in: "<a@[IPv6:::1]>", local: "a", domain: "[IPv6:::1]"},
		{in: "<ä@b>", bad: true},
		{in: "<ä@ü.example>", utf8: true, local: "ä", domain: "xn--tda.example"},
		{in: "<\xff@b>", utf8: true, bad: true},
		{in: "a@b", bad: true}, {in: "<a@b", bad: true}, {in: "<a>", bad: true}, {in: "<@b>", bad: true},
		{in: "<a..b@c>", bad: true}, {in: "<.a@c>", bad: true}, {in: "<a.@c>", bad: true},
		{in: "<a@b..c>", bad: true}, {in: "<a@-b>", bad: true}, {in: "<a@b.>", bad: true},
		{in: "<a@[1.2.3]>", bad: true}, {in: "<a@[::1]>", bad: true}, {in: "<a@[IPv6:1.2.3.4]>", bad: true},
		{in: "<a b@c>", bad: true}, {in: "<\"a\x00b\"@c>", bad: true}, {in: `<""@c>`, bad: true}, {in: "<a@b@c>", bad: true},
	} {
		a, rest, err := ParsePath(c.in, Options{UTF8: c.utf8})
		if (err != nil) != c.bad {
			t.Errorf("%q: error %v", c.in, err)
			continue
		}
		if err == nil && (a != Address{c.local, c.domain} || rest != c.rest) {
			t.Errorf("%q: got %+v rest %q", c.in, a, rest)
		}
	}
}

func TestKeyAndString(t *testing.T) {
	if k := (Address{"A.B", "Example.ORG"}).Key(); k != "a.b@example.org" {
		t.Errorf("key %q", k)
	}
	if s := (Address{`a "b"\`, "c"}).String(); s != `"a \"b\"\\"@c` {
		t.Errorf("string %s", s)
	}
	if user, ext := (Address{"list-owner-x", "c"}).Extension('-'); user != "list" || ext != "owner-x" {
		t.Errorf("extension %q %q", user, ext)
	}
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"<>", "<a@b> X", `<"a\"b"@[127.0.0.1]>`, "<@a,@b:c@d>", "<ü@ü>"} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, s string, utf8 bool) {
		a, _, err := ParsePath(s, Options{UTF8: utf8})
		if err != nil || a.IsNull() {
			return
		}
		b, rest, err := ParsePath("<"+a.String()+">", Options{UTF8: utf8})
		if err != nil || rest != "" || b != a {
			t.Fatalf("%q gave %+v, whose form %q gives %+v %q %v", s, a, a.String(), b, rest, err)
		}
	})
}
