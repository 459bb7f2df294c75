package directory

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

func TestHomes(t *testing.T) { onEngines(t, testHomes) }

func testHomes(t *testing.T, dsn string) {
	dir := t.TempDir()
	s := openOn(t, dsn, dir, time.Now)
	ctx := t.Context()
	add := func(a string, base string) string {
		t.Helper()
		if err := s.AddUser(ctx, NewUser{Name: address(t, a).Local, Domain: address(t, a).Domain, Base: base}); err != nil {
			t.Fatal(err)
		}
		got := home(t, s, a)
		if _, err := os.Stat(got + "/Maildir/tmp"); err != nil {
			t.Error(err)
		}
		return strings.TrimPrefix(got, dir+"/")
	}
	expect := func(got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("home %s, want %s", got, want)
		}
	}
	// No more than so many in a directory; who is there stays.
	if err := s.MakeDomain(ctx, NewDomain{Name: "d.test", PerLevel: 3}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"", "", "", "AA/", "AA/", "AA/", "AB/"} {
		expect(add(fmt.Sprintf("u%d@d.test", i), ""), fmt.Sprintf("domains/d.test/%su%d", want, i))
	}
	if _, err := s.RemoveUser(ctx, address(t, "u0@d.test")); err != nil {
		t.Fatal(err)
	}
	expect(add("aa@d.test", ""), "domains/d.test/AB/aa")
	// Many at once, some of whom are there.
	var many []NewUser
	for i := range 12 {
		many = append(many, NewUser{Name: fmt.Sprintf("u%d", i), Domain: "d.test"})
	}
	if n, err := s.AddUsers(ctx, many); err != nil || n != 6 {
		t.Fatal(n, err)
	}
	expect(strings.TrimPrefix(home(t, s, "u11@d.test"), dir+"/"), "domains/d.test/AD/u11")
	if entries, err := os.ReadDir(dir + "/domains/d.test/AC"); err != nil || len(entries) != 3 {
		t.Error(entries, err)
	}
	// IndiMail's directories below a base: the user's, the domain's, BASE_PATH.
	expect(add("alice@d.test", dir+"/one"), "one/A2E/d.test/AD/alice")
	if err := s.MakeDomain(ctx, NewDomain{Name: "b.test", Base: dir + "/two"}); err != nil {
		t.Fatal(err)
	}
	for a, want := range map[string]string{"test05@b.test": "T2Zsym", "bob@b.test": "A2E", "frank@b.test": "F2K", "mary@b.test": "L2P", "sue@b.test": "Q2S", "0@b.test": "T2Zsym"} {
		expect(add(a, ""), "two/"+want+"/b.test/"+address(t, a).Local)
	}
	s.config.BasePath = dir + "/three"
	expect(add("x@b.test", ""), "two/T2Zsym/b.test/x")
	if err := s.MakeDomain(ctx, NewDomain{Name: "c.test", Dir: dir + "/own/c.test"}); err != nil {
		t.Fatal(err)
	}
	expect(add("x@c.test", ""), "three/T2Zsym/c.test/x")
	s.config.BasePath = ""
	expect(add("y@c.test", ""), "own/c.test/y")

	// File systems of the table fstab: the one with most room.
	s.config.Host = "mx.test"
	for _, f := range []FileSystem{{Path: dir + "/fs1", MaxUsers: 2, Online: true}, {Path: dir + "/fs2", MaxUsers: 3, Online: true}, {Path: dir + "/fs3", Online: false}, {Path: dir + "/fs4", Host: "other.test", Online: true}} {
		if err := s.AddFileSystem(ctx, f); err != nil {
			t.Fatal(err)
		}
	}
	if s.AddFileSystem(ctx, FileSystem{Path: dir + "/fs1"}) == nil || s.AddFileSystem(ctx, FileSystem{Path: "relative"}) == nil {
		t.Error("added")
	}
	got := map[string]int{}
	for i := range 5 {
		got[strings.SplitN(add(fmt.Sprintf("v%d@c.test", i), ""), "/", 2)[0]]++
	}
	if got["fs1"] != 2 || got["fs2"] != 3 {
		t.Error(got)
	}
	if err := s.AddUser(ctx, NewUser{Name: "full", Domain: "c.test"}); err == nil || !strings.Contains(err.Error(), "has room") {
		t.Error(err)
	}
	// The domain's own base counts before them.
	expect(add("z@b.test", ""), "two/T2Zsym/b.test/z")
	if err := s.ChangeFileSystem(ctx, dir+"/fs3", "", func(f *FileSystem) { f.Online, f.MaxBytes = true, 1<<60 }); err != nil {
		t.Fatal(err)
	}
	expect(add("full@c.test", ""), "fs3/F2K/c.test/full")
	if _, err := s.RemoveUser(ctx, address(t, "v0@c.test")); err != nil {
		t.Fatal(err)
	}
	if err := s.BalanceFileSystems(ctx); err != nil {
		t.Fatal(err)
	}
	all, err := s.FileSystems(ctx)
	if err != nil || len(all) != 4 || all[0].Users+all[1].Users != 4 || all[2].Users != 1 || all[2].Bytes == 0 || !all[2].Online || all[2].MaxBytes != 1<<60 || all[3].Host != "other.test" {
		t.Errorf("%+v %v", all, err)
	}
	for _, f := range all {
		if err := s.RemoveFileSystem(ctx, f.Path, f.Host); err != nil {
			t.Error(err)
		}
	}
	if s.RemoveFileSystem(ctx, dir+"/fs1", "") == nil || s.ChangeFileSystem(ctx, dir+"/fs1", "", func(*FileSystem) {}) == nil {
		t.Error("changed what is not there")
	}
	expect(add("last@c.test", ""), "own/c.test/last")
	// A home that the column does not hold.
	if err := s.AddUser(ctx, NewUser{Name: strings.Repeat("n", 40), Domain: "c.test", Base: "/" + strings.Repeat("b", 114)}); err == nil || !strings.Contains(err.Error(), "156 bytes") {
		t.Error(err)
	}
	for _, n := range []NewDomain{{Name: "q.test", Dir: "relative"}, {Name: "q.test", Base: "/"}, {Name: "q.test", PerLevel: -1}, {Name: "q.test", Dir: dir + "/own/c.test"}} {
		if s.MakeDomain(ctx, n) == nil {
			t.Errorf("%+v", n)
		}
	}
}

