package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/settings"
)

func (app *App) trashCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trash",
		Short: "List, restore and purge what was removed",
		Long: `Users and domains that are removed go to DATA/trash, their mail and what the directory had of them. The running instance purges what is
older than TRASH_DAYS.`,
		Example: "  indigo trash list\n  indigo trash restore alice@example.org",
	}
	var listJSON bool
	list := &cobra.Command{Use: "list", Short: "List what is in the trash, the oldest first", Example: "  indigo trash list --json", Args: cobra.NoArgs}
	listData := app.dataFlag(list)
	list.Flags().BoolVar(&listJSON, "json", false, "print a JSON object a line")
	list.RunE = func(cmd *cobra.Command, _ []string) error {
		return app.withDirectory(cmd.Context(), *listData, func(s *directory.Store) error {
			all, err := s.TrashContents()
			if err != nil {
				return err
			}
			return app.printTrash(all, listJSON)
		})
	}
	var restoreJSON bool
	restore := &cobra.Command{
		Use:   "restore ID|NAME",
		Short: "Put a removed user or domain back, with the mail",
		Long: `Put a removed user or domain back: what the directory had, password, flags, aliases, limits, log-ins, and the mail. NAME stands for the
latest removal of that name. Who has the name by now is not replaced: rename him first. After an interruption the same command goes on. To
undo, remove again.`,
		Example: "  indigo trash restore alice@example.org\n  indigo trash restore 20270131T120000.000000-example.org", Args: cobra.ExactArgs(1),
	}
	restoreData := app.dataFlag(restore)
	restore.Flags().BoolVar(&restoreJSON, "json", false, "print what was restored as a JSON object")
	restore.RunE = func(cmd *cobra.Command, args []string) error {
		return app.withDirectory(cmd.Context(), *restoreData, func(s *directory.Store) error {
			t, err := s.FindTrash(args[0])
			if err != nil {
				return err
			}
			if err := s.RestoreTrash(cmd.Context(), t); err != nil {
				return err
			}
			if d, err := s.Domain(cmd.Context(), t.Name); t.Kind == "domain" && err == nil && isAutoturn(*restoreData, d) {
				for _, file := range autoturnFiles() {
					if err := settings.AddLine(*restoreData, file, d.Name); err != nil {
						return fmt.Errorf("the domain is restored; control/%s: %w", file, err)
					}
				}
			}
			return app.printTrash([]directory.Trash{t}, restoreJSON)
		})
	}
	var purgeJSON, yes bool
	var days int
	purge := &cobra.Command{
		Use:     "purge [ID|NAME]...",
		Short:   "Remove for good what is in the trash",
		Long:    `Remove for good what ID or NAME tells, or with --older-than what is older than so many days (0: all). It cannot be undone.`,
		Example: "  indigo trash purge alice@example.org\n  indigo trash purge --older-than 7 --yes",
	}
	purgeData := app.dataFlag(purge)
	purge.Flags().IntVar(&days, "older-than", -1, "what is older than so many days")
	purge.Flags().BoolVar(&yes, "yes", false, "do not ask")
	purge.Flags().BoolVar(&purgeJSON, "json", false, "print what is gone, a JSON object a line")
	purge.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 == (days < 0) {
			return errors.New("give what is to be purged, or --older-than DAYS")
		}
		return app.withDirectory(cmd.Context(), *purgeData, func(s *directory.Store) error {
			var chosen []directory.Trash
			for _, name := range args {
				t, err := s.FindTrash(name)
				if err != nil {
					return err
				}
				chosen = append(chosen, t)
			}
			if len(args) == 0 {
				all, err := s.TrashContents()
				if err != nil {
					return err
				}
				before := time.Now().AddDate(0, 0, -days)
				for _, t := range all {
					if t.Removed.Before(before) {
						chosen = append(chosen, t)
					}
				}
			}
			if len(chosen) == 0 {
				return nil
			}
			question := fmt.Sprintf("Remove %s for good?", chosen[0].ID)
			if len(chosen) > 1 {
				question = fmt.Sprintf("Remove %d removals, from %s to %s, for good?", len(chosen), chosen[0].ID, chosen[len(chosen)-1].ID)
			}
			if err := app.confirm(yes, question); err != nil {
				return err
			}
			for _, t := range chosen {
				if err := s.DeleteTrash(t); err != nil {
					return err
				}
			}
			return app.printTrash(chosen, purgeJSON)
		})
	}
	cmd.AddCommand(list, restore, purge)
	return cmd
}

func (app *App) printTrash(all []directory.Trash, asJSON bool) error {
	w := tabwriter.NewWriter(app.Out, 0, 0, 2, ' ', 0)
	for _, t := range all {
		if asJSON {
			if err := json.NewEncoder(app.Out).Encode(t); err != nil {
				return err
			}
			continue
		}
		kind := t.Kind
		switch kind {
		case "":
			kind = "mail without rows: cannot be restored"
		case "domain":
			kind = fmt.Sprintf("domain with %d users", t.Users)
		}
		by := ""
		if t.Who != "" {
			by = "by " + t.Who
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", t.ID, t.Removed.Local().Format(time.DateTime), kind, by)
	}
	return w.Flush()
}
