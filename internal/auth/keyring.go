package auth

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/addr"
)

// ErrKey says that there is no key for what is to be encrypted or decrypted, or that the file of keys cannot be used.
var ErrKey = errors.New("passwords that are kept themselves are encrypted with a key")

// ErrNoKeys is the ErrKey of a file that is not there.
var ErrNoKeys = fmt.Errorf("%w, and there is no file of keys yet", ErrKey)

const (
	// sealedPrefix begins the form of an encrypted password: {SEALED}1,KEY,BASE64. 1 is XChaCha20-Poly1305 with a random nonce before what it
	// gives; the associated data are the version and the user's address; NULs behind the password hide its length, up to padded.
	sealedPrefix = "{SEALED}"
	sealedData   = "indigo kept password 1\x00"
	padded       = 32
	// maxKeyFile bounds the file of keys in bytes.
	maxKeyFile = 1 << 16
	keyHeader  = "# Keys that Indigo encrypts kept passwords with: the first encrypts, all decrypt. Whoever has one and the database has the passwords.\n"
)

var sealedPattern = regexp.MustCompile(`^\{SEALED\}1,([0-9a-f]{8}),([A-Za-z0-9+/]{54,220})$`)

// secretKey is a key and what names it in what it has encrypted.
type secretKey struct {
	id  string
	key []byte
}

// Keyring encrypts the passwords that are kept themselves, with keys of a file: 64 hexadecimal digits a line. The first key encrypts, all
// decrypt. It follows changes of the file, and is safe for concurrent use.
type Keyring struct {
	data, file string

	mu   sync.Mutex
	keys []secretKey
	read fs.FileInfo
}

// NewKeyring gives the keys of a file. When it is made, it belongs to the owner of the directory data.
func NewKeyring(data, file string) *Keyring { return &Keyring{data: data, file: file} }

// File gives where the keys are.
func (k *Keyring) File() string { return k.file }

// keyID names a key without telling it.
func keyID(key []byte) string {
	sum := sha256.Sum256(append([]byte("indigo key id 1\x00"), key...))
	return hex.EncodeToString(sum[:4])
}

// fresh reads the file when it has changed; mu is held.
func (k *Keyring) fresh() error {
	info, err := os.Stat(k.file)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNoKeys, k.file)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKey, err)
	}
	if k.read != nil && os.SameFile(info, k.read) && info.Size() == k.read.Size() && info.ModTime().Equal(k.read.ModTime()) {
		return nil
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o007 != 0 {
		return fmt.Errorf("%w: %s must be a file that others cannot read: `chmod o= %[2]s`", ErrKey, k.file)
	}
	f, err := os.Open(k.file)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKey, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKey, err)
	}
	keys, err := parseKeys(text)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrKey, k.file, err)
	}
	k.keys, k.read = keys, info
	return nil
}

// parseKeys reads a file of keys; errors never repeat a line of it.
func parseKeys(text []byte) (keys []secretKey, err error) {
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("it has more than %d bytes", maxKeyFile)
	}
	n := 0
	for line := range bytes.Lines(text) {
		n++
		if line = bytes.TrimSpace(line); len(line) == 0 || line[0] == '#' {
			continue
		}
		key, err := hex.DecodeString(string(line))
		if err != nil || len(key) != chacha20poly1305.KeySize {
			return nil, fmt.Errorf("line %d: want %d hexadecimal digits", n, 2*chacha20poly1305.KeySize)
		}
		keys = append(keys, secretKey{keyID(key), key})
	}
	if len(keys) == 0 {
		return nil, errors.New("it has no key")
	}
	return keys, nil
}

// IDs names the keys, the one that encrypts first; it gives none, and no error, when there is no file.
func (k *Keyring) IDs() (ids []string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fresh(); err != nil {
		if errors.Is(err, ErrNoKeys) {
			err = nil
		}
		return nil, err
	}
	for _, one := range k.keys {
		ids = append(ids, one.id)
	}
	return ids, nil
}

// seal encrypts a password that is kept for a user. It asks the file each time: a key that is in memory alone would be lost with what it encrypts.
func (k *Keyring) seal(user addr.Address, password string) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fresh(); err != nil {
		return "", err
	}
	text := []byte(password)
	for len(text) < padded && len(text)%(padded/2) != 0 {
		text = append(text, 0)
	}
	aead, err := chacha20poly1305.NewX(k.keys[0].key)
	if err != nil {
		return "", err
	}
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce)
	return sealedPrefix + "1," + k.keys[0].id + "," + base64.RawStdEncoding.EncodeToString(aead.Seal(nonce, nonce, text, associated(user))), nil
}

func associated(user addr.Address) []byte { return []byte(sealedData + user.Key()) }

