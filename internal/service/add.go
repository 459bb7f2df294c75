package service

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/indigomail/indigo/internal/settings"
)

// Add makes the directory of a service with variables of its own, NAME=value each; with down it does not start. All is
// checked before anything is made. It refuses a service that is there.
func Add(data, name string, variables []string, down bool) (err error) {
	if !Exists(data) {
		return fmt.Errorf("%s is not an Indigo data directory: make one with `indigo up --data %s`", data, data)
	}
	if !settings.ValidService(name) {
		return fmt.Errorf("%q is no name of a service: KIND.PORT or KIND.NAME", name)
	}
	kind, _, ok := strings.Cut(name, ".")
	if !ok || !slices.Contains(Kinds(), kind) {
		return fmt.Errorf("%q is no name of a service: KIND.PORT or KIND.NAME, where KIND is one of %s", name, strings.Join(Kinds(), ", "))
	}
	dir := settings.ServiceDirectory(data, name)
	if _, err := os.Stat(dir); err == nil {
		return fmt.Errorf("service %s is there already, in %s: change it by `indigo settings set NAME VALUE --service %s`", name, dir, name)
	}
	if err := os.MkdirAll(filepath.Join(dir, "variables"), 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	for _, one := range variables {
		variable, value, ok := strings.Cut(one, "=")
		if !ok {
			return fmt.Errorf("%q is not of the form NAME=value", one)
		}
		if err := settings.Set(data, variable, name, value); err != nil {
			return err
		}
	}
	if down {
		if err := os.WriteFile(filepath.Join(dir, "down"), nil, 0o600); err != nil {
			return err
		}
	}
	// The new service may collide with another, or have no port.
	found := Check(data)
	for _, p := range slices.Concat(found.Refused, found.Wrong) {
		if strings.Contains(p.String(), name) {
			return errors.New(p.String())
		}
	}
	return nil
}

// Remove removes a service's directory. One that Indigo has without a directory cannot be removed, only kept down.
func Remove(data, name string) error {
	if !settings.ValidService(name) {
		return fmt.Errorf("%q is no name of a service", name)
	}
	if slices.Contains(defaultServices(), name) {
		return fmt.Errorf("service %s is one of Indigo's own: a file services/%s/down keeps it from starting, `indigo settings unset NAME --service %s` takes a setting back", name, name, name)
	}
	dir := settings.ServiceDirectory(data, name)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no service %s", name)
	}
	// The variables may name control files of the service's own, which Unset removes with them.
	for _, s := range settings.All() {
		kind := kindOf(name)
		if slices.Contains(s.Services, "all") || slices.Contains(s.Services, kind) {
			if err := settings.Unset(data, s.Name, name); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(dir)
}

// svctoolVariables maps options of IndiMail's svctool to settings.
func svctoolVariables() map[string]string {
	return map[string]string{
		"maxdaemons": "MAXDAEMONS", "maxperip": "MAXPERIP", "localip": "LISTEN", "qcount": "QUEUE_COUNT", "qstart": "QUEUE_START",
		"qmailqueue": "QMAILQUEUE", "min-free": "MIN_FREE", "greetdelay": "GREETDELAY", "databytes": "DATABYTES", "authmodules": "AUTHMODULES",
	}
}

// FromSvctool gives the commands that do what a command line of IndiMail's svctool does, and a comment for each option that
// needs nothing here or has nothing here. order has the options in their order, values what they are set to.
func FromSvctool(order []string, values map[string][]string) (lines []string) {
	get := func(name string) string {
		if v := values[name]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	has := func(name string) bool { _, ok := values[name]; return ok }
	note := func(format string, a ...any) { lines = append(lines, "# "+fmt.Sprintf(format, a...)) }
	kinds := map[string]string{"smtp": "smtpd", "pop3": "pop3d", "imap": "imapd", "qmtp": "qmtpd", "qmqp": "qmqpd", "mysql": "", "greylist": "", "mrtg": "", "slowq": "", "udplogger": "udplogger"}
	used := map[string]bool{"servicedir": true, "qbase": true, "cntrldir": true}
	done := false
	for option, kind := range kinds {
		if !has(option) {
			continue
		}
		done, used[option] = true, true
		switch option {
		case "slowq":
			note("the queue slowq is always there; its rates are set by `indigo queue rate set`")
			lines = append(lines, "indigo service list")
		case "mysql":
			note("Indigo runs no database server: its directory is SQLite in the data directory; a MariaDB or PostgreSQL runs as a service of the host")
		case "greylist":
			note("greylisting is not built yet; GREYIP and greylist.white are listed by `indigo settings list`")
		case "mrtg":
			note("numbers come from /metrics, which Prometheus and its kind read")
			lines = append(lines, "indigo service add metrics.9126")
		case "qmtp", "qmqp":
			note("the kind %s is not built yet", kind)
		default:
			name := kind + "." + get(option)
			var assigns []string
			for _, o := range order {
				if v := svctoolVariables()[o]; v != "" && get(o) != "" && !used[o] {
					used[o] = true
					value := get(o)
					if o == "localip" && value == "0" {
						value = "0.0.0.0"
					}
					if strings.HasPrefix(v, "QUEUE_") || v == "MIN_FREE" {
						note("for all queues together: indigo settings set %s %s", v, value)
						continue
					}
					assigns = append(assigns, v+"="+value)
				}
			}
			verb := "indigo service add " + name
			if slices.Contains(defaultServices(), name) {
				note("%s is there already", name)
				for _, a := range assigns {
					variable, value, _ := strings.Cut(a, "=")
					lines = append(lines, fmt.Sprintf("indigo settings set %s %s --service %s", variable, value, name))
				}
				break
			}
			lines = append(lines, strings.Join(append([]string{verb}, assigns...), " "))
		}
	}
	if config := get("config"); config != "" && !done {
		used["config"], done = true, true
		switch {
		case config == "cert":
			note("the first `indigo up` makes a certificate; put another into certs/servercert.pem and `indigo reload`")
		case strings.HasPrefix(config, "mysql"), strings.HasPrefix(config, "ssl_rsa"):
			note("the database server is set up by its own means")
		case config == "qmail":
			lines = append(lines, "indigo up --domain DOMAIN")
		default:
			note("--config=%s: nothing to do", config)
		}
	}
	if has("fixsharedlibs") {
		used["fixsharedlibs"], done = true, true
		note("nothing to do: Indigo is one static program")
	}
	if has("backup") {
		used["backup"], done = true, true
		lines = append(lines, "indigo queue export --help", "tar -C DATA -cf BACKUP.tar control services certs tcp domains indimail.db authkey", "cp -p DATA/password.keys ELSEWHERE   # if it is there; apart from BACKUP.tar, which it decrypts")
	}
	var rest []string
	for _, o := range order {
		if !used[o] && !slices.Contains(rest, "--"+o) {
			rest = append(rest, "--"+o)
		}
	}
	if !done {
		note("no equivalent is known; see docs/services.md")
	}
	if len(rest) > 0 {
		sort.Strings(rest)
		note("needs nothing here: %s", strings.Join(rest, " "))
	}
	return lines
}
