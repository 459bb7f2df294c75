// Package service is the top floor: it opens a data directory, binds every port, starts the stations and the doors in
// order, and stops them in the reverse order. It must not know any protocol.
package service

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/acme"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/auth/oauth"
	"github.com/indigomail/indigo/internal/authd"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/dnsx"
	"github.com/indigomail/indigo/internal/inject"
	"github.com/indigomail/indigo/internal/lists"
	"github.com/indigomail/indigo/internal/local"
	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/redis"
	"github.com/indigomail/indigo/internal/remote"
	"github.com/indigomail/indigo/internal/route"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/tlsx"
	"github.com/indigomail/indigo/internal/trace"
	"github.com/indigomail/indigo/internal/turn"
)

// Config says what to serve and where.
type Config struct {
	// Data is the data directory; it must have been made by Create.
	Data string
	// Listen and PortOffset, when set, override the settings LISTEN and PORT_OFFSET for this run.
	Listen     string
	PortOffset *int
	Logger     *slog.Logger
	// Listener, when set, gives the listener for a service's address in the place of opening it here: from the service
	// manager, or from a parent that may bind low ports. Nil without an error means that it has none.
	Listener func(service, address string) (net.Listener, error)
	// Child, when set, is the way to a parent that has kept root.
	Child *Child
	// Log, when set, is where the lines of single services may go to directories of their own.
	Log *Log
}

// House is a running Indigo: every service of one data directory. Make one with Open, end it with Shutdown.
type House struct {
	config   Config
	settings settings.Holder
	log      *slog.Logger
	lock     *lock

	// stores are the certificates, by their path; unitsMu guards it.
	stores    map[string]*tlsx.Store
	trace     *trace.Log
	directory *directory.Store
	logins    *directory.Logins
	keeper    *keeper
	lists     *lists.Finder
	verifier  *auth.Password
	accounts  *auth.Accounts
	guard     *auth.Guard
	// redis is what hosts share; it is there without a server too.
	redis *redis.Link
	// system is the host's users; nil when nobody could ask for them.
	system *systemUsers
	// pam is those whom PAM knows.
	pam *pamUsers
	// passwordPrograms bounds the programs that check passwords, passwordServers the questions to servers, which cost less.
	passwordPrograms chan struct{}
	passwordServers  chan struct{}
	// unansweredAt is when the log last had why the sources of passwords of some service could not say.
	unansweredMu sync.Mutex
	unansweredAt map[string]time.Time
	ldap         *auth.LDAPPool
	tokens       *oauth.Issuers
	resolver     *dnsx.Client
	local        *local.Deliverer
	remote       *remote.Deliverer
	queue        *queue.Set
	turn         *turn.Station

	// unitsMu guards units; rules are the doors'.
	unitsMu sync.Mutex
	units   []*unit
	held    holds
	loggers map[string]*slog.Logger
	rules   policy.Policy
	metrics *metrics
	acme    *acme.Manager
	// background is what services that a reload brings run under.
	background context.Context
	inject     *inject.Server
	// auth answers other mail programs of the host; nil when no socket is set. authSockets are the sockets that this process made.
	auth        *authd.Server
	authSockets []string
	control     *controlServer
	// told are the findings of the last look at the settings; toldMu guards them.
	toldMu sync.Mutex
	told   map[string]int
	// serving counts the goroutines that run doors.
	serving sync.WaitGroup
	started time.Time
}

// server is what every protocol server offers.
type server interface {
	Serve(ctx context.Context, l net.Listener) error
	Shutdown(ctx context.Context)
}

