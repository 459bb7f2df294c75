// Package local is a station: it delivers messages to the Maildirs of virtual users and as the lines of aliases say, and calls a
// delivery done only when a batch sync has made its file durable (docs/architecture.md section 5). It must not know how a
// message came in, how its delivery is scheduled, or how the mailbox is read.
package local

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
)

// Directory finds users and aliases. It fails with directory.ErrNoUser, directory.ErrNoAlias or directory.ErrNoDomain when there
// is none; any other error means that it could not answer.
type Directory interface {
	User(ctx context.Context, a addr.Address) (directory.User, error)
	// DomainRoom tells whether a message fits into the domain's limits; DomainGrew is told when it is there.
	DomainRoom(ctx context.Context, domain string, message maildir.Use) (bool, error)
	DomainGrew(domain string, by maildir.Use)
	Aliases(ctx context.Context, a addr.Address) (lines []string, err error)
	Domain(ctx context.Context, name string) (directory.Domain, error)
}

// Config is what a Deliverer stands on. Only Directory is required.
type Config struct {
	Directory Directory
	// Hostname goes into file names.
	Hostname string
	// Queue tells file names of several queues of one host apart; "" for the only one.
	Queue string
	// Settings gives the view in force; nil means defaults.
	Settings func() *settings.View
	// Onward takes what aliases send on; without one that is a temporary failure.
	Onward queue.Submitter
	// Memory is the file in which deliveries that are tried again say what is done of them; "" keeps that for the life of the process.
	Memory string
	// Environment is what programs of aliases get beside the settings and what qmail-command(8) names: PATH and such.
	Environment []string
	// Now is the clock; it only serves deliveries without a time of birth.
	Now func() time.Time
	// Sync makes everything on dir's file system durable; nil means syncfs(2). For tests.
	Sync   func(dir *os.File) error
	Logger *slog.Logger
}

// Deliverer delivers to Maildirs. It is a queue.Deliverer.
type Deliverer struct {
	cfg   Config
	disks disks
	drops drops
	bufs  sync.Pool
	// warning keeps two deliveries to a user from warning twice.
	warning sync.Mutex
	// turns has a place for each program that runs.
	turns chan struct{}
	past  memory
}

var _ queue.Deliverer = (*Deliverer)(nil)

// New returns a Deliverer; Close it when no delivery runs any more.
func New(cfg Config) *Deliverer {
	if cfg.Sync == nil {
		cfg.Sync = syncfs
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Settings == nil {
		cfg.Settings = func() *settings.View { return nil }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Hostname == "" {
		cfg.Hostname = "localhost"
	}
	d := &Deliverer{cfg: cfg}
	d.disks.syncfs = cfg.Sync
	d.turns = make(chan struct{}, settings.ConcurrencyProgram.Get(cfg.Settings()))
	if cfg.Memory != "" {
		if err := d.past.load(cfg.Memory, cfg.Now()); err != nil {
			cfg.Logger.Warn("what is done of aliases of waiting mail is not known, and is done again", "error", err)
		}
	}
	d.bufs.New = func() any { b := make([]byte, chunk); return &b }
	return d
}

// Close waits for the syncs under way and gives all descriptors back.
func (d *Deliverer) Close() error {
	d.disks.close()
	d.drops.close()
	d.past.close()
	return nil
}

// chunk is how much of a message is in memory for one delivery. The header has to fit for the loop check to see all of
// it; a loop that hides beyond is still ended by the hop count.
const chunk = 256 << 10

// done is qmail-local's report: files, forwards and programs that took the message.
const done = "did 1+0+0"

var (
	errNoUser    = mailerr.New(550, mailerr.Enhanced{5, 1, 1}, "Sorry, no mailbox here by that name. (#5.1.1)")
	errInactive  = mailerr.New(550, mailerr.Enhanced{5, 2, 1}, "Sorry, this mailbox is inactive. (#5.2.1)")
	errLooping   = mailerr.New(554, mailerr.Enhanced{5, 4, 6}, "This message is looping: it already has my Delivered-To line. (#5.4.6)")
	errLookup    = mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "Unable to look the user up. (#4.3.0)")
	errClosing   = mailerr.New(451, mailerr.Enhanced{4, 3, 2}, "Delivery is shutting down. (#4.3.2)")
	errFull      = mailerr.New(452, mailerr.Enhanced{4, 3, 1}, "Disk full. (#4.3.1)")
	errQuota     = mailerr.New(452, mailerr.Enhanced{4, 2, 2}, "User is over the disk quota. (#4.2.2)")
	errNoMembers = mailerr.New(550, mailerr.Enhanced{5, 2, 4}, "Sorry, this group has no members. (#5.2.4)")
	errWrite     = mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "Unable to write to the mailbox. (#4.3.0)")
	errRead      = mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "Unable to read the queued message. (#4.3.0)")
)

