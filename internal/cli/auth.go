package cli

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/xdg-go/scram"

	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/probe"
	"github.com/indigomail/indigo/internal/service"
	"github.com/indigomail/indigo/internal/wire"
)

func (app *App) authCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "auth",
		Short: "Find out why a login fails, see and end refusals, report and retire mechanisms",
		Example: "  indigo auth why alice@example.org --service imapd.993\n  indigo auth test alice@example.org --server mail.example.org:587 --mech all\n" +
			"  indigo auth decode - <session.txt\n  indigo auth encode PLAIN alice@example.org",
	}
	cmd.AddCommand(app.authEncodeCommand(), app.authDecodeCommand(), app.authTestCommand(), app.authWhyCommand(), app.locksCommand(), app.authReportCommand(), app.authRetireCommand(), app.authSecretsCommand())
	return cmd
}

// secretOf gets a password from a file, or asks: at a terminal without echo, else it reads a line of standard input.
func (app *App) secretOf(file string) (string, error) {
	if file != "" {
		return app.readPassword(file)
	}
	return app.prompts()("Password: ")
}

func (app *App) authEncodeCommand() *cobra.Command {
	var file, token, binding string
	var challenges []string
	c := sasl.Credentials{}
	cmd := &cobra.Command{
		Use:   "encode MECHANISM USER",
		Short: "Print what a client says to log in, in base64, for a session by hand",
		Long: `Print what a client says to log in, a line for each message: to be typed into telnet or openssl s_client. The password is asked
for at a terminal, or read from standard input or a file; it is never an argument.

Mechanisms that answer the server need what it said: --challenge is the text behind 334 or +, once for each message of the server, the first
first. SCRAM has two: without --challenge the client's first message is printed, and its nonce on standard error; the same nonce and the
server's first message give the final one; with the server's final message as well its signature is checked. USER may be "" for EXTERNAL.`,
		Example: `  indigo auth encode PLAIN alice@example.org
  indigo auth encode LOGIN alice@example.org --password-file pw
  indigo auth encode CRAM-MD5 alice@example.org --challenge PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2U+
  indigo auth encode SCRAM-SHA-256 alice@example.org --nonce rOprNGfwEbeRWgbNEkqO --challenge cj1yT3By...`,
		Args: cobra.ExactArgs(2),
	}
	f := cmd.Flags()
	f.StringVar(&file, "password-file", "", "file with the password, - for standard input (default: it is asked for)")
	f.StringVar(&token, "token-file", "", "file with the token of OAUTHBEARER or XOAUTH2")
	f.StringArrayVar(&challenges, "challenge", nil, "what the server said, in `BASE64`; again for its next message")
	f.StringVar(&c.Authorization, "authzid", "", "whom to act for (default: the user)")
	f.StringVar(&c.Nonce, "nonce", "", "the client's nonce (default: made up)")
	f.StringVar(&c.Realm, "realm", "", "realm of DIGEST-MD5 (default: the server's first)")
	f.StringVar(&c.Host, "host", "localhost", "the server's name, which DIGEST-MD5 signs")
	f.StringVar(&c.Service, "protocol", "smtp", "smtp, imap or pop, which DIGEST-MD5 signs")
	f.StringVar(&binding, "binding", "", "what -PLUS binds to, as tls-exporter=BASE64")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		mechanism := strings.ToUpper(args[0])
		c.User = args[1]
		if !slices.Contains(append(sasl.Names(), "ANONYMOUS"), mechanism) {
			return fmt.Errorf("mechanism %q is unknown; there are %s", args[0], strings.Join(sasl.Names(), ", "))
		}
		if kind, text, ok := strings.Cut(binding, "="); ok {
			raw, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				return fmt.Errorf("--binding: %w", err)
			}
			c.Bindings = []scram.ChannelBinding{{Type: scram.ChannelBindingType(kind), Data: raw}}
			c.Offered = []string{mechanism}
		} else if binding != "" {
			return errors.New("--binding: want KIND=BASE64, for example tls-exporter=BASE64")
		}
		var err error
		switch mechanism {
		case "EXTERNAL", "ANONYMOUS":
		case "OAUTHBEARER", "XOAUTH2":
			if token == "" {
				return fmt.Errorf("%s needs a token, by --token-file", mechanism)
			}
			c.Token, err = app.readToken(token)
		default:
			c.Password, err = app.secretOf(file)
		}
		if err != nil {
			return err
		}
		made := false
		if c.Nonce == "" {
			c.Nonce, made = rand.Text(), true
		}
		if made && len(challenges) > 0 && strings.HasPrefix(mechanism, "SCRAM-") {
			return errors.New("the server's message answers a nonce of the client's: give it as --nonce (it stands behind r= in the first message)")
		}
		lines, err := encodeAll(mechanism, c, challenges)
		for _, l := range lines {
			fmt.Fprintln(app.Out, l)
		}
		if err == nil && made && len(challenges) == 0 && strings.HasPrefix(mechanism, "SCRAM-") {
			fmt.Fprintf(app.Err, "indigo: go on with --nonce %s --challenge WHAT-THE-SERVER-SAYS\n", c.Nonce)
		}
		return err
	}
	return cmd
}

