package queue

import (
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/queue/seglog"
)

var (
	modelRuns = flag.Int("runs", 20, "runs of TestModel, of four crashes each; make crash takes 25,000")
	modelSeed = flag.Uint64("seed", 0, "seed of TestModel; 0 draws one")
)

// world is what the queue delivers to. It outlives crashes of the queue; while the power is off nothing arrives.
type world struct {
	disk *seglog.FaultDisk

	mu sync.Mutex
	// arrived counts deliveries by message and recipient, bounced the bounces by what they say.
	arrived map[string]int
	bounced map[string]int
	// attempts counts the tries of recipients that are deferred for some time.
	attempts map[string]int
	// forbidden holds what must not arrive any more, and why.
	forbidden map[string]string
	faults    []string
}

// Deliver takes what is for "ok", defers what is for "laterN" N times, and refuses what is for "bad".
func (w *world) Deliver(_ context.Context, d *Delivery) []Result {
	text, err := io.ReadAll(io.NewSectionReader(d.Content, 0, d.Content.Size()))
	results := make([]Result, len(d.Recipients))
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, r := range d.Recipients {
		if w.disk.Off() || err != nil {
			results[i].Err = mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "the power is off")
			continue
		}
		if d.Envelope.Sender.IsNull() {
			for line := range strings.Lines(string(text)) {
				if address, ok := strings.CutPrefix(line, "X-Bounced-Address: "); ok {
					w.bounced[strings.TrimSpace(address)]++
				}
			}
			continue
		}
		key := r.Address.String()
		var times int
		switch {
		case strings.HasPrefix(key, "bad"):
			results[i].Err = mailerr.New(550, mailerr.Enhanced{5, 1, 1}, "no")
			continue
		case strings.HasPrefix(key, "later"):
			fmt.Sscanf(key, "later%d-", &times)
			if w.attempts[key]++; w.attempts[key] <= times {
				results[i].Err = mailerr.New(451, mailerr.Enhanced{4, 0, 0}, "not yet")
				continue
			}
		}
		// What had arrived before may come again after a crash.
		if why := w.forbidden[key]; why != "" && w.arrived[key] == 0 {
			w.faults = append(w.faults, key+" arrived though "+why)
		}
		w.arrived[key]++
	}
	return results
}

// modelMessage is what a submission was promised.
type modelMessage struct {
	to      []string
	deleted bool
	held    bool
}

// modelRun is one run: use, crash and recovery, four times over, and the reckoning.
type modelRun struct {
	t      *testing.T
	random *rand.Rand
	world  *world
	config Config
	// acked holds the acknowledged messages by their ids.
	acked map[ID]*modelMessage
	n     int
	// unsure holds recipients of which an answer was lost: they may have been deleted, or be held.
	unsure map[string]bool
}

func (m *modelRun) submit(q *Queue) {
	kinds := []string{"ok", "ok", "ok", "later1-", "later3-", "bad"}
	var to []string
	for range 1 + m.random.IntN(3) {
		m.n++
		domain := []string{"local.test", "far.test", "other.test"}[m.random.IntN(3)]
		to = append(to, fmt.Sprintf("%s%d@%s", kinds[m.random.IntN(len(kinds))], m.n, domain))
	}
	s, err := q.Begin(m.t.Context(), 0)
	if err != nil {
		return
	}
	if _, err := io.WriteString(s, "Subject: model\r\n\r\n"+strings.Repeat("x", m.random.IntN(2000))+"\r\n"); err != nil {
		s.Abort()
		return
	}
	if s.Commit(m.t.Context(), envelope(m.t, "sender@local.test", to...)) == nil {
		m.acked[s.ID()] = &modelMessage{to: to}
	}
}

