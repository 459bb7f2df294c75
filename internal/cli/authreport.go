package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/service"
	"github.com/indigomail/indigo/internal/settings"
)

// mechanismUse is a line of the summary of `indigo auth report`.
type mechanismUse struct {
	Mechanism string `json:"mechanism"`
	Protocol  string `json:"protocol"`
	TLS       bool   `json:"tls"`
	// Users is how many used it ever since mechanisms are kept, Last when one did last.
	Users int       `json:"users"`
	Last  time.Time `json:"last"`
}

type authReport struct {
	// Since is when the directory began to keep this.
	Since      time.Time                 `json:"since"`
	Mechanisms []mechanismUse            `json:"mechanisms"`
	Users      []directory.UsedMechanism `json:"users"`
}

func inTLS(tls bool) string {
	if tls {
		return "TLS"
	}
	return "in clear"
}

func (app *App) authReportCommand() *cobra.Command {
	var asJSON, summary, cannot bool
	cmd := &cobra.Command{
		Use:   "report [DOMAIN]",
		Short: "Tell which mechanism each user logged in by last, over which protocol, inside TLS or not",
		Long: `For each user, protocol, mechanism and TLS or not, when it was used last; then how many users each mechanism has. "USER command" and "LOGIN
command" are the own ones of POP3 and IMAP. Users who never logged in are not in it.

With --cannot: for each domain, how many users have nothing kept that a mechanism needs which they are offered, because others have it: the offer comes
before the name. Clients that take the strongest mechanism fail for them.`,
		Example: "  indigo auth report\n  indigo auth report example.org --json\n  indigo auth report --summary\n  indigo auth report --cannot",
		Args:    cobra.MaximumNArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&summary, "summary", false, "only the mechanisms, not each user")
	cmd.Flags().BoolVar(&cannot, "cannot", false, "how many users cannot use a mechanism that is offered, by domain")
	cmd.MarkFlagsMutuallyExclusive("summary", "cannot")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		domain := strings.Join(args, "")
		return app.withDirectory(cmd.Context(), *data, func(s *directory.Store) (err error) {
			if cannot {
				return app.mechanismGaps(cmd.Context(), *data, s, domain, asJSON)
			}
			report := authReport{Mechanisms: []mechanismUse{}, Users: []directory.UsedMechanism{}}
			if report.Since, err = s.MechanismsSince(cmd.Context()); err != nil {
				return err
			}
			uses := map[mechanismUse]*mechanismUse{}
			err = s.Mechanisms(cmd.Context(), domain, func(u directory.UsedMechanism) error {
				key := mechanismUse{Mechanism: u.Mechanism, Protocol: u.Protocol, TLS: u.TLS}
				if uses[key] == nil {
					one := key
					uses[key] = &one
				}
				uses[key].Users++
				if u.Last.After(uses[key].Last) {
					uses[key].Last = u.Last
				}
				if !summary {
					report.Users = append(report.Users, u)
				}
				return nil
			})
			if err != nil {
				return err
			}
			for _, use := range uses {
				report.Mechanisms = append(report.Mechanisms, *use)
			}
			slices.SortFunc(report.Mechanisms, func(a, b mechanismUse) int {
				return cmp.Or(strings.Compare(a.Mechanism, b.Mechanism), strings.Compare(a.Protocol, b.Protocol), strings.Compare(inTLS(a.TLS), inTLS(b.TLS)))
			})
			return app.table(asJSON, report, 0, func(w io.Writer) {
				if !summary {
					fmt.Fprintln(w, "USER\tPROTOCOL\tMECHANISM\tTLS\tLAST USED")
					for _, u := range report.Users {
						fmt.Fprintf(w, "%s@%s\t%s\t%s\t%s\t%s\n", u.User, u.Domain, u.Protocol, u.Mechanism, inTLS(u.TLS), u.Last.Local().Format(time.DateTime))
					}
					fmt.Fprintln(w)
				}
				fmt.Fprintln(w, "MECHANISM\tPROTOCOL\tTLS\tUSERS\tLAST USED")
				for _, m := range report.Mechanisms {
					fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", m.Mechanism, m.Protocol, inTLS(m.TLS), m.Users, m.Last.Local().Format(time.DateTime))
				}
				fmt.Fprintf(w, "kept since %s\n", report.Since.Local().Format(time.DateTime))
			})
		})
	}
	return cmd
}

