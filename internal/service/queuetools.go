package service

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
)

// QueueTools is what an operator does with the queues of a data directory: those of a running instance, or of one that is
// down. Close must be called.
type QueueTools interface {
	Stats(ctx context.Context) ([]queue.QueueStats, error)
	Each(ctx context.Context, f queue.Filter, use func(queue.Listed) error) error
	Show(ctx context.Context, id queue.ID) (queue.Detail, error)
	Cat(ctx context.Context, id queue.ID, w io.Writer) error
	Hosts(ctx context.Context) ([]queue.HostStats, error)
	Shape(ctx context.Context, f queue.Filter, senders bool) (queue.Shape, error)
	// Do does something to every message that f chooses; done is called for each, with dry too.
	Do(ctx context.Context, w Work, f queue.Filter, dry bool, done func(queue.ID)) (int, error)
	EditRecipient(ctx context.Context, id queue.ID, old, now addr.Address) error
	Make(ctx context.Context, name string) error
	// Rates are the rate limits; queue "" stands for all queues together.
	Rates(ctx context.Context) ([]queue.Rate, error)
	SetRate(ctx context.Context, queue, name, expression string, burst int) error
	RemoveRate(ctx context.Context, queue, name string) error
	Check(ctx context.Context, f queue.Filter, checked func(), found func(queue.Fault)) (int, error)
	Export(ctx context.Context, f queue.Filter, use func(queue.Exported, io.Reader) error) error
	Import(ctx context.Context, e queue.Exported, name string, content io.Reader) error
	Close()
}

// Work is a queue.Action, or "reroute", or "move" with the name of the queue to move to.
type Work struct {
	Action queue.Action `json:"action"`
	To     string       `json:"to,omitempty"`
}

// The works that are no Action.
const (
	Reroute queue.Action = "reroute"
	Move    queue.Action = "move"
)

// do does a work on a set.
func do(ctx context.Context, s *queue.Set, w Work, f queue.Filter, dry bool, done func(queue.ID)) (int, error) {
	switch w.Action {
	case Reroute:
		return s.Reroute(ctx, f, dry, done)
	case Move:
		return s.Move(ctx, f, w.To, dry, done)
	}
	return s.Act(ctx, w.Action, f, dry, done)
}

// OpenQueueTools reaches the queues of the running instance; if none runs, it opens them itself, with the data directory's
// lock, and delivers nothing.
func OpenQueueTools(ctx context.Context, data string) (QueueTools, error) {
	c := NewControl(data)
	if _, err := c.Status(ctx); err == nil {
		return remoteQueue{c}, nil
	} else if !errors.Is(err, ErrNotRunning) {
		return nil, err
	}
	if !Exists(data) {
		return nil, fmt.Errorf("%s is not an Indigo data directory", data)
	}
	l, err := acquireLock(data)
	if err != nil {
		return nil, err
	}
	snapshot, err := settings.Load(data)
	if err != nil {
		l.release()
		return nil, err
	}
	view := func(name string) *settings.View { return snapshot.View("queue." + name) }
	set, err := queue.OpenSet(ctx, queue.SetConfig{
		Config: queue.Config{
			Dir: queueBase(data, snapshot.View("queue")), Host: settings.Me.Get(snapshot.View("all")), Idle: true, Router: noRouter{}, Trace: trace.Discard,
			Settings: func() *settings.View { return snapshot.View("queue") }, Logger: slog.New(slog.DiscardHandler), Now: time.Now, UID: os.Getuid(), PID: os.Getpid(),
		},
		View: view,
	})
	if err != nil {
		l.release()
		return nil, err
	}
	return &localQueue{set, l}, nil
}

// noRouter leaves routing to the next start of the daemon.
type noRouter struct{}

func (noRouter) Route(context.Context, addr.Address) (queue.Destination, error) {
	return queue.Destination{}, mailerr.New(451, mailerr.Enhanced{4, 3, 2}, "no daemon runs")
}

// localQueue works on the files.
type localQueue struct {
	*queue.Set
	lock *lock
}

