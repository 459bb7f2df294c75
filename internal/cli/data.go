package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/settings"
)

// dataFlag adds --data.
func (app *App) dataFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("data", settings.FromEnvironment().Data, `data directory (default: $INDIGO_DATA, or what the last "indigo up" served)`)
}

// readPassword reads the first line of a file, - being standard input.
func (app *App) readPassword(name string) (string, error) {
	in := app.In
	if name != "-" {
		f := app.opened
		if f == nil || f.Name() != name {
			var err error
			if f, err = os.Open(name); err != nil {
				return "", fmt.Errorf("password file: %w", err)
			}
		}
		defer f.Close()
		in = f
	}
	line, err := bufio.NewReader(io.LimitReader(in, 2048)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("password file: %w", err)
	}
	if line = strings.TrimRight(line, "\r\n"); line == "" {
		return "", errors.New("password file: its first line is empty")
	}
	return line, nil
}
