package auth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/redis"
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
	// Key is what passwords and addresses are hashed with; hosts that share counts have the same one. Nil has one made for this process.
	Key []byte
	// Shared is where hosts share their counts; nil, and a Link without a server, for nowhere. It must know SharedScripts.
	Shared *redis.Link
}

// Guard keeps count of failed logins: it has their clients wait ever longer for the reply, and then refuses logins without a look at the
// password. Who logged in lately to the same account from the same address is never refused. What it keeps is bounded, in memory, and shared
// with other hosts where Shared is up; while it is not, this process's own. Safe for concurrent use.
type Guard struct {
	config GuardConfig
	key    []byte
	// id is this process's own, for its messages.
	id string
	// ownClock has the shared counts go by this host's clock in the place of the server's, for tests.
	ownClock bool
	// delays bounds how many replies are kept back at a time.
	delays chan struct{}

	mu       sync.Mutex
	clients  *recent[string, *failures]
	accounts *recent[string, *failures]
	// known has pairs of account and client, hashed, with the seconds of their last login.
	known *recent[uint64, int64]
	stats GuardStats
	// cleared are names that were cleared while Shared was down, "" for all.
	cleared map[string]bool
	// clearings counts those: an answer that was on its way meanwhile must not bring back what was cleared.
	clearings uint64
	// downSince is when Shared went down; zero before it was up.
	downSince time.Time
}

