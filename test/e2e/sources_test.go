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

// TestPasswordSources logs in users of the host, of a program and of the directory, through one chain (wiki 434, 2994-3039), while the serving process
// has given root up and cannot read the host's passwords itself.
func TestPasswordSources(t *testing.T) {
	need(t, "swaks", "unshare")
	if os.Geteuid() != 0 {
		missing(t, "only root can read the host's passwords")
	}
	if out, err := exec.Command("unshare", "-m", "true").CombinedOutput(); err != nil {
		missing(t, "no mount namespaces here: "+strings.TrimSpace(string(out)))
	}
	program := readable(t)
	dir := folder(t)
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// In a mount namespace of the instance's own the host has these users; "secret" and "wiki" by libxcrypt.
	file("passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\nsysann:x:4001:4001:Ann:"+dir+":/bin/sh\nsysbob:x:4002:4002::/home/sysbob:/bin/sh\n", 0o644)
	const (
		yescrypt = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$GmcwIgvdUC9qLWcKCi6gklUa1dM3ziD43YxYNURLKy0"
		sha512   = "$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1"
	)
	file("shadow", "root:"+sha512+":20000:0:99999:7:::\nnobody:*:20000:0:99999:7:::\nsysann:"+yescrypt+":20000:0:99999:7:::\nsysbob:!"+sha512+":20000:0:99999:7:::\n", 0o600)
	inside := file("inside", fmt.Sprintf("#!/bin/sh\nexec unshare -m sh -c 'mount --make-rprivate / && mount --bind %[1]s/passwd /etc/passwd && mount --bind %[1]s/shadow /etc/shadow && exec \"$0\" \"$@\"' %[2]s \"$@\"\n", dir, program), 0o755)
	module := file("module", `#!/bin/sh
given=$(tr '\0' '|' <&3)
case $given in
'down@other.test|'*) exit 111 ;;
'prog@other.test|theirs||') USER=prog@other.test HOME=/nonexistent; export USER HOME; exec "$@" ;;
esac
exit 1
`, 0o755)

	data := filepath.Join(dir, "data")
	in, err := instance.Up(within(t, time.Minute), instance.Program(inside), data, "--user", "alice", "--password-file", passwordFile(t))
	if err != nil {
		t.Fatal(err)
	}
	stop(t, in)
	control(t, in, "runas", "nobody\n")
	control(t, in, "authmodules", "/usr/sbin/sys-checkpwd "+module+" /usr/sbin/vchkpass /bin/false\n")
	if out, err := exec.Command("chown", "-R", "nobody", data).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out := command(t, in, "check"); strings.Contains(out, "AUTHMODULES") {
		t.Errorf("check: %s", out)
	}
	start := func() {
		t.Helper()
		if in, err = instance.Up(within(t, time.Minute), instance.Program(inside), data); err != nil {
			t.Fatal(err)
		}
	}
	start()
	defer func() {
		if err := in.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("end of the log:\n%s", in.Log())
		}
	}()
	login := func(user, password string) string {
		t.Helper()
		_, out := peer(t, "swaks", "--server", in.Address("smtpd.587"), "--tls", "--auth", "PLAIN", "--auth-user", user, "--auth-password", password, "--quit-after", "AUTH")
		for line := range strings.Lines(out) {
			for _, code := range []string{"235", "535", "454"} {
				if strings.HasPrefix(line, "<~  "+code) || strings.HasPrefix(line, "<~* "+code) {
					return code
				}
			}
		}
		return out
	}
	me := strings.TrimSpace(command(t, in, "settings", "get", "ME"))
	for _, c := range []struct{ user, password, code string }{
		{"sysann", "secret", "235"}, {"sysann@" + me, "secret", "235"}, {"sysann", "wrong", "535"}, {"sysann@other.test", "secret", "535"},
		{"sysbob", "secret", "535"}, {"root", "secret", "535"}, {"nobody", "*", "535"},
		{"prog@other.test", "theirs", "235"}, {"prog@other.test", "wrong", "535"}, {"down@other.test", "theirs", "454"},
		{"alice@indigo.test", password, "235"}, {"alice@indigo.test", "wrong", "535"},
	} {
		if got := login(c.user, c.password); got != c.code {
			t.Errorf("%s %s: %s, want %s", c.user, c.password, got, c.code)
		}
	}
	// sys-checkpwd is the same check for others, as the account.
	run := exec.Command(inside, "sys-checkpwd", "sh", "-c", "echo $USER $HOME $(id -u)")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(w, "sysann\x00secret\x00\x00")
	w.Close()
	run.ExtraFiles = []*os.File{r}
	out, err := run.CombinedOutput()
	r.Close()
	if err != nil || string(out) != "sysann "+dir+" 4001\n" {
		t.Errorf("sys-checkpwd: %v: %q", err, out)
	}
	countsFailures(t, in, inside, "sys-checkpwd", "sysann", "secret")
	// A reload takes the host's users away, and brings them back.
	control(t, in, "authmodules", "vchkpass\n")
	command(t, in, "reload")
	if got := login("sysann", "secret"); got != "535" {
		t.Errorf("without sys-checkpwd: %s", got)
	}
	control(t, in, "authmodules", "vchkpass sys-checkpwd\n")
	command(t, in, "reload")
	if got := login("sysann", "secret"); got != "235" {
		t.Errorf("with sys-checkpwd again: %s", got)
	}
	// What is not known without the serving process is not told as if it were; a name with another host's is nobody's.
	namespace := instance.Program(inside)
	whyLogin(t, namespace, in, "smtpd.587", "sysann", "secret", false, "may be able to log in: ")
	whyLogin(t, namespace, in, "smtpd.587", "sysann", "secret", false, "but sys-checkpwd was not asked, which only the serving process may do")
	whyLogin(t, namespace, in, "smtpd.587", "sysann@"+me, "", true, "can log in, over TLS by PLAIN, LOGIN;")
	whyLogin(t, namespace, in, "smtpd.587", "sysann@other.test", "", false, "users of the host have bare names, or end in @"+me)
	// What is wrong is told before a start.
	control(t, in, "authmodules", "vchkpass /nowhere/module\n")
	result, err := indigo.Run(within(t, time.Minute), "check", "--data", data)
	if err != nil || result.Code == 0 || !strings.Contains(result.Out+result.Err, "AUTHMODULES") || !strings.Contains(result.Out+result.Err, "/nowhere/module") {
		t.Errorf("check of a missing module: %v %d %s%s", err, result.Code, result.Out, result.Err)
	}
	control(t, in, "authmodules", "vchkpass\n")
}

