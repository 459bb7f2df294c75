package settings

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Problem is one thing wrong with a file of settings.
type Problem struct {
	// File is relative to the data directory, Line counts from 1.
	File string
	Line int
	Text string
}

func (p Problem) String() string { return fmt.Sprintf("%s:%d: %s", p.File, max(p.Line, 1), p.Text) }

// Problems is every problem found, one a line.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.String()
	}
	return strings.Join(lines, "\n")
}

// problemIn is an error that stands in another file than the one that is being read.
type problemIn Problem

func (p problemIn) Error() string { return Problem(p).String() }

// loader reads a data directory. It lives on in the snapshot for what constant databases hold.
type loader struct {
	dir      string
	registry *registry
	// file is the file that is being read now.
	file     string
	problems Problems
	warnings Problems
	mu       sync.Mutex
	// opened are the files of lists, patterns and rules by "NAME control-directory/file".
	opened map[string]opened
	// sets are all patterns, for QREGEX.
	sets []loadedSet
	// regexps is true when something sets QREGEX; controls are the directories that CONTROLDIR names.
	regexps  bool
	controls []string
	// control is the directory whose files are named by variables now.
	control string
}

type opened struct {
	parsed any
	err    error
}

type loadedSet struct {
	file string
	set  *patternSet
}

func newLoader(dir string) *loader {
	return &loader{dir: dir, registry: table, opened: map[string]opened{}, control: "control"}
}

// path gives where a file of the data directory lies; absolute names stay.
func (l *loader) path(file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(l.dir, file)
}

func (l *loader) fail(file string, line int, format string, a ...any) {
	l.problems = append(l.problems, Problem{file, line, fmt.Sprintf(format, a...)})
}

func (l *loader) warn(file string, line int, format string, a ...any) {
	l.warnings = append(l.warnings, Problem{file, line, fmt.Sprintf(format, a...)})
}

// failWith reports err, which may be faults with lines.
func (l *loader) failWith(file string, err error) {
	var many faults
	var other problemIn
	switch {
	case errors.As(err, &many):
		for _, f := range many {
			l.fail(file, f.line, "%s", f.text)
		}
	case errors.As(err, &other):
		l.problems = append(l.problems, Problem(other))
	default:
		l.fail(file, 1, "%v", err)
	}
}

// parse gives the value that text stands for in a variable: for what lives in a control file of its own, the file's name.
func (l *loader) parse(s *Setting, text string) (any, error) {
	if !s.inFile {
		return s.check(l, text)
	}
	if l == nil {
		return s.check(nil, "")
	}
	if text == "" || strings.ContainsAny(text, "\n\x00") {
		return nil, errors.New("a variable names a control file, in one line")
	}
	file := text
	if !filepath.IsAbs(text) {
		if !filepath.IsLocal(text) {
			return nil, fmt.Errorf("%q leads out of the control directory", text)
		}
		file = filepath.Join(l.control, text)
	}
	return l.open(s, file, true)
}

// open reads a control file that holds lists, patterns, rules or lines; with must it has to be there in some form.
func (l *loader) open(s *Setting, file string, must bool) (any, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := s.Name + " " + file
	if o, ok := l.opened[key]; ok {
		return o.parsed, o.err
	}
	// A rules file may name itself: it is not read twice.
	l.opened[key] = opened{s.parsedDefault, nil}
	content, err := readValue(l.path(file), true)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
		if must && !exists(l.path(file)+".cdb") && !exists(l.path(file)+".sql") {
			err = fmt.Errorf("there is no file %s", file)
		}
	}
	var parsed any = s.parsedDefault
	if err == nil {
		before := l.file
		l.file = file
		l.mu.Unlock()
		parsed, err = s.check(l, content)
		l.mu.Lock()
		l.file = before
	}
	if err != nil && !must {
		l.opened[key] = opened{s.parsedDefault, nil}
		return s.parsedDefault, err
	}
	var many faults
	if errors.As(err, &many) {
		// What is wrong in a file that a variable names is told once, with the file's own lines.
		l.failWith(file, err)
		parsed, err = s.parsedDefault, nil
	}
	l.opened[key] = opened{parsed, err}
	return parsed, err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// noteUse is told of every value that some layer sets.
func (l *loader) noteUse(s *Setting, v value, file string, line int) {
	if s.Pending && !v.source.Unset {
		l.warn(file, line, "%s has no effect yet: %s", s.Name, s.Help)
	}
	switch s {
	case QRegex.Setting:
		l.regexps = true
	case ControlDir.Setting:
		if dir := v.parsed.(string); !slices.Contains(l.controls, dir) {
			l.controls = append(l.controls, dir)
		}
	}
}

