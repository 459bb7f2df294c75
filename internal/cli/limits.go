package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
)

// limitFields gives the numbers of limits by the names of IndiMail's columns.
func limitFields(l *directory.Limits) map[string]*int64 {
	return map[string]*int64{
		"domain_expiry": &l.DomainExpiry, "passwd_expiry": &l.PasswordExpiry, "maxpopaccounts": &l.MaxUsers, "maxaliases": &l.MaxAliases,
		"maxforwards": &l.MaxForwards, "maxautoresponders": &l.MaxResponders, "maxmailinglists": &l.MaxLists, "diskquota": &l.DiskQuota,
		"maxmsgcount": &l.MaxMessages, "defaultquota": &l.DefaultQuota, "defaultmaxmsgcount": &l.DefaultMessages,
	}
}

// printLimits prints limits as vlimit -s does (wiki 3247-3270).
func printLimits(w io.Writer, l directory.Limits) {
	expiry := func(at int64) string {
		if at <= 0 {
			return "Never Expires"
		}
		return time.Unix(at, 0).Format("Mon Jan 2 15:04:05 2006")
	}
	for _, line := range []struct {
		label string
		value any
	}{
		{"Domain Expiry Date", expiry(l.DomainExpiry)}, {"Password Expiry Date", expiry(l.PasswordExpiry)}, {"Max Domain Quota", l.DiskQuota},
		{"Max Domain Messages", l.MaxMessages}, {"Default User Quota", l.DefaultQuota}, {"Default User Messages", l.DefaultMessages},
		{"Max Pop Accounts", l.MaxUsers}, {"Max Aliases", l.MaxAliases}, {"Max Forwards", l.MaxForwards}, {"Max Autoresponders", l.MaxResponders},
		{"Max Mailinglists", l.MaxLists},
	} {
		fmt.Fprintf(w, "%-21s: %v\n", line.label, line.value)
	}
	fmt.Fprintln(w, "GID Flags:")
	for _, name := range l.Disabled.Names() {
		fmt.Fprintln(w, "  "+name)
	}
	fmt.Fprintln(w, "Flags for non postmaster accounts:")
	may := func(bits int, words ...string) string {
		var allowed []string
		for i, word := range words {
			if bits&(1<<i) == 0 {
				allowed = append(allowed, "ALLOW_"+word)
			}
		}
		return strings.Join(allowed, " ")
	}
	all := []string{"CREATE", "MODIFY", "DELETE"}
	for _, line := range []struct {
		label string
		bits  int
		words []string
	}{
		{"pop account", l.PermAccount, all}, {"alias", l.PermAlias, all}, {"forward", l.PermForward, all}, {"autoresponder", l.PermResponder, all},
		{"mailinglist", l.PermList, all}, {"mailinglist users", l.PermList >> 3, all}, {"mailinglist moderators", l.PermList >> 6, all},
		{"domain quota", l.PermQuota, all}, {"default quota", l.PermDefaultQuota, all[:2]},
	} {
		fmt.Fprintf(w, "  %-23s: %s\n", line.label, may(line.bits, line.words...))
	}
}

