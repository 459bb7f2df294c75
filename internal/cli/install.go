package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/service"
)

const systemdUnit = `# Written by "indigo install --systemd"; "indigo install --remove" takes it away.
[Unit]
Description=Indigo mail server
Documentation=man:indigo(1)
Wants=network-online.target
After=network-online.target time-sync.target

[Service]
Type=notify
NotifyAccess=main
User=%[1]s
Group=%[1]s
ExecStart=%[2]s serve --data %[3]s
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=2
WatchdogSec=60
TimeoutStopSec=90
LimitNOFILE=65536
# Ports below 1024, and nothing else that root may do.
AmbientCapabilities=CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths=%[3]s
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077

[Install]
WantedBy=multi-user.target
`

const openrcScript = `#!/sbin/openrc-run
# Written by "indigo install --openrc"; "indigo install --remove" takes it away.
name="Indigo mail server"
description="Takes mail in, queues it, delivers it and gives it back"
supervisor=supervise-daemon
command="%[2]s"
command_args="serve --data %[3]s --log-format plain"
# It starts as root to bind the ports, and serves as the account of the setting RUNAS: %[1]s.
output_logger="logger -t indigo -p mail.info"
error_logger="logger -t indigo -p mail.info"
extra_started_commands="reload"

depend() {
	need net
	after clock firewall
	use dns logger
}

reload() {
	ebegin "Reading the settings of Indigo again"
	"%[2]s" reload --data %[3]s
	eend $?
}
`

// account is the user that install makes.
const account = "indigo"

func (app *App) installCommand() *cobra.Command {
	var systemd, openrc, remove, dry bool
	var root, data, domain string
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Make the host start Indigo: a user of its own, a data directory and a unit for systemd or OpenRC",
		Long: `Make the host start Indigo at boot: the user "` + account + `" without a shell, a data directory that is its own, the file
/etc/indigo/data that names it for every command, and a unit. With systemd the services never have root: the unit gives them
low ports and nothing else, in a sandbox. With OpenRC a small parent keeps root for the ports (the setting RUNAS). The unit starts this
program where it lies (make install puts it and indigo-pam in /usr/local/bin); an indigo-pam beside it becomes root's. Nothing is started. --dry-run prints what would be done. To undo: indigo install --remove, which leaves the user and the data
directory.`,
		Example: "  indigo install --systemd --domain example.org --dry-run\n  indigo install --systemd --domain example.org\n  indigo install --remove",
		Args:    cobra.NoArgs,
	}
	f := cmd.Flags()
	f.BoolVar(&systemd, "systemd", false, "write /etc/systemd/system/indigo.service")
	f.BoolVar(&openrc, "openrc", false, "write /etc/init.d/indigo")
	f.BoolVar(&remove, "remove", false, "take the unit and /etc/indigo/data away")
	f.BoolVar(&dry, "dry-run", false, "only print what would be done")
	f.StringVar(&root, "root", "/", "directory that stands for / when files are written, for images")
	f.StringVar(&data, "data", "/var/lib/indigo", "data directory")
	f.StringVar(&domain, "domain", "", "domain to make, if there is no data directory")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !remove && systemd == openrc {
			return errors.New("one of --systemd and --openrc is needed")
		}
		in := installation{app: app, root: root, data: data, domain: domain, dry: dry}
		if remove {
			return in.remove()
		}
		return in.install(cmd.Context(), systemd)
	}
	return cmd
}

type installation struct {
	app                *App
	root, data, domain string
	dry                bool
}

