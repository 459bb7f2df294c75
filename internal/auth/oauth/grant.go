package oauth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"
)

const (
	// maxTokenFile bounds a file of Grants in bytes.
	maxTokenFile = 32 << 10
	// renewBefore is how long before its end a token is renewed, assumed how long one is good whose end is not told, grantTime how long an answer
	// may take, grantRetry how long one that failed is not asked for again.
	renewBefore = time.Minute
	assumed     = 5 * time.Minute
	grantTime   = 20 * time.Second
	grantRetry  = time.Minute
)

// Grants get tokens for logging in elsewhere, each as a file says: the token itself as its one word, or what gets one by RFC 6749 section 6, a
// name and its value a line: token_endpoint, client_id, client_secret, refresh_token, and ca, a file of authorities. Such tokens are kept
// in memory and renewed in time; where the issuer gives another refresh_token with one, it is written into the file. Safe for concurrent use.
type Grants struct {
	Dial   func(ctx context.Context, network, address string) (net.Conn, error)
	Now    func() time.Time
	Logger *slog.Logger

	mu  sync.Mutex
	all map[string]*grant
}

// grant is what is kept of one file.
type grant struct {
	// busy is held by who uses the fields below.
	busy chan struct{}
	// text is the file, of which token was got, or trouble came, good until.
	text    []byte
	token   string
	trouble error
	until   time.Time
}

// grantFile is what a file says.
type grantFile struct {
	token, endpoint, id, secret, refresh, ca string
}

// Token gives the token of a file. The error is for the operator; no secret is in it.
func (g *Grants) Token(ctx context.Context, file string) (string, error) {
	text, err := ReadSecret(file, maxTokenFile)
	if err != nil {
		return "", err
	}
	fields, err := parseGrant(text)
	if err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	if fields.token != "" {
		return fields.token, nil
	}
	g.mu.Lock()
	if g.all == nil {
		g.all = map[string]*grant{}
	}
	one := g.all[file]
	if one == nil {
		one = &grant{busy: make(chan struct{}, 1)}
		g.all[file] = one
	}
	g.mu.Unlock()
	select {
	case one.busy <- struct{}{}:
	case <-ctx.Done():
		return "", fmt.Errorf("%s: %w", file, ctx.Err())
	}
	defer func() { <-one.busy }()
	// Who held it before may have written the file.
	if text, err = ReadSecret(file, maxTokenFile); err == nil {
		fields, err = parseGrant(text)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	if bytes.Equal(one.text, text) && g.Now().Before(one.until) {
		return one.token, one.trouble
	}
	one.text, one.token, one.trouble = text, "", nil
	renewed, err := g.renew(ctx, fields)
	if err != nil {
		one.trouble, one.until = fmt.Errorf("%s: no token from %s: %w", file, fields.endpoint, err), g.Now().Add(grantRetry)
		return "", one.trouble
	}
	one.token, one.until = renewed.AccessToken, g.Now().Add(assumed)
	if !renewed.Expiry.IsZero() {
		one.until = renewed.Expiry.Add(-renewBefore)
	}
	if renewed.RefreshToken != "" && renewed.RefreshToken != fields.refresh {
		one.text = withRefresh(text, renewed.RefreshToken)
		if err := replaceFile(file, one.text); err != nil {
			// The token is good all the same; the next one will be asked for with the old refresh_token.
			g.Logger.Error("the issuer gave a new refresh_token, and it cannot be written down: the old one may be good no longer", "file", file, "error", err)
			one.text = text
		}
	}
	return one.token, nil
}

// CheckGrant tells what is wrong with a file of Grants, without asking anybody.
func CheckGrant(file string) error {
	text, err := ReadSecret(file, maxTokenFile)
	if err != nil {
		return err
	}
	if _, err := parseGrant(text); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// Forget drops the token of a file, which a server did not take.
func (g *Grants) Forget(file string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.all, file)
}

// renew asks for a token.
func (g *Grants) renew(ctx context.Context, f grantFile) (*oauth2.Token, error) {
	client, err := newClient(g.Dial, f.ca, false)
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, oauth2.HTTPClient, client), grantTime)
	defer cancel()
	config := &oauth2.Config{ClientID: f.id, ClientSecret: f.secret, Endpoint: oauth2.Endpoint{TokenURL: f.endpoint}}
	token, err := config.TokenSource(ctx, &oauth2.Token{RefreshToken: f.refresh}).Token()
	var refused *oauth2.RetrieveError
	switch {
	case errors.As(err, &refused) && refused.ErrorCode != "":
		return nil, errors.New(clip("it says " + refused.ErrorCode + " " + refused.ErrorDescription))
	case errors.As(err, &refused):
		return nil, errors.New(refused.Response.Status)
	case err != nil:
		return nil, errors.New(clip(err.Error()))
	}
	return token, validToken(token.AccessToken)
}

// validToken takes the letters of RFC 6750 section 2.1 and others that can be shown.
func validToken(s string) error {
	if s == "" || len(s) > MaxToken || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("its token is no word of 1 to %d letters", MaxToken)
	}
	return nil
}

// parseGrant reads a file of Grants. Its errors quote no value.
func parseGrant(text []byte) (f grantFile, err error) {
	known := map[string]*string{"token_endpoint": &f.endpoint, "client_id": &f.id, "client_secret": &f.secret, "refresh_token": &f.refresh, "ca": &f.ca}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || words[0][0] == '#':
		case len(words) == 1 && f == grantFile{} && known[words[0]] == nil:
			f.token = words[0]
		case len(words) != 2 || known[words[0]] == nil || f.token != "":
			return f, fmt.Errorf("line %d: want a token alone, or lines with token_endpoint, client_id, client_secret, refresh_token, ca, each with one value", n)
		case *known[words[0]] != "":
			return f, fmt.Errorf("line %d: %s stands there twice", n, words[0])
		default:
			*known[words[0]] = words[1]
		}
	}
	if f.token != "" {
		return f, validToken(f.token)
	}
	for _, name := range []string{"token_endpoint", "client_id", "refresh_token"} {
		if *known[name] == "" {
			return f, fmt.Errorf("it has neither a token nor %s", name)
		}
	}
	return f, checkURL(f.endpoint, false)
}

// withRefresh gives the text of a file with another refresh_token.
func withRefresh(text []byte, token string) []byte {
	var b bytes.Buffer
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) == 2 && words[0] == "refresh_token" {
			line = "refresh_token " + token + "\n"
		}
		b.WriteString(line)
	}
	return b.Bytes()
}

// replaceFile writes a file anew, with the mode that it has, so that either text is there whole.
func replaceFile(file string, text []byte) error {
	real, err := filepath.EvalSymlinks(file)
	if err != nil {
		return err
	}
	info, err := os.Stat(real)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(real), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(info.Mode().Perm()), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), real)
}

// ReadSecret reads a file with a secret in it of at most so many bytes, which nobody but its owner and group may read, nor anybody but its owner change.
func ReadSecret(file string, most int) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no file", file)
	case info.Mode()&0o027 != 0:
		return nil, fmt.Errorf("others may read or change %s (chmod 600)", file)
	case info.Size() > int64(most):
		return nil, fmt.Errorf("%s has more than %d bytes", file, most)
	}
	text := make([]byte, info.Size())
	n, err := f.ReadAt(text, 0)
	if n < len(text) && err != nil {
		return nil, err
	}
	return text, nil
}
