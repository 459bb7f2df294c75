package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/settings"
)

// SetConfig is what a Set is made of.
type SetConfig struct {
	// Config is what its queues are made of; Dir is the directory that holds them (QUEUE_BASE, wiki 509-566). Name, IDs and
	// Bounces are the Set's to fill, and Settings is only for QUEUE_START, QUEUE_COUNT, QUEUE_MAX and QUEUE_LOAD.
	Config
	// View gives the settings of a queue in force now.
	View func(queue string) *settings.View
	// Place names the queue that a recipient belongs in: "" for any that is numbered, or a name. nil means "" for all.
	Place func(*Envelope, *Recipient) string
}

// Set is the queues of a data directory: queue1 to queueN, among which new mail is spread, and those that have a name, such
// as slowq, which get what is meant for them. It implements Submitter. Its methods may be called from any goroutine.
type Set struct {
	config SetConfig
	ids    *IDs
	// rates are the limits that hold for all queues together.
	rates *Rates

	mu sync.Mutex
	// queues are in order of number, then of name.
	queues []*member
	// turn is who was chosen last; the next placement begins to look behind it.
	turn int
	// extra is how many numbered queues there are beyond QUEUE_COUNT because of load; calm is since when fewer would do.
	extra int
	calm  time.Time

	stop     chan struct{}
	watching sync.WaitGroup
}

// member is a queue of a Set; its fields are guarded by Set.mu.
type member struct {
	*Queue
	// number is 0 for a queue that has a name of its own.
	number int
	// retired: it gets no new mail, and goes when it is empty.
	retired bool
	// entering counts submissions that may still be committed to it.
	entering int
}

// slowQueue is there from the beginning, as IndiMail's installation has it, for mail whose rate is limited (wiki 1488-1534).
const slowQueue = "slowq"

// watchEvery is how often a Set looks at its queues' load.
const watchEvery = 5 * time.Second

// calmFor is how long load must have been low before a queue is taken away again.
const calmFor = time.Minute

// numbered gives the number in "queue7", 0 for any other name.
func numbered(name string) int {
	digits, ok := strings.CutPrefix(name, "queue")
	n, err := strconv.Atoi(digits)
	if !ok || err != nil || n < 1 || strconv.Itoa(n) != digits {
		return 0
	}
	return n
}

// CheckName reports whether a queue may have this name: letters, digits, "-", "_" and ".", not beginning with a dot.
func CheckName(name string) error {
	if name == "" || len(name) > 100 || name[0] == '.' || strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r))
	}) {
		return fmt.Errorf("%q is no name for a queue: letters, digits, -, _ and . only", name)
	}
	return nil
}

