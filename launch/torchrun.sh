#!/usr/bin/env bash
# Ranks of one node, or of one of many, under torchrun: launch/torchrun.sh --help. The logic is altup_moe/launch/torchrun.py;
# the first python3 in PATH runs it (or PYTHON), so activate the environment.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
python=${PYTHON:-python3}
if ! command -v -- "$python" >/dev/null; then
    echo "torchrun.sh: error: $python: not found; install Python 3.11 or newer, or set PYTHON to an interpreter" >&2
    exit 2
fi
start='import sys; sys.path.insert(0, sys.argv.pop(1)); from altup_moe.launch import node, torchrun; node.leave(torchrun.main())'
exec "$python" -P -c "$start" "$root" "$@"
