package directory

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
)

// Secrets has the passwords that are kept themselves encrypted before they are written. Its errors keep a change from being made.
type Secrets interface {
	// Guard gives what the columns pw_passwd and scram are to hold of a user's new stored form.
	Guard(ctx context.Context, user addr.Address, passwd, scram string) (newPasswd, newScram string, err error)
	// Restore gives what they are to hold when they come back from the trash: as Guard, but what is encrypted already stays as it is, and so does what
	// is malformed.
	Restore(ctx context.Context, user addr.Address, passwd, scram string) (newPasswd, newScram string, err error)
	// Move gives what they are to hold when the user gets another address.
	Move(from, to addr.Address, passwd, scram string) (newPasswd, newScram string, err error)
}

// sealed is where a password is kept encrypted.
const sealed = "coalesce(scram, '') LIKE '%{SEALED}%' OR pw_passwd LIKE '%{SEALED}%'"

// guard is Secrets' Guard, and looks at the widths.
func (s *Store) guard(ctx context.Context, user addr.Address, passwd, scram string) (string, string, error) {
	passwd, scram, err := s.config.Secrets.Guard(ctx, user, passwd, scram)
	if err != nil {
		return "", "", fmt.Errorf("user %s: %w", user, err)
	}
	if len(passwd) > maxStored || len(scram) > maxScram {
		return "", "", fmt.Errorf("user %s: the password's stored form must have at most %d bytes, scram %d", user, maxStored, maxScram)
	}
	return passwd, scram, nil
}

// Sealed tells whether somebody's password is kept encrypted.
func (s *Store) Sealed(ctx context.Context) (bool, error) {
	n := 0
	err := s.read.QueryRowContext(ctx, "SELECT count(*) FROM (SELECT 1 AS one FROM indimail WHERE "+sealed+" LIMIT 1) AS found").Scan(&n)
	if err != nil {
		return false, fmt.Errorf("look for encrypted passwords: %w", err)
	}
	return n > 0, nil
}

// Scrub has what was overwritten or deleted leave the database's files, where Indigo has the say over them: SQLite. It writes the file anew, and needs
// room for a second one meanwhile.
func (s *Store) Scrub(ctx context.Context) error {
	if s.engine != sqLite {
		return nil
	}
	for _, statement := range []string{"VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"} {
		if _, err := s.write.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("clear text may be left in the files of the database, %s: %w", statement, err)
		}
	}
	return nil
}

// SealedForms calls each with the stored forms that may keep a password encrypted: of users, of indibak, and of the trash.
func (s *Store) SealedForms(ctx context.Context, each func(form string)) error {
	for _, table := range []string{"indimail", "indibak"} {
		rows, err := s.read.QueryContext(ctx, "SELECT pw_passwd, coalesce(scram, '') FROM "+table+" WHERE "+sealed)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var passwd, scram string
			if err := rows.Scan(&passwd, &scram); err != nil {
				return err
			}
			each(passwd)
			each(scram)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return err
		}
	}
	all, err := s.TrashContents()
	if err != nil {
		return err
	}
	for _, t := range all {
		text, err := os.ReadFile(filepath.Join(t.Path, rowsFile))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for line := range strings.Lines(string(text)) {
			each(line)
		}
	}
	return nil
}

// passwordsOf gives a row's user and stored forms; ok is false for one of another table.
func (r trashRow) passwordsOf() (user addr.Address, passwd, scram string, ok bool) {
	if r.Table != "indimail" && r.Table != "indibak" {
		return user, "", "", false
	}
	text := func(column string) string { s, _ := r.Row[column].(string); return s }
	return addr.Address{Local: text("pw_name"), Domain: text("pw_domain")}, text("pw_passwd"), text("scram"), true
}

// restoreSecrets makes a row of the trash keep passwords as the directory does; changed tells whether it did not.
func (s *Store) restoreSecrets(ctx context.Context, r trashRow) (changed bool, err error) {
	user, passwd, scram, ok := r.passwordsOf()
	if !ok {
		return false, nil
	}
	newPasswd, newScram, err := s.config.Secrets.Restore(ctx, user, passwd, scram)
	if err != nil {
		return false, fmt.Errorf("user %s: %w", user, err)
	}
	if newPasswd == passwd && newScram == scram {
		return false, nil
	}
	r.Row["pw_passwd"] = newPasswd
	if r.Row["scram"] = newScram; newScram == "" {
		delete(r.Row, "scram")
	}
	return true, nil
}

