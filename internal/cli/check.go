package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/service"
)

func (app *App) checkCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check all settings, rules, lists and certificates, and name what is wrong with file and line",
		Long: `Read everything that a start or a reload reads, and print what is wrong, a line each: file, line, what is wrong, what is
allowed. Whether the directory can be opened is tried too, for ten seconds. Warnings are about what will not work as its
author may think, and does no harm. Nothing is changed. The exit code is 1 when there is an error, so that a script can ask
before it reloads.`,
		Example: "  indigo check\n  indigo check --data /srv/mail && indigo reload",
		Args:    cobra.NoArgs,
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		found := service.Check(*data)
		errorsFound := slices.Concat(found.Refused, found.Down, found.Wrong)
		type finding struct {
			Severity string `json:"severity"`
			File     string `json:"file"`
			Line     int    `json:"line"`
			Text     string `json:"text"`
		}
		all := []finding{}
		for _, p := range errorsFound {
			all = append(all, finding{"error", p.File, max(p.Line, 1), p.Text})
		}
		for _, p := range found.Warnings {
			all = append(all, finding{"warning", p.File, max(p.Line, 1), p.Text})
		}
		if asJSON {
			if err := json.NewEncoder(app.Out).Encode(all); err != nil {
				return err
			}
		} else {
			for _, f := range all {
				fmt.Fprintf(app.Out, "%s:%d: %s: %s\n", f.File, f.Line, f.Severity, f.Text)
			}
			fmt.Fprintf(app.Out, "%d errors, %d warnings\n", len(errorsFound), len(found.Warnings))
		}
		switch {
		case len(found.Refused) > 0:
			return errors.New("with these settings nothing starts, and a reload is refused")
		case len(found.Down) > 0:
			return errors.New("nothing starts while that is so; an instance that runs goes on, and a reload is done")
		case len(found.Wrong) > 0:
			return errors.New("a start and a reload go on with these settings, but what the errors name does not work")
		}
		return nil
	}
	return cmd
}
