package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/service"
	"github.com/indigomail/indigo/internal/settings"
)

// homesAllowed refuses directories for homes that the instance may not write to; "" is none.
func homesAllowed(data string, dirs ...string) error {
	for _, dir := range dirs {
		if !filepath.IsAbs(dir) {
			// None, or one that the directory refuses.
			continue
		}
		if err := service.HomesAllowed(data, filepath.Clean(dir)); err != nil {
			return err
		}
	}
	return nil
}

func (app *App) domainRenameCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rename OLD NEW",
		Short: "Give a domain, or an alias of one, another name",
		Long: `Give a domain, or an alias of one, another name in every table that names it: users, limits, aliases and forwards, log-ins. The mail stays
in its directories, so that nothing that comes in or is being read is disturbed. A running instance knows the new name within a fifth of a
second, and the old one no more: mail for it that waits in the queue bounces, unless the old name is made an alias. Users log in with the
new name. To undo, rename it back.`,
		Example: "  indigo domain rename example.org example.net", Args: cobra.ExactArgs(2),
	}
	data := app.dataFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return app.renameDomain(cmd.Context(), *data, args[0], args[1])
	}
	return cmd
}

func (app *App) renameDomain(ctx context.Context, data, from, to string) error {
	err := app.withDirectory(ctx, data, func(s *directory.Store) error {
		if err := s.RenameDomain(ctx, from, to); err != nil {
			return err
		}
		d, err := s.Domain(ctx, to)
		if err != nil || !isAutoturn(data, d) {
			return err
		}
		// A host with an address gets all that is in its directory.
		if !directory.SharedByHost(d.Dir) {
			if some, err := maildir.List(filepath.Join(d.Dir, "Maildir")); err != nil || len(some) > 0 {
				fmt.Fprintf(app.Err, "mail that waits for %s in %s is handed to the host of %s only when that is an alias: indigo domain alias add %[1]s %[3]s\n", addr.FoldDomain(from), d.Dir, d.Name)
			}
		}
		return errors.Join(unlistAutoturn(data, addr.FoldDomain(from)), app.listAutoturn(data, d.Name))
	})
	if err != nil {
		return err
	}
	snapshot, _ := settings.Inspect(data)
	if addr.FoldDomain(settings.DefaultDomain.Get(snapshot.View("all"))) == addr.FoldDomain(from) {
		fmt.Fprintf(app.Err, "DEFAULT_DOMAIN is still %s: indigo settings set DEFAULT_DOMAIN %s, and indigo reload\n", from, to)
	}
	return app.after(ctx, data, "vrenamedomain", from, to)
}

// userRenameCommand is part of `indigo user`.
func (app *App) userRenameCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rename OLD@DOMAIN NEW@DOMAIN",
		Short: "Give a user another name, also one of another domain",
		Long: `Give a user another name in every table that names him: password, flags, filters, aliases and forwards that lead to him, log-ins. Within
the domain the home stays where it is, and who comes to have the old name gets another; to another domain the home is moved into that
one's directory. No mail is lost that comes in meanwhile. Mail for the old name that waits in the queue bounces, unless the old name is
made an alias. To undo, rename back. An interrupted command is finished by the same one again.`,
		Example: "  indigo user rename alice@example.org alice.liddell@example.org", Args: cobra.ExactArgs(2),
	}
	data := app.dataFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return app.renameUser(cmd.Context(), *data, args[0], args[1])
	}
	return cmd
}

func (app *App) renameUser(ctx context.Context, data, from, to string) error {
	a, err := addr.Parse(from)
	if err != nil {
		return err
	}
	b, err := addr.Parse(to)
	if err != nil {
		return err
	}
	err = app.withDirectory(ctx, data, func(s *directory.Store) error {
		if err := s.RenameUser(ctx, a, b); err != nil || strings.EqualFold(a.Domain, b.Domain) {
			return err
		}
		old, err := s.Domain(ctx, a.Domain)
		if err != nil {
			return err
		}
		u, err := s.User(ctx, b)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(u.Dir, old.Dir+"/") && !strings.Contains(u.Dir, "/"+old.Name+"/") {
			return nil
		}
		// What goes when the former domain is removed must not hold it.
		_, _, err = s.MoveUser(ctx, b, "")
		return err
	})
	if err != nil {
		return err
	}
	return app.after(ctx, data, "vrenameuser", from, to)
}

