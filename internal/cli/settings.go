package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/settings"
)

// hidden stands in the place of what is secret.
const hidden = "(hidden: it may hold passwords)"

// explained is a setting with its value in force.
type explained struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	Layer string `json:"layer"`
	File  string `json:"file,omitempty"`
	Line  int    `json:"line,omitempty"`
	// Overridden are the values of the layers below.
	Overridden []layer  `json:"overridden,omitempty"`
	Type       string   `json:"type"`
	Default    string   `json:"default"`
	Control    string   `json:"control_file,omitempty"`
	Services   []string `json:"services"`
	Rules      []string `json:"rules,omitempty"`
	Help       string   `json:"help"`
	Wiki       int      `json:"wiki_line,omitempty"`
	Pending    bool     `json:"not_yet,omitempty"`
}

// layer is what one layer says.
type layer struct {
	Layer string `json:"layer"`
	Where string `json:"where,omitempty"`
	Value string `json:"value"`
}

func explainSetting(v *settings.View, s *settings.Setting) explained {
	source := v.Source(s)
	e := explained{
		Name: s.Name, Value: shown(s, source), Layer: source.Layer, File: source.File, Line: source.Line, Type: s.Type, Default: s.Default,
		Services: s.Services, Rules: ruleFiles(s), Help: s.Help, Wiki: s.Wiki, Pending: s.Pending,
	}
	if s.File != "" {
		e.Control = "control/" + s.File
	}
	for i, below := range v.History(s) {
		if i > 0 {
			e.Overridden = append(e.Overridden, layer{below.Layer, below.String(), shown(s, below)})
		}
	}
	return e
}

// shown gives a value as people may see it.
func shown(s *settings.Setting, source settings.Source) string {
	// The routes that rules give may have passwords.
	if s.Secret && source.Value != "" || s.Type == "rules" && strings.Contains(source.Value, settings.SMTPRoute.Name) {
		return hidden
	}
	if source.Unset {
		return source.Value + " (unset)"
	}
	return source.Value
}

// ruleFiles names the rules files that may change a setting.
func ruleFiles(s *settings.Setting) (files []string) {
	for _, class := range s.Rules {
		for _, file := range map[string][]string{
			"smtp": {"auth.envrules", "domainqueue", "from.envrules"}, "inject": {"domainqueue"}, "bounce": {"bounce.envrules"},
			"filter": {"fromd.envrules", "rcpt.envrules"}, "remote": {"fromd.envrules", "rcpt.envrules"}, "local": {"fromd.envrules", "rcpt.envrules"},
		}[class] {
			if !slices.Contains(files, file) {
				files = append(files, file)
			}
		}
	}
	slices.Sort(files)
	return files
}

// situation are the flags that say for whom a setting is to be explained.
type situation struct{ service, ip, host, user, from, to string }

func (q *situation) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&q.service, "service", "", "name of a service, for example smtpd.25")
	f.StringVar(&q.ip, "ip", "", "address of a client, for tcp rules")
	f.StringVar(&q.host, "host", "", "host name of the client, for tcp rules")
	f.StringVar(&q.user, "user", "", "authenticated user, for auth.envrules")
	f.StringVar(&q.from, "from", "", "sender, for from.envrules and fromd.envrules; <> for the null sender")
	f.StringVar(&q.to, "rcpt", "", "recipient, for rcpt.envrules and domainqueue")
}

// resolve gives the view, and what the tcp rules say of the client.
func (q *situation) resolve(data string) (*settings.View, settings.TCPVerdict, error) {
	snapshot, err := settings.Load(data)
	if err != nil {
		return nil, settings.TCPVerdict{}, err
	}
	question := settings.Question{Service: settings.ServiceName(q.service), Host: q.host, User: q.user}
	if q.ip != "" {
		if question.IP, err = netip.ParseAddr(q.ip); err != nil {
			return nil, settings.TCPVerdict{}, fmt.Errorf("--ip %q is no address", q.ip)
		}
	}
	for _, one := range []struct {
		text string
		into **addr.Address
	}{{q.from, &question.From}, {q.to, &question.To}} {
		if one.text == "" {
			continue
		}
		a := addr.Address{}
		if one.text != "<>" {
			if a, err = addr.Parse(one.text); err != nil {
				return nil, settings.TCPVerdict{}, err
			}
		}
		*one.into = &a
	}
	return snapshot.Resolve(question)
}

