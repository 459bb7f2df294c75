package probe

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// RelayCheck is one question about relaying: would the server take mail from From to To? DATA is never sent.
type RelayCheck struct {
	From string `json:"from"`
	To   string `json:"to"`
	// Odd is true for a recipient whose domain is the server's own, or none, and whose local part leads elsewhere.
	Odd      bool   `json:"odd,omitempty"`
	Accepted bool   `json:"accepted"`
	Reply    string `json:"reply"`
}

// outside are a sender and a recipient that are nobody's (RFC 2606).
const (
	outsideFrom = "probe@example.net"
	outsideUser = "probe"
	outsideHost = "example.org"
)

// RelayQuestions gives what an open relay would say yes to, for a server that calls itself host and has the address ip. The first is the plain
// one, from outside to outside; then come senders that look local, and recipients that old servers took for their own and sent on.
func RelayQuestions(host string, ip netip.Addr) (all []RelayCheck) {
	literal := "[" + ip.Unmap().WithZone("").String() + "]"
	if ip.Unmap().Is6() {
		literal = "[IPv6:" + ip.WithZone("").String() + "]"
	}
	to := outsideUser + "@" + outsideHost
	for _, from := range []string{outsideFrom, "", "postmaster@" + host, "postmaster@" + literal, "postmaster@localhost", "postmaster"} {
		all = append(all, RelayCheck{From: from, To: to})
	}
	for _, odd := range []string{
		outsideUser + "%" + outsideHost + "@" + host, outsideUser + "%" + outsideHost + "@" + literal, outsideUser + "%" + outsideHost,
		`"` + to + `"`, `"` + outsideUser + "%" + outsideHost + `"`, `"` + to + `"@` + host, `"` + to + `"@` + literal, to + "@" + host,
		outsideHost + "!" + outsideUser, outsideHost + "!" + outsideUser + "@" + host, outsideHost + "!" + outsideUser + "@" + literal, "@" + host + ":" + to, "@" + literal + ":" + to,
	} {
		all = append(all, RelayCheck{From: outsideFrom, To: odd, Odd: true})
	}
	return all
}

// perConnection is how many questions one connection asks: servers count refusals and close.
const perConnection = 6

// askRelay asks all questions; anyName tells that the server takes mail for a made-up name at host too, which makes a yes to an odd one no news.
func askRelay(ctx context.Context, t Target, host string, ip netip.Addr) (all []RelayCheck, anyName bool, err error) {
	questions := append([]RelayCheck{{From: outsideFrom, To: "probe-" + strings.ToLower(rand.Text()) + "@" + host}}, RelayQuestions(host, ip)...)
	var c *Conn
	defer func() {
		if c != nil {
			c.Close()
		}
	}()
	asked := 0
	for i := range questions {
		for try := 0; ; try++ {
			if c == nil || asked == perConnection {
				if c != nil {
					c.Close()
				}
				if c, err = Connect(ctx, t); err != nil {
					return all, anyName, err
				}
				asked = 0
			}
			asked++
			if err = c.ask(ctx, &questions[i]); err == nil {
				break
			}
			c.Close()
			if c = nil; try == 1 {
				return all, anyName, fmt.Errorf("%s closes the connection on MAIL FROM:<%s> RCPT TO:<%s>: %w", t.Address, questions[i].From, questions[i].To, err)
			}
		}
		if i == 0 {
			anyName = questions[i].Accepted
			continue
		}
		all = append(all, questions[i])
	}
	return all, anyName, nil
}

// ask asks one question.
func (c *Conn) ask(ctx context.Context, q *RelayCheck) error {
	for _, command := range []string{"RSET", "MAIL FROM:<" + q.From + ">", "RCPT TO:<" + q.To + ">"} {
		var no *Refused
		reply, err := c.Do(ctx, command)
		q.Reply = reply
		if errors.As(err, &no) {
			if strings.HasPrefix(reply, "421") {
				return err
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
	q.Accepted = true
	return nil
}
