package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/authd"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/inject"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/tlsx"
)

// Findings are what Check found.
type Findings struct {
	// Refused are settings with which nothing starts, and no reload is done.
	Refused settings.Problems
	// Down is what keeps anything from starting now, while an instance that runs goes on, and can be reloaded.
	Down settings.Problems
	// Wrong is what does not work, while the rest may.
	Wrong settings.Problems
	// Warnings are about what will not work as its author may think, and does no harm.
	Warnings settings.Problems
}

// Check reads all that a start or a reload reads. Nothing is changed and no port is opened.
func Check(data string) (f Findings) {
	if !Exists(data) {
		text := "is not there: make a data directory with `indigo up --data " + data + "`, or write the host's name into it"
		if _, err := os.Stat(filepath.Join(data, "control", "me")); errors.Is(err, fs.ErrPermission) {
			text = "may not be read by this user"
		}
		return Findings{Refused: settings.Problems{{File: "control/me", Line: 1, Text: text}}}
	}
	snapshot, refused := settings.Inspect(data)
	faults, more := checkServices(data, snapshot)
	warnings := append(slices.Clone(snapshot.Warnings), more...)
	ctx, cancel := context.WithTimeout(context.Background(), checkTime)
	defer cancel()
	var store *directory.Store
	open := sync.OnceValue(func() error {
		config, err := DirectoryConfig(data)
		if err == nil {
			err = directory.Ready(ctx, config)
		}
		if err == nil {
			store, err = openGuarded(ctx, data, config)
		}
		return err
	})
	faults = append(faults, checkKeys(data, snapshot, func() (bool, error) {
		if err := open(); err != nil {
			return false, err
		}
		return store.Sealed(ctx)
	})...)
	warnings = append(warnings, checkAnonymous(snapshot, func(user string, flag directory.Flags) (string, error) {
		if err := open(); err != nil {
			return "", err
		}
		return notAnonymous(ctx, store, user, flag)
	})...)
	if store != nil {
		store.Close()
	}
	warnings = append(warnings, checkRoom(data, snapshot)...)
	return Findings{refused, checkDirectory(ctx, data, snapshot), faults, warnings}
}

// checkDirectory tells of a directory that cannot be opened: nothing starts while it cannot.
func checkDirectory(ctx context.Context, data string, snapshot *settings.Snapshot) settings.Problems {
	all := snapshot.View("all")
	source, name := settings.Source{File: databaseName}, "the directory"
	for _, s := range []*settings.Setting{settings.HostMySQL.Setting, settings.DirectoryDSN.Setting} {
		if from := all.Source(s); from.File != "" && from.Value != "" {
			source, name = from, s.Name
		}
	}
	config, err := DirectoryConfig(data)
	if err == nil {
		err = directory.Openable(ctx, config)
	}
	if err == nil {
		return nil
	}
	// Some name the setting's place themselves.
	text := strings.TrimPrefix(err.Error(), fmt.Sprintf("%s: ", source))
	return settings.Problems{{File: source.File, Line: source.Line, Text: name + ": " + text}}
}

// checkRoom tells of queues whose disk has less than MIN_FREE left.
func checkRoom(data string, snapshot *settings.Snapshot) (warnings settings.Problems) {
	entries, err := os.ReadDir(filepath.Join(data, "queue"))
	if err != nil {
		return nil // the first start makes it
	}
	for _, e := range entries {
		path := filepath.Join(data, "queue", e.Name())
		if _, err := os.Stat(filepath.Join(path, "log")); err != nil {
			continue
		}
		var disk unix.Statfs_t
		least := int64(settings.MinFree.Get(snapshot.View("queue." + e.Name())))
		if unix.Statfs(path, &disk) != nil {
			continue
		}
		if free := int64(disk.Bavail) * disk.Bsize; free < least {
			warnings = append(warnings, settings.Problem{File: filepath.Join("queue", e.Name()), Text: fmt.Sprintf(
				"its disk has %d bytes free, less than %s, which is %d: mail for this queue is put off with 452", free, settings.MinFree.Name, least)})
		}
	}
	return warnings
}

