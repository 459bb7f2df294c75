package remote

import (
	"crypto/tls"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/indigomail/indigo/internal/dnsx"
	"github.com/indigomail/indigo/internal/lab"
	"github.com/indigomail/indigo/internal/settings"
)

// internet is a Deliverer with the lab around it.
type internet struct {
	*Deliverer
	network *lab.Network
	zones   *lab.Zones
}

func newInternet(t *testing.T, zone string) *internet {
	t.Helper()
	return newInternetWith(t, zone, nil, slog.DiscardHandler)
}

// newInternetWith is newInternet with settings and a log.
func newInternetWith(t *testing.T, zone string, view *settings.View, log slog.Handler) *internet {
	t.Helper()
	zones, err := lab.NewZones(zone)
	if err != nil {
		t.Fatal(err)
	}
	network := &lab.Network{}
	network.Listen("192.0.2.53:53", zones.Serve)
	resolver, err := dnsx.New(dnsx.Config{Servers: []string{"192.0.2.53"}, Dial: network.DialContext, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(Config{Resolver: resolver, Dial: network.DialContext, Settings: func() *settings.View { return view },
		Hostname: func() string { return "here.test" }, Now: time.Now, Logger: slog.New(log)})
	if err != nil {
		t.Fatal(err)
	}
	return &internet{d, network, zones}
}

// send delivers one message and gives "ok" or the code and text.
func (i *internet) send(t *testing.T, domain string) string {
	t.Helper()
	r := i.Deliver(t.Context(), job(domain, "u"))[0]
	if r.Err == nil {
		return "ok"
	}
	return r.Err.Reply()
}

// mx gives what was dialled on port 25.
func (i *internet) mx() []string {
	return slices.DeleteFunc(i.network.Dials(), func(a string) bool { return strings.HasSuffix(a, ":53") })
}

const zone = `
far.test.    MX 10 mx1.far.test.
far.test.    MX 20 mx2.far.test.
mx1.far.test. A 192.0.2.1
mx2.far.test. AAAA 2001:db8::2
six.test.    MX 10 mx2.far.test.
both.test.   MX 10 both.far.test.
both.far.test. A 192.0.2.3
both.far.test. AAAA 2001:db8::3
bare.test.   A 192.0.2.1
null.test.   MX 0 .
alias.test.  MX 10 alias.far.test.
alias.far.test. CNAME mx1.far.test.
missing.test. MX 10 nowhere.test.
odd.test.    MX 10 mx1.far.test.
odd.test.    MX 5 broken.test.
broken.test. A 192.0.2.9
`

// TestWays finds the way of mail through names and addresses (RFC 5321 section 5).
func TestWays(t *testing.T) {
	for _, tc := range []struct {
		name, domain string
		prepare      func(i *internet)
		want         string
		dials        []string
	}{
		{"best MX", "far.test", nil, "ok", []string{"192.0.2.1:25"}},
		{"next-best MX, over IPv6, when the best refuses", "far.test", func(i *internet) { i.network.Listen("192.0.2.1:25", nil) }, "ok", []string{"192.0.2.1:25", "[2001:db8::2]:25"}},
		{"next-best MX when the best is silent", "far.test", func(i *internet) { i.network.Silence("192.0.2.1:25") }, "ok", []string{"192.0.2.1:25", "[2001:db8::2]:25"}},
		{"IPv6 only", "six.test", nil, "ok", []string{"[2001:db8::2]:25"}},
		{"IPv4 when IPv6 is dead", "both.test", nil, "ok", nil},
		{"A without MX", "bare.test", nil, "ok", []string{"192.0.2.1:25"}},
		{"null MX", "null.test", nil, "556 5.1.10 The domain says that it takes no mail. (#5.1.10)", nil},
		{"MX that is an alias", "alias.test", nil, "ok", []string{"192.0.2.1:25"}},
		{"MX without address", "missing.test", nil, "550 5.1.2 Sorry, I couldn't find any host named missing.test. (#5.1.2)", nil},
		{"no such domain", "nothing.test", nil, "550 5.1.2 Sorry, I couldn't find any host named nothing.test. (#5.1.2)", nil},
		{"name server failure", "far.test", func(i *internet) { i.zones.SetMood("far.test", lab.ServerFailure) }, "451 4.4.3 DNS lookup failed temporarily. (#4.4.3)", nil},
		{"name server failure for the MX's address", "six.test", func(i *internet) { i.zones.SetMood("mx2.far.test", lab.ServerFailure) }, "451 4.4.3 DNS lookup failed temporarily. (#4.4.3)", nil},
		{"all dead", "far.test", func(i *internet) { i.network.Listen("192.0.2.1:25", nil); i.network.Listen("[2001:db8::2]:25", nil) },
			"451 4.4.1 Sorry, I wasn't able to establish an SMTP connection. (#4.4.1)", []string{"192.0.2.1:25", "[2001:db8::2]:25"}},
		{"the best cuts every connection", "odd.test", func(i *internet) {
			i.network.Listen("192.0.2.9:25", (&lab.Peer{Script: map[string]string{"greeting": lab.Cut}}).Serve)
		}, "ok", []string{"192.0.2.9:25", "192.0.2.1:25"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := newInternet(t, zone)
				mx1, mx2, both := &lab.Peer{Name: "mx1"}, &lab.Peer{Name: "mx2"}, &lab.Peer{Name: "both"}
				i.network.Listen("192.0.2.1:25", mx1.Serve)
				i.network.Listen("[2001:db8::2]:25", mx2.Serve)
				i.network.Listen("192.0.2.3:25", both.Serve)
				if tc.prepare != nil {
					tc.prepare(i)
				}
				if got := i.send(t, tc.domain); got != tc.want {
					t.Errorf("%s, want %s", got, tc.want)
				}
				if got := i.mx(); tc.dials != nil && !slices.Equal(got, tc.dials) {
					t.Errorf("dialled %v, want %v", got, tc.dials)
				}
				if n := len(mx1.Mails()) + len(mx2.Mails()) + len(both.Mails()); (n == 1) != (tc.want == "ok") {
					t.Errorf("%d messages arrived", n)
				}
				i.Close()
				i.network.Wait()
			})
		})
	}
}

