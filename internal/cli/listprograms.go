package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/cdb"
	"github.com/indigomail/indigo/internal/lists"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/service"
	"github.com/indigomail/indigo/internal/settings"
)

// buildList makes control/NAME.cdb out of control/NAME, as qmail-cdb; it gives the number of entries.
func buildList(data, name string) (path string, n int, err error) {
	dir := controlDirectory(data)
	if filepath.Base(name) != name {
		return "", 0, fmt.Errorf("%q is no name of a control file", name)
	}
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return "", 0, err
	}
	path = filepath.Join(dir, name+".cdb")
	return path, strings.Count(string(text), "\n"), writeList(path, string(text))
}

func writeList(path, text string) error {
	mode := os.FileMode(0o644)
	if info, err := os.Stat(strings.TrimSuffix(path, ".cdb")); err == nil {
		mode = info.Mode().Perm()
	}
	w, err := cdb.Create(path, mode)
	if err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		if line = strings.ToLower(strings.TrimSpace(line)); line == "" || line[0] == '#' {
			continue
		}
		if err := w.Add([]byte(line), nil); err != nil {
			w.Abort()
			return err
		}
	}
	return w.Commit()
}

// controlDirectory is $CONTROLDIR, or the data directory's.
func controlDirectory(data string) string {
	control := cmp.Or(settings.FromEnvironment().Get("CONTROLDIR"), "control")
	if filepath.IsAbs(control) {
		return control
	}
	return filepath.Join(data, control)
}

func (app *App) listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "Build and ask the control files that are lists: badmailfrom, badrcptto, relaymailfrom and their like",
		Example: "  indigo list build badmailfrom\n  indigo list test badmailfrom spammer@example.org @example.org",
	}
	build := &cobra.Command{
		Use:     "build NAME",
		Short:   "Make the constant database NAME.cdb out of the control file NAME",
		Long:    "Make the constant database control/NAME.cdb out of control/NAME. From the next reload on it is asked before the text.\nTo undo, remove NAME.cdb.",
		Example: "  indigo list build badmailfrom && indigo reload",
		Args:    cobra.ExactArgs(1),
	}
	buildData := app.dataFlag(build)
	build.RunE = func(_ *cobra.Command, args []string) error {
		path, n, err := buildList(*buildData, args[0])
		if err == nil {
			fmt.Fprintf(app.Out, "%s: %d lines; in force after `indigo reload`\n", path, n)
		}
		return err
	}
	var asJSON bool
	var name string
	test := &cobra.Command{
		Use:     "test NAME KEY...",
		Short:   "Tell which of the keys a list has, and in which of its files",
		Example: "  indigo list test badmailfrom spammer@example.org @example.org",
		Args:    cobra.MinimumNArgs(2),
	}
	testData := app.dataFlag(test)
	test.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	test.Flags().StringVar(&name, "service", "smtpd.25", "the service whose list it is")
	test.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := settings.Lookup(args[0])
		if err != nil {
			return err
		}
		snapshot, err := settings.Load(*testData)
		if err != nil {
			return err
		}
		list, err := snapshot.View(name).List(s)
		if err != nil {
			return err
		}
		finder := lists.New(*testData)
		defer finder.Close()
		type answer struct {
			Key   string `json:"key"`
			Found bool   `json:"found"`
			Where string `json:"where,omitempty"`
		}
		var all []answer
		for _, key := range args[1:] {
			hit, err := finder.Find(cmd.Context(), list, strings.ToLower(key))
			if err != nil {
				return err
			}
			all = append(all, answer{key, hit.Found, hit.Where})
		}
		return app.table(asJSON, all, 0, func(w io.Writer) {
			for _, a := range all {
				fmt.Fprintf(w, "%s\t%v\t%s\n", a.Key, a.Found, a.Where)
			}
		})
	}
	cmd.AddCommand(build, test)
	return cmd
}

