package sasl

import (
	"cmp"
	"crypto/hmac"
	"crypto/md5"
	"crypto/pbkdf2"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/xdg-go/scram"
	"github.com/xdg-go/stringprep"
)

// Credentials are what a client logs in with.
type Credentials struct {
	// User is the name, Authorization whom he acts for, "" for himself.
	User, Authorization string
	Password            string
	// Salted, when set, is SCRAM's SaltedPassword (RFC 5802 section 3) in the place of Password; it fits one mechanism, salt and
	// iteration count.
	Salted []byte
	// Token is an OAuth 2.0 access token.
	Token string
	// Host and Service are the server's: its name, and "smtp", "imap" or "pop". Realm is DIGEST-MD5's, "" for the server's first.
	Host, Service, Realm string
	// Nonce is the client's own random text in SCRAM and DIGEST-MD5, for an exchange that somebody else began; "" makes one up.
	Nonce string
	// Bindings are what -PLUS mechanisms may bind to, the best first; see Bindings.
	Bindings []scram.ChannelBinding
	// Offered are the mechanisms of the server: a SCRAM client that could bind and sees no -PLUS says so (RFC 5802 section 6).
	Offered []string
}

// Client is one exchange. Next takes the server's challenge, nil at the beginning, and gives the response; nil there means
// that there is no initial response. Finish is called when the server has said that the login succeeded: it is an error when
// the server did not prove that it knows the password where the mechanism has it do so. It is not safe for concurrent use.
type Client interface {
	Next(challenge []byte) (response []byte, err error)
	Finish() error
}

// ErrServer says that the server has not proved that it knows the password: whoever answers may be somebody else.
var ErrServer = errors.New("the server has not proved that it knows the password")

// maxIterations bounds what a server can make a client compute.
const maxIterations = 1_000_000

// NewClient begins an exchange. It is an error when mechanism is unknown or c lacks what it needs.
func NewClient(mechanism string, c Credentials) (Client, error) {
	if c.User == "" && mechanism != "EXTERNAL" && mechanism != "ANONYMOUS" {
		return nil, fmt.Errorf("%s needs the name of a user", mechanism)
	}
	token := mechanism == "OAUTHBEARER" || mechanism == "XOAUTH2"
	switch {
	case token && c.Token == "":
		return nil, fmt.Errorf("%s needs a token", mechanism)
	case !token && mechanism != "EXTERNAL" && mechanism != "ANONYMOUS" && c.Password == "" && (scramHash(mechanism) == nil || len(c.Salted) == 0):
		return nil, fmt.Errorf("%s needs a password", mechanism)
	}
	say := func(s string) Client { return &spoken{words: [][]byte{[]byte(s)}} }
	switch {
	case mechanism == "PLAIN":
		return say(c.Authorization + "\x00" + c.User + "\x00" + c.Password), nil
	case mechanism == "LOGIN":
		return &spoken{words: [][]byte{nil, []byte(c.User), []byte(c.Password)}}, nil
	case mechanism == "EXTERNAL":
		return say(c.Authorization), nil
	case mechanism == "ANONYMOUS":
		return say(c.User), nil
	case mechanism == "OAUTHBEARER":
		return &spoken{words: [][]byte{[]byte("n,a=" + encodeName(c.User) + ",\x01auth=Bearer " + c.Token + "\x01\x01"), {1}}, refusal: true}, nil
	case mechanism == "XOAUTH2":
		return &spoken{words: [][]byte{[]byte("user=" + c.User + "\x01auth=Bearer " + c.Token + "\x01\x01"), {}}, refusal: true}, nil
	case mechanism == "DIGEST-MD5":
		return &digestClient{c: c, cnonce: cmp.Or(c.Nonce, nonce())}, nil
	case cramHash(mechanism) != nil:
		return &cramClient{c: c, mechanism: mechanism}, nil
	case scramHash(mechanism) != nil:
		return newSCRAMClient(mechanism, c)
	}
	return nil, fmt.Errorf("mechanism %s is unknown", mechanism)
}

// Choose gives the strongest of the mechanisms that are offered and wanted; nil wants all. tls tells whether the connection is
// secret, bindable whether it can be bound to, clear whether a password or token may go over one that is not secret.
func Choose(offered, wanted []string, tls, bindable, clear bool) (mechanism string, ok bool) {
	for _, name := range Names() {
		switch {
		case !slices.ContainsFunc(offered, func(o string) bool { return strings.EqualFold(o, name) }):
		case wanted != nil && !slices.ContainsFunc(wanted, func(w string) bool { return strings.EqualFold(w, name) }):
		case wanted == nil && slices.Contains([]string{"OAUTHBEARER", "XOAUTH2", "EXTERNAL"}, name):
			// They need something else than a password, so that they are never a guess.
		case strings.HasSuffix(name, "-PLUS") && !bindable:
		case NeedsTLS(name) && !tls && !clear:
		default:
			return name, true
		}
	}
	return "", false
}

