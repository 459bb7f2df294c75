package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/settings"
)

func (app *App) adminCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "admin",
		Short: "Management users of IndiMail's administration server, and which programs they may run",
		Long: `Keep the management users of IndiMail's administration server (indisrvr) and which programs they may run: the tables mgmtaccess and vpriv.
IndiMail's indisrvr on the same database obeys them; Indigo itself has no administration server yet, and nothing of its own asks them.`,
		Example: "  indigo admin add carol --password-file pw\n  indigo admin allow carol vuserinfo '-q *'\n  indigo admin list",
	}
	var passwordFile string
	var data string
	var asJSON, yes, all bool
	sub := func(use, short, example string, args cobra.PositionalArgs, run func(ctx context.Context, s *directory.Store, args []string) error) *cobra.Command {
		c := &cobra.Command{Use: use, Short: short, Example: example, Args: args}
		from := app.dataFlag(c)
		c.RunE = func(cmd *cobra.Command, args []string) error {
			data = *from
			return app.withDirectory(cmd.Context(), data, func(s *directory.Store) error { return run(cmd.Context(), s, args) })
		}
		cmd.AddCommand(c)
		return c
	}
	add := sub("add NAME", "Add a management user", "  indigo admin add carol --password-file pw", cobra.ExactArgs(1), func(ctx context.Context, s *directory.Store, args []string) error {
		return app.adminHash(ctx, data, args[0], password{file: passwordFile}, s.AddAdmin)
	})
	passwd := sub("passwd NAME", "Set a management user's password, and unlock", "  indigo admin passwd carol --password-file -", cobra.ExactArgs(1), func(ctx context.Context, s *directory.Store, args []string) error {
		if _, err := s.Admins(ctx, args[0]); err != nil {
			return err
		}
		return app.adminHash(ctx, data, args[0], password{file: passwordFile}, s.SetAdminPassword)
	})
	for _, c := range []*cobra.Command{add, passwd} {
		c.Flags().StringVar(&passwordFile, "password-file", "", "file with the password, - for standard input (default: one is made up and printed)")
	}
	list := sub("list [NAME]", "Show management users", "  indigo admin list\n  indigo admin list carol --json", cobra.MaximumNArgs(1), func(ctx context.Context, s *directory.Store, args []string) error {
		admins, err := s.Admins(ctx, strings.Join(args, ""))
		if err != nil {
			return err
		}
		return app.table(asJSON, admins, 0, func(w io.Writer) {
			fmt.Fprint(w, "NAME\tSTATE\tATTEMPTS\tLAST ACCESS\tPASSWORD SET\n")
			for _, a := range admins {
				fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", a.Name, adminState(a), a.Attempts, adminTime(a.LastAccess), adminTime(a.LastUpdate))
			}
		})
	})
	privileges := sub("privileges [NAME]", "Show which programs management users may run", "  indigo admin privileges carol --json", cobra.MaximumNArgs(1), func(ctx context.Context, s *directory.Store, args []string) error {
		all, err := s.Privileges(ctx, strings.Join(args, ""))
		if err != nil {
			return err
		}
		return app.table(asJSON, all, 0, func(w io.Writer) {
			for _, p := range all {
				fmt.Fprintf(w, "%s\t%s\t%s\n", p.Admin, p.Program, p.Switches)
			}
		})
	})
	for _, c := range []*cobra.Command{list, privileges} {
		c.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	}
	sub("lock NAME", "Keep a management user out", "  indigo admin lock carol", cobra.ExactArgs(1), func(ctx context.Context, s *directory.Store, args []string) error {
		return s.LockAdmin(ctx, args[0], true)
	})
	sub("unlock NAME", "Let a management user in again, and forget wrong attempts", "  indigo admin unlock carol", cobra.ExactArgs(1), func(ctx context.Context, s *directory.Store, args []string) error {
		return s.LockAdmin(ctx, args[0], false)
	})
	remove := sub("remove NAME", "Remove a management user with all privileges", "  indigo admin remove carol --yes", cobra.ExactArgs(1), func(ctx context.Context, s *directory.Store, args []string) error {
		if _, err := s.Admins(ctx, args[0]); err != nil {
			return err
		}
		if err := app.confirm(yes, fmt.Sprintf("Remove the management user %s with all privileges?", args[0])); err != nil {
			return err
		}
		return s.RemoveAdmin(ctx, args[0])
	})
	remove.Flags().BoolVar(&yes, "yes", false, "do not ask")
	sub("allow NAME PROGRAM [SWITCHES]", "Let a management user run a program, with options that match a pattern (default: any)",
		"  indigo admin allow carol vuserinfo '-q *'", cobra.RangeArgs(2, 3), func(ctx context.Context, s *directory.Store, args []string) error {
			return s.Grant(ctx, directory.Privilege{Admin: args[0], Program: args[1], Switches: cmp.Or(strings.Join(args[2:], ""), "*")})
		})
	revoke := sub("revoke NAME [PROGRAM]", "Take a program from a management user", "  indigo admin revoke carol vuserinfo\n  indigo admin revoke carol --all", cobra.RangeArgs(1, 2),
		func(ctx context.Context, s *directory.Store, args []string) error {
			if all == (len(args) > 1) {
				return errors.New("name a program, or give --all")
			}
			return revoked(ctx, s, args[0], strings.Join(args[1:], ""))
		})
	revoke.Flags().BoolVar(&all, "all", false, "every program")
	return cmd
}

