package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/authd"
	"github.com/indigomail/indigo/internal/settings"
)

// doorSpec is one listening service.
type doorSpec struct {
	name, kind string
	port       int
	// tls is implicit TLS; submission is SMTP for users, odmr for hosts that fetch their mail by ATRN.
	tls, submission, odmr bool
}

// defaultServices are the services that a data directory has without a directory of their own.
func defaultServices() []string {
	return []string{"smtpd.25", "smtpd.587", "smtpd.465", "pop3d.110", "pop3d.995", "imapd.143", "imapd.993", "metrics.9126"}
}

// Kinds are the kinds of service that listen; an instance is named KIND.PORT or KIND.NAME with PORT set.
func Kinds() []string { return []string{"acme", "imapd", "metrics", "pop3d", "smtpd", "udplogger"} }

// internalServices are the services that listen to nothing from outside.
func internalServices() []string { return []string{"auth", "inject", "queue"} }

// newDoorSpec reads what a service is from its name and settings.
func newDoorSpec(name string, v *settings.View) (doorSpec, error) {
	kind, instance, _ := strings.Cut(name, ".")
	if !slices.Contains(Kinds(), kind) {
		return doorSpec{}, fmt.Errorf("service %s: no kind of service %q; there are %s", name, kind, strings.Join(append(internalServices(), Kinds()...), ", "))
	}
	s := doorSpec{name: name, kind: kind, port: settings.Port.Get(v)}
	if s.port < 0 {
		n, err := strconv.Atoi(instance)
		if err != nil || n < 0 || n > 65535 {
			return s, fmt.Errorf("service %s: %q is no port, and PORT is not set: `indigo settings set PORT N --service %s`", name, instance, name)
		}
		s.port = n
	}
	s.tls = kind != "metrics" && (s.port == 465 || s.port == 993 || s.port == 995) || kind == "acme" && s.port == 443
	if v.IsSet(settings.SMTPS.Setting) && kind != "acme" {
		s.tls = settings.SMTPS.Get(v)
	}
	s.submission = kind == "smtpd" && (s.port == 587 || s.port == 465)
	if v.IsSet(settings.Submission.Setting) {
		s.submission = settings.Submission.Get(v)
	}
	s.odmr = kind == "smtpd" && s.port == 366
	if v.IsSet(settings.ODMR.Setting) {
		s.odmr = settings.ODMR.Get(v)
	}
	return s, nil
}

