package cli

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/service"
)

// domainInfoCommand is part of `indigo domain`.
func (app *App) domainInfoCommand() *cobra.Command {
	var asJSON, all bool
	cmd := &cobra.Command{
		Use:     "info [DOMAIN]",
		Short:   "Show a domain: its directory, how many users, its other names and limits",
		Example: "  indigo domain info example.org\n  indigo domain info --all --json", Args: cobra.MaximumNArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "every domain")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if all == (len(args) > 0) {
			return errors.New("name a domain, or give --all")
		}
		return app.domainInfo(cmd.Context(), *data, args, nil, asJSON)
	}
	return cmd
}

// domainInfo shows domains as vdominfo does: those named, or all; what options name, or all without any.
func (app *App) domainInfo(ctx context.Context, data string, names []string, options map[byte]string, asJSON bool) error {
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		if len(names) == 0 {
			domains, err := s.Domains(ctx)
			if err != nil {
				return err
			}
			for _, d := range domains {
				names = append(names, d.Name)
			}
		}
		infos := []directory.DomainInfo{}
		for _, name := range names {
			info, err := s.DomainInfo(ctx, name)
			if err != nil {
				return err
			}
			infos = append(infos, info)
			if !asJSON {
				if _, err := io.WriteString(app.Out, domainText(info, strings.ToLower(name), options)); err != nil {
					return err
				}
			}
		}
		if asJSON {
			return json.NewEncoder(app.Out).Encode(infos)
		}
		return nil
	})
}

// domainText gives a domain in vdominfo's form; name is what was asked for, the domain's own or an alias.
func domainText(info directory.DomainInfo, name string, options map[byte]string) string {
	out := &strings.Builder{}
	_, all := options['a']
	all = all || len(options) == 0
	line := func(letter byte, label, text string) {
		if _, given := options[letter]; given || all {
			fmt.Fprintf(out, "%10s: %s\n", label, text)
		}
	}
	if all {
		fmt.Fprintf(out, "---- Domain %-25s -------------------------------\n", name)
	} else {
		fmt.Fprintf(out, "---- Domain %s ----------------\n", name)
	}
	if addr.FoldDomain(name) == info.Name {
		line('n', "domain", name)
	} else {
		line('n', "domain", name+" aliased to "+info.Name)
	}
	var owner unix.Stat_t
	uid, gid := "unknown", "unknown"
	if unix.Stat(info.Dir, &owner) == nil {
		uid, gid = strconv.Itoa(int(owner.Uid)), strconv.Itoa(int(owner.Gid))
	}
	line('u', "uid", uid)
	line('g', "gid", gid)
	line('d', "Domain Dir", info.Dir)
	if name != info.Name {
		return out.String()
	}
	line('b', "Base Dir", filepath.Dir(info.Dir))
	line('t', "Users", strconv.FormatInt(info.Users, 10))
	limits := "disabled"
	if info.Limited {
		limits = "enabled"
		none := directory.NoLimits()
		if words := info.Limits.Changes(none); words != "" {
			limits += " (" + words + ")"
		}
	}
	line('t', "vlimits", limits)
	if _, given := options['l']; (given || all) && len(info.AliasDomains) > 0 {
		fmt.Fprintf(out, "AliasDomains:\n%s\n", strings.Join(info.AliasDomains, "\n"))
	}
	return out.String()
}

// domainIPCommand is part of `indigo domain`; vipmap is the same.
func (app *App) domainIPCommand() *cobra.Command {
	var asJSON, remove bool
	cmd := &cobra.Command{
		Use:   "ip [ADDRESS DOMAIN]",
		Short: "Show or set which domain a login without a domain belongs to, by the address of this host",
		Long: `Show or set which domain a login without a domain belongs to, by the address of this host that the client connected to: POP3, IMAP and
SMTP complete the name with it, and with DEFAULT_DOMAIN where the address is mapped to none. It holds at once in a running instance. To
undo, the same with --remove.`,
		Example: "  indigo domain ip\n  indigo domain ip 192.0.2.17 example.org\n  indigo domain ip 192.0.2.17 example.org --remove",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 || len(args) > 2 {
				return errors.New("give an address and a domain, or neither")
			}
			return nil
		},
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&remove, "remove", false, "take the mapping away")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			if remove {
				return errors.New("--remove needs the address and the domain")
			}
			return app.showIPs(cmd.Context(), *data, "", asJSON)
		}
		return app.mapIP(cmd.Context(), *data, args[0], args[1], remove)
	}
	return cmd
}

