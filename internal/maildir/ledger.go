package maildir

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// sizeFlags open a maildirsize; what is no file of our own is not followed, and does not block.
	sizeFlags = unix.O_APPEND | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	// staleSizes is the age after which a maildirsize that says "over quota" is not believed.
	staleSizes = 15 * time.Minute
	// lockWait is how long a change of a Maildir waits for the lock of its maildirsize. After that it goes on without it, as Courier
	// and Dovecot always do: the sum may then be wrong until it is made anew.
	lockWait = 5 * time.Second
)

// ledger is a Maildir's open, locked maildirsize. The specification has no lock, and says that the sum may be off; two messages
// that are counted and made anew at once would then be missing or there twice. So whoever of us changes what the file counts holds
// flock(2) on it meanwhile, which Linux's NFS carries to other hosts; whoever replaces the file locks the new one first.
type ledger struct {
	root     string
	fd       int
	size     int64
	modified time.Time
	// counted is when this process counted the Maildir, if it keeps that.
	counted *time.Time
}

// openLedger opens and locks the maildirsize of the Maildir root. Where there is none it gives nil, or makes an empty one with create.
func openLedger(root string, create bool) (*ledger, error) {
	path, flags := filepath.Join(root, sizeFile), sizeFlags|unix.O_RDWR
	if create {
		flags |= unix.O_CREAT
	}
	for attempt := 0; ; attempt++ {
		fd, err := retry(func() (int, error) { return unix.Open(path, flags, 0o600) })
		if err == unix.ENOENT && !create {
			return nil, nil
		}
		var opened, current unix.Stat_t
		if err == nil {
			lock(fd)
			if err = unix.Fstat(fd, &opened); err == nil && (opened.Mode&unix.S_IFMT != unix.S_IFREG || opened.Nlink > 1) {
				err = unix.ELOOP
			}
		}
		if err == nil {
			gone := unix.Lstat(path, &current)
			if gone == nil && opened.Dev == current.Dev && opened.Ino == current.Ino || attempt > 1000 {
				return &ledger{root: root, fd: fd, size: opened.Size, modified: time.Unix(opened.Mtim.Unix())}, nil
			}
			unix.Close(fd) // replaced while we waited
			continue
		}
		if fd >= 0 {
			unix.Close(fd)
		}
		// A link, a folder, a device or another account's file in its place is set aside.
		if attempt > 3 || err != unix.ELOOP && err != unix.EISDIR && err != unix.ENXIO && err != unix.EACCES && err != unix.ESTALE {
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			if err := os.Rename(path, filepath.Join(root, "tmp", sizeFile+"."+strconv.FormatInt(time.Now().UnixNano(), 10))); err != nil {
				return nil, err
			}
		}
	}
}

