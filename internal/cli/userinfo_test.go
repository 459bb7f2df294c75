package cli

import (
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/directory"
)

func TestFormNames(t *testing.T) {
	for stored, want := range map[string]string{
		"": "", "$1$awb5a5oV$/3rsmlKSu.wzwIFhBzMf7/": "MD5", "$5$Q6JwFGYxvqrm6Xzb$Lr.d1CMxy7j0Y0xFgRY.FgHKy/LDXpA5tFo22ziz6aA": "SHA256", "!$1$x": "locked", "$9$x": "unknown",
	} {
		if got := formNames(stored, ""); got != want {
			t.Errorf("%q: %q, want %q", stored, got, want)
		}
	}
	if got := formNames("$1$awb5a5oV$/3rsmlKSu.wzwIFhBzMf7/", "{CRAM}secret"); got != "MD5, CLEAR" {
		t.Error(got)
	}
}

func TestUserInfoValues(t *testing.T) {
	for bytes, want := range map[int64]string{524288000: "500.00 MiB", 5242880: "5.00 MiB", 0: "0.00 MiB", 1 << 30: "1.00 GiB", 1<<30 - 1: "1024.00 MiB", 3 << 29: "1.50 GiB"} {
		if got := mib(bytes); got != want {
			t.Errorf("%d: %q, want %q", bytes, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		10*time.Hour + 18*time.Minute + 43*time.Second: "0 days 10 Hrs 18 Mins 43 Secs", 49 * time.Hour: "2 days 01 Hrs 00 Mins 00 Secs", -time.Second: "0 days 00 Hrs 00 Mins 00 Secs",
	} {
		if got := days(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
	at := time.Date(2019, 7, 2, 9, 33, 55, 0, time.Local)
	if got := (&occasion{at, "127.0.0.1"}).or("never"); got != "(127.0.0.1) Tue Jul  2 09:33:55 2019" {
		t.Error(got)
	}
	// Each flag has its line.
	for f := directory.Flags(1); f <= directory.Override; f <<= 1 {
		if f.Names() != nil && len(serviceLines(f)) != 1 {
			t.Errorf("%v: %v", f.Names(), serviceLines(f))
		}
	}
}
