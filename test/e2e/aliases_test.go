package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/test/instance"
)

// TestAliasRestart: programs of an alias that are done do not run again when another line is tried again after a restart.
func TestAliasRestart(t *testing.T) {
	program, data := indigo, filepath.Join(folder(t), "data")
	args := []string{"--user", "alice", "--password-file", passwordFile(t)}
	if os.Geteuid() == 0 {
		program, args = readable(t), append(args, "--run-as", fmt.Sprint(nobody))
	}
	start := func(args ...string) *instance.Instance {
		t.Helper()
		in, err := instance.Up(within(t, time.Minute), program, data, args...)
		if err != nil {
			t.Fatal(err)
		}
		return in
	}
	in := start(args...)
	defer func() { stop(t, in) }()
	command(t, in, "alias", "add", "twice@indigo.test", "|echo done >>done", "|echo tried >>tried; test -e gate || exit 111", "alice")
	if err := send(t, in.Address("smtpd.25"), "x@example.org", []string{"twice@indigo.test"}, "Subject: once\n\ntext\n"); err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(data, "domains", "indigo.test")
	ran := func(name string) int {
		b, _ := os.ReadFile(filepath.Join(home, name))
		return strings.Count(string(b), "\n")
	}
	until := func(what string, is func() bool) {
		t.Helper()
		if err := instance.Await(within(t, waiting), what, func() (bool, error) { return is(), nil }); err != nil {
			t.Fatalf("%v\n%s", err, in.Log())
		}
	}
	until("the deferral", func() bool { return strings.Contains(command(t, in, "queue", "list", "--json"), "exit code 111") })
	for n := range 2 {
		tried := ran("tried")
		stop(t, in)
		in = start()
		command(t, in, "queue", "retry", "--all")
		until("another attempt", func() bool { return ran("tried") > tried })
		if got := ran("done"); got != 1 {
			t.Errorf("after restart %d the program that was done has run %d times", n+1, got)
		}
	}
	if err := os.WriteFile(filepath.Join(home, "gate"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	until("the end of the delivery", func() bool {
		command(t, in, "queue", "retry", "--all")
		messages, err := in.Stats(within(t, waiting))
		return err == nil && messages == 0
	})
	if got := ran("done"); got != 1 {
		t.Errorf("the program that was done has run %d times", got)
	}
}
