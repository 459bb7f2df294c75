package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/settings"
)

// limited is a directory whose users all have one quota.
type limited struct {
	home, quota string
	// domain is how many messages its domain has room for, nil for any number.
	domain *atomic.Int64
}

func (l limited) User(_ context.Context, a addr.Address) (directory.User, error) {
	return directory.User{Name: a.Local, Domain: a.Domain, Dir: filepath.Join(l.home, a.Local), Quota: l.quota}, nil
}

// Aliases knows the lines that files of a folder have.
func (l limited) Aliases(ctx context.Context, a addr.Address) ([]string, error) {
	return homes(l.home).Aliases(ctx, a)
}

func (l limited) Domain(_ context.Context, name string) (directory.Domain, error) {
	return directory.Domain{Name: name, Dir: l.home}, nil
}

func (l limited) DomainRoom(_ context.Context, domain string, _ maildir.Use) (bool, error) {
	if domain == "broken.test" {
		return false, errors.New("database is gone")
	}
	return l.domain == nil || l.domain.Load() > 0, nil
}

func (l limited) DomainGrew(_ string, by maildir.Use) {
	if l.domain != nil {
		l.domain.Add(-by.Messages)
	}
}

func limitedStation(t testing.TB, users Directory, control map[string]string, sync func(*os.File) error) *Deliverer {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "control"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, value := range control {
		if err := os.WriteFile(filepath.Join(dir, "control", name), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	snapshot, err := settings.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if sync == nil {
		sync = func(*os.File) error { return nil }
	}
	now := time.Unix(1700000000, 0)
	var ticks atomic.Int64
	d := New(Config{
		Directory: users, Hostname: "mx.example.org", Settings: func() *settings.View { return snapshot.View("queue") }, Sync: sync,
		Now: func() time.Time { return now.Add(time.Duration(ticks.Add(1))) },
	})
	t.Cleanup(func() { d.Close() })
	return d
}

// holds fails unless ann's maildirsize says what is there.
func holds(t *testing.T, home string) maildir.Use {
	t.Helper()
	path := filepath.Join(home, "ann/Maildir")
	bytes, messages, err := maildir.Usage(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(path, "maildirsize")); err != nil {
		t.Fatal(err)
	}
	countedBytes, counted, err := maildir.Usage(path)
	if err != nil || bytes != countedBytes || messages != counted {
		t.Fatalf("maildirsize says %d bytes in %d messages, there are %d in %d (%v)", bytes, messages, countedBytes, counted, err)
	}
	return maildir.Use{Bytes: bytes, Messages: messages}
}

func TestQuota(t *testing.T) {
	big := "Subject: big\r\n\r\n" + strings.Repeat("0123456789\r\n", chunk/10)
	size := len(kept)
	for _, tc := range []struct {
		quota, over, body string
		fits              int
		want              string
	}{
		{fmt.Sprint(2 * size), "bounce", mail, 2, "552 5.2.2 The mailbox is full"},
		{fmt.Sprintf("%dS", 3*size-1), "bounce", mail, 2, "552 5.2.2 The mailbox is full"},
		{fmt.Sprintf("%dS,1C", 3*size), "defer", mail, 1, "452 4.2.2 The mailbox is full"},
		{fmt.Sprint(size - 1), "defer", mail, 0, "552 5.2.3 The message is larger"},
		{"500000", "defer", big, 1, "452 4.2.2 The mailbox is full"},
		{"200000", "defer", big, 0, "552 5.2.3 The message is larger"},
		{"NOQUOTA", "bounce", mail, 5, ""},
		{"nonsense", "bounce", mail, 5, ""},
		{"0S", "bounce", mail, 5, ""},
	} {
		home := t.TempDir()
		d := limitedStation(t, limited{home: home, quota: tc.quota}, map[string]string{"overquota": tc.over, "quotawarn": ""}, nil)
		for i := range 5 {
			r := one(t, d, delivery(queue.ID(i+1), tc.body, "ann"))
			switch {
			case i < tc.fits && r.Err != nil:
				t.Errorf("%s: message %d: %s", tc.quota, i, r.Err.Reply())
			case i >= tc.fits && (r.Err == nil || !strings.HasPrefix(r.Err.Reply(), tc.want)):
				t.Errorf("%s: message %d: %+v, want %s", tc.quota, i, r, tc.want)
			}
		}
		if got := len(stored(t, home, "ann")); got != tc.fits {
			t.Errorf("%s: %d messages", tc.quota, got)
		}
		if strings.ContainsAny(tc.quota, "123456789") {
			holds(t, home)
		} else if _, err := os.Lstat(filepath.Join(home, "ann/Maildir/maildirsize")); err == nil {
			t.Errorf("%s: a maildirsize", tc.quota)
		}
	}
}

// TestQuotaAtOnce delivers more than fits from many goroutines and two stations, as two hosts would.
func TestQuotaAtOnce(t *testing.T) {
	home := t.TempDir()
	users := limited{home: home, quota: fmt.Sprint(25*len(kept) + 10)}
	stations := []*Deliverer{limitedStation(t, users, map[string]string{"quotawarn": ""}, nil), limitedStation(t, users, map[string]string{"quotawarn": ""}, nil)}
	var wg sync.WaitGroup
	var took atomic.Int32
	for i := range 60 {
		wg.Go(func() {
			if r := one(t, stations[i%2], delivery(queue.ID(i+1), mail, "ann")); r.Err == nil {
				took.Add(1)
			}
		})
	}
	wg.Wait()
	if u := holds(t, home); took.Load() != 25 || u.Messages != 25 {
		t.Errorf("%d taken, %+v there", took.Load(), u)
	}
}

// TestQuotaRepeat repeats deliveries whose outcome was lost; each counts once, also when it had not been counted.
func TestQuotaRepeat(t *testing.T) {
	home := t.TempDir()
	users := limited{home: home, quota: fmt.Sprint(2 * len(kept))}
	d := limitedStation(t, users, map[string]string{"quotawarn": ""}, nil)
	dl := delivery(1, mail, "ann")
	if r := one(t, d, dl); r.Err != nil {
		t.Fatal(r.Err)
	}
	sizes := filepath.Join(home, "ann/Maildir/maildirsize")
	for range 3 {
		if err := os.WriteFile(sizes, []byte(users.quota+"S\n0 0\n"), 0o600); err != nil { // as before the crash
			t.Fatal(err)
		}
		dl.Repeat = true
		if r := one(t, d, dl); r.Err != nil {
			t.Fatal(r.Err)
		}
		if u := holds(t, home); u.Messages != 1 {
			t.Fatal(u)
		}
	}
	// A delivery whose sync fails is taken back, from the count too.
	bad := limitedStation(t, users, map[string]string{"quotawarn": ""}, func(*os.File) error { return errors.New("no sync") })
	if r := one(t, bad, delivery(2, mail, "ann")); r.Err == nil {
		t.Fatal("success without a sync")
	}
	if u := holds(t, home); u.Messages != 1 {
		t.Fatal(u)
	}
	if r := one(t, d, delivery(2, mail, "ann")); r.Err != nil {
		t.Fatal(r.Err)
	}
}

// TestQuotaWarning passes percentages upwards and downwards.
func TestQuotaWarning(t *testing.T) {
	home := t.TempDir()
	d := limitedStation(t, limited{home: home, quota: "20C"}, map[string]string{"quotawarn": "90 50"}, nil)
	path := filepath.Join(home, "ann/Maildir")
	warnings := func() (subjects []string) {
		for name, text := range stored(t, home, "ann") {
			if strings.Contains(name, ".warningQ") {
				_, rest, _ := strings.Cut(text, "\nSubject: ")
				subject, _, _ := strings.Cut(rest, "\n")
				subjects = append(subjects, subject)
			}
		}
		return subjects
	}
	id := queue.ID(0)
	fill := func(n int) {
		t.Helper()
		for range n {
			if id++; one(t, d, delivery(id, mail, "ann")).Err != nil {
				t.Fatal("refused")
			}
		}
	}
	fill(9)
	if w := warnings(); len(w) != 0 {
		t.Fatal(w)
	}
	fill(1) // 50%, and the warning is the 11th
	fill(6) // 85%
	if w := warnings(); len(w) != 1 || w[0] != "Your mailbox is 50% full" {
		t.Fatal(w)
	}
	fill(1) // 90%, and the warning is the 19th
	if w := warnings(); len(w) != 2 {
		t.Fatal(w)
	}
	fill(1)
	id++
	if r := one(t, d, delivery(id, mail, "ann")); r.Err == nil {
		t.Fatal("the 21st")
	}
	if w := warnings(); len(w) != 2 {
		t.Fatal(w)
	}
	empty := func(leave int) {
		list, err := maildir.List(path)
		if err != nil {
			t.Fatal(err)
		}
		var gone []*maildir.Message
		for i := range list[leave:] {
			gone = append(gone, &list[i])
		}
		if err := errors.Join(maildir.Expunge(gone...)...); err != nil {
			t.Fatal(err)
		}
	}
	empty(0)
	fill(9)
	if _, err := os.Lstat(filepath.Join(path, warnState)); err == nil {
		t.Fatal("the state is there below all percentages")
	}
	fill(1)
	if w := warnings(); len(w) != 1 {
		t.Fatal(w)
	}
	for _, text := range stored(t, home, "ann") {
		if strings.Contains(text, "quotawarn") && (!strings.Contains(text, "holds 10 messages of 20 messages.") || !strings.Contains(text, "\nFrom: postmaster@example.org\n")) {
			t.Errorf("%s", text)
		}
	}
	holds(t, home)
	// A text of one's own.
	got := string(warningText([]string{"Subject: $PERCENT", "One $USED", "Two $QUOTA $ADDRESS"},
		quota{maildir.Quota{Bytes: 2 << 20, Messages: 5}, addr.Address{Local: "a\nb", Domain: "d"}, nil}, maildir.Use{Bytes: 1 << 19, Messages: 4}, 80, "id", time.Unix(0, 0)))
	if !strings.HasSuffix(got, "\n\nOne 512.0 KiB and 4 messages\n\nTwo 2.0 MiB and 5 messages \"a_b\"@d\n") || !strings.Contains(got, "\nSubject: 80\n") {
		t.Errorf("%s", got)
	}
}

// TestDomainFull refuses for the domain's sake, but not a message that is there already.
func TestDomainFull(t *testing.T) {
	home := t.TempDir()
	var room atomic.Int64
	room.Store(1)
	for over, want := range map[string]string{"bounce": "552 5.2.2 The user's domain", "defer": "452 4.2.2 The user's domain"} {
		d := limitedStation(t, limited{home: home, domain: &room}, map[string]string{"overquota": over}, nil)
		dl := delivery(1, mail, "ann")
		dl.Repeat = true
		if r := one(t, d, dl); r.Err != nil {
			t.Fatal(r.Err)
		}
		if r := one(t, d, delivery(2, mail, "ann")); r.Err == nil || !strings.HasPrefix(r.Err.Reply(), want) {
			t.Errorf("%+v, want %s", r, want)
		}
		dl = delivery(3, mail, "ann")
		dl.Recipients[0].Address.Domain = "broken.test"
		if r := one(t, d, dl); r.Err == nil || !r.Err.Temporary() {
			t.Errorf("%+v", r)
		}
	}
	if n := len(stored(t, home, "ann")); n != 1 {
		t.Errorf("%d messages", n)
	}
}
