// Package inject is a door: it takes mail from processes of this host, over a Unix socket that tells who they are, and from
// the directory pickup, where they leave it while no daemon runs. So no program needs setuid. It must not know command lines
// or header rewriting: those are the programs that call it.
package inject

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/message"
	"github.com/indigomail/indigo/internal/netstring"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
)

// Request is what a process says of its message: the program that speaks for it, and the envelope. What it says of the origin
// counts only if it runs as the daemon's own user.
type Request struct {
	Program  string         `json:"program"`
	Envelope queue.Envelope `json:"envelope"`
}

const (
	// chunk is the most bytes of content in one netstring of the stream; maxRequest the most of a request.
	chunk      = 64 << 10
	maxRequest = 32 << 20
	// patience is how long a process may take for its next bytes.
	patience = 5 * time.Minute
	// maxHeader is how much of a header is looked through for loops.
	maxHeader = 256 << 10
)

// The stream: the content as netstrings of at most 64 KiB, an empty netstring, then the Request as one netstring of JSON. The
// answer is one netstring: "K" and the queue id; or "Z" for a temporary or "D" for a permanent refusal, with the reply.

// Config is what a Server stands on.
type Config struct {
	// Pickup is the directory; see Layout.
	Pickup   string
	Hostname string
	Queue    queue.Submitter
	Settings func() *settings.View
	Trace    trace.Recorder
	Logger   *slog.Logger
	Now      func() time.Time
	// UID is the daemon's own user.
	UID int
}

// Server takes mail in. Make one with New.
type Server struct {
	config  Config
	stop    chan struct{}
	serving sync.WaitGroup
	// pickupLock keeps a file from being taken twice.
	pickupLock sync.Mutex
	mu         sync.Mutex
	closing    bool
	open       map[net.Conn]struct{}
	listener   net.Listener
}

// New gives a server; Serve and Pickup make it work.
func New(config Config) *Server {
	return &Server{config: config, stop: make(chan struct{}), open: map[net.Conn]struct{}{}}
}

// Serve answers at l until Shutdown. The error is nil unless accepting failed for good.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return l.Close()
	}
	s.listener = l
	s.serving.Add(1)
	s.mu.Unlock()
	defer s.serving.Done()
	for {
		c, err := l.Accept()
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.closing {
				return nil
			}
			return fmt.Errorf("inject socket: %w", err)
		}
		s.mu.Lock()
		full := len(s.open) >= settings.MaxDaemons.Get(s.config.Settings())
		if s.closing || full {
			s.mu.Unlock()
			// Nobody waits here: the process tries again or leaves its message in pickup.
			c.Close()
			continue
		}
		s.open[c] = struct{}{}
		s.serving.Go(func() {
			s.session(ctx, c.(*net.UnixConn))
			s.mu.Lock()
			delete(s.open, c)
			s.mu.Unlock()
			c.Close()
		})
		s.mu.Unlock()
	}
}

// Shutdown takes no more mail and waits for what is under way until ctx ends, then cuts it.
func (s *Server) Shutdown(ctx context.Context) {
	s.mu.Lock()
	if !s.closing {
		close(s.stop)
	}
	s.closing = true
	if s.listener != nil {
		s.listener.Close()
	}
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.serving.Wait()
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		s.mu.Lock()
		for c := range s.open {
			c.Close()
		}
		s.mu.Unlock()
		<-ended
	}
}

// patient sets a deadline before each read.
type patient struct{ net.Conn }

func (p patient) Read(b []byte) (int, error) {
	if err := p.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	return p.Conn.Read(b)
}

// session takes one message.
func (s *Server) session(ctx context.Context, c *net.UnixConn) {
	peer, err := credentials(c)
	var id queue.ID
	if err == nil {
		id, err = s.take(ctx, patient{c}, int(peer.Uid), int(peer.Pid))
	}
	answer := "K" + id.String()
	if e := mailerr.From(err); e != nil {
		answer = "D"
		if e.Temporary() {
			answer = "Z"
		}
		answer += e.Reply()
	}
	if err := c.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return
	}
	// If the process is gone there is nobody to tell.
	_, _ = c.Write(netstring.Append(nil, answer))
	// What it may still be sending is read, so that it sees the answer and no broken pipe.
	if err != nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(patient{c}, 1<<30))
	}
}

// credentials asks the kernel who is at the other end.
func credentials(c *net.UnixConn) (peer *unix.Ucred, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	failure := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return peer, errors.Join(failure, err)
}

var (
	errTooBig  = mailerr.New(552, mailerr.Enhanced{5, 3, 4}, "sorry, that message size exceeds my databytes limit (#5.3.4)")
	errLooping = mailerr.New(554, mailerr.Enhanced{5, 4, 6}, "too many hops, this message is looping (#5.4.6)")
	errNobody  = mailerr.New(554, mailerr.Enhanced{5, 5, 1}, "no recipients (#5.5.1)")
	errTooMany = mailerr.New(552, mailerr.Enhanced{5, 5, 3}, "sorry, too many recipients (#5.5.3)")
	errMalform = mailerr.New(554, mailerr.Enhanced{5, 5, 2}, "malformed submission (#5.5.2)")
	errCut     = mailerr.New(451, mailerr.Enhanced{4, 4, 2}, "the submission was cut short (#4.4.2)")
)

