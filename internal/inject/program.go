package inject

import (
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
	"time"

	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/trace"
)

// Exit codes of qmail-queue, which programs between a door and the queue give back.
const (
	ExitTooLong       = 11
	ExitRefused       = 31
	ExitMemory        = 51
	ExitTimeout       = 52
	ExitWrite         = 53
	ExitRead          = 54
	ExitConfiguration = 55
	ExitHome          = 61
	ExitQueue         = 62
	ExitTemporary     = 71
	ExitInternal      = 81
	ExitCustom        = 88
	ExitEnvelope      = 91
)

// exits says what an exit code means to a client, in qmail's words.
func exits(code int) *mailerr.Error {
	type reply struct {
		code     int
		enhanced mailerr.Enhanced
		text     string
	}
	known := map[int]reply{
		ExitTooLong:       {554, mailerr.Enhanced{5, 1, 3}, "envelope address too long for qq (#5.1.3)"},
		ExitRefused:       {554, mailerr.Enhanced{5, 3, 0}, "mail server permanently rejected message (#5.3.0)"},
		ExitMemory:        {451, mailerr.Enhanced{4, 3, 0}, "qq out of memory (#4.3.0)"},
		ExitTimeout:       {451, mailerr.Enhanced{4, 3, 0}, "qq timeout (#4.3.0)"},
		ExitWrite:         {451, mailerr.Enhanced{4, 3, 0}, "qq write error or disk full (#4.3.0)"},
		ExitRead:          {451, mailerr.Enhanced{4, 3, 0}, "qq read error (#4.3.0)"},
		ExitConfiguration: {451, mailerr.Enhanced{4, 3, 0}, "qq unable to read configuration (#4.3.0)"},
		56:                {451, mailerr.Enhanced{4, 3, 0}, "qq trouble making network connection (#4.3.0)"},
		ExitHome:          {451, mailerr.Enhanced{4, 3, 0}, "qq trouble in home directory (#4.3.0)"},
		ExitQueue:         {451, mailerr.Enhanced{4, 3, 0}, "qq trouble creating files in queue (#4.3.0)"},
		ExitTemporary:     {451, mailerr.Enhanced{4, 3, 0}, "mail server temporarily rejected message (#4.3.0)"},
		72:                {451, mailerr.Enhanced{4, 4, 1}, "connection to mail server timed out (#4.4.1)"},
		73:                {451, mailerr.Enhanced{4, 4, 1}, "connection to mail server rejected (#4.4.1)"},
		74:                {451, mailerr.Enhanced{4, 4, 2}, "communication with mail server failed (#4.4.2)"},
		ExitEnvelope:      {451, mailerr.Enhanced{4, 3, 0}, "qq internal bug in the envelope (#4.3.0)"},
	}
	r, ok := known[code]
	switch {
	case ok:
	case code > 10 && code <= 40:
		r = reply{554, mailerr.Enhanced{5, 3, 0}, "qq permanent problem (#5.3.0)"}
	default:
		r = reply{451, mailerr.Enhanced{4, 3, 0}, "qq temporary problem (#4.3.0)"}
	}
	return mailerr.New(r.code, r.enhanced, r.text)
}

// ExitCode gives the exit code of qmail-queue for an error of Client.Submit.
func ExitCode(err error) int {
	switch e := mailerr.From(err); {
	case err == nil:
		return 0
	case errors.Is(err, ErrNoPlace):
		return ExitHome
	case e.Code == 452:
		return ExitWrite
	case e.Temporary():
		return ExitTemporary
	}
	return ExitRefused
}

// programTimeout is how long a program may work on one message.
const programTimeout = 10 * time.Minute

// Program puts a QMAILQUEUE program between a door and the queue: it gets the message on descriptor 0 and the envelope, in
// qmail-queue's form, on descriptor 1, and calls qmail-queue at its end.
type Program struct {
	// Line is the program with its arguments, separated by blanks.
	Line string
	// Data is the data directory, Environment what the program gets beside.
	Data        string
	Environment []string
}

var _ queue.Submitter = (*Program)(nil)

