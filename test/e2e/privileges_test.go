package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/indigomail/indigo/test/instance"
)

// readable copies the program to where every user may run it.
func readable(t *testing.T) instance.Program {
	t.Helper()
	text, err := os.ReadFile(string(indigo))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder(t), "indigo")
	if err := os.WriteFile(path, text, 0o755); err != nil {
		t.Fatal(err)
	}
	return instance.Program(path)
}

// status reads /proc/PID/status.
func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.Join(strings.Fields(value), " ")
	}
	return fields
}

// children gives the processes whose parent is pid.
func children(t *testing.T, pid int) (all []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n))
		if err == nil && bytes.Contains(text, []byte(fmt.Sprintf("\nPPid:\t%d\n", pid))) {
			all = append(all, n)
		}
	}
	return all
}

const nobody = 65534

// TestRootGivesUpRoot starts as root on ports below 1024: the process that serves is another user's, without capabilities
// and without a way to get any, holds no file that it should not, and can write only where mail lies.
func TestRootGivesUpRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		missing(t, "only root can give root up")
	}
	program := readable(t)
	data := filepath.Join(folder(t), "data")
	// An address of the loopback network of its own, so that the low ports are free.
	in, err := instance.Up(within(t, time.Minute), program, data, "--user", "alice", "--password-file", passwordFile(t),
		"--listen", "127.0.0.77", "--port-offset", "0", "--run-as", strconv.Itoa(nobody))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			t.Log(in.Log())
		}
	}()
	if got := in.Address("smtpd.25"); got != "127.0.0.77:25" {
		t.Errorf("smtpd.25 listens on %s", got)
	}
	serving := children(t, in.PID())
	if len(serving) != 1 {
		t.Fatalf("children of the parent: %v", serving)
	}
	child := serving[0]
	s := status(t, child)
	for field, want := range map[string]string{
		"Uid": "65534 65534 65534 65534", "Gid": "65534 65534 65534 65534", "NoNewPrivs": "1",
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapInh": "0000000000000000", "CapAmb": "0000000000000000",
	} {
		if s[field] != want {
			t.Errorf("the child's %s is %q, want %q", field, s[field], want)
		}
	}
	if got := status(t, in.PID())["Uid"]; got != "0 0 0 0" {
		t.Errorf("the parent's Uid is %q", got)
	}
	// Other users of the host get at public, for sendmail and sockets that are made there, and at nothing else.
	for path, want := range map[string]fs.FileMode{
		"": 0o711, "public": 0o755, "public/pickup": 0o700, "certs": 0o700, "control": 0o700, "domains": 0o700, "queue": 0o700, "run": 0o700, "trace": 0o700, "indimail.db": 0o600, "authkey": 0o600,
	} {
		info, err := os.Stat(filepath.Join(data, path))
		if err != nil || info.Mode()&^fs.ModeDir != want {
			t.Errorf("mode of DATA/%s: %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
	// They leave mail while it runs, and are told when it does not: what they would leave in pickup is not the account's to read.
	leave := func(user uint32) error {
		cmd := exec.Command(string(program), "sendmail", "alice@indigo.test")
		cmd.Env = append(os.Environ(), "INDIGO_DATA="+data)
		cmd.Stdin = strings.NewReader("Subject: left\n\nleft\n")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	}
	if err := leave(4001); err != nil {
		t.Errorf("sendmail of another user: %v", err)
	}
	// What it holds: its standard streams, sockets, the kernel's wake-ups, and files of the data directory.
	descriptors, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", child))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range descriptors {
		target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", child, d.Name()))
		if err != nil {
			continue
		}
		known := strings.HasPrefix(target, "socket:") || strings.HasPrefix(target, "anon_inode:") || strings.HasPrefix(target, "pipe:") ||
			strings.HasPrefix(target, data) || target == "/dev/null" || strings.HasPrefix(target, "/sys/fs/cgroup/") // Go's runtime watches its share of the CPUs
		if n, _ := strconv.Atoi(d.Name()); !known && n > 2 {
			t.Errorf("the child holds %s: %s", d.Name(), target)
		}
	}
	// Everything works: mail, a service that is stopped and started (its low port is bound anew), a new service.
	try(t, in)
	for _, args := range [][]string{
		{"service", "stop", "smtpd.25"}, {"service", "start", "smtpd.25"}, {"service", "restart", "smtpd.587"},
		{"service", "add", "smtpd.26"}, {"domain", "add", "two.test", "--password-file", passwordFile(t)}, {"settings", "set", "MAXHOPS", "50"}, {"reload"},
	} {
		command(t, in, args...)
	}
	for _, port := range []string{"25", "26", "587"} {
		c, err := net.DialTimeout("tcp", "127.0.0.77:"+port, 5*time.Second)
		if err != nil {
			t.Errorf("port %s: %v", port, err)
			continue
		}
		c.Close()
	}
	// What commands of root made belongs to the user who serves.
	err = filepath.WalkDir(data, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		out, err := exec.Command("stat", "-c", "%u", path).Output()
		if err == nil && strings.TrimSpace(string(out)) != strconv.Itoa(nobody) {
			t.Errorf("%s belongs to %s", path, out)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := in.Stop(); err != nil {
		t.Errorf("stopping: %v", err)
	}
	if left := children(t, 1); slices.Contains(left, child) {
		t.Error("the child outlived its parent")
	}
	if err := leave(4001); err == nil {
		t.Error("sendmail of another user says that mail was taken which nothing will read")
	}
	// Root's, of cron, lies there for the account.
	if err := leave(0); err != nil {
		t.Errorf("sendmail of root: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(data, "public/pickup/m*"))
	if err != nil || len(left) != 1 {
		t.Fatalf("left by root: %v, %v", left, err)
	}
	out, err := exec.Command("stat", "-c", "%u %a", left[0]).Output()
	if err != nil || strings.TrimSpace(string(out)) != strconv.Itoa(nobody)+" 600" {
		t.Errorf("what root left belongs to %s, %v", out, err)
	}
}

// TestHardening finds out where a program that a service runs can write: in the data directory, and nowhere else that its
// user could.
func TestHardening(t *testing.T) {
	if os.Geteuid() != 0 {
		missing(t, "only root can give root up")
	}
	program := readable(t)
	// /tmp stays writable, so that the test's directories lie elsewhere.
	dir, err := os.MkdirTemp("/var/lib", "indigo-e2e")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	outside, allowed := filepath.Join(dir, "outside"), filepath.Join(dir, "allowed")
	for _, d := range []string{outside, allowed} {
		if err := os.Mkdir(d, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	script := filepath.Join(dir, "filter")
	text := fmt.Sprintf("#!/bin/sh\necho x 2>/dev/null >%s/file\necho x 2>/dev/null >%s/file\nexec %s qmail-queue\n", outside, allowed, program)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	start := func() *instance.Instance {
		in, err := instance.Up(within(t, time.Minute), program, data, "--user", "alice", "--password-file", passwordFile(t), "--run-as", "nobody")
		if err != nil {
			t.Fatal(err)
		}
		return in
	}
	in := start()
	command(t, in, "settings", "set", "QMAILQUEUE", script, "--service", "smtpd.587")
	command(t, in, "settings", "set", "WRITABLE", allowed)
	stop(t, in)
	in = start()
	defer stop(t, in)
	// An alias's program is as confined, and gets its message all the same.
	command(t, in, "alias", "add", "alice@indigo.test", "alice", fmt.Sprintf("|echo x >%s/alias; echo x >%s/alias; id -u >$HOME/uid; cat >$HOME/got", outside, allowed))
	try(t, in, "--user", "alice@indigo.test", "--password-file", passwordFile(t))
	for name, want := range map[string]string{"uid": strconv.Itoa(nobody) + "\n", "got": "Received: "} {
		if b, err := os.ReadFile(filepath.Join(data, "domains/indigo.test/alice", name)); err != nil || !strings.HasPrefix(string(b), want) {
			t.Errorf("%s: %q %v\n%s", name, b, err, in.Log())
		}
	}
	if _, err := os.Stat(filepath.Join(allowed, "alias")); err != nil {
		t.Errorf("an alias's program could not write where WRITABLE lets it: %v", err)
	}
	if _, err := os.Stat(filepath.Join(outside, "alias")); err == nil && !strings.Contains(in.Log(), "Landlock is not in force") {
		t.Error("an alias's program could write outside")
	}
	if _, err := os.Stat(filepath.Join(allowed, "file")); err != nil {
		t.Errorf("the program could not write where WRITABLE lets it: %v\n%s", err, in.Log())
	}
	_, err = os.Stat(filepath.Join(outside, "file"))
	if strings.Contains(in.Log(), "Landlock is not in force") {
		missing(t, "this kernel has no Landlock")
	}
	if err == nil {
		t.Errorf("the program could write outside\n%s", in.Log())
	}
}

// TestProcessOne runs as process 1 of a namespace: it collects the orphans that programs leave, and ends when it is asked.
func TestProcessOne(t *testing.T) {
	if os.Geteuid() != 0 {
		missing(t, "only root can make a process namespace")
	}
	need(t, "unshare")
	dir := folder(t)
	script := filepath.Join(dir, "orphans")
	// Each message leaves a process whose parent is gone.
	if err := os.WriteFile(script, []byte(fmt.Sprintf("#!/bin/sh\nsh -c 'true & true &' &\nexec %s qmail-queue\n", indigo)), 0o755); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	first := again(t, data, "--user", "alice", "--password-file", passwordFile(t))
	command(t, first, "settings", "set", "QMAILQUEUE", script, "--service", "smtpd.587")
	stop(t, first)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--pid", "--fork", "--mount-proc", string(indigo), "serve", "--data", data, "--port-offset", "free", "--json")
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var one int
	err := instance.Await(ctx, "process 1 and its child", func() (bool, error) {
		all := children(t, cmd.Process.Pid)
		if len(all) != 1 {
			return false, nil
		}
		one = all[0]
		return len(children(t, one)) == 1, nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, said.String())
	}
	err = instance.Await(ctx, "the instance", func() (bool, error) {
		_, err := indigo.Run(ctx, "try", "--data", data, "--user", "alice@indigo.test", "--password-file", passwordFile(t))
		return err == nil, nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, said.String())
	}
	err = instance.Await(ctx, "no zombies", func() (bool, error) {
		for _, pid := range children(t, one) {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err == nil && bytes.Contains(text, []byte("State:\tZ")) {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := exec.Command("kill", "-TERM", strconv.Itoa(one)).Run(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("process 1 ended with %v\n%s", err, said.String())
		}
	case <-ctx.Done():
		t.Fatal("process 1 did not end")
	}
}
