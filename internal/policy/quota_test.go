package policy

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
)

// limited is a book whose users have a quota and a home.
type limited struct {
	book
	home, quota string
}

func (l limited) User(ctx context.Context, a addr.Address) (directory.User, error) {
	u, err := l.book.User(ctx, a)
	u.Dir, u.Quota = l.home, l.quota
	return u, err
}

// TestQuota shows what a sender hears at RCPT.
func TestQuota(t *testing.T) {
	home := t.TempDir()
	path := filepath.Join(home, "Maildir")
	if err := maildir.Create(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "new/1.x,S=900"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	to := addr.Address{Local: "ann", Domain: "here.example"}
	for _, tc := range []struct {
		quota, over, check string
		size               int64
		want               string
	}{
		{"1000S", "", "", 0, ""},
		{"1000S", "", "", 102, ""},
		{"1000S", "", "", 120, "552 5.2.2"},
		{"900S", "", "", 0, "552 5.2.2"},
		{"900S", "defer", "", 0, "452 4.2.2"},
		{"900S", "defer", "", 900, "452 4.2.2"},
		{"900S", "defer", "", 9000, "552 5.2.2"},
		{"900S", "", "0", 9000, ""},
		{"1C", "", "", 0, "552 5.2.2"},
		{"1000S,2C", "", "", 50, ""},
		{"NOQUOTA", "", "", 1 << 40, ""},
		{"nonsense", "", "", 1 << 40, ""},
	} {
		control := map[string]string{}
		if tc.over != "" {
			control["overquota"] = tc.over
		}
		if tc.check != "" {
			control["checkquota"] = tc.check
		}
		p := New(Config{Directory: limited{home: home, quota: tc.quota}})
		s := &Session{Settings: view(t, control)}
		from := addr.Address{Local: "a", Domain: "b.test"}
		if v := p.Mail(t.Context(), s, from, tc.size); v.Action != Accept {
			if tc.size < 1<<30 {
				t.Fatal(v)
			}
			s.Size = tc.size
		}
		v := p.Rcpt(t.Context(), s, from, to, 0)
		got := ""
		if v.Err != nil {
			got = v.Err.Reply()
		}
		if tc.want == "" && v.Action != Accept || !strings.HasPrefix(got, tc.want) || tc.want != "" && v.Setting != "CHECKQUOTA" {
			t.Errorf("%+v: %s %+v", tc, got, v)
		}
	}
	// What MAIL did not tell is refused at the end, if there is no other recipient.
	end := func(said, size int64, to ...addr.Address) string {
		p, s := New(Config{Directory: limited{home: home, quota: "1000S"}}), &Session{Settings: view(t, nil)}
		p.Mail(t.Context(), s, addr.Address{}, said)
		if v := p.Rcpt(t.Context(), s, addr.Address{}, to[0], 0); v.Action != Accept {
			t.Fatal(v)
		}
		if v := p.EndOfData(t.Context(), s, addr.Address{}, to, nil, size); v.Err != nil {
			return v.Err.Reply()
		}
		return ""
	}
	if got := end(0, 200, to); !strings.HasPrefix(got, "552 5.2.2") {
		t.Error(got)
	}
	if got := end(50, 90, to) + end(0, 200, to, addr.Address{Local: "x", Domain: "y.test"}) + end(0, 200, addr.Address{Local: "ann", Domain: "here.example"}, to); got != "" {
		t.Error(got)
	}
	// Mail for a user who is an alias need not come into his mailbox.
	if got := end(0, 200, addr.Address{Local: "postmaster", Domain: "here.example"}); got != "" {
		t.Error(got)
	}
	// A full mailbox costs a read; what the owner deleted by other means is seen after a quarter of an hour.
	p, s := New(Config{Directory: limited{home: home, quota: "900S"}}), &Session{Settings: view(t, nil)}
	if err := os.Remove(filepath.Join(path, "new/1.x,S=900")); err != nil {
		t.Fatal(err)
	}
	if _, err := maildir.Recount(path, maildir.Quota{Bytes: 900}); err != nil {
		t.Fatal(err)
	}
	sizes := filepath.Join(path, "maildirsize")
	if err := os.WriteFile(sizes, []byte("900S\n900 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v := p.Rcpt(t.Context(), s, addr.Address{}, to, 0); v.Action != Reject {
		t.Error(v)
	}
	old := time.Now().Add(-16 * time.Minute)
	if err := os.Chtimes(sizes, old, old); err != nil {
		t.Fatal(err)
	}
	if v := p.Rcpt(t.Context(), s, addr.Address{}, to, 0); v.Action != Accept {
		t.Error(v)
	}
}