func (q *localQueue) Stats(context.Context) ([]queue.QueueStats, error) { return q.Set.Stats(), nil }
func (q *localQueue) Hosts(context.Context) ([]queue.HostStats, error)  { return q.Set.Hosts(), nil }
func (q *localQueue) Rates(context.Context) ([]queue.Rate, error)       { return q.Set.Rates(), nil }
func (q *localQueue) SetRate(_ context.Context, queue, name, expression string, burst int) error {
	return q.Set.SetRate(queue, name, expression, burst)
}
func (q *localQueue) RemoveRate(_ context.Context, queue, name string) error {
	return q.Set.RemoveRate(queue, name)
}
func (q *localQueue) Cat(_ context.Context, id queue.ID, w io.Writer) error {
	return q.Set.Cat(id, w)
}
func (q *localQueue) Do(ctx context.Context, w Work, f queue.Filter, dry bool, done func(queue.ID)) (int, error) {
	return do(ctx, q.Set, w, f, dry, done)
}
func (q *localQueue) EditRecipient(_ context.Context, id queue.ID, old, now addr.Address) error {
	return q.Set.EditRecipient(id, old, now)
}
func (q *localQueue) Export(ctx context.Context, f queue.Filter, use func(queue.Exported, io.Reader) error) error {
	return export(ctx, q.Set, f, use)
}
func (q *localQueue) Import(_ context.Context, e queue.Exported, name string, content io.Reader) error {
	return importOne(q.Set, e, name, content)
}

func (q *localQueue) Close() {
	q.Shutdown(context.Background())
	q.lock.release()
}

func export(ctx context.Context, s *queue.Set, f queue.Filter, use func(queue.Exported, io.Reader) error) error {
	return s.Export(ctx, f, func(e queue.Exported, c queue.Content) error { return use(e, io.NewSectionReader(c, 0, c.Size())) })
}

// importOne keeps the content in a file without a name until the queue has it.
func importOne(s *queue.Set, e queue.Exported, name string, content io.Reader) error {
	f, err := os.CreateTemp("", "indigo-import")
	if err != nil {
		return err
	}
	defer f.Close()
	os.Remove(f.Name())
	n, err := io.Copy(f, io.LimitReader(content, e.Size+1))
	if err != nil {
		return err
	}
	if n != e.Size {
		return fmt.Errorf("message %s has %d bytes, not %d as it says", e.ID, n, e.Size)
	}
	return s.Import(e, name, f)
}

// remoteQueue asks the running instance.
type remoteQueue struct{ c *Control }

// line is one line of a stream; the last has Done or Error.
type line struct {
	ID    queue.ID        `json:"id,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`
	N     int             `json:"n,omitempty"`
	Done  bool            `json:"done,omitempty"`
	Error string          `json:"error,omitempty"`
}

// stream writes lines as an answer to r; run returns how many were meant.
func stream(w http.ResponseWriter, run func(put func(line) error) (int, error)) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	encoder := json.NewEncoder(w)
	n, err := run(func(l line) error { return encoder.Encode(l) })
	last := line{Done: true, N: n}
	if err != nil {
		last = line{Error: err.Error(), N: n}
	}
	// If the client is gone there is nobody to tell.
	_ = encoder.Encode(last)
}

// filterOf reads the filter of a request.
func filterOf(r *http.Request) (f queue.Filter, err error) {
	if text := r.FormValue("filter"); text != "" {
		err = json.Unmarshal([]byte(text), &f)
	}
	return f, err
}

func withFilter(f queue.Filter, more url.Values) url.Values {
	text, err := json.Marshal(f)
	if err != nil {
		panic("service: a filter is always JSON: " + err.Error())
	}
	if more == nil {
		more = url.Values{}
	}
	more.Set("filter", string(text))
	return more
}

