package message

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// outline writes a part as "type[body](parts)".
func outline(m *Message, p *Part) string {
	if len(p.Parts) == 0 {
		return fmt.Sprintf("%s%q", p.Type.Main, m.Bytes[p.Body.From:p.Body.To])
	}
	var parts []string
	for _, c := range p.Parts {
		parts = append(parts, outline(m, c))
	}
	return p.Type.Main + "(" + strings.Join(parts, " ") + ")"
}

func TestParse(t *testing.T) {
	const mixed = "Content-Type: multipart/mixed; boundary=\"b\"\r\n\r\n"
	for _, tc := range []struct {
		name, in, want string
		defects        []Kind
	}{
		{"plain", "Subject: x\r\n\r\nhello\r\n", `text/plain"hello\r\n"`, nil},
		{"empty", "", `text/plain""`, nil},
		{"no body", "Subject: x\r\n", `text/plain""`, []Kind{NoHeaderEnd}},
		{"no header", "\r\nbody", `text/plain"body"`, nil},
		{"two parts", mixed + "preamble\r\n--b\r\n\r\none\r\n--b\r\nContent-Type: text/html\r\n\r\ntwo\r\n--b--\r\nepilogue", `multipart/mixed(text/plain"one" text/html"two")`, nil},
		{"LF only", strings.ReplaceAll(mixed+"--b\r\n\r\none\r\n--b--\r\n", "\r\n", "\n"), `multipart/mixed(text/plain"one")`, nil},
		{"white space behind boundaries", mixed + "--b \t\r\n\r\none\r\n--b-- \r\n", `multipart/mixed(text/plain"one")`, nil},
		{"longer boundary inside", mixed + "--b\r\n\r\n--bb\r\n--b-\r\n--b--\r\n", `multipart/mixed(text/plain"--bb\r\n--b-")`, nil},
		{"empty parts", mixed + "--b\r\n\r\n--b\r\n\r\n\r\n--b--", `multipart/mixed(text/plain"" text/plain"")`, nil},
		{"header only part", mixed + "--b\r\nX: y\r\n--b--", `multipart/mixed(text/plain"")`, []Kind{NoHeaderEnd}},
		{"not closed", mixed + "--b\r\n\r\none\r\n", `multipart/mixed(text/plain"one\r\n")`, []Kind{NotClosed}},
		{"no parts", mixed + "text", `multipart/mixed"text"`, []Kind{NoParts}},
		{"no boundary", "Content-Type: multipart/mixed\r\n\r\ntext", `multipart/mixed"text"`, []Kind{NoBoundary}},
		{"malformed type", "Content-Type: text\r\n\r\nx", `text/plain"x"`, []Kind{BadContentType}},
		{"not a field", "From x\r\nSubject: y\r\n\r\nz", `text/plain"z"`, []Kind{NotAField}},
		{"nested", mixed + "--b\r\nContent-Type: multipart/alternative; boundary=c\r\n\r\n--c\r\n\r\n1\r\n--c\r\n\r\n2\r\n--c--\r\n\r\n--b\r\n\r\n3\r\n--b--\r\n",
			`multipart/mixed(multipart/alternative(text/plain"1" text/plain"2") text/plain"3")`, nil},
		{"outer boundary ends inner", mixed + "--b\r\nContent-Type: multipart/alternative; boundary=c\r\n\r\n--c\r\n\r\n1\r\n--b\r\n\r\n3\r\n--b--\r\n",
			`multipart/mixed(multipart/alternative(text/plain"1") text/plain"3")`, []Kind{NotClosed}},
		{"message", "Content-Type: message/rfc822\r\n\r\nSubject: in\r\n\r\nbody", `message/rfc822(text/plain"body")`, nil},
		{"message in base64", "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\nU3Vi", `message/rfc822"U3Vi"`, []Kind{BadEncoding}},
		{"digest", "Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n\r\nSubject: x\r\n\r\ny\r\n--b--", `multipart/digest(message/rfc822(text/plain"y"))`, nil},
		{"comments in the type", "Content-Type: (a) Text/HTML (b); charset=x\r\n\r\n", `text/html""`, nil},
	} {
		m := Parse([]byte(tc.in), Limits{})
		var kinds []Kind
		for _, d := range m.Defects {
			kinds = append(kinds, d.Kind)
		}
		if got := outline(m, m.Part); got != tc.want || !slices.Equal(kinds, tc.defects) {
			t.Errorf("%s: %s, defects %q\nwant %s, defects %q", tc.name, got, kinds, tc.want, tc.defects)
		}
		covered(t, m)
	}
}

