"""Send a small message to all recipients named."""
import smtplib, ssl, sys

port, user, *to = sys.argv[1:]
password = sys.stdin.read()
with smtplib.SMTP_SSL("127.0.0.1", port, context=ssl._create_unverified_context()) as s:
    s.login(user, password)
    s.sendmail(user, to, "Subject: relayed\r\nTo: undisclosed:;\r\n\r\nhello\r\n.dot\r\n")