// Begin starts a submission; the program runs at its Commit, whose error says what its exit code means.
func (p *Program) Begin(context.Context, int64) (queue.Submission, error) {
	f, err := spoolFile()
	if err != nil {
		return nil, exits(ExitWrite).Because(err)
	}
	return &spooled{File: f, commit: func(ctx context.Context, env queue.Envelope) error { return p.run(ctx, f, env) }}, nil
}

// originVariable carries a door's knowledge to the qmail-queue at the program's end.
const originVariable = "INDIGO_ORIGIN"

func (p *Program) run(ctx context.Context, message *os.File, env queue.Envelope) error {
	ctx, cancel := context.WithTimeout(ctx, programTimeout)
	defer cancel()
	words := strings.Fields(p.Line)
	if len(words) == 0 {
		return exits(ExitConfiguration)
	}
	origin, err := json.Marshal(env)
	if err != nil {
		return exits(ExitInternal).Because(err)
	}
	// A file and no pipe: the program may begin with the message and never look at it.
	envelope, err := spoolFile()
	if err != nil {
		return exits(ExitWrite).Because(err)
	}
	defer envelope.Close()
	if _, err = envelope.Write(EncodeEnvelope(env)); err == nil {
		_, err = envelope.Seek(0, io.SeekStart)
	}
	if err != nil {
		return exits(ExitWrite).Because(err)
	}
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Dir = p.Data
	cmd.Stdin, cmd.Stdout = message, envelope
	said := &tail{}
	cmd.Stderr = said
	absolute, err := filepath.Abs(p.Data)
	if err != nil {
		return exits(ExitConfiguration).Because(err)
	}
	cmd.Env = append(append([]string{}, p.Environment...), "INDIGO_DATA="+absolute, "SENDER="+env.Sender.String(), originVariable+"="+string(origin))
	cmd.WaitDelay = 10 * time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return exits(ExitTimeout).Because(ctx.Err())
	case errors.As(err, &exit) && exit.ExitCode() == ExitCustom:
		return custom(said.String()).Because(err)
	case errors.As(err, &exit) && exit.Exited():
		return exits(exit.ExitCode()).Because(fmt.Errorf("%s: exit code %d: %s", words[0], exit.ExitCode(), said))
	}
	return exits(ExitTemporary).Because(fmt.Errorf("%s: %w: %s", words[0], err, said))
}

// custom reads a reply of the program's own: "D" or "Z" and a text, its last line.
func custom(said string) *mailerr.Error {
	lines := strings.Split(strings.TrimSpace(said), "\n")
	last := strings.TrimSpace(lines[len(lines)-1])
	if len(last) < 2 || last[0] != 'D' && last[0] != 'Z' {
		return exits(ExitTemporary)
	}
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f {
			return '?'
		}
		return r
	}, last[1:])
	if last[0] == 'D' {
		return mailerr.New(554, mailerr.Enhanced{5, 3, 0}, text[:min(len(text), 400)])
	}
	return mailerr.New(451, mailerr.Enhanced{4, 3, 0}, text[:min(len(text), 400)])
}

// tail keeps the end of what is written.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-2048):]
	return len(p), nil
}

func (t *tail) String() string { return strings.TrimSpace(string(t.b)) }

// Known gives what names mean that need no program: "" stands for qmail-queue itself, and discard for qmail-nullqueue. A file
// of the name goes first. IndiMail's front ends of qmail-queue count as qmail-queue; see NotYet.
func Known(line string) (known, discard bool) {
	words := strings.Fields(line)
	if len(words) == 0 {
		return true, false
	}
	if _, err := os.Stat(words[0]); err == nil {
		return false, false
	}
	switch filepath.Base(words[0]) {
	case "qmail-queue", "qmail-multi", "qmail-dk", "qmail-dkim", "qmail-spamfilter":
		return true, false
	case "qmail-nullqueue":
		return true, true
	}
	return false, false
}

// NotYet tells whether line names one of IndiMail's front ends that do nothing here yet: no signatures, no spam filter.
func NotYet(line string) bool {
	known, discard := Known(line)
	words := strings.Fields(line)
	if !known || discard || len(words) == 0 {
		return false
	}
	switch filepath.Base(words[0]) {
	case "qmail-queue", "qmail-multi":
		return false
	}
	return true
}

