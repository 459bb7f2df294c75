package directory

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"time"
)

// keepBatch is how many lines one statement deletes.
const keepBatch = 5000

// TidyUp finishes removals and moves that were cut short, takes away links that moves left a day ago, and moves what came in for a removed
// user, from a cache of a server that was down, after its mail.
func (s *Store) TidyUp(ctx context.Context) error {
	var faults []error
	all, err := s.TrashContents()
	faults = append(faults, err)
	for _, t := range all {
		if t.Kind != "" && s.config.Now().Sub(t.Removed) < linksFor {
			faults = append(faults, s.finishTrash(ctx, t.Path, t.Kind, t.Dirs))
		}
	}
	moves, err := s.movedTo(ctx, "")
	faults = append(faults, err)
	for _, m := range moves {
		if s.config.Now().Sub(m.at) < linksFor {
			continue
		}
		faults = append(faults, s.removeLink(ctx, m))
	}
	return errors.Join(faults...)
}

// removeLink takes the link of a move away.
func (s *Store) removeLink(ctx context.Context, m moved) error {
	if err := s.drain(ctx, m.from, m.to); err != nil {
		return err
	}
	target, err := os.Readlink(m.from)
	if err == nil && target == m.to {
		var user string
		if err := s.inTransaction(ctx, func(tx *sql.Tx) (err error) { user, err = s.userOf(ctx, tx, m.from, "", ""); return err }); err != nil {
			return err
		}
		if user == "" {
			if err := os.Remove(m.from); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	} else if s.config.Now().Sub(m.at) < 7*linksFor {
		// The link may be another host's, which does this too.
		return nil
	}
	_, err = s.write.ExecContext(ctx, s.engine.rebind("DELETE FROM indigo_moved WHERE old_dir = ?"), m.from)
	return err
}

// ForgetChanges deletes the lines of who changed what from before a time, and gives their number.
func (s *Store) ForgetChanges(ctx context.Context, before time.Time) (gone int64, err error) {
	var first, last sql.NullInt64
	err = s.read.QueryRowContext(ctx, s.engine.rebind("SELECT min(id), max(id) FROM vlog WHERE "+s.engine.name("timestamp")+" < ?"), before.UTC().Format(stampForm)).Scan(&first, &last)
	if err != nil || !last.Valid {
		return 0, err
	}
	for low := first.Int64; low <= last.Int64; low += keepBatch {
		// IndiMail's programs may give a line a time of their own: the number alone does not tell its age.
		result, err := s.write.ExecContext(ctx, s.engine.rebind("DELETE FROM vlog WHERE id >= ? AND id < ? AND "+s.engine.name("timestamp")+" < ?"), low, low+keepBatch, before.UTC().Format(stampForm))
		if err != nil {
			return gone, err
		}
		n, err := result.RowsAffected()
		gone += n
		if err != nil {
			return gone, err
		}
	}
	return gone, nil
}

// ClearRelay deletes who logged in by POP3 or IMAP before a time from the table relay, and gives their number (wiki 2846).
func (s *Store) ClearRelay(ctx context.Context, before time.Time) (int64, error) {
	result, err := s.write.ExecContext(ctx, s.engine.rebind("DELETE FROM relay WHERE "+s.engine.name("timestamp")+" < ?"), before.Unix())
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}
