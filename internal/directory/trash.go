package directory

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

// What was removed lies in the trash beside the mail root: a directory TIME-NAME for each removal, with the rows of the tables in rowsFile
// and the mail in mailDir and others. The rows are written and synced before the transaction that deletes them commits, the mail is moved
// after it; what a crash left behind is finished later (finishTrash).
const (
	rowsFile  = "rows.jsonl"
	mailDir   = "mail"
	trashForm = "20060102T150405.000000"
)

// Trash is a removal that can be undone.
type Trash struct {
	// ID names it for restore and purge.
	ID string `json:"id"`
	// Kind is "user" or "domain"; "" when the rows were not kept.
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Removed is when, Who by whom.
	Removed time.Time `json:"removed"`
	Who     string    `json:"who,omitempty"`
	// Path is where it lies.
	Path string `json:"path"`
	// Users is how many users were removed.
	Users int64 `json:"users"`
	// Dirs are the directories that were moved here, by where they were.
	Dirs []trashDir `json:"-"`
}

type trashDir struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// trashHead is the first line of rowsFile; the others are trashRow.
type trashHead struct {
	Kind    string     `json:"kind"`
	Name    string     `json:"name"`
	Removed time.Time  `json:"removed"`
	Who     string     `json:"who"`
	Users   int64      `json:"users"`
	Dirs    []trashDir `json:"dirs"`
}

type trashRow struct {
	Table string         `json:"table"`
	Row   map[string]any `json:"row"`
}

func (s *Store) trashRoot() string { return filepath.Join(filepath.Dir(s.config.MailRoot), "trash") }

