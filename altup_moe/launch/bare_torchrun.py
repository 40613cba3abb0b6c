"""What torchrun makes of the exit codes of ranks that it started itself, and the command line that keeps them.

torchrun ends with 1 and a traceback of its own whatever its ranks returned. It shows one text of theirs, from the file
that it names in TORCHELASTIC_ERROR_FILE (torch 2.13).
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from altup_moe.config.exit_codes import EXIT_DIVERGED, EXIT_HUNG, EXIT_STOPPED, EXIT_USER_ERROR
from altup_moe.parallel.death_record import OWN_LAUNCHER

_MEANING = {
    EXIT_USER_ERROR: "a mistake, in the line above",
    EXIT_STOPPED: "stopped by a signal and saved",
    EXIT_DIVERGED: "training has diverged",
    EXIT_HUNG: "a rank or link did not answer",
}


def advice(code: int, words: Sequence[str], env: Mapping[str, str]) -> str | None:
    """What to know of an exit code that bare torchrun hides, and what to type; None where it hides nothing.

    Args:
        words: the command line, without the program's name.
    """
    if code not in _MEANING or OWN_LAUNCHER in env or "TORCHELASTIC_RUN_ID" not in env:
        return None
    nodes = int(env.get("GROUP_WORLD_SIZE", "1"))
    meeting = f"{env.get('MASTER_ADDR', 'HOST')}:{env.get('MASTER_PORT', 'PORT')}"
    several = ["--nodes", str(nodes), "--rdzv", meeting] if nodes > 1 else []
    ranks = ["--ranks-per-node", env.get("LOCAL_WORLD_SIZE", "1")]
    line = shlex.join(["altup-moe", "launch", "torchrun", *several, *ranks, "--", "altup-moe", *words])
    return (
        f"altup-moe: the exit code is {code} ({_MEANING[code]}); torchrun makes 1 and a traceback of it, "
        f"this keeps it: {line}"
    )


def advise(code: int, words: Sequence[str]) -> None:
    """Print the advice on rank 0, and give it to torchrun to show; nothing where it hides nothing."""
    text = advice(code, words, os.environ)
    if text is None:
        return
    if os.environ.get("RANK") == "0":
        print(text, file=sys.stderr, flush=True)
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        shown = {"py_callstack": text.removeprefix("altup-moe: "), "timestamp": str(int(time.time()))}
        try:
            Path(file).write_text(json.dumps({"message": {"message": text, "extraInfo": shown}}), encoding="utf-8")
        except OSError:
            return  # torchrun then shows what it shows without
