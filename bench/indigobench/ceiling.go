package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ceiling measures what the machine can do at all, without any mail server.
func (b *bench) ceiling(ctx context.Context, c testCase) (float64, error) {
	switch c.kind {
	case ceilingCommit:
		return b.groupCommit(c)
	case ceilingFiles:
		return b.files(c)
	}
	// The dialogue alone: smtp-sink answers smtp-source from one process and throws everything away.
	s, err := startSink(ctx, c)
	if err != nil {
		return 0, err
	}
	defer s.stop()
	begun := time.Now()
	if err := source(ctx, c, s.address); err != nil {
		return 0, err
	}
	return float64(c.messages) / time.Since(begun).Seconds(), nil
}

// groupCommit has as many writers as the case has sessions. Each appends a message and waits until it is on the disk; all
// that wait share one write and one fdatasync, into a file whose blocks were written before. It is as little code as can
// be, so that it shows the disk.
func (b *bench) groupCommit(c testCase) (float64, error) {
	slot := c.size + 512
	f, err := os.OpenFile(filepath.Join(b.dir, "commit"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	const most = 128 << 20
	for zero, n := make([]byte, 1<<20), 0; n < most; n += len(zero) {
		if _, err := f.Write(zero); err != nil {
			return 0, err
		}
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	unix.Sync()

	messages := make(chan chan error, c.sessions)
	var failure error
	var writers, committer sync.WaitGroup
	committer.Go(func() {
		buffer := make([]byte, 0, slot*c.sessions)
		var offset int64
		var batch []chan error
		for first := range messages {
			batch, buffer = append(batch[:0], first), buffer[:slot]
			for more := true; more && len(batch) < c.sessions; {
				select {
				case next, ok := <-messages:
					if more = ok; ok {
						batch, buffer = append(batch, next), buffer[:len(buffer)+slot]
					}
				default:
					more = false
				}
			}
			if offset+int64(len(buffer)) > most {
				offset = 0
			}
			_, err := f.WriteAt(buffer, offset)
			if err == nil {
				err = unix.Fdatasync(int(f.Fd()))
			}
			offset += int64(len(buffer))
			for _, waiting := range batch {
				waiting <- err
			}
		}
	})
	begun := time.Now()
	var once sync.Once
	for n := range c.sessions {
		share := c.messages / c.sessions
		if n < c.messages%c.sessions {
			share++
		}
		writers.Go(func() {
			done := make(chan error, 1)
			for range share {
				messages <- done
				if err := <-done; err != nil {
					once.Do(func() { failure = err })
					return
				}
			}
		})
	}
	writers.Wait()
	took := time.Since(begun)
	close(messages)
	committer.Wait()
	return float64(c.messages) / took.Seconds(), failure
}

// files has as many writers as the case has sessions. Each creates a file of a message, syncs it and renames it into
// another folder: what a delivery to a Maildir costs when nothing is batched.
func (b *bench) files(c testCase) (float64, error) {
	dir, err := b.fresh("files")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"tmp", "new"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return 0, err
		}
	}
	unix.Sync()
	content := make([]byte, c.size)
	one := func(name string) error {
		f, err := os.OpenFile(filepath.Join(dir, "tmp", name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write(content); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		return os.Rename(f.Name(), filepath.Join(dir, "new", name))
	}
	begun := time.Now()
	var writers sync.WaitGroup
	errs := make([]error, c.sessions)
	share := c.messages / c.sessions
	for n := range c.sessions {
		writers.Go(func() {
			for i := range share {
				if errs[n] = one(fmt.Sprintf("%d.%d", n, i)); errs[n] != nil {
					return
				}
			}
		})
	}
	writers.Wait()
	took := time.Since(begun)
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return float64(share*c.sessions) / took.Seconds(), nil
}
