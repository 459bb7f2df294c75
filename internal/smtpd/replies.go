package smtpd

import (
	"strconv"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/queue"
)

// reply is a reply (RFC 5321 section 4.2) in its wire form, one line or several, each with its CRLF.
type reply struct {
	code int
	wire string
}

// trace gives the reply as it stands in the trace: without line ends, and of a reply that is no refusal the first line.
func (r *reply) trace() string {
	first, more, _ := strings.Cut(r.wire, "\r\n")
	if more == "" || r.code < 400 {
		return first
	}
	return strings.ReplaceAll(strings.TrimSuffix(r.wire, "\r\n"), "\r\n", " ")
}

// maxText keeps a reply line within the 512 octets of RFC 5321 section 4.5.3.1.5.
const maxText = 480

// newReply makes a reply; enhanced is "" where RFC 2034 section 4 wants none, text may have several lines.
func newReply(code int, enhanced, text string) *reply {
	number := strconv.Itoa(code)
	if enhanced != "" {
		enhanced += " "
	}
	if len(text) <= maxText && strings.IndexFunc(text, notPrintable) < 0 {
		return &reply{code, number + " " + enhanced + text + "\r\n"}
	}
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\r' || r == '\n' })
	if len(lines) == 0 {
		lines = []string{""}
	}
	var b strings.Builder
	for i, line := range lines {
		separator := "-"
		if i == len(lines)-1 {
			separator = " "
		}
		b.WriteString(number + separator + enhanced + strings.Map(printable, line[:min(len(line), maxText)]) + "\r\n")
	}
	return &reply{code, b.String()}
}

func notPrintable(r rune) bool { return r < ' ' || r > '~' }

// printable keeps a reply text within RFC 5321 section 4.2's textstring.
func printable(r rune) rune {
	if notPrintable(r) {
		return '?'
	}
	return r
}

// fromError gives the reply that e stands for. A code that is no refusal becomes 451: it must never look like success.
func fromError(e *mailerr.Error) *reply {
	if e.Code < 400 || e.Code > 599 {
		return replyFault
	}
	return newReply(e.Code, e.Enhanced.String(), e.Text)
}

