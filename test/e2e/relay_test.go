package e2e

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/indigomail/indigo/test/instance"
)

// TestRelayAndBounce has two instances:
//
//	near: alice@near.test --AUTH--> near --smtproutes, STARTTLS--> far: bob@far.test, and nobody@far.test bounces
func TestRelayAndBounce(t *testing.T) {
	need(t, "python3")
	far := again(t, filepath.Join(folder(t), "far"), "--domain", "far.test", "--user", "bob")
	near := again(t, filepath.Join(folder(t), "near"), "--domain", "near.test", "--user", "alice", "--password-file", passwordFile(t))
	command(t, near, "settings", "set", "SMTPROUTES", "far.test:"+far.Address("smtpd.25"))
	if err := near.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	// Nothing outside tells when a reload is done but the log.
	err := instance.Await(within(t, waiting), "the settings are read again", func() (bool, error) {
		return strings.Contains(near.Log(), "reload: "), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join("..", "testdata", "send.py")
	args := []string{script, near.Address("smtpd.465"), "alice@near.test", password, "bob@far.test", "nobody@far.test"}
	if code, out := peer(t, "python3", args...); code != 0 {
		t.Fatalf("sending: exit code %d\n%s", code, out)
	}
	if mail := awaitMail(t, far, "Subject: relayed"); !strings.Contains(mail, "\n.dot\n") || strings.Count(mail, "Received: ") != 2 {
		t.Errorf("the message at the far end:\n%s", mail)
	}
	bounce := awaitMail(t, near, "Final-Recipient: rfc822; nobody@far.test")
	for _, want := range []string{"Return-Path: <>", "Action: failed", "Status: 5.1.1", "Subject: relayed"} {
		if !strings.Contains(bounce, want) {
			t.Errorf("the bounce has no %q:\n%s", want, bounce)
		}
	}
	story := command(t, near, "explain", "nobody@far.test")
	for _, want := range []string{"550 5.1.1", "STARTTLS"} {
		if !strings.Contains(story, want) {
			t.Errorf("the story has no %q:\n%s", want, story)
		}
	}
	awaitEmpty(t, near)

	// What the sender wants to be told goes along: it is the far end that tells of the delivery, with the sender's own name
	// for the message (RFC 3461).
	program, err := filepath.Abs(string(indigo))
	if err != nil {
		t.Fatal(err)
	}
	command(t, far, "settings", "set", "SMTPROUTES", "near.test:"+near.Address("smtpd.25"))
	command(t, far, "reload")
	code, out := peer(t, "env", "INDIGO_DATA="+near.Ready.Data, program, "sendmail", "-f", "alice@near.test", "-N", "success", "-V", "end to end", "bob@far.test")
	if code != 0 {
		t.Fatalf("sendmail: exit code %d\n%s", code, out)
	}
	notice := awaitMail(t, near, "Subject: success notice")
	for _, want := range []string{"Original-Envelope-Id: end to end", "Final-Recipient: rfc822; bob@far.test", "Action: delivered", "Reporting-MTA: dns; mail.far.test"} {
		if !strings.Contains(notice, want) {
			t.Errorf("the notice has no %q:\n%s", want, notice)
		}
	}
}
