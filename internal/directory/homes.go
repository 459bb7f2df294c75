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
	"strings"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/maildir"
)

// The width of pw_dir, and how many homes are in one directory unless a domain says otherwise, as with IndiMail's vadduser.
const (
	maxDir     = 156
	perLevel   = 100
	levelNames = 26 * 26
)

// validDir checks a directory that an operator names.
func validDir(dir string) error {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" || len(dir) > maxDir-maxName || strings.ContainsAny(dir, "\x00\r\n:") {
		return fmt.Errorf("directory %q: must be an absolute path of at most %d bytes, without a colon", dir, maxDir-maxName)
	}
	return nil
}

// letterDirs are IndiMail's directories below a base.
func letterDirs() []string { return []string{"A2E", "F2K", "L2P", "Q2S", "T2Zsym"} }

// letterDir is IndiMail's directory for names that begin as this one.
func letterDir(name string) string {
	switch c := name[0]; {
	case c >= 'a' && c <= 'e':
		return "A2E"
	case c >= 'f' && c <= 'k':
		return "F2K"
	case c >= 'l' && c <= 'p':
		return "L2P"
	case c >= 'q' && c <= 's':
		return "Q2S"
	}
	return "T2Zsym"
}

// levelDir is the directory, below a domain's, for homes when n directories are full: "" for the first, then AA to ZZ, then AA/AA and so
// on. Capital letters, which no user's name has.
func levelDir(n int) (string, error) {
	two := func(n int) string { return string([]byte{'A' + byte(n/26), 'A' + byte(n%26)}) }
	switch {
	case n == 0:
		return "", nil
	case n <= levelNames:
		return two(n - 1), nil
	case n <= levelNames+levelNames*levelNames:
		n -= levelNames + 1
		return filepath.Join(two(n/levelNames), two(n%levelNames)), nil
	}
	return "", errors.New("the domain's directories are full")
}

func isLevel(name string) bool {
	return len(name) == 2 && name[0] >= 'A' && name[0] <= 'Z' && name[1] >= 'A' && name[1] <= 'Z'
}

