package seglog

import (
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// File is an open segment file.
type File interface {
	io.ReaderAt
	io.WriterAt
	// Datasync returns when all that was written is on stable storage.
	Datasync() error
	Truncate(size int64) error
	Size() (int64, error)
	Close() error
}

// Disk is the folder that holds a log; tests put faults and crashes into it.
type Disk interface {
	// List gives the names of the files in the folder.
	List() ([]string, error)
	Open(name string) (File, error)
	// Create makes a file that is not there yet and may reserve room for it.
	Create(name string, room int64) (File, error)
	// Rename puts a file in the place of another name.
	Rename(from, to string) error
	Remove(name string) error
	// Sync makes creations, renames and removals durable.
	Sync() error
}

// Folder is the Disk that is a directory of the operating system.
type Folder string

type osFile struct{ *os.File }

func (f osFile) Datasync() error { return unix.Fdatasync(int(f.Fd())) }

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// List gives the names in the directory, in no order.
func (d Folder) List() ([]string, error) {
	f, err := os.Open(string(d))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// Open opens a file for reading and writing.
func (d Folder) Open(name string) (File, error) {
	f, err := os.OpenFile(filepath.Join(string(d), name), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// Create makes a file and reserves blocks for room bytes in one piece; the file's size stays 0.
func (d Folder) Create(name string, room int64) (File, error) {
	f, err := os.OpenFile(filepath.Join(string(d), name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	// A file system that cannot reserve still works; one without space says so when it is written to.
	_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, room)
	return osFile{f}, nil
}

// Rename renames a file.
func (d Folder) Rename(from, to string) error {
	return os.Rename(filepath.Join(string(d), from), filepath.Join(string(d), to))
}

// Remove removes a file.
func (d Folder) Remove(name string) error { return os.Remove(filepath.Join(string(d), name)) }

// Sync syncs the directory.
func (d Folder) Sync() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
