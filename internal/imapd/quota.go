package imapd

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/indigomail/indigo/internal/maildir"
)

// quotaRoot is the name of the one quota that a user has, over all folders.
const quotaRoot = "User quota"

// tellQuota answers GETQUOTAROOT and GETQUOTA (RFC 9208): use and limit in units of 1024 bytes and in messages. SETQUOTA is not a user's.
func (c *session) tellQuota(tag, verb string, args []word) {
	switch {
	case verb == "SETQUOTA":
		c.say(tag, "NO", "[NOPERM] only an administrator sets quotas")
		return
	case len(args) != 1:
		c.say(tag, "BAD", "%s needs one name", verb)
		return
	case verb == "GETQUOTAROOT" && !strings.EqualFold(args[0].text, "INBOX"):
		c.say(tag, "NO", "[NONEXISTENT] so far there is only INBOX")
		return
	case verb == "GETQUOTA" && (args[0].text != quotaRoot || !c.quota.Limited()):
		c.say(tag, "NO", "[NONEXISTENT] no such quota root")
		return
	}
	var limits []string
	if c.quota.Limited() {
		bytes, messages, err := maildir.Usage(filepath.Join(c.home, "Maildir"))
		if err != nil {
			c.config.Logger.Warn(fmt.Sprintf("%s: %s: %v", c.config.Service, c.home, err))
			c.say(tag, "NO", "[SERVERBUG] the quota cannot be told now")
			return
		}
		if c.quota.Bytes > 0 {
			limits = append(limits, fmt.Sprintf("STORAGE %d %d", (bytes+1023)/1024, (c.quota.Bytes+1023)/1024))
		}
		if c.quota.Messages > 0 {
			limits = append(limits, fmt.Sprintf("MESSAGE %d %d", messages, c.quota.Messages))
		}
	}
	if verb == "GETQUOTAROOT" {
		c.out.WriteString("* QUOTAROOT INBOX")
		if limits != nil {
			c.out.WriteString(` "` + quotaRoot + `"`)
		}
		c.out.WriteString("\r\n")
	}
	if limits != nil {
		fmt.Fprintf(c.out, "* QUOTA %q (%s)\r\n", quotaRoot, strings.Join(limits, " "))
	}
	c.say(tag, "OK", "done")
}
