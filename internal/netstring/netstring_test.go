package netstring

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestRead(t *testing.T) {
	for _, tc := range []struct {
		in, want string
		err      error
	}{
		{"5:hello,", "hello", nil}, {"0:,", "", nil}, {"3:a,b,", "a,b", nil}, {"10:0123456789,", "0123456789", nil},
		{"", "", io.EOF}, {"5", "", io.ErrUnexpectedEOF}, {"5:hell", "", io.ErrUnexpectedEOF}, {"5:hello", "", io.ErrUnexpectedEOF},
		{":,", "", ErrFormat}, {"05:hello,", "", ErrFormat}, {"00:,", "", ErrFormat}, {"-1:,", "", ErrFormat}, {" 1:a,", "", ErrFormat},
		{"1 :a,", "", ErrFormat}, {"1:ab", "", ErrFormat}, {"+1:a,", "", ErrFormat}, {"11:hello world,", "", ErrTooLong},
		{"99999999999999999999999999:", "", ErrTooLong},
	} {
		for _, r := range []io.Reader{strings.NewReader(tc.in), iotest.OneByteReader(strings.NewReader(tc.in))} {
			got, err := Read(bufio.NewReader(r), 10)
			if string(got) != tc.want || !errors.Is(err, tc.err) {
				t.Errorf("%q: %q %v", tc.in, got, err)
			}
		}
	}
}

func TestSeveral(t *testing.T) {
	b := Append(Append(Append(nil, "one"), []byte{}), "three")
	if string(b) != "3:one,0:,5:three," {
		t.Fatalf("%q", b)
	}
	r := bufio.NewReader(bytes.NewReader(b))
	for _, want := range []string{"one", "", "three"} {
		c, err := Open(r, 100)
		if err != nil || c.Len() != int64(len(want)) {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); err != nil || string(got) != want {
			t.Errorf("%q %v", got, err)
		}
	}
	if _, err := Open(r, 100); err != io.EOF {
		t.Error(err)
	}
}

func FuzzNetstring(f *testing.F) {
	for _, s := range []string{"5:hello,", "0:,", "12:hello", "007:x,"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		var again []byte
		for {
			s, err := Read(r, 1000)
			if err != nil {
				break
			}
			again = Append(again, s)
		}
		if !bytes.HasPrefix(b, again) {
			t.Errorf("%q was read as %q", b, again)
		}
	})
}
