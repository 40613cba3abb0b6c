"""The command `altup-moe`: a table of commands, whose modules are imported when they are asked for.

A mistake of the user's is one line on stderr and exit code 2, found before torch is imported wherever it can be.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from altup_moe.config.errors import UserError
from altup_moe.config.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ERROR
from altup_moe.config.interrupts import Interrupts, say_interrupted
from altup_moe.config.library_warnings import LibraryWarnings
from altup_moe.config.os_errors import reason, user_line
from altup_moe.config.output import complain, discard
from altup_moe.parallel import death_record, parent_death
from altup_moe.parallel.death_record import OWN_LAUNCHER

OWN_MISTAKE_SECONDS = 1.0
"""How long a rank other than 0 waits before it prints a mistake."""
EXAMPLE = "altup-moe train quickstart"


class Row(NamedTuple):
    """A command in the table: what follows its name, and what it is for, in a few words."""

    usage: str
    summary: str


COMMANDS = {
    "train": Row("CONFIG", "train a configuration file; any key of it is a flag"),
    "evaluate": Row("RUN_DIR", "loss on held-out text, or answers to tasks"),
    "generate": Row("RUN_DIR ...", "continue a text (--prompt) with a trained run"),
    "doctor": Row("", "could a run start here: versions, devices, network"),
    "bench": Row("NAME", "measure a step, experts, mixing, overlap, saving"),
    "show": Row("RUN_DIR ...", "one page of a run, or of several: curves, routing"),
    "study": Row("run|status|report", "grids of runs: what they learned, how fast they are"),
    "plan": Row("CONFIG", "memory and step time on a cluster, before it is used"),
    "prepare-data": Row("SOURCE OUT", "tokenise a text corpus once"),
    "convert": Row("import|export", "models from and to Hugging Face directories"),
    "reshard": Row("SRC DST", "rewrite a checkpoint for another layout"),
    "inspect": Row("RUN_DIR", "the content of a checkpoint, or how two differ"),
    "grow": Row("SRC DST", "make a trained model larger; it computes the same"),
    "recipe": Row("FILE", "pretrain, fine-tune, compare; several seeds"),
    "launch": Row("HOW ... -- COMMAND", "ranks by torchrun, deepspeed, slurm or netlab"),
    "configs": Row("[NAME]", "list the shipped files; copy one to start from"),
}
"""By name. The module `altup_moe.commands.NAME` has a function `main(words) -> exit code`; it may raise UserError."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (without the program's name; None takes the process's) and return its exit code.

    Under a launcher all ranks mostly find the same mistake. Rank 0 prints it; the others only what is theirs.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None and ("TORCHELASTIC_RUN_ID" in os.environ or OWN_LAUNCHER in os.environ):
        _end_with_the_launcher()
    with Interrupts() as interrupts:
        try:
            with LibraryWarnings():
                code = _exit_code(words, interrupts)
        except BaseException as error:
            # A library may have made another error of it.
            if interrupts.noted or isinstance(error, KeyboardInterrupt):
                say_interrupted()
                code = EXIT_INTERRUPTED
            elif death_record.leave(error, EXIT_FAILED):
                code = EXIT_FAILED  # the launcher prints it: whole if it was the first one
            else:
                raise
    if argv is None and code == EXIT_STOPPED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run is saved: Ctrl-C told twice changes no exit code
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from altup_moe.launch.bare_torchrun import advise

        advise(code, words)
    if argv is None and words[:1] == ["launch"]:
        from altup_moe.launch.node import leave

        leave(code)  # no node may be late
    return code


def _end_with_the_launcher() -> None:
    """This is a rank: it saves and stops when its launcher dies, and is killed if that takes too long."""
    parent = os.getppid()
    parent_death.stop_with_parent(parent)
    launcher = parent_death.launcher_process()
    parent_death.end_after_parent(parent, parent_death.seconds_to_save(), launcher if launcher != parent else None)


def _exit_code(words: list[str], interrupts: Interrupts) -> int:
    """Run the words; a mistake, a file system that refuses and a reader that has gone are exit codes."""
    try:
        code = _dispatch(words)
        return _flushed(code, words)
    except UserError as error:
        if interrupts.noted:
            raise
        return _mistake(error, words)
    except BrokenPipeError:
        # The reader (head, less) has gone; the interpreter must not complain again when it flushes at exit.
        discard(sys.stdout)
        return 0
    except OSError as error:
        line = None if interrupts.noted else user_line(error)
        if line is None:
            raise
        if error.filename is None and _flushed(0, words):
            return EXIT_USER_ERROR
        return _mistake(UserError(line), words)


def _flushed(code: int, words: Sequence[str]) -> int:
    """The code, once all of standard output is written; that of a mistake if it cannot be."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)
    except OSError as error:
        discard(sys.stdout)
        return _mistake(UserError(f"standard output: {reason(error)}"), words)
    return code


def _mistake(error: UserError, words: Sequence[str]) -> int:
    _say(error, words)
    return error.exit_code


def _say(error: UserError, words: Sequence[str]) -> None:
    """Print a mistake, unless another rank does.

    On one node rank 0 speaks at once. The others, which name themselves, wait first: if rank 0, or the first rank of
    the node, has the same mistake, its launcher ends them meanwhile, and the line stands there once. On several nodes,
    of which a launcher ends only its own, ranks of `train` tell each other.
    """
    if error.told is True:
        return
    rank, text = os.environ.get("RANK", "0"), " ".join(str(error).splitlines())
    if error.told is None and words[:1] == ["train"] and _on_several_nodes():
        from altup_moe.parallel.start_meeting import tell_early

        if tell_early(text):
            return
    elif error.told is None and rank != "0":
        time.sleep(OWN_MISTAKE_SECONDS * (1 if os.environ.get("LOCAL_RANK") == "0" else 2))
    whose = ""
    if rank != "0":
        import platform

        whose = f"on rank {rank} ({platform.node()}): "
    complain(f"altup-moe: error: {whose}{text}")


def _on_several_nodes() -> bool:
    size = os.environ.get("WORLD_SIZE", "1")
    return size != os.environ.get("LOCAL_WORLD_SIZE", size)


def _dispatch(argv: list[str]) -> int:
    from altup_moe.config.flags import check_utf8
    from altup_moe.config.keys import nearest_key
    from altup_moe.config.plugins import load_plugins

    check_utf8(argv)
    match argv:
        case ["-h" | "--help"]:
            print(_overview())
            return 0
        case ["--version"]:
            print(f"altup-moe {_version()}")
            return 0
        case [name, *args]:
            pass
        case _:
            raise UserError(f"name a command: {', '.join(COMMANDS)}; altup-moe --help says more")
    if name not in COMMANDS:
        raise UserError(f"{name}: unknown command; nearest is {nearest_key(name, COMMANDS)}")
    if name != "launch":  # its ranks load them
        load_plugins()
    module = import_module(f"altup_moe.commands.{name.replace('-', '_')}")
    code: int = module.main(args)
    return code


def _overview() -> str:
    from altup_moe.config.help_pages import table

    rows = table((f"{name} {row.usage}".rstrip(), row.summary) for name, row in COMMANDS.items())
    return "\n".join(
        [
            f"example: {EXAMPLE}",
            "",
            "usage: altup-moe COMMAND ... | --version",
            "",
            "Train Transformers with an AltUp residual stream and sparse experts.",
            "",
            *rows,
            "",
            "altup-moe COMMAND --help says what a command takes.",
        ]
    )


def _version() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("altup-moe")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
