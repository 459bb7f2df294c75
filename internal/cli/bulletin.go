package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/directory"
	"github.com/indigomail/indigo/internal/local"
	"github.com/indigomail/indigo/internal/maildir"
	"github.com/indigomail/indigo/internal/settings"
)

// bulletin says what goes to whom.
type bulletin struct {
	file    string
	domains []string
	// except and list are files of addresses; list takes the place of the domains.
	except, list              string
	dryRun, verbose, withdraw bool
	yes, asJSON               bool
}

// bulletinCounts are what became of it.
type bulletinCounts struct {
	ID        string `json:"id"`
	Delivered int    `json:"delivered"`
	Already   int    `json:"already"`
	Excluded  int    `json:"excluded"`
	// Refused take no mail: BOUNCE_MAIL.
	Refused int `json:"refused"`
	// OverQuota have no room; they get it when the command runs again and they have.
	OverQuota int `json:"over_quota"`
	Failed    int `json:"failed"`
	Withdrawn int `json:"withdrawn"`
}

// bulletinBatch is how many deliveries become durable, and are written down, at once.
const bulletinBatch = 100

func (app *App) domainBulletinCommand() *cobra.Command {
	var b bulletin
	var all bool
	cmd := &cobra.Command{
		Use:   "bulletin [DOMAIN...] FILE",
		Short: "Put a message into the mailbox of every user of a domain",
		Long: `Put a message into the mailboxes of every user of domains, of all with --all, or of those whom a file names; - reads the message from standard
input. Each gets it once: after an interruption the same command goes on, and for a message that was sent before only who has not got it
gets it. Who has it stands in DATA/bulletins. Users with BOUNCE_MAIL and those over quota get none. The message goes into the
Maildirs as it is, past queue, filters and forwards. To undo, --withdraw takes it out of the mailboxes again, read or not.`,
		Example: "  indigo domain bulletin example.org notice.eml --dry-run\n  indigo domain bulletin example.org notice.eml --except staff\n  indigo domain bulletin --all notice.eml\n  indigo domain bulletin example.org notice.eml --withdraw",
		Args:    cobra.MinimumNArgs(1),
	}
	data := app.dataFlag(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "every domain")
	cmd.Flags().StringVar(&b.except, "except", "", "file of addresses that get none, one a line")
	cmd.Flags().StringVar(&b.list, "to", "", "file of the addresses that get it, one a line, in the place of domains")
	cmd.Flags().BoolVar(&b.dryRun, "dry-run", false, "print who would get it, deliver nothing")
	cmd.Flags().BoolVar(&b.withdraw, "withdraw", false, "take it out of the mailboxes again")
	cmd.Flags().BoolVar(&b.yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&b.asJSON, "json", false, "print the counts as a JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		b.domains, b.file = args[:len(args)-1], args[len(args)-1]
		ways := 0
		for _, one := range []bool{all, b.list != "", len(b.domains) > 0} {
			if one {
				ways++
			}
		}
		if ways != 1 {
			return errors.New("say who gets it: domains before the file, --all, or --to FILE")
		}
		b.verbose = b.dryRun && !b.asJSON
		return app.sendBulletin(cmd.Context(), *data, b)
	}
	return cmd
}

// readAddresses reads a file of addresses, one a line; lines that begin with # do not count.
func readAddresses(path string) (map[string]addr.Address, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all := map[string]addr.Address{}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		a, err := addr.Parse(strings.ToLower(text))
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		all[a.String()] = a
	}
	return all, lines.Err()
}

// readMessage reads the bulletin's message.
func (app *App) readMessage(path string) ([]byte, error) {
	in := app.In
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	return io.ReadAll(io.LimitReader(in, local.MaxBulletin+1))
}

// sendBulletin delivers b, or takes it back.
func (app *App) sendBulletin(ctx context.Context, data string, b bulletin) error {
	text, err := app.readMessage(b.file)
	if err != nil {
		return err
	}
	except := map[string]addr.Address{}
	if b.except != "" {
		if except, err = readAddresses(b.except); err != nil {
			return err
		}
	}
	snapshot, _ := settings.Inspect(data)
	absolute, err := filepath.Abs(data)
	if err != nil {
		return err
	}
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		// Who gets it is known before the first delivery: a wrong name stops all.
		users, err := bulletinUsers(ctx, s, b)
		if err != nil {
			return err
		}
		work, err := local.OpenBulletin(filepath.Join(absolute, "bulletins"), text, settings.Me.Get(snapshot.View("all")), time.Now)
		if err != nil {
			return err
		}
		defer work.Close()
		counts := bulletinCounts{ID: work.ID}
		if b.withdraw {
			err = app.withdrawBulletin(work, users, b, &counts)
		} else {
			err = app.deliverBulletin(ctx, work, users, except, b, &counts)
		}
		if b.asJSON {
			return errors.Join(err, json.NewEncoder(app.Out).Encode(counts))
		}
		if b.withdraw {
			word := "taken"
			if b.dryRun {
				word = "would be taken"
			}
			fmt.Fprintf(app.Out, "bulletin %s: %s out of %d mailboxes\n", counts.ID, word, counts.Withdrawn)
			return err
		}
		word := "delivered to"
		if b.dryRun {
			word = "would be delivered to"
		}
		fmt.Fprintf(app.Out, "bulletin %s: %s %d, %d had it, %d excluded, %d take no mail, %d over quota, %d failed\n", counts.ID, word, counts.Delivered, counts.Already, counts.Excluded, counts.Refused, counts.OverQuota, counts.Failed)
		return err
	})
}

