package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/service"
	"github.com/indigomail/indigo/internal/settings"
)

// The exit codes of the checkpassword interface; noUser is Dovecot's, for a look-up without a password.
const (
	passwordWrong   exitCode = 1
	passwordMisused exitCode = 2
	passwordNoUser  exitCode = 3
	passwordUnknown exitCode = 111
)

const (
	// maxCredentials is how much checkpassword reads from descriptor 3: Dovecot gives more than the interface's 512 bytes.
	maxCredentials = 4096
	// checkTime bounds a check: the directory may be on a server that does not answer.
	checkTime = 30 * time.Second
)

// checkedUser is who was found, with the uid and gid that own the mail.
type checkedUser struct {
	User string `json:"user"`
	Home string `json:"home"`
	UID  uint32 `json:"uid"`
	GID  uint32 `json:"gid"`
	// same leaves the program all as it is, stay only the directory.
	same, stay bool
}

// vchkpass checks a name and a password that it reads from descriptor 3, as NAME NUL PASSWORD NUL (the checkpassword interface; wiki
// 2728-2731, 2994-3039, 3563-3580). When they fit, it runs the program that its operands name, with USER, HOME and Dovecot's EXTRA set,
// as who owns the mail. Operands that end in /bin/false are IndiMail's chain: then it exits with 0 when they fit, and hands them to the next
// module when they do not. AUTHORIZED=1 asks for the user alone, as Dovecot does. -j prints what was found and runs nothing.
func (app *App) vchkpass(args []string) int {
	return app.checkpassword("vchkpass", args, app.checkApart)
}

// checker finds the user of credentials; the error is an exitCode where it says something about them.
type checker func(environment settings.Environment, credentials []byte) (checkedUser, error)

// counted has the running instance count what fails for the client's address, as it does for vchkpass, and refuse what is locked. Where none can be
// asked, nobody counts. A module that hands what it does not know to the next one leaves the counting of that to it.
func counted(program string, handsOn bool, check checker) checker {
	return func(environment settings.Environment, credentials []byte) (user checkedUser, err error) {
		// An instance that runs it as one of AUTHMODULES counts itself.
		if environment.Get("AUTHORIZED") == "1" || environment.Get("INDIGO_COUNTED") == "1" {
			return check(environment, credentials)
		}
		ctx, cancel := context.WithTimeout(context.Background(), checkTime)
		defer cancel()
		a := attemptOf(environment, credentials, program)
		err = service.NewControl(environment.Data).Counted(ctx, a, func() (string, error) {
			user, err = check(environment, credentials)
			return user.User, err
		}, func(err error) bool { return errors.Is(err, passwordWrong) && !handsOn })
		if errors.Is(err, service.ErrNotRunning) {
			return check(environment, credentials)
		}
		return user, err
	}
}

// attemptOf gives what the environment and descriptor 3 say of a login.
func attemptOf(environment settings.Environment, credentials []byte, mechanism string) auth.Attempt {
	fields := bytes.SplitN(credentials, []byte{0}, 3)
	local, _ := netip.ParseAddr(environment.Get("TCPLOCALIP"))
	client, _ := netip.ParseAddr(environment.Get("TCPREMOTEIP"))
	return auth.Attempt{User: string(fields[0]), Password: string(fields[1]), Service: doorOf(environment), Client: client, Local: local, Mechanism: mechanism, TLS: true}
}

func (app *App) checkpassword(program string, args []string, check checker) int {
	err := app.checkAndRun(program, args, check)
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintf(app.Err, "%s: %v\n", program, err)
	return int(passwordUnknown)
}

func (app *App) checkAndRun(program string, args []string, check checker) error {
	environment := settings.FromEnvironment()
	print := len(args) > 0 && args[0] == "-j"
	if print {
		args = args[1:]
	}
	if !print && len(args) == 0 {
		fmt.Fprintf(app.Err, "%s: usage: %[1]s PROGRAM..., with NAME NUL PASSWORD NUL on descriptor 3\n", program)
		return passwordMisused
	}
	credentials, err := readCredentials()
	if err != nil {
		fmt.Fprintf(app.Err, "%s: %v\n", program, err)
		return passwordMisused
	}
	// The chain's own modules get the credentials that this one had.
	chain := !print && environment.Get("NATIVE_PASSWORD") == "" && strings.HasSuffix(args[len(args)-1], "/false")
	handsOn := chain && len(args) > 1
	if program != "vchkpass" {
		check = counted(program, handsOn, check)
	}
	user, err := check(environment, credentials)
	switch {
	case handsOn && errors.Is(err, passwordWrong):
		if err := again(credentials); err != nil {
			return err
		}
		return run(args, environment.All())
	case err != nil || chain:
		return err
	case print:
		return json.NewEncoder(app.Out).Encode(user)
	}
	return user.run(args, environment)
}

