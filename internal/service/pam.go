package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/settings"
)

// pamWord tells whether a word is one of IndiMail's names for PAM.
func pamWord(word string) bool {
	return slices.Contains([]string{"pam-checkpwd", "authpam"}, filepath.Base(word))
}

// isPAM tells whether a word names PAM, and the helper for it is there; without it, a program of the name is one as any other.
func isPAM(word string) bool {
	if !pamWord(word) {
		return false
	}
	self, err := os.Executable()
	if err != nil {
		return false
	}
	_, err = os.Stat(auth.PAMHelper(self))
	return err == nil
}

// newPAM is PAM as the settings have it.
func newPAM(all *settings.View) (auth.PAM, error) {
	self, err := os.Executable()
	return auth.PAM{Helper: auth.PAMHelper(self), Service: settings.PAMService.Get(all)}, err
}

// NewPAM is PAM for the program pam-checkpwd: the service that it is given, or else its environment names, or else the settings of the data
// directory, which need not be there.
func NewPAM(environment settings.Environment, service string) (auth.PAM, error) {
	snapshot := new(settings.Snapshot)
	if Exists(environment.Data) {
		snapshot, _ = settings.Inspect(environment.Data)
	}
	v, err := environment.Over(snapshot.View("all"), settings.PAMService.Setting)
	if err != nil {
		return auth.PAM{}, err
	}
	p, err := newPAM(v)
	if service != "" {
		p.Service = service
	}
	return p, err
}

// checkPAM answers for PAM.
func checkPAM(p auth.PAM) func(context.Context, systemQuestion) systemAnswer {
	return func(ctx context.Context, q systemQuestion) systemAnswer {
		user, refused, err := p.Check(ctx, q.User, q.Password, q.Client)
		return newSystemAnswer(user.Name, user.Home, refused, err)
	}
}

// pamUsers is the Verifier of those whom PAM knows.
type pamUsers struct {
	*checkers
	host func() string
}

// Verify implements auth.Verifier. This host's name behind the @ is left out, as the host's users have none; any other stays.
func (p *pamUsers) Verify(ctx context.Context, a auth.Attempt) (auth.Identity, error) {
	host := p.host()
	name := a.User
	if local, domain, ok := strings.Cut(name, "@"); ok && strings.EqualFold(domain, host) {
		name = local
	}
	if !auth.ValidCredentials(name, a.Password) {
		return auth.Identity{}, auth.Refused(errors.New("name or password malformed"))
	}
	client := ""
	if a.Client.IsValid() {
		client = a.Client.String()
	}
	answer, err := p.ask(ctx, systemQuestion{name, a.Password, client})
	switch {
	case err != nil:
		return auth.Identity{}, auth.Unavailable(fmt.Errorf("PAM: %w", err))
	case answer.Error != "":
		return auth.Identity{}, auth.Unavailable(errors.New(answer.Error))
	case answer.Refused != "":
		return auth.Identity{}, auth.Refused(errors.New(answer.Refused))
	}
	found := answer.Name
	if !strings.Contains(found, "@") {
		found += "@" + host
	}
	address, err := addr.Parse(found)
	if err != nil {
		return auth.Identity{}, auth.Unavailable(fmt.Errorf("PAM let in %s, which is no address: %w", strconv.Quote(answer.Name), err))
	}
	return auth.Identity{Address: address, Home: answer.Home}, nil
}
