package service

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/indigomail/indigo/internal/dnsx"
	"github.com/indigomail/indigo/internal/lists"
	"github.com/indigomail/indigo/internal/local"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/remote"
	"github.com/indigomail/indigo/internal/route"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
)

// Standalone works on one queue directory without any other service: qmta-send, and qmail-start for a queue of one's own (wiki
// 1954-1966, 2367-2484). Make one with OpenStandalone, end it with Shutdown.
type Standalone struct {
	house House
	queue *queue.Queue
	stop  context.CancelFunc
}

// Within tells whether a queue directory belongs to a data directory, and its name there.
func Within(data, dir string) (name string, within bool) {
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return "", false
	}
	// Who may not read the settings is told by the usual place.
	snapshot, err := settings.Load(data)
	if err != nil {
		snapshot = &settings.Snapshot{}
	}
	base, err := filepath.Abs(queueBase(data, snapshot.View("queue")))
	if err != nil {
		return "", false
	}
	parent := filepath.Dir(absolute)
	return filepath.Base(absolute), parent == base || parent == "/var/indimail/queue"
}

// MakeQueue makes a queue directory outside any data directory. One that is there is left as it is.
func MakeQueue(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "log"), 0o700); err != nil {
		return err
	}
	return makePublic(dir, false)
}

// IsQueue tells whether a directory is one that MakeQueue made.
func IsQueue(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "log"))
	return err == nil
}

// OpenStandalone opens the queue in dir, with the settings and users of data, and takes mail in for it from processes of the
// host: at dir/public for a queue of its own, at data's place for one in data, which then must not be served otherwise.
func OpenStandalone(ctx context.Context, data, dir string, logger *slog.Logger) (_ *Standalone, err error) {
	if !Exists(data) {
		return nil, fmt.Errorf("%s is not an Indigo data directory: make one with `indigo up --data %s`", data, data)
	}
	s := &Standalone{house: House{config: Config{Data: data, Logger: logger}, log: logger, started: time.Now()}}
	ctx, s.stop = context.WithCancel(ctx)
	h := &s.house
	defer func() {
		if err != nil {
			s.Shutdown(ctx)
		}
	}()
	snapshot, err := settings.Load(data)
	if err != nil {
		return nil, err
	}
	h.settings.Store(snapshot)
	base := queueBase(data, h.view("queue"))
	name, within := Within(data, dir)
	place := dir
	if within {
		dir, place = filepath.Join(base, name), data
		if h.lock, err = acquireLock(data); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(filepath.Join(dir, "log"), 0o700); err != nil {
			return nil, err
		}
	} else if !IsQueue(dir) {
		return nil, fmt.Errorf("%s is no queue: make it with `queue-fix %s`", dir, dir)
	}
	all := h.view("all")
	me := settings.Me.Get(all)
	if h.directory, err = openDirectory(ctx, data, "indigo", true); err != nil {
		return nil, fmt.Errorf("directory: %w", err)
	}
	dialer := &net.Dialer{}
	if h.resolver, err = dnsx.New(dnsx.Config{Servers: settings.DNSServers.Get(all), Dial: dialer.DialContext, Now: time.Now}); err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	view := func() *settings.View { return h.view("queue." + name) }
	h.lists = lists.New(data)
	h.local = local.New(local.Config{Directory: h.directory, Hostname: me, Settings: view, Now: time.Now, Logger: logger,
		Onward: onward{func() queue.Submitter { return s.queue }}, Environment: h.programEnvironment()})
	if h.remote, err = remote.New(remote.Config{
		Resolver: h.resolver, Dial: dialer.DialContext, Settings: view, Hostname: func() string { return me }, Now: time.Now, Logger: logger, Lists: h.lists,
		Certificates: func() string { return certificateDirectory(data, view()) }, Data: data,
		Tokens: newRelayTokens(data, logger),
	}); err != nil {
		return nil, fmt.Errorf("remote delivery: %w", err)
	}
	config := queue.Config{
		Dir: dir, Name: name, Host: me, Settings: view, Router: route.New(route.Config{Directory: h.directory, Settings: view}),
		Local: h.local, Remote: scripted{h.remote, h}, Processor: h.bounceProcessor, Trace: trace.Discard, Logger: logger, Now: time.Now, UID: os.Getuid(), PID: os.Getpid(),
	}
	if within {
		if config.IDs, err = queue.OpenIDs(base); err != nil {
			return nil, err
		}
	}
	if s.queue, err = queue.Open(ctx, config); err != nil {
		return nil, err
	}
	return s, h.serveInject(ctx, place, s.queue, me)
}

// Once returns when everything that was due has been tried, or ctx ends.
func (s *Standalone) Once(ctx context.Context) error {
	// What lies in pickup was taken before the first look.
	s.house.inject.PickupNow(ctx)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if s.queue.Quiet() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// Left counts the messages that stay in the queue.
func (s *Standalone) Left() int { return s.queue.Stats().Messages }

// Shutdown ends the queue; deliveries under way have until ctx ends.
func (s *Standalone) Shutdown(ctx context.Context) {
	s.house.closeDoors(ctx)
	if s.queue != nil {
		s.queue.Shutdown(ctx)
	}
	s.house.closeStations()
	s.stop()
}
