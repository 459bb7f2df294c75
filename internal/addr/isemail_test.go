package addr

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestIsEmail reads the addresses of the isemail suite: in an envelope only its categories of valid addresses and of RFC
// 5321's rarer forms may be taken, comments and folding never.
func TestIsEmail(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "shared", "testdata", "address", "tests.xml"))
	if err != nil {
		t.Skip("the public test addresses are not on this machine: ", err)
	}
	var suite struct {
		Tests []struct {
			ID       string `xml:"id,attr"`
			Address  string `xml:"address"`
			Category string `xml:"category"`
			Reason   string `xml:"diagnosis"`
		} `xml:"test"`
	}
	if err := xml.Unmarshal(text, &suite); err != nil {
		t.Fatal(err)
	}
	taken := 0
	for _, tc := range suite.Tests {
		// The suite writes control characters as their symbols.
		address := strings.Map(func(r rune) rune {
			if r >= 0x2400 && r <= 0x2420 {
				return r - 0x2400
			}
			return r
		}, tc.Address)
		a, err := Parse(address)
		valid := tc.Category == "ISEMAIL_VALID_CATEGORY" || tc.Category == "ISEMAIL_DNSWARN" || tc.Category == "ISEMAIL_RFC5321"
		if err == nil {
			taken++
		}
		// An empty local part, which Indigo has no user for, is the one form of the grammar that is refused.
		if valid != (err == nil) && address != `""@iana.org` {
			t.Errorf("test %s: %q is %s (%s), but was read as %+v, %v", tc.ID, address, tc.Category, tc.Reason, a, err)
		}
		if err != nil {
			continue
		}
		if again, err := Parse(a.String()); err != nil || again != a {
			t.Errorf("test %s: %q does not read back: %q, %v", tc.ID, address, a.String(), err)
		}
	}
	if len(suite.Tests) < 150 || taken < 30 {
		t.Errorf("%d addresses, %d taken", len(suite.Tests), taken)
	}
}
