package cli

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/service"
)

func (app *App) queueCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "queue",
		Short: "Look at the messages that wait, and work on them",
		Long: `Look at the messages that wait in the queues, and work on them: those of the running instance, or, while none runs,
the files themselves.

Commands that work on messages take ids or a choice: --sender and --recipient with patterns such as "*@example.org",
--domain, --older and --younger with 30m, 6h or 2d, --larger and --smaller with 10k or 5M, --held, --failed, --queue.
All that are given must hold.`,
		Example: "  indigo queue list --domain example.org --older 1h\n  indigo queue shape\n  indigo queue hold --sender '*@example.org'\n  indigo queue delete 660188",
	}
	cmd.AddCommand(app.queueListCommand(), app.queueShowCommand(), app.queueCatCommand(), app.queueStatsCommand(), app.queueHostsCommand(), app.queueDeadCommand(), app.queueTopCommand(), app.queueShapeCommand())
	for _, w := range queueWorks() {
		cmd.AddCommand(app.queueWorkCommand(w))
	}
	cmd.AddCommand(app.queueMoveCommand(), app.queueEditCommand(), app.queueMakeCommand(), app.queueCheckCommand(), app.queueExportCommand(), app.queueImportCommand(), app.queueImportQmailCommand(), app.queueRateCommand())
	return cmd
}

// withQueue runs use on the queues of data.
func (app *App) withQueue(ctx context.Context, data string, use func(service.QueueTools) error) error {
	tools, err := service.OpenQueueTools(ctx, data)
	if err != nil {
		return err
	}
	defer tools.Close()
	return use(tools)
}

// table prints a value as JSON, or as rows that print writes with tabs between their columns.
func (app *App) table(asJSON bool, value any, flags uint, print func(io.Writer)) error {
	if asJSON {
		return json.NewEncoder(app.Out).Encode(value)
	}
	w := tabwriter.NewWriter(app.Out, 0, 0, 2, ' ', flags)
	print(w)
	return w.Flush()
}

// choice is the flags that choose messages.
type choice struct {
	sender, recipient, domain, user, queue string
	older, younger, larger, smaller        string
	held, failed                           bool
}

func (c *choice) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.sender, "sender", "", "pattern for the sender, \"<>\" for bounces")
	f.StringVar(&c.recipient, "recipient", "", "pattern for a recipient that is left")
	f.StringVar(&c.domain, "domain", "", "domain of a recipient that is left")
	f.StringVar(&c.user, "user", "", "pattern for the user that logged in to send it")
	f.StringVar(&c.queue, "queue", "", "name of a queue")
	f.StringVar(&c.older, "older", "", "in the queue for longer, such as 6h or 2d")
	f.StringVar(&c.younger, "younger", "", "in the queue for less")
	f.StringVar(&c.larger, "larger", "", "larger, such as 500k or 10M")
	f.StringVar(&c.smaller, "smaller", "", "smaller")
	f.BoolVar(&c.held, "held", false, "held by an operator")
	f.BoolVar(&c.failed, "failed", false, "with a failed attempt")
}

// filter reads the flags and the ids.
func (c *choice) filter(args []string) (f queue.Filter, err error) {
	f = queue.Filter{Queue: c.queue, Sender: c.sender, Recipient: c.recipient, Domain: c.domain, User: c.user, Held: c.held, Failed: c.failed}
	var faults []error
	for _, one := range []struct {
		name, text string
		into       *time.Duration
	}{{"older", c.older, &f.Older}, {"younger", c.younger, &f.Younger}} {
		if one.text == "" {
			continue
		}
		if *one.into, err = parseAge(one.text); err != nil {
			faults = append(faults, fmt.Errorf("--%s: %w", one.name, err))
		}
	}
	for _, one := range []struct {
		name, text string
		into       *int64
	}{{"larger", c.larger, &f.Larger}, {"smaller", c.smaller, &f.Smaller}} {
		if one.text == "" {
			continue
		}
		if *one.into, err = parseBytes(one.text); err != nil {
			faults = append(faults, fmt.Errorf("--%s: %w", one.name, err))
		}
	}
	for _, arg := range args {
		id, err := queue.ParseID(arg)
		if err != nil {
			faults = append(faults, err)
		}
		f.IDs = append(f.IDs, id)
	}
	return f, errors.Join(faults...)
}

