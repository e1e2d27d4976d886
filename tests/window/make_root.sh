#!/usr/bin/env bash
# A Debian root with Blender, Xvfb and xdotool, for the tests in a real Blender window. Nothing outside it changes.
#
#   make_root.sh [ROOT]      ROOT: where to (default: ~/.cache/kinesplat/blender-root, or KINESPLAT_BLENDER_ROOT)
#
# Environment: MIRROR  Debian mirror (default: that of this machine's apt sources)
#              SUITE   Debian suite (default: sid, which carries the newest Blender)
# Needs: root, debootstrap, about 1.6 GB of disk and 330 MB of download. A finished root is left as it is.
set -euo pipefail

ROOT=${1:-${KINESPLAT_BLENDER_ROOT:-$HOME/.cache/kinesplat/blender-root}}
SUITE=${SUITE:-sid}
STAMP=kinesplat-root  # written last: without it a root is not finished
PACKAGES=(
  blender xvfb xauth xdotool imagemagick
  libgl1 libegl1 libglx-mesa0 libegl-mesa0 libgl1-mesa-dri
  # Blender's own Python modules; Debian's package does not pull in what the extension system needs (cattr).
  python3-numpy python3-requests python3-zstandard python3-cattr ca-certificates
)

fail() { echo "make_root.sh: $*" >&2; exit 1; }

# The first plain source with component main, without updates and security.
mirror_of_this_machine() {
  (
    . /etc/os-release
    [ "${ID:-}" = debian ] || exit 0
    apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
      awk -v release="$VERSION_CODENAME" '$1 == release && $2 == "main" { print $3; exit }'
  )
}

if [ -f "$ROOT/$STAMP" ]; then
  echo "The Blender root is ready: $ROOT ($(cat "$ROOT/$STAMP"))"
  exit 0
fi
[ "$(id -u)" = 0 ] || fail "making a Debian root needs root rights"
command -v debootstrap >/dev/null || fail "debootstrap is missing: apt install debootstrap"
MIRROR=${MIRROR:-$(mirror_of_this_machine)}
[ -n "$MIRROR" ] || fail "no Debian mirror found in this machine's apt sources: set MIRROR to one"

PART="$ROOT.part"  # a root that was interrupted is made anew
rm -rf "$PART"
mkdir -p "$PART"
trap 'rm -rf "$PART"' EXIT

debootstrap --variant=minbase "$SUITE" "$PART" "$MIRROR"
cat > "$PART/etc/apt/apt.conf.d/99kinesplat" <<'CONF'
Acquire::Check-Valid-Until "false";
Acquire::Retries "3";
Acquire::Languages "none";
APT::Install-Recommends "false";
CONF
echo force-unsafe-io > "$PART/etc/dpkg/dpkg.cfg.d/99kinesplat"  # a root that was interrupted is made anew anyway
printf '#!/bin/sh\nexit 101\n' > "$PART/usr/sbin/policy-rc.d"  # packages start no services
chmod +x "$PART/usr/sbin/policy-rc.d"
[ ! -e /etc/resolv.conf ] || cp -L /etc/resolv.conf "$PART/etc/resolv.conf"
export DEBIAN_FRONTEND=noninteractive
chroot "$PART" apt-get update
chroot "$PART" apt-get install -y "${PACKAGES[@]}"
chroot "$PART" apt-get clean
rm -rf "$PART"/var/lib/apt/lists/*
chroot "$PART" blender --version | head -1 > "$PART/$STAMP"
rm -rf "$ROOT"
mv "$PART" "$ROOT"
echo "The Blender root is ready: $ROOT ($(cat "$ROOT/$STAMP"))"
