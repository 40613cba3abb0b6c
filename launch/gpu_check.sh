#!/usr/bin/env bash
# `altup-moe bench gpu` from a packed checkout (tools/pack_gpu.py), where this file is run.sh:
#   bash run.sh --directory OUT --minutes 40
# Needs no network. The first python3 in PATH runs it (or PYTHON): the one that holds torch. Wheels are unpacked once,
# into site/ beside this file, and nothing else is installed.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
python=${PYTHON:-python3}
fail() {
    echo "gpu_check: error: $1" >&2
    exit 2
}
[ -d "$root/wheels" ] || fail "$root: is no packed checkout; tools/pack_gpu.py FILE makes one"
command -v -- "$python" >/dev/null || fail "$python: not found; set PYTHON to the interpreter that has torch"
wanted=$(cat "$root/PYTHON")
found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$found" = "$wanted" ] || fail "Python $found: the wheels are for $wanted; set PYTHON to such an interpreter"
if [ ! -d "$root/site" ]; then
    rm -rf "$root/site.new"
    mkdir "$root/site.new"
    for wheel in "$root"/wheels/*.whl; do
        "$python" -m zipfile -e "$wheel" "$root/site.new"
    done
    mv "$root/site.new" "$root/site"
fi
export PYTHONPATH=$root:$root/site HF_HUB_OFFLINE=1
check='import importlib.util as i, sys
names = "torch transformers tokenizers safetensors yaml numpy rich megatron".split()
print(*[name for name in names if i.find_spec(name) is None])'
missing=$("$python" -P -c "$check")
[ -z "$missing" ] || fail "$python has no $missing: pack their wheels too (tools/pack_gpu.py FILE --plus NAME==VERSION)"
exec "$python" -P -m altup_moe bench gpu "$@"