// parseAge reads a number with a unit: s, m, h, d or w.
func parseAge(s string) (time.Duration, error) {
	units := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour}
	unit, ok := units[s[len(s)-1]]
	n, err := strconv.Atoi(s[:len(s)-1])
	if !ok || err != nil || n < 1 || n > 1<<20 {
		return 0, fmt.Errorf("%q is no age: a number and one of s, m, h, d, w", s)
	}
	return time.Duration(n) * unit, nil
}

// parseBytes reads a number that may end in k, M or G.
func parseBytes(s string) (int64, error) {
	digits := strings.TrimRight(s, "kKMG")
	shift, ok := map[string]uint{"": 0, "k": 10, "K": 10, "M": 20, "G": 30}[s[len(digits):]]
	n, err := strconv.ParseInt(digits, 10, 32)
	if !ok || err != nil || n < 1 {
		return 0, fmt.Errorf("%q is no size: a number, or one with k, M or G", s)
	}
	return n << shift, nil
}

// formatAge gives an age in the two largest of its units.
func formatAge(d time.Duration) string {
	switch d = max(d, 0).Round(time.Second); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// progress shows a bar on standard error if that is a terminal; most may be -1 when it is not known.
func (app *App) progress(most int, what string) *progressbar.ProgressBar {
	f, ok := app.Err.(*os.File)
	if ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		ok = err == nil
	}
	return progressbar.NewOptions(most, progressbar.OptionSetWriter(app.Err), progressbar.OptionSetDescription(what), progressbar.OptionShowCount(),
		progressbar.OptionThrottle(200*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionSetVisibility(ok))
}

func (app *App) queueListCommand() *cobra.Command {
	var asJSON bool
	var c choice
	cmd := &cobra.Command{
		Use:     "list [ID...]",
		Short:   "List the messages in the queues",
		Example: "  indigo queue list\n  indigo queue list --domain example.org --failed\n  indigo queue list --json | jq -r .id",
		Long:    "List the messages in the queues, all of them or a choice, with the recipients that are left. With --json there is one\nobject a line.",
	}
	data := app.dataFlag(cmd)
	c.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object a line")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := c.filter(args)
		if err != nil {
			return err
		}
		out := bufio.NewWriter(app.Out)
		encoder := json.NewEncoder(out)
		n := 0
		err = app.withQueue(cmd.Context(), *data, func(q service.QueueTools) error {
			return q.Each(cmd.Context(), f, func(m queue.Listed) error {
				n++
				if asJSON {
					return encoder.Encode(m)
				}
				if n == 1 {
					fmt.Fprintf(out, "%-10s %-8s %8s %9s %-14s %s\n", "ID", "QUEUE", "AGE", "BYTES", "NEXT ATTEMPT", "SENDER, RECIPIENTS LEFT, LAST RESULT")
				}
				_, err := fmt.Fprintf(out, "%-10s %-8s %8s %9d %-14s <%s> %s%s\n", m.ID, m.Queue, formatAge(time.Since(m.Birth)), m.Size, nextAttempt(m),
					m.Sender, strings.Join(m.Recipients, " "), lastResult(m))
				return err
			})
		})
		return errors.Join(err, out.Flush())
	}
	return cmd
}

func nextAttempt(m queue.Listed) string {
	switch {
	case m.Held:
		return "held"
	case m.Running > 0:
		return "running"
	case m.Next.IsZero():
		return "due"
	}
	return "in " + formatAge(time.Until(m.Next))
}

func lastResult(m queue.Listed) string {
	if m.LastText == "" {
		return ""
	}
	return "; " + strings.Join(strings.Fields(m.LastText), " ")
}

func (app *App) queueShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "show ID",
		Short:   "Show a message's envelope and the state of each recipient",
		Example: "  indigo queue show 660188",
		Args:    cobra.ExactArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := queue.ParseID(args[0])
		if err != nil {
			return err
		}
		return app.withQueue(cmd.Context(), *data, func(q service.QueueTools) error {
			d, err := q.Show(cmd.Context(), id)
			if err != nil {
				return fmt.Errorf("message %s: %w", id, err)
			}
			if asJSON {
				return json.NewEncoder(app.Out).Encode(d)
			}
			return app.printDetail(d)
		})
	}
	return cmd
}

