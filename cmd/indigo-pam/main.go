// Command indigo-pam asks PAM whether a password is right, for indigo, which has no C in it. It reads NAME NUL PASSWORD NUL RHOST NUL from
// descriptor 3, RHOST being the client's address or nothing, and its one operand is the PAM service. The last line that it writes is JSON: who that
// is, or why not. Its exit code, which stands there too, is 0 when they fit; 1 when they do not or the account may not be used; 2 when it
// was called wrongly; 111 when PAM cannot say. One process serves one login: modules of PAM may leave anything behind.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"strings"

	"github.com/msteinert/pam/v2"
)

const (
	refused     = 1
	misused     = 2
	unavailable = 111
	// maxInput is how much is read.
	maxInput = 8192
)

// account is who was let in; UID and GID are -1 for one who is no user of the host.
type account struct {
	Code  int    `json:"code"`
	Error string `json:"error,omitempty"`
	Name  string `json:"name"`
	Home  string `json:"home"`
	UID   int    `json:"uid"`
	GID   int    `json:"gid"`
}

func main() {
	// Modules keep things by thread.
	runtime.LockOSThread()
	found, code, err := run(os.Args[1:], os.NewFile(3, "descriptor 3"))
	if err != nil {
		found = account{Code: code, Error: err.Error()}
		fmt.Fprintln(os.Stderr, "indigo-pam:", err)
	}
	text, err := json.Marshal(found)
	if err == nil {
		// What a module has printed stays a line of its own.
		_, err = fmt.Printf("\n%s\n", text)
	}
	if err != nil {
		found.Code = unavailable
	}
	os.Exit(found.Code)
}

func run(args []string, in io.Reader) (found account, code int, err error) {
	if len(args) != 1 || args[0] == "" || strings.Contains(args[0], "/") || args[0][0] == '.' {
		return found, misused, errors.New("usage: indigo-pam SERVICE, with NAME NUL PASSWORD NUL RHOST NUL on descriptor 3")
	}
	text, err := io.ReadAll(io.LimitReader(in, maxInput+1))
	fields := bytes.SplitN(text, []byte{0}, 4)
	if err != nil || len(text) > maxInput || len(fields) < 4 {
		return found, misused, errors.New("descriptor 3 must give NAME NUL PASSWORD NUL RHOST NUL")
	}
	name, password, host := string(fields[0]), string(fields[1]), string(fields[2])
	if name == "" || password == "" {
		return found, refused, errors.New("no name or no password")
	}
	transaction, err := pam.StartFunc(args[0], name, func(style pam.Style, _ string) (string, error) {
		switch style {
		case pam.PromptEchoOff:
			return password, nil
		case pam.PromptEchoOn:
			return name, nil
		}
		return "", nil
	})
	if err != nil {
		return found, unavailable, fmt.Errorf("the service %s: %w", args[0], err)
	}
	defer transaction.End()
	if host != "" {
		if err := transaction.SetItem(pam.Rhost, host); err != nil {
			return found, unavailable, err
		}
	}
	if err := transaction.Authenticate(pam.Silent | pam.DisallowNullAuthtok); err != nil {
		return found, judge(err), fmt.Errorf("password: %w", err)
	}
	if err := transaction.AcctMgmt(pam.Silent | pam.DisallowNullAuthtok); err != nil {
		return found, judge(err), fmt.Errorf("account: %w", err)
	}
	// A module may have found out another name.
	if name, err = transaction.GetItem(pam.User); err != nil {
		return found, unavailable, err
	}
	found = account{Name: name, UID: -1, GID: -1}
	u, err := user.Lookup(name)
	var unknown user.UnknownUserError
	switch {
	case errors.As(err, &unknown):
		return found, 0, nil
	case err != nil:
		return found, unavailable, err
	}
	uid, uidErr := strconv.Atoi(u.Uid)
	gid, gidErr := strconv.Atoi(u.Gid)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return found, unavailable, err
	}
	if uid == 0 {
		return found, refused, errors.New("root is let in by nothing")
	}
	return account{Name: name, Home: u.HomeDir, UID: uid, GID: gid}, 0, nil
}

// judge gives the exit code: what says something about the user is a refusal.
func judge(err error) int {
	for _, one := range []pam.Error{
		pam.ErrAuth, pam.ErrUserUnknown, pam.ErrMaxtries, pam.ErrPermDenied, pam.ErrAcctExpired, pam.ErrNewAuthtokReqd, pam.ErrCredExpired, pam.ErrAuthtokExpired,
	} {
		if errors.Is(err, one) {
			return refused
		}
	}
	return unavailable
}
