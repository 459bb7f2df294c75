package cli

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/indigomail/indigo/internal/probe"
	"github.com/indigomail/indigo/internal/service"
)

// serverFlags say how to talk to a server.
type serverFlags struct {
	address, ca, name, helo        string
	starttls, tls, plain, insecure bool
	timeout                        time.Duration
}

func (s *serverFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&s.starttls, "starttls", false, "go over to TLS by STARTTLS, which is the default but at the ports 465, 993 and 995")
	f.BoolVar(&s.tls, "tls", false, "begin with TLS")
	f.BoolVar(&s.plain, "plain", false, "stay in clear")
	f.BoolVar(&s.insecure, "insecure", false, "take any certificate")
	f.StringVar(&s.ca, "ca", "", "file with the authorities to trust, in PEM (default: those of the system)")
	f.StringVar(&s.name, "tls-name", "", "name that must be in the certificate (default: HOST)")
	f.StringVar(&s.helo, "helo", "client.example", "name to give in EHLO")
	f.DurationVar(&s.timeout, "timeout", 40*time.Second, "how long to wait for each reply; Indigo gives a source of passwords 30s")
	cmd.MarkFlagsMutuallyExclusive("starttls", "tls", "plain")
}

// target gives what to talk to; protocol is "" for that of the port.
func (s *serverFlags) target(protocol string) (probe.Target, error) {
	host, port, err := net.SplitHostPort(s.address)
	if err != nil || host == "" || port == "" {
		return probe.Target{}, fmt.Errorf("%q is not of the form HOST:PORT", s.address)
	}
	switch protocol {
	case "smtp", "imap", "pop3":
	case "":
		protocol = "smtp"
		if known := map[string]string{"143": "imap", "993": "imap", "110": "pop3", "995": "pop3"}[port]; known != "" {
			protocol = known
		}
	default:
		return probe.Target{}, fmt.Errorf("protocol %q: there are smtp, imap and pop3", protocol)
	}
	mode := probe.StartTLS
	switch {
	case s.tls, !s.starttls && !s.plain && (port == "465" || port == "993" || port == "995"):
		mode = probe.TLS
	case s.plain:
		mode = probe.Plain
	}
	config := &tls.Config{ServerName: host, InsecureSkipVerify: s.insecure, MinVersion: tls.VersionTLS10}
	if s.name != "" {
		config.ServerName = s.name
	}
	if s.ca != "" {
		pem, err := os.ReadFile(s.ca)
		if err != nil {
			return probe.Target{}, fmt.Errorf("--ca: %w", err)
		}
		if config.RootCAs = x509.NewCertPool(); !config.RootCAs.AppendCertsFromPEM(pem) {
			return probe.Target{}, fmt.Errorf("--ca: there is no certificate in %s", s.ca)
		}
	}
	return probe.Target{Address: s.address, Protocol: protocol, Mode: mode, TLS: config, Helo: s.helo, Dial: (&net.Dialer{Timeout: s.timeout}).DialContext, Timeout: s.timeout}, nil
}

func (app *App) probeCommand() *cobra.Command {
	var s serverFlags
	var asJSON, noRelay, users, dialogue bool
	cmd := &cobra.Command{
		Use:   "probe HOST:PORT",
		Short: "Ask a mail server what it offers, whether its TLS is good, and whether it is an open relay",
		Long: `Ask a server of SMTP, ours or not: its greeting and extensions, what AUTH it offers before and inside TLS, versions of TLS, the
certificate, and whether it relays for this client: for senders from outside, from nobody and from addresses that look local, and to recipients
with %, ! and quotes in their local parts, which old servers took for their own and sent on. DATA is never sent, so that no message comes of
it; a server counts the refusals and may shut out who asks too often.

Each finding has a verdict (ok, note, warn, wrong) and what to do about it. Exit codes: 0 nothing is wrong, 1 something is, or there was no talk.
What is found about relaying is true for the address that is asked from; ask from outside.`,
		Example: "  indigo probe mail.example.org:25\n  indigo probe mail.example.org:465 --json\n  indigo probe 127.0.0.1:2525 --ca certs/servercert.pem --tls-name mail.example.org", Args: cobra.ExactArgs(1),
	}
	s.register(cmd)
	f := cmd.Flags()
	f.BoolVar(&noRelay, "no-relay", false, "do not ask for whom it relays")
	f.BoolVar(&users, "users", false, "users log in at this port, so that it must have AUTH and a good certificate (default: at 465 and 587)")
	f.BoolVar(&dialogue, "dialogue", false, "print each line that is said, too")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s.address = args[0]
		t, err := s.target("smtp")
		if err != nil {
			return err
		}
		if dialogue && !asJSON {
			say := app.sayer(false, false)
			t.Say = func(l probe.Line) { _ = say(l) } // a terminal that is gone ends the program at the next write anyway
		}
		_, port, _ := net.SplitHostPort(s.address)
		r, err := probe.Probe(cmd.Context(), t, probe.Options{Now: time.Now(), Users: users || port == "465" || port == "587", Relay: !noRelay})
		if err != nil {
			return err
		}
		if s.insecure {
			for i := range r.Findings {
				if f := &r.Findings[i]; f.What == "certificate" && f.Verdict == probe.Wrong {
					f.Verdict = probe.Warn
				}
			}
		}
		if asJSON {
			err = json.NewEncoder(app.Out).Encode(r)
		} else {
			out := &strings.Builder{}
			for _, f := range r.Findings {
				fmt.Fprintf(out, "%-5s  %-14s  %s\n", f.Verdict, f.What, f.Text)
				if f.Do != "" {
					fmt.Fprintf(out, "%-5s  %-14s  -> %s\n", "", "", f.Do)
				}
			}
			_, err = fmt.Fprint(app.Out, out)
		}
		if err == nil && r.Wrong() {
			err = exitCode(1)
		}
		return err
	}
	return cmd
}

