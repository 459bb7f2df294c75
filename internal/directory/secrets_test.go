package directory_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/test/database"
)

// guardedStore is a directory that keeps passwords encrypted, and what it needs.
type guardedStore struct {
	*directory.Store
	t      *testing.T
	config directory.Config
	keys   *auth.Keyring
	clear  bool
}

func openGuarded(t *testing.T, dsn string) *guardedStore {
	t.Helper()
	dir := t.TempDir()
	g := &guardedStore{t: t, keys: auth.NewKeyring(dir, filepath.Join(dir, "keys"))}
	secrets := &auth.Secrets{Keys: g.keys, Clear: func() (bool, error) { return g.clear, nil }}
	g.config = directory.Config{DSN: dsn, Path: filepath.Join(dir, "db"), MailRoot: filepath.Join(dir, "domains"), Now: time.Now, Secrets: secrets}
	var err error
	if g.Store, err = directory.Open(t.Context(), g.config); err != nil {
		t.Fatal(err)
	}
	secrets.Used = g.Sealed
	t.Cleanup(func() { g.Close() })
	return g
}

func (g *guardedStore) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

// keeps checks that a user's password is kept encrypted, and can be decrypted.
func (g *guardedStore) keeps(address, want string) {
	g.t.Helper()
	a, err := addr.Parse(address)
	g.must(err)
	u, err := g.User(g.t.Context(), a)
	g.must(err)
	if strings.Contains(u.Password+u.Scram, want) || !strings.Contains(u.Scram, "{SEALED}1,") {
		g.t.Fatalf("%s has %q %q", address, u.Password, u.Scram)
	}
	_, scram, err := g.keys.Decrypt(u.Address(), u.Password, u.Scram)
	if err != nil || scram != "{CRAM}"+want && !strings.HasSuffix(scram, ":"+want) {
		g.t.Fatalf("%s: %q %v", address, scram, err)
	}
}

// TestKeptPasswords: no way into the directory leaves a kept password in clear, and none out of an address loses it.
func TestKeptPasswords(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { testKeptPasswords(t, "") })
	for _, kind := range []string{"mariadb", "postgres"} {
		t.Run(kind, func(t *testing.T) { testKeptPasswords(t, databaseServer(t, kind)) })
	}
}

func databaseServer(t *testing.T, kind string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := database.Start(ctx, kind)
	if errors.Is(err, database.ErrMissing) && os.Getenv("INDIGO_REQUIRE_PEERS") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Remove)
	return s.DSN()
}

