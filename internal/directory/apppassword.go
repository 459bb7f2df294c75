package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

// AppPassword is a further password of a user, for one program; the table indigo_app_password.
type AppPassword struct {
	// Name is the user's own word for it, in lower case.
	Name string `json:"name"`
	// Hash is what auth.NewAppPassword gives.
	Hash string `json:"-"`
	// Services are those that take it, of AppServices; none means all.
	Services []string `json:"services"`
	// Used is when a login with it was written down last; zero for never.
	Created time.Time `json:"created"`
	Used    time.Time `json:"used,omitzero"`
}

// AppServices are the services that an app password can be kept to.
func AppServices() []string { return []string{"smtp", "imap", "pop3"} }

// Allows tells whether a service takes the password.
func (p AppPassword) Allows(service string) bool {
	return len(p.Services) == 0 || slices.Contains(p.Services, service)
}

const (
	maxAppName = 32
	// maxAppPasswords bounds a user's: each login that looks like one goes through all.
	maxAppPasswords = 50
)

// AppPasswords gives a user's app passwords in the order of their names. ErrNoUser, ErrNoDomain.
func (s *Store) AppPasswords(ctx context.Context, a addr.Address) ([]AppPassword, error) {
	key := addr.Address{Local: strings.ToLower(a.Local), Domain: strings.ToLower(a.Domain)}
	return lookUp(ctx, &s.cache, &s.cache.apps, key, func() ([]AppPassword, error) {
		u, err := s.AnyUser(ctx, key)
		if err != nil {
			return nil, err
		}
		var all []AppPassword
		err = s.retried(ctx, func() error {
			all = nil
			rows, err := s.read.QueryContext(ctx, s.engine.rebind("SELECT name, hash, services, created, used FROM indigo_app_password WHERE pw_name = ? AND pw_domain = ? ORDER BY name"), u.Name, u.Domain)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var p AppPassword
				var services string
				var created, used int64
				if err := rows.Scan(&p.Name, &p.Hash, &services, &created, &used); err != nil {
					return err
				}
				p.Services, p.Created = strings.Fields(services), time.Unix(created, 0)
				if used != 0 {
					p.Used = time.Unix(used, 0)
				}
				all = append(all, p)
			}
			return rows.Err()
		})
		if err != nil {
			return nil, fmt.Errorf("look up app passwords: %w", err)
		}
		return all, nil
	})
}

// AddAppPassword adds an app password: Name, Hash and Services. ErrExists, ErrNoUser, ErrNoDomain.
func (s *Store) AddAppPassword(ctx context.Context, a addr.Address, p AppPassword) error {
	u, err := s.User(ctx, a)
	if err != nil {
		return fmt.Errorf("user %s: %w", a, err)
	}
	name := strings.ToLower(p.Name)
	if err := validName(name, maxAppName); err != nil {
		return fmt.Errorf("app password: %w", err)
	}
	for _, service := range p.Services {
		if !slices.Contains(AppServices(), service) {
			return fmt.Errorf("no service %q; there are %s", service, strings.Join(AppServices(), ", "))
		}
	}
	return s.transaction(ctx, func(tx *sql.Tx) error {
		// The user's row is locked, so that two who add at once do not pass the bound, and a user who is being removed gets none.
		result, err := tx.ExecContext(ctx, s.engine.rebind("UPDATE indimail SET pw_name = pw_name, timestamp = timestamp WHERE pw_name = ? AND pw_domain = ?"), u.Name, u.Domain)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, fmt.Errorf("user %s: %w", a, ErrNoUser))
		}
		var n int
		if err := tx.QueryRowContext(ctx, s.engine.rebind("SELECT count(*) FROM indigo_app_password WHERE pw_name = ? AND pw_domain = ?"), u.Name, u.Domain).Scan(&n); err != nil {
			return err
		}
		if n >= maxAppPasswords {
			return fmt.Errorf("user %s has %d app passwords, which is the most: revoke one", a, n)
		}
		result, err = tx.ExecContext(ctx, s.engine.insert("indigo_app_password", "pw_name", "pw_domain", "name", "hash", "services", "created", "used"),
			u.Name, u.Domain, name, p.Hash, strings.Join(p.Services, " "), s.config.Now().Unix(), 0)
		if err != nil {
			return err
		}
		if added, err := result.RowsAffected(); err != nil || added == 0 {
			return errors.Join(err, fmt.Errorf("app password %s of %s: %w", name, a, ErrExists))
		}
		return s.record(ctx, tx, u.Name, u.Domain, "app password "+name+" added")
	})
}

