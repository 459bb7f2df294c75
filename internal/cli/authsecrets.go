package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/service"
	"github.com/indigomail/indigo/internal/settings"
)

// secretsStatus is what `indigo auth secrets status` tells: how many users have what kept of their passwords.
type secretsStatus struct {
	// Setting is PASSWORD_SECRETS, File where the keys are, Keys their names, the one that encrypts first.
	Setting string   `json:"setting"`
	File    string   `json:"file"`
	Keys    []string `json:"keys"`
	// Hash counts those of whom nothing but a hash is kept, SCRAM those with keys.
	Hash  int `json:"hash_only"`
	SCRAM int `json:"scram"`
	// Clear, Alone and Encrypted count passwords that are kept: in clear beside a hash, alone in pw_passwd, and by the keys that encrypted them.
	Clear     int            `json:"clear"`
	Alone     int            `json:"alone"`
	Encrypted map[string]int `json:"encrypted"`
	// Unreadable names users whose password cannot be decrypted, Locked and Malformed count the rest.
	Unreadable []string `json:"unreadable"`
	Locked     int      `json:"locked"`
	Malformed  int      `json:"malformed"`
	// Trash counts those in clear beside a hash that are in the trash.
	Trash int `json:"trash_clear"`
}

// secrets is what the commands of `indigo auth secrets` work on.
type secrets struct {
	app   *App
	store *directory.Store
	keys  *auth.Keyring
	view  *settings.View
}

func (app *App) withSecrets(ctx context.Context, data string, use func(secrets) error) error {
	view, err := passwordSettings(data)
	if err != nil {
		return err
	}
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		return use(secrets{app, s, service.PasswordKeys(data, view), view})
	})
}

// users calls each with the users of domains, or without any with all; those who are marked inactive come last.
func (s secrets) users(ctx context.Context, domains []string, each func(directory.User) error) error {
	if len(domains) == 0 {
		all, err := s.store.Domains(ctx)
		if err != nil {
			return err
		}
		for _, d := range all {
			domains = append(domains, d.Name)
		}
	}
	for _, domain := range domains {
		for after, more := "", true; more; {
			page, err := s.store.Users(ctx, domain, after, 1000)
			if err != nil {
				return err
			}
			for _, u := range page {
				if err := each(u); err != nil {
					return err
				}
				after = u.Name
			}
			more = len(page) == 1000
		}
		inactive, err := s.store.InactiveUsers(ctx, domain)
		if err != nil {
			return err
		}
		for _, u := range inactive {
			if err := each(u); err != nil {
				return err
			}
		}
	}
	return nil
}

// readable tells what keeps an encrypted password from being decrypted.
func (s secrets) readable(u directory.User, stored auth.Stored) error {
	if stored.Sealed == "" {
		return nil
	}
	_, err := s.keys.Open(u.Address(), stored.Sealed)
	return err
}

// atOnce is how many users one transaction changes: enough that the disk is not what it waits for, few enough that others who write do not wait long.
const atOnce = 500

