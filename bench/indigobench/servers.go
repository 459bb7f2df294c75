package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/test/instance"
	"github.com/indigomail/indigo/test/postfix"
)

type bench struct {
	options
	dir      string
	indigoAt instance.Program
	password string
}

// Recipients: one that is never tried, one with a Maildir, one at the sink.
const (
	deadUser   = "u@dead.test"
	localUser  = "u@local.test"
	remoteUser = "u@remote.test"
)

func (c testCase) recipient() string { return [...]string{deadUser, localUser, remoteUser}[c.kind] }

func (b *bench) prepare(ctx context.Context) error {
	b.indigoAt = instance.Program(b.options.program)
	if b.options.program == "" {
		dir, err := b.fresh("program")
		if err != nil {
			return err
		}
		built, err := instance.Build(ctx, dir)
		if err != nil {
			return err
		}
		b.indigoAt = instance.Program(built)
	}
	b.password = filepath.Join(b.dir, "password")
	return os.WriteFile(b.password, []byte("no secret at all\n"), 0o600)
}

// indigo measures one run of a fresh Indigo with its default durability.
func (b *bench) indigo(ctx context.Context, c testCase, profile bool) (speed float64, err error) {
	dir, err := b.fresh("indigo")
	if err != nil {
		return 0, err
	}
	sink, err := startSink(ctx, c)
	if err != nil {
		return 0, err
	}
	defer sink.stop()
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(filepath.Join(data, "control"), 0o700); err != nil {
		return 0, err
	}
	for name, value := range map[string]string{
		"relayclients": "127.0.0.1:",
		"smtproutes":   "dead.test:127.0.0.1:" + strconv.Itoa(refusedPort) + "\nremote.test:" + sink.address,
	} {
		if err := os.WriteFile(filepath.Join(data, "control", name), []byte(value+"\n"), 0o600); err != nil {
			return 0, err
		}
	}
	in, err := instance.Up(ctx, b.indigoAt, data, "--domain", "local.test", "--user", "u", "--password-file", b.password)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, in.Stop()) }()
	if b.profile != "" && profile {
		done := make(chan error, 1)
		go func() {
			done <- fetchProfile(ctx, filepath.Join(data, "run", "control.sock"), b.profile+"."+strings.ReplaceAll(c.name, "/", "-"))
		}()
		defer func() { err = errors.Join(err, <-done) }()
	}
	box := filepath.Join(data, "domains", "local.test", "u", "Maildir", "new")
	return measure(ctx, c, in.Address("smtpd.25"), box, sink)
}

// fetchProfile asks a running instance for a CPU profile and an allocation profile.
func fetchProfile(ctx context.Context, socket, file string) error {
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	for path, name := range map[string]string{"profile?seconds=2": file + ".cpu", "allocs": file + ".allocs"} {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://indigo/debug/pprof/"+path, nil)
		if err != nil {
			return err
		}
		answer, err := client.Do(request)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err == nil && answer.StatusCode != http.StatusOK {
			err = fmt.Errorf("profile: %s: %s", answer.Status, text)
		}
		if err == nil {
			err = os.WriteFile(name, text, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// postfix measures one run of a fresh postfix.
func (b *bench) postfix(ctx context.Context, c testCase) (speed float64, err error) {
	dir, err := b.fresh("postfix")
	if err != nil {
		return 0, err
	}
	sink, err := startSink(ctx, c)
	if err != nil {
		return 0, err
	}
	defer sink.stop()
	port, err := freePort()
	if err != nil {
		return 0, err
	}
	host, sinkPort, err := net.SplitHostPort(sink.address)
	if err != nil {
		return 0, err
	}
	p, err := postfix.Start(ctx, postfix.Config{Dir: dir, Port: port, Users: []string{localUser}, Transport: map[string]string{
		"dead.test":   "smtp:[127.0.0.1]:" + strconv.Itoa(refusedPort),
		"remote.test": "smtp:[" + host + "]:" + sinkPort,
	}})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	return measure(ctx, c, p.Address(), p.Mailbox(localUser), sink)
}

// refusedPort is where nobody listens.
const refusedPort = 9

// measure sends a case's messages and gives messages a second: until the last 250 (accept), until the last one is in the
// Maildir (deliver) or at the sink (relay).
func measure(ctx context.Context, c testCase, address, box string, sink *sink) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	// What the start left to be written is not the benchmark's.
	unix.Sync()
	begun := time.Now()
	if err := source(ctx, c, address); err != nil {
		return 0, err
	}
	var err error
	switch c.kind {
	case deliver:
		err = instance.Await(ctx, fmt.Sprintf("%d messages are in the Maildir", c.messages), func() (bool, error) {
			n, err := entries(box)
			return n >= c.messages, err
		})
	case relay:
		err = instance.Await(ctx, fmt.Sprintf("%d messages are at the sink", c.messages), func() (bool, error) {
			return sink.messages.Load() >= int64(c.messages), nil
		})
	}
	if err != nil {
		return 0, err
	}
	return float64(c.messages) / time.Since(begun).Seconds(), nil
}

// source runs smtp-source to its end.
func source(ctx context.Context, c testCase, address string) error {
	args := []string{"-m", strconv.Itoa(c.messages), "-s", strconv.Itoa(c.sessions), "-l", strconv.Itoa(c.size), "-f", "sender@sender.test", "-t", recipientOf(c)}
	if c.many {
		args = append(args, "-d")
	}
	if out, err := exec.CommandContext(ctx, "smtp-source", append(args, "inet:"+address)...).CombinedOutput(); err != nil {
		return fmt.Errorf("smtp-source: %w\n%s", err, out)
	}
	return nil
}

func recipientOf(c testCase) string {
	if c.kind > relay {
		return remoteUser
	}
	return c.recipient()
}

// entries counts a folder's files; a folder that is not there yet has none.
func entries(dir string) (int, error) {
	f, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	return len(names), err
}

// sink is a running smtp-sink.
type sink struct {
	address  string
	messages atomic.Int64
	cmd      *exec.Cmd
	read     chan struct{}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// startSink starts a sink for the cases that need one.
func startSink(ctx context.Context, c testCase) (*sink, error) {
	if c.kind != relay && c.kind != ceilingDialogue {
		return &sink{address: "127.0.0.1:" + strconv.Itoa(refusedPort)}, nil
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &sink{address: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), read: make(chan struct{})}
	args := []string{"-c"}
	if os.Geteuid() == 0 {
		args = append(args, "-u", "postfix")
	}
	s.cmd = exec.Command("smtp-sink", append(args, "inet:"+s.address, "1000")...)
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(s.read)
		// It writes "sess=N quit=N mesg=N" with a carriage return each time something changes.
		r := bufio.NewReader(out)
		for {
			line, err := r.ReadString('\r')
			if _, count, ok := strings.Cut(line, "mesg="); ok {
				if n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(count, "\r")), 10, 64); err == nil {
					s.messages.Store(n)
				}
			}
			if err != nil {
				_, _ = io.Copy(io.Discard, r)
				return
			}
		}
	}()
	limit, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = instance.Await(limit, "smtp-sink listens", func() (bool, error) {
		conn, err := net.Dial("tcp", s.address)
		if err != nil {
			return false, nil
		}
		return true, conn.Close()
	})
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

func (s *sink) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	<-s.read
	_ = s.cmd.Wait()
}
