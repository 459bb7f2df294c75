package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
)

// relayTime is how long a login lets its address relay, as IndiMail's table relay counts.
const relayTime = time.Hour

// occasion is when something was done last and from where; a zero At stands for never.
type occasion struct {
	At time.Time `json:"at"`
	IP string    `json:"ip,omitempty"`
}

// userInfo is all that vuserinfo tells of a user (wiki 2503-2530, 3059-3085), without secrets.
type userInfo struct {
	Address string `json:"address"`
	Name    string `json:"name"`
	Dir     string `json:"dir"`
	// Inactive says that the user is marked so: the row is in the table indibak.
	Inactive bool            `json:"inactive,omitempty"`
	Missing  bool            `json:"dir_missing,omitempty"`
	Quota    string          `json:"quota"`
	Bytes    int64           `json:"used_bytes"`
	Count    int64           `json:"used_messages"`
	UID      int             `json:"uid"`
	GID      int             `json:"gid"`
	Flags    directory.Flags `json:"flags"`
	// Forms names what is stored of the password, without it.
	Forms []string `json:"password_forms"`
	// Logins are by service; Added, PasswordChanged, Inactivated and Activated have IndiMail's other rows of lastauth.
	LastLogin       *occasion           `json:"last_login,omitempty"`
	Logins          map[string]occasion `json:"logins"`
	Added           *occasion           `json:"added,omitempty"`
	PasswordChanged *occasion           `json:"password_changed,omitempty"`
	Inactivated     *occasion           `json:"inactivated,omitempty"`
	Activated       *occasion           `json:"activated,omitempty"`
	RelayAllowed    bool                `json:"relay_allowed"`
	Aliases         []string            `json:"aliases"`

	passwd, kept string
}

// formNames names the stored forms of a password as vuserinfo does behind them (wiki 2667), "" for none.
func formNames(passwd, kept string) string {
	stored, err := auth.ParseStored(passwd, kept)
	names := stored.Forms()
	switch {
	case len(names) > 0:
	case errors.Is(err, auth.ErrNoPassword) && passwd != "":
		return "locked"
	case err != nil && passwd != "":
		return "unknown"
	}
	return strings.Join(names, ", ")
}

// report tells of users: what options name, or all without any. secret lets it show stored passwords.
type report struct {
	app     *App
	store   *directory.Store
	options map[byte]string
	secret  bool
	// server is where the directory is, asked for once.
	server [][2]string
}

func (r *report) all() bool {
	_, all := r.options['a']
	return all || len(r.options) == 0
}

func (r *report) wants(letter byte) bool {
	_, given := r.options[letter]
	return given || r.all()
}

// describe collects what there is to tell of a user.
func (r *report) describe(ctx context.Context, u directory.User) (v userInfo, err error) {
	v = userInfo{
		Address: u.Address().String(), Name: u.Gecos, Dir: u.Dir, Inactive: u.Inactive, Quota: u.Quota, UID: u.UID, GID: u.GID, Flags: directory.Flags(u.GID),
		Logins: map[string]occasion{}, passwd: u.Password, kept: u.Scram,
	}
	stored, _ := auth.ParseStored(u.Password, u.Scram)
	v.Forms = append([]string{}, stored.Forms()...)
	if _, err := os.Lstat(u.Dir); errors.Is(err, fs.ErrNotExist) {
		v.Missing = true
	}
	if r.wants('q') {
		if v.Bytes, v.Count, err = maildir.Usage(filepath.Join(u.Dir, "Maildir")); err != nil {
			return v, err
		}
	}
	if r.wants('l') {
		if err := r.times(ctx, u, &v); err != nil {
			return v, err
		}
	}
	if r.wants('f') {
		v.Aliases, err = r.store.AliasLines(ctx, u.Address())
	}
	return v, err
}

// times adds when the user was there, and what was done to the user.
func (r *report) times(ctx context.Context, u directory.User, v *userInfo) error {
	logins, err := r.store.LastAuth(ctx, u.Address())
	if err != nil {
		return err
	}
	for _, l := range logins {
		if strings.EqualFold(l.Service, "add") {
			v.Added = &occasion{l.At, l.IP}
		}
	}
	for _, l := range logins {
		// What is older than the user is of one before, of the same name.
		if v.Added != nil && l.At.Before(v.Added.At) {
			continue
		}
		one := occasion{l.At, l.IP}
		switch strings.ToLower(l.Service) {
		case "add":
		case "pass":
			v.PasswordChanged = &one
		case "inac":
			v.Inactivated = &one
		case "acti":
			v.Activated = &one
		default:
			v.Logins[l.Service] = one
			if v.LastLogin == nil || one.At.After(v.LastLogin.At) {
				v.LastLogin = &one
			}
		}
	}
	for _, kind := range []string{"pop3", "imap"} {
		if l := v.login(kind); l != nil && !v.RelayAllowed {
			if v.RelayAllowed, err = r.store.RelayAllowed(ctx, u.Address(), l.IP, time.Now().Add(-relayTime)); err != nil {
				return err
			}
		}
	}
	return nil
}

