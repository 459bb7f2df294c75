package cli

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/addr"
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

func (app *App) domainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "domain",
		Short:   "Add, list and remove virtual domains",
		Example: "  indigo domain add example.org\n  indigo domain list --json\n  indigo domain remove example.org",
	}
	var postmaster password
	add := &cobra.Command{Use: "add DOMAIN", Short: "Add a domain and its postmaster", Example: "  indigo domain add example.org --password-file pw", Args: cobra.ExactArgs(1)}
	addData := app.dataFlag(add)
	passwordFlags(add, &postmaster)
	var base, quota, catchAll string
	var most int
	var etrn bool
	var etrnClient string
	add.Flags().BoolVar(&etrn, "etrn", false, "collect all of its mail in DATA/autoturn/DOMAIN/Maildir, for a host that fetches it; there are no users")
	add.Flags().StringVar(&etrnClient, "etrn-client", "", "the same in DATA/autoturn/ADDRESS/Maildir, which the domains of that host share")
	add.Flags().StringVar(&base, "base", "", `directory for the homes of its users, in the place of BASE_PATH and of the file systems of "indigo storage"`)
	add.Flags().StringVar(&quota, "quota", "", "postmaster's quota: 52428800, or 52428800S,1000C")
	add.Flags().StringVar(&catchAll, "catch-all", "", "address that gets what is for none of its users; to undo: indigo alias remove '*@DOMAIN'")
	add.Flags().IntVar(&most, "homes-per-directory", 0, "most homes in one directory (default 100)")
	add.RunE = func(cmd *cobra.Command, args []string) error {
		if etrn || etrnClient != "" {
			return app.addAutoturn(cmd.Context(), *addData, args[0], etrnClient)
		}
		return app.addDomain(cmd.Context(), *addData, directory.NewDomain{Name: args[0], Base: base, PerLevel: most}, quota, catchAll, postmaster)
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
	remove := &cobra.Command{Use: "remove DOMAIN", Short: "Remove a domain with all its users; they and their mail go to the trash", Example: "  indigo domain remove example.org --yes", Args: cobra.ExactArgs(1)}
	removeData := app.dataFlag(remove)
	remove.Flags().BoolVar(&yes, "yes", false, "do not ask")
	remove.RunE = func(cmd *cobra.Command, args []string) error {
		return app.removeDomain(cmd.Context(), *removeData, args[0], yes)
	}
	cmd.AddCommand(add, list, remove, app.domainRenameCommand(), app.domainReorganizeCommand(), app.domainAliasCommand(), app.domainInfoCommand(), app.domainIPCommand(), app.domainBulletinCommand())
	return cmd
}

