package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/instruct"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/message"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
)

var (
	errLine    = mailerr.New(451, mailerr.Enhanced{4, 3, 5}, "Unable to follow an instruction of this address. (#4.3.5)")
	errOnward  = mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "Unable to queue the message to be sent on. (#4.3.0)")
	errTimeout = mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "The program of this address took too long. (#4.3.0)")
	errTurns   = mailerr.New(451, mailerr.Enhanced{4, 3, 2}, "Too many programs of addresses run now. (#4.3.2)")
	errRoot    = mailerr.New(451, mailerr.Enhanced{4, 3, 5}, "Not allowed to run the program of this address as root. (#4.3.5)")
	errSpool   = mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "Unable to hand the message to a program. (#4.3.0)")
)

// attempt carries out the lines of one recipient: programs, then Maildirs, each in the order of the alphabet, for the table has no other
// order, then one message for all that is sent on. A line that fails for good keeps none of the others back, as in vdelivermail; one that
// fails for now keeps back what is sent on. Lines that are done are remembered, so that the next attempt passes them over.
type attempt struct {
	d        *Deliverer
	dl       *queue.Delivery
	i        int
	t        *target
	programs []instruction
	maildirs []instruction
	onward   []addr.Address
	// own is a line that names the address itself: the user's own mailbox.
	own string
	// stopped is set by a program that wants no further line obeyed (exit code 99).
	stopped bool
	// failure and deferral are the first of their kinds.
	failure, deferral   *mailerr.Error
	stored, sentOn, ran int
	// said is the trace: what became of each line. output is what programs wrote.
	said   []string
	output string
}

type instruction struct{ line, text string }

// sentOnLine stands for all forwards of an address.
const sentOnLine = "&"

// follow reads the lines of recipient i.
func (d *Deliverer) follow(ctx context.Context, dl *queue.Delivery, i int, t *target) *attempt {
	target := *t
	a := &attempt{d: d, dl: dl, i: i, t: &target}
	seen := map[string]bool{}
	for _, line := range t.lines {
		in, err := instruct.Parse(line)
		if err != nil {
			a.fail(line, errLine.Because(err))
			continue
		}
		switch in.Kind {
		case instruct.Comment:
			a.said = append(a.said, line+": nothing to do")
		case instruct.Program:
			a.programs = append(a.programs, instruction{line, in.Text})
		case instruct.Maildir, instruct.Mbox:
			// vdelivermail takes every path for a Maildir's.
			path, err := directory.MaildirPath(ctx, d.cfg.Directory, t.domain, in.Text)
			if err != nil {
				a.fail(line, errLine.Because(err))
				continue
			}
			a.maildirs = append(a.maildirs, instruction{line, path})
		case instruct.Forward:
			// A name without a domain is of the default domain, as in qmail.
			to := in.Address
			if to.Domain == "" {
				to = d.recipient(to)
			}
			mine, err := a.isOwn(ctx, to)
			switch {
			case err != nil:
				a.fail(line, errLookup.Because(err))
			case mine && t.isUser:
				a.own = line
			case mine && t.inactive:
				a.fail(line, errInactive)
			case mine:
				a.fail(line, errLooping)
			case !seen[to.Key()]:
				seen[to.Key()] = true
				a.onward = append(a.onward, to)
			}
		}
	}
	return a
}

// isOwn tells whether an address is the recipient's own, by any name of its domain.
func (a *attempt) isOwn(ctx context.Context, to addr.Address) (bool, error) {
	if !strings.EqualFold(to.Local, a.t.rcpt.Local) {
		return false, nil
	}
	d, err := a.d.cfg.Directory.Domain(ctx, to.Domain)
	if errors.Is(err, directory.ErrNoDomain) {
		return false, nil
	}
	return err == nil && d.Name == a.t.domain.Name, err
}

func (a *attempt) delivery() deliveryKey {
	key := deliveryKey{ID: a.dl.ID, Index: a.i, Birth: a.dl.Birth.UnixNano(), Address: a.dl.Recipients[a.i].Address.Key()}
	if a.i < len(a.dl.Index) {
		key.Index = a.dl.Index[a.i]
	}
	return key
}

