package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/authd"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/settings"
)

// maxPrograms bounds how many password programs run at once, for all services.
const maxPrograms = 16

// maxServers bounds how many questions to LDAP servers and Dovecots run at once, for all services.
const maxServers = 64

// sources is the Verifier of a service: the sources of passwords that its settings name, read anew for each attempt.
type sources struct {
	h    *House
	kind string
	view func() *settings.View
}

// Verify implements auth.Verifier.
func (s sources) Verify(ctx context.Context, a auth.Attempt) (auth.Identity, error) {
	view := s.view()
	words, _ := moduleWords(s.kind, view)
	identity, err := s.h.chain(words, view).Verify(ctx, a)
	if ctx.Err() == nil {
		s.h.unanswered(words, err)
	}
	if err == nil && identity.Home == "" && (s.kind == "pop3d" || s.kind == "imapd") {
		return auth.Identity{}, auth.Refused(fmt.Errorf("%s has no mailbox here", identity.Address))
	}
	return identity, err
}

// unanswered writes into the log, once a minute for the same sources, why logins get a temporary error; with another err nothing.
func (h *House) unanswered(words []string, err error) {
	var refusal *mailerr.Error
	if h.log == nil || err == nil || errors.As(err, &refusal) && !refusal.Temporary() {
		return
	}
	cause := err
	if refusal != nil {
		cause = cmp.Or[error](refusal.Cause, err)
	}
	sources := strings.Join(words, " ")
	h.unansweredMu.Lock()
	defer h.unansweredMu.Unlock()
	if now := time.Now(); now.Sub(h.unansweredAt[sources]) >= time.Minute {
		if h.unansweredAt == nil {
			h.unansweredAt = map[string]time.Time{}
		}
		h.unansweredAt[sources] = now
		h.log.Warn("a source of passwords cannot say, so that logins get a temporary error", "sources", sources, "error", cause)
	}
}

// unusable is a source of passwords that is not there, or is set wrongly: it cannot say, and those behind it are asked.
type unusable struct{ err error }

// Verify implements auth.Verifier.
func (u unusable) Verify(context.Context, auth.Attempt) (auth.Identity, error) {
	return auth.Identity{}, auth.Unavailable(u.err)
}

// known is a source of passwords whose users may be in the directory too: that says then where their mail is, and what they may not.
type known struct {
	auth.Verifier
	h *House
}

// Verify implements auth.Verifier.
func (k known) Verify(ctx context.Context, a auth.Attempt) (auth.Identity, error) {
	identity, err := k.Verifier.Verify(ctx, a)
	if err != nil {
		return identity, err
	}
	found, err := k.h.accounts.Identify(ctx, auth.Attempt{User: identity.Address.String(), Service: a.Service})
	switch {
	case errors.Is(err, directory.ErrNoUser), errors.Is(err, directory.ErrNoDomain):
		return identity, nil
	case err != nil:
		return auth.Identity{}, err
	}
	found.Home = cmp.Or(identity.Home, found.Home)
	return found, k.h.accounts.Admit(ctx, found, a)
}

// moduleWords gives the sources that a service's settings name, in their order (wiki 434, 3008-3038): IMAPAUTHMODULES or IMAPMODULES for POP3
// and IMAP, else AUTHMODULES; the directory alone when none is set. from is the setting that says so.
func moduleWords(kind string, view *settings.View) (words []string, from *settings.Setting) {
	from = settings.AuthModules.Setting
	if kind == "pop3d" || kind == "imapd" {
		for _, key := range []settings.Key[string]{settings.IMAPAuthModules, settings.IMAPModules} {
			if words = strings.Fields(key.Get(view)); len(words) > 0 {
				from = key.Setting
				break
			}
		}
	}
	if len(words) == 0 {
		words = strings.Fields(settings.AuthModules.Get(view))
	}
	if len(words) == 0 {
		return []string{"vchkpass"}, from
	}
	// IndiMail's run scripts end the chain so.
	if filepath.Base(words[len(words)-1]) == "false" {
		words = words[:len(words)-1]
	}
	return words, from
}