// NeedsTLS tells whether a mechanism shows a password or a token to whoever listens.
func NeedsTLS(mechanism string) bool {
	switch mechanism {
	case "PLAIN", "LOGIN", "OAUTHBEARER", "XOAUTH2":
		return true
	}
	return false
}

// spoken says its words, whatever it is asked. With refusal, all but the first answer the challenge that says what failed.
type spoken struct {
	words   [][]byte
	refusal bool
	said    int
}

func (s *spoken) Next([]byte) ([]byte, error) {
	if s.said == len(s.words) {
		return nil, errors.New("one challenge too many")
	}
	s.said++
	return s.words[s.said-1], nil
}

func (s *spoken) Finish() error {
	if !s.refusal && s.said < len(s.words) {
		return errors.New("the server has not asked for the password")
	}
	return nil
}

type cramClient struct {
	c         Credentials
	mechanism string
	answered  bool
}

func (m *cramClient) Next(challenge []byte) ([]byte, error) {
	switch {
	case challenge == nil:
		return nil, nil
	case m.answered:
		return nil, errors.New("one challenge too many")
	}
	m.answered = true
	return []byte(m.c.User + " " + hex.EncodeToString(keyed(cramHash(m.mechanism), m.c.Password, string(challenge)))), nil
}

func (m *cramClient) Finish() error {
	if !m.answered {
		return errors.New("the server has not sent a challenge")
	}
	return nil
}

type digestClient struct {
	c      Credentials
	cnonce string
	proof  []byte
	done   bool
}

func (m *digestClient) Next(challenge []byte) ([]byte, error) {
	switch {
	case challenge == nil:
		return nil, nil
	case len(challenge) > maxMessage || m.done:
		return nil, ErrMalformed
	case m.proof != nil:
		return []byte{}, m.verify(challenge)
	}
	given := map[string]string{}
	if err := directives(string(challenge), func(key, value string) error {
		if _, twice := given[key]; !twice {
			given[key] = value
		} else if key != "realm" && key != "cipher" {
			return ErrMalformed
		}
		return nil
	}); err != nil {
		return nil, err
	}
	qop, hasQOP := given["qop"]
	if given["nonce"] == "" || given["algorithm"] != "md5-sess" || hasQOP && !slices.Contains(strings.FieldsFunc(qop, func(r rune) bool { return r == ',' || r == ' ' }), "auth") {
		return nil, ErrMalformed
	}
	a := digestAnswer{
		user: m.c.User, realm: m.c.Realm, nonce: given["nonce"], cnonce: m.cnonce, count: "00000001", qop: "auth",
		uri: m.c.Service + "/" + m.c.Host, authzid: m.c.Authorization,
	}
	if a.realm == "" {
		a.realm = given["realm"]
	}
	name, realm, charset := a.user, a.realm, ",charset=utf-8"
	if given["charset"] != "utf-8" {
		if name, realm, charset = toLatin1(a.user), toLatin1(a.realm), ""; fromLatin1(name) != a.user || fromLatin1(realm) != a.realm {
			return nil, errors.New("the server takes no names beyond ISO 8859-1")
		}
	}
	m.proof = a.sum(m.c.Password, ":")
	s := fmt.Sprintf("username=%s,realm=%s,nonce=%s,cnonce=%s,nc=%s,qop=auth,digest-uri=%s,response=%x%s",
		quote(name), quote(realm), quote(a.nonce), quote(a.cnonce), a.count, quote(a.uri), a.sum(m.c.Password, "AUTHENTICATE:"), charset)
	if a.authzid != "" {
		s += ",authzid=" + quote(a.authzid)
	}
	return []byte(s), nil
}

func (m *digestClient) verify(challenge []byte) error {
	text, ok := strings.CutPrefix(string(challenge), "rspauth=")
	proof, err := hex.DecodeString(strings.Trim(text, `"`))
	if !ok || err != nil || len(proof) != md5.Size || !hmac.Equal(proof, m.proof) {
		return ErrServer
	}
	m.done = true
	return nil
}

func (m *digestClient) Finish() error {
	if !m.done {
		return ErrServer
	}
	return nil
}

