package e2e

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestCrash floods a daemon from several sessions and kills it with SIGKILL at random moments, again and again. Every
// message that got its 250 must be in the Maildir in the end, and none twice.
func TestCrash(t *testing.T) {
	const sessions = 8
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d rounds", seed, *rounds)
	random := rand.New(rand.NewPCG(seed, 1))
	data := filepath.Join(t.TempDir(), "data")
	i := up(t, data, "--user", "u")
	var mu sync.Mutex
	acknowledged := map[string]bool{}
	for round := range *rounds {
		var senders sync.WaitGroup
		for n := range sessions {
			senders.Go(func() {
				flood(i.Services["smtpd.25"], fmt.Sprintf("m%d.%d", round, n), "u@"+i.Domain, func(name string) {
					mu.Lock()
					defer mu.Unlock()
					acknowledged[name] = true
				})
			})
		}
		timer := time.NewTimer(time.Duration(5+random.IntN(150)) * time.Millisecond)
		<-timer.C
		i.kill()
		senders.Wait()
		i = up(t, data)
	}
	wait(t, "empty queue", func() bool {
		return strings.Contains(must(t, "queue", "stats", "--json", "--data", data), `"messages":0,`)
	})
	seen := map[string]int{}
	subject := regexp.MustCompile(`(?m)^Subject: (.*)$`)
	for _, sub := range []string{"new", "cur"} {
		files, err := filepath.Glob(filepath.Join(data, "domains", i.Domain, "u", "Maildir", sub, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			m := subject.FindSubmatch(b)
			if m == nil || !strings.HasSuffix(string(b), "\nend\n") {
				t.Fatalf("%s is damaged", f)
			}
			seen[string(m[1])]++
		}
	}
	for name := range acknowledged {
		if seen[name] == 0 {
			t.Errorf("%s was acknowledged and is lost", name)
		}
	}
	for name, n := range seen {
		if n > 1 {
			t.Errorf("%s was delivered %d times", name, n)
		}
	}
	if len(acknowledged) < *rounds {
		t.Errorf("only %d messages in %d rounds: the test shows nothing", len(acknowledged), *rounds)
	}
	t.Logf("%d messages acknowledged, %d delivered, %d kills", len(acknowledged), len(seen), *rounds)
}

// flood sends numbered messages until the connection dies.
func flood(address, prefix, to string, accepted func(string)) {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	r := bufio.NewReader(conn)
	talk := func(command, want string) bool {
		if command != "" {
			if _, err := conn.Write([]byte(command)); err != nil {
				return false
			}
		}
		for {
			line, err := r.ReadString('\n')
			if err != nil || !strings.HasPrefix(line, want) {
				return false
			}
			if line[3] == ' ' {
				return true
			}
		}
	}
	if !talk("", "220") || !talk("EHLO crash.test\r\n", "250") {
		return
	}
	body := strings.Repeat("0123456789abcdef0123456789abcdef0123456789abcdef\r\n", 40)
	for n := 0; ; n++ {
		name := fmt.Sprintf("%s.%d", prefix, n)
		if !talk("MAIL FROM:<s@crash.test>\r\n", "250") || !talk("RCPT TO:<"+to+">\r\n", "250") || !talk("DATA\r\n", "354") ||
			!talk("Subject: "+name+"\r\n\r\n"+body+"end\r\n.\r\n", "250") {
			return
		}
		accepted(name)
	}
}
