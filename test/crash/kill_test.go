package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/indigomail/indigo/test/instance"
)

const (
	sessions = 8
	// concurrencyRemote bounds the deliveries under way when a kill comes, and so the duplicates that it may cause.
	concurrencyRemote = 10
)

// TestKill floods an instance from several sessions with messages for a local user and for a remote one, and kills it
// with SIGKILL at random moments, also while it starts, again and again. In the end every message that got its 250 must
// be in the Maildir or at the remote server, whole, or have bounced, as it should; none may be twice in the Maildir; and at the remote server only as
// many may be twice as deliveries were under way at each kill.
func TestKill(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("%d rounds; again with -seed %d", *roundsFlag, seed)
	random := rand.New(rand.NewPCG(seed, 0))
	all := bodies()
	remote := startSink(t)
	data := prepare(t, remote)
	acked := &ledger{acked: map[string]promised{}}
	begun := time.Now()
	kills := 0
	for round := range *roundsFlag {
		remote.setLife(round)
		pause := time.Duration(random.IntN(300)) * time.Millisecond
		if random.IntN(10) == 0 {
			killWhileStarting(t, data, pause/3)
			kills++
			continue
		}
		in, err := instance.Up(t.Context(), indigo, data)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		var senders sync.WaitGroup
		for n := range sessions {
			own := rand.New(rand.NewPCG(seed, uint64(round*sessions+n+1)))
			senders.Go(func() {
				flood(in.Address("smtpd.25"), fmt.Sprintf("%d-%d", round, n), own, all, acked)
			})
		}
		timer := time.NewTimer(pause)
		<-timer.C
		in.Kill()
		kills++
		senders.Wait()
	}
	t.Logf("%d kills in %s, %d messages acknowledged", kills, time.Since(begun).Round(time.Millisecond), len(acked.acked))
	remote.setLife(*roundsFlag)
	settle(t, data)
	check(t, data, acked, remote)
}

// prepare makes the data directory.
func prepare(t *testing.T, remote *sink) string {
	t.Helper()
	dir := t.TempDir()
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("a password of no use\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	in, err := instance.Up(t.Context(), indigo, data, "--user", "u", "--password-file", password)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Stop(); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"smtproutes":        "remote.test:" + remote.listener.Addr().String(),
		"relayclients":      "127.0.0.1:",
		"concurrencyremote": fmt.Sprint(concurrencyRemote),
		// Three queues, and one more for what goes out: a message to both has a share in two.
		"queuecount":  "3",
		"domainqueue": "remote.test:QUEUEDIR=slowq",
	} {
		if err := os.WriteFile(filepath.Join(data, "control", name), []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return data
}

// killWhileStarting kills an instance that nobody has spoken to, perhaps while it still reads its queue.
func killWhileStarting(t *testing.T, data string, pause time.Duration) {
	t.Helper()
	in, _, err := instance.Start(indigo, data, "--port-offset", "free")
	if err != nil {
		t.Fatal(err)
	}
	timer := time.NewTimer(pause)
	<-timer.C
	in.Kill()
}

// settle lets an instance deliver all that is left.
func settle(t *testing.T, data string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	in, err := instance.Up(ctx, indigo, data)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := drained(ctx, in); err != nil {
		in.Kill()
		t.Fatalf("%v\n%s", err, in.Log())
	}
	t.Logf("the queue was empty %s after the last start", time.Since(begun).Round(time.Millisecond))
	if err := in.Stop(); err != nil {
		t.Error(err)
	}
}

// drained makes everything due and waits until the queue is empty. What was under way when it made everything due may have
// been deferred since, so it does that again, but no more than once a second: each attempt leaves its trace on the disk.
func drained(ctx context.Context, in *instance.Instance) error {
	var hastened time.Time
	return instance.Await(ctx, "the queue is empty", func() (bool, error) {
		if now := time.Now(); now.Sub(hastened) > time.Second {
			hastened = now
			if _, err := indigo.Run(ctx, "queue", "retry", "--data", in.Ready.Data); err != nil {
				return false, err
			}
		}
		n, err := in.Stats(ctx)
		return n == 0, err
	})
}

// check compares what was acknowledged with what is there.
func check(t *testing.T, data string, acked *ledger, remote *sink) {
	t.Helper()
	for _, reply := range acked.refused {
		t.Errorf("the server refused a good message: %s", reply)
	}
	// A bounce may come again after a kill between its end and that of its message.
	local, bounced := map[string]int{}, map[string]int{}
	files, err := instance.Mail(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if name, ok := identifyBounce(content); ok {
			bounced[name]++
			continue
		}
		name, err := identify(content)
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
		local[name]++
	}
	// Its connections are closed before its books are read.
	remote.close()
	for _, err := range remote.faults {
		t.Errorf("remote server: %v", err)
	}
	lost := 0
	for name, where := range acked.acked {
		if where.local && local[name] == 0 || where.remote && len(remote.taken[name]) == 0 || where.bounced && bounced[name] == 0 {
			lost++
			t.Errorf("message %s got its 250 (for %+v) and is lost: %d in the Maildir, %d at the remote server, %d bounces", name, where, local[name], len(remote.taken[name]), bounced[name])
		}
	}
	for name, n := range local {
		if n > 1 {
			t.Errorf("message %s is %d times in the Maildir", name, n)
		}
	}
	again, most := 0, 0
	repeats := map[int]int{}
	for _, lives := range remote.taken {
		for i, life := range lives[1:] {
			again++
			if life == lives[i] {
				t.Error("the remote server got a message twice from one process")
			}
			repeats[lives[i]]++
			most = max(most, repeats[lives[i]])
		}
	}
	if most > concurrencyRemote {
		t.Errorf("one kill had %d messages sent twice to the remote server: more than the %d deliveries that can have been under way", most, concurrencyRemote)
	}
	if len(acked.acked) < *roundsFlag {
		t.Errorf("only %d messages in %d rounds: this shows nothing", len(acked.acked), *roundsFlag)
	}
	t.Logf("%d messages in the Maildir, none twice; %d bounced; %d at the remote server, %d of them again after a kill (at most %d a kill); %d lost",
		len(local), len(bounced), len(remote.taken), again, most, lost)
}
