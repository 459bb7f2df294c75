package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestUserInfoOnServers: vuserinfo tells where the directory is as IndiMail does (wiki 3070-3071, 2561-2565), never its password.
func TestUserInfoOnServers(t *testing.T) {
	in := up(t)
	run := func(args ...string) string {
		t.Helper()
		c := exec.CommandContext(within(t, waiting), string(indigo), args...)
		c.Env = append(os.Environ(), "INDIGO_DATA="+in.Ready.Data)
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
		return string(out)
	}
	maria, postgres := server(t, "mariadb"), server(t, "postgres")
	host := filepath.Join(in.Ready.Data, "control", "host.mysql")
	for i, c := range []struct {
		name, hostMySQL, dsn, want string
	}{
		{"socket", "localhost:indimail:abcdefgh:" + maria.Socket, "", `Sql Database  : localhost\nUnix   Socket : ` + regexp.QuoteMeta(maria.Socket)},
		{"port", "127.0.0.1:indimail:abcdefgh:" + maria.Port + ":nossl", "", `Sql Database  : 127\.0\.0\.1\nTCP/IP Port   : ` + maria.Port + `\nUse SSL       : No`},
		{"postgres", "", postgres.DSN(), `Sql Database  : 127\.0\.0\.1\nTCP/IP Port   : ` + postgres.Port + `\nUse SSL       : No`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.hostMySQL != "" {
				if err := os.WriteFile(host, []byte(c.hostMySQL+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			} else {
				run("settings", "set", "DIRECTORY_DSN", c.dsn)
			}
			domain := fmt.Sprintf("d%d.example", i)
			run("vadddomain", domain, "secret")
			got := run("vadduser", "u@"+domain, "secret") + run("vuserinfo", "-D", domain) + run("db", "server", "--json") + run("vserverinfo", domain)
			want := regexp.MustCompile(`\nMail Store IP : [0-9.]+ \(NonClustered - local\)\nMail Store ID : non-clustered domain\n` + c.want + `\nTable Name    : indimail\n`)
			if n := len(want.FindAllString(got, -1)); n != 3 {
				t.Errorf("%d times %s in\n%s", n, want, got)
			}
			if strings.Contains(got, "abcdefgh") {
				t.Errorf("the database's password is in\n%s", got)
			}
			if !strings.Contains(got, `"user":"indimail"`) || !strings.Contains(got, "database: indimail") || !regexp.MustCompile(`Added On      : \(127\.0\.0\.1\) `).MatchString(got) {
				t.Error(got)
			}
		})
	}
}
