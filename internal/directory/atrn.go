package directory

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
)

// ATRNGrant lets a user fetch a domain's mail by ATRN (RFC 2645): a row of the table atrn_map (wiki 1758).
type ATRNGrant struct {
	User   string `json:"user"`
	Domain string `json:"domain"`
}

// ATRNGrants gives all grants of a user, to a domain, or with "" for either whatever it is, in order. A row with several domains gives several.
func (s *Store) ATRNGrants(ctx context.Context, user, domain string) (all []ATRNGrant, err error) {
	where, args := "pw_name <> ''", []any{}
	if user != "" {
		a, err := addr.Parse(strings.ToLower(user))
		if err != nil {
			return nil, fmt.Errorf("user %s: %w", user, err)
		}
		where, args = "pw_name = ? AND pw_domain = ?", []any{a.Local, a.Domain}
	}
	err = s.retried(ctx, func() error {
		all = []ATRNGrant{}
		rows, err := s.read.QueryContext(ctx, s.engine.rebind("SELECT pw_name, pw_domain, coalesce(domain_list, '') FROM atrn_map WHERE "+where+" ORDER BY pw_domain, pw_name, domain_list"), args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var name, host, list string
			if err := rows.Scan(&name, &host, &list); err != nil {
				return err
			}
			for _, one := range atrnDomains(list) {
				if domain == "" || strings.EqualFold(domain, one) {
					all = append(all, ATRNGrant{name + "@" + host, one})
				}
			}
		}
		return rows.Err()
	})
	return all, err
}

// ATRNDomains gives the domains, in lower case, that a user is granted.
func (s *Store) ATRNDomains(ctx context.Context, user addr.Address) (domains []string, err error) {
	all, err := s.ATRNGrants(ctx, user.String(), "")
	for _, g := range all {
		domains = append(domains, g.Domain)
	}
	return domains, err
}

// GrantATRN lets a user, who may also be one of the host's, fetch a domain's mail. ErrNoDomain, ErrExists.
func (s *Store) GrantATRN(ctx context.Context, user addr.Address, domain string) error {
	d, err := s.Domain(ctx, domain)
	if err != nil {
		return fmt.Errorf("domain %s: %w", domain, err)
	}
	local, host := strings.ToLower(user.Local), strings.ToLower(user.Domain)
	if len(local) > maxName || len(host) > maxDomain {
		return fmt.Errorf("user %s: the name is longer than the table atrn_map takes", user)
	}
	before, err := s.ATRNDomains(ctx, user)
	if err != nil {
		return err
	}
	if slices.Contains(before, d.Name) {
		return fmt.Errorf("%s may fetch %s already: %w", user, d.Name, ErrExists)
	}
	_, err = s.change(ctx, local, d.Name, "may be fetched by ATRN by "+user.String(), s.engine.insert("atrn_map", "pw_name", "pw_domain", "domain_list"), local, host, d.Name)
	return err
}

// RevokeATRN takes that back; the domain need not be there any more. A grant that is not there is an error.
func (s *Store) RevokeATRN(ctx context.Context, user addr.Address, domain string) error {
	local, host, domain := strings.ToLower(user.Local), strings.ToLower(user.Domain), addr.FoldDomain(domain)
	return s.transaction(ctx, func(tx *sql.Tx) error {
		lists, err := s.listsOf(ctx, tx, local, host)
		if err != nil {
			return err
		}
		found := false
		for _, list := range lists {
			left := slices.DeleteFunc(atrnDomains(list), func(one string) bool { return one == domain })
			if len(left) == len(atrnDomains(list)) {
				continue
			}
			found = true
			if _, err := tx.ExecContext(ctx, s.engine.rebind("DELETE FROM atrn_map WHERE pw_name = ? AND pw_domain = ? AND domain_list = ?"), local, host, list); err != nil {
				return err
			}
			for _, one := range left {
				if _, err := tx.ExecContext(ctx, s.engine.insert("atrn_map", "pw_name", "pw_domain", "domain_list"), local, host, one); err != nil {
					return err
				}
			}
		}
		if !found {
			return fmt.Errorf("%s has no grant for %s in the table atrn_map", user, domain)
		}
		return s.record(ctx, tx, local, domain, "may not be fetched by ATRN any more by "+user.String())
	})
}

// listsOf gives domain_list of a user's rows.
func (s *Store) listsOf(ctx context.Context, tx *sql.Tx, local, host string) (lists []string, err error) {
	rows, err := tx.QueryContext(ctx, s.engine.rebind("SELECT coalesce(domain_list, '') FROM atrn_map WHERE pw_name = ? AND pw_domain = ?"), local, host)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var list string
		if err := rows.Scan(&list); err != nil {
			return nil, err
		}
		lists = append(lists, list)
	}
	return lists, rows.Err()
}

// atrnDomains splits a domain_list, in which IndiMail has one domain.
func atrnDomains(list string) []string {
	return strings.FieldsFunc(strings.ToLower(list), func(r rune) bool { return r == ',' || r == ' ' })
}
