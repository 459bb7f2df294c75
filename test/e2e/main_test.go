// Package e2e drives the built program from outside, as operators, users' programs and other mail servers do.
package e2e

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/test/instance"
	"github.com/indigomail/indigo/test/postfix"
)

var (
	programFlag = flag.String("indigo", "", "program to test (default: it is built)")
	// indigo is what TestMain built.
	indigo instance.Program
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	indigo = instance.Program(*programFlag)
	if indigo == "" {
		dir, err := os.MkdirTemp("", "indigo-e2e")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		program, err := instance.Build(context.Background(), dir)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		indigo = instance.Program(program)
	}
	return m.Run()
}

// missing skips a test whose peer is not here, or fails it where peers are required.
func missing(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("INDIGO_REQUIRE_PEERS") != "" {
		t.Fatalf("%s, and INDIGO_REQUIRE_PEERS forbids skipping", why)
	}
	t.Skipf("%s: `make test` as root installs and does what it can", why)
}

// need skips unless every program is installed.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing(t, p+" is not installed")
		}
	}
}

// folder makes a short-named folder that every user may enter, for peers that give up root.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "indigo-e2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// within gives a context for one test's waiting.
func within(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

const (
	password = "correct horse battery"
	// waiting is how long a test waits for what takes milliseconds on a machine with nothing else to do.
	waiting = 30 * time.Second
)

// passwordFile writes a password where --password-file finds it.
func passwordFile(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(name, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// up starts an instance in a new data directory, with alice@indigo.test, and stops it when the test ends.
func up(t *testing.T, args ...string) *instance.Instance {
	t.Helper()
	return again(t, filepath.Join(folder(t), "data"), append([]string{"--user", "alice", "--password-file", passwordFile(t)}, args...)...)
}

// again starts an instance in a data directory that may exist.
func again(t *testing.T, data string, args ...string) *instance.Instance {
	t.Helper()
	in, err := instance.Up(within(t, time.Minute), indigo, data, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Stop(); err != nil {
			t.Errorf("stopping: %v", err)
		}
		if t.Failed() {
			t.Logf("end of the log:\n%s", in.Log())
		}
	})
	return in
}

// stop ends an instance that the test wants to start again.
func stop(t *testing.T, in *instance.Instance) {
	t.Helper()
	if err := in.Stop(); err != nil {
		t.Fatalf("stopping: %v\n%s", err, in.Log())
	}
}

// command runs an indigo command that must succeed and gives what it prints.
func command(t *testing.T, in *instance.Instance, args ...string) string {
	t.Helper()
	r, err := indigo.Run(within(t, time.Minute), append(args, "--data", in.Ready.Data)...)
	if err != nil {
		t.Fatal(err)
	}
	if r.Code != 0 {
		t.Fatalf("indigo %s: exit code %d\n%s%s", strings.Join(args, " "), r.Code, r.Out, r.Err)
	}
	return r.Out
}

// control writes a control file of a data directory.
func control(t *testing.T, in *instance.Instance, name, value string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(in.Ready.Data, "control", name), []byte(value), 0o600); err != nil {
		t.Fatal(err)
	}
}

// startPostfix starts a Postfix of the test's own, which must be installed (postfix.Missing).
func startPostfix(t *testing.T, config postfix.Config) *postfix.Instance {
	t.Helper()
	p, err := postfix.Start(within(t, time.Minute), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of postfix's log:\n%s", p.Log())
		}
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// peer runs a program of somebody else and gives its exit code and all that it prints.
func peer(t *testing.T, name string, args ...string) (code int, out string) {
	t.Helper()
	cmd := exec.CommandContext(within(t, 2*time.Minute), name, args...)
	var all bytes.Buffer
	cmd.Stdout, cmd.Stderr = &all, &all
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), all.String()
}

// send sends a message with net/smtp, without TLS, and gives the error that the server answered with.
func send(t *testing.T, address, from string, to []string, message string) error {
	t.Helper()
	c, err := smtp.Dial(address)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Hello("peer.test"); err != nil {
		return err
	}
	if err := c.Mail(from); err != nil {
		return err
	}
	for _, recipient := range to {
		if err := c.Rcpt(recipient); err != nil {
			return err
		}
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, strings.ReplaceAll(message, "\n", "\r\n")); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return c.Quit()
}

// awaitMail waits until some Maildir holds a message with the text and gives its bytes.
func awaitMail(t *testing.T, in *instance.Instance, text string) string {
	t.Helper()
	var found string
	err := instance.Await(within(t, waiting), fmt.Sprintf("%q is delivered", text), func() (bool, error) {
		files, err := instance.Mail(in.Ready.Data)
		for _, name := range files {
			content, err := os.ReadFile(name)
			if err == nil && strings.Contains(string(content), text) {
				found = string(content)
				return true, nil
			}
		}
		return false, err
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, in.Log())
	}
	return found
}

// freePort gives a port of 127.0.0.1 that was free a moment ago, for peers that must be told one.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
