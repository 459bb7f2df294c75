package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/instruct"
	"github.com/indigomail/indigo/internal/settings"
)

// aliasPage is how many lines are asked for at a time.
const aliasPage = 1000

// instructionLine gives the line for what is written on a command line: an address may lack its &.
func instructionLine(target string) string {
	target = strings.Trim(target, " \t")
	if target == "" || strings.ContainsRune("&|/.#", rune(target[0])) {
		return target
	}
	return "&" + target
}

// targetLine is instructionLine for a target of the alias a: a name without a domain is of the alias's, and a domain beyond ASCII gets its A-labels.
func targetLine(a addr.Address, target string) string {
	line := instructionLine(target)
	if in, err := instruct.Parse(line); err == nil && in.Kind == instruct.Forward {
		in.Address.Domain = cmp.Or(in.Address.Domain, a.Domain)
		return "&" + in.Address.String()
	}
	return line
}

// eachAlias gives every alias line of a domain, in the order of names and lines.
func eachAlias(ctx context.Context, s *directory.Store, domain string, use func(directory.Alias) error) error {
	for after := (directory.Alias{}); ; {
		page, err := s.AliasList(ctx, domain, after, aliasPage)
		if err != nil {
			return err
		}
		for _, a := range page {
			if err := use(a); err != nil {
				return err
			}
			after = a
		}
		if len(page) < aliasPage {
			return nil
		}
	}
}

// listedAlias is an address with its lines.
type listedAlias struct {
	Address string   `json:"address"`
	Lines   []string `json:"lines"`
	// User says that the address is a user's too, whose own mailbox a line with that address means.
	User bool `json:"user"`
}

func (app *App) aliasCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "alias",
		Short:   "Add, list, show and remove aliases: addresses whose mail goes elsewhere",
		Example: "  indigo alias add info@example.org alice@example.org bob@example.org\n  indigo alias list example.org",
	}
	add := &cobra.Command{
		Use:   "add ADDRESS TARGET...",
		Short: "Make an address an alias, or give it further targets",
		Long: `A target is an address (one of the same domain may lack it), '|COMMAND' for the shell, which gets each message on standard input,
or the path of a Maildir with a / at its end, in the domain's directory, of which ./ is short. All mail for the address goes to its
targets; that of a user goes to his own mailbox too when his own address is one of them. '*@DOMAIN' gets what is for nobody else of the
domain. Quote what the shell would understand itself. To undo: indigo alias remove ADDRESS TARGET.`,
		Example: "  indigo alias add info@example.org alice bob@elsewhere.test\n  indigo alias add tickets@example.org '|/usr/local/bin/ticket'\n  indigo alias add '*@example.org' postmaster",
		Args:    cobra.MinimumNArgs(2),
	}
	addData := app.dataFlag(add)
	add.RunE = func(cmd *cobra.Command, args []string) error {
		return app.addAlias(cmd.Context(), *addData, args[0], args[1:]...)
	}
	var yes, asJSON bool
	remove := &cobra.Command{
		Use: "remove ADDRESS [TARGET...]", Short: "Take targets away from an alias, or without any the whole alias",
		Example: "  indigo alias remove info@example.org bob@elsewhere.test\n  indigo alias remove info@example.org --yes", Args: cobra.MinimumNArgs(1),
	}
	removeData := app.dataFlag(remove)
	remove.Flags().BoolVar(&yes, "yes", false, "do not ask")
	remove.RunE = func(cmd *cobra.Command, args []string) error {
		return app.removeAlias(cmd.Context(), *removeData, args[0], yes, args[1:]...)
	}
	list := &cobra.Command{Use: "list DOMAIN", Short: "List the aliases of a domain", Example: "  indigo alias list example.org --json", Args: cobra.ExactArgs(1)}
	listData := app.dataFlag(list)
	list.RunE = func(cmd *cobra.Command, args []string) error {
		return app.withDirectory(cmd.Context(), *listData, func(s *directory.Store) error {
			all := []directory.Alias{}
			err := eachAlias(cmd.Context(), s, args[0], func(a directory.Alias) error { all = append(all, a); return nil })
			if err != nil {
				return err
			}
			if asJSON {
				return app.printLines(all)
			}
			w := tabwriter.NewWriter(app.Out, 0, 0, 2, ' ', 0)
			for _, a := range all {
				fmt.Fprintf(w, "%s\t%s\n", a.Address(), a.Line)
			}
			return w.Flush()
		})
	}
	show := &cobra.Command{Use: "show ADDRESS", Short: "Show where an alias leads", Example: "  indigo alias show info@example.org", Args: cobra.ExactArgs(1)}
	showData := app.dataFlag(show)
	show.RunE = func(cmd *cobra.Command, args []string) error {
		a, err := addr.Parse(args[0])
		if err != nil {
			return err
		}
		return app.withDirectory(cmd.Context(), *showData, func(s *directory.Store) error {
			lines, err := s.Aliases(cmd.Context(), a)
			if err != nil {
				return fmt.Errorf("%s: %w", a, err)
			}
			_, err = s.User(cmd.Context(), a)
			if err != nil && !errors.Is(err, directory.ErrNoUser) {
				return err
			}
			if asJSON {
				return app.printLines(listedAlias{a.String(), lines, err == nil})
			}
			for _, line := range lines {
				fmt.Fprintln(app.Out, line)
			}
			return nil
		})
	}
	for _, c := range []*cobra.Command{list, show} {
		c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	}
	cmd.AddCommand(add, remove, list, show)
	return cmd
}

