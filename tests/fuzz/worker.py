"""Runs command lines one after another, each in a fork of a process that has imported everything, with limits.

    python -m tests.fuzz.worker     reads one JSON list of words a line, writes one JSON object a line

A run that has started is cut short: it takes one step if that is cheap, and none otherwise.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

MEMORY_BYTES = 12 << 30
"""What a child may take: more than any case should, less than the machine has."""
SECONDS = 60.0
"""After which a child counts as hanging."""
CHEAP_STEP = 2e9
"""Parameters times tokens of a step that is taken."""


def _import() -> None:
    import tests.distributed.preload  # noqa: F401  # first: Megatron is imported once
    from altup_moe import cli
    from altup_moe.commands import evaluate, generate, train
    from altup_moe.model import build, gpt, t5
    from altup_moe.train import adafactor, loop, mixture, optim

    assert all((cli, evaluate, generate, train, build, gpt, t5, adafactor, loop, mixture, optim))


def _cut_short() -> None:
    """Have a run that has started end at once, or after a step that is cheap."""
    from altup_moe.parallel.counts import count_parameters
    from altup_moe.train import loop

    steps = loop._steps

    def started(run: Any, *args: Any) -> int:
        config = run.config
        tokens = config.train.global_batch_size * config.model.tokens_per_sample
        print("STARTED", flush=True)
        if tokens * count_parameters(config).total > CHEAP_STEP or config.train.stop_after != 1:
            return 0
        return steps(run, *args)

    loop._steps = started


def _child(words: list[str], out: Path, err: Path) -> None:
    """In a fork: run the command line. Does not return."""
    code = 1
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        for descriptor, path in ((0, os.devnull), (1, out), (2, err)):
            flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT
            os.dup2(os.open(path, flags), descriptor)
        from altup_moe.cli import main

        _cut_short()
        code = main(words)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(words: list[str], directory: Path) -> dict[str, Any]:
    """Run a command line in a child; exit code (None if killed for time), output, seconds of clock and processor."""
    out, err = directory / "out", directory / "err"
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(words, out, err)
    code: int | None = None
    processor = 0.0
    while time.monotonic() - began < SECONDS:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            processor = used.ru_utime + used.ru_stime
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.005)
    else:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    seconds = time.monotonic() - began
    texts = [path.read_text(errors="replace") if path.exists() else "" for path in (out, err)]
    for path in (out, err):
        path.unlink(missing_ok=True)
    return {"code": code, "out": texts[0], "err": texts[1], "seconds": round(seconds, 3), "processor": processor}


def main() -> None:
    """Serve until the input ends."""
    # Whatever a library prints meanwhile must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _import()
    with TemporaryDirectory() as name:
        for line in sys.stdin:
            answers.write(json.dumps(run(json.loads(line), Path(name))) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