// lock takes the lock; when that fails the caller goes on without.
func lock(fd int) {
	var end time.Time
	for pause := 20 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		_, err := retry(func() (int, error) { return 0, unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
		if err != unix.EWOULDBLOCK {
			return
		}
		now := time.Now()
		if end.IsZero() {
			end = now.Add(lockWait)
		} else if now.After(end) {
			return
		}
		time.Sleep(pause)
	}
}

// close gives the lock back.
func (l *ledger) close() {
	if l != nil {
		_ = unix.Close(l.fd) // what matters was written by one write(2), whose error was looked at
	}
}

// total gives what the Maildir holds, and sees to it that the file says so under the quota q. It believes the file, but for the cases
// that the specification names; extra is what is to be added. With more than limit messages to be counted it gives errTooMany.
func (l *ledger) total(q Quota, extra Use, limit int) (Use, error) {
	s := readSizes(l.fd, l.size)
	if s.sound && s.quota == q {
		// Over quota is believed only while it comes from a count of a short time ago.
		age := time.Since(l.modified)
		if q.Fits(s.use.Plus(extra)) || s.lines == 1 && age < staleSizes && age > -staleSizes {
			return s.use, nil
		}
	}
	if s.long && s.quota == q && q.Fits(s.use.Plus(extra)) && l.counted != nil && time.Since(*l.counted) < staleSizes {
		// It is long because much is delivered, and the count is young: its sum will do. A mailbox of 100,000 messages that is counted
		// each 600 deliveries would cost each of them 200 µs.
		return s.use, l.replace(q, s.use)
	}
	return l.recount(q, limit)
}

// readSizes reads an open maildirsize of size bytes; what is far too long is not read.
func readSizes(fd int, size int64) sizes {
	if size <= 0 || size >= maxLong {
		return sizes{}
	}
	var buf [maxLong]byte
	b := buf[:size]
	for n := 0; n < len(b); {
		k, err := retry(func() (int, error) { return unix.Pread(fd, b[n:], int64(n)) })
		if err != nil || k <= 0 {
			return sizes{}
		}
		n += k
	}
	return parseSizes(b)
}

// peekSizes reads the maildirsize of a Maildir without its lock: whole lines are appended, so that it is always right but for those of
// deliveries that are just under way.
func peekSizes(maildir string) sizes {
	fd, err := retry(func() (int, error) { return unix.Open(filepath.Join(maildir, sizeFile), sizeFlags|unix.O_RDONLY, 0) })
	if err != nil {
		return sizes{}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return sizes{}
	}
	return readSizes(fd, st.Size)
}

var errTooMany = errors.New("too many messages to be counted now")

// recount counts the messages and replaces the file.
func (l *ledger) recount(q Quota, limit int) (u Use, err error) {
	// Programs without our lock, and mail readers who set flags, may change the Maildir while it is read.
	changed := true
	for attempt := 0; changed && attempt < 3; attempt++ {
		before, last := changes(l.root), u
		var whole bool
		if u, whole, err = count(l.root, limit); err != nil {
			return u, err
		}
		if !whole {
			return u, errTooMany
		}
		// Flags change the directories, but not the sum.
		changed = changes(l.root) != before && (attempt == 0 || u != last)
	}
	if changed {
		// What is known now is used, and the next who asks counts again.
		if err := os.Remove(filepath.Join(l.root, sizeFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return u, err
		}
		return u, nil
	}
	if l.counted != nil {
		*l.counted = time.Now()
	}
	return u, l.replace(q, u)
}

// replace puts a new file with one line in the file's place, and locks it before it is seen.
func (l *ledger) replace(q Quota, u Use) error {
	f, err := os.CreateTemp(filepath.Join(l.root, "tmp"), sizeFile+".*")
	if err != nil {
		return err
	}
	name := f.Name()
	_ = f.Close() // made only for its name; opened again to append
	fd, err := retry(func() (int, error) { return unix.Open(name, sizeFlags|unix.O_RDWR, 0) })
	if err != nil {
		os.Remove(name)
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	lock(fd)
	if _, err = retry(func() (int, error) { return unix.Write(fd, fmt.Appendf(nil, "%s\n%d %d\n", q, u.Bytes, u.Messages)) }); err == nil {
		err = os.Rename(name, filepath.Join(l.root, sizeFile))
	}
	if err != nil {
		unix.Close(fd)
		os.Remove(name)
		return fmt.Errorf("write %s: %w", name, err)
	}
	l.close()
	l.fd = fd
	return nil
}

// changes gives the latest time at which a directory of the Maildir was changed, in nanoseconds since 1970.
func changes(root string) (latest int64) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return 0
	}
	folders := []string{""}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), ".") && len(folders) < maxFolders {
			folders = append(folders, e.Name())
		}
	}
	for _, folder := range folders {
		for _, sub := range []string{"new", "cur"} {
			if st, err := os.Stat(filepath.Join(root, folder, sub)); err == nil {
				latest = max(latest, st.ModTime().UnixNano())
			}
		}
	}
	return latest
}

// add writes a line, in one write to the file's end. A file that cannot be written is emptied, so that it is made anew.
func (l *ledger) add(u Use) error {
	if l == nil || u == (Use{}) {
		return nil
	}
	var b [48]byte
	line := strconv.AppendInt(b[:0], u.Bytes, 10)
	line = append(line, ' ')
	line = strconv.AppendInt(line, u.Messages, 10)
	line = append(line, '\n')
	n, err := retry(func() (int, error) { return unix.Write(l.fd, line) })
	if err != nil || n < len(line) {
		// The message is what counts: let the file be made anew.
		return errors.Join(err, unix.Ftruncate(l.fd, 0))
	}
	return nil
}

// rootOf gives the Maildir that a folder belongs to, or the Maildir itself.
func rootOf(folder string) string {
	if strings.HasPrefix(filepath.Base(folder), ".") {
		if _, err := os.Stat(filepath.Join(folder, "maildirfolder")); err == nil {
			return filepath.Dir(folder)
		}
	}
	return folder
}

// CommitWithin is Commit for a user with the quota q: a message that does not fit is not delivered, and ErrOverQuota returned; one
// that does is counted in maildirsize. Deliveries are judged one by one, so that not even a byte too much gets in, as long as everybody
// who delivers does it here. held is what the Maildir holds then, the message among it or not; without a quota it is known only where
// there is a maildirsize.
//
// It takes some 15 µs more than Commit, on average over the lines of a maildirsize, and 1 µs where there is neither a quota nor a
// maildirsize. Reading it is what costs; nothing is kept in memory, since others change the file too.
func (f *File) CommitWithin(q Quota) (p Placed, held Use, err error) { return f.commit(q, true) }