// Open starts everything. Whatever is wrong with the settings, the files and the ports is reported at once, by name,
// before the first service starts.
func Open(ctx context.Context, config Config) (_ *House, err error) {
	h := &House{config: config, log: config.Logger, started: time.Now()}
	if !Exists(config.Data) {
		return nil, fmt.Errorf("%s is not an Indigo data directory: make one with `indigo up --data %s`", config.Data, config.Data)
	}
	if h.lock, err = acquireLock(config.Data); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			h.close(ctx)
		}
	}()
	if err := h.check(); err != nil {
		return nil, err
	}
	if err := h.openStations(ctx); err != nil {
		return nil, err
	}
	h.background = ctx
	h.startDoors(ctx)
	if err := h.startInject(ctx); err != nil {
		return nil, err
	}
	if err := h.startAuth(ctx); err != nil {
		return nil, err
	}
	if h.control, err = startControl(h); err != nil {
		return nil, err
	}
	h.keeper = h.keepHouse(ctx)
	return h, nil
}

// check loads the settings and the certificate and binds the ports, and collects every fault.
func (h *House) check() error {
	var faults []error
	snapshot, err := settings.Load(h.config.Data)
	if err != nil {
		faults = append(faults, err)
	} else {
		h.settings.Store(snapshot)
		h.logFindings(snapshot, false)
		if _, wrong := redisOptions(h.config.Data, snapshot); wrong != nil {
			faults = append(faults, settings.Problems{*wrong})
		}
	}
	if _, err := h.store("all"); err != nil {
		faults = append(faults, fmt.Errorf("certificate: %w", err))
	}
	for _, dir := range []string{"queue", "domains", "trace", "control"} {
		if err := checkWritable(filepath.Join(h.config.Data, dir)); err != nil {
			faults = append(faults, err)
		}
	}
	faults = append(faults, h.bind()...)
	return errors.Join(faults...)
}

// store gives the certificates of a service; services with one path share them.
func (h *House) store(name string) (*tlsx.Store, error) {
	path := certificatePath(h.config.Data, h.view(name))
	h.unitsMu.Lock()
	defer h.unitsMu.Unlock()
	if s := h.stores[path]; s != nil {
		return s, nil
	}
	s, err := tlsx.NewStore(path)
	if err != nil {
		return nil, err
	}
	s.Also = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if h.acme == nil {
			return nil, nil
		}
		return h.acme.Certificate(hello)
	}
	s.Lists = h.listsRead
	if h.stores == nil {
		h.stores = map[string]*tlsx.Store{}
	}
	h.stores[path] = s
	return s, nil
}

// logFindings tells what is wrong and yet lets services run, as clientca.pem that cannot be read, and what will not work as its author may think. A
// list of revoked certificates can end while they run: with news, only what was not told since the start or the last reload.
func (h *House) logFindings(s *settings.Snapshot, news bool) {
	wrong, warnings := checkServices(h.config.Data, s)
	// Before the directory is open nobody knows; the first round of keepHouse does.
	if h.directory != nil {
		ctx, cancel := context.WithTimeout(context.Background(), checkTime)
		defer cancel()
		wrong = append(wrong, checkKeys(h.config.Data, s, func() (bool, error) { return h.directory.Sealed(ctx) })...)
		warnings = append(warnings, checkAnonymous(s, func(user string, flag directory.Flags) (string, error) {
			return notAnonymous(ctx, h.directory, user, flag)
		})...)
	}
	// A directory of IndiMail's has the same in every service: one line for each, `indigo check` has them all.
	var order []string
	first, places := map[string]string{}, map[string]int{}
	for _, p := range slices.Concat(wrong, s.Warnings, warnings) {
		if places[p.Text]++; places[p.Text] == 1 {
			order, first[p.Text] = append(order, p.Text), p.String()
		}
	}
	h.toldMu.Lock()
	defer h.toldMu.Unlock()
	before := h.told
	h.told = places
	for _, text := range order {
		if news && before[text] > 0 {
			continue
		}
		line := first[text]
		if n := places[text] - 1; n > 0 {
			line += fmt.Sprintf(" (and in %d more places: see `indigo check`)", n)
		}
		h.log.Warn(line)
	}
}

