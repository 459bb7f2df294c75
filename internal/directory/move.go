package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/maildir"
)

// A home moves while mail comes in. On one file system it changes places, in one system call, with a symbolic link that leads to the new
// place: who goes by the old path, from a cache or in a session, is led there, and at no moment is there nothing. On another file
// system the home is copied first, as often as it takes until little changes; then the link takes the old one's place in the same way,
// and what came into the old one meanwhile is moved. A delivery that holds the old Maildir open must make its file in tmp there: tmp is
// removed once it is empty, after which nothing can come any more (maildir.Drop then begins anew by the path). The table indigo_moved
// remembers the links; they are removed a day later.

const (
	movedTo = "home moved to "
	// former is what the old directory is called while the rest of it is moved.
	former = ".moved"
	// copyMark is in a directory that a home is being copied to; it holds the path of that home.
	copyMark = ".indigo-moving"
	// linksFor is how long a link stays where a home was.
	linksFor = 24 * time.Hour
	// staleTmp is how old a file in tmp is that nobody writes any more, as readers of Maildirs have it.
	staleTmp = 36 * time.Hour
)

// MoveUser moves a user's home to dir, an absolute path that nobody has; "" stands for the place that a new user of that name would get. Who has no home gets one.
// Mail may come in and users be logged in meanwhile. It gives the places before and after. After an interruption the same call goes on.
func (s *Store) MoveUser(ctx context.Context, a addr.Address, dir string) (from, to string, err error) {
	u, err := s.User(ctx, a)
	if err != nil {
		return "", "", fmt.Errorf("user %s: %w", a, err)
	}
	from = filepath.Clean(u.Dir)
	to = filepath.Clean(dir)
	if dir == "" {
		d, err := s.Domain(ctx, u.Domain)
		if err != nil {
			return "", "", err
		}
		err = s.inTransaction(ctx, func(tx *sql.Tx) error {
			to, err = s.newHomes(tx).choose(ctx, newRow{name: u.Name, domain: d})
			return err
		})
		if err != nil {
			return from, "", err
		}
	}
	inside := func(dir, of string) bool { return strings.HasPrefix(dir, of+"/") }
	switch {
	case u.Dir != "" && !filepath.IsAbs(from):
		return from, to, fmt.Errorf("user %s: the home %q is no absolute path", a, u.Dir)
	case !filepath.IsAbs(to) || len(to) > maxDir || to == "/" || strings.ContainsAny(to, "\x00\r\n:"):
		return from, to, fmt.Errorf("the new home %q must be an absolute path of at most %d bytes, without a colon", dir, maxDir)
	case inside(to, from) || inside(from, to):
		return from, to, fmt.Errorf("of %s and %s one lies in the other", from, to)
	case from == to:
		// Moved before; what was left behind may wait still.
		return from, to, s.drainMoved(ctx, to)
	}
	err = s.inTransaction(ctx, func(tx *sql.Tx) error {
		user, err := s.userOf(ctx, tx, to, u.Name, u.Domain)
		if err == nil && user != "" {
			err = fmt.Errorf("%s is the directory of %s", to, user)
		}
		return err
	})
	if err != nil {
		return from, to, err
	}
	if u.Dir == "" {
		return "", to, s.giveHome(ctx, u, to)
	}
	if err := s.drainMoved(ctx, from); err != nil {
		return from, to, err
	}
	if err := s.switchHome(ctx, from, to); err != nil {
		return from, to, fmt.Errorf("move %s to %s: %w", from, to, err)
	}
	err = s.transaction(ctx, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, s.engine.rebind("UPDATE indimail SET pw_dir = ?, timestamp = timestamp WHERE pw_name = ? AND pw_domain = ? AND pw_dir = ?"), to, u.Name, u.Domain, u.Dir)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n != 1 {
			return errors.Join(err, fmt.Errorf("user %s was changed meanwhile; run the same command again", a))
		}
		if _, err := tx.ExecContext(ctx, s.engine.rebind("DELETE FROM indigo_moved WHERE old_dir IN (?, ?)"), from, to); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.engine.insert("indigo_moved", "old_dir", "new_dir", "moved"), from, to, s.config.Now().UTC().Format(stampForm)); err != nil {
			return err
		}
		err = s.rewriteLines(ctx, tx, from, func(target string) string {
			if target == from || inside(target, from) {
				return to + target[len(from):]
			}
			return target
		})
		return errors.Join(err, s.record(ctx, tx, u.Name, u.Domain, movedTo+to))
	})
	if err != nil {
		return from, to, err
	}
	if err := s.settle(ctx); err != nil {
		return from, to, err
	}
	return from, to, s.drain(ctx, from, to)
}

