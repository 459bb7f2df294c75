package directory

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Admin is a management user of IndiMail's administration server (table mgmtaccess). The stored password is not in it.
type Admin struct {
	Name string `json:"name"`
	// LastAccess and LastUpdate are when the password was used and set, zero for never.
	LastAccess time.Time `json:"last_access"`
	LastUpdate time.Time `json:"last_update"`
	// Attempts are those with a wrong password.
	Attempts int  `json:"attempts"`
	Locked   bool `json:"locked"`
}

// Privilege is a program that a management user may run (table vpriv). Switches are the options it may be given, a pattern such
// as "*" or "-q *".
type Privilege struct {
	Admin    string `json:"admin"`
	Program  string `json:"program"`
	Switches string `json:"switches"`
}

// ErrNoAdmin says that there is no such management user.
var ErrNoAdmin = errors.New("no such management user")

// The widths of the columns of mgmtaccess and vpriv.
const (
	maxAdmin    = 32
	maxProgram  = 64
	maxSwitches = 128
)

// Admins gives all management users, or with a name that one, in the order of their names. ErrNoAdmin for a name that is not there.
func (s *Store) Admins(ctx context.Context, name string) ([]Admin, error) {
	question, args := "SELECT "+s.engine.names([]string{"user", "lastaccess", "lastupdate", "attempts", "status"})+" FROM mgmtaccess", []any{}
	if name != "" {
		question, args = question+" WHERE "+s.engine.name("user")+" = ?", append(args, name)
	}
	rows, err := s.read.QueryContext(ctx, s.engine.rebind(question+" ORDER BY "+s.engine.name("user")), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := []Admin{}
	for rows.Next() {
		var a Admin
		var access, update int64
		var status string
		if err := rows.Scan(&a.Name, &access, &update, &a.Attempts, &status); err != nil {
			return nil, err
		}
		a.LastAccess, a.LastUpdate, a.Locked = time.Unix(access, 0).UTC(), time.Unix(update, 0).UTC(), strings.TrimSpace(status) != "0"
		all = append(all, a)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	if name != "" && len(all) == 0 {
		return nil, fmt.Errorf("%s: %w", name, ErrNoAdmin)
	}
	return all, nil
}

// AdminPassword gives a management user's stored password and whether the user is locked. ErrNoAdmin.
func (s *Store) AdminPassword(ctx context.Context, name string) (stored string, locked bool, err error) {
	admins, err := s.Admins(ctx, name)
	if err != nil {
		return "", false, err
	}
	err = s.read.QueryRowContext(ctx, s.engine.rebind("SELECT pass FROM mgmtaccess WHERE "+s.engine.name("user")+" = ?"), name).Scan(&stored)
	return stored, admins[0].Locked, err
}

// AddAdmin adds a management user with the stored form of a password. ErrExists.
func (s *Store) AddAdmin(ctx context.Context, name, hash string) error {
	if err := validName(name, maxAdmin); err != nil {
		return fmt.Errorf("management user: %w", err)
	}
	now := s.config.Now()
	n, err := s.change(ctx, name, "", "management user added", s.engine.insert("mgmtaccess", "user", "pass", "pw_uid", "pw_gid", "lastaccess", "lastupdate", "day", "attempts", "status"),
		name, hash, 0, 0, 0, now.Unix(), now.Format("02"), 0, "0")
	if err == nil && n == 0 {
		err = fmt.Errorf("management user %s: %w", name, ErrExists)
	}
	return err
}

// changeAdmin runs a statement whose last value is the name. ErrNoAdmin.
func (s *Store) changeAdmin(ctx context.Context, name, what, statement string, args ...any) error {
	n, err := s.change(ctx, name, "", what, statement+" WHERE "+s.engine.name("user")+" = ?", append(args, name)...)
	if err == nil && n == 0 {
		err = fmt.Errorf("%s: %w", name, ErrNoAdmin)
	}
	return err
}

// SetAdminPassword sets the stored form of a password, and unlocks. ErrNoAdmin.
func (s *Store) SetAdminPassword(ctx context.Context, name, hash string) error {
	return s.changeAdmin(ctx, name, "management user's password set", "UPDATE mgmtaccess SET pass = ?, lastupdate = ?, attempts = 0, status = '0'", hash, s.config.Now().Unix())
}

// LockAdmin keeps a management user out, or lets it in again and forgets its wrong attempts. ErrNoAdmin.
func (s *Store) LockAdmin(ctx context.Context, name string, locked bool) error {
	if locked {
		return s.changeAdmin(ctx, name, "management user locked", "UPDATE mgmtaccess SET status = '1'")
	}
	return s.changeAdmin(ctx, name, "management user unlocked", "UPDATE mgmtaccess SET status = '0', attempts = 0")
}

// RemoveAdmin removes a management user with all privileges. ErrNoAdmin.
func (s *Store) RemoveAdmin(ctx context.Context, name string) error {
	if err := s.changeAdmin(ctx, name, "management user removed", "DELETE FROM mgmtaccess"); err != nil {
		return err
	}
	_, err := s.Revoke(ctx, name, "")
	return err
}

// Privileges gives what a management user may run, or with "" what all may.
func (s *Store) Privileges(ctx context.Context, name string) ([]Privilege, error) {
	question, args := "SELECT "+s.engine.name("user")+", program, coalesce(cmdswitches, '') FROM vpriv", []any{}
	if name != "" {
		question, args = question+" WHERE "+s.engine.name("user")+" = ?", append(args, name)
	}
	rows, err := s.read.QueryContext(ctx, s.engine.rebind(question+" ORDER BY "+s.engine.name("user")+", program"), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := []Privilege{}
	for rows.Next() {
		var p Privilege
		if err := rows.Scan(&p.Admin, &p.Program, &p.Switches); err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, rows.Err()
}

// Grant lets a management user run a program, with the options that match switches in the place of those before. ErrNoAdmin.
func (s *Store) Grant(ctx context.Context, p Privilege) error {
	if _, err := s.Admins(ctx, p.Admin); err != nil {
		return err
	}
	if p.Program == "" || len(p.Program) > maxProgram || len(p.Switches) > maxSwitches || strings.ContainsAny(p.Program+p.Switches, "\x00\r\n") {
		return fmt.Errorf("program must have 1 to %d bytes and its switches at most %d, without line ends", maxProgram, maxSwitches)
	}
	_, err := s.change(ctx, p.Admin, "", "may run "+p.Program+" "+p.Switches, s.engine.upsert("vpriv", 2, "user", "program", "cmdswitches"), p.Admin, p.Program, p.Switches)
	return err
}

// Revoke takes a program from a management user, or with "" every one, and tells how many that was.
func (s *Store) Revoke(ctx context.Context, name, program string) (n int64, err error) {
	statement, args, what := "DELETE FROM vpriv WHERE "+s.engine.name("user")+" = ?", []any{name}, "may run nothing"
	if program != "" {
		statement, args, what = statement+" AND program = ?", append(args, program), "may not run "+program
	}
	return s.change(ctx, name, "", what, statement, args...)
}
