package service

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/indigomail/indigo/internal/imapd"
	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/pop3d"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/smtpd"
	"github.com/indigomail/indigo/internal/tlsx"
)

// doorSpec is one listening service.
type doorSpec struct {
	name string
	port int
	// tls is implicit TLS; submission is SMTP for users.
	tls, submission bool
}

// doorSpecs are the services that a data directory has. A file services/NAME/down keeps one from starting.
func doorSpecs() []doorSpec {
	return []doorSpec{
		{name: "smtpd.25", port: 25},
		{name: "smtpd.587", port: 587, submission: true},
		{name: "smtpd.465", port: 465, submission: true, tls: true},
		{name: "pop3d.110", port: 110},
		{name: "pop3d.995", port: 995, tls: true},
		{name: "imapd.143", port: 143},
		{name: "imapd.993", port: 993, tls: true},
	}
}

// FreePorts, as port offset, lets the kernel choose every port.
const FreePorts = -1

// bind listens on every port and gives all that failed.
func (h *House) bind() []error {
	var faults []error
	all := h.view("all")
	host, offset := h.config.Listen, settings.PortOffset.Get(all)
	if host == "" {
		host = settings.Listen.Get(all)
	}
	if h.config.PortOffset != nil {
		offset = *h.config.PortOffset
	}
	// Keep-alives cost four system calls a connection, and every session has a time limit of its own.
	listen := net.ListenConfig{KeepAlive: -1}
	for _, spec := range doorSpecs() {
		if _, err := os.Stat(filepath.Join(h.config.Data, "services", spec.name, "down")); err == nil {
			h.log.Info("service " + spec.name + " is down by its file services/" + spec.name + "/down")
			continue
		}
		port := spec.port + offset
		if offset == FreePorts {
			port = 0
		}
		l, err := listen.Listen(context.Background(), "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			faults = append(faults, fmt.Errorf("service %s: %w (try another --port-offset or --listen)", spec.name, err))
			continue
		}
		h.doors = append(h.doors, &runningDoor{spec: spec, listener: l})
	}
	return faults
}

func (h *House) startDoors(ctx context.Context) {
	tlsConfig := tlsx.ServerConfig(h.certificates)
	rules := policy.New(policy.Config{Directory: h.directory})
	me := settings.Me.Get(h.view("all"))
	for _, d := range h.doors {
		d.server = h.newDoor(d.spec, me, tlsConfig, rules)
		h.serving.Go(func() {
			// Connections outlive ctx until Shutdown, so that a drain is possible.
			if err := d.server.Serve(context.WithoutCancel(ctx), d.listener); err != nil {
				h.log.Error("service " + d.spec.name + " stopped: " + err.Error())
			}
		})
	}
}

func (h *House) newDoor(spec doorSpec, me string, tlsConfig *tls.Config, rules policy.Policy) door {
	view := func() *settings.View { return h.view(spec.name) }
	switch spec.name[:4] {
	case "smtp":
		return smtpd.New(smtpd.Config{
			Service: spec.name, Hostname: me, Submission: spec.submission, ImplicitTLS: spec.tls, Settings: view,
			TLS: tlsConfig, Policy: rules, Queue: throughProgram{h, view}, Auth: h.verifier, Trace: h.trace, Logger: h.log,
			Now: time.Now, PID: os.Getpid(), NewSessionID: newSessionID,
		})
	case "pop3":
		return pop3d.New(pop3d.Config{
			Service: spec.name, Hostname: me, ImplicitTLS: spec.tls, Settings: view, TLS: tlsConfig, Auth: h.verifier,
			Trace: h.trace, Logger: h.log, Now: time.Now, NewSessionID: newSessionID,
		})
	default:
		return imapd.New(imapd.Config{
			Service: spec.name, Hostname: me, ImplicitTLS: spec.tls, Settings: view, TLS: tlsConfig, Auth: h.verifier,
			Trace: h.trace, Logger: h.log, Now: time.Now, NewSessionID: newSessionID,
		})
	}
}

// Addresses gives each service's address.
func (h *House) Addresses() map[string]string {
	addresses := make(map[string]string, len(h.doors))
	for _, d := range h.doors {
		addresses[d.spec.name] = d.listener.Addr().String()
	}
	return addresses
}
