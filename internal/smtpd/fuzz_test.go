package smtpd

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/indigomail/indigo/internal/trace"
)

// FuzzCommand: the parsers never crash, and what they accept keeps within what the stations behind the door may rely on.
func FuzzCommand(f *testing.F) {
	for _, s := range []string{
		"MAIL FROM:<a@b.example> SIZE=10 BODY=8BITMIME RET=FULL ENVID=x+2B AUTH=<>", "mail from: <>", "RCPT TO:<\"a b\"@[127.0.0.1]> NOTIFY=NEVER ORCPT=rfc822;x",
		"RCPT TO:<@x,@y:a@b>", "EHLO [IPv6:::1]", "HELO  x y", "AUTH PLAIN =", "STARTTLS ", "NOOP\tx", "MAIL FROM:<é@b> SMTPUTF8", "RCPT TO:<postmaster>", "",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		_, args := parseVerb(line)
		if name, ok := parseHelo(args); ok && (name == "" || len(name) > 255 || strings.ContainsAny(name, " \r\n\x00")) {
			t.Errorf("HELO name %q", name)
		}
		if m, refused, _ := parseMail(string(args)); refused == nil {
			if m.size < 0 || len(m.envid) > 100 || hasControl(m.envid) || m.ret != "" && m.ret != "FULL" && m.ret != "HDRS" || m.body != "" && m.body != "7BIT" && m.body != "8BITMIME" {
				t.Errorf("MAIL %+v", m)
			}
			if hasControl(m.from.String()) || !utf8.ValidString(m.from.String()) || !m.utf8 && !isASCII(m.from.String()) {
				t.Errorf("sender %+v", m)
			}
		} else if refused.code < 500 {
			t.Errorf("MAIL refused with %q", refused.wire)
		}
		for _, utf8 := range []bool{false, true} {
			if r, refused, _ := parseRcpt(string(args), utf8); refused == nil {
				if r.to.IsNull() || hasControl(r.to.String()+r.notify+r.orcpt) || len(r.orcpt) > 500 || !utf8 && !isASCII(r.to.String()) {
					t.Errorf("RCPT %+v", r)
				}
			}
		}
	})
}

func hasControl(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) >= 0
}

var wellFormed = regexp.MustCompile(`^([2345][0-9][0-9])(-| )[ -~]{0,505}\r\n$`)

// replies checks the form of a server's whole output and gives the codes.
func replies(t *testing.T, out []byte) (codes []string) {
	r := bufio.NewReader(bytes.NewReader(out))
	within := ""
	for {
		line, err := r.ReadString('\n')
		if err == io.EOF && line == "" {
			break
		}
		m := wellFormed.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("malformed reply line %q", line)
		}
		if within != "" && m[1] != within {
			t.Fatalf("reply line %q within a reply %s", line, within)
		}
		if within = m[1]; m[2] == " " {
			within = ""
			codes = append(codes, m[1])
		}
	}
	if within != "" {
		t.Fatalf("reply %s has no end", within)
	}
	return codes
}

// FuzzSession: whatever a client sends, every reply is well-formed, no 250 to data comes without a message in the queue,
// and the session ends without a fault.
func FuzzSession(f *testing.F) {
	hello := "EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<ann@here.example>\r\nDATA\r\n"
	for _, s := range []string{
		hello + "Subject: x\r\n\r\n..\r\n.\r\nQUIT\r\n", hello + "x\n.\nMAIL FROM:<>\r\n.\r\n", hello + "x\r.\r\r\n.\r\nNOOP\r\n",
		"HELO x\nEHLO y\r\n", "AUTH PLAIN\r\n*\r\n", "EHLO x\r\nAUTH LOGIN\r\nAAAA\r\nAAAA\r\nAUTH PLAIN AGFubkBoZXJlLmV4YW1wbGUAcw==\r\n",
		"STARTTLS\r\n\x16\x03\x01\x00\x05hello", "\x00\xff\r\n", strings.Repeat("FOO\r\n", 30), "EHLO x\r\nMAIL FROM:<> SIZE=9999999999999\r\n",
		hello + strings.Repeat("Received: x\r\n", 120) + "\r\n.\r\n", hello + ".\r\n" + hello + ".\r\n", "NOOP " + strings.Repeat("x", 17000) + "\r\nHELP\r\n",
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	control := map[string]string{"secure_auth": "0", "databytes": "10000"}
	fixtures := map[bool]*fixture{}
	for _, submission := range []bool{false, true} {
		fixtures[submission] = newFixture(f, control, func(c *Config) { c.Submission = submission })
	}
	f.Fuzz(func(t *testing.T, in []byte, submission bool) {
		x := fixtures[submission]
		x.queue.mu.Lock()
		x.queue.messages, x.queue.aborted = nil, 0
		x.queue.mu.Unlock()
		x.log.mu.Lock()
		x.log.b.Reset()
		x.log.mu.Unlock()
		x.trace.mu.Lock()
		x.trace.events = nil
		x.trace.mu.Unlock()
		conn := &script{in: strings.NewReader(string(in))}
		x.Handle(context.Background(), conn)
		if s := x.log.String(); strings.Contains(s, "fault") {
			t.Fatal(s)
		}
		out := conn.out.Bytes()
		// A TLS alert is no reply.
		if i := bytes.Index(out, []byte("ready for tls\r\n")); i >= 0 {
			out = out[:i+len("ready for tls\r\n")]
		}
		replies(t, out)
		if said, taken := bytes.Count(out, []byte("250 2.0.0 ok 1")), len(x.queue.taken()); said != taken {
			t.Errorf("%d messages accepted, %d in the queue", said, taken)
		}
		for _, m := range x.queue.taken() {
			c := m.content
			if n := strings.Count(c, "\r\n"); strings.Count(c, "\n") != n || strings.Count(c, "\r") != n {
				t.Errorf("bare CR or LF in the queue: %q", c)
			}
			if !strings.HasPrefix(c, "Received: indimail-mta smtpd ") || len(m.Recipients) == 0 {
				t.Errorf("message %+v", m)
			}
		}
		events := x.trace.all()
		if len(events) == 0 || events[len(events)-1].Kind != "close" {
			t.Errorf("the trace does not end with the session's end: %+v", events)
		}
		for _, e := range events {
			if e.Kind != "close" && (e.Verdict == "" || e.Check == "" || e.Reply == "" && e.Kind != "tls" && e.Check != "connection") {
				t.Errorf("event %+v", trace.Event(e))
			}
		}
	})
}

// FuzzNodes: what is taken as the argument of ETRN or ATRN can stand in a reply and in a path as it is.
func FuzzNodes(f *testing.F) {
	for _, s := range []string{"etrn1.dom", "@a.test", "#queue", "a.test,b.test", "..", "../x", "a b", ",", "ü.test", strings.Repeat("a.", 200), "a.test\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, args string) {
		nodes, _ := parseNodes(args)
		if node, refused := parseNode(args); refused == nil {
			nodes = append(nodes, node)
		}
		for i, node := range nodes {
			// The last may be ETRN's, which has @ or # before it.
			if i == len(nodes)-1 && strings.IndexAny(node, "@#") == 0 {
				node = node[1:]
			}
			if node == "" || len(node) > 255 || strings.HasPrefix(node, ".") || strings.IndexFunc(node, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("/<>,@#", r) }) >= 0 {
				t.Fatalf("%q: %q", args, node)
			}
		}
	})
}