func (app *App) relayCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "relay",
		Short:   "Find out who may send to whom, and which setting decides",
		Example: "  indigo relay test --from joe@example.net --to ann@example.com --ip 192.0.2.7",
	}
	var q service.Question
	var to, ip string
	var asJSON bool
	test := &cobra.Command{
		Use:   "test --from A --to B --ip I",
		Short: "Tell whether a client may send a message, and which setting, file and line decide",
		Long: `Tell whether the door would take a message from this client, from --from to --to: yes or no, why, and the setting with the file and line
that decided. It runs the same code as a session, on the settings and the directory as they are on the disk; nothing is sent but DNS
questions. --user is one who has logged in; --tls-client-cert is a certificate that the client would show, its chain behind it, and
--fingerprint one of which nothing else is known. What happens to the message afterwards is told by ` + "`indigo explain --from --to --ip`" + `.

Exit codes: 0 yes, 1 no.`,
		Example: "  indigo relay test --from joe@example.net --to ann@example.com --ip 192.0.2.7\n  indigo relay test --from alice@example.org --to ann@example.com --ip 192.0.2.7 --user alice@example.org --service smtpd.587 --json\n  indigo relay test --from joe@example.net --to ann@example.com --ip 192.0.2.7 --tls-client-cert relay1.pem",
		Args:    cobra.NoArgs,
	}
	data := app.dataFlag(test)
	f := test.Flags()
	f.StringVar(&q.From, "from", "", "sender; empty for a bounce")
	f.StringVar(&to, "to", "", "recipient")
	f.StringVar(&ip, "ip", "", "address of the client")
	f.StringVar(&q.Helo, "helo", "client.example", "name that the client would give")
	f.StringVar(&q.User, "user", "", "user that would have logged in")
	certificate := clientCertificateFlags(f, &q)
	f.StringVar(&q.Service, "service", "smtpd.25", "door that the client would come to")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	test.RunE = func(cmd *cobra.Command, _ []string) error {
		if to == "" || ip == "" {
			return errors.New("name the recipient and the client: --to and --ip")
		}
		q.To = []string{to}
		var err error
		if q.Client, err = netip.ParseAddr(ip); err != nil {
			return fmt.Errorf("--ip: %w", err)
		}
		if err := certificate(); err != nil {
			return err
		}
		a, err := service.TestRelay(cmd.Context(), *data, q)
		if err != nil {
			return err
		}
		if asJSON {
			err = json.NewEncoder(app.Out).Encode(a)
		} else {
			answer := "no"
			if a.Allowed {
				answer = "yes"
			}
			out := &strings.Builder{}
			fmt.Fprintf(out, "%s: %s\ndecided at : %s, check %s", answer, a.Why, a.Stage, a.Check)
			if a.Input != "" {
				fmt.Fprintf(out, ", given %s", a.Input)
			}
			out.WriteByte('\n')
			if a.Certificate != "" {
				fmt.Fprintf(out, "certificate: %s\n", a.Certificate)
			}
			if a.Setting != "" {
				fmt.Fprintf(out, "setting    : %s (%s)\n", a.Setting, a.Where)
			}
			fmt.Fprintf(out, "reply      : %s\n", a.Reply)
			_, err = fmt.Fprint(app.Out, out)
		}
		if err == nil && !a.Allowed {
			err = exitCode(1)
		}
		return err
	}
	cmd.AddCommand(test)
	return cmd
}

// clientCertificateFlags declares what a client would show; what it gives reads it.
func clientCertificateFlags(f *pflag.FlagSet, q *service.Question) func() error {
	file := ""
	f.StringVar(&file, "tls-client-cert", "", "file in PEM with the certificate that the client would show, and its chain; no key is needed")
	f.StringVar(&q.Fingerprint, "fingerprint", "", "sha256:HEX of the certificate that the client would show, or of its key")
	return func() error {
		if file == "" {
			return nil
		}
		if q.Fingerprint != "" {
			return errors.New("name --tls-client-cert or --fingerprint")
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("--tls-client-cert: %w", err)
		}
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			if block.Type != "CERTIFICATE" {
				continue
			}
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return fmt.Errorf("--tls-client-cert %s: %w", file, err)
			}
			q.Certificate = append(q.Certificate, c)
		}
		if q.Certificate == nil {
			return fmt.Errorf("--tls-client-cert: there is no certificate in PEM in %s", file)
		}
		return nil
	}
}
