package queue

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/indigomail/indigo/internal/bounce"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/settings"
)

// byName is a Deliverer that decides by the recipient's local part: "ok", "bad" and "later" what they say, "handed" success at a
// host that tells the sender itself.
type byName struct{ sink }

func (b *byName) Deliver(ctx context.Context, d *Delivery) []Result {
	results := b.sink.Deliver(ctx, d)
	for i, r := range d.Recipients {
		switch strings.TrimRight(r.Address.Local, "0123456789") {
		case "bad":
			results[i] = Result{Err: mailerr.New(550, mailerr.Enhanced{5, 1, 1}, "no such user")}
		case "later":
			results[i] = Result{Err: mailerr.New(451, mailerr.Enhanced{4, 2, 2}, "mailbox full")}
		case "handed":
			results[i].Handed = true
		}
	}
	return results
}

// notices gives for each notice that was delivered to the sender its subject and the actions of recipients.
func notices(s *sink) (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, body := range s.body {
		text := s.seen[i] + ": "
		for line := range strings.Lines(body) {
			line = strings.TrimSpace(line)
			if v, ok := strings.CutPrefix(line, "Subject: "); ok && !strings.Contains(text, "notice") {
				text += v
			} else if v, ok := strings.CutPrefix(line, "Final-Recipient: rfc822; "); ok {
				text += " " + v
			} else if v, ok := strings.CutPrefix(line, "Action: "); ok {
				text += "=" + v
			}
		}
		all = append(all, text)
	}
	// Two that go at once may arrive in either order.
	slices.Sort(all)
	return all
}

func TestNotices(t *testing.T) {
	for _, tc := range []struct {
		name   string
		from   string
		to     []string
		notify string
		wait   time.Duration
		want   []string
	}{
		{"a failure", "s@local.test", []string{"bad@far.test"}, "", 0, []string{"s@local.test: failure notice bad@far.test=failed"}},
		{"success is not told", "s@local.test", []string{"ok@far.test"}, "", 0, nil},
		{"never", "s@local.test", []string{"bad@far.test", "later@far.test"}, "NEVER", 9 * 24 * time.Hour, nil},
		{"success asked for, relayed", "s@local.test", []string{"ok@far.test"}, "SUCCESS", 0, []string{"s@local.test: success notice ok@far.test=relayed"}},
		{"success asked for, handed over", "s@local.test", []string{"handed@far.test"}, "SUCCESS", 0, nil},
		{"success asked for, failure not", "s@local.test", []string{"bad@far.test"}, "SUCCESS", 0, nil},
		{"both kinds at once", "s@local.test", []string{"ok@far.test", "bad@far.test"}, "SUCCESS,FAILURE", 0,
			[]string{"s@local.test: failure notice bad@far.test=failed", "s@local.test: success notice ok@far.test=relayed"}},
		{"what failed is told before the rest is over", "s@local.test", []string{"bad@far.test", "bad2@far.test", "later@far.test", "bad@other.test"}, "", time.Hour,
			[]string{"s@local.test: failure notice bad@far.test=failed bad2@far.test=failed bad@other.test=failed"}},
		{"late once, then too late", "s@local.test", []string{"later@far.test"}, "", 9 * 24 * time.Hour,
			[]string{"s@local.test: delay notice later@far.test=delayed", "s@local.test: failure notice later@far.test=failed"}},
		{"delay not asked for", "s@local.test", []string{"later@far.test"}, "FAILURE", 9 * 24 * time.Hour, []string{"s@local.test: failure notice later@far.test=failed"}},
		{"null sender: double bounce, no warning", "", []string{"later@far.test"}, "", 9 * 24 * time.Hour, []string{"postmaster@local.test: failure notice later@far.test=failed"}},
		{"null sender asks in vain", "", []string{"ok@far.test"}, "SUCCESS", 0, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir, local, remote := t.TempDir(), &sink{}, &byName{}
				q := open(t, testConfig(dir, local, remote))
				s, err := q.Begin(t.Context(), 0)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprint(s, "Subject: original\r\n\r\nbody\r\n")
				env := envelope(t, tc.from, tc.to...)
				for i := range env.Recipients {
					env.Recipients[i].Notify = tc.notify
				}
				if err := s.Commit(t.Context(), env); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				// A restart in the middle repeats nothing.
				time.Sleep(tc.wait / 2)
				synctest.Wait()
				q.Shutdown(t.Context())
				q = open(t, testConfig(dir, local, remote))
				time.Sleep(tc.wait / 2)
				synctest.Wait()
				q.Shutdown(t.Context())
				if got := notices(local); fmt.Sprint(got) != fmt.Sprint(tc.want) {
					t.Errorf("\n%q, want\n%q", got, tc.want)
				}
			})
		})
	}
}