func (app *App) limitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "limit", Short: "Show, set and clear the limits of domains",
		Example: "  indigo limit show example.org\n  indigo limit set example.org defaultquota=52428800 NO_POP=1",
	}
	var asJSON bool
	show := &cobra.Command{Use: "show DOMAIN", Short: "Show a domain's limits", Example: "  indigo limit show example.org", Args: cobra.ExactArgs(1)}
	showData := app.dataFlag(show)
	show.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	show.RunE = func(cmd *cobra.Command, args []string) error {
		return app.withDirectory(cmd.Context(), *showData, func(s *directory.Store) error {
			l, err := s.Limits(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(app.Out).Encode(l)
			}
			printLimits(app.Out, l)
			return nil
		})
	}
	set := &cobra.Command{
		Use:   "set DOMAIN NAME=VALUE...",
		Short: "Set limits of a domain: numbers, dates, and services that are switched off",
		Long: `Set limits. The numbers have the names of IndiMail's columns: defaultquota, diskquota (bytes), maxpopaccounts, maxaliases,
maxforwards, maxautoresponders, maxmailinglists, maxmsgcount, defaultmaxmsgcount; -1 means none. domain_expiry and passwd_expiry are
a date, 2027-01-31, or -1. NO_POP, NO_IMAP, NO_SMTP, NO_WEBMAIL, NO_RELAY, NO_DIALUP and NO_PASSWD_CHNG are 1 or 0.
To undo, set the old value, or: indigo limit clear DOMAIN.`,
		Example: "  indigo limit set example.org defaultquota=52428800 maxpopaccounts=100\n  indigo limit set example.org NO_POP=1 domain_expiry=2027-01-31", Args: cobra.MinimumNArgs(2),
	}
	setData := app.dataFlag(set)
	set.RunE = func(cmd *cobra.Command, args []string) error {
		return app.withDirectory(cmd.Context(), *setData, func(s *directory.Store) error {
			return s.SetLimits(cmd.Context(), args[0], func(l *directory.Limits) error { return setLimits(l, args[1:]) })
		})
	}
	var yes bool
	clear := &cobra.Command{Use: "clear DOMAIN", Short: "Take all limits of a domain away", Example: "  indigo limit clear example.org --yes", Args: cobra.ExactArgs(1)}
	clearData := app.dataFlag(clear)
	clear.Flags().BoolVar(&yes, "yes", false, "do not ask")
	clear.RunE = func(cmd *cobra.Command, args []string) error {
		if err := app.confirm(yes, "Take all limits of "+args[0]+" away?"); err != nil {
			return err
		}
		return app.withDirectory(cmd.Context(), *clearData, func(s *directory.Store) error { return s.ClearLimits(cmd.Context(), args[0]) })
	}
	cmd.AddCommand(show, set, clear)
	return cmd
}

// setLimits reads NAME=VALUE words; all are checked before the caller writes any.
func setLimits(l *directory.Limits, words []string) error {
	var faults []error
	fields := limitFields(l)
	for _, word := range words {
		name, text, ok := strings.Cut(word, "=")
		if !ok {
			faults = append(faults, fmt.Errorf("%q is not of the form NAME=VALUE", word))
			continue
		}
		if n, known := fields[strings.ToLower(name)]; known {
			value, err := strconv.ParseInt(text, 10, 64)
			if err != nil && strings.HasSuffix(strings.ToLower(name), "quota") {
				// 50M, and NOQUOTA, which stands for -1.
				var q maildir.Quota
				if q, err = maildir.ParseQuota(text); err == nil && q.Messages != 0 {
					err = errors.New("bytes alone")
				}
				if value = q.Bytes; err == nil && value == 0 {
					value = -1
				}
			}
			if strings.HasSuffix(strings.ToLower(name), "_expiry") && text != "-1" {
				var at time.Time
				if at, err = time.ParseInLocation("2006-01-02", text, time.Local); err == nil {
					value = at.Unix()
				}
			}
			if err != nil || value < -1 {
				faults = append(faults, fmt.Errorf("%s: %q is no number from -1 up, or date like 2027-01-31 for an expiry", name, text))
				continue
			}
			if wide := strings.HasSuffix(strings.ToLower(name), "quota") || strings.HasSuffix(strings.ToLower(name), "msgcount"); !wide && value > math.MaxInt32 {
				faults = append(faults, fmt.Errorf("%s: %q is more than %d, the most that the table vlimits has room for; -1 stands for no limit", name, text, math.MaxInt32))
				continue
			}
			*n = value
			continue
		}
		flag, err := directory.FlagsByName(name)
		if err != nil {
			err = fmt.Errorf("no limit %q; there are %s; and %w", name, strings.Join(slices.Sorted(maps.Keys(fields)), ", "), err)
		}
		if err == nil && flag&directory.DomainFlags() == 0 {
			err = fmt.Errorf("%s is a flag of users only: `indigo user flags USER@DOMAIN --set %[1]s`", strings.ToUpper(name))
		}
		switch {
		case err != nil:
			faults = append(faults, err)
		case text == "1":
			l.Disabled |= flag
		case text == "0":
			l.Disabled &^= flag
		default:
			faults = append(faults, fmt.Errorf("%s: %q is neither 1 nor 0", name, text))
		}
	}
	return errors.Join(faults...)
}