// sysCheckpwd is vchkpass for the host's users (wiki 2731, 3003): it must be run by root, whom the file shadow belongs to.
func (app *App) sysCheckpwd(args []string) int {
	return app.checkpassword("sys-checkpwd", args, app.checkSystem)
}

// ldapCheckpwd is vchkpass for the users of LDAP servers, which its environment and the settings name (wiki 3000).
func (app *App) ldapCheckpwd(args []string) int {
	return app.checkpassword("ldap-checkpwd", args, app.checkLDAP)
}

// pamCheckpwd is vchkpass for whom PAM knows (wiki 3002-3003), with IndiMail's options -s SERVICE, before which PAM_SERVICE counts, -e, which leaves
// the program who it was and where, and -H, which leaves it where.
func (app *App) pamCheckpwd(args []string) int {
	flags := pflag.NewFlagSet("pam-checkpwd", pflag.ContinueOnError)
	flags.SetInterspersed(false)
	flags.SetOutput(io.Discard)
	service := flags.StringP("service", "s", "", "PAM service")
	as := flags.BoolP("noenv", "e", false, "change neither user nor variables nor directory")
	at := flags.BoolP("no-chdir-home", "H", false, "stay in this directory")
	print := flags.BoolP("json", "j", false, "print what was found, and run nothing")
	if err := flags.Parse(args); err != nil {
		fmt.Fprintln(app.Err, "pam-checkpwd:", err)
		return int(passwordMisused)
	}
	args = flags.Args()
	if *print {
		args = append([]string{"-j"}, args...)
	}
	return app.checkpassword("pam-checkpwd", args, func(environment settings.Environment, credentials []byte) (checkedUser, error) {
		user, err := app.checkPAM(environment, *service, credentials)
		user.stay, user.same = *at, *as
		return user, err
	})
}

// checkpasswordReply writes to descriptor 4 whom a password program has let in, for the instance that runs it.
func (app *App) checkpasswordReply([]string) int {
	environment := settings.FromEnvironment()
	out := os.NewFile(4, "descriptor 4")
	if _, err := fmt.Fprintf(out, "%s\x00%s\x00", environment.Get("USER"), environment.Get("HOME")); err != nil {
		fmt.Fprintln(app.Err, "checkpassword-reply: it is run by password programs of AUTHMODULES only:", err)
		return int(passwordMisused)
	}
	return 0
}

// readCredentials reads what the caller wrote to descriptor 3.
func readCredentials() ([]byte, error) {
	in := os.NewFile(3, "descriptor 3")
	defer in.Close()
	text, err := io.ReadAll(io.LimitReader(in, maxCredentials+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("nothing was given: %w", err)
	case len(text) > maxCredentials:
		return nil, fmt.Errorf("more than %d bytes were given on descriptor 3", maxCredentials)
	case bytes.Count(text, []byte{0}) < 2:
		return nil, errors.New("descriptor 3 must give NAME NUL PASSWORD NUL")
	}
	return text, nil
}

// again makes descriptor 3 give the credentials once more, to the program that this process becomes.
func again(credentials []byte) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	// It fits: a pipe takes 64 KiB.
	if _, err := w.Write(credentials); err != nil {
		return err
	}
	w.Close()
	if r.Fd() == 3 {
		_, err := unix.FcntlInt(3, unix.F_SETFD, 0)
		return err
	}
	defer r.Close()
	return unix.Dup3(int(r.Fd()), 3, 0)
}

