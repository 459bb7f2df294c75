package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/indigomail/indigo/internal/settings"
)

const (
	// indiMailHandles is where IndiMail has the handles of its programs.
	indiMailHandles = "/usr/libexec/indimail"
	// handleTime bounds the run of a handle.
	handleTime = 10 * time.Minute
)

// after runs the post-execution handle of one of IndiMail's programs when it has succeeded (wiki 2494-2542): what POST_HANDLE names, or
// the file of the program's name in the data directory's handles, or in IndiMail's directory. It gets the program's operands but no
// password, and INDIGO_DATA and INDIGO_PROGRAM in its environment. Its exit code becomes the command's.
func (app *App) after(ctx context.Context, data, program string, operands ...string) error {
	path, err := handleOf(data, program)
	if path == "" || err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, handleTime)
	defer cancel()
	absolute, err := filepath.Abs(data)
	if err != nil {
		return err
	}
	handle := exec.CommandContext(ctx, path, operands...)
	handle.Stdin, handle.Stdout, handle.Stderr = app.In, app.Out, app.Err
	handle.WaitDelay = 5 * time.Second
	handle.Env = append(settings.FromEnvironment().All(), "INDIGO_DATA="+absolute, "INDIGO_PROGRAM="+program)
	err = handle.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		fmt.Fprintf(app.Err, "what %s had to do is done; its handle %s ended with exit code %d\n", program, path, exit.ExitCode())
		return exitCode(exit.ExitCode())
	case err != nil:
		return fmt.Errorf("what %s had to do is done; its handle: %w", program, err)
	}
	return nil
}

// handleOf finds the handle of a program, "" when there is none.
func handleOf(data, program string) (string, error) {
	snapshot, _ := settings.Inspect(data)
	named := cmp.Or(settings.FromEnvironment().Get(settings.PostHandle.Name), settings.PostHandle.Get(snapshot.View("all")))
	candidates := []string{named}
	if named == "" {
		candidates = []string{filepath.Join(data, "handles", program), filepath.Join(indiMailHandles, program)}
	}
	for _, path := range candidates {
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist) && named == "":
			continue
		case err != nil:
			return "", fmt.Errorf("what %s had to do is done; its handle: %w", program, err)
		case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
			return "", fmt.Errorf("what %s had to do is done; its handle %s was not run: it is no program (chmod 755)", program, path)
		case info.Mode()&0o002 != 0:
			return "", fmt.Errorf("what %s had to do is done; its handle %s was not run: everyone may write to it (chmod o-w)", program, path)
		}
		// A name without a slash would be looked for in $PATH.
		return filepath.Abs(path)
	}
	return "", nil
}
