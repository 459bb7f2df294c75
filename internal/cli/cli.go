// Package cli is the top floor: the commands, in their modern form and under IndiMail's names, which call the same
// functions. It must not hold any behaviour of mail.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/settings"
)

// App is what every command is handed: its streams. Commands never touch os.Stdout or the environment.
type App struct {
	In       io.Reader
	Out, Err io.Writer
	// opened is the file with a password, opened before root was given up.
	opened *os.File
	// uid is who called, before root was given up.
	uid int
}

// Main runs the command named by args and gives the exit code. args[0], or else the first word, may be one of
// IndiMail's program names.
func Main(args []string, in io.Reader, out, errOut io.Writer) int {
	app := &App{In: in, Out: out, Err: errOut, uid: os.Getuid()}
	programs := app.programs()
	for i := range min(2, len(args)) {
		if run, ok := programs[filepath.Base(args[i])]; ok {
			return run(args[i+1:])
		}
	}
	root := app.root()
	root.SetArgs(args[1:])
	if err := root.ExecuteContext(context.Background()); err != nil {
		var code exitCode
		if errors.As(err, &code) {
			return int(code)
		}
		fmt.Fprintln(errOut, "indigo:", err)
		return 1
	}
	return 0
}

func (app *App) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "indigo",
		Short: "Indigo takes mail in, queues it, delivers it and gives it back",
		Long: `Indigo is the IndiMail messaging platform in one program. It takes mail in over SMTP, judges it, queues it so
that nothing is lost, delivers it to virtual users or onward, and gives it back over POP3 and IMAP.

Begin with "indigo up", then "indigo try" in another terminal.`,
		Example:       "  indigo up --data /tmp/mail\n  indigo try --data /tmp/mail\n  indigo explain --data /tmp/mail someone@example.org",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentPreRunE = app.dropRoot
	root.SetIn(app.In)
	root.SetOut(app.Out)
	root.SetErr(app.Err)
	root.AddCommand(
		app.upCommand(), app.serveCommand(), app.reloadCommand(), app.tryCommand(), app.explainCommand(), app.settingsCommand(), app.checkCommand(), app.listCommand(), app.serviceCommand(), app.installCommand(), app.dbCommand(), app.limitCommand(), app.trashCommand(), app.storageCommand(),
		app.domainCommand(), app.userCommand(), app.aliasCommand(), app.adminCommand(), app.queueCommand(), app.linksCommand(), app.authCommand(), app.probeCommand(), app.relayCommand(), app.turnCommand(),
	)
	return root
}

// programs maps IndiMail's program names to their adapters: each takes the arguments after the name and gives the exit
// code.
func (app *App) programs() map[string]func([]string) int {
	all := app.directoryPrograms()
	maps.Copy(all, app.limitPrograms())
	maps.Copy(all, app.lifecyclePrograms())
	maps.Copy(all, app.aliasPrograms())
	maps.Copy(all, app.lookupPrograms())
	maps.Copy(all, app.adminPrograms())
	maps.Copy(all, app.bulletinPrograms())
	maps.Copy(all, app.queuePrograms())
	maps.Copy(all, app.listPrograms())
	maps.Copy(all, app.turnPrograms())
	maps.Copy(all, app.servicePrograms())
	for name, run := range all {
		// Those that run other programs do so as who calls them.
		if name == "ctrlenv" || name == "envdir" {
			continue
		}
		all[name] = func(args []string) int {
			if err := asOwner(settings.FromEnvironment().Data); err != nil {
				fmt.Fprintf(app.Err, "%s: %v\n", name, err)
				return 111
			}
			return run(args)
		}
	}
	maps.Copy(all, app.injectPrograms())
	// They give root up themselves, for a part of their work.
	all["vchkpass"], all["sys-checkpwd"], all["ldap-checkpwd"], all["pam-checkpwd"], all[auth.ReplyProgram] = app.vchkpass, app.sysCheckpwd, app.ldapCheckpwd, app.pamCheckpwd, app.checkpasswordReply
	return all
}
