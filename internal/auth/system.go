package auth

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"
)

// System is the host's own users, in the files passwd(5) and shadow(5). Only root may read the second: sys-checkpwd does, and the parent of
// the serving process (architecture, section 7). Users of other name services are PAM's.
type System struct {
	// Passwd and Shadow are the files; "" means those in /etc.
	Passwd, Shadow string
	Now            func() time.Time
}

// SystemUser is one of them.
type SystemUser struct {
	Name string `json:"name"`
	Home string `json:"home"`
	UID  uint32 `json:"uid"`
	GID  uint32 `json:"gid"`
}

// maxLine is the longest line of either file that is read.
const maxLine = 64 << 10

var (
	// errNoSystemUser and errSystemPassword are told to nobody but the log.
	errNoSystemUser   = errors.New("no such user of the host")
	errSystemPassword = errors.New("wrong password")
)

// Find finds a user; refused is why there is none whom a password could let in, err why nothing can be said. Root is nobody.
func (s System) Find(name string) (user SystemUser, refused, err error) {
	fields, err := find(cmp.Or(s.Passwd, "/etc/passwd"), name, 7)
	if err != nil {
		return user, nil, err
	}
	if fields == nil {
		return user, errNoSystemUser, nil
	}
	uid, uidErr := strconv.ParseUint(fields[2], 10, 32)
	gid, gidErr := strconv.ParseUint(fields[3], 10, 32)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return user, nil, fmt.Errorf("passwd: user %s: %w", name, err)
	}
	if uid == 0 {
		return user, errors.New("root's password is not asked for over the network"), nil
	}
	return SystemUser{Name: name, Home: fields[5], UID: uint32(uid), GID: uint32(gid)}, nil, nil
}

// nobodysForm is what a password is compared with where there is none to compare with, so that both take the same time.
const nobodysForm = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$GmcwIgvdUC9qLWcKCi6gklUa1dM3ziD43YxYNURLKy0"

// Check finds a user as Find does and compares the password. Locked and expired accounts are never let in.
func (s System) Check(name, password string) (user SystemUser, refused, err error) {
	found, refused, err := s.Find(name)
	if err != nil {
		return user, nil, err
	}
	form := nobodysForm
	if refused == nil {
		secret, err := find(cmp.Or(s.Shadow, "/etc/shadow"), name, 9)
		switch {
		case err != nil:
			return user, nil, err
		case secret == nil:
			refused = errNoSystemUser
		default:
			if why := expired(secret, s.Now()); why != "" {
				refused = errors.New(why)
			}
			form = secret[1]
		}
	}
	stored, err := ParseStored(form, "")
	if err != nil || stored.Bare {
		refused = cmp.Or(refused, errors.New("the account has no password that could be compared"))
		if stored, err = ParseStored(nobodysForm, ""); err != nil {
			return user, nil, err
		}
	}
	if !stored.matches(password) {
		refused = cmp.Or(refused, errSystemPassword)
	}
	if refused != nil {
		return user, refused, nil
	}
	return found, nil, nil
}

// find gives the fields of the line for name; nil when there is none.
func find(file, name string, fields int) ([]string, error) {
	if name == "" || strings.ContainsAny(name, ":\n\x00") {
		return nil, nil
	}
	f, err := os.Open(file)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("%w: only root may", err)
		}
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		rest, ours := strings.CutPrefix(lines.Text(), name+":")
		if !ours {
			continue
		}
		if all := append([]string{name}, strings.Split(rest, ":")...); len(all) >= fields {
			return all, nil
		}
		return nil, fmt.Errorf("%s: the line of %s has too few fields", file, name)
	}
	return nil, lines.Err()
}

// expired tells why a line of shadow(5) lets nobody in today: the account's own end, or a password that had to be changed and the days of grace are
// over.
func expired(fields []string, now time.Time) string {
	day := now.Unix() / (24 * 60 * 60)
	number := func(i int) int64 {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return -1
		}
		return n
	}
	changed, most, inactive, end := number(2), number(4), number(6), number(7)
	switch {
	case end >= 0 && day >= end:
		return "the account has expired"
	case changed > 0 && most >= 0 && day > changed+most+max(inactive, 0) && inactive >= 0:
		return "the password has expired"
	}
	return ""
}
