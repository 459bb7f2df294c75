// Package redisserver starts servers of Redis's protocol of a test's own, from the host's packages: on a free port of the loopback, in a
// directory that is removed. Nothing of the host's own server is touched.
package redisserver

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ErrMissing says that neither redis-server nor valkey-server is installed.
var ErrMissing = errors.New("neither redis-server nor valkey-server is installed")

// Server is a running server.
type Server struct {
	// Port is its port on 127.0.0.1, Socket its Unix socket without TLS, CA the file of the authority of its certificate, with TLS.
	Port, Socket, CA string
	// Dir holds everything.
	Dir string

	program, user, password string
	lines                   []string
	cmd                     *exec.Cmd
}

// Config says what a server is to have.
type Config struct {
	// TLS has it speak nothing else at its port.
	TLS bool
	// Password is the default user's, "" for none; User, with Password, is one who has the rights in Rules and no others.
	User, Password, Rules string
	// Lines are added to its configuration.
	Lines []string
}

// For starts a server for one test, or skips; where INDIGO_REQUIRE_PEERS is set, a missing one is a failure.
func For(t testing.TB, config Config) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := Start(ctx, config)
	if errors.Is(err, ErrMissing) && os.Getenv("INDIGO_REQUIRE_PEERS") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Remove)
	return s
}

// Start makes a server and waits until it answers.
func Start(ctx context.Context, config Config) (*Server, error) {
	s := &Server{user: config.User, password: config.Password}
	for _, name := range []string{"redis-server", "valkey-server"} {
		if path, err := exec.LookPath(name); err == nil && s.program == "" {
			s.program = path
		}
	}
	if s.program == "" {
		return nil, ErrMissing
	}
	var err error
	if s.Dir, err = os.MkdirTemp("", "indigo-redis"); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	_, s.Port, _ = net.SplitHostPort(l.Addr().String())
	l.Close()
	s.Socket = filepath.Join(s.Dir, "socket")
	port := "port"
	if config.TLS {
		if err := s.certify(); err != nil {
			return nil, err
		}
		port = "tls-port"
		s.lines = []string{"port 0", "tls-cert-file " + filepath.Join(s.Dir, "cert.pem"), "tls-key-file " + filepath.Join(s.Dir, "key.pem"), "tls-ca-cert-file " + s.CA, "tls-auth-clients no"}
	}
	s.lines = append(s.lines, "bind 127.0.0.1", port+" "+s.Port, "unixsocket "+s.Socket, "unixsocketperm 777", "dir "+s.Dir, `save ""`, "appendonly no", "daemonize no", "logfile "+filepath.Join(s.Dir, "log"))
	switch {
	case config.User != "":
		s.lines = append(s.lines, "user default off", fmt.Sprintf("user %s on %q %s", config.User, ">"+config.Password, config.Rules))
	case config.Password != "":
		s.lines = append(s.lines, fmt.Sprintf("requirepass %q", config.Password))
	}
	s.lines = append(s.lines, config.Lines...)
	if err := s.Again(ctx); err != nil {
		s.Remove()
		return nil, err
	}
	return s, nil
}

// URL is where it is, with user and password.
func (s *Server) URL() string {
	u := url.URL{Scheme: "redis", Host: "127.0.0.1:" + s.Port}
	if s.CA != "" {
		u.Scheme = "rediss"
	}
	if s.password != "" {
		u.User = url.UserPassword(s.user, s.password)
	}
	return u.String()
}

// SocketURL is URL by the Unix socket.
func (s *Server) SocketURL() string {
	u := url.URL{Scheme: "unix", Path: s.Socket}
	if s.password != "" {
		u.User = url.UserPassword(s.user, s.password)
	}
	return u.String()
}

// Again starts the server that Kill ended, with nothing in it, and waits until it answers.
func (s *Server) Again(ctx context.Context) error {
	file := filepath.Join(s.Dir, "conf")
	if err := os.WriteFile(file, []byte(strings.Join(s.lines, "\n")+"\n"), 0o600); err != nil {
		return err
	}
	s.cmd = exec.Command(s.program, file)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := s.Do(ctx, "PING")
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			text, _ := os.ReadFile(filepath.Join(s.Dir, "log"))
			return fmt.Errorf("%s does not answer: %w: %s", s.program, err, text)
		}
	}
}

// Do sends a command by the Unix socket and gives the answer as it came, its first line for what is no array.
func (s *Server) Do(ctx context.Context, words ...string) (string, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", s.Socket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if end, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(end)
	}
	send := func(words ...string) {
		fmt.Fprintf(conn, "*%d\r\n", len(words))
		for _, w := range words {
			fmt.Fprintf(conn, "$%d\r\n%s\r\n", len(w), w)
		}
	}
	in := bufio.NewReader(conn)
	if s.password != "" {
		if s.user != "" {
			send("AUTH", s.user, s.password)
		} else {
			send("AUTH", s.password)
		}
		if line, err := in.ReadString('\n'); err != nil || line[0] != '+' {
			return "", fmt.Errorf("AUTH: %s %w", line, err)
		}
	}
	send(words...)
	return answer(in)
}

func answer(in *bufio.Reader) (string, error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSpace(line)
	n := 0
	fmt.Sscan(line[1:], &n)
	switch line[0] {
	case '-':
		return "", errors.New(line[1:])
	case '*':
		var all []string
		for range n {
			one, err := answer(in)
			if err != nil {
				return "", err
			}
			all = append(all, one)
		}
		return strings.Join(all, "\n"), nil
	case '$':
		if n < 0 {
			return "", nil
		}
		b := make([]byte, n+2)
		for read := 0; read < len(b); {
			m, err := in.Read(b[read:])
			if err != nil {
				return "", err
			}
			read += m
		}
		return string(b[:n]), nil
	}
	return line[1:], nil
}

// Kill ends the server at once, as a crash would; all that it knew is gone.
func (s *Server) Kill() {
	if s.cmd == nil || s.cmd.Process == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
}

// Pause stops it in the middle of whatever it does: it takes connections, and answers nothing until Continue.
func (s *Server) Pause() error { return s.cmd.Process.Signal(syscall.SIGSTOP) }

// Continue ends Pause.
func (s *Server) Continue() error { return s.cmd.Process.Signal(syscall.SIGCONT) }

// Remove ends the server and removes what it had.
func (s *Server) Remove() {
	s.Kill()
	os.RemoveAll(s.Dir)
}

// certify makes an authority and a certificate of it for 127.0.0.1.
func (s *Server) certify() error {
	s.CA = filepath.Join(s.Dir, "ca.pem")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	root, err := x509.CreateCertificate(rand.Reader, authority, authority, key.Public(), key)
	if err != nil {
		return err
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "redis"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	cert, err := x509.CreateCertificate(rand.Reader, leaf, authority, own.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name, kind string
		der        []byte
	}{{"ca.pem", "CERTIFICATE", root}, {"cert.pem", "CERTIFICATE", cert}, {"key.pem", "PRIVATE KEY", private}} {
		if err := os.WriteFile(filepath.Join(s.Dir, f.name), pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der}), 0o644); err != nil {
			return err
		}
	}
	return nil
}