// do does a step, or only tells it.
func (in *installation) do(what string, step func() error) error {
	fmt.Fprintln(in.app.Out, what)
	if in.dry {
		return nil
	}
	if err := step(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func (in *installation) write(path, text string, mode os.FileMode) error {
	whole := filepath.Join(in.root, path)
	return in.do("write "+path, func() error {
		if err := os.MkdirAll(filepath.Dir(whole), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(whole+".new", []byte(text), mode); err != nil {
			return err
		}
		return os.Rename(whole+".new", whole)
	})
}

func (in *installation) install(ctx context.Context, systemd bool) error {
	if !in.dry && in.root == "/" && os.Geteuid() != 0 {
		return errors.New("only root can do this; --dry-run prints what would be done")
	}
	if strings.ContainsAny(in.data, " \t\n%$\"'\\") || !filepath.IsAbs(in.data) {
		return fmt.Errorf("--data %q: a path from the root without blanks and quotes is needed", in.data)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	whole := filepath.Join(in.root, in.data)
	if !service.Exists(whole) && in.domain == "" {
		return errors.New("there is no data directory yet: --domain says what domain to make")
	}
	if in.root == "/" {
		if _, err := service.FindAccount(account); err != nil {
			if err := in.do("make the user "+account, func() error {
				out, err := exec.Command("useradd", "--system", "--user-group", "--no-create-home", "--home-dir", in.data, "--shell", "/usr/sbin/nologin", account).CombinedOutput()
				if err != nil {
					return fmt.Errorf("useradd: %w: %s", err, strings.TrimSpace(string(out)))
				}
				return nil
			}); err != nil {
				return err
			}
		}
	}
	if !service.Exists(whole) {
		if err := in.do("make the data directory "+in.data+" for "+in.domain, func() error {
			created, err := service.Create(ctx, service.NewHouse{Data: whole, Domain: in.domain, User: "postmaster", Hostname: "mail." + in.domain, Listen: "0.0.0.0"})
			if err == nil && created.Password == "" {
				fmt.Fprintf(in.app.Out, "  %s was there already and keeps the password that is set\n", created.User)
			} else if err == nil {
				fmt.Fprintf(in.app.Out, "  password of %s: %s\n", created.User, created.Password)
			}
			return err
		}); err != nil {
			return err
		}
	}
	if err := in.do("let users of the host leave mail in "+in.data+"/public", func() error { return service.OpenToHost(whole) }); err != nil {
		return err
	}
	if in.root == "/" {
		if err := in.do("give it to "+account, func() error {
			a, err := service.FindAccount(account)
			if err != nil {
				return err
			}
			return service.GiveTo(whole, a)
		}); err != nil {
			return err
		}
	}
	if err := in.giveHelper(auth.PAMHelper(self)); err != nil {
		return err
	}
	if err := in.write("/etc/indigo/data", in.data+"\n", 0o644); err != nil {
		return err
	}
	if systemd {
		if err := in.write("/etc/systemd/system/indigo.service", fmt.Sprintf(systemdUnit, account, self, in.data), 0o644); err != nil {
			return err
		}
		fmt.Fprintln(in.app.Out, "then: systemctl daemon-reload && systemctl enable --now indigo")
		return nil
	}
	if err := in.do("set RUNAS "+account, func() error {
		return os.WriteFile(filepath.Join(whole, "control", "runas"), []byte(account+"\n"), 0o644)
	}); err != nil {
		return err
	}
	if err := in.write("/etc/init.d/indigo", fmt.Sprintf(openrcScript, account, self, in.data), 0o755); err != nil {
		return err
	}
	fmt.Fprintln(in.app.Out, "then: rc-update add indigo && rc-service indigo start")
	return nil
}

// giveHelper makes the helper for PAM root's where it lies beside this program: root runs no other.
func (in *installation) giveHelper(path string) error {
	info, err := os.Stat(path)
	if err != nil || in.root != "/" {
		return nil
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid == 0 && info.Mode().Perm() == 0o755 {
		return nil
	}
	return in.do("make "+path+" root's, for logins by PAM", func() error { return errors.Join(os.Chown(path, 0, 0), os.Chmod(path, 0o755)) })
}

func (in *installation) remove() error {
	for _, path := range []string{"/etc/systemd/system/indigo.service", "/etc/init.d/indigo", "/etc/indigo/data"} {
		whole := filepath.Join(in.root, path)
		if _, err := os.Lstat(whole); err != nil {
			continue
		}
		if err := in.do("remove "+path, func() error { return os.Remove(whole) }); err != nil {
			return err
		}
	}
	fmt.Fprintln(in.app.Out, "the user "+account+" and the data directory stay")
	return nil
}