// checkApart checks as who owns the data directory: root does so in a process of its own, because a SQLite database that root opens may leave
// files behind that its owner cannot write, and because Dovecot wants what it runs to keep its user.
func (app *App) checkApart(environment settings.Environment, credentials []byte) (user checkedUser, err error) {
	owner, err := ownerOf(environment.Data)
	if err != nil {
		return user, err
	}
	if os.Geteuid() != 0 || owner.Uid == 0 {
		return app.check(environment, credentials, owner)
	}
	self, err := os.Executable()
	if err != nil {
		return user, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return user, err
	}
	defer r.Close()
	_, err = w.Write(credentials)
	w.Close()
	if err != nil {
		return user, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), checkTime+time.Second)
	defer cancel()
	child := exec.CommandContext(ctx, self, "vchkpass", "-j")
	child.Env = environment.All()
	child.ExtraFiles = []*os.File{r}
	child.Stderr = app.Err
	child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}, Pdeathsig: syscall.SIGKILL}
	text, err := child.Output()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		return user, exitCode(exit.ExitCode())
	case err != nil:
		return user, fmt.Errorf("checking as the owner of %s: %w", environment.Data, err)
	}
	return user, json.Unmarshal(text, &user)
}

func ownerOf(data string) (*syscall.Stat_t, error) {
	info, err := os.Stat(data)
	if err != nil {
		return nil, fmt.Errorf("no data directory: %w: INDIGO_DATA or /etc/indigo/data must name it", err)
	}
	return info.Sys().(*syscall.Stat_t), nil
}

// checkSystem is the check of sys-checkpwd. AUTHORIZED=1 is for the account's name alone.
func (app *App) checkSystem(environment settings.Environment, credentials []byte) (user checkedUser, err error) {
	fields := bytes.SplitN(credentials, []byte{0}, 3)
	name, password := string(fields[0]), string(fields[1])
	system := auth.System{Now: time.Now}
	var found auth.SystemUser
	var refused error
	only := environment.Get("AUTHORIZED") == "1"
	if only {
		found, refused, err = system.Find(name)
	} else {
		found, refused, err = system.Check(name, password)
	}
	switch {
	case err != nil:
		return user, err
	case refused != nil && only:
		return user, passwordNoUser
	case refused != nil:
		return user, passwordWrong
	}
	return checkedUser{User: found.Name, Home: found.Home, UID: found.UID, GID: found.GID}, nil
}

// checkPAM is the check of pam-checkpwd. One who is no user of the host gets the uid and gid of the data directory's owner, as vchkpass gives.
func (app *App) checkPAM(environment settings.Environment, name string, credentials []byte) (user checkedUser, err error) {
	if environment.Get("AUTHORIZED") == "1" {
		return user, errors.New("PAM is asked for passwords only, and AUTHORIZED=1 gives none")
	}
	helper, err := service.NewPAM(environment, name)
	if err != nil {
		return user, err
	}
	fields := bytes.SplitN(credentials, []byte{0}, 3)
	given, password := string(fields[0]), string(fields[1])
	if !auth.ValidCredentials(given, password) {
		return user, passwordWrong
	}
	found, refused, err := helper.Check(context.Background(), given, password, environment.Get("TCPREMOTEIP"))
	switch {
	case err != nil:
		return user, err
	case refused != nil:
		return user, passwordWrong
	}
	if found.UID < 0 {
		owner, err := ownerOf(environment.Data)
		if err != nil {
			return user, fmt.Errorf("%s is no user of the host, and there is %w", found.Name, err)
		}
		return checkedUser{User: found.Name, Home: found.Home, UID: owner.Uid, GID: owner.Gid}, nil
	}
	return checkedUser{User: found.Name, Home: found.Home, UID: uint32(found.UID), GID: uint32(found.GID)}, nil
}

