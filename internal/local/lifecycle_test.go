package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/queue"
)

// traffic delivers to names of example.org in turn until the test's change is through, and knows what became of each message.
type traffic struct {
	t    *testing.T
	d    *Deliverer
	stop atomic.Bool
	wait sync.WaitGroup

	mu    sync.Mutex
	taken map[queue.ID]bool
	none  int
}

func deliverTo(t *testing.T, s *directory.Store, names ...string) *traffic {
	t.Helper()
	d := New(Config{Directory: s, Hostname: "mx.example.org", Sync: func(*os.File) error { return nil }})
	t.Cleanup(func() { d.Close() })
	tr := &traffic{t: t, d: d, taken: map[queue.ID]bool{}}
	for worker := range 4 {
		tr.wait.Go(func() {
			for i := 0; !tr.stop.Load(); i++ {
				tr.one(queue.ID(1+worker+4*i), names[i%len(names)])
			}
		})
	}
	return tr
}

// one delivers a message as a queue does: again when it could not be done now.
func (tr *traffic) one(id queue.ID, name string) {
	dl := delivery(id, mail, name)
	for attempt := range 100 {
		dl.Attempt = attempt
		r := tr.d.Deliver(tr.t.Context(), dl)[0]
		if r.Err == nil {
			tr.mu.Lock()
			tr.taken[id] = true
			tr.mu.Unlock()
			return
		}
		if r.Err.Code == 550 {
			tr.mu.Lock()
			tr.none++
			tr.mu.Unlock()
			return
		}
		time.Sleep(time.Millisecond)
	}
	tr.t.Errorf("message %d could not be delivered", id)
}

// end waits for the deliveries, and checks that each that was taken is in home, once, and that no other place below roots has any.
func (tr *traffic) end(home string, roots ...string) {
	tr.t.Helper()
	tr.stop.Store(true)
	tr.wait.Wait()
	list, err := maildir.List(filepath.Join(home, "Maildir"))
	if err != nil {
		tr.t.Fatal(err)
	}
	found := map[string]int{}
	for _, m := range list {
		found[strings.SplitN(strings.SplitN(m.Base, ".Q", 2)[1], "R", 2)[0]]++
	}
	for id := range tr.taken {
		if n := found[fmt.Sprintf("%x", uint64(id))] + found[fmt.Sprint(uint64(id))]; n == 0 {
			tr.t.Errorf("message %d was taken and is not there", id)
		}
	}
	if len(list) != len(tr.taken) {
		tr.t.Errorf("%d messages of %d that were taken", len(list), len(tr.taken))
	}
	for _, root := range roots {
		filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".mx.example.org") && !strings.HasPrefix(path, home+"/") {
				tr.t.Errorf("%s is astray", path)
			}
			return nil
		})
	}
	tr.t.Logf("%d messages delivered, %d refused", len(tr.taken), tr.none)
}

func stores(t *testing.T) (s, other *directory.Store, root string) {
	t.Helper()
	root = t.TempDir()
	for _, p := range []**directory.Store{&s, &other} {
		store, err := directory.Open(t.Context(), directory.Config{Path: root + "/db", MailRoot: root + "/domains", Now: time.Now, Secrets: new(auth.Secrets)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Close() })
		*p = store
	}
	if err := errors.Join(s.AddDomain(t.Context(), "example.org"), s.AddUser(t.Context(), directory.NewUser{Name: "ann", Domain: "example.org"})); err != nil {
		t.Fatal(err)
	}
	return s, other, root
}

// TestRenameUnderDeliveries: another process renames a user back and forth while mail comes in for both names.
func TestRenameUnderDeliveries(t *testing.T) {
	s, other, root := stores(t)
	ann, eve := addr.Address{Local: "ann", Domain: "example.org"}, addr.Address{Local: "eve", Domain: "example.org"}
	tr := deliverTo(t, s, "ann", "eve")
	for range 300 {
		if err := errors.Join(other.RenameUser(t.Context(), ann, eve), other.RenameUser(t.Context(), eve, ann)); err != nil {
			t.Fatal(err)
		}
	}
	u, err := other.User(t.Context(), ann)
	if err != nil {
		t.Fatal(err)
	}
	tr.end(u.Dir, root)
	if tr.none == 0 || len(tr.taken) == 0 {
		t.Error("nothing happened meanwhile")
	}
}

// TestMoveUnderDeliveries: another process moves a home about, on its file system and to another one, while mail comes in.
func TestMoveUnderDeliveries(t *testing.T) {
	s, other, root := stores(t)
	ann := addr.Address{Local: "ann", Domain: "example.org"}
	far, err := os.MkdirTemp("/dev/shm", "indigo")
	if err != nil {
		far = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(far) })
	var here, there unix.Stat_t
	if unix.Stat(root, &here) != nil || unix.Stat(far, &there) != nil || here.Dev == there.Dev {
		missing(t, "another file system than that of the temporary directory, at /dev/shm")
	}
	tr := deliverTo(t, s, "ann")
	last := ""
	for round := range 1 {
		for _, to := range []string{root + "/near/ann", root + "/domains/example.org/ann", far + "/ann", root + "/second/ann", far + "/again", root + "/domains/example.org/ann"} {
			if _, last, err = other.MoveUser(t.Context(), ann, to); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
	}
	if u, err := other.User(t.Context(), ann); err != nil || u.Dir != last {
		t.Errorf("%+v %v, want %s", u, err, last)
	}
	tr.end(last, root, far)
	if tr.none > 0 {
		t.Errorf("%d messages were refused", tr.none)
	}
	for _, dir := range []string{root, far} {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && (strings.HasSuffix(path, ".moved") && d.IsDir() || strings.Contains(path, ".indigo-moving") || strings.Contains(d.Name(), ".part")) {
				t.Errorf("%s was left", path)
			}
			return nil
		})
	}
}

// TestRemoveUnderDeliveries: what is taken for a user who is being removed is in the trash, or in the home.
func TestRemoveUnderDeliveries(t *testing.T) {
	s, other, root := stores(t)
	ann := addr.Address{Local: "ann", Domain: "example.org"}
	tr := deliverTo(t, s, "ann")
	for range 5 {
		if _, err := other.RemoveUser(t.Context(), ann); err != nil {
			t.Fatal(err)
		}
		one, err := other.FindTrash("ann@example.org")
		if err != nil {
			t.Fatal(err)
		}
		if err := other.RestoreTrash(t.Context(), one); err != nil {
			t.Fatal(err)
		}
	}
	u, err := other.User(t.Context(), ann)
	if err != nil {
		t.Fatal(err)
	}
	tr.end(u.Dir, root)
}

// missing skips a test for want of something, unless everything is required.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("INDIGO_REQUIRE_PEERS") != "" {
		t.Fatal("missing: " + what)
	}
	t.Skip("missing: " + what)
}