// mechanismGaps tells who cannot use what is offered.
func (app *App) mechanismGaps(ctx context.Context, data string, s *directory.Store, domain string, asJSON bool) error {
	gaps, err := service.MechanismGaps(ctx, data, s, domain)
	if err != nil {
		return err
	}
	return app.table(asJSON, gaps, 0, func(w io.Writer) {
		if len(gaps) == 0 {
			fmt.Fprintln(w, "every user can use all that is offered")
			return
		}
		fmt.Fprintln(w, "DOMAIN\tCANNOT\tOF\tMECHANISMS\tOFFERED BY")
		for _, g := range gaps {
			fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\n", g.Domain, g.Cannot, g.Users, strings.Join(g.Mechanisms, " "), strings.Join(g.Services, " "))
		}
	})
}

func (app *App) authRetireCommand() *cobra.Command {
	var unused string
	var dry, undo bool
	cmd := &cobra.Command{
		Use:   "retire MECHANISM --when-unused TIME | --undo",
		Short: "Offer a mechanism no more, if nobody used it for a time; otherwise tell who did",
		Long: `Sets the mechanism's setting DISABLE_… to 1 for each smtpd, pop3d and imapd, if no user logged in by it for TIME (30d, 12w). Otherwise nothing is
changed, and the users are listed. Deliveries to other hosts go on as before. --undo unsets it there.`,
		Example: "  indigo auth retire CRAM-MD5 --when-unused 30d --dry-run\n  indigo auth retire CRAM-MD5 --when-unused 30d\n  indigo auth retire CRAM-MD5 --undo",
		Args:    cobra.ExactArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().StringVar(&unused, "when-unused", "", "for how long nobody may have used it; a number with a unit: s, m, h, d or w")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only tell what would be done")
	cmd.Flags().BoolVar(&undo, "undo", false, "offer it again")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := strings.ToUpper(args[0])
		setting := settings.DisableAPOP.Setting
		if key, ok := settings.DisableMechanism[name]; ok {
			setting = key.Setting
		} else if name != "APOP" {
			return fmt.Errorf("%s: no mechanism that can be switched off; there are APOP and those that `indigo settings list` has as DISABLE_…", args[0])
		}
		if (unused == "") != undo {
			return errors.New("give either --when-unused, such as 30d, or --undo")
		}
		all, err := service.LoginServices(*data)
		if err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(name string) bool {
			kind, _, _ := strings.Cut(name, ".")
			return !slices.Contains(setting.Services, kind)
		})
		if undo {
			for _, one := range all {
				if err := settings.Unset(*data, setting.Name, one); err != nil {
					return err
				}
			}
			fmt.Fprintf(app.Out, "%s unset for %s; a running instance takes it over on `indigo reload`\n", setting.Name, strings.Join(all, " "))
			return nil
		}
		age, err := parseAge(unused)
		if err != nil {
			return fmt.Errorf("--when-unused: %w", err)
		}
		since := time.Now().Add(-age)
		return app.withDirectory(cmd.Context(), *data, func(s *directory.Store) error {
			kept, err := s.MechanismsSince(cmd.Context())
			if err != nil {
				return err
			}
			if kept.After(since) {
				return fmt.Errorf("who uses which mechanism is known only since %s: wait, or give a shorter --when-unused", kept.Local().Format(time.DateTime))
			}
			var users []string
			err = s.Mechanisms(cmd.Context(), "", func(u directory.UsedMechanism) error {
				if u.Mechanism == name && u.Last.After(since) {
					users = append(users, fmt.Sprintf("%s@%s (%s, %s)", u.User, u.Domain, u.Protocol, u.Last.Local().Format(time.DateTime)))
				}
				return nil
			})
			if err != nil {
				return err
			}
			for _, u := range users {
				fmt.Fprintln(app.Out, u)
			}
			switch {
			case len(users) > 0:
				return fmt.Errorf("%s: not retired: %d logins as above since %s", name, len(users), since.Local().Format(time.DateTime))
			case dry:
				fmt.Fprintf(app.Out, "%s is unused since %s; this would set %s to 1 for %s\n", name, since.Local().Format(time.DateTime), setting.Name, strings.Join(all, " "))
				return nil
			}
			for _, one := range all {
				if err := settings.Set(*data, setting.Name, one, "1"); err != nil {
					return fmt.Errorf("%s: %w (do it again, or --undo)", one, err)
				}
			}
			fmt.Fprintf(app.Out, "%s set to 1 for %s; a running instance takes it over on `indigo reload`, `indigo auth retire %s --undo` undoes it\n", setting.Name, strings.Join(all, " "), name)
			return nil
		})
	}
	return cmd
}
