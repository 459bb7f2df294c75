package directory

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/maildir"
)

// TestDomainUse adds up a domain with limits, believes the sum for a minute, and adds what it is told of meanwhile.
func TestDomainUse(t *testing.T) {
	now := time.Unix(1700000000, 0)
	s := openOn(t, "", t.TempDir(), func() time.Time { return now })
	ctx := t.Context()
	if err := s.AddDomain(ctx, "example.org"); err != nil {
		t.Fatal(err)
	}
	home := func(i int) string {
		return filepath.Join(s.config.MailRoot, "example.org", fmt.Sprintf("u%d", i), "Maildir")
	}
	for i, quota := range []string{"", "5000S", "NOQUOTA"} {
		if err := s.AddUser(ctx, NewUser{Name: fmt.Sprintf("u%d", i), Domain: "example.org", Password: "x", Quota: quota}); err != nil {
			t.Fatal(err)
		}
	}
	put := func(i, n int) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(home(i), "new", fmt.Sprintf("%d.x,S=%d", n, n)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	room := func(bytes int64, want bool) {
		t.Helper()
		if got, err := s.DomainRoom(ctx, "Example.ORG", maildir.Use{Bytes: bytes, Messages: 1}); err != nil || got != want {
			t.Fatalf("room for %d: %v %v", bytes, got, err)
		}
	}
	put(0, 100)
	put(1, 200)
	room(1<<40, true) // no limits
	if _, err := os.Stat(filepath.Join(home(0), "maildirsize")); err == nil {
		t.Fatal("counted without a limit")
	}
	if err := s.SetLimits(ctx, "example.org", func(l *Limits) error { l.DiskQuota, l.MaxMessages = 1000, 6; return nil }); err != nil {
		t.Fatal(err)
	}
	room(700, true)
	room(701, false)
	s.DomainGrew("example.org", maildir.Use{Bytes: 300, Messages: 1})
	room(400, true)
	room(401, false)
	put(2, 50) // by another host
	if _, err := maildir.Recount(home(2), maildir.Quota{}); err != nil {
		t.Fatal(err)
	}
	room(400, true)
	now = now.Add(domainUseLife + time.Second)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := s.DomainUse(ctx, "example.org"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	room(650, true) // what was told of is not there
	room(651, false)
	// By number.
	if err := s.SetLimits(ctx, "example.org", func(l *Limits) error { l.DiskQuota, l.MaxMessages = -1, 3; return nil }); err != nil {
		t.Fatal(err)
	}
	room(1, false)
	if _, err := s.DomainRoom(ctx, "nowhere.test", maildir.Use{}); err == nil {
		t.Error("room in no domain")
	}
	// Without a database the last sum stands.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	now = now.Add(2 * domainUseLife)
	if u, err := s.DomainUse(ctx, "example.org"); err != nil || u != (maildir.Use{Bytes: 350, Messages: 3}) {
		t.Error(u, err)
	}
	if _, err := s.DomainUse(ctx, "example.net"); err == nil {
		t.Error("a sum from nowhere")
	}
}

// TestHardQuota gives new users the default quota of the domain, or else the host's.
func TestHardQuota(t *testing.T) {
	s := openOn(t, "", t.TempDir(), time.Now)
	ctx := t.Context()
	if err := s.AddDomain(ctx, "example.org"); err != nil {
		t.Fatal(err)
	}
	n := 0
	added := func(want string) {
		t.Helper()
		n++
		u := NewUser{Name: fmt.Sprintf("u%d", n), Domain: "example.org", Password: "x"}
		if err := s.AddUser(ctx, u); err != nil {
			t.Fatal(err)
		}
		if got, err := s.User(ctx, u.Address()); err != nil || got.Quota != want {
			t.Errorf("%q %v, want %s", got.Quota, err, want)
		}
	}
	limit := func(bytes, messages int64) {
		t.Helper()
		if err := s.SetLimits(ctx, "example.org", func(l *Limits) error { l.DefaultQuota, l.DefaultMessages = bytes, messages; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	added("NOQUOTA")
	s.config.HardQuota = "5242880"
	added("5242880")
	limit(100, -1)
	added("100")
	limit(100, 5)
	added("100S,5C")
	limit(-1, 5)
	added("0S,5C")
	limit(-1, -1)
	s.config.HardQuota = "lots"
	if err := s.AddUser(ctx, NewUser{Name: "x", Domain: "example.org", Password: "x"}); err == nil {
		t.Error("a malformed default was taken")
	}
}
