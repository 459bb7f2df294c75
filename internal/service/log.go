package service

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

// Log is the process's log: lines in qmail's words with a time before them, or JSON. Lines are written together, at
// the latest after a tenth of a second, because a busy queue says five of them for each message; warnings and errors
// are written at once.
type Log struct {
	mu   sync.Mutex
	out  *bufio.Writer
	stop chan struct{}
	done sync.WaitGroup
}

// NewLog makes the log and its logger; format is "text" or "json". Close ends it.
func NewLog(out io.Writer, format string) (*Log, *slog.Logger, error) {
	l := &Log{out: bufio.NewWriterSize(out, 1<<16), stop: make(chan struct{})}
	var handler slog.Handler
	switch format {
	case "text":
		handler = &textHandler{log: l}
	case "json":
		handler = slog.NewJSONHandler(l, nil)
	default:
		return nil, nil, fmt.Errorf("--log-format %q: must be text or json", format)
	}
	l.done.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-l.stop:
				return
			case <-tick.C:
				l.flush()
			}
		}
	})
	return l, slog.New(handler), nil
}

// Write takes one line, whole.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.Write(p)
}

func (l *Log) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	// There is nowhere to say that the log cannot be written.
	_ = l.out.Flush()
}

// Close writes what is left.
func (l *Log) Close() {
	close(l.stop)
	l.done.Wait()
	l.flush()
}

// textHandler writes "time message". The messages are made for people (wiki 1337-1345), so attributes, which repeat
// them for machines, follow only from warnings upwards.
type textHandler struct {
	log   *Log
	attrs []slog.Attr
}

func (h *textHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

func (h *textHandler) Handle(_ context.Context, r slog.Record) error {
	line := make([]byte, 0, 256)
	line = r.Time.AppendFormat(line, "2006-01-02 15:04:05.000000000 ")
	serious := r.Level >= slog.LevelWarn
	if serious {
		line = append(line, r.Level.String()...)
		line = append(line, ": "...)
	}
	// A message may quote what a peer said: no control byte may forge a line.
	for _, c := range []byte(r.Message) {
		if c < ' ' || c == 0x7f {
			c = '?'
		}
		line = append(line, c)
	}
	if serious {
		write := func(a slog.Attr) bool {
			line = fmt.Appendf(line, " %s=%q", a.Key, a.Value.String())
			return true
		}
		for _, a := range h.attrs {
			write(a)
		}
		r.Attrs(write)
	}
	if _, err := h.log.Write(append(line, '\n')); err != nil {
		return err
	}
	if serious {
		h.log.flush()
	}
	return nil
}

func (h *textHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &textHandler{h.log, append(append([]slog.Attr(nil), h.attrs...), attrs...)}
}

func (h *textHandler) WithGroup(string) slog.Handler { return h }