func TestLevelDir(t *testing.T) {
	seen := map[string]bool{}
	for n := range 5000 {
		dir, err := levelDir(n)
		if err != nil || seen[dir] {
			t.Fatal(n, dir, err)
		}
		seen[dir] = true
	}
	for n, want := range map[int]string{0: "", 1: "AA", 27: "BA", 676: "ZZ", 677: "AA/AA", 677 + 676: "AB/AA", 676 + 676*676: "ZZ/ZZ"} {
		if got, err := levelDir(n); err != nil || got != filepath.FromSlash(want) {
			t.Error(n, got, err)
		}
	}
	if _, err := levelDir(677 + 676*676); err == nil {
		t.Error("no end")
	}
}

// TestReorganize moves homes out of a directory that holds more than it may, each with its mail, and no others.
func TestReorganize(t *testing.T) { onEngines(t, testReorganize) }

func testReorganize(t *testing.T, dsn string) {
	ctx := t.Context()
	s := openOn(t, dsn, t.TempDir(), time.Now)
	if err := s.MakeDomain(ctx, NewDomain{Name: "example.org", PerLevel: 6}); err != nil {
		t.Fatal(err)
	}
	homes := func() map[string]int {
		t.Helper()
		users, err := s.Users(ctx, "example.org", "", 100)
		if err != nil || len(users) != 6 {
			t.Fatal(len(users), err)
		}
		count := map[string]int{}
		for _, u := range users {
			count[filepath.Dir(u.Dir)]++
			if text, err := os.ReadFile(filepath.Join(u.Dir, "Maildir", "new", "1")); err != nil || string(text) != u.Name {
				t.Errorf("mail of %s: %q %v", u.Name, text, err)
			}
		}
		return count
	}
	for i := range 6 {
		name := fmt.Sprintf("u%d", i)
		if err := s.AddUser(ctx, NewUser{Name: name, Domain: "example.org", Password: "x"}); err != nil {
			t.Fatal(err)
		}
		u, err := s.User(ctx, addr.Address{Local: name, Domain: "example.org"})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(u.Dir, "Maildir", "new", "1"), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := homes(); len(got) != 1 {
		t.Fatalf("%v", got)
	}
	if _, err := s.write.ExecContext(ctx, "UPDATE indigo_domain SET users_per_level = 2"); err != nil {
		t.Fatal(err)
	}
	for run, want := range []int{4, 0} {
		moved := 0
		if err := s.Reorganize(ctx, "example.org", func(addr.Address, string, string) { moved++ }); err != nil || moved != want {
			t.Errorf("run %d: %d moved, want %d: %v", run, moved, want, err)
		}
		got := homes()
		for dir, n := range got {
			if n > 2 {
				t.Errorf("%s has %d homes", dir, n)
			}
		}
		if len(got) != 3 {
			t.Errorf("%v", got)
		}
	}
	if err := s.Reorganize(ctx, "nowhere.test", nil); !errors.Is(err, ErrNoDomain) {
		t.Error(err)
	}
}
