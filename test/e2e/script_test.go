package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs test/script/*.txtar: the commands of the program, as a terminal shows them.
func TestScripts(t *testing.T) {
	program, err := filepath.Abs(string(indigo))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:  filepath.Join("..", "script"),
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"smtp": dialogue(program)},
		// [!peer:PROGRAM] skip WHY: as missing, it is a failure where peers are required. [root] is who runs the tests.
		Condition: func(condition string) (bool, error) {
			if condition == "root" {
				return os.Geteuid() == 0, nil
			}
			name, ok := strings.CutPrefix(condition, "peer:")
			if !ok {
				return false, fmt.Errorf("no condition %q", condition)
			}
			_, err := exec.LookPath(name)
			if err != nil && os.Getenv("INDIGO_REQUIRE_PEERS") != "" {
				return false, fmt.Errorf("%s is not installed, and INDIGO_REQUIRE_PEERS forbids skipping", name)
			}
			return err == nil, nil
		},
		Setup: func(env *testscript.Env) error {
			// The only indigo that scripts can find is the one under test.
			env.Setenv("PATH", filepath.Dir(program)+string(filepath.ListSeparator)+env.Getenv("PATH"))
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("INDIGO_DATA", "")
			if os.Geteuid() != 0 {
				return nil
			}
			// Who gives root up must find the program and the script's folder.
			return errors.Join(os.Chmod(filepath.Dir(program), 0o755), os.Chmod(filepath.Dir(env.WorkDir), 0o755), os.Chmod(env.WorkDir, 0o755))
		},
	})
}

// dialogue is the command `smtp [-from ADDRESS] SERVICE LINE...`: a session over a real connection with a service of
// $INDIGO_DATA, from an address of this host's loopback network. Its replies go to standard output, a line each; a LINE that
// begins with + is sent without waiting for a reply, and what comes behind DATA is a message, of which only the end is
// answered. It fails only when there is no connection: a server that says nothing prints "closed".
func dialogue(program string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) == 0 {
			ts.Fatalf("usage: smtp [-from ADDRESS] SERVICE LINE...")
		}
		dialer := net.Dialer{Timeout: 10 * time.Second}
		if args[0] == "-from" {
			dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(args[1]), 0))
			args = args[2:]
		}
		list := exec.Command(program, "service", "list", "--json", "--data", ts.Getenv("INDIGO_DATA"))
		out, err := list.Output()
		ts.Check(err)
		var services []struct{ Name, Address string }
		ts.Check(json.Unmarshal(out, &services))
		address := ""
		for _, s := range services {
			if s.Name == args[0] {
				address = s.Address
			}
		}
		if address == "" {
			ts.Fatalf("no service %s that listens", args[0])
		}
		conn, err := dialer.Dial("tcp", address)
		ts.Check(err)
		defer conn.Close()
		ts.Check(conn.SetDeadline(time.Now().Add(30 * time.Second)))
		in := bufio.NewReader(conn)
		reply := func() bool {
			for {
				line, err := in.ReadString('\n')
				if err != nil {
					fmt.Fprintln(ts.Stdout(), "closed")
					return false
				}
				fmt.Fprintln(ts.Stdout(), strings.TrimRight(line, "\r\n"))
				if len(line) < 4 || line[3] != '-' {
					return true
				}
			}
		}
		if !reply() {
			return
		}
		for _, line := range args[1:] {
			line, silent := strings.CutPrefix(line, "+")
			fmt.Fprintf(conn, "%s\r\n", line)
			if !silent && !reply() {
				return
			}
		}
	}
}
