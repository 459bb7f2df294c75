// Package e2e runs the built binary as a user does.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var rounds = flag.Int("rounds", 20, "rounds of the crash test")

var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "indigo-e2e")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "indigo")
		build := exec.Command("go", "build", "-o", binary, "../../cmd/indigo")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Printf("build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// peer skips the test when a program is missing, or fails where skips are forbidden.
func peer(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("INDIGO_REQUIRE_PEERS") != "" {
			t.Fatalf("%s is required", name)
		}
		t.Skipf("%s is not installed", name)
	}
}

// instance is a running binary.
type instance struct {
	Data     string            `json:"data"`
	Domain   string            `json:"domain"`
	User     string            `json:"user"`
	Password string            `json:"password"`
	Services map[string]string `json:"services"`
	cmd      *exec.Cmd
	log      *logBuffer
}

// logBuffer takes what the instance says while the test looks at it.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs a command that serves and waits for its first line.
func start(t testing.TB, args ...string) *instance {
	t.Helper()
	i := &instance{log: &logBuffer{}}
	i.cmd = exec.Command(binary, args...)
	i.cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	i.cmd.Stderr = i.log
	out, err := i.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := i.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.kill() })
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		i.kill()
		t.Fatalf("%v: %v\n%s", args, err, i.log)
	}
	if err := json.Unmarshal(line, i); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return i
}

func up(t testing.TB, data string, more ...string) *instance {
	t.Helper()
	return start(t, append([]string{"up", "--data", data, "--port-offset", "free", "--json"}, more...)...)
}

func (i *instance) kill() {
	i.cmd.Process.Kill()
	i.cmd.Wait()
}

// stop drains it and demands that it ends well.
func (i *instance) stop(t testing.TB) {
	t.Helper()
	if err := i.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := i.cmd.Wait(); err != nil {
		t.Fatalf("SIGTERM: %v\n%s", err, i.log)
	}
}

func (i *instance) port(service string) string {
	_, port, _ := net.SplitHostPort(i.Services[service])
	return port
}

func indigo(t testing.TB, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, args...).CombinedOutput()
	return string(out), err
}

