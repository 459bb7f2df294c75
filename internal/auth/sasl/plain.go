package sasl

import (
	"bytes"
	"context"
	"crypto/tls"
	"slices"
	"strings"
)

// plain is RFC 4616. What is compared are the bytes as they came, since that is what was hashed.
func plain(store Store) step {
	return ask(func(ctx context.Context, response []byte) ([]byte, step, error) {
		parts := bytes.Split(response, []byte{0})
		if len(parts) != 3 || len(parts[1]) == 0 || len(response) > maxMessage {
			return nil, nil, ErrMalformed
		}
		// Nobody may act for another user, so an authorization identity must name the same one.
		if len(parts[0]) > 0 && !bytes.Equal(parts[0], parts[1]) {
			return nil, nil, failed("the authorization identity is another user")
		}
		return nil, nil, store.Authenticate(ctx, string(parts[1]), string(parts[2]))
	})
}

// login is the LOGIN mechanism of draft-murchison-sasl-login.
func login(store Store) step {
	user := func(_ context.Context, name []byte) ([]byte, step, error) {
		if len(name) > maxName {
			return nil, nil, ErrMalformed
		}
		return []byte("Password:"), func(ctx context.Context, password []byte) ([]byte, step, error) {
			if len(password) > maxMessage {
				return nil, nil, ErrMalformed
			}
			return nil, nil, store.Authenticate(ctx, string(name), string(password))
		}, nil
	}
	return func(ctx context.Context, response []byte) ([]byte, step, error) {
		if response == nil {
			return []byte("Username:"), user, nil
		}
		return user(ctx, response)
	}
}

// Addresses gives the mail addresses in the client's certificate, when that was verified.
func Addresses(state *tls.ConnectionState) []string {
	if state == nil || len(state.VerifiedChains) == 0 {
		return nil
	}
	return state.VerifiedChains[0][0].EmailAddresses
}

// external is EXTERNAL (RFC 4422 appendix A) for a client with a certificate for these addresses; the first is meant when
// it names none.
func external(store Store, addresses []string) step {
	return ask(func(ctx context.Context, response []byte) ([]byte, step, error) {
		user := string(response)
		if user == "" {
			user = addresses[0]
		}
		if !validName(user) {
			return nil, nil, ErrMalformed
		}
		if !slices.ContainsFunc(addresses, func(a string) bool { return strings.EqualFold(a, user) }) {
			return nil, nil, failed("the certificate is not for this address")
		}
		return nil, nil, store.Admit(ctx, user)
	})
}

// anonymous is RFC 4505.
func anonymous(admit func(ctx context.Context, trace string) error) step {
	return ask(func(ctx context.Context, response []byte) ([]byte, step, error) {
		if len(response) > 0 && (!validName(string(response)) || len(response) > 255*4) {
			return nil, nil, ErrMalformed
		}
		return nil, nil, admit(ctx, string(response))
	})
}
