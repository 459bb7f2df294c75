package trace

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/indigomail/indigo/internal/wire"
)

// Bounds of the log: what may wait in memory, how big a file gets, how long an event may wait.
const (
	maxPending = 4 << 20
	maxFile    = 16 << 20
	writeEvery = 200 * time.Millisecond
)

// Config says where a Log keeps its files and how much of them.
type Config struct {
	Dir string
	// MaxBytes and MaxAge bound the files together; the oldest go first.
	MaxBytes int64
	MaxAge   time.Duration
	Now      func() time.Time
	Logger   *slog.Logger
}

// Log is the trace on disk: files of JSON lines, trace-TIME.jsonl, the names in the order of time. One goroutine writes;
// Record only appends to memory.
type Log struct {
	config  Config
	mu      sync.Mutex
	pending []byte
	dropped atomic.Uint64
	flush   chan chan struct{}
	stop    chan struct{}
	done    sync.WaitGroup
}

// Open starts a log in config.Dir.
func Open(config Config) (*Log, error) {
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, err
	}
	l := &Log{config: config, flush: make(chan chan struct{}), stop: make(chan struct{})}
	l.done.Go(l.write)
	return l, nil
}

// Record takes an event. When more than 4 MiB wait for the disk, events are dropped and counted.
func (l *Log) Record(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pending) > maxPending {
		l.dropped.Add(1)
		return
	}
	l.pending = appendEvent(l.pending, &e)
}

// Dropped counts the events that were dropped since the start.
func (l *Log) Dropped() uint64 { return l.dropped.Load() }

