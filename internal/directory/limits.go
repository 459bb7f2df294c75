package directory

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
)

// Flags are the bits of pw_gid, which switch services off for a user (wiki 3521-3532), with IndiMail's values.
type Flags int

// The flags. Override makes a user's own flags hold in the place of the domain's: 8192 is what the wiki's SQL looks at
// (3551), 256 what older programs did; both are written, either is obeyed.
const (
	NoPasswordChange Flags = 0x01
	NoPOP            Flags = 0x02
	NoWebmail        Flags = 0x04
	NoIMAP           Flags = 0x08
	BounceMail       Flags = 0x10
	NoRelay          Flags = 0x20
	NoDialup         Flags = 0x40
	Administrator    Flags = 0x80
	NoSMTP           Flags = 0x200
	Override         Flags = 0x2100
)

// flagNames are IndiMail's words, in the order in which they are printed.
func flagNames() []struct {
	Flag Flags
	Name string
} {
	return []struct {
		Flag Flags
		Name string
	}{
		{NoPasswordChange, "NO_PASSWD_CHNG"}, {NoPOP, "NO_POP"}, {NoWebmail, "NO_WEBMAIL"}, {NoIMAP, "NO_IMAP"}, {BounceMail, "BOUNCE_MAIL"},
		{NoRelay, "NO_RELAY"}, {NoDialup, "NO_DIALUP"}, {Administrator, "QA_ADMIN"}, {NoSMTP, "NO_SMTP"}, {Override, "V_OVERRIDE"},
	}
}

// Names gives IndiMail's words for the flags that are set.
func (f Flags) Names() (names []string) {
	for _, one := range flagNames() {
		if f&one.Flag != 0 {
			names = append(names, one.Name)
		}
	}
	return names
}

// MarshalJSON gives IndiMail's words as an array.
func (f Flags) MarshalJSON() ([]byte, error) { return json.Marshal(append([]string{}, f.Names()...)) }

// FlagsByName reads IndiMail's words, in any case.
func FlagsByName(names ...string) (f Flags, err error) {
	for _, name := range names {
		known := false
		for _, one := range flagNames() {
			if strings.EqualFold(one.Name, name) {
				f, known = f|one.Flag, true
			}
		}
		if !known {
			var all []string
			for _, one := range flagNames() {
				all = append(all, one.Name)
			}
			return 0, fmt.Errorf("no flag %q; there are %s", name, strings.Join(all, ", "))
		}
	}
	return f, nil
}

// Limits are a domain's row of vlimits (wiki 3240-3319). -1 stands for no limit.
type Limits struct {
	// DomainExpiry and PasswordExpiry are seconds since 1970.
	DomainExpiry   int64 `json:"domain_expiry"`
	PasswordExpiry int64 `json:"passwd_expiry"`
	MaxUsers       int64 `json:"maxpopaccounts"`
	MaxAliases     int64 `json:"maxaliases"`
	MaxForwards    int64 `json:"maxforwards"`
	MaxResponders  int64 `json:"maxautoresponders"`
	MaxLists       int64 `json:"maxmailinglists"`
	// DiskQuota and DefaultQuota are bytes, MaxMessages and DefaultMessages counts.
	DiskQuota       int64 `json:"diskquota"`
	MaxMessages     int64 `json:"maxmsgcount"`
	DefaultQuota    int64 `json:"defaultquota"`
	DefaultMessages int64 `json:"defaultmaxmsgcount"`
	// Disabled has the flags that the domain's columns disable_… stand for.
	Disabled Flags `json:"disabled"`
	// What users who are not postmaster may not do: bit 1 create, 2 modify, 4 delete; for lists also their users (<<3) and
	// moderators (<<6).
	PermAccount      int `json:"perm_account"`
	PermAlias        int `json:"perm_alias"`
	PermForward      int `json:"perm_forward"`
	PermResponder    int `json:"perm_autoresponder"`
	PermList         int `json:"perm_maillist"`
	PermQuota        int `json:"perm_quota"`
	PermDefaultQuota int `json:"perm_defaultquota"`
}

// NoLimits are those of a domain without a row.
func NoLimits() Limits {
	return Limits{
		DomainExpiry: -1, PasswordExpiry: -1, MaxUsers: -1, MaxAliases: -1, MaxForwards: -1, MaxResponders: -1, MaxLists: -1, DiskQuota: -1,
		MaxMessages: -1, DefaultQuota: -1, DefaultMessages: -1,
	}
}

