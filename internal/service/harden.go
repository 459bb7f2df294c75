package service

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

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
	writable, err := writableDirs(data, v)
	if err != nil {
		return err
	}
	if base := settings.BasePath.Get(v); base != "" {
		// What is not there yet could not be written to when it is.
		if err := os.MkdirAll(base, 0o700); err != nil {
			log.Warn("BASE_PATH cannot be made", "error", err)
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

// writableDirs are the directories that a hardened process may write in.
func writableDirs(data string, v *settings.View) ([]string, error) {
	absolute, err := filepath.Abs(data)
	if err != nil {
		return nil, err
	}
	writable := []string{absolute, queueBase(absolute, v), os.TempDir(), "/var/tmp", "/dev", "/proc/self"}
	for _, dir := range []string{settings.LogDir.Get(v), settings.BasePath.Get(v)} {
		if filepath.IsAbs(dir) {
			writable = append(writable, dir)
		}
	}
	writable = append(writable, settings.Writable.Get(v)...)
	// What the data directory links to counts as in it.
	for _, name := range []string{"control", "services", "tcp", "certs", "domains", "queue", "log"} {
		if target, err := filepath.EvalSymlinks(filepath.Join(absolute, name)); err == nil {
			writable = append(writable, target)
		}
	}
	return writable, nil
}

// HomesAllowed tells what keeps an instance of data from writing to homes in a directory: HARDENING, unless BASE_PATH or WRITABLE name it.
func HomesAllowed(data, dir string) error {
	snapshot, _ := settings.Inspect(data)
	v := snapshot.View("all")
	if !settings.Hardening.Get(v) {
		return nil
	}
	writable, err := writableDirs(data, v)
	if err != nil {
		return err
	}
	for _, one := range writable {
		if one = filepath.Clean(one); dir == one || strings.HasPrefix(dir, one+"/") {
			return nil
		}
	}
	return fmt.Errorf("%s is not among what a hardened instance may write to: add it to WRITABLE (`indigo settings set WRITABLE ...`) and restart the instance, then do this again", dir)
}
