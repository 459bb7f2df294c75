package local

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
)

// TestBulletin: each gets it once, whatever of the log is lost and wherever a run ended.
func TestBulletin(t *testing.T) {
	root, homes := t.TempDir(), t.TempDir()
	text := []byte("From: postmaster@example.org\r\nSubject: Notice\r\n\r\nHello.\r\n")
	at := time.Unix(1700000000, 0)
	open := func() *Bulletin {
		t.Helper()
		at = at.Add(time.Hour)
		b, err := OpenBulletin(root, text, "mail.example.org", func() time.Time { return at })
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	user := func(name string) directory.User {
		return directory.User{Name: name, Domain: "example.org", Dir: filepath.Join(homes, name)}
	}
	messages := func(name string) []maildir.Message {
		t.Helper()
		list, err := maildir.List(filepath.Join(homes, name, "Maildir"))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	b := open()
	if _, err := OpenBulletin(root, text, "mail.example.org", time.Now); !errors.Is(err, ErrBulletinRuns) {
		t.Error(err)
	}
	for _, name := range []string{"a", "b"} {
		if err := b.Deliver(user(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	// c got it, and the process was killed before it wrote that down; half a line is left.
	if err := b.Deliver(user("c")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.log.WriteString("+z@exam"); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if body, err := os.ReadFile(messages("a")[0].File); err != nil || string(body) != "Return-Path: <>\nDelivered-To: a@example.org\nDate: "+at.Format("Mon, 2 Jan 2006 15:04:05 -0700")+
		"\nMessage-ID: <bulletin."+b.ID+"@mail.example.org>\nFrom: postmaster@example.org\nSubject: Notice\n\nHello.\n" {
		t.Errorf("%q %v", body, err)
	}
	// b has read it, c has not.
	read := messages("b")[0]
	if err := read.SetFlags("S"); err != nil {
		t.Fatal(err)
	}
	b = open()
	if !b.Has(user("a")) || !b.Has(user("b")) || b.Has(user("c")) || b.Sent() != 2 {
		t.Error("the log tells something else", b.sent)
	}
	for _, name := range []string{"c", "d"} {
		if err := b.Deliver(user(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	b.Close()
	for _, name := range []string{"a", "b", "c", "d"} {
		if n := len(messages(name)); n != 1 {
			t.Errorf("%s has %d", name, n)
		}
	}
	// It is taken back, read or not; who deleted it is no error.
	left := messages("d")[0]
	if err := left.Remove(); err != nil {
		t.Fatal(err)
	}
	b = open()
	for name, want := range map[string]bool{"a": true, "b": true, "d": false} {
		if found, err := b.Withdraw(user(name)); err != nil || found != want || len(messages(name)) != 0 {
			t.Errorf("%s: %v %v", name, found, err)
		}
	}
	b.Close()
	b = open()
	if b.Has(user("a")) || !b.Has(user("c")) {
		t.Error(b.sent)
	}
	// What was withdrawn may be sent again.
	if err := errors.Join(b.Deliver(user("a")), b.Flush(), b.Close()); err != nil || len(messages("a")) != 1 {
		t.Error(err)
	}
	for _, bad := range []string{"", "no header", "Subject: x\n\nno from", "From: a@b\n\nno subject"} {
		if _, err := OpenBulletin(root, []byte(bad), "h", time.Now); err == nil || !strings.Contains(err.Error(), "no message") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	// One that nobody got leaves nothing.
	none, err := OpenBulletin(root, append(text, "more\n"...), "h", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	none.Close()
	if all, _ := os.ReadDir(root); len(all) != 1 {
		t.Error(all)
	}
	damaged := filepath.Join(root, b.ID, "log")
	if err := os.WriteFile(damaged, []byte("something else\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenBulletin(root, text, "h", time.Now); err == nil {
		t.Error("took a damaged log")
	}
}
