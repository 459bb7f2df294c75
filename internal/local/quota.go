package local

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/mailerr"
	"github.com/indigomail/indigo/internal/message"
	"github.com/indigomail/indigo/internal/settings"
)

var (
	errOver      = mailerr.New(552, mailerr.Enhanced{5, 2, 2}, "The mailbox is full: the message does not fit into the user's quota. (#5.2.2)")
	errOverLater = mailerr.New(452, mailerr.Enhanced{4, 2, 2}, "The mailbox is full: the message does not fit into the user's quota now. (#4.2.2)")
	errDomain    = mailerr.New(552, mailerr.Enhanced{5, 2, 2}, "The user's domain is over its quota. (#5.2.2)")
	errDomainNow = mailerr.New(452, mailerr.Enhanced{4, 2, 2}, "The user's domain is over its quota now. (#4.2.2)")
	errTooBig    = mailerr.New(552, mailerr.Enhanced{5, 2, 3}, "The message is larger than the user's whole quota. (#5.2.3)")
)

// quota is one delivery's: whose, and what it may be.
type quota struct {
	maildir.Quota
	owner addr.Address
	// full is why the owner's domain takes no more, nil while it does.
	full error
}

// quotaOf gives a user's quota for a message of size bytes. A malformed one holds for nobody: a mistake in the directory must not cost
// mail.
func (d *Deliverer) quotaOf(ctx context.Context, u directory.User, size int64) quota {
	q, err := maildir.ParseQuota(u.Quota)
	if err != nil {
		d.cfg.Logger.Warn(fmt.Sprintf("local delivery to %s goes on without a quota: %v", u.Address(), err))
	}
	return quota{q, u.Address(), d.domainFits(ctx, u.Domain, size)}
}

// refuse gives the reply for a message of size bytes that does not fit. The user is warned, whose quota may have been lowered.
func (d *Deliverer) refuse(drop *held, q quota, held maildir.Use, size int64) error {
	d.warn(drop, q, held)
	e := errOver
	if q.Bytes > 0 && size > q.Bytes {
		e = errTooBig // it will not fit later either
	} else if settings.OverQuota.Get(d.cfg.Settings()) == "defer" {
		e = errOverLater
	}
	return e.Because(fmt.Errorf("%d bytes for %s, who has %d bytes in %d messages of %s", size, q.owner, held.Bytes, held.Messages, q.Quota),
		slog.String("user", q.owner.String()))
}

// fits refuses a message for the domain's sake, and a large one before it is written; small ones are judged when they are.
func (d *Deliverer) fits(drop *held, q quota, size int64) error {
	if q.full != nil {
		return q.full
	}
	if !q.Limited() || size <= chunk || maildir.Room(drop.path, q.Quota, size-size/40) {
		return nil
	}
	bytes, messages, _ := maildir.Usage(drop.path) // for the text
	return d.refuse(drop, q, maildir.Use{Bytes: bytes, Messages: messages}, size)
}

// domainFits refuses a message for which the domain's limits leave no room.
func (d *Deliverer) domainFits(ctx context.Context, domain string, size int64) error {
	fits, err := d.cfg.Directory.DomainRoom(ctx, domain, maildir.Use{Bytes: size - size/40, Messages: 1})
	switch {
	case err != nil:
		return errLookup.Because(err)
	case fits:
		return nil
	case settings.OverQuota.Get(d.cfg.Settings()) == "defer":
		return errDomainNow
	}
	return errDomain
}

// warnState is the file in a Maildir that keeps the percentage that its user was warned at last, as Courier's does by its time.
const warnState = "quotawarn"

