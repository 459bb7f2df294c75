"""Send 20 MB by submission and fetch it by POP3 and IMAP: every byte below the trace fields must be the same."""
import imaplib, poplib, random, smtplib, ssl, sys, time

submission, pop3, imap, user = sys.argv[1:5]
password = sys.stdin.read()
context = ssl._create_unverified_context()
random.seed(7)
lines = ["".join(random.choices("abc.XYZ 0123456789=", k=random.randrange(0, 77))) for _ in range(20_000_000 // 40)]
lines += [".", "..", ".x", ""]
message = (f"From: <{user}>\r\nTo: <{user}>\r\nSubject: large\r\nDate: Fri, 21 Oct 2022 23:04:36 +0530\r\n"
           "Message-ID: <large@test>\r\n\r\n" + "\r\n".join(lines) + "\r\n").encode()
assert len(message) > 19_000_000, len(message)

with smtplib.SMTP("127.0.0.1", submission) as s:
    s.starttls(context=context)
    s.login(user, password)
    s.sendmail(user, [user], message)

def check(got, how):
    start = got.index(b"From: <")
    head, rest = got[:start], got[start:]
    assert head.startswith(b"Return-Path: <" + user.encode() + b">\r\nDelivered-To: "), (how, head)
    assert b"Received: indimail-mta smtpd " in head, (how, head)
    assert rest == message, (how, len(rest), len(message))

for attempt in range(300):
    p = poplib.POP3_SSL("127.0.0.1", pop3, context=context)
    p.user(user)
    p.pass_(password)
    if p.stat()[0]:
        break
    p.quit()
    time.sleep(0.1)
octets = p.stat()[1]
poplib._MAXLINE = 1 << 20
got = b"\r\n".join(p.retr(1)[1]) + b"\r\n"
assert octets == len(got), (octets, len(got))
p.quit()
check(got, "POP3")

i = imaplib.IMAP4_SSL("127.0.0.1", int(imap), ssl_context=context)
i.login(user, password)
assert i.list()[0] == "OK"
assert i.select("INBOX") == ("OK", [b"1"])
kind, data = i.fetch("1", "(RFC822.SIZE FLAGS UID BODY.PEEK[])")
assert kind == "OK" and b"RFC822.SIZE %d" % octets in data[0][0], data[0][0]
check(data[0][1], "IMAP")
assert i.store("1", "+FLAGS", "\\Seen")[0] == "OK"
assert i.search(None, "SEEN") == ("OK", [b"1"])
i.logout()
