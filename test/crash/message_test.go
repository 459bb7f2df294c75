package crash

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"strings"
)

const (
	localUser  = "u@indigo.test"
	remoteUser = "v@remote.test"
	// badUser is refused by the remote server: a message to it bounces.
	badUser = "bad@remote.test"
)

// bodies are what messages carry: from nothing to what no longer fits the queue's log and lies in a file of its own.
func bodies() [][]byte {
	random := rand.New(rand.NewPCG(1, 1))
	var all [][]byte
	for _, size := range []int{0, 500, 2000, 4096, 20000, 300000} {
		var b bytes.Buffer
		for b.Len() < size {
			fmt.Fprintf(&b, "%016x%016x%016x\r\n", random.Uint64(), random.Uint64(), random.Uint64())
		}
		all = append(all, b.Bytes())
	}
	return all
}

// pick favours small bodies.
func pick(random *rand.Rand, all [][]byte) []byte {
	if random.IntN(50) == 0 {
		return all[len(all)-1]
	}
	return all[random.IntN(len(all)-1)]
}

// compose gives a message in wire form whose name and whose body's sum are in its header.
func compose(name string, body []byte) []byte {
	return fmt.Appendf(nil, "Subject: %s\r\nX-Sum: %s\r\n\r\n%s", name, sum(body), body)
}

// sum is the same for CRLF and LF line ends.
func sum(body []byte) string {
	return fmt.Sprintf("%x", sha256.Sum256(bytes.ReplaceAll(body, []byte("\r\n"), []byte("\n"))))
}

// identify gives the name of a delivered message, and an error when the message is not whole.
func identify(message []byte) (string, error) {
	message = bytes.ReplaceAll(message, []byte("\r\n"), []byte("\n"))
	header, body, ok := bytes.Cut(message, []byte("\n\n"))
	if !ok {
		return "", fmt.Errorf("no end of header in %d bytes", len(message))
	}
	var name, want string
	for line := range strings.Lines(string(header)) {
		line = strings.TrimRight(line, "\n")
		if value, ok := strings.CutPrefix(line, "Subject: "); ok {
			name = value
		}
		if value, ok := strings.CutPrefix(line, "X-Sum: "); ok {
			want = value
		}
	}
	if name == "" || want == "" {
		return name, fmt.Errorf("not a message of this test (a bounce?):\n%s", header)
	}
	if got := sum(body); got != want {
		return name, fmt.Errorf("message %s: its body of %d bytes is damaged", name, len(body))
	}
	return name, nil
}

// identifyBounce gives the name of the message that bounced; ok is false when this is no bounce.
func identifyBounce(message []byte) (name string, ok bool) {
	message = bytes.ReplaceAll(message, []byte("\r\n"), []byte("\n"))
	if header, _, _ := bytes.Cut(message, []byte("\n\n")); !bytes.Contains(header, []byte("\nX-Bounced-Address: "+badUser)) {
		return "", false
	}
	for line := range strings.Lines(string(message)) {
		if value, ok := strings.CutPrefix(line, "Subject: "); ok {
			name = strings.TrimSpace(value)
		}
	}
	return name, true
}
