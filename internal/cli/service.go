package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/service"
	"github.com/indigomail/indigo/internal/settings"
)

func (app *App) serviceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "service",
		Short:   "List, start, stop, restart, reload, add and remove services, each alone",
		Example: "  indigo service list\n  indigo service restart smtpd.25\n  indigo service add smtpd.2525 REQUIREAUTH=1",
	}
	var asJSON bool
	list := &cobra.Command{Use: "list", Short: "List the services with their state", Example: "  indigo service list", Args: cobra.NoArgs}
	listData := app.dataFlag(list)
	list.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	list.RunE = func(cmd *cobra.Command, _ []string) error {
		all, err := service.NewControl(*listData).Services(cmd.Context())
		if err != nil {
			return err
		}
		return app.table(asJSON, all, 0, func(w io.Writer) { printServices(w, all) })
	}
	status := &cobra.Command{Use: "status [NAME...]", Short: "Tell the state of services, with what went wrong", Example: "  indigo service status smtpd.25"}
	statusData := app.dataFlag(status)
	status.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	status.RunE = func(cmd *cobra.Command, args []string) error {
		all, err := service.NewControl(*statusData).Services(cmd.Context())
		if err != nil {
			return err
		}
		for _, name := range args {
			if !slices.ContainsFunc(all, func(s service.ServiceState) bool { return s.Name == settings.ServiceName(name) }) {
				return fmt.Errorf("no service %q", name)
			}
		}
		all = slices.DeleteFunc(all, func(s service.ServiceState) bool {
			return len(args) > 0 && !slices.ContainsFunc(args, func(name string) bool { return settings.ServiceName(name) == s.Name })
		})
		return app.table(asJSON, all, 0, func(w io.Writer) {
			for _, s := range all {
				fmt.Fprintf(w, "%s\t%s\t%s\n", s.Name, stateWord(s), seconds(s))
				fmt.Fprintf(w, "  listens on\t%s\t%d connections\n", s.Address, s.Connections)
				if s.Restarts > 0 || s.Failure != "" {
					fmt.Fprintf(w, "  restarts\t%d\t%s\n", s.Restarts, s.Failure)
				}
			}
		})
	}
	verb := func(name, short, long string) *cobra.Command {
		c := &cobra.Command{Use: name + " NAME...", Short: short, Long: long, Example: "  indigo service " + name + " smtpd.25", Args: cobra.MinimumNArgs(1)}
		data := app.dataFlag(c)
		c.RunE = func(cmd *cobra.Command, args []string) error {
			control := service.NewControl(*data)
			var faults []error
			for _, one := range args {
				faults = append(faults, control.ServiceDo(cmd.Context(), settings.ServiceName(one), name))
			}
			return errors.Join(faults...)
		}
		return c
	}
	var lines int
	log := &cobra.Command{
		Use:     "log [NAME]",
		Short:   "Print the last lines of a service's log, or of all",
		Long:    "Print the last lines of a service's log: from its directory when LOG_DIR is set, or else those that the running instance\nremembers.",
		Example: "  indigo service log smtpd.25 --lines 50", Args: cobra.MaximumNArgs(1),
	}
	logData := app.dataFlag(log)
	log.Flags().IntVar(&lines, "lines", 100, "how many")
	log.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	log.RunE = func(cmd *cobra.Command, args []string) error {
		name := ""
		if len(args) > 0 {
			name = settings.ServiceName(args[0])
		}
		all, err := app.logLines(cmd.Context(), *logData, name, lines)
		if err != nil {
			return err
		}
		if asJSON {
			return app.table(true, all, 0, nil)
		}
		for _, line := range all {
			fmt.Fprintln(app.Out, line.Text)
		}
		return nil
	}
	var down bool
	add := &cobra.Command{
		Use:   "add NAME [VARIABLE=VALUE...]",
		Short: "Make a service of a kind, with settings of its own",
		Long: `Make a service: KIND.PORT, or KIND.NAME with PORT among the variables. The kinds are ` + strings.Join(service.Kinds(), ", ") + `.
A running instance starts it at once. To undo: indigo service remove NAME.`,
		Example: "  indigo service add smtpd.2525 REQUIREAUTH=1 MAXDAEMONS=20\n  indigo service add smtpd.inside PORT=2626 LISTEN=10.0.0.1",
		Args:    cobra.MinimumNArgs(1),
	}
	addData := app.dataFlag(add)
	add.Flags().BoolVar(&down, "down", false, "do not start it: make its file down, which a start passes over")
	add.RunE = func(cmd *cobra.Command, args []string) error {
		if err := service.Add(*addData, args[0], args[1:], down); err != nil {
			return err
		}
		control := service.NewControl(*addData)
		err := control.Reload(cmd.Context())
		if errors.Is(err, service.ErrNotRunning) {
			return nil
		}
		if err == nil && !down {
			if err = control.ServiceDo(cmd.Context(), args[0], "start"); err != nil {
				err = fmt.Errorf("the service was made but does not start yet, and is tried again: %w", err)
			}
		}
		return err
	}
	var yes bool
	remove := &cobra.Command{
		Use: "remove NAME", Short: "Remove a service that was added, with its settings", Example: "  indigo service remove smtpd.2525 --yes", Args: cobra.ExactArgs(1),
	}
	removeData := app.dataFlag(remove)
	remove.Flags().BoolVar(&yes, "yes", false, "do not ask")
	remove.RunE = func(cmd *cobra.Command, args []string) error {
		if err := app.confirm(yes, "Remove the service "+args[0]+" and its variables?"); err != nil {
			return err
		}
		if err := service.Remove(*removeData, args[0]); err != nil {
			return err
		}
		return app.reloadIfRunning(cmd.Context(), *removeData)
	}
	cmd.AddCommand(list, status,
		verb("start", "Start services", "Start services. A file services/NAME/down keeps one from starting with the instance; this starts it until the instance ends."),
		verb("stop", "Stop services: open sessions may end within the seconds of DRAIN", "Stop services. Nothing of the others is touched. Stopping queue, or queue.NAME, ends deliveries, and mail is still taken."),
		verb("restart", "Restart services", "Restart services: the port stays open, new connections go to the new server, and open sessions may end within the seconds\nof DRAIN. Nothing of the other services is touched."),
		verb("reload", "Read the settings again", "Read the settings again, as `indigo reload`: all services share them."),
		log, add, remove)
	return cmd
}

