package auth

import (
	"context"
	"crypto/hmac"
	_ "embed" // shared.lua
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/redis"
)

// What hosts share of failed logins. The server decides and each host keeps a copy of what it was told, so that it goes on from there
// when the server is down, and brings it along when the server is back, with or without its memory.

//go:embed shared.lua
var sharedText string

var sharedScript = redis.NewScript(sharedText)

// SharedScripts are what the Link of a Guard must know.
func SharedScripts() []*redis.Script { return []*redis.Script{sharedScript} }

const (
	// ClearedChannel is where hosts tell each other of Unlock, LockedChannel where they do of locks; see Guard.Cleared and Guard.Locked.
	ClearedChannel = "cleared"
	LockedChannel  = "locked"
	// maxCleared bounds what is remembered of Unlock while the server is down.
	maxCleared = 1000
	// joinBatch is how many entries are brought along at once, listBatch how many are asked for; the server does nothing else meanwhile.
	joinBatch = 200
	listBatch = 500
	// maxName bounds a name that another host locked: an account's is cut at maxAccount bytes, and what is no UTF-8 there grows.
	maxName = 4 * maxAccount
	// maxLockTime is the most that AUTH_LOCK_TIME may be.
	maxLockTime = 24 * time.Hour
)

// state is what the server tells of an entry, in times relative to now.
type state struct {
	level             float64
	remaining, lasted time.Duration
	refused           uint64
}

// sharedAnswer is the answer to a question.
type sharedAnswer struct {
	known            bool
	at               int64
	refused          string
	states           [2]state
	repeated, locked [2]bool
}

func micros(d time.Duration) string { return strconv.FormatInt(d.Microseconds(), 10) }

// args begins what every question has.
func (g *Guard) args(op string, l Limits, more ...string) []string {
	clock := "0"
	if g.ownClock {
		clock = strconv.FormatInt(g.config.Now().UnixMicro(), 10)
	}
	return append([]string{op, clock, strconv.FormatFloat(l.Time.Seconds(), 'f', -1, 64), strconv.Itoa(l.Client), strconv.Itoa(l.Account)}, more...)
}

// sharing gives the Link where a server is set.
func (g *Guard) sharing() (*redis.Link, bool) {
	l := g.config.Shared
	return l, l != nil && l.Set()
}

