package smtpd

import (
	"bufio"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/tlsx"
)

// readBuffer is the size of a connection's reading buffer: the longest line, and more.
const readBuffer = 16 << 10

var (
	// errTimeout says that the client let the time pass.
	errTimeout = errors.New("timeout")
	// errClosing says that the server shuts down and that the session has no transaction to finish.
	errClosing = errors.New("shutting down")
)

// link is the session's connection as its reader sees it. It sends the pending replies exactly when the session would
// otherwise block, so that the replies to a pipelined group leave in one write, and it sets the deadlines then and only
// then.
type link struct {
	out *bufio.Writer
	// timeout bounds each wait; until, if set, bounds all of them.
	timeout time.Duration
	until   time.Time
	// busy is set within a transaction, which a shutdown waits for.
	busy bool

	// mu guards what interrupt touches from another goroutine.
	mu               sync.Mutex
	conn             net.Conn
	waiting, closing bool
}

// Read flushes the replies and waits for bytes from the client.
func (l *link) Read(p []byte) (int, error) {
	deadline := time.Now().Add(l.timeout)
	if !l.until.IsZero() && l.until.Before(deadline) {
		deadline = l.until
	}
	l.mu.Lock()
	conn := l.conn
	if l.closing && !l.busy {
		l.mu.Unlock()
		return 0, errClosing
	}
	l.waiting = !l.busy
	var err error
	if l.out.Buffered() > 0 {
		err = conn.SetDeadline(deadline)
	} else {
		err = conn.SetReadDeadline(deadline)
	}
	l.mu.Unlock()

	n := 0
	if err == nil {
		if err = l.out.Flush(); err == nil {
			n, err = conn.Read(p)
		}
	}
	l.mu.Lock()
	l.waiting = false
	closing := l.closing && !l.busy
	l.mu.Unlock()
	if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		err = errTimeout
		if closing {
			err = errClosing
		}
	}
	return n, err
}

// interrupt wakes a session that waits outside a transaction, and lets it wait no more.
func (l *link) interrupt() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closing = true
	if l.waiting && l.conn != nil {
		// A time long past ends a read that is under way; writing stays possible.
		_ = l.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// setConn changes to conn, inside TLS.
func (l *link) setConn(conn net.Conn) {
	l.mu.Lock()
	l.conn = conn
	l.mu.Unlock()
	l.out.Reset(conn)
}

// flush sends what is pending.
func (l *link) flush() error {
	_ = l.conn.SetWriteDeadline(time.Now().Add(l.timeout))
	return l.out.Flush()
}

// leaving tells whether a shutdown wants the session to end.
func (l *link) leaving() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closing
}

// farewell sends what is pending, for a few seconds at most: the session is over.
func (l *link) farewell() {
	if l.out.Buffered() > 0 {
		// An error means that the client is gone, and that is where the session goes too.
		_ = l.conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
		_ = l.out.Flush()
	}
	tlsx.Goodbye(l.conn)
}
