package settings

// pendingSettings are what the wiki names and nothing reads yet: they are checked, listed as "not yet", and setting one
// gives a warning. A row moves to table.go when its feature comes.
func pendingSettings() []*Setting {
	var all []*Setting
	add := func(s *Setting) { all = append(all, s) }
	word := func(name, file, services, help string, wiki int) {
		add(text(name, file, "", services, help, wiki, pending).Setting)
	}
	flag := func(name, file, services, help string, wiki int) {
		add(boolean(name, file, "0", services, help, wiki, pending).Setting)
	}
	count := func(name, file, def, services, help string, wiki int) {
		add(number(name, file, def, -1<<31, 1<<40, services, help, wiki, pending).Setting)
	}
	file := func(name, file, services, help string, wiki int) {
		add(lines(name, file, services, help, wiki, nil, pending).Setting)
	}
	entries := func(name, file, services, help string, wiki int) {
		add(list(name, file, services, help, wiki, pending).Setting)
	}
	patterns := func(name, file, services, help string, wiki int) {
		add(patternList(name, file, services, help, wiki, pending).Setting)
	}
	hidden := func(name, file, services, help string, wiki int) {
		add(lines(name, file, services, help, wiki, nil, pending, secret).Setting)
	}

	// Who may send what to whom.
	file("ACCESSLIST", "accesslist", "smtpd", "who may send to whom, type:sender:recipient a line", 2922)
	file("HOSTACCESS", "hostaccess", "smtpd", "addresses that a sender's domain may come from", 4438)
	entries("CHKRCPTDOMAINS", "chkrcptdomains", "smtpd", "@domains whose recipients CHECKRECIPIENT checks; Indigo checks all", 2869)
	entries("CHKSENDERDOMAINS", "chksenderdomains", "smtpd", "@domains whose senders CHECKSENDER checks", 2858)
	word("CHECKRECIPIENT", "", "smtpd", "how recipients are looked up, 1 to 3; Indigo always looks into its directory", 2863)
	word("CHECKSENDER", "", "smtpd", "make senders of the local domains authenticate under their own names", 2858)
	flag("MASQUERADE", "", "smtpd", "let authenticated users send under other names; Indigo does", 2861)
	file("RECIPIENTS", "recipients", "smtpd", "where recipients are looked up beside the directory, a domain with a cdb or a program a line", 2878)
	entries("NODNSCHECKFILE", "nodnscheck", "smtpd", "domains of senders that are not looked up in the DNS", 1611)
	flag("NODNSCHECK", "", "smtpd", "do not look up the domains of senders in the DNS; Indigo does not yet", 2283)
	flag("TCPPARANOID", "", "smtpd", "refuse clients whose host name does not lead back to their address", 2283)
	flag("CUGMAIL", "", "smtpd", "let a domain get mail from its own users only", 2283)
	flag("BOUNCEMAIL", "", "smtpd", "refuse bounces", 2283)
	word("GREYIP", "", "smtpd", "address of the greylisting server", 2283)
	flag("DISABLE_PLUGIN", "", "smtpd", "do not load the plugins of PLUGIN0, PLUGIN1, …; Indigo loads none", 419)
	word("PLUGIN0", "", "smtpd", "shared object that tcpserver loads; Indigo loads none", 443)
	word("PLUGIN0_dir", "", "smtpd", "directory of PLUGIN0", 433)
	word("PLUGIN0_init", "", "smtpd", "function of PLUGIN0", 445)
	word("PLUGIN1", "", "smtpd", "shared object that tcpserver loads; Indigo loads none", 423)
	word("PLUGINDIR", "plugindir", "smtpd", "directory of plugins", 1347)
	word("RBLCOMMAND", "", "smtpd", "program with the DNS lists that clients are looked up in", 452)
	flag("RBLEHLO", "", "smtpd", "refuse what RBLCOMMAND says after EHLO in the place of at connect", 438)
	word("LOCALIP", "", "smtpd", "address that the service listens on; LISTEN is Indigo's", 461)
	size := func(name, services, help string, wiki int) { count(name, "", "0", services, help, wiki) }
	size("SOFT_MEM", "all", "bytes of memory that a process of a service may use; Indigo's sessions have fixed limits", 441)
	flag("DATABYTES_NOTIFY", "", "smtpd", "tell the recipients of a message that was refused for its size", 4446)

	// AUTH.
	flag("NATIVE_PASSWORD", "", "smtpd", "hand password programs the stored form", 2728)
	flag("PASSWD_CACHE", "", "all", "keep password entries in memory; Indigo does", 439)
	flag("QUERY_CACHE", "", "all", "ask inlookup; Indigo's directory has a cache of its own", 442)
	word("INFIFO", "", "all", "name of inlookup's FIFO; Indigo has no inlookup", 421)
	word("INFIFODIR", "", "all", "directory of inlookup's FIFO; Indigo has no inlookup", 431)
	word("FIFO_MODE", "", "all", "mode of inlookup's FIFO; Indigo has no inlookup", 2915)
	flag("USE_GETPW", "", "all", "ask the C library for users; Indigo reads the files of the system", 4700)
	flag("USE_QPWGR", "", "all", "read the files of users without the C library; Indigo does", 1900)
	flag("DOMAIN_LIMITS", "", "all", "obey the limits of domains", 3442)
	flag("MIGRATEUSER", "", "all", "bring users over from another system as they log in", 4569)
	word("PWSTRUCT", "", "all", "password entry that a program hands on", 1266)
	word("VIRTUAL_PKG_LIB", "libindimail", "all", "shared object of the virtual domains; Indigo needs none", 449)
	word("MYSQL_LIB", "mysql_lib", "all", "shared object of MySQL's client; Indigo needs none", 2980)

	// TLS.
	word("TLSCIPHERS", "", "smtpd", "cipher suites; TLS_CIPHER_LIST is the later name", 2283)
	word("STARTTLS", "", "smtpd", "offer STARTTLS; Indigo does when there is a certificate", 2083)
	word("SSL_BITS", "", "smtpd", "bits of temporary keys; Go makes its own", 2128)
	word("SSL_CERT_DIR", "", "all", "directory of the authorities that servers are verified by", 3889)
	word("SSL_CERT_FILE", "", "all", "file of the authorities that servers are verified by", 3889)
	word("TLSCLIENTMETHOD", "tlsclientmethod", "queue", "versions of TLS that deliveries take", 2096)
	word("CLIENTCIPHERLIST", "clientcipherlist", "queue", "cipher suites of TLS 1.2 for deliveries", 2097)
	word("CLIENTCIPHERSUITE", "clientciphersuite", "queue", "cipher suites of TLS 1.3 for deliveries", 2097)
	file("TLSA_WHITE", "tlsa.white", "queue", "hosts that are not looked up for DANE", 645)
	word("TLSA_CONTEXT", "tlsa.context", "queue", "qmail-daned's memory", 645)

	// Filters, spam and viruses.
	file("FILTERARGSFILE", "filterargs", "queue", "programs that messages go through before their deliveries, by domain", 959)
	word("SPAMFILTER", "", "smtpd,inject,queue", "program that tells spam by its exit code", 437)
	word("SPAMFILTERARGS", "", "smtpd,inject,queue", "arguments of the spam filter", 2283)
	count("SPAMEXITCODE", "", "0", "smtpd,inject,queue", "exit code of SPAMFILTER that means spam", 432)
	count("HAMEXITCODE", "", "1", "queue", "exit code of SPAMFILTER that means ham", 2285)
	count("UNSUREEXITCODE", "", "2", "queue", "exit code of SPAMFILTER that means that it is not sure", 2285)
	word("REJECTSPAM", "", "smtpd,inject,queue", "what to do with spam: 0 take, 1 refuse, 2 throw away", 454)
	word("REJECTVIRUS", "", "smtpd,inject", "what to do with viruses", 1397)
	word("SPAMREDIRECT", "", "smtpd,queue", "address that spam goes to", 2283)
	entries("SPAMIGNORE", "spamignore", "smtpd,queue", "senders and @domains that the spam filter is not asked about", 1610)
	patterns("SPAMIGNOREPATTERNS", "spamignorepatterns", "smtpd,queue", "patterns of senders that the spam filter is not asked about", 2283)
	word("SPAMQUEUE", "", "smtpd", "program that gets the message behind the spam filter", 1283)
	word("VIRUSCHECK", "viruscheck", "smtpd,inject", "look for viruses", 409)
	word("VIRUSFORWARD", "", "smtpd", "address that viruses go to", 2283)
	word("QHPSI", "", "smtpd,inject", "virus scanner's command line, %s for the message", 410)
	count("QHPSIMAXSIZE", "", "0", "smtpd,inject", "largest message that is scanned, in bytes", 2283)
	count("QHPSIMINSIZE", "", "0", "smtpd,inject", "smallest message that is scanned, in bytes", 2283)
	count("QHPSIRC", "", "1", "smtpd,inject", "exit code of QHPSI that means a virus", 2283)
	count("QHPSIRN", "", "0", "smtpd,inject", "exit code of QHPSI that means no virus", 2283)
	word("SCANCMD", "", "smtpd,inject", "virus scanner of qscanq", 2283)
	flag("BODYCHECK", "", "smtpd,inject", "look for the patterns of bodycheck in messages", 446)
	file("BODYCHECKFILE", "bodycheck", "smtpd,inject", "patterns of messages that are refused", 4431)
	word("SIGNATURES", "signatures", "smtpd", "patterns of attachments that are refused", 4431)
	word("LOGFILTER", "", "smtpd,inject", "FIFO that gets what the spam filter says", 418)
	entries("BADEXT", "badext", "smtpd,inject", "extensions of file names that are not taken as attachments", 2963)
	patterns("BADEXTPATTERNS", "badextpatterns", "smtpd,inject", "patterns of file names that are not taken as attachments", 2283)
	file("QFILTERS", "qfilters", "smtpd,inject", "filters that qfrontend runs", 937)
	word("QQF_QMAILQUEUE", "", "smtpd,inject", "program that qmail-qfilter queues by", 934)
	word("QQF_MAILQUEUE", "", "smtpd,inject", "program that qmail-qfilter queues by", 938)
	word("QUEUEPROG", "", "smtpd,inject", "program that qmail-queue's frontends queue by", 2283)
	word("QUEUE_PLUGIN", "", "smtpd,inject", "shared object that qmail-queue loads; Indigo loads none", 1347)
	word("NULLQUEUE", "", "smtpd,inject", "throw the message away", 945)
	word("EXTRAQUEUE", "extraqueue", "smtpd,inject", "address that gets a copy of each message", 2241)
	file("MAILARCHIVE", "mailarchive", "smtpd,inject", "addresses that get copies, by sender or recipient", 2246)
	word("QUARANTINE", "quarantine", "smtpd,inject", "addresses that get the message in its recipients' place", 2283)
	word("ENVHEADERS", "envheaders", "smtpd,inject", "header fields that go into the environment of programs", 2283)
	word("LOGHEADERS", "logheaders", "smtpd,inject", "header fields that are logged", 2283)
	count("LOGHEADERFD", "", "2", "smtpd,inject", "file descriptor that LOGHEADERS writes to", 2283)
	word("REMOVEHEADERS", "removeheaders", "smtpd,inject", "header fields that are taken out", 2283)
	word("QQEH", "", "smtpd,inject", "header field that goes along with the message", 2283)
	count("ERROR_FD", "", "2", "smtpd,inject", "file descriptor for messages of programs", 2283)
	flag("SANITIZE_ENV", "", "queue", "clear the environment of programs in dot-qmail files", 977)

	// Queue and delivery.
	flag("USE_FSYNC", "", "all", "sync messages to the disk; Indigo always does", 403)
	flag("USE_SYNCDIR", "", "all", "sync directories to the disk; Indigo always does", 411)
	flag("MAKE_SEEKABLE", "", "all", "hand programs a file in the place of a pipe; Indigo always does", 458)
	flag("USE_DLMOPEN", "", "all", "load plugins apart; Indigo loads none", 427)
	flag("BIGTODO", "", "queue", "split the queue's todo directory; Indigo's queue has none", 475)
	count("CONFSPLIT", "conf-split", "151", "queue", "directories that a queue is split into; Indigo's queue has none", 408)
	flag("DYNAMIC_QUEUE", "", "queue", "open more queues under load; QUEUE_MAX does so in Indigo", 484)
	word("QMAILLOCAL", "", "queue", "program in the place of qmail-local", 950)
	word("QMAILREMOTE", "", "queue", "program in the place of qmail-remote", 950)
	word("MDA", "", "queue", "program that delivers to virtual users", 2285)
	word("DEFAULTDELIVERY", "defaultdelivery", "queue", "how mail for system users is delivered", 185)
	file("LOCALS", "locals", "queue", "domains whose users are the system's", 198)
	file("VIRTUALDOMAINS", "virtualdomains", "queue", "domains and the users who get their mail; Indigo's virtual domains are in its directory", 198)
	file("PERCENTHACK", "percenthack", "queue", "domains for which user%host@domain is sent on to user@host", 4490)
	word("LOCALDOMAINS", "", "queue", "domains that count as local for a delivery", 2289)
	count("MAXDELIVEREDTO", "maxdeliveredto", "0", "queue", "deliveries of one message to one address", 4678)
	flag("ELIMINATE_DUPS", "", "queue", "drop a message that was delivered already", 877)
	count("ELIMINATE_DUPS_INT", "", "900", "queue", "seconds for which ELIMINATE_DUPS remembers", 884)
	word("ELIMINATE_DUPS_ARGS", "", "queue", "program that ELIMINATE_DUPS compares by", 889)
	file("OUTGOINGIPS", "outgoingip", "queue", "addresses of this host that a script of QMAILREMOTE chooses from", 2141)
	word("DOMAINBINDINGS", "domainbindings", "queue", "address of this host by the recipient's domain", 2287)
	file("QMTPROUTES", "qmtproutes", "queue", "routes by QMTP", 2363)
	file("QMQPSERVERS", "qmqpservers", "inject", "servers that qmail-qmqpc hands mail to", 2297)
	word("REDIRECTREMOTE", "redirectremote", "queue", "addresses that remote mail goes to in the place of its own", 4686)
	count("SMTP_RATE", "", "0", "queue", "messages a period to one host; `indigo queue rate` does so", 478)
	word("CONCURRENCYQ", "", "queue", "concurrency of one queue", 377)

	// DKIM, SPF, SRS, BATV.
	for _, key := range []struct {
		name string
		help string
		wiki int
	}{
		{"DKIMSIGN", "private key that messages are signed with", 407}, {"DKIMVERIFY", "what to do with signatures that do not verify", 447},
		{"DKIMSIGNOPTIONS", "how messages are signed", 477}, {"DKIMSIGNOPTIONSEXTRA", "how messages are signed a second time", 487},
		{"DKIMQUEUE", "program that qmail-dkim queues by", 943}, {"DKIMPRACTICE", "signing practice of the domain", 2283},
		{"DKIMIDENTITY", "identity in signatures", 2283}, {"DKIMEXPIRE", "seconds after which a signature expires", 2283},
		{"DKSIGN", "private key of DomainKeys", 2283}, {"DKVERIFY", "what to do with DomainKeys that do not verify", 2283},
		{"DKSIGNOPTIONS", "how messages are signed by DomainKeys", 2283}, {"DKQUEUE", "program that qmail-dk queues by", 942},
		{"DKEXCLUDEHEADERS", "header fields that are not signed", 2283}, {"SIGN_PRACTICE", "adsp to ask for the signing practice of the sender", 2283},
		{"UNSIGNED_SUBJECT", "accept signatures without the Subject", 453}, {"SIGNKEY", "key that bounces are marked with", 2283},
		{"SIGNKEYSTALE", "days that such a mark holds", 2283},
	} {
		word(key.name, "", "smtpd,inject,queue", key.help, key.wiki)
	}
	file("SIGNATUREDOMAINS", "signaturedomains", "smtpd,queue", "domains whose signatures must verify", 2283)
	file("NOSIGNATUREDOMAINS", "nosignaturedomains", "smtpd,queue", "domains whose signatures need not verify", 2283)
	file("DKIMKEYS", "domainkeys", "smtpd,inject,queue", "directory of the private keys", 407)
	word("SPFBEHAVIOR", "spfbehavior", "smtpd", "what to do by SPF, 0 to 6", 2283)
	word("SPFRULES", "spfrules", "smtpd", "SPF rules in front of every domain's", 2283)
	word("SPFGUESS", "spfguess", "smtpd", "SPF rules for domains without", 2283)
	word("SPFEXP", "spfexp", "smtpd", "text of a refusal by SPF", 2283)
	flag("SPFIPV6", "spfipv6", "smtpd", "SPF for clients with IPv6", 2283)
	flag("USE_SPFIPV6", "", "smtpd", "SPF for clients with IPv6", 3351)
	word("SRS_DOMAIN", "srs_domain", "smtpd,queue", "domain of rewritten senders; empty means no SRS", 2283)
	hidden("SRS_SECRETS", "srs_secrets", "smtpd,queue", "secrets that rewritten senders are checked by", 2283)
	count("SRS_MAXAGE", "srs_maxage", "21", "smtpd,queue", "days that a rewritten sender holds", 2283)
	count("SRS_HASHLENGTH", "srs_hashlength", "4", "smtpd,queue", "length of the hash in rewritten senders", 2283)
	count("SRS_HASHMIN", "srs_hashmin", "4", "smtpd,queue", "least length of the hash that is accepted", 2283)
	word("SRS_SEPARATOR", "srs_separator", "smtpd,queue", "-, + or = behind SRS0", 2283)
	flag("SRS_ALWAYSREWRITE", "srs_alwaysrewrite", "smtpd,queue", "rewrite every forwarded sender", 2283)
	flag("QMAILINJECT_FORCE_SRS", "", "inject", "rewrite the sender of local users too", 486)
	hidden("BATVKEY", "batvkey", "smtpd,queue", "key that senders are marked with", 2193)
	count("BATVKEYSTALE", "batvkeystale", "7", "smtpd,queue", "days that such a mark holds", 2199)
	file("BATVNOSIGNLOCALS", "batvnosignlocals", "smtpd,queue", "domains of ours whose senders are not marked", 2198)
	file("BATVNOSIGNREMOTE", "batvnosignremote", "smtpd,queue", "domains to which senders are not marked", 2198)
	file("GREYLIST_WHITE", "greylist.white", "smtpd", "clients that greylisting lets in", 707)
	word("GREYLIST_CONTEXT", "greylist.context", "smtpd", "qmail-greyd's memory", 707)
	file("MOREIPME", "moreipme", "queue", "addresses that are this host's", 198)

	// Programs of users.
	word("QMAILDEFAULTHOST", "", "inject", "host that qmail-inject gives an address without one; it is obeyed from the environment and .defaultqueue", 467)
	word("QMAILMFTFILE", "", "inject", "file of mailing lists for Mail-Followup-To; it is obeyed from the environment and .defaultqueue", 4402)
	word("MAILUSER", "", "inject", "name of the sender; QMAILUSER is obeyed from the environment", 4401)
	word("MAILHOST", "", "inject", "host of the sender; QMAILHOST is obeyed from the environment", 4401)
	word("QMAILGETPW", "", "queue", "program in the place of qmail-getpw", 1455)
	word("SKIP_LOCAL_ENVIRONMENT", "", "inject", "pass $HOME/.defaultqueue over; it is obeyed from the environment", 386)
	word("TMPDIR", "", "all", "directory for temporary files", 2283)
	word("MYSQL_INIT_COMMAND", "", "all", "statement at the start of a connection to the database", 2285)
	word("MYSQL_READ_DEFAULT_FILE", "", "all", "option file of MySQL's client", 2285)
	word("MYSQL_READ_DEFAULT_GROUP", "", "all", "group in the option file", 2285)
	count("MYSQL_OPT_CONNECT_TIMEOUT", "", "0", "all", "seconds to connect to the database", 2285)
	count("MYSQL_OPT_READ_TIMEOUT", "", "0", "all", "seconds to read from the database", 2285)
	count("MYSQL_OPT_WRITE_TIMEOUT", "", "0", "all", "seconds to write to the database", 2285)
	return all
}
