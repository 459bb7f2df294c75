package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/service"
	"github.com/indigomail/indigo/internal/settings"
)

// queuePrograms are qmail's and IndiMail's names for the commands on queues.
func (app *App) queuePrograms() map[string]func([]string) int {
	none := func(run func(context.Context, service.QueueTools) error) func(context.Context, string, []string, map[byte]string) error {
		return func(ctx context.Context, data string, _ []string, _ map[byte]string) error {
			return app.withQueue(ctx, data, func(q service.QueueTools) error { return run(ctx, q) })
		}
	}
	return app.faces(map[string]oldProgram{
		"qmail-tcpto": {"", 0, 0, "", func(ctx context.Context, data string, _ []string, _ map[byte]string) error {
			return app.tcpto(ctx, data)
		}},
		"qmail-tcpok": {"[ADDRESS]", 0, 1, "", func(ctx context.Context, data string, operands []string, _ map[byte]string) error {
			_, err := service.NewControl(data).ForgetDeadHosts(ctx, strings.Join(operands, ""))
			return err
		}},
		"qmail-showctl": {"[-a|-E]", 0, 0, "Ea", func(_ context.Context, data string, _ []string, o map[byte]string) error {
			_, environment := o['E']
			return app.showctl(data, environment)
		}},
		"qtop": {"[-i SECONDS]", 0, 0, "i:", func(ctx context.Context, data string, _ []string, o map[byte]string) error {
			every := 0
			if text, again := o['i']; again {
				var err error
				if every, err = strconv.Atoi(text); err != nil || every < 1 || every > 86400 {
					return fmt.Errorf("-i %q is no number of seconds from 1 to 86400", text)
				}
			}
			return app.top(ctx, data, time.Duration(every)*time.Second, 20, false)
		}},
		"qmail-qread": {"[-a|-l|-r|-t|-c]", 0, 0, "alrtc", func(ctx context.Context, data string, _ []string, o map[byte]string) error {
			return app.withQueue(ctx, data, func(q service.QueueTools) error {
				if givenAny(o, "c") {
					return app.qstat(ctx, q)
				}
				return app.qread(ctx, q, o)
			})
		}},
		"qmail-qstat": {"", 0, 0, "", none(app.qstat)},
		"mailq":       {"", 0, 0, "", none(func(ctx context.Context, q service.QueueTools) error { return app.qread(ctx, q, nil) })},
		"qmail-rm": {"[-q QUEUE] [-n BYTES] [-e] [-i] [-s N] [-v] [-r [-y DIRECTORY]|-d] -p PATTERN", 0, 0, "p:q:n:s:y:eivrd", func(ctx context.Context, data string, _ []string, o map[byte]string) error {
			return app.withQueue(ctx, data, func(q service.QueueTools) error { return app.qrm(ctx, data, q, o) })
		}},
		"drate": {"[-D QUEUE/ratelimit|-q QUEUE] [-r [+|-]EXPRESSION] [-c] [-R] [-U] [-s] [-u] -d DOMAIN, or -l [-su]", 0, 0, "d:D:r:q:cRUslu", func(ctx context.Context, data string, _ []string, o map[byte]string) error {
			return app.withQueue(ctx, data, func(q service.QueueTools) error { return app.drate(ctx, q, o) })
		}},
		"qmta-send": {"[-d] [-bf] [-s N]", 0, 1, "dbfs:", func(ctx context.Context, data string, _ []string, o map[byte]string) error {
			_, daemon := o['d']
			return app.standalone(ctx, data, "qmta-send", "/var/indimail/queue/qmta", daemon)
		}},
		"qmail-start": {"[DEFAULTDELIVERY]", 0, 1, "", func(ctx context.Context, data string, _ []string, _ map[byte]string) error {
			return app.standalone(ctx, data, "qmail-send", "", true)
		}},
		"queue-fix": {"[-N] [-mrv] [-s N] [-b N] QUEUE", 1, 1, "Nmrvs:b:", func(ctx context.Context, data string, operands []string, o map[byte]string) error {
			_, look := o['N']
			name, within := service.Within(data, operands[0])
			if within {
				return app.withQueue(ctx, data, func(q service.QueueTools) error { return app.queueFix(ctx, q, name, look) })
			}
			if look && !service.IsQueue(operands[0]) {
				return fmt.Errorf("there is no queue %s; without -N it is made", operands[0])
			}
			if !look {
				if err := service.MakeQueue(operands[0]); err != nil {
					return err
				}
			}
			_, err := fmt.Fprintf(app.Out, "queue %s is there\n", operands[0])
			return err
		}},
	})
}

