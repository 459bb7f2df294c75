package service

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/authd"
	"github.com/indigomail/indigo/internal/settings"
)

// isLDAP tells whether a word names the LDAP servers.
func isLDAP(word string) bool { return filepath.Base(word) == "ldap-checkpwd" }

// maxSecret is the most bytes of a file with a password.
const maxSecret = 4096

// LDAPSource gives the LDAP servers as the settings describe them, without Pool, DefaultDomain and Running. The error says what is wrong
// with the file of the password; see auth.LDAP's Check for the rest.
func LDAPSource(v *settings.View) (*auth.LDAP, error) {
	l := &auth.LDAP{
		URLs: strings.Fields(settings.LDAPURL.Get(v)), StartTLS: settings.LDAPStartTLS.Get(v), CA: settings.LDAPCA.Get(v),
		BindDN: settings.LDAPBindDN.Get(v), BindPassword: settings.LDAPBindPassword.Get(v),
		Base: settings.LDAPBase.Get(v), Scope: settings.LDAPScope.Get(v), Filter: settings.LDAPFilter.Get(v), UserDN: settings.LDAPUserDN.Get(v),
		Mail: settings.LDAPMail.Get(v), Home: settings.LDAPHome.Get(v), Time: settings.LDAPTimeout.Get(v),
	}
	if host := settings.LDAPHost.Get(v); len(l.URLs) == 0 && host != "" {
		l.URLs = []string{"ldap://" + net.JoinHostPort(host, strconv.Itoa(settings.LDAPPort.Get(v)))}
	}
	file := settings.LDAPBindPasswordFile.Get(v)
	if file == "" {
		return l, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("LDAP_BIND_PASSWD_FILE: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("LDAP_BIND_PASSWD_FILE: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("LDAP_BIND_PASSWD_FILE: %s is no file", file)
	case info.Mode()&0o027 != 0:
		return nil, fmt.Errorf("LDAP_BIND_PASSWD_FILE: others may read or change %s (chmod 600)", file)
	case info.Size() > maxSecret:
		return nil, fmt.Errorf("LDAP_BIND_PASSWD_FILE: %s has more than %d bytes", file, maxSecret)
	}
	text := make([]byte, info.Size())
	if _, err := f.ReadAt(text, 0); err != nil && len(text) > 0 {
		return nil, fmt.Errorf("LDAP_BIND_PASSWD_FILE: %w", err)
	}
	l.BindPassword, _, _ = strings.Cut(string(text), "\n")
	if l.BindPassword == "" && l.BindDN != "" {
		return nil, fmt.Errorf("LDAP_BIND_PASSWD_FILE: the first line of %s is empty", file)
	}
	return l, nil
}

// ldapSource is LDAPSource as the running instance uses it.
func (h *House) ldapSource(v *settings.View) (*auth.LDAP, error) {
	l, err := LDAPSource(v)
	if err == nil {
		err = l.Check()
	}
	if err != nil {
		return nil, err
	}
	l.Pool, l.DefaultDomain, l.Running = h.ldap, defaultDomain(h.view("all")), h.passwordServers
	return l, nil
}

// LDAPProgram is LDAPSource for the program ldap-checkpwd: what its environment says goes before the settings of the data directory, which
// need not be there.
func LDAPProgram(environment settings.Environment) (*auth.LDAP, error) {
	snapshot := new(settings.Snapshot)
	if Exists(environment.Data) {
		snapshot, _ = settings.Inspect(environment.Data)
	}
	v, err := environment.Over(snapshot.View(authd.Service),
		settings.LDAPURL.Setting, settings.LDAPHost.Setting, settings.LDAPPort.Setting, settings.LDAPStartTLS.Setting, settings.LDAPCA.Setting,
		settings.LDAPBase.Setting, settings.LDAPScope.Setting, settings.LDAPFilter.Setting, settings.LDAPUserDN.Setting, settings.LDAPBindDN.Setting,
		settings.LDAPBindPassword.Setting, settings.LDAPBindPasswordFile.Setting, settings.LDAPMail.Setting, settings.LDAPHome.Setting,
		settings.LDAPUID.Setting, settings.LDAPGID.Setting, settings.LDAPTimeout.Setting, settings.DefaultDomain.Setting)
	if err != nil {
		return nil, err
	}
	l, err := LDAPSource(v)
	if err == nil {
		err = l.Check()
	}
	if err != nil {
		return nil, err
	}
	l.UID, l.GID, l.DefaultDomain = settings.LDAPUID.Get(v), settings.LDAPGID.Get(v), defaultDomain(v)
	l.Pool = &auth.LDAPPool{Dial: new(net.Dialer).DialContext, Now: time.Now}
	return l, nil
}