// CommitBeyond is CommitWithin for what is delivered even when there is no room.
func (f *File) CommitBeyond(q Quota) (p Placed, held Use, err error) { return f.commit(q, false) }

func (f *File) commit(q Quota, judge bool) (p Placed, held Use, err error) {
	root := rootOf(f.d.path)
	message := Use{f.size, 1}
	if q.Limited() {
		f.d.counting.Lock()
		defer f.d.counting.Unlock()
	}
	l, err := openLedger(root, q.Limited())
	if l != nil {
		defer l.close()
		if q.Limited() {
			l.counted = &f.d.counted
		}
		held, err = l.total(q, message, math.MaxInt)
	}
	switch {
	case err != nil:
		err = fmt.Errorf("quota of %s: %w", root, err)
	case judge && !q.Fits(held.Plus(message)):
		err = ErrOverQuota
	}
	if err != nil {
		f.Abort()
		return p, held, err
	}
	if p, err = f.Commit(); err != nil {
		return p, held, err
	}
	_ = l.add(message) // the message is there: to report a failure now would have it delivered twice
	return p, held.Plus(message), nil
}

// Recount counts a Maildir's messages and makes its maildirsize anew, with the quota q in its first line. Where there is neither a quota
// nor a maildirsize it does nothing.
func Recount(maildir string, q Quota) (Use, error) {
	l, err := openLedger(maildir, q.Limited())
	if err != nil || l == nil {
		return Use{}, err
	}
	defer l.close()
	return l.recount(q, math.MaxInt)
}

// Tally is Usage for a Maildir whose owner has the quota q; where there is no maildirsize that makes sense, it makes one. One that is not
// there holds nothing.
func Tally(maildir string, q Quota) (Use, error) {
	if s := peekSizes(maildir); s.sound {
		return s.use, nil
	}
	if _, err := os.Stat(filepath.Join(maildir, "tmp")); errors.Is(err, fs.ErrNotExist) {
		return Use{}, nil
	}
	l, err := openLedger(maildir, true)
	if err != nil {
		return Use{}, err
	}
	defer l.close()
	return l.total(q, Use{}, math.MaxInt)
}

// Kept gives the quota in the first line of a Maildir's maildirsize: that of a Maildir whose owner is not known.
func Kept(maildir string) Quota { return peekSizes(maildir).quota }

// maxRoom bounds the messages that Room counts.
const maxRoom = 50000

// Room tells whether a message of size bytes would fit into a Maildir under the quota q. Mostly it only reads maildirsize; when that is
// missing, or says "over quota" and is not to be believed, it counts up to 50,000 messages, some 30 ms. When it cannot tell it says yes:
// the delivery will know.
func Room(maildir string, q Quota, size int64) bool {
	if !q.Limited() {
		return true
	}
	message := Use{max(size, 1), 1}
	if s := peekSizes(maildir); s.sound && s.quota == q && q.Fits(s.use.Plus(message)) {
		return true
	}
	if _, err := os.Stat(filepath.Join(maildir, "tmp")); err != nil {
		return q.Fits(message)
	}
	l, err := openLedger(maildir, true)
	if err != nil {
		return true
	}
	defer l.close()
	u, err := l.total(q, message, maxRoom)
	return err != nil || q.Fits(u.Plus(message))
}

// Expunge removes messages, all of one folder, and takes them out of the Maildir's maildirsize with one line. The errors have the
// messages' order; one that was gone already has none.
func Expunge(messages ...*Message) []error {
	errs := make([]error, len(messages))
	if len(messages) == 0 {
		return errs
	}
	// Without the file, or when it cannot be opened, there is nothing to be kept right: it is made anew when it is needed.
	l, _ := openLedger(rootOf(filepath.Dir(filepath.Dir(messages[0].File))), false)
	defer l.close()
	var gone Use
	for i, m := range messages {
		var size int64
		if size, errs[i] = m.unlink(); size >= 0 {
			gone = gone.Plus(Use{-size, -1})
		}
	}
	_ = l.add(gone) // the messages are gone, whatever the file says
	return errs
}

// unlink deletes the file and gives its size on disk, -1 when there was nothing to delete.
func (m *Message) unlink() (size int64, err error) {
	for {
		size, _ = sizeOf(filepath.Dir(m.File), filepath.Base(m.File))
		err = os.Remove(m.File)
		if err == nil {
			return size, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return -1, err
		}
		file, _, ok := Find(filepath.Dir(filepath.Dir(m.File)), m.Base)
		if !ok || file == m.File {
			return -1, nil
		}
		m.File = file // its flags were changed meanwhile
	}
}