// written is a file that waits for its sync.
type written struct {
	result int
	drop   *held
	entry  maildir.Placed
	fresh  bool // made by this attempt
	// of is the attempt that line is of; nil for a user's only file.
	of   *attempt
	line string
}

// Deliver implements queue.Deliverer. Programs of aliases come first, then all files, then one wait: the recipients of a message share a
// sync. What is sent on comes last, so that no failure of another line repeats it.
func (d *Deliverer) Deliver(ctx context.Context, dl *queue.Delivery) []queue.Result {
	results := make([]queue.Result, len(dl.Recipients))
	buf := d.bufs.Get().(*[]byte)
	defer d.bufs.Put(buf)
	body := &content{c: dl.Content, buf: *buf}

	targets := make([]target, len(dl.Recipients))
	var attempts []*attempt
	for i := range dl.Recipients {
		t, err := d.find(ctx, dl, i, body)
		if err != nil {
			results[i] = failed(mailerr.From(err))
			continue
		}
		if t.lines != nil {
			t.attempt = d.follow(ctx, dl, i, &t)
			attempts = append(attempts, t.attempt)
		}
		t.found = true
		targets[i] = t
	}
	d.runPrograms(ctx, attempts, body)
	var files []written
	for i := range targets {
		t := &targets[i]
		switch {
		case !t.found:
		case t.attempt != nil:
			files = append(files, t.attempt.writeFiles(ctx, body)...)
		default:
			w, err := d.toUser(ctx, dl, i, t.rcpt, t.user, body)
			if err != nil {
				results[i] = failed(mailerr.From(err))
				continue
			}
			w.result = i
			files = append(files, w)
		}
	}
	synced := map[uint64]error{}
	for _, w := range files {
		err, ok := synced[w.drop.Device()]
		if !ok {
			err = d.sync(w.drop)
			synced[w.drop.Device()] = err
		}
		if err == nil {
			if results[w.result] = (queue.Result{Text: done}); w.of != nil {
				w.of.did(w.line, "stored as "+w.entry.Name, false)
			}
			continue
		}
		if w.fresh {
			// The kernel may have dropped what it could not write, and calls the pages clean: write anew next time.
			_ = w.drop.Remove(w.entry)
		}
		e := d.writeError(err, w.entry.Name)
		if results[w.result] = failed(e); w.of != nil {
			w.of.fail(w.line, e)
		}
	}
	for _, w := range files {
		d.drops.release(w.drop)
	}
	for _, a := range attempts {
		results[a.i] = a.finish(ctx)
	}
	return results
}

func failed(e *mailerr.Error) queue.Result { return queue.Result{Err: e, Text: e.Text} }

// sync returns when everything on the drop's file system that was written before the call is durable.
func (d *Deliverer) sync(drop *held) error {
	s, err := d.disks.of(drop.Device(), drop.OpenDir)
	if err != nil {
		return err
	}
	return s.wait()
}

func (d *Deliverer) writeError(err error, file string) *mailerr.Error {
	e := errWrite
	if full, quota := maildir.DiskFull(err); quota {
		e = errQuota
	} else if full {
		e = errFull
	} else if errors.Is(err, os.ErrClosed) {
		e = errClosing
	}
	d.cfg.Logger.Error("local delivery cannot write", "file", file, "error", err)
	return e.Because(err, slog.String("file", file))
}

// recipient gives the address under which the directory knows the user: what is sent to this host itself, or without a
// domain as RFC 5321 section 4.1.1.3 allows for postmaster, belongs to the default domain.
func (d *Deliverer) recipient(a addr.Address) addr.Address {
	v := d.cfg.Settings()
	me := settings.Me.Get(v)
	if a.Domain == "" || strings.EqualFold(a.Domain, me) {
		if a.Domain = settings.DefaultDomain.Get(v); a.Domain == "" {
			a.Domain = me
		}
	}
	return a
}

// target is what a recipient turned out to be: a user, lines of an alias, or both, of which the lines hold.
type target struct {
	found  bool
	rcpt   addr.Address
	user   directory.User
	isUser bool
	// inactive says that he is one who is marked so: only lines hold.
	inactive bool
	// lines are the alias's; those of the domain's *@domain when anyone is set.
	lines   []string
	anyone  bool
	domain  directory.Domain
	attempt *attempt
}