// ErrNoAppPassword says that a user has no app password of a name.
var ErrNoAppPassword = errors.New("no such app password")

// RevokeAppPassword takes an app password away. ErrNoAppPassword, ErrNoUser, ErrNoDomain.
func (s *Store) RevokeAppPassword(ctx context.Context, a addr.Address, name string) error {
	u, err := s.AnyUser(ctx, a)
	if err != nil {
		return fmt.Errorf("user %s: %w", a, err)
	}
	name = strings.ToLower(name)
	n, err := s.change(ctx, u.Name, u.Domain, "app password "+name+" revoked", "DELETE FROM indigo_app_password WHERE pw_name = ? AND pw_domain = ? AND name = ?", u.Name, u.Domain, name)
	if err == nil && n == 0 {
		err = fmt.Errorf("app password %s of %s: %w", name, a, ErrNoAppPassword)
	}
	return err
}

// AppPasswordUsed writes down that an app password was used now. It is no change that is recorded in vlog, and other hosts need not see it
// at once.
func (s *Store) AppPasswordUsed(ctx context.Context, a addr.Address, name string) error {
	key := addr.Address{Local: strings.ToLower(a.Local), Domain: strings.ToLower(a.Domain)}
	_, err := s.write.ExecContext(ctx, s.engine.rebind("UPDATE indigo_app_password SET used = ? WHERE pw_name = ? AND pw_domain = ? AND name = ?"), s.config.Now().Unix(), key.Local, key.Domain, name)
	s.cache.mu.Lock()
	delete(s.cache.apps.found, key)
	s.cache.mu.Unlock()
	if err != nil {
		return fmt.Errorf("app password %s of %s: %w", name, a, err)
	}
	return nil
}

// RenewPassword puts another stored form of the same password in the place of u's, if that is still what the database has: a password that
// was changed meanwhile stays. The time of the password's last change stays too. u may be marked inactive.
func (s *Store) RenewPassword(ctx context.Context, u User, passwd, scram, what string) (renewed bool, err error) {
	left, err := s.RenewPasswords(ctx, []Renewal{{u, passwd, scram}}, what)
	switch {
	case err != nil:
		return false, err
	case errors.Is(left[0], ErrChanged):
		return false, nil
	}
	return left[0] == nil, left[0]
}

// Renewal is another stored form of the password that a user has.
type Renewal struct {
	User            User
	Password, Scram string
}

// ErrChanged says that a user has another password by now.
var ErrChanged = errors.New("was changed meanwhile")

// RenewPasswords does for some users, in one transaction, what RenewPassword does for one. left has for each what kept it from being done, nil where it was
// done. With an error none was.
func (s *Store) RenewPasswords(ctx context.Context, all []Renewal, what string) (left []error, err error) {
	left = make([]error, len(all))
	guarded := slices.Clone(all)
	for i, r := range all {
		guarded[i].Password, guarded[i].Scram, left[i] = s.guard(ctx, r.User.Address(), r.Password, r.Scram)
	}
	if !slices.Contains(left, nil) {
		return left, nil
	}
	err = s.transaction(ctx, func(tx *sql.Tx) error {
		for i, r := range guarded {
			if left[i] != nil {
				continue
			}
			u, table := r.User, "indimail"
			if u.Inactive {
				table = "indibak"
			}
			result, err := tx.ExecContext(ctx, s.engine.rebind("UPDATE "+table+" SET pw_passwd = ?, scram = ?, timestamp = timestamp WHERE pw_name = ? AND pw_domain = ? AND pw_passwd = ? AND coalesce(scram, '') = ?"),
				r.Password, null(r.Scram), u.Name, u.Domain, u.Password, u.Scram)
			if err != nil {
				return fmt.Errorf("user %s: %w", u.Address(), err)
			}
			n, err := result.RowsAffected()
			if err != nil {
				return err
			}
			if n == 0 {
				left[i] = ErrChanged
			} else if err := s.record(ctx, tx, u.Name, u.Domain, what); err != nil {
				return err
			}
		}
		return nil
	})
	return left, err
}

// null gives NULL for "": IndiMail puts a column scram that is not NULL before the hash, even an empty one.
func null(s string) any {
	if s == "" {
		return nil
	}
	return s
}