// instances names the services that a snapshot has, defaults and directories, in the order in which people list them.
func instances(s *settings.Snapshot) (names []string) {
	names = defaultServices()
	for _, name := range s.Services() {
		kind, _, ok := strings.Cut(name, ".")
		if ok && slices.Contains(Kinds(), kind) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// Instances names the services that an instance of a data directory opens doors for.
func Instances(data string) ([]string, error) {
	snapshot, err := settings.Load(data)
	if err != nil {
		return nil, err
	}
	return instances(snapshot), nil
}

// LoginServices names the services of a data directory that users log in to.
func LoginServices(data string) ([]string, error) {
	snapshot, err := settings.Load(data)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(instances(snapshot), func(name string) bool { return !asksPasswords(kindOf(name)) }), nil
}

// unit is one service: what it is to be, what it is, and the goroutine between.
type unit struct {
	h    *House
	name string

	mu sync.Mutex
	// wanted is what it is to be; wake is told of a change.
	wanted bool
	wake   chan struct{}
	// up is true while it serves; since is when that changed.
	up    bool
	since time.Time
	// address is where it listens while it is up.
	address string
	// failure is what ended it last, failures how often it ended by itself in a row, restarts how often it was started again.
	failure  error
	failures int
	restarts int
	// generation counts the servers that took over from another by an operator's restart.
	generation int
	server     server
	spec       doorSpec
	// swap asks serve to go on with a new server on the same port; what it is told is when the old one must have ended.
	swap chan time.Duration
	// bound is a listener that was opened before the start, so that all ports that are taken are told at once.
	bound net.Listener
	// settled is told when the unit is as it is wanted.
	settled *sync.Cond
	ended   bool
}

// retry bounds the pause before a service that failed is started again; it doubles from the first to the last.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
	// calm is how long a service must have served for its failures to be forgotten.
	calm = 5 * time.Minute
)

func (h *House) newUnit(name string, bound net.Listener, wanted bool) *unit {
	u := &unit{h: h, name: name, wanted: wanted, wake: make(chan struct{}, 1), swap: make(chan time.Duration), since: time.Now(), bound: bound}
	u.settled = sync.NewCond(&u.mu)
	return u
}

// bind listens on every port and gives all that failed.
func (h *House) bind() []error {
	var faults []error
	// With malformed settings nothing will start; ports that are taken are told with them all the same.
	names := defaultServices()
	if snapshot := h.settings.Load(); snapshot != nil {
		names = instances(snapshot)
	}
	taken := map[string]string{}
	for _, name := range names {
		if h.isDown(name) {
			h.log.Info("service " + name + " is down by its file services/" + name + "/down")
			h.units = append(h.units, h.newUnit(name, nil, false))
			continue
		}
		l, spec, err := h.listen(name)
		if err == nil && l != nil {
			address := fmt.Sprint(spec.kind == "udplogger", l.Addr())
			if other, ok := taken[address]; ok {
				err = fmt.Errorf("service %s: %s is the address of %s already", name, l.Addr(), other)
			}
			taken[address] = name
		}
		if err != nil {
			faults = append(faults, err)
			continue
		}
		h.units = append(h.units, h.newUnit(name, l, true))
	}
	return faults
}

// isDown tells whether a service has a file that keeps it from starting.
func (h *House) isDown(name string) bool {
	_, err := os.Stat(filepath.Join(settings.ServiceDirectory(h.config.Data, name), "down"))
	return err == nil
}

// listen opens a service's port.
func (h *House) listen(name string) (net.Listener, doorSpec, error) {
	v := h.view(name)
	spec, err := newDoorSpec(name, v)
	if err != nil {
		return nil, spec, err
	}
	all := h.view("all")
	host, offset := h.config.Listen, settings.PortOffset.Get(all)
	if host == "" || v.Source(settings.Listen.Setting).Layer == "service variable" {
		host = settings.Listen.Get(v)
	}
	if spec.kind == "metrics" || spec.kind == "udplogger" {
		// What is for this host's own eyes listens elsewhere only when its own settings say so.
		if v.Source(settings.Listen.Setting).Layer != "service variable" {
			host = "127.0.0.1"
		}
	}
	if h.config.PortOffset != nil {
		offset = *h.config.PortOffset
	}
	port := spec.port + offset
	if offset == FreePorts {
		port = 0
	}
	address := net.JoinHostPort(host, strconv.Itoa(port))
	l, err := h.open(name, spec, address)
	if err != nil {
		return nil, spec, fmt.Errorf("service %s: %w (try another --port-offset or --listen)", name, err)
	}
	return l, spec, nil
}

// open listens on address: with what the service manager handed over, through the parent that kept root, or itself.
func (h *House) open(name string, spec doorSpec, address string) (net.Listener, error) {
	if spec.kind == "udplogger" {
		c, err := net.ListenPacket("udp", address)
		if err != nil {
			return nil, err
		}
		return packetListener{c}, nil
	}
	if h.config.Listener != nil {
		if l, err := h.config.Listener(name, address); l != nil || err != nil {
			return l, err
		}
	}
	// Keep-alives cost four system calls a connection, and every session has a time limit of its own.
	listen := net.ListenConfig{KeepAlive: -1}
	return listen.Listen(context.Background(), "tcp", address)
}

// packetListener gives a packet connection the form of a listener, for what only looks at its address.
type packetListener struct{ net.PacketConn }

func (packetListener) Accept() (net.Conn, error) { return nil, errors.New("packets are not accepted") }
func (p packetListener) Addr() net.Addr          { return p.LocalAddr() }

// run serves until the house ends: it starts the service when it is wanted, stops it when it is not, and starts it again
// when it ended by itself.
func (u *unit) run(ctx context.Context) {
	for {
		u.mu.Lock()
		wanted, ended := u.wanted, u.ended
		u.mu.Unlock()
		switch {
		case ended:
			return
		case !wanted:
			<-u.wake
			continue
		}
		err := u.serve(ctx)
		u.mu.Lock()
		if u.up && time.Since(u.since) > calm {
			u.failures = 0
		}
		u.up, u.address, u.server, u.since = false, "", nil, time.Now()
		again := u.wanted && !u.ended
		if again && errors.Is(err, errSwapped) {
			u.generation++
			u.mu.Unlock()
			continue
		}
		if again && err == nil {
			err = errors.New("it ended by itself")
		}
		if again {
			u.failure = err
			u.failures++
		}
		pause := min(firstRetry<<min(max(u.failures-1, 0), 10), lastRetry)
		u.settled.Broadcast()
		u.mu.Unlock()
		if !again {
			continue
		}
		u.h.log.Error(fmt.Sprintf("service %s stopped: %v; it is started again in %s", u.name, err, pause))
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
			u.mu.Lock()
			u.restarts++
			u.mu.Unlock()
		case <-u.wake:
		}
		timer.Stop()
	}
}

