package e2e

import (
	"bufio"
	"debug/elf"
	"encoding/json"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/indigomail/indigo/test/instance"
)

// tried is what `indigo try --json` prints, as far as the tests need it.
type tried struct {
	Queue     string   `json:"queue_id"`
	MessageID string   `json:"message_id"`
	Delivered bool     `json:"delivered"`
	Received  []string `json:"received"`
}

func try(t *testing.T, in *instance.Instance, args ...string) tried {
	t.Helper()
	var result tried
	if err := json.Unmarshal([]byte(command(t, in, append([]string{"try", "--json"}, args...)...)), &result); err != nil {
		t.Fatal(err)
	}
	if !result.Delivered || result.Queue == "" {
		t.Fatalf("indigo try: %+v", result)
	}
	return result
}

func TestUpTryRestart(t *testing.T) {
	for _, domain := range []string{"", "example.org"} {
		t.Run("domain="+domain, func(t *testing.T) {
			var args []string
			want := "alice@indigo.test"
			if domain != "" {
				args, want = []string{"--domain", domain}, "alice@"+domain
			}
			in := up(t, args...)
			if in.Ready.User != want || in.Ready.Password != password {
				t.Errorf("first line: user %q, password %q; want %q and the given password", in.Ready.User, in.Ready.Password, want)
			}
			for _, service := range []string{"smtpd.25", "smtpd.587", "smtpd.465", "pop3d.110", "pop3d.995", "imapd.143", "imapd.993"} {
				if in.Address(service) == "" {
					t.Errorf("first line: no address of %s", service)
				}
			}
			first := try(t, in)
			passwordOf := passwordFile(t)
			try(t, in, "--user", want, "--password-file", passwordOf)
			before, err := instance.Mail(in.Ready.Data)
			if err != nil {
				t.Fatal(err)
			}
			stop(t, in)

			in2 := again(t, in.Ready.Data)
			after, err := instance.Mail(in.Ready.Data)
			if err != nil {
				t.Fatal(err)
			}
			if len(before) != 2 || len(after) != 2 {
				t.Errorf("%d messages before the restart and %d after it, want 2 and 2", len(before), len(after))
			}
			if in2.Ready.Domain != strings.TrimPrefix(want, "alice@") || in2.Ready.Password != "" {
				t.Errorf("after the restart: domain %q, password %q", in2.Ready.Domain, in2.Ready.Password)
			}
			try(t, in2, "--user", want, "--password-file", passwordOf)
			if story := command(t, in2, "explain", first.Queue); !strings.Contains(story, first.MessageID) {
				t.Errorf("after the restart, explain %s does not know %s:\n%s", first.Queue, first.MessageID, story)
			}
		})
	}
}

func TestExplainDelivered(t *testing.T) {
	in := up(t)
	result := try(t, in)
	var events []map[string]any
	if err := json.Unmarshal([]byte(command(t, in, "explain", result.Queue, "--json")), &events); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]map[string]any{}
	for _, e := range events {
		kinds[fmt.Sprint(e["kind"])] = e
	}
	for _, kind := range []string{"connect", "tls", "auth", "mail", "rcpt", "queued", "delivery", "end"} {
		if kinds[kind] == nil {
			t.Errorf("the story has no %q event", kind)
		}
	}
	if v := kinds["delivery"]["verdict"]; v != "success" {
		t.Errorf("verdict of the delivery is %v, want success", v)
	}
	text := command(t, in, "explain", result.Queue)
	if strings.Contains(text, password) {
		t.Error("the story holds the password")
	}
	if len(result.Received) == 0 {
		t.Error("no Received field")
	}
	byMessageID := command(t, in, "explain", result.MessageID)
	if !strings.Contains(byMessageID, result.Queue) {
		t.Errorf("explain by Message-ID does not name the queue id %s:\n%s", result.Queue, byMessageID)
	}
}

// refusedEvent is the event of a refused recipient.
type refusedEvent struct {
	Kind, Verdict, Check, Setting, Layer, Reply, To string
}

func refusal(t *testing.T, in *instance.Instance, to string) refusedEvent {
	t.Helper()
	var events []refusedEvent
	if err := json.Unmarshal([]byte(command(t, in, "explain", to, "--json")), &events); err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if e.Kind == "rcpt" && e.Verdict == "reject" {
			return e
		}
	}
	t.Fatalf("explain %s tells of no refusal at RCPT: %+v", to, events)
	return refusedEvent{}
}