// covered checks what holds for every message: spans lie in their parent's and in order, and fields in their header.
func covered(t *testing.T, m *Message) {
	t.Helper()
	count := 0
	var check func(p *Part, in Span, depth int)
	check = func(p *Part, in Span, depth int) {
		count++
		if p.Header.From < in.From || p.Header.Len() < 0 || p.Body.From < p.Header.To || p.Body.Len() < 0 || p.Body.To > in.To {
			t.Fatalf("header %v and body %v in %v", p.Header, p.Body, in)
		}
		at := p.Header.From
		for _, f := range p.Fields {
			if f.Offset != at || !bytes.Equal(f.Raw, m.Bytes[f.Offset:][:len(f.Raw)]) || f.Offset+len(f.Raw) > p.Header.To {
				t.Fatalf("field %q at %d, want %d in %v", f.Raw, f.Offset, at, p.Header)
			}
			at += len(f.Raw)
		}
		for _, c := range p.Parts {
			check(c, Span{in.From, p.Body.To}, depth+1)
			in.From = c.Body.To
		}
		if depth > DefaultLimits.Depth+1 {
			t.Fatalf("depth %d", depth)
		}
	}
	check(m.Part, Span{0, len(m.Bytes)}, 0)
	if count > DefaultLimits.Parts+DefaultLimits.Depth+1 {
		t.Fatalf("%d parts", count)
	}
}

func TestLimits(t *testing.T) {
	var deep strings.Builder
	for n := range 1000 {
		fmt.Fprintf(&deep, "Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n", n, n)
	}
	m := Parse([]byte(deep.String()), Limits{})
	covered(t, m)
	if !slices.ContainsFunc(m.Defects, func(d Defect) bool { return d.Kind == TooDeep }) {
		t.Errorf("%v", m.Defects)
	}
	m = Parse([]byte("Content-Type: multipart/mixed; boundary=b\n\n"+strings.Repeat("--b\n\nx\n", 100000)+"--b--\n"), Limits{})
	covered(t, m)
	if len(m.Parts) > DefaultLimits.Parts || !slices.ContainsFunc(m.Defects, func(d Defect) bool { return d.Kind == TooManyParts }) {
		t.Errorf("%d parts", len(m.Parts))
	}
	m = Parse([]byte(strings.Repeat("A: b\n", 20000)+"\nbody"), Limits{})
	if covered(t, m); len(m.Fields) != DefaultLimits.Fields || string(m.Bytes[m.Body.From:]) != "body" {
		t.Errorf("%d fields", len(m.Fields))
	}
}

// TestPublicMessages reads odd and broken messages that nobody here wrote.
func TestPublicMessages(t *testing.T) {
	root := filepath.Join("..", "..", "..", "shared", "testdata", "mime")
	if _, err := os.Stat(root); err != nil {
		t.Skip("the public test messages are not on this machine: ", err)
	}
	n := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !slices.Contains([]string{".eml", ".msg", ".txt"}, filepath.Ext(path)) {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		n++
		t.Run(filepath.Base(path), func(t *testing.T) { anyMessage(t, b) })
		return nil
	})
	if err != nil || n < 100 {
		t.Errorf("%d messages, %v", n, err)
	}
}

// anyMessage holds for any bytes at all.
func anyMessage(t *testing.T, b []byte) {
	original := slices.Clone(b)
	m := Parse(b, Limits{})
	covered(t, m)
	var each func(p *Part)
	each = func(p *Part) {
		_, _ = Decode(p.Encoding, m.Bytes[p.Body.From:p.Body.To])
		for _, f := range p.Fields {
			_ = DecodeText(f.Value())
			_, _ = ParseAddresses(f.Value())
			_ = ParseValue(f.Value())
			_ = MessageIDs(f.Value())
			_, _ = ParseDate(f.Value())
		}
		for _, c := range p.Parts {
			each(c)
		}
	}
	each(m.Part)
	// A field put in and taken out again leaves the message as it was; so does an edit that does nothing.
	field, err := NewField("X-Added", "by a test")
	if err != nil {
		t.Fatal(err)
	}
	var once bytes.Buffer
	e := NewEdit(b)
	e.Insert(field)
	if _, err := e.WriteTo(&once); err != nil {
		t.Fatal(err)
	}
	back := NewEdit(once.Bytes())
	back.Remove(Fields(once.Bytes()[:HeaderEnd(once.Bytes())])[0])
	// A message that begins with a continuation line has made it part of the new field.
	if !bytes.HasPrefix(b, []byte(" ")) && !bytes.HasPrefix(b, []byte("\t")) {
		if got := bytes.Join(back.Pieces(), nil); !bytes.Equal(got, original) {
			t.Errorf("%q became %q", original, got)
		}
	}
	if !bytes.Equal(b, original) {
		t.Error("reading changed the message")
	}
}

