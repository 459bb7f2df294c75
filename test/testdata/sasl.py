# Logs in with Python's own mail clients: sasl.py SMTP SMTPS IMAP POP3 CERTIFICATE.
import imaplib, poplib, smtplib, ssl, sys

smtp, smtps, imap, pop3 = [(h, int(p)) for h, p in (a.rsplit(":", 1) for a in sys.argv[1:5])]
context = ssl.create_default_context(cafile=sys.argv[5])
user, secret, keyed, password = "both@indigo.test", "supersecret", "keys@indigo.test", "supersecret"


def refused(what, error, call, *args):
    try:
        call(*args)
    except error:
        return
    sys.exit(what + " was let in")


with smtplib.SMTP(*smtp) as c:  # in clear: CRAM-MD5 is all that it can
    c.login(user, secret)
with smtplib.SMTP(*smtp) as c:
    c.ehlo()
    refused("smtp in clear by a wrong password", smtplib.SMTPAuthenticationError, c.login, user, "wrong")
with smtplib.SMTP(*smtp) as c:
    c.starttls(context=context)
    c.login(keyed, password)  # CRAM-MD5 fails, it goes on to PLAIN
with smtplib.SMTP_SSL(*smtps, context=context) as c:
    c.login(user, secret)
    assert c.noop()[0] == 250
with imaplib.IMAP4(*imap) as c:
    assert "LOGINDISABLED" in c.capabilities, c.capabilities
    c.login_cram_md5(user, secret)
with imaplib.IMAP4(*imap) as c:
    refused("imap by a wrong password", imaplib.IMAP4.error, c.login_cram_md5, user, "wrong")
with imaplib.IMAP4(*imap) as c:
    c.starttls(context)
    c.login(keyed, password)
c = poplib.POP3(*pop3)
c.apop(user, secret)
c.quit()
c = poplib.POP3(*pop3)
refused("apop by a wrong password", poplib.error_proto, c.apop, user, "wrong")
refused("the timestamp twice", poplib.error_proto, c.apop, user, secret)
c = poplib.POP3(*pop3)
refused("apop without clear text", poplib.error_proto, c.apop, keyed, password)