// listPrograms are the programs of qmail, ucspi-tcp, cdb and daemontools for lists, rules and variables. Like those they
// end with 111 when something is wrong, and with 100 for a command line that makes no sense.
func (app *App) listPrograms() map[string]func([]string) int {
	programs := map[string]struct {
		usage       string
		least, most int
		run         func(args []string) error
	}{
		"qmailctl":      {"qmailctl cdb|reload|stat|flush", 1, 1, app.qmailctl},
		"qmail-cdb":     {"qmail-cdb NAME | -r", 1, 1, app.qmailCDB},
		"qmail-sql":     {"qmail-sql -s HOST -u USER -p PASSWORD|- -d DATABASE -t TABLE NAME [ENTRY...]", 11, 1000, app.qmailSQL},
		"tcprules":      {"tcprules CDB TMP < RULES", 2, 2, app.tcprules},
		"tcprulescheck": {"tcprulescheck CDB", 1, 1, app.tcprulescheck},
		"cdbget":        {"cdbget KEY [SKIP] < CDB", 1, 2, app.cdbget},
		"cdbdump":       {"cdbdump < CDB", 0, 0, app.cdbdump},
		"cdbmake":       {"cdbmake CDB TMP < RECORDS", 2, 2, app.cdbmake},
		"cdb-database":  {"cdb-database NAME", 1, 1000, app.cdbDatabase},
		"ctrlenv":       {"ctrlenv [-c] -f FILE [-e VARIABLE] -a ADDRESS PROGRAM [ARGUMENT...]", 5, 1 << 20, app.ctrlenv},
		"envdir":        {"envdir [-c] DIRECTORY PROGRAM [ARGUMENT...]", 2, 1 << 20, app.envdir},
	}
	faces := map[string]func([]string) int{}
	for name, p := range programs {
		faces[name] = func(args []string) int {
			if len(args) < p.least || len(args) > p.most {
				fmt.Fprintln(app.Err, "usage:", p.usage)
				return 100
			}
			err := p.run(args)
			var usage usageError
			var exit exitCode
			switch {
			case err == nil:
				return 0
			case errors.As(err, &exit):
				return int(exit)
			case errors.As(err, &usage):
				fmt.Fprintf(app.Err, "%s: %v; usage: %s\n", name, err, p.usage)
				return 100
			}
			fmt.Fprintf(app.Err, "%s: fatal: %v\n", name, err)
			return 111
		}
	}
	return faces
}

// exitCode is an error that is told by the exit code alone.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func (app *App) qmailCDB(args []string) error {
	data := settings.FromEnvironment().Data
	if args[0] == "-r" {
		path := filepath.Join(data, "users", "recipients")
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return writeList(path+".cdb", string(text))
	}
	_, _, err := buildList(data, args[0])
	return err
}

func (app *App) qmailSQL(args []string) error {
	option := map[byte]string{}
	for len(args) > 1 && len(args[0]) == 2 && args[0][0] == '-' {
		if !strings.Contains("supdt", args[0][1:]) {
			return usagef("unknown option %s", args[0])
		}
		option[args[0][1]] = args[1]
		args = args[2:]
	}
	if len(args) == 0 || len(option) != 5 || filepath.Base(args[0]) != args[0] {
		return usagef("the host, user, password, database, table and the name of a control file are needed")
	}
	if option['p'] == "-" {
		password, err := app.readPassword("-")
		if err != nil {
			return err
		}
		option['p'] = password
	}
	e := settings.FromEnvironment()
	line := strings.Join([]string{option['s'], option['u'], option['p'], option['d'], option['t']}, ":")
	table, err := settings.ParseTable(line)
	if err != nil {
		return err
	}
	entries := args[1:]
	dir := controlDirectory(e.Data)
	if len(entries) == 0 {
		text, err := os.ReadFile(filepath.Join(dir, args[0]))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				entries = append(entries, line)
			}
		}
	}
	finder := lists.New(e.Data)
	defer finder.Close()
	n, err := finder.Create(context.Background(), table, entries)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, args[0]+".sql")
	if err := os.WriteFile(file+".new", []byte(line+"\n"), 0o640); err != nil {
		return err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return err
	}
	fmt.Fprintf(app.Out, "%s: table %s has these %d entries; in force after `indigo reload`\n", file, table.Name, n)
	return nil
}

