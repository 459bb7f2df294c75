package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/test/instance"
)

// million fills a queue with messages that cannot be delivered and looks at what that costs: the speed of accepting
// before and after, memory, disk, and the time of a restart.
func (b *bench) million(ctx context.Context, waiting int) error {
	c := testCase{name: "million", kind: accept, sessions: 100, many: true, size: b.size}
	dir, err := b.fresh("million")
	if err != nil {
		return err
	}
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(filepath.Join(data, "control"), 0o700); err != nil {
		return err
	}
	for name, value := range map[string]string{
		"relayclients": "127.0.0.1:",
		"smtproutes":   "dead.test:127.0.0.1:" + strconv.Itoa(refusedPort),
	} {
		if err := os.WriteFile(filepath.Join(data, "control", name), []byte(value+"\n"), 0o600); err != nil {
			return err
		}
	}
	up := func() (*instance.Instance, error) {
		return instance.Up(ctx, b.indigoAt, data, "--domain", "local.test", "--user", "u", "--password-file", b.password)
	}
	in, err := up()
	if err != nil {
		return err
	}
	defer func() { in.Kill() }()
	rate := func(messages int) (float64, error) {
		c.messages = messages
		// What was written before is not this run's to write.
		unix.Sync()
		begun := time.Now()
		err := source(ctx, c, in.Address("smtpd.25"))
		return float64(messages) / time.Since(begun).Seconds(), err
	}
	report := func(what string) error {
		memory, err := resident(in.PID())
		if err != nil {
			return err
		}
		log, err := folderSize(filepath.Join(data, "queue"))
		if err != nil {
			return err
		}
		n, err := in.Stats(ctx)
		fmt.Printf("%-28s %9d messages waiting, %5d MiB resident, %6d MiB of queue\n", what, n, memory>>20, log>>20)
		return err
	}
	if err := report("started"); err != nil {
		return err
	}
	empty, err := rate(40000)
	if err != nil {
		return err
	}
	if err := report("after 40,000"); err != nil {
		return err
	}
	begun := time.Now()
	if _, err := rate(waiting - 40000); err != nil {
		return err
	}
	if err := report(fmt.Sprintf("filled in %s", time.Since(begun).Round(time.Second))); err != nil {
		return err
	}
	profiled := make(chan error, 1)
	go func() {
		if b.profile == "" {
			profiled <- nil
			return
		}
		profiled <- fetchProfile(ctx, filepath.Join(data, "run", "control.sock"), b.profile+".million")
	}()
	full, err := rate(40000)
	if err := errors.Join(err, <-profiled); err != nil {
		return err
	}
	fmt.Printf("%-28s %.0f/s with few waiting, %.0f/s with %d: %.2f\n", "accepting", empty, full, waiting, full/empty)
	if err := in.Stop(); err != nil {
		return err
	}
	for _, crash := range []bool{false, true} {
		begun = time.Now()
		if in, err = up(); err != nil {
			return err
		}
		ready := time.Since(begun)
		if err := instance.Await(ctx, "the whole schedule is there", func() (bool, error) {
			n, err := in.Stats(ctx)
			return n >= waiting, err
		}); err != nil {
			return err
		}
		what := "restarted"
		if crash {
			what = "restarted after kill -9"
		}
		if err := report(what); err != nil {
			return err
		}
		fmt.Printf("%-28s serving after %s, whole schedule after %s\n", "", ready.Round(time.Millisecond), time.Since(begun).Round(time.Millisecond))
		if !crash {
			in.Kill()
		}
	}
	again, err := rate(40000)
	if err != nil {
		return err
	}
	fmt.Printf("%-28s %.0f/s: %.2f\n", "accepting after restart", again, again/empty)
	return in.Stop()
}

// resident gives a process's memory in bytes.
func resident(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("process %d does not tell its memory", pid)
	}
	kib, err := strconv.ParseInt(string(m[1]), 10, 64)
	return kib << 10, err
}

// folderSize gives the bytes of all files under dir.
func folderSize(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return nil
	})
	return total, err
}