// audience is who is meant: how many, and a walk through them.
type audience struct {
	size int
	each func(use func(directory.User) error) error
}

// bulletinUsers gives who is meant.
func bulletinUsers(ctx context.Context, s *directory.Store, b bulletin) (audience, error) {
	if b.list != "" {
		list, err := readAddresses(b.list)
		if err != nil {
			return audience{}, err
		}
		users := []directory.User{}
		var faults []error
		for _, name := range sortedKeys(list) {
			a, err := realAddress(ctx, s, list[name])
			if err != nil {
				faults = append(faults, err)
				continue
			}
			u, err := s.User(ctx, a)
			if err != nil {
				faults = append(faults, fmt.Errorf("%s: %w", name, err))
			}
			users = append(users, u)
		}
		return audience{len(users), func(use func(directory.User) error) error {
			for _, u := range users {
				if err := use(u); err != nil {
					return err
				}
			}
			return nil
		}}, errors.Join(faults...)
	}
	if len(b.domains) == 0 {
		domains, err := s.Domains(ctx)
		if err != nil {
			return audience{}, err
		}
		for _, d := range domains {
			b.domains = append(b.domains, d.Name)
		}
	}
	sizes, size := map[string]int64{}, int64(0)
	for _, name := range b.domains {
		info, err := s.DomainInfo(ctx, name)
		if err != nil {
			return audience{}, err
		}
		sizes[info.Name] = info.Users
	}
	for _, n := range sizes {
		size += n
	}
	return audience{int(size), func(use func(directory.User) error) error {
		for _, name := range sortedKeys(sizes) {
			if err := everyUser(ctx, s, name, use); err != nil {
				return err
			}
		}
		return nil
	}}, nil
}

func (app *App) deliverBulletin(ctx context.Context, work *local.Bulletin, users audience, except map[string]addr.Address, b bulletin, counts *bulletinCounts) error {
	bar := app.progress(users.size, "bulletin")
	defer bar.Exit()
	var faults []error
	waiting := 0
	err := users.each(func(u directory.User) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		_ = bar.Add(1) // a terminal that is gone hinders nothing
		name := u.Address().String()
		if _, out := except[name]; out {
			counts.Excluded++
			return nil
		}
		switch {
		case directory.Flags(u.GID)&directory.BounceMail != 0:
			counts.Refused++
			return nil
		case work.Has(u):
			counts.Already++
			return nil
		}
		if b.verbose {
			fmt.Fprintln(app.Out, name)
		}
		if b.dryRun {
			counts.Delivered++
			return nil
		}
		err := work.Deliver(u)
		if errors.Is(err, maildir.ErrOverQuota) {
			counts.OverQuota++
			return nil
		}
		if err != nil {
			counts.Failed++
			faults = append(faults, fmt.Errorf("%s: %w", name, err))
			const most = 20
			if len(faults) == most {
				return errors.New("too many failures; the same command goes on where this one ended")
			}
			return nil
		}
		counts.Delivered++
		if waiting++; waiting < bulletinBatch {
			return nil
		}
		waiting = 0
		return work.Flush()
	})
	if waiting > 0 {
		faults = append(faults, work.Flush())
	}
	return errors.Join(append(faults, err)...)
}

func (app *App) withdrawBulletin(work *local.Bulletin, users audience, b bulletin, counts *bulletinCounts) error {
	var have []directory.User
	err := users.each(func(u directory.User) error {
		if work.Has(u) {
			have = append(have, u)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(have) == 0 {
		return errors.New("none of them got this message, or it was withdrawn")
	}
	if b.dryRun {
		for _, u := range have {
			if b.verbose {
				fmt.Fprintln(app.Out, u.Address())
			}
			counts.Withdrawn++
		}
		return nil
	}
	if err := app.confirm(b.yes, fmt.Sprintf("Take the bulletin %s out of %d mailboxes?", work.ID, len(have))); err != nil {
		return err
	}
	var faults []error
	for _, u := range have {
		found, err := work.Withdraw(u)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", u.Address(), err))
		} else if found {
			counts.Withdrawn++
		}
	}
	return errors.Join(faults...)
}

// bulletinPrograms are IndiMail's names for the same.
func (app *App) bulletinPrograms() map[string]func([]string) int {
	return app.faces(map[string]oldProgram{
		"vbulletin": {"[-V] [-n] [-c] [-e FILE] [-S FILE] [-a] -f FILE [DOMAIN...]", 0, 1000, "Vnce:S:af:", func(ctx context.Context, data string, operands []string, options map[byte]string) error {
			b := bulletin{file: options['f'], domains: operands, except: options['e'], list: options['S'], yes: true}
			_, b.verbose = options['V']
			_, b.dryRun = options['n']
			if b.file == "" {
				return errors.New("-f must name the message's file")
			}
			if b.list != "" {
				b.domains = nil
			}
			return app.sendBulletin(ctx, data, b)
		}},
	})
}
