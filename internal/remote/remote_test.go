package remote

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/dnsx"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
)

// zones is a resolver of fixed answers; errNX stands for a name that does not exist.
type zones struct {
	mx    map[string][]dnsx.MX
	addrs map[string]string
	err   error
}

func (z zones) MX(_ context.Context, d string) ([]dnsx.MX, bool, error) {
	if z.err != nil {
		return nil, false, z.err
	}
	if mx, ok := z.mx[d]; ok {
		return mx, false, nil
	}
	return nil, false, dnsx.NotFound(d)
}

func (z zones) Addrs(_ context.Context, h string) ([]netip.Addr, bool, error) {
	if a, ok := z.addrs[h]; ok {
		return []netip.Addr{netip.MustParseAddr(a)}, false, nil
	}
	return nil, false, dnsx.NotFound(h)
}
func (zones) TXT(context.Context, string) ([]string, bool, error) { return nil, false, nil }
func (zones) PTR(context.Context, netip.Addr) ([]string, error)   { return nil, nil }

// peer is a server that answers each verb as told, "250 ok" (354 to DATA) otherwise; "" hangs up.
type peer struct {
	answers map[string]string
	mu      sync.Mutex
	conns   int
	data    []string
}

func (p *peer) serve(conn net.Conn) {
	defer conn.Close()
	p.mu.Lock()
	p.conns++
	p.mu.Unlock()
	say := func(verb, otherwise string) bool {
		a, ok := p.answers[verb]
		if !ok {
			a = otherwise
		}
		if a == "" {
			return false
		}
		_, err := conn.Write([]byte(a + "\r\n"))
		return err == nil
	}
	if !say("greeting", "220 peer") {
		return
	}
	r := bufio.NewReader(conn)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb := strings.ToUpper(strings.Fields(line + " .")[0])
		if verb == "QUIT" {
			return
		}
		if verb == "RCPT" && strings.Contains(line, "<bad@") {
			verb = "BAD"
		}
		if !say(verb, map[string]string{"DATA": "354 go", "BAD": "550 5.1.1 who?", "EHLO": "250-peer\r\n250-PIPELINING\r\n250 SIZE 1000"}[verb]+map[bool]string{true: "", false: "250 ok"}[verb == "DATA" || verb == "BAD" || verb == "EHLO"]) {
			return
		}
		if verb == "DATA" && p.answers["DATA"] == "" {
			var all strings.Builder
			for line != ".\r\n" {
				if line, err = r.ReadString('\n'); err != nil {
					return
				}
				all.WriteString(line)
			}
			p.mu.Lock()
			p.data = append(p.data, all.String())
			p.mu.Unlock()
			if !say("end", "250 2.0.0 taken") {
				return
			}
		}
	}
}

type bytesContent struct{ *bytes.Reader }

func (b bytesContent) Size() int64 { return b.Reader.Size() }

func job(domain string, to ...string) *queue.Delivery {
	d := &queue.Delivery{Host: domain, Envelope: &queue.Envelope{Sender: addr.Address{Local: "s", Domain: "here.test"}}, Content: bytesContent{bytes.NewReader([]byte("Subject: x\r\n\r\n.y\r\n"))}}
	for _, a := range to {
		d.Recipients = append(d.Recipients, queue.Recipient{Address: addr.Address{Local: a, Domain: domain}})
	}
	return d
}

