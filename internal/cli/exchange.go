package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/lists"
	"github.com/indigomail/indigo/internal/service"
)

// userImport is one run of `indigo user import`.
type userImport struct {
	app    *App
	store  *directory.Store
	file   io.ReadSeeker
	name   string
	format directory.Format
	// form is how passwords in clear text are stored, policy which are refused.
	form   auth.Form
	policy auth.Policy
	// keys decrypt kept passwords, so that they can be compared.
	keys *auth.Keyring

	dryRun, update, skipBad, force bool
	report                         importReport
}

// importReport counts lines of the file.
type importReport struct {
	Added   int `json:"added"`
	There   int `json:"there"`
	Updated int `json:"updated"`
	Bad     int `json:"bad"`
}

// importBatch is how many users one transaction adds: a kill loses no more of the work.
const importBatch = 1000

func (app *App) userImportCommand() *cobra.Command {
	var format string
	var dryRun, update, skipBad, force, asJSON bool
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Add users from a file of CSV or JSON lines",
		Long: `Add the users of a file. The first line of CSV names its columns, and the objects of JSON lines have the same names: address, password
(a stored form, $argon2id$…, $2b$…, $y$…, $6$…, $5$…, $1$…, {SSHA}… and others that Dovecot writes), cleartext (hashed here, which takes a processor some 30 ms each), name, quota
(52428800, 52428800S,1000C or NOQUOTA), flags (NO_POP NO_IMAP …, INACTIVE for who is marked so), scram. Only address is needed; without a password nobody can log in.

The whole file is looked at first. Each bad line is named, and then nothing is added, unless --skip-bad. Users who are there with what
the file says are passed over, so an import that was interrupted goes on when it is started again; who is there with something else is
a bad line, unless --update. A cleartext password is not compared with the stored one; with --update it is stored. FILE may be -, standard input. To undo, remove the users: indigo user remove, indigo domain remove.`,
		Example: "  indigo user import users.csv --dry-run\n  indigo user import users.csv\n  indigo user export example.org | ssh other indigo user import -",
		Args:    cobra.ExactArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().StringVar(&format, "format", "", "csv or jsonl (default: by the file's name, else csv)")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "look at the file, change nothing")
	cmd.Flags().BoolVar(&update, "update", false, "change users who are there to what the file says")
	cmd.Flags().BoolVar(&skipBad, "skip-bad", false, "add the others although lines are bad")
	cmd.Flags().BoolVar(&force, "force", false, "take clear-text passwords that the policy refuses")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the counts as a JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		view, err := passwordSettings(*data)
		if err != nil {
			return err
		}
		form, err := password{}.form(view)
		if err != nil {
			return err
		}
		file, err := app.seekable(args[0])
		if err != nil {
			return err
		}
		defer file.Close()
		finder := lists.New(*data)
		defer finder.Close()
		return app.withDirectory(cmd.Context(), *data, func(s *directory.Store) error {
			run := &userImport{app: app, store: s, file: file, name: args[0], format: formatOf(format, args[0]), form: form, policy: service.PasswordPolicy(view, finder), keys: service.PasswordKeys(*data, view), dryRun: dryRun, update: update, skipBad: skipBad, force: force}
			if err := run.run(cmd.Context()); err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(app.Out).Encode(run.report)
			}
			would := ""
			if dryRun {
				would = "would be "
			}
			_, err := fmt.Fprintf(app.Out, "%d %sadded, %d there already, %d %[2]schanged, %[5]d bad\n", run.report.Added, would, run.report.There, run.report.Updated, run.report.Bad)
			return err
		})
	}
	return cmd
}

func formatOf(flag, name string) directory.Format {
	switch {
	case flag != "":
		return directory.Format(flag)
	case strings.HasSuffix(name, ".jsonl"), strings.HasSuffix(name, ".ndjson"), strings.HasSuffix(name, ".json"):
		return directory.JSONLines
	}
	return directory.CSV
}

// seekable opens a file that is read twice; standard input is copied first, to a file without a name: it holds passwords.
func (app *App) seekable(name string) (*os.File, error) {
	if name != "-" {
		return os.Open(name)
	}
	f, err := os.CreateTemp("", "indigo-import-")
	if err != nil {
		return nil, err
	}
	if err = os.Remove(f.Name()); err == nil {
		_, err = io.Copy(f, app.In)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("copy standard input: %w", err)
	}
	return f, nil
}

// importAction is what is to be done with a line that is not bad.
type importAction int

const (
	importAdd importAction = iota
	importThere
	importUpdate
)