func TestExplainRefused(t *testing.T) {
	in := up(t)
	address := in.Address("smtpd.25")

	err := send(t, address, "peer@elsewhere.test", []string{"someone@remote.test"}, "Subject: relay\n\nx\n")
	if err == nil || !regexp.MustCompile(`^55[03] .*5\.7\.1`).MatchString(err.Error()) {
		t.Errorf("relay without AUTH: %v, want 550 or 553 with 5.7.1", err)
	}
	if e := refusal(t, in, "someone@remote.test"); e.Check != "relay" || e.Setting != "RELAYCLIENTS" || e.Layer != "default" || !strings.Contains(e.Reply, "5.7.1") {
		t.Errorf("the story of a refused relay must name check, setting RELAYCLIENTS and layer default: %+v", e)
	}

	err = send(t, address, "peer@elsewhere.test", []string{"nobody@indigo.test"}, "Subject: unknown\n\nx\n")
	if err == nil || !regexp.MustCompile(`^550 .*5\.1\.1`).MatchString(err.Error()) {
		t.Errorf("unknown user: %v, want 550 5.1.1", err)
	}
	if e := refusal(t, in, "nobody@indigo.test"); e.Check != "local-user" || !strings.Contains(e.Reply, "5.1.1") {
		t.Errorf("the story of an unknown user must name the check: %+v", e)
	}

	// The layer changes with the file that sets it.
	control(t, in, "relayclients", "10.9.8.7:\n")
	stop(t, in)
	in = again(t, in.Ready.Data)
	if err := send(t, in.Address("smtpd.25"), "peer@elsewhere.test", []string{"other@remote.test"}, "Subject: relay\n\nx\n"); err == nil {
		t.Error("relay for a client that control/relayclients does not name was accepted")
	}
	if e := refusal(t, in, "other@remote.test"); e.Layer == "default" || e.Layer == "" {
		t.Errorf("layer %q, want the control file", e.Layer)
	}
}

