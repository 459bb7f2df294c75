package smtpd

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
)

// accept starts a session for each connection until l fails.
func (s *Server) accept(ctx context.Context, l net.Listener, open *sync.WaitGroup) error {
	pause := 5 * time.Millisecond
	for {
		conn, err := l.Accept()
		if err == nil {
			pause = 5 * time.Millisecond
			s.start(ctx, conn, open)
			continue
		}
		var temporary interface{ Temporary() bool }
		if !errors.As(err, &temporary) || !temporary.Temporary() {
			return err
		}
		// Out of file descriptors, most likely: sessions that end give some back.
		s.config.Logger.Warn(s.config.Service+": cannot accept a connection now", "error", err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		pause = min(2*pause, time.Second)
	}
}

// start runs a session in a goroutine of open, unless the limits of the service refuse the connection.
func (s *Server) start(ctx context.Context, conn net.Conn, open *sync.WaitGroup) {
	view := s.config.Settings()
	c := &session{server: s, raw: conn}
	c.Session = policy.Session{
		ID: s.config.NewSessionID(), Service: s.config.Service, Submission: s.config.Submission,
		Client: addrPort(conn.RemoteAddr()), Local: addrPort(conn.LocalAddr()), Settings: view,
	}
	c.begin()
	ip := c.Client.Addr()
	// What tcp rules set for the address alone holds for the limits too.
	if own, _, err := view.ForClient(ip, ""); err == nil {
		view = own
	}
	maxDaemons, maxPerIP := settings.MaxDaemons.Get(view), settings.MaxPerIP.Get(view)

	s.mu.Lock()
	var refusal *reply
	var limit *settings.Setting
	switch {
	case s.closing:
		refusal = replyShutdown
	case len(s.sessions) >= maxDaemons:
		refusal, limit = replyMaxDaemons, settings.MaxDaemons.Setting
	case s.perIP[ip] >= maxPerIP:
		refusal, limit = replyMaxPerIP, settings.MaxPerIP.Setting
	case !s.rates.Allow(ip, settings.ConnectionRate.Get(view), s.config.Now()):
		refusal, limit = replyMaxPerIP, settings.ConnectionRate.Setting
	default:
		c.ctx, c.cancel = context.WithCancel(ctx)
		c.link.conn = conn
		s.sessions[c] = struct{}{}
		s.perIP[ip]++
	}
	s.mu.Unlock()

	if refusal != nil {
		v := policy.Verdict{Action: policy.Defer, Check: "connections"}
		if limit != nil {
			v.Setting, v.Layer = limit.Name, view.Source(limit).String()
		}
		r := c.decide(trace.Event{Kind: "connect"}, v, refusal)
		// The socket's buffer is empty, so that this does not block; what cannot be written is not worth waiting for.
		// Inside TLS the client could not read it.
		if !s.config.ImplicitTLS {
			_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = conn.Write([]byte(r.wire))
		}
		conn.Close()
		return
	}
	open.Go(func() { s.run(c, ip) })
}

// run is a session's goroutine: its fence, and what is left to do behind it.
func (s *Server) run(c *session, ip netip.Addr) {
	b := s.buffers.Get().(*buffers)
	if limit := settings.SessionTime.Get(c.Settings); limit > 0 {
		// The client hears 421 if it waits; what it is in the middle of is cut a little later.
		gentle := time.AfterFunc(limit, c.link.interrupt)
		hard := time.AfterFunc(limit+10*time.Second, func() { c.raw.Close() })
		defer func() {
			gentle.Stop()
			hard.Stop()
		}()
	}
	defer func() {
		if fault := recover(); fault != nil {
			s.config.Logger.Error(s.config.Service+": a session ended by a fault in the server",
				"session", c.ID, "client", c.client, "fault", fault, "stack", string(debug.Stack()))
			c.close("fault")
		}
		c.cancel()
		c.raw.Close()
		s.mu.Lock()
		delete(s.sessions, c)
		if s.perIP[ip]--; s.perIP[ip] <= 0 {
			delete(s.perIP, ip)
		}
		s.mu.Unlock()
		// The buffers must not keep the connection alive.
		b.in.Reset(nil)
		b.out.Reset(nil)
		s.buffers.Put(b)
	}()
	c.serve(b)
}

// addrPort gives a's address; not a valid one when a is none of TCP.
func addrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		p := tcp.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}
