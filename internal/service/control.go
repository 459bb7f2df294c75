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
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/redis"
	"github.com/indigomail/indigo/internal/remote"
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
	mux.HandleFunc("POST /reload", func(w http.ResponseWriter, r *http.Request) {
		reply(w, struct{}{}, h.Reload())
	})
	mux.HandleFunc("GET /services", func(w http.ResponseWriter, r *http.Request) { reply(w, h.Services(), nil) })
	mux.HandleFunc("POST /services/{name}/{verb}", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), h.Drain()+30*time.Second)
		defer cancel()
		reply(w, struct{}{}, h.ServiceDo(ctx, r.PathValue("name"), r.PathValue("verb")))
	})
	mux.HandleFunc("GET /log", func(w http.ResponseWriter, r *http.Request) {
		lines := []LogLine{}
		if h.config.Log != nil {
			limit, _ := strconv.Atoi(r.FormValue("lines"))
			lines = append(lines, h.config.Log.Recent(r.FormValue("service"), limit)...)
		}
		reply(w, lines, nil)
	})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		reply(w, h.verifier.IssueToken(r.FormValue("user"), 2*time.Minute), nil)
	})
	mux.HandleFunc("GET /auth/locks", func(w http.ResponseWriter, r *http.Request) {
		reply(w, h.guard.Locks(r.Context(), r.FormValue("all") != ""), nil)
	})
	mux.HandleFunc("DELETE /auth/locks", func(w http.ResponseWriter, r *http.Request) {
		reply(w, h.accounts.Unlock(r.Context(), r.FormValue("name")), nil)
	})
	mux.HandleFunc("GET /auth/shared", func(w http.ResponseWriter, r *http.Request) { reply(w, h.redis.Status(r.Context()), nil) })
	mux.HandleFunc("POST /auth/check", func(w http.ResponseWriter, r *http.Request) {
		var a attempt
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAttempt)).Decode(&a); err != nil {
			reply(w, nil, err)
			return
		}
		reply(w, h.judge(r.Context(), a), nil)
	})
	mux.HandleFunc("POST /auth/before", func(w http.ResponseWriter, r *http.Request) {
		var a attempt
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAttempt)).Decode(&a); err != nil {
			reply(w, nil, err)
			return
		}
		reply(w, h.mayTry(r.Context(), a), nil)
	})
	mux.HandleFunc("POST /auth/after", func(w http.ResponseWriter, r *http.Request) {
		var o outcome
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAttempt)).Decode(&o); err != nil {
			reply(w, nil, err)
			return
		}
		h.tried(r.Context(), o)
		reply(w, struct{}{}, nil)
	})
	mux.HandleFunc("GET /directory/cache", func(w http.ResponseWriter, r *http.Request) { reply(w, h.directory.CacheStats(), nil) })
	h.handleQueue(mux)
	h.handleTurn(mux)
	// For `curl --unix-socket DATA/run/control.sock http://indigo/debug/pprof/profile`; see docs/performance.md.
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	c := &controlServer{server: &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 1 << 20}}
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
	// patient is for answers that may take long.
	patient *http.Client
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
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	return &Control{data, &http.Client{Transport: transport, Timeout: time.Minute}, &http.Client{Transport: transport}}
}

// ask does one request; its JSON answer goes into answer.
func (c *Control) ask(ctx context.Context, method, path string, form url.Values, answer any) error {
	body, err := c.send(ctx, c.client, method, path, form)
	if err != nil {
		return err
	}
	defer body.Close()
	return json.NewDecoder(body).Decode(answer)
}

// send does one request and gives the body of its answer.
func (c *Control) send(ctx context.Context, client *http.Client, method, path string, form url.Values) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://indigo"+path+"?"+form.Encode(), nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w (start it with `indigo serve --data %s`): %w", c.data, ErrNotRunning, c.data, err)
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return nil, errors.New(strings.TrimSpace(string(text)))
	}
	return response.Body, nil
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

// Reload makes the settings and the certificate be read again; it returns when they are in force, or says what is wrong with
// them, and then they are not.
func (c *Control) Reload(ctx context.Context) error {
	return c.ask(ctx, http.MethodPost, "/reload", nil, new(struct{}))
}

// DirectoryCache asks how the directory's cache fares.
func (c *Control) DirectoryCache(ctx context.Context) (v directory.CacheStats, err error) {
	return v, c.ask(ctx, http.MethodGet, "/directory/cache", nil, &v)
}

// Services asks for the state of every service.
func (c *Control) Services(ctx context.Context) (all []ServiceState, err error) {
	return all, c.ask(ctx, http.MethodGet, "/services", nil, &all)
}

// ServiceDo starts, stops, restarts or reloads a service, and returns when that is done or has failed.
func (c *Control) ServiceDo(ctx context.Context, name, verb string) error {
	body, err := c.send(ctx, c.patient, http.MethodPost, "/services/"+url.PathEscape(name)+"/"+url.PathEscape(verb), nil)
	if err != nil {
		return err
	}
	return body.Close()
}

// Recent gives the last lines of a service's log, or with "" of all; a few hundred are kept.
func (c *Control) Recent(ctx context.Context, service string, lines int) (all []LogLine, err error) {
	return all, c.ask(ctx, http.MethodGet, "/log", url.Values{"service": {service}, "lines": {strconv.Itoa(lines)}}, &all)
}

// Locks gives the addresses and accounts whose logins are refused, and with all also those whose logins failed.
func (c *Control) Locks(ctx context.Context, all bool) (locks []auth.Lock, err error) {
	form := url.Values{}
	if all {
		form.Set("all", "1")
	}
	return locks, c.ask(ctx, http.MethodGet, "/auth/locks", form, &locks)
}

// Unlock forgets the failed logins of an address, network or account, or with "" of all, and tells how many those were.
func (c *Control) Unlock(ctx context.Context, name string) (n int, err error) {
	return n, c.ask(ctx, http.MethodDelete, "/auth/locks", url.Values{"name": {name}}, &n)
}

// Shared tells how the server fares by which hosts share failed logins.
func (c *Control) Shared(ctx context.Context) (s redis.Status, err error) {
	return s, c.ask(ctx, http.MethodGet, "/auth/shared", nil, &s)
}

// DeadHosts gives the addresses that did not answer.
func (c *Control) DeadHosts(ctx context.Context) (all []remote.DeadHost, err error) {
	return all, c.ask(ctx, http.MethodGet, "/queue/dead", nil, &all)
}

// ForgetDeadHosts makes an address, or with "" every one, be tried again, and tells how many that was.
func (c *Control) ForgetDeadHosts(ctx context.Context, address string) (n int, err error) {
	return n, c.ask(ctx, http.MethodDelete, "/queue/dead", url.Values{"address": {address}}, &n)
}
