package settings

import (
	"os"
	"syscall"
)

// keepOwner gives f the owner and mode of the file that it will replace, as far as this process may.
func keepOwner(f *os.File, old os.FileInfo) error {
	if stat, ok := old.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		if err := f.Chown(int(stat.Uid), int(stat.Gid)); err != nil {
			return err
		}
	}
	return f.Chmod(old.Mode().Perm())
}
