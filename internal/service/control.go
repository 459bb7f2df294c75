package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
)

// controlServer answers operators' commands over a Unix socket, DATA/run/control.sock, that only the owner of the data
// directory can open. It speaks HTTP with JSON.
type controlServer struct {
	server  *http.Server
	serving sync.WaitGroup
}

// Status is what a running Indigo says of itself.
type Status struct {
	PID      int               `json:"pid"`
	Started  time.Time         `json:"started"`
	Hostname string            `json:"hostname"`
	Domain   string            `json:"domain"`
	Services map[string]string `json:"services"`
	Dropped  uint64            `json:"trace_events_dropped"`
}

// socketPath gives a name for the control socket that fits sockaddr_un's 108 bytes however deep data lies: through an
// open directory. release must be called after the name was used.
func socketPath(data string) (path string, release func(), err error) {
	dir, err := os.Open(filepath.Join(data, "run"))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/control.sock", dir.Fd()), func() { dir.Close() }, nil
}

func startControl(h *House) (*controlServer, error) {
	path, release, err := socketPath(h.config.Data)
	if err != nil {
		return nil, err
	}
	defer release()
	// The lock is ours, so a socket that lies here is left over from a process that was killed.
	os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		all := h.view("all")
		reply(w, Status{
			PID: os.Getpid(), Started: h.started, Hostname: settings.Me.Get(all), Domain: settings.DefaultDomain.Get(all),
			Services: h.Addresses(), Dropped: h.trace.Dropped(),
		}, nil)
	})
	mux.HandleFunc("POST /trace/flush", func(w http.ResponseWriter, r *http.Request) {
		reply(w, struct{}{}, h.trace.Flush(r.Context()))
	})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		reply(w, h.verifier.IssueToken(r.FormValue("user"), 2*time.Minute), nil)
	})
	mux.HandleFunc("GET /queue/stats", func(w http.ResponseWriter, r *http.Request) { reply(w, h.queue.Stats(), nil) })
	mux.HandleFunc("GET /queue/list", func(w http.ResponseWriter, r *http.Request) { reply(w, h.queue.List(), nil) })
	// For `curl --unix-socket DATA/run/control.sock http://indigo/debug/pprof/profile`; see docs/performance.md.
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("POST /queue/retry", func(w http.ResponseWriter, r *http.Request) {
		name := r.FormValue("id")
		if name == "" {
			reply(w, h.queue.RetryAll(), nil)
			return
		}
		id, err := queue.ParseID(name)
		if err == nil && !h.queue.Retry(id) {
			err = fmt.Errorf("no message %s in the queue", id)
		}
		reply(w, 1, err)
	})
	c := &controlServer{server: &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 1 << 14}}
	c.serving.Go(func() { c.server.Serve(l) })
	return c, nil
}

func (c *controlServer) close() {
	c.server.Close()
	c.serving.Wait()
}

func reply(w http.ResponseWriter, value any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(value)
}

// ErrNotRunning says that no Indigo serves the data directory.
var ErrNotRunning = errors.New("no Indigo is running on this data directory")

// Control asks the Indigo that serves a data directory.
type Control struct {
	data   string
	client *http.Client
}

// NewControl gives a Control for data; nothing is opened before the first question.
func NewControl(data string) *Control {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		path, release, err := socketPath(data)
		if err != nil {
			return nil, err
		}
		defer release()
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	return &Control{data, &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: time.Minute}}
}

// ask does one request; its JSON answer goes into answer.
func (c *Control) ask(ctx context.Context, method, path string, form url.Values, answer any) error {
	r, err := http.NewRequestWithContext(ctx, method, "http://indigo"+path+"?"+form.Encode(), nil)
	if err != nil {
		return err
	}
	response, err := c.client.Do(r)
	if err != nil {
		return fmt.Errorf("%s: %w (start it with `indigo serve --data %s`): %w", c.data, ErrNotRunning, c.data, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return errors.New(string(text))
	}
	return json.NewDecoder(response.Body).Decode(answer)
}

// Status asks for the services and their addresses.
func (c *Control) Status(ctx context.Context) (*Status, error) {
	s := new(Status)
	return s, c.ask(ctx, http.MethodGet, "/status", nil, s)
}

// FlushTrace makes everything recorded so far readable in the trace's files.
func (c *Control) FlushTrace(ctx context.Context) error {
	return c.ask(ctx, http.MethodPost, "/trace/flush", nil, new(struct{}))
}

// Token asks for a password that works for user for two minutes.
func (c *Control) Token(ctx context.Context, user string) (string, error) {
	var token string
	err := c.ask(ctx, http.MethodPost, "/token", url.Values{"user": {user}}, &token)
	return token, err
}

// QueueStats counts what waits in the queue.
func (c *Control) QueueStats(ctx context.Context) (*queue.Stats, error) {
	s := new(queue.Stats)
	return s, c.ask(ctx, http.MethodGet, "/queue/stats", nil, s)
}

// QueueList gives every message in the queue.
func (c *Control) QueueList(ctx context.Context) ([]queue.Listed, error) {
	var l []queue.Listed
	err := c.ask(ctx, http.MethodGet, "/queue/list", nil, &l)
	return l, err
}

// QueueRetry makes one message due now, or all when id is "", and tells how many.
func (c *Control) QueueRetry(ctx context.Context, id string) (int, error) {
	var n int
	err := c.ask(ctx, http.MethodPost, "/queue/retry", url.Values{"id": {id}}, &n)
	return n, err
}
