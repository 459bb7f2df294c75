package remote

import (
	"fmt"
	"net"
	"strconv"
	"strings"
)

// relay is where a static route leads, with its credentials.
type relay struct {
	host, port     string
	user, password string
}

// findRoute finds a domain's line in smtproutes (wiki 2748-2761): domain:relay[:port[:penalty:tolerance]] [user password
// [env]]; a domain that begins with a dot stands for all below it, an empty one for all. The exact name wins, then the
// longest suffix. An empty relay means that the domain's own MX is used. The error names the line.
func findRoute(lines []string, domain string) (*relay, error) {
	best := -1
	var found *relay
	for i, line := range lines {
		name, rest, ok := strings.Cut(line, ":")
		if !ok {
			return nil, fmt.Errorf("smtproutes, entry %d: no colon", i+1)
		}
		name = strings.ToLower(name)
		rank := -1
		switch {
		case name == domain:
			rank = len(name) + 1000
		case name == "" || name[0] == '.' && strings.HasSuffix(domain, name):
			rank = len(name)
		}
		if rank <= best {
			continue
		}
		r, err := parseRelay(rest)
		if err != nil {
			return nil, fmt.Errorf("smtproutes, entry %d: %w", i+1, err)
		}
		best, found = rank, r
	}
	if found != nil && found.host == "" {
		return nil, nil
	}
	return found, nil
}

func parseRelay(s string) (*relay, error) {
	fields := strings.Fields(s)
	r := &relay{port: "25"}
	if len(fields) == 0 {
		return r, nil
	}
	if len(fields) == 2 {
		return nil, fmt.Errorf("a user without a password")
	}
	if len(fields) > 2 {
		r.user, r.password = fields[1], fields[2]
	}
	where := fields[0]
	if rest, ok := strings.CutPrefix(where, "["); ok {
		host, after, closed := strings.Cut(rest, "]")
		if !closed || net.ParseIP(strings.TrimPrefix(host, "IPv6:")) == nil {
			return nil, fmt.Errorf("%q is no address in brackets", where)
		}
		r.host, where = strings.TrimPrefix(host, "IPv6:"), after
	} else {
		r.host, where, _ = strings.Cut(where, ":")
		where = ":" + where
	}
	parts := strings.Split(strings.TrimPrefix(where, ":"), ":")
	if parts[0] != "" {
		if n, err := strconv.ParseUint(parts[0], 10, 16); err != nil || n == 0 {
			return nil, fmt.Errorf("%q is no port", parts[0])
		}
		r.port = parts[0]
	}
	return r, nil
}
