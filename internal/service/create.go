package service

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/tlsx"
)

const databaseName = "indimail.db"

// NewHouse is what a first run makes.
type NewHouse struct {
	Data   string
	Domain string
	// User is the local part of the first user; Password is made up when empty.
	User, Password string
	// Hostname is the setting ME.
	Hostname   string
	Listen     string
	PortOffset int
}

// Created tells what Create made.
type Created struct {
	User addr.Address
	// Password is "" for a user who was in a database elsewhere already and keeps the one that is set.
	Password string
}

// Exists tells whether data is a data directory already.
func Exists(data string) bool {
	_, err := os.Stat(filepath.Join(data, "control", "me"))
	return err == nil
}

// Create makes a data directory: settings, database, certificate, domain, postmaster and one user. It refuses one that
// exists. control/me is written last, so that a Create that was cut short is simply done again.
func Create(ctx context.Context, n NewHouse) (*Created, error) {
	if Exists(n.Data) {
		return nil, fmt.Errorf("%s holds an Indigo already", n.Data)
	}
	if err := addr.ValidDomain(n.Domain); err != nil {
		return nil, fmt.Errorf("--domain %q: %w", n.Domain, err)
	}
	for _, dir := range []string{"control", "services", "queue", "domains", "certs", "trace", "run"} {
		if err := os.MkdirAll(filepath.Join(n.Data, dir), 0o700); err != nil {
			return nil, err
		}
	}
	hosts := []string{n.Hostname, n.Domain, "localhost", "127.0.0.1", "::1"}
	if err := tlsx.SelfSigned(filepath.Join(n.Data, "certs", "servercert.pem"), hosts, time.Now()); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	store, err := openDirectory(ctx, n.Data, "indigo", false)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	domain := addr.FoldDomain(n.Domain)
	if err := store.AddDomain(ctx, domain); err != nil && !errors.Is(err, directory.ErrExists) {
		return nil, err
	}
	created := &Created{User: addr.Address{Local: strings.ToLower(n.User), Domain: domain}, Password: n.Password}
	if created.Password == "" {
		created.Password = rand.Text()
	}
	config, err := DirectoryConfig(n.Data)
	if err != nil {
		return nil, err
	}
	// postmaster's password is known to nobody until `indigo user passwd` sets one.
	for name, password := range map[string]string{"postmaster": rand.Text(), created.User.Local: created.Password} {
		hash, err := auth.HashPassword(password)
		if err != nil {
			return nil, fmt.Errorf("password of %s: %w", name, err)
		}
		err = store.AddUser(ctx, directory.NewUser{Name: name, Domain: domain, Password: hash, Gecos: name})
		there := errors.Is(err, directory.ErrExists)
		if there && config.DSN != "" {
			// Others use that database, and its users their passwords.
			if name == created.User.Local {
				created.Password = ""
			}
			continue
		}
		if there {
			err = store.SetPassword(ctx, addr.Address{Local: name, Domain: domain}, hash, "")
		}
		if err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
	}
	for _, s := range []struct{ name, value string }{
		{"DEFAULT_DOMAIN", domain},
		{"LISTEN", n.Listen},
		{"PORT_OFFSET", fmt.Sprint(n.PortOffset)},
		{"ME", n.Hostname},
	} {
		if err := settings.Set(n.Data, s.name, "", s.value); err != nil {
			return nil, err
		}
	}
	return created, nil
}

// Complete makes what a data directory lacks that was put together by hand, for example around IndiMail's control
// directory: directories, and a self-signed certificate when there is none where the settings say.
func Complete(data string) error {
	for _, dir := range []string{"queue", "domains", "trace", "run"} {
		if err := os.MkdirAll(filepath.Join(data, dir), 0o700); err != nil {
			return err
		}
	}
	snapshot, err := settings.Load(data)
	if err != nil {
		return err
	}
	all := snapshot.View("all")
	path := certificatePath(data, all)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return tlsx.SelfSigned(path, []string{settings.Me.Get(all), "localhost", "127.0.0.1", "::1"}, time.Now())
}

// OpenDirectory opens the directory of a data directory that exists, for commands; who is written down with what it changes.
func OpenDirectory(ctx context.Context, data, who string) (*directory.Store, error) {
	if !Exists(data) {
		return nil, fmt.Errorf("%s is not an Indigo data directory: make one with `indigo up --data %s`", data, data)
	}
	return openDirectory(ctx, data, who, false)
}

