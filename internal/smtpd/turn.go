package smtpd

import (
	"errors"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/trace"
	"github.com/indigomail/indigo/internal/turn"
)

// maxNodes bounds the domains of one ATRN.
const maxNodes = 50

// ofODMR tells whether a service for ATRN takes the command (RFC 2645 section 5).
func (v verb) ofODMR() bool {
	switch v {
	case verbHelo, verbEhlo, verbStartTLS, verbAuth, verbAtrn, verbRset, verbNoop, verbHelp, verbQuit:
		return true
	}
	return v == verbUnknown
}

func (c *session) help() *reply {
	switch {
	case c.server.config.ODMR:
		return replyHelpODMR
	case c.offersETRN():
		return replyHelpETRN
	}
	return replyHelp
}

// offersETRN tells whether ETRN is named among the extensions: where some mail waits for some host, and not to users.
func (c *session) offersETRN() bool {
	config := &c.server.config
	return config.Turn != nil && !config.Submission && config.Turn.Offers(c.Settings)
}

// parseNode reads the argument of ETRN (RFC 1985 section 5).
func parseNode(args string) (node string, refused *reply) {
	node = strings.ToLower(strings.TrimSpace(args))
	name := node
	if name != "" && strings.ContainsRune("@#", rune(name[0])) {
		name = name[1:]
	}
	if !isNode(name) {
		return "", replyETRNSyntax
	}
	return node, nil
}

// isNode tells whether a word is a domain that can stand in a reply as it came.
func isNode(s string) bool {
	return addr.ValidDomain(s) == nil && strings.IndexFunc(s, notPrintable) < 0 && len(s) <= 255
}

// parseNodes reads the argument of ATRN (RFC 2645 section 5.2.1): domains with commas between, none for all.
func parseNodes(args string) (nodes []string, ok bool) {
	nodes = settings.SplitDomains(args)
	if len(nodes) > maxNodes || len(nodes) == 0 && strings.TrimSpace(args) != "" {
		return nil, false
	}
	for _, node := range nodes {
		if !isNode(node) {
			return nil, false
		}
	}
	return nodes, true
}

// etrn is ETRN (RFC 1985). The wiki's example says it before EHLO (wiki 1636).
func (c *session) etrn(args string) {
	config := &c.server.config
	switch {
	case config.Turn == nil || config.Submission:
		c.mistake(replyUnsupported)
		return
	case c.mail.open:
		c.refuse("etrn", "sequence", "", replyTurnInMail)
		return
	case c.rehearsed:
		return
	}
	node, refused := parseNode(args)
	if refused != nil {
		c.refuse("etrn", "syntax", args, refused)
		return
	}
	begun, err := config.Turn.Start(c.ctx, c.Settings, c.ID, node, c.Client.Addr())
	v, r := policy.Verdict{Check: "etrn", Input: node}, replyETRNStarted(node)
	switch {
	case errors.Is(err, turn.ErrNotAllowed):
		c.refuse("etrn", "etrn", node+": "+err.Error(), replyETRNRefused(node))
		return
	case errors.Is(err, turn.ErrNoMail):
		r = replyETRNNone(node)
	case err != nil:
		config.Logger.Warn(c.Service+": ETRN "+node+": "+err.Error(), "session", c.ID, "client", c.client)
		v.Action, v.Input, r = policy.Defer, node+": "+err.Error(), replyETRNUnable(node)
	case begun.Busy:
		r = replyETRNBusy(node)
	case begun.Queued > 0:
		r = replyETRNPending(node, begun.Queued)
	}
	c.say(c.decide(trace.Event{Kind: "etrn"}, v, r))
}

// atrn is ATRN (RFC 2645): on success the client is the server from the reply on, and the session ends with that.
func (c *session) atrn(args string) {
	config := &c.server.config
	nodes, ok := parseNodes(args)
	switch {
	case config.Turn == nil || !config.ODMR:
		c.mistake(replyUnsupported)
		return
	case c.User == "":
		c.refuse("atrn", "sequence", "", replyAuthRequired)
		return
	case !ok:
		c.refuse("atrn", "syntax", args, replyATRNSyntax)
		return
	case c.in.Buffered() > 0:
		// Whatever it is, it would be read as the greeting of a server.
		c.refuse("atrn", "sequence", "", replyATRNBehind)
		return
	case c.rehearsed:
		return
	}
	all := strings.Join(nodes, ",")
	user, err := addr.Parse(c.User)
	var waiting *turn.Turnaround
	if err == nil {
		waiting, err = config.Turn.Prepare(c.ctx, c.Settings, user, nodes)
	}
	v := policy.Verdict{Check: "atrn", Input: all}
	switch {
	case errors.Is(err, turn.ErrNotAllowed):
		c.refuse("atrn", "atrn", err.Error(), replyATRNRefused)
		return
	case errors.Is(err, turn.ErrNoMail):
		c.say(c.decide(trace.Event{Kind: "atrn"}, v, replyATRNNone(all)))
		return
	case errors.Is(err, turn.ErrBusy):
		v.Action = policy.Defer
		c.say(c.decide(trace.Event{Kind: "atrn"}, v, replyATRNBusy))
		return
	case err != nil:
		config.Logger.Warn(c.Service+": ATRN "+all+": "+err.Error(), "session", c.ID, "client", c.client, "user", c.User)
		v.Action, v.Input = policy.Defer, all+": "+err.Error()
		c.say(c.decide(trace.Event{Kind: "atrn"}, v, replyATRNNow))
		return
	}
	defer waiting.Release()
	c.say(c.decide(trace.Event{Kind: "atrn"}, v, replyReversing))
	c.link.busy = true
	c.end("reversed")
	if err := c.link.flush(); err != nil {
		return
	}
	began := config.Now()
	report, err := waiting.Run(c.ctx, c.link.conn, trace.Event{Client: c.client, User: c.User}, c.link.leaving)
	c.messages += report.Sent
	e := trace.Event{Kind: "atrn", Took: config.Now().Sub(began)}
	v, text := policy.Verdict{Check: "run", Input: all}, report.String()
	if err != nil {
		v.Action, text = policy.Defer, text+"; the rest waits on: "+err.Error()
	}
	// Nobody hears it: what stands in the reply's place is for the trace.
	c.decide(e, v, &reply{code: 450, wire: text})
	config.Logger.Info("atrn "+all+" for "+c.User+": "+text, "session", c.ID, "client", c.client)
}
