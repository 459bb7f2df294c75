package directory

import (
	"context"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

// Login is the last use of a service by a user, a row of IndiMail's table lastauth. Service is pop3, imap or webm, or one of
// what IndiMail keeps there besides: add and pass (the user was added, the password changed), ACTI and INAC.
type Login struct {
	Service string    `json:"service"`
	IP      string    `json:"ip"`
	At      time.Time `json:"at"`
}

// LastLogins gives what lastauth has of a user, in the order of the services' names.
func (s *Store) LastLogins(ctx context.Context, a addr.Address) ([]Login, error) {
	u, err := s.User(ctx, a)
	if err != nil {
		return nil, err
	}
	rows, err := s.read.QueryContext(ctx, s.engine.rebind("SELECT service, remote_ip, "+s.engine.name("timestamp")+" FROM lastauth WHERE "+s.engine.name("user")+" = ? AND domain = ? ORDER BY service"), u.Name, u.Domain)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var logins []Login
	for rows.Next() {
		var l Login
		if err := rows.Scan(&l.Service, &l.IP, &l.At); err != nil {
			return nil, err
		}
		logins = append(logins, l)
	}
	return logins, rows.Err()
}
