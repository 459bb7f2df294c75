package message

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestFields(t *testing.T) {
	header := "A: 1\r\nB : 2\r\n\t3\r\nno colon\r\nbad name: x\r\nreceived: y\r\n"
	full := []byte(header + "\r\nbody: z\r\n")
	if end := HeaderEnd(full); end != len(header) {
		t.Fatalf("header ends at %d, want %d", end, len(header))
	}
	fields := Fields(full[:len(header)])
	var names, values []string
	for _, f := range fields {
		names, values = append(names, string(f.Name)), append(values, f.Value())
	}
	if got := strings.Join(names, "|"); got != "A|B|||received" {
		t.Errorf("names %s", got)
	}
	if values[1] != "2\t3" || !fields[4].Is("Received") {
		t.Errorf("values %q", values)
	}
}

func TestReceivedCannotBeForged(t *testing.T) {
	r := Received{Program: "smtpd", ID: "7", Helo: "x)\r\nEvil: y", User: "u@d", Client: "::1", Host: "h", With: "ESMTPSA",
		TLS: "TLSv1.3", Time: time.Date(2022, 10, 21, 23, 4, 36, 0, time.FixedZone("", 19800))}
	want := "Received: indimail-mta smtpd 7 (HELO x???Evil:?y) (u@d@::1)\r\n by h with ESMTPSA (TLSv1.3);\r\n Fri, 21 Oct 2022 23:04:36 +0530\r\n"
	if got := r.String(); got != want {
		t.Errorf("got %q", got)
	}
}

func FuzzFields(f *testing.F) {
	f.Add([]byte("A: 1\r\n\tx\r\n\r\nbody"))
	f.Add([]byte(" x\n:\n\nq"))
	f.Fuzz(func(t *testing.T, b []byte) {
		header := b[:HeaderEnd(b)]
		var all []byte
		for _, field := range Fields(header) {
			_ = field.Value()
			all = append(all, field.Raw...)
		}
		if !bytes.Equal(all, header) {
			t.Fatalf("fields hold %q of %q", all, header)
		}
	})
}