// serve serves once.
func (u *unit) serve(ctx context.Context) (err error) {
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("a fault: %v", fault)
		}
	}()
	u.mu.Lock()
	l := u.bound
	u.bound = nil
	u.mu.Unlock()
	spec, err := newDoorSpec(u.name, u.h.view(u.name))
	if err == nil && l == nil {
		l, spec, err = u.h.listen(u.name)
	}
	if err != nil {
		return err
	}
	server, err := u.h.newDoor(spec, l)
	if err != nil {
		l.Close()
		return err
	}
	u.mu.Lock()
	if !u.wanted || u.ended {
		u.mu.Unlock()
		l.Close()
		return nil
	}
	u.up, u.since, u.address, u.server, u.spec = true, time.Now(), l.Addr().String(), server, spec
	u.settled.Broadcast()
	u.mu.Unlock()
	done := make(chan error, 1)
	u.h.serving.Go(func() {
		defer func() {
			if fault := recover(); fault != nil {
				done <- fmt.Errorf("a fault: %v", fault)
			}
		}()
		// Connections outlive ctx until Shutdown, so that a drain is possible.
		done <- server.Serve(context.WithoutCancel(ctx), l)
	})
	select {
	case err := <-done:
		return err
	case drain := <-u.swap:
		u.handOver(l)
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
		u.h.serving.Go(func() {
			defer cancel()
			server.Shutdown(limit)
		})
		return errSwapped
	}
}

// errSwapped says that a new server takes over.
var errSwapped = errors.New("restarted")

// handOver keeps the port open for the next server, if that is to have the same one: no client is refused meanwhile.
func (u *unit) handOver(l net.Listener) {
	u.mu.Lock()
	defer u.mu.Unlock()
	spec, err := newDoorSpec(u.name, u.h.view(u.name))
	tcp, ok := l.(*net.TCPListener)
	if err != nil || !ok || spec.port != u.spec.port {
		l.Close()
		return
	}
	f, err := tcp.File()
	if err != nil {
		return
	}
	defer f.Close()
	if same, err := net.FileListener(f); err == nil {
		u.bound = same
	}
}

// restart goes over to a new server; the sessions of the old one may end within drain.
func (u *unit) restart(ctx context.Context, drain time.Duration) error {
	u.mu.Lock()
	up, before := u.up, u.generation
	u.mu.Unlock()
	if !up {
		return u.want(ctx, true)
	}
	select {
	case u.swap <- drain:
	case <-ctx.Done():
		return fmt.Errorf("service %s: %w", u.name, ctx.Err())
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { u.settled.Broadcast() })
	defer stop()
	failures := u.failures
	for (u.generation == before || !u.up) && ctx.Err() == nil && !u.ended {
		if u.failures > failures {
			return u.failure
		}
		u.settled.Wait()
	}
	return nil
}

