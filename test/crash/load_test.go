package crash

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"
)

// promised is where a message must be once it got its 250; bounced is with its sender, as a bounce.
type promised struct{ local, remote, bounced bool }

// ledger holds what the server has acknowledged.
type ledger struct {
	mu    sync.Mutex
	acked map[string]promised
	// refused holds replies that no test asked for.
	refused []string
}

func (l *ledger) ack(name string, p promised) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked[name] = p
}

func (l *ledger) refuse(reply string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused = append(l.refused, strings.TrimSpace(reply))
}

// session is one SMTP connection, as simple as can be: it never waits for more than the reply to what it sent.
type session struct {
	conn net.Conn
	r    *bufio.Reader
}

func dial(address string) (*session, error) {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		conn.Close()
		return nil, err
	}
	s := &session{conn, bufio.NewReader(conn)}
	if _, err := s.reply(); err != nil {
		conn.Close()
		return nil, err
	}
	return s, nil
}

// reply reads one reply and gives its last line.
func (s *session) reply() (string, error) {
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			return "", err
		}
		if len(line) < 4 {
			return "", fmt.Errorf("reply %q", line)
		}
		if line[3] == ' ' {
			return strings.TrimSpace(line), nil
		}
	}
}

// command sends one command and wants a reply that begins with code. The reply comes back with the error, "" when the
// connection broke.
func (s *session) command(code, text string) (string, error) {
	if _, err := s.conn.Write([]byte(text + "\r\n")); err != nil {
		return "", err
	}
	line, err := s.reply()
	if err == nil && !strings.HasPrefix(line, code) {
		err = fmt.Errorf("%.40s: %s", text, line)
	}
	return line, err
}

// send sends one message from a sender, in wire form and without leading dots, and gives the reply to it.
func (s *session) send(from string, message []byte, to ...string) (string, error) {
	if line, err := s.command("250", "MAIL FROM:<"+from+">"); err != nil {
		return line, err
	}
	for _, recipient := range to {
		if line, err := s.command("250", "RCPT TO:<"+recipient+">"); err != nil {
			return line, err
		}
	}
	if line, err := s.command("354", "DATA"); err != nil {
		return line, err
	}
	if _, err := s.conn.Write(message); err != nil {
		return "", err
	}
	return s.command("250", ".")
}

// flood sends numbered messages, a few a connection, until the server is gone.
func flood(address, prefix string, random *rand.Rand, all [][]byte, l *ledger) {
	for n := 0; ; {
		s, err := dial(address)
		if err != nil {
			return
		}
		if _, err := s.command("250", "EHLO crash.test"); err != nil {
			s.conn.Close()
			return
		}
		for range 1 + random.IntN(8) {
			name := fmt.Sprintf("%s-%d", prefix, n)
			n++
			var p promised
			var to []string
			from := "sender@sender.test"
			switch random.IntN(10) {
			case 0:
				p, to = promised{local: true, remote: true}, []string{localUser, remoteUser}
			case 1:
				p, to = promised{remote: true}, []string{remoteUser}
			case 2:
				from, p, to = localUser, promised{bounced: true}, []string{badUser}
			case 3:
				from, p, to = localUser, promised{local: true, remote: true, bounced: true}, []string{remoteUser, badUser, localUser}
			default:
				p, to = promised{local: true}, []string{localUser}
			}
			reply, err := s.send(from, compose(name, pick(random, all)), to...)
			if err != nil {
				if reply != "" {
					l.refuse(reply)
				}
				s.conn.Close()
				return
			}
			l.ack(name, p)
		}
		s.conn.Close()
	}
}