// reloadIfRunning makes a running instance take a change over.
func (app *App) reloadIfRunning(ctx context.Context, data string) error {
	err := service.NewControl(data).Reload(ctx)
	if errors.Is(err, service.ErrNotRunning) {
		return nil
	}
	return err
}

func stateWord(s service.ServiceState) string {
	switch {
	case s.Up:
		return "up"
	case s.Wanted:
		return "failing"
	}
	return "down"
}

func seconds(s service.ServiceState) string {
	return fmt.Sprintf("%d seconds", int(time.Since(s.Since).Seconds()))
}

func printServices(w io.Writer, all []service.ServiceState) {
	fmt.Fprintln(w, "service\tstate\tfor\taddress\tconnections\trestarts\tlast failure")
	for _, s := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s\n", s.Name, stateWord(s), seconds(s), s.Address, s.Connections, s.Restarts, s.Failure)
	}
}

// logLines gives the last lines of a service's log.
func (app *App) logLines(ctx context.Context, data, name string, limit int) ([]service.LogLine, error) {
	if snapshot, err := settings.Load(data); err == nil && name != "" {
		if dir := settings.LogDir.Get(snapshot.View(name)); dir != "" {
			if !filepath.IsAbs(dir) {
				dir = filepath.Join(data, dir)
			}
			texts, err := service.ReadMultilog(filepath.Join(dir, name), limit)
			if errors.Is(err, os.ErrNotExist) {
				// It was set after the start.
				return service.NewControl(data).Recent(ctx, name, limit)
			}
			if err != nil {
				return nil, err
			}
			all := []service.LogLine{}
			for _, text := range texts {
				all = append(all, service.LogLine{Service: name, Text: text})
			}
			return all, nil
		}
	}
	return service.NewControl(data).Recent(ctx, name, limit)
}

