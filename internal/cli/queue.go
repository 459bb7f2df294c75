package cli

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/indigomail/indigo/internal/service"
	"github.com/spf13/cobra"
)

func (app *App) queueCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "queue",
		Short:   "Look at the messages that wait, and try them again",
		Example: "  indigo queue list\n  indigo queue stats --json\n  indigo queue retry 660188",
	}
	cmd.AddCommand(app.queueListCommand(), app.queueStatsCommand(), app.queueRetryCommand())
	return cmd
}

func (app *App) queueListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the messages in the queue of a running instance",
		Example: "  indigo queue list --data /srv/mail",
		Args:    cobra.NoArgs,
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := service.NewControl(*data).QueueList(cmd.Context())
		if err != nil {
			return err
		}
		if asJSON {
			return json.NewEncoder(app.Out).Encode(list)
		}
		w := tabwriter.NewWriter(app.Out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tAGE\tSENDER\tRECIPIENTS LEFT\tNEXT ATTEMPT\tLAST RESULT")
		for _, m := range list {
			fmt.Fprintf(w, "%s\t%s\t<%s>\t%q\t%s\t%q\n", m.ID, time.Since(m.Birth).Round(time.Second), m.Sender, m.Recipients,
				m.Next.Format(time.DateTime), m.LastText)
		}
		return w.Flush()
	}
	return cmd
}

func (app *App) queueStatsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "stats",
		Short:   "Count what is in the queue of a running instance",
		Example: "  indigo queue stats --data /srv/mail --json",
		Args:    cobra.NoArgs,
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		stats, err := service.NewControl(*data).QueueStats(cmd.Context())
		if err != nil {
			return err
		}
		text, err := json.Marshal(stats)
		if err != nil {
			return err
		}
		if asJSON {
			_, err := fmt.Fprintf(app.Out, "%s\n", text)
			return err
		}
		return app.printObject(text)
	}
	return cmd
}

// printObject prints a flat JSON object as "name: value" lines, in its order.
func (app *App) printObject(text []byte) error {
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		return err
	}
	w := tabwriter.NewWriter(app.Out, 0, 0, 2, ' ', 0)
	for _, name := range sortedKeys(fields) {
		fmt.Fprintf(w, "%s:\t%v\n", name, fields[name])
	}
	return w.Flush()
}

func (app *App) queueRetryCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "retry [ID]",
		Short:   "Make one message, or every message, due now",
		Example: "  indigo queue retry\n  indigo queue retry 660188",
		Args:    cobra.MaximumNArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id := ""
		if len(args) == 1 {
			id = args[0]
		}
		n, err := service.NewControl(*data).QueueRetry(cmd.Context(), id)
		if err != nil {
			return err
		}
		fmt.Fprintf(app.Out, "%d made due\n", n)
		return nil
	}
	return cmd
}
