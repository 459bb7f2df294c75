// Package remote is a station: it delivers to other hosts by SMTP. It must not know why or when a message is tried.
package remote

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/dnsx"
	"github.com/indigomail/indigo/internal/lists"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
)

// Config is what a Deliverer needs.
type Config struct {
	Resolver dnsx.Resolver
	Dial     func(ctx context.Context, network, address string) (net.Conn, error)
	// DialFrom is Dial from an address of this host, for OUTGOINGIP; nil where that cannot be.
	DialFrom func(ctx context.Context, local netip.Addr, network, address string) (net.Conn, error)
	Settings func() *settings.View
	// Hostname is this system's name, never a relay for itself.
	Hostname func() string
	Now      func() time.Time
	Logger   *slog.Logger
	// Tokens gets the tokens of routes that have a file in the password's place; nil where none can be had.
	Tokens TokenSource
	// Memory is a file that keeps what is known of dead hosts from one process to the next, as qmail's tcpto; "" means none.
	Memory string
	// Lists looks into lists; nil looks into texts and constant databases only.
	Lists Lists
	// Certificates gives the directory with clientcert.pem, tlshosts and notlshosts (wiki 2099); nil or "" for none. Data is what the
	// files of other settings are relative to.
	Certificates func() string
	Data         string
}

// Lists looks keys up in a control file that may be a text, a constant database or a table of SQL; see lists.Finder.
type Lists interface {
	Find(ctx context.Context, l *settings.List, keys ...string) (lists.Hit, error)
}

// TokenSource gives the OAuth token of a file for logging in; *oauth.Grants is one. Forget is told that a server did not take it. The
// error is for the operator.
type TokenSource interface {
	Token(ctx context.Context, file string) (token string, err error)
	Forget(file string)
}

const (
	maxIdle     = 20
	idleFor     = 3 * time.Second
	maxMessages = 100
	deadFirst   = time.Minute
	deadLongest = time.Hour
	// refusedFor is how long a login that was refused is not tried again.
	refusedFor  = 5 * time.Minute
	maxAttempts = 10
)

// Deliverer implements queue.Deliverer.
type Deliverer struct {
	config Config
	mu     sync.Mutex
	// idle holds open connections by what they lead to.
	idle map[string][]*client
	// dead remembers addresses that did not answer.
	dead map[string]deadHost
	// refused remembers logins, by the key of their way, that a relay did not take; warned when the log was told of a certificate.
	refused map[string]refusal
	warned  map[string]time.Time
	closed  bool
	stop    chan struct{}
	done    sync.WaitGroup
}

type deadHost struct {
	// first and since are the first and the last failure.
	first, since, until time.Time
	times               int
}

type refusal struct {
	reply *mailerr.Error
	until time.Time
}

// DeadHost is an address that did not answer.
type DeadHost struct {
	Address string `json:"address"`
	// First and Since are its first and its last failure; Until it is left alone.
	First time.Time `json:"first"`
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
	// Times counts failures without an answer between them.
	Times int `json:"times"`
}

// Dead gives the addresses that did not answer, in order.
func (d *Deliverer) Dead() []DeadHost {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]DeadHost, 0, len(d.dead))
	for address, h := range d.dead {
		all = append(all, DeadHost{address, h.first, h.since, h.until, h.times})
	}
	slices.SortFunc(all, func(a, b DeadHost) int { return strings.Compare(a.Address, b.Address) })
	return all
}

// Forget forgets that an address, or with "" any, did not answer, and tells how many it forgot; with "" also which logins were
// refused.
func (d *Deliverer) Forget(address string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if address == "" {
		n = len(d.refused)
		clear(d.refused)
	}
	for a := range d.dead {
		if address == "" || a == address {
			delete(d.dead, a)
			n++
		}
	}
	return n
}

