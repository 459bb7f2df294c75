package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestReadData(t *testing.T) {
	for _, c := range []struct {
		name, in, out, rest string
		accept              bool
		limit               int64
		err                 error
	}{
		{name: "plain", in: "a\r\nb\r\n.\r\nQUIT\r\n", out: "a\r\nb\r\n", rest: "QUIT\r\n"},
		{name: "empty", in: ".\r\n", out: ""},
		{name: "stuffed", in: "..\r\n.x\r\n...\r\n.\r\n", out: ".\r\nx\r\n..\r\n"},
		{name: "LF.LF", in: "a\n.\nb\r\n.\r\nR", err: ErrBareNewline, rest: "R"},
		{name: "LF.CRLF", in: "a\n.\r\nb\r\n.\r\nR", err: ErrBareNewline, rest: "R"},
		{name: "CR.CR", in: "a\r.\rb\r\n.\r\nR", err: ErrBareNewline, rest: "R"},
		{name: "CRCRLF.CRLF", in: "a\r\r\n.\r\nR", err: ErrBareNewline, rest: "R"},
		{name: "CRLF.LF", in: "a\r\n.\nb\r\n.\r\nR", err: ErrBareNewline, rest: "R"},
		{name: "accepted LF.LF", in: "a\n.\nb\r\n.\r\nR", accept: true, out: "a\r\n.\r\nb\r\n", rest: "R"},
		{name: "accepted LF.CRLF", in: "a\n.\r\nb\r\n.\r\nR", accept: true, out: "a\r\n.\r\nb\r\n", rest: "R"},
		{name: "accepted CRCRLF", in: "a\r\r\n.\r\nR", accept: true, out: "a\r\n\r\n", rest: "R"},
		{name: "limit", in: "aaaa\r\nbbbb\r\n.\r\nR", limit: 8, err: ErrTooLarge, rest: "R"},
		{name: "cut", in: "aaaa\r\n", err: io.ErrUnexpectedEOF},
		{name: "long line", in: strings.Repeat("x", 1000) + "\r\n.\r\n", out: strings.Repeat("x", 1000) + "\r\n"},
		{name: "long line with dot", in: "." + strings.Repeat("x", 1000) + "\r\n.\r\n", out: strings.Repeat("x", 1000) + "\r\n"},
	} {
		for _, oneByte := range []bool{false, true} {
			var src io.Reader = strings.NewReader(c.in)
			if oneByte {
				src = iotest.OneByteReader(src)
			}
			r := NewReader(src, 64)
			var out bytes.Buffer
			_, err := r.ReadData(&out, DataOptions{Limit: c.limit, AcceptBare: c.accept})
			if !errors.Is(err, c.err) {
				t.Errorf("%s: error %v, want %v", c.name, err, c.err)
			}
			if c.err == nil && out.String() != c.out {
				t.Errorf("%s: got %q, want %q", c.name, out.String(), c.out)
			}
			if rest, _ := io.ReadAll(r); c.err != io.ErrUnexpectedEOF && string(rest) != c.rest {
				t.Errorf("%s: rest %q, want %q", c.name, rest, c.rest)
			}
		}
	}
}

func TestReadLine(t *testing.T) {
	r := NewReader(strings.NewReader("a\r\nb\nc\rd\r\n"+strings.Repeat("x", 500)+"\r\ne\r\nf"), 64)
	want := []struct {
		line string
		err  error
	}{{"a", nil}, {"", ErrBareNewline}, {"", ErrBareNewline}, {"", ErrLineTooLong}, {"e", nil}, {"", io.ErrUnexpectedEOF}}
	for i, w := range want {
		line, err := r.ReadLine(64)
		if string(line) != w.line || !errors.Is(err, w.err) {
			t.Errorf("line %d: %q %v, want %q %v", i, line, err, w.line, w.err)
		}
	}
}

// slowReadData is ReadData written so that it is plainly right: byte by byte over the whole input.
func slowReadData(in []byte, accept bool) (out []byte, rest []byte, err error) {
	end := -1
	if bytes.HasPrefix(in, []byte(".\r\n")) {
		end = 0
	} else if i := bytes.Index(in, []byte("\r\n.\r\n")); i >= 0 {
		end = i + 2
	}
	if end < 0 {
		return nil, nil, io.ErrUnexpectedEOF
	}
	data, rest := in[:end], in[end+3:]
	bare := false
	for i := 0; i < len(data); i++ {
		start := i == 0 || i >= 2 && data[i-2] == '\r' && data[i-1] == '\n'
		switch c := data[i]; {
		case c == '.' && start:
		case c == '\r' && i+1 < len(data) && data[i+1] == '\n':
			out = append(out, "\r\n"...)
			i++
		case c == '\r' || c == '\n':
			bare = true
			out = append(out, "\r\n"...)
		default:
			out = append(out, c)
		}
	}
	if bare && !accept {
		return nil, rest, ErrBareNewline
	}
	return out, rest, nil
}

func FuzzReadData(f *testing.F) {
	for _, s := range []string{"a\r\n.\r\n", "..\r\n.\r\nx", "a\n.\n\r\n.\r\n", "\r\r\n.\r\n", ".\r.\n\r\n.\r\nQ"} {
		f.Add([]byte(s), true, true)
		f.Add([]byte(s), false, false)
	}
	f.Fuzz(func(t *testing.T, in []byte, accept, oneByte bool) {
		var src io.Reader = bytes.NewReader(in)
		if oneByte {
			src = iotest.OneByteReader(src)
		}
		r := NewReader(src, 64)
		var out bytes.Buffer
		_, err := r.ReadData(&out, DataOptions{AcceptBare: accept})
		wantOut, wantRest, wantErr := slowReadData(in, accept)
		if !errors.Is(err, wantErr) {
			t.Fatalf("error %v, want %v", err, wantErr)
		}
		if wantErr == io.ErrUnexpectedEOF {
			return
		}
		if rest, _ := io.ReadAll(r); !bytes.Equal(rest, wantRest) {
			t.Fatalf("rest %q, want %q", rest, wantRest)
		}
		if wantErr == nil && !bytes.Equal(out.Bytes(), wantOut) {
			t.Fatalf("got %q, want %q", out.Bytes(), wantOut)
		}
		if wantErr == nil {
			// What is sent on comes out again as it was.
			var sent, back bytes.Buffer
			if err := WriteDotStuffed(&sent, bytes.NewReader(wantOut)); err != nil {
				t.Fatal(err)
			}
			if _, err := NewReader(&sent, 64).ReadData(&back, DataOptions{}); err != nil {
				t.Fatal(err)
			}
			if got := back.Bytes(); !bytes.Equal(got, wantOut) && !bytes.Equal(got, append(wantOut, "\r\n"...)) {
				t.Fatalf("sent on: %q, want %q", got, wantOut)
			}
		}
	})
}
