package queue

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

// Rate is a limit of deliveries (wiki 1488-1568): no more than Burst at once, and over time no more than Expression says.
//
// Name is what it holds for: a recipient's domain, "sender:" with an address, or "user:" with the name of an authenticated
// user. "*" in their places stands for each that has no limit of its own.
type Rate struct {
	Queue string `json:"queue,omitempty"`
	Name  string `json:"name"`
	// Expression gives deliveries per second, such as "50/3600".
	Expression string `json:"expression"`
	Burst      int    `json:"burst"`
	// Count is how many deliveries there were since Start, the last at Updated. Start is moved on when less was delivered than
	// allowed: what a quiet time leaves over is never more than Burst.
	Count   int64     `json:"count"`
	Start   time.Time `json:"start"`
	Updated time.Time `json:"updated,omitzero"`
}

// PerSecond gives the value of Expression; it was checked when the Rate was made.
func (r *Rate) PerSecond() float64 {
	v, err := evaluate(r.Expression)
	if err != nil {
		return math.Inf(1)
	}
	return v
}

// Current gives the deliveries per second from Start to now.
func (r *Rate) Current(now time.Time) float64 {
	elapsed := now.Unix() - r.Start.Unix()
	if elapsed <= 0 {
		return 0
	}
	return float64(r.Count) / float64(elapsed)
}

// CheckRateName reports what is wrong with the name of a Rate.
func CheckRateName(name string) error {
	kind, rest, ok := strings.Cut(name, ":")
	switch {
	case name == "*":
		return nil
	case !ok:
		_, err := addr.Parse("x@" + name)
		return err
	case kind != "sender" && kind != "user":
		return fmt.Errorf("%q begins with neither sender: nor user: and is no domain", name)
	case rest == "" || len(rest) > 300 || strings.ContainsFunc(rest, func(c rune) bool { return c < ' ' }):
		return fmt.Errorf("%q names nobody", name)
	}
	return nil
}

// evaluate computes an expression of numbers, + - * / and parentheses.
func evaluate(s string) (float64, error) {
	p := &expression{rest: strings.ReplaceAll(s, " ", "")}
	v := p.sum()
	if p.bad || p.rest != "" || len(s) > 100 {
		return 0, fmt.Errorf("%q is no expression such as 50/3600", s)
	}
	if !(v > 0) || math.IsInf(v, 0) {
		return 0, fmt.Errorf("%q gives %v, not a rate above 0", s, v)
	}
	return v, nil
}

type expression struct {
	rest string
	bad  bool
}

func (p *expression) take(chars string) byte {
	if p.rest == "" || strings.IndexByte(chars, p.rest[0]) < 0 {
		return 0
	}
	c := p.rest[0]
	p.rest = p.rest[1:]
	return c
}

func (p *expression) sum() float64 {
	v := p.product()
	for {
		switch p.take("+-") {
		case '+':
			v += p.product()
		case '-':
			v -= p.product()
		default:
			return v
		}
	}
}

func (p *expression) product() float64 {
	v := p.value()
	for {
		switch p.take("*/") {
		case '*':
			v *= p.value()
		case '/':
			v /= p.value()
		default:
			return v
		}
	}
}

func (p *expression) value() float64 {
	if p.take("(") != 0 {
		v := p.sum()
		p.bad = p.bad || p.take(")") == 0
		return v
	}
	n := 0
	for n < len(p.rest) && (p.rest[n] >= '0' && p.rest[n] <= '9' || p.rest[n] == '.') {
		n++
	}
	v, err := strconv.ParseFloat(p.rest[:n], 64)
	p.bad = p.bad || err != nil
	p.rest = p.rest[n:]
	return v
}

// limit is a Rate at work. per is its value.
type limit struct {
	Rate
	per float64
	// from is the "*" that it was made from, nil if it stands for itself.
	from *limit
}

// need gives the seconds until the next delivery is allowed; none or less when it is.
func (l *limit) need(now time.Time) int64 {
	before := float64(l.Count - int64(l.Burst) + 1)
	return int64(math.Ceil(before/l.per-1e-6)) - (now.Unix() - l.Start.Unix())
}

// took counts a delivery.
func (l *limit) took(now time.Time) {
	l.Count++
	l.Updated = now
}

// expire moves Start on, so that a quiet time leaves no more than Burst over. If the clock went back, counting begins anew.
func (l *limit) expire(now time.Time) {
	if now.Before(l.Start) || now.Before(l.Updated) {
		l.Start, l.Updated, l.Count = now, now, 0
	}
	if earliest := now.Add(-time.Duration((float64(l.Count) + float64(l.Burst)) / l.per * float64(time.Second))); l.Start.Before(earliest) {
		l.Start = earliest
	}
}

