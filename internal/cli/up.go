package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/indigomail/indigo/internal/service"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/spf13/cobra"
)

// ready is what a script needs to know once everything listens: the first line of `up --json` and `serve --json`.
type ready struct {
	Data     string            `json:"data"`
	Domain   string            `json:"domain"`
	User     string            `json:"user,omitempty"`
	Password string            `json:"password,omitempty"`
	Services map[string]string `json:"services"`
}

func (app *App) upCommand() *cobra.Command {
	var listen, offset, domain, user, passwordFile, logFormat string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Make a data directory if there is none, and serve it in the foreground",
		Long: `Make a data directory if there is none (settings, database, self-signed certificate, a domain, its postmaster
and one user with a password that is printed once), then serve SMTP, submission, POP3 and IMAP until Ctrl-C, which
lets open deliveries finish. Nothing outside the directory is touched: to undo, stop it and remove the directory.

Without root the ports are the usual ones plus 2000: SMTP on 2025, IMAP on 2143.`,
		Example: `  indigo up
  indigo up --data /srv/mail --domain example.org --user alice
  indigo up --data /tmp/x --port-offset free --json`,
		Args: cobra.NoArgs,
	}
	data := app.dataFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "", "address to listen on (first run: 127.0.0.1; later: what the first run set)")
	f.StringVar(&offset, "port-offset", "", "number added to every port, or \"free\" for any free port (first run: 2000, as root 0)")
	f.StringVar(&domain, "domain", "indigo.test", "first run: the domain to make")
	f.StringVar(&user, "user", "me", "first run: local part of the first user")
	f.StringVar(&passwordFile, "password-file", "", "first run: file with the first user's password, - for standard input")
	f.StringVar(&logFormat, "log-format", "text", "text or json")
	f.BoolVar(&asJSON, "json", false, "print one JSON object when everything listens")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		portOffset, err := parseOffset(offset)
		if err != nil {
			return err
		}
		first := ready{Data: *data}
		if !service.Exists(*data) {
			n := service.NewHouse{Data: *data, Domain: domain, User: user, Hostname: "mail." + domain, Listen: listen, PortOffset: 2000}
			if os.Geteuid() == 0 {
				n.PortOffset = 0
			}
			if portOffset != nil {
				n.PortOffset = *portOffset
			}
			if n.Listen == "" {
				n.Listen = "127.0.0.1"
			}
			if passwordFile != "" {
				if n.Password, err = app.readPassword(passwordFile); err != nil {
					return err
				}
			}
			created, err := service.Create(cmd.Context(), n)
			if err != nil {
				return fmt.Errorf("making %s: %w", *data, err)
			}
			first.User, first.Password = created.User.String(), created.Password
			if passwordFile != "" && !asJSON {
				first.Password = "(as in " + passwordFile + ")"
			}
		}
		settings.RememberData(settings.FromEnvironment(), *data)
		return app.serve(cmd.Context(), service.Config{Data: *data, Listen: listen, PortOffset: portOffset}, logFormat, func(h *service.House) error {
			first.Services = h.Addresses()
			return app.announce(first, asJSON)
		})
	}
	return cmd
}

func (app *App) serveCommand() *cobra.Command {
	var listen, offset, logFormat string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "serve",
		Short:   "Serve an existing data directory in the foreground",
		Long:    "Serve an existing data directory. SIGHUP reads settings and certificate again; SIGTERM and Ctrl-C let open\nsessions and deliveries finish for the seconds of the setting DRAIN.",
		Example: "  indigo serve --data /srv/mail --log-format json",
		Args:    cobra.NoArgs,
	}
	data := app.dataFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "", "address to listen on, in place of the setting LISTEN")
	f.StringVar(&offset, "port-offset", "", "number added to every port, or \"free\", in place of the setting PORT_OFFSET")
	f.StringVar(&logFormat, "log-format", "text", "text or json")
	f.BoolVar(&asJSON, "json", false, "print one JSON object when everything listens")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		portOffset, err := parseOffset(offset)
		if err != nil {
			return err
		}
		return app.serve(cmd.Context(), service.Config{Data: *data, Listen: listen, PortOffset: portOffset}, logFormat, func(h *service.House) error {
			return app.announce(ready{Data: *data, Services: h.Addresses()}, asJSON)
		})
	}
	return cmd
}

