package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/dovecot"
	"github.com/indigomail/indigo/test/instance"
)

const (
	loginDomain   = "login.test"
	loginPassword = "correct horse battery"
	scramSalt     = "sixteen bytes ok"
)

// loginForm is a stored form of loginPassword that all servers have, each of a user of its name.
type loginForm struct {
	name, stored string
	// scheme is what Dovecot wants before it.
	scheme, mechanism string
}

func loginForms() ([]loginForm, error) {
	forms := []loginForm{
		{name: "ssha256", mechanism: "PLAIN"},
		{name: "scram-sha-256", mechanism: "SCRAM-SHA-256"},
		{name: "sha512-5000", scheme: "{CRYPT}", mechanism: "PLAIN"},
		{name: "sha512-100000", scheme: "{CRYPT}", mechanism: "PLAIN"},
		{name: "argon2id", scheme: "{ARGON2ID}", mechanism: "PLAIN"},
		{name: "bcrypt", scheme: "{CRYPT}", mechanism: "PLAIN"},
	}
	sum := sha256.Sum256([]byte(loginPassword + scramSalt))
	forms[0].stored = "{SSHA256}" + base64.StdEncoding.EncodeToString(append(sum[:], scramSalt...))
	salted, err := scramSalted()
	if err != nil {
		return nil, err
	}
	key := func(what string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(what))
		return h.Sum(nil)
	}
	storedKey := sha256.Sum256(key("Client Key"))
	text := base64.StdEncoding.EncodeToString
	forms[1].stored = fmt.Sprintf("{SCRAM-SHA-256}%d,%s,%s,%s", sasl.Iterations, text([]byte(scramSalt)), text(storedKey[:]), text(key("Server Key")))
	for i, c := range []struct {
		method string
		rounds int
	}{{"SHA512", auth.CryptRounds}, {"SHA512", 100000}, {"ARGON2ID", 0}, {"BCRYPT", 0}} {
		if forms[2+i].stored, err = auth.Crypt(c.method, loginPassword, "", c.rounds); err != nil {
			return nil, err
		}
	}
	return forms, nil
}

// scramSalted is what a client can remember, so that its own iterations are not what is measured.
func scramSalted() ([]byte, error) {
	return pbkdf2.Key(sha256.New, loginPassword, []byte(scramSalt), sasl.Iterations, sha256.Size)
}

// loginServer is a running server: IMAP in clear, and the socket of Dovecot's auth protocol.
type loginServer struct {
	name, imap, socket string
	// clients counts those of the socket, each of which says another process id.
	clients *atomic.Int64
}

// logins prints logins a second of Indigo, of a Dovecot with its defaults and passwords in a file, and of one that is set up for speed and has
// them in SQLite, as Indigo has.
func (b *bench) logins(ctx context.Context) (err error) {
	wanted, err := regexp.Compile(b.only)
	if err != nil {
		return err
	}
	forms, err := loginForms()
	if err != nil {
		return err
	}
	in, ours, err := b.loginIndigo(ctx, forms)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Stop()) }()
	servers := []loginServer{ours}
	for _, fast := range []bool{false, true} {
		if b.alone {
			break
		}
		peer, stop, err := b.loginDovecot(ctx, forms, fast)
		if err != nil {
			return err
		}
		defer stop()
		servers = append(servers, peer)
	}
	salted, err := scramSalted()
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "logins\tsessions\tindigo /s\tspread\t")
	for _, s := range servers[1:] {
		fmt.Fprintf(table, "%s /s\tspread\tratio\t", s.name)
	}
	fmt.Fprintln(table)
	for _, way := range []string{"imap", "socket"} {
		for _, form := range forms {
			for _, sessions := range []int{1, 10} {
				name := fmt.Sprintf("%s-%s/%d", way, form.name, sessions)
				if !wanted.MatchString(name) {
					continue
				}
				row, err := b.loginRow(ctx, in, servers, way, form, sessions, salted)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				row = fmt.Sprintf("%s %s\t%d\t%s", way, form.name, sessions, row)
				fmt.Fprintln(table, row)
				fmt.Fprintln(os.Stderr, strings.ReplaceAll(row, "\t", "  "))
			}
		}
	}
	return table.Flush()
}