// settle waits until no cache of this or of another host has what was before the last change.
func (s *Store) settle(ctx context.Context) error {
	select {
	case <-time.After(3 * s.cache.every):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// RemoveUser removes a user and all that the tables have of him, and moves the home to the trash, whose place it gives. To undo,
// RestoreTrash.
func (s *Store) RemoveUser(ctx context.Context, a addr.Address) (trash string, err error) {
	u, err := s.AnyUser(ctx, a)
	if err != nil {
		return "", err
	}
	a = u.Address()
	conditions := func(t Table) (where string, args []any) {
		user, domain, email := t.names()
		switch {
		case user != "":
			return s.engine.name(user) + " = ? AND " + s.engine.name(domain) + " = ?", []any{a.Local, a.Domain}
		case email != "":
			return email + " = ?", []any{a.String()}
		}
		return "", nil
	}
	table := "indimail"
	if u.Inactive {
		table = "indibak"
	}
	return s.remove(ctx, trashHead{Kind: "user", Name: a.String(), Users: 1, Dirs: []trashDir{{u.Dir, mailDir}}}, a.Local, a.Domain, "user removed", table, conditions)
}

// RemoveDomain removes a domain with all its users and all that the tables have of it, and moves its mail to the trash, whose place it
// gives. To undo, RestoreTrash. Of an alias domain the name alone is removed.
func (s *Store) RemoveDomain(ctx context.Context, name string) (trash string, err error) {
	d, err := s.Domain(ctx, name)
	if err != nil {
		return "", err
	}
	if d.Name != addr.FoldDomain(name) {
		return "", s.RemoveAliasDomain(ctx, name)
	}
	roots, err := s.rootsOf(ctx, d)
	if err != nil {
		return "", err
	}
	head := trashHead{Kind: "domain", Name: d.Name}
	for i, root := range roots {
		to := mailDir
		if i > 0 {
			to = fmt.Sprintf("%s.%d", mailDir, i)
		}
		head.Dirs = append(head.Dirs, trashDir{root, to})
	}
	if err := s.read.QueryRowContext(ctx, s.engine.rebind("SELECT (SELECT count(*) FROM indimail WHERE pw_domain = ?) + (SELECT count(*) FROM indibak WHERE pw_domain = ?)"), d.Name, d.Name).Scan(&head.Users); err != nil {
		return "", err
	}
	conditions := func(t Table) (where string, args []any) {
		_, domain, email := t.names()
		switch {
		case t.Name == "atrn_map":
			// Whoever gets a domain of this name one day is not to be fetched by users of today.
			return "(pw_domain = ? OR lower(domain_list) = ?)", []any{d.Name, d.Name}
		case domain != "":
			return s.engine.name(domain) + " = ?", []any{d.Name}
		case email != "":
			return "lower(" + email + ") LIKE ? ESCAPE '!'", []any{"%@" + likeText(d.Name)}
		}
		return "", nil
	}
	return s.remove(ctx, head, "", d.Name, "domain removed with its users", "indigo_domain", conditions)
}

// rootsOf gives the directories with a domain's mail: its own, and those of homes elsewhere. It fails when mail of others is there.
func (s *Store) rootsOf(ctx context.Context, d Domain) (roots []string, err error) {
	if filepath.IsAbs(d.Dir) && (strings.HasPrefix(d.Dir, s.config.MailRoot+"/") || filepath.Base(d.Dir) == d.Name) {
		// Another one may hold more than the domain: that of IndiMail's is guessed from a home.
		roots = append(roots, filepath.Clean(d.Dir))
	}
	if strings.HasPrefix(d.Dir, s.autoturnRoot()+"/") {
		// What waits for a host goes with the last of its domains.
		var others int
		if err := s.read.QueryRowContext(ctx, s.engine.rebind("SELECT count(*) FROM indigo_domain WHERE dir = ? AND domain <> ?"), d.Dir, d.Name).Scan(&others); err != nil {
			return nil, err
		}
		roots = roots[:0]
		if others == 0 {
			roots = append(roots, filepath.Clean(d.Dir))
		}
	}
	inside := func(dir string) bool {
		return slices.ContainsFunc(roots, func(root string) bool { return dir == root || strings.HasPrefix(dir, root+"/") })
	}
	rows, err := s.read.QueryContext(ctx, s.engine.rebind("SELECT pw_dir FROM indimail WHERE pw_domain = ? UNION SELECT pw_dir FROM indibak WHERE pw_domain = ? ORDER BY pw_dir"), d.Name, d.Name)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var dir sql.NullString
		if err := rows.Scan(&dir); err != nil {
			return nil, err
		}
		home := filepath.Clean(dir.String)
		if !filepath.IsAbs(home) || inside(home) {
			continue
		}
		// BASE/A2E/example.org/alice: the domain's part goes as a whole.
		root := home
		for up := filepath.Dir(home); up != "/"; up = filepath.Dir(up) {
			if filepath.Base(up) == d.Name && slices.Contains(letterDirs(), filepath.Base(filepath.Dir(up))) {
				root = up
				break
			}
		}
		roots = append(roots, root)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, err
	}
	for _, root := range roots {
		var user, of string
		err := s.read.QueryRowContext(ctx, s.engine.rebind(`SELECT pw_name, pw_domain FROM indimail WHERE pw_domain <> ? AND (pw_dir = ? OR pw_dir LIKE ? ESCAPE '!')
			UNION ALL SELECT pw_name, pw_domain FROM indibak WHERE pw_domain <> ? AND (pw_dir = ? OR pw_dir LIKE ? ESCAPE '!')
			UNION ALL SELECT '', domain FROM indigo_domain WHERE domain <> ? AND (dir = ? OR dir LIKE ? ESCAPE '!') LIMIT 1`), d.Name, root, likeText(root)+"/%", d.Name, root, likeText(root)+"/%", d.Name, root, likeText(root)+"/%").Scan(&user, &of)
		switch {
		case err == nil && user == "":
			return nil, fmt.Errorf("%s, which would go to the trash, holds the domain %s too", root, of)
		case err == nil:
			return nil, fmt.Errorf("%s, which would go to the trash, holds the mail of %s@%s too: `indigo user move %[2]s@%[3]s` gives it a place of its own", root, user, of)
		case !errors.Is(err, sql.ErrNoRows):
			return nil, err
		}
	}
	return roots, nil
}

// remove writes the rows that conditions names to the trash, deletes them, and moves the mail. There must be one in the table of main.
func (s *Store) remove(ctx context.Context, head trashHead, user, domain, what, main string, conditions func(Table) (string, []any)) (string, error) {
	head.Removed, head.Who = s.config.Now().UTC(), s.config.Who
	place := filepath.Join(s.trashRoot(), head.Removed.Format(trashForm)+"-"+head.Name)
	err := s.transaction(ctx, func(tx *sql.Tx) error {
		if err := os.MkdirAll(place, 0o700); err != nil {
			return err
		}
		if err := s.writeRows(ctx, tx, filepath.Join(place, rowsFile), head, conditions); err != nil {
			return err
		}
		for _, t := range Schema() {
			where, args := conditions(t)
			if where == "" {
				continue
			}
			result, err := tx.ExecContext(ctx, s.engine.rebind("DELETE FROM "+s.engine.name(t.Name)+" WHERE "+where), args...)
			if err != nil {
				return fmt.Errorf("table %s: %w", t.Name, err)
			}
			if n, err := result.RowsAffected(); n == 0 && (err != nil || t.Name == main) {
				// Somebody else was quicker.
				return errors.Join(err, map[string]error{"user": ErrNoUser, "domain": ErrNoDomain}[head.Kind])
			}
		}
		return s.record(ctx, tx, user, domain, what)
	})
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(place))
	}
	if err := s.settle(ctx); err != nil {
		return place, err
	}
	if err := s.finishTrash(ctx, place, head.Kind, head.Dirs); err != nil {
		return place, fmt.Errorf("removed, but the mail is not in the trash yet; the running instance tries again: %w", err)
	}
	return place, nil
}

