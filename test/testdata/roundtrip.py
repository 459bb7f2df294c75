"""roundtrip.py READY SIZE: sends a message of about SIZE bytes with smtplib and reads it back with poplib and imaplib.

READY is the first line of `indigo up --json`. The message must come back byte for byte, but for trace fields before it.
"""

import imaplib
import json
import poplib
import random
import smtplib
import ssl
import sys
import time

ready, size = json.loads(sys.argv[1]), int(sys.argv[2])
user, password = ready["user"], ready["password"]
# The self-signed certificate is its own authority: the clients check it, name and all.
tls = ssl.create_default_context(cafile=ready["data"] + "/certs/servercert.pem")
poplib._MAXLINE = 10000
imaplib._MAXLINE = 100000


def address(service):
    host, _, port = ready["services"][service].rpartition(":")
    return host, int(port)


def message():
    """Long lines, dots, 8-bit bytes, blank lines, trailing blanks: whatever a careless server would change."""
    rng = random.Random(size)
    mark = "roundtrip-%d-%d" % (size, time.time_ns())
    out = [b"From: <%s>" % user.encode(), b"To: <%s>" % user.encode(), b"Subject: round trip",
           b"Message-ID: <%s@client.test>" % mark.encode(), b"Date: Sat, 21 Nov 2026 03:00:00 +0000",
           b"X-Folded: one", b"\ttwo  ", b"MIME-Version: 1.0", b"Content-Type: text/plain; charset=utf-8",
           b"Content-Transfer-Encoding: 8bit", b""]
    have = 0
    odd = [b".", b"..", b".leading dot", b"", b"trailing blanks  \t", b"From the start of a line", b"\xc3\xa9\xff\xfe 8 bit", b"+OK", b")"]
    while have < size:
        if rng.random() < 0.1:
            line = rng.choice(odd)
        else:
            line = rng.randbytes(rng.randrange(1, 499)).hex().encode()
        out.append(line)
        have += len(line) + 2
    out.append(b".")
    return mark, b"\r\n".join(out) + b"\r\n"


def compare(how, got, sent):
    if not got.endswith(sent):
        where = next((i for i, (a, b) in enumerate(zip(got[::-1], sent[::-1])) if a != b), min(len(got), len(sent)))
        sys.exit("%s: %d bytes came back for %d, and differ %d bytes before the end: %r"
                 % (how, len(got), len(sent), where, got[max(0, len(got) - where - 60):][:120]))
    for line in got[:len(got) - len(sent)].split(b"\r\n"):
        name = line.split(b":")[0].lower()
        if line and line[:1] not in b" \t" and name not in (b"return-path", b"delivered-to", b"received", b"x-delivered-to"):
            sys.exit("%s: this line is no trace field: %r" % (how, line))


def pop3(connection, mark, sent):
    connection.user(user)
    connection.pass_(password)
    count, _ = connection.stat()
    for n in range(count, 0, -1):
        top = connection.top(n, 0)[1]
        if any(mark.encode() in line for line in top):
            lines = connection.retr(n)[1]
            compare("POP3", b"\r\n".join(lines) + b"\r\n", sent)
            listed = int(connection.list(n).split()[2])
            if listed != len(b"\r\n".join(lines)) + 2:
                sys.exit("POP3: LIST says %d octets, RETR gave %d" % (listed, len(b"\r\n".join(lines)) + 2))
            uid = connection.uidl(n).split()[2]
            connection.quit()
            return uid
    connection.quit()
    return None


mark, sent = message()
with smtplib.SMTP(*address("smtpd.587"), timeout=60) as s:
    s.ehlo("client.test")
    s.starttls(context=tls)
    s.ehlo("client.test")
    s.login(user, password)
    refused = s.sendmail(user, [user], sent, mail_options=["BODY=8BITMIME"])
    assert not refused, refused

deadline = time.monotonic() + 60
while pop3(poplib.POP3_SSL(*address("pop3d.995"), timeout=60, context=tls), mark, sent) is None:
    if time.monotonic() > deadline:
        sys.exit("the message was not delivered within a minute")
    time.sleep(0.05)

p = poplib.POP3(*address("pop3d.110"), timeout=60)
p.stls(context=tls)
first = pop3(p, mark, sent)
if first != pop3(poplib.POP3_SSL(*address("pop3d.995"), timeout=60, context=tls), mark, sent):
    sys.exit("POP3: the UIDL changed")

for secure in (True, False):
    if secure:
        i = imaplib.IMAP4_SSL(*address("imapd.993"), ssl_context=tls, timeout=60)
    else:
        i = imaplib.IMAP4(*address("imapd.143"), timeout=60)
        i.starttls(ssl_context=tls)
    i.login(user, password)
    assert i.select("INBOX", readonly=True)[0] == "OK"
    count = int(i.response("EXISTS")[1][0] or i.select("INBOX", readonly=True)[1][0])
    for n in range(count, 0, -1):
        header = i.fetch(str(n), "(BODY.PEEK[HEADER])")[1][0][1]
        if mark.encode() in header:
            got = i.fetch(str(n), "(RFC822.SIZE BODY.PEEK[])")[1][0]
            compare("IMAP", got[1], sent)
            if b"RFC822.SIZE %d " % len(got[1]) not in got[0]:
                sys.exit("IMAP: RFC822.SIZE is not %d: %r" % (len(got[1]), got[0]))
            break
    else:
        sys.exit("IMAP: INBOX does not hold the message")
    i.logout()
print("%d bytes sent, and the same over POP3 and IMAP" % len(sent))
