package service

import (
	"context"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/settings"
)

// maxRemembered bounds how many past logins make addresses known.
const maxRemembered = 100000

// loginLimits gives what a service bears of failed logins.
func (h *House) loginLimits(service string) auth.Limits {
	v := h.view(service)
	// What is malformed was refused when the settings were loaded.
	exempt, _ := settings.Networks(settings.LockExempt.Get(v))
	return auth.Limits{Client: settings.LockClient.Get(v), Account: settings.LockAccount.Get(v), Time: settings.LockTime.Get(v),
		Delay: settings.LockDelay.Get(v), Exempt: exempt}
}

// rememberLogins makes the addresses known from which users logged in lately, also at other hosts, by the table lastauth: it has the last
// one of each user and service. The address of an anonymous login says nothing.
func (h *House) rememberLogins(ctx context.Context) error {
	anonymous := map[string]bool{}
	for _, name := range instances(h.settings.Load()) {
		anonymous[strings.ToLower(settings.AuthAnonymous.Get(h.view(name)))] = true
	}
	return h.directory.EachLogin(ctx, time.Now().Add(-auth.KnownTime), maxRemembered, func(l directory.SeenLogin) {
		if account := strings.ToLower(l.User + "@" + l.Domain); !anonymous[account] {
			h.guard.Remember(account, l.Client, l.At)
		}
	})
}

// saw is told of each login that succeeded. An anonymous one says nothing of who is at the address, and lets nobody relay.
func (h *House) saw(u directory.User, a auth.Attempt) {
	kind := kindOf(a.Service)
	h.logins.Saw(u, directory.LoggedIn{Service: a.Service, Client: a.Client, Mechanism: a.Mechanism, TLS: a.TLS,
		Relay: kind != "smtpd" && a.Mechanism != "ANONYMOUS" && settings.CheckRelay.Get(h.view(a.Service))})
}
