// Package mailerr is vocabulary: the one error type that a client or a sender of mail may see.
//
// Every station returns a *Error where it can name an SMTP reply; any other error that reaches a door counts as
// temporary (451 4.3.0), so that an unknown fault never loses mail. It must not know who renders the reply.
package mailerr

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// Enhanced is an enhanced mail system status code (RFC 3463): class, subject, detail. The zero value means none.
type Enhanced [3]int

// String gives "5.7.1", or "" for the zero value.
func (e Enhanced) String() string {
	if e == (Enhanced{}) {
		return ""
	}
	return fmt.Sprintf("%d.%d.%d", e[0], e[1], e[2])
}

// Error is a refusal or a failure with the SMTP reply that it becomes (RFC 5321 section 4.2).
type Error struct {
	// Code is the SMTP reply code, 400 to 599.
	Code int
	// Enhanced is the enhanced status code; zero when the reply carries none.
	Enhanced Enhanced
	// Text is safe to show to anyone: it holds no path, password or configuration. It may have several lines.
	Text string
	// Cause is what went wrong underneath; for the log and the trace only.
	Cause error
	// Attrs are further facts for the log and the trace.
	Attrs []slog.Attr
}

// New returns an error with this reply. Text may span lines.
func New(code int, enhanced Enhanced, text string) *Error {
	return &Error{Code: code, Enhanced: enhanced, Text: text}
}

// Newf is New with a formatted text.
func Newf(code int, enhanced Enhanced, format string, args ...any) *Error {
	return New(code, enhanced, fmt.Sprintf(format, args...))
}

// Because returns a copy that also carries cause and facts for the log; the reply stays the same.
func (e *Error) Because(cause error, attrs ...slog.Attr) *Error {
	c := *e
	c.Cause = cause
	c.Attrs = append(append([]slog.Attr(nil), e.Attrs...), attrs...)
	return &c
}

// Saying gives e with another text.
func (e *Error) Saying(text string) *Error {
	c := *e
	c.Text = text
	return &c
}

// Error gives the reply, and the cause behind it for the log.
func (e *Error) Error() string {
	s := e.Reply()
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Temporary tells whether trying again later may succeed: any 4xx.
func (e *Error) Temporary() bool { return e.Code/100 == 4 }

// Reply gives the reply on one line: code, enhanced code, text; line breaks in the text become spaces.
func (e *Error) Reply() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d ", e.Code)
	if s := e.Enhanced.String(); s != "" {
		b.WriteString(s)
		b.WriteByte(' ')
	}
	b.WriteString(strings.Join(strings.FieldsFunc(e.Text, func(r rune) bool { return r == '\r' || r == '\n' }), " "))
	return b.String()
}

// From finds the *Error in err's chain. An error without one becomes 451 4.3.0, temporary, with err as its cause;
// nil stays nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return New(451, Enhanced{4, 3, 0}, "temporary local problem, please try again later").Because(err)
}
