package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/authd"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/settings"
)

// authSocket is one of the sockets at which other mail programs ask about users.
type authSocket struct {
	setting *settings.Setting
	path    string
}

// authSockets gives those that the settings name.
func authSockets(data string, v *settings.View) (all []authSocket) {
	for _, key := range []settings.Key[string]{settings.DovecotAuthSocket, settings.DovecotUserdbSocket} {
		path := key.Get(v)
		if path == "" {
			continue
		}
		if !filepath.IsAbs(path) {
			path = filepath.Join(data, path)
		}
		all = append(all, authSocket{key.Setting, path})
	}
	return all
}

// socketOwner gives whom the sockets belong to; -1 leaves them to who makes them.
func socketOwner(v *settings.View) (uid, gid int, err error) {
	name := settings.DovecotSocketOwner.Get(v)
	if name == "" {
		return -1, -1, nil
	}
	account, err := FindAccount(name)
	if err != nil {
		return 0, 0, err
	}
	return int(account.UID), int(account.GID), nil
}

// open makes the socket. One that is left over is replaced; one at which somebody answers, and what is no socket, is not.
func (s authSocket) open(v *settings.View, fallback *Account) (*net.UnixListener, error) {
	wrong := func(err error) error { return fmt.Errorf("%s: %w", s.setting.Name, err) }
	info, err := os.Lstat(s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, wrong(err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, wrong(fmt.Errorf("%s is there and is no socket", s.path))
	default:
		if conn, err := net.DialTimeout("unix", s.path, time.Second); err == nil {
			conn.Close()
			return nil, wrong(fmt.Errorf("another program answers at %s", s.path))
		}
	}
	uid, gid, err := socketOwner(v)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", settings.DovecotSocketOwner.Name, err)
	}
	if uid < 0 && fallback != nil {
		uid, gid = int(fallback.UID), int(fallback.GID)
	}
	mode, err := strconv.ParseUint(settings.DovecotSocketMode.Get(v), 8, 32)
	if err != nil {
		return nil, wrong(err)
	}
	// It gets its name when it has its owner and mode, so that nobody comes in before.
	made := s.path + ".new"
	if err := os.Remove(made); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, wrong(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, wrong(err)
	}
	l.SetUnlinkOnClose(false)
	if uid >= 0 {
		err = os.Lchown(made, uid, gid)
	}
	if err = cmp.Or(err, os.Chmod(made, fs.FileMode(mode))); err == nil {
		err = os.Rename(made, s.path)
	}
	if err != nil {
		os.Remove(made)
		l.Close()
		return nil, wrong(err)
	}
	return l, nil
}

// startAuth opens the door for other mail programs of the host, where the settings name a socket for it. A parent that has kept
// root has made the sockets before.
func (h *House) startAuth(ctx context.Context) error {
	view := func() *settings.View { return h.view(authd.Service) }
	sockets := authSockets(h.config.Data, view())
	if len(sockets) == 0 {
		return nil
	}
	listeners := map[*settings.Setting]net.Listener{}
	for _, s := range sockets {
		var l net.Listener
		var err error
		if h.config.Child != nil {
			if l, err = h.config.Child.socket(s.setting.Name); err != nil {
				// A child that comes after another one must serve all the same.
				h.log.Error(err.Error())
				continue
			}
		} else if l, err = s.open(view(), nil); err == nil {
			h.authSockets = append(h.authSockets, s.path)
		}
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return err
		}
		listeners[s.setting] = l
	}
	h.auth = authd.New(authd.Config{
		Settings: view, Auth: func(kind string) auth.Authority { return authority{h.accounts, sources{h, kind, view}} },
		Hostname: settings.Me.Get(h.view("all")), User: h.mailUser,
		Trace: h.recorder(), Logger: h.serviceLogger(authd.Service), Now: time.Now, NewSessionID: newSessionID, PID: os.Getpid(),
	})
	background := context.WithoutCancel(ctx)
	for setting, l := range listeners {
		serve := h.auth.ServePasswords
		if setting == settings.DovecotUserdbSocket.Setting {
			serve = h.auth.ServeUsers
		}
		h.serving.Go(func() {
			if err := serve(background, l); err != nil {
				h.log.Error(err.Error())
			}
		})
	}
	return nil
}

// mailUser finds a user for delivery agents: mail belongs to who serves.
func (h *House) mailUser(ctx context.Context, name string) (authd.User, error) {
	if !strings.Contains(name, "@") {
		name += "@" + defaultDomain(h.view("all"))
	}
	a, err := addr.Parse(name)
	if err != nil {
		return authd.User{}, authd.ErrNoUser
	}
	u, err := h.directory.User(ctx, a)
	if errors.Is(err, directory.ErrNoUser) || errors.Is(err, directory.ErrNoDomain) {
		return authd.User{}, authd.ErrNoUser
	}
	return authd.User{Name: u.Address().String(), Home: u.Dir, UID: os.Getuid(), GID: os.Getgid()}, err
}

// openSockets makes the sockets for other mail programs, the account's if the settings name nobody. Malformed settings are
// left for the child to tell. remove ends them.
func (p *Parent) openSockets() (remove func(), err error) {
	p.sockets = map[string]*net.UnixListener{}
	var paths []string
	remove = func() {
		for _, l := range p.sockets {
			l.Close()
		}
		for _, path := range paths {
			os.Remove(path)
		}
	}
	snapshot, err := settings.Load(p.Data)
	if err != nil {
		return remove, nil
	}
	view := snapshot.View(authd.Service)
	for _, s := range authSockets(p.Data, view) {
		l, err := s.open(view, p.Account)
		if err != nil {
			remove()
			return nil, err
		}
		p.sockets[s.setting.Name] = l
		paths = append(paths, s.path)
	}
	return remove, nil
}

// socket gives a socket that was made at the start.
func (p *Parent) socket(name string) (*os.File, error) {
	l := p.sockets[name]
	if l == nil {
		return nil, fmt.Errorf("%s was not set when root started the instance: restart it as root", name)
	}
	return l.File()
}

// socket gives the listener of a socket that the parent made.
func (c *Child) socket(name string) (net.Listener, error) {
	_, f, err := c.ask(request{Op: "socket", Service: name})
	if f != nil {
		defer f.Close()
	}
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, errors.New("the parent gave no descriptor")
	}
	return net.FileListener(f)
}
