package queue

import (
	"container/heap"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/bounce"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
)

const (
	// perHost is how many deliveries to one remote destination run at once: a slow one can take no more of the channel.
	perHost = 20
	// perTransaction is how many recipients one delivery has.
	perTransaction = 100
	// routeRetry is when a recipient whose channel could not be found is looked at again.
	routeRetry = time.Minute
	cleanEvery = 5 * time.Second
	// spareFor is how long a used segment waits to be used again when no other is begun.
	spareFor = time.Minute
)

// job is the next delivery of some recipients of a message.
type job struct {
	m *message
	// host is where it goes; nil when the Router must be asked first, or when all that is left is to end the message.
	host *destination
	// due is when, in Unix nanoseconds.
	due int64
	// first and more are positions in the message's recipients; there is none when first is negative.
	first   int32
	attempt uint16
	channel Channel
	more    []int32
	// limits is nil for most.
	limits *jobLimits
}

// jobLimits are the rate limits of a job: their names, and whether it has passed them.
type jobLimits struct {
	names   []string
	counted bool
	// gate is what a job without a message wakes.
	gate *gate
}

func limitsNamed(names []string) *jobLimits {
	if names == nil {
		return nil
	}
	return &jobLimits{names: names}
}

// isClock tells whether a job only wakes a gate.
func (j *job) isClock() bool { return j.limits != nil && j.limits.gate != nil }

// gate is where jobs wait for a rate limit, the first of them with a clock.
type gate struct {
	name    string
	waiting fifo[*job]
	// clock is the job in the schedule that wakes the gate, nil when there is none.
	clock *job
}

func (j *job) indexes() []int {
	if j.first < 0 {
		return nil
	}
	indexes := make([]int, 1, 1+len(j.more))
	indexes[0] = int(j.first)
	for _, i := range j.more {
		indexes = append(indexes, int(i))
	}
	return indexes
}

// newJob makes a job for m; the one inside m is used when it is free.
func newJob(m *message, due int64, indexes ...int) *job {
	j := &m.job
	if j.m != nil {
		j = &job{}
	}
	*j = job{m: m, due: due, first: -1}
	for n, i := range indexes {
		if n == 0 {
			j.first = int32(i)
		} else {
			j.more = append(j.more, int32(i))
		}
	}
	return j
}

// schedule of retries: a heap by due time.
type jobHeap []*job

func (h jobHeap) Len() int           { return len(h) }
func (h jobHeap) Less(i, j int) bool { return h[i].due < h[j].due }
func (h jobHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *jobHeap) Push(x any)        { *h = append(*h, x.(*job)) }
func (h *jobHeap) Pop() any {
	old := *h
	j := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return j
}

// lane is a channel: where its mail goes, and those destinations that have a job and may start one, in turn.
type lane struct {
	running int
	hosts   map[string]*destination
	turn    fifo[*destination]
}

// destination is one host, or all local delivery. It lives as long as jobs refer to it.
type destination struct {
	name string
	// jobs are those that are due.
	jobs    fifo[*job]
	refs    int
	running int
	queued  bool
}

// fifo is a queue that gives its memory back as it empties.
type fifo[T any] struct {
	items []T
	head  int
}

func (f *fifo[T]) len() int { return len(f.items) - f.head }

func (f *fifo[T]) push(v T) { f.items = append(f.items, v) }

func (f *fifo[T]) pop() T {
	var none T
	v := f.items[f.head]
	f.items[f.head] = none
	f.head++
	switch {
	case f.head == len(f.items):
		f.items, f.head = nil, 0
	case f.head >= 1024 && f.head*2 >= len(f.items):
		f.items, f.head = append([]T(nil), f.items[f.head:]...), 0
	}
	return v
}

// scheduler is the part of Queue that decides what runs when; guarded by Queue.mu.
type scheduler struct {
	later jobHeap
	// parked are the jobs of held messages.
	parked map[*message][]*job
	// gates by the names of their limits; delayed counts the jobs that wait at them.
	gates    map[string]*gate
	delayed  int
	lanes    [2]lane
	delivery uint64
	wake     chan struct{}
}

// refer gives the destination of a name, made if it is new, and counts a job that refers to it; release takes that back.
func (l *lane) refer(name string) *destination {
	d := l.hosts[name]
	if d == nil {
		d = &destination{name: strings.Clone(name)}
		l.hosts[d.name] = d
	}
	d.refs++
	return d
}