// writeRows makes the file with what is removed, durable when it returns.
func (s *Store) writeRows(ctx context.Context, tx *sql.Tx, path string, head trashHead, conditions func(Table) (string, []any)) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	lines := json.NewEncoder(w)
	if err := lines.Encode(head); err != nil {
		return err
	}
	for _, t := range Schema() {
		where, args := conditions(t)
		if where == "" {
			continue
		}
		if err := s.dump(ctx, tx, t, where, args, func(r trashRow) error { return lines.Encode(r) }); err != nil {
			return fmt.Errorf("table %s: %w", t.Name, err)
		}
	}
	if err := errors.Join(w.Flush(), f.Sync()); err != nil {
		return err
	}
	return errors.Join(syncDir(filepath.Dir(path)), syncDir(filepath.Dir(filepath.Dir(path))))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// dump gives the rows of a table.
func (s *Store) dump(ctx context.Context, tx *sql.Tx, t Table, where string, args []any, each func(trashRow) error) error {
	rows, err := tx.QueryContext(ctx, s.engine.rebind("SELECT "+s.engine.names(columnNames(t.Columns))+" FROM "+s.engine.name(t.Name)+" WHERE "+where), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		values, err := scanRow(rows, t.Columns)
		if err != nil {
			return err
		}
		row := trashRow{Table: t.Name, Row: map[string]any{}}
		for i, c := range t.Columns {
			if at, ok := values[i].(time.Time); ok {
				values[i] = at.Format(stampForm)
			}
			if values[i] != nil && c.Kind != "serial" {
				row.Row[c.Name] = values[i]
			}
		}
		if err := each(row); err != nil {
			return err
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}

// finishTrash moves the mail of what was removed, and what came in for it since, to its place. A directory that is somebody's by now is
// left alone.
func (s *Store) finishTrash(ctx context.Context, place, kind string, dirs []trashDir) error {
	for _, d := range dirs {
		if !filepath.IsAbs(d.From) {
			continue
		}
		info, err := os.Lstat(d.From)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !info.IsDir() {
			// A link that a move left: the mail lies where it leads.
			continue
		}
		var owner string
		err = s.inTransaction(ctx, func(tx *sql.Tx) error {
			if owner, err = s.userOf(ctx, tx, d.From, "", ""); err != nil || owner != "" {
				return err
			}
			if kind == "user" {
				// Nobody's home is in another's; to look would go through the whole table.
				return nil
			}
			n, err := s.count(ctx, tx, "SELECT (SELECT count(*) FROM indimail WHERE pw_dir LIKE ? ESCAPE '!') + (SELECT count(*) FROM indibak WHERE pw_dir LIKE ? ESCAPE '!')",
				likeText(d.From)+"/%", likeText(d.From)+"/%")
			if n > 0 {
				owner = "users"
			}
			return err
		})
		if err != nil {
			return err
		}
		if owner != "" {
			continue
		}
		to := filepath.Join(place, d.To)
		if _, err := os.Lstat(to); errors.Is(err, fs.ErrNotExist) {
			err = os.Rename(d.From, to)
			if err == nil {
				continue
			}
			if !crossesDevices(err) {
				return err
			}
		}
		if err := moveTree(ctx, d.From, to); err != nil {
			return err
		}
	}
	return nil
}

// inTransaction reads with a transaction that changes nothing.
func (s *Store) inTransaction(ctx context.Context, run func(*sql.Tx) error) error {
	tx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: s.engine != sqLite})
	if err != nil {
		return err
	}
	return errors.Join(run(tx), tx.Rollback())
}

