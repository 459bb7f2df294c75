package inject

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/netstring"
	"github.com/indigomail/indigo/internal/queue"
)

// Layout gives the places in a data directory: public is for every user of the host, with the socket, and in pickup anybody
// may leave files but not see those of others.
func Layout(data string) (public, socket, pickup string) {
	public = filepath.Join(data, "public")
	return public, filepath.Join(public, "inject.sock"), filepath.Join(public, "pickup")
}

// ErrNoPlace says that a data directory takes no mail: no daemon answers and there is no directory pickup.
var ErrNoPlace = errors.New("no Indigo takes mail here")

// Client submits messages to a data directory.
type Client struct{ data string }

// NewClient gives a client for a data directory; nothing is opened yet.
func NewClient(data string) *Client { return &Client{data} }

// dial reaches the socket however long its name is: through an open directory.
func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	public, socket, _ := Layout(c.data)
	dir, err := os.Open(public)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return (&net.Dialer{Timeout: patience}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(socket)))
}

// Submit queues a message. content may have LF or CRLF line ends and is read to its end. It returns when the message is
// durable: with its queue id, or with the name of its file in pickup when no daemon runs. A refusal is a *mailerr.Error.
func (c *Client) Submit(ctx context.Context, content io.Reader, r Request) (id string, err error) {
	text, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	conn, err := c.dial(ctx)
	if err != nil {
		if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EAGAIN) {
			return "", fmt.Errorf("reaching Indigo at %s: %w", c.data, err)
		}
		return c.leave(content, text)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	written := writeStream(conn, content, text)
	if err := conn.SetReadDeadline(time.Now().Add(2 * patience)); err != nil {
		return "", err
	}
	// A refusal may come before all was written; it tells more than the broken pipe.
	answer, err := netstring.Read(bufio.NewReader(conn), 64<<10)
	switch {
	case err != nil && written != nil:
		return "", mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "the message could not be handed over").Because(written)
	case err != nil:
		return "", mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "Indigo gave no answer").Because(err)
	case len(answer) > 0 && answer[0] == 'K':
		return string(answer[1:]), nil
	case len(answer) == 0:
		return "", mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "Indigo gave an empty answer")
	}
	return "", parseRefusal(string(answer))
}

// parseRefusal reads "D" or "Z" and a reply such as "554 5.5.1 no recipients".
func parseRefusal(answer string) *mailerr.Error {
	e := mailerr.New(451, mailerr.Enhanced{4, 3, 0}, strings.TrimSpace(answer[1:]))
	if answer[0] == 'D' {
		e = mailerr.New(554, mailerr.Enhanced{5, 3, 0}, e.Text)
	}
	code, rest, _ := strings.Cut(strings.TrimSpace(answer[1:]), " ")
	n, err := strconv.Atoi(code)
	if err != nil || n < 400 || n > 599 {
		return e
	}
	e.Code, e.Text = n, rest
	enhanced, text, _ := strings.Cut(rest, " ")
	var x mailerr.Enhanced
	if _, err := fmt.Sscanf(enhanced, "%d.%d.%d", &x[0], &x[1], &x[2]); err == nil {
		e.Enhanced, e.Text = x, text
	}
	return e
}

// leave puts the message into pickup.
func (c *Client) leave(content io.Reader, request []byte) (string, error) {
	_, _, dir := Layout(c.data)
	r, w := io.Pipe()
	go func() { w.CloseWithError(writeStream(w, content, request)) }()
	name, err := drop(dir, r)
	r.CloseWithError(err)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: %s has no directory public/pickup, and no daemon answers", ErrNoPlace, c.data)
	}
	if err != nil {
		return "", mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "no daemon answers, and the message cannot be left in pickup").Because(err)
	}
	return name, nil
}

// writeStream writes what Server.take reads.
func writeStream(w io.Writer, content io.Reader, request []byte) error {
	buffer := make([]byte, chunk)
	var out []byte
	for {
		n, err := io.ReadFull(content, buffer)
		if n > 0 {
			out = netstring.Append(out[:0], buffer[:n])
			if _, err := w.Write(out); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the message: %w", err)
		}
	}
	out = netstring.Append(out[:0], "")
	_, err := w.Write(netstring.Append(out, request))
	return err
}

// Submitter gives the client the form that a door wants; program speaks for its messages.
func (c *Client) Submitter(program string) queue.Submitter { return submitter{c, program} }

type submitter struct {
	client  *Client
	program string
}

func (s submitter) Begin(context.Context, int64) (queue.Submission, error) {
	f, err := spoolFile()
	if err != nil {
		return nil, mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "no place for the message").Because(err)
	}
	return &spooled{File: f, commit: func(ctx context.Context, env queue.Envelope) error {
		_, err := s.client.Submit(ctx, f, Request{Program: s.program, Envelope: env})
		return err
	}}, nil
}

// spoolFile makes a file without a name.
func spoolFile() (*os.File, error) {
	f, err := os.CreateTemp("", "indigo-spool")
	if err == nil {
		err = os.Remove(f.Name())
	}
	return f, err
}

// spooled keeps a message in a file until its envelope is known.
type spooled struct {
	*os.File
	id     queue.ID
	commit func(context.Context, queue.Envelope) error
}

func (s *spooled) ID() queue.ID { return s.id }

func (s *spooled) Abort() { s.Close() }

func (s *spooled) Commit(ctx context.Context, env queue.Envelope) error {
	defer s.Close()
	if _, err := s.Seek(0, io.SeekStart); err != nil {
		return mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "the spooled message cannot be read").Because(err)
	}
	if err := s.commit(ctx, env); err != nil {
		return mailerr.From(err)
	}
	return nil
}
