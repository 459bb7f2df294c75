package maildir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Create makes a Maildir with cur, new and tmp, mode 0700, and any missing folder above it. What exists already stays
// as it is.
func Create(path string) error {
	for _, sub := range []string{"tmp", "new", "cur"} {
		if err := os.MkdirAll(filepath.Join(path, sub), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// Drop is a Maildir held open to deliver into it; its methods may be called from several goroutines.
type Drop struct {
	path     string
	root     int
	tmp, new int
	dev, ino uint64
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
func (d *Drop) Find(k Key) (Entry, bool, error) {
	prefix := k.prefix()
	for _, sub := range []string{"new", "cur"} {
		names, err := readNames(filepath.Join(d.path, sub))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Entry{}, false, err
		}
		for _, name := range names {
			if strings.HasPrefix(name, prefix) {
				return Parse(sub, name), true, nil
			}
		}
	}
	return Entry{}, false, nil
}

// Complete tells whether the file of e has exactly this many bytes on disk.
func (d *Drop) Complete(e Entry, size int64) bool {
	st, err := os.Lstat(filepath.Join(d.path, e.Sub, e.Name))
	return err == nil && st.Mode().IsRegular() && st.Size() == size
}

// Remove unlinks the file of e.
func (d *Drop) Remove(e Entry) error { return os.Remove(filepath.Join(d.path, e.Sub, e.Name)) }

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
func (f *File) Commit() (Entry, error) {
	// No EINTR loop around close: on Linux the descriptor is gone either way.
	err := unix.Close(f.fd)
	f.fd = -1
	if err != nil && err != unix.EINTR {
		f.Abort()
		return Entry{}, &fs.PathError{Op: "close", Path: f.d.path + "/tmp/" + f.base, Err: err}
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
		return Entry{}, &fs.PathError{Op: "rename", Path: f.d.path + "/new/" + name, Err: err}
	}
	return Entry{Name: name, Sub: "new", Size: f.size, WireSize: f.wire}, nil
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
