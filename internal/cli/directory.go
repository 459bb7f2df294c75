package cli

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/service"
	"github.com/indigomail/indigo/internal/settings"
)

// withDirectory opens the directory of data for one command. A running instance sees what changed within 0.1 s.
func (app *App) withDirectory(ctx context.Context, data string, use func(*directory.Store) error) error {
	store, err := service.OpenDirectory(ctx, data)
	if err != nil {
		return err
	}
	return errors.Join(use(store), store.Close())
}

// confirm asks before something is removed; yes answers for scripts.
func (app *App) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	fmt.Fprintf(app.Err, "%s [y/N] ", question)
	line, err := bufio.NewReader(app.In).ReadString('\n')
	if err != nil || !strings.EqualFold(strings.TrimSpace(line), "y") {
		return errors.New("nothing was changed")
	}
	return nil
}

// newPassword reads a password, or makes one up and says so; the hash is what is stored.
func (app *App) newPassword(file, who string) (hash string, err error) {
	password := ""
	if file != "" {
		if password, err = app.readPassword(file); err != nil {
			return "", err
		}
	} else {
		password = rand.Text()
		fmt.Fprintf(app.Out, "password of %s: %s\n", who, password)
	}
	return auth.HashPassword(password)
}

func (app *App) domainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "domain",
		Short:   "Add, list and remove virtual domains",
		Example: "  indigo domain add example.org\n  indigo domain list --json\n  indigo domain remove example.org",
	}
	var passwordFile string
	add := &cobra.Command{Use: "add DOMAIN", Short: "Add a domain and its postmaster", Example: "  indigo domain add example.org --password-file pw", Args: cobra.ExactArgs(1)}
	addData := app.dataFlag(add)
	add.Flags().StringVar(&passwordFile, "password-file", "", "file with postmaster's password, - for standard input (default: one is made up and printed)")
	add.RunE = func(cmd *cobra.Command, args []string) error {
		return app.addDomain(cmd.Context(), *addData, args[0], func() (string, error) { return app.newPassword(passwordFile, "postmaster@"+args[0]) })
	}
	var asJSON bool
	list := &cobra.Command{Use: "list", Short: "List the domains", Example: "  indigo domain list", Args: cobra.NoArgs}
	listData := app.dataFlag(list)
	list.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	list.RunE = func(cmd *cobra.Command, _ []string) error {
		return app.withDirectory(cmd.Context(), *listData, func(s *directory.Store) error {
			domains, err := s.Domains(cmd.Context())
			if err != nil {
				return err
			}
			names := []string{}
			for _, d := range domains {
				names = append(names, d.Name)
			}
			if asJSON {
				return json.NewEncoder(app.Out).Encode(names)
			}
			for _, n := range names {
				fmt.Fprintln(app.Out, n)
			}
			return nil
		})
	}
	var yes bool
	remove := &cobra.Command{Use: "remove DOMAIN", Short: "Remove a domain with all its users; their mail goes to the trash", Example: "  indigo domain remove example.org --yes", Args: cobra.ExactArgs(1)}
	removeData := app.dataFlag(remove)
	remove.Flags().BoolVar(&yes, "yes", false, "do not ask")
	remove.RunE = func(cmd *cobra.Command, args []string) error {
		return app.removeDomain(cmd.Context(), *removeData, args[0], yes)
	}
	cmd.AddCommand(add, list, remove)
	return cmd
}

func (app *App) addDomain(ctx context.Context, data, name string, password func() (string, error)) error {
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		if err := s.AddDomain(ctx, name); err != nil {
			return err
		}
		hash, err := password()
		if err == nil {
			err = s.AddUser(ctx, directory.NewUser{Name: "postmaster", Domain: name, Password: hash, Gecos: "Postmaster"})
		}
		if err != nil {
			_, undo := s.RemoveDomain(ctx, name)
			return errors.Join(err, undo)
		}
		return nil
	})
}

func (app *App) removeDomain(ctx context.Context, data, name string, yes bool) error {
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		if _, err := s.Domain(ctx, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		users, err := s.Users(ctx, name, "", 10)
		if err != nil {
			return err
		}
		var names []string
		for _, u := range users {
			names = append(names, u.Address().String())
		}
		if err := app.confirm(yes, fmt.Sprintf("Remove the domain %s with its users (%s …)?", name, strings.Join(names, ", "))); err != nil {
			return err
		}
		trash, err := s.RemoveDomain(ctx, name)
		if err == nil && trash != "" {
			fmt.Fprintf(app.Out, "its mail is in %s\n", trash)
		}
		return err
	})
}

