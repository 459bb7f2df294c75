package maildir

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseQuota(t *testing.T) {
	for text, want := range map[string]Quota{
		"": {}, "NOQUOTA": {}, "0": {}, "0S": {}, "52428800": {52428800, 0}, "52428800S": {52428800, 0}, "52428800S,1000C": {52428800, 1000},
		"1000C": {0, 1000}, "50M": {50 << 20, 0}, "2kS,3C": {2048, 3}, "999999999999999999": {most, 0}, "9223372036854775807G": {most &^ (1<<30 - 1), 0},
	} {
		if q, err := ParseQuota(text); err != nil || q != want {
			t.Errorf("%q: %v %v, want %v", text, q, err, want)
		}
	}
	for _, text := range []string{"x", "-1", "1,2", "1S2", "S", ",", "1S,", "1.5", "M", "1CC", "99999999999999999999"} {
		if q, err := ParseQuota(text); err == nil {
			t.Errorf("%q is %v", text, q)
		}
	}
	for q, want := range map[Quota]string{{}: "0S", {5, 0}: "5S", {5, 7}: "5S,7C", {0, 7}: "7C"} {
		if q.String() != want {
			t.Errorf("%s, want %s", q, want)
		}
		if again, err := ParseQuota(want); err != nil || again != q {
			t.Errorf("%s: %v %v", want, again, err)
		}
	}
	if p := (Quota{100, 10}).Percent(Use{50, 9}); p != 90 {
		t.Error(p)
	}
}

func TestParseSizes(t *testing.T) {
	for text, want := range map[string]sizes{
		"10S,2C\n5 1\n":                         {Quota{10, 2}, Use{5, 1}, 1, true, false},
		"0S\n0 0\n":                             {Quota{}, Use{}, 1, true, false},
		"7C\n5 1\n      100       1\n-5 -1\n":   {Quota{0, 7}, Use{100, 1}, 3, true, false},
		"10S\n5 1\n-6 -1\n":                     {Quota{10, 0}, Use{-1, 0}, 2, false, false},
		"10S\n5 1\n5":                           {},
		"10S\n":                                 {},
		"":                                      {},
		"10S\nx 1\n":                            {},
		"10S\n5 1 1\n":                          {},
		"10X\n5 1\n":                            {},
		"\n5 1\n":                               {},
		"10S\n\x00\x00\x00\n":                   {},
		"10S\n99999999999999999999 1\n":         {},
		"10S\n" + strings.Repeat("1 1\n", 1279): {Quota{10, 0}, Use{1279, 1279}, 1279, false, true},
	} {
		if got := parseSizes([]byte(text)); got != want && (got.sound || want.sound || got.long) {
			t.Errorf("%.40q: %+v, want %+v", text, got, want)
		}
	}
}

func FuzzSizes(f *testing.F) {
	for _, text := range []string{"10S,2C\n5 1\n-3 -1\n", "0S\n\n", "1C\n 1  1\n", "x", "10S\n9223372036854775807 1\n1 1\n", "\x00"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := parseSizes(b)
		if !s.sound {
			return
		}
		if s.use.Bytes < 0 || s.use.Messages < 0 || s.lines < 1 || len(b) >= maxSizes {
			t.Fatalf("%+v", s)
		}
		short := fmt.Sprintf("%s\n%d %d\n", s.quota, s.use.Bytes, s.use.Messages)
		if again := parseSizes([]byte(short)); s.use.Bytes <= most && s.use.Messages <= most && (!again.sound || again.use != s.use || again.quota != s.quota) {
			t.Fatalf("%q: %+v, then %+v", short, s, again)
		}
	})
}

func FuzzQuota(f *testing.F) {
	for _, text := range []string{"NOQUOTA", "52428800S,1000C", "1000C", "5G", "99999999999999999999S"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := ParseQuota(s)
		if err != nil {
			return
		}
		if q.Bytes < 0 || q.Messages < 0 {
			t.Fatalf("%q: %+v", s, q)
		}
		if again, err := ParseQuota(q.String()); err != nil || again != q {
			t.Fatalf("%q: %+v, then %+v %v", s, q, again, err)
		}
	})
}

