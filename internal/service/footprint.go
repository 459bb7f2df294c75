package service

import (
	"bufio"
	"context"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Slim keeps the process small between deliveries, for boards with little memory, until ctx ends: a second after the last one it
// gives back free memory and those pages of its own program that it can read again when it needs them.
func (s *Standalone) Slim(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	before := ^uint64(0)
	for {
		stats := s.queue.Stats()
		if stats.Deliveries != before && stats.LocalRunning+stats.RemoteRunning == 0 {
			before = stats.Deliveries
			debug.FreeOSMemory()
			forgetProgram()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// forgetProgram lets the kernel take back the pages of the program's file that nobody has written. They are read again from the
// page cache on the next touch; failing is no fault.
func forgetProgram() {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer maps.Close()
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[5] != self || strings.Contains(fields[1], "w") {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		a, err := strconv.ParseUint(from, 16, 64)
		if err != nil {
			continue
		}
		b, err := strconv.ParseUint(to, 16, 64)
		if err != nil || b <= a {
			continue
		}
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(a), uintptr(b-a), unix.MADV_DONTNEED)
	}
}
