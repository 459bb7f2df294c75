package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/indigomail/indigo/internal/directory"
)

func (app *App) storageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "storage",
		Short: "The file systems that homes of new users go to",
		Long: `The file systems that homes of new users go to, in IndiMail's table fstab: the one with most room, of those that are online on this host
(ME). Without any, homes go to BASE_PATH or the domain's directory. Users who are there stay where they are: indigo user move.`,
		Example: "  indigo storage add /mail2 --max-users 50000\n  indigo storage list",
	}
	var asJSON bool
	list := &cobra.Command{Use: "list", Short: "List them", Example: "  indigo storage list --json", Args: cobra.NoArgs}
	listData := app.dataFlag(list)
	list.Flags().BoolVar(&asJSON, "json", false, "print a JSON object a line")
	list.RunE = func(cmd *cobra.Command, _ []string) error {
		return app.withDirectory(cmd.Context(), *listData, func(s *directory.Store) error { return app.printStorage(cmd.Context(), s, "", asJSON) })
	}
	var f directory.FileSystem
	var offline, online bool
	limits := func(c *cobra.Command) {
		c.Flags().StringVar(&f.Host, "host", "", "of another host")
		c.Flags().Int64Var(&f.MaxUsers, "max-users", 0, "most homes, 0 for no limit")
		c.Flags().Int64Var(&f.MaxBytes, "max-bytes", 0, "most bytes in use on the file system, 0 for no limit")
		c.Flags().BoolVar(&offline, "offline", false, "gets no new homes")
	}
	add := &cobra.Command{Use: "add DIRECTORY", Short: "Add one", Long: "Add a directory of a file system for homes of new users. To undo: indigo storage remove DIRECTORY.", Example: "  indigo storage add /mail2 --max-users 50000", Args: cobra.ExactArgs(1)}
	addData := app.dataFlag(add)
	limits(add)
	add.RunE = func(cmd *cobra.Command, args []string) error {
		f.Path, f.Online = args[0], !offline
		return app.addStorage(cmd.Context(), *addData, f)
	}
	modify := &cobra.Command{Use: "modify DIRECTORY", Short: "Change its limits, or whether it gets new homes", Long: "Change its limits, or whether it gets new homes. To undo, set the old ones.", Example: "  indigo storage modify /mail2 --offline", Args: cobra.ExactArgs(1)}
	modifyData := app.dataFlag(modify)
	limits(modify)
	modify.Flags().BoolVar(&online, "online", false, "gets new homes")
	modify.MarkFlagsMutuallyExclusive("online", "offline")
	modify.MarkFlagsOneRequired("online", "offline", "max-users", "max-bytes")
	modify.RunE = func(cmd *cobra.Command, args []string) error {
		return app.withDirectory(cmd.Context(), *modifyData, func(s *directory.Store) error {
			return s.ChangeFileSystem(cmd.Context(), args[0], f.Host, func(is *directory.FileSystem) {
				if cmd.Flags().Changed("max-users") {
					is.MaxUsers = f.MaxUsers
				}
				if cmd.Flags().Changed("max-bytes") {
					is.MaxBytes = f.MaxBytes
				}
				is.Online = (is.Online || online) && !offline
			})
		})
	}
	remove := &cobra.Command{Use: "remove DIRECTORY", Short: "Take one out of the table; homes that are there stay", Long: "Take a directory out of the table; the homes that are there stay and work. To undo: indigo storage add DIRECTORY.", Example: "  indigo storage remove /mail2", Args: cobra.ExactArgs(1)}
	removeData := app.dataFlag(remove)
	remove.Flags().StringVar(&f.Host, "host", "", "of another host")
	remove.RunE = func(cmd *cobra.Command, args []string) error {
		return app.withDirectory(cmd.Context(), *removeData, func(s *directory.Store) error { return s.RemoveFileSystem(cmd.Context(), args[0], f.Host) })
	}
	balance := &cobra.Command{Use: "balance", Short: "Count homes and bytes anew", Long: "Count the homes and bytes of this host's file systems anew. New homes go by what is counted; no home is moved.", Example: "  indigo storage balance", Args: cobra.NoArgs}
	balanceData := app.dataFlag(balance)
	balance.RunE = func(cmd *cobra.Command, _ []string) error {
		return app.withDirectory(cmd.Context(), *balanceData, func(s *directory.Store) error { return s.BalanceFileSystems(cmd.Context()) })
	}
	cmd.AddCommand(list, add, modify, remove, balance)
	return cmd
}