// warn writes the user a message when a percentage of QUOTA_WARN was passed, once until the use is below it again. Its failures are
// only logged: the delivery matters more.
func (d *Deliverer) warn(drop *held, q quota, held maildir.Use) {
	if !q.Limited() {
		return
	}
	percent := q.Percent(held)
	reached := 0
	for word := range strings.FieldsSeq(settings.QuotaWarn.Get(d.cfg.Settings())) {
		if n, _ := strconv.Atoi(word); n > reached && n <= percent { // the setting takes nothing but numbers
			reached = n
		}
	}
	d.warning.Lock()
	defer d.warning.Unlock()
	path := filepath.Join(drop.path, warnState)
	if reached == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.cfg.Logger.Warn("quota warning: " + err.Error())
		}
		return
	}
	last := 0
	if st, err := os.Lstat(path); err == nil && st.Mode().IsRegular() && st.Size() < 16 {
		if b, err := os.ReadFile(path); err == nil {
			last, _ = strconv.Atoi(string(bytes.TrimSpace(b)))
		}
	}
	if last == reached {
		return
	}
	// First the file: a warning too little is better than one with each message.
	if err := d.keepWarned(drop.path, path, reached); err != nil {
		d.cfg.Logger.Warn("quota warning: " + err.Error())
		return
	}
	if reached < last {
		return
	}
	if err := d.sendWarning(drop, q, held, percent); err != nil {
		d.cfg.Logger.Warn("quota warning: " + err.Error())
	}
}

func (d *Deliverer) keepWarned(maildir, path string, percent int) error {
	f, err := os.CreateTemp(filepath.Join(maildir, "tmp"), warnState+".*")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, percent)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// sendWarning puts the warning into the user's Maildir, without the queue, whether there is room for it or not.
func (d *Deliverer) sendWarning(drop *held, q quota, held maildir.Use, percent int) error {
	now := d.cfg.Now()
	key := maildir.Key{Birth: now, Queue: "warning", ID: uint64(now.UnixNano()), Index: percent, Host: d.cfg.Hostname}
	f, err := drop.NewFile(key.Base())
	if err != nil {
		return err
	}
	if err := f.Append(warningText(settings.QuotaWarnText.Get(d.cfg.Settings()), q, held, percent, key.Base(), now)); err != nil {
		f.Abort()
		return err
	}
	_, _, err = f.CommitBeyond(q.Quota)
	return err
}

// warningText gives the message. template is QUOTA_WARN_TEXT, a paragraph a line.
func warningText(template []string, q quota, held maildir.Use, percent int, id string, now time.Time) []byte {
	if len(template) == 0 {
		template = []string{
			"Subject: Your mailbox is $PERCENT% full",
			"Your mailbox $ADDRESS holds $USED of $QUOTA.",
			"When it is full, mail to you is refused and goes back to its senders. Please delete what you do not need, and what is in the folder for deleted messages.",
		}
	}
	limits, used := []string{}, []string{}
	if q.Bytes > 0 {
		limits, used = append(limits, megabytes(q.Bytes)), append(used, megabytes(held.Bytes))
	}
	if q.Messages > 0 {
		limits, used = append(limits, fmt.Sprint(q.Messages, " messages")), append(used, fmt.Sprint(held.Messages, " messages"))
	}
	fill := strings.NewReplacer("$PERCENT", strconv.Itoa(percent), "$ADDRESS", string(appendClean(nil, q.owner.String())),
		"$USED", strings.Join(used, " and "), "$QUOTA", strings.Join(limits, " and "))
	subject := "Your mailbox is nearly full"
	if text, ok := strings.CutPrefix(template[0], "Subject:"); ok {
		subject, template = cmp.Or(strings.TrimSpace(text), subject), template[1:]
	}
	var b bytes.Buffer
	postmaster := addr.Address{Local: "postmaster", Domain: q.owner.Domain}
	fmt.Fprintf(&b, "Return-Path: <>\nDelivered-To: %s\nDate: %s\nFrom: %s\nTo: %s\nSubject: %s\n", appendClean(nil, q.owner.String()), message.Date822(now),
		postmaster, appendClean(nil, q.owner.String()), fill.Replace(subject))
	fmt.Fprintf(&b, "Message-ID: <%s>\nAuto-Submitted: auto-generated\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n",
		id+".quotawarn@"+q.owner.Domain)
	for _, paragraph := range template {
		fmt.Fprintf(&b, "\n%s\n", fill.Replace(paragraph))
	}
	return b.Bytes()
}

// megabytes writes a size for people.
func megabytes(n int64) string {
	const mebi = 1 << 20
	if n < mebi {
		return fmt.Sprintf("%.1f KiB", float64(n)/1024)
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/mebi)
}