func (l *lane) release(d *destination) {
	if d.refs--; d.refs == 0 {
		delete(l.hosts, d.name)
	}
}

// nextRetry is qmail's schedule (wiki 206-212): the square root of the age grows by chanskip with each attempt, so that
// attempts lie at (n*chanskip)^2 seconds after birth, and a queue that was down does not catch up on what it missed.
func nextRetry(birth, now time.Time, channel Channel) time.Time {
	skip := 10.0
	if channel == Remote {
		skip = 20
	}
	age := max(now.Sub(birth).Seconds(), 0)
	n := math.Floor(math.Sqrt(age)) + skip
	return birth.Add(time.Duration(n*n) * time.Second)
}

// start schedules what was replayed and starts the clock goroutine.
func (q *Queue) start() {
	q.wake = make(chan struct{}, 1)
	q.parked, q.gates = map[*message][]*job{}, map[string]*gate{}
	for i := range q.lanes {
		q.lanes[i].hosts = map[string]*destination{}
	}
	q.later = make(jobHeap, 0, len(q.messages))
	for _, m := range q.messages {
		if m.left == 0 {
			// Everything was done before the crash but the end.
			q.later = append(q.later, newJob(m, 0))
			continue
		}
		if len(m.recipients) == 1 {
			q.later = append(q.later, newJob(m, m.recipients[0].next, 0))
			continue
		}
		byTime := map[int64][]int{}
		for i, r := range m.recipients {
			if r.status == waiting {
				byTime[r.next] = append(byTime[r.next], i)
			}
		}
		for due, indexes := range byTime {
			q.later = append(q.later, newJob(m, due, indexes...))
		}
	}
	heap.Init(&q.later)
	if q.config.Idle {
		return
	}
	q.work.Go(q.tick)
	q.signal()
}

func (q *Queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// tick moves jobs that are due to their lanes, and cleans the log from time to time.
func (q *Queue) tick() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	lastClean := q.config.Now()
	newest, lastNew := uint64(0), lastClean
	for {
		select {
		case <-timer.C:
		case <-q.wake:
		}
		q.mu.Lock()
		if q.closing {
			q.mu.Unlock()
			return
		}
		now := q.config.Now()
		for len(q.later) > 0 && q.later[0].due <= now.UnixNano() {
			j := heap.Pop(&q.later).(*job)
			switch {
			case j.isClock():
				q.wakeGate(j.limits.gate)
			case q.idle(j):
			case j.first < 0:
				m := j.m
				q.free(j)
				// From here on nothing else may end it, or write it again behind its end.
				m.finished = true
				q.work.Go(func() { q.conclude(m) })
			case j.host == nil:
				j.m.running++
				q.work.Go(func() { q.routeAgain(j) })
			default:
				q.ready(j)
			}
		}
		wait := cleanEvery
		if q.delayed > 0 || q.limited() {
			wait = time.Second // rateUpkeep
		}
		if len(q.later) > 0 {
			wait = min(wait, time.Duration(q.later[0].due-now.UnixNano()))
		}
		q.dispatch()
		q.mu.Unlock()
		q.rateUpkeep()
		if n := q.log.Newest(); n != newest {
			// A segment is full: what is dead in the others may go.
			newest, lastNew, lastClean = n, now, time.Time{}
		}
		if d := now.Sub(lastClean); d < 0 || d >= cleanEvery {
			lastClean = now
			q.clean()
			if now.Sub(lastNew) >= spareFor {
				if err := q.log.DropSpare(); err != nil {
					q.config.Logger.Warn("queue: " + err.Error())
				}
			}
		}
		timer.Reset(max(wait, time.Millisecond))
	}
}

// ready puts a job in its lane, or to the gate of a rate limit; called with mu held.
func (q *Queue) ready(j *job) {
	if j.limits != nil && !j.limits.counted && !q.pass(j) {
		return
	}
	q.toLane(j)
}

func (q *Queue) toLane(j *job) {
	j.m.lined++
	j.host.jobs.push(j)
	q.lanes[j.channel].line(j.host, j.channel)
}

// line puts a host in turn if it may start a job.
func (l *lane) line(h *destination, c Channel) {
	if !h.queued && h.jobs.len() > 0 && (c == Local || h.running < perHost) {
		h.queued = true
		l.turn.push(h)
	}
}