// TestPatienceEnds: a peer that stalls at any stage holds a delivery for no longer than the settings say.
func TestPatienceEnds(t *testing.T) {
	for _, stage := range []string{"greeting", "EHLO", "MAIL", "RCPT", "DATA", "end", "STARTTLS"} {
		t.Run(stage, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := newInternet(t, zone)
				p := &lab.Peer{Script: map[string]string{stage: lab.Stall}, TLS: &tls.Config{}}
				if stage != "STARTTLS" {
					p.TLS = nil
				}
				i.network.Listen("192.0.2.1:25", p.Serve)
				begun := time.Now()
				got := i.send(t, "bare.test")
				took := time.Since(begun)
				limit := settings.TimeoutRemote.Get(nil) + time.Minute
				// Without TLS the message goes through.
				if !strings.HasPrefix(got, "4") && stage != "STARTTLS" || took > 2*limit {
					t.Errorf("%s after %s", got, took)
				}
				i.Close()
				i.network.Cut()
				i.network.Wait()
			})
		})
	}
}

// TestCutInTheMiddle: when the network breaks before the reply to the content, nobody knows whether the message was taken;
// it is tried again.
func TestCutInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newInternet(t, zone)
		p := &lab.Peer{Script: map[string]string{"end": lab.Swallow}}
		i.network.Listen("192.0.2.1:25", p.Serve)
		go func() {
			time.Sleep(time.Second)
			i.network.Cut()
		}()
		if got := i.send(t, "bare.test"); !strings.HasPrefix(got, "451") {
			t.Error(got)
		}
		i.Close()
		i.network.Wait()
	})
}

// TestOpportunisticTLS: with any certificate TLS is used; when the handshake fails, the message goes without (RFC 7435).
func TestOpportunisticTLS(t *testing.T) {
	authority, err := lab.NewAuthority(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	expired, err := authority.Issue(-time.Minute, "other.test")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		config *tls.Config
		script map[string]string
		tls    bool
	}{
		{"expired, for another name", &tls.Config{Certificates: []tls.Certificate{expired}}, nil, true},
		{"no certificate", &tls.Config{}, nil, false},
		{"refuses STARTTLS", &tls.Config{Certificates: []tls.Certificate{expired}}, map[string]string{"STARTTLS": "454 4.7.0 not now"}, false},
		{"speaks plain text behind STARTTLS", nil, map[string]string{"STARTTLS": "220 ready", "EHLO": "250-x\r\n250 STARTTLS"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			i := newInternet(t, zone)
			defer i.Close()
			p := &lab.Peer{TLS: tc.config, Script: tc.script}
			i.network.Listen("192.0.2.1:25", p.Serve)
			got := i.send(t, "bare.test")
			mails := p.Mails()
			if got != "ok" || len(mails) != 1 || mails[0].TLS != tc.tls {
				t.Errorf("%s, %+v", got, mails)
			}
		})
	}
}
