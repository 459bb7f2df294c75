package e2e

import (
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs test/script/*.txtar: the commands of the program, as a terminal shows them.
func TestScripts(t *testing.T) {
	program, err := filepath.Abs(string(indigo))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("..", "script"),
		Setup: func(env *testscript.Env) error {
			// The only indigo that scripts can find is the one under test.
			env.Setenv("PATH", filepath.Dir(program)+string(filepath.ListSeparator)+env.Getenv("PATH"))
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("INDIGO_DATA", "")
			return nil
		},
	})
}
