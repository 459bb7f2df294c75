package settings

import "time"

// The registry. A setting stands here only when code reads it; All must name it too.
var (
	Me                = text("ME", "me", "localhost", "all", "host name of this system, used in greetings, Received fields and Message-IDs", 0)
	Listen            = text("LISTEN", "listen", "127.0.0.1", "all", "address that services listen on; read at start", 0)
	PortOffset        = number("PORT_OFFSET", "portoffset", "0", -1, 64000, "all", "number added to every service's port; -1 lets the kernel choose; read at start", 0)
	DefaultDomain     = text("DEFAULT_DOMAIN", "defaultdomain", "", "all", "domain of a login name or address without one; empty means the host name", 424)
	SMTPGreeting      = text("SMTPGREETING", "smtpgreeting", "", "smtpd", "text of the 220 banner after the code; empty means host name and ESMTP Indigo", 0)
	DataBytes         = size("DATABYTES", "databytes", "52428800", "smtpd,inject", "largest message in bytes; 0 means no limit", 0)
	MaxRecipients     = number("MAXRECIPIENTS", "maxrecipients", "1000", 1, 100000, "smtpd,inject", "most recipients of one message", 0)
	MaxHops           = number("MAXHOPS", "maxhops", "100", 1, 1000, "smtpd,inject", "most Received fields before a message counts as looping", 0)
	TimeoutSMTPD      = seconds("TIMEOUTSMTPD", "timeoutsmtpd", "300", 1, 86400, "smtpd", "seconds to wait for the client's next bytes", 0)
	SecureAuth        = boolean("SECURE_AUTH", "secure_auth", "1", "smtpd", "offer and accept AUTH only over TLS", 2543)
	RelayClients      = list("RELAYCLIENTS", "relayclients", "", "smtpd", "networks that may relay without AUTH: one address, prefix ending in a dot or CIDR a line, each ending in a colon", 2834)
	BareNewline       = oneOf("BARE_NEWLINE", "barenewline", "reject", []string{"reject", "accept"}, "smtpd", "what to do with a bare CR or LF in a message: reject it, or accept it and make it CRLF; the end of data is CRLF.CRLF in both", 0)
	MaxDaemons        = number("MAXDAEMONS", "maxdaemons", "1000", 1, 1000000, "smtpd,pop3d,imapd,inject", "most connections at a time of one service", 0)
	MaxPerIP          = number("MAXPERIP", "maxperip", "500", 1, 1000000, "smtpd,pop3d,imapd", "most connections at a time of one client address and service", 438)
	ConcurrencyLocal  = number("CONCURRENCYLOCAL", "concurrencylocal", "120", 0, 500, "queue", "most local deliveries at a time; 0 holds local mail", 377)
	ConcurrencyRemote = number("CONCURRENCYREMOTE", "concurrencyremote", "120", 0, 500, "queue", "most remote deliveries at a time; 0 holds remote mail", 377)
	QMailQueue        = text("QMAILQUEUE", "qmailqueue", "", "smtpd", "program with its arguments that gets each message in qmail-queue's place and calls qmail-queue at its end; qmail-nullqueue throws all away", 532)
	DefaultHost       = text("DEFAULT_HOST", "defaulthost", "", "inject", "host that qmail-inject and sendmail give an address without one; empty means DEFAULT_DOMAIN", 0)
	PlusDomain        = text("PLUSDOMAIN", "plusdomain", "", "inject", "domain that qmail-inject puts in the place of a + at a host's end; empty means the host name", 0)
	IDHost            = text("IDHOST", "idhost", "", "inject", "host in the Message-IDs that qmail-inject makes; empty means the host name", 0)
	QueueBase         = text("QUEUE_BASE", "queue_base", "queue", "queue", "directory that holds the queues, relative to the data directory; read at start", 528)
	QueueStart        = number("QUEUE_START", "queuestart", "1", 1, 10000, "queue", "number of the first numbered queue", 530)
	QueueCount        = number("QUEUE_COUNT", "queuecount", "1", 1, 1000, "queue", "how many numbered queues new mail is spread over; read again at a reload", 529)
	QueueMax          = number("QUEUE_MAX", "queuemax", "0", 0, 1000, "queue", "up to how many numbered queues are opened when the load goes beyond QUEUE_LOAD; 0 means QUEUE_COUNT", 533)
	QueueLoad         = number("QUEUE_LOAD", "queueload", "60", 1, 100, "queue", "deliveries that run, in percent of those that may, beyond which another queue is opened", 534)
	QueueDir          = text("QUEUEDIR", "queuedir", "", "all", "name, or path in the queue directory, of the one queue that mail goes to; empty means any numbered one", 537)
	DomainQueue       = ruleList("DOMAINQUEUE", "domainqueue", "queue", "the queue for a recipient's domain, pattern:QUEUEDIR=name a line; patterns may have * and ?", 2291, "QUEUEDIR")
	RcptRules         = ruleList("RCPTRULES", "rcpt.envrules", "queue", "the queue for a recipient's address, pattern:QUEUEDIR=name a line; other settings of IndiMail's rules are not yet read here", 2278, "QUEUEDIR")
	FromRules         = ruleList("FROMRULES", "from.envrules", "queue", "the queue for a sender's address, pattern:QUEUEDIR=name a line; other settings of IndiMail's rules are not yet read here", 2270, "QUEUEDIR")
	FromdRules        = ruleList("FROMDRULES", "fromd.envrules", "queue", "the queue for a sender's address when no rule of from.envrules matches, pattern:QUEUEDIR=name a line", 400, "QUEUEDIR")
	HoldLocal         = boolean("HOLDLOCAL", "holdlocal", "0", "queue", "keep local mail in the queue until this is 0 again", 4462)
	HoldRemote        = boolean("HOLDREMOTE", "holdremote", "0", "queue", "keep remote mail in the queue until this is 0 again", 4462)
	QueueLifetime     = seconds("QUEUELIFETIME", "queuelifetime", "604800", 0, 31536000, "queue", "seconds after which an undelivered message bounces", 206)
	BounceLifetime    = seconds("BOUNCELIFETIME", "bouncelifetime", "604800", 0, 31536000, "queue", "seconds after which an undelivered bounce is given up", 0)
	DelayWarning      = seconds("DELAY_WARNING", "delaywarning", "86400", 0, 31536000, "queue", "seconds after which the sender is told once that a message is late; 0 means never", 0)
	BounceFormat      = oneOf("BOUNCE_FORMAT", "bounceformat", "dsn", []string{"dsn", "qsbmf"}, "queue", "form of bounces: dsn (RFC 3464), or qsbmf, qmail's", 4478)
	BounceSubject     = text("BOUNCESUBJECT", "bouncesubject", "failure notice", "queue", "subject of bounces", 0)
	BounceQueue       = text("BOUNCEQUEUE", "bouncequeue", "", "queue", "program that gets bounces in qmail-queue's place; qmail-nullqueue throws them all away", 2215)
	BounceProcessor   = text("BOUNCEPROCESSOR", "bounceprocessor", "", "queue", "program that is called for each failed recipient before the bounce is queued; exit code 2 keeps the bounce back", 2201)
	BounceRules       = ruleList("BOUNCERULES", "bounce.envrules", "queue", "settings by the address that gets the bounce, pattern:NAME=value,NAME=value a line", 2204, "BOUNCEQUEUE", "QMAILQUEUE", "BOUNCEPROCESSOR", "BOUNCEMAXBYTES", "BOUNCE_FORMAT", "QUEUEDIR")
	OnSuccessRemote   = text("ONSUCCESS_REMOTE", "onsuccess_remote", "", "queue", "program that is run after a remote delivery, with HOST, SENDER and RECIPIENT as arguments, SMTPCODE and SMTPTEXT in the environment", 4510)
	OnFailureRemote   = text("ONFAILURE_REMOTE", "onfailure_remote", "", "queue", "program that is run after a remote delivery that failed or was deferred, as ONSUCCESS_REMOTE", 4510)
	MinFree           = size("MIN_FREE", "minfree", "52428800", "queue", "bytes that must stay free on the queue's file system; below it new mail gets 452", 430)
	BounceFrom        = text("BOUNCEFROM", "bouncefrom", "MAILER-DAEMON", "queue", "local part of the From field of bounces", 0)
	BounceHost        = text("BOUNCEHOST", "bouncehost", "", "queue", "domain of the From field of bounces; empty means the host name", 0)
	BounceMaxBytes    = size("BOUNCEMAXBYTES", "bouncemaxbytes", "50000", "queue", "a longer message is bounced with its header only; 0 means always the whole, RET=HDRS of the sender always the header", 0)
	DoubleBounceTo    = text("DOUBLEBOUNCETO", "doublebounceto", "postmaster", "queue", "local part or address that gets double bounces; empty means nobody", 0)
	DoubleBounceHost  = text("DOUBLEBOUNCEHOST", "doublebouncehost", "", "queue", "domain for doublebounceto; empty means DEFAULT_DOMAIN, or else the host name", 0)
	HeloHost          = text("HELOHOST", "helohost", "", "queue", "name that deliveries give in EHLO; empty means the host name", 0)
	SMTPRoutes        = list("SMTPROUTES", "smtproutes", "", "queue", "static routes, domain:relay:port user password a line; an empty domain is the wildcard", 2748)
	TimeoutConnect    = seconds("TIMEOUTCONNECT", "timeoutconnect", "60", 1, 3600, "queue", "seconds to wait for a remote host to accept a connection", 0)
	TimeoutRemote     = seconds("TIMEOUTREMOTE", "timeoutremote", "300", 1, 86400, "queue", "seconds to wait for a remote host's reply", 0)
	PermitPlainAuth   = boolean("REMOTE_PLAIN_AUTH", "remote_plain_auth", "0", "queue", "send smtproutes credentials without TLS", 0)
	DNSServers        = list("DNSSERVERS", "dnsservers", "", "all", "name servers as address or address:port, one a line; empty means those of the system", 0)
	TimeoutPOP3       = seconds("TIMEOUTPOP3D", "timeoutpop3d", "600", 1, 86400, "pop3d", "seconds to wait for the client's next command", 0)
	TimeoutIMAP       = seconds("TIMEOUTIMAPD", "timeoutimapd", "1800", 1, 86400, "imapd", "seconds to wait for the client's next command", 0)
	TLSCert           = text("TLS_CERT", "tlscert", "certs/servercert.pem", "all", "file with the certificate chain and key in PEM, relative to the data directory", 0)
	DrainSeconds      = seconds("DRAIN", "drain", "30", 0, 3600, "all", "seconds that SIGTERM leaves to open connections and deliveries", 0)
	TraceDays         = number("TRACE_DAYS", "tracedays", "30", 1, 3650, "all", "days to keep the trace", 0)
	TraceBytes        = size("TRACE_BYTES", "tracebytes", "1073741824", "all", "most bytes of trace to keep", 0)
)