func (app *App) tcprules(args []string) error {
	text, err := io.ReadAll(app.In)
	if err != nil {
		return err
	}
	rules, err := settings.ParseTCPRules(string(text))
	if err != nil {
		return err
	}
	return settings.WriteTCPRules(args[0], rules)
}

func (app *App) tcprulescheck(args []string) error {
	e := settings.FromEnvironment()
	ip, err := netip.ParseAddr(e.Get("TCPREMOTEIP"))
	if err != nil {
		return usagef("TCPREMOTEIP in the environment must be the client's address")
	}
	rules, err := settings.OpenTCPRules(args[0])
	if err != nil {
		return err
	}
	verdict, err := rules.Lookup(ip, e.Get("TCPREMOTEHOST"))
	if err != nil {
		return err
	}
	if verdict.Where == "" {
		fmt.Fprintln(app.Out, "default:\nallow connection")
		return nil
	}
	fmt.Fprintf(app.Out, "rule %s:\n", verdict.Rule)
	for _, one := range verdict.Variables() {
		fmt.Fprintf(app.Out, "set environment variable %s\n", one)
	}
	if verdict.Deny {
		fmt.Fprintln(app.Out, "deny connection")
	} else {
		fmt.Fprintln(app.Out, "allow connection")
	}
	return nil
}

// onStandardInput opens the database that is the program's standard input.
func (app *App) onStandardInput() (*cdb.Reader, error) {
	f, ok := app.In.(*os.File)
	if !ok {
		return nil, errors.New("standard input is no file")
	}
	return cdb.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

func (app *App) cdbget(args []string) error {
	r, err := app.onStandardInput()
	if err != nil {
		return err
	}
	skip := 0
	if len(args) == 2 {
		if _, err := fmt.Sscan(args[1], &skip); err != nil || skip < 0 {
			return usagef("%q is no number", args[1])
		}
	}
	v, found, err := r.GetN([]byte(args[0]), skip)
	if err != nil {
		return err
	}
	if !found {
		return exitCode(100)
	}
	_, err = app.Out.Write(v)
	return err
}

func (app *App) cdbdump([]string) error {
	r, err := app.onStandardInput()
	if err != nil {
		return err
	}
	return cdb.WriteText(app.Out, r)
}

func (app *App) cdbmake(args []string) error {
	w, err := cdb.Create(args[0], 0o644)
	if err != nil {
		return err
	}
	if err := cdb.ReadText(app.In, w); err != nil {
		w.Abort()
		return err
	}
	return w.Commit()
}

func (app *App) cdbDatabase(args []string) error {
	file := filepath.Join(controlDirectory(settings.FromEnvironment().Data), args[0])
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	all, err := lists.ParseAssignments(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	// What the text keeps from others, as remote_auth does, the database must keep, too.
	return lists.WriteAssignments(file+".cdb", info.Mode().Perm()&0o644, all)
}

func (app *App) ctrlenv(args []string) error {
	var file, variable, address string
	clean := false
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		into := map[string]*string{"-f": &file, "-e": &variable, "-a": &address}[args[0]]
		switch {
		case args[0] == "-c":
			clean = true
			args = args[1:]
		case into == nil || len(args) < 2:
			return usagef("unknown option %s", args[0])
		default:
			*into = args[1]
			args = args[2:]
		}
	}
	if file == "" || address == "" || len(args) == 0 {
		return usagef("a file, an address and a program are needed")
	}
	e := settings.FromEnvironment()
	if !filepath.IsAbs(file) {
		file = filepath.Join(controlDirectory(e.Data), file)
	}
	value, found, err := lists.Assigned(file, address)
	if err != nil {
		return err
	}
	variables := e.All()
	if clean {
		variables = []string{"PATH=" + e.Path}
	}
	drop := func(name string) {
		variables = slices.DeleteFunc(variables, func(v string) bool { return strings.HasPrefix(v, name+"=") })
	}
	switch {
	case !found:
	case variable != "":
		drop(variable)
		variables = append(variables, variable+"="+cmp.Or(value, "t"))
	default:
		for one := range strings.SplitSeq(value, ",") {
			name, text, ok := strings.Cut(one, "=")
			if !ok || name == "" {
				return fmt.Errorf("%s: %q for %s is not of the form NAME=value,NAME=value", file, value, address)
			}
			if drop(name); text != "" {
				variables = append(variables, one)
			}
		}
	}
	return become(args, variables)
}

func (app *App) envdir(args []string) error {
	e := settings.FromEnvironment()
	variables := e.All()
	if args[0] == "-c" {
		variables, args = []string{"PATH=" + e.Path}, args[1:]
	}
	if len(args) < 2 {
		return usagef("a directory and a program are needed")
	}
	set, unset, err := settings.Envdir(args[0])
	if err != nil {
		return err
	}
	gone := map[string]bool{}
	for _, name := range unset {
		gone[name] = true
	}
	for _, one := range set {
		name, _, _ := strings.Cut(one, "=")
		gone[name] = true
	}
	variables = slices.DeleteFunc(variables, func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return gone[name]
	})
	return become(args[1:], append(variables, set...))
}