// remembered tells whether an earlier attempt has dealt with a line, and takes over what became of it.
func (a *attempt) remembered(line string) bool {
	f, found := a.d.past.get(a.delivery(), line)
	switch {
	case !found:
		return false
	case f.failure == nil:
		a.count(line)
		a.stopped = a.stopped || f.last
	case a.failure == nil:
		a.failure = f.failure
	}
	a.said = append(a.said, line+": over since an earlier attempt")
	return true
}

func (a *attempt) count(line string) {
	switch {
	case line == sentOnLine:
		a.sentOn++
	case strings.HasPrefix(line, "|"):
		a.ran++
	default:
		a.stored++
	}
}

// did notes that a line is done; last that it ends the list.
func (a *attempt) did(line, what string, last bool) {
	a.count(line)
	a.stopped = a.stopped || last
	a.said = append(a.said, line+": "+what)
	a.d.past.put(a.delivery(), line, fate{last: last})
}

// fail notes that a line failed.
func (a *attempt) fail(line string, e *mailerr.Error) {
	a.said = append(a.said, line+": "+e.Error())
	switch {
	case e.Temporary() && a.deferral == nil:
		a.deferral = e
	case !e.Temporary() && a.failure == nil:
		a.failure = e
	}
	if !e.Temporary() {
		a.d.past.put(a.delivery(), line, fate{failure: e})
	}
	if e.Enhanced == errLine.Enhanced {
		a.d.cfg.Logger.Error("an alias has a line that cannot be followed", "alias", a.t.rcpt.String(), "line", line, "error", e)
	}
}

// writeFiles stores the message where lines say, not yet durable. The Drops must be released.
func (a *attempt) writeFiles(ctx context.Context, body *content) (files []written) {
	if a.stopped {
		return nil
	}
	put := func(line string, to func() (written, error)) {
		if a.remembered(line) {
			return
		}
		w, err := to()
		if err != nil {
			a.fail(line, mailerr.From(err))
			return
		}
		w.result, w.of, w.line = a.i, a, line
		files = append(files, w)
	}
	if a.own != "" {
		put(a.own, func() (written, error) { return a.d.toUser(ctx, a.dl, a.i, a.t.rcpt, a.t.user, body) })
	}
	for _, m := range a.maildirs {
		put(m.line, func() (written, error) {
			// One that is a user's has his quota; his other folders only count.
			home, name := filepath.Split(m.text)
			if home = filepath.Clean(home); name == "Maildir" {
				u, err := a.d.cfg.Directory.User(ctx, addr.Address{Local: filepath.Base(home), Domain: a.t.domain.Name})
				switch {
				case err == nil && filepath.Clean(u.Dir) == home:
					return a.d.toUser(ctx, a.dl, a.i, a.t.rcpt, u, body)
				case err != nil && !errors.Is(err, directory.ErrNoUser) && !errors.Is(err, directory.ErrNoDomain):
					return written{}, errLookup.Because(err)
				}
			}
			return a.d.toMaildir(a.dl, a.i, a.t.rcpt, m.text, quota{}, body)
		})
	}
	return files
}

// finish sends on, unless something is to be tried again, and gives the result.
func (a *attempt) finish(ctx context.Context) queue.Result {
	if a.deferral == nil && !a.stopped && len(a.onward) > 0 {
		id, err := a.sendOn(ctx)
		if err != nil {
			a.fail(sentOnLine, errOnward.Because(err))
		} else {
			var names []string
			for _, to := range a.onward {
				names = append(names, to.String())
			}
			a.did(sentOnLine, strings.Join(names, " ")+": sent on as "+id.String(), false)
			a.output = strings.TrimPrefix(a.output+"/qp "+id.String(), "/")
		}
	}
	if a.deferral != nil {
		if err := a.d.past.keep(a.delivery()); err != nil {
			a.d.cfg.Logger.Warn("what is done of an alias is remembered only until the next start", "alias", a.t.rcpt.String(), "error", err)
		}
		return queue.Result{Err: a.deferral, Text: a.deferral.Text, Dialogue: a.said}
	}
	if err := a.d.past.forget(a.delivery()); err != nil {
		a.d.cfg.Logger.Warn("what was done of an alias is not forgotten", "alias", a.t.rcpt.String(), "error", err)
	}
	if a.failure != nil {
		return queue.Result{Err: a.failure, Text: a.failure.Text, Dialogue: a.said}
	}
	text := fmt.Sprintf("did %d+%d+%d", a.stored, a.sentOn, a.ran)
	if a.output != "" {
		text += "/" + a.output
	}
	return queue.Result{Text: text, Dialogue: a.said}
}