// OpenSet opens every queue: those that the settings ask for, made if need be, and those that are there with mail in them.
func OpenSet(ctx context.Context, config SetConfig) (_ *Set, err error) {
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, err
	}
	s := &Set{config: config, stop: make(chan struct{})}
	if s.ids, err = OpenIDs(config.Dir); err != nil {
		return nil, err
	}
	if s.rates, err = OpenRates(filepath.Join(config.Dir, "ratelimit"), "", config.Now); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Shutdown(ctx)
		}
	}()
	names, err := s.present()
	if err != nil {
		return nil, err
	}
	names = append(names, slowQueue)
	first, count := s.wanted()
	for n := first; n < first+count; n++ {
		names = append(names, fmt.Sprint("queue", n))
	}
	slices.Sort(names)
	var faults []error
	for _, name := range slices.Compact(names) {
		n := numbered(name)
		if _, err := s.open(ctx, name, n != 0 && (n < first || n >= first+count)); err != nil {
			faults = append(faults, err)
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	s.watching.Go(func() { s.watch(context.WithoutCancel(ctx)) })
	return s, nil
}

// wanted is the range of the numbered queues by the settings.
func (s *Set) wanted() (first, count int) {
	view := s.config.Settings()
	return settings.QueueStart.Get(view), settings.QueueCount.Get(view)
}

// present names the queues that have a directory.
func (s *Set) present() ([]string, error) {
	entries, err := os.ReadDir(s.config.Dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		// A queue may be a link to another disk.
		if _, err := os.Stat(filepath.Join(s.config.Dir, e.Name(), "log")); err == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// open opens one queue and takes it in.
func (s *Set) open(ctx context.Context, name string, retired bool) (*member, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	c := s.config.Config
	c.Dir = filepath.Join(c.Dir, name)
	c.IDs, c.Bounces, c.Rates = s.ids, s, s.rates
	c.Name = name
	c.Settings = func() *settings.View { return s.config.View(name) }
	q, err := Open(ctx, c)
	if err != nil {
		return nil, err
	}
	m := &member{Queue: q, number: numbered(name), retired: retired}
	s.mu.Lock()
	s.queues = append(s.queues, m)
	slices.SortFunc(s.queues, func(a, b *member) int {
		return cmp.Or(cmp.Compare(uint(a.number-1), uint(b.number-1)), cmp.Compare(a.config.Name, b.config.Name))
	})
	s.mu.Unlock()
	return m, nil
}

// Make opens a queue of a name that is not there yet.
func (s *Set) Make(ctx context.Context, name string) error {
	if numbered(name) != 0 {
		return fmt.Errorf("queue %s: numbered queues come and go with the setting %s", name, settings.QueueCount.Name)
	}
	s.mu.Lock()
	m := s.named(name)
	s.mu.Unlock()
	if m != nil {
		return fmt.Errorf("queue %s is there already", name)
	}
	_, err := s.open(ctx, name, false)
	return err
}

// named finds a queue; called with mu held.
func (s *Set) named(name string) *member {
	for _, m := range s.queues {
		if m.config.Name == name {
			return m
		}
	}
	return nil
}

// members gives the queues now.
func (s *Set) members() []*member {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.queues)
}

// enter finds the numbered queue with the fewest submissions under way, in turn when they are equal, and counts one more;
// leave takes that back. Queues whose disk has no room are passed over, and so is not; nil when none is left.
func (s *Set) enter(not *member) *member {
	s.mu.Lock()
	defer s.mu.Unlock()
	var best *member
	turn := s.turn
	for i := range s.queues {
		at := (s.turn + 1 + i) % len(s.queues)
		m := s.queues[at]
		if m.number == 0 || m.retired || m == not || best != nil && m.entering >= best.entering || m.lowSpace() {
			continue
		}
		best, turn = m, at
	}
	if best != nil {
		best.entering++
		s.turn = turn
	}
	return best
}

// enterNamed is enter for the queue of a name.
func (s *Set) enterNamed(name string) (*member, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.named(name)
	if m == nil {
		return nil, errTrouble.Because(fmt.Errorf("there is no queue %q: make it with `indigo queue make %s`", name, name))
	}
	m.entering++
	return m, nil
}

func (s *Set) leave(m *member) {
	s.mu.Lock()
	m.entering--
	s.mu.Unlock()
}

// Begin starts a submission; see Submitter. Which queue it goes to is decided by its envelope.
func (s *Set) Begin(ctx context.Context, sizeHint int64) (Submission, error) {
	select {
	case <-s.stop:
		return nil, errShutdown
	default:
	}
	m := s.enter(nil)
	if m == nil {
		return nil, errNoSpace.Because(errors.New("less than MIN_FREE left for every queue"))
	}
	begun, err := m.Begin(ctx, sizeHint)
	if err != nil {
		s.leave(m)
		return nil, err
	}
	return &placing{begun.(*submission), s, m}, nil
}

// Turn tries at once what f chooses, by Queue, Domain and Failed, as a host asked for, and counts it: what waits for its next attempt, and what lies in
// a queue of a name that HOLDREMOTE of its own service keeps for that (wiki 4600), which goes over to a numbered queue. Other holds stay.
func (s *Set) Turn(ctx context.Context, f Filter) (n int, err error) {
	for _, m := range s.members() {
		name := m.config.Name
		if f.Queue != "" && f.Queue != name {
			continue
		}
		view := s.config.View(name)
		if numbered(name) > 0 || !settings.HoldRemote.Get(view) || view.Source(settings.HoldRemote.Setting).Layer != "service variable" {
			continue
		}
		to := s.enter(nil)
		if to == nil {
			return n, errNoSpace.Because(errors.New("less than MIN_FREE left for every queue"))
		}
		s.leave(to)
		moved, err := s.Move(ctx, Filter{Queue: name, Domain: f.Domain}, to.config.Name, false, nil)
		if n += moved; err != nil {
			return n, fmt.Errorf("queue %s: %w", name, err)
		}
	}
	tried, err := s.Act(ctx, RetryNow, f, false, nil)
	return n + tried, err
}

// Bounce tells the sender of a message outside of the queue, such as one in a Maildir that its host refused, that recipients of env failed: as a
// message of the queue does, with all settings for that. id is the one that it had, for log and trace; failures has an error for each recipient,
// nil for one that did not fail. A nil error means that the notice is queued, or that nobody is to be told.
func (s *Set) Bounce(id ID, env Envelope, birth time.Time, c Content, failures []*mailerr.Error) error {
	m := s.enter(nil)
	if m == nil {
		return errNoSpace.Because(errors.New("less than MIN_FREE left for every queue"))
	}
	defer s.leave(m)
	var notices []notice
	for i, e := range failures {
		if e != nil && wantsFailure(env.Recipients[i].Notify) {
			notices = append(notices, newNotice(i, e, e.Text))
		}
	}
	if len(notices) == 0 {
		return nil
	}
	return m.report(&message{id: id, birth: birth.UnixNano()}, &head{envelope: env}, c, notices)
}

// placing is a submission whose queue is not decided.
type placing struct {
	*submission
	set *Set
	in  *member
}

func (p *placing) Abort() {
	p.submission.Abort()
	p.set.leave(p.in)
}

// Commit makes the message durable in every queue that one of its recipients belongs in. If some queue fails, the client
// hears of a failure, though others may have their share already: then its next try makes a second copy there.
func (p *placing) Commit(ctx context.Context, env Envelope) error {
	defer func() { p.set.leave(p.in) }()
	if p.set.config.Place == nil || len(env.Recipients) == 0 {
		return p.commitShare(ctx, "", env)
	}
	// Nearly always all recipients belong in one queue.
	first := p.place(&env, 0)
	i := 1
	for i < len(env.Recipients) && p.place(&env, i) == first {
		i++
	}
	if i == len(env.Recipients) {
		return p.commitShare(ctx, first, env)
	}
	var names []string
	shares := map[string][]Recipient{}
	for i := range env.Recipients {
		name := p.place(&env, i)
		if shares[name] == nil {
			names = append(names, name)
		}
		shares[name] = append(shares[name], env.Recipients[i])
	}
	// All but the last get copies.
	for _, name := range names[:len(names)-1] {
		share := env
		share.Recipients = shares[name]
		if err := p.commitCopy(ctx, name, share); err != nil {
			p.submission.Abort()
			return err
		}
	}
	last := names[len(names)-1]
	env.Recipients = shares[last]
	return p.commitShare(ctx, last, env)
}

// place names the queue for a recipient; "" for a numbered one that takes no mail now.
func (p *placing) place(env *Envelope, i int) string {
	name := p.set.config.Place(env, &env.Recipients[i])
	if name != "" && numbered(name) != 0 && !p.set.active(name) {
		return ""
	}
	return name
}

// active tells whether a numbered queue takes mail.
func (s *Set) active(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.named(name)
	return m != nil && !m.retired
}

// commitShare commits the submission itself, in the queue of a name.
func (p *placing) commitShare(ctx context.Context, name string, env Envelope) error {
	if name != "" && name != p.in.config.Name {
		m, err := p.set.enterNamed(name)
		if err == nil {
			p.set.leave(p.in)
			p.in = m
			err = p.moveTo(m.Queue)
		}
		if err != nil {
			p.submission.Abort()
			return err
		}
	}
	if p.big != nil || name != "" {
		return p.submission.Commit(ctx, env)
	}
	// Another queue may lie on a disk that works.
	err := p.commit(env)
	if err != nil {
		if other := p.set.enter(p.in); other != nil {
			p.config().Logger.Warn(fmt.Sprintf("queue %s: message %s: %v; trying %s", p.in.config.Name, p.id, err, other.config.Name))
			p.set.leave(p.in)
			p.in, p.q = other, other.Queue
			err = p.commit(env)
		}
	}
	p.done(err)
	return err
}

func (p *placing) config() *Config { return &p.q.config }

// commitCopy commits a copy in the queue of a name, under an id of its own.
func (p *placing) commitCopy(ctx context.Context, name string, env Envelope) error {
	var to *member
	var err error
	if name == "" {
		p.set.mu.Lock()
		to = p.in
		to.entering++
		p.set.mu.Unlock()
	} else if to, err = p.set.enterNamed(name); err != nil {
		return err
	}
	defer p.set.leave(to)
	if p.err != nil {
		return p.err
	}
	c, err := to.begin(p.size)
	if err != nil {
		return err
	}
	if p.big == nil {
		_, err = c.Write(p.content)
	} else {
		_, err = io.Copy(c, io.NewSectionReader(p.big, 0, p.size))
	}
	if err != nil {
		c.Abort()
		return storageError(err)
	}
	return c.Commit(ctx, env)
}

// moveTo makes a submission another queue's.
func (s *submission) moveTo(q *Queue) error {
	from := s.q
	s.q = q
	if s.big == nil {
		return nil
	}
	err := os.Rename(from.bigPath(s.id), q.bigPath(s.id))
	if !errors.Is(err, unix.EXDEV) {
		return storageErrorOrNil(err)
	}
	// The queues lie on different file systems.
	f, err := os.OpenFile(q.bigPath(s.id), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = io.Copy(f, io.NewSectionReader(s.big, 0, s.size))
	}
	s.big.Close()
	os.Remove(from.bigPath(s.id))
	s.big = f
	return storageErrorOrNil(err)
}

func storageErrorOrNil(err error) error {
	if err == nil {
		return nil
	}
	return storageError(err)
}

// watch lets the number of queues follow the settings and the load (QUEUE_MAX and QUEUE_LOAD, wiki 509-566), and closes
// retired ones that are empty.
func (s *Set) watch(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
			s.adapt(ctx)
		}
	}
}

