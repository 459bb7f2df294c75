package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
)

func (h homes) Aliases(_ context.Context, a addr.Address) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(string(h), "lines", strings.ToLower(a.Local)))
	if err != nil {
		return nil, directory.ErrNoAlias
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n"), nil
}

func (h homes) Domain(_ context.Context, name string) (directory.Domain, error) {
	switch strings.ToLower(name) {
	case "example.org", "example.net":
		return directory.Domain{Name: "example.org", Dir: string(h)}, nil
	}
	return directory.Domain{}, directory.ErrNoDomain
}

// onwards is a queue that keeps what it is given.
type onwards struct {
	mu   sync.Mutex
	sent []string
	err  error
}

type submission struct {
	bytes.Buffer
	o *onwards
}

func (o *onwards) Begin(context.Context, int64) (queue.Submission, error) {
	return &submission{o: o}, o.err
}
func (s *submission) ID() queue.ID { return 99 }
func (s *submission) Abort()       {}
func (s *submission) Commit(_ context.Context, e queue.Envelope) error {
	if err := e.Check(); err != nil {
		return err
	}
	s.o.mu.Lock()
	defer s.o.mu.Unlock()
	text := "<" + e.Sender.String() + ">"
	for _, r := range e.Recipients {
		text += " " + r.Address.String() + r.Notify
	}
	s.o.sent = append(s.o.sent, text+"\n"+s.String())
	return nil
}

// nobody is a user without rights.
const nobody = 65534

