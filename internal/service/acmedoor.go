package service

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/acme"
	"github.com/indigomail/indigo/internal/settings"
)

func (h *House) newACME() *acme.Manager {
	return acme.New(acme.Config{Dir: filepath.Join(h.config.Data, "certs", "acme"), Logger: h.serviceLogger("acme")})
}

// manageACME makes the certificates those of ACME_HOSTS, by the doors that are up.
func (h *House) manageACME(context.Context) {
	all := h.view("all")
	order := acme.Order{
		Hosts: settings.ACMEHosts.Get(all), Directory: settings.ACMEDirectory.Get(all), Email: settings.ACMEEmail.Get(all), Roots: settings.ACMERoots.Get(all),
	}
	if order.Roots != "" && !filepath.IsAbs(order.Roots) {
		order.Roots = filepath.Join(h.config.Data, order.Roots)
	}
	for name, address := range h.Addresses() {
		if !strings.HasPrefix(name, "acme.") {
			continue
		}
		if spec, err := newDoorSpec(name, h.view(name)); err == nil && spec.tls {
			order.ALPNAddress = address
		} else {
			order.HTTPAddress = address
		}
	}
	if err := h.acme.Manage(order); err != nil {
		h.log.Error(err.Error())
	}
}

// acmeDoor answers the challenges of an ACME authority: HTTP-01, or on port 443 TLS-ALPN-01.
type acmeDoor struct {
	server *http.Server
	tls    bool
}

func (h *House) newACMEDoor(tls bool) server {
	return &acmeDoor{&http.Server{
		Handler: h.acme, TLSConfig: h.acme.ChallengeConfig(), ReadHeaderTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 1 << 14,
		// Strangers try the port; that is nobody's fault.
		ErrorLog: slog.NewLogLogger(h.serviceLogger("acme").Handler(), slog.LevelDebug),
	}, tls}
}

// Serve answers until Shutdown.
func (d *acmeDoor) Serve(_ context.Context, l net.Listener) error {
	var err error
	if d.tls {
		err = d.server.ServeTLS(l, "", "")
	} else {
		err = d.server.Serve(l)
	}
	if err != http.ErrServerClosed {
		return err
	}
	return nil
}

// Shutdown waits for answers under way until ctx ends.
func (d *acmeDoor) Shutdown(ctx context.Context) {
	if d.server.Shutdown(ctx) != nil {
		d.server.Close()
	}
}
