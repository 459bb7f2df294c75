package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/instruct"
)

// ErrNoAlias says that the database answered, and that an address has no lines of delivery instructions.
var ErrNoAlias = errors.New("no such alias")

// Alias is one row of the table valias: an address and one of its lines of delivery instructions.
type Alias struct {
	Name   string `json:"name"`
	Domain string `json:"domain"`
	Line   string `json:"line"`
}

// Address gives name@domain.
func (a Alias) Address() addr.Address { return addr.Address{Local: a.Name, Domain: a.Domain} }

const (
	// maxLine is the width of valias's column valias_line.
	maxLine = 190
	// anyone is the name of the alias that gets what is for nobody else of its domain.
	anyone = "*"
	// GroupGecos begins the gecos of a user who is a group, whose lines are its members (vgroup).
	GroupGecos = "MailGroup "
	// maxFollowed bounds the addresses that are looked at in the search for a loop.
	maxFollowed = 200
)

// CatchAll gives the address under which a domain keeps the lines for all names that are neither a user's nor an alias: *@domain.
func CatchAll(domain string) addr.Address { return addr.Address{Local: anyone, Domain: domain} }

// IsGroup tells whether a user is a group, which has no mailbox of its own.
func (u User) IsGroup() bool { return strings.HasPrefix(u.Gecos, GroupGecos) }

// Aliases gives the lines of an address in the order of the alphabet, at least one. ErrNoAlias, ErrNoDomain.
func (s *Store) Aliases(ctx context.Context, a addr.Address) ([]string, error) {
	key := addr.Address{Local: strings.ToLower(a.Local), Domain: strings.ToLower(a.Domain)}
	return lookUp(ctx, &s.cache, &s.cache.aliases, key, func() ([]string, error) {
		d, err := s.Domain(ctx, key.Domain)
		if err != nil {
			return nil, err
		}
		var lines []string
		err = s.retried(ctx, func() error {
			lines = nil
			rows, err := s.read.QueryContext(ctx, s.engine.rebind("SELECT valias_line FROM valias WHERE alias = ? AND domain = ? ORDER BY valias_line"), key.Local, d.Name)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var line string
				if err := rows.Scan(&line); err != nil {
					return err
				}
				lines = append(lines, line)
			}
			return rows.Err()
		})
		if err != nil {
			return nil, fmt.Errorf("look up alias: %w", err)
		}
		if len(lines) == 0 {
			return nil, ErrNoAlias
		}
		return lines, nil
	})
}

// AliasList gives the lines of a domain's aliases in the order of names and lines, at most limit that come behind after; the zero Alias begins.
// ErrNoDomain.
func (s *Store) AliasList(ctx context.Context, domain string, after Alias, limit int) ([]Alias, error) {
	d, err := s.Domain(ctx, domain)
	if err != nil {
		return nil, fmt.Errorf("domain %s: %w", domain, err)
	}
	// The first condition follows from the others; by it a database begins in its index where the page does.
	return s.aliasRows(ctx, "alias >= ? AND domain = ? AND (alias > ? OR valias_line > ?) ORDER BY alias, valias_line LIMIT ?", after.Name, d.Name, after.Name, after.Line, limit)
}

// AliasesTo gives the lines of any domain that send on to a, by any name of its domain, at most limit. Lines that name no domain are not
// found: which one they mean is a setting.
func (s *Store) AliasesTo(ctx context.Context, a addr.Address, limit int) ([]Alias, error) {
	local := strings.ToLower(addr.Address{Local: a.Local}.String())
	names := []AliasDomain{{Alias: strings.ToLower(a.Domain)}}
	d, err := s.Domain(ctx, a.Domain)
	if err == nil {
		names, err = s.AliasDomains(ctx, d.Name)
		names = append(names, AliasDomain{Alias: d.Name})
	}
	if err != nil && !errors.Is(err, ErrNoDomain) {
		return nil, err
	}
	var values []any
	for _, n := range names {
		values = append(values, "&"+local+"@"+n.Alias, local+"@"+n.Alias)
	}
	marks := strings.TrimSuffix(strings.Repeat("?, ", len(values)), ", ")
	return s.aliasRows(ctx, "lower(valias_line) IN ("+marks+") ORDER BY domain, alias, valias_line LIMIT ?", append(values, limit)...)
}

