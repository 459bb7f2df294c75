package smtpd

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// TestScripts plays scripts: ">" sends a line, "<" wants a reply with this beginning, "TLS" shakes hands, "END" wants
// the connection's end.
func TestScripts(t *testing.T) {
	plain := b64("\x00ann@here.example\x00" + password)
	wrong := b64("\x00ann@here.example\x00wrong")
	for _, c := range []struct {
		name    string
		control map[string]string
		change  func(*Config)
		script  string
		queued  int
	}{
		{name: "one message", queued: 1, script: `
<220 mx.here.example ESMTP Indigo
>EHLO client.example
<250-mx.here.example
>MAIL FROM:<x@far.example> SIZE=100 BODY=8BITMIME RET=HDRS ENVID=a+20b AUTH=<>
<250 2.1.0 ok
>RCPT TO:<ann@here.example> NOTIFY=success,failure ORCPT=rfc822;ann@here.example
<250 2.1.5 ok
>DATA
<354 go ahead
>Subject: x
>
>..hello
>.
<250 2.0.0 ok 1666373676 qp 37166
>QUIT
<221 2.0.0 mx.here.example closing connection
END`},
		{name: "old style", queued: 1, script: `
<220
>helo there
<250 mx.here.example
>mail from: <nospam@jms1.net>
<250
>rcpt to: <Ann@HERE.example>
<250
>data
<354
>.
<250 2.0.0 ok
>quit
<221`},
		{name: "greeting set", control: map[string]string{"smtpgreeting": "Laptop (NO UCE) ESMTP"}, script: `
<220 Laptop (NO UCE) ESMTP`},
		{name: "sequence", script: `
<220
>MAIL FROM:<>
<503 5.5.1
>RCPT TO:<ann@here.example>
<503 5.5.1
>DATA
<503 5.5.1
>HELO x
<250 mx
>RCPT TO:<ann@here.example>
<503 5.5.1
>DATA
<503 5.5.1
>MAIL FROM:<>
<250
>MAIL FROM:<>
<503 5.5.1
>DATA
<503 5.5.1 RCPT first
>RSET
<250 2.0.0
>DATA
<503 5.5.1 MAIL first
>MAIL FROM:<>
<250
>EHLO again
<250-
>DATA
<503 5.5.1 MAIL first`},
		{name: "the small ones", script: `
<220
>NOOP whatever
<250 2.0.0
>VRFY ann
<252 2.1.5
>HELP
<214-2.0.0
>EXPN list
<502 5.5.1
>ETRN x
<502 5.5.1
>FOO
<500 5.5.2
>
<500 5.5.2
>AVERYLONGWORDINDEED x
<500 5.5.2
>rset` + "  " + `
<250 2.0.0
>RSET now
<501 5.5.4
>QUIT now
<501 5.5.4
>DATA now
<501 5.5.4
>QuIt
<221`},
		{name: "malformed", script: `
<220
>EHLO
<501 HELO
>EHLO ` + strings.Repeat("x", 256) + `
<501 HELO
>EHLO [127.0.0.1]
<250-
>MAIL x@far.example
<501 5.5.4
>MAIL FROM:x@far.example
<501 5.1.7
>MAIL FROM:<x@far.example
<501 5.1.7
>MAIL FROM:<x@far.example>SIZE=1
<501 5.1.7
>MAIL FROM:<x@far.example> SIZE=-1
<501 5.5.4
>MAIL FROM:<x@far.example> SIZE=1 SIZE=1
<501 5.5.4
>MAIL FROM:<x@far.example> BODY=BINARYMIME
<501 5.5.4
>MAIL FROM:<x@far.example> FOO=BAR
<555 5.5.4
>MAIL FROM:<x@far.example> =
<501 5.5.4
>MAIL FROM:<jürgen@far.example>
<553 5.6.7
>MAIL FROM:<x@far.example>
<250
>RCPT TO:<>
<501 5.1.3
>RCPT TO:<ann@here.example> NOTIFY=NEVER,SUCCESS
<501 5.5.4
>RCPT TO:<ann@here.example> SIZE=1
<555 5.5.4
>RCPT TO:<jürgen@here.example>
<553 5.6.7
>RCPT TO:<ann>
<501 5.1.3
>RCPT TO:<postmaster>
<250`},
		{name: "SMTPUTF8", queued: 1, script: `
<220
>EHLO x
<250-
>MAIL FROM:<jürgen@far.example> SMTPUTF8
<250
>RCPT TO:<jürgen@here.example>
<250
>DATA
<354
>.
<250`},
		{name: "relaying", script: `
<220
>EHLO x
<250-
>MAIL FROM:<x@far.example>
<250
>RCPT TO:<y@far.example>
<550 5.7.1 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)
>RCPT TO:<nobody@here.example>
<550 5.1.1 sorry, no mailbox here by that name (#5.1.1)
>RCPT TO:<ann@broken.example>
<451 4.3.0
>DATA
<503 5.5.1 RCPT first`},
		{name: "relaying for a network", control: map[string]string{"relayclients": "127.0.0.:\n"}, queued: 1, script: `
<220
>EHLO x
<250-
>MAIL FROM:<x@far.example>
<250
>RCPT TO:<y@far.example>
<250
>RCPT TO:<nobody@here.example>
<550 5.1.1
>DATA
<354
>.
<250`},
		{name: "limits", control: map[string]string{"databytes": "30", "maxrecipients": "1"}, script: `
<220
>EHLO x
<250-
>MAIL FROM:<> SIZE=31
<552 5.3.4
>MAIL FROM:<> SIZE=99999999999999999999
<552 5.3.4
>MAIL FROM:<> SIZE=30
<250
>RCPT TO:<ann@here.example>
<250
>RCPT TO:<bob@here.example>
<452 4.5.3
>DATA
<354
>1234567890123456789012345678901
>.
<552 5.3.4
>NOOP
<250`},
		{name: "hops", control: map[string]string{"maxhops": "2"}, script: `
<220
>HELO x
<250
>MAIL FROM:<>
<250
>RCPT TO:<ann@here.example>
<250
>DATA
<354
>Received: 1
>Received: 2
>Delivered-To: 3
>
>.
<554 5.4.6`},
		{name: "AUTH needs TLS", script: `
<220
>EHLO x
<250-
>AUTH PLAIN ` + plain + `
<538 5.7.11
>STARTTLS
<220 2.0.0
TLS
>MAIL FROM:<>
<503 5.5.1
>EHLO x
<250-
>STARTTLS
<503 5.5.1
>AUTH PLAIN ` + plain + `
<235 2.7.0
>AUTH PLAIN ` + plain + `
<503 5.5.1
>MAIL FROM:<x@any.example>
<250
>RCPT TO:<y@far.example>
<250`},
		{name: "AUTH at all only over TLS", control: map[string]string{"force_tls": "1", "secure_auth": "0"}, change: func(c *Config) { c.Auth = inClear{noSecrets{oneUser{}}} }, script: `
<220
>EHLO x
<250-mx.here.example
>AUTH CRAM-MD5
<538 5.7.11
>STARTTLS
<220 2.0.0
TLS
>EHLO x
<250-
>AUTH CRAM-MD5
<334 PD
>*
<501 5.0.0`},
		{name: "AUTH that shows no password goes without TLS", change: func(c *Config) { c.Auth = inClear{noSecrets{oneUser{}}} }, script: `
<220
>EHLO x
<250-mx.here.example
>AUTH PLAIN ` + plain + `
<538 5.7.11
>AUTH SCRAM-SHA-256-PLUS
<538 5.7.11
>AUTH CRAM-MD5 ` + b64("ann@here.example 00") + `
<501 5.5.2
>AUTH CRAM-MD5
<334 PD
>` + b64("ann@here.example 0123456789abcdef0123456789abcdef") + `
<535 5.7.8
>AUTH SCRAM-SHA-256
<334 ` + `
>` + b64("n,,n=ann@here.example,r=x") + `
<334 cj14
>` + strings.Repeat("A", 12290) + `
<500 5.5.6
>AUTH DIGEST-MD5 =
<334 cmVhbG09
>` + b64("username") + `
<501 5.5.2
>AUTH NTLM
<504 5.5.4
>AUTH ANONYMOUS
<504 5.5.4
>AUTH EXTERNAL =
<504 5.5.4
>AUTH XOAUTH2
<504 5.5.4`},
		{name: "AUTH by CRAM where nothing in clear is seen", control: map[string]string{"enable_cram": "1"}, script: `
<220
>EHLO x
<250-mx.here.example
>AUTH CRAM-RIPEMD
<334
>*
<501
>AUTH SCRAM-SHA-1
<504`},
		{name: "AUTH in all forms", control: map[string]string{"secure_auth": "0"}, script: `
<220
>AUTH PLAIN
<503 5.5.1
>EHLO x
<250-
>AUTH CRAM-MD5
<504 5.5.4
>AUTH
<504 5.5.4
>AUTH PLAIN
<334 
>*
<501 5.0.0
>AUTH PLAIN !!!
<501 5.5.2
>AUTH LOGIN
<334 VXNlcm5hbWU6
>***
<501 5.5.2
>AUTH PLAIN ` + b64("no nuls") + `
<501 5.5.2
>AUTH PLAIN =
<501 5.5.2
>AUTH LOGIN
<334 VXNlcm5hbWU6
>` + b64("down") + `
<334 UGFzc3dvcmQ6
>` + b64(password) + `
<454 4.7.0
>AUTH LOGIN ` + b64("ann@here.example") + `
<334 UGFzc3dvcmQ6
>` + b64("wrong") + `
<535 5.7.8
>AUTH LOGIN
<334 VXNlcm5hbWU6
>` + b64("ann@here.example") + `
<334 UGFzc3dvcmQ6
>` + b64(password) + `
<235 2.7.0 ok, go ahead (#2.0.0)`},
		{name: "AUTH PLAIN without initial response", control: map[string]string{"secure_auth": "0"}, script: `
<220
>EHLO x
<250-
>MAIL FROM:<>
<250
>AUTH PLAIN
<503 5.5.1
>RSET
<250
>AUTH PLAIN
<334 
>` + plain + `
<235`},
		{name: "three wrong passwords", control: map[string]string{"secure_auth": "0"}, script: `
<220
>EHLO x
<250-
>AUTH PLAIN ` + wrong + `
<535 5.7.8
>AUTH PLAIN ` + wrong + `
<535 5.7.8
>AUTH PLAIN ` + wrong + `
<535 5.7.8
<421 4.7.0
END`},
		{name: "long lines", control: map[string]string{"secure_auth": "0"}, script: `
<220
>NOOP ` + strings.Repeat("x", 1990) + `
<250
>NOOP ` + strings.Repeat("x", 2000) + `
<500 5.5.2
>NOOP ` + strings.Repeat("x", 50000) + `
<500 5.5.2
>EHLO x
<250-
>AUTH PLAIN
<334
>` + strings.Repeat("A", 20000) + `
<500 5.5.6
>AUTH PLAIN
<334
>` + strings.Repeat("A", 12000) + `
<501 5.5.2
>NOOP
<250`},
		{name: "many errors", script: "\n<220" + strings.Repeat("\n>FOO\n<500", 20) + "\n<421 4.7.0\nEND"},
		{name: "many refused recipients", script: "\n<220\n>HELO x\n<250\n>MAIL FROM:<>\n<250" +
			strings.Repeat("\n>RCPT TO:<q@here.example>\n<550", 200) + "\n<421 4.7.0\nEND"},
		{name: "submission", change: func(c *Config) { c.Submission = true }, queued: 1, script: `
<220
>EHLO x
<250-
>MAIL FROM:<x@far.example>
<530 5.7.0
>STARTTLS
<220
TLS
>EHLO x
<250-
>MAIL FROM:<x@far.example>
<530 5.7.0
>AUTH PLAIN ` + plain + `
<235
>MAIL FROM:<x@far.example>
<250
>RCPT TO:<y@far.example>
<250
>DATA
<354
>Subject: hello
>
>.
<250`},
		{name: "implicit TLS", change: func(c *Config) { c.ImplicitTLS = true }, script: `
TLS
<220
>STARTTLS
<503 5.5.1`},
		{name: "no TLS", change: func(c *Config) { c.TLS = nil }, script: `
<220
>STARTTLS
<454 4.7.0
>STARTTLS now
<501 5.5.4`},
		{name: "no AUTH", change: func(c *Config) { c.Auth = nil }, script: `
<220
>EHLO x
<250-
>AUTH PLAIN
<502 5.5.1`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := start(t, c.control, c.change)
			k := f.dial(t)
			last := "connect"
			for line := range strings.SplitSeq(c.script, "\n") {
				switch {
				case line == "":
				case line == "TLS":
					k.startTLS()
				case line == "END":
					k.gone()
				case line[0] == '>':
					last = line
					k.send(line[1:] + "\r\n")
				case line[0] == '<':
					if r := k.reply(); !strings.HasPrefix(r, line[1:]) {
						t.Fatalf("after %.100s: got %q, want %q", last, r, line[1:])
					}
				}
			}
			if n := len(f.queue.taken()); n != c.queued {
				t.Errorf("%d messages queued, want %d", n, c.queued)
			}
			// Secrets get nowhere.
			text := f.log.String() + fmt.Sprintf("%+v", f.trace.all())
			for _, secret := range []string{password, plain, wrong, b64(password)} {
				if strings.Contains(text, secret) {
					t.Errorf("the secret %q is in the trace or the log", secret)
				}
			}
		})
	}
}

// TestExtensions compares the whole reply to EHLO.
func TestExtensions(t *testing.T) {
	f := start(t, map[string]string{"databytes": "1000"}, nil)
	k := f.dial(t)
	k.want("220")
	k.send("EHLO x\r\n")
	always := "250-mx.here.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-ENHANCEDSTATUSCODES\r\n250-DSN\r\n"
	if r := k.reply(); r != always+"250-SIZE 1000\r\n250 STARTTLS" {
		t.Errorf("in clear: %s", r)
	}
	k.do("STARTTLS", "220")
	k.startTLS()
	k.send("EHLO x\r\n")
	if r := k.reply(); r != always+"250-SIZE 1000\r\n250 AUTH PLAIN LOGIN" {
		t.Errorf("in TLS: %s", r)
	}
}
