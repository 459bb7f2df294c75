package settings

import "slices"

// The registry's first part: settings that some code reads. built must name each.
var (
	Me                 = text("ME", "me", "localhost", "all", "host name of this system, used in greetings, Received fields and Message-IDs", 0, valid(hostName))
	Listen             = text("LISTEN", "listen", "127.0.0.1", "all", "address that services listen on", 0, valid(listenAddress), atStart)
	PortOffset         = number("PORT_OFFSET", "portoffset", "0", -1, 64000, "all", "number added to every service's port; -1 lets the kernel choose", 0, atStart)
	DefaultDomain      = text("DEFAULT_DOMAIN", "defaultdomain", "", "all", "domain of a login name or address without one; empty means the host name", 424, valid(hostName))
	SMTPGreeting       = text("SMTPGREETING", "smtpgreeting", "", "smtpd", "text of the 220 banner after the code; empty means host name and ESMTP Indigo", 0)
	DataBytes          = size("DATABYTES", "databytes", "52428800", "smtpd,inject", "largest message in bytes; 0 means no limit, and so does unsetting it", 2276, unset("0"))
	MaxRecipients      = number("MAXRECIPIENTS", "maxrecipients", "1000", 1, 100000, "smtpd,inject", "most recipients of one message", 0)
	MaxHops            = number("MAXHOPS", "maxhops", "100", 1, 1000, "smtpd,inject", "most Received fields before a message counts as looping", 0)
	TimeoutSMTPD       = seconds("TIMEOUTSMTPD", "timeoutsmtpd", "300", 1, 86400, "smtpd", "seconds to wait for the client's next bytes", 0)
	SecureAuth         = boolean("SECURE_AUTH", "secure_auth", "1", "smtpd,pop3d,imapd,queue", "take passwords and tokens that the client sends as they are, by PLAIN, LOGIN and the commands LOGIN and USER, only over TLS; where it is set to 1, deliveries send them so whatever REMOTE_PLAIN_AUTH says", 2543)
	RelayClients       = lines("RELAYCLIENTS", "relayclients", "smtpd", "networks that may relay without AUTH: one address, prefix ending in a dot or CIDR a line, each ending in a colon", 2834, clientNetwork)
	BareNewline        = oneOf("BARE_NEWLINE", "barenewline", "reject", []string{"reject", "accept"}, "smtpd", "what to do with a bare CR or LF in a message: reject it, or accept it and make it CRLF; the end of data is CRLF.CRLF in both", 0)
	MaxDaemons         = number("MAXDAEMONS", "maxdaemons", "1000", 1, 1000000, "smtpd,pop3d,imapd,inject,auth", "most connections at a time of one service", 0)
	MaxPerIP           = number("MAXPERIP", "maxperip", "500", 1, 1000000, "smtpd,pop3d,imapd", "most connections at a time of one client address and service", 438)
	ConcurrencyLocal   = number("CONCURRENCYLOCAL", "concurrencylocal", "120", 0, 500, "queue", "most local deliveries at a time; 0 holds local mail", 377)
	ConcurrencyRemote  = number("CONCURRENCYREMOTE", "concurrencyremote", "120", 0, 500, "queue", "most remote deliveries at a time; 0 holds remote mail", 377)
	QMailQueue         = text("QMAILQUEUE", "qmailqueue", "", "smtpd", "program with its arguments that gets each message in qmail-queue's place and calls qmail-queue at its end; qmail-nullqueue throws all away", 532)
	FilterArgs         = text("FILTERARGS", "", "", "smtpd", "filter that each message goes through before it is queued, a line for the shell: it reads the message and writes the one that is queued; its exit code 100 refuses the message, 2 throws it away; not yet obeyed by deliveries", 931)
	DefaultHost        = text("DEFAULT_HOST", "defaulthost", "", "inject", "host that qmail-inject and sendmail give an address without one; empty means DEFAULT_DOMAIN", 0, valid(hostName))
	PlusDomain         = text("PLUSDOMAIN", "plusdomain", "", "inject", "domain that qmail-inject puts in the place of a + at a host's end; empty means the host name", 0, valid(hostName))
	IDHost             = text("IDHOST", "idhost", "", "inject", "host in the Message-IDs that qmail-inject makes; empty means the host name", 0, valid(hostName))
	QueueBase          = text("QUEUE_BASE", "queue_base", "queue", "queue", "directory that holds the queues, relative to the data directory", 528, atStart)
	QueueStart         = number("QUEUE_START", "queuestart", "1", 1, 10000, "queue", "number of the first numbered queue", 530)
	QueueCount         = number("QUEUE_COUNT", "queuecount", "1", 1, 1000, "queue", "how many numbered queues new mail is spread over; read again at a reload", 529)
	QueueMax           = number("QUEUE_MAX", "queuemax", "0", 0, 1000, "queue", "up to how many numbered queues are opened when the load goes beyond QUEUE_LOAD; 0 means QUEUE_COUNT", 533)
	QueueLoad          = number("QUEUE_LOAD", "queueload", "60", 1, 100, "queue", "deliveries that run, in percent of those that may, beyond which another queue is opened", 534)
	QueueDir           = text("QUEUEDIR", "queuedir", "", "all", "name, or path in the queue directory, of the one queue that mail goes to; empty means any numbered one", 537, valid(inside))
	HoldLocal          = boolean("HOLDLOCAL", "holdlocal", "0", "queue", "keep local mail in the queue until this is 0 again", 4462)
	HoldRemote         = boolean("HOLDREMOTE", "holdremote", "0", "queue", "keep remote mail in the queue until this is 0 again", 4462)
	QueueLifetime      = seconds("QUEUELIFETIME", "queuelifetime", "604800", 0, 31536000, "queue", "seconds after which an undelivered message bounces", 206)
	BounceLifetime     = seconds("BOUNCELIFETIME", "bouncelifetime", "604800", 0, 31536000, "queue", "seconds after which an undelivered bounce is given up", 0)
	DelayWarning       = seconds("DELAY_WARNING", "delaywarning", "86400", 0, 31536000, "queue", "seconds after which the sender is told once that a message is late; 0 means never", 0)
	BounceFormat       = oneOf("BOUNCE_FORMAT", "bounceformat", "dsn", []string{"dsn", "qsbmf"}, "queue", "form of bounces: dsn (RFC 3464), or qsbmf, qmail's", 4478)
	BounceSubject      = text("BOUNCESUBJECT", "bouncesubject", "failure notice", "queue", "subject of bounces", 0)
	BounceQueue        = text("BOUNCEQUEUE", "bouncequeue", "", "queue", "program that gets bounces in qmail-queue's place; qmail-nullqueue throws them all away", 2215)
	BounceProcessor    = text("BOUNCEPROCESSOR", "bounceprocessor", "", "queue", "program that is called for each failed recipient before the bounce is queued; exit code 2 keeps the bounce back", 2201)
	OnSuccessRemote    = text("ONSUCCESS_REMOTE", "onsuccess_remote", "", "queue", "program that is run after a remote delivery, with HOST, SENDER and RECIPIENT as arguments, SMTPCODE and SMTPTEXT in the environment", 4510)
	OnFailureRemote    = text("ONFAILURE_REMOTE", "onfailure_remote", "", "queue", "program that is run after a remote delivery that failed or was deferred, as ONSUCCESS_REMOTE", 4510)
	MinFree            = size("MIN_FREE", "minfree", "52428800", "queue", "bytes that must stay free on the queue's file system; below it new mail gets 452", 430)
	BounceFrom         = text("BOUNCEFROM", "bouncefrom", "MAILER-DAEMON", "queue", "local part of the From field of bounces", 0)
	BounceHost         = text("BOUNCEHOST", "bouncehost", "", "queue", "domain of the From field of bounces; empty means the host name", 0, valid(hostName))
	BounceMaxBytes     = size("BOUNCEMAXBYTES", "bouncemaxbytes", "50000", "queue", "a longer message is bounced with its header only; 0 means always the whole, RET=HDRS of the sender always the header", 0)
	DoubleBounceTo     = text("DOUBLEBOUNCETO", "doublebounceto", "postmaster", "queue", "local part or address that gets double bounces; empty means nobody", 0)
	DoubleBounceHost   = text("DOUBLEBOUNCEHOST", "doublebouncehost", "", "queue", "domain for doublebounceto; empty means DEFAULT_DOMAIN, or else the host name", 0, valid(hostName))
	HeloHost           = text("HELOHOST", "helohost", "", "queue", "name that deliveries give in EHLO; empty means the host name", 0, valid(hostName))
	SMTPRoutes         = routes("SMTPROUTES", "smtproutes", "queue", "static routes, domain:relay:port:penalty:tolerance, user password or not, NAME=value,NAME=value or not, a line; an empty domain is the wildcard", 2748)
	TimeoutConnect     = seconds("TIMEOUTCONNECT", "timeoutconnect", "60", 1, 3600, "queue", "seconds to wait for a remote host to accept a connection", 0)
	TimeoutRemote      = seconds("TIMEOUTREMOTE", "timeoutremote", "300", 1, 86400, "queue", "seconds to wait for a remote host's reply", 0)
	PermitPlainAuth    = boolean("REMOTE_PLAIN_AUTH", "remote_plain_auth", "0", "queue", "log in at relays by PLAIN, LOGIN and tokens without TLS, too", 0)
	RemoteTLS          = oneOf("REMOTE_TLS", "remote_tls", "login", []string{"login", "verify", "encrypt", "may", "none"}, "queue", "TLS of deliveries: login takes any certificate where STARTTLS is offered, but shows a password to a verified server only; verify wants a verified certificate always; encrypt wants TLS with any; may is login without its care for passwords; none does without STARTTLS", 0)
	RemoteTLSCA        = text("REMOTE_TLS_CA", "remote_tls_ca", "", "queue", "file of authorities in PEM that relays are verified by, relative to the data directory; empty means the system's", 0)
	RemoteTLSName      = text("REMOTE_TLS_NAME", "", "", "queue", "name that a relay's certificate must be for; empty means the relay as its route names it", 0, valid(hostName))
	RemoteTLSPin       = text("REMOTE_TLS_FINGERPRINT", "", "", "queue", "sha256:HEX, with blanks between several: a relay's certificate, or its key, must be one of these, whoever signed it, and TLS is wanted", 0, valid(fingerprints))
	ClientCert         = text("CLIENTCERT", "", "", "queue", "file with the certificate chain and key that deliveries show to servers that ask for one; empty means clientcert.pem beside the certificate, if it is there", 2100)
	NoTLSHosts         = list("NOTLSHOSTS", "notlshosts", "queue", "domains of recipients that deliveries use no STARTTLS for", 2098)
	DNSServers         = lines("DNSSERVERS", "dnsservers", "all", "name servers as address or address:port, one a line; empty means those of the system", 0, nameServer)
	TimeoutPOP3        = seconds("TIMEOUTPOP3D", "timeoutpop3d", "600", 1, 86400, "pop3d", "seconds to wait for the client's next command", 0)
	TimeoutIMAP        = seconds("TIMEOUTIMAPD", "timeoutimapd", "1800", 1, 86400, "imapd", "seconds to wait for the client's next command", 0)
	TLSCert            = text("TLS_CERT", "tlscert", "certs/servercert.pem", "all", "file with the certificate chain and key in PEM, relative to the data directory", 0)
	DrainSeconds       = seconds("DRAIN", "drain", "30", 0, 3600, "all", "seconds that SIGTERM leaves to open connections and deliveries", 0)
	TraceDays          = number("TRACE_DAYS", "tracedays", "30", 1, 3650, "all", "days to keep the trace", 0)
	TrashDays          = number("TRASH_DAYS", "trashdays", "30", 0, 36500, "all", "days that the mail and rows of removed users and domains stay in the trash; 0 keeps them for ever", 0)
	VlogDays           = number("VLOG_DAYS", "vlogdays", "365", 0, 36500, "all", "days that the lines of who changed what in the directory are kept; 0 keeps them for ever", 0)
	RelayClearMinutes  = number("RELAY_CLEAR_MINUTES", "", "60", 0, 525600, "all", "minutes that an entry of the table relay lets its client relay, and after which it is removed; see CHECKRELAY; 0 lets nobody and removes none", 2846)
	BasePath           = text("BASE_PATH", "", "", "all", "directory for the homes of new users, below it IndiMail's A2E to T2Zsym and the domain; empty means the domain's own directory", 4286, valid(absolutePath), atStart)
	TraceBytes         = size("TRACE_BYTES", "tracebytes", "1073741824", "all", "most bytes of trace to keep", 0)
	ConcurrencyProgram = number("CONCURRENCYPROGRAM", "concurrencyprogram", "20", 1, 500, "queue", "most programs of aliases at a time; others wait up to 30 seconds, then their mail is tried again later", 0, atStart)
	ProgramTimeout     = seconds("PROGRAM_TIMEOUT", "programtimeout", "300", 1, 86400, "queue", "seconds after which a program of an alias is killed with all that it started, and its mail tried again later", 0)

	ControlDir   = text("CONTROLDIR", "", "control", "all", "directory of the control files, relative to the data directory; rules may change it for a session or a delivery", 2265, valid(inside))
	QRegex       = boolean("QREGEX", "qregex", "0", "all", "read the patterns of rules and pattern lists as regular expressions in the place of wildcards", 388)
	TCPRulesFile = text("TCPRULES", "", "", "all", "file in the directory tcp with the rules for clients; empty means tcp.smtp, tcp.pop3, tcp.imap, tcp.qmtp or tcp.qmqp by the kind of service", 2823, valid(inside))
	FromRules    = ruleList("FROMRULES", "from.envrules", "smtpd,inject", "settings by the sender's address, for the door that takes the message, pattern:NAME=value,NAME=value a line", 2271, "smtp")
	AuthRules    = ruleList("AUTHRULES", "auth.envrules", "smtpd", "settings by the name of the authenticated user, pattern:NAME=value,NAME=value a line", 388, "smtp")
	RcptRules    = ruleList("RCPTRULES", "rcpt.envrules", "queue", "settings by the recipient's address, for its delivery and its queue, pattern:NAME=value,NAME=value a line", 2278, "filter", "remote", "local")
	FromdRules   = ruleList("FROMDRULES", "fromd.envrules", "queue", "settings by the sender's address, for the message's deliveries, pattern:NAME=value,NAME=value a line", 388, "filter", "remote", "local")
	DomainQueue  = ruleList("DOMAINQUEUE", "domainqueue", "queue,smtpd,inject", "settings by the recipient's domain for putting a message into a queue, pattern:NAME=value,NAME=value a line", 2291, "smtp", "inject")
	BounceRules  = ruleList("BOUNCERULES", "bounce.envrules", "queue", "settings by the address that gets the bounce, pattern:NAME=value,NAME=value a line", 2211, "bounce")

	Port                  = number("PORT", "", "-1", -1, 65535, "smtpd,pop3d,imapd,metrics,udplogger,acme", "port to listen on; -1 means the number behind the dot of the service's name; PORT_OFFSET is added to either; read at the service's start", 436)
	SMTPS                 = boolean("SMTPS", "", "0", "smtpd,pop3d,imapd,queue", "begin with a TLS handshake; on by itself for ports 465, 993 and 995, and for relays at port 465; read at the service's start", 424)
	Submission            = boolean("SUBMISSION", "", "0", "smtpd", "be a door for users (RFC 6409): AUTH first, missing header fields are added; on by itself for ports 587 and 465; read at the service's start", 4610)
	ODMR                  = boolean("ODMR", "", "0", "smtpd", "be a door for hosts that fetch their mail by ATRN (RFC 2645), and for nothing else; on by itself for port 366; read at the service's start", 1721)
	ATRNAccess            = lines("ATRNACCESS", "atrnaccess", "smtpd", "who may fetch which domains by ATRN, beside `indigo turn grant`: user@domain:domain,domain a line; localhost stands for users of the host", 1757, atrnLine)
	ETRNHosts             = lines("ETRNHOSTS", "etrnhosts", "smtpd", "domains for which anybody may make the queue try at once, by ETRN, what it has for their hosts, and as queue:NAME, queues that ETRN #NAME makes try all that they have; domains whose mail waits in autoturn need not stand here", 1586, etrnHost)
	ETRNPort              = number("ETRN_PORT", "etrnport", "25", 1, 65535, "smtpd", "port of a host to which its mail goes after ETRN and AUTOTURN", 1592)
	AutoTurn              = boolean("AUTOTURN", "autoturn", "0", "smtpd", "send a client, when its connection ends, the mail that waits in the directory of its address in autoturn", 1859)
	AuthModules           = text("AUTHMODULES", "authmodules", "", "smtpd,pop3d,imapd,auth", "sources of passwords, tried in this order: vchkpass, the directory; sys-checkpwd, the host's users; ldap-checkpwd, an LDAP server; dovecot:SOCKET, a Dovecot; programs of the checkpassword interface by their absolute path; empty means the directory", 434)
	IMAPModules           = text("IMAPMODULES", "imapmodules", "", "pop3d,imapd,auth", "sources of passwords for POP3 and IMAP in the place of AUTHMODULES, with their names there: authindi, authshadow, authpwd", 3027)
	IMAPAuthModules       = text("IMAPAUTHMODULES", "imapauthmodules", "", "pop3d,imapd,auth", "the same, in the place of IMAPMODULES", 3026)
	LDAPURL               = text("LDAP_URL", "ldapurl", "", "smtpd,pop3d,imapd,auth", "servers of the source of passwords ldap-checkpwd, tried in this order: ldap://HOST:PORT, ldaps://HOST:PORT, ldapi:///PATH; empty means LDAP_HOST", 3000)
	LDAPHost              = text("LDAP_HOST", "ldaphost", "", "smtpd,pop3d,imapd,auth", "host name of the LDAP server, where LDAP_URL is empty", 3000, valid(listenAddress))
	LDAPPort              = number("LDAP_PORT", "ldapport", "389", 1, 65535, "smtpd,pop3d,imapd,auth", "port of LDAP_HOST", 3000)
	LDAPStartTLS          = boolean("LDAP_STARTTLS", "ldapstarttls", "0", "smtpd,pop3d,imapd,auth", "go over to TLS at ldap://, before a password is sent", 0)
	LDAPCA                = text("LDAP_CA", "ldapca", "", "smtpd,pop3d,imapd,auth", "file of authorities in PEM that LDAP servers are verified by; empty means the system's", 0, valid(absolutePath))
	LDAPBase              = text("LDAP_BASE", "ldapbase", "", "smtpd,pop3d,imapd,auth", "entry below which users are searched", 3000)
	LDAPScope             = oneOf("LDAP_SCOPE", "ldapscope", "sub", []string{"sub", "one", "base", "children"}, "smtpd,pop3d,imapd,auth", "how far below LDAP_BASE", 3000)
	LDAPFilter            = text("LDAP_FILTER", "ldapfilter", "(&(uid=%u)(dc=%h))", "smtpd,pop3d,imapd,auth", "filter that finds a user: %e is the address, %u what is before the @, %h what is behind it, %% a %", 3000)
	LDAPUserDN            = text("LDAP_USER_DN", "ldapuserdn", "", "smtpd,pop3d,imapd,auth", "name of a user's entry with the letters of LDAP_FILTER, to bind as without a search; empty means a search", 0)
	LDAPBindDN            = text("LDAP_BIND_DN", "ldapbinddn", "", "smtpd,pop3d,imapd,auth", "entry to search as; empty means nobody", 3000)
	LDAPBindPassword      = text("LDAP_BIND_PASSWD", "ldapbindpasswd", "", "smtpd,pop3d,imapd,auth", "password of LDAP_BIND_DN", 3000, secret)
	LDAPBindPasswordFile  = text("LDAP_BIND_PASSWD_FILE", "ldapbindpasswdfile", "", "smtpd,pop3d,imapd,auth", "file with the password of LDAP_BIND_DN, in the place of LDAP_BIND_PASSWD; others than its owner and group must not be able to read it", 0, valid(absolutePath))
	LDAPMail              = text("LDAP_FIELD_MAIL", "ldapfieldmail", "", "smtpd,pop3d,imapd,auth", "attribute with the user's address; empty means the name that the client gave", 0)
	LDAPHome              = text("LDAP_FIELD_HOME", "ldapfieldhome", "", "smtpd,pop3d,imapd,auth", "attribute with the user's home; empty means that of the directory", 3000)
	LDAPUID               = text("LDAP_FIELD_UID", "ldapfielduid", "", "auth", "attribute with the uid that the program ldap-checkpwd takes on", 3000)
	LDAPGID               = text("LDAP_FIELD_GID", "ldapfieldgid", "", "auth", "attribute with the gid that the program ldap-checkpwd takes on", 3000)
	LDAPTimeout           = seconds("LDAP_TIMEOUT", "ldaptimeout", "10", 1, 120, "smtpd,pop3d,imapd,auth", "seconds for a question to all LDAP servers together", 0)
	PAMService            = text("PAM_SERVICE", "pamservice", "indigo", "all", "PAM service of the source of passwords pam-checkpwd, a file in /etc/pam.d", 3003, valid(pamService), atStart)
	DovecotAuthSocket     = text("DOVECOT_AUTH_SOCKET", "dovecotauthsocket", "", "auth", "Unix socket at which Postfix and Exim ask for passwords in Dovecot's protocol, relative to the data directory; empty means none", 0, valid(socketPath), atStart)
	DovecotUserdbSocket   = text("DOVECOT_USERDB_SOCKET", "dovecotuserdbsocket", "", "auth", "Unix socket at which Dovecot's delivery agents and doveadm ask for users' homes, relative to the data directory; empty means none", 0, valid(socketPath), atStart)
	DovecotSocketOwner    = text("DOVECOT_SOCKET_OWNER", "dovecotsocketowner", "", "auth", "user, or user:group, by name or number, that both sockets belong to; empty means the serving process's", 0, valid(userGroup), atStart)
	DovecotSocketMode     = text("DOVECOT_SOCKET_MODE", "dovecotsocketmode", "0660", "auth", "mode of both sockets in octal: who may write to one may ask", 0, valid(fileMode), atStart)
	RequireAuth           = boolean("REQUIREAUTH", "requireauth", "0", "smtpd", "take mail from authenticated users only", 2265)
	CheckRelay            = boolean("CHECKRELAY", "checkrelay", "0", "smtpd,pop3d,imapd", "POP before SMTP: at pop3d and imapd, write logins and their addresses into the table relay; at smtpd, let such addresses relay for RELAY_CLEAR_MINUTES, with all others who share them", 2845)
	AuthAll               = boolean("AUTH_ALL", "auth_all", "0", "smtpd", "take mail for others than local users from authenticated users only, whatever RELAYCLIENT says", 2859)
	NoRelay               = boolean("NORELAY", "norelay", "0", "smtpd", "take mail for local users only, also from users who authenticated", 2274)
	RelayClient           = boolean("RELAYCLIENT", "", "0", "smtpd", "let the client relay; nearly always set by tcp rules", 2823)
	AuthDomains           = list("AUTHDOMAINS", "authdomains", "smtpd", "@domains of senders that must authenticate", 2859)
	RelayDomains          = lines("RELAYDOMAINS", "relaydomains", "smtpd", "host names and .domains of clients that may relay, each ending in a colon; the client's name must lead back to its address", 2849, domainEntry)
	RelayMailFrom         = list("RELAYMAILFROM", "relaymailfrom", "smtpd", "senders and @domains that may relay without AUTH; anybody can claim to be them", 2857)
	TLSClients            = list("TLSCLIENTS", "tlsclients", "smtpd", "mail addresses and host names of client certificates, verified by CLIENTCA, that let a client relay; sha256:HEX, the fingerprint of a certificate or its key, needs no authority", 2064)
	RcptHosts             = list("RCPTHOSTS", "rcpthosts", "smtpd", "domains and .domains that mail is taken for beside the directory's, to be sent on", 2881)
	BadIPCheck            = boolean("BADIPCHECK", "badipcheck", "0", "smtpd", "refuse the clients in badip; naming a file in BADIP does the same", 1326)
	BadIP                 = list("BADIP", "badip", "smtpd", "addresses, and prefixes of whole bytes with a dot, of clients that are refused, with BADIPCHECK", 1324)
	BadHostCheck          = boolean("BADHOSTCHECK", "badhostcheck", "0", "smtpd", "refuse the clients in badhost; naming a file in BADHOST does the same", 2283)
	BadHost               = list("BADHOST", "badhost", "smtpd", "host names and .domains of clients that are refused, with BADHOSTCHECK", 2283)
	BadHeloCheck          = boolean("BADHELOCHECK", "badhelocheck", "0", "smtpd", "refuse the names in badhelo; naming a file in BADHELO does the same", 2283)
	BadHelo               = list("BADHELO", "badhelo", "smtpd", "names in HELO and EHLO that are refused, with BADHELOCHECK", 2283)
	FQDNHelo              = boolean("ENFORCE_FQDN_HELO", "enforce_fqdn_helo", "0", "smtpd", "refuse names in HELO and EHLO that have no dot and are no address literal", 2283)
	BadMailFrom           = list("BADMAILFROM", "badmailfrom", "smtpd", "senders and @domains that are refused", 2964)
	BadMailFromPatterns   = patternList("BADMAILFROMPATTERNS", "badmailfrompatterns", "smtpd", "patterns of senders that are refused", 2283)
	BadRcptTo             = list("BADRCPTTO", "badrcptto", "smtpd", "recipients and @domains that are refused", 2963)
	BadRcptPatterns       = patternList("BADRCPTPATTERNS", "badrcptpatterns", "smtpd", "patterns of recipients that are refused", 2283)
	GoodRcptTo            = list("GOODRCPTTO", "goodrcptto", "smtpd", "recipients and @domains that are taken whatever the sender's and the client's lists say", 2963)
	GoodRcptPatterns      = patternList("GOODRCPTPATTERNS", "goodrcptpatterns", "smtpd", "patterns of recipients that are taken whatever the sender's and the client's lists say", 2283)
	BlackholedSender      = list("BLACKHOLEDSENDER", "blackholedsender", "smtpd", "senders and @domains whose mail is taken and thrown away", 2963)
	BlackholeRcpt         = list("BLACKHOLERCPT", "blackholedrcpt", "smtpd", "recipients and @domains whose mail is taken and thrown away", 2963)
	BlackholeRcptPatterns = patternList("BLACKHOLERCPTPATTERNS", "blackholercptpatterns", "smtpd", "patterns of recipients whose mail is taken and thrown away", 2283)
	GreetDelay            = seconds("GREETDELAY", "greetdelay", "0", 0, 300, "smtpd", "seconds before the greeting; a client that talks before it is refused", 2283)
	TarpitCount           = number("TARPITCOUNT", "tarpitcount", "0", 0, 100000, "smtpd", "recipients of a message after which each is answered TARPITDELAY later; 0 means never", 2283)
	TarpitDelay           = seconds("TARPITDELAY", "tarpitdelay", "5", 0, 300, "smtpd", "seconds that TARPITCOUNT delays a reply", 2283)
	MaxRcptErrors         = number("MAX_RCPT_ERRCOUNT", "maxrcpterrcount", "200", 1, 100000, "smtpd", "refused recipients of one connection after which it is closed", 2871)
	HideHost              = boolean("HIDE_HOST", "hide_host", "0", "smtpd", "leave the client's address and name out of the Received field", 166)
	ConnectionRate        = number("CONNECTION_RATE", "connectionrate", "0", 0, 1000000, "smtpd,pop3d,imapd", "most new connections a minute of one client address and service; 0 means no limit", 0)
	SessionTime           = seconds("SESSION_TIME", "sessiontime", "0", 0, 604800, "smtpd,pop3d,imapd", "seconds that a connection may last in all; 0 means no limit", 0)
	OutgoingIP            = text("OUTGOINGIP", "", "", "queue", "address of this host that remote deliveries come from; empty lets the system choose", 2140, valid(ipAddress))
	SMTPRoute             = row("SMTPROUTE", "", "text", "", "queue", "the route of a remote delivery in the form of a line of smtproutes, before that file", 2087, parseOneRoute, []option{secret})

	RemoteAuth        = credentials("REMOTE_AUTH", "remote_auth", "queue", "what deliveries log in with at relays whose route has no password of its own: by the sender, the recipient or the relay, key:user password a line, or a constant database made by cdb-database", 2789)
	RemoteAuthFailure = oneOf("REMOTE_AUTH_FAILURE", "remote_auth_failure", "defer", []string{"defer", "bounce"}, "queue", "what becomes of mail when a relay refuses the login with 535: it waits in the queue while somebody puts the password right, or it is bounced", 0)
	AuthSMTP          = text("AUTH_SMTP", "", "", "queue", "mechanisms that deliveries may log in by, with blanks between several; empty or 1 means all that need only a password, the strongest first", 2287, valid(mechanismList))
	SaltedPassword    = boolean("SALTED_PASSWORD", "", "0", "queue", "the password of a route is SCRAM's salted one in hexadecimal; only SCRAM takes it", 2786)
	MinPenalty        = number("MIN_PENALTY", "", "-1", -1, 31536000, "queue", "seconds that a host is left alone that did not answer for MAX_TOLERANCE; 0 means that it never is, -1 that times grow from a minute to an hour", 2287)
	MaxTolerance      = seconds("MAX_TOLERANCE", "", "120", 0, 31536000, "queue", "seconds that a host may not answer before MIN_PENALTY, or the penalty of its route, begins", 2287)

	HardQuota     = text("HARD_QUOTA", "hardquota", "NOQUOTA", "all", "quota of a new user whose domain has no default quota: 52428800, 52428800S,1000C or NOQUOTA; the environment's goes first", 3242, valid(quota))
	OverQuota     = oneOf("OVERQUOTA", "overquota", "bounce", []string{"bounce", "defer"}, "smtpd,queue", "what becomes of mail that does not fit into its user's quota: it is refused and bounced (552 5.2.2), or deferred (452 4.2.2)", 3240)
	CheckQuota    = boolean("CHECKQUOTA", "checkquota", "1", "smtpd", "refuse mail that does not fit into a user's quota in the session: at RCPT by the size that MAIL gave, and at the end what has one recipient; 0 leaves it to the delivery", 2864)
	QuotaWarn     = text("QUOTA_WARN", "quotawarn", "90", "queue", "percent of a quota, with blanks between several, at which the user gets one warning each; empty means none", 0, valid(percentages))
	QuotaWarnText = lines("QUOTA_WARN_TEXT", "quotawarnmsg", "queue", "text of the warning, a paragraph a line, in which $PERCENT, $USED, $QUOTA and $ADDRESS stand for what they say; a first line with Subject: is its subject; empty means one of Indigo's own", 0, nil)

	LogLevel       = oneOf("LOG_LEVEL", "loglevel", "info", []string{"debug", "info", "warn", "error"}, "all", "least level of the log lines of a service", 0)
	LogDir         = text("LOG_DIR", "logdir", "", "all", "directory, relative to the data directory, in which each service has one of its own that is written as multilog does; empty means standard error", 3778, atStart)
	LogSize        = size("LOG_SIZE", "logsize", "16777216", "all", "bytes after which a file of LOG_DIR is closed and the next is begun", 3778)
	LogNumber      = number("LOG_NUMBER", "lognumber", "10", 1, 10000, "all", "closed files that each service keeps in LOG_DIR", 3778)
	LogTime        = oneOf("LOG_TIME", "logtime", "tai64n", []string{"tai64n", "rfc3339"}, "all", "form of the time before each line in LOG_DIR", 3778)
	RunAs          = text("RUNAS", "runas", "", "all", "user, or user:group, by name or number, that the services run as when root starts them; empty means root", 0, valid(userGroup), atStart)
	Hardening      = boolean("HARDENING", "hardening", "1", "all", "with RUNAS, let the serving process and its programs write only in the data directory, the queues, the logs, /tmp and what WRITABLE names, where the kernel has Landlock", 0, atStart)
	Writable       = lines("WRITABLE", "writable", "all", "directories that programs of services may write in beside those of HARDENING", 0, absolutePath, atStart)
	TLSMinimum     = oneOf("TLS_MINIMUM", "tlsservermethod", "TLSv1_2", []string{"SSLv23", "TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"}, "all", "least version of TLS that a server takes; SSLv23 stands for TLSv1_2 as OpenSSL negotiates it", 2062)
	TLSCipherList  = text("TLS_CIPHER_LIST", "servercipherlist", "", "all", "cipher suites of TLS 1.2 and older, by OpenSSL's or IANA's names with colons between; words like HIGH and those that Go lacks are passed over with a warning; empty means Go's own choice", 2063)
	TLSCipherSuite = text("TLS_CIPHER_SUITE", "serverciphersuite", "", "all", "cipher suites of TLS 1.3 by IANA's names; Go uses its own three whatever stands here", 2063)
	ClientCA       = text("CLIENTCA", "", "", "all", "file with the authorities in PEM whose client certificates are verified; empty means clientca.pem beside the certificate, if it is there", 2066)
	ClientCRL      = text("CLIENTCRL", "", "", "all", "file with the lists of revoked client certificates, in PEM or DER, one of each authority of CLIENTCA; empty means clientcrl.pem beside the certificate, if it is there", 2067)
	CertDir        = text("CERTDIR", "", "", "all", "directory with servercert.pem, where TLS_CERT is not set", 462)
	ServerCert     = text("SERVERCERT", "", "", "all", "file with the certificate chain and key, relative to CERTDIR, where TLS_CERT is not set", 2065)
	ACMEHosts      = lines("ACME_HOSTS", "acmehosts", "all", "host names that certificates are got for by ACME, one a line; it needs the service acme.80 or acme.443, and means that you accept the authority's terms", 0, hostName)
	ACMEDirectory  = text("ACME_DIRECTORY", "acmedirectory", "", "all", "URL of the ACME authority; empty means Let's Encrypt", 0, valid(httpsURL))
	ACMEEmail      = text("ACME_EMAIL", "acmeemail", "", "all", "address that the ACME authority writes to", 0)
	ACMERoots      = text("ACME_ROOTS", "acmeroots", "", "all", "file of authorities in PEM that the ACME server is verified by; empty means the system's", 0)
	DirectoryDSN   = text("DIRECTORY_DSN", "directorydsn", "", "all", "database of the directory: mysql://USER:PASSWORD@HOST:PORT/DATABASE, with ?socket=PATH and &tls=true, skip-verify or false; postgres://…; sqlite:FILE; empty means host.mysql, or else SQLite in the data directory", 4114, secret, atStart)
	PostHandle     = text("POST_HANDLE", "posthandle", "", "all", "program that is run after vadddomain, vdeldomain, vaddaliasdomain, vadduser, vdeluser, vmoduser, vpasswd and vsetuserquota, and after Indigo's commands for the same; the environment's goes first; empty means the file of the program's name in the data directory's handles, or in /usr/libexec/indimail", 2498)
	PasswordHash   = text("PASSWORD_HASH", "passwordhash", "", "all", "how new passwords are hashed: ARGON2ID, BCRYPT, SHA512 (or 3), SHA256 (2) or MD5 (1); empty means ARGON2ID, but SHA512 beside what is kept for SCRAM or CRAM; the environment's goes first", 2283, valid(passwordHash))
	PasswordSCRAM  = oneOf("PASSWORD_SCRAM", "passwordscram", "none", []string{"none", "SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-512"}, "all", "mechanism whose keys are kept with new passwords, so that their users can log in by it; keys are easier to guess against than ARGON2ID", 2664)
	PasswordRehash = boolean("PASSWORD_REHASH", "passwordrehash", "0", "all", "replace weaker stored forms by what PASSWORD_HASH and PASSWORD_SCRAM say when their users log in by PLAIN or LOGIN; an IndiMail on the same database reads none but SHA512, SHA256 and MD5", 0)
	PasswordKept   = oneOf("PASSWORD_SECRETS", "passwordsecrets", "encrypted", []string{"encrypted", "clear"}, "all", "how a password that is kept itself, for CRAM and its like, stands in the database: encrypted with a key of PASSWORD_KEYS, or in clear for other programs that read it there, such as an IndiMail; `indigo auth secrets` changes those that are there", 2627)
	PasswordKeys   = text("PASSWORD_KEYS", "passwordkeys", "", "all", "file with the keys of PASSWORD_SECRETS, relative to the data directory, which hosts with one database must share; empty means password.keys there; it is made when it is needed first", 0, atStart)
	PasswordLength = number("PASSWORD_MIN_LENGTH", "passwordminlength", "0", 0, 128, "all", "least number of letters of new passwords", 0)
	BadPasswords   = list("BADPASSWORDS", "badpasswords", "all", "passwords that are refused in any case of their letters, one a line", 0)
	HostMySQL      = lines("HOST_MYSQL", "host.mysql", "all", "database of the directory in IndiMail's form, host:user:password:socket or host:user:password:port, with :ssl or :nossl behind it", 4114, nil, secret, atStart)
	MySQLDatabase  = text("MYSQL_DATABASE", "mysqldatabase", "indimail", "all", "name of the database that host.mysql means", 4114, atStart)
	UDPLogDir      = text("UDPLOG_DIR", "udplogdir", "log/udplogger", "udplogger", "directory that udplogger writes what it receives to, as multilog would", 707)

	ForceTLS      = boolean("FORCE_TLS", "force_tls", "0", "smtpd,pop3d,imapd", "offer and take logins only over TLS, by whatever mechanism", 4665)
	EnableCRAM    = boolean("ENABLE_CRAM", "enable_cram", "0", "smtpd,pop3d,imapd", "offer the CRAM mechanisms, DIGEST-MD5 and APOP whatever the directory is seen to keep, and let a password that stands alone in pw_passwd, in clear text or hashed by the client, serve them", 2591)
	HashSecret    = boolean("ENABLE_CRAM_HASH", "enable_cram_hash", "0", "smtpd,pop3d,imapd", "with ENABLE_CRAM, let a client answer challenges with the hash that stands in pw_passwd as its password: who has seen the hash can log in", 2653)
	AuthExternal  = boolean("AUTH_EXTERNAL", "auth_external", "0", "smtpd,pop3d,imapd", "offer EXTERNAL to clients whose certificate, by an authority of CLIENTCA, has a mail address: it logs in the user of that address", 0)
	AuthAnonymous = text("AUTH_ANONYMOUS", "auth_anonymous", "", "pop3d,imapd", "user as whom ANONYMOUS (RFC 4505) logs anybody in: a public mailbox, of which everybody may do all that its user may; empty does not offer it", 0, valid(userAddress))
	LockClient    = number("AUTH_LOCK_CLIENT", "auth_lock_client", "10", 0, 1000000, "all", "failed logins of one client address (IPv6: of one /64) within AUTH_LOCK_TIME, the same wrong password counting once, after which its logins are refused for AUTH_LOCK_TIME; 0 refuses none", 0)
	LockAccount   = number("AUTH_LOCK_ACCOUNT", "auth_lock_account", "30", 0, 1000000, "all", "failed logins to one account within AUTH_LOCK_TIME, from all addresses, after which its logins are refused for AUTH_LOCK_TIME but from addresses where the user logged in within 30 days; 0 refuses none", 0)
	LockTime      = seconds("AUTH_LOCK_TIME", "auth_lock_time", "900", 1, 86400, "all", "seconds that failed logins count, and that logins are refused", 0)
	LockDelay     = seconds("AUTH_DELAY", "auth_delay", "8", 0, 60, "all", "longest time in seconds that the reply to a failed login is kept back: none for the first, one second for the second, twice as long for each further one; 0 keeps none back", 0)
	LockExempt    = text("AUTH_EXEMPT", "auth_exempt", "127.0.0.0/8 ::1", "all", "addresses and networks in CIDR form, with spaces between, whose failed logins are not counted, such as a webmail's; none exempts nobody", 0, valid(networks))
	RedisURL      = text("REDIS_URL", "redisurl", "", "all", "server of Redis's protocol by which hosts share failed logins, locks and known addresses, and tell each other of changes of the directory: redis://USER:PASSWORD@HOST:PORT/DATABASE, rediss:// for TLS, or unix:///PATH; empty means that each host counts by itself", 0, secret, valid(redisURL))
	RedisCA       = text("REDIS_CA", "redisca", "", "all", "file of authorities in PEM that REDIS_URL's server is verified by with rediss://; empty means the system's", 0, valid(absolutePath))
	RedisPrefix   = text("REDIS_PREFIX", "redisprefix", "indigo:", "all", "what the names of keys and channels begin with at REDIS_URL's server; the same on all hosts of a platform, another for each platform that uses the server", 0, valid(redisPrefix))
	OldAuth       = boolean("BROKEN_SASL_AUTH_CLIENTS", "broken_sasl_auth_clients", "0", "smtpd", "announce AUTH a second time as AUTH=, for clients older than RFC 2554", 0)
	DisableAPOP   = boolean("DISABLE_APOP", "", "0", "pop3d", "do not offer APOP", 0)
	// DisableMechanism has a setting for each SASL mechanism that can be switched off alone.
	DisableMechanism = disableMechanisms()

	OAuthIssuer              = text("OAUTH_ISSUER", "oauthissuer", "", "smtpd,pop3d,imapd,auth", "issuer of the OAuth tokens that OAUTHBEARER and XOAUTH2 log in with, as tokens name it, for example https://id.example.org/realms/mail; empty offers neither", 0, valid(webURL))
	OAuthAudience            = text("OAUTH_AUDIENCE", "oauthaudience", "", "smtpd,pop3d,imapd,auth", "audiences, with blanks between them, one of which a token must be for (aud); empty asks nothing of it, where OAUTH_CLIENTS is set", 0)
	OAuthClients             = text("OAUTH_CLIENTS", "oauthclients", "", "smtpd,pop3d,imapd,auth", "client ids, with blanks between them, one of which a token must have been given to (azp, client_id or appid); empty asks nothing of it, where OAUTH_AUDIENCE is set", 0)
	OAuthClaim               = text("OAUTH_CLAIM", "oauthclaim", "email", "smtpd,pop3d,imapd,auth", "claim of a token, or field of the introspection's answer, that has the user's address; what it has without a domain is of OAUTH_DOMAIN; email is refused where email_verified is false", 0, valid(oneWord))
	OAuthScope               = text("OAUTH_SCOPE", "oauthscope", "", "smtpd,pop3d,imapd,auth", "scopes, with blanks between them, that a token must all have (scope or scp)", 0)
	OAuthDomain              = text("OAUTH_DOMAIN", "oauthdomain", "", "smtpd,pop3d,imapd,auth", "domain of what OAUTH_CLAIM has without one; empty means DEFAULT_DOMAIN", 0, valid(hostName))
	OAuthRules               = ruleList("OAUTHRULES", "oauth.envrules", "smtpd,pop3d,imapd,auth", "settings of OAuth tokens by the user's domain, pattern:NAME=value,NAME=value a line; a line with OAUTH_ISSUER takes over nothing that is said of another issuer", 0, "oauth")
	OAuthSkew                = seconds("OAUTH_SKEW", "oauthskew", "60", 0, 600, "smtpd,pop3d,imapd,auth", "seconds that the issuer's clock may be off", 0)
	OAuthIntrospection       = text("OAUTH_INTROSPECTION", "oauthintrospection", "", "smtpd,pop3d,imapd,auth", "URL at which the issuer is asked about every token (RFC 7662); empty takes JWTs alone, by the issuer's keys", 0, valid(webURL))
	OAuthIntrospectionID     = text("OAUTH_INTROSPECTION_ID", "oauthintrospectionid", "", "smtpd,pop3d,imapd,auth", "client id to ask OAUTH_INTROSPECTION with", 0)
	OAuthIntrospectionSecret = text("OAUTH_INTROSPECTION_SECRET_FILE", "oauthintrospectionsecretfile", "", "smtpd,pop3d,imapd,auth", "file with that client's secret; others than its owner and group must not be able to read it", 0, valid(absolutePath))
	OAuthCA                  = text("OAUTH_CA", "oauthca", "", "smtpd,pop3d,imapd,auth", "file of authorities in PEM that the issuer is verified by; empty means the system's", 0, valid(absolutePath))
	OAuthTimeout             = seconds("OAUTH_TIMEOUT", "oauthtimeout", "10", 1, 60, "smtpd,pop3d,imapd,auth", "seconds for all that the issuer is asked about one token", 0)
	OAuthRemember            = seconds("OAUTH_CACHE", "oauthcache", "60", 0, 3600, "smtpd,pop3d,imapd,auth", "longest time in seconds that an answer of OAUTH_INTROSPECTION is believed: for so long a revoked token is good", 0)
	OAuthLoopback            = boolean("OAUTH_LOOPBACK", "oauthloopback", "0", "smtpd,pop3d,imapd,auth", "let the issuer's URLs at addresses of this host begin with http", 0)
)