// encodeAll gives the client's messages up to the last that the server's allow: of those that were answered already nothing is said again, but for
// LOGIN and PLAIN, whose all are known from the beginning.
func encodeAll(mechanism string, c sasl.Credentials, challenges []string) (lines []string, err error) {
	client, err := sasl.NewClient(mechanism, c)
	if err != nil {
		return nil, err
	}
	response, err := client.Next(nil)
	if err != nil {
		return nil, err
	}
	if mechanism == "LOGIN" {
		return []string{base64.StdEncoding.EncodeToString([]byte(c.User)), base64.StdEncoding.EncodeToString([]byte(c.Password))}, nil
	}
	if response == nil && len(challenges) == 0 {
		return nil, fmt.Errorf("%s answers the server: give what stands behind 334 as --challenge", mechanism)
	}
	for i, text := range challenges {
		raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("challenge %d is not base64: %w", i+1, err)
		}
		if response, err = client.Next(raw); err != nil {
			return nil, fmt.Errorf("challenge %d: %w", i+1, err)
		}
	}
	if len(response) == 0 {
		return []string{"="}, nil
	}
	return []string{base64.StdEncoding.EncodeToString(response)}, nil
}

func (app *App) authDecodeCommand() *cobra.Command {
	var show, asJSON bool
	var mechanism string
	cmd := &cobra.Command{
		Use:   "decode LINE|-",
		Short: "Explain a line of an AUTH dialogue, or a whole captured session",
		Long: `Explain what a line of a captured dialogue says, field by field: AUTH commands of SMTP, IMAP and POP3, challenges and responses of all
mechanisms, and what the server's replies mean. C: and S:, or the marks of swaks, tell who said a line; without them its form does. With - a
whole session is read from standard input, and its lines are explained in their order, each by the mechanism of the exchange that it is in.

Passwords, tokens, and what passwords can be guessed with, are hidden unless --show-secrets. A line with a password in it is better given on
standard input: arguments are seen by every user of the host.`,
		Example: "  indigo auth decode 334 VXNlcm5hbWU6\n  indigo auth decode --mech CRAM-MD5 334 PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2UucmVzdG9uLm1jaS5uZXQ+\n  indigo auth decode - <session.txt",
		Args:    cobra.MinimumNArgs(1),
	}
	f := cmd.Flags()
	f.BoolVar(&show, "show-secrets", false, "show passwords and what they can be guessed with")
	f.BoolVar(&asJSON, "json", false, "print a JSON object a line")
	f.StringVar(&mechanism, "mech", "", "mechanism of a line that stands alone")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var r probe.Reader
		if mechanism != "" {
			r.Line("C", "AUTH "+mechanism)
		}
		say := app.sayer(show, asJSON)
		if len(args) > 1 || args[0] != "-" {
			l := r.Captured(strings.Join(args, " "))
			if l.Means == "" && l.Message == nil {
				return errors.New("there is nothing of AUTH in this line: neither a command, a reply, nor base64")
			}
			return say(l)
		}
		in := bufio.NewScanner(app.In)
		in.Buffer(nil, 1<<16)
		for in.Scan() {
			if err := say(r.Captured(in.Text())); err != nil {
				return err
			}
		}
		return in.Err()
	}
	return cmd
}

