package tlsx

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// ErrRevocations says that it is the lists of revoked certificates that are no good.
var ErrRevocations = errors.New("revoked client certificates")

// revocations are the lists of a file of revoked certificates as it is now; while it is no good, as it was when it last was good.
type revocations struct {
	file string
	// optional says that without the file there is no list, unless there was one since the start or the last reload.
	optional bool
	// noticed is told when a changed file was read, and when it became no good; nil is not called.
	noticed func(file string, err error)

	mu sync.Mutex
	// idle is true from a reload until somebody begins to use them again: the settings may not name the file any more.
	idle bool
	// issuers are the authorities whose lists must be signed by them.
	issuers []*x509.Certificate
	// read is the file that was read last, good or not, with no change in the moment before; nil means that it is to be read.
	read os.FileInfo
	// good is nil while there was never a good file.
	good []*x509.RevocationList
	err  error
}

// begin reads the file, whether it has changed or not, for authorities that may be others now. The error says that it is no good.
func (r *revocations) begin(issuers []*x509.Certificate) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	reloaded := r.idle
	r.issuers, r.read, r.err, r.idle = issuers, nil, nil, false
	if _, err := os.Stat(r.file); r.optional && reloaded && errors.Is(err, fs.ErrNotExist) {
		if r.good != nil && r.noticed != nil {
			r.noticed(r.file, fmt.Errorf("%w: %s is gone: no certificate counts as revoked", ErrRevocations, r.file))
		}
		r.good = nil
		return nil
	}
	r.load()
	return r.err
}

// lists gives them, after a look at whether the file has changed. No lists without an error mean that none are wanted.
func (r *revocations) lists() ([]*x509.RevocationList, error) {
	if r == nil {
		return nil, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.err
	if r.load() && r.noticed != nil && (r.err == nil || before == nil || r.err.Error() != before.Error()) {
		r.noticed(r.file, r.err)
	}
	if r.good == nil {
		return nil, r.err
	}
	return r.good, nil
}

// load reads the file if it has changed, and tells whether it did.
func (r *revocations) load() bool {
	info, err := os.Stat(r.file)
	switch {
	case r.optional && errors.Is(err, fs.ErrNotExist) && r.good == nil && r.err == nil:
		return false
	case err == nil && r.read != nil && unchanged(info, r.read):
		return false
	}
	var lists []*x509.RevocationList
	if err == nil {
		lists, err = readLists(r.file, r.issuers)
	}
	if r.read = info; err == nil && recent(info, time.Now()) {
		// Who writes it may not be done, within the same tick of the clock.
		r.read = nil
	}
	if err != nil {
		r.err = fmt.Errorf("%w: %s: %w; what was read before stays in force while Indigo runs, and after a start with it no certificate is taken", ErrRevocations, r.file, err)
		return true
	}
	again := r.err == nil && slices.EqualFunc(lists, r.good, func(a, b *x509.RevocationList) bool { return bytes.Equal(a.Raw, b.Raw) })
	r.good, r.err = lists, nil
	return !again
}

// unchanged tells whether a file is the one that it was, by what the file system says of it.
func unchanged(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && changedAt(a) == changedAt(b)
}

// changedAt gives when a file was last changed, which nobody can set back as the time of its content.
func changedAt(info os.FileInfo) syscall.Timespec {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Ctim
	}
	return syscall.Timespec{}
}

// recent tells whether a file was changed within the resolution of the file system's clock.
func recent(info os.FileInfo, now time.Time) bool {
	age := now.Sub(info.ModTime())
	return age >= 0 && age < 100*time.Millisecond
}

// readLists reads lists in PEM, or one in DER. Of those of an authority of issuers one must be signed by it.
func readLists(file string, issuers []*x509.Certificate) ([]*x509.RevocationList, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	lists, err := parseLists(text)
	if err != nil {
		return nil, err
	}
	// One of an authority's former key may stand beside that of its present one.
	wrong := map[string]error{}
	for _, l := range lists {
		for _, c := range issuers {
			if name := string(l.RawIssuer); bytes.Equal(c.RawSubject, l.RawIssuer) {
				if err, seen := wrong[name]; !seen || err != nil {
					wrong[name] = l.CheckSignatureFrom(c)
				}
			}
		}
	}
	for _, l := range lists {
		if err := wrong[string(l.RawIssuer)]; err != nil {
			return nil, fmt.Errorf("the list of %s is not signed by it: %w", printable(l.Issuer.String()), err)
		}
	}
	return lists, nil
}

func parseLists(text []byte) (lists []*x509.RevocationList, err error) {
	if bytes.HasPrefix(text, []byte{0x30}) {
		l, err := x509.ParseRevocationList(text)
		return []*x509.RevocationList{l}, err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "X509 CRL" {
			continue
		}
		l, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, err
		}
		lists = append(lists, l)
	}
	if len(lists) == 0 {
		return nil, errors.New("it holds no list (X509 CRL) in PEM or DER")
	}
	if begun := bytes.Count(text, []byte("-----BEGIN X509 CRL-----")); begun != len(lists) {
		return nil, fmt.Errorf("it is malformed, or was not written to its end: %d lists begin in it, and %d can be read", begun, len(lists))
	}
	return lists, nil
}

func stale(l *x509.RevocationList, now time.Time) bool {
	return !l.NextUpdate.IsZero() && now.After(l.NextUpdate)
}
