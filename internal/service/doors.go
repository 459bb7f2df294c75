package service

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/indigomail/indigo/internal/imapd"
	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/pop3d"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/smtpd"
	"github.com/indigomail/indigo/internal/tlsx"
)

// FreePorts, as port offset, lets the kernel choose every port.
const FreePorts = -1

// startDoors starts every service that is wanted, and waits until each serves or has failed once.
func (h *House) startDoors(ctx context.Context) {
	h.rules = policy.New(policy.Config{Directory: h.directory, Lists: h.lists, Relays: h.logins.Relays})
	for _, u := range h.units {
		h.serving.Go(func() { u.run(ctx) })
	}
	for _, u := range h.units {
		u.mu.Lock()
		for u.wanted && !u.up && u.failures == 0 {
			u.settled.Wait()
		}
		u.mu.Unlock()
	}
	h.manageACME(ctx)
}

// newDoor makes the server of a service.
func (h *House) newDoor(spec doorSpec, l net.Listener) (server, error) {
	view := func() *settings.View { return h.view(spec.name) }
	me := settings.Me.Get(h.view("all"))
	logger := h.serviceLogger(spec.name)
	store, err := h.store(spec.name)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	tlsConfig := store.ServerConfig(func() tlsx.Options { return tlsOptions(h.config.Data, view()) })
	logins := authority{h.accounts, sources{h, spec.kind, view}}
	switch spec.kind {
	case "smtpd":
		return smtpd.New(smtpd.Config{
			Service: spec.name, Hostname: me, Submission: spec.submission, ODMR: spec.odmr, Turn: h.turn, ImplicitTLS: spec.tls, Settings: view,
			TLS: tlsConfig, Policy: h.rules, Queue: h.queue, HostName: h.hostName,
			Through: func(v *settings.View) queue.Submitter { return throughProgram{h, v} }, Auth: logins, Trace: h.recorder(), Logger: logger,
			Now: time.Now, PID: os.Getpid(), NewSessionID: newSessionID,
		}), nil
	case "pop3d":
		return pop3d.New(pop3d.Config{
			Service: spec.name, Hostname: me, ImplicitTLS: spec.tls, Settings: view, TLS: tlsConfig, Auth: logins,
			Trace: h.recorder(), Logger: logger, Now: time.Now, NewSessionID: newSessionID,
		}), nil
	case "imapd":
		return imapd.New(imapd.Config{
			Service: spec.name, Hostname: me, ImplicitTLS: spec.tls, Settings: view, TLS: tlsConfig, Auth: logins,
			Trace: h.recorder(), Logger: logger, Now: time.Now, NewSessionID: newSessionID,
		}), nil
	case "metrics":
		return h.newMetricsDoor(), nil
	case "acme":
		return h.newACMEDoor(spec.tls), nil
	case "udplogger":
		return h.newUDPLogger(spec.name, view, l.(packetListener).PacketConn, logger)
	}
	return nil, fmt.Errorf("service %s: no kind of service %q", spec.name, spec.kind)
}

// serviceLogger gives the log of a service: a directory of its own with LOG_DIR, or else the process's; and only what
// LOG_LEVEL of the service lets through. The same logger comes back each time.
func (h *House) serviceLogger(name string) *slog.Logger {
	if h.config.Log == nil {
		return h.log
	}
	h.unitsMu.Lock()
	defer h.unitsMu.Unlock()
	if l := h.loggers[name]; l != nil {
		return l
	}
	v := h.view(name)
	var dir *Multilog
	if path := settings.LogDir.Get(v); path != "" {
		if !filepath.IsAbs(path) {
			path = filepath.Join(h.config.Data, path)
		}
		var err error
		dir, err = OpenMultilog(filepath.Join(path, name), int64(settings.LogSize.Get(v)), settings.LogNumber.Get(v), time.Now)
		if err != nil {
			h.log.Error("service " + name + " logs here and not to its directory: " + err.Error())
			dir = nil
		}
	}
	logger := h.config.Log.Service(name, dir, settings.LogTime.Get(v) == "rfc3339", func() slog.Level { return level(h.view(name)) })
	if h.loggers == nil {
		h.loggers = map[string]*slog.Logger{}
	}
	h.loggers[name] = logger
	return logger
}

// level gives LOG_LEVEL.
func level(v *settings.View) slog.Level {
	switch settings.LogLevel.Get(v) {
	case "debug":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	case "error":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// Addresses gives the address of each service that is up.
func (h *House) Addresses() map[string]string {
	addresses := map[string]string{}
	h.unitsMu.Lock()
	defer h.unitsMu.Unlock()
	for _, u := range h.units {
		if s := u.state(); s.Up {
			addresses[s.Name] = s.Address
		}
	}
	return addresses
}

// hostNameTime bounds the look-up of a client's host name: the client waits for its greeting.
const hostNameTime = 5 * time.Second

// hostName gives the name of a client that leads back to its address, "" when there is none.
func (h *House) hostName(ctx context.Context, ip netip.Addr) string {
	ctx, cancel := context.WithTimeout(ctx, hostNameTime)
	defer cancel()
	ip = ip.Unmap().WithZone("")
	names, err := h.resolver.PTR(ctx, ip)
	if err != nil {
		return ""
	}
	// Some addresses have hundreds of names; one that is true is enough.
	for _, name := range names[:min(len(names), 5)] {
		addresses, _, err := h.resolver.Addrs(ctx, name)
		if err == nil && slices.ContainsFunc(addresses, func(a netip.Addr) bool { return a.Unmap() == ip }) {
			return name
		}
	}
	return ""
}
