package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/redis"
	"github.com/indigomail/indigo/internal/service"
)

func (app *App) locksCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "locks",
		Short: "Show and end refusals after failed logins",
		Long: `After AUTH_LOCK_CLIENT failed logins from an address (IPv6: a /64), or AUTH_LOCK_ACCOUNT to an account, logins are refused for
AUTH_LOCK_TIME seconds, without a look at the password. See docs/auth.md.`,
		Example: "  indigo auth locks list\n  indigo auth locks clear 192.0.2.7",
	}
	cmd.AddCommand(app.locksListCommand(), app.locksClearCommand(), app.locksSharedCommand())
	return cmd
}

func (app *App) locksSharedCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "shared",
		Short: "Tell whether failed logins are shared with other hosts, and with which",
		Long: `Where REDIS_URL is set, hosts count failed logins together, by that server. Exit code 1 when it is set and does not answer:
then each host counts by itself, and they go on together when it is back.`,
		Example: "  indigo auth locks shared\n  indigo auth locks shared --json",
		Args:    cobra.NoArgs,
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := service.NewControl(*data).Shared(cmd.Context())
		if err != nil {
			return err
		}
		if asJSON {
			err = json.NewEncoder(app.Out).Encode(s)
		} else {
			_, err = fmt.Fprintln(app.Out, sharedLine(s))
		}
		if err == nil && s.Server != "" && !s.Up {
			err = errors.New("the server that hosts share does not answer; see REDIS_URL and docs/several-hosts.md")
		}
		return err
	}
	return cmd
}

// sharedLine tells how the server fares that hosts share.
func sharedLine(s redis.Status) string {
	switch since := s.Since.Local().Format(time.DateTime); {
	case s.Server == "":
		return "shared: no (REDIS_URL is not set)"
	case s.Up:
		return fmt.Sprintf("shared: up since %s, %s, by %s", since, s.Server, strings.Join(s.Hosts, ", "))
	default:
		return fmt.Sprintf("shared: down since %s, %s: %s; each host counts by itself", since, s.Server, s.Error)
	}
}

func (app *App) locksListCommand() *cobra.Command {
	var asJSON, all bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the addresses and accounts whose logins are refused now",
		Example: "  indigo auth locks list\n  indigo auth locks list --all --json",
		Args:    cobra.NoArgs,
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	cmd.Flags().BoolVar(&all, "all", false, "also those with failed logins that are not refused yet")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		control := service.NewControl(*data)
		found, err := control.Locks(cmd.Context(), all)
		if err != nil {
			return err
		}
		if !asJSON {
			s, err := control.Shared(cmd.Context())
			if err != nil {
				return err
			}
			if s.Server != "" {
				defer fmt.Fprintln(app.Out, sharedLine(s))
			}
		}
		return app.table(asJSON, found, 0, func(w io.Writer) {
			fmt.Fprintln(w, "BY\tNAME\tFAILURES\tREFUSED\tUNTIL")
			for _, l := range found {
				until := "not refused"
				if !l.Until.IsZero() {
					until = l.Until.Local().Format(time.DateTime)
				}
				fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\n", l.By, l.Name, l.Failures, l.Refused, until)
			}
		})
	}
	return cmd
}

func (app *App) locksClearCommand() *cobra.Command {
	var all, asJSON bool
	cmd := &cobra.Command{
		Use:     "clear ADDRESS|USER@DOMAIN | --all",
		Short:   "Forget the failed logins of an address or account, so that its logins are taken again",
		Example: "  indigo auth locks clear 192.0.2.7\n  indigo auth locks clear alice@example.org\n  indigo auth locks clear --all",
		Args:    cobra.MaximumNArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "all addresses and accounts")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the number as JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if all == (len(args) == 1) || len(args) == 1 && args[0] == "" {
			return errors.New("name an address, network or account, or give --all")
		}
		name := ""
		if !all {
			name = args[0]
		}
		control := service.NewControl(*data)
		n, err := control.Unlock(cmd.Context(), name)
		if err == nil {
			if s, down := control.Shared(cmd.Context()); down == nil && s.Server != "" && !s.Up {
				fmt.Fprintln(app.Err, "cleared at this host; at the others when the server that hosts share answers again:", sharedLine(s))
			}
		}
		switch {
		case err != nil:
			return err
		case n == 0 && !all:
			return fmt.Errorf("%s: no failed logins count; see `indigo auth locks list --all`", name)
		case asJSON:
			_, err = fmt.Fprintf(app.Out, "{\"cleared\":%d}\n", n)
		default:
			_, err = fmt.Fprintf(app.Out, "cleared: %d\n", n)
		}
		return err
	}
	return cmd
}
