package maildir

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Key names a delivery for good, so that one repeated after a crash finds its own earlier file.
type Key struct {
	// Birth is when the message entered the queue; whole seconds count.
	Birth time.Time
	// Queue tells several queues of one host apart; "" for the only one.
	Queue string
	// ID is the queue's number for the message, Index the recipient's position in its envelope.
	ID    uint64
	Index int
	// Host is the name of this system.
	Host string
}

// prefix is the part of the base that does not change when the host is renamed.
func (k Key) prefix() string {
	b := make([]byte, 0, 64)
	b = strconv.AppendInt(b, k.Birth.Unix(), 10)
	b = append(b, '.')
	if k.Queue != "" {
		b = append(b, safe(k.Queue)...)
	}
	b = append(b, 'Q')
	b = strconv.AppendUint(b, k.ID, 10)
	b = append(b, 'R')
	b = strconv.AppendInt(b, int64(k.Index), 10)
	b = append(b, '.')
	return string(b)
}

// Base gives the unique name without sizes and flags: "1700000000.Q17R0.mail.example.org".
func (k Key) Base() string { return k.prefix() + safe(k.Host) }

// safe takes out of a name what separates parts of a Maildir file name, in qmail's way.
func safe(s string) string {
	if !strings.ContainsAny(s, "/:,\x00\n ") {
		return s
	}
	return strings.NewReplacer("/", `\057`, ":", `\072`, ",", `\054`, "\x00", "_", "\n", "_", " ", "_").Replace(s)
}

// withSizes adds the Maildir++ size fields: S is the file's size, W its size with CRLF line ends.
func withSizes(base string, size, wire int64) string {
	b := make([]byte, 0, len(base)+40)
	b = append(b, base...)
	b = append(b, ",S="...)
	b = strconv.AppendInt(b, size, 10)
	b = append(b, ",W="...)
	b = strconv.AppendInt(b, wire, 10)
	return string(b)
}

// Drop is a Maildir held open to deliver into it; its methods may be called from several goroutines.
type Drop struct {
	path     string
	root     int
	tmp, new int
	dev, ino uint64
	// counting lets deliveries wait for each other here, where that costs less than at the lock of maildirsize.
	counting sync.Mutex
	counted  time.Time // under counting
}

// OpenDrop opens the Maildir at path, and makes it when it is missing.
func OpenDrop(path string) (*Drop, error) {
	d, err := openDrop(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := Create(path); err != nil {
			return nil, err
		}
		d, err = openDrop(path)
	}
	return d, err
}

