package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/service"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/wire"
)

// who names the one who called: who became root by sudo or doas is known by the name before.
func (app *App) who() string {
	if app.uid == 0 {
		e := settings.FromEnvironment()
		if name := cmp.Or(e.Get("SUDO_USER"), e.Get("DOAS_USER")); name != "" {
			return name
		}
	}
	id := strconv.Itoa(app.uid)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "uid " + id
}

func (app *App) dbLogCommand() *cobra.Command {
	var most int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "log [DOMAIN|USER@DOMAIN]",
		Short: "Tell who changed what in the directory, the latest first",
		Long: `Tell who changed what in the directory: of all, of a domain, or of one user. Each change by Indigo's commands is written down in the same
transaction, in IndiMail's table vlog, with the host's name of who called the command (before sudo); passwords never are.`,
		Example: "  indigo db log\n  indigo db log alice@example.org --json -n 1000", Args: cobra.MaximumNArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().IntVarP(&most, "lines", "n", 50, "at most so many")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object a line")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, domain := "", ""
		if len(args) > 0 {
			domain = args[0]
			if before, after, found := strings.Cut(domain, "@"); found {
				name, domain = before, after
			}
		}
		return app.withDirectory(cmd.Context(), *data, func(s *directory.Store) error {
			for before := int64(0); most > 0; {
				page := min(most, 1000)
				changes, next, err := s.Changes(cmd.Context(), name, domain, before, page)
				if err != nil {
					return err
				}
				for _, c := range changes {
					if asJSON {
						err = json.NewEncoder(app.Out).Encode(c)
					} else {
						_, err = fmt.Fprintf(app.Out, "%s %s %s %s\n", c.Time.Local().Format(time.DateTime), c.Who, strings.TrimPrefix(c.User+"@"+c.Domain, "@"),
							wire.Printable(c.What))
					}
					if err != nil {
						return err
					}
				}
				if before, most = next, most-page; len(changes) < page {
					break
				}
			}
			return nil
		})
	}
	return cmd
}

