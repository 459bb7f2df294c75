package wire

import "testing"

func TestPrintable(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""}, {"250 Grüße, 例え", "250 Grüße, 例え"}, {"a\tb\r\n", "a b??"}, {"\x1b[2Jx\x7f", "?[2Jx?"},
		{"\u009b2J", "?2J"},          // the same for a terminal of eight bits
		{"a\xff\xfeb", "a?b"},        // no UTF-8
		{"abc\u202etxt", "abc?txt"},  // would be shown from right to left
		{"pay\u200bpal", "pay?pal"},  // would not be shown
		{"a\u2028b\u0085c", "a?b?c"}, // lines of another kind
		{"\U000e0041\ufeff!", "??!"}, // tags, and the mark of a byte order
		{"combining e\u0301", "combining e\u0301"},
	} {
		if got := Printable(c.in); got != c.want {
			t.Errorf("Printable(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}
