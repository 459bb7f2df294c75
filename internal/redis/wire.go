package redis

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
)

// Limits of what a server may answer: longer is no answer to a question of ours.
const (
	maxWords = 1 << 14
	maxWord  = 1 << 20
	maxLine  = 1 << 10
	maxBytes = 4 << 20
	maxDepth = 4
	// maxPending bounds the questions on one connection that are not answered yet.
	maxPending = 8192
)

// ServerError is an error that the server answered with, such as WRONGPASS or READONLY.
type ServerError string

// Error gives the server's words.
func (e ServerError) Error() string { return string(e) }

// reply is what came back: the words of an array, or the one of anything else, numbers in decimal.
type reply struct {
	words []string
	err   error
}

// wire speaks RESP2 on one socket: many questions may be under way, and are answered in order.
type wire struct {
	conn net.Conn

	mu      sync.Mutex
	out     *bufio.Writer
	pending chan chan reply
	ended   chan struct{}
	err     error
	reading sync.WaitGroup
}

func newWire(conn net.Conn) *wire {
	w := &wire{conn: conn, out: bufio.NewWriter(conn), pending: make(chan chan reply, maxPending), ended: make(chan struct{})}
	w.reading.Go(w.read)
	return w
}

// close ends it; what is not answered gets an error.
func (w *wire) close() {
	w.conn.Close()
	w.reading.Wait()
}

func (w *wire) read() {
	in := bufio.NewReader(w.conn)
	var err error
	for err == nil {
		var r reply
		if r, err = readReply(in); err != nil {
			break
		}
		select {
		case to := <-w.pending:
			to <- r
		default:
			err = errors.New("the server answered what nobody asked")
		}
	}
	w.conn.Close()
	w.mu.Lock()
	w.err = err
	close(w.ended)
	w.mu.Unlock()
	for {
		select {
		case to := <-w.pending:
			to <- reply{err: err}
		default:
			return
		}
	}
}

// send writes commands and gives where each answer will come.
func (w *wire) send(deadline time.Time, commands ...[]string) ([]chan reply, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return nil, w.err
	}
	var answers []chan reply
	_ = w.conn.SetWriteDeadline(deadline)
	for _, words := range commands {
		to := make(chan reply, 1)
		select {
		case w.pending <- to:
		default:
			return nil, ErrBusy
		}
		answers = append(answers, to)
		writeCommand(w.out, words)
	}
	if err := w.out.Flush(); err != nil {
		// A command that was cut in the middle leaves nothing to go on with.
		w.conn.Close()
		return nil, err
	}
	return answers, nil
}

func writeCommand(out *bufio.Writer, words []string) {
	fmt.Fprintf(out, "*%d\r\n", len(words))
	for _, word := range words {
		fmt.Fprintf(out, "$%d\r\n", len(word))
		out.WriteString(word)
		out.WriteString("\r\n")
	}
}

// do asks, and waits for all answers, until ctx ends, which must have a deadline; the error is the first one.
func (w *wire) do(ctx context.Context, commands ...[]string) (last []string, err error) {
	deadline, _ := ctx.Deadline()
	answers, err := w.send(deadline, commands...)
	if err != nil {
		return nil, err
	}
	for _, one := range answers {
		select {
		case r := <-one:
			if last = r.words; r.err != nil && err == nil {
				err = r.err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return last, err
}

// readReply reads one answer, within the limits; the error ends the connection, an error of the server's is in the reply.
func readReply(in *bufio.Reader) (r reply, err error) {
	left := maxBytes
	r.words, err = readWords(in, &left, maxDepth)
	var server ServerError
	if errors.As(err, &server) {
		return reply{err: server}, nil
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
		err = fmt.Errorf("the server closed the connection: %w", err)
	}
	return r, err
}

func readWords(in *bufio.Reader, left *int, depth int) (words []string, err error) {
	line, err := readLine(in, left)
	if err != nil {
		return nil, err
	}
	kind, rest := line[0], line[1:]
	switch kind {
	case '+', ':':
		return []string{rest}, nil
	case '-':
		// It goes into logs and onto terminals.
		return nil, ServerError(strings.Map(func(r rune) rune {
			if !unicode.IsPrint(r) {
				return '?'
			}
			return r
		}, rest))
	}
	n, err := strconv.Atoi(rest)
	if err != nil || n < -1 {
		return nil, fmt.Errorf("the server does not speak Redis's protocol: %.20q", line)
	}
	switch {
	case kind == '$' && n < 0, kind == '*' && n < 0:
		return []string{""}, nil
	case kind == '$' && n <= maxWord && n+2 <= *left:
		b := make([]byte, n+2)
		*left -= len(b)
		if _, err := io.ReadFull(in, b); err != nil {
			return nil, err
		}
		if string(b[n:]) != "\r\n" {
			return nil, errors.New("the server does not speak Redis's protocol: a word without its end")
		}
		return []string{string(b[:n])}, nil
	case kind == '*' && n <= maxWords && depth > 0:
		var failed error
		for range n {
			one, err := readWords(in, left, depth-1)
			var server ServerError
			if errors.As(err, &server) {
				failed = server
			} else if err != nil {
				return nil, err
			}
			words = append(words, one...)
		}
		return words, failed
	}
	return nil, fmt.Errorf("the server's answer is no answer to what was asked: %.20q", line)
}

// readLine reads a line with its kind, without its end.
func readLine(in *bufio.Reader, left *int) (string, error) {
	line, err := in.ReadSlice('\n')
	*left -= len(line)
	switch {
	case errors.Is(err, bufio.ErrBufferFull), err == nil && len(line) > maxLine, *left < 0:
		return "", errors.New("the server's answer is too long")
	case err != nil:
		return "", err
	case len(line) < 3 || line[len(line)-2] != '\r':
		return "", fmt.Errorf("the server does not speak Redis's protocol: %.20q", line)
	}
	return string(line[:len(line)-2]), nil
}
