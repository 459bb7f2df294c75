package settings

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestAllAreBuilt: a setting that is declared and not in the list of built would read the value of another.
func TestAllAreBuilt(t *testing.T) {
	text, err := os.ReadFile("table.go")
	if err != nil {
		t.Fatal(err)
	}
	declared, list, ok := strings.Cut(string(text), "\nfunc built() []*Setting {")
	if !ok {
		t.Fatal("table.go has no built")
	}
	all := regexp.MustCompile(`(?m)^\t([A-Z]\w+) += [a-z]\w*\(`).FindAllStringSubmatch(declared, -1)
	if len(all) < 200 {
		t.Fatalf("%d settings", len(all))
	}
	for _, m := range all {
		if m[1] != "DisableMechanism" && !strings.Contains(list, "\t"+m[1]+".Setting,") {
			t.Errorf("%s is not in the list of built", m[1])
		}
	}
}
