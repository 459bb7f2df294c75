package probe

import (
	"bufio"
	"context"
	"crypto/md5"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/tlsx"
	"github.com/indigomail/indigo/internal/wire"
)

// What a server may make us read.
const (
	maxLine  = 16 << 10
	maxLines = 200
)

// Ways of TLS.
const (
	// StartTLS begins in clear and goes over to TLS before a login; TLS begins with it; Plain stays in clear.
	StartTLS = "starttls"
	TLS      = "tls"
	Plain    = "plain"
)

// Target is a server and how to talk to it.
type Target struct {
	// Address is HOST:PORT, Protocol "smtp", "imap" or "pop3", Mode one of the ways of TLS.
	Address, Protocol, Mode string
	// TLS judges the certificate.
	TLS *tls.Config
	// Helo is the client's name.
	Helo string
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Say is told of each line as it is said; nil tells nobody.
	Say func(Line)
	// Timeout bounds the wait for one reply.
	Timeout time.Duration
}

// Refused is what the server said to a command that it did not obey.
type Refused struct{ What, Reply string }

func (e *Refused) Error() string {
	if means := Meaning(e.Reply); means != "" {
		return fmt.Sprintf("%s: %s (%s)", e.What, e.Reply, means)
	}
	return e.What + ": " + e.Reply
}

// Conn is a connection that was greeted.
type Conn struct {
	target Target
	conn   net.Conn
	in     *bufio.Reader
	reader Reader
	tag    int
	// Banner is the greeting, Lines what the server says it can: behind EHLO, CAPABILITY or CAPA.
	Banner string
	Lines  []string
	// State is nil in clear.
	State *tls.ConnectionState
}

// Connect connects, hears the greeting and asks what the server can, inside TLS where the mode is so. The error is a *Refused where the server
// said no.
func Connect(ctx context.Context, t Target) (*Conn, error) {
	c, err := open(ctx, t)
	if err != nil {
		return nil, err
	}
	err = c.Hello(ctx)
	if err == nil && t.Mode == StartTLS {
		err = c.StartTLS(ctx)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// open connects and hears the greeting.
func open(ctx context.Context, t Target) (*Conn, error) {
	raw, err := t.Dial(ctx, "tcp", t.Address)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", t.Address, plain(err))
	}
	c := &Conn{target: t, conn: raw}
	if t.Mode == TLS {
		if err := c.handshake(ctx); err != nil {
			raw.Close()
			return nil, err
		}
	}
	c.in = bufio.NewReaderSize(c.conn, maxLine)
	greeting, err := c.reply(ctx)
	if err == nil {
		if c.Banner = greeting[len(greeting)-1]; !c.positive(c.Banner) {
			err = &Refused{"greeting", c.Banner}
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// plain takes from an error of the network what its reader knows already, and says what may be the matter.
func plain(err error) error {
	var name *net.DNSError
	var code syscall.Errno
	switch {
	case errors.As(err, &name) && name.IsNotFound:
		return fmt.Errorf("the name %s is not in the DNS", name.Name)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nothing listens there", syscall.ECONNREFUSED)
	case errors.As(err, &code):
		return code
	}
	return err
}

// goodbyeTime is how long a server has to close the connection after QUIT: one of POP3 keeps its mailbox locked till then.
const goodbyeTime = 2 * time.Second

// Close says goodbye and closes the connection.
func (c *Conn) Close() {
	if c.in != nil && c.conn.SetDeadline(time.Now().Add(goodbyeTime)) == nil {
		if _, err := fmt.Fprintf(c.conn, "%s\r\n", c.tagged("LOGOUT", "QUIT")); err == nil {
			// What it says does not matter any more.
			_, _ = io.Copy(io.Discard, io.LimitReader(c.in, maxLine))
		}
	}
	c.conn.Close()
}

func (c *Conn) tagged(imap, other string) string {
	if c.target.Protocol != "imap" {
		return other
	}
	c.tag++
	return fmt.Sprintf("A%d %s", c.tag, imap)
}

func (c *Conn) handshake(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.target.Timeout)
	defer cancel()
	conn := tls.Client(c.conn, c.target.TLS)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS with %s: %w", c.target.Address, err)
	}
	state := conn.ConnectionState()
	c.conn, c.State = conn, &state
	// A certificate that is no good ends the handshake, unless any is taken.
	certificate := "certificate verified for " + c.target.TLS.ServerName
	if c.target.TLS.InsecureSkipVerify {
		now := time.Now
		if c.target.TLS.Time != nil {
			now = c.target.TLS.Time
		}
		if err := (tlsx.Demand{Name: c.target.TLS.ServerName, Roots: c.target.TLS.RootCAs}).Verify(state.PeerCertificates, now()); err != nil {
			certificate = "certificate NOT verified, who stands between would hear all: " + err.Error()
		}
	}
	c.note(fmt.Sprintf("(TLS: %s, %s; %s)", tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite), certificate))
	return nil
}

func (c *Conn) note(text string) {
	if c.target.Say != nil {
		c.target.Say(Line{Text: text})
	}
}

func (c *Conn) heard(from, text string) {
	l := c.reader.Line(from, text)
	if c.target.Say != nil {
		c.target.Say(l)
	}
}

// send says a line.
func (c *Conn) send(line string) error {
	c.heard("C", line)
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.target.Timeout)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.conn, "%s\r\n", line)
	return err
}

