package smtpd

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/tlsx"
	"github.com/indigomail/indigo/internal/trace"
)

// taken is what a fake queue took.
type taken struct {
	queue.Envelope
	content string
}

// fakeQueue keeps what is committed.
type fakeQueue struct {
	mu       sync.Mutex
	last     queue.ID
	messages []taken
	aborted  int
	// begin and commit are the errors to give; write comes from the write after which more than room bytes were taken.
	begin, commit, write error
	room                 int
	// panics makes Write panic.
	panics bool
}

type fakeSubmission struct {
	q    *fakeQueue
	id   queue.ID
	data bytes.Buffer
	done bool
}

func (q *fakeQueue) Begin(context.Context, int64) (queue.Submission, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.begin != nil {
		return nil, q.begin
	}
	q.last++
	return &fakeSubmission{q: q, id: q.last}, nil
}

func (s *fakeSubmission) ID() queue.ID { return s.id }

func (s *fakeSubmission) Write(p []byte) (int, error) {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	if s.q.panics {
		panic("queue on fire")
	}
	s.data.Write(p)
	if s.q.write != nil && s.data.Len() > s.q.room {
		return 0, s.q.write
	}
	return len(p), nil
}

func (s *fakeSubmission) finish() {
	if s.done {
		panic("Commit or Abort called twice")
	}
	s.done = true
}

func (s *fakeSubmission) Commit(ctx context.Context, env queue.Envelope) error {
	s.finish()
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	if s.q.commit != nil {
		return s.q.commit
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.q.messages = append(s.q.messages, taken{env, s.data.String()})
	return nil
}

func (s *fakeSubmission) Abort() {
	s.finish()
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	s.q.aborted++
}

// set changes q between a session's commands.
func (q *fakeQueue) set(change func(*fakeQueue)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	change(q)
}

func (q *fakeQueue) aborts() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.aborted
}

func (q *fakeQueue) taken() []taken {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]taken(nil), q.messages...)
}

// book is a directory with one domain and two users.
type book struct{}

func (book) Domain(_ context.Context, name string) (directory.Domain, error) {
	switch strings.ToLower(name) {
	case "here.example":
		return directory.Domain{Name: name}, nil
	case "broken.example":
		return directory.Domain{}, io.ErrUnexpectedEOF
	}
	return directory.Domain{}, directory.ErrNoDomain
}

func (b book) User(ctx context.Context, a addr.Address) (directory.User, error) {
	if _, err := b.Domain(ctx, a.Domain); err != nil {
		return directory.User{}, err
	}
	switch a.Key() {
	case "ann@here.example", "bob@here.example", "postmaster@here.example", "jürgen@here.example":
		return directory.User{}, nil
	}
	return directory.User{}, directory.ErrNoUser
}

const password = "s3cret-Pass"

// oneUser knows ann@here.example.
type oneUser struct{}

func (oneUser) Verify(_ context.Context, a auth.Attempt) (auth.Identity, error) {
	switch {
	case a.User == "down":
		return auth.Identity{}, mailerr.New(454, mailerr.Enhanced{4, 7, 0}, "temporary authentication failure (#4.7.0)")
	case a.User != "ann@here.example" || a.Password != password:
		return auth.Identity{}, mailerr.New(535, mailerr.Enhanced{5, 7, 8}, "authorization failed (#5.7.8)")
	}
	return auth.Identity{Address: addr.Address{Local: "ann", Domain: "here.example"}}, nil
}

// noSecrets is an authority that can only compare passwords.
type noSecrets struct{ auth.Verifier }

func (noSecrets) Before(context.Context, auth.Attempt) (bool, error)        { return false, nil }
func (noSecrets) After(context.Context, auth.Attempt, auth.Identity, error) {}
func (noSecrets) Decoy(_ context.Context, a auth.Attempt) []byte            { return []byte(a.User) }
func (noSecrets) Forms(context.Context) (directory.Forms, error)            { return directory.Forms{}, nil }
func (noSecrets) Tokens() bool                                              { return false }
func (noSecrets) Token(context.Context, auth.Attempt) (auth.Identity, error) {
	panic("no tokens are taken")
}
func (noSecrets) Secrets(context.Context, auth.Attempt) (auth.Identity, sasl.Secrets, error) {
	return auth.Identity{}, sasl.Secrets{}, sasl.Failed(nil)
}

func (noSecrets) Identify(context.Context, auth.Attempt) (auth.Identity, error) {
	panic("nobody can have proved anything")
}

func (noSecrets) Admit(context.Context, auth.Identity, auth.Attempt) error {
	panic("nobody can have proved anything")
}

// inClear is oneUser where it is seen that her password is kept in clear.
type inClear struct{ noSecrets }

func (inClear) Secrets(_ context.Context, a auth.Attempt) (auth.Identity, sasl.Secrets, error) {
	switch a.User {
	case "ann@here.example":
		return auth.Identity{}, sasl.Secrets{Clear: password}, nil
	case "down":
		return auth.Identity{}, sasl.Secrets{}, mailerr.New(454, mailerr.Enhanced{4, 7, 0}, "temporary authentication failure (#4.7.0)")
	}
	return auth.Identity{}, sasl.Secrets{}, sasl.Failed(nil)
}

