package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"strings"

	"github.com/indigomail/indigo/internal/auth/sasl"
)

func (p *Peer) mechanisms() []string {
	if p.Mechanisms == nil {
		return []string{"PLAIN"}
	}
	return p.Mechanisms
}

// users is a Peer's Users as a sasl.Store; it notes who logged in.
type users struct {
	of   map[string]string
	name string
}

func (u *users) Authenticate(_ context.Context, user, password string) error {
	if known := u.of[user]; known == "" || known != password {
		return sasl.Failed(errors.New("wrong"))
	}
	return u.Admit(context.Background(), user)
}

func (u *users) Secrets(_ context.Context, user string) (sasl.Secrets, error) {
	return sasl.Secrets{Clear: u.of[user]}, nil
}

func (u *users) Admit(_ context.Context, user string) error {
	u.name = user
	return nil
}

func (u *users) Decoy(_ context.Context, user string) []byte { return []byte("decoy of " + user) }

// auth is one exchange (RFC 4954 section 4).
func (d *dialogue) auth(argument string) bool {
	mechanism, initial, given := strings.Cut(argument, " ")
	mechanism = strings.ToUpper(mechanism)
	if _, scripted := d.p.Script["AUTH "+mechanism]; scripted {
		return d.say("AUTH "+mechanism, "")
	}
	store := &users{of: d.p.Users}
	config := sasl.Config{Store: store, Host: d.p.Name, Service: "smtp", Offered: d.p.mechanisms(), Token: func(_ context.Context, user, token string) error {
		return store.Authenticate(context.Background(), user, token)
	}}
	if conn, ok := d.conn.(*tls.Conn); ok {
		state := conn.ConnectionState()
		config.TLS = &state
		if len(d.p.TLS.Certificates) > 0 {
			config.Certificate, _ = x509.ParseCertificate(d.p.TLS.Certificates[0].Certificate[0])
		}
	}
	server := sasl.New(mechanism, config)
	if server == nil {
		return d.say("AUTH "+mechanism, "504 5.5.4 no such mechanism")
	}
	var response []byte
	if given {
		response = decode(initial)
	}
	for {
		challenge, done, err := server.Next(context.Background(), response)
		switch {
		case err != nil:
			return d.say("AUTH", "535 5.7.8 no")
		case done:
			d.mail.User = store.name
			return d.say("AUTH", "235 2.7.0 welcome")
		}
		if d.p.Meddle != nil {
			challenge = d.p.Meddle(mechanism, challenge)
		}
		if _, err := d.conn.Write([]byte("334 " + base64.StdEncoding.EncodeToString(challenge) + "\r\n")); err != nil {
			return false
		}
		line, err := d.r.ReadString('\n')
		if err != nil {
			return false
		}
		if line = strings.TrimRight(line, "\r\n"); line == "*" {
			return d.say("*", "501 5.0.0 cancelled")
		}
		response = decode(line)
	}
}

// decode gives what a response holds, and for what is not base64 something that no mechanism takes.
func decode(s string) []byte {
	if s == "=" {
		return []byte{}
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return []byte("\xff")
	}
	return b
}