// Every reply that a client can see and that neither the policy, the queue nor the password check gave. The replies that
// hold a name or a number are the functions below.
var (
	replyOK        = newReply(250, "2.0.0", "ok")
	replySender    = newReply(250, "2.1.0", "ok")
	replyRecipient = newReply(250, "2.1.5", "ok")
	replyGoAhead   = newReply(354, "", "go ahead")
	replyVerify    = newReply(252, "2.1.5", "send some mail, I'll try my best")
	replyHelp      = newReply(214, "2.0.0", "This server supports the following commands:\nHELO EHLO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT STARTTLS AUTH")
	replyHelpETRN  = newReply(214, "2.0.0", "This server supports the following commands:\nHELO EHLO MAIL RCPT DATA RSET NOOP VRFY ETRN HELP QUIT STARTTLS AUTH")
	replyHelpODMR  = newReply(214, "2.0.0", "This server supports the following commands:\nHELO EHLO RSET NOOP HELP QUIT STARTTLS AUTH ATRN")
	replyReadyTLS  = newReply(220, "2.0.0", "ready for tls")
	replyAuthOK    = newReply(235, "2.7.0", "ok, go ahead (#2.0.0)")

	replyMaxDaemons  = newReply(421, "4.3.2", "sorry, too many connections to this service, try again later (#4.3.2)")
	replyMaxPerIP    = newReply(421, "4.7.0", "sorry, too many connections from your address, try again later (#4.7.0)")
	replyShutdown    = newReply(421, "4.3.2", "this system is shutting down, try again later (#4.3.2)")
	replyTimeout     = newReply(421, "4.4.2", "timeout, closing connection (#4.4.2)")
	replyManyErrors  = newReply(421, "4.7.0", "too many errors, closing connection (#4.7.0)")
	replyEarly       = newReply(554, "5.5.1", "sorry, you must wait for my greeting (#5.5.1)")
	replyManyLogins  = newReply(421, "4.7.0", "too many failed logins, closing connection (#4.7.0)")
	replyFault       = newReply(451, "4.3.0", "temporary local problem, please try again later (#4.3.0)")
	replyUnknown     = newReply(500, "5.5.2", "unrecognized command (#5.5.2)")
	replyLongLine    = newReply(500, "5.5.2", "line too long (#5.5.2)")
	replyBareLine    = newReply(500, "5.5.2", "command lines end in CRLF, without other CR or LF (#5.5.2)")
	replyUnsupported = newReply(502, "5.5.1", "command not implemented (#5.5.1)")
	replyHeloSyntax  = newReply(501, "", "HELO and EHLO need your host name (#5.5.4)")
	replyNoArguments = newReply(501, "5.5.4", "this command takes no arguments (#5.5.4)")

	replyHeloFirst   = newReply(503, "5.5.1", "HELO or EHLO first (#5.5.1)")
	replyMailFirst   = newReply(503, "5.5.1", "MAIL first (#5.5.1)")
	replyRcptFirst   = newReply(503, "5.5.1", "RCPT first (#5.5.1)")
	replyNested      = newReply(503, "5.5.1", "sender already specified, RSET first (#5.5.1)")
	replyMailSyntax  = newReply(501, "5.5.4", "syntax: MAIL FROM:<address> (#5.5.4)")
	replyRcptSyntax  = newReply(501, "5.5.4", "syntax: RCPT TO:<address> (#5.5.4)")
	replyBadSender   = newReply(501, "5.1.7", "malformed sender address (#5.1.7)")
	replyBadAddress  = newReply(501, "5.1.3", "malformed recipient address (#5.1.3)")
	replyNeedsUTF8   = newReply(553, "5.6.7", "an address beyond ASCII needs SMTPUTF8 (#5.6.7)")
	replyParamSyntax = newReply(501, "5.5.4", "malformed parameter (#5.5.4)")
	replyParameter   = newReply(555, "5.5.4", "parameter not recognized (#5.5.4)")

	replyTooLarge    = newReply(552, "5.3.4", "sorry, that message size exceeds my databytes limit (#5.3.4)")
	replyBareNewline = newReply(550, "5.6.11", "sorry, I don't accept bare CR or LF in messages (#5.6.11)")

	replyNoTLS     = newReply(454, "4.7.0", "TLS not available (#4.7.0)")
	replyActiveTLS = newReply(503, "5.5.1", "TLS is already active (#5.5.1)")

	replyAuthTwice    = newReply(503, "5.5.1", "you're already authenticated (#5.5.1)")
	replyAuthInMail   = newReply(503, "5.5.1", "no auth during mail transaction (#5.5.1)")
	replyAuthUnknown  = newReply(504, "5.5.4", "auth type unimplemented (#5.5.4)")
	replyAuthTLS      = newReply(538, "5.7.11", "encryption required for this authentication mechanism (#5.7.11)")
	replyAuthCancel   = newReply(501, "5.0.0", "auth exchange cancelled (#5.0.0)")
	replyAuthSyntax   = newReply(501, "5.5.2", "malformed auth input (#5.5.2)")
	replyETRNSyntax   = newReply(501, "5.5.4", "syntax: ETRN domain, @domain or #queue (#5.5.4)")
	replyATRNSyntax   = newReply(501, "5.5.4", "syntax: ATRN domain,domain (#5.5.4)")
	replyATRNBehind   = newReply(503, "5.5.1", "nothing may be sent behind ATRN before its reply (#5.5.1)")
	replyTurnInMail   = newReply(503, "5.5.1", "not during a mail transaction (#5.5.1)")
	replyAuthRequired = newReply(530, "5.7.0", "authentication required (#5.7.0)")
	replyReversing    = newReply(250, "2.0.0", "OK now reversing the connection")
	replyATRNNow      = newReply(451, "4.3.0", "unable to process ATRN request now (#4.3.0)")
	replyATRNBusy     = newReply(451, "4.3.2", "the mail is being handed over already, try again later (#4.3.2)")
	replyATRNRefused  = newReply(450, "4.7.0", "ATRN request refused (#4.7.0)")

	replyAuthLong = newReply(500, "5.5.6", "authentication exchange line is too long (#5.5.6)")
)

