package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/test/instance"
)

// TestUsersForTheHost gives Indigo's users to programs that know nothing of it, by the means of docs/users.md: to NSS and pam_unix by files for
// Debian's libnss-extrausers (what nssd is for, wiki 3581-3611), and to PAM by pam_exec and vchkpass (what pam-multi is for).
func TestUsersForTheHost(t *testing.T) {
	need(t, "unshare", "getent", "pamtester")
	if os.Geteuid() != 0 {
		missing(t, "only root can change what the host's name services are")
	}
	if found, _ := filepath.Glob("/usr/lib*/libnss_extrausers.so.2"); len(found) == 0 {
		missing(t, "libnss-extrausers is not installed")
	}
	if out, err := exec.Command("unshare", "-m", "true").CombinedOutput(); err != nil {
		missing(t, "no mount namespaces here: "+strings.TrimSpace(string(out)))
	}
	program := readable(t)
	dir := folder(t)
	data := filepath.Join(dir, "data")
	in, err := instance.Up(within(t, time.Minute), program, data, "--user", "alice", "--password-file", passwordFile(t))
	if err != nil {
		t.Fatal(err)
	}
	stop(t, in)
	for name, form := range map[string]string{"ann": "SHA512", "bob": "ARGON2ID", "carl": "BCRYPT", "noimap": "SHA512"} {
		run := exec.Command(string(program), "vadduser", "-h", form, name+"@indigo.test", "secret")
		run.Env = append(os.Environ(), "INDIGO_DATA="+data)
		if out, err := run.CombinedOutput(); err != nil {
			t.Fatalf("vadduser: %v: %s", err, out)
		}
	}
	command(t, in, "user", "flags", "noimap@indigo.test", "--set", "NO_IMAP")
	if out, err := exec.Command("chown", "-R", fmt.Sprintf("%d:%[1]d", mailOwner), data).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	vchkpass := filepath.Join(dir, "vchkpass")
	if err := os.Symlink(string(program), vchkpass); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"extra/passwd":   command(t, in, "user", "export", "--format", "passwd"),
		"extra/shadow":   command(t, in, "user", "export", "--format", "shadow"),
		"nsswitch.conf":  "passwd: files extrausers\nshadow: files extrausers\ngroup: files extrausers\n",
		"pam.d/files":    "auth required pam_unix.so nodelay\naccount required pam_unix.so\n",
		"pam.d/vchkpass": "auth sufficient pam_exec.so quiet expose_authtok " + dir + "/ask\nauth required pam_deny.so\naccount required pam_permit.so\n",
		// The one of docs/users.md.
		"ask": "#!/bin/sh\n{ printf '%s\\0' \"$PAM_USER\"; tr -d '\\0'; printf '\\0\\0'; } |\n\tSERVICE=imap TCPREMOTEIP=\"$PAM_RHOST\" INDIGO_DATA=" + data + " " + vchkpass + " /bin/true 3<&0\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o755)
		if name == "extra/shadow" {
			mode = 0o640
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	inside := func(stdin string, args ...string) (code int, out string) {
		t.Helper()
		script := fmt.Sprintf("mount --make-rprivate / && mount --bind %[1]s/extra /var/lib/extrausers && mount --bind %[1]s/nsswitch.conf /etc/nsswitch.conf && mount --bind %[1]s/pam.d /etc/pam.d && exec \"$0\" \"$@\"", dir)
		cmd := exec.CommandContext(within(t, time.Minute), "unshare", append([]string{"-m", "sh", "-c", script}, args...)...)
		cmd.Stdin = strings.NewReader(stdin)
		text, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), string(text)
	}
	want := fmt.Sprintf("ann@indigo.test:x:%d:%[1]d:ann:%s:/usr/sbin/nologin\n", mailOwner, filepath.Join(data, "domains", "indigo.test", "ann"))
	if code, out := inside("", "getent", "passwd", "ann@indigo.test"); code != 0 || out != want {
		t.Errorf("getent: %d %q, want %q", code, out, want)
	}
	if code, out := inside("", "getent", "passwd", "nobody@indigo.test"); code != 2 {
		t.Errorf("getent of nobody: %d %q", code, out)
	}
	for _, c := range []struct {
		service, user, password string
		in                      bool
	}{
		{"files", "ann@indigo.test", "secret", true}, {"files", "ann@indigo.test", "wrong", false}, {"files", "nobody@indigo.test", "secret", false},
		// The host has no argon2id.
		{"files", "bob@indigo.test", "secret", false}, {"files", "noimap@indigo.test", "secret", true},
		{"files", "carl@indigo.test", "secret", true}, {"files", "carl@indigo.test", "wrong", false},
		{"vchkpass", "ann@indigo.test", "secret", true}, {"vchkpass", "ann@indigo.test", "wrong", false}, {"vchkpass", "nobody@indigo.test", "secret", false},
		{"vchkpass", "bob@indigo.test", "secret", true}, {"vchkpass", "noimap@indigo.test", "secret", false},
	} {
		if code, out := inside(c.password+"\n", "pamtester", c.service, c.user, "authenticate", "acct_mgmt"); (code == 0) != c.in {
			t.Errorf("pamtester %s %s %s: %d %q", c.service, c.user, c.password, code, out)
		}
	}
}
