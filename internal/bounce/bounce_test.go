package bounce

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/message"
)

func report() Report {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return Report{
		Host: "mail.example.org", ID: "77", From: addr.Address{Local: "MAILER-DAEMON", Domain: "mail.example.org"}, To: addr.Address{Local: "s", Domain: "x.test"},
		Sender: addr.Address{Local: "s", Domain: "x.test"}, Arrived: at, Now: at.Add(time.Hour), EnvID: "QQ314159+2B",
		Original: strings.NewReader("Subject: x\r\n\r\nbody\r\n"),
	}
}

func write(t *testing.T, r Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	if s := b.String(); strings.Contains(strings.ReplaceAll(s, "\r\n", ""), "\n") || strings.Contains(strings.ReplaceAll(s, "\r\n", ""), "\r") {
		t.Errorf("not in wire form: %q", s)
	}
	return b.String()
}

func TestDSN(t *testing.T) {
	until := time.Date(2026, 1, 9, 3, 4, 5, 0, time.UTC)
	for name, tc := range map[string]struct {
		outcome Outcome
		subject string
		fields  []string
		text    string
	}{
		"failed": {Outcome{Action: Failed, Recipient: addr.Address{Local: "a", Domain: "b.test"}, Orcpt: "rfc822;first+2Blast@b.test", Code: 550, Enhanced: "5.1.1", Text: "no such user\nsorry\x07"},
			"failure notice", []string{"Original-Recipient: rfc822;first+last@b.test", "Final-Recipient: rfc822; a@b.test", "Action: failed", "Status: 5.1.1",
				"Diagnostic-Code: smtp; 550 no such user\r\n sorry?", "Original-Envelope-Id: QQ314159+"}, "I've given up"},
		"too old": {Outcome{Action: Failed, Recipient: addr.Address{Local: "a", Domain: "b.test"}, Code: 451, Enhanced: "4.4.1", Text: "busy"},
			"failure notice", []string{"Status: 5.4.7"}, "<a@b.test>:\r\nbusy"},
		"delayed": {Outcome{Action: Delayed, Recipient: addr.Address{Local: "a", Domain: "b.test"}, Code: 451, Enhanced: "4.4.1", Text: "busy", RetryUntil: until},
			"delay notice", []string{"Action: delayed", "Status: 4.4.1", "Will-Retry-Until: Fri, 9 Jan 2026 03:04:05 +0000"}, "DO NOT NEED TO SEND"},
		"delivered": {Outcome{Action: Delivered, Recipient: addr.Address{Local: "a", Domain: "b.test"}, Text: "did 1+0+0"},
			"success notice", []string{"Action: delivered", "Status: 2.0.0"}, "It was delivered."},
		"relayed": {Outcome{Action: Relayed, Recipient: addr.Address{Local: "a", Domain: "b.test"}, Code: 250, Enhanced: "2.1.5", Text: "ok"},
			"success notice", []string{"Action: relayed", "Status: 2.1.5", "Diagnostic-Code: x-qmail; ok"}, "Another host has taken it"},
		"unicode": {Outcome{Action: Failed, Recipient: addr.Address{Local: "Jürgen", Domain: "b.test"}, Code: 550}, "failure notice",
			[]string{"Final-Recipient: utf-8; Jürgen@b.test", "Status: 5.0.0"}, "Jürgen"},
	} {
		r := report()
		r.Outcomes = []Outcome{tc.outcome}
		r.UTF8 = name == "unicode"
		m := message.Parse([]byte(write(t, r)), message.Limits{})
		if f, _ := m.Field("Subject"); f.Value() != tc.subject {
			t.Errorf("%s: subject %q", name, f.Value())
		}
		if _, bounced := m.Field("X-Bounced-Address"); bounced != (tc.outcome.Action == Failed) {
			t.Errorf("%s: X-Bounced-Address %v", name, bounced)
		}
		if len(m.Parts) != 3 || len(m.Defects) > 0 {
			t.Fatalf("%s: %d parts, %v", name, len(m.Parts), m.Defects)
		}
		types := []string{"text/plain", "message/delivery-status", "message/rfc822"}
		if r.UTF8 {
			types = []string{"text/plain", "message/global-delivery-status", "message/global"}
		}
		for i, part := range m.Parts {
			if part.Type.Main != types[i] {
				t.Errorf("%s: part %d is %s", name, i, part.Type.Main)
			}
		}
		text := write(t, report1(r))
		for _, field := range append(tc.fields, tc.text) {
			if !strings.Contains(text, field) {
				t.Errorf("%s: no %q in\n%s", name, field, text)
			}
		}
	}
}

// report1 gives the report another original, because the first was read.
func report1(r Report) Report {
	r.Original = strings.NewReader("Subject: x\r\n\r\nbody\r\n")
	return r
}

func TestQSBMF(t *testing.T) {
	r := report()
	r.Format, r.Subject = QSBMF, "sorry"
	r.Outcomes = []Outcome{{Action: Failed, Recipient: addr.Address{Local: "a", Domain: "b.test"}, Text: "no such user"}}
	got := write(t, r)
	want := "\r\n\r\nHi. This is the Indigo program at mail.example.org.\r\nI'm afraid I wasn't able to deliver your message to the following addresses.\r\n" +
		"This is a permanent error; I've given up. Sorry it didn't work out.\r\n\r\n<a@b.test>:\r\nno such user\r\n\r\n" +
		"--- Below this line is a copy of the message.\r\n\r\nReturn-Path: <s@x.test>\r\nSubject: x\r\n\r\nbody\r\n"
	if !strings.HasSuffix(got, want) || !strings.Contains(got, "\r\nSubject: sorry\r\n") || strings.Contains(got, "MIME-Version") {
		t.Errorf("%q", got)
	}
	r = report1(r)
	r.HeaderOnly = true
	if got := write(t, r); !strings.HasSuffix(got, "a copy of the header of the message.\r\n\r\nReturn-Path: <s@x.test>\r\nSubject: x\r\n") {
		t.Errorf("%q", got)
	}
}