func (app *App) printDetail(d queue.Detail) error {
	w := tabwriter.NewWriter(app.Out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		if value := fmt.Sprintf(format, args...); value != "" {
			fmt.Fprintf(w, "%s:\t%s\n", name, value)
		}
	}
	o := d.Envelope.Origin
	row("message", "%s", d.ID)
	row("queue", "%s", d.Queue)
	row("sender", "<%s>", d.Sender)
	row("bytes", "%d", d.Size)
	row("since", "%s (%s)", d.Birth.Format(time.DateTime), formatAge(time.Since(d.Birth)))
	row("next attempt", "%s", nextAttempt(d.Listed))
	row("came by", "%s", o.Service)
	row("client", "%s", o.Client)
	row("user", "%s", o.User)
	row("session", "%s", o.Session)
	row("Message-ID", "%s", d.Envelope.MessageID)
	row("ENVID", "%s", d.Envelope.EnvID)
	row("RET", "%s", d.Envelope.Return)
	row("last result", "%s", strings.Join(strings.Fields(d.LastText), " "))
	for i, r := range d.Deliveries {
		text := r.State
		if r.Text != "" {
			text += ": " + strings.Join(strings.Fields(r.Text), " ")
		}
		if n := d.Envelope.Recipients[i].Notify; n != "" {
			text += "  NOTIFY=" + n
		}
		row("recipient", "<%s>  %s", r.Address, text)
	}
	return w.Flush()
}

func (app *App) queueCatCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "cat ID",
		Short:   "Print a message as it is in the queue",
		Example: "  indigo queue cat 660188",
		Args:    cobra.ExactArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := queue.ParseID(args[0])
		if err != nil {
			return err
		}
		return app.withQueue(cmd.Context(), *data, func(q service.QueueTools) error { return q.Cat(cmd.Context(), id, app.Out) })
	}
	return cmd
}

func (app *App) queueStatsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "stats",
		Short:   "Count what is in the queues",
		Example: "  indigo queue stats --data /srv/mail --json",
		Args:    cobra.NoArgs,
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array with an object for each queue")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return app.withQueue(cmd.Context(), *data, func(q service.QueueTools) error {
			all, err := q.Stats(cmd.Context())
			if err != nil {
				return err
			}
			return app.table(asJSON, all, tabwriter.AlignRight, func(w io.Writer) {
				fmt.Fprintln(w, "QUEUE\tMESSAGES\tRECIPIENTS\tLOCAL RUNNING\tREMOTE RUNNING\tSCHEDULED\tHELD\tDELAYED\tLOG BYTES\t")
				for _, s := range all {
					name := s.Queue
					if s.Retired {
						name += " (retired)"
					}
					fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", name, s.Messages, s.Recipients, s.LocalRunning, s.RemoteRunning, s.Scheduled, s.Held, s.Delayed, s.LogBytes)
				}
			})
		})
	}
	return cmd
}

func (app *App) queueHostsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "hosts",
		Short:   "List the destinations that have mail waiting",
		Example: "  indigo queue hosts",
		Args:    cobra.NoArgs,
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return app.withQueue(cmd.Context(), *data, func(q service.QueueTools) error {
			hosts, err := q.Hosts(cmd.Context())
			if err != nil {
				return err
			}
			return app.table(asJSON, hosts, 0, func(w io.Writer) {
				fmt.Fprintln(w, "QUEUE\tCHANNEL\tHOST\tDELIVERIES\tDUE\tRUNNING")
				for _, h := range hosts {
					fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\n", h.Queue, h.Channel, h.Host, h.Jobs, h.Ready, h.Running)
				}
			})
		})
	}
	return cmd
}

func (app *App) queueShapeCommand() *cobra.Command {
	var asJSON, senders bool
	var c choice
	cmd := &cobra.Command{
		Use:     "shape",
		Short:   "Count the recipients that are left by domain and age, as qshape does",
		Example: "  indigo queue shape\n  indigo queue shape --senders --older 1h",
		Args:    cobra.NoArgs,
	}
	data := app.dataFlag(cmd)
	c.flags(cmd)
	cmd.Flags().BoolVar(&senders, "senders", false, "count messages by the sender's domain instead")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		f, err := c.filter(nil)
		if err != nil {
			return err
		}
		return app.withQueue(cmd.Context(), *data, func(q service.QueueTools) error {
			s, err := q.Shape(cmd.Context(), f, senders)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(app.Out).Encode(s)
			}
			return app.printShape(s)
		})
	}
	return cmd
}

