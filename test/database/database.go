// Package database starts database servers of a test's own, from the host's packages: on free ports and sockets of the
// loopback, in directories that are removed. Nothing of the host's own servers is touched.
package database

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// ErrMissing says that the programs of a server are not installed.
var ErrMissing = errors.New("the server's programs are not installed")

// Server is a running server with an empty database "indimail" of a user "indimail".
type Server struct {
	// Kind is "mariadb" or "postgres"; Port is its TCP port on 127.0.0.1, Socket its socket's path (a directory for postgres).
	Kind, Port, Socket string
	// Dir holds everything; Password is the user's.
	Dir, Password string

	programs   string
	credential *syscall.Credential
	cmd        *exec.Cmd
}

// DSN is the database's URL over TCP.
func (s *Server) DSN() string {
	if s.Kind == "postgres" {
		return fmt.Sprintf("postgres://indimail:%s@127.0.0.1:%s/indimail?sslmode=disable", s.Password, s.Port)
	}
	return fmt.Sprintf("mysql://indimail:%s@127.0.0.1:%s/indimail?tls=false", s.Password, s.Port)
}

// Start makes a server of a kind and waits until it answers.
func Start(ctx context.Context, kind string) (*Server, error) {
	s := &Server{Kind: kind, Password: "abcdefgh"}
	account := map[string]string{"mariadb": "mysql", "postgres": "postgres"}[kind]
	switch kind {
	case "mariadb":
		for _, p := range []string{"mariadbd", "mariadb-install-db", "mariadb"} {
			if _, err := exec.LookPath(p); err != nil {
				return nil, fmt.Errorf("%w: %s", ErrMissing, p)
			}
		}
	case "postgres":
		all, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
		if len(all) == 0 {
			return nil, fmt.Errorf("%w: initdb", ErrMissing)
		}
		s.programs = filepath.Dir(slices.Max(all))
	}
	var err error
	if s.Dir, err = os.MkdirTemp("", "indigo-db"); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 {
		// Neither server runs as root.
		u, err := user.Lookup(account)
		if err != nil {
			return nil, fmt.Errorf("%w: no user %s", ErrMissing, account)
		}
		uid, _ := strconv.ParseUint(u.Uid, 10, 32)
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		s.credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(s.Dir, int(uid), int(gid)); err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(s.Dir, 0o755); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	_, s.Port, _ = net.SplitHostPort(l.Addr().String())
	l.Close()
	s.Socket = filepath.Join(s.Dir, "socket")
	data := filepath.Join(s.Dir, "data")
	// Several servers that share a directory for temporary tables remove each other's.
	make := s.command("mariadb-install-db", "--no-defaults", "--datadir="+data, "--tmpdir="+s.Dir, "--auth-root-authentication-method=normal", "--skip-test-db")
	if kind == "postgres" {
		s.Socket = s.Dir
		make = s.command(filepath.Join(s.programs, "initdb"), "-D", data, "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
	}
	if out, err := make.CombinedOutput(); err != nil {
		s.Remove()
		return nil, fmt.Errorf("%s: %w: %s", make.Path, err, out)
	}
	if err := s.Again(ctx); err != nil {
		s.Remove()
		return nil, err
	}
	statements := []string{
		"CREATE DATABASE indimail", "CREATE USER indimail@'127.0.0.1' IDENTIFIED BY 'abcdefgh'", "CREATE USER indimail@localhost IDENTIFIED BY 'abcdefgh'",
		"GRANT ALL ON indimail.* TO indimail@'127.0.0.1'", "GRANT ALL ON indimail.* TO indimail@localhost",
	}
	if kind == "postgres" {
		statements = []string{"CREATE USER indimail PASSWORD 'abcdefgh'", "CREATE DATABASE indimail OWNER indimail"}
	}
	for _, one := range statements {
		if _, err := s.Query(ctx, "", one); err != nil {
			s.Remove()
			return nil, err
		}
	}
	return s, nil
}

// command makes a command that runs as the server's user.
func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = s.Dir
	if s.credential != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.credential}
	}
	return cmd
}

// Again starts the server that Kill ended, and waits until it answers.
func (s *Server) Again(ctx context.Context) error {
	data := filepath.Join(s.Dir, "data")
	if s.Kind == "postgres" {
		s.cmd = s.command(filepath.Join(s.programs, "postgres"), "-D", data, "-h", "127.0.0.1", "-p", s.Port, "-k", s.Socket, "-c", "fsync=off", "-c", "shared_buffers=16MB")
	} else {
		s.cmd = s.command("mariadbd", "--no-defaults", "--datadir="+data, "--tmpdir="+s.Dir, "--socket="+s.Socket, "--pid-file="+filepath.Join(s.Dir, "pid"),
			"--bind-address=127.0.0.1", "--port="+s.Port, "--innodb-buffer-pool-size=32M")
	}
	log, err := os.OpenFile(filepath.Join(s.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		return err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err = s.Query(ctx, "", "SELECT 1"); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			text, _ := os.ReadFile(filepath.Join(s.Dir, "log"))
			return fmt.Errorf("%s does not answer: %w: %s", s.Kind, err, text)
		}
	}
}

// Query runs statements as the server's administrator, in a database or in none, and gives what they print.
func (s *Server) Query(ctx context.Context, database, statements string) (string, error) {
	cmd := exec.CommandContext(ctx, "mariadb", "--no-defaults", "--socket="+s.Socket, "-uroot", "-N", "-B", "-e", statements, database)
	if database == "" {
		cmd.Args = cmd.Args[:len(cmd.Args)-1]
	}
	if s.Kind == "postgres" {
		if database == "" {
			database = "postgres"
		}
		cmd = exec.CommandContext(ctx, filepath.Join(s.programs, "psql"), "-h", s.Socket, "-p", s.Port, "-d", database, "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-c", statements)
		if s.credential != nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.credential}
		}
		cmd.Dir = s.Dir
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", statements, err, out)
	}
	return string(out), nil
}

// Kill ends the server at once, as a crash would.
func (s *Server) Kill() {
	if s.cmd == nil || s.cmd.Process == nil {
		return
	}
	if s.Kind == "postgres" {
		// Its children hold the shared memory until they have seen it; the postmaster ends them.
		_ = s.cmd.Process.Signal(syscall.SIGQUIT)
	} else {
		_ = s.cmd.Process.Kill()
	}
	_ = s.cmd.Wait()
	s.cmd = nil
}

// Remove ends the server and removes what it had.
func (s *Server) Remove() {
	s.Kill()
	os.RemoveAll(s.Dir)
}
