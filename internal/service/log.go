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

// Log is the process's log, and the logs of its services where those have directories of their own: lines in qmail's words with a time before them, or JSON. Lines are written together, at
// the latest after a tenth of a second, because a busy queue says five of them for each message; warnings and errors
// are written at once.
type Log struct {
	mu   sync.Mutex
	out  *bufio.Writer
	stop chan struct{}
	done sync.WaitGroup
	// parts are the logs of services.
	partsMu sync.Mutex
	parts   []*Log
	format  string
	closer  io.Closer
	// recent are the last lines, for who asks a running instance; at is where the next one goes.
	recentMu sync.Mutex
	recent   []LogLine
	at       int
}

// LogLine is a line that was written a short time ago.
type LogLine struct {
	// Service is "" for what belongs to no service.
	Service string `json:"service,omitempty"`
	Text    string `json:"text"`
}

// maxRecent bounds the lines that are kept for who asks.
const maxRecent = 2000

// Recent gives the last lines, oldest first: of one service, or with "" of all.
func (l *Log) Recent(service string, limit int) (lines []LogLine) {
	l.recentMu.Lock()
	defer l.recentMu.Unlock()
	for i := range l.recent {
		one := l.recent[(l.at+i)%len(l.recent)]
		if service == "" || one.Service == service {
			lines = append(lines, one)
		}
	}
	return lines[max(0, len(lines)-limit):]
}

// keep remembers a line.
func (l *Log) keep(line LogLine) {
	l.recentMu.Lock()
	defer l.recentMu.Unlock()
	if len(l.recent) < maxRecent {
		l.recent = append(l.recent, line)
		return
	}
	l.recent[l.at] = line
	l.at = (l.at + 1) % maxRecent
}

// NewLog makes the log and its logger; format is "text", "json", "plain", which is text without the time, or "journal",
// which is plain with the priority before each line as systemd's journal reads it. Close ends it.
func NewLog(out io.Writer, format string) (*Log, *slog.Logger, error) {
	l := &Log{out: bufio.NewWriterSize(out, 1<<16), stop: make(chan struct{}), format: format}
	logger, err := l.logger("", l, func() slog.Level { return slog.LevelInfo }, l.format)
	if err != nil {
		return nil, nil, err
	}
	l.start()
	return l, logger, nil
}

// Service gives the logger of a service: into a directory of its own when dir is not nil, from the level that least gives.
func (l *Log) Service(name string, dir *Multilog, rfc3339 bool, least func() slog.Level) *slog.Logger {
	own, format := l, l.format
	if dir != nil {
		format = "tai64n"
		if rfc3339 {
			format = "rfc3339"
		}
		own = &Log{out: bufio.NewWriterSize(dir, 1<<16), stop: make(chan struct{}), format: format, closer: dir}
		own.start()
		l.partsMu.Lock()
		l.parts = append(l.parts, own)
		l.partsMu.Unlock()
	}
	logger, err := own.logger(name, l, least, format)
	if err != nil {
		return slog.New(slog.DiscardHandler)
	}
	return logger
}

// logger makes a logger that writes to l, and tells recent of each line.
func (l *Log) logger(service string, recent *Log, least func() slog.Level, format string) (*slog.Logger, error) {
	switch format {
	case "text", "plain", "journal", "tai64n", "rfc3339":
		return slog.New(&textHandler{log: l, lines: newLines(queue.LogEvents()), format: format, least: least, service: service, recent: recent}), nil
	case "json":
		return slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: leveler(least), ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.MessageKey && len(groups) == 0 {
				a.Key = "event"
			}
			return a
		}})), nil
	}
	return nil, fmt.Errorf("--log-format %q: must be text or json", format)
}

// leveler gives a function the form that slog wants.
type leveler func() slog.Level

// Level gives the least level.
func (f leveler) Level() slog.Level { return f() }

// start writes what was said every tenth of a second.
func (l *Log) start() {
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
	if l.closer != nil {
		_ = l.closer.Close()
	}
	l.partsMu.Lock()
	defer l.partsMu.Unlock()
	for _, part := range l.parts {
		part.Close()
	}
	l.parts = nil
}

// textHandler writes "time message". An event of the queue has qmail's words with the attributes in them (wiki 1337-1345);
// the attributes of anything else follow only from warnings upwards.
type textHandler struct {
	log   *Log
	lines map[string][]piece
	attrs []slog.Attr
	// format is "text", "plain", "journal", "tai64n" or "rfc3339".
	format string
	least  func() slog.Level
	// service is whose log it is; recent keeps the last lines.
	service string
	recent  *Log
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
	return level >= h.least()
}

func (h *textHandler) Handle(_ context.Context, r slog.Record) error {
	line := make([]byte, 0, 256)
	switch h.format {
	case "text":
		line = r.Time.AppendFormat(line, "2006-01-02 15:04:05.000000000 ")
	case "tai64n":
		line = append(append(line, TAI64N(r.Time)...), ' ')
	case "rfc3339":
		line = r.Time.UTC().AppendFormat(line, "2006-01-02T15:04:05.000000Z ")
	case "journal":
		line = append(line, map[slog.Level]string{slog.LevelDebug: "<7>", slog.LevelInfo: "<6>", slog.LevelWarn: "<4>", slog.LevelError: "<3>"}[r.Level]...)
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
	h.recent.keep(LogLine{h.service, string(line)})
	if _, err := h.log.Write(append(line, '\n')); err != nil {
		return err
	}
	if serious {
		h.log.flush()
	}
	return nil
}

func (h *textHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &textHandler{h.log, h.lines, append(append([]slog.Attr(nil), h.attrs...), attrs...), h.format, h.least, h.service, h.recent}
}

func (h *textHandler) WithGroup(string) slog.Handler { return h }
