package service

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
)

// Manager is the service manager that started this process, if it speaks systemd's protocols: sd_notify, watchdog and
// socket activation. Without one, everything does nothing.
type Manager struct {
	mu        sync.Mutex
	listeners map[string][]net.Listener
}

// NewManager finds out what the manager handed over. A listener belongs to the service that its FileDescriptorName= names,
// or else to the one whose port it has.
func NewManager() (*Manager, error) {
	named, err := activation.ListenersWithNames()
	if err != nil {
		return nil, err
	}
	return &Manager{listeners: named}, nil
}

// Listener gives the listener for a service; nil when the manager handed none over.
func (m *Manager) Listener(service, address string) (net.Listener, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	for name, all := range m.listeners {
		for i, l := range all {
			if l == nil {
				continue
			}
			_, own, err := net.SplitHostPort(l.Addr().String())
			if name == service || err == nil && own == port {
				// A restart of the service opens the port itself: the handed-over one is used once, and kept open by it.
				all[i] = nil
				return l, nil
			}
		}
	}
	return nil, nil
}

// Tell tells the manager a state: "READY=1", "RELOADING=1", "STOPPING=1".
func (m *Manager) Tell(state string) {
	// Without a manager this does nothing; a manager that does not listen changes nothing.
	_, _ = daemon.SdNotify(false, state)
}

// Watch tells the manager that this process lives, as often as WatchdogSec= asks, while alive answers true, until ctx ends.
func (m *Manager) Watch(ctx context.Context, alive func() bool) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every <= 0 {
		return
	}
	tick := time.NewTicker(every / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if alive() {
				m.Tell("WATCHDOG=1")
			}
		}
	}
}
