package turn

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/dnsx"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/remote"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
	"github.com/indigomail/indigo/internal/wire"
)

func message(t testing.TB, text string) maildir.Message {
	t.Helper()
	path := filepath.Join(t.TempDir(), "Maildir")
	if err := maildir.Create(path); err != nil {
		t.Fatal(err)
	}
	put(t, path, "1700000000.Q17R0.mail.example.org", text)
	all, err := maildir.List(path)
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	return all[0]
}

func put(t testing.TB, path, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(path, "new", name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLetter(t *testing.T) {
	for _, c := range []struct{ text, from, to, body, wire string }{
		{"Return-Path: <a@b.test>\nDelivered-To: u@d.test\nSubject: x\n\ntext\n", "a@b.test", "u@d.test", "", "Subject: x\r\n\r\ntext\r\n"},
		{"return-path: <>\nDELIVERED-TO: u@d.test\n\nno end", "", "u@d.test", "", "\r\nno end"},
		{"Return-Path: <#@[]>\nDelivered-To: u@d.test\nx\r\ny\rz\n", "#@[]", "u@d.test", "", "x\r\ny\rz\r\n"},
		// IndiMail's virtualdomains put their user before the recipient (wiki 1626).
		{"Return-Path: <a@b.test>\nDelivered-To: autoturn-192.0.2.7-u@d.test\n", "a@b.test", "u@d.test", "", ""},
		{"Return-Path: <a@b.test>\nDelivered-To: autoturn-192.0.2.8-u@d.test\n", "a@b.test", "autoturn-192.0.2.8-u@d.test", "", ""},
		{"Return-Path: <a@b.test>\nDelivered-To: u@d.test\nSubject: \xe4\n", "a@b.test", "u@d.test", "8BITMIME", "Subject: \xe4\r\n"},
		{text: "Delivered-To: u@d.test\nReturn-Path: <a@b.test>\n"}, {text: "Return-Path: <a@b.test>\nSubject: x\n"}, {text: ""}, {text: "Return-Path: <a@b.test>\n"},
		{text: "Return-Path: a@b.test\nDelivered-To: u@d.test\n"}, {text: "Return-Path: <a@b.test>\nDelivered-To: nobody\n"}, {text: "Return-Path: <a@b.test>\nDelivered-To: u@d.test\x00\n"},
		{text: "Return-Path: <" + strings.Repeat("a", maxLine) + "@b.test>\nDelivered-To: u@d.test\n"}, {text: "Return-Path: <a@b.test>\nDelivered-To: u@d.test"},
	} {
		l, err := open(message(t, c.text), "autoturn-192.0.2.7-")
		if c.to == "" {
			if err == nil {
				t.Errorf("%q: no error", c.text)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		if err := l.read(); err != nil {
			t.Fatal(err)
		}
		if l.from.String() != c.from || l.to.String() != c.to || l.body != c.body || l.id != 17 || !l.birth.Equal(time.Unix(1700000000, 0)) {
			t.Errorf("%q: %+v", c.text, l)
		}
		for range 2 {
			whole, err := io.ReadAll(io.NewSectionReader(l.content, 0, l.content.Size()))
			if err != nil || string(whole) != c.wire {
				t.Errorf("%q: %q %v", c.text, whole, err)
			}
		}
		if n := len(c.wire); n > 3 {
			p := make([]byte, 10)
			if n, err := l.content.ReadAt(p, int64(n)-2); n != 2 || err != io.EOF || string(p[:2]) != c.wire[len(c.wire)-2:] {
				t.Errorf("%q: the end is %q %v", c.text, p[:n], err)
			}
		}
		l.close()
	}
}

// FuzzLetter: whatever a file holds, what is sent of it is its text behind two lines in wire form, and nothing of an envelope can break a command.
func FuzzLetter(f *testing.F) {
	for _, s := range []string{"Return-Path: <a@b.test>\nDelivered-To: u@d.test\nSubject: x\n\ntext\n", "Return-Path: <>\nDelivered-To: \"a b\"@d.test\n\r\r\n\n\r", "Return-Path: <a\r@b>\nDelivered-To: x@y\r\nz"} {
		f.Add([]byte(s))
	}
	m := message(f, "")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(m.File, text, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := open(m, "autoturn-x-")
		if err != nil {
			return
		}
		defer l.close()
		if strings.ContainsAny(l.from.String()+l.to.String(), "\r\n\x00") {
			t.Fatalf("%q: %q %q", text, l.from, l.to)
		}
		if err := l.read(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(io.NewSectionReader(l.content, 0, l.content.Size()))
		if want := wire.AppendCRLF(nil, text[l.start:]); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%q: %q, want %q, %v", text, got, want, err)
		}
	})
}

func TestIPAuth(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ipauth")
	if found, err := inIPAuth(file, netip.MustParseAddr("192.0.2.1")); found || err != nil {
		t.Error(found, err)
	}
	if err := os.WriteFile(file, []byte("# hosts\n192.0.2.1\n 198.51.100.0/24 # a network\n2001:db8::1\nwhat\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for ip, want := range map[string]bool{"192.0.2.1": true, "192.0.2.2": false, "198.51.100.77": true, "2001:db8::1": true, "2001:db8::2": false, "0.0.0.0": false} {
		if found, err := inIPAuth(file, netip.MustParseAddr(ip)); found != want || err != nil {
			t.Error(ip, found, err)
		}
	}
}

// fake is what a Station asks.
type fake struct {
	mu      sync.Mutex
	bounced []string
	refuse  error
	domains map[string]string
	users   map[string]error
	mx      map[string][]dnsx.MX
	addrs   map[string]string
	// hosts and deferred are what the queue has, turned what it was asked to try.
	hosts    []queue.HostStats
	deferred map[string]int
	turned   []string
}

func (f *fake) Domain(_ context.Context, name string) (directory.Domain, error) {
	name = strings.ToLower(name)
	if dir, ok := f.domains[name]; ok {
		return directory.Domain{Name: name, Dir: dir}, nil
	}
	return directory.Domain{}, directory.ErrNoDomain
}
func (f *fake) User(_ context.Context, a addr.Address) (directory.User, error) {
	if err, known := f.users[a.Key()]; known {
		return directory.User{}, err
	}
	return directory.User{}, directory.ErrNoUser
}
func (f *fake) AliasDomains(context.Context, string) ([]directory.AliasDomain, error) {
	return nil, nil
}
func (f *fake) ATRNDomains(_ context.Context, user addr.Address) ([]string, error) {
	if user.Domain == "localhost" {
		return []string{"a.test"}, nil
	}
	return nil, nil
}
func (f *fake) Bounce(_ queue.ID, env queue.Envelope, _ time.Time, c queue.Content, failures []*mailerr.Error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	text, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size()))
	if err == nil && f.refuse == nil {
		f.bounced = append(f.bounced, fmt.Sprintf("%s %s %d %d", env.Sender, env.Recipients[0].Address, failures[0].Code, len(text)))
	}
	return errors.Join(err, f.refuse)
}
func (f *fake) DomainsBelow(_ context.Context, name, root string, limit int) (below []directory.Domain, err error) {
	for _, one := range slices.Sorted(maps.Keys(f.domains)) {
		if (one == name || strings.HasSuffix(one, "."+name)) && filepath.Dir(f.domains[one]) == root && len(below) < limit {
			below = append(below, directory.Domain{Name: one, Dir: f.domains[one]})
		}
	}
	return below, nil
}
func (f *fake) Hosts() []queue.HostStats { return f.hosts }
func (f *fake) Turn(_ context.Context, one queue.Filter) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.turned = append(f.turned, fmt.Sprintf("%s#%s %t", one.Domain, one.Queue, one.Failed))
	return f.deferred[one.Domain], nil
}
func (f *fake) MX(_ context.Context, d string) ([]dnsx.MX, bool, error) {
	if d == "broken.test" {
		return nil, false, errors.New("SERVFAIL")
	}
	if mx, ok := f.mx[d]; ok {
		return mx, false, nil
	}
	return nil, false, dnsx.NotFound(d)
}
func (f *fake) Addrs(_ context.Context, h string) ([]netip.Addr, bool, error) {
	if a, ok := f.addrs[h]; ok {
		return []netip.Addr{netip.MustParseAddr(a)}, false, nil
	}
	return nil, false, dnsx.NotFound(h)
}
func (*fake) TXT(context.Context, string) ([]string, bool, error) { return nil, false, nil }
func (*fake) PTR(context.Context, netip.Addr) ([]string, error)   { return nil, nil }

// host is a server at the other end; answers are by verb and address, "" hangs up.
func host(conn net.Conn, answers map[string]string, take func(text string)) {
	defer conn.Close()
	fmt.Fprint(conn, "220 host\r\n")
	in := bufio.NewReader(conn)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSpace(line)
		verb, _, _ := strings.Cut(line, " ")
		answer, ok := answers[line]
		if !ok {
			answer = "250 ok"
		}
		if answer == "" {
			return
		}
		switch verb {
		case "DATA":
			fmt.Fprint(conn, "354 go\r\n")
			var text string
			for line != ".\r\n" {
				if line, err = in.ReadString('\n'); err != nil {
					return
				}
				text += line
			}
			take(text)
		case "QUIT":
			fmt.Fprint(conn, "221 bye\r\n")
			return
		}
		fmt.Fprint(conn, answer+"\r\n")
	}
}

