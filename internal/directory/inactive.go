package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
)

// ErrInactive is ErrNoUser of one whose row waits in the table indibak: nobody to mail and logins, until somebody activates him or he logs
// in by POP3 or IMAP.
var ErrInactive error = noUser("the user is marked inactive")

// noUser is ErrNoUser that says more, and does not say that there is no such user.
type noUser string

func (e noUser) Error() string { return string(e) }

// Unwrap gives ErrNoUser.
func (noUser) Unwrap() error { return ErrNoUser }

// DeactivateUser marks a user inactive, as IndiMail does: the row goes from indimail to indibak. Mail stays where it is, and aliases
// hold. ErrNoUser, ErrNoDomain; ErrInactive when it was done before.
func (s *Store) DeactivateUser(ctx context.Context, a addr.Address) error {
	u, err := s.User(ctx, a)
	if err != nil {
		return fmt.Errorf("%s: %w", a, err)
	}
	if u.Name == "postmaster" {
		return fmt.Errorf("%s: each domain must have its postmaster (RFC 5321 section 4.5.1)", a)
	}
	return s.moveRow(ctx, u, "indimail", "indibak", "INAC", "user marked inactive", nil)
}

// ActivateUser undoes DeactivateUser. ErrNoUser when nobody of that name is inactive.
func (s *Store) ActivateUser(ctx context.Context, a addr.Address) error {
	u, err := s.InactiveUser(ctx, a)
	if errors.Is(err, ErrNoUser) {
		if _, active := s.User(ctx, a); active == nil {
			err = noUser("the user is not marked inactive")
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", a, err)
	}
	limits, err := s.Limits(ctx, u.Domain)
	if err != nil {
		return err
	}
	return s.moveRow(ctx, u, "indibak", "indimail", "ACTI", "user activated", func(tx *sql.Tx) error { return s.mostUsers(ctx, tx, u.Domain, limits.MaxUsers) })
}

// moveRow moves the row of a user, and runs more.
func (s *Store) moveRow(ctx context.Context, u User, from, to, stamp, what string, more func(*sql.Tx) error) error {
	return s.transaction(ctx, func(tx *sql.Tx) error {
		const where = " WHERE pw_name = ? AND pw_domain = ?"
		// What IndiMail left there of a user who is in both is older.
		if from == "indimail" {
			if _, err := tx.ExecContext(ctx, s.engine.rebind("DELETE FROM "+to+where), u.Name, u.Domain); err != nil {
				return err
			}
		}
		columns := s.engine.names(columnNames(users(from).Columns))
		result, err := tx.ExecContext(ctx, s.engine.rebind("INSERT INTO "+to+" ("+columns+") SELECT "+columns+" FROM "+from+where), u.Name, u.Domain)
		if err != nil {
			return fmt.Errorf("user %s: %w", u.Address(), err)
		}
		if n, err := result.RowsAffected(); err != nil || n != 1 {
			return errors.Join(err, fmt.Errorf("user %s: %w", u.Address(), ErrNoUser))
		}
		if _, err := tx.ExecContext(ctx, s.engine.rebind("DELETE FROM "+from+where), u.Name, u.Domain); err != nil {
			return err
		}
		if more != nil {
			if err := more(tx); err != nil {
				return err
			}
		}
		return errors.Join(s.stamp(ctx, tx, stamp, u), s.record(ctx, tx, u.Name, u.Domain, what))
	})
}

// inactiveColumns is userColumns of indibak.
var inactiveColumns = strings.Replace(userColumns, "indimail", "indibak", 1)

// InactiveUser finds a user who is marked inactive, by an address in his domain or in one of its aliases. ErrNoUser, ErrNoDomain. One who is
// active too is none.
func (s *Store) InactiveUser(ctx context.Context, a addr.Address) (u User, err error) {
	d, err := s.Domain(ctx, a.Domain)
	if err != nil {
		return u, err
	}
	name := strings.ToLower(a.Local)
	err = s.retried(ctx, func() (err error) {
		u, err = scanUser(s.read.QueryRowContext(ctx, s.engine.rebind(inactiveColumns+"WHERE pw_name = ? AND pw_domain = ? AND NOT EXISTS (SELECT 1 FROM indimail WHERE pw_name = ? AND pw_domain = ?)"),
			name, d.Name, name, d.Name).Scan)
		return err
	})
	if errors.Is(err, sql.ErrNoRows) {
		return u, ErrNoUser
	}
	u.Inactive = err == nil
	return u, err
}

// notInactive fails when a new user has the name of one who is marked inactive. known remembers which domains have any.
func (s *Store) notInactive(ctx context.Context, known map[string]bool, name, domain string) error {
	any, asked := known[domain]
	if !asked {
		found, err := s.texts(ctx, "SELECT pw_name FROM indibak WHERE pw_domain = ? LIMIT 1", domain)
		if err != nil {
			return err
		}
		any = len(found) > 0
		known[domain] = any
	}
	if !any {
		return nil
	}
	_, err := s.InactiveUser(ctx, addr.Address{Local: name, Domain: domain})
	switch {
	case err == nil:
		return fmt.Errorf("user %s@%s: %w, and is marked inactive: `indigo user activate %[1]s@%[2]s`", name, domain, ErrExists)
	case errors.Is(err, ErrNoUser):
		return nil
	}
	return err
}

// AnyUser finds a user, active or not.
func (s *Store) AnyUser(ctx context.Context, a addr.Address) (User, error) {
	u, err := s.User(ctx, a)
	if errors.Is(err, ErrInactive) {
		return s.InactiveUser(ctx, a)
	}
	return u, err
}

// InactiveUsers gives the users of a domain who are marked inactive, in the order of their names. ErrNoDomain.
func (s *Store) InactiveUsers(ctx context.Context, domain string) (all []User, err error) {
	d, err := s.Domain(ctx, domain)
	if err != nil {
		return nil, fmt.Errorf("domain %s: %w", domain, err)
	}
	rows, err := s.read.QueryContext(ctx, s.engine.rebind(inactiveColumns+"WHERE pw_domain = ? ORDER BY pw_name"), d.Name)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		u, err := scanUser(rows.Scan)
		if err != nil {
			return nil, err
		}
		u.Inactive = true
		all = append(all, u)
	}
	return all, rows.Err()
}
