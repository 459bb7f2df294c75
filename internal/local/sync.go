package local

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// batch is everybody whose files one sync will cover.
type batch struct {
	done chan struct{}
	err  error
}

// syncer makes files durable in batches: one owner goroutine, one sync at a time; who comes while it runs waits for the
// next, which covers all that was written before it starts.
type syncer struct {
	sync func() error

	mu     sync.Mutex
	next   *batch // collecting; nil while nobody waits
	closed bool

	wake  chan struct{}
	ended chan struct{}
	// closing is closed with wake: what waits for its turn is synced at once.
	closing chan struct{}
}

func newSyncer(sync func() error) *syncer {
	s := &syncer{sync: sync, wake: make(chan struct{}, 1), ended: make(chan struct{}), closing: make(chan struct{})}
	go s.run()
	return s
}

// wait returns after a sync that began after the call.
func (s *syncer) wait() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return os.ErrClosed
	}
	b := s.next
	if b == nil {
		b = &batch{done: make(chan struct{})}
		s.next = b
		s.wake <- struct{}{} // has room: the owner takes the wake-up before it takes the batch
	}
	s.mu.Unlock()
	<-b.done
	return b.err
}

// syncGap is the least time between two syncs. Each makes the file system commit its journal, for which the queue's own syncs
// wait too: under load it is better that more files share one. A file that comes alone waits for nothing.
const syncGap = 10 * time.Millisecond

func (s *syncer) run() {
	defer close(s.ended)
	gap := time.NewTimer(0)
	defer gap.Stop()
	for range s.wake {
		select {
		case <-gap.C:
		case <-s.closing:
		}
		s.mu.Lock()
		b := s.next
		s.next = nil
		s.mu.Unlock()
		b.err = s.sync()
		close(b.done)
		gap.Reset(syncGap)
	}
}

// close lets the batch that collects be synced, and ends the owner.
func (s *syncer) close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.wake)
		close(s.closing)
	}
	s.mu.Unlock()
	<-s.ended
}

// disks has one syncer a file system, since syncfs(2) covers only the one of its descriptor.
type disks struct {
	syncfs func(*os.File) error

	mu     sync.Mutex
	byDev  map[uint64]*disk
	closed bool
}

type disk struct {
	*syncer
	dir *os.File
}

func syncfs(dir *os.File) error {
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("syncfs %s: %w", dir.Name(), err)
	}
	return nil
}

// of gives the syncer of the file system dev; open gives a descriptor on it. The descriptor stays open, so that a write
// error of any later moment is reported by the sync after it.
func (d *disks) of(dev uint64, open func() (*os.File, error)) (*syncer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, os.ErrClosed
	}
	if have, ok := d.byDev[dev]; ok {
		return have.syncer, nil
	}
	dir, err := open()
	if err != nil {
		return nil, err
	}
	s := &disk{dir: dir}
	s.syncer = newSyncer(func() error { return d.syncfs(dir) })
	if d.byDev == nil {
		d.byDev = map[uint64]*disk{}
	}
	d.byDev[dev] = s
	return s.syncer, nil
}

func (d *disks) close() {
	d.mu.Lock()
	d.closed = true
	all := d.byDev
	d.byDev = nil
	d.mu.Unlock()
	for _, s := range all {
		s.close()
		s.dir.Close()
	}
}
