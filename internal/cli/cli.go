// Package cli is the top floor: the commands, in their modern form and under IndiMail's names, which call the same
// functions. It must not hold any behaviour of mail.
package cli

import (
	"io"
	"path/filepath"

	"github.com/spf13/cobra"
)

// App is what every command is handed: its streams. Commands never touch os.Stdout or the environment.
type App struct {
	In       io.Reader
	Out, Err io.Writer
}

// Main runs the command named by args and gives the exit code. args[0] may be one of IndiMail's program names.
func Main(args []string, in io.Reader, out, errOut io.Writer) int {
	app := &App{In: in, Out: out, Err: errOut}
	if len(args) > 0 {
		if run, ok := app.programs()[filepath.Base(args[0])]; ok {
			return run(args[1:])
		}
	}
	if len(args) > 1 {
		if run, ok := app.programs()[args[1]]; ok {
			return run(args[2:])
		}
	}
	root := app.root()
	root.SetArgs(args[1:])
	if err := root.Execute(); err != nil {
		return 1
	}
	return 0
}

func (app *App) root() *cobra.Command {
	root := &cobra.Command{
		Use:          "indigo",
		Short:        "Indigo takes mail in, queues it, delivers it and gives it back",
		SilenceUsage: true,
	}
	root.SetIn(app.In)
	root.SetOut(app.Out)
	root.SetErr(app.Err)
	return root
}

// programs maps IndiMail's program names to their adapters: each takes the arguments after the name and gives the exit
// code.
func (app *App) programs() map[string]func([]string) int {
	return map[string]func([]string) int{}
}