func (app *App) settingsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "settings",
		Short:   "List, read, set and explain settings",
		Example: "  indigo settings list\n  indigo settings set DATABYTES 20000000 --service smtpd.25\n  indigo settings explain DATABYTES --service smtpd.25 --ip 10.1.1.1 --from a@example.org",
	}
	var q situation
	var asJSON, all bool
	var against, man string
	sub := func(use, short, example string, args cobra.PositionalArgs, printing bool, run func(data string, args []string) error) *cobra.Command {
		c := &cobra.Command{Use: use, Short: short, Example: example, Args: args}
		data := app.dataFlag(c)
		if printing {
			c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
		}
		c.RunE = func(_ *cobra.Command, args []string) error { return run(*data, args) }
		cmd.AddCommand(c)
		return c
	}
	list := sub("list", "List every setting with its value in force", "  indigo settings list --service smtpd.25", cobra.NoArgs, true, func(data string, _ []string) error {
		v, _, err := q.resolve(data)
		if err != nil {
			return err
		}
		var list []explained
		for _, s := range settings.All() {
			if all || !s.Pending || v.IsSet(s) {
				list = append(list, explainSetting(v, s))
			}
		}
		if asJSON {
			return json.NewEncoder(app.Out).Encode(list)
		}
		w := tabwriter.NewWriter(app.Out, 0, 0, 2, ' ', 0)
		for _, e := range list {
			value := e.Value
			if first, more, _ := strings.Cut(value, "\n"); more != "" {
				value = first + " …"
			}
			fmt.Fprintf(w, "%s\t%q\t%s\t%s%s\n", e.Name, value, e.Layer, notYet(e.Pending), e.Help)
		}
		return w.Flush()
	})
	q.flags(list)
	list.Flags().BoolVar(&all, "all", false, "with the settings of IndiMail that nothing reads yet")
	get := sub("get NAME", "Print the value in force", "  indigo settings get ME", cobra.ExactArgs(1), false, func(data string, args []string) error {
		v, _, err := q.resolve(data)
		if err != nil {
			return err
		}
		s, err := settings.Lookup(args[0])
		if err != nil {
			return err
		}
		fmt.Fprintln(app.Out, v.Source(s).Value)
		return nil
	})
	q.flags(get)
	explain := sub("explain NAME", "Tell the value in force, what set it, what it overrides, and what it means", "  indigo settings explain DATABYTES --service smtpd.25\n  indigo settings explain RELAYCLIENT --service smtpd.25 --ip 10.1.1.1\n  indigo settings explain OUTGOINGIP --service queue --rcpt someone@yahoo.com", cobra.ExactArgs(1), true, func(data string, args []string) error {
		v, verdict, err := q.resolve(data)
		if err != nil {
			return err
		}
		s, err := settings.Lookup(args[0])
		if err != nil {
			return err
		}
		e := explainSetting(v, s)
		if asJSON {
			return json.NewEncoder(app.Out).Encode(e)
		}
		fmt.Fprintf(app.Out, "%s = %q\n  set by    %s\n", e.Name, e.Value, v.Source(s))
		for _, below := range e.Overridden {
			fmt.Fprintf(app.Out, "  over      %q of %s\n", below.Value, below.Where)
		}
		fmt.Fprintf(app.Out, "  type      %s\n  default   %q\n", e.Type, e.Default)
		if e.Control != "" {
			fmt.Fprintf(app.Out, "  file      %s\n", e.Control)
		}
		fmt.Fprintf(app.Out, "  read by   %s\n", strings.Join(e.Services, ", "))
		if e.Rules != nil {
			fmt.Fprintf(app.Out, "  rules     %s\n", strings.Join(e.Rules, ", "))
		}
		fmt.Fprintf(app.Out, "  means     %s%s\n", notYet(e.Pending), e.Help)
		if e.Wiki > 0 {
			fmt.Fprintf(app.Out, "  wiki      line %d\n", e.Wiki)
		}
		if verdict.Deny {
			fmt.Fprintf(app.Out, "  but       the client is denied by rule %q of %s\n", verdict.Rule, verdict.Where)
		}
		return nil
	})
	q.flags(explain)
	diff := sub("diff", "List what is not as by default, or not as in another data directory", "  indigo settings diff\n  indigo settings diff --against /srv/other", cobra.NoArgs, true, func(data string, _ []string) error {
		return app.diffSettings(data, against, asJSON)
	})
	diff.Flags().StringVar(&against, "against", "", "another data directory")
	sub("dump", "Print all that is set, service by service, with the file that sets it; secrets are left out", "  indigo settings dump > settings.txt", cobra.NoArgs, true, func(data string, _ []string) error {
		return app.dumpSettings(data, asJSON)
	})
	var service, valueFile string
	set := sub("set NAME [VALUE]", "Set a setting, for all services or for one", "  indigo settings set RELAYCLIENTS 192.168.1.:\n  indigo settings set DATABYTES 0 --service smtpd.587\n  indigo settings set SMTPROUTES --value-file route   # what holds passwords is read from a file, or with - from standard input", cobra.RangeArgs(1, 2), false, func(data string, args []string) error {
		switch {
		case (len(args) == 2) == (valueFile != ""):
			return errors.New("name a value, or --value-file with the file that holds it")
		case valueFile != "":
			text, err := app.readValue(valueFile)
			if err != nil {
				return err
			}
			args = append(args, text)
		}
		named := settings.ServiceName(service)
		before := named == "" || hasService(data, named)
		if err := settings.Set(data, args[0], named, args[1]); err != nil {
			return err
		}
		if !before && hasService(data, named) {
			fmt.Fprintf(app.Err, "warning: there was no service %[1]s: the next reload or start opens one; `indigo service remove %[1]s` undoes that, `indigo settings unset` does not\n", named)
		}
		s, err := settings.Lookup(args[0])
		if err == nil && s.Pending {
			fmt.Fprintf(app.Err, "warning: %s has no effect yet\n", s.Name)
		}
		if err == nil && s.AtStart {
			fmt.Fprintln(app.Out, "set; a running instance takes it over when it is restarted, `indigo settings unset` undoes it")
			return nil
		}
		fmt.Fprintln(app.Out, "set; a running instance takes it over on `indigo reload`, `indigo settings unset` undoes it")
		return nil
	})
	set.Flags().StringVar(&valueFile, "value-file", "", "file that holds the value, - for standard input: for values with passwords, which every user of the host could see among the arguments")
	set.Flags().StringVar(&service, "service", "", "name of a service, for example smtpd.25")
	unset := sub("unset NAME", "Undo set", "  indigo settings unset DATABYTES --service smtpd.25", cobra.ExactArgs(1), false, func(data string, args []string) error {
		return settings.Unset(data, args[0], settings.ServiceName(service))
	})
	unset.Flags().StringVar(&service, "service", "", "name of a service, for example smtpd.25")
	doc := sub("doc", "Print the table of all settings for docs/settings.md, or write man pages", "  indigo settings doc\n  indigo settings doc --man /usr/local/share/man", cobra.NoArgs, false, func(string, []string) error {
		if man != "" {
			return writeManual(man, app.root())
		}
		_, err := io.WriteString(app.Out, SettingsTable())
		return err
	})
	doc.Flags().StringVar(&man, "man", "", "directory for man5/indigo-settings.5 and a page in man1 for each command")
	return cmd
}