// line hears one.
func (c *Conn) line(ctx context.Context) (string, error) {
	deadline := time.Now().Add(c.target.Timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.conn.SetReadDeadline(deadline); err != nil {
		return "", err
	}
	raw, err := c.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return "", errors.New("the server's line is too long")
	}
	if err != nil {
		return "", fmt.Errorf("waiting for %s: %w", c.target.Address, err)
	}
	text := wire.Printable(strings.TrimRight(string(raw), "\r\n"))
	c.heard("S", text)
	return text, nil
}

// reply hears the lines up to the one that ends a reply.
func (c *Conn) reply(ctx context.Context) (lines []string, err error) {
	tag := fmt.Sprintf("A%d ", c.tag)
	for len(lines) < maxLines {
		l, err := c.line(ctx)
		if err != nil {
			return lines, err
		}
		lines = append(lines, l)
		switch c.target.Protocol {
		case "smtp":
			if !isReply(l) {
				return lines, fmt.Errorf("no reply of SMTP: %q (is it the right port?)", l)
			}
			if len(l) < 4 || l[3] != '-' {
				return lines, nil
			}
		case "imap":
			if strings.HasPrefix(l, "+") || c.tag == 0 || strings.HasPrefix(l, tag) {
				return lines, nil
			}
		default:
			return lines, nil
		}
	}
	return lines, errors.New("the server's reply has too many lines")
}

// positive tells whether a reply ends a command well.
func (c *Conn) positive(l string) bool {
	switch c.target.Protocol {
	case "smtp":
		return strings.HasPrefix(l, "2")
	case "imap":
		words := strings.Fields(l)
		return len(words) > 1 && (words[1] == "OK" || c.tag == 0 && words[1] == "PREAUTH")
	}
	return strings.HasPrefix(l, "+OK")
}

// Do says a command and gives the reply's last line; an error is a *Refused where it is no good one.
func (c *Conn) Do(ctx context.Context, command string) (string, error) {
	if strings.ContainsAny(command, "\r\n\x00") {
		return "", errors.New("a command with a line end in it")
	}
	if err := c.send(command); err != nil {
		return "", err
	}
	lines, err := c.reply(ctx)
	if err != nil {
		return "", err
	}
	last := lines[len(lines)-1]
	c.Lines = lines
	if !c.positive(last) {
		word, _, _ := strings.Cut(command, " ")
		return last, &Refused{word, last}
	}
	return last, nil
}

