package compose

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

func names() Names {
	return Names{DefaultHost: "example.org", DefaultDomain: "example.com", PlusDomain: "plus.test", IDHost: "mail.example.org"}
}

func TestCompose(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	base := Options{Names: names(), User: addr.Address{Local: "joe", Domain: "example.org"}, Name: "Joe X. User", Now: at, PID: 77}
	dated := "Date: Fri, 2 Jan 2026 03:04:05 +0000\r\nMessage-ID: <20260102030405.000000006.77.qmail@mail.example.org>\r\n"
	from := "From: \"Joe X. User\" <joe@example.org>\r\n"
	for name, c := range map[string]struct {
		in     string
		change func(*Options)
		header string
		to     string
		sender string
	}{
		"rewriting": {"To: ann, Bob <bob@host>, c@plus+, d@full.test, e@[192.0.2.1]\r\nSubject: x\r\n\r\nbody", nil,
			"To: ann@example.org, Bob <bob@host.example.com>, c@plus.plus.test,\r\n d@full.test, e@[192.0.2.1]\r\nSubject: x\r\n" + dated + from,
			"ann@example.org bob@host.example.com c@plus.plus.test d@full.test e@[192.0.2.1]", "joe@example.org"},
		"untouched": {"To:   d@full.test  (a comment)\r\nFrom: X <x@y.test>\r\nDate: then\r\nMessage-ID: <a@b>\r\n\r\n", nil,
			"To:   d@full.test  (a comment)\r\nFrom: X <x@y.test>\r\nDate: then\r\nMessage-ID: <a@b>\r\n", "d@full.test", "joe@example.org"},
		"bcc goes": {"Bcc: secret@x.test,\r\n other@x.test\r\nCc: c@x.test\r\nReturn-Path: <r@x.test>\r\nContent-Length: 5\r\n\r\n", nil,
			"Cc: c@x.test\r\n" + dated + from, "secret@x.test other@x.test c@x.test", "joe@example.org"},
		"nobody shown": {"Bcc: b@x.test\r\n\r\n", nil, dated + from + "Cc: recipient list not shown: ;\r\n", "b@x.test", "joe@example.org"},
		"arguments": {"To: t@x.test\r\n\r\n", func(o *Options) { o.Arguments = []string{"a@x.test", "b"} }, "To: t@x.test\r\n" + dated + from,
			"a@x.test b@example.org", "joe@example.org"},
		"both": {"To: t@x.test\r\n\r\n", func(o *Options) { o.Arguments, o.Recipients = []string{"a@x.test", "T@x.test"}, Both }, "To: t@x.test\r\n" + dated + from,
			"t@x.test a@x.test", "joe@example.org"},
		"resent": {"To: old@x.test\r\nResent-To: new\r\nDate: then\r\n\r\n", nil,
			"To: old@x.test\r\nResent-To: new@example.org\r\nDate: then\r\nResent-" + strings.ReplaceAll(dated, "\r\nM", "\r\nResent-M") + "Resent-" + from, "new@example.org", "joe@example.org"},
		"flags": {"To: t@x.test\r\nFrom: other@x.test\r\nMessage-ID: <mine>\r\nReturn-Path: <r@x.test>\r\n\r\n", func(o *Options) {
			o.CommentName, o.DropFrom, o.DropMessageID, o.ReturnPathSender, o.VERP = true, true, true, true, true
		}, "To: t@x.test\r\n" + dated + "From: joe@example.org (Joe X. User)\r\n", "t@x.test", "r-1767323045.77@x.test"},
		"each":        {"To: t@x.test\r\n\r\n", func(o *Options) { o.VERPEach = true }, "To: t@x.test\r\n" + dated + from, "t@x.test", "joe-@example.org-@[]"},
		"null sender": {"To: t@x.test\r\n\r\n", func(o *Options) { o.SenderSet = true }, "To: t@x.test\r\n" + dated + from, "t@x.test", ""},
		"group": {"To: Friends: a, b@x.test;, c@x.test\r\n\r\n", nil, "To: Friends: a@example.org, b@x.test;, c@x.test\r\n" + dated + from,
			"a@example.org b@x.test c@x.test", "joe@example.org"},
		"followup": {"To: list@lists.test, me@x.test\r\nCc: c\r\n\r\n", func(o *Options) { o.Lists = []string{"LIST@lists.test"} },
			"To: list@lists.test, me@x.test\r\nCc: c@example.org\r\n" + dated + from + "Mail-Followup-To: c@example.org, list@lists.test, me@x.test\r\n",
			"list@lists.test me@x.test c@example.org", "joe@example.org"},
		"no header": {"\r\nonly a body", func(o *Options) { o.Arguments = []string{"a@x.test"} }, dated + from + "Cc: recipient list not shown: ;\r\n", "a@x.test", "joe@example.org"},
	} {
		o := base
		if c.change != nil {
			c.change(&o)
		}
		got, err := Compose([]byte(c.in), o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var to []string
		for _, a := range got.Recipients {
			to = append(to, a.String())
		}
		if string(got.Header) != c.header || strings.Join(to, " ") != c.to || got.Sender.String() != c.sender {
			t.Errorf("%s:\n%q\nwant\n%q\nto %v, sender %s", name, got.Header, c.header, to, got.Sender)
		}
	}
	for _, bad := range []string{"To: a@\r\n\r\n", "To: <a@b c@d>\r\n\r\n", "Subject: x\r\n\r\n", "To: undisclosed:;\r\n\r\n"} {
		if got, err := Compose([]byte(bad), base); err == nil {
			t.Errorf("%q: %v", bad, got.Recipients)
		}
	}
	if _, err := Compose([]byte("\r\n"), base); !errors.Is(err, ErrNoRecipients) {
		t.Error(err)
	}
}

func FuzzCompose(f *testing.F) {
	for _, s := range []string{"To: a, b@c\r\n\r\nx", "Resent-Bcc: x:;\r\n\r\n", "From x\r\nTo: \"a\\\"@b\" <c@d>\r\n", "Cc: ((((", "To: a@b\n\n"} {
		f.Add(s, "x@y.test")
	}
	f.Fuzz(func(t *testing.T, in, arg string) {
		o := Options{Names: names(), User: addr.Address{Local: "joe", Domain: "example.org"}, Arguments: []string{arg}, Recipients: Both, Now: time.Unix(1, 0)}
		got, err := Compose([]byte(in), o)
		if err != nil {
			return
		}
		if !strings.HasSuffix(in, string(got.Body)) {
			t.Errorf("body %q", got.Body)
		}
		for _, a := range got.Recipients {
			if _, err := addr.Parse(a.String()); err != nil {
				t.Errorf("recipient %q: %v", a, err)
			}
		}
		if strings.Contains(fmt.Sprintf("%q", got.Header), "Bcc:") && !strings.Contains(in, "Bcc:") {
			t.Error("a Bcc field from nowhere")
		}
	})
}