// printLines prints JSON that leaves the & of lines as it is.
func (app *App) printLines(v any) error {
	e := json.NewEncoder(app.Out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

func (app *App) addAlias(ctx context.Context, data, address string, targets ...string) error {
	a, err := addr.Parse(address)
	if err != nil {
		return err
	}
	for i := range targets {
		targets[i] = targetLine(a, targets[i])
	}
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		if err := s.AddAlias(ctx, a, targets...); err != nil {
			return err
		}
		return errors.Join(app.noteOwnMailbox(ctx, s, a), app.noteProgram(ctx, s, data, a, targets...))
	})
}

// noteOwnMailbox tells when a user's mail no longer reaches his own mailbox.
func (app *App) noteOwnMailbox(ctx context.Context, s *directory.Store, a addr.Address) error {
	u, err := s.User(ctx, a)
	if errors.Is(err, directory.ErrNoUser) || err == nil && u.IsGroup() {
		return nil
	}
	if err != nil {
		return err
	}
	lines, err := s.Aliases(ctx, a)
	if errors.Is(err, directory.ErrNoAlias) {
		return nil
	}
	if err != nil {
		return err
	}
	own, err := s.AliasesTo(ctx, u.Address(), 1000)
	if err == nil && len(lines) > 0 && !slices.ContainsFunc(own, func(one directory.Alias) bool { return one.Address() == u.Address() }) {
		fmt.Fprintf(app.Err, "note: %s is a user whose mail now goes to the alias's targets only; `indigo alias add %[1]s %[1]s` keeps it in the mailbox too\n", u.Address())
	}
	return err
}

// noteProgram tells when a program among lines would have to run as root, which delivery refuses.
func (app *App) noteProgram(ctx context.Context, s *directory.Store, data string, a addr.Address, lines ...string) error {
	if !slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(strings.TrimLeft(line, " \t"), "|") }) {
		return nil
	}
	d, err := s.Domain(ctx, a.Domain)
	if err != nil {
		return err
	}
	snapshot, _ := settings.Inspect(data)
	info, err := os.Stat(d.Dir)
	if err != nil || settings.RunAs.Get(snapshot.View("all")) != "" {
		// What is not there is made by whoever adds the first user.
		return nil
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid == 0 {
		fmt.Fprintf(app.Err, "note: the program of %s does not run before RUNAS names an account for the services, or %s belongs to somebody else than root\n", a, d.Dir)
	}
	return nil
}

func (app *App) removeAlias(ctx context.Context, data, address string, yes bool, targets ...string) error {
	a, err := addr.Parse(address)
	if err != nil {
		return err
	}
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		lines, err := s.Aliases(ctx, a)
		if err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
		for i, t := range targets {
			// As it was written, or with its &.
			if targets[i] = strings.Trim(t, " \t"); !slices.Contains(lines, targets[i]) {
				targets[i] = targetLine(a, t)
			}
		}
		if len(targets) == 0 {
			if err := app.confirm(yes, fmt.Sprintf("Remove the alias %s (%s)?", a, strings.Join(lines, ", "))); err != nil {
				return err
			}
		}
		_, err = s.RemoveAlias(ctx, a, targets...)
		return err
	})
}