// loginRow measures one case: all servers in turn.
func (b *bench) loginRow(ctx context.Context, in *instance.Instance, servers []loginServer, way string, form loginForm, sessions int, salted []byte) (string, error) {
	speeds := make([][]float64, len(servers))
	limit := time.Duration(b.scale * float64(time.Second))
	for round := range b.rounds {
		for i, s := range servers {
			one := &loginClient{server: s, user: form.name + "@" + loginDomain, mechanism: form.mechanism, salted: salted}
			run := one.imap
			if way == "socket" {
				run = one.socket
			}
			// The first one from an address is a stranger's, and stores are opened for it.
			if round == 0 {
				if _, err := run(ctx, sessions, 0); err != nil {
					return "", fmt.Errorf("%s: %w", s.name, err)
				}
			}
			profiled := make(chan error, 1)
			if b.profile != "" && i == 0 && round == b.rounds-1 {
				file := fmt.Sprintf("%s.%s-%s-%d", b.profile, way, form.name, sessions)
				go func() {
					profiled <- fetchProfile(ctx, filepath.Join(in.Ready.Data, "run", "control.sock"), file)
				}()
			} else {
				profiled <- nil
			}
			begun := time.Now()
			n, err := run(ctx, sessions, limit)
			took := time.Since(begun)
			if err := errors.Join(err, <-profiled); err != nil {
				return "", fmt.Errorf("%s: %w", s.name, err)
			}
			speeds[i] = append(speeds[i], float64(n)/took.Seconds())
		}
	}
	row := fmt.Sprintf("%.0f\t%s\t", median(speeds[0]), spread(speeds[0]))
	for _, v := range speeds[1:] {
		row += fmt.Sprintf("%.0f\t%s\t%.2f\t", median(v), spread(v), median(speeds[0])/median(v))
	}
	return row, nil
}

func (b *bench) loginIndigo(ctx context.Context, forms []loginForm) (*instance.Instance, loginServer, error) {
	dir, err := b.fresh("logins")
	if err != nil {
		return nil, loginServer{}, err
	}
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(filepath.Join(data, "control"), 0o700); err != nil {
		return nil, loginServer{}, err
	}
	for name, value := range map[string]string{"secure_auth": "0", "dovecotauthsocket": "run/passwords"} {
		if err := os.WriteFile(filepath.Join(data, "control", name), []byte(value+"\n"), 0o600); err != nil {
			return nil, loginServer{}, err
		}
	}
	in, err := instance.Up(ctx, b.indigoAt, data, "--domain", loginDomain, "--user", "u", "--password-file", b.password)
	if err != nil {
		return nil, loginServer{}, err
	}
	for _, f := range forms {
		add := exec.CommandContext(ctx, string(b.indigoAt), "vadduser", "-e", f.name+"@"+loginDomain, f.stored)
		add.Env = append(os.Environ(), "INDIGO_DATA="+data)
		if out, err := add.CombinedOutput(); err != nil {
			return nil, loginServer{}, errors.Join(fmt.Errorf("vadduser %s: %w: %s", f.name, err, out), in.Stop())
		}
	}
	return in, loginServer{"indigo", in.Address("imapd.143"), filepath.Join(data, "run", "passwords"), new(atomic.Int64)}, nil
}

