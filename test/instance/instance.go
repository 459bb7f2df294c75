// Package instance is for tests and benchmarks: it builds the indigo program, starts it as an operator would, and stops
// or kills it. It must not know anything of Indigo but its command line.
package instance

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Ready is the first line of `indigo up --json`.
type Ready struct {
	Data     string            `json:"data"`
	Domain   string            `json:"domain"`
	User     string            `json:"user"`
	Password string            `json:"password"`
	Services map[string]string `json:"services"`
}

// Build makes the static program in dir and gives its path. It must run somewhere inside the module.
func Build(ctx context.Context, dir string) (string, error) {
	program := filepath.Join(dir, "indigo")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", program, "github.com/indigomail/indigo/cmd/indigo")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return program, nil
}

// Program is a built indigo.
type Program string

// environment keeps the program from reading or changing what the user's own indigo remembers.
func environment(home string) []string {
	return append(os.Environ(), "HOME="+home, "XDG_STATE_HOME=", "INDIGO_DATA=")
}

// Result is what a command that has ended printed.
type Result struct {
	Out, Err string
	// Code is the exit code.
	Code int
}

// Run runs a command to its end.
func (p Program) Run(ctx context.Context, args ...string) (Result, error) {
	cmd := exec.CommandContext(ctx, string(p), args...)
	cmd.Env = environment(filepath.Dir(string(p)))
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	r := Result{Out: out.String(), Err: errOut.String(), Code: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		err = nil
	}
	if err != nil {
		return r, fmt.Errorf("indigo %s: %w\n%s", strings.Join(args, " "), err, r.Err)
	}
	return r, nil
}

// JSON runs a command that must succeed and decodes what it prints.
func (p Program) JSON(ctx context.Context, answer any, args ...string) error {
	r, err := p.Run(ctx, args...)
	if err != nil {
		return err
	}
	if r.Code != 0 {
		return fmt.Errorf("indigo %s: exit code %d\n%s", strings.Join(args, " "), r.Code, r.Err)
	}
	if err := json.Unmarshal([]byte(r.Out), answer); err != nil {
		return fmt.Errorf("indigo %s: %w\n%s", strings.Join(args, " "), err, r.Out)
	}
	return nil
}

// Instance is a running `indigo up`.
type Instance struct {
	Program Program
	Ready   Ready
	cmd     *exec.Cmd
	log     *os.File
	// ended is closed when the process has ended; waitErr is set before.
	ended   chan struct{}
	waitErr error
	reading sync.WaitGroup
}

// Start runs `indigo up --json` with data and args, its log appended to data+".log", and does not wait for its first
// line; see Wait.
func Start(program Program, data string, args ...string) (*Instance, <-chan error, error) {
	log, err := os.OpenFile(data+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, err
	}
	in := &Instance{Program: program, log: log, ended: make(chan struct{})}
	in.cmd = exec.Command(string(program), append([]string{"up", "--data", data, "--json"}, args...)...)
	in.cmd.Env = environment(filepath.Dir(data))
	in.cmd.Stderr = log
	// Nothing that a test starts outlives it, not even when it panics.
	in.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := in.cmd.StdoutPipe()
	if err == nil {
		err = in.cmd.Start()
	}
	if err != nil {
		log.Close()
		return nil, nil, err
	}
	ready := make(chan error, 1)
	in.reading.Go(func() {
		r := bufio.NewReader(out)
		line, err := r.ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, &in.Ready)
		}
		ready <- err
		// A full pipe would stop the process.
		_, _ = io.Copy(io.Discard, r)
	})
	go func() {
		in.reading.Wait()
		in.waitErr = in.cmd.Wait()
		log.Close()
		close(in.ended)
	}()
	return in, ready, nil
}

// Up starts an instance on free ports and waits until everything listens.
func Up(ctx context.Context, program Program, data string, args ...string) (*Instance, error) {
	in, ready, err := Start(program, data, append([]string{"--port-offset", "free"}, args...)...)
	if err != nil {
		return nil, err
	}
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		in.Kill()
		return nil, fmt.Errorf("indigo up: %w\n%s", err, in.Log())
	}
	return in, nil
}

// PID is the process id.
func (in *Instance) PID() int { return in.cmd.Process.Pid }

// Address is where a service listens, for example "smtpd.25".
func (in *Instance) Address(service string) string { return in.Ready.Services[service] }

// Signal sends a signal.
func (in *Instance) Signal(s os.Signal) error { return in.cmd.Process.Signal(s) }

// Ended is closed when the process has ended.
func (in *Instance) Ended() <-chan struct{} { return in.ended }

// Kill ends the process as a power button would, and waits for its end.
func (in *Instance) Kill() {
	_ = in.cmd.Process.Kill()
	<-in.ended
}

// Stop drains the instance with SIGTERM. It fails when the process ends with an error or, then killed, not within
// a minute.
func (in *Instance) Stop() error {
	select {
	case <-in.ended:
		return in.waitErr
	default:
	}
	if err := in.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	select {
	case <-in.ended:
		return in.waitErr
	case <-limit.C:
		in.Kill()
		return errors.New("indigo up was still there a minute after SIGTERM")
	}
}

// Log gives the end of what the instance has logged.
func (in *Instance) Log() string {
	text, err := os.ReadFile(in.log.Name())
	if err != nil {
		return err.Error()
	}
	const most = 8 << 10
	return string(text[max(0, len(text)-most):])
}

// Stats asks how many messages the queue holds.
func (in *Instance) Stats(ctx context.Context) (messages int, err error) {
	var stats []struct {
		Messages int `json:"messages"`
	}
	err = in.Program.JSON(ctx, &stats, "queue", "stats", "--json", "--data", in.Ready.Data)
	for _, s := range stats {
		messages += s.Messages
	}
	return messages, err
}

// Await looks at a condition every 20 ms until it holds, fails, or ctx ends.
func Await(ctx context.Context, what string, holds func() (bool, error)) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := holds()
		if err != nil {
			return fmt.Errorf("waiting until %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
}

// Mail lists the files in new/ and cur/ of every Maildir under data.
func Mail(data string) ([]string, error) {
	var files []string
	for _, box := range []string{"new", "cur"} {
		// DATA/domains/DOMAIN/USER/Maildir/new
		found, err := filepath.Glob(filepath.Join(data, "domains", "*", "*", "Maildir", box, "*"))
		if err != nil {
			return nil, err
		}
		files = append(files, found...)
	}
	return files, nil
}