// Rates are the limits in a directory: each in a file with its name, "EXPRESSION" or "EXPRESSION burst N". The file .counts has
// how much of each is used; it is written at the latest a second after it changed, so that a crash forgets no more than that.
// It is safe for concurrent use.
type Rates struct {
	dir   string
	queue string
	now   func() time.Time

	mu       sync.Mutex
	limits   map[string]*limit
	version  int
	modified time.Time
	looked   time.Time
	// opened: the file of counts was read. dirty: it must be written.
	opened, dirty bool
}

const countsName = ".counts"

// OpenRates reads the limits in DIR; a DIR that is not there has none.
func OpenRates(dir, queue string, now func() time.Time) (*Rates, error) {
	r := &Rates{dir: dir, queue: queue, now: now, limits: map[string]*limit{}}
	return r, r.load()
}

// load reads the definitions again if the directory has changed. Counts go on.
func (r *Rates) load() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looked = r.now()
	info, err := os.Stat(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		if len(r.limits) > 0 {
			r.version++
		}
		r.limits, r.modified = map[string]*limit{}, time.Time{}
		return nil
	}
	if err != nil || info.ModTime().Equal(r.modified) {
		return err
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return err
	}
	counts := map[string]Rate{}
	if text, err := os.ReadFile(filepath.Join(r.dir, countsName)); err == nil && r.modified.IsZero() && !r.opened {
		// Counts that cannot be read are begun anew: limits hold from now on.
		_ = json.Unmarshal(text, &counts)
	}
	r.opened = true
	for name, l := range r.limits {
		counts[name] = l.Rate
	}
	limits := map[string]*limit{}
	var faults []error
	for _, e := range entries {
		name, err := url.PathUnescape(e.Name())
		if err != nil || e.Name()[0] == '.' {
			continue
		}
		l, err := r.read(filepath.Join(r.dir, e.Name()), name)
		if err != nil {
			faults = append(faults, err)
			if l = r.limits[name]; l == nil {
				continue
			}
		}
		limits[name] = l
	}
	for name, c := range counts {
		l := limits[name]
		if l == nil {
			if l = fromStar(limits, name); l == nil {
				continue
			}
			limits[name] = l
		}
		l.Count, l.Start, l.Updated = c.Count, c.Start, c.Updated
	}
	if !sameLimits(r.limits, limits) {
		r.version++
	}
	r.limits, r.modified = limits, info.ModTime()
	return errors.Join(faults...)
}

// sameLimits tells whether the definitions are the same.
func sameLimits(a, b map[string]*limit) bool {
	return maps.EqualFunc(a, b, func(a, b *limit) bool { return a.per == b.per && a.Burst == b.Burst })
}

// read reads one definition. Its Start is when it was made.
func (r *Rates) read(path, name string) (*limit, error) {
	if err := CheckRateName(name); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	start := info.ModTime()
	if now := r.now(); start.After(now) {
		start = now
	}
	line, _, _ := strings.Cut(string(text), "\n")
	text2, burst, hasBurst := strings.Cut(line, "burst")
	l := &limit{Rate: Rate{Queue: r.queue, Name: name, Expression: strings.TrimSpace(text2), Burst: 1, Start: start}}
	if l.per, err = evaluate(l.Expression); err == nil && hasBurst {
		if l.Burst, err = strconv.Atoi(strings.TrimSpace(burst)); err == nil && l.Burst < 1 {
			err = fmt.Errorf("burst %d is less than 1", l.Burst)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s:1: %w", path, err)
	}
	return l, nil
}

// fromStar makes the limit for a name that has none of its own; nil if there is none for all either.
func fromStar(limits map[string]*limit, name string) *limit {
	star := "*"
	if kind, _, ok := strings.Cut(name, ":"); ok {
		star = kind + ":*"
	}
	s := limits[star]
	if s == nil {
		return nil
	}
	l := &limit{Rate: s.Rate, per: s.per, from: s}
	l.Name, l.Count = name, 0
	return l
}

// matching names the limits that hold for a recipient of an envelope.
func (r *Rates) matching(names []string, env *Envelope, to addr.Address) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.limits) == 0 {
		return names
	}
	candidates := [...]string{strings.ToLower(to.Domain), "sender:" + env.Sender.Key(), "user:" + strings.ToLower(env.Origin.User)}
	for i, name := range candidates {
		if i == 0 && name == "" || i == 1 && env.Sender.IsNull() || i == 2 && env.Origin.User == "" {
			continue
		}
		if r.limits[name] == nil && fromStar(r.limits, name) == nil {
			continue
		}
		names = append(names, name)
	}
	return names
}

