package auth

import (
	"math"
	"slices"
	"time"
)

// failures are those of an address or account. level falls by limit/Time. What is done with them here is done with the shared ones by
// shared.lua, in the same steps; a test compares the two.
type failures struct {
	level float64
	last  time.Time
	until time.Time
	since time.Time
	// running counts checks under way, ran is when the last one began; refused those since the lock began.
	running int
	ran     time.Time
	refused uint64
	// leases are those running that the shared count has too.
	leases int
	// untold: something was counted here that the shared count does not have.
	untold bool
	// wrong are the last wrong passwords, hashed.
	wrong [8]uint64
	next  int
}

const (
	// runningTime is how long a check counts as under way after the last one began: a host that dies never says that it is over.
	runningTime = time.Minute
	// wrongTime is how long wrong passwords are remembered after the last failure, at least; twice Limits.Time if that is longer.
	wrongTime = time.Hour
	// leastLevel is what rounding leaves of nothing.
	leastLevel = 1e-6
)

// fall gives f its level at a time.
func (f *failures) fall(limit int, l Limits, now time.Time) {
	over := l.Time.Seconds()
	if over <= 0 || limit <= 0 {
		limit, over = 1, 60
	}
	if passed := now.Sub(f.last); passed > 0 {
		f.level = max(0, f.level-float64(limit)*(float64(passed.Microseconds())/1e6)/over)
		if f.level < leastLevel {
			f.level = 0
		}
		if passed > max(wrongTime, 2*l.Time) {
			f.wrong = [8]uint64{}
		}
	}
	if now.Sub(f.ran) > runningTime {
		f.running = 0
	}
	f.last = now
}

// refuses tells whether a login must not be tried. Many at once are not let in before the first has failed.
func (f *failures) refuses(limit int, l Limits, now time.Time) bool {
	f.fall(limit, l, now)
	return limit > 0 && (f.until.After(now) || f.running > 0 && f.level+float64(f.running)/2 >= float64(limit))
}

func (f *failures) idle() bool { return f.running == 0 && f.level == 0 && f.until.IsZero() }

// remember notes a wrong password, 0 for none, and tells whether it was noted before.
func (f *failures) remember(wrong uint64) (repeated bool) {
	if wrong == 0 {
		return false
	}
	if slices.Contains(f.wrong[:], wrong) {
		return true
	}
	f.wrong[f.next] = wrong
	f.next = (f.next + 1) % len(f.wrong)
	return false
}

// add counts a failure, unless the same wrong password failed before.
func (f *failures) add(wrong uint64, limit int, l Limits, now time.Time) (repeated bool) {
	f.fall(limit, l, now)
	if f.remember(wrong) {
		return true
	}
	f.level++
	return false
}

// lock locks when the limit is reached.
func (f *failures) lock(limit int, l Limits, now time.Time) bool {
	// The level falls while replies are kept back: the last one counts as begun.
	if limit <= 0 || f.until.After(now) || f.level <= float64(limit)-0.99 {
		return false
	}
	f.since, f.until, f.refused = now, now.Add(l.Time), 0
	return true
}

func (f *failures) shown(by, name string, now time.Time) Lock {
	one := Lock{By: by, Name: name, Failures: whole(f.level)}
	if f.until.After(now) {
		one.Since, one.Until, one.Refused = f.since, f.until, f.refused
	}
	return one
}

// whole gives the failures that a level stands for. The level falls while replies are kept back, so a little less than one counts as one.
func whole(level float64) int { return int(math.Ceil(level - 0.01)) }
