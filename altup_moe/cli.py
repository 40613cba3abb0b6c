"""The command `altup-moe`: a table of commands, whose modules are imported when they are asked for.

A mistake of the user's is one line on stderr and exit code 2, found before torch is imported wherever it can be.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from importlib import import_module

from altup_moe.config import UserError
from altup_moe.config.command import Command
from altup_moe.config.exit_codes import EXIT_USER_ERROR
from altup_moe.config.flags import check_utf8
from altup_moe.config.keys import nearest_key

OWN_MISTAKE_SECONDS = 1.0
"""How long a rank other than 0 waits before it prints a mistake."""

COMMANDS = {
    "train": Command("CONFIG [--section.key VALUE ...] [--dry-run]", "train a configuration file"),
    "evaluate": Command("RUN [options]", "loss and bits per byte of a run on held-out text, or its answers to tasks"),
    "generate": Command("RUN --prompt TEXT [options]", "continue a text with a trained run"),
    "doctor": Command("[options]", "could a run start here: versions, devices, network, disk, two ranks"),
    "bench": Command("NAME [options]", "measure: step, sequence, overlap, experts, train, mixing, checkpoint"),
    "show": Command("RUN [RUN ...] [options]", "one page of a run, or of several: curves, routing, history"),
    "study": Command("run|status|report ...", "grids of runs: what each learned, and how fast it is"),
    "plan": Command("CONFIG [options]", "memory and step time on a cluster, before a GPU is asked for"),
    "prepare-data": Command("SOURCE OUT_PREFIX [options]", "tokenise a text corpus once"),
    "convert": Command("import|export SRC DST", "models from and to Hugging Face directories"),
    "reshard": Command("SRC DST [options]", "rewrite a checkpoint for another layout"),
    "inspect": Command("RUN [options]", "the content of a checkpoint, or how two differ"),
    "grow": Command("SRC DST [--section.key VALUE ...]", "make a trained model larger; it computes the same"),
    "recipe": Command("FILE [options]", "pretrain, fine-tune, and compare with a control, for several seeds"),
    "launch": Command("torchrun|deepspeed|netlab [options] -- COMMAND", "start ranks on one or many nodes"),
    "configs": Command("[NAME [FILE]] [--schema]", "list the shipped files; copy one to start from"),
}
"""By name. The module `altup_moe.commands.NAME` has a function `main(words) -> exit code`; it may raise UserError."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (without the program's name; None takes the process's) and return its exit code.

    Under a launcher all ranks mostly find the same mistake. Rank 0 prints it; the others only what is theirs.
    """
    _quiet_libraries()
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"altup-moe: error: {_whose()}{' '.join(str(error).splitlines())}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR


def _whose() -> str:
    """Names this rank, unless it is rank 0, which speaks at once.

    The others wait first: if rank 0, or the first rank of this node, has the same mistake, its launcher ends them
    meanwhile, and the line stands there once. A mistake that is a rank's own is printed by it.
    """
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        return ""
    time.sleep(OWN_MISTAKE_SECONDS * (1 if os.environ.get("LOCAL_RANK") == "0" else 2))
    return f"on rank {rank} ({platform.node()}): "


def _quiet_libraries() -> None:
    """Megatron-Core announces at import what it falls back to without Transformer Engine and apex: expected here."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"megatron\.")
    logging.getLogger("megatron").setLevel(logging.ERROR)


def _dispatch(argv: list[str]) -> int:
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
    module = import_module(f"altup_moe.commands.{name.replace('-', '_')}")
    code: int = module.main(args)
    return code


def _overview() -> str:
    rows = [(f"{name} {command.usage}", command.summary) for name, command in COMMANDS.items()]
    width = max(len(usage) for usage, _ in rows)
    lines = [f"  altup-moe {usage:<{width}}  {summary}" for usage, summary in rows]
    return "\n".join(
        [
            "Train Transformers with an AltUp residual stream and sparse experts.",
            "",
            *lines,
            "",
            "altup-moe COMMAND --help says what it takes; altup-moe --version prints the version.",
        ]
    )


def _version() -> str:
    try:
        return importlib.metadata.version("altup-moe")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