func (s *Store) aliasRows(ctx context.Context, where string, values ...any) (all []Alias, err error) {
	rows, err := s.read.QueryContext(ctx, s.engine.rebind("SELECT alias, domain, valias_line FROM valias WHERE "+where), values...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var a Alias
		if err := rows.Scan(&a.Name, &a.Domain, &a.Line); err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, rows.Err()
}

// checkLine looks at a new line of an alias: it must be understood, a Maildir must be in the domain's directory, and what it leads to
// must not lead back. It gives the line as it is to be stored.
func (s *Store) checkLine(ctx context.Context, d Domain, name, line string) (string, error) {
	line = strings.Trim(line, " \t")
	in, err := instruct.Parse(line)
	switch {
	case err != nil:
		return "", err
	case line == "":
		return "", errors.New("an alias cannot have an empty line")
	case len(line) > maxLine:
		return "", fmt.Errorf("a line must have at most %d bytes", maxLine)
	}
	switch in.Kind {
	case instruct.Mbox:
		return "", fmt.Errorf("%s: mail is not stored in mbox form; a Maildir's path ends with /", line)
	case instruct.Maildir:
		if _, err := MaildirPath(ctx, s, d, in.Text); err != nil {
			return "", err
		}
	case instruct.Forward:
		return line, s.checkLoop(ctx, addr.Address{Local: name, Domain: d.Name}, in.Address)
	}
	return line, nil
}

// MaildirPath gives the absolute path of a Maildir that a line of a domain's names: ./ stands for the domain's directory. It must be in there, or in the
// home of a user of the domain, /…/USER/Maildir/, which IndiMail has elsewhere (wiki 903).
func MaildirPath(ctx context.Context, users interface {
	User(ctx context.Context, a addr.Address) (User, error)
}, d Domain, text string) (string, error) {
	path := text
	if !filepath.IsAbs(path) {
		path = filepath.Join(d.Dir, path)
	}
	path = filepath.Clean(path)
	within := func(dir string) bool { return filepath.IsAbs(dir) && strings.HasPrefix(path, filepath.Clean(dir)+"/") }
	if within(d.Dir) {
		return path, nil
	}
	home, _, _ := strings.Cut(path+"/", "/Maildir/")
	u, err := users.User(ctx, addr.Address{Local: filepath.Base(home), Domain: d.Name})
	switch {
	case err == nil && within(u.Dir):
		return path, nil
	case err != nil && !errors.Is(err, ErrNoUser) && !errors.Is(err, ErrNoDomain):
		return "", err
	}
	return "", fmt.Errorf("%s: the Maildir must be inside of the domain's directory, %s, or of the home of one of its users", text, d.Dir)
}

// checkLoop follows a new forward of the alias from: what comes back to it would never be delivered. A line of a user's address to itself
// means his own mailbox. Lines that name no domain are not followed: which one they mean is a setting.
func (s *Store) checkLoop(ctx context.Context, from, to addr.Address) error {
	// real gives an address with its domain's own name.
	real := func(a addr.Address) (addr.Address, error) {
		d, err := s.Domain(ctx, a.Domain)
		return addr.Address{Local: strings.ToLower(a.Local), Domain: d.Name}, err
	}
	type step struct{ from, to addr.Address }
	next := []step{{from, to}}
	seen := map[addr.Address]bool{}
	for len(next) > 0 && len(seen) < maxFollowed {
		one := next[0]
		next = next[1:]
		at, err := real(one.to)
		if errors.Is(err, ErrNoDomain) {
			continue
		}
		if err != nil {
			return err
		}
		_, err = s.User(ctx, at)
		user := err == nil
		if err != nil && !errors.Is(err, ErrNoUser) {
			return err
		}
		if user && at == one.from {
			continue
		}
		if at == from {
			return fmt.Errorf("&%s would lead back to %s, and the mail would loop", to, from)
		}
		if seen[at] {
			continue
		}
		seen[at] = true
		lines, err := s.Aliases(ctx, at)
		if errors.Is(err, ErrNoAlias) && !user {
			at = CatchAll(at.Domain)
			if lines, err = s.Aliases(ctx, at); at == from {
				return fmt.Errorf("&%s is nobody's, would lead back to %s, and the mail would loop", to, from)
			}
		}
		if err != nil && !errors.Is(err, ErrNoAlias) {
			return err
		}
		for _, line := range lines {
			if in, err := instruct.Parse(line); err == nil && in.Kind == instruct.Forward {
				next = append(next, step{at, in.Address})
			}
		}
	}
	return nil
}

// aliasName checks an alias's address and gives its name and domain as they are stored.
func (s *Store) aliasName(ctx context.Context, a addr.Address) (string, Domain, error) {
	d, err := s.Domain(ctx, a.Domain)
	if err != nil {
		return "", d, fmt.Errorf("domain %s: %w", a.Domain, err)
	}
	name := strings.ToLower(a.Local)
	if name != anyone {
		if err := validName(name, maxName); err != nil {
			return "", d, fmt.Errorf("alias: %w", err)
		}
	}
	return name, d, nil
}

// AddAlias adds lines to an address, which becomes an alias by its first: all or none. An address that is a user's keeps its mailbox, but mail goes where the
// lines say. *@domain gets what is nobody else's. ErrNoDomain; ErrExists when it has one of the lines.
func (s *Store) AddAlias(ctx context.Context, a addr.Address, lines ...string) error {
	name, d, err := s.aliasName(ctx, a)
	if err != nil {
		return err
	}
	lines = slices.Clone(lines)
	for i := range lines {
		if lines[i], err = s.checkLine(ctx, d, name, lines[i]); err != nil {
			return fmt.Errorf("alias %s: %w", a, err)
		}
	}
	return s.transaction(ctx, func(tx *sql.Tx) error {
		for _, line := range lines {
			if err := s.insertLine(ctx, tx, name, d.Name, line); err != nil {
				return err
			}
			if err := s.record(ctx, tx, name, d.Name, "alias line added: "+line); err != nil {
				return err
			}
		}
		return s.checkAliasLimits(ctx, tx, d.Name)
	})
}

func (s *Store) insertLine(ctx context.Context, tx *sql.Tx, name, domain, line string) error {
	result, err := tx.ExecContext(ctx, s.engine.insert("valias", "alias", "domain", "valias_line"), name, domain, line)
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, fmt.Errorf("alias %s@%s has the line %s: %w", name, domain, line, ErrExists))
	}
	return nil
}