func (inClear) Identify(_ context.Context, a auth.Attempt) (auth.Identity, error) {
	if a.User != "ann@here.example" {
		panic("not whom to admit")
	}
	return auth.Identity{Address: addr.Address{Local: "ann", Domain: "here.example"}}, nil
}

func (inClear) Admit(_ context.Context, identity auth.Identity, a auth.Attempt) error {
	if identity.Address.Local != "ann" || a.Password != "" || a.Service == "" || !a.Client.IsValid() || a.Mechanism == "" {
		panic("not what to admit")
	}
	return nil
}

func (inClear) Forms(context.Context) (directory.Forms, error) {
	return directory.Forms{Clear: true}, nil
}

// recorder keeps the trace.
type recorder struct {
	mu     sync.Mutex
	events []trace.Event
}

func (r *recorder) Record(e trace.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func (r *recorder) all() []trace.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]trace.Event(nil), r.events...)
}

// safeBuffer takes the log.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// view gives the view of smtpd.25 with these control files.
func view(t testing.TB, control map[string]string) *settings.View {
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

var testTLS = sync.OnceValue(func() *tls.Config {
	dir, err := os.MkdirTemp("", "smtpd")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "cert.pem")
	if err := tlsx.SelfSigned(file, []string{"mx.here.example"}, time.Now()); err != nil {
		panic(err)
	}
	store, err := tlsx.NewStore(file)
	if err != nil {
		panic(err)
	}
	return store.ServerConfig(func() tlsx.Options { return tlsx.Options{} })
})

// fixture is a Server with everything around it faked.
type fixture struct {
	*Server
	queue *fakeQueue
	trace *recorder
	log   *safeBuffer
	addr  string
}

func clock() time.Time { return time.Date(2022, 10, 21, 23, 4, 36, 0, time.FixedZone("", 5*3600+1800)) }

// newFixture makes a Server that does not listen yet.
func newFixture(t testing.TB, control map[string]string, change func(*Config)) *fixture {
	t.Helper()
	f := &fixture{queue: &fakeQueue{last: 37165}, trace: &recorder{}, log: &safeBuffer{}}
	files := map[string]string{"defaultdomain": "here.example"}
	for name, value := range control {
		files[name] = value
	}
	v := view(t, files)
	config := Config{
		Service: "smtpd.25", Hostname: "mx.here.example", Settings: func() *settings.View { return v },
		TLS: testTLS(), Policy: policy.New(policy.Config{Directory: book{}}), Queue: f.queue, Auth: noSecrets{oneUser{}},
		Trace: f.trace, Logger: slog.New(slog.NewTextHandler(f.log, nil)), Now: clock, PID: 77,
		NewSessionID: func() string { return "s1" },
	}
	if change != nil {
		change(&config)
	}
	f.Server = New(config)
	return f
}

// start makes a Server that listens on loopback until the test ends.
func start(t testing.TB, control map[string]string, change func(*Config)) *fixture {
	t.Helper()
	f := newFixture(t, control, change)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = l.Addr().String()
	served := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { served <- f.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return f
}

// client is the other end of a session.
type client struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

func newClient(t testing.TB, conn net.Conn) *client {
	return &client{t, conn, bufio.NewReader(conn)}
}

func (f *fixture) dial(t testing.TB) *client {
	t.Helper()
	conn, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return newClient(t, conn)
}

// send writes raw bytes.
func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, s); err != nil {
		c.t.Fatalf("send %.60q: %v", s, err)
	}
}

// reply reads one reply, of several lines perhaps, without its last CRLF.
func (c *client) reply() string {
	c.t.Helper()
	var all strings.Builder
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			c.t.Fatalf("after %q %q: %v", all.String(), line, err)
		}
		all.WriteString(line)
		if len(line) < 4 || line[3] != '-' {
			return strings.TrimSuffix(all.String(), "\r\n")
		}
	}
}

// want reads a reply that begins with prefix.
func (c *client) want(prefix string) string {
	c.t.Helper()
	r := c.reply()
	if !strings.HasPrefix(r, prefix) {
		c.t.Fatalf("got %q, want %q", r, prefix)
	}
	return r
}

// do sends a line and reads its reply.
func (c *client) do(line, prefix string) string {
	c.t.Helper()
	c.send(line + "\r\n")
	r := c.reply()
	if !strings.HasPrefix(r, prefix) {
		c.t.Fatalf("%.80s: got %q, want %q", line, r, prefix)
	}
	return r
}

// gone reads the end of the connection.
func (c *client) gone() {
	c.t.Helper()
	if b, err := io.ReadAll(c.r); len(b) > 0 || err != nil && !strings.Contains(err.Error(), "reset") {
		c.t.Fatalf("want the end, got %q, %v", b, err)
	}
}

// startTLS goes over to TLS, behind STARTTLS or at once.
func (c *client) startTLS() {
	c.t.Helper()
	conn := tls.Client(c.conn, &tls.Config{InsecureSkipVerify: true})
	if err := conn.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	c.conn, c.r = conn, bufio.NewReader(conn)
}

func (book) DomainRoom(context.Context, string, maildir.Use) (bool, error) { return true, nil }

func (book) Denied(context.Context, directory.User, directory.Flags) (string, error) { return "", nil }

func (book) Aliases(context.Context, addr.Address) ([]string, error) {
	return nil, directory.ErrNoAlias
}
