package service

import (
	"context"
	"strings"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/lists"
	"github.com/indigomail/indigo/internal/settings"
)

// PasswordForm gives how the settings want new passwords stored. hash, when it is not "", goes before PASSWORD_HASH.
func PasswordForm(v *settings.View, hash string) (auth.Form, error) {
	if hash == "" {
		hash = settings.PasswordHash.Get(v)
	}
	method, err := auth.ParseMethod(hash)
	form := auth.Form{Hash: method, SCRAM: settings.PasswordSCRAM.Get(v), Encrypt: settings.PasswordKept.Get(v) != "clear"}
	if form.SCRAM == "none" {
		form.SCRAM = ""
	}
	return form, err
}

// PasswordPolicy gives which new passwords the settings refuse; finder looks the list up.
func PasswordPolicy(v *settings.View, finder *lists.Finder) auth.Policy {
	policy := auth.Policy{MinLength: settings.PasswordLength.Get(v)}
	if list := settings.BadPasswords.Get(v); !list.Empty() {
		policy.Bad = func(ctx context.Context, password string) (bool, error) {
			hit, err := finder.Find(ctx, list, strings.ToLower(password))
			return hit.Found, err
		}
	}
	return policy
}
