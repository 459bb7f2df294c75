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
	store, err := service.OpenDirectory(ctx, data, app.who())
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
	err := app.withDirectory(ctx, data, func(s *directory.Store) error {
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
	if err != nil {
		return err
	}
	return app.after(ctx, data, "vadddomain", name)
}

func (app *App) removeDomain(ctx context.Context, data, name string, yes bool) error {
	err := app.withDirectory(ctx, data, func(s *directory.Store) error {
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
	if err != nil {
		return err
	}
	return app.after(ctx, data, "vdeldomain", name)
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
	cmd.AddCommand(list, app.userModifyCommand(), app.userFlagsCommand(), app.userImportCommand(), app.userExportCommand())
	return cmd
}

func (app *App) addUser(ctx context.Context, data string, a addr.Address, gecos string, password func() (string, error)) error {
	err := app.withDirectory(ctx, data, func(s *directory.Store) error {
		if _, err := s.User(ctx, a); err == nil {
			return fmt.Errorf("%s: %w", a, directory.ErrExists)
		}
		hash, err := password()
		if err != nil {
			return err
		}
		return s.AddUser(ctx, directory.NewUser{Name: a.Local, Domain: a.Domain, Password: hash, Gecos: gecos})
	})
	if err != nil {
		return err
	}
	return app.after(ctx, data, "vadduser", a.String())
}

func (app *App) setPassword(ctx context.Context, data string, a addr.Address, password func() (string, error)) error {
	err := app.withDirectory(ctx, data, func(s *directory.Store) error {
		if _, err := s.User(ctx, a); err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
		hash, err := password()
		if err != nil {
			return err
		}
		return s.SetPassword(ctx, a, hash)
	})
	if err != nil {
		return err
	}
	return app.after(ctx, data, "vpasswd", a.String())
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
		return app.printUser(u, nil)
	})
}

// userFields prints those fields of a user that vuserinfo's options name, or all.
func (app *App) userFields(ctx context.Context, data string, a addr.Address, options map[byte]string) error {
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		u, err := s.User(ctx, a)
		if err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
		return app.printUser(u, options)
	})
}

func (app *App) printUser(u directory.User, options map[byte]string) error {
	for _, field := range []struct {
		letter byte
		label  string
		value  any
	}{{0, "email", u.Address()}, {'u', "uid", u.UID}, {'g', "gid", u.GID}, {'c', "gecos", u.Gecos}, {'d', "userdir", u.Dir}, {'q', "quota", u.Quota}} {
		if _, wanted := options[field.letter]; len(options) > 0 && !wanted {
			continue
		}
		if _, err := fmt.Fprintf(app.Out, "%-12s: %v\n", field.label, field.value); err != nil {
			return err
		}
	}
	return nil
}

