package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocsLinks follows each link among the documents, with its chapter.
func TestDocsLinks(t *testing.T) {
	names, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(names) < 10 {
		t.Fatalf("%d documents, %v", len(names), err)
	}
	link, odd := regexp.MustCompile(`\]\(([^)\s]+)\)`), regexp.MustCompile(`[^a-z0-9 -]`)
	chapters := func(text string) []string {
		var all []string
		for line := range strings.Lines(text) {
			if title := strings.TrimLeft(line, "#"); title != line {
				all = append(all, strings.ReplaceAll(odd.ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), ""), " ", "-"))
			}
		}
		return all
	}
	for _, name := range append(names, "../../README.md", "../../CONTRIBUTING.md") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range link.FindAllSubmatch(text, -1) {
			path, chapter, _ := strings.Cut(string(found[1]), "#")
			if strings.Contains(path, "://") {
				continue
			}
			target := name
			if path != "" {
				target = filepath.Join(filepath.Dir(name), path)
			}
			other, err := os.ReadFile(target)
			if err != nil || chapter != "" && !slices.Contains(chapters(string(other)), chapter) {
				t.Errorf("%s: the link %s leads nowhere: %v", name, found[1], err)
			}
		}
	}
}