// adminHash gets a management user's new password, judges it as a user's, and has store write its hash by the settings. A made-up one is printed then.
func (app *App) adminHash(ctx context.Context, data, name string, p password, store func(ctx context.Context, name, hash string) error) error {
	view, err := passwordSettings(data)
	if err != nil {
		return err
	}
	p.scram = "none"
	form, err := p.form(view)
	if err != nil {
		return err
	}
	who := addr.Address{Local: name, Domain: settings.Me.Get(view)}
	text, madeUp, err := app.getPassword(who, p)
	if err != nil {
		return err
	}
	if !madeUp {
		if err := app.judge(ctx, data, view, who, text, false); err != nil {
			return err
		}
	}
	hash, _, err := form.Store(text)
	if err == nil {
		err = store(ctx, name, hash)
	}
	if err == nil && madeUp {
		fmt.Fprintf(app.Out, "password of %s: %s\n", name, text)
	}
	return err
}

func adminState(a directory.Admin) string {
	if a.Locked {
		return "locked"
	}
	return "open"
}

func adminTime(t time.Time) string {
	if t.Unix() <= 0 {
		return "never"
	}
	return t.Local().Format(time.DateTime)
}

// revoked takes a program, or with "" all; none is an error.
func revoked(ctx context.Context, s *directory.Store, name, program string) error {
	n, err := s.Revoke(ctx, name, program)
	if err == nil && n == 0 {
		err = fmt.Errorf("%s may not run %s anyway", name, cmp.Or(program, "anything"))
	}
	return err
}

// manage is mgmtpass: -l lists, -i shows, -a adds and -p sets, and without these the user changes the own password.
func (app *App) manage(ctx context.Context, data string, s *directory.Store, options map[byte]string) error {
	name := options['u']
	if _, list := options['l']; list {
		admins, err := s.Admins(ctx, "")
		for _, a := range admins {
			fmt.Fprintln(app.Out, a.Name)
		}
		return err
	}
	if name == "" {
		return errors.New("usage: mgmtpass -u USER [-a PASSWORD|-] [-p PASSWORD|-] [-i], or -l")
	}
	if given, ok := options['a']; ok {
		return app.adminHash(ctx, data, name, password{operand: given}, s.AddAdmin)
	}
	admins, err := s.Admins(ctx, name)
	if err != nil {
		return err
	}
	if given, ok := options['p']; ok {
		return app.adminHash(ctx, data, name, password{operand: given}, s.SetAdminPassword)
	}
	old, locked, err := s.AdminPassword(ctx, name)
	if err != nil {
		return err
	}
	if _, show := options['i']; show {
		a, status, state := admins[0], "0", "Enabled"
		if locked {
			status, state = "1", "Disabled"
		}
		fmt.Fprintf(app.Out, "User        : %s\nPass        : (%s)\nLast Access : %s\nLast Update : %s\nAttempts    : %d\nStatus      : %s (%s)\n", a.Name, formNames(old, ""), adminTime(a.LastAccess),
			adminTime(a.LastUpdate), a.Attempts, status, state)
		return nil
	}
	if locked {
		return fmt.Errorf("%s is locked: `indigo admin unlock %s`", name, name)
	}
	return app.changeOwn(ctx, data, s, name, old)
}

