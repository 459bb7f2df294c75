package cli

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/auth/oauth"
	"github.com/indigomail/indigo/internal/settings"
)

// dataFlag adds --data.
func (app *App) dataFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("data", settings.FromEnvironment().Data, `data directory (default: $INDIGO_DATA, or what the last "indigo up" served)`)
}

// readPassword reads the first line of a file, - being standard input.
func (app *App) readPassword(name string) (string, error) {
	return app.firstLine(name, "password file", 2048)
}

// readToken is readPassword for an OAuth token; one that is longer than any that is taken is an error.
func (app *App) readToken(name string) (string, error) {
	token, err := app.firstLine(name, "token file", oauth.MaxToken+3)
	if err == nil && len(token) > oauth.MaxToken {
		return "", fmt.Errorf("token file: the token has more than %d bytes", oauth.MaxToken)
	}
	return token, err
}

// firstLine reads the first line of a file, - for standard input, up to so many bytes; what names it in errors.
func (app *App) firstLine(name, what string, most int64) (string, error) {
	in := app.In
	if name != "-" {
		f := app.opened
		if f == nil || f.Name() != name {
			var err error
			if f, err = os.Open(name); err != nil {
				return "", fmt.Errorf("%s: %w", what, err)
			}
		}
		defer f.Close()
		in = f
	}
	line, err := bufio.NewReader(io.LimitReader(in, most)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	if line = strings.TrimRight(line, "\r\n"); line == "" {
		return "", fmt.Errorf("%s: its first line is empty", what)
	}
	return line, nil
}
