package queue

import (
	"container/heap"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/bounce"
	"github.com/indigomail/indigo/internal/queue/seglog"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
)

// doubleBounceSender marks a double bounce, "#@[]" as in qmail: it is thrown away if it fails too.
var doubleBounceSender = addr.Address{Local: "#", Domain: "[]"}

// isNotice tells whether a message is one that a mail system made: it never makes a notice itself.
func isNotice(sender addr.Address) bool { return sender.IsNull() || sender == doubleBounceSender }

// lifetime is how long a message may wait: less, if so set, for bounces.
func (q *Queue) lifetime(env *Envelope) settings.Key[time.Duration] {
	if isNotice(env.Sender) {
		return settings.BounceLifetime
	}
	return settings.QueueLifetime
}

// The wishes of NOTIFY (RFC 3461 section 4.1): without it, failures and delays are told.
func wantsFailure(notify string) bool { return notify == "" || strings.Contains(notify, "FAILURE") }
func wantsDelay(notify string) bool   { return notify == "" || strings.Contains(notify, "DELAY") }
func wantsSuccess(notify string) bool { return strings.Contains(notify, "SUCCESS") }

// told forgets the notices of some recipients, who are named because the log may lack others that memory has, after a write that
// failed: by their number alone a replay could forget the wrong ones.
func (m *message) told(recipients []int, warned bool) {
	m.warned = m.warned || warned
	gone := make(map[int]bool, len(recipients))
	for _, i := range recipients {
		gone[i] = true
	}
	if m.rare != nil {
		m.rare.notices = slices.DeleteFunc(slices.Clone(m.rare.notices), func(n notice) bool { return gone[n.index] })
	}
}

// roundOver looks, when nothing of a message runs or is due, whether the sender should be told something now, though some
// recipients are left; called with mu held.
func (q *Queue) roundOver(m *message) {
	if m.lined > 0 || m.finished || m.kept() || q.closing {
		return
	}
	late := settings.DelayWarning.Get(q.config.Settings())
	if len(m.notices()) == 0 && (m.warned || late == 0 || q.config.Now().UnixNano()-m.birth < int64(late)) {
		return
	}
	m.running++
	q.work.Go(func() { q.tellNow(m) })
}

// tellNow tells the sender of a message that is not over.
func (q *Queue) tellNow(m *message) {
	h, c, release, err := q.load(m)
	if err == nil {
		err = q.tell(m, h, c, true)
		release()
	}
	q.mu.Lock()
	m.running--
	over := q.record(m, nil, nil)
	q.dispatch()
	q.mu.Unlock()
	if err != nil {
		q.config.Logger.Warn(fmt.Sprintf("queue: notice of message %s: %v; will try again later", m.id, err))
	}
	if over {
		q.conclude(m)
	}
}

// conclude tells the sender what is still to be told, then ends the message. A crash between both repeats the notice. What
// cannot be read or told is kept, for the operator, and tried again.
func (q *Queue) conclude(m *message) {
	again := func(after time.Duration) {
		q.mu.Lock()
		m.finished = false
		heap.Push(&q.later, newJob(m, q.config.Now().Add(after).UnixNano()))
		q.mu.Unlock()
	}
	if len(m.notices()) == 0 {
		// Nearly always, and then there is nothing to read.
		q.finish(m, m.big)
		return
	}
	h, c, release, err := q.load(m)
	if err != nil {
		q.config.Logger.Error(fmt.Sprintf("queue: message %s cannot be read to end it: %v", m.id, err))
		again(10 * time.Minute)
		return
	}
	defer release()
	if err := q.tell(m, h, c, false); err != nil {
		q.config.Logger.Warn(fmt.Sprintf("queue: bounce of message %s: %v; will try again later", m.id, err))
		again(time.Minute)
		return
	}
	q.finish(m, h.big)
}

