package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/settings"
)

// explained is a setting with its value in force.
type explained struct {
	Name     string   `json:"name"`
	Value    string   `json:"value"`
	Layer    string   `json:"layer"`
	File     string   `json:"file,omitempty"`
	Type     string   `json:"type"`
	Default  string   `json:"default"`
	Control  string   `json:"control_file"`
	Services []string `json:"services"`
	Help     string   `json:"help"`
	Wiki     int      `json:"wiki_line,omitempty"`
}

func explainSetting(v *settings.View, s *settings.Setting) explained {
	source := v.Source(s)
	e := explained{s.Name, source.Value, source.Layer, source.File, s.Type, s.Default, "control/" + s.File, s.Services, s.Help, s.Wiki}
	if s == settings.SMTPRoutes.Setting && source.Value != "" {
		e.Value = "(hidden: it may hold passwords)"
	}
	return e
}

func (app *App) settingsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "settings",
		Short:   "List, read, set and explain settings",
		Example: "  indigo settings list\n  indigo settings set DATABYTES 20000000 --service smtpd.25\n  indigo settings explain DATABYTES --service smtpd.25",
	}
	var service string
	var asJSON bool
	sub := func(use, short, example string, args cobra.PositionalArgs, printing bool, run func(data string, args []string) error) {
		c := &cobra.Command{Use: use, Short: short, Example: example, Args: args}
		data := app.dataFlag(c)
		c.Flags().StringVar(&service, "service", "", "name of a service, for example smtpd.25")
		if printing {
			c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
		}
		c.RunE = func(_ *cobra.Command, args []string) error { return run(*data, args) }
		cmd.AddCommand(c)
	}
	view := func(data string) (*settings.View, error) {
		snapshot, err := settings.Load(data)
		if err != nil {
			return nil, err
		}
		return snapshot.View(service), nil
	}
	sub("list", "List every setting with its value in force", "  indigo settings list --service smtpd.25", cobra.NoArgs, true, func(data string, _ []string) error {
		v, err := view(data)
		if err != nil {
			return err
		}
		var list []explained
		for _, s := range settings.All() {
			list = append(list, explainSetting(v, s))
		}
		if asJSON {
			return json.NewEncoder(app.Out).Encode(list)
		}
		w := tabwriter.NewWriter(app.Out, 0, 0, 2, ' ', 0)
		for _, e := range list {
			fmt.Fprintf(w, "%s\t%q\t%s\t%s\n", e.Name, e.Value, e.Layer, e.Help)
		}
		return w.Flush()
	})
	sub("get NAME", "Print the value in force", "  indigo settings get ME", cobra.ExactArgs(1), false, func(data string, args []string) error {
		v, err := view(data)
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
	sub("explain NAME", "Tell the value in force, what set it, and what it means", "  indigo settings explain DATABYTES --service smtpd.25", cobra.ExactArgs(1), true, func(data string, args []string) error {
		v, err := view(data)
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
		fmt.Fprintf(app.Out, "%s = %q\n  set by    %s\n  type      %s\n  default   %q\n  file      %s\n  read by   %s\n  means     %s\n",
			e.Name, e.Value, v.Source(s), e.Type, e.Default, e.Control, strings.Join(e.Services, ", "), e.Help)
		if e.Wiki > 0 {
			fmt.Fprintf(app.Out, "  wiki      line %d\n", e.Wiki)
		}
		return nil
	})
	sub("set NAME VALUE", "Set a setting, for all services or for one", "  indigo settings set RELAYCLIENTS 192.168.1.:\n  indigo settings set DATABYTES 0 --service smtpd.587", cobra.ExactArgs(2), false, func(data string, args []string) error {
		if err := settings.Set(data, args[0], service, args[1]); err != nil {
			return err
		}
		fmt.Fprintln(app.Out, "set; a running instance takes it over on `indigo reload`, `indigo settings unset` undoes it")
		return nil
	})
	sub("doc", "Print the table of all settings for docs/settings.md", "  indigo settings doc", cobra.NoArgs, false, func(string, []string) error {
		_, err := io.WriteString(app.Out, SettingsTable())
		return err
	})
	sub("unset NAME", "Undo set", "  indigo settings unset DATABYTES --service smtpd.25", cobra.ExactArgs(1), false, func(data string, args []string) error {
		return settings.Unset(data, args[0], service)
	})
	return cmd
}

// SettingsTable gives the table of all settings in Markdown, as docs/settings.md has it.
func SettingsTable() string {
	var b strings.Builder
	b.WriteString("| setting | file | type | default | read by | what it does | wiki |\n|---|---|---|---|---|---|---|\n")
	for _, s := range settings.All() {
		byDefault, wiki := s.Default, ""
		if byDefault != "" {
			byDefault = "`" + byDefault + "`"
		}
		if s.Wiki > 0 {
			wiki = strconv.Itoa(s.Wiki)
		}
		fmt.Fprintf(&b, "| %s | `control/%s` | %s | %s | %s | %s | %s |\n", s.Name, s.File, s.Type, byDefault, strings.Join(s.Services, ", "), s.Help, wiki)
	}
	return b.String()
}
