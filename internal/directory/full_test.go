package directory

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A disk without room is named as what it is, though SQLite calls it an I/O error; with room again the directory is as it was.
func TestOpenFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m,mode=0700"); err != nil {
		if os.Getenv("INDIGO_REQUIRE_PEERS") != "" {
			t.Fatalf("INDIGO_REQUIRE_PEERS is set: cannot mount a tmpfs: %v", err)
		}
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	config := Config{Path: filepath.Join(dir, "db"), MailRoot: filepath.Join(dir, "domains"), Now: time.Now, Secrets: asGiven{}}
	s, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AddDomain(t.Context(), "example.org"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	fill := filepath.Join(dir, "fill")
	if err := os.WriteFile(fill, make([]byte, 8<<20), 0o600); err == nil {
		t.Fatal("8 MiB fit into 4 MiB")
	}
	if s, err := Open(t.Context(), config); err == nil || !strings.Contains(err.Error(), "its file system is full") {
		if err == nil {
			s.Close()
		}
		t.Errorf("opened on a full disk: %v", err)
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	s, err = Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Domain(t.Context(), "example.org"); err != nil {
		t.Error(err)
	}
}