// values are the settings of one layer.
type values map[*Setting]value

// Snapshot is all settings of a data directory as they were at one moment. It never changes; it is safe for concurrent
// use.
type Snapshot struct {
	// Warnings tell what will not work as its author may think, and does no harm.
	Warnings []Problem

	dir     string
	control map[string]values
	// queues are control files that are one queue's, by "queue.NAME".
	queues map[string]values
	// services are the variables directories, by the service's name.
	services map[string]*envdir
	// inject is control/defaultqueue.
	inject *envdir
	// directories gives the directory of each service under services/.
	directories map[string]string
	tcp         map[string]*TCPRules
	views       sync.Map // viewName to *View
}

// Load reads all settings of the data directory dir: control files, services' variables, defaultqueue, and the rules of the
// directory tcp. Everything that is malformed is named in the error, which is then of type Problems.
func Load(dir string) (*Snapshot, error) {
	s, problems := Inspect(dir)
	if problems != nil {
		return nil, problems
	}
	return s, nil
}

// Inspect reads all settings as Load does, and gives what is well formed together with what is wrong, for who looks for
// more that is wrong.
func Inspect(dir string) (*Snapshot, Problems) {
	l := newLoader(dir)
	s := &Snapshot{
		dir: dir, control: map[string]values{}, queues: map[string]values{}, services: map[string]*envdir{},
		directories: map[string]string{}, tcp: map[string]*TCPRules{},
	}
	s.control["control"] = l.loadControl(s, "control", true)
	if exists(l.path("control/defaultqueue")) {
		s.inject = l.loadEnvdir(filepath.Join("control", "defaultqueue"), "defaultqueue")
	}
	entries, err := os.ReadDir(filepath.Join(dir, "services"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.fail("services", 1, "%v", err)
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		if info, err := os.Stat(filepath.Join(dir, "services", entry.Name())); err != nil || !info.IsDir() {
			continue
		}
		name := ServiceName(entry.Name())
		if other, ok := s.directories[name]; ok {
			l.fail(filepath.Join("services", entry.Name()), 1, "is the same service as services/%s: remove one", other)
			continue
		}
		s.directories[name] = entry.Name()
		s.services[name] = l.loadEnvdir(filepath.Join("services", entry.Name(), "variables"), "service variable")
	}
	l.loadTCP(s)
	// Rules may name further control directories, and those have rules again.
	for i := 0; i < len(l.controls) && i < 100; i++ {
		if control := controlPath(l.controls[i]); s.control[control] == nil {
			l.control = control
			s.control[control] = l.loadControl(s, control, false)
		}
	}
	l.control = "control"
	if l.regexps {
		for _, one := range l.sets {
			for _, f := range one.set.compile() {
				l.fail(one.file, f.line, "%s", f.text)
			}
		}
	}
	s.Warnings = l.warnings
	slices.SortStableFunc(l.problems, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.File, b.File), a.Line-b.Line)
	})
	return s, slices.Compact(l.problems)
}

// controlPath gives the directory that a value of CONTROLDIR means: IndiMail's is relative to its own directory, ours to
// the data directory; the default one in both is "control".
func controlPath(value string) string {
	if filepath.IsAbs(value) {
		return filepath.Clean(value)
	}
	return filepath.Clean(value)
}

