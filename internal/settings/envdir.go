package settings

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// envdir is a directory of variables (wiki 382): a file is a variable, its first line the value; an empty file unsets it. A
// file .envfile has NAME=value lines. .envdir is a file that names more directories, one a line, or such a directory itself,
// or a link to one. What lies nearer wins: .envdir's directories, then .envfile, then the files.
type envdir struct {
	values values
	// others are variables that are no settings, for the programs that services run; "" for those that are unset, in order.
	others []variable
}

type variable struct {
	name, text string
	unset      bool
	source     Source
}

// maxEnvdirs bounds how deep .envdir may lead.
const maxEnvdirs = 16

// loadEnvdir reads a directory of variables; one that is not there has none.
func (l *loader) loadEnvdir(dir, layer string) *envdir {
	e := &envdir{values: values{}}
	var variables []variable
	l.readEnvdir(dir, layer, nil, &variables)
	for _, v := range variables {
		setting := byName(v.name)
		if setting == nil {
			e.setOther(v)
			continue
		}
		set := value{parsed: setting.parsedUnset, source: v.source}
		if v.unset {
			set.source.Value, set.source.Unset = setting.Unset, true
		} else {
			parsed, err := l.parse(setting, v.text)
			if err != nil {
				l.fail(v.source.File, v.source.Line, "%s: %v (%s)", setting.Name, err, setting.Help)
				continue
			}
			set.parsed = parsed
		}
		l.noteUse(setting, set, v.source.File, v.source.Line)
		e.values[setting] = set
	}
	for _, v := range e.others {
		if near := nearest(v.name, allNames()); !v.unset && distance(v.name, near) <= 2 && len(v.name) > 4 {
			l.warn(v.source.File, v.source.Line, "no such setting: it is handed to programs only; the nearest is %s", near)
		}
	}
	return e
}

// setOther keeps the last word on a variable.
func (e *envdir) setOther(v variable) {
	e.others = slices.DeleteFunc(e.others, func(o variable) bool { return o.name == v.name })
	e.others = append(e.others, v)
}

// readEnvdir appends what dir says, what wins last.
func (l *loader) readEnvdir(dir, layer string, above []os.FileInfo, into *[]variable) {
	here, err := os.Stat(l.path(dir))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) || above != nil {
			l.fail(dir, 1, "%v", err)
		}
		return
	}
	if slices.ContainsFunc(above, func(i os.FileInfo) bool { return os.SameFile(i, here) }) || len(above) >= maxEnvdirs {
		l.warn(dir, 1, ".envdir leads back to this directory, or deeper than %d directories: it is not followed", maxEnvdirs)
		return
	}
	above = append(slices.Clone(above), here)
	// Relative names in .envdir are relative to its own directory.
	next := func(name string, base string) string {
		if filepath.IsAbs(name) {
			return filepath.Clean(name)
		}
		target := filepath.Join(base, name)
		if !exists(l.path(target)) {
			// Where links lead to base, ".." leads elsewhere than in its name.
			if real, err := filepath.EvalSymlinks(l.path(base)); err == nil && exists(filepath.Join(real, name)) {
				if absolute, err := filepath.Abs(filepath.Join(real, name)); err == nil {
					return absolute
				}
			}
		}
		return target
	}
	link := filepath.Join(dir, ".envdir")
	if info, err := os.Stat(l.path(link)); err == nil && info.IsDir() {
		l.readEnvdir(link, layer, above, into)
	} else if err == nil {
		text, err := readValue(l.path(link), true)
		if err != nil {
			l.fail(link, 1, "%v", err)
		}
		for _, line := range significant(text) {
			target := next(line.text, dir)
			if !exists(l.path(target)) {
				l.fail(link, line.line, "there is no directory %s", line.text)
				continue
			}
			l.readEnvdir(target, layer, above, into)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		l.fail(link, 1, "%v", err)
	}
	file := filepath.Join(dir, ".envfile")
	if text, err := readValue(l.path(file), true); err == nil {
		for _, line := range significant(text) {
			name, value, ok := strings.Cut(line.text, "=")
			if !ok || !validName(name) {
				l.fail(file, line.line, "%q is not of the form NAME=value", line.text)
				continue
			}
			*into = append(*into, variable{name: name, text: value, source: Source{Layer: layer, File: file, Line: line.line, Value: value}})
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		l.fail(file, 1, "%v", err)
	}
	entries, err := os.ReadDir(l.path(dir))
	if err != nil {
		l.fail(dir, 1, "%v", err)
		return
	}
	for _, entry := range entries {
		name := entry.Name()
		file := filepath.Join(dir, name)
		info, err := os.Stat(l.path(file))
		if strings.HasPrefix(name, ".") || err == nil && info.IsDir() {
			continue
		}
		if !validName(name) {
			l.warn(file, 1, "no name of a variable: it is passed over")
			continue
		}
		var text string
		if err == nil {
			text, err = readValue(l.path(file), false)
		}
		if errors.Is(err, fs.ErrPermission) {
			// Variables that only some may read are how an administrator gives them to some (wiki 384).
			l.warn(file, 1, "may not be read by this process: it is passed over")
			continue
		}
		if err != nil {
			l.fail(file, 1, "%v", err)
			continue
		}
		*into = append(*into, variable{name: name, text: text, unset: info.Size() == 0, source: Source{Layer: layer, File: file, Line: 1, Value: text}})
	}
}

// validName tells whether name can be a variable's.
func validName(name string) bool {
	if name == "" || len(name) > 255 || name[0] >= '0' && name[0] <= '9' {
		return false
	}
	return !strings.ContainsAny(name, "= \t\x00~")
}