func openDirectory(ctx context.Context, data, who string, listen bool) (*directory.Store, error) {
	config, err := DirectoryConfig(data)
	if err != nil {
		return nil, err
	}
	config.Who = who
	config.Listen = listen
	if !listen {
		announceByRedis(data, &config)
	}
	return openGuarded(ctx, data, config)
}

// openGuarded opens a directory that keeps passwords as PASSWORD_SECRETS says.
func openGuarded(ctx context.Context, data string, config directory.Config) (*directory.Store, error) {
	snapshot, _ := settings.Inspect(data)
	secrets := &auth.Secrets{Keys: PasswordKeys(data, snapshot.View("all")), Clear: func() (bool, error) { return secretsInClear(data) }}
	config.Secrets = secrets
	store, err := directory.Open(ctx, config)
	if err == nil {
		secrets.Used = store.Sealed
	}
	return store, err
}

// PasswordKeys gives the keys of PASSWORD_KEYS.
func PasswordKeys(data string, all *settings.View) *auth.Keyring {
	file := cmp.Or(settings.PasswordKeys.Get(all), "password.keys")
	if !filepath.IsAbs(file) {
		file = filepath.Join(data, file)
	}
	return auth.NewKeyring(data, file)
}

// secretsInClear reads PASSWORD_SECRETS at each use: a command may have changed it.
func secretsInClear(data string) (bool, error) {
	snapshot, problems := settings.Inspect(data)
	for _, p := range problems {
		if strings.HasPrefix(filepath.Base(p.File), settings.PasswordKept.File) {
			return false, fmt.Errorf("settings: %s", p)
		}
	}
	return settings.PasswordKept.Get(snapshot.View("all")) == "clear", nil
}

// OpenVerifier opens the directory of a data directory and what checks passwords with it as the running instance does, for commands; no stored form is
// renewed. With asks it is a question and no login: who is marked inactive stays so. Close the verifier before the directory.
func OpenVerifier(ctx context.Context, data, who string, asks bool) (*directory.Store, *auth.Password, error) {
	store, err := OpenDirectory(ctx, data, who)
	if err != nil {
		return nil, nil, err
	}
	snapshot, _ := settings.Inspect(data)
	var users auth.Users = store
	if asks {
		users = question{store}
	}
	verifier, err := newVerifier(data, snapshot.View("all"), func() string { return defaultDomain(snapshot.View("all")) }, users, store, nil, nil, nil)
	if err != nil {
		return nil, nil, errors.Join(err, store.Close())
	}
	return store, verifier, nil
}

// question is a directory that nobody logs in to.
type question struct{ *directory.Store }

// ActivateUser does nothing.
func (question) ActivateUser(context.Context, addr.Address) error { return nil }

func newVerifier(data string, all *settings.View, domain func() string, users auth.Users, store *directory.Store, saw func(directory.User, auth.Attempt), renew func() (auth.Form, bool), logger *slog.Logger) (*auth.Password, error) {
	return auth.NewVerifier(auth.Config{
		Directory: users, Keys: PasswordKeys(data, all), Denied: store.Denied, Saw: saw, DomainOf: store.DomainOfIP, Renew: renew, DefaultDomain: domain, Now: time.Now, Logger: logger,
	})
}

// defaultDomain completes a user's name without a domain.
func defaultDomain(all *settings.View) string {
	return cmp.Or(settings.DefaultDomain.Get(all), settings.Me.Get(all))
}

// DirectoryConfig gives where the directory's database is: what DIRECTORY_DSN names, or host.mysql, or else the data
// directory's own. Settings that are malformed elsewhere do not matter here.
func DirectoryConfig(data string) (directory.Config, error) {
	// The homes' paths are kept, and used by processes that work elsewhere.
	data, err := filepath.Abs(data)
	if err != nil {
		return directory.Config{}, err
	}
	config := directory.Config{Path: filepath.Join(data, databaseName), MailRoot: filepath.Join(data, "domains"), Now: time.Now}
	snapshot, _ := settings.Inspect(data)
	all := snapshot.View("all")
	config.HardQuota = cmp.Or(settings.FromEnvironment().Get(settings.HardQuota.Name), settings.HardQuota.Get(all))
	config.BasePath, config.Host = settings.BasePath.Get(all), settings.Me.Get(all)
	if config.DSN = settings.DirectoryDSN.Get(all); config.DSN != "" {
		return config, nil
	}
	if host := settings.HostMySQL.Get(all); len(host) > 0 {
		dsn, err := directory.HostMySQL(host[0], settings.MySQLDatabase.Get(all))
		if err != nil {
			return config, fmt.Errorf("%s: %w", all.Source(settings.HostMySQL.Setting), err)
		}
		config.DSN = dsn
	}
	return config, nil
}
