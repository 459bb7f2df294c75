package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/settings"
)

const (
	// maxSaid bounds what is kept of a program's output.
	maxSaid = 1000
	// turnTime is how long a program waits for others to end.
	turnTime = 30 * time.Second
	// closeTime is how long a program that has ended may keep its output open.
	closeTime = 2 * time.Second
)

// The exit codes of qmail-command(8) that are neither success nor tried again.
const exitLast = 99

func hardExit(code int) bool {
	return slices.Contains([]int{64, 65, 70, 76, 77, 78, 100, 112}, code)
}

// runPrograms runs the programs of all attempts, those of one after the other, those of up to maxSpools at the same time.
func (d *Deliverer) runPrograms(ctx context.Context, attempts []*attempt, body *content) {
	attempts = slices.DeleteFunc(slices.Clone(attempts), func(a *attempt) bool { return len(a.programs) == 0 })
	if len(attempts) == 0 {
		return
	}
	spools, err := spool(body, min(len(attempts), maxSpools))
	if err != nil {
		for _, a := range attempts {
			a.fail(a.programs[0].line, errSpool.Because(err))
		}
		return
	}
	work := make(chan *attempt)
	var workers sync.WaitGroup
	for _, f := range spools {
		workers.Go(func() {
			defer f.Close()
			for a := range work {
				for _, p := range a.programs {
					if !a.stopped && !a.remembered(p.line) {
						a.run(ctx, p, f)
					}
				}
			}
		})
	}
	for _, a := range attempts {
		work <- a
	}
	close(work)
	workers.Wait()
}

// maxSpools bounds the programs of one message that run at the same time.
const maxSpools = 8

// spool writes the message with LF line ends into a file that has no name any more when it is opened n times, each with a place of its own.
func spool(body *content, n int) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
		}
	}()
	f, err := os.CreateTemp("", "indigo-program")
	if err != nil {
		return nil, err
	}
	files = append(files, f)
	for len(files) < n && err == nil {
		var other *os.File
		if other, err = os.Open(f.Name()); err == nil {
			files = append(files, other)
		}
	}
	// Without a name nobody finds it; who runs the program may not be its owner, and may open /dev/stdin.
	if err := errors.Join(err, os.Remove(f.Name()), f.Chmod(0o644)); err != nil {
		return files, err
	}
	first, err := body.first()
	if err == nil {
		_, err = f.Write(first)
	}
	if err == nil {
		err = body.rest(func(pieces ...[]byte) error {
			for _, p := range pieces {
				if _, err := f.Write(p); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return files, err
}

// run runs one program by the shell in the user's or the domain's directory, with the message on its standard input. At the deadline all
// of its process group is killed.
func (a *attempt) run(ctx context.Context, p instruction, input *os.File) {
	turn := time.NewTimer(turnTime)
	defer turn.Stop()
	select {
	case a.d.turns <- struct{}{}:
		defer func() { <-a.d.turns }()
	case <-turn.C:
		a.fail(p.line, errTurns)
		return
	case <-ctx.Done():
		a.fail(p.line, errClosing.Because(ctx.Err()))
		return
	}
	if _, err := input.Seek(0, io.SeekStart); err != nil {
		a.fail(p.line, errSpool.Because(err))
		return
	}
	account, err := programAccount(os.Geteuid(), a.t.domain.Dir)
	if err != nil {
		a.fail(p.line, errRoot.Because(err))
		return
	}
	limit := settings.ProgramTimeout.Get(a.view())
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(limited, "/bin/sh", "-c", p.text)
	cmd.Env = a.variables()
	cmd.Dir = a.t.domain.Dir
	if a.t.isUser && a.t.user.Dir != "" {
		cmd.Dir = a.t.user.Dir
	}
	said := &head{}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = input, said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: account}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = closeTime
	err = cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		// It is over; something that it left behind keeps its output open.
		err = nil
	}
	text := said.String()
	if text != "" {
		a.output = strings.TrimPrefix(a.output+"/"+text, "/")
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		a.did(p.line, "exit code 0", false)
	case ctx.Err() != nil:
		a.fail(p.line, errClosing.Because(ctx.Err()))
	case limited.Err() != nil:
		a.fail(p.line, errTimeout.Because(fmt.Errorf("killed after %s, the setting %s", limit, settings.ProgramTimeout.Name)))
	case errors.As(err, &exit) && exit.ExitCode() == exitLast:
		a.did(p.line, "exit code 99: the lines behind it are passed over", true)
	case errors.As(err, &exit) && exit.Exited():
		code, enhanced := 451, mailerr.Enhanced{4, 3, 0}
		if hardExit(exit.ExitCode()) {
			code, enhanced = 554, mailerr.Enhanced{5, 3, 0}
		}
		if text == "" {
			text = fmt.Sprintf("The program of this address refused the message with exit code %d. (#%s)", exit.ExitCode(), enhanced)
		}
		a.fail(p.line, mailerr.New(code, enhanced, text).Because(fmt.Errorf("exit code %d", exit.ExitCode())))
	case errors.As(err, &exit):
		a.fail(p.line, mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "The program of this address crashed. (#4.3.0)").Because(err))
	default:
		a.fail(p.line, errSpool.Because(fmt.Errorf("in %s: %w", cmd.Dir, err)))
	}
}

// programAccount gives who programs of a domain's addresses run as where the services run as root: the owner of its directory, who is the
// user of its line in users/assign to qmail-lspawn (wiki 1473), and as there never root. Otherwise they run as what the services do: nil.
func programAccount(euid int, dir string) (*syscall.Credential, error) {
	if euid != 0 {
		return nil, nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid == 0 {
		return nil, fmt.Errorf("the services run as root and %s is root's: set RUNAS to an account for the services (docs/services.md)", dir)
	}
	c := &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}
	if c.Gid == 0 {
		// What is open to root's group is not for them either.
		c.Gid = c.Uid
	}
	return c, nil
}

// head keeps the beginning of what is written.
type head struct{ b []byte }

var _ io.Writer = (*head)(nil)

func (h *head) Write(p []byte) (int, error) {
	h.b = append(h.b, p[:min(len(p), maxSaid-len(h.b))]...)
	return len(p), nil
}

// String gives it on one line, of printable characters.
func (h *head) String() string {
	lines := strings.FieldsFunc(strings.ToValidUTF8(string(h.b), "?"), func(r rune) bool { return r == '\n' || r == '\r' })
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.TrimSpace(strings.Join(lines, "/")))
}
