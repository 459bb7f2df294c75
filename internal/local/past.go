package local

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/queue"
)

// memory knows what became of lines of messages that will be tried again: of at most maxPast recipients. With a path it outlives the
// process: each attempt that leaves something to be tried again adds a line to that file, durable before the queue hears of the deferral,
// and the end of a delivery adds another. A crash before that repeats the attempt, as it does any delivery.
type memory struct {
	mu   sync.Mutex
	past map[deliveryKey]map[string]fate
	// kept are those that the file has.
	kept map[deliveryKey]bool
	path string
	file *os.File
	// size is the file's, least what it was when it was written anew.
	size, least int64
}

// deliveryKey is one recipient of one message. Birth tells messages of one number in two queue directories apart, Address those of a
// recipient that an operator replaces.
type deliveryKey struct {
	ID      queue.ID `json:"id"`
	Index   int      `json:"index"`
	Birth   int64    `json:"birth"`
	Address string   `json:"address"`
}

// fate is what became of a line that is not to be tried again: it failed, or it is done, and may have ended the list.
type fate struct {
	failure *mailerr.Error
	last    bool
}

// pastLine is a line of the file; without Lines the delivery is over.
type pastLine struct {
	deliveryKey
	Lines []pastFate `json:"lines,omitempty"`
}

type pastFate struct {
	Line     string           `json:"line"`
	Last     bool             `json:"last,omitempty"`
	Code     int              `json:"code,omitempty"`
	Enhanced mailerr.Enhanced `json:"enhanced,omitzero"`
	Text     string           `json:"text,omitempty"`
}

const (
	maxPast = 10000
	// pastLife is longer than a message waits: what is older is of one that an operator removed.
	pastLife = 60 * 24 * time.Hour
	// maxPastFile is from when on the file is written anew, when it is twice as long as the last time.
	maxPastFile = 1 << 20
)

func (m *memory) get(d deliveryKey, line string) (f fate, found bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f, found = m.past[d][line]
	return f, found
}

func (m *memory) put(d deliveryKey, line string, f fate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.past == nil {
		m.past, m.kept = map[deliveryKey]map[string]fate{}, map[deliveryKey]bool{}
	}
	if m.past[d] == nil {
		if len(m.past) >= maxPast {
			for other := range m.past {
				delete(m.past, other)
				delete(m.kept, other)
				break
			}
		}
		m.past[d] = map[string]fate{}
	}
	m.past[d][line] = f
}

// keep makes durable what became of a delivery's lines so far.
func (m *memory) keep(d deliveryKey) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.path == "" || len(m.past[d]) == 0 {
		return nil
	}
	m.kept[d] = true
	return m.append(d, true)
}

// forget is called when the delivery is over.
func (m *memory) forget(d deliveryKey) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.past, d)
	if !m.kept[d] {
		return nil
	}
	delete(m.kept, d)
	// The queue has the end of the delivery; without this line nothing is repeated.
	return m.append(d, false)
}

// encode gives the file's line of a delivery.
func (m *memory) encode(d deliveryKey) ([]byte, error) {
	l := pastLine{deliveryKey: d}
	for line, f := range m.past[d] {
		one := pastFate{Line: line, Last: f.last}
		if f.failure != nil {
			one.Code, one.Enhanced, one.Text = f.failure.Code, f.failure.Enhanced, f.failure.Text
		}
		l.Lines = append(l.Lines, one)
	}
	b, err := json.Marshal(l)
	return append(b, '\n'), err
}

// append is called with mu held.
func (m *memory) append(d deliveryKey, durable bool) error {
	if m.file == nil || m.size > maxPastFile && m.size > 2*m.least {
		return m.rewrite()
	}
	b, err := m.encode(d)
	if err != nil {
		return err
	}
	n, err := m.file.Write(b)
	m.size += int64(n)
	if err == nil && durable {
		err = m.file.Sync()
	}
	if err != nil {
		// What stands there may be cut in the middle, and would take the next line with it.
		m.file.Close()
		m.file = nil
	}
	return err
}

// rewrite makes the file anew, of what is kept.
func (m *memory) rewrite() error {
	var text bytes.Buffer
	for d := range m.kept {
		b, err := m.encode(d)
		if err != nil {
			return err
		}
		text.Write(b)
	}
	f, err := os.OpenFile(m.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(text.Bytes()); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(m.path+".new", m.path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(m.path))
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if m.file != nil {
		m.file.Close()
	}
	m.file, m.size, m.least = f, int64(text.Len()), int64(text.Len())
	return nil
}

// load reads the file of the process before. A line that a crash tore is passed over, as is what is too old.
func (m *memory) load(path string, now time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.path = path
	m.past, m.kept = map[deliveryKey]map[string]fate{}, map[deliveryKey]bool{}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for lines := bufio.NewReader(f); ; {
		text, err := lines.ReadBytes('\n')
		if err != nil {
			break
		}
		var l pastLine
		if json.Unmarshal(text, &l) != nil {
			continue
		}
		if len(l.Lines) == 0 || now.Sub(time.Unix(0, l.Birth)) > pastLife || len(m.past) >= maxPast {
			delete(m.past, l.deliveryKey)
			delete(m.kept, l.deliveryKey)
			continue
		}
		fates := map[string]fate{}
		for _, one := range l.Lines {
			f := fate{last: one.Last}
			if one.Code != 0 {
				f.failure = mailerr.New(one.Code, one.Enhanced, one.Text)
			}
			fates[one.Line] = f
		}
		m.past[l.deliveryKey], m.kept[l.deliveryKey] = fates, true
	}
	return nil
}

func (m *memory) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.file != nil {
		m.file.Close()
		m.file = nil
	}
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
