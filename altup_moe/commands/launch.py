"""`altup-moe launch torchrun|deepspeed|netlab ... -- COMMAND`: start the ranks of a command."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from altup_moe.config import UserError
from altup_moe.config.keys import nearest_key

LAUNCHERS = ("torchrun", "deepspeed", "netlab")


def main(args: Sequence[str]) -> int:
    """Run the command's words and return the exit code: the ranks' own."""
    if not args or args[0] in ("-h", "--help"):
        print(f"altup-moe launch {'|'.join(LAUNCHERS)} [options] -- COMMAND ...; each has its own --help")
        return 0 if args else 2
    name, *rest = args
    if name not in LAUNCHERS:
        raise UserError(f"launch {name}: unknown launcher; nearest is {nearest_key(name, LAUNCHERS)}")
    code: int = import_module(f"altup_moe.launch.{name}").main(rest)
    return code