// checkKeys tells of a file of keys that is gone, although passwords are encrypted with them, which sealed tells. A directory that cannot be asked has
// worse to tell.
func checkKeys(data string, snapshot *settings.Snapshot, sealed func() (bool, error)) (wrong settings.Problems) {
	keys := PasswordKeys(data, snapshot.View("all"))
	// What is wrong with a file that is there, checkServices tells.
	if ids, err := keys.IDs(); err != nil || len(ids) > 0 {
		return nil
	}
	if there, err := sealed(); err != nil || !there {
		return nil
	}
	return settings.Problems{{File: relativeTo(data, keys.File()), Line: 1, Text: settings.PasswordKeys.Name + ": there is no such file, and the directory has passwords that are encrypted with its keys: " +
		"put it back from its copy; an Indigo that runs goes on with what it has read, until it is started again, and log-ins that need those passwords fail then"}}
}

// checkTime bounds the questions that a check asks the directory.
const checkTime = 10 * time.Second

// checkAnonymous tells where AUTH_ANONYMOUS offers what lets nobody in; why gives the reason for a user and the flag that keeps users from a service.
func checkAnonymous(snapshot *settings.Snapshot, why func(user string, flag directory.Flags) (string, error)) (warnings settings.Problems) {
	flags := map[string]directory.Flags{"imapd": directory.NoIMAP, "pop3d": directory.NoPOP}
	for _, name := range instances(snapshot) {
		v := snapshot.View(name)
		user, flag := settings.AuthAnonymous.Get(v), flags[kindOf(name)]
		if user == "" || flag == 0 {
			continue
		}
		text, err := why(user, flag)
		if err != nil {
			text = fmt.Sprintf("whether there is %s cannot be told now: %v", user, err)
		}
		if text != "" {
			source := v.Source(settings.AuthAnonymous.Setting)
			warnings = appendOnce(warnings, settings.Problem{File: source.File, Line: source.Line, Text: settings.AuthAnonymous.Name + ": " + text})
		}
	}
	return warnings
}

// notAnonymous tells why nobody is let in as a user, "" when anybody is; flag is the one that keeps users from the service.
func notAnonymous(ctx context.Context, store *directory.Store, user string, flag directory.Flags) (string, error) {
	a, err := addr.Parse(user)
	if err != nil {
		return err.Error(), nil
	}
	const gets = ": ANONYMOUS is offered, and nobody gets in by it"
	u, err := store.User(ctx, a)
	if errors.Is(err, directory.ErrInactive) {
		// A login makes him active.
		u, err = store.InactiveUser(ctx, a)
	}
	switch {
	case errors.Is(err, directory.ErrNoUser), errors.Is(err, directory.ErrNoDomain):
		return fmt.Sprintf("there is no user %s (`indigo user add`)", user) + gets, nil
	case err != nil:
		return "", err
	}
	if _, err := auth.ParseStored(u.Password, u.Scram); errors.Is(err, auth.ErrNoPassword) {
		return fmt.Sprintf("%s is locked, or has no password", user) + gets, nil
	}
	why, err := store.Denied(ctx, u, flag)
	if why != "" {
		why = fmt.Sprintf("%s: %s", user, why) + gets
	}
	return why, err
}

