package service

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/dnsx"
	"github.com/indigomail/indigo/internal/lists"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/remote"
	"github.com/indigomail/indigo/internal/route"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/smtpd"
	"github.com/indigomail/indigo/internal/tlsx"
	"github.com/indigomail/indigo/internal/trace"
)

// Question describes a message that nobody has sent.
type Question struct {
	// Service is the door, for example "smtpd.25".
	Service string
	Client  netip.Addr
	// Helo is the client's name, User the authenticated user or "".
	Helo, User string
	From       string
	To         []string
	// Certificate is what the client would show, its own first, nil for none; Fingerprint stands in its place, as sha256:HEX.
	Certificate []*x509.Certificate
	Fingerprint string
}

// onWire gives an address as a client would say it, with A-labels; what is no address stays as it is.
func onWire(s string) string {
	if a, err := addr.Parse(s); err == nil {
		return a.String()
	}
	return s
}

// shown gives what the door would make of the client's certificate.
func (q Question) shown(data string, v *settings.View) (*tlsx.Client, error) {
	if len(q.Certificate) == 0 && q.Fingerprint == "" {
		return nil, nil
	}
	store, err := tlsx.NewStore(certificatePath(data, v))
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	options := tlsOptions(data, v)
	if err := store.Try(options); err != nil {
		return nil, err
	}
	if !store.Asks(options) {
		return nil, fmt.Errorf("%s asks no client for a certificate: there is neither CLIENTCA (clientca.pem beside the certificate) nor TLSCLIENTS", q.Service)
	}
	if q.Fingerprint == "" {
		return store.Judge(options, q.Certificate, time.Now()), nil
	}
	f, err := tlsx.Fingerprint(q.Fingerprint)
	if err != nil {
		return nil, err
	}
	return &tlsx.Client{Subject: "sha256:" + f, Fingerprints: []string{f}, Err: &tlsx.Unverified{Text: "nothing but its fingerprint is known"}}, nil
}

// WhatIf tells what would become of a message, as the trace would have it: it runs the door's own code up to RCPT, and for
// each recipient that is accepted the queue's router and the look-ups of a delivery. Nothing is sent but DNS questions. It
// reads the settings and the directory as they are on the disk, with or without a running instance.
func WhatIf(ctx context.Context, data string, q Question) ([]trace.Event, error) {
	r, err := rehearse(ctx, data, q)
	if err != nil {
		return nil, err
	}
	defer r.users.Close()
	return ways(ctx, data, r.snapshot, r.resolver, r.users, r.events)
}

// rehearsed is what a rehearsal said and stood on; users must be closed.
type rehearsed struct {
	snapshot *settings.Snapshot
	resolver *dnsx.Client
	users    *directory.Store
	events   []trace.Event
	// certificate tells what the door makes of the client's certificate.
	certificate string
}