func (q *Queue) limit(c Channel) int {
	v := q.config.Settings()
	hold, concurrency := settings.HoldLocal, settings.ConcurrencyLocal
	if c == Remote {
		hold, concurrency = settings.HoldRemote, settings.ConcurrencyRemote
	}
	if hold.Get(v) {
		return 0
	}
	return concurrency.Get(v)
}

// dispatch starts deliveries while the channels have room, one of each host in turn; called with mu held.
func (q *Queue) dispatch() {
	if q.config.Idle {
		return
	}
	for _, c := range []Channel{Local, Remote} {
		l := &q.lanes[c]
		limit := q.limit(c)
		for l.running < limit && l.turn.len() > 0 && !q.closing {
			h := l.turn.pop()
			h.queued = false
			if h.jobs.len() == 0 {
				continue // they were taken away
			}
			j := h.jobs.pop()
			j.m.lined--
			if q.idle(j) {
				l.line(h, c)
				continue
			}
			l.running++
			h.running++
			l.line(h, c)
			j.m.running++
			q.delivery++
			number := q.delivery
			q.work.Go(func() { q.deliver(j, number) })
		}
	}
}

// idle takes care of a job that must not run: one whose recipients are done by an operator's word, one that was to end a message
// that has another entry now, or one whose message is held or goes to another queue.
// Called with mu held.
func (q *Queue) idle(j *job) bool {
	switch {
	case over(j), j.first < 0 && j.m.finished:
		q.free(j)
	case j.m.kept():
		q.park(j)
	default:
		return false
	}
	return true
}

// over tells whether a job's recipients are done.
func over(j *job) bool {
	return j.first >= 0 && !slices.ContainsFunc(j.indexes(), func(i int) bool { return j.m.recipients[i].status == waiting })
}

// schedule routes a new message's recipients and makes them due.
func (q *Queue) schedule(m *message, env *Envelope, size int64) {
	indexes := make([]int, 0, len(m.recipients))
	q.mu.Lock()
	for i, r := range m.recipients {
		if r.status == waiting {
			indexes = append(indexes, i)
		}
	}
	m.running++
	q.mu.Unlock()
	q.route(m, env, indexes, size)
}

// routeAgain routes after a restart, when the envelope must be read first.
func (q *Queue) routeAgain(j *job) {
	h, _, release, err := q.load(j.m)
	if err != nil {
		q.unreadable(j, err)
		return
	}
	release()
	m, indexes := j.m, j.indexes()
	q.mu.Lock()
	q.free(j)
	q.mu.Unlock()
	q.route(m, &h.envelope, indexes, -1)
}

// unreadable keeps a message that cannot be read for the operator, and tries again later.
func (q *Queue) unreadable(j *job, err error) {
	q.config.Logger.Error(fmt.Sprintf("queue: message %s cannot be read: %v", j.m.id, err))
	q.mu.Lock()
	defer q.mu.Unlock()
	j.m.running--
	j.due = q.config.Now().Add(10 * time.Minute).UnixNano()
	heap.Push(&q.later, j)
}

// route finds each recipient's channel and makes jobs. The caller has counted one in m.running, which route takes back. For a
// new message, whose size is not negative, the log names each.
func (q *Queue) route(m *message, env *Envelope, indexes []int, size int64) {
	type key struct {
		channel Channel
		host    string
	}
	type plan struct {
		key
		unrouted bool
		indexes  []int
		limited  []string
	}
	var plans []*plan
	open := map[key]*plan{}
	var results []result
	var failures []notice
	for _, i := range indexes {
		to := env.Recipients[i].Address
		d, err := q.config.Router.Route(q.workCtx, to)
		if e := mailerr.From(err); e != nil {
			if e.Temporary() {
				plans = append(plans, &plan{unrouted: true, indexes: []int{i}})
				continue
			}
			results = append(results, result{index: i, status: failed})
			failures = append(failures, newNotice(i, e, e.Reply()))
			q.config.Trace.Record(trace.Event{Time: q.config.Now(), Kind: "route", Queue: m.id.String(), To: to.String(), Verdict: "failure", Reply: e.Reply()})
			continue
		}
		if size >= 0 {
			q.event(logSorted, slog.String("channel", d.Channel.String()), slog.String("from", env.Sender.String()), slog.String("to", to.String()), idAttr(m.id), slog.Int64("bytes", size))
		}
		k := key{d.Channel, d.Host}
		p := open[k]
		limited := q.limitsOf(env, to)
		if p == nil || d.Channel == Local || len(p.indexes) == perTransaction || limited != nil || p.limited != nil {
			p = &plan{key: k, limited: limited}
			open[k] = p
			plans = append(plans, p)
		}
		p.indexes = append(p.indexes, i)
	}
	q.mu.Lock()
	m.running--
	for _, p := range plans {
		if p.unrouted {
			heap.Push(&q.later, newJob(m, q.config.Now().Add(routeRetry).UnixNano(), p.indexes...))
			continue
		}
		j := newJob(m, 0, p.indexes...)
		j.channel, j.host, j.limits = p.channel, q.lanes[p.channel].refer(p.host), limitsNamed(p.limited)
		q.ready(j)
	}
	over := q.record(m, results, failures)
	q.dispatch()
	q.mu.Unlock()
	if over {
		q.conclude(m)
	}
}

