// Package trace is knowledge: every decision about a connection or a message, kept for some weeks, so that
// `indigo explain` can tell the whole story. It is off the durable path: losing its last second in a power cut is
// allowed, slowing mail down is not. It must not know how a decision is made.
package trace

import (
	"time"
)

// Event is one decision or one thing that happened. Only Time and Kind are always set; empty fields cost nothing.
type Event struct {
	Time time.Time `json:"time"`
	// Kind is what happened: "connect", "helo", "tls", "auth", "mail", "rcpt", "data", "queued", "delivery", "bounce",
	// "retry", "end", "close", "etrn", "atrn".
	Kind string `json:"kind"`
	// Session names the connection that it belongs to, unique per data directory.
	Session string `json:"session,omitempty"`
	// Queue is the queue id of the message, once it has one.
	Queue string `json:"queue,omitempty"`
	// MessageID is the Message-ID field's value without angle brackets.
	MessageID string `json:"message_id,omitempty"`
	Service   string `json:"service,omitempty"`
	Client    string `json:"client,omitempty"`
	User      string `json:"user,omitempty"`
	From      string `json:"from,omitempty"`
	To        string `json:"to,omitempty"`
	// Check is the check or rule that decided, for example "relay" or "local-user".
	Check string `json:"check,omitempty"`
	// Input is what the check was given.
	Input string `json:"input,omitempty"`
	// Verdict is "accept", "defer", "reject", "discard" for checks, "success", "deferral", "failure" for deliveries.
	Verdict string `json:"verdict,omitempty"`
	// Setting and Layer say which setting decided, and where its value came from (file and line, or "default").
	Setting string `json:"setting,omitempty"`
	Layer   string `json:"layer,omitempty"`
	// Reply is the reply sent or received.
	Reply string `json:"reply,omitempty"`
	// Dialogue is the remote dialogue's commands and replies, one per entry, without message data or secrets; or what became of each
	// line of an alias.
	Dialogue []string      `json:"dialogue,omitempty"`
	Took     time.Duration `json:"took_ns,omitempty"`
	Bytes    int64         `json:"bytes,omitempty"`
}

// Recorder takes events. *Log (the file-backed one) is the product's; tests may hand in their own. Record must not
// block on the disk and must be safe from several goroutines. A nil-safe no-op is Discard.
type Recorder interface {
	Record(Event)
}

// Discard forgets everything.
var Discard Recorder = discard{}

type discard struct{}

func (discard) Record(Event) {}