func openDrop(path string) (d *Drop, err error) {
	d = &Drop{path: path, root: -1, tmp: -1, new: -1}
	defer func() {
		if err != nil {
			d.Close()
			d = nil
		}
	}()
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC
	if d.root, err = retry(func() (int, error) { return unix.Open(path, flags, 0) }); err != nil {
		return d, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	if d.tmp, err = retry(func() (int, error) { return unix.Openat(d.root, "tmp", flags, 0) }); err != nil {
		return d, &fs.PathError{Op: "open", Path: path + "/tmp", Err: err}
	}
	if d.new, err = retry(func() (int, error) { return unix.Openat(d.root, "new", flags, 0) }); err != nil {
		return d, &fs.PathError{Op: "open", Path: path + "/new", Err: err}
	}
	var st unix.Stat_t
	if err = unix.Fstat(d.root, &st); err != nil {
		return d, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	d.dev, d.ino = st.Dev, st.Ino
	return d, nil
}

// Close gives the file descriptors back.
func (d *Drop) Close() {
	for _, fd := range []int{d.root, d.tmp, d.new} {
		if fd >= 0 {
			_ = unix.Close(fd) // opened for reading: nothing can be lost
		}
	}
}

// Current tells whether the path still leads to the folder that was opened; after a Maildir was moved or removed it
// does not, and mail dropped here would go astray.
func (d *Drop) Current() bool {
	var st unix.Stat_t
	_, err := retry(func() (int, error) { return 0, unix.Stat(d.path, &st) })
	return err == nil && st.Dev == d.dev && st.Ino == d.ino
}

// Device names the file system, for batching syncs.
func (d *Drop) Device() uint64 { return d.dev }

// OpenDir gives a new descriptor of the Maildir's folder, for syncfs(2).
func (d *Drop) OpenDir() (*os.File, error) { return os.Open(d.path) }

// Find looks in new and cur for the file of an earlier try of this delivery.
func (d *Drop) Find(k Key) (Placed, bool, error) {
	prefix := k.prefix()
	for _, sub := range []string{"new", "cur"} {
		names, err := readNames(filepath.Join(d.path, sub))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Placed{}, false, err
		}
		for _, name := range names {
			if strings.HasPrefix(name, prefix) {
				return Placed{sub, name}, true, nil
			}
		}
	}
	return Placed{}, false, nil
}

// Complete tells whether the file of p has exactly this many bytes on disk.
func (d *Drop) Complete(p Placed, size int64) bool {
	st, err := os.Lstat(filepath.Join(d.path, p.Sub, p.Name))
	return err == nil && st.Mode().IsRegular() && st.Size() == size
}

// Remove unlinks the file of p, and takes it out of maildirsize; fs.ErrNotExist when it is gone.
func (d *Drop) Remove(p Placed) error {
	path := filepath.Join(d.path, p.Sub, p.Name)
	if _, err := os.Lstat(path); err != nil {
		return err
	}
	base, _, _ := strings.Cut(p.Name, ":2,")
	return (&Message{File: path, Base: base}).Remove()
}

// Placed is a delivered file: its folder, "new" or "cur", and its name there.
type Placed struct{ Sub, Name string }

// File is a message on its way into a Maildir: written in tmp, then moved to new. Exactly one of Commit and Abort must
// be called.
type File struct {
	d    *Drop
	fd   int
	base string
	size int64
	wire int64
	last byte
}

// NewFile opens tmp/base, mode 0600. A file left there by an earlier try of the same delivery is replaced.
func (d *Drop) NewFile(base string) (*File, error) {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_CLOEXEC
	for attempt := 0; ; attempt++ {
		fd, err := retry(func() (int, error) { return unix.Openat(d.tmp, base, flags, 0o600) })
		if err == nil {
			return &File{d: d, fd: fd, base: base}, nil
		}
		if err != unix.EEXIST || attempt > 0 {
			return nil, &fs.PathError{Op: "open", Path: d.path + "/tmp/" + base, Err: err}
		}
		if err := unix.Unlinkat(d.tmp, base, 0); err != nil && err != unix.ENOENT {
			return nil, &fs.PathError{Op: "unlink", Path: d.path + "/tmp/" + base, Err: err}
		}
	}
}

// Append writes the pieces, which have LF line ends, one after the other, in one system call where the kernel lets it.
// It reorders nothing and keeps nothing, but the slice of pieces itself is used up.
func (f *File) Append(pieces ...[]byte) error {
	for _, p := range pieces {
		if len(p) == 0 {
			continue
		}
		f.size += int64(len(p))
		f.wire += int64(len(p)) + countLF(p, f.last)
		f.last = p[len(p)-1]
	}
	for len(pieces) > 0 {
		if len(pieces[0]) == 0 {
			pieces = pieces[1:]
			continue
		}
		n, err := retry(func() (int, error) { return unix.Writev(f.fd, pieces) })
		if err != nil {
			return &fs.PathError{Op: "write", Path: f.d.path + "/tmp/" + f.base, Err: err}
		}
		if n <= 0 {
			return &fs.PathError{Op: "write", Path: f.d.path + "/tmp/" + f.base, Err: unix.ENOSPC}
		}
		for n > 0 {
			k := min(n, len(pieces[0]))
			pieces[0] = pieces[0][k:]
			n -= k
			if len(pieces[0]) == 0 {
				pieces = pieces[1:]
			}
		}
	}
	return nil
}

// Size is the number of bytes written so far.
func (f *File) Size() int64 { return f.size }

// Commit closes the file and moves it to new under its final name. It never replaces another file: with a name taken
// by another message it fails with fs.ErrExist. The file is visible now, but durable only after a sync.
func (f *File) Commit() (Placed, error) {
	// No EINTR loop around close: on Linux the descriptor is gone either way.
	err := unix.Close(f.fd)
	f.fd = -1
	if err != nil && err != unix.EINTR {
		f.Abort()
		return Placed{}, &fs.PathError{Op: "close", Path: f.d.path + "/tmp/" + f.base, Err: err}
	}
	name := withSizes(f.base, f.size, f.wire)
	_, err = retry(func() (int, error) {
		return 0, unix.Renameat2(f.d.tmp, f.base, f.d.new, name, unix.RENAME_NOREPLACE)
	})
	if err == unix.EINVAL || err == unix.ENOSYS { // a file system without the flag, such as NFS
		if err = unix.Linkat(f.d.tmp, f.base, f.d.new, name, 0); err == nil {
			err = unix.Unlinkat(f.d.tmp, f.base, 0)
		}
	}
	if err != nil {
		f.Abort()
		return Placed{}, &fs.PathError{Op: "rename", Path: f.d.path + "/new/" + name, Err: err}
	}
	return Placed{"new", name}, nil
}

// Abort removes the file from tmp, as far as that works.
func (f *File) Abort() {
	if f.fd >= 0 {
		_ = unix.Close(f.fd)
		f.fd = -1
	}
	_ = unix.Unlinkat(f.d.tmp, f.base, 0) // left-overs in tmp are no mail; any Maildir reader cleans them after 36 hours
}

// DiskFull tells whether err means that the disk or the user's file system quota is full.
func DiskFull(err error) (full, quota bool) {
	quota = errors.Is(err, unix.EDQUOT)
	return quota || errors.Is(err, unix.ENOSPC), quota
}

func retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}

func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	return names, nil
}

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

// LFInPlace makes CRLF line ends LF, in place, and gives the shorter slice. A CR elsewhere stays.
func LFInPlace(p []byte) []byte {
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
