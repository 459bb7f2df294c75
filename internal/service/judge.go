package service

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/trace"
)

// maxAttempt bounds what the running instance reads of an attempt, in bytes of JSON.
const maxAttempt = 32 << 10

// attempt is one on its way to the running instance: name and password are whatever bytes a client gave.
type attempt struct {
	User     []byte     `json:"user"`
	Password []byte     `json:"password"`
	Local    netip.Addr `json:"local"`
	Client   netip.Addr `json:"client"`
	Service  string     `json:"service"`
	// Mechanism is the name of the interface.
	Mechanism string `json:"mechanism"`
	TLS       bool   `json:"tls"`
}

// judgement is what came of an attempt that another program made: an identity, or an error.
type judgement struct {
	Address string           `json:"address,omitempty"`
	Home    string           `json:"home,omitempty"`
	Quota   string           `json:"quota,omitempty"`
	Code    int              `json:"code,omitempty"`
	Status  mailerr.Enhanced `json:"status,omitzero"`
	Text    string           `json:"text,omitempty"`
	// Known is auth.Authority's.
	Known bool `json:"known,omitempty"`
}

// judge checks a password by the directory, with the count of failed logins around it, as a door does.
func (h *House) judge(ctx context.Context, given attempt) judgement {
	began := time.Now()
	a := given.told()
	var identity auth.Identity
	var err error
	if a.Known, err = h.accounts.Before(ctx, a); err == nil {
		identity, err = h.accounts.Verify(ctx, a)
		h.accounts.After(ctx, a, identity, err)
	}
	return h.judged(a, began, identity, err)
}

// judged traces what came of an attempt that another program made, and gives it.
func (h *House) judged(a auth.Attempt, began time.Time, identity auth.Identity, err error) judgement {
	e := trace.Event{Time: time.Now(), Kind: "auth", Session: newSessionID(), Service: a.Mechanism, User: a.User, Check: "password", Input: strings.TrimSpace(a.Mechanism + " " + a.Service), Verdict: "accept"}
	e.Took = e.Time.Sub(began)
	if a.Client.IsValid() {
		e.Client = a.Client.String()
	}
	if err == nil {
		e.User = identity.Address.String()
		h.recorder().Record(e)
		return judgement{Address: e.User, Home: identity.Home, Quota: identity.Quota}
	}
	failure := mailerr.From(err)
	e.Verdict, e.Reply = "reject", failure.Reply()
	e.Input += ": " + err.Error()
	if failure.Temporary() {
		e.Verdict = "defer"
	}
	if errors.Is(err, auth.ErrLocked) {
		e.Check = "auth-lock"
	}
	h.recorder().Record(e)
	return judgement{Code: failure.Code, Status: failure.Enhanced, Text: failure.Text}
}

// outcome is what another program, which asks somebody else than the directory, found out of an attempt that mayTry let it try.
type outcome struct {
	attempt
	Known bool `json:"known"`
	// Found is who was let in, "" when nobody was; Refused says that the password was wrong, or the user unknown.
	Found   string `json:"found,omitempty"`
	Refused bool   `json:"refused,omitempty"`
	// Took is how long it took.
	Took time.Duration `json:"took"`
}

// untold stands for a password that a program keeps to itself.
const untold = "not told"

func (a attempt) told() auth.Attempt {
	return auth.Attempt{User: string(a.User), Password: string(a.Password), Local: a.Local, Client: a.Client, Service: a.Service, Mechanism: a.Mechanism, TLS: a.TLS}
}

// mayTry tells whether the count of failed logins lets an attempt be tried.
func (h *House) mayTry(ctx context.Context, given attempt) judgement {
	a := given.told()
	a.Password = untold
	known, err := h.accounts.Before(ctx, a)
	if err != nil {
		return h.judged(a, time.Now(), auth.Identity{}, err)
	}
	return judgement{Known: known}
}

