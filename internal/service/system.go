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

// maxCheckers is how many connections for passwords of the host's users a parent gives its child: each checks one at a time, so that wrong
// ones in any number do not take all processors. The connection for listeners never waits for them.
const maxCheckers = 2

// systemQuestion and systemAnswer go over such a connection.
type systemQuestion struct {
	User     string `json:"user"`
	Password string `json:"password"`
}

type systemAnswer struct {
	User    auth.SystemUser `json:"user"`
	Refused string          `json:"refused,omitempty"`
	Error   string          `json:"error,omitempty"`
}

// asksSystem tells whether some service's settings name the host's users as a source of passwords.
func asksSystem(snapshot *settings.Snapshot) (asks bool) {
	chains(snapshot, func(_ *settings.View, words []string, _ *settings.Setting) {
		asks = asks || slices.ContainsFunc(words, isSystem)
	})
	return asks
}

// checker gives a connection on which passwords of the host's users are checked, until the child ends. The settings must have a service that asks for
// them: a child that was taken over gets no more than it.
func (p *Parent) checker(checking *sync.WaitGroup, running *atomic.Int32) (*os.File, error) {
	if running.Load() >= maxCheckers {
		return nil, fmt.Errorf("there are %d connections for passwords already", maxCheckers)
	}
	snapshot, err := settings.Load(p.Data)
	if err != nil {
		return nil, err
	}
	if !asksSystem(snapshot) {
		return nil, errors.New("no service's AUTHMODULES asks for the host's users")
	}
	ours, theirs, err := pair()
	if err != nil {
		return nil, err
	}
	system := auth.System{Now: time.Now}
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
				user, refused, err := system.Check(q.User, q.Password)
				switch {
				case err != nil:
					a.Error = err.Error()
				case refused != nil:
					a.Refused = refused.Error()
				default:
					a.User = user
				}
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

// passwords gives a connection for passwords of the host's users.
func (c *Child) passwords() (*net.UnixConn, error) {
	_, f, err := c.ask(request{Op: "passwords"})
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

// systemUsers is the Verifier of the host's users: the parent is asked, or the files where this process is root.
type systemUsers struct {
	child *Child
	host  func() string

	mu sync.Mutex
	// idle are connections that nobody uses; made counts all.
	idle chan *net.UnixConn
	made int
}

func newSystemUsers(child *Child, host func() string) *systemUsers {
	return &systemUsers{child: child, host: host, idle: make(chan *net.UnixConn, maxCheckers)}
}

// close closes the connections; nobody asks any more.
func (s *systemUsers) close() {
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
func (s *systemUsers) connection(ctx context.Context) (*net.UnixConn, error) {
	select {
	case c := <-s.idle:
		return c, nil
	default:
	}
	s.mu.Lock()
	if s.made < maxCheckers {
		c, err := s.child.passwords()
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
	answer, err := s.ask(ctx, systemQuestion{name, a.Password})
	switch {
	case err != nil:
		return auth.Identity{}, auth.Unavailable(fmt.Errorf("users of the host: %w", err))
	case answer.Error != "":
		return auth.Identity{}, auth.Unavailable(fmt.Errorf("users of the host: %s", answer.Error))
	case answer.Refused != "":
		return auth.Identity{}, auth.Refused(fmt.Errorf("user %s of the host: %s", name, answer.Refused))
	}
	return auth.Identity{Address: addr.Address{Local: name, Domain: host}, Home: answer.User.Home}, nil
}

func (s *systemUsers) ask(ctx context.Context, q systemQuestion) (a systemAnswer, err error) {
	if s.child == nil {
		user, refused, err := auth.System{Now: time.Now}.Check(q.User, q.Password)
		if refused != nil {
			a.Refused = refused.Error()
		}
		a.User = user
		return a, err
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
