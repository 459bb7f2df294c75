package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Source is where a value came from.
type Source struct {
	// Layer is "default", "control file" or "service variable".
	Layer string
	// File is relative to the data directory; "" for a default.
	File string
	// Value is the text in force.
	Value string
}

// String gives "control/databytes:1" or "default".
func (s Source) String() string {
	if s.File == "" {
		return s.Layer
	}
	return s.File + ":1"
}

type value struct {
	parsed any
	source Source
}

// View is what one service sees: the layers for it, later wins: default, control file, service variable. It never
// changes.
type View struct {
	values map[*Setting]value
}

// Source tells where the value of s came from. A nil view has defaults only.
func (v *View) Source(s *Setting) Source {
	if v != nil {
		if set, ok := v.values[s]; ok {
			return set.source
		}
	}
	return Source{Layer: "default", Value: s.Default}
}

// Environment gives what the layers set, as variables for a program: NAME=value. Lists stay in their files; they may hold
// secrets.
func (v *View) Environment() (variables []string) {
	if v == nil {
		return nil
	}
	for _, s := range All() {
		if set, ok := v.values[s]; ok && set.source.Layer != "default" && s.Type != "list" {
			variables = append(variables, s.Name+"="+set.source.Value)
		}
	}
	return variables
}

// Problem is one thing wrong with a file of settings.
type Problem struct {
	// File is relative to the data directory.
	File string
	Text string
}

func (p Problem) String() string { return p.File + ":1: " + p.Text }

// Problems is every problem found, one a line.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.String()
	}
	return strings.Join(lines, "\n")
}

// Snapshot is all settings of a data directory as they were at one moment. It never changes; it is safe for concurrent
// use.
type Snapshot struct {
	// Warnings name files that hold no known setting.
	Warnings []Problem
	control  map[*Setting]value
	services map[string]map[*Setting]value
	// queues are control files that are one queue's, by "queue.NAME".
	queues map[string]map[*Setting]value
	views  sync.Map // service name to *View
}

// Holder holds the snapshot in force; a reload swaps it.
type Holder struct{ atomic.Pointer[Snapshot] }

// Load reads control/NAME and services/SERVICE/variables/VAR of the data directory dir. Every malformed value is named
// in the error, which is then of type Problems.
func Load(dir string) (*Snapshot, error) {
	s := &Snapshot{control: map[*Setting]value{}, services: map[string]map[*Setting]value{}, queues: map[string]map[*Setting]value{}}
	var problems Problems
	byFile, byName := map[string]*Setting{}, map[string]*Setting{}
	for _, setting := range All() {
		byName[setting.Name] = setting
		if setting.File != "" {
			byFile[setting.File] = setting
		}
	}
	read := func(folder, layer string, known map[string]*Setting, into map[*Setting]value) {
		entries, err := os.ReadDir(filepath.Join(dir, folder))
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				problems = append(problems, Problem{folder, err.Error()})
			}
			return
		}
		for _, entry := range entries {
			name := filepath.Join(folder, entry.Name())
			if strings.HasPrefix(entry.Name(), ".") || entry.IsDir() {
				continue
			}
			setting, ok := known[entry.Name()]
			if !ok && layer == "control file" {
				if s.readQueueFile(dir, entry.Name(), &problems) {
					continue
				}
			}
			if !ok {
				s.Warnings = append(s.Warnings, Problem{name, "no such setting; the nearest is " + nearest(entry.Name(), known)})
				continue
			}
			text, err := readValue(filepath.Join(dir, name), setting.Type == "list")
			if err != nil {
				problems = append(problems, Problem{name, err.Error()})
				continue
			}
			if text == "" && layer == "service variable" {
				// envdir: an empty file removes the variable.
				text = setting.Default
			}
			parsed, err := setting.check(text)
			if err != nil {
				problems = append(problems, Problem{name, fmt.Sprintf("%s: %v (%s)", setting.Name, err, setting.Help)})
				continue
			}
			into[setting] = value{parsed, Source{Layer: layer, File: name, Value: text}}
		}
	}
	read("control", "control file", byFile, s.control)
	services, err := os.ReadDir(filepath.Join(dir, "services"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		problems = append(problems, Problem{"services", err.Error()})
	}
	for _, service := range services {
		values := map[*Setting]value{}
		read(filepath.Join("services", service.Name(), "variables"), "service variable", byName, values)
		s.services[service.Name()] = values
	}
	if problems != nil {
		return nil, problems
	}
	return s, nil
}

// readQueueFile takes concurrencyl.NAME and concurrencyr.NAME, the concurrency of one queue (wiki 377); false if the file is
// neither.
func (s *Snapshot) readQueueFile(dir, name string, problems *Problems) bool {
	channel, queue, _ := strings.Cut(name, ".")
	setting := map[string]*Setting{"concurrencyl": ConcurrencyLocal.Setting, "concurrencyr": ConcurrencyRemote.Setting}[channel]
	if setting == nil || queue == "" {
		return false
	}
	file := filepath.Join("control", name)
	text, err := readValue(filepath.Join(dir, file), false)
	var parsed any
	if err == nil {
		parsed, err = setting.check(text)
	}
	if err != nil {
		*problems = append(*problems, Problem{file, fmt.Sprintf("%s: %v (%s)", setting.Name, err, setting.Help)})
		return true
	}
	if s.queues["queue."+queue] == nil {
		s.queues["queue."+queue] = map[*Setting]value{}
	}
	s.queues["queue."+queue][setting] = value{parsed, Source{Layer: "control file", File: file, Value: text}}
	return true
}

// maxFile bounds what is read of one settings file.
const maxFile = 16 << 20