// userModifyCommand is part of `indigo user`.
func (app *App) userModifyCommand() *cobra.Command {
	var name, quota string
	cmd := &cobra.Command{
		Use:   "modify USER@DOMAIN",
		Short: "Change a user's name and quota",
		Long: `Change the person's name and the quota: bytes, 52428800S,1000C for bytes and messages, or NOQUOTA. To undo, give the old ones, which
indigo user info shows.`,
		Example: "  indigo user modify alice@example.org --quota 52428800\n  indigo user modify alice@example.org --name 'Alice Liddell'", Args: cobra.ExactArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().StringVar(&name, "name", "", "the person's name")
	cmd.Flags().StringVar(&quota, "quota", "", "the quota, or +N or -N for more or less of it")
	cmd.MarkFlagsOneRequired("name", "quota")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		a, err := addr.Parse(args[0])
		if err != nil {
			return err
		}
		return app.modifyUser(cmd.Context(), *data, "vmoduser", directory.NewUser{Name: a.Local, Domain: a.Domain, Gecos: name, Quota: quota}, 0, 0)
	}
	return cmd
}

// modifyUser writes what n gives, clears and sets flags, and runs the handle of program.
func (app *App) modifyUser(ctx context.Context, data, program string, n directory.NewUser, set, clear directory.Flags) error {
	err := app.withDirectory(ctx, data, func(s *directory.Store) error {
		if strings.HasPrefix(n.Quota, "+") || strings.HasPrefix(n.Quota, "-") {
			u, err := s.User(ctx, n.Address())
			if err == nil {
				n.Quota, err = newQuotaOf(u, n.Quota)
			}
			if err != nil {
				return err
			}
		}
		if err := s.UpdateUser(ctx, n); err != nil {
			return err
		}
		if n.Quota != "" {
			app.newQuota(ctx, s, n.Address())
		}
		if set == 0 && clear == 0 {
			return nil
		}
		return s.SetFlags(ctx, n.Address(), set, clear&^set)
	})
	if err != nil {
		return err
	}
	return app.after(ctx, data, program, n.Address().String())
}

// userFlagsCommand is part of `indigo user`.
func (app *App) userFlagsCommand() *cobra.Command {
	var set, clear []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "flags USER@DOMAIN",
		Short: "Show, set and clear what is switched off for a user",
		Long: `Show, set and clear flags: NO_POP, NO_IMAP, NO_SMTP, NO_WEBMAIL, NO_RELAY (no mail to others than local users), BOUNCE_MAIL (takes
no mail), NO_PASSWD_CHNG, NO_DIALUP, QA_ADMIN (administers the domain), V_OVERRIDE (the domain's flags do not count). A running
instance sees a change at once. To undo, clear what was set.`,
		Example: "  indigo user flags alice@example.org\n  indigo user flags alice@example.org --set NO_POP,NO_IMAP --clear NO_RELAY", Args: cobra.ExactArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().StringSliceVar(&set, "set", nil, "`FLAGS` to set")
	cmd.Flags().StringSliceVar(&clear, "clear", nil, "`FLAGS` to clear")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		a, err := addr.Parse(args[0])
		if err != nil {
			return err
		}
		on, err := directory.FlagsByName(set...)
		if err != nil {
			return err
		}
		off, err := directory.FlagsByName(clear...)
		if err != nil {
			return err
		}
		err = app.withDirectory(cmd.Context(), *data, func(s *directory.Store) error {
			if on != 0 || off != 0 {
				if err := s.SetFlags(cmd.Context(), a, on, off); err != nil {
					return err
				}
			}
			u, err := s.User(cmd.Context(), a)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(app.Out).Encode(directory.Flags(u.GID))
			}
			for _, name := range directory.Flags(u.GID).Names() {
				fmt.Fprintln(app.Out, name)
			}
			return nil
		})
		if err != nil || on == 0 && off == 0 {
			return err
		}
		return app.after(cmd.Context(), *data, "vmoduser", a.String())
	}
	return cmd
}

