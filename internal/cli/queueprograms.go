package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"path/filepath"
	"regexp"
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
		"qmail-tcpto": {"", 0, 0, "", "", func(ctx context.Context, data string, _ []string, _ map[byte]string) error {
			return app.tcpto(ctx, data)
		}},
		"qmail-tcpok": {"[ADDRESS]", 0, 1, "", "", func(ctx context.Context, data string, operands []string, _ map[byte]string) error {
			_, err := service.NewControl(data).ForgetDeadHosts(ctx, strings.Join(operands, ""))
			return err
		}},
		"qmail-showctl": {"[-a|-E]", 0, 0, "Ea", "", func(_ context.Context, data string, _ []string, o map[byte]string) error {
			_, environment := o['E']
			return app.showctl(data, environment)
		}},
		"qtop": {"", 0, 0, "", "n:", func(ctx context.Context, data string, _ []string, _ map[byte]string) error {
			return app.top(ctx, data, 0, 20, false)
		}},
		"qmail-qread": {"", 0, 0, "", "", none(app.qread)},
		"qmail-qstat": {"", 0, 0, "", "", none(app.qstat)},
		"mailq":       {"", 0, 0, "", "", none(app.qread)},
		"qmail-rm": {"[-q QUEUE] [-n LIMIT] [-E] [-v] [-r|-e] -p PATTERN", 0, 0, "p:q:n:Ever", "dixsyX", func(ctx context.Context, data string, _ []string, o map[byte]string) error {
			return app.withQueue(ctx, data, func(q service.QueueTools) error { return app.qrm(ctx, q, o) })
		}},
		"drate": {"[-q QUEUE] [-r EXPRESSION] [-D] -d DOMAIN", 0, 0, "d:r:q:D", "cCsR", func(ctx context.Context, data string, _ []string, o map[byte]string) error {
			return app.withQueue(ctx, data, func(q service.QueueTools) error { return app.drate(ctx, q, o) })
		}},
		"qmta-send": {"[-d] [-s N]", 0, 1, "ds:", "bc", func(ctx context.Context, data string, _ []string, o map[byte]string) error {
			_, daemon := o['d']
			return app.standalone(ctx, data, "qmta-send", "/var/indimail/queue/qmta", daemon)
		}},
		"qmail-start": {"[DEFAULTDELIVERY]", 0, 1, "", "", func(ctx context.Context, data string, _ []string, _ map[byte]string) error {
			return app.standalone(ctx, data, "qmail-send", "", true)
		}},
		"queue-fix": {"[-m] [-s N] [-b N] QUEUE", 1, 1, "ms:b:", "iNp", func(ctx context.Context, data string, operands []string, _ map[byte]string) error {
			name, within := service.Within(data, operands[0])
			if !within {
				if err := service.MakeQueue(operands[0]); err != nil {
					return err
				}
				_, err := fmt.Fprintf(app.Out, "queue %s is there\n", operands[0])
				return err
			}
			return app.withQueue(ctx, data, func(q service.QueueTools) error { return app.queueFix(ctx, q, name) })
		}},
	})
}

// qread lists the messages as qmail-qread does.
func (app *App) qread(ctx context.Context, q service.QueueTools) error {
	return q.Each(ctx, queue.Filter{}, func(l queue.Listed) error {
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
		bouncing := ""
		for _, r := range d.Deliveries {
			if r.State == "failed" {
				bouncing = "  bouncing"
			}
		}
		fmt.Fprintf(app.Out, "%s  #%s  %d  <%s>%s\n", d.Birth.UTC().Format("2 Jan 2006 15:04:05 GMT"), d.ID, d.Size, d.Sender, bouncing)
		for _, r := range d.Deliveries {
			done := ""
			if r.State != "waiting" {
				done = "  done"
			}
			fmt.Fprintf(app.Out, "%s\t%s\t%s\n", done, r.Channel, r.Address)
		}
		return nil
	})
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

// qrm finds messages with a pattern in them; -r deletes them, -e bounces them.
func (app *App) qrm(ctx context.Context, q service.QueueTools, o map[byte]string) error {
	pattern, ok := o['p']
	if !ok || pattern == "" {
		return errors.New("-p must give the text to look for")
	}
	var expression *regexp.Regexp
	if _, ok := o['E']; ok {
		var err error
		if expression, err = regexp.Compile(pattern); err != nil {
			return err
		}
	}
	limit := -1
	if text, ok := o['n']; ok {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return fmt.Errorf("-n %q: not a number", text)
		}
		limit = n
	}
	var found []queue.ID
	errEnough := errors.New("enough")
	var f queue.Filter
	if dir, ok := o['q']; ok {
		f.Queue = filepath.Base(dir)
	}
	err := q.Each(ctx, f, func(l queue.Listed) error {
		id, err := queue.ParseID(l.ID)
		if err != nil {
			return err
		}
		var content bytes.Buffer
		if err := q.Cat(ctx, id, &limited{&content, maxSearched}); err != nil && !errors.Is(err, errFull) {
			return err
		}
		matched := bytes.Contains(content.Bytes(), []byte(pattern))
		if expression != nil {
			matched = expression.Match(content.Bytes())
		}
		if !matched {
			return nil
		}
		if found = append(found, id); limit > 0 && len(found) == limit {
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	for _, id := range found {
		fmt.Fprintln(app.Out, id)
	}
	if len(found) == 0 {
		return nil
	}
	_, remove := o['r']
	_, expire := o['e']
	w := service.Work{Action: queue.Delete}
	switch {
	case remove && expire:
		return errors.New("-r and -e exclude each other")
	case expire:
		w.Action = queue.Bounce
	case !remove:
		return nil
	}
	_, err = q.Do(ctx, w, queue.Filter{IDs: found}, false, nil)
	return err
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

// queueFix makes a queue if there is none of the name, and checks it.
func (app *App) queueFix(ctx context.Context, q service.QueueTools, name string) error {
	all, err := q.Stats(ctx)
	if err != nil {
		return err
	}
	there := false
	for _, s := range all {
		there = there || s.Queue == name
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