// remember reads the memory of another process; what cannot be read is not known.
func (d *Deliverer) remember() {
	text, err := os.ReadFile(d.config.Memory)
	var all []DeadHost
	if err != nil || json.Unmarshal(text, &all) != nil {
		return
	}
	for _, h := range all {
		d.dead[h.Address] = deadHost{h.First, h.Since, h.Until, h.Times}
	}
}

// New makes a Deliverer. Close ends it.
func New(config Config) (*Deliverer, error) {
	d := &Deliverer{config: config, idle: map[string][]*client{}, dead: map[string]deadHost{}, refused: map[string]refusal{}, warned: map[string]time.Time{}, stop: make(chan struct{})}
	if config.Lists == nil {
		d.config.Lists = (*lists.Finder)(nil)
	}
	if config.Memory != "" {
		d.remember()
	}
	d.done.Go(d.sweep)
	return d, nil
}

// Close closes idle connections; deliveries must have ended before.
func (d *Deliverer) Close() {
	close(d.stop)
	d.done.Wait()
	d.mu.Lock()
	d.closed = true
	for _, list := range d.idle {
		for _, c := range list {
			c.quit()
		}
	}
	d.idle = nil
	d.mu.Unlock()
	if d.config.Memory == "" {
		return
	}
	text, err := json.Marshal(d.Dead())
	if err == nil {
		err = os.WriteFile(d.config.Memory, text, 0o600)
	}
	if err != nil {
		d.config.Logger.Warn("memory of dead hosts: " + err.Error())
	}
}

// sweep closes connections that idled too long.
func (d *Deliverer) sweep() {
	tick := time.NewTicker(idleFor / 3)
	defer tick.Stop()
	for {
		select {
		case <-d.stop:
			return
		case <-tick.C:
		}
		now := d.config.Now()
		var old []*client
		d.mu.Lock()
		for key, list := range d.idle {
			keep := list[:0]
			for _, c := range list {
				if now.Sub(c.since) > idleFor {
					old = append(old, c)
				} else {
					keep = append(keep, c)
				}
			}
			if d.idle[key] = keep; len(keep) == 0 {
				delete(d.idle, key)
			}
		}
		for ip, h := range d.dead {
			if now.After(h.until.Add(deadLongest)) {
				delete(d.dead, ip)
			}
		}
		for key, r := range d.refused {
			if now.After(r.until) {
				delete(d.refused, key)
			}
		}
		for address, at := range d.warned {
			if now.Sub(at) > refusedFor {
				delete(d.warned, address)
			}
		}
		d.mu.Unlock()
		for _, c := range old {
			c.quit()
		}
	}
}

func (d *Deliverer) take(key string) *client {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := d.idle[key]
	if len(list) == 0 {
		return nil
	}
	c := list[len(list)-1]
	d.idle[key] = list[:len(list)-1]
	return c
}

func (d *Deliverer) give(key string, c *client) {
	d.mu.Lock()
	keep := !d.closed && c.usable && c.messages < maxMessages && len(d.idle[key]) < maxIdle
	if keep {
		c.since = d.config.Now()
		d.idle[key] = append(d.idle[key], c)
	}
	d.mu.Unlock()
	if !keep {
		c.quit()
	}
}

// all gives every recipient the same result.
func all(job *queue.Delivery, e *mailerr.Error, dialogue []string) []queue.Result {
	results := make([]queue.Result, len(job.Recipients))
	for i := range results {
		results[i] = queue.Result{Err: e, Text: e.Text, Dialogue: dialogue}
	}
	return results
}