func aliased(t *testing.T, lines map[string]string) (string, *Deliverer, *onwards) {
	t.Helper()
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "lines"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range lines {
		if err := os.WriteFile(filepath.Join(home, "lines", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 {
		// Programs do not run as root.
		if err := errors.Join(os.Chown(home, nobody, nobody), os.Chmod(filepath.Dir(home), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	o := &onwards{}
	d := New(Config{Directory: homes(home), Hostname: "mx.example.org", Onward: o, Environment: []string{"PATH=/bin:/usr/bin"}})
	t.Cleanup(func() { d.Close() })
	return home, d, o
}

func TestAlias(t *testing.T) {
	home, d, o := aliased(t, map[string]string{
		"team": "&ann@example.org\n&far@elsewhere.test\nann@EXAMPLE.org\n./shared/Maildir/\n/nowhere/Maildir/",
		"bob":  "&Bob@example.net\n&far@elsewhere.test",
		"hole": "# nobody",
		"*":    "|cat >\"$HOME/anybody\"; echo \"$DEFAULT\"; exit 0",
	})
	// A line that cannot be followed keeps back what is sent on.
	if r := one(t, d, delivery(1, mail, "team")); r.Err == nil || r.Err.Reply() != errLine.Reply() {
		t.Errorf("%+v", r)
	}
	if len(o.sent) != 0 {
		t.Errorf("%q", o.sent)
	}
	if err := os.WriteFile(filepath.Join(home, "lines/team"), []byte("&ann@example.org\n&far@elsewhere.test\nann@EXAMPLE.org\n./shared/Maildir/"), 0o600); err != nil {
		t.Fatal(err)
	}
	dl := delivery(1, mail, "team")
	dl.Recipients[0].Notify, dl.Attempt = "SUCCESS,FAILURE", 1
	if r := one(t, d, dl); r.Err != nil || r.Text != "did 1+1+0/qp 99" {
		t.Errorf("%+v", r)
	}
	if got := stored(t, home, "shared"); len(got) != 1 {
		t.Errorf("%q", got)
	}
	want := "<sender@example.net> ann@example.orgFAILURE far@elsewhere.testFAILURE\nReceived: indimail-mta alias 99\r\n by mx.example.org with local;\r\n "
	if len(o.sent) != 1 || !strings.HasPrefix(o.sent[0], want) || !strings.HasSuffix(o.sent[0], "\r\nDelivered-To: team@example.org\r\n"+mail) {
		t.Errorf("%q", o.sent)
	}
	// A user's own address, by any name of the domain, is his mailbox. The null sender stays null.
	dl = delivery(2, mail, "bob")
	dl.Envelope.Sender = addr.Address{}
	if r := one(t, d, dl); r.Err != nil || r.Text != "did 1+1+0/qp 99" || len(o.sent) != 2 || !strings.HasPrefix(o.sent[1], "<> far@elsewhere.test\n") {
		t.Errorf("%+v %q", r, o.sent)
	}
	if got := stored(t, home, "bob"); len(got) != 1 {
		t.Errorf("%q", got)
	}
	if r := one(t, d, delivery(3, mail, "hole")); r.Err != nil || r.Text != "did 0+0+0" {
		t.Errorf("%+v", r)
	}
	// *@domain has what is nobody's, and neither users nor aliases.
	if r := one(t, d, delivery(4, mail, "whoever")); r.Err != nil || r.Text != "did 0+0+1/whoever" {
		t.Errorf("%+v", r)
	}
	if b, err := os.ReadFile(filepath.Join(home, "anybody")); err != nil || string(b) != "Subject: hello\n\nbody\n" {
		t.Errorf("%q %v", b, err)
	}
	if r := one(t, d, delivery(5, mail, "ann")); r.Err != nil || r.Text != done {
		t.Errorf("%+v", r)
	}
	// A loop, and a group that nobody is in.
	if r := one(t, d, delivery(6, "Delivered-To: team@example.org\r\n"+mail, "team")); r.Err == nil || r.Err.Code != 554 {
		t.Errorf("%+v", r)
	}
	if r := one(t, d, delivery(7, mail, "staff")); r.Err == nil || r.Err.Reply() != errNoMembers.Reply() {
		t.Errorf("%+v", r)
	}
	o.err = errors.New("disk full")
	if r := one(t, d, delivery(8, mail, "bob")); r.Err == nil || !r.Err.Temporary() {
		t.Errorf("%+v", r)
	}
	o.err = nil
	dl = delivery(8, mail, "bob")
	dl.Attempt = 1
	if r := one(t, d, dl); r.Err != nil || len(stored(t, home, "bob")) != 2 {
		t.Errorf("%+v", r)
	}
}

// TestAliasQuota: a Maildir that is a user's has his quota, by whatever line; a full one bounces, and keeps nothing else back.
func TestAliasQuota(t *testing.T) {
	home := t.TempDir()
	d := limitedStation(t, limited{home: home, quota: "1000S,1C"}, map[string]string{"quotawarn": ""}, nil)
	o := &onwards{}
	d.cfg.Onward = o
	if err := os.MkdirAll(filepath.Join(home, "lines"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"ann": "&ann@example.org\n&far@elsewhere.test", "team": "./ann/Maildir/\n./shared/Maildir/.Sub/\n&far@elsewhere.test"} {
		if err := os.WriteFile(filepath.Join(home, "lines", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if r := one(t, d, delivery(1, mail, "ann")); r.Err != nil || r.Text != "did 1+1+0/qp 99" {
		t.Errorf("%+v", r)
	}
	for id, name := range map[queue.ID]string{2: "ann", 3: "team"} {
		if r := one(t, d, delivery(id, mail, name)); r.Err == nil || r.Err.Reply() != errOver.Reply() {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if u := holds(t, home); u.Messages != 1 || len(o.sent) != 3 || len(stored(t, home, "ann")) != 1 {
		t.Errorf("%+v, %d sent on", u, len(o.sent))
	}
	if files, _ := filepath.Glob(filepath.Join(home, "shared/Maildir/.Sub/new/*")); len(files) != 1 {
		t.Errorf("%q", files)
	}
}

// TestInactiveAlias: the lines of one who is marked inactive hold; what they leave for his own mailbox bounces, and *@domain gets nothing.
func TestInactiveAlias(t *testing.T) {
	_, d, o := aliased(t, map[string]string{"asleep": "&asleep@example.org\n&far@elsewhere.test", "*": "&far@elsewhere.test"})
	if r := one(t, d, delivery(1, mail, "asleep")); r.Err == nil || r.Err.Reply() != errInactive.Reply() || len(o.sent) != 1 {
		t.Errorf("%+v, %d sent on", r, len(o.sent))
	}
	_, d, o = aliased(t, map[string]string{"*": "&far@elsewhere.test"})
	if r := one(t, d, delivery(2, mail, "asleep")); r.Err == nil || r.Err.Reply() != errInactive.Reply() || len(o.sent) != 0 {
		t.Errorf("%+v, %d sent on", r, len(o.sent))
	}
}

// TestOwnWithoutUser: a line that leads to itself and is nobody's is a loop.
func TestOwnWithoutUser(t *testing.T) {
	_, d, _ := aliased(t, map[string]string{"self": "&self@example.net"})
	if r := one(t, d, delivery(1, mail, "self")); r.Err == nil || r.Err.Reply() != errLooping.Reply() {
		t.Errorf("%+v", r)
	}
}

func TestProgramExits(t *testing.T) {
	for code, want := range map[int]string{
		0: "did 0+1+1", 99: "did 0+0+1", 100: "554 5.3.0 The program of this address refused the message with exit code 100. (#5.3.0)", 111: "451", 1: "451", 64: "554", 65: "554",
		70: "554", 76: "554", 77: "554", 78: "554", 112: "554", 127: "451", 98: "451",
	} {
		_, d, o := aliased(t, map[string]string{"x": fmt.Sprintf("|exit %d\n&far@elsewhere.test", code)})
		r := one(t, d, delivery(queue.ID(code), mail, "x"))
		got := r.Text
		if r.Err != nil {
			got = r.Err.Reply()
		}
		if !strings.HasPrefix(got, want) {
			t.Errorf("exit code %d: %q, want %q", code, got, want)
		}
		// For good: the others get theirs. For now: they wait. 99: they get nothing.
		if sent := len(o.sent) == 1; sent != (code == 0 || strings.HasPrefix(want, "554")) {
			t.Errorf("exit code %d: %d sent on", code, len(o.sent))
		}
	}
}

// TestProgramRepeat: what is done is not done again, and what was sent on is sent once.
func TestProgramRepeat(t *testing.T) {
	home, d, o := aliased(t, map[string]string{
		"x": "|echo a >>\"$HOME/a\"\n|echo b >>\"$HOME/b\"; echo not now; test -e \"$HOME/go\"\n|echo c >>\"$HOME/c\"; exit 100\n./m/Maildir/\n&far@elsewhere.test",
	})
	dl := delivery(1, mail, "x")
	for attempt := range 2 {
		dl.Attempt = attempt
		if r := one(t, d, dl); r.Err == nil || r.Err.Reply() != "451 4.3.0 not now" || len(r.Dialogue) != 4 {
			t.Errorf("%+v", r)
		}
	}
	// The user reads and removes the message meanwhile.
	if err := os.RemoveAll(filepath.Join(home, "m")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dl.Attempt = 2
	if r := one(t, d, dl); r.Err == nil || r.Err.Code != 554 {
		t.Errorf("%+v", r)
	}
	for name, want := range map[string]int{"a": 1, "b": 3, "c": 1} {
		if b, err := os.ReadFile(filepath.Join(home, name)); err != nil || strings.Count(string(b), name) != want {
			t.Errorf("%s ran: %q %v, want %d", name, b, err, want)
		}
	}
	if _, err := os.Stat(filepath.Join(home, "m")); err == nil || len(o.sent) != 1 {
		t.Errorf("stored again, or %d sent on", len(o.sent))
	}
	if len(d.past.past) != 0 {
		t.Errorf("%v is remembered", d.past.past)
	}
}

func TestProgramEnvironment(t *testing.T) {
	home, d, _ := aliased(t, map[string]string{"a-b-c": "|env -0 >\"$HOME/env\"; pwd >pwd; cat >message; dd bs=1 count=3 2>/dev/null", "*": "|env -0 >\"$HOME/env2\""})
	dl := delivery(7, mail, "a-b-c", "x\"; touch evil", "ann")
	dl.Recipients[0].Address.Domain = "Example.Org"
	dl.Envelope.Sender.Local = "new\nline"
	for i, r := range d.Deliver(t.Context(), dl) {
		if r.Err != nil {
			t.Errorf("%d: %+v", i, r)
		}
	}
	read := func(name string) map[string]string {
		b, err := os.ReadFile(filepath.Join(home, name))
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]string{}
		for _, v := range strings.Split(string(b), "\x00") {
			name, value, _ := strings.Cut(v, "=")
			m[name] = value
		}
		return m
	}
	env := read("env")
	for name, want := range map[string]string{
		"SENDER": `"new_line"@example.net`, "NEWSENDER": `"new_line"@example.net`, "RECIPIENT": "a-b-c@Example.Org", "LOCAL": "a-b-c", "EXT": "a-b-c", "EXT2": "b-c", "EXT3": "c", "EXT4": "",
		"HOST": "Example.Org", "HOST2": "Example", "HOST3": "", "USER": "a-b-c", "HOME": home, "RPLINE": "Return-Path: <\"new_line\"@example.net>\n",
		"DTLINE": "Delivered-To: a-b-c@Example.Org\n", "QUEUEID": "7", "PATH": "/bin:/usr/bin",
	} {
		if env[name] != want {
			t.Errorf("%s=%q, want %q", name, env[name], want)
		}
	}
	if _, is := env["DEFAULT"]; is || !strings.HasPrefix(env["UFLINE"], "From \"new_line\"@example.net ") {
		t.Errorf("%q", env)
	}
	if other := read("env2"); other["DEFAULT"] != `x"; touch evil` {
		t.Errorf("%q", other)
	}
	if b, _ := os.ReadFile(filepath.Join(home, "message")); string(b) != "Subject: hello\n\nbody\n" {
		t.Errorf("%q", b)
	}
	if _, err := os.Stat(filepath.Join(home, "evil")); err == nil {
		t.Error("the shell obeyed an address")
	}
}

// TestProgramDeadline: the whole group is killed; what a program leaves behind holds nothing up.
func TestProgramDeadline(t *testing.T) {
	home, d, _ := aliased(t, map[string]string{"slow": "|echo $$ >pid; sleep 600 & sleep 600; echo", "left": "|sleep 600 & echo $! >pid2", "loud": "|yes | head -c 5000000; exit 100"})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "programtimeout"), []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "control"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "programtimeout"), filepath.Join(dir, "control/programtimeout")); err != nil {
		t.Fatal(err)
	}
	snapshot, err := settings.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	d.cfg.Settings = func() *settings.View { return snapshot.View("queue") }
	began := time.Now()
	if r := one(t, d, delivery(1, mail, "slow")); r.Err == nil || r.Err.Reply() != errTimeout.Reply() {
		t.Errorf("%+v", r)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
	b, err := os.ReadFile(filepath.Join(home, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	group := strings.TrimSpace(string(b))
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		text, _ := os.ReadFile(stat)
		_, rest, _ := strings.Cut(string(text), ") ")
		if f := strings.Fields(rest); len(f) > 2 && f[2] == group && f[0] != "Z" {
			t.Errorf("%s lives", stat)
		}
	}
	if r := one(t, d, delivery(2, mail, "left")); r.Err != nil {
		t.Errorf("%+v", r)
	}
	if b, err := os.ReadFile(filepath.Join(home, "pid2")); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && pid > 1 {
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}
	}
	if r := one(t, d, delivery(3, mail, "loud")); r.Err == nil || r.Err.Code != 554 || len(r.Text) > maxSaid {
		t.Errorf("%d bytes, %v", len(r.Text), r.Err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if r := d.Deliver(ctx, delivery(4, mail, "slow"))[0]; r.Err == nil || r.Err.Reply() != errClosing.Reply() {
		t.Errorf("%+v", r)
	}
}

// TestProgramsAtOnce: several recipients' run at the same time, each with the whole message.
func TestProgramsAtOnce(t *testing.T) {
	lines := map[string]string{}
	var names []string
	for i := range 8 {
		name := fmt.Sprint("p", i)
		lines[name], names = fmt.Sprintf("|head -n 1 >/dev/null; cat | wc -c; : %d", i), append(names, name)
	}
	lines["first"] = "|mkfifo f 2>/dev/null; cat f"
	lines["second"] = "|mkfifo f 2>/dev/null; echo met >f"
	_, d, _ := aliased(t, lines)
	body := "Subject: x\r\n\r\n" + strings.Repeat("0123456789\r\n", 1<<16)
	for i, r := range d.Deliver(t.Context(), delivery(1, body, append(names, "first", "second")...)) {
		if r.Err != nil || i == 8 && r.Text != "did 0+0+1/met" {
			t.Errorf("%d: %+v", i, r)
		}
	}
}

// TestProgramAccount: a service that runs as root gives root up for the domain's owner, groups and all; where that is root nothing runs, and
// the mail is tried again.
func TestProgramAccount(t *testing.T) {
	if c, err := programAccount(1000, "/nowhere"); c != nil || err != nil {
		t.Errorf("%+v %v", c, err)
	}
	if os.Geteuid() != 0 {
		missing(t, "root, who alone has rights to give up")
	}
	home, d, o := aliased(t, map[string]string{"who": "|id -u; id -g; id -G; cat /dev/stdin\n&far@elsewhere.test"})
	for _, c := range []struct {
		uid, gid int
		want     string
	}{
		{nobody, nobody, "did 0+1+1/65534/65534/65534/Subject: hello//body/qp 99"},
		{nobody, 0, "did 0+1+1/65534/65534/65534/Subject: hello//body/qp 99"},
		{1, 2, "did 0+1+1/1/2/2/Subject: hello//body/qp 99"},
		{0, nobody, "Not allowed to run the program of this address as root. (#4.3.5)"},
	} {
		if err := os.Chown(home, c.uid, c.gid); err != nil {
			t.Fatal(err)
		}
		o.sent = nil
		r := one(t, d, delivery(queue.ID(c.uid), mail, "who"))
		if refused := c.uid == 0; strings.ReplaceAll(r.Text, "hello/body", "hello//body") != c.want || (r.Err != nil) != refused || refused && (!r.Err.Temporary() || len(o.sent) != 0) {
			t.Errorf("%d:%d: %+v, %d sent on", c.uid, c.gid, r, len(o.sent))
		}
	}
}

func TestOnwardNotify(t *testing.T) {
	for notify, want := range map[string]string{"": "", "NEVER": "NEVER", "SUCCESS": "NEVER", "SUCCESS,DELAY": "DELAY", "FAILURE,DELAY": "FAILURE,DELAY"} {
		if got := onwardNotify(notify); got != want {
			t.Errorf("%s: %s, want %s", notify, got, want)
		}
	}
}

// TestRestart: what is done of an alias is not done again by the process behind it, however that one ended; a message of another queue
// directory with the same number, and another recipient in the place of the first, have nothing done.
func TestRestart(t *testing.T) {
	home, d, _ := aliased(t, map[string]string{
		"x": "|echo a >>\"$HOME/a\"\n|echo b >>\"$HOME/b\"; test -e \"$HOME/go\"\n|echo c >>\"$HOME/c\"; echo never; exit 100\n./m/Maildir/",
		"y": "|echo a >>\"$HOME/a\"",
	})
	file := filepath.Join(t.TempDir(), "donelines")
	restart := func() {
		t.Helper()
		// The process before is not asked to end: it may have been killed.
		c := d.cfg
		c.Memory = file
		d = New(c)
		t.Cleanup(func() { d.Close() })
	}
	ran := func(name string, want int) {
		t.Helper()
		if b, err := os.ReadFile(filepath.Join(home, name)); err != nil || strings.Count(string(b), name) != want {
			t.Errorf("%s ran: %q %v, want %d", name, b, err, want)
		}
	}
	restart()
	birth := time.Now()
	attempt := func(id queue.ID, name string, n int) queue.Result {
		t.Helper()
		dl := delivery(id, mail, name)
		dl.Birth, dl.Attempt = birth, n
		return one(t, d, dl)
	}
	for n := range 3 {
		if r := attempt(1, "x", n); r.Err == nil || !r.Err.Temporary() {
			t.Errorf("%+v", r)
		}
		restart()
		ran("a", 1)
		ran("b", n+1)
		ran("c", 1)
	}
	if files := stored(t, home, "m"); len(files) != 1 {
		t.Errorf("%q", files)
	}
	// A line that a crash tore.
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"id":1,"ind`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	restart()
	other := birth
	birth = birth.Add(time.Hour)
	attempt(1, "x", 0)
	birth = other
	ran("a", 2)
	ran("c", 2)
	attempt(1, "y", 1)
	ran("a", 3)
	restart()
	if err := os.WriteFile(filepath.Join(home, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// The failure of the first attempt is the result.
	if r := attempt(1, "x", 3); r.Err == nil || r.Err.Reply() != "554 5.3.0 never" {
		t.Errorf("%+v", r)
	}
	ran("a", 3)
	ran("c", 2)
	restart()
	// What is over is forgotten, and what is old.
	if got := len(d.past.past); got != 1 {
		t.Errorf("%d are remembered: %v", got, d.past.past)
	}
	d.cfg.Now = func() time.Time { return birth.Add(100 * 24 * time.Hour) }
	restart()
	if len(d.past.past) != 0 {
		t.Errorf("%v are remembered", d.past.past)
	}
}

// TestRememberMany: the file does not grow with what is over.
func TestRememberMany(t *testing.T) {
	var m memory
	file := filepath.Join(t.TempDir(), "donelines")
	if err := m.load(file, time.Now()); err != nil {
		t.Fatal(err)
	}
	defer m.close()
	line := "|" + strings.Repeat("x", 8000)
	for i := range 1000 {
		key := deliveryKey{ID: queue.ID(i + 1), Birth: time.Now().UnixNano()}
		m.put(key, line, fate{})
		if err := m.keep(key); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			if err := m.forget(key); err != nil {
				t.Fatal(err)
			}
		}
	}
	info, err := os.Stat(file)
	if err != nil || info.Size() > 2*maxPastFile || info.Mode().Perm() != 0o600 {
		t.Errorf("%+v %v", info, err)
	}
	var again memory
	if err := again.load(file, time.Now()); err != nil || len(again.past) != 1 || len(again.kept) != 1 {
		t.Errorf("%d %v", len(again.past), err)
	}
}

// TestRememberAfterError: what could not be written, or was cut in the middle, spoils nothing that is written after it.
func TestRememberAfterError(t *testing.T) {
	var m memory
	file := filepath.Join(t.TempDir(), "donelines")
	if err := m.load(file, time.Now()); err != nil {
		t.Fatal(err)
	}
	defer m.close()
	keep := func(id queue.ID) error {
		key := deliveryKey{ID: id, Birth: time.Now().UnixNano()}
		m.put(key, "|x", fate{})
		return m.keep(key)
	}
	if err := keep(1); err != nil {
		t.Fatal(err)
	}
	// As a full disk leaves it.
	if _, err := m.file.WriteString(`{"id":2,"ind`); err != nil {
		t.Fatal(err)
	}
	m.file.Close()
	if err := keep(2); err == nil {
		t.Error("no error")
	}
	if err := keep(3); err != nil {
		t.Error(err)
	}
	var again memory
	if err := again.load(file, time.Now()); err != nil || len(again.past) != 3 {
		t.Errorf("%d are remembered: %v", len(again.past), err)
	}
}

// TestRememberLong: much that is kept is not written anew with each line that is added.
func TestRememberLong(t *testing.T) {
	var m memory
	file := filepath.Join(t.TempDir(), "donelines")
	if err := m.load(file, time.Now()); err != nil {
		t.Fatal(err)
	}
	defer m.close()
	line, anew := "|"+strings.Repeat("x", 32<<10), 0
	var before os.FileInfo
	for i := range 200 {
		key := deliveryKey{ID: queue.ID(i + 1), Birth: time.Now().UnixNano()}
		m.put(key, line, fate{})
		if err := m.keep(key); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if before != nil && !os.SameFile(before, info) {
			anew++
		}
		before = info
	}
	if anew > 10 {
		t.Errorf("written anew %d times", anew)
	}
}
