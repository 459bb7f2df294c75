package cli

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// each calls f for every command that does something.
func each(cmd *cobra.Command, f func(*cobra.Command)) {
	if cmd.Runnable() {
		f(cmd)
	}
	for _, c := range cmd.Commands() {
		each(c, f)
	}
}

// TestCommandsExplainThemselves: each has a line of help and an example that begins with its own name, prints JSON where it
// prints data, and stands in docs/commands.md.
func TestCommandsExplainThemselves(t *testing.T) {
	app := &App{In: strings.NewReader(""), Out: &bytes.Buffer{}, Err: &bytes.Buffer{}}
	// What prints no data, or no more than one value or a message for people.
	silent := []string{
		"indigo admin add", "indigo admin allow", "indigo admin lock", "indigo admin passwd", "indigo admin remove", "indigo admin revoke", "indigo admin unlock",
		"indigo alias add", "indigo alias remove",
		"indigo auth encode", "indigo auth retire", "indigo auth secrets decrypt", "indigo auth secrets encrypt", "indigo auth secrets prune", "indigo auth secrets remove", "indigo auth secrets rotate",
		"indigo db copy", "indigo db init", "indigo db migrate",
		"indigo domain add", "indigo domain alias add", "indigo domain alias remove", "indigo domain remove", "indigo domain rename", "indigo domain reorganize",
		"indigo install",
		"indigo limit clear", "indigo limit set",
		"indigo links",
		"indigo list build",
		"indigo queue cat", "indigo queue edit-recipient", "indigo queue export", "indigo queue import", "indigo queue import-qmail", "indigo queue make", "indigo queue rate remove", "indigo queue rate set",
		"indigo reload",
		"indigo service add", "indigo service reload", "indigo service remove", "indigo service restart", "indigo service start", "indigo service stop",
		"indigo settings doc", "indigo settings get", "indigo settings set", "indigo settings unset",
		"indigo storage add", "indigo storage balance", "indigo storage modify", "indigo storage remove",
		"indigo turn grant", "indigo turn revoke",
		"indigo user activate", "indigo user add", "indigo user app-password revoke", "indigo user deactivate", "indigo user export", "indigo user modify", "indigo user passwd", "indigo user remove", "indigo user rename",
	}
	documented, err := os.ReadFile("../../docs/commands.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	each(app.root(), func(c *cobra.Command) {
		n++
		path := c.CommandPath()
		if c.Short == "" || !strings.Contains(c.Example, "indigo ") {
			t.Errorf("%s: help %q, example %q", path, c.Short, c.Example)
		}
		if !strings.Contains(c.Example, path) {
			t.Errorf("%s: no example begins with its name: %q", path, c.Example)
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			// pflag takes what stands in backquotes for the name of the value.
			if name, _ := pflag.UnquoteUsage(f); strings.Contains(name, " ") {
				t.Errorf("%s: --%s takes a %q", path, f.Name, name)
			}
		})
		if (c.Flags().Lookup("json") == nil) != slices.Contains(silent, path) {
			t.Errorf("%s: --json is %v", path, c.Flags().Lookup("json") != nil)
		}
		if !strings.Contains(string(documented), "`"+path) {
			t.Errorf("docs/commands.md does not name `%s`", path)
		}
	})
	for name := range app.programs() {
		if !strings.Contains(string(documented), "`"+name) {
			t.Errorf("docs/commands.md does not name `%s`", name)
		}
	}
	if n < 20 {
		t.Errorf("%d commands", n)
	}
}

// TestSettingsDoc keeps docs/settings.md in step with the registry.
func TestSettingsDoc(t *testing.T) {
	text, err := os.ReadFile("../../docs/settings.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(string(text), "\n"+SettingsTable()) {
		t.Error("the table in docs/settings.md is not that of the registry: put the output of `go run ./cmd/indigo settings doc` in its place")
	}
}

func TestOldOptions(t *testing.T) {
	for _, tc := range []struct {
		args     string
		want     string
		operands string
		fails    bool
	}{
		{"-e u@d x", "e=", "u@d x", false}, {"-ec Name u@d", "c=Name e=", "u@d", false}, {"-cName u@d", "c=Name", "u@d", false},
		{"u@d -", "", "u@d -", false}, {"-- -u", "", "-u", false}, {"-c", "", "", true}, {"-x u", "", "", true}, {"-z u", "", "", true}, {"-: u", "", "", true},
	} {
		options, operands, err := parseOldOptions(strings.Fields(tc.args), "ec:")
		var got []string
		for letter, value := range options {
			got = append(got, string(letter)+"="+value)
		}
		slices.Sort(got)
		if (err != nil) != tc.fails || err == nil && (strings.Join(got, " ") != tc.want || strings.Join(operands, " ") != tc.operands) {
			t.Errorf("%s: %v %v %v", tc.args, got, operands, err)
		}
	}
}