// chains goes through the words of every service that asks for passwords, with the setting that they stand in.
func chains(snapshot *settings.Snapshot, each func(view *settings.View, words []string, from *settings.Setting)) {
	for _, name := range instances(snapshot) {
		if kind := kindOf(name); asksPasswords(kind) {
			view := snapshot.View(name)
			words, from := moduleWords(kind, view)
			each(view, words, from)
		}
	}
	view := snapshot.View(authd.Service)
	if settings.DovecotAuthSocket.Get(view) == "" {
		return
	}
	for _, kind := range []string{"smtpd", "imapd"} {
		words, from := moduleWords(kind, view)
		each(view, words, from)
	}
}

// chain makes the sources that words name: Indigo's own by their names, whatever the directory before them, and programs.
func (h *House) chain(words []string, view *settings.View) (chain auth.Chain) {
	for _, word := range words {
		switch {
		case isDirectory(word):
			chain = append(chain, h.verifier)
		case isSystem(word):
			// Where nobody could ask, the host's users are as unknown as they were to IndiMail's modules without root.
			if h.system != nil && !slices.Contains(chain, auth.Verifier(h.system)) {
				chain = append(chain, h.system)
			}
		case isPAM(word):
			if h.pam != nil {
				chain = append(chain, known{h.pam, h})
			}
		case later(word):
		case isLDAP(word):
			source, err := h.ldapSource(view)
			if err != nil {
				chain = append(chain, unusable{err})
				continue
			}
			chain = append(chain, known{source, h})
		case isDovecot(word):
			chain = append(chain, known{&auth.Dovecot{
				Socket: dovecotSocket(word), Dial: new(net.Dialer).DialContext, PID: os.Getpid(), DefaultDomain: defaultDomain(h.view("all")), Running: h.passwordServers,
			}, h})
		default:
			program, err := h.passwordProgram(word, view)
			if err != nil {
				chain = append(chain, unusable{err})
				continue
			}
			chain = append(chain, known{program, h})
		}
	}
	return chain
}

// isDirectory tells whether a word names the directory.
func isDirectory(word string) bool {
	return slices.Contains([]string{"vchkpass", "authindi"}, filepath.Base(word))
}

// asksPasswords tells whether a kind of service has users who log in.
func asksPasswords(kind string) bool {
	return slices.Contains([]string{"smtpd", "pop3d", "imapd"}, kind)
}

// kindOf gives the kind of a service, "smtpd" of "smtpd.587".
func kindOf(service string) string {
	kind, _, _ := strings.Cut(service, ".")
	return kind
}

// isDovecot tells whether a word names a Dovecot's socket.
func isDovecot(word string) bool { return strings.HasPrefix(word, "dovecot:") }

// dovecotSocket gives its path.
func dovecotSocket(word string) string { return strings.TrimPrefix(word, "dovecot:") }

// isSystem tells whether a word names the host's users.
func isSystem(word string) bool {
	return slices.Contains([]string{"sys-checkpwd", "authpwd", "authshadow"}, filepath.Base(word))
}

// later tells whether a word names one of IndiMail's modules that is not here and that Indigo has nothing for.
func later(word string) bool {
	if !pamWord(word) {
		return false
	}
	_, err := os.Stat(word)
	return err != nil || !filepath.IsAbs(word)
}

// passwordProgram is a program of the checkpassword interface, which gets the service's settings in its environment.
func (h *House) passwordProgram(path string, view *settings.View) (auth.Verifier, error) {
	if err := programThere(path); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	data, err := filepath.Abs(h.config.Data)
	if err != nil {
		return nil, err
	}
	return &auth.Program{
		Path: path, Self: self, DefaultDomain: defaultDomain(h.view("all")), Running: h.passwordPrograms,
		Environment: append(view.Environment(), "PATH="+settings.FromEnvironment().Path, "INDIGO_DATA="+data),
	}, nil
}

// programThere tells what keeps a password program from being run.
func programThere(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("source of passwords %q: neither vchkpass, sys-checkpwd, ldap-checkpwd, dovecot:SOCKET nor the absolute path of a program", path)
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("source of passwords: %w", err)
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return fmt.Errorf("source of passwords %s: it is no program (chmod 755)", path)
	case info.Mode()&0o002 != 0:
		return fmt.Errorf("source of passwords %s: everyone may write to it (chmod o-w)", path)
	}
	return nil
}