// handleQueue serves what remoteQueue asks.
func (h *House) handleQueue(mux *http.ServeMux) {
	mux.HandleFunc("GET /queue/stats", func(w http.ResponseWriter, r *http.Request) { reply(w, h.queue.Stats(), nil) })
	mux.HandleFunc("GET /queue/hosts", func(w http.ResponseWriter, r *http.Request) { reply(w, h.queue.Hosts(), nil) })
	mux.HandleFunc("GET /queue/dead", func(w http.ResponseWriter, r *http.Request) { reply(w, h.remote.Dead(), nil) })
	mux.HandleFunc("DELETE /queue/dead", func(w http.ResponseWriter, r *http.Request) { reply(w, h.remote.Forget(r.FormValue("address")), nil) })
	mux.HandleFunc("GET /queue/rates", func(w http.ResponseWriter, r *http.Request) { reply(w, h.queue.Rates(), nil) })
	mux.HandleFunc("POST /queue/rates", func(w http.ResponseWriter, r *http.Request) {
		burst, err := strconv.Atoi(r.FormValue("burst"))
		if err == nil {
			err = h.queue.SetRate(r.FormValue("queue"), r.FormValue("name"), r.FormValue("expression"), burst)
		}
		reply(w, struct{}{}, err)
	})
	mux.HandleFunc("DELETE /queue/rates", func(w http.ResponseWriter, r *http.Request) {
		reply(w, struct{}{}, h.queue.RemoveRate(r.FormValue("queue"), r.FormValue("name")))
	})
	mux.HandleFunc("GET /queue/list", func(w http.ResponseWriter, r *http.Request) {
		f, err := filterOf(r)
		stream(w, func(put func(line) error) (int, error) {
			if err != nil {
				return 0, err
			}
			return 0, h.queue.Each(r.Context(), f, func(l queue.Listed) error { return putValue(put, l) })
		})
	})
	mux.HandleFunc("GET /queue/show", func(w http.ResponseWriter, r *http.Request) {
		id, err := queue.ParseID(r.FormValue("id"))
		if err != nil {
			reply(w, nil, err)
			return
		}
		d, err := h.queue.Show(r.Context(), id)
		reply(w, d, err)
	})
	mux.HandleFunc("GET /queue/cat", func(w http.ResponseWriter, r *http.Request) {
		id, err := queue.ParseID(r.FormValue("id"))
		if err == nil {
			_, err = h.queue.Show(r.Context(), id)
		}
		if err != nil {
			reply(w, nil, err)
			return
		}
		if err := h.queue.Cat(id, w); err != nil {
			// The headers are gone: only a broken connection can tell now.
			panic(http.ErrAbortHandler)
		}
	})
	mux.HandleFunc("GET /queue/shape", func(w http.ResponseWriter, r *http.Request) {
		f, err := filterOf(r)
		if err != nil {
			reply(w, nil, err)
			return
		}
		s, err := h.queue.Shape(r.Context(), f, r.FormValue("senders") != "")
		reply(w, s, err)
	})
	mux.HandleFunc("POST /queue/do", func(w http.ResponseWriter, r *http.Request) {
		f, err := filterOf(r)
		work := Work{queue.Action(r.FormValue("action")), r.FormValue("to")}
		stream(w, func(put func(line) error) (int, error) {
			if err != nil {
				return 0, err
			}
			return do(r.Context(), h.queue, work, f, r.FormValue("dry") != "", func(id queue.ID) { _ = put(line{ID: id}) })
		})
	})
	mux.HandleFunc("POST /queue/edit-recipient", func(w http.ResponseWriter, r *http.Request) {
		id, err := queue.ParseID(r.FormValue("id"))
		var old, now addr.Address
		if err == nil {
			old, err = addr.Parse(r.FormValue("old"))
		}
		if err == nil {
			now, err = addr.Parse(r.FormValue("new"))
		}
		if err == nil {
			err = h.queue.EditRecipient(id, old, now)
		}
		reply(w, struct{}{}, err)
	})
	mux.HandleFunc("POST /queue/make", func(w http.ResponseWriter, r *http.Request) {
		reply(w, struct{}{}, h.queue.Make(context.WithoutCancel(r.Context()), r.FormValue("name")))
	})
	mux.HandleFunc("GET /queue/check", func(w http.ResponseWriter, r *http.Request) {
		f, err := filterOf(r)
		stream(w, func(put func(line) error) (int, error) {
			if err != nil {
				return 0, err
			}
			var broken error
			n, err := h.queue.Check(r.Context(), f, func() { broken = put(line{}) }, func(f queue.Fault) { broken = putValue(put, f) })
			return n, errors.Join(err, broken)
		})
	})
	mux.HandleFunc("GET /queue/export", func(w http.ResponseWriter, r *http.Request) {
		f, err := filterOf(r)
		if err != nil {
			reply(w, nil, err)
			return
		}
		err = export(r.Context(), h.queue, f, func(e queue.Exported, c io.Reader) error {
			return WriteExport(w, e, c)
		})
		if err != nil {
			h.log.Warn("queue export: " + err.Error())
			panic(http.ErrAbortHandler)
		}
	})
	mux.HandleFunc("POST /queue/import", func(w http.ResponseWriter, r *http.Request) {
		err := ReadExport(r.Body, func(e queue.Exported, content io.Reader) error {
			return importOne(h.queue, e, r.URL.Query().Get("queue"), content)
		})
		reply(w, struct{}{}, err)
	})
}

func putValue(put func(line) error, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return put(line{Value: text})
}

// IsNoMessage tells whether an error of QueueTools says that there is no such message: it may have ended since it was listed.
func IsNoMessage(err error) bool {
	// Over the control socket only the text arrives.
	return err != nil && (errors.Is(err, queue.ErrNoMessage) || strings.Contains(err.Error(), queue.ErrNoMessage.Error()))
}

// lines reads a stream and gives what its last line counts.
func (q remoteQueue) lines(ctx context.Context, method, path string, form url.Values, use func(line) error) (int, error) {
	body, err := q.c.send(ctx, q.c.patient, method, path, form)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	decoder := json.NewDecoder(body)
	for {
		var l line
		if err := decoder.Decode(&l); err != nil {
			return 0, fmt.Errorf("the answer ended too early: %w", err)
		}
		switch {
		case l.Error != "":
			return l.N, errors.New(l.Error)
		case l.Done:
			return l.N, nil
		}
		if err := use(l); err != nil {
			return 0, err
		}
	}
}

