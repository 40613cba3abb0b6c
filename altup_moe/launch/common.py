"""Shared by the launchers: one-line errors, flags before `--` and a command after it, the search for programs."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import NoReturn

from altup_moe.config.errors import UserError
from altup_moe.config.exit_codes import EXIT_USER_ERROR
from altup_moe.doctor.network import interface_towards, local_address

EXAMPLE = "altup-moe train configs/quickstart.yaml"


class LaunchError(UserError):
    """A request of the user that cannot be fulfilled; `str(error)` is one readable line."""


class Parser(argparse.ArgumentParser):
    """Flags of a launcher. A wrong flag is a one-line error."""

    def __init__(self, program: str, description: str) -> None:
        super().__init__(
            prog=program,
            usage=f"{program} [options] -- COMMAND ...",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise LaunchError(f"{message}; {self.prog} --help says what fits")

    def read(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Options before the first `--` and the command after it.

        Raises:
            LaunchError: a wrong flag, a word that is no flag, or no command.
        """
        cut = list(argv).index("--") if "--" in argv else len(argv)
        options, rest = self.parse_known_args(list(argv[:cut]))
        command = list(argv[cut + 1 :])
        if rest:
            fits = f"{self.prog} --help names the flags" if rest[0].startswith("-") else "a command goes behind --"
            raise LaunchError(f"{rest[0]!r}: not a flag of {self.prog}; {fits}")
        if not command:
            raise LaunchError(f"command: none given; put it behind --, as in {self.prog} -- {EXAMPLE}")
        return options, command


def run_main(program: str, work: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    """Run `work(argv)`; None takes the process's arguments. A LaunchError is one line on stderr and exit code 2."""
    try:
        return work(list(sys.argv[1:] if argv is None else argv))
    except LaunchError as error:
        print(f"{program}: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return EXIT_USER_ERROR


def find_program(name: str) -> str | None:
    """Path of a program in PATH or beside this interpreter (an environment that is not activated); None if missing."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def found_command(command: Sequence[str]) -> list[str]:
    """The command with the path of its program.

    Raises:
        LaunchError: there is no such program.
    """
    program = find_program(command[0])
    if program is None:
        raise LaunchError(f"command {command[0]!r}: not found; a program in PATH or its path would fit")
    return [program, *command[1:]]


def need_torch() -> None:
    """Raise LaunchError if this interpreter has no torch."""
    if importlib.util.find_spec("torch") is None:
        raise LaunchError(
            f"{sys.executable} has no torch (and so no torchrun); activate the environment of altup-moe, "
            "set PYTHON to its interpreter, or pip install -r requirements.txt"
        )


def whole_number_within(name: str, value: str | int, low: int, high: int) -> int:
    """A whole number from `low` to `high`.

    Raises:
        LaunchError: `value` is no such number. `name` is the user's name for it.
    """
    text = str(value)
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise LaunchError(f"{name} {text!r}: a whole number, {low} to {high}, would fit")
    return int(text)


def set_defaults(env: MutableMapping[str, str], meeting: str, nodes: int, ranks_per_node: int) -> list[str]:
    """Complete the environment of the ranks of one node. Variables that the user has set stay.

    OMP_NUM_THREADS: the cores that this process may use, divided by its ranks (torchrun alone would set 1).
    GLOO_SOCKET_IFNAME: the loopback on one node, so that no name of the machine has to resolve; with more nodes the
    interface that leads to `meeting`. NCCL finds its interface by itself.

    Args:
        meeting: host where the ranks meet.
    Returns:
        Warnings, each a line.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    env.setdefault("OMP_NUM_THREADS", str(max(1, cores // max(1, ranks_per_node))))
    if "GLOO_SOCKET_IFNAME" in env or not sys.platform.startswith("linux"):
        return []
    if nodes == 1:
        env["GLOO_SOCKET_IFNAME"] = "lo"
        return []
    address = local_address(meeting)
    interface = interface_towards(meeting)
    if address is None or interface is None:
        return [f"no interface leads to {meeting}; set GLOO_SOCKET_IFNAME if the nodes do not find each other"]
    if interface == "lo" and meeting not in ("localhost", "127.0.0.1"):
        # Debian's /etc/hosts gives a machine's own name a loopback address: other nodes could not answer.
        return [f"{meeting} is a loopback address here; set GLOO_SOCKET_IFNAME to the interface of the other nodes"]
    env["GLOO_SOCKET_IFNAME"] = interface
    return []
