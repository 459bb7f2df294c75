package service

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/door"
	"github.com/indigomail/indigo/internal/settings"
)

// udpLogger writes what it gets by UDP to a directory, a line each with the time and the sender's address before it: the
// receiver of programs on this and other hosts that log by UDP (wiki 707, 4673).
type udpLogger struct {
	name string
	conn net.PacketConn
	out  *Multilog
	log  *slog.Logger

	mu      sync.Mutex
	closing bool
}

// maxPacket is the largest line; UDP has no larger ones.
const maxPacket = 64 << 10

func (h *House) newUDPLogger(name string, view func() *settings.View, conn net.PacketConn, log *slog.Logger) (server, error) {
	dir := settings.UDPLogDir.Get(view())
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(h.config.Data, dir)
	}
	out, err := OpenMultilog(dir, int64(settings.LogSize.Get(view())), settings.LogNumber.Get(view()), time.Now)
	if err != nil {
		return nil, fmt.Errorf("service %s: %w", name, err)
	}
	return &udpLogger{name: name, conn: conn, out: out, log: log}, nil
}

// Serve writes until Shutdown.
func (u *udpLogger) Serve(context.Context, net.Listener) error {
	defer u.out.Close()
	packet := make([]byte, maxPacket)
	for {
		n, from, err := u.conn.ReadFrom(packet)
		if err != nil {
			u.mu.Lock()
			defer u.mu.Unlock()
			if u.closing {
				return nil
			}
			return err
		}
		line := bytes.TrimRight(packet[:n], "\r\n\x00")
		for i, c := range line {
			if c < ' ' && c != '\t' || c == 0x7f {
				line[i] = '?'
			}
		}
		if _, err := fmt.Fprintf(u.out, "%s %s %s\n", TAI64N(time.Now()), door.Host(from), line); err != nil {
			return err
		}
	}
}

// Shutdown ends Serve.
func (u *udpLogger) Shutdown(context.Context) {
	u.mu.Lock()
	u.closing = true
	u.mu.Unlock()
	u.conn.Close()
}
