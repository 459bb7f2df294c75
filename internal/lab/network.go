// Package lab is an internet in one process: zones of names, a certificate authority, SMTP peers that behave as told, and
// a network that can be cut. Tests stand on it, in real time or in a testing/synctest bubble, whose clock is the lab's: a
// week of retries passes in a second there. It must not be imported by anything that runs in production but the command
// that lets an operator try things out.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// Network connects addresses such as "192.0.2.1:25" and "[2001:db8::1]:25" in memory. The zero value is a network in which
// nothing listens. Safe for concurrent use.
type Network struct {
	// Latency is how long it takes to connect; set it before the first Dial.
	Latency time.Duration

	mu     sync.Mutex
	hosts  map[string]func(net.Conn)
	silent map[string]bool
	open   map[*conn]bool
	dials  []string
	serves sync.WaitGroup
}

// Listen makes serve the server at an address; it is called in a goroutine of its own for each connection and must close
// it. nil takes the server away.
func (n *Network) Listen(address string, serve func(net.Conn)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hosts == nil {
		n.hosts, n.silent, n.open = map[string]func(net.Conn){}, map[string]bool{}, map[*conn]bool{}
	}
	n.hosts[address] = serve
}

// Silence makes an address swallow what is sent to it, as a firewall does: connecting takes until the caller's patience
// ends.
func (n *Network) Silence(address string) {
	n.Listen(address, nil)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.silent[address] = true
}

// Cut resets every connection that is open now.
func (n *Network) Cut() {
	n.mu.Lock()
	open := n.open
	n.open = map[*conn]bool{}
	n.mu.Unlock()
	for c := range open {
		c.reset()
	}
}

// Dials gives the addresses that were dialled, in order.
func (n *Network) Dials() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.dials...)
}

// Wait waits until every server has ended its connections.
func (n *Network) Wait() { n.serves.Wait() }

// DialContext connects to a server, as net.Dialer does: "connection refused" where nobody listens.
func (n *Network) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	n.mu.Lock()
	n.dials = append(n.dials, address)
	serve, silent := n.hosts[address], n.silent[address]
	n.mu.Unlock()
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("%s: %w", address, err)}
	}
	if silent {
		<-ctx.Done()
		return fail(ctx.Err())
	}
	if n.Latency > 0 {
		t := time.NewTimer(n.Latency)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return fail(ctx.Err())
		}
	}
	if serve == nil {
		return fail(syscall.ECONNREFUSED)
	}
	client, server := Pipe()
	a, b := client.(*conn), server.(*conn)
	b.local = tcpAddr(address)
	a.remote = b.local
	n.mu.Lock()
	n.open[a], n.open[b] = true, true
	n.mu.Unlock()
	n.serves.Go(func() {
		defer func() {
			n.mu.Lock()
			delete(n.open, a)
			delete(n.open, b)
			n.mu.Unlock()
		}()
		serve(server)
	})
	return client, nil
}

func tcpAddr(address string) net.Addr {
	if ap, err := netip.ParseAddrPort(address); err == nil {
		return net.TCPAddrFromAddrPort(ap)
	}
	return &net.TCPAddr{}
}

// Pipe gives the two ends of a connection in memory. Unlike net.Pipe's it has a buffer, as TCP has, so that a server may
// greet before the client listens; it knows deadlines, and waiting on it counts as waiting for testing/synctest.
func Pipe() (client, server net.Conn) {
	there, back := newStream(), newStream()
	one := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 254), Port: 40000}
	return &conn{in: back, out: there, local: one, remote: one}, &conn{in: there, out: back, local: one, remote: one}
}

type conn struct {
	in, out       *stream
	local, remote net.Addr
}

func (c *conn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *conn) Write(b []byte) (int, error) { return c.out.write(b) }
func (c *conn) LocalAddr() net.Addr         { return c.local }
func (c *conn) RemoteAddr() net.Addr        { return c.remote }

func (c *conn) Close() error {
	c.out.end(io.EOF, nil)
	c.in.end(net.ErrClosed, syscall.EPIPE)
	return nil
}

func (c *conn) reset() {
	c.out.end(syscall.ECONNRESET, syscall.ECONNRESET)
	c.in.end(syscall.ECONNRESET, syscall.ECONNRESET)
}

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}
func (c *conn) SetReadDeadline(t time.Time) error  { c.in.reader.set(c.in, t); return nil }
func (c *conn) SetWriteDeadline(t time.Time) error { c.out.writer.set(c.out, t); return nil }

// window is how much a stream holds before its writer waits.
const window = 64 << 10

// stream is one direction of a connection.
type stream struct {
	mu   sync.Mutex
	cond *sync.Cond
	data []byte
	// readErr is what the reader gets behind the data, writeErr what the writer gets at once.
	readErr, writeErr error
	reader, writer    deadline
}

// deadline wakes its stream when it has passed; under the stream's mu.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) set(s *stream, t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if d.at = t; !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.cond.Broadcast()
		})
	}
	s.cond.Broadcast()
}

func newStream() *stream {
	s := &stream{}
	s.cond = sync.NewCond(&s.mu)
	return s
}

func (s *stream) end(readErr, writeErr error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readErr == nil || readErr == syscall.ECONNRESET {
		s.readErr = readErr
	}
	if s.writeErr == nil {
		if s.writeErr = writeErr; writeErr == nil {
			s.writeErr = net.ErrClosed
		}
	}
	if readErr != io.EOF {
		s.data = nil
	}
	s.cond.Broadcast()
}

func (s *stream) read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.reader.passed():
			return 0, os.ErrDeadlineExceeded
		case len(s.data) > 0:
			n := copy(b, s.data)
			s.data = s.data[n:]
			s.cond.Broadcast()
			return n, nil
		case s.readErr != nil:
			return 0, s.readErr
		case len(b) == 0:
			return 0, nil
		}
		s.cond.Wait()
	}
}

func (s *stream) write(b []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.writer.passed():
			return n, os.ErrDeadlineExceeded
		case s.writeErr != nil:
			return n, s.writeErr
		case len(b) == 0:
			return n, nil
		case len(s.data) < window:
			m := min(len(b), window-len(s.data))
			s.data = append(s.data, b[:m]...)
			b = b[m:]
			n += m
			s.cond.Broadcast()
			continue
		}
		s.cond.Wait()
	}
}