// loadTCP reads the rules that services name by TCPRULES, and those that they have without it.
func (l *loader) loadTCP(s *Snapshot) {
	names := map[string]bool{}
	for _, name := range defaultTCPRules {
		names[name] = true
	}
	for _, e := range s.services {
		if v, ok := e.values[TCPRulesFile.Setting]; ok {
			names[v.parsed.(string)] = true
		}
	}
	for _, control := range s.control {
		if v, ok := control[TCPRulesFile.Setting]; ok {
			names[v.parsed.(string)] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if name != "" {
			s.tcp[name] = l.loadTCPRules(name)
		}
	}
}

// defaultTCPRules are the files that IndiMail's services have, by kind (wiki 636-721).
var defaultTCPRules = map[string]string{
	"smtpd": "tcp.smtp", "pop3d": "tcp.pop3", "imapd": "tcp.imap", "qmtpd": "tcp.qmtp", "qmqpd": "tcp.qmqp", "poppass": "tcp.poppass",
}

// notSetting tells whether a name in a control directory holds no setting: what other programs keep there.
func notSetting(name string) bool {
	switch filepath.Ext(name) {
	case ".pem", ".lock":
		return true
	}
	return strings.HasPrefix(name, ".") || name == "README"
}

// loadControl reads a control directory.
func (l *loader) loadControl(s *Snapshot, dir string, own bool) values {
	into := values{}
	entries, err := os.ReadDir(l.path(dir))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) || !own {
			l.fail(dir, 1, "%v", err)
		}
		return into
	}
	present := map[string]bool{}
	for _, entry := range entries {
		name := entry.Name()
		present[name] = true
		if base, ok := strings.CutSuffix(strings.TrimSuffix(name, ".sql"), ".cdb"); ok || base != name {
			// NAME.cdb and NAME.sql stand for NAME.
			if setting, known := table.files[base]; known {
				present[base] = true
				if setting.Type != "list" && (setting.Type != "credentials" || filepath.Ext(name) != ".cdb") {
					l.warn(filepath.Join(dir, name), 1, "has no effect: only lists are looked up in constant databases and tables of SQL, and %s is read from control/%s", setting.Name, base)
				}
				delete(present, name)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(present)) {
		file := filepath.Join(dir, name)
		setting := table.files[name]
		if setting == nil {
			switch {
			case own && l.queueFile(s, name), notSetting(name):
			default:
				if info, err := os.Stat(l.path(file)); err == nil && !info.IsDir() && !l.named(name) {
					l.warn(file, 1, "no such setting; the nearest is %s", nearest(name, allFiles()))
				}
			}
			continue
		}
		if info, err := os.Stat(l.path(file)); err == nil && info.IsDir() {
			continue
		}
		v := value{source: Source{Layer: "control file", File: file, Line: 1}}
		if setting.inFile {
			parsed, err := l.open(setting, file, false)
			if err != nil {
				l.failWith(file, err)
				continue
			}
			v.parsed, v.source.Value = parsed, l.firstLines(file)
		} else {
			text, err := readValue(l.path(file), false)
			if err == nil {
				v.parsed, err = setting.check(l, text)
			}
			if err != nil {
				l.fail(file, 1, "%s: %v (%s)", setting.Name, err, setting.Help)
				continue
			}
			v.source.Value = text
		}
		l.noteUse(setting, v, file, 1)
		into[setting] = v
	}
	return into
}

// named tells whether a variable or rule may mean the file: it is called like a setting's file with more behind a dot.
func (l *loader) named(name string) bool {
	base := name
	for {
		i := strings.LastIndexByte(base, '.')
		if i < 0 {
			return false
		}
		base = base[:i]
		if s := table.files[base]; s != nil {
			return true
		}
	}
}

// firstLines gives the text of a file of lines for explanations, cut after some hundred bytes.
func (l *loader) firstLines(file string) string {
	text, err := readValue(l.path(file), true)
	if err != nil {
		return ""
	}
	const enough = 1000
	if len(text) > enough {
		return text[:enough] + "…"
	}
	return text
}

// queueFile takes concurrencyl.NAME and concurrencyr.NAME, the concurrency of one queue (wiki 377); false if the file is
// neither.
func (l *loader) queueFile(s *Snapshot, name string) bool {
	channel, queue, _ := strings.Cut(name, ".")
	setting := map[string]*Setting{"concurrencyl": ConcurrencyLocal.Setting, "concurrencyr": ConcurrencyRemote.Setting}[channel]
	if setting == nil || queue == "" {
		return false
	}
	file := filepath.Join("control", name)
	text, err := readValue(l.path(file), false)
	var parsed any
	if err == nil {
		parsed, err = setting.check(l, text)
	}
	if err != nil {
		l.fail(file, 1, "%s: %v (%s)", setting.Name, err, setting.Help)
		return true
	}
	if s.queues["queue."+queue] == nil {
		s.queues["queue."+queue] = values{}
	}
	s.queues["queue."+queue][setting] = value{parsed, Source{Layer: "control file", File: file, Line: 1, Value: text}}
	return true
}

// maxFile bounds what is read of one settings file, maxListFile of a list.
const (
	maxFile     = 1 << 20
	maxListFile = 256 << 20
)

// readValue gives a file's first line, or all of it for a list, without white space at its end; NULs in an envdir
// value stand for newlines.
func readValue(path string, list bool) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	limit := int64(maxFile)
	if list {
		limit = maxListFile
	}
	if !info.Mode().IsRegular() {
		return "", errors.New("not a regular file")
	}
	if info.Size() > limit {
		return "", fmt.Errorf("longer than %d bytes", limit)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if !list {
		b, _, _ = bytes.Cut(b, []byte("\n"))
		b = bytes.ReplaceAll(b, []byte{0}, []byte("\n"))
	}
	return strings.TrimRight(string(b), " \t\r\n"), nil
}
