package lab

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/smtp"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Network{Latency: time.Second}
		n.Listen("192.0.2.1:25", func(c net.Conn) {
			defer c.Close()
			_, _ = io.Copy(c, c)
		})
		begun := time.Now()
		c, err := n.DialContext(t.Context(), "tcp", "192.0.2.1:25")
		if err != nil || time.Since(begun) != time.Second || c.RemoteAddr().String() != "192.0.2.1:25" {
			t.Fatal(c, err, time.Since(begun))
		}
		fmt.Fprint(c, "hello\n")
		if line, err := bufio.NewReader(c).ReadString('\n'); line != "hello\n" || err != nil {
			t.Error(line, err)
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		begun = time.Now()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begun) != time.Minute {
			t.Error(err, time.Since(begun))
		}
		if err := c.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		n.Cut()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
		if _, err := n.DialContext(t.Context(), "tcp", "192.0.2.2:25"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Error(err)
		}
		if got := n.Dials(); !slices.Equal(got, []string{"192.0.2.1:25", "192.0.2.2:25"}) {
			t.Error(got)
		}
		n.Wait()
	})
}

// TestPipe: the reader gets all that was written before the end, and a writer that nobody reads waits.
func TestPipe(t *testing.T) {
	a, b := Pipe()
	go func() {
		_, _ = a.Write(make([]byte, 3*window))
		a.Close()
	}()
	if got, err := io.ReadAll(b); len(got) != 3*window || err != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := b.Write([]byte("x")); err == nil {
		t.Error("wrote to a closed end")
	}
}

func TestPeer(t *testing.T) {
	authority, err := NewAuthority(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := authority.Issue(time.Hour, "mx.test", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	p := &Peer{Name: "mx.test", TLS: &tls.Config{Certificates: []tls.Certificate{certificate}}, Users: map[string]string{"u": "p"},
		Rcpt: func(to string) string {
			if strings.HasPrefix(to, "bad") {
				return "550 5.1.1 no"
			}
			return ""
		}}
	address, stop, err := p.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	// The standard library's client is the judge of the peer's SMTP.
	c, err := smtp.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Hello("client.test"), c.StartTLS(&tls.Config{ServerName: "mx.test", RootCAs: authority.Pool()}),
		c.Auth(smtp.PlainAuth("", "u", "p", "127.0.0.1")), c.Mail("a@x.test"), c.Rcpt("b@y.test")); err != nil {
		t.Fatal(err)
	}
	if err := c.Rcpt("bad@y.test"); err == nil {
		t.Error("bad was taken")
	}
	w, err := c.Data()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(w, ".dot\r\nend\r\n")
	if err := errors.Join(w.Close(), c.Quit()); err != nil {
		t.Fatal(err)
	}
	mails := p.Mails()
	if len(mails) != 1 || mails[0].Data != ".dot\r\nend\r\n" || !mails[0].TLS || mails[0].User != "u" || mails[0].From != "a@x.test" || !slices.Equal(mails[0].To, []string{"b@y.test"}) {
		t.Errorf("%+v", mails)
	}
	expired, err := authority.Issue(-time.Minute, "mx.test")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := Files(expired); err != nil || strings.Count(string(text), "BEGIN") != 3 {
		t.Error(string(text), err)
	}
}