// Hello asks what the server can.
func (c *Conn) Hello(ctx context.Context) error {
	switch c.target.Protocol {
	case "smtp":
		_, err := c.Do(ctx, "EHLO "+c.target.Helo)
		return err
	case "imap":
		_, err := c.Do(ctx, c.tagged("CAPABILITY", ""))
		return err
	}
	_, err := c.Do(ctx, "CAPA")
	var no *Refused
	if errors.As(err, &no) {
		c.Lines = nil
		return nil
	}
	if err != nil {
		return err
	}
	for len(c.Lines) < maxLines {
		l, err := c.line(ctx)
		if err != nil || l == "." {
			return err
		}
		c.Lines = append(c.Lines, l)
	}
	return errors.New("the server's reply to CAPA has too many lines")
}

// Can gives the words behind a capability; ok is false when the server has it not.
func (c *Conn) Can(name string) (words []string, ok bool) {
	for i, l := range c.Lines {
		switch c.target.Protocol {
		case "smtp":
			if i == 0 || len(l) < 5 {
				continue
			}
			l = l[4:]
			// What clients before RFC 2554 want to see.
			l = strings.Replace(l, "AUTH=", "AUTH ", 1)
		case "imap":
			if !strings.HasPrefix(l, "* CAPABILITY ") {
				continue
			}
			for _, word := range strings.Fields(l)[2:] {
				if strings.EqualFold(word, name) {
					ok = true
				} else if kind, value, found := strings.Cut(word, "="); found && strings.EqualFold(kind, name) {
					words, ok = append(words, value), true
				}
			}
			continue
		}
		if f := strings.Fields(l); len(f) > 0 && strings.EqualFold(f[0], name) {
			words, ok = append(words, f[1:]...), true
		}
	}
	return words, ok
}

// Offered gives the mechanisms that the server offers now, in its order, in upper case. Those of POP3 and IMAP that are no SASL are USER, APOP and
// LOGIN-COMMAND.
func (c *Conn) Offered() (all []string) {
	name := "AUTH"
	if c.target.Protocol == "pop3" {
		name = "SASL"
	}
	words, _ := c.Can(name)
	for _, w := range words {
		if w = strings.ToUpper(w); !slices.Contains(all, w) {
			all = append(all, w)
		}
	}
	switch c.target.Protocol {
	case "imap":
		if _, off := c.Can("LOGINDISABLED"); !off {
			all = append(all, "LOGIN-COMMAND")
		}
	case "pop3":
		if _, user := c.Can("USER"); user || c.Lines == nil {
			all = append(all, "USER")
		}
		if timestamp(c.Banner) != "" {
			all = append(all, "APOP")
		}
	}
	return all
}

// timestamp gives what APOP signs, "" when the greeting has none.
func timestamp(banner string) string {
	i := strings.IndexByte(banner, '<')
	if i < 0 {
		return ""
	}
	j := strings.IndexByte(banner[i:], '>')
	if j < 0 || !strings.Contains(banner[i:i+j], "@") {
		return ""
	}
	return banner[i : i+j+1]
}

// StartTLS goes over to TLS and asks again what the server can.
func (c *Conn) StartTLS(ctx context.Context) error {
	command := map[string]string{"smtp": "STARTTLS", "imap": "STARTTLS", "pop3": "STLS"}[c.target.Protocol]
	if _, ok := c.Can(command); !ok && c.Lines != nil {
		return fmt.Errorf("%s does not offer %s: --plain stays in clear, --tls is for ports that begin with TLS", c.target.Address, command)
	}
	if _, err := c.Do(ctx, c.tagged(command, command)); err != nil {
		return err
	}
	if c.in.Buffered() > 0 {
		return errors.New("the server, or somebody between, sent more before TLS began")
	}
	if err := c.handshake(ctx); err != nil {
		return err
	}
	c.in = bufio.NewReaderSize(c.conn, maxLine)
	return c.Hello(ctx)
}

