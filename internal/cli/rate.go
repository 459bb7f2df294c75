package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/message"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/service"
)

func (app *App) queueRateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rate",
		Short: "Limit how fast mail goes to a domain, or from a sender or user",
		Long: `Limit how fast mail goes to a domain, from a sender or from an authenticated user. What comes faster waits in the queue.

NAME is a domain, sender:ADDRESS or user:NAME; "*" in their places stands for each that has no limit of its own.
EXPRESSION is deliveries per second, such as 50/3600. --burst is how many may go at once; 1 spreads them evenly.
So 1000/86400 with --burst 1000 is a thousand a day at whatever pace.`,
		Example: "  indigo queue rate set yahoo.com 50/3600\n  indigo queue rate set 'user:*' 500/86400 --burst 500\n  indigo queue rate list",
	}
	cmd.AddCommand(app.rateListCommand(), app.rateSetCommand(), app.rateRemoveCommand())
	return cmd
}

const rateQueueHelp = "only the mail of this queue (default: all queues together)"

func (app *App) rateListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{Use: "list", Short: "List the rate limits and how much of them is used", Example: "  indigo queue rate list", Args: cobra.NoArgs}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return app.withQueue(cmd.Context(), *data, func(q service.QueueTools) error {
			all, err := q.Rates(cmd.Context())
			if err != nil {
				return err
			}
			if all == nil {
				all = []queue.Rate{}
			}
			return app.table(asJSON, all, 0, func(w io.Writer) {
				fmt.Fprintln(w, "NAME\tQUEUE\tRATE\tPER SECOND\tBURST\tCOUNT\tSINCE\tNOW PER SECOND")
				for _, r := range all {
					where := r.Queue
					if where == "" {
						where = "all"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\n", r.Name, where, r.Expression, queue.FormatRate(r.PerSecond()), r.Burst, r.Count,
						r.Start.Format(time.DateTime), queue.FormatRate(r.Current(time.Now())))
				}
			})
		})
	}
	return cmd
}

func (app *App) rateSetCommand() *cobra.Command {
	var name string
	var burst int
	cmd := &cobra.Command{
		Use:     "set NAME EXPRESSION",
		Short:   "Set a rate limit",
		Long:    "Set a rate limit; it holds at once, for the mail that waits too. To undo: indigo queue rate remove.",
		Example: "  indigo queue rate set yahoo.com 50/3600\n  indigo queue rate set sender:news@example.org 10 --burst 100",
		Args:    cobra.ExactArgs(2),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().StringVar(&name, "queue", "", rateQueueHelp)
	cmd.Flags().IntVar(&burst, "burst", 1, "how many may go at once after a quiet time")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return app.withQueue(cmd.Context(), *data, func(q service.QueueTools) error {
			return q.SetRate(cmd.Context(), name, args[0], args[1], burst)
		})
	}
	return cmd
}

func (app *App) rateRemoveCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:     "remove NAME",
		Short:   "Remove a rate limit; what waited for it goes at once",
		Example: "  indigo queue rate remove yahoo.com",
		Args:    cobra.ExactArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().StringVar(&name, "queue", "", rateQueueHelp)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return app.withQueue(cmd.Context(), *data, func(q service.QueueTools) error { return q.RemoveRate(cmd.Context(), name, args[0]) })
	}
	return cmd
}

// drate is IndiMail's drate(1) (wiki 1505-1525): -r sets a domain's limit, without it the limit is shown. The queue is slowq unless -D or -q
// names another.
func (app *App) drate(ctx context.Context, q service.QueueTools, o map[byte]string) error {
	given := func(letters string) bool { return givenAny(o, letters) }
	domain, name, zone := strings.ToLower(o['d']), "slowq", time.Local
	if given("u") {
		zone = time.UTC
	}
	if dir, ok := o['q']; ok {
		name = filepath.Base(dir)
	}
	if dir, ok := o['D']; ok && dir != "ratelimit" {
		if filepath.Base(dir) != "ratelimit" {
			return fmt.Errorf("-D %s: a queue has its limits in its directory ratelimit: QUEUE/ratelimit", dir)
		}
		name = filepath.Base(filepath.Dir(dir))
	}
	if (domain == "") != given("l") || given("l") && given("rcRU") || given("U") && given("rcRs") {
		return errors.New("-d must give the domain, whose limit -r, -c and -R change, -U removes and -s shows; -l lists all")
	}
	if given("U") {
		return q.RemoveRate(ctx, name, domain)
	}
	all, err := q.Rates(ctx)
	if err != nil {
		return err
	}
	var now *queue.Rate
	for _, r := range all {
		switch {
		case r.Queue != name:
		case given("l"):
			fmt.Fprintf(app.Out, "domain     : %s\n", r.Name)
			if given("s") {
				app.printRate(r, time.Now(), zone)
			}
			fmt.Fprintln(app.Out, strings.Repeat("-", 44))
		case r.Name == domain:
			now = &r
		}
	}
	expression, set := o['r']
	more := strings.HasPrefix(expression, "+") || strings.HasPrefix(expression, "-")
	switch {
	case given("l"):
		return nil
	case now == nil && (!set || more):
		return fmt.Errorf("queue %s has no rate limit for %s", name, domain)
	case !given("rcR"):
		app.printRate(*now, time.Now(), zone)
		return nil
	}
	burst := 1
	if !set || more {
		// What is set anew is counted anew, which is all that -R wants.
		expression, burst = now.Expression+expression, now.Burst
	}
	if r := (queue.Rate{Expression: expression}); given("c") && !math.IsInf(r.PerSecond(), 0) {
		expression = queue.FormatRate(r.PerSecond())
	}
	if err := q.SetRate(ctx, name, domain, expression, burst); err != nil || !given("s") {
		return err
	}
	shown := maps.Clone(o)
	maps.DeleteFunc(shown, func(letter byte, _ string) bool { return strings.IndexByte("rcR", letter) >= 0 })
	return app.drate(ctx, q, shown)
}

// printRate writes a limit in drate's words.
func (app *App) printRate(r queue.Rate, now time.Time, zone *time.Location) {
	date := func(t time.Time) string { return message.Date822(t.In(zone)) }
	fmt.Fprintf(app.Out, "Conf Rate: %s (%s)\nEmail Count: %d\nStart Time: %s\n", r.Expression, queue.FormatRate(r.PerSecond()), r.Count, date(r.Start))
	verdict := ""
	if r.Count == 0 {
		fmt.Fprintf(app.Out, "End Time: %s\n", date(r.Start))
	} else {
		fmt.Fprintf(app.Out, "LastUpdated: %s\n", date(r.Updated))
		if verdict = " OK"; r.Current(now) > r.PerSecond() {
			verdict = " EXCEEDED"
		}
	}
	fmt.Fprintf(app.Out, "CurrentTime: %s\nCurrentRate: %s%s\n", date(now), queue.FormatRate(r.Current(now)), verdict)
}
