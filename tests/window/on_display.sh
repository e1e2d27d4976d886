#!/usr/bin/env bash
# Run a command on an X display of its own, with software OpenGL.     on_display.sh WIDTHxHEIGHT command...
set -euo pipefail
size=$1
shift
exec 3< <(exec Xvfb -displayfd 1 -screen 0 "${size}x24" +extension GLX -nolisten tcp 2>/dev/null)
xvfb=$!
trap 'kill "$xvfb" 2>/dev/null || true' EXIT
read -r display <&3 || { echo "on_display.sh: Xvfb did not start" >&2; exit 2; }
DISPLAY=":$display" "$@"