// tried counts what came of such an attempt, which may keep the answer back.
func (h *House) tried(ctx context.Context, o outcome) {
	a := o.told()
	a.Known = o.Known
	if !o.Refused || a.Password == "" {
		a.Password = untold
	}
	identity, err := auth.Identity{}, auth.Unavailable(errors.New(a.Mechanism+" could not say, or asks the next module"))
	if o.Refused {
		err = auth.Refused(errors.New(a.Mechanism + " refused"))
	} else if name := o.Found; name != "" {
		if !strings.Contains(name, "@") {
			name += "@" + h.hostname()
		}
		if identity.Address, err = addr.Parse(name); err != nil {
			err = auth.Unavailable(fmt.Errorf("it let in %q, which is no address: %w", name, err))
		}
	}
	began := time.Now().Add(-o.Took)
	h.accounts.After(ctx, a, identity, err)
	h.judged(a, began, identity, err)
}

// Counted calls check, which asks somebody else than the directory about a login and gives the name of who was let in, and has the running instance
// count what came of it, which may keep the answer back for some seconds. Of the password the instance gets nothing, but where refused says of check's
// error that it was wrong 16 bits, by which it knows the same one again: who can read its memory need not learn passwords that are not Indigo's.
// The error is check's. Without a call of check it is ErrNotRunning, only when nobody is there to be asked, or a refusal because of failures before, or
// that the instance does not answer.
func (c *Control) Counted(ctx context.Context, a auth.Attempt, check func() (string, error), refused func(error) bool) error {
	given := attempt{User: []byte(a.User), Local: a.Local, Client: a.Client, Service: a.Service, Mechanism: a.Mechanism, TLS: a.TLS}
	var j judgement
	if err := c.post(ctx, "/auth/before", given, &j); err != nil {
		return err
	}
	if j.Code != 0 {
		return mailerr.New(j.Code, j.Status, j.Text)
	}
	began := time.Now()
	found, err := check()
	o := outcome{attempt: given, Known: j.Known, Took: time.Since(began)}
	switch {
	case err == nil:
		o.Found = found
	case refused(err):
		o.Refused = true
		sum := sha256.Sum256([]byte(a.User + "\x00" + a.Password))
		o.Password = []byte(hex.EncodeToString(sum[:2]))
	}
	// What was found out stands, whether it could be counted or not. It may have taken all the time that there was.
	_ = c.post(context.WithoutCancel(ctx), "/auth/after", o, &struct{}{})
	return err
}

// Verify has the running instance check a password by the directory and count the failures, which may keep the answer back for some seconds. Its
// errors are those of auth.Verifier, and ErrNotRunning, which it gives only when nobody is there to be asked.
func (c *Control) Verify(ctx context.Context, a auth.Attempt) (auth.Identity, error) {
	var j judgement
	if err := c.post(ctx, "/auth/check", attempt{User: []byte(a.User), Password: []byte(a.Password), Local: a.Local, Client: a.Client, Service: a.Service, Mechanism: a.Mechanism, TLS: a.TLS}, &j); err != nil {
		return auth.Identity{}, err
	}
	if j.Code != 0 {
		return auth.Identity{}, mailerr.New(j.Code, j.Status, j.Text)
	}
	address, err := addr.Parse(j.Address)
	return auth.Identity{Address: address, Home: j.Home, Quota: j.Quota}, err
}

// post asks the running instance a question about logins. ErrNotRunning, only when nobody is there to be asked.
func (c *Control) post(ctx context.Context, path string, question, answer any) error {
	content, err := json.Marshal(question)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://indigo"+path, bytes.NewReader(content))
	if err != nil {
		return err
	}
	response, err := c.client.Do(r)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s: %w: %w", c.data, ErrNotRunning, err)
	case err != nil:
		return fmt.Errorf("the Indigo that runs on %s does not answer: %w", c.data, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return errors.New(strings.TrimSpace(string(text)))
	}
	return json.NewDecoder(io.LimitReader(response.Body, maxAttempt)).Decode(answer)
}