// free gives up a job; called with mu held.
func (q *Queue) free(j *job) {
	if j.host != nil {
		q.lanes[j.channel].release(j.host)
		j.host = nil
	}
	if j == &j.m.job {
		j.m.job.m = nil
	}
}

// record writes results and takes them into the state; over tells that the message has nothing left to do. Called with mu
// held, so that results stand in the log in the order in which they are taken.
func (q *Queue) record(m *message, results []result, failures []notice) (over bool) {
	if len(results) > 0 {
		q.log.Enqueue(kindResult, uint64(m.id), false, encodeResults(results, failures))
		q.apply(m, results, failures)
	}
	if m.left == 0 && m.running == 0 && !m.finished {
		m.finished = true
		return true
	}
	return false
}

// deliver makes one delivery and deals with its results.
func (q *Queue) deliver(j *job, number uint64) {
	m, indexes, host := j.m, j.indexes(), j.host
	h, c, release, err := q.load(m)
	if err != nil {
		q.mu.Lock()
		q.leave(j)
		q.mu.Unlock()
		q.unreadable(j, err)
		return
	}
	defer release()
	d := &Delivery{Number: number, ID: m.id, Envelope: &h.envelope, Host: host.name, Index: indexes, Content: c,
		Birth: time.Unix(0, m.birth), Attempt: int(j.attempt), Repeat: m.repeat}
	var names []string
	for _, i := range indexes {
		d.Recipients = append(d.Recipients, h.envelope.Recipients[i])
		names = append(names, h.envelope.Recipients[i].Address.String())
	}
	q.event(logStarting, slog.Uint64("delivery", number), idAttr(m.id), slog.String("channel", j.channel.String()), slog.String("to", strings.Join(names, " ")))
	q.mu.Lock()
	status := q.counts()
	q.mu.Unlock()
	q.status(status)

	deliverer := q.config.Local
	if j.channel == Remote {
		deliverer = q.config.Remote
	}
	began := q.config.Now()
	results := deliverer.Deliver(q.workCtx, d)
	now := q.config.Now()

	var outcome []result
	var failures []notice
	var again []int
	lifetime := q.lifetime(&h.envelope)
	tooLate := now.Sub(d.Birth) >= lifetime.Get(q.config.Settings())
	next := nextRetry(d.Birth, now, j.channel)
	for k, i := range indexes {
		r := Result{Err: mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "delivery gave no result")}
		if k < len(results) {
			r = results[k]
		}
		verdict, text := "success", r.Text
		event := trace.Event{Time: now, Kind: "delivery", Queue: m.id.String(), From: h.envelope.Sender.String(), To: names[k], Service: j.channel.String(),
			Reply: r.Text, Dialogue: r.Dialogue, Took: now.Sub(began)}
		switch {
		case r.Err == nil:
			outcome = append(outcome, result{index: i, status: succeeded})
			if wantsSuccess(h.envelope.Recipients[i].Notify) && !r.Handed {
				action := bounce.Delivered
				if j.channel == Remote {
					action = bounce.Relayed
				}
				failures = append(failures, notice{index: i, action: action, text: r.Text})
			}
		case r.Err.Temporary() && q.workCtx.Err() != nil:
			// It was this process that gave up: the attempt does not count, and the next start makes another at once.
			verdict = "deferral"
			event.Input = "next attempt when the queue is started again"
		case r.Err.Temporary() && !tooLate:
			verdict = "deferral"
			outcome = append(outcome, result{index: i, next: next.UnixNano()})
			again = append(again, i)
			event.Input = "next attempt " + next.UTC().Format(time.RFC3339)
		default:
			verdict = "failure"
			if text == "" {
				text = r.Err.Error()
			}
			if r.Err.Temporary() {
				text += "\nI'm not going to try again; this message has been in the queue too long."
				event.Setting = lifetime.Name
				event.Layer = q.config.Settings().Source(lifetime.Setting).String()
			}
			outcome = append(outcome, result{index: i, status: failed})
			failures = append(failures, newNotice(i, r.Err, text))
		}
		if text == "" && r.Err != nil {
			text = r.Err.Error()
		}
		event.Verdict, event.Reply = verdict, text
		q.config.Trace.Record(event)
		q.event(logDelivery, slog.Uint64("delivery", number), slog.String("result", verdict), slog.String("text", text), idAttr(m.id), slog.String("to", names[k]))
		if verdict == "deferral" {
			m.setLast(q, text)
		}
	}
	q.mu.Lock()
	m.running--
	q.leave(j)
	attempt, channel := j.attempt, j.channel
	var limited []string
	if j.limits != nil {
		limited = j.limits.names
	}
	if again != nil {
		host.refs++ // the next job's, before this one's goes
	}
	q.free(j)
	if again != nil {
		j := newJob(m, next.UnixNano(), again...)
		j.channel, j.host, j.attempt, j.limits = channel, host, min(attempt, math.MaxUint16-1)+1, limitsNamed(limited)
		heap.Push(&q.later, j)
	}
	over := q.record(m, outcome, failures)
	if !over && m.running == 0 {
		m.repeat = false
		q.roundOver(m)
	}
	q.dispatch()
	status = q.counts()
	q.mu.Unlock()
	q.signal()
	q.status(status)
	if over {
		q.conclude(m)
	}
}

