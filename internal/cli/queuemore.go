package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/bounce"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/service"
	"github.com/indigomail/indigo/internal/settings"
)

func (app *App) queueDeadCommand() *cobra.Command {
	var asJSON bool
	var forget string
	cmd := &cobra.Command{
		Use:     "dead",
		Short:   "List the hosts that did not answer and are left alone, or forget that",
		Long:    "List the hosts that did not answer and are left alone for a time: a minute, then 4, 9 and so on up to an hour, or as MIN_PENALTY and\nroutes with a penalty say. --forget all, or an address with its port, makes them be tried again with the next attempt of a message; all\nforgets as well which relays refused a login.",
		Example: "  indigo queue dead\n  indigo queue dead --forget all && indigo queue retry",
		Args:    cobra.NoArgs,
	}
	data := app.dataFlag(cmd)
	cmd.Flags().StringVar(&forget, "forget", "", "address to forget, or all")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		control := service.NewControl(*data)
		if forget != "" {
			n, err := control.ForgetDeadHosts(cmd.Context(), strings.TrimPrefix(forget, "all"))
			if err == nil && n == 0 && forget != "all" {
				err = fmt.Errorf("%s is not known to be dead", forget)
			}
			if err == nil {
				_, err = fmt.Fprintf(app.Out, "%d forgotten\n", n)
			}
			return err
		}
		all, err := control.DeadHosts(cmd.Context())
		if err != nil {
			return err
		}
		return app.table(asJSON, all, 0, func(w io.Writer) {
			fmt.Fprintln(w, "ADDRESS\tFAILED\tTIMES\tLEFT ALONE")
			for _, h := range all {
				left := "no more"
				if d := time.Until(h.Until); d > 0 {
					left = "for " + formatAge(d)
				}
				fmt.Fprintf(w, "%s\t%s ago\t%d\t%s\n", h.Address, formatAge(time.Since(h.Since)), h.Times, left)
			}
		})
	}
	return cmd
}

// tcpto lists as qmail-tcpto does.
func (app *App) tcpto(ctx context.Context, data string) error {
	all, err := service.NewControl(data).DeadHosts(ctx)
	for _, h := range all {
		fmt.Fprintf(app.Out, "%s timed out %d seconds ago; # recent timeouts: %d\n", h.Address, int(time.Since(h.Since).Seconds()), h.Times)
	}
	return err
}

func (app *App) queueTopCommand() *cobra.Command {
	var every time.Duration
	var most int
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "top",
		Short:   "Show the queues and their busiest destinations, again and again",
		Long:    "Show the queues, the deliveries per second, and the busiest destinations, again and again until Ctrl-C. With --every 0 once.",
		Example: "  indigo queue top\n  indigo queue top --every 0 --json",
		Args:    cobra.NoArgs,
	}
	data := app.dataFlag(cmd)
	cmd.Flags().DurationVar(&every, "every", 2*time.Second, "pause between two looks; 0 looks once")
	cmd.Flags().IntVar(&most, "most", 20, "how many destinations")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object for each look")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return app.top(cmd.Context(), *data, every, most, asJSON) }
	return cmd
}

// top looks until ctx ends, or once.
func (app *App) top(ctx context.Context, data string, every time.Duration, most int, asJSON bool) error {
	return app.withQueue(ctx, data, func(q service.QueueTools) error {
		before, at := uint64(0), time.Time{}
		for {
			stats, err := q.Stats(ctx)
			if err != nil {
				return err
			}
			hosts, err := q.Hosts(ctx)
			if err != nil {
				return err
			}
			hosts = hosts[:min(len(hosts), most)]
			var done uint64
			for _, s := range stats {
				done += s.Deliveries
			}
			rate := 0.0
			if !at.IsZero() && done >= before {
				rate = float64(done-before) / time.Since(at).Seconds()
			}
			before, at = done, time.Now()
			if asJSON {
				err = json.NewEncoder(app.Out).Encode(map[string]any{"time": at, "deliveries_per_second": rate, "queues": stats, "hosts": hosts})
			} else {
				err = app.printTop(stats, hosts, rate, every > 0)
			}
			if err != nil || every <= 0 {
				return err
			}
			timer := time.NewTimer(every)
			select {
			case <-ctx.Done():
				timer.Stop()
				return nil
			case <-timer.C:
			}
		}
	})
}

