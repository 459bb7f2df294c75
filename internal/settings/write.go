package settings

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Set writes a setting durably: into its control file, or for service into that service's variable. The value is checked
// first. A running instance takes it over at its next reload. What is a control file by nature is written to one of its own
// for the service, FILE.SERVICE, and the variable names that.
func Set(dir, name, service, text string) error {
	setting, err := Lookup(name)
	if err != nil {
		return err
	}
	l := newLoader(dir)
	if _, err := setting.check(l, text); err != nil {
		return fmt.Errorf("%s: %w (%s)", setting.Name, err, setting.Help)
	}
	path, err := settingPath(dir, setting, service)
	if err != nil {
		return err
	}
	if service != "" && setting.inFile {
		own := setting.File + "." + service
		if err := writeFile(filepath.Join(dir, "control", own), text+"\n"); err != nil {
			return err
		}
		text = own
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
	remove := []string{path}
	if service != "" && setting.inFile {
		own := setting.File + "." + service
		if named, err := readValue(path, false); err == nil && named == own {
			remove = append(remove, filepath.Join(dir, "control", own))
		}
	}
	for _, one := range remove {
		if err := os.Remove(one); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// ValidService tells whether name can be a service's: a kind, or a kind, a dot and the instance's name.
func ValidService(name string) bool {
	return name != "" && len(name) <= 64 && !strings.HasPrefix(name, ".") && !strings.HasSuffix(name, ".") &&
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") == ""
}

// ServiceDirectory gives the path of a service's directory in the data directory dir: under IndiMail's name when that is there.
func ServiceDirectory(dir, service string) string {
	entries, err := os.ReadDir(filepath.Join(dir, "services"))
	if err == nil {
		for _, entry := range entries {
			if ServiceName(entry.Name()) == service && !strings.HasPrefix(entry.Name(), ".") {
				return filepath.Join(dir, "services", entry.Name())
			}
		}
	}
	return filepath.Join(dir, "services", service)
}

func settingPath(dir string, s *Setting, service string) (string, error) {
	if service == "" {
		if s.File == "" {
			return "", fmt.Errorf("%s has no control file: set it for a service, with --service %s", s.Name, s.Services[0])
		}
		return filepath.Join(dir, "control", s.File), nil
	}
	if !ValidService(service) {
		return "", fmt.Errorf("%q is no name of a service", service)
	}
	kind, _, _ := strings.Cut(service, ".")
	if !slices.Contains(s.Services, "all") && !slices.Contains(s.Services, kind) {
		return "", fmt.Errorf("%s is read by %s, not by %s", s.Name, strings.Join(s.Services, ", "), service)
	}
	return filepath.Join(ServiceDirectory(dir, service), "variables", s.Name), nil
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
	// A file keeps the owner and the mode that it had.
	if info, err := os.Stat(path); err == nil {
		if err := keepOwner(f, info); err != nil {
			f.Close()
			return err
		}
	}
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

// AddLine adds a line to a control file that has none like it; RemoveLine takes it out. A file that is left empty is removed.
func AddLine(dir, file, line string) error {
	return editLines(filepath.Join(dir, "control", file), func(lines []string) []string {
		if slices.Contains(lines, line) {
			return lines
		}
		return append(lines, line)
	})
}

// RemoveLine is AddLine's counterpart.
func RemoveLine(dir, file, line string) error {
	return editLines(filepath.Join(dir, "control", file), func(lines []string) []string {
		return slices.DeleteFunc(lines, func(one string) bool { return one == line })
	})
}

func editLines(path string, edit func([]string) []string) error {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	before := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(text) == 0 {
		before = nil
	}
	after := edit(slices.Clone(before))
	switch {
	case slices.Equal(before, after):
		return nil
	case len(after) == 0:
		return os.Remove(path)
	}
	return writeFile(path, strings.Join(after, "\n")+"\n")
}