// leave takes a job out of its lane; called with mu held.
func (q *Queue) leave(j *job) {
	l := &q.lanes[j.channel]
	l.running--
	j.host.running--
	l.line(j.host, j.channel)
}

func (m *message) setLast(q *Queue, text string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	m.trouble().lastText = strings.Clone(text[:min(len(text), 200)])
}

// Stats counts what is in a queue.
type Stats struct {
	Messages   int `json:"messages"`
	Recipients int `json:"recipients"`
	// Deliveries counts since the start.
	Deliveries    uint64 `json:"deliveries"`
	LocalRunning  int    `json:"local_running"`
	RemoteRunning int    `json:"remote_running"`
	// Scheduled counts the jobs that wait for their time.
	Scheduled int `json:"scheduled"`
	// Held counts the held messages whose time had come.
	Held int `json:"held"`
	// Delayed counts the deliveries that a rate limit keeps waiting.
	Delayed  int   `json:"delayed"`
	LogBytes int64 `json:"log_bytes"`
}

// Quiet tells whether nothing is being done and nothing is due.
func (q *Queue) Quiet() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.lanes {
		if q.lanes[i].running > 0 || q.lanes[i].turn.len() > 0 {
			return false
		}
	}
	for _, m := range q.messages {
		if m.running > 0 || m.left == 0 {
			return false
		}
	}
	return len(q.later) == 0 || q.later[0].due > q.config.Now().UnixNano()
}

// Stats counts now.
func (q *Queue) Stats() Stats {
	sizes, _ := q.log.Sizes()
	q.mu.Lock()
	defer q.mu.Unlock()
	s := Stats{Messages: len(q.messages), Recipients: q.recipients, Deliveries: q.delivery, LocalRunning: q.lanes[Local].running, RemoteRunning: q.lanes[Remote].running, Scheduled: len(q.later), Held: len(q.parked), Delayed: q.delayed}
	for _, n := range sizes {
		s.LogBytes += n
	}
	return s
}

// RetryAll makes every message due now and tells how many deliveries that makes.
func (q *Queue) RetryAll() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.hasten(func(*job) bool { return true })
}

func (q *Queue) hasten(which func(*job) bool) (n int) {
	for _, j := range q.later {
		if !j.isClock() && which(j) {
			j.due = 0
			n++
		}
	}
	heap.Init(&q.later)
	q.signal()
	return n
}