// homesOf counts the entries of a directory but those for levels, up to most.
func homesOf(dir string, most int) (n int, err error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for n < most {
		names, err := f.Readdirnames(256)
		for _, name := range names {
			if !isLevel(name) && name[0] != '.' {
				n++
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, err
		}
	}
	return n, nil
}

// newHomes chooses homes within one transaction.
type newHomes struct {
	s       *Store
	tx      *sql.Tx
	domains map[string]*levels
	// count has the homes of directories, with those that were made; space the table fstab, nil before it was read; used what was added.
	count map[string]int
	space []FileSystem
	read  bool
	used  map[string]int64
	taken []string
}

// levels is where homes of a domain go.
type levels struct {
	base      string
	most      int
	full, was int
}

func (s *Store) newHomes(tx *sql.Tx) *newHomes {
	return &newHomes{s: s, tx: tx, domains: map[string]*levels{}, count: map[string]int{}, used: map[string]int64{}}
}

// choose gives the place of a home: below BASE of the user, the domain's, a file system of fstab or BASE_PATH, which is the first there
// is, in IndiMail's directories; else in the domain's own directory.
func (h *newHomes) choose(ctx context.Context, row newRow) (string, error) {
	l := h.domains[row.domain.Name]
	if l == nil {
		l = &levels{}
		err := h.tx.QueryRowContext(ctx, h.s.engine.rebind("SELECT coalesce(base_path, ''), coalesce(users_per_level, 0), coalesce(full_levels, 0) FROM indigo_domain WHERE domain = ?"), row.domain.Name).Scan(&l.base, &l.most, &l.full)
		if err != nil {
			return "", err
		}
		if l.most == 0 {
			l.most = perLevel
		}
		l.was = l.full
		h.domains[row.domain.Name] = l
	}
	base := row.base
	if base == "" {
		base = l.base
	}
	if base == "" {
		system, err := h.roomiest(ctx)
		if err != nil {
			return "", err
		}
		if base = system; base == "" {
			base = h.s.config.BasePath
		}
	}
	root := row.domain.Dir
	if base != "" {
		root = filepath.Join(base, letterDir(row.name), row.domain.Name)
	}
	for ; ; l.full++ {
		level, err := levelDir(l.full)
		if err != nil {
			return "", err
		}
		dir := filepath.Join(root, level)
		n, known := h.count[dir]
		if !known {
			if n, err = homesOf(dir, l.most); err != nil {
				return "", err
			}
			h.count[dir] = n
		}
		if n >= l.most {
			continue
		}
		home, err := h.s.freeDir(ctx, h.tx, filepath.Join(dir, row.name), row.name, row.domain.Name)
		if err == nil && len(home) > maxDir {
			err = fmt.Errorf("the home %s has more than %d bytes", home, maxDir)
		}
		return home, err
	}
}

// take counts a home that was chosen; make makes all that were taken.
func (h *newHomes) take(home string) {
	h.taken = append(h.taken, home)
	h.count[filepath.Dir(home)]++
	for _, f := range h.space {
		if strings.HasPrefix(home, f.Path+"/") {
			h.used[f.Path]++
		}
	}
}

func (h *newHomes) make() error {
	for _, home := range h.taken {
		if err := maildir.Create(filepath.Join(home, "Maildir")); err != nil {
			return err
		}
	}
	return nil
}

// save writes down what is full now.
func (h *newHomes) save(ctx context.Context) error {
	for domain, l := range h.domains {
		if l.full == l.was {
			continue
		}
		if _, err := h.tx.ExecContext(ctx, h.s.engine.rebind("UPDATE indigo_domain SET full_levels = ?, created = created WHERE domain = ?"), l.full, domain); err != nil {
			return err
		}
	}
	for path, n := range h.used {
		if _, err := h.tx.ExecContext(ctx, h.s.engine.rebind("UPDATE fstab SET cur_users = cur_users + ? WHERE filesystem = ? AND host = ?"), n, path, h.s.config.Host); err != nil {
			return err
		}
	}
	return nil
}

// userOf names whose a directory is: a user's other than name@domain, or a domain's; "" for nobody's.
func (s *Store) userOf(ctx context.Context, tx *sql.Tx, dir, name, domain string) (string, error) {
	var user, of string
	err := tx.QueryRowContext(ctx, s.engine.rebind(`SELECT pw_name, pw_domain FROM indimail WHERE pw_dir = ? AND NOT (pw_name = ? AND pw_domain = ?)
		UNION ALL SELECT pw_name, pw_domain FROM indibak WHERE pw_dir = ? AND NOT (pw_name = ? AND pw_domain = ?)
		UNION ALL SELECT '', domain FROM indigo_domain WHERE dir = ? LIMIT 1`), dir, name, domain, dir, name, domain, dir).Scan(&user, &of)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return strings.TrimPrefix(user+"@"+of, "@"), err
}

// freeDir gives dir, or with .1, .2 behind it, what nobody else has: who was renamed keeps a home of the former name. What lies there and
// is nobody's is taken.
func (s *Store) freeDir(ctx context.Context, tx *sql.Tx, dir, name, domain string) (string, error) {
	for n := range 1000 {
		candidate := dir
		if n > 0 {
			candidate = fmt.Sprintf("%s.%d", dir, n)
		}
		info, err := os.Lstat(candidate)
		if errors.Is(err, fs.ErrNotExist) {
			// Of a home that was not made yet the table knows.
			info, err = nil, nil
		}
		if err != nil {
			return "", err
		}
		if info != nil && !info.IsDir() {
			// A link that a move of this very user left is as good as nothing.
			var home string
			target, _ := os.Readlink(candidate)
			err := tx.QueryRowContext(ctx, s.engine.rebind("SELECT coalesce(pw_dir, '') FROM indimail WHERE pw_name = ? AND pw_domain = ?"), name, domain).Scan(&home)
			if err != nil && !errors.Is(err, sql.ErrNoRows) {
				return "", err
			}
			if home == "" || home != target {
				continue
			}
		}
		user, err := s.userOf(ctx, tx, candidate, name, domain)
		if err != nil {
			return "", err
		}
		if user == "" {
			return candidate, nil
		}
	}
	return "", fmt.Errorf("%s and %s.1 to .999 are others'", dir, dir)
}

// FileSystem is a row of IndiMail's table fstab: a place for homes of new users, and how much of it is used.
type FileSystem struct {
	Path string `json:"filesystem"`
	Host string `json:"host"`
	// Online is false for one that gets no new homes.
	Online bool `json:"online"`
	// MaxUsers and MaxBytes are 0 for no limit; Bytes is what the whole file system has in use.
	MaxUsers int64 `json:"max_users"`
	Users    int64 `json:"users"`
	MaxBytes int64 `json:"max_size"`
	Bytes    int64 `json:"size"`
}

// FileSystems gives the table fstab, of all hosts.
func (s *Store) FileSystems(ctx context.Context) ([]FileSystem, error) {
	return s.fileSystems(ctx, s.read.QueryContext)
}

func (s *Store) fileSystems(ctx context.Context, query func(context.Context, string, ...any) (*sql.Rows, error)) (all []FileSystem, err error) {
	rows, err := query(ctx, "SELECT filesystem, host, status, max_users, cur_users, max_size, cur_size FROM fstab ORDER BY filesystem, host")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var f FileSystem
		var status int
		if err := rows.Scan(&f.Path, &f.Host, &status, &f.MaxUsers, &f.Users, &f.MaxBytes, &f.Bytes); err != nil {
			return nil, err
		}
		f.Online = status == 1
		all = append(all, f)
	}
	return all, rows.Err()
}

// roomiest gives the online file system of this host with most room, "" when the table has none of this host.
func (h *newHomes) roomiest(ctx context.Context) (string, error) {
	if !h.read {
		all, err := h.s.fileSystems(ctx, h.tx.QueryContext)
		if err != nil {
			return "", err
		}
		for _, f := range all {
			if f.Online && f.Host == h.s.config.Host {
				h.space = append(h.space, f)
			}
		}
		h.read = true
	}
	best, most := "", 0.0
	for _, f := range h.space {
		f.Users += h.used[f.Path]
		room, err := f.room()
		if err != nil {
			return "", err
		}
		if room > most {
			best, most = f.Path, room
		}
	}
	if best == "" && len(h.space) > 0 {
		return "", errors.New("no file system of the table fstab has room: `indigo storage list` shows them, `indigo storage add` adds one")
	}
	return best, nil
}