func (app *App) printShape(s queue.Shape) error {
	w := tabwriter.NewWriter(app.Out, 4, 0, 1, ' ', tabwriter.AlignRight)
	total := queue.ShapeRow{Domain: "TOTAL", Counts: make([]int, len(s.Limits)+1)}
	for _, d := range s.Domains {
		total.Total += d.Total
		for i, n := range d.Counts {
			total.Counts[i] += n
		}
	}
	fmt.Fprint(w, "\tT\t")
	for _, l := range s.Limits {
		fmt.Fprintf(w, "%d\t", int(l.Minutes()))
	}
	fmt.Fprintf(w, "%d+\t\n", int(s.Limits[len(s.Limits)-1].Minutes()))
	for _, row := range append([]queue.ShapeRow{total}, s.Domains...) {
		fmt.Fprintf(w, "%s\t%d\t", cmp.Or(row.Domain, "<>"), row.Total)
		for _, n := range row.Counts {
			fmt.Fprintf(w, "%d\t", n)
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// queueWork is a command that does something to messages.
type queueWork struct {
	action                    queue.Action
	short, long, done, danger string
}

func queueWorks() []queueWork {
	return []queueWork{
		{queue.RetryNow, "Make messages due now, all of them or a choice", "Make messages due now. Destinations that are known to be dead are left alone until their time comes.", "made due", ""},
		{queue.Hold, "Keep messages in the queue until they are released", "Keep messages in the queue until they are released. Deliveries under way end. The hold outlives a restart. To undo:\nindigo queue release.", "held", ""},
		{queue.Release, "Let held messages go on", "Let held messages go on; they are due at once. To undo: indigo queue hold.", "released", ""},
		{queue.Bounce, "Give messages up and tell their senders", "Give messages up: each sender gets a bounce that names the recipients that are left; with\n--recipient or --domain only those that match. It cannot be undone.", "bounced", "bounce"},
		{queue.Delete, "Take messages away without a word", "Take messages away; nobody is told. With --recipient or --domain only the recipients that match go. It cannot be undone: make a copy first with indigo queue export.", "deleted", "delete"},
		{service.Reroute, "Find out anew where messages go", "Ask the routing again for the recipients that are left, after a change of domains or of smtproutes, and try them at once.", "routed again", ""},
	}
}

func (app *App) queueWorkCommand(w queueWork) *cobra.Command {
	var c choice
	var dry, all, yes, asJSON bool
	name := string(w.action)
	cmd := &cobra.Command{
		Use:     name + " [ID...]",
		Short:   w.short,
		Long:    w.long,
		Example: fmt.Sprintf("  indigo queue %s 660188\n  indigo queue %s --domain example.org --dry-run\n  indigo queue %s --all", name, name, name),
	}
	data := app.dataFlag(cmd)
	c.flags(cmd)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only count and name them")
	cmd.Flags().BoolVar(&all, "all", false, "every message")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object with the number")
	if w.danger != "" {
		cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := c.filter(args)
		if err != nil {
			return err
		}
		if f.All() && f.Queue == "" && !all && w.action != queue.RetryNow {
			return errors.New("name messages by their ids or a choice, or say --all")
		}
		return app.withQueue(cmd.Context(), *data, func(q service.QueueTools) error {
			if w.danger != "" && !yes && !dry && len(f.IDs) == 0 {
				n, err := q.Do(cmd.Context(), service.Work{Action: w.action}, f, true, nil)
				if err != nil {
					return err
				}
				if err := app.confirm(false, fmt.Sprintf("%s %d messages?", w.danger, n)); err != nil {
					return err
				}
			}
			return app.queueDo(cmd.Context(), q, service.Work{Action: w.action}, f, dry, asJSON, w.done)
		})
	}
	return cmd
}

// queueDo does a work and says what was done.
func (app *App) queueDo(ctx context.Context, q service.QueueTools, w service.Work, f queue.Filter, dry, asJSON bool, done string) error {
	bar := app.progress(-1, string(w.Action))
	n, err := q.Do(ctx, w, f, dry, func(id queue.ID) {
		// A bar that cannot be drawn is no fault.
		_ = bar.Add(1)
		if dry && !asJSON {
			fmt.Fprintln(app.Out, id)
		}
	})
	_ = bar.Finish()
	if err != nil {
		return err
	}
	if len(f.IDs) > 0 && n == 0 && !dry {
		return queue.ErrNoMessage
	}
	if asJSON {
		return json.NewEncoder(app.Out).Encode(map[string]any{"messages": n, "dry_run": dry})
	}
	if dry {
		done = "would be " + done
	}
	_, err = fmt.Fprintf(app.Out, "%d %s\n", n, done)
	return err
}

func (app *App) queueEditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "edit-recipient ID OLD NEW",
		Short:   "Put another address in the place of a recipient",
		Long:    "Put another address in the place of a recipient that is left, and try it at once, unless the message is held. To undo:\nthe same with the addresses exchanged.",
		Example: "  indigo queue edit-recipient 660188 joe@exmaple.org joe@example.org",
		Args:    cobra.ExactArgs(3),
	}
	data := app.dataFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := queue.ParseID(args[0])
		if err != nil {
			return err
		}
		old, err := addr.Parse(args[1])
		if err != nil {
			return err
		}
		now, err := addr.Parse(args[2])
		if err != nil {
			return err
		}
		return app.withQueue(cmd.Context(), *data, func(q service.QueueTools) error {
			if err := q.EditRecipient(cmd.Context(), id, old, now); err != nil {
				return err
			}
			_, err := fmt.Fprintf(app.Out, "message %s goes to %s now\n", id, now)
			return err
		})
	}
	return cmd
}