// rewrite changes the stored form of each user for whom form gives another, and counts them. What cannot be changed is named, and makes an error at
// the end.
func (s secrets) rewrite(ctx context.Context, domains []string, what string, form func(directory.User) (passwd, scram string, changed bool, err error)) (n int, err error) {
	failed := 0
	fail := func(u directory.User, err error) {
		failed++
		fmt.Fprintf(s.app.Err, "%s: %v\n", u.Address(), err)
	}
	// renew changes some at once; where the transaction fails, each by itself, so that one keeps no others.
	var renew func(some []directory.Renewal) error
	renew = func(some []directory.Renewal) error {
		if len(some) == 0 {
			return nil
		}
		left, err := s.store.RenewPasswords(ctx, some, what)
		for i, r := range some {
			switch {
			case err != nil && ctx.Err() != nil:
			case err != nil && len(some) == 1:
				fail(r.User, err)
			case err != nil:
				if err := renew(some[i : i+1]); err != nil {
					return err
				}
			case left[i] != nil:
				fail(r.User, left[i])
			default:
				n++
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted: %d were changed; the same command goes on: %w", n, ctx.Err())
		}
		return nil
	}
	var some []directory.Renewal
	err = s.users(ctx, domains, func(u directory.User) error {
		passwd, scram, changed, err := form(u)
		switch {
		case err != nil:
			fail(u, err)
		case changed:
			some = append(some, directory.Renewal{User: u, Password: passwd, Scram: scram})
		}
		if len(some) < atOnce {
			return nil
		}
		err, some = renew(some), nil
		return err
	})
	if err == nil {
		err = renew(some)
	}
	if n > 0 {
		err = errors.Join(err, s.store.Scrub(context.WithoutCancel(ctx)))
	}
	if err == nil && failed > 0 {
		err = fmt.Errorf("%d were changed, %d were not: see above", n, failed)
	}
	return n, err
}

// encrypt encrypts what is in clear, and anew what an older key has encrypted: the directory does, when a form is written.
func (s secrets) encrypt(ctx context.Context, domains []string) (int, error) {
	ids, err := s.keys.IDs()
	if err != nil {
		return 0, err
	}
	return s.rewrite(ctx, domains, "kept password encrypted", func(u directory.User) (string, string, bool, error) {
		with := auth.SealingKeys(u.Password + u.Scram)
		if !auth.KeepsPassword(u.Password, u.Scram) || len(with) == 1 && len(ids) > 0 && with[0] == ids[0] {
			return "", "", false, nil
		}
		return u.Password, u.Scram, true, nil
	})
}

// encryptTrash encrypts what is in clear in the trash, so that a restore does not bring it back.
func (s secrets) encryptTrash(ctx context.Context, domains []string) error {
	n, err := s.store.GuardTrash(ctx, domains)
	if n > 0 {
		fmt.Fprintf(s.app.Out, "%d encrypted in the trash\n", n)
	}
	return err
}

// want checks that PASSWORD_SECRETS says what a command is to do, for what is set later follows the setting.
func (s secrets) want(value string) error {
	if got := settings.PasswordKept.Get(s.view); got != value {
		return fmt.Errorf("PASSWORD_SECRETS is %s (%s), and new passwords are kept so: `indigo settings set PASSWORD_SECRETS %s` first", got, s.view.Source(settings.PasswordKept.Setting), value)
	}
	return nil
}

func (app *App) authSecretsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "secrets",
		Short: "See, encrypt, decrypt and remove passwords that are kept themselves, and change their key",
		Example: "  indigo auth secrets status\n  indigo auth secrets encrypt\n  indigo auth secrets rotate --yes\n" +
			"  indigo settings set PASSWORD_SECRETS clear && indigo auth secrets decrypt",
	}
	cmd.AddCommand(app.secretsStatusCommand())
	for _, one := range []struct {
		use, short, long, question, done string
		remove                           bool
		run                              func(ctx context.Context, s secrets, domains []string, unreadable bool) (int, error)
	}{
		{use: "encrypt", short: "Encrypt passwords that are kept in clear, and anew those of an older key",
			long: `Encrypt the passwords that are kept in clear beside a hash, {CRAM} and behind keys of SCRAM, and those that an older key has encrypted, with the first key
of PASSWORD_KEYS, and those in clear in the trash. An IndiMail or another program on the same database cannot read them afterwards. Passwords that stand alone in pw_passwd stay.
To undo: indigo settings set PASSWORD_SECRETS clear, then indigo auth secrets decrypt.`,
			question: "Encrypt the kept passwords of %s?", done: "%d encrypted\n",
			run: func(ctx context.Context, s secrets, domains []string, _ bool) (int, error) {
				if err := s.want("encrypted"); err != nil {
					return 0, err
				}
				n, err := s.encrypt(ctx, domains)
				return n, errors.Join(err, s.encryptTrash(ctx, domains))
			}},
		{use: "decrypt", short: "Put passwords that are kept encrypted into the database in clear",
			long: `Decrypt kept passwords to the forms of IndiMail: who gets at the database has them. To undo: indigo settings set PASSWORD_SECRETS encrypted, then
indigo auth secrets encrypt.`,
			question: "Write the kept passwords of %s into the database in clear?", done: "%d decrypted\n",
			run: func(ctx context.Context, s secrets, domains []string, _ bool) (int, error) {
				if err := s.want("clear"); err != nil {
					return 0, err
				}
				return s.rewrite(ctx, domains, "kept password decrypted", func(u directory.User) (string, string, bool, error) {
					return u.Password, u.Scram, len(auth.SealingKeys(u.Password+u.Scram)) > 0, nil
				})
			}},
		{use: "remove", short: "Take kept passwords out of the database for good", remove: true,
			long: `Take the passwords that are kept themselves out, in clear or encrypted: hashes and keys of SCRAM stay, and CRAM, DIGEST-MD5 and APOP end for these
users. Users without a hash or keys beside are left alone, and named. With --unreadable only those that no key decrypts. To undo, set the passwords again.`,
			question: "Remove the kept passwords of %s? They cannot be brought back.", done: "%d removed\n",
			run: func(ctx context.Context, s secrets, domains []string, unreadable bool) (int, error) {
				return s.rewrite(ctx, domains, "kept password removed", func(u directory.User) (string, string, bool, error) {
					passwd, scram, left := auth.Forget(u.Password, u.Scram)
					changed := passwd != u.Password || scram != u.Scram
					if stored, _ := auth.ParseStored(strings.TrimLeft(u.Password, "!*"), u.Scram); unreadable && s.readable(u, stored) == nil {
						changed = false
					}
					if changed && !left {
						return "", "", false, errors.New("nothing else is stored to log in with: set a password, or remove the user")
					}
					return passwd, scram, changed, nil
				})
			}},
	} {
		var yes, unreadable bool
		sub := &cobra.Command{Use: one.use + " [DOMAIN...]", Short: one.short, Long: one.long, Example: "  indigo auth secrets " + one.use + "\n  indigo auth secrets " + one.use + " example.org --yes"}
		data := app.dataFlag(sub)
		sub.Flags().BoolVar(&yes, "yes", false, "do not ask")
		if one.remove {
			sub.Flags().BoolVar(&unreadable, "unreadable", false, "only those that cannot be decrypted")
		}
		sub.RunE = func(cmd *cobra.Command, args []string) error {
			return app.withSecrets(cmd.Context(), *data, func(s secrets) error {
				whose := "all users"
				if len(args) > 0 {
					whose = strings.Join(args, ", ")
				}
				if unreadable {
					whose += " that cannot be decrypted"
				}
				if err := app.confirm(yes, fmt.Sprintf(one.question, whose)); err != nil {
					return err
				}
				n, err := one.run(cmd.Context(), s, args, unreadable)
				if err == nil {
					_, err = fmt.Fprintf(app.Out, one.done, n)
				}
				return err
			})
		}
		cmd.AddCommand(sub)
	}
	cmd.AddCommand(app.secretsRotateCommand(), app.secretsPruneCommand())
	return cmd
}

