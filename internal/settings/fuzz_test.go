package settings

import (
	"net/netip"
	"strings"
	"testing"
)

// FuzzRules gives arbitrary texts as rules: errors with lines of the text, or rules that answer for any subject.
func FuzzRules(f *testing.F) {
	for _, seed := range []string{
		"*consultant:REQUIREAUTH=1,NORELAY=1\n", "a@b.org:DATABYTES=\n", "# x\n\n<>:DATABYTES=1", ":DATABYTES=1", "[a:DATABYTES=1",
		"x:SPAMFILTERARGS=a\\,b,DATABYTES=3", "fe80::1:DATABYTES=1", "^(a|b)$:MAXRECIPIENTS=2", "a:BADMAILFROM=../x",
	} {
		f.Add(seed, "a@b.org")
	}
	f.Fuzz(func(t *testing.T, text, subject string) {
		l := newLoader(t.TempDir())
		l.file = "control/from.envrules"
		r, err := parseRules(l, text, []string{"smtp"})
		if err != nil {
			many, ok := err.(faults)
			if !ok {
				t.Fatalf("an error without lines: %v", err)
			}
			for _, one := range many {
				if one.line < 1 || one.line > strings.Count(text, "\n")+1 || one.text == "" {
					t.Fatalf("fault %+v of %q", one, text)
				}
			}
			return
		}
		r.lookup(subject, false)
		if r.patterns.compile() == nil {
			r.lookup(subject, true)
		}
	})
}

// FuzzTCPRules gives arbitrary texts as tcp rules, and any address as client.
func FuzzTCPRules(f *testing.F) {
	f.Add(tcpText, "127.0.0.1", "mail.example.org")
	for _, seed := range []string{"1.2.3.4-7:deny", "1.2-9.:allow", "=.x:allow,A=\"b\"", "u@1.2.3.4:deny", "::/0:allow", ":deny,X=/y/,Z=z1z"} {
		f.Add(seed, "fd00::1", "")
	}
	f.Fuzz(func(t *testing.T, text, client, host string) {
		rules, err := ParseTCPRules(text)
		if err != nil {
			if _, ok := err.(faults); !ok {
				t.Fatalf("an error without lines: %v", err)
			}
			return
		}
		ip, err := netip.ParseAddr(client)
		if err != nil {
			return
		}
		set := &TCPRules{File: "x", rules: map[string]*tcpRule{}, loader: newLoader("")}
		for _, r := range rules {
			set.rules[r.Address] = &tcpRule{line: r.Line}
		}
		verdict, err := set.Lookup(ip, host)
		if err != nil {
			t.Fatal(err)
		}
		if verdict.Rule != "" && set.rules[verdict.Rule] == nil {
			t.Fatalf("rule %q is not there", verdict.Rule)
		}
	})
}
