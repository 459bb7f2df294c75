package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
)

// noFilters is why a domain or user cannot be given IndiMail's filters.
const noFilters = "there are no mail filters yet, and nothing reads the table vfilter; `indigo alias add ADDRESS '|COMMAND'` gives mail to a program"

// refusal is why options of one of IndiMail's programs have no effect here, and what does their job.
type refusal struct{ letters, why string }

// refusals are by program. A letter that stands neither here nor among those that a program knows is none of IndiMail's.
func refusals() map[string][]refusal {
	const (
		cluster  = "there are no clustered domains yet, and no host to choose"
		database = "all domains are in the database that DIRECTORY_DSN or control/host.mysql names"
		owner    = "all mail belongs to the account of RUNAS, or else the data directory's owner"
		copies   = "each user gets a copy of his own, which he can delete; -c is what always is"
		age      = "the age of a message is not changed; `indigo queue bounce` gives it up now, `indigo queue hold` keeps it"
		trial    = "no delivery is counted that was none; `indigo queue rate list` shows how much of a limit is used"
		panes    = "there are no panes; `indigo queue top --most N` shows N destinations, `indigo service log` the log"
		spawn    = "one process does the whole work"
	)
	return map[string][]refusal{
		"vadddomain":  {{"gi", owner}, {"f", noFilters}, {"cDHUPps", database}},
		"vadduser":    {{"HM", cluster}, {"l", "the most homes in one directory are the domain's: `indigo domain add --homes-per-directory`"}},
		"vmoduser":    {{"D", "there are no folders by date yet, and nothing reads folder.dateformat"}, {"l", "there is no autoresponder yet; `indigo alias add ADDRESS '|COMMAND'` runs one"}, {"0123", "the flags V_USER0 to V_USER3 are reserved, and nothing reads them"}},
		"vgroup":      {{"HM", cluster}},
		"vmoddomain":  {{"H", "all domains have the hash of PASSWORD_HASH; `vpasswd -h` and `indigo user passwd --hash` choose one for a user"}},
		"vbulletin":   {{"hs", copies}},
		"vdominfo":    {{"p", "mail is routed by SMTPROUTES and not by the table smtp_port: `indigo settings explain SMTPROUTES`"}},
		"vserverinfo": {{"p", "passwords are not shown; this one is in DIRECTORY_DSN or control/host.mysql"}},
		"qmail-rm":    {{"Xxf", age}},
		"drate":       {{"tCf", trial}, {"a", "each domain has a limit of its own, with its own count: set it for each"}},
		"qtop":        {{"cq", panes}},
		"qmta-send":   {{"lrc", spawn}},
		"queue-fix":   {{"i", "nothing is mended that one could be asked about: the queue mends itself when it is opened; -N changes nothing"}},
	}
}

// instead says why an option of one of IndiMail's programs has no effect, and what does its job; "" for a letter that is none of its options.
func instead(program string, letter byte) string {
	for _, one := range refusals()[program] {
		if strings.IndexByte(one.letters, letter) >= 0 {
			return one.why
		}
	}
	return ""
}

// givenAny tells whether an option among letters was given.
func givenAny(options map[byte]string, letters string) bool {
	return slices.ContainsFunc([]byte(letters), func(letter byte) bool { _, given := options[letter]; return given })
}

// newQuotaOf gives the quota that text means for a user: +N and -N add to his bytes and take from them (vmoduser(1)).
func newQuotaOf(u directory.User, text string) (string, error) {
	if text == "" || text[0] != '+' && text[0] != '-' {
		return text, nil
	}
	by, err := maildir.ParseQuota(text[1:])
	if err != nil || by.Bytes == 0 || by.Messages != 0 {
		return "", fmt.Errorf("quota %q: a number of bytes is wanted behind the sign", text)
	}
	q, err := maildir.ParseQuota(u.Quota)
	if err != nil {
		return "", fmt.Errorf("%s: %w", u.Address(), err)
	}
	if q.Bytes == 0 {
		return "", fmt.Errorf("%s has no quota of bytes that %s could be added to", u.Address(), text)
	}
	if text[0] == '-' {
		by.Bytes = -by.Bytes
	}
	if q.Bytes += by.Bytes; q.Bytes < 1 {
		return "", fmt.Errorf("%s: the quota %s has fewer bytes than %s takes away", u.Address(), u.Quota, text)
	}
	if q.Messages > 0 {
		return fmt.Sprintf("%dS,%dC", q.Bytes, q.Messages), nil
	}
	return strconv.FormatInt(q.Bytes, 10), nil
}