// tell queues reports of all notices of a message, failures and others apart, and with warn of those that are late. The log
// remembers that it was done.
func (q *Queue) tell(m *message, h *head, c Content, warn bool) error {
	view := q.config.Settings()
	q.mu.Lock()
	notices := slices.Clone(m.notices())
	warned := false
	var delayed []notice
	if late := settings.DelayWarning.Get(view); warn && !m.warned && late > 0 && q.config.Now().UnixNano()-m.birth >= int64(late) {
		warned = true
		for i, r := range m.recipients {
			if r.status == waiting {
				delayed = append(delayed, notice{index: i, action: bounce.Delayed, text: m.lastText()})
			}
		}
	}
	q.mu.Unlock()
	slices.SortStableFunc(notices, func(a, b notice) int { return a.index - b.index })
	var failed, succeeded []notice
	var told []int
	for _, n := range notices {
		told = append(told, n.index)
		if n.action == bounce.Failed {
			failed = append(failed, n)
		} else {
			succeeded = append(succeeded, n)
		}
	}
	for _, group := range [][]notice{failed, succeeded, delayed} {
		group = slices.DeleteFunc(group, func(n notice) bool { return !wanted(n.action, h.envelope.Recipients[n.index].Notify) })
		if len(group) == 0 {
			continue
		}
		if err := q.report(m, h, c, group); err != nil {
			return err
		}
	}
	if warn {
		q.mu.Lock()
		q.tellNoMore(m, told, warned, false)
		q.mu.Unlock()
	}
	return nil
}

// tellNoMore forgets the notices of some recipients, in the log too; called with mu held.
func (q *Queue) tellNoMore(m *message, recipients []int, warned, sync bool) seglog.Pending {
	m.told(recipients, warned)
	return q.log.Enqueue(kindTold, uint64(m.id), sync, encodeTold(recipients, warned))
}

func wanted(a bounce.Action, notify string) bool {
	switch a {
	case bounce.Failed:
		return wantsFailure(notify)
	case bounce.Delayed:
		return wantsDelay(notify)
	}
	return true
}

func (m *message) lastText() string {
	if m.rare == nil {
		return ""
	}
	return m.rare.lastText
}

// bounceSettings are what bounce.envrules may change for the address that gets a notice (wiki 2204-2213).
type bounceSettings struct {
	door, processor, queue string
	maxBytes               int64
	format                 bounce.Format
}

func (q *Queue) bounceSettings(view *settings.View, to addr.Address) bounceSettings {
	own := view.ForBounce(to)
	s := bounceSettings{
		settings.BounceQueue.Get(own), settings.BounceProcessor.Get(own), "", int64(settings.BounceMaxBytes.Get(own)),
		bounce.Format(settings.BounceFormat.Get(own)),
	}
	// IndiMail's name for the program is QMAILQUEUE, which in this file means bounces only.
	if program, ok := view.RulesSet(settings.BounceRules, to.String(), settings.QMailQueue.Setting); ok && program != "" {
		s.door = program
	}
	s.queue, _ = view.RulesSet(settings.BounceRules, to.String(), settings.QueueDir.Setting)
	return s
}

