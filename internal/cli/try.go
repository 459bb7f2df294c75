package cli

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/smtp"
	"net/textproto"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/service"
	"github.com/spf13/cobra"
)

// tryStep is one thing that `indigo try` did, for people and for --json.
type tryStep struct {
	What string `json:"what"`
	Took int64  `json:"took_us"`
}

// tried is the whole result of `indigo try`.
type tried struct {
	User      string    `json:"user"`
	Queue     string    `json:"queue_id"`
	MessageID string    `json:"message_id"`
	Delivered bool      `json:"delivered"`
	Steps     []tryStep `json:"steps"`
	Received  []string  `json:"received"`
}

func (app *App) tryCommand() *cobra.Command {
	var user, passwordFile string
	var asJSON bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "try",
		Short: "Send a message through the running instance and wait for it",
		Long: `Send a message over submission with STARTTLS and AUTH to a user of the running instance, wait until POP3 and
IMAP give it back, and print its way with times. Without --password-file the running instance lends a password that
works for two minutes. The message stays in the mailbox.`,
		Example: "  indigo try\n  indigo try --data /srv/mail --user alice@example.org --json",
		Args:    cobra.NoArgs,
	}
	data := app.dataFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&user, "user", "", "address of the user (default: postmaster of the default domain)")
	f.StringVar(&passwordFile, "password-file", "", "file with the user's password, - for standard input")
	f.DurationVar(&wait, "wait", 30*time.Second, "how long to wait for the message")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), wait)
		defer cancel()
		t := &trial{data: *data, user: user}
		if passwordFile != "" {
			var err error
			if t.password, err = app.readPassword(passwordFile); err != nil {
				return err
			}
		}
		err := t.run(ctx)
		if asJSON {
			return errors.Join(err, json.NewEncoder(app.Out).Encode(t.result))
		}
		t.print(app.Out)
		return err
	}
	return cmd
}

// trial is one run of `indigo try`.
type trial struct {
	data, user, password string
	tls                  *tls.Config
	services             map[string]string
	result               tried
	last                 time.Time
}

func (t *trial) step(format string, args ...any) {
	now := time.Now()
	t.result.Steps = append(t.result.Steps, tryStep{fmt.Sprintf(format, args...), now.Sub(t.last).Microseconds()})
	t.last = now
}

