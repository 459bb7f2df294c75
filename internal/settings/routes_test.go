package settings

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/cdb"
)

// TestRoutes reads the forms of wiki 2749-2760 and those of qmail-remote's manual.
func TestRoutes(t *testing.T) {
	for line, want := range map[string]string{
		"example.org:relay.test u p":                                           "example.org relay.test 25 -1s -1s u p  ",
		"example.org:relay.test u p HELOHOST=x.test":                           "example.org relay.test 25 -1s -1s u p  HELOHOST=x.test",
		"example.org:relay.test:587 u p":                                       "example.org relay.test 587 -1s -1s u p  ",
		"example.org:relay.test:587 u p AUTH_SMTP=PLAIN LOGIN,TIMEOUTREMOTE=5": "example.org relay.test 587 -1s -1s u p  AUTH_SMTP=PLAIN LOGIN TIMEOUTREMOTE=5",
		"Example.ORG:relay.test:587:3600:120 u p":                              "example.org relay.test 587 1h0m0s 2m0s u p  ",
		"example.org:relay.test:587:0:120 u p SMTPS=1":                         "example.org relay.test 587 0s 2m0s u p  SMTPS=1",
		"example.org:192.0.2.1::3600:0":                                        "example.org 192.0.2.1 25 1h0m0s 0s    ",
		":relay.test:587":                                                      " relay.test 587 -1s -1s    ",
		":relay.test:587:1:2":                                                  " relay.test 587 1s 2s    ",
		":relay.test:587:1 u p":                                                " relay.test 587 1s -1s u p  ",
		":[2001:db8::1]:587:1:2 u p":                                           " 2001:db8::1 587 1s 2s u p  ",
		":[IPv6:2001:db8::1] u p":                                              " 2001:db8::1 25 -1s -1s u p  ",
		":[192.0.2.1]:26":                                                      " 192.0.2.1 26 -1s -1s    ",
		".example.org:":                                                        ".example.org  25 -1s -1s    ",
		"!@:bounces.test:27":                                                   "!@ bounces.test 27 -1s -1s    ",
		"example.org:127.0.0.1:587 /s":                                         "example.org 127.0.0.1 587 -1s -1s   /s ",
		"example.org:127.0.0.1:587 /me@example.org SMTPS=1":                    "example.org 127.0.0.1 587 -1s -1s   /me@example.org SMTPS=1",
		":relay.test REMOTE_TLS=verify":                                        " relay.test 25 -1s -1s    REMOTE_TLS=verify",
		":relay.test:587:1 REMOTE_TLS_CA=certs/a.pem,TIMEOUTREMOTE=5":          " relay.test 587 1s -1s    REMOTE_TLS_CA=certs/a.pem TIMEOUTREMOTE=5",
		"example.org: REMOTE_TLS=verify":                                       "example.org  25 -1s -1s    REMOTE_TLS=verify",
		"example.org:REMOTE_TLS=verify":                                        "example.org  25 -1s -1s    REMOTE_TLS=verify",
		":relay.test REMOTETLS=a p":                                            " relay.test 25 -1s -1s REMOTETLS=a p  ",
		":relay.test u REMOTE_TLS=verify":                                      " relay.test 25 -1s -1s u REMOTE_TLS=verify  ",
		":relay.test u p:with:colons":                                          " relay.test 25 -1s -1s u p:with:colons  ",
		":relay.test u " + strings.Repeat("a", 40) + " SALTED_PASSWORD=1":      " relay.test 25 -1s -1s u " + strings.Repeat("a", 40) + "  SALTED_PASSWORD=1",
	} {
		r, err := parseRoute(newLoader(""), line)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		var assigns []string
		for _, a := range r.assigns {
			assigns = append(assigns, a.setting.Name+"="+a.value.source.Value)
		}
		seconds := func(d time.Duration) string {
			if d < 0 {
				return "-1s"
			}
			return d.String()
		}
		if got := fmt.Sprintf("%s %s %s %s %s %s %s %s %s", r.Domain, r.Host, r.Port, seconds(r.Penalty), seconds(r.Tolerance), r.User, r.Password, r.Key, strings.Join(assigns, " ")); got != want {
			t.Errorf("%s:\n got %q\nwant %q", line, got, want)
		}
	}
	for _, bad := range []string{
		"example.org", "a b:relay.test", "x:[relay.test]", "x:[192.0.2.1]27", "x:relay.test:0", "x:relay.test:65536", "x:relay.test:25:sEcret", "x:relay.test:25:1:-1", "x:relay.test:25:1:2:3",
		"x:2001:db8::1", "x:relay.test sEcret", "x:relay.test REMOTE_TLS=verify me sEcret", "x:relay.test REMOTE_TLS=sEcret me", "x:relay.test REMOTETLS=verify", "x:relay.test TIMEOUTREMOTE=long", "x:relay.test /", "x:relay.test u sEcret sEcret", "x:relay.test u a sEcret=1", "x:relay.test u sEcret CONTROLDIR=x", "x:relay.test u sEcret TIMEOUTREMOTE=long",
		"x:relay.test u token:", "x:relay.test u token:../sEcret", "x:relay.test u token:control/t SALTED_PASSWORD=1", "x:relay.test u sEcret AUTH_SMTP=CRAM-SHA3", "x:relay.test u sEcret SALTED_PASSWORD=1", "x:bad..host",
	} {
		if _, err := parseRoute(newLoader(""), bad); err == nil || strings.Contains(err.Error(), "sEcret") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestTokenFiles: a file of a token in the password's place, in routes and in remote_auth.
func TestTokenFiles(t *testing.T) {
	r, err := parseRoute(newLoader(""), ":relay.test:587 me token:control/t.token AUTH_SMTP=XOAUTH2")
	if err != nil || r.User != "me" || r.Password != "" || r.TokenFile != "control/t.token" || AuthSMTP.Get((*View)(nil).ForLogin(r.Login)) != "XOAUTH2" {
		t.Errorf("%+v %v", r, err)
	}
	c, err := parseCredentials(newLoader(""), "a@b:me token:/etc/t\n+x:you token:y:\nc@d:me pw\n")
	if err != nil {
		t.Fatal(err)
	}
	if login, found, err := c.Find("a@b"); !found || err != nil || login.TokenFile != "/etc/t" || login.Password != "" {
		t.Errorf("%+v %v", login, err)
	}
}

// TestCredentials finds entries of remote_auth in text and constant database, and uses none that everybody can read.
func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	control := filepath.Join(dir, "control")
	if err := os.Mkdir(control, 0o700); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(control, "remote_auth")
	write := func(text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("# who\nMe@example.org:me p:w HELOHOST=x.test\n=you@example.org:you pw2:\n+info-:info pw3:\n@example.net:net pw4\n[2001:db8::1]:six pw5\nrelay.test:relay pw6\n.\nnonsense\n", 0o600)
	load := func() *Credentials {
		t.Helper()
		s, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		return RemoteAuth.Get(s.View("queue"))
	}
	c := load()
	want := func(c *Credentials, keys []string, want string) {
		t.Helper()
		login, found, err := c.Find(keys...)
		got := "none"
		if found {
			got = login.User + " " + login.Password + " " + login.Where.String()
		}
		if err != nil || got != want {
			t.Errorf("%v: %s %v, want %s", keys, got, err, want)
		}
	}
	want(c, []string{"ME@example.org"}, "me p:w control/remote_auth:2")
	want(c, []string{"nobody@x", "You@example.org"}, "you pw2 control/remote_auth:3")
	want(c, []string{"info-desk@x"}, "info pw3 control/remote_auth:4")
	want(c, []string{"a@example.net", "@example.net"}, "net pw4 control/remote_auth:5")
	want(c, []string{"2001:db8::1"}, "six pw5 control/remote_auth:6")
	want(c, []string{"relay.test"}, "relay pw6 control/remote_auth:7")
	want(c, []string{"nonsense", ""}, "none")
	want(nil, []string{"relay.test"}, "none")
	if login, _, _ := c.Find("me@example.org"); HeloHost.Get((*View)(nil).ForLogin(login)) != "x.test" {
		t.Error("the settings of the entry are not in force")
	}

	// The constant database goes first.
	w, err := cdb.Create(name+".cdb", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{"!me@example.org\x00": "cdb cpw", "!list-": "list lpw", "!broken\x00": "onlyuser", "": "-"} {
		if err := w.Add([]byte(key), []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	c = load()
	want(c, []string{"me@example.org"}, "cdb cpw control/remote_auth.cdb")
	want(c, []string{"list-x"}, "list lpw control/remote_auth.cdb")
	want(c, []string{"you@example.org"}, "you pw2 control/remote_auth:3")
	if _, _, err := c.Find("broken"); err == nil || strings.Contains(err.Error(), "onlyuser") {
		t.Errorf("a broken entry: %v", err)
	}
	if err := c.Safe(); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(name+".cdb", 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.Safe(); err == nil || !strings.Contains(err.Error(), "chmod o= ") {
		t.Errorf("a database that all can read: %v", err)
	}
	if _, err := Load(dir); err == nil || !strings.HasPrefix(err.Error(), "control/remote_auth.cdb:1: everybody can read") {
		t.Errorf("a database that all can read: %v", err)
	}
	if err := os.Remove(name + ".cdb"); err != nil {
		t.Fatal(err)
	}
	for text, line := range map[string]string{
		"a@b:sEcret": "1", "x\n": "1", "ok:u p\n=a@b:u sEcret\n": "2", "ok:u p\nkey:u sEcret TIMEOUTREMOTE=x\n": "2", "a b:u sEcret": "1", ":u sEcret": "1",
	} {
		write(text, 0o600)
		if _, err := Load(dir); err == nil || !strings.HasPrefix(err.Error(), "control/remote_auth:"+line+": ") || strings.Contains(err.Error(), "sEcret") {
			t.Errorf("%q: %v", text, err)
		}
	}
	write("relay.test:u p\n", 0o644)
	if _, err := Load(dir); err == nil || !strings.HasPrefix(err.Error(), "control/remote_auth:1: everybody can read") {
		t.Errorf("a text that all can read: %v", err)
	}
}

// TestRoutesWithPasswordsAreWatched: a password in a file of routes that all can read is a warning, and faults in rules show none.
func TestRoutesWithPasswordsAreWatched(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "control"), 0o700); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "control", "smtproutes")
	if err := os.WriteFile(name, []byte(":relay.test u p\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := Load(dir)
	if err != nil || len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0].String(), "everybody can read") {
		t.Errorf("%v %v", s, err)
	}
	rules := filepath.Join(dir, "control", "rcpt.envrules")
	for _, text := range []string{"*.x:SMTPROUTE=:relay.test u sEcret,sEcret", "SMTPROUTE :relay.test u sEcret"} {
		if err := os.WriteFile(rules, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir); err == nil || strings.Contains(err.Error(), "sEcret") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func FuzzParseRoute(f *testing.F) {
	f.Add("example.org:[2001:db8::1]:587:1:2 u p HELOHOST=x.test,AUTH_SMTP=PLAIN")
	f.Add(":relay /s")
	f.Add("+info-:u p:")
	f.Fuzz(func(t *testing.T, line string) {
		l := newLoader("")
		if r, err := parseRoute(l, line); err == nil && strings.ContainsAny(r.Host+r.User+r.Password, " \t") {
			t.Fatalf("%q: %+v", line, r)
		}
		if c, err := parseCredentials(l, line); err == nil {
			if _, _, err := c.Find(line); err != nil {
				t.Fatal(err)
			}
		}
	})
}