// disableColumns are the columns behind Disabled.
func disableColumns() []struct {
	name string
	flag Flags
} {
	return []struct {
		name string
		flag Flags
	}{
		{"disable_pop", NoPOP}, {"disable_imap", NoIMAP}, {"disable_dialup", NoDialup}, {"disable_passwordchanging", NoPasswordChange},
		{"disable_webmail", NoWebmail}, {"disable_relay", NoRelay}, {"disable_smtp", NoSMTP},
	}
}

// DomainFlags are the flags that hold for a domain as well as for one user.
func DomainFlags() (f Flags) {
	for _, c := range disableColumns() {
		f |= c.flag
	}
	return f
}

// fields gives the columns with where their values are, for reading and for writing.
func (l *Limits) fields() (names []string, numbers []*int64, small []*int) {
	names = []string{
		"domain_expiry", "passwd_expiry", "maxpopaccounts", "maxaliases", "maxforwards", "maxautoresponders", "maxmailinglists", "diskquota", "maxmsgcount",
		"defaultquota", "defaultmaxmsgcount", "perm_account", "perm_alias", "perm_forward", "perm_autoresponder", "perm_maillist", "perm_quota", "perm_defaultquota",
	}
	numbers = []*int64{
		&l.DomainExpiry, &l.PasswordExpiry, &l.MaxUsers, &l.MaxAliases, &l.MaxForwards, &l.MaxResponders, &l.MaxLists, &l.DiskQuota, &l.MaxMessages,
		&l.DefaultQuota, &l.DefaultMessages,
	}
	small = []*int{&l.PermAccount, &l.PermAlias, &l.PermForward, &l.PermResponder, &l.PermList, &l.PermQuota, &l.PermDefaultQuota}
	return names, numbers, small
}

// quota gives the quota of new users, "" without one.
func (l *Limits) quota() string {
	var parts []string
	if l.DefaultQuota > 0 {
		parts = append(parts, strconv.FormatInt(l.DefaultQuota, 10))
	}
	if l.DefaultMessages > 0 {
		if len(parts) == 0 {
			parts = []string{"0S"} // IndiMail's form begins with bytes
		} else {
			parts[0] += "S"
		}
		parts = append(parts, strconv.FormatInt(l.DefaultMessages, 10)+"C")
	}
	return strings.Join(parts, ",")
}

// Changes tells in words what l has in the place of before: the names of IndiMail's columns and flags.
func (l *Limits) Changes(before Limits) string {
	var words []string
	names, numbers, small := l.fields()
	_, oldNumbers, oldSmall := before.fields()
	for i, n := range numbers {
		if *n != *oldNumbers[i] {
			words = append(words, fmt.Sprintf("%s=%d", names[i], *n))
		}
	}
	for i, n := range small {
		if *n != *oldSmall[i] {
			words = append(words, fmt.Sprintf("%s=%d", names[len(numbers)+i], *n))
		}
	}
	for _, c := range disableColumns() {
		if (l.Disabled^before.Disabled)&c.flag != 0 {
			words = append(words, fmt.Sprintf("%s=%d", c.flag.Names()[0], min(1, l.Disabled&c.flag)))
		}
	}
	return strings.Join(words, " ")
}

// Limits gives a domain's limits; NoLimits when it has none. ErrNoDomain.
func (s *Store) Limits(ctx context.Context, domain string) (Limits, error) {
	domain = addr.FoldDomain(domain)
	return lookUp(ctx, &s.cache, &s.cache.limits, domain, func() (Limits, error) {
		d, err := s.Domain(ctx, domain)
		if err != nil {
			return Limits{}, fmt.Errorf("domain %s: %w", domain, err)
		}
		var l Limits
		err = s.retried(ctx, func() (err error) {
			l, err = s.readLimits(ctx, s.read.QueryRowContext, d.Name)
			return err
		})
		if errors.Is(err, sql.ErrNoRows) {
			return NoLimits(), nil
		}
		if err != nil {
			return Limits{}, fmt.Errorf("look up limits: %w", err)
		}
		return l, nil
	})
}

func (s *Store) readLimits(ctx context.Context, query func(context.Context, string, ...any) *sql.Row, domain string) (Limits, error) {
	var l Limits
	names, numbers, small := l.fields()
	var into []any
	for _, n := range numbers {
		into = append(into, n)
	}
	for _, n := range small {
		into = append(into, n)
	}
	disabled := make([]int, len(disableColumns()))
	for i, c := range disableColumns() {
		names = append(names, c.name)
		into = append(into, &disabled[i])
	}
	err := query(ctx, s.engine.rebind("SELECT "+s.engine.names(names)+" FROM vlimits WHERE domain = ?"), domain).Scan(into...)
	for i, c := range disableColumns() {
		if disabled[i] != 0 {
			l.Disabled |= c.flag
		}
	}
	// IndiMail's columns without a sign have 0 for none.
	for _, n := range []*int64{&l.DiskQuota, &l.MaxMessages, &l.DefaultQuota, &l.DefaultMessages} {
		if *n <= 0 {
			*n = -1
		}
	}
	return l, err
}

