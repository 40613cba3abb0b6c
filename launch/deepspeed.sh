#!/usr/bin/env bash
# `altup-moe launch deepspeed` in a checkout: launch/deepspeed.sh --help. The first python3 in PATH runs it (or PYTHON), so
# activate the environment.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
python=${PYTHON:-python3}
if ! command -v -- "$python" >/dev/null; then
    echo "altup-moe: error: $python: not found; install Python 3.11 or newer, or set PYTHON to an interpreter" >&2
    exit 2
fi
start='import sys; sys.path.insert(0, sys.argv.pop(1)); from altup_moe.cli import main; sys.exit(main())'
exec "$python" -P -c "$start" "$root" launch deepspeed "$@"
