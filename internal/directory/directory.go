// Package directory is knowledge: virtual domains and their users, in SQL tables with IndiMail's names and columns
// (wiki 3088-3103). It must not know how a password is checked or where mail is delivered beyond the directory's own
// columns.
package directory

import (
	"errors"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

// ErrNoDomain and ErrNoUser say that the database answered, and that there is none. Any other error means that the
// database could not answer: doors must then give a temporary failure, never "no such user".
var (
	ErrNoDomain = errors.New("no such domain")
	ErrNoUser   = errors.New("no such user")
	ErrExists   = errors.New("already exists")
)

// User is one row of the table indimail.
type User struct {
	Name     string // pw_name, the local part in lower case
	Domain   string // pw_domain, in lower case
	Password string // pw_passwd, the stored form, for example "$argon2id$…"
	UID      int    // pw_uid: the flags of IndiMail's vlimits bits, 0 for an ordinary user
	GID      int    // pw_gid: likewise
	Gecos    string // pw_gecos, the person's name
	Dir      string // pw_dir, the user's home; the mail is in Dir/Maildir
	Quota    string // pw_shell, the Maildir++ quota, "NOQUOTA" for none
	Scram    string // scram, stored SCRAM forms, "" for none
	Changed  time.Time
	// Inactive says that the row is in indibak: only InactiveUser and what is built on it give such a one.
	Inactive bool
}

// Address gives name@domain.
func (u User) Address() addr.Address { return addr.Address{Local: u.Name, Domain: u.Domain} }

// Domain is a virtual domain.
type Domain struct {
	Name string
	Dir  string
}