// pick gives an acknowledged message, or false.
func (m *modelRun) pick() (ID, *modelMessage, bool) {
	if len(m.acked) == 0 {
		return 0, nil, false
	}
	ids := make([]ID, 0, len(m.acked))
	for id := range m.acked {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	id := ids[m.random.IntN(len(ids))]
	return id, m.acked[id], !m.acked[id].deleted
}

// act does what an operator does to one message.
func (m *modelRun) act(q *Queue, a Action) {
	id, message, ok := m.pick()
	if !ok {
		return
	}
	if a == Release {
		// It may arrive before Act returns.
		m.world.mu.Lock()
		for _, to := range message.to {
			delete(m.world.forbidden, to)
		}
		message.held = false
		m.world.mu.Unlock()
	}
	n, err := q.Act(m.t.Context(), a, Filter{IDs: []ID{id}}, false, nil)
	if err != nil {
		// It may have been done or not, and the message be held or not.
		m.world.mu.Lock()
		defer m.world.mu.Unlock()
		message.held = false
		for _, to := range message.to {
			m.unsure[to] = true
			delete(m.world.forbidden, to)
		}
		return
	}
	if n == 0 || a == RetryNow {
		return
	}
	// What was under way has ended when nothing moves any more.
	synctest.Wait()
	m.world.mu.Lock()
	defer m.world.mu.Unlock()
	message.deleted = a == Delete
	message.held = a == Hold
	for _, to := range message.to {
		switch a {
		case Delete:
			m.world.forbidden[to] = "it was deleted"
		case Bounce:
			// Whoever had not arrived is told of, and that is wanted in the end.
			m.world.forbidden[to] = "it was given up"
		case Hold:
			m.world.forbidden[to] = "it is held"
		}
	}
}

func (m *modelRun) edit(q *Queue) {
	id, message, ok := m.pick()
	if !ok {
		return
	}
	old := message.to[m.random.IntN(len(message.to))]
	m.n++
	now := fmt.Sprintf("ok%d@far.test", m.n)
	found := false
	err := q.Edit(id, func(e *Envelope) error {
		for i := range e.Recipients {
			if e.Recipients[i].Address.String() == old {
				found = true
				e.Recipients[i].Address = addr.Address{Local: strings.Split(now, "@")[0], Domain: "far.test"}
			}
		}
		return nil
	})
	if !found {
		return
	}
	// Whether the old recipient was done already only the queue knows.
	m.unsure[old], m.unsure[now] = true, true
	if err == nil {
		message.to[slices.Index(message.to, old)] = now
		if message.held {
			m.world.mu.Lock()
			m.world.forbidden[now] = "it is held"
			m.world.mu.Unlock()
		}
	}
}

// use works until the power is off.
func (m *modelRun) use() {
	q, err := Open(m.t.Context(), m.config)
	if err != nil {
		return
	}
	for range 40 {
		if m.world.disk.Off() {
			break
		}
		switch m.random.IntN(14) {
		case 0:
			m.act(q, Hold)
		case 1:
			m.act(q, Release)
		case 2:
			m.act(q, Delete)
		case 3:
			m.act(q, RetryNow)
		case 4, 5:
			m.edit(q)
		case 6:
			m.act(q, Bounce)
		case 7:
			time.Sleep(time.Duration(m.random.IntN(3600)) * time.Second)
		default:
			m.submit(q)
		}
	}
	m.world.disk.CutAfter(0)
	synctest.Wait()
	m.readable(q)
	ended, cancel := context.WithCancel(m.t.Context())
	cancel()
	q.Shutdown(ended)
}

// readable wants every message of a queue's memory to be in its log.
func (m *modelRun) readable(q *Queue) {
	q.mu.Lock()
	all := slices.Collect(maps.Values(q.messages))
	q.mu.Unlock()
	for _, message := range all {
		_, _, release, err := q.load(message)
		if err != nil {
			m.t.Errorf("message %s is there, but not its record: %v", message.id, err)
			continue
		}
		release()
	}
}

func (m *modelRun) run() {
	faults := 0
	for range 4 {
		m.world.disk.CutAfter(m.random.IntN(400))
		if m.random.IntN(2) == 0 {
			m.world.disk.FailOnce(8 + m.random.IntN(12))
		}
		m.use()
		faults += m.world.disk.Faults()
		m.world.disk = m.world.disk.Reboot()
		m.config.LogDisk = m.world.disk
	}
	// The reckoning: what is held is released; then everything must end.
	q := open(m.t, m.config)
	synctest.Wait()
	for _, message := range m.acked {
		if message.held {
			m.world.mu.Lock()
			for _, to := range message.to {
				delete(m.world.forbidden, to)
			}
			m.world.mu.Unlock()
		}
	}
	if _, err := q.Act(m.t.Context(), Release, Filter{Held: true}, false, nil); err != nil {
		m.t.Error(err)
	}
	for hours := 0; hours < 72 && q.Stats().Messages > 0; hours++ {
		time.Sleep(time.Hour)
		synctest.Wait()
	}
	if n := q.Stats().Messages; n != 0 {
		m.t.Errorf("%d messages never end: %+v", n, list(m.t, q))
	}
	q.Shutdown(m.t.Context())
	for id, message := range m.acked {
		for _, to := range message.to {
			arrived, bounced := m.world.arrived[to], m.world.bounced[to]
			switch {
			case arrived > 5+faults || bounced > 5+faults:
				m.t.Errorf("message %s: %s arrived %d times, bounced %d times in four crashes with %d errors", id, to, arrived, bounced, faults)
			case arrived+bounced == 0 && !message.deleted && !m.unsure[to]:
				m.t.Errorf("message %s was acknowledged, and %s is lost", id, to)
			}
		}
	}
	for _, f := range m.world.faults {
		m.t.Error(f)
	}
}

// TestModel makes random use of a queue on a disk whose power is cut at random operations and that may fail, recovers, and
// compares with what was promised: what was acknowledged arrives or bounces, what was deleted or is held does not arrive, and
// repeats come only from crashes and errors.
func TestModel(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("%d runs of four crashes; again with -seed %d", *modelRuns, seed)
	acked := 0
	for n := range *modelRuns {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, uint64(n)))
			w := &world{disk: seglog.NewFaultDisk(random), arrived: map[string]int{}, bounced: map[string]int{}, attempts: map[string]int{}, forbidden: map[string]string{}}
			c := testConfig(t.TempDir(), w, w)
			c.LogDisk, c.SegmentSize = w.disk, 4<<10<<random.IntN(3)
			m := &modelRun{t: t, random: random, world: w, config: c, acked: map[ID]*modelMessage{}, unsure: map[string]bool{}}
			m.run()
			acked += len(m.acked)
		})
		if t.Failed() {
			t.Fatalf("run %d", n)
		}
	}
	if acked < *modelRuns {
		t.Errorf("%d messages acknowledged in %d runs: this shows nothing", acked, *modelRuns)
	}
	t.Logf("%d messages acknowledged", acked)
}