// addDomain adds a domain with a postmaster, whose quota is "" for the domain's. catchAll gets what is for nobody of it, "" for no one.
func (app *App) addDomain(ctx context.Context, data string, n directory.NewDomain, quota, catchAll string, postmaster password) error {
	n.Name = addr.FoldDomain(n.Name)
	name := n.Name
	if err := homesAllowed(data, n.Dir, n.Base); err != nil {
		return err
	}
	who := addr.Address{Local: "postmaster", Domain: name}
	var tell func()
	err := app.withDirectory(ctx, data, func(s *directory.Store) error {
		if err := s.MakeDomain(ctx, n); err != nil {
			return err
		}
		passwd, kept, told, err := app.forms(ctx, data, who, postmaster)
		if tell = told; err == nil {
			err = s.AddUser(ctx, directory.NewUser{Name: who.Local, Domain: name, Password: passwd, Scram: kept, Gecos: "Postmaster", Quota: quota})
		}
		if err == nil && catchAll != "" {
			err = app.catchAll(ctx, s, name, catchAll)
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
	tell()
	return app.after(ctx, data, "vadddomain", name)
}

// addAutoturn adds a domain whose mail waits for its host; client is that host's address, "" when it is to be found by the domain's MX. The control files
// that vadddomain adds such a domain to get it too (wiki 1610).
func (app *App) addAutoturn(ctx context.Context, data, name, client string) error {
	if client != "" {
		ip, err := netip.ParseAddr(client)
		if err != nil {
			return fmt.Errorf("the host's address %q: %w", client, err)
		}
		client = strings.ReplaceAll(ip.Unmap().String(), ":", "_")
	}
	name = addr.FoldDomain(name)
	err := app.withDirectory(ctx, data, func(s *directory.Store) error {
		if err := s.MakeDomain(ctx, directory.NewDomain{Name: name, Autoturn: cmp.Or(client, name)}); err != nil {
			return err
		}
		d, err := s.Domain(ctx, name)
		if err == nil {
			fmt.Fprintf(app.Out, "the mail of %s waits in %s\n", name, filepath.Join(d.Dir, "Maildir"))
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := app.listAutoturn(data, name); err != nil {
		return fmt.Errorf("the domain is added; %w", err)
	}
	return app.after(ctx, data, "vadddomain", name)
}

// listAutoturn adds an autoturn domain to the control files for those.
func (app *App) listAutoturn(data, name string) error {
	for _, file := range autoturnFiles() {
		if err := settings.AddLine(data, file, name); err != nil {
			return fmt.Errorf("control/%s: %w", file, err)
		}
		fmt.Fprintf(app.Out, "adding %s to %s control file\n", name, filepath.Join(data, "control", file))
	}
	return nil
}

// unlistAutoturn is its counterpart.
func unlistAutoturn(data, name string) error {
	for _, file := range autoturnFiles() {
		if err := settings.RemoveLine(data, file, name); err != nil {
			return fmt.Errorf("control/%s: %w", file, err)
		}
	}
	return nil
}

// isAutoturn tells whether a domain's mail waits for its host.
func isAutoturn(data string, d directory.Domain) bool {
	absolute, err := filepath.Abs(data)
	return err == nil && filepath.Dir(filepath.Clean(d.Dir)) == filepath.Join(absolute, "autoturn")
}

// autoturnFiles are the control files that name autoturn domains.
func autoturnFiles() []string { return []string{"spamignore", "nodnscheck"} }

func (app *App) removeDomain(ctx context.Context, data, name string, yes bool) error {
	err := app.withDirectory(ctx, data, func(s *directory.Store) error {
		d, err := s.Domain(ctx, name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if d.Name != addr.FoldDomain(name) {
			if err := app.confirm(yes, fmt.Sprintf("Remove %s, an alias of the domain %s, which stays?", name, d.Name)); err != nil {
				return err
			}
			return s.RemoveAliasDomain(ctx, name)
		}
		also := ""
		others, err := s.AliasDomains(ctx, d.Name)
		if err != nil {
			return err
		}
		for _, o := range others {
			also += ", its alias " + o.Alias
		}
		users, err := s.Users(ctx, name, "", 10)
		if err != nil {
			return err
		}
		var names []string
		for _, u := range users {
			names = append(names, u.Address().String())
		}
		if err := app.confirm(yes, fmt.Sprintf("Remove the domain %s with its users (%s …), their aliases%s?", name, strings.Join(names, ", "), also)); err != nil {
			return err
		}
		trash, err := s.RemoveDomain(ctx, name)
		if err == nil && isAutoturn(data, d) {
			if err := unlistAutoturn(data, d.Name); err != nil {
				return fmt.Errorf("the domain is removed; %w", err)
			}
		}
		if err == nil && trash != "" {
			fmt.Fprintf(app.Out, "it is in %s; to undo: indigo trash restore %s\n", trash, filepath.Base(trash))
		}
		return err
	})
	if err != nil {
		return err
	}
	return app.after(ctx, data, "vdeldomain", name)
}

// autoturnDomain tells whether a name is that of a domain whose mail waits for its host.
func (app *App) autoturnDomain(ctx context.Context, data, name string) (is bool, err error) {
	err = app.withDirectory(ctx, data, func(s *directory.Store) error {
		d, err := s.Domain(ctx, name)
		is = err == nil && d.Name == strings.ToLower(name) && isAutoturn(data, d)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	return is, err
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
	var gecos, base, quota string
	var added, changed password
	var yes, asJSON, inactive bool
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
		return app.addUser(ctx, data, directory.NewUser{Name: a.Local, Domain: a.Domain, Gecos: gecos, Quota: quota, Base: base, Inactive: inactive}, added)
	})
	add.Flags().StringVar(&gecos, "name", "", "the person's name")
	add.Flags().StringVar(&quota, "quota", "", "the quota: 52428800, or 52428800S,1000C, or NOQUOTA (default: the domain's)")
	add.Flags().StringVar(&base, "base", "", "directory below which the home is made (default: the domain's)")
	add.Flags().BoolVar(&inactive, "inactive", false, "mark the user inactive: mail is refused until the first login by POP3 or IMAP")
	passwd := sub("passwd ADDRESS", "Set a user's password", "  indigo user passwd alice@example.org --password-file -", func(ctx context.Context, data string, a addr.Address) error {
		return app.setPassword(ctx, data, a, changed)
	})
	passwordFlags(add, &added)
	passwordFlags(passwd, &changed)
	info := sub("info ADDRESS", "Show a user", "  indigo user info alice@example.org --json", func(ctx context.Context, data string, a addr.Address) error {
		return app.userInfo(ctx, data, a, asJSON)
	})
	info.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	remove := sub("remove ADDRESS", "Remove a user, who goes to the trash with the mail", "  indigo user remove alice@example.org --yes", func(ctx context.Context, data string, a addr.Address) error {
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
	cmd.AddCommand(list, app.userModifyCommand(), app.userQuotaCommand(), app.userFlagsCommand(), app.userRenameCommand(), app.userMoveCommand(), app.userInactiveCommand(), app.userImportCommand(), app.userExportCommand(), app.appPasswordCommand())
	cmd.AddCommand(app.userActiveCommands()...)
	return cmd
}

// addUser adds a user; the password is asked for when all else is well.
func (app *App) addUser(ctx context.Context, data string, n directory.NewUser, p password) error {
	a := n.Address()
	if err := homesAllowed(data, n.Base); err != nil {
		return err
	}
	err := app.withDirectory(ctx, data, func(s *directory.Store) error {
		if _, err := s.AnyUser(ctx, a); err == nil {
			return fmt.Errorf("%s: %w", a, directory.ErrExists)
		}
		if _, err := s.Domain(ctx, a.Domain); err != nil {
			return fmt.Errorf("domain %s: %w", a.Domain, err)
		}
		passwd, kept, tell, err := app.forms(ctx, data, a, p)
		if err != nil {
			return err
		}
		n.Password, n.Scram = passwd, kept
		if err := s.AddUser(ctx, n); err != nil {
			return err
		}
		tell()
		return app.noteOwnMailbox(ctx, s, a)
	})
	if err != nil {
		return err
	}
	return app.after(ctx, data, "vadduser", a.String())
}

func (app *App) setPassword(ctx context.Context, data string, a addr.Address, p password) error {
	err := app.withDirectory(ctx, data, func(s *directory.Store) error {
		if _, err := s.User(ctx, a); err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
		passwd, kept, tell, err := app.forms(ctx, data, a, p)
		if err != nil {
			return err
		}
		if err := s.SetPassword(ctx, a, passwd, kept); err != nil {
			return err
		}
		tell()
		return nil
	})
	if err != nil {
		return err
	}
	return app.after(ctx, data, "vpasswd", a.String())
}

func (app *App) removeUser(ctx context.Context, data string, a addr.Address, yes bool) error {
	err := app.withDirectory(ctx, data, func(s *directory.Store) error {
		u, err := s.AnyUser(ctx, a)
		if err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
		question := fmt.Sprintf("Remove the user %s?", a)
		lines, err := s.Aliases(ctx, a)
		if err == nil {
			question = fmt.Sprintf("Remove the user %s and what his address stands for (%s)?", a, strings.Join(lines, ", "))
		} else if !errors.Is(err, directory.ErrNoAlias) {
			return err
		}
		pointing, err := s.AliasesTo(ctx, a, 100)
		if err != nil {
			return err
		}
		if err := app.confirm(yes, question); err != nil {
			return err
		}
		for _, one := range pointing {
			if one.Address().Key() != u.Address().Key() {
				fmt.Fprintf(app.Err, "warning: the alias %s still sends to %s: `indigo alias remove %[1]s '%[3]s'`\n", one.Address(), a, one.Line)
			}
		}
		trash, err := s.RemoveUser(ctx, a)
		if err == nil && trash != "" {
			fmt.Fprintf(app.Out, "the mail is in %s; to undo: indigo trash restore %s\n", trash, filepath.Base(trash))
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
	// options are the letters that are known; one with a colon behind it takes a value, with two of them several, which are then lines of
	// one. Those of IndiMail's that have no effect are errors, never silence: instead says why.
	options string
	run     func(ctx context.Context, data string, operands []string, options map[byte]string) error
}

// unknownOption is the error of an option that is not known.
type unknownOption byte

func (e unknownOption) Error() string { return fmt.Sprintf("unknown option -%c", byte(e)) }

// parseOldOptions splits arguments as getopt(3) does.
func parseOldOptions(args []string, known string) (options map[byte]string, operands []string, err error) {
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
				if before, again := options[letter]; again && strings.HasPrefix(known[i+1:], "::") {
					word = before + "\n" + word
				}
				options[letter], word = word, ""
			case letter != ':' && i >= 0:
				options[letter] = ""
			default:
				return nil, nil, unknownOption(letter)
			}
		}
	}
	return options, args, nil
}

// directoryPrograms are IndiMail's names for the commands on domains and users.
func (app *App) directoryPrograms() map[string]func([]string) int {
	operand := func(operands []string) string {
		if len(operands) > 1 {
			return operands[1]
		}
		return ""
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
		"vadddomain": {passwordUsage + " [-q QUOTA] [-B BASE] [-d DIRECTORY] [-l USERS] [-E ADDRESS] [-bORv] DOMAIN [PASSWORD|-], or [-u USER] -t|-T ADDRESS DOMAIN", 1, 2, oldPasswordOptions + "q:B:d:l:bORvtT:u:E:", func(ctx context.Context, data string, operands []string, options map[byte]string) error {
			_, byMX := options['t']
			client, byAddress := options['T']
			if _, user := options['u']; user && !byMX && !byAddress {
				return errors.New("option -u has no effect in Indigo: the mail belongs to the data directory's owner; nothing was done")
			}
			if byMX || byAddress {
				if len(operands) > 1 {
					return errors.New("a domain whose mail waits for its host has no postmaster and no password")
				}
				return app.addAutoturn(ctx, data, operands[0], client)
			}
			p, err := oldPassword(operand(operands), options)
			if err != nil {
				return err
			}
			n := directory.NewDomain{Name: operands[0], Base: options['B']}
			if dir, given := options['d']; given {
				n.Dir = filepath.Join(dir, "domains", strings.ToLower(n.Name))
			}
			if text, given := options['l']; given {
				if n.PerLevel, err = strconv.Atoi(text); err != nil || n.PerLevel < 1 {
					return fmt.Errorf("-l %q is no number from 1 up", text)
				}
			}
			return app.addDomain(ctx, data, n, options['q'], options['E'], p)
		}},
		"vdeldomain": {"[-cTv] DOMAIN", 1, 1, "cTv", func(ctx context.Context, data string, operands []string, options map[byte]string) error {
			if _, waiting := options['T']; waiting {
				if is, err := app.autoturnDomain(ctx, data, operands[0]); err != nil || !is {
					return errors.Join(err, fmt.Errorf("%s is no domain whose mail waits for its host; without -T it is removed with its users", operands[0]))
				}
			}
			return app.removeDomain(ctx, data, operands[0], true)
		}},
		"vadduser": {passwordUsage + " [-c NAME] [-q QUOTA] [-B BASE] [-bdiv] USER@DOMAIN [PASSWORD|-]", 1, 2, oldPasswordOptions + "c:q:B:dvbi", onUser(func(ctx context.Context, data string, a addr.Address, operands []string, options map[byte]string) error {
			name, given := options['c']
			if !given {
				name = a.Local
			}
			p, err := oldPassword(operand(operands), options)
			if err != nil {
				return err
			}
			_, inactive := options['i']
			return app.thenInfo(ctx, data, "vadduser", a, app.addUser(ctx, data, directory.NewUser{Name: a.Local, Domain: a.Domain, Gecos: name, Quota: options['q'], Base: options['B'], Inactive: inactive}, p))
		})},
		"vpasswd": {passwordUsage + " [-v] USER@DOMAIN [PASSWORD|-]", 1, 2, oldPasswordOptions + "v", onUser(func(ctx context.Context, data string, a addr.Address, operands []string, options map[byte]string) error {
			p, err := oldPassword(operand(operands), options)
			if err != nil {
				return err
			}
			return app.thenInfo(ctx, data, "vpasswd", a, app.setPassword(ctx, data, a, p))
		})},
		"vuserinfo": {"[-anpugcdqlf] USER@DOMAIN|-D DOMAIN", 0, 1, "acdfglnpquD:", app.oldUserInfo},
		"incrypt": {"[-h HASH] [-S SALT] PASSWORD|-", 1, 1, "h:S:", func(_ context.Context, _ string, operands []string, options map[byte]string) error {
			return app.incrypt(operands[0], options)
		}},
		"install_tables": {"", 0, 0, "", func(ctx context.Context, data string, _ []string, _ map[byte]string) error {
			return app.installTables(ctx, data)
		}},
		"vdeluser": {"[-v] USER@DOMAIN", 1, 1, "v", onUser(func(ctx context.Context, data string, a addr.Address, _ []string, _ map[byte]string) error {
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
			options, operands, err := parseOldOptions(args, p.options)
			var unknown unknownOption
			if errors.As(err, &unknown) {
				if why := instead(name, byte(unknown)); why != "" {
					err = fmt.Errorf("option -%c has no effect in Indigo: %s; nothing was done", byte(unknown), why)
				}
			}
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
