package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/maildir"
)

// quotaUse is what a user has of the quota.
type quotaUse struct {
	Address string `json:"address"`
	Quota   string `json:"quota"`
	// The limits are 0 where there is none.
	Bytes       int64 `json:"bytes"`
	Messages    int64 `json:"messages"`
	MaxBytes    int64 `json:"max_bytes"`
	MaxMessages int64 `json:"max_messages"`
	Percent     int   `json:"percent"`
	// Error tells why the mailbox could not be read.
	Error string `json:"error,omitempty"`
}

// userQuotaCommand is part of `indigo user`.
func (app *App) userQuotaCommand() *cobra.Command {
	var most, skip int
	var recalculate, asJSON bool
	cmd := &cobra.Command{
		Use:   "quota USER@DOMAIN|DOMAIN",
		Short: "Tell how much of their quotas users have used",
		Long: `Tell how much of the quota a user has used, or all users of a domain, those with the most bytes first. The numbers are those of the file
maildirsize in the Maildir, where there is one, which deliveries, POP3 and IMAP keep; --recalculate counts the messages and makes the
file anew, for when other programs have changed the Maildir. Quotas are set by indigo user modify.`,
		Example: "  indigo user quota alice@example.org --recalculate\n  indigo user quota example.org -n 20\n  indigo user quota example.org --skip 20 -n 20 --json", Args: cobra.ExactArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().IntVarP(&most, "lines", "n", 100, "of a domain, at most so many users")
	cmd.Flags().IntVar(&skip, "skip", 0, "of a domain, leave so many out first")
	cmd.Flags().BoolVar(&recalculate, "recalculate", false, "count the messages and make maildirsize anew")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object a line")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return app.withDirectory(cmd.Context(), *data, func(s *directory.Store) error {
			uses, err := quotaUses(cmd.Context(), s, args[0], recalculate)
			if err != nil {
				return err
			}
			slices.SortStableFunc(uses, func(a, b quotaUse) int { return cmp.Compare(b.Bytes, a.Bytes) })
			total := len(uses)
			uses = uses[min(max(skip, 0), total):]
			uses = uses[:min(max(most, 0), len(uses))]
			failed := 0
			w := tabwriter.NewWriter(app.Out, 0, 0, 2, ' ', 0)
			if !asJSON {
				fmt.Fprintln(w, "user\tbytes\tmessages\tquota\tused")
			}
			for _, u := range uses {
				if u.Error != "" {
					failed++
					fmt.Fprintf(app.Err, "%s: %s\n", u.Address, u.Error)
				}
				if asJSON {
					if err := json.NewEncoder(app.Out).Encode(u); err != nil {
						return err
					}
					continue
				}
				percent := "-"
				if u.MaxBytes > 0 || u.MaxMessages > 0 {
					percent = fmt.Sprint(u.Percent, "%")
				}
				fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\n", u.Address, u.Bytes, u.Messages, u.Quota, percent)
			}
			if err := w.Flush(); err != nil {
				return err
			}
			if skip+len(uses) < total && !asJSON {
				fmt.Fprintf(app.Err, "%d more: --skip %d\n", total-skip-len(uses), skip+len(uses))
			}
			if failed > 0 {
				return fmt.Errorf("%d mailboxes could not be read", failed)
			}
			return nil
		})
	}
	return cmd
}

// quotaUses reads the use of one user, or of a domain's.
func quotaUses(ctx context.Context, s *directory.Store, who string, recalculate bool) ([]quotaUse, error) {
	if strings.Contains(who, "@") {
		a, err := addr.Parse(who)
		if err != nil {
			return nil, err
		}
		u, err := s.User(ctx, a)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", a, err)
		}
		return []quotaUse{useOf(u, recalculate)}, nil
	}
	var uses []quotaUse
	for after := ""; ; {
		users, err := s.Users(ctx, who, after, 1000)
		if err != nil {
			return nil, err
		}
		for _, u := range users {
			uses = append(uses, useOf(u, recalculate))
			after = u.Name
		}
		if len(users) < 1000 {
			return uses, nil
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}

func useOf(u directory.User, recalculate bool) quotaUse {
	use := quotaUse{Address: u.Address().String(), Quota: u.Quota}
	q, err := maildir.ParseQuota(u.Quota)
	path := filepath.Join(u.Dir, "Maildir")
	if err == nil {
		if recalculate {
			err = recount(path, q)
		}
		if err == nil {
			use.Bytes, use.Messages, err = maildir.Usage(path)
		}
	}
	if err != nil {
		use.Error = err.Error()
	}
	use.MaxBytes, use.MaxMessages, use.Percent = q.Bytes, q.Messages, q.Percent(maildir.Use{Bytes: use.Bytes, Messages: use.Messages})
	return use
}

// recount makes maildirsize anew where there is a Maildir.
func recount(path string, q maildir.Quota) error {
	if _, err := os.Stat(filepath.Join(path, "tmp")); os.IsNotExist(err) {
		return nil
	}
	_, err := maildir.Recount(path, q)
	return err
}

// newQuota writes a changed quota into the user's maildirsize, for the programs that read it there.
func (app *App) newQuota(ctx context.Context, s *directory.Store, a addr.Address) {
	u, err := s.User(ctx, a)
	if err == nil {
		var q maildir.Quota
		if q, err = maildir.ParseQuota(u.Quota); err == nil {
			err = recount(filepath.Join(u.Dir, "Maildir"), q)
		}
	}
	if err != nil {
		fmt.Fprintf(app.Err, "the quota is set; its copy in the Maildir will be by the next delivery: %v\n", err)
	}
}
