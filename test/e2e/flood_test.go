package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// popLogins makes a connection to a POP3 service from an address, tries logins, and gives the replies until the server hangs up.
func popLogins(service, from string, logins ...[2]string) (replies []string, err error) {
	dialer := net.Dialer{Timeout: 20 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))}
	conn, err := dialer.Dial("tcp", service)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	in := bufio.NewReader(conn)
	if _, err := in.ReadString('\n'); err != nil {
		return nil, err
	}
	for _, l := range logins {
		fmt.Fprintf(conn, "USER %s\r\n", l[0])
		if _, err := in.ReadString('\n'); err != nil {
			return replies, err
		}
		fmt.Fprintf(conn, "PASS %s\r\n", l[1])
		line, err := in.ReadString('\n')
		if err != nil {
			return replies, err
		}
		replies = append(replies, strings.TrimSpace(line))
	}
	return replies, nil
}

// TestLoginFlood tries 10,000 wrong logins from 20 addresses by 60 connections at a time: of each address no more than twice
// AUTH_LOCK_CLIENT are looked at, all others are refused. Meanwhile mail is taken, and a user gets in from where she is known, without a
// wait that anybody would notice.
func TestLoginFlood(t *testing.T) {
	in := up(t)
	for name, value := range map[string]string{"SECURE_AUTH": "0", "AUTH_EXEMPT": "none", "AUTH_DELAY": "1"} {
		command(t, in, "settings", "set", name, value)
	}
	command(t, in, "reload")
	pop, smtp := in.Address("pop3d.110"), in.Address("smtpd.25")
	const home = "127.3.0.1"
	if replies, err := popLogins(pop, home, [2]string{"alice@indigo.test", password}); err != nil || !strings.HasPrefix(replies[0], "+OK") {
		t.Fatal(replies, err)
	}
	const attempts, addresses = 10000, 20
	var next, wrong, refused, other atomic.Int64
	var flood sync.WaitGroup
	over := make(chan struct{})
	for range 60 {
		flood.Go(func() {
			for {
				n := next.Add(3)
				if n > attempts+2 {
					return
				}
				login := func(i int64) [2]string {
					return [2]string{fmt.Sprintf("user%d@indigo.test", (n+i)%500), fmt.Sprintf("guess%d", n+i)}
				}
				replies, err := popLogins(pop, fmt.Sprintf("127.4.0.%d", n/3%addresses+1), login(0), login(1), login(2))
				if err != nil && len(replies) < 3 {
					other.Add(1)
				}
				for _, r := range replies {
					switch {
					case strings.HasPrefix(r, "-ERR [AUTH]"):
						wrong.Add(1)
					case strings.HasPrefix(r, "-ERR [SYS/TEMP] too many failed logins"):
						refused.Add(1)
					default:
						other.Add(1)
						t.Log(r)
					}
				}
			}
		})
	}
	go func() { flood.Wait(); close(over) }()
	var slowestMail, slowestLogin time.Duration
	mails, logins := 0, 0
	for flooding := true; flooding || mails < 20; {
		began := time.Now()
		if err := send(t, smtp, "far@away.test", []string{"alice@indigo.test"}, fmt.Sprintf("Subject: mail %d\n\nx\n", mails)); err != nil {
			t.Fatal(err)
		}
		slowestMail = max(slowestMail, time.Since(began))
		mails++
		began = time.Now()
		if replies, err := popLogins(pop, home, [2]string{"alice@indigo.test", password}); err != nil || !strings.HasPrefix(replies[0], "+OK") && !strings.Contains(replies[0], "[IN-USE]") {
			t.Fatal(replies, err)
		}
		slowestLogin = max(slowestLogin, time.Since(began))
		logins++
		select {
		case <-over:
			flooding = false
		default:
		}
	}
	t.Logf("%d wrong, %d refused; %d mails, the slowest in %v; %d logins, the slowest in %v", wrong.Load(), refused.Load(), mails, slowestMail, logins, slowestLogin)
	if other.Load() > 0 || wrong.Load() < 10*addresses || wrong.Load() > 20*addresses || wrong.Load()+refused.Load() < attempts {
		t.Errorf("%d wrong, %d refused, %d other", wrong.Load(), refused.Load(), other.Load())
	}
	// The machine may be busy; without the order of turns a login waits behind 60 hashes.
	if slowestMail > 3*time.Second || slowestLogin > 3*time.Second {
		t.Errorf("mail took up to %v, logins %v", slowestMail, slowestLogin)
	}
	if list := command(t, in, "auth", "locks", "list", "--json"); strings.Count(list, `"by":"client"`) != addresses {
		t.Errorf("locks: %s", list)
	}
}