// userMoveCommand is part of `indigo user`.
func (app *App) userMoveCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "move USER@DOMAIN [DIRECTORY]",
		Short: "Move a user's home to another directory or file system",
		Long: `Move a user's home to DIRECTORY, an absolute path where nothing is yet; without it, to where a new user of that name would have it. Mail
may come in and the user be logged in meanwhile; nothing is lost. A symbolic link stays at the old place for a day. An interrupted command
is finished by the same one again. A hardened instance must be allowed to write there: BASE_PATH or WRITABLE. To undo, move it back.`,
		Example: "  indigo user move alice@example.org /mail2/example.org/alice", Args: cobra.RangeArgs(1, 2),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return app.moveUser(cmd.Context(), *data, args[0], strings.Join(args[1:], ""), asJSON)
	}
	return cmd
}

func (app *App) moveUser(ctx context.Context, data, user, dir string, asJSON bool) error {
	a, err := addr.Parse(user)
	if err != nil {
		return err
	}
	if err := homesAllowed(data, dir); err != nil {
		return err
	}
	var from, to string
	err = app.withDirectory(ctx, data, func(s *directory.Store) error {
		from, to, err = s.MoveUser(ctx, a, dir)
		return err
	})
	if err != nil {
		return err
	}
	if asJSON {
		err = json.NewEncoder(app.Out).Encode(map[string]string{"user": a.String(), "from": from, "to": to})
	} else {
		if from == "" {
			from = "none"
		}
		_, err = fmt.Fprintf(app.Out, "%s is in %s; it was in %s\n", a, to, from)
	}
	if err != nil {
		return err
	}
	return app.after(ctx, data, "vmoveuser", a.String(), from, to)
}

func (app *App) domainReorganizeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reorganize DOMAIN",
		Short: "Move homes out of directories that hold more than they may",
		Long: `Move homes of a domain out of directories that hold more than a hundred, or what the domain was added with (--homes-per-directory), to where
new users' would go; directories that have room again are filled by further users. Each move is one of indigo user move: mail may come in
and users be logged in meanwhile, and an interrupted command is finished by the same one again. A move waits until no cache knows the old
place: 0.06 s, with a database server 0.6 s. To undo, move single homes back with indigo user move.`,
		Example: "  indigo domain reorganize example.org", Args: cobra.ExactArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return app.reorganize(cmd.Context(), *data, args[0]) }
	return cmd
}

func (app *App) reorganize(ctx context.Context, data, domain string) error {
	n := 0
	err := app.withDirectory(ctx, data, func(s *directory.Store) error {
		return s.Reorganize(ctx, domain, func(a addr.Address, from, to string) {
			n++
			fmt.Fprintf(app.Out, "%s: %s to %s\n", a, from, to)
		})
	})
	fmt.Fprintf(app.Out, "%d homes moved\n", n)
	return err
}

// idleUser is a line of `indigo user inactive`.
type idleUser struct {
	Address string `json:"address"`
	// Last is the last log-in, or when the user was last changed for one who never logged in.
	Last  time.Time `json:"last"`
	Never bool      `json:"never_logged_in"`
}

// inactive is a choice of users who have not logged in for a time.
type inactive struct {
	domain string
	days   int
	// except are names (gecos) of users who are passed over.
	except []string
	// fast does without a look at the mailboxes; remove takes the users away, mark marks them inactive.
	fast, remove, mark bool
	yes                bool
	show               func(idleUser) error
}

