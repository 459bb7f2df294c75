package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/indigomail/indigo/internal/settings"
)

// writeManual writes man1 with a page for each command, and man5/indigo-settings.5.
func writeManual(dir string, root *cobra.Command) error {
	for _, section := range []string{"man1", "man5"} {
		if err := os.MkdirAll(filepath.Join(dir, section), 0o755); err != nil {
			return err
		}
	}
	root.DisableAutoGenTag = true
	if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "Indigo", Manual: "Indigo"}, filepath.Join(dir, "man1")); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "man5", "indigo-settings.5"), []byte(settingsManual()), 0o644)
}

// settingsManual gives the manual page of all settings.
func settingsManual() string {
	escape := strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace
	var b strings.Builder
	b.WriteString(".TH INDIGO-SETTINGS 5 \"\" Indigo Indigo\n.SH NAME\nindigo\\-settings \\- everything that can be set\n.SH DESCRIPTION\n")
	b.WriteString("Layers, a later one wins: default, control file, variables of the service, tcp rules, rules for users, senders and recipients.\nSee docs/settings.md.\n.SH SETTINGS\n")
	for _, s := range settings.All() {
		fmt.Fprintf(&b, ".TP\n.B %s\n", s.Name)
		if s.Pending {
			b.WriteString("(not yet) ")
		}
		fmt.Fprintf(&b, "%s.\n.br\nType: %s. ", escape(s.Help), escape(s.Type))
		if s.File != "" {
			fmt.Fprintf(&b, "File: control/%s. ", escape(s.File))
		}
		if s.Default != "" {
			fmt.Fprintf(&b, "Default: %s. ", escape(s.Default))
		}
		fmt.Fprintf(&b, "Read by: %s.\n", strings.Join(s.Services, ", "))
	}
	return b.String()
}