func testKeptPasswords(t *testing.T, dsn string) {
	const hash = "$5$edYmuYDig/cqixyh$0HWa5eEOn2MH2TuLfy51YsRPkcuEFWbRPqGs6m3/uS0"
	const keys = "{SCRAM-SHA-256}4096,fIne4ExD9h3vufYZ,k9LD3a/7yk3u7o5tVPTRR4IYHqgd7khpwbKLzvNGnos=,LCuD6/yMc5cjmCMrBAj+es27icwu5eoI5Drqmh4P+mQ="
	const salted = ":a8bac1a24c7aa2725630c9ab6813a631b366c79c6bc959bf344d3af8e685a375:supersecret"
	g := openGuarded(t, dsn)
	ctx := t.Context()
	at := func(local, domain string) addr.Address { return addr.Address{Local: local, Domain: domain} }
	g.must(g.AddDomain(ctx, "d.test"))
	g.must(g.AddAliasDomain(ctx, "alias.test", "d.test"))
	if used, err := g.Sealed(ctx); err != nil || used {
		t.Fatal(used, err)
	}
	// Every way in, by other spellings and by the domain's other name too.
	g.must(g.AddUser(ctx, directory.NewUser{Name: "Alice", Domain: "Alias.test", Password: hash, Scram: "{CRAM}pass3"}))
	g.keeps("alice@d.test", "pass3")
	g.must(g.AddUser(ctx, directory.NewUser{Name: "bob", Domain: "d.test", Password: "{CRAM}pass4," + hash}))
	g.keeps("bob@d.test", "pass4")
	g.must(g.SetPassword(ctx, at("BOB", "alias.test"), hash, keys+salted))
	g.keeps("bob@d.test", "supersecret")
	g.must(g.UpdateUser(ctx, directory.NewUser{Name: "bob", Domain: "alias.test", Scram: "{CRAM}pass5"}))
	g.keeps("bob@d.test", "pass5")
	u, err := g.User(ctx, at("bob", "d.test"))
	g.must(err)
	if renewed, err := g.RenewPassword(ctx, u, hash, keys+salted, "renewed"); err != nil || !renewed {
		t.Fatal(renewed, err)
	}
	g.keeps("bob@d.test", "supersecret")
	forms, err := g.Forms(ctx)
	if used, usedErr := g.Sealed(ctx); err != nil || !forms.Clear || len(forms.SCRAM) != 1 || usedErr != nil || !used {
		t.Errorf("%+v %v %v %v", forms, err, used, usedErr)
	}

	// Other names. An app password goes along.
	g.must(g.AddAppPassword(ctx, at("alice", "d.test"), directory.AppPassword{Name: "phone", Hash: "x"}))
	g.must(g.RenameUser(ctx, at("alice", "d.test"), at("anna", "d.test")))
	g.keeps("anna@d.test", "pass3")
	g.must(g.AddDomain(ctx, "e.test"))
	g.must(g.RenameUser(ctx, at("bob", "d.test"), at("bob", "e.test")))
	g.keeps("bob@e.test", "supersecret")
	g.must(g.RenameDomain(ctx, "d.test", "f.test"))
	g.keeps("anna@f.test", "pass3")
	g.keeps("bob@e.test", "supersecret")
	if apps, err := g.AppPasswords(ctx, at("anna", "f.test")); err != nil || len(apps) != 1 {
		t.Error(apps, err)
	}
	// Another home, and the trash.
	if _, _, err := g.MoveUser(ctx, at("anna", "f.test"), filepath.Join(g.config.MailRoot, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	g.keeps("anna@f.test", "pass3")
	_, err = g.RemoveUser(ctx, at("anna", "f.test"))
	g.must(err)
	inTrash := 0
	g.must(g.SealedForms(ctx, func(form string) { inTrash += len(auth.SealingKeys(form)) }))
	if inTrash != 2 {
		t.Errorf("%d are encrypted, one of them in the trash", inTrash)
	}
	before, err := g.keys.IDs()
	g.must(err)
	_, err = g.keys.Rotate()
	g.must(err)
	trash, err := g.TrashContents()
	if err != nil || len(trash) != 1 {
		t.Fatal(trash, err)
	}
	g.must(g.RestoreTrash(ctx, trash[0]))
	g.keeps("anna@f.test", "pass3")

	// Without the key nothing is renamed, and all is as before.
	file := g.keys.File()
	g.must(os.Rename(file, file+".away"))
	_, err = auth.NewKeyring(filepath.Dir(file), file).IDs()
	g.must(err)
	lost := openGuardedWith(t, g, auth.NewKeyring(filepath.Dir(file), file))
	if err := lost.RenameUser(ctx, at("anna", "f.test"), at("ann", "f.test")); !errors.Is(err, auth.ErrKey) {
		t.Errorf("renamed without a key: %v", err)
	}
	if err := lost.RenameDomain(ctx, "f.test", "g.test"); !errors.Is(err, auth.ErrKey) {
		t.Errorf("domain renamed without a key: %v", err)
	}
	// No second key is made while there is one somewhere.
	if err := lost.SetPassword(ctx, at("anna", "f.test"), hash, "{CRAM}other"); !errors.Is(err, auth.ErrNoKeys) {
		t.Errorf("kept without a key: %v", err)
	}
	g.must(os.Rename(file+".away", file))
	g.keeps("anna@f.test", "pass3")

	// A row that was moved to another user, or a key that is not there, is none.
	anna, err := g.User(ctx, at("anna", "f.test"))
	g.must(err)
	if err := g.SetPassword(ctx, at("bob", "e.test"), anna.Password, anna.Scram); err == nil {
		t.Error("anna's password became bob's")
	}
	g.must(g.SetPassword(ctx, at("anna", "f.test"), anna.Password, anna.Scram))
	g.keeps("anna@f.test", "pass3")
	// Written again, it is encrypted with the new key.
	if u, err := g.User(ctx, at("anna", "f.test")); err != nil || strings.Contains(u.Scram, before[0]) {
		t.Error(u.Scram, err)
	}

	// A copy to another database has the same columns.
	copied := filepath.Join(t.TempDir(), "copy.db")
	g.must(directory.Copy(ctx, g.config, directory.Config{Path: copied, MailRoot: g.config.MailRoot, Now: time.Now}, nil))
	other := g.config
	other.DSN, other.Path = "", copied
	second, err := directory.Open(ctx, other)
	g.must(err)
	defer second.Close()
	(&guardedStore{Store: second, t: t, keys: g.keys}).keeps("anna@f.test", "pass3")

	// In clear, where the settings say so.
	g.clear = true
	bob, err := g.User(ctx, at("bob", "e.test"))
	g.must(err)
	g.must(g.SetPassword(ctx, bob.Address(), bob.Password, bob.Scram))
	if bob, err = g.User(ctx, at("bob", "e.test")); err != nil || bob.Scram != keys+salted || bob.Password != hash {
		t.Errorf("%q %q %v", bob.Password, bob.Scram, err)
	}

	// The trash: a restore keeps passwords as new ones are kept, and what lies in it can be encrypted where it lies.
	remove := func() (rows string) {
		place, err := g.RemoveUser(ctx, bob.Address())
		g.must(err)
		return filepath.Join(place, "rows.jsonl")
	}
	restore := func() {
		trash, err := g.FindTrash("bob@e.test")
		g.must(err)
		g.must(g.RestoreTrash(ctx, trash))
	}
	inClear := func() (clear int) {
		g.must(g.TrashPasswords(func(user addr.Address, _, scram string) {
			if user == bob.Address() && strings.Contains(scram, "supersecret") {
				clear++
			}
		}))
		return clear
	}
	remove()
	if inClear() != 1 {
		t.Error("no password in the trash")
	}
	g.clear = false
	restore()
	g.keeps("bob@e.test", "supersecret")
	g.clear = true
	g.must(g.SetPassword(ctx, bob.Address(), hash, keys+salted))
	rows := remove()
	whole, err := os.ReadFile(rows)
	g.must(err)
	g.clear = false
	if n, err := g.GuardTrash(ctx, []string{"other.test"}); n != 0 || err != nil {
		t.Error(n, err)
	}
	for _, want := range []int{1, 0} {
		if n, err := g.GuardTrash(ctx, []string{"E.test"}); n != want || err != nil || inClear() != 0 {
			t.Error(n, err)
		}
	}
	now, err := os.ReadFile(rows)
	g.must(err)
	if info, err := os.Stat(rows); err != nil || info.Mode().Perm() != 0o600 || strings.Contains(string(now), "supersecret") || strings.Count(string(now), "\n") != strings.Count(string(whole), "\n") {
		t.Errorf("%v %v\n%s\n%s", info, err, whole, now)
	}
	if left, _ := filepath.Glob(rows + "?*"); left != nil {
		t.Error(left)
	}
	// A lost key keeps nobody from coming back: with what the trash has.
	without := openGuardedWith(t, g, auth.NewKeyring(t.TempDir(), filepath.Join(t.TempDir(), "none")))
	lying, err := without.FindTrash("bob@e.test")
	g.must(err)
	g.must(without.RestoreTrash(ctx, lying))
	g.keeps("bob@e.test", "supersecret")
}

// openGuardedWith opens the same database with other keys.
func openGuardedWith(t *testing.T, g *guardedStore, keys *auth.Keyring) *directory.Store {
	t.Helper()
	config := g.config
	config.Secrets = &auth.Secrets{Keys: keys, Clear: func() (bool, error) { return false, nil }, Used: g.Sealed}
	s, err := directory.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestOpenNeedsSecrets(t *testing.T) {
	dir := t.TempDir()
	if s, err := directory.Open(t.Context(), directory.Config{Path: filepath.Join(dir, "db"), MailRoot: dir, Now: time.Now}); err == nil {
		s.Close()
		t.Error("opened without what guards kept passwords")
	}
}