// switchable gives the SASL mechanisms that have a setting to switch them off, and the wiki's word for each.
func switchable() [][2]string {
	return [][2]string{
		{"PLAIN", "AUTH_PLAIN"}, {"LOGIN", "AUTH_LOGIN"}, {"CRAM-MD5", "CRAM_MD5"}, {"CRAM-SHA1", "CRAM_SHA1"}, {"CRAM-SHA224", "CRAM_SHA224"},
		{"CRAM-SHA256", "CRAM_SHA256"}, {"CRAM-SHA384", "CRAM_SHA384"}, {"CRAM-SHA512", "CRAM_SHA512"}, {"CRAM-RIPEMD", "CRAM_RIPEMD"},
		{"DIGEST-MD5", "DIGEST_MD5"}, {"SCRAM-SHA-1", "SCRAM_SHA1"}, {"SCRAM-SHA-256", "SCRAM_SHA256"}, {"SCRAM-SHA-512", "SCRAM_SHA512"},
		{"SCRAM-SHA-1-PLUS", "SCRAM_SHA1_PLUS"}, {"SCRAM-SHA-256-PLUS", "SCRAM_SHA256_PLUS"}, {"SCRAM-SHA-512-PLUS", "SCRAM_SHA512_PLUS"},
		{"OAUTHBEARER", "OAUTHBEARER"}, {"XOAUTH2", "XOAUTH2"},
	}
}

