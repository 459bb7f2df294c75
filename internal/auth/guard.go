package auth

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/mailerr"
)

// Limits are what a Guard bears of failed logins.
type Limits struct {
	// Client and Account are how many may fail within Time, of one address (IPv6: of one /64) and for one account from all addresses; then
	// logins are refused for Time. 0 bears all.
	Client, Account int
	Time            time.Duration
	// Delay bounds how long the reply to a failed login is kept back; 0 keeps none back.
	Delay time.Duration
	// Exempt are networks whose failures are not counted.
	Exempt []netip.Prefix
}

// GuardConfig is what a Guard stands on.
type GuardConfig struct {
	// Limits gives those of a service, smtpd.587. What failed at one service counts at all.
	Limits func(service string) Limits
	Now    func() time.Time
	Logger *slog.Logger
}

// Guard keeps count of failed logins: it has their clients wait ever longer for the reply, and then refuses logins without a look at the
// password. Who logged in lately to the same account from the same address is never refused. What it keeps is bounded, in memory, and this
// process's own. Safe for concurrent use.
type Guard struct {
	config GuardConfig
	seed   maphash.Seed
	// delays bounds how many replies are kept back at a time.
	delays chan struct{}

	mu       sync.Mutex
	clients  *recent[string, *failures]
	accounts *recent[string, *failures]
	// known has pairs of account and client, hashed, with the seconds of their last login.
	known *recent[uint64, int64]
	stats GuardStats
}

// GuardStats are what metrics tell of a Guard.
type GuardStats struct {
	// Failed counts failed logins, Repeated those among them that repeated a wrong password, Refused those refused without a look, Locks how
	// often an address or account was locked.
	Failed, Repeated, Refused, Locks uint64
	// Delayed is how many replies are kept back now, Clients, Accounts and Known what is kept in memory.
	Delayed, Clients, Accounts, Known int
}

// failures are those of an address or account. level falls by limit/Time.
type failures struct {
	level float64
	last  time.Time
	until time.Time
	since time.Time
	// running counts checks under way; refused those since the lock began.
	running int
	refused uint64
	// wrong are the last wrong passwords, hashed with a key of this process.
	wrong [8]uint64
	next  int
}

const (
	// maxFailing and maxKnown bound each table, together with its older half. They take at most 12 and 16 MiB.
	maxFailing = 10000
	maxKnown   = 1 << 17
	// maxDelays bounds the connections that wait, so that they do not eat up the services' MAXDAEMONS.
	maxDelays = 100
	// KnownTime is how long an address stays known from which a user has logged in.
	KnownTime = 30 * 24 * time.Hour
	// maxAccount bounds a name that is kept.
	maxAccount = 128
)

// ErrLocked is the cause of a refusal because of failed logins before.
var ErrLocked = errors.New("locked")

var errLocked = mailerr.New(454, mailerr.Enhanced{4, 7, 0}, "too many failed logins, try again later (#4.7.0)")

// NewGuard makes a Guard.
func NewGuard(config GuardConfig) *Guard {
	g := &Guard{config: config, seed: maphash.MakeSeed(), delays: make(chan struct{}, maxDelays)}
	locked := func(f *failures) bool { return f.until.After(config.Now()) || f.running > 0 }
	g.clients, g.accounts = newRecent[string](maxFailing, locked), newRecent[string](maxFailing, locked)
	g.known = newRecent[uint64](maxKnown, func(int64) bool { return false })
	return g
}

// clientName gives what an address is counted under.
func clientName(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	if !a.IsValid() {
		return ""
	}
	if a.Is6() {
		network, _ := a.Prefix(64)
		return network.String()
	}
	return a.String()
}

func (l Limits) exempt(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(l.Exempt, func(n netip.Prefix) bool { return n.Contains(a) })
}

func (g *Guard) hash(words ...string) uint64 {
	var h maphash.Hash
	h.SetSeed(g.seed)
	for _, w := range words {
		h.WriteString(w)
		h.WriteByte(0)
	}
	return h.Sum64()
}

// fall gives f its level at a time.
func (f *failures) fall(limit int, l Limits, now time.Time) {
	if l.Time <= 0 || limit <= 0 {
		limit, l.Time = 1, time.Minute
	}
	if passed := now.Sub(f.last); passed > 0 {
		f.level = max(0, f.level-float64(limit)*passed.Seconds()/l.Time.Seconds())
	}
	f.last = now
}

