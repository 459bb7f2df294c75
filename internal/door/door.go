// Package door is knowledge: how a protocol server accepts connections: bounded in number, each fenced by a recover, all
// waited for. It must not know any protocol.
package door

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/settings"
)

// Config says how a Listener works.
type Config struct {
	Service  string
	Settings func() *settings.View
	Logger   *slog.Logger
	// Handle serves one connection until its end; ctx ends when the door must be left. It need not close conn.
	Handle func(ctx context.Context, conn net.Conn)
	// Refuse is the line sent to a connection beyond the limits.
	Refuse string
}

// Listener accepts connections for one service.
type Listener struct {
	config Config
	mu     sync.Mutex
	// conns holds the open connections with a function that asks each to end.
	conns    map[net.Conn]context.CancelFunc
	perIP    map[netip.Addr]int
	rates    *Rates
	listener net.Listener
	closing  bool
	open     sync.WaitGroup
}

// New makes a Listener.
func New(config Config) *Listener {
	return &Listener{config: config, conns: map[net.Conn]context.CancelFunc{}, perIP: map[netip.Addr]int{}, rates: NewRates()}
}

// Serve accepts until Shutdown. It returns an error only if accepting failed for good.
func (d *Listener) Serve(ctx context.Context, l net.Listener) error {
	d.mu.Lock()
	d.listener = l
	closing := d.closing
	d.mu.Unlock()
	if closing {
		l.Close()
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			d.mu.Lock()
			closing := d.closing
			d.mu.Unlock()
			if closing {
				return nil
			}
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() {
				// Out of files: those that are open will end.
				pause := time.NewTimer(50 * time.Millisecond)
				select {
				case <-pause.C:
				case <-ctx.Done():
				}
				pause.Stop()
				continue
			}
			return err
		}
		d.start(ctx, conn)
	}
}

func (d *Listener) start(ctx context.Context, conn net.Conn) {
	view := View(d.config.Settings(), conn)
	ip := Peer(conn).Addr()
	ctx, cancel := context.WithCancel(ctx)
	d.mu.Lock()
	var limit *settings.Setting
	switch {
	case len(d.conns) >= settings.MaxDaemons.Get(view):
		limit = settings.MaxDaemons.Setting
	case d.perIP[ip] >= settings.MaxPerIP.Get(view):
		limit = settings.MaxPerIP.Setting
	case !d.rates.Allow(ip, settings.ConnectionRate.Get(view), time.Now()):
		limit = settings.ConnectionRate.Setting
	}
	if d.closing || limit != nil {
		d.mu.Unlock()
		cancel()
		conn.SetWriteDeadline(time.Now().Add(time.Second))
		conn.Write([]byte(d.config.Refuse))
		conn.Close()
		if limit != nil {
			d.config.Logger.Warn(fmt.Sprintf("%s: connection from %s refused: limit %s (%s)", d.config.Service, ip, limit.Name, view.Source(limit)))
		}
		return
	}
	d.conns[conn] = cancel
	d.perIP[ip]++
	d.mu.Unlock()
	d.open.Go(func() {
		defer func() {
			if fault := recover(); fault != nil {
				d.config.Logger.Error(fmt.Sprintf("%s: a session with %s ended by a fault: %v\n%s", d.config.Service, ip, fault, debug.Stack()))
			}
			conn.Close()
			cancel()
			d.mu.Lock()
			delete(d.conns, conn)
			if d.perIP[ip]--; d.perIP[ip] == 0 {
				delete(d.perIP, ip)
			}
			d.mu.Unlock()
		}()
		if d.denied(d.config.Settings(), ip) {
			return
		}
		if limit := settings.SessionTime.Get(view); limit > 0 {
			end := time.AfterFunc(limit, func() { conn.Close() })
			defer end.Stop()
		}
		d.config.Handle(ctx, conn)
	})
}

// denied tells whether the tcp rules send a client away, which gets no word then, as with tcpserver.
func (d *Listener) denied(view *settings.View, ip netip.Addr) bool {
	_, verdict, err := view.ForClient(ip, "")
	if err != nil {
		d.config.Logger.Error(d.config.Service + ": tcp rules: " + err.Error())
		return true
	}
	if verdict.Deny {
		d.config.Logger.Info(fmt.Sprintf("%s: connection from %s denied by rule %q of %s", d.config.Service, ip, verdict.Rule, verdict.Where))
	}
	return verdict.Deny
}

// Connections tells how many are open.
func (d *Listener) Connections() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.conns)
}

// Rates counts the new connections of each address in the running minute. It is safe for concurrent use.
type Rates struct {
	mu     sync.Mutex
	minute int64
	counts map[netip.Addr]int
}

// NewRates makes a Rates.
func NewRates() *Rates { return &Rates{counts: map[netip.Addr]int{}} }

// Allow counts a connection and tells whether it is within limit a minute; 0 means no limit. IPv6 counts by networks of 64
// bits, since one client has as many addresses as it likes in them.
func (r *Rates) Allow(ip netip.Addr, limit int, now time.Time) bool {
	if limit <= 0 {
		return true
	}
	if ip.Is6() && !ip.Is4In6() {
		if p, err := ip.WithZone("").Prefix(64); err == nil {
			ip = p.Addr()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if minute := now.Unix() / 60; minute != r.minute {
		r.minute = minute
		clear(r.counts)
	}
	// The map is bounded by what one minute brings; refused connections count too, so that hammering does not pay.
	r.counts[ip]++
	return r.counts[ip] <= limit
}

// Shutdown accepts no more, asks every session to end, waits for them until ctx ends, and then closes what is left.
func (d *Listener) Shutdown(ctx context.Context) {
	d.mu.Lock()
	d.closing = true
	if d.listener != nil {
		d.listener.Close()
	}
	for _, cancel := range d.conns {
		cancel()
	}
	d.mu.Unlock()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		d.open.Wait()
	}()
	select {
	case <-finished:
		return
	case <-ctx.Done():
	}
	d.mu.Lock()
	for conn := range d.conns {
		conn.Close()
	}
	d.mu.Unlock()
	<-finished
}

// Peer gives the address of a connection's other end; invalid when it has none.
func Peer(conn net.Conn) netip.AddrPort {
	a, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Local gives the address of this host that a connection leads to; invalid when it has none.
func Local(conn net.Conn) netip.Addr {
	local := conn.LocalAddr()
	if local == nil {
		return netip.Addr{}
	}
	a, err := netip.ParseAddrPort(local.String())
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap()
}

// View gives v with the tcp rules' settings for a connection's client over it. Rules that are damaged change nothing: the
// Listener has turned the client away for them.
func View(v *settings.View, conn net.Conn) *settings.View {
	over, _, err := v.ForClient(Peer(conn).Addr(), "")
	if err != nil {
		return v
	}
	return over
}

// Host gives the address of a network address without its port.
func Host(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host
}
