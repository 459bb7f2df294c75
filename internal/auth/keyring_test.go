package auth

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/indigomail/indigo/internal/addr"
)

// atRest gives what a directory of a test keeps passwords by: encrypted, with a key of its own.
func atRest(t testing.TB) *Secrets {
	return &Secrets{
		Keys: NewKeyring(t.TempDir(), filepath.Join(t.TempDir(), "keys")), Clear: func() (bool, error) { return false, nil },
		Used: func(context.Context) (bool, error) { return false, nil },
	}
}

func keyring(t testing.TB) *Keyring {
	t.Helper()
	k := atRest(t).Keys
	if err := k.Create(); err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSealed(t *testing.T) {
	k := keyring(t)
	alice, bob := addr.Address{Local: "alice", Domain: "d.example"}, addr.Address{Local: "bob", Domain: "d.example"}
	lengths := map[int]bool{}
	for _, password := range []string{"x", "secret", "a, $5$b,{c}", "0123456789abcdef", "0123456789abcdef0", strings.Repeat("ü", 30)} {
		one, err := k.seal(alice, password)
		two, secondErr := k.seal(alice, password)
		if err != nil || secondErr != nil || one == two || len(password) > 4 && strings.Contains(one, password) {
			t.Fatalf("%s %s %v %v", one, two, err, secondErr)
		}
		if len(password) <= 32 {
			lengths[len(one)] = true
		}
		for _, spelling := range []addr.Address{alice, {Local: "Alice", Domain: "D.Example"}} {
			if got, err := k.Open(spelling, one); err != nil || got != password {
				t.Errorf("%q: %q %v", password, got, err)
			}
		}
		if got, err := k.Open(bob, one); err == nil || got != "" || len(password) > 1 && strings.Contains(err.Error(), password) {
			t.Errorf("another user's: %q %v", got, err)
		}
		// Each bit counts, and each letter that is cut off.
		head, body := one[:len("{SEALED}1,00000000,")], one[len("{SEALED}1,00000000,"):]
		raw, _ := base64.RawStdEncoding.DecodeString(body)
		for i := range raw {
			changed := bytes.Clone(raw)
			changed[i] ^= 1 << (i % 8)
			if got, err := k.Open(alice, head+base64.RawStdEncoding.EncodeToString(changed)); err == nil {
				t.Fatalf("byte %d: %q", i, got)
			}
			if got, err := k.Open(alice, head+base64.RawStdEncoding.EncodeToString(raw[:i])); err == nil {
				t.Fatalf("%d bytes: %q", i, got)
			}
		}
		if got, err := k.Open(alice, "{SEALED}2"+one[len("{SEALED}1"):]); err == nil {
			t.Errorf("another version: %q", got)
		}
		if _, err := keyring(t).Open(alice, one); !errors.Is(err, ErrKey) {
			t.Errorf("another file of keys: %v", err)
		}
		if _, err := (*Keyring)(nil).Open(alice, one); !errors.Is(err, ErrKey) {
			t.Errorf("no keys: %v", err)
		}
	}
	if len(lengths) != 2 {
		t.Errorf("the length of a password shows: %v", lengths)
	}
}

func TestKeyFile(t *testing.T) {
	k := atRest(t).Keys
	user := addr.Address{Local: "a", Domain: "d.example"}
	if _, err := k.seal(user, "x"); !errors.Is(err, ErrNoKeys) {
		t.Fatal(err)
	}
	if ids, err := k.IDs(); err != nil || len(ids) != 0 {
		t.Fatal(ids, err)
	}
	// Several at once make one file.
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := NewKeyring(k.data, k.file).Create(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	before, err := os.ReadFile(k.file)
	if err != nil || bytes.Count(before, []byte("\n")) != 2 {
		t.Fatalf("%q %v", before, err)
	}
	info, err := os.Stat(k.file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}
	if os.Geteuid() == 0 {
		// A command that root runs leaves the file to whom the data directory belongs to: the services are not root.
		if err := os.Chown(k.data, 65534, 65533); err != nil {
			t.Fatal(err)
		}
		theirs := NewKeyring(k.data, filepath.Join(t.TempDir(), "keys"))
		err := theirs.Create()
		if err == nil {
			_, err = theirs.Rotate()
		}
		info, statErr := os.Stat(theirs.file)
		if err != nil || statErr != nil || info.Sys().(*syscall.Stat_t).Uid != 65534 || info.Sys().(*syscall.Stat_t).Gid != 65533 || info.Mode().Perm() != 0o600 {
			t.Error(info, err, statErr)
		}
	}
	first, err := k.seal(user, "first")
	if err != nil {
		t.Fatal(err)
	}
	// Another process, which has read the file before, follows.
	other := NewKeyring(k.data, k.file)
	if got, err := other.Open(user, first); err != nil || got != "first" {
		t.Fatal(got, err)
	}
	id, err := k.Rotate()
	if err != nil {
		t.Fatal(err)
	}
	second, err := other.seal(user, "second")
	if err != nil || SealedWith(second) != id || SealedWith(first) == id {
		t.Fatalf("%s %s %s: %v", id, first, second, err)
	}
	for sealed, want := range map[string]string{first: "first", second: "second"} {
		for _, one := range []*Keyring{k, other, NewKeyring(k.data, k.file)} {
			if got, err := one.Open(user, sealed); err != nil || got != want {
				t.Error(got, err)
			}
		}
	}
	if ids, err := k.IDs(); err != nil || len(ids) != 2 || ids[0] != id {
		t.Error(ids, err)
	}
	if info, err = os.Stat(k.file); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
	if gone, err := k.Prune(map[string]bool{SealedWith(first): true}); err != nil || len(gone) != 0 {
		t.Error(gone, err)
	}
	if gone, err := k.Prune(nil); err != nil || len(gone) != 1 || gone[0] != SealedWith(first) {
		t.Error(gone, err)
	}
	fresh := NewKeyring(k.data, k.file)
	if _, err := fresh.Open(user, first); !errors.Is(err, ErrKey) {
		t.Error(err)
	}
	if got, err := fresh.Open(user, second); err != nil || got != "second" {
		t.Error(got, err)
	}
	// Nothing is encrypted with a key that is in memory alone.
	if err := os.Rename(k.file, k.file+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := k.seal(user, "x"); !errors.Is(err, ErrNoKeys) {
		t.Error(err)
	}
	if err := os.Rename(k.file+".away", k.file); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(k.file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := NewKeyring(k.data, k.file).IDs(); !errors.Is(err, ErrKey) || !strings.Contains(err.Error(), "chmod o=") {
		t.Error(err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(k.file), ".*"))
	if err != nil || len(left) != 0 {
		t.Error(left, err)
	}
}

func TestParseKeys(t *testing.T) {
	key := strings.Repeat("ab", 32)
	for text, want := range map[string]int{
		key: 1, "# a\n\n" + key + "\r\n  " + strings.Repeat("CD", 32) + "\n": 2, "": 0, "# none\n": 0, key + "0\n": 0, key[2:]: 0, "x" + key[1:]: 0, strings.Repeat("#", maxKeyFile+1): 0,
	} {
		keys, err := parseKeys([]byte(text))
		if len(keys) != want || (err == nil) != (want > 0) {
			t.Errorf("%.80q: %d keys, %v", text, len(keys), err)
		}
		if err != nil && strings.Contains(err.Error(), key[2:20]) {
			t.Errorf("a key in an error: %v", err)
		}
	}
}

func TestColumns(t *testing.T) {
	k := keyring(t)
	user := addr.Address{Local: "a", Domain: "d.example"}
	cram, cramHash := "{CRAM}pass3", "$5$fbazeA/UC3RmSK15$V/GiMhfTuhRz1aUJv8QQvFt1qmFZrKgfw/4lK7d5KW0"
	both, bothHash := SplitStored(wikiBoth)
	both, bothHash = bothHash, both
	for _, c := range []struct {
		name, passwd, scram string
		// The columns in clear again; password is what is kept.
		wantPasswd, wantScram, password string
	}{
		{"{CRAM} whole", wikiCRAM, "", cramHash, cram, "pass3"},
		{"{CRAM} in columns", cramHash, cram, cramHash, cram, "pass3"},
		{"{CRAM} whole in scram", "", wikiCRAM, cramHash, cram, "pass3"},
		{"{CRAM} alone", "", cram, "", cram, "pass3"},
		{"keys and clear whole", wikiBoth, "", bothHash, both, "supersecret"},
		{"keys and clear in columns", bothHash, both, bothHash, both, "supersecret"},
		{"locked", "!" + wikiCRAM, "", "!" + cramHash, cram, "pass3"},
		{"locked in columns", "!" + bothHash, both, "!" + bothHash, both, "supersecret"},
		{"hash", wikiCrypt, "", wikiCrypt, "", ""},
		{"keys", wikiSCRAM, "", wikiSCRAM, "", ""},
		{"alone in pw_passwd", "supersecret", "", "supersecret", "", ""},
		{"locked without anything", "!", "", "!", "", ""},
		{"malformed", "$6$x", "{SCRAM-SHA-1}x", "$6$x", "{SCRAM-SHA-1}x", ""},
	} {
		if KeepsPassword(c.passwd, c.scram) != (c.password != "") {
			t.Errorf("%s: keeps", c.name)
		}
		passwd, scram, err := k.Encrypt(user, c.passwd, c.scram)
		if err != nil || c.password != "" && (strings.Contains(passwd+scram, c.password) || !strings.Contains(scram, "{SEALED}1,")) {
			t.Errorf("%s: %q %q %v", c.name, passwd, scram, err)
			continue
		}
		before, _ := ParseStored(c.passwd, c.scram)
		after, _ := ParseStored(passwd, scram)
		if before.Method != after.Method || len(before.SCRAM) != len(after.SCRAM) || after.Sealed != "" && after.Forms()[len(after.Forms())-1] != "ENCRYPTED" {
			t.Errorf("%s: %v became %v", c.name, before.Forms(), after.Forms())
		}
		// Again changes nothing, and another user's is refused.
		if p, s, err := k.Encrypt(user, passwd, scram); err != nil || p != passwd || s != scram {
			t.Errorf("%s again: %q %q %v", c.name, p, s, err)
		}
		other := addr.Address{Local: "b", Domain: "d.example"}
		if _, _, err := k.Encrypt(other, passwd, scram); (err == nil) != (c.password == "") {
			t.Errorf("%s for another: %v", c.name, err)
		}
		moved, movedScram, err := k.Move(user, other, passwd, scram)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		for who, columns := range map[addr.Address][2]string{user: {passwd, scram}, other: {moved, movedScram}} {
			if p, s, err := k.Decrypt(who, columns[0], columns[1]); err != nil || p != c.wantPasswd || s != c.wantScram {
				t.Errorf("%s: %q %q %v", c.name, p, s, err)
			}
		}
		if p, s, err := k.Reveal(user, passwd, scram); err != nil || p != c.wantPasswd || s != c.wantScram {
			t.Errorf("%s revealed: %q %q %v", c.name, p, s, err)
		}
		for _, columns := range [][2]string{{c.passwd, c.scram}, {passwd, scram}} {
			p, s, left := Forget(columns[0], columns[1])
			if KeepsPassword(p, s) || left != (c.name != "{CRAM} alone") {
				t.Errorf("%s forgotten: %q %q %v", c.name, p, s, left)
			}
		}
	}
	if _, _, err := k.Encrypt(user, wikiCRAM, cram); err == nil {
		t.Error("two passwords")
	}
	if _, _, err := k.Encrypt(user, wikiCrypt, "{CRAM}"+strings.Repeat("x", 140)); err == nil || strings.Contains(err.Error(), "xxx") {
		t.Errorf("too long: %v", err)
	}
}

// TestWithoutSecrets: hashes and keys stay, and nothing that holds a password does.
func TestWithoutSecrets(t *testing.T) {
	keys := strings.SplitN(wikiSCRAM, ",$", 2)[0]
	for _, c := range []struct{ passwd, scram, wantPasswd, wantScram string }{
		{wikiCrypt, "", wikiCrypt, ""}, {wikiCrypt, "{CRAM}pass3", wikiCrypt, ""}, {wikiCrypt, keys, wikiCrypt, keys}, {"!" + wikiCrypt, keys, "!" + wikiCrypt, keys}, {"!", "", "!", ""},
		{wikiSCRAM, "", wikiSCRAM, ""}, {"supersecret", "", "", ""}, {"!supersecret", "", "!", ""}, {"", "{CRAM}pass3", "", ""}, {wikiCrypt, "{SCRAM-SHA-1}0,x,y,z:00:secret", wikiCrypt, ""},
		{"{CRAM}pass3," + wikiCrypt, "{CRAM}pass4", wikiCrypt, ""}, {"{CRAM}pass3," + wikiCrypt, keys + ":00:secret", wikiCrypt, ""}, {"", wikiCRAM, wikiCRAM[len("{CRAM}pass3,"):], ""},
		{"", "", "", ""},
	} {
		if p, s := WithoutSecrets(c.passwd, c.scram); p != c.wantPasswd || s != c.wantScram {
			t.Errorf("%q %q: %q %q", c.passwd, c.scram, p, s)
		}
	}
}

// TestGuard: a key is made when it is needed first, and never while the directory has passwords that another has encrypted.
func TestGuard(t *testing.T) {
	user := addr.Address{Local: "a", Domain: "d.example"}
	clear, used := false, true
	s := atRest(t)
	s.Clear = func() (bool, error) { return clear, nil }
	s.Used = func(context.Context) (bool, error) { return used, nil }
	there := func() bool { _, err := os.Stat(s.Keys.File()); return err == nil }
	if p, k, err := s.Guard(t.Context(), user, wikiCrypt, ""); err != nil || p != wikiCrypt || k != "" || there() {
		t.Fatal(p, k, err)
	}
	if _, _, err := s.Guard(t.Context(), user, wikiCRAM, ""); !errors.Is(err, ErrNoKeys) || there() {
		t.Fatal(err)
	}
	clear = true
	if p, k, err := s.Guard(t.Context(), user, wikiCRAM, ""); err != nil || p != wikiCRAM || k != "" || there() {
		t.Fatal(p, k, err)
	}
	clear, used = false, false
	p, k, err := s.Guard(t.Context(), user, wikiCRAM, "")
	if err != nil || !strings.HasPrefix(k, "{SEALED}1,") || !there() {
		t.Fatal(p, k, err)
	}
	clear = true
	if _, k, err := s.Guard(t.Context(), user, p, k); err != nil || k != "{CRAM}pass3" {
		t.Fatal(k, err)
	}
	s.Clear = func() (bool, error) { return false, errors.New("malformed") }
	if p, k, err := s.Guard(t.Context(), user, wikiCRAM, ""); err == nil {
		t.Fatal(p, k)
	}
}

// TestRewrites: what is rotated by several at once loses no key.
func TestRewrites(t *testing.T) {
	k := keyring(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := NewKeyring(k.data, k.file).Rotate(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if ids, err := k.IDs(); err != nil || len(ids) != 9 {
		t.Error(ids, err)
	}
}

func FuzzSealed(f *testing.F) {
	k := keyring(f)
	user := addr.Address{Local: "a", Domain: "d.example"}
	sealed, err := k.seal(user, "secret")
	if err != nil {
		f.Fatal(err)
	}
	keys := strings.TrimSuffix(strings.SplitN(wikiSCRAM, ",$", 2)[0], ",")
	for _, form := range []string{sealed, keys + ":" + sealed, "{CRAM}x", keys + ":00:x", "!" + sealed, sealed + "," + wikiCrypt, sealed[:len(sealed)-1], "{SEALED}2,,", "!{CRAM}x," + wikiCrypt} {
		f.Add(form, "")
		f.Add("", form)
		f.Add(wikiCrypt, form)
	}
	f.Fuzz(func(t *testing.T, passwd, scram string) {
		stored, _ := ParseStored(passwd, scram)
		if stored.Sealed != "" && SealedWith(stored.Sealed) == "" {
			t.Errorf("%q %q: a malformed sealed password was taken", passwd, scram)
		}
		if stored.Sealed != "" && stored.matches("") {
			t.Error("the empty password fits")
		}
		if _, err := k.Open(user, scram); err == nil && scram != sealed {
			t.Errorf("%q was decrypted", scram)
		}
		p, s, err := k.Encrypt(user, passwd, scram)
		if err != nil || !KeepsPassword(passwd, scram) {
			return
		}
		again, _ := ParseStored(p, s)
		if locked := strings.HasPrefix(p, "!") || strings.HasPrefix(p, "*"); !locked && again.Sealed == "" {
			t.Errorf("%q %q became %q %q, which keeps nothing encrypted", passwd, scram, p, s)
		}
		if c, _, _ := splitColumns(p, s); c.clear != "" {
			t.Errorf("%q %q became %q %q, which has a password in clear", passwd, scram, p, s)
		}
		if _, _, err := k.Decrypt(user, p, s); err != nil && !strings.Contains(err.Error(), "is to be kept needs") {
			t.Errorf("%q %q became %q %q: %v", passwd, scram, p, s, err)
		}
	})
}
