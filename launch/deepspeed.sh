#!/usr/bin/env bash
# Ranks under the launcher of DeepSpeed, here or on many hosts: launch/deepspeed.sh --help. The logic is altup_moe/launch/deepspeed.py;
# the first python3 in PATH runs it (or PYTHON), so activate the environment.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
python=${PYTHON:-python3}
if ! command -v -- "$python" >/dev/null; then
    echo "deepspeed.sh: error: $python: not found; install Python 3.11 or newer, or set PYTHON to an interpreter" >&2
    exit 2
fi
start='import sys; sys.path.insert(0, sys.argv.pop(1)); from altup_moe.launch.deepspeed import main; sys.exit(main())'
exec "$python" -P -c "$start" "$root" "$@"
