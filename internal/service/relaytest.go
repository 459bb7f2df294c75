package service

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
)

// RelayAnswer tells whether a client may send a message, and what decided.
type RelayAnswer struct {
	Service string `json:"service"`
	Client  string `json:"client"`
	// Certificate is what the door makes of the client's certificate, "" when it shows none.
	Certificate string `json:"certificate,omitempty"`
	User        string `json:"user,omitempty"`
	From        string `json:"from"`
	To          string `json:"to"`
	// Allowed is the answer; Relay tells that the recipient is not of this system's.
	Allowed bool `json:"allowed"`
	Relay   bool `json:"relay"`
	// Stage is where it was decided: connect, helo, auth, mail or rcpt.
	Stage string `json:"stage"`
	// Check, Input, Setting and Where (the layer: file and line) are the decision as the trace has it, Reply what the client hears.
	Check   string `json:"check"`
	Input   string `json:"input,omitempty"`
	Setting string `json:"setting,omitempty"`
	Where   string `json:"where,omitempty"`
	Reply   string `json:"reply"`
	// Why says it in words.
	Why string `json:"why"`
}

// TestRelay tells for one recipient whether the message of q would be taken, by running the same code as a session does.
func TestRelay(ctx context.Context, data string, q Question) (*RelayAnswer, error) {
	if len(q.To) != 1 {
		return nil, errors.New("name one recipient")
	}
	q.Service = settings.ServiceName(q.Service)
	r, err := rehearse(ctx, data, q)
	if err != nil {
		return nil, err
	}
	defer r.users.Close()
	a := &RelayAnswer{Service: q.Service, Client: q.Client.String(), Certificate: r.certificate, User: q.User, From: q.From, To: q.To[0]}
	view := r.snapshot.View(q.Service)
	if q.User != "" {
		refused, err := userRefused(ctx, r.users, view, q.User)
		if err != nil {
			return nil, err
		}
		if refused != "" {
			a.Stage, a.Check, a.Input, a.Reply, a.Why = "auth", "password", q.User, "535 5.7.8", "the login itself is refused: "+refused
			return a, nil
		}
	}
	e, ok := decided(r.events)
	if !ok {
		return nil, errors.New("the rehearsal came to no decision; see `indigo explain --from --to --ip`")
	}
	a.Stage, a.Check, a.Input, a.Setting, a.Where, a.Reply = e.Kind, e.Check, e.Input, e.Setting, e.Layer, e.Reply
	a.Allowed, a.Relay = e.Verdict == "accept", e.Check == "relay" || e.Check == "rcpthosts"
	if _, entry, found := strings.Cut(e.Input, " "); found && a.Allowed && a.Check == "relay" {
		a.Where = entryAt(data, a.Where, entry)
	}
	if !a.Allowed && (a.Setting == settings.RelayClients.Name || a.Setting == settings.TLSClients.Name) {
		// No line of it decided, but that none fits.
		a.Where = fileOf(a.Where)
	}
	a.Why = whyRelay(a, e, r.snapshot, q)
	return a, nil
}

// decided gives the event that decided: the first refusal, or else the last answer to RCPT.
func decided(events []trace.Event) (trace.Event, bool) {
	for _, e := range events {
		if e.Verdict == "reject" || e.Verdict == "defer" || e.Verdict == "discard" {
			return e, true
		}
	}
	for _, e := range slices.Backward(events) {
		if e.Kind == "rcpt" {
			return e, true
		}
	}
	return trace.Event{}, false
}

// userRefused tells what keeps a user from logging in at an SMTP door, "" for nothing that is known.
func userRefused(ctx context.Context, users *directory.Store, view *settings.View, name string) (string, error) {
	words, _ := moduleWords("smtpd", view)
	a, err := addr.Parse(name)
	if err != nil {
		return "", fmt.Errorf("--user: %w", err)
	}
	u, err := users.User(ctx, a)
	switch {
	case errors.Is(err, directory.ErrNoUser), errors.Is(err, directory.ErrNoDomain):
		if slices.ContainsFunc(words, func(w string) bool { return !isDirectory(w) && !later(w) }) {
			// Another source may know him.
			return "", nil
		}
		return "there is no such user", nil
	case err != nil:
		return "", err
	}
	return users.Denied(ctx, u, directory.NoSMTP)
}