// qread lists the messages as qmail-qread does: with -l and -r those with local and with remote recipients, with -t those that are not routed yet.
func (app *App) qread(ctx context.Context, q service.QueueTools, o map[byte]string) error {
	all, unrouted := !givenAny(o, "lrt") || givenAny(o, "a"), 0
	meant := func(channel string) bool {
		return all || channel == "local" && givenAny(o, "l") || channel == "remote" && givenAny(o, "r") || channel == "" && givenAny(o, "t")
	}
	err := q.Each(ctx, queue.Filter{}, func(l queue.Listed) error {
		id, err := queue.ParseID(l.ID)
		if err != nil {
			return err
		}
		d, err := q.Show(ctx, id)
		if service.IsNoMessage(err) {
			return nil // it ended meanwhile
		}
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(d.Deliveries, func(r queue.RecipientDetail) bool { return meant(r.Channel) }) {
			if slices.ContainsFunc(d.Deliveries, func(r queue.RecipientDetail) bool { return r.Channel == "" }) {
				unrouted++
			}
			return nil
		}
		bouncing := ""
		for _, r := range d.Deliveries {
			if r.State == "failed" {
				bouncing = "  bouncing"
			}
		}
		fmt.Fprintf(app.Out, "%s  #%s  %d  <%s>%s\n", d.Birth.UTC().Format("2 Jan 2006 15:04:05 GMT"), d.ID, d.Size, d.Sender, bouncing)
		for _, r := range d.Deliveries {
			if !meant(r.Channel) {
				continue
			}
			done := ""
			if r.State != "waiting" {
				done = "  done"
			}
			fmt.Fprintf(app.Out, "%s\t%s\t%s\n", done, r.Channel, r.Address)
		}
		return nil
	})
	if err == nil && unrouted > 0 {
		fmt.Fprintf(app.Err, "%d more messages are not routed yet: -t lists them\n", unrouted)
	}
	return err
}

// qstat counts as qmail-qstat does.
func (app *App) qstat(ctx context.Context, q service.QueueTools) error {
	all, err := q.Stats(ctx)
	if err != nil {
		return err
	}
	n := 0
	for _, s := range all {
		n += s.Messages
	}
	// What is acknowledged is in the schedule: there is no state in between.
	_, err = fmt.Fprintf(app.Out, "messages in queue: %d\nmessages in queue but not yet preprocessed: 0\n", n)
	return err
}

// maxSearched is how much of a message qmail-rm looks through.
const maxSearched = 64 << 20

