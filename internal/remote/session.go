package remote

import (
	"context"
	"net"
	"time"

	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
)

// Session is one connection to a host that asked for its mail, over which messages go one after the other: to a port of that host (RFC 1985), or
// back over the connection by which it asked (RFC 2645). It is for one goroutine. Close it.
type Session struct{ c *client }

// Open connects to an address, host and port, without asking the DNS, static routes or what is known of dead hosts; TLS is used where it is offered.
func (d *Deliverer) Open(ctx context.Context, address string) (*Session, *mailerr.Error) {
	w := way{view: d.config.Settings()}
	if err := d.dress(&w); err != nil {
		return nil, misconfigured(err)
	}
	host, _, _ := net.SplitHostPort(address)
	c, _, e := d.connect(ctx, target{host, address}, w)
	if e != nil {
		return nil, e
	}
	return &Session{c}, nil
}

// Reverse begins the dialogue on a connection whose other end has just become the server: it waits for its greeting. TLS that is up stays up; none
// is begun, for what is behind a client such as fetchmail passes lines on and reads them.
func (d *Deliverer) Reverse(ctx context.Context, conn net.Conn) (*Session, *mailerr.Error) {
	w := way{view: d.config.Settings()}
	if err := d.dress(&w); err != nil {
		return nil, misconfigured(err)
	}
	address := conn.RemoteAddr().String()
	s := &Session{newClient(conn, target{"client", address}, settings.TimeoutRemote.Get(w.view), 4<<10)}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	s.c.conn.SetWriteDeadline(time.Now().Add(s.c.timeout))
	return s, s.c.hello(w.helo)
}

// Send makes one transaction and gives a result for each recipient.
func (s *Session) Send(ctx context.Context, job *queue.Delivery) []queue.Result {
	results, _ := s.c.send(ctx, job)
	return results
}

// Usable tells whether another message can be sent.
func (s *Session) Usable() bool { return s.c.usable }

// Dialogue gives what was said before the first message, or since the beginning of the last.
func (s *Session) Dialogue() []string { return s.c.dialogue }

// Close says QUIT, waits a moment for the reply, and closes the connection.
func (s *Session) Close() {
	if s.c.usable {
		s.c.conn.SetWriteDeadline(time.Now().Add(byeTime))
		s.c.put("QUIT", "QUIT")
		_, _ = s.c.get(byeTime) // whatever it says, it is over
	}
	s.c.conn.Close()
}

// byeTime is how long a host may take to say goodbye.
const byeTime = 5 * time.Second