// load is the deliveries that run in the numbered queues as a share, in percent, of those that may.
func (s *Set) load() int {
	running, limit := 0, 0
	for _, m := range s.members() {
		if m.number == 0 || m.retired {
			continue
		}
		m.Queue.mu.Lock()
		c := m.counts()
		m.Queue.mu.Unlock()
		running += c.local + c.remote
		limit += c.localLimit + c.remoteLimit
	}
	return running * 100 / max(limit, 1)
}

func (s *Set) adapt(ctx context.Context) {
	view := s.config.Settings()
	first, count := s.wanted()
	most, limit := settings.QueueMax.Get(view), settings.QueueLoad.Get(view)
	load, now := s.load(), s.config.Now()
	s.mu.Lock()
	before := s.extra
	switch {
	case load > limit && count+s.extra < most:
		s.extra++
		s.calm = time.Time{}
	case load > limit/2 || s.extra == 0:
		s.calm = time.Time{}
	case s.calm.IsZero():
		s.calm = now
	case now.Sub(s.calm) >= calmFor:
		s.extra--
		s.calm = now
	}
	s.extra = max(min(s.extra, most-count), 0)
	count += s.extra
	if s.extra != before {
		s.config.Logger.Info(fmt.Sprintf("queues: load %d%%, now %d", load, count))
	}
	missing := []string{}
	for n := first; n < first+count; n++ {
		name := fmt.Sprint("queue", n)
		if m := s.named(name); m == nil {
			missing = append(missing, name)
		}
	}
	var empty []*member
	s.queues = slices.DeleteFunc(s.queues, func(m *member) bool {
		m.retired = m.number != 0 && (m.number < first || m.number >= first+count)
		if m.retired && m.entering == 0 && m.Stats().Messages == 0 {
			empty = append(empty, m)
			return true
		}
		return false
	})
	s.mu.Unlock()
	for _, name := range missing {
		if _, err := s.open(ctx, name, false); err != nil {
			s.config.Logger.Error(fmt.Sprintf("queue %s: %v", name, err))
		}
	}
	for _, m := range empty {
		m.Shutdown(ctx)
		// What somebody may still want to look at stays.
		kept := false
		for _, name := range []string{"damaged", "ratelimit"} {
			if _, err := os.Stat(filepath.Join(m.config.Dir, name)); err == nil {
				kept = true
			}
		}
		if kept {
			s.config.Logger.Warn(fmt.Sprintf("queue %s is empty and retired; %s stays, because it has more than a queue in it", m.config.Name, m.config.Dir))
			continue
		}
		if err := os.RemoveAll(m.config.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.config.Logger.Warn(fmt.Sprintf("queue %s is empty and retired, but stays: %v", m.config.Name, err))
		}
	}
}

