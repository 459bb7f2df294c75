package turn

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/remote"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
)

// Report counts what became of the messages of a run: those that the host took, those that it refused for good, whose senders were told, those
// that it deferred, and files that are no messages of a delivery; the last two lie where they were.
type Report struct {
	Sent     int `json:"sent"`
	Failed   int `json:"failed"`
	Deferred int `json:"deferred"`
	Skipped  int `json:"skipped"`
}

func (r Report) String() string {
	return fmt.Sprintf("sent %d, failed %d, deferred %d, skipped %d", r.Sent, r.Failed, r.Deferred, r.Skipped)
}

// hold keeps other runs off a directory: of this process, and by flock(2) on the file that the wiki's setlock takes too (wiki 1868), of others.
// ErrBusy when there is one. Release it.
func (s *Station) hold(w *waiting) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.busy[w.dir]:
		return ErrBusy
	case len(s.busy) >= maxRuns:
		return fmt.Errorf("%d hosts are being handed their mail already", len(s.busy))
	case w.client.IsValid() && s.asking[w.client] >= maxAsked:
		return fmt.Errorf("%d hosts that %s asked for are being handed their mail already", maxAsked, w.client)
	}
	f, err := os.OpenFile(filepath.Join(w.dir, "seriallock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return ErrBusy
		}
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	s.busy[w.dir], w.lock = true, f
	if w.client.IsValid() {
		s.asking[w.client]++
	}
	return nil
}

func (s *Station) release(w *waiting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.busy, w.dir)
	if s.asking[w.client]--; s.asking[w.client] <= 0 {
		delete(s.asking, w.client)
	}
	w.lock.Close()
}

// asked is who wanted mail to be handed over: how, "etrn", "autoturn" or "operator", and in which session of a door, "" for none.
type asked struct{ how, session string }

// dial connects to address and hands w over. What became of it is part of the session's story; of each message, of its own.
func (s *Station) dial(ctx context.Context, w *waiting, by asked, address string) (r Report, err error) {
	host, _, _ := net.SplitHostPort(address)
	done := trace.Event{Kind: by.how, Session: by.session, Client: host, Check: "run", Input: filepath.Base(w.dir) + " to " + address, Verdict: "success"}
	began := s.config.Now()
	session, e := s.config.Remote.Open(ctx, address)
	if e == nil {
		err = s.run(ctx, w, session, trace.Event{Service: by.how, Client: host}, s.ending, &r)
		session.Close()
		s.config.Logger.Info(fmt.Sprintf("%s %s to %s: %s", by.how, filepath.Base(w.dir), address, r))
	} else {
		err = e
	}
	done.Time, done.Reply = s.config.Now(), r.String()
	if done.Took = done.Time.Sub(began); err != nil {
		done.Verdict, done.Reply = "deferral", done.Reply+"; the rest waits on: "+err.Error()
	}
	s.config.Trace.Record(done)
	return r, err
}

// run sends every message of w, those that come meanwhile too, and takes away what the host has answered for good. stop ends it between two messages.
// The error says why it ended early; e is the pattern of what is recorded.
func (s *Station) run(ctx context.Context, w *waiting, session *remote.Session, e trace.Event, stop func() bool, r *Report) error {
	tried := map[string]bool{}
	for fresh := true; fresh; {
		messages, err := maildir.List(w.path())
		if err != nil {
			return err
		}
		fresh = false
		for _, m := range messages {
			if tried[m.Base] {
				continue
			}
			if stop() || ctx.Err() != nil {
				return errEnding
			}
			tried[m.Base], fresh = true, true
			if err := s.one(ctx, w, m, session, e, r); err != nil {
				return err
			}
			if !session.Usable() {
				return errors.New("the host ended the connection")
			}
		}
	}
	return nil
}

// one sends a message. An error ends the run.
func (s *Station) one(ctx context.Context, w *waiting, m maildir.Message, session *remote.Session, e trace.Event, r *Report) error {
	l, err := w.open(m)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && l == nil:
		// Gone meanwhile, with its domain; or another domain's.
		return nil
	case err != nil:
		s.config.Logger.Warn("turn: " + m.File + ": " + err.Error())
		r.Skipped++
		return nil
	}
	defer l.close()
	if err := l.read(); err != nil {
		s.config.Logger.Error("turn: " + m.File + ": " + err.Error())
		r.Skipped++
		return nil
	}
	job := l.delivery()
	began := s.config.Now()
	result := session.Send(ctx, job)[0]
	now := s.config.Now()
	e.Time, e.Kind, e.From, e.To, e.Bytes, e.Took = now, "delivery", l.from.String(), l.to.String(), job.Content.Size(), now.Sub(began)
	e.Verdict, e.Reply, e.Dialogue = "success", result.Text, result.Dialogue
	if l.id != 0 {
		e.Queue = l.id.String()
	}
	if result.Err != nil {
		e.Verdict = "deferral"
		late := session.Usable() && now.Sub(l.birth) > giveUp
		if !result.Err.Temporary() || late {
			e.Verdict = "failure"
		}
		if late && result.Err.Temporary() {
			result.Err = result.Err.Saying(result.Err.Text + "\nI'm not going to try again; this message has been waiting for its host too long.")
		}
	}
	switch e.Verdict {
	case "success":
		r.Sent++
	case "deferral":
		r.Deferred++
		s.config.Trace.Record(e)
		return nil
	case "failure":
		if err := s.config.Queue.Bounce(l.id, *job.Envelope, l.birth, job.Content, []*mailerr.Error{result.Err}); err != nil {
			r.Deferred++
			e.Verdict, e.Input = "deferral", "its sender cannot be told now: "+err.Error()
			s.config.Trace.Record(e)
			s.config.Logger.Warn("turn: "+e.Input, "message", m.Base)
			return nil
		}
		r.Failed++
	}
	s.config.Trace.Record(e)
	if err := l.remove(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		// It would go out again with each run.
		s.config.Logger.Error("turn: a message that its host has cannot be removed: " + err.Error())
		return err
	}
	return nil
}