func (app *App) showIPs(ctx context.Context, data, domain string, asJSON bool) error {
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		all, err := s.IPDomains(ctx)
		if err != nil {
			return err
		}
		shown := []directory.IPDomain{}
		for _, m := range all {
			if domain == "" || strings.EqualFold(domain, m.Domain) {
				shown = append(shown, m)
			}
		}
		if asJSON {
			return json.NewEncoder(app.Out).Encode(shown)
		}
		for _, m := range shown {
			fmt.Fprintln(app.Out, m.IP, m.Domain)
		}
		return nil
	})
}

func (app *App) mapIP(ctx context.Context, data, address, domain string, remove bool) error {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return fmt.Errorf("address: %w", err)
	}
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		if remove {
			return s.UnmapIP(ctx, ip, domain)
		}
		return s.MapIP(ctx, ip, domain)
	})
}

// dbServerCommand is part of `indigo db`.
func (app *App) dbServerCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "server", Short: "Tell what the directory's database server is: version, TLS, connections, clock", Example: "  indigo db server --json", Args: cobra.NoArgs,
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return app.withDirectory(cmd.Context(), *data, func(s *directory.Store) error {
			v, err := s.Server(cmd.Context())
			if err != nil {
				return err
			}
			return app.table(asJSON, v, 0, func(w io.Writer) {
				fmt.Fprintf(w, "engine\t%s %s\n", v.Engine, v.Version)
				for _, l := range [][2]string{{"host", v.Host}, {"port", v.Port}, {"socket", v.Socket}, {"file", v.Path}, {"database", v.Database}, {"user", v.User}, {"TLS cipher", v.Cipher}} {
					if l[1] != "" {
						fmt.Fprintf(w, "%s\t%s\n", l[0], l[1])
					}
				}
				if v.Most > 0 {
					fmt.Fprintf(w, "connections\t%d of %d\n", v.Connections, v.Most)
				}
				fmt.Fprintf(w, "time zone\t%s\nclock\t%s (%s off this host's)\n", v.TimeZone, v.Time.UTC().Format(time.RFC3339), time.Since(v.Time).Abs().Round(time.Second))
			})
		})
	}
	return cmd
}

// dbCacheCommand is part of `indigo db`.
func (app *App) dbCacheCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "cache", Short: "Tell how the running instance's cache of the directory fares", Example: "  indigo db cache\n  indigo db cache --json", Args: cobra.NoArgs,
		Long: `Tell how the running instance's cache of the directory fares, since its start. Its door "metrics" has the same as
indigo_directory_cache_total and more, for Prometheus.`,
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v, err := service.NewControl(*data).DirectoryCache(cmd.Context())
		if err != nil {
			return err
		}
		return app.table(asJSON, v, 0, func(w io.Writer) {
			share := 0.0
			if all := v.Hits + v.Misses; all > 0 {
				share = 100 * float64(v.Hits) / float64(all)
			}
			fmt.Fprintf(w, "hits\t%d\t%.1f %%\n", v.Hits, share)
			fmt.Fprintf(w, "negative hits\t%d\tof these: what is not there\n", v.Negative)
			fmt.Fprintf(w, "misses\t%d\tasked the database\n", v.Misses)
			fmt.Fprintf(w, "clearings\t%d\tall forgotten, after a change\n", v.Clearings)
			fmt.Fprintf(w, "entries\t%d\t%d users, %d domains, %d limits, %d that are not there\n", v.Users+v.Domains+v.Limits+v.Missing, v.Users, v.Domains, v.Limits, v.Missing)
			state := "fresh"
			if v.Listening {
				state = "fresh, told of changes"
			}
			if v.Stale {
				state = "stale: the database does not answer; what is cached goes on"
			}
			fmt.Fprintf(w, "state\t%s\tthe database answered %s ago, %d checks failed\n", state, v.Age.Round(time.Millisecond), v.Failures)
		})
	}
	return cmd
}