func (t *trial) run(ctx context.Context) error {
	t.last = time.Now()
	control := service.NewControl(t.data)
	status, err := control.Status(ctx)
	if err != nil {
		return err
	}
	t.services = status.Services
	if t.user == "" {
		t.user = "postmaster@" + status.Domain
	}
	t.result.User = t.user
	if t.password == "" {
		if t.password, err = control.Token(ctx, t.user); err != nil {
			return err
		}
	}
	// The certificate in the data directory is the trust anchor: a self-signed one proves itself here.
	pem, err := os.ReadFile(filepath.Join(t.data, "certs", "servercert.pem"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	t.tls = &tls.Config{RootCAs: roots, ServerName: status.Hostname, MinVersion: tls.VersionTLS12}

	t.result.MessageID = fmt.Sprintf("try.%s@%s", rand.Text(), status.Hostname)
	if err := t.send(ctx); err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	if err := t.pop3(ctx); err != nil {
		return fmt.Errorf("waiting for it over POP3: %w", err)
	}
	if err := t.imap(ctx); err != nil {
		return fmt.Errorf("fetching it over IMAP: %w", err)
	}
	if err := t.ended(ctx); err != nil {
		return fmt.Errorf("waiting for the queue to end it: %w", err)
	}
	t.result.Delivered = true
	return nil
}

// ended waits until the delivery is durable and the queue has forgotten the message; a reader may see it a moment before.
func (t *trial) ended(ctx context.Context) error {
	id, err := queue.ParseID(t.result.Queue)
	if err != nil {
		return err
	}
	tools, err := service.OpenQueueTools(ctx, t.data)
	if err != nil {
		return err
	}
	defer tools.Close()
	for {
		left := 0
		if err := tools.Each(ctx, queue.Filter{IDs: []queue.ID{id}}, func(queue.Listed) error { left++; return nil }); err != nil {
			return err
		}
		if left == 0 {
			t.step("synced to disk; the queue has ended it")
			return nil
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// pause waits a moment between two looks.
func pause(ctx context.Context) error {
	timer := time.NewTimer(20 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// dial connects to a service with a deadline from ctx for all that follows.
func (t *trial) dial(ctx context.Context, name string) (net.Conn, error) {
	address, ok := t.services[name]
	if !ok {
		return nil, fmt.Errorf("the service %s is not running", name)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	return conn, nil
}

func (t *trial) send(ctx context.Context) error {
	conn, err := t.dial(ctx, "smtpd.587")
	if err != nil {
		return err
	}
	c, err := smtp.NewClient(conn, t.tls.ServerName)
	if err != nil {
		conn.Close()
		return err
	}
	defer c.Close()
	t.step("connected to smtpd.587 at %s", t.services["smtpd.587"])
	if err := c.StartTLS(t.tls); err != nil {
		return err
	}
	state, _ := c.TLSConnectionState()
	t.step("STARTTLS: %s %s", tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite))
	if err := c.Auth(smtp.PlainAuth("", t.user, t.password, t.tls.ServerName)); err != nil {
		return err
	}
	t.step("AUTH PLAIN as %s", t.user)
	if err := c.Mail(t.user); err != nil {
		return err
	}
	if err := c.Rcpt(t.user); err != nil {
		return err
	}
	// textproto gives the final reply's text, which smtp.Client's own Data throws away.
	id, err := c.Text.Cmd("DATA")
	if err != nil {
		return err
	}
	c.Text.StartResponse(id)
	_, _, err = c.Text.ReadResponse(354)
	c.Text.EndResponse(id)
	if err != nil {
		return err
	}
	w := c.Text.DotWriter()
	fmt.Fprintf(w, "From: <%s>\r\nTo: <%s>\r\nSubject: indigo try\r\nMessage-ID: <%s>\r\nDate: %s\r\n\r\nThis message was sent by `indigo try` to show that mail works.\r\n",
		t.user, t.user, t.result.MessageID, time.Now().Format(time.RFC1123Z))
	if err := w.Close(); err != nil {
		return err
	}
	_, text, err := c.Text.ReadResponse(250)
	if err != nil {
		return err
	}
	if _, qp, ok := strings.Cut(text, " qp "); ok {
		t.result.Queue = qp
	}
	t.step("accepted: 250 %s", text)
	return c.Quit()
}

func (t *trial) pop3(ctx context.Context) error {
	for {
		found, err := t.lookPOP3(ctx)
		if err != nil || found {
			return err
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("it did not arrive: %w (see `indigo explain --data %s %s`)", err, t.data, t.result.Queue)
		}
	}
}

// lookPOP3 logs in and looks for the message from the newest down.
func (t *trial) lookPOP3(ctx context.Context) (bool, error) {
	conn, err := t.dial(ctx, "pop3d.995")
	if err != nil {
		return false, err
	}
	c := textproto.NewConn(tls.Client(conn, t.tls))
	defer c.Close()
	command := func(format string, args ...any) (string, error) {
		if format != "" {
			if err := c.PrintfLine(format, args...); err != nil {
				return "", err
			}
		}
		line, err := c.ReadLine()
		if err == nil && !strings.HasPrefix(line, "+OK") {
			err = errors.New(line)
		}
		return line, err
	}
	if _, err := command(""); err != nil {
		return false, err
	}
	if _, err := command("USER %s", t.user); err != nil {
		return false, err
	}
	if _, err := command("PASS %s", t.password); err != nil {
		return false, err
	}
	line, err := command("STAT")
	if err != nil {
		return false, err
	}
	var count, octets int
	if _, err := fmt.Sscanf(line, "+OK %d %d", &count, &octets); err != nil {
		return false, fmt.Errorf("STAT: %q: %w", line, err)
	}
	for n := count; n > 0 && n > count-20; n-- {
		if _, err := command("TOP %d 0", n); err != nil {
			return false, err
		}
		header, err := c.ReadDotBytes()
		if err != nil {
			return false, err
		}
		if strings.Contains(string(header), t.result.MessageID) {
			t.step("delivered: POP3 lists it as message %d of %d", n, count)
			_, err := command("QUIT")
			return true, err
		}
	}
	_, err = command("QUIT")
	return false, err
}

func (t *trial) imap(ctx context.Context) error {
	conn, err := t.dial(ctx, "imapd.993")
	if err != nil {
		return err
	}
	secure := tls.Client(conn, t.tls)
	defer secure.Close()
	r := bufio.NewReader(io.LimitReader(secure, 1<<20))
	// command sends one command and gives all lines up to its tagged answer.
	tag := 0
	command := func(format string, args ...any) (string, error) {
		tag++
		name := fmt.Sprintf("a%d", tag)
		if _, err := fmt.Fprintf(secure, name+" "+format+"\r\n", args...); err != nil {
			return "", err
		}
		var all strings.Builder
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return "", err
			}
			all.WriteString(line)
			if strings.HasPrefix(line, name+" ") {
				if !strings.HasPrefix(line, name+" OK") {
					return "", errors.New(strings.TrimSpace(line))
				}
				return all.String(), nil
			}
		}
	}
	if _, err := r.ReadString('\n'); err != nil {
		return err
	}
	plain := base64.StdEncoding.EncodeToString([]byte("\x00" + t.user + "\x00" + t.password))
	if _, err := command("AUTHENTICATE PLAIN %s", plain); err != nil {
		return err
	}
	selected, err := command("EXAMINE INBOX")
	if err != nil {
		return err
	}
	var exists int
	for line := range strings.Lines(selected) {
		if count, ok := strings.CutSuffix(strings.TrimSpace(line), " EXISTS"); ok {
			exists, _ = strconv.Atoi(strings.TrimPrefix(count, "* ")) // none when it is no number
		}
	}
	for n := exists; n > 0 && n > exists-20; n-- {
		header, err := command("FETCH %d BODY.PEEK[HEADER]", n)
		if err != nil {
			return err
		}
		if strings.Contains(header, t.result.MessageID) {
			for line := range strings.Lines(header) {
				if strings.HasPrefix(line, "Received:") {
					t.result.Received = append(t.result.Received, strings.TrimSpace(line))
				}
			}
			t.step("fetched over IMAP as message %d of %d", n, exists)
			_, err := command("LOGOUT")
			return err
		}
	}
	return errors.New("INBOX does not hold it")
}

func (t *trial) print(out io.Writer) {
	for _, s := range t.result.Steps {
		fmt.Fprintf(out, "%9.3f ms  %s\n", float64(s.Took)/1000, s.What)
	}
	if t.result.Delivered {
		fmt.Fprintf(out, "\nDelivered. Its whole story:\n  indigo explain --data %s %s\n", t.data, t.result.Queue)
	}
}
