// Package local is a station: it delivers to virtual users' Maildirs. It must not know how mail came or when to try again.
package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/message"
	"github.com/indigomail/indigo/internal/queue"
)

// Config is what a Deliverer needs.
type Config struct {
	Directory interface {
		User(ctx context.Context, a addr.Address) (directory.User, error)
	}
	// MailRoot holds every Maildir; its file system is what is synced.
	MailRoot string
	// Hostname stands in file names, and takes the place of a missing domain.
	Hostname, DefaultDomain string
	Now                     func() time.Time
	Logger                  *slog.Logger
}

// Deliverer implements queue.Deliverer.
type Deliverer struct {
	config Config
	syncer *syncer
}

// New makes a Deliverer. Close ends it.
func New(config Config) (*Deliverer, error) {
	s, err := newSyncer(config.MailRoot)
	if err != nil {
		return nil, err
	}
	return &Deliverer{config, s}, nil
}

// Close ends the syncing; deliveries must have ended before.
func (d *Deliverer) Close() { d.syncer.close() }

// Deliver delivers to each recipient and returns when all of it is on stable storage.
func (d *Deliverer) Deliver(ctx context.Context, job *queue.Delivery) []queue.Result {
	results := make([]queue.Result, len(job.Recipients))
	written := false
	for i, r := range job.Recipients {
		if e := d.deliver(ctx, job, i, r.Address); e != nil {
			results[i] = queue.Result{Err: e, Text: e.Text}
		} else {
			written = true
			results[i] = queue.Result{Text: "did 1+0+0"}
		}
	}
	if !written {
		return results
	}
	// The sync that covers a file is one that began after the file was in its place.
	if err := d.syncer.wait(ctx); err != nil {
		for i := range results {
			if results[i].Err == nil {
				e := storageError(err)
				results[i] = queue.Result{Err: e, Text: e.Text}
			}
		}
	}
	return results
}

func (d *Deliverer) deliver(ctx context.Context, job *queue.Delivery, i int, to addr.Address) *mailerr.Error {
	if to.Domain == "" || strings.EqualFold(to.Domain, d.config.Hostname) {
		to.Domain = d.config.DefaultDomain
	}
	user, err := d.config.Directory.User(ctx, to)
	if errors.Is(err, directory.ErrNoUser) || errors.Is(err, directory.ErrNoDomain) {
		return mailerr.New(550, mailerr.Enhanced{5, 1, 1}, "Sorry, no mailbox here by that name. (#5.1.1)").Because(err)
	}
	if err != nil {
		return mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "The directory cannot be asked now. (#4.3.0)").Because(err)
	}
	content, err := maildir.ToLF(io.NewSectionReader(job.Content, 0, job.Content.Size()), job.Content.Size())
	if err != nil {
		return storageError(err)
	}
	delivered := user.Address().String()
	for _, f := range message.Fields(content[:message.HeaderEnd(content)]) {
		if f.Is("Delivered-To") && strings.EqualFold(f.Value(), delivered) {
			return mailerr.New(554, mailerr.Enhanced{5, 4, 6}, "This message is looping: it already has my Delivered-To line. (#5.4.6)")
		}
	}
	head := fmt.Appendf(nil, "Return-Path: <%s>\nDelivered-To: %s\n", job.Envelope.Sender, delivered)
	if len(content) > 0 && content[len(content)-1] != '\n' {
		content = append(content, '\n')
	}
	size := len(head) + len(content)
	lines := bytes.Count(head, []byte("\n")) + bytes.Count(content, []byte("\n"))
	// The name tells the delivery for good: one that is repeated after a crash has the same.
	name := fmt.Sprintf("%d.Q%sR%d.%s,S=%d,W=%d", job.Birth.Unix(), job.ID, job.Index[i], fileHost(d.config.Hostname), size, size+lines)
	path := filepath.Join(user.Dir, "Maildir")
	if job.Repeat {
		if file, have, ok := maildir.Find(path, name); ok {
			if have == int64(size) {
				return nil
			}
			// A crash left its name but not its bytes.
			if err := os.Remove(file); err != nil {
				return storageError(err)
			}
		}
	}
	if err := maildir.Put(path, name, head, content); err != nil {
		return storageError(err)
	}
	return nil
}

// fileHost makes a host name fit for a file's name, as Maildir readers expect it.
func fileHost(s string) string {
	return strings.NewReplacer("/", `\057`, ":", `\072`, ",", `\054`).Replace(s)
}

func storageError(err error) *mailerr.Error {
	switch {
	case errors.Is(err, unix.ENOSPC):
		return mailerr.New(452, mailerr.Enhanced{4, 3, 1}, "The disk is full. (#4.3.1)").Because(err)
	case errors.Is(err, unix.EDQUOT):
		return mailerr.New(452, mailerr.Enhanced{4, 2, 2}, "The mailbox's disk quota is used up. (#4.2.2)").Because(err)
	}
	return mailerr.New(451, mailerr.Enhanced{4, 3, 0}, "Unable to write the message now. (#4.3.0)").Because(err)
}

// syncer syncs a file system for all that wait, with one syncfs(2): on the reference machine a file's own fsync and its
// directory's cost 0.3 ms and more each, one syncfs for a hundred files about 2 ms.
type syncer struct {
	root    *os.File
	mu      sync.Mutex
	waiting []chan error
	wake    chan struct{}
	stop    chan struct{}
	done    sync.WaitGroup
}

func newSyncer(root string) (*syncer, error) {
	f, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	s := &syncer{root: f, wake: make(chan struct{}, 1), stop: make(chan struct{})}
	s.done.Go(s.run)
	return s, nil
}

func (s *syncer) run() {
	for {
		select {
		case <-s.stop:
			return
		case <-s.wake:
		}
		s.mu.Lock()
		batch := s.waiting
		s.waiting = nil
		s.mu.Unlock()
		err := unix.Syncfs(int(s.root.Fd()))
		for _, c := range batch {
			c <- err
		}
	}
}

// wait returns after a sync that began after the call.
func (s *syncer) wait(ctx context.Context) error {
	c := make(chan error, 1)
	s.mu.Lock()
	s.waiting = append(s.waiting, c)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	select {
	case err := <-c:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *syncer) close() {
	close(s.stop)
	s.done.Wait()
	s.root.Close()
}