// checkServices looks at what the settings say of services, certificates and programs.
func checkServices(data string, snapshot *settings.Snapshot) (wrong, warnings settings.Problems) {
	place := func(source settings.Source, s *settings.Setting, format string, a ...any) settings.Problem {
		file := source.File
		if file == "" {
			file = "control/" + s.File
		}
		return settings.Problem{File: file, Line: source.Line, Text: s.Name + ": " + fmt.Sprintf(format, a...)}
	}
	at := func(v *settings.View, s *settings.Setting, format string, a ...any) settings.Problem {
		return place(v.Source(s), s, format, a...)
	}
	all := snapshot.View("all")
	if options, fault := redisOptions(data, snapshot); fault != nil {
		wrong = append(wrong, *fault)
	} else if options.Network == "tcp" && options.Password != "" && !options.TLS && !loopback(options.Address) {
		warnings = append(warnings, at(all, settings.RedisURL.Setting, "the password and all that is shared go over the network in clear: write rediss://"))
	}
	store, err := tlsx.NewStore(certificatePath(data, all))
	if err != nil {
		wrong = append(wrong, at(all, settings.TLSCert.Setting, "%v", err))
	}
	for _, ended := range store.Expired(time.Now()) {
		warnings = append(warnings, at(all, settings.TLSCert.Setting, "%s", ended))
	}
	for _, name := range snapshot.Services() {
		kind := kindOf(name)
		known := append(internalServices(), Kinds()...)
		if !slices.Contains(known, kind) {
			directory, _ := snapshot.Directory(name)
			warnings = append(warnings, settings.Problem{File: "services/" + directory, Line: 1, Text: fmt.Sprintf("no such kind of service yet; there are %s", strings.Join(known, ", "))})
		}
	}
	ports := map[int]string{}
	for _, name := range instances(snapshot) {
		v := snapshot.View(name)
		spec, err := newDoorSpec(name, v)
		if err != nil {
			directory, _ := snapshot.Directory(name)
			wrong = append(wrong, settings.Problem{File: "services/" + directory, Line: 1, Text: err.Error()})
			continue
		}
		down := filepath.Join(settings.ServiceDirectory(data, name), "down")
		if _, err := os.Stat(down); err == nil {
			continue
		}
		if other, taken := ports[spec.port]; taken && spec.port != 0 && spec.kind != "udplogger" {
			wrong = append(wrong, at(v, settings.Port.Setting, "service %s has port %d already", other, spec.port))
		}
		ports[spec.port] = name
		store := store
		if path := certificatePath(data, v); path != certificatePath(data, all) {
			if store, err = tlsx.NewStore(path); err != nil {
				wrong = append(wrong, at(v, settings.CertDir.Setting, "%v", err))
			}
			for _, ended := range store.Expired(time.Now()) {
				if p := at(v, settings.CertDir.Setting, "%s", ended); !slices.Contains(warnings, p) {
					warnings = append(warnings, p)
				}
			}
		}
		if err := store.Try(tlsOptions(data, v)); err != nil {
			setting, file := settings.ClientCA.Setting, "clientca.pem"
			if errors.Is(err, tlsx.ErrRevocations) {
				setting, file = settings.ClientCRL.Setting, "clientcrl.pem"
			}
			p := at(v, setting, "%v", err)
			if !v.IsSet(setting) {
				p.File, p.Line = relativeTo(data, filepath.Join(certificateDirectory(data, v), file)), 1
			}
			if !slices.Contains(wrong, p) {
				wrong = append(wrong, p)
			}
		}
	}
	if _, err := PasswordKeys(data, all).IDs(); err != nil {
		warnings = append(warnings, at(all, settings.PasswordKeys.Setting, "%v", err))
	}
	wrong = append(wrong, checkDeliveryTLS(data, snapshot.View("queue"), place)...)
	warnings = append(warnings, idleHosts(data, certificateDirectory(data, snapshot.View("queue")))...)
	credentials, doubts := settings.RemoteAuth.Get(snapshot.View("queue")).Check()
	wrong, warnings = append(wrong, credentials...), append(warnings, doubts...)
	if _, unmapped := tlsx.ParseSuites(settings.TLSCipherList.Get(all)); len(unmapped) > 0 {
		warnings = append(warnings, at(all, settings.TLSCipherList.Setting, "Go's TLS has nothing for %s: passed over", strings.Join(unmapped, ", ")))
	}
	if settings.TLSCipherSuite.Get(all) != "" {
		warnings = append(warnings, at(all, settings.TLSCipherSuite.Setting, "Go does not let the suites of TLS 1.3 be chosen: it uses AES-128-GCM, AES-256-GCM and ChaCha20-Poly1305"))
	}
	if account := settings.RunAs.Get(all); account != "" {
		if _, err := FindAccount(account); err != nil {
			wrong = append(wrong, at(all, settings.RunAs.Setting, "%v", err))
		}
	}
	chains(snapshot, func(v *settings.View, words []string, setting *settings.Setting) {
		for _, word := range words {
			switch {
			case isDirectory(word):
			case isSystem(word) && settings.RunAs.Get(all) == "":
				warnings = appendOnce(warnings, at(v, setting, "%s: RUNAS is not set: only an instance that runs as root itself knows the host's users", word))
			case isSystem(word):
			case isPAM(word):
				p, err := newPAM(all)
				if err == nil {
					err = p.Installed()
				}
				if err != nil {
					wrong = appendOnce(wrong, at(v, setting, "%s: %v", word, err))
				} else if _, err := os.Stat(filepath.Join("/etc/pam.d", p.Service)); err != nil {
					warnings = appendOnce(warnings, at(all, settings.PAMService.Setting, "there is no /etc/pam.d/%s: PAM takes other, which mostly lets nobody in", p.Service))
				}
			case later(word):
				warnings = appendOnce(warnings, at(v, setting, "%s: there is neither such a program nor Indigo's indigo-pam: it is passed over", word))
			case isLDAP(word):
				source, err := LDAPSource(v)
				if err == nil {
					err = source.Check()
				}
				if err != nil {
					wrong = appendOnce(wrong, at(v, setting, "%s: %v", word, err))
				} else if !source.Encrypted() {
					warnings = appendOnce(warnings, at(v, settings.LDAPURL.Setting, "passwords are sent in clear: set LDAP_STARTTLS, or write ldaps:// or ldapi://"))
				}
			case isDovecot(word):
				path := dovecotSocket(word)
				if !filepath.IsAbs(path) {
					wrong = appendOnce(wrong, at(v, setting, "%s: the path of Dovecot's socket must begin with /", word))
				} else if info, err := os.Stat(path); err != nil || info.Mode().Type() != fs.ModeSocket {
					warnings = appendOnce(warnings, at(v, setting, "%s: there is no socket now, or this user may not see it: until Dovecot makes it, logins get a temporary error", word))
				}
			default:
				if err := programThere(word); err != nil {
					wrong = appendOnce(wrong, at(v, setting, "%v", err))
				}
			}
		}
	})
	others := snapshot.View(authd.Service)
	if _, _, err := socketOwner(others); err != nil {
		wrong = append(wrong, at(others, settings.DovecotSocketOwner.Setting, "%v", err))
	}
	for _, s := range authSockets(data, others) {
		if info, err := os.Stat(filepath.Dir(s.path)); err != nil || !info.IsDir() {
			wrong = append(wrong, at(others, s.setting, "there is no directory %s", filepath.Dir(s.path)))
		}
	}
	for _, name := range append(instances(snapshot), "queue", "inject") {
		v := snapshot.View(name)
		checkTokens(data, v, kindOf(name), func(where settings.Source, s *settings.Setting, err error) {
			if p := place(where, s, "%v", err); !slices.Contains(wrong, p) {
				wrong = append(wrong, p)
			}
		})
		if kindOf(name) == "smtpd" {
			for _, p := range idleClients(data, settings.TLSClients.Get(v)) {
				warnings = appendOnce(warnings, p)
			}
		}
		idleTokens(v, kindOf(name), func(where settings.Source, s *settings.Setting, format string, a ...any) {
			warnings = appendOnce(warnings, place(where, s, format, a...))
		})
		for _, program := range []settings.Key[string]{settings.QMailQueue, settings.BounceQueue, settings.BounceProcessor, settings.OnSuccessRemote, settings.OnFailureRemote} {
			words := strings.Fields(program.Get(v))
			if inject.NotYet(program.Get(v)) {
				if p := at(v, program.Setting, "%s does nothing yet: mail is queued as it is", words[0]); !slices.Contains(warnings, p) {
					warnings = append(warnings, p)
				}
			}
			if len(words) == 0 || !strings.HasPrefix(words[0], "/") || strings.HasPrefix(filepath.Base(words[0]), "qmail-") {
				continue
			}
			if info, err := os.Stat(words[0]); err != nil || info.Mode()&0o111 == 0 {
				p := at(v, program.Setting, "there is no program %s", words[0])
				if !slices.Contains(wrong, p) {
					wrong = append(wrong, p)
				}
			}
		}
	}
	return wrong, warnings
}