// SetLimits changes a domain's limits; two who do so at once do not undo each other's. ErrNoDomain.
func (s *Store) SetLimits(ctx context.Context, domain string, change func(*Limits) error) error {
	d, err := s.Domain(ctx, domain)
	if err != nil {
		return fmt.Errorf("domain %s: %w", domain, err)
	}
	return s.transaction(ctx, func(tx *sql.Tx) error {
		// The row is there before it is read, so that a second transaction waits for the first.
		if _, err := tx.ExecContext(ctx, s.engine.insert("vlimits", "domain"), d.Name); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.engine.rebind("UPDATE vlimits SET domain = ? WHERE domain = ?"), d.Name, d.Name); err != nil {
			return err
		}
		l, err := s.readLimits(ctx, tx.QueryRowContext, d.Name)
		if err != nil {
			return err
		}
		before := l
		if err := change(&l); err != nil {
			return err
		}
		if what := l.Changes(before); what != "" {
			if err := s.record(ctx, tx, "", d.Name, "limits set: "+what); err != nil {
				return err
			}
		}
		names, numbers, small := l.fields()
		var values []any
		for i, n := range numbers {
			if i >= 7 && *n < 0 {
				// Columns without a sign take no -1.
				values = append(values, int64(0))
				continue
			}
			values = append(values, *n)
		}
		for _, n := range small {
			values = append(values, *n)
		}
		for _, c := range disableColumns() {
			names = append(names, c.name)
			bit := 0
			if l.Disabled&c.flag != 0 {
				bit = 1
			}
			values = append(values, bit)
		}
		sets := make([]string, len(names))
		for i, name := range names {
			sets[i] = s.engine.name(name) + " = ?"
		}
		_, err = tx.ExecContext(ctx, s.engine.rebind("UPDATE vlimits SET "+strings.Join(sets, ", ")+" WHERE domain = ?"), append(values, d.Name)...)
		return err
	})
}

// ClearLimits takes a domain's limits away; none is no error.
func (s *Store) ClearLimits(ctx context.Context, domain string) error {
	d, err := s.Domain(ctx, domain)
	if err != nil {
		return fmt.Errorf("domain %s: %w", domain, err)
	}
	_, err = s.change(ctx, "", d.Name, "limits cleared", "DELETE FROM vlimits WHERE domain = ?", d.Name)
	return err
}

// SetFlags sets and clears a user's flags. ErrNoUser, ErrNoDomain.
func (s *Store) SetFlags(ctx context.Context, a addr.Address, set, clear Flags) error {
	u, err := s.User(ctx, a)
	if err != nil {
		return err
	}
	return s.transaction(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, s.engine.rebind("UPDATE indimail SET pw_gid = ((coalesce(pw_gid, 0) | ?) & ?), timestamp = CURRENT_TIMESTAMP WHERE pw_name = ? AND pw_domain = ?"),
			int(set), int(^clear&0x7fffffff), u.Name, u.Domain)
		if err != nil {
			return err
		}
		var what []string
		if set != 0 {
			what = append(what, "flags set: "+strings.Join(set.Names(), " "))
		}
		if clear != 0 {
			what = append(what, "flags cleared: "+strings.Join(clear.Names(), " "))
		}
		return s.record(ctx, tx, u.Name, u.Domain, strings.Join(what, "; "))
	})
}

// Denied tells what keeps a user from a service that flag stands for: the user's own flags, those of the domain unless the
// user overrides them, or an expiry; "" when nothing does.
func (s *Store) Denied(ctx context.Context, u User, flag Flags) (why string, err error) {
	now := s.config.Now()
	if Flags(u.GID)&flag != 0 {
		return strings.Join((Flags(u.GID)&flag).Names(), " ") + " is set for the user", nil
	}
	l, err := s.Limits(ctx, u.Domain)
	if err != nil {
		return "", err
	}
	switch {
	case l.DomainExpiry > 0 && now.Unix() > l.DomainExpiry:
		return "the domain has expired", nil
	case Flags(u.GID)&Override != 0:
		return "", nil
	case l.PasswordExpiry > 0 && now.Unix() > l.PasswordExpiry:
		return "the domain's passwords have expired", nil
	case l.Disabled&flag != 0:
		return strings.Join((l.Disabled&flag).Names(), " ") + " is set for the domain", nil
	}
	return "", nil
}