func (app *App) domainAliasCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "alias", Short: "Give domains further names, list and take them away",
		Example: "  indigo domain alias add example.net example.org\n  indigo domain alias list example.org",
	}
	add := &cobra.Command{
		Use: "add ALIAS DOMAIN", Short: "Give a domain another name: its users and aliases have addresses in both, and log in by both",
		Example: "  indigo domain alias add example.net example.org", Args: cobra.ExactArgs(2),
	}
	addData := app.dataFlag(add)
	add.RunE = func(cmd *cobra.Command, args []string) error {
		return app.addAliasDomain(cmd.Context(), *addData, args[0], args[1])
	}
	var yes, asJSON bool
	remove := &cobra.Command{Use: "remove ALIAS", Short: "Take a further name away from its domain", Example: "  indigo domain alias remove example.net --yes", Args: cobra.ExactArgs(1)}
	removeData := app.dataFlag(remove)
	remove.Flags().BoolVar(&yes, "yes", false, "do not ask")
	remove.RunE = func(cmd *cobra.Command, args []string) error {
		name := strings.ToLower(args[0])
		err := app.withDirectory(cmd.Context(), *removeData, func(s *directory.Store) error {
			if d, err := s.Domain(cmd.Context(), name); err == nil && d.Name == name {
				return fmt.Errorf("%s is a domain, no alias of one: `indigo domain remove %[1]s` removes it with its users", name)
			}
			return nil
		})
		if err != nil {
			return err
		}
		return app.removeDomain(cmd.Context(), *removeData, name, yes)
	}
	list := &cobra.Command{Use: "list [DOMAIN]", Short: "List the further names of a domain, or of all", Example: "  indigo domain alias list", Args: cobra.MaximumNArgs(1)}
	listData := app.dataFlag(list)
	list.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	list.RunE = func(cmd *cobra.Command, args []string) error {
		return app.withDirectory(cmd.Context(), *listData, func(s *directory.Store) error {
			domain := ""
			if len(args) == 1 {
				d, err := s.Domain(cmd.Context(), args[0])
				if err != nil {
					return fmt.Errorf("%s: %w", args[0], err)
				}
				domain = d.Name
			}
			all, err := s.AliasDomains(cmd.Context(), domain)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(app.Out).Encode(append([]directory.AliasDomain{}, all...))
			}
			w := tabwriter.NewWriter(app.Out, 0, 0, 2, ' ', 0)
			for _, a := range all {
				fmt.Fprintf(w, "%s\t%s\n", a.Alias, a.Domain)
			}
			return w.Flush()
		})
	}
	cmd.AddCommand(add, remove, list)
	return cmd
}

func (app *App) addAliasDomain(ctx context.Context, data, alias, domain string) error {
	err := app.withDirectory(ctx, data, func(s *directory.Store) error { return s.AddAliasDomain(ctx, alias, domain) })
	if err != nil {
		return err
	}
	return app.after(ctx, data, "vaddaliasdomain", alias, domain)
}

// printAliases prints lines as valias does.
func (app *App) printAlias(a directory.Alias) error {
	_, err := fmt.Fprintf(app.Out, "%s -> %s\n", a.Address(), a.Line)
	return err
}

// valias shows, adds, changes and removes lines as IndiMail's program of that name.
func (app *App) valias(ctx context.Context, data string, operands []string, options map[byte]string) error {
	insert, inserts := options['i']
	old, updates := options['u']
	gone, deletes := options['d']
	_, tracks := options['S']
	if n := len(operands); n == 0 && (inserts || updates || deletes || tracks) {
		return errors.New("an address is missing")
	}
	if deletes && (inserts || updates) || updates && !inserts {
		return errors.New("one of -i LINE, -d LINE, -u OLDLINE -i NEWLINE")
	}
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		var domains []string
		switch {
		case len(operands) == 0:
			all, err := s.Domains(ctx)
			if err != nil {
				return err
			}
			for _, d := range all {
				domains = append(domains, d.Name)
			}
		case !strings.Contains(operands[0], "@"):
			if inserts || updates || deletes || tracks {
				return fmt.Errorf("%s is no address", operands[0])
			}
			domains = operands
		}
		for _, d := range domains {
			if err := eachAlias(ctx, s, d, app.printAlias); err != nil {
				return err
			}
		}
		if domains != nil || len(operands) == 0 {
			return nil
		}
		a, err := addr.Parse(operands[0])
		if err != nil {
			return err
		}
		_, verbose := options['v']
		say := func(what string, err error) error {
			if err == nil && verbose {
				fmt.Fprintf(app.Out, "%s alias %s\n", what, a)
			}
			return err
		}
		switch {
		case updates:
			if err := say("Updated", s.ChangeAlias(ctx, a, old, insert)); err != nil {
				return err
			}
			return app.noteProgram(ctx, s, data, a, insert)
		case inserts:
			if err := say("Added", s.AddAlias(ctx, a, insert)); err != nil {
				return err
			}
			return errors.Join(app.noteOwnMailbox(ctx, s, a), app.noteProgram(ctx, s, data, a, insert))
		case deletes && strings.Trim(gone, " \t") == "":
			return errors.New("-d needs the line that is to be removed")
		case deletes:
			_, err := s.RemoveAlias(ctx, a, gone)
			return say("Deleted", err)
		case tracks:
			all, err := s.AliasesTo(ctx, a, 1<<30)
			for _, one := range all {
				fmt.Fprintf(app.Out, "%s -> %s\n", one.Address(), a)
			}
			return err
		}
		lines, err := s.Aliases(ctx, a)
		if errors.Is(err, directory.ErrNoAlias) {
			return nil
		}
		for _, line := range lines {
			if err := app.printAlias(directory.Alias{Name: strings.ToLower(a.Local), Domain: strings.ToLower(a.Domain), Line: line}); err != nil {
				return err
			}
		}
		return err
	})
}

