package probe

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/indigomail/indigo/internal/auth/sasl"
)

// Attempt is what came of a login by one mechanism.
type Attempt struct {
	Mechanism string `json:"mechanism"`
	Works     bool   `json:"works"`
	// Skipped says why nothing was tried.
	Skipped string `json:"skipped,omitempty"`
	// Reply is the server's no, Why what is in the way.
	Reply string `json:"reply,omitempty"`
	Why   string `json:"why,omitempty"`
}

// Logins tries each mechanism that the server offers, each over a connection of its own, or the one that is named; "" takes the strongest that a
// password is enough for. Each line goes to t.Say. The error says that there was no talk at all.
func Logins(ctx context.Context, t Target, mechanism string, who sasl.Credentials) (all []Attempt, err error) {
	c, err := Connect(ctx, t)
	if err != nil {
		return nil, err
	}
	offered := c.Offered()
	mechanisms := []string{mechanism}
	switch mechanism {
	case "all":
		mechanisms = offered
	case "":
		name, ok := sasl.Choose(offered, nil, c.State != nil, len(sasl.Bindings(c.State, c.certificate())) > 0, true)
		if !ok {
			for _, other := range []string{"USER", "LOGIN-COMMAND", "APOP"} {
				if slices.Contains(offered, other) {
					name, ok = other, true
					break
				}
			}
		}
		if !ok {
			c.Close()
			return nil, noMechanism(t, c)
		}
		mechanisms = []string{name}
	}
	if len(mechanisms) == 0 {
		c.Close()
		return nil, noMechanism(t, c)
	}
	for i, m := range mechanisms {
		if reason := skip(m, who); reason != "" && mechanism == "all" {
			all = append(all, Attempt{Mechanism: m, Skipped: reason})
			continue
		}
		if c == nil {
			if c, err = Connect(ctx, t); err != nil {
				return all, err
			}
		}
		a := Attempt{Mechanism: m}
		err := c.Login(ctx, m, who)
		a.Works = err == nil
		var no *Refused
		switch {
		case errors.As(err, &no):
			if a.Reply, a.Why = no.Reply, Meaning(no.Reply); !slices.Contains(offered, m) {
				a.Why = "it is not among what the server offers: " + strings.Join(offered, " ")
			}
		case err != nil:
			a.Why = err.Error()
		}
		all = append(all, a)
		if i < len(mechanisms)-1 {
			c.Close()
			c = nil
		}
	}
	if c != nil {
		c.Close()
	}
	return all, nil
}

func noMechanism(t Target, c *Conn) error {
	if c.State == nil {
		return errors.New(t.Address + " offers no way to log in with a password in clear; it may after STARTTLS")
	}
	return errors.New(t.Address + " offers no way to log in with a password")
}

// skip tells why a mechanism cannot be tried with what there is.
func skip(mechanism string, who sasl.Credentials) string {
	switch mechanism {
	case "USER", "APOP", "LOGIN-COMMAND":
		if who.Password == "" {
			return "needs a password, not a token"
		}
	case "OAUTHBEARER", "XOAUTH2":
		if who.Token == "" {
			return "needs a token, not a password"
		}
	case "EXTERNAL":
		return "needs a client certificate, not a password"
	case "ANONYMOUS":
		return "needs no password"
	default:
		if !slices.Contains(sasl.Names(), mechanism) {
			return "is not known to Indigo"
		}
		if who.Password == "" {
			return "needs a password, not a token"
		}
	}
	return ""
}