// login gives the last login of a kind of service; nil for never.
func (v *userInfo) login(kind string) (last *occasion) {
	for service, l := range v.Logins {
		if strings.HasPrefix(service, kind) && (last == nil || l.At.After(last.At)) {
			last = &l
		}
	}
	return last
}

// mib gives a quota in megabytes, or gigabytes from one on, as vuserinfo does.
func mib(bytes int64) string {
	n, unit := float64(bytes)/(1<<20), "MiB"
	if n >= 1024 {
		n, unit = n/1024, "GiB"
	}
	return strconv.FormatFloat(n, 'f', 2, 64) + " " + unit
}

// days gives a time as vuserinfo does.
func days(d time.Duration) string {
	seconds := int64(max(0, d) / time.Second)
	return fmt.Sprintf("%d days %02d Hrs %02d Mins %02d Secs", seconds/86400, seconds%86400/3600, seconds%3600/60, seconds%60)
}

func (o *occasion) or(never string) string {
	if o == nil {
		return never
	}
	return "(" + o.IP + ") " + o.At.Local().Format("Mon Jan _2 15:04:05 2006")
}

// serviceLines tell what is switched off for a user, in vuserinfo's words.
func serviceLines(flags directory.Flags) (lines []string) {
	if flags == 0 {
		return []string{"all services available"}
	}
	for _, one := range []struct {
		flag directory.Flags
		text string
	}{
		{directory.NoPasswordChange, "password can not be changed by user"}, {directory.NoPOP, "pop access closed"}, {directory.NoWebmail, "webmail access closed"},
		{directory.NoIMAP, "imap access closed"}, {directory.NoSMTP, "smtp access closed"}, {directory.BounceMail, "mail will be bounced back to sender"},
		{directory.NoRelay, "user not allowed to relay mail"}, {directory.NoDialup, "no dialup flag has been set"},
		{directory.Administrator, "has qmailadmin administrator privileges"}, {directory.Override, "has domain limit skip privileges"},
	} {
		if flags&one.flag != 0 {
			lines = append(lines, one.text)
		}
	}
	return lines
}

// hostAddress gives the address under which other hosts know this one, as far as its interfaces tell.
func hostAddress() string {
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		if network, ok := a.(*net.IPNet); ok && network.IP.To4() != nil && network.IP.IsGlobalUnicast() {
			return network.IP.String()
		}
	}
	return "127.0.0.1"
}

// print shows a user in vuserinfo's form.
func (r *report) print(ctx context.Context, u directory.User) error {
	v, err := r.describe(ctx, u)
	if err != nil {
		return fmt.Errorf("%s: %w", u.Address(), err)
	}
	out, wanted := &strings.Builder{}, r.wants
	line := func(label, text string) { fmt.Fprintf(out, "%-14s: %s\n", label, text) }
	if wanted('n') {
		line("name", v.Address)
	}
	if wanted('p') {
		text := "none"
		if names := formNames(v.passwd, v.kept); names != "" {
			text = "(" + names + ")"
			if r.secret {
				text = strings.TrimPrefix(v.kept+","+v.passwd, ",") + " " + text
			}
		}
		line("passwd", text)
	}
	if wanted('u') {
		line("uid", strconv.Itoa(v.UID))
	}
	if wanted('g') {
		line("gid", strconv.Itoa(v.GID))
		for _, text := range serviceLines(v.Flags) {
			fmt.Fprintf(out, "%16s-%s\n", "", text)
		}
	}
	if wanted('c') {
		line("gecos", v.Name)
	}
	if wanted('d') {
		text := v.Dir
		if v.Missing {
			text += " (missing)"
		}
		line("dir", text)
	}
	if wanted('q') {
		text := "unlimited"
		digits := v.Quota[:len(v.Quota)-len(strings.TrimLeft(v.Quota, "0123456789"))]
		if n, err := strconv.ParseInt(digits, 10, 64); err == nil {
			text = v.Quota + " [" + mib(n) + "]"
		}
		line("quota", text)
		line("curr quota", fmt.Sprintf("%dS,%dC", v.Bytes, v.Count))
	}
	if r.all() {
		line("Mail Store IP", hostAddress()+" (NonClustered - local)")
		line("Mail Store ID", "non-clustered domain")
		if r.server == nil {
			if r.server, err = serverLines(ctx, r.store); err != nil {
				return err
			}
		}
		for _, l := range r.server {
			line(l[0], l[1])
		}
		table := "indimail"
		if u.Inactive {
			table = "indibak"
		}
		line("Table Name", table)
	}
	if wanted('l') {
		v.printTimes(line)
	}
	if wanted('f') {
		for _, alias := range v.Aliases {
			line("Forwarding", alias)
		}
	}
	_, err = r.app.Out.Write([]byte(out.String()))
	return err
}