// Deliver makes one SMTP transaction with the best host that takes it; where rules give recipients ways of their own
// (wiki 2278-2287), one for each way.
func (d *Deliverer) Deliver(ctx context.Context, job *queue.Delivery) []queue.Result {
	view := d.config.Settings()
	if settings.FromdRules.Get(view).Len() == 0 && settings.RcptRules.Get(view).Len() == 0 {
		if w, err := d.wayFor(ctx, view, job.Host, job.Envelope.Sender, job.Recipients[0].Address); err != nil || !w.each {
			return d.deliver(ctx, job, w, err)
		}
	}
	type group struct {
		way     way
		err     error
		indexes []int
	}
	var order []string
	groups := map[string]*group{}
	for i, r := range job.Recipients {
		own := view.ForDelivery(job.Envelope.Sender, r.Address)
		w, err := d.wayFor(ctx, own, job.Host, job.Envelope.Sender, r.Address)
		key := w.key(job.Host)
		if err != nil {
			key = err.Error()
		}
		if groups[key] == nil {
			groups[key] = &group{way: w, err: err}
			order = append(order, key)
		}
		groups[key].indexes = append(groups[key].indexes, i)
	}
	results := make([]queue.Result, len(job.Recipients))
	for _, key := range order {
		g := groups[key]
		part := *job
		part.Recipients = nil
		for _, i := range g.indexes {
			part.Recipients = append(part.Recipients, job.Recipients[i])
		}
		for n, r := range d.deliver(ctx, &part, g.way, g.err) {
			results[g.indexes[n]] = r
		}
	}
	return results
}

// deliver makes one transaction by the way w; err says that there is none.
func (d *Deliverer) deliver(ctx context.Context, job *queue.Delivery, w way, err error) []queue.Result {
	if err != nil {
		d.config.Logger.Warn("mail for " + job.Host + " is deferred: " + err.Error())
		return all(job, misconfigured(err), []string{"! " + err.Error()})
	}
	route, key := w.route, w.key(job.Host)
	// An idle connection may have died meanwhile; before anything was accepted a fresh one takes over.
	for c := d.take(key); c != nil; c = d.take(key) {
		results, fresh := c.send(ctx, job)
		d.give(key, c)
		if !fresh {
			return results
		}
	}
	if e := d.wasRefused(key); e != nil {
		return all(job, e, []string{"! " + route.Host + " refused the login lately; it is tried again when user, password or settings have changed, or a few minutes later"})
	}
	if w.login.TokenFile != "" {
		if w.token, err = d.token(ctx, w.login.TokenFile); err != nil {
			err = fmt.Errorf("no token to log in at %s with, of user %s in %s: %w", route.Host, w.login.User, w.login.Where, err)
			d.config.Logger.Warn("mail for " + job.Host + " is deferred: " + err.Error())
			return all(job, unusable(err), []string{"! " + err.Error()})
		}
	}
	targets, e := d.targets(ctx, job.Host, route)
	if e != nil {
		return all(job, e, nil)
	}
	var dialogue []string
	last := mailerr.New(451, mailerr.Enhanced{4, 4, 1}, "Sorry, I wasn't able to establish an SMTP connection. (#4.4.1)")
	// tried tells people which hosts failed and why.
	var tried []string
	living, until := d.alive(targets, w)
	if len(living) == 0 {
		for _, t := range targets[:min(len(targets), 5)] {
			tried = append(tried, t.String()+": did not answer lately; left alone until "+until.UTC().Format(time.RFC3339))
		}
		dialogue = append(dialogue, "none of the hosts answered lately; they are left alone until "+until.UTC().Format(time.RFC3339))
	}
	for _, t := range living {
		c, said, e := d.connect(ctx, t, w)
		if c == nil {
			dialogue = append(append(dialogue, t.String()+": "+e.Error()), said...)
			tried = append(tried, t.String()+": "+reason(e))
			last = e
			if ctx.Err() != nil || d.wasRefused(key) != nil {
				break
			}
			continue
		}
		results, again := c.send(ctx, job)
		if len(dialogue) > 0 {
			for i := range results {
				results[i].Dialogue = append(slices.Clone(dialogue), results[i].Dialogue...)
			}
		}
		d.give(key, c)
		if again {
			dialogue = results[0].Dialogue
			last = results[0].Err
			continue
		}
		return results
	}
	results := all(job, last, dialogue)
	for i := range results {
		results[i].Text = strings.Join(append([]string{results[i].Text}, tried...), "\n")
	}
	return results
}