func (app *App) printTop(stats []queue.QueueStats, hosts []queue.HostStats, rate float64, clear bool) error {
	var b bytes.Buffer
	if clear {
		b.WriteString("\x1b[H\x1b[2J")
	}
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(&b, "%s  %.1f deliveries a second\n\n", time.Now().Format(time.DateTime), rate)
	fmt.Fprintln(w, "QUEUE\tMESSAGES\tRECIPIENTS\tLOCAL\tREMOTE\tHELD\tDELAYED")
	for _, s := range stats {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\n", s.Queue, s.Messages, s.Recipients, s.LocalRunning, s.RemoteRunning, s.Held, s.Delayed)
	}
	fmt.Fprintln(w, "\nHOST\tCHANNEL\tDELIVERIES\tDUE\tRUNNING\t\t")
	for _, h := range hosts {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t\t\n", cmp.Or(h.Host, "(this system)"), h.Channel, h.Jobs, h.Ready, h.Running)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := app.Out.Write(b.Bytes())
	return err
}

// showctl prints the control files' settings with what they come from, as qmail-showctl; or with environment those that
// sendmail and qmail-inject read from the environment (wiki 463-508).
func (app *App) showctl(data string, environment bool) error {
	e, err := settings.FromEnvironment().Local(true)
	if err != nil {
		return err
	}
	if environment {
		fmt.Fprintln(app.Out, "------------------ begin show env ----------------------------")
		own := e.LocalVariables()
		for _, one := range own {
			fmt.Fprintln(app.Out, one)
		}
		names := []string{"HOME", "USER", "INDIGO_DATA", "QMAILUSER", "QMAILHOST", "QMAILNAME", "QMAILSUSER", "QMAILSHOST", "QMAILDEFAULTHOST", "QMAILDEFAULTDOMAIN",
			"QMAILPLUSDOMAIN", "QMAILIDHOST", "QMAILINJECT", "QMAILMFTFILE", "QMAILQUEUE", "QUEUEDIR", "FILTERARGS"}
		for _, name := range names {
			if v := e.Get(name); v != "" && !slices.Contains(own, name+"="+v) {
				fmt.Fprintf(app.Out, "%s=%s\n", name, v)
			}
		}
		n := service.Names(data)
		fmt.Fprintf(app.Out, "defaulthost=%s\ndefaultdomain=%s\nplusdomain=%s\nidhost=%s\n", n.DefaultHost, n.DefaultDomain, n.PlusDomain, n.IDHost)
		return nil
	}
	snapshot, err := settings.Load(data)
	if err != nil {
		return err
	}
	view := snapshot.View("all")
	for _, s := range settings.All() {
		source := view.Source(s)
		value := shown(s, source)
		if strings.Contains(value, "\n") {
			value = fmt.Sprintf("(%d lines)", len(strings.Split(value, "\n")))
		}
		if source.Layer == "default" && s.Pending {
			continue
		}
		fmt.Fprintf(app.Out, "%s: (%s.) %s\n", cmp.Or(s.File, s.Name), source.Layer, value)
	}
	return nil
}

func (app *App) queueImportQmailCommand() *cobra.Command {
	var name string
	var dry bool
	cmd := &cobra.Command{
		Use:   "import-qmail DIR",
		Short: "Take over a queue directory of qmail or IndiMail",
		Long: `Take over the messages of a queue directory of qmail, netqmail or IndiMail, with their age, the recipients that are left and
the bounces that were not sent. qmail-send must be stopped. Nothing in DIR is changed: when all were taken, remove DIR, or the
next import takes them again.`,
		Example: "  indigo queue import-qmail /var/qmail/queue --dry-run\n  indigo queue import-qmail /var/indimail/queue/queue1",
		Args:    cobra.ExactArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().StringVar(&name, "queue", "", "queue to put them in (default: any numbered one)")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only read them")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		messages, err := readQmail(args[0])
		if err != nil {
			return err
		}
		if dry {
			for _, m := range messages {
				fmt.Fprintf(app.Out, "%s  <%s>  %d bytes, %d recipients left, %d to bounce\n", m.ID, m.Envelope.Sender, m.Size, count(m.States, "waiting"), len(m.Failures))
			}
			fmt.Fprintf(app.Out, "%d messages would be imported\n", len(messages))
			return nil
		}
		return app.withQueue(cmd.Context(), *data, func(q service.QueueTools) error {
			bar := app.progress(len(messages), "import")
			for n, m := range messages {
				content, err := m.open()
				if err == nil {
					err = q.Import(cmd.Context(), m.Exported, name, content)
					content.Close()
				}
				if err != nil {
					_ = bar.Finish()
					return fmt.Errorf("%d messages were imported, then message %s: %w", n, m.ID, err)
				}
				_ = bar.Add(1)
			}
			_ = bar.Finish()
			_, err := fmt.Fprintf(app.Out, "%d messages imported\n", len(messages))
			return err
		})
	}
	return cmd
}

func count(all []string, one string) (n int) {
	for _, s := range all {
		if s == one {
			n++
		}
	}
	return n
}

// qmailMessage is a message of a qmail queue; its content lies in path.
type qmailMessage struct {
	queue.Exported
	path string
}

// open gives the content in wire form; its length is Size.
func (m *qmailMessage) open() (io.ReadCloser, error) {
	f, err := os.Open(m.path)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{&crlfReader{r: f}, f}, nil
}

// readQmail reads a queue directory by the wiki's account of its files (lines 118-146): a message that is in todo has its whole
// envelope there; else info has the sender, local and remote the recipients, of which those are left that begin with T; bounce
// has the failures that the sender was not told of.
func readQmail(dir string) ([]*qmailMessage, error) {
	var all []*qmailMessage
	var faults []error
	err := filepath.WalkDir(filepath.Join(dir, "mess"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if _, err := strconv.ParseUint(d.Name(), 10, 64); err != nil {
			return nil
		}
		m, err := readQmailMessage(dir, path, d.Name())
		if err != nil {
			faults = append(faults, fmt.Errorf("message %s: %w", d.Name(), err))
		} else if m != nil {
			all = append(all, m)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is no qmail queue: it has no directory mess", dir)
	}
	if err = errors.Join(append(faults, err)...); err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b *qmailMessage) int { return a.Birth.Compare(b.Birth) })
	return all, nil
}

// find gives the content of a file of a message, in a split directory or not; nil when there is none.
func findQmail(dir, kind, mess, id string) ([]byte, os.FileInfo, error) {
	for _, path := range []string{filepath.Join(dir, kind, filepath.Base(filepath.Dir(mess)), id), filepath.Join(dir, kind, id)} {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		info, err := os.Stat(path)
		return text, info, err
	}
	return nil, nil, nil
}

func readQmailMessage(dir, path, id string) (*qmailMessage, error) {
	m := &qmailMessage{path: path}
	m.ID = id
	// todo goes before info: preprocessing may have been cut short.
	text, info, err := findQmail(dir, "todo", path, id)
	if err != nil {
		return nil, err
	}
	if text == nil {
		if text, info, err = findQmail(dir, "info", path, id); err != nil {
			return nil, err
		}
		if text == nil {
			// It was never queued, or is done with (states S2 and S3).
			return nil, nil
		}
		for _, kind := range []string{"local", "remote"} {
			more, _, err := findQmail(dir, kind, path, id)
			if err != nil {
				return nil, err
			}
			if kind == "local" {
				more = unprefix(more)
			}
			text = append(text, more...)
		}
	}
	m.Birth = info.ModTime()
	m.Envelope.Origin = queue.Origin{Service: "import-qmail"}
	for field := range strings.SplitSeq(strings.TrimSuffix(string(text), "\x00"), "\x00") {
		if field == "" {
			continue
		}
		value := field[1:]
		switch field[0] {
		case 'u':
			m.Envelope.Origin.UID, _ = strconv.Atoi(value)
		case 'p':
			m.Envelope.Origin.PID, _ = strconv.Atoi(value)
		case 'F':
			if err := m.Envelope.Sender.UnmarshalText([]byte(value)); err != nil {
				return nil, fmt.Errorf("sender %q: %w", value, err)
			}
		case 'T', 'D':
			var to queue.Recipient
			if err := to.Address.UnmarshalText([]byte(value)); err != nil {
				return nil, fmt.Errorf("recipient %q: %w", value, err)
			}
			m.Envelope.Recipients = append(m.Envelope.Recipients, to)
			m.States = append(m.States, map[byte]string{'T': "waiting", 'D': "done"}[field[0]])
		}
	}
	if err := m.bounces(dir); err != nil {
		return nil, err
	}
	if len(m.Envelope.Recipients) == 0 {
		return nil, nil
	}
	f, err := m.open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m.Size, err = io.Copy(io.Discard, f)
	return m, err
}

// unprefix takes the domain from the front of addresses of virtual domains, where qmail-send has put it: what is delivered as
// example.org-joe@example.org was sent to joe@example.org.
func unprefix(recipients []byte) []byte {
	fields := strings.Split(string(recipients), "\x00")
	for i, f := range fields {
		at := strings.LastIndexByte(f, '@')
		if at < 1 {
			continue
		}
		prefix := f[at+1:] + "-"
		if local := f[1:at]; len(local) > len(prefix) && strings.EqualFold(local[:len(prefix)], prefix) {
			fields[i] = f[:1] + local[len(prefix):] + f[at:]
		}
	}
	return []byte(strings.Join(fields, "\x00"))
}

// bounces reads what the sender was not told: for each recipient "<address>:", the reason, and an empty line.
func (m *qmailMessage) bounces(dir string) error {
	text, _, err := findQmail(dir, "bounce", m.path, m.ID)
	if err != nil || text == nil {
		return err
	}
	var current *queue.ExportedFailure
	done := func() {
		if current != nil {
			current.Text = strings.TrimSpace(current.Text)
			m.Failures = append(m.Failures, *current)
		}
		current = nil
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		name, isHead := strings.CutSuffix(line, ">:")
		switch {
		case isHead && strings.HasPrefix(name, "<"):
			done()
			var to addr.Address
			if err := to.UnmarshalText([]byte(name[1:])); err != nil {
				return fmt.Errorf("bounce of %q: %w", name, err)
			}
			current = &queue.ExportedFailure{Recipient: m.recipient(to), Action: bounce.Failed, Code: 554, Enhanced: "5.0.0"}
		case current != nil:
			current.Text += line + "\n"
		}
	}
	done()
	return lines.Err()
}

// recipient gives the position of a failed recipient, which is marked so; one that is not there is added.
func (m *qmailMessage) recipient(a addr.Address) int {
	for i, r := range m.Envelope.Recipients {
		if r.Address.Key() == a.Key() && m.States[i] == "done" {
			m.States[i] = "failed"
			return i
		}
	}
	m.Envelope.Recipients = append(m.Envelope.Recipients, queue.Recipient{Address: a})
	m.States = append(m.States, "failed")
	return len(m.States) - 1
}