// checkLDAP is the check of ldap-checkpwd. Without attributes for them, the uid and gid are those of who runs it, or for root those of the data
// directory's owner.
func (app *App) checkLDAP(environment settings.Environment, credentials []byte) (user checkedUser, err error) {
	if environment.Get("AUTHORIZED") == "1" {
		return user, errors.New("an LDAP server is asked for passwords only, and AUTHORIZED=1 gives none")
	}
	source, err := service.LDAPProgram(environment)
	if err != nil {
		return user, err
	}
	defer source.Pool.Close()
	fields := bytes.SplitN(credentials, []byte{0}, 3)
	found, err := source.Ask(context.Background(), auth.Attempt{User: string(fields[0]), Password: string(fields[1]), Mechanism: "checkpassword"})
	var refused *mailerr.Error
	switch {
	case errors.As(err, &refused) && refused.Code == 535:
		return user, passwordWrong
	case err != nil:
		return user, err
	}
	user = checkedUser{User: found.Address.String(), Home: found.Home, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	if found.UID < 0 && user.UID == 0 {
		owner, err := ownerOf(environment.Data)
		if err != nil {
			return user, fmt.Errorf("LDAP_FIELD_UID is not set, and there is %w", err)
		}
		user.UID, user.GID = owner.Uid, owner.Gid
	}
	if found.UID >= 0 {
		user.UID = uint32(found.UID)
	}
	if found.GID >= 0 {
		user.GID = uint32(found.GID)
	}
	return user, nil
}

// check looks the user up and compares the password; the error is an exitCode where it says something about either.
func (app *App) check(environment settings.Environment, credentials []byte, owner *syscall.Stat_t) (user checkedUser, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), checkTime)
	defer cancel()
	fields := bytes.SplitN(credentials, []byte{0}, 3)
	name := string(fields[0])
	var identity auth.Identity
	if environment.Get("AUTHORIZED") == "1" {
		var store *directory.Store
		if store, err = service.OpenDirectory(ctx, environment.Data, app.who()); err != nil {
			return user, err
		}
		defer store.Close()
		identity, err = known(ctx, store, name)
	} else {
		identity, err = app.judged(ctx, environment, credentials)
	}
	var refused *mailerr.Error
	switch {
	case errors.Is(err, directory.ErrNoUser), errors.Is(err, directory.ErrNoDomain):
		if environment.Get("AUTHORIZED") == "1" {
			return user, passwordNoUser
		}
		return user, passwordWrong
	case errors.As(err, &refused) && refused.Code == 535:
		return user, passwordWrong
	case err != nil:
		return user, err
	}
	return checkedUser{User: identity.Address.String(), Home: identity.Home, UID: owner.Uid, GID: owner.Gid}, nil
}

// judged has the running instance check the password, which counts what fails for the client's address. Where none runs, nobody keeps count, and it is
// checked here.
func (app *App) judged(ctx context.Context, environment settings.Environment, credentials []byte) (auth.Identity, error) {
	a := attemptOf(environment, credentials, "checkpassword")
	identity, err := service.NewControl(environment.Data).Verify(ctx, a)
	if !errors.Is(err, service.ErrNotRunning) {
		return identity, err
	}
	store, verifier, err := service.OpenVerifier(ctx, environment.Data, app.who(), false)
	if err != nil {
		return auth.Identity{}, err
	}
	defer store.Close()
	defer verifier.Close()
	return verifier.Verify(ctx, a)
}

func known(ctx context.Context, store *directory.Store, name string) (auth.Identity, error) {
	a, err := addr.Parse(name)
	if err != nil {
		return auth.Identity{}, directory.ErrNoUser
	}
	u, err := store.User(ctx, a)
	return auth.Identity{Address: u.Address(), Home: u.Dir}, err
}

// doorOf gives the service whose switches count for the user: Dovecot names it, tcpserver its port.
func doorOf(environment settings.Environment) string {
	switch environment.Get("SERVICE") {
	case "imap":
		return "imapd"
	case "pop3":
		return "pop3d"
	case "smtp", "submission":
		return "smtpd"
	}
	switch environment.Get("TCPLOCALPORT") {
	case "143", "993":
		return "imapd"
	case "110", "995":
		return "pop3d"
	case "25", "465", "587":
		return "smtpd"
	}
	return ""
}

// run becomes the program, with what the interface and Dovecot say about the user in the environment.
func (u checkedUser) run(args []string, environment settings.Environment) error {
	if u.same {
		return run(args, environment.All())
	}
	set := map[string]string{
		"USER": u.User, "HOME": u.Home, "SHELL": "/bin/false", "userdb_uid": fmt.Sprint(u.UID), "userdb_gid": fmt.Sprint(u.GID), "EXTRA": "userdb_uid userdb_gid",
	}
	if environment.Get("AUTHORIZED") == "1" {
		set["AUTHORIZED"] = "2"
	}
	all := slices.DeleteFunc(environment.All(), func(one string) bool {
		name, _, _ := strings.Cut(one, "=")
		_, ours := set[name]
		return ours
	})
	for name, value := range set {
		all = append(all, name+"="+value)
	}
	// Dovecot names its own user, takes the mail's from EXTRA, and refuses a program that changed its user.
	if os.Geteuid() == 0 && u.UID != 0 && environment.Get("ORIG_UID") == "" {
		if err := becomeUser(u.UID, u.GID); err != nil {
			return err
		}
		if !u.stay {
			if err := os.Chdir(u.Home); err != nil {
				return err
			}
		}
	}
	return run(args, all)
}

// run becomes a program.
func run(args, environment []string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", path, syscall.Exec(path, args, environment))
}