// sendOn queues one message for all forwards, on stable storage when it returns. The sender stays, so that bounces go to him; the
// Delivered-To line ends a loop.
func (a *attempt) sendOn(ctx context.Context) (id queue.ID, err error) {
	if a.d.cfg.Onward == nil {
		return 0, errors.New("there is no queue")
	}
	s, err := a.d.cfg.Onward.Begin(ctx, a.dl.Content.Size())
	if err != nil {
		return 0, err
	}
	received := message.Received{Program: "alias", ID: s.ID().String(), Host: a.d.cfg.Hostname, With: "local", Time: a.d.cfg.Now()}
	trace := received.String() + "Delivered-To: " + string(appendClean(nil, a.t.rcpt.String())) + "\r\n"
	from := io.MultiReader(strings.NewReader(trace), io.NewSectionReader(a.dl.Content, 0, a.dl.Content.Size()))
	if _, err := io.Copy(s, from); err != nil {
		s.Abort()
		return 0, err
	}
	before := a.dl.Envelope
	env := queue.Envelope{
		Sender: before.Sender, Body: before.Body, UTF8: before.UTF8, EnvID: before.EnvID, Return: before.Return, MessageID: before.MessageID,
		Origin: queue.Origin{Service: "alias", Session: before.Origin.Session, Client: before.Origin.Client, UID: before.Origin.UID, PID: before.Origin.PID},
	}
	was := a.dl.Recipients[a.i]
	for _, to := range a.onward {
		env.Recipients = append(env.Recipients, queue.Recipient{Address: to, Notify: onwardNotify(was.Notify), Orcpt: was.Orcpt})
	}
	if err := s.Commit(ctx, env); err != nil {
		return 0, err
	}
	return s.ID(), nil
}

// onwardNotify leaves success out, which the alias's own result tells (RFC 3461 section 5.2.7.2).
func onwardNotify(notify string) string {
	if notify == "" || notify == "NEVER" {
		return notify
	}
	var left []string
	for _, word := range strings.Split(notify, ",") {
		if word != "SUCCESS" {
			left = append(left, word)
		}
	}
	if left == nil {
		return "NEVER"
	}
	return strings.Join(left, ",")
}

// variables are what a program gets, by qmail-command(8). They are not quoted, and a stranger may have made them up.
func (a *attempt) variables() []string {
	clean := func(s string) string { return string(appendClean(nil, s)) }
	sender, rcpt := clean(a.dl.Envelope.Sender.String()), a.t.rcpt
	local, host := clean(rcpt.Local), clean(rcpt.Domain)
	uucp := sender
	if uucp == "" {
		uucp = "MAILER-DAEMON"
	}
	home := a.t.domain.Dir
	if a.t.isUser && a.t.user.Dir != "" {
		home = a.t.user.Dir
	}
	all := append([]string{}, a.view().Environment()...)
	all = append(all, a.d.cfg.Environment...)
	all = append(all, "SENDER="+sender, "NEWSENDER="+sender, "RECIPIENT="+clean(rcpt.String()), "USER="+local, "HOME="+home, "LOCAL="+local, "EXT="+local, "HOST="+host,
		"RPLINE=Return-Path: <"+sender+">\n", "DTLINE=Delivered-To: "+clean(rcpt.String())+"\n",
		"UFLINE=From "+strings.ReplaceAll(uucp, " ", "-")+" "+a.d.cfg.Now().UTC().Format("Mon Jan _2 15:04:05 2006")+"\n",
		"QUEUEID="+a.dl.ID.String())
	for i := 2; i <= 4; i++ {
		cut := strings.LastIndexByte(host, '.')
		host = host[:max(cut, 0)]
		_, local, _ = strings.Cut(local, "-")
		all = append(all, fmt.Sprintf("HOST%d=%s", i, host), fmt.Sprintf("EXT%d=%s", i, local))
	}
	if a.t.anyone {
		all = append(all, "DEFAULT="+clean(rcpt.Local))
	}
	return all
}

func (a *attempt) view() *settings.View {
	return a.d.cfg.Settings().ForDelivery(a.dl.Envelope.Sender, a.t.rcpt)
}
