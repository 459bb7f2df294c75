# Logs in with Python's own mail clients: login.py PROTOCOL SECURITY MECHANISM HOST PORT CERTIFICATE USER PASSWORD.
import imaplib, poplib, smtplib, ssl, sys

protocol, security, mechanism, host, port, ca, user, password = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
plain, tls = {
    "smtp": (smtplib.SMTP, smtplib.SMTP_SSL),
    "imap": (imaplib.IMAP4, imaplib.IMAP4_SSL),
    "pop3": (poplib.POP3, poplib.POP3_SSL),
}[protocol]
if security == "tls":
    c = tls(host, int(port), **({"ssl_context" if protocol == "imap" else "context": context}))
else:
    c = plain(host, int(port))
if protocol == "smtp":
    c.ehlo()
if security == "starttls":
    if protocol == "pop3":
        c.stls(context)
    elif protocol == "imap":
        c.starttls(context)
    else:
        c.starttls(context=context)
        c.ehlo()
if not mechanism:  # smtplib chooses
    print(c.login(user, password))
    c.quit()
elif protocol == "smtp":
    c.user, c.password = user, password
    call = {"PLAIN": c.auth_plain, "LOGIN": c.auth_login, "CRAM-MD5": c.auth_cram_md5}[mechanism]
    print(c.auth(mechanism, call))
    assert c.noop()[0] == 250
    c.quit()
elif protocol == "imap":
    if mechanism == "PLAIN":
        print(c.authenticate("PLAIN", lambda _: ("\0" + user + "\0" + password).encode()))
    elif mechanism == "CRAM-MD5":
        print(c.login_cram_md5(user, password))
    else:
        print(c.login(user, password))
    c.logout()
else:
    if mechanism == "APOP":
        print(c.apop(user, password))
    else:
        c.user(user)
        print(c.pass_(password))
    c.quit()
