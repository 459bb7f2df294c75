package cli

import (
	"fmt"
	"os"
	"slices"
	"syscall"

	"github.com/spf13/cobra"
)

// asOwner gives root up for the owner of the data directory, so that what a command makes there belongs to who serves it.
// A directory of root's, or one that is not there, changes nothing.
func asOwner(data string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(data)
	if err != nil {
		return nil
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid == 0 {
		return nil
	}
	if err := becomeUser(owner.Uid, owner.Gid); err != nil {
		return fmt.Errorf("working as the owner of %s: %w", data, err)
	}
	return nil
}

// becomeUser gives root up for good.
func becomeUser(uid, gid uint32) error {
	if err := syscall.Setgroups([]int{int(gid)}); err != nil {
		return err
	}
	if err := syscall.Setgid(int(gid)); err != nil {
		return err
	}
	return syscall.Setuid(int(uid))
}

// dropRoot does so for a command, unless it is one that needs root or writes elsewhere.
func (app *App) dropRoot(cmd *cobra.Command, _ []string) error {
	flag := cmd.Flags().Lookup("data")
	if flag == nil || slices.Contains([]string{"indigo up", "indigo serve", "indigo install", "indigo settings doc"}, cmd.CommandPath()) {
		return nil
	}
	for _, name := range []string{"password-file", "value-file"} {
		if file := cmd.Flags().Lookup(name); file != nil && file.Value.String() != "" && file.Value.String() != "-" {
			// Root may read what the owner of the mail may not. Without the file, who needs it says so.
			app.opened, _ = os.Open(file.Value.String())
		}
	}
	return asOwner(flag.Value.String())
}