func must(t testing.TB, args ...string) string {
	t.Helper()
	out, err := indigo(t, args...)
	if err != nil {
		t.Fatalf("indigo %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func TestUpTryRestart(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	i := up(t, data, "--domain", "example.org", "--user", "alice")
	if i.User != "alice@example.org" || i.Password == "" {
		t.Errorf("%+v", i)
	}
	out := must(t, "try", "--data", data)
	if !strings.Contains(out, "Delivered.") {
		t.Fatal(out)
	}
	var result struct {
		Queue     string `json:"queue_id"`
		Delivered bool   `json:"delivered"`
	}
	if err := json.Unmarshal([]byte(must(t, "try", "--data", data, "--json")), &result); err != nil || !result.Delivered {
		t.Fatalf("%v %+v", err, result)
	}
	story := must(t, "explain", "--data", data, result.Queue)
	for _, want := range []string{"check local-user", "delivery  success", "end "} {
		if !strings.Contains(story, want) {
			t.Errorf("no %q in\n%s", want, story)
		}
	}
	if out, err := indigo(t, "up", "--data", data, "--port-offset", "free"); err == nil || !strings.Contains(out, fmt.Sprintf("in use by process %d", i.cmd.Process.Pid)) {
		t.Errorf("a second up: %v %s", err, out)
	}
	i.stop(t)
	for _, want := range []string{"new msg ", "info msg ", "starting delivery 1: msg ", "status: local 1/", "delivery 1: success: did_1+0+0/", "end msg "} {
		if !strings.Contains(i.log.String(), want) {
			t.Errorf("no %q in the log", want)
		}
	}
	again := up(t, data)
	if again.Domain != "example.org" || again.Password != "" {
		t.Errorf("%+v", again)
	}
	if out := must(t, "try", "--data", data); !strings.Contains(out, "of 3") {
		t.Errorf("the mail of before is gone:\n%s", out)
	}
	must(t, "explain", "--data", data, result.Queue)
	again.stop(t)
}

func TestFaultsAreReportedAtOnce(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	up(t, data).stop(t)
	for name, text := range map[string]string{"databytes": "many", "concurrencylocal": "501"} {
		if err := os.WriteFile(filepath.Join(data, "control", name), []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(data, "certs", "servercert.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	offset := fmt.Sprint(l.Addr().(*net.TCPAddr).Port - 25)
	out, err := indigo(t, "serve", "--data", data, "--port-offset", offset)
	if err == nil {
		t.Fatal("it started")
	}
	for _, want := range []string{"control/databytes:1: DATABYTES", "control/concurrencylocal:1:", "servercert.pem", "service smtpd.25: listen"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestSwaks(t *testing.T) {
	peer(t, "swaks")
	data := filepath.Join(t.TempDir(), "data")
	i := up(t, data)
	swaks := func(args ...string) string {
		out, _ := exec.CommandContext(t.Context(), "swaks", append([]string{"-s", "127.0.0.1", "-f", i.User}, args...)...).CombinedOutput()
		return string(out)
	}
	for _, mechanism := range []string{"PLAIN", "LOGIN"} {
		for _, way := range [][]string{{"-tls", "-p", i.port("smtpd.587")}, {"-tlsc", "-p", i.port("smtpd.465")}, {"-tls", "-p", i.port("smtpd.25")}} {
			login := append(way, "-a", mechanism, "-au", i.User, "-t", i.User, "-ap")
			if out := swaks(append(login, i.Password)...); !strings.Contains(out, "235 2.7.0") || !strings.Contains(out, "250 2.0.0 ok ") {
				t.Errorf("%s %v:\n%s", mechanism, way, out)
			}
			if out := swaks(append(login, "wrong")...); !strings.Contains(out, "535 5.7.8") {
				t.Errorf("%s %v with a wrong password:\n%s", mechanism, way, out)
			}
		}
	}
	if out := swaks("-p", i.port("smtpd.25"), "-t", "x@elsewhere.example"); !strings.Contains(out, "550 5.7.1 sorry, that domain isn't in my list of allowed rcpthosts") {
		t.Error(out)
	}
	if out := swaks("-p", i.port("smtpd.25"), "-t", "nobody@"+i.Domain); !strings.Contains(out, "550 5.1.1") {
		t.Error(out)
	}
	if out := swaks("-p", i.port("smtpd.587"), "-t", i.User); !strings.Contains(out, "530 5.7.0") {
		t.Error(out)
	}
	story := must(t, "explain", "--data", data, "x@elsewhere.example")
	if !strings.Contains(story, "check relay  given 127.0.0.1  by setting RELAYCLIENTS (default)  reply 550 5.7.1") {
		t.Error(story)
	}
}

func TestPythonRoundTrip(t *testing.T) {
	peer(t, "python3")
	i := up(t, filepath.Join(t.TempDir(), "data"))
	cmd := exec.CommandContext(t.Context(), "python3", "testdata/roundtrip.py", i.port("smtpd.587"), i.port("pop3d.995"), i.port("imapd.993"), i.User)
	cmd.Stdin = strings.NewReader(i.Password)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestCurlFetchesINBOX(t *testing.T) {
	peer(t, "curl")
	data := filepath.Join(t.TempDir(), "data")
	i := up(t, data)
	must(t, "try", "--data", data, "--user", i.User)
	config := fmt.Sprintf("user = \"%s:%s\"\ninsecure\nsilent\n", i.User, i.Password)
	for url, want := range map[string]string{
		"imaps://127.0.0.1:" + i.port("imapd.993") + "/":                  "INBOX",
		"imaps://127.0.0.1:" + i.port("imapd.993") + "/INBOX;MAILINDEX=1": "Subject: indigo try",
		"pop3s://127.0.0.1:" + i.port("pop3d.995") + "/1":                 "Subject: indigo try",
	} {
		cmd := exec.CommandContext(t.Context(), "curl", "--config", "-", url)
		cmd.Stdin = strings.NewReader(config)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v\n%s", url, err, out)
		}
	}
}

// TestRelayAndBounce sends from one instance to another through smtproutes, and gets a bounce back for an unknown user.
func TestRelayAndBounce(t *testing.T) {
	dir := t.TempDir()
	far := up(t, filepath.Join(dir, "far"), "--domain", "far.example", "--user", "bob")
	near := filepath.Join(dir, "near")
	i := up(t, near, "--domain", "near.example", "--user", "alice")
	route := "far.example:127.0.0.1:" + far.port("smtpd.25")
	must(t, "settings", "set", "SMTPROUTES", route, "--data", near)
	if err := i.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	wait(t, "reload", func() bool {
		return strings.Contains(must(t, "settings", "get", "SMTPROUTES", "--data", near), "far.example")
	})
	cmd := exec.CommandContext(t.Context(), "python3", "testdata/send.py", i.port("smtpd.465"), i.User, "bob@far.example", "nobody@far.example")
	cmd.Stdin = strings.NewReader(i.Password)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	delivered := func(data, domain, user, text string) func() bool {
		return func() bool {
			files, _ := filepath.Glob(filepath.Join(data, "domains", domain, user, "Maildir", "new", "*"))
			for _, f := range files {
				if b, _ := os.ReadFile(f); strings.Contains(string(b), text) {
					return true
				}
			}
			return false
		}
	}
	wait(t, "delivery at the far end", delivered(filepath.Join(dir, "far"), "far.example", "bob", "Subject: relayed"))
	wait(t, "bounce", delivered(near, "near.example", "alice", "Final-Recipient: rfc822; nobody@far.example"))
	story := must(t, "explain", "--data", near, "nobody@far.example")
	if !strings.Contains(story, "< 550 5.1.1") || !strings.Contains(story, "bounce    success") {
		t.Error(story)
	}
}

// wait looks until something is so, for at most 30 seconds.
func wait(t testing.TB, what string, so func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come about", what)
		}
		<-tick.C
	}
}

func TestStaticBinary(t *testing.T) {
	peer(t, "ldd")
	out, _ := exec.Command("ldd", binary).CombinedOutput()
	if !strings.Contains(string(out), "not a dynamic executable") {
		t.Errorf("%s", out)
	}
}
