"""What a rank that fails leaves for its launcher: when, in which step, the error and its traceback, as a JSON file.

The launcher names a directory in the variable `DIRECTORY`. It prints the first failure whole and the others as a line
each (`launch.deaths`), so a rank that has left its record prints no traceback.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from altup_moe.parallel.parent_death import launcher_process

DIRECTORY = "ALTUP_MOE_DEATHS"
"""Variable: directory for the records of a launcher's ranks."""
OWN_LAUNCHER = "ALTUP_MOE_LAUNCHER"
"""Variable of ranks that one of our launchers has started; bare torchrun hides their exit codes."""


@dataclass(frozen=True)
class Death:
    """How a rank ended.

    ``time``: seconds since the epoch, when the error was raised or the process ended. ``code``: exit code, 128 + n
    for signal n. ``error``: type and text in one line, "" if none is known. ``step``: optimizer step under way, 0
    before the first; None if not known. ``told``: the launcher had asked it to end.
    """

    rank: int
    time: float
    code: int
    pid: int
    error: str = ""
    trace: str = field(default="", repr=False)
    step: int | None = None
    host: str = ""
    told: bool = False


@dataclass
class _Progress:
    """What this process would leave."""

    step: int = 0
    error: BaseException | None = None
    time: float = 0.0


_progress = _Progress()


def note_step(step: int) -> None:
    """Say which optimizer step begins."""
    _progress.step = step


def leave(error: BaseException, code: int = 1) -> bool:
    """Leave the record of an error, or complete it: the time stays that of the first call.

    To be called where the error passes by before connections are closed: other ranks fail because of that.

    Returns:
        Whether a launcher that lives has got it, and will print it.
    """
    directory = os.environ.get(DIRECTORY)
    if not directory or isinstance(error, SystemExit | KeyboardInterrupt):
        return False
    if _progress.error not in _chain(error):
        _progress.time = time.time()
    _progress.error = error
    shown = "".join(traceback.format_exception(error)).rstrip()
    text = " ".join(str(error).split())
    name = type(error).__name__
    death = Death(
        rank=int(os.environ.get("RANK", "0")),
        time=_progress.time,
        code=code,
        pid=os.getpid(),
        error=(f"{name}: {text}" if text else name)[:500],
        trace=shown,
        step=_progress.step,
        host=os.uname().nodename,
    )
    try:
        write(directory, death)
        return launcher_process() is not None
    except OSError:
        return False


def write(directory: str | Path, death: Death) -> None:
    """Write a record, whole or not at all. Raises OSError."""
    file = Path(directory) / f"rank{death.rank}.json"
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps(asdict(death)), encoding="utf-8")
    temporary.replace(file)


def read_all(directory: str | Path) -> list[Death]:
    """The records in a directory; what cannot be read is left out."""
    found = []
    for file in sorted(Path(directory).glob("*.json")):
        with suppress(OSError, ValueError, TypeError):
            values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            found.append(Death(**values))
    return found


def clear(directory: str | Path) -> None:
    """Remove the records of an earlier start."""
    for file in Path(directory).glob("*.json"):
        file.unlink(missing_ok=True)


def _chain(error: BaseException) -> list[BaseException]:
    """An error and those that it was raised from."""
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__
    return chain
