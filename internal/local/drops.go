package local

import (
	"sync"

	"github.com/indigomail/indigo/internal/maildir"
)

// maxOpen bounds the Maildirs kept open between deliveries, each with three descriptors.
const maxOpen = 128

// drops keeps Maildirs open between deliveries, since opening one costs more than writing a message.
type drops struct {
	mu     sync.Mutex
	byPath map[string]*held
}

type held struct {
	*maildir.Drop
	path  string
	users int
	gone  bool // no longer in the map: the last user closes it
}

// take gives the Maildir at path, made when missing; give it back with release.
func (d *drops) take(path string) (*held, error) {
	d.mu.Lock()
	h := d.byPath[path]
	if h != nil {
		h.users++
	}
	d.mu.Unlock()
	if h != nil {
		if h.Current() {
			return h, nil
		}
		d.forget(h)
		d.release(h)
	}
	drop, err := maildir.OpenDrop(path)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if other := d.byPath[path]; other != nil { // somebody was quicker
		other.users++
		drop.Close()
		return other, nil
	}
	h = &held{Drop: drop, path: path, users: 1}
	if d.byPath == nil {
		d.byPath = map[string]*held{}
	}
	if len(d.byPath) >= maxOpen {
		d.evict()
	}
	d.byPath[path] = h
	return h, nil
}

// evict closes one Maildir that nobody uses now; which one is chance, by the order of the map.
func (d *drops) evict() {
	for path, h := range d.byPath {
		if h.users == 0 {
			delete(d.byPath, path)
			h.Close()
			return
		}
	}
}

func (d *drops) forget(h *held) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.byPath[h.path] == h {
		delete(d.byPath, h.path)
	}
	h.gone = true
}

func (d *drops) release(h *held) {
	d.mu.Lock()
	defer d.mu.Unlock()
	h.users--
	if h.gone && h.users == 0 {
		h.Close()
	}
}

func (d *drops) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for path, h := range d.byPath {
		delete(d.byPath, path)
		if h.gone = true; h.users == 0 {
			h.Close()
		}
	}
}