func (app *App) addStorage(ctx context.Context, data string, f directory.FileSystem) error {
	if err := homesAllowed(data, f.Path); err != nil {
		return err
	}
	return app.withDirectory(ctx, data, func(s *directory.Store) error { return s.AddFileSystem(ctx, f) })
}

// printStorage prints the table fstab, of a host or of all.
func (app *App) printStorage(ctx context.Context, s *directory.Store, host string, asJSON bool) error {
	all, err := s.FileSystems(ctx)
	if err != nil {
		return err
	}
	for _, f := range all {
		if host != "" && f.Host != host {
			continue
		}
		if asJSON {
			err = json.NewEncoder(app.Out).Encode(f)
		} else {
			err = printFileSystem(app.Out, f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func printFileSystem(w io.Writer, f directory.FileSystem) error {
	status := "OFFLINE"
	if f.Online {
		status = "ONLINE"
	}
	most := func(n int64) string {
		if n == 0 {
			return "no limit"
		}
		return strconv.FormatInt(n, 10)
	}
	_, err := fmt.Fprintf(w, "%s on %s: %s, %d users (%s), %d bytes (%s)\n", f.Path, f.Host, status, f.Users, most(f.MaxUsers), f.Bytes, most(f.MaxBytes))
	return err
}

// vfstab is IndiMail's program for the same.
func (app *App) vfstab(ctx context.Context, data string, operands []string, options map[byte]string) error {
	number := func(letter byte) (n int64, err error) {
		text, given := options[letter]
		if !given {
			return 0, nil
		}
		if n, err = strconv.ParseInt(text, 10, 64); err != nil || n < 0 {
			return 0, fmt.Errorf("-%c %q is no number from 0 up", letter, text)
		}
		return n, nil
	}
	has := func(letters string) bool {
		for _, letter := range letters {
			if _, given := options[byte(letter)]; given {
				return true
			}
		}
		return false
	}
	users, err := number('n')
	if err != nil {
		return err
	}
	bytes, err := number('q')
	if err != nil {
		return err
	}
	status, given := options['o']
	if given && status != "0" && status != "1" {
		return fmt.Errorf("-o %q is neither 0, offline, nor 1, online", status)
	}
	if has("sb") != (len(operands) == 0) {
		return errors.New("usage: vfstab -s [-m HOST] | -i|-l|-u|-d [-o 0|1] [-n USERS] [-q BYTES] [-m HOST] DIRECTORY | -o 0|1 DIRECTORY | -b")
	}
	switch {
	case has("il"):
		return app.addStorage(ctx, data, directory.FileSystem{Path: operands[0], Host: options['m'], Online: status != "0", MaxUsers: users, MaxBytes: bytes})
	case has("s"):
		return app.withDirectory(ctx, data, func(s *directory.Store) error { return app.printStorage(ctx, s, options['m'], false) })
	}
	return app.withDirectory(ctx, data, func(s *directory.Store) error {
		switch {
		case has("b"):
			return s.BalanceFileSystems(ctx)
		case has("d"):
			return s.RemoveFileSystem(ctx, operands[0], options['m'])
		case has("uo"):
			return s.ChangeFileSystem(ctx, operands[0], options['m'], func(f *directory.FileSystem) {
				if has("n") {
					f.MaxUsers = users
				}
				if has("q") {
					f.MaxBytes = bytes
				}
				if given {
					f.Online = status == "1"
				}
			})
		}
		return errors.New("nothing to do: give -i, -l, -u, -d, -o, -s or -b")
	})
}
