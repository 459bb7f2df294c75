package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/settings"
)

// maildirdeliver puts the message on standard input into a Maildir, on stable storage when it returns, with the lines of the
// variables RPLINE and DTLINE before it (wiki 903-912, 1012-1014).
func (app *App) maildirdeliver(_ context.Context, args []string) error {
	if len(args) != 1 || args[0] == "" {
		return usagef("usage: maildirdeliver MAILDIR")
	}
	path := filepath.Clean(args[0])
	// A name with a mistake in it must not become a Maildir.
	if _, err := os.Stat(filepath.Join(path, "new")); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is no Maildir", path)
	}
	drop, err := maildir.OpenDrop(path)
	if err != nil {
		return err
	}
	defer drop.Close()
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	f, err := drop.NewFile(fmt.Sprintf("%d.P%d%s.%s", time.Now().Unix(), os.Getpid(), rand.Text()[:8], strings.NewReplacer("/", "_", ":", "_", ",", "_").Replace(host)))
	if err != nil {
		return err
	}
	e := settings.FromEnvironment()
	for _, line := range []string{e.Get("RPLINE"), e.Get("DTLINE")} {
		if err := f.Append([]byte(line)); err != nil {
			f.Abort()
			return err
		}
	}
	buf := make([]byte, 64<<10)
	for {
		n, readErr := app.In.Read(buf)
		if err := f.Append(buf[:n]); err != nil {
			f.Abort()
			return err
		}
		if readErr == io.EOF {
			break
		}
		if readErr != nil {
			f.Abort()
			return readErr
		}
	}
	dir, err := drop.OpenDir()
	if err != nil {
		f.Abort()
		return err
	}
	defer dir.Close()
	placed, err := f.Commit()
	if err != nil {
		return err
	}
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return errors.Join(err, drop.Remove(placed))
	}
	return nil
}

// preline runs a program with the message on standard input, and before it the lines of UFLINE, RPLINE and DTLINE (wiki 897-902). Its
// exit code is the program's.
func (app *App) preline(args []string) int {
	options, operands, err := parseOldOptions(args, "drf")
	if err != nil || len(operands) == 0 {
		fmt.Fprintln(app.Err, "preline: usage: preline [-drf] PROGRAM [ARGUMENT...]")
		return 100
	}
	e := settings.FromEnvironment()
	var lines []io.Reader
	for _, l := range []struct {
		not  byte
		name string
	}{{'f', "UFLINE"}, {'r', "RPLINE"}, {'d', "DTLINE"}} {
		if _, without := options[l.not]; without {
			continue
		}
		if e.Get(l.name) == "" {
			fmt.Fprintf(app.Err, "preline: %s is not set\n", l.name)
			return 100
		}
		lines = append(lines, strings.NewReader(e.Get(l.name)))
	}
	cmd := exec.Command(operands[0], operands[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = io.MultiReader(append(lines, app.In)...), app.Out, app.Err
	// A program that has what it wants need not read the rest.
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, unix.EPIPE):
		return 0
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode()
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		fmt.Fprintf(app.Err, "preline: %v\n", err)
		return 100
	}
	fmt.Fprintf(app.Err, "preline: %v\n", err)
	return 111
}
