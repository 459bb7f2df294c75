// Package redis is knowledge: one connection to a server that speaks Redis's protocol (Redis, Valkey), which is either up or known to be down,
// so that nobody waits for a server that does not answer. It must not know what is kept there.
package redis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Options say where the server is and how to get in.
type Options struct {
	// Network and Address are what is dialled: "tcp" and host:port, or "unix" and a path; no Address means no server.
	Network, Address string
	// User is "" for the server's default user, Password "" for a server that asks for none.
	User, Password string
	DB             int
	// TLS is used where it is true, verified by the authorities in CA (PEM), or where that is empty by the system's.
	TLS bool
	CA  string
	// Prefix begins the name of every key and channel.
	Prefix string
}

// Config is what a Link stands on.
type Config struct {
	Dial   func(ctx context.Context, network, address string) (net.Conn, error)
	Now    func() time.Time
	Logger *slog.Logger
	// Host is the name that the others see in Status; "" for a process that is not counted among them.
	Host string
	// Scripts are all that Ask, Tell and Run are given.
	Scripts []*Script
	// Joined is called on each new connection before Ask may use it, and with again when the server was asked in vain and is found to answer
	// after all; an error ends the connection. Nil does nothing.
	Joined func(ctx context.Context, c *Conn, again bool) error
	// Heard has what is done with the messages of each channel, without the prefix. It must not wait.
	Heard map[string]func(text string)
	// Changed is called when the Link came up or went down. It must not wait; nil does nothing.
	Changed func(up bool)
	// Patience multiplies AskTime and the time for a sign of life, for tests that must not fail where the machine is slow; 0 is 1.
	Patience time.Duration
}

func (c Config) patient(limit time.Duration) time.Duration { return max(1, c.Patience) * limit }

const (
	// AskTime bounds a question. After one that takes longer none is asked until the server has given a sign of life.
	AskTime = 250 * time.Millisecond
	// LongTime bounds a question that an operator waits for.
	LongTime = 5 * time.Second
	// connectTime bounds a connection, with TLS and the login; joinTime what Joined does.
	connectTime = 2 * time.Second
	joinTime    = 30 * time.Second
	// beatEvery is the time between two signs of life, beatTime bounds each: a server that died while nobody asked is found out.
	beatEvery = 2 * time.Second
	beatTime  = time.Second
	// againFirst and againMost are the shortest and longest times between two tries; steady is how long a connection must have lasted for the
	// shortest.
	againFirst = 500 * time.Millisecond
	againMost  = 30 * time.Second
	steady     = time.Minute
	// maxAsking bounds the questions under way, maxTold what waits to be told, maxBatch what is told at once.
	maxAsking = 256
	maxTold   = 4096
	maxBatch  = 128
)

// ErrDown says that the server is known not to answer, ErrBusy that enough questions are under way: both at once, without a wait.
var (
	ErrDown = errors.New("the server that hosts share does not answer")
	ErrBusy = errors.New("too many questions to the server that hosts share are under way")
)

var errChanged = errors.New("the settings have changed")

// Status is how a Link fares.
type Status struct {
	// Server is where the server is, without secrets; "" when none is set.
	Server string `json:"server"`
	Up     bool   `json:"up"`
	// Since is when it came up or went down, Error why it is down.
	Since time.Time `json:"since,omitzero"`
	Error string    `json:"error,omitempty"`
	// Answered and Failed count questions, Skipped those that were not asked, and what was not told, because it was down or too much at once.
	Answered uint64 `json:"answered"`
	Failed   uint64 `json:"failed"`
	Skipped  uint64 `json:"skipped"`
	// Hosts are those that gave a sign of life within the last ten seconds, by name.
	Hosts []string `json:"hosts,omitempty"`
}

// told is what is to be done behind everybody's back.
type told struct {
	script *Script
	args   []string
	// channel and text are a message, when script is nil.
	channel, text string
}

// Link is the connection. Make one with New, begin with Start, end with Close. Safe for concurrent use.
type Link struct {
	config  Config
	current atomic.Pointer[Conn]
	asking  chan struct{}
	told    chan told
	wake    chan struct{}

	answered, failed, skipped atomic.Uint64

	mu      sync.Mutex
	options Options
	up      bool
	since   time.Time
	err     error
	// unsaid are messages for when it is up again: the last one of each channel.
	unsaid map[string]string
	// waiting counts what was told and is not done.
	waiting int
	idle    *sync.Cond

	cancel  context.CancelFunc
	serving sync.WaitGroup
}

// New makes a Link that is down until Start.
func New(config Config, o Options) *Link {
	l := &Link{config: config, options: o, asking: make(chan struct{}, maxAsking), told: make(chan told, maxTold), wake: make(chan struct{}, 1), unsaid: map[string]string{},
		since: config.Now(), cancel: func() {}}
	l.idle = sync.NewCond(&l.mu)
	return l
}

// Start connects, and does so again for as long as Close is not called.
func (l *Link) Start() {
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	l.serving.Go(func() { l.serve(ctx) })
}

