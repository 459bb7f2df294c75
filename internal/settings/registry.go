package settings

import (
	"fmt"
	"slices"
	"strings"
)

// registry is the table in the forms that look-ups need. It is made once, before main, and never changes.
type registry struct {
	all            []*Setting
	names, files   map[string]*Setting
	lowerCaseNames map[string]*Setting
}

var table = makeRegistry()

// aliases are other names that the wiki uses for a setting.
var aliases = map[string]string{
	"DATASIZE":     "DATABYTES",     // wiki 2276
	"NODNSCHECKS":  "NODNSCHECK",    // wiki 4615
	"DKIMIVERIFY":  "DKIMVERIFY",    // wiki 3694
	"SIGNPRACTICE": "SIGN_PRACTICE", // wiki 3740
	"AUTHMODULE":   "AUTHMODULES",   // wiki 2994
	"IMAPMODULE":   "IMAPMODULES",   // wiki 2994
}

func makeRegistry() *registry {
	r := &registry{names: map[string]*Setting{}, files: map[string]*Setting{}, lowerCaseNames: map[string]*Setting{}}
	for _, group := range [][]*Setting{built(), pendingSettings()} {
		for _, s := range group {
			s.index = len(r.all)
			r.all = append(r.all, s)
			if r.names[s.Name] != nil || s.File != "" && r.files[s.File] != nil {
				panic("settings: " + s.Name + " stands twice in the table")
			}
			r.names[s.Name] = s
			if s.File != "" {
				r.files[s.File] = s
			}
		}
	}
	for class, names := range overrides() {
		for _, name := range names {
			r.names[name].Rules = append(r.names[name].Rules, class)
		}
	}
	for _, s := range r.all {
		slices.Sort(s.Rules)
	}
	for _, m := range switchable() {
		// wiki 2734 puts AUTH before CRAM, other lines do not.
		for _, alias := range []string{"DISABLE_AUTH_" + strings.TrimPrefix(m[1], "AUTH_"), "DISABLE_" + strings.TrimPrefix(m[1], "AUTH_")} {
			r.names[alias] = r.names["DISABLE_"+m[1]]
		}
	}
	for alias, name := range aliases {
		r.names[alias] = r.names[name]
	}
	for name, s := range r.names {
		r.lowerCaseNames[strings.ToLower(name)] = s
	}
	return r
}

// All gives every setting, in the order of the table.
func All() []*Setting { return table.all }

// byName finds a setting by its exact name or an alias; nil when there is none.
func byName(name string) *Setting { return table.names[name] }

// Lookup finds a setting by its name, in any case, or its control file.
func Lookup(name string) (*Setting, error) {
	if s := table.lowerCaseNames[strings.ToLower(name)]; s != nil {
		return s, nil
	}
	if s := table.files[strings.TrimPrefix(name, "control/")]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("no setting %q; the nearest is %s", name, nearest(strings.ToUpper(name), allNames()))
}

func allNames() (names []string) {
	for name := range table.names {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func allFiles() (names []string) {
	for name := range table.files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// nearest gives the known name with the least edit distance.
func nearest(name string, known []string) string {
	best, least := "", 1<<30
	for _, k := range known {
		if d := distance(name, k); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		previous := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := previous
			if a[i] != b[j] {
				cost++
			}
			previous = row[j+1]
			row[j+1] = min(cost, row[j]+1, previous+1)
		}
	}
	return row[len(b)]
}
