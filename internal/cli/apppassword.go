package cli

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/directory"
)

// appPasswordCommand is part of `indigo user`.
func (app *App) appPasswordCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "app-password",
		Short: "Add, list and revoke further passwords of a user, one for each program",
		Long: `App passwords are further passwords of a user, each for one program on one device. They are made up, printed once, and can be kept to
some services; one that got lost is revoked and the others stay. A user's flags and a domain's limits hold for them too.`,
		Example: "  indigo user app-password add alice@example.org phone --services imap,smtp\n  indigo user app-password list alice@example.org",
	}
	var services []string
	var asJSON, yes bool
	sub := func(c *cobra.Command, run func(cmd *cobra.Command, s *directory.Store, a addr.Address, args []string) error) {
		data := app.dataFlag(c)
		c.RunE = func(cmd *cobra.Command, args []string) error {
			a, err := addr.Parse(args[0])
			if err != nil {
				return err
			}
			return app.withDirectory(cmd.Context(), *data, func(s *directory.Store) error { return run(cmd, s, a, args[1:]) })
		}
		cmd.AddCommand(c)
	}
	add := &cobra.Command{
		Use: "add USER@DOMAIN NAME", Short: "Make up an app password and print it, this once", Args: cobra.ExactArgs(2),
		Example: "  indigo user app-password add alice@example.org phone\n  indigo user app-password add alice@example.org scanner --services smtp",
	}
	sub(add, func(cmd *cobra.Command, s *directory.Store, a addr.Address, args []string) error {
		password, hash := auth.NewAppPassword()
		slices.Sort(services)
		if err := s.AddAppPassword(cmd.Context(), a, directory.AppPassword{Name: args[0], Hash: hash, Services: slices.Compact(services)}); err != nil {
			return err
		}
		if asJSON {
			return json.NewEncoder(app.Out).Encode(map[string]string{"name": strings.ToLower(args[0]), "password": password})
		}
		_, err := fmt.Fprintf(app.Out, "%s\n", password)
		return err
	})
	add.Flags().StringSliceVar(&services, "services", nil, "`SERVICES` that take it: smtp, imap, pop3 (default: all)")
	list := &cobra.Command{Use: "list USER@DOMAIN", Short: "List a user's app passwords and when they were used last", Example: "  indigo user app-password list alice@example.org", Args: cobra.ExactArgs(1)}
	sub(list, func(cmd *cobra.Command, s *directory.Store, a addr.Address, _ []string) error {
		all, err := s.AppPasswords(cmd.Context(), a)
		if err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
		if asJSON {
			return json.NewEncoder(app.Out).Encode(append([]directory.AppPassword{}, all...))
		}
		w := tabwriter.NewWriter(app.Out, 0, 0, 2, ' ', 0)
		for _, p := range all {
			used := "never used"
			if !p.Used.IsZero() {
				used = "used " + p.Used.Format(time.DateTime)
			}
			in := "all services"
			if len(p.Services) > 0 {
				in = strings.Join(p.Services, " ")
			}
			fmt.Fprintf(w, "%s\t%s\tmade %s\t%s\n", p.Name, in, p.Created.Format(time.DateTime), used)
		}
		return w.Flush()
	})
	for _, c := range []*cobra.Command{add, list} {
		c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	}
	revoke := &cobra.Command{Use: "revoke USER@DOMAIN NAME", Short: "Take an app password away; who uses it can log in no more", Example: "  indigo user app-password revoke alice@example.org phone --yes", Args: cobra.ExactArgs(2)}
	sub(revoke, func(cmd *cobra.Command, s *directory.Store, a addr.Address, args []string) error {
		if err := app.confirm(yes, fmt.Sprintf("Revoke the app password %s of %s?", args[0], a)); err != nil {
			return err
		}
		return s.RevokeAppPassword(cmd.Context(), a, args[0])
	})
	revoke.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}