// room is the part that is free, of users or of bytes, which is less; 0 for a full one.
func (f FileSystem) room() (float64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(f.Path, &st); err != nil {
		return 0, fmt.Errorf("file system %s: %w", f.Path, err)
	}
	used, free := float64(st.Blocks-st.Bfree)*float64(st.Bsize), float64(st.Bavail)*float64(st.Bsize)
	room := free / max(1, used+free)
	if f.MaxBytes > 0 {
		room = min(room, (float64(f.MaxBytes)-used)/float64(f.MaxBytes))
	}
	if f.MaxUsers > 0 {
		room = min(room, float64(f.MaxUsers-f.Users)/float64(f.MaxUsers))
	}
	return max(0, room), nil
}

// AddFileSystem adds a place for homes of new users to the table fstab. ErrExists.
func (s *Store) AddFileSystem(ctx context.Context, f FileSystem) error {
	if err := validDir(f.Path); err != nil {
		return err
	}
	if len(f.Path) > 64 || f.MaxUsers < 0 || f.MaxBytes < 0 {
		return fmt.Errorf("file system %s: the path must have at most 64 bytes, and no limit be below 0", f.Path)
	}
	if err := os.MkdirAll(f.Path, 0o700); err != nil {
		return err
	}
	if f.Host == "" {
		f.Host = s.config.Host
	}
	online := 0
	if f.Online {
		online = 1
	}
	n, err := s.change(ctx, "", "", "file system added: "+f.Path, s.engine.insert("fstab", "filesystem", "host", "status", "max_users", "cur_users", "max_size", "cur_size"),
		filepath.Clean(f.Path), f.Host, online, f.MaxUsers, 0, f.MaxBytes, 0)
	if err == nil && n == 0 {
		err = fmt.Errorf("file system %s: %w", f.Path, ErrExists)
	}
	if err != nil {
		return err
	}
	return s.BalanceFileSystems(ctx)
}

// ErrNoFileSystem says that the table fstab has no such row.
var ErrNoFileSystem = errors.New("no such file system in the table fstab")

// ChangeFileSystem changes one of this host, or of f's; change is given what it is.
func (s *Store) ChangeFileSystem(ctx context.Context, path, host string, change func(*FileSystem)) error {
	if host == "" {
		host = s.config.Host
	}
	all, err := s.FileSystems(ctx)
	if err != nil {
		return err
	}
	for _, f := range all {
		if f.Path != filepath.Clean(path) || f.Host != host {
			continue
		}
		change(&f)
		status := 0
		if f.Online {
			status = 1
		}
		if f.MaxUsers < 0 || f.MaxBytes < 0 {
			return errors.New("no limit may be below 0")
		}
		_, err := s.change(ctx, "", "", fmt.Sprintf("file system %s: status %d, max_users %d, max_size %d", f.Path, status, f.MaxUsers, f.MaxBytes),
			"UPDATE fstab SET status = ?, max_users = ?, max_size = ? WHERE filesystem = ? AND host = ?", status, f.MaxUsers, f.MaxBytes, f.Path, f.Host)
		return err
	}
	return fmt.Errorf("%s: %w", path, ErrNoFileSystem)
}

// RemoveFileSystem takes one out of the table; homes that are there stay.
func (s *Store) RemoveFileSystem(ctx context.Context, path, host string) error {
	if host == "" {
		host = s.config.Host
	}
	n, err := s.change(ctx, "", "", "file system removed: "+path, "DELETE FROM fstab WHERE filesystem = ? AND host = ?", filepath.Clean(path), host)
	if err == nil && n == 0 {
		err = fmt.Errorf("%s: %w", path, ErrNoFileSystem)
	}
	return err
}

// BalanceFileSystems counts the homes and bytes of this host's file systems anew.
func (s *Store) BalanceFileSystems(ctx context.Context) error {
	all, err := s.FileSystems(ctx)
	if err != nil {
		return err
	}
	for _, f := range all {
		if f.Host != s.config.Host {
			continue
		}
		var users int64
		if err := s.read.QueryRowContext(ctx, s.engine.rebind("SELECT count(*) FROM indimail WHERE pw_dir LIKE ? ESCAPE '!'"), likeText(f.Path)+"/%").Scan(&users); err != nil {
			return err
		}
		var st unix.Statfs_t
		if err := unix.Statfs(f.Path, &st); err != nil {
			return fmt.Errorf("file system %s: %w", f.Path, err)
		}
		if _, err := s.write.ExecContext(ctx, s.engine.rebind("UPDATE fstab SET cur_users = ?, cur_size = ? WHERE filesystem = ? AND host = ?"), users, int64(st.Blocks-st.Bfree)*st.Bsize, f.Path, f.Host); err != nil {
			return err
		}
	}
	return nil
}