// find looks recipient i up.
func (d *Deliverer) find(ctx context.Context, dl *queue.Delivery, i int, body *content) (t target, err error) {
	if err := ctx.Err(); err != nil {
		return t, errClosing.Because(err)
	}
	t.rcpt = d.recipient(dl.Recipients[i].Address)
	known := func(err error) (bool, error) {
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, directory.ErrNoUser), errors.Is(err, directory.ErrNoAlias):
			return false, nil
		case errors.Is(err, directory.ErrNoDomain):
			return false, errNoUser.Because(err)
		}
		return false, errLookup.Because(err)
	}
	// IndiMail's vdelivermail asks for lines first too.
	t.lines, err = d.cfg.Directory.Aliases(ctx, t.rcpt)
	isAlias, err := known(err)
	if err != nil {
		return t, err
	}
	t.user, err = d.cfg.Directory.User(ctx, t.rcpt)
	if t.inactive = errors.Is(err, directory.ErrInactive); t.inactive && !isAlias {
		return t, errInactive.Because(err)
	}
	if t.isUser, err = known(err); err != nil {
		return t, err
	}
	if !isAlias && !t.isUser {
		t.lines, err = d.cfg.Directory.Aliases(ctx, directory.CatchAll(t.rcpt.Domain))
		if t.anyone, err = known(err); err != nil {
			return t, err
		}
		if !t.anyone {
			return t, errNoUser.Because(directory.ErrNoUser)
		}
	}
	if isAlias || t.anyone {
		t.domain, err = d.cfg.Directory.Domain(ctx, t.rcpt.Domain)
		if _, err = known(err); err != nil {
			return t, err
		}
	} else if t.user.IsGroup() {
		return t, errNoMembers
	}
	first, err := body.first()
	if err != nil {
		return t, errRead.Because(err)
	}
	if looping(first, t.rcpt) {
		return t, errLooping
	}
	return t, nil
}

// toUser puts the message for recipient i into a user's Maildir, not yet durable. On success the Drop must be released.
func (d *Deliverer) toUser(ctx context.Context, dl *queue.Delivery, i int, rcpt addr.Address, user directory.User, body *content) (w written, err error) {
	if user.Dir == "" || !filepath.IsAbs(user.Dir) {
		return w, errWrite.Because(errors.New("the user's folder is not an absolute path"), slog.String("folder", user.Dir))
	}
	return d.toMaildir(dl, i, rcpt, filepath.Join(user.Dir, "Maildir"), d.quotaOf(ctx, user, dl.Content.Size()), body)
}

// toMaildir is toUser for any Maildir, which is made when it is missing; q is the zero quota for one that is no user's.
func (d *Deliverer) toMaildir(dl *queue.Delivery, i int, rcpt addr.Address, path string, q quota, body *content) (w written, err error) {
	key := maildir.Key{Birth: dl.Birth, Queue: d.cfg.Queue, ID: uint64(dl.ID), Index: i, Host: d.cfg.Hostname}
	if i < len(dl.Index) {
		key.Index = dl.Index[i]
	}
	if key.Birth.IsZero() {
		key.Birth = d.cfg.Now()
	}
	drop, err := d.drops.take(path)
	if err != nil {
		return w, d.writeError(err, path)
	}
	w, err = d.place(drop, key, q, header(dl.Envelope.Sender, rcpt), body, dl.Repeat || dl.Attempt > 0)
	if errors.Is(err, fs.ErrNotExist) {
		// new or tmp was removed under our hands; what is open leads nowhere.
		d.drops.forget(drop)
		d.drops.release(drop)
		if err := maildir.Create(path); err != nil {
			return w, d.writeError(err, path)
		}
		if drop, err = d.drops.take(path); err != nil {
			return w, d.writeError(err, path)
		}
		w, err = d.place(drop, key, q, header(dl.Envelope.Sender, rcpt), body, true)
	}
	if err != nil {
		d.drops.release(drop)
		var known *mailerr.Error
		if errors.As(err, &known) {
			return w, err
		}
		return w, d.writeError(err, path)
	}
	return w, nil
}