func (app *App) queueMakeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "make NAME",
		Short:   "Make a queue of its own name, such as slowq",
		Long:    "Make a queue of its own name. Mail comes into it by QUEUEDIR or the control file domainqueue; its settings are those of\nthe service queue.NAME. To undo: move its messages away, stop Indigo, remove its directory.",
		Example: "  indigo queue make slowq\n  indigo settings set DOMAINQUEUE 'yahoo.com:QUEUEDIR=slowq'",
		Args:    cobra.ExactArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return app.withQueue(cmd.Context(), *data, func(q service.QueueTools) error {
			if err := q.Make(cmd.Context(), args[0]); err != nil {
				return err
			}
			_, err := fmt.Fprintf(app.Out, "queue %s is there\n", args[0])
			return err
		})
	}
	return cmd
}

func (app *App) queueMoveCommand() *cobra.Command {
	var c choice
	var dry, all, asJSON bool
	var to string
	cmd := &cobra.Command{
		Use:     "move --to QUEUE [ID...]",
		Short:   "Put messages into another queue",
		Long:    "Put messages into another queue, with their age and state, under new ids. Those that are being delivered stay. To undo:\nmove them back.",
		Example: "  indigo queue move --to slowq --domain yahoo.com",
	}
	data := app.dataFlag(cmd)
	c.flags(cmd)
	cmd.Flags().StringVar(&to, "to", "", "name of the queue to move to")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only count and name them")
	cmd.Flags().BoolVar(&all, "all", false, "every message")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object with the number")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := c.filter(args)
		switch {
		case err != nil:
			return err
		case to == "":
			return errors.New("say with --to which queue to move to")
		case f.All() && f.Queue == "" && !all:
			return errors.New("name messages by their ids or a choice, or say --all")
		}
		return app.withQueue(cmd.Context(), *data, func(q service.QueueTools) error {
			return app.queueDo(cmd.Context(), q, service.Work{Action: service.Move, To: to}, f, dry, asJSON, "moved to "+to)
		})
	}
	return cmd
}