// giveHome makes a home for a user who has none: IndiMail's rows may be so.
func (s *Store) giveHome(ctx context.Context, u User, to string) error {
	if err := maildir.Create(filepath.Join(to, "Maildir")); err != nil {
		return err
	}
	n, err := s.change(ctx, u.Name, u.Domain, movedTo+to, "UPDATE indimail SET pw_dir = ?, timestamp = timestamp WHERE pw_name = ? AND pw_domain = ? AND coalesce(pw_dir, '') = ''", to, u.Name, u.Domain)
	if err == nil && n != 1 {
		err = fmt.Errorf("user %s was changed meanwhile; run the same command again", u.Address())
	}
	return err
}

// Reorganize moves homes of a domain out of directories that have more than they may, to where new users' would go, and lets further users
// fill directories that have room again. Mail may come in meanwhile; an interrupted call is finished by the next. moved is told of each.
func (s *Store) Reorganize(ctx context.Context, domain string, moved func(a addr.Address, from, to string)) error {
	d, err := s.ownDomain(ctx, domain)
	if err != nil {
		return err
	}
	most := 0
	err = s.transaction(ctx, func(tx *sql.Tx) error {
		if err := tx.QueryRowContext(ctx, s.engine.rebind("SELECT coalesce(users_per_level, 0) FROM indigo_domain WHERE domain = ?"), d.Name).Scan(&most); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, s.engine.rebind("UPDATE indigo_domain SET full_levels = 0, created = created WHERE domain = ?"), d.Name)
		return err
	})
	if err != nil {
		return err
	}
	if most == 0 {
		most = perLevel
	}
	homes := map[string]int{}
	everyone := func(each func(User) error) error {
		for after := ""; ; {
			users, err := s.Users(ctx, d.Name, after, 1000)
			if err != nil {
				return err
			}
			for _, u := range users {
				if err := each(u); err != nil {
					return err
				}
				after = u.Name
			}
			if len(users) < 1000 {
				return nil
			}
		}
	}
	if err := everyone(func(u User) error { homes[filepath.Dir(u.Dir)]++; return nil }); err != nil {
		return err
	}
	return everyone(func(u User) error {
		if homes[filepath.Dir(u.Dir)] <= most {
			return nil
		}
		from, to, err := s.MoveUser(ctx, u.Address(), "")
		if err != nil {
			return err
		}
		homes[filepath.Dir(from)]--
		homes[filepath.Dir(to)]++
		moved(u.Address(), from, to)
		return nil
	})
}

func crossesDevices(err error) bool { return errors.Is(err, unix.EXDEV) }

// switchHome makes to the home and from a link to it. What an interrupted call did is not done again.
func (s *Store) switchHome(ctx context.Context, from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	info, err := os.Lstat(from)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// A home that was never made.
		if err := os.MkdirAll(filepath.Join(to, "Maildir"), 0o700); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(from), 0o700); err != nil {
			return err
		}
		return os.Symlink(to, from)
	case err != nil:
		return err
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err == nil && target == to {
			return nil
		}
		return errors.Join(err, fmt.Errorf("%s is a symbolic link to %s: give the home itself", from, target))
	case !info.IsDir():
		return fmt.Errorf("%s is no directory", from)
	}
	there, err := os.Lstat(to)
	copying := false
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case there.Mode()&fs.ModeSymlink != 0:
		// A link that an earlier move left: to this home, or to itself.
		target, err := os.Readlink(to)
		if err == nil && target != from && target != to {
			if left, check := s.linkLeft(ctx, to, target); check != nil || !left {
				err = errors.Join(check, fmt.Errorf("%s is a symbolic link to %s", to, target))
			}
		}
		if err != nil {
			return err
		}
	default:
		mark, err := os.ReadFile(filepath.Join(to, copyMark))
		if copying = err == nil && string(mark) == from; copying {
			break
		}
		if err := os.Remove(to); err != nil {
			return fmt.Errorf("%s is there and not empty: %w", to, err)
		}
	}
	if !copying {
		if err := replaceLink(to, to); err != nil {
			return err
		}
		failed := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
		if failed == nil {
			return errors.Join(syncDir(filepath.Dir(from)), syncDir(filepath.Dir(to)))
		}
		if err := os.Remove(to); err != nil {
			return err
		}
		if !crossesDevices(failed) {
			return fmt.Errorf("this file system does not exchange two names at once (renameat2): %w", failed)
		}
		if err := os.Mkdir(to, 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(to+".mark", []byte(from), 0o600); err != nil {
			return err
		}
		if err := os.Rename(to+".mark", filepath.Join(to, copyMark)); err != nil {
			return err
		}
	}
	m := mirror{made: map[string]bool{}}
	for range 10 {
		n, err := m.pass(ctx, from, to)
		if err != nil {
			return err
		}
		if n < 100 {
			break
		}
	}
	if err := syncTree(to); err != nil {
		return err
	}
	if err := replaceLink(to, from+former); err != nil {
		return err
	}
	m.durable = true
	if _, err := m.pass(ctx, from, to); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, from+former, unix.RENAME_EXCHANGE); err != nil {
		return fmt.Errorf("this file system does not exchange two names at once (renameat2): %w", err)
	}
	return errors.Join(syncTree(to), syncDir(filepath.Dir(from)))
}