// reason gives the cause of a failure to connect without what the line around it says already.
func reason(e *mailerr.Error) string {
	var network *net.OpError
	switch {
	case errors.As(e.Cause, &network):
		return network.Err.Error()
	case e.Cause != nil:
		return e.Cause.Error()
	}
	return e.Reply()
}

// misconfigured is the deferral of mail whose way is not to be found; the cause is not for the sender.
func misconfigured(err error) *mailerr.Error {
	if errors.Is(err, errExposed) {
		return unusable(err)
	}
	if errors.Is(err, errTLSFiles) {
		return mailerr.New(451, mailerr.Enhanced{4, 7, 5}, "What this system has for TLS with that host cannot be used. (#4.7.5)").Because(err)
	}
	return mailerr.New(451, mailerr.Enhanced{4, 3, 5}, "The static routes of this system are malformed. (#4.3.5)").Because(err)
}

// unusable is the deferral of mail that cannot be sent without credentials.
func unusable(err error) *mailerr.Error {
	return mailerr.New(451, mailerr.Enhanced{4, 7, 0}, "The credentials of this system for that relay cannot be used. (#4.7.0)").Because(err)
}

// token gives the token of a file.
func (d *Deliverer) token(ctx context.Context, file string) (string, error) {
	if d.config.Tokens == nil {
		return "", errors.New("this program gets no tokens")
	}
	return d.config.Tokens.Token(ctx, file)
}

// Way is where mail for a destination would go now.
type Way struct {
	// Route is the relay that Setting names, and who logs in there, without the password; "" when the DNS decides.
	Route string
	// Setting is what gave the route, and Layer where it stands.
	Setting, Layer string
	// Hosts are the addresses in the order in which they would be tried, as "mx.example.org (192.0.2.1:25)".
	Hosts []string
}

// Way finds the way of mail from a sender to a recipient at a destination, without connecting to anybody. The error is what a
// delivery would meet.
func (d *Deliverer) Way(ctx context.Context, host string, from, to addr.Address) (Way, *mailerr.Error) {
	view := d.config.Settings().ForDelivery(from, to)
	w, err := d.wayFor(ctx, view, host, from, to)
	if err != nil {
		return Way{}, misconfigured(err)
	}
	way := Way{Route: w.String()}
	if w.route != nil {
		way.Setting, way.Layer = w.setting.Name, view.Source(w.setting).String()
	}
	targets, e := d.targets(ctx, host, w.route)
	for _, t := range targets {
		text := t.String()
		wants, err := d.demands(t, w)
		switch {
		case err != nil:
			text += ": " + err.Error()
		case w.login.User != "" || !wants.tries || wants.wanted:
			text += ": " + wants.String()
		}
		way.Hosts = append(way.Hosts, text)
	}
	return way, e
}

// target is one address to try.
type target struct {
	name    string
	address string
}

func (t target) String() string { return t.name + " (" + t.address + ")" }