// listedUser is a user without secrets.
type listedUser struct {
	Address string `json:"address"`
	Name    string `json:"name"`
	Dir     string `json:"dir"`
	Quota   string `json:"quota"`
}

func (app *App) userCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "user",
		Short:   "Add, list, show and remove users, and set their passwords",
		Example: "  indigo user add alice@example.org\n  indigo user passwd alice@example.org --password-file -\n  indigo user list example.org",
	}
	var passwordFile, gecos string
	var yes, asJSON bool
	sub := func(use, short, example string, run func(ctx context.Context, data string, a addr.Address) error) *cobra.Command {
		c := &cobra.Command{Use: use, Short: short, Example: example, Args: cobra.ExactArgs(1)}
		data := app.dataFlag(c)
		c.RunE = func(cmd *cobra.Command, args []string) error {
			a, err := addr.Parse(args[0])
			if err != nil {
				return err
			}
			return run(cmd.Context(), *data, a)
		}
		cmd.AddCommand(c)
		return c
	}
	add := sub("add ADDRESS", "Add a user", "  indigo user add alice@example.org --password-file pw", func(ctx context.Context, data string, a addr.Address) error {
		return app.addUser(ctx, data, a, gecos, func() (string, error) { return app.newPassword(passwordFile, a.String()) })
	})
	add.Flags().StringVar(&gecos, "name", "", "the person's name")
	passwd := sub("passwd ADDRESS", "Set a user's password", "  indigo user passwd alice@example.org --password-file -", func(ctx context.Context, data string, a addr.Address) error {
		return app.setPassword(ctx, data, a, func() (string, error) { return app.newPassword(passwordFile, a.String()) })
	})
	for _, c := range []*cobra.Command{add, passwd} {
		c.Flags().StringVar(&passwordFile, "password-file", "", "file with the password, - for standard input (default: one is made up and printed)")
	}
	info := sub("info ADDRESS", "Show a user", "  indigo user info alice@example.org --json", func(ctx context.Context, data string, a addr.Address) error {
		return app.userInfo(ctx, data, a, asJSON)
	})
	info.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	remove := sub("remove ADDRESS", "Remove a user; the mail goes to the trash", "  indigo user remove alice@example.org --yes", func(ctx context.Context, data string, a addr.Address) error {
		return app.removeUser(ctx, data, a, yes)
	})
	remove.Flags().BoolVar(&yes, "yes", false, "do not ask")
	list := &cobra.Command{Use: "list DOMAIN", Short: "List the users of a domain", Example: "  indigo user list example.org", Args: cobra.ExactArgs(1)}
	listData := app.dataFlag(list)
	list.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	list.RunE = func(cmd *cobra.Command, args []string) error {
		return app.withDirectory(cmd.Context(), *listData, func(s *directory.Store) error {
			all := []listedUser{}
			for after := ""; ; {
				users, err := s.Users(cmd.Context(), args[0], after, 1000)
				if err != nil {
					return err
				}
				for _, u := range users {
					all = append(all, listedUser{u.Address().String(), u.Gecos, u.Dir, u.Quota})
					after = u.Name
				}
				if len(users) < 1000 {
					break
				}
			}
			if asJSON {
				return json.NewEncoder(app.Out).Encode(all)
			}
			w := tabwriter.NewWriter(app.Out, 0, 0, 2, ' ', 0)
			for _, u := range all {
				fmt.Fprintf(w, "%s\t%s\t%s\n", u.Address, u.Name, u.Dir)
			}
			return w.Flush()
		})
	}
	cmd.AddCommand(list)
	return cmd
}

func (app *App) addUser(ctx context.Context, data string, a addr.Address, gecos string, password func() (string, error)) error {
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		if _, err := s.User(ctx, a); err == nil {
			return fmt.Errorf("%s: %w", a, directory.ErrExists)
		}
		hash, err := password()
		if err != nil {
			return err
		}
		return s.AddUser(ctx, directory.NewUser{Name: a.Local, Domain: a.Domain, Password: hash, Gecos: gecos})
	})
}

