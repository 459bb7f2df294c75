package queue

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// idBlock is how many ids one write of the file reserves.
const idBlock = 10000

// IDs numbers messages. A file tells up to where numbers are reserved: no number is given twice, whatever becomes of the
// queues that use it. It is safe for concurrent use.
type IDs struct {
	path string
	sync.Mutex
	next, reserved uint64
}

// OpenIDs reads DIR/ids; none stands for a beginning.
func OpenIDs(dir string) (*IDs, error) {
	n := &IDs{path: filepath.Join(dir, "ids"), next: 1, reserved: 1}
	text, err := os.ReadFile(n.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if len(text) > 0 {
		reserved, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", n.path, err)
		}
		n.saw(reserved)
	}
	return n, nil
}

// saw says that every number below next was given before.
func (n *IDs) saw(next uint64) {
	n.Lock()
	defer n.Unlock()
	n.next = max(n.next, next)
	n.reserved = max(n.reserved, n.next)
}

// take gives a new number.
func (n *IDs) take() (ID, error) {
	n.Lock()
	defer n.Unlock()
	if n.next == n.reserved {
		f, err := os.OpenFile(n.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return 0, err
		}
		_, err = fmt.Fprintln(f, n.reserved+idBlock)
		if err == nil {
			err = f.Sync()
		}
		if err = errors.Join(err, f.Close()); err == nil {
			err = os.Rename(n.path+".new", n.path)
		}
		if err == nil {
			err = syncDir(filepath.Dir(n.path))
		}
		if err != nil {
			return 0, err
		}
		n.reserved += idBlock
	}
	n.next++
	return ID(n.next - 1), nil
}