// Close ends the connection and waits for all that used it.
func (l *Link) Close() {
	l.cancel()
	l.serving.Wait()
}

// Use has the server changed; with the same options nothing happens.
func (l *Link) Use(o Options) {
	l.mu.Lock()
	same := l.options == o
	l.options = o
	l.mu.Unlock()
	if same {
		return
	}
	if c := l.current.Load(); c != nil {
		c.broke(errChanged)
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Set tells whether there is a server at all.
func (l *Link) Set() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.options.Address != ""
}

// Up tells whether the server answers.
func (l *Link) Up() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up
}

func (l *Link) serve(ctx context.Context) {
	wait := againFirst
	for ctx.Err() == nil {
		l.mu.Lock()
		o := l.options
		l.mu.Unlock()
		if o.Address == "" {
			l.fell(nil)
			select {
			case <-ctx.Done():
			case <-l.wake:
			}
			continue
		}
		began := l.config.Now()
		err := l.session(ctx, o)
		if ctx.Err() != nil {
			break
		}
		l.fell(err)
		if errors.Is(err, errChanged) {
			continue
		}
		if l.config.Now().Sub(began) > steady {
			wait = againFirst
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
			wait = min(2*wait, againMost)
		case <-l.wake:
			wait = againFirst
		}
		timer.Stop()
	}
	l.fell(nil)
}

// fell says that the server is down, once; nil that there is none.
func (l *Link) fell(err error) {
	l.mu.Lock()
	was, before := l.up, l.err
	if l.up = false; errors.Is(err, errChanged) {
		// The first failure of the new one is told.
		l.err = nil
	} else {
		l.err = err
	}
	if was || before == nil && err != nil {
		l.since = l.config.Now()
	}
	server := l.options.Address
	l.mu.Unlock()
	if err != nil && (was || before == nil) && !errors.Is(err, errChanged) {
		l.config.Logger.Warn("the server that hosts share does not answer: each host counts failed logins by itself until it does", "server", server, "error", err)
	}
	if was && l.config.Changed != nil {
		l.config.Changed(false)
	}
}

func (l *Link) rose(c *Conn) {
	l.current.Store(c)
	l.mu.Lock()
	l.up, l.err, l.since = true, nil, l.config.Now()
	server := l.options.Address
	l.mu.Unlock()
	l.config.Logger.Info("the server that hosts share answers", "server", server)
	if l.config.Changed != nil {
		l.config.Changed(true)
	}
}

// session is one connection from beginning to end.
func (l *Link) session(ctx context.Context, o Options) error {
	ctx, cancel := context.WithCancel(ctx)
	var using sync.WaitGroup
	c, err := connect(ctx, l.config, o)
	if err != nil {
		cancel()
		return err
	}
	defer func() {
		l.current.CompareAndSwap(c, nil)
		cancel()
		c.close()
		using.Wait()
	}()
	if len(l.config.Heard) > 0 {
		// Before Joined: what is said from now on is heard.
		listen, err := c.subscribe(ctx, l.config.Heard)
		if err != nil {
			return err
		}
		using.Go(func() { c.broke(listen(ctx)) })
	}
	if err := c.load(ctx, l.config.Scripts); err != nil {
		return err
	}
	if err := l.join(ctx, c, false); err != nil {
		return err
	}
	l.rose(c)
	l.mu.Lock()
	unsaid := slices.Collect(maps.Keys(l.unsaid))
	l.mu.Unlock()
	for _, channel := range unsaid {
		l.tell(told{channel: channel})
	}
	using.Go(func() { l.tellAll(ctx, c) })
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-c.broken:
			return err
		case <-c.doubt:
			// It may be this host that was too busy.
			if err := l.join(ctx, c, true); err != nil {
				return err
			}
			l.current.Store(c)
		case <-tick.C:
			if err := c.beat(ctx, l.config.Host); err != nil {
				return err
			}
		}
	}
}

// join has a sign of life of the server, and what Joined does.
func (l *Link) join(ctx context.Context, c *Conn, again bool) error {
	if err := c.beat(ctx, l.config.Host); err != nil {
		return err
	}
	if l.config.Joined != nil {
		join, end := context.WithTimeout(ctx, joinTime)
		defer end()
		if err := l.config.Joined(join, c, again); err != nil {
			return err
		}
	}
	select {
	case err := <-c.broken:
		return err
	default:
		return nil
	}
}

// Ask runs a script and gives what it returns, within AskTime. ErrDown and ErrBusy come at once.
func (l *Link) Ask(ctx context.Context, s *Script, args ...string) ([]string, error) {
	return l.ask(ctx, l.config.patient(AskTime), s, args)
}

// AskLong is Ask within LongTime, for operators.
func (l *Link) AskLong(ctx context.Context, s *Script, args ...string) ([]string, error) {
	return l.ask(ctx, LongTime, s, args)
}