// Open decrypts what seal gave for the same user. ErrKey when its key is not there.
func (k *Keyring) Open(user addr.Address, sealed string) (string, error) {
	id, raw, err := parseSealed(sealed)
	if err != nil {
		return "", err
	}
	if k == nil {
		return "", ErrKey
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	has := func(one secretKey) bool { return one.id == id }
	if !slices.ContainsFunc(k.keys, has) {
		if err := k.fresh(); err != nil {
			return "", err
		}
	}
	found := false
	for _, one := range k.keys {
		if !has(one) {
			continue
		}
		found = true
		aead, err := chacha20poly1305.NewX(one.key)
		if err != nil {
			return "", err
		}
		if text, err := aead.Open(nil, raw[:aead.NonceSize()], raw[aead.NonceSize():], associated(user)); err == nil {
			return string(bytes.TrimRight(text, "\x00")), nil
		}
	}
	if !found {
		return "", fmt.Errorf("%w, and %s has not the key %s", ErrKey, k.file, id)
	}
	return "", fmt.Errorf("the encrypted password was made for another user than %s, or was changed", user)
}

// parseSealed reads the form of an encrypted password.
func parseSealed(sealed string) (id string, raw []byte, err error) {
	m := sealedPattern.FindStringSubmatch(sealed)
	if m != nil {
		raw, err = base64.RawStdEncoding.Strict().DecodeString(m[2])
	}
	if m == nil || err != nil || len(raw) <= chacha20poly1305.NonceSizeX+chacha20poly1305.Overhead {
		return "", nil, errors.New("an encrypted password of a form that is not known, or malformed")
	}
	return m[1], raw, nil
}

// SealedWith gives the name of the key that a sealed password was encrypted with, "" for what is none.
func SealedWith(sealed string) string {
	id, _, err := parseSealed(sealed)
	if err != nil {
		return ""
	}
	return id
}

var sealedBy = regexp.MustCompile(`\{SEALED\}1,([0-9a-f]{8}),`)

// SealingKeys names the keys of all sealed passwords in a text.
func SealingKeys(text string) (ids []string) {
	for _, m := range sealedBy.FindAllStringSubmatch(text, -1) {
		ids = append(ids, m[1])
	}
	return ids
}

// Create makes the file with a key when there is none. It never overwrites one.
func (k *Keyring) Create() error {
	if _, err := os.Lstat(k.file); err == nil {
		return nil
	}
	name, err := k.write(k.file, []byte(keyHeader+newKey()))
	if err != nil {
		return err
	}
	defer os.Remove(name)
	if err := os.Link(name, k.file); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %w", ErrKey, err)
	}
	return syncDir(filepath.Dir(k.file))
}

func newKey() string {
	key := make([]byte, chacha20poly1305.KeySize)
	rand.Read(key)
	return hex.EncodeToString(key) + "\n"
}

// Rotate puts a new key before those of the file, and gives its name.
func (k *Keyring) Rotate() (id string, err error) {
	fresh := newKey()
	err = k.rewrite(func(lines []string) []string {
		first := slices.IndexFunc(lines, isKey)
		return slices.Insert(lines, max(first, 0), fresh)
	})
	key, _ := hex.DecodeString(strings.TrimSpace(fresh))
	return keyID(key), err
}

// Prune takes the keys out of the file that used does not name, but for the first, and names them.
func (k *Keyring) Prune(used map[string]bool) (gone []string, err error) {
	err = k.rewrite(func(lines []string) []string {
		first := true
		return slices.DeleteFunc(lines, func(line string) bool {
			if !isKey(line) {
				return false
			}
			key, _ := hex.DecodeString(strings.TrimSpace(line))
			unused := !first && !used[keyID(key)]
			if first = false; unused {
				gone = append(gone, keyID(key))
			}
			return unused
		})
	})
	return gone, err
}

func isKey(line string) bool {
	line = strings.TrimSpace(line)
	return line != "" && line[0] != '#'
}

// rewrite changes the lines of the file, one process at a time.
func (k *Keyring) rewrite(change func(lines []string) []string) error {
	file, err := filepath.EvalSymlinks(k.file)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKey, err)
	}
	// The directory is locked, not the file: that is replaced.
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKey, err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("%w: lock %s: %w", ErrKey, dir.Name(), err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	// What is malformed is not written anew.
	k.read = nil
	if err := k.fresh(); err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKey, err)
	}
	if len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	name, err := k.write(file, []byte(strings.Join(change(slices.Collect(strings.Lines(string(text)))), "")))
	if err != nil {
		return err
	}
	if err := os.Rename(name, file); err != nil {
		return errors.Join(fmt.Errorf("%w: %w", ErrKey, err), os.Remove(name))
	}
	return syncDir(filepath.Dir(file))
}

// write makes a synced file beside file, with its mode and owner or, when it is not there, with those of a new one.
func (k *Keyring) write(file string, text []byte) (name string, err error) {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrKey, err)
	}
	mode, like := fs.FileMode(0o600), k.data
	if info, err := os.Stat(file); err == nil {
		mode, like = info.Mode().Perm(), file
	}
	err = f.Chmod(mode)
	// The services do not run as root, who may run a command.
	if info, statErr := os.Stat(like); err == nil && os.Geteuid() == 0 && statErr == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			err = f.Chown(int(stat.Uid), int(stat.Gid))
		}
	}
	if err == nil {
		_, err = f.Write(text)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return "", fmt.Errorf("%w: %w", ErrKey, err)
	}
	return f.Name(), nil
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