// readValue gives the text of a file, or for - of standard input, without line ends behind it.
func (app *App) readValue(file string) (string, error) {
	in := app.In
	if file != "-" {
		f := app.opened
		if f == nil || f.Name() != file {
			var err error
			if f, err = os.Open(file); err != nil {
				return "", err
			}
		}
		defer f.Close()
		in = f
	}
	const most = 1 << 20
	text, err := io.ReadAll(io.LimitReader(in, most+1))
	if err == nil && len(text) > most {
		err = fmt.Errorf("longer than %d bytes", most)
	}
	return strings.TrimRight(string(text), "\r\n"), err
}

func notYet(pending bool) string {
	if pending {
		return "not yet: "
	}
	return ""
}

// difference is a setting that is not the same in two places.
type difference struct {
	Service string `json:"service"`
	Name    string `json:"name"`
	Here    string `json:"here"`
	Where   string `json:"where"`
	There   string `json:"there"`
	// OtherWhere is where the other value comes from.
	OtherWhere string `json:"other_where"`
}

// diffSettings lists what differs from the defaults, or from another directory, for all services and then for each service
// what is not as for all.
func (app *App) diffSettings(data, against string, asJSON bool) error {
	here, err := settings.Load(data)
	if err != nil {
		return err
	}
	var there *settings.Snapshot
	if against != "" {
		if there, err = settings.Load(against); err != nil {
			return fmt.Errorf("%s: %w", against, err)
		}
	}
	services := append([]string{"all"}, here.Services()...)
	if there != nil {
		for _, name := range there.Services() {
			if !slices.Contains(services, name) {
				services = append(services, name)
			}
		}
	}
	list := []difference{}
	for _, service := range services {
		v := here.View(service)
		var other *settings.View
		if there != nil {
			other = there.View(service)
		}
		for _, s := range settings.All() {
			a, b := v.Source(s), other.Source(s)
			if service != "all" && a.Layer == "control file" && b.Layer != "service variable" || shown(s, a) == shown(s, b) && (!s.Secret || a.Value == b.Value) {
				continue
			}
			if service != "all" && a.Layer == "default" && b.Layer != "service variable" {
				continue
			}
			list = append(list, difference{service, s.Name, shown(s, a), a.String(), shown(s, b), b.String()})
		}
	}
	return app.table(asJSON, list, 0, func(w io.Writer) {
		for _, d := range list {
			fmt.Fprintf(w, "%s\t%s\t%q\t%s\tnot %q\t%s\n", d.Service, d.Name, d.Here, d.Where, d.There, d.OtherWhere)
		}
	})
}

