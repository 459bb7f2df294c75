// Package dnsx is knowledge: DNS look-ups with a cache, bounds and the AD bit, over github.com/miekg/dns. Every
// station gets a Resolver handed in; the lab has one of its own. It must not know what an answer is used for.
package dnsx

import (
	"context"
	"net/netip"
)

// MX is one mail exchanger.
type MX struct {
	Preference uint16
	// Host is in lower case without the final dot; "" for the null MX of RFC 7505.
	Host string
}

// Resolver answers look-ups. A name that does not exist, or has no record of the type, gives an error for which
// IsNotFound is true; any other error is temporary (RFC 5321 section 5.1). authentic is the AD bit of a validating
// resolver. Answers are bounded in number.
type Resolver interface {
	MX(ctx context.Context, domain string) (mx []MX, authentic bool, err error)
	// Addrs gives A and AAAA records; a failure of one of both types is an error only if the other has none.
	Addrs(ctx context.Context, host string) (ips []netip.Addr, authentic bool, err error)
	TXT(ctx context.Context, name string) (texts []string, authentic bool, err error)
	// PTR gives the names of an address, in lower case without the final dot.
	PTR(ctx context.Context, ip netip.Addr) (names []string, err error)
}