// loginDovecot starts Debian's Dovecot. A fast one keeps its processes for more than one login, and checks passwords, which are in SQLite, in
// processes of its auth-worker, on all CPUs.
func (b *bench) loginDovecot(ctx context.Context, forms []loginForm, fast bool) (loginServer, func(), error) {
	name := "dovecot"
	if fast {
		name = "fast-dovecot"
	}
	s := loginServer{name: name, clients: new(atomic.Int64)}
	dir, err := b.fresh(name)
	if err != nil {
		return s, nil, err
	}
	port, err := freePort()
	if err != nil {
		return s, nil, err
	}
	var file, statements strings.Builder
	statements.WriteString("CREATE TABLE users (name TEXT PRIMARY KEY, password TEXT);\n")
	for _, f := range forms {
		fmt.Fprintf(&file, "%s@%s:%s%s\n", f.name, loginDomain, f.scheme, f.stored)
		fmt.Fprintf(&statements, "INSERT INTO users VALUES ('%s@%s', '%s%s');\n", f.name, loginDomain, f.scheme, f.stored)
		home := filepath.Join(dir, "home", f.name)
		if err := os.MkdirAll(home, 0o755); err != nil {
			return s, nil, err
		}
		if err := os.Chown(home, 65534, 65534); err != nil {
			return s, nil, fmt.Errorf("%w; Dovecot serves the mail of users as root only", err)
		}
	}
	s.imap, s.socket = fmt.Sprintf("127.0.0.1:%d", port), filepath.Join(dir, "run", "bench")
	passwords := "driver = passwd-file\n  args = username_format=%u " + filepath.Join(dir, "users")
	login, more := "", ""
	if fast {
		passwords = "driver = sql\n  args = " + filepath.Join(dir, "sql.conf")
		login = "  service_count = 0\n  process_min_avail = 2\n"
		more = "service imap {\n  service_count = 10000\n  process_min_avail = 20\n}\nauth_cache_size = 10M\nauth_cache_verify_password_with_worker = yes\n"
	}
	conf := fmt.Sprintf(`base_dir = %[1]s/run
state_dir = %[1]s/state
log_path = %[1]s/log
protocols = imap
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
auth_mechanisms = plain login scram-sha-256
mail_location = maildir:~/Maildir
mail_max_userip_connections = 0
first_valid_uid = 1
service imap-login {
  inet_listener imap {
    port = %[2]d
  }
  inet_listener imaps {
    port = 0
  }
%[4]s}
service auth {
  unix_listener bench {
    mode = 0600
  }
}
passdb {
  %[3]s
}
userdb {
  driver = static
  args = uid=65534 gid=65534 home=%[1]s/home/%%n
}
%[5]s`, dir, port, passwords, login, more)
	for name, text := range map[string]string{
		"dovecot.conf": conf, "users": file.String(),
		"sql.conf": "driver = sqlite\nconnect = " + filepath.Join(dir, "users.sqlite") + "\ndefault_pass_scheme = CRYPT\npassword_query = SELECT password FROM users WHERE name = '%u'\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return s, nil, err
		}
	}
	if fast {
		db, err := sql.Open("sqlite", filepath.Join(dir, "users.sqlite"))
		if err != nil {
			return s, nil, err
		}
		_, err = db.ExecContext(ctx, statements.String())
		if err = errors.Join(err, db.Close()); err != nil {
			return s, nil, err
		}
	}
	cmd := exec.Command("dovecot", "-F", "-c", filepath.Join(dir, "dovecot.conf"))
	if err := cmd.Start(); err != nil {
		return s, nil, fmt.Errorf("%w; Debian's packages are dovecot-imapd and dovecot-sqlite", err)
	}
	stop := func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	}
	limit, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err = instance.Await(limit, "Dovecot listens", func() (bool, error) {
		conn, err := net.Dial("tcp", s.imap)
		if err != nil {
			return false, nil
		}
		return true, conn.Close()
	})
	if err != nil {
		text, _ := os.ReadFile(filepath.Join(dir, "log"))
		stop()
		return s, nil, fmt.Errorf("%w\n%s", err, text)
	}
	return s, stop, nil
}

// loginClient logs one user in, again and again.
type loginClient struct {
	server          loginServer
	user, mechanism string
	salted          []byte
}

// each has so many sessions log in, again and again until limit is over, and tells how often they did; begin gives what does it once, and what
// ends the session.
func (c *loginClient) each(ctx context.Context, sessions int, limit time.Duration, begin func() (login func() error, end func(), err error)) (int, error) {
	var running sync.WaitGroup
	var done atomic.Int64
	faults := make([]error, sessions)
	until := time.Now().Add(limit)
	for i := range sessions {
		running.Go(func() {
			login, end, err := begin()
			if err != nil {
				faults[i] = err
				return
			}
			defer end()
			for faults[i] == nil {
				if faults[i] = cmp.Or(ctx.Err(), login()); faults[i] == nil {
					done.Add(1)
				}
				if !time.Now().Before(until) {
					return
				}
			}
		})
	}
	running.Wait()
	return int(done.Load()), errors.Join(faults...)
}

// loginTime bounds one login.
const loginTime = time.Minute

// imap logs in over connections of their own.
func (c *loginClient) imap(ctx context.Context, sessions int, limit time.Duration) (int, error) {
	return c.each(ctx, sessions, limit, func() (func() error, func(), error) {
		return func() error { return c.imapOnce(ctx) }, func() {}, nil
	})
}