// TrashContents gives what is in the trash, the oldest first.
func (s *Store) TrashContents() ([]Trash, error) {
	entries, err := os.ReadDir(s.trashRoot())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Trash
	for _, e := range entries {
		at, name, found := strings.Cut(e.Name(), "-")
		removed, err := time.Parse(trashForm, at)
		if !found || err != nil {
			// Nothing of ours.
			continue
		}
		t := Trash{ID: e.Name(), Name: name, Removed: removed, Path: filepath.Join(s.trashRoot(), e.Name())}
		err = readRows(filepath.Join(t.Path, rowsFile), func(head trashHead) error {
			t.Kind, t.Name, t.Who, t.Users, t.Dirs = head.Kind, head.Name, head.Who, head.Users, head.Dirs
			return io.EOF
		}, nil)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && err != io.EOF {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

// FindTrash finds a removal by its ID, or the latest by the name of what was removed.
func (s *Store) FindTrash(id string) (Trash, error) {
	all, err := s.TrashContents()
	if err != nil {
		return Trash{}, err
	}
	name := addr.FoldDomain(id)
	if a, err := addr.Parse(id); err == nil {
		name = a.Key()
	}
	for _, t := range slices.Backward(all) {
		if t.ID == id || strings.EqualFold(t.Name, id) || strings.EqualFold(t.Name, name) {
			return t, nil
		}
	}
	return Trash{}, fmt.Errorf("the trash has nothing of that name: %s", id)
}

// readRows reads a file of rows.
func readRows(path string, head func(trashHead) error, row func(trashRow) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := json.NewDecoder(bufio.NewReader(f))
	lines.UseNumber()
	var h trashHead
	if err := lines.Decode(&h); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := head(h); err != nil {
		return err
	}
	for {
		var r trashRow
		err := lines.Decode(&r)
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = row(r)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
}

// RestoreTrash undoes a removal: the mail goes back, then the rows. ErrExists when there is a user or domain of that name again,
// ErrNoDomain for a user without one. Passwords that are kept in clear come back as new ones are kept. After an interruption the same call goes on.
func (s *Store) RestoreTrash(ctx context.Context, t Trash) error {
	if t.Kind == "" {
		return fmt.Errorf("%s: it has no rows of the directory; add what is needed and move the mail by hand", t.Path)
	}
	// Where what was at a place goes now: somebody else may have it.
	places := map[string]string{}
	name, domain := "", t.Name
	if t.Kind == "user" {
		a, err := addr.Parse(t.Name)
		if err != nil {
			return err
		}
		name, domain = a.Local, a.Domain
		if _, err := s.ownDomain(ctx, domain); err != nil {
			return err
		}
	}
	free := func(tx *sql.Tx) error {
		statement, args := "SELECT count(*) FROM indigo_domain WHERE domain = ?", []any{domain}
		if name != "" {
			statement = "SELECT (SELECT count(*) FROM indimail WHERE pw_name = ? AND pw_domain = ?) + (SELECT count(*) FROM indibak WHERE pw_name = ? AND pw_domain = ?)"
			args = []any{name, domain, name, domain}
		}
		n, err := s.count(ctx, tx, statement, args...)
		if err == nil && n == 0 && name == "" {
			n, err = s.count(ctx, tx, "SELECT count(*) FROM aliasdomain WHERE alias = ?", domain)
		}
		if err == nil && n > 0 {
			err = fmt.Errorf("%s: %w; rename it first, or remove it", t.Name, ErrExists)
		}
		return err
	}
	err := s.inTransaction(ctx, func(tx *sql.Tx) error {
		if err := free(tx); err != nil {
			return err
		}
		for _, d := range t.Dirs {
			if !filepath.IsAbs(d.From) {
				continue
			}
			if s.waits(d.From) && SharedByHost(d.From) {
				// Another domain of that host may be back already, and have mail there: theirs waits together.
				places[d.From] = d.From
				continue
			}
			place, err := s.freeDir(ctx, tx, d.From, name, domain)
			if err != nil {
				return err
			}
			places[d.From] = place
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, d := range t.Dirs {
		if places[d.From] == "" {
			continue
		}
		if err := s.back(ctx, filepath.Join(t.Path, d.To), places[d.From]); err != nil {
			return err
		}
	}
	err = s.transaction(ctx, func(tx *sql.Tx) error {
		if err := free(tx); err != nil {
			return err
		}
		err := readRows(filepath.Join(t.Path, rowsFile), func(trashHead) error { return nil }, func(r trashRow) error {
			if _, err := s.restoreSecrets(ctx, r); err != nil {
				return fmt.Errorf("%w (`indigo settings set PASSWORD_SECRETS clear` for the while lets it be restored as it was)", err)
			}
			return s.insertRow(ctx, tx, r, places)
		})
		return errors.Join(err, s.record(ctx, tx, name, domain, t.Kind+" restored from the trash of "+t.Removed.Format(time.DateTime)))
	})
	if err != nil {
		return err
	}
	return os.RemoveAll(t.Path)
}

// back moves mail out of the trash; what was moved before is no error.
func (s *Store) back(ctx context.Context, from, to string) error {
	if _, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) {
		return os.MkdirAll(to, 0o700)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if _, err := os.Lstat(to); errors.Is(err, fs.ErrNotExist) {
		if err := os.Rename(from, to); err == nil || !crossesDevices(err) {
			return err
		}
	}
	return moveTree(ctx, from, to)
}

// insertRow puts a row back. Paths follow what was given another place.
func (s *Store) insertRow(ctx context.Context, tx *sql.Tx, r trashRow, places map[string]string) error {
	for _, t := range Schema() {
		if t.Name != r.Table {
			continue
		}
		var names []string
		var values []any
		for _, c := range t.Columns {
			v, given := r.Row[c.Name]
			if !given {
				continue
			}
			switch v := v.(type) {
			case json.Number:
				n, err := v.Int64()
				if err != nil {
					return err
				}
				values = append(values, n)
			case string:
				if c.Name == "pw_dir" || c.Name == "dir" {
					for was, is := range places {
						if v == was || strings.HasPrefix(v, was+"/") {
							v = is + v[len(was):]
							break
						}
					}
				}
				values = append(values, v)
			default:
				return fmt.Errorf("table %s: column %s has no text or number", t.Name, c.Name)
			}
			names = append(names, c.Name)
		}
		_, err := tx.ExecContext(ctx, s.engine.insert(t.Name, names...), values...)
		if err != nil {
			return fmt.Errorf("table %s: %w", t.Name, err)
		}
		return nil
	}
	// A table of another release.
	return nil
}

// PurgeTrash removes for good what is in the trash since before a time, or what ids names. It gives what is gone.
func (s *Store) PurgeTrash(ctx context.Context, before time.Time) (gone []Trash, err error) {
	all, err := s.TrashContents()
	if err != nil {
		return nil, err
	}
	for _, t := range all {
		if !t.Removed.Before(before) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return gone, err
		}
		if err := s.DeleteTrash(t); err != nil {
			return gone, err
		}
		gone = append(gone, t)
	}
	return gone, nil
}

// DeleteTrash removes one for good.
func (s *Store) DeleteTrash(t Trash) error {
	if filepath.Dir(t.Path) != s.trashRoot() {
		return fmt.Errorf("%s is not in the trash", t.Path)
	}
	return os.RemoveAll(t.Path)
}
