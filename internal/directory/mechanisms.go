package directory

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"
)

// UsedMechanism is when a user logged in last by a mechanism; the table indigo_mechanism.
type UsedMechanism struct {
	User   string `json:"user"`
	Domain string `json:"domain"`
	// Protocol is "smtp", "imap" or "pop3", Mechanism the name in SASL, APOP, "USER command" (POP3) or "LOGIN command" (IMAP).
	Protocol  string    `json:"protocol"`
	Mechanism string    `json:"mechanism"`
	TLS       bool      `json:"tls"`
	Last      time.Time `json:"last"`
}

type usedKey struct {
	user, domain, protocol, mechanism string
	tls                               bool
}

// upsertNumber gives a statement that inserts a row, or sets its last column.
func (e engine) upsertNumber(table string, columns ...string) string {
	keys, last := columns[:len(columns)-1], e.name(columns[len(columns)-1])
	statement := "INSERT INTO " + e.name(table) + " (" + e.names(columns) + ") VALUES (" + strings.TrimSuffix(strings.Repeat("?, ", len(columns)), ", ") + ")"
	if e == mySQL {
		return statement + " ON DUPLICATE KEY UPDATE " + last + " = VALUES(" + last + ")"
	}
	return e.rebind(statement + " ON CONFLICT (" + e.names(keys) + ") DO UPDATE SET " + last + " = excluded." + last)
}

func (s *Store) writeMechanisms(ctx context.Context, tx *sql.Tx, used map[usedKey]time.Time) error {
	for k, at := range used {
		tls := 0
		if k.tls {
			tls = 1
		}
		if _, err := tx.ExecContext(ctx, s.engine.upsertNumber("indigo_mechanism", "pw_domain", "pw_name", "protocol", "mechanism", "tls", "used"), k.domain, k.user, k.protocol, k.mechanism, tls, at.Unix()); err != nil {
			return err
		}
	}
	return nil
}

// Mechanisms calls each with who of a domain, or with "" of all, logged in by which mechanism when last, in the order of their names.
func (s *Store) Mechanisms(ctx context.Context, domain string, each func(UsedMechanism) error) error {
	if domain != "" {
		var err error
		if domain, err = s.RealDomain(ctx, domain); err != nil {
			return err
		}
	}
	rows, err := s.read.QueryContext(ctx, s.engine.rebind("SELECT pw_name, pw_domain, protocol, mechanism, tls, used FROM indigo_mechanism WHERE pw_domain = ? OR ? = '' ORDER BY pw_domain, pw_name, protocol, mechanism, tls"), domain, domain)
	if err != nil {
		return fmt.Errorf("look up mechanisms: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var u UsedMechanism
		var tls int
		var at int64
		if err := rows.Scan(&u.User, &u.Domain, &u.Protocol, &u.Mechanism, &tls, &at); err != nil {
			return err
		}
		u.TLS, u.Last = tls != 0, time.Unix(at, 0).UTC()
		if err := each(u); err != nil {
			return err
		}
	}
	return rows.Err()
}

// MechanismsSince tells since when this database keeps which mechanisms are used: when the migration ran that made the table.
func (s *Store) MechanismsSince(ctx context.Context) (at time.Time, err error) {
	if err = s.read.QueryRowContext(ctx, "SELECT tstamp FROM "+versionTable+" WHERE version_id = 5 ORDER BY id DESC LIMIT 1").Scan(&at); err != nil {
		return at, fmt.Errorf("look up since when mechanisms are kept: %w", err)
	}
	return at.UTC(), nil
}
