// Package turn is a station: it hands the mail that waits in a Maildir for a host of part-time connection to that host, when it asks for it (ETRN, RFC
// 1985; ATRN, RFC 2645) or connects (AUTOTURN, wiki 1586-1915). It must not know how the host asked, or who may log in.
package turn

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/dnsx"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/remote"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
)

// Config is what a Station stands on; all is required.
type Config struct {
	// Root is the directory, an absolute path, that holds a directory for each host or domain: autoturn in the data directory.
	Root      string
	Directory interface {
		Domain(ctx context.Context, name string) (directory.Domain, error)
		User(ctx context.Context, a addr.Address) (directory.User, error)
		DomainsBelow(ctx context.Context, name, root string, limit int) ([]directory.Domain, error)
		AliasDomains(ctx context.Context, domain string) ([]directory.AliasDomain, error)
		ATRNDomains(ctx context.Context, user addr.Address) ([]string, error)
	}
	Remote *remote.Deliverer
	// Queue tells senders of failures, and is asked to deliver what it has for a domain.
	Queue interface {
		Bounce(id queue.ID, env queue.Envelope, birth time.Time, c queue.Content, failures []*mailerr.Error) error
		Hosts() []queue.HostStats
		Turn(ctx context.Context, f queue.Filter) (int, error)
	}
	Resolver dnsx.Resolver
	Trace    trace.Recorder
	Logger   *slog.Logger
	Now      func() time.Time
}

const (
	// maxRuns bounds the runs at a time, each with a connection; maxAsked those to hosts elsewhere that one client, or its network of IPv6, has asked
	// for: hosts that are not there take their time, and anybody may ask for them.
	maxRuns  = 200
	maxAsked = 10
	// lookupTime bounds what is asked of the DNS while the host waits for its reply.
	lookupTime = 20 * time.Second
	// giveUp is the age at which a message that its host defers is bounced: what maildirsmtp tells maildirserial.
	giveUp = 14 * 24 * time.Hour
	// hastenTime bounds the look for what the queue defers, while the host waits for its reply.
	hastenTime = 5 * time.Second
	// maxBelow bounds the domains that one ETRN is for.
	maxBelow = 100
	// maxHosts bounds the mail hosts of a domain that are looked up.
	maxHosts = 20
)

// What a host is told in the place of its mail. The causes are for the trace.
var (
	// ErrNotAllowed says that the mail is not for who asks, or that there is no such domain: which of both is not told.
	ErrNotAllowed = errors.New("not allowed")
	// ErrNoMail says that none waits, ErrBusy that it is being handed over already.
	ErrNoMail = errors.New("no message is waiting")
	ErrBusy   = errors.New("the mail is being handed over already")
)

// Station hands mail over. Make one with New, end it with Shutdown. It is safe for concurrent use.
type Station struct {
	config Config
	ctx    context.Context
	cancel context.CancelFunc
	runs   sync.WaitGroup

	mu      sync.Mutex
	closing bool
	// busy are the directories with a run under way.
	busy map[string]bool
	// asking counts runs by waiting's client.
	asking map[netip.Prefix]int
	// looking are the domains, and queues with # before them, whose queued mail is being looked for.
	looking map[string]bool
}