func (l *Link) ask(ctx context.Context, limit time.Duration, s *Script, args []string) ([]string, error) {
	c := l.current.Load()
	if c == nil {
		l.skipped.Add(1)
		return nil, ErrDown
	}
	select {
	case l.asking <- struct{}{}:
	default:
		l.skipped.Add(1)
		return nil, ErrBusy
	}
	defer func() { <-l.asking }()
	// A client that hangs up is counted all the same, and is no fault of the server's.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	answer, err := c.Run(ctx, s, args...)
	if err != nil {
		l.failed.Add(1)
		l.current.CompareAndSwap(c, nil)
		if ctx.Err() != nil || errors.Is(err, ErrBusy) {
			c.doubted()
		} else {
			c.broke(err)
		}
		return nil, err
	}
	l.answered.Add(1)
	return answer, nil
}

// Tell has a script run soon, in order, without a wait. While the server is down or in doubt, or with too much waiting, it is left out, and the
// result is false.
func (l *Link) Tell(s *Script, args ...string) bool {
	if l.current.Load() == nil {
		l.skipped.Add(1)
		return false
	}
	return l.tell(told{script: s, args: args})
}

// Announce sends a message to a channel, named without the prefix, soon; while the server is down the last one for each channel waits.
func (l *Link) Announce(channel, text string) {
	l.mu.Lock()
	if l.options.Address == "" {
		l.mu.Unlock()
		return
	}
	_, waits := l.unsaid[channel]
	l.unsaid[channel] = text
	l.mu.Unlock()
	if !waits {
		l.tell(told{channel: channel})
	}
}

func (l *Link) tell(t told) bool {
	l.count(1)
	select {
	case l.told <- t:
		return true
	default:
		l.skipped.Add(1)
		l.count(-1)
		return false
	}
}

func (l *Link) count(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting += n; l.waiting == 0 {
		l.idle.Broadcast()
	}
}

// Flush waits until what was told and announced is done, or ctx ends.
func (l *Link) Flush(ctx context.Context) {
	stop := context.AfterFunc(ctx, l.idle.Broadcast)
	defer stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.waiting > 0 && ctx.Err() == nil {
		l.idle.Wait()
	}
}

// tellAll does what is told until the connection ends.
func (l *Link) tellAll(ctx context.Context, c *Conn) {
	var batch []told
	for {
		batch = batch[:0]
		select {
		case <-ctx.Done():
			return
		case t := <-l.told:
			batch = append(batch, t)
		}
	more:
		for len(batch) < maxBatch {
			select {
			case t := <-l.told:
				batch = append(batch, t)
			default:
				break more
			}
		}
		for i := range batch {
			if t := &batch[i]; t.script == nil {
				l.mu.Lock()
				if text, ok := l.unsaid[t.channel]; ok {
					t.text = text
					delete(l.unsaid, t.channel)
				} else {
					t.channel = ""
				}
				l.mu.Unlock()
			}
		}
		err := c.tell(ctx, batch)
		if err != nil {
			l.failed.Add(1)
			l.mu.Lock()
			for _, t := range batch {
				if _, newer := l.unsaid[t.channel]; t.channel != "" && !newer {
					l.unsaid[t.channel] = t.text
				}
			}
			l.mu.Unlock()
			for _, t := range batch {
				if t.channel != "" {
					// It is said when the server is back.
					l.tell(told{channel: t.channel})
				}
			}
		}
		l.count(-len(batch))
		if err != nil {
			l.current.CompareAndSwap(c, nil)
			c.broke(err)
			return
		}
	}
}

// Status is Stats, and which hosts there are.
func (l *Link) Status(ctx context.Context) Status {
	s := l.Stats()
	if c := l.current.Load(); c != nil {
		ctx, cancel := context.WithTimeout(ctx, l.config.patient(beatTime))
		defer cancel()
		s.Hosts, _ = c.hosts(ctx)
	}
	return s
}

// Stats tells how it fares, without a question.
func (l *Link) Stats() Status {
	l.mu.Lock()
	s := Status{Server: l.options.Address, Up: l.up, Since: l.since}
	if s.Server == "" {
		s.Since = time.Time{}
	} else if !s.Up {
		s.Error = "not connected yet"
		if l.err != nil {
			s.Error = l.err.Error()
		}
	}
	l.mu.Unlock()
	s.Answered, s.Failed, s.Skipped = l.answered.Load(), l.failed.Load(), l.skipped.Load()
	return s
}

// tlsConfig gives what the server's certificate is verified by.
func (o Options) tlsConfig() (*tls.Config, error) {
	host, _, err := net.SplitHostPort(o.Address)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if o.CA != "" {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM([]byte(o.CA)) {
			return nil, errors.New("no certificate in PEM among the authorities")
		}
	}
	return config, nil
}

// Check tells what is wrong with the options before anything is dialled.
func (o Options) Check() error {
	if o.TLS {
		if _, err := o.tlsConfig(); err != nil {
			return fmt.Errorf("TLS: %w", err)
		}
	}
	return nil
}