// servicePrograms are daemontools' programs for services, as IndiMail has them (wiki 812-876, 4250-4278). A service is named
// by its directory, /service/qmail-smtpd.25, of which only the last part counts.
func (app *App) servicePrograms() map[string]func([]string) int {
	control := func() *service.Control { return service.NewControl(settings.FromEnvironment().Data) }
	named := func(path string) string { return settings.ServiceName(filepath.Base(filepath.Clean(path))) }
	fail := func(program string, err error) int {
		fmt.Fprintf(app.Err, "%s: %v\n", program, err)
		return 111
	}
	find := func(all []service.ServiceState, path string) *service.ServiceState {
		for i := range all {
			if all[i].Name == named(path) {
				return &all[i]
			}
		}
		return nil
	}
	return map[string]func([]string) int{
		"svc": func(args []string) int {
			verbs := map[rune]string{'u': "start", 'o': "start", 'd': "stop", 'r': "restart", 't': "restart", 'k': "restart", 'h': "reload", 'a': "reload"}
			var wanted []string
			for len(args) > 0 && strings.HasPrefix(args[0], "-") && args[0] != "--" {
				for _, letter := range args[0][1:] {
					verb, ok := verbs[letter]
					if !ok {
						fmt.Fprintf(app.Err, "svc: -%c is not known here: -u and -o start, -d stops, -r, -t and -k restart, -h and -a read the settings again\n", letter)
						return 100
					}
					wanted = append(wanted, verb)
				}
				args = args[1:]
			}
			if len(args) == 0 || len(wanted) == 0 {
				fmt.Fprintln(app.Err, "usage: svc [-uodrtkha] SERVICE...")
				return 100
			}
			code := 0
			for _, path := range args {
				for _, verb := range wanted {
					if err := control().ServiceDo(context.Background(), named(path), verb); err != nil {
						fmt.Fprintf(app.Err, "svc: warning: unable to control %s: %v\n", path, err)
						code = 111
					}
				}
			}
			return code
		},
		"svstat": func(args []string) int {
			if len(args) == 0 {
				fmt.Fprintln(app.Err, "usage: svstat SERVICE...")
				return 100
			}
			all, err := control().Services(context.Background())
			if err != nil {
				return fail("svstat", err)
			}
			for _, path := range args {
				s := find(all, path)
				if s == nil {
					fmt.Fprintf(app.Out, "%s: unable to open supervise/ok: there is no such service\n", path)
					continue
				}
				fmt.Fprintf(app.Out, "%s: %s\n", path, svstatText(s))
			}
			return 0
		},
		"svok": func(args []string) int {
			if len(args) != 1 {
				fmt.Fprintln(app.Err, "usage: svok SERVICE")
				return 100
			}
			all, err := control().Services(context.Background())
			if err != nil || find(all, args[0]) == nil {
				return 100
			}
			return 0
		},
		"svps": func(args []string) int {
			logs := false
			for _, a := range args {
				switch a {
				case "-a":
					logs = true
				case "-h":
					if err := control().Reload(context.Background()); err != nil {
						return fail("svps", err)
					}
					return 0
				default:
					fmt.Fprintln(app.Err, "usage: svps [-a | -h]")
					return 100
				}
			}
			c := control()
			all, err := c.Services(context.Background())
			if err != nil {
				return fail("svps", err)
			}
			status, err := c.Status(context.Background())
			if err != nil {
				return fail("svps", err)
			}
			w := tabwriter.NewWriter(app.Out, 0, 0, 1, ' ', 0)
			up := time.Since(status.Started)
			fmt.Fprintf(w, "------------ svscan ---------------\nindigo\tup\t%d secs\tpid %d\n------------ main -----------------\n", int(up.Seconds()), status.PID)
			line := func(name string, s service.ServiceState, pid string) {
				word := "down"
				if s.Up {
					word = "up"
				}
				fmt.Fprintf(w, "/service/%s\t%s\t%d secs\t%s %d\n", name, word, int(time.Since(s.Since).Seconds()), pid, s.PID)
			}
			slices.SortStableFunc(all, func(a, b service.ServiceState) int {
				return strings.Compare(fmt.Sprint(a.Up, oldName(a)), fmt.Sprint(b.Up, oldName(b)))
			})
			for _, s := range all {
				pid := "pid"
				if !s.Up {
					pid = "spid"
				}
				line(oldName(s), s, pid)
			}
			if logs {
				fmt.Fprintln(w, "------------ logs -----------------")
				for _, s := range all {
					s.Up, s.Since = true, status.Started
					line(oldName(s)+"/log", s, "pid")
				}
			}
			if err := w.Flush(); err != nil {
				return fail("svps", err)
			}
			return 0
		},
		"svctool": app.svctool,
		"minisvc": app.svctool,
	}
}

