package imapd

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/maildir"
)

const allFlags = `\Answered \Flagged \Deleted \Seen \Draft`

// flagLetters maps IMAP's flags to a Maildir's letters.
var flagLetters = [...]struct {
	flag   string
	letter byte
}{{`\Answered`, 'R'}, {`\Flagged`, 'F'}, {`\Deleted`, 'T'}, {`\Seen`, 'S'}, {`\Draft`, 'D'}}

type numbered struct {
	maildir.Message
	uid uint32
}

// mailbox is a selected folder: its messages in the order of their UIDs.
type mailbox struct {
	path     string
	readOnly bool
	uids     *uidList
	messages []numbered
}

func openMailbox(path string) (*mailbox, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("folder %q: the user has no home", path)
	}
	b := &mailbox{path: path}
	err := b.load()
	if errors.Is(err, fs.ErrNotExist) {
		// It is not there yet, as of IndiMail's users on a new disk. A delivery would make it, too.
		if err = maildir.Create(path); err == nil {
			err = b.load()
		}
	}
	return b, err
}

// load reads the folder and numbers what is new.
func (b *mailbox) load() error {
	list, err := maildir.List(b.path)
	if err != nil {
		return err
	}
	b.uids, err = readUIDs(b.path, list)
	if err != nil {
		return err
	}
	b.messages = b.messages[:0]
	byBase := make(map[string]maildir.Message, len(list))
	for _, m := range list {
		byBase[m.Base] = m
	}
	for _, e := range b.uids.entries {
		if m, ok := byBase[e.base]; ok {
			b.messages = append(b.messages, numbered{m, e.uid})
		}
	}
	return nil
}

// refresh shows new messages; those that others removed stay until the next SELECT.
func (b *mailbox) refresh(c *session) {
	old := b.messages
	fresh := &mailbox{path: b.path}
	if fresh.load() != nil {
		return
	}
	b.uids = fresh.uids
	last := uint32(0)
	if len(old) > 0 {
		last = old[len(old)-1].uid
	}
	for _, m := range fresh.messages {
		if m.uid > last {
			old = append(old, m)
		}
	}
	if len(old) != len(b.messages) {
		b.messages = old
		fmt.Fprintf(c.out, "* %d EXISTS\r\n", len(old))
	}
}

func (b *mailbox) unseen() (n int) {
	for _, m := range b.messages {
		if !strings.ContainsRune(m.Flags, 'S') {
			n++
		}
	}
	return n
}

// deleted tells how many messages are marked as deleted, and their size in bytes (RFC 9208 section 4.1.4).
func (b *mailbox) deleted() (messages int, size int64) {
	for i := range b.messages {
		if m := &b.messages[i]; strings.ContainsRune(m.Flags, 'T') {
			messages++
			if n, err := m.WireSize(); err == nil {
				size += n
			}
		}
	}
	return messages, size
}

// flags gives the flags in IMAP's words.
func flags(letters string) string {
	var words []string
	for _, f := range flagLetters {
		if strings.IndexByte(letters, f.letter) >= 0 {
			words = append(words, f.flag)
		}
	}
	return strings.Join(words, " ")
}

func letter(flag string) (byte, bool) {
	for _, f := range flagLetters {
		if strings.EqualFold(f.flag, flag) {
			return f.letter, true
		}
	}
	return 0, false
}

// uidList is Dovecot's dovecot-uidlist, version 3: a header "3 V<validity> N<next>" and a line "UID :NAME" a message.
type uidList struct {
	validity, next uint32
	entries        []uidEntry
}

type uidEntry struct {
	uid  uint32
	base string
}

// readUIDs reads the list of a Maildir, numbers the messages that it does not name, and writes it if it changed.
func readUIDs(path string, list []maildir.Message) (*uidList, error) {
	file := filepath.Join(path, "dovecot-uidlist")
	u := &uidList{next: 1}
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	present := make(map[string]bool, len(list))
	for _, m := range list {
		present[m.Base] = true
	}
	header := ""
	known := map[string]bool{}
	scanner := bufio.NewScanner(bytes.NewReader(text))
	for scanner.Scan() {
		line := scanner.Text()
		if header == "" {
			header = line
			fields := strings.Fields(line)
			for _, f := range fields[min(1, len(fields)):] {
				n, err := strconv.ParseUint(f[1:], 10, 32)
				if err != nil {
					continue
				}
				switch f[0] {
				case 'V':
					u.validity = uint32(n)
				case 'N':
					u.next = uint32(n)
				}
			}
			if len(fields) == 0 || fields[0] != "3" || u.validity == 0 {
				return nil, fmt.Errorf("%s: not a list of version 3", file)
			}
			continue
		}
		number, name, ok := strings.Cut(line, " :")
		number, _, _ = strings.Cut(number, " ")
		uid, err := strconv.ParseUint(number, 10, 32)
		base, _, _ := strings.Cut(name, ":2,")
		if !ok || err != nil || uid == 0 || known[base] {
			continue
		}
		known[base] = true
		u.next = max(u.next, uint32(uid)+1)
		if present[base] {
			u.entries = append(u.entries, uidEntry{uint32(uid), base})
		}
	}
	changed := header == ""
	if u.validity == 0 {
		u.validity = uint32(time.Now().Unix())
	}
	for _, m := range list {
		if !known[m.Base] {
			u.entries = append(u.entries, uidEntry{u.next, m.Base})
			u.next++
			changed = true
		}
	}
	if !changed {
		return u, nil
	}
	return u, u.write(file)
}

func (u *uidList) write(file string) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "3 V%d N%d\n", u.validity, u.next)
	for _, e := range u.entries {
		fmt.Fprintf(&b, "%d :%s\n", e.uid, e.base)
	}
	f, err := os.CreateTemp(filepath.Dir(file), "dovecot-uidlist.tmp*")
	if err != nil {
		return err
	}
	_, err = f.Write(b.Bytes())
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
