package maildir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ErrOverQuota says that a message does not fit into its Maildir's quota.
var ErrOverQuota = errors.New("over quota")

// Quota is a Maildir++ quota: the most bytes and the most messages of a Maildir with all its folders; 0 means any number.
type Quota struct{ Bytes, Messages int64 }

// Use is what a Maildir holds: the bytes of its messages on disk, and how many there are. Messages in the folder Trash and those
// marked as deleted count, as they do for Dovecot, and for Courier built with its option trashquota.
type Use struct{ Bytes, Messages int64 }

// Plus gives the sum of u and v.
func (u Use) Plus(v Use) Use { return Use{u.Bytes + v.Bytes, u.Messages + v.Messages} }

// most bounds every number in a quota or a file maildirsize, so that no sum of them overflows.
const most = math.MaxInt64 >> 12

// ParseQuota reads a quota as IndiMail's column pw_shell has it: 52428800, 52428800S, 52428800S,1000C or 1000C; a K, M or G behind a
// number multiplies it. "" and NOQUOTA mean none.
func ParseQuota(s string) (Quota, error) {
	var q Quota
	if s == "" || s == "NOQUOTA" {
		return q, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		into := &q.Bytes
		number, found := strings.CutSuffix(part, "C")
		if found {
			into = &q.Messages
		} else {
			number = strings.TrimSuffix(number, "S")
		}
		shift := 0
		if i := strings.IndexAny(number, "kKmMgG"); i > 0 && i == len(number)-1 {
			shift = 10 * (1 + strings.IndexByte("KMG", number[i]&^0x20))
			number = number[:i]
		}
		n, err := strconv.ParseUint(number, 10, 63)
		if err != nil || *into != 0 {
			return Quota{}, fmt.Errorf("quota %q is not of the form 52428800, 52428800S,1000C or NOQUOTA", s)
		}
		*into = int64(min(n, most>>shift) << shift)
	}
	return q, nil
}

// String gives q as the first line of a maildirsize has it: 52428800S,1000C, and 0S for none.
func (q Quota) String() string {
	switch {
	case q.Messages == 0:
		return strconv.FormatInt(q.Bytes, 10) + "S"
	case q.Bytes == 0:
		return strconv.FormatInt(q.Messages, 10) + "C"
	}
	return strconv.FormatInt(q.Bytes, 10) + "S," + strconv.FormatInt(q.Messages, 10) + "C"
}

// Limited tells whether q limits anything.
func (q Quota) Limited() bool { return q.Bytes > 0 || q.Messages > 0 }

// Fits tells whether u is within q.
func (q Quota) Fits(u Use) bool {
	return (q.Bytes == 0 || u.Bytes <= q.Bytes) && (q.Messages == 0 || u.Messages <= q.Messages)
}

// Percent tells how much of q is used, by bytes or by messages, whichever is more; 0 without a limit.
func (q Quota) Percent(u Use) int {
	percent := 0.0
	if q.Bytes > 0 {
		percent = float64(u.Bytes) * 100 / float64(q.Bytes)
	}
	if q.Messages > 0 {
		percent = max(percent, float64(u.Messages)*100/float64(q.Messages))
	}
	return int(min(percent, 1e9))
}

// Usage tells what a Maildir with its folders holds: by its file maildirsize, or where that is missing or makes no sense by reading
// the names of all messages. It writes nothing. A Maildir that is not there holds nothing.
func Usage(maildir string) (bytes, messages int64, err error) {
	if s := peekSizes(maildir); s.sound {
		return s.use.Bytes, s.use.Messages, nil
	}
	u, _, err := count(maildir, math.MaxInt)
	return u.Bytes, u.Messages, err
}

const (
	sizeFile = "maildirsize"
	// maxSizes is the specification's: a file of so many bytes is made anew from what is there.
	maxSizes = 5120
	// maxLong bounds what is read of one that is longer.
	maxLong = 2 * maxSizes
)

// sizes is what a file maildirsize says.
type sizes struct {
	quota Quota
	use   Use
	lines int  // behind the first
	sound bool // it makes sense, and is not too long
	long  bool // it makes sense, but is to be made anew
}

