// Package message is vocabulary: header fields of Internet messages (RFC 5322) as spans of bytes that nobody changed,
// and the fields that Indigo adds. Reading never fails, whatever the bytes. It must not know where a message goes.
package message

import (
	"bytes"
	"fmt"
	"strings"
	"time"
)

// Field is one header field: spans into the bytes that it was read from.
type Field struct {
	// Name is the field's name as written, Raw the whole field with its line ends.
	Name, Raw []byte
	// Offset is where Raw begins.
	Offset int
}

// Value gives the text behind the colon, unfolded, without surrounding white space.
func (f Field) Value() string {
	_, v, _ := bytes.Cut(f.Raw, []byte(":"))
	s := strings.NewReplacer("\r", "", "\n", "").Replace(string(v))
	return strings.TrimSpace(s)
}

// Is tells whether the field has this name; case does not count.
func (f Field) Is(name string) bool { return strings.EqualFold(string(f.Name), name) }

// HeaderEnd gives the length of the header in b, up to and without the empty line; all of b when there is none. Line ends
// may be CRLF or LF.
func HeaderEnd(b []byte) int {
	for i := 0; i < len(b); {
		if b[i] == '\n' || b[i] == '\r' && i+1 < len(b) && b[i+1] == '\n' {
			return i
		}
		j := bytes.IndexByte(b[i:], '\n')
		if j < 0 {
			return len(b)
		}
		i += j + 1
	}
	return len(b)
}

// Fields reads the fields of a header. A line that is neither a field nor the continuation of one (no colon, or a space
// in the name) comes as a Field with an empty Name, so that no byte is lost: the Raws together are the header.
func Fields(header []byte) []Field {
	var fields []Field
	offset := 0
	for len(header) > 0 {
		end := 0
		for {
			j := bytes.IndexByte(header[end:], '\n')
			if j < 0 {
				end = len(header)
				break
			}
			if end += j + 1; end >= len(header) || header[end] != ' ' && header[end] != '\t' {
				break
			}
		}
		f := Field{Raw: header[:end], Offset: offset}
		if i := bytes.IndexByte(f.Raw, ':'); i > 0 {
			name := bytes.TrimRight(f.Raw[:i], " \t")
			if bytes.IndexFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f }) < 0 {
				f.Name = name
			}
		}
		fields = append(fields, f)
		header = header[end:]
		offset += end
	}
	return fields
}

// Date822 gives the date form of RFC 5322 section 3.3, as in "Fri, 21 Oct 2022 23:04:36 +0530".
func Date822(t time.Time) string { return t.Format("Mon, 2 Jan 2006 15:04:05 -0700") }

// Received is what a Received field of Indigo tells (wiki 147-171).
type Received struct {
	// Program is the door, "smtpd" or "queue"; ID the queue id.
	Program, ID string
	// Helo, User and Client are the peer's HELO name, the authenticated user or "", and the peer's IP address.
	Helo, User, Client string
	// Host is this system, With the protocol (RFC 3848), TLS its description or "".
	Host, With, TLS string
	// Certificate is the client's name by the certificate that let it relay, or the certificate's fingerprint; "" for none.
	Certificate string
	Time        time.Time
}

// String gives the field with its CRLF. What the peer said is cut to printable ASCII, so that it cannot forge a field.
func (r Received) String() string {
	var b strings.Builder
	b.WriteString("Received: indimail-mta " + r.Program + " " + r.ID)
	// Neither is there when the operator hides them (wiki 166).
	if r.Helo != "" || r.Client != "" {
		b.WriteString(" (HELO " + clean(r.Helo) + ") (")
		if r.User != "" {
			b.WriteString(clean(r.User) + "@")
		}
		b.WriteString(r.Client + ")")
	}
	b.WriteString("\r\n by " + r.Host + " with " + r.With)
	if r.TLS != "" {
		b.WriteString(" (" + r.TLS)
		if r.Certificate != "" {
			b.WriteString(",\r\n client certificate " + clean(r.Certificate) + " verified")
		}
		b.WriteString(")")
	}
	b.WriteString(";\r\n " + Date822(r.Time) + "\r\n")
	return b.String()
}

// QueueReceived gives the field with its CRLF that qmail-queue puts before a message from a process of this host (wiki 150-153).
func QueueReceived(pid int, host string, uid int, t time.Time) string {
	return fmt.Sprintf("Received: indimail-mta queue %d by host %s (invoked by uid %d);\r\n %s\r\n", pid, host, uid, Date822(t))
}

// clean keeps a hostile text inside a comment: printable ASCII without parentheses and backslash, 255 bytes at most.
func clean(s string) string {
	s = s[:min(len(s), 255)]
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r >= 0x7f || r == '(' || r == ')' || r == '\\' {
			return '?'
		}
		return r
	}, s)
}
