package service

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/settings"
)

// Harden gives up what a serving process never needs, for it and the programs that it runs: privileges of set-user-ID
// files, and with Landlock writing outside of the data directory, the queues, the logs, /tmp and what WRITABLE names.
// Reading and running stay possible everywhere that the account may, since operators' programs lie anywhere. Where the
// kernel has no Landlock, the rest holds. The process's memory cannot be read by others of its account.
func Harden(data string, v *settings.View, log *slog.Logger) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("not dumpable: %w", err)
	}
	if !settings.Hardening.Get(v) {
		return nil
	}
	absolute, err := filepath.Abs(data)
	if err != nil {
		return err
	}
	writable := []string{absolute, queueBase(absolute, v), os.TempDir(), "/var/tmp", "/dev", "/proc/self"}
	if dir := settings.LogDir.Get(v); filepath.IsAbs(dir) {
		writable = append(writable, dir)
	}
	writable = append(writable, settings.Writable.Get(v)...)
	// What the data directory links to counts as in it.
	for _, name := range []string{"control", "services", "tcp", "certs", "domains", "queue", "log"} {
		if target, err := filepath.EvalSymlinks(filepath.Join(absolute, name)); err == nil {
			writable = append(writable, target)
		}
	}
	err = landlock.V5.BestEffort().RestrictPaths(
		landlock.RODirs("/"),
		landlock.RWDirs(writable...).IgnoreIfMissing().WithRefer().WithIoctlDev(),
	)
	if err != nil {
		log.Warn("Landlock is not in force: " + err.Error())
	}
	return nil
}
