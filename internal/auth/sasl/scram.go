package sasl

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"

	"github.com/xdg-go/scram"
)

const (
	// SaltLength and Iterations are those of IndiMail's kept keys (wiki 2667). Who has no keys is shown the same, so that a
	// client cannot tell him from one who has; keys that are made with others can be told from them.
	SaltLength = 12
	Iterations = 4096
)

// scramHash gives the hash of a mechanism of the SCRAM family, of its -PLUS form too; nil for others.
func scramHash(mechanism string) scram.HashGeneratorFcn {
	switch strings.TrimSuffix(mechanism, "-PLUS") {
	case "SCRAM-SHA-1":
		return scram.SHA1
	case "SCRAM-SHA-256":
		return scram.SHA256
	case "SCRAM-SHA-512":
		return scram.SHA512
	}
	return nil
}

// scramServer is SCRAM (RFC 5802, 7677). The library keeps the messages' form and their proofs; what it leaves to us is the
// choice of the channel binding, the server's own end point, and that unknown users look like all others.
type scramServer struct {
	config    Config
	mechanism string
	nonce     func() string
	talk      *scram.ServerConversation
}

func (s *scramServer) first(ctx context.Context, response []byte) ([]byte, step, error) {
	return ask(s.clientFirst)(ctx, response)
}

func (s *scramServer) clientFirst(ctx context.Context, response []byte) ([]byte, step, error) {
	if len(response) > maxMessage {
		return nil, nil, ErrMalformed
	}
	base, plus := strings.CutSuffix(s.mechanism, "-PLUS")
	flag, _, _ := strings.Cut(string(response), ",")
	kind, bound := strings.CutPrefix(flag, "p=")
	var binding scram.ChannelBinding
	switch {
	case plus != bound:
		return nil, nil, failed("channel binding is for -PLUS, and -PLUS is for channel binding")
	case flag == "y" && slices.Contains(s.config.Offered, base+"-PLUS"):
		return nil, nil, failed("somebody hid from the client that channel binding was offered")
	case plus:
		all := Bindings(s.config.TLS, s.config.Certificate)
		i := slices.IndexFunc(all, func(b scram.ChannelBinding) bool { return string(b.Type) == kind })
		if i < 0 {
			return nil, nil, failed("this connection has no channel binding of the kind that the client wants")
		}
		binding = all[i]
	}
	var unavailable error
	server, err := scramHash(base).NewServer(func(user string) (scram.StoredCredentials, error) {
		if !validName(user) {
			return scram.StoredCredentials{}, ErrMalformed
		}
		var kept scram.StoredCredentials
		kept, unavailable = s.credentials(ctx, base, user)
		return kept, unavailable
	})
	if err != nil {
		return nil, nil, err
	}
	server.WithNonceGenerator(s.nonce)
	if s.talk = server.NewConversation(); plus {
		s.talk = server.NewConversationWithChannelBindingRequired(binding)
	}
	challenge, err := s.talk.Step(string(response))
	switch {
	case unavailable != nil:
		return nil, nil, unavailable
	case err != nil:
		return nil, nil, ErrMalformed
	}
	return []byte(challenge), s.clientFinal, nil
}

func (s *scramServer) clientFinal(_ context.Context, response []byte) ([]byte, step, error) {
	if len(response) > maxMessage {
		return nil, nil, ErrMalformed
	}
	// On a failure the library gives the word for the server-error attribute. It is not sent: all failures look the same.
	answer, err := s.talk.Step(string(response))
	switch {
	case err != nil && answer == "":
		return nil, nil, ErrMalformed
	case err != nil:
		return nil, nil, failed(answer)
	case !s.talk.Valid():
		return nil, nil, failed("no valid proof")
	case s.talk.AuthzID() != "" && s.talk.AuthzID() != s.talk.Username():
		return nil, nil, failed("the authorization identity is another user")
	}
	return []byte(answer), last(s.config.Store, s.talk.Username()), nil
}

// credentials gives the keys of a user: those that are kept, or those of his kept password, or those of nobody.
func (s *scramServer) credentials(ctx context.Context, mechanism, user string) (scram.StoredCredentials, error) {
	secrets, err := s.config.Store.Secrets(ctx, user)
	if err != nil {
		return scram.StoredCredentials{}, err
	}
	salt := hmac.New(sha256.New, s.config.Store.Decoy(ctx, user))
	salt.Write([]byte(mechanism))
	factors := scram.KeyFactors{Salt: string(salt.Sum(nil)[:SaltLength]), Iters: Iterations}
	size := scramHash(mechanism)().Size()
	random := make([]byte, 2*size)
	rand.Read(random)
	made := scram.StoredCredentials{KeyFactors: factors, StoredKey: random[:size], ServerKey: random[size:]}
	// Keys are derived for everybody or, when nobody's password is kept, for nobody: for the time that it takes.
	if secrets.Clear != "" || !s.config.KeysOnly {
		derived, err := Keys(mechanism, cmp.Or(secrets.Clear, rand.Text()), factors)
		switch {
		case err != nil:
			// What SASLprep forbids is nobody's password here.
			if _, err := Keys(mechanism, rand.Text(), factors); err != nil {
				return made, err
			}
		case secrets.Clear != "":
			made = derived
		}
	}
	if kept := secrets.SCRAM[mechanism]; kept.Salt != "" && kept.Iters > 0 && len(kept.StoredKey) == size && len(kept.ServerKey) == size {
		return kept, nil
	}
	return made, nil
}

// Keys derives what a server keeps of a password for a SCRAM mechanism. A password that SASLprep (RFC 4013) forbids is an
// error.
func Keys(mechanism, password string, factors scram.KeyFactors) (scram.StoredCredentials, error) {
	h := scramHash(mechanism)
	if h == nil {
		return scram.StoredCredentials{}, errors.New(mechanism + " is no SCRAM mechanism")
	}
	c, err := h.NewClient("", password, "")
	if err != nil {
		return scram.StoredCredentials{}, err
	}
	return c.GetStoredCredentialsWithError(factors)
}