// listsRead tells of a file of revoked certificates that was read again, or became no good: that once, as logFindings does.
func (h *House) listsRead(file string, err error) {
	p := settings.Problem{File: relativeTo(h.config.Data, file), Line: 1}
	if err != nil {
		p.Text = settings.ClientCRL.Name + ": " + err.Error()
	}
	h.toldMu.Lock()
	defer h.toldMu.Unlock()
	switch {
	case err == nil:
		maps.DeleteFunc(h.told, func(text string, _ int) bool { return strings.HasPrefix(text, settings.ClientCRL.Name+": ") })
		h.log.Info(p.File + ": lists of revoked client certificates read again")
	case h.told[p.Text] == 0:
		if h.told == nil {
			h.told = map[string]int{}
		}
		h.told[p.Text]++
		h.log.Error(p.String())
	}
}

func checkWritable(dir string) error {
	f, err := os.CreateTemp(dir, ".check*")
	if err != nil {
		return fmt.Errorf("cannot write in %s: %w", dir, err)
	}
	f.Close()
	return os.Remove(f.Name())
}

// view gives the settings of one service in force now; nil, which stands for the defaults, before they are loaded.
func (h *House) view(service string) *settings.View {
	if s := h.settings.Load(); s != nil {
		return s.View(service)
	}
	return nil
}

func (h *House) openStations(ctx context.Context) (err error) {
	all := h.view("all")
	me := settings.Me.Get(all)
	if h.trace, err = trace.Open(trace.Config{
		Dir: filepath.Join(h.config.Data, "trace"), MaxBytes: int64(settings.TraceBytes.Get(all)),
		MaxAge: time.Duration(settings.TraceDays.Get(all)) * 24 * time.Hour, Now: time.Now, Logger: h.log,
	}); err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	if h.directory, err = h.openDirectory(ctx); err != nil {
		return fmt.Errorf("directory: %w", err)
	}
	renew := func() (auth.Form, bool) {
		v := h.view("all")
		form, err := PasswordForm(v, "")
		return form, err == nil && settings.PasswordRehash.Get(v)
	}
	h.logins = directory.NewLogins(h.directory, h.log)
	if h.verifier, err = newVerifier(h.config.Data, all, func() string { return defaultDomain(h.view("all")) }, h.directory, h.directory, h.saw, renew, h.log); err != nil {
		return err
	}
	h.passwordPrograms = make(chan struct{}, maxPrograms)
	h.passwordServers = make(chan struct{}, maxServers)
	h.ldap = &auth.LDAPPool{Dial: new(net.Dialer).DialContext, Now: time.Now}
	h.tokens = newIssuers(h.log)
	if h.config.Child != nil || os.Geteuid() == 0 {
		h.system = &systemUsers{newCheckers(opPasswords, h.config.Child, checkSystem), h.hostname}
	}
	helper, err := newPAM(all)
	if err != nil {
		return err
	}
	h.pam = &pamUsers{newCheckers(opPAM, h.config.Child, checkPAM(helper)), h.hostname}
	key, err := auth.LoadKey(filepath.Join(h.config.Data, "authkey"))
	if err != nil {
		return fmt.Errorf("key for made-up salts: %w", err)
	}
	h.guard = auth.NewGuard(auth.GuardConfig{Limits: h.loginLimits, Now: time.Now, Logger: h.log, Key: key, Shared: h.redis})
	// Without them nobody is known, and the next round of keepHouse asks again.
	if err := h.rememberLogins(ctx); err != nil {
		h.log.Warn("where users logged in from is not known yet", "error", err)
	}
	h.accounts = auth.NewAccounts(h.verifier, h.directory.Forms, key, h.guard)
	h.redis.Start()
	dialer := &net.Dialer{}
	if h.resolver, err = dnsx.New(dnsx.Config{Servers: settings.DNSServers.Get(all), Dial: dialer.DialContext, Now: time.Now, Observe: h.observeDNS}); err != nil {
		return fmt.Errorf("resolver: %w", err)
	}
	h.lists = lists.New(h.config.Data)
	h.metrics = newMetrics(h)
	h.acme = h.newACME()
	queueView := func() *settings.View { return h.queueView("queue") }
	h.local = local.New(local.Config{Directory: h.directory, Hostname: me, Settings: queueView, Now: time.Now, Logger: h.serviceLogger("queue"),
		Onward: onward{func() queue.Submitter { return h.queue }}, Environment: h.programEnvironment(), Memory: filepath.Join(h.config.Data, "queue", "donelines")})
	if h.remote, err = remote.New(remote.Config{
		Resolver: h.resolver, Dial: dialer.DialContext, DialFrom: dialFrom, Settings: queueView,
		Hostname: func() string { return settings.Me.Get(h.view("all")) }, Now: time.Now, Logger: h.serviceLogger("queue"),
		Memory: filepath.Join(h.config.Data, "queue", "deadhosts"), Lists: h.lists,
		Certificates: func() string { return certificateDirectory(h.config.Data, queueView()) }, Data: h.config.Data,
		Tokens: newRelayTokens(h.config.Data, h.serviceLogger("queue")),
	}); err != nil {
		return fmt.Errorf("remote delivery: %w", err)
	}
	h.queue, err = queue.OpenSet(ctx, queue.SetConfig{
		Config: queue.Config{
			Dir: queueBase(h.config.Data, queueView()), Host: me, Settings: queueView,
			Router: route.New(route.Config{Directory: h.directory, Settings: queueView}),
			Local:  h.local, Remote: scripted{h.remote, h}, BounceDoor: h.bounceDoor, Processor: h.bounceProcessor, Trace: h.recorder(), Logger: h.serviceLogger("queue"), Now: time.Now, UID: os.Getuid(), PID: os.Getpid(),
		},
		View:  func(name string) *settings.View { return h.queueView("queue." + name) },
		Place: h.place,
	})
	if err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	data, err := filepath.Abs(h.config.Data)
	if err != nil {
		return err
	}
	h.turn = turn.New(turn.Config{
		Root: filepath.Join(data, "autoturn"), Directory: h.directory, Remote: h.remote, Queue: h.queue, Resolver: h.resolver,
		Trace: h.recorder(), Logger: h.serviceLogger("queue"), Now: time.Now,
	})
	return nil
}

