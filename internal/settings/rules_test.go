package settings

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/indigomail/indigo/internal/addr"
)

// load loads files into a directory of their own; a name that ends with "/" is a directory.
func load(t testing.TB, files map[string]string) *Snapshot {
	t.Helper()
	s, err := Load(lay(t, files))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func lay(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func address(t testing.TB, s string) addr.Address {
	t.Helper()
	if s == "" {
		return addr.Address{}
	}
	a, err := addr.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestRules(t *testing.T) {
	s := load(t, map[string]string{
		"control/databytes": "1000\n",
		// The examples of wiki 2274 and 2276, and what they do not show.
		"control/from.envrules": `# comment
*consultant:REQUIREAUTH=1,NORELAY=1
big@example.org:DATASIZE=
*@slow.example.org:DATABYTES=5
one@slow.example.org:DATABYTES=6,MAXRECIPIENTS=7
list-*:MAXRECIPIENTS=8
[ab]?x/y@e.org:DATABYTES=9
<>:DATABYTES=10
p@q.org:SPAMFILTERARGS=a\,b
`,
	})
	v := s.View("smtpd.25")
	for _, c := range []struct {
		from         string
		setting      *Setting
		value, from2 string
	}{
		{"x@y.consultant", RequireAuth.Setting, "1", "control/from.envrules:2"},
		{"x@y.consultant", NoRelay.Setting, "1", "control/from.envrules:2"},
		{"x@y.consultants", NoRelay.Setting, "0", "default"},
		{"BIG@Example.ORG", DataBytes.Setting, "0", "control/from.envrules:3"},
		{"two@slow.example.org", DataBytes.Setting, "5", "control/from.envrules:4"},
		{"one@slow.example.org", DataBytes.Setting, "6", "control/from.envrules:5"},
		{"one@slow.example.org", MaxRecipients.Setting, "7", "control/from.envrules:5"},
		{"list-x@z.org", MaxRecipients.Setting, "8", "control/from.envrules:6"},
		{"list-x@z.org", DataBytes.Setting, "1000", "control/databytes:1"},
		{"b1x/y@e.org", DataBytes.Setting, "9", "control/from.envrules:7"},
		{"", DataBytes.Setting, "10", "control/from.envrules:8"},
		{"p@q.org", byName("SPAMFILTERARGS"), "a,b", "control/from.envrules:9"},
	} {
		got := v.ForSender(address(t, c.from)).Source(c.setting)
		if got.Value != c.value || got.String() != c.from2 {
			t.Errorf("%s %s: %q from %s, want %q from %s", c.from, c.setting.Name, got.Value, got, c.value, c.from2)
		}
	}
}

func TestRegularExpressions(t *testing.T) {
	s := load(t, map[string]string{
		"control/qregex":              "1\n",
		"control/from.envrules":       "^bob@example\\.org$:DATABYTES=1\nexample\\.net$:DATABYTES=2\n(a|b)+@x[0-9]\\.org:DATABYTES=3\n^pre:DATABYTES=4\n",
		"control/badmailfrompatterns": "^.*@spam[0-9]+\\.org$\n!^good@spam1\\.org$\n",
	})
	v := s.View("smtpd.25")
	for from, want := range map[string]int{
		"bob@example.org": 1, "xbob@example.org": 52428800, "bob@exampleXorg": 52428800, "u@example.net": 2, "abab@x7.org": 3,
		"prefix@y.org": 4,
	} {
		if got := DataBytes.Get(v.ForSender(address(t, from))); got != want {
			t.Errorf("%s: %d, want %d", from, got, want)
		}
	}
	for from, want := range map[string]bool{"u@spam12.org": true, "good@spam1.org": false, "u@spam.org": false} {
		if _, got := BadMailFromPatterns.Get(v).Match(v, from); got != want {
			t.Errorf("pattern for %s: %v", from, got)
		}
	}
	if _, err := Load(lay(t, map[string]string{"control/qregex": "1", "control/from.envrules": "ok:DATABYTES=1\n(:DATABYTES=1\n"})); err == nil || !strings.Contains(err.Error(), "control/from.envrules:2: regular expression") {
		t.Errorf("a malformed expression: %v", err)
	}
	// Without QREGEX it is a harmless pattern.
	load(t, map[string]string{"control/from.envrules": "(:DATABYTES=1\n"})
}

// The matcher gives what trying every pattern gives.
func TestMatcher(t *testing.T) {
	patterns := []string{"*", "a@b.org", "*@b.org", "a*", "*b*", "?@b.org", "[a-c]@*", "A@B.ORG", "*@B.ORG", "ab", "*.org", "a@*g", "x/y@*"}
	m := newMatcher()
	for i, p := range patterns {
		if err := m.addWild(p, int32(i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, subject := range []string{"a@b.org", "c@b.org", "abc", "", "A@b.Org", "x/y@z", "q@x.net"} {
		var want []int32
		for i, p := range patterns {
			one := newMatcher()
			one.rest = nil
			if ok := wildMatch(t, p, subject); ok {
				want = append(want, int32(i))
			}
		}
		if got := m.match(subject); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%q: %v, want %v", subject, got, want)
		}
	}
}

// wildMatch is a plain reading of the patterns.
func wildMatch(t *testing.T, pattern, s string) bool {
	t.Helper()
	pattern, s = strings.ToLower(pattern), strings.ToLower(s)
	switch {
	case pattern == "":
		return s == ""
	case pattern[0] == '*':
		for i := 0; i <= len(s); i++ {
			if wildMatch(t, pattern[1:], s[i:]) {
				return true
			}
		}
		return false
	case s == "":
		return false
	case pattern[0] == '?':
		return wildMatch(t, pattern[1:], s[1:])
	case strings.HasPrefix(pattern, "[a-c]"):
		return s[0] >= 'a' && s[0] <= 'c' && wildMatch(t, pattern[5:], s[1:])
	}
	return pattern[0] == s[0] && wildMatch(t, pattern[1:], s[1:])
}

func TestRulesProblems(t *testing.T) {
	_, err := Load(lay(t, map[string]string{
		"control/from.envrules": "yahoo.com\nyahoo.com:\na:OTHER=1\na:QUEUEDIR\n[:QUEUEDIR=x\na:ME=x\na:DATABYTES=many\na:DATABITES=1\na:BADMAILFROM=nofile\na:BADMAILFROM=../x\n",
	}))
	if err == nil {
		t.Fatal("taken")
	}
	for _, want := range []string{
		"from.envrules:1: ", "from.envrules:2: ", "from.envrules:3: no setting OTHER", "from.envrules:4: ", "from.envrules:5: pattern",
		"from.envrules:6: ME cannot be set by this file", "from.envrules:7: DATABYTES: \"many\"", "from.envrules:8: no setting DATABITES; the nearest is DATABYTES",
		"from.envrules:9: BADMAILFROM: there is no file control/nofile", "from.envrules:10: BADMAILFROM: \"../x\" leads out",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in\n%v", want, err)
		}
	}
}

func TestControlDir(t *testing.T) {
	s := load(t, map[string]string{
		"control/databytes": "1\n", "control2/databytes": "2\n", "control/maxhops": "50\n",
		"control/from.envrules":                  "two@x.org:CONTROLDIR=control2,MAXRECIPIENTS=3\n",
		"services/smtpd.26/variables/CONTROLDIR": "control2\n",
		"services/smtpd.26/variables/MAXDAEMONS": "4\n",
	})
	v := s.View("smtpd.25").ForSender(address(t, "two@x.org"))
	if DataBytes.Get(v) != 2 || MaxHops.Get(v) != 100 || MaxRecipients.Get(v) != 3 {
		t.Errorf("%d %d %d", DataBytes.Get(v), MaxHops.Get(v), MaxRecipients.Get(v))
	}
	if v := s.View("smtpd.26"); DataBytes.Get(v) != 2 || MaxDaemons.Get(v) != 4 {
		t.Errorf("%d %d", DataBytes.Get(v), MaxDaemons.Get(v))
	}
}

func TestEnvdir(t *testing.T) {
	dir := lay(t, map[string]string{
		"services/qmail-smtpd.25/variables/SMTPS":      "\n",
		"services/qmail-smtpd.25/variables/DATABYTES":  "1\n",
		"services/qmail-smtpd.25/variables/.envfile":   "# comment\nDATABYTES=2\nMAXHOPS=3\nMY_OWN=x=y\n",
		"services/qmail-smtpd.25/variables/.envdir":    "../../../control/global_vars\n",
		"services/qmail-smtpd.25/variables/GREETDELAY": "",
		"control/global_vars/MAXHOPS":                  "4\n",
		"control/global_vars/MAXRECIPIENTS":            "5\n",
		"control/global_vars/GREETDELAY":               "6\n",
		"control/global_vars/.envdir/TARPITCOUNT":      "7\n",
		"control/greetdelay":                           "8\n",
	})
	// A link that leads back is not followed for ever.
	if err := os.Symlink("..", filepath.Join(dir, "control/global_vars/.envdir/.envdir")); err != nil {
		t.Fatal(err)
	}
	s, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	v := s.View("smtpd.25")
	got := fmt.Sprint(SMTPS.Get(v), DataBytes.Get(v), MaxHops.Get(v), MaxRecipients.Get(v), GreetDelay.Get(v), TarpitCount.Get(v))
	if got != "true 1 3 5 0s 7" {
		t.Error(got)
	}
	if env := strings.Join(v.Environment(), "\n"); !strings.Contains(env, "MY_OWN=x=y") || !strings.Contains(env, "SMTPS=\n") || strings.Contains(env, "GREETDELAY") {
		t.Errorf("environment:\n%s", env)
	}
	if len(s.Warnings) == 0 || !strings.Contains(s.Warnings[0].Text, "leads back") {
		t.Errorf("warnings %v", s.Warnings)
	}
}

const tcpText = `127.0.0.:allow,RELAYCLIENT=””
10.1.1.:allow,RELAYCLIENT=""
1.2.3.4:deny
5.6.7.8-10:allow,DATABYTES="11"
9.9.0.0/16:allow,DATABYTES=/12/,MY_OWN="z"
9.9.9.0/24:allow,DATABYTES="13"
fd00::/8:allow,DATABYTES="14"
fd00:1::/32:deny
::1:allow,DATABYTES="15"
=mail.example.org:allow,DATABYTES="16"
=.example.net:allow,DATABYTES="17"
=:allow,DATABYTES="18"
:allow
`

func TestTCPRules(t *testing.T) {
	rules, err := ParseTCPRules(tcpText)
	if err != nil {
		t.Fatal(err)
	}
	asText := lay(t, map[string]string{"tcp/tcp.smtp": tcpText})
	asCDB := lay(t, map[string]string{"tcp/x": ""})
	if err := WriteTCPRules(filepath.Join(asCDB, "tcp/tcp.smtp.cdb"), rules); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{asText, asCDB} {
		s, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		v := s.View("smtpd.25")
		for _, c := range []struct {
			ip, host, rule string
			deny           bool
			bytes          int
		}{
			{"127.0.0.1", "", "127.0.0.", false, 52428800}, {"10.1.1.200", "", "10.1.1.", false, 52428800}, {"10.1.11.2", "", "", false, 52428800},
			{"1.2.3.4", "", "1.2.3.4", true, 52428800}, {"5.6.7.9", "", "5.6.7.9", false, 11}, {"5.6.7.11", "", "", false, 52428800},
			{"9.9.1.1", "", "9.9.0.0/16", false, 12}, {"9.9.9.1", "", "9.9.9.0/24", false, 13}, {"fd01::1", "", "fd00::/8", false, 14},
			{"fd00:1:2::3", "", "fd00:1::/32", true, 52428800}, {"::1", "", "::1", false, 15}, {"::ffff:127.0.0.1", "", "127.0.0.", false, 52428800},
			{"8.8.8.8", "MAIL.example.org.", "=mail.example.org", false, 16}, {"8.8.8.8", "a.b.example.net", "=.example.net", false, 17},
			{"8.8.8.8", "other.org", "=", false, 18}, {"8.8.8.8", "", "", false, 52428800},
		} {
			over, verdict, err := v.ForClient(netip.MustParseAddr(c.ip), c.host)
			if err != nil || verdict.Deny != c.deny || verdict.Rule != c.rule || DataBytes.Get(over) != c.bytes {
				t.Errorf("%s %s: %+v %d %v", c.ip, c.host, verdict, DataBytes.Get(over), err)
			}
		}
		over, _, _ := v.ForClient(netip.MustParseAddr("127.0.0.1"), "")
		if !RelayClient.Get(over) || over.Source(RelayClient.Setting).Layer != "tcp rule" || !strings.HasPrefix(over.Source(RelayClient.Setting).File, "tcp/tcp.smtp") {
			t.Errorf("RELAYCLIENT: %v from %v", RelayClient.Get(over), over.Source(RelayClient.Setting))
		}
		over, _, _ = v.ForClient(netip.MustParseAddr("9.9.1.1"), "")
		if !strings.Contains(strings.Join(over.Environment(), " "), "MY_OWN=z") {
			t.Errorf("environment %v", over.Environment())
		}
	}
	_, err = ParseTCPRules("1.2.3.4\n1.2.3.4.5:allow\n1.2.3.:allow,X\n1.2.3:allow\n300.1.:deny\n1.2.3.4/24:allow\n:allow,A=\"b\nfe80::x:allow\n1.2.3.4:permit\n1.2.3.9-4:deny\n")
	if err == nil || len(err.(faults)) != 10 {
		t.Errorf("malformed rules: %v", err)
	}
}

// Files go both ways between us and ucspi-tcp.
func TestTCPRulesOfOthers(t *testing.T) {
	if _, err := exec.LookPath("tcprules"); err != nil {
		if os.Getenv("INDIGO_REQUIRE_PEERS") != "" {
			t.Fatal("no tcprules (Debian package ucspi-tcp)")
		}
		t.Skip("no tcprules (Debian package ucspi-tcp)")
	}
	const text = "127.0.0.:allow,RELAYCLIENT=\"\"\n1.2.3.4:deny\n5.6.7.8-10:allow,DATABYTES=\"11\"\n=.example.net:allow,A=\"1\",B=/2/\n:deny\n"
	dir := t.TempDir()
	theirs, ours := filepath.Join(dir, "tcp/tcp.smtp.cdb"), filepath.Join(dir, "ours.cdb")
	if err := os.Mkdir(filepath.Dir(theirs), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("tcprules", theirs, theirs+".tmp")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	s, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	v := s.View("smtpd.25")
	for ip, want := range map[string]string{"127.0.0.9": "127.0.0.", "1.2.3.4": "1.2.3.4", "5.6.7.10": "5.6.7.10", "9.9.9.9": ""} {
		_, verdict, err := v.ForClient(netip.MustParseAddr(ip), "")
		if err != nil || verdict.Rule != want || verdict.Deny != (ip == "1.2.3.4" || ip == "9.9.9.9") {
			t.Errorf("%s: %+v %v", ip, verdict, err)
		}
	}
	rules, err := ParseTCPRules(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteTCPRules(ours, rules); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ ip, host, want string }{
		{"127.0.0.9", "", "set environment variable RELAYCLIENT="}, {"1.2.3.4", "", "deny connection"}, {"5.6.7.9", "", "DATABYTES=11"},
		{"8.8.8.8", "x.example.net", "B=2"}, {"9.9.9.9", "", "deny connection"},
	} {
		check := exec.Command("tcprulescheck", ours)
		check.Env = []string{"PATH=" + os.Getenv("PATH"), "TCPREMOTEIP=" + c.ip}
		if c.host != "" {
			check.Env = append(check.Env, "TCPREMOTEHOST="+c.host)
		}
		out, err := check.CombinedOutput()
		if err != nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%s %s: %s %v", c.ip, c.host, out, err)
		}
	}
}

func TestLists(t *testing.T) {
	files := map[string]string{"control/badmailfrom": "# x\nBad@Example.org\n@worse.org\n"}
	s := load(t, files)
	l := BadMailFrom.Get(s.View("smtpd.25"))
	if l.Empty() || !l.InText("bad@example.org") || !l.InText("@worse.org") || l.InText("x") || l.InText("") || l.InText("# x") {
		t.Error("text")
	}
	for line, want := range map[string]string{
		"localhost:indimail:abcdefgh:indimail:badmailfrom": "mysql localhost indimail abcdefgh indimail badmailfrom",
		"h:u:p:w:d:t":                 "mysql h u p:w d t",
		"sqlite:lists.db badmailfrom": "sqlite    lists.db badmailfrom",
		"postgres://u:p@h/d spammers": "postgres    postgres://u:p@h/d spammers",
	} {
		table, err := ParseTable(line)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		if got := strings.Join([]string{table.Driver, table.Host, table.User, table.Password, table.Database, table.Name}, " "); got != want {
			t.Errorf("%s: %q", line, got)
		}
	}
	for _, bad := range []string{"", "h:u:p:d", "h:u:p:d:t;drop", "oracle:x t", "h:u:p::t"} {
		if _, err := ParseTable(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func BenchmarkEnvrules10000(b *testing.B) {
	var text strings.Builder
	for i := range 10000 {
		switch i % 4 {
		case 0:
			fmt.Fprintf(&text, "user%d@example.org:DATABYTES=%d\n", i, i)
		case 1:
			fmt.Fprintf(&text, "*@dept%d.example.org:REQUIREAUTH=1\n", i)
		case 2:
			fmt.Fprintf(&text, "news%d-*:MAXRECIPIENTS=%d\n", i, i+1)
		default:
			fmt.Fprintf(&text, "*%d.example.net:BADMAILFROM=badmailfrom\n", i)
		}
	}
	v := load(b, map[string]string{"control/from.envrules": text.String(), "control/badmailfrom": "x@y\n"}).View("smtpd.25")
	froms := []addr.Address{address(b, "user4000@example.org"), address(b, "nobody@dept401.example.org"), address(b, "stranger@example.com"), address(b, "a@host1003.example.net")}
	i := 0
	for b.Loop() {
		v.ForSender(froms[i%len(froms)])
		i++
	}
}

func BenchmarkTextMillion(b *testing.B) {
	var text strings.Builder
	for i := range 1000000 {
		fmt.Fprintf(&text, "user%d@example%d.org\n", i, i%1000)
	}
	l := BadMailFrom.Get(load(b, map[string]string{"control/badmailfrom": text.String()}).View("smtpd.25"))
	for b.Loop() {
		if !l.InText("user500000@example0.org") || l.InText("stranger@example.com") {
			b.Fatal("wrong")
		}
	}
}
