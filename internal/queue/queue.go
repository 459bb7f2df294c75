// Package queue is a station: it holds every accepted message until each recipient is delivered or has bounced, and
// decides when to try again. It must not know SMTP, Maildirs or DNS: those are Deliverers and a Router handed to it.
package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/bounce"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/settings"
)

// ID names a message for the life of a queue directory; it is never used twice. It is printed in decimal, where qmail
// printed an inode number.
type ID uint64

func (id ID) String() string { return strconv.FormatUint(uint64(id), 10) }

// Origin is how a message came in; for the log line "info msg" (wiki 1337-1345), the trace and the rules.
type Origin struct {
	// Service is the name of the door, for example "smtpd.25", "bounce", "pickup".
	Service string `json:"service,omitempty"`
	// Session is the trace's name for the connection; "" when there was none.
	Session string `json:"session,omitempty"`
	// Client is the IP address of the sender, "" when local.
	Client string `json:"client,omitempty"`
	// User is the authenticated user, "" without AUTH.
	User string `json:"user,omitempty"`
	// UID and PID are the submitting process's; the daemon's own for mail from the network ("qp PID uid UID").
	UID int `json:"uid"`
	PID int `json:"pid"`
}

// Envelope is what travels with the content.
type Envelope struct {
	// Sender is where bounces go; null for a bounce itself.
	Sender addr.Address `json:"sender"`
	// Recipients has at least one entry.
	Recipients []Recipient `json:"recipients"`
	Origin     Origin      `json:"origin"`
	// MessageID is the Message-ID field's value if the door has seen one; for the trace only.
	MessageID string `json:"message_id,omitempty"`
	// Body is the BODY parameter (RFC 6152): "", "7BIT" or "8BITMIME". UTF8 is SMTPUTF8 (RFC 6531).
	Body string `json:"body,omitempty"`
	UTF8 bool   `json:"utf8,omitempty"`
	// Queue asks for the queue of a name, or of a path that ends in it. It is not kept.
	Queue string `json:"queue,omitempty"`
	// Settings are those of the session that the message came in by, for choosing its queue; nil means the service's. They
	// are not kept.
	Settings *settings.View `json:"-"`
	// EnvID and Return are ENVID and RET (RFC 3461), kept for delivery and bounces.
	EnvID  string `json:"envid,omitempty"`
	Return string `json:"ret,omitempty"`
}

// Check reports what is wrong with an envelope that did not come through a door that has looked at it.
func (e *Envelope) Check() error {
	if len(e.Recipients) == 0 {
		return errors.New("no recipients")
	}
	if !isNotice(e.Sender) {
		if _, err := addr.Parse(e.Sender.String()); err != nil {
			return fmt.Errorf("sender %q: %w", e.Sender, err)
		}
	}
	switch {
	case e.Body != "" && e.Body != "7BIT" && e.Body != "8BITMIME":
		return fmt.Errorf("body %q", e.Body)
	case e.Return != "" && e.Return != "FULL" && e.Return != "HDRS":
		return fmt.Errorf("ret %q", e.Return)
	case e.EnvID != "" && !bounce.ValidEnvID(e.EnvID):
		return fmt.Errorf("envid %q", e.EnvID)
	}
	for _, r := range e.Recipients {
		if _, err := addr.Parse(r.Address.String()); err != nil {
			return fmt.Errorf("recipient %q: %w", r.Address, err)
		}
		if r.Notify != "" && !bounce.ValidNotify(r.Notify) {
			return fmt.Errorf("notify %q", r.Notify)
		}
		if r.Orcpt != "" && !bounce.ValidOrcpt(r.Orcpt, e.UTF8) {
			return fmt.Errorf("orcpt %q", r.Orcpt)
		}
	}
	return nil
}

// Recipient is one address to deliver to, with its DSN parameters (RFC 3461), "" when absent.
type Recipient struct {
	Address addr.Address `json:"address"`
	Notify  string       `json:"notify,omitempty"`
	Orcpt   string       `json:"orcpt,omitempty"`
}

// Submission is a message on its way into the queue. Its ID is known before its content, so that the Received field
// and the reply can name it. Write takes the content in wire form: CRLF line ends, no dot-stuffing. Exactly one of
// Commit and Abort must be called.
type Submission interface {
	io.Writer
	ID() ID
	// Commit returns nil only after the message is on stable storage; then, and only then, may a door say 250. An
	// error means that the message is not in the queue. It is a *mailerr.Error: 452 4.3.1 for a full disk, 451 4.3.0
	// for anything else.
	Commit(ctx context.Context, env Envelope) error
	Abort()
}

// Submitter is what doors need of a queue.
type Submitter interface {
	// Begin starts a submission. It fails with 452 4.3.1 when the file system has less than the setting MIN_FREE left,
	// and 421 4.3.2 while the queue shuts down. sizeHint is the size the client declared, 0 when unknown.
	Begin(ctx context.Context, sizeHint int64) (Submission, error)
}

// Channel is where a recipient is delivered: qmail's local and remote.
type Channel uint8

const (
	Local Channel = iota
	Remote
)

func (c Channel) String() string {
	if c == Local {
		return "local"
	}
	return "remote"
}

// Destination is what a Router says of a recipient.
type Destination struct {
	Channel Channel
	// Host is the key for concurrency, back-off and connection reuse: the domain, in lower case.
	Host string
}

// Router decides the channel of a recipient when the queue first looks at a message. A *mailerr.Error that is
// permanent bounces the recipient; any other error is tried again.
type Router interface {
	Route(ctx context.Context, rcpt addr.Address) (Destination, error)
}

// Content gives a queued message's bytes, in wire form.
type Content interface {
	io.ReaderAt
	Size() int64
}

// Delivery is one attempt: one message to recipients of one destination.
type Delivery struct {
	// Number counts deliveries since the start, for the log ("starting delivery 6").
	Number     uint64
	ID         ID
	Envelope   *Envelope
	Host       string
	Recipients []Recipient
	// Index is the position of each of Recipients in Envelope.Recipients; with ID it names a delivery for good, so
	// that a delivery repeated after a crash can find its own earlier result.
	Index   []int
	Content Content
	// Birth is when the message entered the queue.
	Birth time.Time
	// Attempt counts earlier attempts for this message on this channel; 0 is the first.
	Attempt int
	// Repeat is true when an earlier attempt may have been made but its result was lost (after a crash).
	Repeat bool
}

// Result is the outcome for one recipient.
type Result struct {
	// Err is nil on success; else Temporary() decides between deferral and failure.
	Err *mailerr.Error
	// Text is the log's text after "success: ", "deferral: " or "failure: ", with qmail's underscores put in by the
	// queue.
	Text string
	// Handed says that on success the next host has also taken over what the sender wants to be told (RFC 3461 section 5.2).
	Handed bool
	// Dialogue is the remote dialogue, or what became of each line of an alias, for the trace.
	Dialogue []string
}

// Deliverer makes deliveries on one channel. Deliver returns one result per recipient, in order, and returns success
// only for what is durable at its destination. The queue bounds how many run at once. A cancelled context means that
// the queue shuts down: unfinished recipients become deferrals.
type Deliverer interface {
	Deliver(ctx context.Context, d *Delivery) []Result
}
