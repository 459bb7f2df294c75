package addr

import (
	"strings"
	"testing"
)

func TestFoldDomain(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"Example.ORG", "example.org"},
		{"münchen.example", "xn--mnchen-3ya.example"},
		{"MÜNCHEN.Example", "xn--mnchen-3ya.example"},
		{"mu\u0308nchen.example", "xn--mnchen-3ya.example"}, // NFC is another spelling of the same
		{"XN--MNCHEN-3YA.example", "xn--mnchen-3ya.example"},
		{"straße.de", "xn--strae-oqa.de"},
		{"bücher.例え.jp", "xn--bcher-kva.xn--r8jz45g.jp"},
		{"ｅｘａｍｐｌｅ.org", "example.org"},   // full width
		{"☃.example", "xn--n3h.example"}, // no letter, and yet in the DNS
		{"a⁄b.example", "xn--ab-c6t.example"},
		{"a。b.example", "a.b.example"}, // a full stop is one
		{"℀.example", "℀.example"},     // a/c: no name
		{"ü_a.Example", "ü_a.example"},
		{"_dmarc.München.example", "_dmarc.xn--mnchen-3ya.example"},
		{strings.Repeat("ü", 400) + ".example", strings.Repeat("ü", 400) + ".example"},
		{"", ""},
		// RFC 3492 section 7.1: A Arabic, B Chinese, I Russian, L with digits, P mixed.
		{"ليهمابتكلموشعربي؟", "xn--egbpdaj6bu4bxfgehfvwxn"},
		{"他们为什么不说中文", "xn--ihqwcrb4cv8a8dqg056pqjye"},
		{"почемужеонинеговорятпорусски", "xn--b1abfaaepdrnnbgefbadotcwatmq2g4l"},
		{"3年b組金八先生", "xn--3b-ww4c5e180e575a65lsy2b"},
		{"maji", "maji"},
		{"majiでkoiする5秒前", "xn--majikoi5-783gue6qz075azm5e"},
	} {
		if got := FoldDomain(c.in); got != c.want {
			t.Errorf("FoldDomain(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

// A domain beyond ASCII is the same address in both spellings, wherever it stands.
func TestParseIDN(t *testing.T) {
	a, err := Parse("Jürgen@MÜNCHEN.example")
	if err != nil || a.String() != "Jürgen@xn--mnchen-3ya.example" || a.Key() != "jürgen@xn--mnchen-3ya.example" {
		t.Errorf("%v, %v", a, err)
	}
	if a, _, err = ParsePath("<j@münchen.example>", Options{UTF8: true}); err != nil || a.Domain != "xn--mnchen-3ya.example" {
		t.Errorf("%v, %v", a, err)
	}
	if a, _, err = ParsePath("<j@münchen.example>", Options{}); err == nil {
		t.Errorf("taken without SMTPUTF8: %v", a)
	}
	for _, bad := range []string{"j@a b.münchen.example", "j@℀.example", "j@ü/a.example", "j@" + strings.Repeat("ü", 60) + ".example", "j@ü..example"} {
		if a, err := Parse(bad); err == nil {
			t.Errorf("%s is taken, as %v", bad, a)
		}
	}
	if err := ValidDomain("münchen.example"); err != nil {
		t.Error(err)
	}
}
