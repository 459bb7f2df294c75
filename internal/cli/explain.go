package cli

import (
	"encoding/json"
	"errors"
	"fmt"
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
		Use:   "explain ID|ADDRESS|MESSAGE-ID|SESSION",
		Short: "Tell the whole story of a message, an address or a session",
		Long: `Tell every decision about a message: each check with what it was given, the setting and the layer that decided,
the reply that the other side saw, each delivery attempt with the remote dialogue. It works with and without a running
instance.`,
		Example: "  indigo explain 660188\n  indigo explain someone@example.org --since 1h --json",
		Args:    cobra.ExactArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array of events")
	cmd.Flags().DurationVar(&since, "since", 0, "look back only so far, for example 24h")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
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
			queries = []trace.Query{{Session: what}, {Address: what}}
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
			if asJSON {
				return json.NewEncoder(app.Out).Encode(events)
			}
			return trace.Format(app.Out, events)
		}
		return fmt.Errorf("nothing is recorded of %q in %s", args[0], filepath.Join(*data, "trace"))
	}
	return cmd
}
