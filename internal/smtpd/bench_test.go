package smtpd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/trace"
)

// noDisk accepts everything and keeps nothing.
type noDisk struct{ last atomic.Uint64 }

type nothing struct{ id queue.ID }

func (n *noDisk) Begin(context.Context, int64) (queue.Submission, error) {
	return &nothing{queue.ID(n.last.Add(1))}, nil
}

func (n *nothing) ID() queue.ID                                 { return n.id }
func (n *nothing) Write(p []byte) (int, error)                  { return len(p), nil }
func (n *nothing) Commit(context.Context, queue.Envelope) error { return nil }
func (n *nothing) Abort()                                       {}

// BenchmarkAccept is the ceiling of the dialogue: 4 KiB messages over loopback, 20 connections, and no disk behind it. The
// client's work is in the time too. "lockstep" waits for each reply, as postfix's smtp-source does; "pipelined" sends
// RFC 2920 groups; "connection" takes a new connection for each message.
func BenchmarkAccept(b *testing.B) {
	body := "From: a@far.example\r\nTo: ann@here.example\r\nSubject: benchmark\r\nMessage-ID: <x@far.example>\r\n\r\n" + strings.Repeat(strings.Repeat("x", 62)+"\r\n", 63) + ".\r\n"
	group := "MAIL FROM:<a@far.example> SIZE=4096\r\nRCPT TO:<ann@here.example>\r\nDATA\r\n"
	for _, mode := range []string{"lockstep", "pipelined", "connection"} {
		b.Run(mode, func(b *testing.B) {
			f := start(b, map[string]string{"maxperip": "1000"}, func(c *Config) {
				c.Queue, c.Trace, c.Now = &noDisk{}, trace.Discard, time.Now
			})
			b.ReportAllocs()
			b.SetParallelism(10)
			b.RunParallel(func(pb *testing.PB) {
				var k *quick
				for pb.Next() {
					if k == nil {
						k = hello(b, f.addr)
					}
					if mode == "pipelined" {
						k.exchange(group, 3)
					} else {
						for line := range strings.Lines(group) {
							k.exchange(line, 1)
						}
					}
					k.exchange(body, 1)
					if mode == "connection" {
						k.exchange("QUIT\r\n", 1)
						k.Close()
						k = nil
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
		})
	}
}

// quick is a client that costs little.
type quick struct {
	net.Conn
	r *bufio.Reader
	b *testing.B
}

func hello(b *testing.B, address string) *quick {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		panic(err)
	}
	k := &quick{conn, bufio.NewReader(conn), b}
	k.exchange("", 1)
	k.exchange("HELO c.example\r\n", 1)
	return k
}

// exchange sends s and reads n replies of one line.
func (k *quick) exchange(s string, n int) {
	if s != "" {
		if _, err := io.WriteString(k, s); err != nil {
			panic(err)
		}
	}
	for range n {
		line, err := k.r.ReadSlice('\n')
		if err != nil || line[0] != '2' && line[0] != '3' {
			panic(fmt.Sprintf("reply %q, %v", line, err))
		}
	}
}