func (c *loginClient) imapOnce(ctx context.Context) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", c.server.imap)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(loginTime))
	in := bufio.NewReader(conn)
	// until reads on to an answer that is not untagged.
	until := func() (string, error) {
		for {
			line, err := in.ReadString('\n')
			if err != nil || !strings.HasPrefix(line, "* ") {
				return strings.TrimSuffix(line, "\r\n"), err
			}
		}
	}
	if _, err := in.ReadString('\n'); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if c.mechanism == "PLAIN" {
		fmt.Fprintf(conn, "a LOGIN %s \"%s\"\r\n", c.user, loginPassword)
		if answer, err := until(); err != nil || !strings.HasPrefix(answer, "a OK") {
			return fmt.Errorf("LOGIN: %q %w", answer, cmp.Or(err, errors.New("refused")))
		}
	} else {
		client, response, err := c.begin()
		if err != nil {
			return err
		}
		text := base64.StdEncoding.EncodeToString
		fmt.Fprintf(conn, "a AUTHENTICATE %s %s\r\n", c.mechanism, text(response))
		for {
			answer, err := until()
			if err == nil && strings.HasPrefix(answer, "a OK") {
				if err := client.Finish(); err != nil {
					return err
				}
				break
			}
			challenge, more := strings.CutPrefix(answer, "+ ")
			if err != nil || !more {
				return fmt.Errorf("AUTHENTICATE: %q %w", answer, cmp.Or(err, errors.New("refused")))
			}
			if response, err = next(client, challenge); err != nil {
				return err
			}
			fmt.Fprintf(conn, "%s\r\n", text(response))
		}
	}
	fmt.Fprint(conn, "b LOGOUT\r\n")
	if answer, err := until(); err != nil || !strings.HasPrefix(answer, "b OK") {
		return fmt.Errorf("LOGOUT: %q %w", answer, cmp.Or(err, errors.New("refused")))
	}
	return nil
}

func (c *loginClient) begin() (sasl.Client, []byte, error) {
	client, err := sasl.NewClient(c.mechanism, sasl.Credentials{User: c.user, Password: loginPassword, Salted: c.salted})
	if err != nil {
		return nil, nil, err
	}
	response, err := client.Next(nil)
	return client, response, err
}

func next(client sasl.Client, challenge string) ([]byte, error) {
	raw, err := base64.StdEncoding.DecodeString(challenge)
	if err != nil {
		return nil, err
	}
	return client.Next(raw)
}

// socket logs in over Dovecot's auth protocol, as Postfix does: many logins a connection, and no session of mail after them.
func (c *loginClient) socket(ctx context.Context, sessions int, limit time.Duration) (int, error) {
	return c.each(ctx, sessions, limit, func() (func() error, func(), error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.server.socket)
		if err != nil {
			return nil, nil, err
		}
		end := func() { conn.Close() }
		in := bufio.NewReaderSize(conn, dovecot.MaxLine)
		conn.SetDeadline(time.Now().Add(loginTime))
		_, err = conn.Write(dovecot.Append(dovecot.Append(nil, "VERSION", dovecot.Major, dovecot.Minor), "CPID", fmt.Sprint(c.server.clients.Add(1))))
		for line := ""; err == nil && line != "DONE\n"; {
			line, err = in.ReadString('\n')
		}
		if err != nil {
			end()
			return nil, nil, fmt.Errorf("greeting: %w", err)
		}
		id := 0
		return func() error {
			id++
			conn.SetDeadline(time.Now().Add(loginTime))
			return c.socketOnce(conn, in, fmt.Sprint(id))
		}, end, nil
	})
}

func (c *loginClient) socketOnce(conn net.Conn, in *bufio.Reader, id string) error {
	client, response, err := c.begin()
	if err != nil {
		return err
	}
	text := base64.StdEncoding.EncodeToString
	if _, err := conn.Write(dovecot.Append(nil, "AUTH", id, c.mechanism, "service=imap", "secured", "nologin", "rip=127.0.0.1", "resp="+text(response))); err != nil {
		return err
	}
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		fields := dovecot.Parse(line)
		switch fields[0] {
		case "OK":
			if last, ok := dovecot.Parameter(fields, "resp"); ok {
				if _, err := next(client, last); err != nil {
					return err
				}
			}
			return client.Finish()
		case "CONT":
			if response, err = next(client, fields[len(fields)-1]); err != nil {
				return err
			}
			if _, err := conn.Write(dovecot.Append(nil, "CONT", id, text(response))); err != nil {
				return err
			}
		default:
			return fmt.Errorf("refused: %q", line)
		}
	}
}
