package queue

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
)

// LogEvent is a line that a queue writes to its log for every message. As a slog record its message is Name, and its
// attributes are stable; as text it has qmail's words (wiki 1337-1345), which log analysers of twenty years read.
type LogEvent struct {
	Name string
	// Text is the line, with each attribute's key in braces where its value stands; "|" behind a key asks for qmail's form
	// of a result, blanks as underscores and line ends as slashes, and "+" for a blank before the value, if there is one.
	Text string
}

// Names of the events.
const (
	logNew      = "new msg"
	logInfo     = "info msg"
	logSorted   = "sorted"
	logStarting = "starting delivery"
	logStatus   = "status"
	logDelivery = "delivery"
	logBounce   = "bounce msg"
	logTriple   = "triple bounce"
	logEnd      = "end msg"
	logRate     = "rate"
	logExceeded = "rate exceeded"
)

// LogEvents gives the table of the events.
func LogEvents() []LogEvent {
	return []LogEvent{
		{logNew, "new msg {id}{queue+}"},
		{logInfo, "info msg {id}: bytes {bytes} from <{from}> qp {qp} uid {uid}{queue+}"},
		{logSorted, "{channel}: {from} {to} {id} {bytes} bytes{queue+}"},
		{logStarting, "starting delivery {delivery}: msg {id} to {channel} {to}{queue+}"},
		{logStatus, "status: local {local}/{local_limit} remote {remote}/{remote_limit}{delayed+}{queue+}"},
		{logDelivery, "delivery {delivery}: {result}: {text|}/{queue+}"},
		{logBounce, "bounce msg {id} qp {bounce}{queue+}"},
		{logTriple, "triple bounce: discarding bounce/{id}{queue+}"},
		{logEnd, "end msg {id}{queue+}"},
		{logRate, "info: {in} {name} msg {id}: rate [{count}/{rate}/{limit}] ok since {secs} secs"},
		{logExceeded, "warning: {in} {name} msg {id}: rate exceeded [{count}/{rate}/{limit}] need {secs} secs; will try again later"},
	}
}

// event writes an event. Its text is made only if the handler wants text. Lines of queue1, which is all that most have, do
// without its name, as qmail's do (wiki 1337-1345).
func (q *Queue) event(name string, attrs ...slog.Attr) {
	if q.config.Name != "" && q.config.Name != "queue1" {
		attrs = append(attrs, slog.String("queue", q.config.Name))
	}
	q.config.Logger.LogAttrs(context.Background(), slog.LevelInfo, name, attrs...)
}

func idAttr(id ID) slog.Attr { return slog.String("id", id.String()) }

// counts is what the event "status" tells.
type counts struct{ local, localLimit, remote, remoteLimit, delayed int }

// counts is called with mu held.
func (q *Queue) counts() counts {
	return counts{q.lanes[Local].running, q.limit(Local), q.lanes[Remote].running, q.limit(Remote), q.delayed}
}

func (q *Queue) status(c counts) {
	attrs := make([]slog.Attr, 0, 6)
	attrs = append(attrs, slog.Int("local", c.local), slog.Int("local_limit", c.localLimit), slog.Int("remote", c.remote), slog.Int("remote_limit", c.remoteLimit))
	if c.delayed > 0 {
		attrs = append(attrs, slog.String("delayed", fmt.Sprint("delayed jobs=", c.delayed)))
	}
	q.event(logStatus, attrs...)
}

// It never changes.
var qmailReplacer = strings.NewReplacer(" ", "_", "\r\n", "/", "\n", "/", "\t", "_")

// QmailText gives a text in qmail's form of a result: blanks as underscores, line ends as slashes.
func QmailText(s string) string { return qmailReplacer.Replace(s) }
