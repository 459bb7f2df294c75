// Package smtpd is a door: the SMTP server (RFC 5321) for mail from other hosts and from users. It is a state machine over
// a connection; what is allowed it asks the policy. It must not know queues, users or files beyond what it is handed.
package smtpd

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"time"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/door"
	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
)

// Config is what a Server needs.
type Config struct {
	// Service is its name, for example "smtpd.25".
	Service  string
	Hostname string
	// Submission marks a service for users; ImplicitTLS one that begins with TLS.
	Submission, ImplicitTLS bool
	Settings                func() *settings.View
	TLS                     *tls.Config
	Policy                  policy.Policy
	Queue                   queue.Submitter
	Auth                    auth.Verifier
	Trace                   trace.Recorder
	Logger                  *slog.Logger
	Now                     func() time.Time
	PID                     int
	NewSessionID            func() string
}

// Server is one SMTP service.
type Server struct {
	config   Config
	listener *door.Listener
}

// New makes a Server.
func New(config Config) *Server {
	s := &Server{config: config}
	s.listener = door.New(door.Config{
		Service: config.Service, Settings: config.Settings, Logger: config.Logger, Handle: s.Handle,
		Refuse: replyTooMany.String(),
	})
	return s
}

// Serve accepts connections until Shutdown.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { return s.listener.Serve(ctx, l) }

// Shutdown stops accepting; idle sessions get 421, transactions may finish until ctx ends.
func (s *Server) Shutdown(ctx context.Context) { s.listener.Shutdown(ctx) }