func (app *App) setPassword(ctx context.Context, data string, a addr.Address, password func() (string, error)) error {
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		if _, err := s.User(ctx, a); err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
		hash, err := password()
		if err != nil {
			return err
		}
		return s.SetPassword(ctx, a, hash)
	})
}

func (app *App) userInfo(ctx context.Context, data string, a addr.Address, asJSON bool) error {
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		u, err := s.User(ctx, a)
		if err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
		if asJSON {
			return json.NewEncoder(app.Out).Encode(listedUser{u.Address().String(), u.Gecos, u.Dir, u.Quota})
		}
		_, err = fmt.Fprintf(app.Out, "email       : %s\nuid         : %d\ngid         : %d\ngecos       : %s\nuserdir     : %s\nquota       : %s\n", u.Address(), u.UID, u.GID, u.Gecos, u.Dir, u.Quota)
		return err
	})
}

func (app *App) removeUser(ctx context.Context, data string, a addr.Address, yes bool) error {
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		if _, err := s.User(ctx, a); err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
		if err := app.confirm(yes, fmt.Sprintf("Remove the user %s?", a)); err != nil {
			return err
		}
		trash, err := s.RemoveUser(ctx, a)
		if err == nil && trash != "" {
			fmt.Fprintf(app.Out, "the mail is in %s\n", trash)
		}
		return err
	})
}

// directoryPrograms are IndiMail's names for the same: operands in its order, no options yet. A password operand of "-"
// is read from standard input, which keeps it out of the list of processes.
func (app *App) directoryPrograms() map[string]func([]string) int {
	program := func(name, usage string, least, most int, run func(ctx context.Context, data string, args []string) error) func([]string) int {
		return func(args []string) int {
			if len(args) < least || len(args) > most || strings.HasPrefix(args[0], "-") {
				fmt.Fprintf(app.Err, "usage: %s %s\n", name, usage)
				return 1
			}
			if err := run(context.Background(), settings.FromEnvironment().Data, args); err != nil {
				fmt.Fprintf(app.Err, "%s: %v\n", name, err)
				return 1
			}
			return 0
		}
	}
	password := func(args []string, who string) func() (string, error) {
		return func() (string, error) {
			if len(args) < 2 {
				return app.newPassword("", who)
			}
			if args[1] == "-" {
				return app.newPassword("-", who)
			}
			return auth.HashPassword(args[1])
		}
	}
	onUser := func(run func(ctx context.Context, data string, a addr.Address, args []string) error) func(context.Context, string, []string) error {
		return func(ctx context.Context, data string, args []string) error {
			a, err := addr.Parse(args[0])
			if err != nil {
				return err
			}
			return run(ctx, data, a, args)
		}
	}
	return map[string]func([]string) int{
		"vadddomain": program("vadddomain", "DOMAIN [PASSWORD|-]", 1, 2, func(ctx context.Context, data string, args []string) error {
			return app.addDomain(ctx, data, args[0], password(args, "postmaster@"+args[0]))
		}),
		"vdeldomain": program("vdeldomain", "DOMAIN", 1, 1, func(ctx context.Context, data string, args []string) error {
			return app.removeDomain(ctx, data, args[0], true)
		}),
		"vadduser": program("vadduser", "USER@DOMAIN [PASSWORD|-]", 1, 2, onUser(func(ctx context.Context, data string, a addr.Address, args []string) error {
			return app.addUser(ctx, data, a, a.Local, password(args, a.String()))
		})),
		"vpasswd": program("vpasswd", "USER@DOMAIN [PASSWORD|-]", 1, 2, onUser(func(ctx context.Context, data string, a addr.Address, args []string) error {
			return app.setPassword(ctx, data, a, password(args, a.String()))
		})),
		"vuserinfo": program("vuserinfo", "USER@DOMAIN", 1, 1, onUser(func(ctx context.Context, data string, a addr.Address, _ []string) error {
			return app.userInfo(ctx, data, a, false)
		})),
		"vdeluser": program("vdeluser", "USER@DOMAIN", 1, 1, onUser(func(ctx context.Context, data string, a addr.Address, _ []string) error {
			return app.removeUser(ctx, data, a, true)
		})),
	}
}
