// Package wire is vocabulary: the lines and the message data of SMTP and its relatives, read with bounds and written with
// dot-stuffing. It must not know any command.
package wire

import (
	"bytes"
	"errors"
	"io"
)

var (
	// ErrLineTooLong says that a line was longer than its limit; the whole line was read and thrown away.
	ErrLineTooLong = errors.New("line too long")
	// ErrBareNewline says that a CR stood without LF or a LF without CR (RFC 5321 section 2.3.8). The line, or the
	// whole message data, was read and thrown away.
	ErrBareNewline = errors.New("bare CR or LF")
	// ErrTooLarge says that message data were longer than their limit; they were read to their end and thrown away.
	ErrTooLarge = errors.New("message too large")
)

// Reader reads CRLF lines and message data from a connection. It is for one goroutine.
type Reader struct {
	src  io.Reader
	buf  []byte
	r, w int
	err  error
}

// NewReader gives a Reader with a buffer of size bytes; size bounds what a client can make it hold.
func NewReader(src io.Reader, size int) *Reader {
	return &Reader{src: src, buf: make([]byte, max(size, 64))}
}

// Reset makes r read from src, with nothing buffered.
func (r *Reader) Reset(src io.Reader) { r.src, r.r, r.w, r.err = src, 0, 0, nil }

// From makes r go on with src behind what is buffered.
func (r *Reader) From(src io.Reader) { r.src = src }

// Buffered tells how many bytes were received but not yet read.
func (r *Reader) Buffered() int { return r.w - r.r }

// Wait waits until something is buffered. Unlike with the other methods, one may go on to read after an error.
func (r *Reader) Wait() error {
	if r.r < r.w {
		return nil
	}
	err := r.fill()
	r.err = nil
	return err
}

// Discard throws away what is buffered: whatever was pipelined before TLS must not count as said inside it (RFC 3207
// section 4.2).
func (r *Reader) Discard() { r.r, r.w = 0, 0 }

// Read gives raw bytes, buffered ones first.
func (r *Reader) Read(p []byte) (int, error) {
	if r.r == r.w {
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.buf[r.r:r.w])
	r.r += n
	return n, nil
}

