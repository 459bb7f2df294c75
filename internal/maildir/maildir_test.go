package maildir

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		sub, name string
		want      Entry
		base, uid string
	}{
		{"cur", "1.Q2R0.host,S=10,W=12:2,SF", Entry{Size: 10, WireSize: 12, Flags: "FS"}, "1.Q2R0.host,S=10,W=12", "1.Q2R0.host"},
		{"new", "1.host", Entry{Size: -1, WireSize: -1}, "1.host", "1.host"},
		{"cur", "1.host,S=x,W=-3:2,SSab/", Entry{Size: -1, WireSize: -1, Flags: "Sab"}, "1.host,S=x,W=-3", "1.host"},
		{"cur", "1.host:1,exp", Entry{Size: -1, WireSize: -1}, "1.host", "1.host"},
		{"cur", "a b", Entry{Size: -1, WireSize: -1}, "a b", "b3ac3ea0bf6ca0ae2a0bd6fa8ca9d0bd7d0f8d09"},
	} {
		tc.want.Name, tc.want.Sub = tc.name, tc.sub
		e := Parse(tc.sub, tc.name)
		if e != tc.want || e.Base() != tc.base {
			t.Errorf("%s: %+v", tc.name, e)
		}
		if got := e.UIDL(); got != tc.uid && !strings.Contains(tc.name, " ") || len(got) > 70 || strings.Contains(got, " ") {
			t.Errorf("%s: UIDL %s", tc.name, got)
		}
	}
}

func TestKey(t *testing.T) {
	k := Key{Birth: time.Unix(17, 5), Queue: "a", ID: 3, Index: 4, Host: "x/y:z,w"}
	if got := k.Base(); got != `17.aQ3R4.x\057y\072z\054w` {
		t.Error(got)
	}
}

func TestCompareNames(t *testing.T) {
	sorted := []string{"9.Q1R0.h", "10.Q2R0.h", "10.Q10R0.h", "10.Q10R1.h", "10.Q10R1.h,S=5", "a", "b"}
	for i, a := range sorted {
		for j, b := range sorted {
			if got := compareNames(a, b); got < 0 != (i < j) || got > 0 != (i > j) {
				t.Errorf("%s %s: %d", a, b, got)
			}
		}
	}
}

func TestConvert(t *testing.T) {
	for _, tc := range []struct{ wire, file, back string }{
		{"", "", ""},
		{"a\r\nb\r\n", "a\nb\n", "a\r\nb\r\n"},
		{"\r\n\r\n", "\n\n", "\r\n\r\n"},
		{"a", "a", "a"},
		{"a\rb\r\n", "a\rb\n", "a\rb\r\n"},
		{"a\nb\r", "a\nb\r", "a\r\nb\r"},
	} {
		file := ToLF([]byte(tc.wire))
		if string(file) != tc.file {
			t.Errorf("%q: file %q", tc.wire, file)
		}
		for _, r := range []io.Reader{bytes.NewReader(file), iotest.OneByteReader(bytes.NewReader(file))} {
			back, err := io.ReadAll(iotest.HalfReader(NewWireReader(r)))
			if err != nil || string(back) != tc.back {
				t.Errorf("%q: back %q %v", tc.wire, back, err)
			}
		}
		n, err := CountWire(iotest.OneByteReader(bytes.NewReader(file)))
		if err != nil || int(n) != len(tc.back) {
			t.Errorf("%q: counted %d %v", tc.wire, n, err)
		}
	}
}

func FuzzWireReader(f *testing.F) {
	f.Add([]byte("a\r\nb\n\r\r\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		whole, err := io.ReadAll(NewWireReader(bytes.NewReader(file)))
		if err != nil {
			t.Fatal(err)
		}
		bit, err := io.ReadAll(iotest.OneByteReader(NewWireReader(iotest.OneByteReader(bytes.NewReader(file)))))
		if err != nil || !bytes.Equal(whole, bit) {
			t.Fatalf("%q and %q", whole, bit)
		}
		if n, err := CountWire(bytes.NewReader(file)); err != nil || int(n) != len(whole) {
			t.Fatalf("counted %d of %d, %v", n, len(whole), err)
		}
		if bytes.Contains(bytes.ReplaceAll(whole, crlf, nil), lf) {
			t.Fatalf("bare LF in %q", whole)
		}
	})
}

func TestFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a/b/Maildir")
	if list, err := Scan(path); err != nil || len(list) != 0 {
		t.Fatal(list, err)
	}
	d, err := OpenDrop(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var entries []Entry
	for i := range 3 {
		k := Key{Birth: time.Unix(100, 0), ID: uint64(9 + i), Host: "h"}
		f, err := d.NewFile(k.Base())
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Append([]byte("a\n"), nil, []byte("b\n")); err != nil {
			t.Fatal(err)
		}
		e, err := f.Commit()
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	if f, err := d.NewFile("100.Q9R0.h"); err != nil {
		t.Fatal(err)
	} else if f.Append([]byte("a\nb\n")) != nil {
		t.Fatal("append")
	} else if _, err := f.Commit(); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("a message was replaced: %v", err)
	}
	list, err := Scan(path)
	if err != nil || len(list) != 3 || list[0] != entries[0] || list[2] != entries[2] || list[0].WireSize != 6 {
		t.Fatal(list, err)
	}
	// Another program changes the flags; the old entry still leads to the message.
	if _, err := SetFlags(path, list[1], "SF"); err != nil {
		t.Fatal(err)
	}
	m, err := Open(path, list[1])
	if err != nil || m.Entry.Flags != "FS" || m.Entry.Sub != "cur" {
		t.Fatal(m, err)
	}
	m.Close()
	e, err := SetFlags(path, list[1], "")
	if err != nil || e.Name != "100.Q10R0.h,S=4,W=6:2," {
		t.Fatal(e, err)
	}
	for range 2 {
		if err := Remove(path, list[1]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(path, list[1]); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	again, err := Scan(path)
	if err != nil || len(again) != 2 || again[0] != entries[0] || again[1] != entries[2] {
		t.Fatal(again, err)
	}
	if err := os.WriteFile(filepath.Join(path, "new/1.x"), []byte("\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := WireSize(path, Parse("new", "1.x")); err != nil || n != 4 {
		t.Fatal(n, err)
	}
}