// entryAt gives the line of an entry in the file that a setting of several lines came from; where is FILE:LINE, the line being the setting's first.
func entryAt(data, where, entry string) string {
	file := fileOf(where)
	if filepath.IsAbs(file) || !filepath.IsLocal(file) {
		return where
	}
	f, err := os.Open(filepath.Join(data, file))
	if err != nil {
		return where
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		if strings.EqualFold(strings.TrimSpace(lines.Text()), entry) {
			return file + ":" + strconv.Itoa(n)
		}
	}
	return where
}

// fileOf gives where without its line.
func fileOf(where string) string {
	if i := strings.LastIndexByte(where, ':'); i > 0 {
		if _, err := strconv.Atoi(where[i+1:]); err == nil {
			return where[:i]
		}
	}
	return where
}

// whyRelay says in words what decided.
func whyRelay(a *RelayAnswer, e trace.Event, snapshot *settings.Snapshot, q Question) string {
	by := ""
	if a.Setting != "" {
		by = " by " + a.Setting + " (" + a.Where + ")"
	}
	kind, entry, _ := strings.Cut(a.Input, " ")
	switch {
	case e.Verdict == "discard":
		return "it is taken and thrown away" + by
	case a.Stage == "connect":
		return "the client is sent away" + by + ": " + a.Input
	case a.Stage == "rcpt" && a.Check == "syntax":
		return "the recipient is malformed, or a form of address that this system does not know"
	case a.Check == "submission":
		return "the port is for users who log in, and for clients in RELAYCLIENTS (" + a.Where + "), where this one is not"
	case a.Stage == "mail" && (a.Check == "require-auth" || a.Check == "authdomains"):
		return "a login is wanted" + by
	case a.Check == "local-user" && a.Allowed, a.Check == "local-alias" && a.Allowed, a.Check == "local-group" && a.Allowed:
		return "the recipient is of this system (" + strings.TrimPrefix(a.Check, "local-") + "), which is taken from anybody"
	case a.Check == "local-user":
		return "the domain is of this system, and has neither user nor alias of this name"
	case a.Check == "rcpthosts":
		return "this system takes mail for the domain, to send it on" + by
	case a.Check == "relay" && a.Allowed && kind == "user":
		return "a user who has logged in may relay"
	case a.Check == "relay" && a.Allowed && kind == "sender":
		return "the sender " + entry + " may relay" + by + ": anybody can claim to be him"
	case a.Check == "relay" && a.Allowed && kind == "certificate":
		return "the client's certificate may relay" + by + ", which names " + entry
	case a.Check == "relay" && a.Allowed && a.Setting == settings.CheckRelay.Name:
		return "somebody logged in by POP3 or IMAP from the client's address lately, and that lets it relay" + by
	case a.Check == "relay" && a.Setting == settings.TLSClients.Name:
		return "the client's certificate does not let it relay: " + entry + "; and nothing else does"
	case a.Check == "relay" && a.Allowed:
		return "the client may relay" + by + ", which names " + entry
	case a.Check == "relay" && kind == "user":
		return "the user may not relay: " + entry
	case a.Check == "relay" && (a.Setting == settings.AuthAll.Name || a.Setting == settings.NoRelay.Name):
		return "relaying is switched off" + by
	case a.Check == "relay" && a.Setting == settings.RelayClients.Name:
		view := snapshot.View(q.Service)
		lacks := []string{"no RELAYCLIENTS (" + fileOf(view.Source(settings.RelayClients.Setting).String()) + ") and no tcp rule's RELAYCLIENT for " + a.Client}
		if len(settings.RelayDomains.Get(view)) > 0 {
			lacks = append(lacks, "no RELAYDOMAINS ("+fileOf(view.Source(settings.RelayDomains.Setting).String())+") for a name that leads back to it")
		}
		if !settings.RelayMailFrom.Get(view).Empty() {
			lacks = append(lacks, "no RELAYMAILFROM for <"+a.From+">")
		}
		if !settings.TLSClients.Get(view).Empty() {
			lacks = append(lacks, "no certificate of TLSCLIENTS ("+fileOf(view.Source(settings.TLSClients.Setting).String())+")")
		}
		return "nothing lets a stranger relay: " + strings.Join(append(lacks, "no login"), "; ")
	}
	text := "check " + a.Check
	if a.Input != "" {
		text += ", given " + a.Input
	}
	return text + by
}