// before tells whether a login may be tried, and whether its client is known for the account. One with a password is under way until
// after.
func (g *Guard) before(a Attempt, account string) (known bool, err error) {
	limits, client, now := g.config.Limits(a.Service), clientName(a.Client), g.config.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	at, seen := g.known.get(g.hash(account, client))
	known = account != "" && seen && now.Sub(time.Unix(at, 0)) < KnownTime
	if client == "" || known || limits.exempt(a.Client) {
		return known, nil
	}
	for _, one := range []struct {
		table *recent[string, *failures]
		name  string
		limit int
		what  string
	}{{g.clients, client, limits.Client, "client"}, {g.accounts, account, limits.Account, "account"}} {
		f, ok := one.table.get(one.name)
		if !ok || one.limit == 0 || one.name == "" {
			continue
		}
		f.fall(one.limit, limits, now)
		// Many at once are not let in before the first has failed.
		if f.until.After(now) || f.running > 0 && f.level+float64(f.running)/2 >= float64(one.limit) {
			f.refused++
			g.stats.Refused++
			return false, errLocked.Because(fmt.Errorf("%w: too many failed logins by the %s", ErrLocked, one.what))
		}
	}
	if a.Password != "" {
		for _, f := range g.both(client, account, now) {
			f.running++
		}
	}
	return false, nil
}

// both gives the entries of a client and of an account. Where the client gave no name, as tokens need none, there is the first alone.
func (g *Guard) both(client, account string, now time.Time) []*failures {
	if account == "" {
		return []*failures{g.entry(g.clients, client, now)}
	}
	return []*failures{g.entry(g.clients, client, now), g.entry(g.accounts, account, now)}
}

func (g *Guard) entry(table *recent[string, *failures], name string, now time.Time) *failures {
	f, ok := table.get(name)
	if !ok {
		f = &failures{last: now}
		table.put(name, f)
	}
	return f
}

// after is told what came of a login that before let through with the same attempt, and keeps the reply back that it is to get. As long as
// that lasts no worker is held.
func (g *Guard) after(ctx context.Context, a Attempt, known bool, account string, identity Identity, err error) {
	wait := g.count(a, known, account, identity, err)
	if wait == 0 {
		return
	}
	select {
	case g.delays <- struct{}{}:
	default:
		return
	}
	defer func() { <-g.delays }()
	nap(ctx, wait)
}

func (g *Guard) count(a Attempt, known bool, account string, identity Identity, err error) (wait time.Duration) {
	limits, client, now := g.config.Limits(a.Service), clientName(a.Client), g.config.Now()
	counted := client != "" && !limits.exempt(a.Client)
	g.mu.Lock()
	if a.Password != "" && counted && !known {
		for _, f := range g.both(client, account, now) {
			f.running = max(0, f.running-1)
		}
	}
	if err == nil && client != "" {
		if account != "" {
			g.known.put(g.hash(account, client), now.Unix())
		}
		g.known.put(g.hash(identity.Address.Key(), client), now.Unix())
	}
	// The right password for a service that is switched off is no wrong one.
	if err == nil || mailerr.From(err).Code != errFailed.Code || errors.Is(err, errSwitchedOff) {
		g.forget(client, account)
		g.mu.Unlock()
		return 0
	}
	g.stats.Failed++
	var locks []string
	repeated := false
	if counted {
		byClient := g.entry(g.clients, client, now)
		repeated = byClient.add(g.hash(account, a.Password), a.Password != "", limits.Client, limits, now)
		if byClient.lock(limits.Client, limits, now) {
			locks = append(locks, "client")
		}
		level := byClient.level
		if account != "" {
			byAccount := g.entry(g.accounts, account, now)
			byAccount.add(g.hash(a.Password), a.Password != "", limits.Account, limits, now)
			if byAccount.lock(limits.Account, limits, now) {
				locks = append(locks, "account")
			}
			if !known {
				level = max(level, byAccount.level)
			}
		}
		wait = delay(level, limits.Delay)
	}
	if repeated {
		g.stats.Repeated++
	}
	g.stats.Locks += uint64(len(locks))
	g.mu.Unlock()
	// The address goes first: what follows a name that a client chose is not to be believed.
	address := ""
	if a.Client.IsValid() {
		address = a.Client.Unmap().WithZone("").String()
	}
	g.config.Logger.Warn("login failed", "client", address, "service", a.Service, "mechanism", a.Mechanism, "user", cut(a.User))
	for _, what := range locks {
		name := map[string]string{"client": client, "account": account}[what]
		g.config.Logger.Warn("logins locked", "by", what, "seconds", int(limits.Time.Seconds()), "name", name)
	}
	return wait
}