// limitPrograms are IndiMail's names for the same.
func (app *App) limitPrograms() map[string]func([]string) int {
	letters := map[rune]directory.Flags{
		'u': directory.NoDialup, 'd': directory.NoPasswordChange, 'p': directory.NoPOP, 's': directory.NoSMTP, 'w': directory.NoWebmail,
		'i': directory.NoIMAP, 'r': directory.NoRelay, 'b': directory.BounceMail, 'o': directory.Override, 'a': directory.Administrator,
	}
	return app.faces(map[string]oldProgram{
		"vlimit": {"[-s] [-q DEFAULTQUOTA] [-Q QUOTA] [-M MESSAGES] [-m DEFAULTMESSAGES] [-P USERS] [-A ALIASES] [-F FORWARDS] [-R RESPONDERS] [-L LISTS] [-g FLAGS [-T]] [-e DATE|-n DAYS] [-t DATE|-N DAYS] [-pafrluoxz PERMISSIONS] [-D] DOMAIN", 1, 1, "svq:Q:M:m:P:A:F:R:L:g:TDe:n:t:N:p:a:f:r:l:u:o:x:z:",
			func(ctx context.Context, data string, operands []string, options map[byte]string) error {
				return app.withDirectory(ctx, data, func(s *directory.Store) error {
					numbers := map[byte]string{'q': "defaultquota", 'Q': "diskquota", 'M': "maxmsgcount", 'm': "defaultmaxmsgcount", 'P': "maxpopaccounts", 'A': "maxaliases", 'F': "maxforwards", 'R': "maxautoresponders", 'L': "maxmailinglists"}
					var words []string
					for letter, name := range numbers {
						if v, ok := options[letter]; ok {
							words = append(words, name+"="+v)
						}
					}
					if _, all := options['D']; all {
						if err := s.ClearLimits(ctx, operands[0]); err != nil {
							return err
						}
					}
					flags, setFlags := options['g']
					_, toggle := options['T']
					_, show := options['s']
					if toggle && !setFlags {
						return errors.New("-T goes with -g")
					}
					if len(words) > 0 || setFlags || givenAny(options, "entNpafrluoxz") {
						err := s.SetLimits(ctx, operands[0], func(l *directory.Limits) error {
							was := l.Disabled
							if setFlags {
								l.Disabled = 0
							}
							if err := errors.Join(vlimitExpiry(l, options, time.Now()), vlimitPermissions(l, options)); err != nil {
								return err
							}
							for _, letter := range flags {
								flag, known := letters[letter]
								if letter != 'x' && (!known || flag&directory.DomainFlags() == 0) {
									return fmt.Errorf("no flag %q in -g; there are u, d, p, s, w, i, r and x for none", letter)
								}
								l.Disabled |= flag
							}
							if setFlags && toggle {
								l.Disabled ^= was
							}
							return setLimits(l, words)
						})
						if err != nil {
							return err
						}
					}
					if show {
						l, err := s.Limits(ctx, operands[0])
						if err != nil {
							return err
						}
						printLimits(app.Out, l)
					}
					return nil
				})
			}},
		"vmoddomain": {"-l 1 DOMAIN, or [-f 0] -h delete|bounce-no-mailbox|MAILDIR|ADDRESS DOMAIN", 1, 1, "l:h:f:v", func(ctx context.Context, data string, operands []string, options map[byte]string) error {
			// IndiMail's wants -f with every -h.
			if filter, given := options['f']; given && filter != "0" {
				return fmt.Errorf("option -f %s has no effect in Indigo: %s; nothing was done", filter, noFilters)
			}
			if handler, given := options['h']; given {
				err := app.withDirectory(ctx, data, func(s *directory.Store) error { return app.catchAll(ctx, s, operands[0], handler) })
				if _, more := options['l']; err != nil || !more {
					return err
				}
			}
			if _, limits := options['l']; !limits {
				return errors.New("-l 1 makes a domain's row of limits, -h says what becomes of mail for nobody of it; give one of them")
			}
			if options['l'] != "1" {
				return fmt.Errorf("limits hold as long as they are set: `indigo limit clear %s` takes them away", operands[0])
			}
			return app.withDirectory(ctx, data, func(s *directory.Store) error {
				return s.SetLimits(ctx, operands[0], func(*directory.Limits) error { return nil })
			})
		}},
		"vmoduser": {"[-udpswirboa [-t]] [-x] [-n] [-c NAME] [-q [+|-]QUOTA] [-P PASSWORD|- [-e] [-h HASH] [-C] [-m SCRAM] [-S SALT] [-I ITERATIONS]] USER@DOMAIN", 1, 1, "vudpswirboatnxc:q:P:eh:Cm:S:I:", func(ctx context.Context, data string, operands []string, options map[byte]string) error {
			a, err := addr.Parse(operands[0])
			if err != nil {
				return err
			}
			var set, clear directory.Flags
			if _, none := options['x']; none {
				for _, flag := range letters {
					clear |= flag
				}
			}
			for letter, flag := range letters {
				if _, given := options[byte(letter)]; given {
					set |= flag
				}
			}
			n := directory.NewUser{Name: a.Local, Domain: a.Domain, Gecos: options['c'], Quota: options['q']}
			tell := func() {}
			if text, given := options['P']; given {
				p, err := oldPassword(text, options)
				if err != nil {
					return err
				}
				if text == "" {
					return errors.New("an empty password")
				}
				if n.Password, n.Scram, tell, err = app.forms(ctx, data, a, p); err != nil {
					return err
				}
				if n.Password == "" {
					return errors.New("keys without a hash would leave the one that is there: `vpasswd -e` takes them")
				}
			} else {
				for _, letter := range "ehCmSI" {
					if _, given := options[byte(letter)]; given {
						return fmt.Errorf("option -%c says how a password is stored, and -P gives none", letter)
					}
				}
			}
			if _, toggle := options['t']; toggle && set != 0 {
				err := app.withDirectory(ctx, data, func(s *directory.Store) (err error) {
					var has directory.Flags
					set, has, err = toggled(ctx, s, a, set)
					clear |= has
					return err
				})
				if err != nil {
					return err
				}
			}
			_, turn := options['n']
			if set == 0 && clear == 0 && n.Gecos == "" && n.Quota == "" && n.Password == "" && n.Scram == "" {
				if !turn {
					return errors.New("nothing to do: no option was given")
				}
				return app.turnUser(ctx, data, a)
			}
			if turn {
				return errors.New("-n goes alone: it marks a user inactive, or active again")
			}
			if err := app.modifyUser(ctx, data, "vmoduser", n, set, clear); err != nil {
				return err
			}
			tell()
			return nil
		}},
		"vsetuserquota": {"USER@DOMAIN QUOTA", 2, 2, "", func(ctx context.Context, data string, operands []string, _ map[byte]string) error {
			a, err := addr.Parse(operands[0])
			if err != nil {
				return err
			}
			if operands[1] == "" {
				return errors.New("an empty quota; NOQUOTA takes it away")
			}
			return app.modifyUser(ctx, data, "vsetuserquota", directory.NewUser{Name: a.Local, Domain: a.Domain, Quota: operands[1]}, 0, 0)
		}},
	})
}
