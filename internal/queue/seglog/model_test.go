package seglog

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

var (
	crashes  = flag.Int("crashes", 1500, "crash points of TestModel; make crash takes 10,000")
	seedFlag = flag.Uint64("seed", 0, "seed of TestModel; 0 draws one")
)

// model is what must, and what may, be in the log.
type model struct {
	// payloads holds everything that was ever put in line, by id.
	payloads map[uint64][]byte
	// must holds what was promised or seen after a crash; gone what was not there after one and must not come back.
	must, gone map[uint64]bool
	// where tells the segment of what is in the log; dropped what the owner gave up.
	where   map[uint64]uint64
	dropped map[uint64]bool
}

// run makes random use of a log on d until the power is cut, then sees what is left; some times over.
func (m *model) run(random *rand.Rand, d *FaultDisk, lies bool) error {
	for generation := range 4 {
		d.power = random.IntN(120)
		d.lies = lies
		if random.IntN(3) == 0 {
			d.FailOnce(12)
		}
		m.use(random, d)
		d = d.Reboot()
		if err := m.compare(d); err != nil {
			return fmt.Errorf("after crash %d: %w", generation+1, err)
		}
	}
	return nil
}

// use works until the power is off.
func (m *model) use(random *rand.Rand, d *FaultDisk) {
	l, err := Open(Config{Disk: d, SegmentSize: 8 << 10}, func(Record) error { return nil })
	if err != nil {
		return
	}
	defer l.Close()
	for range 200 {
		d.mu.Lock()
		off := d.power == 0
		d.mu.Unlock()
		if off {
			return
		}
		if random.IntN(8) == 0 {
			m.drop(l)
			continue
		}
		type sent struct {
			id      uint64
			sync    bool
			pending Pending
		}
		var group []sent
		for range 1 + random.IntN(4) {
			id := uint64(len(m.payloads) + 1)
			payload := m.payload(random, d, id)
			m.payloads[id] = payload
			sync := random.IntN(3) > 0
			group = append(group, sent{id, sync, l.Enqueue(byte(1+id%3), id, sync, payload[:len(payload)/2], payload[len(payload)/2:])})
		}
		for _, s := range group {
			if position, err := s.pending.Wait(); err == nil {
				m.where[s.id] = position.Segment
				if s.sync {
					m.must[s.id] = true
				}
			}
		}
	}
}

// payload makes a content. Some are what a stranger would mail: pieces of the log itself.
func (m *model) payload(random *rand.Rand, d *FaultDisk, id uint64) []byte {
	b := make([]byte, random.IntN(1500))
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	if names, _ := d.List(); random.IntN(4) == 0 && len(names) > 0 {
		slices.Sort(names)
		if f, err := d.Open(names[random.IntN(len(names))]); err == nil {
			n, _ := f.ReadAt(b, int64(random.IntN(64))*align)
			b = b[:n]
		}
	}
	return append(b, fmt.Sprint(id)...)
}

// drop gives up the oldest segment.
func (m *model) drop(l *Log) {
	sizes, newest := l.Sizes()
	oldest := newest
	for n := range sizes {
		oldest = min(oldest, n)
	}
	if oldest == newest {
		return
	}
	for id, n := range m.where {
		if n == oldest {
			m.dropped[id] = true
		}
	}
	// A removal that fails leaves what may stay.
	_ = l.Drop(oldest)
}

// compare opens the log as a restart does and holds it against what must be there.
func (m *model) compare(d *FaultDisk) error {
	seen := map[uint64]bool{}
	where := map[uint64]uint64{}
	positions := map[uint64]Position{}
	last := uint64(0)
	l, err := Open(Config{Disk: d, SegmentSize: 8 << 10}, func(r Record) error {
		want, known := m.payloads[r.ID]
		switch {
		case !known || r.Kind != byte(1+r.ID%3) || !bytes.Equal(r.Payload, want) && !bytes.Equal(r.Payload, want[:len(want)/2]):
			return fmt.Errorf("record %d of kind %d was never written", r.ID, r.Kind)
		case seen[r.ID]:
			return fmt.Errorf("record %d comes twice", r.ID)
		case r.ID < last:
			return fmt.Errorf("record %d comes after %d", r.ID, last)
		case m.gone[r.ID] && !m.dropped[r.ID]:
			return fmt.Errorf("record %d was gone and is there again", r.ID)
		}
		seen[r.ID], last = true, r.ID
		where[r.ID], positions[r.ID] = r.Position.Segment, r.Position
		return nil
	})
	if err != nil {
		return err
	}
	defer l.Close()
	for id, p := range positions {
		if b, err := l.Read(id, p, new([]byte)); err != nil || !bytes.Equal(b, m.payloads[id]) {
			return fmt.Errorf("record %d cannot be read: %d bytes, %w", id, len(b), err)
		}
	}
	for id := range m.must {
		if !seen[id] && !m.dropped[id] {
			return fmt.Errorf("record %d was promised and is lost", id)
		}
	}
	for id := range m.payloads {
		if seen[id] {
			m.must[id] = true
		} else {
			m.gone[id] = true
			delete(m.must, id)
		}
	}
	m.where = where
	return nil
}

func newModel() *model {
	return &model{payloads: map[uint64][]byte{}, must: map[uint64]bool{}, gone: map[uint64]bool{}, where: map[uint64]uint64{}, dropped: map[uint64]bool{}}
}

// TestModel cuts the power at any operation, loses any sector that was not synced, fails writes and syncs, and sees that
// what was promised is there, once, in order, and nothing that nobody wrote.
func TestModel(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("%d crash points; again with -seed %d", *crashes, seed)
	for n := range *crashes / 4 {
		random := rand.New(rand.NewPCG(seed, uint64(n)))
		if err := newModel().run(random, NewFaultDisk(random), false); err != nil {
			t.Fatalf("run %d: %v", n, err)
		}
	}
}

// TestModelCatchesLies shows that the model can fail: an engine that skips its syncs loses what it promised.
func TestModelCatchesLies(t *testing.T) {
	caught := 0
	for n := range 100 {
		random := rand.New(rand.NewPCG(1, uint64(n)))
		if newModel().run(random, NewFaultDisk(random), true) != nil {
			caught++
		}
	}
	if caught < 50 {
		t.Errorf("%d of 100 runs without syncs were caught", caught)
	}
}
