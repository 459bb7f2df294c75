package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/bounce"
	"github.com/indigomail/indigo/internal/inject"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
)

// programTimeout is how long a program of an operator may take.
const programTimeout = 2 * time.Minute

// runProgram runs a line of words, of which the first is a program, with more arguments and variables. Its exit code is 0 or
// -1 with an error; what it says on standard error goes into the error.
func (h *House) runProgram(ctx context.Context, view *settings.View, line string, arguments, variables []string) (code int, err error) {
	words := append(strings.Fields(line), arguments...)
	if len(words) == 0 {
		return -1, errors.New("no program")
	}
	ctx, cancel := context.WithTimeout(ctx, programTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Dir = h.config.Data
	data, err := filepath.Abs(h.config.Data)
	if err != nil {
		return -1, err
	}
	cmd.Env = append(append(view.Environment(), "PATH="+settings.FromEnvironment().Path, "INDIGO_DATA="+data), variables...)
	cmd.WaitDelay = 5 * time.Second
	var said bytes.Buffer
	cmd.Stderr = &said
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		text := strings.TrimSpace(said.String())
		return exit.ExitCode(), fmt.Errorf("exit code %d: %s", exit.ExitCode(), text[:min(len(text), 500)])
	}
	if err != nil {
		return -1, err
	}
	return 0, nil
}

// onward is the queue for what a local delivery sends on: it is opened after the station that uses it.
type onward struct{ queue func() queue.Submitter }

// Begin starts a submission; see queue.Submitter.
func (o onward) Begin(ctx context.Context, sizeHint int64) (queue.Submission, error) {
	return o.queue().Begin(ctx, sizeHint)
}

// programEnvironment is what programs of aliases get beside the settings.
func (h *House) programEnvironment() []string {
	data, err := filepath.Abs(h.config.Data)
	if err != nil {
		data = h.config.Data
	}
	return []string{"PATH=" + settings.FromEnvironment().Path, "INDIGO_DATA=" + data}
}

// bounceDoor is the way of bounces through a program of BOUNCEQUEUE.
func (h *House) bounceDoor(line string) queue.Submitter {
	known, discard := inject.Known(line)
	switch {
	case discard:
		return inject.Discard{Submitter: h.queue, Setting: settings.BounceQueue.Name, Trace: h.trace, Now: time.Now}
	case known:
		return h.queue
	}
	return &inject.Program{Line: line, Data: h.config.Data, Environment: append(h.view("queue").Environment(), "PATH="+settings.FromEnvironment().Path)}
}

// bounceProcessor runs BOUNCEPROCESSOR for each failed recipient with five arguments (wiki 2200-2206): a file with the bounced
// message, a file with what became of the recipient, the bounce's sender, the failed recipient, and who gets the bounce. Exit
// code 2 keeps the bounce back; anything else but 0 is an error, and the bounce goes out.
func (h *House) bounceProcessor(ctx context.Context, line string, r *bounce.Report) (keep bool, err error) {
	dir, err := os.MkdirTemp("", "indigo-bounce")
	if err != nil {
		return true, err
	}
	defer os.RemoveAll(dir)
	message := filepath.Join(dir, "bounce")
	f, err := os.OpenFile(message, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return true, err
	}
	copied := *r
	err = errors.Join(copied.Write(f), f.Close())
	sender := ""
	if r.Double {
		sender = "#@[]"
	}
	keep = true
	for i, o := range r.Outcomes {
		report := filepath.Join(dir, fmt.Sprintf("report.%d", i))
		if e := os.WriteFile(report, []byte(fmt.Sprintf("<%s>:\n%s\n", o.Recipient, o.Text)), 0o600); e != nil {
			return true, e
		}
		code, e := h.runProgram(ctx, h.view("queue"), line, []string{message, report, sender, o.Recipient.String(), r.To.String()}, nil)
		if code == 2 {
			keep = false
		} else if e != nil {
			err = errors.Join(err, e)
		}
	}
	return keep, err
}

// scripted runs ONSUCCESS_REMOTE and ONFAILURE_REMOTE behind remote deliveries (wiki 4510).
type scripted struct {
	queue.Deliverer
	h *House
}

// Deliver makes the deliveries, then runs the script for each recipient; what becomes of a script changes nothing.
func (s scripted) Deliver(ctx context.Context, d *queue.Delivery) []queue.Result {
	results := s.Deliverer.Deliver(ctx, d)
	view := s.h.view("queue")
	for i, r := range results {
		if i >= len(d.Recipients) {
			break
		}
		own := view.ForDelivery(d.Envelope.Sender, d.Recipients[i].Address)
		success, failure := settings.OnSuccessRemote.Get(own), settings.OnFailureRemote.Get(own)
		line, code, text := success, 250, r.Text
		if r.Err != nil {
			line, code = failure, r.Err.Code
			if text == "" {
				text = r.Err.Text
			}
		}
		if line == "" {
			continue
		}
		variables := []string{"SMTPCODE=" + strconv.Itoa(code), "SMTPTEXT=" + strings.Join(strings.Fields(strings.ReplaceAll(text, "\x00", "")), " "),
			"QUEUEID=" + d.ID.String(), "ATTEMPT=" + strconv.Itoa(d.Attempt)}
		if _, err := s.h.runProgram(ctx, own, line, []string{d.Host, d.Envelope.Sender.String(), d.Recipients[i].Address.String()}, variables); err != nil {
			s.h.log.Warn(fmt.Sprintf("message %s: %s: %v", d.ID, line, err))
		}
	}
	return results
}