// targets finds the addresses of a destination in the order in which they are to be tried (RFC 5321 section 5.1).
func (d *Deliverer) targets(ctx context.Context, domain string, route *settings.Route) ([]target, *mailerr.Error) {
	dnsTrouble := func(err error) *mailerr.Error {
		return mailerr.New(451, mailerr.Enhanced{4, 4, 3}, "DNS lookup failed temporarily. (#4.4.3)").Because(err)
	}
	port := "25"
	var hosts []string
	switch {
	case route != nil:
		hosts, port = []string{route.Host}, route.Port
	case strings.HasPrefix(domain, "["):
		literal := strings.Trim(domain, "[]")
		if len(literal) > 5 && strings.EqualFold(literal[:5], "IPv6:") {
			literal = literal[5:]
		}
		hosts = []string{literal}
	default:
		mx, _, err := d.config.Resolver.MX(ctx, domain)
		if err != nil && !dnsx.IsNotFound(err) {
			return nil, dnsTrouble(err)
		}
		if len(mx) == 1 && mx[0].Host == "" {
			return nil, mailerr.New(556, mailerr.Enhanced{5, 1, 10}, "The domain says that it takes no mail. (#5.1.10)")
		}
		rand.Shuffle(len(mx), func(i, j int) { mx[i], mx[j] = mx[j], mx[i] })
		slices.SortStableFunc(mx, func(a, b dnsx.MX) int { return int(a.Preference) - int(b.Preference) })
		for i, m := range mx {
			if strings.EqualFold(m.Host, d.config.Hostname()) {
				// What is no better than this host leads back here.
				mx = slices.DeleteFunc(mx, func(o dnsx.MX) bool { return o.Preference >= mx[i].Preference })
				if len(mx) == 0 {
					return nil, mailerr.New(554, mailerr.Enhanced{5, 4, 6}, "Sorry. Although I'm listed as a best-preference MX for that host, it isn't in my directory, so I don't treat it as local. (#5.4.6)")
				}
				break
			}
		}
		for _, m := range mx {
			hosts = append(hosts, m.Host)
		}
		if len(hosts) == 0 {
			hosts = []string{domain}
		}
	}
	var targets []target
	var trouble error
	for _, h := range hosts {
		if ip, err := netip.ParseAddr(h); err == nil {
			targets = append(targets, target{h, net.JoinHostPort(ip.String(), port)})
			continue
		}
		ips, _, err := d.config.Resolver.Addrs(ctx, h)
		if err != nil && !dnsx.IsNotFound(err) {
			trouble = err
		}
		for _, ip := range ips {
			targets = append(targets, target{h, net.JoinHostPort(ip.String(), port)})
		}
	}
	switch {
	case len(targets) > 0:
		return targets[:min(len(targets), maxAttempts)], nil
	case trouble != nil:
		return nil, dnsTrouble(trouble)
	case route != nil:
		return nil, mailerr.New(451, mailerr.Enhanced{4, 4, 4}, "The relay for that domain has no address. (#4.4.4)")
	}
	return nil, mailerr.Newf(550, mailerr.Enhanced{5, 1, 2}, "Sorry, I couldn't find any host named %s. (#5.1.2)", domain)
}

// alive leaves out addresses that did not answer lately. When none is left, until is when the first may be tried again.
func (d *Deliverer) alive(targets []target, w way) (living []target, until time.Time) {
	if penalty, _, ok := w.patience(); ok && penalty == 0 {
		return targets, until
	}
	now := d.config.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range targets {
		h := d.dead[t.address]
		if !now.Before(h.until) {
			living = append(living, t)
		} else if until.IsZero() || h.until.Before(until) {
			until = h.until
		}
	}
	return living, until
}

// mark remembers whether an address answered.
func (d *Deliverer) mark(address string, alive bool, w way) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if alive {
		delete(d.dead, address)
		return
	}
	h, now := d.dead[address], d.config.Now()
	if now.Before(h.until) {
		// Of many attempts that failed together one counts.
		return
	}
	if h.times++; h.times == 1 {
		h.first = now
	}
	h.since = now
	switch penalty, tolerance, ok := w.patience(); {
	case !ok:
		h.until = now.Add(min(time.Duration(h.times*h.times)*deadFirst, deadLongest))
	case now.Sub(h.first) >= tolerance:
		h.until = now.Add(penalty)
	default:
		h.until = now
	}
	d.dead[address] = h
}

// wasRefused gives the deferral for mail whose relay refused the same login a short time ago; nil when it may be tried.
func (d *Deliverer) wasRefused(key string) *mailerr.Error {
	d.mu.Lock()
	defer d.mu.Unlock()
	r, ok := d.refused[key]
	if !ok || !d.config.Now().Before(r.until) {
		return nil
	}
	return r.reply
}