// Shutdown ends all queues; see Queue.Shutdown.
func (s *Set) Shutdown(ctx context.Context) {
	close(s.stop)
	s.watching.Wait()
	var all sync.WaitGroup
	for _, m := range s.members() {
		all.Go(func() { m.Shutdown(ctx) })
	}
	all.Wait()
}

// chosen gives the queues that f may find something in, an error when it names one that is not there.
func (s *Set) chosen(f *Filter) ([]*member, error) {
	all := s.members()
	if f.Queue == "" {
		return all, nil
	}
	for _, m := range all {
		if m.config.Name == f.Queue {
			return []*member{m}, nil
		}
	}
	return nil, fmt.Errorf("there is no queue %q", f.Queue)
}

// Each gives every message that f chooses, queue by queue; see Queue.Each.
func (s *Set) Each(ctx context.Context, f Filter, use func(Listed) error) error {
	queues, err := s.chosen(&f)
	for _, q := range queues {
		if err := q.Each(ctx, f, use); err != nil {
			return err
		}
	}
	return err
}

// Act does something to every message that f chooses; see Queue.Act.
func (s *Set) Act(ctx context.Context, a Action, f Filter, dry bool, done func(ID)) (n int, err error) {
	queues, err := s.chosen(&f)
	for _, q := range queues {
		more, err := q.Act(ctx, a, f, dry, done)
		n += more
		if err != nil {
			return n, err
		}
	}
	return n, err
}

