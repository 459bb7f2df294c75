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
	"github.com/indigomail/indigo/internal/queue"
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

// runPrograms runs the programs of all attempts, those of one after the other, those of several at the same time.
func (d *Deliverer) runPrograms(ctx context.Context, dl *queue.Delivery, attempts []*attempt, body *content) {
	attempts = slices.DeleteFunc(slices.Clone(attempts), func(a *attempt) bool { return len(a.programs) == 0 })
	if len(attempts) == 0 {
		return
	}
	spool, err := spoolFile(body)
	if err != nil {
		for _, a := range attempts {
			a.fail(a.programs[0].line, errSpool.Because(err))
		}
		return
	}
	defer spool.Close()
	var running sync.WaitGroup
	for _, a := range attempts {
		running.Go(func() {
			for _, p := range a.programs {
				if a.stopped {
					return
				}
				if !a.remembered(p.line) {
					a.run(ctx, p, spool)
				}
			}
		})
	}
	running.Wait()
}

// spoolFile makes a file without a name that holds the message with LF line ends.
func spoolFile(body *content) (*os.File, error) {
	f, err := os.CreateTemp("", "indigo-program")
	if err != nil {
		return nil, err
	}
	err = os.Remove(f.Name())
	first, e := body.first()
	if err = errors.Join(err, e); err == nil {
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
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// run runs one program by the shell in the user's or the domain's directory, with the message on its standard input. At the deadline all
// of its process group is killed.
func (a *attempt) run(ctx context.Context, p instruction, spool *os.File) {
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
	// A description of its own, so that programs that run at the same time do not move each other's place.
	input, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", spool.Fd()))
	if err != nil {
		a.fail(p.line, errSpool.Because(err))
		return
	}
	defer input.Close()
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
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
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
		a.fail(p.line, errSpool.Because(err))
	}
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
