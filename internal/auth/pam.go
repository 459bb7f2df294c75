package auth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// pamTime bounds a run of the helper: modules delay the answer to a wrong password.
	pamTime = 25 * time.Second
	// maxVerdict is how much the helper may write.
	maxVerdict = 8192
)

// PAM asks PAM by the helper program indigo-pam, a process for each login. Most modules want root.
type PAM struct {
	// Helper is the program's path, Service the name of the PAM service, a file in /etc/pam.d.
	Helper, Service string
}

// PAMUser is who PAM let in. UID and GID are -1 for one who is no user of the host.
type PAMUser struct {
	Name string `json:"name"`
	Home string `json:"home"`
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
}

// PAMHelper gives the path of the helper that belongs to the program self: it lies beside it.
func PAMHelper(self string) string { return filepath.Join(filepath.Dir(self), "indigo-pam") }

// Installed tells what keeps the helper from being run: root runs only what root alone can change.
func (p PAM) Installed() error {
	info, err := os.Stat(p.Helper)
	if err != nil {
		return fmt.Errorf("PAM needs the program indigo-pam: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return fmt.Errorf("%s is no program (chmod 755)", p.Helper)
	case os.Geteuid() == 0 && (!ok || stat.Uid != 0 || info.Mode()&0o022 != 0):
		return fmt.Errorf("%s is to be run by root, and others may change it (chown root, chmod 755)", p.Helper)
	}
	return nil
}

// Check asks about a name and a password of a client; refused is why they let nobody in, err why nothing can be said.
func (p PAM) Check(ctx context.Context, name, password, client string) (user PAMUser, refused, err error) {
	if err := p.Installed(); err != nil {
		return user, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, pamTime)
	defer cancel()
	asked, ask, err := os.Pipe()
	if err != nil {
		return user, nil, err
	}
	defer asked.Close()
	// The pipe takes it whole: ValidCredentials bounds it.
	_, err = io.WriteString(ask, name+"\x00"+password+"\x00"+client+"\x00")
	if err := errors.Join(err, ask.Close()); err != nil {
		return user, nil, err
	}
	said, verdict := limited{most: maxSaid}, limited{most: maxVerdict}
	cmd := exec.CommandContext(ctx, p.Helper, p.Service)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{asked}
	cmd.Stdout, cmd.Stderr = &verdict, &said
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	runErr := cmd.Run()
	// In process 1 somebody else may have heard of the helper's end: its last line says the same.
	lines := bytes.Split(bytes.TrimSuffix(verdict.Bytes(), []byte("\n")), []byte("\n"))
	answer := struct {
		Code  *int   `json:"code"`
		Error string `json:"error"`
		*PAMUser
	}{PAMUser: &user}
	if err := json.Unmarshal(lines[len(lines)-1], &answer); err != nil || answer.Code == nil {
		return PAMUser{}, nil, fmt.Errorf("%s gave no verdict: %v: %s", p.Helper, runErr, strings.TrimSpace(said.String()))
	}
	switch *answer.Code {
	case 0:
		if ctx.Err() != nil {
			return PAMUser{}, nil, ctx.Err()
		}
		return user, nil, nil
	case 1:
		return PAMUser{}, fmt.Errorf("PAM service %s: %s", p.Service, answer.Error), nil
	}
	return PAMUser{}, nil, fmt.Errorf("PAM service %s: %s", p.Service, answer.Error)
}