// hostname gives ME.
func (h *House) hostname() string { return settings.Me.Get(h.view("all")) }

// dialFrom connects from an address of this host.
func dialFrom(ctx context.Context, local netip.Addr, network, address string) (net.Conn, error) {
	dialer := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))}
	return dialer.DialContext(ctx, network, address)
}

// place names the queue for a recipient: the one that was asked for, else by the control files domainqueue, rcpt.envrules,
// from.envrules and fromd.envrules in this order, else by QUEUEDIR of the service that took the message in (wiki 1526-1534,
// 2265-2295).
func (h *House) place(env *queue.Envelope, to *queue.Recipient) string {
	if env.Queue != "" {
		return filepath.Base(env.Queue)
	}
	view := env.Settings
	if view == nil {
		view = h.view(env.Origin.Service)
	}
	dir := settings.QueueDir.Get(view)
	for _, rule := range [...]struct {
		rules   settings.Key[*settings.Rules]
		subject func() string
	}{
		{settings.DomainQueue, func() string { return to.Address.Domain }},
		{settings.RcptRules, to.Address.String},
		{settings.FromRules, env.Sender.String},
		{settings.FromdRules, env.Sender.String},
	} {
		if rule.rules.Get(view).Len() == 0 {
			continue
		}
		if v, ok := view.RulesSet(rule.rules, rule.subject(), settings.QueueDir.Setting); ok {
			dir = v
			break
		}
	}
	if dir == "" {
		return ""
	}
	return filepath.Base(dir)
}