// real gives an address with the domain that its own stands for.
func realAddress(ctx context.Context, s *directory.Store, a addr.Address) (addr.Address, error) {
	domain, err := s.RealDomain(ctx, a.Domain)
	if err != nil {
		return a, fmt.Errorf("%s: %w", a, err)
	}
	a.Domain = domain
	return a, nil
}

// inquery answers what IndiMail's inlookup is asked for (inquerytest(8)): 1 user's state, 2 relaying, 3 the row, 4 the host, 5 aliases, 6
// limits, 7 the real domain.
func (app *App) inquery(ctx context.Context, data, number, email, ip string) error {
	given, err := addr.Parse(email)
	if err != nil {
		return err
	}
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		a, err := realAddress(ctx, s, given)
		if err != nil {
			return err
		}
		switch number {
		case "1":
			state, err := userState(ctx, s, a)
			if err == nil {
				fmt.Fprintf(app.Out, "%s %s\n", email, state)
			}
			return err
		case "2":
			if ip == "" {
				return errors.New("query 2 needs the client's address: inquerytest -q 2 USER@DOMAIN ADDRESS")
			}
			allowed, err := s.RelayAllowed(ctx, a, ip, time.Now().Add(-relayTime))
			if err != nil {
				return err
			}
			word := "not authenticated"
			if allowed {
				word = "authenticated"
			}
			fmt.Fprintf(app.Out, "%s is %s on %s\n", email, word, ip)
		case "3":
			u, err := s.User(ctx, a)
			if err != nil {
				return fmt.Errorf("%s: %w", email, err)
			}
			for _, l := range [][2]string{
				{"pw_name", u.Name}, {"pw_passwd", u.Password}, {"pw_uid", strconv.Itoa(u.UID)}, {"pw_gid", strconv.Itoa(u.GID)}, {"pw_gecos", u.Gecos}, {"pw_dir", u.Dir},
				{"pw_shell", u.Quota}, {"Table", "indimail"},
			} {
				fmt.Fprintf(app.Out, "%-9s: %s\n", l[0], l[1])
			}
		case "4":
			if _, err := s.User(ctx, a); err != nil {
				return fmt.Errorf("%s: %w", email, err)
			}
			fmt.Fprintf(app.Out, "%s: SMTPROUTE is %s:%s:25\n", email, a.Domain, hostAddress())
		case "5":
			lines, err := s.AliasLines(ctx, a)
			if err != nil {
				return err
			}
			if len(lines) == 0 {
				fmt.Fprintf(app.Out, "%s: No aliases\n", email)
				return nil
			}
			fmt.Fprintf(app.Out, "Alias List for %s\n%s\n", email, strings.Join(lines, "\n"))
		case "6":
			l, err := s.Limits(ctx, a.Domain)
			if err == nil {
				printLimits(app.Out, l)
			}
			return err
		case "7":
			fmt.Fprintf(app.Out, "%s: Real Domain is %s\n", email, a.Domain)
		default:
			return fmt.Errorf("no query %q: 1 user's state, 2 relaying, 3 password, 4 host, 5 aliases, 6 limits of the domain, 7 real domain", number)
		}
		return nil
	})
}

// userState tells what becomes of mail for an address, in inquerytest's words.
func userState(ctx context.Context, s *directory.Store, a addr.Address) (string, error) {
	u, err := s.User(ctx, a)
	if errors.Is(err, directory.ErrInactive) {
		return "is Inactive on this domain (#5.2.1)", nil
	}
	if errors.Is(err, directory.ErrNoUser) {
		lines, err := s.AliasLines(ctx, a)
		if err == nil && len(lines) > 0 {
			return "is an alias", nil
		}
		return "is Absent on this domain (#5.1.1)", err
	}
	if err != nil {
		return "", err
	}
	if directory.Flags(u.GID)&directory.BounceMail != 0 {
		return "is Inactive on this domain (#5.2.1)", nil
	}
	used, count, err := maildir.Usage(filepath.Join(u.Dir, "Maildir"))
	if err != nil {
		return "", err
	}
	quota, err := maildir.ParseQuota(u.Quota)
	if err != nil {
		return "", err
	}
	if !quota.Fits(maildir.Use{Bytes: used, Messages: count}) {
		return "is Overquota on this domain (#5.2.2)", nil
	}
	return "has all services enabled", nil
}

