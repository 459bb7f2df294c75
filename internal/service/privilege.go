package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/settings"
)

// The parent keeps what the services must not have: root. It starts the child, which serves, as the account of RUNAS, and
// answers three kinds of questions of it: to listen on the port of a service, for the sockets that other mail programs ask at, and whether the
// password of one of the host's users, or of PAM's, is right, where a service's AUTHMODULES ask for those. As process 1 of a container it also collects what orphans
// leave (architecture, section 7).

// ChildVariable names, in the child's environment, the descriptor that leads to the parent.
const ChildVariable = "INDIGO_PARENT"

// parentFD is the child's end of it.
const parentFD = 3

// request is what the child asks, answer what it gets; a descriptor comes with the answers to all but "first".
type request struct {
	Op      string `json:"op"`
	Service string `json:"service,omitempty"`
	Address string `json:"address,omitempty"`
}

type answer struct {
	Error string          `json:"error,omitempty"`
	First json.RawMessage `json:"first,omitempty"`
}

// Parent is what a parent needs to know.
type Parent struct {
	Data string
	// Account is what the child runs as; nil leaves it as the parent is.
	Account *Account
	// PortOffset, when set, overrides the setting PORT_OFFSET, as in Config.
	PortOffset *int
	// First is handed to the child when it asks for it: what a first run made, which only the parent knows.
	First json.RawMessage
	// Activated gives listeners of the service manager; nil when there are none.
	Activated func(service, address string) (net.Listener, error)
	Logger    *slog.Logger
	// Signals are forwarded to the child.
	Signals <-chan os.Signal

	// sockets are those for other mail programs, by the name of the setting. They are made before the first child, which could else have
	// them made anywhere by what it writes into the settings.
	sockets map[string]*net.UnixListener
	// pam is read at the start for the same reason: the helper runs as root.
	pam auth.PAM
}

// Configure reads RUNAS, and checks that the child could work as that account. Without root it changes nothing. Malformed
// settings are left for the child to tell, with all else that is wrong.
func (p *Parent) Configure() error {
	if os.Geteuid() != 0 {
		return nil
	}
	snapshot, err := settings.Load(p.Data)
	if err != nil {
		return nil
	}
	name := settings.RunAs.Get(snapshot.View("all"))
	if name == "" {
		return nil
	}
	account, err := FindAccount(name)
	if err != nil {
		return fmt.Errorf("RUNAS: %w", err)
	}
	if account.UID == 0 {
		return nil
	}
	p.Account = &account
	return p.CheckOwner()
}

// Needed tells whether a start needs a parent: root is to be given up, or this is process 1.
func (p *Parent) Needed() bool { return p.Account != nil || os.Getpid() == 1 }

// CheckOwner finds out whether the child could work in the data directory.
func (p *Parent) CheckOwner() error {
	if p.Account == nil {
		return nil
	}
	for _, name := range []string{"", "control", "queue", "domains", "run", "trace"} {
		path := filepath.Join(p.Data, name)
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != p.Account.UID {
			return fmt.Errorf("%s belongs to uid %d, but RUNAS says that services run as uid %d: `chown -R %d:%d %s`", path, stat.Uid, p.Account.UID, p.Account.UID, p.Account.GID, p.Data)
		}
	}
	return nil
}

// GiveTo makes a data directory, which this process has just made, the account's. Links are not followed.
func GiveTo(data string, a Account) error {
	return filepath.WalkDir(data, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(a.UID), int(a.GID))
	})
}

// restarts of a child that ends by itself.
const (
	firstChild = time.Second
	lastChild  = time.Minute
	// steady is how long a child must have served for a new one to be started in its place.
	steady = 10 * time.Second
)

