package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/settings"
)

// maxCheckers is how many connections for passwords a parent gives its child: each checks one at a time, so that wrong ones in any number do
// not take all processors. PAM's modules mostly wait. The connection for listeners never waits for them.
func maxCheckers(op string) int {
	if op == opPAM {
		return 8
	}
	return 2
}

// opPasswords and opPAM ask for such a connection, for the host's users and for PAM.
const (
	opPasswords = "passwords"
	opPAM       = "pam"
)

// systemQuestion and systemAnswer go over such a connection.
type systemQuestion struct {
	User     string `json:"user"`
	Password string `json:"password"`
	// Client is the client's address.
	Client string `json:"client,omitempty"`
}

type systemAnswer struct {
	Name    string `json:"name"`
	Home    string `json:"home"`
	Refused string `json:"refused,omitempty"`
	Error   string `json:"error,omitempty"`
}

// checkSystem answers for the host's users.
func checkSystem(_ context.Context, q systemQuestion) systemAnswer {
	user, refused, err := auth.System{Now: time.Now}.Check(q.User, q.Password)
	return newSystemAnswer(user.Name, user.Home, refused, err)
}

func newSystemAnswer(name, home string, refused, err error) systemAnswer {
	switch {
	case err != nil:
		return systemAnswer{Error: err.Error()}
	case refused != nil:
		return systemAnswer{Refused: refused.Error()}
	}
	return systemAnswer{Name: name, Home: home}
}

// asks tells whether some service's settings name a source of passwords.
func asks(snapshot *settings.Snapshot, is func(word string) bool) (asks bool) {
	chains(snapshot, func(_ *settings.View, words []string, _ *settings.Setting) {
		asks = asks || slices.ContainsFunc(words, is)
	})
	return asks
}

// checker gives a connection on which passwords are checked, until the child ends. The settings must have a service that asks for them: a child
// that was taken over gets no more than it.
func (p *Parent) checker(ctx context.Context, op string, checking *sync.WaitGroup, running *atomic.Int32) (*os.File, error) {
	if int(running.Load()) >= maxCheckers(op) {
		return nil, fmt.Errorf("there are %d connections for passwords already", maxCheckers(op))
	}
	snapshot, err := settings.Load(p.Data)
	if err != nil {
		return nil, err
	}
	check, is := checkSystem, isSystem
	if op == opPAM {
		check, is = checkPAM(p.pam), isPAM
	}
	if !asks(snapshot, is) {
		return nil, errors.New("no service's AUTHMODULES asks for these users")
	}
	ours, theirs, err := pair()
	if err != nil {
		return nil, err
	}
	running.Add(1)
	checking.Go(func() {
		defer running.Add(-1)
		defer ours.Close()
		b := make([]byte, 8192)
		for {
			n, err := ours.Read(b)
			if err != nil || n == 0 {
				return
			}
			var q systemQuestion
			var a systemAnswer
			if err := json.Unmarshal(b[:n], &q); err != nil {
				a.Error = "not understood"
			} else {
				a = check(ctx, q)
			}
			text, err := json.Marshal(a)
			if err != nil {
				return
			}
			if _, err := ours.Write(text); err != nil {
				return
			}
		}
	})
	return theirs, nil
}

// passwords gives a connection for passwords.
func (c *Child) passwords(op string) (*net.UnixConn, error) {
	_, f, err := c.ask(request{Op: op})
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, err
	}
	if f == nil {
		return nil, errors.New("the parent gave no descriptor")
	}
	return unixConn(f)
}

// checkers have passwords checked: by the parent, or where there is none here.
type checkers struct {
	op    string
	child *Child
	here  func(context.Context, systemQuestion) systemAnswer

	mu sync.Mutex
	// idle are connections that nobody uses; made counts all.
	idle chan *net.UnixConn
	made int
}

func newCheckers(op string, child *Child, here func(context.Context, systemQuestion) systemAnswer) *checkers {
	return &checkers{op: op, child: child, here: here, idle: make(chan *net.UnixConn, maxCheckers(op))}
}

// systemUsers is the Verifier of the host's users.
type systemUsers struct {
	*checkers
	host func() string
}

// close closes the connections; nobody asks any more.
func (s *checkers) close() {
	for {
		select {
		case c := <-s.idle:
			c.Close()
		default:
			return
		}
	}
}

// connection gives one that is idle, or a new one, or waits.
func (s *checkers) connection(ctx context.Context) (*net.UnixConn, error) {
	select {
	case c := <-s.idle:
		return c, nil
	default:
	}
	s.mu.Lock()
	if s.made < maxCheckers(s.op) {
		c, err := s.child.passwords(s.op)
		if err == nil {
			s.made++
		}
		s.mu.Unlock()
		return c, err
	}
	s.mu.Unlock()
	select {
	case c := <-s.idle:
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Verify implements auth.Verifier. A name with another domain than this host's is none of its users.
func (s *systemUsers) Verify(ctx context.Context, a auth.Attempt) (auth.Identity, error) {
	host := s.host()
	name, domain, hasDomain := strings.Cut(a.User, "@")
	if hasDomain && !strings.EqualFold(domain, host) {
		return auth.Identity{}, auth.Refused(fmt.Errorf("%s is no host name of ours: its user is none of the host's", domain))
	}
	if !auth.ValidCredentials(name, a.Password) {
		return auth.Identity{}, auth.Refused(errors.New("name or password malformed"))
	}
	answer, err := s.ask(ctx, systemQuestion{User: name, Password: a.Password})
	switch {
	case err != nil:
		return auth.Identity{}, auth.Unavailable(fmt.Errorf("users of the host: %w", err))
	case answer.Error != "":
		return auth.Identity{}, auth.Unavailable(fmt.Errorf("users of the host: %s", answer.Error))
	case answer.Refused != "":
		return auth.Identity{}, auth.Refused(fmt.Errorf("user %s of the host: %s", name, answer.Refused))
	}
	return auth.Identity{Address: addr.Address{Local: name, Domain: host}, Home: answer.Home}, nil
}

func (s *checkers) ask(ctx context.Context, q systemQuestion) (a systemAnswer, err error) {
	if s.child == nil {
		return s.here(ctx, q), nil
	}
	c, err := s.connection(ctx)
	if err != nil {
		return a, err
	}
	deadline := time.Now().Add(30 * time.Second)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	text, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	_ = c.SetDeadline(deadline)
	b := make([]byte, 8192)
	n := 0
	if _, err = c.Write(text); err == nil {
		n, err = c.Read(b)
	}
	if err == nil {
		err = json.Unmarshal(b[:n], &a)
	}
	if err != nil {
		// An answer that comes late must not be taken for the next one's.
		c.Close()
		s.mu.Lock()
		s.made--
		s.mu.Unlock()
		return a, err
	}
	s.idle <- c
	return a, nil
}