// prompts gives a function that asks for passwords: on a terminal without showing them, else each is a line of standard input.
func (app *App) prompts() func(prompt string) (string, error) {
	in := bufio.NewReader(io.LimitReader(app.In, 1<<16))
	return func(prompt string) (string, error) {
		if f, ok := app.In.(*os.File); ok {
			if state, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
				quiet := *state
				quiet.Lflag &^= unix.ECHO
				if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, &quiet); err != nil {
					return "", err
				}
				fmt.Fprint(app.Err, prompt)
				defer func() {
					unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, state)
					fmt.Fprintln(app.Err)
				}()
			}
		}
		line, err := in.ReadString('\n')
		if err != nil && err != io.EOF {
			return "", err
		}
		if line = strings.TrimRight(line, "\r\n"); line == "" {
			return "", errors.New("no password was given")
		}
		return line, nil
	}
}

// testLogin tells whether a user's password is right and what the login would be allowed, as the doors judge it.
func (app *App) testLogin(ctx context.Context, data, name, kind string, password func() (string, error)) error {
	services := map[string]string{"imap": "imapd.143", "pop3": "pop3d.110", "smtp": "smtpd.587"}
	door, known := services[cmp.Or(kind, "imap")]
	if !known {
		return fmt.Errorf("no service %q: there are imap, pop3 and smtp", kind)
	}
	a, err := addr.Parse(name)
	if err != nil {
		return err
	}
	s, verifier, err := service.OpenVerifier(ctx, data, app.who(), true)
	if err != nil {
		return err
	}
	defer s.Close()
	u, err := s.AnyUser(ctx, a)
	if err != nil {
		return fmt.Errorf("%s: %w", a, err)
	}
	fmt.Fprintf(app.Out, "user      : %s\nform      : %s\nhome      : %s\nflags     : %s\n", u.Address(), cmp.Or(formNames(u.Password, u.Scram), "none: nobody can log in"), u.Dir,
		cmp.Or(strings.Join(directory.Flags(u.GID).Names(), " "), "none"))
	for _, one := range []struct {
		name string
		flag directory.Flags
	}{{"pop3", directory.NoPOP}, {"imap", directory.NoIMAP}, {"smtp", directory.NoSMTP}} {
		why, err := s.Denied(ctx, u, one.flag)
		if err != nil {
			return err
		}
		fmt.Fprintf(app.Out, "%-10s: %s\n", one.name, cmp.Or(why, "allowed"))
	}
	text, err := password()
	if err != nil {
		return err
	}
	if _, err := verifier.Verify(ctx, auth.Attempt{User: u.Address().String(), Password: text, Service: door, Mechanism: "PLAIN"}); err != nil {
		return fmt.Errorf("authentication failed: %w", err)
	}
	fmt.Fprintln(app.Out, "Authentication succeeded.")
	return nil
}

// serverInfo is vserverinfo: the server, host, user, port and database of an address's or a domain's directory.
func (app *App) serverInfo(ctx context.Context, data, of string, options map[byte]string) error {
	_, domain, found := strings.Cut(of, "@")
	if !found {
		domain = of
	}
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		if _, err := s.RealDomain(ctx, domain); err != nil {
			return fmt.Errorf("%s: %w", domain, err)
		}
		v, err := s.Server(ctx)
		if err != nil {
			return err
		}
		_, all := options['a']
		all = all || len(options) == 0
		for _, l := range []struct {
			letter      byte
			label, text string
		}{{'s', "server", cmp.Or(v.Host, v.Engine)}, {'m', "mdahost", hostAddress()}, {'u', "user", v.User}, {'P', "port", cmp.Or(v.Port, v.Socket)}, {'d', "database", cmp.Or(v.Database, v.Path)}} {
			if _, given := options[l.letter]; given || all {
				fmt.Fprintf(app.Out, "%-8s: %s\n", l.label, l.text)
			}
		}
		return nil
	})
}

