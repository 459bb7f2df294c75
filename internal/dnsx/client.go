package dnsx

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Config says how a Client asks.
type Config struct {
	// Servers are addresses or address:port; empty means those of /etc/resolv.conf.
	Servers []string
	Dial    func(ctx context.Context, network, address string) (net.Conn, error)
	Now     func() time.Time
	// Observe, when set, is told of each question: its kind as in "MX", whether the cache answered, how long it took, and
	// what went wrong.
	Observe func(kind string, cached bool, took time.Duration, err error)
}

// Client is the Resolver that asks name servers. Safe for concurrent use.
type Client struct {
	config  Config
	servers []string
	mu      sync.Mutex
	cache   map[dns.Question]answer
}

type answer struct {
	message *dns.Msg
	until   time.Time
}

const (
	timeout   = 5 * time.Second
	maxCached = 10000
	maxTTL    = time.Hour
	maxIPs    = 64
)

// errNotFound says that the name, or a record of the type, does not exist.
var errNotFound = errors.New("no such name or record")

// IsNotFound tells whether the answer was that there is nothing, as against no answer.
func IsNotFound(err error) bool { return errors.Is(err, errNotFound) }

// NotFound gives the error that says that name does not exist; for other Resolvers.
func NotFound(name string) error { return fmt.Errorf("%s: %w", name, errNotFound) }

// New makes a Client.
func New(config Config) (*Client, error) {
	c := &Client{config: config, cache: map[dns.Question]answer{}}
	servers := config.Servers
	if len(servers) == 0 {
		if system, err := dns.ClientConfigFromFile("/etc/resolv.conf"); err == nil {
			servers = system.Servers
		}
	}
	for _, s := range servers {
		if _, err := netip.ParseAddrPort(s); err != nil {
			ip, err := netip.ParseAddr(s)
			if err != nil {
				return nil, fmt.Errorf("name server %q is no address", s)
			}
			s = netip.AddrPortFrom(ip, 53).String()
		}
		c.servers = append(c.servers, s)
	}
	if len(c.servers) == 0 {
		c.servers = []string{"127.0.0.1:53"}
	}
	return c, nil
}

// ask gives a cached or a fresh answer; NXDOMAIN is an answer.
func (c *Client) ask(ctx context.Context, name string, kind uint16) (m *dns.Msg, err error) {
	if c.config.Observe == nil {
		m, _, err = c.askOnce(ctx, name, kind)
		return m, err
	}
	began := time.Now()
	m, cached, err := c.askOnce(ctx, name, kind)
	c.config.Observe(dns.TypeToString[kind], cached, time.Since(began), err)
	return m, err
}

// askOnce asks the cache, then each server; cached tells that the cache answered.
func (c *Client) askOnce(ctx context.Context, name string, kind uint16) (_ *dns.Msg, cached bool, err error) {
	q := dns.Question{Name: dns.Fqdn(strings.ToLower(name)), Qtype: kind, Qclass: dns.ClassINET}
	now := c.config.Now()
	c.mu.Lock()
	known, ok := c.cache[q]
	c.mu.Unlock()
	if ok && now.Before(known.until) {
		return known.message, true, nil
	}
	m := new(dns.Msg)
	m.SetQuestion(q.Name, kind)
	m.SetEdns0(1232, true)
	m.AuthenticatedData = true
	err = errors.New("no name server")
	for _, server := range c.servers {
		var r *dns.Msg
		for _, network := range []string{"udp", "tcp"} {
			if r, err = c.exchange(ctx, m, network, server); err != nil || !r.Truncated {
				break
			}
		}
		if err == nil && r.Rcode != dns.RcodeSuccess && r.Rcode != dns.RcodeNameError {
			err = fmt.Errorf("name server %s says %s", server, dns.RcodeToString[r.Rcode])
		}
		if err != nil {
			continue
		}
		ttl := maxTTL
		for _, rr := range r.Answer {
			ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
		}
		if len(r.Answer) == 0 {
			ttl = time.Minute
		}
		c.mu.Lock()
		if len(c.cache) >= maxCached {
			clear(c.cache)
		}
		c.cache[q] = answer{r, now.Add(ttl)}
		c.mu.Unlock()
		return r, false, nil
	}
	return nil, false, fmt.Errorf("look up %s %s: %w", dns.TypeToString[kind], name, err)
}

