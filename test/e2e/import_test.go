package e2e

import (
	"encoding/csv"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var usersFlag = flag.Int("users", 20_000, "how many users TestImportKilled imports; 100,000 take two minutes, most of them to remove the homes again")

// TestImportKilled: an import is killed half way; the same command again gives exactly the file's users.
func TestImportKilled(t *testing.T) {
	users := *usersFlag
	// The instance runs meanwhile: it and the import write to one database.
	in := up(t)
	data, file := in.Ready.Data, filepath.Join(t.TempDir(), "users.csv")
	run := func(args ...string) string { return command(t, in, args...) }
	// The domain comes with a postmaster.
	run("domain", "add", "example.org")
	want := run("user", "export", "example.org")
	var b strings.Builder
	b.WriteString("address,password,name,quota,flags,scram\n")
	for i := range users {
		fmt.Fprintf(&b, "u%06d@example.org,$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1,User %[1]d,%dS,NO_POP,\n", i, i+1)
	}
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	want += strings.SplitN(b.String(), "\n", 2)[1]

	half := exec.CommandContext(within(t, 5*time.Minute), string(indigo), "user", "import", file, "--data", data)
	if err := half.Start(); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		// The first hundred homes lie in the domain's directory, the others a level below.
		if found, _ := filepath.Glob(filepath.Join(data, "domains", "example.org", "*", fmt.Sprintf("u%06d", users/2))); found != nil {
			break
		}
		if time.Since(started) > 5*time.Minute {
			t.Fatal("no half in five minutes")
		}
	}
	if err := half.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := half.Wait(); err == nil {
		t.Fatal("it ended before it was killed")
	}
	reader := csv.NewReader(strings.NewReader(run("user", "export", "example.org")))
	there, err := reader.ReadAll()
	if err != nil || len(there) < users/10 || len(there) >= users {
		t.Fatalf("%d users after the kill: %v", len(there), err)
	}
	t.Logf("killed after %v, with %d users", time.Since(started), len(there)-2)
	started = time.Now()
	report := run("user", "import", file, "--json")
	if !strings.Contains(report, fmt.Sprintf(`"added":%d,"there":%d,"updated":0,"bad":0`, users-(len(there)-2), len(there)-2)) {
		t.Errorf("%s", report)
	}
	t.Logf("%s in %v", strings.TrimSpace(report), time.Since(started))
	if got := run("user", "export", "example.org"); got != want {
		t.Errorf("%d bytes of users, and the file has %d", len(got), len(want))
	}
	var listed []struct{ Dir string }
	if err := json.Unmarshal([]byte(run("user", "list", "example.org", "--json")), &listed); err != nil || len(listed) != users+1 {
		t.Fatalf("%d listed: %v", len(listed), err)
	}
	for _, u := range listed {
		if _, err := os.Stat(filepath.Join(u.Dir, "Maildir", "new")); err != nil {
			t.Fatal(err)
		}
	}
}