func flagWord(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// hexHash gives a hash as the server has it.
func hexHash(h uint64) string { return fmt.Sprintf("%016x", h) }

// pair names a known pair: the set of an account, and the address in it. Neither tells whose it is.
func (g *Guard) pair(account, client string) (key, member string) {
	return hexHash(g.hash("account", account)), hexHash(g.hash(account, client))
}

// proof is what the server can give of a pair only when a login has left it there: no question has it.
func (g *Guard) proof(account, client string) string {
	return hexHash(g.hash("proof", account, client))
}

// readState takes the four words that the server tells of an entry.
func readState(words []string) (s state, err error) {
	var n [4]float64
	for i := range n {
		if n[i], err = strconv.ParseFloat(words[i], 64); err != nil {
			return s, err
		}
		if !(n[i] >= 0 && n[i] < 1e16) {
			return s, fmt.Errorf("%s is no number of an entry", words[i])
		}
	}
	// No lock that another could have made lasts longer.
	n[1] = min(n[1], float64(maxLockTime.Microseconds()))
	return state{n[0], time.Duration(n[1]) * time.Microsecond, time.Duration(n[2]) * time.Microsecond, uint64(n[3])}, nil
}

// malformed is an answer that is none of ours: somebody else writes there.
func (g *Guard) malformed(answer []string) {
	g.config.Logger.Warn("the server that hosts share gave an answer that makes no sense: the login is judged by this host's own counts", "words", len(answer), slog.String("first", cut(strings.Join(answer[:min(1, len(answer))], ""))))
}

// askBefore asks whether a login may be tried; false when nobody can say.
func (g *Guard) askBefore(ctx context.Context, a Attempt, l Limits, client, account string) (v sharedAnswer, ok bool) {
	link, ok := g.sharing()
	if !ok {
		return v, false
	}
	key, member := g.pair(account, client)
	answer, err := link.Ask(ctx, sharedScript, g.args("before", l, client, account, key, member, strconv.Itoa(int(KnownTime.Seconds())), flagWord(a.Password != ""))...)
	if err != nil {
		return v, false
	}
	if len(answer) == 3 && answer[0] == "known" && hmac.Equal([]byte(answer[2]), []byte(g.proof(account, client))) {
		v.known = true
		v.at, err = strconv.ParseInt(answer[1], 10, 64)
		if v.at = min(v.at, g.config.Now().Unix()); err == nil {
			return v, true
		}
	}
	if len(answer) != 10 || answer[0] != "entries" || err != nil {
		g.malformed(answer)
		return sharedAnswer{}, false
	}
	v.refused = answer[1]
	for i := range v.states {
		if v.states[i], err = readState(answer[2+4*i:]); err != nil {
			g.malformed(answer)
			return sharedAnswer{}, false
		}
	}
	return v, true
}

// askFailed counts a failure; false when nobody could.
func (g *Guard) askFailed(ctx context.Context, l Limits, client, account string, lease bool, wrong uint64) (v sharedAnswer, ok bool) {
	link, ok := g.sharing()
	if !ok {
		return v, false
	}
	word := ""
	if wrong != 0 {
		word = hexHash(wrong)
	}
	answer, err := link.Ask(ctx, sharedScript, g.args("failed", l, client, account, flagWord(lease), word)...)
	if err != nil {
		return v, false
	}
	if len(answer) != 12 {
		g.malformed(answer)
		return sharedAnswer{}, false
	}
	for i := range v.states {
		words := answer[6*i:]
		v.repeated[i], v.locked[i] = words[0] == "1", words[1] == "1"
		if v.states[i], err = readState(words[2:]); err != nil {
			g.malformed(answer)
			return sharedAnswer{}, false
		}
	}
	return v, true
}

// tellDone says that a login is over that did not fail; names are those that the client is known for from now on.
func (g *Guard) tellDone(l Limits, client, account string, lease bool, names []string) {
	link, ok := g.sharing()
	if !ok {
		return
	}
	more := []string{client, account, flagWord(lease), strconv.Itoa(int(KnownTime.Seconds()))}
	for _, name := range names {
		key, member := g.pair(name, client)
		more = append(more, key, member+g.proof(name, client))
	}
	link.Tell(sharedScript, g.args("done", l, more...)...)
}

// mirror keeps what the server said, for when it is down. Where behind is true something was counted here that the server was not told yet:
// tellBehind brings it along. mu is held.
func (g *Guard) mirror(client, account string, l Limits, states [2]state, now time.Time) (behind [2]bool) {
	for i, one := range g.each(client, account, l) {
		_, there := one.table.get(one.name)
		if s := states[i]; there || s.level > 0 || s.remaining > 0 {
			f := g.entry(one.table, one.name, now)
			f.fall(one.limit, l, now)
			f.take(s, now)
			behind[i] = f.untold
		}
	}
	return behind
}

// take has the higher of two counts hold, and the longer of two locks: an answer may be older than what was counted here meanwhile. What is
// cleared is said (ClearedChannel).
func (f *failures) take(s state, now time.Time) {
	f.level, f.last, f.refused = max(f.level, s.level), now, max(f.refused, s.refused)
	if until := now.Add(s.remaining); s.remaining > 0 && until.After(f.until) {
		f.until, f.since = until, now.Add(-s.lasted)
	}
}

// tellBehind tells the server soon what it was not told while too much was asked. mu is held.
func (g *Guard) tellBehind(client, account string, behind [2]bool, l Limits, now time.Time) {
	for i, one := range g.each(client, account, l) {
		f, there := one.table.get(one.name)
		if !behind[i] || !there {
			continue
		}
		f.fall(one.limit, l, now)
		// What is left out waits for the next answer, or for Join.
		f.untold = !g.config.Shared.Tell(sharedScript, append(g.args("join", l, ""), f.brought(one.what, one.name, now)...)...)
	}
}

// brought gives the words by which the server gets an entry.
func (f *failures) brought(what, name string, now time.Time) []string {
	// The oldest first.
	var wrong strings.Builder
	for i := range f.wrong {
		if h := f.wrong[(f.next+i)%len(f.wrong)]; h != 0 {
			wrong.WriteString(hexHash(h))
		}
	}
	lasted := time.Duration(0)
	if f.until.After(now) {
		lasted = now.Sub(f.since)
	}
	return []string{what, name, strconv.FormatFloat(f.level, 'g', -1, 64), micros(max(0, f.until.Sub(now))), micros(lasted), wrong.String()}
}

// eachShared gives all entries that the server has; ask is Link.AskLong or Conn.Run.
func (g *Guard) eachShared(l Limits, ask func(args ...string) ([]string, error), each func(kind, name string, s state)) error {
	for _, kind := range []string{"client", "account"} {
		// The server keeps both generations of maxFailing; one that has more is not ours.
		for from := 0; from < 2*maxFailing; from += listBatch {
			answer, err := ask(g.args("list", l, kind, strconv.Itoa(from), strconv.Itoa(from+listBatch-1))...)
			if err != nil {
				return err
			}
			if len(answer)%5 != 0 {
				return fmt.Errorf("a list of %d words", len(answer))
			}
			for words := answer; len(words) > 0; words = words[5:] {
				s, err := readState(words[1:])
				if err != nil {
					return err
				}
				each(kind, words[0], s)
			}
			if len(answer) < 5*listBatch {
				break
			}
		}
	}
	return nil
}

// askList gives all that have failed; false when nobody can say.
func (g *Guard) askList(ctx context.Context, l Limits, now time.Time) (found []Lock, ok bool) {
	link, ok := g.sharing()
	if !ok {
		return nil, false
	}
	found = []Lock{}
	ask := func(args ...string) ([]string, error) { return link.AskLong(ctx, sharedScript, args...) }
	err := g.eachShared(l, ask, func(kind, name string, s state) {
		var f failures
		f.take(s, now)
		found = append(found, f.shown(kind, name, now))
	})
	return found, err == nil
}

// askClear is Unlock on the server; false when it was not done there.
func (g *Guard) askClear(ctx context.Context, l Limits, name string) (n int, ok bool) {
	link, ok := g.sharing()
	if !ok {
		return 0, false
	}
	answer, err := link.AskLong(ctx, sharedScript, g.args("clear", l, name, g.id)...)
	if err != nil || len(answer) != 1 {
		return 0, false
	}
	n, err = strconv.Atoi(answer[0])
	return n, err == nil
}

// Cleared is what to do with a message of ClearedChannel: who says so, a blank, and a name or nothing for all.
func (g *Guard) Cleared(text string) {
	if who, name, ok := strings.Cut(text, " "); ok && who != g.id {
		g.clear(name, g.config.Limits("all"))
	}
}

// Locked is what to do with a message of LockedChannel: client or account, its level, the microseconds that it is locked, and its name. So a host
// that goes on without the server refuses what others locked.
func (g *Guard) Locked(text string) {
	words := strings.SplitN(text, " ", 4)
	if len(words) != 4 {
		return
	}
	s, err := readState([]string{words[1], words[2], "0", "0"})
	if err != nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.keepLock(g.config.Limits("all"), words[0], words[3], s, g.config.Now())
}

// keepLock keeps what another host locked; mu is held.
func (g *Guard) keepLock(l Limits, kind, name string, s state, now time.Time) {
	for _, one := range g.both(name, name, l) {
		if one.what != kind || s.remaining == 0 || name == "" || len(name) > maxName {
			continue
		}
		f := g.entry(one.table, name, now)
		f.fall(one.limit, l, now)
		f.take(s, now)
	}
}

// SharedChanged is told when Shared came up or went down.
func (g *Guard) SharedChanged(up bool) {
	if up {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.downSince = g.config.Now()
	// What was under way is nobody's any more.
	for _, table := range []*recent[string, *failures]{g.clients, g.accounts} {
		table.all(func(_ string, f *failures) { f.leases = 0 })
	}
}

// Join brings what was counted and cleared here, while the server was down, to the server, and obeys what was cleared elsewhere. The higher of
// two counts holds, and the longer of two locks. With again the server is the same as before, and gets only what it was not told.
func (g *Guard) Join(ctx context.Context, c *redis.Conn, again bool) error {
	limits := g.config.Limits("all")
	g.mu.Lock()
	var names []string
	for name := range g.cleared {
		names = append(names, name)
	}
	down := g.downSince
	g.mu.Unlock()
	for _, name := range names {
		if _, err := c.Run(ctx, sharedScript, g.args("clear", limits, name, g.id)...); err != nil {
			return err
		}
		g.mu.Lock()
		delete(g.cleared, name)
		g.mu.Unlock()
	}
	missed := time.Duration(0)
	if !down.IsZero() && !again {
		// Some seconds more, for a connection that was dead before anybody saw it.
		missed = g.config.Now().Sub(down) + 10*time.Second
	}
	elsewhere, err := c.Run(ctx, sharedScript, g.args("cleared", limits, micros(missed))...)
	if err != nil {
		return err
	}
	if len(elsewhere) == 0 {
		return errors.New("the server's answer is none")
	}
	read := elsewhere[0]
	if missed > 0 {
		for _, name := range elsewhere[1:] {
			g.clear(name, limits)
		}
	}
	now := g.config.Now()
	var entries [][]string
	g.mu.Lock()
	for _, one := range g.both("", "", limits) {
		one.table.all(func(name string, f *failures) {
			f.fall(one.limit, limits, now)
			if again && !f.untold || f.level == 0 && !f.until.After(now) {
				return
			}
			f.untold = false
			entries = append(entries, f.brought(one.what, name, now))
		})
	}
	g.mu.Unlock()
	for len(entries) > 0 {
		n := min(joinBatch, len(entries))
		args := g.args("join", limits, read)
		for _, e := range entries[:n] {
			args = append(args, e...)
		}
		if _, err := c.Run(ctx, sharedScript, args...); err != nil {
			return err
		}
		entries = entries[n:]
	}
	if again {
		return nil
	}
	// What others locked before this host could hear of it.
	ask := func(args ...string) ([]string, error) { return c.Run(ctx, sharedScript, args...) }
	g.mu.Lock()
	clearings := g.clearings
	g.mu.Unlock()
	return g.eachShared(limits, ask, func(kind, name string, s state) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if clearings == g.clearings {
			g.keepLock(limits, kind, name, s, now)
		}
	})
}
