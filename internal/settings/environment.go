package settings

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Environment is what commands take from the process's environment, and for programs of local users from their
// directories of variables.
type Environment struct {
	// Data is the data directory to use when a command is given none: $INDIGO_DATA, else the one that the last
	// `indigo up` of this user served, else what /etc/indigo/data names, else "indigo-data".
	Data string
	// Path is $PATH, for the programs that services run.
	Path string
	// last is the file that remembers it.
	last string
	// local are the variables of .defaultqueue and defaultqueue; nil without them.
	local map[string]*string
}

// Get gives a variable of the process's environment, "" when it is not set: for programs that take what to do from it, as
// qmail-inject does.
func (e Environment) Get(name string) string {
	if v, ok := e.local[name]; ok {
		if v == nil {
			return ""
		}
		return *v
	}
	return os.Getenv(name)
}

// All gives every variable as NAME=value, those of the directories in the place of the process's.
func (e Environment) All() []string {
	var all []string
	for _, one := range os.Environ() {
		name, _, _ := strings.Cut(one, "=")
		if _, ok := e.local[name]; !ok {
			all = append(all, one)
		}
	}
	for name, v := range e.local {
		if v != nil {
			all = append(all, name+"="+*v)
		}
	}
	slices.Sort(all)
	return all
}

// LocalVariables gives what the directories of variables set, as NAME=value, in the order of the alphabet.
func (e Environment) LocalVariables() (all []string) {
	for name, v := range e.local {
		if v != nil {
			all = append(all, name+"="+*v)
		}
	}
	slices.Sort(all)
	return all
}

// Local gives e with the variables of $HOME/.defaultqueue and of the data directory's control/defaultqueue over it (wiki
// 384-386). anyUser is true for qmail-inject, qmail-qread and their like, which read .defaultqueue whoever runs them; other
// programs do so unless root runs them. SKIP_LOCAL_ENVIRONMENT in the environment passes .defaultqueue over. The
// administrator's defaultqueue is passed over when QUEUE_BASE is set already, by the environment or by .defaultqueue.
// Problems with .defaultqueue change nothing; those with defaultqueue are the error, and the program must end with 111.
func (e Environment) Local(anyUser bool) (Environment, error) {
	e.local = map[string]*string{}
	home := os.Getenv("HOME")
	skip := os.Getenv("SKIP_LOCAL_ENVIRONMENT") != ""
	if home != "" && !skip && (anyUser || os.Geteuid() != 0) {
		if variables, problems := readLocal(filepath.Join(home, ".defaultqueue")); problems == nil {
			e.over(variables)
		}
	}
	if e.Get("QUEUE_BASE") != "" {
		return e, nil
	}
	dir := filepath.Join(e.Data, "control")
	if control := os.Getenv("CONTROLDIR"); filepath.IsAbs(control) {
		dir = control
	}
	variables, problems := readLocal(filepath.Join(dir, "defaultqueue"))
	if problems != nil {
		return e, problems
	}
	e.over(variables)
	return e, nil
}

// over puts variables over e; what .defaultqueue said stays.
func (e Environment) over(variables []variable) {
	before := map[string]bool{}
	for name := range e.local {
		before[name] = true
	}
	for _, v := range variables {
		switch {
		case before[v.name]:
		case v.unset:
			e.local[v.name] = nil
		default:
			e.local[v.name] = &v.text
		}
	}
}

// readLocal reads a directory of variables.
func readLocal(dir string) ([]variable, error) {
	// A user who may not look into the directory has nothing from it.
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, nil
	}
	l := newLoader("")
	var variables []variable
	l.readEnvdir(dir, "defaultqueue", nil, &variables)
	if l.problems != nil {
		return nil, l.problems
	}
	return variables, nil
}

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

// Envdir reads a directory of variables for a program (wiki 382): those that it sets, as NAME=value, and those that it
// unsets. Everything that is wrong with it is named in the error; a file that may not be read is passed over.
func Envdir(dir string) (set, unset []string, err error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, nil, err
	}
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return nil, nil, err
	}
	variables, err := readLocal(absolute)
	if err != nil {
		return nil, nil, err
	}
	last := map[string]variable{}
	for _, v := range variables {
		last[v.name] = v
	}
	for name, v := range last {
		if v.unset {
			unset = append(unset, name)
		} else {
			set = append(set, name+"="+v.text)
		}
	}
	slices.Sort(set)
	slices.Sort(unset)
	return set, unset, nil
}

// Over gives v with what the environment says of some settings over it; a nil v has the defaults. The error names what is malformed.
func (e Environment) Over(v *View, some ...*Setting) (*View, error) {
	if v == nil {
		v = &View{}
	}
	var assigns []assignment
	for _, s := range some {
		text := e.Get(s.Name)
		if text == "" {
			continue
		}
		parsed, err := s.check(nil, text)
		if err != nil {
			return nil, fmt.Errorf("%s in the environment: %w", s.Name, err)
		}
		assigns = append(assigns, assignment{s, value{parsed, Source{Layer: "environment", Value: text}}})
	}
	return v.with(assigns), nil
}
