package crash

import (
	"bufio"
	"bytes"
	"net"
	"strings"
	"sync"
	"testing"
)

// sink is a remote mail server that takes everything and notes in which life of the instance it came.
type sink struct {
	listener net.Listener
	serving  sync.WaitGroup

	mu    sync.Mutex
	life  int
	conns map[net.Conn]bool
	// taken holds, by name, the lives in which a message was accepted.
	taken  map[string][]int
	faults []error
}

func startSink(t *testing.T) *sink {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{listener: l, conns: map[net.Conn]bool{}, taken: map[string][]int{}}
	s.serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[conn] = true
			s.mu.Unlock()
			s.serving.Go(func() { s.serve(conn) })
		}
	})
	t.Cleanup(s.close)
	return s
}

func (s *sink) close() {
	s.listener.Close()
	s.mu.Lock()
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
}

func (s *sink) setLife(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life = n
}

func (s *sink) serve(conn net.Conn) {
	defer func() {
		conn.Close()
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
	}()
	r := bufio.NewReader(conn)
	say := func(line string) bool {
		_, err := conn.Write([]byte(line + "\r\n"))
		return err == nil
	}
	if !say("220 sink.test ESMTP") {
		return
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(line)), " ")
		switch verb {
		case "EHLO", "HELO":
			if !say("250-sink.test\r\n250-PIPELINING\r\n250 8BITMIME") {
				return
			}
		case "DATA":
			if !say("354 go on") {
				return
			}
			var message bytes.Buffer
			for {
				line, err := r.ReadBytes('\n')
				if err != nil {
					return
				}
				if string(line) == ".\r\n" {
					break
				}
				message.Write(bytes.TrimPrefix(line, []byte(".")))
			}
			// Noted before the reply: once the sender may have seen it, this is the truth.
			s.take(message.Bytes())
			if !say("250 2.0.0 taken") {
				return
			}
		case "RCPT":
			answer := "250 ok"
			if strings.Contains(line, "<"+badUser+">") {
				answer = "550 5.1.1 no such user"
			}
			if !say(answer) {
				return
			}
		case "QUIT":
			say("221 bye")
			return
		default:
			if !say("250 ok") {
				return
			}
		}
	}
}

func (s *sink) take(message []byte) {
	name, err := identify(message)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.faults = append(s.faults, err)
		return
	}
	s.taken[name] = append(s.taken[name], s.life)
}
