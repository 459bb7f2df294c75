package smtpd

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/tlsx"
)

// Rehearse runs a session as a client at this address, already logged in as user unless that is "", and with this certificate unless
// that is nil, that says these lines: the same code as for a real one, so that what the server's Trace records is what would be recorded. The server
// must be made for it: without ImplicitTLS, with a Trace of its own, and lines must not come to DATA. Nothing is sent to
// anybody and nothing is queued.
func (s *Server) Rehearse(ctx context.Context, client netip.Addr, user string, certificate *tlsx.Client, lines ...string) {
	conn := &rehearsal{Reader: strings.NewReader(strings.Join(append(lines, "QUIT", ""), "\r\n")), client: client}
	c := &session{server: s, raw: conn, rehearsed: true}
	c.Session = policy.Session{
		ID: s.config.NewSessionID(), Service: s.config.Service, Submission: s.config.Submission,
		Client: netip.AddrPortFrom(client.Unmap(), 0), Settings: s.config.Settings(), User: user, ClientCertificate: certificate,
	}
	c.begin()
	c.ctx, c.cancel = context.WithCancel(ctx)
	defer c.cancel()
	c.link.conn = conn
	b := s.buffers.Get().(*buffers)
	defer s.buffers.Put(b)
	c.serve(b)
}

// rehearsal is a connection that has been heard out before it began.
type rehearsal struct {
	io.Reader
	client netip.Addr
}

func (*rehearsal) Write(b []byte) (int, error) { return len(b), nil }
func (*rehearsal) Close() error                { return nil }
func (r *rehearsal) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(r.client, 0))
}
func (*rehearsal) LocalAddr() net.Addr                { return &net.TCPAddr{} }
func (*rehearsal) SetDeadline(time.Time) error        { return nil }
func (*rehearsal) SetReadDeadline(t time.Time) error  { return nil }
func (*rehearsal) SetWriteDeadline(t time.Time) error { return nil }