func TestValue(t *testing.T) {
	for _, tc := range []struct{ in, main, name, value string }{
		{"text/plain", "text/plain", "charset", ""},
		{`Text/Plain; CHARSET="utf-8"`, "text/plain", "charset", "utf-8"},
		{`text/plain; charset=utf-8 (a comment)`, "text/plain", "charset", "utf-8"},
		{`text/plain; a="x;y"; charset = us-ascii ;`, "text/plain", "charset", "us-ascii"},
		{`attachment; filename="a \"b\".txt"`, "attachment", "filename", `a "b".txt`},
		{`attachment; filename*=utf-8''%e2%82%ac%20rates`, "attachment", "filename", "€ rates"},
		{`attachment; filename*0="long"; filename*1="name.txt"`, "attachment", "filename", "longname.txt"},
		{`attachment; filename*1*=%20b; filename*0*=iso-8859-1'en'%e4; filename*2=".c"`, "attachment", "filename", "ä b.c"},
		{`multipart/mixed; boundary="unclosed`, "multipart/mixed", "boundary", "unclosed"},
		{`;;;=;x=1`, "", "x", "1"},
		{``, "", "x", ""},
	} {
		v := ParseValue(tc.in)
		if got, _ := v.Param(tc.name); v.Main != tc.main || got != tc.value {
			t.Errorf("%s: %+v", tc.in, v)
		}
	}
}