// serverLines tell where the directory is, without its password.
func serverLines(ctx context.Context, s *directory.Store) ([][2]string, error) {
	server, err := s.Server(ctx)
	switch {
	case err != nil:
		return nil, err
	case server.Path != "":
		return [][2]string{{"Sql Database", server.Path}}, nil
	case server.Socket != "":
		return [][2]string{{"Sql Database", server.Host}, {"Unix   Socket", server.Socket}}, nil
	case server.Cipher == "":
		return [][2]string{{"Sql Database", server.Host}, {"TCP/IP Port", server.Port}, {"Use SSL", "No"}}, nil
	}
	return [][2]string{{"Sql Database", server.Host}, {"TCP/IP Port", server.Port}, {"Use SSL", "Yes"}, {"SSL Cipher", server.Cipher}}, nil
}

// printTimes prints when the user was there, and what was done to the user.
func (v *userInfo) printTimes(line func(label, text string)) {
	relay := "NO"
	if v.RelayAllowed {
		relay = "YES"
	}
	line("Relay Allowed", relay)
	inactive := "Unknown"
	if since := v.LastLogin; since != nil {
		inactive = days(time.Since(since.At))
	} else if v.Added != nil {
		inactive = days(time.Since(v.Added.At))
	}
	line("Days inact", inactive)
	line("Added On", v.Added.or("Unknown"))
	const never = "Not yet logged in"
	line("last  auth", v.LastLogin.or(never))
	if v.LastLogin == nil {
		line("last  IMAP", never)
		line("last  POP3", never)
	} else {
		line("last  POP3", v.login("pop3").or(never))
		line("last  IMAP", v.login("imap").or(never))
	}
	line("PassChange", v.PasswordChanged.or("Not yet Changed"))
	line("Inact Date", v.Inactivated.or("Not yet Inactivated"))
	switch {
	case v.Inactivated != nil:
		line("Activ Date", v.Activated.or("Not yet Activated"))
	default:
		line("Activ Date", v.Added.or("Unknown"))
	}
	line("Delivery Time", "No Mails Delivered yet / Per Day Limit not configured")
}

// userInfo shows a user: as JSON, or as vuserinfo does but without the stored password.
func (app *App) userInfo(ctx context.Context, data string, a addr.Address, asJSON bool) error {
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		u, err := s.AnyUser(ctx, a)
		if err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
		r := &report{app: app, store: s}
		if !asJSON {
			return r.print(ctx, u)
		}
		v, err := r.describe(ctx, u)
		if err != nil {
			return err
		}
		return json.NewEncoder(app.Out).Encode(v)
	})
}

// oldUserInfo is vuserinfo: of a user, or with -D of every user of a domain.
func (app *App) oldUserInfo(ctx context.Context, data string, operands []string, options map[byte]string) error {
	domain, whole := options['D']
	delete(options, 'D')
	if whole == (len(operands) > 0) {
		return errors.New("usage: vuserinfo [-anpugcdqlf] USER@DOMAIN|-D DOMAIN")
	}
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		r := &report{app: app, store: s, options: options, secret: true}
		if whole {
			return everyUser(ctx, s, domain, func(u directory.User) error { return r.print(ctx, u) })
		}
		a, err := addr.Parse(operands[0])
		if err != nil {
			return err
		}
		u, err := s.AnyUser(ctx, a)
		if err == nil {
			return r.print(ctx, u)
		}
		if !errors.Is(err, directory.ErrNoUser) {
			return fmt.Errorf("%s: %w", a, err)
		}
		// An address that is no user may be an alias; vuserinfo shows its lines then.
		lines, aliasErr := s.AliasLines(ctx, a)
		if aliasErr != nil || len(lines) == 0 {
			return errors.Join(fmt.Errorf("%s: %w", a, err), aliasErr)
		}
		for _, line := range lines {
			fmt.Fprintf(app.Out, "%-14s: %s\n", "Forwarding", line)
		}
		return nil
	})
}

// everyUser calls use for each user of a domain, in the order of their names.
func everyUser(ctx context.Context, s *directory.Store, domain string, use func(directory.User) error) error {
	const page = 1000
	for after := ""; ; {
		users, err := s.Users(ctx, domain, after, page)
		if err != nil {
			return err
		}
		for _, u := range users {
			if err := use(u); err != nil {
				return err
			}
			after = u.Name
		}
		if len(users) < page {
			return nil
		}
	}
}

// thenInfo shows the user after one of IndiMail's programs, as the wiki has it (2549, 3059), unless a handle was run: the wiki's own
// shows the user too (2502).
func (app *App) thenInfo(ctx context.Context, data, program string, a addr.Address, err error) error {
	if err != nil {
		return err
	}
	if path, err := handleOf(data, program); path != "" || err != nil {
		return err
	}
	return app.oldUserInfo(ctx, data, []string{a.String()}, map[byte]string{})
}
