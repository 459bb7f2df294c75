package directory

import (
	"os"
	"testing"
	"time"
)

// TestMoveCutShort: a move that ended before the table knew, or in the middle of a copy, is finished by the same call again.
func TestMoveCutShort(t *testing.T) {
	s := open(t, t.TempDir(), time.Now)
	ctx := t.Context()
	furnish(t, s)
	ann := address(t, "ann@d.test")
	far, err := os.MkdirTemp("/dev/shm", "indigo")
	if err != nil {
		far = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(far) })
	first := home(t, s, "ann@d.test")
	write(t, first+"/Maildir/new/1.x", "one")
	check := func(to string, names ...string) {
		t.Helper()
		if home(t, s, "ann@d.test") != to {
			t.Errorf("home %s, want %s", home(t, s, "ann@d.test"), to)
		}
		for _, name := range names {
			if text, err := os.ReadFile(to + "/Maildir/" + name); err != nil || len(text) == 0 {
				t.Error(name, err)
			}
		}
	}
	move := func(to string) {
		t.Helper()
		if _, _, err := s.MoveUser(ctx, ann, to); err != nil {
			t.Fatal(err)
		}
	}
	for _, to := range []string{t.TempDir() + "/near", far + "/a"} {
		from := home(t, s, "ann@d.test")
		if err := s.switchHome(ctx, from, to); err != nil {
			t.Fatal(err)
		}
		// The old path leads there meanwhile.
		check(from, "new/1.x")
		move(to)
		check(to, "new/1.x")
	}
	// In the middle of a copy to another file system: some is there, some is old, and then mail comes to the home that still counts.
	from, to := far+"/a", first+"-new"
	write(t, to+"/"+copyMark, from)
	write(t, to+"/Maildir/new/1.x", "o")
	write(t, from+"/Maildir/cur/2.x:2,S", "two")
	move(to)
	check(to, "new/1.x", "cur/2.x:2,S")
	if text, err := os.ReadFile(to + "/Maildir/new/1.x"); err != nil || string(text) != "one" {
		t.Errorf("%q %v", text, err)
	}
	// Behind the commit: what came into the old home is still to be moved.
	write(t, from+former+"/Maildir/new/3.x", "three")
	if err := os.MkdirAll(from+former+"/Maildir/tmp", 0o700); err != nil {
		t.Fatal(err)
	}
	move(to)
	check(to, "new/1.x", "cur/2.x:2,S", "new/3.x")
	if _, err := os.Lstat(from + former); err == nil {
		t.Error("the old home is there")
	}
	if _, err := os.Lstat(to + "/" + copyMark); err == nil {
		t.Error("the mark is there")
	}
	// What is somebody's or has something in it is refused.
	busy := t.TempDir()
	write(t, busy+"/file", "x")
	for _, dir := range []string{busy, home(t, s, "bob@d.test"), to + "/inside", "relative", "/"} {
		if _, _, err := s.MoveUser(ctx, ann, dir); err == nil {
			t.Errorf("moved to %s", dir)
		}
	}
	check(to, "new/1.x")
}