// checkAliasLimits counts as IndiMail's web administration does: maxforwards are addresses that send on, and maxaliases, which that keeps
// without counting, all addresses with lines. Called in the transaction that adds.
func (s *Store) checkAliasLimits(ctx context.Context, tx *sql.Tx, domain string) error {
	// The row is locked, so that two who add at once do not both take the last place.
	if _, err := tx.ExecContext(ctx, s.engine.rebind("UPDATE vlimits SET domain = ? WHERE domain = ?"), domain, domain); err != nil {
		return err
	}
	l, err := s.readLimits(ctx, tx.QueryRowContext, domain)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, c := range []struct {
		name, what, where string
		most              int64
	}{
		{"maxaliases", "aliases", "", l.MaxAliases},
		{"maxforwards", "aliases that send on", " AND valias_line NOT LIKE '|%' AND valias_line NOT LIKE '/%' AND valias_line NOT LIKE '.%' AND valias_line NOT LIKE '#%'", l.MaxForwards},
	} {
		if c.most < 0 {
			continue
		}
		var n int64
		if err := tx.QueryRowContext(ctx, s.engine.rebind("SELECT count(DISTINCT alias) FROM valias WHERE domain = ?"+c.where), domain).Scan(&n); err != nil {
			return err
		}
		if n > c.most {
			return fmt.Errorf("domain %s: it has its most, %d %s: `indigo limit set %s %s=N` allows more", domain, c.most, c.what, domain, c.name)
		}
	}
	return nil
}

