package service

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMultilog(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	now := time.Unix(1700000000, 5)
	m, err := OpenMultilog(dir, 4096, 3, func() time.Time { now = now.Add(time.Second); return now })
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		if _, err := fmt.Fprintf(m, "line %d of some length, so that the files fill\nand another\n", i); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	old, _ := filepath.Glob(filepath.Join(dir, "@*"))
	if len(old) != 3 {
		t.Fatalf("%d old files: %v", len(old), old)
	}
	for _, f := range append(old, filepath.Join(dir, "current")) {
		info, err := os.Stat(f)
		if err != nil || info.Size() > 4096 || info.Mode().Perm()&0o100 == 0 {
			t.Errorf("%s: %v %v", f, info, err)
		}
		text, _ := os.ReadFile(f)
		if len(text) == 0 || text[len(text)-1] != '\n' || !strings.HasPrefix(string(text), "line ") && !strings.HasPrefix(string(text), "and ") {
			t.Errorf("%s does not hold whole lines", f)
		}
	}
	lines, err := ReadMultilog(dir, 150)
	if err != nil || len(lines) != 150 || lines[149] != "and another" || lines[148] != "line 999 of some length, so that the files fill" {
		t.Errorf("%d lines, %v", len(lines), err)
	}
	if _, err := m.Write([]byte("x\n")); err == nil {
		t.Error("a closed log took a line")
	}
	// It goes on where it stopped.
	if m, err = OpenMultilog(dir, 4096, 3, time.Now); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(m, "again")
	m.Close()
	if lines, _ := ReadMultilog(dir, 2); lines[0] != "and another" || lines[1] != "again" {
		t.Errorf("%q", lines)
	}
}

// daemontools' own program reads our times, and goes on with our directory.
func TestMultilogOfOthers(t *testing.T) {
	if _, err := exec.LookPath("tai64nlocal"); err != nil {
		if os.Getenv("INDIGO_REQUIRE_PEERS") != "" {
			t.Fatal("no tai64nlocal (Debian package daemontools)")
		}
		t.Skip("no tai64nlocal (Debian package daemontools)")
	}
	at := time.Date(2026, 11, 21, 10, 20, 30, 123456789, time.UTC)
	cmd := exec.Command("tai64nlocal")
	cmd.Env = []string{"TZ=UTC", "PATH=" + os.Getenv("PATH")}
	cmd.Stdin = strings.NewReader(TAI64N(at) + " text\n")
	out, err := cmd.Output()
	if err != nil || string(out) != "2026-11-21 10:20:30.123456789 text\n" {
		t.Errorf("%s reads as %q, %v", TAI64N(at), out, err)
	}
	dir := t.TempDir()
	m, err := OpenMultilog(dir, 4096, 3, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(m, "ours")
	m.Close()
	cmd = exec.Command("multilog", dir)
	cmd.Stdin = strings.NewReader("theirs\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(dir, "current"))
	if err != nil || string(text) != "ours\ntheirs\n" {
		t.Errorf("%q %v", text, err)
	}
	if m, err = OpenMultilog(dir, 4096, 3, time.Now); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(m, "ours again")
	m.Close()
	if lines, err := ReadMultilog(dir, 9); err != nil || strings.Join(lines, " ") != "ours theirs ours again" {
		t.Errorf("%q %v", lines, err)
	}
}