// scramClient is the client's side of SCRAM. It is ours since the library's cannot be given a SaltedPassword.
type scramClient struct {
	hash             scram.HashGeneratorFcn
	user, authzid    string
	password         string
	salted           []byte
	header, bind     string
	nonce, bare      string
	signature        []byte
	started, checked bool
}

func newSCRAMClient(mechanism string, c Credentials) (Client, error) {
	m := &scramClient{hash: scramHash(mechanism), salted: c.Salted, nonce: cmp.Or(c.Nonce, nonce()), password: c.Password}
	var err, err2, err3 error
	m.user, err = stringprep.SASLprep.Prepare(c.User)
	m.authzid, err2 = stringprep.SASLprep.Prepare(c.Authorization)
	if m.salted == nil {
		m.password, err3 = stringprep.SASLprep.Prepare(c.Password)
	}
	if err != nil || err2 != nil || err3 != nil {
		// The library's error may hold what it was given.
		return nil, errors.New("name or password has characters that SASLprep forbids")
	}
	m.header = "n,"
	switch base, plus := strings.CutSuffix(mechanism, "-PLUS"); {
	case plus && len(c.Bindings) == 0:
		return nil, fmt.Errorf("%s: this connection has no channel binding", mechanism)
	case plus:
		m.header, m.bind = "p="+string(c.Bindings[0].Type)+",", string(c.Bindings[0].Data)
	case len(c.Bindings) > 0 && !slices.Contains(c.Offered, base+"-PLUS"):
		m.header = "y,"
	}
	if m.authzid != "" {
		m.header += "a=" + encodeName(m.authzid)
	}
	m.header += ","
	return m, nil
}

func (m *scramClient) Next(challenge []byte) ([]byte, error) {
	switch {
	case challenge != nil && len(challenge) == 0 && !m.started, challenge == nil && !m.started:
		m.started = true
		m.bare = "n=" + encodeName(m.user) + ",r=" + m.nonce
		return []byte(m.header + m.bare), nil
	case len(challenge) > maxMessage || !m.started || m.checked:
		return nil, ErrMalformed
	case m.signature == nil:
		return m.final(string(challenge))
	}
	text, ok := strings.CutPrefix(string(challenge), "v=")
	text, _, _ = strings.Cut(text, ",")
	given, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || !hmac.Equal(given, m.signature) {
		return nil, ErrServer
	}
	m.checked = true
	return []byte{}, nil
}

// final answers the server's first message with the proof.
func (m *scramClient) final(first string) ([]byte, error) {
	parts := strings.Split(first, ",")
	if len(parts) < 3 {
		return nil, ErrMalformed
	}
	both, ok1 := strings.CutPrefix(parts[0], "r=")
	salt64, ok2 := strings.CutPrefix(parts[1], "s=")
	count, ok3 := strings.CutPrefix(parts[2], "i=")
	salt, err := base64.StdEncoding.DecodeString(salt64)
	iterations, err2 := strconv.Atoi(count)
	switch {
	case !ok1 || !ok2 || !ok3 || err != nil || err2 != nil || len(salt) == 0 || iterations < 1:
		return nil, ErrMalformed
	case len(both) <= len(m.nonce) || !strings.HasPrefix(both, m.nonce):
		return nil, errors.New("the server has not added to the nonce")
	case iterations > maxIterations:
		return nil, fmt.Errorf("the server asks for %d iterations, more than %d", iterations, maxIterations)
	case iterations < Iterations && m.salted == nil:
		// Fewer make it cheap to guess the password from the proof (RFC 7677 section 4).
		return nil, fmt.Errorf("the server asks for %d iterations, fewer than %d", iterations, Iterations)
	}
	salted := m.salted
	if salted == nil {
		if salted, err = pbkdf2.Key(m.hash, m.password, salt, iterations, m.hash().Size()); err != nil {
			return nil, err
		}
	}
	without := "c=" + base64.StdEncoding.EncodeToString([]byte(m.header+m.bind)) + ",r=" + both
	message := m.bare + "," + first + "," + without
	key := keyed(m.hash, string(salted), "Client Key")
	h := m.hash()
	h.Write(key)
	subtle.XORBytes(key, key, keyed(m.hash, string(h.Sum(nil)), message))
	m.signature = keyed(m.hash, string(keyed(m.hash, string(salted), "Server Key")), message)
	return []byte(without + ",p=" + base64.StdEncoding.EncodeToString(key)), nil
}

func (m *scramClient) Finish() error {
	if !m.checked {
		return ErrServer
	}
	return nil
}