// RemoveAlias removes lines of an address, or without any all that it has, which it gives. ErrNoDomain; ErrNoAlias when it lacks one of them.
func (s *Store) RemoveAlias(ctx context.Context, a addr.Address, lines ...string) ([]string, error) {
	name, d, err := s.aliasName(ctx, a)
	if err != nil {
		return nil, err
	}
	if len(lines) == 0 {
		if lines, err = s.Aliases(ctx, a); err != nil {
			return nil, fmt.Errorf("alias %s: %w", a, err)
		}
	}
	return lines, s.transaction(ctx, func(tx *sql.Tx) error {
		for _, line := range lines {
			if err := s.deleteLine(ctx, tx, name, d.Name, line); err != nil {
				return err
			}
			if err := s.record(ctx, tx, name, d.Name, "alias line removed: "+line); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Store) deleteLine(ctx context.Context, tx *sql.Tx, name, domain, line string) error {
	result, err := tx.ExecContext(ctx, s.engine.rebind("DELETE FROM valias WHERE alias = ? AND domain = ? AND valias_line = ?"), name, domain, strings.Trim(line, " \t"))
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, fmt.Errorf("alias %s@%s does not have the line %s: %w", name, domain, line, ErrNoAlias))
	}
	return nil
}

// ChangeAlias puts a line in the place of another. ErrNoDomain; ErrNoAlias without the old one, ErrExists with the new one.
func (s *Store) ChangeAlias(ctx context.Context, a addr.Address, old, line string) error {
	name, d, err := s.aliasName(ctx, a)
	if err != nil {
		return err
	}
	if line, err = s.checkLine(ctx, d, name, line); err != nil {
		return fmt.Errorf("alias %s: %w", a, err)
	}
	return s.transaction(ctx, func(tx *sql.Tx) error {
		if err := s.deleteLine(ctx, tx, name, d.Name, old); err != nil {
			return err
		}
		if err := s.insertLine(ctx, tx, name, d.Name, line); err != nil {
			return err
		}
		if err := s.record(ctx, tx, name, d.Name, "alias line "+old+" became "+line); err != nil {
			return err
		}
		return s.checkAliasLimits(ctx, tx, d.Name)
	})
}

// AliasDomain is one row of the table aliasdomain: another name of a domain.
type AliasDomain struct {
	Alias  string `json:"alias"`
	Domain string `json:"domain"`
}

// AliasDomains gives the other names of a domain, or with "" of all, in the order of the alphabet.
func (s *Store) AliasDomains(ctx context.Context, domain string) (all []AliasDomain, err error) {
	where, values := "domain IS NOT NULL", []any{}
	if domain != "" {
		where, values = "domain = ?", append(values, addr.FoldDomain(domain))
	}
	rows, err := s.read.QueryContext(ctx, s.engine.rebind("SELECT alias, domain FROM aliasdomain WHERE "+where+" ORDER BY domain, alias"), values...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var a AliasDomain
		if err := rows.Scan(&a.Alias, &a.Domain); err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, rows.Err()
}

// AddAliasDomain gives a domain another name: its users and aliases have addresses in both. ErrNoDomain; ErrExists when alias is a domain or
// an alias already. An alias of an alias is an error.
func (s *Store) AddAliasDomain(ctx context.Context, alias, domain string) error {
	alias, domain = addr.FoldDomain(alias), addr.FoldDomain(domain)
	if err := errors.Join(validName(alias, maxDomain), addr.ValidDomain(alias)); err != nil {
		return fmt.Errorf("alias domain: %w", err)
	}
	d, err := s.Domain(ctx, domain)
	switch {
	case err != nil:
		return fmt.Errorf("domain %s: %w", domain, err)
	case d.Name != domain:
		return fmt.Errorf("%s is itself an alias of %s: make %s an alias of that", domain, d.Name, alias)
	}
	return s.transaction(ctx, func(tx *sql.Tx) error {
		if err := s.nameIsFree(ctx, tx, alias); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.engine.insert("aliasdomain", "alias", "domain"), alias, d.Name); err != nil {
			return err
		}
		return s.record(ctx, tx, "", d.Name, "alias domain added: "+alias)
	})
}

// nameIsFree fails with ErrExists when a name is a domain's or an alias domain's. Domains and their aliases have no key in common: until the
// transaction ends nobody else adds either.
func (s *Store) nameIsFree(ctx context.Context, tx *sql.Tx, name string) error {
	if s.engine != sqLite {
		if _, err := tx.ExecContext(ctx, "UPDATE indigo_change SET version = version + 1"); err != nil {
			return err
		}
	}
	var owner string
	err := tx.QueryRowContext(ctx, s.engine.rebind("SELECT domain FROM indigo_domain WHERE domain = ?"), name).Scan(&owner)
	if err == nil {
		return fmt.Errorf("domain %s: %w", name, ErrExists)
	}
	if errors.Is(err, sql.ErrNoRows) {
		err = tx.QueryRowContext(ctx, s.engine.rebind("SELECT coalesce(domain, '') FROM aliasdomain WHERE alias = ?"), name).Scan(&owner)
	}
	if err == nil {
		return fmt.Errorf("%s, an alias of the domain %s: %w", name, owner, ErrExists)
	}
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return err
}

// RemoveAliasDomain takes a name away from its domain, which stays as it is. ErrNoDomain when it is none.
func (s *Store) RemoveAliasDomain(ctx context.Context, alias string) error {
	alias = addr.FoldDomain(alias)
	d, err := s.Domain(ctx, alias)
	if err == nil && d.Name == alias {
		return fmt.Errorf("%s is a domain, no alias of one", alias)
	}
	if err != nil {
		return fmt.Errorf("alias domain %s: %w", alias, err)
	}
	_, err = s.change(ctx, "", d.Name, "alias domain removed: "+alias, "DELETE FROM aliasdomain WHERE alias = ?", alias)
	return err
}
