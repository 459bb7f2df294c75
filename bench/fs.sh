#!/usr/bin/env bash
# fs.sh [off]: mounts a fresh ext4 on a loop file and prints the folder; "off" unmounts and removes it. On a root disk that
# has seen some life, creating a file costs anything from 16 to 390 microseconds, depending on the folder, which drowns
# every comparison. Without root it prints a fresh folder under TMPDIR and warns on stderr.
set -eu
image=${INDIGO_BENCH_IMAGE:-/var/tmp/indigo-bench.img}
mount=${INDIGO_BENCH_MOUNT:-/mnt/indigo-bench}
if [ "$(id -u)" != 0 ]; then
	[ "${1:-}" = off ] && exit 0
	echo "fs.sh: not root, so no fresh file system: figures from this disk do not compare with those in docs/performance.md" >&2
	mktemp -d "${TMPDIR:-/tmp}/indigo-bench.XXXXXX"
	exit 0
fi
if mountpoint -q "$mount"; then umount "$mount"; fi
rm -f "$image"
if [ "${1:-}" = off ]; then
	rmdir "$mount" 2>/dev/null || true
	exit 0
fi
truncate -s 6G "$image"
# Without lazy initialisation the kernel does not go on writing inode tables while the benchmark runs.
mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 "$image"
mkdir -p "$mount"
mount -o loop "$image" "$mount"
chmod 755 "$mount"
echo "$mount"
