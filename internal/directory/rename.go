package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
)

// names tells by which columns a table names a user and a domain; "" for none. vlog tells what was, and is left alone; a user of dbinfo
// and of the tables of programs is none of mail.
func (t Table) names() (user, domain, email string) {
	has := func(name string) bool {
		return slices.ContainsFunc(t.Columns, func(c Column) bool { return c.Name == name })
	}
	switch {
	case t.Name == "vlog":
		return "", "", ""
	case has("pw_domain"):
		return "pw_name", "pw_domain", ""
	case t.Name == "valias":
		return "alias", "domain", ""
	case t.Name == "dbinfo" || t.Name == "smtp_port":
		return "", "domain", ""
	case has("user") && has("domain"):
		return "user", "domain", ""
	case has("domain"):
		return "", "domain", ""
	case has("emailid"):
		return "", "", "emailid"
	case t.Name == "relay":
		return "", "", "email"
	}
	return "", "", ""
}

// unchanged keeps MariaDB from writing the time of a renaming where that of a log-in or a password is.
func (s *Store) unchanged(t Table) string {
	for _, c := range t.Columns {
		if c.Kind == "stamp" {
			return ", " + s.engine.name(c.Name) + " = " + s.engine.name(c.Name)
		}
	}
	return ""
}

// RenameUser gives a user another name, also one of another domain, in every table that names him. The home stays where it is, so that no
// delivery or log-in under way loses its place; MoveUser moves it. ErrNoUser, ErrNoDomain, ErrExists. A renaming that was done already is
// no error.
func (s *Store) RenameUser(ctx context.Context, from, to addr.Address) error {
	d, err := s.ownDomain(ctx, to.Domain)
	if err != nil {
		return err
	}
	to = addr.Address{Local: strings.ToLower(to.Local), Domain: d.Name}
	if err := validName(to.Local, maxName); err != nil {
		return fmt.Errorf("user: %w", err)
	}
	u, err := s.User(ctx, from)
	if errors.Is(err, ErrNoUser) {
		done, check := s.wasRenamed(ctx, addr.Address{Local: strings.ToLower(from.Local), Domain: strings.ToLower(from.Domain)}, to)
		if check == nil && done {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("user %s: %w", from, err)
	}
	from = u.Address()
	switch {
	case from == to:
		return fmt.Errorf("%s is the user's name already", to)
	case from.Local == "postmaster":
		return fmt.Errorf("%s: each domain must have its postmaster (RFC 5321 section 4.5.1)", from)
	}
	limits := NoLimits()
	if from.Domain != to.Domain {
		if limits, err = s.Limits(ctx, to.Domain); err != nil {
			return err
		}
	}
	return s.transaction(ctx, func(tx *sql.Tx) error {
		for table, where := range map[string]string{"indimail": "pw_name = ? AND pw_domain = ?", "indibak": "pw_name = ? AND pw_domain = ?", "valias": "alias = ? AND domain = ?"} {
			n, err := s.count(ctx, tx, "SELECT count(*) FROM "+table+" WHERE "+where, to.Local, to.Domain)
			if err != nil {
				return err
			}
			if n > 0 {
				return fmt.Errorf("%s, in the table %s: %w", to, table, ErrExists)
			}
		}
		for _, t := range Schema() {
			user, domain, email := t.names()
			table := s.engine.name(t.Name)
			switch {
			case user != "":
				// What is left of a user of this name who was removed has no owner.
				where := " WHERE " + s.engine.name(user) + " = ? AND " + s.engine.name(domain) + " = ?"
				if _, err := tx.ExecContext(ctx, s.engine.rebind("DELETE FROM "+table+where), to.Local, to.Domain); err != nil {
					return err
				}
				result, err := tx.ExecContext(ctx, s.engine.rebind("UPDATE "+table+" SET "+s.engine.name(user)+" = ?, "+s.engine.name(domain)+" = ?"+s.unchanged(t)+where), to.Local, to.Domain, from.Local, from.Domain)
				if err != nil {
					return fmt.Errorf("table %s: %w", t.Name, err)
				}
				if n, err := result.RowsAffected(); t.Name == "indimail" && (err != nil || n != 1) {
					return errors.Join(err, fmt.Errorf("user %s: %w", from, ErrNoUser))
				}
			case email != "":
				if _, err := tx.ExecContext(ctx, s.engine.rebind("DELETE FROM "+table+" WHERE "+email+" = ?"), to.String()); err != nil {
					return err
				}
				if _, err := tx.ExecContext(ctx, s.engine.rebind("UPDATE "+table+" SET "+email+" = ?"+s.unchanged(t)+" WHERE "+email+" = ?"), to.String(), from.String()); err != nil {
					return fmt.Errorf("table %s: %w", t.Name, err)
				}
			}
		}
		err := s.rewriteLines(ctx, tx, "@"+from.Domain, func(target string) string {
			if strings.EqualFold(target, from.String()) {
				return to.String()
			}
			return target
		})
		if err != nil {
			return err
		}
		if err := s.moveSecrets(ctx, tx, from, to); err != nil {
			return err
		}
		if err := s.mostUsers(ctx, tx, to.Domain, limits.MaxUsers); err != nil {
			return err
		}
		if err := s.record(ctx, tx, from.Local, from.Domain, "user renamed to "+to.String()); err != nil {
			return err
		}
		return s.record(ctx, tx, to.Local, to.Domain, renamedFrom+from.String())
	})
}

const renamedFrom = "user renamed from "

// wasRenamed tells whether the latest of to is that it was made of from.
func (s *Store) wasRenamed(ctx context.Context, from, to addr.Address) (bool, error) {
	if _, err := s.User(ctx, to); err != nil {
		return false, nil
	}
	changes, _, err := s.Changes(ctx, to.Local, to.Domain, 0, 10)
	for _, c := range changes {
		if c.What == renamedFrom+from.String() {
			return true, nil
		}
		if !strings.HasPrefix(c.What, movedTo) {
			break
		}
	}
	return false, err
}

func (s *Store) count(ctx context.Context, tx *sql.Tx, statement string, args ...any) (n int64, err error) {
	return n, tx.QueryRowContext(ctx, s.engine.rebind(statement), args...).Scan(&n)
}

// mostUsers fails when a domain has more users than it may; -1 stands for no limit.
func (s *Store) mostUsers(ctx context.Context, tx *sql.Tx, domain string, most int64) error {
	if most < 0 {
		return nil
	}
	n, err := s.count(ctx, tx, "SELECT count(*) FROM indimail WHERE pw_domain = ?", domain)
	if err == nil && n > most {
		err = fmt.Errorf("domain %s: it has its most, %d users: `indigo limit set %s maxpopaccounts=N` allows more", domain, most, domain)
	}
	return err
}

// rewriteLines gives lines of aliases another target, &user@domain or user@domain. Only lines that hold the text mark are looked at.
func (s *Store) rewriteLines(ctx context.Context, tx *sql.Tx, mark string, rewrite func(target string) string) error {
	type line struct{ alias, domain, text string }
	rows, err := tx.QueryContext(ctx, s.engine.rebind("SELECT alias, domain, valias_line FROM valias WHERE lower(valias_line) LIKE ? ESCAPE '!'"), "%"+likeText(strings.ToLower(mark))+"%")
	if err != nil {
		return err
	}
	defer rows.Close()
	var found []line
	for rows.Next() {
		var l line
		if err := rows.Scan(&l.alias, &l.domain, &l.text); err != nil {
			return err
		}
		found = append(found, l)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for _, l := range found {
		target, forward := strings.CutPrefix(l.text, "&")
		changed := rewrite(target)
		if changed == target {
			continue
		}
		if forward {
			changed = "&" + changed
		}
		if len(changed) > maxLine {
			return fmt.Errorf("the alias %s@%s: its line would be longer than %d bytes: %s", l.alias, l.domain, maxLine, changed)
		}
		// Added and removed: the new line may be there.
		if _, err := tx.ExecContext(ctx, s.engine.insert("valias", "alias", "domain", "valias_line"), l.alias, l.domain, changed); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.engine.rebind("DELETE FROM valias WHERE alias = ? AND domain = ? AND valias_line = ?"), l.alias, l.domain, l.text); err != nil {
			return err
		}
	}
	return nil
}

// likeText makes a text one that LIKE ... ESCAPE '!' finds as it is.
func likeText(s string) string {
	return strings.NewReplacer("!", "!!", "%", "!%", "_", "!_").Replace(s)
}

// ownDomain finds a domain that is none's alias.
func (s *Store) ownDomain(ctx context.Context, name string) (Domain, error) {
	d, err := s.Domain(ctx, name)
	if err != nil {
		return d, fmt.Errorf("domain %s: %w", name, err)
	}
	if d.Name != addr.FoldDomain(name) {
		return d, fmt.Errorf("%s is an alias of the domain %s: name that", name, d.Name)
	}
	return d, nil
}

// RenameDomain gives a domain, or the alias of one, another name in every table. The directories stay where they are. ErrNoDomain,
// ErrExists.
func (s *Store) RenameDomain(ctx context.Context, from, to string) error {
	written, from, to := strings.ToLower(from), addr.FoldDomain(from), addr.FoldDomain(to)
	if err := errors.Join(validName(to, maxDomain), addr.ValidDomain(to)); err != nil {
		return fmt.Errorf("domain: %w", err)
	}
	return s.transaction(ctx, func(tx *sql.Tx) error {
		// A name beyond ASCII may stand there as it was written: it is found by nothing else, and gets its A-labels so.
		if written != from {
			n, err := s.count(ctx, tx, "SELECT count(*) FROM indigo_domain WHERE domain = ?", written)
			if err != nil {
				return err
			}
			if n > 0 {
				from = written
			}
		}
		for _, statement := range []string{"SELECT count(*) FROM indigo_domain WHERE domain = ?", "SELECT count(*) FROM aliasdomain WHERE alias = ?", "SELECT count(*) FROM indimail WHERE pw_domain = ?"} {
			n, err := s.count(ctx, tx, statement, to)
			if err != nil {
				return err
			}
			if n > 0 {
				return fmt.Errorf("domain %s: %w", to, ErrExists)
			}
		}
		result, err := tx.ExecContext(ctx, s.engine.rebind("UPDATE aliasdomain SET alias = ? WHERE alias = ?"), to, from)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n > 0 {
			return errors.Join(err, s.record(ctx, tx, "", from, "alias of a domain renamed to "+to), s.record(ctx, tx, "", to, "alias of a domain renamed from "+from))
		}
		for _, t := range Schema() {
			_, domain, email := t.names()
			table := s.engine.name(t.Name)
			switch {
			case domain != "":
				where := " WHERE " + s.engine.name(domain) + " = ?"
				if _, err := tx.ExecContext(ctx, s.engine.rebind("DELETE FROM "+table+where), to); err != nil {
					return err
				}
				result, err := tx.ExecContext(ctx, s.engine.rebind("UPDATE "+table+" SET "+s.engine.name(domain)+" = ?"+s.unchanged(t)+where), to, from)
				if err != nil {
					return fmt.Errorf("table %s: %w", t.Name, err)
				}
				if n, err := result.RowsAffected(); t.Name == "indigo_domain" && (err != nil || n != 1) {
					return errors.Join(err, fmt.Errorf("domain %s: %w", from, ErrNoDomain))
				}
			case email != "":
				if err := s.renameEmails(ctx, tx, t, email, from, to); err != nil {
					return fmt.Errorf("table %s: %w", t.Name, err)
				}
			}
		}
		if err := s.moveSecrets(ctx, tx, addr.Address{Domain: from}, addr.Address{Domain: to}); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.engine.rebind("UPDATE atrn_map SET domain_list = ?, timestamp = timestamp WHERE domain_list = ?"), to, from); err != nil {
			return err
		}
		err = s.rewriteLines(ctx, tx, "@"+from, func(target string) string {
			if i := len(target) - len(from) - 1; i > 0 && strings.EqualFold(target[i:], "@"+from) {
				return target[:i] + "@" + to
			}
			return target
		})
		return errors.Join(err, s.record(ctx, tx, "", from, "domain renamed to "+to), s.record(ctx, tx, "", to, "domain renamed from "+from))
	})
}

// renameEmails gives the addresses of a domain in a column the new domain.
func (s *Store) renameEmails(ctx context.Context, tx *sql.Tx, t Table, email, from, to string) error {
	rows, err := tx.QueryContext(ctx, s.engine.rebind("SELECT DISTINCT "+email+" FROM "+t.Name+" WHERE lower("+email+") LIKE ? ESCAPE '!'"), "%@"+likeText(from))
	if err != nil {
		return err
	}
	defer rows.Close()
	var found []string
	for rows.Next() {
		var one string
		if err := rows.Scan(&one); err != nil {
			return err
		}
		found = append(found, one)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for _, old := range found {
		renamed := old[:len(old)-len(from)] + to
		if _, err := tx.ExecContext(ctx, s.engine.rebind("DELETE FROM "+t.Name+" WHERE "+email+" = ?"), renamed); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.engine.rebind("UPDATE "+t.Name+" SET "+email+" = ?"+s.unchanged(t)+" WHERE "+email+" = ?"), renamed, old); err != nil {
			return err
		}
	}
	return nil
}
