package tlsx

import (
	"crypto/tls"
	"net"
)

// Goodbye tells the other end of TLS that there is no more to come (close_notify, RFC 8446 section 6.1), within five seconds: without it the end looks
// like an attack. A connection in clear, or one that is gone, is left as it is. The connection itself stays open.
func Goodbye(conn net.Conn) {
	if secure, ok := conn.(*tls.Conn); ok {
		_ = secure.CloseWrite()
	}
}
