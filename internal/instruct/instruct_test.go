package instruct

import (
	"strings"
	"testing"

	"github.com/indigomail/indigo/internal/addr"
)

func TestParse(t *testing.T) {
	to := func(local, domain string) Instruction {
		return Instruction{Kind: Forward, Address: addr.Address{Local: local, Domain: domain}}
	}
	for _, c := range []struct {
		line string
		want Instruction
		bad  bool
	}{
		{line: "&ann@example.org", want: to("ann", "example.org")},
		{line: " & ann@example.org \t", want: to("ann", "example.org")},
		{line: "ann@example.org", want: to("ann", "example.org")},
		{line: "&register-spam", want: to("register-spam", "")},
		{line: "&postmaster", want: to("postmaster", "")},
		{line: `&"a b"@example.org`, want: to("a b", "example.org")},
		{line: "|/usr/bin/preline -f /usr/bin/procmail -p -m /etc/indimail/procmailrc", want: Instruction{Kind: Program, Text: "/usr/bin/preline -f /usr/bin/procmail -p -m /etc/indimail/procmailrc"}},
		{line: "| maildirdeliver x ", want: Instruction{Kind: Program, Text: "maildirdeliver x"}},
		{line: "./ann/Maildir/", want: Instruction{Kind: Maildir, Text: "./ann/Maildir/"}},
		{line: "/home/ann/Maildir/", want: Instruction{Kind: Maildir, Text: "/home/ann/Maildir/"}},
		{line: "/home/ann/mbox", want: Instruction{Kind: Mbox, Text: "/home/ann/mbox"}},
		{line: "# nobody", want: Instruction{Kind: Comment, Text: "# nobody"}},
		{line: "", want: Instruction{Kind: Comment}},
		{line: "|", bad: true}, {line: "&", bad: true}, {line: "..", bad: true}, {line: ".x/", bad: true}, {line: "?test label", bad: true},
		{line: "%/envdir", bad: true}, {line: "&a@b@c", bad: true}, {line: "|a\nb", bad: true}, {line: "|a\x00", bad: true}, {line: "&a\xff@b.test", bad: true},
		{line: "a b", bad: true},
	} {
		got, err := Parse(c.line)
		if (err != nil) != c.bad || got != c.want {
			t.Errorf("%q: %+v %v", c.line, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, line := range []string{"&ann@example.org", "|x", "./m/", "/m", "#", "&\"a b\"@c.test", "&a"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		in, err := Parse(line)
		if err != nil {
			return
		}
		if in.Kind == Forward {
			if in.Address.Local == "" {
				t.Fatalf("%q: nobody", line)
			}
			whole := in.Address
			if whole.Domain == "" {
				whole.Domain = "x.test"
			}
			if again, err := Parse("&" + whole.String()); err != nil || again.Address.Key() != whole.Key() {
				t.Fatalf("%q: %+v, then %+v %v", line, in, again, err)
			}
		} else if strings.ContainsAny(in.Text, "\x00\r\n") {
			t.Fatalf("%q: %q", line, in.Text)
		}
	})
}
