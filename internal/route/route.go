// Package route is a station: it says of a recipient whether it is delivered here or onward. It must not know how.
package route

import (
	"context"
	"errors"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
)

// Config is what a Router asks.
type Config struct {
	Directory interface {
		Domain(ctx context.Context, name string) (directory.Domain, error)
	}
	Settings func() *settings.View
}

// Router implements queue.Router over the directory: its domains are local, and so is this host's own name.
type Router struct{ config Config }

// New makes a Router.
func New(config Config) *Router { return &Router{config} }

// Route says where rcpt goes. A directory that cannot answer is a temporary error.
func (r *Router) Route(ctx context.Context, rcpt addr.Address) (queue.Destination, error) {
	host := strings.ToLower(rcpt.Domain)
	if host == "" || host == strings.ToLower(settings.Me.Get(r.config.Settings())) {
		return queue.Destination{Channel: queue.Local}, nil
	}
	_, err := r.config.Directory.Domain(ctx, host)
	switch {
	case err == nil:
		return queue.Destination{Channel: queue.Local}, nil
	case errors.Is(err, directory.ErrNoDomain):
		return queue.Destination{Channel: queue.Remote, Host: host}, nil
	}
	return queue.Destination{}, mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "the directory cannot be asked now (#4.3.0)").Because(err)
}