// Flush writes what was recorded before.
func (l *Log) Flush(ctx context.Context) error {
	written := make(chan struct{})
	select {
	case l.flush <- written:
		<-written
		return nil
	case <-l.stop:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close writes what is left and ends the log.
func (l *Log) Close() {
	close(l.stop)
	l.done.Wait()
}

func (l *Log) write() {
	var file *os.File
	var size int64
	var spare []byte
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	put := func() {
		l.mu.Lock()
		batch := l.pending
		l.pending = spare[:0]
		l.mu.Unlock()
		spare = batch
		if len(batch) == 0 {
			return
		}
		if file == nil || size > maxFile {
			if file != nil {
				file.Close()
			}
			var err error
			name := "trace-" + l.config.Now().UTC().Format("20060102T150405.000000000") + ".jsonl"
			file, err = os.OpenFile(filepath.Join(l.config.Dir, name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
			if err != nil {
				file = nil
				l.lost(batch, err)
				return
			}
			size = 0
			l.prune()
		}
		n, err := file.Write(batch)
		size += int64(n)
		if err != nil {
			l.lost(batch[n:], err)
		}
	}
	for {
		select {
		case <-tick.C:
			put()
		case written := <-l.flush:
			put()
			close(written)
		case <-l.stop:
			put()
			if file != nil {
				file.Close()
			}
			return
		}
	}
}

func (l *Log) lost(batch []byte, err error) {
	n := bytes.Count(batch, []byte("\n"))
	l.dropped.Add(uint64(n))
	l.config.Logger.Warn(fmt.Sprintf("trace: %d events lost: %v", n, err))
}

// files gives the log's files, oldest first.
func files(dir string) ([]string, error) {
	names, err := filepath.Glob(filepath.Join(dir, "trace-*.jsonl"))
	slices.Sort(names)
	return names, err
}

// prune removes the oldest files beyond the bounds.
func (l *Log) prune() {
	names, err := files(l.config.Dir)
	if err != nil {
		return
	}
	var total int64
	for i, name := range slices.Backward(names) {
		info, err := os.Stat(name)
		if err != nil {
			continue
		}
		total += info.Size()
		tooOld := l.config.MaxAge > 0 && l.config.Now().Sub(info.ModTime()) > l.config.MaxAge
		if i < len(names)-1 && (tooOld || l.config.MaxBytes > 0 && total > l.config.MaxBytes) {
			os.Remove(name)
		}
	}
}

// appendEvent appends e as a JSON line. encoding/json took 3 µs an event; a message makes about eight.
func appendEvent(b []byte, e *Event) []byte {
	b = append(b, `{"time":"`...)
	b = e.Time.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, '"')
	for _, f := range [...]struct{ key, value string }{
		{"kind", e.Kind}, {"session", e.Session}, {"queue", e.Queue}, {"message_id", e.MessageID}, {"service", e.Service},
		{"client", e.Client}, {"user", e.User}, {"from", e.From}, {"to", e.To}, {"check", e.Check}, {"input", e.Input},
		{"verdict", e.Verdict}, {"setting", e.Setting}, {"layer", e.Layer}, {"reply", e.Reply},
	} {
		if f.value != "" {
			b = append(b, `,"`...)
			b = append(b, f.key...)
			b = append(b, `":`...)
			b = appendString(b, f.value)
		}
	}
	if len(e.Dialogue) > 0 {
		b = append(b, `,"dialogue":[`...)
		for i, line := range e.Dialogue {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendString(b, line)
		}
		b = append(b, ']')
	}
	if e.Took != 0 {
		b = fmt.Appendf(b, `,"took_ns":%d`, e.Took)
	}
	if e.Bytes != 0 {
		b = fmt.Appendf(b, `,"bytes":%d`, e.Bytes)
	}
	return append(b, "}\n"...)
}

// maxText bounds one text of an event.
const maxText = 2048

func appendString(b []byte, s string) []byte {
	s = s[:min(len(s), maxText)]
	plain := true
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			plain = false
			break
		}
	}
	if plain {
		return append(append(append(b, '"'), s...), '"')
	}
	quoted, _ := json.Marshal(strings.ToValidUTF8(s, "?")) // a string always marshals
	return append(b, quoted...)
}

// Query says which messages or sessions to tell of. At least one of the first four must be set.
type Query struct {
	Queue, Session, MessageID string
	// Client is a client's IP address.
	Client string
	// Address is a sender or recipient; case does not count.
	Address string
	// Since and Until bound the time; zero means no bound.
	Since, Until time.Time
	// Stories is the most messages or sessions to give, the newest first kept; 0 means 100.
	Stories int
}

// Search reads the log in dir and gives, in the order of time, all events of every session and message that has an event
// that fits q. It needs no running Log. A damaged line is passed over.
func Search(ctx context.Context, dir string, q Query) ([]Event, error) {
	needle := q.Queue + q.Session + q.MessageID + q.Client + q.Address
	if needle == "" {
		return nil, errors.New("nothing to search for")
	}
	fits := func(e *Event) bool {
		return (q.Queue == "" || e.Queue == q.Queue) && (q.Session == "" || e.Session == q.Session) &&
			(q.MessageID == "" || e.MessageID == q.MessageID) && (q.Client == "" || e.Client == q.Client) &&
			(q.Address == "" || strings.EqualFold(e.From, q.Address) || strings.EqualFold(e.To, q.Address) || strings.EqualFold(e.User, q.Address))
	}
	inTime := func(e *Event) bool {
		return (q.Since.IsZero() || !e.Time.Before(q.Since)) && (q.Until.IsZero() || !e.Time.After(q.Until))
	}
	// First the names of the stories, then all that belongs to them: a delivery names the queue id only, a refusal the
	// session only.
	var sessions, queues []string
	needleFold := []byte(strings.ToLower(needle))
	err := scan(ctx, dir, func(line []byte) bool {
		return bytes.Contains(line, []byte(needle)) || q.Address != "" && bytes.Contains(bytes.ToLower(line), needleFold)
	}, func(e *Event) {
		if fits(e) && inTime(e) {
			if e.Queue != "" {
				queues = append(queues, e.Queue)
			}
			if e.Session != "" {
				sessions = append(sessions, e.Session)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	limit := q.Stories
	if limit == 0 {
		limit = 100
	}
	newest := func(names []string) map[string]bool {
		set := map[string]bool{}
		for _, n := range slices.Backward(names) {
			if set[n] = true; len(set) == limit {
				break
			}
		}
		return set
	}
	wantSessions, wantQueues := newest(sessions), newest(queues)
	var found []Event
	err = scan(ctx, dir, func([]byte) bool { return len(wantSessions)+len(wantQueues) > 0 }, func(e *Event) {
		switch {
		case e.Queue != "" && wantQueues[e.Queue]:
		case e.Queue != "" && q.Queue != "":
			// another message of the same session
			return
		case e.Session == "" || !wantSessions[e.Session]:
			return
		}
		found = append(found, *e)
	})
	slices.SortStableFunc(found, func(a, b Event) int { return a.Time.Compare(b.Time) })
	return found, err
}

// scan reads every line that may passes and gives its event to use.
func scan(ctx context.Context, dir string, may func([]byte) bool, use func(*Event)) error {
	names, err := files(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := scanFile(ctx, name, may, use); err != nil {
			return err
		}
	}
	return nil
}

func scanFile(ctx context.Context, name string, may func([]byte) bool, use func(*Event)) error {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // pruned meanwhile
	}
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<20)
	for ctx.Err() == nil {
		line, err := r.ReadSlice('\n')
		if err == nil && may(line) {
			var e Event
			if json.Unmarshal(line, &e) == nil {
				use(&e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil && err != bufio.ErrBufferFull {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return ctx.Err()
}

// Format writes events as a story for people, a line each, the remote dialogue indented. Control bytes are escaped.
func Format(w io.Writer, events []Event) error {
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintf(&b, "%s  %-8s", e.Time.Local().Format("2006-01-02 15:04:05.000"), e.Kind)
		for _, f := range []struct{ label, value string }{
			{"", e.Verdict}, {"msg ", e.Queue}, {"at ", e.Service}, {"client ", e.Client}, {"user ", e.User}, {"from ", angle(e.From, e.Kind == "mail" || e.Kind == "queued")},
			{"to ", angle(e.To, false)}, {"message-id ", e.MessageID}, {"check ", e.Check}, {"given ", e.Input}, {"by ", setting(e)}, {"reply ", e.Reply},
		} {
			if f.value != "" {
				fmt.Fprintf(&b, "  %s%s", f.label, wire.Printable(f.value))
			}
		}
		if e.Bytes > 0 {
			fmt.Fprintf(&b, "  %d bytes", e.Bytes)
		}
		if e.Took > 0 {
			fmt.Fprintf(&b, "  in %s", e.Took.Round(time.Microsecond))
		}
		b.WriteByte('\n')
		for _, line := range e.Dialogue {
			fmt.Fprintf(&b, "    %s\n", wire.Printable(line))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func angle(s string, always bool) string {
	if s == "" && !always {
		return ""
	}
	return "<" + s + ">"
}

func setting(e Event) string {
	if e.Setting == "" {
		return ""
	}
	return "setting " + e.Setting + " (" + e.Layer + ")"
}
