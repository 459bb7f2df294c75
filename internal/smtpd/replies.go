package smtpd

import (
	"strconv"
	"strings"

	"github.com/indigomail/indigo/internal/mailerr"
)

// reply is a reply of one line; enhanced may be "".
type reply struct {
	code     int
	enhanced string
	text     string
}

func (r reply) String() string {
	s := strconv.Itoa(r.code) + " "
	if r.enhanced != "" {
		s += r.enhanced + " "
	}
	return s + r.text + "\r\n"
}

func fromError(e *mailerr.Error) reply {
	return reply{e.Code, e.Enhanced.String(), strings.Join(strings.FieldsFunc(e.Text, func(r rune) bool { return r == '\r' || r == '\n' }), " ")}
}

// Every reply that a client can see and that no policy gave.
var (
	replyTooMany      = reply{421, "4.3.2", "too many connections, try again later (#4.3.2)"}
	replyShutdown     = reply{421, "4.3.2", "this system is shutting down (#4.3.2)"}
	replyTimeout      = reply{421, "4.4.2", "timeout (#4.4.2)"}
	replyBye          = reply{221, "2.0.0", "closing connection"}
	replyOK           = reply{250, "2.0.0", "ok"}
	replySender       = reply{250, "2.1.0", "ok"}
	replyRecipient    = reply{250, "2.1.5", "ok"}
	replyGoAhead      = reply{354, "", "go ahead"}
	replyVerify       = reply{252, "2.1.5", "send some mail, I'll try my best"}
	replyHelp         = reply{214, "2.0.0", "HELO EHLO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT STARTTLS AUTH: see RFC 5321"}
	replyUnknown      = reply{500, "5.5.2", "unrecognized command (#5.5.2)"}
	replyUnsupported  = reply{502, "5.5.1", "command not implemented (#5.5.1)"}
	replyTooBad       = reply{421, "4.7.0", "too many errors (#4.7.0)"}
	replyLongLine     = reply{500, "5.5.6", "line too long (#5.5.6)"}
	replyBareLine     = reply{500, "5.5.2", "lines must end in CRLF (#5.5.2)"}
	replySyntax       = reply{501, "5.5.4", "syntax error in parameters (#5.5.4)"}
	replyBadAddress   = reply{501, "5.1.3", "malformed address (#5.1.3)"}
	replyBadSender    = reply{501, "5.1.7", "malformed sender address (#5.1.7)"}
	replyParameter    = reply{555, "5.5.4", "parameter not recognized (#5.5.4)"}
	replyHeloFirst    = reply{503, "5.5.1", "HELO or EHLO first (#5.5.1)"}
	replyMailFirst    = reply{503, "5.5.1", "MAIL first (#5.5.1)"}
	replyRcptFirst    = reply{503, "5.5.1", "RCPT first (#5.5.1)"}
	replyNested       = reply{503, "5.5.1", "sender already given, RSET first (#5.5.1)"}
	replyTooLarge     = reply{552, "5.3.4", "sorry, that message size exceeds my databytes limit (#5.3.4)"}
	replyBareNewline  = reply{550, "5.6.11", "message holds a bare CR or LF (#5.6.11)"}
	replyReadyTLS     = reply{220, "2.0.0", "ready for TLS"}
	replyNoTLS        = reply{454, "4.7.0", "TLS not available (#4.7.0)"}
	replyAlreadyTLS   = reply{503, "5.5.1", "TLS is active already (#5.5.1)"}
	replyAuthOK       = reply{235, "2.7.0", "ok, go ahead (#2.0.0)"}
	replyAuthTwice    = reply{503, "5.5.1", "you're already authenticated (#5.5.1)"}
	replyAuthInMail   = reply{503, "5.5.1", "no auth during mail transaction (#5.5.1)"}
	replyAuthUnknown  = reply{504, "5.5.4", "unrecognized authentication type (#5.5.4)"}
	replyAuthCancel   = reply{501, "5.0.0", "auth exchange cancelled (#5.0.0)"}
	replyAuthBase64   = reply{501, "5.5.2", "malformed auth input (#5.5.2)"}
	replyAuthTooLong  = reply{500, "5.5.6", "authentication exchange line is too long (#5.5.6)"}
	replyAuthTooOften = reply{421, "4.7.0", "too many failed logins (#4.7.0)"}
)
