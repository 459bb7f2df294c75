package seglog

import (
	"sync"
	"testing"
)

// TestDropWhileRotating drops segments as fast as others are begun: the file that is used again and the one that waits for it
// must never be taken for each other. What was acknowledged and not dropped is there at the end.
func TestDropWhileRotating(t *testing.T) {
	dir := t.TempDir()
	open := func(each func(Record) error) *Log {
		t.Helper()
		l, err := Open(Config{Disk: Folder(dir), SegmentSize: 4 << 10}, each)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := open(func(Record) error { return nil })
	payload := make([]byte, 1500)
	where := map[uint64]Position{}
	var mu sync.Mutex
	stop := make(chan struct{})
	var dropping sync.WaitGroup
	dropping.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			sizes, newest := l.Sizes()
			for n := range sizes {
				if n+1 < newest {
					mu.Lock()
					for id, p := range where {
						if p.Segment == n {
							delete(where, id)
						}
					}
					mu.Unlock()
					if err := l.Drop(n); err != nil {
						t.Error(err)
					}
				}
			}
		}
	})
	for id := uint64(1); id <= 3000; id++ {
		p, err := l.Enqueue(1, id, false, payload).Wait()
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		if sizes, _ := l.Sizes(); sizes[p.Segment] > 0 {
			where[id] = p
		}
		mu.Unlock()
	}
	close(stop)
	dropping.Wait()
	l.Close()
	found := map[uint64]bool{}
	l = open(func(r Record) error { found[r.ID] = true; return nil })
	defer l.Close()
	for id, p := range where {
		if !found[id] {
			t.Errorf("record %d, acknowledged in segment %d, is lost", id, p.Segment)
		}
	}
}