// forget drops the entries of an address and account that tell nothing.
func (g *Guard) forget(client, account string) {
	if f, ok := g.clients.get(client); ok && f.idle() {
		g.clients.remove(client)
	}
	if f, ok := g.accounts.get(account); ok && f.idle() {
		g.accounts.remove(account)
	}
}

func (f *failures) idle() bool { return f.running == 0 && f.level == 0 && f.until.IsZero() }

// add counts a failure, unless the same wrong password failed before.
func (f *failures) add(wrong uint64, isPassword bool, limit int, l Limits, now time.Time) (repeated bool) {
	f.fall(limit, l, now)
	if isPassword {
		if slices.Contains(f.wrong[:], wrong) {
			return true
		}
		f.wrong[f.next] = wrong
		f.next = (f.next + 1) % len(f.wrong)
	}
	f.level++
	return false
}

// lock locks when the limit is reached.
func (f *failures) lock(limit int, l Limits, now time.Time) bool {
	// The level falls while replies are kept back: the last one counts as begun.
	if limit == 0 || f.until.After(now) || f.level <= float64(limit)-0.99 {
		return false
	}
	f.since, f.until, f.refused = now, now.Add(l.Time), 0
	return true
}

// delay is nothing for the first failure, then a second, twice as long for each further one.
func delay(level float64, most time.Duration) time.Duration {
	n := int(math.Ceil(level - 0.01))
	if n < 2 {
		return 0
	}
	return min(most, time.Second<<min(n-2, 20))
}

func cut(name string) string {
	return strings.ToValidUTF8(name[:min(len(name), maxAccount)], "?")
}

// Remember makes an address known for an account, as a login at a time does.
func (g *Guard) Remember(account string, client netip.Addr, at time.Time) {
	name := clientName(client)
	if name == "" {
		return
	}
	key := g.hash(strings.ToLower(account), name)
	g.mu.Lock()
	defer g.mu.Unlock()
	if old, ok := g.known.get(key); !ok || old < at.Unix() {
		g.known.put(key, at.Unix())
	}
}

// Lock is an address or account whose logins failed.
type Lock struct {
	// By is "client" or "account", Name the address, network or account.
	By   string `json:"by"`
	Name string `json:"name"`
	// Failures is how many count now.
	Failures int `json:"failures"`
	// Since and Until are when logins are refused; zero when they are not.
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`
	// Refused counts logins that were since.
	Refused uint64 `json:"refused"`
}

// Locks gives what is locked, and with all also those that have failed and are not, the latest first.
func (g *Guard) Locks(all bool) []Lock {
	limits, now := g.config.Limits("all"), g.config.Now()
	found := []Lock{}
	g.mu.Lock()
	defer g.mu.Unlock()
	list := func(by string, limit int, table *recent[string, *failures]) {
		table.all(func(name string, f *failures) {
			f.fall(limit, limits, now)
			one := Lock{By: by, Name: name, Failures: int(math.Ceil(f.level))}
			if f.until.After(now) {
				one.Since, one.Until, one.Refused = f.since, f.until, f.refused
			} else if !all || one.Failures == 0 {
				return
			}
			found = append(found, one)
		})
	}
	list("client", limits.Client, g.clients)
	list("account", limits.Account, g.accounts)
	slices.SortFunc(found, func(a, b Lock) int {
		if c := b.Since.Compare(a.Since); c != 0 {
			return c
		}
		return strings.Compare(a.By+a.Name, b.By+b.Name)
	})
	return found
}

// Unlock forgets the failures of an address, network or account, or with "" of all, and tells how many that were.
func (g *Guard) Unlock(name string) (n int) {
	if a, err := netip.ParseAddr(name); err == nil {
		name = clientName(a)
	}
	name = strings.ToLower(name)
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, table := range []*recent[string, *failures]{g.clients, g.accounts} {
		table.all(func(k string, f *failures) {
			if (name == "" || k == name) && (f.level > 0 || !f.until.IsZero()) {
				f.level, f.until, f.wrong = 0, time.Time{}, [8]uint64{}
				n++
			}
		})
	}
	return n
}

// Stats gives the counts.
func (g *Guard) Stats() GuardStats {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.stats
	s.Delayed, s.Clients, s.Accounts, s.Known = len(g.delays), g.clients.len(), g.accounts.len(), g.known.len()
	return s
}
