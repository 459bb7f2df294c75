package auth

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/indigomail/indigo/internal/mailerr"
)

// TestDovecotAnswers: what a Dovecot may say, and what comes of it. The real one is asked in test/e2e.
func TestDovecotAnswers(t *testing.T) {
	const hello = "VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\tx\nDONE\n"
	for _, c := range []struct {
		name, hello, answer string
		user                string
		code                int
		off                 bool
	}{
		{name: "yes", hello: hello, answer: "OK\t1\tuser=ann@other.test\n", user: "ann@other.test"},
		{name: "bare", hello: hello, answer: "FOO\nOK\t2\tuser=x\nOK\t1\tuser=ann\n", user: "ann@here.test"},
		{name: "escaped", hello: hello, answer: "OK\t1\tuser=a\x01tb@here.test\n", code: 454},
		{name: "nobody", hello: hello, answer: "OK\t1\n", code: 454},
		{name: "no", hello: hello, answer: "FAIL\t1\tuser=ann\n", code: 535},
		{name: "down", hello: hello, answer: "FAIL\t1\tuser=ann\ttemp\n", code: 454},
		{name: "down, as 2.3 says it", hello: hello, answer: "FAIL\t1\tuser=ann\tcode=temp_fail\n", code: 454},
		{name: "disabled", hello: hello, answer: "FAIL\t1\tuser=ann\tuser_disabled\n", code: 535, off: true},
		{name: "expired", hello: hello, answer: "FAIL\t1\tuser=ann\tcode=pass_expired\n", code: 535, off: true},
		{name: "more", hello: hello, answer: "CONT\t1\t\n", code: 454},
		{name: "other version", hello: "VERSION\t2\t0\nMECH\tPLAIN\nDONE\n", code: 454},
		{name: "no PLAIN", hello: "VERSION\t1\t0\nMECH\tCRAM-MD5\nDONE\n", code: 454},
		{name: "gone", hello: "VERSION\t1\t0\n", code: 454},
		{name: "endless greeting", hello: strings.Repeat("MECH\tPLAIN\n", 300), code: 454},
		{name: "long line", hello: strings.Repeat("x", 1<<20), code: 454},
		{name: "endless answer", hello: hello, answer: strings.Repeat("NOTE\t1\n", 300), code: 454},
	} {
		t.Run(c.name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			asked := make(chan string, 1)
			go func() {
				defer theirs.Close()
				if _, err := theirs.Write([]byte(c.hello)); err != nil || c.answer == "" {
					return
				}
				in, said := bufio.NewReader(theirs), ""
				for range 3 {
					line, err := in.ReadString('\n')
					if said += line; err != nil {
						return
					}
				}
				asked <- said
				theirs.Write([]byte(c.answer))
			}()
			d := &Dovecot{
				Socket: "/run/auth", PID: 7, DefaultDomain: "here.test", Running: make(chan struct{}, 1),
				Dial: func(context.Context, string, string) (net.Conn, error) { return ours, nil },
			}
			identity, err := d.Verify(t.Context(), Attempt{User: "ann", Password: "sec\tret", Service: "imapd.143", Client: netip.MustParseAddr("192.0.2.1")})
			if got := mailerr.From(err); c.code != 0 && (got == nil || got.Code != c.code) || errors.Is(err, errSwitchedOff) != c.off {
				t.Errorf("%v, want %d", err, c.code)
			}
			if c.code == 0 && (err != nil || identity.Address.String() != c.user) {
				t.Errorf("%s %v", identity.Address, err)
			}
			if c.answer == "" {
				return
			}
			want := "VERSION\t1\t1\nCPID\t7\nAUTH\t1\tPLAIN\tservice=imap\tsecured\tnologin\trip=192.0.2.1\tresp=AGFubgBzZWMJcmV0\n"
			if got := <-asked; got != want {
				t.Errorf("asked %q", got)
			}
		})
	}
}

func TestDovecotSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		d := &Dovecot{Running: make(chan struct{}, 1), Dial: func(context.Context, string, string) (net.Conn, error) { return ours, nil }}
		began := time.Now()
		_, err := d.Verify(t.Context(), Attempt{User: "ann", Password: "secret"})
		if mailerr.From(err).Code != 454 || time.Since(began) != dovecotTime {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if _, err := d.Verify(t.Context(), Attempt{User: "ann", Password: "a\x00b"}); mailerr.From(err).Code != 535 {
			t.Error(err)
		}
	})
}