func (app *App) queueCheckCommand() *cobra.Command {
	var asJSON bool
	var c choice
	cmd := &cobra.Command{
		Use:     "fsck",
		Short:   "Read every message whole and tell what is wrong",
		Long:    "Read every message whole, with its checksums, and name those that cannot be read and what was set aside as damaged. It\nchanges nothing. Exit code 1 when something is wrong.",
		Example: "  indigo queue fsck",
		Args:    cobra.NoArgs,
	}
	data := app.dataFlag(cmd)
	cmd.Flags().StringVar(&c.queue, "queue", "", "name of a queue")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object for each fault")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return app.withQueue(cmd.Context(), *data, func(q service.QueueTools) error {
			bar := app.progress(-1, "fsck")
			faults := 0
			n, err := q.Check(cmd.Context(), queue.Filter{Queue: c.queue}, func() { _ = bar.Add(1) }, func(f queue.Fault) {
				faults++
				if asJSON {
					_ = json.NewEncoder(app.Out).Encode(f)
					return
				}
				what := "message " + f.ID
				if f.ID == "" {
					what = f.File
				}
				fmt.Fprintf(app.Out, "queue %s: %s: %s\n", f.Queue, what, f.Text)
			})
			_ = bar.Finish()
			if err != nil {
				return err
			}
			if !asJSON {
				fmt.Fprintf(app.Out, "%d messages read, %d faults\n", n, faults)
			}
			if faults > 0 {
				return fmt.Errorf("%d faults in the queue", faults)
			}
			return nil
		})
	}
	return cmd
}

func (app *App) queueExportCommand() *cobra.Command {
	var c choice
	cmd := &cobra.Command{
		Use:     "export FILE",
		Aliases: []string{"backup"},
		Short:   "Copy messages with their state into a file, - for standard output",
		Long: `Copy messages with their content, age and state into a file, which indigo queue import takes in, on this host or another.
The messages stay in the queue. For each there is a line of JSON and then its content, as many bytes as "size" says.`,
		Example: "  indigo queue export queue.indigo\n  indigo queue export - --domain example.org | ssh other indigo queue import -",
		Args:    cobra.ExactArgs(1),
	}
	data := app.dataFlag(cmd)
	c.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		f, err := c.filter(nil)
		if err != nil {
			return err
		}
		out := app.Out
		if args[0] != "-" {
			file, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return fmt.Errorf("export: %w", err)
			}
			defer func() {
				if err == nil {
					err = file.Sync()
				}
				err = errors.Join(err, file.Close())
			}()
			out = file
		}
		return app.withQueue(cmd.Context(), *data, func(q service.QueueTools) error {
			copied, err := app.exportTo(cmd.Context(), q, f, out)
			if err == nil {
				fmt.Fprintf(app.Err, "%d messages\n", len(copied))
			}
			return err
		})
	}
	return cmd
}

// exportTo copies the messages that f chooses to out, and names them.
func (app *App) exportTo(ctx context.Context, q service.QueueTools, f queue.Filter, out io.Writer) (copied []string, err error) {
	bar := app.progress(-1, "export")
	w := bufio.NewWriterSize(out, 1<<16)
	err = q.Export(ctx, f, func(e queue.Exported, content io.Reader) error {
		copied = append(copied, e.ID)
		_ = bar.Add(1)
		return service.WriteExport(w, e, content)
	})
	_ = bar.Finish()
	return copied, errors.Join(err, w.Flush())
}

func (app *App) queueImportCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:     "import FILE",
		Short:   "Take in what queue export wrote, - for standard input",
		Long:    "Take in the messages that indigo queue export wrote, with their age and state, under new ids. Whatever was taken before an\nerror stays in the queue, and the error says how many that was.",
		Example: "  indigo queue import queue.indigo",
		Args:    cobra.ExactArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().StringVar(&name, "queue", "", "queue to put them in (default: any numbered one)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		in := app.In
		if args[0] != "-" {
			f, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("import: %w", err)
			}
			defer f.Close()
			in = f
		}
		return app.withQueue(cmd.Context(), *data, func(q service.QueueTools) error {
			bar := app.progress(-1, "import")
			n := 0
			err := service.ReadExport(in, func(e queue.Exported, content io.Reader) error {
				if err := q.Import(cmd.Context(), e, name, content); err != nil {
					return err
				}
				n++
				return bar.Add(1)
			})
			_ = bar.Finish()
			if err != nil {
				return fmt.Errorf("%d messages were imported, then: %w", n, err)
			}
			_, err = fmt.Fprintf(app.Out, "%d messages imported\n", n)
			return err
		})
	}
	return cmd
}
