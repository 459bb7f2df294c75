package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/indigomail/indigo/internal/compose"
	"github.com/indigomail/indigo/internal/inject"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
)

// makePublic makes the places where other users of the host leave mail: a directory that they may enter, and in it pickup, where they may
// leave files and see none. As root, and for the account that root lets serve, the data directory itself lets them pass; its parts do not. What
// others leave in pickup is theirs alone, which root can read and such an account cannot: it lets nobody in there, so that the program that
// brings mail while nothing runs hears of it and keeps it. An ordinary user's directory is left as it is.
func makePublic(data string, account bool) error {
	public, _, pickup := inject.Layout(data)
	err := os.MkdirAll(pickup, 0o700)
	if err != nil || os.Geteuid() != 0 && !account {
		return err
	}
	leave := 0o733 | os.ModeSticky
	if account {
		leave = 0o700
	}
	err = errors.Join(os.Chmod(data, 0o711), os.Chmod(public, 0o755), os.Chmod(pickup, leave))
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		// The directory is another's, who has said who may enter it.
		return nil
	}
	return err
}

// OpenToHost does so for a data directory that an account is to serve; who calls it must own it, or be root.
func OpenToHost(data string) error { return makePublic(data, true) }

// startInject opens the socket for processes of the host, and takes what lies in pickup.
func (h *House) startInject(ctx context.Context) error {
	if err := h.serveInject(ctx, h.config.Data, h.queue, settings.Me.Get(h.view("all"))); err != nil {
		return err
	}
	return h.publishNames()
}

// serveInject takes mail in at a place, a data directory or a queue of its own, for a queue.
func (h *House) serveInject(ctx context.Context, place string, q queue.Submitter, me string) error {
	if err := makePublic(place, settings.RunAs.Get(h.view("all")) != ""); err != nil {
		return fmt.Errorf("public directory: %w", err)
	}
	public, socket, pickup := inject.Layout(place)
	dir, err := os.Open(public)
	if err != nil {
		return err
	}
	defer dir.Close()
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(socket))
	// The lock is ours, so a socket that lies here is left over from a process that was killed.
	os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("inject socket: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return fmt.Errorf("inject socket: %w", err)
	}
	view := func() *settings.View { return h.view("inject") }
	var recorder trace.Recorder = trace.Discard
	if h.trace != nil {
		recorder = h.trace
	}
	h.inject = inject.New(inject.Config{
		Pickup: pickup, Hostname: me, Queue: q, Settings: view, Trace: recorder, Logger: h.log, Now: time.Now, UID: os.Geteuid(),
	})
	background := context.WithoutCancel(ctx)
	h.serving.Go(func() {
		if err := h.inject.Serve(background, l); err != nil {
			h.log.Error(err.Error())
		}
	})
	h.serving.Go(func() { h.inject.Pickup(background) })
	return nil
}

const namesFile = "names.json"

// publishNames writes what qmail-inject completes addresses with where every user of the host can read it.
func (h *House) publishNames() error {
	view := h.view("inject")
	me, domain := settings.Me.Get(view), settings.DefaultDomain.Get(view)
	or := func(s, otherwise string) string {
		if s == "" {
			return otherwise
		}
		return s
	}
	names := compose.Names{
		DefaultDomain: or(domain, me), DefaultHost: or(settings.DefaultHost.Get(view), or(domain, me)),
		PlusDomain: or(settings.PlusDomain.Get(view), me), IDHost: or(settings.IDHost.Get(view), me),
	}
	text, err := json.Marshal(names)
	if err != nil {
		return err
	}
	public, _, _ := inject.Layout(h.config.Data)
	path := filepath.Join(public, namesFile)
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o644); err != nil {
		return err
	}
	// Whatever the umask: everybody may know these names.
	if err := os.Chmod(path+".new", 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Names reads what qmail-inject completes addresses with; without a data directory, the host's own name.
func Names(data string) compose.Names {
	public, _, _ := inject.Layout(data)
	var n compose.Names
	text, err := os.ReadFile(filepath.Join(public, namesFile))
	if err == nil && json.Unmarshal(text, &n) == nil {
		return n
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return compose.Names{DefaultHost: host, DefaultDomain: host, PlusDomain: host, IDHost: host}
}

// throughProgram is the queue as a session sees it: behind the QMAILQUEUE program of its settings, if there is one.
type throughProgram struct {
	h    *House
	view *settings.View
}

// Begin starts a submission; see queue.Submitter.
func (t throughProgram) Begin(ctx context.Context, sizeHint int64) (queue.Submission, error) {
	view := t.view
	line := settings.QMailQueue.Get(view)
	known, discard := inject.Known(line)
	switch {
	case discard:
		return inject.Discard{Submitter: t.h.queue, Setting: settings.QMailQueue.Name, Trace: t.h.trace, Now: time.Now}.Begin(ctx, sizeHint)
	case known && settings.FilterArgs.Get(view) != "":
		// qmail-multi obeys it, and queues at its end.
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		line = self + " qmail-multi"
	case known:
		return t.h.queue.Begin(ctx, sizeHint)
	}
	p := &inject.Program{Line: line, Data: t.h.config.Data, Environment: append(view.Environment(), "PATH="+settings.FromEnvironment().Path)}
	return p.Begin(ctx, sizeHint)
}