// TestPasswordsOfDovecot logs in users whom Debian's Dovecot knows, at Indigo's doors.
func TestPasswordsOfDovecot(t *testing.T) {
	need(t, "dovecot", "swaks", "curl")
	if os.Geteuid() != 0 {
		missing(t, "Dovecot is started by root only")
	}
	dir := folder(t)
	users, socket, down := filepath.Join(dir, "users"), filepath.Join(dir, "auth"), filepath.Join(dir, "down")
	// dan has a mailbox at Indigo's too, and alice another password there.
	text := "dan@indigo.test:{PLAIN}dovecot's\nalice@indigo.test:{PLAIN}dovecot's\nnosmtp@indigo.test:{PLAIN}dovecot's\nfar@other.test:{PLAIN}dovecot's\nbare:{PLAIN}dovecot's\n"
	if err := os.WriteFile(users, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	dovecot(t, fmt.Sprintf(`passdb {
  driver = passwd-file
  args = %s
}
userdb {
  driver = static
  args = uid=%d gid=%[2]d home=/nonexistent
}
service auth {
  unix_listener %[3]s {
    mode = 0600
  }
}
`, users, mailOwner, socket))
	in := up(t)
	for _, name := range []string{"dan", "nosmtp"} {
		command(t, in, "user", "add", name+"@indigo.test", "--password-file", passwordFile(t))
	}
	command(t, in, "user", "flags", "nosmtp@indigo.test", "--set", "NO_SMTP")
	control(t, in, "authmodules", "dovecot:"+socket+" vchkpass\n")
	if out := command(t, in, "check"); strings.Contains(out, "AUTHMODULES") {
		t.Errorf("check: %s", out)
	}
	command(t, in, "reload")
	for _, c := range []struct{ user, password, code, says string }{
		{"dan@indigo.test", "dovecot's", "235", ""}, {"dan@indigo.test", password, "235", ""}, {"dan@indigo.test", "wrong", "535", ""},
		{"alice@indigo.test", "dovecot's", "235", ""}, {"alice@indigo.test", password, "235", ""},
		{"far@other.test", "dovecot's", "235", ""}, {"bare", "dovecot's", "235", ""}, {"nobody@other.test", "dovecot's", "535", ""},
		{"nosmtp@indigo.test", "dovecot's", "535", "switched off"},
	} {
		if code, text := swaksAuth(t, in.Address("smtpd.587"), "PLAIN", c.user, c.password); code != c.code || !strings.Contains(text, c.says) {
			t.Errorf("%s %s: %s, want %s: %s", c.user, c.password, code, c.code, text)
		}
	}
	for _, c := range []struct {
		service, user, password string
		can                     bool
		verdict                 string
	}{
		{"smtpd.587", "dan@indigo.test", "dovecot's", true, "can log in, over TLS by PLAIN, LOGIN;"}, {"smtpd.587", "dan@indigo.test", password, true, "can log in, over TLS by PLAIN, LOGIN;"},
		{"smtpd.587", "dan@indigo.test", "wrong", false, "Dovecot at " + socket + " refused: "}, {"smtpd.587", "far@other.test", "dovecot's", true, "can log in, over TLS by PLAIN, LOGIN;"},
		{"smtpd.587", "far@other.test", "", true, "can log in if dovecot:" + socket + " knows the user"}, {"smtpd.587", "nobody@other.test", "dovecot's", false, "; no such domain"},
		{"smtpd.587", "nosmtp@indigo.test", "dovecot's", false, "NO_SMTP is set for the user"}, {"imapd.993", "dan@indigo.test", "dovecot's", true, "can log in"},
		{"imapd.993", "far@other.test", "dovecot's", false, "there is no mailbox"},
	} {
		whyLogin(t, indigo, in, c.service, c.user, c.password, c.can, c.verdict)
	}
	mailbox := func(user string) (int, string) {
		return peer(t, "curl", "-sS", "-m", "30", "-k", "--url", "imaps://"+in.Address("imapd.993")+"/", "-u", user+":dovecot's")
	}
	if code, out := mailbox("dan@indigo.test"); code != 0 || !strings.Contains(out, "INBOX") {
		t.Errorf("dan's mailbox: %d: %s", code, out)
	}
	if code, out := mailbox("far@other.test"); code != 67 {
		t.Errorf("who has no mailbox: %d: %s", code, out)
	}
	// A Dovecot that is not there is no reason to call a password wrong, nor to keep others out.
	control(t, in, "authmodules", "dovecot:"+down+" vchkpass\n")
	command(t, in, "reload")
	if code, text := swaksAuth(t, in.Address("smtpd.587"), "LOGIN", "far@other.test", "dovecot's"); code != "454" {
		t.Errorf("without Dovecot: %s", text)
	}
	if code, text := swaksAuth(t, in.Address("smtpd.587"), "LOGIN", "alice@indigo.test", password); code != "235" {
		t.Errorf("without Dovecot: %s", text)
	}
	whyLogin(t, indigo, in, "smtpd.587", "far@other.test", "dovecot's", false, "454 4.7.0 temporary authentication failure")
	whyLogin(t, indigo, in, "smtpd.587", "far@other.test", "", true, "; dovecot:"+down+" cannot be asked now")
	whyLogin(t, indigo, in, "smtpd.587", "alice@indigo.test", password, true, "can log in, over TLS by PLAIN, LOGIN;")
	if out := command(t, in, "check"); !strings.Contains(out, "AUTHMODULES: dovecot:"+down) {
		t.Errorf("check: %s", out)
	}
}

// TestPasswordsOfPAM logs in users by PAM: in a mount namespace the host has a PAM service with Debian's pam_unix and users of the test's, which the
// serving process, that has given root up, asks for by its parent and indigo-pam.
func TestPasswordsOfPAM(t *testing.T) {
	need(t, "swaks", "unshare", "gcc")
	if os.Geteuid() != 0 {
		missing(t, "only root can read the host's passwords")
	}
	if _, err := os.Stat("/usr/include/security/pam_appl.h"); err != nil {
		missing(t, "libpam0g-dev is not installed")
	}
	if out, err := exec.Command("unshare", "-m", "true").CombinedOutput(); err != nil {
		missing(t, "no mount namespaces here: "+strings.TrimSpace(string(out)))
	}
	program := readable(t)
	helper := filepath.Join(filepath.Dir(string(program)), "indigo-pam")
	build := exec.Command("go", "build", "-o", helper, ".")
	build.Dir = filepath.Join("..", "..", "cmd", "indigo-pam")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building indigo-pam: %v: %s", err, out)
	}
	dir := folder(t)
	for name, text := range map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\npamann:x:4001:4001:Ann:" + dir + ":/bin/sh\npambob:x:4002:4002::/home/pambob:/bin/sh\nsendmail:x:4003:4003::/:/bin/sh\n",
		// "secret" by libxcrypt; pambob's account has expired.
		"shadow":       strings.ReplaceAll("root:HASH:20000:0:99999:7:::\nnobody:*:20000:0:99999:7:::\npamann:HASH:20000:0:99999:7:::\npambob:HASH:20000:0:99999:7::100:\n", "HASH", "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$GmcwIgvdUC9qLWcKCi6gklUa1dM3ziD43YxYNURLKy0"),
		"pam.d/indigo": "auth sufficient pam_unix.so nodelay\nauth sufficient pam_exec.so quiet expose_authtok " + dir + "/virtual\nauth required pam_deny.so\naccount sufficient pam_exec.so quiet " + dir + "/isvirtual\naccount required pam_unix.so\n",
		"pam.d/broken": "auth required pam_nothere.so\naccount required pam_nothere.so\n",
		"pam.d/other":  "auth required pam_deny.so\naccount required pam_deny.so\n",
		// A user whom only PAM knows, with the address of one of the directory's.
		"virtual":   "#!/bin/sh\n[ \"$PAM_USER\" = alice@indigo.test ] && [ \"$PAM_RHOST\" = 127.0.0.1 ] && [ \"$(tr -d '\\0')\" = \"pam's\" ]\n",
		"isvirtual": "#!/bin/sh\n[ \"$PAM_USER\" = alice@indigo.test ]\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	inside := filepath.Join(dir, "inside")
	text := fmt.Sprintf("#!/bin/sh\nexec unshare -m sh -c 'mount --make-rprivate / && mount --bind %[1]s/passwd /etc/passwd && mount --bind %[1]s/shadow /etc/shadow && mount --bind %[1]s/pam.d /etc/pam.d && exec \"$0\" \"$@\"' %[2]s \"$@\"\n", dir, program)
	if err := os.WriteFile(inside, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "shadow"), 0o600); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	in, err := instance.Up(within(t, time.Minute), instance.Program(inside), data, "--user", "alice", "--password-file", passwordFile(t))
	if err != nil {
		t.Fatal(err)
	}
	stop(t, in)
	control(t, in, "runas", "nobody\n")
	control(t, in, "authmodules", "/usr/sbin/pam-checkpwd vchkpass\n")
	if out, err := exec.Command("chown", "-R", "nobody", data).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	start := func() {
		t.Helper()
		if in, err = instance.Up(within(t, time.Minute), instance.Program(inside), data); err != nil {
			t.Fatal(err)
		}
	}
	start()
	defer func() {
		if err := in.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("end of the log:\n%s", in.Log())
		}
	}()
	want := func(where, user, password, want string) {
		t.Helper()
		if code, text := swaksAuth(t, in.Address("smtpd.587"), "PLAIN", user, password); code != want {
			t.Errorf("%s: %s %s: %s, want %s: %s", where, user, password, code, want, text)
		}
	}
	me := strings.TrimSpace(command(t, in, "settings", "get", "ME"))
	for _, c := range []struct{ user, password, code string }{
		{"pamann", "secret", "235"}, {"pamann@" + me, "secret", "235"}, {"pamann", "wrong", "535"}, {"pamann@other.test", "secret", "535"},
		{"pambob", "secret", "535"}, {"root", "secret", "535"}, {"nobody", "*", "535"}, {"sendmail", "x", "535"},
		{"alice@indigo.test", "pam's", "235"}, {"alice@indigo.test", password, "235"}, {"alice@indigo.test", "wrong", "535"},
	} {
		want("PAM", c.user, c.password, c.code)
	}
	whyLogin(t, program, in, "smtpd.587", "pamann", "", true, "can log in if /usr/sbin/pam-checkpwd knows the user")
	whyLogin(t, program, in, "smtpd.587", "pamann", "secret", false, "but /usr/sbin/pam-checkpwd was not asked, which only the serving process may do")
	whyLogin(t, program, in, "smtpd.587", "alice@indigo.test", password, true, "can log in, over TLS by PLAIN, LOGIN;")
	// pam-checkpwd is the same check for others, as the account.
	check := func(user, password string, args ...string) (code int, out string) {
		t.Helper()
		run := exec.Command(inside, append(append([]string{"pam-checkpwd"}, args...), "sh", "-c", "echo $USER $HOME $(id -u) $PWD")...)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(w, "%s\x00%s\x00\x00", user, password)
		w.Close()
		run.ExtraFiles = []*os.File{r}
		run.Dir, run.Env = "/", []string{"PATH=" + os.Getenv("PATH"), "PAM_SERVICE=indigo", "INDIGO_DATA=/nonexistent"}
		text, err := run.CombinedOutput()
		r.Close()
		if run.ProcessState == nil {
			t.Fatal(err)
		}
		return run.ProcessState.ExitCode(), string(text)
	}
	for _, c := range []struct {
		user, password string
		args           []string
		code           int
		out            string
	}{
		{"pamann", "secret", nil, 0, "pamann " + dir + " 4001 " + dir + "\n"}, {"pamann", "secret", []string{"-H", "--"}, 0, "pamann " + dir + " 4001 /\n"},
		{"pamann", "secret", []string{"-e"}, 0, "0 /\n"}, {"pamann", "wrong", nil, 1, ""}, {"root", "secret", nil, 1, ""},
		{"pamann", "secret", []string{"-s", "nowhere"}, 1, ""}, {"pamann", "secret", []string{"--service", "broken"}, 111, "pam-checkpwd: PAM service broken"},
		{"pamann", "secret", []string{"-i", "x"}, 2, "unknown shorthand"},
	} {
		if code, out := check(c.user, c.password, c.args...); code != c.code || !strings.Contains(out, c.out) {
			t.Errorf("pam-checkpwd %q: %s %s: %d %q, want %d %q", c.args, c.user, c.password, code, out, c.code, c.out)
		}
	}
	countsFailures(t, in, inside, "pam-checkpwd", "pamann", "secret", "PAM_SERVICE=indigo")
	// A service that cannot say makes no wrong password; nor does a helper that others may change, which root does not run.
	stop(t, in)
	control(t, in, "pamservice", "broken\n")
	if err := os.Chown(filepath.Join(data, "control", "pamservice"), mailOwner, mailOwner); err != nil {
		t.Fatal(err)
	}
	start()
	want("broken service", "pamann", "secret", "454")
	want("broken service", "alice@indigo.test", password, "235")
	if err := os.Chmod(helper, 0o777); err != nil {
		t.Fatal(err)
	}
	want("helper that everybody may change", "pamann", "secret", "454")
	if err := os.Remove(helper); err != nil {
		t.Fatal(err)
	}
	want("no helper", "pamann", "secret", "535")
	if out := command(t, in, "check"); !strings.Contains(out, "nor Indigo's indigo-pam: it is passed over") {
		t.Errorf("check: %s", out)
	}
}