// look decides on a record.
func (run *userImport) look(ctx context.Context, record directory.Record, seen map[addr.Address]int) (directory.NewUser, importAction, error) {
	n, err := record.User()
	if err != nil {
		return n, 0, err
	}
	key := addr.Address{Local: strings.ToLower(n.Name), Domain: strings.ToLower(n.Domain)}
	if line, twice := seen[key]; twice && line != record.Line {
		return n, 0, fmt.Errorf("%s is in line %d already", key, line)
	}
	seen[key] = record.Line
	if n.Password != "" || n.Scram != "" {
		if err := auth.CheckStored(n.Password, n.Scram); err != nil {
			return n, 0, err
		}
	}
	if record.Cleartext != "" {
		if err := run.policy.Check(ctx, key, record.Cleartext); err != nil && !(run.force && errors.Is(err, auth.ErrPolicy)) {
			return n, 0, err
		}
	}
	u, err := run.store.AnyUser(ctx, key)
	line, there := n, u
	if domain, realErr := run.store.RealDomain(ctx, key.Domain); realErr == nil {
		// A kept password that is encrypted differs each time, and must be this user's.
		own := addr.Address{Local: key.Local, Domain: domain}
		var lineErr error
		if line.Password, line.Scram, lineErr = run.keys.Reveal(own, n.Password, n.Scram); lineErr != nil {
			return n, 0, fmt.Errorf("%w (`indigo user export --without-secrets` leaves such out)", lineErr)
		}
		if passwd, scram, err := run.keys.Reveal(own, u.Password, u.Scram); err == nil {
			there.Password, there.Scram = passwd, scram
		}
	}
	switch {
	case err == nil && u.Inactive && !n.Inactive:
		return n, 0, fmt.Errorf("%s is marked inactive, and the line does not say so: `indigo user activate %[1]s`", key)
	case err == nil && n.Inactive && !u.Inactive:
		return n, 0, fmt.Errorf("%s is not marked inactive, and the line says so: `indigo user deactivate %[1]s`", key)
	case errors.Is(err, directory.ErrNoUser):
		return n, importAdd, nil
	case errors.Is(err, directory.ErrNoDomain):
		return n, 0, fmt.Errorf("no domain %s: `indigo domain add %[1]s`", key.Domain)
	case err != nil:
		return n, 0, fmt.Errorf("%w: %w", errLookUp, err)
	case line.Same(there) && (record.Cleartext == "" || !run.update):
		return n, importThere, nil
	case run.update && u.Inactive:
		return n, 0, fmt.Errorf("%s is marked inactive and is something else than the line says: `indigo user activate %[1]s` first", key)
	case run.update:
		return n, importUpdate, nil
	}
	return n, 0, fmt.Errorf("%s is there and is something else than the line says: --update changes it", key)
}

// errLookUp marks errors that are no fault of the line.
var errLookUp = errors.New("the directory cannot be asked")

// records calls f with each record that is read well, from the beginning of the file; bad is told of the others.
func (run *userImport) records(ctx context.Context, bad func(*directory.LineError), f func(directory.Record) error) error {
	if _, err := run.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for record, err := range directory.ReadRecords(run.file, run.format) {
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted: %d were added; the same command goes on: %w", run.report.Added, ctx.Err())
		}
		if err == nil {
			err = f(record)
		}
		var line *directory.LineError
		if errors.As(err, &line) {
			bad(line)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", run.name, err)
		}
	}
	return nil
}

// run looks at the whole file, and then does what it says.
func (run *userImport) run(ctx context.Context) error {
	seen := map[addr.Address]int{}
	var counted importReport
	bad := func(line *directory.LineError) {
		counted.Bad++
		fmt.Fprintf(run.app.Err, "%s:%s\n", run.name, line)
	}
	err := run.records(ctx, bad, func(record directory.Record) error {
		_, action, err := run.look(ctx, record, seen)
		switch {
		case errors.Is(err, errLookUp):
			return err
		case err != nil:
			return &directory.LineError{Line: record.Line, Err: err}
		}
		*[]*int{&counted.Added, &counted.There, &counted.Updated}[action]++
		return nil
	})
	if err != nil {
		return err
	}
	if counted.Bad > 0 && !run.skipBad {
		return fmt.Errorf("%s: %d bad lines; nothing was changed", run.name, counted.Bad)
	}
	if run.dryRun {
		run.report = counted
		return nil
	}
	bar := run.app.progress(counted.Added+counted.Updated, "import")
	defer bar.Finish()
	var batch []directory.NewUser
	var clear []string
	flush := func() error {
		if err := hashAll(ctx, run.form, batch, clear); err != nil {
			return err
		}
		added, err := run.store.AddUsers(ctx, batch)
		if err != nil {
			return fmt.Errorf("%d were added: %w", run.report.Added, err)
		}
		run.report.Added += added
		// Someone else has added the rest meanwhile.
		run.report.There += len(batch) - added
		_ = bar.Add(len(batch))
		batch, clear = batch[:0], clear[:0]
		return nil
	}
	err = run.records(ctx, func(*directory.LineError) { run.report.Bad++ }, func(record directory.Record) error {
		n, action, err := run.look(ctx, record, seen)
		switch {
		case errors.Is(err, errLookUp):
			return err
		case err != nil:
			// It was told of when the file was looked at.
			run.report.Bad++
			return nil
		case action == importThere:
			run.report.There++
			return nil
		case action == importUpdate:
			one := []directory.NewUser{n}
			if err := hashAll(ctx, run.form, one, []string{record.Cleartext}); err != nil {
				return err
			}
			run.report.Updated++
			_ = bar.Add(1)
			return run.store.UpdateUser(ctx, one[0])
		}
		if batch, clear = append(batch, n), append(clear, record.Cleartext); len(batch) == importBatch {
			return flush()
		}
		return nil
	})
	if err == nil && len(batch) > 0 {
		err = flush()
	}
	return err
}

