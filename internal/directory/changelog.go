package directory

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/indigomail/indigo/internal/addr"
)

// Change is one line of who changed what, of IndiMail's table vlog.
type Change struct {
	Time time.Time `json:"time"`
	// Who made it: a name of the host's users, or the service.
	Who string `json:"who"`
	// User is "" for a change of the domain.
	User   string `json:"user,omitempty"`
	Domain string `json:"domain"`
	What   string `json:"what"`
}

// The widths of vlog's columns logon and message.
const (
	maxWho  = 32
	maxWhat = 254
)

// cut shortens a text to a column's width without cutting a letter in two.
func cut(s string, width int) string {
	if len(s) <= width {
		return s
	}
	s = s[:width]
	for len(s) > 0 && !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}

// record writes down, in the transaction that makes a change, who makes it.
func (s *Store) record(ctx context.Context, tx *sql.Tx, user, domain, what string) error {
	_, err := tx.ExecContext(ctx, s.engine.rebind("INSERT INTO vlog ("+s.engine.names([]string{"user", "domain", "logon", "message", "error"})+") VALUES (?, ?, ?, ?, 0)"),
		user, domain, cut(s.config.Who, maxWho), cut(what, maxWhat))
	if err != nil {
		return fmt.Errorf("write down the change: %w", err)
	}
	return nil
}

// Changes gives who changed what, the latest first: of a domain, or with user of one of its users, or with neither of all; at most limit,
// with a number lower than before if that is not 0. next is what to give for the lines before these.
func (s *Store) Changes(ctx context.Context, user, domain string, before int64, limit int) (changes []Change, next int64, err error) {
	where, values := "1 = 1", []any{}
	if domain != "" {
		where, values = where+" AND domain = ?", append(values, addr.FoldDomain(domain))
	}
	if user != "" {
		where, values = where+" AND "+s.engine.name("user")+" = ?", append(values, strings.ToLower(user))
	}
	if before != 0 {
		where, values = where+" AND id < ?", append(values, before)
	}
	rows, err := s.read.QueryContext(ctx, s.engine.rebind("SELECT id, coalesce("+s.engine.name("user")+", ''), coalesce(domain, ''), coalesce(logon, ''), coalesce(message, ''), "+
		s.engine.name("timestamp")+" FROM vlog WHERE "+where+" ORDER BY id DESC LIMIT ?"), append(values, limit)...)
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	for rows.Next() {
		var c Change
		if err := rows.Scan(&next, &c.User, &c.Domain, &c.Who, &c.What, &c.Time); err != nil {
			return nil, 0, err
		}
		changes = append(changes, c)
	}
	return changes, next, rows.Err()
}