// readValue gives a file's first line, or all of it for a list, without white space at its end; NULs in an envdir
// value stand for newlines.
func readValue(path string, list bool) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if info.Size() > maxFile {
		return "", fmt.Errorf("longer than %d bytes", maxFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if !list {
		b, _, _ = bytes.Cut(b, []byte("\n"))
	}
	return strings.TrimRight(string(bytes.ReplaceAll(b, []byte{0}, []byte("\n"))), " \t\r\n"), nil
}

// View gives what service sees: its own variables, for "queue.slowq" then those of "queue", then control files. The same
// view comes back each time.
func (s *Snapshot) View(service string) *View {
	if v, ok := s.views.Load(service); ok {
		return v.(*View)
	}
	v := &View{values: make(map[*Setting]value)}
	kind, _, _ := strings.Cut(service, ".")
	for _, setting := range All() {
		if set, ok := s.services[service][setting]; ok {
			v.values[setting] = set
		} else if set, ok := s.queues[service][setting]; ok {
			v.values[setting] = set
		} else if set, ok := s.services[kind][setting]; ok {
			v.values[setting] = set
		} else if set, ok := s.control[setting]; ok {
			v.values[setting] = set
		} else if parsed, err := setting.check(setting.Default); err == nil {
			v.values[setting] = value{parsed, Source{Layer: "default", Value: setting.Default}}
		}
	}
	kept, _ := s.views.LoadOrStore(service, v)
	return kept.(*View)
}

// Lookup finds a setting by its name or its control file.
func Lookup(name string) (*Setting, error) {
	known := map[string]*Setting{}
	for _, s := range All() {
		if strings.EqualFold(s.Name, name) || s.File != "" && s.File == name {
			return s, nil
		}
		known[s.Name] = s
	}
	return nil, fmt.Errorf("no setting %q; the nearest is %s", name, nearest(strings.ToUpper(name), known))
}

// nearest gives the known name with the least edit distance.
func nearest(name string, known map[string]*Setting) string {
	best, least := "", 1<<30
	for k := range known {
		if d := distance(name, k); d < least || d == least && k < best {
			best, least = k, d
		}
	}
	return best
}

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

// Set writes a setting durably: into its control file, or for service into that service's variable. The value is checked
// first. A running instance takes it over at its next reload.
func Set(dir, name, service, text string) error {
	setting, err := Lookup(name)
	if err != nil {
		return err
	}
	if _, err := setting.check(text); err != nil {
		return fmt.Errorf("%s: %w (%s)", setting.Name, err, setting.Help)
	}
	path, err := settingPath(dir, setting, service)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if service != "" {
		text = strings.ReplaceAll(text, "\n", "\x00")
	}
	return writeFile(path, text+"\n")
}

// Unset removes what Set wrote; the layer below applies again. Unsetting what is not set is no error.
func Unset(dir, name, service string) error {
	setting, err := Lookup(name)
	if err != nil {
		return err
	}
	path, err := settingPath(dir, setting, service)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func settingPath(dir string, s *Setting, service string) (string, error) {
	if service == "" {
		return filepath.Join(dir, "control", s.File), nil
	}
	if service != filepath.Base(service) || strings.HasPrefix(service, ".") {
		return "", fmt.Errorf("service %q is no name of a service", service)
	}
	kind, _, _ := strings.Cut(service, ".")
	if !slices.Contains(s.Services, kind) && !slices.Contains(s.Services, "all") {
		return "", fmt.Errorf("%s is read by %s, not by %s", s.Name, strings.Join(s.Services, ", "), service)
	}
	return filepath.Join(dir, "services", service, "variables", s.Name), nil
}

// writeFile replaces a file whole and durably. The mode lets only the owner read: smtproutes holds passwords.
func writeFile(path, content string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err = f.WriteString(content); err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Environment is what commands take from the process's environment.
type Environment struct {
	// Data is the data directory to use when a command is given none: $INDIGO_DATA, else the one that the last
	// `indigo up` of this user served, else what /etc/indigo/data names, else "indigo-data".
	Data string
	// Path is $PATH, for the programs that services run.
	Path string
	// last is the file that remembers it.
	last string
}

// Get gives a variable of the process's environment, "" when it is not set: for programs that take what to do from it, as
// qmail-inject does.
func (Environment) Get(name string) string { return os.Getenv(name) }

// systemData names the data directory of the host for users who have none of their own: its first line.
const systemData = "/etc/indigo/data"

// FromEnvironment reads the environment.
func FromEnvironment() Environment {
	e := Environment{Data: "indigo-data", Path: os.Getenv("PATH")}
	if text, err := os.ReadFile(systemData); err == nil && len(bytes.TrimSpace(text)) > 0 {
		e.Data = string(bytes.TrimSpace(text))
	}
	state := os.Getenv("XDG_STATE_HOME")
	if home := os.Getenv("HOME"); state == "" && home != "" {
		state = filepath.Join(home, ".local", "state")
	}
	if state != "" {
		e.last = filepath.Join(state, "indigo", "last")
		if text, err := os.ReadFile(e.last); err == nil && len(bytes.TrimSpace(text)) > 0 {
			e.Data = string(bytes.TrimSpace(text))
		}
	}
	if data := os.Getenv("INDIGO_DATA"); data != "" {
		e.Data = data
	}
	return e
}

// RememberData makes data the default of later commands of this user. It is a convenience: failing is no error.
func RememberData(e Environment, data string) {
	absolute, err := filepath.Abs(data)
	if err != nil || e.last == "" || os.MkdirAll(filepath.Dir(e.last), 0o700) != nil {
		return
	}
	_ = writeFile(e.last, absolute+"\n")
}