// put delivers a message of n bytes.
func put(t testing.TB, d *Drop, base string, n int, q Quota) (Placed, error) {
	t.Helper()
	f, err := d.NewFile(base)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Append([]byte(strings.Repeat("x", n))); err != nil {
		t.Fatal(err)
	}
	p, _, err := f.CommitWithin(q)
	return p, err
}

// agree fails unless maildirsize says what is there.
func agree(t *testing.T, path string) Use {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path, sizeFile))
	if err != nil {
		t.Fatal(err)
	}
	there, whole, err := count(path, 1<<30)
	if s := parseSizes(b); err != nil || !whole || len(b) < maxSizes && (!s.sound || s.use != there) {
		t.Fatalf("%q, but there are %+v (%v)", b, there, err)
	}
	return there
}

func openTest(t testing.TB) (*Drop, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "Maildir")
	d, err := OpenDrop(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d, path
}

func TestCommitWithin(t *testing.T) {
	d, path := openTest(t)
	if _, err := put(t, d, "1.none", 1000, Quota{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(path, sizeFile)); err == nil {
		t.Fatal("a maildirsize without a quota")
	}
	q := Quota{Bytes: 1500}
	if _, err := put(t, d, "2.fits", 500, q); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(path, sizeFile)); string(b) != "1500S\n1000 1\n500 1\n" {
		t.Fatalf("%q", b)
	}
	if _, err := put(t, d, "3.over", 1, q); !errors.Is(err, ErrOverQuota) {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(filepath.Join(path, "tmp")); len(left) > 0 {
		t.Fatal(left)
	}
	if Room(path, q, 1) || !Room(path, Quota{}, 1) || !Room(path, Quota{Bytes: 2000}, 500) || Room(path, Quota{Bytes: 2000}, 501) {
		t.Fatal("Room")
	}
	list, err := List(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := list[0].Remove(); err != nil {
		t.Fatal(err)
	}
	if err := list[0].Remove(); err != nil { // twice counts once
		t.Fatal(err)
	}
	if u := agree(t, path); u != (Use{500, 1}) {
		t.Fatal(u)
	}
	// By number, and another quota in the file's place.
	if _, err := put(t, d, "4.fits", 10, Quota{Messages: 2}); err != nil {
		t.Fatal(err)
	}
	if _, err := put(t, d, "5.over", 10, Quota{Messages: 2}); !errors.Is(err, ErrOverQuota) {
		t.Fatal(err)
	}
	// Without a quota the file that is there is kept right.
	if _, err := put(t, d, "6.none", 10, Quota{}); err != nil {
		t.Fatal(err)
	}
	agree(t, path)
	if b, n, err := Usage(path); err != nil || b != 520 || n != 3 {
		t.Fatal(b, n, err)
	}
}

// TestLong delivers so much that the file gets too long again and again: its sum replaces it while the last count is young, and a count does
// when it is not.
func TestLong(t *testing.T) {
	d, path := openTest(t)
	q := Quota{Bytes: 1 << 30}
	n := 0
	fill := func() {
		t.Helper()
		for range 900 { // of 6 bytes in the file each
			n++
			if _, err := put(t, d, fmt.Sprint(n), 100, q); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill()
	agree(t, path)
	if err := os.WriteFile(filepath.Join(path, "new/by-another"), []byte("xx"), 0o600); err != nil {
		t.Fatal(err)
	}
	fill()
	if s := peekSizes(path); !s.sound || s.use != (Use{180000, 1800}) {
		t.Fatalf("%+v: counted, or wrong", s)
	}
	d.counted = time.Now().Add(-staleSizes)
	fill()
	if u := agree(t, path); u != (Use{270002, 2701}) {
		t.Fatal(u)
	}
}

// TestFolders counts folders, names that do not tell a size, and only what is a message.
func TestFolders(t *testing.T) {
	d, path := openTest(t)
	for _, folder := range []string{".Sent", ".Trash", ".a.b"} {
		if err := Create(filepath.Join(path, folder)); err != nil {
			t.Fatal(err)
		}
	}
	for name, n := range map[string]int{
		".Sent/cur/1.x,S=10,W=12:2,S": 7, ".Trash/new/2.x,W=12,S=20": 7, ".a.b/cur/3.x:2,T": 30, ".Sent/cur/.nfs": 1000, "tmp/4.x": 1000,
		"dovecot-uidlist": 1000, "cur/5.x,S=oops:2,": 40, "cur/6.x,S=,S=50": 7, "cur/7.x:2,,S=9": 60,
	} {
		if err := os.WriteFile(filepath.Join(path, name), make([]byte, n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(path, filepath.Join(path, ".circle")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(path, "cur/folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	if u, err := Recount(path, Quota{Bytes: 5000}); err != nil || u != (Use{210, 6}) {
		t.Fatal(u, err)
	}
	// A message that leaves a folder leaves the Maildir's maildirsize.
	if err := os.WriteFile(filepath.Join(path, ".Trash/maildirfolder"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := List(filepath.Join(path, ".Trash"))
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if err := list[0].Remove(); err != nil {
		t.Fatal(err)
	}
	if u := agree(t, path); u != (Use{190, 5}) {
		t.Fatal(u)
	}
	_ = d
}

// TestBroken puts everything into the file's place that should not be there; the next delivery makes it anew.
func TestBroken(t *testing.T) {
	q := Quota{Bytes: 100000}
	for name, spoil := range map[string]func(path string) error{
		"missing":  os.Remove,
		"empty":    func(p string) error { return os.Truncate(p, 0) },
		"text":     func(p string) error { return os.WriteFile(p, []byte("hello\nworld\n"), 0o600) },
		"negative": func(p string) error { return os.WriteFile(p, []byte(q.String()+"\n-5 -1\n"), 0o600) },
		"torn":     func(p string) error { return os.WriteFile(p, []byte(q.String()+"\n5 1\n7"), 0o600) },
		"zeros":    func(p string) error { return os.WriteFile(p, make([]byte, 100), 0o600) },
		"huge":     func(p string) error { return os.Truncate(p, 1<<40) },
		"over":     func(p string) error { return os.WriteFile(p, []byte(q.String()+"\n99999 1\n99999 1\n"), 0o600) },
		"old": func(p string) error {
			if err := os.WriteFile(p, []byte(q.String()+"\n999999 1\n"), 0o600); err != nil {
				return err
			}
			old := time.Now().Add(-staleSizes - time.Second)
			return os.Chtimes(p, old, old)
		},
		"folder":  func(p string) error { return errors.Join(os.Remove(p), os.MkdirAll(filepath.Join(p, "x"), 0o700)) },
		"fifo":    func(p string) error { return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o600)) },
		"symlink": func(p string) error { return errors.Join(os.Remove(p), os.Symlink("victim", p)) },
		"link": func(p string) error {
			return errors.Join(os.Remove(p), os.Link(filepath.Join(filepath.Dir(p), "victim"), p))
		},
	} {
		d, path := openTest(t)
		victim := filepath.Join(path, "victim")
		if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := put(t, d, "1.x", 10, q); err != nil {
			t.Fatal(err)
		}
		if err := spoil(filepath.Join(path, sizeFile)); err != nil {
			t.Fatal(name, err)
		}
		if b, n, err := Usage(path); name != "over" && name != "old" && (err != nil || b != 10 || n != 1) {
			t.Errorf("%s: usage %d %d %v", name, b, n, err)
		}
		if !Room(path, q, 10) {
			t.Errorf("%s: no room", name)
		}
		if _, err := put(t, d, "2.x", 10, q); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if u := agree(t, path); u != (Use{20, 2}) {
			t.Errorf("%s: %+v", name, u)
		}
		if b, err := os.ReadFile(victim); err != nil || string(b) != "precious" {
			t.Errorf("%s: the file beside it is %q %v", name, b, err)
		}
	}
	// What a count of a short time ago said is believed for a while: refusals cost a read only.
	d, path := openTest(t)
	if err := os.WriteFile(filepath.Join(path, sizeFile), []byte(q.String()+"\n999999 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := put(t, d, "1.x", 10, q); !errors.Is(err, ErrOverQuota) {
		t.Error(err)
	}
}

// TestHammer lets goroutines of several processes deliver, expunge, set flags and count, with a quota that is hit again and again. The
// quota is never passed, and at the end maildirsize says what is there.
func TestHammer(t *testing.T) {
	const bytes, messages = 20000, 60
	q := Quota{bytes, messages}
	hammer := func(path string, who int) {
		d, err := OpenDrop(path)
		if err != nil {
			t.Error(err)
			return
		}
		defer d.Close()
		var workers sync.WaitGroup
		for worker := range 4 {
			workers.Go(func() {
				r := rand.New(rand.NewPCG(uint64(who), uint64(worker)))
				for i := range 300 {
					switch r.IntN(6) {
					case 0:
						list, err := List(path)
						if err != nil || len(list) == 0 {
							continue
						}
						some := list[r.IntN(len(list)):]
						var gone []*Message
						for i := range some[:min(3, len(some))] {
							gone = append(gone, &some[i])
						}
						if err := errors.Join(Expunge(gone...)...); err != nil {
							t.Error(err)
						}
					case 1:
						if list, err := List(path); err == nil && len(list) > 0 {
							_ = list[r.IntN(len(list))].SetFlags("S") // others may have removed it
						}
					case 2:
						if r.IntN(10) == 0 {
							if _, err := Recount(path, q); err != nil {
								t.Error(err)
							}
						}
						Room(path, q, 100)
					default:
						if _, err := put(t, d, fmt.Sprintf("%d.%d.%d", who, worker, i), 1+r.IntN(900), q); err != nil && !errors.Is(err, ErrOverQuota) {
							t.Error(err)
						}
					}
				}
			})
		}
		workers.Wait()
	}
	if path := os.Getenv("INDIGO_TEST_HAMMER"); path != "" {
		hammer(path, os.Getpid())
		return
	}
	_, path := openTest(t)
	if _, err := Recount(path, q); err != nil {
		t.Fatal(err)
	}
	var processes sync.WaitGroup
	for range 3 {
		processes.Go(func() {
			c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHammer$")
			c.Env = append(os.Environ(), "INDIGO_TEST_HAMMER="+path)
			if out, err := c.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	watching, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-watching:
				return
			default:
			}
			// A reader without the lock may see a message twice while its flags change, but never so many.
			if u, _, err := count(path, 1<<30); err == nil && u.Messages > messages+12 {
				t.Errorf("%+v is more than %s", u, q)
			}
		}
	}()
	hammer(path, 1)
	processes.Wait()
	close(watching)
	<-watched
	u := agree(t, path)
	if !q.Fits(u) || u.Messages == 0 {
		t.Errorf("%+v under %s", u, q)
	}
	// The quota holds to the byte.
	d, err := OpenDrop(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	q.Messages = 0
	if _, err := put(t, d, "last.but.one", int(bytes-u.Bytes), q); err != nil {
		t.Error(err)
	}
	if _, err := put(t, d, "last", 1, q); !errors.Is(err, ErrOverQuota) {
		t.Error(err)
	}
	agree(t, path)
}

func BenchmarkCommit(b *testing.B) {
	for _, q := range []Quota{{}, {Bytes: most}} {
		b.Run(q.String(), func(b *testing.B) {
			d, path := openTest(b)
			i := 0
			for b.Loop() {
				put(b, d, fmt.Sprintf("%d.x", i), 100, q)
				if i++; i%1000 == 0 { // as a mailbox in use, which does not only grow
					b.StopTimer()
					names, _ := readNames(filepath.Join(path, "new"))
					for _, n := range names {
						os.Remove(filepath.Join(path, "new", n))
					}
					b.StartTimer()
				}
			}
		})
	}
}
