package service

import (
	"fmt"
	"os/user"
	"strconv"
	"strings"
)

// Account is a user of the host with its groups, as numbers.
type Account struct {
	UID, GID uint32
	Groups   []uint32
	Home     string
}

// FindAccount finds user or user:group, by name or number, in the host's files.
func FindAccount(name string) (Account, error) {
	userName, group, hasGroup := strings.Cut(name, ":")
	number := func(s string) (uint32, bool) {
		n, err := strconv.ParseUint(s, 10, 32)
		return uint32(n), err == nil
	}
	var a Account
	u, err := user.Lookup(userName)
	if err != nil {
		u, err = user.LookupId(userName)
	}
	if err == nil {
		a.UID, _ = number(u.Uid)
		a.GID, _ = number(u.Gid)
		a.Home = u.HomeDir
		if groups, err := u.GroupIds(); err == nil {
			for _, g := range groups {
				if n, ok := number(g); ok {
					a.Groups = append(a.Groups, n)
				}
			}
		}
	} else if n, ok := number(userName); ok {
		a.UID, a.GID = n, n
	} else {
		return a, fmt.Errorf("there is no user %s on this host: `indigo install --systemd` makes one", userName)
	}
	if hasGroup {
		g, err := user.LookupGroup(group)
		if err == nil {
			a.GID, _ = number(g.Gid)
		} else if n, ok := number(group); ok {
			a.GID = n
		} else {
			return a, fmt.Errorf("there is no group %s on this host", group)
		}
	}
	return a, nil
}
