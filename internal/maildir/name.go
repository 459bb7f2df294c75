// Package maildir is vocabulary: the Maildir++ layout on disk, its file names and flags, how a message is dropped into
// one and how it is read back. Files hold LF line ends; readers get CRLF. It must not know whose mailbox it is, which
// queue delivers or which protocol reads.
package maildir

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"time"
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

// Entry is one message file as its name tells it.
type Entry struct {
	// Name is the file name in its folder; Sub is that folder, "new" or "cur".
	Name string
	Sub  string
	// Size and WireSize come from the name's S= and W= fields; -1 when it has none.
	Size     int64
	WireSize int64
	// Flags are the info letters after ":2,", sorted: D draft, F flagged, P passed, R replied, S seen, T trashed, and
	// a to z for keywords.
	Flags string
}

// Parse reads a file name found in the folder sub.
func Parse(sub, name string) Entry {
	e := Entry{Name: name, Sub: sub, Size: -1, WireSize: -1}
	base, info, _ := strings.Cut(name, ":")
	if flags, ok := strings.CutPrefix(info, "2,"); ok && sub == "cur" {
		e.Flags = normalFlags(flags)
	}
	_, fields, more := strings.Cut(base, ",")
	for more {
		var field string
		field, fields, more = strings.Cut(fields, ",")
		if v, ok := strings.CutPrefix(field, "S="); ok {
			e.Size = parseSize(v)
		} else if v, ok := strings.CutPrefix(field, "W="); ok {
			e.WireSize = parseSize(v)
		}
	}
	return e
}

func parseSize(s string) int64 {
	n, err := strconv.ParseUint(s, 10, 62)
	if err != nil {
		return -1
	}
	return int64(n)
}

// normalFlags keeps letters only, sorted, each once.
func normalFlags(s string) string {
	letters := make([]byte, 0, len(s))
	for i := range len(s) {
		if c := s[i] | 0x20; c >= 'a' && c <= 'z' {
			letters = append(letters, s[i])
		}
	}
	slices.Sort(letters)
	return string(slices.Compact(letters))
}

// Base gives the name without its flags; it stays the same for the life of the message.
func (e Entry) Base() string {
	base, _, _ := strings.Cut(e.Name, ":")
	return base
}

// Unique gives the base without size fields.
func (e Entry) Unique() string {
	u, _, _ := strings.Cut(e.Base(), ",")
	return u
}

// Has tells whether the flag letter is set.
func (e Entry) Has(flag byte) bool { return strings.IndexByte(e.Flags, flag) >= 0 }

// UIDL gives the unique-id for POP3 (RFC 1939 section 7): 1 to 70 characters from 0x21 to 0x7E, the same in every
// session. It is the unique name, or a hash of it where that does not fit.
func (e Entry) UIDL() string {
	u := e.Unique()
	fits := len(u) >= 1 && len(u) <= 70
	for i := 0; fits && i < len(u); i++ {
		fits = u[i] >= 0x21 && u[i] <= 0x7e
	}
	if fits {
		return u
	}
	sum := sha256.Sum256([]byte(u))
	return hex.EncodeToString(sum[:20])
}

// Birth is the time in the name, to the second; false when the name does not begin with one.
func (e Entry) Birth() (time.Time, bool) {
	digits, _, _ := strings.Cut(e.Name, ".")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > 1<<40 {
		return time.Time{}, false
	}
	return time.Unix(n, 0), true
}

// compareNames orders bases by arrival: runs of digits compare as numbers, all else as bytes.
func compareNames(a, b string) int {
	x, y := a, b
	for x != "" && y != "" {
		dx, dy := digits(x), digits(y)
		if dx > 0 && dy > 0 {
			nx, ny := strings.TrimLeft(x[:dx], "0"), strings.TrimLeft(y[:dy], "0")
			if c := cmp.Or(cmp.Compare(len(nx), len(ny)), cmp.Compare(nx, ny)); c != 0 {
				return c
			}
			x, y = x[dx:], y[dy:]
			continue
		}
		if x[0] != y[0] {
			return cmp.Compare(x[0], y[0])
		}
		x, y = x[1:], y[1:]
	}
	return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(a, b))
}

func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}
