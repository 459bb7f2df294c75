package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/indigomail/indigo/internal/auth"
)

// TestInstallHelper: root runs the helper for PAM only when nobody else can change it, so install makes it root's; in an image it has no
// business with this host's.
func TestInstallHelper(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("INDIGO_REQUIRE_PEERS") != "" {
			t.Fatal("only root can give files away, and INDIGO_REQUIRE_PEERS forbids skipping")
		}
		t.Skip("only root can give files away")
	}
	helper := auth.PAM{Helper: filepath.Join(t.TempDir(), "indigo-pam")}
	var out bytes.Buffer
	in := installation{app: &App{Out: &out}, root: "/"}
	if err := in.giveHelper(helper.Helper); err != nil || out.Len() > 0 {
		t.Errorf("none: %v %q", err, &out)
	}
	if err := os.WriteFile(helper.Helper, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(helper.Helper, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		in   installation
		runs bool
	}{
		{installation{app: in.app, root: "/", dry: true}, false}, {installation{app: in.app, root: "/image"}, false}, {in, true}, {in, true},
	} {
		if err := c.in.giveHelper(helper.Helper); err != nil {
			t.Error(err)
		}
		if err := helper.Installed(); (err == nil) != c.runs {
			t.Errorf("root %s, dry %t: %v", c.in.root, c.in.dry, err)
		}
	}
	if n := strings.Count(out.String(), "indigo-pam root's"); n != 2 {
		t.Errorf("%q", &out)
	}
}