// trusting adds to an error of a certificate by which flag it could be taken.
func trusting(err error) error {
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.As(err, &authority):
		return fmt.Errorf("%w; --ca FILE names an authority to trust (of an Indigo's own certificate DATA/certs/servercert.pem), --insecure takes any", err)
	case errors.As(err, &name):
		return fmt.Errorf("%w; --tls-name NAME is the name that it must be for", err)
	}
	return err
}

// sayer prints lines of a dialogue with what they mean.
func (app *App) sayer(show, asJSON bool) func(probe.Line) error {
	return func(l probe.Line) error {
		if !show {
			l = l.Masked()
		}
		if asJSON {
			return json.NewEncoder(app.Out).Encode(l)
		}
		out := &strings.Builder{}
		if l.From != "" {
			out.WriteString(l.From + ": ")
		}
		out.WriteString(wire.Printable(l.Text) + "\n")
		if l.Means != "" {
			fmt.Fprintf(out, "      %s\n", wire.Printable(l.Means))
		}
		if m := l.Message; m != nil {
			fmt.Fprintf(out, "      %s\n", wire.Printable(strings.TrimSpace(m.Mechanism+" "+m.Kind)))
			for _, p := range m.Parts {
				text := p.Text
				if !show {
					text = p.Shown()
				}
				fmt.Fprintf(out, "        %-10s %s", p.Name, text)
				if p.Means != "" {
					fmt.Fprintf(out, "  (%s)", p.Means)
				}
				out.WriteByte('\n')
			}
		}
		_, err := io.WriteString(app.Out, out.String())
		return err
	}
}

// Exit codes of `indigo auth test`.
const (
	loginRefused exitCode = 1
	loginNoTalk  exitCode = 2
)