// linkLeft tells whether a move left this link.
func (s *Store) linkLeft(ctx context.Context, from, to string) (bool, error) {
	all, err := s.movedTo(ctx, to)
	return slices.ContainsFunc(all, func(m moved) bool { return m.from == from }), err
}

// replaceLink makes a symbolic link, in the place of another if there is one.
func replaceLink(target, path string) error {
	fresh := path + ".link"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, fresh); err != nil {
		return err
	}
	return os.Rename(fresh, path)
}

// syncTree makes everything on a directory's file system durable.
func syncTree(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return &fs.PathError{Op: "syncfs", Path: dir, Err: err}
	}
	return nil
}

// isMail tells whether a directory of a Maildir holds messages: their names are theirs for ever, but for the flags.
func isMail(dir string) bool { return slices.Contains([]string{"cur", "new"}, filepath.Base(dir)) }

func baseName(name string) string {
	base, _, _ := strings.Cut(name, ":")
	return base
}

// mirror makes one directory what another is, in passes.
type mirror struct {
	// durable has each file synced.
	durable bool
	// made are the files that a pass made: no other is removed.
	made map[string]bool
}

// pass gives how many files it touched.
func (m *mirror) pass(ctx context.Context, from, to string) (touched int, err error) {
	entries, err := os.ReadDir(from)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	info, err := os.Stat(from)
	if err != nil {
		return 0, err
	}
	if err := os.MkdirAll(to, info.Mode().Perm()|0o700); err != nil {
		return 0, err
	}
	wanted := map[string]bool{}
	for _, e := range entries {
		wanted[e.Name()] = true
		source, target := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		switch {
		case e.IsDir():
			n, err := m.pass(ctx, source, target)
			if err != nil {
				return 0, err
			}
			touched += n
		case filepath.Base(from) == "tmp":
			// No mail yet; where it will be, it is made anew.
		case e.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(source)
			if err == nil {
				err = replaceLink(link, target)
			}
			if err != nil {
				return 0, err
			}
		case e.Type().IsRegular():
			copied, err := copyFile(source, target, m.durable)
			if errors.Is(err, fs.ErrNotExist) {
				// Read or removed meanwhile: the next pass sees it.
				touched++
				continue
			}
			if err != nil {
				return 0, err
			}
			if copied {
				touched++
			}
			m.made[target] = true
		}
	}
	there, err := os.ReadDir(to)
	if err != nil {
		return 0, err
	}
	for _, e := range there {
		if path := filepath.Join(to, e.Name()); !wanted[e.Name()] && m.made[path] {
			touched++
			delete(m.made, path)
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return 0, err
			}
		}
	}
	return touched, nil
}