// want makes it what it is to be, and waits until it is so, or for a start until it has failed once.
func (u *unit) want(ctx context.Context, up bool) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended {
		return errors.New("shutting down")
	}
	before := u.failures
	if up && !u.up {
		u.failure = nil
	}
	u.wanted = up
	server := u.server
	u.poke()
	if !up && server != nil {
		u.mu.Unlock()
		server.Shutdown(ctx)
		u.mu.Lock()
	}
	stop := context.AfterFunc(ctx, func() { u.settled.Broadcast() })
	defer stop()
	for u.up != up && ctx.Err() == nil && !u.ended {
		if up && u.failures > before {
			return u.failure
		}
		u.settled.Wait()
	}
	if u.up != up {
		return fmt.Errorf("service %s: %w", u.name, context.Cause(ctx))
	}
	return nil
}

// poke wakes run; u.mu is held or not.
func (u *unit) poke() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// end stops it for good.
func (u *unit) end(ctx context.Context) {
	u.mu.Lock()
	u.ended, u.wanted = true, false
	server, bound := u.server, u.bound
	u.bound = nil
	u.settled.Broadcast()
	u.mu.Unlock()
	u.poke()
	if bound != nil {
		bound.Close()
	}
	if server != nil {
		server.Shutdown(ctx)
	}
}

// ServiceState is what a service is at a moment.
type ServiceState struct {
	Name string `json:"name"`
	// Directory is its directory under services/, "" when it has none.
	Directory string `json:"directory,omitempty"`
	// Up is what it is, Wanted what it is to be.
	Up     bool `json:"up"`
	Wanted bool `json:"wanted"`
	// Since is when that began.
	Since   time.Time `json:"since"`
	Address string    `json:"address,omitempty"`
	// Connections are those that are open now.
	Connections int `json:"connections"`
	// Failure is what ended it last by itself; Restarts how often it was started again for that.
	Failure  string `json:"failure,omitempty"`
	Restarts int    `json:"restarts,omitempty"`
	PID      int    `json:"pid"`
}

func (u *unit) state() ServiceState {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := ServiceState{Name: u.name, Up: u.up, Wanted: u.wanted, Since: u.since, Address: u.address, Restarts: u.restarts, PID: os.Getpid()}
	if u.failure != nil {
		s.Failure = u.failure.Error()
	}
	if c, ok := u.server.(interface{ Connections() int }); ok && u.server != nil {
		s.Connections = c.Connections()
	}
	return s
}

// Services gives the state of every service, those that listen first.
func (h *House) Services() (all []ServiceState) {
	snapshot := h.settings.Load()
	h.unitsMu.Lock()
	units := slices.Clone(h.units)
	h.unitsMu.Unlock()
	for _, u := range units {
		all = append(all, u.state())
	}
	all = append(all, ServiceState{Name: "inject", Up: h.inject != nil, Wanted: true, Since: h.started, PID: os.Getpid()})
	if h.auth != nil {
		all = append(all, ServiceState{Name: authd.Service, Up: true, Wanted: true, Since: h.started, Connections: h.auth.Connections(), PID: os.Getpid()})
	}
	for _, name := range append([]string{""}, h.queue.Names()...) {
		name = strings.TrimSuffix("queue."+name, ".")
		down := h.held.Load(name)
		s := ServiceState{Name: name, Up: down == nil, Wanted: down == nil, Since: h.started, PID: os.Getpid()}
		if down != nil {
			s.Since = *down
		}
		all = append(all, s)
	}
	for i := range all {
		if d, ok := snapshot.Directory(all[i].Name); ok {
			all[i].Directory = d
		}
	}
	return all
}

// errNoService is for a name that no service has.
func (h *House) errNoService(name string) error {
	var names []string
	for _, s := range h.Services() {
		names = append(names, s.Name)
	}
	return fmt.Errorf("no service %q; there are %s", name, strings.Join(names, ", "))
}

