package service

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/queue"
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

// NewLog makes the log and its logger; format is "text", "json", or "plain", which is text without the time. Close ends it.
func NewLog(out io.Writer, format string) (*Log, *slog.Logger, error) {
	l := &Log{out: bufio.NewWriterSize(out, 1<<16), stop: make(chan struct{})}
	var handler slog.Handler
	switch format {
	case "text", "plain":
		handler = &textHandler{log: l, lines: newLines(queue.LogEvents()), plain: format == "plain"}
	case "json":
		handler = slog.NewJSONHandler(l, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.MessageKey && len(groups) == 0 {
				a.Key = "event"
			}
			return a
		}})
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

// textHandler writes "time message". An event of the queue has qmail's words with the attributes in them (wiki 1337-1345);
// the attributes of anything else follow only from warnings upwards.
type textHandler struct {
	log   *Log
	lines map[string][]piece
	attrs []slog.Attr
	// plain leaves the time to who reads the log.
	plain bool
}

// piece is a part of an event's line: text, and the attribute behind it.
type piece struct {
	text, key string
	// mark is what stands behind the key: '|', '+' or 0; see queue.LogEvent.
	mark byte
}

// newLines takes the lines of the events apart.
func newLines(events []queue.LogEvent) map[string][]piece {
	lines := make(map[string][]piece, len(events))
	for _, e := range events {
		for rest := e.Text; rest != ""; {
			text, behind, _ := strings.Cut(rest, "{")
			key, after, _ := strings.Cut(behind, "}")
			p := piece{text: text, key: strings.TrimRight(key, "|+")}
			if len(p.key) < len(key) {
				p.mark = key[len(p.key)]
			}
			lines[e.Name] = append(lines[e.Name], p)
			rest = after
		}
	}
	return lines
}

// appendLine writes an event's line.
func appendLine(b []byte, pieces []piece, r slog.Record) []byte {
	for _, p := range pieces {
		b = append(b, p.text...)
		if p.key == "" {
			continue
		}
		r.Attrs(func(a slog.Attr) bool {
			if a.Key != p.key {
				return true
			}
			if p.mark == '+' {
				b = append(b, ' ')
			}
			switch {
			case a.Value.Kind() == slog.KindInt64:
				b = strconv.AppendInt(b, a.Value.Int64(), 10)
			case a.Value.Kind() == slog.KindUint64:
				b = strconv.AppendUint(b, a.Value.Uint64(), 10)
			case p.mark == '|':
				b = append(b, queue.QmailText(a.Value.String())...)
			default:
				b = append(b, a.Value.String()...)
			}
			return false
		})
	}
	return b
}

func (h *textHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

func (h *textHandler) Handle(_ context.Context, r slog.Record) error {
	line := make([]byte, 0, 256)
	if !h.plain {
		line = r.Time.AppendFormat(line, "2006-01-02 15:04:05.000000000 ")
	}
	serious := r.Level >= slog.LevelWarn
	if serious {
		line = append(line, r.Level.String()...)
		line = append(line, ": "...)
	}
	begin := len(line)
	if pieces, ok := h.lines[r.Message]; ok {
		line = appendLine(line, pieces, r)
	} else {
		line = append(line, r.Message...)
	}
	// A message may quote what a peer said: no control byte may forge a line.
	for i, c := range line[begin:] {
		if c < ' ' || c == 0x7f {
			line[begin+i] = '?'
		}
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
	return &textHandler{h.log, h.lines, append(append([]slog.Attr(nil), h.attrs...), attrs...), h.plain}
}

func (h *textHandler) WithGroup(string) slog.Handler { return h }
