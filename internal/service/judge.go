package service

import (
	"bytes"
	"context"
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
}

// judge checks a password by the directory, with the count of failed logins around it, as a door does.
func (h *House) judge(ctx context.Context, given attempt) judgement {
	began := time.Now()
	a := auth.Attempt{User: string(given.User), Password: string(given.Password), Local: given.Local, Client: given.Client, Service: given.Service, Mechanism: given.Mechanism, TLS: given.TLS}
	var identity auth.Identity
	var err error
	if a.Known, err = h.accounts.Before(ctx, a); err == nil {
		identity, err = h.accounts.Verify(ctx, a)
		h.accounts.After(ctx, a, identity, err)
	}
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

// Verify has the running instance check a password by the directory and count the failures, which may keep the answer back for some seconds. Its
// errors are those of auth.Verifier, and ErrNotRunning, which it gives only when nobody is there to be asked.
func (c *Control) Verify(ctx context.Context, a auth.Attempt) (auth.Identity, error) {
	content, err := json.Marshal(attempt{User: []byte(a.User), Password: []byte(a.Password), Local: a.Local, Client: a.Client, Service: a.Service, Mechanism: a.Mechanism, TLS: a.TLS})
	if err != nil {
		return auth.Identity{}, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://indigo/auth/check", bytes.NewReader(content))
	if err != nil {
		return auth.Identity{}, err
	}
	response, err := c.client.Do(r)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ECONNREFUSED):
		return auth.Identity{}, fmt.Errorf("%s: %w: %w", c.data, ErrNotRunning, err)
	case err != nil:
		return auth.Identity{}, fmt.Errorf("the Indigo that runs on %s does not answer: %w", c.data, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return auth.Identity{}, errors.New(strings.TrimSpace(string(text)))
	}
	var j judgement
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAttempt)).Decode(&j); err != nil {
		return auth.Identity{}, err
	}
	if j.Code != 0 {
		return auth.Identity{}, mailerr.New(j.Code, j.Status, j.Text)
	}
	address, err := addr.Parse(j.Address)
	return auth.Identity{Address: address, Home: j.Home, Quota: j.Quota}, err
}