// find gives the queue that a message is in.
func (s *Set) find(id ID) (*member, error) {
	for _, m := range s.members() {
		m.Queue.mu.Lock()
		_, here := m.messages[id]
		m.Queue.mu.Unlock()
		if here {
			return m, nil
		}
	}
	return nil, ErrNoMessage
}

// Show gives all that is known of a message. ErrNoMessage if there is none.
func (s *Set) Show(ctx context.Context, id ID) (Detail, error) {
	m, err := s.find(id)
	if err != nil {
		return Detail{}, err
	}
	return m.Show(ctx, id)
}

// Cat writes a message's content, with CRLF line ends. ErrNoMessage if there is none.
func (s *Set) Cat(id ID, w io.Writer) error {
	m, err := s.find(id)
	if err != nil {
		return err
	}
	return m.Cat(id, w)
}

// Hosts gives every destination of every queue; see Queue.Hosts.
func (s *Set) Hosts() []HostStats {
	hosts := []HostStats{}
	for _, m := range s.members() {
		hosts = append(hosts, m.Hosts()...)
	}
	sortHosts(hosts)
	return hosts
}

// Shape counts over all queues; see Queue.Shape.
func (s *Set) Shape(ctx context.Context, f Filter, senders bool) (Shape, error) {
	queues, err := s.chosen(&f)
	if err != nil {
		return Shape{}, err
	}
	rows := map[string]*ShapeRow{}
	for _, m := range queues {
		if err := m.shape(ctx, f, senders, rows); err != nil {
			return Shape{}, err
		}
	}
	return newShape(rows), nil
}

// QueueStats is one queue of a Set.
type QueueStats struct {
	Queue string `json:"queue"`
	Stats
	// Retired queues get no new mail.
	Retired bool `json:"retired,omitempty"`
}

// Oldest gives when the oldest message of each queue came in; queues without messages are left out.
func (s *Set) Oldest() map[string]time.Time {
	all := map[string]time.Time{}
	for _, m := range s.members() {
		m.mu.Lock()
		for _, one := range m.messages {
			if t := time.Unix(0, one.birth); !one.finished && (all[m.config.Name].IsZero() || t.Before(all[m.config.Name])) {
				all[m.config.Name] = t
			}
		}
		m.mu.Unlock()
	}
	return all
}

// Wake makes every queue look at once whether its settings let it deliver more than before.
func (s *Set) Wake() {
	for _, m := range s.members() {
		m.mu.Lock()
		m.dispatch()
		m.mu.Unlock()
	}
}

// Names gives the names of the queues, retired ones too.
func (s *Set) Names() (names []string) {
	for _, m := range s.members() {
		names = append(names, m.config.Name)
	}
	return names
}

// Stats counts, queue by queue.
func (s *Set) Stats() []QueueStats {
	var all []QueueStats
	for _, m := range s.members() {
		one := QueueStats{Queue: m.config.Name, Stats: m.Stats()}
		s.mu.Lock()
		one.Retired = m.retired
		s.mu.Unlock()
		all = append(all, one)
	}
	return all
}

// Rates gives every limit: those for all queues together, and those of each queue.
func (s *Set) Rates() []Rate {
	all := s.rates.All()
	for _, m := range s.members() {
		all = append(all, m.rates[0].All()...)
	}
	return all
}

// SetRate sets a limit of the queue of a name, or with "" of all queues together. Mail that waits obeys it too.
func (s *Set) SetRate(queue, name, expression string, burst int) error {
	r, err := s.ratesOf(queue)
	if err != nil {
		return err
	}
	return r.Set(name, expression, burst)
}

// RemoveRate takes a limit away.
func (s *Set) RemoveRate(queue, name string) error {
	r, err := s.ratesOf(queue)
	if err != nil {
		return err
	}
	return r.Remove(name)
}

func (s *Set) ratesOf(queue string) (*Rates, error) {
	if queue == "" {
		return s.rates, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.named(queue); m != nil {
		return m.rates[0], nil
	}
	return nil, fmt.Errorf("there is no queue %q: make it with `indigo queue make %s`", queue, queue)
}

var _ Submitter = (*Set)(nil)
