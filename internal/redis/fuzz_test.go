package redis

import (
	"bufio"
	"strings"
	"testing"
)

// FuzzReply: whatever a server sends ends in words within the limits, or in an error.
func FuzzReply(f *testing.F) {
	for _, seed := range []string{
		"+OK\r\n", ":12\r\n", "-WRONGPASS invalid\r\n", "$-1\r\n", "$3\r\na\r\n\r\n", "*2\r\n$1\r\na\r\n:3\r\n", "*2\r\n-ERR x\r\n+y\r\n", "*1\r\n*1\r\n*1\r\n*1\r\n*0\r\n", "*1000000000\r\n", "$2000000000\r\n", "$3\r\nabcd\r\n", "+OK\n", "\r\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		in := bufio.NewReader(strings.NewReader(text))
		for range 100 {
			r, err := readReply(in)
			if err != nil {
				return
			}
			size := 0
			for _, w := range r.words {
				size += len(w)
			}
			if len(r.words) > len(text) || size > len(text) {
				t.Fatalf("%q gives %d words of %d bytes", text, len(r.words), size)
			}
		}
		if len(text) < 300 {
			t.Fatalf("%q has no end", text)
		}
	})
}
