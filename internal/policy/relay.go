package policy

import (
	"net/netip"
	"strings"
)

// RelayEntry gives the first of entries that ip matches, "" when none does. An entry is an address, the first bytes of
// an IPv4 address with a final dot ("192.168.1."), or a network in CIDR form; a colon ends it (wiki 2834), or may be
// left out. IndiMail appends a text after the colon to every recipient; Indigo does not, so that such an entry
// matches nobody. The match is closed: what cannot be understood matches nobody.
func RelayEntry(entries []string, ip netip.Addr) string {
	if len(entries) == 0 || !ip.IsValid() {
		return ""
	}
	ip = ip.Unmap().WithZone("")
	text := ip.String()
	for _, entry := range entries {
		if relayMatch(entry, ip, text) || strings.HasSuffix(entry, ":") && relayMatch(entry[:len(entry)-1], ip, text) {
			return entry
		}
	}
	return ""
}

// relayMatch compares one entry without its colon.
func relayMatch(entry string, ip netip.Addr, text string) bool {
	if strings.HasSuffix(entry, ".") {
		// Whole bytes only: "1." does not stand for 10.0.0.1 or 192.1.0.1, and "." for nothing.
		return ip.Is4() && len(entry) > 1 && strings.HasPrefix(text, entry)
	}
	if a, err := netip.ParseAddr(entry); err == nil {
		return a.Unmap() == ip
	}
	network, err := netip.ParsePrefix(entry)
	return err == nil && network.Contains(ip)
}

// relayDomain gives the first of entries that host matches, "" when none does: a host name, or a domain behind a dot; a
// colon ends it (wiki 2849-2854), or may be left out.
func relayDomain(entries []string, host string) string {
	host = strings.ToLower(host)
	for _, entry := range entries {
		name := strings.ToLower(strings.TrimSuffix(entry, ":"))
		if name == host || len(name) > 1 && name[0] == '.' && strings.HasSuffix(host, name) {
			return entry
		}
	}
	return ""
}