func (app *App) secretsStatusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "status [DOMAIN...]", Short: "Count what is kept of passwords, and by which key it is encrypted",
		Long:    "Count what is kept of users' passwords, and name those whose kept password cannot be decrypted. Passwords and keys are not shown.",
		Example: "  indigo auth secrets status\n  indigo auth secrets status example.org --json",
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return app.withSecrets(cmd.Context(), *data, func(s secrets) error {
			status := secretsStatus{Setting: settings.PasswordKept.Get(s.view), File: s.keys.File(), Keys: []string{}, Encrypted: map[string]int{}, Unreadable: []string{}}
			ids, keysErr := s.keys.IDs()
			status.Keys = append(status.Keys, ids...)
			err := s.users(cmd.Context(), args, func(u directory.User) error {
				stored, err := auth.ParseStored(u.Password, u.Scram)
				if len(stored.SCRAM) > 0 {
					status.SCRAM++
				}
				switch {
				case stored.Sealed != "":
					status.Encrypted[auth.SealedWith(stored.Sealed)]++
					if s.readable(u, stored) != nil {
						status.Unreadable = append(status.Unreadable, u.Address().String())
					}
				case stored.Bare:
					status.Alone++
				case stored.Clear != "":
					status.Clear++
				case errors.Is(err, auth.ErrNoPassword):
					status.Locked++
				case err != nil:
					status.Malformed++
				case len(stored.SCRAM) == 0:
					status.Hash++
				}
				return nil
			})
			if err != nil {
				return err
			}
			err = s.store.TrashPasswords(func(user addr.Address, passwd, scram string) {
				stored, _ := auth.ParseStored(strings.TrimLeft(passwd, "!*"), scram)
				if !stored.Bare && stored.Clear != "" && (len(args) == 0 || slices.ContainsFunc(args, func(d string) bool { return strings.EqualFold(d, user.Domain) })) {
					status.Trash++
				}
			})
			if err != nil {
				return err
			}
			err = app.table(asJSON, status, 0, func(w io.Writer) {
				fmt.Fprintf(w, "PASSWORD_SECRETS\t%s\nkeys\t%s\n", status.Setting, strings.Join(append([]string{status.File}, ids...), " "))
				fmt.Fprintf(w, "a hash alone\t%d\nkeys of SCRAM\t%d\n", status.Hash, status.SCRAM)
				for _, id := range slices.Sorted(maps.Keys(status.Encrypted)) {
					fmt.Fprintf(w, "kept, encrypted with %s\t%d\n", id, status.Encrypted[id])
				}
				fmt.Fprintf(w, "kept in clear beside a hash\t%d\nin clear alone in pw_passwd\t%d\nlocked or none\t%d\nmalformed\t%d\n", status.Clear, status.Alone, status.Locked, status.Malformed)
				if status.Trash > 0 {
					fmt.Fprintf(w, "in the trash in clear beside a hash\t%d\n", status.Trash)
				}
				for _, user := range status.Unreadable {
					fmt.Fprintf(w, "cannot be decrypted\t%s\n", user)
				}
			})
			return errors.Join(err, keysErr)
		})
	}
	return cmd
}

