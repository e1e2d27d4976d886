#!/usr/bin/env bash
# Run a command inside a root made by make_root.sh.     in_root.sh ROOT WORK command...
#
# WORK is /job inside, and the current folder. The mounts are private to the command and vanish with it. Network and
# process numbers are shared with this machine, so that a backend outside is found as on a user's computer.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "in_root.sh: entering the root needs root rights" >&2; exit 2; }
ROOT=$1 WORK=$(realpath "$2")
shift 2
export ROOT WORK
exec unshare --mount --fork --kill-child bash -c '
  set -e
  mount --make-rprivate /
  mkdir -p "$ROOT/dev/shm" "$ROOT/dev/pts" "$ROOT/job"
  mount -t proc proc "$ROOT/proc"
  mount -t tmpfs -o size=1g tmpfs "$ROOT/dev/shm"
  mount -t devpts devpts "$ROOT/dev/pts"
  mount --bind "$WORK" "$ROOT/job"
  exec chroot "$ROOT" bash -c "cd /job; exec \"\$@\"" in_root "$@"' in_root "$@"
