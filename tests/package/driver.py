"""Runs in the environment that holds the wheel: command lines of `altup-moe`, each in a child of this process.

Reads a JSON list of lists of words, writes a JSON list of exit codes and of what was printed. The libraries are
imported once, which takes seconds; a child starts with what a new process has after its imports, and nothing more.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from altup_moe.cli import main
from altup_moe.config.imports import without_collections
from altup_moe.parallel.compile_later import compile_later

with without_collections(), compile_later():
    for library in ("torch.distributed", "transformers", "megatron.core.models.gpt.gpt_layer_specs"):
        import_module(library)
gc.freeze()  # no child looks for garbage in it


def run(words: list[str]) -> dict[str, object]:
    """One command line."""
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory) / name for name in ("out", "err")]
        child = os.fork()
        if child == 0:
            os._exit(_as_a_process(words, files))
        _, status = os.waitpid(child, 0)

        code = os.waitstatus_to_exitcode(status)
        return {"code": code, **{file.name: file.read_text(encoding="utf-8", errors="replace") for file in files}}


def _as_a_process(words: list[str], files: list[Path]) -> int:
    for descriptor, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    code: object = 1
    try:
        sys.argv = ["altup-moe", *words]
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(bool(code))


if __name__ == "__main__":
    lines = json.loads(sys.stdin.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    answer = [run(words) for words in lines]
    sys.stdout.write(json.dumps(answer))