// checkDeliveryTLS reads what deliveries go by, also by a rule, a route or an entry of remote_auth: authorities, the certificate that they show, and
// qmail's files (wiki 2100, 2101).
func checkDeliveryTLS(data string, v *settings.View, place func(settings.Source, *settings.Setting, string, ...any) settings.Problem) (wrong settings.Problems) {
	absolute := func(file string) string {
		if filepath.IsAbs(file) {
			return file
		}
		return filepath.Join(data, file)
	}
	for _, named := range []struct {
		setting *settings.Setting
		read    func(file string) error
	}{
		{settings.RemoteTLSCA.Setting, func(file string) error { _, err := tlsx.ReadRoots(file); return err }},
		{settings.ClientCert.Setting, func(file string) error { _, err := tlsx.ReadPair(file); return err }},
	} {
		v.Places(named.setting, func(where settings.Source) {
			if err := named.read(absolute(where.Value)); err != nil {
				wrong = appendOnce(wrong, place(where, named.setting, "%v", err))
			}
		})
	}
	dir := certificateDirectory(data, v)
	there := func(file string, err error) {
		if err != nil {
			wrong = append(wrong, settings.Problem{File: relativeTo(data, file), Line: 1, Text: err.Error() + ": mail waits until that is put right"})
		}
	}
	if file := filepath.Join(dir, "clientcert.pem"); settings.ClientCert.Get(v) == "" && exists(file) {
		_, err := tlsx.ReadPair(file)
		there(file, err)
	}
	hosts, _ := filepath.Glob(filepath.Join(dir, "tlshosts", "*.pem")) // the pattern is a good one
	for _, file := range hosts {
		_, err := tlsx.ReadRoots(file)
		there(file, err)
	}
	return wrong
}