// copyFile copies a file with its mode and time, which is when a message came, unless to is as long and as old.
func copyFile(from, to string, durable bool) (copied bool, err error) {
	in, err := os.Open(from)
	if err != nil {
		return false, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return false, err
	}
	if there, err := os.Lstat(to); err == nil && there.Mode().IsRegular() && there.Size() == info.Size() && there.ModTime().Equal(info.ModTime()) {
		return false, nil
	}
	part := filepath.Join(filepath.Dir(to), ".part-"+filepath.Base(to))
	if len(filepath.Base(part)) > 255 {
		part = filepath.Join(filepath.Dir(to), ".part")
	}
	out, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return false, err
	}
	_, err = io.Copy(out, in)
	if err == nil && durable {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err == nil {
		err = os.Chtimes(part, info.ModTime(), info.ModTime())
	}
	if err == nil {
		err = os.Rename(part, to)
	}
	if err != nil {
		return false, errors.Join(err, os.Remove(part))
	}
	return true, nil
}

// drain moves what is left of a home that was copied.
func (s *Store) drain(ctx context.Context, from, to string) error {
	rest := from + former
	info, err := os.Lstat(rest)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return nil
	}
	if err != nil {
		return err
	}
	if err := moveTree(ctx, rest, to); err != nil {
		return fmt.Errorf("the home is %s now, but not all that came into the old one meanwhile is there; run the same command again: %w", to, err)
	}
	if err := os.Remove(filepath.Join(to, copyMark)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// drainMoved does so for a home that was moved before.
func (s *Store) drainMoved(ctx context.Context, to string) error {
	moved, err := s.movedTo(ctx, to)
	for _, m := range moved {
		err = errors.Join(err, s.drain(ctx, m.from, to))
	}
	return err
}

type moved struct {
	from, to string
	at       time.Time
}

// movedTo gives the moves that are remembered; to "" all of them.
func (s *Store) movedTo(ctx context.Context, to string) (all []moved, err error) {
	rows, err := s.read.QueryContext(ctx, s.engine.rebind("SELECT old_dir, new_dir, moved FROM indigo_moved WHERE new_dir = ? OR ? = ''"), to, to)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var m moved
		if err := rows.Scan(&m.from, &m.to, &m.at); err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, rows.Err()
}

// moveTree moves what is in from to to and removes from. Mail that to has under other flags is not moved, nor anything that is newer there.
// Nothing is removed before its copy is durable. tmp is emptied by those who write there.
func moveTree(ctx context.Context, from, to string) error {
	if err := closeTmp(ctx, from); err != nil {
		return err
	}
	if err := moveRest(ctx, from, to); err != nil {
		return err
	}
	// The sum of two is neither's; it is counted anew.
	if err := os.Remove(filepath.Join(to, "Maildir", "maildirsize")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := syncTree(to); err != nil {
		return err
	}
	return os.RemoveAll(from)
}

// closeTmp removes the directories tmp of all Maildirs below dir when they are empty; nothing can be delivered there then.
func closeTmp(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.IsDir() || d.Name() != "tmp" {
			return err
		}
		for {
			err := os.Remove(path)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				return fs.SkipDir
			}
			if !errors.Is(err, unix.ENOTEMPTY) {
				return err
			}
			files, err := os.ReadDir(path)
			if err != nil {
				return err
			}
			for _, f := range files {
				if info, err := f.Info(); err == nil && time.Since(info.ModTime()) > staleTmp {
					if err := os.RemoveAll(filepath.Join(path, f.Name())); err != nil {
						return err
					}
				}
			}
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return fmt.Errorf("%s: somebody still writes there", path)
			}
		}
	})
}

// moveRest moves or copies what is in from.
func moveRest(ctx context.Context, from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	// What to has of this folder's mail, by the names without flags.
	known := map[string]bool{}
	if isMail(from) {
		for _, sub := range []string{"cur", "new"} {
			files, err := os.ReadDir(filepath.Join(filepath.Dir(to), sub))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			for _, f := range files {
				known[baseName(f.Name())] = true
			}
		}
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		source, target := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		if e.IsDir() {
			if err := moveRest(ctx, source, target); err != nil {
				return err
			}
			continue
		}
		keep := isMail(from) && known[baseName(e.Name())]
		if !isMail(from) {
			if info, err := e.Info(); err == nil {
				there, err := os.Lstat(target)
				keep = err == nil && !there.ModTime().Before(info.ModTime())
			}
		}
		if keep {
			continue
		}
		err := os.Rename(source, target)
		if crossesDevices(err) {
			if link, linkErr := os.Readlink(source); linkErr == nil {
				err = replaceLink(link, target)
			} else if e.Type().IsRegular() {
				_, err = copyFile(source, target, false)
			} else {
				// A socket or a pipe is nothing to keep.
				err = nil
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
