package cdb

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func build(t testing.TB, records ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "x.cdb")
	w, err := Create(name, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(records); i += 2 {
		if err := w.Add([]byte(records[i]), []byte(records[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestLookUp(t *testing.T) {
	r, err := Open(build(t, "one", "Hello", "two", "Goodbye", "one", "again", "", "empty key", "no value", ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		key   string
		n     int
		value string
		found bool
	}{
		{"one", 0, "Hello", true}, {"one", 1, "again", true}, {"one", 2, "", false}, {"two", 0, "Goodbye", true},
		{"three", 0, "", false}, {"", 0, "empty key", true}, {"no value", 0, "", true},
	} {
		v, found, err := r.GetN([]byte(c.key), c.n)
		if err != nil || found != c.found || string(v) != c.value {
			t.Errorf("GetN(%q, %d) = %q, %v, %v", c.key, c.n, v, found, err)
		}
	}
	var all []string
	for record, err := range r.All() {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(record.Key)+"="+string(record.Value))
	}
	if got := strings.Join(all, " "); got != "one=Hello two=Goodbye one=again =empty key no value=" {
		t.Errorf("All gives %s", got)
	}
}

// The example of cdbmake's manual page, and the text form both ways.
func TestText(t *testing.T) {
	const text = "+3,5:one->Hello\n+3,7:two->Goodbye\n\n"
	name := filepath.Join(t.TempDir(), "x.cdb")
	w, err := Create(name, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := ReadText(strings.NewReader(text), w); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	r, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := WriteText(&out, r); err != nil || out.String() != text {
		t.Errorf("%q, %v", out.String(), err)
	}
	for _, bad := range []string{"", "+1,1:a->b\n", "x", "+,1:a->b\n\n", "+1,1:a=>b\n\n", "+9,1:a->b\n\n", "+1,99999999999:a->b\n\n", "+1,1:a->bb\n\n"} {
		w, err := Create(name, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := ReadText(strings.NewReader(bad), w); err == nil {
			t.Errorf("%q was taken", bad)
		}
		w.Abort()
	}
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(name), ".*"))
	if len(left) > 0 {
		t.Errorf("Abort leaves %v", left)
	}
}

// Files go both ways between us and tinycdb, which many systems have in the place of Bernstein's programs.
func TestOtherPrograms(t *testing.T) {
	if _, err := exec.LookPath("cdb"); err != nil {
		if os.Getenv("INDIGO_REQUIRE_PEERS") != "" {
			t.Fatal("no cdb program (Debian package tinycdb)")
		}
		t.Skip("no cdb program (Debian package tinycdb)")
	}
	var text bytes.Buffer
	for i := range 5000 {
		key := fmt.Sprintf("key%d", i%4000)
		value := strings.Repeat("v", i%50)
		fmt.Fprintf(&text, "+%d,%d:%s->%s\n", len(key), len(value), key, value)
	}
	text.WriteByte('\n')
	dir := t.TempDir()
	theirs, ours := filepath.Join(dir, "theirs.cdb"), filepath.Join(dir, "ours.cdb")
	make := exec.Command("cdb", "-c", theirs)
	make.Stdin = bytes.NewReader(text.Bytes())
	if out, err := make.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r, err := Open(theirs)
	if err != nil {
		t.Fatal(err)
	}
	var read bytes.Buffer
	if err := WriteText(&read, r); err != nil || !bytes.Equal(read.Bytes(), text.Bytes()) {
		t.Errorf("their file reads otherwise: %v", err)
	}
	w, err := Create(ours, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if err := ReadText(bytes.NewReader(text.Bytes()), w); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	dump, err := exec.Command("cdb", "-d", ours).Output()
	if err != nil || !bytes.Equal(dump, text.Bytes()) {
		t.Errorf("they read our file otherwise: %v", err)
	}
	for _, key := range []string{"key0", "key3999"} {
		out, err := exec.Command("cdb", "-q", ours, key).Output()
		v, found, ferr := r.Get([]byte(key))
		if err != nil || ferr != nil || !found || string(out) != string(v) {
			t.Errorf("%s: they find %q %v, we %q %v", key, out, err, v, ferr)
		}
	}
}

// The file that is being read goes on to answer after it was replaced; permissions hold.
func TestReplace(t *testing.T) {
	name := build(t, "k", "old")
	r, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	w, err := Create(name, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	w.Add([]byte("k"), []byte("new"))
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if v, _, _ := r.Get([]byte("k")); string(v) != "old" {
		t.Errorf("the open reader gives %q", v)
	}
	r, err = Open(name)
	if err != nil {
		t.Fatal(err)
	}
	if v, _, _ := r.Get([]byte("k")); string(v) != "new" {
		t.Errorf("a new reader gives %q", v)
	}
	if info, _ := os.Stat(name); info.Mode().Perm() != 0o640 {
		t.Errorf("mode %o", info.Mode().Perm())
	}
}

// FuzzReader gives arbitrary bytes as a database: errors, never a fault.
// TestDamage: a record that reaches into the hash tables is damage, not the last one.
func TestDamage(t *testing.T) {
	name := build(t, "one", "Hello", "two", "Goodbye")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	text[headerSize+4] += 40
	if err := os.WriteFile(name+".damaged", text, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Open(name + ".damaged")
	if err != nil {
		t.Fatal(err)
	}
	for _, err = range r.All() {
	}
	if !errors.Is(err, ErrFormat) {
		t.Errorf("damaged: %v", err)
	}
}

func FuzzReader(f *testing.F) {
	good, err := os.ReadFile(build(f, "one", "Hello", "two", "Goodbye"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, []byte("one"))
	f.Add(good[:headerSize], []byte("two"))
	f.Add(bytes.Repeat([]byte{0xff}, 4096), []byte("x"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, file, key []byte) {
		name := filepath.Join(dir, "f.cdb")
		if err := os.WriteFile(name+".new", file, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
		r, err := Open(name)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		r.Get(key)
		for range r.All() {
		}
	})
}

func BenchmarkMillion(b *testing.B) {
	name := filepath.Join(b.TempDir(), "m.cdb")
	w, err := Create(name, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	key := func(i int) []byte { return fmt.Appendf(nil, "user%d@example%d.org", i, i%1000) }
	for i := range 1000000 {
		w.Add(key(i), nil)
	}
	if err := w.Commit(); err != nil {
		b.Fatal(err)
	}
	r, err := Open(name)
	if err != nil {
		b.Fatal(err)
	}
	keys := make([][]byte, 1<<16)
	for i := range keys {
		keys[i] = key(i * 15)
		if i%2 == 0 {
			keys[i] = append(keys[i], 'x')
		}
	}
	i := 0
	for b.Loop() {
		if found, err := r.Has(keys[i&0xffff]); err != nil || found != (i&1 == 1) {
			b.Fatal(found, err)
		}
		i++
	}
}
