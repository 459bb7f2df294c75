package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/service"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/turn"
)

func (app *App) turnCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "turn",
		Short: "Mail that waits for a host: list it, send it, say who may fetch it",
		Long: `Mail of domains that were added with --etrn or --etrn-client waits in DATA/autoturn until their hosts ask for it: by ETRN, by ATRN, or by
connecting where AUTOTURN is set. docs/turn.md tells how each is set up.`,
		Example: "  indigo turn list\n  indigo turn grant atrn.dom odmr@example.org\n  indigo turn send etrn1.dom",
	}
	cmd.AddCommand(app.turnListCommand(), app.turnSendCommand(), app.turnGrantCommand(), app.turnRevokeCommand())
	return cmd
}

// waitingDomain is a domain whose mail waits.
type waitingDomain struct {
	Domain string `json:"domain"`
	// Dir holds the Maildir; Host is the address that the mail goes to, "" for whoever asks and is a mail host of the domain.
	Dir  string `json:"dir"`
	Host string `json:"host,omitempty"`
	// Messages are those in the Maildir, which domains of one host share.
	Messages int       `json:"messages"`
	Bytes    int64     `json:"bytes"`
	Oldest   time.Time `json:"oldest,omitzero"`
	// Users may fetch it by ATRN.
	Users []string `json:"users"`
}

func (app *App) turnListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list [DOMAIN]", Short: "List the domains whose mail waits, how much of it, and who may fetch it by ATRN",
		Example: "  indigo turn list\n  indigo turn list etrn1.dom --json", Args: cobra.MaximumNArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		all, err := app.waitingDomains(cmd.Context(), *data, strings.Join(args, ""))
		if err != nil {
			return err
		}
		return app.table(asJSON, all, 0, func(w io.Writer) {
			fmt.Fprintln(w, "DOMAIN\tHOST\tMESSAGES\tBYTES\tOLDEST\tATRN")
			for _, d := range all {
				oldest := "-"
				if !d.Oldest.IsZero() {
					oldest = d.Oldest.Local().Format(time.DateTime)
				}
				fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\n", d.Domain, cmp.Or(d.Host, "by MX"), d.Messages, d.Bytes, oldest, cmp.Or(strings.Join(d.Users, " "), "-"))
			}
		})
	}
	return cmd
}

// waitingDomains gives the domains whose mail waits, or one of them.
func (app *App) waitingDomains(ctx context.Context, data, name string) (all []waitingDomain, err error) {
	all = []waitingDomain{}
	snapshot, _ := settings.Inspect(data)
	access := settings.ATRNAccess.Get(snapshot.View("smtpd.366"))
	return all, app.withDirectory(ctx, data, func(s *directory.Store) error {
		domains, err := s.Domains(ctx)
		if err != nil {
			return err
		}
		if name != "" {
			d, err := s.Domain(ctx, name)
			if err != nil {
				return fmt.Errorf("domain %s: %w", name, err)
			}
			if !isAutoturn(data, d) {
				return fmt.Errorf("the mail of %s does not wait for a host; `indigo domain add DOMAIN --etrn` makes a domain whose mail does", d.Name)
			}
			domains = []directory.Domain{d}
		}
		for _, d := range domains {
			if !isAutoturn(data, d) {
				continue
			}
			w := waitingDomain{Domain: d.Name, Dir: d.Dir, Users: []string{}}
			if ip, err := netip.ParseAddr(strings.ReplaceAll(filepath.Base(d.Dir), "_", ":")); err == nil {
				w.Host = ip.String()
			}
			messages, err := maildir.List(filepath.Join(d.Dir, "Maildir"))
			if err != nil {
				return err
			}
			w.Messages = len(messages)
			for _, m := range messages {
				if info, err := os.Stat(m.File); err == nil {
					w.Bytes += info.Size()
					if w.Oldest.IsZero() || info.ModTime().Before(w.Oldest) {
						w.Oldest = info.ModTime()
					}
				}
			}
			grants, err := s.ATRNGrants(ctx, "", d.Name)
			if err != nil {
				return err
			}
			for _, g := range grants {
				w.Users = append(w.Users, g.User)
			}
			for _, line := range access {
				if user, list, _ := strings.Cut(line, ":"); slices.Contains(settings.SplitDomains(list), d.Name) {
					w.Users = append(w.Users, strings.ToLower(user))
				}
			}
			slices.Sort(w.Users)
			w.Users = slices.Compact(w.Users)
			all = append(all, w)
		}
		return nil
	})
}

