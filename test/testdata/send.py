"""send.py HOST:PORT USER PASSWORD RECIPIENT...: sends a small message by submission with TLS from the first byte."""

import smtplib
import ssl
import sys

address, user, password, *recipients = sys.argv[1:]
host, _, port = address.rpartition(":")
with smtplib.SMTP_SSL(host, int(port), context=ssl._create_unverified_context()) as s:
    s.login(user, password)
    s.sendmail(user, recipients, "Subject: relayed\r\nTo: undisclosed:;\r\n\r\nhello\r\n.dot\r\n")
