package settings

import "testing"

func TestRules(t *testing.T) {
	parse := parseRules("QUEUEDIR", "DATABYTES")
	rules, err := parse("# comment\nyahoo.com:QUEUEDIR=/var/indimail/queue/slowq\n*.Example.org:DATABYTES=7,QUEUEDIR=slowq\n*:DATABYTES=\n[ab]?x/y@e.org:DATABYTES=9\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		subject, name, value string
		ok                   bool
	}{
		{"Yahoo.COM", "QUEUEDIR", "/var/indimail/queue/slowq", true},
		{"xyahoo.com", "QUEUEDIR", "", false},
		{"a.b.example.org", "QUEUEDIR", "slowq", true},
		{"a.b.example.org", "DATABYTES", "7", true},
		{"example.org", "DATABYTES", "", true},
		{"example.org", "QUEUEDIR", "", false},
	} {
		if value, ok := rules.Lookup(c.subject, c.name); value != c.value || ok != c.ok {
			t.Errorf("%s %s: %q %v, want %q %v", c.subject, c.name, value, ok, c.value, c.ok)
		}
	}
	for _, bad := range []string{"yahoo.com", "yahoo.com:", ":QUEUEDIR=x", "a:OTHER=1", "a:QUEUEDIR", "[:QUEUEDIR=x"} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
