// Package authd is a door: it answers other mail programs of this host, Postfix, Exim and Dovecot's, who ask about passwords and
// users in Dovecot's protocol over Unix sockets. It must not know where passwords are kept.
package authd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
)

// Service is the name of this door among the services.
const Service = "auth"

// User is what Dovecot's delivery agents want to know of one.
type User struct {
	Name, Home string
	UID, GID   int
}

// ErrNoUser says that there is no such user.
var ErrNoUser = errors.New("no such user")

// Config is what a Server needs.
type Config struct {
	Settings func() *settings.View
	// Auth gives the Authority for a kind of service: "smtpd", "imapd", "pop3d", or "" for one that Indigo has not.
	Auth func(kind string) auth.Authority
	// Hostname is this system's name.
	Hostname string
	// User finds a user; ErrNoUser when there is none.
	User         func(ctx context.Context, name string) (User, error)
	Trace        trace.Recorder
	Logger       *slog.Logger
	Now          func() time.Time
	NewSessionID func() string
	PID          int
}

// Server is the door. Make one with New.
type Server struct {
	config Config
	// open counts listeners and connections.
	open sync.WaitGroup

	mu        sync.Mutex
	closing   bool
	listeners []net.Listener
	conns     map[net.Conn]context.CancelFunc
	made      uint
}

// New makes a Server.
func New(config Config) *Server {
	return &Server{config: config, conns: map[net.Conn]context.CancelFunc{}}
}

// ServePasswords answers at l who asks whether passwords are right, until Shutdown. The error is nil unless accepting failed for good.
func (s *Server) ServePasswords(ctx context.Context, l net.Listener) error {
	return s.serve(ctx, l, s.passwords)
}

// ServeUsers answers at l who asks for users' homes, as ServePasswords does.
func (s *Server) ServeUsers(ctx context.Context, l net.Listener) error {
	return s.serve(ctx, l, s.users)
}

func (s *Server) serve(ctx context.Context, l net.Listener, handle func(ctx context.Context, conn net.Conn, connection uint)) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return l.Close()
	}
	s.listeners = append(s.listeners, l)
	s.open.Add(1)
	s.mu.Unlock()
	defer s.open.Done()
	for {
		conn, err := l.Accept()
		if err != nil {
			s.mu.Lock()
			closing := s.closing
			s.mu.Unlock()
			var temporary interface{ Temporary() bool }
			switch {
			case closing:
				return nil
			case errors.As(err, &temporary) && temporary.Temporary():
				// Out of files: those that are open will end.
				pause := time.NewTimer(50 * time.Millisecond)
				select {
				case <-pause.C:
				case <-ctx.Done():
				}
				pause.Stop()
				continue
			}
			return fmt.Errorf("socket %s: %w", l.Addr(), err)
		}
		s.start(ctx, conn, handle)
	}
}

func (s *Server) start(ctx context.Context, conn net.Conn, handle func(ctx context.Context, conn net.Conn, connection uint)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	limit := settings.MaxDaemons.Get(s.config.Settings())
	if s.closing || len(s.conns) >= limit {
		// Who asks takes this for a fault that passes.
		conn.Close()
		if !s.closing {
			s.config.Logger.Warn(fmt.Sprintf("%s: a connection was refused: there are %d, the limit MAXDAEMONS", Service, limit))
		}
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	s.conns[conn] = cancel
	s.made++
	connection := s.made
	s.open.Go(func() {
		defer func() {
			if fault := recover(); fault != nil {
				s.config.Logger.Error(fmt.Sprintf("%s: a connection ended by a fault: %v\n%s", Service, fault, debug.Stack()))
			}
			conn.Close()
			cancel()
			s.mu.Lock()
			delete(s.conns, conn)
			s.mu.Unlock()
		}()
		handle(ctx, conn, connection)
	})
}

// Connections tells how many are open.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Shutdown accepts no more, lets what is being checked end until ctx ends, then closes what is left, and waits for all.
func (s *Server) Shutdown(ctx context.Context) {
	s.mu.Lock()
	s.closing = true
	for _, l := range s.listeners {
		l.Close()
	}
	for conn := range s.conns {
		// Reading ends at once; answers may still be written.
		_ = conn.SetReadDeadline(time.Unix(1, 0))
	}
	s.mu.Unlock()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		s.open.Wait()
	}()
	select {
	case <-finished:
		return
	case <-ctx.Done():
	}
	s.mu.Lock()
	for conn, cancel := range s.conns {
		cancel()
		conn.Close()
	}
	s.mu.Unlock()
	<-finished
}