func TestReload(t *testing.T) {
	in := up(t)
	message := "Subject: relay\n\nx\n"
	if err := send(t, in.Address("smtpd.25"), "peer@elsewhere.test", []string{"someone@remote.test"}, message); err == nil {
		t.Fatal("relayed before the setting allowed it")
	}
	// Nothing listens there: the message must wait in the queue, which `queue list` shows.
	control(t, in, "smtproutes", fmt.Sprintf("remote.test:127.0.0.1:%d\n", freePort(t)))
	command(t, in, "settings", "set", "RELAYCLIENTS", "127.0.0.1:")
	if err := in.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	err := instance.Await(within(t, waiting), "SIGHUP has taken the setting over", func() (bool, error) {
		return send(t, in.Address("smtpd.25"), "peer@elsewhere.test", []string{"someone@remote.test"}, message) == nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var listed struct {
		ID, Sender string
		Recipients []string
	}
	if err := json.Unmarshal([]byte(command(t, in, "queue", "list", "--json")), &listed); err != nil {
		t.Fatal(err)
	}
	if listed.Sender != "peer@elsewhere.test" || len(listed.Recipients) != 1 || listed.Recipients[0] != "someone@remote.test" {
		t.Errorf("queue list: %+v", listed)
	}
	if n, err := in.Stats(within(t, time.Minute)); n != 1 || err != nil {
		t.Errorf("queue stats: %d messages, %v; want 1", n, err)
	}
}

func TestSecondUpIsRefused(t *testing.T) {
	in := up(t)
	r, err := indigo.Run(within(t, time.Minute), "up", "--data", in.Ready.Data, "--json", "--port-offset", "free")
	if err != nil {
		t.Fatal(err)
	}
	if r.Code == 0 || !strings.Contains(r.Err, fmt.Sprint(in.PID())) {
		t.Errorf("exit code %d; the refusal must name process %d:\n%s", r.Code, in.PID(), r.Err)
	}
	try(t, in)
}

func TestFaultsAtStartAreToldAtOnce(t *testing.T) {
	in := up(t)
	stop(t, in)
	// Two of the seven ports are taken, and two settings are malformed.
	const offset = 21000
	for _, port := range []int{25, 110} {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", offset+port))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	control(t, in, "databytes", "many\n")
	control(t, in, "queuelifetime", "a week\n")
	if err := os.WriteFile(filepath.Join(in.Ready.Data, "certs", "servercert.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := indigo.Run(within(t, time.Minute), "up", "--data", in.Ready.Data, "--json", "--port-offset", fmt.Sprint(offset))
	if err != nil {
		t.Fatal(err)
	}
	if r.Code == 0 || r.Out != "" {
		t.Errorf("exit code %d, output %q; want a failure before anything starts", r.Code, r.Out)
	}
	for _, word := range []string{"smtpd.25", "pop3d.110", "control/databytes:1", "control/queuelifetime:1", "servercert.pem"} {
		if !strings.Contains(r.Err, word) {
			t.Errorf("the faults do not name %s:\n%s", word, r.Err)
		}
	}
}

func TestProgramIsStatic(t *testing.T) {
	f, err := elf.Open(string(indigo))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the program asks for a dynamic loader")
		}
	}
	if libraries, err := f.ImportedLibraries(); len(libraries) > 0 {
		t.Errorf("the program needs %v, %v", libraries, err)
	}
	need(t, "ldd")
	if _, out := peer(t, "ldd", string(indigo)); !strings.Contains(out, "not a dynamic executable") && !strings.Contains(out, "statically linked") {
		t.Errorf("ldd says: %s", out)
	}
}

// TestTermDrains ends an instance in the middle of a message: the message is still taken, no new session is, and the next
// start delivers it if this one did not.
func TestTermDrains(t *testing.T) {
	in := up(t)
	conn, err := net.Dial("tcp", in.Address("smtpd.25"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(waiting)); err != nil {
		t.Fatal(err)
	}
	c := textproto.NewConn(conn)
	exchange := func(code int, format string, args ...any) {
		t.Helper()
		if format != "" {
			if err := c.PrintfLine(format, args...); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := c.ReadResponse(code); err != nil {
			t.Fatalf("%s: %v", format, err)
		}
	}
	exchange(220, "")
	exchange(250, "EHLO peer.test")
	exchange(250, "MAIL FROM:<peer@elsewhere.test>")
	exchange(250, "RCPT TO:<alice@indigo.test>")
	exchange(354, "DATA")
	if err := c.PrintfLine("Subject: drained\r\n\r\nfirst half"); err != nil {
		t.Fatal(err)
	}
	if err := in.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err = instance.Await(within(t, waiting), "new sessions are refused", func() (bool, error) {
		other, err := net.Dial("tcp", in.Address("smtpd.25"))
		if err != nil {
			return true, nil
		}
		other.Close()
		return false, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	exchange(250, "second half\r\n.")
	if line, err := c.ReadLine(); err == nil && !strings.HasPrefix(line, "421 ") {
		t.Errorf("after the message, the server says %q; want 421 or the end", line)
	}
	if err := in.Stop(); err != nil {
		t.Errorf("draining: %v", err)
	}
	in = again(t, in.Ready.Data)
	if mail := awaitMail(t, in, "Subject: drained"); !strings.Contains(mail, "second half") {
		t.Errorf("the message is not whole:\n%s", mail)
	}
}

// TestLogSpeaksQmail checks the lines of a message's way in the log (wiki 1337-1345).
func TestLogSpeaksQmail(t *testing.T) {
	in := up(t)
	id := try(t, in).Queue
	stop(t, in)
	f, err := os.Open(in.Ready.Data + ".log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := []string{
		` new msg ` + id + `$`,
		` info msg ` + id + `: bytes \d+ from <\S+> qp \d+ uid \d+`,
		` starting delivery \d+: msg ` + id + ` to local \S*postmaster@indigo\.test`,
		` status: local \d+/\d+ remote \d+/\d+`,
		` delivery \d+: success: `,
		` end msg ` + id + `$`,
	}
	lines := bufio.NewScanner(f)
	for len(want) > 0 && lines.Scan() {
		if regexp.MustCompile(want[0]).MatchString(lines.Text()) {
			want = want[1:]
		}
	}
	if len(want) > 0 {
		t.Errorf("no line (in order) matches %s in %s", want[0], filepath.Base(f.Name()))
	}
}

func TestLogJSON(t *testing.T) {
	in := up(t, "--log-format", "json")
	try(t, in)
	stop(t, in)
	text, err := os.ReadFile(in.Ready.Data + ".log")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for line := range strings.Lines(string(text)) {
		var record struct{ Time, Level, Event, ID, Result, Text string }
		if err := json.Unmarshal([]byte(line), &record); err != nil || record.Event == "" || record.Time == "" {
			t.Errorf("not a JSON record (%v): %s", err, line)
		}
		seen[record.Event]++
		if record.Event == "delivery" && (record.ID == "" || record.Result != "success" || record.Text != "did 1+0+0") {
			t.Errorf("a delivery: %s", line)
		}
	}
	for _, event := range []string{"new msg", "info msg", "starting delivery", "status", "delivery", "end msg"} {
		if seen[event] == 0 {
			t.Errorf("no event %q", event)
		}
	}
}