// vgroup makes groups, which are users whose lines are their members, as IndiMail's program of that name.
func (app *App) vgroup(ctx context.Context, data string, operands []string, options map[byte]string) error {
	a, err := addr.Parse(operands[0])
	if err != nil {
		return err
	}
	given := func(letter byte) bool { _, is := options[letter]; return is }
	wanted := 0
	for _, is := range []bool{given('a'), given('i'), given('d'), given('u') && given('o')} {
		if is {
			wanted++
		}
	}
	if wanted != 1 || given('u') != given('o') {
		return errors.New("one of -a, -i MEMBER, -d MEMBER, -u NEW -o OLD")
	}
	for letter := range options {
		if !given('a') && (len(operands) > 1 || strings.IndexByte("iduov", letter) < 0) {
			return errors.New("a password, -c, -q and the options for a password go with -a only")
		}
	}
	if given('a') {
		comment := options['c']
		if !given('c') {
			comment = a.Local
		}
		word := ""
		if len(operands) > 1 {
			word = operands[1]
		}
		p, err := oldPassword(word, options)
		if err != nil {
			return err
		}
		n := directory.NewUser{Name: a.Local, Domain: a.Domain, Gecos: directory.GroupGecos + comment, Quota: options['q']}
		err = app.withDirectory(ctx, data, func(s *directory.Store) error {
			if _, err := s.User(ctx, a); err == nil {
				return fmt.Errorf("%s: %w", a, directory.ErrExists)
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
			return nil
		})
		if err != nil {
			return err
		}
		return app.after(ctx, data, "vadduser", a.String())
	}
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		u, err := s.User(ctx, a)
		if err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
		if !u.IsGroup() {
			return fmt.Errorf("%s is a user, no group: `vgroup -a` makes one, `valias` gives a user lines", a)
		}
		for _, letter := range []byte("iduo") {
			if strings.HasPrefix(options[letter], ".") || given(letter) && options[letter] == "" {
				return fmt.Errorf("%q can be no member", options[letter])
			}
			if (letter == 'i' || letter == 'u') && strings.EqualFold(strings.TrimPrefix(options[letter], "&"), u.Address().String()) {
				return fmt.Errorf("%s is the group itself, which has no mailbox: name another member", options[letter])
			}
		}
		switch {
		case given('i'):
			return s.AddAlias(ctx, a, instructionLine(options['i']))
		case given('d'):
			_, err := s.RemoveAlias(ctx, a, instructionLine(options['d']))
			return err
		}
		return s.ChangeAlias(ctx, a, instructionLine(options['o']), instructionLine(options['u']))
	})
}

// aliasPrograms are IndiMail's names for the same.
func (app *App) aliasPrograms() map[string]func([]string) int {
	return app.faces(map[string]oldProgram{
		"valias": {"[-mv] [-s] [-S] [-i LINE] [-d LINE] [-u OLDLINE -i NEWLINE] [ADDRESS|DOMAIN]", 0, 1, "vmsSi:d:u:", app.valias},
		"vgroup": {"-a [-c COMMENT] [-q QUOTA] " + passwordUsage + " GROUP@DOMAIN [PASSWORD|-], or [-i MEMBER] [-d MEMBER] [-u NEW -o OLD] GROUP@DOMAIN", 1, 2, oldPasswordOptions + "avnc:q:i:d:u:o:", app.vgroup},
		"vaddaliasdomain": {"[-v] NEWNAME DOMAIN", 2, 2, "v", func(ctx context.Context, data string, operands []string, _ map[byte]string) error {
			return app.addAliasDomain(ctx, data, operands[0], operands[1])
		}},
	})
}
