package service

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Multilog writes lines to a directory as daemontools' multilog does: to the file current, and when that has reached a
// size it becomes @TAI64N.s, of which so many are kept; @TAI64N.u is one that was left behind by a crash. Tools that read
// multilog's directories read these (wiki 3778). It is safe for concurrent use.
type Multilog struct {
	dir    string
	size   int64
	number int
	now    func() time.Time

	mu      sync.Mutex
	current *os.File
	written int64
	// line is true when the last byte was a line's end.
	line bool
}

// OpenMultilog opens a directory, which is made if it is not there. size is in bytes, from 4096; number is how many old
// files are kept, from 1.
func OpenMultilog(dir string, size int64, number int, now func() time.Time) (*Multilog, error) {
	m := &Multilog{dir: dir, size: max(size, 4096), number: max(number, 1), now: now, line: true}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	return m, m.open()
}

// open opens current. Like multilog it leaves the file executable by its owner when it was finished well.
func (m *Multilog) open() error {
	path := filepath.Join(m.dir, "current")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		err = f.Chmod(0o640)
	}
	if err != nil {
		f.Close()
		return err
	}
	m.current, m.written = f, info.Size()
	return nil
}

// Write takes whole lines.
func (m *Multilog) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == nil {
		return 0, fs.ErrClosed
	}
	total := 0
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n') + 1
		if end == 0 {
			end = len(p)
		}
		// Lines that still fit go in one write.
		for end < len(p) && m.written+int64(end) < m.size {
			next := bytes.IndexByte(p[end:], '\n') + 1
			if next == 0 || m.written+int64(end+next) > m.size {
				break
			}
			end += next
		}
		if m.written > 0 && m.written+int64(end) > m.size {
			if err := m.rotate(); err != nil {
				return total, err
			}
		}
		n, err := m.current.Write(p[:end])
		m.written += int64(n)
		total += n
		if err != nil {
			return total, err
		}
		p = p[end:]
	}
	return total, nil
}

// rotate gives current its final name and begins a new one.
func (m *Multilog) rotate() error {
	// multilog marks a file that is whole by the owner's execute bit, before it renames it.
	err := errors.Join(m.current.Sync(), m.current.Chmod(0o744), m.current.Close())
	m.current = nil
	if err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(m.dir, "current"), filepath.Join(m.dir, TAI64N(m.now())+".s")); err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(m.dir, "@*"))
	if err != nil {
		return err
	}
	slices.Sort(old)
	for len(old) > m.number {
		if err := os.Remove(old[0]); err != nil {
			return err
		}
		old = old[1:]
	}
	return m.open()
}

// Close ends the log.
func (m *Multilog) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == nil {
		return nil
	}
	err := errors.Join(m.current.Sync(), m.current.Chmod(0o744), m.current.Close())
	m.current = nil
	return err
}

// TAI64N gives the external form of a time: "@", and 24 hexadecimal digits of seconds and nanoseconds. As with
// daemontools the seconds are UTC's plus 10.
func TAI64N(t time.Time) string {
	return fmt.Sprintf("@%016x%08x", uint64(t.Unix())+1<<62+10, t.Nanosecond())
}

// ReadMultilog gives the last lines of a directory, at most limit, oldest first; those of old files too.
func ReadMultilog(dir string, limit int) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "@*"))
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	files = append(files, filepath.Join(dir, "current"))
	var lines []string
	for i := len(files) - 1; i >= 0 && len(lines) < limit; i-- {
		text, err := os.ReadFile(files[i])
		if err != nil {
			return nil, err
		}
		own := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
		if len(text) == 0 {
			own = nil
		}
		lines = append(own, lines...)
	}
	return lines[max(0, len(lines)-limit):], nil
}
