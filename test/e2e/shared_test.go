package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/test/instance"
	"github.com/indigomail/indigo/test/redisserver"
)

// sharingHosts starts two hosts, a.test and b.test, each with its own directory and alice in it, that share failed logins.
func sharingHosts(t *testing.T, url string, more map[string]string) (hosts [2]*instance.Instance) {
	t.Helper()
	for i := range hosts {
		data := filepath.Join(folder(t), "data")
		write := func(name, value string) {
			t.Helper()
			if err := os.MkdirAll(filepath.Dir(filepath.Join(data, name)), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(data, name), []byte(value+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("authkey", strings.Repeat("0123456789abcdef", 4))
		in := again(t, data, "--user", "alice", "--password-file", passwordFile(t))
		stop(t, in)
		settings := map[string]string{"redisurl": url, "secure_auth": "0", "auth_exempt": "none", "auth_delay": "0", "auth_lock_client": "4", "auth_lock_account": "6", "me": "ab"[i:i+1] + ".test"}
		for name, value := range more {
			settings[name] = value
		}
		for name, value := range settings {
			write("control/"+name, value)
		}
		hosts[i] = again(t, data)
	}
	return hosts
}

// shared waits until a host says of the shared counts what is wanted.
func shared(t *testing.T, in *instance.Instance, want string) {
	t.Helper()
	var last instance.Result
	err := instance.Await(within(t, waiting), "shared: "+want, func() (bool, error) {
		r, err := indigo.Run(within(t, waiting), "auth", "locks", "shared", "--data", in.Ready.Data)
		last = r
		return strings.Contains(r.Out, want) && (r.Code == 0) == strings.Contains(r.Out, "up since"), err
	})
	if err != nil {
		t.Fatalf("%v: %+v", err, last)
	}
}

// login gives what POP3 says to alice from an address, and how long that took.
func login(t *testing.T, in *instance.Instance, from, secret string) (reply string, took time.Duration) {
	t.Helper()
	began := time.Now()
	replies, err := popLogins(in.Address("pop3d.110"), from, [2]string{"alice@indigo.test", secret})
	if err != nil || len(replies) != 1 {
		t.Fatal(replies, err)
	}
	return replies[0], time.Since(began)
}

func wants(t *testing.T, in *instance.Instance, from, secret, want string) {
	t.Helper()
	if got, _ := login(t, in, from, secret); !strings.HasPrefix(got, want) {
		t.Errorf("%s from %s: %q, want %s", filepath.Base(filepath.Dir(in.Ready.Data)), from, got, want)
	}
}

const (
	letIn     = "+OK"
	wrongOne  = "-ERR [AUTH]"
	refusedIt = "-ERR [SYS/TEMP] too many failed logins"
)

// TestSharedLogins: two hosts that share failed logins by a server of Redis's protocol; what becomes of them when it dies, stops, comes back
// empty, and does not let them in.
func TestSharedLogins(t *testing.T) {
	server := redisserver.For(t, redisserver.Config{Password: "a secret"})
	hosts := sharingHosts(t, server.URL(), nil)
	a, b := hosts[0], hosts[1]
	shared(t, a, "by a.test, b.test")
	// Wrong ones at a lock at b.
	wants(t, a, "127.3.0.1", password, letIn)
	for i := range 4 {
		wants(t, a, "127.4.0.1", fmt.Sprint("one", i), wrongOne)
	}
	wants(t, b, "127.4.0.1", password, refusedIt)
	for i := range 2 {
		wants(t, b, "127.4.0.2", fmt.Sprint("two", i), wrongOne)
	}
	wants(t, a, "127.4.0.9", password, refusedIt)
	wants(t, b, "127.4.0.9", password, refusedIt)
	// The right user gets in at b from where a knows her.
	wants(t, b, "127.3.0.1", password, letIn)
	if out := command(t, a, "auth", "locks", "list"); !strings.Contains(out, "alice@indigo.test") || !strings.Contains(out, "127.4.0.1 ") || !strings.Contains(out, "shared: up since ") {
		t.Errorf("the list has\n%s", out)
	}
	// Cleared at b, and so at a.
	if out := command(t, b, "auth", "locks", "clear", "alice@indigo.test"); out != "cleared: 1\n" {
		t.Error(out)
	}
	wants(t, a, "127.4.0.9", password, letIn)
	wants(t, a, "127.4.0.1", password, refusedIt)
	command(t, b, "auth", "locks", "clear", "--all")
	wants(t, a, "127.4.0.1", password, letIn)
	if out := command(t, a, "auth", "locks", "list", "--all", "--json"); out != "[]\n" {
		t.Error(out)
	}

	// An account has one count by all names of its domain.
	byName := func(in *instance.Instance, from, user, secret, want string) {
		t.Helper()
		replies, err := popLogins(in.Address("pop3d.110"), from, [2]string{user, secret})
		if err != nil || len(replies) != 1 || !strings.HasPrefix(replies[0], want) {
			t.Errorf("%s from %s: %q %v, want %s", user, from, replies, err, want)
		}
	}
	for i, in := range hosts {
		command(t, in, "domain", "alias", "add", "also.test", "indigo.test")
		for n, user := range []string{"alice@also.test", "alice@indigo.test", "Alice@ALSO.test"} {
			byName(in, fmt.Sprintf("127.6.%d.%d", i, n+1), user, fmt.Sprint("alias", i, n), wrongOne)
		}
	}
	for i, in := range hosts {
		for n, user := range []string{"alice@also.test", "alice@indigo.test"} {
			byName(in, fmt.Sprintf("127.6.2.%d", 2*i+n), user, password, refusedIt)
			byName(in, fmt.Sprintf("127.6.3.%d", 2*i+n), strings.Replace(user, "alice", "bob", 1), password, wrongOne)
		}
		byName(in, "127.3.0.1", "alice@also.test", password, letIn)
	}
	if out := command(t, a, "auth", "locks", "list"); !strings.Contains(out, "alice@indigo.test") || strings.Contains(out, "also.test") {
		t.Errorf("the list has\n%s", out)
	}
	if out := command(t, b, "auth", "locks", "clear", "Alice@also.test"); out != "cleared: 1\n" {
		t.Error(out)
	}
	byName(a, "127.6.4.1", "alice@also.test", password, letIn)
	command(t, b, "auth", "locks", "clear", "--all")

	// The server is dead: each host counts by itself, and knows what was locked before.
	for i := range 4 {
		wants(t, a, "127.4.0.3", fmt.Sprint("three", i), wrongOne)
	}
	wants(t, b, "127.4.0.3", password, refusedIt)
	server.Kill()
	shared(t, a, "down since ")
	shared(t, b, "down since ")
	wants(t, b, "127.4.0.3", password, refusedIt)
	wants(t, b, "127.4.0.5", password, letIn)
	command(t, a, "auth", "locks", "clear", "alice@indigo.test")
	for i := range 4 {
		wants(t, a, "127.4.0.4", fmt.Sprint("four", i), wrongOne)
	}
	wants(t, a, "127.4.0.4", password, refusedIt)
	wants(t, b, "127.4.0.4", "at b", wrongOne)
	if out := command(t, a, "auth", "locks", "list"); !strings.Contains(out, "each host counts by itself") {
		t.Errorf("the list has\n%s", out)
	}
	r, err := indigo.Run(within(t, waiting), "auth", "locks", "clear", "127.4.0.3", "--data", a.Ready.Data)
	if err != nil || r.Out != "cleared: 1\n" || !strings.Contains(r.Err, "cleared at this host") {
		t.Errorf("%+v %v", r, err)
	}
	// It is back, and knows nothing: the hosts bring what they know, but for what was cleared.
	if err := server.Again(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	shared(t, a, "up since ")
	shared(t, b, "up since ")
	wants(t, b, "127.4.0.4", "five", refusedIt)
	wants(t, b, "127.4.0.3", password, letIn)

	// It is stopped: nobody waits for longer than is said.
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	most := time.Duration(0)
	for i := range 20 {
		reply, took := login(t, a, fmt.Sprintf("127.5.0.%d", i+1), password)
		if most = max(most, took); !strings.HasPrefix(reply, letIn) {
			t.Error(reply)
		}
	}
	t.Logf("beside a server that is stopped, the slowest of 20 logins took %v", most)
	if most > 2*time.Second {
		t.Errorf("a login took %v", most)
	}
	shared(t, a, "down since ")
	if err := server.Continue(); err != nil {
		t.Fatal(err)
	}
	shared(t, a, "up since ")

	// A wrong password, and what is wrong with the file; a reload that fails changes nothing.
	file := filepath.Join(a.Ready.Data, "control", "redisurl")
	reload := func(text string, mode os.FileMode, want string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(file, []byte(text+"\n"), 0o600), os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
		r, err := indigo.Run(within(t, waiting), "reload", "--data", a.Ready.Data)
		if err != nil || (r.Code == 0) != (want == "") || !strings.Contains(r.Err, want) || strings.Contains(r.Err, "hunter2") {
			t.Errorf("%s: %+v %v", text, r, err)
		}
		r, err = indigo.Run(within(t, waiting), "check", "--data", a.Ready.Data)
		// That has "error:" between the two.
		_, tail, _ := strings.Cut(want, ":1: ")
		if err != nil || !strings.Contains(r.Out+r.Err, tail) || strings.Contains(r.Out+r.Err, "hunter2") {
			t.Errorf("%s: %+v %v", want, r, err)
		}
	}
	reload("http://u:hunter2@127.0.0.1:6379", 0o600, "control/redisurl:1: REDIS_URL: does not begin with redis://")
	reload("redis://u:hunter2/@127.0.0.1:6379", 0o600, "control/redisurl:1: REDIS_URL: ")
	reload(server.URL(), 0o644, "control/redisurl:1: REDIS_URL: others may read or change the password in it")
	shared(t, a, "up since ")
	reload("redis://:hunter2@127.0.0.1:"+server.Port, 0o600, "")
	shared(t, a, "WRONGPASS")
	wants(t, a, "127.5.1.1", password, letIn)
	reload("", 0o600, "")
	if out := command(t, a, "auth", "locks", "shared"); out != "shared: no (REDIS_URL is not set)\n" {
		t.Error(out)
	}
	reload(server.SocketURL(), 0o600, "")
	shared(t, a, "up since ")
	for _, in := range hosts {
		if text := in.Log(); strings.Contains(text, "hunter2") || strings.Contains(text, "a secret") || strings.Contains(text, "a%20secret") {
			t.Errorf("the log has a password:\n%s", text)
		}
	}
	// The log has said it once for each time.
	if n := strings.Count(b.Log(), "the server that hosts share does not answer"); n > 3 {
		t.Errorf("%d times:\n%s", n, b.Log())
	}
}

// TestSharedLoginsTLS: over TLS, as a user who has no more rights than docs/several-hosts.md gives him; started while the server is down.
func TestSharedLoginsTLS(t *testing.T) {
	server := redisserver.For(t, redisserver.Config{TLS: true, User: "indigo", Password: "a secret", Rules: documentedRules(t)})
	ca := filepath.Join(folder(t), "ca.pem")
	text, err := os.ReadFile(server.CA)
	if err == nil {
		err = os.WriteFile(ca, text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	server.Kill()
	hosts := sharingHosts(t, server.URL(), map[string]string{"redisca": ca})
	a, b := hosts[0], hosts[1]
	shared(t, a, "down since ")
	wants(t, a, "127.3.0.1", password, letIn)
	if err := server.Again(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	shared(t, a, "up since ")
	shared(t, b, "by a.test, b.test")
	for i := range 4 {
		wants(t, a, "127.4.0.1", fmt.Sprint("one", i), wrongOne)
	}
	wants(t, b, "127.4.0.1", password, refusedIt)
	command(t, b, "auth", "locks", "clear", "127.4.0.1")
	wants(t, a, "127.4.0.1", password, letIn)
	shared(t, a, "up since ")
}

// documentedRules gives the rights of the user in docs/several-hosts.md's `ACL SETUSER indigo …`.
func documentedRules(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/several-hosts.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "ACL SETUSER indigo on >PASSWORD "); ok {
			return rest
		}
	}
	t.Fatal("docs/several-hosts.md has no ACL")
	return ""
}

// TestDirectoryToldToHosts: with the directory in MariaDB, a user whom a command adds at one host is known at the other at once.
func TestDirectoryToldToHosts(t *testing.T) {
	db, server := server(t, "mariadb"), redisserver.For(t, redisserver.Config{})
	var hosts []*instance.Instance
	for range 2 {
		data := filepath.Join(folder(t), "data")
		if err := os.MkdirAll(filepath.Join(data, "control"), 0o700); err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{"directorydsn": db.DSN(), "redisurl": server.URL()} {
			if err := os.WriteFile(filepath.Join(data, "control", name), []byte(value+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if len(hosts) == 0 {
			hosts = append(hosts, again(t, data, "--user", "alice", "--password-file", passwordFile(t)))
		} else {
			hosts = append(hosts, again(t, data))
		}
	}
	for _, in := range hosts {
		err := instance.Await(within(t, waiting), "others tell", func() (bool, error) {
			r, err := indigo.Run(within(t, waiting), "db", "cache", "--json", "--data", in.Ready.Data)
			return strings.Contains(r.Out, `"listening":true`) || strings.Contains(r.Out, `"listening": true`), err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	count := func() string {
		t.Helper()
		out, err := server.Do(within(t, waiting), "INFO", "commandstats")
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(out, "cmdstat_publish:calls=")
		n, _, _ := strings.Cut(rest, ",")
		return n
	}
	before := count()
	command(t, hosts[0], "user", "add", "bob@indigo.test", "--password-file", passwordFile(t))
	if after := count(); after == before {
		t.Errorf("the command told nobody: %q messages before, %q after", before, after)
	}
}
