package remote

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/indigomail/indigo/internal/auth/sasl"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/settings"
)

const (
	// maxAuthLine bounds a line of an exchange in octets (RFC 4954 section 4), maxCommand a command line, with their CRLF.
	maxAuthLine = 12288
	maxCommand  = 512
	// maxSteps bounds the challenges of one exchange; the longest mechanism has two.
	maxSteps = 5
)

// hide makes the trace show nothing of what a login says, even where the other side repeats it.
func (c *client) hide(words ...string) {
	for _, w := range words {
		if w != "" && !slices.Contains(c.secrets, w) {
			c.secrets = append(c.secrets, w)
		}
	}
	// The longest first, so that no part of one stays.
	slices.SortFunc(c.secrets, func(a, b string) int { return len(b) - len(a) })
}

func (c *client) censor(s string) string {
	for _, secret := range c.secrets {
		s = strings.ReplaceAll(s, secret, "(hidden)")
	}
	return s
}

// offered gives the mechanisms of the server's EHLO reply, in upper case; of servers older than RFC 2554 those behind "AUTH=".
func (c *client) offered() []string {
	if list, ok := c.extensions["AUTH"]; ok {
		return strings.Fields(strings.ToUpper(list))
	}
	for keyword, more := range c.extensions {
		if first, old := strings.CutPrefix(keyword, "AUTH="); old {
			return strings.Fields(strings.ToUpper(first + " " + more))
		}
	}
	return nil
}

// authenticate logs in by the strongest mechanism that both sides have and w allows. A mechanism that the server does not have after
// all gives way to the next; a refusal of the login ends it, so that no password is ever tried twice. refused tells that the server
// does not take these credentials.
func (c *client) authenticate(w way) (refused bool, e *mailerr.Error) {
	offered := c.offered()
	who := sasl.Credentials{User: w.login.User, Password: w.login.Password, Token: w.login.Password, Host: c.target.name, Service: "smtp", Offered: offered}
	if w.login.TokenFile != "" {
		who.Token = w.token
	}
	c.hide(w.login.Password, encode([]byte(w.login.Password)), w.token)
	if settings.SaltedPassword.Get(w.view) {
		if !settings.IsSalted(w.login.Password) {
			return false, c.misfit(w, "SALTED_PASSWORD is set, but the password is not one of 40, 64 or 128 digits in hexadecimal", false)
		}
		who.Salted, _ = hex.DecodeString(w.login.Password)
		who.Password, who.Token = "", ""
	}
	if conn, ok := c.conn.(*tls.Conn); ok {
		state := conn.ConnectionState()
		who.Bindings = sasl.Bindings(&state, state.PeerCertificates[0])
	}
	// TLS with somebody unknown is as good as none.
	secret := c.tls && (c.verified || !c.demands.careful)
	left := slices.DeleteFunc(slices.Clone(offered), func(m string) bool { return slices.Contains(w.disabled(), m) })
	for {
		mechanism, ok := sasl.Choose(left, w.mechanisms(), secret, len(who.Bindings) > 0, w.clear())
		if !ok {
			why, unverified := c.whyNone(w, left)
			return false, c.misfit(w, why, unverified)
		}
		c.note("* ", "login of user "+w.login.User+" by "+mechanism+", with what stands in "+w.login.Where.String())
		next, refused, e := c.exchange(mechanism, who, settings.RemoteAuthFailure.Get(w.view) == "bounce")
		switch {
		case e == nil && next == "":
			return false, nil
		case e != nil:
			if refused {
				if w.login.TokenFile != "" {
					c.note("! ", "the token is of the file "+w.login.TokenFile+", which stands in "+w.login.Where.String()+": is it this user's, for this server, with the scope that its answer names?")
					return refused, e
				}
				c.note("! ", "put right user and password in "+w.login.Where.String()+", then `indigo reload`; if they are right, the server may not keep what "+mechanism+" needs: name another mechanism by AUTH_SMTP")
			}
			return refused, e
		}
		c.note("! ", mechanism+": "+c.censor(next))
		left = slices.DeleteFunc(left, func(m string) bool { return m == mechanism })
	}
}

// misfit is the deferral of mail that cannot be sent without a login, with the reason for the operator; unverified tells that it is the
// server's certificate.
func (c *client) misfit(w way, why string, unverified bool) *mailerr.Error {
	c.note("! ", "no login of user "+w.login.User+" with what stands in "+w.login.Where.String()+": "+why)
	if conn, ok := c.conn.(*tls.Conn); ok && unverified {
		c.showWayOut(conn.ConnectionState())
		return mailerr.Newf(451, mailerr.Enhanced{4, 7, 5}, "I found no way to log in at %s: its certificate is not verified: %s. (#4.7.5)", c.target.ip(), c.unverified)
	}
	return mailerr.Newf(451, mailerr.Enhanced{4, 7, 0}, "I found no way to log in at %s. (#4.7.0)", c.target.ip())
}