// dumpSettings prints what every service's layers set.
func (app *App) dumpSettings(data string, asJSON bool) error {
	snapshot, err := settings.Load(data)
	if err != nil {
		return err
	}
	type entry struct {
		Service string `json:"service"`
		Name    string `json:"name"`
		Value   string `json:"value"`
		Where   string `json:"where"`
	}
	list := []entry{}
	for _, service := range append([]string{"all"}, snapshot.Services()...) {
		v := snapshot.View(service)
		for _, s := range settings.All() {
			source := v.Source(s)
			if source.Layer == "default" || service != "all" && source.Layer == "control file" {
				continue
			}
			list = append(list, entry{service, s.Name, shown(s, source), source.String()})
		}
	}
	return app.table(asJSON, list, 0, func(w io.Writer) {
		for _, e := range list {
			fmt.Fprintf(w, "%s\t%s\t%q\t%s\n", e.Service, e.Name, e.Value, e.Where)
		}
	})
}

// SettingsTable gives the table of all settings in Markdown, as docs/settings.md has it.
func SettingsTable() string {
	var b strings.Builder
	b.WriteString("| setting | file | type | default | read by | rules | what it does | wiki |\n|---|---|---|---|---|---|---|---|\n")
	for _, s := range settings.All() {
		byDefault, wiki, file := s.Default, "", ""
		if byDefault != "" {
			byDefault = "`" + byDefault + "`"
		}
		if s.Wiki > 0 {
			wiki = strconv.Itoa(s.Wiki)
		}
		if s.File != "" {
			file = "`control/" + s.File + "`"
		}
		help := s.Help
		if s.Pending {
			help = "**not yet:** " + help
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s |\n", s.Name, file, s.Type, byDefault, strings.Join(s.Services, ", "), strings.Join(s.Rules, ", "), help, wiki)
	}
	return b.String()
}
