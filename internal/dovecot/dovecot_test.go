package dovecot

import (
	"bytes"
	"slices"
	"testing"
)

func TestLines(t *testing.T) {
	for _, c := range []struct {
		fields []string
		line   string
	}{
		{[]string{"VERSION", "1", "1"}, "VERSION\t1\t1\n"},
		{[]string{"AUTH", "1", "PLAIN", "", "resp=AGEAYg=="}, "AUTH\t1\tPLAIN\t\tresp=AGEAYg==\n"},
		{[]string{"FAIL", "2", "user=a\tb\x01c\r\n\x00"}, "FAIL\t2\tuser=a\x01tb\x011c\x01r\x01n\x010\n"},
	} {
		if got := string(Append(nil, c.fields...)); got != c.line {
			t.Errorf("%q: %q", c.fields, got)
		}
		if got := Parse(c.line); !slices.Equal(got, c.fields) {
			t.Errorf("%q: %q", c.line, got)
		}
	}
	if got := Parse("a\x01xb\x01"); !slices.Equal(got, []string{"axb\x01"}) {
		t.Errorf("%q", got)
	}
	fields := Parse("AUTH\t1\tPLAIN\tsecured\tservice=smtp\tresp=")
	for name, want := range map[string]string{"service": "smtp", "secured": "", "resp": ""} {
		if got, ok := Parameter(fields, name); !ok || got != want {
			t.Errorf("%s: %q %v", name, got, ok)
		}
	}
	if _, ok := Parameter(fields, "rip"); ok {
		t.Error("rip is not there")
	}
}

// FuzzLines: what is written is read as it was, and nothing that is written makes a second line or field.
func FuzzLines(f *testing.F) {
	f.Add("AUTH", "resp=AGEAYg==")
	f.Add("a\tb\x01", "\x00\r\n")
	f.Fuzz(func(t *testing.T, a, b string) {
		line := Append(nil, a, b)
		if bytes.Count(line, []byte("\n")) != 1 || bytes.Count(line, []byte("\t")) != 1 {
			t.Fatalf("%q %q: %q", a, b, line)
		}
		if got := Parse(string(line)); !slices.Equal(got, []string{a, b}) {
			t.Fatalf("%q %q: %q", a, b, got)
		}
		Parse(a)
	})
}
