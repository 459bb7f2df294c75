package auth

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/dovecot"
)

const (
	// dovecotTime bounds a question to a Dovecot when its Dovecot says nothing: it delays the answer to a wrong password on purpose.
	dovecotTime = 30 * time.Second
	// maxHello is how many lines a Dovecot may begin with.
	maxHello = 200
)

// Dovecot is a Verifier that asks Dovecot's auth process by PLAIN, at a socket of its auth-client protocol.
type Dovecot struct {
	// Socket is the path.
	Socket string
	// Dial opens it.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	PID  int
	// DefaultDomain completes the name without a domain that Dovecot may have for a user. It is asked by the name that the client gave.
	DefaultDomain string
	// Time bounds a question; 0 means 30 seconds.
	Time time.Duration
	// Running bounds how many run at once: a place is taken by a send.
	Running chan struct{}
}

// Verify implements Verifier.
func (d *Dovecot) Verify(ctx context.Context, a Attempt) (Identity, error) {
	if !ValidCredentials(a.User, a.Password) {
		return Identity{}, errFailed.Because(errors.New("name or password malformed"))
	}
	limit := d.Time
	if limit == 0 {
		limit = dovecotTime
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case d.Running <- struct{}{}:
		defer func() { <-d.Running }()
	case <-ctx.Done():
		return Identity{}, errUnavailable.Because(ctx.Err())
	}
	answer, err := d.ask(ctx, a)
	if err != nil {
		return Identity{}, errUnavailable.Because(fmt.Errorf("Dovecot at %s: %w", d.Socket, err))
	}
	return d.identity(answer)
}

// ask gives the fields of the answer, OK or FAIL.
func (d *Dovecot) ask(ctx context.Context, a Attempt) ([]string, error) {
	conn, err := d.Dial(ctx, "unix", d.Socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	in := bufio.NewReaderSize(conn, dovecot.MaxLine)
	read := func() ([]string, error) {
		line, err := in.ReadSlice('\n')
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		return dovecot.Parse(string(line)), nil
	}
	greeted, plain := false, false
	for n := 0; ; n++ {
		fields, err := read()
		if err != nil {
			return nil, fmt.Errorf("its greeting: %w", err)
		}
		if fields[0] == "DONE" {
			break
		}
		switch {
		case n > maxHello:
			return nil, errors.New("its greeting has no end")
		case fields[0] == "VERSION":
			if greeted = len(fields) > 1 && fields[1] == dovecot.Major; !greeted {
				return nil, fmt.Errorf("it speaks another version of the protocol: %q", fields[1:])
			}
		case fields[0] == "MECH":
			plain = plain || len(fields) > 1 && strings.EqualFold(fields[1], "PLAIN")
		}
	}
	if !greeted || !plain {
		return nil, errors.New("it does not offer PLAIN: auth_mechanisms must have it")
	}
	service := map[string]string{"smtpd": "smtp", "imapd": "imap", "pop3d": "pop3"}[kindOf(a.Service)]
	if service == "" {
		service = "indigo"
	}
	question := dovecot.Append(nil, "VERSION", dovecot.Major, dovecot.Minor)
	question = dovecot.Append(question, "CPID", strconv.Itoa(d.PID))
	// Whether passwords may come in clear is the door's to say.
	fields := []string{"AUTH", "1", "PLAIN", "service=" + service, "secured", "nologin"}
	if a.Client.IsValid() {
		fields = append(fields, "rip="+a.Client.String())
	}
	response := base64.StdEncoding.EncodeToString([]byte("\x00" + a.User + "\x00" + a.Password))
	if _, err := conn.Write(dovecot.Append(question, append(fields, "resp="+response)...)); err != nil {
		return nil, err
	}
	for range maxHello {
		fields, err := read()
		if err != nil {
			return nil, fmt.Errorf("its answer: %w", err)
		}
		if len(fields) > 1 && fields[1] == "1" && (fields[0] == "OK" || fields[0] == "FAIL") {
			return fields, nil
		}
		if fields[0] == "CONT" {
			break
		}
	}
	return nil, errors.New("it answered with something else than yes or no")
}

func (d *Dovecot) identity(answer []string) (Identity, error) {
	if answer[0] == "FAIL" {
		code, _ := dovecot.Parameter(answer, "code")
		has := func(word string) bool { return slices.Contains(answer, word) || code == word }
		cause := fmt.Errorf("Dovecot at %s refused: %s", d.Socket, strings.Join(answer[2:], " "))
		switch {
		case has("temp"), has("temp_fail"):
			return Identity{}, errUnavailable.Because(cause)
		case has("user_disabled"), has("pass_expired"):
			return Identity{}, errDenied.Because(fmt.Errorf("%w: %w", errSwitchedOff, cause))
		}
		return Identity{}, errFailed.Because(cause)
	}
	name, _ := dovecot.Parameter(answer, "user")
	if !strings.Contains(name, "@") {
		name += "@" + d.DefaultDomain
	}
	address, err := addr.Parse(name)
	if err != nil {
		return Identity{}, errUnavailable.Because(fmt.Errorf("Dovecot at %s let in %q, which is no address: %w", d.Socket, name, err))
	}
	return Identity{Address: address}, nil
}
