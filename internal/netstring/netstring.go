// Package netstring is vocabulary: D. J. Bernstein's netstrings, "5:hello,", in which QMTP and QMQP wrap what they send
// (wiki chapter on qmail-qmtpd). It must not know what is inside them.
package netstring

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// ErrFormat says that the bytes are no netstring: no number, one with a leading zero, or no comma behind the content.
var ErrFormat = errors.New("malformed netstring")

// ErrTooLong says that a netstring is longer than the reader allows. Nothing of its content was read.
var ErrTooLong = errors.New("netstring too long")

// Append appends s as a netstring.
func Append[T string | []byte](b []byte, s T) []byte {
	b = append(strconv.AppendInt(b, int64(len(s)), 10), ':')
	return append(append(b, s...), ',')
}

// Read reads one netstring of at most limit bytes. The end of r before its first byte is io.EOF, later
// io.ErrUnexpectedEOF.
func Read(r *bufio.Reader, limit int) ([]byte, error) {
	content, err := Open(r, int64(limit))
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, min(content.left, 64<<10))
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := content.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// Open reads the length of a netstring of at most limit bytes and gives its content to read piece by piece. The content
// must be read to its end before r is used again.
func Open(r *bufio.Reader, limit int64) (*Content, error) {
	var length int64
	for digits := 0; ; digits++ {
		c, err := r.ReadByte()
		if err != nil {
			if err == io.EOF && digits > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		switch {
		case c == ':' && digits > 0:
			return &Content{r: r, length: length, left: length}, nil
		case c < '0' || c > '9' || digits > 0 && length == 0:
			return nil, fmt.Errorf("%w: byte %q in the length", ErrFormat, c)
		}
		if length = length*10 + int64(c-'0'); length > limit {
			return nil, fmt.Errorf("%w: more than %d bytes", ErrTooLong, limit)
		}
	}
}

// Content is the inside of a netstring.
type Content struct {
	r            *bufio.Reader
	length, left int64
	closed       bool
}

// Len is the number of bytes of the whole content.
func (c *Content) Len() int64 { return c.length }

// Read reads the content. At its end it checks the comma and gives io.EOF, or ErrFormat.
func (c *Content) Read(b []byte) (int, error) {
	if c.left == 0 {
		if !c.closed {
			comma, err := c.r.ReadByte()
			if err != nil {
				return 0, unexpected(err)
			}
			if comma != ',' {
				return 0, fmt.Errorf("%w: byte %q in the comma's place", ErrFormat, comma)
			}
			c.closed = true
		}
		return 0, io.EOF
	}
	n, err := c.r.Read(b[:min(int64(len(b)), c.left)])
	c.left -= int64(n)
	return n, unexpected(err)
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