// fill reads more; it needs room in the buffer and makes it by moving what is left to the front.
func (r *Reader) fill() error {
	if r.err != nil {
		return r.err
	}
	if r.r > 0 {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	for range 100 {
		n, err := r.src.Read(r.buf[r.w:])
		r.w += n
		r.err = err
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// ReadLine gives the next line without its CRLF; the bytes are good until the next call. limit counts the CRLF too and
// is at most the buffer's size.
func (r *Reader) ReadLine(limit int) ([]byte, error) {
	limit = min(limit, len(r.buf))
	tooLong := false
	for scanned := 0; ; {
		window := r.buf[r.r:r.w]
		if i := bytes.IndexByte(window[scanned:], '\n'); i >= 0 {
			line := window[:scanned+i]
			r.r += scanned + i + 1
			switch {
			case tooLong || len(line)+1 > limit:
				return nil, ErrLineTooLong
			case len(line) == 0 || line[len(line)-1] != '\r' || bytes.IndexByte(line[:len(line)-1], '\r') >= 0:
				return nil, ErrBareNewline
			}
			return line[:len(line)-1], nil
		}
		scanned = len(window)
		if scanned >= limit {
			tooLong = true
			r.r, scanned = r.w, 0
		}
		if err := r.fill(); err != nil {
			if err == io.EOF && scanned > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// DataOptions says how ReadData reads.
type DataOptions struct {
	// Limit is the most bytes that may come out; 0 means no limit.
	Limit int64
	// AcceptBare makes each bare CR and bare LF a CRLF instead of refusing the message.
	AcceptBare bool
}

// ReadData reads message data up to CRLF.CRLF, and nothing else is their end (RFC 5321 section 4.1.1.4): neither LF.LF
// nor LF.CRLF nor CR.CR, which others take for it (SMTP smuggling). It removes the stuffed dots and writes wire form to
// dst. After ErrBareNewline, ErrTooLarge or an error of dst the data were read to their end, so that the dialogue can go
// on; after any other error the connection is unusable. n is what went to dst.
func (r *Reader) ReadData(dst io.Writer, o DataOptions) (n int64, err error) {
	d := dataWriter{dst: dst, limit: o.Limit}
	start := true // after CRLF, or at the very beginning
	for {
		window := r.buf[r.r:r.w]
		end := bytes.IndexByte(window, '\n')
		if end < 0 {
			// Without its end a line may go on as long as it likes; hand on what cannot belong to its end.
			if keep := 3; len(window) == len(r.buf) {
				piece := window[:len(window)-keep]
				if start && piece[0] == '.' {
					piece = piece[1:]
				}
				start = false
				d.text(piece, o.AcceptBare)
				r.r = r.w - keep
			}
			if err := r.fill(); err != nil {
				if err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return d.n, err
			}
			continue
		}
		line := window[:end+1]
		r.r += end + 1
		crlf := end > 0 && line[end-1] == '\r'
		if start && crlf && len(line) == 3 && line[0] == '.' {
			return d.n, d.err
		}
		if start && line[0] == '.' {
			line = line[1:]
		}
		start = crlf
		switch {
		case crlf && bytes.IndexByte(line[:len(line)-2], '\r') < 0:
			d.write(line)
		case crlf:
			d.text(line[:len(line)-2], o.AcceptBare)
			d.write([]byte("\r\n"))
		default:
			d.text(line[:len(line)-1], o.AcceptBare)
			d.bare(o.AcceptBare)
		}
	}
}

// dataWriter writes until the first fault, which it keeps.
type dataWriter struct {
	dst      io.Writer
	n, limit int64
	err      error
}

func (d *dataWriter) write(p []byte) {
	if d.err != nil {
		return
	}
	if d.limit > 0 && d.n+int64(len(p)) > d.limit {
		d.err = ErrTooLarge
		return
	}
	n, err := d.dst.Write(p)
	d.n += int64(n)
	d.err = err
}

// text writes bytes that hold no LF; each CR among them is bare.
func (d *dataWriter) text(p []byte, accept bool) {
	for {
		i := bytes.IndexByte(p, '\r')
		if i < 0 {
			d.write(p)
			return
		}
		d.write(p[:i])
		d.bare(accept)
		p = p[i+1:]
	}
}

func (d *dataWriter) bare(accept bool) {
	if accept {
		d.write([]byte("\r\n"))
	} else if d.err == nil {
		d.err = ErrBareNewline
	}
}

// WriteDotStuffed sends wire-form content with stuffed dots and the final CRLF.CRLF; a missing last CRLF is added. w
// should be buffered.
func WriteDotStuffed(w io.Writer, content io.Reader) error {
	s := stuffer{w: w, start: true}
	buf := make([]byte, 32<<10)
	if _, err := io.CopyBuffer(struct{ io.Writer }{&s}, struct{ io.Reader }{content}, buf); err != nil {
		return err
	}
	end := ".\r\n"
	if !s.start {
		end = "\r\n.\r\n"
	}
	_, err := io.WriteString(w, end)
	return err
}

type stuffer struct {
	w     io.Writer
	start bool
}

func (s *stuffer) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if s.start && p[0] == '.' {
			if _, err := s.w.Write([]byte(".")); err != nil {
				return 0, err
			}
		}
		s.start = false
		// The next place to stuff is after the next LF that a dot follows.
		n := len(p)
		for i := 0; i < len(p); {
			j := bytes.IndexByte(p[i:], '\n')
			if j < 0 {
				break
			}
			i += j + 1
			if i == len(p) || p[i] == '.' {
				n, s.start = i, true
				break
			}
		}
		if _, err := s.w.Write(p[:n]); err != nil {
			return 0, err
		}
		p = p[n:]
	}
	return total, nil
}

// NewLFWriter gives a writer that turns each CRLF into LF on its way to w: the form of a Maildir.
func NewLFWriter(w io.Writer) *LFWriter { return &LFWriter{w: w} }

// LFWriter turns CRLF into LF. Close writes a CR that ended the data.
type LFWriter struct {
	w  io.Writer
	cr bool
}

func (l *LFWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if l.cr {
			l.cr = false
			if p[0] != '\n' {
				if _, err := l.w.Write([]byte("\r")); err != nil {
					return 0, err
				}
			}
		}
		i := bytes.IndexByte(p, '\r')
		if i < 0 {
			i = len(p)
		} else {
			l.cr = true
		}
		if i > 0 {
			if _, err := l.w.Write(p[:i]); err != nil {
				return 0, err
			}
		}
		p = p[min(i+1, len(p)):]
	}
	return total, nil
}

// Close writes what was held back; it does not close the writer below.
func (l *LFWriter) Close() error {
	if !l.cr {
		return nil
	}
	l.cr = false
	_, err := l.w.Write([]byte("\r"))
	return err
}

// AppendCRLF appends p to dst with each LF that has no CR before it made CRLF: from the form of a Maildir to the wire's.
func AppendCRLF(dst, p []byte) []byte {
	for {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			return append(dst, p...)
		}
		dst = append(dst, p[:i]...)
		if i == 0 || p[i-1] != '\r' {
			dst = append(dst, '\r')
		}
		dst = append(dst, '\n')
		p = p[i+1:]
	}
}