func (app *App) authTestCommand() *cobra.Command {
	var s serverFlags
	var mechanism, protocol, file, token, authzid, realm string
	var show, asJSON bool
	cmd := &cobra.Command{
		Use:   "test USER --server HOST:PORT",
		Short: "Log in to a server, ours or not, and show every line with what it means",
		Long: `Log in to a server of SMTP, IMAP or POP3 and print the dialogue line by line, with what each reply means. With --mech all every
mechanism that the server offers is tried, each over a connection of its own, and has a line: it works, or why not. Without --mech the strongest that
is offered is taken, as mail programs do. The password is asked for at a terminal, or read from standard input or a file.

Without --tls and --plain, ports 465, 993 and 995 begin with TLS, and at all others STARTTLS comes before the login. --plain sends the password as
it is where the mechanism does. The certificate is verified; --ca takes one that is not trusted here, --insecure any.

Exit codes: 0 logged in by all that was tried, 1 refused, 2 there was no talk (connection, TLS, protocol).`,
		Example: "  indigo auth test alice@example.org --server mail.example.org:587\n  indigo auth test alice@example.org --server mail.example.org:993 --mech all --password-file pw\n" +
			"  indigo auth test alice@example.org --server 127.0.0.1:2525 --plain --mech CRAM-MD5 --json",
		Args: cobra.ExactArgs(1),
	}
	s.register(cmd)
	f := cmd.Flags()
	f.StringVar(&s.address, "server", "", "HOST:PORT")
	f.StringVar(&mechanism, "mech", "", "a mechanism, or all; USER and APOP for POP3, LOGIN-COMMAND for IMAP are no SASL")
	f.StringVar(&protocol, "protocol", "", "smtp, imap or pop3 (default: by the port, else smtp)")
	f.StringVar(&file, "password-file", "", "file with the password, - for standard input (default: it is asked for)")
	f.StringVar(&token, "token-file", "", "file with the token of OAUTHBEARER or XOAUTH2")
	f.StringVar(&authzid, "authzid", "", "whom to act for")
	f.StringVar(&realm, "realm", "", "realm of DIGEST-MD5 (default: the server's first)")
	f.BoolVar(&show, "show-secrets", false, "show the password in the dialogue")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if s.address == "" {
			return errors.New("name the server: --server HOST:PORT")
		}
		t, err := s.target(protocol)
		if err != nil {
			return err
		}
		who := sasl.Credentials{User: args[0], Authorization: authzid, Realm: realm}
		m := strings.ToUpper(mechanism)
		bearer := m == "OAUTHBEARER" || m == "XOAUTH2"
		switch {
		case token != "":
			who.Token, err = app.readToken(token)
			if mechanism == "" {
				mechanism = "OAUTHBEARER"
			}
		case bearer:
			err = fmt.Errorf("%s needs a token, by --token-file", m)
		}
		if err == nil && !bearer && (file != "" || token == "" && m != "EXTERNAL") {
			who.Password, err = app.secretOf(file)
		}
		if err != nil {
			return err
		}
		result := struct {
			Server   string          `json:"server"`
			User     string          `json:"user"`
			Attempts []probe.Attempt `json:"attempts"`
			Error    string          `json:"error,omitempty"`
			Dialogue []probe.Line    `json:"dialogue"`
		}{Server: s.address, User: args[0], Attempts: []probe.Attempt{}, Dialogue: []probe.Line{}}
		say := app.sayer(show, false)
		all := strings.EqualFold(mechanism, "all")
		t.Say = func(l probe.Line) {
			switch {
			case asJSON && show:
				result.Dialogue = append(result.Dialogue, l)
			case asJSON:
				result.Dialogue = append(result.Dialogue, l.Masked())
			case !all:
				_ = say(l) // a terminal that is gone ends the program at the next write anyway
			}
		}
		name := strings.ToUpper(mechanism)
		if all {
			name = "all"
		}
		attempts, err := probe.Logins(cmd.Context(), t, name, who)
		err = trusting(err)
		result.Attempts = append(result.Attempts, attempts...)
		if err != nil {
			result.Error = err.Error()
		}
		failed := slices.ContainsFunc(attempts, func(a probe.Attempt) bool { return !a.Works && a.Skipped == "" })
		worked := slices.ContainsFunc(attempts, func(a probe.Attempt) bool { return a.Works })
		if asJSON {
			if err := json.NewEncoder(app.Out).Encode(result); err != nil {
				return err
			}
		} else {
			w := tabwriter.NewWriter(app.Out, 0, 0, 2, ' ', 0)
			for _, a := range attempts {
				switch {
				case a.Works:
					fmt.Fprintf(w, "%s\tworks\n", a.Mechanism)
				case a.Skipped != "":
					fmt.Fprintf(w, "%s\tnot tried\t%s\n", a.Mechanism, a.Skipped)
				case a.Reply != "" && a.Why != "":
					fmt.Fprintf(w, "%s\tfails\t%s: %s\n", a.Mechanism, a.Reply, a.Why)
				default:
					fmt.Fprintf(w, "%s\tfails\t%s\n", a.Mechanism, cmp.Or(a.Why, a.Reply))
				}
			}
			if err := w.Flush(); err != nil {
				return err
			}
		}
		switch {
		case err != nil:
			fmt.Fprintln(app.Err, "indigo:", err)
			return loginNoTalk
		case failed || !worked:
			return loginRefused
		}
		return nil
	}
	return cmd
}

func (app *App) authWhyCommand() *cobra.Command {
	var q service.LoginQuestion
	var ip, local, file, token string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "why USER",
		Short: "Tell why a user can log in or cannot: sources, stored forms, mechanisms, switches, failures",
		Long: `Tell all that decides about a user's logins at a service: whom the name means, which sources of passwords know the user, what is stored of
the password and which mechanisms can work with that, which of them are offered in clear and inside TLS, what is switched off or has expired, the
last log-ins, and the latest failures with their causes. The password itself is checked with --password-file, an OAuth token with --token-file,
for which its issuer is asked.

It reads what is on the disk, with or without a running instance. Exit code 1 when the user cannot log in.`,
		Example: "  indigo auth why alice@example.org\n  indigo auth why alice --service imapd.143 --ip 192.0.2.7 --password-file pw --json", Args: cobra.ExactArgs(1),
	}
	data := app.dataFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&q.Service, "service", "smtpd.587", "door that the user comes to")
	f.StringVar(&ip, "ip", "", "address that the user comes from, for the tcp rules")
	f.StringVar(&local, "local", "", "address of this host that the user connects to, for names without a domain")
	f.StringVar(&file, "password-file", "", "file with the password, - for standard input: it is checked")
	f.StringVar(&token, "token-file", "", "file with an OAuth token, - for standard input: it is checked")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		q.User = args[0]
		for flag, one := range map[string]struct {
			text string
			into *netip.Addr
		}{"--ip": {ip, &q.Client}, "--local": {local, &q.Local}} {
			if one.text == "" {
				continue
			}
			var err error
			if *one.into, err = netip.ParseAddr(one.text); err != nil {
				return fmt.Errorf("%s: %w", flag, err)
			}
		}
		if file != "" {
			var err error
			if q.Password, err = app.readPassword(file); err != nil {
				return err
			}
		}
		if token != "" {
			var err error
			if q.Token, err = app.readToken(token); err != nil {
				return err
			}
		}
		if err := service.NewControl(*data).FlushTrace(ctx); err != nil && !errors.Is(err, service.ErrNotRunning) {
			return err
		}
		a, err := service.WhyLogin(ctx, *data, app.who(), q)
		if err != nil {
			return err
		}
		if asJSON {
			err = json.NewEncoder(app.Out).Encode(a)
		} else {
			err = app.tellWhy(ctx, a)
		}
		if err == nil && !a.Can {
			err = exitCode(1)
		}
		return err
	}
	return cmd
}

