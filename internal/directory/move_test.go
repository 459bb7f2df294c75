package directory

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
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

func TestMoveFromNowhere(t *testing.T) { onEngines(t, testMoveFromNowhere) }

// testMoveFromNowhere gives homes to users of IndiMail's who have none, in both forms of that.
func testMoveFromNowhere(t *testing.T, dsn string) {
	s := openOn(t, dsn, t.TempDir(), time.Now)
	ctx := t.Context()
	if err := s.AddDomain(ctx, "d.test"); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]any{"ann": "", "bob": nil} {
		if err := s.transactionRow(ctx, "indimail", []string{"pw_name", "pw_domain", "pw_passwd", "pw_gecos", "pw_dir"}, name, "d.test", "x", "", dir); err != nil {
			t.Fatal(err)
		}
		from, to, err := s.MoveUser(ctx, addr.Address{Local: name, Domain: "d.test"}, "")
		if err != nil || from != "" || to != filepath.Join(s.config.MailRoot, "d.test", name) || home(t, s, name+"@d.test") != to {
			t.Errorf("%s: from %q to %q, %v", name, from, to, err)
		}
		if _, err := os.Stat(filepath.Join(to, "Maildir", "new")); err != nil {
			t.Error(err)
		}
	}
}
