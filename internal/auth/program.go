package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

// ReplyProgram is the word that makes Indigo's own program tell, on descriptor 4, whom a password program has let in.
const ReplyProgram = "checkpassword-reply"

const (
	// programTime bounds a run of a password program when its Program says nothing.
	programTime = 30 * time.Second
	// maxReply is how much the reply may have.
	maxReply = 4096
	// maxSaid is how much of what a program says on standard error is kept.
	maxSaid = 500
)

// Program is a Verifier that asks a program of the checkpassword interface (https://cr.yp.to/checkpwd/interface.html; wiki 2728-2731): it
// writes NAME NUL PASSWORD NUL NUL to its descriptor 3. The program runs what its operands name when they fit, and exits with 1 when they
// do not; anything else is a temporary failure.
type Program struct {
	// Path is the program. Self is Indigo's own, which the program is told to run.
	Path, Self string
	// Environment is what it gets, beside SERVICE, TCPREMOTEIP, NATIVE_PASSWORD, which keeps IndiMail's modules to the interface, and INDIGO_COUNTED,
	// which keeps Indigo's own from counting a failure that the door counts.
	Environment []string
	// DefaultDomain completes a name without a domain.
	DefaultDomain string
	// Time bounds a run; 0 means 30 seconds.
	Time time.Duration
	// Running bounds how many run at once: a place is taken by a send.
	Running chan struct{}
}

// limited keeps the first bytes of what is written to it.
type limited struct {
	bytes.Buffer
	most int
}

func (l *limited) Write(p []byte) (int, error) {
	if room := l.most - l.Len(); room > 0 {
		l.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// Verify implements Verifier.
func (p *Program) Verify(ctx context.Context, a Attempt) (Identity, error) {
	if !ValidCredentials(a.User, a.Password) {
		return Identity{}, errFailed.Because(errors.New("name or password malformed"))
	}
	limit := p.Time
	if limit == 0 {
		limit = programTime
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case p.Running <- struct{}{}:
		defer func() { <-p.Running }()
	case <-ctx.Done():
		return Identity{}, errUnavailable.Because(ctx.Err())
	}
	reply, err := p.run(ctx, a)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return p.identity(a, reply)
	case errors.As(err, &exit) && (exit.ExitCode() == 1 || exit.ExitCode() == 3):
		return Identity{}, errFailed.Because(fmt.Errorf("%s: %w", p.Path, err))
	}
	return Identity{}, errUnavailable.Because(fmt.Errorf("%s: %w", p.Path, err))
}

// run gives what the program made Self write to descriptor 4.
func (p *Program) run(ctx context.Context, a Attempt) ([]byte, error) {
	asked, ask, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer asked.Close()
	answer, answered, err := os.Pipe()
	if err != nil {
		ask.Close()
		return nil, err
	}
	defer answer.Close()
	// The pipe takes it whole: it is at most maxPassword and three bytes.
	_, err = io.WriteString(ask, a.User+"\x00"+a.Password+"\x00\x00")
	err = errors.Join(err, ask.Close())
	if err != nil {
		answered.Close()
		return nil, err
	}
	service := map[string]string{"smtpd": "smtp", "imapd": "imap", "pop3d": "pop3"}[kindOf(a.Service)]
	said := limited{most: maxSaid}
	cmd := exec.CommandContext(ctx, p.Path, p.Self, ReplyProgram)
	cmd.Env = append(p.Environment, "SERVICE="+service, "TCPREMOTEIP="+a.Client.String(), "NATIVE_PASSWORD=1", "INDIGO_COUNTED=1")
	cmd.ExtraFiles = []*os.File{asked, answered}
	cmd.Stderr = &said
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// What it has started ends with it.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Start(); err != nil {
		answered.Close()
		return nil, err
	}
	answered.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = answer.SetReadDeadline(deadline)
	}
	reply, readErr := io.ReadAll(io.LimitReader(answer, maxReply+1))
	// A grandchild may hold the descriptors; the program's end is what counts.
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String()))
	}
	if readErr != nil || len(reply) > maxReply {
		return nil, fmt.Errorf("its reply was not to be read: %v", readErr)
	}
	return reply, nil
}

// identity reads USER NUL HOME NUL; a program that only exits with 0 has let in whom the client named.
func (p *Program) identity(a Attempt, reply []byte) (Identity, error) {
	name, home := a.User, ""
	if fields := bytes.Split(reply, []byte{0}); len(fields) >= 2 {
		if len(fields[0]) > 0 {
			name = string(fields[0])
		}
		home = string(fields[1])
	}
	if !strings.Contains(name, "@") {
		name += "@" + p.DefaultDomain
	}
	address, err := addr.Parse(name)
	if err != nil {
		return Identity{}, errUnavailable.Because(fmt.Errorf("%s let in %q, which is no address: %w", p.Path, name, err))
	}
	return Identity{Address: address, Home: home}, nil
}

// kindOf gives the kind of a service, "smtpd" of "smtpd.587".
func kindOf(service string) string {
	kind, _, _ := strings.Cut(service, ".")
	return kind
}