func (app *App) removeUser(ctx context.Context, data string, a addr.Address, yes bool) error {
	err := app.withDirectory(ctx, data, func(s *directory.Store) error {
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
	if err != nil {
		return err
	}
	return app.after(ctx, data, "vdeluser", a.String())
}

// oldProgram is one of IndiMail's programs: operands in its order, and those of its one-letter options that have effect
// here. A password operand of "-" is read from standard input, which keeps it out of the list of processes.
type oldProgram struct {
	usage       string
	least, most int
	// options are the letters that are known; one with a colon behind it takes a value. later are those of IndiMail's that
	// have no effect yet, which is an error and never silence.
	options, later string
	run            func(ctx context.Context, data string, operands []string, options map[byte]string) error
}

// parseOldOptions splits arguments as getopt(3) does.
func parseOldOptions(args []string, known, later string) (options map[byte]string, operands []string, err error) {
	options = map[byte]string{}
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' {
		word := args[0][1:]
		if args = args[1:]; word == "-" {
			break
		}
		for word != "" {
			letter := word[0]
			word = word[1:]
			i := strings.IndexByte(known, letter)
			switch {
			case letter != ':' && i >= 0 && i+1 < len(known) && known[i+1] == ':':
				if word == "" {
					if len(args) == 0 {
						return nil, nil, fmt.Errorf("option -%c needs a value", letter)
					}
					word, args = args[0], args[1:]
				}
				options[letter], word = word, ""
			case letter != ':' && i >= 0:
				options[letter] = ""
			case strings.IndexByte(later, letter) >= 0:
				return nil, nil, fmt.Errorf("option -%c has no effect in Indigo yet; nothing was done", letter)
			default:
				return nil, nil, fmt.Errorf("unknown option -%c", letter)
			}
		}
	}
	return options, args, nil
}

// stored checks a password that is given in its stored form.
func stored(form string) (string, error) {
	for _, prefix := range []string{"$argon2id$", "$2a$", "$2b$", "$2y$", "$6$", "$5$", "$1$"} {
		if strings.HasPrefix(form, prefix) {
			return form, nil
		}
	}
	return "", errors.New("with -e the password must be in a stored form: $6$, $5$, $1$, bcrypt or argon2id")
}

// directoryPrograms are IndiMail's names for the commands on domains and users.
func (app *App) directoryPrograms() map[string]func([]string) int {
	password := func(operands []string, options map[byte]string, who string) func() (string, error) {
		return func() (string, error) {
			_, isStored := options['e']
			_, random := options['r']
			switch {
			case isStored && len(operands) < 2:
				return "", errors.New("with -e the stored form of the password must be given")
			case random && len(operands) > 1:
				return "", errors.New("with -r there must be no password")
			case isStored:
				return stored(operands[1])
			case len(operands) < 2:
				return app.newPassword("", who)
			case operands[1] == "-":
				return app.newPassword("-", who)
			}
			return auth.HashPassword(operands[1])
		}
	}
	type userRun func(ctx context.Context, data string, a addr.Address, operands []string, options map[byte]string) error
	onUser := func(run userRun) func(context.Context, string, []string, map[byte]string) error {
		return func(ctx context.Context, data string, operands []string, options map[byte]string) error {
			a, err := addr.Parse(operands[0])
			if err != nil {
				return err
			}
			return run(ctx, data, a, operands, options)
		}
	}
	programs := map[string]oldProgram{
		"vadddomain": {"[-e] [-r] DOMAIN [PASSWORD|-]", 1, 2, "er", "abBdDfghimoOpqRtTu", func(ctx context.Context, data string, operands []string, options map[byte]string) error {
			return app.addDomain(ctx, data, operands[0], password(operands, options, "postmaster@"+operands[0]))
		}},
		"vdeldomain": {"DOMAIN", 1, 1, "", "acp", func(ctx context.Context, data string, operands []string, _ map[byte]string) error {
			return app.removeDomain(ctx, data, operands[0], true)
		}},
		"vadduser": {"[-e] [-r] [-c NAME] USER@DOMAIN [PASSWORD|-]", 1, 2, "erc:", "aBdDfghikmnoqsStT", onUser(func(ctx context.Context, data string, a addr.Address, operands []string, options map[byte]string) error {
			name, given := options['c']
			if !given {
				name = a.Local
			}
			return app.addUser(ctx, data, a, name, password(operands, options, a.String()))
		})},
		"vpasswd": {"[-e] [-r] USER@DOMAIN [PASSWORD|-]", 1, 2, "er", "CDhimS", onUser(func(ctx context.Context, data string, a addr.Address, operands []string, options map[byte]string) error {
			return app.setPassword(ctx, data, a, password(operands, options, a.String()))
		})},
		"vuserinfo": {"[-cdgqu] USER@DOMAIN", 1, 1, "cdgqu", "aADfhilmpPxX", onUser(func(ctx context.Context, data string, a addr.Address, _ []string, options map[byte]string) error {
			return app.userFields(ctx, data, a, options)
		})},
		"install_tables": {"", 0, 0, "", "d", func(ctx context.Context, data string, _ []string, _ map[byte]string) error {
			return app.installTables(ctx, data)
		}},
		"vdeluser": {"USER@DOMAIN", 1, 1, "", "ad", onUser(func(ctx context.Context, data string, a addr.Address, _ []string, _ map[byte]string) error {
			return app.removeUser(ctx, data, a, true)
		})},
	}
	return app.faces(programs)
}

// faces gives the programs the form in which Main calls them.
func (app *App) faces(programs map[string]oldProgram) map[string]func([]string) int {
	faces := make(map[string]func([]string) int, len(programs))
	for name, p := range programs {
		faces[name] = func(args []string) int {
			options, operands, err := parseOldOptions(args, p.options, p.later)
			if err == nil && (len(operands) < p.least || len(operands) > p.most) {
				err = fmt.Errorf("usage: %s %s", name, p.usage)
			}
			if err == nil {
				err = p.run(context.Background(), settings.FromEnvironment().Data, operands, options)
			}
			var code exitCode
			if errors.As(err, &code) {
				return int(code)
			}
			if err != nil {
				fmt.Fprintf(app.Err, "%s: %v\n", name, err)
				return 1
			}
			return 0
		}
	}
	return faces
}