func (app *App) secretsRotateCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "rotate", Short: "Make a new key, and encrypt what is kept with it", Args: cobra.NoArgs,
		Long: `Put a new key before the others of PASSWORD_KEYS, and encrypt all kept passwords with it. Running instances follow at once. The older keys stay in the file, for
the trash and for backups: indigo auth secrets prune takes them out. After an interruption indigo auth secrets encrypt goes on. Hosts that have copies
of the file must get the new key at once; docs/users.md has a way without a gap. There is nothing to undo.`,
		Example: "  indigo auth secrets rotate\n  indigo auth secrets rotate --yes",
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return app.withSecrets(cmd.Context(), *data, func(s secrets) error {
			if err := s.want("encrypted"); err != nil {
				return err
			}
			ids, err := s.keys.IDs()
			if err != nil {
				return err
			}
			if len(ids) == 0 {
				return fmt.Errorf("there is no key yet: %s is made when the first password is kept, or by `indigo auth secrets encrypt`", s.keys.File())
			}
			if err := app.confirm(yes, "Make a new key in "+s.keys.File()+", and encrypt all kept passwords with it?"); err != nil {
				return err
			}
			id, err := s.keys.Rotate()
			if err != nil {
				return err
			}
			n, err := s.encrypt(cmd.Context(), nil)
			if err != nil {
				return fmt.Errorf("the new key is %s; %w", id, err)
			}
			_, err = fmt.Fprintf(app.Out, "the new key is %s, %d encrypted\n", id, n)
			return err
		})
	}
	return cmd
}

func (app *App) secretsPruneCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Take keys out of the file that nothing is encrypted with any more", Args: cobra.NoArgs,
		Long: `Take the keys out of PASSWORD_KEYS, but for the first, that no user's password is encrypted with, nor one in the trash. What is in backups and exports cannot be
decrypted afterwards. To undo, put them back from a copy of the file.`,
		Example: "  indigo auth secrets prune\n  indigo auth secrets prune --yes",
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return app.withSecrets(cmd.Context(), *data, func(s secrets) error {
			if err := app.confirm(yes, "Take unused keys out of "+s.keys.File()+"? What backups have of them cannot be decrypted any more."); err != nil {
				return err
			}
			used := map[string]bool{}
			err := s.store.SealedForms(cmd.Context(), func(form string) {
				for _, id := range auth.SealingKeys(form) {
					used[id] = true
				}
			})
			if err != nil {
				return err
			}
			gone, err := s.keys.Prune(used)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(app.Out, "keys taken out: %s\n", cmp.Or(strings.Join(gone, " "), "none"))
			return err
		})
	}
	return cmd
}
