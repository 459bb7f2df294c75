package probe

import "strings"

// replies are what codes of SMTP mean to who logs in or relays (RFC 4954, 3207, 5321, 3463), the longest fit first.
var replies = [...]struct{ code, means string }{
	{"235", "logged in"},
	{"432", "the account's password has to be changed over to this mechanism: log in once by PLAIN over TLS (RFC 4954)"},
	{"454 4.7.0", "the server cannot check logins, or begin TLS, just now: try later, and look at its directory"},
	{"454", "a temporary failure of TLS or of the login: try later"},
	{"421", "the server closes the connection"},
	{"450", "not now: try later"}, {"451", "a fault at the server, or greylisting: try later"}, {"452", "not now: no room, or too many recipients"},
	{"500 5.5.6", "the line is too long"},
	{"500 5.7.0", "the login failed; 500 is an odd code for it (sendmail of old)"},
	{"500", "the command is unknown here, or too long"},
	{"501 5.5.2", "what was sent is not base64, or not of the mechanism's form"},
	{"501 5.0.0", "the exchange was cancelled"},
	{"501", "malformed"},
	{"502", "the command is known and switched off"},
	{"503", "not at this point: before EHLO, within a mail, or logged in already"},
	{"504", "the mechanism is unknown or not offered (before TLS, perhaps)"},
	{"521", "the host takes no mail"},
	{"525", "the account is switched off"},
	{"530 5.7.0", "first log in, or first STARTTLS"},
	{"530", "first log in, or first STARTTLS"},
	{"534 5.7.9", "this account needs a stronger mechanism, or an app password"},
	{"534", "the mechanism is too weak for this user"},
	{"535 5.7.139", "the provider has switched passwords off for this account"},
	{"535 5.7.8", "name or password is wrong, or the account may not use this service: servers say the same for all"},
	{"535", "the login failed: name or password is wrong, or the account may not use this service"},
	{"538", "this mechanism only over TLS"},
	{"550 5.7.1", "refused by the server's policy: relaying is denied to this client"},
	{"550 5.1.1", "there is no such mailbox"},
	{"550", "refused: no such mailbox, or relaying is denied"}, {"551", "the user is elsewhere"}, {"552", "too large, or the mailbox is full"}, {"553", "the address is refused; qmail says so of relaying too"}, {"554", "refused: relaying is denied, or the server does not like the client"},
	{"555", "a parameter of MAIL or RCPT is not known here"},
	{"220", "ready"}, {"221", "goodbye"}, {"354", "the message may come"},
}

// Meaning tells what a server's reply means, "" for those that say it themselves.
func Meaning(reply string) string {
	if isReply(reply) {
		normal := reply
		if len(normal) > 3 && normal[3] == '-' {
			normal = normal[:3] + " " + normal[4:]
		}
		for _, r := range replies {
			if len(r.code) > 3 && strings.HasPrefix(normal, r.code) && !digitAt(normal, len(r.code)) {
				return r.means
			}
		}
		// IndiMail and qmail put the enhanced code at the end, and a bare code says the rest.
		for _, r := range replies {
			if len(r.code) == 3 && strings.HasPrefix(normal, r.code) {
				return r.means
			}
		}
		return ""
	}
	for _, r := range [...]struct{ text, means string }{
		{"[AUTHENTICATIONFAILED]", "name or password is wrong"}, {"[AUTHORIZATIONFAILED]", "the password is right, and the user may not act for the other, or use this service"},
		{"[EXPIRED]", "the password has expired"}, {"[PRIVACYREQUIRED]", "only over TLS"}, {"[CONTACTADMIN]", "the server's administrator has to do something"}, {"[UNAVAILABLE]", "the server cannot check logins just now"},
		{"[AUTH]", "name or password is wrong, or the account may not use this service"}, {"[SYS/TEMP]", "the server cannot check logins just now"}, {"[SYS/PERM]", "the server's administrator has to do something"},
		{"[IN-USE]", "the mailbox is open elsewhere"}, {"[LOGIN-DELAY]", "too soon after the last login"}, {"LOGINDISABLED", "no password before TLS"},
	} {
		if strings.Contains(reply, r.text) {
			return r.means
		}
	}
	return ""
}

func digitAt(s string, i int) bool { return i < len(s) && s[i] >= '0' && s[i] <= '9' }