// Run starts the child with this process's arguments and gives its exit code when it has ended for good. One that ends by
// itself after it has served for a while is started again.
func (p *Parent) Run(ctx context.Context) (int, error) {
	pause := firstChild
	remove, err := p.openSockets()
	if err != nil {
		return 1, err
	}
	defer remove()
	if snapshot, err := settings.Load(p.Data); err == nil {
		if p.pam, err = newPAM(snapshot.View("all")); err != nil {
			return 1, err
		}
	}
	for {
		began := time.Now()
		code, asked, err := p.once(ctx)
		if err != nil || asked || code == 0 || time.Since(began) < steady {
			return code, err
		}
		p.Logger.Error(fmt.Sprintf("the serving process ended with code %d; another is started in %s", code, pause))
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-p.Signals:
			timer.Stop()
			return code, nil
		case <-ctx.Done():
			timer.Stop()
			return code, ctx.Err()
		}
		pause = min(2*pause, lastChild)
	}
}

// once runs one child; asked tells that a signal asked it to end.
func (p *Parent) once(ctx context.Context) (code int, asked bool, err error) {
	// The child hears of its parent's end when the thread ends that started it: it must not do so before.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ours, theirs, err := pair()
	if err != nil {
		return 1, false, err
	}
	self, err := os.Executable()
	if err != nil {
		return 1, false, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = append(settings.FromEnvironment().All(), ChildVariable+"="+strconv.Itoa(parentFD))
	// In a process group of its own it hears Ctrl-C once, from the parent.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if p.Account != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: p.Account.UID, Gid: p.Account.GID, Groups: p.Account.Groups}
	}
	if err := cmd.Start(); err != nil {
		ours.Close()
		theirs.Close()
		return 1, false, fmt.Errorf("starting the serving process: %w", err)
	}
	theirs.Close()
	var serving sync.WaitGroup
	serving.Go(func() { p.answer(ours) })
	ended := make(chan int, 1)
	serving.Go(func() { ended <- reap(cmd.Process.Pid) })
	defer serving.Wait()
	defer ours.Close()
	stop := ctx.Done()
	for {
		select {
		case code := <-ended:
			return code, asked, nil
		case s := <-p.Signals:
			if s != syscall.SIGHUP {
				asked = true
			}
			// A child that has just ended cannot be told.
			_ = cmd.Process.Signal(s)
		case <-stop:
			asked, stop = true, nil
			_ = cmd.Process.Signal(syscall.SIGTERM)
		}
	}
}

// reap waits for the child, and as process 1 for everybody's orphans too; it gives the child's exit code.
func reap(child int) int {
	from := child
	if os.Getpid() == 1 {
		from = -1
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(from, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 1
		case pid == child && status.Exited():
			return status.ExitStatus()
		case pid == child && status.Signaled():
			return 128 + int(status.Signal())
		}
	}
}

// pair makes the two ends of the connection.
func pair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs = os.NewFile(uintptr(fds[1]), "child")
	ours, err = unixConn(os.NewFile(uintptr(fds[0]), "parent"))
	if err != nil {
		theirs.Close()
	}
	return ours, theirs, err
}

func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("the descriptor is no Unix socket")
	}
	return u, nil
}

// answer answers the child until it ends. What the child says is checked as if a stranger said it: it may be one.
func (p *Parent) answer(c *net.UnixConn) {
	var checking sync.WaitGroup
	defer checking.Wait()
	ctx, end := context.WithCancel(context.Background())
	defer end()
	running := map[string]*atomic.Int32{opPasswords: {}, opPAM: {}}
	b := make([]byte, 4096)
	for {
		n, err := c.Read(b)
		if err != nil || n == 0 {
			return
		}
		var r request
		var a answer
		var descriptor *os.File
		if err := json.Unmarshal(b[:n], &r); err != nil {
			a.Error = "not understood"
		} else if r.Op == "first" {
			a.First = p.First
		} else if r.Op == "listen" {
			if descriptor, err = p.listen(r.Service, r.Address); err != nil {
				a.Error = err.Error()
			}
		} else if r.Op == "socket" {
			if descriptor, err = p.socket(r.Service); err != nil {
				a.Error = err.Error()
			}
		} else if r.Op == opPasswords || r.Op == opPAM {
			if descriptor, err = p.checker(ctx, r.Op, &checking, running[r.Op]); err != nil {
				a.Error = err.Error()
			}
		} else {
			a.Error = fmt.Sprintf("the parent does not do %q", r.Op)
		}
		text, err := json.Marshal(a)
		if err != nil {
			return
		}
		var rights []byte
		if descriptor != nil {
			rights = unix.UnixRights(int(descriptor.Fd()))
		}
		_, _, err = c.WriteMsgUnix(text, rights, nil)
		if descriptor != nil {
			descriptor.Close()
		}
		if err != nil {
			return
		}
	}
}

