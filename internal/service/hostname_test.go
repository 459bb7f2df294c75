package service

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/indigomail/indigo/internal/dnsx"
)

// TestHostName: a client has the name that its address leads to only when that leads back; otherwise anybody who runs the
// reverse zone of his own addresses could call himself what RELAYDOMAINS has.
func TestHostName(t *testing.T) {
	records := map[string][]string{
		"1.2.0.192.in-addr.arpa. PTR": {"1.2.0.192.in-addr.arpa. 60 IN PTR mail.example.org."}, "mail.example.org. A": {"mail.example.org. 60 IN A 192.0.2.1"},
		"2.2.0.192.in-addr.arpa. PTR": {"2.2.0.192.in-addr.arpa. 60 IN PTR mail.example.org."},
		"3.2.0.192.in-addr.arpa. PTR": {"3.2.0.192.in-addr.arpa. 60 IN PTR nothing.example.org."},
		"4.2.0.192.in-addr.arpa. PTR": {"4.2.0.192.in-addr.arpa. 60 IN PTR liar.example.net.", "4.2.0.192.in-addr.arpa. 60 IN PTR true.example.net."},
		"liar.example.net. A":         {"liar.example.net. 60 IN A 192.0.2.99"}, "true.example.net. A": {"true.example.net. 60 IN A 192.0.2.4"},
		"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. PTR": {"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 60 IN PTR six.example.org."},
		"six.example.org. AAAA": {"six.example.org. 60 IN AAAA 2001:db8::1"},
	}
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: packets, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		all := records[q.Question[0].Name+" "+dns.TypeToString[q.Question[0].Qtype]]
		if all == nil {
			m.Rcode = dns.RcodeNameError
		}
		for _, one := range all {
			if rr, err := dns.NewRR(one); err == nil {
				m.Answer = append(m.Answer, rr)
			}
		}
		w.WriteMsg(m)
	})}
	go server.ActivateAndServe()
	defer server.Shutdown()
	dialer := &net.Dialer{}
	resolver, err := dnsx.New(dnsx.Config{Servers: []string{packets.LocalAddr().String()}, Dial: dialer.DialContext, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	h := &House{resolver: resolver}
	for ip, want := range map[string]string{
		"192.0.2.1": "mail.example.org", "192.0.2.2": "", "192.0.2.3": "", "192.0.2.4": "true.example.net", "192.0.2.5": "",
		"2001:db8::1": "six.example.org", "2001:db8::2": "", "::ffff:192.0.2.1": "mail.example.org",
	} {
		if got := h.hostName(context.Background(), netip.MustParseAddr(ip)); got != want {
			t.Errorf("%s: %q, want %q", ip, got, want)
		}
	}
}