// lookupPrograms are IndiMail's names for the same, and what it has only as programs.
func (app *App) lookupPrograms() map[string]func([]string) int {
	return app.faces(map[string]oldProgram{
		"vdominfo": {"[-anugdbtl] [DOMAIN]", 0, 1, "anugdbtlv", func(ctx context.Context, data string, operands []string, options map[byte]string) error {
			delete(options, 'v')
			return app.domainInfo(ctx, data, operands, options, false)
		}},
		"vserverinfo": {"[-asmuPd] USER@DOMAIN|DOMAIN, or -D DOMAIN -M HOST|-S SERVER", 0, 1, "asmuPdvD:M:S:", func(ctx context.Context, data string, operands []string, options map[byte]string) error {
			delete(options, 'v')
			if options['D'] != "" && (options['M'] != "" || options['S'] != "") && len(operands) == 0 {
				return app.clusterInfo(ctx, data, options)
			}
			if options['D'] != "" || options['M'] != "" || options['S'] != "" || len(operands) == 0 {
				return errors.New("usage: vserverinfo [-asmuPd] USER@DOMAIN|DOMAIN, or -D DOMAIN -M HOST|-S SERVER for the rows of IndiMail's table dbinfo")
			}
			return app.serverInfo(ctx, data, operands[0], options)
		}},
		"printdir": {"DOMAIN", 1, 1, "", func(ctx context.Context, data string, operands []string, _ map[byte]string) error {
			return app.withDirectory(ctx, data, func(s *directory.Store) error {
				counts, err := s.HomeCounts(ctx, operands[0])
				for _, c := range counts {
					fmt.Fprintf(app.Out, "Dir Control     = %s\ncur users       = %d\ndir prefix      = %s\n\n", strings.ToLower(operands[0]), c.Users, c.Dir)
				}
				return err
			})
		}},
		"vipmap": {"-i|-u|-d ADDRESS DOMAIN, or [-s|-p] [DOMAIN]", 0, 1, "vspi:d:u:", func(ctx context.Context, data string, operands []string, options map[byte]string) error {
			domain := strings.Join(operands, "")
			for _, letter := range []byte("iud") {
				address, given := options[letter]
				switch {
				case given && domain == "":
					return errors.New("usage: vipmap -i|-u|-d ADDRESS DOMAIN")
				case given:
					return app.mapIP(ctx, data, address, domain, letter == 'd')
				}
			}
			return app.showIPs(ctx, data, domain, false)
		}},
		"inquerytest": {"[-v] -q 1..7 [-i ADDRESS] USER@DOMAIN [ADDRESS]", 1, 2, "vq:i:", func(ctx context.Context, data string, operands []string, options map[byte]string) error {
			ip := options['i']
			if ip != "" {
				// IndiMail's -i names a FIFO; there is none here.
				if _, err := netip.ParseAddr(ip); err != nil {
					return fmt.Errorf("-i %s: there is no FIFO to name: the directory is asked itself; -i takes \"\" or the client's address", ip)
				}
			}
			if len(operands) > 1 {
				ip = operands[1]
			}
			return app.inquery(ctx, data, options['q'], operands[0], ip)
		}},
		"authtest": {"[-s imap|pop3|smtp] [-m authindi] USER@DOMAIN [PASSWORD|-]", 1, 2, "s:m:", func(ctx context.Context, data string, operands []string, options map[byte]string) error {
			if module, given := options['m']; given && module != "authindi" {
				return fmt.Errorf("-m %s: the directory, authindi, is asked and nothing else; `indigo auth test` logs in by all that IMAPMODULES names", module)
			}
			return app.testLogin(ctx, data, operands[0], options['s'], func() (string, error) {
				if len(operands) > 1 && operands[1] != "-" {
					return operands[1], nil
				}
				return app.prompts()("Password: ")
			})
		}},
	})
}