func (app *App) dbCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "db",
		Short: "Look at, bring up to date and copy the directory's database",
		Long: `The directory's database is SQLite in the data directory, or what the setting DIRECTORY_DSN or the control file host.mysql
names: MariaDB, MySQL or PostgreSQL.`,
		Example: "  indigo db status\n  indigo db copy --to mysql://indimail:PASSWORD@db.example.org/indimail",
	}
	var asJSON bool
	status := &cobra.Command{
		Use: "status", Short: "Tell where the database is, its tables, and what a migration would change", Example: "  indigo db status", Args: cobra.NoArgs,
	}
	statusData := app.dataFlag(status)
	status.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	status.RunE = func(cmd *cobra.Command, _ []string) error {
		config, err := service.DirectoryConfig(*statusData)
		if err != nil {
			return err
		}
		s, err := directory.Inspect(cmd.Context(), config)
		if err != nil {
			return err
		}
		return app.table(asJSON, s, 0, func(w io.Writer) {
			fmt.Fprintf(w, "engine\t%s\nplace\t%s\n", s.Engine, s.Where)
			names := make([]string, 0, len(s.Rows))
			for name := range s.Rows {
				names = append(names, name)
			}
			slices.Sort(names)
			for _, name := range names {
				fmt.Fprintf(w, "table %s\t%d rows\n", name, s.Rows[name])
			}
			if s.Foreign {
				fmt.Fprintln(w, "IndiMail's own: it is not opened before `indigo db migrate` has made these changes")
			}
			for _, change := range s.Changes {
				fmt.Fprintf(w, "would change\t%s\n", change)
			}
			if len(s.Changes) == 0 {
				fmt.Fprintln(w, "up to date")
			}
		})
	}
	initialize := &cobra.Command{
		Use:   "init",
		Short: "Make the tables in an empty database",
		Long: `Make the tables that are missing, and name each. An instance does so itself when it starts; this is for a database that is to be ready
before. A database with IndiMail's own tables is left as it is: see indigo db migrate. To undo, drop the tables.`,
		Example: "  indigo db init", Args: cobra.NoArgs,
	}
	initData := app.dataFlag(initialize)
	initialize.RunE = func(cmd *cobra.Command, _ []string) error { return app.installTables(cmd.Context(), *initData) }
	var yes bool
	migrate := &cobra.Command{
		Use:   "migrate",
		Short: "Make the tables, or bring them up to date",
		Long: `Make the tables that are missing and add the columns that are missing; nothing is taken away and no row is changed. It prints
what it will do and asks. It may run twice, and from two hosts at once. To undo, restore a copy of the database: tables and
columns that were added do IndiMail no harm.`,
		Example: "  indigo db migrate\n  indigo db migrate --yes", Args: cobra.NoArgs,
	}
	migrateData := app.dataFlag(migrate)
	migrate.Flags().BoolVar(&yes, "yes", false, "do not ask")
	migrate.RunE = func(cmd *cobra.Command, _ []string) error {
		config, err := service.DirectoryConfig(*migrateData)
		if err != nil {
			return err
		}
		s, err := directory.Inspect(cmd.Context(), config)
		if err != nil {
			return err
		}
		for _, change := range s.Changes {
			fmt.Fprintln(app.Out, change)
		}
		if len(s.Changes) > 0 || s.Foreign {
			if err := app.confirm(yes, fmt.Sprintf("Run these %d statements on %s?", len(s.Changes), s.Where)); err != nil {
				return err
			}
		}
		if err := directory.Migrate(cmd.Context(), config); err != nil {
			return err
		}
		fmt.Fprintf(app.Out, "%s is up to date\n", s.Where)
		return nil
	}
	var to string
	copyTo := &cobra.Command{
		Use:   "copy --to DSN",
		Short: "Copy the database to another engine, and compare both",
		Long: `Copy every table to another, empty database, and compare counts and contents. The source is only read; nothing may write to it
meanwhile, so stop the instance. Then set DIRECTORY_DSN and start again. To undo, unset DIRECTORY_DSN: the old database is as it
was. --to - reads the DSN, which may hold a password, from standard input.`,
		Example: "  indigo db copy --to postgres://indimail:PASSWORD@db.example.org/indimail\n  indigo db copy --to - < dsn", Args: cobra.NoArgs,
	}
	copyData := app.dataFlag(copyTo)
	copyTo.Flags().StringVar(&to, "to", "", "the target: mysql://…, postgres://…, sqlite:FILE, or - for standard input")
	copyTo.RunE = func(cmd *cobra.Command, _ []string) error {
		if to == "" {
			return errors.New("--to must name the target")
		}
		config, err := service.DirectoryConfig(*copyData)
		if err != nil {
			return err
		}
		if to == "-" {
			if to, err = app.readPassword("-"); err != nil {
				return err
			}
		}
		target := config
		target.DSN = to
		if _, err := service.NewControl(*copyData).Status(cmd.Context()); err == nil {
			fmt.Fprintln(app.Err, "warning: an instance is running: what it writes from now on, log-ins too, may be missing in the copy. To change over, stop it, make the target anew, and copy again")
		}
		rows := map[string]int64{}
		if err := directory.Copy(cmd.Context(), config, target, copyProgress(app.Err, time.Now, rows)); err != nil {
			return err
		}
		total := int64(0)
		for _, n := range rows {
			total += n
		}
		fmt.Fprintf(app.Out, "%d rows of %d tables copied and compared; set DIRECTORY_DSN and restart to use them\n", total, len(rows))
		return nil
	}
	cmd.AddCommand(status, initialize, migrate, copyTo, app.dbLogCommand(), app.dbServerCommand(), app.dbCacheCommand())
	return cmd
}

// copyEvery is how often a copy tells of a table that takes long.
const copyEvery = 10 * time.Second

// copyProgress counts rows, and tells of each table that has some: when it is through, and now and then before.
func copyProgress(w io.Writer, now func() time.Time, rows map[string]int64) directory.Progress {
	told := now()
	return func(table string, copied, of int64) {
		before, begun := rows[table]
		rows[table] = copied
		if begun && before == copied || copied == 0 || copied < of && now().Sub(told) < copyEvery {
			return
		}
		told = now()
		fmt.Fprintf(w, "%s: %d of %d\n", table, copied, of)
	}
}

// installTables is `indigo db init` and IndiMail's install_tables (wiki 4122-4142). A database of IndiMail's own is left to migrate, which shows what it
// would change.
func (app *App) installTables(ctx context.Context, data string) error {
	config, err := service.DirectoryConfig(data)
	if err != nil {
		return err
	}
	before, err := directory.Inspect(ctx, config)
	if err != nil {
		return err
	}
	if before.Foreign {
		return fmt.Errorf("%s holds IndiMail's own tables: `indigo db migrate` shows what would be changed and asks; nothing was done", before.Where)
	}
	if err := directory.Migrate(ctx, config); err != nil {
		return err
	}
	for _, t := range directory.Schema() {
		word := "created"
		if _, there := before.Rows[t.Name]; there {
			word = "skipped"
		}
		fmt.Fprintf(app.Out, "%s table %s on local\n", word, t.Name)
	}
	return nil
}