// userInactiveCommand is part of `indigo user`.
func (app *App) userInactiveCommand() *cobra.Command {
	choice := inactive{}
	var asJSON, marked bool
	cmd := &cobra.Command{
		Use:   "inactive [DOMAIN]",
		Short: "List users who have not logged in for long, or remove them",
		Long: `List the users, of a domain or of all, who have not logged in by SMTP, IMAP or POP3 for so many days, nor been changed, nor read mail: a
message that moved in Maildir/cur counts too, for programs that write down no log-ins. postmaster is never among them. With --deactivate they
are marked inactive, after a question: mail for them is refused until they log in by POP3 or IMAP; to undo, indigo user activate. With --remove
they are removed; to undo, indigo trash restore. Groups are never among them either. --marked lists who is marked inactive already.`,
		Example: "  indigo user inactive example.org --days 180\n  indigo user inactive --days 180 --deactivate\n  indigo user inactive --days 400 --remove\n  indigo user inactive example.org --marked", Args: cobra.MaximumNArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().IntVar(&choice.days, "days", 60, "for so many days")
	cmd.Flags().BoolVar(&choice.remove, "remove", false, "remove them")
	cmd.Flags().BoolVar(&choice.mark, "deactivate", false, "mark them inactive")
	cmd.Flags().BoolVar(&marked, "marked", false, "list who is marked inactive")
	cmd.Flags().StringArrayVar(&choice.except, "except-name", nil, "pass users with this `NAME` (gecos) over; once more for another")
	cmd.MarkFlagsMutuallyExclusive("deactivate", "remove", "marked")
	cmd.Flags().BoolVar(&choice.fast, "no-mailbox", false, "do not look at the mailboxes")
	cmd.Flags().BoolVar(&choice.yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object a line")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		choice.domain = strings.Join(args, "")
		choice.show = func(u idleUser) error { return app.showIdle(u, asJSON) }
		if marked {
			return app.markedUsers(cmd.Context(), *data, choice)
		}
		return app.inactiveUsers(cmd.Context(), *data, choice)
	}
	return cmd
}

func (app *App) showIdle(u idleUser, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(app.Out).Encode(u)
	}
	what := "last log-in"
	if u.Never {
		what = "no log-in, changed"
	}
	_, err := fmt.Fprintf(app.Out, "%s  %s %s\n", u.Address, what, u.Last.Local().Format(time.DateOnly))
	return err
}

func (app *App) inactiveUsers(ctx context.Context, data string, choice inactive) error {
	if choice.days < 1 {
		return fmt.Errorf("--days %d: must be 1 or more", choice.days)
	}
	var gone []string
	err := app.withDirectory(ctx, data, func(s *directory.Store) error {
		since := time.Now().AddDate(0, 0, -choice.days)
		var found []addr.Address
		err := s.Inactive(ctx, choice.domain, since, func(i directory.Idle) error {
			if choice.excepted(i.User) {
				return nil
			}
			if !choice.fast {
				if info, err := os.Stat(filepath.Join(i.User.Dir, "Maildir", "cur")); err == nil && !info.ModTime().Before(since) && !fresh(info.ModTime(), i) {
					return nil
				}
			}
			found = append(found, i.User.Address())
			return choice.show(idleUser{i.User.Address().String(), i.Last, i.Never})
		})
		if err != nil || !choice.remove && !choice.mark || len(found) == 0 {
			return err
		}
		if choice.mark {
			question := fmt.Sprintf("Mark these %d users inactive? Mail for them is refused until they log in by POP3 or IMAP.", len(found))
			if err := app.confirm(choice.yes, question); err != nil {
				return err
			}
			for _, a := range found {
				err := s.DeactivateUser(ctx, a)
				if errors.Is(err, directory.ErrNoUser) {
					continue
				}
				if err != nil {
					return err
				}
				gone = append(gone, a.String())
			}
			return nil
		}
		if err := app.confirm(choice.yes, fmt.Sprintf("Remove these %d users?", len(found))); err != nil {
			return err
		}
		for _, a := range found {
			trash, err := s.RemoveUser(ctx, a)
			if errors.Is(err, directory.ErrNoUser) {
				continue
			}
			if err != nil {
				return fmt.Errorf("%s: %w", a, err)
			}
			gone = append(gone, a.String())
			fmt.Fprintf(app.Err, "%s is in the trash: %s\n", a, filepath.Base(trash))
		}
		return nil
	})
	// Each removal has its handle, as that by vdeluser.
	program := "vdeluser"
	if choice.mark {
		program = "vmoduser"
	}
	for _, a := range gone {
		err = errors.Join(err, app.after(ctx, data, program, a))
	}
	return err
}