// TestBounceSettings: format, size, rules for some senders, the processor, double bounces that nobody wants.
func TestBounceSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, local := t.TempDir(), &sink{}
		snapshot := settingsOf(t, dir, map[string]string{
			"bounceformat": "qsbmf", "bouncesubject": "returned mail", "doublebounceto": "", "bouncemaxbytes": "2000", "bouncelifetime": "3600",
			"bounce.envrules": "quiet@*:BOUNCEQUEUE=/usr/bin/qmail-nullqueue\nmime@*:BOUNCE_FORMAT=dsn,BOUNCEMAXBYTES=1\n",
		})
		var processed, through []string
		c := testConfig(dir+"/q", local, &byName{})
		c.Settings = func() *settings.View { return snapshot.View("queue") }
		c.BounceDoor = func(line string) Submitter {
			through = append(through, line)
			return nowhere{}
		}
		c.Processor = func(_ context.Context, program string, r *bounce.Report) (bool, error) {
			processed = append(processed, program+" "+r.To.String())
			return r.To.Local != "kept", nil
		}
		q := open(t, c)
		for _, from := range []string{"plain@local.test", "quiet@local.test", "mime@local.test", ""} {
			if err := submit(t, q, "Subject: original\r\n\r\nbody\r\n", from, "bad@far.test"); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if len(local.body) != 2 || !strings.Contains(local.body[0], "Subject: returned mail\r\n") || !strings.Contains(local.body[0], "--- Below this line is a copy of the message.") ||
			!strings.Contains(local.body[0], "Return-Path: <plain@local.test>\r\nSubject: original\r\n\r\nbody") {
			t.Errorf("%q", local.body)
		}
		if !strings.Contains(local.body[1], "multipart/report") || !strings.Contains(local.body[1], "text/rfc822-headers") || strings.Contains(local.body[1], "\r\nbody") {
			t.Errorf("%q", local.body[1])
		}
		if fmt.Sprint(through) != "[/usr/bin/qmail-nullqueue]" || processed != nil {
			t.Errorf("through %v, processed %v", through, processed)
		}
		// A large message is bounced without its body; a bounce lives as long as BOUNCELIFETIME says.
		if err := submit(t, q, "Subject: large\r\n\r\n"+strings.Repeat("0123456789\r\n", 500), "plain@local.test", "bad@far.test"); err != nil {
			t.Fatal(err)
		}
		if err := submit(t, q, "Subject: x\r\n\r\n", "", "later@far.test"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if b := local.body[len(local.body)-1]; strings.Contains(b, "0123456789") || !strings.Contains(b, "Subject: large") {
			t.Errorf("%q", b)
		}
		if n := q.Stats().Messages; n != 0 {
			t.Errorf("%d messages left", n)
		}
		q.Shutdown(t.Context())
		snapshot = settingsOf(t, dir, map[string]string{"bounceprocessor": "/some/program"})
		q = open(t, c)
		n := len(local.all())
		for _, from := range []string{"kept@local.test", "other@local.test"} {
			if err := submit(t, q, "Subject: original\r\n\r\nbody\r\n", from, "bad@far.test"); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if fmt.Sprint(processed) != "[/some/program kept@local.test /some/program other@local.test]" || len(local.all()) != n+1 {
			t.Errorf("processed %v, delivered %v", processed, local.all()[n:])
		}
		q.Shutdown(t.Context())
	})
}

// nowhere takes messages and keeps none.
type nowhere struct{}

func (nowhere) Begin(context.Context, int64) (Submission, error) { return nowhere{}, nil }
func (nowhere) Write(p []byte) (int, error)                      { return len(p), nil }
func (nowhere) ID() ID                                           { return 0 }
func (nowhere) Commit(context.Context, Envelope) error           { return nil }
func (nowhere) Abort()                                           {}
