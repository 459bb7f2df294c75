package directory

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func home(t testing.TB, s *Store, a string) string {
	t.Helper()
	u, err := s.User(t.Context(), address(t, a))
	if err != nil {
		t.Fatal(err)
	}
	return u.Dir
}

func TestTrash(t *testing.T) { onEngines(t, testTrash) }

func testTrash(t *testing.T, dsn string) {
	now := time.Now()
	s := openOn(t, dsn, t.TempDir(), func() time.Time { now = now.Add(time.Microsecond); return now })
	ctx := t.Context()
	at := furnish(t, s)
	ann := address(t, "ann@d.test")
	// eve was never there: the removal of the domain takes her log-in along, as it does all.
	before := s.everything(t)
	dir := home(t, s, "ann@d.test")
	write(t, dir+"/Maildir/new/1.x", "mail")
	u, err := s.User(ctx, ann)
	if err != nil {
		t.Fatal(err)
	}

	place, err := s.RemoveUser(ctx, ann)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(place, rowsFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
	if got := s.everything(t); strings.Contains(strings.ReplaceAll(strings.ReplaceAll(strings.ToLower(got), "sales@d.test&ann@d.test", ""), "other@e.test"+"ann@d.test", ""), " ann@d.test") {
		t.Errorf("left:\n%s", got)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the home is there")
	}
	// What comes from a cache that is late goes after the mail, once nobody has the home.
	write(t, dir+"/Maildir/new/2.x", "late")
	if err := s.TidyUp(ctx); err != nil {
		t.Fatal(err)
	}
	all, err := s.TrashContents()
	if err != nil || len(all) != 1 || all[0].Kind != "user" || all[0].Name != "ann@d.test" || all[0].Users != 1 || !all[0].Removed.Before(now) {
		t.Fatalf("%+v %v", all, err)
	}
	// Somebody of that name keeps it from coming back.
	if err := s.AddUser(ctx, NewUser{Name: "ann", Domain: "d.test"}); err != nil {
		t.Fatal(err)
	}
	if err := s.RestoreTrash(ctx, all[0]); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	if _, err := s.RemoveUser(ctx, ann); err != nil {
		t.Fatal(err)
	}
	two, err := s.FindTrash("ann@d.test")
	if err != nil || two.ID == all[0].ID {
		t.Fatalf("%+v %v", two, err)
	}
	// Nor does it matter that somebody else has the place of the home.
	if _, _, err := s.MoveUser(ctx, address(t, "bob@d.test"), dir); err != nil {
		t.Fatal(err)
	}
	if err := s.RestoreTrash(ctx, all[0]); err != nil {
		t.Fatal(err)
	}
	again, err := s.User(ctx, ann)
	if err != nil || again.Dir != dir+".1" {
		t.Fatalf("%+v %v", again, err)
	}
	// Times are kept to the second.
	u.Changed = u.Changed.Truncate(time.Second)
	if again.Dir = u.Dir; again != u {
		t.Errorf("%+v, was %+v", again, u)
	}
	for _, name := range []string{"1.x", "2.x"} {
		if _, err := os.Stat(dir + ".1/Maildir/new/" + name); err != nil {
			t.Error(err)
		}
	}
	if got := s.everything(t); got != before {
		t.Errorf("%s, want\n%s", got, before)
	}
	if l, err := s.LastLogins(ctx, ann); err != nil || len(l) != 1 || !l[0].At.Equal(at) {
		t.Errorf("%+v %v", l, err)
	}

	// A domain, one of whose homes is elsewhere.
	elsewhere := t.TempDir() + "/b"
	if _, _, err := s.MoveUser(ctx, address(t, "bob@d.test"), elsewhere); err != nil {
		t.Fatal(err)
	}
	write(t, elsewhere+"/Maildir/cur/3.x:2,S", "bob's")
	if _, err := s.RemoveDomain(ctx, "d.test"); err != nil {
		t.Fatal(err)
	}
	if got := s.everything(t); strings.Contains(strings.NewReplacer("other@e.testann@d.test", "").Replace(got), "d.test") {
		t.Errorf("left:\n%s", got)
	}
	if _, err := os.Stat(elsewhere); err == nil {
		t.Error("bob's home is there")
	}
	one, err := s.FindTrash("D.test")
	if err != nil || one.Kind != "domain" || one.Users != 3 {
		t.Fatalf("%+v %v", one, err)
	}
	// A user of a domain that is not there cannot come back.
	if err := s.RestoreTrash(ctx, two); !errors.Is(err, ErrNoDomain) {
		t.Error(err)
	}
	if err := s.RestoreTrash(ctx, one); err != nil {
		t.Fatal(err)
	}
	if got := s.everything(t); got != before {
		t.Errorf("%s, want\n%s", got, before)
	}
	if _, err := os.Stat(elsewhere + "/Maildir/cur/3.x:2,S"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(home(t, s, "ann@d.test") + "/Maildir/new/1.x"); err != nil {
		t.Error(err)
	}
	if d, err := s.Domain(ctx, "d.test"); err != nil || !strings.HasSuffix(d.Dir, "/domains/d.test") {
		t.Errorf("%+v %v", d, err)
	}

	// What is old goes for good.
	if gone, err := s.PurgeTrash(ctx, two.Removed); err != nil || len(gone) != 0 {
		t.Errorf("%v %v", gone, err)
	}
	if gone, err := s.PurgeTrash(ctx, two.Removed.Add(time.Second)); err != nil || len(gone) != 1 || gone[0].ID != two.ID {
		t.Errorf("%v %v", gone, err)
	}
	if all, err := s.TrashContents(); err != nil || len(all) != 0 {
		t.Errorf("%v %v", all, err)
	}
	if _, err := s.FindTrash("ann@d.test"); err == nil {
		t.Error("found what is gone")
	}
}

// TestTrashCutShort: a removal whose mail was not moved any more is finished later; so is a restore.
func TestTrashCutShort(t *testing.T) {
	s := open(t, t.TempDir(), time.Now)
	ctx := t.Context()
	furnish(t, s)
	ann := address(t, "ann@d.test")
	dir := home(t, s, "ann@d.test")
	write(t, dir+"/Maildir/new/1.x", "mail")
	place, err := s.RemoveUser(ctx, ann)
	if err != nil {
		t.Fatal(err)
	}
	// As if the process had ended behind the commit.
	if err := os.Rename(place+"/mail", dir); err != nil {
		t.Fatal(err)
	}
	if err := s.TidyUp(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(place + "/mail/Maildir/new/1.x"); err != nil {
		t.Fatal(err)
	}
	// As if a restore had ended before the rows were back.
	if err := os.Rename(place+"/mail", dir); err != nil {
		t.Fatal(err)
	}
	one, err := s.FindTrash("ann@d.test")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RestoreTrash(ctx, one); err != nil {
		t.Fatal(err)
	}
	if home(t, s, "ann@d.test") != dir {
		t.Error("another home")
	}
	if _, err := os.Stat(dir + "/Maildir/new/1.x"); err != nil {
		t.Error(err)
	}
	// What the trash of an earlier release has can be listed and purged, not restored; what is not of the trash is let alone.
	old := filepath.Join(s.trashRoot(), "20240101T000000.000000-old@d.test")
	write(t, old+"/Maildir/new/1.x", "mail")
	write(t, filepath.Join(s.trashRoot(), "README"), "mine")
	all, err := s.TrashContents()
	if err != nil || len(all) != 1 || all[0].Kind != "" || all[0].Name != "old@d.test" {
		t.Fatalf("%+v %v", all, err)
	}
	if s.RestoreTrash(ctx, all[0]) == nil {
		t.Error("restored without rows")
	}
	if gone, err := s.PurgeTrash(ctx, time.Now()); err != nil || len(gone) != 1 {
		t.Error(gone, err)
	}
	if _, err := os.Stat(filepath.Join(s.trashRoot(), "README")); err != nil {
		t.Error(err)
	}
	if s.DeleteTrash(Trash{Path: dir}) == nil {
		t.Error("a home was purged")
	}
}

// TestRemoveSharedDirectory: what lies below a directory that IndiMail's rows let guess is not taken for the domain's.
func TestRemoveSharedDirectory(t *testing.T) {
	s := open(t, t.TempDir(), time.Now)
	ctx := t.Context()
	shared := t.TempDir()
	write(t, shared+"/precious", "not mail")
	s.row(t, "indigo_domain", "domain", "x.test", "dir", shared)
	s.row(t, "indimail", "pw_name", "a", "pw_domain", "x.test", "pw_passwd", "", "pw_gecos", "", "pw_dir", shared+"/a")
	s.row(t, "indimail", "pw_name", "b", "pw_domain", "x.test", "pw_passwd", "", "pw_gecos", "", "pw_dir", shared+"/mail/A2E/x.test/b")
	write(t, shared+"/a/Maildir/new/1", "")
	write(t, shared+"/mail/A2E/x.test/b/Maildir/new/1", "")
	place, err := s.RemoveDomain(ctx, "x.test")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{shared + "/precious", place + "/mail/Maildir/new/1", place + "/mail.1/b/Maildir/new/1"} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

func TestKeep(t *testing.T) { onEngines(t, testKeep) }

func testKeep(t *testing.T, dsn string) {
	now := time.Now()
	s := openOn(t, dsn, t.TempDir(), func() time.Time { return now })
	ctx := t.Context()
	if err := s.AddDomain(ctx, "d.test"); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		s.row(t, "vlog", "user", "u", "domain", "d.test", "message", "old", "timestamp", now.AddDate(0, 0, -10-i).UTC().Format(stampForm))
	}
	s.row(t, "relay", "email", "a@d.test", "ipaddr", "192.0.2.1", "timestamp", now.Unix()-3600)
	s.row(t, "relay", "email", "a@d.test", "ipaddr", "192.0.2.2", "timestamp", now.Unix()-60)
	if n, err := s.ForgetChanges(ctx, now.AddDate(0, 0, -11).Add(-time.Hour)); err != nil || n != 1 {
		t.Error(n, err)
	}
	if n, err := s.ForgetChanges(ctx, now.AddDate(0, 0, -5)); err != nil || n != 2 {
		t.Error(n, err)
	}
	if n, err := s.ForgetChanges(ctx, now.AddDate(0, 0, -5)); err != nil || n != 0 {
		t.Error(n, err)
	}
	if c, _, err := s.Changes(ctx, "", "", 0, 10); err != nil || len(c) != 1 || c[0].What != "domain added" {
		t.Error(c, err)
	}
	if n, err := s.ClearRelay(ctx, now.Add(-30*time.Minute)); err != nil || n != 1 {
		t.Error(n, err)
	}
	if got := s.column(t, "SELECT ipaddr FROM relay"); got != "192.0.2.2" {
		t.Error(got)
	}
	// The link of a move goes after a day.
	if err := s.AddUser(ctx, NewUser{Name: "a", Domain: "d.test"}); err != nil {
		t.Fatal(err)
	}
	from, to, err := s.MoveUser(ctx, addr.Address{Local: "a", Domain: "d.test"}, t.TempDir()+"/x")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.TidyUp(ctx); err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(from); err != nil || target != to {
		t.Error(target, err)
	}
	now = now.Add(25 * time.Hour)
	if err := s.TidyUp(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(from); err == nil || s.column(t, "SELECT old_dir FROM indigo_moved") != "" {
		t.Error("the link is there")
	}
	if _, err := os.Stat(to + "/Maildir/new"); err != nil {
		t.Error(err)
	}
}