func (c *Client) exchange(ctx context.Context, m *dns.Msg, network, server string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := c.config.Dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	client := &dns.Client{Net: network, Timeout: timeout}
	r, _, err := client.ExchangeWithConnContext(ctx, m, &dns.Conn{Conn: conn})
	if err == nil && (len(r.Question) != 1 || !strings.EqualFold(r.Question[0].Name, m.Question[0].Name) || r.Question[0].Qtype != m.Question[0].Qtype) {
		err = errors.New("the answer is to another question")
	}
	return r, err
}

// records picks the records of a type and follows nothing: a resolver sends the whole CNAME chain.
func records[T dns.RR](ctx context.Context, c *Client, name string, kind uint16) (found []T, authentic bool, err error) {
	r, err := c.ask(ctx, name, kind)
	if err != nil {
		return nil, false, err
	}
	for _, rr := range r.Answer {
		if t, ok := rr.(T); ok {
			found = append(found, t)
		}
	}
	if len(found) == 0 {
		return nil, r.AuthenticatedData, fmt.Errorf("%s %s: %w", dns.TypeToString[kind], name, errNotFound)
	}
	return found, r.AuthenticatedData, nil
}

func host(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// MX implements Resolver.
func (c *Client) MX(ctx context.Context, domain string) ([]MX, bool, error) {
	found, authentic, err := records[*dns.MX](ctx, c, domain, dns.TypeMX)
	var list []MX
	for _, rr := range found[:min(len(found), maxIPs)] {
		list = append(list, MX{rr.Preference, host(rr.Mx)})
	}
	return list, authentic, err
}

// Addrs implements Resolver. "localhost" needs no server (RFC 6761 section 6.3).
func (c *Client) Addrs(ctx context.Context, name string) ([]netip.Addr, bool, error) {
	if host(name) == "localhost" {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, true, nil
	}
	var ips []netip.Addr
	v4, authentic, err4 := records[*dns.A](ctx, c, name, dns.TypeA)
	for _, rr := range v4 {
		if ip, ok := netip.AddrFromSlice(rr.A); ok {
			ips = append(ips, ip.Unmap())
		}
	}
	v6, authentic6, err6 := records[*dns.AAAA](ctx, c, name, dns.TypeAAAA)
	for _, rr := range v6 {
		if ip, ok := netip.AddrFromSlice(rr.AAAA); ok {
			ips = append(ips, ip)
		}
	}
	if len(ips) > 0 {
		return ips[:min(len(ips), maxIPs)], authentic && authentic6, nil
	}
	if err4 != nil && !IsNotFound(err4) {
		return nil, false, err4
	}
	return nil, authentic && authentic6, err6
}

// TXT implements Resolver.
func (c *Client) TXT(ctx context.Context, name string) ([]string, bool, error) {
	found, authentic, err := records[*dns.TXT](ctx, c, name, dns.TypeTXT)
	var texts []string
	for _, rr := range found {
		texts = append(texts, strings.Join(rr.Txt, ""))
	}
	return texts, authentic, err
}

// PTR implements Resolver.
func (c *Client) PTR(ctx context.Context, ip netip.Addr) ([]string, error) {
	name, err := dns.ReverseAddr(ip.String())
	if err != nil {
		return nil, err
	}
	found, _, err := records[*dns.PTR](ctx, c, name, dns.TypePTR)
	var names []string
	for _, rr := range found[:min(len(found), maxIPs)] {
		names = append(names, host(rr.Ptr))
	}
	return names, err
}
