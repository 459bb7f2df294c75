package policy

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/cdb"
	"github.com/indigomail/indigo/internal/settings"
)

// BenchmarkSession is what settings cost a session that has 10,000 rules by sender, a badmailfrom of 1,000,000 entries and
// 1,000 tcp rules: the views for its client and its sender, and the look-up of the sender. On the reference machine it was
// 3.8 µs; the budget is 20 µs. Most of it are the two look-ups in the mapped file, of the address and of its domain.
func BenchmarkSession(b *testing.B) {
	dir := b.TempDir()
	for _, d := range []string{"control", "tcp"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			b.Fatal(err)
		}
	}
	var rules, clients strings.Builder
	for i := range 10000 {
		switch i % 4 {
		case 0:
			fmt.Fprintf(&rules, "user%d@example.org:DATABYTES=%d\n", i, i)
		case 1:
			fmt.Fprintf(&rules, "*@dept%d.example.org:NORELAY=1\n", i)
		case 2:
			fmt.Fprintf(&rules, "news%d-*:MAXRECIPIENTS=%d\n", i, i+1)
		default:
			fmt.Fprintf(&rules, "*%d.example.net:DATABYTES=\n", i)
		}
	}
	for i := range 1000 {
		fmt.Fprintf(&clients, "10.%d.%d.:allow,RELAYCLIENT=\"\"\n", i/250, i%250)
	}
	for name, text := range map[string]string{"control/from.envrules": rules.String(), "tcp/tcp.smtp": clients.String()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	w, err := cdb.Create(filepath.Join(dir, "control/badmailfrom.cdb"), 0o600)
	if err != nil {
		b.Fatal(err)
	}
	for i := range 1000000 {
		if err := w.Add(fmt.Appendf(nil, "spam%d@example%d.com", i, i%1000), nil); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		b.Fatal(err)
	}
	snapshot, err := settings.Load(dir)
	if err != nil {
		b.Fatal(err)
	}
	p := New(Config{})
	ip := netip.MustParseAddr("10.2.7.9")
	var froms []addr.Address
	for i := range 1000 {
		from, err := addr.Parse([]string{fmt.Sprintf("user%d@example.org", i*4), fmt.Sprintf("x@dept%d.example.org", i*4+1), fmt.Sprintf("stranger%d@example.com", i), fmt.Sprintf("spam%d@example%d.com", i*999, i*999%1000)}[i%4])
		if err != nil {
			b.Fatal(err)
		}
		froms = append(froms, from)
	}
	i, refused := 0, 0
	b.ReportAllocs()
	for b.Loop() {
		from := froms[i%len(froms)]
		i++
		v, _, err := snapshot.View("smtpd.25").ForClient(ip, "")
		if err != nil {
			b.Fatal(err)
		}
		s := &Session{Service: "smtpd.25", Client: netip.AddrPortFrom(ip, 25), Settings: v.ForSender(from)}
		if p.Mail(b.Context(), s, from, 0).Action == Reject {
			refused++
		}
	}
	if i > len(froms) && refused < i/5 {
		b.Fatalf("%d of %d refused", refused, i)
	}
}
