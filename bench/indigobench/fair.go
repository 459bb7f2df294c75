package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/test/instance"
)

// tarpit accepts connections and never says a word: the worst that a destination can do to a queue.
type tarpit struct {
	listener net.Listener
	serving  sync.WaitGroup
	mu       sync.Mutex
	open     []net.Conn
}

func startTarpit() (*tarpit, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &tarpit{listener: l}
	t.serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.mu.Lock()
			t.open = append(t.open, c)
			t.mu.Unlock()
		}
	})
	return t, nil
}

func (t *tarpit) stop() {
	t.listener.Close()
	t.serving.Wait()
	for _, c := range t.open {
		c.Close()
	}
}

// fair compares the speed of relaying to a living host with nothing else in the queue, with waiting messages for a domain
// whose host refuses connections, and with as many more for one whose host takes connections and says nothing.
func (b *bench) fair(ctx context.Context, waiting int) error {
	dir, err := b.fresh("fair")
	if err != nil {
		return err
	}
	mud, err := startTarpit()
	if err != nil {
		return err
	}
	defer mud.stop()
	live := testCase{name: "live", kind: relay, sessions: 20, many: true, messages: max(int(6000*b.scale), 20), size: b.size}
	sink, err := startSink(ctx, live)
	if err != nil {
		return err
	}
	defer sink.stop()
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(filepath.Join(data, "control"), 0o700); err != nil {
		return err
	}
	for name, value := range map[string]string{
		"relayclients": "127.0.0.1:",
		"smtproutes":   "dead.test:127.0.0.1:" + strconv.Itoa(refusedPort) + "\nlocal.test:" + mud.listener.Addr().String() + "\nremote.test:" + sink.address,
	} {
		if err := os.WriteFile(filepath.Join(data, "control", name), []byte(value+"\n"), 0o600); err != nil {
			return err
		}
	}
	in, err := instance.Up(ctx, b.indigoAt, data, "--domain", "here.test", "--user", "u", "--password-file", b.password)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Stop()) }()
	arrived := int64(0)
	rate := func() (float64, error) {
		var speeds []float64
		for range b.rounds {
			unix.Sync()
			begun := time.Now()
			if err := source(ctx, live, in.Address("smtpd.25")); err != nil {
				return 0, err
			}
			arrived += int64(live.messages)
			limit, cancel := context.WithTimeout(ctx, 5*time.Minute)
			err := instance.Await(limit, "the messages are at the sink", func() (bool, error) { return sink.messages.Load() >= arrived, nil })
			cancel()
			if err != nil {
				return 0, err
			}
			speeds = append(speeds, float64(live.messages)/time.Since(begun).Seconds())
		}
		return median(speeds), nil
	}
	alone, err := rate()
	if err != nil {
		return err
	}
	fmt.Printf("%-70s %6.0f /s\n", "relaying to a living host, nothing else waits", alone)
	for _, c := range []struct {
		what string
		kind kind
	}{{"a host that refuses connections", accept}, {"a host that takes connections and says nothing", deliver}} {
		fill := testCase{kind: c.kind, sessions: 100, many: true, messages: waiting, size: 1024}
		if err := source(ctx, fill, in.Address("smtpd.25")); err != nil {
			return err
		}
		beside, err := rate()
		if err != nil {
			return err
		}
		n, err := in.Stats(ctx)
		if err != nil {
			return err
		}
		fmt.Printf("%-70s %6.0f /s, %.2f\n", fmt.Sprintf("%d wait, %d of them for %s", n, waiting, c.what), beside, beside/alone)
	}
	return nil
}
