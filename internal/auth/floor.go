package auth

import (
	"sync"
	"time"
)

const (
	// floorTime is how long the slowest check is remembered, at least; maxFloor bounds what is taken from it.
	floorTime = 5 * time.Minute
	maxFloor  = time.Second
)

// floor is the least time that a wrong password takes: a little more than the slowest check did lately.
type floor struct {
	mu          sync.Mutex
	now, before time.Duration
	began       time.Time
}

// saw is told how long a check took.
func (f *floor) saw(now time.Time, took time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.turn(now)
	f.now = max(f.now, min(took, maxFloor))
}

func (f *floor) least(now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.turn(now)
	slowest := max(f.now, f.before)
	return slowest + slowest/4
}

// turn forgets what is long ago, but never all.
func (f *floor) turn(now time.Time) {
	if now.Sub(f.began) < floorTime {
		return
	}
	if f.now > 0 {
		f.before, f.now = f.now, 0
	}
	f.began = now
}
