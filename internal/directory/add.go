package directory

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/maildir"
)

// NewUser is a user to be added.
type NewUser struct {
	Name, Domain string
	// Password is the stored form; with "" nobody can log in. Scram is what the column scram holds.
	Password, Scram string
	// Gecos is the person's name, at most 48 bytes.
	Gecos string
	// Quota is as IndiMail's column pw_shell has it, 52428800, 52428800S,1000C or NOQUOTA; "" takes the domain's default, or else
	// HardQuota.
	Quota string
	Flags Flags
	// Inactive adds the user marked so (DeactivateUser).
	Inactive bool
	// Base is where the home goes in the place of the domain's; "" for there.
	Base string
}

// newRow is a user on the way into the table.
type newRow struct {
	name   string
	domain Domain
	base   string
	values []any
	// inactive sends it to indibak.
	inactive bool
}

// The widths of IndiMail's columns pw_gecos, pw_shell, pw_passwd and scram.
const (
	maxGecos  = 48
	maxQuota  = 30
	maxStored = 128
	maxScram  = 255
)

var quotaForm = regexp.MustCompile(`^(NOQUOTA|[0-9]{1,18}S?(,[0-9]{1,18}C)?)$`)

// plainQuota gives a quota with K, M or G behind its numbers as IndiMail's programs keep it, in bytes; another one as it is.
func plainQuota(text string) string {
	return quotaNumber.ReplaceAllStringFunc(text, func(one string) string {
		q, err := maildir.ParseQuota(one)
		if err != nil {
			return one
		}
		return strconv.FormatInt(q.Bytes, 10)
	})
}

var quotaNumber = regexp.MustCompile(`[0-9]{1,12}[kKmMgG]`)

// Check tells what is wrong with a user before any is added.
func (n NewUser) Check() error {
	var faults []error
	if err := validName(strings.ToLower(n.Name), maxName); err != nil {
		faults = append(faults, fmt.Errorf("user: %w", err))
	}
	if len(n.Gecos) > maxGecos || strings.ContainsAny(n.Gecos, "\x00\r\n") {
		faults = append(faults, fmt.Errorf("the person's name must have at most %d bytes and no line end", maxGecos))
	}
	if n.Quota != "" && (len(plainQuota(n.Quota)) > maxQuota || !quotaForm.MatchString(plainQuota(n.Quota))) {
		faults = append(faults, fmt.Errorf("quota %q is not of the form 52428800, 52428800S,1000C or NOQUOTA", n.Quota))
	}
	if len(n.Password) > maxStored || len(n.Scram) > maxScram {
		faults = append(faults, fmt.Errorf("the password's stored form must have at most %d bytes, scram %d", maxStored, maxScram))
	}
	return errors.Join(faults...)
}

// Address gives the user's address.
func (n NewUser) Address() addr.Address { return addr.Address{Local: n.Name, Domain: n.Domain} }

// AddUser adds a user and makes the home with its Maildir. ErrNoDomain, ErrExists.
func (s *Store) AddUser(ctx context.Context, n NewUser) error {
	added, err := s.AddUsers(ctx, []NewUser{n})
	if err == nil && added == 0 {
		err = fmt.Errorf("user %s: %w", n.Address(), ErrExists)
	}
	return err
}

