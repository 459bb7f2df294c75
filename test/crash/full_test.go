package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/test/instance"
)

// small mounts a file system of some bytes, which only root can.
func small(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("INDIGO_REQUIRE_PEERS") != "" {
			t.Fatal("only root can mount a small file system, and INDIGO_REQUIRE_PEERS forbids skipping")
		}
		t.Skip("only root can mount a small file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=0700"); err != nil {
		if os.Getenv("INDIGO_REQUIRE_PEERS") != "" {
			t.Fatalf("mount: %v, and INDIGO_REQUIRE_PEERS forbids skipping", err)
		}
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("umount %s: %v", dir, err)
		}
	})
	return dir
}

// fill takes all the space that is left.
func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// Ever smaller pieces, so that the last byte is taken too.
	for size := 1 << 20; size > 0; size /= 2 {
		for {
			if _, err := f.Write(make([]byte, size)); err != nil {
				if !errors.Is(err, syscall.ENOSPC) {
					t.Fatal(err)
				}
				break
			}
		}
	}
}

// TestFullDisk fills the disk under a running instance: it must say 452 and acknowledge nothing that is not on disk, keep
// serving, and take mail again by itself when there is space.
func TestFullDisk(t *testing.T) {
	for name, minFree := range map[string]string{
		// The queue looks before it leaps.
		"MIN_FREE": "16000000",
		// The write itself fails.
		"ENOSPC": "0",
	} {
		t.Run(name, func(t *testing.T) {
			dir := small(t, "192m")
			data := filepath.Join(dir, "data")
			// The log goes to another disk, as under any supervisor.
			if err := os.Symlink(filepath.Join(t.TempDir(), "log"), data+".log"); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			password := filepath.Join(dir, "password")
			if err := os.WriteFile(password, []byte("a password of no use\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			in, err := instance.Up(ctx, indigo, data, "--user", "u", "--password-file", password)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := in.Stop(); err != nil {
					t.Error(err)
				}
				if t.Failed() {
					t.Log(in.Log())
				}
			}()
			if r, err := indigo.Run(ctx, "settings", "set", "MIN_FREE", minFree, "--data", data); err != nil || r.Code != 0 {
				t.Fatal(err, r.Err)
			}
			if err := in.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			err = instance.Await(ctx, "the setting is in force", func() (bool, error) {
				return strings.Contains(in.Log(), "reload: "), nil
			})
			if err != nil {
				t.Fatal(err)
			}
			acked := map[string]bool{}
			number := 0
			one := func(body []byte) (string, error) {
				s, err := dial(in.Address("smtpd.25"))
				if err != nil {
					return "", err
				}
				defer s.conn.Close()
				if line, err := s.command("250", "EHLO full.test"); err != nil {
					return line, err
				}
				number++
				name := fmt.Sprintf("full-%d", number)
				line, err := s.send("sender@sender.test", compose(name, body), localUser)
				if err == nil {
					acked[name] = true
				}
				return line, err
			}
			all := bodies()
			if line, err := one(all[3]); err != nil {
				t.Fatalf("with space: %q, %v", line, err)
			}

			filler := filepath.Join(dir, "filler")
			fill(t, filler)
			// A log that has room set aside may still take some: nothing says that the first must fail, but soon one must.
			refused := ""
			for range 2000 {
				line, err := one(all[4])
				if err == nil {
					continue
				}
				if !strings.HasPrefix(line, "452 4.3.1") && !strings.HasPrefix(line, "451 4.3.0") {
					t.Fatalf("with a full disk the server says %q (%v); want 452 4.3.1 or 451 4.3.0", line, err)
				}
				refused = line
				break
			}
			if refused == "" {
				t.Fatalf("%d messages were taken with a full disk", len(acked))
			}
			t.Logf("with a full disk: %s", refused)
			if line, err := one(all[5]); err == nil {
				t.Errorf("a large message was taken with a full disk: %s", line)
			}

			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			err = instance.Await(ctx, "mail is taken again", func() (bool, error) {
				_, err := one(all[3])
				return err == nil, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if line, err := one(all[5]); err != nil {
				t.Errorf("a large message after that: %q, %v", line, err)
			}
			err = drained(ctx, in)
			if err != nil {
				left, _ := indigo.Run(t.Context(), "queue", "list", "--data", data)
				t.Fatalf("%v\n%s%s", err, left.Out, left.Err)
			}
			files, err := instance.Mail(data)
			if err != nil {
				t.Fatal(err)
			}
			seen := map[string]int{}
			for _, file := range files {
				content, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				name, err := identify(content)
				if err != nil {
					t.Error(err)
				}
				seen[name]++
			}
			for name := range acked {
				if seen[name] != 1 {
					t.Errorf("%s got its 250 and is %d times in the Maildir", name, seen[name])
				}
			}
			t.Logf("%d messages acknowledged, %d delivered", len(acked), len(seen))
		})
	}
}