// report queues one report to the sender. A message from the null sender makes none, but for failures a double bounce to the
// postmaster; and that makes none at all.
func (q *Queue) report(m *message, h *head, c Content, notices []notice) error {
	view := q.config.Settings()
	or := func(values ...string) string {
		for _, s := range values {
			if s != "" {
				return s
			}
		}
		return ""
	}
	discard := func(check string) error {
		q.config.Trace.Record(trace.Event{Time: q.config.Now(), Kind: "bounce", Queue: m.id.String(), Verdict: "discard", Check: check})
		return nil
	}
	sender, to := addr.Address{}, h.envelope.Sender
	switch {
	case isNotice(to) && notices[0].action != bounce.Failed:
		return discard("notice-of-notice")
	case to == doubleBounceSender:
		q.event(logTriple, idAttr(m.id))
		return discard("triple-bounce")
	case to.IsNull():
		sender = doubleBounceSender
		name := settings.DoubleBounceTo.Get(view)
		if name == "" {
			return discard("doublebounceto")
		}
		if to = (addr.Address{Local: name, Domain: or(settings.DoubleBounceHost.Get(view), settings.DefaultDomain.Get(view), q.config.Host)}); strings.Contains(name, "@") {
			parsed, err := addr.Parse(name)
			if err != nil {
				return fmt.Errorf("setting %s: %w", settings.DoubleBounceTo.Name, err)
			}
			to = parsed
		}
	}
	own := q.bounceSettings(view, to)
	lifetime := q.lifetime(&h.envelope)
	report := bounce.Report{
		Format: own.format, Host: q.config.Host, From: addr.Address{Local: settings.BounceFrom.Get(view), Domain: or(settings.BounceHost.Get(view), q.config.Host)},
		To: to, Subject: settings.BounceSubject.Get(view), Double: sender == doubleBounceSender, Arrived: time.Unix(0, m.birth), Now: q.config.Now(),
		Sender: h.envelope.Sender, EnvID: h.envelope.EnvID, Original: io.NewSectionReader(c, 0, c.Size()), UTF8: h.envelope.UTF8,
		// RET speaks of failures only (RFC 3461 section 4.3); nobody needs the whole message to hear that it arrived.
		HeaderOnly: own.maxBytes > 0 && c.Size() > own.maxBytes || h.envelope.Return == "HDRS" || notices[0].action != bounce.Failed,
	}
	for _, n := range notices {
		r := h.envelope.Recipients[n.index]
		report.Outcomes = append(report.Outcomes, bounce.Outcome{Action: n.action, Recipient: r.Address, Orcpt: r.Orcpt, Code: n.code, Enhanced: n.enhanced,
			Text: n.text, RetryUntil: time.Unix(0, m.birth).Add(lifetime.Get(view))})
	}
	if own.processor != "" && notices[0].action == bounce.Failed && q.config.Processor != nil {
		keep, err := q.config.Processor(q.workCtx, own.processor, &report)
		if err != nil {
			q.config.Logger.Warn(fmt.Sprintf("queue: message %s: BOUNCEPROCESSOR %s: %v", m.id, own.processor, err))
		} else if !keep {
			return discard("BOUNCEPROCESSOR")
		}
		report.Original = io.NewSectionReader(c, 0, c.Size())
	}
	return q.queueReport(m, &report, sender, own)
}

// queueReport gives a report to the queue, through the program of BOUNCEQUEUE if there is one.
func (q *Queue) queueReport(m *message, report *bounce.Report, sender addr.Address, own bounceSettings) error {
	var door Submitter = q
	switch {
	case own.door != "" && q.config.BounceDoor != nil:
		door = q.config.BounceDoor(own.door)
	case q.config.Bounces != nil:
		door = q.config.Bounces
	}
	ctx := context.WithoutCancel(q.workCtx)
	s, err := door.Begin(ctx, 0)
	if err != nil {
		return err
	}
	report.ID = s.ID().String()
	if err := report.Write(s); err != nil {
		s.Abort()
		return err
	}
	err = s.Commit(ctx, Envelope{Sender: sender, Recipients: []Recipient{{Address: report.To}}, UTF8: report.UTF8, Queue: own.queue,
		Origin: Origin{Service: "bounce", UID: q.config.UID, PID: q.config.PID}, MessageID: report.MessageID()})
	if err == nil {
		q.event(logBounce, idAttr(m.id), slog.String("bounce", s.ID().String()))
		q.config.Trace.Record(trace.Event{Time: q.config.Now(), Kind: "bounce", Queue: m.id.String(), To: report.To.String(), Verdict: "success", Reply: "queued as " + s.ID().String()})
	}
	return err
}