// listen opens the port of a service, and only that: the settings must have the service, with that port.
func (p *Parent) listen(service, address string) (*os.File, error) {
	snapshot, err := settings.Load(p.Data)
	if err != nil {
		return nil, err
	}
	_, portText, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, err
	}
	known := false
	for _, name := range instances(snapshot) {
		if name != service {
			continue
		}
		spec, err := newDoorSpec(name, snapshot.View(name))
		if err != nil {
			return nil, err
		}
		offset := settings.PortOffset.Get(snapshot.View("all"))
		if p.PortOffset != nil {
			offset = *p.PortOffset
		}
		known = port == spec.port+offset || offset == FreePorts && port == 0
	}
	if !known {
		return nil, fmt.Errorf("no service %s has the port %d", service, port)
	}
	var l net.Listener
	if p.Activated != nil {
		if l, err = p.Activated(service, address); err != nil {
			return nil, err
		}
	}
	if l == nil {
		listen := net.ListenConfig{KeepAlive: -1}
		if l, err = listen.Listen(context.Background(), "tcp", address); err != nil {
			return nil, err
		}
	}
	defer l.Close()
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil, errors.New("no TCP listener")
	}
	return tcp.File()
}

// Child is the way to the parent.
type Child struct {
	mu   sync.Mutex
	conn *net.UnixConn
}

// NewChild gives the way to the parent; nil when there is none.
func NewChild(e settings.Environment) (*Child, error) {
	text := e.Get(ChildVariable)
	if text == "" {
		return nil, nil
	}
	fd, err := strconv.Atoi(text)
	if err != nil || fd != parentFD {
		return nil, fmt.Errorf("%s=%q in the environment is not what a parent says", ChildVariable, text)
	}
	unix.CloseOnExec(fd)
	c, err := unixConn(os.NewFile(uintptr(fd), "parent"))
	if err != nil {
		return nil, err
	}
	return &Child{conn: c}, nil
}

// ask asks one question; f is the descriptor that came with the answer, or nil.
func (c *Child) ask(r request) (a answer, f *os.File, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	text, err := json.Marshal(r)
	if err != nil {
		return a, nil, err
	}
	// The parent looks a host name up at most; it answers or it is gone.
	_ = c.conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.conn.Write(text); err != nil {
		return a, nil, fmt.Errorf("asking the parent: %w", err)
	}
	b, rights := make([]byte, 1<<16), make([]byte, unix.CmsgSpace(4))
	n, rn, _, _, err := c.conn.ReadMsgUnix(b, rights)
	if err != nil {
		return a, nil, fmt.Errorf("asking the parent: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:rn])
	if err == nil && len(messages) > 0 {
		if fds, err := unix.ParseUnixRights(&messages[0]); err == nil && len(fds) > 0 {
			unix.CloseOnExec(fds[0])
			f = os.NewFile(uintptr(fds[0]), r.Address)
		}
	}
	if err := json.Unmarshal(b[:n], &a); err != nil {
		return a, f, fmt.Errorf("asking the parent: %w", err)
	}
	if a.Error != "" {
		return a, f, errors.New(a.Error)
	}
	return a, f, nil
}

// Listen gives the listener of a service that the parent opened.
func (c *Child) Listen(service, address string) (net.Listener, error) {
	_, f, err := c.ask(request{Op: "listen", Service: service, Address: address})
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

// First gives what a first run made.
func (c *Child) First() (json.RawMessage, error) {
	a, _, err := c.ask(request{Op: "first"})
	return a.First, err
}
