package directory

import (
	"context"
	"database/sql"
	"net/netip"
	"time"
)

type relayKey struct{ email, ip string }

// relayed is what is known of an address in the table relay: the last log-in from it, and when the table was asked, or the log-in seen.
type relayed struct{ at, asked time.Time }

const (
	// maxRelayed bounds the addresses whose state is kept; relayFresh is how long it holds, notRelayedFresh that of one without a log-in.
	maxRelayed      = 10000
	relayFresh      = time.Minute
	notRelayedFresh = time.Second
)

func (s *Store) writeRelays(ctx context.Context, tx *sql.Tx, relays map[relayKey]time.Time) error {
	for k, at := range relays {
		if len(k.email) > 96 {
			continue
		}
		if _, err := tx.ExecContext(ctx, s.engine.upsertNumber("relay", "email", "ipaddr", "timestamp"), k.email, k.ip, at.Unix()); err != nil {
			return err
		}
	}
	return nil
}

// knowRelay keeps the state of an address; mu is held.
func (l *Logins) knowRelay(client netip.Addr, state relayed) {
	if len(l.relayed) >= maxRelayed {
		clear(l.relayed)
	}
	l.relayed[client] = state
}

// Relays tells whether somebody logged in from an address by POP3 or IMAP, at this host or another with the same directory, no longer than
// within ago (wiki 2841-2846). What the table is known to say holds for a minute.
func (l *Logins) Relays(ctx context.Context, client netip.Addr, within time.Duration) (bool, error) {
	client = client.Unmap().WithZone("")
	now := l.store.config.Now()
	l.mu.Lock()
	state, known := l.relayed[client]
	l.mu.Unlock()
	in := func() bool { return !state.at.IsZero() && now.Sub(state.at) <= within }
	if fresh := map[bool]time.Duration{true: relayFresh, false: notRelayedFresh}[in()]; known && now.Sub(state.asked) < fresh {
		return in(), nil
	}
	at, err := l.store.LastRelay(ctx, client)
	if err != nil {
		return false, err
	}
	state = relayed{at, now}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.knowRelay(client, state)
	return in(), nil
}

// LastRelay gives the last login from an address by POP3 or IMAP that the table relay has, the zero time for none.
func (s *Store) LastRelay(ctx context.Context, client netip.Addr) (time.Time, error) {
	var last sql.NullInt64
	err := s.read.QueryRowContext(ctx, s.engine.rebind("SELECT max("+s.engine.name("timestamp")+") FROM relay WHERE ipaddr = ?"), client.Unmap().WithZone("").String()).Scan(&last)
	if err != nil || !last.Valid {
		return time.Time{}, err
	}
	return time.Unix(last.Int64, 0), nil
}