// queueBase gives the directory that holds the queues.
func queueBase(data string, view *settings.View) string {
	base := settings.QueueBase.Get(view)
	if filepath.IsAbs(base) {
		return base
	}
	return filepath.Join(data, base)
}

// Reload reads the settings and the certificate again. On any fault everything stays as it was.
func (h *House) Reload() error {
	snapshot, err := settings.Load(h.config.Data)
	if err != nil {
		return fmt.Errorf("settings unchanged: %w", err)
	}
	shared, wrong := redisOptions(h.config.Data, snapshot)
	if wrong != nil {
		return fmt.Errorf("settings unchanged: %w", settings.Problems{*wrong})
	}
	h.unitsMu.Lock()
	stores := maps.Clone(h.stores)
	h.unitsMu.Unlock()
	for _, store := range stores {
		if err := store.Reload(); err != nil {
			return fmt.Errorf("settings unchanged: certificate: %w", err)
		}
	}
	h.settings.Store(snapshot)
	h.tokens.Reload()
	h.logFindings(snapshot, false)
	h.redis.Use(shared)
	h.reconcile(h.background)
	return h.publishNames()
}

// Alive tells whether the house answers: its locks can be had within a second.
func (h *House) Alive() bool {
	answered := make(chan struct{})
	go func() {
		h.queue.Stats()
		close(answered)
	}()
	select {
	case <-answered:
		return true
	case <-time.After(time.Second):
		return false
	}
}

// Drain is how long Shutdown should be given: the setting DRAIN.
func (h *House) Drain() time.Duration { return settings.DrainSeconds.Get(h.view("all")) }

// Shutdown stops the doors first, then the queue, then what they stand on. When ctx ends, what still runs is cut; the
// queue still holds every message that was not delivered.
func (h *House) Shutdown(ctx context.Context) { h.close(ctx) }

func (h *House) close(ctx context.Context) {
	if h.keeper != nil {
		h.keeper.end()
	}
	h.closeDoors(ctx)
	if h.turn != nil {
		h.turn.Shutdown(ctx)
	}
	if h.queue != nil {
		h.queue.Shutdown(ctx)
	}
	h.closeStations()
}

// closeDoors lets nothing more in, and waits for what is under way until ctx ends.
func (h *House) closeDoors(ctx context.Context) {
	if h.control != nil {
		h.control.close()
	}
	var doors sync.WaitGroup
	h.unitsMu.Lock()
	units := slices.Clone(h.units)
	h.unitsMu.Unlock()
	for _, u := range units {
		doors.Go(func() { u.end(ctx) })
	}
	if h.inject != nil {
		doors.Go(func() { h.inject.Shutdown(ctx) })
	}
	if h.auth != nil {
		doors.Go(func() { h.auth.Shutdown(ctx) })
	}
	doors.Wait()
	for _, path := range h.authSockets {
		os.Remove(path)
	}
	h.serving.Wait()
}

// closeStations closes what a queue stands on; deliveries must have ended.
func (h *House) closeStations() {
	if h.remote != nil {
		h.remote.Close()
	}
	if h.local != nil {
		h.local.Close()
	}
	if h.acme != nil {
		h.acme.Close()
	}
	if h.lists != nil {
		h.lists.Close()
	}
	if h.verifier != nil {
		h.verifier.Close()
	}
	if h.system != nil {
		h.system.close()
	}
	if h.pam != nil {
		h.pam.close()
	}
	if h.logins != nil {
		h.logins.Close()
	}
	if h.ldap != nil {
		h.ldap.Close()
	}
	if h.tokens != nil {
		h.tokens.Close()
	}
	if h.redis != nil {
		h.redis.Close()
	}
	if h.directory != nil {
		h.directory.Close()
	}
	if h.trace != nil {
		h.trace.Close()
	}
	if h.lock != nil {
		h.lock.release()
	}
}

// newSessionID gives a name for a connection that no other connection of this data directory has.
func newSessionID() string {
	var b [9]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
