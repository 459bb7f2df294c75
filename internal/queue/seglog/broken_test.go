package seglog

import (
	"os/exec"
	"strings"
	"testing"
)

// TestBrokenEngineIsCaught builds an engine without the one sync that an acknowledgement stands on, and lets the model look at
// it.
func TestBrokenEngineIsCaught(t *testing.T) {
	if testing.Short() || skipSync {
		t.Skip("builds another test program")
	}
	out, err := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-tags", "brokensync", "-run", "^TestModel$", ".").CombinedOutput()
	if err == nil {
		t.Fatalf("the model found nothing wrong:\n%s", out)
	}
	if !strings.Contains(string(out), "--- FAIL: TestModel") {
		t.Fatalf("it failed for another reason:\n%s", out)
	}
}