// place writes the file, or finds the one of an earlier attempt.
func (d *Deliverer) place(drop *held, key maildir.Key, q quota, head []byte, body *content, repeat bool) (written, error) {
	if repeat {
		old, found, err := drop.Find(key)
		if err != nil {
			return written{}, err
		}
		if found {
			size, err := body.lfSize()
			if err != nil {
				return written{}, errRead.Because(err)
			}
			if drop.Complete(old, int64(len(head))+size) {
				// The attempt may have ended before it was counted.
				if _, err := maildir.Recount(drop.path, q.Quota); err != nil {
					d.cfg.Logger.Warn("quota: " + err.Error())
				}
				return written{drop: drop, entry: old}, nil
			}
			if err := drop.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return written{}, err
			}
		}
	}
	if err := d.fits(drop, q, body.c.Size()); err != nil {
		return written{}, err
	}
	f, err := drop.NewFile(key.Base())
	if err != nil {
		return written{}, err
	}
	first, err := body.first()
	if err == nil {
		err = f.Append(head, first)
	}
	if err == nil {
		err = body.rest(f.Append)
	}
	if err != nil {
		f.Abort()
		return written{}, err
	}
	entry, holds, err := f.CommitWithin(q.Quota)
	if errors.Is(err, fs.ErrExist) && !repeat {
		// A file of this very name: an attempt that the queue does not know of.
		return d.place(drop, key, q, head, body, true)
	}
	if errors.Is(err, maildir.ErrOverQuota) {
		return written{}, d.refuse(drop, q, holds, f.Size())
	}
	if err != nil {
		return written{}, err
	}
	d.warn(drop, q, holds)
	if q.owner.Domain != "" {
		d.cfg.Directory.DomainGrew(q.owner.Domain, maildir.Use{Bytes: f.Size(), Messages: 1})
	}
	return written{drop: drop, entry: entry, fresh: true}, nil
}

// header gives the two lines that delivery puts in front, as qmail-local does.
func header(sender, rcpt addr.Address) []byte {
	b := make([]byte, 0, 160)
	b = append(b, "Return-Path: <"...)
	b = appendClean(b, sender.String())
	b = append(b, ">\nDelivered-To: "...)
	b = appendClean(b, rcpt.String())
	return append(b, '\n')
}

// appendClean keeps control characters, which a quoted local part could hold, out of a header line.
func appendClean(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == 0x7f {
			b = append(b, '_')
		} else {
			b = append(b, c)
		}
	}
	return b
}

// looping tells whether the header at the start of text has this delivery's Delivered-To line already.
func looping(text []byte, rcpt addr.Address) bool {
	const name = "delivered-to:"
	var want string
	for line := range bytes.Lines(text) {
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			return false
		}
		if len(line) <= len(name) || line[0]|0x20 != 'd' || !strings.EqualFold(string(line[:len(name)]), name) {
			continue
		}
		if want == "" {
			want = string(appendClean(nil, rcpt.String()))
		}
		if strings.EqualFold(string(bytes.TrimSpace(line[len(name):])), want) {
			return true
		}
	}
	return false
}

// content reads a queued message once for all recipients if it fits the buffer, and piece by piece for each if not.
type content struct {
	c     queue.Content
	buf   []byte
	head  []byte // the first piece, LF line ends; in buf as long as nothing else was read
	from  int64  // where the second piece starts
	valid bool
	size  int64 // of the whole with LF line ends; 0 while unknown
}

// piece reads from off; it never ends between a CR and its LF.
func (c *content) piece(off int64) (text []byte, next int64, err error) {
	n := min(int64(len(c.buf)), c.c.Size()-off)
	if n <= 0 {
		return nil, off, nil
	}
	got, err := c.c.ReadAt(c.buf[:n], off)
	if int64(got) < n {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, off, err
	}
	next = off + n
	if c.buf[n-1] == '\r' && next < c.c.Size() && n > 1 {
		n, next = n-1, next-1
	}
	return maildir.LFInPlace(c.buf[:n]), next, nil
}

// first gives the first piece; it is good until rest is called.
func (c *content) first() ([]byte, error) {
	if !c.valid {
		text, next, err := c.piece(0)
		if err != nil {
			return nil, err
		}
		c.head, c.from, c.valid = text, next, true
	}
	return c.head, nil
}

// rest gives every piece after the first to take.
func (c *content) rest(take func(...[]byte) error) error {
	for off := c.from; off < c.c.Size(); {
		c.valid = false
		text, next, err := c.piece(off)
		if err != nil {
			return errRead.Because(err)
		}
		if err := take(text); err != nil {
			return err
		}
		off = next
	}
	return nil
}

// lfSize counts the message's bytes with LF line ends.
func (c *content) lfSize() (int64, error) {
	if c.size > 0 {
		return c.size, nil
	}
	first, err := c.first()
	if err != nil {
		return 0, err
	}
	size := int64(len(first))
	err = c.rest(func(p ...[]byte) error {
		for _, p := range p {
			size += int64(len(p))
		}
		return nil
	})
	c.size = size
	return size, err
}