// replyGreeting is the banner; text is the setting SMTPGREETING.
func replyGreeting(host, text string) *reply {
	if text == "" {
		text = host + " ESMTP Indigo"
	}
	return newReply(220, "", text)
}

func replyHelo(host string) *reply { return newReply(250, "", host) }

// extensions are what the reply to EHLO offers.
type extensions struct {
	// mail tells that messages are taken, with the extensions for them; size is the limit of SIZE, 0 for none (RFC 1870 section 3).
	mail                    bool
	size                    int
	etrn, startTLS, oldAuth bool
	mechanisms              []string
}

// replyEhlo lists the extensions: without mail those of ODMR (RFC 2645 section 5).
func replyEhlo(host string, e extensions) *reply {
	text := host
	if e.mail {
		text += "\nPIPELINING\n8BITMIME\nSMTPUTF8\nENHANCEDSTATUSCODES\nDSN\nSIZE " + strconv.Itoa(e.size)
	} else {
		text += "\nENHANCEDSTATUSCODES"
	}
	if e.etrn {
		text += "\nETRN"
	}
	if e.startTLS {
		text += "\nSTARTTLS"
	}
	if len(e.mechanisms) > 0 {
		text += "\nAUTH " + strings.Join(e.mechanisms, " ")
		if e.oldAuth {
			text += "\nAUTH=" + strings.Join(e.mechanisms, " ")
		}
	}
	if !e.mail {
		text += "\nATRN"
	}
	return newReply(250, "", text)
}

// The replies to ETRN (RFC 1985 section 5.3).
func replyETRNStarted(node string) *reply {
	return newReply(250, "2.0.0", "OK, queueing for node <"+node+"> started")
}

func replyETRNNone(node string) *reply {
	return newReply(251, "2.0.0", "OK, no messages waiting for node <"+node+">")
}

func replyETRNBusy(node string) *reply {
	return newReply(252, "2.0.0", "OK, pending messages for node <"+node+"> started")
}

func replyETRNPending(node string, n int) *reply {
	return newReply(253, "2.0.0", "OK, "+strconv.Itoa(n)+" pending messages for node <"+node+"> started")
}

func replyETRNUnable(node string) *reply {
	return newReply(458, "4.3.0", "Unable to queue messages for node <"+node+"> (#4.3.0)")
}

func replyETRNRefused(node string) *reply {
	if strings.HasPrefix(node, "#") {
		return newReply(459, "4.7.0", "Node <"+node+"> not allowed: that is no queue that hosts may ask for (#4.7.0)")
	}
	return newReply(459, "4.7.0", "Node <"+node+"> not allowed: your address is none of its mail hosts (#4.7.0)")
}

// replyATRNNone is the wiki's text (wiki 1815) for RFC 2645's 453.
func replyATRNNone(nodes string) *reply {
	return newReply(453, "4.3.0", "No message waiting for node(s) <"+nodes+"> (#4.3.0)")
}

func replyBye(host string) *reply { return newReply(221, "2.0.0", host+" closing connection") }

// replyQueued is qmail's word for a message that is safe on disk.
func replyQueued(now time.Time, id queue.ID) *reply {
	return &reply{250, "250 2.0.0 ok " + strconv.FormatInt(now.Unix(), 10) + " qp " + id.String() + "\r\n"}
}

// replyChallenge is a SASL challenge in base64 (RFC 4954 section 4).
func replyChallenge(base64 string) *reply { return &reply{334, "334 " + base64 + "\r\n"} }