func (app *App) turnSendCommand() *cobra.Command {
	var asJSON bool
	var to string
	cmd := &cobra.Command{
		Use: "send DOMAIN", Short: "Send what waits for a domain now",
		Long: `Send what waits for a domain, and for the others that share its directory, to its host, as ETRN would, and wait for the end. A running
instance does it. What the host takes or refuses for good is removed from the Maildir, and the senders of the latter are told.`,
		Example: "  indigo turn send etrn1.dom\n  indigo turn send etrn2.dom --to 192.168.2.108", Args: cobra.ExactArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().StringVar(&to, "to", "", "the host: an address, or ADDRESS:PORT (default: the one that the domain was added with, and the port of ETRN_PORT)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what became of it as a JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		all, err := app.waitingDomains(cmd.Context(), *data, args[0])
		if err != nil {
			return err
		}
		if to = cmp.Or(to, all[0].Host); to == "" {
			return fmt.Errorf("%s was added without its host's address: give --to", args[0])
		}
		report, err := app.sendWaiting(cmd.Context(), *data, all[0].Dir, "", to)
		if err != nil {
			return err
		}
		return app.table(asJSON, report, 0, func(w io.Writer) { fmt.Fprintln(w, report) })
	}
	return cmd
}

// sendWaiting has a running instance send what waits in a directory to a host.
func (app *App) sendWaiting(ctx context.Context, data, dir, prefix, to string) (r turn.Report, err error) {
	host, port, err := net.SplitHostPort(to)
	if err != nil {
		snapshot, _ := settings.Inspect(data)
		host, port = strings.Trim(to, "[]"), fmt.Sprint(settings.ETRNPort.Get(snapshot.View("smtpd.25")))
	}
	if _, err := netip.ParseAddr(host); err != nil {
		if err := addr.ValidDomain(host); err != nil {
			return r, fmt.Errorf("host %q: %w", to, err)
		}
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return r, err
	}
	return service.NewControl(data).Turn(ctx, dir, prefix, net.JoinHostPort(host, port))
}

func (app *App) turnGrantCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "grant DOMAIN USER@DOMAIN", Short: "Let a user fetch a domain's mail by ATRN",
		Long:    `Let a user fetch a domain's mail by ATRN, in addition to those that control/atrnaccess names. To undo, indigo turn revoke.`,
		Example: "  indigo turn grant atrn.dom odmr@example.org", Args: cobra.ExactArgs(2),
	}
	data := app.dataFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return app.grantATRN(cmd.Context(), *data, args[0], args[1])
	}
	return cmd
}

func (app *App) turnRevokeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke DOMAIN USER@DOMAIN", Short: "Let a user fetch a domain's mail by ATRN no more",
		Long:    `Take a grant of indigo turn grant back, which undoes this. Lines of control/atrnaccess stay.`,
		Example: "  indigo turn revoke atrn.dom odmr@example.org", Args: cobra.ExactArgs(2),
	}
	data := app.dataFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return app.revokeATRN(cmd.Context(), *data, args[0], args[1])
	}
	return cmd
}

// atrnUser completes a user's name as a login does.
func atrnUser(data, name string) (addr.Address, error) {
	if !strings.Contains(name, "@") {
		all, _ := settings.Inspect(data)
		view := all.View("all")
		name += "@" + cmp.Or(settings.DefaultDomain.Get(view), settings.Me.Get(view))
	}
	a, err := addr.Parse(name)
	if err != nil {
		return a, fmt.Errorf("user %s: %w", name, err)
	}
	return a, nil
}

func (app *App) grantATRN(ctx context.Context, data, domain, user string) error {
	a, err := atrnUser(data, user)
	if err != nil {
		return err
	}
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		d, err := s.Domain(ctx, domain)
		if err == nil && !isAutoturn(data, d) {
			return fmt.Errorf("the mail of %s does not wait for a host; `indigo domain add DOMAIN --etrn` makes a domain whose mail does", d.Name)
		}
		// Who logs in is known by the domain's own name, whichever he was granted by.
		if u, err := s.User(ctx, a); err == nil {
			a = u.Address()
		}
		if err := s.GrantATRN(ctx, a, domain); err != nil {
			return err
		}
		if all, _ := settings.Inspect(data); a.Domain == "localhost" && settings.Me.Get(all.View("all")) != "localhost" {
			if u, err := s.User(ctx, addr.Address{Local: a.Local, Domain: settings.Me.Get(all.View("all"))}); err == nil {
				_, err = fmt.Fprintf(app.Err, "%s: the directory has %s, who is meant by that name and does not get this grant\n", a, u.Address())
				return err
			}
		}
		// Users of the host have no row (odmr@localhost).
		if _, err := s.User(ctx, a); a.Domain != "localhost" && (errors.Is(err, directory.ErrNoUser) || errors.Is(err, directory.ErrNoDomain)) {
			_, err = fmt.Fprintf(app.Err, "%s: %v in the directory now; the grant holds for who logs in by that name\n", a, err)
			return err
		}
		return nil
	})
}

