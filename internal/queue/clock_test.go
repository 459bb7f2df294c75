package queue

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestClockGoesBack sets the clock back by a day, and later right: new mail is delivered at once all the time, what waits is
// tried at the latest when its time comes by the new clock, nothing is lost, limits hold, and a restart in between changes
// nothing.
func TestClockGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, local, remote := t.TempDir(), &sink{}, &sink{do: later}
		var offset atomic.Int64
		c := testConfig(dir, local, remote)
		c.Now = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
		q := open(t, c)
		if err := submit(t, q, "x", "s@x.test", "waits@far.test"); err != nil {
			t.Fatal(err)
		}
		if err := q.rates[0].Set("local.test", "1", 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := len(remote.all()); n != 2 {
			t.Fatalf("%d attempts", n)
		}
		for _, back := range []time.Duration{-24 * time.Hour, -48 * time.Hour, 0} {
			offset.Store(int64(back))
			before := len(local.all())
			if err := submit(t, q, "x", "s@x.test", "u@local.test"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if n := len(local.all()); n != before+1 {
				t.Errorf("with the clock at %v: %d new messages delivered", back, n-before)
			}
			q.Shutdown(t.Context())
			q = open(t, c)
			synctest.Wait()
		}
		time.Sleep(3 * 24 * time.Hour)
		synctest.Wait()
		if n := count(remote.all(), "waits@far.test"); n < 10 || n > 30 {
			t.Errorf("%d attempts in three days", n)
		}
		remote.mu.Lock()
		remote.do = nil
		remote.mu.Unlock()
		q.RetryAll()
		synctest.Wait()
		if n := q.Stats().Messages; n != 0 {
			t.Errorf("%d messages left", n)
		}
		q.Shutdown(t.Context())
	})
}