// get gives the limit of a name, made from that for all if need be, nil if there is none any more. Called with mu held.
func (r *Rates) get(name string) *limit {
	l := r.limits[name]
	if l == nil {
		if l = fromStar(r.limits, name); l != nil {
			if len(r.limits) >= maxLimits {
				r.forgetOne()
			}
			l.Start = r.now()
			r.limits[name] = l
		}
	}
	return l
}

// maxLimits bounds what senders that somebody makes up can fill: beyond it one of those made for all is forgotten for each that
// is new, and whoever it was for begins anew.
const maxLimits = 10000

// forgetOne forgets some limit that was made from one for all; called with mu held.
func (r *Rates) forgetOne() {
	for name, l := range r.limits {
		if l.from != nil {
			delete(r.limits, name)
			return
		}
	}
}

// state is what the log tells of a limit at a delivery.
type state struct {
	count     int64
	rate, per float64
	// need is how many seconds must pass; 0 or less means that it has been allowed for so long.
	need int64
}

// take counts a delivery at the limits of all names, and tells how they stand, if each has room; else it counts nothing and
// tells of one that has none. Names without a limit are passed over.
func (r *Rates) take(names []string) (stands map[string]state, full string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	stands = map[string]state{}
	for _, name := range names {
		l := r.get(name)
		if l == nil {
			continue
		}
		l.expire(now)
		stands[name] = state{l.Count + 1, l.Current(now), l.per, l.need(now)}
		if stands[name].need > 0 {
			return stands, name
		}
	}
	for name := range stands {
		r.limits[name].took(now)
		r.dirty = true
	}
	return stands, ""
}

// giveBack undoes take.
func (r *Rates) giveBack(stands map[string]state) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range stands {
		if l := r.limits[name]; l != nil {
			l.Count--
		}
	}
}

// upkeep looks for changed definitions and writes the counts, at most once a second. The version is another one when the
// limits are others.
func (r *Rates) upkeep() (version int, err error) {
	r.mu.Lock()
	due := r.now().Sub(r.looked) >= time.Second || r.now().Before(r.looked)
	r.mu.Unlock()
	if due {
		err = r.load()
		err = errors.Join(err, r.save())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.version, err
}

// save writes the counts. Limits made from those for all are forgotten when they are as good as new.
func (r *Rates) save() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.dirty {
		return nil
	}
	now := r.now()
	counts := map[string]Rate{}
	for name, l := range r.limits {
		if l.from != nil && l.need(now) <= -int64(float64(l.Burst)/l.per) {
			delete(r.limits, name)
			continue
		}
		counts[name] = l.Rate
	}
	text, err := json.Marshal(counts)
	if err != nil {
		return err
	}
	path := filepath.Join(r.dir, countsName)
	// Written in place of the old one, and not beside it: the directory's time is that of the definitions.
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return fmt.Errorf("counts of rate limits: %w", err)
	}
	r.dirty = false
	if info, err := os.Stat(r.dir); err == nil && r.modified.Before(info.ModTime()) && len(counts) > 0 {
		// Making the file has changed the directory; a definition that came in the same moment is found below.
		r.modified = time.Time{}
	}
	return nil
}

// All gives every limit, those made from one for all too.
func (r *Rates) All() (all []Rate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.limits {
		all = append(all, l.Rate)
	}
	slices.SortFunc(all, func(a, b Rate) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Set writes a limit; counting begins anew.
func (r *Rates) Set(name, expression string, burst int) error {
	name = strings.ToLower(name)
	if err := CheckRateName(name); err != nil {
		return err
	}
	if _, err := evaluate(expression); err != nil {
		return err
	}
	if burst < 1 {
		return fmt.Errorf("burst %d is less than 1", burst)
	}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	text := expression
	if burst != 1 {
		text += fmt.Sprint(" burst ", burst)
	}
	path := filepath.Join(r.dir, url.PathEscape(name))
	r.mu.Lock()
	delete(r.limits, name)
	r.version++
	r.dirty, r.modified = true, time.Time{}
	fresh := filepath.Join(r.dir, ".new")
	err := os.WriteFile(fresh, []byte(text+"\n"), 0o600)
	if err == nil {
		// Start is the daemon's time, which tests may set.
		err = os.Chtimes(fresh, r.now(), r.now())
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	r.mu.Unlock()
	if err == nil {
		err = r.load()
	}
	return err
}

// Remove takes a limit away; an error if there is none.
func (r *Rates) Remove(name string) error {
	name = strings.ToLower(name)
	if err := CheckRateName(name); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(r.dir, url.PathEscape(name))); err != nil {
		return fmt.Errorf("rate limit of %s: %w", name, err)
	}
	r.mu.Lock()
	delete(r.limits, name)
	r.version++
	r.dirty, r.modified = true, time.Time{}
	r.mu.Unlock()
	return r.load()
}
