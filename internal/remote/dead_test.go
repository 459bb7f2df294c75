package remote

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/indigomail/indigo/internal/dnsx"
	"github.com/indigomail/indigo/internal/settings"
)

// TestDeadHosts: a host that does not answer is left alone for a minute, then four, nine, ... up to an hour, however many
// deliveries find it dead together, and is used again as soon as it answers.
func TestDeadHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials := 0
		up := false
		good := &peer{}
		d, err := New(Config{
			Resolver: zones{mx: map[string][]dnsx.MX{"far.test": {{Preference: 10, Host: "mx.far.test"}}}, addrs: map[string]string{"mx.far.test": "192.0.2.1"}},
			Settings: func() *settings.View { return nil }, Hostname: func() string { return "here.test" }, Now: time.Now,
			Logger: slog.New(slog.DiscardHandler),
			Dial: func(context.Context, string, string) (net.Conn, error) {
				dials++
				if !up {
					return nil, errors.New("connection refused")
				}
				client, server := net.Pipe()
				go good.serve(server)
				return client, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		try := func() string {
			t.Helper()
			r := d.Deliver(t.Context(), job("far.test", "u"))[0]
			if r.Err == nil {
				return "ok"
			}
			if !r.Err.Temporary() {
				t.Fatal(r.Err)
			}
			return strings.Join(r.Dialogue, "\n")
		}
		for round, pause := range []time.Duration{time.Minute, 4 * time.Minute, 9 * time.Minute, 16 * time.Minute, 25 * time.Minute, 36 * time.Minute, 49 * time.Minute, time.Hour, time.Hour} {
			try()
			if dials != round+1 {
				t.Fatalf("round %d: %d dials", round, dials)
			}
			time.Sleep(pause - time.Second)
			if got := try(); dials != round+1 || !strings.Contains(got, "none of the hosts answered lately") {
				t.Fatalf("round %d: %d dials before the time, %q", round, dials, got)
			}
			time.Sleep(time.Second)
		}
		up = true
		if got := try(); got != "ok" {
			t.Error(got)
		}
		up = false
		time.Sleep(2 * idleFor) // the open connection goes
		n := dials
		try()
		time.Sleep(time.Minute)
		try()
		if dials != n+2 {
			t.Errorf("%d dials in a minute after the host answered once, want 2", dials-n)
		}
	})
}
