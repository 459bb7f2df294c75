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
	var listen, offset, domain, user, passwordFile, logFormat, runAs string
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
	f.StringVar(&runAs, "run-as", "", "first run, as root: user or user:group that the services run as (the setting RUNAS)")
	f.StringVar(&logFormat, "log-format", "", logFormats)
	f.BoolVar(&asJSON, "json", false, "print one JSON object when everything listens")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		portOffset, err := parseOffset(offset)
		if err != nil {
			return err
		}
		first := ready{Data: *data}
		child, err := service.NewChild(settings.FromEnvironment())
		if err != nil {
			return err
		}
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
			var account service.Account
			if runAs != "" {
				if os.Geteuid() != 0 {
					return errors.New("--run-as: only root can run services as another user")
				}
				if account, err = service.FindAccount(runAs); err != nil {
					return err
				}
			}
			created, err := service.Create(cmd.Context(), n)
			if err != nil {
				return fmt.Errorf("making %s: %w", *data, err)
			}
			if runAs != "" {
				if err := settings.Set(*data, settings.RunAs.Name, "", runAs); err != nil {
					return err
				}
				if err := service.GiveTo(*data, account); err != nil {
					return fmt.Errorf("making %s: %w", *data, err)
				}
			}
			first.User, first.Password = created.User.String(), created.Password
			if passwordFile != "" && !asJSON && created.Password != "" {
				first.Password = "(as in " + passwordFile + ")"
			}
		}
		if child == nil {
			// Malformed settings are told by the start, all at once.
			if err := service.Complete(*data); err != nil && !errors.As(err, new(settings.Problems)) {
				return err
			}
			settings.RememberData(settings.FromEnvironment(), *data)
		}
		return app.serve(cmd.Context(), service.Config{Data: *data, Listen: listen, PortOffset: portOffset}, child, first, logFormat, func(h *service.House, first ready) error {
			first.Services = h.Addresses()
			return app.announce(first, asJSON)
		})
	}
	return cmd
}

const logFormats = "text, json, plain (without the time), or journal; journal under systemd, or else text"

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
	f.StringVar(&logFormat, "log-format", "", logFormats)
	f.BoolVar(&asJSON, "json", false, "print one JSON object when everything listens")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		portOffset, err := parseOffset(offset)
		if err != nil {
			return err
		}
		child, err := service.NewChild(settings.FromEnvironment())
		if err != nil {
			return err
		}
		return app.serve(cmd.Context(), service.Config{Data: *data, Listen: listen, PortOffset: portOffset}, child, ready{Data: *data}, logFormat, func(h *service.House, first ready) error {
			first.Services = h.Addresses()
			return app.announce(first, asJSON)
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

// serve runs a data directory until a signal or the end of ctx. As root with the setting RUNAS, and as process 1, it is the
// parent of the process that does so. first is what only this process knows, for announce.
func (app *App) serve(ctx context.Context, config service.Config, child *service.Child, first ready, logFormat string, announce func(*service.House, ready) error) error {
	if logFormat == "" {
		logFormat = "text"
		if settings.FromEnvironment().Get("JOURNAL_STREAM") != "" {
			logFormat = "journal"
		}
	}
	log, logger, err := service.NewLog(app.Err, logFormat)
	if err != nil {
		return err
	}
	defer log.Close()
	config.Logger, config.Log = logger, log
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	manager, err := service.NewManager()
	if err != nil {
		return err
	}
	config.Listener = manager.Listener
	if child == nil {
		parent := service.Parent{Data: config.Data, PortOffset: config.PortOffset, Activated: manager.Listener, Logger: logger, Signals: signals}
		if err := parent.Configure(); err != nil {
			return err
		}
		if parent.Needed() {
			if parent.First, err = json.Marshal(first); err != nil {
				return err
			}
			code, err := parent.Run(ctx)
			if err == nil && code != 0 {
				err = exitCode(code)
			}
			return err
		}
		if os.Geteuid() == 0 {
			logger.Warn("services run as root, which programs of aliases do not: set RUNAS to a user of their own (docs/services.md)")
		}
	} else {
		config.Listener, config.Child = child.Listen, child
		known, err := child.First()
		if err == nil {
			err = json.Unmarshal(known, &first)
		}
		if err != nil {
			return err
		}
		if snapshot, err := settings.Load(config.Data); err == nil {
			if err := service.Harden(config.Data, snapshot.View("all"), logger); err != nil {
				return err
			}
		}
	}
	house, err := service.Open(ctx, config)
	if err != nil {
		return err
	}
	err = announce(house, first)
	manager.Tell("READY=1")
	watching, unwatch := context.WithCancel(ctx)
	defer unwatch()
	go manager.Watch(watching, house.Alive)
	for err == nil {
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case s := <-signals:
			if s != syscall.SIGHUP {
				manager.Tell("STOPPING=1")
				return app.drain(house, logger, signals)
			}
			manager.Tell("RELOADING=1")
			if fault := house.Reload(); fault != nil {
				logger.Error("reload: " + fault.Error())
			} else {
				logger.Info("reload: settings and certificate read again")
			}
			manager.Tell("READY=1")
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
	switch {
	case r.Password == "" && r.User != "":
		fmt.Fprintf(&b, "\n  user       %s, who was there already and keeps the password that is set\n             (`indigo user passwd` sets another)\n", r.User)
	case r.Password != "":
		fmt.Fprintf(&b, "\n  user       %s\n  password   %s\n             (shown this once; `indigo user passwd` sets another)\n", r.User, r.Password)
	}
	fmt.Fprintf(&b, "\nTry it from another terminal:\n  indigo try --data %s\n  indigo explain --data %s %s\n\nCtrl-C stops it.\n", r.Data, r.Data, cmp.Or(r.User, "ADDRESS"))
	_, err := app.Out.Write([]byte(b.String()))
	return err
}
