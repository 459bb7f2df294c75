package maildir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestKey(t *testing.T) {
	k := Key{Birth: time.Unix(17, 5), Queue: "a", ID: 3, Index: 4, Host: "x/y:z,w"}
	if got := k.Base(); got != `17.aQ3R4.x\057y\072z\054w` {
		t.Error(got)
	}
}

func TestLFInPlace(t *testing.T) {
	for _, tc := range []struct{ wire, file string }{
		{"", ""},
		{"a\r\nb\r\n", "a\nb\n"},
		{"\r\n\r\n", "\n\n"},
		{"a", "a"},
		{"a\rb\r\n", "a\rb\n"},
		{"a\nb\r", "a\nb\r"},
	} {
		if got := LFInPlace([]byte(tc.wire)); string(got) != tc.file {
			t.Errorf("%q: %q, want %q", tc.wire, got, tc.file)
		}
	}
}

// TestFolder drops messages, sees that none is replaced, and changes and removes them as a mail reader does.
func TestFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a/b/Maildir")
	if list, err := List(path); err != nil || len(list) != 0 {
		t.Fatal(list, err)
	}
	d, err := OpenDrop(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	drop := func(id uint64, text string) (Placed, error) {
		t.Helper()
		f, err := d.NewFile(Key{Birth: time.Unix(100, 0), ID: id, Host: "h"}.Base())
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Append([]byte(text), nil, []byte("b\n")); err != nil {
			t.Fatal(err)
		}
		return f.Commit()
	}
	for i, want := range []string{"100.Q17R0.h,S=4,W=6", "100.Q18R0.h,S=4,W=6", "100.Q19R0.h,S=4,W=6"} {
		if p, err := drop(uint64(17+i), "a\n"); err != nil || p != (Placed{"new", want}) {
			t.Fatal(p, err)
		}
	}
	if _, err := drop(17, "x\n"); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("a message was replaced: %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(path, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("left in tmp: %v %v", left, err)
	}
	list, err := List(path)
	if err != nil || len(list) != 3 || list[0].Size != 6 || !list[0].New {
		t.Fatal(list, err)
	}
	old := list[1]
	if err := list[1].SetFlags("SFS"); err != nil || list[1].Flags != "FS" || list[1].New {
		t.Fatal(list[1], err)
	}
	// What was read before the flags changed still leads to the message.
	if text, err := old.Read(); err != nil || string(text) != "a\r\nb\r\n" {
		t.Fatalf("%q %v", text, err)
	}
	if err := list[1].SetFlags(""); err != nil || filepath.Base(list[1].File) != "100.Q18R0.h,S=4,W=6:2," {
		t.Fatal(list[1], err)
	}
	for range 2 {
		if err := list[1].Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if again, err := List(path); err != nil || len(again) != 2 || again[1].Base != list[2].Base {
		t.Fatal(again, err)
	}
	// A name that tells no size is read for it.
	if err := os.WriteFile(filepath.Join(path, "new/1.x"), []byte("\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if list, err = List(path); err != nil || list[0].Base != "1.x" {
		t.Fatal(list, err)
	}
	if n, err := list[0].WireSize(); err != nil || n != 4 {
		t.Fatal(n, err)
	}
	if !d.Current() {
		t.Error("the folder is where it was")
	}
	if err := os.Rename(path, path+".moved"); err != nil || d.Current() {
		t.Errorf("the folder was moved: %v", err)
	}
}