// parseSizes reads a maildirsize: a line with the quota, then lines of bytes and messages that are to be added up.
func parseSizes(b []byte) (s sizes) {
	head, rest, ok := bytes.Cut(b, lf)
	if !ok || len(rest) == 0 || rest[len(rest)-1] != '\n' {
		return s
	}
	for part := range bytes.SplitSeq(bytes.TrimSpace(head), []byte{','}) {
		if len(part) == 0 {
			return sizes{}
		}
		n, left, ok := nextCount(part[:len(part)-1])
		if !ok || len(left) > 0 || n < 0 {
			return sizes{}
		}
		switch part[len(part)-1] {
		case 'S':
			s.quota.Bytes = n
		case 'C':
			s.quota.Messages = n
		default:
			return sizes{}
		}
	}
	// No splitting into fields: with 600 lines that costs 40 µs a delivery, and this 4.
	for len(rest) > 0 {
		var size, messages int64
		if size, rest, ok = nextCount(rest); !ok {
			return sizes{}
		}
		if messages, rest, ok = nextCount(rest); !ok {
			return sizes{}
		}
		if rest = bytes.TrimLeft(rest, " \t\r"); len(rest) == 0 || rest[0] != '\n' {
			return sizes{}
		}
		rest = rest[1:]
		s.use = s.use.Plus(Use{size, messages})
		s.lines++
	}
	s.sound = s.use.Bytes >= 0 && s.use.Messages >= 0 && len(b) < maxSizes
	s.long = s.use.Bytes >= 0 && s.use.Messages >= 0 && !s.sound
	return s
}

// nextCount reads the whole number that b begins with, after blanks, and gives what is behind it.
func nextCount(b []byte) (n int64, rest []byte, ok bool) {
	i := 0
	for i < len(b) && (b[i] == ' ' || b[i] == '\t') {
		i++
	}
	negative := i < len(b) && b[i] == '-'
	if negative {
		i++
	}
	first := i
	for ; i < len(b) && b[i]-'0' <= 9; i++ {
		if n = n*10 + int64(b[i]-'0'); n > most {
			return 0, b, false
		}
	}
	if negative {
		n = -n
	}
	return n, b[i:], i > first
}

// maxFolders bounds the folders of one Maildir that are counted.
const maxFolders = 100000

// count adds up the messages of a Maildir and its folders. It stops after limit names; whole tells that it did not.
func count(maildir string, limit int) (u Use, whole bool, err error) {
	entries, err := os.ReadDir(maildir)
	if errors.Is(err, fs.ErrNotExist) {
		return u, true, nil
	}
	if err != nil {
		return u, false, err
	}
	folders := []string{""}
	for _, e := range entries {
		// No links: they lead to what belongs to others, or round in a circle.
		if e.IsDir() && strings.HasPrefix(e.Name(), ".") && len(folders) < maxFolders {
			folders = append(folders, e.Name())
		}
	}
	for _, folder := range folders {
		for _, sub := range []string{"new", "cur"} {
			if limit, err = countIn(filepath.Join(maildir, folder, sub), &u, limit); err != nil {
				return u, false, err
			}
			if limit <= 0 {
				return u, false, nil
			}
		}
	}
	return u, true, nil
}

// countIn adds the messages of one directory to u, and gives what is left of limit.
func countIn(dir string, u *Use, limit int) (int, error) {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return limit, nil
	}
	if err != nil {
		return limit, err
	}
	defer d.Close()
	for limit > 0 {
		names, err := d.Readdirnames(min(limit, 1024))
		for _, name := range names {
			limit--
			if strings.HasPrefix(name, ".") {
				continue
			}
			if size, ok := sizeOf(dir, name); ok {
				*u = u.Plus(Use{size, 1})
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return limit, fmt.Errorf("read %s: %w", dir, err)
		}
	}
	return limit, nil
}

// sizeOf gives a message's size on disk, from its name if that tells it; ok is false when it is gone, or no file.
func sizeOf(dir, name string) (size int64, ok bool) {
	base, _, _ := strings.Cut(name, ":")
	for i := 0; ; {
		j := strings.Index(base[i:], ",S=")
		if j < 0 {
			break
		}
		i += j + 3
		text, _, _ := strings.Cut(base[i:], ",")
		if n, err := strconv.ParseUint(text, 10, 63); err == nil && n <= most {
			return int64(n), true
		}
	}
	st, err := os.Lstat(filepath.Join(dir, name))
	if err != nil || !st.Mode().IsRegular() {
		return 0, false
	}
	return min(st.Size(), most), true
}