func newTest(t *testing.T, z zones, peers map[string]*peer) *Deliverer {
	t.Helper()
	d, err := New(Config{Resolver: z, Settings: func() *settings.View { return nil }, Hostname: func() string { return "here.test" }, Now: time.Now,
		Logger: slog.New(slog.DiscardHandler), Dial: func(_ context.Context, _, address string) (net.Conn, error) {
			p, ok := peers[address]
			if !ok {
				return nil, errors.New("connection refused")
			}
			client, server := net.Pipe()
			go p.serve(server)
			return client, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func TestStages(t *testing.T) {
	z := zones{mx: map[string][]dnsx.MX{"far.test": {{Preference: 10, Host: "mx.far.test"}}}, addrs: map[string]string{"mx.far.test": "192.0.2.1"}}
	for _, c := range []struct {
		stage, answer string
		want          string
	}{
		{"", "", "ok 550"}, {"greeting", "554 no", "451 451"}, {"greeting", "", "451 451"}, {"greeting", "hello", "451 451"},
		{"EHLO", "", "451 451"}, {"EHLO", "502 what", "ok 550"}, {"MAIL", "550 5.7.1 no", "550 550"}, {"MAIL", "421 later", "421 421"}, {"MAIL", "", "451 451"},
		{"RCPT", "450 4.2.0 later", "450 550"}, {"RCPT", "", "451 451"}, {"DATA", "451 4.3.0 no", "451 550"}, {"DATA", "554 no", "554 550"},
		{"end", "452 4.3.1 full", "452 550"}, {"end", "554 5.6.0 spam", "554 550"}, {"end", "", "451 550"}, {"end", "250-x\r\n251 y", "451 550"},
	} {
		p := &peer{answers: map[string]string{}}
		if c.stage != "" {
			p.answers[c.stage] = c.answer
		}
		d := newTest(t, z, map[string]*peer{"192.0.2.1:25": p})
		var got []string
		for _, r := range d.Deliver(t.Context(), job("far.test", "good", "bad")) {
			if r.Err == nil {
				got = append(got, "ok")
			} else {
				got = append(got, fmt.Sprint(r.Err.Code))
			}
		}
		if g := strings.Join(got, " "); g != c.want {
			t.Errorf("%s %q: %s, want %s", c.stage, c.answer, g, c.want)
		}
	}
}

func TestMXAndReuse(t *testing.T) {
	good, rude := &peer{}, &peer{answers: map[string]string{"greeting": "421 busy"}}
	z := zones{
		mx: map[string][]dnsx.MX{
			"far.test":  {{Preference: 5, Host: "down.test"}, {Preference: 10, Host: "rude.test"}, {Preference: 20, Host: "good.test"}},
			"null.test": {{Host: ""}}, "loop.test": {{Preference: 5, Host: "here.test"}, {Preference: 10, Host: "good.test"}},
		},
		addrs: map[string]string{"down.test": "192.0.2.9", "rude.test": "192.0.2.2", "good.test": "192.0.2.1", "onlya.test": "192.0.2.1"},
	}
	d := newTest(t, z, map[string]*peer{"192.0.2.1:25": good, "192.0.2.2:25": rude})
	for _, domain := range []string{"far.test", "far.test", "onlya.test"} {
		if r := d.Deliver(t.Context(), job(domain, "u")); r[0].Err != nil {
			t.Errorf("%s: %v %q", domain, r[0].Err, r[0].Dialogue)
		}
	}
	if good.conns != 2 || len(good.data) != 3 || good.data[0] != "Subject: x\r\n\r\n..y\r\n.\r\n" {
		t.Errorf("%d connections, %q", good.conns, good.data)
	}
	for domain, code := range map[string]int{"null.test": 556, "loop.test": 554, "gone.test": 550} {
		if r := d.Deliver(t.Context(), job(domain, "u")); r[0].Err == nil || r[0].Err.Code != code {
			t.Errorf("%s: %v", domain, r[0].Err)
		}
	}
	z.err = errors.New("SERVFAIL")
	if r := newTest(t, z, nil).Deliver(t.Context(), job("far.test", "u")); r[0].Err == nil || r[0].Err.Code != 451 {
		t.Errorf("a resolver that fails: %v", r[0].Err)
	}
}

func FuzzParseReply(f *testing.F) {
	f.Add("250 ok")
	f.Add("250-x")
	f.Fuzz(func(t *testing.T, line string) {
		if code, text, _, ok := parseReply(line); ok && (code < 200 || code > 599 || strings.ContainsAny(text, "\r\n\x00")) {
			t.Fatalf("%q: %d %q", line, code, text)
		}
	})
}

// TestTransactionsEnd: what a transaction that came to nothing leaves behind does not make the host refuse the next message on the connection.
func TestTransactionsEnd(t *testing.T) {
	z := zones{mx: map[string][]dnsx.MX{"far.test": {{Host: "mx.far.test"}}}, addrs: map[string]string{"mx.far.test": "192.0.2.1"}}
	for _, pipelining := range []string{"\r\n250-PIPELINING", ""} {
		for refused, want := range map[string]int{"MAIL": 451, "RCPT": 550, "DATA": 452} {
			var conns sync.WaitGroup
			dials := 0
			d, err := New(Config{Resolver: z, Settings: func() *settings.View { return nil }, Hostname: func() string { return "here.test" }, Now: time.Now,
				Logger: slog.New(slog.DiscardHandler), Dial: func(context.Context, string, string) (net.Conn, error) {
					dials++
					client, server := net.Pipe()
					conns.Go(func() { strict(server, pipelining, refused, want) })
					return client, nil
				}})
			if err != nil {
				t.Fatal(err)
			}
			if r := d.Deliver(t.Context(), job("far.test", "bad")); r[0].Err == nil || r[0].Err.Code != want {
				t.Errorf("%s: %v", refused, r[0].Err)
			}
			if r := d.Deliver(t.Context(), job("far.test", "good")); r[0].Err != nil || dials != 1 {
				t.Errorf("%s, pipelining %q: the next message, with %d connections: %v %q", refused, pipelining, dials, r[0].Err, r[0].Dialogue)
			}
			d.Close()
			conns.Wait()
		}
	}
}

// strict is a server that refuses one verb once, and minds the order of commands (RFC 5321 section 4.1.4).
func strict(conn net.Conn, pipelining, refused string, code int) {
	defer conn.Close()
	out, in := bufio.NewWriter(conn), bufio.NewReader(conn)
	say := func(line string) { fmt.Fprint(out, line+"\r\n") }
	say("220 strict")
	mail, rcpt := false, false
	for {
		if in.Buffered() == 0 && out.Flush() != nil {
			return
		}
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		verb := strings.ToUpper(line[:4])
		if verb == refused {
			refused = ""
			say(fmt.Sprint(code, " no"))
			continue
		}
		switch {
		case verb == "EHLO":
			say("250-strict" + pipelining + "\r\n250 SIZE 1000")
		case verb == "MAIL" && mail, verb == "RCPT" && !mail, verb == "DATA" && !rcpt:
			say("503 5.5.1 bad sequence")
		case verb == "MAIL":
			mail = true
			say("250 ok")
		case verb == "RCPT":
			rcpt = true
			say("250 ok")
		case verb == "RSET":
			mail, rcpt = false, false
			say("250 ok")
		case verb == "DATA":
			say("354 go")
			if out.Flush() != nil {
				return
			}
			for line != ".\r\n" {
				if line, err = in.ReadString('\n'); err != nil {
					return
				}
			}
			mail, rcpt = false, false
			say("250 taken")
		case verb == "QUIT":
			return
		}
	}
}