// New makes a Station.
func New(config Config) *Station {
	s := &Station{config: config, busy: map[string]bool{}, asking: map[netip.Prefix]int{}, looking: map[string]bool{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Shutdown begins no more runs, lets those under way end with their message, and cuts them when ctx ends. It returns when all have ended. What was
// not handed over waits on.
func (s *Station) Shutdown(ctx context.Context) {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, s.cancel)
	s.runs.Wait()
	stop()
	s.cancel()
}

// enter counts a run that Shutdown waits for, unless it is too late.
func (s *Station) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing {
		s.runs.Add(1)
	}
	return !s.closing
}

// errEnding says that no run is begun or goes on.
var errEnding = errors.New("shutting down")

func (s *Station) ending() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// Offers tells whether there is anything that ETRN could be said for, with these settings.
func (s *Station) Offers(view *settings.View) bool {
	if len(settings.ETRNHosts.Get(view)) > 0 {
		return true
	}
	root, err := os.Open(s.config.Root)
	if err != nil {
		return false
	}
	defer root.Close()
	names, _ := root.Readdirnames(1)
	return len(names) > 0
}

// Begun is what became of a request for mail: how many messages the queue was asked to deliver, or else whether a run has begun or is Busy already.
type Begun struct {
	Queued int
	Busy   bool
}

// Start obeys ETRN for a node (RFC 1985 section 5.1): a domain, @domain for it and all below it, #queue for all that is in a queue. See start, startBelow, and
// askQueue for what they are allowed to do.
func (s *Station) Start(ctx context.Context, view *settings.View, session, node string, client netip.Addr) (Begun, error) {
	switch {
	case strings.HasPrefix(node, "@"):
		return s.startBelow(ctx, view, session, node[1:], client)
	case strings.HasPrefix(node, "#"):
		return s.askQueue(view, node, client)
	}
	return s.start(ctx, view, session, node, client)
}

// startBelow obeys ETRN for a domain and all below it: for those of them for which the client may ask.
func (s *Station) startBelow(ctx context.Context, view *settings.View, session, domain string, client netip.Addr) (all Begun, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	domains, err := s.config.Directory.DomainsBelow(ctx, domain, s.config.Root, maxBelow+1)
	if err != nil {
		return Begun{}, err
	}
	var names []string
	for _, d := range domains {
		names = append(names, d.Name)
	}
	for _, name := range settings.ETRNHosts.Get(view) {
		if name = strings.ToLower(name); (name == domain || strings.HasSuffix(name, "."+domain)) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) > maxBelow {
		return Begun{}, fmt.Errorf("there are more than %d domains below %s: they are to be asked for one by one", maxBelow, domain)
	}
	var trouble error
	result, started, busy := fmt.Errorf("%w: neither %s nor what is below it has mail that waits, for a client at %s", ErrNotAllowed, domain, client), false, false
	for _, name := range names {
		begun, err := s.start(ctx, view, session, name, client)
		switch {
		case errors.Is(err, ErrNotAllowed):
		case errors.Is(err, ErrNoMail):
			result = err
		case err != nil:
			trouble = errors.Join(trouble, fmt.Errorf("%s: %w", name, err))
		case begun.Busy:
			busy = true
		case begun.Queued > 0:
			all.Queued += begun.Queued
		default:
			started = true
		}
	}
	switch {
	case started:
		return Begun{}, nil
	case all.Queued > 0:
		return all, nil
	case busy:
		return Begun{Busy: true}, nil
	case trouble != nil:
		return Begun{}, trouble
	}
	return Begun{}, result
}

// start obeys ETRN for a domain by a client in a session: it begins to hand over, in the background, what waits for the domain. A domain with the address of its
// host has its mail sent there, whoever asks; another's goes to the client, if that is a mail host of the domain by its MX records or stands in its
// file ipauth (wiki 1592-1595). Of a domain in etrnhosts the queue tries at once what it has, and of others what it could not put into the directory.
func (s *Station) start(ctx context.Context, view *settings.View, session, domain string, client netip.Addr) (Begun, error) {
	d, err := s.config.Directory.Domain(ctx, domain)
	switch {
	case errors.Is(err, directory.ErrNoDomain):
		return s.askQueue(view, domain, client)
	case err != nil:
		return Begun{}, err
	}
	box := s.boxOf(d)
	if box == "" {
		return Begun{}, fmt.Errorf("%w: %s has users here, and its mail does not wait for a host", ErrNotAllowed, d.Name)
	}
	w := &waiting{dir: box}
	to := hostOf(box)
	names, err := s.namesOf(ctx, d)
	if err != nil {
		return Begun{}, err
	}
	if to.IsValid() && to != client.Unmap().WithZone("") {
		w.client = networkOf(client)
	}
	if !to.IsValid() {
		if err := s.mayAsk(ctx, d, box, client); err != nil {
			return Begun{}, err
		}
		to, w.names = client, names
	}
	n := s.hasten(ctx, names)
	begun, err := s.send(w, asked{"etrn", session}, net.JoinHostPort(to.Unmap().WithZone("").String(), strconv.Itoa(settings.ETRNPort.Get(view))))
	if errors.Is(err, ErrNoMail) && n > 0 {
		return Begun{Queued: n}, nil
	}
	return begun, err
}

// hasten has the queue try now what it defers for domains whose mail waits here, as when the disk was full or the domain went elsewhere before, and
// counts it. It is in the directory a moment later.
func (s *Station) hasten(ctx context.Context, names []string) (n int) {
	deferred := false
	for _, h := range s.config.Queue.Hosts() {
		// All local deliveries are one host.
		if h.Channel == queue.Local.String() && h.Jobs > h.Ready+h.Running || slices.Contains(names, strings.ToLower(h.Host)) {
			deferred = true
		}
	}
	if !deferred {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, hastenTime)
	defer cancel()
	for _, name := range names {
		s.mu.Lock()
		looking := s.looking[name]
		s.looking[name] = true
		s.mu.Unlock()
		if looking {
			continue
		}
		tried, err := s.config.Queue.Turn(ctx, queue.Filter{Domain: name, Failed: true})
		if n += tried; err != nil {
			s.config.Logger.Warn("etrn: the mail for " + name + " in the queue is not tried now: " + err.Error())
		}
		s.mu.Lock()
		delete(s.looking, name)
		s.mu.Unlock()
	}
	return n
}

// Connected begins to hand over what waits for a client that connected, if its address has a directory.
func (s *Station) Connected(view *settings.View, session string, client netip.Addr) {
	box := filepath.Join(s.config.Root, boxName(client))
	if info, err := os.Stat(box); err != nil || !info.IsDir() {
		return
	}
	address := net.JoinHostPort(client.Unmap().WithZone("").String(), strconv.Itoa(settings.ETRNPort.Get(view)))
	if _, err := s.send(&waiting{dir: box}, asked{"autoturn", session}, address); err != nil && !errors.Is(err, ErrNoMail) && err != errEnding {
		s.config.Logger.Warn("autoturn: "+err.Error(), "client", client.String())
	}
}

// Send hands over, and waits for the end, what waits in a Maildir, or in the Maildir below a directory, to an address, host and port; prefix is what
// stands before the recipients in Delivered-To, if it does. It is what an operator asks for.
func (s *Station) Send(ctx context.Context, dir, prefix, address string) (Report, error) {
	if filepath.Base(dir) == "Maildir" {
		dir = filepath.Dir(dir)
	}
	if info, err := os.Stat(filepath.Join(dir, "Maildir", "new")); err != nil || !info.IsDir() {
		return Report{}, fmt.Errorf("there is no Maildir in %s", dir)
	}
	w := &waiting{dir: dir, prefix: prefix}
	if err := s.hold(w); err != nil {
		return Report{}, err
	}
	defer s.release(w)
	if !s.enter() {
		return Report{}, errEnding
	}
	defer s.runs.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	return s.dial(ctx, w, asked{how: "operator"}, address)
}

// send begins a run in the background.
func (s *Station) send(w *waiting, by asked, address string) (Begun, error) {
	switch some, err := w.any(); {
	case err != nil:
		return Begun{}, err
	case !some:
		return Begun{}, ErrNoMail
	}
	switch err := s.hold(w); {
	case errors.Is(err, ErrBusy):
		return Begun{Busy: true}, nil
	case err != nil:
		return Begun{}, err
	}
	if !s.enter() {
		s.release(w)
		return Begun{}, errEnding
	}
	go func() {
		defer s.runs.Done()
		defer s.release(w)
		defer s.fence(w)
		if _, err := s.dial(s.ctx, w, by, address); err != nil {
			s.config.Logger.Warn(by.how + ": the mail in " + filepath.Base(w.dir) + " waits on: " + err.Error())
		}
	}()
	return Begun{}, nil
}

// fence keeps a fault in one run from ending the process.
func (s *Station) fence(w *waiting) {
	if fault := recover(); fault != nil {
		s.config.Logger.Error("turn: a run ended by a fault", "directory", w.dir, "fault", fault)
	}
}

// askQueue makes the queue try what it has for a domain in etrnhosts, or all that is in #NAME, which is queue:NAME there. Where it goes is decided as for
// all mail.
func (s *Station) askQueue(view *settings.View, node string, client netip.Addr) (Begun, error) {
	hosts := settings.ETRNHosts.Get(view)
	wanted, named := strings.CutPrefix(node, "#")
	at := slices.IndexFunc(hosts, func(one string) bool {
		name, isQueue := strings.CutPrefix(one, "queue:")
		return isQueue == named && strings.EqualFold(name, wanted)
	})
	if at < 0 {
		return Begun{}, fmt.Errorf("%w: no domain whose mail waits, and not in etrnhosts", ErrNotAllowed)
	}
	f := queue.Filter{Domain: node}
	if named {
		f = queue.Filter{Queue: strings.TrimPrefix(hosts[at], "queue:")}
	}
	n := 0
	for _, h := range s.config.Queue.Hosts() {
		if h.Channel == queue.Remote.String() && (f.Queue == h.Queue || f.Queue == "" && strings.EqualFold(h.Host, node)) {
			n += h.Jobs
		}
	}
	if n == 0 {
		return Begun{}, ErrNoMail
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || s.looking[node] {
		return Begun{Queued: n}, nil
	}
	s.looking[node] = true
	s.runs.Go(func() {
		defer func() {
			s.mu.Lock()
			delete(s.looking, node)
			s.mu.Unlock()
		}()
		// It is up, whatever was seen of it before.
		s.config.Remote.Forget(net.JoinHostPort(client.Unmap().String(), "25"))
		if _, err := s.config.Queue.Turn(s.ctx, f); err != nil {
			s.config.Logger.Warn("etrn: the mail for " + node + " is not tried now: " + err.Error())
		}
	})
	return Begun{Queued: n}, nil
}

// boxOf gives the directory in which a domain's mail waits, "" when it does not.
func (s *Station) boxOf(d directory.Domain) string {
	if dir := filepath.Clean(d.Dir); filepath.Dir(dir) == s.config.Root {
		return dir
	}
	return ""
}

// boxName is the directory's name for a host: its address, in which a name of a directory has no colons.
func boxName(host netip.Addr) string {
	return strings.ReplaceAll(host.Unmap().WithZone("").String(), ":", "_")
}

// hostOf gives the address that a directory is named by; not a valid one when it is named by a domain.
func hostOf(box string) netip.Addr {
	ip, _ := netip.ParseAddr(strings.ReplaceAll(filepath.Base(box), "_", ":"))
	return ip
}

// namesOf gives a domain's name and those of its aliases, to tell its mail from that of others in one directory.
func (s *Station) namesOf(ctx context.Context, d directory.Domain) (names []string, err error) {
	aliases, err := s.config.Directory.AliasDomains(ctx, d.Name)
	names = append(names, d.Name)
	for _, a := range aliases {
		names = append(names, strings.ToLower(a.Alias))
	}
	return names, err
}

// mayAsk tells whether a client is one of a domain's hosts; the error is ErrNotAllowed when it is not, another when that cannot be found out.
func (s *Station) mayAsk(ctx context.Context, d directory.Domain, box string, client netip.Addr) error {
	client = client.Unmap().WithZone("")
	listed, err := inIPAuth(filepath.Join(box, "ipauth"), client)
	if err != nil || listed {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	mx, _, err := s.config.Resolver.MX(ctx, d.Name)
	switch {
	case dnsx.IsNotFound(err):
		mx = []dnsx.MX{{Host: d.Name}}
	case err != nil:
		return fmt.Errorf("mail hosts of %s: %w", d.Name, err)
	}
	var trouble error
	for _, m := range mx[:min(len(mx), maxHosts)] {
		if m.Host == "" {
			continue
		}
		addresses, _, err := s.config.Resolver.Addrs(ctx, m.Host)
		if err != nil && !dnsx.IsNotFound(err) {
			trouble = fmt.Errorf("mail host %s: %w", m.Host, err)
		}
		if slices.ContainsFunc(addresses, func(a netip.Addr) bool { return a.Unmap() == client }) {
			return nil
		}
	}
	if trouble != nil {
		return trouble
	}
	return fmt.Errorf("%w: %s is neither a mail host of %s nor in its file ipauth", ErrNotAllowed, client, d.Name)
}

// inIPAuth looks an address up in a file of addresses and networks, one a line.
func inIPAuth(file string, client netip.Addr) (bool, error) {
	f, err := openFile(file, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, 1<<20))
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		line = strings.TrimSpace(line)
		if ip, err := netip.ParseAddr(line); err == nil && ip.Unmap() == client {
			return true, nil
		}
		if network, err := netip.ParsePrefix(line); err == nil && network.Contains(client) {
			return true, nil
		}
	}
	return false, lines.Err()
}

// waiting is mail in a directory: all in its Maildir, or only that for some domains.
type waiting struct {
	// dir holds Maildir.
	dir string
	// names are the domains, in lower case; none stands for all.
	names []string
	// prefix stands before recipients; "" stands for IndiMail's.
	prefix string
	// client is who asked for it on behalf of another host; not a valid one when that host did.
	client netip.Prefix
	lock   *os.File
}

// networkOf gives what a client is counted as.
func networkOf(client netip.Addr) netip.Prefix {
	client = client.Unmap().WithZone("")
	bits := client.BitLen()
	if client.Is6() {
		bits = 64
	}
	network, _ := client.Prefix(bits) // there are as many
	return network
}

func (w *waiting) path() string { return filepath.Join(w.dir, "Maildir") }

// open opens a message, if it is one of w.
func (w *waiting) open(m maildir.Message) (*letter, error) {
	prefix := w.prefix
	if prefix == "" {
		prefix = "autoturn-" + filepath.Base(w.dir) + "-"
	}
	l, err := open(m, prefix)
	if err != nil || len(w.names) == 0 || slices.Contains(w.names, strings.ToLower(l.to.Domain)) {
		return l, err
	}
	l.close()
	return nil, nil
}

// any tells whether any message of w waits.
func (w *waiting) any() (bool, error) {
	messages, err := maildir.List(w.path())
	if err != nil || len(w.names) == 0 {
		return len(messages) > 0, err
	}
	for _, m := range messages {
		if l, err := w.open(m); err == nil && l != nil {
			l.close()
			return true, nil
		}
	}
	return false, nil
}
