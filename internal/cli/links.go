package cli

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func (app *App) linksCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "links DIR",
		Short:   "Make links in DIR under IndiMail's program names",
		Long:    "Make a symbolic link to this program in DIR for each of IndiMail's program names that it answers to. Existing\nfiles are left alone and reported. To undo, remove the links.",
		Example: "  indigo links /usr/local/bin",
		Args:    cobra.ExactArgs(1),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		if info, err := os.Stat(args[0]); err != nil || !info.IsDir() {
			return fmt.Errorf("%s is no directory: make it first; no link was made", args[0])
		}
		failed := 0
		for _, name := range sortedKeys(app.programs()) {
			path := filepath.Join(args[0], name)
			if target, err := os.Readlink(path); err == nil && target == self {
				continue
			}
			if err := os.Symlink(self, path); err != nil {
				fmt.Fprintln(app.Err, err)
				failed++
				continue
			}
			fmt.Fprintln(app.Out, path)
		}
		if failed > 0 {
			return fmt.Errorf("%d links were not made", failed)
		}
		return nil
	}
	return cmd
}
