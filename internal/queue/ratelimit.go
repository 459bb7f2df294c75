package queue

import (
	"container/heap"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/trace"
)

// limitsOf names the rate limits for a recipient; nil when there are none.
func (q *Queue) limitsOf(env *Envelope, to addr.Address) (names []string) {
	for _, r := range q.rates {
		names = r.matching(names, env, to)
	}
	return names
}

// limited tells whether there are limits at all.
func (q *Queue) limited() bool {
	for _, r := range q.rates {
		r.mu.Lock()
		n := len(r.limits)
		r.mu.Unlock()
		if n > 0 {
			return true
		}
	}
	return false
}

// rateUpkeep looks for changed limits. When there are any, every job finds its limits anew.
func (q *Queue) rateUpkeep() {
	anew := false
	for i, r := range q.rates {
		version, err := r.upkeep()
		if err != nil {
			q.config.Logger.Error("queue: " + err.Error())
		}
		anew = anew || version != q.rateVersions[i]
		q.rateVersions[i] = version
	}
	if anew {
		q.mu.Lock()
		q.forgetRoutes()
		q.mu.Unlock()
		q.signal()
	}
}

// forgetRoutes makes every job ask again where it goes and what limits it has; those at gates and in lanes at once, the
// others when they are due. Called with mu held.
func (q *Queue) forgetRoutes() {
	q.later = slices.DeleteFunc(q.later, func(j *job) bool { return j.isClock() })
	forget := func(j *job) {
		if j.host != nil {
			q.lanes[j.channel].release(j.host)
			j.host, j.limits = nil, nil
		}
	}
	for _, j := range q.later {
		if j.first >= 0 {
			forget(j)
		}
	}
	for _, jobs := range q.parked {
		for _, j := range jobs {
			if j.first >= 0 {
				forget(j)
			}
		}
	}
	for _, m := range q.messages {
		m.lined = 0
	}
	back := func(waiting *fifo[*job]) {
		for waiting.len() > 0 {
			j := waiting.pop()
			j.due = 0
			forget(j)
			q.later = append(q.later, j)
		}
	}
	for _, g := range q.gates {
		back(&g.waiting)
	}
	q.gates, q.delayed = map[string]*gate{}, 0
	for c := range q.lanes {
		for _, h := range slices.Collect(maps.Values(q.lanes[c].hosts)) {
			back(&h.jobs)
		}
	}
	heap.Init(&q.later)
}

// pass counts a job at its limits, or puts it to the gate of the first that has no room; called with mu held.
func (q *Queue) pass(j *job) bool {
	name, s, ok := q.check(j)
	if ok {
		return true
	}
	g := q.gates[name]
	if g == nil {
		g = &gate{name: name}
		q.gates[name] = g
	}
	g.waiting.push(j)
	q.delayed++
	q.exceeded(j, name, s)
	if g.clock == nil {
		q.wind(g, s)
	}
	return false
}

// check counts a job at all its limits if each has room; else it names one that has none.
func (q *Queue) check(j *job) (name string, s state, ok bool) {
	taken := make([]map[string]state, 0, len(q.rates))
	for _, r := range q.rates {
		stands, full := r.take(j.limits.names)
		if full != "" {
			for i, t := range taken {
				q.rates[i].giveBack(t)
			}
			return full, stands[full], false
		}
		taken = append(taken, stands)
	}
	for _, stands := range taken {
		for _, name := range j.limits.names {
			if s, ok := stands[name]; ok {
				q.event(logRate, q.rateAttrs(j, name, s, -s.need)...)
			}
		}
	}
	j.limits.counted = true
	return "", state{}, true
}

func (q *Queue) exceeded(j *job, name string, s state) {
	q.event(logExceeded, q.rateAttrs(j, name, s, s.need)...)
	q.config.Trace.Record(trace.Event{Time: q.config.Now(), Kind: "rate", Queue: j.m.id.String(), Verdict: "deferral", Check: "rate", Input: name,
		Reply: "allowed in " + strconv.FormatInt(s.need, 10) + " s"})
	q.status(q.counts())
}

// rateAttrs has the numbers as slowq-send writes them: ten digits, cut.
func (q *Queue) rateAttrs(j *job, name string, s state, secs int64) []slog.Attr {
	return []slog.Attr{slog.String("in", q.config.Name), slog.String("name", name), idAttr(j.m.id), slog.Int64("count", s.count),
		slog.String("rate", FormatRate(float64(float32(s.rate)))), slog.String("limit", FormatRate(s.per)), slog.Int64("secs", secs)}
}

// FormatRate writes a rate per second as drate does: ten digits behind the point, not rounded.
func FormatRate(v float64) string {
	return strconv.FormatFloat(math.Trunc(v*1e10)/1e10, 'f', 10, 64)
}

// wind sets a gate's clock.
func (q *Queue) wind(g *gate, s state) {
	g.clock = &job{limits: &jobLimits{gate: g}, due: q.config.Now().Add(time.Duration(s.need) * time.Second).Truncate(time.Second).UnixNano()}
	heap.Push(&q.later, g.clock)
}

// wakeGate lets go who may go; called with mu held, when the gate's clock is out of the schedule.
func (q *Queue) wakeGate(g *gate) {
	g.clock = nil
	for g.waiting.len() > 0 {
		j := g.waiting.items[g.waiting.head]
		if !over(j) && !j.m.kept() {
			name, s, ok := q.check(j)
			if !ok && name == g.name {
				q.exceeded(j, name, s)
				q.wind(g, s)
				return
			}
			g.waiting.pop()
			q.delayed--
			switch {
			case ok:
				q.toLane(j)
			default:
				// Another of its limits has no room.
				q.pass(j)
			}
			continue
		}
		g.waiting.pop()
		q.delayed--
		q.idle(j)
	}
	delete(q.gates, g.name)
}
