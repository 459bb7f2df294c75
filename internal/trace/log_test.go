package trace

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestStoryJoinsSessionAndQueue(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(Config{Dir: dir, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	events := []Event{
		{Time: at, Kind: "connect", Session: "s1", Client: "::1"},
		{Time: at.Add(1), Kind: "rcpt", Session: "s1", To: "A@b.example", Verdict: "reject", Check: "relay", Setting: "RELAYCLIENTS", Layer: "default", Reply: "550 \"no\"\n\x01"},
		{Time: at.Add(2), Kind: "queued", Session: "s1", Queue: "77", Bytes: 9},
		{Time: at.Add(3), Kind: "delivery", Queue: "77", Dialogue: []string{"a", "b"}, Took: 5},
		{Time: at.Add(4), Kind: "connect", Session: "s2"},
		{Time: at.Add(5), Kind: "delivery", Queue: "78", To: "x@y"},
	}
	for _, e := range events {
		l.Record(e)
	}
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.Close()
	names, _ := files(dir)
	f, err := os.OpenFile(names[0], os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("damaged 77\n{\"queue\":\"77\",\"torn")
	f.Close()
	for _, q := range []Query{{Queue: "77"}, {Address: "a@B.example"}} {
		got, err := Search(t.Context(), dir, q)
		if err != nil || !reflect.DeepEqual(got, events[:4]) && !(q.Address != "" && reflect.DeepEqual(got, events[:3])) {
			t.Errorf("%+v: %v\n%+v", q, err, got)
		}
	}
	var out bytes.Buffer
	if err := Format(&out, events); err != nil || !strings.Contains(out.String(), "check relay  by setting RELAYCLIENTS (default)  reply 550 \"no\"??") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func TestPrune(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"trace-1.jsonl", "trace-2.jsonl", "trace-3.jsonl"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 100), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := &Log{config: Config{Dir: dir, MaxBytes: 250, Now: time.Now}}
	l.prune()
	if names, _ := files(dir); len(names) != 2 || filepath.Base(names[0]) != "trace-2.jsonl" {
		t.Errorf("left %v", names)
	}
}

func BenchmarkAppendEvent(b *testing.B) {
	e := Event{Time: time.Now(), Kind: "rcpt", Session: "0123456789", Client: "127.0.0.1", From: "a@b.example", To: "c@d.example", Verdict: "accept", Check: "local-user", Reply: "250 2.1.5 ok"}
	var buf []byte
	for b.Loop() {
		buf = appendEvent(buf[:0], &e)
	}
}
