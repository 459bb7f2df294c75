package cdb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// maxRecord bounds a key or a value in the text form; the format itself bounds only the file.
const maxRecord = 64 << 20

// ReadText adds to w the records of r, in the form that cdbmake reads and cdbdump writes: "+KLEN,DLEN:KEY->DATA" and a
// newline each, and an empty line at the end. An error names the number of the record.
func ReadText(r io.Reader, w *Writer) error {
	in := bufio.NewReader(r)
	for n := 1; ; n++ {
		fail := func(what string) error { return fmt.Errorf("record %d: %s", n, what) }
		c, err := in.ReadByte()
		if err != nil {
			return fail("the input ends without an empty line")
		}
		if c == '\n' {
			return nil
		}
		if c != '+' {
			return fail("it does not begin with +")
		}
		kl, err := readLength(in, ',')
		if err != nil {
			return fail(err.Error())
		}
		vl, err := readLength(in, ':')
		if err != nil {
			return fail(err.Error())
		}
		b := make([]byte, kl+2+vl+1)
		if _, err := io.ReadFull(in, b); err != nil {
			return fail("it is cut short")
		}
		if b[kl] != '-' || b[kl+1] != '>' || b[len(b)-1] != '\n' {
			return fail("its lengths do not fit to its text")
		}
		if err := w.Add(b[:kl], b[kl+2:len(b)-1]); err != nil {
			return err
		}
	}
}

func readLength(in *bufio.Reader, end byte) (int, error) {
	n := 0
	for digits := 0; ; digits++ {
		c, err := in.ReadByte()
		switch {
		case err != nil:
			return 0, errors.New("it is cut short")
		case c == end && digits > 0:
			return n, nil
		case c < '0' || c > '9':
			return 0, fmt.Errorf("a length ends with %q in place of %q", c, end)
		}
		if n = n*10 + int(c-'0'); n > maxRecord {
			return 0, fmt.Errorf("a length is above %d", maxRecord)
		}
	}
}

// WriteText writes the records of r in the form that ReadText reads.
func WriteText(w io.Writer, r *Reader) error {
	out := bufio.NewWriter(w)
	for record, err := range r.All() {
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "+%d,%d:%s->%s\n", len(record.Key), len(record.Value), record.Key, record.Value)
	}
	out.WriteByte('\n')
	return out.Flush()
}
