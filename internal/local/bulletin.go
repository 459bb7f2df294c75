package local

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/message"
)

// Bulletin puts one message into the Maildirs of many users, each once, however often it is interrupted: the log of its directory
// tells who has it, and its file in a Maildir has a name that does not change. One process works on a bulletin at a time.
type Bulletin struct {
	// ID is made of the message: the same message is the same bulletin.
	ID    string
	began time.Time
	host  string
	text  []byte
	log   *os.File
	sent  map[string]bool
	// resumed is true when an earlier run may have left files that the log does not tell of.
	resumed, begun bool
	// dir is the bulletin's directory.
	dir     string
	pending []string
	disks   map[uint64]*os.File
}

// MaxBulletin bounds a bulletin in bytes.
const MaxBulletin = 64 << 20

// ErrBulletinRuns says that another process works on the same bulletin.
var ErrBulletinRuns = errors.New("another run of this bulletin is under way")

// OpenBulletin begins a bulletin, or goes on with it, in a directory under root. The message needs a From field; Date and Message-ID are
// added where they are missing. Close it.
func OpenBulletin(root string, text []byte, host string, now func() time.Time) (*Bulletin, error) {
	if len(text) > MaxBulletin {
		return nil, fmt.Errorf("the message has more than %d bytes", MaxBulletin)
	}
	text = maildir.LFInPlace(bytes.Clone(text))
	if !bytes.HasSuffix(text, []byte("\n")) {
		text = append(text, '\n')
	}
	has := map[string]bool{}
	for _, f := range message.Fields(text[:message.HeaderEnd(text)]) {
		has[strings.ToLower(string(f.Name))] = true
	}
	if !has["from"] || !has["subject"] {
		return nil, errors.New("the file is no message: its header must have at least From and Subject, and an empty line behind it")
	}
	sum := sha256.Sum256(text)
	b := &Bulletin{ID: hex.EncodeToString(sum[:8]), host: host, sent: map[string]bool{}, disks: map[uint64]*os.File{}}
	b.dir = filepath.Join(root, b.ID)
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if b.log, err = os.OpenFile(filepath.Join(b.dir, "log"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if err = unix.Flock(int(b.log.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		err = ErrBulletinRuns
	} else {
		err = b.readLog(now())
	}
	if err != nil {
		b.log.Close()
		return nil, fmt.Errorf("bulletin %s: %w", b.ID, err)
	}
	head := ""
	if !has["date"] {
		head += "Date: " + message.Date822(b.began) + "\n"
	}
	if !has["message-id"] {
		head += "Message-ID: <bulletin." + b.ID + "@" + host + ">\n"
	}
	b.text = append([]byte(head), text...)
	return b, nil
}

// readLog reads when the bulletin began and who has it, and cuts off a line that was not written whole.
func (b *Bulletin) readLog(now time.Time) error {
	whole := int64(0)
	r := bufio.NewReader(b.log)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			break
		}
		line = strings.TrimSuffix(line, "\n")
		if whole == 0 {
			seconds, found := strings.CutPrefix(line, "began ")
			n, err := strconv.ParseInt(seconds, 10, 64)
			if !found || err != nil {
				return errors.New("its log is damaged: the first line does not tell when it began")
			}
			b.began, b.resumed = time.Unix(n, 0), true
		} else if address, found := strings.CutPrefix(line, "+"); found {
			b.sent[address] = true
		} else if address, found := strings.CutPrefix(line, "-"); found {
			delete(b.sent, address)
		}
		whole += int64(len(line)) + 1
	}
	if err := b.log.Truncate(whole); err != nil {
		return err
	}
	if _, err := b.log.Seek(whole, 0); err != nil {
		return err
	}
	if whole == 0 {
		b.began = now.Truncate(time.Second)
	}
	return nil
}

// begin writes down when the bulletin began, before its first delivery: the files' names hang on it.
func (b *Bulletin) begin() error {
	if b.begun || b.resumed {
		return nil
	}
	if _, err := fmt.Fprintf(b.log, "began %d\n", b.began.Unix()); err != nil {
		return err
	}
	b.begun = true
	return b.log.Sync()
}

// Has tells whether a user got it, by the log.
func (b *Bulletin) Has(u directory.User) bool { return b.sent[u.Address().String()] }

// Sent counts who got it.
func (b *Bulletin) Sent() int { return len(b.sent) }

func (b *Bulletin) key() maildir.Key {
	return maildir.Key{Birth: b.began, Queue: "bulletin-" + b.ID, Host: b.host}
}

// drop opens a user's Maildir.
func (b *Bulletin) drop(u directory.User) (*maildir.Drop, error) {
	if !filepath.IsAbs(u.Dir) {
		return nil, fmt.Errorf("the home %q is not an absolute path", u.Dir)
	}
	return maildir.OpenDrop(filepath.Join(u.Dir, "Maildir"))
}

// Deliver puts the message into a user's Maildir unless it is there. It counts as delivered after Flush. maildir.ErrOverQuota when it does
// not fit into the user's quota.
func (b *Bulletin) Deliver(u directory.User) error {
	if err := b.begin(); err != nil {
		return err
	}
	drop, err := b.drop(u)
	if err != nil {
		return err
	}
	defer drop.Close()
	head := []byte("Return-Path: <>\nDelivered-To: " + u.Address().String() + "\n")
	if b.resumed {
		old, found, err := drop.Find(b.key())
		if err != nil {
			return err
		}
		if found && drop.Complete(old, int64(len(head)+len(b.text))) {
			return b.delivered(u, drop)
		}
		if found {
			if err := drop.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	f, err := drop.NewFile(b.key().Base())
	if err != nil {
		return err
	}
	if err := f.Append(head, b.text); err != nil {
		f.Abort()
		return err
	}
	quota, err := maildir.ParseQuota(u.Quota)
	if err != nil {
		f.Abort()
		return err
	}
	if _, _, err := f.CommitWithin(quota); err != nil {
		return err
	}
	return b.delivered(u, drop)
}

func (b *Bulletin) delivered(u directory.User, drop *maildir.Drop) error {
	if b.disks[drop.Device()] == nil {
		disk, err := drop.OpenDir()
		if err != nil {
			return err
		}
		b.disks[drop.Device()] = disk
	}
	b.pending = append(b.pending, u.Address().String())
	return nil
}

// Flush makes what was delivered durable, and then writes down who has it.
func (b *Bulletin) Flush() error {
	for device, disk := range b.disks {
		err := syncfs(disk)
		disk.Close()
		delete(b.disks, device)
		if err != nil {
			return fmt.Errorf("sync %s: %w", disk.Name(), err)
		}
	}
	for _, address := range b.pending {
		b.sent[address] = true
	}
	return b.write("+")
}

// write appends the pending addresses to the log.
func (b *Bulletin) write(sign string) error {
	var lines strings.Builder
	for _, address := range b.pending {
		lines.WriteString(sign + address + "\n")
	}
	b.pending = b.pending[:0]
	if _, err := b.log.WriteString(lines.String()); err != nil {
		return err
	}
	return b.log.Sync()
}

// Withdraw takes the message out of a user's Maildir, read or not; found is false when it is not there any more.
func (b *Bulletin) Withdraw(u directory.User) (found bool, err error) {
	drop, err := b.drop(u)
	if err != nil {
		return false, err
	}
	defer drop.Close()
	old, found, err := drop.Find(b.key())
	if err == nil && found {
		err = drop.Remove(old)
	}
	if err != nil {
		return false, err
	}
	delete(b.sent, u.Address().String())
	b.pending = append(b.pending, u.Address().String())
	return found, b.write("-")
}

// Close gives the bulletin free; what was delivered and not flushed is found again by its name.
func (b *Bulletin) Close() error {
	for _, disk := range b.disks {
		disk.Close()
	}
	if !b.begun && !b.resumed {
		// Nobody got it: nothing is left to tell.
		os.RemoveAll(b.dir)
	}
	return b.log.Close()
}