// TrashPasswords calls each with the stored forms of users who are in the trash.
func (s *Store) TrashPasswords(each func(user addr.Address, passwd, scram string)) error {
	all, err := s.TrashContents()
	for _, t := range all {
		err = errors.Join(err, ignoreGone(readRows(filepath.Join(t.Path, rowsFile), func(trashHead) error { return nil }, func(r trashRow) error {
			if user, passwd, scram, ok := r.passwordsOf(); ok {
				each(user, passwd, scram)
			}
			return nil
		})))
	}
	return err
}

// ignoreGone takes what was restored or purged meanwhile, or was removed without its rows, for no error.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// GuardTrash encrypts passwords that users who are in the trash keep in clear, of domains, or of all without any, and counts them. A file of rows is written anew
// and put in the place of the old one. The error names those that were left as they are.
func (s *Store) GuardTrash(ctx context.Context, domains []string) (n int, err error) {
	all, err := s.TrashContents()
	if err != nil {
		return 0, err
	}
	var left error
	for _, t := range all {
		var rows []trashRow
		var head trashHead
		changed := 0
		err := readRows(filepath.Join(t.Path, rowsFile), func(h trashHead) error { head = h; return ctx.Err() }, func(r trashRow) error {
			if user, _, _, ok := r.passwordsOf(); ok && (len(domains) == 0 || slices.ContainsFunc(domains, func(d string) bool { return strings.EqualFold(d, user.Domain) })) {
				guarded, err := s.restoreSecrets(ctx, r)
				if err != nil {
					left = errors.Join(left, fmt.Errorf("in the trash, %s: %w", t.ID, err))
				} else if guarded {
					changed++
				}
			}
			rows = append(rows, r)
			return nil
		})
		if err == nil && changed > 0 {
			err = replaceRows(filepath.Join(t.Path, rowsFile), head, rows)
		}
		if err = ignoreGone(err); err != nil {
			return n, errors.Join(left, err)
		}
		n += changed
	}
	return n, left
}

// replaceRows puts another file of rows in the place of one, whole and durable, or leaves that.
func replaceRows(path string, head trashHead, rows []trashRow) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	lines := json.NewEncoder(w)
	err = lines.Encode(head)
	for _, r := range rows {
		err = errors.Join(err, lines.Encode(r))
	}
	if err = errors.Join(err, w.Flush(), f.Sync()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(path+".new"))
	}
	return syncDir(filepath.Dir(path))
}

// moveSecrets has the passwords that are kept encrypted of users who were given other addresses bound to those; name is "" for the whole domain.
// Their rows have the new names already.
func (s *Store) moveSecrets(ctx context.Context, tx *sql.Tx, from, to addr.Address) error {
	for _, table := range []string{"indimail", "indibak"} {
		type row struct{ name, passwd, scram string }
		var found []row
		rows, err := tx.QueryContext(ctx, s.engine.rebind("SELECT pw_name, pw_passwd, coalesce(scram, '') FROM "+table+" WHERE pw_domain = ? AND (pw_name = ? OR ? = '') AND ("+sealed+")"), to.Domain, to.Local, to.Local)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var r row
			if err := rows.Scan(&r.name, &r.passwd, &r.scram); err != nil {
				return err
			}
			found = append(found, r)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return err
		}
		for _, r := range found {
			now := addr.Address{Local: r.name, Domain: to.Domain}
			before := addr.Address{Local: r.name, Domain: from.Domain}
			if to.Local != "" {
				before.Local = from.Local
			}
			passwd, scram, err := s.config.Secrets.Move(before, now, r.passwd, r.scram)
			if err != nil {
				return fmt.Errorf("%s keeps a password encrypted, which goes with the address and cannot be decrypted: %w (`indigo auth secrets status`; `indigo auth secrets remove --unreadable` takes such out)", before, err)
			}
			if _, err := tx.ExecContext(ctx, s.engine.rebind("UPDATE "+table+" SET pw_passwd = ?, scram = ?, timestamp = timestamp WHERE pw_name = ? AND pw_domain = ?"), passwd, null(scram), r.name, to.Domain); err != nil {
				return err
			}
		}
	}
	return nil
}
