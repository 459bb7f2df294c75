// Package crash takes the ground away from the built program while it works, kill -9 and full disks, and checks that
// every message that got its 250 is there in the end.
package crash

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/indigomail/indigo/test/instance"
)

var (
	programFlag = flag.String("indigo", "", "program to test (default: it is built)")
	roundsFlag  = flag.Int("rounds", 10, "rounds of TestKill")
	seedFlag    = flag.Uint64("seed", 0, "seed of what is random in TestKill (default: a new one, printed)")
	indigo      instance.Program
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	indigo = instance.Program(*programFlag)
	if indigo == "" {
		dir, err := os.MkdirTemp("", "indigo-crash")
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
