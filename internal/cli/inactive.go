package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
)

// userActiveCommands are part of `indigo user`.
func (app *App) userActiveCommands() []*cobra.Command {
	deactivate := &cobra.Command{
		Use: "deactivate USER@DOMAIN", Short: "Mark a user inactive: mail is refused until a login by POP3 or IMAP", Args: cobra.ExactArgs(1),
		Long: `Mark a user inactive: mail for the address is refused with 550 5.2.1, and logins to send mail are too. What is in the mailbox stays, and
so do aliases, which hold on. The next login by POP3 or IMAP activates the user again. To undo: indigo user activate. For users who shall not
log in at all there is indigo user flags.`,
		Example: "  indigo user deactivate alice@example.org",
	}
	activate := &cobra.Command{
		Use: "activate USER@DOMAIN", Short: "Make a user who was marked inactive one of the others again", Args: cobra.ExactArgs(1),
		Example: "  indigo user activate alice@example.org",
	}
	for _, c := range []*cobra.Command{deactivate, activate} {
		data := app.dataFlag(c)
		c.RunE = func(cmd *cobra.Command, args []string) error {
			a, err := addr.Parse(args[0])
			if err != nil {
				return err
			}
			return app.switchUser(cmd.Context(), *data, a, c == activate)
		}
	}
	return []*cobra.Command{deactivate, activate, app.userExpireMailCommand()}
}

// switchUser marks a user inactive, or active again, and runs the handle of vmoduser.
func (app *App) switchUser(ctx context.Context, data string, a addr.Address, active bool) error {
	err := app.withDirectory(ctx, data, func(s *directory.Store) error {
		if active {
			return s.ActivateUser(ctx, a)
		}
		return s.DeactivateUser(ctx, a)
	})
	if err != nil {
		return err
	}
	return app.after(ctx, data, "vmoduser", a.String())
}

// turnUser marks a user inactive, or active again who is.
func (app *App) turnUser(ctx context.Context, data string, a addr.Address) error {
	active := false
	err := app.withDirectory(ctx, data, func(s *directory.Store) error {
		u, err := s.AnyUser(ctx, a)
		active = u.Inactive
		if err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return app.switchUser(ctx, data, a, active)
}

// expiry is a choice of old mail.
type expiry struct {
	// of is a domain or a user; "" is everybody.
	of string
	// folders are those of the mailboxes, INBOX or the names of others.
	folders []string
	days    int
	// unread leaves alone what was read.
	unread, dry, yes bool
	asJSON           bool
}

// expired is a line of `indigo user expire-mail`.
type expired struct {
	Address  string `json:"address"`
	Folder   string `json:"folder"`
	Messages int    `json:"messages"`
}

func (app *App) userExpireMailCommand() *cobra.Command {
	var e expiry
	cmd := &cobra.Command{
		Use: "expire-mail USER@DOMAIN|DOMAIN", Short: "Delete old mail from a folder of a user, or of all users of a domain", Args: cobra.ExactArgs(1),
		Long: `Delete the messages of a folder that have lain there unchanged for so many days: since they came, were moved there, or were last
given a flag. Flagged ones stay. It names the users and how many messages, and asks. There is no way to undo it: the messages are gone, and
leave the quota. Users may be logged in meanwhile.`,
		Example: "  indigo user expire-mail example.org --folder Trash --days 30 --dry-run\n  indigo user expire-mail alice@example.org --days 365 --unread",
	}
	data := app.dataFlag(cmd)
	f := cmd.Flags()
	f.StringSliceVar(&e.folders, "folder", []string{"INBOX"}, "`FOLDER`; once more for another")
	f.IntVar(&e.days, "days", -1, "days that a message must have lain there")
	f.BoolVar(&e.unread, "unread", false, "only what was never read")
	f.BoolVar(&e.dry, "dry-run", false, "only tell")
	f.BoolVar(&e.yes, "yes", false, "do not ask")
	f.BoolVar(&e.asJSON, "json", false, "print a JSON object a line")
	cmd.MarkFlagRequired("days")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		e.of = args[0]
		return app.expireMail(cmd.Context(), *data, e)
	}
	return cmd
}

// expireMail tells what is old, asks, and deletes it.
func (app *App) expireMail(ctx context.Context, data string, e expiry) error {
	if e.days < 0 {
		return fmt.Errorf("--days %d: must be 0 or more", e.days)
	}
	before := time.Now().AddDate(0, 0, -e.days)
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		type old struct{ path, address string }
		var found []old
		messages := 0
		look := func(u directory.User) error {
			for _, folder := range e.folders {
				path, name, err := folderPath(u, folder)
				if err != nil {
					return err
				}
				list, err := oldMessages(path, before, e.unread)
				if err != nil {
					return fmt.Errorf("%s: %w", u.Address(), err)
				}
				if len(list) == 0 {
					continue
				}
				found, messages = append(found, old{path, u.Address().String()}), messages+len(list)
				if e.asJSON {
					err = json.NewEncoder(app.Out).Encode(expired{u.Address().String(), name, len(list)})
				} else {
					_, err = fmt.Fprintf(app.Out, "%s  %s  %d messages\n", u.Address(), name, len(list))
				}
				if err != nil {
					return err
				}
			}
			return nil
		}
		var err error
		if strings.Contains(e.of, "@") {
			var a addr.Address
			var u directory.User
			if a, err = addr.Parse(e.of); err == nil {
				if u, err = s.AnyUser(ctx, a); err == nil {
					err = look(u)
				} else {
					err = fmt.Errorf("%s: %w", a, err)
				}
			}
		} else {
			err = everyUser(ctx, s, e.of, look)
		}
		if err != nil || len(found) == 0 || e.dry {
			return err
		}
		if err := app.confirm(e.yes, fmt.Sprintf("Delete these %d messages for good?", messages)); err != nil {
			return err
		}
		for _, one := range found {
			list, err := oldMessages(one.path, before, e.unread)
			if err != nil {
				return fmt.Errorf("%s: %w", one.address, err)
			}
			if err := errors.Join(maildir.Expunge(list...)...); err != nil {
				return fmt.Errorf("%s: %w", one.address, err)
			}
		}
		return nil
	})
}

