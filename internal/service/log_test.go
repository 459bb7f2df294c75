package service

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/indigomail/indigo/internal/queue"
)

// TestLogForms writes each event of the queue both ways: every key of the line is an attribute, and the text is qmail's.
func TestLogForms(t *testing.T) {
	attrs := []slog.Attr{
		slog.String("id", "660188"), slog.Int("bytes", 2794), slog.String("from", "a@b.test"), slog.Int("qp", 3223), slog.Int("uid", 555),
		slog.Uint64("delivery", 6), slog.String("channel", "local"), slog.String("to", "u@d.test"), slog.Int("local", 1), slog.Int("local_limit", 10),
		slog.Int("remote", 0), slog.Int("remote_limit", 20), slog.String("result", "success"), slog.String("text", "did 1+0+0\nEvil:\x1b"), slog.String("bounce", "7"),
		slog.String("queue", "slowq"), slog.String("in", "slowq"), slog.String("delayed", "delayed jobs=2"), slog.String("name", "d.test"), slog.Int("count", 2),
		slog.String("rate", "0.0909090936"), slog.String("limit", "0.0013888888"), slog.Int("secs", 709),
	}
	want := map[string]string{
		"new msg": "new msg 660188 slowq", "info msg": "info msg 660188: bytes 2794 from <a@b.test> qp 3223 uid 555 slowq",
		"sorted":            "local: a@b.test u@d.test 660188 2794 bytes slowq",
		"starting delivery": "starting delivery 6: msg 660188 to local u@d.test slowq", "status": "status: local 1/10 remote 0/20 delayed jobs=2 slowq",
		"delivery": "delivery 6: success: did_1+0+0/Evil:?/ slowq", "bounce msg": "bounce msg 660188 qp 7 slowq",
		"triple bounce": "triple bounce: discarding bounce/660188 slowq", "end msg": "end msg 660188 slowq",
		// Wiki 1549 and 1539.
		"rate exceeded": "warning: slowq d.test msg 660188: rate exceeded [2/0.0909090936/0.0013888888] need 709 secs; will try again later",
		"rate":          "info: slowq d.test msg 660188: rate [2/0.0909090936/0.0013888888] ok since 709 secs",
	}
	documented, err := os.ReadFile("../../docs/logs.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range queue.LogEvents() {
		for _, format := range []string{"text", "json"} {
			var out bytes.Buffer
			log, logger, err := NewLog(&out, format)
			if err != nil {
				t.Fatal(err)
			}
			logger.LogAttrs(context.Background(), slog.LevelInfo, e.Name, attrs...)
			log.Close()
			if format == "text" {
				_, _, text := cut2(strings.TrimSuffix(out.String(), "\n"))
				if text != want[e.Name] {
					t.Errorf("%s: %q, want %q", e.Name, text, want[e.Name])
				}
				continue
			}
			var line map[string]any
			if err := json.Unmarshal(out.Bytes(), &line); err != nil || line["event"] != e.Name || line["id"] != "660188" {
				t.Errorf("%s: %s %v", e.Name, out.String(), err)
			}
		}
		if !strings.Contains(string(documented), "`"+e.Text+"`") {
			t.Errorf("docs/logs.md does not have `%s`", e.Text)
		}
		for _, key := range regexp.MustCompile(`\{([a-z_]+)[|+]?\}`).FindAllStringSubmatch(e.Text, -1) {
			if !strings.Contains(string(documented), "`"+key[1]+"`") {
				t.Errorf("docs/logs.md does not explain the key `%s`", key[1])
			}
		}
	}
}

func cut2(s string) (date, clock, rest string) {
	date, s, _ = strings.Cut(s, " ")
	clock, rest, _ = strings.Cut(s, " ")
	return date, clock, rest
}

func BenchmarkLogEvent(b *testing.B) {
	log, logger, err := NewLog(io.Discard, "text")
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	b.ReportAllocs()
	for b.Loop() {
		logger.LogAttrs(context.Background(), slog.LevelInfo, "info msg", slog.String("id", "660188"), slog.Int("bytes", 2794), slog.String("from", "a@b.test"), slog.Int("qp", 3223), slog.Int("uid", 555))
	}
}