// ServiceDo starts, stops, restarts or reloads one service and returns when that is done. A stop waits for open sessions
// until ctx ends, and then cuts them; nothing of the other services is touched. Stopping "queue", or "queue.NAME", ends
// deliveries, as stopping qmail-send does; mail is still taken.
func (h *House) ServiceDo(ctx context.Context, name, verb string) error {
	if kindOf(name) == "queue" {
		return h.queueDo(name, verb)
	}
	h.unitsMu.Lock()
	i := slices.IndexFunc(h.units, func(u *unit) bool { return u.name == name })
	var u *unit
	if i >= 0 {
		u = h.units[i]
	}
	h.unitsMu.Unlock()
	if verb == "reload" && (u != nil || name == "inject" || name == authd.Service && h.auth != nil) {
		return h.Reload()
	}
	if u == nil {
		if name == "inject" {
			return errors.New("inject cannot be stopped alone: programs of this host leave their mail in pickup while nothing runs")
		}
		if name == authd.Service && h.auth != nil {
			return errors.New("auth cannot be stopped alone: unset DOVECOT_AUTH_SOCKET and DOVECOT_USERDB_SOCKET, and restart the instance")
		}
		return h.errNoService(name)
	}
	h.log.Info("service " + name + ": " + verb)
	switch verb {
	case "start":
		return u.want(ctx, true)
	case "stop":
		return u.want(ctx, false)
	case "restart":
		return u.restart(ctx, h.Drain())
	}
	return fmt.Errorf("a service can start, stop, restart and reload, not %q", verb)
}

// queueDo holds or releases deliveries.
func (h *House) queueDo(name, verb string) error {
	queue, one := strings.CutPrefix(name, "queue.")
	if one && !slices.Contains(h.queue.Names(), queue) {
		return h.errNoService(name)
	}
	switch verb {
	case "start":
		h.held.Store(name, false)
	case "stop":
		h.held.Store(name, true)
	case "restart", "reload":
		h.held.Store(name, false)
		if err := h.Reload(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("a service can start, stop, restart and reload, not %q", verb)
	}
	h.log.Info("service " + name + ": " + verb)
	h.queue.Wake()
	return nil
}

// holds are the queues whose service is stopped, with the time since when.
type holds struct {
	mu sync.Mutex
	at map[string]*time.Time
}

// Load gives when name was stopped; nil when it is not.
func (s *holds) Load(name string) *time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := s.at[name]; at != nil {
		return at
	}
	return s.at["queue"]
}

func (s *holds) Store(name string, down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == nil {
		s.at = map[string]*time.Time{}
	}
	switch {
	case !down:
		delete(s.at, name)
	case s.at[name] == nil:
		now := time.Now()
		s.at[name] = &now
	}
}

// queueView gives the settings of a queue, with its deliveries held while its service is stopped.
func (h *House) queueView(name string) *settings.View {
	v := h.view(name)
	if h.held.Load(name) != nil {
		return v.Held("service " + name + " is stopped")
	}
	return v
}

// reconcile makes the services what the settings in force say: new directories are started, removed ones are stopped.
func (h *House) reconcile(ctx context.Context) {
	snapshot := h.settings.Load()
	names := instances(snapshot)
	h.unitsMu.Lock()
	var gone []*unit
	h.units = slices.DeleteFunc(h.units, func(u *unit) bool {
		if slices.Contains(names, u.name) {
			return false
		}
		gone = append(gone, u)
		return true
	})
	for _, name := range names {
		if slices.ContainsFunc(h.units, func(u *unit) bool { return u.name == name }) {
			continue
		}
		u := h.newUnit(name, nil, !h.isDown(name))
		h.units = append(h.units, u)
		h.serving.Go(func() { u.run(ctx) })
		h.log.Info("service " + name + " is new")
	}
	h.unitsMu.Unlock()
	h.serving.Go(func() { h.manageACME(ctx) })
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.Drain())
	for _, u := range gone {
		h.log.Info("service " + u.name + " is no more")
		h.serving.Go(func() {
			u.end(limit)
		})
	}
	context.AfterFunc(limit, cancel)
}
