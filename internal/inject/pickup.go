package inject

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/mailerr"
)

// Names in pickup: what is being written begins with a dot, what is whole with "m", what can never be taken with "bad-".
const (
	unfinished = "."
	finished   = "m"
	refused    = "bad-"
)

// pickupEvery is how often the directory is looked through: a process that found no daemon may have written while one began.
const pickupEvery = 5 * time.Second

// Pickup takes what lies in the directory pickup, now and from time to time, until Shutdown.
func (s *Server) Pickup(ctx context.Context) {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return
	}
	s.serving.Add(1)
	s.mu.Unlock()
	defer s.serving.Done()
	tick := time.NewTicker(pickupEvery)
	defer tick.Stop()
	for {
		s.PickupNow(ctx)
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
	}
}

// PickupNow takes what lies in the directory pickup once.
func (s *Server) PickupNow(ctx context.Context) {
	s.pickupLock.Lock()
	defer s.pickupLock.Unlock()
	entries, err := os.ReadDir(s.config.Pickup)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.config.Logger.Error("pickup: " + err.Error())
		}
		return
	}
	for _, e := range entries {
		select {
		case <-s.stop:
			return
		default:
		}
		if !strings.HasPrefix(e.Name(), finished) {
			continue
		}
		path := filepath.Join(s.config.Pickup, e.Name())
		err := s.pickupOne(ctx, path)
		refusal := mailerr.From(err)
		switch {
		case refusal == nil:
		case refusal.Temporary():
			s.config.Logger.Warn(fmt.Sprintf("pickup: %s: %v; will try again", path, err))
			return
		default:
			bad := filepath.Join(s.config.Pickup, refused+filepath.Base(path))
			s.config.Logger.Error(fmt.Sprintf("pickup: %s: %v; kept as %s", path, err, bad))
			if err := os.Rename(path, bad); err != nil {
				s.config.Logger.Error("pickup: " + err.Error())
				return
			}
		}
	}
}

// pickupOne takes one file. Anybody may have put it there: it must be a plain file with one name, and it is its owner's.
func (s *Server) pickupOne(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return errMalform.Because(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return errMalform.Because(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		return errMalform.Because(errors.New("not a plain file with one name"))
	}
	id, err := s.take(ctx, f, int(st.Uid), 0)
	if err != nil {
		if errors.Is(err, errCut) {
			return errMalform.Because(err)
		}
		return err
	}
	if err := os.Remove(path); err != nil {
		// It would be taken again and again.
		return mailerr.New(451, mailerr.Enhanced{4, 3, 0}, fmt.Sprintf("taken as %s, but the file stays", id)).Because(err)
	}
	return nil
}

// giveToReader gives what root leaves to the owner of the directory, an account that could not read it else: it counts as left by that account.
func giveToReader(f *os.File, dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	return f.Chown(int(st.Uid), int(st.Gid))
}

// drop leaves a stream in the directory; when it returns nil it is durable.
func drop(dir string, stream io.Reader) (name string, err error) {
	name = finished + rand.Text()
	path := filepath.Join(dir, unfinished+name)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err = giveToReader(f, dir); err == nil {
		_, err = io.Copy(f, stream)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(path, filepath.Join(dir, name))
	}
	if err == nil {
		// The name too: whoever may not read the directory cannot open it to sync it.
		err = unix.Syncfs(int(f.Fd()))
	}
	if err != nil {
		os.Remove(path)
		return "", err
	}
	return name, nil
}
