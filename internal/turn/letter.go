package turn

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/queue"
)

// maxLine bounds the two lines with the envelope: the field's name, and an address beyond what RFC 5321 section 4.5.3.1 allows.
const maxLine = 1024

// errNoEnvelope says that a file is no message that a delivery put there.
var errNoEnvelope = errors.New("the file does not begin with the lines Return-Path and Delivered-To of a delivery")

// letter is a message in a Maildir with the envelope that its delivery wrote in front of it: Return-Path and Delivered-To.
type letter struct {
	message  maildir.Message
	from, to addr.Address
	// id is what it was in the queue, 0 when its name does not tell; birth is when it came in.
	id    queue.ID
	birth time.Time
	// body and content are set by read.
	body    string
	content *content
	file    *os.File
	start   int64
}

// open reads the envelope. prefix is what IndiMail's virtualdomains put before the recipient, and is taken away where it stands.
func open(m maildir.Message, prefix string) (l *letter, err error) {
	f, err := openFile(m.File, unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	l = &letter{message: m, file: f}
	in := bufio.NewReaderSize(f, 2*maxLine)
	line := func(name string) (string, error) {
		text, err := in.ReadSlice('\n')
		if err != nil || len(text) > maxLine || len(text) < len(name) || !strings.EqualFold(string(text[:len(name)]), name) {
			return "", errNoEnvelope
		}
		l.start += int64(len(text))
		return strings.TrimSpace(string(text[len(name):])), nil
	}
	from, err := line("Return-Path:")
	if err != nil {
		return nil, err
	}
	to, err := line("Delivered-To:")
	if err != nil {
		return nil, err
	}
	if len(to) > len(prefix) && strings.EqualFold(to[:len(prefix)], prefix) {
		to = to[len(prefix):]
	}
	if from == "<#@[]>" {
		l.from = addr.Address{Local: "#", Domain: "[]"}
	} else if l.from, _, err = addr.ParsePath(from, addr.Options{UTF8: true}); err != nil {
		return nil, fmt.Errorf("sender %q: %w", from, err)
	}
	if l.to, err = addr.Parse(to); err != nil {
		return nil, fmt.Errorf("recipient %q: %w", to, err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	l.birth = info.ModTime()
	if found := keyForm.FindStringSubmatch(m.Base); found != nil {
		seconds, _ := strconv.ParseInt(found[1], 10, 64)
		l.birth = time.Unix(seconds, 0)
		if n, err := strconv.ParseUint(found[2], 10, 64); err == nil {
			l.id = queue.ID(n)
		}
	}
	return l, nil
}

// openFile opens a file to be read that is nothing to wait for; with unix.O_NOFOLLOW no link either. The directory may belong to others.
func openFile(name string, flags int) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|flags, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s is no file", name))
	}
	return f, nil
}

// keyForm is maildir.Key's: when the message came into the queue, and its id there.
var keyForm = regexp.MustCompile(`^([0-9]{1,12})\.[^.]*Q([0-9]{1,20})R[0-9]+\.`)

func (l *letter) close() { l.file.Close() }

// read finds out how long the message is in wire form, and whether it holds octets beyond ASCII.
func (l *letter) read() error {
	c := &content{file: l.file, start: l.start}
	if err := c.rewind(); err != nil {
		return err
	}
	buffer := make([]byte, 32<<10)
	for {
		n, err := c.Read(buffer)
		c.size += int64(n)
		if l.body == "" && bytes.IndexFunc(buffer[:n], func(r rune) bool { return r >= 0x80 }) >= 0 {
			l.body = "8BITMIME"
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	l.content = c
	return nil
}

// delivery gives the letter the form in which it is sent.
func (l *letter) delivery() *queue.Delivery {
	ascii := func(a addr.Address) bool {
		return strings.IndexFunc(a.String(), func(r rune) bool { return r >= 0x80 }) < 0
	}
	recipients := []queue.Recipient{{Address: l.to}}
	return &queue.Delivery{
		ID: l.id, Host: l.to.Domain, Recipients: recipients, Index: []int{0}, Content: l.content, Birth: l.birth,
		Envelope: &queue.Envelope{Sender: l.from, Recipients: recipients, Body: l.body, UTF8: !ascii(l.from) || !ascii(l.to)},
	}
}

// remove takes the message away for good: when it returns nil, no crash brings the file back.
func (l *letter) remove() error {
	if err := l.message.Remove(); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(l.message.File))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// content gives a file with LF line ends in wire form, to readers that go through it from the front; it holds no more of it than a buffer.
type content struct {
	file        *os.File
	start, size int64
	in          *bufio.Reader
	// at is how far it was read in wire form; last is the octet before.
	at   int64
	last byte
}

func (c *content) rewind() error {
	if _, err := c.file.Seek(c.start, io.SeekStart); err != nil {
		return err
	}
	if c.in == nil {
		c.in = bufio.NewReaderSize(c.file, 32<<10)
	}
	c.in.Reset(c.file)
	c.at, c.last = 0, 0
	return nil
}

// Read goes on in wire form.
func (c *content) Read(p []byte) (n int, err error) {
	for n < len(p) {
		b, err := c.in.ReadByte()
		if err != nil {
			c.at += int64(n)
			if n > 0 && err == io.EOF {
				err = nil
			}
			return n, err
		}
		if b == '\n' && c.last != '\r' {
			// It comes once more behind the CR.
			_ = c.in.UnreadByte() // it was read just now
			b = '\r'
		}
		p[n], c.last = b, b
		n++
	}
	c.at += int64(n)
	return n, nil
}

// Size is the length in wire form.
func (c *content) Size() int64 { return c.size }

// ReadAt reads on, or begins anew where that is not where off is.
func (c *content) ReadAt(p []byte, off int64) (int, error) {
	if off != c.at {
		if err := c.rewind(); err != nil {
			return 0, err
		}
		if _, err := io.CopyN(io.Discard, struct{ io.Reader }{c}, off); err != nil {
			return 0, err
		}
	}
	n, err := io.ReadFull(c, p)
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	return n, err
}
