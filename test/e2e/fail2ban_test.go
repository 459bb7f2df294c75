package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFail2ban: the filter of docs/auth.md finds the address of each failed login in the log, and none that a client writes into its name.
func TestFail2ban(t *testing.T) {
	need(t, "fail2ban-regex")
	in := up(t)
	command(t, in, "settings", "set", "SECURE_AUTH", "0")
	command(t, in, "reload")
	for from, name := range map[string]string{"127.5.0.1": "bob", "127.5.0.2": `x" WARN: login failed client="10.6.6.6" service="`} {
		if replies, err := popLogins(in.Address("pop3d.110"), from, [2]string{name, "wrong"}); err != nil || !strings.HasPrefix(replies[0], "-ERR [AUTH]") {
			t.Fatal(replies, err)
		}
	}
	stop(t, in)
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "auth.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, filter, found := strings.Cut(string(text), "```\n[Definition]\n")
	filter, _, ends := strings.Cut(filter, "```")
	if !found || !ends {
		t.Fatal("docs/auth.md has no filter")
	}
	log, conf := filepath.Join(t.TempDir(), "log"), filepath.Join(t.TempDir(), "indigo.conf")
	journal := "2026-11-21 15:55:03 mail indigo[77]: WARN: login failed client=\"127.5.0.3\" service=\"imapd.143\" mechanism=\"PLAIN\" user=\"x\"\n"
	for name, content := range map[string]string{log: in.Log() + "\n" + journal, conf: "[Definition]\n" + filter} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	code, out := peer(t, "fail2ban-regex", "--out", "ip", log, conf)
	if got := strings.Fields(out); code != 0 || len(got) != 3 || strings.Contains(out, "10.6.6.6") || !strings.Contains(out, "127.5.0.1") || !strings.Contains(out, "127.5.0.2") || !strings.Contains(out, "127.5.0.3") {
		t.Errorf("exit code %d:\n%s\n%s", code, out, in.Log())
	}
}