// changeOwn asks for the password that is and the new one twice.
func (app *App) changeOwn(ctx context.Context, data string, s *directory.Store, name, old string) error {
	ask := app.prompts()
	given, err := ask("Old password: ")
	if err != nil {
		return err
	}
	right, err := auth.Matches(old, given)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if !right {
		return errors.New("that is not the password; nothing was changed")
	}
	first, err := ask("New password: ")
	if err != nil {
		return err
	}
	second, err := ask("Re-enter new password: ")
	if err != nil {
		return err
	}
	if first != second {
		return errors.New("the two do not match; nothing was changed")
	}
	return app.adminHash(ctx, data, name, password{operand: first}, s.SetAdminPassword)
}

// privilege is vpriv.
func (app *App) privilege(ctx context.Context, s *directory.Store, operands []string, options map[byte]string) error {
	name, switches := operands[0], strings.Join(operands[1:], "")
	delete(options, 'v')
	if len(options) != 1 {
		return errors.New("give one of -s, -a, -D, -d PROGRAM, -i PROGRAM, -m PROGRAM")
	}
	for letter, program := range options {
		switch letter {
		case 's':
			all, err := s.Privileges(ctx, name)
			for _, p := range all {
				fmt.Fprintf(app.Out, "%s -> %-20s %s\n", p.Admin, p.Program, p.Switches)
			}
			return err
		case 'd':
			return revoked(ctx, s, name, program)
		case 'D':
			return revoked(ctx, s, name, "")
		case 'a':
			for _, program := range sortedKeys(app.directoryPrograms()) {
				if err := s.Grant(ctx, directory.Privilege{Admin: name, Program: program, Switches: "*"}); err != nil {
					return err
				}
			}
			return nil
		case 'm':
			all, err := s.Privileges(ctx, name)
			if err != nil {
				return err
			}
			known := false
			for _, p := range all {
				known = known || p.Program == program
			}
			if !known {
				return fmt.Errorf("%s may not run %s yet: -i lets it", name, program)
			}
		}
		if len(operands) < 2 {
			return fmt.Errorf("usage: vpriv -%c PROGRAM USER SWITCHES, where SWITCHES is a pattern such as '*'", letter)
		}
		return s.Grant(ctx, directory.Privilege{Admin: name, Program: program, Switches: switches})
	}
	return nil
}

// adminPrograms are IndiMail's names for these.
func (app *App) adminPrograms() map[string]func([]string) int {
	return app.faces(map[string]oldProgram{
		"mgmtpass": {"-u USER [-a PASSWORD|-] [-p PASSWORD|-] [-i], or -l", 0, 0, "u:a:p:il", func(ctx context.Context, data string, _ []string, options map[byte]string) error {
			return app.withDirectory(ctx, data, func(s *directory.Store) error { return app.manage(ctx, data, s, options) })
		}},
		"vpriv": {"-s|-a|-D|-d PROGRAM|-i PROGRAM|-m PROGRAM USER [SWITCHES]", 1, 2, "vsaDd:i:m:", func(ctx context.Context, data string, operands []string, options map[byte]string) error {
			return app.withDirectory(ctx, data, func(s *directory.Store) error {
				return app.privilege(ctx, s, operands, options)
			})
		}},
	})
}