func disableMechanisms() map[string]Key[bool] {
	all := map[string]Key[bool]{}
	for _, m := range switchable() {
		wiki := 2729
		if slices.Contains([]string{"OAUTHBEARER", "XOAUTH2"}, m[0]) {
			wiki = 0
		}
		all[m[0]] = boolean("DISABLE_"+m[1], "", "0", "smtpd,pop3d,imapd,queue", "do not offer "+m[0]+"; deliveries do not log in by it", wiki)
	}
	return all
}

// built gives the settings above, in the order of the table.
func built() []*Setting {
	all := []*Setting{
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
		ConcurrencyProgram.Setting,
		ProgramTimeout.Setting,
		QMailQueue.Setting,
		FilterArgs.Setting,
		DefaultHost.Setting,
		PlusDomain.Setting,
		IDHost.Setting,
		QueueBase.Setting,
		QueueStart.Setting,
		QueueCount.Setting,
		QueueMax.Setting,
		QueueLoad.Setting,
		QueueDir.Setting,
		HoldLocal.Setting,
		HoldRemote.Setting,
		QueueLifetime.Setting,
		BounceLifetime.Setting,
		DelayWarning.Setting,
		BounceFormat.Setting,
		BounceSubject.Setting,
		BounceQueue.Setting,
		BounceProcessor.Setting,
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
		RemoteTLS.Setting,
		RemoteTLSCA.Setting,
		RemoteTLSName.Setting,
		RemoteTLSPin.Setting,
		ClientCert.Setting,
		NoTLSHosts.Setting,
		DNSServers.Setting,
		TimeoutPOP3.Setting,
		TimeoutIMAP.Setting,
		TLSCert.Setting,
		DrainSeconds.Setting,
		TraceDays.Setting,
		TraceBytes.Setting,
		TrashDays.Setting,
		VlogDays.Setting,
		RelayClearMinutes.Setting,
		BasePath.Setting,
		ControlDir.Setting,
		QRegex.Setting,
		TCPRulesFile.Setting,
		FromRules.Setting,
		AuthRules.Setting,
		RcptRules.Setting,
		FromdRules.Setting,
		DomainQueue.Setting,
		BounceRules.Setting,
		Port.Setting,
		SMTPS.Setting,
		Submission.Setting,
		ODMR.Setting,
		ATRNAccess.Setting,
		ETRNHosts.Setting,
		ETRNPort.Setting,
		AutoTurn.Setting,
		AuthModules.Setting,
		IMAPModules.Setting,
		IMAPAuthModules.Setting,
		LDAPURL.Setting,
		LDAPHost.Setting,
		LDAPPort.Setting,
		LDAPStartTLS.Setting,
		LDAPCA.Setting,
		LDAPBase.Setting,
		LDAPScope.Setting,
		LDAPFilter.Setting,
		LDAPUserDN.Setting,
		LDAPBindDN.Setting,
		LDAPBindPassword.Setting,
		LDAPBindPasswordFile.Setting,
		LDAPMail.Setting,
		LDAPHome.Setting,
		LDAPUID.Setting,
		LDAPGID.Setting,
		LDAPTimeout.Setting,
		PAMService.Setting,
		DovecotAuthSocket.Setting,
		DovecotUserdbSocket.Setting,
		DovecotSocketOwner.Setting,
		DovecotSocketMode.Setting,
		RequireAuth.Setting,
		CheckRelay.Setting,
		AuthAll.Setting,
		NoRelay.Setting,
		RelayClient.Setting,
		AuthDomains.Setting,
		RelayDomains.Setting,
		RelayMailFrom.Setting,
		TLSClients.Setting,
		RcptHosts.Setting,
		BadIPCheck.Setting,
		BadIP.Setting,
		BadHostCheck.Setting,
		BadHost.Setting,
		BadHeloCheck.Setting,
		BadHelo.Setting,
		FQDNHelo.Setting,
		BadMailFrom.Setting,
		BadMailFromPatterns.Setting,
		BadRcptTo.Setting,
		BadRcptPatterns.Setting,
		GoodRcptTo.Setting,
		GoodRcptPatterns.Setting,
		BlackholedSender.Setting,
		BlackholeRcpt.Setting,
		BlackholeRcptPatterns.Setting,
		GreetDelay.Setting,
		TarpitCount.Setting,
		TarpitDelay.Setting,
		MaxRcptErrors.Setting,
		HideHost.Setting,
		ConnectionRate.Setting,
		SessionTime.Setting,
		OutgoingIP.Setting,
		SMTPRoute.Setting,
		RemoteAuth.Setting,
		RemoteAuthFailure.Setting,
		AuthSMTP.Setting,
		SaltedPassword.Setting,
		MinPenalty.Setting,
		MaxTolerance.Setting,
		HardQuota.Setting,
		OverQuota.Setting,
		CheckQuota.Setting,
		QuotaWarn.Setting,
		QuotaWarnText.Setting,
		LogLevel.Setting,
		LogDir.Setting,
		LogSize.Setting,
		LogNumber.Setting,
		LogTime.Setting,
		RunAs.Setting,
		Hardening.Setting,
		Writable.Setting,
		TLSMinimum.Setting,
		TLSCipherList.Setting,
		TLSCipherSuite.Setting,
		ClientCA.Setting,
		ClientCRL.Setting,
		CertDir.Setting,
		ServerCert.Setting,
		ACMEHosts.Setting,
		ACMEDirectory.Setting,
		ACMEEmail.Setting,
		ACMERoots.Setting,
		DirectoryDSN.Setting,
		PostHandle.Setting,
		PasswordHash.Setting,
		PasswordSCRAM.Setting,
		PasswordRehash.Setting,
		PasswordKept.Setting,
		PasswordKeys.Setting,
		PasswordLength.Setting,
		BadPasswords.Setting,
		EnableCRAM.Setting,
		HashSecret.Setting,
		HostMySQL.Setting,
		MySQLDatabase.Setting,
		UDPLogDir.Setting,
		ForceTLS.Setting,
		AuthExternal.Setting,
		AuthAnonymous.Setting,
		LockClient.Setting,
		LockAccount.Setting,
		LockTime.Setting,
		LockDelay.Setting,
		LockExempt.Setting,
		RedisURL.Setting,
		RedisCA.Setting,
		RedisPrefix.Setting,
		OldAuth.Setting,
		OAuthIssuer.Setting,
		OAuthAudience.Setting,
		OAuthClients.Setting,
		OAuthClaim.Setting,
		OAuthScope.Setting,
		OAuthDomain.Setting,
		OAuthRules.Setting,
		OAuthSkew.Setting,
		OAuthIntrospection.Setting,
		OAuthIntrospectionID.Setting,
		OAuthIntrospectionSecret.Setting,
		OAuthCA.Setting,
		OAuthTimeout.Setting,
		OAuthRemember.Setting,
		OAuthLoopback.Setting,
		DisableAPOP.Setting,
	}
	for _, m := range switchable() {
		all = append(all, DisableMechanism[m[0]].Setting)
	}
	return all
}