// markedUsers lists who is marked inactive, and when that was done.
func (app *App) markedUsers(ctx context.Context, data string, choice inactive) error {
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		domains := []directory.Domain{{Name: choice.domain}}
		if choice.domain == "" {
			var err error
			if domains, err = s.Domains(ctx); err != nil {
				return err
			}
		}
		for _, d := range domains {
			users, err := s.InactiveUsers(ctx, d.Name)
			if err != nil {
				return err
			}
			for _, u := range users {
				logins, err := s.LastLogins(ctx, u.Address())
				if err != nil {
					return err
				}
				one := idleUser{u.Address().String(), u.Changed, len(logins) == 0}
				if !one.Never {
					one.Last = logins[0].At
				}
				if err := choice.show(one); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// fresh tells whether cur was only made, with the user.
func fresh(cur time.Time, i directory.Idle) bool {
	return i.Never && cur.Sub(i.Last).Abs() < time.Minute
}

// lifecyclePrograms are IndiMail's names for renaming, moving and clearing.
func (app *App) lifecyclePrograms() map[string]func([]string) int {
	return app.faces(map[string]oldProgram{
		"vrenamedomain": {"OLD NEW", 2, 2, "v", func(ctx context.Context, data string, operands []string, _ map[byte]string) error {
			return app.renameDomain(ctx, data, operands[0], operands[1])
		}},
		"vrenameuser": {"[-v] OLD@DOMAIN NEW@DOMAIN", 2, 2, "v", func(ctx context.Context, data string, operands []string, _ map[byte]string) error {
			return app.renameUser(ctx, data, operands[0], operands[1])
		}},
		"vmoveuser": {"USER@DOMAIN NEWDIRECTORY", 2, 2, "v", func(ctx context.Context, data string, operands []string, _ map[byte]string) error {
			return app.moveUser(ctx, data, operands[0], operands[1], false)
		}},
		"vreorg": {"[-v] DOMAIN", 1, 1, "v", func(ctx context.Context, data string, operands []string, _ map[byte]string) error {
			return app.reorganize(ctx, data, operands[0])
		}},
		"vdeloldusers": {"-d DOMAIN [-r] [-p|-i] [-a DAYS] [-s NAME]... [-fv] [-c] [-u DAYS] [-t DAYS] [-m FOLDER]...", 0, 0, "d:a:rpifvcs::u:t:m::", app.oldUsers},
		"clearopensmtp": {"", 0, 0, "v", func(ctx context.Context, data string, _ []string, _ map[byte]string) error {
			snapshot, _ := settings.Inspect(data)
			minutes := settings.RelayClearMinutes.Get(snapshot.View("all"))
			return app.withDirectory(ctx, data, func(s *directory.Store) error {
				_, err := s.ClearRelay(ctx, time.Now().Add(-time.Duration(minutes)*time.Minute))
				return err
			})
		}},
		"vfstab": {"-s [-m HOST] | -i|-l|-u|-d [-o 0|1] [-n USERS] [-q BYTES] [-m HOST] DIRECTORY | -o 0|1 DIRECTORY | -b", 0, 1, "silduo:n:q:m:bv", app.vfstab},
	})
}
