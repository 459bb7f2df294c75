package directory

import (
	"database/sql"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
)

var most = flag.Int("most", 100_000, "users of the biggest domain of BenchmarkDirectory; a million takes some minutes")

// fill puts users u0000000… into example.org with statements of 500 rows, and makes no homes.
func fill(b *testing.B, s *Store, from, to int) {
	b.Helper()
	const rows = 500
	err := s.transaction(b.Context(), func(tx *sql.Tx) error {
		for ; from < to; from += rows {
			n := min(rows, to-from)
			var values []any
			for i := range n {
				name := fmt.Sprintf("u%07d", from+i)
				values = append(values, name, "example.org", "$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1", 0, 0, "Somebody",
					filepath.Join(s.config.MailRoot, "example.org", name), "NOQUOTA")
			}
			_, err := tx.ExecContext(b.Context(), s.engine.rebind("INSERT INTO indimail (pw_name, pw_domain, pw_passwd, pw_uid, pw_gid, pw_gecos, pw_dir, pw_shell) VALUES "+
				strings.TrimSuffix(strings.Repeat("(?, ?, ?, ?, ?, ?, ?, ?), ", n), ", ")), values...)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkDirectory gives the curve over the size of a domain: a look-up out of the cache and one past it, a page of 1,000 users from the
// middle, and a new user with the home. A look-up that asks costs a round trip, and with SQLite what its cursor does; the curve is flat,
// because each statement goes by the primary key.
func BenchmarkDirectory(b *testing.B) {
	for _, kind := range []string{"sqlite", "mariadb", "postgres"} {
		b.Run(kind, func(b *testing.B) {
			dsn := ""
			switch kind {
			case "mariadb":
				db := server(b, kind)
				dsn = "mysql://indimail:" + db.Password + "@localhost/indimail?socket=" + db.Socket
			case "postgres":
				dsn = server(b, kind).DSN()
			}
			s := openOn(b, dsn, b.TempDir(), time.Now)
			ctx := b.Context()
			if err := s.AddDomain(ctx, "example.org"); err != nil {
				b.Fatal(err)
			}
			have, added := 0, 0
			for _, users := range []int{1000, 10_000, 100_000, 1_000_000} {
				if users > *most {
					break
				}
				fill(b, s, have, users)
				have = users
				random := func() addr.Address {
					return addr.Address{Local: fmt.Sprintf("u%07d", rand.IntN(users)), Domain: "example.org"}
				}
				find := func(b *testing.B, a addr.Address) {
					if _, err := s.User(ctx, a); err != nil {
						b.Fatal(err)
					}
				}
				b.Run(fmt.Sprintf("%d/cached", users), func(b *testing.B) {
					a := random()
					for b.Loop() {
						find(b, a)
					}
				})
				b.Run(fmt.Sprintf("%d/asked", users), func(b *testing.B) {
					for b.Loop() {
						s.cache.clear()
						find(b, random())
					}
				})
				b.Run(fmt.Sprintf("%d/page", users), func(b *testing.B) {
					for b.Loop() {
						page, err := s.Users(ctx, "example.org", fmt.Sprintf("u%07d", rand.IntN(users-999)), 999)
						if err != nil || len(page) < 998 {
							b.Fatal(len(page), err)
						}
					}
				})
				b.Run(fmt.Sprintf("%d/add", users), func(b *testing.B) {
					for b.Loop() {
						added++
						if err := s.AddUser(ctx, NewUser{Name: fmt.Sprintf("v%07d", added), Domain: "example.org"}); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		})
	}
}
