package door

import (
	"net/netip"
	"testing"
	"time"
)

func TestRates(t *testing.T) {
	r := NewRates()
	at := time.Unix(6000, 0)
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	one, same, other := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8:0:1::1")
	for i, c := range []struct {
		ip    netip.Addr
		limit int
		after time.Duration
		want  bool
	}{
		{a, 2, 0, true}, {a, 2, time.Second, true}, {a, 2, 2 * time.Second, false}, {b, 2, 3 * time.Second, true}, {a, 0, 4 * time.Second, true},
		{a, 2, 59 * time.Second, false}, {a, 2, 60 * time.Second, true},
		// A client with IPv6 has a whole /64.
		{one, 1, 61 * time.Second, true}, {same, 1, 62 * time.Second, false}, {other, 1, 63 * time.Second, true},
	} {
		if got := r.Allow(c.ip, c.limit, at.Add(c.after)); got != c.want {
			t.Errorf("%d: %s after %s: %v", i, c.ip, c.after, got)
		}
	}
}
