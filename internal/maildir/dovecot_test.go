package maildir

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDovecot lets Dovecot's maildir backend and Indigo change one Maildir in turn: each must believe the other's maildirsize, and count
// as the other does.
func TestDovecot(t *testing.T) {
	doveadm, err := exec.LookPath("doveadm")
	if err != nil || os.Getuid() != 0 {
		if os.Getenv("INDIGO_REQUIRE_PEERS") != "" {
			t.Fatal("doveadm or root is missing, and INDIGO_REQUIRE_PEERS forbids skipping")
		}
		t.Skip("needs doveadm and root")
	}
	const nobody, nogroup = 65534, 65534
	dir, err := os.MkdirTemp("/tmp", "indigo-dovecot") // its user must get there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "home/Maildir")
	config := filepath.Join(dir, "dovecot.conf")
	err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(config, fmt.Appendf(nil, `base_dir = %[1]s/run
state_dir = %[1]s/run
log_path = /dev/stderr
mail_location = maildir:~/Maildir
mail_plugins = quota
mail_home = %[1]s/home
mail_uid = %[2]d
mail_gid = %[3]d
first_valid_uid = 1
ssl = no
protocols =
userdb {
  driver = static
  args = uid=%[2]d gid=%[3]d home=%[1]s/home
}
plugin {
  quota = maildir:User quota
  quota_rule = *:bytes=1024000
  quota_rule2 = *:messages=20
}
`, dir, nobody, nogroup), 0o600), os.Mkdir(filepath.Join(dir, "home"), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	d, err := OpenDrop(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	own := func() {
		t.Helper()
		if err := filepath.WalkDir(filepath.Join(dir, "home"), func(p string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(p, nobody, nogroup))
		}); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) string {
		t.Helper()
		own()
		c := exec.CommandContext(t.Context(), doveadm, append([]string{"-c", config, "-f", "tab"}, args...)...)
		c.Env, c.Stdin = []string{"USER=u", "HOME=" + dir + "/home", "PATH=" + os.Getenv("PATH")}, strings.NewReader("Subject: by Dovecot\n\nbody\n")
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("doveadm %s: %v: %s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	storage, message := regexp.MustCompile(`STORAGE\t(\d+)\t1000\t`), regexp.MustCompile(`MESSAGE\t(\d+)\t20\t`)
	q := Quota{1024000, 20}
	compare := func(what string, want Use) {
		t.Helper()
		if u := agree(t, path); u != want {
			t.Fatalf("%s: %+v, want %+v", what, u, want)
		}
		before, _ := os.ReadFile(filepath.Join(path, sizeFile))
		out := run("quota", "get")
		s, m := storage.FindStringSubmatch(out), message.FindStringSubmatch(out)
		if s == nil || m == nil || s[1] != fmt.Sprint((want.Bytes+1023)/1024) || m[1] != fmt.Sprint(want.Messages) {
			t.Fatalf("%s: Dovecot says %q, want %+v", what, out, want)
		}
		if after, _ := os.ReadFile(filepath.Join(path, sizeFile)); string(after) != string(before) {
			t.Fatalf("%s: Dovecot did not believe %q and wrote %q", what, before, after)
		}
	}
	for i := range 3 {
		if _, err := put(t, d, fmt.Sprintf("%d.x", i), 10000, q); err != nil {
			t.Fatal(err)
		}
	}
	compare("delivered", Use{30000, 3})
	run("mailbox", "create", "Trash", "a.b")
	run("copy", "Trash", "mailbox", "INBOX", "ALL")
	run("copy", "a.b", "mailbox", "INBOX", "ALL")
	compare("copied by Dovecot", Use{90000, 9})
	if err := os.Remove(filepath.Join(path, sizeFile)); err != nil {
		t.Fatal(err)
	}
	run("quota", "recalc")
	compare("counted by Dovecot", Use{90000, 9})
	if u, err := Recount(path, q); err != nil || u != (Use{90000, 9}) {
		t.Fatal(u, err)
	}
	compare("counted by us", Use{90000, 9})
	list, err := List(path)
	if err != nil || len(list) != 3 {
		t.Fatal(list, err)
	}
	if err := errors.Join(Expunge(&list[0], &list[1])...); err != nil {
		t.Fatal(err)
	}
	compare("removed by us", Use{70000, 7})
	if list, err = List(filepath.Join(path, ".Trash")); err != nil || len(list) != 3 {
		t.Fatal(list, err)
	}
	if err := list[0].Remove(); err != nil {
		t.Fatal(err)
	}
	compare("removed from a folder by us", Use{60000, 6})
	run("flags", "add", `\Deleted`, "mailbox", "a.b", "ALL")
	run("save", "-m", "INBOX")
	run("expunge", "mailbox", "a.b", "ALL")
	u := agree(t, path)
	if u.Messages != 4 || u.Bytes <= 30000 || u.Bytes > 30200 {
		t.Fatalf("saved and expunged by Dovecot: %+v", u)
	}
	compare("saved and expunged by Dovecot", u)
	// Over quota: both refuse, and nothing is counted for it.
	if _, err := put(t, d, "huge", 1024000, q); !errors.Is(err, ErrOverQuota) {
		t.Fatal(err)
	}
	compare("refused", u)
}
