package service

import (
	"context"
	"errors"
	"slices"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/directory"
)

// authority is what a service's doors log users in with: its sources for passwords, and for all other mechanisms the directory, where that
// is one of them.
type authority struct {
	*auth.Accounts
	sources sources
}

var errNoDirectory = errors.New("the directory is no source of passwords of this service")

func (a authority) usesDirectory() bool {
	words, _ := moduleWords(a.sources.kind, a.sources.view())
	return slices.ContainsFunc(words, isDirectory)
}

// Verify implements auth.Authority.
func (a authority) Verify(ctx context.Context, attempt auth.Attempt) (auth.Identity, error) {
	return a.sources.Verify(ctx, attempt)
}

// Secrets implements auth.Authority.
func (a authority) Secrets(ctx context.Context, attempt auth.Attempt) (auth.Identity, sasl.Secrets, error) {
	if !a.usesDirectory() {
		return auth.Identity{}, sasl.Secrets{}, auth.Refused(errNoDirectory)
	}
	return a.Accounts.Secrets(ctx, attempt)
}

// Identify implements auth.Authority.
func (a authority) Identify(ctx context.Context, attempt auth.Attempt) (auth.Identity, error) {
	if !a.usesDirectory() {
		return auth.Identity{}, auth.Refused(errNoDirectory)
	}
	return a.Accounts.Identify(ctx, attempt)
}

// Forms implements auth.Authority.
func (a authority) Forms(ctx context.Context) (directory.Forms, error) {
	if !a.usesDirectory() {
		return directory.Forms{}, nil
	}
	return a.Accounts.Forms(ctx)
}
