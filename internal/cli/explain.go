package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/service"
	"github.com/indigomail/indigo/internal/trace"
)

func (app *App) explainCommand() *cobra.Command {
	var asJSON bool
	var since time.Duration
	cmd := &cobra.Command{
		Use:   "explain [ID|ADDRESS|MESSAGE-ID|SESSION]",
		Short: "Tell the whole story of a message, sent or not",
		Long: `Tell every decision about a message: each check with what it was given, the setting and the layer that decided,
the reply that the other side saw, each delivery attempt with the remote dialogue. It works with and without a running
instance.

With --to instead of a name it tells what would become of a message that nobody has sent, by running the same code: what
the door would say to this client, and where each recipient's mail would go. Nothing is sent but DNS questions. Settings
are those on the disk; a running instance has them after its next reload.`,
		Example: `  indigo explain 660188
  indigo explain someone@example.org --since 1h --json
  indigo explain --from joe@example.net --to someone@example.org --ip 192.0.2.7
  indigo explain --from someone@example.org --to joe@example.net --user someone@example.org --service smtpd.587`,
		Args: cobra.MaximumNArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array of events")
	cmd.Flags().DurationVar(&since, "since", 0, "look back only so far, for example 24h")
	q := service.Question{}
	var ip string
	cmd.Flags().StringVar(&q.From, "from", "", "sender of a message that was not sent; empty for a bounce")
	cmd.Flags().StringSliceVar(&q.To, "to", nil, "`ADDRESS` of a recipient of a message that was not sent; may be given again")
	cmd.Flags().StringVar(&ip, "ip", "192.0.2.1", "address of the client that would send it")
	cmd.Flags().StringVar(&q.Helo, "helo", "client.example", "name that the client would give")
	cmd.Flags().StringVar(&q.User, "user", "", "user that would have logged in")
	certificate := clientCertificateFlags(cmd.Flags(), &q)
	cmd.Flags().StringVar(&q.Service, "service", "smtpd.25", "door that the client would come to")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		if len(args) == 0 && len(q.To) == 0 || len(args) > 0 && len(q.To) > 0 {
			return errors.New("name what is to be explained: an ID, an address, a Message-ID or a session; or give --to for a message that was not sent")
		}
		if len(q.To) > 0 {
			var err error
			if q.Client, err = netip.ParseAddr(ip); err != nil {
				return fmt.Errorf("--ip: %w", err)
			}
			if err := certificate(); err != nil {
				return err
			}
			events, err := service.WhatIf(ctx, *data, q)
			if err != nil {
				return err
			}
			return app.tell(events, asJSON)
		}
		if err := service.NewControl(*data).FlushTrace(ctx); err != nil && !errors.Is(err, service.ErrNotRunning) {
			return err
		}
		var queries []trace.Query
		what := strings.Trim(args[0], "<>")
		if _, err := queue.ParseID(what); err == nil {
			queries = []trace.Query{{Queue: what}}
		} else if strings.Contains(what, "@") {
			queries = []trace.Query{{MessageID: what}, {Address: what}}
		} else {
			queries = []trace.Query{{Session: what}, {Client: what}, {Address: what}}
		}
		for _, q := range queries {
			if since > 0 {
				q.Since = time.Now().Add(-since)
			}
			events, err := trace.Search(ctx, filepath.Join(*data, "trace"), q)
			if err != nil {
				return err
			}
			if len(events) == 0 {
				continue
			}
			return app.tell(events, asJSON)
		}
		return fmt.Errorf("nothing is recorded of %q in %s", args[0], filepath.Join(*data, "trace"))
	}
	return cmd
}

// tell prints events.
func (app *App) tell(events []trace.Event, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(app.Out).Encode(events)
	}
	return trace.Format(app.Out, events)
}