// Login logs in by a mechanism. A *Refused is the server's no; other errors say what else is in the way.
func (c *Conn) Login(ctx context.Context, mechanism string, who sasl.Credentials) error {
	switch mechanism {
	case "USER":
		if _, err := c.Do(ctx, "USER "+who.User); err != nil {
			return err
		}
		_, err := c.Do(ctx, "PASS "+who.Password)
		return named(err, "PASS")
	case "APOP":
		sum := md5.Sum([]byte(timestamp(c.Banner) + who.Password))
		_, err := c.Do(ctx, "APOP "+who.User+" "+hex.EncodeToString(sum[:]))
		return err
	case "LOGIN-COMMAND":
		_, err := c.Do(ctx, c.tagged("LOGIN "+quoted(who.User)+" "+quoted(who.Password), ""))
		return named(err, "LOGIN")
	}
	who.Host = c.target.TLS.ServerName
	who.Service = map[string]string{"smtp": "smtp", "imap": "imap", "pop3": "pop"}[c.target.Protocol]
	who.Offered = c.Offered()
	who.Bindings = sasl.Bindings(c.State, c.certificate())
	client, err := sasl.NewClient(mechanism, who)
	if err != nil {
		return err
	}
	response, err := client.Next(nil)
	if err != nil {
		return err
	}
	command := c.tagged("AUTHENTICATE ", "AUTH ") + mechanism
	// A server that does not offer it says so before it has heard the password.
	held := sasl.NeedsTLS(mechanism) && !slices.Contains(who.Offered, mechanism)
	if _, initial := c.Can("SASL-IR"); response != nil && !held && (c.target.Protocol != "imap" || initial) {
		command += " " + encode(response)
		response = nil
	}
	for line := command; ; {
		if err := c.send(line); err != nil {
			return err
		}
		lines, err := c.reply(ctx)
		if err != nil {
			return err
		}
		last := lines[len(lines)-1]
		challenge, more := c.challenge(last)
		switch {
		case c.positive(last):
			// The server's last word may stand in its reply (IMAP has no room for it).
			if err := client.Finish(); err != nil {
				return fmt.Errorf("the server let us in, and: %w", err)
			}
			return nil
		case !more:
			return &Refused{mechanism, last}
		}
		raw, ok := decode(challenge)
		if !ok {
			raw, err = nil, errors.New("a challenge that is not base64")
		} else if response == nil {
			if response, err = client.Next(raw); err == nil && response == nil {
				response = []byte{}
			}
		}
		if err != nil {
			// Give it up in order, and say why.
			if c.send("*") == nil {
				_, _ = c.reply(ctx)
			}
			return fmt.Errorf("%s: %w", mechanism, err)
		}
		line = base64.StdEncoding.EncodeToString(response)
		response = nil
	}
}

func named(err error, what string) error {
	var no *Refused
	if errors.As(err, &no) {
		no.What = what
	}
	return err
}

// certificate is the server's.
func (c *Conn) certificate() *x509.Certificate {
	if c.State == nil || len(c.State.PeerCertificates) == 0 {
		return nil
	}
	return c.State.PeerCertificates[0]
}

// challenge gives what stands behind 334 or +.
func (c *Conn) challenge(l string) (string, bool) {
	mark := "+"
	if c.target.Protocol == "smtp" {
		mark = "334"
	}
	rest, ok := strings.CutPrefix(l, mark)
	if !ok || rest != "" && rest[0] != ' ' {
		return "", false
	}
	return strings.TrimSpace(rest), true
}

// encode writes an initial response.
func encode(response []byte) string {
	if len(response) == 0 {
		return "="
	}
	return base64.StdEncoding.EncodeToString(response)
}

// quoted writes a string of IMAP.
func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