// rehearse runs the door's code.
func rehearse(ctx context.Context, data string, q Question) (_ *rehearsed, err error) {
	if !Exists(data) {
		return nil, fmt.Errorf("%s is not an Indigo data directory: make one with `indigo up --data %s`", data, data)
	}
	r := &rehearsed{}
	if r.snapshot, err = settings.Load(data); err != nil {
		return nil, err
	}
	doors := slices.DeleteFunc(instances(r.snapshot), func(name string) bool { return !strings.HasPrefix(name, "smtpd.") })
	if !slices.Contains(doors, q.Service) {
		return nil, fmt.Errorf("service %q takes no mail: one of %s", q.Service, strings.Join(doors, ", "))
	}
	spec, err := newDoorSpec(q.Service, r.snapshot.View(q.Service))
	if err != nil {
		return nil, err
	}
	certificate, err := q.shown(data, r.snapshot.View(q.Service))
	if err != nil {
		return nil, err
	}
	if certificate != nil {
		if r.certificate = certificate.Subject + ", verified"; certificate.Err != nil {
			r.certificate = certificate.Subject + ", not verified: " + certificate.Err.Error()
		}
	}
	lines := []string{"EHLO " + q.Helo, "MAIL FROM:<" + onWire(q.From) + ">"}
	for _, to := range q.To {
		lines = append(lines, "RCPT TO:<"+onWire(to)+">")
	}
	if strings.ContainsFunc(strings.Join(lines, ""), func(r rune) bool { return r >= utf8.RuneSelf }) {
		lines[1] += " SMTPUTF8"
	}
	for _, line := range lines {
		if strings.ContainsAny(line, "\r\n") {
			return nil, errors.New("a name or an address has a line end in it")
		}
	}
	dialer := &net.Dialer{}
	if r.resolver, err = dnsx.New(dnsx.Config{Servers: settings.DNSServers.Get(r.snapshot.View("all")), Dial: dialer.DialContext, Now: time.Now}); err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	if r.users, err = openDirectory(ctx, data, "indigo", false); err != nil {
		return nil, fmt.Errorf("directory: %w", err)
	}
	tables := lists.New(data)
	defer tables.Close()
	relays := func(ctx context.Context, client netip.Addr, within time.Duration) (bool, error) {
		last, err := r.users.LastRelay(ctx, client)
		return err == nil && !last.IsZero() && time.Since(last) <= within, err
	}
	events := &recording{}
	session := 0
	door := smtpd.New(smtpd.Config{
		Service: q.Service, Hostname: settings.Me.Get(r.snapshot.View("all")), Submission: spec.submission,
		Settings: func() *settings.View { return r.snapshot.View(q.Service) }, Policy: policy.New(policy.Config{Directory: r.users, Lists: tables, Relays: relays}),
		HostName: (&House{resolver: r.resolver}).hostName,
		Trace:    events, Logger: slog.New(slog.DiscardHandler), Now: time.Now, PID: os.Getpid(),
		NewSessionID: func() string { session++; return fmt.Sprintf("rehearsal%d", session) },
	})
	door.Rehearse(ctx, q.Client, q.User, certificate, lines...)
	r.events = events.all()
	return r, nil
}

// recording keeps events in memory.
type recording struct {
	mu     sync.Mutex
	events []trace.Event
}

func (r *recording) Record(e trace.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func (r *recording) all() []trace.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// ways puts the way of each accepted recipient behind its RCPT.
func ways(ctx context.Context, data string, snapshot *settings.Snapshot, resolver *dnsx.Client, users *directory.Store, events []trace.Event) ([]trace.Event, error) {
	view := func() *settings.View { return snapshot.View("queue") }
	dialer := &net.Dialer{}
	tables := lists.New(data)
	defer tables.Close()
	onward, err := remote.New(remote.Config{
		Resolver: resolver, Dial: dialer.DialContext, Settings: view, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
		Hostname: func() string { return settings.Me.Get(snapshot.View("all")) }, Lists: tables,
		Certificates: func() string { return certificateDirectory(data, view()) }, Data: data,
	})
	if err != nil {
		return nil, err
	}
	defer onward.Close()
	router := route.New(route.Config{Directory: users, Settings: view})
	var all []trace.Event
	for _, e := range events {
		all = append(all, e)
		if e.Kind != "rcpt" || e.Verdict != "accept" {
			continue
		}
		w := trace.Event{Time: time.Now(), Kind: "route", Session: e.Session, To: e.To, Verdict: "success"}
		failed := func(e *mailerr.Error) {
			w.Verdict, w.Reply = "failure", e.Reply()
			if e.Temporary() {
				w.Verdict = "deferral"
			}
		}
		to, err := addr.Parse(e.To)
		if err != nil {
			return nil, err
		}
		d, err := router.Route(ctx, to)
		switch {
		case err != nil:
			failed(mailerr.From(err))
		case d.Channel == queue.Local:
			w.Check = "local"
			u, userErr := users.User(ctx, to)
			lines, err := users.Aliases(ctx, to)
			if errors.Is(err, directory.ErrNoAlias) && userErr != nil {
				lines, err = users.Aliases(ctx, directory.CatchAll(to.Domain))
			}
			switch {
			case err == nil:
				w.Check, w.Input = "local-alias", strings.Join(lines, ", ")
			case userErr == nil:
				w.Input = filepath.Join(u.Dir, "Maildir")
			}
		default:
			w.Check = "remote"
			var from addr.Address
			if e.From != "" && e.From != "<>" {
				if from, err = addr.Parse(e.From); err != nil {
					return nil, err
				}
			}
			way, e := onward.Way(ctx, d.Host, from, to)
			w.Input, w.Setting, w.Layer = way.Route, way.Setting, way.Layer
			if w.Dialogue = way.Hosts; e != nil {
				failed(e)
			}
		}
		w.Took = time.Since(w.Time)
		all = append(all, w)
	}
	return all, nil
}