func (q remoteQueue) Stats(ctx context.Context) (s []queue.QueueStats, err error) {
	return s, q.c.ask(ctx, http.MethodGet, "/queue/stats", nil, &s)
}

func (q remoteQueue) Hosts(ctx context.Context) (h []queue.HostStats, err error) {
	return h, q.c.ask(ctx, http.MethodGet, "/queue/hosts", nil, &h)
}

func (q remoteQueue) Rates(ctx context.Context) (all []queue.Rate, err error) {
	return all, q.c.ask(ctx, http.MethodGet, "/queue/rates", nil, &all)
}

func (q remoteQueue) SetRate(ctx context.Context, queue, name, expression string, burst int) error {
	form := url.Values{"queue": {queue}, "name": {name}, "expression": {expression}, "burst": {strconv.Itoa(burst)}}
	return q.c.ask(ctx, http.MethodPost, "/queue/rates", form, new(struct{}))
}

func (q remoteQueue) RemoveRate(ctx context.Context, queue, name string) error {
	return q.c.ask(ctx, http.MethodDelete, "/queue/rates", url.Values{"queue": {queue}, "name": {name}}, new(struct{}))
}

func (q remoteQueue) Each(ctx context.Context, f queue.Filter, use func(queue.Listed) error) error {
	_, err := q.lines(ctx, http.MethodGet, "/queue/list", withFilter(f, nil), func(l line) error {
		var m queue.Listed
		if err := json.Unmarshal(l.Value, &m); err != nil {
			return err
		}
		return use(m)
	})
	return err
}

func (q remoteQueue) Show(ctx context.Context, id queue.ID) (d queue.Detail, err error) {
	return d, q.c.ask(ctx, http.MethodGet, "/queue/show", url.Values{"id": {id.String()}}, &d)
}

func (q remoteQueue) Cat(ctx context.Context, id queue.ID, w io.Writer) error {
	body, err := q.c.send(ctx, q.c.patient, http.MethodGet, "/queue/cat", url.Values{"id": {id.String()}})
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.Copy(w, body)
	return err
}

func (q remoteQueue) Shape(ctx context.Context, f queue.Filter, senders bool) (s queue.Shape, err error) {
	form := url.Values{}
	if senders {
		form.Set("senders", "1")
	}
	return s, q.c.ask(ctx, http.MethodGet, "/queue/shape", withFilter(f, form), &s)
}

func (q remoteQueue) Do(ctx context.Context, w Work, f queue.Filter, dry bool, done func(queue.ID)) (int, error) {
	form := url.Values{"action": {string(w.Action)}, "to": {w.To}}
	if dry {
		form.Set("dry", "1")
	}
	return q.lines(ctx, http.MethodPost, "/queue/do", withFilter(f, form), func(l line) error {
		if done != nil {
			done(l.ID)
		}
		return nil
	})
}

func (q remoteQueue) EditRecipient(ctx context.Context, id queue.ID, old, now addr.Address) error {
	return q.c.ask(ctx, http.MethodPost, "/queue/edit-recipient", url.Values{"id": {id.String()}, "old": {old.String()}, "new": {now.String()}}, new(struct{}))
}

func (q remoteQueue) Make(ctx context.Context, name string) error {
	return q.c.ask(ctx, http.MethodPost, "/queue/make", url.Values{"name": {name}}, new(struct{}))
}

func (q remoteQueue) Check(ctx context.Context, f queue.Filter, checked func(), found func(queue.Fault)) (int, error) {
	return q.lines(ctx, http.MethodGet, "/queue/check", withFilter(f, nil), func(l line) error {
		if l.Value == nil {
			checked()
			return nil
		}
		var fault queue.Fault
		if err := json.Unmarshal(l.Value, &fault); err != nil {
			return err
		}
		found(fault)
		return nil
	})
}

func (q remoteQueue) Export(ctx context.Context, f queue.Filter, use func(queue.Exported, io.Reader) error) error {
	body, err := q.c.send(ctx, q.c.patient, http.MethodGet, "/queue/export", withFilter(f, nil))
	if err != nil {
		return err
	}
	defer body.Close()
	return ReadExport(body, use)
}

func (q remoteQueue) Import(ctx context.Context, e queue.Exported, name string, content io.Reader) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	form := url.Values{"queue": {name}}
	body := io.MultiReader(bytes.NewReader(append(text, '\n')), content)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://indigo/queue/import?"+form.Encode(), body)
	if err != nil {
		return err
	}
	response, err := q.c.patient.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return errors.New(string(text))
	}
	return nil
}

func (q remoteQueue) Close() {}
