// Package postfix is for tests and benchmarks: it runs Debian's postfix on loopback with folders of its own, as a peer of
// Indigo. It must not know Indigo.
package postfix

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// mailUser is the numeric user and group that owns the Maildirs: any that is not postfix's.
const mailUser = 65534

// Config says what the instance does.
type Config struct {
	// Dir is made, with everything in it; postfix's own user must be able to reach it.
	Dir string
	// Port is where its smtpd listens on 127.0.0.1.
	Port int
	// Users are addresses that get a Maildir.
	Users []string
	// Transport gives the transport of further domains, for example "example.org": "smtp:[127.0.0.1]:2025".
	Transport map[string]string
	// Settings are further lines of main.cf, Services of master.cf.
	Settings, Services []string
}

// Instance is a running postfix.
type Instance struct {
	config Config
	etc    string
}

// Missing gives the reason why postfix cannot run here, "" when it can.
func Missing() string {
	if os.Geteuid() != 0 {
		return "postfix can be started by root only"
	}
	if _, err := exec.LookPath("postfix"); err != nil {
		return "postfix is not installed (Debian package postfix)"
	}
	return ""
}

// inetService is a line of master.cf that listens on a port.
var inetService = regexp.MustCompile(`(?m)^\S+\s+inet\s.*\n(?:[ \t].*\n)*`)

// Start makes the folders and starts postfix. It fails when it does not listen within ten seconds.
func Start(ctx context.Context, config Config) (*Instance, error) {
	p := &Instance{config: config, etc: filepath.Join(config.Dir, "etc")}
	for _, name := range []string{"etc", "spool", "data", "mail"} {
		if err := os.MkdirAll(filepath.Join(config.Dir, name), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.Chown(filepath.Join(config.Dir, "mail"), mailUser, mailUser); err != nil {
		return nil, err
	}
	if err := chownTo(filepath.Join(config.Dir, "data"), "postfix"); err != nil {
		return nil, err
	}
	if err := p.writeMaster(); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(p.etc, "main.cf"), []byte(p.main()), 0o644); err != nil {
		return nil, err
	}
	if out, err := p.command(ctx, "start"); err != nil {
		return nil, fmt.Errorf("postfix start: %w\n%s", err, out)
	}
	address := net.JoinHostPort("127.0.0.1", fmt.Sprint(config.Port))
	limit, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(limit, "tcp", address)
		if err == nil {
			return p, conn.Close()
		}
		pause := time.NewTimer(50 * time.Millisecond)
		select {
		case <-pause.C:
		case <-limit.Done():
			pause.Stop()
			return nil, errors.Join(fmt.Errorf("postfix does not listen on %s: %w\n%s", address, err, p.Log()), p.Stop())
		}
	}
}

func chownTo(path, user string) error {
	return exec.Command("chown", user, path).Run()
}

// writeMaster takes Debian's master.cf without its listening services and its chroot, and adds smtpd on the port.
func (p *Instance) writeMaster() error {
	text, err := os.ReadFile("/usr/share/postfix/master.cf.dist")
	if err != nil {
		if text, err = os.ReadFile("/etc/postfix/master.cf"); err != nil {
			return err
		}
	}
	lines := strings.Split(inetService.ReplaceAllString(string(text), ""), "\n")
	for i, line := range lines {
		fields := strings.Fields(line)
		if len(fields) >= 8 && line[0] != '#' && line[0] != ' ' && line[0] != '\t' {
			fields[4] = "n"
			lines[i] = strings.Join(fields, "\t")
		}
	}
	lines = append(lines, fmt.Sprintf("127.0.0.1:%d inet n - n - 200 smtpd", p.config.Port))
	lines = append(append(lines, p.config.Services...), "")
	return os.WriteFile(filepath.Join(p.etc, "master.cf"), []byte(strings.Join(lines, "\n")), 0o644)
}

func (p *Instance) main() string {
	d := p.config.Dir
	var boxes, transports, mailDomains []string
	for _, user := range p.config.Users {
		name, domain, _ := strings.Cut(user, "@")
		boxes = append(boxes, user+"="+name+"/Maildir/")
		if !slices.Contains(mailDomains, domain) {
			mailDomains = append(mailDomains, domain)
		}
	}
	var relayDomains []string
	for domain, transport := range p.config.Transport {
		transports = append(transports, domain+"="+transport)
		relayDomains = append(relayDomains, domain)
	}
	lines := []string{
		"compatibility_level = 3.6",
		"queue_directory = " + d + "/spool",
		"data_directory = " + d + "/data",
		"command_directory = /usr/sbin",
		"daemon_directory = /usr/lib/postfix/sbin",
		"mail_owner = postfix",
		"setgid_group = postdrop",
		"myhostname = postfix.test",
		"mydestination =",
		"inet_interfaces = 127.0.0.1",
		"inet_protocols = ipv4",
		"mynetworks = 127.0.0.0/8",
		"alias_maps =",
		"virtual_mailbox_domains = " + strings.Join(mailDomains, " "),
		"virtual_mailbox_base = " + d + "/mail",
		"virtual_mailbox_maps = inline:{" + strings.Join(boxes, ", ") + "}",
		fmt.Sprintf("virtual_uid_maps = static:%d", mailUser),
		fmt.Sprintf("virtual_gid_maps = static:%d", mailUser),
		"virtual_mailbox_limit = 0",
		"message_size_limit = 52428800",
		"relay_domains = " + strings.Join(relayDomains, " "),
		"default_process_limit = 100",
		"smtpd_client_connection_count_limit = 0",
		"smtpd_client_connection_rate_limit = 0",
		"smtpd_error_sleep_time = 0",
		"smtpd_recipient_restrictions = permit_mynetworks, reject",
		"maillog_file = " + d + "/log",
		"maillog_file_prefixes = " + d,
	}
	// A line that stands twice is warned of by every process, and postlogd blocks when it logs to itself.
	name := func(line string) string { n, _, _ := strings.Cut(line, " "); return n }
	lines = slices.DeleteFunc(lines, func(line string) bool {
		return slices.ContainsFunc(p.config.Settings, func(other string) bool { return name(other) == name(line) })
	})
	if len(transports) > 0 {
		lines = append(lines, "transport_maps = inline:{"+strings.Join(transports, ", ")+"}")
	}
	return strings.Join(append(lines, p.config.Settings...), "\n") + "\n"
}

func (p *Instance) command(ctx context.Context, verb string) (string, error) {
	out, err := exec.CommandContext(ctx, "postfix", "-c", p.etc, verb).CombinedOutput()
	return string(out), err
}

// Stop ends postfix and every process that it started.
func (p *Instance) Stop() error {
	out, err := p.command(context.Background(), "stop")
	if err != nil {
		return fmt.Errorf("postfix stop: %w\n%s", err, out)
	}
	return nil
}

// Mailbox is a user's folder of new mail.
func (p *Instance) Mailbox(user string) string {
	name, _, _ := strings.Cut(user, "@")
	return filepath.Join(p.config.Dir, "mail", name, "Maildir", "new")
}

// Log gives the end of postfix's log.
func (p *Instance) Log() string {
	text, err := os.ReadFile(filepath.Join(p.config.Dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-8<<10):])
}

// Address is where its smtpd listens.
func (p *Instance) Address() string {
	return net.JoinHostPort("127.0.0.1", fmt.Sprint(p.config.Port))
}
