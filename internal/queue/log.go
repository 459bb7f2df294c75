package queue

import (
	"context"
	"log/slog"
	"strings"
)

// LogEvent is a line that a queue writes to its log for every message. As a slog record its message is Name, and its
// attributes are stable; as text it has qmail's words (wiki 1337-1345), which log analysers of twenty years read.
type LogEvent struct {
	Name string
	// Text is the line, with each attribute's key in braces where its value stands; "|" behind a key asks for qmail's form
	// of a result, blanks as underscores and line ends as slashes.
	Text string
}

// Names of the events.
const (
	logNew      = "new msg"
	logInfo     = "info msg"
	logStarting = "starting delivery"
	logStatus   = "status"
	logDelivery = "delivery"
	logBounce   = "bounce msg"
	logTriple   = "triple bounce"
	logEnd      = "end msg"
)

// LogEvents gives the table of the events.
func LogEvents() []LogEvent {
	return []LogEvent{
		{logNew, "new msg {id}"},
		{logInfo, "info msg {id}: bytes {bytes} from <{from}> qp {qp} uid {uid}"},
		{logStarting, "starting delivery {delivery}: msg {id} to {channel} {to}"},
		{logStatus, "status: local {local}/{local_limit} remote {remote}/{remote_limit}"},
		{logDelivery, "delivery {delivery}: {result}: {text|}/"},
		{logBounce, "bounce msg {id} qp {bounce}"},
		{logTriple, "triple bounce: discarding bounce/{id}"},
		{logEnd, "end msg {id}"},
	}
}

// event writes an event. Its text is made only if the handler wants text.
func (q *Queue) event(name string, attrs ...slog.Attr) {
	q.config.Logger.LogAttrs(context.Background(), slog.LevelInfo, name, attrs...)
}

func idAttr(id ID) slog.Attr { return slog.String("id", id.String()) }

// counts is what the event "status" tells.
type counts struct{ local, localLimit, remote, remoteLimit int }

// counts is called with mu held.
func (q *Queue) counts() counts {
	return counts{q.lanes[Local].running, q.limit(Local), q.lanes[Remote].running, q.limit(Remote)}
}

func (q *Queue) status(c counts) {
	q.event(logStatus, slog.Int("local", c.local), slog.Int("local_limit", c.localLimit), slog.Int("remote", c.remote), slog.Int("remote_limit", c.remoteLimit))
}

// It never changes.
var qmailReplacer = strings.NewReplacer(" ", "_", "\r\n", "/", "\n", "/", "\t", "_")

// QmailText gives a text in qmail's form of a result: blanks as underscores, line ends as slashes.
func QmailText(s string) string { return qmailReplacer.Replace(s) }