// hashAll fills in the stored forms of the passwords that were given in clear text.
func hashAll(ctx context.Context, form auth.Form, users []directory.NewUser, clear []string) error {
	if !slices.ContainsFunc(clear, func(s string) bool { return s != "" }) {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for i := range users {
		if clear[i] == "" {
			continue
		}
		g.Go(func() (err error) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if users[i].Password, users[i].Scram, err = form.Store(clear[i]); err != nil {
				err = fmt.Errorf("password of %s: %w", users[i].Address(), err)
			}
			return err
		})
	}
	return g.Wait()
}

// userWriter gives what writes users in a format, and what ends the output.
func (app *App) userWriter(format, data string) (write func(directory.User) error, finish func() error, err error) {
	if format != "passwd" && format != "shadow" {
		record, finish, err := directory.WriteRecords(app.Out, directory.Format(format))
		return func(u directory.User) error { return record(directory.RecordOf(u)) }, finish, err
	}
	owner, err := ownerOf(data)
	if err != nil {
		return nil, nil, err
	}
	return func(u directory.User) error {
		line, err := hostLine(u, format, owner.Uid, owner.Gid)
		if err == nil {
			_, err = fmt.Fprintln(app.Out, line)
		}
		return err
	}, func() error { return nil }, nil
}

// cryptForms are the stored forms that crypt(3) of Debian knows.
var cryptForms = []string{"$1$", "$5$", "$6$", "$y$", "$2a$", "$2b$", "$2y$"}

// hostLine gives a user's line of passwd(5) or shadow(5). A form that the host cannot compare becomes one that nothing fits.
func hostLine(u directory.User, format string, uid, gid uint32) (string, error) {
	name := u.Address().String()
	if strings.ContainsAny(name+u.Dir, ":\n") {
		return "", fmt.Errorf("%s: its name or home, %s, has a colon in it, which passwd(5) cannot have", name, u.Dir)
	}
	if format == "shadow" {
		hash := "!"
		if slices.ContainsFunc(cryptForms, func(form string) bool { return strings.HasPrefix(u.Password, form) }) && !strings.ContainsAny(u.Password, ":\n") {
			hash = u.Password
		}
		return name + ":" + hash + "::0:99999:7:::", nil
	}
	text := strings.NewReplacer(":", " ", "\n", " ", ",", " ").Replace(u.Gecos)
	return fmt.Sprintf("%s:x:%d:%d:%s:%s:/usr/sbin/nologin", name, uid, gid, text, u.Dir), nil
}

func (app *App) userExportCommand() *cobra.Command {
	var format string
	var without bool
	cmd := &cobra.Command{
		Use:   "export [DOMAIN...]",
		Short: "Print the users of domains, or of all, for indigo user import",
		Long: `Print users as CSV or JSON lines, with the stored forms of their passwords: keep the output as secret as the directory. The places of
their homes, which import makes anew, and their mail are not in it. A password that is kept encrypted stays so, and is of use only where its key
is (PASSWORD_KEYS), for the same address; --without-secrets leaves those that are kept themselves out. The formats passwd and shadow are those of passwd(5) and shadow(5), for
libnss-extrausers: users have their address as their name, and the uid and gid of the data directory's owner.`,
		Example: "  indigo user export example.org >users.csv\n  indigo user export --format jsonl\n  indigo user export --format passwd >/var/lib/extrausers/passwd",
	}
	data := app.dataFlag(cmd)
	cmd.Flags().StringVar(&format, "format", "csv", "csv, jsonl, passwd or shadow")
	cmd.Flags().BoolVar(&without, "without-secrets", false, "leave out passwords that are kept themselves, in clear or encrypted, and forms that are malformed")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return app.withDirectory(cmd.Context(), *data, func(s *directory.Store) error {
			write, finish, err := app.userWriter(format, *data)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				domains, err := s.Domains(cmd.Context())
				if err != nil {
					return err
				}
				for _, d := range domains {
					args = append(args, d.Name)
				}
			}
			for _, domain := range args {
				for after, more := "", true; more; {
					users, err := s.Users(cmd.Context(), domain, after, 1000)
					if err != nil {
						return err
					}
					for _, u := range users {
						if without {
							u.Password, u.Scram = auth.WithoutSecrets(u.Password, u.Scram)
						}
						if err := write(u); err != nil {
							return err
						}
						after = u.Name
					}
					more = len(users) == 1000
				}
				if format == "passwd" || format == "shadow" {
					continue
				}
				inactive, err := s.InactiveUsers(cmd.Context(), domain)
				if err != nil {
					return err
				}
				for _, u := range inactive {
					if err := write(u); err != nil {
						return err
					}
				}
			}
			return finish()
		})
	}
	return cmd
}
