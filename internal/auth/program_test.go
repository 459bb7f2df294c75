package auth

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/mailerr"
)

func TestProgram(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// reply stands for Indigo's own program.
	reply := script("reply", `[ "$1" = checkpassword-reply ] || exit 9
printf '%s\0%s\0' "$USER" "$HOME" >&4
`)
	checks := `given=$(tr '\0' '|' <&3)
[ "$given" = 'ann@d.example|secret||' ] || [ "$given" = 'ann|secret||' ] || exit 1
`
	for _, c := range []struct {
		name, text, user, password string
		address, home              string
		code                       int
	}{
		{"lets in", checks + `USER=ann@d.example HOME=/mail/ann; export USER HOME; exec "$@"`, "ann@d.example", "secret", "ann@d.example", "/mail/ann", 0},
		{"completes the name", checks + `USER=ann HOME=/mail/ann; export USER HOME; exec "$@"`, "ann", "secret", "ann@default.example", "/mail/ann", 0},
		{"only exits", checks, "ann", "secret", "ann@default.example", "", 0},
		{"sees its environment", `[ "$SERVICE $TCPREMOTEIP $NATIVE_PASSWORD $INDIGO_COUNTED $OWN" = "imap 192.0.2.1 1 1 value" ] || exit 111; cat <&3 >/dev/null; exit 0`, "ann", "secret", "ann@default.example", "", 0},
		{"refuses", checks, "ann", "wrong", "", "", 535},
		{"knows no user", "exit 3", "ann", "secret", "", "", 535},
		{"is misused", "exit 2", "ann", "secret", "", "", 454},
		{"cannot say", "echo the database is down >&2; exit 111", "ann", "secret", "", "", 454},
		{"dies", "kill -9 $$", "ann", "secret", "", "", 454},
		{"hangs", "sleep 60", "ann", "secret", "", "", 454},
		{"leaves a child behind", checks + "sleep 60 & exit 0", "ann", "secret", "", "", 454},
		{"talks too much", `cat <&3 >/dev/null; head -c 100000 /dev/zero >&4; exit 0`, "ann", "secret", "", "", 454},
		{"gives no address", `cat <&3 >/dev/null; printf 'a b@@\0/\0' >&4; exit 0`, "ann", "secret", "", "", 454},
		{"NUL in the name", checks, "ann\x00secret", "x", "", "", 535},
		{"empty password", "exit 0", "ann", "", "", "", 535},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &Program{
				Path: script("program", c.text), Self: reply, Environment: []string{"PATH=" + os.Getenv("PATH"), "OWN=value"}, DefaultDomain: "default.example",
				Time: 2 * time.Second, Running: make(chan struct{}, 1),
			}
			identity, err := p.Verify(t.Context(), Attempt{User: c.user, Password: c.password, Service: "imapd.143", Client: netip.MustParseAddr("192.0.2.1")})
			if c.code == 0 {
				if err != nil || identity.Address.String() != c.address || identity.Home != c.home {
					t.Errorf("%v, %+v", err, identity)
				}
				return
			}
			if err == nil || mailerr.From(err).Code != c.code {
				t.Errorf("%v, %+v", err, identity)
			}
		})
	}
}

type said struct {
	identity Identity
	err      error
}

func (s said) Verify(context.Context, Attempt) (Identity, error) { return s.identity, s.err }

func TestChain(t *testing.T) {
	in := said{identity: Identity{Home: "/in"}}
	wrong, down := said{err: Refused(errors.New("wrong"))}, said{err: Unavailable(errors.New("down"))}
	off := said{err: errDenied.Because(errSwitchedOff)}
	for _, c := range []struct {
		name  string
		chain Chain
		code  int
	}{
		{"empty", nil, 454}, {"one", Chain{in}, 0}, {"second", Chain{wrong, in}, 0}, {"all wrong", Chain{wrong, wrong}, 535}, {"down, then in", Chain{down, in}, 0},
		{"down, then wrong", Chain{down, wrong}, 454}, {"wrong, then down", Chain{wrong, down}, 454}, {"switched off, then in", Chain{off, in}, 535},
	} {
		identity, err := c.chain.Verify(t.Context(), Attempt{})
		if c.code == 0 && (err != nil || identity.Home != "/in") || c.code != 0 && (err == nil || mailerr.From(err).Code != c.code) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// The cause says what each of them said, not the last alone.
	_, err := Chain{said{err: Refused(errors.New("bad password"))}}.Verify(t.Context(), Attempt{})
	if err == nil || !strings.HasSuffix(err.Error(), ": bad password") {
		t.Errorf("one cause: %v", err)
	}
	_, err = Chain{said{err: Refused(errors.New("bad password"))}, said{err: errFailed}, said{err: Refused(directory.ErrNoUser)}}.Verify(t.Context(), Attempt{})
	if !errors.Is(err, directory.ErrNoUser) || !strings.HasSuffix(err.Error(), ": bad password; "+errFailed.Error()+"; no such user") {
		t.Errorf("three causes: %v", err)
	}
}