// AddUsers adds users and makes their homes: all, or after an error none. Those who are there already stay as they are; added counts the
// others. ErrNoDomain.
func (s *Store) AddUsers(ctx context.Context, users []NewUser) (added int, err error) {
	rows := make([]newRow, len(users))
	limited := map[string]int64{}
	inactive := map[string]bool{}
	for i, n := range users {
		n.Quota = plainQuota(n.Quota)
		d, err := s.Domain(ctx, n.Domain)
		if err != nil {
			return 0, fmt.Errorf("domain %s: %w", n.Domain, err)
		}
		if err := n.Check(); err != nil {
			return 0, err
		}
		limits, err := s.Limits(ctx, d.Name)
		if err != nil {
			return 0, err
		}
		if n.Quota == "" {
			n.Quota = cmp.Or(limits.quota(), s.config.HardQuota, "NOQUOTA")
			if err := n.Check(); err != nil {
				return 0, fmt.Errorf("the default quota: %w", err)
			}
		}
		if limits.MaxUsers >= 0 {
			limited[d.Name] = limits.MaxUsers
		}
		name := strings.ToLower(n.Name)
		if n.Password, n.Scram, err = s.guard(ctx, addr.Address{Local: name, Domain: d.Name}, n.Password, n.Scram); err != nil {
			return 0, err
		}
		if err := s.notInactive(ctx, inactive, name, d.Name); err != nil {
			return 0, err
		}
		rows[i] = newRow{name: name, domain: d, values: []any{n.Password, null(n.Scram), 0, int(n.Flags), n.Gecos, n.Quota}, base: n.Base, inactive: n.Inactive}
	}
	err = s.transaction(ctx, func(tx *sql.Tx) error {
		domains := slices.Sorted(maps.Keys(limited))
		for _, domain := range domains {
			// The row is locked, so that two who add at once do not both take the last place.
			if _, err := tx.ExecContext(ctx, s.engine.rebind("UPDATE vlimits SET domain = ? WHERE domain = ?"), domain, domain); err != nil {
				return err
			}
		}
		columns := []string{"pw_name", "pw_domain", "pw_dir", "pw_passwd", "scram", "pw_uid", "pw_gid", "pw_gecos", "pw_shell"}
		insert, err := tx.PrepareContext(ctx, s.engine.insert("indimail", columns...))
		if err != nil {
			return err
		}
		defer insert.Close()
		added = 0
		homes := s.newHomes(tx)
		var fresh, asleep []User
		for _, row := range rows {
			home, err := homes.choose(ctx, row)
			if err != nil {
				return fmt.Errorf("user %s@%s: %w", row.name, row.domain.Name, err)
			}
			values := append([]any{row.name, row.domain.Name, home}, row.values...)
			var result sql.Result
			if row.inactive {
				there, err := s.count(ctx, tx, "SELECT count(*) FROM indimail WHERE pw_name = ? AND pw_domain = ?", row.name, row.domain.Name)
				if err != nil {
					return err
				}
				if there > 0 {
					continue
				}
				result, err = tx.ExecContext(ctx, s.engine.insert("indibak", columns...), values...)
				if err != nil {
					return fmt.Errorf("user %s@%s: %w", row.name, row.domain.Name, err)
				}
			} else if result, err = insert.ExecContext(ctx, values...); err != nil {
				return fmt.Errorf("user %s@%s: %w", row.name, row.domain.Name, err)
			}
			n, err := result.RowsAffected()
			if err != nil {
				return err
			}
			if n == 0 {
				continue
			}
			added++
			homes.take(home)
			what, u := "user added", User{Name: row.name, Domain: row.domain.Name, Gecos: row.values[4].(string)}
			if row.inactive {
				what, asleep = what+", marked inactive", append(asleep, u)
			}
			if err := s.record(ctx, tx, row.name, row.domain.Name, what); err != nil {
				return err
			}
			fresh = append(fresh, u)
		}
		if err := errors.Join(s.stamp(ctx, tx, "add", fresh...), s.stamp(ctx, tx, "INAC", asleep...)); err != nil {
			return err
		}
		for _, domain := range domains {
			if err := s.mostUsers(ctx, tx, domain, limited[domain]); err != nil && added > 0 {
				return err
			}
		}
		if err := homes.save(ctx); err != nil {
			return err
		}
		// At last: nothing is left of users who are refused.
		return homes.make()
	})
	if err != nil {
		return 0, err
	}
	return added, nil
}

// UpdateUser writes what n gives to a user who is there: what is empty stays as it is. ErrNoUser, ErrNoDomain.
func (s *Store) UpdateUser(ctx context.Context, n NewUser) error {
	u, err := s.User(ctx, n.Address())
	if err != nil {
		return fmt.Errorf("user %s: %w", n.Address(), err)
	}
	n.Quota = plainQuota(n.Quota)
	if err := n.Check(); err != nil {
		return err
	}
	if n.Scram != "" || n.Password != "" {
		passwd, scram := cmp.Or(n.Password, u.Password), n.Scram
		guarded, kept, err := s.guard(ctx, u.Address(), passwd, scram)
		if err != nil {
			return err
		}
		if guarded != passwd {
			n.Password = guarded
		}
		n.Scram = kept
	}
	var sets, what []string
	var values []any
	if n.Password != "" && n.Scram == "" {
		// Keys of the password before would still let in who knows that.
		sets, values = append(sets, "scram = ?"), append(values, nil)
	}
	for _, c := range []struct {
		column, value, what string
	}{{"pw_passwd", n.Password, "password set"}, {"scram", n.Scram, "scram set"}, {"pw_gecos", n.Gecos, "name " + n.Gecos}, {"pw_shell", n.Quota, "quota " + n.Quota}} {
		if c.value != "" {
			sets, values, what = append(sets, c.column+" = ?"), append(values, c.value), append(what, c.what)
		}
	}
	if n.Flags != 0 {
		sets, values, what = append(sets, "pw_gid = ?"), append(values, int(n.Flags)), append(what, "flags "+strings.Join(n.Flags.Names(), " "))
	}
	if len(sets) == 0 {
		return nil
	}
	stamp := func(tx *sql.Tx) error {
		if n.Password == "" {
			return nil
		}
		return s.stamp(ctx, tx, "pass", u)
	}
	_, err = s.changeAnd(ctx, stamp, u.Name, u.Domain, strings.Join(what, ", "), "UPDATE indimail SET "+strings.Join(sets, ", ")+", timestamp = CURRENT_TIMESTAMP WHERE pw_name = ? AND pw_domain = ?",
		append(values, u.Name, u.Domain)...)
	return err
}

// Same tells whether a user is already what n gives; what n leaves empty is not compared.
func (n NewUser) Same(u User) bool {
	same := func(given, has string) bool { return given == "" || given == has }
	return same(n.Password, u.Password) && same(n.Scram, u.Scram) && same(n.Gecos, u.Gecos) && same(plainQuota(n.Quota), u.Quota) &&
		(n.Flags == 0 || n.Flags == Flags(u.GID))
}
