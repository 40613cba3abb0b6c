"""The template of `standby`: imports what a training imports, and forks a rank for each line that it is sent.

    python -m altup_moe.standby_process PARENT ANSWERS WAIT ROOM

A line of standard input is a JSON object with a rank's command line and environment. To the descriptor ANSWERS go
`ready` when a line may come, and the process number of each rank, which PARENT has adopted by then. WAIT: seconds
before it imports; ROOM: as long as the words of a rank.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from altup_moe.config.imports import without_collections
from altup_moe.config.library_warnings import LibraryWarnings
from altup_moe.launch.standby import NO_RANK, training_words, unwrapped
from altup_moe.parallel import parent_death

ADOPTION_SECONDS = 5.0


def load() -> None:
    """Import what a training needs, and start no thread, which a fork would not copy."""
    threads = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with LibraryWarnings():
        from altup_moe.parallel.compile_later import compile_later

        with without_collections(), compile_later():
            import torch._dynamo  # noqa: F401  # which the first step loads

            import altup_moe.train.loop
    import altup_moe.commands.train  # noqa: F401

    if threads is None:
        del os.environ["OPENBLAS_NUM_THREADS"]
    else:
        os.environ["OPENBLAS_NUM_THREADS"] = threads


def _serve(parent: int, answers: int) -> dict[str, Any] | None:
    """Fork a rank for each line. Returns None at the end of the input; in a rank what the line said."""
    os.write(answers, b"ready\n")
    for line in iter(sys.stdin.buffer.readline, b""):
        told = json.loads(line)
        if len(os.listdir("/proc/self/task")) > 1:
            return None
        between = os.fork()
        if between == 0:
            if os.fork():
                os._exit(0)
            _become(parent)
            os.write(answers, b"%d\n" % os.getpid())
            os.close(answers)
            return dict(told)
        os.waitpid(between, 0)
    return None


def _become(parent: int) -> None:
    """Wait until the launcher is this process's parent, and lead a session as any rank does."""
    end = time.monotonic() + ADOPTION_SECONDS
    while os.getppid() != parent:
        if time.monotonic() > end:
            os._exit(1)
        time.sleep(0.001)
    os.setsid()


def _show(args: list[str], rank: str) -> None:
    """Have the kernel show the rank's words and number in the place of the template's: `ps`, `pgrep`, /proc.

    They are overwritten where they lie, as setproctitle(3) does. Nothing of Python refers to that memory any more.
    """
    numbers = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    arguments, arguments_end, variables, variables_end = (int(number) for number in numbers[45:49])
    words = b"\0".join(word.encode() for word in args)
    if 0 < arguments < arguments_end and len(words) < arguments_end - arguments:
        ctypes.memmove(arguments, words.ljust(arguments_end - arguments, b"\0"), arguments_end - arguments)
    if 0 < variables < variables_end:
        place = ctypes.string_at(variables, variables_end - variables).find(f"\0RANK={NO_RANK}\0".encode())
        number = rank.zfill(len(NO_RANK)).encode()
        if place >= 0 and len(number) == len(NO_RANK):
            ctypes.memmove(variables + place + len(b"\0RANK="), number, len(number))


def _run(told: dict[str, Any]) -> int:
    """In a rank: run its command here; as a new program if CUDA was used before the fork."""
    import torch

    args, env = list(told["args"]), dict(told["env"])
    if torch.cuda._is_in_bad_fork():
        os.execve(args[0], args, env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    _show(args, env.get("RANK", "0"))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    wrapper, command = unwrapped(args)
    if wrapper:
        stops = "--stop" in wrapper
        (parent_death.stop_with_parent if stops else parent_death.die_with_parent)(int(wrapper[-1]))
    words = training_words(args) or []
    sys.argv = [command[0], *words]
    from altup_moe.cli import main

    return main()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C that reaches it ends it without a traceback
    parent, answers = int(sys.argv[1]), int(sys.argv[2])
    parent_death.die_with_parent(parent)
    if Path("/proc/self/task").is_dir():
        select.select([sys.stdin], [], [], float(sys.argv[3]))
        load()
        told = _serve(parent, answers)
        sys.exit(0 if told is None else _run(told))