// folderPath gives where a folder of a user lies, and its name.
func folderPath(u directory.User, folder string) (path, name string, err error) {
	name = strings.TrimPrefix(folder, ".")
	path = filepath.Join(u.Dir, "Maildir")
	switch {
	case !filepath.IsAbs(u.Dir):
		return "", "", fmt.Errorf("%s: the home %q is no absolute path", u.Address(), u.Dir)
	case strings.EqualFold(name, "INBOX"):
		return path, "INBOX", nil
	case name == "" || strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, "."):
		return "", "", fmt.Errorf("folder %q: a name as in Maildir++, without /", folder)
	}
	return filepath.Join(path, "."+name), name, nil
}

// oldMessages gives the messages of a folder that nothing happened to since a time, but the flagged ones.
func oldMessages(path string, before time.Time, unread bool) (old []*maildir.Message, err error) {
	all, err := maildir.List(path)
	if err != nil {
		return nil, err
	}
	for i := range all {
		m := &all[i]
		if strings.Contains(m.Flags, "F") || unread && strings.Contains(m.Flags, "S") {
			continue
		}
		info, err := os.Lstat(m.File)
		if errors.Is(err, fs.ErrNotExist) {
			// It got a flag this moment.
			continue
		}
		if err != nil {
			return nil, err
		}
		if changed(info).Before(before) {
			old = append(old, m)
		}
	}
	return old, nil
}

// changed is when a file last got a name, a flag or text.
func changed(info fs.FileInfo) time.Time {
	at := info.ModTime()
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		if c := time.Unix(stat.Ctim.Unix()); c.After(at) {
			at = c
		}
	}
	return at
}

// oldUsers is vdeloldusers: who has not logged in for -a days is named (-r), removed (-p) or marked inactive (-i); with -u, -t and -m old mail
// goes too, with -c alone.
func (app *App) oldUsers(ctx context.Context, data string, _ []string, options map[byte]string) error {
	given := func(letter byte) bool { _, is := options[letter]; return is }
	number := func(letter byte, otherwise int) (int, error) {
		text, is := options[letter]
		if !is {
			return otherwise, nil
		}
		n, err := strconv.Atoi(text)
		if err != nil {
			err = fmt.Errorf("-%c %q is no number of days", letter, text)
		}
		return n, err
	}
	report := given('r')
	choice := inactive{domain: options['d'], yes: true, remove: given('p') && !report, mark: given('i') && !report, fast: given('f'), show: func(u idleUser) error { return app.showIdle(u, false) }}
	actions := 0
	for _, letter := range []byte("pic") {
		if given(letter) {
			actions++
		}
	}
	mail := given('u') || given('t') || given('m')
	if choice.domain == "" || actions > 1 || actions == 0 && !report && !mail || given('c') && !mail {
		return errors.New("usage: vdeloldusers -d DOMAIN [-r] [-p|-i] [-a DAYS] [-s NAME]... [-f] [-c] [-u DAYS] [-t DAYS] [-m FOLDER]...: -r only tells, -p removes and -i marks inactive who has not logged in for DAYS; " +
			"-u deletes unread mail, -t that in Trash or the folders of -m; -c does that alone")
	}
	if text := options['s']; text != "" {
		choice.except = strings.Split(text, "\n")
	}
	var err error
	if choice.days, err = number('a', 60); err != nil {
		return err
	}
	unread, err := number('u', -1)
	if err != nil {
		return err
	}
	trash, err := number('t', 1)
	if err != nil {
		return err
	}
	if report && actions == 0 && !mail || given('p') || given('i') {
		if err := app.inactiveUsers(ctx, data, choice); err != nil {
			return err
		}
	}
	if unread >= 0 && given('u') {
		if err := app.expireMail(ctx, data, expiry{of: choice.domain, folders: []string{"INBOX"}, days: unread, unread: true, dry: report, yes: true}); err != nil {
			return err
		}
	}
	if trash >= 0 && (given('t') || given('m')) {
		folders := []string{"Trash"}
		if text := options['m']; text != "" {
			folders = strings.Split(text, "\n")
		}
		return app.expireMail(ctx, data, expiry{of: choice.domain, folders: folders, days: trash, dry: report, yes: true})
	}
	return nil
}

// excepted tells whether a user is passed over: by name, or as a group, to which nobody logs in.
func (choice inactive) excepted(u directory.User) bool {
	return u.IsGroup() || slices.Contains(choice.except, u.Gecos)
}