func (app *App) reloadCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "reload",
		Short:   "Make the running instance read its settings and certificate again",
		Long:    "Make the running instance read its settings and certificate again, as SIGHUP does, and wait until they are in force. When\nanything is wrong with them, everything stays as it was, and all that is wrong is printed.",
		Example: "  indigo settings set CONCURRENCYREMOTE 50 && indigo reload",
		Args:    cobra.NoArgs,
	}
	data := app.dataFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return service.NewControl(*data).Reload(cmd.Context()) }
	return cmd
}

// parseOffset reads --port-offset; nil stands for "not given".
func parseOffset(s string) (*int, error) {
	if s == "" {
		return nil, nil
	}
	n := service.FreePorts
	if s != "free" {
		var err error
		if n, err = strconv.Atoi(s); err != nil || n < 0 || n > 64000 {
			return nil, fmt.Errorf("--port-offset %q: must be a number from 0 to 64000, or free", s)
		}
	}
	return &n, nil
}

// serve runs a data directory until a signal or the end of ctx.
func (app *App) serve(ctx context.Context, config service.Config, logFormat string, announce func(*service.House) error) error {
	log, logger, err := service.NewLog(app.Err, logFormat)
	if err != nil {
		return err
	}
	defer log.Close()
	config.Logger = logger
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	house, err := service.Open(ctx, config)
	if err != nil {
		return err
	}
	err = announce(house)
	for err == nil {
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case s := <-signals:
			if s != syscall.SIGHUP {
				return app.drain(house, logger, signals)
			}
			if fault := house.Reload(); fault != nil {
				logger.Error("reload: " + fault.Error())
			} else {
				logger.Info("reload: settings and certificate read again")
			}
		}
	}
	return errors.Join(err, app.drain(house, logger, signals))
}

// drain shuts down within the setting DRAIN; a second signal ends the waiting at once.
func (app *App) drain(house *service.House, logger *slog.Logger, signals <-chan os.Signal) error {
	limit := house.Drain()
	logger.Info(fmt.Sprintf("stopping: up to %s for open sessions and deliveries; a second signal stops at once", limit))
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		house.Shutdown(ctx)
	}()
	for {
		select {
		case <-finished:
			cancel()
			logger.Info("stopped")
			return nil
		case s := <-signals:
			if s != syscall.SIGHUP {
				cancel()
			}
		}
	}
}

func (app *App) announce(r ready, asJSON bool) error {
	if r.Domain == "" {
		status, err := service.NewControl(r.Data).Status(context.Background())
		if err != nil {
			return err
		}
		r.Domain = status.Domain
	}
	if asJSON {
		return json.NewEncoder(app.Out).Encode(r)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Indigo serves %s from %s\n\n", r.Domain, r.Data)
	for _, line := range []struct{ name, what string }{
		{"smtpd.25", "mail from other servers"},
		{"smtpd.587", "mail from users, STARTTLS"},
		{"smtpd.465", "mail from users, TLS"},
		{"pop3d.110", "POP3, STLS"},
		{"pop3d.995", "POP3, TLS"},
		{"imapd.143", "IMAP, STARTTLS"},
		{"imapd.993", "IMAP, TLS"},
	} {
		if address, ok := r.Services[line.name]; ok {
			fmt.Fprintf(&b, "  %-10s %-22s %s\n", line.name, address, line.what)
		}
	}
	if r.Password != "" {
		fmt.Fprintf(&b, "\n  user       %s\n  password   %s\n             (shown this once; `indigo user passwd` sets another)\n", r.User, r.Password)
	}
	fmt.Fprintf(&b, "\nTry it from another terminal:\n  indigo try --data %s\n  indigo explain --data %s %s\n\nCtrl-C stops it.\n", r.Data, r.Data, cmp.Or(r.User, "ADDRESS"))
	_, err := app.Out.Write([]byte(b.String()))
	return err
}
