package service

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/lab"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/tlsx"
)

// writerInto gives what writes files of a data directory, with the directories that they are in.
func writerInto(t *testing.T, data string) func(name, text string) {
	return func(name, text string) {
		t.Helper()
		file := filepath.Join(data, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFindings: the log tells of authorities for clients' certificates that are no good; while services run, once.
func TestFindings(t *testing.T) {
	data := t.TempDir()
	write := writerInto(t, data)
	write("control/me", "mx.here.test\n")
	write("services/smtpd.25/variables/MAXDAEMONS", "10\n")
	write("services/smtpd.26/variables/CERTDIR", "others\n")
	write("others/x", "")
	for _, file := range []string{"certs/servercert.pem", "others/servercert.pem"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(data, file)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := tlsx.SelfSigned(filepath.Join(data, file), []string{"mx.here.test"}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	snapshot, err := settings.Load(data)
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	h := &House{config: Config{Data: data}, log: slog.New(slog.NewTextHandler(io.Writer(&said), nil))}
	told := func(news bool) string {
		said.Reset()
		h.logFindings(snapshot, news)
		return said.String()
	}
	if s := told(false); s != "" {
		t.Fatalf("of what is good: %s", s)
	}
	ended, err := lab.NewAuthority(func() time.Time { return time.Now().AddDate(-50, 0, 0) })
	if err != nil {
		t.Fatal(err)
	}
	ours, err := lab.NewAuthority(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	list, err := ours.Revoke(-time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ ca, crl, want string }{
		{ca: "nonsense", want: "certs/clientca.pem:1: CLIENTCA: client authorities: "},
		{ca: string(ended.PEM()), want: "has expired at "},
		{ca: string(ours.PEM()), crl: "nonsense", want: "certs/clientcrl.pem:1: CLIENTCRL: revoked client certificates: "},
		{ca: string(ours.PEM()), crl: string(list), want: "ended at "},
	} {
		write("certs/clientca.pem", tc.ca)
		os.Remove(filepath.Join(data, "certs/clientcrl.pem"))
		if tc.crl != "" {
			write("certs/clientcrl.pem", tc.crl)
		}
		if s := told(true); strings.Count(s, tc.want) != 1 {
			t.Errorf("%q is not told once: %s", tc.want, s)
		}
		if s := told(true); s != "" {
			t.Errorf("told again: %s", s)
		}
		if s := told(false); !strings.Contains(s, tc.want) {
			t.Errorf("a reload does not tell %q: %s", tc.want, s)
		}
	}
	// Of a service with certificates of its own, those beside them count.
	os.Remove(filepath.Join(data, "certs/clientca.pem"))
	write("others/clientca.pem", "nonsense")
	if s := told(false); !strings.Contains(s, "others/clientca.pem:1: CLIENTCA: client authorities: ") {
		t.Errorf("nothing of others/clientca.pem: %s", s)
	}
}

// TestListsReadAgain: the log tells once of lists of revoked certificates that become no good while services run, and of those that are good again.
func TestListsReadAgain(t *testing.T) {
	data := t.TempDir()
	write := writerInto(t, data)
	ours, err := lab.NewAuthority(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	list, err := ours.Revoke(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	write("control/me", "mx.here.test\n")
	write("certs/clientca.pem", string(ours.PEM()))
	write("certs/clientcrl.pem", string(list))
	if err := tlsx.SelfSigned(filepath.Join(data, "certs/servercert.pem"), []string{"mx.here.test"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	snapshot, err := settings.Load(data)
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	h := &House{config: Config{Data: data}, log: slog.New(slog.NewTextHandler(io.Writer(&said), nil))}
	h.settings.Store(snapshot)
	h.logFindings(snapshot, false)
	store, err := h.store("smtpd.25")
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Try(tlsOptions(data, h.view("smtpd.25"))); err != nil || said.String() != "" {
		t.Fatalf("of what is good: %v %s", err, said.String())
	}
	for range 2 {
		write("certs/clientcrl.pem", string(list[:100]))
		said.Reset()
		store.Look()
		h.logFindings(snapshot, true)
		store.Look()
		if s := said.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "level=ERROR") || !strings.Contains(s, "certs/clientcrl.pem:1: CLIENTCRL: revoked client certificates: ") ||
			!strings.Contains(s, "what was read before stays in force while Indigo runs") {
			t.Errorf("of half a file: %s", s)
		}
		if list, err = ours.Revoke(time.Hour); err != nil {
			t.Fatal(err)
		}
		write("certs/clientcrl.pem", string(list))
		said.Reset()
		store.Look()
		h.logFindings(snapshot, true)
		if s := said.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "read again") {
			t.Errorf("of a whole file: %s", s)
		}
	}
}