// whyNone tells why there is no mechanism, and what to do; unverified that the server's certificate is in the way.
func (c *client) whyNone(w way, left []string) (why string, unverified bool) {
	offered := c.offered()
	if len(offered) == 0 {
		if !c.tls && !c.offers("STARTTLS") {
			return "the server offers neither AUTH nor STARTTLS; is it the port for users, 587 or 465?", false
		}
		return "the server offers no AUTH; is it the port for users, 587 or 465?", false
	}
	if _, ok := sasl.Choose(left, w.mechanisms(), c.tls, true, true); ok && !w.clear() && !c.tls {
		return "without TLS the server offers only " + strings.Join(offered, " ") + ", which would show the password; REMOTE_PLAIN_AUTH=1 allows it, unless SECURE_AUTH is set to 1", false
	}
	if _, ok := sasl.Choose(left, w.mechanisms(), true, true, true); ok && c.unverified != "" {
		return "the server offers " + strings.Join(offered, " ") + ", and its certificate is not verified (" + c.unverified + "): whoever stands between would get the password", true
	}
	why = "the server offers " + strings.Join(offered, " ")
	if len(left) < len(offered) {
		why += ", of which " + strings.Join(slices.DeleteFunc(slices.Clone(offered), func(m string) bool { return slices.Contains(left, m) }), " ") + " cannot be used"
	}
	if wanted := w.mechanisms(); wanted != nil {
		from := ", AUTH_SMTP and SALTED_PASSWORD leave "
		if w.login.TokenFile != "" {
			from = ", and for the token in the password's place there are "
		}
		why += from + strings.Join(append(wanted, "no other"), ", ")
	}
	return why, false
}

// exchange runs one mechanism (RFC 4954 section 4). next says why another mechanism may do better; refused that the server does not
// take the credentials.
func (c *client) exchange(mechanism string, who sasl.Credentials, bounce bool) (next string, refused bool, e *mailerr.Error) {
	client, err := sasl.NewClient(mechanism, who)
	if err != nil {
		return err.Error(), false, nil
	}
	response, err := client.Next(nil)
	if err != nil {
		return err.Error(), false, nil
	}
	command := "AUTH " + mechanism
	ahead := response != nil && len(command)+1+base64.StdEncoding.EncodedLen(len(response)) <= maxCommand-2
	r, err := c.say(command, response, ahead)
	if err == nil && ahead && r.code == 501 {
		// Servers older than RFC 2554's last drafts take no initial response.
		ahead = false
		r, err = c.say(command, nil, false)
	}
	if err == nil && !ahead && response != nil && r.code == 334 {
		r, err = c.say("", response, true)
	}
	for steps := 0; err == nil && r.code == 334; steps++ {
		var challenge []byte
		challenge, bad := base64.StdEncoding.DecodeString(r.text())
		switch {
		case bad != nil || len(r.lines) > 1:
			bad = errors.New("the challenge is not base64")
		case steps == maxSteps:
			bad = errors.New("the server goes on asking")
		default:
			response, bad = client.Next(challenge)
			if mechanism == "OAUTHBEARER" || mechanism == "XOAUTH2" {
				c.note("! ", "what the server says of the token: "+c.censor(strconv.QuoteToASCII(string(challenge))))
			}
		}
		if bad == nil {
			r, err = c.say("", response, true)
			continue
		}
		if r, err = c.say("*", nil, false); err != nil {
			break
		}
		if errors.Is(bad, sasl.ErrServer) || r.code/100 == 2 {
			return "", false, c.impostor(bad)
		}
		return bad.Error(), false, nil
	}
	switch {
	case err != nil:
		return "", false, c.died(err)
	case r.code == 235:
		if err := client.Finish(); err != nil {
			return "", false, c.impostor(err)
		}
		return "", false, nil
	case slices.Contains([]int{500, 501, 502, 504, 534, 538}, r.code):
		return fmt.Sprintf("the server said %d %s", r.code, r.text()), false, nil
	}
	e = r.fail(c, "rejected my credentials")
	switch {
	case r.code == 535 && bounce:
		e.Code, e.Enhanced = 535, mailerr.Enhanced{5, 7, 8}
	case r.code/100 != 4:
		// The configuration of this system is wrong, not the message.
		e.Code, e.Enhanced = 454, mailerr.Enhanced{4, 7, 8}
	}
	return "", r.code/100 == 5, e
}

// say sends a command, or without one a response, and with ahead the command with its response; it reads the reply.
func (c *client) say(command string, response []byte, ahead bool) (serverReply, error) {
	line, shown := command, command
	if ahead {
		text := encode(response)
		c.hide(text)
		if text == "" && command != "" {
			text = "=" // RFC 4954 section 4: an initial response that is empty
		}
		line, shown = strings.TrimPrefix(command+" "+text, " "), strings.TrimPrefix(command+" (hidden)", " ")
	}
	c.put(line, shown)
	return c.get(c.timeout)
}

// impostor is the deferral when the other side let us in without proof that it knows the password. No other mechanism is tried: one
// that shows the password would give it away.
func (c *client) impostor(err error) *mailerr.Error {
	c.usable = false
	c.note("! ", "login: "+err.Error()+": somebody else may answer in the server's place")
	return mailerr.Newf(451, mailerr.Enhanced{4, 7, 8}, "%s has not proved who it is. (#4.7.8)", c.target.ip())
}

func encode(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