// countsFailures: the instance counts what a program of the checkpassword interface finds wrong, for the client's address, and refuses more; where it
// cannot be asked, nobody counts. The exit codes are those of the interface.
func countsFailures(t *testing.T, in *instance.Instance, indigo, program, user, right string, environment ...string) {
	t.Helper()
	check := func(password string, more ...string) (int, string) {
		t.Helper()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(w, "%s\x00%s\x00\x00", user, password)
		w.Close()
		defer r.Close()
		run := exec.Command(indigo, program, "echo", "it ran")
		if len(more) > 0 && strings.HasPrefix(more[0], "/") {
			run.Args, more = []string{indigo, program, more[0], "/bin/false"}, more[1:]
		}
		run.ExtraFiles = []*os.File{r}
		run.Env = append(append([]string{"PATH=" + os.Getenv("PATH"), "INDIGO_DATA=" + in.Ready.Data, "TCPREMOTEIP=192.0.2.7", "SERVICE=imap"}, environment...), more...)
		out, err := run.CombinedOutput()
		if run.ProcessState == nil {
			t.Fatal(err)
		}
		return run.ProcessState.ExitCode(), string(out)
	}
	want := func(what, password string, code int, text string, more ...string) {
		t.Helper()
		if got, out := check(password, more...); got != code || !strings.Contains(out, text) || strings.Contains(out, "it ran") != (code == 0 && text == "it ran") {
			t.Errorf("%s, %s: exit code %d %q, want %d %q", program, what, got, out, code, text)
		}
	}
	limits := map[string]string{"AUTH_EXEMPT": "none", "AUTH_DELAY": "0", "AUTH_LOCK_CLIENT": "3"}
	for name, value := range limits {
		command(t, in, "settings", "set", name, value)
	}
	command(t, in, "reload")
	want("no address", "nought", 1, "", "TCPREMOTEIP=")
	want("counted by who runs it", "nought", 1, "", "INDIGO_COUNTED=1")
	// The next module counts, not one that hands on: who is its user fails nowhere.
	want("handed on", "nought", 0, "", "/bin/true")
	if out := command(t, in, "auth", "locks", "list", "--all", "--json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("%s: counted without an address, or although it was handed on: %s", program, out)
	}
	for _, password := range []string{"one", "two", "two", "three"} {
		want("wrong", password, 1, "")
	}
	if out := command(t, in, "auth", "locks", "list"); !strings.Contains(out, "192.0.2.7") || strings.Contains(out, "127.0.0.1") {
		t.Errorf("%s: locks: %s", program, out)
	}
	want("locked", right, 111, "too many failed logins")
	if out := command(t, in, "explain", "192.0.2.7"); !strings.Contains(out, program+" imapd") || !strings.Contains(out, "auth-lock") {
		t.Errorf("%s: the trace: %s", program, out)
	}
	want("nobody can be asked", right, 0, "it ran", "INDIGO_DATA=/nonexistent")
	want("nobody can be asked, wrong", "four", 1, "", "INDIGO_DATA=/nonexistent")
	command(t, in, "auth", "locks", "clear", "--all")
	want("cleared", right, 0, "it ran")
	for name := range limits {
		command(t, in, "settings", "unset", name)
	}
	command(t, in, "auth", "locks", "clear", "--all")
	command(t, in, "reload")
}
