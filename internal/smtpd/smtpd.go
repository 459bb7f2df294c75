// Package smtpd is a door: the SMTP server (RFC 5321) for mail from other hosts and, as a submission service (RFC 6409),
// from users. A session is a state machine over one connection; each decision is asked of the policy, recorded in the
// trace and turned into a reply in one place. It must not know how a queue stores a message, who the users are, or why
// the policy decides as it does.
package smtpd

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/door"
	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
	"github.com/indigomail/indigo/internal/turn"
	"github.com/indigomail/indigo/internal/wire"
)

// Config is what a Server stands on. Policy and Queue are required.
type Config struct {
	// Service is the service's name, for example "smtpd.25".
	Service string
	// Hostname is the name in the greeting, in replies and in Received fields.
	Hostname string
	// Submission marks a service for users: it adds a missing Date and Message-ID (RFC 6409 section 8).
	Submission bool
	// ODMR marks a service for hosts that fetch their mail by ATRN (RFC 2645), and for nothing else; it needs Turn and Auth.
	ODMR bool
	// ImplicitTLS makes each connection begin with a TLS handshake (RFC 8314); it needs TLS.
	ImplicitTLS bool
	// Settings gives the view in force; it is asked anew for each connection and each message, never within a message.
	// Nil means the defaults.
	Settings func() *settings.View
	// TLS is nil when there is no certificate; STARTTLS is then not offered.
	TLS    *tls.Config
	Policy policy.Policy
	Queue  queue.Submitter
	// Through, when set, gives the way to Queue that the settings of a session ask for, for example through a program.
	Through func(*settings.View) queue.Submitter
	// HostName gives the host name of a client that leads back to its address, "" when there is none; nil looks up nothing.
	HostName func(ctx context.Context, ip netip.Addr) string
	// Auth is nil when nobody can log in; AUTH is then not offered.
	Auth auth.Authority
	// Turn hands over mail that waits for its host; without it there is neither ETRN nor ATRN nor AUTOTURN.
	Turn   *turn.Station
	Trace  trace.Recorder
	Logger *slog.Logger
	// Now is the clock for what the server writes down; nil means time.Now. Time limits of connections are those of the
	// operating system's clock in any case.
	Now func() time.Time
	// PID is named in the queue's log line "info msg".
	PID int
	// NewSessionID gives a name for a connection that is unique in the trace.
	NewSessionID func() string
}

// Server serves SMTP on listeners. Make one with New. It is safe for concurrent use.
type Server struct {
	config Config

	mu        sync.Mutex
	closing   bool
	listeners map[net.Listener]struct{}
	sessions  map[*session]struct{}
	perIP     map[netip.Addr]int
	rates     *door.Rates
	// serving counts the running calls of Serve; each waits for its own sessions.
	serving sync.WaitGroup

	// Buffers of closed connections and finished messages, for the next ones.
	buffers sync.Pool // of *buffers
	sinks   sync.Pool // of *sink
}

// buffers are a connection's reading and writing buffer.
type buffers struct {
	in  *wire.Reader
	out *bufio.Writer
}

// New returns a Server.
func New(config Config) *Server {
	if config.Settings == nil {
		config.Settings = func() *settings.View { return nil }
	}
	if config.Trace == nil {
		config.Trace = trace.Discard
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.NewSessionID == nil {
		config.NewSessionID = func() string { return "" }
	}
	s := &Server{
		config:    config,
		listeners: map[net.Listener]struct{}{},
		sessions:  map[*session]struct{}{},
		perIP:     map[netip.Addr]int{},
		rates:     door.NewRates(),
	}
	s.buffers.New = func() any {
		return &buffers{wire.NewReader(nil, readBuffer), bufio.NewWriterSize(io.Discard, 4<<10)}
	}
	s.sinks.New = func() any { return &sink{} }
	return s
}

// Serve accepts connections from l until Shutdown or until ctx ends, and returns when the last of its sessions has ended.
// The end of ctx cuts every connection; Shutdown is the gentle way. The error is nil unless accepting failed for good.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		l.Close()
		return nil
	}
	s.listeners[l] = struct{}{}
	s.serving.Add(1)
	s.mu.Unlock()
	defer s.serving.Done()

	stop := context.AfterFunc(ctx, s.cut)
	defer stop()
	var open sync.WaitGroup
	err := s.accept(ctx, l, &open)
	s.mu.Lock()
	delete(s.listeners, l)
	if s.closing {
		err = nil
	}
	s.mu.Unlock()
	l.Close()
	if err != nil {
		s.config.Logger.Error(s.config.Service+": no connections are accepted any more", "error", err)
	}
	open.Wait()
	return err
}

// Handle serves one connection that came from elsewhere than a listener, and returns when its session has ended. The limits
// on connections count it. The end of ctx ends what the session waits for behind the door, not its waiting for the client.
func (s *Server) Handle(ctx context.Context, conn net.Conn) {
	var open sync.WaitGroup
	s.start(ctx, conn, &open)
	open.Wait()
}

// Shutdown accepts no more connections. Sessions without a transaction get 421 4.3.2 at once, the others when theirs is
// done; those that are still open when ctx ends are cut. It returns when all have ended.
func (s *Server) Shutdown(ctx context.Context) {
	s.mu.Lock()
	s.closing = true
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.sessions {
		c.link.interrupt()
	}
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, s.cut)
	defer stop()
	s.serving.Wait()
}

// Connections tells how many are open.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// cut closes everything.
func (s *Server) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing = true
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.sessions {
		c.cancel()
		c.raw.Close()
	}
}
