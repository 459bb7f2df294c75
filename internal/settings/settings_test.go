package settings

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLayers(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "control/databytes", "1000\n")
	write(t, dir, "control/relayclients", "# ours\n10.0.0.:\n\n192.168.1.1:\n")
	write(t, dir, "services/smtpd.25/variables/DATABYTES", "2000")
	write(t, dir, "services/smtpd.465/variables/DATABYTES", "")
	write(t, dir, "services/smtpd.25/variables/DATABITES", "2000")
	s, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	for service, want := range map[string]struct {
		bytes  int
		source string
	}{
		"smtpd.25":  {2000, "services/smtpd.25/variables/DATABYTES:1"},
		"smtpd.465": {0, "services/smtpd.465/variables/DATABYTES:1"},
		"smtpd.587": {1000, "control/databytes:1"},
	} {
		v := s.View(service)
		if got := DataBytes.Get(v); got != want.bytes || v.Source(DataBytes.Setting).String() != want.source {
			t.Errorf("%s: %d from %s", service, got, v.Source(DataBytes.Setting))
		}
	}
	v := s.View("smtpd.25")
	if got := RelayClients.Get(v); strings.Join(got, " ") != "10.0.0.: 192.168.1.1:" {
		t.Errorf("list %q", got)
	}
	if got := v.Source(MaxHops.Setting).String(); got != "default" || MaxHops.Get(v) != 100 || MaxHops.Get(nil) != 100 {
		t.Errorf("default: %s %d", got, MaxHops.Get(v))
	}
	if len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0].String(), "nearest is DATABYTES") {
		t.Errorf("warnings %v", s.Warnings)
	}
}

func TestEveryProblemIsNamed(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "control/databytes", "many\n")
	write(t, dir, "control/concurrencylocal", "501\n")
	write(t, dir, "services/smtpd.25/variables/BARE_NEWLINE", "maybe")
	_, err := Load(dir)
	if err == nil {
		t.Fatal("loaded")
	}
	for _, want := range []string{"control/databytes:1: DATABYTES: \"many\"", "from 0 to 500", "variables/BARE_NEWLINE:1:", "one of reject, accept"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in:\n%v", want, err)
		}
	}
}

func TestSet(t *testing.T) {
	dir := t.TempDir()
	if err := Set(dir, "databytes", "", "x"); err == nil {
		t.Error("a malformed value was written")
	}
	if err := Set(dir, "DATABYTES", "pop3d.110", "1"); err == nil {
		t.Error("a service that does not read it was accepted")
	}
	if err := Set(dir, "DATABYTES", "../x", "1"); err == nil {
		t.Error("a path was accepted as service")
	}
	if err := Set(dir, "RELAYCLIENTS", "smtpd.25", "10.1.:\n10.2.3.4:"); err == nil {
		t.Error("a list was written into a directory that is not there")
	}
	write(t, dir, "control/me", "host.example.org\n")
	if err := Set(dir, "RELAYCLIENTS", "smtpd.25", "10.1.:\n10.2.3.4:"); err != nil {
		t.Fatal(err)
	}
	s, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := RelayClients.Get(s.View("smtpd.25")); len(got) != 2 {
		t.Errorf("%q", got)
	}
	if err := Unset(dir, "RELAYCLIENTS", "smtpd.25"); err != nil {
		t.Fatal(err)
	}
	if s, _ = Load(dir); len(RelayClients.Get(s.View("smtpd.25"))) != 0 {
		t.Error("not unset")
	}
	if _, err := os.Stat(filepath.Join(dir, "control/relayclients.smtpd.25")); err == nil {
		t.Error("the service's own file is left behind")
	}
}

func TestTable(t *testing.T) {
	for _, s := range All() {
		if s.Help == "" || strings.Contains(s.Help, "|") || len(s.Services) == 0 {
			t.Errorf("%s: without help or services, or a bar in the help", s.Name)
		}
	}
	for _, name := range []string{"DATABYTES", "databytes", "DATASIZE", "control/databytes"} {
		if s, err := Lookup(name); err != nil || s != DataBytes.Setting {
			t.Errorf("Lookup(%s) = %v, %v", name, s, err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	s, err := Load(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	v := s.View("smtpd.25")
	for b.Loop() {
		DataBytes.Get(v)
	}
}
