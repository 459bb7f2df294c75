package settings

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What looks like a variable or a control file in the wiki's text.
var (
	variableLike = regexp.MustCompile(`\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b|\b[A-Z][A-Z0-9]{3,}\b|\bPLUGIN0_[a-z]+\b`)
	inVariables  = regexp.MustCompile(`variables/([A-Za-z_0-9]+)`)
	inControl    = regexp.MustCompile(`control/([a-z][A-Za-z0-9_-]*(?:\.[a-z]+)*)`)
	controlFile  = regexp.MustCompile(`\b([a-z][a-z_0-9.]+) control file\b|\bcontrol files? ([a-z][a-z_0-9]+(?:\.[a-z]+)?)\b`)
	// Tables and lists that begin with a file's name: srs_domain | …, tlsservermethod - The TLS protocol list.
	rowOfTable = regexp.MustCompile(`^(srs_[a-z]+) \|`)
	rowOfList  = regexp.MustCompile(`^([a-z]+)(?:, ([a-z]+))? - (?:The TLS protocol list|A set of OpenSSL|domains for which)|^(tlsclients|spf[a-z0-9]+) (?:A list|You can turn)`)
	// Lists of names behind "control files".
	namedLists = regexp.MustCompile(`(?:These control files include|using the control files?|control files) ([a-z_0-9., and]+)`)
)

// wikiNames gives every name that looks like one of a setting, with the line where it first stands.
func wikiNames(text string) (variables, files map[string]int) {
	variables, files = map[string]int{}, map[string]int{}
	note := func(into map[string]int, name string, line int) {
		if _, ok := into[name]; !ok && name != "" {
			into[name] = line
		}
	}
	n := 0
	for line := range strings.Lines(text) {
		n++
		for _, name := range variableLike.FindAllString(line, -1) {
			note(variables, name, n)
		}
		for _, m := range inVariables.FindAllStringSubmatch(line, -1) {
			note(variables, m[1], n)
		}
		for _, m := range inControl.FindAllStringSubmatch(line, -1) {
			note(files, m[1], n)
		}
		for _, m := range controlFile.FindAllStringSubmatch(line, -1) {
			note(files, m[1]+m[2], n)
		}
		for _, e := range []*regexp.Regexp{rowOfTable, rowOfList} {
			for _, m := range e.FindAllStringSubmatch(line, -1) {
				for _, name := range m[1:] {
					note(files, name, n)
				}
			}
		}
		for _, m := range namedLists.FindAllStringSubmatch(line, -1) {
			for _, name := range strings.FieldsFunc(m[1], func(r rune) bool { return r == ',' || r == ' ' }) {
				note(files, strings.Trim(name, "."), n)
			}
		}
	}
	return variables, files
}

// words reads a file of words, with comments.
func words(t *testing.T, name string) []string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, line := range significant(string(text)) {
		all = append(all, strings.Fields(line.text)...)
	}
	return all
}

// TestWiki walks the wiki's text: each word in capitals, each file under control/ and variables/, and each "control file"
// is a setting or one of the words that were looked at and are none. Without the text, the names that were found in it are
// tried, which testdata/wiki-names.txt holds.
func TestWiki(t *testing.T) {
	known := func(name string, isFile bool) bool {
		if isFile {
			channel, _, ok := strings.Cut(name, ".")
			return table.files[name] != nil || ok && (channel == "concurrencyl" || channel == "concurrencyr")
		}
		return byName(name) != nil
	}
	noSettings := words(t, "testdata/no-settings.txt")
	for _, name := range noSettings {
		if known(name, false) {
			t.Errorf("%s is a setting, and among testdata/no-settings.txt", name)
		}
	}
	texts, _ := filepath.Glob("../../../shared/seeds/002_*.txt")
	if len(texts) == 0 {
		for _, name := range words(t, "testdata/wiki-names.txt") {
			if !known(strings.TrimPrefix(name, "control/"), strings.HasPrefix(name, "control/")) {
				t.Errorf("%s is not in the registry", name)
			}
		}
		return
	}
	text, err := os.ReadFile(texts[0])
	if err != nil {
		t.Fatal(err)
	}
	variables, files := wikiNames(string(text))
	var found []string
	for name, line := range variables {
		switch {
		case known(name, false):
			found = append(found, name)
		case !slices.Contains(noSettings, name):
			t.Errorf("line %d: %s is neither a setting nor among testdata/no-settings.txt", line, name)
		}
	}
	for name, line := range files {
		switch {
		case known(name, true):
			found = append(found, "control/"+name)
		case !slices.Contains(noSettings, name):
			t.Errorf("line %d: control/%s is neither a setting nor among testdata/no-settings.txt", line, name)
		}
	}
	kept := words(t, "testdata/wiki-names.txt")
	for _, name := range found {
		if !slices.Contains(kept, name) {
			t.Errorf("%s is a setting that the wiki names, and not in testdata/wiki-names.txt", name)
		}
	}
	for _, name := range kept {
		if !slices.Contains(found, name) {
			t.Errorf("%s in testdata/wiki-names.txt is no setting, or the wiki does not name it", name)
		}
	}
}
