package cli

import (
	"strings"
	"testing"
	"time"
)

// TestCopyProgress: one line a table that has rows, and for one that takes long a line every ten seconds.
func TestCopyProgress(t *testing.T) {
	var out strings.Builder
	now := time.Unix(0, 0)
	rows := map[string]int64{}
	tell := copyProgress(&out, func() time.Time { return now }, rows)
	tell("indibak", 0, 0)
	for n := int64(1000); n < 30000; n += 1000 {
		now = now.Add(time.Second)
		tell("indimail", n, 30000)
	}
	tell("indimail", 30000, 30000)
	tell("indimail", 30000, 30000)
	tell("vlog", 5, 5)
	want := "indimail: 10000 of 30000\nindimail: 20000 of 30000\nindimail: 30000 of 30000\nvlog: 5 of 5\n"
	if out.String() != want || len(rows) != 3 {
		t.Errorf("%s%v", out.String(), rows)
	}
}
