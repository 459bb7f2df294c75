package seglog

import (
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
)

// FaultDisk is a Disk in memory for tests, with a cache in front, as a crash sees it: what was written is kept, sector by
// sector, only for sure once it was synced; creations, renames and removals reach the disk in order, but when, only Sync tells.
// After the power is cut every operation fails.
type FaultDisk struct {
	mu     sync.Mutex
	random *rand.Rand
	// dir is what programs see, stable what is on the disk; waiting is what lies between.
	dir, stable map[string]*inode
	waiting     []func(map[string]*inode)
	// power counts the operations until the cut.
	power int
	// fault is asked before each write and sync; faults counts those that failed.
	fault  func() error
	faults int
	// lies makes Datasync do nothing, as a broken engine or disk would.
	lies bool
}

const sector = 512

type inode struct {
	data, stable []byte
	dirty        map[int]bool
}

var errPower = errors.New("the power is off")

// NewFaultDisk gives an empty disk with power and without faults; random decides what a cut leaves.
func NewFaultDisk(random *rand.Rand) *FaultDisk {
	// Its own, since the log's goroutine writes while a test draws.
	return &FaultDisk{random: rand.New(rand.NewPCG(random.Uint64(), 0)), dir: map[string]*inode{}, stable: map[string]*inode{}, power: -1, fault: func() error { return nil }}
}

// CutAfter cuts the power after so many operations that change something.
func (d *FaultDisk) CutAfter(operations int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.power = operations
}

// Off tells whether the power is cut.
func (d *FaultDisk) Off() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.power == 0
}

// FailOnce makes about one write or sync of so many fail.
func (d *FaultDisk) FailOnce(in int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	// Asked with mu held.
	d.fault = func() error {
		if d.random.IntN(in) == 0 {
			d.faults++
			return errors.New("input/output error")
		}
		return nil
	}
}

// Faults tells how many writes and syncs have failed.
func (d *FaultDisk) Faults() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.faults
}

// spend is called with mu held at the start of every operation that changes something.
func (d *FaultDisk) spend() error {
	if d.power == 0 {
		return errPower
	}
	if d.power > 0 {
		d.power--
	}
	return nil
}

// Reboot gives the disk as it is found after the cut.
func (d *FaultDisk) Reboot() *FaultDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, change := range d.waiting[:d.random.IntN(len(d.waiting)+1)] {
		change(d.stable)
	}
	after := NewFaultDisk(d.random)
	for name, n := range d.stable {
		for _, s := range slices.Sorted(maps.Keys(n.dirty)) {
			if d.random.IntN(2) == 0 {
				n.flush(s)
			}
		}
		fresh := &inode{data: slices.Clone(n.stable), stable: slices.Clone(n.stable), dirty: map[int]bool{}}
		after.dir[name], after.stable[name] = fresh, fresh
	}
	return after
}

// flush brings a sector to the disk.
func (n *inode) flush(s int) {
	from, to := s*sector, min((s+1)*sector, len(n.data))
	if from >= to {
		return
	}
	if len(n.stable) < to {
		n.stable = append(n.stable, make([]byte, to-len(n.stable))...)
	}
	copy(n.stable[from:to], n.data[from:to])
	delete(n.dirty, s)
}

func (d *FaultDisk) change(f func(map[string]*inode)) {
	f(d.dir)
	d.waiting = append(d.waiting, f)
}

// List gives the names of all files.
func (d *FaultDisk) List() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.dir)), nil
}

// Open opens a file that is there.
func (d *FaultDisk) Open(name string) (File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.dir[name]
	if n == nil {
		return nil, os.ErrNotExist
	}
	return &ramFile{d, n}, nil
}

// Create makes a file.
func (d *FaultDisk) Create(name string, _ int64) (File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.spend(); err != nil {
		return nil, err
	}
	if d.dir[name] != nil {
		return nil, os.ErrExist
	}
	n := &inode{dirty: map[int]bool{}}
	d.change(func(dir map[string]*inode) { dir[name] = n })
	return &ramFile{d, n}, nil
}

// Rename gives a file another name, in place of what has it.
func (d *FaultDisk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.spend(); err != nil {
		return err
	}
	n := d.dir[from]
	if n == nil {
		return os.ErrNotExist
	}
	d.change(func(dir map[string]*inode) {
		delete(dir, from)
		dir[to] = n
	})
	return nil
}

// Remove removes a name.
func (d *FaultDisk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.spend(); err != nil {
		return err
	}
	d.change(func(dir map[string]*inode) { delete(dir, name) })
	return nil
}

// Sync makes names durable.
func (d *FaultDisk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.spend(); err != nil {
		return err
	}
	if d.lies {
		return nil
	}
	if err := d.fault(); err != nil {
		return err
	}
	for _, change := range d.waiting {
		change(d.stable)
	}
	d.waiting = nil
	return nil
}

type ramFile struct {
	d *FaultDisk
	n *inode
}

func (f *ramFile) ReadAt(b []byte, at int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if at >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.n.data[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt may fail half way; when the power is cut meanwhile, any of its sectors may have been written.
func (f *ramFile) WriteAt(b []byte, at int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.power == 0 {
		return 0, errPower
	}
	fault := f.d.fault()
	whole := len(b)
	if fault != nil {
		b = b[:f.d.random.IntN(len(b)+1)]
	}
	n := f.n
	if end := int(at) + len(b); end > len(n.data) {
		n.data = append(n.data, make([]byte, end-len(n.data))...)
	}
	copy(n.data[at:], b)
	for s := int(at) / sector; s*sector < int(at)+len(b); s++ {
		n.dirty[s] = true
	}
	if err := f.d.spend(); err != nil {
		return 0, err
	}
	if fault != nil {
		return min(len(b), whole-1), fault
	}
	return whole, nil
}

// Datasync, when it fails, loses some of what was written although the cache still shows it, as Linux does.
func (f *ramFile) Datasync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.power == 0 {
		return errPower
	}
	if f.d.lies {
		return nil
	}
	fault := f.d.fault()
	cut := f.d.power == 1
	for _, s := range slices.Sorted(maps.Keys(f.n.dirty)) {
		switch {
		case fault == nil && !cut || f.d.random.IntN(2) == 0:
			f.n.flush(s)
		case fault != nil:
			delete(f.n.dirty, s)
		}
	}
	if err := f.d.spend(); err != nil {
		return err
	}
	if cut {
		return errPower
	}
	return fault
}

func (f *ramFile) Truncate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.spend(); err != nil {
		return err
	}
	if f.d.random.IntN(3) == 0 {
		return errors.New("truncate: no")
	}
	f.n.data = f.n.data[:min(size, int64(len(f.n.data)))]
	if f.d.random.IntN(2) == 0 {
		f.n.stable = f.n.stable[:min(size, int64(len(f.n.stable)))]
	}
	return nil
}

func (f *ramFile) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.n.data)), nil
}

func (f *ramFile) Close() error { return nil }
