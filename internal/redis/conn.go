package redis

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Script is a program in Lua that the server runs as one step.
type Script struct{ text, sum string }

// NewScript makes a Script. It gets no KEYS, in ARGV[1] the prefix of all names and from ARGV[2] on what it is run with, and returns an array of
// strings.
func NewScript(text string) *Script {
	// The protocol names scripts so (EVALSHA).
	sum := sha1.Sum([]byte(text))
	return &Script{text, hex.EncodeToString(sum[:])}
}

// presence is what hosts show each other by: a sorted set of their names with the time of the last sign of life. It is written, so that a
// server that lets nothing be written counts as down.
var presence = NewScript(`
local t = redis.call('TIME')
redis.call('ZADD', ARGV[1] .. 'hosts', t[1], ARGV[2])
redis.call('ZREMRANGEBYSCORE', ARGV[1] .. 'hosts', '-inf', t[1] - 86400)
redis.call('EXPIRE', ARGV[1] .. 'hosts', 86400)
return {}`)

var present = NewScript(`
local t = redis.call('TIME')
return redis.call('ZRANGEBYSCORE', ARGV[1] .. 'hosts', t[1] - 10, '+inf')`)

// Conn is one connection, for Joined.
type Conn struct {
	wire   *wire
	prefix string
	// beatTime bounds a sign of life, and what is told.
	beatTime time.Duration
	// open gives another socket, for messages.
	open func(ctx context.Context) (net.Conn, error)
	// broken gets the first thing that went wrong, doubt a question that was not answered in time.
	broken chan error
	doubt  chan struct{}
}

func connect(ctx context.Context, config Config, o Options) (*Conn, error) {
	c := &Conn{prefix: o.Prefix, beatTime: config.patient(beatTime), broken: make(chan error, 1), doubt: make(chan struct{}, 1)}
	c.open = func(ctx context.Context) (net.Conn, error) { return open(ctx, config, o) }
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	conn, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	c.wire = newWire(conn)
	return c, nil
}

// open dials, with TLS where that is wanted, and logs in.
func open(ctx context.Context, config Config, o Options) (net.Conn, error) {
	conn, err := config.Dial(ctx, o.Network, o.Address)
	if err != nil {
		return nil, err
	}
	if o.TLS {
		tlsConfig, err := o.tlsConfig()
		if err == nil {
			secure := tls.Client(conn, tlsConfig)
			if err = secure.HandshakeContext(ctx); err == nil {
				conn, err = secure, login(ctx, secure, o)
			}
		}
		if err != nil {
			conn.Close()
			return nil, err
		}
		return conn, nil
	}
	if err := login(ctx, conn, o); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// login says who asks, and which database is meant.
func login(ctx context.Context, conn net.Conn, o Options) error {
	var commands [][]string
	switch {
	case o.User != "":
		commands = append(commands, []string{"AUTH", o.User, o.Password})
	case o.Password != "":
		commands = append(commands, []string{"AUTH", o.Password})
	}
	if o.DB != 0 {
		commands = append(commands, []string{"SELECT", strconv.Itoa(o.DB)})
	}
	if len(commands) == 0 {
		return nil
	}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	out, in := bufio.NewWriter(conn), bufio.NewReaderSize(conn, 2*maxLine)
	for _, one := range commands {
		writeCommand(out, one)
		if err := out.Flush(); err != nil {
			return err
		}
		// Nothing comes that was not asked for, so nothing stays in the reader.
		r, err := readReply(in)
		if err = errors.Join(err, r.err); err != nil && o.Password != "" && strings.Contains(err.Error(), o.Password) {
			// Redis repeats the words of a command that it does not know.
			err = ServerError(strings.ReplaceAll(err.Error(), o.Password, "…"))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", one[0], err)
		}
	}
	return conn.SetDeadline(time.Time{})
}

func (c *Conn) close() { c.wire.close() }

func (c *Conn) broke(err error) {
	select {
	case c.broken <- err:
	default:
	}
}

func (c *Conn) doubted() {
	select {
	case c.doubt <- struct{}{}:
	default:
	}
}

// Run runs a script until ctx ends, which must have a deadline; the error is the server's, the network's or ctx's.
func (c *Conn) Run(ctx context.Context, s *Script, args ...string) ([]string, error) {
	return c.wire.do(ctx, c.command(s, args))
}

func (c *Conn) command(s *Script, args []string) []string {
	return append([]string{"EVALSHA", s.sum, "0", c.prefix}, args...)
}

// load has the server know the scripts, so that each question has one round trip.
func (c *Conn) load(ctx context.Context, scripts []*Script) error {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	for _, s := range append(slices.Clone(scripts), presence, present) {
		sum, err := c.wire.do(ctx, []string{"SCRIPT", "LOAD", s.text})
		if err != nil {
			return err
		}
		if len(sum) != 1 || sum[0] != s.sum {
			return errors.New("the server names scripts by another sum than SHA-1")
		}
	}
	return nil
}

// beat gives a sign of life, and gets one.
func (c *Conn) beat(ctx context.Context, host string) error {
	ctx, cancel := context.WithTimeout(ctx, c.beatTime)
	defer cancel()
	command := []string{"PING"}
	if host != "" {
		command = c.command(presence, []string{host})
	}
	_, err := c.wire.do(ctx, command)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no sign of life within %v: %w", c.beatTime, err)
	}
	return err
}

func (c *Conn) hosts(ctx context.Context) ([]string, error) {
	all, err := c.Run(ctx, present)
	slices.Sort(all)
	return all, err
}

// subscribe opens the socket that messages come by; listen passes them on until it ends, or ctx does.
func (c *Conn) subscribe(ctx context.Context, heard map[string]func(string)) (listen func(ctx context.Context) error, err error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	conn, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	words := []string{"SUBSCRIBE"}
	for name := range heard {
		words = append(words, c.prefix+name)
	}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	out, in := bufio.NewWriter(conn), bufio.NewReader(conn)
	writeCommand(out, words)
	err = out.Flush()
	for range heard {
		// One answer a channel. What was said meanwhile is of no use to who has yet to join.
		if err == nil {
			var r reply
			r, err = readReply(in)
			err = errors.Join(err, r.err)
		}
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("SUBSCRIBE: %w", err)
	}
	_ = conn.SetDeadline(time.Time{})
	return func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer stop()
		defer conn.Close()
		for {
			r, err := readReply(in)
			if err = errors.Join(err, r.err); err != nil {
				return fmt.Errorf("the connection for messages: %w", err)
			}
			if len(r.words) != 3 || r.words[0] != "message" {
				return errors.New("the connection for messages: the server sent something else")
			}
			if do := heard[strings.TrimPrefix(r.words[1], c.prefix)]; do != nil {
				do(r.words[2])
			}
		}
	}, nil
}

// tell does a batch in one round trip; the error is the first one.
func (c *Conn) tell(ctx context.Context, batch []told) error {
	ctx, cancel := context.WithTimeout(ctx, c.beatTime)
	defer cancel()
	var commands [][]string
	for _, t := range batch {
		switch {
		case t.script != nil:
			commands = append(commands, c.command(t.script, t.args))
		case t.channel != "":
			commands = append(commands, []string{"PUBLISH", c.prefix + t.channel, t.text})
		}
	}
	if len(commands) == 0 {
		return nil
	}
	_, err := c.wire.do(ctx, commands...)
	return err
}