// newStation gives a Station with a directory for 192.0.2.7 and one for a.test.
func newStation(t *testing.T, f *fake, answers map[string]string) (s *Station, root string, taken *[]string, dials *[]string) {
	t.Helper()
	root, taken, dials = t.TempDir(), &[]string{}, &[]string{}
	for _, box := range []string{"192.0.2.7", "a.test", "2001_db8__1"} {
		if err := maildir.Create(filepath.Join(root, box, "Maildir")); err != nil {
			t.Fatal(err)
		}
	}
	f.domains = map[string]string{"a.test": filepath.Join(root, "a.test"), "fixed.test": filepath.Join(root, "192.0.2.7"), "six.test": filepath.Join(root, "2001_db8__1"), "users.test": "/srv/domains/users.test", "broken.test": filepath.Join(root, "a.test")}
	var hosts sync.WaitGroup
	var mu sync.Mutex // runs go side by side
	keep := func(all *[]string, one string) {
		mu.Lock()
		defer mu.Unlock()
		*all = append(*all, one)
	}
	d, err := remote.New(remote.Config{Settings: func() *settings.View { return nil }, Hostname: func() string { return "isp.test" }, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
		Dial: func(_ context.Context, _, address string) (net.Conn, error) {
			keep(dials, address)
			client, server := net.Pipe()
			hosts.Go(func() { host(server, answers, func(text string) { keep(taken, text) }) })
			return client, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	s = New(Config{Root: root, Directory: f, Remote: d, Queue: f, Resolver: f, Trace: trace.Discard, Logger: slog.New(slog.DiscardHandler), Now: time.Now})
	t.Cleanup(func() { s.Shutdown(context.Background()); d.Close(); hosts.Wait() })
	return s, root, taken, dials
}

func letters(t *testing.T, root, box string) (names []string) {
	t.Helper()
	all, err := maildir.List(filepath.Join(root, box, "Maildir"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		names = append(names, m.Base)
	}
	return names
}

// settle waits for the runs of a Station.
func settle(s *Station) { s.runs.Wait() }

func TestRun(t *testing.T) {
	young := time.Now().Add(-time.Hour).Unix()
	old := time.Now().Add(-giveUp - time.Hour).Unix()
	name := func(birth int64, id int) string { return fmt.Sprintf("%d.Q%dR0.isp.test", birth, id) }
	f := &fake{}
	s, root, taken, dials := newStation(t, f, map[string]string{
		"RCPT TO:<no@fixed.test>": "550 5.1.1 who", "RCPT TO:<later@fixed.test>": "450 4.2.0 later", "MAIL FROM:<spam@b.test>": "451 4.7.1 not now",
	})
	box := filepath.Join(root, "192.0.2.7", "Maildir")
	for i, to := range []string{"u", "no", "later", "v"} {
		put(t, box, name(young, i), "Return-Path: <s@b.test>\nDelivered-To: "+to+"@fixed.test\n\ntext of "+to+"\n")
	}
	put(t, box, name(old, 10), "Return-Path: <s@b.test>\nDelivered-To: later@fixed.test\n\nold\n")
	put(t, box, name(young, 11), "Return-Path: <spam@b.test>\nDelivered-To: u@fixed.test\n\nx\n")
	put(t, box, name(young, 12), "no envelope\n")
	if begun, err := s.Start(t.Context(), nil, "session", "fixed.test", netip.MustParseAddr("198.51.100.1")); err != nil || begun != (Begun{}) {
		t.Fatal(begun, err)
	}
	settle(s)
	if got := letters(t, root, "192.0.2.7"); !slices.Equal(got, []string{name(young, 11), name(young, 12), name(young, 2)}) {
		t.Error(got)
	}
	if want := []string{"\r\ntext of u\r\n.\r\n", "\r\ntext of v\r\n.\r\n"}; !slices.Equal(*taken, want) {
		t.Errorf("%q", *taken)
	}
	if want := []string{"s@b.test later@fixed.test 450 7", "s@b.test no@fixed.test 550 14"}; !slices.Equal(f.bounced, want) {
		t.Errorf("%q", f.bounced)
	}
	if !slices.Equal(*dials, []string{"192.0.2.7:25"}) {
		t.Error(*dials)
	}

	// A sender who cannot be told keeps the message where it is.
	put(t, box, name(young, 20), "Return-Path: <s@b.test>\nDelivered-To: no@fixed.test\n\ntext\n")
	f.refuse = errors.New("the disk is full")
	report, err := s.Send(t.Context(), box, "", "192.0.2.7:25")
	if err != nil || report != (Report{Deferred: 3, Skipped: 1}) || len(letters(t, root, "192.0.2.7")) != 4 {
		t.Error(report, err, letters(t, root, "192.0.2.7"))
	}
}

// TestHangUp: a host that goes in the middle loses nothing, and gets nothing twice that it has taken.
func TestHangUp(t *testing.T) {
	answers := map[string]string{"RCPT TO:<hang@fixed.test>": ""}
	s, root, taken, _ := newStation(t, &fake{}, answers)
	for i, to := range []string{"u", "hang", "v"} {
		put(t, filepath.Join(root, "192.0.2.7", "Maildir"), fmt.Sprintf("1.Q%dR0.x", i), "Return-Path: <s@b.test>\nDelivered-To: "+to+"@fixed.test\n\n"+to+"\n")
	}
	if report, err := s.Send(t.Context(), filepath.Join(root, "192.0.2.7"), "", "192.0.2.7:25"); err == nil || report != (Report{Sent: 1, Deferred: 1}) {
		t.Error(report, err)
	}
	if got := letters(t, root, "192.0.2.7"); !slices.Equal(got, []string{"1.Q1R0.x", "1.Q2R0.x"}) {
		t.Error(got)
	}
	delete(answers, "RCPT TO:<hang@fixed.test>")
	if report, err := s.Send(t.Context(), filepath.Join(root, "192.0.2.7"), "", "192.0.2.7:25"); err != nil || report != (Report{Sent: 2}) {
		t.Error(report, err)
	}
	if want := []string{"\r\nu\r\n.\r\n", "\r\nhang\r\n.\r\n", "\r\nv\r\n.\r\n"}; !slices.Equal(*taken, want) {
		t.Errorf("%q", *taken)
	}
}

// TestShutdown: a run ends with the message that it is at, and none begins.
func TestShutdown(t *testing.T) {
	s, root, taken, _ := newStation(t, &fake{}, nil)
	for i := range 3 {
		put(t, filepath.Join(root, "192.0.2.7", "Maildir"), fmt.Sprintf("1.Q%dR0.x", i), "Return-Path: <s@b.test>\nDelivered-To: u@fixed.test\n\nx\n")
	}
	w := &waiting{dir: filepath.Join(root, "192.0.2.7")}
	session, e := s.config.Remote.Open(t.Context(), "192.0.2.7:25")
	if e != nil {
		t.Fatal(e)
	}
	var report Report
	asked := 0
	err := s.run(t.Context(), w, session, trace.Event{}, func() bool { asked++; return asked > 2 }, &report)
	session.Close()
	if !errors.Is(err, errEnding) || report.Sent != 2 || len(*taken) != 2 || len(letters(t, root, "192.0.2.7")) != 1 {
		t.Error(report, err, *taken)
	}
	s.Shutdown(t.Context())
	if _, err := s.Start(t.Context(), nil, "session", "fixed.test", netip.MustParseAddr("198.51.100.1")); !errors.Is(err, errEnding) {
		t.Error(err)
	}
	if _, err := s.Send(t.Context(), w.dir, "", "192.0.2.7:25"); !errors.Is(err, errEnding) {
		t.Error(err)
	}
}

// TestLock: a run that is under way, here or in another process, keeps others off.
func TestLock(t *testing.T) {
	s, root, _, dials := newStation(t, &fake{}, nil)
	put(t, filepath.Join(root, "192.0.2.7", "Maildir"), "1.Q1R0.x", "Return-Path: <>\nDelivered-To: u@fixed.test\n\n")
	other, err := os.OpenFile(filepath.Join(root, "192.0.2.7", "seriallock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if begun, err := s.Start(t.Context(), nil, "session", "fixed.test", netip.MustParseAddr("198.51.100.1")); err != nil || !begun.Busy {
		t.Error(begun, err)
	}
	if _, err := s.Send(t.Context(), filepath.Join(root, "192.0.2.7"), "", "192.0.2.7:25"); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	s.Connected(nil, "session", netip.MustParseAddr("192.0.2.7"))
	settle(s)
	if len(*dials) > 0 {
		t.Error(*dials)
	}
	other.Close()
	s.Connected(nil, "session", netip.MustParseAddr("::ffff:192.0.2.7"))
	settle(s)
	if len(*dials) != 1 || len(letters(t, root, "192.0.2.7")) != 0 {
		t.Error(*dials)
	}
}

// TestAskedForOthers: one client cannot take all places by asking for hosts that are not there; a host that asks for itself has one.
func TestAskedForOthers(t *testing.T) {
	f := &fake{}
	s, root, _, _ := newStation(t, f, nil)
	// Nobody answers until the end.
	answer := make(chan struct{})
	var err error
	s.config.Remote, err = remote.New(remote.Config{Settings: func() *settings.View { return nil }, Hostname: func() string { return "isp.test" }, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
		Dial: func(context.Context, string, string) (net.Conn, error) {
			<-answer
			return nil, errors.New("nobody there")
		}})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(n int, client string) error {
		t.Helper()
		host := fmt.Sprintf("198.51.100.%d", n)
		box := filepath.Join(root, host)
		if err := maildir.Create(filepath.Join(box, "Maildir")); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(box, "Maildir"), "1.Q1R0.x", "Return-Path: <>\nDelivered-To: u@x.test\n\n")
		f.domains["x.test"] = box
		_, err := s.Start(t.Context(), nil, "session", "x.test", netip.MustParseAddr(client))
		return err
	}
	for n := range maxAsked {
		if err := ask(n, fmt.Sprintf("2001:db8::%d", n)); err != nil {
			t.Error(n, err)
		}
	}
	if err := ask(100, "2001:db8::ffff"); err == nil || errors.Is(err, ErrNotAllowed) || errors.Is(err, ErrNoMail) {
		t.Errorf("one more than may be: %v", err)
	}
	for _, client := range []string{"2001:db8:0:1::1", "192.0.2.1", "::ffff:198.51.100.100"} {
		if err := ask(100, client); err != nil {
			t.Error(client, err)
		}
	}
	close(answer)
	settle(s)
	if err := ask(101, "2001:db8::1"); err != nil {
		t.Error(err)
	}
	settle(s)
	if len(s.asking) != 0 {
		t.Error(s.asking)
	}
}

// TestStrangeFiles: a directory that somebody else may write to, as programs of a domain's addresses may, has no other files handed over, written or
// waited for.
func TestStrangeFiles(t *testing.T) {
	s, root, taken, dials := newStation(t, &fake{}, nil)
	elsewhere := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(elsewhere, []byte("Return-Path: <>\nDelivered-To: u@fixed.test\n\nsecret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"192.0.2.7", "a.test"} {
		box := filepath.Join(root, name)
		if err := os.Symlink(elsewhere, filepath.Join(box, "Maildir", "new", "1.Q1R0.x")); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(filepath.Join(box, "Maildir", "new", "2.Q2R0.x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(root, "a.test", "ipauth"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Start(t.Context(), nil, "session", "a.test", netip.MustParseAddr("198.51.100.1")); err == nil {
		t.Error("a pipe is no list")
	}
	report, err := s.Send(t.Context(), filepath.Join(root, "192.0.2.7"), "", "192.0.2.7:25")
	if err != nil || report != (Report{Skipped: 2}) || len(*taken) > 0 {
		t.Error(report, err, *taken)
	}
	// A lock that is a link makes no file elsewhere.
	put(t, filepath.Join(root, "a.test", "Maildir"), "3.Q3R0.x", "Return-Path: <>\nDelivered-To: u@a.test\n\n")
	missing := filepath.Join(t.TempDir(), "missing")
	if err := os.Symlink(missing, filepath.Join(root, "a.test", "seriallock")); err != nil {
		t.Fatal(err)
	}
	n := len(*dials)
	if _, err := s.Send(t.Context(), filepath.Join(root, "a.test"), "", "192.0.2.7:25"); err == nil || len(*dials) > n {
		t.Error(err, *dials)
	}
	if _, err := os.Stat(missing); !errors.Is(err, os.ErrNotExist) {
		t.Error("the lock was made elsewhere")
	}
}

func TestWhoMayAsk(t *testing.T) {
	f := &fake{mx: map[string][]dnsx.MX{"a.test": {{Host: "mx1.a.test"}, {Host: "mx2.a.test"}}}, addrs: map[string]string{"mx2.a.test": "192.0.2.9"}}
	s, root, _, dials := newStation(t, f, nil)
	letter := func(box, to string) {
		t.Helper()
		put(t, filepath.Join(root, box, "Maildir"), "1.Q1R0.x", "Return-Path: <>\nDelivered-To: "+to+"\n\n")
	}
	for _, c := range []struct {
		node, client string
		want         error
		dialed       string
	}{
		{"a.test", "192.0.2.10", ErrNotAllowed, ""}, {"a.test", "192.0.2.9", nil, "192.0.2.9:25"}, {"a.test", "192.0.2.9", ErrNoMail, ""},
		{"fixed.test", "198.51.100.1", nil, "192.0.2.7:25"}, {"six.test", "198.51.100.1", nil, "[2001:db8::1]:25"},
		{"users.test", "192.0.2.9", ErrNotAllowed, ""}, {"nowhere.test", "192.0.2.9", ErrNotAllowed, ""},
	} {
		if c.want == nil {
			letter(filepath.Base(f.domains[c.node]), "u@"+c.node)
		}
		*dials = nil
		_, err := s.Start(t.Context(), nil, "session", c.node, netip.MustParseAddr(c.client))
		settle(s)
		if !errors.Is(err, c.want) || strings.Join(*dials, " ") != c.dialed {
			t.Errorf("%+v: %v %v", c, err, *dials)
		}
	}
	if _, err := s.Start(t.Context(), nil, "session", "broken.test", netip.MustParseAddr("192.0.2.9")); err == nil || errors.Is(err, ErrNotAllowed) {
		t.Error("a DNS that fails:", err)
	}
}

// TestBelow: @domain is for those of it and below it that the client may ask for, and #queue for queues in etrnhosts.
func TestBelow(t *testing.T) {
	f := &fake{mx: map[string][]dnsx.MX{"a.test": {{Host: "mx2.a.test"}}}, addrs: map[string]string{"mx2.a.test": "192.0.2.9"}}
	s, root, _, dials := newStation(t, f, nil)
	dir := t.TempDir()
	for file, text := range map[string]string{"me": "isp.test\n", "etrnhosts": "up.far.test\nqueue:odmr\n"} {
		if err := os.MkdirAll(filepath.Join(dir, "control"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "control", file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	snapshot, err := settings.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	view := snapshot.View("smtpd.25")
	f.hosts = []queue.HostStats{{Queue: "queue1", Channel: "remote", Host: "up.far.test", Jobs: 2}, {Queue: "odmr", Channel: "remote", Host: "x.test", Jobs: 3}}
	if queue.Remote.String() != "remote" {
		t.Fatal(queue.Remote.String())
	}
	for _, c := range []struct {
		node, client, boxes string
		want                error
		queued              int
		dialed, turned      string
	}{
		{"@test", "198.51.100.1", "192.0.2.7 a.test", nil, 0, "192.0.2.7:25", "up.far.test# false"},
		{"@test", "192.0.2.9", "192.0.2.7 a.test", nil, 0, "192.0.2.7:25 192.0.2.9:25", "up.far.test# false"},
		{"@a.test", "192.0.2.9", "", ErrNoMail, 0, "", ""},
		{"@a.test", "192.0.2.8", "a.test", ErrNotAllowed, 0, "", ""},
		{"@far.test", "192.0.2.8", "", nil, 2, "", "up.far.test# false"},
		{"@ar.test", "192.0.2.8", "", ErrNotAllowed, 0, "", ""},
		{"@users.test", "192.0.2.8", "", ErrNotAllowed, 0, "", ""},
		{"#odmr", "192.0.2.8", "", nil, 3, "", "#odmr false"},
		{"#queue1", "192.0.2.8", "", ErrNotAllowed, 0, "", ""},
		{"queue:odmr", "192.0.2.8", "", ErrNotAllowed, 0, "", ""},
	} {
		for _, box := range strings.Fields(c.boxes) {
			to := box
			if box == "192.0.2.7" {
				to = "fixed.test"
			}
			put(t, filepath.Join(root, box, "Maildir"), "1.Q1R0.x", "Return-Path: <>\nDelivered-To: u@"+to+"\n\n")
		}
		*dials, f.turned = nil, nil
		begun, err := s.Start(t.Context(), view, "session", c.node, netip.MustParseAddr(c.client))
		settle(s)
		slices.Sort(*dials)
		if !errors.Is(err, c.want) || begun.Queued != c.queued || strings.Join(*dials, " ") != c.dialed || strings.Join(f.turned, " ") != c.turned {
			t.Errorf("%+v: %+v %v %v %v", c, begun, err, *dials, f.turned)
		}
		for _, box := range strings.Fields(c.boxes) {
			os.Remove(filepath.Join(root, box, "Maildir", "new", "1.Q1R0.x"))
		}
	}
	if _, err := s.Start(t.Context(), view, "session", "@broken.test", netip.MustParseAddr("192.0.2.9")); err == nil || errors.Is(err, ErrNotAllowed) {
		t.Error("a DNS that fails:", err)
	}
	for i := range maxBelow {
		f.domains[fmt.Sprintf("d%d.a.test", i)] = filepath.Join(root, "a.test")
	}
	if _, err := s.Start(t.Context(), view, "session", "@a.test", netip.MustParseAddr("192.0.2.9")); err == nil || errors.Is(err, ErrNotAllowed) {
		t.Error("too many:", err)
	}
}

// TestHasten: what the queue defers for a domain whose mail waits is tried when its host asks, and only when there can be any.
func TestHasten(t *testing.T) {
	f := &fake{deferred: map[string]int{"fixed.test": 2, "a.test": 1}}
	s, root, _, dials := newStation(t, f, nil)
	start := func(turned string, queued int, want error) {
		t.Helper()
		*dials, f.turned = nil, nil
		begun, err := s.Start(t.Context(), nil, "session", "fixed.test", netip.MustParseAddr("198.51.100.1"))
		settle(s)
		if !errors.Is(err, want) || begun.Queued != queued || strings.Join(f.turned, " ") != turned {
			t.Errorf("%+v %v %v", begun, err, f.turned)
		}
	}
	start("", 0, ErrNoMail)
	f.hosts = []queue.HostStats{{Channel: "local", Jobs: 3, Ready: 1, Running: 2}}
	start("", 0, ErrNoMail)
	f.hosts[0].Jobs = 4
	start("fixed.test# true", 2, nil)
	f.hosts = []queue.HostStats{{Channel: "remote", Host: "fixed.test", Jobs: 1}}
	start("fixed.test# true", 2, nil)
	put(t, filepath.Join(root, "192.0.2.7", "Maildir"), "1.Q1R0.x", "Return-Path: <>\nDelivered-To: u@fixed.test\n\n")
	start("fixed.test# true", 0, nil)
	if len(*dials) != 1 {
		t.Error("what is there is not sent", *dials)
	}
	f.hosts[0].Host, f.turned = "a.test", nil
	if _, err := s.Prepare(t.Context(), nil, addr.Address{Local: "me", Domain: "localhost"}, []string{"a.test"}); !errors.Is(err, ErrNoMail) || strings.Join(f.turned, " ") != "a.test# true" {
		t.Errorf("ATRN: %v %v", err, f.turned)
	}
}

// TestLocalhost: localhost's grants are those of users whom the host has by its name and the directory has not, also not one who is marked inactive.
func TestLocalhost(t *testing.T) {
	f := &fake{users: map[string]error{"virtual@isp.test": nil, "asleep@isp.test": directory.ErrInactive, "broken@isp.test": errors.New("database is gone")}}
	s, _, _, _ := newStation(t, f, nil)
	data := t.TempDir()
	for name, text := range map[string]string{"me": "isp.test\n", "atrnaccess": "own@localhost:fixed.test\nvirtual@localhost:fixed.test\nasleep@localhost:fixed.test\n"} {
		if err := os.MkdirAll(filepath.Join(data, "control"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(data, "control", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	snapshot, err := settings.Load(data)
	if err != nil {
		t.Fatal(err)
	}
	view := snapshot.View("smtpd.366")
	for user, want := range map[string]string{"own@isp.test": "a.test fixed.test", "OWN@Isp.test": "a.test fixed.test", "virtual@isp.test": "", "asleep@isp.test": "", "own@other.test": "", "own@localhost": "a.test fixed.test"} {
		a, err := addr.Parse(user)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.allowed(t.Context(), view, a); err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %q %v, want %q", user, got, err, want)
		}
	}
	if got, err := s.allowed(t.Context(), view, addr.Address{Local: "broken", Domain: "isp.test"}); err == nil {
		t.Error("the directory does not answer, and there are grants:", got)
	}
}

// TestATRN: the host's own users are those of localhost; a domain's mail that lies among that of others goes alone; one at a time.
func TestATRN(t *testing.T) {
	f := &fake{}
	s, root, taken, _ := newStation(t, f, nil)
	box := filepath.Join(root, "a.test", "Maildir")
	put(t, box, "1.Q1R0.x", "Return-Path: <>\nDelivered-To: u@A.test\n\nmine\n")
	put(t, box, "1.Q2R0.x", "Return-Path: <>\nDelivered-To: u@broken.test\n\nnot mine\n")
	own := addr.Address{Local: "odmr", Domain: "localhost"}
	for _, c := range []struct {
		user    addr.Address
		domains []string
		want    error
	}{
		{addr.Address{Local: "odmr", Domain: "x.test"}, nil, ErrNotAllowed}, {own, []string{"fixed.test"}, ErrNotAllowed}, {own, []string{"a.test", "fixed.test"}, ErrNotAllowed},
		{own, []string{"nowhere.test"}, ErrNotAllowed},
	} {
		if _, err := s.Prepare(t.Context(), nil, c.user, c.domains); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	waiting, err := s.Prepare(t.Context(), nil, own, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(t.Context(), nil, own, []string{"A.test"}); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	client, server := net.Pipe()
	var done sync.WaitGroup
	done.Go(func() { host(server, nil, func(text string) { *taken = append(*taken, text) }) })
	report, err := waiting.Run(t.Context(), client, trace.Event{}, func() bool { return false })
	waiting.Release()
	done.Wait()
	if err != nil || report.Sent != 1 || !slices.Equal(*taken, []string{"\r\nmine\r\n.\r\n"}) || len(letters(t, root, "a.test")) != 1 {
		t.Error(report, err, *taken)
	}
	if _, err := s.Prepare(t.Context(), nil, own, []string{"a.test"}); !errors.Is(err, ErrNoMail) {
		t.Error(err)
	}
}