// qrm finds messages with a pattern in them, as qmail-rm(1): -r takes them away and keeps a copy, -d takes them away.
func (app *App) qrm(ctx context.Context, data string, q service.QueueTools, o map[byte]string) error {
	pattern := o['p']
	if pattern == "" {
		return errors.New("-p must give the text to look for; `indigo queue delete --all` takes every message away")
	}
	if !givenAny(o, "e") {
		pattern = regexp.QuoteMeta(pattern)
	}
	flags := "(?s)"
	if givenAny(o, "i") {
		flags = "(?si)"
	}
	expression, err := regexp.Compile(flags + pattern)
	if err != nil {
		return err
	}
	searched := maxSearched
	if text, ok := o['n']; ok {
		if searched, err = strconv.Atoi(text); err != nil || searched < 1 {
			return fmt.Errorf("-n %q is no number of bytes from 1 up", text)
		}
		searched = min(searched, maxSearched)
	}
	if _, to := o['y']; to && (givenAny(o, "d") || !givenAny(o, "r")) {
		return errors.New("-y says where -r keeps what it takes away")
	}
	f := queue.Filter{}
	// IndiMail's -q is the directory of all queues; here one of them may be named too.
	if name := filepath.Base(o['q']); o['q'] != "" && name != "queue" {
		f.Queue = name
	}
	var found []queue.ID
	err = q.Each(ctx, f, func(l queue.Listed) error {
		id, err := queue.ParseID(l.ID)
		if err != nil {
			return err
		}
		var content bytes.Buffer
		err = q.Cat(ctx, id, &limited{&content, searched})
		if service.IsNoMessage(err) {
			return nil // it ended meanwhile
		}
		if err != nil && !errors.Is(err, errFull) {
			return err
		}
		if expression.Match(content.Bytes()) {
			found = append(found, id)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, id := range found {
		fmt.Fprintln(app.Out, id)
	}
	if len(found) == 0 || !givenAny(o, "rd") {
		return nil
	}
	f = queue.Filter{IDs: found}
	if !givenAny(o, "d") {
		if f.IDs, err = app.setAside(ctx, q, f, cmp.Or(o['y'], filepath.Join(data, "queue", "trash"))); err != nil || len(f.IDs) == 0 {
			return err
		}
	}
	_, err = q.Do(ctx, service.Work{Action: queue.Delete}, f, false, nil)
	return err
}

// setAside copies messages into a file of its own in dir, and names those that are in it.
func (app *App) setAside(ctx context.Context, q service.QueueTools, f queue.Filter, dir string) (kept []queue.ID, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	file, err := os.CreateTemp(dir, time.Now().UTC().Format("20060102T150405Z")+"-*.indigo")
	if err != nil {
		return nil, err
	}
	copied, err := app.exportTo(ctx, q, f, file)
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		err = syncDirectory(dir)
	}
	if err != nil || len(copied) == 0 {
		return nil, errors.Join(err, os.Remove(file.Name()))
	}
	for _, text := range copied {
		id, err := queue.ParseID(text)
		if err != nil {
			return nil, err
		}
		kept = append(kept, id)
	}
	_, err = fmt.Fprintf(app.Err, "%d messages go to %s; to undo: indigo queue import %[2]s\n", len(kept), file.Name())
	return kept, err
}

func syncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

var errFull = errors.New("long enough")

// limited takes so many bytes.
type limited struct {
	io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n, err := l.Writer.Write(p[:min(len(p), l.left)])
	if l.left -= n; err == nil && n < len(p) {
		err = errFull
	}
	return n, err
}

// standalone works on the queue of QUEUEDIR, or of dir: as a daemon until a signal, or once.
func (app *App) standalone(ctx context.Context, data, program, dir string, daemon bool) error {
	e := settings.FromEnvironment()
	if dir = cmp.Or(e.Get("QUEUEDIR"), dir); dir == "" {
		return errors.New("QUEUEDIR must name the queue; for all queues run `indigo serve`")
	}
	log, logger, err := service.NewLog(app.Err, "plain")
	if err != nil {
		return err
	}
	defer log.Close()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	s, err := service.OpenStandalone(ctx, data, dir, logger)
	if err != nil {
		return err
	}
	defer func() {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		s.Shutdown(limit)
	}()
	logger.Info(fmt.Sprintf("info: %s: %s: %d messages", program, dir, s.Left()))
	if daemon {
		s.Slim(ctx)
		return nil
	}
	return s.Once(ctx)
}

// queueFix makes a queue if there is none of the name, unless it is only to look, and checks it.
func (app *App) queueFix(ctx context.Context, q service.QueueTools, name string, look bool) error {
	all, err := q.Stats(ctx)
	if err != nil {
		return err
	}
	there := false
	for _, s := range all {
		there = there || s.Queue == name
	}
	if !there && look {
		return fmt.Errorf("there is no queue %s; without -N it is made", name)
	}
	if !there {
		if err := q.Make(ctx, name); err != nil {
			return err
		}
	}
	faults := 0
	n, err := q.Check(ctx, queue.Filter{Queue: name}, func() {}, func(f queue.Fault) {
		faults++
		fmt.Fprintln(app.Err, strings.TrimSpace(f.ID+" "+f.File)+": "+f.Text)
	})
	if err == nil && faults > 0 {
		err = fmt.Errorf("queue %s: %d faults in %d messages", name, faults, n)
	}
	if err == nil {
		fmt.Fprintf(app.Out, "queue %s: %d messages, no fault\n", name, n)
	}
	return err
}