// tellWhy prints an answer, the conclusion first.
func (app *App) tellWhy(_ context.Context, a *service.LoginAnswer) error {
	out := &strings.Builder{}
	fmt.Fprintf(out, "%s at %s: %s\n", a.User, a.Service, a.Verdict)
	for _, s := range a.Steps {
		fmt.Fprintf(out, "name       : %s\n", s)
	}
	fmt.Fprintf(out, "sources    : %s\n", a.Chain)
	for _, s := range a.Sources {
		knows := "no "
		if s.Knows {
			knows = "yes"
		}
		fmt.Fprintf(out, "  %s %s (%s): %s\n", knows, s.Word, s.Kind, s.Found)
	}
	fmt.Fprintf(out, "flags      : %s\n", cmp.Or(strings.Join(a.Flags, " "), "none"))
	if a.Denied != "" {
		fmt.Fprintf(out, "denied     : %s\n", a.Denied)
	}
	for _, e := range []struct {
		label string
		at    time.Time
	}{{"domain to", a.DomainExpiry}, {"password to", a.PasswordExpiry}} {
		if !e.at.IsZero() {
			fmt.Fprintf(out, "%-11s: %s\n", e.label, e.at.Format(time.DateTime))
		}
	}
	if a.Password != "" {
		fmt.Fprintf(out, "password   : %s\n", a.Password)
	}
	if a.Token != "" {
		fmt.Fprintf(out, "token      : %s\n", a.Token)
	}
	out.WriteString("mechanisms :\n")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "  \tfits\tin clear\tin TLS\n")
	yes := map[bool]string{true: "yes", false: "-"}
	for _, m := range a.Ways {
		if !m.Fits && !m.Clear && !m.TLS && strings.HasPrefix(m.Why, "needs a") {
			continue
		}
		why := m.Why
		if why != "" && strings.HasPrefix(a.Verdict, "cannot log in: "+why) {
			why = "" // it is true for all, and was said first
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\n", m.Mechanism, yes[m.Fits], yes[m.Clear], yes[m.TLS], why)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(a.Logins) == 0 && a.Address != "" {
		out.WriteString("last login : never\n")
	}
	for _, l := range a.Logins {
		fmt.Fprintf(out, "last login : %s by %s from %s\n", l.At.Local().Format(time.DateTime), l.Service, l.IP)
	}
	for _, p := range a.AppPasswords {
		fmt.Fprintf(out, "app passwd : %s for %s\n", p.Name, cmp.Or(strings.Join(p.Services, " "), strings.Join(directory.AppServices(), " ")))
	}
	if len(a.Failures) == 0 {
		out.WriteString("failures   : none in the trace of the last 7 days\n")
	}
	for _, e := range a.Failures {
		fmt.Fprintf(out, "failure    : %s at %s from %s: %s", e.Time.Local().Format(time.DateTime), e.Service, e.Client, e.Input)
		if e.Check != "" && e.Check != "password" {
			fmt.Fprintf(out, " (check %s)", e.Check)
		}
		out.WriteByte('\n')
	}
	_, err := io.WriteString(app.Out, out.String())
	return err
}