// oldName gives IndiMail's name for a service.
func oldName(s service.ServiceState) string {
	if s.Directory != s.Name && s.Directory != "" {
		return s.Directory
	}
	switch {
	case strings.HasPrefix(s.Name, "smtpd.") || strings.HasPrefix(s.Name, "pop3d.") || strings.HasPrefix(s.Name, "imapd."):
		return "qmail-" + s.Name
	case s.Name == "queue":
		return "qmail-send.25"
	}
	return s.Name
}

// svstatText gives what svstat says of a service.
func svstatText(s *service.ServiceState) string {
	text := fmt.Sprintf("down %d seconds spid %d", int(time.Since(s.Since).Seconds()), s.PID)
	if s.Up {
		text = fmt.Sprintf("up %d seconds pid %d", int(time.Since(s.Since).Seconds()), s.PID)
	}
	if !s.Up && s.Wanted {
		text += ", want up: " + s.Failure
	}
	return text
}

// svctool prints what to do in Indigo in the place of a command line of IndiMail's set-up script; what only prints, it does.
func (app *App) svctool(args []string) int {
	e := settings.FromEnvironment()
	option := map[string][]string{}
	var order []string
	for _, a := range args {
		// The wiki's pages have typographic dashes and quotes in places.
		a = strings.NewReplacer("–", "--", "”", "", "“", "", `"`, "").Replace(a)
		name, value, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if !strings.HasPrefix(a, "-") {
			continue
		}
		option[name] = append(option[name], value)
		order = append(order, name)
	}
	if len(order) == 0 {
		fmt.Fprintln(app.Err, "usage: svctool --smtp=PORT …, as IndiMail's; it prints the commands that do the same here")
		return 100
	}
	if names := option["print-variables"]; names != nil {
		name := strings.Join(append(names, option["service-name"]...), "")
		return app.printVariables(e.Data, name)
	}
	if option["dumpconfig"] != nil {
		if err := app.dumpSettings(e.Data, false); err != nil {
			fmt.Fprintln(app.Err, "svctool:", err)
			return 1
		}
		return 0
	}
	for _, line := range service.FromSvctool(order, option) {
		fmt.Fprintln(app.Out, line)
	}
	return 0
}

// printVariables prints the variables that a service's layers set, as `svctool --print-variables` does (wiki 398-462).
func (app *App) printVariables(data, name string) int {
	snapshot, err := settings.Load(data)
	if err != nil {
		fmt.Fprintln(app.Err, "svctool:", err)
		return 1
	}
	name = settings.ServiceName(filepath.Base(name))
	for _, one := range snapshot.View(name).Environment() {
		variable, _, _ := strings.Cut(one, "=")
		if s, err := settings.Lookup(variable); err == nil && s.Secret {
			one = variable + "=" + hidden
		}
		fmt.Fprintln(app.Out, one)
	}
	return 0
}

// hasService tells whether a data directory has a service of this name, down or not.
func hasService(data, name string) bool {
	names, err := service.Instances(data)
	return err == nil && slices.Contains(names, name)
}