// become runs a program in this process's place.
func become(args, variables []string) error {
	program := args[0]
	if !strings.Contains(program, "/") {
		found, err := exec.LookPath(program)
		if err != nil {
			return err
		}
		program = found
	}
	if err := syscall.Exec(program, args, variables); err != nil {
		return &os.PathError{Op: "exec", Path: program, Err: err}
	}
	return nil
}

// qmailctl is IndiMail's control script, as far as there is something to control (wiki 2324, 2837).
func (app *App) qmailctl(args []string) error {
	data := settings.FromEnvironment().Data
	control := service.NewControl(data)
	switch args[0] {
	case "cdb":
		files, err := filepath.Glob(filepath.Join(data, "tcp", "tcp.*"))
		if err != nil {
			return err
		}
		var faults []error
		for _, file := range files {
			if strings.HasSuffix(file, ".cdb") {
				continue
			}
			word := "OK"
			text, err := os.ReadFile(file)
			var rules []settings.TCPRule
			if err == nil {
				rules, err = settings.ParseTCPRules(string(text))
			}
			if err == nil {
				err = settings.WriteTCPRules(file+".cdb", rules)
			}
			if err != nil {
				word = "FAILED"
				faults = append(faults, fmt.Errorf("%s: %w", file, err))
			}
			fmt.Fprintf(app.Out, "building %s.cdb: [ %s ]\n", file, word)
		}
		if err := errors.Join(faults...); err != nil {
			return err
		}
		if err := control.Reload(context.Background()); err != nil && !errors.Is(err, service.ErrNotRunning) {
			return err
		}
		return nil
	case "reload":
		return control.Reload(context.Background())
	case "stat":
		all, err := control.Services(context.Background())
		if err != nil {
			return err
		}
		for i := range all {
			fmt.Fprintf(app.Out, "/service/%s: %s\n", oldName(all[i]), svstatText(&all[i]))
		}
		return nil
	case "flush":
		return app.withQueue(context.Background(), data, func(q service.QueueTools) error {
			_, err := q.Do(context.Background(), service.Work{Action: queue.RetryNow}, queue.Filter{}, false, nil)
			return err
		})
	}
	return usagef("unknown word %q; the whole of Indigo starts and stops by the host's service manager", args[0])
}