// refuse logs that a relay refused a login, and remembers it, so that many messages do not lock the account.
func (d *Deliverer) refuse(t target, w way, e *mailerr.Error) {
	if w.login.TokenFile != "" {
		d.config.Tokens.Forget(w.login.TokenFile)
	}
	d.config.Logger.Warn(fmt.Sprintf("%s refuses the login of user %s: put right user and password in %s, then `indigo reload`; `indigo explain` has the dialogue",
		t, w.login.User, w.login.Where), "reply", e.Reply())
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refused[w.key("")] = refusal{e, d.config.Now().Add(refusedFor)}
}

// warn logs what keeps mail from a server, once in a while.
func (d *Deliverer) warn(address, text string) {
	d.mu.Lock()
	at, ok := d.warned[address]
	now := d.config.Now()
	if !ok || now.Sub(at) > refusedFor {
		d.warned[address] = now
	}
	d.mu.Unlock()
	if !ok || now.Sub(at) > refusedFor {
		d.config.Logger.Warn(text)
	}
}

// dial connects from the address local, if that is valid.
func (d *Deliverer) dial(ctx context.Context, local netip.Addr, address string) (net.Conn, error) {
	if !local.IsValid() {
		return d.config.Dial(ctx, "tcp", address)
	}
	if d.config.DialFrom == nil {
		return nil, errors.New("this system cannot choose the address that connections come from")
	}
	return d.config.DialFrom(ctx, local, "tcp", address)
}

// connect opens a connection to a target up to EHLO, TLS and AUTH. When that fails, said is the dialogue.
func (d *Deliverer) connect(ctx context.Context, t target, w way) (c *client, said []string, e *mailerr.Error) {
	wants, err := d.demands(t, w)
	var config *tls.Config
	if err == nil {
		config, err = d.tlsConfig(wants, w)
	}
	if err != nil {
		d.warn(t.address, "mail for "+t.String()+" waits: "+err.Error())
		return nil, []string{"! " + err.Error()}, misconfigured(err)
	}
	buffer := 4 << 10
	if w.login.User != "" {
		buffer = maxAuthLine
	}
	tries := []bool{true, false}
	switch {
	case wants.wanted:
		tries = tries[:1]
	case !wants.tries:
		tries = tries[1:]
	}
	for _, tryTLS := range tries {
		dialCtx, cancel := context.WithTimeout(ctx, settings.TimeoutConnect.Get(w.view))
		conn, err := d.dial(dialCtx, w.local, t.address)
		cancel()
		if err != nil {
			d.mark(t.address, false, w)
			return nil, nil, mailerr.New(451, mailerr.Enhanced{4, 4, 1}, "Sorry, I wasn't able to establish an SMTP connection. (#4.4.1)").Because(err)
		}
		d.mark(t.address, true, w)
		c := newClient(conn, t, settings.TimeoutRemote.Get(w.view), buffer)
		c.demands, c.login, c.now = wants, w.login.User != "", d.config.Now
		stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
		var e *mailerr.Error
		if w.implicit() {
			e = c.handshake(ctx, config)
		}
		if e == nil {
			e = c.hello(w.helo)
		}
		if e == nil && tryTLS && !c.tls && c.offers("STARTTLS") {
			if e = c.startTLS(ctx, w.helo, config); e != nil && errors.Is(e, errTLS) && !wants.wanted {
				// Opportunistic TLS (RFC 7435): without it is better than not at all.
				stop()
				conn.Close()
				continue
			}
		}
		if e == nil && wants.wanted && !c.tls {
			e = c.insecure()
		}
		if e == nil && w.login.User != "" {
			var refused bool
			if refused, e = c.authenticate(w); refused {
				d.refuse(t, w, e)
			}
		}
		stop()
		if e != nil {
			c.quit()
			if c.wayOut != "" {
				d.warn(t.address, e.Error()+": "+c.wayOut)
			}
			return nil, c.dialogue, e
		}
		return c, nil, nil
	}
	return nil, nil, mailerr.New(451, mailerr.Enhanced{4, 7, 5}, fmt.Sprintf("TLS with %s failed. (#4.7.5)", t.name))
}