// Discard throws messages away, as qmail-nullqueue does, and says so in the trace.
type Discard struct {
	queue.Submitter
	// Setting is what asked for it, for example "QMAILQUEUE".
	Setting string
	Trace   trace.Recorder
	Now     func() time.Time
}

// Begin starts a submission that Commit ends without keeping anything.
func (d Discard) Begin(ctx context.Context, sizeHint int64) (queue.Submission, error) {
	s, err := d.Submitter.Begin(ctx, sizeHint)
	if err != nil {
		return nil, err
	}
	return discarding{s, d}, nil
}

type discarding struct {
	queue.Submission
	by Discard
}

func (d discarding) Commit(_ context.Context, env queue.Envelope) error {
	d.Abort()
	d.by.Trace.Record(trace.Event{Time: d.by.Now(), Kind: "queued", Session: env.Origin.Session, Queue: d.ID().String(), MessageID: env.MessageID,
		Service: env.Origin.Service, From: env.Sender.String(), Verdict: "discard", Check: "qmail-nullqueue", Setting: d.by.Setting})
	return nil
}

// EncodeEnvelope gives the form that qmail-queue reads: F, sender, NUL, for each recipient T, address, NUL, and a NUL.
func EncodeEnvelope(env queue.Envelope) []byte {
	b := append([]byte{'F'}, env.Sender.String()...)
	b = append(b, 0)
	for _, r := range env.Recipients {
		b = append(append(append(b, 'T'), r.Address.String()...), 0)
	}
	return append(b, 0)
}

// maxEnvelope bounds what is read of an envelope.
const maxEnvelope = 32 << 20

// ErrEnvelope says that an envelope is not in qmail-queue's form; ErrAddress that it has an address that is none.
var (
	ErrEnvelope = errors.New("the envelope is not of the form F…NUL T…NUL NUL")
	ErrAddress  = errors.New("the envelope has a malformed address")
)

// DecodeEnvelope reads what EncodeEnvelope gives.
func DecodeEnvelope(r io.Reader) (env queue.Envelope, err error) {
	b, err := io.ReadAll(io.LimitReader(r, maxEnvelope+1))
	if err != nil {
		return env, err
	}
	body, ok := bytes.CutSuffix(b, []byte{0, 0})
	if !ok || len(b) > maxEnvelope {
		return env, ErrEnvelope
	}
	for i, field := range strings.Split(string(body), "\x00") {
		switch {
		case i == 0 && strings.HasPrefix(field, "F"):
			if err := env.Sender.UnmarshalText([]byte(field[1:])); err != nil {
				return env, fmt.Errorf("%w: %w", ErrAddress, err)
			}
		case i > 0 && strings.HasPrefix(field, "T") && len(field) > 1:
			var to queue.Recipient
			if err := to.Address.UnmarshalText([]byte(field[1:])); err != nil {
				return env, fmt.Errorf("%w: %w", ErrAddress, err)
			}
			env.Recipients = append(env.Recipients, to)
		default:
			return env, ErrEnvelope
		}
	}
	if len(env.Recipients) == 0 {
		return env, ErrEnvelope
	}
	return env, nil
}

// Inherit takes over what a door said of a message before a program came between: its origin, and of the addresses that are
// still in the envelope what DSN asks for. text is the value of the environment variable INDIGO_ORIGIN.
func Inherit(env *queue.Envelope, text string) {
	var before queue.Envelope
	if text == "" || json.Unmarshal([]byte(text), &before) != nil {
		return
	}
	env.Origin = before.Origin
	env.Body, env.UTF8 = before.Body, before.UTF8
	if env.Sender.Key() == before.Sender.Key() {
		env.EnvID, env.Return = before.EnvID, before.Return
	}
	for i, r := range env.Recipients {
		for _, b := range before.Recipients {
			if b.Address.Key() == r.Address.Key() {
				env.Recipients[i].Notify, env.Recipients[i].Orcpt = b.Notify, b.Orcpt
			}
		}
	}
}