func (app *App) revokeATRN(ctx context.Context, data, domain, user string) error {
	a, err := atrnUser(data, user)
	if err != nil {
		return err
	}
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		// Grants that were made by another name of the user's domain stand by that.
		written, err := s.ATRNDomains(ctx, a)
		if err != nil {
			return err
		}
		if u, err := s.User(ctx, a); err == nil && !slices.Contains(written, strings.ToLower(domain)) {
			a = u.Address()
		}
		return s.RevokeATRN(ctx, a, domain)
	})
}

// turnPrograms are IndiMail's names.
func (app *App) turnPrograms() map[string]func([]string) int {
	refused := func(why string) oldProgram {
		return oldProgram{"", 0, 1000, "b:t:", func(context.Context, string, []string, map[byte]string) error { return errors.New(why) }}
	}
	programs := app.faces(map[string]oldProgram{
		"vatrn": {"-i DOMAIN USER@DOMAIN, -d DOMAIN USER@DOMAIN, -u OLD -i NEW USER@DOMAIN, or [-v] -s [USER@DOMAIN|DOMAIN]", 0, 1, "i:d:u:sv", app.vatrn},
		"maildirsmtp": {"DIRECTORY PREFIX HOST [HELOHOST]", 3, 4, "", func(ctx context.Context, data string, operands []string, _ map[byte]string) error {
			report, err := app.sendWaiting(ctx, data, operands[0], operands[1], operands[2])
			if err != nil {
				return err
			}
			fmt.Fprintln(app.Out, report)
			return nil
		}},
	})
	for name, why := range map[string]string{
		"maildirserial": "Indigo runs no program for each message of a Maildir: `maildirsmtp DIRECTORY PREFIX HOST` or `indigo turn send DOMAIN` sends them; nothing was done",
		"serialsmtp":    "it speaks only to maildirserial, which Indigo does not have: use `maildirsmtp DIRECTORY PREFIX HOST`; nothing was done",
		"serialqmtp":    "it speaks only to maildirserial, which Indigo does not have, and nor does it send by QMTP: use `maildirsmtp DIRECTORY PREFIX HOST`; nothing was done",
		"maildirqmtp":   "Indigo does not send by QMTP: use `maildirsmtp DIRECTORY PREFIX HOST`; nothing was done",
	} {
		programs[name] = app.faces(map[string]oldProgram{name: refused(why)})[name]
	}
	return programs
}

// vatrn is IndiMail's.
func (app *App) vatrn(ctx context.Context, data string, operands []string, options map[byte]string) error {
	add, adds := options['i']
	remove, removes := options['d']
	old, updates := options['u']
	_, shows := options['s']
	if shows && (adds || removes || updates) || removes && (adds || updates) || updates && !adds || !shows && !adds && !removes {
		return errors.New("give one of -s, -i, -d, and -u with -i")
	}
	if !shows && len(operands) == 0 {
		return errors.New("give the user's address")
	}
	switch {
	case updates:
		// The new one first: when it cannot be, the old one stays.
		if err := app.grantATRN(ctx, data, add, operands[0]); err != nil {
			return err
		}
		return app.revokeATRN(ctx, data, old, operands[0])
	case adds:
		return app.grantATRN(ctx, data, add, operands[0])
	case removes:
		return app.revokeATRN(ctx, data, remove, operands[0])
	}
	user, domain := "", strings.Join(operands, "")
	if strings.Contains(domain, "@") {
		user, domain = domain, ""
	}
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		grants, err := s.ATRNGrants(ctx, user, domain)
		if err != nil {
			return err
		}
		for _, g := range grants {
			name, host, _ := strings.Cut(g.User, "@")
			fmt.Fprintf(app.Out, "%-20s %-20s %s\n", name, host, g.Domain)
		}
		if len(grants) == 0 {
			if _, verbose := options['v']; verbose {
				fmt.Fprintln(app.Out, "No ATRN Maps present")
			}
			return exitCode(1)
		}
		return nil
	})
}