// vlimitExpiry sets what vlimit's options for expiries say: -e and -t a date as ddmmyyyyHHMMSS or -1, -n and -N days from now.
func vlimitExpiry(l *directory.Limits, options map[byte]string, now time.Time) error {
	for _, one := range []struct {
		date, days byte
		into       *int64
	}{{'e', 'n', &l.DomainExpiry}, {'t', 'N', &l.PasswordExpiry}} {
		text, dated := options[one.date]
		days, relative := options[one.days]
		switch {
		case dated && relative:
			return fmt.Errorf("-%c or -%c, not both", one.date, one.days)
		case dated && text == "-1":
			*one.into = -1
		case dated:
			at, err := time.ParseInLocation("02012006150405", text, time.Local)
			if err != nil {
				return fmt.Errorf("-%c %q is no date as ddmmyyyyHHMMSS, nor -1", one.date, text)
			}
			*one.into = at.Unix()
		case relative:
			n, err := strconv.Atoi(days)
			if err != nil {
				return fmt.Errorf("-%c %q is no number of days", one.days, days)
			}
			*one.into = now.AddDate(0, 0, n).Unix()
		}
	}
	return nil
}

// vlimitPermissions sets what users who are not postmaster may not do: a all, c create, m modify, d delete.
func vlimitPermissions(l *directory.Limits, options map[byte]string) error {
	for letter, one := range map[byte]struct {
		into  *int
		shift int
	}{
		'p': {&l.PermAccount, 0}, 'a': {&l.PermAlias, 0}, 'f': {&l.PermForward, 0}, 'r': {&l.PermResponder, 0}, 'l': {&l.PermList, 0}, 'u': {&l.PermList, 3},
		'o': {&l.PermList, 6}, 'x': {&l.PermQuota, 0}, 'z': {&l.PermDefaultQuota, 0},
	} {
		text, given := options[letter]
		if !given {
			continue
		}
		bits := 0
		for _, c := range text {
			bit, known := map[rune]int{'a': 7, 'c': 1, 'm': 2, 'd': 4}[c]
			if !known {
				return fmt.Errorf("no permission %q in -%c; there are c, m, d and a for all of them", c, letter)
			}
			bits |= bit
		}
		*one.into = *one.into&^(7<<one.shift) | bits<<one.shift
	}
	return nil
}

// catchAll gives what is for nobody of a domain another target, in vmoddomain's words: delete, bounce-no-mailbox, a Maildir or an address.
func (app *App) catchAll(ctx context.Context, s *directory.Store, domain, handler string) error {
	anyone := directory.CatchAll(domain)
	line := ""
	switch {
	case handler == "bounce-no-mailbox":
	case handler == "delete":
		line = "# deleted"
	case strings.HasPrefix(handler, "/") || strings.HasPrefix(handler, "./"):
		line = strings.TrimSuffix(handler, "/") + "/"
	case handler != "" && !strings.ContainsAny(handler[:1], "|#&") && !strings.Contains(handler, ":"):
		line = targetLine(anyone, handler)
	default:
		return fmt.Errorf("handler %q: delete, bounce-no-mailbox, the path of a Maildir or an address; mail is sent on to other hosts by SMTPROUTES", handler)
	}
	old, err := s.Aliases(ctx, anyone)
	if err != nil && !errors.Is(err, directory.ErrNoAlias) {
		return err
	}
	if line != "" && !slices.Contains(old, line) {
		if err := s.AddAlias(ctx, anyone, line); err != nil {
			return err
		}
	}
	if old = slices.DeleteFunc(slices.Clone(old), func(l string) bool { return l == line }); len(old) > 0 {
		_, err = s.RemoveAlias(ctx, anyone, old...)
		return err
	}
	return nil
}

// toggled splits flags into those that a user has not, which are to be set, and those that he has.
func toggled(ctx context.Context, s *directory.Store, a addr.Address, flags directory.Flags) (set, clear directory.Flags, err error) {
	u, err := s.AnyUser(ctx, a)
	if err != nil {
		return 0, 0, fmt.Errorf("%s: %w", a, err)
	}
	return flags &^ directory.Flags(u.GID), flags & directory.Flags(u.GID), nil
}

// clusterInfo is vserverinfo -D DOMAIN with -M or -S: the rows of IndiMail's table dbinfo for a domain by its host or server, without
// their passwords.
func (app *App) clusterInfo(ctx context.Context, data string, options map[byte]string) error {
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		all, err := s.ClusterServers(ctx, options['D'])
		if err != nil {
			return err
		}
		_, every := options['a']
		every = every || !givenAny(options, "smuPd")
		n := 0
		for _, one := range all {
			if host := options['M']; host != "" && one.MDAHost != host {
				continue
			}
			if server := options['S']; server != "" && one.Server != server {
				continue
			}
			n++
			fmt.Fprintf(app.Out, "Record  : %03d\n", n)
			for _, l := range []struct {
				letter      byte
				label, text string
			}{{'s', "server", one.Server}, {'m', "mdahost", one.MDAHost}, {'u', "user", one.User}, {'P', "port", strconv.Itoa(one.Port)}, {'d', "database", one.Database}} {
				if _, given := options[l.letter]; given || every {
					fmt.Fprintf(app.Out, "%-8s: %s\n", l.label, l.text)
				}
			}
		}
		if n == 0 {
			return fmt.Errorf("the table dbinfo has no such server of %s; `vserverinfo %[1]s` tells where this directory is", options['D'])
		}
		return nil
	})
}
