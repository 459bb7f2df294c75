package lab

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// Zones is a name server with the whole truth: what is not in it does not exist. Safe for concurrent use.
type Zones struct {
	mu      sync.Mutex
	records map[string][]dns.RR
	moods   map[string]Mood
	asked   []string
}

// Mood is how the server answers for a name.
type Mood int

// The moods of a name server.
const (
	Truthful Mood = iota
	// ServerFailure answers SERVFAIL.
	ServerFailure
	// Silent does not answer.
	Silent
	// Truncated answers over UDP with nothing but the request to come again over TCP.
	Truncated
	// Confused answers another question than the one that was asked.
	Confused
)

// NewZones reads records in the form of a zone file (RFC 1035 section 5.1), with names under the root.
func NewZones(text string) (*Zones, error) {
	z := &Zones{records: map[string][]dns.RR{}, moods: map[string]Mood{}}
	return z, z.Add(text)
}

// Add adds records.
func (z *Zones) Add(text string) error {
	parser := dns.NewZoneParser(strings.NewReader(text), ".", "lab")
	parser.SetDefaultTTL(300)
	z.mu.Lock()
	defer z.mu.Unlock()
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		name := strings.ToLower(rr.Header().Name)
		z.records[name] = append(z.records[name], rr)
	}
	if err := parser.Err(); err != nil {
		return fmt.Errorf("zone: %w", err)
	}
	return nil
}

// Remove takes away every record of a name.
func (z *Zones) Remove(name string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.records, dns.Fqdn(strings.ToLower(name)))
}

// SetMood says how questions for a name are answered.
func (z *Zones) SetMood(name string, m Mood) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.moods[dns.Fqdn(strings.ToLower(name))] = m
}

// Asked gives the questions so far, as "example.org. MX".
func (z *Zones) Asked() []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	return append([]string(nil), z.asked...)
}

// answer gives the reply, nil for none.
func (z *Zones) answer(q *dns.Msg, udp bool) *dns.Msg {
	z.mu.Lock()
	defer z.mu.Unlock()
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	if len(q.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		return m
	}
	question := q.Question[0]
	name := strings.ToLower(question.Name)
	z.asked = append(z.asked, name+" "+dns.TypeToString[question.Qtype])
	switch z.moods[name] {
	case ServerFailure:
		m.Rcode = dns.RcodeServerFailure
		return m
	case Silent:
		return nil
	case Truncated:
		if m.Truncated = udp; udp {
			return m
		}
	case Confused:
		m.Question[0].Name = "confused.example."
		m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: "confused.example.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 300}, A: net.IPv4(203, 0, 113, 66)})
		return m
	}
	exists := false
	for range 10 {
		alias := ""
		for _, rr := range z.lookUp(name) {
			exists = true
			if rr.Header().Rrtype == question.Qtype {
				m.Answer = append(m.Answer, rr)
			} else if c, ok := rr.(*dns.CNAME); ok {
				m.Answer = append(m.Answer, rr)
				alias = strings.ToLower(c.Target)
			}
		}
		if alias == "" {
			break
		}
		name = alias
	}
	if !exists && !z.above(name) {
		m.Rcode = dns.RcodeNameError
	}
	return m
}

// lookUp gives the records of a name, or of the wildcard that covers it (RFC 4592).
func (z *Zones) lookUp(name string) []dns.RR {
	if records, ok := z.records[name]; ok {
		return records
	}
	for rest := name; ; {
		i, end := dns.NextLabel(rest, 0)
		if end {
			return nil
		}
		rest = rest[i:]
		if records, ok := z.records["*."+rest]; ok {
			var made []dns.RR
			for _, rr := range records {
				rr = dns.Copy(rr)
				rr.Header().Name = name
				made = append(made, rr)
			}
			return made
		}
		if _, ok := z.records[rest]; ok {
			return nil
		}
	}
}

// above tells whether there are names below name, so that it exists although it has no records.
func (z *Zones) above(name string) bool {
	for n := range z.records {
		if dns.IsSubDomain(name, n) {
			return true
		}
	}
	return false
}

// Serve answers on one connection of a Network. It is for both "udp" and "tcp" there: connections in memory carry TCP's
// form of messages, RFC 1035 section 4.2.2.
func (z *Zones) Serve(c net.Conn) {
	defer c.Close()
	for {
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		q := new(dns.Msg)
		if q.Unpack(b) != nil {
			return
		}
		m := z.answer(q, false)
		if m == nil {
			continue
		}
		packed, err := m.Pack()
		if err != nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...)); err != nil {
			return
		}
	}
}

// Listen answers on a free loopback port, UDP and TCP, until stop is called.
func (z *Zones) Listen() (address string, stop func(), err error) {
	var udp net.PacketConn
	var tcp net.Listener
	// The port must be free for both.
	for range 20 {
		if udp, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			return "", nil, err
		}
		if tcp, err = net.Listen("tcp", udp.LocalAddr().String()); err == nil {
			break
		}
		udp.Close()
	}
	if err != nil {
		return "", nil, err
	}
	var serving sync.WaitGroup
	var started sync.WaitGroup
	handler := func(overUDP bool) dns.Handler {
		return dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			if m := z.answer(q, overUDP); m != nil {
				_ = w.WriteMsg(m)
			}
		})
	}
	started.Add(2)
	servers := []*dns.Server{
		{PacketConn: udp, Handler: handler(true), NotifyStartedFunc: started.Done},
		{Listener: tcp, Handler: handler(false), NotifyStartedFunc: started.Done},
	}
	for _, s := range servers {
		serving.Go(func() { _ = s.ActivateAndServe() })
	}
	started.Wait()
	return udp.LocalAddr().String(), func() {
		for _, s := range servers {
			_ = s.Shutdown()
		}
		serving.Wait()
	}, nil
}