// Turnaround is mail that is about to go back over the connection by which it was asked for. Release it.
type Turnaround struct {
	s    *Station
	held []*waiting
}

// Prepare looks what waits for domains that a user may fetch; none given stands for all of his. ErrNotAllowed, ErrNoMail, ErrBusy.
func (s *Station) Prepare(ctx context.Context, view *settings.View, user addr.Address, domains []string) (_ *Turnaround, err error) {
	allowed, err := s.allowed(ctx, view, user)
	if err != nil {
		return nil, err
	}
	if len(domains) == 0 {
		if domains = allowed; len(domains) == 0 {
			return nil, fmt.Errorf("%w: %s may fetch no domain", ErrNotAllowed, user)
		}
	}
	var all []*waiting
	for _, name := range domains {
		if !slices.Contains(allowed, strings.ToLower(name)) {
			return nil, fmt.Errorf("%w: %s may not fetch %s", ErrNotAllowed, user, name)
		}
		d, err := s.config.Directory.Domain(ctx, name)
		switch {
		case errors.Is(err, directory.ErrNoDomain):
			return nil, fmt.Errorf("%w: there is no domain %s", ErrNotAllowed, name)
		case err != nil:
			return nil, err
		}
		box := s.boxOf(d)
		if box == "" {
			return nil, fmt.Errorf("%w: the mail of %s does not wait for a host", ErrNotAllowed, d.Name)
		}
		names, err := s.namesOf(ctx, d)
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(all, func(w *waiting) bool { return w.dir == box }); i >= 0 {
			all[i].names = append(all[i].names, names...)
			continue
		}
		all = append(all, &waiting{dir: box, names: names})
	}
	t, busy := &Turnaround{s: s}, false
	defer func() {
		if err != nil {
			t.Release()
		}
	}()
	for _, w := range all {
		s.hasten(ctx, w.names)
		some, err := w.any()
		if err != nil {
			return nil, err
		}
		if !some {
			continue
		}
		switch err := s.hold(w); {
		case errors.Is(err, ErrBusy):
			busy = true
		case err != nil:
			return nil, err
		default:
			t.held = append(t.held, w)
		}
	}
	switch {
	case len(t.held) > 0:
		return t, nil
	case busy:
		return nil, ErrBusy
	}
	return nil, ErrNoMail
}

// allowed gives the domains, in lower case, that a user may fetch: by the file atrnaccess, and by the table atrn_map.
func (s *Station) allowed(ctx context.Context, view *settings.View, user addr.Address) (domains []string, err error) {
	own, err := s.hostsOwn(ctx, view, user)
	if err != nil {
		return nil, err
	}
	is := func(name string) bool {
		local, host, _ := strings.Cut(name, "@")
		return strings.EqualFold(local, user.Local) && (strings.EqualFold(host, user.Domain) || own && strings.EqualFold(host, "localhost"))
	}
	for _, line := range settings.ATRNAccess.Get(view) {
		if name, list, _ := strings.Cut(line, ":"); is(name) {
			domains = append(domains, settings.SplitDomains(list)...)
		}
	}
	users := []addr.Address{user}
	if own {
		users = append(users, addr.Address{Local: user.Local, Domain: "localhost"})
	}
	for _, u := range users {
		more, err := s.config.Directory.ATRNDomains(ctx, u)
		if err != nil {
			return nil, err
		}
		domains = append(domains, more...)
	}
	slices.Sort(domains)
	return slices.Compact(domains), nil
}

// hostsOwn tells whether who logged in is a user of the host itself, who is localhost's (wiki 1757): one whose domain is the host's name, and whom
// the directory does not know. Of the two that it may have by one name the directory's is meant, as everywhere.
func (s *Station) hostsOwn(ctx context.Context, view *settings.View, user addr.Address) (bool, error) {
	if !strings.EqualFold(user.Domain, settings.Me.Get(view)) {
		return false, nil
	}
	switch _, err := s.config.Directory.User(ctx, user); {
	case err == nil, errors.Is(err, directory.ErrInactive):
		return false, nil
	case errors.Is(err, directory.ErrNoUser), errors.Is(err, directory.ErrNoDomain):
		return true, nil
	default:
		return false, err
	}
}

// Run sends all of it over conn, whose other end is the server from now on, says QUIT, and closes conn. stop ends it between two messages; e is the
// pattern of what is recorded.
func (t *Turnaround) Run(ctx context.Context, conn net.Conn, e trace.Event, stop func() bool) (r Report, err error) {
	session, failed := t.s.config.Remote.Reverse(ctx, conn)
	if session == nil {
		conn.Close()
		return r, failed
	}
	defer session.Close()
	if failed != nil {
		return r, failed
	}
	e.Service = "atrn"
	for _, w := range t.held {
		if err := t.s.run(ctx, w, session, e, stop, &r); err != nil {
			return r, err
		}
	}
	return r, nil
}

// Release lets others have what waits.
func (t *Turnaround) Release() {
	for _, w := range t.held {
		t.s.release(w)
	}
	t.held = nil
}
