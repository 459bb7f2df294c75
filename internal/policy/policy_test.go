package policy

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crypto/tls"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/tlsx"
)

// view gives the view of smtpd.25 with these control files.
func view(t *testing.T, control map[string]string) *settings.View {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "control"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, value := range control {
		if err := os.WriteFile(filepath.Join(dir, "control", name), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	snapshot, err := settings.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return snapshot.View("smtpd.25")
}

// book is a directory with one domain.
type book struct{ fault error }

func (b book) Domain(_ context.Context, name string) (directory.Domain, error) {
	if b.fault != nil {
		return directory.Domain{}, b.fault
	}
	if !strings.EqualFold(name, "here.example") {
		return directory.Domain{}, directory.ErrNoDomain
	}
	return directory.Domain{Name: name}, nil
}

func (b book) User(_ context.Context, a addr.Address) (directory.User, error) {
	if _, err := b.Domain(context.Background(), a.Domain); err != nil {
		return directory.User{}, err
	}
	switch a.Key() {
	case "staff@here.example", "nobodys@here.example":
		return directory.User{Name: a.Local, Domain: a.Domain, Gecos: "MailGroup of all"}, nil
	case "ann@here.example", "postmaster@here.example":
	case "asleep@here.example", "away@here.example":
		return directory.User{}, directory.ErrInactive
	default:
		return directory.User{}, directory.ErrNoUser
	}
	return directory.User{Name: a.Local, Domain: a.Domain}, nil
}

// DomainRoom knows no limits.
func (b book) DomainRoom(context.Context, string, maildir.Use) (bool, error) { return true, nil }

// Aliases knows info, staff, a user's, and one that cannot be looked up.
func (b book) Aliases(_ context.Context, a addr.Address) ([]string, error) {
	switch a.Key() {
	case "info@here.example", "away@here.example", "staff@here.example", "postmaster@here.example":
		return []string{"&ann@here.example"}, nil
	case "gone@here.example":
		return nil, errors.New("disk on fire")
	}
	return nil, directory.ErrNoAlias
}

// Denied keeps postmaster from relaying.
func (b book) Denied(_ context.Context, u directory.User, flag directory.Flags) (string, error) {
	if u.Name == "postmaster" && flag == directory.NoRelay {
		return "NO_RELAY is set for the user", nil
	}
	return "", nil
}

func TestRelayEntry(t *testing.T) {
	entries := []string{"192.168.1.:", "10.0.0.7:", "172.16.0.0/12:", "2001:db8::/32:", "::1:", "127.0.0.1", "fe80::2", "9.9.9.9:suffix", ".", "junk:"}
	for ip, want := range map[string]string{
		"192.168.1.9": "192.168.1.:", "192.168.11.9": "", "192.168.2.1": "", "10.0.0.7": "10.0.0.7:", "10.0.0.70": "",
		"172.31.255.255": "172.16.0.0/12:", "172.32.0.1": "", "2001:db8::5": "2001:db8::/32:", "2001:db9::5": "",
		"::1": "::1:", "127.0.0.1": "127.0.0.1", "::ffff:192.168.1.4": "192.168.1.:", "fe80::2%eth0": "fe80::2",
		"9.9.9.9": "", "8.8.8.8": "",
	} {
		if got := RelayEntry(entries, netip.MustParseAddr(ip)); got != want {
			t.Errorf("%s: entry %q, want %q", ip, got, want)
		}
	}
	if got := RelayEntry(entries, netip.Addr{}); got != "" {
		t.Errorf("no address matched %q", got)
	}
}

func TestRcpt(t *testing.T) {
	base := view(t, map[string]string{"defaultdomain": "here.example"})
	relaying := view(t, map[string]string{"relayclients": "192.0.2.:\n"})
	few := view(t, map[string]string{"maxrecipients": "2"})
	for _, c := range []struct {
		name, to, user string
		view           *settings.View
		fault          error
		accepted       int
		action         Action
		code           int
		check, setting string
	}{
		{name: "local", to: "Ann@Here.Example", check: "local-user"},
		{name: "unknown user", to: "bob@here.example", action: Reject, code: 550, check: "local-user"},
		{name: "inactive user", to: "asleep@here.example", action: Reject, code: 550, check: "local-user"},
		{name: "inactive user with an alias", to: "away@here.example", check: "local-alias"},
		{name: "alias", to: "Info@here.example", check: "local-alias"},
		{name: "alias that cannot be looked up", to: "gone@here.example", action: Defer, code: 451, check: "local-alias"},
		{name: "group", to: "staff@here.example", check: "local-group"},
		{name: "empty group", to: "nobodys@here.example", action: Reject, code: 550, check: "local-group"},
		{name: "unknown user, logged in", to: "bob@here.example", user: "ann@here.example", action: Reject, code: 550, check: "local-user"},
		{name: "postmaster", to: "postmaster", check: "local-user"},
		{name: "relay", to: "x@far.example", action: Reject, code: 550, check: "relay", setting: "RELAYCLIENTS"},
		{name: "relay for a user", to: "x@far.example", user: "ann@here.example", check: "relay"},
		{name: "no relay for a user", to: "x@far.example", user: "postmaster@here.example", action: Reject, code: 550, check: "relay"},
		{name: "relay for a network", to: "x@far.example", view: relaying, check: "relay", setting: "RELAYCLIENTS"},
		{name: "directory down", to: "ann@here.example", fault: errors.New("disk on fire"), action: Defer, code: 451, check: "local-user"},
		{name: "directory down, relay", to: "x@far.example", user: "ann@here.example", fault: errors.New("disk on fire"), action: Defer, code: 451, check: "local-user"},
		{name: "last recipient", to: "ann@here.example", view: few, accepted: 1, check: "local-user"},
		{name: "too many", to: "ann@here.example", view: few, accepted: 2, action: Defer, code: 452, check: "recipients", setting: "MAXRECIPIENTS"},
	} {
		p := New(Config{Directory: book{c.fault}})
		s := &Session{Client: netip.MustParseAddrPort("192.0.2.1:9"), User: c.user, Settings: c.view}
		if s.Settings == nil {
			s.Settings = base
		}
		p.Connect(t.Context(), s)
		local, domain, _ := strings.Cut(c.to, "@")
		v := p.Rcpt(t.Context(), s, addr.Address{}, addr.Address{Local: local, Domain: domain}, c.accepted)
		if v.Action != c.action || v.Check != c.check || v.Setting != c.setting || (c.code == 0) != (v.Err == nil) || v.Err != nil && v.Err.Code != c.code {
			t.Errorf("%s: verdict %+v", c.name, v)
		}
		if (v.Setting == "") != (v.Layer == "") {
			t.Errorf("%s: setting %q without its layer %q", c.name, v.Setting, v.Layer)
		}
		if v.Err != nil && strings.Contains(v.Err.Reply(), "fire") {
			t.Errorf("%s: the client sees the cause: %s", c.name, v.Err.Reply())
		}
	}
}

// caught is a book in which *@here.example has lines.
type caught struct{ book }

func (c caught) Aliases(ctx context.Context, a addr.Address) ([]string, error) {
	if a == directory.CatchAll("here.example") {
		return []string{"&ann@here.example"}, nil
	}
	return c.book.Aliases(ctx, a)
}

// TestInactive: what is for somebody who is marked inactive is not for who gets what is nobody's.
func TestInactive(t *testing.T) {
	p := New(Config{Directory: caught{}})
	s := &Session{Client: netip.MustParseAddrPort("192.0.2.1:9"), Settings: view(t, nil)}
	for name, want := range map[string]string{"bob": "", "asleep": "550 5.2.1 sorry, this mailbox is inactive (#5.2.1)", "away": ""} {
		v, got := p.Rcpt(t.Context(), s, addr.Address{}, addr.Address{Local: name, Domain: "here.example"}, 0), ""
		if v.Err != nil {
			got = v.Err.Reply()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestMail(t *testing.T) {
	small := view(t, map[string]string{"databytes": "100", "relayclients": "192.0.2.9:"})
	for _, c := range []struct {
		name       string
		submission bool
		client     string
		user       string
		from       addr.Address
		size       int64
		code       int
	}{
		{name: "stranger", client: "192.0.2.1", from: addr.Address{Local: "a", Domain: "b.example"}},
		{name: "bounce", client: "192.0.2.1"},
		{name: "stranger on submission", submission: true, client: "192.0.2.1", code: 530},
		{name: "relay client on submission", submission: true, client: "192.0.2.9"},
		{name: "user on submission", submission: true, client: "192.0.2.1", user: "ann@here.example"},
		{name: "fits", client: "192.0.2.1", size: 100},
		{name: "too big", client: "192.0.2.1", size: 101, code: 552},
		{name: "bad domain", client: "192.0.2.1", from: addr.Address{Local: "a", Domain: "b..example"}, code: 553},
		{name: "literal", client: "192.0.2.1", from: addr.Address{Local: "a", Domain: "[192.0.2.1]"}},
	} {
		p := New(Config{Directory: book{}})
		s := &Session{Client: netip.AddrPortFrom(netip.MustParseAddr(c.client), 9), Submission: c.submission, User: c.user, Settings: small}
		p.Connect(t.Context(), s)
		v := p.Mail(t.Context(), s, c.from, c.size)
		if (c.code == 0) != (v.Err == nil) || v.Err != nil && v.Err.Code != c.code {
			t.Errorf("%s: verdict %+v", c.name, v)
		}
	}
}

func TestAuthAllowed(t *testing.T) {
	strict := view(t, map[string]string{"force_tls": "1"})
	p := New(Config{})
	for _, c := range []struct {
		tls  *tls.ConnectionState
		view *settings.View
		want Action
	}{{nil, nil, Accept}, {&tls.ConnectionState{}, strict, Accept}, {nil, strict, Reject}} {
		if v := p.AuthAllowed(t.Context(), &Session{TLS: c.tls, Settings: c.view}); v.Action != c.want {
			t.Errorf("TLS %v: %+v", c.tls != nil, v)
		}
	}
}

func TestHops(t *testing.T) {
	p := New(Config{})
	s := &Session{Settings: view(t, map[string]string{"maxhops": "3"})}
	header := "Received: x\r\n by y\r\nRECEIVED: z\r\nX-Received: no\r\nDelivered-To: q\r\n Received: folded\r\n"
	if v := p.EndOfData(t.Context(), s, addr.Address{}, nil, []byte(header), 1); v.Action != Accept {
		t.Errorf("3 hops: %+v", v)
	}
	if v := p.EndOfData(t.Context(), s, addr.Address{}, nil, []byte(header+"received: w"), 1); v.Action != Reject || v.Err.Code != 554 {
		t.Errorf("4 hops: %+v", v)
	}
}

func TestRelayDomain(t *testing.T) {
	entries := []string{"heaven.af.mil:", ".heaven.af.mil:", "Mail.Example.org", ".", ":"}
	for host, want := range map[string]string{
		"heaven.af.mil": "heaven.af.mil:", "a.b.Heaven.af.mil": ".heaven.af.mil:", "xheaven.af.mil": "", "mail.example.ORG": "Mail.Example.org", "x.mail.example.org": "", "any.org": "",
	} {
		if got := relayDomain(entries, host); got != want {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
	}
}

// TestLoggedIn: a client from whose address somebody logged in by POP3 or IMAP may relay where CHECKRELAY is on, and nowhere else.
func TestLoggedIn(t *testing.T) {
	on := map[string]string{"checkrelay": "1", "relay_clear_minutes": "7"}
	for _, c := range []struct {
		name, client string
		control      map[string]string
		fault        error
		code         int
		check        string
	}{
		{"logged in", "192.0.2.1", on, nil, 0, "relay"},
		{"another", "192.0.2.2", on, nil, 550, "relay"},
		{"off", "192.0.2.1", nil, nil, 550, "relay"},
		{"directory down", "192.0.2.1", on, errors.New("disk on fire"), 451, "relay"},
		{"not for those who must log in", "192.0.2.1", map[string]string{"checkrelay": "1", "auth_all": "1"}, nil, 530, "relay"},
		{"not against NORELAY", "192.0.2.1", map[string]string{"checkrelay": "1", "norelay": "1"}, nil, 550, "relay"},
	} {
		v := view(t, c.control)
		p := New(Config{Directory: book{}, Relays: func(_ context.Context, client netip.Addr, within time.Duration) (bool, error) {
			if want := time.Duration(settings.RelayClearMinutes.Get(v)) * time.Minute; within != want {
				t.Errorf("%s: within %v", c.name, within)
			}
			return client == netip.MustParseAddr("192.0.2.1"), c.fault
		}})
		s := &Session{Client: netip.AddrPortFrom(netip.MustParseAddr(c.client), 9), Settings: v}
		p.Connect(t.Context(), s)
		got := p.Rcpt(t.Context(), s, addr.Address{Local: "a", Domain: "b.example"}, addr.Address{Local: "x", Domain: "far.example"}, 0)
		if (c.code == 0) != (got.Err == nil) || got.Err != nil && got.Err.Code != c.code || got.Check != c.check {
			t.Errorf("%s: %+v", c.name, got)
		}
		s.Submission = true
		if got := p.Mail(t.Context(), s, addr.Address{}, 0); (got.Err == nil) != (c.code == 0 || s.RelayEntry != "") {
			t.Errorf("%s: submission %+v", c.name, got)
		}
	}
	s := &Session{Client: netip.MustParseAddrPort("192.0.2.1:9"), Settings: view(t, on)}
	if v := New(Config{Directory: book{}}).Rcpt(t.Context(), s, addr.Address{}, addr.Address{Local: "x", Domain: "far.example"}, 0); v.Action != Reject {
		t.Errorf("nobody to ask: %+v", v)
	}
}

// TestCertified: a client whose certificate is in tlsclients may relay (wiki 2064): by a name that an authority vouches for, or by its fingerprint.
func TestCertified(t *testing.T) {
	print := strings.Repeat("0af1", 16)
	good := &tlsx.Client{Subject: "CN=relay", Names: []string{"joe@far.example", "relay.far.example"}, Fingerprints: []string{strings.Repeat("1", 64), print}}
	bad := *good
	bad.Err = &tlsx.Unverified{Text: "it has expired", Cause: errors.New("not for clients")}
	both := map[string]string{"tlsclients": "Joe@Far.example\nsha256:" + print + "\n"}
	for _, c := range []struct {
		name    string
		control map[string]string
		client  *tlsx.Client
		user    string
		code    int
		// by is the setting, entry what the verdict's input ends in, says what the reply has.
		by, entry, says string
	}{
		{"address", map[string]string{"tlsclients": "joe@far.example\n"}, good, "", 0, "TLSCLIENTS", "joe@far.example", ""},
		{"host", map[string]string{"tlsclients": "Relay.far.example\n"}, good, "", 0, "TLSCLIENTS", "relay.far.example", ""},
		{"fingerprint of a key", map[string]string{"tlsclients": "SHA256:" + strings.ToUpper(print) + "\n"}, &bad, "", 0, "TLSCLIENTS", print, ""},
		{"fingerprint with colons", map[string]string{"tlsclients": "sha256:" + tlsx.Colons(print) + "\n"}, &bad, "", 0, "TLSCLIENTS", tlsx.Colons(print), ""},
		{"another address", map[string]string{"tlsclients": "ann@far.example\n@far.example\nfar.example\n.far.example\n"}, good, "", 550, "TLSCLIENTS", "does not name it", "my list of clients does not name it"},
		{"not verified", map[string]string{"tlsclients": "joe@far.example\n"}, &bad, "", 550, "TLSCLIENTS", "it has expired", "does not let you relay: it has expired (#5.7.1)"},
		{"no list", nil, good, "", 550, "RELAYCLIENTS", "192.0.2.1", "that domain isn't in my list"},
		{"no certificate", both, nil, "", 550, "RELAYCLIENTS", "192.0.2.1", "that domain isn't in my list"},
		{"not for those who must log in", map[string]string{"tlsclients": "joe@far.example\n", "auth_all": "1"}, good, "", 530, "AUTH_ALL", "192.0.2.1", ""},
		{"not against NORELAY", map[string]string{"tlsclients": "joe@far.example\n", "norelay": "1"}, good, "", 550, "NORELAY", "far.example", ""},
		{"not for a user who may not", map[string]string{"tlsclients": "joe@far.example\n"}, good, "postmaster@here.example", 550, "", "", ""},
		{"list that cannot be asked", map[string]string{"tlsclients.sql": "sqlite:nowhere clients", "tlsclients": ""}, good, "", 451, "TLSCLIENTS", "CN=relay", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &Session{Client: netip.MustParseAddrPort("192.0.2.1:9"), ClientCertificate: c.client, User: c.user, Settings: view(t, c.control)}
			p := New(Config{Directory: book{}})
			p.Connect(t.Context(), s)
			v := p.Rcpt(t.Context(), s, addr.Address{Local: "a", Domain: "b.example"}, addr.Address{Local: "x", Domain: "far.example"}, 0)
			code, text := 0, ""
			if v.Err != nil {
				code, text = v.Err.Code, v.Err.Text
			}
			if code != c.code || v.Setting != c.by || !strings.HasSuffix(v.Input, c.entry) && c.user == "" || !strings.Contains(text, c.says) || strings.Contains(text, "not for clients") {
				t.Errorf("%+v %q", v, text)
			}
			if (s.CertifiedBy != "") != (c.code == 0) {
				t.Errorf("certified by %q", s.CertifiedBy)
			}
			s.Submission = true
			if v := p.Mail(t.Context(), s, addr.Address{}, 0); (v.Action == Accept) != (c.code == 0 || c.user != "" || c.control["auth_all"] != "" || c.control["norelay"] != "") {
				t.Errorf("submission: %+v", v)
			}
		})
	}
}