// All gives every setting, in the order of the table.
func All() []*Setting {
	return []*Setting{
		Me.Setting,
		Listen.Setting,
		PortOffset.Setting,
		DefaultDomain.Setting,
		SMTPGreeting.Setting,
		DataBytes.Setting,
		MaxRecipients.Setting,
		MaxHops.Setting,
		TimeoutSMTPD.Setting,
		SecureAuth.Setting,
		RelayClients.Setting,
		BareNewline.Setting,
		MaxDaemons.Setting,
		MaxPerIP.Setting,
		ConcurrencyLocal.Setting,
		ConcurrencyRemote.Setting,
		QMailQueue.Setting,
		DefaultHost.Setting,
		PlusDomain.Setting,
		IDHost.Setting,
		QueueBase.Setting,
		QueueStart.Setting,
		QueueCount.Setting,
		QueueMax.Setting,
		QueueLoad.Setting,
		QueueDir.Setting,
		DomainQueue.Setting,
		RcptRules.Setting,
		FromRules.Setting,
		FromdRules.Setting,
		HoldLocal.Setting,
		HoldRemote.Setting,
		QueueLifetime.Setting,
		BounceLifetime.Setting,
		DelayWarning.Setting,
		BounceFormat.Setting,
		BounceSubject.Setting,
		BounceQueue.Setting,
		BounceProcessor.Setting,
		BounceRules.Setting,
		OnSuccessRemote.Setting,
		OnFailureRemote.Setting,
		MinFree.Setting,
		BounceFrom.Setting,
		BounceHost.Setting,
		BounceMaxBytes.Setting,
		DoubleBounceTo.Setting,
		DoubleBounceHost.Setting,
		HeloHost.Setting,
		SMTPRoutes.Setting,
		TimeoutConnect.Setting,
		TimeoutRemote.Setting,
		PermitPlainAuth.Setting,
		DNSServers.Setting,
		TimeoutPOP3.Setting,
		TimeoutIMAP.Setting,
		TLSCert.Setting,
		DrainSeconds.Setting,
		TraceDays.Setting,
		TraceBytes.Setting,
	}
}

func text(name, file, def, services, help string, wiki int) Key[string] {
	return row(name, file, "text", def, services, help, wiki, parseText)
}

func boolean(name, file, def, services, help string, wiki int) Key[bool] {
	return row(name, file, "bool", def, services, help, wiki, parseBool)
}

func number(name, file, def string, lo, hi int, services, help string, wiki int) Key[int] {
	return row(name, file, "int", def, services, help, wiki, parseInt(lo, hi))
}

func size(name, file, def, services, help string, wiki int) Key[int] {
	return row(name, file, "size in bytes", def, services, help, wiki, parseInt(0, 1<<62))
}

func seconds(name, file, def string, lo, hi int, services, help string, wiki int) Key[time.Duration] {
	return row(name, file, "seconds", def, services, help, wiki, parseSeconds(lo, hi))
}

func oneOf(name, file, def string, allowed []string, services, help string, wiki int) Key[string] {
	return row(name, file, "text", def, services, help, wiki, parseOneOf(allowed))
}

func list(name, file, def, services, help string, wiki int) Key[[]string] {
	return row(name, file, "list", def, services, help, wiki, parseList)
}
