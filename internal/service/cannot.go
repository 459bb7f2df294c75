package service

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/settings"
)

// MechanismGap is how many of a domain's users have nothing kept that mechanisms need which they are offered: the offer comes before the name.
type MechanismGap struct {
	Domain     string   `json:"domain"`
	Mechanisms []string `json:"mechanisms"`
	// Services are those that offer them, at least inside TLS.
	Services []string `json:"services"`
	// Users counts those of the domain who are not locked, Cannot those of them who would fail.
	Users  int `json:"users"`
	Cannot int `json:"cannot"`
}

// offeredSecret is what users need for mechanisms that are offered: keys of SCRAM, "" for the password itself; bare is ENABLE_CRAM.
type offeredSecret struct {
	keys                 string
	bare                 bool
	mechanisms, services []string
}

// MechanismGaps goes through the users of a domain, or with "" of all, and gives the gaps that there are, in the order of the domains.
func MechanismGaps(ctx context.Context, data string, store *directory.Store, domain string) ([]MechanismGap, error) {
	snapshot, err := settings.Load(data)
	if err != nil {
		return nil, err
	}
	forms, err := store.Forms(ctx)
	if err != nil {
		return nil, err
	}
	domains, err := store.Domains(ctx)
	if err != nil {
		return nil, err
	}
	if domain != "" {
		one, err := store.Domain(ctx, domain)
		if err != nil {
			return nil, err
		}
		domains = []directory.Domain{one}
	}
	needed := offeredSecrets(snapshot, forms)
	gaps := []MechanismGap{}
	for _, d := range domains {
		cannot := make([]int, len(needed))
		users, after := 0, ""
		for {
			some, err := store.Users(ctx, d.Name, after, 1000)
			if err != nil {
				return nil, err
			}
			for _, u := range some {
				after = u.Name
				stored, err := auth.ParseStored(u.Password, u.Scram)
				if errors.Is(err, auth.ErrNoPassword) {
					continue
				}
				users++
				for i, n := range needed {
					secrets := stored.Secrets(n.bare)
					if _, keys := secrets.SCRAM[n.keys]; secrets.Clear == "" && stored.Sealed == "" && !keys {
						cannot[i]++
					}
				}
			}
			if len(some) < 1000 {
				break
			}
		}
		for i, n := range needed {
			if cannot[i] > 0 {
				gaps = append(gaps, MechanismGap{d.Name, n.mechanisms, n.services, users, cannot[i]})
			}
		}
	}
	return gaps, nil
}

// offeredSecrets gives what the mechanisms need that services offer; -PLUS needs what its mechanism does.
func offeredSecrets(snapshot *settings.Snapshot, forms directory.Forms) (all []*offeredSecret) {
	for _, service := range instances(snapshot) {
		kind, v := kindOf(service), snapshot.View(service)
		if words, _ := moduleWords(kind, v); !asksPasswords(kind) || !slices.ContainsFunc(words, isDirectory) {
			continue
		}
		bare := settings.EnableCRAM.Get(v)
		names := auth.Offer(auth.Terms{EnableCRAM: bare, TLS: true, Bindable: true, Clear: forms.Clear, SCRAM: forms.SCRAM, Disabled: func(name string) bool {
			key, ok := settings.DisableMechanism[name]
			return ok && key.Get(v)
		}})
		if kind == "pop3d" && !settings.DisableAPOP.Get(v) && (forms.Clear || bare) {
			names = append(names, "APOP")
		}
		for _, name := range names {
			base, keys := strings.TrimSuffix(name, "-PLUS"), ""
			switch {
			case strings.HasPrefix(base, "SCRAM-"):
				keys = base
			case !strings.HasPrefix(base, "CRAM-") && base != "DIGEST-MD5" && base != "APOP":
				continue
			}
			i := slices.IndexFunc(all, func(n *offeredSecret) bool { return n.keys == keys && n.bare == bare })
			if i < 0 {
				i, all = len(all), append(all, &offeredSecret{keys: keys, bare: bare})
			}
			all[i].mechanisms, all[i].services = addOnce(all[i].mechanisms, name), addOnce(all[i].services, service)
		}
	}
	return all
}

func addOnce(all []string, one string) []string {
	if slices.Contains(all, one) {
		return all
	}
	return append(all, one)
}
