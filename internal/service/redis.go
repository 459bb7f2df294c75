package service

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/redis"
	"github.com/indigomail/indigo/internal/settings"
)

const (
	// changedChannel is where hosts tell each other that the directory has changed.
	changedChannel = "directory"
	// announceTime bounds how long a command waits at its end for others to be told of what it changed: they look by themselves too.
	announceTime = 500 * time.Millisecond
	// maxAuthorities bounds the file of REDIS_CA.
	maxAuthorities = 1 << 20
)

// redisOptions gives where the server is that hosts share; the problem is one of the settings' files.
func redisOptions(data string, snapshot *settings.Snapshot) (o redis.Options, wrong *settings.Problem) {
	v := snapshot.View("all")
	fault := func(s *settings.Setting, err error) (redis.Options, *settings.Problem) {
		source := v.Source(s)
		return redis.Options{}, &settings.Problem{File: cmp.Or(source.File, "control/"+s.File), Line: max(1, source.Line), Text: s.Name + ": " + err.Error()}
	}
	server, err := settings.Redis(settings.RedisURL.Get(v))
	if err != nil {
		return fault(settings.RedisURL.Setting, err)
	}
	if server.Address == "" {
		return o, nil
	}
	if file := v.Source(settings.RedisURL.Setting).File; server.Password != "" && file != "" {
		path := file
		if !filepath.IsAbs(path) {
			path = filepath.Join(data, file)
		}
		if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o027 != 0 {
			return fault(settings.RedisURL.Setting, fmt.Errorf("others may read or change the password in it: `chmod 600 %s`", path))
		}
	}
	o = redis.Options{Network: server.Network, Address: server.Address, User: server.User, Password: server.Password, DB: server.DB, TLS: server.TLS, Prefix: settings.RedisPrefix.Get(v)}
	if file := settings.RedisCA.Get(v); o.TLS && file != "" {
		info, err := os.Stat(file)
		if err == nil && (!info.Mode().IsRegular() || info.Size() > maxAuthorities) {
			err = fmt.Errorf("%s is no file of certificates", file)
		}
		var text []byte
		if err == nil {
			text, err = os.ReadFile(file)
		}
		if err != nil {
			return fault(settings.RedisCA.Setting, err)
		}
		o.CA = string(text)
	}
	if err := o.Check(); err != nil {
		return fault(settings.RedisCA.Setting, err)
	}
	return o, nil
}

// loopback tells whether an address is this host's own.
func loopback(address string) bool {
	host, _, _ := net.SplitHostPort(address)
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// newRedis makes what hosts share; it is down until it is started, which needs the directory and the guard.
func (h *House) newRedis() *redis.Link {
	// What is wrong with the options was told by check.
	o, _ := redisOptions(h.config.Data, h.settings.Load())
	return redis.New(redis.Config{
		Dial: new(net.Dialer).DialContext, Now: time.Now, Logger: h.log, Host: h.hostname(), Scripts: auth.SharedScripts(),
		Joined: func(ctx context.Context, c *redis.Conn, again bool) error { return h.guard.Join(ctx, c, again) },
		Heard: map[string]func(string){
			auth.ClearedChannel: func(text string) { h.guard.Cleared(text) },
			auth.LockedChannel:  func(text string) { h.guard.Locked(text) },
			changedChannel:      func(string) { h.directory.Recheck() },
		},
		Changed: func(up bool) {
			h.guard.SharedChanged(up)
			h.directory.OthersTell(up)
		},
	}, o)
}

// openDirectory opens the directory, whose changes are told to the other hosts.
func (h *House) openDirectory(ctx context.Context) (*directory.Store, error) {
	config, err := DirectoryConfig(h.config.Data)
	if err != nil {
		return nil, err
	}
	h.redis = h.newRedis()
	config.Who, config.Listen = "indigo", true
	config.Changed = func() { h.redis.Announce(changedChannel, h.hostname()) }
	return openGuarded(ctx, h.config.Data, config)
}

// announceByRedis has what a command changes told to the hosts that share REDIS_URL, by a connection that is made with the first change.
// Where that does not work they see it by looking.
func announceByRedis(data string, config *directory.Config) {
	snapshot, _ := settings.Inspect(data)
	o, wrong := redisOptions(data, snapshot)
	if wrong != nil || o.Address == "" {
		return
	}
	link := redis.New(redis.Config{Dial: new(net.Dialer).DialContext, Now: time.Now, Logger: slog.New(slog.DiscardHandler)}, o)
	var start sync.Once
	config.Changed = func() {
		start.Do(link.Start)
		link.Announce(changedChannel, settings.Me.Get(snapshot.View("all")))
	}
	config.Closing = func() {
		ctx, cancel := context.WithTimeout(context.Background(), announceTime)
		defer cancel()
		link.Flush(ctx)
		link.Close()
	}
}