// take reads a stream and queues its message.
func (s *Server) take(ctx context.Context, r io.Reader, uid, pid int) (id queue.ID, err error) {
	view := s.config.Settings()
	began := s.config.Now()
	event := trace.Event{Time: began, Kind: "inject", Service: "inject", Input: fmt.Sprintf("uid %d, process %d", uid, pid)}
	defer func() {
		// A refusal leaves its trace however early it comes.
		if event.Verdict = "accept"; err != nil {
			event.Verdict, event.Reply = "reject", mailerr.From(err).Reply()
		}
		s.config.Trace.Record(event)
	}()
	b := bufio.NewReaderSize(r, chunk+32)
	submission, err := s.config.Queue.Begin(ctx, 0)
	if err != nil {
		return 0, err
	}
	committed := false
	defer func() {
		if !committed {
			submission.Abort()
		}
	}()
	c := &content{to: submission, limit: int64(settings.DataBytes.Get(view))}
	if settings.FromRules.Get(view).Len() > 0 {
		// The sender, who comes behind the content, may have a limit of his own; until then only this one holds.
		c.limit = maxContent
	}
	if _, err := io.WriteString(submission, message.QueueReceived(pid, s.config.Hostname, uid, began)); err != nil {
		return 0, err
	}
	for {
		part, err := netstring.Read(b, chunk)
		if err != nil {
			return 0, streamError(err)
		}
		if len(part) == 0 {
			break
		}
		if err := c.write(part); err != nil {
			return 0, err
		}
	}
	if err := c.close(); err != nil {
		return 0, err
	}
	text, err := netstring.Read(b, maxRequest)
	if err != nil {
		return 0, streamError(err)
	}
	var request Request
	if err := json.Unmarshal(text, &request); err != nil {
		return 0, errMalform.Because(err)
	}
	env := request.Envelope
	own := env.Origin
	env.Origin = queue.Origin{Service: program(request.Program), UID: uid, PID: pid}
	if uid == s.config.UID && own.Service != "" {
		// A program that a door has put between itself and the queue.
		env.Origin = own
		env.Origin.PID = pid
	}
	env.MessageID = c.messageID
	env.Settings = view.ForSender(env.Sender)
	err = s.check(env.Settings, &env, c)
	if limit := int64(settings.DataBytes.Get(env.Settings)); err == nil && limit > 0 && c.written > limit {
		err = errTooBig
	}
	event.Session, event.MessageID, event.Service, event.From, event.Bytes = env.Origin.Session, env.MessageID, env.Origin.Service, env.Sender.String(), c.written
	if err != nil {
		return 0, err
	}
	committed = true
	if err := submission.Commit(ctx, env); err != nil {
		return 0, err
	}
	event.Queue = submission.ID().String()
	return submission.ID(), nil
}

// program keeps a name that can stand in a log.
func program(name string) string {
	if name == "" || len(name) > 64 {
		return "inject"
	}
	for _, c := range name {
		if c <= ' ' || c >= 0x7f {
			return "inject"
		}
	}
	return name
}

func streamError(err error) error {
	if errors.Is(err, netstring.ErrFormat) || errors.Is(err, netstring.ErrTooLong) {
		return errMalform.Because(err)
	}
	return errCut.Because(err)
}

// check looks at what the process says before it is believed.
func (s *Server) check(view *settings.View, env *queue.Envelope, c *content) error {
	switch {
	case len(env.Recipients) == 0:
		return errNobody
	case len(env.Recipients) > settings.MaxRecipients.Get(view) && env.Origin.UID != 0:
		return errTooMany
	case c.hops > settings.MaxHops.Get(view):
		return errLooping
	}
	if err := env.Check(); err != nil {
		return mailerr.New(553, mailerr.Enhanced{5, 1, 3}, "malformed envelope: "+err.Error()+" (#5.1.3)")
	}
	return nil
}

// content brings what a process wrote into wire form and looks at its header.
// maxContent bounds a message whose sender's limit is not known yet.
const maxContent = 1 << 30

type content struct {
	to             io.Writer
	limit, written int64
	out            []byte
	cr             bool
	header         []byte
	ended          bool
	hops           int
	messageID      string
}

// write takes the next bytes: LF, CR and CRLF each end a line, because programs of this host write LF.
func (c *content) write(p []byte) error {
	c.out = c.out[:0]
	for _, b := range p {
		switch {
		case b == '\n' && c.cr:
			c.cr = false
		case b == '\n', b == '\r':
			c.out = append(c.out, '\r', '\n')
			c.cr = b == '\r'
		default:
			c.out = append(c.out, b)
			c.cr = false
		}
	}
	if c.written += int64(len(c.out)); c.limit > 0 && c.written > c.limit {
		return errTooBig
	}
	if !c.ended {
		c.header = append(c.header, c.out...)
		if end := bytes.Index(c.header, []byte("\r\n\r\n")); end >= 0 || len(c.header) > maxHeader {
			c.lookThrough()
		}
	}
	_, err := c.to.Write(c.out)
	return err
}

func (c *content) lookThrough() {
	c.ended = true
	for _, f := range message.Fields(c.header[:message.HeaderEnd(c.header)]) {
		switch {
		case f.Is("received"), f.Is("delivered-to"):
			c.hops++
		case f.Is("message-id") && c.messageID == "":
			if ids := message.MessageIDs(f.Value()); len(ids) > 0 && len(ids[0]) < 250 {
				c.messageID = ids[0]
			}
		}
	}
	c.header = nil
}

// close ends the content: its last line has an end.
func (c *content) close() error {
	if !c.ended {
		c.lookThrough()
	}
	if n := len(c.out); c.written > 0 && n > 0 && c.out[n-1] != '\n' {
		_, err := io.WriteString(c.to, "\r\n")
		return err
	}
	return nil
}
