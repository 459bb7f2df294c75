package maildir

import (
	"bytes"
	"io"
)

// countLF counts the bytes that p grows by when its LF line ends become CRLF; last is the byte before p.
func countLF(p []byte, last byte) int64 {
	n := int64(bytes.Count(p, lf)) - int64(bytes.Count(p, crlf))
	if len(p) > 0 && p[0] == '\n' && last == '\r' {
		n--
	}
	return n
}

var (
	lf   = []byte{'\n'}
	crlf = []byte{'\r', '\n'}
)

// ToLF makes CRLF line ends LF, in place, and gives the shorter slice. A CR elsewhere stays.
func ToLF(p []byte) []byte {
	i := bytes.Index(p, crlf)
	if i < 0 {
		return p
	}
	out := i
	for i < len(p) {
		p[out] = '\n'
		out++
		i += 2
		j := bytes.Index(p[i:], crlf)
		if j < 0 {
			out += copy(p[out:], p[i:])
			break
		}
		out += copy(p[out:], p[i:i+j])
		i += j
	}
	return p[:out]
}

// wireReader gives what it reads with CRLF line ends. An LF that has its CR already stays as it is.
type wireReader struct {
	r    io.Reader
	buf  []byte
	in   []byte // read, not yet given
	last byte   // last byte given
	err  error
}

// NewWireReader turns a stored message, with LF line ends, into wire form, with CRLF line ends.
func NewWireReader(r io.Reader) io.Reader { return &wireReader{r: r, buf: make([]byte, 32<<10)} }

// Read implements io.Reader.
func (w *wireReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(w.in) == 0 {
		if w.err != nil {
			return 0, w.err
		}
		var n int
		n, w.err = w.r.Read(w.buf)
		w.in = w.buf[:n]
	}
	out := 0
	for out < len(p) && len(w.in) > 0 {
		if w.in[0] == '\n' {
			if w.last != '\r' {
				p[out] = '\r'
				w.last = '\r'
				out++
				continue
			}
			p[out] = '\n'
			w.last = '\n'
			out++
			w.in = w.in[1:]
			continue
		}
		run := bytes.IndexByte(w.in, '\n')
		if run < 0 {
			run = len(w.in)
		}
		n := copy(p[out:], w.in[:run])
		out += n
		w.last = w.in[n-1]
		w.in = w.in[n:]
	}
	return out, nil
}