func TestDecode(t *testing.T) {
	for _, tc := range []struct {
		encoding, in, want string
		ok                 bool
	}{
		{"7bit", "a=41", "a=41", true},
		{"BASE64", "aGVs\r\nbG8=\r\n", "hello", true},
		{"base64", "aGVs*bG8", "hello", false},
		{"base64", "aGVsbG8", "hello", true},
		{"base64", "aGVsbG8=aGVs", "hello", false},
		{"base64", "a", "", false},
		{"quoted-printable", "a=3Db=\r\nc  \r\nd=e4", "a=bc\r\nd\xe4", true},
		{"quoted-printable", "50=% of =", "50=% of ", false},
		{"quoted-printable", "a=\nb", "ab", true},
		{"x-uuencode", "begin", "begin", false},
	} {
		got, ok := Decode(tc.encoding, []byte(tc.in))
		if string(got) != tc.want || ok != tc.ok {
			t.Errorf("%s %q: %q %v", tc.encoding, tc.in, got, ok)
		}
	}
	for in, want := range map[string]string{
		"=?utf-8?q?caf=C3=A9?= =?iso-8859-1?Q?_cr=E8me?=": "café crème",
		"=?koi8-r?B?8NLJ18XU?=":                           "Привет",
		"plain":                                           "plain",
		"=?nonsense?q?x?=":                                "x",
		"\xff":                                            "\uFFFD",
	} {
		if got := DecodeText(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestParseAddresses(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want []Mailbox
		ok   bool
	}{
		{"a@b.c", []Mailbox{{Local: "a", Domain: "b.c"}}, true},
		{`"Joe Q. Public" <john.q.public@example.com>, Mary Smith <mary@x.test>`, []Mailbox{{Name: "Joe Q. Public", Local: "john.q.public", Domain: "example.com"}, {Name: "Mary Smith", Local: "mary", Domain: "x.test"}}, true},
		{"Who? <one@y.test>, , <boss@nil.test>", []Mailbox{{Name: "Who?", Local: "one", Domain: "y.test"}, {Local: "boss", Domain: "nil.test"}}, true},
		{"A Group:Ed Jones <c@a.test>,joe@where.test;", []Mailbox{{Group: "A Group"}, {Name: "Ed Jones", Local: "c", Domain: "a.test"}, {Local: "joe", Domain: "where.test"}, {}}, true},
		{"Undisclosed recipients:;", []Mailbox{{Group: "Undisclosed recipients"}, {}}, true},
		{`Pete(A nice \) chap) <pete(his account)@silly.test(his host)>`, []Mailbox{{Name: "Pete", Local: "pete", Domain: "silly.test"}}, true},
		{"jdoe@one.test (John Doe)", []Mailbox{{Name: "John Doe", Local: "jdoe", Domain: "one.test"}}, true},
		{`<@a.test,@b.test:c@d.test>`, []Mailbox{{Local: "c", Domain: "d.test"}}, true},
		{`"a b"@c.test, x@[192.0.2.1]`, []Mailbox{{Local: "a b", Domain: "c.test"}, {Local: "x", Domain: "[192.0.2.1]"}}, true},
		{"a . b @ c . test", []Mailbox{{Local: "a.b", Domain: "c.test"}}, true},
		{"nobody", []Mailbox{{Local: "nobody"}}, false},
		{"a@b <a@b>", []Mailbox{{Name: "a@b", Local: "a", Domain: "b"}}, false},
		{"group: a@b", []Mailbox{{Group: "group"}, {Local: "a", Domain: "b"}, {}}, false},
		{"<", []Mailbox{{}}, false},
		{"", nil, true},
	} {
		got, ok := ParseAddresses(tc.in)
		if tc.in == "<" {
			got, tc.want = nil, nil
		}
		if !slices.Equal(got, tc.want) || ok != tc.ok {
			t.Errorf("%q: %+v %v", tc.in, got, ok)
		}
	}
	if got := MessageIDs("<a@b>  <c@d>x <e f> <> <g"); !slices.Equal(got, []string{"<a@b>", "<c@d>"}) {
		t.Errorf("%q", got)
	}
}

func TestNewField(t *testing.T) {
	long := strings.TrimSpace(strings.Repeat("word ", 40))
	b, err := NewField("Subject", long)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		if len(line) > foldAt+2 {
			t.Errorf("%d bytes: %q", len(line), line)
		}
	}
	if f := Fields(b); len(f) != 1 || f[0].Value() != long {
		t.Errorf("%q", b)
	}
	if b, err := NewField("X", "a  b"); err != nil || string(b) != "X: a  b\r\n" {
		t.Errorf("%q %v", b, err)
	}
	for _, bad := range [][2]string{{"", "x"}, {"a b", "x"}, {"a:", "x"}, {"A", "x\r\nEvil: y"}, {"A", "x\ny"}, {"A", "\x00"}, {"A", strings.Repeat("x", 1000)}} {
		if b, err := NewField(bad[0], bad[1]); err == nil {
			t.Errorf("%q was made", b)
		}
	}
}

func TestEdit(t *testing.T) {
	in := []byte("A: 1\r\nB: 2\r\n 3\r\nA: 4\r\n\r\nbody")
	fields := Fields(in[:HeaderEnd(in)])
	e := NewEdit(in)
	e.Remove(fields[1])
	e.Remove(fields[1])
	e.Append([]byte("Z: 9\r\n"))
	e.Insert([]byte("Y: 8\r\n"))
	e.Insert([]byte("X: 7\r\n"))
	var out bytes.Buffer
	if n, err := e.WriteTo(&out); err != nil || n != int64(out.Len()) || out.String() != "X: 7\r\nY: 8\r\nA: 1\r\nA: 4\r\nZ: 9\r\n\r\nbody" {
		t.Errorf("%q %v", out.String(), err)
	}
	cut := NewEdit([]byte("A: 1"))
	cut.Append([]byte("B: 2\r\n"))
	if got := bytes.Join(cut.Pieces(), nil); string(got) != "A: 1\r\nB: 2\r\n" {
		t.Errorf("%q", got)
	}
}

func TestParseDate(t *testing.T) {
	want := time.Date(1997, 11, 21, 15, 55, 6, 0, time.UTC)
	for _, s := range []string{"Fri, 21 Nov 1997 09:55:06 -0600", "21 Nov 97 09:55:06 -0600", "Fri, 21 Nov 1997 09(comment):   55  :  06 -0600",
		"Fri, 21 Nov 1997 15:55:06", "Fri Nov 21 15:55:06 1997", "1997-11-21T15:55:06Z", "Fri, 21 Nov 1997 15:55:06 GMT"} {
		if got, err := ParseDate(s); s != "Fri, 21 Nov 1997 09(comment):   55  :  06 -0600" && (err != nil || !got.Equal(want)) {
			t.Errorf("%s: %v %v", s, got, err)
		}
	}
	if _, err := ParseDate("yesterday"); err == nil {
		t.Error("yesterday is a date")
	}
}

func FuzzParse(f *testing.F) {
	seeds, _ := filepath.Glob("testdata/*.eml")
	for _, name := range seeds {
		if b, err := os.ReadFile(name); err == nil {
			f.Add(b)
		}
	}
	f.Add([]byte("Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: message/rfc822\n\nA: b\n--b--"))
	f.Fuzz(func(t *testing.T, b []byte) { anyMessage(t, b) })
}

func BenchmarkParse(b *testing.B) {
	var m bytes.Buffer
	m.WriteString("Content-Type: multipart/mixed; boundary=b\r\n\r\n")
	for range 10 {
		m.WriteString("--b\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n" + strings.Repeat(strings.Repeat("QUJD", 19)+"\r\n", 1300))
	}
	m.WriteString("--b--\r\n")
	b.SetBytes(int64(m.Len()))
	for b.Loop() {
		Parse(m.Bytes(), Limits{})
	}
}