// GuardStats are what metrics tell of a Guard.
type GuardStats struct {
	// Failed counts failed logins, Repeated those among them that repeated a wrong password, Refused those refused without a look, Locks how
	// often an address or account was locked.
	Failed, Repeated, Refused, Locks uint64
	// Delayed is how many replies are kept back now, Clients, Accounts and Known what is kept in memory.
	Delayed, Clients, Accounts, Known int
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
	key := config.Key
	if key == nil {
		key = make([]byte, 32)
		rand.Read(key)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("failed logins"))
	g := &Guard{config: config, key: mac.Sum(nil), id: rand.Text(), delays: make(chan struct{}, maxDelays), cleared: map[string]bool{}}
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

// hash gives 64 bits that only who has the key can find out what they are of: words are passwords, and who logs in from where.
func (g *Guard) hash(words ...string) uint64 {
	mac := hmac.New(sha256.New, g.key)
	for _, w := range words {
		mac.Write([]byte(w))
		mac.Write([]byte{0})
	}
	return binary.BigEndian.Uint64(mac.Sum(nil))
}

// before tells whether a login may be tried, and whether its client is known for the account. One with a password is under way until
// after.
func (g *Guard) before(ctx context.Context, a Attempt, account string) (known bool, err error) {
	limits, client, now := g.config.Limits(a.Service), clientName(a.Client), g.config.Now()
	g.mu.Lock()
	at, seen := g.known.get(g.hash(account, client))
	clearings := g.clearings
	g.mu.Unlock()
	known = account != "" && seen && now.Sub(time.Unix(at, 0)) < KnownTime
	if client == "" || known || limits.exempt(a.Client) {
		return known, nil
	}
	said, shared := g.askBefore(ctx, a, limits, client, account)
	g.mu.Lock()
	defer g.mu.Unlock()
	refuse := func(what string) (bool, error) {
		g.stats.Refused++
		return false, errLocked.Because(fmt.Errorf("%w: too many failed logins by the %s", ErrLocked, what))
	}
	if shared && said.known {
		g.known.put(g.hash(account, client), said.at)
		return true, nil
	}
	if shared {
		if clearings == g.clearings {
			behind := g.mirror(client, account, limits, said.states, now)
			g.tellBehind(client, account, behind, limits, now)
		}
		if said.refused != "" {
			return refuse(said.refused)
		}
	}
	for _, one := range g.each(client, account, limits) {
		if f, ok := one.table.get(one.name); ok && f.refuses(one.limit, limits, now) {
			if shared && a.Password != "" {
				// The server let it in, not knowing of all that is under way here.
				g.tellDone(limits, client, account, true, nil)
			}
			f.refused++
			return refuse(one.what)
		}
	}
	if a.Password != "" {
		for _, one := range g.each(client, account, limits) {
			f := g.entry(one.table, one.name, now)
			f.running, f.ran = f.running+1, now
			if shared {
				f.leases++
			}
		}
	}
	return false, nil
}

// counted is one of the two that a login counts for.
type counted struct {
	table *recent[string, *failures]
	name  string
	limit int
	what  string
}

// each gives what a login counts for. Where the client gave no name, as tokens need none, that is its address alone.
func (g *Guard) each(client, account string, l Limits) []counted {
	both := g.both(client, account, l)
	if account == "" {
		return both[:1]
	}
	return both[:]
}

func (g *Guard) both(client, account string, l Limits) [2]counted {
	return [2]counted{{g.clients, client, l.Client, "client"}, {g.accounts, account, l.Account, "account"}}
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
	wait := g.count(ctx, a, known, account, identity, err)
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

func (g *Guard) count(ctx context.Context, a Attempt, known bool, account string, identity Identity, err error) (wait time.Duration) {
	limits, client, now := g.config.Limits(a.Service), clientName(a.Client), g.config.Now()
	counts := client != "" && !limits.exempt(a.Client)
	ended, lease := a.Password != "" && counts && !known, false
	g.mu.Lock()
	if ended {
		for _, one := range g.each(client, account, limits) {
			f := g.entry(one.table, one.name, now)
			f.running = max(0, f.running-1)
			if f.leases > 0 {
				f.leases, lease = f.leases-1, true
			}
		}
	}
	names := []string{identity.Address.Key()}
	if account != "" && account != names[0] {
		names = append(names, account)
	}
	if err == nil && client != "" {
		for _, name := range names {
			g.known.put(g.hash(name, client), now.Unix())
		}
	}
	// The right password for a service that is switched off is no wrong one.
	if err == nil || mailerr.From(err).Code != errFailed.Code || errors.Is(err, errSwitchedOff) {
		if err == nil || ended {
			g.forget(client, account, limits, now)
		}
		g.mu.Unlock()
		if client != "" && (err == nil || lease) {
			if err != nil {
				names = nil
			}
			g.tellDone(limits, client, account, lease, names)
		}
		return 0
	}
	g.stats.Failed++
	clearings := g.clearings
	g.mu.Unlock()
	var locks []string
	if counts {
		wrong := g.hash("wrong", account, a.Password)
		if a.Password == "" {
			wrong = 0
		}
		said, shared := g.askFailed(ctx, limits, client, account, lease, wrong)
		g.mu.Lock()
		var behind [2]bool
		if shared && clearings == g.clearings {
			behind = g.mirror(client, account, limits, said.states, now)
		}
		level, repeated := 0.0, false
		for i, one := range g.each(client, account, limits) {
			f := g.entry(one.table, one.name, now)
			again, locked := false, false
			if shared {
				f.remember(wrong)
				again, locked = said.repeated[i], said.locked[i] || behind[i] && f.lock(one.limit, limits, now)
			} else {
				again = f.add(wrong, one.limit, limits, now)
				locked = f.lock(one.limit, limits, now)
				f.untold = true
			}
			if locked {
				locks = append(locks, one.what)
			}
			if i == 0 {
				repeated = again
			}
			if i == 0 || !known {
				level = max(level, f.level)
			}
		}
		g.tellBehind(client, account, behind, limits, now)
		wait = delay(level, limits.Delay)
		if repeated {
			g.stats.Repeated++
		}
		g.stats.Locks += uint64(len(locks))
		g.mu.Unlock()
	}
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
func (g *Guard) forget(client, account string, l Limits, now time.Time) {
	for _, one := range g.each(client, account, l) {
		if f, ok := one.table.get(one.name); ok {
			if f.fall(one.limit, l, now); f.idle() {
				one.table.remove(one.name)
			}
		}
	}
}

// delay is nothing for the first failure, then a second, twice as long for each further one.
func delay(level float64, most time.Duration) time.Duration {
	n := whole(level)
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

// Locks gives what is locked, on all hosts that share their counts, and with all also those that have failed and are not, the latest first.
func (g *Guard) Locks(ctx context.Context, all bool) []Lock {
	limits, now := g.config.Limits("all"), g.config.Now()
	found, shared := g.askList(ctx, limits, now)
	if !shared {
		found = []Lock{}
		g.mu.Lock()
		for _, one := range g.both("", "", limits) {
			one.table.all(func(name string, f *failures) {
				f.fall(one.limit, limits, now)
				found = append(found, f.shown(one.what, name, now))
			})
		}
		g.mu.Unlock()
	}
	found = slices.DeleteFunc(found, func(l Lock) bool { return l.Until.IsZero() && (!all || l.Failures == 0) })
	slices.SortFunc(found, func(a, b Lock) int {
		if c := b.Since.Compare(a.Since); c != 0 {
			return c
		}
		return strings.Compare(a.By+a.Name, b.By+b.Name)
	})
	return found
}

// Unlock forgets the failures of an address, network or account, or with "" of all, on all hosts that share their counts, and tells how many
// that were. While Shared is down it is done here at once, and there when it is up again.
func (g *Guard) Unlock(ctx context.Context, name string) (n int) {
	if a, err := netip.ParseAddr(name); err == nil {
		name = clientName(a)
	}
	name = strings.ToLower(name)
	limits := g.config.Limits("all")
	n, shared := g.askClear(ctx, limits, name)
	here := g.clear(name, limits)
	if !shared {
		n = here
		g.mu.Lock()
		if g.config.Shared != nil && g.config.Shared.Set() && len(g.cleared) < maxCleared {
			g.cleared[name] = true
		}
		g.mu.Unlock()
	}
	return n
}

// clear is Unlock for this process.
func (g *Guard) clear(name string, l Limits) (n int) {
	now := g.config.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.clearings++
	for _, one := range g.both("", "", l) {
		one.table.all(func(k string, f *failures) {
			if name != "" && k != name {
				return
			}
			if f.fall(one.limit, l, now); whole(f.level) > 0 || f.until.After(now) {
				n++
			}
			f.level, f.until, f.wrong = 0, time.Time{}, [8]uint64{}
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