// idleHosts tells which files in tlshosts and notlshosts nothing looks for: who made one believes that it protects him.
func idleHosts(data, certificates string) (warnings settings.Problems) {
	for _, dir := range []struct{ name, suffix, form string }{{"tlshosts", ".pem", "HOST.pem in small letters, and exhaustivelist"}, {"notlshosts", "", "HOST in small letters"}} {
		files, err := os.ReadDir(filepath.Join(certificates, dir.name))
		if err != nil {
			continue // there is none
		}
		for _, f := range files {
			host, fits := strings.CutSuffix(f.Name(), dir.suffix)
			if fits && host != "" && host[0] != '.' && host == addr.FoldDomain(host) || dir.suffix != "" && f.Name() == "exhaustivelist" {
				continue
			}
			warnings = append(warnings, settings.Problem{File: relativeTo(data, filepath.Join(certificates, dir.name, f.Name())), Line: 1,
				Text: "has no effect: nothing looks for a file of this name, but for " + dir.form})
		}
	}
	return warnings
}

// idleClients tells which lines of tlsclients no certificate can be found by.
func idleClients(data string, l *settings.List) (warnings settings.Problems) {
	if l.Empty() || l.File == "" {
		return nil
	}
	path := l.File
	if !filepath.IsAbs(path) {
		path = filepath.Join(data, path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil // the list is read elsewhere, and that is told there
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSpace(line)
		why := ""
		switch _, err := tlsx.Fingerprint(line); {
		case line == "" || line[0] == '#':
		case strings.HasPrefix(strings.ToLower(line), "sha256:"):
			if err != nil {
				why = err.Error()
			}
		case strings.ContainsAny(line, " \t"):
			why = fmt.Sprintf("%q: a line is a mail address, a host name or a fingerprint, and has no blank", line)
		}
		if why != "" {
			warnings = append(warnings, settings.Problem{File: l.File, Line: n, Text: settings.TLSClients.Name + ": has no effect: " + why})
		}
	}
	return warnings
}

// relativeTo gives a file's name within the data directory; one outside keeps its whole path.
func relativeTo(data, file string) string {
	if name, err := filepath.Rel(data, file); err == nil && filepath.IsLocal(name) {
		return name
	}
	return file
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}

func appendOnce(all settings.Problems, p settings.Problem) settings.Problems {
	if slices.Contains(all, p) {
		return all
	}
	return append(all, p)
}

// certificatePath gives where a service's certificates are: TLS_CERT, or as with IndiMail SERVERCERT in CERTDIR.
func certificatePath(data string, v *settings.View) string {
	path := settings.TLSCert.Get(v)
	if !v.IsSet(settings.TLSCert.Setting) && (v.IsSet(settings.CertDir.Setting) || v.IsSet(settings.ServerCert.Setting)) {
		dir, file := settings.CertDir.Get(v), settings.ServerCert.Get(v)
		if dir == "" {
			dir = "certs"
		}
		if file == "" {
			file = "servercert.pem"
		}
		if path = file; !filepath.IsAbs(file) {
			path = filepath.Join(dir, file)
		}
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(data, path)
	}
	return path
}

// tlsOptions gives what a service's settings say of TLS.
func tlsOptions(data string, v *settings.View) tlsx.Options {
	suites, _ := tlsx.ParseSuites(settings.TLSCipherList.Get(v))
	path := func(file string) string {
		if file != "" && !filepath.IsAbs(file) {
			file = filepath.Join(data, file)
		}
		return file
	}
	return tlsx.Options{
		Minimum: tlsx.Version(settings.TLSMinimum.Get(v)), Suites: suites, ClientCA: path(settings.ClientCA.Get(v)), ClientCRL: path(settings.ClientCRL.Get(v)),
		// Mail programs ask their users about certificates: only where one may be of use.
		Ask: kindOf(v.Service()) == "smtpd" && !settings.TLSClients.Get(v).Empty(),
	}
}

// certificateDirectory gives the directory that the certificates are in, with clientcert.pem, tlshosts and notlshosts (wiki 2099).
func certificateDirectory(data string, v *settings.View) string {
	path := certificatePath(data, v)
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return path
	}
	return filepath.Dir(path)
}
