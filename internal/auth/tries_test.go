package auth

import "testing"

func TestTries(t *testing.T) {
	for _, c := range []struct {
		name       string
		mechanisms []string
		want       int // how many it bears
	}{
		{"one", []string{"PLAIN"}, 2},
		{"two by turns", []string{"PLAIN", "LOGIN"}, 4},
		{"down a list", []string{"A", "B", "C", "D", "E", "F", "G", "H", "I", "J", "K", "L"}, 19},
	} {
		var tries Tries
		n := 0
		for !tries.Failed(c.mechanisms[n%len(c.mechanisms)]) {
			n++
		}
		if n != c.want {
			t.Errorf("%s: %d were borne, want %d", c.name, n, c.want)
		}
	}
}
